//! Enqueueing jobs and waiting for their output.
//!
//! A [`Client`] is what producers hold, what the HTTP front submits through, and what a handler gets as
//! `cx.client()`. It connects when it is first used, comes back by itself when the broker was away, and answers
//! `Ok` only after the broker has confirmed the job on a queue.
//!
//! Not done here: remembering jobs. What became of a job is known to whoever waits for its reply.

mod callbacks;
mod control;
mod error;
#[cfg(feature = "server")]
mod gather;
mod live;
mod many;
mod recording;
mod submit;
mod traced;
mod untold;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

#[cfg(feature = "server")]
pub(crate) use self::callbacks::CallbackError;
#[cfg(feature = "worker")]
pub(crate) use self::live::{Links, host};
use self::recording::Recording;
pub(crate) use self::{
    callbacks::Callbacks,
    live::{Live, Role},
};
pub use self::{
    control::{CancelTarget, KindInfo, KindRetry, KindSchemas},
    error::{CallError, EnqueueError, SubmitError},
    recording::Recorded,
};
pub use crate::amqp::{
    admin::Depth,
    control::{CancelOrder, Pause, Pauses},
    heartbeats::{WorkerInfo, WorkerKind, WorkerQueue},
    replies::{WaitError, Waiter},
};
use crate::{
    amqp::{
        control::{Control, Hello},
        replies::Replies,
    },
    config::Config,
    event::{self, Event, EventType},
    job::{Envelope, Job, JobId, Kind, QueueName, Reply, Status, envelope::RetryOverrides, json},
    metrics::{self, Metrics},
    trace::{TraceContext, trace_id_of},
};

/// Who published, on the wire: a program with this library. An `app_id` that starts with `hopline-` says that a
/// `submitted` event was written.
const APP_ID: &str = "hopline-client";

/// A job and when it is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// The job.
    pub envelope: Envelope,
    /// How long it waits before it is queued; zero: now.
    pub delay: Duration,
    /// Digest of the request, where its submitter chose the job's id or gave a key: kept in the record.
    pub request: Option<String>,
    /// Nobody named its queue: it was chosen from what is known of its kind. Where the job waits before it is published,
    /// that may be known better later.
    pub routed: bool,
}

impl Submission {
    /// A job to be queued after `delay`.
    #[must_use]
    pub fn new(envelope: Envelope, delay: Duration) -> Self {
        Self { envelope, delay, request: None, routed: false }
    }

    /// What is left of the delay.
    #[cfg(feature = "server")]
    fn remaining(&self, now: Timestamp) -> Duration {
        let since = self.envelope.created_at.map_or(Duration::ZERO, |created| {
            Duration::try_from(now.duration_since(created)).unwrap_or_default()
        });
        self.delay.saturating_sub(since)
    }

    /// When it is to run, where that is not now.
    fn run_at(&self, now: Timestamp) -> Option<Timestamp> {
        let delay = Some(self.delay).filter(|delay| !delay.is_zero())?;
        self.envelope.created_at.unwrap_or(now).checked_add(delay).ok()
    }

    /// The event that says so: what is in the record before any worker has seen the job.
    fn event(&self, source: &str, max_inline: usize, private: bool) -> Event {
        let Self { envelope, request, .. } = self;
        let now = Timestamp::now();
        let mut event = Event::of(EventType::Submitted, envelope, source, now);
        event.data.run_at = self.run_at(now);
        event.data.request.clone_from(request);
        event.data.trace_id = trace_id_of(&envelope.extra);
        event.data.args = event::inline_args(Some(&envelope.kind), &envelope.args, max_inline, private);
        event.data.args_omitted = event.data.args.is_none();
        event
    }
}

/// What one job does differently from its kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnqueueOptions {
    /// The queue, instead of [`Job::QUEUE`].
    pub queue: Option<QueueName>,
    /// How long to wait before the job is queued.
    pub delay: Duration,
    /// No attempt starts later than this after now.
    pub expires_in: Option<Duration>,
    /// Longest run of one attempt, instead of the kind's.
    pub timeout: Option<Duration>,
    /// Attempts in all, instead of the kind's.
    pub max_attempts: Option<u32>,
    /// Retry policy, where it differs from the kind's.
    pub retry: RetryOverrides,
    /// Tags: at most 20, each at most 100 bytes, without commas.
    pub tags: Vec<String>,
}

/// State of the connections, for people and probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether a job can be submitted now, and its reply be received.
    pub ready: bool,
    /// The connection that publishes.
    pub publish: String,
    /// The connection that receives replies.
    pub consume: String,
    /// Whether announced kinds are known.
    pub control: String,
}

/// Enqueues jobs; cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// The context of what its jobs are caused by, where none is current.
    cause: Option<Arc<TraceContext>>,
}

struct Inner {
    config: Config,
    role: Role,
    live: OnceLock<Result<Live, String>>,
    recording: Option<Recording>,
    metrics: Metrics,
}

impl Client {
    /// A client for a program that enqueues. Connects when it is first used.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self::with_role(config, Role::Producer)
    }

    /// The client of the HTTP front: connects now, knows announced kinds, refuses what cannot be done at once.
    #[must_use]
    pub fn for_http(config: &Config) -> Self {
        let client = Self::with_role(config, Role::Http);
        if let Ok(live) = client.live() {
            live.replies(config.http.max_waiters);
            live.follow_control(Hello::front(&live.instance), Some(config.limits.max_delay));
            live.follow_workers();
        }
        client
    }

    /// A client without a broker, for tests: what is enqueued is recorded.
    #[must_use]
    pub fn recording() -> Self {
        let inner = Inner {
            config: Config::default(),
            role: Role::Producer,
            live: OnceLock::new(),
            recording: Some(Recording::default()),
            metrics: Metrics::new(),
        };
        Self { inner: Arc::new(inner), cause: None }
    }

    /// The same client; jobs go on in the trace of `cause` unless they carry a context of their own, or another span is
    /// current.
    #[cfg(feature = "worker")]
    pub(crate) fn caused_by(&self, cause: Option<TraceContext>) -> Self {
        Self { inner: Arc::clone(&self.inner), cause: cause.map(Arc::new) }
    }

    /// What a recording client has recorded, in order; nothing for one with a broker.
    #[must_use]
    pub fn recorded(&self) -> Vec<Recorded> {
        self.inner.recording.as_ref().map(Recording::all).unwrap_or_default()
    }

    pub(crate) fn with_role(config: &Config, role: Role) -> Self {
        Self::counting_in(config, role, Metrics::new())
    }

    /// A client that counts into `metrics`, which another one may do, too.
    pub(crate) fn counting_in(config: &Config, role: Role, metrics: Metrics) -> Self {
        let inner = Inner { config: config.clone(), role, live: OnceLock::new(), recording: None, metrics };
        Self { inner: Arc::new(inner), cause: None }
    }

    /// What this client counts.
    #[cfg(feature = "worker")]
    pub(crate) fn shared_metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// What this client has counted, in Prometheus's text format: of a program that serves `/metrics` by itself.
    #[must_use]
    pub fn metrics(&self) -> String {
        metrics::text(self.metric_families())
    }

    /// The same, to be shown with more.
    pub(crate) fn metric_families(&self) -> Vec<prometheus::proto::MetricFamily> {
        let started = self.inner.live.get().and_then(|live| live.as_ref().ok());
        let up = started.and_then(|live| live.publisher.link().up().ok());
        self.inner.metrics.families(up.is_some(), up.is_some_and(|up| up.is_blocked()))
    }

    /// The connections, started now if they are not yet.
    pub(crate) fn live(&self) -> Result<&Live, String> {
        let Inner { config, role, live, metrics, .. } = &*self.inner;
        live.get_or_init(|| Live::start(config, role, metrics)).as_ref().map_err(Clone::clone)
    }

    /// Enqueues a job to be run as its type says.
    ///
    /// # Errors
    /// [`EnqueueError`]; after [`SubmitError::Timeout`] and [`SubmitError::Lost`] the job may run all the same.
    pub async fn enqueue<J: Job>(&self, job: &J) -> Result<JobId, EnqueueError> {
        self.enqueue_with(job, EnqueueOptions::default()).await
    }

    /// Enqueues a job with options of its own.
    ///
    /// # Errors
    /// As [`Client::enqueue`].
    pub async fn enqueue_with<J: Job>(
        &self,
        job: &J,
        options: EnqueueOptions,
    ) -> Result<JobId, EnqueueError> {
        let submission = submission(job, options)?;
        let id = submission.envelope.id;
        self.submit(submission).await?;
        Ok(id)
    }

    /// Enqueues many jobs of a kind: one answer for each, in order. Much faster than one by one.
    pub async fn enqueue_batch<'a, J: Job>(
        &self,
        jobs: impl IntoIterator<Item = &'a J>,
    ) -> Vec<Result<JobId, EnqueueError>> {
        let prepared = jobs.into_iter().map(|job| submission(job, EnqueueOptions::default()));
        let mut answers: Vec<Result<JobId, EnqueueError>> = Vec::new();
        let mut fit = Vec::new();
        for submission in prepared {
            answers.push(submission.map(|submission| {
                let id = submission.envelope.id;
                fit.push(submission);
                id
            }));
        }
        let mut submitted = self.submit_all(fit).await.into_iter();
        for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
            if let Some(Err(error)) = submitted.next() {
                *answer = Err(error.into());
            }
        }
        answers
    }

    /// Runs a job and returns its output, waiting at most `wait`. The job gets one attempt unless `options` say
    /// otherwise, and does not start after `wait`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<J: Job>(
        &self,
        job: &J,
        wait: Duration,
        options: EnqueueOptions,
    ) -> Result<J::Output, CallError> {
        let deadline = Instant::now() + wait;
        let options = EnqueueOptions {
            expires_in: Some(options.expires_in.unwrap_or(wait)),
            max_attempts: Some(options.max_attempts.unwrap_or(1)),
            ..options
        };
        let mut submission = submission(job, options)?;
        let id = submission.envelope.id;
        let waiter = self.expect_reply(id).await?;
        submission.envelope.reply_to = Some(waiter.reply_to().to_owned());
        submission.envelope.correlation_id = Some(id.to_string());
        self.submit(submission).await.map_err(EnqueueError::from)?;
        let reply = waiter.reply(deadline).await.ok_or(CallError::Timeout(id))?;
        read_output(&reply)
    }

    /// Submits a job: `Ok` when the broker has confirmed it on a queue.
    ///
    /// # Errors
    /// [`SubmitError`]; after `Timeout` and `Lost` the job may run all the same.
    pub async fn submit(&self, job: Submission) -> Result<(), SubmitError> {
        self.submit_with(job, false).await
    }

    /// Submits many jobs: one answer for each, in order.
    pub async fn submit_all(&self, mut jobs: Vec<Submission>) -> Vec<Result<(), SubmitError>> {
        let give_up = Instant::now() + self.inner.config.amqp.confirm_timeout;
        let submitted = self.submit_together(&mut jobs, give_up).await;
        submitted.into_iter().map(|result| result.map(drop)).collect()
    }

    /// A place to wait for the reply of job `id`; to be taken before the job is submitted.
    ///
    /// # Errors
    /// [`WaitError`]: too many wait already, or replies cannot be received.
    pub async fn expect_reply(&self, id: JobId) -> Result<Waiter, WaitError> {
        let live = self.live().map_err(WaitError::Unavailable)?;
        let config = &self.inner.config;
        let patience = match self.inner.role {
            Role::Http => Duration::ZERO,
            _ => config.amqp.confirm_timeout,
        };
        live.replies(config.http.max_waiters).expect(id, Instant::now() + patience).await
    }

    /// A place to wait for the answer to a question that is not a job; `None` when there is no result queue by then.
    #[cfg(feature = "worker")]
    pub(crate) async fn expect_answer(
        &self,
        correlation_id: &str,
        deadline: Instant,
    ) -> Option<crate::amqp::replies::Answer> {
        let replies = self.live().ok()?.replies(self.inner.config.http.max_waiters);
        replies.expect_answer(correlation_id, deadline).await.ok()
    }

    /// The queue that `kind` goes to when its submitter names none: what workers announced, else `[routes]`,
    /// else `default`.
    #[must_use]
    pub fn queue_of(&self, kind: &Kind) -> QueueName {
        let announced =
            self.live().ok().and_then(|live| live.known.get()).and_then(|known| known.queue_of(kind));
        announced.or_else(|| self.inner.config.routes.get(kind).cloned()).unwrap_or_else(default_queue)
    }

    /// Whether the connections could be started. A broker that is away is no error.
    ///
    /// # Errors
    /// A sentence: the address is none, or the system refused a thread.
    pub fn started(&self) -> Result<(), String> {
        self.live().map(drop)
    }

    /// State of the connections.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.live() {
            Ok(live) => {
                let link = live.publisher.link();
                let caught_up = live.known.get().is_none_or(Control::is_caught_up);
                let replies = live.replies.get();
                Health {
                    ready: link.is_ready() && caught_up && replies.is_none_or(Replies::is_ready),
                    publish: link.describe(),
                    consume: replies.map_or_else(|| live.consume.describe(), Replies::describe),
                    control: if caught_up { "caught up" } else { "catching up" }.to_owned(),
                }
            }
            Err(why) => Health { ready: false, publish: why.clone(), consume: why.clone(), control: why },
        }
    }

    /// Waits until all events of what was submitted so far are in the log, or `deadline`.
    #[cfg(feature = "server")]
    pub(crate) async fn until_told(&self, deadline: Instant) {
        if let Ok(live) = self.live() {
            self.tell(live, &[], deadline).await;
        }
    }

    /// Whether this client has submitted the job and its event may not be in the log yet.
    #[cfg(feature = "server")]
    pub(crate) fn is_untold(&self, id: JobId) -> bool {
        self.inner.live.get().is_some_and(|live| live.as_ref().is_ok_and(|live| live.untold.has(id)))
    }

    /// Closes the connections. Whatever is not confirmed yet gets no answer any more.
    pub async fn close(&self) {
        if let Some(Ok(live)) = self.inner.live.get() {
            live.close().await;
        }
    }

    /// Waits until a job can be published, and it is known which queue its kind goes to.
    ///
    /// # Errors
    /// A sentence: what is missing at the deadline.
    #[cfg(feature = "server")]
    pub(crate) async fn wait_ready(&self, deadline: Instant) -> Result<(), String> {
        let live = self.live()?;
        let up = live.publisher.link().wait_up(deadline).await.map_err(|down| down.0)?;
        if up.is_blocked() {
            return Err(SubmitError::Blocked.to_string());
        }
        match live.known.get() {
            Some(known) if !known.is_caught_up() => Err("the control log is not read yet".to_owned()),
            _ => Ok(()),
        }
    }

    /// Which connection of this client publishes now; none: there is none.
    #[cfg(feature = "server")]
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.live().ok()?.publisher.link().up().ok().map(|up| up.epoch)
    }
}

fn submission<J: Job>(job: &J, options: EnqueueOptions) -> Result<Submission, EnqueueError> {
    let args = serde_json::to_vec(job).map_err(|error| EnqueueError::Args(error.to_string()))?;
    json::check_depth(&args).map_err(|error| EnqueueError::Args(error.to_string()))?;
    let queue = options.queue.map_or_else(|| QueueName::parse(J::QUEUE), Ok)?;
    let now = Timestamp::now();
    let mut envelope = Envelope::new(Kind::parse(J::KIND)?, queue, Bytes::from(args));
    envelope.created_at = Some(now);
    envelope.expires_at = options.expires_in.and_then(|after| now.checked_add(after).ok());
    envelope.timeout = options.timeout;
    envelope.max_attempts = options.max_attempts;
    envelope.retry = options.retry;
    envelope.tags = options.tags;
    envelope.app_id = Some(APP_ID.to_owned());
    Ok(Submission::new(envelope, options.delay))
}

fn read_output<T: serde::de::DeserializeOwned>(reply: &Reply) -> Result<T, CallError> {
    let id = reply.job_id;
    match (reply.status, reply.failure()) {
        (Status::Succeeded, _) if reply.output_omitted => Err(CallError::Output {
            id,
            detail: "it was over limits.output, or nested too deep, and left out".to_owned(),
        }),
        (Status::Succeeded, _) => serde_json::from_slice(&reply.body)
            .map_err(|error| CallError::Output { id, detail: error.to_string() }),
        (Status::Expired, _) => Err(CallError::Expired(id)),
        (Status::Cancelled, _) => Err(CallError::Cancelled(id)),
        (Status::Dead, failure) => {
            let (code, message) = failure.map(|failure| (failure.code, failure.message)).unwrap_or_default();
            Err(CallError::Dead { id, reason: reply.reason.clone().unwrap_or_default(), code, message })
        }
    }
}

fn default_queue() -> QueueName {
    QueueName::parse("default").expect("a literal within the rule")
}
