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
        Envelope, Kind, QueueName,
        dead::Reason,
        envelope::{self, Place},
        reply::Failure,
        wire::Message,
    },
    trace::trace_id_of,
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

    /// A message that cannot be read here waits for a worker that can. `copy` is what is published of it.
    pub(super) fn message_waits(
        &self,
        message: &Message,
        copy: &Message,
        queue: &QueueName,
        delay: Duration,
    ) -> Event {
        let place = envelope::place_of(message);
        let mut event = self.of_message(EventType::Scheduled, copy, queue, place);
        event.data.run_at = event.time.checked_add(delay).ok();
        event
    }

    /// A message that is no job is dead. `copy` is what is published of it, `place` where it stands.
    pub(super) fn dead_stray(&self, stray: &Stray<'_>, copy: &Message, place: Place) -> Event {
        let mut event = self.of_message(EventType::Dead, copy, stray.queue, place);
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

    /// What can be said of a message that cannot be read: its kind only where it has one.
    fn of_message(&self, event_type: EventType, message: &Message, queue: &QueueName, place: Place) -> Event {
        let data = Data {
            kind: message.kind.as_deref().and_then(|kind| Kind::parse(kind).ok()),
            queue: Some(queue.clone()),
            run: place.run,
            attempt: place.attempt,
            step: place.step,
            worker: Some(self.worker.clone()),
            ..Data::default()
        };
        let job = envelope::id_of(message, queue);
        Event { event_type, job, source: self.worker.clone(), time: Timestamp::now(), data }
    }

    /// Nobody has told the args of a job that was published by a stranger.
    fn with_args(&self, mut event: Event, ended: &Ended<'_>) -> Event {
        if !is_ours(ended.envelope.app_id.as_deref()) {
            put_args(&mut event.data, &ended.envelope.args, self.max_inline, ended.private);
            event.data.trace_id = trace_id_of(&ended.envelope.extra);
        }
        event
    }
}

fn is_ours(app_id: Option<&str>) -> bool {
    app_id.is_some_and(|app| app.starts_with(OURS))
}

fn put_args(data: &mut Data, args: &[u8], max_inline: usize, private: bool) {
    data.args = event::inline_args(data.kind.as_ref(), args, max_inline, private);
    data.args_omitted = data.args.is_none() && !args.is_empty();
}

fn error_of(failure: &Failure) -> EventError {
    EventError { code: failure.code.clone(), message: failure.message.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        event::AttemptOutcome,
        job::QueueName,
        worker::{hold::Hold, settle::Attempted},
    };

    fn teller() -> Teller {
        Teller::new("w-1".to_owned(), 20)
    }

    fn envelope(app_id: Option<&str>, args: &'static str) -> Envelope {
        let (kind, queue) = (Kind::parse("image.thumbnail").unwrap(), QueueName::parse("media").unwrap());
        let mut envelope = Envelope::new(kind, queue, Bytes::from_static(args.as_bytes()));
        (envelope.run, envelope.attempt, envelope.step) = (2, 3, 4);
        envelope.app_id = app_id.map(str::to_owned);
        envelope
    }

    fn data(event: &Event) -> Value {
        serde_json::to_value(&event.data).unwrap()
    }

    /// Checks that the event has these members, and none of the others that the table of `docs/wire.md` leaves out.
    fn check(event: &Event, event_type: EventType, members: &[&str]) {
        assert_eq!(event.event_type, event_type);
        assert_eq!(event.source, "w-1");
        let data = data(event);
        let always = ["kind", "queue", "run", "attempt", "step", "worker"];
        let mut expected: Vec<&str> = always.iter().chain(members).copied().collect();
        expected.sort_unstable();
        let mut found: Vec<&str> = data.as_object().unwrap().keys().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{event_type:?}");
        assert_eq!((&data["run"], &data["attempt"], &data["step"]), (&json!(2), &json!(3), &json!(4)));
    }

    #[test]
    fn each_type_carries_what_the_table_says() {
        use EventType::{Cancelled, Dead, Expired, Progress, Retrying, Scheduled, Started, Succeeded};
        let (teller, hold, pause) = (teller(), Hold::none(), Duration::from_secs(9));
        let of = |outcome: Option<AttemptOutcome>| Ended {
            envelope: envelope(Some("hopline-http"), "{}"),
            hold: &hold,
            attempt: outcome.map(|outcome| Attempted {
                started_at: Timestamp::UNIX_EPOCH,
                finished_at: Timestamp::UNIX_EPOCH,
                outcome,
            }),
            max_attempts: Some(7),
            private: false,
            untold: None,
        };
        let failure = Failure { code: "c".into(), message: "m".into() };
        let attempt = ["max_attempts", "started_at", "finished_at", "outcome"];
        let with = |more: &[&'static str]| -> Vec<&str> { attempt.iter().chain(more).copied().collect() };

        let event = teller.started(&envelope(None, "{}"), 7, Timestamp::UNIX_EPOCH);
        check(&event, Started, &["max_attempts", "started_at"]);
        check(&teller.progress(&envelope(None, "{}"), Said::new(5, "x"), 1), Progress, &["progress"]);
        let event = teller.succeeded(&of(Some(AttemptOutcome::Succeeded)), &Bytes::from_static(b"1"), false);
        check(&event, Succeeded, &with(&["output"]));
        let event = teller.retrying(&of(Some(AttemptOutcome::Failed)), pause, &failure);
        check(&event, Retrying, &with(&["error", "run_at"]));
        check(&teller.scheduled(&of(Some(AttemptOutcome::Snoozed)), pause), Scheduled, &with(&["run_at"]));
        check(&teller.waits(&envelope(None, "{}"), pause), Scheduled, &["run_at"]);
        let event = teller.dead(&of(Some(AttemptOutcome::Fatal)), Reason::Fatal, &failure);
        check(&event, Dead, &with(&["error", "reason"]));
        assert_eq!(data(&event)["reason"], "fatal");
        check(&teller.expired(&of(None)), Expired, &["max_attempts"]);
        let event = teller.cancelled(&of(None), Some("ops".into()), Some("why".into()));
        check(&event, Cancelled, &["max_attempts", "by", "reason"]);
        let event = teller.cancelled(&of(Some(AttemptOutcome::Cancelled)), None, None);
        check(&event, Cancelled, &attempt);
    }

    #[test]
    fn only_a_strangers_args_are_told_and_nothing_private_or_long() {
        let (teller, hold) = (teller(), Hold::none());
        let long = "\"0123456789 0123456789\"";
        // app id, args, private → args, args omitted; the output is the same text as the args
        let cases = [
            (Some("hopline-client"), "{}", false, false, false),
            (Some("billing"), "{}", false, true, false),
            (None, "{}", false, true, false),
            (None, "{}", true, false, true),
            (None, long, false, false, true),
        ];
        for (app_id, args, private, told, omitted) in cases {
            let ended = Ended {
                envelope: envelope(app_id, args),
                hold: &hold,
                attempt: None,
                max_attempts: None,
                private,
                untold: None,
            };
            let event = teller.succeeded(&ended, &ended.envelope.args, false);
            let what = format!("{app_id:?} {args} {private}");
            assert_eq!((event.data.args.is_some(), event.data.args_omitted), (told, omitted), "{what}");
            let short = args == "{}" && !private;
            assert_eq!((event.data.output.is_some(), event.data.output_omitted), (short, !short), "{what}");
            assert!(teller.succeeded(&ended, &Bytes::from_static(b"null"), true).data.output_omitted);
        }
    }

    #[test]
    fn of_an_unreadable_message_is_said_what_can_be_read() {
        let queue = QueueName::parse("media").unwrap();
        let mut message = envelope(None, "not JSON").encode();
        message.kind = Some("Not A Kind".into());
        let stray = Stray {
            message: &message,
            queue: &queue,
            reason: Reason::Undecodable,
            error: "why",
            private: false,
        };
        let event = teller().dead_stray(&stray, &message, envelope::place_of(&message));
        let data = data(&event);
        assert_eq!((&data["kind"], &data["reason"]), (&Value::Null, &json!("undecodable")));
        assert_eq!(data["error"], json!({"code": "undecodable", "message": "why"}));
        assert_eq!(
            (&data["run"], &data["step"], &data["args_omitted"]),
            (&json!(2), &json!(4), &json!(true))
        );
        assert_eq!(event.job.to_string(), message.message_id.unwrap());
    }
}
