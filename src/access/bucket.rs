//! How many requests a key may make: as many a second as its rate on average, and as many at once. Pure.
//!
//! What costs more than there is left is let in and makes debts, for which the next one waits: so a long batch passes,
//! and counts.

use std::time::Duration;

use tokio::time::Instant;

/// What a key has left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: f64, now: Instant) -> Self {
        Self { left: size(rate), at: now }
    }

    /// Takes `cost` out of it.
    ///
    /// # Errors
    /// When there is something in it again.
    pub(super) fn take(&mut self, rate: f64, cost: f64, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * rate).min(size(rate));
        if self.left < 1.0 {
            let wait = Duration::try_from_secs_f64((1.0 - self.left) / rate);
            return Err(wait.unwrap_or(Duration::MAX));
        }
        self.left -= cost;
        Ok(())
    }

    /// Takes more out of it for what was let in already.
    pub(super) fn owe(&mut self, cost: f64) {
        self.left -= cost;
    }
}

fn size(rate: f64) -> f64 {
    rate.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_pass_as_the_rate_says() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::new(2.0, start);
        assert_eq!(bucket.take(2.0, 1.0, at(0)), Ok(()));
        assert_eq!(bucket.take(2.0, 1.0, at(0)), Ok(()));
        assert_eq!(bucket.take(2.0, 1.0, at(0)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(2.0, 1.0, at(250)), Err(Duration::from_millis(250)));
        assert_eq!(bucket.take(2.0, 1.0, at(500)), Ok(()));
        // Idle for an hour: no more than a second's worth.
        let passed = (0..10).filter(|_| bucket.take(2.0, 1.0, at(3_600_000)).is_ok()).count();
        assert_eq!(passed, 2);
        // A clock that stands still or goes back gives nothing.
        assert!(bucket.take(2.0, 1.0, at(0)).is_err());
    }

    #[test]
    fn a_slow_rate_lets_one_pass_at_a_time_and_debts_are_paid() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut bucket = Bucket::new(0.1, start);
        assert_eq!(bucket.take(0.1, 1.0, at(0)), Ok(()));
        assert_eq!(bucket.take(0.1, 1.0, at(0)), Err(Duration::from_secs(10)));
        let mut bucket = Bucket::new(10.0, start);
        assert_eq!(bucket.take(10.0, 1.0, at(0)), Ok(()));
        bucket.owe(999.0);
        assert_eq!(bucket.take(10.0, 1.0, at(50)), Err(Duration::from_millis(49_100)));
        assert_eq!(bucket.take(10.0, 1.0, at(100)), Ok(()));
    }
}
