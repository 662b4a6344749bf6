//! Whether this process stood still: stopped by a signal, starved, or asleep with its machine.
//!
//! The broker gives up a connection whose heartbeats stay away and hands its jobs to others, who may have ended them.
//! A process that wakes up does not know: what it was handed before lies in its memory and looks well.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How often it is felt, at least.
pub(super) const BEAT: Duration = Duration::from_millis(500);

/// When the process was known to run last, by both clocks: the monotonic one stands still while the machine sleeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulse {
    steady: Instant,
    wall: SystemTime,
}

impl Pulse {
    pub(super) fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// How long nothing was felt before `now`.
    fn since(self, before: Self) -> Duration {
        // A clock that is set back says nothing.
        let wall = self.wall.duration_since(before.wall).unwrap_or_default();
        self.steady.saturating_duration_since(before.steady).max(wall)
    }

    /// It is felt at `now`: how long the process stood still, if for longer than `longest`.
    pub(super) fn beat(&mut self, now: Self, longest: Duration) -> Option<Duration> {
        let still = now.since(std::mem::replace(self, now));
        (still > longest).then_some(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stood_still_if_either_clock_says_so() {
        let begin = Pulse::now();
        let after = |steady: u64, wall: i64| {
            let moved = Duration::from_secs(wall.unsigned_abs());
            Pulse {
                steady: begin.steady + Duration::from_secs(steady),
                wall: if wall < 0 { begin.wall - moved } else { begin.wall + moved },
            }
        };
        for (steady, wall, expected) in [
            (0, 0, None),
            (10, 10, None),
            (11, 11, Some(11)),
            (11, 0, Some(11)),
            // Asleep with the machine, or the clock was set.
            (0, 3600, Some(3600)),
            (1, -3600, None),
            (12, -3600, Some(12)),
        ] {
            let mut pulse = begin;
            let still = pulse.beat(after(steady, wall), Duration::from_secs(10));
            assert_eq!(still, expected.map(Duration::from_secs), "{steady} {wall}");
            assert_eq!(pulse.beat(after(steady, wall), Duration::ZERO), None, "felt once");
        }
    }
}
