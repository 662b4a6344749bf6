//! Enqueueing jobs and waiting for their output.
//!
//! A [`Client`] is what producers hold, what the HTTP front submits through, and what a handler gets as
//! `cx.client()`. It connects when it is first used, comes back by itself when the broker was away, and answers
//! `Ok` only after the broker has confirmed the job on a queue.
//!
//! Not done here: remembering jobs. What became of a job is known to whoever waits for its reply.

mod recording;

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use thiserror::Error;
use tokio::time::Instant;

pub use self::recording::Recorded;
use self::recording::Recording;
pub use crate::amqp::replies::{WaitError, Waiter};
use crate::{
    amqp::{
        Names, PublishError,
        admin::Admin,
        connection::{AmqpRuntime, Link},
        control::Catalogue,
        delay,
        publisher::{Publisher, Target},
        replies::Replies,
        topology::Plan,
        version,
    },
    config::Config,
    job::{Envelope, Job, JobId, Kind, NameError, QueueName, Reply, Status, envelope::RetryOverrides, json},
};

/// A job and when it is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// The job.
    pub envelope: Envelope,
    /// How long it waits before it is queued; zero: now.
    pub delay: Duration,
}

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

impl From<PublishError> for SubmitError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused => Self::Refused,
            PublishError::Unavailable(why) => Self::Unavailable(why),
            PublishError::Blocked => Self::Blocked,
            PublishError::Full => Self::Full,
            PublishError::Timeout => Self::Timeout,
            PublishError::Lost(why) => Self::Lost(why),
            // Told apart from an unknown queue where the job is known.
            PublishError::Unroutable => Self::Unavailable("no queue takes this job".to_owned()),
        }
    }
}

/// Why [`Client::enqueue`] failed.
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

/// Why [`Client::call`] gave no output.
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
}

struct Inner {
    config: Config,
    role: Role,
    live: OnceLock<Result<Live, String>>,
    recording: Option<Recording>,
}

/// What a process is, which decides what it starts and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// A program that enqueues. Waits for a connection within the confirm timeout.
    Producer,
    /// The HTTP front. Refuses at once what cannot be published now.
    Http,
    /// A worker, with its queues.
    Worker(Vec<QueueName>),
}

impl Role {
    fn name(&self) -> &'static str {
        match self {
            Self::Producer => "client",
            Self::Http => "http",
            Self::Worker(_) => "worker",
        }
    }
}

/// Starts connections of this process, and closes them all; cheap to clone.
#[derive(Clone)]
pub(crate) struct Links {
    amqp: crate::config::Amqp,
    plan: Plan,
    /// What the connections' names start with.
    name: String,
    runtime: Arc<AmqpRuntime>,
    started: Arc<Mutex<Vec<Link>>>,
}

impl Links {
    /// A connection for one purpose, which the management UI shows in its name.
    pub(crate) fn start(&self, purpose: &str) -> Link {
        let name = format!("{} {purpose}", self.name);
        let link = Link::start(&self.amqp, name, self.plan.clone(), &self.runtime);
        self.started.lock().unwrap_or_else(PoisonError::into_inner).push(link.clone());
        link
    }

    fn all(&self) -> Vec<Link> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The connections of a client, once they are needed.
pub(crate) struct Live {
    pub(crate) names: Names,
    pub(crate) instance: String,
    pub(crate) publisher: Publisher,
    pub(crate) consume: Link,
    pub(crate) links: Links,
    admin: Admin,
    replies: OnceLock<Replies>,
    catalogue: OnceLock<Catalogue>,
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
            live.catalogue();
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
        };
        Self { inner: Arc::new(inner) }
    }

    /// What a recording client has recorded, in order; nothing for one with a broker.
    #[must_use]
    pub fn recorded(&self) -> Vec<Recorded> {
        self.inner.recording.as_ref().map(Recording::all).unwrap_or_default()
    }

    pub(crate) fn with_role(config: &Config, role: Role) -> Self {
        Self {
            inner: Arc::new(Inner { config: config.clone(), role, live: OnceLock::new(), recording: None }),
        }
    }

    /// The connections, started now if they are not yet.
    pub(crate) fn live(&self) -> Result<&Live, String> {
        let Inner { config, role, live, .. } = &*self.inner;
        live.get_or_init(|| Live::start(config, role)).as_ref().map_err(Clone::clone)
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
        let each = prepared.map(|submission| async move {
            let submission = submission?;
            let id = submission.envelope.id;
            self.submit_with(submission, true).await?;
            Ok(id)
        });
        join_all(each).await
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
    pub async fn submit_all(&self, jobs: Vec<Submission>) -> Vec<Result<(), SubmitError>> {
        join_all(jobs.into_iter().map(|job| self.submit_with(job, true))).await
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

    /// The queue that `kind` goes to when its submitter names none: what workers announced, else `[routes]`,
    /// else `default`.
    #[must_use]
    pub fn queue_of(&self, kind: &Kind) -> QueueName {
        let announced =
            self.live().ok().and_then(|live| live.catalogue.get()).and_then(|known| known.queue_of(kind));
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
                let caught_up = live.catalogue.get().is_none_or(Catalogue::is_caught_up);
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

    /// Closes the connections. Whatever is not confirmed yet gets no answer any more.
    pub async fn close(&self) {
        if let Some(Ok(live)) = self.inner.live.get() {
            live.close().await;
        }
    }

    async fn submit_with(&self, job: Submission, wait_for_room: bool) -> Result<(), SubmitError> {
        let Submission { envelope, delay } = job;
        let limits = &self.inner.config.limits;
        if envelope.args.len() > limits.args {
            return Err(SubmitError::TooLarge { len: envelope.args.len(), limit: limits.args });
        }
        let ticks =
            delay::ticks(delay).filter(|_| delay <= limits.max_delay).ok_or(SubmitError::DelayTooLong)?;
        if let Some(recording) = &self.inner.recording {
            recording.add(envelope, delay);
            return Ok(());
        }
        let live = self.live().map_err(SubmitError::Unavailable)?;
        let deadline = Instant::now() + self.inner.config.amqp.confirm_timeout;
        if self.inner.role == Role::Http {
            // A batch waits for room, but never for a connection.
            live.publisher.link().up().map_err(|down| SubmitError::Unavailable(down.0))?;
        }
        let patient = wait_for_room || self.inner.role != Role::Http;
        if ticks > 0 {
            // `mandatory` proves only that the ladder takes the job, not that its queue exists.
            live.check_queue(&envelope.queue, if patient { deadline } else { Instant::now() }).await?;
        }
        live.publish_job(&envelope, ticks, patient, deadline).await
    }
}

impl Live {
    fn start(config: &Config, role: &Role) -> Result<Self, String> {
        version::parse(config.amqp.url.expose())?;
        let runtime = AmqpRuntime::start().map_err(|error| format!("cannot start a thread: {error}"))?;
        let names = Names::new(&config.amqp.prefix, &config.amqp.ladder_prefix);
        let instance = instance();
        let mut queues = config.amqp.queues.clone();
        if let Role::Worker(own) = role {
            queues.extend(own.iter().filter(|queue| !config.amqp.queues.contains(queue)).cloned());
        }
        let plan = Plan { names: names.clone(), queues };
        let name = format!("{} {} {instance}", config.amqp.prefix, role.name());
        let admin =
            Admin::new(&config.amqp, format!("{name} admin"), &runtime).map_err(|error| error.to_string())?;
        let links = Links { amqp: config.amqp.clone(), plan, name, runtime, started: Arc::default() };
        let publish = links.start("publish");
        publish.keep_repaired();
        Ok(Self {
            publisher: Publisher::start(&publish, config.amqp.window, config.amqp.backlog),
            names,
            instance,
            consume: links.start("consume"),
            links,
            admin,
            replies: OnceLock::new(),
            catalogue: OnceLock::new(),
        })
    }

    /// The runtime that the connections live on.
    pub(crate) fn runtime(&self) -> tokio::runtime::Handle {
        self.links.runtime.handle()
    }

    fn replies(&self, limit: usize) -> &Replies {
        self.replies.get_or_init(|| Replies::start(&self.consume, &self.names, &self.instance, limit))
    }

    fn catalogue(&self) -> &Catalogue {
        // On a connection of its own: a record that lapin cannot read costs the connection.
        self.catalogue.get_or_init(|| {
            Catalogue::start(&self.links.start("control"), self.publisher.clone(), &self.names)
        })
    }

    async fn check_queue(&self, queue: &QueueName, deadline: Instant) -> Result<(), SubmitError> {
        let link = self.publisher.link();
        if link.declares(queue) {
            return Ok(());
        }
        // A broker that is away is not asked on a connection of its own, which would be another wait.
        link.wait_up(deadline).await.map_err(|down| SubmitError::Unavailable(down.0))?;
        match self.admin.queue_exists(&self.names.queue(queue)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SubmitError::UnknownQueue(queue.clone())),
            Err(down) => Err(SubmitError::Unavailable(down.0)),
        }
    }

    /// Publishes a job towards its queue, to arrive after `ticks`.
    async fn publish_job(
        &self,
        envelope: &Envelope,
        ticks: u32,
        patient: bool,
        deadline: Instant,
    ) -> Result<(), SubmitError> {
        let (exchange, key) = self.names.route(&envelope.queue, envelope.kind.as_str(), ticks);
        let target = Target { exchange, key, mandatory: true };
        match self.publish(target.clone(), envelope, patient, deadline).await {
            Err(PublishError::Unroutable) if self.publisher.link().declares(&envelope.queue) => {
                // One of our own queues: someone deleted it or its binding.
                self.publisher.link().repair().await.map_err(|down| SubmitError::Unavailable(down.0))?;
                Ok(self.publish(target, envelope, patient, deadline).await?)
            }
            Err(PublishError::Unroutable) => {
                // Another process's queue: it is unknown only if it does not exist. If it does, its binding is gone.
                let restored = self.admin.restore(&self.names, &envelope.queue).await;
                if !restored.map_err(|down| SubmitError::Unavailable(down.0))? {
                    return Err(SubmitError::UnknownQueue(envelope.queue.clone()));
                }
                Ok(self.publish(target, envelope, patient, deadline).await?)
            }
            other => Ok(other?),
        }
    }

    async fn publish(
        &self,
        target: Target,
        envelope: &Envelope,
        patient: bool,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        if patient {
            self.publisher.publish_patiently(target, envelope.encode(), deadline).await
        } else {
            self.publisher.publish(target, envelope.encode(), deadline).await
        }
    }

    /// Stops what uses the connections.
    fn give_up(&self) {
        if let Some(replies) = self.replies.get() {
            replies.close();
        }
        if let Some(catalogue) = self.catalogue.get() {
            catalogue.close();
        }
        self.admin.close();
    }

    pub(crate) async fn close(&self) {
        self.give_up();
        join_all(self.links.all().iter().map(Link::close)).await;
    }
}

/// The tasks that keep the connections hold the runtime they run on: without this, a dropped client would leave
/// both behind.
impl Drop for Live {
    fn drop(&mut self) {
        self.give_up();
        self.links.all().iter().for_each(Link::give_up);
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
    Ok(Submission { envelope, delay: options.delay })
}

fn read_output<T: serde::de::DeserializeOwned>(reply: &Reply) -> Result<T, CallError> {
    let id = reply.job_id;
    match (reply.status, reply.failure()) {
        (Status::Succeeded, _) if reply.output_omitted => {
            Err(CallError::Output { id, detail: "it was over limits.output and left out".to_owned() })
        }
        (Status::Succeeded, _) => serde_json::from_slice(&reply.body)
            .map_err(|error| CallError::Output { id, detail: error.to_string() }),
        (Status::Expired, _) => Err(CallError::Expired(id)),
        (Status::Dead, failure) => {
            let (code, message) = failure.map(|failure| (failure.code, failure.message)).unwrap_or_default();
            Err(CallError::Dead { id, reason: reply.reason.clone().unwrap_or_default(), code, message })
        }
    }
}

fn default_queue() -> QueueName {
    QueueName::parse("default").expect("a literal within the rule")
}

/// A name for this process that people can find: host, process id, and some random digits, because containers
/// repeat both.
fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME").map_err(std::io::Error::other));
    let host = host.unwrap_or_else(|_| "host".to_owned());
    let host: String =
        host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let random = uuid::Uuid::new_v8(*JobId::new().as_bytes()).simple().to_string();
    format!("{host}-{}-{}", std::process::id(), &random[random.len() - 6..])
}
