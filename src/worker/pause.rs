//! One queue of a worker: taken from once it is known what was ordered before, and not while it is paused.
//!
//! A pause stops the consumer and hands back what waits for its turn; what runs goes on, and counts against the
//! queue's concurrency when the queue is taken from again.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    dispatch::{Dispatcher, QueueShare},
    health::QueueHealth,
    work::Shared,
};
use crate::{
    amqp::{
        connection::Link,
        consumer::{Consuming, DeclaredQueue, QUIET, consume},
        control::{Control, Pauses},
    },
    job::QueueName,
};

/// How long a worker waits for the control log until it says so.
const WONDER: Duration = Duration::from_secs(10);
/// After what time a job takes long, and what comes next gets another channel; sooner where the broker is less patient.
/// No later than a quiet consumer is renewed: what it leaves behind counts.
const LONG: Duration = QUIET;
/// How long a consumer and a dispatcher get to end: the one cancels within its request timeout, the other only hands
/// back.
const ENDING: Duration = Duration::from_secs(15);
/// How long a pause that is over excuses that nothing is consumed yet, and how often that is looked at.
const RESUMING: Duration = Duration::from_secs(30);
const RESUMING_LOOK: Duration = Duration::from_millis(50);

/// What taking from one queue needs.
pub(super) struct Taking {
    pub(super) queue: QueueName,
    /// The queue's name on the broker.
    pub(super) source: String,
    pub(super) prefetch: u16,
    pub(super) share: QueueShare,
    pub(super) shared: Arc<Shared>,
    pub(super) control: Control,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    pub(super) health: Arc<QueueHealth>,
    pub(super) stop: CancellationToken,
}

impl Taking {
    /// Takes jobs whenever the queue is not paused, until told to stop.
    pub(super) async fn run(self) {
        tokio::select! {
            () = self.stop.cancelled() => return,
            () = self.caught_up() => {}
        }
        let mut pauses = self.control.paused();
        loop {
            if pauses.borrow().contains_key(&self.queue) {
                self.health.paused.store(true, Ordering::Relaxed);
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = self.until(&mut pauses, false) => info!(queue = %self.queue, "resumed"),
                }
            }
            self.take(&mut pauses).await;
            if self.stop.is_cancelled() {
                return;
            }
        }
    }

    /// Waits until all orders given before this worker started are known: a cancelled job must not run.
    async fn caught_up(&self) {
        if timeout(WONDER, self.control.caught_up()).await.is_err() {
            let broker = self.link.describe();
            warn!(queue = %self.queue, broker, "nothing is taken before the control log is read");
            self.control.caught_up().await;
        }
    }

    /// Waits until the queue is paused, or is not.
    async fn until(&self, pauses: &mut watch::Receiver<Arc<Pauses>>, paused: bool) {
        // The sender lives in `control`.
        drop(pauses.wait_for(|pauses| pauses.contains_key(&self.queue) == paused).await);
    }

    /// Takes jobs until the queue is paused, or until told to stop.
    async fn take(&self, pauses: &mut watch::Receiver<Arc<Pauses>>) {
        let stop = self.stop.child_token();
        let (deliveries, incoming) = mpsc::channel(self.prefetch.into());
        let consuming = Consuming {
            link: self.link.clone(),
            prefetch: self.prefetch,
            long: Some(LONG.min(self.shared.settings.consumer_timeout / 30)),
            deliveries,
            stop: stop.clone(),
            consuming: Arc::clone(&self.health.consuming),
            acknowledging: self.shared.acknowledging.clone(),
        };
        let consumer = self.runtime.spawn(consume(consuming, DeclaredQueue(self.source.clone())));
        let dispatcher = Dispatcher::new(Arc::clone(&self.shared), self.share.clone(), stop.clone());
        let dispatcher = tokio::spawn(dispatcher.run(incoming));
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.until(pauses, true) => {
                info!(queue = %self.queue, "paused");
                self.health.paused.store(true, Ordering::Relaxed);
            }
            never = self.excuse() => match never {},
        }
        stop.cancel();
        for task in [dispatcher, consumer] {
            drop(timeout(ENDING, task).await);
        }
    }

    /// A pause excuses that nothing is consumed until the consumer is there again.
    async fn excuse(&self) -> Infallible {
        let since = Instant::now();
        while !self.health.consuming.load(Ordering::Relaxed) && since.elapsed() < RESUMING {
            sleep(RESUMING_LOOK).await;
        }
        self.health.paused.store(false, Ordering::Relaxed);
        pending().await
    }
}
