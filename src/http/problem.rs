//! What the HTTP interface says when it cannot do what was asked: RFC 9457 problems with stable codes.
//!
//! One table holds each code's status and title; `docs/http.md` repeats it, and a test compares the two. A detail
//! is for people and may change; a code never does.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

use super::{
    answer::{self, Shown},
    fields::{Errors, FieldError},
    keyed,
};
use crate::{
    client::{SubmitError, WaitError},
    job::{JobId, json::JsonError},
    record::{RecordError, model::Summary},
};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:ident $code:literal $title:literal;)*) => {
        /// The stable code of a problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code, in order of status.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The HTTP status it is answered with.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// The code on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// A title for people, the same for each problem of this code.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON; the detail gives line and column.
    MalformedJson = BAD_REQUEST "malformed_json" "The body is not valid JSON";
    /// The body's framing broke, or the client stopped sending.
    UnreadableBody = BAD_REQUEST "unreadable_body" "The body could not be read";
    /// No key, or none that holds.
    Unauthorized = UNAUTHORIZED "unauthorized" "The request has no API key that holds";
    /// The `Host` is no name of this server.
    BadHost = FORBIDDEN "bad_host" "The Host header names another server";
    /// A browser sent this from a page of another origin.
    CrossOrigin = FORBIDDEN "cross_origin" "The request comes from another origin";
    /// The key does not have the scope of this call.
    ScopeMissing = FORBIDDEN "scope_missing" "The API key does not have the scope";
    /// The key is not for this queue.
    QueueForbidden = FORBIDDEN "queue_forbidden" "The API key is not for this queue";
    /// No such path.
    NotFound = NOT_FOUND "not_found" "There is nothing at this path";
    /// No job of this id is known.
    JobNotFound = NOT_FOUND "job_not_found" "There is no such job";
    /// There is no queue of this name.
    QueueNotFound = NOT_FOUND "queue_not_found" "There is no such queue";
    /// No dead job has this fingerprint.
    UnknownGroup = NOT_FOUND "unknown_group" "There is no such group of dead jobs";
    /// The job succeeded; its output was too long to be recorded, or its kind is not recorded.
    OutputNotRecorded = NOT_FOUND "output_not_recorded" "The output was not recorded";
    /// The path has other methods; `Allow` names them.
    MethodNotAllowed = METHOD_NOT_ALLOWED "method_not_allowed" "The path does not have this method";
    /// The client sent its head or its body too slowly.
    RequestTimeout = REQUEST_TIMEOUT "request_timeout" "The request did not arrive in time";
    /// RPC: the job was cancelled.
    JobCancelled = CONFLICT "job_cancelled" "The job was cancelled";
    /// A request with this id or key is being worked on.
    InFlight = CONFLICT "in_flight" "The first request with this id or key is still being worked on";
    /// The job has not ended.
    NotFinished = CONFLICT "not_finished" "The job has not ended yet";
    /// The job ended without an output.
    NoOutput = CONFLICT "no_output" "The job ended without an output";
    /// The job has ended: it cannot be cancelled any more.
    AlreadyFinished = CONFLICT "already_finished" "The job has already ended";
    /// Only a dead job can be replayed.
    NotDead = CONFLICT "not_dead" "The job cannot be replayed";
    /// Body, args or an item over its limit of bytes.
    TooLarge = PAYLOAD_TOO_LARGE "too_large" "The request is over a limit of bytes";
    /// More items in a batch than allowed.
    TooManyItems = PAYLOAD_TOO_LARGE "too_many_items" "The batch has too many items";
    /// A content type or encoding that this call does not take.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE "unsupported_media_type" "The body has the wrong content type";
    /// Unknown members, bad values; `errors` names each.
    InvalidRequest = UNPROCESSABLE_ENTITY "invalid_request" "The request is not valid";
    /// A cursor that was not given out for this list.
    BadCursor = UNPROCESSABLE_ENTITY "bad_cursor" "The cursor is not one of this list";
    /// A `Last-Event-ID` that is no position in the event log.
    BadLastEventId = UNPROCESSABLE_ENTITY "bad_last_event_id" "The last event id is no position in the event log";
    /// JSON that is nested too deep.
    TooDeep = UNPROCESSABLE_ENTITY "too_deep" "The JSON is nested too deep";
    /// Part of the interface, but not available in this version.
    NotSupported = UNPROCESSABLE_ENTITY "not_supported" "The request asks for what is not available";
    /// The queue exists nowhere.
    UnknownQueue = UNPROCESSABLE_ENTITY "unknown_queue" "The queue does not exist";
    /// An idempotency key that is none, is given twice, or means nothing there.
    BadIdempotencyKey = UNPROCESSABLE_ENTITY "bad_idempotency_key" "The idempotency key is not valid";
    /// Another request has this id or key.
    KeyReused = UNPROCESSABLE_ENTITY "key_reused" "The id or key belongs to another request";
    /// RPC: the handler said that trying again is pointless.
    JobFatal = UNPROCESSABLE_ENTITY "job_fatal" "The job failed for good";
    /// The key has used up its rate.
    RateLimited = TOO_MANY_REQUESTS "rate_limited" "The API key makes too many requests";
    /// Our mistake; the log has the request id.
    Internal = INTERNAL_SERVER_ERROR "internal" "The server made a mistake";
    /// RPC: the job is dead.
    JobDead = BAD_GATEWAY "job_dead" "The job is dead";
    /// RPC: the job succeeded and its output cannot be given.
    OutputOmitted = BAD_GATEWAY "output_omitted" "The job succeeded without an output that can be shown";
    /// Too many requests await their confirm.
    Overloaded = SERVICE_UNAVAILABLE "overloaded" "Too many requests at once";
    /// Too many callers wait for the end of a job.
    WaitersFull = SERVICE_UNAVAILABLE "waiters_full" "Too many callers wait";
    /// Too many event streams.
    StreamsFull = SERVICE_UNAVAILABLE "streams_full" "Too many event streams";
    /// The record does not know yet what it is asked about.
    RecordBehind = SERVICE_UNAVAILABLE "record_behind" "The record is behind the event log";
    /// Request bodies take all the memory they may have.
    BodyMemoryFull = SERVICE_UNAVAILABLE "body_memory_full" "Too many request bodies at once";
    /// No connection to the broker, or its exchange is missing. The job was not accepted.
    BrokerUnavailable = SERVICE_UNAVAILABLE "broker_unavailable" "The broker cannot be reached";
    /// The broker takes nothing: a memory or disk alarm. The job was not accepted.
    BrokerBlocked = SERVICE_UNAVAILABLE "broker_blocked" "The broker takes no messages for now";
    /// The broker refused the message. The job was not accepted.
    BrokerRefused = SERVICE_UNAVAILABLE "broker_refused" "The broker refused the job";
    /// The file of API keys cannot be read.
    AccessUnknown = SERVICE_UNAVAILABLE "access_unknown" "The API keys cannot be read";
    /// As many idempotency keys are kept as may be.
    KeysFull = SERVICE_UNAVAILABLE "keys_full" "Too many ids and keys are kept";
    /// Idempotency keys cannot be written.
    KeysUnavailable = SERVICE_UNAVAILABLE "keys_unavailable" "Ids and keys cannot be kept";
    /// The broker is away, and the spool holds as much as it may.
    SpoolFull = SERVICE_UNAVAILABLE "spool_full" "The spool is full";
    /// The broker is away, and the spool cannot be written.
    SpoolUnavailable = SERVICE_UNAVAILABLE "spool_unavailable" "The spool cannot be written";
    /// The broker did not confirm in time: the job may still run.
    ConfirmTimeout = GATEWAY_TIMEOUT "confirm_timeout" "The broker did not confirm the job in time";
    /// The connection broke before the confirm: the job may still run.
    ConfirmLost = GATEWAY_TIMEOUT "confirm_lost" "The connection or channel broke before the job was confirmed";
    /// RPC: no reply before the deadline.
    WaitTimeout = GATEWAY_TIMEOUT "wait_timeout" "The job did not end in time";
}

/// A problem to answer with.
#[derive(Debug)]
pub(super) struct Problem {
    /// Its code.
    pub(super) code: Code,
    /// For people: what happened, and what to do.
    pub(super) detail: Cow<'static, str>,
    /// What is wrong with each part of the request.
    pub(super) errors: Vec<FieldError>,
    /// The job it is about: set where one exists or may exist.
    pub(super) job: Option<JobId>,
    /// How that job stands.
    pub(super) end: Option<Box<End>>,
    /// It is about a job of an earlier request that was the same.
    pub(super) replayed: bool,
    /// How long to stay away.
    pub(super) retry_after: Option<Duration>,
}

/// How the job stands that a problem is about.
#[derive(Debug)]
pub(super) struct End {
    /// Its record, without args and output.
    pub(super) job: Value,
    /// Its error, if it did not succeed.
    pub(super) error: Option<Value>,
}

/// A problem as it is written.
#[derive(Serialize, schemars::JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct Shape<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Value>,
}

impl Problem {
    /// A problem of this code.
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = match code {
            Code::BrokerUnavailable => Some(Duration::from_secs(2)),
            Code::BrokerBlocked => Some(Duration::from_secs(5)),
            Code::InFlight => Some(Duration::from_secs(1)),
            code if code.status() == StatusCode::SERVICE_UNAVAILABLE => Some(Duration::from_secs(1)),
            _ => None,
        };
        let detail = detail.into();
        Self { code, detail, errors: Vec::new(), job: None, end: None, replayed: false, retry_after }
    }

    /// What is wrong with a body that is no acceptable JSON.
    pub(super) fn json(error: &JsonError) -> Self {
        match error {
            JsonError::TooDeep => Self::new(Code::TooDeep, error.to_string()),
            JsonError::Syntax { .. } => Self::new(Code::MalformedJson, error.to_string()),
        }
    }

    /// The problem of all that `errors` collected, which is something.
    pub(super) fn invalid(errors: Errors) -> Self {
        let (code, errors) = errors.into_list();
        let detail = match errors.as_slice() {
            [error] => error.to_string(),
            _ => "see errors for each problem".to_owned(),
        };
        Self { errors, ..Self::new(code, detail) }
    }

    /// Why `job` was not accepted, or may not have been.
    pub(super) fn submit(error: &SubmitError, job: JobId) -> Self {
        let again = "the job was not accepted; try again";
        match error {
            SubmitError::UnknownQueue(queue) => {
                let detail = format!(
                    "no worker has declared queue {queue:?}: start one that consumes it, or correct the name"
                );
                let errors = vec![FieldError::at("/queue", "no worker has declared it")];
                Self { errors, ..Self::new(Code::UnknownQueue, detail) }
            }
            SubmitError::TooLarge { .. } => {
                Self::new(Code::TooLarge, "the job is longer than the broker takes in one message")
            }
            SubmitError::DelayTooLong => {
                let errors = vec![FieldError::at("/delay", "is longer than the broker's delays can be")];
                Self { errors, ..Self::new(Code::InvalidRequest, "the delay is too long") }
            }
            SubmitError::Refused => Self::new(Code::BrokerRefused, again),
            SubmitError::NotTaken(why) => Self::new(Code::BrokerRefused, format!("{why}; {again}")),
            // Its max_message_size; it says no more than that in words.
            SubmitError::Unfit(why) if why.contains("size") => {
                Self::new(Code::TooLarge, format!("{why}; the job was not accepted"))
            }
            SubmitError::Unfit(why) => {
                Self::new(Code::BrokerRefused, format!("{why}; the job was not accepted"))
            }
            SubmitError::Unavailable(why) => {
                Self::new(Code::BrokerUnavailable, format!("{why}; the job was not accepted; try again"))
            }
            SubmitError::Blocked => Self::new(
                Code::BrokerBlocked,
                "the broker is out of memory or disk; the job was not accepted",
            ),
            SubmitError::Full => {
                Self::new(Code::Overloaded, "too many jobs await their confirm; the job was not accepted")
            }
            SubmitError::Timeout => Self {
                job: Some(job),
                ..Self::new(
                    Code::ConfirmTimeout,
                    "the job may still run: a repeat may run it twice; Location names this one",
                )
            },
            SubmitError::Lost(why) => Self {
                job: Some(job),
                ..Self::new(
                    Code::ConfirmLost,
                    format!(
                        "{why}; the job may still run: a repeat may run it twice; Location names this one"
                    ),
                )
            },
        }
    }

    /// Why something that was asked for was not done, or not surely; to ask again does no harm.
    pub(super) fn act(error: &SubmitError) -> Self {
        match error {
            SubmitError::Unavailable(why) => {
                Self::new(Code::BrokerUnavailable, format!("{why}; nothing was done; try again"))
            }
            SubmitError::Blocked => {
                Self::new(Code::BrokerBlocked, "the broker is out of memory or disk; nothing was done")
            }
            SubmitError::Full => Self::new(Code::Overloaded, "too much awaits its confirm; nothing was done"),
            SubmitError::Timeout => {
                Self::new(Code::ConfirmTimeout, "it may have been done all the same; ask again")
            }
            SubmitError::Lost(why) => {
                Self::new(Code::ConfirmLost, format!("{why}; it may have been done all the same; ask again"))
            }
            error => Self::new(Code::BrokerRefused, format!("{error}; nothing was done; try again")),
        }
    }

    /// Why nobody can wait for a reply now.
    pub(super) fn wait(error: &WaitError) -> Self {
        match error {
            WaitError::Full => Self::new(
                Code::WaitersFull,
                "http.max_waiters callers wait already; the job was not accepted",
            ),
            WaitError::Unavailable(why) => {
                Self::new(Code::BrokerUnavailable, format!("{why}; the job was not accepted; try again"))
            }
        }
    }

    /// Why the record does not answer.
    pub(super) fn record(error: &RecordError) -> Self {
        match error {
            RecordError::Behind(why) => Self::new(Code::RecordBehind, format!("{why}; try again")),
            RecordError::Busy => Self::new(Code::Overloaded, "too much is asked of the record; try again"),
            RecordError::Filter(member) => {
                let mut errors = Errors::new(1);
                errors.parameter(member, "cannot be read");
                Self::invalid(errors)
            }
            error => {
                tracing::error!(%error, "the record cannot be read");
                Self::new(Code::Internal, "the record cannot be read; the log says why")
            }
        }
    }

    /// No job has this id.
    pub(super) fn no_job() -> Self {
        Self::new(Code::JobNotFound, "no job has this id; ended jobs are forgotten after record.retention")
    }

    /// How the job that this is about stands: its record in brief, and its error.
    pub(super) fn about(self, job: &Summary) -> Self {
        let end = End {
            job: serde_json::to_value(Shown::brief(job)).unwrap_or_default(),
            error: answer::failure(job).and_then(|error| serde_json::to_value(error).ok()),
        };
        Self { job: Some(job.id), end: Some(Box::new(end)), ..self }
    }

    /// The problem as JSON text.
    pub(super) fn to_json(&self) -> String {
        let id = self.job.map(|id| serde_json::json!({ "id": id }));
        let shape = Shape {
            r#type: format!("urn:hopline:problem:{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            errors: &self.errors,
            job: self.end.as_ref().map(|end| &end.job).or(id.as_ref()),
            error: self.end.as_ref().and_then(|end| end.error.as_ref()),
        };
        // Text as keys, and nothing that fails.
        serde_json::to_string(&shape).unwrap_or_default()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(pause) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(pause.as_secs()));
        }
        if let Some(job) = self.job {
            answer::name_job(&mut response, job);
        }
        if self.replayed {
            keyed::say_replayed(&mut response);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_ordered() {
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(Code::ALL.is_sorted_by_key(|code| code.status()));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let documented: Vec<&str> = include_str!("../../docs/http.md")
            .lines()
            .skip_while(|line| !line.starts_with("| status | code |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let rows: Vec<String> = Code::ALL
            .iter()
            .map(|code| format!("| {} | `{}` | {} |", code.status().as_u16(), code.as_str(), code.title()))
            .collect();
        assert_eq!(documented.len(), rows.len(), "should be:\n{}", rows.join("\n"));
        for (documented, row) in documented.iter().zip(&rows) {
            assert!(documented.starts_with(row.as_str()), "{documented}\nshould start with\n{row}");
        }
    }

    #[test]
    fn a_problem_has_its_shape_and_headers() {
        let id = JobId::new();
        let problem = Problem::submit(&SubmitError::Timeout, id);
        let value: Value = serde_json::from_str(&problem.to_json()).unwrap();
        assert_eq!(value["type"], "urn:hopline:problem:confirm_timeout");
        assert_eq!(value["status"], 504);
        assert_eq!(value["job"]["id"], id.to_string());
        assert!(value.get("errors").is_none());
        let response = problem.into_response();
        assert_eq!(response.headers()["location"], format!("/v1/jobs/{id}"));
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        for error in [
            SubmitError::Refused,
            SubmitError::NotTaken("a binding is gone".into()),
            SubmitError::Unavailable("away".into()),
            SubmitError::Blocked,
            SubmitError::Full,
        ] {
            let response = Problem::submit(&error, id).into_response();
            assert_eq!(response.status(), 503);
            assert!(response.headers().contains_key("retry-after"));
            assert!(!response.headers().contains_key("location"));
        }
        // The broker's own words.
        let large = SubmitError::Unfit(
            "PRECONDITION_FAILED - message size 2 is larger than configured max size 1".into(),
        );
        assert_eq!(Problem::submit(&large, id).code, Code::TooLarge);
        let odd = SubmitError::Unfit("PRECONDITION_FAILED - odd".into());
        assert_eq!(Problem::submit(&odd, id).code, Code::BrokerRefused);
    }
}
