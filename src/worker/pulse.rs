//! Whether this process stood still: stopped by a signal, starved, or asleep with its machine.
//!
//! The broker gives up a connection whose heartbeats stay away and hands its jobs to others, who may have ended them.
//! A process that wakes up does not know: what it was handed before lies in its memory and looks well.

use std::time::Duration;

/// How often it is felt, at least.
pub(super) const BEAT: Duration = Duration::from_millis(500);

/// When the process was known to run last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulse(Duration);

impl Pulse {
    /// By a clock that nobody sets, and that goes on while the machine sleeps.
    pub(super) fn now() -> Self {
        use rustix::time::{ClockId, clock_gettime};
        // Linux's monotonic clock stops in a sleep; those of other systems do not, or there is no better one.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: ClockId = ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const CLOCK: ClockId = ClockId::Monotonic;
        let now = clock_gettime(CLOCK);
        let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
        // Neither is negative.
        Self(Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default()))
    }

    /// It is felt at `now`: how long the process stood still, if for longer than `longest`.
    pub(super) fn beat(&mut self, now: Self, longest: Duration) -> Option<Duration> {
        let still = now.0.saturating_sub(self.0);
        // Two threads may come in the other order.
        self.0 = self.0.max(now.0);
        (still > longest).then_some(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stood_still_if_the_clock_says_so() {
        let seconds = |seconds| Pulse(Duration::from_secs(seconds));
        for (at, expected) in [(100, None), (110, None), (111, Some(11)), (3700, Some(3600)), (99, None)] {
            let mut pulse = seconds(100);
            let still = pulse.beat(seconds(at), Duration::from_secs(10));
            assert_eq!(still, expected.map(Duration::from_secs), "{at}");
            assert_eq!(pulse.beat(seconds(at), Duration::ZERO), None, "felt once");
        }
        let mut pulse = Pulse::now();
        assert_eq!(pulse.beat(Pulse::now(), Duration::from_secs(3600)), None, "the clock goes");
    }
}
