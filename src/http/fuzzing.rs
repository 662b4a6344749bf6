//! What holds for requests, before anything is done for them ([`crate::fuzzing`]).

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Uri},
};
use bytes::Bytes;
use jiff::Timestamp;

use super::{
    batch::{self, split},
    body::{BodyMemory, Inbound, Media},
    cursor::{decode, encode},
    fields::{self, Errors, FieldError},
    filter,
    naming::Choice,
    problem::Problem,
    sse,
    submission::{Draft, ERRORS_MAX, ITEM_ERRORS_MAX, trace_context},
    wait::Prefer,
};
use crate::{
    amqp::fuzzing::over_the_wire,
    client::Submission,
    config::{self, Limits, parse_duration},
    egress::Guard,
    fuzzing::{Input, bounded},
    job::{
        Envelope, JobId, QueueName,
        wire::{Headers, Incoming, time_of_ms},
    },
    record::model::{Filter, JobStatus, Position},
};

/// When requests come. Its milliseconds are whole, as in nature they are not.
fn now() -> Timestamp {
    Timestamp::from_millisecond(1_893_456_000_123).expect("within range")
}

fn guard() -> Guard {
    Guard::default()
}

fn limits() -> Limits {
    Limits { args: 1024, ..Limits::default() }
}

/// A problem tells all, in bounds.
fn told(problem: &Problem) {
    bounded(&problem.detail);
    problem.errors.iter().for_each(error_is_bounded);
    assert!(problem.errors.len() <= ERRORS_MAX + 1);
    assert!(problem.code.status().is_client_error(), "nothing was asked of us: {problem:?}");
    let text = problem.to_json();
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
}

fn error_is_bounded(error: &FieldError) {
    bounded(&error.detail);
    bounded(error.pointer.as_deref().unwrap_or_default());
    bounded(error.parameter.as_deref().unwrap_or_default());
}

/// The body of a submit.
pub(crate) fn submit(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let id = JobId::from_bytes([5; 16]);
    for choice in [Choice::Ours, Choice::Client(id), Choice::Members(None)] {
        let draft = fields::text(&bytes).and_then(|text| {
            Draft::read(text, &bytes, &limits(), Some(&guard()), now(), choice, Errors::new(ERRORS_MAX))
        });
        match draft {
            Ok(draft) => draft_holds(draft),
            Err(problem) => told(&problem),
        }
    }
}

/// A batch: JSON if it starts like an array, else NDJSON.
pub(crate) fn batch(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let media = if data.trim_ascii_start().starts_with(b"[") { Media::Json } else { Media::Ndjson };
    let items = match split(&bytes, media, 16) {
        Ok(items) => items,
        Err(problem) => return told(&problem),
    };
    assert!((1..=16).contains(&items.len()));
    for item in &items {
        let draft = fields::text(item.text).and_then(|text| {
            let errors = Errors::new(ITEM_ERRORS_MAX);
            Draft::read(text, &bytes, &limits(), Some(&guard()), now(), Choice::Members(None), errors)
        });
        match draft {
            Ok(draft) => draft_holds(draft),
            Err(problem) => told(&batch::place(problem, item)),
        }
    }
}

/// A job that was accepted is what a worker reads, whether it went straight to the broker or by way of the spool.
fn draft_holds(draft: Draft) {
    assert!(draft.args.len() <= limits().args);
    assert!(draft.run_at.is_none_or(|at| at > now()));
    let queue_of = |_: &_| QueueName::parse("media").expect("a literal within the rule");
    let job = draft.into_submission(queue_of, &Headers::new(), now());
    assert!(job.delay <= limits().max_delay);
    let wanted = as_written(&job.envelope);
    assert_eq!(read_by_worker(&job), wanted);
    let spooled = crate::spool::fuzzing::spooled(&job);
    assert!(spooled.delay >= job.delay && spooled.delay - job.delay < Duration::from_millis(1));
    assert_eq!((&spooled.request, spooled.routed), (&job.request, job.routed));
    assert_eq!(read_by_worker(&spooled), wanted);
}

/// The wire has milliseconds.
fn as_written(envelope: &Envelope) -> Envelope {
    let time = |at: Option<Timestamp>| at.map(|at| time_of_ms(at.as_millisecond()).expect("a coarser time"));
    let duration = |duration: Option<Duration>| {
        duration.map(|duration| Duration::from_millis(u64::try_from(duration.as_millis()).expect("bounded")))
    };
    let mut envelope = envelope.clone();
    envelope.expires_at = time(envelope.expires_at);
    envelope.timeout = duration(envelope.timeout);
    envelope.retry.initial = duration(envelope.retry.initial);
    envelope.retry.max = duration(envelope.retry.max);
    envelope
}

fn read_by_worker(job: &Submission) -> Envelope {
    let incoming = Incoming { message: over_the_wire(&job.envelope.encode()), ..Incoming::default() };
    let decoded = Envelope::decode(&incoming, &job.envelope.queue, limits().args);
    let decoded = decoded.unwrap_or_else(|error| panic!("accepted, and unreadable: {error}: {job:?}"));
    assert!(!decoded.adopt);
    decoded.envelope
}

/// A query, a line break, headers.
pub(crate) fn request(data: &[u8]) {
    let mut input = Input(data);
    let Ok(uri) = [b"/v1/jobs?", input.line()].concat().as_slice().try_into() as Result<Uri, _> else {
        return;
    };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri;
    for line in input.0.split(|byte| *byte == b'\n').take(50) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), value) else { continue };
        request.headers_mut().append(name, value);
    }
    let inbound = Inbound::new(request, &BodyMemory::new(1 << 20), Duration::from_secs(1));
    let headers = &inbound.parts.headers;
    for ndjson in [false, true] {
        if let Err(problem) = inbound.media(ndjson) {
            told(&problem);
        }
    }
    let prefer = Prefer::read(headers);
    assert!(prefer.wait.is_none_or(|wait| wait <= Duration::from_secs(u64::from(u32::MAX))));
    let trace = trace_context(headers);
    assert!(crate::job::wire::headers_size(&trace) < 2048);
    match sse::last_event_id(headers, None) {
        Ok(Some(position)) => position_holds(position),
        Ok(None) => {}
        Err(problem) => told(&problem),
    }
    let mut errors = Errors::new(ERRORS_MAX);
    let choice = Choice::of(None, headers, None, &mut errors);
    assert_ne!(choice, Choice::Members(None));
    let [status, queue, kind, tag, q, from, to, fingerprint] = filter::PARAMETERS;
    let values = inbound.query([status, queue, kind, tag, q, from, to, fingerprint], &mut errors);
    let filter = filter::read(values, &mut errors);
    match errors.none_or(Some(filter)) {
        Ok(filter) => filter_holds(&filter),
        Err(problem) => told(&problem),
    }
}

fn filter_holds(filter: &Filter) {
    let written = serde_json::to_string(filter).expect("texts and names");
    let read: Filter = serde_json::from_str(&written).expect("as an act has it in its args");
    assert_eq!(&read, filter);
    crate::acts::fuzzing::filter_is_wanted(filter);
    let place = Position { offset: 7, index: 2 };
    assert_eq!(decode(&encode(place, filter), filter).ok(), Some(place));
}

fn position_holds(position: Position) {
    assert_eq!(position.to_string().parse(), Ok(position));
    assert!(position.offset < 1 << 47);
}

/// A cursor, a position, or both.
pub(crate) fn cursor(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let filters = [Filter::default(), Filter { status: vec![JobStatus::Dead], ..Filter::default() }];
    for filter in &filters {
        match decode(&text, filter) {
            Ok(after) => assert_eq!(encode(after, filter), text, "one place has one cursor"),
            Err(problem) => told(&problem),
        }
    }
    if let Ok(position) = text.parse::<Position>() {
        position_holds(position);
        filters.iter().for_each(|filter| {
            assert_eq!(decode(&encode(position, filter), filter).ok(), Some(position));
        });
    }
}

/// A duration, or a time.
pub(crate) fn duration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match parse_duration(&text) {
        Ok(duration) => {
            let whole =
                Duration::from_millis(u64::try_from(duration.as_millis()).expect("a hundred years at most"));
            let written = config::format_duration(duration);
            assert_eq!(parse_duration(&written), Ok(whole), "{written}");
        }
        Err(error) => bounded(&error.to_string()),
    }
    match fields::time_of(&text) {
        Ok(at) => assert_eq!(at.to_string().parse().ok(), Some(at)),
        Err(error) => bounded(&error),
    }
}
