//! The envelope: what a job message says, wire contract version 1 (`docs/wire.md`).
//!
//! Decoding is lenient where people publish by hand (numbers as strings, no headers at all) and strict where a
//! guess could do harm (a header of a wrong type, a version from the future). A message that cannot be decoded
//! keeps its bytes: the caller dead-letters it with [`DecodeError::reason`].

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use thiserror::Error;

use super::{
    dead::{self, Reason},
    json::{self, JsonError},
    name::{JobId, Kind, NameError, QueueName},
    wire::{HeaderValue, Headers, Incoming, Message, headers_size, time_of_ms},
};
use crate::retry::{MAX_ATTEMPTS, RetryPolicy};

/// The version of the wire contract that this code writes, and the newest it reads.
pub const VERSION: i64 = 1;
/// Most bytes of headers in a message; RabbitMQ closes the connection above one frame (128 KiB).
pub const HEADERS_MAX: usize = 64 * 1024;
/// Most tags of a job.
pub const TAGS_MAX: usize = 20;
/// Longest tag, in bytes.
pub const TAG_MAX: usize = 100;
/// Longest `correlation_id` and `reply_to` that can be carried: an AMQP short string.
pub const SHORT_MAX: usize = 255;

/// Header names. Always `hopline-*`, whatever the prefix of exchanges and queues.
pub mod header {
    /// Version of the wire contract.
    pub const VERSION: &str = "hopline-version";
    /// Which life of the job, from 1.
    pub const RUN: &str = "hopline-run";
    /// Number of the attempt that this message asks for, from 1.
    pub const ATTEMPT: &str = "hopline-attempt";
    /// How often the job was republished in this run: +1 per retry, snooze or patience.
    pub const STEP: &str = "hopline-step";
    /// How often the job waited for a worker that knows its kind or version.
    pub const PATIENCE: &str = "hopline-patience";
    /// Attempts allowed in all.
    pub const MAX_ATTEMPTS: &str = "hopline-max-attempts";
    /// Longest run of one attempt, in ms.
    pub const TIMEOUT: &str = "hopline-timeout-ms";
    /// When the job was submitted, in ms since the epoch.
    pub const CREATED_AT: &str = "hopline-created-at";
    /// After when no attempt starts, in ms since the epoch.
    pub const EXPIRES_AT: &str = "hopline-expires-at";
    /// When this attempt is due, in ms since the epoch, where that is not when the job was submitted.
    pub const DUE_AT: &str = "hopline-due-at";
    /// Whether another copy of this message may exist.
    pub const UNSURE: &str = "hopline-unsure";
    /// Tags, joined by commas.
    pub const TAGS: &str = "hopline-tags";
    /// Retry policy: first pause, in ms.
    pub const RETRY_INITIAL: &str = "hopline-retry-initial-ms";
    /// Retry policy: factor.
    pub const RETRY_FACTOR: &str = "hopline-retry-factor";
    /// Retry policy: longest pause, in ms.
    pub const RETRY_MAX: &str = "hopline-retry-max-ms";
    /// Retry policy: share of jitter, 0 to 1.
    pub const RETRY_JITTER: &str = "hopline-retry-jitter";
    /// Where the end of each run is told; carried along, also by who does not know it.
    pub const CALLBACK_URL: &str = "hopline-callback-url";
    /// W3C trace context, carried along.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace context, carried along.
    pub const TRACESTATE: &str = "tracestate";
}

/// Headers that [`Envelope`] reads into fields of its own; all others are carried in [`Envelope::extra`].
const KNOWN: [&str; 16] = [
    header::VERSION,
    header::RUN,
    header::ATTEMPT,
    header::STEP,
    header::PATIENCE,
    header::MAX_ATTEMPTS,
    header::TIMEOUT,
    header::CREATED_AT,
    header::EXPIRES_AT,
    header::DUE_AT,
    header::UNSURE,
    header::TAGS,
    header::RETRY_INITIAL,
    header::RETRY_FACTOR,
    header::RETRY_MAX,
    header::RETRY_JITTER,
];

/// Why a message is not a job we can run.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// No `type` property.
    #[error("no `type` property: it names the kind of job")]
    NoKind,
    /// The `type` property is no kind.
    #[error(transparent)]
    Kind(#[from] NameError),
    /// The body is not JSON, or too deep.
    #[error("args are {0}")]
    Args(#[from] JsonError),
    /// The body is too long.
    #[error("args are {len} bytes, over the limit of {limit}")]
    Oversize {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The headers are too long to be republished.
    #[error("headers are {len} bytes, over the limit of {HEADERS_MAX}")]
    Headers {
        /// Bytes found, roughly.
        len: usize,
    },
    /// A header of ours with a value that it cannot have.
    #[error("header {name} must be {expected}")]
    Header {
        /// Its name.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// A newer wire contract.
    #[error("wire version {0} is newer than this worker knows ({VERSION}): deploy workers before producers")]
    Version(i64),
}

impl DecodeError {
    /// The reason a message with this error is dead for.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Version(_) => Reason::UnsupportedVersion,
            Self::Oversize { .. } | Self::Headers { .. } => Reason::Oversize,
            _ => Reason::Undecodable,
        }
    }
}

/// The parts of a retry policy that a job sets for itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RetryOverrides {
    /// The first pause.
    pub initial: Option<Duration>,
    /// The factor.
    pub factor: Option<f64>,
    /// The longest pause.
    pub max: Option<Duration>,
    /// The share of jitter.
    pub jitter: Option<f64>,
}

impl RetryOverrides {
    /// `policy` with what is set here in its place.
    #[must_use]
    pub fn over(&self, policy: RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_attempts: policy.max_attempts,
            initial: self.initial.unwrap_or(policy.initial),
            factor: self.factor.unwrap_or(policy.factor),
            max: self.max.unwrap_or(policy.max),
            jitter: self.jitter.unwrap_or(policy.jitter),
        }
    }
}

/// A job as a message says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The job.
    pub id: JobId,
    /// Its kind.
    pub kind: Kind,
    /// The queue it waits in.
    pub queue: QueueName,
    /// Its args: the bytes of one JSON text, as they came.
    pub args: Bytes,
    /// Which life, from 1.
    pub run: u32,
    /// The attempt that this message asks for, from 1.
    pub attempt: u32,
    /// Republishes in this run.
    pub step: u32,
    /// Waits for a worker that knows the kind.
    pub patience: u32,
    /// Attempts allowed in all, if the job says.
    pub max_attempts: Option<u32>,
    /// Longest run of one attempt, if the job says.
    pub timeout: Option<Duration>,
    /// When it was submitted, if known.
    pub created_at: Option<Timestamp>,
    /// After when no attempt starts.
    pub expires_at: Option<Timestamp>,
    /// When this attempt is due, where that is not when the job was submitted.
    pub due_at: Option<Timestamp>,
    /// Whether another copy may exist.
    pub unsure: bool,
    /// Tags.
    pub tags: Vec<String>,
    /// Its own retry policy.
    pub retry: RetryOverrides,
    /// Where its reply goes.
    pub reply_to: Option<String>,
    /// What the caller knows the reply by.
    pub correlation_id: Option<String>,
    /// Who published it.
    pub app_id: Option<String>,
    /// Headers that are not ours, carried along.
    pub extra: Headers,
}

/// A decoded message.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The job.
    pub envelope: Envelope,
    /// The message had no id: the one in the envelope was made now, and the next delivery would get another.
    /// Such a message is published once more with its id, and acked, before it may run.
    pub adopt: bool,
}

impl Envelope {
    /// A job to be run now, with nothing but what it must have.
    #[must_use]
    pub fn new(kind: Kind, queue: QueueName, args: Bytes) -> Self {
        Self {
            id: JobId::new(),
            kind,
            queue,
            args,
            run: 1,
            attempt: 1,
            step: 0,
            patience: 0,
            max_attempts: None,
            timeout: None,
            created_at: None,
            expires_at: None,
            due_at: None,
            unsure: false,
            tags: Vec::new(),
            retry: RetryOverrides::default(),
            reply_to: None,
            correlation_id: None,
            app_id: None,
            extra: Headers::new(),
        }
    }

    /// The message for this job.
    #[must_use]
    pub fn encode(&self) -> Message {
        let mut headers = self.extra.clone();
        let mut put = |name: &str, value: HeaderValue| drop(headers.insert(name.to_owned(), value));
        put(header::VERSION, VERSION.into());
        put(header::RUN, self.run.into());
        put(header::ATTEMPT, self.attempt.into());
        if self.step > 0 {
            put(header::STEP, self.step.into());
        }
        if self.patience > 0 {
            put(header::PATIENCE, self.patience.into());
        }
        if let Some(max) = self.max_attempts {
            put(header::MAX_ATTEMPTS, max.into());
        }
        for (name, value) in [
            (header::TIMEOUT, self.timeout),
            (header::RETRY_INITIAL, self.retry.initial),
            (header::RETRY_MAX, self.retry.max),
        ] {
            if let Some(value) = value {
                put(name, i64::try_from(value.as_millis()).unwrap_or(i64::MAX).into());
            }
        }
        for (name, value) in
            [(header::RETRY_FACTOR, self.retry.factor), (header::RETRY_JITTER, self.retry.jitter)]
        {
            if let Some(value) = value {
                put(name, HeaderValue::Double(value));
            }
        }
        for (name, value) in [
            (header::CREATED_AT, self.created_at),
            (header::EXPIRES_AT, self.expires_at),
            (header::DUE_AT, self.due_at),
        ] {
            if let Some(value) = value {
                put(name, value.as_millisecond().into());
            }
        }
        if self.unsure {
            put(header::UNSURE, true.into());
        }
        if !self.tags.is_empty() {
            put(header::TAGS, self.tags.join(",").into());
        }
        Message {
            message_id: Some(self.id.to_string()),
            kind: Some(self.kind.to_string()),
            content_type: Some("application/json".to_owned()),
            content_encoding: None,
            correlation_id: self.correlation_id.clone(),
            reply_to: self.reply_to.clone(),
            app_id: self.app_id.clone(),
            timestamp: self.created_at.and_then(|at| u64::try_from(at.as_second()).ok()),
            headers,
            body: self.args.clone(),
        }
    }

    /// Reads a message that came from `queue`, whose args may have at most `limit` bytes.
    ///
    /// A message that carries the marks of a dead job (moved back from a dead-letter queue by hand) is a replay:
    /// it starts the next run, with fresh attempts and no expiry.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong; the message itself is untouched.
    pub fn decode(incoming: &Incoming, queue: &QueueName, limit: usize) -> Result<Decoded, DecodeError> {
        let message = &incoming.message;
        check_sizes(message, limit)?;
        let read = Reader(&message.headers);
        let version = read.int(header::VERSION, 0, i64::MAX)?.unwrap_or(VERSION);
        if version > VERSION {
            return Err(DecodeError::Version(version));
        }
        let kind =
            Kind::parse(message.kind.as_deref().filter(|kind| !kind.is_empty()).ok_or(DecodeError::NoKind)?)?;
        let (id, adopt) = identify(message, queue);
        let mut envelope = Self {
            id,
            kind,
            queue: queue.clone(),
            args: message.body.clone(),
            run: read.count(header::RUN, u32::MAX)?.unwrap_or(1),
            attempt: read.count(header::ATTEMPT, u32::MAX - 1)?.unwrap_or(1),
            step: read.counter(header::STEP)?,
            patience: read.counter(header::PATIENCE)?,
            max_attempts: read.count(header::MAX_ATTEMPTS, MAX_ATTEMPTS)?,
            timeout: read.duration(header::TIMEOUT)?.filter(|timeout| !timeout.is_zero()),
            created_at: read.time(header::CREATED_AT)?,
            expires_at: read.time(header::EXPIRES_AT)?,
            due_at: read.time(header::DUE_AT)?,
            unsure: read.flag(header::UNSURE)?,
            tags: read.tags()?,
            retry: RetryOverrides {
                initial: read.duration(header::RETRY_INITIAL)?,
                factor: read.double(header::RETRY_FACTOR, 1.0, 100.0, "a number from 1 to 100")?,
                max: read.duration(header::RETRY_MAX)?,
                jitter: read.double(header::RETRY_JITTER, 0.0, 1.0, "a number from 0 to 1")?,
            },
            reply_to: message.reply_to.clone().filter(|to| !to.is_empty()),
            correlation_id: message.correlation_id.clone(),
            app_id: message.app_id.clone(),
            extra: carried(&message.headers),
        };
        if dead::is_marked(&message.headers) {
            envelope.start_next_run();
        }
        json::check(&message.body)?;
        Ok(Decoded { envelope, adopt })
    }

    /// Makes this the first attempt of the job's next run: fresh attempts, no expiry, no marks of death.
    pub fn start_next_run(&mut self) {
        self.run = self.run.saturating_add(1);
        (self.attempt, self.step, self.patience) = (1, 0, 0);
        (self.expires_at, self.due_at) = (None, None);
        dead::unmark(&mut self.extra);
    }

    /// The same job, asking for the next attempt.
    #[must_use]
    pub fn next_attempt(mut self) -> Self {
        self.attempt = self.attempt.saturating_add(1);
        self.patience = 0;
        self.next_step()
    }

    /// The same job and attempt, republished once more.
    #[must_use]
    pub fn next_step(mut self) -> Self {
        self.step = self.step.saturating_add(1);
        self.due_at = None;
        self
    }

    /// The same, due in `delay` from now.
    #[must_use]
    pub fn due_in(mut self, delay: Duration) -> Self {
        self.due_at = Timestamp::now().checked_add(delay).ok();
        self
    }

    /// When this attempt is due or was, as far as that is known.
    #[must_use]
    pub fn due(&self) -> Option<Timestamp> {
        self.due_at.or(self.created_at.filter(|_| self.run == 1 && self.step == 0))
    }

    /// What names one asking for one attempt: copies of the same message share it, republished ones do not.
    #[must_use]
    pub fn key(&self) -> (JobId, u32, u32) {
        (self.id, self.run, self.step)
    }
}

fn check_sizes(message: &Message, limit: usize) -> Result<(), DecodeError> {
    if message.body.len() > limit {
        return Err(DecodeError::Oversize { len: message.body.len(), limit });
    }
    match headers_size(&message.headers) {
        len if len > HEADERS_MAX => Err(DecodeError::Headers { len }),
        _ => Ok(()),
    }
}

/// The job's id, and whether it was made just now.
fn identify(message: &Message, queue: &QueueName) -> (JobId, bool) {
    match message.message_id.as_deref() {
        None | Some("") => (JobId::new(), true),
        Some(text) => (text.parse().unwrap_or_else(|_| JobId::from_foreign(queue, text)), false),
    }
}

/// The id that `message` is known by in logs and dead letters, even where the rest of it cannot be read.
#[must_use]
pub fn id_of(message: &Message, queue: &QueueName) -> JobId {
    identify(message, queue).0
}

/// How often a message waited for a newer worker; 0 where the header is missing or broken, or of an earlier run.
#[must_use]
pub fn patience_of(message: &Message) -> u32 {
    if dead::is_marked(&message.headers) {
        return 0;
    }
    Reader(&message.headers).counter(header::PATIENCE).unwrap_or(0)
}

/// Where a message stands in the life of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which life, from 1.
    pub run: u32,
    /// The attempt that it asks for, from 1.
    pub attempt: u32,
    /// Republishes in this run.
    pub step: u32,
}

/// Where a message stands that cannot be decoded: what is missing or broken counts as at the beginning.
#[must_use]
pub fn place_of(message: &Message) -> Place {
    let read = Reader(&message.headers);
    let run = read.count(header::RUN, u32::MAX).ok().flatten().unwrap_or(1);
    if dead::is_marked(&message.headers) {
        return Place { run: run.saturating_add(1), attempt: 1, step: 0 };
    }
    let attempt = read.count(header::ATTEMPT, u32::MAX - 1).ok().flatten().unwrap_or(1);
    Place { run, attempt, step: read.counter(header::STEP).unwrap_or(0) }
}

/// A message that cannot be decoded, as it may be published again: everything as it came, but for the broker's own
/// marks. One that carries the marks of a dead job was moved here by hand: it begins its next run.
#[must_use]
pub fn raw_copy(message: &Message, queue: &QueueName) -> Message {
    let mut copy = Message { message_id: Some(id_of(message, queue).to_string()), ..message.clone() };
    copy.headers = carried_all(&message.headers);
    if dead::is_marked(&copy.headers) {
        dead::unmark(&mut copy.headers);
        for name in [header::ATTEMPT, header::STEP, header::PATIENCE, header::EXPIRES_AT, header::DUE_AT] {
            copy.headers.remove(name);
        }
        copy.headers.insert(header::RUN.to_owned(), place_of(message).run.into());
    }
    copy
}

/// A copy of a message that this worker cannot read, to be tried again later, with one more `hopline-patience` and
/// `hopline-step`.
#[must_use]
pub fn patient_copy(message: &Message, queue: &QueueName) -> Message {
    let mut copy = raw_copy(message, queue);
    let (patience, step) = (patience_of(&copy), place_of(&copy).step);
    copy.headers.insert(header::PATIENCE.to_owned(), patience.saturating_add(1).into());
    copy.headers.insert(header::STEP.to_owned(), step.saturating_add(1).into());
    copy.headers.remove(header::DUE_AT);
    copy
}

/// The headers of a foreign message that may be published again: not the broker's (`x-death` and its kin make
/// RabbitMQ before 4.0.1 drop a message as a cycle, a copied `x-delivery-count` convicts innocents) and not
/// those that route (`CC`, `BCC`).
#[must_use]
pub fn carried_all(headers: &Headers) -> Headers {
    let keep = |name: &str| !(name.starts_with("x-") || name == "CC" || name == "BCC");
    headers.iter().filter(|(name, _)| keep(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn carried(headers: &Headers) -> Headers {
    let mut rest = carried_all(headers);
    rest.retain(|name, _| !KNOWN.contains(&name.as_str()));
    rest
}

/// Reads our headers: numbers may be text, because people type them into the management UI.
struct Reader<'a>(&'a BTreeMap<String, HeaderValue>);

impl Reader<'_> {
    fn int(&self, name: &'static str, low: i64, high: i64) -> Result<Option<i64>, DecodeError> {
        let value = match self.0.get(name) {
            None | Some(HeaderValue::Void) => return Ok(None),
            Some(HeaderValue::Int(value)) => Some(*value),
            Some(HeaderValue::Text(text)) => text.trim().parse().ok(),
            #[expect(clippy::cast_possible_truncation, reason = "whole and within i64 by the guard")]
            Some(HeaderValue::Double(value)) if value.fract() == 0.0 && value.abs() < 9e15 => {
                Some(*value as i64)
            }
            Some(_) => None,
        };
        match value.filter(|value| (low..=high).contains(value)) {
            Some(value) => Ok(Some(value)),
            None => Err(DecodeError::Header { name, expected: "a whole number in its range" }),
        }
    }

    fn count(&self, name: &'static str, high: u32) -> Result<Option<u32>, DecodeError> {
        Ok(self.int(name, 1, i64::from(high))?.and_then(|value| u32::try_from(value).ok()))
    }

    fn counter(&self, name: &'static str) -> Result<u32, DecodeError> {
        Ok(self.int(name, 0, i64::from(u32::MAX))?.and_then(|value| u32::try_from(value).ok()).unwrap_or(0))
    }

    fn duration(&self, name: &'static str) -> Result<Option<Duration>, DecodeError> {
        Ok(self.int(name, 0, i64::MAX)?.map(|ms| Duration::from_millis(ms.unsigned_abs())))
    }

    fn time(&self, name: &'static str) -> Result<Option<Timestamp>, DecodeError> {
        if let Some(HeaderValue::Time(seconds)) = self.0.get(name) {
            let time = i64::try_from(*seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
            return time.map(Some).ok_or(DecodeError::Header { name, expected: "a time" });
        }
        let Some(ms) = self.int(name, i64::MIN, i64::MAX)? else { return Ok(None) };
        time_of_ms(ms).map(Some).ok_or(DecodeError::Header { name, expected: "ms since the epoch" })
    }

    fn double(
        &self,
        name: &'static str,
        low: f64,
        high: f64,
        expected: &'static str,
    ) -> Result<Option<f64>, DecodeError> {
        #[expect(clippy::cast_precision_loss, reason = "only small numbers pass the range")]
        let value = match self.0.get(name) {
            None | Some(HeaderValue::Void) => return Ok(None),
            Some(HeaderValue::Double(value)) => Some(*value),
            Some(HeaderValue::Int(value)) => Some(*value as f64),
            Some(HeaderValue::Text(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        match value.filter(|value| (low..=high).contains(value)) {
            Some(value) => Ok(Some(value)),
            None => Err(DecodeError::Header { name, expected }),
        }
    }

    fn flag(&self, name: &'static str) -> Result<bool, DecodeError> {
        match self.0.get(name) {
            None | Some(HeaderValue::Void) => Ok(false),
            Some(HeaderValue::Bool(value)) => Ok(*value),
            Some(HeaderValue::Int(value @ (0 | 1))) => Ok(*value == 1),
            Some(HeaderValue::Text(text)) if matches!(text.as_str(), "true" | "1") => Ok(true),
            Some(HeaderValue::Text(text)) if matches!(text.as_str(), "false" | "0" | "") => Ok(false),
            Some(_) => Err(DecodeError::Header { name, expected: "true or false" }),
        }
    }

    fn tags(&self) -> Result<Vec<String>, DecodeError> {
        let wrong = DecodeError::Header { name: header::TAGS, expected: "tags joined by commas" };
        match self.0.get(header::TAGS) {
            None | Some(HeaderValue::Void) => Ok(Vec::new()),
            Some(HeaderValue::Text(text)) => {
                let tags: Vec<String> =
                    text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
                let fits = tags.len() <= TAGS_MAX && tags.iter().all(|tag| tag.len() <= TAG_MAX);
                if fits { Ok(tags) } else { Err(wrong) }
            }
            Some(_) => Err(wrong),
        }
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
