//! How events and positions are put into columns, and read from them.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::{
    event::{AttemptOutcome, Data, Event, EventError, EventType, Progress},
    job::{JobId, Kind, QueueName, wire::time_of_ms},
    record::model::Position,
};

/// First offset that no position can have: offset and index share 63 bits.
const OFFSET_END: u64 = 1 << 47;

/// The position of the event `index` in the batch at `offset`, as it is stored: a number that sorts alike.
pub(super) fn pack(offset: u64, index: u16) -> Result<i64, StoreError> {
    let packed = (offset < OFFSET_END).then_some(offset << 16 | u64::from(index));
    packed
        .and_then(|packed| i64::try_from(packed).ok())
        .ok_or_else(|| StoreError::Corrupt("positions are used up".to_owned()))
}

/// [`pack`] of a position that someone gave: one that cannot be lies behind all others.
pub(super) fn pack_given(position: Position) -> i64 {
    pack(position.offset, position.index).unwrap_or(i64::MAX)
}

/// The position that was stored as `packed`.
pub(super) fn unpack(packed: i64) -> Position {
    let packed = packed.unsigned_abs();
    #[expect(clippy::cast_possible_truncation, reason = "the lower 16 bits are the index")]
    let index = packed as u16;
    Position { offset: packed >> 16, index }
}

/// A limit for SQL.
pub(super) fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A time from its milliseconds.
pub(super) fn time(ms: i64) -> Result<Timestamp, StoreError> {
    time_of_ms(ms).ok_or_else(|| StoreError::Corrupt(format!("{ms} is no time")))
}

/// What tells an event from the others of its job: [`Event::tag`] in columns.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) what: u8,
    pub(super) run: u32,
    pub(super) step: u32,
    pub(super) extra: String,
}

pub(super) fn key(event: &Event) -> Key {
    let Data { run, step, worker, progress, .. } = &event.data;
    let worker = worker.as_deref().unwrap_or_default();
    let (step, extra) = match (event.event_type, progress) {
        (EventType::Started, _) => (*step, worker.to_owned()),
        // As text it sorts by the number, as the fold does: the newest are found from its end.
        (EventType::Progress, Some(progress)) => (*step, format!("{:010}:{worker}", progress.n)),
        (EventType::CancelRequested, _) => (0, String::new()),
        _ => (*step, String::new()),
    };
    Key { what: event.event_type as u8, run: *run, step, extra }
}

/// The type that [`Key::what`] means.
pub(super) fn event_type(what: u8) -> Result<EventType, StoreError> {
    let known = EventType::ALL.get(usize::from(what)).copied();
    known.ok_or_else(|| StoreError::Corrupt(format!("{what} is no type of event")))
}

/// What an event says beyond its columns, without args and output. Short names: there is one for each event.
#[derive(Serialize, Deserialize)]
struct Body<'a> {
    #[serde(rename = "s", borrow)]
    source: Cow<'a, str>,
    #[serde(rename = "a")]
    attempt: u32,
    /// The step, where the key has none.
    #[serde(rename = "n", default, skip_serializing_if = "is_zero")]
    step: u32,
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    created_at: Option<i64>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    run_at: Option<i64>,
    #[serde(rename = "t", default, skip_serializing_if = "no_tags")]
    tags: Cow<'a, [String]>,
    #[serde(rename = "q", default, skip_serializing_if = "Option::is_none", borrow)]
    request: Option<Cow<'a, str>>,
    #[serde(rename = "ti", default, skip_serializing_if = "Option::is_none", borrow)]
    trace_id: Option<Cow<'a, str>>,
    /// It has args, which are kept elsewhere.
    #[serde(rename = "A", default, skip_serializing_if = "std::ops::Not::not")]
    args: bool,
    #[serde(rename = "Ao", default, skip_serializing_if = "std::ops::Not::not")]
    args_omitted: bool,
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none", borrow)]
    worker: Option<Cow<'a, str>>,
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    started_at: Option<i64>,
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<i64>,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    outcome: Option<AttemptOutcome>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'a, EventError>>,
    #[serde(rename = "y", default, skip_serializing_if = "Option::is_none", borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(rename = "by", default, skip_serializing_if = "Option::is_none", borrow)]
    by: Option<Cow<'a, str>>,
    /// There is an output, kept elsewhere or left out.
    #[serde(rename = "O", default, skip_serializing_if = "std::ops::Not::not")]
    output: bool,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    progress: Option<Cow<'a, Progress>>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::ptr_arg, reason = "serde hands over a reference to the field")]
fn no_tags(tags: &Cow<'_, [String]>) -> bool {
    tags.is_empty()
}

/// The body of an event, under the key that it is stored by.
pub(super) fn encode(event: &Event, key: &Key) -> String {
    let data = &event.data;
    let ms = |at: Option<Timestamp>| at.map(Timestamp::as_millisecond);
    let body = Body {
        source: event.source.as_str().into(),
        attempt: data.attempt,
        step: if key.step == data.step { 0 } else { data.step },
        max_attempts: data.max_attempts,
        created_at: ms(data.created_at),
        expires_at: ms(data.expires_at),
        run_at: ms(data.run_at),
        tags: Cow::Borrowed(&data.tags),
        request: data.request.as_deref().map(Cow::Borrowed),
        trace_id: data.trace_id.as_deref().map(Cow::Borrowed),
        args: data.args.is_some(),
        args_omitted: data.args_omitted,
        worker: data.worker.as_deref().map(Cow::Borrowed),
        started_at: ms(data.started_at),
        finished_at: ms(data.finished_at),
        outcome: data.outcome,
        error: data.error.as_ref().map(Cow::Borrowed),
        reason: data.reason.as_deref().map(Cow::Borrowed),
        by: data.by.as_deref().map(Cow::Borrowed),
        output: data.output.is_some() || data.output_omitted,
        progress: data.progress.as_ref().map(Cow::Borrowed),
    };
    // Texts and numbers: nothing here can fail.
    serde_json::to_string(&body).unwrap_or_default()
}

/// An event's columns.
pub(super) struct Columns<'a> {
    pub(super) job: JobId,
    pub(super) queue: Option<QueueName>,
    pub(super) kind: Option<Kind>,
    pub(super) what: u8,
    pub(super) run: u32,
    pub(super) step: u32,
    pub(super) time: i64,
    pub(super) body: &'a str,
}

/// The event of these columns, without args and output, as [`Event::public`] has it; and whether it had args.
pub(super) fn decode(columns: Columns<'_>) -> Result<(Event, bool), StoreError> {
    let body: Body<'_> = serde_json::from_str(columns.body)
        .map_err(|error| StoreError::Corrupt(format!("an event cannot be read: {error}")))?;
    let at = |ms: Option<i64>| ms.map(time).transpose();
    let data = Data {
        kind: columns.kind,
        queue: columns.queue,
        run: columns.run,
        attempt: body.attempt,
        step: columns.step.max(body.step),
        max_attempts: body.max_attempts,
        created_at: at(body.created_at)?,
        expires_at: at(body.expires_at)?,
        run_at: at(body.run_at)?,
        tags: body.tags.into_owned(),
        request: body.request.map(Cow::into_owned),
        trace_id: body.trace_id.map(Cow::into_owned),
        args: None,
        args_omitted: body.args || body.args_omitted,
        worker: body.worker.map(Cow::into_owned),
        started_at: at(body.started_at)?,
        finished_at: at(body.finished_at)?,
        outcome: body.outcome,
        error: body.error.map(Cow::into_owned),
        reason: body.reason.map(Cow::into_owned),
        by: body.by.map(Cow::into_owned),
        output: None,
        output_omitted: body.output,
        progress: body.progress.map(Cow::into_owned),
    };
    let event = Event {
        event_type: event_type(columns.what)?,
        job: columns.job,
        source: body.source.into_owned(),
        time: time(columns.time)?,
        data,
    };
    Ok((event, body.args))
}
