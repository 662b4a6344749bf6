//! Pauses between attempts to reach the broker. The only file that names the crate `backoff`, which is
//! unmaintained (see `deny.toml`): replacing it means rewriting this file.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// Longest pause. Low, so that a cluster comes back within seconds of its broker.
const CAP: Duration = Duration::from_secs(2);
/// The bound of the first pause.
const FIRST: Duration = Duration::from_millis(100);

/// Exponential pauses with full jitter (each is drawn evenly from zero to its bound, which doubles up to 2 s),
/// without end: a thousand processes that lost the same broker come back spread out.
#[derive(Debug)]
pub(crate) struct Pauses(ExponentialBackoff);

impl Pauses {
    pub(crate) fn new() -> Self {
        // The crate draws from interval ± factor × interval: half the bound and a factor of 1 is full jitter.
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(FIRST / 2)
                .with_max_interval(CAP / 2)
                .with_multiplier(2.0)
                .with_randomization_factor(1.0)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(CAP)
    }

    /// Starts over: the attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_never_end() {
        let mut pauses = Pauses::new();
        let drawn: Vec<Duration> = (0..2000).map(|_| pauses.next()).collect();
        assert!(drawn[0] <= FIRST);
        assert!(drawn.iter().all(|pause| *pause <= CAP));
        assert!(
            drawn.iter().any(|pause| *pause > CAP * 9 / 10)
                && drawn[100..].iter().any(|pause| *pause < CAP / 10)
        );
        pauses.reset();
        assert!(pauses.next() <= FIRST);
    }
}
