//! A pass: going once over what waits in a queue, message by message.
//!
//! AMQP cannot take one message out of a queue. A pass gets them one after another, hands them to whoever decides, and
//! acknowledges those that are done with. The others stay: while they are few, they are held and handed back at the
//! end, so that nothing is rewritten; what is more goes to the queue's tail (published again, confirmed, then
//! acknowledged). A pass sees what waited when it began, and ends. RabbitMQ says that nothing waits also where it does
//! not know (the leader of a quorum queue does not answer, or there is none), so only a get that finds nothing is a no.
//!
//! One pass at a time goes over a queue, in the whole cluster: it declares an exclusive queue and consumes it
//! exclusively. Both go with the pass's channel, however it ends, and so do its unsettled messages.
//!
//! `basic.get` instead of a consumer: nothing is delivered that was not asked for, so the bytes in memory and the time
//! for which a message is unsettled are bounded here, whatever the rate and the size of the messages.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use lapin::{
    Channel, Consumer, ErrorKind,
    options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::FieldTable,
};
use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::{
    admin::is_not_found,
    connection::{Link, LinkDown, REQUEST_TIMEOUT, in_time},
    message::{incoming, short},
    names::Names,
    publisher::{Publisher, Target},
};
use crate::job::{
    Kind, QueueName,
    envelope::carried_all,
    wire::{Incoming, Message},
};

/// Most messages handed out at once.
pub(crate) const WINDOW: usize = 500;
/// Most bytes of bodies handed out at once, but for a single message that is longer.
const WINDOW_BYTES: usize = 64 << 20;
/// Most messages that are held until the end; beyond, they are sent to the tail. A quorum queue gets slower with each.
const HELD_MAX: usize = 2_000;

/// Why a pass cannot begin, or did not end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PassError {
    /// Another process, or another act of this one, goes over the queue.
    #[error("another pass over the queue is under way")]
    Busy,
    /// There is no such queue.
    #[error("there is no such queue")]
    NoQueue,
    /// The broker is away. What was not acknowledged is in the queue again.
    #[error("the broker was lost: {0}")]
    Lost(String),
}

impl From<LinkDown> for PassError {
    fn from(down: LinkDown) -> Self {
        Self::Lost(down.0)
    }
}

/// A message that a pass has met.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) incoming: Incoming,
    tag: u64,
}

/// Begins passes; cheap to clone.
#[derive(Clone)]
pub(crate) struct Passes {
    link: Link,
    publisher: Publisher,
    names: Names,
    /// Longest time that a pass holds a message: well below the broker's consumer timeout.
    lasts: Duration,
}

impl Passes {
    /// Passes on `link`, which must not be one that publishes: an alarm would block it as a whole.
    pub(crate) fn new(link: Link, publisher: Publisher, names: Names, consumer_timeout: Duration) -> Self {
        Self { link, publisher, names, lasts: consumer_timeout / 4 }
    }

    /// Begins a pass over the dead-letter queue of `queue`; with `most`, one that goes on over its first so many messages.
    pub(crate) async fn over_dead(&self, queue: &QueueName, most: Option<u64>) -> Result<Pass, PassError> {
        self.begin(self.names.dead_queue(queue), queue, most).await
    }

    /// The same over the work queue `queue`. Workers go on taking from it.
    pub(crate) async fn over_jobs(&self, queue: &QueueName, most: Option<u64>) -> Result<Pass, PassError> {
        self.begin(self.names.queue(queue), queue, most).await
    }

    /// Takes the right to pass over `queue`, and nothing else.
    pub(crate) async fn lock(&self, queue: &QueueName) -> Result<Lock, PassError> {
        let channel = self.channel().await?;
        Lock::take(channel, &self.names, queue).await
    }

    async fn channel(&self) -> Result<Channel, PassError> {
        Ok(self.link.wait_up(Instant::now() + REQUEST_TIMEOUT).await?.channel().await?)
    }

    async fn begin(&self, name: String, queue: &QueueName, most: Option<u64>) -> Result<Pass, PassError> {
        // A queue that is missing closes the channel that asks.
        let channel = self.channel().await?;
        let ready = count(&channel, &name).await?;
        let lock = Lock::take(channel, &self.names, queue).await?;
        Ok(Pass {
            lock,
            name,
            queue: queue.clone(),
            exchange: self.names.dead(),
            publisher: self.publisher.clone(),
            rest: most.map_or(Rest::of(ready), Rest::known),
            unsettled: BTreeSet::new(),
            moved: false,
            acked: false,
            held_max: if most.is_some() { 0 } else { HELD_MAX },
            ends_at: Instant::now() + self.lasts,
        })
    }
}

/// How many messages wait in a queue, as RabbitMQ says.
async fn count(channel: &Channel, name: &str) -> Result<u32, PassError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(short(name), passive, FieldTable::default());
    match timeout(REQUEST_TIMEOUT, asked).await {
        Ok(Ok(found)) => Ok(found.message_count()),
        Ok(Err(error)) if is_not_found(&error) => Err(PassError::NoQueue),
        Ok(Err(error)) => Err(PassError::Lost(error.to_string())),
        Err(_) => Err(PassError::Lost("no answer about the queue".to_owned())),
    }
}

/// How many messages a pass has still to meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest {
    /// As far as they were counted.
    left: u64,
    /// Whether the count was one. 0 may stand for "no answer".
    counted: bool,
}

impl Rest {
    /// What RabbitMQ has counted.
    fn of(ready: u32) -> Self {
        Self { left: ready.into(), counted: ready > 0 }
    }

    /// What an earlier pass has left. Where it handed some back just now, RabbitMQ may not count them yet, but they are
    /// what is got first.
    fn known(left: u64) -> Self {
        Self { left, counted: true }
    }

    fn is_over(self) -> bool {
        self.counted && self.left == 0
    }

    /// A message was met.
    fn meet(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// A get found nothing.
    fn end(&mut self) {
        *self = Self::known(0);
    }
}

/// The right to pass over a queue, as long as it lives.
pub(crate) struct Lock {
    channel: Channel,
    /// The work queue it is about.
    work: String,
    /// Exclusive: a second one is refused also on this very connection.
    _consumer: Consumer,
}

impl Lock {
    async fn take(channel: Channel, names: &Names, queue: &QueueName) -> Result<Self, PassError> {
        let name = &names.pass_lock(queue);
        let transient = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let alone = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let taking = async {
            channel.queue_declare(short(name), transient, FieldTable::default()).await?;
            channel.basic_consume(short(name), "".into(), alone, FieldTable::default()).await
        };
        match timeout(REQUEST_TIMEOUT, taking).await {
            Ok(Ok(consumer)) => Ok(Self { channel, work: names.queue(queue), _consumer: consumer }),
            Ok(Err(error)) if is_taken(&error) => Err(PassError::Busy),
            Ok(Err(error)) => Err(PassError::Lost(error.to_string())),
            Err(_) => Err(PassError::Lost("no answer to the asking for the lock".to_owned())),
        }
    }

    /// Whether no job waits in the work queue: a get finds none. One that is found goes back at once, and the broker
    /// counts that.
    pub(crate) async fn no_jobs(&self) -> Result<bool, PassError> {
        let got = self.channel.basic_get(short(&self.work), BasicGetOptions::default());
        let Some(got) = in_time("look for a job", got).await? else { return Ok(true) };
        let back = BasicNackOptions { multiple: false, requeue: true };
        in_time("hand back", self.channel.basic_nack(got.delivery.delivery_tag, back)).await?;
        Ok(false)
    }

    /// Gives the right back.
    pub(crate) async fn release(self) {
        // Whatever fails here: the broker gives it back when the channel is gone, which the drop sees to.
        let _ = in_time("close the pass", self.channel.close(200, "done".into())).await;
    }
}

/// Whether an error says that somebody else has the lock.
fn is_taken(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(amqp) = error.kind() else { return false };
    matches!(amqp.kind(), AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED | AMQPSoftError::ACCESSREFUSED))
        && (amqp.get_message().as_str().contains("exclusive"))
}

/// One pass. Dropped, it leaves all that is unsettled in the queue.
pub(crate) struct Pass {
    lock: Lock,
    name: String,
    queue: QueueName,
    exchange: String,
    publisher: Publisher,
    /// Messages that waited at the beginning and have not been met.
    rest: Rest,
    /// Delivery tags of those met that are still there.
    unsettled: BTreeSet<u64>,
    /// Whether some were sent to the queue's tail.
    moved: bool,
    /// Whether some were acknowledged since the last get.
    acked: bool,
    /// How many may be held. A pass that goes on holds none: else it might meet, in all its time, only those that the
    /// one before it held.
    held_max: usize,
    ends_at: Instant,
}

impl Pass {
    /// The next messages, at most `max` and at most [`WINDOW`]. None: the pass is over.
    pub(crate) async fn take(&mut self, max: usize) -> Result<Vec<Letter>, PassError> {
        let (mut letters, mut bytes) = (Vec::new(), 0);
        while letters.len() < max.clamp(1, WINDOW) && bytes < WINDOW_BYTES && !self.is_over() {
            let Some(letter) = self.get().await? else {
                self.rest.end();
                break;
            };
            self.rest.meet();
            if !self.rest.counted {
                // So there are some after all.
                let ready = count(&self.lock.channel, &self.name).await?;
                self.rest = Rest::of(ready);
            }
            bytes += letter.incoming.message.body.len();
            letters.push(letter);
        }
        Ok(letters)
    }

    async fn get(&mut self) -> Result<Option<Letter>, PassError> {
        let got = self.lock.channel.basic_get(short(&self.name), BasicGetOptions::default());
        let got = in_time("get a message", got).await?;
        self.acked = false;
        Ok(got.map(|got| {
            self.unsettled.insert(got.delivery.delivery_tag);
            Letter { tag: got.delivery.delivery_tag, incoming: incoming(got.delivery) }
        }))
    }

    /// Whether nothing more is handed out: all was met, or the pass has lasted long enough.
    fn is_over(&self) -> bool {
        self.rest.is_over() || self.is_late()
    }

    /// Whether the pass ends before it has met everything, because it must not hold messages any longer. Another one
    /// goes on, over the [`Pass::rest`].
    pub(crate) fn is_late(&self) -> bool {
        !self.rest.is_over() && Instant::now() >= self.ends_at
    }

    /// How many messages another pass has to meet, if this one ends now: those not met, and before them those that
    /// are handed back. None: that is not known.
    pub(crate) fn rest(&self) -> Option<u64> {
        let held = self.unsettled.len() as u64;
        self.rest.counted.then(|| self.rest.left + held)
    }

    /// Takes a message out of the queue: what follows from it is confirmed.
    pub(crate) async fn done(&mut self, letter: &Letter) -> Result<(), PassError> {
        self.unsettled.remove(&letter.tag);
        self.acked = true;
        let acked = self.lock.channel.basic_ack(letter.tag, BasicAckOptions::default());
        Ok(in_time("acknowledge", acked).await?)
    }

    /// Leaves a message of a dead-letter queue in it; whether it is held, and met again by a pass that goes on.
    pub(crate) async fn leave(&mut self, letter: Letter, deadline: Instant) -> Result<bool, PassError> {
        Ok(self.leave_all(vec![letter], deadline).await? == 1)
    }

    /// Leaves messages of a dead-letter queue in it; how many are held.
    pub(crate) async fn leave_all(
        &mut self,
        mut letters: Vec<Letter>,
        deadline: Instant,
    ) -> Result<usize, PassError> {
        let others = self.unsettled.len().saturating_sub(letters.len());
        let room = self.held_max.saturating_sub(others).min(letters.len());
        let moving = letters.split_off(room);
        let moved = moving.iter().map(|letter| {
            let target = Target {
                exchange: self.exchange.clone(),
                key: dead_key(&self.queue, &letter.incoming.message),
                mandatory: true,
            };
            self.publisher.publish_patiently(target, tail_copy(&letter.incoming.message), deadline)
        });
        // Together: each waits for the broker's disk.
        let moved = join_all(moved).await;
        let mut failed = None;
        for (letter, moved) in moving.iter().zip(moved) {
            match moved {
                Ok(()) => {
                    self.moved = true;
                    self.done(letter).await?;
                }
                Err(error) => failed = Some(PassError::Lost(error.to_string())),
            }
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
        Ok(room)
    }

    /// Ends the pass: what is unsettled is in its queue again, and another pass may begin.
    pub(crate) async fn end(mut self) -> Result<(), PassError> {
        if self.acked {
            // RabbitMQ keeps the acknowledgements of a quorum queue in the channel while more than 32 are on their way,
            // and a channel that is closed takes them along: the messages come back. A get is answered behind those
            // that are on their way, which lets the others go. What it gets is handed back.
            self.get().await?;
        }
        // The tag must be one that is unsettled: any other is a channel error.
        if let Some(last) = self.unsettled.last() {
            let back = BasicNackOptions { multiple: true, requeue: true };
            in_time("hand back", self.lock.channel.basic_nack(*last, back)).await?;
        }
        self.lock.release().await;
        Ok(())
    }
}

/// Routing key of a dead message at the exchange of dead jobs.
pub(crate) fn dead_key(queue: &QueueName, message: &Message) -> String {
    // The kind may be anything; only the queue routes.
    let kind = message.kind.as_deref().and_then(|kind| Kind::parse(kind).ok());
    Names::dead_key(queue, kind.as_ref())
}

/// The message as it is published once more to its own queue.
fn tail_copy(message: &Message) -> Message {
    Message { headers: carried_all(&message.headers), ..message.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::dead::mark;

    /// Meets what is there, with what RabbitMQ says when it is asked how much that is; how many were met.
    fn go_over(mut there: u32, most: Option<u64>, mut counts: impl Iterator<Item = u32>) -> u32 {
        let counted = Rest::of(counts.next().unwrap());
        let mut rest = most.map_or(counted, Rest::known);
        let mut met = 0;
        while !rest.is_over() {
            if there == 0 {
                rest.end();
                break;
            }
            (there, met) = (there - 1, met + 1);
            rest.meet();
            if !rest.counted {
                rest = Rest::of(counts.next().unwrap());
            }
        }
        met
    }

    #[test]
    fn a_count_of_nothing_is_not_believed() {
        let none = || std::iter::repeat(0);
        for (there, most, counts, met) in [
            (0, None, vec![], 0),
            (7, None, vec![7], 7),
            (7, None, vec![], 7),
            (7, None, vec![0, 6], 7),
            (7, None, vec![0, 0, 5], 7),
            // What came after the count is not met.
            (9, None, vec![7], 7),
            (9, None, vec![0, 6], 7),
            (3, None, vec![7], 3),
            // A pass that goes on.
            (9, Some(4), vec![9], 4),
            (9, Some(4), vec![], 4),
            (9, Some(4), vec![3], 4),
            (2, Some(4), vec![2], 2),
            (9, Some(0), vec![9], 0),
        ] {
            let told = format!("{there} {most:?} {counts:?}");
            assert_eq!(go_over(there, most, counts.into_iter().chain(none())), met, "{told}");
        }
    }

    #[test]
    fn a_copy_for_the_tail_keeps_its_marks_and_nothing_of_the_brokers() {
        let mut message = Message { message_id: Some("m".into()), body: "x".into(), ..Message::default() };
        for name in [mark::REASON, mark::ERROR, "mine", "x-death", "x-delivery-count", "CC"] {
            message.headers.insert(name.to_owned(), "v".into());
        }
        let copy = tail_copy(&message);
        assert_eq!(copy.headers.keys().collect::<Vec<_>>(), [mark::ERROR, mark::REASON, "mine"]);
        assert_eq!((copy.message_id, copy.body), (message.message_id, message.body));
    }

    #[test]
    fn a_kind_that_is_none_does_not_route() {
        let queue = QueueName::parse("media").unwrap();
        let of =
            |kind: &str| dead_key(&queue, &Message { kind: Some(kind.to_owned()), ..Message::default() });
        assert_eq!(
            (of("a.b"), of("No Kind!"), dead_key(&queue, &Message::default())),
            ("media.a.b".into(), "media.unknown".into(), "media.unknown".into())
        );
    }
}
