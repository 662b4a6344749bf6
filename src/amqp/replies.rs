//! Replies to callers of this process: one result queue per connection, and the callers that wait on it. Answers to
//! other questions come there too, and are handed out as they are by their correlation id.
//!
//! The queue is exclusive: it dies with its connection, and with it the replies on their way. A caller then
//! waits until its deadline; the job itself is not touched.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use lapin::{
    Channel,
    options::{QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    connection::{Link, LinkDown, in_time},
    consumer::{Consuming, Ending, Source, consume},
    message::short,
    names::Names,
};
use crate::job::{JobId, Reply, wire::Message};

/// Most answers expected at the same time. Who asks has few questions on their way.
const ANSWERS: usize = 1000;
/// Replies taken ahead of being handed to their callers.
const PREFETCH: u16 = 500;

/// Why nobody can wait for a reply now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WaitError {
    /// Too many callers wait already (`http.max_waiters`).
    #[error("too many callers wait already")]
    Full,
    /// There is no result queue: no connection.
    #[error("replies cannot be received: {0}")]
    Unavailable(String),
}

/// The result queue of this process and its waiters; cheap to clone.
#[derive(Clone)]
pub(crate) struct Replies(Arc<Inner>);

/// Who waits for which job; several may wait for one, told apart by a number.
type Waiters = HashMap<JobId, Vec<(u64, oneshot::Sender<Reply>)>>;

/// Who waits for which answer, by correlation id.
type Answers = HashMap<String, oneshot::Sender<Message>>;

struct Inner {
    waiters: Mutex<Waiters>,
    answers: Mutex<Answers>,
    limit: usize,
    address: watch::Sender<Option<String>>,
    link: Link,
    stop: CancellationToken,
}

impl Replies {
    /// Starts to receive replies for at most `limit` waiters at a time.
    pub(crate) fn start(link: &Link, names: &Names, instance: &str, limit: usize) -> Self {
        let inner = Arc::new(Inner {
            waiters: Mutex::default(),
            answers: Mutex::default(),
            limit,
            address: watch::Sender::new(None),
            link: link.clone(),
            stop: CancellationToken::new(),
        });
        let (deliveries, mut incoming) = mpsc::channel::<super::consumer::Delivery>(PREFETCH.into());
        let consuming = Consuming {
            link: link.clone(),
            prefetch: PREFETCH,
            long: None,
            deliveries,
            stop: inner.stop.clone(),
            consuming: Arc::new(AtomicBool::new(false)),
            acknowledging: TaskTracker::new(),
        };
        let queue = ResultQueue {
            names: names.clone(),
            instance: instance.to_owned(),
            queue: String::new(),
            inner: Arc::clone(&inner),
        };
        link.runtime().spawn(consume(consuming, queue));
        let receiver = Self(inner);
        let handing = receiver.clone();
        link.runtime().spawn(async move {
            while let Some(delivery) = incoming.recv().await {
                handing.hand_out(delivery.incoming.message);
                delivery.receipt.ack();
            }
        });
        receiver
    }

    /// A place for one caller of job `id`, to be given before the job is published.
    ///
    /// Waits until `deadline` for the result queue, which a process that has just started may not have yet.
    pub(crate) async fn expect(&self, id: JobId, deadline: Instant) -> Result<Waiter, WaitError> {
        let reply_to = self.address(deadline).await?;
        let (sender, receiver) = oneshot::channel();
        let mut waiters = self.waiters();
        // Counted by jobs: several callers of one job are one.
        if waiters.len() >= self.0.limit && !waiters.contains_key(&id) {
            return Err(WaitError::Full);
        }
        let place = waiters.entry(id).or_default();
        let number = place.last().map_or(0, |(number, _)| number + 1);
        place.push((number, sender));
        drop(waiters);
        Ok(Waiter { id, number, reply_to, receiver, replies: self.clone() })
    }

    /// A place for the answer to a question that carries `correlation_id`, to be given before the question is
    /// published. Any message with that id is the answer, unless it is a job's reply.
    pub(crate) async fn expect_answer(
        &self,
        correlation_id: &str,
        deadline: Instant,
    ) -> Result<Answer, WaitError> {
        let reply_to = self.address(deadline).await?;
        let (sender, receiver) = oneshot::channel();
        let mut answers = self.answers();
        if answers.len() >= ANSWERS {
            return Err(WaitError::Full);
        }
        answers.insert(correlation_id.to_owned(), sender);
        drop(answers);
        Ok(Answer { correlation_id: correlation_id.to_owned(), reply_to, receiver, replies: self.clone() })
    }

    /// The result queue's name, as soon as there is one.
    async fn address(&self, deadline: Instant) -> Result<String, WaitError> {
        let mut address = self.0.address.subscribe();
        let there = timeout_at(deadline, address.wait_for(Option::is_some)).await;
        let there = there.ok().and_then(Result::ok).and_then(|address| address.clone());
        there.ok_or_else(|| WaitError::Unavailable(self.describe()))
    }

    /// Whether replies can be received now.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.address.borrow().is_some()
    }

    /// The state in a word or a sentence.
    pub(crate) fn describe(&self) -> String {
        if self.0.link.is_ready() && !self.is_ready() {
            return "there is no result queue yet".to_owned();
        }
        self.0.link.describe()
    }

    pub(crate) fn close(&self) {
        self.0.stop.cancel();
    }

    fn hand_out(&self, message: Message) {
        match Reply::decode(&message) {
            Ok(reply) => self.complete(&reply),
            Err(error) => {
                let asked = message.correlation_id.as_ref().and_then(|id| self.answers().remove(id));
                match asked {
                    // Who asked may be gone.
                    Some(asked) => drop(asked.send(message)),
                    None => debug!(%error, "neither a reply nor an answer that is waited for"),
                }
            }
        }
    }

    fn complete(&self, reply: &Reply) {
        let waiting = self.waiters().remove(&reply.job_id);
        for (_, waiter) in waiting.into_iter().flatten() {
            // The caller may be gone.
            let _ = waiter.send(reply.clone());
        }
    }

    fn forget(&self, id: JobId, number: u64) {
        let mut waiters = self.waiters();
        if let Some(place) = waiters.get_mut(&id) {
            place.retain(|(other, _)| *other != number);
            if place.is_empty() {
                waiters.remove(&id);
            }
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        // As with the waiters.
        self.0.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        // The map is whole after every statement, so a panic elsewhere leaves nothing half done.
        self.0.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One caller that waits for how a job ends. Dropped, it frees its place.
pub struct Waiter {
    id: JobId,
    number: u64,
    reply_to: String,
    receiver: oneshot::Receiver<Reply>,
    replies: Replies,
}

impl Waiter {
    /// The address that the job must carry as its `reply_to`.
    #[must_use]
    pub fn reply_to(&self) -> &str {
        &self.reply_to
    }

    /// The reply; `None` when it has not come by the deadline.
    pub async fn reply(mut self, deadline: Instant) -> Option<Reply> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        timeout(remaining, &mut self.receiver).await.ok()?.ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.replies.forget(self.id, self.number);
    }
}

/// The answer to a question. Dropped, it frees its place.
pub(crate) struct Answer {
    correlation_id: String,
    reply_to: String,
    receiver: oneshot::Receiver<Message>,
    replies: Replies,
}

impl Answer {
    /// The address that the question must carry as its `reply_to`.
    pub(crate) fn reply_to(&self) -> &str {
        &self.reply_to
    }

    /// The answer; `None` when it has not come by the deadline.
    pub(crate) async fn message(mut self, deadline: Instant) -> Option<Message> {
        timeout_at(deadline, &mut self.receiver).await.ok()?.ok()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.replies.answers().remove(&self.correlation_id);
    }
}

/// Declares a result queue of a new name for each channel.
struct ResultQueue {
    names: Names,
    instance: String,
    queue: String,
    inner: Arc<Inner>,
}

impl ResultQueue {
    async fn bind(&self, channel: &Channel) -> Result<(), LinkDown> {
        let exchange = self.names.replies();
        let (queue, options) = (short(&self.queue), QueueBindOptions::default());
        let bound =
            channel.queue_bind(queue.clone(), short(&exchange), queue, options, FieldTable::default());
        in_time("bind the result queue", bound).await
    }
}

impl Source for ResultQueue {
    async fn prepare(&mut self, channel: &Channel, epoch: u64) -> Result<(String, FieldTable), LinkDown> {
        self.queue = self.names.reply_queue(&self.instance, epoch);
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(short(&self.queue), options, FieldTable::default());
        in_time("declare the result queue", declared).await?;
        self.bind(channel).await?;
        Ok((self.queue.clone(), FieldTable::default()))
    }

    /// A worker may have declared the exchange again after someone deleted it, and our binding with it.
    async fn when_quiet(&mut self, channel: &Channel) -> Result<bool, LinkDown> {
        self.bind(channel).await.map(|()| false)
    }

    /// The queue dies with its consumer.
    fn is_credit(&self) -> bool {
        true
    }

    fn started(&mut self) {
        self.inner.address.send_replace(Some(self.queue.clone()));
    }

    fn ended(&mut self, _: Ending) {
        self.inner.address.send_replace(None);
    }
}
