//! The patterns of bare lapin: publishing, consuming, calling; each with or without events.

use std::time::{Duration, Instant};

use futures_util::{
    FutureExt, StreamExt,
    future::{join_all, try_join},
    stream::{FuturesOrdered, FuturesUnordered},
};
use lapin::{
    BasicProperties, Channel, Confirmation, Consumer, PublisherConfirm,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::sync::oneshot;

use super::{Baseline, BaselineError, Events, LONGEST, Span, bounded};
use crate::amqp::message::short;

/// Publishes polled together.
const BATCH: usize = 500;
/// Unconfirmed publishes.
const WINDOW: usize = 2000;
/// Deliveries taken ahead.
const PREFETCH: u16 = 500;
/// Deliveries that are acknowledged together.
const ACK_EVERY: usize = 50;
/// Most events in one message.
pub(super) const EVENTS_MAX: usize = 200;

/// An event that is confirmed, or a batch of them: the last delivery that it is about, and of how many it is.
type Written = Result<(u64, usize), lapin::Error>;

impl Baseline {
    /// Publishes `count` messages, with an event each, and awaits all confirms.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn submit(&self, count: usize, events: Events) -> Result<Span, BaselineError> {
        bounded(LONGEST, async {
            let channel = self.confirming_channel().await?;
            let began = Instant::now();
            self.publish_all(&channel, count, events).await?;
            Ok(Span { began, ended: Instant::now() })
        })
        .await
    }

    /// Consumes `count` messages, writes an event for each, and acknowledges what has its event. The time begins at the
    /// first delivery. Says when it is there.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn work(
        &self,
        count: usize,
        events: Events,
        ready: oneshot::Sender<()>,
    ) -> Result<Span, BaselineError> {
        bounded(LONGEST, async {
            let (channel, consumer) = self.consumer().await?;
            // Whoever is gone does not wait for it.
            let _ = ready.send(());
            let began = match events {
                Events::None => consume_all(&channel, consumer, count).await?,
                _ => self.consume_with_events(&channel, consumer, count, events).await?,
            };
            Ok(Span { began, ended: Instant::now() })
        })
        .await
    }

    /// Answers each message with its body until `stop` is dropped; with events: once its event is confirmed. Says when
    /// it is there.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn serve(
        &self,
        events: Events,
        ready: oneshot::Sender<()>,
        stop: oneshot::Receiver<()>,
    ) -> Result<(), BaselineError> {
        bounded(LONGEST, async {
            let (serving, mut requests) = self.consumer().await?;
            let (replying, confirming) =
                (self.publish.create_channel().await?, self.confirming_channel().await?);
            // Whoever is gone does not wait for it.
            let _ = ready.send(());
            let serve = async {
                while let Some(Ok(request)) = requests.next().await {
                    let Some(to) = request.properties.reply_to().clone() else { continue };
                    if events != Events::None {
                        confirmed(&self.publish_event(&confirming, 1).await?.await?)?;
                    }
                    let options = BasicPublishOptions::default();
                    let reply = BasicProperties::default();
                    replying.basic_publish("".into(), to, options, &request.data, reply).await?;
                    serving.basic_ack(request.delivery_tag, BasicAckOptions::default()).await?;
                }
                Ok::<(), lapin::Error>(())
            };
            tokio::select! {
                served = serve => served,
                _ = stop => Ok(()),
            }
        })
        .await
    }

    /// Calls who serves, `count` times one after the other; the time of each. With events: job and event are confirmed
    /// as well.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub async fn call(&self, count: usize, events: Events) -> Result<Vec<Duration>, BaselineError> {
        bounded(LONGEST, async {
            let caller = match events {
                Events::None => self.publish.create_channel().await?,
                _ => self.confirming_channel().await?,
            };
            let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            let to = caller.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
            let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let mut answers =
                caller.basic_consume(to.clone(), "".into(), no_ack, FieldTable::default()).await?;
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                let began = Instant::now();
                let properties = persistent().with_reply_to(to.clone());
                let request = self.publish_to(&caller, short(&self.queue), &self.body, properties);
                match events {
                    Events::None => drop(request.await?),
                    _ => {
                        // Polled together, so written together.
                        let (job, event) = try_join(request, self.publish_event(&caller, 1)).await?;
                        let (job, event) = try_join(job, event).await?;
                        confirmed(&job).and(confirmed(&event))?;
                    }
                }
                answers.next().await.transpose()?;
                times.push(began.elapsed());
            }
            Ok(times)
        })
        .await
    }

    async fn consumer(&self) -> Result<(Channel, Consumer), lapin::Error> {
        let channel = self.consume.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(short(&self.queue), "".into(), options, FieldTable::default()).await?;
        Ok((channel, consumer))
    }

    async fn publish_all(&self, channel: &Channel, count: usize, events: Events) -> Result<(), lapin::Error> {
        let mut confirms = FuturesUnordered::new();
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH);
            left -= batch;
            let jobs = (0..batch).map(|_| {
                self.publish_to(channel, short(&self.queue), &self.body, persistent()).left_future()
            });
            let batches = parts(batch, events).map(|part| self.publish_event(channel, part).right_future());
            for confirm in join_all(jobs.chain(batches)).await {
                confirms.push(confirm?);
            }
            while confirms.len() > WINDOW {
                if let Some(confirm) = confirms.next().await {
                    confirmed(&confirm?)?;
                }
            }
        }
        while let Some(confirm) = confirms.next().await {
            confirmed(&confirm?)?;
        }
        Ok(())
    }

    /// When the first one came.
    async fn consume_with_events(
        &self,
        channel: &Channel,
        consumer: Consumer,
        count: usize,
        events: Events,
    ) -> Result<Instant, lapin::Error> {
        let log = self.confirming_channel().await?;
        let mut deliveries = consumer.ready_chunks(EVENTS_MAX);
        let mut writing = FuturesOrdered::new();
        let (mut began, mut taken, mut done) = (None, 0, 0);
        while done < count {
            tokio::select! {
                Some(written) = writing.next() => done += acknowledge(channel, &mut writing, written).await?,
                Some(some) = deliveries.next(), if taken < count => {
                    began.get_or_insert_with(Instant::now);
                    let some = some.into_iter().collect::<Result<Vec<Delivery>, lapin::Error>>()?;
                    taken += some.len();
                    for part in some.chunks(if events == Events::Each { 1 } else { EVENTS_MAX }) {
                        let (last, size) = (part[part.len() - 1].delivery_tag, part.len());
                        let log = &log;
                        writing.push_back(async move {
                            confirmed(&self.publish_event(log, size).await?.await?)?;
                            Ok((last, size))
                        });
                    }
                }
                else => return Err(std::io::Error::other("the deliveries ended").into()),
            }
        }
        Ok(began.unwrap_or_else(Instant::now))
    }

    /// A message with so many events.
    async fn publish_event(
        &self,
        channel: &Channel,
        events: usize,
    ) -> Result<PublisherConfirm, lapin::Error> {
        let body = &self.events[..self.body.len() * events];
        self.publish_to(channel, short(&self.log), body, persistent()).await
    }

    async fn publish_to(
        &self,
        channel: &Channel,
        queue: ShortString,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<PublisherConfirm, lapin::Error> {
        channel.basic_publish("".into(), queue, BasicPublishOptions::default(), body, properties).await
    }
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

/// How many events are in each message about `count` jobs.
fn parts(count: usize, events: Events) -> impl Iterator<Item = usize> {
    let size = match events {
        Events::None => 0,
        Events::Each => 1,
        Events::Batched => EVENTS_MAX,
    };
    let count = if size == 0 { 0 } else { count };
    (0..count).step_by(size.max(1)).map(move |from| size.min(count - from))
}

fn confirmed(confirm: &Confirmation) -> Result<(), lapin::Error> {
    match confirm {
        Confirmation::Ack(_) => Ok(()),
        _ => Err(std::io::Error::other("the broker refused a message").into()),
    }
}

/// When the first one came.
async fn consume_all(
    channel: &Channel,
    mut consumer: Consumer,
    count: usize,
) -> Result<Instant, lapin::Error> {
    let (mut began, mut seen) = (None, 0);
    while seen < count {
        let Some(delivery) = consumer.next().await else {
            return Err(std::io::Error::other("the deliveries ended").into());
        };
        let delivery = delivery?;
        began.get_or_insert_with(Instant::now);
        seen += 1;
        if seen % ACK_EVERY == 0 || seen == count {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
    }
    Ok(began.unwrap_or_else(Instant::now))
}

/// Acknowledges all whose events are confirmed by now; how many these are.
async fn acknowledge<F: Future<Output = Written>>(
    channel: &Channel,
    writing: &mut FuturesOrdered<F>,
    first: Written,
) -> Result<usize, lapin::Error> {
    let (mut last, mut done) = first?;
    while let Some(Some(next)) = writing.next().now_or_never() {
        let (tag, size) = next?;
        (last, done) = (tag, done + size);
    }
    channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_shared_out_to_messages() {
        for (count, events, expected) in [
            (500, Events::None, vec![]),
            (3, Events::Each, vec![1, 1, 1]),
            (500, Events::Batched, vec![200, 200, 100]),
            (200, Events::Batched, vec![200]),
            (0, Events::Batched, vec![]),
        ] {
            assert_eq!(parts(count, events).collect::<Vec<_>>(), expected, "{count} {events:?}");
        }
    }
}
