//! What bare lapin does on the same broker, for `hopline bench`: the measure that Hopline's own numbers are
//! divided by. Written the fast way (publishes polled together, a window of confirms, `multiple` acks), so that
//! the ratios flatter nobody.
//!
//! Owns a quorum queue for jobs and a stream for events, both its own. What is measured is in [`patterns`]. Also takes
//! down what a benchmark has declared.

mod patterns;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_rs::Runtime;
use futures_util::future::try_join;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::timeout;

use super::{
    connection::AmqpRuntime,
    message::short,
    names::Names,
    topology::{Object, Plan},
};
use crate::config::Amqp;

/// Longest time for one measurement.
const LONGEST: Duration = Duration::from_secs(900);
/// Longest time to connect or to delete something.
const SHORT: Duration = Duration::from_secs(30);

/// A measurement that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// lapin says why.
    #[error("bare lapin: {0}")]
    Lapin(String),
    /// The broker took too long.
    #[error("bare lapin: no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The system refused a thread.
    #[error("cannot start a thread")]
    System(#[from] std::io::Error),
}

impl From<lapin::Error> for BaselineError {
    fn from(error: lapin::Error) -> Self {
        Self::Lapin(error.to_string())
    }
}

/// What is written to the stream of events beside a job, once where it is published and once where it is consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Events {
    /// Nothing.
    None,
    /// A message for each event.
    Each,
    /// A message for up to 200 events that are there at the same time.
    Batched,
}

/// When the first message of a measurement was on its way, and when the last one was done with.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The begin.
    pub began: Instant,
    /// The end.
    pub ended: Instant,
}

/// Bare lapin on one broker, with two connections, as a process of Hopline has.
pub struct Baseline {
    publish: Connection,
    consume: Connection,
    queue: String,
    log: String,
    body: Vec<u8>,
    /// As many events as one message has at most.
    events: Vec<u8>,
    _runtime: Arc<AmqpRuntime>,
}

impl Baseline {
    /// Connects, and declares the queue `<prefix>.raw` and the stream `<prefix>.raw.log`. Messages have `body_len`
    /// bytes, and so has each event.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn start(config: &Amqp, body_len: usize) -> Result<Self, BaselineError> {
        let runtime = AmqpRuntime::start()?;
        let (publish, consume) =
            bounded(SHORT, try_join(connect(config, &runtime), connect(config, &runtime))).await?;
        let [queue, log] = own_queues(&config.prefix);
        let declaring = async {
            let channel = publish.create_channel().await?;
            for (name, kind) in [(&queue, "quorum"), (&log, "stream")] {
                let mut arguments = FieldTable::default();
                arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
                let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(short(name), options, arguments).await?;
            }
            Ok(())
        };
        bounded(SHORT, declaring).await?;
        let events = vec![b'x'; body_len * patterns::EVENTS_MAX];
        Ok(Self { publish, consume, queue, log, body: vec![b'x'; body_len], events, _runtime: runtime })
    }

    /// Closes the connections.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn end(self) -> Result<(), BaselineError> {
        let closing = async {
            self.consume.close(200, "bye".into()).await?;
            self.publish.close(200, "bye".into()).await
        };
        bounded(SHORT, closing).await
    }

    async fn confirming_channel(&self) -> Result<Channel, lapin::Error> {
        let channel = self.publish.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }
}

/// Deletes what processes with this configuration and a [`Baseline`] have declared: exchanges, the queues of
/// `config.queues`, the ladder, the logs.
///
/// # Errors
/// [`BaselineError`].
pub async fn take_down(config: &Amqp) -> Result<(), BaselineError> {
    let runtime = AmqpRuntime::start()?;
    let names = Names::new(&config.prefix, &config.ladder_prefix);
    let mut queues = config.queues.clone();
    queues.extend([names.acts(), names.callbacks()]);
    let objects = Plan { names, queues, declares: true }.objects();
    let own = own_queues(&config.prefix);
    let deleting = async {
        let connection = connect(config, &runtime).await?;
        let channel = connection.create_channel().await?;
        for object in objects {
            match object {
                Object::Queue { name, .. } => {
                    channel.queue_delete(short(&name), QueueDeleteOptions::default()).await?;
                }
                Object::Exchange { name, .. } => {
                    channel.exchange_delete(short(&name), ExchangeDeleteOptions::default()).await?;
                }
                Object::Bound { .. } | Object::Passes { .. } => {}
            }
        }
        for name in own {
            channel.queue_delete(short(&name), QueueDeleteOptions::default()).await?;
        }
        connection.close(200, "bye".into()).await
    };
    bounded(SHORT * 2, deleting).await
}

fn own_queues(prefix: &str) -> [String; 2] {
    [format!("{prefix}.raw"), format!("{prefix}.raw.log")]
}

async fn connect(config: &Amqp, runtime: &AmqpRuntime) -> Result<Connection, lapin::Error> {
    let runtime = Runtime::tokio_with_handle(runtime.handle());
    Connection::connect_with_runtime(config.url.expose(), ConnectionProperties::default(), runtime).await
}

async fn bounded<T>(
    longest: Duration,
    work: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BaselineError> {
    let worked = timeout(longest, work).await.map_err(|_| BaselineError::Timeout(longest))?;
    worked.map_err(BaselineError::from)
}
