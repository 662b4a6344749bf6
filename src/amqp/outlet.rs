//! Publishing without confirms: for what may be lost. One channel with one owner task; what comes while there is no
//! connection, or more than the connection takes, is dropped.
//!
//! Heartbeats have a place of their own, which is looked at first: a subscriber that is slow fills all others with
//! events, and a worker without heartbeats seems to be gone, its jobs lost.
//!
//! Why apart from [`super::publisher`]: whoever binds a queue to `hopline.events` must not be able to hold up a confirm
//! (a length limit, a quorum without a majority), nor the connection that jobs are published on (credit flow).

use std::sync::Arc;

use lapin::{Channel, options::BasicPublishOptions};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tracing::debug;

use super::{
    connection::{Link, LinkDown, in_time},
    message::{properties, short},
    pause::Pauses,
};
use crate::job::wire::Message;

/// Messages that wait to be written.
const WAITING: usize = 1000;

#[derive(Clone)]
struct Parcel {
    exchange: String,
    key: String,
    message: Message,
}

enum Request {
    Publish(Box<Parcel>),
    /// Tells that what came before was written or dropped.
    Flush(oneshot::Sender<()>),
}

/// A handle on the task; cheap to clone.
#[derive(Clone)]
pub(crate) struct Outlet {
    requests: mpsc::Sender<Request>,
    /// The last heartbeat: only the newest counts.
    beat: Arc<watch::Sender<Option<Parcel>>>,
}

impl Outlet {
    /// Starts the owner of one channel on `link`. It ends when the last handle is dropped.
    pub(crate) fn start(link: &Link) -> Self {
        let (this, queue) = Self::new();
        link.runtime().spawn(own(link.clone(), queue));
        this
    }

    fn new() -> (Self, Queue) {
        let (requests, waiting) = mpsc::channel(WAITING);
        let (beat, beats) = watch::channel(None);
        (Self { requests, beat: Arc::new(beat) }, Queue { requests: waiting, beats })
    }

    /// Publishes if that is possible now.
    pub(crate) fn send(&self, exchange: String, key: String, message: Message) {
        if self.requests.try_send(Request::Publish(Box::new(Parcel { exchange, key, message }))).is_err() {
            debug!("an event for subscribers is dropped: too many wait");
        }
    }

    /// Publishes a heartbeat before all else, in place of one that waits.
    pub(crate) fn beat(&self, exchange: String, key: String, message: Message) {
        self.beat.send_replace(Some(Parcel { exchange, key, message }));
    }

    /// Waits until what was handed over is written, or dropped.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.requests.send(Request::Flush(done)).await.is_ok() {
            // The task may have ended, and with it all that waited.
            let _ = flushed.await;
        }
    }
}

/// What waits to be written.
struct Queue {
    requests: mpsc::Receiver<Request>,
    beats: watch::Receiver<Option<Parcel>>,
}

impl Queue {
    /// What comes next; `None` when the last handle is dropped.
    async fn next(&mut self) -> Option<Request> {
        tokio::select! {
            biased;
            // Without a sender there are no handles: the other branch says so.
            Ok(()) = self.beats.changed() => {
                let beat = self.beats.borrow_and_update().clone();
                beat.map(|parcel| Request::Publish(Box::new(parcel)))
            }
            request = self.requests.recv() => request,
        }
    }
}

async fn own(link: Link, mut queue: Queue) {
    let (mut pauses, mut channel) = (Pauses::new(), None);
    while let Some(request) = queue.next().await {
        let parcel = match request {
            Request::Publish(parcel) => parcel,
            Request::Flush(done) => {
                // Whoever waited may have given up.
                let _ = done.send(());
                continue;
            }
        };
        match publish(&link, &mut channel, *parcel).await {
            Ok(()) => pauses.reset(),
            Err(down) => {
                debug!(reason = down.0, "an event for subscribers is dropped");
                if channel.take().is_some() {
                    // The connection lives, most likely: what it publishes to is gone.
                    sleep(pauses.next()).await;
                }
            }
        }
    }
}

async fn publish(link: &Link, channel: &mut Option<Channel>, parcel: Parcel) -> Result<(), LinkDown> {
    let up = link.up()?;
    if up.is_blocked() {
        return Err(LinkDown("blocked by an alarm".to_owned()));
    }
    if !channel.as_ref().is_some_and(|channel| channel.status().connected()) {
        *channel = Some(up.channel().await?);
    }
    let Some(channel) = channel else { return Ok(()) };
    let Parcel { exchange, key, message } = parcel;
    let (exchange, key, options) = (short(&exchange), short(&key), BasicPublishOptions::default());
    let written = channel.basic_publish(exchange, key, options, &message.body, properties(&message));
    in_time("publish", written).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(queue: &mut Queue) -> Option<String> {
        match queue.next().await? {
            Request::Publish(parcel) => Some(parcel.key),
            Request::Flush(_) => Some("flush".to_owned()),
        }
    }

    #[tokio::test]
    async fn a_heartbeat_goes_before_all_events_and_finds_a_place_however_many_wait() {
        let (outlet, mut queue) = Outlet::new();
        let message = Message::default;
        for n in 0..=WAITING {
            outlet.send("events".into(), n.to_string(), message());
        }
        outlet.beat("events".into(), "old".into(), message());
        outlet.beat("events".into(), "new".into(), message());
        assert_eq!(next(&mut queue).await.as_deref(), Some("new"));
        assert_eq!(next(&mut queue).await.as_deref(), Some("0"));
        outlet.beat("events".into(), "last".into(), message());
        drop(outlet);
        assert_eq!(next(&mut queue).await.as_deref(), Some("last"));
        for n in 1..WAITING {
            assert_eq!(next(&mut queue).await, Some(n.to_string()));
        }
        assert_eq!(next(&mut queue).await, None);
    }
}
