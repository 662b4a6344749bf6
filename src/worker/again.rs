//! What is done once more for a run that has ended elsewhere: pure, from what the record knows of its end.

use bytes::Bytes;
use jiff::Timestamp;

use crate::{
    event::{Event, EventType},
    job::{
        Envelope, Reply, Status,
        dead::{self, Death, Reason},
        reply::Failure,
        wire::Message,
    },
    record::lookup::End,
};

/// The copy in the dead-letter queue of a run that the record knows to be dead. Another one may be there already.
pub(super) fn dead_letter(envelope: &Envelope, end: &End, worker: &str) -> Message {
    let error = end.error.as_ref();
    let death = Death {
        // The record's own word for it follows.
        reason: Reason::Exhausted,
        code: error.map_or("error", |error| &error.code),
        error: error.map_or("", |error| &error.message),
        attempts: end.attempt,
        worker: end.worker.as_deref().unwrap_or(worker),
        at: end.finished_at.unwrap_or_else(Timestamp::now),
    };
    let copy = Envelope { unsure: true, attempt: end.attempt.max(1), ..envelope.clone() };
    let mut copy = dead::mark(copy.encode(), &death);
    if let Some(reason) = &end.reason {
        copy.headers.insert(dead::mark::REASON.to_owned(), reason.as_str().into());
    }
    copy
}

/// The event of an end that the record knows, for what is made of it once more.
pub(super) fn event(envelope: &Envelope, end: &End, worker: &str) -> Event {
    let event_type = match end.status {
        Status::Succeeded => EventType::Succeeded,
        Status::Dead => EventType::Dead,
        Status::Cancelled => EventType::Cancelled,
        Status::Expired => EventType::Expired,
    };
    let at = end.finished_at.unwrap_or_else(Timestamp::now);
    let mut event = Event::of(event_type, envelope, worker, at);
    event.data.attempt = end.attempt.max(1);
    (event.data.started_at, event.data.finished_at) = (end.started_at, end.finished_at);
    event.data.error.clone_from(&end.error);
    event.data.reason.clone_from(&end.reason);
    event
}

/// The reply to a run that the record knows to have ended.
pub(super) fn reply(envelope: &Envelope, end: End) -> Reply {
    let mut output_omitted = false;
    let body = match (end.status, end.output) {
        (Status::Succeeded, Some(output)) => Bytes::from(Box::<str>::from(output).into_boxed_bytes()),
        (Status::Succeeded, None) => {
            output_omitted = true;
            Bytes::from_static(b"null")
        }
        (Status::Expired, _) => failure_body(&expired()),
        (Status::Cancelled, _) => failure_body(&cancelled(None, end.reason.as_deref())),
        (Status::Dead, _) => {
            let error = end.error.map(|error| Failure { code: error.code, message: error.message });
            let unknown = || Failure { code: "error".to_owned(), message: String::new() };
            failure_body(&error.unwrap_or_else(unknown))
        }
    };
    Reply {
        job_id: envelope.id,
        run: envelope.run,
        attempt: end.attempt.max(1),
        status: end.status,
        reason: end.reason.filter(|_| end.status == Status::Dead),
        worker: end.worker,
        started_at: end.started_at,
        finished_at: end.finished_at,
        output_omitted,
        body,
    }
}

pub(super) fn expired() -> Failure {
    Failure { code: "expired".to_owned(), message: "expired before an attempt started".to_owned() }
}

pub(super) fn cancelled(by: Option<&str>, reason: Option<&str>) -> Failure {
    let by = by.map(|by| format!(" by {by}")).unwrap_or_default();
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    Failure { code: "cancelled".to_owned(), message: format!("cancelled{by}{reason}") }
}

pub(super) fn failure_body(failure: &Failure) -> Bytes {
    // Two texts cannot fail to be JSON.
    Bytes::from(serde_json::to_vec(failure).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::{Kind, QueueName, wire::HeaderValue};

    fn envelope() -> Envelope {
        let (kind, queue) = (Kind::parse("a.b").unwrap(), QueueName::parse("q").unwrap());
        Envelope { run: 2, ..Envelope::new(kind, queue, Bytes::from_static(b"{}")) }
    }

    fn end(of: serde_json::Value) -> End {
        serde_json::from_value(of).unwrap()
    }

    #[test]
    fn a_dead_letter_says_what_the_first_one_said() {
        let end = end(json!({"status": "dead", "attempt": 3, "worker": "w", "reason": "poison",
            "error": {"code": "crashed", "message": "m"}, "finished_at": "2026-01-02T03:04:05.678Z"}));
        let copy = dead_letter(&envelope(), &end, "me");
        let text = |name: &str| match copy.headers.get(name) {
            Some(HeaderValue::Text(text)) => text.clone(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!((text(dead::mark::REASON), text(dead::mark::CODE)), ("poison".into(), "crashed".into()));
        assert_eq!(text(dead::mark::WORKER), "w");
        assert_eq!(copy.headers[dead::mark::ATTEMPTS], HeaderValue::Int(3));
        assert_eq!(copy.headers[dead::mark::DIED_AT], HeaderValue::Int(1_767_323_045_678));
        assert_eq!(copy.headers["hopline-unsure"], HeaderValue::Bool(true));
        assert_eq!(copy.headers["hopline-run"], HeaderValue::Int(2));
    }

    #[test]
    fn a_reply_says_how_the_run_ended() {
        let cases = [
            (json!({"status": "succeeded", "attempt": 1, "output": {"a": 1}}), r#"{"a":1}"#, false),
            (json!({"status": "succeeded", "attempt": 1, "output_omitted": true}), "null", true),
            (
                json!({"status": "dead", "attempt": 1, "reason": "fatal", "error": {"code": "c", "message": "m"}}),
                r#"{"code":"c","message":"m"}"#,
                false,
            ),
            (
                json!({"status": "cancelled", "attempt": 1, "reason": "why"}),
                r#"{"code":"cancelled","message":"cancelled: why"}"#,
                false,
            ),
            (
                json!({"status": "expired", "attempt": 1}),
                r#"{"code":"expired","message":"expired before an attempt started"}"#,
                false,
            ),
        ];
        for (of, body, omitted) in cases {
            let reply = reply(&envelope(), end(of.clone()));
            assert_eq!((&reply.body[..], reply.output_omitted), (body.as_bytes(), omitted), "{of}");
            assert_eq!(reply.status.as_str(), of["status"]);
            assert_eq!(reply.reason.is_some(), reply.status == Status::Dead);
        }
    }
}
