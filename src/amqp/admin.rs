//! Short-lived questions to the broker, on connections of a pool (`deadpool-lapin`) that never publishes: an
//! alarm blocks publishing connections as a whole, and these must answer all the same.
//!
//! The pool connects by address alone. Where the broker wants to see a certificate, or has one of an authority of its
//! own, there is a link instead, which publishes as little.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_rs::Runtime;
use deadpool_lapin::{Manager, Pool, Timeouts};
use lapin::{
    Channel, ConnectionProperties, ErrorKind, options::QueueDeclareOptions, protocol::AMQPErrorKind,
    types::FieldTable,
};
use tokio::time::{Instant, timeout};

use super::{
    connection::{AmqpRuntime, Link, LinkDown, REQUEST_TIMEOUT, with_parameters},
    message::short,
    names::Names,
    tls,
    topology::{Plan, TopologyError},
};
use crate::{
    config::Amqp,
    job::QueueName,
    metrics::{ConnectionMetrics, Metrics},
};

/// Most connections of the pool: questions are rare.
const POOL: usize = 2;
/// How long it is believed that a queue exists.
const REMEMBERED: Duration = Duration::from_secs(30);
/// How often a channel is asked for.
const CHANNEL_ATTEMPTS: usize = 5;
/// Most queues remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Asks the broker; cheap to clone.
#[derive(Clone)]
pub(crate) struct Admin {
    asked: Asked,
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    /// One question at a time: whoever asks the same meanwhile finds the answer.
    asking: Arc<tokio::sync::Mutex<()>>,
    /// `amqp.declare`.
    declares: bool,
}

/// Who is asked.
#[derive(Clone)]
enum Asked {
    Pool(Pool),
    Link(Link),
}

/// What waits in a queue, and who takes from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages that no consumer has. 0 also where the queue's leader does not answer, or there is none.
    pub ready: u32,
    /// Consumers: of a work queue, one for each worker that takes from it. One that was stopped counts until what it
    /// still runs is settled.
    pub consumers: u32,
}

/// What is known of a queue, and since when.
#[derive(Debug, Clone, Copy)]
struct Seen {
    exists: bool,
    at: Instant,
}

impl Admin {
    /// A pool that connects when it is first asked.
    pub(crate) fn new(
        config: &Amqp,
        name: String,
        names: &Names,
        runtime: &Arc<AmqpRuntime>,
        metrics: (&Metrics, ConnectionMetrics),
    ) -> Result<Self, LinkDown> {
        if tls::is_asked_for(config) {
            let plan = Plan { names: names.clone(), queues: Vec::new(), declares: config.declare };
            return Ok(Self::of(
                Asked::Link(Link::start(config, name, plan, runtime, metrics)),
                config.declare,
            ));
        }
        let properties = move || ConnectionProperties::default().with_connection_name(name.as_str().into());
        let manager = Manager::new(
            with_parameters(config.url.expose(), config.heartbeat),
            properties,
            Runtime::tokio_with_handle(runtime.handle()),
        );
        let timeouts = Timeouts {
            wait: Some(config.connect_timeout),
            create: Some(config.connect_timeout),
            recycle: Some(config.connect_timeout),
        };
        let pool =
            Pool::builder(manager).max_size(POOL).timeouts(timeouts).runtime(deadpool_lapin::Runtime::Tokio1);
        let pool =
            pool.build().map_err(|error| LinkDown(format!("cannot make the connection pool: {error}")))?;
        Ok(Self::of(Asked::Pool(pool), config.declare))
    }

    fn of(asked: Asked, declares: bool) -> Self {
        Self { asked, declares, seen: Arc::default(), asking: Arc::default() }
    }

    /// Whether a queue exists; a yes is believed for half a minute.
    pub(crate) async fn queue_exists(&self, queue: &str) -> Result<bool, LinkDown> {
        self.ask(queue, async { Ok(self.look(queue).await?.is_some()) }).await
    }

    /// What waits in a queue now; `None`: it does not exist.
    pub(crate) async fn depth(&self, queue: &str) -> Result<Option<Depth>, LinkDown> {
        match timeout(REQUEST_TIMEOUT, self.look(queue)).await {
            Ok(depth) => depth,
            Err(_) => Err(LinkDown("no answer about the queue".to_owned())),
        }
    }

    /// Declares a work queue's company and bindings anew, if the queue itself exists; whether it does.
    pub(crate) async fn restore(&self, names: &Names, queue: &QueueName) -> Result<bool, LinkDown> {
        let name = names.queue(queue);
        // A yes from before says nothing about the bindings.
        self.seen().retain(|other, seen| *other != name || !seen.exists);
        let restoring = async {
            if self.look(&name).await?.is_none() {
                return Ok(false);
            }
            let plan = Plan { names: names.clone(), queues: vec![queue.clone()], declares: self.declares };
            plan.declare(&self.channel().await?).await.map_err(|error| LinkDown(error.to_string()))?;
            Ok(true)
        };
        self.ask(&name, restoring).await
    }

    /// Declares a work queue and its company.
    ///
    /// # Errors
    /// [`TopologyError::Other`] also where nobody answers.
    pub(crate) async fn declare(&self, names: &Names, queue: &QueueName) -> Result<(), TopologyError> {
        let other = |down: LinkDown| TopologyError::Other(down.0);
        let declaring = async {
            let plan = Plan { names: names.clone(), queues: vec![queue.clone()], declares: self.declares };
            plan.declare(&self.channel().await.map_err(other)?).await
        };
        match timeout(REQUEST_TIMEOUT, declaring).await {
            Ok(declared) => declared,
            Err(_) => Err(TopologyError::Other("no answer to the declaring of a queue".to_owned())),
        }
    }

    /// Declares the dead-letter queue of a queue that may not exist. Whether it is there: where processes declare nothing it
    /// may not be.
    #[cfg(feature = "server")]
    pub(crate) async fn declare_dead(&self, names: &Names, queue: &QueueName) -> Result<bool, LinkDown> {
        let declaring = async {
            let plan = Plan { names: names.clone(), queues: Vec::new(), declares: self.declares };
            match plan.declare_dead(&self.channel().await?, queue).await {
                Ok(()) => Ok(true),
                Err(TopologyError::Missing { .. }) if !self.declares => Ok(false),
                Err(error) => Err(LinkDown(error.to_string())),
            }
        };
        match timeout(REQUEST_TIMEOUT, declaring).await {
            Ok(declared) => declared,
            Err(_) => Err(LinkDown("no answer to the declaring of a dead-letter queue".to_owned())),
        }
    }

    /// Answers from memory, else by asking.
    async fn ask(
        &self,
        queue: &str,
        question: impl Future<Output = Result<bool, LinkDown>>,
    ) -> Result<bool, LinkDown> {
        let asked = Instant::now();
        let asking = async {
            let _turn = self.asking.lock().await;
            if let Some(exists) = self.remembered(queue, asked) {
                return Ok(exists);
            }
            let exists = question.await?;
            self.remember(queue, exists);
            Ok(exists)
        };
        match timeout(REQUEST_TIMEOUT, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(LinkDown("no answer about the queue".to_owned())),
        }
    }

    async fn look(&self, queue: &str) -> Result<Option<Depth>, LinkDown> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(short(queue), passive, FieldTable::default()).await {
            Ok(found) => Ok(Some(Depth { ready: found.message_count(), consumers: found.consumer_count() })),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(LinkDown(error.to_string())),
        }
    }

    async fn channel(&self) -> Result<Channel, LinkDown> {
        let connection = match &self.asked {
            Asked::Pool(pool) => pool.get().await.map_err(|error| LinkDown(error.to_string()))?,
            Asked::Link(link) => {
                return link.wait_up(Instant::now() + REQUEST_TIMEOUT).await?.channel().await;
            }
        };
        for _ in 0..CHANNEL_ATTEMPTS {
            match connection.create_channel().await {
                Ok(channel) => return Ok(channel),
                // The number of a channel that a "no" has just closed is given out again at once, and what closed
                // the old one may still be told to the new one.
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(LinkDown(error.to_string())),
            }
        }
        Err(LinkDown("cannot open a channel".to_owned()))
    }

    /// A yes holds for a while; a no only if it came after the question: a worker may declare the queue any moment.
    fn remembered(&self, queue: &str, asked: Instant) -> Option<bool> {
        let seen = *self.seen().get(queue)?;
        let holds = if seen.exists { seen.at.elapsed() < REMEMBERED } else { seen.at >= asked };
        holds.then_some(seen.exists)
    }

    fn remember(&self, queue: &str, exists: bool) {
        let mut seen = self.seen();
        if seen.len() >= REMEMBERED_MAX {
            seen.clear();
        }
        seen.insert(queue.to_owned(), Seen { exists, at: Instant::now() });
    }

    pub(crate) fn close(&self) {
        match &self.asked {
            Asked::Pool(pool) => pool.close(),
            Asked::Link(link) => link.give_up(),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<String, Seen>> {
        // The map is whole after every statement.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that what was named does not exist. Of what is there and cannot be asked RabbitMQ says
/// `NOT_FOUND` too, in other words ("failed to perform operation on queue", "home node … is down").
pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => {
            matches!(amqp.kind(), AMQPErrorKind::Soft(_))
                && amqp.get_message().as_str().starts_with("NOT_FOUND - no ")
        }
        _ => false,
    }
}
