//! What may start: nothing on a connection before it is known what was ordered until it came up.
//!
//! A worker that was cut off has missed orders, and its jobs may come before them: they come on another connection, and
//! what was cancelled or paused meanwhile had not been delivered, so that it is no redelivery that would be asked about.
//! So for each connection that jobs come on the control log is read up to a word of our own that was written after.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::amqp::{
    connection::{Link, LinkState},
    control::Control,
};

/// How long a word is waited for until that is said.
const WONDER: Duration = Duration::from_secs(10);

/// The connection that jobs come on, and the control log.
pub(super) struct Fence {
    jobs: Link,
    control: Control,
    /// Which connection, and which word must have come back.
    needs: Mutex<(u64, u64)>,
}

impl Fence {
    /// Starts to follow the connection, until told to stop, so that its word is on its way before its first job comes.
    pub(super) fn start(jobs: &Link, control: &Control, stop: CancellationToken) -> Arc<Self> {
        // Numbers of connections and words begin with 1.
        let this = Arc::new(Self { jobs: jobs.clone(), control: control.clone(), needs: Mutex::new((0, 0)) });
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

    /// Which word the connection needs that is up now.
    fn need(&self) -> Option<u64> {
        let up = self.jobs.up().ok()?;
        // Both numbers change together.
        let mut needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        if needs.0 != up.epoch {
            *needs = (up.epoch, self.control.next_word());
        }
        Some(needs.1)
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
                never = self.wonder(need) => match never {},
            }
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
