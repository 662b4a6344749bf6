//! Reading a stream: in order, across lost connections, without a repeat, and aware of what it cannot give.
//!
//! Streams keep no position for their readers over AMQP 0.9.1. A [`StreamReader`] remembers the last record it gave
//! out, and after a reconnect begins *at* that record, not behind it: if another one lies there, or the stream ends
//! before it, somebody deleted the stream and it was declared anew ([`Item::NewLog`]). If the stream begins behind
//! it, retention was faster than the reader ([`Item::Gap`]).
//!
//! A stream has no mark of its end. Whoever must know that it was read to its end writes a record of its own, at each
//! change of [`StreamReader::rounds`], and waits for it. If it does not come, [`StreamReader::doubt`] looks whether
//! the stream ends before the remembered place: such a stream delivers nothing, not even what is written to it now.
//!
//! A record that lapin cannot parse (a property that is not UTF-8) costs the connection each time it is delivered,
//! so a reader has a connection of its own. When reading ends at once, at the same place, several times in a row, the
//! record there is skipped: a gap like any other.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    connection::{Link, LinkDown, in_time},
    consumer::{Consuming, Delivery, Source, consume},
    message::short,
};
use crate::job::wire::{HeaderValue, Message};

/// Header with a record's place in its stream.
const OFFSET: &str = "x-stream-offset";
/// Reading that ends within this time has met something that it cannot read.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How often, in a row, until that is skipped.
const STUCK: u32 = 3;
/// Longest time for the last chunk of a stream to come.
const LAST: Duration = Duration::from_secs(5);

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
    /// Where it began; absent: at the first record.
    from: Option<u64>,
    /// What its first delivery must be, if that is known.
    attached: Option<Place>,
    attempt: Attempt,
}

impl StreamReader {
    /// Starts to read `queue` over `link`, behind `place` or from the first record. About `prefetch` records are read
    /// ahead (RabbitMQ 3.10 delivers whole chunks, which can be more).
    pub(crate) fn start(link: &Link, queue: String, place: Option<Place>, prefetch: u16) -> Self {
        let (rounds, consuming) = (watch::Sender::new(0), Arc::new(AtomicBool::new(false)));
        let run = Run::start(link, &queue, place, prefetch, &rounds, &consuming);
        Self { link: link.clone(), queue, prefetch, rounds, consuming, run, held: None }
    }

    /// Starts over behind another place, or from the first record.
    pub(crate) fn restart(&mut self, place: Option<Place>) {
        let Self { link, queue, prefetch, rounds, consuming, .. } = &*self;
        self.run = Run::start(link, queue, place, *prefetch, rounds, consuming);
        self.held = None;
    }

    /// Counts the consumers: each change says that reading began anew after an interruption.
    pub(crate) fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Whether a consumer is registered on a live channel; keeps its meaning when the reader is gone.
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
            let Some(Delivery { incoming, receipt }) = self.run.deliveries.recv().await else {
                // Only stopping ends a run, and only a drop stops it.
                return std::future::pending().await;
            };
            let round = receipt.round();
            // Credit for the next one, nothing more.
            receipt.ack();
            let message = incoming.message;
            let Some(HeaderValue::Int(offset)) = message.headers.get(OFFSET) else {
                warn!(queue = self.queue, "a delivery without an offset: this is no stream");
                continue;
            };
            let record = Record { offset: u64::try_from(*offset).unwrap_or(0), message };
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

    /// To be called when a record was confirmed after the last change of [`StreamReader::rounds`] and does not come.
    /// [`Item::NewLog`] if that is because the stream ends before the place that was read up to. In bounded time.
    pub(crate) async fn doubt(&mut self) -> Option<Item> {
        self.run.state().silent()?;
        let last = match last_chunk(&self.link, &self.queue).await {
            Ok(last) => last?,
            Err(down) => {
                debug!(queue = self.queue, reason = %down, "cannot look for the end of a stream");
                return None;
            }
        };
        // Asked again: it may have come meanwhile. What was confirmed lies in the last chunk or before it, and in the
        // stream that was read so far, behind that place.
        let from = self.run.state().silent()?;
        if last >= from {
            return None;
        }
        self.restart(None);
        Some(Item::NewLog)
    }

    /// What has come already, if anything.
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

/// Offset of the first record of a stream's last chunk; `None` for an empty stream.
async fn last_chunk(link: &Link, queue: &str) -> Result<Option<u64>, LinkDown> {
    let channel = link.up()?.channel().await?;
    in_time("set the prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), AMQPValue::LongString("last".into()));
    let consumed = channel.basic_consume(short(queue), "".into(), BasicConsumeOptions::default(), arguments);
    let mut consumer = in_time("consume", consumed).await?;
    let delivery = timeout(LAST, consumer.next()).await;
    // What is left unacknowledged goes with the channel.
    drop(timeout(LAST, channel.close(200, "seen".into())).await);
    let Ok(Some(Ok(delivery))) = delivery else { return Ok(None) };
    let headers = delivery.properties.headers();
    match headers.as_ref().and_then(|headers| headers.inner().get(OFFSET)) {
        Some(AMQPValue::LongLongInt(offset)) => Ok(u64::try_from(*offset).ok()),
        _ => Ok(None),
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
        self.from = self.attached.as_ref().map(|place| place.offset).or(from);
        self.from
    }

    /// Where the consumer began, if nothing has come from it: at the last record that was read lies that record, so
    /// something should have.
    fn silent(&self) -> Option<u64> {
        self.from.filter(|_| !self.begun)
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
        if offset > expected { Seen::After(expected) } else { Seen::Next }
    }
}

/// Where reading was begun last, and how often it has ended there at once.
#[derive(Debug, Default)]
struct Attempt {
    from: Option<u64>,
    began: Option<Instant>,
    ended_at_once: bool,
    failures: u32,
}

impl Attempt {
    /// Which record is to be read first, given the one after the last that was read.
    fn begin(&mut self, next: Option<u64>) -> Option<u64> {
        self.began = Some(Instant::now());
        let read_nothing = next.is_none_or(|next| self.from.is_some_and(|from| next <= from));
        if !(std::mem::take(&mut self.ended_at_once) && read_nothing) {
            (self.from, self.failures) = (next, 0);
            return next;
        }
        self.failures += 1;
        if self.failures >= STUCK {
            let skipped = self.from.unwrap_or(0);
            warn!(offset = skipped, "a record of a stream cannot be read and is skipped");
            self.from = Some(skipped + 1);
        }
        self.from
    }

    fn end(&mut self) {
        if let Some(began) = self.began.take() {
            self.ended_at_once = began.elapsed() < AT_ONCE;
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

    fn started(&mut self) {
        self.rounds.send_modify(|rounds| *rounds += 1);
    }

    fn ended(&mut self) {
        lock(&self.state).attempt.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(at: Option<u64>) -> State {
        State { place: at.map(place), ..State::default() }
    }

    fn place(offset: u64) -> Place {
        Place { offset, mark: format!("m{offset}") }
    }

    /// What a reader makes of deliveries of records that are what they were.
    fn read(state: &mut State, round: u64, offsets: impl IntoIterator<Item = u64>) -> Vec<Seen> {
        offsets.into_iter().map(|offset| state.see(round, offset, || format!("m{offset}"))).collect()
    }

    #[test]
    fn reading_goes_on_where_it_was_left() {
        let mut state = state(None);
        assert_eq!(state.attach(1), None);
        assert_eq!(read(&mut state, 1, 0..3), [Seen::Next, Seen::Next, Seen::Next]);
        assert_eq!(state.attach(2), Some(2));
        assert_eq!(state.silent(), Some(2), "nothing has come, and something should have");
        // What the first consumer had delivered, but was not looked at, is passed over: it comes again.
        assert_eq!(read(&mut state, 1, [3]), [Seen::Again]);
        assert_eq!(read(&mut state, 2, [2, 3, 4]), [Seen::Again, Seen::Next, Seen::Next]);
        assert_eq!(state.silent(), None);
    }

    #[test]
    fn another_record_at_the_place_is_another_log() {
        let mut there = state(Some(7));
        assert_eq!(there.attach(1), Some(7));
        assert_eq!(there.see(1, 7, || "other".to_owned()), Seen::Other);
        let mut short = state(Some(7));
        short.attach(1);
        assert_eq!(read(&mut short, 1, [3]), [Seen::Other]);
    }

    #[test]
    fn what_retention_removed_is_a_gap() {
        let mut behind = state(Some(7));
        behind.attach(1);
        assert_eq!(read(&mut behind, 1, [20, 21]), [Seen::After(8), Seen::Next]);
        // The place itself is gone, and nothing else.
        let mut just = state(Some(7));
        just.attach(1);
        assert_eq!(read(&mut just, 1, [8]), [Seen::Next]);
        let mut fresh = state(None);
        fresh.attach(1);
        assert_eq!(read(&mut fresh, 1, [5, 6]), [Seen::After(0), Seen::Next]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_skipped_record_is_a_gap() {
        let mut state = state(Some(7));
        for (round, from) in [(1, 7), (2, 7), (3, 7), (4, 9)] {
            assert_eq!(state.attach(round), Some(from));
            if round < 4 {
                assert_eq!(read(&mut state, round, [7]), [Seen::Again]);
            }
            state.attempt.end();
        }
        assert_eq!(read(&mut state, 4, [9, 10]), [Seen::After(8), Seen::Next]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_skipped_after_some_attempts() {
        let mut attempt = Attempt::default();
        let mut fail = |next| {
            let from = attempt.begin(next);
            attempt.end();
            from
        };
        // Records 0 to 6 are read; 7 and 8 cannot be.
        assert_eq!(fail(None), None);
        let begun: Vec<_> = (0..6).map(|_| fail(Some(7))).collect();
        assert_eq!(begun, [7, 7, 7, 8, 9, 10].map(Some));
        // 10 could be read, and more: a connection lost at once later on counts anew.
        assert_eq!([fail(Some(20)), fail(Some(20))], [Some(20), Some(20)]);
        // At the very beginning of the log.
        let mut attempt = Attempt::default();
        let begun: Vec<_> = (0..5)
            .map(|_| {
                let from = attempt.begin(None);
                attempt.end();
                from
            })
            .collect();
        assert_eq!(begun, [None, None, None, Some(1), Some(2)]);
        // A connection that lived for a while was not ended by a record.
        let mut attempt = Attempt::default();
        for _ in 0..9 {
            assert_eq!(attempt.begin(Some(7)), Some(7));
            tokio::time::advance(AT_ONCE).await;
            attempt.end();
        }
    }
}
