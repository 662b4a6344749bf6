//! Replies: how a run ended, for a caller that waits. Wire contract version 1.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    name::JobId,
    wire::{HeaderValue, Message, time_of_ms},
};

/// Header names of a reply.
pub mod header {
    /// How the run ended, see [`super::Status`].
    pub const STATUS: &str = "hopline-status";
    /// The job.
    pub const JOB_ID: &str = "hopline-job-id";
    /// The run that ended.
    pub const RUN: &str = "hopline-run";
    /// The attempt that ended it.
    pub const ATTEMPT: &str = "hopline-attempt";
    /// Why it is dead.
    pub const REASON: &str = "hopline-reason";
    /// The worker that ended it.
    pub const WORKER: &str = "hopline-worker";
    /// When the last attempt started, in ms since the epoch.
    pub const STARTED_AT: &str = "hopline-started-at";
    /// When the run ended, in ms since the epoch.
    pub const FINISHED_AT: &str = "hopline-finished-at";
    /// The output was over the limit and is left out.
    pub const OUTPUT_OMITTED: &str = "hopline-output-omitted";
}

/// The final status of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// The handler returned an output.
    Succeeded,
    /// Failed for good; the message waits in the dead-letter queue.
    Dead,
    /// Cancelled before its end.
    Cancelled,
    /// No attempt could start before the job's expiry.
    Expired,
}

impl Status {
    /// The status's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Succeeded, Self::Dead, Self::Cancelled, Self::Expired]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// Body of a reply that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The handler's code, or `error`, `timeout`, `panic`, `crashed`, `expired`, `cancelled`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The job.
    pub job_id: JobId,
    /// Its run.
    pub run: u32,
    /// The last attempt.
    pub attempt: u32,
    /// The end.
    pub status: Status,
    /// Why, if dead.
    pub reason: Option<String>,
    /// Which worker.
    pub worker: Option<String>,
    /// When the last attempt started.
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    pub finished_at: Option<Timestamp>,
    /// Whether the output was left out for its size.
    pub output_omitted: bool,
    /// The output's bytes, or a [`Failure`] in JSON.
    pub body: Bytes,
}

/// A message that is no reply.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("header {0} of the reply is missing or malformed")]
pub struct ReplyError(&'static str);

impl Reply {
    /// The message for this reply, to the caller who knows it by `correlation_id`.
    #[must_use]
    pub fn encode(&self, correlation_id: Option<String>) -> Message {
        let mut message = Message {
            message_id: Some(self.job_id.to_string()),
            kind: Some("hopline.reply".to_owned()),
            content_type: Some("application/json".to_owned()),
            correlation_id,
            body: self.body.clone(),
            ..Message::default()
        };
        let mut put = |name: &str, value: HeaderValue| drop(message.headers.insert(name.to_owned(), value));
        put(header::STATUS, self.status.as_str().into());
        put(header::JOB_ID, self.job_id.to_string().into());
        put(header::RUN, self.run.into());
        put(header::ATTEMPT, self.attempt.into());
        for (name, text) in [(header::REASON, &self.reason), (header::WORKER, &self.worker)] {
            if let Some(text) = text {
                put(name, text.as_str().into());
            }
        }
        for (name, time) in [(header::STARTED_AT, self.started_at), (header::FINISHED_AT, self.finished_at)] {
            if let Some(time) = time {
                put(name, time.as_millisecond().into());
            }
        }
        if self.output_omitted {
            put(header::OUTPUT_OMITTED, true.into());
        }
        message
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// [`ReplyError`] names the header that is missing or malformed.
    pub fn decode(message: &Message) -> Result<Self, ReplyError> {
        let text = |name: &'static str| match message.headers.get(name) {
            Some(HeaderValue::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let int = |name: &'static str| match message.headers.get(name) {
            Some(HeaderValue::Int(value)) => Some(*value),
            _ => None,
        };
        let count = |name| int(name).and_then(|value| u32::try_from(value).ok()).ok_or(ReplyError(name));
        let time = |name| int(name).and_then(time_of_ms);
        Ok(Self {
            job_id: text(header::JOB_ID).and_then(|id| id.parse().ok()).ok_or(ReplyError(header::JOB_ID))?,
            run: count(header::RUN)?,
            attempt: count(header::ATTEMPT)?,
            status: text(header::STATUS).and_then(Status::parse).ok_or(ReplyError(header::STATUS))?,
            reason: text(header::REASON).map(str::to_owned),
            worker: text(header::WORKER).map(str::to_owned),
            started_at: time(header::STARTED_AT),
            finished_at: time(header::FINISHED_AT),
            output_omitted: message.headers.get(header::OUTPUT_OMITTED) == Some(&HeaderValue::Bool(true)),
            body: message.body.clone(),
        })
    }

    /// The failure, where the run was no success.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        if self.status == Status::Succeeded {
            return None;
        }
        let unreadable =
            || Failure { code: "error".into(), message: "the worker's error could not be read".into() };
        Some(serde_json::from_slice(&self.body).unwrap_or_else(|_| unreadable()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_survives_the_wire() {
        let reply = Reply {
            job_id: JobId::new(),
            run: 2,
            attempt: 3,
            status: Status::Dead,
            reason: Some("exhausted".into()),
            worker: Some("w".into()),
            started_at: Timestamp::from_millisecond(1_700_000_000_123).ok(),
            finished_at: None,
            output_omitted: false,
            body: Bytes::from_static(br#"{"code":"c","message":"m"}"#),
        };
        let message = reply.encode(Some("corr".into()));
        assert_eq!(message.correlation_id.as_deref(), Some("corr"));
        assert_eq!(Reply::decode(&message), Ok(reply.clone()));
        assert_eq!(reply.failure(), Some(Failure { code: "c".into(), message: "m".into() }));
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        assert_eq!(Reply::decode(&Message::default()), Err(ReplyError(header::JOB_ID)));
    }
}
