//! What is known of a job, as others see it. Plain data: the HTTP interface, the command line and bulk acts read it.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::{
    event::{AttemptOutcome, Event, EventError, Progress},
    job::{JobId, Kind, QueueName},
};

/// Where a job stands. `scheduled` and `retrying` jobs whose time has come read as `queued`: nobody sees the broker
/// release them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobStatus {
    /// Waits for its time.
    Scheduled,
    /// Waits for a worker.
    Queued,
    /// An attempt has run for 250 ms or longer.
    Running,
    /// An attempt failed; the next one waits for its time.
    Retrying,
    /// Final.
    Succeeded,
    /// Final, until it is replayed.
    Dead,
    /// Final.
    Cancelled,
    /// Final.
    Expired,
    /// Accepted, and on the disk of the HTTP process that took it, because the broker is away. Only that process knows
    /// it: it is in no record.
    Spooled,
}

impl JobStatus {
    /// All that are in the record, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Spooled => "spooled",
        }
    }

    /// The status of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether the run has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled | Self::Expired)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an event lies in the log: the offset of its batch, and its index in it. Written `<offset>.<index>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The batch's offset in the stream.
    pub offset: u64,
    /// The event's index in the batch.
    pub index: u16,
}

/// Text that is no position.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a position in the event log: it is written <offset>.<index>, as in 1234.0")]
pub struct PositionError;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.offset, self.index)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let (offset, index) = text.split_once('.').ok_or(PositionError)?;
        if !digits(offset) || !digits(index) {
            return Err(PositionError);
        }
        let (offset, index) = (offset.parse().ok(), index.parse().ok());
        // Positions are kept as 63 bits: 47 for the offset, 16 for the index.
        let offset = offset.filter(|offset: &u64| *offset < 1 << 47).ok_or(PositionError)?;
        Ok(Self { offset, index: index.ok_or(PositionError)? })
    }
}

/// A cancellation that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// When.
    pub at: Timestamp,
    /// By whom, if known.
    pub by: Option<String>,
    /// Why, if said.
    pub reason: Option<String>,
}

/// A job in a list.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The job.
    pub id: JobId,
    /// Its place in lists: where it was first heard of.
    pub position: Position,
    /// Its kind; absent where its message had none.
    pub kind: Option<Kind>,
    /// Its queue.
    pub queue: QueueName,
    /// Where it stands.
    pub status: JobStatus,
    /// Which life, from 1.
    pub run: u32,
    /// Attempts made in this run, the one that runs included.
    pub attempt: u32,
    /// Republishes in this run.
    pub step: u32,
    /// Attempts allowed, if the job says.
    pub max_attempts: Option<u32>,
    /// Its tags.
    pub tags: Vec<String>,
    /// When it was submitted first.
    pub created_at: Option<Timestamp>,
    /// When it is queued next (`scheduled`, `retrying`, and `queued` after one of them).
    pub run_at: Option<Timestamp>,
    /// When its last attempt started.
    pub started_at: Option<Timestamp>,
    /// When the run ended: present exactly when `status` is final.
    pub finished_at: Option<Timestamp>,
    /// After when no attempt starts.
    pub expires_at: Option<Timestamp>,
    /// The worker of the last attempt.
    pub worker: Option<String>,
    /// The last error of this run, unless it succeeded.
    pub error: Option<EventError>,
    /// Why it is dead, or was cancelled.
    pub reason: Option<String>,
    /// Who cancelled it.
    pub by: Option<String>,
    /// Groups dead jobs by their error, see [`crate::job::dead::fingerprint`].
    pub fingerprint: Option<String>,
    /// Whether its cancellation was asked for in this run.
    pub cancel: Option<CancelRequest>,
    /// Whether its dead message was purged: it cannot be replayed.
    pub purged: bool,
    /// Digest of the request that submitted it, where the client gave its id or a key.
    pub request: Option<String>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// In which run.
    pub run: u32,
    /// Which, from 1. The same number twice: the first one was snoozed, or died with its worker.
    pub attempt: u32,
    /// By whom.
    pub worker: Option<String>,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it ended; absent while it runs, or if nobody could tell.
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<AttemptOutcome>,
    /// Why it did not succeed.
    pub error: Option<EventError>,
}

/// All that is known of a job.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// What lists show.
    pub summary: Summary,
    /// Its args as they came, unless left out.
    pub args: Option<Box<RawValue>>,
    /// The args are known to exist and were left out.
    pub args_omitted: bool,
    /// Its output, unless left out; only of a run that succeeded.
    pub output: Option<Box<RawValue>>,
    /// There is an output and it was left out.
    pub output_omitted: bool,
    /// Its attempts in order, the newest [`ATTEMPTS_MAX`].
    pub attempts: Vec<AttemptRecord>,
    /// How far the running attempt is.
    pub progress: Option<Progress>,
    /// The trace that its submit was part of.
    pub trace_id: Option<String>,
}

/// Most attempts of a job that its record shows.
pub const ATTEMPTS_MAX: usize = 1000;

/// Which jobs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// In one of these states; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<JobStatus>,
    /// In this queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// In one of these, which are all that whoever asks may know of. Never said by a client, and not written.
    #[serde(skip)]
    pub queues: Option<BTreeSet<QueueName>>,
    /// Of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// With this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whose error's code or message holds this text, upper and lower case alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
    /// Submitted at or after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Submitted before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Dead with this fingerprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// A page of a list, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// The jobs.
    pub items: Vec<Summary>,
    /// Where the next page begins: after this position; absent at the end.
    pub next: Option<Position>,
}

/// How many jobs are in which state, in one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// By [`JobStatus::ALL`]'s order.
    pub by_status: [u64; 8],
}

impl Counts {
    /// How many are in `status`.
    #[must_use]
    pub fn of(&self, status: JobStatus) -> u64 {
        self.by_status.get(status as usize).copied().unwrap_or_default()
    }
}

/// What the record knows of a queue.
#[derive(Debug, Clone, Default)]
pub struct QueueRecord {
    /// Its jobs.
    pub counts: Counts,
    /// When the job that has waited longest became ready.
    pub oldest_queued_at: Option<Timestamp>,
    /// Jobs that came to be ready per second, over the last minute.
    pub arrival_rate: f64,
    /// Attempts ended per second, over the last minute.
    pub service_rate: f64,
    /// Mean duration of the attempts that ended in the last minute, in seconds.
    pub mean_duration: Option<f64>,
}

/// How long a [`Moment`] is.
pub const MOMENT_SECONDS: u32 = 5;

/// What happened in [`MOMENT_SECONDS`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moment {
    /// Jobs that came to be ready.
    pub arrived: u64,
    /// Attempts that ended.
    pub ended: u64,
    /// Those of them that failed, timed out, panicked or crashed.
    pub failed: u64,
    /// Their mean duration, in seconds.
    pub mean_duration: Option<f64>,
}

/// Dead jobs of one queue with alike errors.
#[derive(Debug, Clone)]
pub struct Group {
    /// What they share, see [`crate::job::dead::fingerprint`].
    pub fingerprint: String,
    /// Their kind, if they had one.
    pub kind: Option<Kind>,
    /// The code of the error.
    pub code: String,
    /// Why they are dead.
    pub reason: String,
    /// The message of the newest.
    pub message: String,
    /// How many.
    pub count: u64,
    /// When the first of them died.
    pub first_at: Option<Timestamp>,
    /// When the last of them died.
    pub last_at: Option<Timestamp>,
    /// The newest.
    pub latest: JobId,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Of this job.
    pub job: Option<JobId>,
    /// Of jobs of this queue.
    pub queue: Option<QueueName>,
    /// Of jobs of this kind.
    pub kind: Option<Kind>,
    /// Of jobs with this tag.
    pub tag: Option<String>,
}

/// An event as the record keeps it: without args and output.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Where it lies.
    pub position: Position,
    /// The event.
    pub event: Event,
}

/// A stretch of the log as the record has it: all of this at one moment.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// What was found there.
    pub events: Vec<StoredEvent>,
    /// Up to where was searched: the position to go on after. At the tail, or beyond it, nothing more is known.
    pub searched: Position,
    /// Before this position events are missing.
    pub first: Position,
    /// The last position applied.
    pub tail: Position,
}

#[cfg(test)]
impl Summary {
    /// A job that waits in queue `q`, for tests.
    pub(crate) fn sample() -> Self {
        Self {
            id: JobId::new(),
            position: Position::default(),
            kind: None,
            queue: QueueName::parse("q").expect("a queue name"),
            status: JobStatus::Queued,
            run: 1,
            attempt: 1,
            step: 0,
            max_attempts: None,
            tags: Vec::new(),
            created_at: None,
            run_at: None,
            started_at: None,
            finished_at: None,
            expires_at: None,
            worker: None,
            error: None,
            reason: None,
            by: None,
            fingerprint: None,
            cancel: None,
            purged: false,
            request: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let position = Position { offset: 12_345, index: 7 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for bad in
            ["", "1", "1.", ".1", "1.70000", "-1.0", "+1.0", "1.0.0", "140737488355328.0", " 1.0", "a.b"]
        {
            assert_eq!(bad.parse::<Position>(), Err(PositionError), "{bad}");
        }
    }
}
