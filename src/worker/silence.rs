//! For how long nobody has answered, of those who are asked which jobs have ended.
//!
//! Time in which nobody can be asked does not count: without a connection, or during an alarm of the broker.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::amqp::connection::Link;

/// How often it is looked whether somebody can be asked, while an answer is awaited.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// Measures the time in which somebody can be asked.
#[derive(Debug, Default)]
struct Clock {
    time: Duration,
    /// When it was looked at last, if somebody could be asked then.
    asking: Option<Instant>,
}

impl Clock {
    /// Takes in whether somebody can be asked now. Time counts up to the next look at most: who does not look cannot
    /// know what was in between.
    fn look(&mut self, can_ask: bool) {
        let now = Instant::now();
        if let Some(before) = self.asking.replace(now) {
            self.time += (now - before).min(LOOK * 2);
        }
        self.asking = self.asking.filter(|_| can_ask);
    }
}

/// Since when nobody has answered.
#[derive(Debug, Default)]
pub(super) struct Silence {
    clock: Clock,
    /// On which connection, and since when: another one is a new beginning.
    since: Option<(u64, Duration)>,
}

impl Silence {
    pub(super) fn begin(&mut self, epoch: u64) {
        if self.since.is_none_or(|(of, _)| of != epoch) {
            self.since = Some((epoch, self.clock.time));
        }
    }

    /// Whether somebody was missed for as long as `patience`.
    pub(super) fn end(&mut self, patience: Duration) -> bool {
        self.since.take().is_some_and(|(_, since)| self.clock.time.saturating_sub(since) >= patience)
    }

    /// The time in which somebody could be asked.
    pub(super) fn time(&self) -> Duration {
        self.clock.time
    }

    /// Nobody waits for an answer.
    pub(super) fn forget(&mut self) {
        self.since = None;
    }

    pub(super) fn lasts(&self, epoch: u64, patience: Duration) -> bool {
        self.since.is_some_and(|(of, since)| of == epoch && self.clock.time.saturating_sub(since) >= patience)
    }
}

/// The silence, as the task and those who ask share it.
#[derive(Clone, Default)]
pub(super) struct SharedSilence(Arc<Mutex<Silence>>);

impl SharedSilence {
    /// The silence as it is now.
    pub(super) fn now(&self, link: &Link) -> MutexGuard<'_, Silence> {
        // It is whole after each of its functions.
        let mut silence = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silence.clock.look(link.is_ready());
        silence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many seconds in which it is looked at, and somebody can be asked or not.
    async fn pass(silence: &mut Silence, seconds: u64, can_ask: bool) {
        silence.clock.look(can_ask);
        for _ in 0..seconds * 2 {
            tokio::time::sleep(LOOK).await;
            silence.clock.look(can_ask);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_on_one_connection_only() {
        let (mut silence, patience) = (Silence::default(), Duration::from_secs(60));
        silence.begin(1);
        pass(&mut silence, 40, true).await;
        silence.begin(1);
        pass(&mut silence, 19, true).await;
        assert!(!silence.lasts(1, patience));
        pass(&mut silence, 1, true).await;
        assert!(silence.lasts(1, patience) && !silence.lasts(2, patience));
        silence.begin(2);
        pass(&mut silence, 59, true).await;
        assert!(!silence.lasts(2, patience));
        assert!(!silence.end(patience), "nobody was missed for long");
        pass(&mut silence, 100, true).await;
        assert!(!silence.lasts(2, patience));
        silence.begin(2);
        pass(&mut silence, 60, true).await;
        assert!(silence.end(patience));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_can_be_asked_is_no_silence() {
        let (mut silence, patience) = (Silence::default(), Duration::from_secs(60));
        silence.begin(1);
        pass(&mut silence, 30, true).await;
        pass(&mut silence, 3600, false).await;
        assert!(!silence.lasts(1, patience));
        pass(&mut silence, 29, true).await;
        assert!(!silence.lasts(1, patience));
        // Nobody looked for a while: what was in between is not known.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        silence.clock.look(true);
        assert!(silence.clock.time <= Duration::from_secs(60 + 1));
        pass(&mut silence, 1, true).await;
        assert!(silence.lasts(1, patience));
    }
}
