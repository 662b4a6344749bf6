//! Telling callers how a run ended.
//!
//! Replies have channels of their own and nobody waits for their confirms: a caller's full or missing queue holds
//! up no settling. Where a reply may go is bounded too: our own result queues, RabbitMQ's direct reply-to, and
//! what `worker.reply_queues` allows. The default exchange reaches every queue, so a stranger's `reply_to` is
//! not followed blindly.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::{
    amqp::{
        Names, PublishError,
        publisher::{Done, Publisher, Target},
    },
    client::{Links, Live},
    job::{Reply, wire::Message},
};

/// What the name of a direct reply-to address starts with (RabbitMQ, "Direct Reply-to").
const DIRECT: &str = "amq.rabbitmq.reply-to";
/// Replies unconfirmed, and waiting to be published, per channel.
const WINDOW: usize = 1000;
/// Replies that wait for a connection; more are dropped.
const WAITING: usize = 1000;
/// How long a reply is kept while there is no connection. A caller rarely waits longer.
const KEPT: Duration = Duration::from_secs(60);
/// Longest wait for replies on their way when the process ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Sends replies; cheap to clone.
#[derive(Clone)]
pub(crate) struct Replier {
    names: Names,
    ours: Publisher,
    /// Apart, on a connection of its own that is made when it is needed: a user without the right to the default
    /// exchange loses the channel at each attempt, and a forged direct reply-to address costs the connection.
    foreign: Arc<OnceLock<Publisher>>,
    links: Links,
    allowed: Arc<[String]>,
    waiting: Arc<Semaphore>,
    /// Replies on their way.
    sent: TaskTracker,
}

impl Replier {
    pub(crate) fn start(live: &Live, allowed: &[String]) -> Self {
        let link = live.publisher.link();
        Self {
            names: live.names.clone(),
            ours: Publisher::start(link, "replies", WINDOW, WINDOW),
            foreign: Arc::default(),
            links: live.links.clone(),
            allowed: allowed.into(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            sent: TaskTracker::new(),
        }
    }

    /// Sends a reply to `reply_to`, if it may go there. Returns at once; what goes wrong is logged.
    pub(crate) fn send(&self, reply_to: &str, correlation_id: Option<String>, reply: &Reply) {
        let Some((publisher, exchange)) = self.way(reply_to) else {
            warn!(job.id = %reply.job_id, reply_to, "no reply sent: the address is not allowed (worker.reply_queues)");
            return;
        };
        let target = Target { exchange, key: reply_to.to_owned(), mandatory: false };
        let message = reply.encode(correlation_id);
        match publisher.hand_over(
            target.clone(),
            message.clone(),
            Instant::now() + KEPT,
            Done::Counted(self.sent.token()),
        ) {
            Ok(()) => {}
            Err(PublishError::Unavailable(_) | PublishError::Blocked) => {
                self.keep(publisher.clone(), target, message);
            }
            Err(error) => warn!(job.id = %reply.job_id, %error, "reply dropped"),
        }
    }

    /// Waits, for a bounded time, until all replies have left.
    pub(super) async fn flush(&self) {
        self.sent.close();
        drop(timeout(FLUSH, self.sent.wait()).await);
    }

    fn way(&self, reply_to: &str) -> Option<(&Publisher, String)> {
        if self.names.is_reply_queue(reply_to) {
            return Some((&self.ours, self.names.replies()));
        }
        let allowed = self.allowed.iter().any(|pattern| matches(pattern, reply_to));
        (reply_to.starts_with(DIRECT) || allowed).then(|| {
            let start = || Publisher::start(&self.links.start("foreign replies"), "replies", WINDOW, WINDOW);
            (self.foreign.get_or_init(start), String::new())
        })
    }

    /// Keeps a reply until there is a connection again: a caller may still be waiting.
    fn keep(&self, publisher: Publisher, target: Target, message: Message) {
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            warn!("reply dropped: too many wait for the connection");
            return;
        };
        let sent = self.sent.token();
        publisher.link().runtime().spawn(async move {
            let _held = (place, sent);
            let deadline = Instant::now() + KEPT;
            while Instant::now() < deadline {
                match publisher.publish_patiently(target.clone(), message.clone(), deadline).await {
                    Err(PublishError::Unavailable(_) | PublishError::Blocked) => {
                        sleep(Duration::from_millis(200)).await;
                    }
                    Ok(()) => return,
                    Err(error) => {
                        debug!(%error, "late reply not confirmed");
                        return;
                    }
                }
            }
        });
    }
}

/// Whether a queue's name is what `pattern` says: the name itself, or its beginning before a `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_or_beginnings() {
        assert!(matches("answers", "answers") && matches("amq.gen-*", "amq.gen-X1") && matches("*", "any"));
        assert!(!matches("answers", "answers2") && !matches("amq.gen-*", "amq.gen") && !matches("", "x"));
    }
}
