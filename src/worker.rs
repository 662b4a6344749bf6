//! Running jobs.
//!
//! | module | owns |
//! |---|---|
//! | [`registry`] | which kind is run by which handler, with which options |
//! | [`context`] | what a handler is given: [`Context`] |
//! | [`cpu`] | the bounded pool behind [`Context::cpu`] |
//! | [`news`] | what a handler tells while it runs |
//! | [`executor`] | one attempt, from envelope to [`Outcome`]; names no AMQP |
//! | [`disposition`] | what follows from an outcome: a pure table |
//! | [`tell`] | what is said of a job in the event log |
//! | [`settle`] | carrying a disposition out; the only caller of ack |
//! | [`again`] | what is done once more for a run that has ended elsewhere |
//! | [`hold`] | the deliveries of one job and step |
//! | [`known`] | jobs that this process runs or has settled |
//! | [`traced`] | attempts in traces and logs |
//! | [`work`] | a job whose turn has come, from its start to its settling |
//! | [`dispatch`] | deliveries waiting for an answer or for their turn |
//! | [`fence`] | that nothing starts before it is known what was ordered |
//! | [`lookup`] | asking whether a job has ended already |
//! | [`pulse`] | whether this process stood still |
//! | [`silence`] | for how long nobody has answered |
//! | [`cancel`] | orders to cancel, as far as they concern jobs that are here |
//! | [`isolate`] | running a suspect job in a child process |
//! | [`reply`] | telling callers how a run ended |
//! | [`pause`] | one queue: when its jobs are taken |
//! | [`beat`] | what the worker says of itself every few seconds |
//! | [`health`] | `/healthz` and `/metrics` |
//! | [`figures`] | what a worker's `/metrics` says |
//!
//! A worker takes jobs from the broker, decides and settles. It does not route, and it knows no other worker.

mod again;
mod beat;
mod cancel;
mod context;
mod cpu;
mod dispatch;
mod disposition;
mod executor;
mod fence;
mod figures;
mod health;
mod hold;
mod isolate;
mod known;
mod lookup;
mod news;
mod pause;
mod pulse;
mod registry;
pub(crate) mod reply;
mod settle;
mod silence;
mod tell;
mod traced;
mod work;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use self::{
    beat::Beat,
    cancel::Cancels,
    cpu::CpuPool,
    dispatch::QueueShare,
    fence::Fence,
    figures::Figures,
    health::{Health, QueueHealth},
    lookup::Lookups,
    pause::Taking,
    reply::Replier,
    settle::Settler,
    tell::Teller,
    work::Shared,
};
pub use self::{
    context::{Context, FromRef},
    cpu::Stop,
    disposition::Disposition,
    executor::Outcome,
    registry::{Registry, RegistryError},
};
pub(crate) use self::{
    executor::{Cancellation, Executor, Strings},
    news::News,
};
use crate::{
    amqp::control::{Announced, Control, Hello},
    client::{Client, Live, Role},
    config::{Config, ConfigError},
    event::AttemptOutcome,
    job::{Envelope, Job, JobResult, Options, QueueName},
    metrics::{Metrics, Settlement},
    shutdown,
    telemetry::{self, TelemetryError, Traces},
};

/// Longest time a job waits in this process for its turn; then it is handed back. Bounds, with the run timeout,
/// how long a delivery stays unacknowledged: RabbitMQ closes the channel at its consumer timeout.
const WAITING_MAX: Duration = Duration::from_secs(300);
/// Most bytes of args that the deliveries of all queues together may take.
const PREFETCH_BYTES: usize = 4 << 30;
/// How long handlers get after their token is cancelled, before they are dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// How long acknowledgements get to be written when the process ends.
const ACK_FLUSH: Duration = Duration::from_secs(5);
/// How long a queue's consumer and dispatcher get to end.
const QUEUE_END: Duration = Duration::from_secs(20);

/// A worker that cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Handlers that cannot be registered, all of them.
    #[error("handlers:{}", .0.iter().map(|error| format!("\n  {error}")).collect::<String>())]
    Registry(Vec<RegistryError>),
    /// A configuration that does not fit the handlers.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logs cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The system refused something: signals, threads, the health port.
    #[error("cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The connections cannot be started.
    #[error("cannot start: {0}")]
    Start(String),
}

/// What a worker did, when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Attempts that ended in success.
    pub succeeded: u64,
    /// Attempts that failed and are tried again.
    pub retried: u64,
    /// Jobs that ended dead here.
    pub dead: u64,
    /// Jobs that had expired.
    pub expired: u64,
    /// Jobs that were cancelled, before or while they ran.
    pub cancelled: u64,
    /// Deliveries handed back to their queue.
    pub handed_back: u64,
    /// Deliveries of jobs that had ended or gone on already, here or elsewhere: acknowledged without a run.
    pub repeats: u64,
}

/// A worker process: handlers, and where their jobs come from.
///
/// ```no_run
/// use hopline::{Config, Context, Job, JobResult, Options, Worker};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Greet { name: String }
/// impl Job for Greet {
///     const KIND: &'static str = "demo.greet";
///     type Output = String;
/// }
///
/// async fn greet(job: Greet, _cx: Context) -> JobResult<String> {
///     Ok(format!("Hello, {}!", job.name))
/// }
///
/// # async fn run() -> anyhow::Result<()> {
/// let report = Worker::new(Config::load()?).register(greet).run().await?; // until SIGTERM
/// # drop(report);
/// # Ok(())
/// # }
/// ```
#[must_use = "a worker does nothing until it is run"]
pub struct Worker<S = ()> {
    config: Config,
    registry: Registry,
    state: S,
    metrics: Metrics,
}

impl Worker<()> {
    /// A worker without handlers and without state.
    pub fn new(config: Config) -> Self {
        Self { config, registry: Registry::default(), state: (), metrics: Metrics::new() }
    }
}

impl<S: Send + Sync + 'static> Worker<S> {
    /// Sets the state that handlers registered from now on can reach by `cx.state()`.
    pub fn state<T: Send + Sync + 'static>(self, state: T) -> Worker<T> {
        Worker { config: self.config, registry: self.registry, state, metrics: self.metrics }
    }

    /// Counts into the metrics of the process that it is a part of.
    #[cfg(feature = "server")]
    pub(crate) fn counting_in(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Registers a handler with default [`Options`].
    pub fn register<J, T, F, R>(self, handler: F) -> Self
    where
        J: Job,
        T: FromRef<S> + Send + Sync + 'static,
        F: Fn(J, Context<T>) -> R + Send + Sync + 'static,
        R: Future<Output = JobResult<J::Output>> + Send + 'static,
    {
        self.register_with(handler, Options::default())
    }

    /// Registers a handler: an `async fn(job, Context<State>) -> JobResult<Output>`. A kind that is registered
    /// twice is an error of [`Worker::run`].
    pub fn register_with<J, T, F, R>(mut self, handler: F, options: Options) -> Self
    where
        J: Job,
        T: FromRef<S> + Send + Sync + 'static,
        F: Fn(J, Context<T>) -> R + Send + Sync + 'static,
        R: Future<Output = JobResult<J::Output>> + Send + 'static,
    {
        self.registry.add(handler, T::from_ref(&self.state), options);
        self
    }

    /// Runs until SIGTERM or SIGINT, then drains: running attempts get `shutdown.grace` to end, all else is
    /// handed back. Sets up the logs (`log.*`) and traces (`telemetry.*`) unless the program has set up `tracing`. A second signal ends the process.
    ///
    /// A job that may have killed this process before is run in a child process of the same program, started
    /// with the same arguments: what comes before `run` in `main` is done there too, and should not fail there.
    ///
    /// # Errors
    /// [`WorkerError`] when it cannot start. A broker that is away is no error: it is waited for.
    pub async fn run(self) -> Result<Report, WorkerError> {
        // What a child does is a part of its parent's span, and nobody would wait for spans of its own.
        let set_up = match isolate::is_child() {
            true => telemetry::init(&self.config.log).map(|()| Traces::default()),
            false => telemetry::start(&self.config.log, &self.config.telemetry),
        };
        let traces = match set_up {
            Ok(traces) => traces,
            Err(TelemetryError::Installed) => Traces::default(),
            Err(error) => return Err(error.into()),
        };
        if isolate::is_child() {
            return isolate::serve_parent(self.config, self.registry).await;
        }
        let signal = shutdown::requested()
            .map_err(|source| WorkerError::System { what: "listen to signals", source })?;
        let report = self.drive(signal, true).await;
        traces.close().await;
        report
    }

    /// Runs until `shutdown` completes, inside a program that does other things too: no signals, no logs, and no
    /// child processes (a suspect job runs in this process).
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn run_until(self, shutdown: impl Future<Output = ()> + Send) -> Result<Report, WorkerError> {
        self.drive(shutdown, false).await
    }

    async fn drive(
        self,
        shutdown: impl Future<Output = ()> + Send,
        isolation: bool,
    ) -> Result<Report, WorkerError> {
        let Self { config, registry, metrics, .. } = self;
        let registry = Arc::new(registry.checked().map_err(WorkerError::Registry)?);
        check_relations(&config, &registry)?;
        let queues = registry.queues();
        let client = Client::counting_in(&config, Role::Worker(queues.clone()), metrics);
        let live = client.live().map_err(WorkerError::Start)?;
        let hello = hello(&live.instance, &registry);
        let control = live.follow_control(hello, None).clone();
        let stop = CancellationToken::new();
        let lookups = Lookups::start(&client, live, &control, lookup_patience(&config), stop.clone());
        let fence = Fence::start(&live.consume, &control, stop.clone());
        let shared = Arc::new(share(&config, registry, &client, live, fence, lookups, isolation)?);
        let running = Running::start(&config, &shared, (&client, live), &control, &queues, &stop).await?;
        let broker = live.consume.describe();
        info!(broker, worker = live.instance, queues = ?queues.iter().map(QueueName::as_str).collect::<Vec<_>>(), "worker started");
        shutdown.await;

        let report = running.drain(&config, &shared, &stop).await;
        client.close().await;
        info!(
            worker = shared.worker,
            succeeded = report.succeeded,
            retried = report.retried,
            dead = report.dead,
            cancelled = report.cancelled,
            handed_back = report.handed_back,
            "worker ended"
        );
        Ok(report)
    }
}

/// What this worker announces: what has no room is left out, and said.
fn hello(worker: &str, registry: &Registry) -> Hello {
    let mut kinds = registry.announcement();
    for (kind, why) in registry.unsaid() {
        warn!(%kind, "{why}: it is not announced, and args are not checked by it");
    }
    for kind in Announced::bound(&mut kinds) {
        warn!(%kind, "all schemas together are too long for one announcement: those of this kind are not announced");
    }
    Hello::kinds(worker, &kinds)
}

/// What all queues of the process share.
fn share(
    config: &Config,
    registry: Arc<Registry>,
    client: &Client,
    live: &Live,
    fence: Arc<Fence>,
    lookups: Lookups,
    isolation: bool,
) -> Result<Shared, WorkerError> {
    let control = fence.control().clone();
    let cpu = CpuPool::new(config.worker.cpu_threads)
        .map_err(|source| WorkerError::System { what: "start the CPU pool", source })?;
    let replier = Replier::start(live, &config.worker.reply_queues);
    let teller = Arc::new(Teller::new(live.instance.clone(), config.record.max_inline));
    let metrics = client.shared_metrics().clone();
    for entry in registry.handlers() {
        metrics.expect(
            entry.queue.as_str(),
            entry.kind.as_str(),
            &AttemptOutcome::ALL.map(AttemptOutcome::as_str),
        );
    }
    Ok(Shared {
        settler: Settler::new(live, Arc::clone(&teller), replier, taken(&config.worker, &registry)),
        events: live.events.clone(),
        teller,
        cancels: Cancels::new(&control),
        control,
        fence,
        lookups,
        names: live.names.clone(),
        entrances: [live.names.direct(), live.names.jobs()],
        cancel_grace: config.cancel.grace,
        executor: Executor::new(registry, client.clone(), cpu, config.limits.output),
        worker: live.instance.clone(),
        limits: config.limits.clone(),
        settings: config.worker.clone(),
        waiting_max: waiting_max(config),
        timeout_max: config
            .worker
            .consumer_timeout
            .saturating_sub(waiting_max(config) + config.shutdown.grace),
        isolation,
        publish: live.publisher.link().clone(),
        counts: work::Counts::default(),
        metrics,
        known: known::Known::default(),
        abort: CancellationToken::new(),
        cancel: CancellationToken::new(),
        attempts: TaskTracker::new(),
        acknowledging: TaskTracker::new(),
    })
}

/// Everything that goes on until shutdown.
struct Running {
    control: Control,
    queues: Vec<JoinHandle<()>>,
    orders: JoinHandle<()>,
    health: Option<JoinHandle<()>>,
    beat: Beat,
}

impl Running {
    async fn start(
        config: &Config,
        shared: &Arc<Shared>,
        (client, live): (&Client, &Live),
        control: &Control,
        queues: &[QueueName],
        stop: &CancellationToken,
    ) -> Result<Self, WorkerError> {
        let orders = tokio::spawn({
            let (shared, orders) = (Arc::clone(shared), control.orders());
            async move { shared.cancels.follow(orders).await }
        });
        let each = || queues.iter().cloned();
        let healths: Health = each().map(|queue| (queue, Arc::new(QueueHealth::default()))).collect();
        let shares: BTreeMap<QueueName, QueueShare> = each()
            .map(|queue| {
                (queue.clone(), QueueShare::new(queue.clone(), config.worker.concurrency_of(&queue)))
            })
            .collect();
        let mut health = None;
        if let Some(address) = config.worker.health {
            let figures = Figures::new(client, &healths, &shares);
            let server = health::serve(address, healths.clone(), figures, stop.clone()).await;
            let server =
                server.map_err(|source| WorkerError::System { what: "listen on worker.health", source })?;
            health = Some(tokio::spawn(server));
        }
        let taking = each().map(|queue| {
            let taking = Taking {
                source: live.names.queue(&queue),
                prefetch: config.worker.prefetch_of(&queue),
                share: shares[&queue].clone(),
                shared: Arc::clone(shared),
                control: control.clone(),
                link: live.consume.clone(),
                runtime: live.runtime(),
                health: Arc::clone(&healths[&queue]),
                stop: stop.clone(),
                queue,
            };
            tokio::spawn(taking.run())
        });
        let queues = taking.collect();
        let beat = Beat::start(config, shared, live, control, shares);
        Ok(Self { control: control.clone(), queues, orders, health, beat })
    }

    /// Stops taking, hands back what has not started, gives the rest its grace, then ends it.
    async fn drain(self, config: &Config, shared: &Shared, stop: &CancellationToken) -> Report {
        stop.cancel();
        // A worker that is about to end takes no kinds: said once more, that would undo what its successor said.
        self.control.hush();
        for task in self.queues {
            drop(timeout(QUEUE_END, task).await);
        }
        shared.attempts.close();
        if timeout(config.shutdown.grace, shared.attempts.wait()).await.is_err() {
            warn!(running = shared.attempts.len(), "the grace is over: cancelling what still runs");
            shared.cancel.cancel();
            if timeout(CANCEL_GRACE, shared.attempts.wait()).await.is_err() {
                shared.abort.cancel();
                drop(timeout(CANCEL_GRACE, shared.attempts.wait()).await);
            }
        }
        shared.settler.flush().await;
        shared.acknowledging.close();
        drop(timeout(ACK_FLUSH, shared.acknowledging.wait()).await);
        self.orders.abort();
        self.beat.end().await;
        if let Some(health) = self.health {
            health.abort();
        }
        shared.counts.report()
    }
}

/// How long a job may wait in this process for its turn.
fn waiting_max(config: &Config) -> Duration {
    WAITING_MAX.min(config.worker.consumer_timeout / 4)
}

/// How long a delivery is held until somebody says whether its job has ended; then it still waits for its turn.
fn lookup_patience(config: &Config) -> Duration {
    config.worker.lookup_patience.min(waiting_max(config) / 2)
}

/// How many deliveries a queue of this process has at most at a time: that of which it is least.
fn taken(worker: &crate::config::Worker, registry: &Registry) -> usize {
    let each = registry.queues().into_iter().map(|queue| usize::from(worker.prefetch_of(&queue)));
    each.min().unwrap_or_default()
}

/// Checks what relates handlers and configuration.
fn check_relations(config: &Config, registry: &Registry) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    let worker = &config.worker;
    let waiting = waiting_max(config);
    for (kind, options) in registry.options() {
        let longest = waiting + options.timeout + config.shutdown.grace;
        if longest >= worker.consumer_timeout {
            problems.push(format!(
                "kind {kind}: its timeout ({:?}) and the time it may wait in the worker ({waiting:?}) and \
                 shutdown.grace must stay below worker.consumer_timeout ({:?}), or RabbitMQ takes the job away while \
                 it runs; shorten the timeout, or raise consumer_timeout here and in rabbitmq.conf",
                options.timeout, worker.consumer_timeout,
            ));
        }
        if let Err(problem) = options.retry.check() {
            problems.push(format!("kind {kind}: {problem}"));
        }
        if options.concurrency == Some(0) {
            problems.push(format!("kind {kind}: concurrency must be at least 1"));
        }
    }
    let taken = taken(worker, registry);
    if taken.saturating_mul(config.limits.args) > PREFETCH_BYTES {
        problems.push(format!(
            "{taken} jobs taken ahead (prefetch) of up to {} bytes each (limits.args) could fill more than {} GiB of memory",
            config.limits.args,
            PREFETCH_BYTES >> 30,
        ));
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
}

/// One attempt without a broker, and what would follow.
pub(crate) async fn attempt_in_memory(
    registry: Arc<Registry>,
    client: Client,
    envelope: Envelope,
    strings: Strings,
) -> (Outcome, Disposition) {
    let cpu = CpuPool::of(2);
    let executor = Executor::new(Arc::clone(&registry), client, cpu, crate::config::Limits::default().output);
    let entry = registry.get(&envelope.kind).cloned().expect("the tested handler is registered");
    let (attempt, seed) = (envelope.attempt, envelope.id.seed(envelope.attempt));
    let outcome = executor.execute(envelope, &entry, strings, context::Slot::default()).await;
    let disposition = disposition::decide(outcome.clone(), attempt, &entry.options.retry, seed);
    (outcome, disposition)
}

impl work::Counts {
    fn report(&self) -> Report {
        Report {
            succeeded: self.of(Settlement::Succeeded),
            retried: self.of(Settlement::Retried) + self.of(Settlement::Snoozed),
            dead: self.of(Settlement::Dead),
            expired: self.of(Settlement::Expired),
            cancelled: self.of(Settlement::Cancelled),
            handed_back: self.of(Settlement::HandedBack),
            repeats: self.of(Settlement::Repeat),
        }
    }
}
