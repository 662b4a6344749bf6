//! What may start: nothing on a connection before it is known what was ordered until it came up.
//!
//! A worker that was cut off has missed orders, and its jobs may come before them: they come on another connection, and
//! what was cancelled or paused meanwhile had not been delivered, so that it is no redelivery that would be asked about.
//! So for each connection that jobs come on the control log is read up to a word of our own that was written after.
//!
//! Nor may anything start on a connection that the broker has given up, unnoticed, because this process stood still for
//! longer than its heartbeat: that connection is given up here, too.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::pulse::{BEAT, Pulse};
use crate::amqp::{
    connection::{Link, LinkState, Up},
    control::Control,
};

/// How long a word is waited for until that is said.
const WONDER: Duration = Duration::from_secs(10);

/// The connection that jobs come on, and the control log.
pub(super) struct Fence {
    jobs: Link,
    control: Control,
    known: Mutex<Known>,
}

struct Known {
    /// The connection that jobs come on.
    epoch: u64,
    /// The word that must have come back for it.
    word: u64,
    pulse: Pulse,
    /// The last connection on which nothing may start any more.
    given_up: u64,
}

impl Fence {
    /// Starts to follow the connection, until told to stop, so that its word is on its way before its first job comes.
    pub(super) fn start(jobs: &Link, control: &Control, stop: CancellationToken) -> Arc<Self> {
        // Numbers of connections and words begin with 1.
        let known = Known { epoch: 0, word: 0, pulse: Pulse::now(), given_up: 0 };
        let this = Arc::new(Self { jobs: jobs.clone(), control: control.clone(), known: Mutex::new(known) });
        let following = Arc::clone(&this);
        jobs.runtime().spawn(async move { stop.run_until_cancelled(following.follow()).await });
        this
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// Whether jobs that have come may start.
    pub(super) fn is_open(&self) -> bool {
        self.need().is_some_and(|word| self.control.has_read(word))
    }

    /// Changes when it may have opened.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.control.words()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // It is whole after each statement.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which word the connection needs that is up now, if jobs may start on it.
    fn need(&self) -> Option<u64> {
        let up = self.jobs.up();
        let mut known = self.known();
        // Felt also where there is no connection. Whoever comes first after a standstill finds it out, before anything
        // starts. Without heartbeats the broker gives nothing up.
        let heartbeat = up.as_ref().ok().and_then(Up::heartbeat).unwrap_or(Duration::MAX);
        let still = known.pulse.beat(Pulse::now(), heartbeat);
        let up = up.ok()?;
        if let Some(still) = still {
            warn!(
                "this process stood still for {} s, longer than its heartbeat: others may have its jobs, so it connects anew",
                still.as_secs()
            );
            known.given_up = up.epoch;
            self.jobs.kick(up.epoch, "this process stood still");
        }
        if up.epoch <= known.given_up {
            return None;
        }
        if known.epoch != up.epoch {
            (known.epoch, known.word) = (up.epoch, self.control.next_word());
        }
        Some(known.word)
    }

    async fn follow(&self) {
        let mut state = self.jobs.watch();
        loop {
            if matches!(*state.borrow_and_update(), LinkState::Closed) {
                return;
            }
            let need = self.need();
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                never = self.feel() => match never {},
                never = self.wonder(need) => match never {},
            }
        }
    }

    /// Feels the pulse; never ends.
    async fn feel(&self) -> Infallible {
        loop {
            sleep(BEAT).await;
            self.need();
        }
    }

    /// Says so when a word does not come back; never ends.
    async fn wonder(&self, need: Option<u64>) -> Infallible {
        if let Some(need) = need {
            let mut words = self.changes();
            // The sender lives in `control`.
            if timeout(WONDER, words.wait_for(|read| *read >= need)).await.is_err() {
                let broker = self.jobs.describe();
                warn!(broker, "nothing is started before the control log is read");
            }
        }
        pending().await
    }
}
