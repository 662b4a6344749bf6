//! Publishing with confirms: one channel, owned by one task.
//!
//! Why one task: several tasks publishing with confirms on one lapin channel get wrong answers (the delivery tag
//! is taken and the frames are queued under two different locks; measured: one false ack in a hundred where the
//! broker refuses). A false ack is a lost job reported as accepted.
//!
//! The task polls all publishes in flight as one set, so those that arrive together are written together; it
//! keeps at most `window` of them unconfirmed. A publish whose caller has given up stays in the set until the
//! broker answers: it may still happen. Every publish is `mandatory` unless it is a reply; lapin hangs a returned
//! message on whichever confirm comes next, so returns are matched by message id and routing key.

use std::{collections::HashMap, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{Channel, Confirmation, message::BasicReturnMessage, options::BasicPublishOptions};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use super::{
    admin::is_not_found,
    connection::{Link, LinkState, Up},
    message::{properties, short},
    pause::Pauses,
    together::{Mark, Part, Together},
    topology::TopologyError,
};
use crate::{
    job::wire::Message,
    metrics::{ChannelMetrics, Published},
};

/// Most bytes of bodies that await their confirm on one channel.
const WINDOW_BYTES: usize = 64 << 20;
/// A confirm outstanding for this long on a connection that is not blocked means that the broker is stuck.
const STALLED: Duration = Duration::from_secs(60);
/// How long the answers that are already on their way are waited for when a channel ends.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Why a publish was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// No queue is bound for the routing key. Not stored.
    #[error("no queue takes this message")]
    Unroutable,
    /// The broker refused it: a queue's length limit, or a quorum queue without a leader. Not stored.
    #[error("the broker refused the message: its queue is full, or does not answer")]
    Refused,
    /// The login may not publish it there; the broker's words. Not stored.
    #[error("the broker does not let this message through: {0}")]
    Forbidden(String),
    /// The broker takes no such message, as one over its `max_message_size`; its words. Not stored.
    #[error("the broker takes no such message: {0}")]
    Unfit(String),
    /// There is no connection, or what it was published to is missing. Not stored.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// A memory or disk alarm of the broker stops all publishing. Not stored.
    #[error("the broker is blocked by a memory or disk alarm")]
    Blocked,
    /// Too many publishes wait already. Not stored.
    #[error("too many messages wait to be published")]
    Full,
    /// No confirm in time. It may still be stored.
    #[error("the broker did not confirm in time; the message may still arrive")]
    Timeout,
    /// The connection or channel broke before the confirm. It may be stored.
    #[error("the connection was lost before the confirm; the message may have arrived: {0}")]
    Lost(String),
}

/// Where a message goes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) exchange: String,
    pub(crate) key: String,
    /// Whether a message that no queue takes is an error.
    pub(crate) mandatory: bool,
}

struct Request {
    target: Target,
    message: Message,
    deadline: Instant,
    done: Done,
    /// When it was handed over.
    since: Instant,
}

/// Who wants to know what became of a publish.
#[derive(Debug)]
pub(crate) enum Done {
    /// A caller that waits.
    Caller(oneshot::Sender<Result<(), PublishError>>),
    /// A caller that waits for many.
    Part(Part),
    /// A caller that hears of many.
    Mark(Mark),
    /// Nobody: it is only counted as being on its way.
    Counted(TaskTrackerToken),
}

impl Done {
    /// Whether the caller has given up.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Caller(caller) => caller.is_closed(),
            Self::Part(part) => part.is_abandoned(),
            Self::Mark(_) | Self::Counted(_) => false,
        }
    }

    fn tell(self, result: Result<(), PublishError>) {
        match self {
            // The caller may have given up.
            Self::Caller(caller) => drop(caller.send(result)),
            Self::Part(part) => part.tell(result),
            Self::Mark(mark) => mark.tell(result),
            Self::Counted(token) => {
                drop(token);
                if let Err(error) = result {
                    debug!(%error, "not confirmed");
                }
            }
        }
    }
}

/// A handle on the publishing task; cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher {
    requests: mpsc::Sender<Request>,
    link: Link,
}

impl Publisher {
    /// Starts the owner of one channel on `link`: at most `window` unconfirmed, at most `backlog` waiting. `traffic` says
    /// in a word what it carries, for metrics.
    pub(crate) fn start(link: &Link, traffic: &'static str, window: usize, backlog: usize) -> Self {
        let (requests, queue) = mpsc::channel(backlog);
        let metrics = link.metrics().channel(traffic);
        link.runtime().spawn(own(link.clone(), queue, window, metrics));
        Self { requests, link: link.clone() }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Publishes and awaits the confirm. Fails at once where there is no connection, no room, or an alarm.
    pub(crate) async fn publish(
        &self,
        target: Target,
        message: Message,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let (done, answer) = oneshot::channel();
        self.hand_over(target, message, deadline, Done::Caller(done))?;
        await_answer(answer, deadline).await
    }

    /// As [`Publisher::publish`], but waits for a connection and for room until the deadline.
    pub(crate) async fn publish_patiently(
        &self,
        target: Target,
        message: Message,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        self.publish_within(target, message, deadline, deadline).await
    }

    /// As [`Publisher::publish`], but waits for a connection and for room until `room`.
    pub(crate) async fn publish_within(
        &self,
        target: Target,
        message: Message,
        room: Instant,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let place = self.place(room).await?;
        let (done, answer) = oneshot::channel();
        let (done, since) = (Done::Caller(done), Instant::now());
        place.send(Request { target, message, deadline, done, since });
        await_answer(answer, deadline).await
    }

    /// Hands messages over in order, waiting for a connection and for room until `room`; what becomes of them is told
    /// together.
    pub(crate) async fn hand_over_all(
        &self,
        messages: impl ExactSizeIterator<Item = (Target, Message)>,
        room: Instant,
        deadline: Instant,
    ) -> Together {
        let (together, parts) = Together::of(messages.len(), deadline);
        for ((target, message), part) in messages.zip(parts) {
            match self.place(room).await {
                Ok(place) => {
                    let (done, since) = (Done::Part(part), Instant::now());
                    place.send(Request { target, message, deadline, done, since });
                }
                Err(error) => part.tell(Err(error)),
            }
        }
        together
    }

    /// A place among what waits to be published.
    async fn place(&self, room: Instant) -> Result<mpsc::Permit<'_, Request>, PublishError> {
        if self.link.up().is_err() {
            let up = self.link.wait_up(room).await;
            up.map_err(|down| PublishError::Unavailable(down.0))?;
        }
        match self.requests.try_reserve() {
            Ok(place) => return Ok(place),
            Err(mpsc::error::TrySendError::Closed(())) => {
                return Err(PublishError::Unavailable("closed".to_owned()));
            }
            Err(mpsc::error::TrySendError::Full(())) => {}
        }
        match timeout_at(room, self.requests.reserve()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(PublishError::Unavailable("closed".to_owned())),
            Err(_) => Err(PublishError::Full),
        }
    }

    /// Hands a message over, without waiting for what becomes of it.
    pub(crate) fn hand_over(
        &self,
        target: Target,
        message: Message,
        deadline: Instant,
        done: Done,
    ) -> Result<(), PublishError> {
        let up = self.link.up().map_err(|down| PublishError::Unavailable(down.0))?;
        if up.is_blocked() {
            return Err(PublishError::Blocked);
        }
        let request = Request { target, message, deadline, done, since: Instant::now() };
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Full,
            mpsc::error::TrySendError::Closed(_) => PublishError::Unavailable("closed".to_owned()),
        })
    }
}

/// The answer to a message that was handed over.
async fn await_answer(
    answer: oneshot::Receiver<Result<(), PublishError>>,
    deadline: Instant,
) -> Result<(), PublishError> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(PublishError::Lost("the publisher ended".to_owned())),
        Err(_) => Err(PublishError::Timeout),
    }
}

/// Owns channel after channel until the link is closed.
async fn own(link: Link, mut requests: mpsc::Receiver<Request>, window: usize, metrics: ChannelMetrics) {
    let mut pauses = Pauses::new();
    loop {
        let Some(up) = refuse_until_up(&link, &mut requests).await else { return };
        let opened = Instant::now();
        let why = match up.confirming_channel().await {
            Ok(channel) => {
                Lane::new(channel, up.clone(), window, metrics.clone()).run(&link, &mut requests).await
            }
            Err(down) => down.0,
        };
        if requests.is_closed() && requests.is_empty() {
            return;
        }
        debug!(reason = why, "publishing channel ended");
        if link.up().is_ok_and(|now| now.epoch == up.epoch) {
            // The connection lives, so it was the channel: most likely something it publishes to is gone.
            if let Err(down) = link.repair().await {
                warn!(reason = down.0, "cannot declare the topology again");
            }
            if opened.elapsed() > STALLED {
                pauses.reset();
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }
}

/// Answers requests with a refusal until there is a connection; `None` when the link or all handles are closed.
async fn refuse_until_up(link: &Link, requests: &mut mpsc::Receiver<Request>) -> Option<Up> {
    let mut state = link.watch();
    loop {
        if matches!(*state.borrow_and_update(), LinkState::Closed) {
            requests.close();
        }
        match link.up() {
            Ok(up) => return Some(up),
            Err(down) => {
                tokio::select! {
                    // In this order: who waited for the connection and then asks must not be told that there is none.
                    biased;
                    changed = state.changed() => changed.ok()?,
                    request = requests.recv() => {
                        request?.done.tell(Err(PublishError::Unavailable(down.0)));
                    }
                    // A connection that died unnoticed is found by the supervisor, which changes the state.
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        }
    }
}

/// What becomes of one publish: where it is in the table, and what the broker said.
type InFlight = BoxFuture<'static, (usize, Result<Confirmation, lapin::Error>)>;

struct Slot {
    done: Done,
    target: Target,
    message_id: String,
    bytes: usize,
    since: Instant,
    handed_over: Instant,
}

/// One channel's life.
struct Lane {
    channel: Channel,
    up: Up,
    window: usize,
    in_flight: FuturesUnordered<InFlight>,
    slots: HashMap<usize, Slot>,
    next_slot: usize,
    bytes: usize,
    /// When the connection was last seen blocked: time during an alarm says nothing about the broker.
    blocked: Option<Instant>,
    /// Returned messages whose own confirm has not been seen: how many per message id and routing key.
    returned: HashMap<(String, String), u32>,
    /// A publish has failed, so the channel is closed.
    failed: bool,
    metrics: ChannelMetrics,
}

impl Lane {
    fn new(channel: Channel, up: Up, window: usize, metrics: ChannelMetrics) -> Self {
        Self {
            channel,
            up,
            window,
            in_flight: FuturesUnordered::new(),
            slots: HashMap::new(),
            next_slot: 0,
            bytes: 0,
            blocked: None,
            returned: HashMap::new(),
            failed: false,
            metrics,
        }
    }

    /// Publishes until the channel fails or there is nobody left to publish for; says why it ended.
    async fn run(mut self, link: &Link, requests: &mut mpsc::Receiver<Request>) -> String {
        let mut state = link.watch();
        let mut look = interval(STALLED / 12);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let why = loop {
            while self.has_room() {
                match requests.try_recv() {
                    Ok(request) => self.begin(request),
                    Err(_) => break,
                }
            }
            tokio::select! {
                Some(first) = self.in_flight.next() => {
                    if let Err(why) = self.settle(first) {
                        break why;
                    }
                }
                request = requests.recv(), if self.has_room() => match request {
                    Some(request) => self.begin(request),
                    None if self.in_flight.is_empty() => break "closed".to_owned(),
                    // No more will come: let those in flight end.
                    None => {
                        let Some(next) = self.in_flight.next().await else { break "closed".to_owned() };
                        if let Err(why) = self.settle(next) {
                            break why;
                        }
                    }
                },
                _ = state.changed() => {
                    if !link.up().is_ok_and(|now| now.epoch == self.up.epoch) {
                        break link.describe();
                    }
                }
                _ = look.tick() => {
                    if self.is_stalled() {
                        link.kick(self.up.epoch, "the broker stopped answering");
                        break "confirms stopped coming".to_owned();
                    }
                }
            }
        };
        self.end(&why).await;
        why
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < self.window && self.bytes < WINDOW_BYTES
    }

    fn is_stalled(&mut self) -> bool {
        if self.up.is_blocked() {
            self.blocked = Some(Instant::now());
        }
        let since = |slot: &Slot| self.blocked.map_or(slot.since, |blocked| slot.since.max(blocked));
        self.slots.values().any(|slot| since(slot).elapsed() > STALLED)
    }

    /// Starts a publish; it is written when the set is polled next.
    fn begin(&mut self, request: Request) {
        let Request { target, message, deadline, done, since: handed_over } = request;
        if done.is_abandoned() || deadline <= Instant::now() {
            // The caller has given up and was told that it may happen; it need not.
            return;
        }
        if self.up.is_blocked() {
            done.tell(Err(PublishError::Blocked));
            return;
        }
        let index = self.next_slot;
        self.next_slot += 1;
        let (channel, bytes) = (self.channel.clone(), message.body.len());
        let (exchange, key) = (short(&target.exchange), short(&target.key));
        let options = BasicPublishOptions { mandatory: target.mandatory, immediate: false };
        let message_id = message.message_id.clone().unwrap_or_default();
        let publish = async move {
            // The delivery tag is taken and the frames are queued in the first poll, without a pause between.
            let written =
                channel.basic_publish(exchange, key, options, &message.body, properties(&message)).await;
            match written {
                Ok(confirm) => (index, confirm.await),
                Err(error) => (index, Err(error)),
            }
        };
        self.bytes += bytes;
        self.in_flight.push(publish.boxed());
        let since = Instant::now();
        self.slots.insert(index, Slot { done, target, message_id, bytes, since, handed_over });
    }

    /// Takes all answers that are there and passes them on; an error ends the channel.
    fn settle(&mut self, first: (usize, Result<Confirmation, lapin::Error>)) -> Result<(), String> {
        let mut answers = vec![first];
        self.take_ready(&mut answers);
        let mut failure = None;
        while !answers.is_empty() {
            // A return may hang on the confirm of another message in the same broker frame. Waiting for
            // confirms, polled once and dropped, takes the lock that lapin holds while it works such a frame
            // off: afterwards every confirm of that frame is there.
            let _ = self.channel.wait_for_confirms().now_or_never();
            let mut later = Vec::new();
            self.take_ready(&mut later);
            for (_, answer) in answers.iter_mut().chain(&mut later) {
                self.note_return(answer);
            }
            for (index, answer) in answers {
                if let Err(error) = &answer {
                    failure.get_or_insert_with(|| error.to_string());
                }
                self.answer(index, answer);
            }
            answers = later;
        }
        failure.map_or(Ok(()), Err)
    }

    fn take_ready(&mut self, into: &mut Vec<(usize, Result<Confirmation, lapin::Error>)>) {
        // What wakes up later is found by the next poll of the set in `run`.
        while let Some(Some(answer)) = self.in_flight.next().now_or_never() {
            into.push(answer);
        }
    }

    fn note_return(&mut self, answer: &mut Result<Confirmation, lapin::Error>) {
        let message: &mut Option<BasicReturnMessage> = match answer {
            Ok(Confirmation::Ack(message) | Confirmation::Nack(message)) => message,
            Ok(Confirmation::NotRequested) | Err(_) => return,
        };
        if let Some(message) = message.take() {
            let id = message.delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned());
            let key = (id.unwrap_or_default(), message.delivery.routing_key.as_str().to_owned());
            *self.returned.entry(key).or_default() += 1;
        }
    }

    fn answer(&mut self, index: usize, answer: Result<Confirmation, lapin::Error>) {
        let Some(slot) = self.slots.remove(&index) else { return };
        self.bytes -= slot.bytes;
        let key = (slot.message_id, slot.target.key);
        let was_returned = match self.returned.get_mut(&key) {
            Some(1) => self.returned.remove(&key).is_some(),
            Some(count) => {
                *count -= 1;
                true
            }
            None => false,
        };
        let result = match answer {
            Ok(_) if was_returned => Err(PublishError::Unroutable),
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(Confirmation::Nack(_)) => Err(PublishError::Refused),
            // Confirms are turned on before the first publish.
            Ok(Confirmation::NotRequested) => {
                Err(PublishError::Lost("the channel does not confirm".to_owned()))
            }
            Err(error) => {
                let alone = !std::mem::replace(&mut self.failed, true) && self.slots.is_empty();
                Err(failure(&error, &slot.target.exchange, alone))
            }
        };
        self.metrics.answered(published(&result), slot.handed_over.elapsed());
        slot.done.tell(result);
    }

    /// Gives the last answers a moment to arrive; the fate of the rest is unknown.
    async fn end(mut self, why: &str) {
        let last = async {
            while let Some(answer) = self.in_flight.next().await {
                // Each ends with an error of its own; the first one is known.
                let _ = self.settle(answer);
            }
        };
        drop(timeout(LAST_ANSWERS, last).await);
        for slot in self.slots.into_values() {
            self.metrics.answered(Published::Lost, slot.handed_over.elapsed());
            slot.done.tell(Err(PublishError::Lost(why.to_owned())));
        }
    }
}

/// How metrics call the result of a publish that was written.
fn published(result: &Result<(), PublishError>) -> Published {
    match result {
        Ok(()) => Published::Confirmed,
        Err(PublishError::Unroutable) => Published::Unroutable,
        // Unavailable: its exchange is missing.
        Err(
            PublishError::Refused
            | PublishError::Forbidden(_)
            | PublishError::Unfit(_)
            | PublishError::Unavailable(_),
        ) => Published::Refused,
        Err(_) => Published::Lost,
    }
}

/// What a failed channel says about a message that was published to `exchange`; `alone`: no other publish was under way
/// on it. All that are get the error of the one that the broker closed the channel over, also those before it, which may
/// be stored.
fn failure(error: &lapin::Error, exchange: &str, alone: bool) -> PublishError {
    if alone && is_not_found(error) && error.to_string().contains(&format!("'{exchange}'")) {
        return PublishError::Unavailable(format!(
            "exchange {exchange} is missing; it is being declared again"
        ));
    }
    // Looked at before a message goes anywhere.
    match TopologyError::from_lapin(error) {
        TopologyError::Forbidden { detail } if alone => PublishError::Forbidden(detail),
        TopologyError::Differs { detail } if alone => PublishError::Unfit(detail),
        _ => PublishError::Lost(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPSoftError};

    use super::*;

    fn soft(error: AMQPSoftError, text: &str) -> lapin::Error {
        lapin::Error::from(lapin::ErrorKind::ProtocolError(AMQPError::new(error.into(), text.into())))
    }

    #[test]
    fn what_the_broker_closed_the_channel_over_is_certain_only_for_who_was_alone() {
        let big = "PRECONDITION_FAILED - message size 20000 is larger than configured max size 10000";
        let big = soft(AMQPSoftError::PRECONDITIONFAILED, big);
        assert!(matches!(failure(&big, "h.jobs", true), PublishError::Unfit(why) if why.contains("20000")));
        assert!(matches!(failure(&big, "h.jobs", false), PublishError::Lost(_)));
        let forbidden =
            "ACCESS_REFUSED - access to topic 'a.normal.b' in exchange 'h.jobs' refused for user 'u'";
        let forbidden = soft(AMQPSoftError::ACCESSREFUSED, forbidden);
        let told = failure(&forbidden, "h.jobs", true);
        assert!(matches!(told, PublishError::Forbidden(why) if why.ends_with("'h.jobs' refused")));
        assert!(matches!(failure(&forbidden, "h.jobs", false), PublishError::Lost(_)));
    }

    #[test]
    fn a_missing_exchange_is_certain_only_for_who_was_alone() {
        let missing = soft(AMQPSoftError::NOTFOUND, "NOT_FOUND - no exchange 'h.jobs' in vhost '/'");
        assert!(matches!(failure(&missing, "h.jobs", true), PublishError::Unavailable(_)));
        // Another one may have found it missing, after this one was stored.
        assert!(matches!(failure(&missing, "h.jobs", false), PublishError::Lost(_)));
        assert!(matches!(failure(&missing, "h.record", true), PublishError::Lost(_)));
    }
}
