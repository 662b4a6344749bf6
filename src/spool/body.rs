//! How a job is written in a row of the spool's file.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::Lane;
use crate::{
    client::Submission,
    job::{
        Envelope, JobId, Kind, QueueName,
        envelope::RetryOverrides,
        json,
        wire::{HeaderValue, Headers, time_of_ms},
    },
};

/// A job as it is stored, without its id and args. Times are ms since the epoch. What the HTTP front submits has no more:
/// always the first run, attempt and step; replies are not waited for through the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    kind: Kind,
    queue: QueueName,
    /// The queue was chosen by us: it is chosen anew when the job is forwarded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    routed: bool,
    created_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_initial_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_max_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_jitter: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app_id: Option<String>,
    /// Trace context.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    /// Another copy may exist, see `tried` for those that we publish.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsure: bool,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn time(ms: Option<i64>) -> Option<Timestamp> {
    ms.and_then(time_of_ms)
}

impl Body {
    fn of(job: &Submission) -> Self {
        let Submission { envelope, delay, request, routed } = job;
        let text = |value: &HeaderValue| match value {
            HeaderValue::Text(text) => Some(text.clone()),
            _ => None,
        };
        Self {
            kind: envelope.kind.clone(),
            queue: envelope.queue.clone(),
            routed: *routed,
            created_at: envelope.created_at.map(Timestamp::as_millisecond),
            // Rounded up: nothing comes early.
            delay_ms: (!delay.is_zero()).then(|| ms(*delay + Duration::from_nanos(999_999))),
            expires_at: envelope.expires_at.map(Timestamp::as_millisecond),
            timeout_ms: envelope.timeout.map(ms),
            max_attempts: envelope.max_attempts,
            retry_initial_ms: envelope.retry.initial.map(ms),
            retry_factor: envelope.retry.factor,
            retry_max_ms: envelope.retry.max.map(ms),
            retry_jitter: envelope.retry.jitter,
            tags: envelope.tags.clone(),
            app_id: envelope.app_id.clone(),
            headers: (envelope.extra.iter())
                .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
                .collect(),
            request: request.clone(),
            unsure: envelope.unsure,
        }
    }

    fn into_job(self, id: JobId, args: Vec<u8>) -> Submission {
        let duration = |ms: Option<u64>| ms.map(Duration::from_millis);
        let mut envelope = Envelope::new(self.kind, self.queue, Bytes::from(args));
        envelope.id = id;
        envelope.created_at = time(self.created_at);
        envelope.expires_at = time(self.expires_at);
        envelope.timeout = duration(self.timeout_ms);
        envelope.max_attempts = self.max_attempts;
        envelope.retry = RetryOverrides {
            initial: duration(self.retry_initial_ms),
            factor: self.retry_factor,
            max: duration(self.retry_max_ms),
            jitter: self.retry_jitter,
        };
        envelope.tags = self.tags;
        envelope.app_id = self.app_id;
        envelope.extra =
            self.headers.into_iter().map(|(name, text)| (name, HeaderValue::Text(text))).collect::<Headers>();
        envelope.unsure = self.unsure;
        Submission {
            envelope,
            delay: duration(self.delay_ms).unwrap_or_default(),
            request: self.request,
            routed: self.routed,
        }
    }
}

/// A job on its way into the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: JobId,
    pub(super) lane: Lane,
    pub(super) body: String,
    pub(super) args: Bytes,
    request: Option<String>,
}

impl Row {
    pub(super) fn of(job: &Submission) -> Self {
        // Texts, numbers and lists of them: nothing that fails.
        let body = serde_json::to_string(&Body::of(job)).unwrap_or_default();
        let (id, args, request) = (job.envelope.id, job.envelope.args.clone(), job.request.clone());
        Self { id, lane: Lane::of(job), body, args, request }
    }

    /// Whether it is the same request as the one that a row with this id was made for. Requests that have no digest are
    /// the same only if all is.
    pub(super) fn is_same(&self, body: &str, args: &[u8]) -> Result<bool, String> {
        let other = read_job(self.id, body, Vec::new())?;
        Ok(match (&self.request, other.request) {
            (Some(request), Some(other)) => *request == other,
            _ => self.body == body && self.args == args,
        })
    }

    /// What it takes of `spool.max_bytes`.
    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.body.len() + self.args.len()).unwrap_or(u64::MAX)
    }
}

/// The job whose row has this body.
pub(super) fn read_job(id: JobId, body: &str, args: Vec<u8>) -> Result<Submission, String> {
    let body =
        json::read::<Body>(body.as_bytes()).map_err(|error| format!("job {id} cannot be read: {error}"))?;
    Ok(body.into_job(id, args))
}
