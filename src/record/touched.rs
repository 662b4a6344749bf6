//! The jobs that this process wrote something about a moment ago.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{event::Event, job::JobId};

/// Jobs that are remembered for certain; up to twice as many are.
const KEPT: usize = 50_000;
/// Submissions that are remembered for certain; up to twice as many are. What happens before the record has them is
/// much less.
const SUBMITTED_KEPT: usize = 4_000;
/// How long what a submission says may be all that is told of a job: longer only if the record is behind, which is to be
/// said then.
const SUBMITTED_FOR: Duration = Duration::from_secs(2);
/// Longest args of a submission that is remembered, in bytes.
const ARGS_MAX: usize = 1024;

/// Jobs, each with the number of the last barrier that was asked for before it was touched.
///
/// Two generations: when the young one is full it becomes the old one, and what was old is forgotten.
#[derive(Debug, Default)]
pub(super) struct Touched {
    young: HashMap<JobId, u64>,
    old: HashMap<JobId, u64>,
    /// Of those that were submitted here, and not touched since.
    submitted: HashMap<JobId, (Instant, Arc<Event>)>,
    submitted_before: HashMap<JobId, (Instant, Arc<Event>)>,
}

impl Touched {
    pub(super) fn add(&mut self, id: JobId, asked: u64) {
        self.submitted.remove(&id);
        self.submitted_before.remove(&id);
        self.remember(id, asked);
    }

    /// A job that was submitted by this event. If more was heard of it already, as the reply of a call before its confirm,
    /// that is not all that there is to tell.
    pub(super) fn add_submitted(&mut self, event: Event, asked: u64) {
        let id = event.job;
        let is_new = self.of(id).is_none();
        self.remember(id, asked);
        if !is_new {
            return;
        }
        if event.data.args.as_ref().is_some_and(|args| args.get().len() > ARGS_MAX) {
            return;
        }
        if self.submitted.len() >= SUBMITTED_KEPT {
            self.submitted_before = std::mem::take(&mut self.submitted);
        }
        self.submitted.insert(id, (Instant::now(), Arc::new(event)));
    }

    /// The event that a job was submitted by, if that was here and a moment ago, and nothing was written about it since.
    pub(super) fn submitted(&self, id: JobId) -> Option<Arc<Event>> {
        let (at, event) = self.submitted.get(&id).or_else(|| self.submitted_before.get(&id))?;
        (at.elapsed() < SUBMITTED_FOR).then(|| Arc::clone(event))
    }

    fn remember(&mut self, id: JobId, asked: u64) {
        if self.young.len() >= KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, asked);
    }

    pub(super) fn of(&self, id: JobId) -> Option<u64> {
        self.young.get(&id).or_else(|| self.old.get(&id)).copied()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use serde_json::value::RawValue;

    use super::*;
    use crate::{
        event::EventType,
        job::{Envelope, Kind, QueueName},
    };

    #[test]
    fn a_submission_is_told_until_something_else_is_written() {
        let (kind, queue) = (Kind::parse("demo.echo").unwrap(), QueueName::parse("demo").unwrap());
        let envelope = Envelope::new(kind, queue, Bytes::from_static(b"{}"));
        let mut event = Event::of(EventType::Submitted, &envelope, "web-1", Timestamp::UNIX_EPOCH);
        let (mut touched, id) = (Touched::default(), event.job);
        touched.add_submitted(event.clone(), 7);
        assert_eq!((touched.submitted(id).map(|event| event.job), touched.of(id)), (Some(id), Some(7)));
        for _ in 0..SUBMITTED_KEPT {
            touched.add_submitted(Event { job: JobId::new(), ..event.clone() }, 8);
        }
        assert!(touched.submitted(id).is_some(), "one generation older");
        touched.add(id, 9);
        assert!(touched.submitted(id).is_none(), "it is not all that was written");
        touched.add_submitted(event.clone(), 9);
        assert!(touched.submitted(id).is_none(), "and that was heard of before");
        event.job = JobId::new();
        let id = event.job;
        event.data.args = Some(RawValue::from_string(format!("\"{}\"", "x".repeat(ARGS_MAX))).unwrap());
        touched.add_submitted(event, 10);
        assert!(touched.submitted(id).is_none() && touched.of(id) == Some(10), "too long to be kept");
        assert!(touched.submitted.len() + touched.submitted_before.len() <= 2 * SUBMITTED_KEPT);
    }

    #[test]
    fn the_latest_are_remembered() {
        let (mut touched, first, again) = (Touched::default(), JobId::new(), JobId::new());
        touched.add(first, 1);
        touched.add(again, 1);
        for _ in 0..KEPT {
            touched.add(JobId::new(), 2);
        }
        touched.add(again, 3);
        assert_eq!((touched.of(first), touched.of(again)), (Some(1), Some(3)));
        for _ in 0..KEPT {
            touched.add(JobId::new(), 4);
        }
        assert_eq!((touched.of(first), touched.of(again)), (None, Some(3)));
        assert!(touched.young.len() + touched.old.len() <= 2 * KEPT);
    }
}
