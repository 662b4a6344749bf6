//! What follows from an outcome: a pure function, tested as a table.

use std::time::Duration;

use bytes::Bytes;

use super::executor::Outcome;
use crate::{
    job::{Verdict, dead::Reason, reply::Failure},
    retry::RetryPolicy,
};

/// Longest text of a failure that travels in a reply, in bytes.
const TEXT_MAX: usize = crate::job::dead::ERROR_MAX;

/// What is to be done with a delivery; to *settle* is to carry it out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Disposition {
    /// The run ended well: event, reply, ack.
    Succeed {
        /// The output.
        output: Bytes,
        /// It was over the limit and is left out.
        omitted: bool,
    },
    /// No attempt may start any more: event, reply, ack.
    Expire,
    /// Someone had the job cancelled: event, reply, ack.
    Cancel {
        /// Who, if known.
        by: Option<String>,
        /// Why, if said.
        reason: Option<String>,
    },
    /// The attempt failed: ask for the next one after a pause. Copy, event, ack.
    Retry {
        /// The pause.
        delay: Duration,
        /// Why.
        error: Failure,
    },
    /// Nothing failed: ask for the same attempt after a pause. Copy, event, ack.
    Snooze {
        /// The pause.
        delay: Duration,
    },
    /// The run failed for good: event, dead-letter queue, reply, ack.
    Die {
        /// Why.
        reason: Reason,
        /// The last error.
        error: Failure,
    },
    /// Nothing is known: give the delivery back to the queue.
    HandBack,
}

/// Decides. `attempt` is the one that ended so, from 1; `seed` chooses the jitter.
#[must_use]
pub(crate) fn decide(outcome: Outcome, attempt: u32, policy: &RetryPolicy, seed: u64) -> Disposition {
    let again = |pause: Option<Duration>, error: Failure| {
        if attempt >= policy.max_attempts {
            return Disposition::Die { reason: Reason::Exhausted, error };
        }
        Disposition::Retry { delay: pause.unwrap_or_else(|| policy.delay(attempt, seed)), error }
    };
    match outcome {
        Outcome::Success { output, omitted } => Disposition::Succeed { output, omitted },
        Outcome::Expired => Disposition::Expire,
        Outcome::Cancelled { by, reason } => Disposition::Cancel { by, reason },
        Outcome::HandedBack => Disposition::HandBack,
        Outcome::TimedOut(after) => {
            again(None, failure("timeout", &format!("ran longer than its timeout of {after:?}")))
        }
        Outcome::Panicked(text) => again(None, failure("panic", &text)),
        Outcome::Crashed(text) => {
            Disposition::Die { reason: Reason::Poison, error: failure("crashed", &text) }
        }
        Outcome::Failed(error) => match error.verdict() {
            Verdict::Retry => again(None, failure(error.code(), error.message())),
            Verdict::RetryIn(pause) => again(Some(pause), failure(error.code(), error.message())),
            Verdict::Snooze(delay) => Disposition::Snooze { delay },
            Verdict::Fatal => {
                Disposition::Die { reason: Reason::Fatal, error: failure(error.code(), error.message()) }
            }
        },
    }
}

/// A failure whose text is bounded.
pub(crate) fn failure(code: &str, message: &str) -> Failure {
    Failure { code: code.to_owned(), message: crate::job::dead::clip(message, TEXT_MAX).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobError;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 3,
        initial: Duration::from_secs(10),
        factor: 2.0,
        max: Duration::from_secs(100),
        jitter: 0.0,
    };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_table() {
        use Disposition::{Cancel, Die, Expire, HandBack, Retry, Snooze, Succeed};
        let output = Bytes::from_static(b"1");
        let failed = |error: &JobError| Outcome::Failed(error.clone());
        let plain = JobError::retry("c", "m");
        let named = Failure { code: "c".into(), message: "m".into() };
        let cases = [
            (
                Outcome::Success { output: output.clone(), omitted: false },
                1,
                Succeed { output, omitted: false },
            ),
            (Outcome::Expired, 1, Expire),
            (Outcome::HandedBack, 3, HandBack),
            (
                Outcome::Cancelled { by: Some("ops".into()), reason: None },
                3,
                Cancel { by: Some("ops".into()), reason: None },
            ),
            (failed(&plain), 1, Retry { delay: secs(10), error: named.clone() }),
            (failed(&plain), 2, Retry { delay: secs(20), error: named.clone() }),
            (failed(&plain), 3, Die { reason: Reason::Exhausted, error: named.clone() }),
            (failed(&plain), 4, Die { reason: Reason::Exhausted, error: named.clone() }),
            (
                failed(&JobError::retry_in(secs(7), "c", "m")),
                1,
                Retry { delay: secs(7), error: named.clone() },
            ),
            (
                failed(&JobError::retry_in(secs(7), "c", "m")),
                3,
                Die { reason: Reason::Exhausted, error: named.clone() },
            ),
            (failed(&JobError::snooze(secs(5))), 3, Snooze { delay: secs(5) }),
            (failed(&JobError::fatal("c", "m")), 1, Die { reason: Reason::Fatal, error: named }),
            (
                Outcome::TimedOut(secs(60)),
                1,
                Retry { delay: secs(10), error: failure("timeout", "ran longer than its timeout of 60s") },
            ),
            (Outcome::Panicked("boom".into()), 2, Retry { delay: secs(20), error: failure("panic", "boom") }),
            (
                Outcome::Panicked("boom".into()),
                3,
                Die { reason: Reason::Exhausted, error: failure("panic", "boom") },
            ),
            (
                Outcome::Crashed("signal 6".into()),
                1,
                Die { reason: Reason::Poison, error: failure("crashed", "signal 6") },
            ),
        ];
        for (outcome, attempt, expected) in cases {
            let what = format!("{outcome:?} at attempt {attempt}");
            assert_eq!(decide(outcome, attempt, &POLICY, 0), expected, "{what}");
        }
    }
}
