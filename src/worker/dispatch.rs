//! Deliveries: those that wait for their turn, those that run, and those that are known already.
//!
//! One dispatcher per queue admits what the broker delivers, starts what has a free place (in the queue and in
//! its kind), and hands back what has waited too long. It never holds more than the prefetch.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    Executor,
    context::{Freed, Lost, Slot},
    disposition::{Disposition, decide},
    executor::{Outcome, Strings, Terms, is_expired},
    isolate,
    registry::Entry,
    settle::{Ended, Hold, Settled, Settler},
};
use crate::{
    amqp::{
        connection::Link,
        consumer::{Delivery, Receipt},
    },
    config,
    job::{
        Envelope, JobId, QueueName,
        dead::Reason,
        envelope::{self, DecodeError, Decoded},
        wire::Message,
    },
};

/// Jobs remembered as settled here. A redelivery of one of them (its ack was lost with the connection) is
/// settled again, without a run.
const REMEMBERED: usize = 20_000;
/// How often a blocked publishing connection is looked at.
const BLOCKED_LOOK: Duration = Duration::from_millis(200);

/// What all dispatchers of a process share.
pub(super) struct Shared {
    pub(super) executor: Executor,
    pub(super) settler: Settler,
    pub(super) worker: String,
    pub(super) limits: config::Limits,
    pub(super) settings: config::Worker,
    pub(super) waiting_max: Duration,
    pub(super) timeout_max: Duration,
    pub(super) isolation: bool,
    pub(super) publish: Link,
    pub(super) counts: Counts,
    pub(super) known: Known,
    /// Asks all handlers to stop.
    pub(super) cancel: CancellationToken,
    /// Drops all handlers, and ends all waiting for confirms.
    pub(super) abort: CancellationToken,
    /// Everything between a delivery's start and its settling.
    pub(super) attempts: TaskTracker,
    pub(super) acknowledging: TaskTracker,
}

/// What the process did.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) succeeded: AtomicU64,
    pub(super) retried: AtomicU64,
    pub(super) dead: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) handed_back: AtomicU64,
    pub(super) repeats: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A job, its run and its step: copies of one message share it.
type Key = (JobId, u32, u32);

/// Jobs that this process runs or has settled.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<KnownJobs>);

#[derive(Debug, Default)]
struct KnownJobs {
    running: HashMap<Key, Arc<Hold>>,
    settled: HashSet<Key>,
    /// The settled ones by age, for forgetting.
    order: VecDeque<Key>,
}

/// What a delivery is to this process.
enum Standing {
    New(Receipt),
    /// The job runs here: the delivery is settled with it.
    Attached,
    /// The job was settled here: only the acknowledgement is missing.
    Settled(Receipt),
}

impl Known {
    fn standing(&self, key: &Key, receipt: Receipt) -> Standing {
        let known = self.lock();
        if let Some(hold) = known.running.get(key) {
            hold.attach(receipt);
            return Standing::Attached;
        }
        if known.settled.contains(key) { Standing::Settled(receipt) } else { Standing::New(receipt) }
    }

    fn begin(&self, key: Key, hold: &Arc<Hold>) {
        self.lock().running.insert(key, Arc::clone(hold));
    }

    fn end(&self, key: &Key, settled: bool) {
        let mut known = self.lock();
        known.running.remove(key);
        if settled && known.settled.insert(*key) {
            known.order.push_back(*key);
            if known.order.len() > REMEMBERED
                && let Some(oldest) = known.order.pop_front()
            {
                known.settled.remove(&oldest);
            }
        }
    }

    /// Some of the jobs that run now.
    pub(super) fn running(&self, most: usize) -> Vec<JobId> {
        self.lock().running.keys().take(most).map(|(id, ..)| *id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, KnownJobs> {
        // Each method leaves the tables whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a job off the table of running ones, also when its task panics.
struct Running<'a> {
    known: &'a Known,
    key: Key,
    settled: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.known.end(&self.key, self.settled);
    }
}

/// One queue's part of the process; cheap to clone.
#[derive(Clone)]
pub(super) struct QueueShare {
    queue: QueueName,
    concurrency: usize,
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

/// A job that waits for its turn.
struct Waiting {
    envelope: Envelope,
    entry: Arc<Entry>,
    receipt: Receipt,
    /// How often the message came back, as the broker counts.
    returns: u32,
    since: Instant,
}

pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    share: QueueShare,
    stop: CancellationToken,
    waiting: VecDeque<Waiting>,
}

impl Dispatcher {
    pub(super) fn new(shared: Arc<Shared>, share: QueueShare, stop: CancellationToken) -> Self {
        Self { shared, share, stop, waiting: VecDeque::new() }
    }

    /// Dispatches until told to stop; then hands back what has not started.
    pub(super) async fn run(mut self, mut deliveries: mpsc::Receiver<Delivery>) {
        loop {
            let blocked = self.is_blocked();
            self.forget_lost();
            if !blocked {
                self.start_runnable();
            }
            self.share.waiting.store(self.waiting.len(), Ordering::Relaxed);
            let overdue = self.waiting.front().map(|first| first.since + self.shared.waiting_max);
            let room = Arc::clone(&self.share.room);
            tokio::select! {
                () = self.stop.cancelled() => break,
                delivery = deliveries.recv() => match delivery {
                    Some(delivery) => self.admit(delivery),
                    None => break,
                },
                () = room.notified() => {}
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => self.hand_back_first(),
                () = tokio::time::sleep(BLOCKED_LOOK), if blocked => {}
            }
        }
        self.share.waiting.store(0, Ordering::Relaxed);
        deliveries.close();
        while !self.waiting.is_empty() {
            self.hand_back_first();
        }
        // What was delivered but not admitted is handed back as it is dropped.
        while let Ok(delivery) = deliveries.try_recv() {
            count(&self.shared.counts.handed_back);
            delivery.receipt.hand_back();
        }
    }

    /// An alarm stops retries and dead letters, so nothing is begun that might need them.
    fn is_blocked(&self) -> bool {
        self.shared.publish.up().is_ok_and(|up| up.is_blocked())
    }

    /// Drops what the broker has taken back before its turn: it is handed over again, perhaps to another worker. What
    /// was lost together lies together, at the front.
    fn forget_lost(&mut self) {
        while self.waiting.front().is_some_and(|first| !first.receipt.is_live()) {
            self.waiting.pop_front();
        }
    }

    fn hand_back_first(&mut self) {
        if let Some(Waiting { envelope, receipt, .. }) = self.waiting.pop_front() {
            debug!(job.id = %envelope.id, queue = %self.share.queue, "handed back before its turn");
            count(&self.shared.counts.handed_back);
            receipt.hand_back();
        }
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
                match self.shared.executor.registry().get(&envelope.kind) {
                    None => self.unknown_kind(&envelope, receipt),
                    Some(entry) => {
                        let (entry, since) = (Arc::clone(entry), Instant::now());
                        self.waiting.push_back(Waiting {
                            envelope,
                            entry,
                            receipt,
                            returns: incoming.returns,
                            since,
                        });
                    }
                }
            }
        }
    }

    /// Settled here before: the work is done, the acknowledgement was lost with its connection.
    fn repeat(&self, envelope: &Envelope, receipt: Receipt) {
        debug!(job.id = %envelope.id, "already settled here, acknowledged again");
        count(&self.shared.counts.repeats);
        receipt.ack();
    }

    /// Not a job, or not yet: a newer version gets its patience, all else is dead at once.
    fn refuse(&self, message: Message, error: &DecodeError, receipt: Receipt) {
        let patience = envelope::patience_of(&message);
        if matches!(error, DecodeError::Version(_)) && patience < self.shared.settings.patience {
            let copy = envelope::patient_copy(&message, &self.share.queue);
            return self.wait(copy, patience, receipt);
        }
        self.bury_raw(message, error.reason(), error.to_string(), receipt);
    }

    fn unknown_kind(&self, envelope: &Envelope, receipt: Receipt) {
        if envelope.patience < self.shared.settings.patience {
            let mut copy = envelope.clone().next_step();
            copy.patience += 1;
            return self.wait(copy.encode(), envelope.patience, receipt);
        }
        let error = format!("no worker of queue {} knows kind {}", self.share.queue, envelope.kind);
        self.bury_raw(envelope.encode(), Reason::UnknownKind, error, receipt);
    }

    /// A deploy may be under way: the message comes back later, after a pause that doubles.
    fn wait(&self, copy: Message, patience: u32, receipt: Receipt) {
        let pause = self.shared.settings.patience_initial.saturating_mul(1 << patience.min(20));
        debug!(job.id = copy.message_id.as_deref(), pause_ms = pause.as_millis(), "not known here yet");
        self.pass_on(copy, pause, receipt);
    }

    /// Gives a message without an id its id, before it runs: each delivery would make another one.
    fn adopt(&self, envelope: &Envelope, receipt: Receipt) {
        self.pass_on(envelope.encode(), Duration::ZERO, receipt);
    }

    fn pass_on(&self, message: Message, delay: Duration, receipt: Receipt) {
        let (shared, queue, hold) = (Arc::clone(&self.shared), self.share.queue.clone(), Hold::new(receipt));
        self.shared.attempts.spawn(async move {
            shared.settler.pass_on(message, &queue, delay, &hold, &shared.abort).await;
        });
    }

    fn bury_raw(&self, message: Message, reason: Reason, error: String, receipt: Receipt) {
        let (shared, queue, hold) = (Arc::clone(&self.shared), self.share.queue.clone(), Hold::new(receipt));
        self.shared.attempts.spawn(async move {
            let settled =
                shared.settler.bury_raw(&message, &queue, reason, &error, &hold, &shared.abort).await;
            if settled == Settled::Done {
                count(&shared.counts.dead);
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
                Some(kind_turn) => {
                    if let Some(waiting) = self.waiting.remove(index) {
                        self.start(waiting, [Some(turn), kind_turn]);
                    }
                }
            }
        }
    }

    fn start(&self, waiting: Waiting, permits: [Option<OwnedSemaphorePermit>; 2]) {
        let Waiting { envelope, entry, receipt, returns, .. } = waiting;
        if !receipt.is_live() {
            return;
        }
        // It may have become known while it waited: a twin, or a redelivery of one that ran meanwhile.
        let receipt = match self.shared.known.standing(&envelope.key(), receipt) {
            Standing::New(receipt) => receipt,
            Standing::Attached => return,
            Standing::Settled(receipt) => return self.repeat(&envelope, receipt),
        };
        let hold = Hold::new(receipt);
        self.shared.known.begin(envelope.key(), &hold);
        let slot = Slot {
            _permits: permits.into_iter().flatten().collect(),
            _freed: Some(Freed(Arc::clone(&self.share.room))),
        };
        let shared = Arc::clone(&self.shared);
        self.shared.attempts.spawn(async move { shared.work(envelope, &entry, hold, returns, slot).await });
    }
}

impl Shared {
    /// One attempt, from start to settling.
    async fn work(&self, mut envelope: Envelope, entry: &Entry, hold: Arc<Hold>, returns: u32, slot: Slot) {
        let mut running = Running { known: &self.known, key: envelope.key(), settled: false };
        let started_at = Timestamp::now();
        // A job's own timeout cannot be longer than the broker lets a delivery live: it would be taken away while
        // it runs, and run again.
        envelope.timeout = envelope.timeout.map(|timeout| timeout.min(self.timeout_max));
        let terms = Terms::of(&envelope, entry);
        let outcome = if is_expired(&envelope, started_at) {
            Outcome::Expired
        } else if self.is_suspect(returns) {
            warn!(job.id = %envelope.id, kind = %envelope.kind, returns, "came back several times: runs in a child process");
            let sentence = isolate::run(&envelope, &terms, &self.strings(&hold)).await;
            match sentence {
                Ok(outcome) => outcome,
                Err(error) => {
                    warn!(%error, "no child process; running in this one");
                    self.executor.execute(envelope.clone(), entry, self.strings(&hold), slot).await
                }
            }
        } else {
            self.executor.execute(envelope.clone(), entry, self.strings(&hold), slot).await
        };
        let disposition = decide(outcome, envelope.attempt, &terms.retry, envelope.id.seed(envelope.attempt));
        let counter = self.counter(&disposition);
        let ended = Ended { envelope, hold: &hold, started_at };
        let settled = self.settler.settle(ended, disposition, &self.abort).await;
        running.settled = settled == Settled::Done;
        match settled {
            Settled::Done => count(counter),
            Settled::HandedBack => count(&self.counts.handed_back),
            Settled::Left => {}
        }
    }

    fn is_suspect(&self, returns: u32) -> bool {
        let from = self.settings.isolate_from_delivery;
        self.isolation && from > 0 && returns.saturating_add(1) >= from
    }

    fn strings(&self, hold: &Arc<Hold>) -> Strings {
        let hold = Arc::clone(hold);
        Strings {
            cancel: self.cancel.clone(),
            abort: self.abort.clone(),
            lost: Lost(Arc::new(move || !hold.is_live())),
        }
    }

    fn counter(&self, disposition: &Disposition) -> &AtomicU64 {
        match disposition {
            Disposition::Succeed { .. } => &self.counts.succeeded,
            Disposition::Expire => &self.counts.expired,
            Disposition::Retry { .. } | Disposition::Snooze { .. } => &self.counts.retried,
            Disposition::Die { .. } => &self.counts.dead,
            Disposition::HandBack => &self.counts.handed_back,
        }
    }
}
