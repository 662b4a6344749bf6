//! Consuming: a consumer that is rebuilt when it ends, and the acknowledgement of what it delivers.
//!
//! Each consumer has a channel of its own: an **epoch**. A delivery is bound to the epoch it came on; once that
//! is over, its acknowledgement is a no-op, and the broker hands the job over again. A consumer that yields an
//! error or ends is never polled again (lapin would wait for ever). When only the consumer ended (its queue was
//! deleted, or RabbitMQ 4.3 timed it out), the channel stays until what it delivered is settled.
//!
//! Acknowledgements go through one task per epoch: they are sent with `multiple` as far as deliveries are
//! settled without a gap, and one by one, shortly after, behind a job that takes long.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, ErrorKind,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info};

use super::{
    connection::{Link, LinkDown, REQUEST_TIMEOUT, in_time},
    message::{incoming, short},
    pause::Pauses,
};
use crate::job::wire::Incoming;

/// How long an acknowledgement behind a gap waits for the gap to close.
const STRAGGLE: Duration = Duration::from_millis(50);
/// How long a consumer may get nothing before its source doubts that the broker still knows it.
const QUIET: Duration = Duration::from_secs(30);
/// How long a consumer whose channel is gone is asked why.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A message and the right to settle it.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) incoming: Incoming,
    pub(crate) receipt: Receipt,
}

/// The right, and the duty, to settle one delivery, once. Dropped unsettled (a panic), it hands the message back.
#[derive(Debug)]
pub(crate) struct Receipt {
    epoch: Arc<Epoch>,
    tag: u64,
    settled: bool,
}

impl Receipt {
    /// Which consumer delivered it: the number that [`Source::prepare`] was told.
    pub(crate) fn round(&self) -> u64 {
        self.epoch.round
    }

    /// Whether the broker still counts on this delivery.
    pub(crate) fn is_live(&self) -> bool {
        !self.epoch.over.is_cancelled()
    }

    /// Tells the broker that the message is done with. A no-op once the epoch is over.
    pub(crate) fn ack(mut self) {
        self.settle(Settle::Ack(self.tag));
    }

    /// Gives the message back to its queue.
    pub(crate) fn hand_back(mut self) {
        self.settle(Settle::HandBack(self.tag));
    }

    fn settle(&mut self, settle: Settle) {
        self.settled = true;
        self.epoch.unsettled.fetch_sub(1, Ordering::Relaxed);
        let settle = match settle {
            Settle::HandBack(tag) if !self.epoch.takes_back => Settle::Ack(tag),
            settle => settle,
        };
        // A failure means that the epoch is over.
        let _ = self.epoch.settle.send(settle);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(Settle::HandBack(self.tag));
        }
    }
}

#[derive(Debug)]
enum Settle {
    Ack(u64),
    HandBack(u64),
}

/// One channel that delivered, as long as it lives.
#[derive(Debug)]
struct Epoch {
    /// Which, from 1.
    round: u64,
    /// Whether the queue takes messages back.
    takes_back: bool,
    over: CancellationToken,
    /// Deliveries that are not settled.
    unsettled: AtomicUsize,
    /// Unbounded, but holds at most one entry for each unsettled delivery: bounded by the prefetch.
    settle: mpsc::UnboundedSender<Settle>,
}

impl Epoch {
    fn start(channel: Channel, round: u64, takes_back: bool, consuming: &Consuming) -> Arc<Self> {
        let (settle, requests) = mpsc::unbounded_channel();
        let over = CancellationToken::new();
        let acknowledging = acknowledge(channel, requests, over.clone());
        consuming.acknowledging.spawn_on(acknowledging, &consuming.link.runtime());
        Arc::new(Self { round, takes_back, over, unsettled: AtomicUsize::new(0), settle })
    }

    fn receipt(self: &Arc<Self>, tag: u64) -> Receipt {
        self.unsettled.fetch_add(1, Ordering::Relaxed);
        Receipt { epoch: Arc::clone(self), tag, settled: false }
    }
}

/// Which tags are settled, and which of them the broker knows about.
#[derive(Debug, Default)]
struct Ledger {
    /// All tags up to this one are settled and the broker knows.
    done: u64,
    /// Settled tags above `done` that the broker has not been told of.
    untold: BTreeSet<u64>,
    /// Settled tags above `done` that the broker knows about.
    told: BTreeSet<u64>,
}

impl Ledger {
    /// The highest untold tag that can be acknowledged together with all below it.
    fn contiguous(&mut self) -> Option<u64> {
        let (mut end, mut highest) = (self.done, None);
        loop {
            if self.untold.remove(&(end + 1)) {
                highest = Some(end + 1);
            } else if !self.told.remove(&(end + 1)) {
                break;
            }
            end += 1;
        }
        self.done = end;
        highest
    }

    /// The untold tags behind a gap, to be told one by one.
    fn stragglers(&mut self) -> Vec<u64> {
        let tags: Vec<u64> = std::mem::take(&mut self.untold).into_iter().collect();
        self.told.extend(&tags);
        tags
    }
}

/// The only task that acknowledges on this channel: two `multiple` acks that overtake each other are a channel
/// error.
async fn acknowledge(
    channel: Channel,
    mut requests: mpsc::UnboundedReceiver<Settle>,
    over: CancellationToken,
) {
    let mut ledger = Ledger::default();
    let mut batch = Vec::new();
    let mut straggle_at: Option<Instant> = None;
    loop {
        let straggle = straggle_at.unwrap_or_else(|| Instant::now() + STRAGGLE);
        tokio::select! {
            count = requests.recv_many(&mut batch, 1024) => {
                if count == 0 {
                    // Every receipt is settled and the consumer is gone. A gap that is left now stays: a delivery that
                    // never got here.
                    straggle_at = Some(Instant::now());
                    let last = tell(&channel, &mut ledger, std::iter::empty(), &mut straggle_at);
                    drop(timeout(REQUEST_TIMEOUT, last).await);
                    break;
                }
            }
            () = sleep_until(straggle), if straggle_at.is_some() => {}
            () = over.cancelled() => break,
        }
        let told = tell(&channel, &mut ledger, batch.drain(..), &mut straggle_at);
        match timeout(REQUEST_TIMEOUT, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(reason = %error, "acknowledging ended");
                break;
            }
            Err(_) => break,
        }
    }
    over.cancel();
}

async fn tell(
    channel: &Channel,
    ledger: &mut Ledger,
    batch: impl Iterator<Item = Settle>,
    straggle_at: &mut Option<Instant>,
) -> Result<(), lapin::Error> {
    for settle in batch {
        match settle {
            Settle::Ack(tag) => drop(ledger.untold.insert(tag)),
            Settle::HandBack(tag) => {
                channel.basic_nack(tag, BasicNackOptions { requeue: true, multiple: false }).await?;
                ledger.told.insert(tag);
            }
        }
    }
    if let Some(tag) = ledger.contiguous() {
        channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
    }
    let due = straggle_at.is_some_and(|at| at <= Instant::now());
    if due {
        for tag in ledger.stragglers() {
            channel.basic_ack(tag, BasicAckOptions { multiple: false }).await?;
        }
    }
    *straggle_at = match (ledger.untold.is_empty(), *straggle_at) {
        (true, _) => None,
        (false, Some(at)) if !due => Some(at),
        (false, _) => Some(Instant::now() + STRAGGLE),
    };
    Ok(())
}

/// How to consume, asked anew for each epoch.
pub(crate) trait Source: Send + 'static {
    /// Prepares the channel (declares what is the consumer's own) and says what to consume with which arguments.
    fn prepare(
        &mut self,
        channel: &Channel,
        epoch: u64,
    ) -> impl Future<Output = Result<(String, FieldTable), LinkDown>> + Send;

    /// Nothing came for a while, and nothing is unsettled. `true` asks for another channel and consumer.
    fn when_quiet(&mut self, _: &Channel) -> impl Future<Output = Result<bool, LinkDown>> + Send {
        std::future::ready(Ok(false))
    }

    /// Whether what is left over is handed back. A stream keeps everything, and closes the connection of whoever
    /// hands something back to it.
    fn takes_back(&self) -> bool {
        true
    }

    /// The consumer is registered.
    fn started(&mut self) {}

    /// The consumer is gone, or there was none: the broker refused it, or was away.
    fn ended(&mut self, _: Ending) {}
}

/// How an epoch went that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Its connection ended with something that lapin cannot parse.
    pub(crate) unparsable: bool,
    /// What came before.
    pub(crate) delivered: u64,
}

/// A queue that the topology declares.
pub(crate) struct DeclaredQueue(pub(crate) String);

impl Source for DeclaredQueue {
    async fn prepare(&mut self, _: &Channel, _: u64) -> Result<(String, FieldTable), LinkDown> {
        Ok((self.0.clone(), FieldTable::default()))
    }

    /// A consumer can be forgotten without a word. And when a queue is deleted and at once declared again, RabbitMQ
    /// 3.10 moves its consumer over, counts messages as delivered to it, and delivers none: to look whether the
    /// queue is empty would not find them. To leave that channel gives them back.
    async fn when_quiet(&mut self, _: &Channel) -> Result<bool, LinkDown> {
        Ok(true)
    }
}

/// What a consumer needs besides its source.
pub(crate) struct Consuming {
    pub(crate) link: Link,
    pub(crate) prefetch: u16,
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    /// Stop taking: the consumer is cancelled, and what was delivered but not passed on is handed back.
    pub(crate) stop: CancellationToken,
    /// Whether a consumer is registered on a live channel.
    pub(crate) consuming: Arc<AtomicBool>,
    /// The tasks that acknowledge; each ends when all it has to tell is written.
    pub(crate) acknowledging: TaskTracker,
}

/// Consumes, epoch after epoch, until told to stop.
pub(crate) async fn consume(consuming: Consuming, mut source: impl Source) {
    let Consuming { link, stop, .. } = &consuming;
    let mut pauses = Pauses::new();
    let mut rounds = 0;
    let mut last_error = String::new();
    while !stop.is_cancelled() {
        rounds += 1;
        let began = Instant::now();
        let mut ending = Ending::default();
        let ended = one_epoch(&consuming, &mut source, rounds, &mut ending).await;
        if matches!(ended, Ok(Ended::Renewed)) {
            continue;
        }
        consuming.consuming.store(false, Ordering::Relaxed);
        source.ended(ending);
        match ended {
            Ok(_) => break,
            Err(LinkDown(why)) if why != last_error => {
                info!(reason = why, "consumer ended, starting over");
                last_error = why;
            }
            Err(LinkDown(why)) => debug!(reason = why, "consumer ended, starting over"),
        }
        if began.elapsed() > QUIET {
            pauses.reset();
            last_error.clear();
        }
        let pause = pauses.next();
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(pause) => {}
        }
        if link.up().is_ok() {
            // The connection lives: something the consumer needs was deleted, most likely.
            if let Err(LinkDown(why)) = link.repair().await {
                debug!(reason = why, "cannot declare the topology again");
            }
        }
    }
}

/// Whether the connection ended because lapin could not parse what came. All other errors say nothing of what was to
/// come: the channel or the consumer was refused, or the connection was cut.
fn is_unparsable(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ParsingError(_))
}

/// Why an epoch ended that did not fail.
enum Ended {
    /// Told to stop.
    Told,
    /// The source asked for another one.
    Renewed,
}

/// One channel's consuming.
async fn one_epoch(
    consuming: &Consuming,
    source: &mut impl Source,
    round: u64,
    ending: &mut Ending,
) -> Result<Ended, LinkDown> {
    let Consuming { link, prefetch, deliveries, stop, .. } = consuming;
    let up = tokio::select! {
        () = stop.cancelled() => return Ok(Ended::Told),
        up = link.wait_up(Instant::now() + REQUEST_TIMEOUT) => up?,
    };
    let channel = up.channel().await?;
    in_time("set the prefetch", channel.basic_qos(*prefetch, BasicQosOptions::default())).await?;
    let (queue, arguments) = source.prepare(&channel, round).await?;
    let consumed = channel.basic_consume(short(&queue), "".into(), BasicConsumeOptions::default(), arguments);
    let mut consumer = in_time("consume", consumed).await?;
    let tag = consumer.tag();
    let epoch = Epoch::start(channel.clone(), round, source.takes_back(), consuming);
    consuming.consuming.store(true, Ordering::Relaxed);
    source.started();
    let mut quiet = Instant::now() + QUIET;
    let mut buffer = None;
    let ended = loop {
        tokio::select! {
            () = stop.cancelled() => break Ended::Told,
            () = epoch.over.cancelled() => {
                // The consumer may know more, behind what it still holds.
                while let Ok(Some(left)) = timeout(LAST_WORDS, consumer.next()).await {
                    match left {
                        Ok(_) => ending.delivered += 1,
                        Err(error) => ending.unparsable = is_unparsable(&error),
                    }
                }
                return Err(LinkDown("the channel is gone".to_owned()));
            }
            next = consumer.next(), if buffer.is_none() => match next {
                Some(Ok(delivery)) => {
                    ending.delivered += 1;
                    quiet = Instant::now() + QUIET;
                    let receipt = epoch.receipt(delivery.delivery_tag);
                    buffer = Some(Delivery { incoming: incoming(delivery), receipt });
                }
                Some(Err(error)) => {
                    ending.unparsable = is_unparsable(&error);
                    epoch.over.cancel();
                    return Err(LinkDown(error.to_string()));
                }
                None if channel.status().connected() => {
                    // Cancelled by the server. The epoch lives on in its receipts.
                    return Err(LinkDown(format!("the broker cancelled the consumer of {queue}")));
                }
                None => {
                    epoch.over.cancel();
                    return Err(LinkDown("the channel is gone".to_owned()));
                }
            },
            room = deliveries.reserve(), if buffer.is_some() => match room {
                Ok(room) => room.send(buffer.take().expect("checked by the branch's condition")),
                Err(_) => break Ended::Told, // nobody takes deliveries any more
            },
            () = sleep_until(quiet), if buffer.is_none() => {
                if epoch.unsettled.load(Ordering::Relaxed) == 0 && source.when_quiet(&channel).await? {
                    break Ended::Renewed;
                }
                quiet = Instant::now() + QUIET;
            }
        }
    };
    // Dropped unsettled, a delivery is handed back.
    drop(buffer);
    let cancelled = channel.basic_cancel(tag, BasicCancelOptions::default());
    let _ = in_time("cancel the consumer", cancelled).await;
    while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
        drop(epoch.receipt(delivery.delivery_tag));
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn acks_are_joined_up_to_the_first_gap() {
        let mut ledger = Ledger::default();
        ledger.untold.extend([1, 2, 4, 5]);
        assert_eq!(ledger.contiguous(), Some(2));
        assert_eq!(ledger.contiguous(), None);
        assert_eq!(ledger.stragglers(), [4, 5]);
        ledger.untold.insert(3);
        assert_eq!(ledger.contiguous(), Some(3), "4 and 5 are known already");
        assert_eq!(ledger.done, 5);
    }

    #[test]
    fn a_message_handed_back_is_never_acknowledged() {
        let mut ledger = Ledger::default();
        ledger.told.insert(1);
        assert_eq!(ledger.contiguous(), None);
        ledger.untold.insert(2);
        assert_eq!(ledger.contiguous(), Some(2), "1 is settled, so acknowledging up to 2 touches only 2");
    }

    proptest! {
        /// Whatever the order, each tag is told exactly once, and no `multiple` covers an unsettled one.
        #[test]
        fn every_tag_is_told_once(
            order in Just((1..=40_u64).collect::<Vec<_>>()).prop_shuffle(),
            handed_back in proptest::collection::btree_set(1..=40_u64, 0..10),
            straggle in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let mut ledger = Ledger::default();
            let (mut settled, mut told) = (BTreeSet::new(), BTreeSet::new());
            for (tag, straggle) in order.into_iter().zip(straggle) {
                settled.insert(tag);
                if handed_back.contains(&tag) {
                    ledger.told.insert(tag);
                    prop_assert!(told.insert(tag));
                } else {
                    ledger.untold.insert(tag);
                }
                if let Some(end) = ledger.contiguous() {
                    for below in 1..=end {
                        prop_assert!(settled.contains(&below), "{} covers {}, which runs", end, below);
                        told.insert(below);
                    }
                }
                if straggle {
                    for tag in ledger.stragglers() {
                        prop_assert!(told.insert(tag), "{} told twice", tag);
                    }
                }
            }
            prop_assert_eq!(told.len(), 40);
            prop_assert_eq!(ledger.done, 40);
        }
    }
}
