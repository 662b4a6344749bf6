#![doc = include_str!("lib.md")]

pub mod amqp;
pub mod client;
pub mod config;
pub mod job;
pub mod retry;

pub use client::{Client, EnqueueOptions};
pub use config::Config;
pub use job::{Envelope, Job, JobError, JobId, JobResult, Kind, Options, QueueName, ResultExt};
pub use retry::RetryPolicy;
