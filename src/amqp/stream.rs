//! Reading a stream: in order, across lost connections, without a repeat, and aware of what it cannot give.
//!
//! Streams keep no position for their readers over AMQP 0.9.1. A [`StreamReader`] remembers the last record it gave
//! out, and after a reconnect begins *at* that record, not behind it: if another one lies there, or the stream ends
//! before it, somebody deleted the stream and it was declared anew ([`Item::NewLog`]). If the stream begins behind
//! it, retention was faster than the reader ([`Item::Gap`]).
//!
//! A stream that ends before the remembered place delivers nothing, not even what is written to it now. As the place
//! itself is to be delivered first, silence is suspicious: then the reader looks where the stream ends.
//!
//! A stream has no mark of its end. Whoever must know that it was read to its end writes a record of its own and waits
//! for it, at each change of [`StreamReader::rounds`] once more.
//!
//! A record that lapin cannot parse (a property that is not UTF-8) costs the connection each time it is delivered,
//! so a reader has a connection of its own. When connections end so several times in a row, at the same place, the
//! record there is skipped: a gap like any other. A broker that refuses the consumer, or is away, says nothing about
//! records.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

#[cfg(feature = "server")]
use futures_util::FutureExt;
use futures_util::StreamExt;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    connection::{Link, LinkDown, in_time},
    consumer::{Consuming, Delivery, Ending, Source, consume},
    message::{incoming, short},
};
use crate::job::wire::{HeaderValue, Message};

/// Header with a record's place in its stream.
const OFFSET: &str = "x-stream-offset";
/// How often, in a row, a record costs the connection until it is skipped.
const STUCK: u32 = 3;
/// How long nothing may come from a place where something lies.
const SILENCE: Duration = Duration::from_secs(2);
/// Offsets that may be missing between two records: RabbitMQ writes chunks of its own into a stream, at the beginning of
/// a segment, which count and are not delivered. What retention removes is more.
const OWN: u64 = 16;
/// Records taken ahead to see the end of a stream, and the longest pause between two of one chunk.
const CHUNK: u16 = 1000;
const CHUNK_PAUSE: Duration = Duration::from_secs(2);

/// A place in a stream, and what lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    /// What tells the record at `offset` from any other, see [`Record::mark`].
    pub(crate) mark: String,
}

/// A record of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) offset: u64,
    pub(crate) message: Message,
}

impl Record {
    /// The message id; where there is none, a digest of the body.
    pub(crate) fn mark(&self) -> String {
        let digest = || uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &self.message.body).to_string();
        self.message.message_id.clone().unwrap_or_else(digest)
    }
}

/// What comes from a stream.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "nearly all items are records")]
pub(crate) enum Item {
    /// The next record.
    Record(Record),
    /// There are no records from `from` up to, and without, `to`: retention removed them, or they cannot be read.
    /// Also at the first record of all, if that is not number 0.
    Gap { from: u64, to: u64 },
    /// The stream is not the one that was read so far. Its records follow, from its first.
    NewLog,
}

/// A reader of one stream. Dropped, it stops.
pub(crate) struct StreamReader {
    link: Link,
    queue: String,
    prefetch: u16,
    rounds: watch::Sender<u64>,
    changes: watch::Receiver<u64>,
    consuming: Arc<AtomicBool>,
    run: Run,
    /// A record that waits behind its gap.
    held: Option<Record>,
}

/// Reading from one place, over any number of connections.
struct Run {
    deliveries: mpsc::Receiver<Delivery>,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What reader and consumer share.
#[derive(Debug, Default)]
struct State {
    /// The last record given out.
    place: Option<Place>,
    /// The consumer that delivers now. What older ones delivered comes again.
    round: u64,
    /// Whether it has delivered anything.
    begun: bool,
    /// Where it was attached; its first delivery must be this one. Absent: anywhere else.
    attached: Option<Place>,
    /// When it began to listen, or was doubted last.
    listens: Option<Instant>,
    attempt: Attempt,
}

impl StreamReader {
    /// Starts to read `queue` over `link`, behind `place` or from the first record. About `prefetch` records are read
    /// ahead (RabbitMQ 3.10 delivers whole chunks, which can be more).
    pub(crate) fn start(link: &Link, queue: String, place: Option<Place>, prefetch: u16) -> Self {
        let (rounds, consuming) = (watch::Sender::new(0), Arc::new(AtomicBool::new(false)));
        let run = Run::start(link, &queue, place, prefetch, &rounds, &consuming);
        let changes = rounds.subscribe();
        Self { link: link.clone(), queue, prefetch, rounds, changes, consuming, run, held: None }
    }

    /// Starts over behind another place, or from the first record.
    pub(crate) fn restart(&mut self, place: Option<Place>) {
        let Self { link, queue, prefetch, rounds, consuming, .. } = &*self;
        self.run = Run::start(link, queue, place, *prefetch, rounds, consuming);
        self.held = None;
    }

    /// Counts the consumers: each change says that reading began anew after an interruption.
    #[cfg(feature = "server")]
    pub(crate) fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Whether a consumer is registered on a live channel; keeps its meaning when the reader is gone.
    #[cfg(feature = "server")]
    pub(crate) fn consuming(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.consuming)
    }

    /// What comes next. Waits as long as there is nothing, for a broker that is away too. A record given out counts as
    /// read: it does not come again, unless after [`StreamReader::restart`]. Can be cancelled without a loss.
    pub(crate) async fn next(&mut self) -> Item {
        if let Some(record) = self.held.take() {
            return Item::Record(record);
        }
        loop {
            let doubt = self.run.state().doubt_at();
            let delivery = tokio::select! {
                biased;
                delivery = self.run.deliveries.recv() => delivery,
                Ok(()) = self.changes.changed() => continue,
                () = until(doubt) => {
                    if self.is_another().await {
                        self.restart(None);
                        return Item::NewLog;
                    }
                    continue;
                }
            };
            let Some(Delivery { incoming, receipt }) = delivery else {
                // Only stopping ends a run, and only a drop stops it.
                return std::future::pending().await;
            };
            let round = receipt.round();
            // Credit for the next one, nothing more.
            receipt.ack();
            let message = incoming.message;
            let Some(offset) = offset_of(&message) else {
                warn!(queue = self.queue, "a delivery without an offset: this is no stream");
                continue;
            };
            let record = Record { offset, message };
            let seen = self.run.state().see(round, record.offset, || record.mark());
            match seen {
                Seen::Again => {}
                Seen::Next => return Item::Record(record),
                Seen::After(from) => {
                    let to = record.offset;
                    self.held = Some(record);
                    return Item::Gap { from, to };
                }
                Seen::Other => {
                    self.restart(None);
                    return Item::NewLog;
                }
            }
        }
    }

    /// Whether nothing comes because the stream ends before the place that was read up to.
    async fn is_another(&self) -> bool {
        let Some(place) = self.run.state().silent() else { return false };
        match ends_before(&self.link, &self.queue, place).await {
            // Asked again: it may have come meanwhile.
            Ok(true) if self.run.state().silent() == Some(place) => return true,
            Ok(_) => {}
            Err(down) => debug!(queue = self.queue, reason = %down, "cannot look for the end of a stream"),
        }
        self.run.state().started();
        false
    }

    /// What has come already, if anything.
    #[cfg(feature = "server")]
    pub(crate) fn try_next(&mut self) -> Option<Item> {
        self.next().now_or_never()
    }
}

impl Run {
    fn start(
        link: &Link,
        queue: &str,
        place: Option<Place>,
        prefetch: u16,
        rounds: &watch::Sender<u64>,
        consuming: &Arc<AtomicBool>,
    ) -> Self {
        let (sender, deliveries) = mpsc::channel(prefetch.into());
        let state = Arc::new(Mutex::new(State { place, ..State::default() }));
        let stop = CancellationToken::new();
        let source =
            StreamSource { queue: queue.to_owned(), state: Arc::clone(&state), rounds: rounds.clone() };
        let consuming = Consuming {
            link: link.clone(),
            prefetch,
            long: None,
            deliveries: sender,
            stop: stop.clone(),
            consuming: Arc::clone(consuming),
            acknowledging: TaskTracker::new(),
        };
        link.runtime().spawn(consume(consuming, source));
        Self { deliveries, state, stop }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Whether a stream ends before `place`: its last chunk has only lower offsets. `false` while that is not certain, as
/// for an empty stream: there is nothing to miss.
async fn ends_before(link: &Link, queue: &str, place: u64) -> Result<bool, LinkDown> {
    let channel = link.up()?.channel().await?;
    in_time("set the prefetch", channel.basic_qos(CHUNK, BasicQosOptions::default())).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), AMQPValue::LongString("last".into()));
    let consumed = channel.basic_consume(short(queue), "".into(), BasicConsumeOptions::default(), arguments);
    let mut consumer = in_time("consume", consumed).await?;
    let mut highest = None;
    // A chunk comes as a whole.
    while let Ok(Some(Ok(delivery))) = timeout(CHUNK_PAUSE, consumer.next()).await {
        let acked = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
        in_time("acknowledge", acked).await?;
        highest = highest.max(offset_of(&incoming(delivery).message));
        if highest >= Some(place) {
            break;
        }
    }
    drop(timeout(CHUNK_PAUSE, channel.close(200, "seen".into())).await);
    Ok(highest.is_some_and(|highest| highest < place))
}

/// The first record that a stream has; none in an empty one.
#[cfg(feature = "server")]
pub(crate) async fn first(link: &Link, queue: &str) -> Result<Option<Place>, LinkDown> {
    let channel = link.up()?.channel().await?;
    in_time("set the prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), AMQPValue::LongString("first".into()));
    let consumed = channel.basic_consume(short(queue), "".into(), BasicConsumeOptions::default(), arguments);
    let mut consumer = in_time("consume", consumed).await?;
    let first = timeout(CHUNK_PAUSE, consumer.next()).await;
    drop(timeout(CHUNK_PAUSE, channel.close(200, "seen".into())).await);
    let Ok(Some(Ok(delivery))) = first else { return Ok(None) };
    let message = incoming(delivery).message;
    let record = offset_of(&message).map(|offset| Record { offset, message });
    Ok(record.map(|record| Place { offset: record.offset, mark: record.mark() }))
}

fn offset_of(message: &Message) -> Option<u64> {
    match message.headers.get(OFFSET) {
        Some(HeaderValue::Int(offset)) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The state is whole after every call of its own functions, and those do not panic.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a delivery is to a reader.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Known already, or to be delivered again.
    Again,
    /// The next record.
    Next,
    /// The next record there is; from this offset on there was to be another.
    After(u64),
    /// From another stream than the one read so far.
    Other,
}

impl State {
    /// Where the consumer of `round` begins: `None` is the first record.
    fn attach(&mut self, round: u64) -> Option<u64> {
        (self.round, self.begun) = (round, false);
        let next = self.place.as_ref().map(|place| place.offset + 1);
        let from = self.attempt.begin(next);
        // At the last record read, to see whether it is still there; not when that is what cannot be read.
        self.attached = if from == next { self.place.clone() } else { None };
        self.listens = None;
        self.attached.as_ref().map(|place| place.offset).or(from)
    }

    fn started(&mut self) {
        self.listens = Some(Instant::now());
    }

    fn ended(&mut self, ending: Ending) {
        let listened = self.listens.take().is_some();
        // What comes first is the record that was read last, where it was attached there.
        let read_nothing = ending.delivered <= u64::from(self.attached.is_some());
        self.attempt.end(if ending.unparsable && read_nothing {
            Last::Stuck
        } else if listened {
            Last::Lived
        } else {
            Last::Refused
        });
    }

    /// The place that a consumer was attached at which has delivered nothing.
    fn silent(&self) -> Option<u64> {
        self.attached.as_ref().filter(|_| self.listens.is_some() && !self.begun).map(|place| place.offset)
    }

    /// When silence becomes suspicious.
    fn doubt_at(&self) -> Option<Instant> {
        self.silent().and(self.listens).map(|since| since + SILENCE)
    }

    fn see(&mut self, round: u64, offset: u64, mark: impl FnOnce() -> String) -> Seen {
        if round != self.round {
            return Seen::Again;
        }
        let mark = mark();
        let first = !std::mem::replace(&mut self.begun, true);
        if first && let Some(attached) = &self.attached {
            match offset.cmp(&attached.offset) {
                std::cmp::Ordering::Equal if attached.mark == mark => return Seen::Again,
                std::cmp::Ordering::Equal | std::cmp::Ordering::Less => return Seen::Other,
                std::cmp::Ordering::Greater => {}
            }
        }
        let expected = match &self.place {
            // A record was to be skipped, and the stream ends before it.
            Some(place) if offset <= place.offset && first => return Seen::Other,
            Some(place) if offset <= place.offset => return Seen::Again,
            Some(place) => place.offset + 1,
            None => 0,
        };
        self.place = Some(Place { offset, mark });
        let missing = offset - expected;
        if missing > if first { 0 } else { OWN } { Seen::After(expected) } else { Seen::Next }
    }
}

/// Where reading was begun last, and how often it could not get beyond.
#[derive(Debug, Default)]
struct Attempt {
    from: Option<u64>,
    /// Whether it was begun, and has not ended.
    began: bool,
    last: Last,
    failures: u32,
}

/// How an attempt went.
#[derive(Debug, Default)]
enum Last {
    /// It could read, whether there was something or not.
    #[default]
    Lived,
    /// It could not begin to read.
    Refused,
    /// The record that it was to read cannot be parsed.
    Stuck,
}

impl Attempt {
    /// Which record is to be read first, given the one after the last that was read.
    fn begin(&mut self, next: Option<u64>) -> Option<u64> {
        self.began = true;
        let read_nothing = next.is_none_or(|next| self.from.is_some_and(|from| next <= from));
        match std::mem::take(&mut self.last) {
            Last::Stuck if read_nothing => {
                self.failures += 1;
                if self.failures >= STUCK {
                    let skipped = self.from.unwrap_or(0);
                    warn!(offset = skipped, "a record of a stream cannot be read and is skipped");
                    self.from = Some(skipped + 1);
                }
            }
            Last::Refused if read_nothing => {}
            _ => (self.from, self.failures) = (next, 0),
        }
        self.from
    }

    fn end(&mut self, how: Last) {
        // Where there was no connection, nothing was attempted.
        if std::mem::take(&mut self.began) {
            self.last = how;
        }
    }
}

struct StreamSource {
    queue: String,
    state: Arc<Mutex<State>>,
    rounds: watch::Sender<u64>,
}

impl Source for StreamSource {
    async fn prepare(&mut self, _: &Channel, round: u64) -> Result<(String, FieldTable), LinkDown> {
        let offset = match lock(&self.state).attach(round) {
            None => AMQPValue::LongString("first".into()),
            // Offsets are 63 bits.
            Some(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
        };
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), offset);
        Ok((self.queue.clone(), arguments))
    }

    /// A consumer can be forgotten without a word, and the stream be deleted and declared again under it.
    async fn when_quiet(&mut self, _: &Channel) -> Result<bool, LinkDown> {
        Ok(true)
    }

    fn takes_back(&self) -> bool {
        false
    }

    fn is_credit(&self) -> bool {
        true
    }

    fn started(&mut self) {
        lock(&self.state).started();
        self.rounds.send_modify(|rounds| *rounds += 1);
    }

    fn ended(&mut self, ending: Ending) {
        lock(&self.state).ended(ending);
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
