//! Declaring what [`super::names`] names. Every process declares what it uses, at each connection: declaring
//! what exists changes nothing, and an object that someone deleted comes back.
//!
//! Arguments are constants: a queue argument that differs from the existing queue's is refused by the broker
//! (406), so nothing here may come from the configuration. What an operator may want to change goes into
//! policies (`docs/architecture.md`).

use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use lapin::{
    Channel, ErrorKind, ExchangeKind,
    options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::AMQPErrorKind,
    types::{AMQPValue, FieldTable},
};
use thiserror::Error;

use super::{
    delay::{self, LEVELS},
    message::short,
    names::Names,
};
use crate::job::QueueName;

/// How often a quorum queue hands a message over before it gives up on it. Large: deliveries convict nobody
/// (hand-backs and lost connections count too), but a limit there must be, or RabbitMQ 4 sets 20. Not -1, which
/// RabbitMQ 3.10 takes for zero.
const DELIVERY_LIMIT: i32 = 1000;
/// For queues that people look into: each look is a delivery.
const NO_DELIVERY_LIMIT: i32 = i32::MAX;
/// How long the control log remembers announcements, and how much of them. Longer than the longest
/// `limits.max_delay` by default.
const CONTROL_AGE: &str = "60D";
const CONTROL_BYTES: i64 = 1 << 30;
const CONTROL_SEGMENT: i64 = 32 << 20;
/// How many days the log keeps events, and how much of them: generous constants, because arguments cannot be changed.
/// Policies tighten them.
pub(crate) const LOG_AGE_DAYS: u32 = 90;
const LOG_BYTES: i64 = 16 << 30;
const LOG_SEGMENT: i64 = 64 << 20;
/// How long a worker's question waits for an HTTP process, in ms, and how many of them.
const LOOKUP_TTL_MS: i32 = 10_000;
const LOOKUP_LENGTH: i32 = 10_000;

/// The broker refused to declare something.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// It exists with other arguments.
    #[error(
        "{detail}: it exists with other arguments than this version of Hopline declares. Arguments cannot be \
         changed: stop its producers, let it run empty, delete it (management UI, or `rabbitmqctl delete_queue`), \
         and it is declared anew. What you want to tune belongs in a policy"
    )]
    Differs {
        /// The broker's words: which object, which argument, both values.
        detail: String,
    },
    /// The user may not.
    #[error("{detail}: give this user configure, write and read permission on the prefix's objects")]
    Forbidden {
        /// The broker's words.
        detail: String,
    },
    /// Anything else.
    #[error("cannot declare the topology: {0}")]
    Other(String),
}

impl TopologyError {
    fn from_lapin(error: &lapin::Error) -> Self {
        let text = error.to_string();
        let ErrorKind::ProtocolError(amqp) = error.kind() else { return Self::Other(text) };
        let detail = amqp.get_message().to_string();
        match amqp.kind() {
            AMQPErrorKind::Soft(_) if detail.starts_with("PRECONDITION_FAILED") => Self::Differs { detail },
            AMQPErrorKind::Soft(_) if detail.starts_with("ACCESS_REFUSED") => Self::Forbidden { detail },
            _ => Self::Other(text),
        }
    }
}

/// What a process declares.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) names: Names,
    pub(crate) queues: Vec<QueueName>,
}

type Step<'a> = BoxFuture<'a, Result<(), lapin::Error>>;

impl Plan {
    /// Declares everything on a channel that is thrown away afterwards: a refusal closes it.
    ///
    /// The requests are sent together and answered in order: a round trip for each would make a start slow.
    pub(crate) async fn declare(&self, channel: &Channel) -> Result<(), TopologyError> {
        let mut steps = self.exchanges(channel);
        steps.extend(self.shared_queues(channel));
        steps.extend(self.ladder(channel));
        steps.extend(self.queues.iter().flat_map(|queue| self.work_queue(channel, queue)));
        // Joined in one task, each request is written in its place at the first poll.
        try_join_all(steps).await.map(drop).map_err(|error| TopologyError::from_lapin(&error))
    }

    fn exchanges<'a>(&'a self, channel: &'a Channel) -> Vec<Step<'a>> {
        let names = &self.names;
        let parked = args([("alternate-exchange", text(&names.ladder_strays()))]);
        let mut all = vec![
            (names.jobs(), ExchangeKind::Topic, FieldTable::default()),
            (names.dead(), ExchangeKind::Topic, FieldTable::default()),
            (names.control(), ExchangeKind::Topic, FieldTable::default()),
            (names.events(), ExchangeKind::Topic, FieldTable::default()),
            (names.record(), ExchangeKind::Fanout, FieldTable::default()),
            (names.replies(), ExchangeKind::Direct, FieldTable::default()),
            (names.strays(), ExchangeKind::Fanout, FieldTable::default()),
        ];
        if names.ladder_strays() != names.strays() {
            all.push((names.ladder_strays(), ExchangeKind::Fanout, FieldTable::default()));
        }
        // Without an alternate, one message for a queue that is gone would hold one of the level's 32
        // dead-lettering slots for ever.
        all.push((names.ready(), ExchangeKind::Topic, parked));
        all.extend((0..LEVELS).map(|level| (names.delay(level), ExchangeKind::Topic, FieldTable::default())));
        all.into_iter().map(|(name, kind, args)| exchange(channel, name, kind, args)).collect()
    }

    fn shared_queues<'a>(&'a self, channel: &'a Channel) -> Vec<Step<'a>> {
        let names = &self.names;
        let mut steps = Vec::new();
        let mut strays = vec![names.strays()];
        if names.ladder_strays() != names.strays() {
            strays.push(names.ladder_strays());
        }
        for strays in strays {
            let single = ("x-single-active-consumer", AMQPValue::Boolean(true));
            steps.push(queue(channel, strays.clone(), quorum(NO_DELIVERY_LIMIT, [single])));
            steps.push(bind(channel, strays.clone(), strays, String::new()));
        }
        steps.push(queue(channel, names.control_log(), stream(CONTROL_AGE, CONTROL_BYTES, CONTROL_SEGMENT)));
        steps.push(bind(channel, names.control_log(), names.control(), "#".to_owned()));
        let log_age = format!("{LOG_AGE_DAYS}D");
        steps.push(queue(channel, names.log(), stream(&log_age, LOG_BYTES, LOG_SEGMENT)));
        steps.push(bind(channel, names.log(), names.record(), String::new()));
        // Questions are asked again: what waits too long, or too many, may go.
        let lookup = args([
            ("x-message-ttl", AMQPValue::LongInt(LOOKUP_TTL_MS)),
            ("x-max-length", AMQPValue::LongInt(LOOKUP_LENGTH)),
        ]);
        steps.push(queue(channel, names.lookup(), lookup));
        steps.push(bind(channel, names.lookup(), names.replies(), names.lookup()));
        steps
    }

    fn ladder<'a>(&'a self, channel: &'a Channel) -> Vec<Step<'a>> {
        let names = &self.names;
        let mut steps = Vec::new();
        for level in 0..LEVELS {
            let next = level.checked_sub(1).map_or_else(|| names.ready(), |below| names.delay(below));
            let ttl = i64::try_from(delay::ttl(level).as_millis()).unwrap_or(i64::MAX);
            let held = args([
                ("x-queue-type", text("quorum")),
                ("x-message-ttl", AMQPValue::LongLongInt(ttl)),
                ("x-dead-letter-exchange", text(&next)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", AMQPValue::LongInt(NO_DELIVERY_LIMIT)),
            ]);
            steps.push(queue(channel, names.delay(level), held));
            steps.push(bind(channel, names.delay(level), names.delay(level), delay::binding(level, 1)));
            steps.push(pass_on(channel, next, names.delay(level), delay::binding(level, 0)));
        }
        steps
    }

    /// Declares a dead-letter queue alone: a place for jobs whose work queue is gone.
    #[cfg(feature = "server")]
    pub(crate) async fn declare_dead(
        &self,
        channel: &Channel,
        name: &QueueName,
    ) -> Result<(), TopologyError> {
        let steps = self.dead_queue(channel, name);
        try_join_all(steps).await.map(drop).map_err(|error| TopologyError::from_lapin(&error))
    }

    fn dead_queue<'a>(&'a self, channel: &'a Channel, name: &QueueName) -> [Step<'a>; 2] {
        let names = &self.names;
        [
            queue(channel, names.dead_queue(name), quorum(NO_DELIVERY_LIMIT, [])),
            bind(channel, names.dead_queue(name), names.dead(), Names::dead_binding(name)),
        ]
    }

    /// A work queue, its dead-letter queue, and their bindings.
    fn work_queue<'a>(&'a self, channel: &'a Channel, name: &QueueName) -> Vec<Step<'a>> {
        let names = &self.names;
        // What the broker itself takes out (delivery limit) must keep its address: a job that came off the
        // ladder still has its bits in the routing key.
        let last_net = [
            ("x-dead-letter-exchange", text(&names.strays())),
            ("x-dead-letter-routing-key", text(name.as_str())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ];
        let mut steps = Vec::from(self.dead_queue(channel, name));
        steps.extend([
            queue(channel, names.queue(name), quorum(DELIVERY_LIMIT, last_net)),
            bind(channel, names.queue(name), names.jobs(), Names::jobs_binding(name)),
            bind(channel, names.queue(name), names.ready(), Names::ready_binding(name)),
        ]);
        steps
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn args<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn quorum<const N: usize>(delivery_limit: i32, more: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = args(more);
    table.insert("x-queue-type".into(), text("quorum"));
    table.insert("x-delivery-limit".into(), AMQPValue::LongInt(delivery_limit));
    table
}

fn stream(age: &str, bytes: i64, segment: i64) -> FieldTable {
    args([
        ("x-queue-type", text("stream")),
        ("x-max-age", text(age)),
        ("x-max-length-bytes", AMQPValue::LongLongInt(bytes)),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(segment)),
    ])
}

fn exchange(channel: &Channel, name: String, kind: ExchangeKind, args: FieldTable) -> Step<'_> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    async move { channel.exchange_declare(short(&name), kind, options, args).await }.boxed()
}

fn queue(channel: &Channel, name: String, args: FieldTable) -> Step<'_> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    async move { channel.queue_declare(short(&name), options, args).await.map(drop) }.boxed()
}

fn bind(channel: &Channel, queue: String, exchange: String, key: String) -> Step<'_> {
    let (options, args) = (QueueBindOptions::default(), FieldTable::default());
    async move { channel.queue_bind(short(&queue), short(&exchange), short(&key), options, args).await }
        .boxed()
}

fn pass_on(channel: &Channel, to: String, from: String, key: String) -> Step<'_> {
    let (options, args) = (ExchangeBindOptions::default(), FieldTable::default());
    async move { channel.exchange_bind(short(&to), short(&from), short(&key), options, args).await }.boxed()
}
