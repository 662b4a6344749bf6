//! The control log: which worker runs which kind from which queue.
//!
//! Workers announce their kinds on `hopline.control` before they consume, again at each reconnect and every hour; the
//! announcements stay in a stream. An HTTP process reads that stream from its beginning, so that it routes a
//! kind to its queue although no worker runs at the moment. The newest announcement of a kind holds.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapin::{
    Channel,
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    connection::{Link, LinkDown},
    consumer::{Consuming, Delivery, Source, consume},
    names::Names,
    publisher::{Publisher, Target},
};
use crate::job::{
    JobId, Kind, QueueName,
    wire::{HeaderValue, Incoming, Message},
};

/// Message type of an announcement.
const KINDS: &str = "hopline.kinds";
/// Message type of a barrier: a mark by which a reader knows that it has read what was there before.
const BARRIER: &str = "hopline.barrier";
/// Most kinds remembered; more than that are not routed by announcement.
const KINDS_MAX: usize = 100_000;
/// Records read ahead.
const PREFETCH: u16 = 1000;
/// Reading that ends within this time has met something that it cannot read.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How often, in a row, until that is skipped.
const STUCK: u32 = 3;
/// Pause between attempts to write to the log.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a worker announces its kinds on a connection that lasts: what it said may have left the log (its age, a
/// policy, a log that was deleted), and a front that starts then would send the kinds to `default`.
const REPEAT: Duration = Duration::from_secs(3600);

/// One kind of an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announced {
    pub(crate) kind: Kind,
    pub(crate) queue: QueueName,
}

#[derive(Debug, Serialize, Deserialize)]
struct Announcement {
    worker: String,
    kinds: Vec<Announced>,
}

fn message(kind: &str, body: Vec<u8>) -> Message {
    Message {
        message_id: Some(JobId::new().to_string()),
        kind: Some(kind.to_owned()),
        content_type: Some("application/json".to_owned()),
        body: body.into(),
        ..Message::default()
    }
}

/// Announces a worker's kinds at each connection of `publisher`'s link and every hour, until told to stop. `announced`
/// turns true when the log has them for the first time.
pub(crate) async fn announce(
    publisher: Publisher,
    names: Names,
    worker: String,
    kinds: Vec<Announced>,
    announced: watch::Sender<bool>,
    stop: CancellationToken,
) {
    // Serialising names cannot fail.
    let body = serde_json::to_vec(&Announcement { worker: worker.clone(), kinds }).unwrap_or_default();
    let mut state = publisher.link().watch();
    let mut told = None;
    loop {
        state.borrow_and_update();
        let pause = match publisher.link().up() {
            Ok(up) if !still(told, up.epoch).is_zero() => still(told, up.epoch),
            Ok(up) => {
                let target =
                    Target { exchange: names.control(), key: format!("kinds.{worker}"), mandatory: true };
                let deadline = Instant::now() + Duration::from_secs(5);
                match publisher.publish(target, message(KINDS, body.clone()), deadline).await {
                    Ok(()) => {
                        told = Some((up.epoch, Instant::now()));
                        announced.send_replace(true);
                        REPEAT
                    }
                    Err(error) => {
                        debug!(%error, "cannot announce kinds");
                        AGAIN
                    }
                }
            }
            Err(_) => REPEAT,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

/// How long an announcement still holds that was made on connection `told.0` at `told.1`; zero: it is due.
fn still(told: Option<(u64, Instant)>, epoch: u64) -> Duration {
    match told {
        Some((on, at)) if on == epoch => REPEAT.saturating_sub(at.elapsed()),
        _ => Duration::ZERO,
    }
}

/// What is known of kinds, kept up to date; cheap to clone.
#[derive(Clone)]
pub(crate) struct Catalogue(Arc<Inner>);

struct Inner {
    kinds: Mutex<BTreeMap<Kind, QueueName>>,
    caught_up: AtomicBool,
    stop: CancellationToken,
}

impl Catalogue {
    /// Starts to read the control log over `link`; `publisher` writes the barrier that marks its end.
    pub(crate) fn start(link: &Link, publisher: Publisher, names: &Names) -> Self {
        let catalogue = Self(Arc::new(Inner {
            kinds: Mutex::default(),
            caught_up: AtomicBool::new(false),
            stop: CancellationToken::new(),
        }));
        let (deliveries, incoming) = mpsc::channel(PREFETCH.into());
        let next = Arc::new(Mutex::new(None));
        let source =
            ControlLog { queue: names.control_log(), next: Arc::clone(&next), attempt: Attempt::default() };
        let consuming = Consuming {
            link: link.clone(),
            prefetch: PREFETCH,
            deliveries,
            stop: catalogue.0.stop.clone(),
            consuming: Arc::new(AtomicBool::new(false)),
            acknowledging: TaskTracker::new(),
        };
        let barrier = JobId::new().to_string();
        link.runtime().spawn(consume(consuming, source));
        link.runtime().spawn(write_barrier(publisher, names.control(), barrier.clone(), catalogue.clone()));
        link.runtime().spawn(catalogue.clone().read(incoming, next, barrier));
        catalogue
    }

    /// The queue that workers take `kind` from.
    pub(crate) fn queue_of(&self, kind: &Kind) -> Option<QueueName> {
        self.kinds().get(kind).cloned()
    }

    /// Whether all announcements made before this process started are known.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.0.caught_up.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        self.0.stop.cancel();
    }

    async fn read(
        self,
        mut incoming: mpsc::Receiver<Delivery>,
        next: Arc<Mutex<Option<i64>>>,
        barrier: String,
    ) {
        while let Some(Delivery { incoming: record, receipt }) = incoming.recv().await {
            if let Some(HeaderValue::Int(offset)) = record.message.headers.get("x-stream-offset") {
                *next.lock().unwrap_or_else(PoisonError::into_inner) = Some(offset + 1);
            }
            self.apply(&record, &barrier);
            receipt.ack();
        }
    }

    fn apply(&self, record: &Incoming, barrier: &str) {
        let message = &record.message;
        match message.kind.as_deref() {
            Some(KINDS) => match serde_json::from_slice::<Announcement>(&message.body) {
                Ok(announcement) => self.learn(announcement),
                Err(error) => warn!(%error, "an announcement cannot be read"),
            },
            Some(BARRIER) if message.message_id.as_deref() == Some(barrier) => {
                self.0.caught_up.store(true, Ordering::Relaxed);
                info!(kinds = self.kinds().len(), "caught up with the control log");
            }
            // Others' barriers, and what later versions write.
            _ => {}
        }
    }

    fn learn(&self, announcement: Announcement) {
        let mut kinds = self.kinds();
        for Announced { kind, queue } in announcement.kinds {
            if kinds.len() < KINDS_MAX || kinds.contains_key(&kind) {
                kinds.insert(kind, queue);
            }
        }
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<Kind, QueueName>> {
        // The map is whole after every statement.
        self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the barrier, again until it is seen: the log has no mark of its end.
async fn write_barrier(publisher: Publisher, exchange: String, barrier: String, catalogue: Catalogue) {
    while !catalogue.is_caught_up() && !catalogue.0.stop.is_cancelled() {
        let target = Target { exchange: exchange.clone(), key: "barrier".to_owned(), mandatory: true };
        let mut record = message(BARRIER, b"{}".to_vec());
        record.message_id = Some(barrier.clone());
        let deadline = Instant::now() + Duration::from_secs(5);
        if let Err(error) = publisher.publish_patiently(target, record, deadline).await {
            debug!(%error, "cannot write the barrier of the control log");
        }
        tokio::select! {
            () = catalogue.0.stop.cancelled() => return,
            () = sleep(AGAIN) => {}
        }
    }
}

/// Reads the stream from its first record, and after a reconnect from where it stopped.
///
/// A record that lapin cannot parse (a property that is not UTF-8) costs the connection each time it is delivered.
/// So when reading ends at once, at the same place, several times in a row, that place is skipped. Skipping one too
/// many does little harm: workers announce their kinds again every hour.
struct ControlLog {
    queue: String,
    next: Arc<Mutex<Option<i64>>>,
    attempt: Attempt,
}

/// Where reading was begun last, and how often it has ended there at once.
#[derive(Debug, Default)]
struct Attempt {
    from: Option<i64>,
    began: Option<Instant>,
    ended_at_once: bool,
    failures: u32,
}

impl Attempt {
    /// Where to begin, given the record after the last one read.
    fn begin(&mut self, next: Option<i64>) -> Option<i64> {
        self.began = Some(Instant::now());
        let read_nothing = next.is_none_or(|next| self.from.is_some_and(|from| next <= from));
        if !(self.ended_at_once && read_nothing) {
            (self.from, self.failures) = (next, 0);
            return next;
        }
        self.failures += 1;
        if self.failures >= STUCK {
            let skipped = self.from.unwrap_or(0);
            warn!(offset = skipped, "a record of the control log cannot be read and is skipped");
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

impl Source for ControlLog {
    async fn prepare(&mut self, _: &Channel, _: u64) -> Result<(String, FieldTable), LinkDown> {
        let next = *self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.attempt.begin(next);
        let offset = next.map_or_else(|| AMQPValue::LongString("first".into()), AMQPValue::LongLongInt);
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), offset);
        Ok((self.queue.clone(), arguments))
    }

    fn ended(&mut self) {
        self.attempt.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test(start_paused = true)]
    async fn kinds_are_announced_on_each_connection_and_every_hour() {
        let told = Some((1, Instant::now()));
        assert_eq!(still(None, 1), Duration::ZERO);
        assert_eq!(still(told, 2), Duration::ZERO);
        assert_eq!(still(told, 1), REPEAT);
        tokio::time::advance(REPEAT).await;
        assert_eq!(still(told, 1), Duration::ZERO);
    }
}
