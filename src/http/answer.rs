//! What the calls answer when nothing is wrong: the submit answer, the record, times.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    client::Submission,
    job::{Envelope, JobId, Reply, Status},
};

/// The header that names the job of an RPC.
const JOB_ID: HeaderName = HeaderName::from_static("hopline-job-id");

/// The job that an answer is about, for the log line.
#[derive(Debug, Clone, Copy)]
pub(super) struct About(pub(super) JobId);

/// An answer with this body as JSON.
pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer with this value as JSON.
pub(super) fn json_of(status: StatusCode, value: &impl Serialize) -> Response {
    // Our own shapes have text as keys and nothing that fails.
    json(status, serde_json::to_vec(value).unwrap_or_default())
}

/// Says which job an answer is about: `Location`, `Hopline-Job-Id` and the log line.
pub(super) fn name_job(response: &mut Response, id: JobId) {
    response.extensions_mut().insert(About(id));
    let text = |text: String| HeaderValue::try_from(text).ok();
    if let (Some(location), Some(id)) = (text(format!("/v1/jobs/{id}")), text(id.to_string())) {
        response.headers_mut().insert(header::LOCATION, location);
        response.headers_mut().insert(JOB_ID, id);
    }
}

/// A time as we answer it: UTC with milliseconds.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Where to learn more of a job.
#[derive(Debug, Serialize)]
struct Links {
    #[serde(rename = "self")]
    this: String,
    output: String,
    events: String,
}

/// The answer to a submit that was accepted.
#[derive(Debug, Serialize)]
pub(super) struct Accepted {
    id: JobId,
    kind: String,
    queue: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<String>,
    links: Links,
}

/// The status of a job that was just accepted.
pub(super) fn status_of(job: &Submission) -> &'static str {
    if job.delay.is_zero() { "queued" } else { "scheduled" }
}

impl Accepted {
    /// The answer for this job.
    pub(super) fn new(job: &Submission) -> Self {
        let envelope = &job.envelope;
        let link = format!("/v1/jobs/{}", envelope.id);
        let run_at = envelope.created_at.filter(|_| !job.delay.is_zero());
        Self {
            id: envelope.id,
            kind: envelope.kind.to_string(),
            queue: envelope.queue.to_string(),
            status: status_of(job),
            created_at: envelope.created_at.map(time),
            run_at: run_at.and_then(|at| at.checked_add(job.delay).ok()).map(time),
            links: Links { output: format!("{link}/output"), events: format!("{link}/events"), this: link },
        }
    }

    /// 202 with this answer.
    pub(super) fn response(&self) -> Response {
        let mut response = json_of(StatusCode::ACCEPTED, self);
        name_job(&mut response, self.id);
        response
    }
}

/// Why a job did not succeed.
#[derive(Debug, Serialize)]
pub(super) struct JobFailure {
    code: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The error of a run that did not succeed.
pub(super) fn failure(reply: &Reply) -> Option<JobFailure> {
    let failure = reply.failure()?;
    Some(JobFailure { code: failure.code, message: failure.message, reason: reply.reason.clone() })
}

/// The output of a run that succeeded: none if it was left out, or is not JSON (of a foreign worker).
pub(super) fn output(reply: &Reply) -> Option<&RawValue> {
    if reply.status != Status::Succeeded || reply.output_omitted {
        return None;
    }
    serde_json::from_slice(&reply.body).ok()
}

/// A job whose run has ended, as far as its submitter and its reply know it.
#[derive(Debug, Serialize)]
pub(super) struct Record<'a> {
    id: JobId,
    kind: &'a str,
    queue: &'a str,
    status: &'static str,
    run: u32,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    output_omitted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobFailure>,
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

impl<'a> Record<'a> {
    /// The record of `job` after `reply`.
    pub(super) fn new(job: &'a Envelope, reply: &'a Reply) -> Self {
        let output = output(reply);
        Self {
            id: job.id,
            kind: job.kind.as_str(),
            queue: job.queue.as_str(),
            status: reply.status.as_str(),
            run: reply.run,
            attempt: reply.attempt,
            max_attempts: job.max_attempts,
            args: serde_json::from_slice(&job.args).ok(),
            output_omitted: reply.status == Status::Succeeded && output.is_none(),
            output,
            error: failure(reply),
            tags: &job.tags,
            worker: reply.worker.as_deref(),
            created_at: job.created_at.map(time),
            started_at: reply.started_at.map(time),
            finished_at: reply.finished_at.map(time),
            expires_at: job.expires_at.map(time),
        }
    }

    /// The record without what may be long.
    pub(super) fn brief(self) -> Self {
        Self { args: None, output: None, error: None, ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::{Kind, QueueName};

    fn envelope(args: &'static str) -> Envelope {
        let (kind, queue) = (Kind::parse("demo.echo").unwrap(), QueueName::parse("default").unwrap());
        let created_at = Some("2030-01-01T00:00:00.0019Z".parse().unwrap());
        Envelope { created_at, ..Envelope::new(kind, queue, Bytes::from_static(args.as_bytes())) }
    }

    fn reply(status: Status, body: &'static str) -> Reply {
        Reply {
            job_id: JobId::new(),
            run: 1,
            attempt: 2,
            status,
            reason: None,
            worker: Some("w".into()),
            started_at: None,
            finished_at: Some(Timestamp::UNIX_EPOCH),
            output_omitted: false,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(time("2030-01-01T02:00:00+02:00".parse().unwrap()), "2030-01-01T00:00:00.000Z");
        assert_eq!(time("1969-12-31T23:59:59.5Z".parse().unwrap()), "1969-12-31T23:59:59.500Z");
    }

    #[test]
    fn a_scheduled_job_says_when() {
        let job = Submission::new(envelope("{}"), Duration::from_secs(90));
        let value = serde_json::to_value(Accepted::new(&job)).unwrap();
        assert_eq!(value["status"], "scheduled");
        assert_eq!(value["created_at"], "2030-01-01T00:00:00.001Z");
        assert_eq!(value["run_at"], "2030-01-01T00:01:30.001Z");
        assert_eq!(value["links"]["output"], format!("/v1/jobs/{}/output", job.envelope.id));
    }

    #[test]
    fn args_and_output_keep_their_bytes() {
        let args = r#"{"b":1.0000000000000000000001, "a":1e2}"#;
        let (job, reply) = (envelope(args), reply(Status::Succeeded, "[12345678901234567890123,  1.50]"));
        let text = serde_json::to_string(&Record::new(&job, &reply)).unwrap();
        assert!(text.contains(args) && text.contains("[12345678901234567890123,  1.50]"), "{text}");
        assert!(!text.contains("output_omitted") && !text.contains("error"));
    }

    #[test]
    fn an_output_that_is_no_json_is_left_out() {
        let job = envelope("{}");
        let reply = reply(Status::Succeeded, "<html>");
        let value = serde_json::to_value(Record::new(&job, &reply)).unwrap();
        assert_eq!(value["output_omitted"], true);
        assert!(value.get("output").is_none());
    }

    #[test]
    fn a_dead_job_has_its_error() {
        let job = envelope("{}");
        let reply =
            Reply { reason: Some("fatal".into()), ..reply(Status::Dead, r#"{"code":"c","message":"m"}"#) };
        let value = serde_json::to_value(Record::new(&job, &reply)).unwrap();
        assert_eq!(value["error"], serde_json::json!({"code": "c", "message": "m", "reason": "fatal"}));
        assert!(value.get("output").is_none() && value.get("output_omitted").is_none());
    }
}
