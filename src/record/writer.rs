//! The event writer of a process: events in batches, confirmed, into the log.
//!
//! Self-clocking: what gathers while a batch awaits its confirm is the next batch. So an idle process adds no latency,
//! and a busy one writes a hundred events for the price of one. Whoever needs an event in the log before going on
//! waits for its confirm ([`EventWriter::write`]); an event that is handed over is written sooner or later, whatever
//! becomes of the wait. What nobody waits for may wait some milliseconds for others ([`Pace`]). Streams are not fsynced: the last seconds of confirmed batches are written once more after a
//! connection was lost, in case the broker lost them with its power. Readers know copies by [`Event::tag`].
//!
//! The same events, without args and output, go to `hopline.events` for subscribers, grouped by routing key: best
//! effort, nothing waits for it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::{debug, warn};

use crate::{
    amqp::{
        Names, PublishError,
        connection::{Link, LinkState},
        outlet::Outlet,
        publisher::{Publisher, Target},
    },
    event::{
        Event,
        batch::{self, BATCH_MAX, EVENTS_MAX},
    },
    job::{JobId, wire::Message},
};

/// Requests that wait for the batch before theirs.
const WAITING: usize = 20_000;
/// Bytes of events that may wait, in KiB.
const WAITING_KIB: usize = 128 << 10;
/// Batches of one round.
const BATCHES: usize = 64;
/// Batches confirmed within so long before the last one are written again after a connection was lost.
const UNSYNCED: Duration = Duration::from_secs(10);
/// Most bytes kept for that.
const UNSYNCED_BYTES: usize = 32 << 20;
/// Pause before a batch is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// From one word to subscribers to the next: what happened meanwhile goes with it.
const MOMENT: Duration = Duration::from_millis(20);
/// Events that are kept for them at most so long.
const TOLD_AT_ONCE: usize = 500;
/// How long events may wait for others to be written with that nobody needs in the log at once.
const SOON: Duration = Duration::from_millis(10);
/// So many are worth a message by themselves.
const ENOUGH: usize = 64;
/// After an event that waited for company and got none, none waits for so long.
const ALONE: Duration = Duration::from_millis(100);
/// No deadline: a batch is written or the process ends.
const FOREVER: Duration = Duration::from_secs(100 * 86_400);

/// An event on its way, as it is written.
pub(crate) struct Item {
    key: String,
    bytes: Vec<u8>,
    /// Without args and output, where it has any.
    public: Option<Vec<u8>>,
}

impl Item {
    pub(crate) fn new(event: &Event) -> Self {
        let bytes = batch::encode_one(event);
        Self { key: event.routing_key(), public: batch::public(event, &bytes), bytes }
    }
}

/// How soon events are written.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// With the next batch.
    AtOnce,
    /// Until then they may wait for others, unless there are so many, or none came lately.
    InCompany { by: Instant, enough: usize },
    /// Until then they are out of the way of what is urgent.
    Later { by: Instant },
}

struct Request {
    items: Vec<Item>,
    done: Option<oneshot::Sender<()>>,
    pace: Pace,
    _room: Option<OwnedSemaphorePermit>,
}

/// Writes events; cheap to clone.
#[derive(Clone)]
pub(crate) struct EventWriter {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
}

impl EventWriter {
    /// Starts to write through `link`, with `outlet` for subscribers.
    pub(crate) fn start(link: &Link, names: &Names, outlet: Outlet) -> Self {
        let (requests, queue) = mpsc::channel(WAITING);
        let task = Task {
            publisher: Publisher::start(link, "events", BATCHES * 2, BATCHES * 2),
            names: names.clone(),
            outlet,
            epoch: 0,
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            untold: Vec::new(),
            told: Instant::now(),
            alone: None,
        };
        link.runtime().spawn(task.run(queue));
        Self { requests, room: Arc::new(Semaphore::new(WAITING_KIB)) }
    }

    /// Writes events and waits until the log has them, or `deadline`.
    ///
    /// # Errors
    /// [`PublishError::Full`]: they were not handed over. [`PublishError::Timeout`]: they will still be written, unless
    /// the process ends.
    pub(crate) async fn write(&self, events: &[Event], deadline: Instant) -> Result<(), PublishError> {
        self.write_items(events.iter().map(Item::new).collect(), deadline).await
    }

    /// As [`EventWriter::write`].
    ///
    /// # Errors
    /// As [`EventWriter::write`].
    pub(crate) async fn write_items(&self, items: Vec<Item>, deadline: Instant) -> Result<(), PublishError> {
        self.write_at(Pace::AtOnce, items, deadline).await
    }

    /// As [`EventWriter::write`], but these may wait some milliseconds for others, until there are `enough`: a part of what
    /// a queue can have to write at a time, so that those who wait are never all of it.
    ///
    /// # Errors
    /// As [`EventWriter::write`].
    pub(crate) async fn write_in_company(
        &self,
        events: &[Event],
        enough: usize,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let (by, enough) = (Instant::now() + SOON, enough.min(ENOUGH));
        let items = events.iter().map(Item::new).collect();
        self.write_at(Pace::InCompany { by, enough }, items, deadline).await
    }

    async fn write_at(&self, pace: Pace, items: Vec<Item>, deadline: Instant) -> Result<(), PublishError> {
        let room = timeout_at(deadline, Arc::clone(&self.room).acquire_many_owned(kib(&items))).await;
        let Ok(Ok(room)) = room else { return Err(PublishError::Full) };
        let (done, written) = oneshot::channel();
        let request = Request { items, done: Some(done), pace, _room: Some(room) };
        match timeout_at(deadline, self.requests.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(PublishError::Unavailable("closed".to_owned())),
            Err(_) => return Err(PublishError::Full),
        }
        match timeout_at(deadline, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PublishError::Unavailable("closed".to_owned())),
            Err(_) => Err(PublishError::Timeout),
        }
    }

    /// Hands events over without waiting: they are written as soon as that is possible, or dropped where too many wait.
    pub(crate) fn post(&self, events: &[Event]) {
        let items = events.iter().map(Item::new).collect();
        if self.try_send(items, None, Pace::AtOnce).is_err() {
            debug!(events = events.len(), "too many events wait: dropped");
        }
    }

    /// Hands events over that are to be written soon, with others if any come: what is returned is told when the log has
    /// them.
    ///
    /// # Errors
    /// The events, if too many wait.
    pub(crate) fn write_soon(&self, items: Vec<Item>) -> Result<oneshot::Receiver<()>, Vec<Item>> {
        let (done, written) = oneshot::channel();
        let pace = Pace::Later { by: Instant::now() + SOON };
        self.try_send(items, Some(done), pace).map(|()| written)
    }

    fn try_send(
        &self,
        items: Vec<Item>,
        done: Option<oneshot::Sender<()>>,
        pace: Pace,
    ) -> Result<(), Vec<Item>> {
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(kib(&items)) else { return Err(items) };
        let request = Request { items, done, pace, _room: Some(room) };
        self.requests.try_send(request).map_err(|refused| refused.into_inner().items)
    }

    /// Waits until everything handed over so far is written, or `deadline`.
    pub(crate) async fn flush(&self, deadline: Instant) {
        if self.write(&[], deadline).await.is_err() {
            warn!("events that the broker has not confirmed are left behind");
        }
    }
}

/// Until when these may wait for others to come; `None`: there are none, or one of them is not to wait. `alone`: none
/// came lately.
fn patience(requests: &[Request], alone: bool) -> Option<Instant> {
    let count = requests.len();
    let all = requests.iter().try_fold(None, |first: Option<Instant>, request| {
        let by = match request.pace {
            Pace::Later { by } if count < ENOUGH => by,
            Pace::InCompany { by, enough } if count < enough && !alone => by,
            _ => return None,
        };
        Some(Some(first.map_or(by, |first| first.min(by))))
    });
    all.flatten()
}

/// What these events take of the room; at least one, at most all of it.
fn kib(items: &[Item]) -> u32 {
    let bytes: usize = items.iter().map(|item| item.bytes.len()).sum();
    u32::try_from(bytes.div_ceil(1024).clamp(1, WAITING_KIB)).unwrap_or(u32::MAX)
}

struct Task {
    publisher: Publisher,
    names: Names,
    outlet: Outlet,
    /// The connection that batches were confirmed on last.
    epoch: u64,
    unsynced: VecDeque<(Instant, Message)>,
    unsynced_bytes: usize,
    /// What subscribers have not been told yet, and when they were told last.
    untold: Vec<Item>,
    told: Instant,
    /// When an event waited for company in vain.
    alone: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut requests = Vec::new();
        let mut state = self.publisher.link().watch();
        loop {
            let due = self.patience(&requests);
            tokio::select! {
                count = queue.recv_many(&mut requests, WAITING) => match (count, requests.is_empty()) {
                    (0, true) => {
                        self.tell_subscribers();
                        return;
                    }
                    // Nobody else will come.
                    (0, false) => {}
                    _ if self.patience(&requests).is_some() => continue,
                    _ => {}
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.alone = (requests.len() == 1).then(Instant::now);
                }
                () = sleep_until(self.told + MOMENT), if !self.untold.is_empty() => {
                    self.tell_subscribers();
                    continue;
                }
                changed = state.changed() => {
                    if changed.is_err() || matches!(*state.borrow_and_update(), LinkState::Closed) {
                        return;
                    }
                    self.repeat_unsynced().await;
                    continue;
                }
            }
            let bodies = gather(&requests);
            for round in bodies.chunks(BATCHES) {
                if !self.publish_round(round).await {
                    return;
                }
            }
            // Whoever has written nothing has waited for what was written before.
            let flushes = requests.iter().any(|request| request.items.is_empty());
            self.untold.extend(requests.iter_mut().flat_map(|request| request.items.drain(..)));
            if flushes || self.untold.len() >= TOLD_AT_ONCE || self.told.elapsed() >= MOMENT {
                self.tell_subscribers();
            }
            for done in requests.drain(..).filter_map(|request| request.done) {
                // Whoever waited may have given up.
                let _ = done.send(());
            }
        }
    }

    fn patience(&self, requests: &[Request]) -> Option<Instant> {
        patience(requests, self.alone.is_some_and(|since| since.elapsed() < ALONE))
    }

    /// Publishes batches until each is confirmed; false when the connection is closed for good.
    async fn publish_round(&mut self, bodies: &[Bytes]) -> bool {
        let mut pending: Vec<Message> = bodies.iter().cloned().map(message).collect();
        let mut told = false;
        while !pending.is_empty() {
            if matches!(*self.publisher.link().watch().borrow(), LinkState::Closed) {
                return false;
            }
            self.repeat_unsynced().await;
            let sent = pending.drain(..).map(|message| publish(&self.publisher, &self.names, message));
            for (message, result) in join_all(sent).await {
                match result {
                    Ok(()) => self.keep(message),
                    Err(error) => {
                        if !told {
                            warn!(%error, "events are not confirmed, trying again");
                            told = true;
                        }
                        if error == PublishError::Unroutable {
                            // The log is gone: someone deleted it. The next try finds a new one.
                            let _ = self.publisher.link().repair().await;
                        }
                        pending.push(again(message));
                    }
                }
            }
            if !pending.is_empty() {
                sleep(AGAIN).await;
            }
        }
        true
    }

    /// Writes the last seconds once more when there is another connection than the one they were confirmed on.
    async fn repeat_unsynced(&mut self) {
        let Ok(up) = self.publisher.link().up() else { return };
        if up.epoch == self.epoch {
            return;
        }
        let first = self.epoch == 0;
        self.epoch = up.epoch;
        if first || self.unsynced.is_empty() {
            return;
        }
        let copies = self.unsynced.iter().map(|(_, message)| again(message.clone()));
        let sent: Vec<_> = copies.map(|message| publish(&self.publisher, &self.names, message)).collect();
        let results = join_all(sent).await;
        if results.iter().any(|(_, result)| result.is_err()) {
            // Lost once more on the way: the next connection has them again.
            self.epoch = u64::MAX;
        }
    }

    /// Remembers a confirmed batch for a while.
    fn keep(&mut self, message: Message) {
        let now = Instant::now();
        self.unsynced_bytes += message.body.len();
        self.unsynced.push_back((now, message));
        while let Some((at, oldest)) = self.unsynced.front() {
            if now.duration_since(*at) < UNSYNCED && self.unsynced_bytes <= UNSYNCED_BYTES {
                break;
            }
            self.unsynced_bytes -= oldest.body.len();
            self.unsynced.pop_front();
        }
    }

    fn tell_subscribers(&mut self) {
        self.told = Instant::now();
        let untold = std::mem::take(&mut self.untold);
        let mut groups: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
        for item in &untold {
            groups.entry(&item.key).or_default().push(item.public.as_deref().unwrap_or(&item.bytes));
        }
        for (key, events) in groups {
            for body in split(events.into_iter()) {
                self.outlet.send(self.names.events(), key.to_owned(), message(body));
            }
        }
    }
}

async fn publish(
    publisher: &Publisher,
    names: &Names,
    message: Message,
) -> (Message, Result<(), PublishError>) {
    let target = Target { exchange: names.record(), key: String::new(), mandatory: true };
    let deadline = Instant::now() + FOREVER;
    let result = publisher.publish_patiently(target, message.clone(), deadline).await;
    (message, result)
}

fn gather(requests: &[Request]) -> Vec<Bytes> {
    split(requests.iter().flat_map(|request| &request.items).map(|item| item.bytes.as_slice()))
}

/// The bodies of batches of these events, each within [`BATCH_MAX`] and [`EVENTS_MAX`] or a single event.
fn split<'a>(events: impl Iterator<Item = &'a [u8]>) -> Vec<Bytes> {
    let (mut bodies, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for event in events {
        if !batch.is_empty() && (bytes + event.len() > BATCH_MAX || batch.len() >= EVENTS_MAX) {
            bodies.push(batch::join(std::mem::take(&mut batch)).into());
            bytes = 0;
        }
        bytes += event.len() + 1;
        batch.push(event);
    }
    if !batch.is_empty() {
        bodies.push(batch::join(batch).into());
    }
    bodies
}

fn message(body: Bytes) -> Message {
    Message {
        message_id: Some(JobId::new().to_string()),
        kind: Some(batch::MESSAGE_TYPE.to_owned()),
        content_type: Some(batch::CONTENT_TYPE.to_owned()),
        body,
        ..Message::default()
    }
}

/// A batch to be written once more. Under an id of its own: a reader tells by the id whether a record is the one that was
/// read at its place, and in a log that lost its end the copy may come to lie at the place of the first.
fn again(message: Message) -> Message {
    Message { message_id: Some(JobId::new().to_string()), ..message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_an_id_of_its_own() {
        let first = message(Bytes::from_static(b"[]"));
        let copy = again(first.clone());
        assert_ne!(first.message_id, copy.message_id);
        assert_eq!(Message { message_id: first.message_id.clone(), ..copy }, first);
    }

    #[tokio::test]
    async fn events_wait_for_others_only_if_all_of_them_may() {
        let now = Instant::now();
        let after = |by: u64| now + Duration::from_millis(by);
        let later = |by| Pace::Later { by: after(by) };
        let company = |by, enough| Pace::InCompany { by: after(by), enough };
        for (paces, alone, expected) in [
            (vec![], false, None),
            (vec![Pace::AtOnce], false, None),
            (vec![later(9), later(3), later(5)], false, Some(3)),
            (vec![later(9), later(3)], true, Some(3)),
            (vec![later(9), Pace::AtOnce], false, None),
            (vec![later(9); ENOUGH], false, None),
            (vec![company(9, 2)], false, Some(9)),
            (vec![company(9, 2)], true, None),
            (vec![company(9, 2), later(5)], false, None),
            (vec![company(9, 3), later(5)], false, Some(5)),
            (vec![company(9, 1)], false, None),
            (vec![company(9, 0)], false, None),
        ] {
            let request = |pace| Request { items: Vec::new(), done: None, pace, _room: None };
            let requests: Vec<Request> = paces.iter().copied().map(request).collect();
            assert_eq!(patience(&requests, alone), expected.map(after), "{paces:?}, alone: {alone}");
        }
    }

    #[test]
    fn batches_stay_within_their_bounds() {
        let event = vec![b'1'; BATCH_MAX / 3];
        let bodies = split(std::iter::repeat_n(event.as_slice(), 7));
        assert_eq!(bodies.len(), 4);
        let long = vec![b'1'; BATCH_MAX * 2];
        assert_eq!(split([long.as_slice(), b"2", long.as_slice()].into_iter()).len(), 3);
        assert_eq!(split(std::iter::repeat_n(&b"1"[..], EVENTS_MAX + 1)).len(), 2);
        assert!(split(std::iter::empty()).is_empty());
    }
}
