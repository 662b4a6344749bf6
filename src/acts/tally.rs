//! How far an act is: counted, told as its progress, and taken up again by the next attempt.

use super::words::Done;
use crate::job::QueueName;

/// Most failures kept in words.
const FAILURES_MAX: usize = 20;

/// The counts of an act.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) done: u64,
    pub(super) skipped: u64,
    pub(super) failed: u64,
    failures: Vec<String>,
    /// Of an act over queues: where it is.
    pub(super) at: Option<At>,
}

/// Where an act is that goes over queues in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At {
    /// In this queue; those before it are done with.
    pub(super) queue: QueueName,
    /// Messages of it that are still to be met, those that are met again included. None: not known.
    pub(super) left: Option<u64>,
    /// How many of them have failed, and are counted as failed.
    pub(super) failed: u64,
}

impl At {
    fn say(&self) -> String {
        let left = self.left.map(|left| format!(", {left} left")).unwrap_or_default();
        let failed = Some(self.failed).filter(|failed| *failed > 0);
        let failed = failed.map(|failed| format!(", {failed} of them failed")).unwrap_or_default();
        format!("; in {}{left}{failed}", self.queue)
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(", ");
        let mut at = Self { queue: QueueName::parse(parts.next()?).ok()?, left: None, failed: 0 };
        for part in parts {
            let (number, what) = part.split_once(' ')?;
            match what {
                "left" => at.left = Some(number.parse().ok()?),
                "of them failed" => at.failed = number.parse().ok()?,
                _ => return None,
            }
        }
        Some(at)
    }
}

impl Tally {
    pub(super) fn matched(&self) -> u64 {
        self.done + self.skipped + self.failed
    }

    pub(super) fn fail(&mut self, failure: String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_MAX && !self.failures.contains(&failure) {
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
        let at = self.at.as_ref().map(At::say).unwrap_or_default();
        format!("{done} done, {skipped} skipped, {failed} failed{at}")
    }

    /// The counts that a progress message tells. Acts go on where their last attempt was; failures that are met again
    /// are not counted yet.
    pub(super) fn read(message: &str) -> Option<Self> {
        let (counts, at) = match message.split_once("; in ") {
            Some((counts, at)) => (counts, Some(At::read(at)?)),
            None => (message, None),
        };
        let mut parts = counts.split(", ");
        let mut count = |word: &str| parts.next()?.strip_suffix(word)?.trim_end().parse().ok();
        let (done, skipped, failed): (_, _, u64) = (count("done")?, count("skipped")?, count("failed")?);
        let failed = at.as_ref().map_or(0, |at| failed.saturating_sub(at.failed));
        Some(Self { done, skipped, failed, failures: Vec::new(), at: at.map(|at| At { failed: 0, ..at }) })
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
    fn where_an_act_is_is_understood() {
        let queue = QueueName::parse("media").unwrap();
        let mut tally = Tally { done: 7, failed: 5, ..Tally::default() };
        for (left, failed, said) in [
            (None, 0, "7 done, 0 skipped, 5 failed; in media"),
            (Some(12), 0, "7 done, 0 skipped, 5 failed; in media, 12 left"),
            (Some(12), 3, "7 done, 0 skipped, 5 failed; in media, 12 left, 3 of them failed"),
        ] {
            tally.at = Some(At { queue: queue.clone(), left, failed });
            assert_eq!(tally.say(), said);
            let read = Tally::read(said).unwrap();
            assert_eq!((read.done, read.failed), (7, 5 - failed), "the others are met again: {said}");
            assert_eq!(read.at, Some(At { queue: queue.clone(), left, failed: 0 }));
        }
        for other in ["; in No Queue", "; in media, 12 right", "; in media, x left", "; in media, 12"] {
            assert_eq!(Tally::read(&format!("1 done, 2 skipped, 3 failed{other}")), None, "{other}");
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
