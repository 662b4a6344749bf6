//! Delivering callbacks: a request that says how a run ended, signed by the Standard Webhooks specification.
//!
//! A callback is a job ([`crate::callback`]), so it waits in a queue, survives its process, and is tried again; it runs
//! inside `hopline serve`, where `callbacks.secret` is set. Which addresses may be asked is `egress`'s affair.
//!
//! | the receiver | then |
//! |---|---|
//! | answers 2xx | done |
//! | answers 410 | dead at once: it wants no more |
//! | answers anything else (redirects too, which are not followed), or not at all | tried again; a `Retry-After` makes the pause longer, up to `callbacks.retry_max` |
//! | is at an address that is refused | dead at once: see [`failed`] |

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    acts::Acts,
    callback::{Answered, Callback},
    config,
    egress::{Answer, Egress, EgressError, Guard, Resolver, SystemResolver, Timeouts},
    event::batch::EVENT_CONTENT_TYPE,
    job::{Job, JobError, JobResult, Options, QueueName, envelope::header},
    retry::RetryPolicy,
    sign::Secrets,
    worker::{Context, Worker},
};

/// The queue of callbacks, where a prefix has a ladder of its own.
pub(crate) const QUEUE: &str = Callback::QUEUE;
/// Most bytes of the args of a callback: what the headers of a job can hold, and an event.
pub(crate) const ARGS_MAX: usize = 256 << 10;
/// How much longer than its request an attempt may take.
const MARGIN: Duration = Duration::from_secs(5);
/// Each pause between attempts is so many times longer than the one before.
const FACTOR: f64 = 3.0;

/// Delivers callbacks; cheap to clone.
#[derive(Clone)]
pub struct Courier(Arc<Inner>);

struct Inner {
    secrets: Secrets,
    egress: Egress,
    retry: RetryPolicy,
}

impl Courier {
    /// A courier as it is configured; none where there is no secret.
    ///
    /// # Errors
    /// A sentence: a secret or an allowed address is none, or there can be no HTTP client.
    pub fn new(config: &config::Callbacks) -> Result<Option<Self>, String> {
        let resolver: Arc<dyn Resolver> = Arc::new(SystemResolver);
        Self::with_resolver(config, &resolver)
    }

    /// The same, with other answers to what the address of a name is.
    ///
    /// # Errors
    /// As [`Courier::new`].
    pub fn with_resolver(
        config: &config::Callbacks,
        resolver: &Arc<dyn Resolver>,
    ) -> Result<Option<Self>, String> {
        if config.secret.is_empty() {
            return Ok(None);
        }
        let secrets = Secrets::read(&config.secret).map_err(|error| format!("callbacks.secret: {error}"))?;
        let timeouts = Timeouts { connect: config.connect_timeout, total: config.timeout };
        let egress = Egress::new(Guard::new(&config.allow)?, resolver, timeouts)?;
        let retry = RetryPolicy {
            max_attempts: config.max_attempts,
            initial: config.retry_initial,
            factor: FACTOR,
            max: config.retry_max,
            ..RetryPolicy::default()
        };
        Ok(Some(Self(Arc::new(Inner { secrets, egress, retry }))))
    }

    /// Lets the worker of acts deliver from `queue`, too.
    pub(crate) fn join(
        self,
        worker: Worker<Acts>,
        config: &config::Callbacks,
        queue: &QueueName,
    ) -> Worker<Self> {
        let options =
            Options::new().queue(queue.as_str()).timeout(config.timeout + MARGIN).retry(self.0.retry);
        // Private: a URL may hold a secret, and does not belong into the record.
        let options = options.private();
        worker.state(self).register_with(deliver, options)
    }
}

async fn deliver(job: Callback, cx: Context<Courier>) -> JobResult<Answered> {
    let courier = &cx.state().0;
    let (id, body) = (cx.job_id().to_string(), job.event.get());
    let timestamp = Timestamp::now().as_second().to_string();
    let mut headers = vec![
        ("content-type", EVENT_CONTENT_TYPE.to_owned()),
        ("webhook-signature", courier.secrets.sign(&id, &timestamp, body.as_bytes())),
        ("webhook-id", id),
        ("webhook-timestamp", timestamp),
    ];
    for name in [header::TRACEPARENT, header::TRACESTATE] {
        // Whoever publishes on the broker may have written anything.
        let carried = cx.carried(name).filter(|value| value.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        headers.extend(carried.map(|value| (name, value.to_owned())));
    }
    let sent = courier.egress.post(&job.url, &headers, body.to_owned()).await;
    let answer = sent.map_err(|error| failed(&error))?;
    let pause = courier.retry.delay(cx.attempt(), cx.job_id().seed(cx.attempt()));
    judge(&answer, pause, courier.retry.max)
}

/// What follows from an answer, where the policy's pause would be `pause`. A `Retry-After` makes it longer, up to
/// `longest`: a shorter one would spend all attempts within minutes.
fn judge(answer: &Answer, pause: Duration, longest: Duration) -> JobResult<Answered> {
    let Answer { status, retry_after, host } = answer;
    match status {
        200..=299 => Ok(Answered { status: *status }),
        410 => Err(JobError::fatal("gone", format!("{host} answered 410: it wants no more"))),
        _ => {
            let (code, told) = (format!("http_{status}"), format!("{host} answered {status}"));
            Err(match retry_after {
                Some(after) if *after > pause => JobError::retry_in((*after).min(longest), code, told),
                _ => JobError::retry(code, told),
            })
        }
    }
}

/// What follows where there is no answer.
///
/// An address that is refused ends the callback at once, although the name may have another address tomorrow: what is
/// needed is a person who mends the name, or allows the address, and then replays it. That should not be told days later.
fn failed(error: &EgressError) -> JobError {
    match error {
        EgressError::Refused(refusal) => JobError::fatal(refusal.code(), refusal),
        EgressError::NoAnswer { code, .. } => JobError::retry(*code, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Verdict;

    #[test]
    fn answers_decide_what_follows() {
        let longest = Duration::from_secs(100);
        let verdict = |status, retry_after: Option<u64>| {
            let retry_after = retry_after.map(Duration::from_secs);
            judge(&Answer { status, retry_after, host: "h".to_owned() }, Duration::from_secs(5), longest)
                .map(|answered| answered.status)
                .map_err(|error| (error.verdict(), error.code().to_owned()))
        };
        let again = |code: &str| Err((Verdict::Retry, code.to_owned()));
        let pause =
            |seconds, code: &str| Err((Verdict::RetryIn(Duration::from_secs(seconds)), code.to_owned()));
        for (status, retry_after, expected) in [
            (200, None, Ok(200)),
            (204, Some(5), Ok(204)),
            (301, None, again("http_301")),
            (400, None, again("http_400")),
            (404, None, again("http_404")),
            (410, Some(5), Err((Verdict::Fatal, "gone".to_owned()))),
            (429, Some(7), pause(7, "http_429")),
            (429, Some(4), again("http_429")),
            (503, Some(0), again("http_503")),
            (500, None, again("http_500")),
            (503, Some(1_000_000), pause(100, "http_503")),
        ] {
            assert_eq!(verdict(status, retry_after), expected, "{status}");
        }
    }
}
