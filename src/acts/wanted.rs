//! Which dead messages an act is about, and whether the record still stands behind them. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use thiserror::Error;

use super::letter::Facts;
use crate::{
    job::{JobId, Kind},
    record::model::{Filter, JobStatus, Summary},
};

/// A filter that says nothing an act can go by.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum WantedError {
    /// A time that is none.
    #[error("filter.{0} is no time: give RFC 3339 as in 2030-01-31T12:00:00Z")]
    Time(&'static str),
    /// Jobs that have no dead message.
    #[error("filter.status can only be dead here")]
    Status,
}

/// What a message must be. The queue is not part of it: messages are looked at queue by queue.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Wanted {
    /// One of these jobs.
    pub(super) ids: Option<BTreeSet<JobId>>,
    kind: Option<Kind>,
    tag: Option<String>,
    /// In lower case.
    text: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    fingerprint: Option<String>,
    /// Not those whose run this act itself has started.
    not_of: Option<String>,
}

impl Wanted {
    /// What `filter` and `ids` ask for together.
    pub(super) fn new(
        filter: &Filter,
        ids: Option<&[JobId]>,
        act: Option<JobId>,
    ) -> Result<Self, WantedError> {
        if filter.status.iter().any(|status| *status != JobStatus::Dead) {
            return Err(WantedError::Status);
        }
        let time = |text: &Option<String>, name| {
            let read = |text: &String| text.parse().map_err(|_| WantedError::Time(name));
            text.as_ref().map(read).transpose()
        };
        Ok(Self {
            ids: ids.map(|ids| ids.iter().copied().collect()),
            kind: filter.kind.clone(),
            tag: filter.tag.clone(),
            text: filter.q.as_deref().map(str::to_lowercase),
            from: time(&filter.from, "from")?,
            to: time(&filter.to, "to")?,
            fingerprint: filter.fingerprint.clone(),
            not_of: act.map(|act| act.to_string()),
        })
    }

    /// Whether a message is among what is wanted.
    pub(super) fn has(&self, facts: &Facts) -> bool {
        let Self { ids, kind, tag, text, from, to, fingerprint, not_of } = self;
        let holds = |text: &str| {
            facts.code.to_lowercase().contains(text) || facts.error.to_lowercase().contains(text)
        };
        let since = |from: Timestamp| facts.created_at.is_some_and(|at| at >= from);
        let before = |to: Timestamp| facts.created_at.is_some_and(|at| at < to);
        ids.as_ref().is_none_or(|ids| ids.contains(&facts.id))
            && kind.as_ref().is_none_or(|kind| facts.kind.as_ref() == Some(kind))
            && tag.as_ref().is_none_or(|tag| facts.tags.contains(tag))
            && text.as_deref().is_none_or(holds)
            && from.is_none_or(since)
            && to.is_none_or(before)
            && fingerprint.as_ref().is_none_or(|fingerprint| facts.fingerprint == *fingerprint)
            && (not_of.is_none() || facts.replayed_by != *not_of)
    }

    /// Whether it names jobs, or a group: then it also means messages that cannot be read.
    pub(super) fn is_precise(&self) -> bool {
        self.ids.is_some() || self.fingerprint.is_some()
    }
}

/// What the record says of a dead message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its job waits for a replay.
    Current,
    /// Its job is in a later run, or this run ended otherwise, or the message was purged: it is good for nothing.
    Stale,
}

/// Compares a dead message of `run` with what is known of its job.
///
/// A record that is behind the message (events were lost with the broker's power, or the job is unknown) proves
/// nothing: the message counts.
pub(super) fn standing(run: u32, known: Option<&Summary>) -> Standing {
    let Some(job) = known else { return Standing::Current };
    let ended_otherwise = job.status.is_final() && job.status != JobStatus::Dead;
    let stale = job.run > run || (job.run == run && (ended_otherwise || job.purged));
    if stale { Standing::Stale } else { Standing::Current }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::QueueName;

    fn facts() -> Facts {
        Facts {
            id: JobId::new(),
            queue: QueueName::parse("q").unwrap(),
            kind: Kind::parse("a.b").ok(),
            run: 2,
            attempt: 1,
            step: 0,
            tags: vec!["x".into(), "y".into()],
            created_at: "2030-01-01T00:00:00Z".parse().ok(),
            code: "HTTP_500".into(),
            error: "no Answer from 7".into(),
            fingerprint: "f".into(),
            replayed_by: None,
        }
    }

    #[test]
    fn every_part_of_a_filter_counts() {
        let facts = facts();
        let text = |text: &str| Some(text.to_owned());
        let none = Filter::default;
        let table = [
            (none(), true),
            (Filter { status: vec![JobStatus::Dead], ..none() }, true),
            (Filter { kind: Kind::parse("a.b").ok(), ..none() }, true),
            (Filter { kind: Kind::parse("a.c").ok(), ..none() }, false),
            (Filter { tag: text("y"), ..none() }, true),
            (Filter { tag: text("z"), ..none() }, false),
            (Filter { q: text("ANSWER"), ..none() }, true),
            (Filter { q: text("http_5"), ..none() }, true),
            (Filter { q: text("timeout"), ..none() }, false),
            (Filter { from: text("2030-01-01T00:00:00Z"), ..none() }, true),
            (Filter { from: text("2030-01-01T00:00:00.001Z"), ..none() }, false),
            (Filter { to: text("2030-01-01T00:00:00Z"), ..none() }, false),
            (Filter { to: text("2030-01-01T02:00:01+02:00"), ..none() }, true),
            (Filter { fingerprint: text("f"), ..none() }, true),
            (Filter { fingerprint: text("g"), tag: text("x"), ..none() }, false),
        ];
        for (filter, expected) in table {
            assert_eq!(Wanted::new(&filter, None, None).unwrap().has(&facts), expected, "{filter:?}");
        }
        let only = |id| Wanted::new(&none(), Some(&[id]), None).unwrap().has(&facts);
        assert!(only(facts.id) && !only(JobId::new()));
    }

    #[test]
    fn an_act_does_not_meet_its_own_jobs_again() {
        let act = JobId::new();
        let wanted = Wanted::new(&Filter::default(), None, Some(act)).unwrap();
        let of = |by: JobId| wanted.has(&Facts { replayed_by: Some(by.to_string()), ..facts() });
        assert!(!of(act) && of(JobId::new()) && wanted.has(&facts()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let filter = Filter { status: vec![JobStatus::Dead, JobStatus::Queued], ..Filter::default() };
        assert_eq!(Wanted::new(&filter, None, None), Err(WantedError::Status));
        let filter = Filter { to: Some("tomorrow".into()), ..Filter::default() };
        assert_eq!(Wanted::new(&filter, None, None), Err(WantedError::Time("to")));
    }

    fn summary(run: u32, status: JobStatus, purged: bool) -> Summary {
        Summary { status, run, purged, ..Summary::sample() }
    }

    #[test]
    fn a_message_that_the_record_has_left_behind_is_stale() {
        use JobStatus::{Cancelled, Dead, Expired, Queued, Running, Succeeded};
        use Standing::{Current, Stale};
        assert_eq!(standing(2, None), Current, "unknown: the message is all there is");
        for (run, status, purged, expected) in [
            (2, Dead, false, Current),
            (2, Dead, true, Stale),
            (2, Succeeded, false, Stale),
            (2, Cancelled, false, Stale),
            (2, Expired, false, Stale),
            (2, Running, false, Current),
            (3, Queued, false, Stale),
            (3, Dead, false, Stale),
            (1, Dead, true, Current),
            (1, Succeeded, false, Current),
        ] {
            assert_eq!(standing(2, Some(&summary(run, status, purged))), expected, "{run} {status} {purged}");
        }
    }
}
