//! What a worker does with a job whose turn has come: one attempt, what is told of it meanwhile, and its settling.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, warn};

use super::{
    Executor,
    cancel::Cancels,
    context::{Lost, Slot},
    disposition::{Disposition, decide},
    executor::{Cancellation, Outcome, Strings, Terms, is_expired},
    fence::Fence,
    hold::Hold,
    isolate,
    known::{Known, Running},
    lookup::Lookups,
    news::{Listener, News, Said},
    registry::Entry,
    settle::{Attempted, Ended, Settled, Settler},
    tell::Teller,
    traced,
};
use crate::{
    amqp::{Names, connection::Link, control::Control},
    config,
    event::Event,
    job::{Envelope, Kind, QueueName},
    metrics::{Metrics, OTHER, Settlement},
    record::{lookup::End, writer::EventWriter},
    trace::{Span, TraceContext},
};

/// An attempt that runs for so long is told of. Most jobs are shorter, and would only double the log.
const TOLD_AFTER: Duration = Duration::from_millis(250);
/// How often is told how far an attempt is.
const PROGRESS: Duration = Duration::from_secs(1);

/// What all dispatchers of a process share.
pub(super) struct Shared {
    pub(super) executor: Executor,
    pub(super) settler: Settler,
    pub(super) events: EventWriter,
    pub(super) teller: Arc<Teller>,
    pub(super) control: Control,
    pub(super) cancels: Cancels,
    pub(super) fence: Arc<Fence>,
    pub(super) lookups: Lookups,
    pub(super) worker: String,
    pub(super) names: Names,
    /// The exchanges that deliveries come from which nobody has seen before.
    pub(super) entrances: [String; 2],
    pub(super) limits: config::Limits,
    pub(super) settings: config::Worker,
    pub(super) cancel_grace: Duration,
    pub(super) waiting_max: Duration,
    pub(super) timeout_max: Duration,
    pub(super) isolation: bool,
    pub(super) publish: Link,
    pub(super) counts: Counts,
    pub(super) metrics: Metrics,
    pub(super) known: Known,
    /// Asks all handlers to stop.
    pub(super) cancel: CancellationToken,
    /// Drops all handlers, and ends all waiting for confirms.
    pub(super) abort: CancellationToken,
    /// Everything between a delivery's start and its settling.
    pub(super) attempts: TaskTracker,
    pub(super) acknowledging: TaskTracker,
}

/// What the process did, in the order of [`Settlement::ALL`].
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; Settlement::ALL.len()]);

impl Counts {
    pub(super) fn of(&self, what: Settlement) -> u64 {
        self.0[what as usize].load(Ordering::Relaxed)
    }
}

impl Shared {
    /// One attempt, from start to settling.
    pub(super) async fn work(
        &self,
        mut envelope: Envelope,
        entry: &Entry,
        hold: Arc<Hold>,
        returns: u32,
        slot: Slot,
    ) {
        let running = Running::of(&self.known, envelope.key());
        if !self.fence.is_open() {
            // The process stood still since it was given its turn: the broker has it, and hands it out again.
            return;
        }
        // A job's own timeout cannot be longer than the broker lets a delivery live: it would be taken away while
        // it runs, and run again.
        envelope.timeout = envelope.timeout.map(|timeout| timeout.min(self.timeout_max));
        let strings = self.strings(&hold);
        let watched = self.cancels.watch(envelope.id, envelope.run, &strings);
        let early = match strings.order.get().cloned() {
            Some(order) => Some(order.into()),
            None => is_expired(&envelope, Timestamp::now()).then_some(Outcome::Expired),
        };
        let span = match early {
            Some(_) => Span::none(TraceContext::of(&envelope.extra)),
            None => traced::begin(&self.names, &envelope),
        };
        let marks = traced::marks(&envelope, &span);
        let settling = async {
            let terms = Terms::of(&envelope, entry);
            let mut telling = Telling::new(self, &envelope, &terms, &strings);
            let (started_at, began) = (telling.started_at, Instant::now());
            let (queue, kind) = (&envelope.queue, &entry.kind);
            let ran = early.is_none();
            let outcome = if let Some(outcome) = early {
                outcome
            } else {
                if let Some(due) = envelope.due() {
                    // Clocks of two machines: it may seem to have started before.
                    let wait = Duration::try_from(started_at.duration_since(due)).unwrap_or_default();
                    self.metrics.waited(queue.as_str(), kind.as_str(), wait);
                }
                tokio::select! {
                    outcome = self.run(&envelope, entry, &terms, &strings, returns, slot) => outcome,
                    never = telling.go_on() => match never {},
                }
            };
            drop(watched);
            traced::end(&span, &outcome);
            let finished_at = Timestamp::now();
            let outcome_recorded = outcome.recorded().filter(|_| ran);
            if let Some(outcome) = outcome_recorded {
                self.metrics.attempted(queue.as_str(), kind.as_str(), outcome.as_str(), began.elapsed());
            }
            let attempt = outcome_recorded.map(|outcome| Attempted { started_at, finished_at, outcome });
            let untold = telling.rest();
            let disposition =
                decide(outcome, envelope.attempt, &terms.retry, envelope.id.seed(envelope.attempt));
            let mut ended = Ended {
                private: entry.options.private || self.control.is_private(&envelope.kind),
                max_attempts: Some(terms.retry.max_attempts),
                envelope,
                hold: &hold,
                attempt,
                untold: untold.map(Box::new),
            };
            self.settle(running, &mut ended, disposition).await;
        };
        span.within(settling).instrument(marks).await;
    }

    async fn run(
        &self,
        envelope: &Envelope,
        entry: &Entry,
        terms: &Terms,
        strings: &Strings,
        returns: u32,
        slot: Slot,
    ) -> Outcome {
        if self.is_suspect(returns) {
            warn!(job.id = %envelope.id, kind = %envelope.kind, returns, "came back several times: runs in a child process");
            // Boxed, as it is rare and large.
            match Box::pin(isolate::run(envelope, terms, strings)).await {
                Ok(outcome) => return outcome,
                Err(error) => warn!(%error, "no child process; running in this one"),
            }
        }
        self.executor.execute(envelope.clone(), entry, strings.clone(), slot).await
    }

    /// Ends a run that was cancelled before its turn came.
    pub(super) async fn cancel_waiting(&self, envelope: Envelope, hold: Arc<Hold>, order: Cancellation) {
        let running = Running::of(&self.known, envelope.key());
        let private = self.is_private(&envelope.kind);
        let mut ended =
            Ended { max_attempts: None, private, envelope, hold: &hold, attempt: None, untold: None };
        let Cancellation { by, reason } = order;
        self.settle(running, &mut ended, Disposition::Cancel { by, reason }).await;
    }

    /// Settles a delivery of a run that has ended elsewhere.
    pub(super) async fn end_again(&self, envelope: Envelope, hold: Arc<Hold>, end: End) {
        let mut running = Running::of(&self.known, envelope.key());
        let settled = self.settler.settle_again(&envelope, end, &hold, &self.abort).await;
        running.settled = settled == Settled::Done;
        self.count_settled(&envelope.queue, &envelope.kind, settled, Settlement::Repeat);
    }

    async fn settle(&self, mut running: Running<'_>, ended: &mut Ended<'_>, disposition: Disposition) {
        let what = settlement(&disposition);
        let (queue, kind) = (ended.envelope.queue.clone(), ended.envelope.kind.clone());
        let settled = self.settler.settle(ended, disposition, &self.abort).await;
        running.settled = settled == Settled::Done;
        self.count_settled(&queue, &kind, settled, what);
    }

    fn count_settled(&self, queue: &QueueName, kind: &Kind, settled: Settled, what: Settlement) {
        match settled {
            Settled::Done => self.count(queue, Some(kind), what),
            Settled::HandedBack => self.count(queue, Some(kind), Settlement::HandedBack),
            // The redelivery is counted.
            Settled::Left => {}
        }
    }

    /// Counts a delivery that has been settled. A kind without a handler here may be anything, and is no label.
    pub(super) fn count(&self, queue: &QueueName, kind: Option<&Kind>, what: Settlement) {
        let entry = kind.and_then(|kind| self.executor.registry().get(kind));
        self.counts.0[what as usize].fetch_add(1, Ordering::Relaxed);
        self.metrics.settled(queue.as_str(), entry.map_or(OTHER, |entry| entry.kind.as_str()), what);
    }

    /// Whether args and output of this kind stay out of the record: as its handler here says, or that of another
    /// worker.
    pub(super) fn is_private(&self, kind: &Kind) -> bool {
        let here = self.executor.registry().get(kind).is_some_and(|entry| entry.options.private);
        here || self.control.is_private(kind)
    }

    fn is_suspect(&self, returns: u32) -> bool {
        let from = self.settings.isolate_from_delivery;
        self.isolation && from > 0 && returns.saturating_add(1) >= from
    }

    fn strings(&self, hold: &Arc<Hold>) -> Strings {
        let hold = Arc::clone(hold);
        Strings {
            cancel: self.cancel.child_token(),
            abort: self.abort.clone(),
            order: Arc::default(),
            grace: self.cancel_grace,
            lost: Lost(Arc::new(move || !hold.is_live())),
            news: Arc::new(News::default()),
        }
    }
}

/// What a delivery counts as when this has been done.
fn settlement(disposition: &Disposition) -> Settlement {
    match disposition {
        Disposition::Succeed { .. } => Settlement::Succeeded,
        Disposition::Expire => Settlement::Expired,
        Disposition::Cancel { .. } => Settlement::Cancelled,
        Disposition::Retry { .. } => Settlement::Retried,
        Disposition::Snooze { .. } => Settlement::Snoozed,
        Disposition::Die { .. } => Settlement::Dead,
        Disposition::HandBack => Settlement::HandedBack,
    }
}

/// Tells the event log of an attempt while it runs. Nothing waits for that.
struct Telling<'a> {
    shared: &'a Shared,
    envelope: &'a Envelope,
    max_attempts: u32,
    started_at: Timestamp,
    heard: Listener,
    /// Progress events so far.
    count: u32,
}

impl<'a> Telling<'a> {
    fn new(shared: &'a Shared, envelope: &'a Envelope, terms: &Terms, strings: &Strings) -> Self {
        Self {
            shared,
            envelope,
            max_attempts: terms.retry.max_attempts,
            started_at: Timestamp::now(),
            heard: strings.news.listen(),
            count: 0,
        }
    }

    /// Tells that the attempt has started, once it has run for a while, and then how far it is.
    async fn go_on(&mut self) -> Infallible {
        sleep(TOLD_AFTER).await;
        let started = self.shared.teller.started(self.envelope, self.max_attempts, self.started_at);
        self.shared.events.post(&[started]);
        loop {
            let said = self.heard.next().await;
            let event = self.progress(said);
            self.shared.events.post(&[event]);
            sleep(PROGRESS).await;
        }
    }

    /// What the handler told last, unless that was passed on.
    fn rest(mut self) -> Option<Event> {
        let said = self.heard.rest()?;
        Some(self.progress(said))
    }

    fn progress(&mut self, said: Said) -> Event {
        self.count += 1;
        self.shared.teller.progress(self.envelope, said, self.count)
    }
}
