//! The event log as it lies in its stream, and means to hold it up.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use hopline::{
    JobId,
    event::{Event, EventType, batch},
};
use lapin::{
    Channel, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use super::{PATIENCE, stage::Stage};

/// A reader of the log, from its beginning.
pub(crate) struct EventLog {
    consumer: Consumer,
    _channel: Channel,
    /// Everything read, copies of one event only once.
    pub(crate) events: Vec<Event>,
    seen: BTreeMap<String, ()>,
}

impl EventLog {
    /// The log of a stage whose objects have been declared.
    pub(crate) async fn of(stage: &Stage) -> Self {
        let channel = stage.rabbit.channel().await;
        channel.basic_qos(100, BasicQosOptions::default()).await.expect("a prefetch");
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let log = stage.names.log();
        let consumer = channel
            .basic_consume(log.into(), "events".into(), BasicConsumeOptions::default(), arguments)
            .await
            .expect("the log");
        Self { consumer, _channel: channel, events: Vec::new(), seen: BTreeMap::new() }
    }

    /// Reads until `done` says so of all that was read.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&[Event]) -> bool) {
        while !done(&self.events) {
            let next = timeout(PATIENCE, self.consumer.next()).await;
            let next =
                next.unwrap_or_else(|_| panic!("no event in {PATIENCE:?}: {what}; read {:?}", self.told()));
            let delivery = next.expect("the consumer lives").expect("a delivery");
            delivery.ack(BasicAckOptions::default()).await.expect("acked");
            let kind = delivery.properties.kind().as_ref().map(ToString::to_string);
            if kind.as_deref() != Some("hopline.events") {
                // A reader's mark.
                continue;
            }
            let (events, skipped) = batch::decode(&delivery.data).expect("a batch");
            assert_eq!(skipped, 0, "{:?}", String::from_utf8_lossy(&delivery.data));
            for (_, event) in events {
                if self.seen.insert(event.id(), ()).is_none() {
                    self.events.push(event);
                }
            }
        }
    }

    /// Reads until this job's run has ended, and returns what happened to it, in the order of the log.
    pub(crate) async fn until_end(&mut self, id: &str) -> Vec<Event> {
        self.until(&format!("the end of {id}"), |events| {
            events.iter().any(|event| event.job.to_string() == id && event.event_type.is_final())
        })
        .await;
        self.of_job(id)
    }

    pub(crate) fn of_job(&self, id: &str) -> Vec<Event> {
        let id: JobId = id.parse().expect("a job's id");
        self.events.iter().filter(|event| event.job == id).cloned().collect()
    }

    fn told(&self) -> Vec<(EventType, String)> {
        self.events.iter().map(|event| (event.event_type, event.id())).collect()
    }
}

/// What happened, and at which attempt and step.
pub(crate) fn steps(events: &[Event]) -> Vec<(EventType, u32, u32)> {
    events.iter().map(|event| (event.event_type, event.data.attempt, event.data.step)).collect()
}

/// Keeps the broker from confirming events until it is let go: a queue that takes nothing stands beside the log.
pub(crate) struct Jam<'a> {
    stage: &'a Stage,
    queue: String,
}

impl<'a> Jam<'a> {
    pub(crate) async fn of(stage: &'a Stage) -> Self {
        let queue = format!("{}.jam", stage.config.amqp.prefix);
        let channel = stage.rabbit.channel().await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let name = queue.as_str();
        channel.queue_declare(name.into(), QueueDeclareOptions::default(), arguments).await.expect("a queue");
        let (record, options) = (stage.names.record(), QueueBindOptions::default());
        let bound = channel.queue_bind(name.into(), record.into(), "".into(), options, FieldTable::default());
        bound.await.expect("bound");
        Self { stage, queue }
    }

    /// From now on events are confirmed.
    pub(crate) async fn free(self) {
        self.stage.rabbit.delete_queue(&self.queue).await;
    }
}
