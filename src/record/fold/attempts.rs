//! Attempts, from the events that tell of their starts and ends.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::raise;
use crate::{
    event::{AttemptOutcome, Event, EventError, EventType, Rank},
    record::model::{ATTEMPTS_MAX, AttemptRecord},
};

/// The attempts that events tell of, in order, the newest [`ATTEMPTS_MAX`]. One per run, step and worker: a step that
/// two workers started shows both. One that was given to another worker has no end.
pub(crate) fn attempts<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<AttemptRecord> {
    type End = (Rank, Option<AttemptOutcome>, Timestamp, Option<EventError>);
    #[derive(Default)]
    struct Attempt {
        attempt: u32,
        started_at: Option<Timestamp>,
        end: Option<End>,
    }
    let mut attempts: BTreeMap<(u32, u32, Option<&str>), Attempt> = BTreeMap::new();
    for event in events {
        let data = &event.data;
        let started = event.event_type == EventType::Started;
        let ended = event.event_type.moves() && !started && data.outcome.is_some();
        if !started && !ended {
            continue;
        }
        let attempt = attempts.entry((data.run, data.step, data.worker.as_deref())).or_default();
        raise(&mut attempt.attempt, data.attempt);
        raise(&mut attempt.started_at, data.started_at.or(started.then_some(event.time)));
        if ended {
            let at = data.finished_at.unwrap_or(event.time);
            raise(&mut attempt.end, Some((event.rank(), data.outcome, at, data.error.clone())));
        }
    }
    let skipped = attempts.len().saturating_sub(ATTEMPTS_MAX);
    let mut attempts: Vec<_> = attempts.into_iter().collect();
    attempts.sort_by_key(|((run, step, _), attempt)| (*run, *step, attempt.started_at));
    let record = |((run, _, worker), attempt): ((u32, u32, Option<&str>), Attempt)| {
        let (outcome, finished_at, error) = match attempt.end {
            Some((_, outcome, at, error)) => (outcome, Some(at), error),
            None => (None, None, None),
        };
        AttemptRecord {
            run,
            attempt: attempt.attempt,
            worker: worker.map(str::to_owned),
            started_at: attempt.started_at,
            finished_at,
            outcome,
            error,
        }
    };
    attempts.into_iter().skip(skipped).map(record).collect()
}
