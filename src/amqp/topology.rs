//! What [`super::names`] names: every exchange, queue and binding with its arguments, and declaring them. Every
//! process declares what it uses, at each connection: declaring what exists changes nothing, and an object that someone
//! deleted comes back. Where `amqp.declare` is false a process only looks whether the objects are there.
//!
//! This is the only description: what `hopline topology` compares a broker with is [`Plan::objects`] as well.
//!
//! Arguments are constants: a queue argument that differs from the existing queue's is refused by the broker
//! (406), so nothing here may come from the configuration. What an operator may want to change goes into
//! policies (`docs/architecture.md`).

use futures_util::future::try_join_all;
#[cfg(feature = "server")]
use lapin::options::ExchangeUnbindOptions;
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
#[derive(Debug, Clone, PartialEq, Eq, Error)]
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
    /// It is not there, and this process declares nothing (`amqp.declare`).
    #[error("{detail}: amqp.declare is false, so somebody else makes it: `hopline topology apply`")]
    Missing {
        /// The broker's words.
        detail: String,
    },
    /// Anything else.
    #[error("cannot declare the topology: {0}")]
    Other(String),
}

impl TopologyError {
    pub(super) fn from_lapin(error: &lapin::Error) -> Self {
        let text = error.to_string();
        let ErrorKind::ProtocolError(amqp) = error.kind() else { return Self::Other(text) };
        let detail = amqp.get_message().to_string();
        match amqp.kind() {
            AMQPErrorKind::Soft(_) if detail.starts_with("PRECONDITION_FAILED") => Self::Differs { detail },
            AMQPErrorKind::Soft(_) if detail.starts_with("ACCESS_REFUSED") => {
                // Callers of the HTTP interface get these words, and it is not for them who logs in to the broker.
                let detail = detail.split(" for user ").next().unwrap_or_default().to_owned();
                Self::Forbidden { detail }
            }
            AMQPErrorKind::Soft(_) if detail.starts_with("NOT_FOUND - no ") => Self::Missing { detail },
            _ => Self::Other(text),
        }
    }
}

/// The value of an argument.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Text(String),
    Int(i32),
    Long(i64),
    Flag(bool),
}

/// Arguments of an exchange or a queue.
pub(crate) type Arguments = Vec<(&'static str, Value)>;

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Routing {
    Topic,
    Fanout,
    Direct,
}

/// An object of the broker. All exchanges and queues are durable, none is deleted by the broker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Exchange {
        name: String,
        routing: Routing,
        arguments: Arguments,
    },
    Queue {
        name: String,
        arguments: Arguments,
    },
    /// Of a queue to an exchange.
    Bound {
        queue: String,
        exchange: String,
        key: String,
    },
    /// Of an exchange (`to`) to another.
    Passes {
        to: String,
        from: String,
        key: String,
    },
}

/// What a process declares.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) names: Names,
    pub(crate) queues: Vec<QueueName>,
    /// Whether it declares at all (`amqp.declare`), or only looks.
    pub(crate) declares: bool,
}

impl Plan {
    /// Declares everything on a channel that is thrown away afterwards: a refusal closes it.
    ///
    /// The requests are sent together and answered in order: a round trip for each would make a start slow.
    pub(crate) async fn declare(&self, channel: &Channel) -> Result<(), TopologyError> {
        if !self.declares {
            return all(self.needed().iter().map(|object| object.look(channel))).await;
        }
        let objects = self.objects();
        all(objects.iter().map(|object| object.declare(channel))).await
    }

    /// All that is to be there, in an order in which it can be made.
    pub(crate) fn objects(&self) -> Vec<Object> {
        let mut all = self.exchanges();
        all.extend(self.shared_queues());
        all.extend(self.ladder());
        all.extend(self.queues.iter().flat_map(|queue| self.work_queue(queue)));
        all
    }

    /// What shows a process that somebody has made the topology: of all that it uses what every kind of process does.
    fn needed(&self) -> Vec<Object> {
        let uses = |object: &Object| match object {
            Object::Exchange { name, .. } => *name == self.names.direct(),
            Object::Queue { name, .. } => self.queues.iter().any(|queue| *name == self.names.queue(queue)),
            Object::Bound { .. } | Object::Passes { .. } => false,
        };
        self.objects().into_iter().filter(uses).collect()
    }

    fn exchanges(&self) -> Vec<Object> {
        let names = &self.names;
        let mut all = vec![
            exchange(names.jobs(), Routing::Topic),
            exchange(names.dead(), Routing::Topic),
            exchange(names.control(), Routing::Topic),
            exchange(names.events(), Routing::Topic),
            exchange(names.record(), Routing::Fanout),
            exchange(names.replies(), Routing::Direct),
            exchange(names.strays(), Routing::Fanout),
        ];
        if names.ladder_strays() != names.strays() {
            all.push(exchange(names.ladder_strays(), Routing::Fanout));
        }
        // A queue that an older version declared is not bound to it, but to `jobs`, which is then tried with the same key.
        let tried_next = vec![("alternate-exchange", Value::Text(names.jobs()))];
        all.push(Object::Exchange { name: names.direct(), routing: Routing::Direct, arguments: tried_next });
        // Without an alternate, one message for a queue that is gone would hold one of the level's 32
        // dead-lettering slots for ever.
        let parked = vec![("alternate-exchange", Value::Text(names.ladder_strays()))];
        all.push(Object::Exchange { name: names.ready(), routing: Routing::Topic, arguments: parked });
        all.extend((0..LEVELS).map(|level| exchange(names.delay(level), Routing::Topic)));
        all
    }

    fn shared_queues(&self) -> Vec<Object> {
        let names = &self.names;
        let mut all = Vec::new();
        let mut strays = vec![names.strays()];
        if names.ladder_strays() != names.strays() {
            strays.push(names.ladder_strays());
        }
        for strays in strays {
            let single = ("x-single-active-consumer", Value::Flag(true));
            all.push(queue(strays.clone(), quorum(NO_DELIVERY_LIMIT, [single])));
            all.push(bound(strays.clone(), strays, String::new()));
        }
        all.push(queue(names.control_log(), stream(CONTROL_AGE, CONTROL_BYTES, CONTROL_SEGMENT)));
        all.push(bound(names.control_log(), names.control(), "#".to_owned()));
        let log_age = format!("{LOG_AGE_DAYS}D");
        all.push(queue(names.log(), stream(&log_age, LOG_BYTES, LOG_SEGMENT)));
        all.push(bound(names.log(), names.record(), String::new()));
        all.extend(self.dead_queue(&Names::nowhere()));
        // Questions are asked again: what waits too long, or too many, may go.
        let lookup =
            vec![("x-message-ttl", Value::Int(LOOKUP_TTL_MS)), ("x-max-length", Value::Int(LOOKUP_LENGTH))];
        all.push(queue(names.lookup(), lookup));
        all.push(bound(names.lookup(), names.replies(), names.lookup()));
        all
    }

    fn ladder(&self) -> Vec<Object> {
        let names = &self.names;
        let mut all = Vec::new();
        for level in 0..LEVELS {
            let next = level.checked_sub(1).map_or_else(|| names.ready(), |below| names.delay(below));
            let ttl = i64::try_from(delay::ttl(level).as_millis()).unwrap_or(i64::MAX);
            let held = vec![
                ("x-queue-type", text("quorum")),
                ("x-message-ttl", Value::Long(ttl)),
                ("x-dead-letter-exchange", text(&next)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
                ("x-delivery-limit", Value::Int(NO_DELIVERY_LIMIT)),
            ];
            all.push(queue(names.delay(level), held));
            all.push(bound(names.delay(level), names.delay(level), delay::binding(level, 1)));
            all.push(Object::Passes { to: next, from: names.delay(level), key: delay::binding(level, 0) });
        }
        all
    }

    /// Declares a dead-letter queue alone: a place for jobs whose work queue is gone.
    #[cfg(feature = "server")]
    pub(crate) async fn declare_dead(
        &self,
        channel: &Channel,
        name: &QueueName,
    ) -> Result<(), TopologyError> {
        let [queue, binding] = self.dead_queue(name);
        if !self.declares {
            return all([queue.look(channel)]).await;
        }
        all([queue.declare(channel), binding.declare(channel)]).await
    }

    fn dead_queue(&self, name: &QueueName) -> [Object; 2] {
        let names = &self.names;
        [
            queue(names.dead_queue(name), quorum(NO_DELIVERY_LIMIT, [])),
            bound(names.dead_queue(name), names.dead(), Names::dead_binding(name)),
        ]
    }

    /// A work queue, its dead-letter queue, and their bindings.
    fn work_queue(&self, name: &QueueName) -> Vec<Object> {
        let names = &self.names;
        // What the broker itself takes out (delivery limit) must keep its address: a job that came off the
        // ladder still has its bits in the routing key.
        let last_net = [
            ("x-dead-letter-exchange", text(&names.strays())),
            ("x-dead-letter-routing-key", text(name.as_str())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ];
        let mut all = Vec::from(self.dead_queue(name));
        all.extend([
            queue(names.queue(name), quorum(DELIVERY_LIMIT, last_net)),
            bound(names.queue(name), names.direct(), Names::direct_key(name)),
            bound(names.queue(name), names.jobs(), Names::jobs_binding(name)),
            bound(names.queue(name), names.ready(), Names::ready_binding(name)),
        ]);
        all
    }
}

impl Object {
    /// Makes it, or finds that it is there as it is described here.
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), lapin::Error> {
        match self {
            Self::Exchange { name, routing, arguments } => {
                let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(short(name), kind(*routing), options, table(arguments)).await
            }
            Self::Queue { name, arguments } => {
                let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(short(name), options, table(arguments)).await.map(drop)
            }
            Self::Bound { queue, exchange, key } => {
                let (options, none) = (QueueBindOptions::default(), FieldTable::default());
                channel.queue_bind(short(queue), short(exchange), short(key), options, none).await
            }
            Self::Passes { to, from, key } => {
                let (options, none) = (ExchangeBindOptions::default(), FieldTable::default());
                channel.exchange_bind(short(to), short(from), short(key), options, none).await
            }
        }
    }

    /// Takes away a binding like this one, of another key.
    #[cfg(feature = "server")]
    pub(super) async fn unbind(&self, channel: &Channel, key: &str) -> Result<(), lapin::Error> {
        let none = FieldTable::default();
        match self {
            Self::Bound { queue, exchange, .. } => {
                channel.queue_unbind(short(queue), short(exchange), short(key), none).await
            }
            Self::Passes { to, from, .. } => {
                let options = ExchangeUnbindOptions::default();
                channel.exchange_unbind(short(to), short(from), short(key), options, none).await
            }
            Self::Exchange { .. } | Self::Queue { .. } => Ok(()),
        }
    }

    /// Looks whether it is there, whatever its arguments. A binding cannot be looked for, and nothing is asked.
    pub(super) async fn look(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let none = FieldTable::default();
        match self {
            Self::Exchange { name, routing, .. } => {
                let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(short(name), kind(*routing), options, none).await
            }
            Self::Queue { name, .. } => {
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(short(name), options, none).await.map(drop)
            }
            Self::Bound { .. } | Self::Passes { .. } => Ok(()),
        }
    }
}

/// Joined in one task, each request is written in its place at the first poll.
async fn all(
    requests: impl IntoIterator<Item = impl Future<Output = Result<(), lapin::Error>>>,
) -> Result<(), TopologyError> {
    try_join_all(requests).await.map(drop).map_err(|error| TopologyError::from_lapin(&error))
}

fn kind(routing: Routing) -> ExchangeKind {
    match routing {
        Routing::Topic => ExchangeKind::Topic,
        Routing::Fanout => ExchangeKind::Fanout,
        Routing::Direct => ExchangeKind::Direct,
    }
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Value::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Value::Int(number) => AMQPValue::LongInt(*number),
            Value::Long(number) => AMQPValue::LongLongInt(*number),
            Value::Flag(flag) => AMQPValue::Boolean(*flag),
        };
        table.insert((*name).into(), value);
    }
    table
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn quorum<const N: usize>(delivery_limit: i32, more: [(&'static str, Value); N]) -> Arguments {
    let mut arguments = Vec::from(more);
    arguments.push(("x-queue-type", text("quorum")));
    arguments.push(("x-delivery-limit", Value::Int(delivery_limit)));
    arguments
}

fn stream(age: &str, bytes: i64, segment: i64) -> Arguments {
    vec![
        ("x-queue-type", text("stream")),
        ("x-max-age", text(age)),
        ("x-max-length-bytes", Value::Long(bytes)),
        ("x-stream-max-segment-size-bytes", Value::Long(segment)),
    ]
}

fn exchange(name: String, routing: Routing) -> Object {
    Object::Exchange { name, routing, arguments: Vec::new() }
}

fn queue(name: String, arguments: Arguments) -> Object {
    Object::Queue { name, arguments }
}

fn bound(queue: String, exchange: String, key: String) -> Object {
    Object::Bound { queue, exchange, key }
}
