//! Short-lived questions to the broker, on connections of a pool (`deadpool-lapin`) that never publishes: an
//! alarm blocks publishing connections as a whole, and these must answer all the same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_rs::Runtime;
use deadpool_lapin::{Manager, Pool, Timeouts};
use lapin::{
    ConnectionProperties, ErrorKind, options::QueueDeclareOptions, protocol::AMQPErrorKind, types::FieldTable,
};
use tokio::time::{Instant, timeout};

use super::{
    connection::{AmqpRuntime, LinkDown, REQUEST_TIMEOUT, with_heartbeat},
    message::short,
    names::Names,
    topology::Plan,
};
use crate::{config::Amqp, job::QueueName};

/// Most connections of the pool: questions are rare.
const POOL: usize = 2;
/// How long it is believed that a queue exists.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Most queues remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Asks the broker; cheap to clone.
#[derive(Clone)]
pub(crate) struct Admin {
    pool: Pool,
    seen: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Admin {
    /// A pool that connects when it is first asked.
    pub(crate) fn new(config: &Amqp, name: String, runtime: &Arc<AmqpRuntime>) -> Result<Self, LinkDown> {
        let properties = move || ConnectionProperties::default().with_connection_name(name.as_str().into());
        let manager = Manager::new(
            with_heartbeat(config.url.expose(), config.heartbeat),
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
        Ok(Self { pool, seen: Arc::default() })
    }

    /// Whether a queue exists; a yes is believed for half a minute.
    pub(crate) async fn queue_exists(&self, queue: &str) -> Result<bool, LinkDown> {
        if self.seen().get(queue).is_some_and(|at| at.elapsed() < REMEMBERED) {
            return Ok(true);
        }
        let exists = match timeout(REQUEST_TIMEOUT, self.look(queue)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(LinkDown("no answer about the queue".to_owned())),
        };
        if exists {
            let mut seen = self.seen();
            if seen.len() >= REMEMBERED_MAX {
                seen.clear();
            }
            seen.insert(queue.to_owned(), Instant::now());
        }
        Ok(exists)
    }

    async fn look(&self, queue: &str) -> Result<bool, LinkDown> {
        let connection = self.pool.get().await.map_err(|error| LinkDown(error.to_string()))?;
        let channel = connection.create_channel().await.map_err(|error| LinkDown(error.to_string()))?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(short(queue), passive, FieldTable::default()).await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(LinkDown(error.to_string())),
        }
    }

    /// Declares a work queue's company and bindings anew, if the queue itself exists; whether it does.
    pub(crate) async fn restore(&self, names: &Names, queue: &QueueName) -> Result<bool, LinkDown> {
        let restoring = async {
            if !self.look(&names.queue(queue)).await? {
                return Ok(false);
            }
            let connection = self.pool.get().await.map_err(|error| LinkDown(error.to_string()))?;
            let channel = connection.create_channel().await.map_err(|error| LinkDown(error.to_string()))?;
            let plan = Plan { names: names.clone(), queues: vec![queue.clone()] };
            plan.declare(&channel).await.map_err(|error| LinkDown(error.to_string()))?;
            Ok(true)
        };
        match timeout(REQUEST_TIMEOUT, restoring).await {
            Ok(answer) => answer,
            Err(_) => Err(LinkDown("no answer about the queue".to_owned())),
        }
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        // The map is whole after every statement.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that what was named does not exist.
pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => {
            matches!(amqp.kind(), AMQPErrorKind::Soft(_))
                && amqp.get_message().as_str().starts_with("NOT_FOUND")
        }
        _ => false,
    }
}
