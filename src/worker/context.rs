//! What a handler is given besides its job.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    cpu::{CpuPool, Stop},
    news::{News, Said},
};
use crate::{
    client::Client,
    job::{Envelope, JobId, JobResult, Kind, QueueName},
    trace::Here,
};

/// Gives a handler its part of a worker's state: any part that can be made from a reference to the whole.
///
/// Every `Clone` type is a part of itself.
pub trait FromRef<S> {
    /// The part.
    fn from_ref(state: &S) -> Self;
}

impl<S: Clone> FromRef<S> for S {
    fn from_ref(state: &S) -> Self {
        state.clone()
    }
}

/// One attempt, as its handler sees it, without the handler's state.
pub(crate) struct Attempt {
    pub(crate) envelope: Envelope,
    pub(crate) max_attempts: u32,
    pub(crate) deadline: Instant,
    /// Asks the handler to stop.
    pub(crate) token: CancellationToken,
    pub(crate) lost: Lost,
    pub(crate) news: Arc<News>,
    pub(crate) client: Client,
    pub(crate) cpu: CpuPool,
    /// The place in the queue's and kind's concurrency; CPU work that cannot be stopped holds on to it.
    pub(crate) slot: Arc<Slot>,
}

/// Asks whether the broker has taken the delivery back.
#[derive(Clone)]
pub(crate) struct Lost(pub(crate) Arc<dyn Fn() -> bool + Send + Sync>);

impl Default for Lost {
    fn default() -> Self {
        Self(Arc::new(|| false))
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lost({})", (self.0)())
    }
}

/// Places that an attempt takes up until all of it has ended.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) _permits: Vec<OwnedSemaphorePermit>,
    /// Dropped with the slot, which tells the dispatcher that there is room.
    pub(crate) _freed: Option<Freed>,
}

/// Notifies when dropped.
#[derive(Debug)]
pub(crate) struct Freed(pub(crate) Arc<tokio::sync::Notify>);

impl Drop for Freed {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A handler's view of the attempt it runs; cheap to clone.
pub struct Context<S = ()> {
    attempt: Arc<Attempt>,
    state: Arc<S>,
}

impl<S> Clone for Context<S> {
    fn clone(&self) -> Self {
        Self { attempt: Arc::clone(&self.attempt), state: Arc::clone(&self.state) }
    }
}

impl<S> Context<S> {
    pub(crate) fn new(attempt: Arc<Attempt>, state: Arc<S>) -> Self {
        Self { attempt, state }
    }

    /// The job.
    #[must_use]
    pub fn job_id(&self) -> JobId {
        self.attempt.envelope.id
    }

    /// The kind under which the job came: the type's, or one of its aliases.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.attempt.envelope.kind
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.attempt.envelope.queue
    }

    /// Which life of the job, from 1; a replayed job is in its next.
    #[must_use]
    pub fn run(&self) -> u32 {
        self.attempt.envelope.run
    }

    /// Which attempt of this run, from 1. A redelivery after a crash repeats the number.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt.envelope.attempt
    }

    /// Attempts allowed in all.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.attempt.max_attempts
    }

    /// Whether a failure now is final.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.attempt() >= self.max_attempts()
    }

    /// The job's tags.
    #[must_use]
    pub fn tags(&self) -> &[String] {
        &self.attempt.envelope.tags
    }

    /// A text that the job's message carries along.
    #[cfg(feature = "server")]
    pub(crate) fn carried(&self, name: &str) -> Option<&str> {
        match self.attempt.envelope.extra.get(name) {
            Some(crate::job::wire::HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Time left until the attempt's timeout.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.attempt.deadline.saturating_duration_since(Instant::now())
    }

    /// Tells how far the job is: `percent` (more than 100 counts as 100) and a text of at most 1 KiB. Costs next to
    /// nothing and never waits, so it may be called in a loop: of what is told within a second the last counts, and
    /// the last of all is always told. Whoever looks at the job sees it; a job that is run again starts over.
    pub fn progress(&self, percent: u64, message: impl fmt::Display) {
        self.attempt.news.say(Said::new(percent, &message.to_string()));
    }

    /// Whether the handler should stop: the job was cancelled, the worker shuts down and the grace is over, or the
    /// attempt timed out.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.attempt.token.is_cancelled()
    }

    /// Completes when the handler should stop, as [`Context::is_cancelled`] says. A handler that then returns an error
    /// gives up this attempt: where the job was cancelled, that is its end; where the worker stops, the attempt is not
    /// counted and the job is handed back. A success counts all the same. A cancelled job's handler that does not
    /// return is dropped after `cancel.grace`.
    pub async fn cancelled(&self) {
        self.attempt.token.cancelled().await;
    }

    /// Whether the broker has taken this delivery back (the connection was lost): another worker may be running
    /// the same job by now. What this one returns is still used where that is safe.
    #[must_use]
    pub fn delivery_lost(&self) -> bool {
        (self.attempt.lost.0)()
    }

    /// The worker's state, or the handler's part of it.
    #[must_use]
    pub fn state(&self) -> &S {
        &self.state
    }

    /// A client to enqueue more jobs with. They go on in this job's trace: below this attempt, where traces are
    /// exported, else below what this job's submitter sent. A `traceparent` that a job carries already stays.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.attempt.client
    }

    /// Runs CPU-bound work on a bounded pool of threads, so that it holds up neither other handlers nor
    /// heartbeats. It cannot be stopped from outside: it should ask `stop` now and then. The attempt's place
    /// stays taken until it returns, also after the attempt timed out.
    ///
    /// # Errors
    /// What the work returns. A panic in it is a panic of the handler.
    pub async fn cpu<T, W>(&self, work: W) -> JobResult<T>
    where
        T: Send + 'static,
        W: FnOnce(&Stop) -> JobResult<T> + Send + 'static,
    {
        let stop = Stop::new(self.attempt.token.clone());
        let here = Here::now();
        let work = move |stop: &Stop| here.run(|| work(stop));
        self.attempt.cpu.run(stop, Arc::clone(&self.attempt.slot), work).await
    }
}
