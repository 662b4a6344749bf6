//! Deliveries: those that wait for an answer or for their turn, and those that are known already.
//!
//! One dispatcher per queue admits what the broker delivers, has it looked up where it may be a repeat, starts what has
//! a free place (in the queue and in its kind), and hands back what has waited too long. It never holds more than the
//! prefetch.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    context::{Freed, Slot},
    executor::Cancellation,
    hold::Hold,
    known::Standing,
    lookup::{Verdict, judge},
    registry::Entry,
    settle::{Settled, Stray},
    work::Shared,
};
use crate::{
    amqp::{
        consumer::{Delivery, Receipt},
        control::Pauses,
    },
    event::Event,
    job::{
        Envelope, Kind, QueueName,
        dead::Reason,
        envelope::{self, DecodeError, Decoded},
        wire::{Incoming, Message},
    },
    metrics::Settlement,
    record::lookup::{Asked, Known},
};

/// How long it may be since a job came, or was looked up, when it starts; else it is looked up (again): a twin of its
/// message may have been run meanwhile.
const FRESH: Duration = Duration::from_secs(2);
/// How often it is looked at what keeps jobs from starting and tells nobody when it is over.
const BLOCKED_LOOK: Duration = Duration::from_millis(200);

/// One queue's part of the process; cheap to clone.
#[derive(Clone)]
pub(super) struct QueueShare {
    pub(super) queue: QueueName,
    pub(super) concurrency: usize,
    turns: Arc<Semaphore>,
    room: Arc<Notify>,
    /// Jobs that wait for their turn.
    waiting: Arc<AtomicUsize>,
}

impl QueueShare {
    pub(super) fn new(queue: QueueName, concurrency: usize) -> Self {
        let concurrency = concurrency.min(Semaphore::MAX_PERMITS);
        let (turns, room) = (Arc::new(Semaphore::new(concurrency)), Arc::new(Notify::new()));
        Self { queue, concurrency, turns, room, waiting: Arc::default() }
    }

    /// Attempts that hold a place now.
    pub(super) fn running(&self) -> usize {
        self.concurrency.saturating_sub(self.turns.available_permits())
    }

    /// Jobs that wait for their turn now.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// A job that was delivered.
struct Arrival {
    envelope: Envelope,
    receipt: Receipt,
    /// How often the message came back, as the broker counts.
    returns: u32,
    since: Instant,
    /// Whether it may be a repeat, as far as its delivery tells.
    suspicious: bool,
    /// When nothing was known yet that speaks against it.
    clear: Instant,
}

/// A job that waits for its turn.
struct Waiting {
    arrival: Arrival,
    entry: Arc<Entry>,
}

/// A job that may have ended already: it waits until somebody says so or not.
struct Held {
    arrival: Arrival,
    asked: Asked,
    answer: oneshot::Receiver<Known>,
}

pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    share: QueueShare,
    stop: CancellationToken,
    waiting: VecDeque<Waiting>,
    held: VecDeque<Held>,
    /// Told when some of the held have their answer, or get none.
    answered: Arc<Notify>,
    orders: watch::Receiver<u64>,
    paused: watch::Receiver<Arc<Pauses>>,
    /// Changes when the fence may have opened.
    fence: watch::Receiver<u64>,
}

impl Dispatcher {
    pub(super) fn new(shared: Arc<Shared>, share: QueueShare, stop: CancellationToken) -> Self {
        let (orders, paused, fence) =
            (shared.cancels.news(), shared.control.paused(), shared.fence.changes());
        let (waiting, held, answered) = (VecDeque::new(), VecDeque::new(), Arc::new(Notify::new()));
        Self { shared, share, stop, waiting, held, answered, orders, paused, fence }
    }

    /// Dispatches until told to stop; then hands back what has not started.
    pub(super) async fn run(mut self, mut deliveries: mpsc::Receiver<Delivery>) {
        loop {
            let blocked = self.is_blocked();
            self.forget_lost();
            if !blocked {
                self.start_runnable();
            }
            self.share.waiting.store(self.waiting.len() + self.held.len(), Ordering::Relaxed);
            let overdue = self.oldest().map(|since| since + self.shared.waiting_max);
            let (room, answered) = (Arc::clone(&self.share.room), Arc::clone(&self.answered));
            tokio::select! {
                () = self.stop.cancelled() => break,
                delivery = deliveries.recv() => match delivery {
                    Some(delivery) => {
                        self.admit(delivery);
                        // What is there already goes with it: a turn of this loop costs more than a delivery.
                        while let Ok(delivery) = deliveries.try_recv() {
                            self.admit(delivery);
                        }
                    }
                    None => break,
                },
                () = room.notified() => {}
                () = answered.notified() => self.take_answers(),
                // The sender lives in `shared`.
                _ = self.orders.changed() => self.cancel_waiting(),
                // The sender lives in `shared`.
                _ = self.fence.changed() => {}
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => self.hand_back_overdue(),
                () = tokio::time::sleep(BLOCKED_LOOK), if blocked => {}
            }
        }
        self.share.waiting.store(0, Ordering::Relaxed);
        deliveries.close();
        let waiting = self.waiting.drain(..).map(|waiting| waiting.arrival);
        let held = self.held.drain(..).map(|held| held.arrival);
        waiting.chain(held).for_each(|arrival| hand_back(&self.shared, arrival));
        // What was delivered but not admitted is handed back as it is dropped.
        while let Ok(delivery) = deliveries.try_recv() {
            let kind = kind_of(&delivery.incoming.message);
            self.shared.count(&self.share.queue, kind.as_ref(), Settlement::HandedBack);
            delivery.receipt.hand_back();
        }
    }

    /// An alarm stops events, retries and dead letters, so nothing is begun that needs them; nor anything before it is
    /// known what was ordered, nor what is paused: the dispatcher is about to be told to stop.
    fn is_blocked(&self) -> bool {
        self.shared.publish.up().is_ok_and(|up| up.is_blocked())
            || !self.shared.fence.is_open()
            || self.paused.borrow().contains_key(&self.share.queue)
    }

    /// When the oldest came of those that have not started.
    fn oldest(&self) -> Option<Instant> {
        let (waiting, held) = (self.waiting.front(), self.held.front());
        let waiting = waiting.map(|first| first.arrival.since);
        waiting.into_iter().chain(held.map(|first| first.arrival.since)).min()
    }

    /// Drops what the broker has taken back before its turn: it is handed over again, perhaps to another worker. What
    /// was lost together lies together, at the front.
    fn forget_lost(&mut self) {
        while self.waiting.front().is_some_and(|first| !first.arrival.receipt.is_live()) {
            self.waiting.pop_front();
        }
        while self.held.front().is_some_and(|first| !first.arrival.receipt.is_live()) {
            self.held.pop_front();
        }
    }

    /// Hands back what has been here for too long: the broker would take it back, and everything else with it.
    fn hand_back_overdue(&mut self) {
        let (now, longest) = (Instant::now(), self.shared.waiting_max);
        let is_overdue = |arrival: &Arrival| arrival.since + longest <= now;
        let waiting = self.waiting.partition_point(|waiting| is_overdue(&waiting.arrival));
        let held = self.held.partition_point(|held| is_overdue(&held.arrival));
        let waiting = self.waiting.drain(..waiting).map(|waiting| waiting.arrival);
        let held = self.held.drain(..held).map(|held| held.arrival);
        waiting.chain(held).for_each(|arrival| hand_back(&self.shared, arrival));
    }

    /// Reads a delivery and decides where it belongs.
    fn admit(&mut self, delivery: Delivery) {
        let Delivery { incoming, receipt } = delivery;
        match Envelope::decode(&incoming, &self.share.queue, self.shared.limits.args) {
            Err(error) => self.refuse(incoming.message, &error, receipt),
            Ok(Decoded { envelope, adopt: true }) => self.adopt(&envelope, receipt),
            Ok(Decoded { envelope, .. }) => {
                let receipt = match self.shared.known.standing(&envelope.key(), receipt) {
                    Standing::New(receipt) => receipt,
                    Standing::Attached => return,
                    Standing::Settled(receipt) => return self.repeat(&envelope, receipt),
                };
                let suspicious = self.is_suspicious(&incoming, &envelope);
                let (returns, since) = (incoming.returns, Instant::now());
                let arrival = Arrival { envelope, receipt, returns, since, suspicious, clear: since };
                if suspicious { self.look_up(arrival) } else { self.accept(arrival) }
            }
        }
    }

    /// Whether this may be a repeat: the broker says so, or it did not come straight from whoever submitted it (a retry's
    /// copy can have a twin, the ladder may double it), or its message says so. Or it may be cancelled by an order that
    /// is not known here any more.
    fn is_suspicious(&self, incoming: &Incoming, envelope: &Envelope) -> bool {
        incoming.redelivered
            || !self.shared.entrances.contains(&incoming.exchange)
            || envelope.unsure
            || self.shared.control.is_blind(envelope.created_at)
    }

    /// Holds a delivery until somebody says whether its job has ended.
    fn look_up(&mut self, arrival: Arrival) {
        let Envelope { id, run, step, .. } = arrival.envelope;
        let asked = Asked { id, run, step };
        match self.shared.lookups.ask(asked, arrival.suspicious, &self.answered) {
            Some(answer) => {
                // The oldest is at the front.
                let place = self.held.partition_point(|other| other.arrival.since <= arrival.since);
                self.held.insert(place, Held { arrival, asked, answer });
            }
            None => self.clear(arrival),
        }
    }

    /// Nothing speaks against it, or nobody knows.
    fn clear(&mut self, mut arrival: Arrival) {
        arrival.clear = Instant::now();
        self.accept(arrival);
    }

    fn take_answers(&mut self) {
        for mut held in std::mem::take(&mut self.held) {
            match held.answer.try_recv() {
                Ok(known) => self.follow(held.arrival, judge(&held.asked, known)),
                Err(oneshot::error::TryRecvError::Empty) => self.held.push_back(held),
                // Nobody knows in time.
                Err(oneshot::error::TryRecvError::Closed) => self.clear(held.arrival),
            }
        }
    }

    fn follow(&mut self, arrival: Arrival, verdict: Verdict) {
        let Envelope { id, kind, queue, .. } = &arrival.envelope;
        match verdict {
            Verdict::Run => self.clear(arrival),
            Verdict::Ended(end) => {
                debug!(job.id = %id, status = end.status.as_str(), "has ended already, not run again");
                let Some((envelope, hold)) = self.begin(arrival) else { return };
                let shared = Arc::clone(&self.shared);
                self.shared.attempts.spawn(async move { shared.end_again(envelope, hold, end).await });
            }
            Verdict::Stale => {
                debug!(job.id = %id, step = arrival.envelope.step, "a later step is known, not run again");
                self.shared.count(queue, Some(kind), Settlement::Repeat);
                arrival.receipt.ack();
            }
            Verdict::Cancel(order) => self.cancel(arrival, order),
        }
    }

    /// Lets a delivery wait for its turn, unless its job is cancelled or not known here.
    fn accept(&mut self, arrival: Arrival) {
        let Envelope { id, run, .. } = arrival.envelope;
        if let Some(order) = self.shared.cancels.order(id, run) {
            return self.cancel(arrival, order);
        }
        match self.shared.executor.registry().get(&arrival.envelope.kind) {
            None => self.unknown_kind(&arrival.envelope, arrival.receipt),
            Some(entry) => {
                let entry = Arc::clone(entry);
                // What was held came before what was not.
                let place = self.waiting.partition_point(|other| other.arrival.since <= arrival.since);
                self.waiting.insert(place, Waiting { arrival, entry });
            }
        }
    }

    /// Orders have come: those that wait are looked at. The held are looked at when they are accepted.
    fn cancel_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let Envelope { id, run, .. } = waiting.arrival.envelope;
            match self.shared.cancels.order(id, run) {
                Some(order) => self.cancel(waiting.arrival, order),
                None => self.waiting.push_back(waiting),
            }
        }
    }

    fn cancel(&self, arrival: Arrival, order: Cancellation) {
        debug!(job.id = %arrival.envelope.id, by = order.by, "cancelled before its turn");
        let Some((envelope, hold)) = self.begin(arrival) else { return };
        let shared = Arc::clone(&self.shared);
        self.shared.attempts.spawn(async move { shared.cancel_waiting(envelope, hold, order).await });
    }

    /// Puts a job on the table of those that are worked on here; `None` where that settles it, too.
    fn begin(&self, arrival: Arrival) -> Option<(Envelope, Arc<Hold>)> {
        let Arrival { envelope, receipt, .. } = arrival;
        if !receipt.is_live() {
            // Not acknowledged: the broker hands it over again.
            return None;
        }
        // It may have become known while it waited: a twin, or a redelivery of one that ran meanwhile.
        match self.shared.known.standing(&envelope.key(), receipt) {
            Standing::New(receipt) => {
                let hold = Hold::new(receipt);
                self.shared.known.begin(envelope.key(), &hold);
                Some((envelope, hold))
            }
            Standing::Attached => None,
            Standing::Settled(receipt) => {
                self.repeat(&envelope, receipt);
                None
            }
        }
    }

    /// Settled here before: the work is done, the acknowledgement was lost with its connection.
    fn repeat(&self, envelope: &Envelope, receipt: Receipt) {
        debug!(job.id = %envelope.id, "already settled here, acknowledged again");
        self.shared.count(&envelope.queue, Some(&envelope.kind), Settlement::Repeat);
        receipt.ack();
    }

    /// Not a job, or not yet: a newer version gets its patience, all else is dead at once.
    fn refuse(&self, message: Message, error: &DecodeError, receipt: Receipt) {
        let patience = envelope::patience_of(&message);
        let (reason, error) = (error.reason(), error.to_string());
        if reason != Reason::UnsupportedVersion || patience >= self.shared.settings.patience {
            return self.bury_raw(message, reason, error, receipt);
        }
        let copy = envelope::patient_copy(&message, &self.share.queue);
        let pause = self.pause(patience);
        // The event is about the step that ends, but for the id and the run that the copy has.
        let event = self.shared.teller.message_waits(&message, &copy, &self.share.queue, pause);
        self.wait(copy, pause, event, receipt);
    }

    fn unknown_kind(&self, envelope: &Envelope, receipt: Receipt) {
        if envelope.patience < self.shared.settings.patience {
            let pause = self.pause(envelope.patience);
            let mut copy = envelope.clone().next_step().due_in(pause);
            copy.patience += 1;
            return self.wait(copy.encode(), pause, self.shared.teller.waits(envelope, pause), receipt);
        }
        let error = format!("no worker of queue {} knows kind {}", self.share.queue, envelope.kind);
        self.bury_raw(envelope.encode(), Reason::UnknownKind, error, receipt);
    }

    /// How long a message waits that is not known here; each pause is twice as long as the one before.
    fn pause(&self, patience: u32) -> Duration {
        self.shared.settings.patience_initial.saturating_mul(1 << patience.min(20))
    }

    /// A deploy may be under way: the message comes back later.
    fn wait(&self, copy: Message, pause: Duration, event: Event, receipt: Receipt) {
        debug!(job.id = copy.message_id.as_deref(), pause_ms = pause.as_millis(), "not known here yet");
        self.pass_on(copy, pause, Some(event), receipt);
    }

    /// Gives a message without an id its id, before it runs: each delivery would make another one.
    fn adopt(&self, envelope: &Envelope, receipt: Receipt) {
        self.pass_on(envelope.encode(), Duration::ZERO, None, receipt);
    }

    fn pass_on(&self, message: Message, delay: Duration, event: Option<Event>, receipt: Receipt) {
        let (shared, queue, hold) = (Arc::clone(&self.shared), self.share.queue.clone(), Hold::new(receipt));
        self.shared.attempts.spawn(async move {
            shared.settler.pass_on(message, &queue, delay, event, &hold, &shared.abort).await;
        });
    }

    fn bury_raw(&self, message: Message, reason: Reason, error: String, receipt: Receipt) {
        let (shared, queue, hold) = (Arc::clone(&self.shared), self.share.queue.clone(), Hold::new(receipt));
        self.shared.attempts.spawn(async move {
            let kind = kind_of(&message);
            let private = kind.as_ref().is_some_and(|kind| shared.is_private(kind));
            let stray = Stray { message: &message, queue: &queue, reason, error: &error, private };
            if shared.settler.bury_raw(&stray, &hold, &shared.abort).await == Settled::Done {
                shared.count(&queue, kind.as_ref(), Settlement::Dead);
            }
        });
    }

    /// Starts all that wait and have a place, in order, except that a kind at its own limit holds up no other.
    fn start_runnable(&mut self) {
        let mut full: HashSet<*const Entry> = HashSet::new();
        let mut index = 0;
        while index < self.waiting.len() {
            let Ok(turn) = Arc::clone(&self.share.turns).try_acquire_owned() else { return };
            let entry = Arc::clone(&self.waiting[index].entry);
            let kind_turn = match &entry.turns {
                Some(_) if full.contains(&Arc::as_ptr(&entry)) => None,
                Some(turns) => Arc::clone(turns).try_acquire_owned().map(Some).ok(),
                None => Some(None),
            };
            match kind_turn {
                None => {
                    full.insert(Arc::as_ptr(&entry));
                    index += 1;
                }
                Some(_) if self.waiting[index].arrival.clear.elapsed() > FRESH => {
                    // Those before this one are not fresh, either; they, too, get their answers now.
                    self.look_up_stale();
                    index = 0;
                }
                Some(kind_turn) => {
                    if let Some(waiting) = self.waiting.remove(index) {
                        self.start(waiting, [Some(turn), kind_turn]);
                    }
                }
            }
        }
    }

    /// Has all looked up that have waited for too long to be taken as they came.
    fn look_up_stale(&mut self) {
        let (stale, fresh) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.arrival.clear.elapsed() > FRESH);
        self.waiting = fresh;
        let stale: VecDeque<Waiting> = stale;
        stale.into_iter().for_each(|waiting| self.look_up(waiting.arrival));
    }

    fn start(&self, waiting: Waiting, permits: [Option<OwnedSemaphorePermit>; 2]) {
        let Waiting { arrival, entry } = waiting;
        let returns = arrival.returns;
        let Some((envelope, hold)) = self.begin(arrival) else { return };
        let slot = Slot {
            _permits: permits.into_iter().flatten().collect(),
            _freed: Some(Freed(Arc::clone(&self.share.room))),
        };
        let shared = Arc::clone(&self.shared);
        self.shared
            .attempts
            .spawn(async move { Box::pin(shared.work(envelope, &entry, hold, returns, slot)).await });
    }
}

fn hand_back(shared: &Shared, arrival: Arrival) {
    debug!(job.id = %arrival.envelope.id, queue = %arrival.envelope.queue, "handed back before its turn");
    shared.count(&arrival.envelope.queue, Some(&arrival.envelope.kind), Settlement::HandedBack);
    arrival.receipt.hand_back();
}

/// The kind of a message that may be anything.
fn kind_of(message: &Message) -> Option<Kind> {
    message.kind.as_deref().and_then(|kind| Kind::parse(kind).ok())
}
