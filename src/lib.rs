#![doc = include_str!("lib.md")]

#[cfg(feature = "server")]
pub mod cli;
pub mod config;
pub mod job;
pub mod retry;
#[cfg(feature = "worker")]
pub mod shutdown;
#[cfg(feature = "worker")]
pub mod telemetry;

#[cfg(feature = "server")]
pub use cli::up;
pub use config::Config;
pub use job::{Envelope, Job, JobError, JobId, JobResult, Kind, Options, QueueName, ResultExt};
pub use retry::RetryPolicy;
