//! Whoever looks at a job or a list ends the projector's wait for company: what has come from the log is applied first.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

/// Longest time that somebody waits before he looks.
const LONGEST: Duration = Duration::from_millis(20);

/// Counts who looks, and who has been answered.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The projector waits for company.
    lingers: AtomicBool,
    asked: watch::Sender<u64>,
    answered: watch::Sender<u64>,
}

/// The projector waits for company until this is dropped.
pub(super) struct Lingering<'a>(&'a AtomicBool);

impl Drop for Lingering<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Looks {
    /// Has what came from the log applied, if the projector waits for company; whether it did. One that is at work is not
    /// waited for.
    pub(super) async fn look(&self) -> bool {
        if !self.lingers.load(Ordering::Acquire) {
            return false;
        }
        let mut answered = self.answered.subscribe();
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        // What is there by then is looked at.
        let _ = timeout(LONGEST, answered.wait_for(|answered| *answered >= number)).await;
        true
    }

    /// Says that the projector waits for company.
    pub(super) fn linger(&self) -> Lingering<'_> {
        self.lingers.store(true, Ordering::Release);
        Lingering(&self.lingers)
    }

    /// Completes when somebody looks.
    pub(super) async fn awaited(&self) {
        let mut asked = self.asked.subscribe();
        // The sender lives in `self`.
        let _ = asked.wait_for(|asked| *asked > *self.answered.borrow()).await;
    }

    /// How many have looked so far.
    pub(super) fn asked(&self) -> u64 {
        *self.asked.borrow()
    }

    /// What was there for so many is applied.
    pub(super) fn answer(&self, asked: u64) {
        if asked > *self.answered.borrow() {
            self.answered.send_replace(asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_ends_the_wait_and_is_answered_by_what_was_asked_before() {
        let (looks, start) = (Looks::default(), Instant::now());
        looks.look().await;
        assert_eq!(looks.asked(), 0, "nobody lingers, so nobody is asked");
        let lingering = looks.linger();
        let answering = async {
            looks.awaited().await;
            drop(lingering);
            looks.answer(looks.asked());
        };
        tokio::join!(looks.look(), answering);
        assert_eq!(start.elapsed(), Duration::ZERO);
        let _lingering = looks.linger();
        looks.look().await;
        assert_eq!(start.elapsed(), LONGEST, "nobody answers, and that is all that is waited for");
    }
}
