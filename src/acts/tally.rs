//! How far an act is: counted, told as its progress, and taken up again by the next attempt.

use super::words::Done;

/// Most failures kept in words.
const FAILURES_MAX: usize = 20;

/// The counts of an act.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) done: u64,
    pub(super) skipped: u64,
    pub(super) failed: u64,
    failures: Vec<String>,
}

impl Tally {
    pub(super) fn matched(&self) -> u64 {
        self.done + self.skipped + self.failed
    }

    pub(super) fn fail(&mut self, failure: String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }

    /// 0 to 99: only the end is 100.
    pub(super) fn percent(&self, expected: Option<u64>) -> u64 {
        let expected = expected.unwrap_or(0).max(1);
        (self.matched().saturating_mul(100) / expected).min(99)
    }

    /// In words, which [`Tally::read`] understands.
    pub(super) fn say(&self) -> String {
        let Self { done, skipped, failed, .. } = self;
        format!("{done} done, {skipped} skipped, {failed} failed")
    }

    /// The counts that a progress message tells. Acts go on where their last attempt was; failures are met again.
    pub(super) fn read(message: &str) -> Option<Self> {
        let mut parts = message.split(", ");
        let mut count = |word: &str| parts.next()?.strip_suffix(word)?.trim_end().parse().ok();
        let (done, skipped) = (count("done")?, count("skipped")?);
        count("failed")?;
        Some(Self { done, skipped, ..Self::default() })
    }

    pub(super) fn end(self, missing: u64) -> Done {
        Done {
            matched: self.matched(),
            done: self.done,
            skipped: self.skipped,
            failed: self.failed,
            missing,
            failures: self.failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        let mut tally = Tally { done: 120, skipped: 3, ..Tally::default() };
        tally.fail("x".into());
        assert_eq!(tally.say(), "120 done, 3 skipped, 1 failed");
        let read = Tally::read(&tally.say()).unwrap();
        assert_eq!((read.done, read.skipped, read.failed), (120, 3, 0), "what failed is met again");
        for other in ["", "half way", "1 done", "x done, 2 skipped, 3 failed", "-1 done, 2 skipped, 3 failed"]
        {
            assert_eq!(Tally::read(other), None, "{other}");
        }
    }

    #[test]
    fn only_the_end_is_all() {
        let tally = Tally { done: 50, ..Tally::default() };
        let percents = [None, Some(0), Some(50), Some(100), Some(u64::MAX)].map(|of| tally.percent(of));
        assert_eq!(percents, [99, 99, 99, 50, 0]);
        assert_eq!(Tally { done: u64::MAX, ..Tally::default() }.percent(Some(3)), 99);
    }

    #[test]
    fn failures_are_bounded() {
        let mut tally = Tally::default();
        (0..100).for_each(|number| tally.fail(number.to_string()));
        let end = tally.end(2);
        assert_eq!((end.failed, end.failures.len(), end.matched, end.missing), (100, 20, 100, 2));
    }
}
