#![doc = include_str!("lib.md")]

pub mod config;
#[cfg(feature = "server")]
pub mod http;
pub mod job;
pub mod retry;

pub use config::Config;
pub use job::{Envelope, Job, JobError, JobId, JobResult, Kind, Options, QueueName, ResultExt};
pub use retry::RetryPolicy;
