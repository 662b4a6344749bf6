//! Acts: what operators do to many jobs at once, and what the broker does behind everybody's back.
//!
//! A bulk act (replaying, purging, cancelling) is a job itself: it waits in a queue, survives its process, shows its
//! progress and has an output. It runs inside `hopline serve`, which has the record. Acts are idempotent: what an
//! attempt did is seen by the next one, in the record and in the queue, so an act that was killed goes on.
//!
//! | module | owns |
//! |---|---|
//! | [`words`] | kinds, args and outputs of acts |
//! | [`wanted`] | which messages an act is about: pure |
//! | [`letter`] | what a dead message says, and the message of its next run: pure |
//! | [`tally`] | how far an act is |
//! | [`attempt`] | one attempt of an act: its bounds, its pace, what it asks the record |
//! | [`sweep`] | going over dead-letter queues: replaying and purging |
//! | [`clear`] | purging a work queue |
//! | [`cancel`] | cancelling many jobs |
//! | [`strays`] | giving an end to what the broker moved by itself |
//! | [`lost`] | finding jobs whose message is gone |
//! | [`reckon`] | comparing dead-letter queues with the record: letters without a dead job, dead jobs without a letter |
//!
//! The right to go over a queue, and the going, are `amqp::pass`.

mod attempt;
mod cancel;
mod clear;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod letter;
mod lost;
mod reckon;
mod stray;
mod strays;
mod sweep;
mod tally;
mod wanted;
mod words;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use self::words::{Cancel, Done, IDS_MAX, Purge, Replay, Set, Target};
use crate::{
    amqp::{
        Names, PublishError,
        connection::Link,
        pass::Passes,
        publisher::{self, Publisher},
    },
    client::{CallbackError, Callbacks, Client},
    config::{Config, WorkerQueue},
    courier::{self, Courier},
    event::{self, Event, EventError, EventType},
    job::{
        Envelope, Kind, Options, QueueName, dead,
        wire::{Headers, Message},
    },
    record::{
        Record, RecordError,
        model::{JobStatus, Summary},
        writer::EventWriter,
    },
    retry::RetryPolicy,
    worker::{Report, Worker, WorkerError, reply::Replier},
};

/// Acts at the same time, and taken ahead.
const CONCURRENCY: usize = 4;
/// Longest attempt of an act; a longer act goes on in the next one.
const ATTEMPT_MAX: Duration = Duration::from_secs(600);
/// Longest wait for a connection, for the log's confirm, and for a queue that refuses.
const CONFIRM: Duration = Duration::from_secs(30);
/// Pause before a refused publish is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// What acts work with; cheap to clone.
#[derive(Clone)]
pub(crate) struct Acts(Arc<Inner>);

pub(crate) struct Inner {
    record: Record,
    client: Client,
    names: Names,
    /// This process, as events name it.
    instance: String,
    publisher: Publisher,
    events: EventWriter,
    link: Link,
    passes: Passes,
    replier: Replier,
    callbacks: Callbacks,
    config: Config,
    stop: CancellationToken,
}

impl std::ops::Deref for Acts {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Why a message was not published, or an event not written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// It cannot be: no queue takes it.
    Refused(String),
    /// Not now.
    Broker(String),
}

impl Acts {
    fn new(
        config: &Config,
        record: Record,
        client: &Client,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let live = client.live()?;
        let link = live.links.start("acts");
        Ok(Self(Arc::new(Inner {
            names: live.names.clone(),
            instance: live.instance.clone(),
            publisher: live.publisher.clone(),
            events: live.events.clone(),
            passes: Passes::new(
                link.clone(),
                live.publisher.clone(),
                live.names.clone(),
                config.worker.consumer_timeout,
            ),
            link,
            callbacks: live.callbacks(),
            replier: Replier::start(live, &config.worker.reply_queues),
            config: config.clone(),
            record,
            client: client.clone(),
            stop,
        })))
    }

    /// Publishes a message; once more, for a while, where the broker refuses it.
    ///
    /// Waits for a confirm as long as it may come: to publish once more beside it would make two jobs of one. The
    /// publisher answers when the connection ends or the broker is stuck; an alarm may hold it up for longer.
    async fn publish(&self, exchange: String, key: String, message: &Message) -> Result<(), PublishError> {
        let target = publisher::Target { exchange, key, mandatory: true };
        let patience = Instant::now() + CONFIRM;
        let up = self.publisher.link().wait_up(patience).await;
        up.map_err(|down| PublishError::Unavailable(down.0))?;
        loop {
            let deadline = Instant::now() + ATTEMPT_MAX;
            match self.publisher.publish_patiently(target.clone(), message.clone(), deadline).await {
                Err(PublishError::Refused | PublishError::Full) if Instant::now() < patience => {
                    sleep(AGAIN).await;
                }
                result => return result,
            }
        }
    }

    /// Publishes a message to a work queue, by way of the jobs exchange.
    async fn publish_job(&self, queue: &QueueName, message: &Message) -> Result<(), Failure> {
        // The routing key needs a word for the kind; queues are bound by what comes before it.
        let kind = message.kind.as_deref().and_then(|kind| Kind::parse(kind).ok());
        let (exchange, key) = self.names.route(queue, kind.as_ref().map_or("unknown", Kind::as_str), 0);
        let mut restored = false;
        loop {
            match self.publish(exchange.clone(), key.clone(), message).await {
                Ok(()) => return Ok(()),
                Err(PublishError::Unroutable) if restored => {
                    return Err(Failure::Refused(format!("queue {queue} does not exist")));
                }
                Err(PublishError::Unroutable) => {
                    // Its binding may be gone, and the queue there.
                    restored = true;
                    let live = self.client.live().map_err(Failure::Broker)?;
                    live.restore(queue).await.map_err(|down| Failure::Broker(down.0))?;
                }
                Err(error) => return Err(Failure::Broker(error.to_string())),
            }
        }
    }

    /// Publishes a message to the dead-letter queue of `queue`, which is declared where it is missing. Where it may not be,
    /// the message goes to the one that every broker has, marked with its queue.
    async fn publish_dead(&self, queue: &QueueName, message: &Message) -> Result<(), Failure> {
        let dead_key = crate::amqp::pass::dead_key;
        let failed = |error: PublishError| Failure::Broker(error.to_string());
        match self.publish(self.names.dead(), dead_key(queue, message), message).await {
            Err(PublishError::Unroutable) => {}
            result => return result.map_err(failed),
        }
        let live = self.client.live().map_err(Failure::Broker)?;
        if live.declare_dead(queue).await.map_err(|down| Failure::Broker(down.0))? {
            match self.publish(self.names.dead(), dead_key(queue, message), message).await {
                // Its binding is gone.
                Err(PublishError::Unroutable) => {}
                result => return result.map_err(failed),
            }
        }
        let message = dead::belongs_to(message.clone(), queue);
        self.publish(self.names.dead(), dead_key(&Names::nowhere(), &message), &message).await.map_err(failed)
    }

    /// Writes events, and waits until the log has them.
    async fn write(&self, events: Vec<Event>) -> Result<(), Failure> {
        let written = self.events.write(&events, Instant::now() + CONFIRM).await;
        written.map_err(|error| Failure::Broker(error.to_string()))
    }

    /// The events of an end, with that of the callback.
    fn with_callback(&self, event: Event, callback: Option<&Envelope>) -> Vec<Event> {
        let submitted = callback.map(|callback| self.callbacks.submitted(callback));
        [event].into_iter().chain(submitted).collect()
    }

    /// The callback of a run whose end the record knows, from a message of it: whoever ended it may not have got so far.
    fn callback_again(&self, run: u32, job: Option<&Summary>, headers: &Headers) -> Option<Envelope> {
        let job = job.filter(|job| job.run == run)?;
        let event_type = match job.status {
            JobStatus::Succeeded => EventType::Succeeded,
            JobStatus::Dead => EventType::Dead,
            JobStatus::Cancelled => EventType::Cancelled,
            JobStatus::Expired => EventType::Expired,
            _ => return None,
        };
        let at = job.finished_at.unwrap_or_else(Timestamp::now);
        let mut event = lost::event(self, event_type, job, at);
        (event.data.started_at, event.data.finished_at) = (job.started_at, job.finished_at);
        event.data.error.clone_from(&job.error);
        event.data.reason.clone_from(&job.reason);
        let callback = self.callbacks.of(&event, headers)?;
        Some(Envelope { unsure: true, ..callback })
    }

    /// Publishes a callback, if there is one.
    async fn call_back(&self, callback: Option<&Envelope>) -> Result<(), Failure> {
        let Some(callback) = callback else { return Ok(()) };
        match self.callbacks.publish(callback, Instant::now() + ATTEMPT_MAX).await {
            Ok(()) => Ok(()),
            Err(CallbackError::NoQueue(error)) => {
                // To wait for a person would hold up everything else.
                tracing::error!(job.id = %callback.id, %error, "a callback is given up: there is no queue for it");
                Ok(())
            }
            Err(CallbackError::Publish(error)) => Err(Failure::Broker(error.to_string())),
        }
    }

    /// Waits until the record knows all that is in the log.
    async fn catch_up(&self) -> Result<(), RecordError> {
        self.record.catch_up(Instant::now() + CONFIRM).await
    }

    fn is_private(&self, kind: &Kind) -> bool {
        self.client.live().is_ok_and(|live| live.is_private(kind))
    }

    /// Puts args into an event, or says that they are left out.
    fn inline_args(&self, event: &mut Event, args: &[u8]) {
        let private = event.data.kind.as_ref().is_some_and(|kind| self.is_private(kind));
        let (kind, max) = (event.data.kind.as_ref(), self.config.record.max_inline);
        event.data.args = event::inline_args(kind, args, max, private);
        event.data.args_omitted = event.data.args.is_none();
    }
}

/// How the kinds of acts and callbacks begin. Nobody else's do.
pub const OWN_KINDS: &str = "hopline.";

/// Whether this is the queue of acts or that of callbacks, of this prefix or of another one that shares its ladder.
#[must_use]
pub fn is_own_queue(queue: &QueueName) -> bool {
    let name = queue.as_str();
    name == words::QUEUE
        || name == courier::QUEUE
        || ["acts-", "callbacks-"].iter().any(|own| name.starts_with(own))
}

/// Whether this is an act or a callback. What one of them is about was checked when it was made, or is signed with our
/// secret: nobody changes it.
#[must_use]
pub fn is_own(queue: &QueueName, kind: Option<&Kind>) -> bool {
    is_own_queue(queue) || kind.is_some_and(|kind| kind.as_str().starts_with(OWN_KINDS))
}

/// Runs acts, delivers callbacks where they are configured, and gives an end to what the broker moved, until `shutdown`.
/// Part of `hopline serve`.
///
/// `record` must follow the log of `client`'s broker.
///
/// # Errors
/// [`WorkerError`] when it cannot start. A broker that is away is no error.
pub async fn serve(
    config: &Config,
    record: Record,
    client: &Client,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Report, WorkerError> {
    let courier = Courier::new(&config.callbacks).map_err(WorkerError::Start)?;
    serve_with(config, record, client, courier, shutdown).await
}

/// As [`serve`], with a courier that delivers callbacks, or none.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    config: &Config,
    record: Record,
    client: &Client,
    courier: Option<Courier>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Report, WorkerError> {
    let stop = CancellationToken::new();
    let acts = Acts::new(config, record, client, stop.clone()).map_err(WorkerError::Start)?;
    let link = acts.link.clone();
    let runtime = link.runtime();
    let reconciling =
        [runtime.spawn(strays::reconcile(acts.clone())), runtime.spawn(lost::watch(acts.clone()))];
    let metrics = client.shared_metrics().clone();
    let told = async {
        shutdown.await;
        // Before the worker drains: acts that run go on elsewhere, or after the start.
        stop.cancel();
    };
    let (config, callbacks) = (worker_config(config, &acts.names), acts.names.callbacks());
    let worker = worker(&config, acts).counting_in(metrics);
    let report = match courier {
        Some(courier) => courier.join(worker, &config.callbacks, &callbacks).run_until(told).await,
        None => worker.run_until(told).await,
    };
    stop.cancel();
    for task in reconciling {
        // Both end when told; what they hold goes back to its queue.
        drop(timeout(Duration::from_secs(5), task).await);
    }
    link.close().await;
    report
}

/// The configuration of the worker that runs acts and delivers callbacks.
fn worker_config(config: &Config, names: &Names) -> Config {
    let mut config = config.clone();
    // Its port is the other workers'.
    config.worker.health = None;
    for (queue, places) in [(names.acts(), CONCURRENCY), (names.callbacks(), config.callbacks.concurrency)] {
        let share = WorkerQueue { concurrency: Some(places), prefetch: u16::try_from(places).ok() };
        config.worker.queues.insert(queue, share);
    }
    config.limits.args = config.limits.args.max(courier::ARGS_MAX);
    config.shutdown.grace = config.shutdown.grace.min(config.worker.consumer_timeout / 8);
    config
}

/// The worker that runs acts.
fn worker(config: &Config, acts: Acts) -> Worker<Acts> {
    let queue = acts.names.acts();
    let options = Options::new().queue(queue.as_str()).timeout(attempt_max(config)).retry(RetryPolicy {
        max_attempts: 100,
        max: Duration::from_secs(60),
        ..RetryPolicy::default()
    });
    Worker::new(config.clone())
        .state(acts)
        .register_with(sweep::replay, options.clone())
        .register_with(clear::purge, options.clone())
        .register_with(cancel::cancel, options)
}

/// The timeout of an act's attempt: it has to fit the broker's consumer timeout, whatever that is.
fn attempt_max(config: &Config) -> Duration {
    ATTEMPT_MAX.min(config.worker.consumer_timeout / 2)
}

/// The error of an event that no attempt has caused.
fn event_error(code: &str, message: &str) -> EventError {
    use crate::job::dead::{ERROR_MAX, clip};
    EventError { code: code.to_owned(), message: clip(message, ERROR_MAX).to_owned() }
}
