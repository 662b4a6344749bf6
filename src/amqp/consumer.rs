//! Consuming: a consumer that is rebuilt when it ends, and the acknowledgement of what it delivers.
//!
//! Each consumer has a channel of its own: an **epoch**. A delivery is bound to the epoch it came on; once that
//! is over, its acknowledgement is a no-op, and the broker hands the job over again. A consumer that yields an
//! error or ends is never polled again (lapin would wait for ever). When only the consumer ended (its queue was
//! deleted, or RabbitMQ 4.3 timed it out), the channel stays until what it delivered is settled.
//!
//! A job that takes long is left behind with its channel, and what comes after it gets another one: when RabbitMQ ends a
//! channel because a delivery was not settled within its consumer timeout, it takes only what is about as old with it.
//!
//! Acknowledgements go through one task per epoch: they are sent with `multiple` as far as deliveries are
//! settled without a gap, and one by one, shortly after, behind a job that takes long.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, ErrorKind,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
        QueueDeclareOptions,
    },
    types::FieldTable,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    connection::{Link, LinkDown, REQUEST_TIMEOUT, Up, in_time},
    message::{incoming, short},
    pause::Pauses,
};
use crate::job::wire::Incoming;

/// How long an acknowledgement behind a gap waits for the gap to close.
const STRAGGLE: Duration = Duration::from_millis(50);
/// How long acknowledgements that are nothing but credit wait for others; and how many do not.
const MOMENT: Duration = Duration::from_millis(10);
const AT_MOST_ALONE: usize = 16;
/// How long a consumer may get nothing before its source doubts that the broker still knows it.
pub(crate) const QUIET: Duration = Duration::from_secs(30);
/// How often it is looked whether deliveries take long.
const LOOK: Duration = Duration::from_secs(1);
/// Most channels of a queue that are left behind with what takes long.
const LEFT_MAX: usize = 16;
/// What comes within this time after a quiet consumer was renewed was kept from it.
const AT_ONCE: Duration = Duration::from_secs(1);
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
        // `over` may come a little later, see [`acknowledge`].
        !self.epoch.over.is_cancelled() && self.epoch.channel.status().connected()
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
        self.epoch.unsettled().remove(&self.tag);
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
    channel: Channel,
    /// Deliveries that are not settled, and when they came.
    unsettled: Mutex<BTreeMap<u64, Instant>>,
    /// Unbounded, but holds at most one entry for each unsettled delivery: bounded by the prefetch.
    settle: mpsc::UnboundedSender<Settle>,
}

impl Epoch {
    fn start(
        up: &Up,
        channel: Channel,
        round: u64,
        source: &impl Source,
        consuming: &Consuming,
    ) -> Arc<Self> {
        let (settle, requests) = mpsc::unbounded_channel();
        let over = CancellationToken::new();
        let (takes_back, moment) =
            (source.takes_back(), if source.is_credit() { MOMENT } else { Duration::ZERO });
        let acknowledging = acknowledge(up.clone(), channel.clone(), requests, over.clone(), moment);
        consuming.acknowledging.spawn_on(acknowledging, &consuming.link.runtime());
        Arc::new(Self { round, takes_back, over, channel, unsettled: Mutex::default(), settle })
    }

    fn unsettled(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many deliveries are not settled, and how many of them came so long ago.
    fn open(&self, long: Option<Duration>) -> (usize, usize) {
        let unsettled = self.unsettled();
        let is_long = |came: &Instant| long.is_some_and(|long| came.elapsed() >= long);
        (unsettled.len(), unsettled.values().filter(|came| is_long(came)).count())
    }

    fn receipt(self: &Arc<Self>, tag: u64) -> Receipt {
        self.unsettled().insert(tag, Instant::now());
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
    up: Up,
    channel: Channel,
    mut requests: mpsc::UnboundedReceiver<Settle>,
    over: CancellationToken,
    moment: Duration,
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
                // Nobody else waits for these: they are credit for more, of which there is some left.
                let until = Instant::now() + moment;
                while !moment.is_zero() && batch.len() < AT_MOST_ALONE {
                    match timeout_at(until, requests.recv_many(&mut batch, 1024)).await {
                        Ok(more) if more > 0 => {}
                        _ => break,
                    }
                }
            }
            () = sleep_until(straggle), if straggle_at.is_some() => {}
            () = over.cancelled() => break,
            // Where the consumer is gone nobody else would notice.
            () = sleep(LOOK) => if !channel.status().connected() { break },
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
    // Its consumer would know before, if it had one.
    if !over.is_cancelled() && !channel.status().connected() && up.is_alive() {
        warn!(
            "the broker has ended a channel with what takes long on it (after its consumer_timeout?): it hands that out again"
        );
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

    /// Nothing came for a while, although more might. `true` asks for another channel and consumer.
    fn when_quiet(&mut self, _: &Channel) -> impl Future<Output = Result<bool, LinkDown>> + Send {
        std::future::ready(Ok(false))
    }

    /// Whether what is left over is handed back. A stream keeps everything, and closes the connection of whoever
    /// hands something back to it.
    fn takes_back(&self) -> bool {
        true
    }

    /// Whether acknowledgements are nothing but credit for more: nothing is handed out again without them.
    fn is_credit(&self) -> bool {
        false
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
    async fn when_quiet(&mut self, channel: &Channel) -> Result<bool, LinkDown> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = channel.queue_declare(short(&self.0), passive, FieldTable::default());
        let waiting = in_time("look at the queue", asked).await?.message_count();
        if waiting > 0 {
            warn!(
                queue = self.0,
                waiting, "messages wait and the broker delivered none for {QUIET:?}: the consumer is renewed"
            );
        }
        Ok(true)
    }
}

/// What a consumer needs besides its source.
pub(crate) struct Consuming {
    pub(crate) link: Link,
    pub(crate) prefetch: u16,
    /// After what time a delivery takes long; none: all are settled at once.
    pub(crate) long: Option<Duration>,
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
    let mut before = Before::default();
    let mut last_error = String::new();
    while !stop.is_cancelled() {
        rounds += 1;
        let began = Instant::now();
        let mut ending = Ending::default();
        let ended = one_epoch(&consuming, &mut source, rounds, &mut before, &mut ending).await;
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

/// What the epochs before left behind.
#[derive(Debug, Default)]
struct Before {
    /// Those that live on in their receipts, without a consumer.
    epochs: Vec<Weak<Epoch>>,
    /// The last one was renewed because nothing came.
    quiet: bool,
}

impl Before {
    fn add(&mut self, epoch: &Arc<Epoch>) {
        self.epochs.push(Arc::downgrade(epoch));
    }

    /// Whether one more may be left behind.
    fn has_room(&self) -> bool {
        self.epochs.len() < LEFT_MAX
    }

    /// Deliveries that are not settled there, and how many of them take long.
    fn open(&mut self, long: Option<Duration>) -> (usize, usize) {
        self.epochs.retain(|epoch| epoch.upgrade().is_some_and(|epoch| !epoch.over.is_cancelled()));
        let each = self.epochs.iter().filter_map(Weak::upgrade).map(|epoch| epoch.open(long));
        each.fold((0, 0), |sum, open| (sum.0 + open.0, sum.1 + open.1))
    }
}

/// How many deliveries a consumer may have, beside those that take long on other channels.
fn allowed(prefetch: u16, long_before: usize) -> u16 {
    prefetch.saturating_sub(u16::try_from(long_before).unwrap_or(u16::MAX)).max(1)
}

/// Whether what comes next gets another channel: something here takes long and there is room for more beside it; or what
/// took long before has been settled, or what was left behind takes long now. A consumer's prefetch cannot be changed.
fn is_due(prefetch: u16, has: u16, here: (usize, usize), before: (usize, usize)) -> bool {
    let (open, long) = here;
    if long > 0 { open + before.0 < usize::from(prefetch) } else { allowed(prefetch, before.1) != has }
}

/// One channel's consuming.
async fn one_epoch(
    consuming: &Consuming,
    source: &mut impl Source,
    round: u64,
    before: &mut Before,
    ending: &mut Ending,
) -> Result<Ended, LinkDown> {
    let Consuming { link, prefetch, long, deliveries, stop, .. } = consuming;
    let up = tokio::select! {
        () = stop.cancelled() => return Ok(Ended::Told),
        up = link.wait_up(Instant::now() + REQUEST_TIMEOUT) => up?,
    };
    let channel = up.channel().await?;
    let has = allowed(*prefetch, before.open(*long).1);
    in_time("set the prefetch", channel.basic_qos(has, BasicQosOptions::default())).await?;
    let (queue, arguments) = source.prepare(&channel, round).await?;
    let consumed = channel.basic_consume(short(&queue), "".into(), BasicConsumeOptions::default(), arguments);
    let mut consumer = in_time("consume", consumed).await?;
    let tag = consumer.tag();
    let epoch = Epoch::start(&up, channel.clone(), round, source, consuming);
    consuming.consuming.store(true, Ordering::Relaxed);
    source.started();
    let began = Instant::now();
    let (mut quiet, mut look) = (Instant::now() + QUIET, Instant::now() + LOOK);
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
            next = consumer.next(), if buffer.is_none() => {
                quiet = Instant::now() + QUIET;
                buffer = Some(received(next, &epoch, &queue, began, before, ending)?);
            },
            room = deliveries.reserve(), if buffer.is_some() => match room {
                Ok(room) => {
                    room.send(buffer.take().expect("checked by the branch's condition"));
                    // What is there already goes with it: a turn of this loop costs more than a delivery.
                    while let Ok(room) = deliveries.try_reserve() && let Some(next) = consumer.next().now_or_never() {
                        room.send(received(next, &epoch, &queue, began, before, ending)?);
                    }
                }
                Err(_) => break Ended::Told, // nobody takes deliveries any more
            },
            () = sleep_until(quiet), if buffer.is_none() => {
                let room = if long.is_some() { has.into() } else { 1 };
                let open = epoch.open(None).0;
                let may_leave = open == 0 || before.has_room();
                if open < room && may_leave && source.when_quiet(&channel).await? {
                    before.quiet = true;
                    break Ended::Renewed;
                }
                quiet = Instant::now() + QUIET;
            }
            () = sleep_until(look), if long.is_some() && buffer.is_none() => {
                let left = before.open(*long);
                let here = epoch.open(*long);
                if (here.0 == 0 || before.has_room()) && is_due(*prefetch, has, here, left) {
                    debug!(queue, "what comes next gets another channel than what takes long");
                    break Ended::Renewed;
                }
                look = Instant::now() + LOOK;
            }
        }
    };
    // Dropped unsettled, a delivery is handed back.
    drop(buffer);
    let cancelled = channel.basic_cancel(tag, BasicCancelOptions::default());
    let _ = in_time("cancel the consumer", cancelled).await;
    while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
        let receipt = epoch.receipt(delivery.delivery_tag);
        if matches!(ended, Ended::Renewed) {
            // There is room for the prefetch. Where there is none after all, the receipt is dropped: it is handed back.
            drop(deliveries.try_send(Delivery { incoming: incoming(delivery), receipt }));
        }
    }
    before.add(&epoch);
    Ok(ended)
}

/// What a consumer has yielded, as a delivery of this epoch. After an error it is not to be polled again.
fn received(
    next: Option<Result<lapin::message::Delivery, lapin::Error>>,
    epoch: &Arc<Epoch>,
    queue: &str,
    began: Instant,
    before: &mut Before,
    ending: &mut Ending,
) -> Result<Delivery, LinkDown> {
    match next {
        Some(Ok(delivery)) => {
            ending.delivered += 1;
            if std::mem::take(&mut before.quiet) && delivery.redelivered && began.elapsed() < AT_ONCE {
                warn!(queue, "the broker had kept messages for a consumer that got none: it was renewed");
            }
            let receipt = epoch.receipt(delivery.delivery_tag);
            Ok(Delivery { incoming: incoming(delivery), receipt })
        }
        Some(Err(error)) => {
            ending.unparsable = is_unparsable(&error);
            epoch.over.cancel();
            Err(LinkDown(error.to_string()))
        }
        None if epoch.channel.status().connected() => {
            // Cancelled by the server. The epoch lives on in its receipts.
            before.add(epoch);
            Err(LinkDown(format!("the broker cancelled the consumer of {queue}")))
        }
        None => {
            epoch.over.cancel();
            Err(LinkDown("the channel is gone".to_owned()))
        }
    }
}

#[cfg(test)]
#[path = "consumer_tests.rs"]
mod tests;
