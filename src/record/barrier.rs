//! Barriers: how a reader of the log knows that it has read to the end.
//!
//! A stream has no mark of its end, so a reader writes one: a message with an id of its own, to the log and nowhere
//! else. When it comes back, everything that was confirmed before it was written has been applied. Callers share
//! barriers: one is in flight at a time, and whoever comes while it is waits for the next one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    amqp::{
        Names,
        publisher::{Publisher, Target},
    },
    job::{JobId, wire::Message},
};

/// Message type of a barrier.
pub(super) const BARRIER: &str = "hopline.barrier";
/// Longest time for one to be confirmed and to come back; then it is written again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before it is written again when it could not be.
const AGAIN: Duration = Duration::from_millis(250);

/// The barriers of one process; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Barriers(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Counts who asked.
    asked: watch::Sender<u64>,
    /// All up to this one have been answered.
    answered: watch::Sender<u64>,
    /// The barrier in flight.
    flying: Mutex<Option<String>>,
    landed: Notify,
    caught_up: watch::Sender<bool>,
}

impl Barriers {
    /// Waits until everything that was confirmed before this call has been applied; `false` at the deadline.
    pub(super) async fn catch_up(&self, deadline: Instant) -> bool {
        let mut answered = self.0.answered.subscribe();
        let number = self.ask();
        matches!(timeout_at(deadline, answered.wait_for(|answered| *answered >= number)).await, Ok(Ok(_)))
    }

    /// Asks for a barrier, without waiting for it.
    pub(super) fn ask(&self) -> u64 {
        let mut number = 0;
        self.0.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        number
    }

    /// Completes when somebody waits for a barrier.
    pub(super) async fn awaited(&self) {
        let mut asked = self.0.asked.subscribe();
        // The sender lives in `self`.
        let _ = asked.wait_for(|asked| *asked > self.answered()).await;
    }

    /// How often a barrier has been asked for.
    pub(super) fn asked(&self) -> u64 {
        *self.0.asked.borrow()
    }

    /// All up to this one have been answered.
    pub(super) fn answered(&self) -> u64 {
        *self.0.answered.borrow()
    }

    /// A barrier has been read, and all before it is applied.
    pub(super) fn land(&self, id: &str) {
        if self.flying().take_if(|flying| flying == id).is_some() {
            self.0.caught_up.send_replace(true);
            self.0.landed.notify_one();
        }
    }

    /// Reading has begun anew, from the first record.
    pub(super) fn lose(&self) {
        self.0.caught_up.send_replace(false);
        self.ask();
    }

    /// Whether a barrier has been read since reading began.
    pub(super) fn caught_up(&self) -> watch::Receiver<bool> {
        self.0.caught_up.subscribe()
    }

    /// Writes barriers when they are asked for, one at a time, until told to stop. `rounds` changes when the reader
    /// was interrupted: a barrier in flight may have got lost then.
    pub(super) async fn write(
        self,
        publisher: Publisher,
        names: Names,
        mut rounds: watch::Receiver<u64>,
        stop: CancellationToken,
    ) {
        let mut asked = self.0.asked.subscribe();
        loop {
            let answered = *self.0.answered.borrow();
            let number = *asked.borrow_and_update();
            if number > answered {
                let id = JobId::new().to_string();
                *self.flying() = Some(id.clone());
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.one(&publisher, &names, &id, &mut rounds) => {}
                }
                self.0.answered.send_replace(number);
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = asked.changed() => if changed.is_err() { return },
                changed = rounds.changed() => {
                    if changed.is_err() { return }
                    // The log may be another one, shorter than what was read: nothing comes until something is written.
                    self.ask();
                }
            }
        }
    }

    /// Writes a barrier, again and again until it is read.
    async fn one(&self, publisher: &Publisher, names: &Names, id: &str, rounds: &mut watch::Receiver<u64>) {
        loop {
            let deadline = Instant::now() + PATIENCE;
            rounds.borrow_and_update();
            if let Err(why) = publish(publisher, names, id, deadline).await {
                debug!(reason = why, "cannot write a barrier");
                // It may have been written all the same.
                tokio::select! {
                    () = self.0.landed.notified() => return,
                    () = sleep(AGAIN) => continue,
                }
            }
            tokio::select! {
                () = self.0.landed.notified() => return,
                () = sleep_until(deadline) => {}
                // Without a reader there are no rounds either, and the barrier is written again at its time.
                Ok(()) = rounds.changed() => {}
            }
        }
    }

    fn flying(&self) -> MutexGuard<'_, Option<String>> {
        // Replaced as a whole.
        self.0.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn publish(publisher: &Publisher, names: &Names, id: &str, deadline: Instant) -> Result<(), String> {
    publisher.link().wait_up(deadline).await.map_err(|down| down.to_string())?;
    let target = Target { exchange: names.record(), key: String::new(), mandatory: true };
    let message = Message {
        message_id: Some(id.to_owned()),
        kind: Some(BARRIER.to_owned()),
        content_type: Some("application/json".to_owned()),
        body: bytes::Bytes::from_static(b"{}"),
        ..Message::default()
    };
    publisher.publish(target, message, deadline).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn only_the_barrier_in_flight_counts_and_only_once() {
        let barriers = Barriers::default();
        *barriers.flying() = Some("a".to_owned());
        barriers.land("b");
        assert!(!*barriers.caught_up().borrow() && barriers.0.landed.notified().now_or_never().is_none());
        barriers.land("a");
        barriers.land("a");
        assert!(*barriers.caught_up().borrow());
        assert!(barriers.0.landed.notified().now_or_never().is_some());
        assert!(
            barriers.0.landed.notified().now_or_never().is_none(),
            "a copy of it says nothing about the next"
        );
        let asked = barriers.asked();
        barriers.lose();
        assert!(!*barriers.caught_up().borrow() && barriers.asked() > asked);
    }

    #[test]
    fn a_barrier_is_awaited_from_the_question_to_the_answer() {
        let barriers = Barriers::default();
        assert!(barriers.awaited().now_or_never().is_none());
        let number = barriers.ask();
        assert!(barriers.awaited().now_or_never().is_some());
        barriers.0.answered.send_replace(number);
        assert!(barriers.awaited().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_later_waits_for_the_next_one() {
        let barriers = Barriers::default();
        let deadline = Instant::now() + PATIENCE;
        let first = barriers.catch_up(deadline);
        let late = barriers.catch_up(deadline);
        tokio::pin!(first, late);
        assert!(first.as_mut().now_or_never().is_none());
        // A barrier is written now; then somebody else asks; then it comes back.
        let number = barriers.asked();
        assert!(late.as_mut().now_or_never().is_none());
        barriers.0.answered.send_replace(number);
        assert!(first.await);
        assert!(!late.await, "at the deadline");
    }
}
