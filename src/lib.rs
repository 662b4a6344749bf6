#![doc = include_str!("lib.md")]
// A producer's build: half of what the AMQP side can do is for workers.
#![cfg_attr(not(feature = "worker"), allow(dead_code))]

#[cfg(feature = "server")]
pub mod access;
#[cfg(feature = "server")]
pub mod acts;
pub mod amqp;
pub(crate) mod callback;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
pub mod config;
#[cfg(feature = "server")]
pub mod courier;
#[cfg(any(feature = "egress", all(feature = "otlp", feature = "tls")))]
mod crypto;
#[cfg(feature = "server")]
mod disk;
#[cfg(feature = "server")]
pub(crate) mod doctor;
#[cfg(feature = "egress")]
pub mod egress;
pub mod event;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "server")]
pub mod http;
pub mod job;
#[cfg(feature = "server")]
pub(crate) mod management;
pub(crate) mod metrics;
mod near;
pub mod record;
pub mod retry;
#[cfg(feature = "server")]
pub(crate) mod setup;
#[cfg(feature = "worker")]
pub mod shutdown;
#[cfg(feature = "egress")]
pub mod sign;
#[cfg(feature = "server")]
pub mod spool;
#[cfg(feature = "worker")]
pub mod telemetry;
#[cfg(feature = "worker")]
pub mod testing;
pub(crate) mod trace;
#[cfg(feature = "worker")]
pub mod worker;

#[cfg(feature = "server")]
pub use cli::up;
pub use client::{Client, EnqueueOptions};
pub use config::Config;
pub use job::{Envelope, Job, JobError, JobId, JobResult, Kind, Options, QueueName, ResultExt, Schemas};
pub use retry::RetryPolicy;
pub use schemars;
#[cfg(feature = "worker")]
pub use worker::{Context, FromRef, Stop, Worker};

/// The README's Rust code, compiled.
#[cfg(all(doctest, feature = "worker"))]
#[doc = include_str!("../README.md")]
struct Readme;
