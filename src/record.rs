//! The record of every job: the event log, and what is read from it (`docs/architecture.md`).
//!
//! | module | owns |
//! |---|---|
//! | [`writer`] | the event writer of a process: events in batches, confirmed, into the log |
//! | [`keys`] | ids that clients chose, and what request each belongs to (feature `server`) |
//! | [`model`] | what is known of a job, as others see it |
//!
//! Writing is for every process; reading is for HTTP processes (feature `server`).

#[cfg(feature = "server")]
pub mod keys;
pub mod model;
pub(crate) mod writer;

#[cfg(feature = "server")]
mod reading {
    use std::{collections::BTreeMap, time::Duration};

    use thiserror::Error;
    use tokio::{sync::watch, time::Instant};

    use super::model::{Counts, Filter, Group, JobRecord, Page, Position, QueueRecord, Scope, StoredEvent};
    use crate::{
        client::Client,
        config::Config,
        job::{JobId, QueueName},
    };

    /// Why the record cannot answer, or cannot be opened.
    #[derive(Debug, Error)]
    #[non_exhaustive]
    pub enum RecordError {
        /// Another process has the folder.
        #[error(
            "the record in {0} belongs to a process that runs: give each its own folder (record.path, HOPLINE_RECORD_PATH)"
        )]
        Locked(std::path::PathBuf),
        /// The folder or the file cannot be used.
        #[error("cannot use the record in {path}: {detail}")]
        Storage {
            /// Which folder.
            path: std::path::PathBuf,
            /// Why.
            detail: String,
        },
        /// The log could not be read up to its end in time: what is asked for may be in the part not read yet.
        #[error("the record is behind the event log: {0}")]
        Behind(String),
    }

    /// The record of an HTTP process; cheap to clone.
    #[derive(Clone)]
    pub struct Record {}

    /// Tells when something happens to a job.
    pub struct JobWatch {}

    impl JobWatch {
        /// Completes when the record of the job may have changed since the watch was made or this completed last.
        pub async fn changed(&mut self) {
            todo!()
        }
    }

    #[allow(unused_variables)]
    impl Record {
        /// Opens the record in `record.path`, and locks the folder. A file that cannot be read is set aside.
        pub fn open(config: &Config) -> Result<Self, RecordError> {
            todo!()
        }
        /// Starts to follow the event log over `client`'s broker, and to answer workers' questions.
        pub fn follow(&self, client: &Client) -> Result<(), String> {
            todo!()
        }
        /// Stops following, and closes the file.
        pub async fn close(&self) {
            todo!()
        }
        /// Whether all events written before this process started are known.
        pub fn is_caught_up(&self) -> bool {
            todo!()
        }
        /// The state in a word or a sentence.
        pub fn describe(&self) -> String {
            todo!()
        }
        /// Waits until everything that was confirmed before this call is in the record. Calls share their barriers.
        pub async fn catch_up(&self, deadline: Instant) -> Result<(), RecordError> {
            todo!()
        }
        /// This process wrote something about this job: the next [`Record::job`] catches up first.
        pub fn touch(&self, id: JobId) {
            todo!()
        }
        /// A job's record. Catches up, for at most `patience`, when the job is unknown or was touched.
        /// `Err(Behind)` when it is unknown and catching up took too long.
        pub async fn job(&self, id: JobId, patience: Duration) -> Result<Option<JobRecord>, RecordError> {
            todo!()
        }
        /// Jobs, newest first, after the position `after`.
        pub async fn jobs(
            &self,
            filter: Filter,
            limit: usize,
            after: Option<Position>,
        ) -> Result<Page, RecordError> {
            todo!()
        }
        /// How many jobs there are in each state, of those that `queue` and `kind` of the filter allow.
        pub async fn counts(&self, queue: Option<QueueName>) -> Result<Counts, RecordError> {
            todo!()
        }
        /// What is known of each queue that had a job.
        pub async fn queues(&self) -> Result<BTreeMap<QueueName, QueueRecord>, RecordError> {
            todo!()
        }
        /// Groups of dead jobs of a queue that can be replayed, largest first, at most 1000.
        pub async fn groups(&self, queue: QueueName) -> Result<Vec<Group>, RecordError> {
            todo!()
        }
        /// Events of `scope` after `after`, in the order of the log, at most `limit`; and up to where was searched.
        pub async fn events(
            &self,
            scope: Scope,
            after: Position,
            limit: usize,
        ) -> Result<(Vec<StoredEvent>, Position), RecordError> {
            todo!()
        }
        /// All events of a job that are kept, in the order of [`crate::event::Rank`]; at most 10,000, the newest.
        pub async fn job_events(&self, id: JobId) -> Result<Vec<StoredEvent>, RecordError> {
            todo!()
        }
        /// The last position applied.
        pub fn tail(&self) -> watch::Receiver<Position> {
            todo!()
        }
        /// Before this position events are missing here: the log no longer had them, or retention removed them.
        pub async fn first(&self) -> Result<Position, RecordError> {
            todo!()
        }
        /// A watch on one job.
        pub fn watch_job(&self, id: JobId) -> JobWatch {
            todo!()
        }
    }
}

#[cfg(feature = "server")]
pub use reading::{JobWatch, Record, RecordError};
