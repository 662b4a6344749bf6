//! The fold: what a set of events says of a job.
//!
//! Pure. A [`Row`] is a join: each member keeps the greatest candidate of all events seen, in an order that depends on
//! what the events say and on nothing else. So events may come in any order, twice, and in any grouping, and twins (two
//! different ends of one run, written by two workers) have one winner. `fold_tests.rs` holds this.
//!
//! Which event wins:
//!
//! | members | from |
//! |---|---|
//! | status, attempt, times of the wait, end, reason, by, queue | the event of the highest [`Rank`] that moves the job |
//! | worker, start | the highest such event of that run that knows of a start |
//! | error | the highest such event of that run that has one |
//! | step | the greatest of that run |
//! | kind, tags, limits, trace, args, output | the highest run that says so; within it the greatest |
//! | cancel request | the highest run's; within it the earliest |
//! | purge | the highest run's |
//! | progress | the greatest of (run, step, n) |
//! | created, request | the earliest; the lowest run's |
//!
//! A member of an older run than the job's does not count, but for kind, tags, trace, args, created and request.
//!
//! Not here: args and outputs themselves ([`Slot`] only tells which ones win), and attempts, which are made from the
//! events when they are asked for ([`attempts`]).

mod attempts;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub(crate) use self::attempts::attempts;
use super::model::{CancelRequest, JobRecord, JobStatus, Position, Summary};
use crate::{
    event::{AttemptOutcome, Event, EventError, EventType, Progress, Rank},
    job::{JobId, Kind, QueueName, dead, wire::time_of_ms},
};

/// What is known of a job. Its JSON is what the store keeps, so its names are short and its shape is versioned there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    head: Option<Head>,
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    start: Option<Start>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    error: Option<(Place, EventError)>,
    /// (run, step): the greatest step of the greatest run.
    #[serde(rename = "n", default)]
    reached: (u32, u32),
    /// (run, step, attempt) of the greatest `started` event.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    begun: Option<(u32, u32, u32)>,
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    kind: Option<(u32, Kind)>,
    #[serde(rename = "t", default, skip_serializing_if = "no_tags")]
    tags: (u32, Vec<String>),
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<(u32, u32)>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<(u32, i64)>,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    created_at: Option<i64>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    request: Option<(u32, String)>,
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    trace_id: Option<(u32, String)>,
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    cancel: Option<Cancel>,
    #[serde(rename = "d", default, skip_serializing_if = "is_zero")]
    purged: u32,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    progress: Option<Told>,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    args: Option<Slot>,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    output: Option<Slot>,
    /// Times of the first and of the last event.
    #[serde(rename = "z")]
    span: Option<(i64, i64)>,
}

/// [`Rank`] as four numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Place(u32, u8, u32, u8);

impl From<Rank> for Place {
    fn from(rank: Rank) -> Self {
        Self(rank.run, rank.end, rank.step, rank.phase)
    }
}

impl Place {
    fn run(self) -> u32 {
        self.0
    }
}

/// What the highest event that moves the job says; all members take part in the order, so that twins have one winner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Head {
    #[serde(rename = "p")]
    place: Place,
    #[serde(rename = "e")]
    what: EventType,
    #[serde(rename = "a")]
    attempt: u32,
    #[serde(rename = "t")]
    time: i64,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    run_at: Option<i64>,
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<i64>,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    outcome: Option<AttemptOutcome>,
    #[serde(rename = "y", default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(rename = "q")]
    queue: QueueName,
}

/// The start of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Start {
    #[serde(rename = "p")]
    place: Place,
    #[serde(rename = "t")]
    at: i64,
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
}

/// A cancel request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Cancel {
    #[serde(rename = "u")]
    run: u32,
    #[serde(rename = "t")]
    at: i64,
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(rename = "y", default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// How far a handler said it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Told {
    #[serde(rename = "u")]
    run: u32,
    #[serde(rename = "s")]
    step: u32,
    n: u32,
    #[serde(rename = "p")]
    progress: Progress,
}

/// Which args, or which output, a job has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// The run that they belong to.
    #[serde(rename = "u")]
    pub(crate) run: u32,
    /// Whether they are kept, or known to exist and left out.
    #[serde(rename = "k")]
    pub(crate) kept: bool,
    /// Their length in bytes, and FNV-1a of them: tell one content from another.
    #[serde(rename = "l")]
    length: u64,
    #[serde(rename = "d")]
    digest: u64,
}

impl Slot {
    fn of(run: u32, value: Option<&RawValue>, omitted: bool) -> Option<Self> {
        let Some(value) = value else {
            return omitted.then_some(Self { run, kept: false, length: 0, digest: 0 });
        };
        let bytes = value.get().as_bytes();
        let digest = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Some(Self { run, kept: true, length: bytes.len() as u64, digest })
    }
}

/// What [`Row::merge`] found to be newer than what was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Merged {
    /// The event's args are the job's args now (or that they were left out).
    pub(crate) args: bool,
    /// The event's output is the job's output now (or that it was left out).
    pub(crate) output: bool,
}

/// What is known of a job of which this is all that is known.
pub(crate) fn submitted(event: &Event, now: Timestamp) -> Option<JobRecord> {
    let mut row = Row::default();
    row.merge(event);
    let Event { job, data, .. } = event;
    Some(JobRecord {
        summary: row.summary(*job, Position::default(), now)?,
        args: data.args.clone(),
        args_omitted: data.args_omitted,
        output: None,
        output_omitted: false,
        attempts: Vec::new(),
        progress: None,
        trace_id: data.trace_id.clone(),
    })
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn no_tags(tags: &(u32, Vec<String>)) -> bool {
    tags.0 == 0
}

/// Puts `candidate` into `slot` if it is greater; whether it was.
fn raise<T: Ord>(slot: &mut T, candidate: T) -> bool {
    let greater = candidate > *slot;
    if greater {
        *slot = candidate;
    }
    greater
}

fn ms(at: Timestamp) -> i64 {
    at.as_millisecond()
}

fn time(ms: i64) -> Timestamp {
    // What came from a timestamp is one; a file that says otherwise was written by someone else.
    time_of_ms(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Row {
    /// Takes an event in. Events without a queue are none of ours and change nothing.
    pub(crate) fn merge(&mut self, event: &Event) -> Merged {
        let data = &event.data;
        let Some(queue) = &data.queue else { return Merged::default() };
        let (run, at) = (data.run, ms(event.time));
        if event.event_type.moves() {
            self.merge_move(event, queue);
        }
        match event.event_type {
            EventType::CancelRequested => self.merge_cancel(event),
            EventType::Purged => drop(raise(&mut self.purged, run)),
            EventType::Progress => {
                if let Some(progress) = data.progress.clone() {
                    raise(&mut self.progress, Some(Told { run, step: data.step, n: progress.n, progress }));
                }
            }
            _ => {}
        }
        if let Some(kind) = &data.kind
            && self.kind.as_ref().is_none_or(|(known_run, known)| (*known_run, known) < (run, kind))
        {
            self.kind = Some((run, kind.clone()));
        }
        if (self.tags.0, &self.tags.1) < (run, &data.tags) {
            self.tags = (run, data.tags.clone());
        }
        raise(&mut self.max_attempts, data.max_attempts.map(|limit| (run, limit)));
        raise(&mut self.expires_at, data.expires_at.map(|at| (run, ms(at))));
        raise(&mut self.trace_id, data.trace_id.clone().map(|id| (run, id)));
        if let Some(created_at) = data.created_at.map(ms) {
            self.created_at = Some(self.created_at.map_or(created_at, |known| known.min(created_at)));
        }
        if let Some(request) = &data.request {
            let better = self
                .request
                .as_ref()
                .is_none_or(|(known_run, known)| run < *known_run || (run == *known_run && request > known));
            if better {
                self.request = Some((run, request.clone()));
            }
        }
        let (first, last) = self.span.unwrap_or((at, at));
        self.span = Some((first.min(at), last.max(at)));
        Merged {
            args: raise(&mut self.args, Slot::of(run, data.args.as_deref(), data.args_omitted)),
            output: raise(&mut self.output, Slot::of(run, data.output.as_deref(), data.output_omitted)),
        }
    }

    fn merge_move(&mut self, event: &Event, queue: &QueueName) {
        let data = &event.data;
        let place = Place::from(event.rank());
        if event.event_type == EventType::Started {
            raise(&mut self.begun, Some((data.run, data.step, data.attempt)));
        }
        raise(&mut self.reached, (data.run, event.rank().step));
        if let Some(at) = data.started_at.map(ms) {
            raise(&mut self.start, Some(Start { place, at, worker: data.worker.clone() }));
        }
        if let Some(error) = &data.error {
            raise(&mut self.error, Some((place, error.clone())));
        }
        if self.head.as_ref().is_some_and(|head| head.place > place) {
            return;
        }
        let head = Head {
            place,
            what: event.event_type,
            attempt: data.attempt,
            time: ms(event.time),
            run_at: data.run_at.map(ms),
            finished_at: data.finished_at.map(ms),
            outcome: data.outcome,
            reason: data.reason.clone(),
            by: data.by.clone(),
            queue: queue.clone(),
        };
        raise(&mut self.head, Some(head));
    }

    fn merge_cancel(&mut self, event: &Event) {
        let data = &event.data;
        let asked =
            Cancel { run: data.run, at: ms(event.time), by: data.by.clone(), reason: data.reason.clone() };
        let better = self.cancel.as_ref().is_none_or(|known| {
            // The highest run, and in it the earliest; the rest decides between twins.
            let key = |cancel: &Cancel| (cancel.run, -cancel.at);
            (key(&asked), &asked.by, &asked.reason) > (key(known), &known.by, &known.reason)
        });
        if better {
            self.cancel = Some(asked);
        }
    }

    /// Where the job stands when no clock is looked at (`scheduled` and `retrying` whose time has come stay that), and
    /// the time that goes with it in ms: when it is queued next, since when it is queued, when a running one was heard
    /// of last, when it ended. `None` until an event came that says where it stands: such a job is not shown.
    pub(crate) fn state(&self) -> Option<(JobStatus, i64)> {
        let head = self.head.as_ref()?;
        let ended = head.finished_at.unwrap_or(head.time);
        Some(match head.what {
            EventType::Started => (JobStatus::Running, self.span.map_or(head.time, |(_, last)| last)),
            EventType::Succeeded => (JobStatus::Succeeded, ended),
            EventType::Dead | EventType::DeliveryLost => (JobStatus::Dead, ended),
            EventType::Cancelled => (JobStatus::Cancelled, ended),
            EventType::Expired => (JobStatus::Expired, ended),
            what => match head.run_at {
                None => (JobStatus::Queued, head.time),
                Some(at) if what == EventType::Retrying => (JobStatus::Retrying, at),
                Some(at) => (JobStatus::Scheduled, at),
            },
        })
    }

    /// The run that the job is in; 0 while it is not shown.
    pub(crate) fn run(&self) -> u32 {
        self.head.as_ref().map_or(0, |head| head.place.run())
    }

    /// Its queue, `None` while it is not shown.
    pub(crate) fn queue(&self) -> Option<&QueueName> {
        self.head.as_ref().map(|head| &head.queue)
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> Option<&Kind> {
        self.kind.as_ref().map(|(_, kind)| kind)
    }

    /// Its tags.
    pub(crate) fn tags(&self) -> &[String] {
        &self.tags.1
    }

    /// The trace that the newest submit that says so was part of.
    pub(crate) fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_ref().map(|(_, id)| id.as_str())
    }

    /// Which args it has.
    pub(crate) fn args(&self) -> Option<Slot> {
        self.args
    }

    /// Which output `run` has, if it succeeded.
    pub(crate) fn output(&self, run: u32) -> Option<Slot> {
        self.output.filter(|slot| slot.run == run)
    }

    /// When it was submitted, in ms; as far as that is known, the time of its first event.
    pub(crate) fn created(&self) -> i64 {
        self.created_at.or(self.span.map(|(first, _)| first)).unwrap_or_default()
    }

    /// The time of its last event, in ms.
    pub(crate) fn last_heard(&self) -> i64 {
        self.span.map(|(_, last)| last).unwrap_or_default()
    }

    /// Whether its dead message was purged in this run.
    pub(crate) fn is_purged(&self) -> bool {
        self.purged != 0 && self.purged == self.run()
    }

    /// The last error of this run, unless it succeeded.
    pub(crate) fn error(&self) -> Option<&EventError> {
        let head = self.head.as_ref().filter(|head| head.what != EventType::Succeeded)?;
        self.error.as_ref().filter(|(place, _)| place.run() == head.place.run()).map(|(_, error)| error)
    }

    /// Why it is dead, or was cancelled or expired.
    fn reason(&self) -> Option<&str> {
        let head = self.head.as_ref().filter(|head| head.what.is_final())?;
        let lost = (head.what == EventType::DeliveryLost).then_some(dead::Reason::Lost.as_str());
        head.reason.as_deref().or(lost)
    }

    /// What groups it with others that died alike, if it is dead.
    pub(crate) fn fingerprint(&self) -> Option<String> {
        let (JobStatus::Dead, _) = self.state()? else { return None };
        let kind = self.kind().map(Kind::as_str);
        let (code, message) = match self.error() {
            Some(error) => (error.code.as_str(), error.message.as_str()),
            None => (self.reason().unwrap_or_default(), ""),
        };
        Some(dead::fingerprint(kind, code, message))
    }

    /// Whether the cancellation of `run` was asked for. Only the newest run's request is known here.
    pub(crate) fn cancel(&self, run: u32) -> Option<CancelRequest> {
        let cancel = self.cancel.as_ref().filter(|cancel| cancel.run == run)?;
        Some(CancelRequest { at: time(cancel.at), by: cancel.by.clone(), reason: cancel.reason.clone() })
    }

    /// How far the attempt is that runs.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let head = self.head.as_ref().filter(|head| head.what == EventType::Started)?;
        let told = self.progress.as_ref()?;
        ((told.run, told.step) == (head.place.run(), head.place.2)).then(|| told.progress.clone())
    }

    /// Attempts made in this run, the one that runs included.
    fn attempts_made(&self, head: &Head) -> u32 {
        let made = match head.what {
            EventType::Started | EventType::Retrying => true,
            // A snooze spends no attempt.
            EventType::Submitted | EventType::Scheduled => false,
            // An end without an outcome came to a job that waited, or to one that was seen running in this step.
            _ => {
                let here = (head.place.run(), head.place.2);
                head.outcome.is_some() || self.begun.is_some_and(|(run, step, _)| (run, step) == here)
            }
        };
        if made { head.attempt } else { head.attempt.saturating_sub(1) }
    }

    /// The job as lists show it at `now`; `None` while it is not shown.
    pub(crate) fn summary(&self, id: JobId, position: Position, now: Timestamp) -> Option<Summary> {
        let head = self.head.as_ref()?;
        let (state, at) = self.state()?;
        let run = head.place.run();
        let start = self.start.as_ref().filter(|start| start.place.run() == run);
        Some(Summary {
            id,
            position,
            kind: self.kind().cloned(),
            queue: head.queue.clone(),
            status: shown(state, at, ms(now)),
            run,
            attempt: self.attempts_made(head),
            step: self.step(run),
            max_attempts: self.max_attempts.filter(|limit| limit.0 == run).map(|(_, limit)| limit),
            tags: self.tags.1.clone(),
            created_at: self.created_at.map(time),
            run_at: head.run_at.filter(|_| !state.is_final() && state != JobStatus::Running).map(time),
            started_at: start.map(|start| time(start.at)),
            finished_at: state.is_final().then(|| time(at)),
            expires_at: self.expires_at.filter(|expiry| expiry.0 == run).map(|(_, at)| time(at)),
            worker: start.and_then(|start| start.worker.clone()),
            error: self.error().cloned(),
            reason: self.reason().map(str::to_owned),
            by: head.by.clone().filter(|_| state == JobStatus::Cancelled),
            fingerprint: self.fingerprint(),
            cancel: self.cancel(run),
            purged: self.is_purged(),
            request: self.request.as_ref().map(|(_, request)| request.clone()),
        })
    }

    /// The greatest step of `run` that is known; 0 for a run that is not the newest.
    pub(crate) fn step(&self, run: u32) -> u32 {
        if self.reached.0 == run { self.reached.1 } else { 0 }
    }
}

/// `scheduled` and `retrying` jobs whose time has come read as `queued`.
pub(crate) fn shown(state: JobStatus, at: i64, now: i64) -> JobStatus {
    match state {
        JobStatus::Scheduled | JobStatus::Retrying if at <= now => JobStatus::Queued,
        state => state,
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
pub(super) mod tests;
