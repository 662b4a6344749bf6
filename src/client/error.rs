//! Why a job was not enqueued, or a call gave no output.

use thiserror::Error;

use crate::{
    amqp::{PublishError, replies::WaitError},
    job::{JobId, NameError, QueueName},
};

/// Why a job was not accepted, or not surely.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The queue does not exist: no worker has declared it, and no configuration names it. Not accepted.
    #[error("no worker has declared queue {0}")]
    UnknownQueue(QueueName),
    /// The delay is longer than `limits.max_delay`. Not accepted.
    #[error("the delay is longer than limits.max_delay")]
    DelayTooLong,
    /// The args are longer than `limits.args`. Not accepted.
    #[error("the args are {len} bytes, over the limit of {limit} (limits.args)")]
    TooLarge {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The broker refused it: a queue with a length limit is full, or its leader did not answer. Not accepted.
    #[error("the broker refused the job: its queue is full, or does not answer")]
    Refused,
    /// The broker does not take it where it goes: the login may not publish it, or what its queue is bound by is gone. Not
    /// accepted.
    #[error("the broker does not take the job: {0}")]
    NotTaken(String),
    /// The broker takes no such message, now or later, as one over its `max_message_size`. Not accepted.
    #[error("the broker takes no such message: {0}")]
    Unfit(String),
    /// There is no connection to the broker. Not accepted.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// A memory or disk alarm of the broker stops all publishing. Not accepted.
    #[error("the broker is blocked by a memory or disk alarm")]
    Blocked,
    /// Too many jobs wait to be published. Not accepted.
    #[error("too many jobs wait to be published")]
    Full,
    /// The broker did not confirm in time. The job may run.
    #[error("the broker did not confirm in time; the job may run")]
    Timeout,
    /// The connection was lost before the confirm. The job may run.
    #[error("the connection was lost before the broker confirmed; the job may run: {0}")]
    Lost(String),
}

impl SubmitError {
    /// One of few words, for traces.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::UnknownQueue(_) => "unknown_queue",
            Self::DelayTooLong => "delay_too_long",
            Self::TooLarge { .. } => "too_large",
            Self::Refused => "refused",
            Self::NotTaken(_) => "not_taken",
            Self::Unfit(_) => "unfit",
            Self::Unavailable(_) => "unavailable",
            Self::Blocked => "blocked",
            Self::Full => "full",
            Self::Timeout => "timeout",
            Self::Lost(_) => "lost",
        }
    }
}

impl From<PublishError> for SubmitError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused => Self::Refused,
            PublishError::Forbidden(why) => Self::NotTaken(why),
            PublishError::Unfit(why) => Self::Unfit(why),
            PublishError::Unavailable(why) => Self::Unavailable(why),
            PublishError::Blocked => Self::Blocked,
            PublishError::Full => Self::Full,
            PublishError::Timeout => Self::Timeout,
            PublishError::Lost(why) => Self::Lost(why),
            // Told apart from an unknown queue where the job is known: the queue is there.
            PublishError::Unroutable => Self::NotTaken(
                "a binding of its queue is gone: `hopline topology apply` makes it again".to_owned(),
            ),
        }
    }
}

/// Why [`Client::enqueue`](super::Client::enqueue) failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The job cannot be written as JSON, or nests too deep.
    #[error("the args cannot be written as JSON: {0}")]
    Args(String),
    /// A kind or queue name breaks its rule.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The job was not accepted, or not surely.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

/// Why [`Client::call`](super::Client::call) gave no output.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// The job was not enqueued, or not surely.
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    /// Nobody can wait for a reply now; the job was not enqueued.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// No reply by the deadline. A job that had not started expires; one that runs goes on.
    #[error("job {0} did not end in time")]
    Timeout(JobId),
    /// The job failed for good.
    #[error("job {id} is dead ({reason}): [{code}] {message}")]
    Dead {
        /// The job.
        id: JobId,
        /// Why it is dead, as on the wire.
        reason: String,
        /// The error's code.
        code: String,
        /// The error's text.
        message: String,
    },
    /// The job was cancelled.
    #[error("job {0} was cancelled")]
    Cancelled(JobId),
    /// No worker started the job before its expiry.
    #[error("job {0} expired before a worker started it")]
    Expired(JobId),
    /// The output is not what the job's type says, or was over the limit and left out.
    #[error("the output of job {id} cannot be read: {detail}")]
    Output {
        /// The job.
        id: JobId,
        /// What is wrong.
        detail: String,
    },
}
