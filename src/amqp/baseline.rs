//! What bare lapin does on the same broker, for `hopline bench`: the measure that Hopline's own numbers are
//! divided by. Written the fast way (publishes polled together, a window of confirms, `multiple` acks), so that
//! the ratios flatter nobody. Also takes down what a benchmark has declared.

use std::time::{Duration, Instant};

use async_rs::Runtime;
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use thiserror::Error;
use tokio::time::timeout;

use super::{connection::AmqpRuntime, delay::LEVELS, message::short, names::Names};
use crate::{config::Amqp, job::QueueName};

/// Publishes polled together.
const BATCH: usize = 500;
/// Unconfirmed publishes.
const WINDOW: usize = 2000;
/// Deliveries taken ahead, and acknowledged together.
const PREFETCH: u16 = 500;
const ACK_EVERY: u64 = 50;
/// Longest time for one measurement.
const LONGEST: Duration = Duration::from_secs(120);

/// A measurement that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// lapin says why.
    #[error("bare lapin: {0}")]
    Lapin(String),
    /// The broker took too long.
    #[error("bare lapin: no answer within {} s", LONGEST.as_secs())]
    Timeout,
    /// The system refused a thread.
    #[error("cannot start a thread")]
    System(#[from] std::io::Error),
}

impl From<lapin::Error> for BaselineError {
    fn from(error: lapin::Error) -> Self {
        Self::Lapin(error.to_string())
    }
}

/// Bare lapin on one broker, with a quorum queue of its own.
pub struct Baseline {
    publish: Connection,
    consume: Connection,
    queue: String,
    body: Vec<u8>,
    _runtime: std::sync::Arc<AmqpRuntime>,
}

impl Baseline {
    /// Connects and declares the queue.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn start(config: &Amqp, queue: &str, body_len: usize) -> Result<Self, BaselineError> {
        let runtime = AmqpRuntime::start()?;
        let connect = || {
            let runtime = Runtime::tokio_with_handle(runtime.handle());
            Connection::connect_with_runtime(config.url.expose(), ConnectionProperties::default(), runtime)
        };
        let (publish, consume) = bounded(async { Ok((connect().await?, connect().await?)) }).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let channel = publish.create_channel().await?;
        channel.queue_declare(short(queue), options, arguments).await?;
        Ok(Self { publish, consume, queue: queue.to_owned(), body: vec![b'x'; body_len], _runtime: runtime })
    }

    /// Publishes `count` messages and awaits all confirms.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn publish(&self, count: usize) -> Result<Duration, BaselineError> {
        let channel = self.publish.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let began = Instant::now();
        bounded(self.publish_all(&channel, count)).await?;
        Ok(began.elapsed())
    }

    /// Consumes `count` messages and acknowledges them, 50 at a time.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn drain(&self, count: usize) -> Result<Duration, BaselineError> {
        let (channel, mut consumer) = self.consumer().await?;
        let began = Instant::now();
        bounded(consume_all(&channel, &mut consumer, count)).await?;
        Ok(began.elapsed())
    }

    /// Publishes and consumes `count` messages at the same time.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn both(&self, count: usize) -> Result<Duration, BaselineError> {
        let (channel, mut consumer) = self.consumer().await?;
        let began = Instant::now();
        let (published, consumed) =
            tokio::join!(self.publish(count), bounded(consume_all(&channel, &mut consumer, count)));
        published?;
        consumed?;
        Ok(began.elapsed())
    }

    /// Calls an echo that is bare lapin too, `count` times one after the other; the time of each.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn calls(&self, count: usize) -> Result<Vec<Duration>, BaselineError> {
        let (serving, mut requests) = self.consumer().await?;
        let replying = self.publish.create_channel().await?;
        let caller = self.publish.create_channel().await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let answers_to =
            caller.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
        let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut answers =
            caller.basic_consume(answers_to.clone(), "".into(), no_ack, FieldTable::default()).await?;
        let serve = async {
            while let Some(Ok(request)) = requests.next().await {
                let Some(to) = request.properties.reply_to().clone() else { continue };
                let properties = BasicProperties::default();
                let sent = replying.basic_publish(
                    "".into(),
                    to,
                    BasicPublishOptions::default(),
                    &request.data,
                    properties,
                );
                sent.await?;
                serving.basic_ack(request.delivery_tag, BasicAckOptions::default()).await?;
            }
            Ok::<(), lapin::Error>(())
        };
        let call = async {
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                let began = Instant::now();
                let properties =
                    BasicProperties::default().with_delivery_mode(2).with_reply_to(answers_to.clone());
                let to = short(&self.queue);
                caller
                    .basic_publish("".into(), to, BasicPublishOptions::default(), &self.body, properties)
                    .await?;
                answers.next().await.transpose()?;
                times.push(began.elapsed());
            }
            Ok::<_, lapin::Error>(times)
        };
        bounded(async {
            tokio::select! {
                served = serve => served.and(Ok(Vec::new())),
                called = call => called,
            }
        })
        .await
    }

    /// Deletes the queue and closes the connections.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn end(self) -> Result<(), BaselineError> {
        let channel = self.publish.create_channel().await?;
        channel.queue_delete(short(&self.queue), QueueDeleteOptions::default()).await?;
        self.consume.close(200, "bye".into()).await?;
        self.publish.close(200, "bye".into()).await?;
        Ok(())
    }

    /// Deletes what a process with this configuration has declared for `queues`, its ladder included.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn take_down(&self, config: &Amqp, queues: &[QueueName]) -> Result<(), BaselineError> {
        let names = Names::new(&config.prefix, &config.ladder_prefix);
        let channel = self.publish.create_channel().await?;
        let mut gone = vec![names.strays(), names.control_log()];
        gone.extend(queues.iter().flat_map(|queue| [names.queue(queue), names.dead_queue(queue)]));
        gone.extend((0..LEVELS).map(|level| names.delay(level)));
        for queue in gone {
            channel.queue_delete(short(&queue), QueueDeleteOptions::default()).await?;
        }
        let mut gone =
            vec![names.jobs(), names.dead(), names.control(), names.replies(), names.strays(), names.ready()];
        gone.extend((0..LEVELS).map(|level| names.delay(level)));
        for exchange in gone {
            channel.exchange_delete(short(&exchange), ExchangeDeleteOptions::default()).await?;
        }
        Ok(())
    }

    async fn consumer(&self) -> Result<(Channel, Consumer), BaselineError> {
        let channel = self.consume.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(short(&self.queue), "".into(), options, FieldTable::default()).await?;
        Ok((channel, consumer))
    }

    async fn publish_all(&self, channel: &Channel, count: usize) -> Result<(), lapin::Error> {
        let mut confirms = FuturesUnordered::new();
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH);
            left -= batch;
            let publishes = (0..batch).map(|_| {
                let properties = BasicProperties::default().with_delivery_mode(2);
                channel.basic_publish(
                    "".into(),
                    short(&self.queue),
                    BasicPublishOptions::default(),
                    &self.body,
                    properties,
                )
            });
            for confirm in join_all(publishes).await {
                confirms.push(confirm?);
            }
            while confirms.len() > WINDOW {
                confirmed(confirms.next().await)?;
            }
        }
        while !confirms.is_empty() {
            confirmed(confirms.next().await)?;
        }
        Ok(())
    }
}

fn confirmed(confirm: Option<Result<Confirmation, lapin::Error>>) -> Result<(), lapin::Error> {
    match confirm {
        Some(Ok(Confirmation::Ack(_))) | None => Ok(()),
        Some(Ok(_)) => Err(std::io::Error::other("the broker refused a message").into()),
        Some(Err(error)) => Err(error),
    }
}

async fn consume_all(channel: &Channel, consumer: &mut Consumer, count: usize) -> Result<(), lapin::Error> {
    let (mut seen, count) = (0_u64, count as u64);
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        seen += 1;
        if seen % ACK_EVERY == 0 || seen == count {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
        if seen == count {
            break;
        }
    }
    Ok(())
}

async fn bounded<T>(work: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, BaselineError> {
    timeout(LONGEST, work).await.map_err(|_| BaselineError::Timeout)?.map_err(BaselineError::from)
}
