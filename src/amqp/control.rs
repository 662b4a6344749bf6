//! The control log: what all processes of a prefix are to know, kept in a stream and read from its beginning.
//!
//! | record | says | read by |
//! |---|---|---|
//! | kinds | which kinds a worker takes from which queue, and what it says of them | whoever routes a job |
//! | cancel | which runs are not to go on | workers |
//! | pause | which queues are not to be worked on | workers |
//! | front | that there are HTTP processes | workers: somebody answers their questions |
//!
//! HTTP processes and workers read it, so an order holds for a process that starts later, and for one that was away.
//! Each writes a record of its own, its word, when it starts (a worker its kinds, an HTTP process that it is there):
//! once it has read that one, it has read all that was written before ([`Control::caught_up`]). A stream has no other
//! mark of its end. Words are numbered; whoever was cut off asks for another one ([`Control::next_word`]).
//!
//! What is remembered, and how much of it, is in `state` and `catalogue`; the wire in [`record`] and `announced`; the
//! writing in `teller`.

mod announced;
mod catalogue;
pub(crate) mod record;
mod state;
mod teller;

#[cfg(feature = "server")]
use std::collections::BTreeSet;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(crate) use self::{
    announced::{Announced, Pauses as RetryPauses},
    catalogue::{Route, Version},
};
pub use self::{
    record::CancelOrder,
    state::{Pause, Pauses},
};
pub(crate) use self::{record::Written, teller::Hello};
use self::{
    record::{PauseOrder, Record},
    state::State,
    teller::{retell, tell},
};
use super::{
    connection::Link,
    names::Names,
    publisher::Publisher,
    stream::{Item, StreamReader},
};
#[cfg(feature = "server")]
use crate::job::Schema;
use crate::job::{JobId, Kind, QueueName, wire::Message};

/// Records read ahead: some hundred KB each where many jobs were cancelled at once.
const PREFETCH: u16 = 200;
/// Orders that a subscriber may be behind.
const ORDERS_AHEAD: usize = 4096;

/// What the control log says, kept up to date; cheap to clone.
#[derive(Clone)]
pub(crate) struct Control(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    words: Words,
    paused: watch::Sender<Arc<Pauses>>,
    orders: broadcast::Sender<CancelOrder>,
    /// Counts the logs: the stream may be deleted, and declared anew.
    logs: watch::Sender<u64>,
    /// Nothing more is written.
    quiet: CancellationToken,
    stop: CancellationToken,
}

/// What this process writes of itself, again and again: numbered from 1, in the order of writing.
struct Words {
    /// Their ids are this and the number.
    id: String,
    /// The last that was begun to be written.
    begun: AtomicU64,
    /// The first that was not begun when somebody asked for one: no earlier one will do.
    wanted: watch::Sender<u64>,
    /// The last that came back; 0: none yet.
    read: watch::Sender<u64>,
}

impl Words {
    fn new(id: String) -> Self {
        Self { id, begun: AtomicU64::new(0), wanted: watch::Sender::new(1), read: watch::Sender::new(0) }
    }

    /// A number for the next one, and its id.
    fn begin(&self) -> (u64, String) {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        (number, format!("{}-{number}", self.id))
    }

    /// Which one a record with this id is.
    fn number(&self, id: &str) -> Option<u64> {
        id.strip_prefix(&self.id)?.strip_prefix('-')?.parse().ok()
    }

    fn are_awaited(&self) -> bool {
        *self.read.borrow() < *self.wanted.borrow()
    }
}

impl Control {
    /// Starts to read the control log over `link`, and to write `hello` to it through `publisher`: now, at each
    /// connection, when asked and every hour. With `retell` (HTTP processes) pauses, and orders that are younger than this, are
    /// written again before they leave the log, and schemas are remembered.
    pub(crate) fn start(
        link: &Link,
        publisher: Publisher,
        names: &Names,
        hello: Hello,
        retell_younger: Option<Duration>,
    ) -> Self {
        let control = Self::unread();
        control.state().kinds.with_schemas = retell_younger.is_some();
        let reader = StreamReader::start(link, names.control_log(), None, PREFETCH);
        link.runtime().spawn(control.clone().read(reader));
        link.runtime().spawn(tell(publisher.clone(), names.control(), hello, control.clone()));
        if let Some(younger) = retell_younger {
            link.runtime().spawn(retell(publisher, names.control(), younger, control.clone()));
        }
        control
    }

    /// Nothing is known yet.
    fn unread() -> Self {
        let stop = CancellationToken::new();
        Self(Arc::new(Inner {
            state: Mutex::default(),
            words: Words::new(JobId::new().to_string()),
            paused: watch::Sender::default(),
            orders: broadcast::Sender::new(ORDERS_AHEAD),
            logs: watch::Sender::new(0),
            quiet: stop.child_token(),
            stop,
        }))
    }

    /// The queue that workers take `kind` from.
    pub(crate) fn queue_of(&self, kind: &Kind) -> Option<QueueName> {
        self.state().kinds.route(kind).map(|route| route.queue.clone())
    }

    /// Whether args and outputs of `kind` stay out of the record; false while nobody has announced it.
    pub(crate) fn is_private(&self, kind: &Kind) -> bool {
        self.state().kinds.route(kind).is_some_and(|route| route.private)
    }

    /// Every announced kind, by name.
    pub(crate) fn kinds(&self) -> Vec<(Kind, Route)> {
        self.state().kinds.routes().map(|(kind, route)| (kind.clone(), route.clone())).collect()
    }

    /// What workers say of a kind that are not known to be `gone`: by their name, and when their word was read. Those
    /// that came last first; none if nobody has announced it, or nothing is remembered of schemas here.
    pub(crate) fn versions(&self, kind: &Kind, gone: impl Fn(&str, Instant) -> bool) -> Vec<Version> {
        self.state().kinds.versions(kind, record::now(), gone)
    }

    /// The queues of all announced kinds.
    #[cfg(feature = "server")]
    pub(crate) fn queues(&self) -> BTreeSet<QueueName> {
        let state = self.state();
        let queues: BTreeSet<&QueueName> = state.kinds.routes().map(|(_, route)| &route.queue).collect();
        queues.into_iter().cloned().collect()
    }

    /// What args of a kind must fit one of, where they go to `queue`; none: anything is taken. `gone` as for
    /// [`Control::versions`].
    #[cfg(feature = "server")]
    pub(crate) fn args_schemas(
        &self,
        kind: &Kind,
        queue: &QueueName,
        gone: impl Fn(&str, Instant) -> bool,
    ) -> Option<Vec<Schema>> {
        self.state().kinds.args(kind, queue, record::now(), gone)
    }

    /// Whether an HTTP process has ever said that it is there: workers' questions can be answered.
    pub(crate) fn has_front(&self) -> bool {
        self.state().has_front()
    }

    /// The queues that are paused, and each change of them.
    pub(crate) fn paused(&self) -> watch::Receiver<Arc<Pauses>> {
        self.0.paused.subscribe()
    }

    /// The order to cancel this run, if there is one. Only of the newest half million.
    pub(crate) fn cancelled(&self, id: JobId, run: u32) -> Option<CancelOrder> {
        self.state().order(id, run)
    }

    /// Whether a job that was created then may be cancelled although no order is known: there were more than are kept,
    /// or the log has lost its beginning.
    #[cfg(feature = "worker")]
    pub(crate) fn is_blind(&self, created_at: Option<Timestamp>) -> bool {
        self.state().is_blind(created_at)
    }

    /// Orders to cancel, as they become known.
    ///
    /// Subscribe first and look ([`Control::cancelled`]) then: an order is known before it is told. A subscriber that
    /// falls behind by more than 4,096 orders gets `Lagged` once, and must look again for every run that concerns it:
    /// what it missed is known, but is not told a second time.
    pub(crate) fn orders(&self) -> broadcast::Receiver<CancelOrder> {
        self.0.orders.subscribe()
    }

    /// Whether everything is known that was written before this process started.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.has_read(1)
    }

    /// Waits until everything is known that was written before this process started: without end while the broker is
    /// away, or takes no publishes.
    pub(crate) async fn caught_up(&self) {
        // The sender lives in `self`.
        let _ = self.words().wait_for(|read| *read >= 1).await;
    }

    /// Has a word written that is not under way yet, and says which: once it is read, everything is known that was
    /// written before now.
    #[cfg(feature = "worker")]
    pub(crate) fn next_word(&self) -> u64 {
        let words = &self.0.words;
        let next = words.begun.load(Ordering::SeqCst) + 1;
        words.wanted.send_if_modified(|wanted| {
            let later = next > *wanted;
            *wanted = next.max(*wanted);
            later
        });
        next
    }

    /// Whether a word, or one after it, has come back.
    pub(crate) fn has_read(&self, word: u64) -> bool {
        *self.0.words.read.borrow() >= word
    }

    /// The last word that came back, and each change of that.
    pub(crate) fn words(&self) -> watch::Receiver<u64> {
        self.0.words.read.subscribe()
    }

    /// A time for an order about `queue` that is given now: later than that of the last one.
    pub(crate) fn pause_time(&self, queue: &QueueName) -> Timestamp {
        self.state().pause_time(queue, record::now())
    }

    /// Learns of an order that is in the log before it comes back from there.
    pub(crate) fn learn_pause(&self, order: PauseOrder) {
        let told = order.at.as_second();
        self.pause(order, told);
    }

    /// Learns of orders that are in the log before they come back from there.
    pub(crate) fn learn_orders(&self, orders: Vec<CancelOrder>) {
        let told = record::now().as_second();
        self.cancel(orders, told);
    }

    /// Writes nothing any more: a worker that is about to end takes no kinds.
    pub(crate) fn hush(&self) {
        self.0.quiet.cancel();
    }

    pub(crate) fn close(&self) {
        self.0.stop.cancel();
    }

    async fn read(self, mut reader: StreamReader) {
        let mut missed = false;
        loop {
            let item = tokio::select! {
                () = self.0.stop.cancelled() => return,
                item = reader.next() => item,
            };
            match item {
                Item::Record(record) => {
                    if std::mem::take(&mut missed) {
                        self.miss_until(&record.message);
                    }
                    self.apply(&record.message);
                    self.hear_word(record.message.message_id.as_deref());
                }
                Item::Gap { from, to } => {
                    debug!(from, to, "records of the control log are gone");
                    missed = true;
                }
                // What is known stays known, and is told to the new log.
                Item::NewLog => {
                    warn!("the control log was deleted: telling the new one what is known");
                    self.state().forget_told();
                    self.0.logs.send_modify(|logs| *logs += 1);
                }
            }
        }
    }

    /// A record was taken in: perhaps it is our own.
    fn hear_word(&self, id: Option<&str>) {
        let words = &self.0.words;
        let Some(number) = id.and_then(|id| words.number(id)) else { return };
        let first = !self.is_caught_up();
        words.read.send_if_modified(|read| {
            let later = number > *read;
            *read = number.max(*read);
            later
        });
        if first && self.is_caught_up() {
            let (kinds, paused, orders) = self.state().counts();
            info!(kinds, paused, orders, "caught up with the control log");
        }
    }

    /// What was written before this record is gone, and with it perhaps orders.
    fn miss_until(&self, message: &Message) {
        let now = record::now();
        self.state().miss_orders(written_at(message).map_or(now, |at| at.min(now)));
    }

    fn apply(&self, message: &Message) {
        let (record, skipped) = match record::read(message) {
            Ok(Some(read)) => read,
            // What others write for themselves, older versions wrote and later ones write.
            Ok(None) => return,
            Err(error) => {
                return warn!(kind = message.kind, error, "a record of the control log cannot be read");
            }
        };
        if skipped > 0 {
            warn!(kind = message.kind, skipped, "entries of a record of the control log cannot be read");
        }
        let now = record::now();
        let written = written_at(message);
        // A clock that is fast must not keep what it wrote from being told again.
        let told = |at: Timestamp| written.unwrap_or(at).min(now).as_second();
        match record {
            Record::Kinds { worker, kinds } => {
                let left_out = self.state().kinds.learn(&worker, kinds, written, (now, Instant::now()));
                if left_out > 0 {
                    warn!(worker, left_out, "no room for more schemas: args of these kinds are not checked");
                }
            }
            Record::Front => self.state().learn_front(),
            Record::Pause(order) => {
                let told = told(order.at);
                self.pause(order, told);
            }
            Record::Cancel(orders) => {
                let told = told(orders.first().map_or(now, |order| order.at));
                self.cancel(orders, told);
            }
        }
    }

    fn pause(&self, order: PauseOrder, told: i64) {
        let mut state = self.state();
        if state.learn_pause(order, told) {
            // Under the lock: the last to know is the last to tell.
            self.0.paused.send_replace(Arc::new(state.paused()));
        }
    }

    fn cancel(&self, mut orders: Vec<CancelOrder>, told: i64) {
        {
            let mut state = self.state();
            orders.retain(|order| state.learn_order(order, told));
        }
        for order in orders {
            // Nobody may be listening.
            let _ = self.0.orders.send(order);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after each of its functions.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a record was written, as far as it says.
fn written_at(message: &Message) -> Option<Timestamp> {
    message.timestamp.and_then(|second| Timestamp::from_second(second.try_into().ok()?).ok())
}

#[cfg(test)]
#[path = "control/control_tests.rs"]
mod tests;
