//! A client without a broker: records what would have been enqueued.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::job::Envelope;

/// A job that was enqueued on a recording client.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Recorded {
    /// The job.
    pub envelope: Envelope,
    /// Its delay.
    pub delay: Duration,
}

impl Recorded {
    /// The args, as a job's type.
    ///
    /// # Errors
    /// What serde says when they are not of this type.
    pub fn args<J: crate::Job>(&self) -> Result<J, serde_json::Error> {
        serde_json::from_slice(&self.envelope.args)
    }
}

/// All that was enqueued. Grows with the test that enqueues.
#[derive(Debug, Default)]
pub(super) struct Recording(Mutex<Vec<Recorded>>);

impl Recording {
    pub(super) fn add(&self, envelope: Envelope, delay: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Recorded { envelope, delay });
    }

    pub(super) fn all(&self) -> Vec<Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
