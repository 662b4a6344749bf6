//! Lifecycle events: what happened to a job, as CloudEvents 1.0 (`docs/wire.md`, "Events").
//!
//! Pure: no clock, no broker. The event log is made of these and nothing else, so the record of a job is a function
//! of the *set* of its events: [`Event::tag`] tells copies of one event from another event, and [`Event::rank`]
//! orders what happened to a job, whatever order the log has it in.
//!
//! Not here: how events are gathered, written and read (`record`).

pub mod batch;

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::job::{Envelope, JobId, Kind, QueueName};

/// The kind of the act that replays.
pub(crate) const REPLAY: &str = "hopline.replay";
/// What an event's `type` starts with.
pub const TYPE_PREFIX: &str = "hopline.job.";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventType {
    /// A run began to wait: submitted, or replayed (`run` above 1).
    Submitted,
    /// The job waits once more without a failure: snoozed, or for a worker that knows it.
    Scheduled,
    /// An attempt started, told when it has run for 250 ms.
    Started,
    /// A handler told how far it is.
    Progress,
    /// An attempt failed and the next one is asked for.
    Retrying,
    /// Final: the handler returned an output.
    Succeeded,
    /// Final: failed for good; the message is in the dead-letter queue.
    Dead,
    /// Final: cancelled before its end.
    Cancelled,
    /// Final: no attempt could start before the job's expiry.
    Expired,
    /// Final, until something better is known: the message is gone. Shown as dead, reason `lost`.
    DeliveryLost,
    /// Someone asked for the run to be cancelled.
    CancelRequested,
    /// The dead job's message was removed from the dead-letter queue: it cannot be replayed any more.
    Purged,
}

impl EventType {
    /// All of them, in order.
    pub const ALL: [Self; 12] = [
        Self::Submitted,
        Self::Scheduled,
        Self::Started,
        Self::Progress,
        Self::Retrying,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
        Self::DeliveryLost,
        Self::CancelRequested,
        Self::Purged,
    ];

    /// The name behind [`TYPE_PREFIX`], also a word of the routing key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Scheduled => "scheduled",
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::DeliveryLost => "delivery_lost",
            Self::CancelRequested => "cancel_requested",
            Self::Purged => "purged",
        }
    }

    /// The type of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// Among the final events of one run the highest is the truth; 0: not final.
    ///
    /// What a handler finished outranks what others concluded from its absence.
    #[must_use]
    pub fn final_rank(self) -> u8 {
        match self {
            Self::Succeeded => 5,
            Self::Dead => 4,
            Self::Cancelled => 3,
            Self::Expired => 2,
            Self::DeliveryLost => 1,
            _ => 0,
        }
    }

    /// Whether the run ends with it.
    #[must_use]
    pub fn is_final(self) -> bool {
        self.final_rank() > 0
    }

    /// Whether it says where the job stands. The others only add to what is known.
    #[must_use]
    pub fn moves(self) -> bool {
        !matches!(self, Self::Progress | Self::CancelRequested | Self::Purged)
    }
}

/// How an attempt ended.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttemptOutcome {
    /// The handler returned an output.
    Succeeded,
    /// The handler returned an error.
    Failed,
    /// The handler returned an error that makes trying again pointless.
    Fatal,
    /// It ran longer than its timeout.
    TimedOut,
    /// The handler panicked.
    Panicked,
    /// The process that ran it died.
    Crashed,
    /// The handler asked to be run again later.
    Snoozed,
    /// It was cancelled.
    Cancelled,
}

impl AttemptOutcome {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Succeeded,
        Self::Failed,
        Self::Fatal,
        Self::TimedOut,
        Self::Panicked,
        Self::Crashed,
        Self::Snoozed,
        Self::Cancelled,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Fatal => "fatal",
            Self::TimedOut => "timed_out",
            Self::Panicked => "panicked",
            Self::Crashed => "crashed",
            Self::Snoozed => "snoozed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why an attempt, or a run, did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EventError {
    /// The handler's code, or `error`, `timeout`, `panic`, `crashed`, or the reason where no attempt was made.
    pub code: String,
    /// For people, at most 4 KiB.
    pub message: String,
}

/// How far a handler is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// For people, at most 1 KiB.
    pub message: String,
    /// Counts the progress events of one step in one process, from 1.
    pub n: u32,
}

/// The `data` of an event: one shape for all types; `docs/wire.md` has the table of who carries what.
///
/// Args and output are its last members, in this order: what subscribers get is cut before them ([`batch`]).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Data {
    /// The job's kind; absent where the message had none that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Its queue. Always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// Which life, from 1.
    pub run: u32,
    /// Which attempt, from 1: the one this event is about; before the first, 1.
    pub attempt: u32,
    /// How often the run had been republished when the event's attempt was asked for, from 0.
    pub step: u32,
    /// Attempts allowed in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// When the job was submitted first.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub created_at: Option<Timestamp>,
    /// After when no attempt starts.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub expires_at: Option<Timestamp>,
    /// When the job is to be queued again (`submitted` with a delay, `scheduled`, `retrying`).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub run_at: Option<Timestamp>,
    /// The job's tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// A digest of the request, where the client gave the job's id or a key (`submitted`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The trace that the submit was part of, 32 hexadecimal digits: where the args are, if the job says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The args were longer than `record.max_inline`, or the kind is not recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub args_omitted: bool,
    /// The worker that made the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// When the attempt started.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub started_at: Option<Timestamp>,
    /// When the attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub finished_at: Option<Timestamp>,
    /// How the attempt ended; absent where a run ended without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<AttemptOutcome>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<EventError>,
    /// Why the run is dead (see [`crate::job::dead::Reason`]), was cancelled or purged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asked (`cancel_requested`, `cancelled`, `purged`, a replay's `submitted`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The output was longer than `limits.output` or `record.max_inline`, nested too deep, or the kind is not recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_omitted: bool,
    /// How far the handler is (`progress`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The args as they came: in `submitted`, and in final events of jobs that no Hopline process submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Box<RawValue>>,
    /// The output (`succeeded`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Box<RawValue>>,
}

/// Something that happened to a job.
#[derive(Debug, Clone)]
pub struct Event {
    /// What.
    pub event_type: EventType,
    /// To which job.
    pub job: JobId,
    /// The process that says so.
    pub source: String,
    /// When, by its clock.
    pub time: Timestamp,
    /// The rest.
    pub data: Data,
}

/// Where an event stands in the life of its job: by run, then final ones above all others and among themselves, then
/// by step, then by what comes first within a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rank {
    /// The run.
    pub run: u32,
    /// [`EventType::final_rank`].
    pub end: u8,
    /// The step that the job stands at after the event: `scheduled` and `retrying` prove that the next one exists.
    pub step: u32,
    /// 0: waiting; 1: started; 2: further news of a started attempt; for finals 3.
    pub phase: u8,
}

impl Event {
    /// An event about `envelope`'s job with what every event of it says: kind, queue, run, attempt, step, limits.
    #[must_use]
    pub fn of(event_type: EventType, envelope: &Envelope, source: &str, time: Timestamp) -> Self {
        let data = Data {
            kind: Some(envelope.kind.clone()),
            queue: Some(envelope.queue.clone()),
            run: envelope.run,
            attempt: envelope.attempt,
            step: envelope.step,
            max_attempts: envelope.max_attempts,
            created_at: envelope.created_at,
            expires_at: envelope.expires_at,
            tags: envelope.tags.clone(),
            ..Data::default()
        };
        Self { event_type, job: envelope.id, source: source.to_owned(), time, data }
    }

    /// What tells this event from all others of its job; copies of one event share it.
    ///
    /// `<run>:<step>:<type>`, and for what may happen several times in a step, what tells those apart.
    #[must_use]
    pub fn tag(&self) -> String {
        Tag(self).to_string()
    }

    /// The CloudEvents `id`: `<job>:<tag>`.
    #[must_use]
    pub fn id(&self) -> String {
        Id(self).to_string()
    }

    /// Where it stands in the life of the job.
    #[must_use]
    pub fn rank(&self) -> Rank {
        let Data { run, step, .. } = self.data;
        let (step, phase) = match self.event_type {
            EventType::Submitted => (step, 0),
            EventType::Scheduled | EventType::Retrying => (step.saturating_add(1), 0),
            EventType::Started => (step, 1),
            EventType::Progress | EventType::CancelRequested => (step, 2),
            _ => (step, 3),
        };
        Rank { run, end: self.event_type.final_rank(), step, phase }
    }

    /// Routing key on `hopline.events`: `job.<event>.<queue>.<kind>`; a kind's own dots make further words.
    #[must_use]
    pub fn routing_key(&self) -> String {
        let queue = self.data.queue.as_ref().map_or("unknown", QueueName::as_str);
        let kind = self.data.kind.as_ref().map_or("unknown", Kind::as_str);
        format!("job.{}.{queue}.{kind}", self.event_type.as_str())
    }

    /// The event without args and output: what subscribers get.
    #[must_use]
    pub fn public(&self) -> Self {
        let data = &self.data;
        Self {
            data: Data {
                args_omitted: data.args_omitted || data.args.is_some(),
                output_omitted: data.output_omitted || data.output.is_some(),
                args: None,
                output: None,
                ..data.clone()
            },
            ..self.clone()
        }
    }
}

/// As [`Event::tag`], for whoever writes it somewhere.
struct Tag<'a>(&'a Event);

impl fmt::Display for Tag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Data { run, step, worker, progress, .. } = &self.0.data;
        let name = self.0.event_type.as_str();
        let worker = worker.as_deref().unwrap_or_default();
        match (self.0.event_type, progress) {
            (EventType::Started, _) => write!(f, "{run}:{step}:{name}:{worker}"),
            (EventType::Progress, Some(progress)) => write!(f, "{run}:{step}:{name}:{worker}:{}", progress.n),
            // Told again by whoever asks again, and by processes that do not know of each other.
            (EventType::CancelRequested, _) => write!(f, "{run}:{name}"),
            _ => write!(f, "{run}:{step}:{name}"),
        }
    }
}

/// As [`Event::id`], for whoever writes it somewhere.
struct Id<'a>(&'a Event);

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.job, Tag(self.0))
    }
}

/// Args or an output as an event carries them: nothing where they are longer than `max` bytes, `private`, or not JSON.
#[must_use]
pub fn inline(json: &[u8], max: usize, private: bool) -> Option<Box<RawValue>> {
    if private || json.len() > max {
        return None;
    }
    // To a string first: that checks the encoding, which reading raw bytes would check as well, and copies once.
    RawValue::from_string(std::str::from_utf8(json).ok()?.to_owned()).ok()
}

/// The args of a job as events carry them, as [`inline`]. Those of a replay go without what it sets: that is args of the
/// jobs that it is about, maybe of a private kind, and each run that it starts tells its own.
pub(crate) fn inline_args(
    kind: Option<&Kind>,
    args: &[u8],
    max: usize,
    private: bool,
) -> Option<Box<RawValue>> {
    if kind.is_none_or(|kind| kind.as_str() != REPLAY) || private {
        return inline(args, max, private);
    }
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(args).ok()?;
    members.remove("set");
    inline(&serde_json::to_vec(&members).ok()?, max, private)
}

/// A time as all our JSON has it: RFC 3339, UTC, with milliseconds. A year before 0, which RFC 3339 does not have, is
/// written with a sign and six digits, and read: some header may say it.
#[must_use]
pub fn time_text(at: Timestamp) -> String {
    TimeText(at).to_string()
}

/// As [`time_text`], for whoever writes it somewhere.
pub(crate) struct TimeText(pub(crate) Timestamp);

impl fmt::Display for TimeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

/// Optional times as [`time_text`] has them.
pub(crate) mod time_option {
    use std::fmt;

    use jiff::Timestamp;
    use serde::{
        Deserializer, Serializer,
        de::{Error, Visitor},
    };

    use crate::job::name::Text;

    #[expect(clippy::ref_option, reason = "serde's `with` hands over a reference to the field")]
    pub(crate) fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.collect_str(&super::TimeText(*at)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        deserializer.deserialize_option(Maybe)
    }

    struct Maybe;

    impl<'de> Visitor<'de> for Maybe {
        type Value = Option<Timestamp>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a time or null")
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_str(Text(|text: &str| text.parse::<Timestamp>())).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_type: EventType, run: u32, step: u32) -> Event {
        let (kind, queue) = (Kind::parse("image.thumbnail").unwrap(), QueueName::parse("media").unwrap());
        let mut envelope = Envelope::new(kind, queue, bytes::Bytes::from_static(b"{}"));
        (envelope.run, envelope.step) = (run, step);
        Event::of(event_type, &envelope, "test", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn events_are_ranked_by_run_end_step_phase() {
        use EventType::{
            Cancelled, Dead, DeliveryLost, Expired, Retrying, Scheduled, Started, Submitted, Succeeded,
        };
        let order = [
            event(Submitted, 1, 0),
            event(Started, 1, 0),
            event(Retrying, 1, 0),
            event(Started, 1, 1),
            event(Scheduled, 1, 1),
            event(Started, 1, 2),
            event(DeliveryLost, 1, 0),
            event(Expired, 1, 0),
            event(Cancelled, 1, 0),
            event(Dead, 1, 0),
            event(Succeeded, 1, 0),
            event(Submitted, 2, 0),
        ];
        for pair in order.windows(2) {
            assert!(pair[0].rank() < pair[1].rank(), "{:?} before {:?}", pair[0], pair[1]);
        }
    }

    #[test]
    fn every_time_is_read_as_it_is_written() {
        for (at, text) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("2026-01-02T05:04:05.6789+02:00", "2026-01-02T03:04:05.678Z"),
            ("1969-12-31T23:59:59.9999Z", "1969-12-31T23:59:59.999Z"),
            ("-009999-01-02T01:59:59Z", "-009999-01-02T01:59:59.000Z"),
        ] {
            let at: Timestamp = at.parse().unwrap();
            assert_eq!(time_text(at), text);
            assert_eq!(text.parse::<Timestamp>().unwrap().as_second(), at.as_second());
        }
        for end in [Timestamp::MIN, Timestamp::MAX] {
            assert!(time_text(end).parse::<Timestamp>().is_ok(), "{}", time_text(end));
        }
    }

    #[test]
    fn the_key_has_the_words_that_subscribers_bind_to() {
        assert_eq!(event(EventType::Succeeded, 1, 0).routing_key(), "job.succeeded.media.image.thumbnail");
    }

    #[test]
    fn names_of_types_are_read_as_they_are_written() {
        for known in EventType::ALL {
            assert_eq!(EventType::parse(known.as_str()), Some(known));
            assert_eq!(serde_json::to_value(known).unwrap(), known.as_str());
        }
        for known in AttemptOutcome::ALL {
            assert_eq!(serde_json::to_value(known).unwrap(), known.as_str());
        }
        assert_eq!(EventType::parse("exploded"), None);
    }
}
