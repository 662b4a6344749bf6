//! What the calls answer when nothing is wrong: the submit answer, and jobs as all calls show them.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use super::spooling::Taken;
use crate::{
    client::Submission,
    event::{AttemptOutcome, EventError, time_text as time},
    job::{JobId, Kind, QueueName},
    record::model::{AttemptRecord, JobRecord, JobStatus, Summary},
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

/// Where to learn more of a job.
#[derive(Debug, Serialize, JsonSchema)]
struct Links {
    #[serde(rename = "self")]
    this: String,
    output: String,
    events: String,
}

/// The answer to a submit that was accepted.
#[derive(Debug, Serialize, JsonSchema)]
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

    /// The answer for whoever has the job now.
    pub(super) fn taken(self, taken: Taken) -> Self {
        match taken {
            Taken::Broker => self,
            Taken::Spool => Self { status: JobStatus::Spooled.as_str(), ..self },
        }
    }

    /// 202 with this answer.
    pub(super) fn response(&self) -> Response {
        let mut response = json_of(StatusCode::ACCEPTED, self);
        name_job(&mut response, self.id);
        response
    }
}

/// Why a run did not succeed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobFailure {
    code: String,
    /// For people.
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The error of a run that has not succeeded: the last attempt's, or for a run that ended without one, what ended it.
pub(super) fn failure(job: &Summary) -> Option<JobFailure> {
    let ended = |code: &str, message: String| EventError { code: code.to_owned(), message };
    let because =
        |text: &str| job.reason.as_deref().map_or(String::new(), |reason| format!("{text}{reason}"));
    let error = match job.status {
        JobStatus::Succeeded => return None,
        JobStatus::Cancelled => {
            let by = job.by.as_deref().map_or(String::new(), |by| format!(" by {by}"));
            Some(ended("cancelled", format!("cancelled{by}{}", because(": "))))
        }
        JobStatus::Expired => {
            Some(ended("expired", "no attempt could start before the job expired".to_owned()))
        }
        JobStatus::Dead => {
            let unknown = || ended(job.reason.as_deref().unwrap_or("error"), String::new());
            Some(job.error.clone().unwrap_or_else(unknown))
        }
        _ => job.error.clone(),
    }?;
    let reason = job.reason.clone().filter(|_| job.status.is_final());
    Some(JobFailure { code: error.code, message: error.message, reason })
}

/// One attempt.
#[derive(Debug, Serialize, JsonSchema)]
struct Attempt<'a> {
    run: u32,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<AttemptOutcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a EventError>,
}

impl<'a> From<&'a AttemptRecord> for Attempt<'a> {
    fn from(attempt: &'a AttemptRecord) -> Self {
        Self {
            run: attempt.run,
            attempt: attempt.attempt,
            worker: attempt.worker.as_deref(),
            started_at: attempt.started_at.map(time),
            finished_at: attempt.finished_at.map(time),
            outcome: attempt.outcome,
            error: attempt.error.as_ref(),
        }
    }
}

/// How far an attempt is.
#[derive(Debug, Serialize, JsonSchema)]
struct Progress<'a> {
    percent: u8,
    message: &'a str,
}

/// A job as every call shows it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
pub(super) struct Shown<'a> {
    id: JobId,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a Kind>,
    queue: &'a QueueName,
    status: JobStatus,
    run: u32,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    args: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    args_omitted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    output: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    output_omitted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobFailure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<Attempt<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress<'a>>,
    /// The trace that its submit was part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    purged: bool,
}

impl<'a> Shown<'a> {
    /// What lists show.
    pub(super) fn summary(job: &'a Summary) -> Self {
        let cancelled = Some(job).filter(|job| job.status == JobStatus::Cancelled);
        let asked = job.cancel.as_ref();
        Self {
            id: job.id,
            kind: job.kind.as_ref(),
            queue: &job.queue,
            status: job.status,
            run: job.run,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            args: None,
            args_omitted: false,
            output: None,
            output_omitted: false,
            error: failure(job),
            attempts: None,
            progress: None,
            trace_id: None,
            tags: &job.tags,
            worker: job.worker.as_deref(),
            created_at: job.created_at.map(time),
            run_at: job.run_at.map(time),
            started_at: job.started_at.map(time),
            finished_at: job.finished_at.map(time),
            expires_at: job.expires_at.map(time),
            cancel_requested_at: asked.map(|asked| time(asked.at)),
            // The one that ended it may be another than the one that was heard of first.
            cancel_requested_by: cancelled
                .and_then(|job| job.by.as_deref())
                .or_else(|| asked.and_then(|asked| asked.by.as_deref())),
            cancel_reason: cancelled
                .and_then(|job| job.reason.as_deref())
                .or_else(|| asked.and_then(|asked| asked.reason.as_deref())),
            fingerprint: job.fingerprint.as_deref(),
            purged: job.purged,
        }
    }

    /// All that is known.
    pub(super) fn record(job: &'a JobRecord) -> Self {
        Self {
            attempts: Some(job.attempts.iter().map(Attempt::from).collect()),
            progress: job
                .progress
                .as_ref()
                .map(|progress| Progress { percent: progress.percent, message: &progress.message }),
            trace_id: job.trace_id.as_deref(),
            ..Self::summary(&job.summary).with_args(job).with_output(job)
        }
    }

    /// With the args, or that they are left out.
    pub(super) fn with_args(self, job: &'a JobRecord) -> Self {
        Self { args: job.args.as_deref(), args_omitted: job.args_omitted, ..self }
    }

    /// With the output, or that it is left out.
    pub(super) fn with_output(self, job: &'a JobRecord) -> Self {
        Self { output: job.output.as_deref(), output_omitted: job.output_omitted, ..self }
    }

    /// What a problem shows, which has the error beside it.
    pub(super) fn brief(job: &'a Summary) -> Self {
        Self { error: None, ..Self::summary(job) }
    }
}

/// An answer with a job's record.
pub(super) fn record(status: StatusCode, job: &JobRecord) -> Response {
    let mut response = json_of(status, &Shown::record(job));
    name_job(&mut response, job.summary.id);
    response
}

#[cfg(test)]
#[path = "answer_tests.rs"]
pub(super) mod tests;
