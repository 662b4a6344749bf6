//! A submit's JSON, checked as a whole and turned into a job. Pure: the clock is handed in.

use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;

use super::{
    fields::{self, Errors, FieldError, Items, Object},
    naming::{self, Choice, NAMING_MEMBERS, Named, SUBMIT},
    problem::{Code, Problem},
    traced,
};
use crate::{
    client::Submission,
    config::Limits,
    egress::Guard,
    job::{
        Envelope, Kind, QueueName,
        envelope::{RetryOverrides, TAG_MAX, TAGS_MAX, header},
        wire::Headers,
    },
    retry::{MAX_ATTEMPTS, RetryPolicy},
};

/// Who published, on the wire.
pub(super) const APP_ID: &str = "hopline-http";
/// Most problems that the answer for one request names.
pub(super) const ERRORS_MAX: usize = 100;
/// Most problems that a batch's answer names for one item.
pub(super) const ITEM_ERRORS_MAX: usize = 16;
/// Longest pause between attempts: what the delay ladder can hold.
const PAUSE_MAX: Duration = Duration::from_secs(310 * 86_400);

/// The members of a job.
pub(super) const MEMBERS: [&str; 12] = [
    "kind",
    "args",
    "queue",
    "delay",
    "run_at",
    "expires_in",
    "expires_at",
    "timeout",
    "max_attempts",
    "retry",
    "tags",
    "callback_url",
];
const RETRY_MEMBERS: [&str; 4] = ["initial", "factor", "max", "jitter"];

/// A job as a client asks for it, checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Draft {
    /// Its id and the request's digest, if the client chose the id.
    pub(super) named: Option<Named>,
    /// What is wrong with its times if it is submitted now, but was not, maybe, when it was first.
    pub(super) too_late: Option<FieldError>,
    /// What to run.
    pub(super) kind: Kind,
    /// Where, if the client says.
    pub(super) queue: Option<QueueName>,
    /// The args' bytes, as they came.
    pub(super) args: Bytes,
    /// When, if not now.
    pub(super) run_at: Option<Timestamp>,
    /// After when no attempt starts.
    pub(super) expires_at: Option<Timestamp>,
    /// Longest attempt.
    pub(super) timeout: Option<Duration>,
    /// Attempts in all.
    pub(super) max_attempts: Option<u32>,
    /// The job's own retry policy.
    pub(super) retry: RetryOverrides,
    /// Tags.
    pub(super) tags: Vec<String>,
    /// Where its end is told.
    pub(super) callback: Option<String>,
}

impl Draft {
    /// Reads a job from `text`, which lies in `source`, as of `now`. Args are carried as a part of `source`; `choice`
    /// says where its id is from; `callbacks` what may be told of its end, where anything may.
    ///
    /// # Errors
    /// The problem, with all that is wrong; `errors` may hold what is wrong already.
    pub(super) fn read(
        text: &str,
        source: &Bytes,
        limits: &Limits,
        callbacks: Option<&Guard>,
        now: Timestamp,
        choice: Choice,
        mut errors: Errors,
    ) -> Result<Self, Problem> {
        let errors_ref = &mut errors;
        let mut object = Object::parse(text, "")?;
        let id = choice.read(&mut object, errors_ref);
        let named = id.map(|id| Named { id, digest: naming::digest_of(SUBMIT, &object) });
        let kind = read_kind(&mut object, errors_ref);
        let args = match object.take_raw("args", errors_ref) {
            Some(raw) => {
                check_args(raw.get().len(), limits)?;
                source.slice_ref(raw.get().as_bytes())
            }
            None => Bytes::from_static(b"{}"),
        };
        let queue = object.take("queue", errors_ref, |raw| name(raw, QueueName::parse).and_then(open_queue));
        let run_at = read_run_at(&mut object, limits, now, errors_ref);
        let mut too_late = None;
        let late = named.is_some().then_some(&mut too_late);
        let expires_at = read_expires_at(&mut object, run_at, now, late, errors_ref);
        let timeout = object.take("timeout", errors_ref, |raw| fields::duration(raw).and_then(timeout));
        let max_attempts = object.take("max_attempts", errors_ref, |raw| fields::whole(raw, 1, MAX_ATTEMPTS));
        let retry = read_retry(&mut object, errors_ref);
        let tags = read_tags(&mut object, errors_ref);
        let callback = match callbacks {
            Some(guard) => object.take("callback_url", errors_ref, |raw| callback_url(raw, guard)),
            None if object.take_raw("callback_url", errors_ref).is_some() => {
                errors.unsupported_at(
                    "/callback_url",
                    "this server sends no callbacks: it has no callbacks.secret",
                );
                None
            }
            None => None,
        };
        match choice {
            Choice::Members(_) => object.finish(&[&MEMBERS[..], &NAMING_MEMBERS].concat(), &mut errors),
            _ => object.finish(&MEMBERS, &mut errors),
        }
        let draft = kind.map(|kind| Self {
            named,
            too_late,
            kind,
            queue,
            args,
            run_at: run_at.filter(|at| *at > now),
            expires_at,
            timeout,
            max_attempts,
            retry,
            tags,
            callback,
        });
        errors.none_or(draft)
    }

    /// The job to be submitted, in its queue: `queue_of` says which where the client does not.
    pub(super) fn into_submission(
        self,
        queue_of: impl FnOnce(&Kind) -> QueueName,
        trace: &Headers,
        now: Timestamp,
    ) -> Submission {
        let routed = self.queue.is_none();
        let queue = self.queue.unwrap_or_else(|| queue_of(&self.kind));
        let mut envelope = Envelope::new(self.kind, queue, self.args);
        envelope.created_at = Some(now);
        envelope.expires_at = self.expires_at;
        envelope.timeout = self.timeout;
        envelope.max_attempts = self.max_attempts;
        envelope.retry = self.retry;
        envelope.tags = self.tags;
        envelope.app_id = Some(APP_ID.to_owned());
        envelope.extra = trace.clone();
        if let Some(url) = self.callback {
            envelope.extra.insert(header::CALLBACK_URL.to_owned(), url.into());
        }
        let delay = self.run_at.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
        let mut job = Submission { routed, ..Submission::new(envelope, delay.unwrap_or_default()) };
        if let Some(named) = self.named {
            named.put_on(&mut job);
        }
        job
    }
}

/// Refuses the kinds of acts and callbacks: they are asked for by calls of their own, which check what they are about.
///
/// # Errors
/// What is wrong.
pub(super) fn open_kind(kind: Kind) -> Result<Kind, String> {
    if kind.as_str().starts_with(crate::acts::OWN_KINDS) {
        return Err("is reserved: kinds that begin with `hopline.` are acts and callbacks, which have calls of their own"
            .to_owned());
    }
    Ok(kind)
}

/// Refuses the queues of acts and callbacks.
///
/// # Errors
/// What is wrong.
pub(super) fn open_queue(queue: QueueName) -> Result<QueueName, String> {
    if crate::acts::is_own_queue(&queue) {
        return Err("is reserved".to_owned());
    }
    Ok(queue)
}

/// Checks the length of args.
///
/// # Errors
/// The problem, when they are over `limits.args`.
pub(super) fn check_args(len: usize, limits: &Limits) -> Result<(), Problem> {
    if len <= limits.args {
        return Ok(());
    }
    let detail = format!("args are {len} bytes; the limit is {} (limits.args)", limits.args);
    Err(Problem::new(Code::TooLarge, detail))
}

/// Checks a URL as far as that can be done without asking for its addresses.
fn callback_url(raw: &RawValue, guard: &Guard) -> Result<String, String> {
    let url = fields::string(raw)?;
    guard.check(&url).map(|()| url).map_err(|refusal| refusal.to_string())
}

/// Checks the longest run of an attempt.
pub(super) fn timeout(timeout: Duration) -> Result<Duration, String> {
    // Shorter ones would be no timeout at all: the wire has milliseconds.
    if timeout < Duration::from_millis(1) { Err("must be at least 1 ms".to_owned()) } else { Ok(timeout) }
}

fn name<T, E: std::fmt::Display>(
    raw: &RawValue,
    parse: impl Fn(String) -> Result<T, E>,
) -> Result<T, String> {
    fields::string(raw).and_then(|text| parse(text).map_err(|error| error.to_string()))
}

fn read_kind(object: &mut Object<'_>, errors: &mut Errors) -> Option<Kind> {
    if !object.has("kind") {
        errors.at("/kind", "is missing: the name of the kind of job, as in \"image.thumbnail\"");
    }
    object.take("kind", errors, |raw| name(raw, Kind::parse).and_then(open_kind))
}

fn read_run_at(
    object: &mut Object<'_>,
    limits: &Limits,
    now: Timestamp,
    errors: &mut Errors,
) -> Option<Timestamp> {
    let max = limits.max_delay;
    let bounded = |at: Timestamp| {
        if at.duration_since(now) > SignedDuration::try_from(max).unwrap_or(SignedDuration::MAX) {
            return Err(format!(
                "is more than {} s from now, the longest delay (limits.max_delay)",
                max.as_secs_f64()
            ));
        }
        Ok(at)
    };
    let (both, delay, at) = (
        object.has("delay") && object.has("run_at"),
        object.take("delay", errors, |raw| {
            fields::duration(raw).and_then(|delay| after(now, delay)).and_then(bounded)
        }),
        object.take("run_at", errors, |raw| fields::time(raw).and_then(bounded)),
    );
    if both {
        errors.at("/run_at", "cannot be given together with delay");
    }
    delay.or(at)
}

/// Reads `expires_in` or `expires_at`. That a time has passed goes to `late`, where it is given: the request may repeat
/// one that came before.
fn read_expires_at(
    object: &mut Object<'_>,
    run_at: Option<Timestamp>,
    now: Timestamp,
    late: Option<&mut Option<FieldError>>,
    errors: &mut Errors,
) -> Option<Timestamp> {
    let start = run_at.unwrap_or(now).max(now);
    let later = |at: Timestamp| match () {
        // The wire has milliseconds.
        () if at.as_millisecond() <= now.as_millisecond() => Err("is not in the future".to_owned()),
        () if at.as_millisecond() <= start.as_millisecond() => {
            Err("the job would expire before it can run".to_owned())
        }
        () => Ok(at),
    };
    let forgiven = |at: Timestamp| match (later(at), late) {
        (Err(detail), Some(late)) => {
            *late = Some(FieldError::at("/expires_at", detail));
            Ok(at)
        }
        (result, _) => result,
    };
    let (both, after_now, at) = (
        object.has("expires_in") && object.has("expires_at"),
        object.take("expires_in", errors, |raw| {
            fields::duration(raw).and_then(|expires| after(now, expires)).and_then(later)
        }),
        object.take("expires_at", errors, |raw| fields::time(raw).and_then(forgiven)),
    );
    if both {
        errors.at("/expires_at", "cannot be given together with expires_in");
    }
    after_now.or(at)
}

fn after(now: Timestamp, delay: Duration) -> Result<Timestamp, String> {
    SignedDuration::try_from(delay)
        .ok()
        .and_then(|delay| now.checked_add(delay).ok())
        .ok_or_else(|| "is too long".to_owned())
}

fn read_retry(object: &mut Object<'_>, errors: &mut Errors) -> RetryOverrides {
    let Some(raw) = object.take_raw("retry", errors) else { return RetryOverrides::default() };
    let Ok(mut retry) = Object::parse(raw.get(), "/retry") else {
        errors.at("/retry", "must be an object with initial, factor, max and jitter, each optional");
        return RetryOverrides::default();
    };
    let pause = |raw| match fields::duration(raw)? {
        pause if pause <= PAUSE_MAX => Ok(pause),
        _ => Err(format!("must be at most {} days", PAUSE_MAX.as_secs() / 86_400)),
    };
    let plain = RetryPolicy::default();
    let found = RetryOverrides {
        initial: retry.take("initial", errors, pause),
        factor: retry.take("factor", errors, |raw| {
            let factor = fields::number(raw)?;
            RetryPolicy { factor, ..plain }.check().map(|()| factor)
        }),
        max: retry.take("max", errors, pause),
        jitter: retry.take("jitter", errors, |raw| {
            let jitter = fields::number(raw)?;
            RetryPolicy { jitter, ..plain }.check().map(|()| jitter)
        }),
    };
    retry.finish(&RETRY_MEMBERS, errors);
    found
}

fn read_tags(object: &mut Object<'_>, errors: &mut Errors) -> Vec<String> {
    let Some(raw) = object.take_raw("tags", errors) else { return Vec::new() };
    let Ok(items) = Items::parse(raw.get(), TAGS_MAX) else {
        errors.at("/tags", format!("must be an array of at most {TAGS_MAX} texts"));
        return Vec::new();
    };
    if items.more > 0 {
        errors.at(
            "/tags",
            format!("has {} tags; at most {TAGS_MAX} are allowed", items.list.len() + items.more),
        );
    }
    let mut tags = Vec::with_capacity(items.list.len());
    for (index, item) in items.list.iter().enumerate() {
        match fields::string(item).and_then(tag) {
            Ok(tag) => tags.push(tag),
            Err(detail) => errors.at(format!("/tags/{index}"), detail),
        }
    }
    tags
}

/// Checks a tag.
pub(super) fn tag(tag: String) -> Result<String, String> {
    // On the wire tags are joined by commas, and white space around them does not count.
    let fits = (1..=TAG_MAX).contains(&tag.len())
        && tag.trim() == tag
        && !tag.chars().any(|c| c == ',' || c.is_control());
    if fits {
        return Ok(tag);
    }
    Err(format!(
        "must be 1 to {TAG_MAX} bytes without comma, control characters and white space at either end"
    ))
}

/// The W3C trace context of a request, as message headers; one that does not look right is left out.
pub(super) fn trace_context(headers: &HeaderMap) -> Headers {
    let mut found = Headers::new();
    if let Some(context) = traced::context(headers) {
        context.put_on(&mut found);
    }
    found
}

#[cfg(test)]
#[path = "submission_tests.rs"]
mod tests;
