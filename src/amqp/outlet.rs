//! Publishing without confirms: for what may be lost. One channel with one owner task; what comes while there is no
//! connection, or more than the connection takes, is dropped.
//!
//! Why apart from [`super::publisher`]: whoever binds a queue to `hopline.events` must not be able to hold up a confirm
//! (a length limit, a quorum without a majority), nor the connection that jobs are published on (credit flow).

use lapin::{Channel, options::BasicPublishOptions};
use tokio::{
    sync::{mpsc, oneshot},
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
}

impl Outlet {
    /// Starts the owner of one channel on `link`. It ends when the last handle is dropped.
    pub(crate) fn start(link: &Link) -> Self {
        let (requests, queue) = mpsc::channel(WAITING);
        link.runtime().spawn(own(link.clone(), queue));
        Self { requests }
    }

    /// Publishes if that is possible now.
    pub(crate) fn send(&self, exchange: String, key: String, message: Message) {
        if self.requests.try_send(Request::Publish(Box::new(Parcel { exchange, key, message }))).is_err() {
            debug!("an event for subscribers is dropped: too many wait");
        }
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

async fn own(link: Link, mut requests: mpsc::Receiver<Request>) {
    let (mut pauses, mut channel) = (Pauses::new(), None);
    while let Some(request) = requests.recv().await {
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
