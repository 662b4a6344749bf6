//! The projector: the event log, applied to the store.
//!
//! It takes as many batches as are there, within bounds, and applies them in one transaction, the place in the log
//! with them. While a large one is at work, what lies behind it is read. Nothing depends on the order of events, nor on
//! how often one comes, so whatever goes wrong is mended by reading again: from the place that the store knows, or
//! from the first record of the log when the file is damaged or the log is another one.
//!
//! What cannot be read is counted and passed over: one bad writer must not stop the record of everybody else.

use std::{
    future::ready,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{FutureExt, future::OptionFuture};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    barrier::BARRIER,
    reader::{Failed, Shared, in_full},
    store::{Applied, LogBatch, Store, StoreError},
};
use crate::{
    amqp::{
        connection::Link,
        pause::Pauses,
        stream::{Item, Place, Record, StreamReader},
    },
    event::batch,
};

/// Records read ahead, each a batch of events of up to 1 MiB.
const PREFETCH: u16 = 64;
/// Most records, and about most bytes, of one transaction.
const RECORDS_MAX: usize = 512;
const BYTES_MAX: usize = 4 << 20;
/// From one transaction to the next, while little comes with each and nobody waits for it: a transaction has a price of
/// its own, and what two events of a job say in one is written once. Who looks at a list ends the wait ([`Looks`]).
const MOMENT: Duration = Duration::from_millis(20);
/// Records of a transaction that is small.
const FEW_RECORDS: usize = 32;
/// Pause before a record is begun anew that cannot even be begun.
const CALM: Duration = Duration::from_secs(1);

/// Reads the log into the store.
pub(super) struct Projector {
    shared: Arc<Shared>,
    reader: StreamReader,
    /// What was passed over since the start.
    unreadable: u64,
    /// When the next transaction may begin that nobody waits for.
    next: Option<Instant>,
    /// What is applied next, where that was read ahead.
    ahead: Option<Part>,
}

/// A part of the log for one transaction.
struct Part {
    records: Vec<Record>,
    /// What they say, where that was read ahead.
    read: Option<Read>,
    /// What comes behind them, if that is something else.
    end: Option<Item>,
    /// Who had looked before they were taken.
    looks: u64,
}

impl Projector {
    /// A projector that reads `queue` over `link`, behind `place`.
    pub(super) fn new(shared: Arc<Shared>, link: &Link, queue: String, place: Option<Place>) -> Self {
        let reader = StreamReader::start(link, queue, place, PREFETCH);
        Self { shared, reader, unreadable: 0, next: None, ahead: None }
    }

    /// Counts the interruptions of reading.
    pub(super) fn rounds(&self) -> watch::Receiver<u64> {
        self.reader.rounds()
    }

    /// Whether the log is being read.
    pub(super) fn consuming(&self) -> Arc<AtomicBool> {
        self.reader.consuming()
    }

    /// Reads until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        loop {
            if let Some(next) = self.next.take() {
                let _lingers = shared.looks.linger();
                tokio::select! {
                    () = sleep_until(next) => {}
                    () = shared.barriers.awaited() => {}
                    () = shared.looks.awaited() => {}
                    () = stop.cancelled() => return,
                }
            }
            let work = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.damaged.notified() => self.start_over().boxed(),
                () = ready(()), if self.ahead.is_some() => self.take(None).boxed(),
                item = self.reader.next() => self.take(Some(item)).boxed(),
                // There is nothing to be seen.
                () = shared.looks.awaited() => {
                    shared.looks.answer(shared.looks.asked());
                    continue;
                }
            };
            // What is not applied yet is read again at the next start.
            if stop.run_until_cancelled(work).await.is_none() {
                return;
            }
        }
    }

    /// Deals with what was read ahead, or else with an item of the log and what has come behind it already.
    async fn take(&mut self, item: Option<Item>) {
        let part = match self.ahead.take() {
            Some(part) => part,
            None => self.gather(item),
        };
        let Part { records, read, end, looks } = part;
        // Where little comes, what comes next is better taken with what follows it.
        let more = if end.is_none() && records.len() >= FEW_RECORDS {
            self.reader.try_next().map(|next| self.gather(Some(next)))
        } else {
            None
        };
        let reading_ahead = OptionFuture::from(more.map(read_ahead));
        let (applied, ahead) = tokio::join!(self.apply(records, read), reading_ahead);
        if !applied {
            return;
        }
        self.ahead = ahead;
        self.shared.looks.answer(looks);
        match end {
            Some(Item::Gap { from, to }) => self.miss(from, to).await,
            Some(Item::NewLog) => self.begin_anew().await,
            Some(Item::Record(_)) | None => {}
        }
    }

    /// The records that are there, and what follows them if it is something else.
    fn gather(&mut self, first: Option<Item>) -> Part {
        let looks = self.shared.looks.asked();
        let mut part = Part { records: Vec::new(), read: None, end: None, looks };
        let (mut bytes, mut next) = (0, first);
        while let Some(item) = next {
            let Item::Record(record) = item else {
                part.end = Some(item);
                break;
            };
            bytes += record.message.body.len();
            part.records.push(record);
            if part.records.len() >= RECORDS_MAX || bytes >= BYTES_MAX {
                break;
            }
            next = self.reader.try_next();
        }
        part
    }

    /// Applies records, however long that takes; false when reading begins anew instead.
    async fn apply(&mut self, records: Vec<Record>, read: Option<Read>) -> bool {
        if records.is_empty() {
            return true;
        }
        match self.patiently(&records, true, read).await {
            Done::Applied => true,
            Done::StartedOver => false,
            Done::Panicked => {
                // One event that the fold cannot bear must not cost the others.
                for record in &records {
                    let one = std::slice::from_ref(record);
                    match self.patiently(one, true, None).await {
                        Done::Applied => continue,
                        Done::StartedOver => return false,
                        Done::Panicked => {}
                    }
                    self.pass_over(record.offset, "it cannot be applied: an error in the program");
                    match self.patiently(one, false, None).await {
                        Done::Applied => {}
                        Done::StartedOver => return false,
                        Done::Panicked => {
                            // It is not the events, so it is the file.
                            sleep(CALM).await;
                            self.start_over().await;
                            return false;
                        }
                    }
                }
                true
            }
        }
    }

    /// Applies records in one transaction, again and again until that succeeds. Without `events`, only the place in
    /// the log moves on. `known`: what they say, if that was read before.
    async fn patiently(&mut self, records: &[Record], events: bool, mut known: Option<Read>) -> Done {
        let mut pauses = Pauses::new();
        let mut last = String::new();
        loop {
            // Clones of bodies are cheap.
            let records = records.to_vec();
            let (began, count, known) = (Instant::now(), records.len(), known.take());
            let applying = self.shared.ask(move |store| {
                let read = known.unwrap_or_else(|| read(&records, events));
                store.apply(read.batches).map(|applied| (applied, read.barriers, read.unreadable))
            });
            match applying.await {
                Ok((applied, barriers, unreadable)) => {
                    self.shared.set_trouble(None);
                    for (offset, why) in unreadable {
                        self.pass_over(offset, &why);
                    }
                    self.publish(&applied, &barriers);
                    self.next = (count < FEW_RECORDS).then(|| began + MOMENT);
                    return Done::Applied;
                }
                Err(Failed::Store(StoreError::Corrupt(detail))) => {
                    error!(detail, "the record's file is damaged");
                    self.start_over().await;
                    return Done::StartedOver;
                }
                Err(Failed::Panicked) => return Done::Panicked,
                // Only at the end of the process.
                Err(Failed::Closed) => std::future::pending().await,
                Err(Failed::Store(failed)) => self.wait(&mut pauses, &mut last, &failed).await,
            }
        }
    }

    /// Lets everybody know what has been applied.
    fn publish(&self, applied: &Applied, barriers: &[String]) {
        let shared = &self.shared;
        {
            let (mut rates, now) = (shared.rates(), Timestamp::now());
            applied.news.iter().for_each(|(_, said)| rates.count(said, now));
        }
        shared.tail.send_replace(applied.tail);
        shared.watching.wake(&applied.changed);
        barriers.iter().for_each(|id| shared.barriers.land(id));
    }

    /// The log has nothing from `from` up to `to`.
    async fn miss(&mut self, from: u64, to: u64) {
        if from == 0 {
            // A record that begins here knows this by itself.
            debug!(offset = to, "the log begins here");
            return;
        }
        warn!(from, to, "the event log no longer has what lies between: events are missing in the record");
        self.insist(move |store| store.missing_before(to)).await;
    }

    /// The log is another one: it was deleted, or the broker lost its end.
    async fn begin_anew(&mut self) {
        warn!("the event log is not the one that was read so far; reading it from its beginning");
        self.shared.barriers.lose();
        self.insist(Store::new_epoch).await;
        self.shared.watching.wake_all();
    }

    /// Sets the damaged file aside and reads the log from its beginning.
    async fn start_over(&mut self) {
        self.shared.barriers.lose();
        let aside = loop {
            match self.insist(Store::start_over).await {
                Some(aside) => break aside,
                // Half done there is no file at all: nothing else can go on.
                None => sleep(CALM).await,
            }
        };
        warn!(aside = %aside.display(), "the record was damaged and is rebuilt from the event log");
        // Others may have found the same damage, and trying may have found it again.
        let _ = self.shared.damaged.notified().now_or_never();
        self.reader.restart(None);
        self.ahead = None;
        if let Some(tail) = self.insist(Store::tail).await {
            self.shared.tail.send_replace(tail);
        }
        self.shared.watching.wake_all();
    }

    /// Asks the store until it does it; `None` only where it never will.
    async fn insist<T: Send + 'static>(
        &self,
        question: impl Fn(&Store) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Option<T> {
        let mut pauses = Pauses::new();
        let mut last = String::new();
        loop {
            match self.shared.ask(question.clone()).await {
                Ok(answer) => {
                    self.shared.set_trouble(None);
                    return Some(answer);
                }
                Err(Failed::Store(StoreError::Corrupt(detail))) => {
                    error!(detail, "the record's file is damaged");
                    sleep(CALM).await;
                    self.shared.damaged.notify_one();
                    return None;
                }
                Err(Failed::Store(failed)) => self.wait(&mut pauses, &mut last, &failed).await,
                Err(Failed::Panicked | Failed::Closed) => return None,
            }
        }
    }

    /// A full disk, most likely: says so once, and waits.
    async fn wait(&self, pauses: &mut Pauses, last: &mut String, failed: &StoreError) {
        let why = in_full(failed);
        if why != *last {
            error!(reason = why, "cannot write the record, trying again");
            self.shared.set_trouble(Some(format!("cannot write the record: {why}")));
            *last = why;
        }
        sleep(pauses.next()).await;
    }

    fn pass_over(&mut self, offset: u64, why: &str) {
        self.unreadable += 1;
        warn!(offset, why, so_far = self.unreadable, "something in the event log is passed over");
    }
}

enum Done {
    Applied,
    /// The file was damaged: reading begins anew.
    StartedOver,
    Panicked,
}

/// What records say.
struct Read {
    batches: Vec<LogBatch>,
    /// Ids of barriers among them.
    barriers: Vec<String>,
    /// Where something cannot be read, and why.
    unreadable: Vec<(u64, String)>,
}

/// Reads what records say, on a thread that may block. Where that fails it is tried once more when they are applied.
async fn read_ahead(part: Part) -> Part {
    // Clones of bodies are cheap.
    let records = part.records.clone();
    Part { read: spawn_blocking(move || read(&records, true)).await.ok(), ..part }
}

fn read(records: &[Record], events: bool) -> Read {
    let mut read = Read { batches: Vec::with_capacity(records.len()), barriers: vec![], unreadable: vec![] };
    for record in records {
        let message = &record.message;
        let mut batch = LogBatch { offset: record.offset, message_id: record.mark(), events: Vec::new() };
        if message.kind.as_deref() == Some(BARRIER) {
            read.barriers.extend(message.message_id.clone());
        } else if events {
            match batch::decode(&message.body) {
                Ok((events, skipped)) => {
                    batch.events = events;
                    if skipped > 0 {
                        let why =
                            format!("{skipped} entries of the batch are no events that this version knows");
                        read.unreadable.push((record.offset, why));
                    }
                }
                Err(error) => read.unreadable.push((record.offset, error.to_string())),
            }
        }
        read.batches.push(batch);
    }
    read
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::job::wire::Message;

    fn record(offset: u64, kind: &str, body: &'static str) -> Record {
        let message = Message {
            message_id: Some(format!("m{offset}")),
            kind: Some(kind.to_owned()),
            body: Bytes::from_static(body.as_bytes()),
            ..Message::default()
        };
        Record { offset, message }
    }

    #[test]
    fn what_cannot_be_read_moves_the_place_on() {
        let records = [record(3, "hopline.events", "[{}]"), record(4, "x", "no"), record(5, BARRIER, "{}")];
        let read = read(&records, true);
        let places: Vec<_> = read.batches.iter().map(|batch| (batch.offset, batch.events.len())).collect();
        assert_eq!(places, [(3, 0), (4, 0), (5, 0)]);
        assert_eq!(read.barriers, ["m5"]);
        assert_eq!(read.unreadable.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [3, 4]);
    }
}
