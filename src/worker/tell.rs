//! What a worker says of a job in the event log (`docs/wire.md`, "Events"). Pure: facts in, events out.
//!
//! Not here: when an event is written, and what waits for it (`settle`, `work`).

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    news::Said,
    settle::{Ended, Stray},
};
use crate::{
    event::{self, Data, Event, EventError, EventType, Progress},
    job::{
        Envelope, JobId, Kind,
        dead::Reason,
        envelope::Place,
        reply::Failure,
        wire::Message,
    },
};

/// What the `app_id` of jobs starts with whose args are in a `submitted` event.
const OURS: &str = "hopline-";

/// Makes events.
pub(super) struct Teller {
    worker: String,
    /// Longest args and outputs in events, in bytes.
    max_inline: usize,
}

impl Teller {
    pub(super) fn new(worker: String, max_inline: usize) -> Self {
        Self { worker, max_inline }
    }

    /// The attempt that `envelope` asks for has started.
    pub(super) fn started(&self, envelope: &Envelope, max_attempts: u32, started_at: Timestamp) -> Event {
        let mut event = self.about(EventType::Started, envelope);
        event.data.max_attempts = Some(max_attempts);
        event.data.started_at = Some(started_at);
        event
    }

    /// How far the attempt is; `n` counts, from 1.
    pub(super) fn progress(&self, envelope: &Envelope, said: Said, n: u32) -> Event {
        let mut event = self.about(EventType::Progress, envelope);
        event.data.progress = Some(Progress { percent: said.percent, message: said.message, n });
        event
    }

    pub(super) fn succeeded(&self, ended: &Ended<'_>, output: &Bytes, omitted: bool) -> Event {
        let mut event = self.of(EventType::Succeeded, ended);
        event.data.output = event::inline(output, self.max_inline, ended.private || omitted);
        event.data.output_omitted = event.data.output.is_none();
        self.with_args(event, ended)
    }

    pub(super) fn expired(&self, ended: &Ended<'_>) -> Event {
        self.with_args(self.of(EventType::Expired, ended), ended)
    }

    pub(super) fn cancelled(&self, ended: &Ended<'_>, by: Option<String>, reason: Option<String>) -> Event {
        let mut event = self.of(EventType::Cancelled, ended);
        (event.data.by, event.data.reason) = (by, reason);
        self.with_args(event, ended)
    }

    pub(super) fn dead(&self, ended: &Ended<'_>, reason: Reason, error: &Failure) -> Event {
        let mut event = self.of(EventType::Dead, ended);
        event.data.error = Some(error_of(error));
        event.data.reason = Some(reason.as_str().to_owned());
        self.with_args(event, ended)
    }

    pub(super) fn retrying(&self, ended: &Ended<'_>, delay: Duration, error: &Failure) -> Event {
        let mut event = self.of(EventType::Retrying, ended);
        event.data.error = Some(error_of(error));
        event.data.run_at = event.time.checked_add(delay).ok();
        event
    }

    /// The attempt was snoozed.
    pub(super) fn scheduled(&self, ended: &Ended<'_>, delay: Duration) -> Event {
        let mut event = self.of(EventType::Scheduled, ended);
        event.data.run_at = event.time.checked_add(delay).ok();
        event
    }

    /// A job of a kind that is not known here waits for a worker that knows it.
    pub(super) fn waits(&self, envelope: &Envelope, delay: Duration) -> Event {
        let mut event = self.about(EventType::Scheduled, envelope);
        event.data.run_at = event.time.checked_add(delay).ok();
        event
    }

    /// A message that is not read here waits for a worker that can.
    pub(super) fn stray_waits(&self, stray: &Stray<'_>, id: JobId, place: Place, delay: Duration) -> Event {
        let mut event = self.of_stray(EventType::Scheduled, stray, id, place);
        event.data.run_at = event.time.checked_add(delay).ok();
        event
    }

    pub(super) fn dead_stray(&self, stray: &Stray<'_>, id: JobId, place: Place) -> Event {
        let mut event = self.of_stray(EventType::Dead, stray, id, place);
        let reason = stray.reason.as_str();
        let message = crate::job::dead::clip(stray.error, crate::job::dead::ERROR_MAX).to_owned();
        event.data.error = Some(EventError { code: reason.to_owned(), message });
        event.data.reason = Some(reason.to_owned());
        if !is_ours(stray.message.app_id.as_deref()) {
            put_args(&mut event.data, &stray.message.body, self.max_inline, stray.private);
        }
        event
    }

    fn about(&self, event_type: EventType, envelope: &Envelope) -> Event {
        let mut event = Event::of(event_type, envelope, &self.worker, Timestamp::now());
        event.data.worker = Some(self.worker.clone());
        event
    }

    fn of(&self, event_type: EventType, ended: &Ended<'_>) -> Event {
        let mut event = self.about(event_type, &ended.envelope);
        event.data.max_attempts = ended.max_attempts.or(event.data.max_attempts);
        if let Some(attempt) = ended.attempt {
            event.data.started_at = Some(attempt.started_at);
            event.data.finished_at = Some(attempt.finished_at);
            event.data.outcome = Some(attempt.outcome);
        }
        event
    }

    /// What can be said of a message that is no job: its kind only where it has one.
    fn of_stray(&self, event_type: EventType, stray: &Stray<'_>, id: JobId, place: Place) -> Event {
        let Stray { message, queue, .. } = stray;
        let data = Data {
            kind: kind_of(message),
            queue: Some((*queue).clone()),
            run: place.run,
            attempt: place.attempt,
            step: place.step,
            worker: Some(self.worker.clone()),
            ..Data::default()
        };
        Event { event_type, job: id, source: self.worker.clone(), time: Timestamp::now(), data }
    }

    /// Nobody has told the args of a job that was published by a stranger.
    fn with_args(&self, mut event: Event, ended: &Ended<'_>) -> Event {
        if !is_ours(ended.envelope.app_id.as_deref()) {
            put_args(&mut event.data, &ended.envelope.args, self.max_inline, ended.private);
        }
        event
    }
}

/// The kind of a message, where it has one.
pub(super) fn kind_of(message: &Message) -> Option<Kind> {
    message.kind.as_deref().and_then(|kind| Kind::parse(kind).ok())
}

fn is_ours(app_id: Option<&str>) -> bool {
    app_id.is_some_and(|app| app.starts_with(OURS))
}

fn put_args(data: &mut Data, args: &[u8], max_inline: usize, private: bool) {
    data.args = event::inline(args, max_inline, private);
    data.args_omitted = data.args.is_none() && !args.is_empty();
}

fn error_of(failure: &Failure) -> EventError {
    EventError { code: failure.code.clone(), message: failure.message.clone() }
}
