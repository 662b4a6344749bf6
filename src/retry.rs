//! When a failed attempt is tried again: the retry policy and its arithmetic. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most attempts that a policy may allow.
pub const MAX_ATTEMPTS: u32 = 1000;

/// How often, and after what pauses, a failing job is tried.
///
/// The pause after failed attempt *n* is `initial × factor^(n-1)`, at most `max`, then moved by a share of up to
/// ±`jitter`. The defaults make 20 attempts over about 54 hours: a Friday night's outage does not kill the
/// weekend's jobs.
///
/// ```
/// use hopline::RetryPolicy;
///
/// let policy = RetryPolicy { jitter: 0.0, ..RetryPolicy::default() };
/// let seconds = |n| policy.delay(n, 0).as_secs();
/// assert_eq!([seconds(1), seconds(2), seconds(3), seconds(10), seconds(17)], [1, 2, 4, 512, 43_200]);
/// let hours = (1..20).map(seconds).sum::<u64>() / 3600;
/// assert_eq!(hours, 54);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; 1 to 1000. Default 20.
    pub max_attempts: u32,
    /// The pause after the first failure. Default 1 s.
    pub initial: Duration,
    /// What each further pause is multiplied by, at least 1. Default 2.
    pub factor: f64,
    /// The longest pause before jitter. Default 12 h.
    pub max: Duration,
    /// The share by which a pause is lengthened or shortened at random, 0 to 1. Default 0.2.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 20,
            initial: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(12 * 3600),
            jitter: 0.2,
        }
    }
}

impl RetryPolicy {
    /// The pause after failed attempt `attempt` (from 1). `seed` chooses the jitter: the same seed, the same pause.
    #[must_use]
    pub fn delay(&self, attempt: u32, seed: u64) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        // An overflow becomes infinity, which `min` brings back to the cap.
        let pause = (self.initial.as_secs_f64() * self.factor.powi(exponent)).min(self.max.as_secs_f64());
        // 53 bits: exact in a double. The seed's low bits are mixed least, so the high ones are used.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let share = (mix(seed) >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::try_from_secs_f64(pause * (1.0 + self.jitter * (2.0 * share - 1.0))).unwrap_or(self.max)
    }

    /// What is wrong with the policy, if anything.
    ///
    /// # Errors
    /// A sentence naming the field and its bounds.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=MAX_ATTEMPTS).contains(&self.max_attempts) {
            return Err(format!("max_attempts must be 1 to {MAX_ATTEMPTS}"));
        }
        if !(self.factor.is_finite() && (1.0..=100.0).contains(&self.factor)) {
            return Err("factor must be 1 to 100".into());
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err("jitter must be 0 to 1".into());
        }
        Ok(())
    }
}

/// The finaliser of SplitMix64: neighbouring seeds give unrelated numbers.
fn mix(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_policies_are_named() {
        let good = RetryPolicy::default();
        assert_eq!(good.check(), Ok(()));
        for (policy, word) in [
            (RetryPolicy { max_attempts: 0, ..good }, "max_attempts"),
            (RetryPolicy { max_attempts: 1001, ..good }, "max_attempts"),
            (RetryPolicy { factor: 0.5, ..good }, "factor"),
            (RetryPolicy { factor: f64::NAN, ..good }, "factor"),
            (RetryPolicy { jitter: 1.1, ..good }, "jitter"),
            (RetryPolicy { jitter: f64::NAN, ..good }, "jitter"),
        ] {
            assert!(policy.check().unwrap_err().starts_with(word), "{policy:?}");
        }
    }

    #[test]
    fn jitter_spreads_over_its_whole_range() {
        let policy = RetryPolicy { initial: Duration::from_secs(100), ..RetryPolicy::default() };
        let pauses: Vec<f64> = (0..1000).map(|seed| policy.delay(1, seed).as_secs_f64()).collect();
        let (low, high) = pauses.iter().fold((f64::MAX, 0.0_f64), |(l, h), p| (l.min(*p), h.max(*p)));
        assert!((80.0..82.0).contains(&low) && (118.0..=120.0).contains(&high), "{low} {high}");
    }

    proptest! {
        #[test]
        fn a_pause_stays_within_the_policy(
            attempt in 1..=u32::MAX, seed: u64, initial in 0_u64..1_000_000, factor in 1.0..100.0_f64,
            max in 0_u64..100_000_000, jitter in 0.0..=1.0_f64,
        ) {
            let policy = RetryPolicy {
                max_attempts: 20, initial: Duration::from_millis(initial), factor, max: Duration::from_millis(max), jitter,
            };
            let pause = policy.delay(attempt, seed);
            let bound = policy.max.as_secs_f64() * (1.0 + jitter) + 1e-6;
            prop_assert!(pause.as_secs_f64() <= bound);
            prop_assert_eq!(pause, policy.delay(attempt, seed));
        }
    }
}
