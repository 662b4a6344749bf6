//! What the worker says of itself every few seconds: that it is there, what it takes, and what runs.
//!
//! Best effort: nothing waits for it, and nothing here waits for anything.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{dispatch::QueueShare, work::Shared};
use crate::{
    amqp::{
        Names,
        control::Control,
        heartbeats::{EVERY, JOBS_MAX, WorkerInfo, WorkerKind, WorkerQueue, publish},
        outlet::Outlet,
    },
    client::{Live, host},
    config::{self, Config},
    job::QueueName,
};

/// How long the last word gets to be written.
const LAST: Duration = Duration::from_secs(1);

/// The task that says it.
pub(super) struct Beat {
    task: JoinHandle<()>,
    stop: CancellationToken,
    outlet: Outlet,
}

impl Beat {
    /// Starts to say it: as soon as the control log is read, when a queue is paused or resumed, and every 5 s.
    pub(super) fn start(
        config: &Config,
        shared: &Arc<Shared>,
        live: &Live,
        control: &Control,
        shares: BTreeMap<QueueName, QueueShare>,
    ) -> Self {
        let stop = CancellationToken::new();
        let pulse = Pulse {
            about: about(shared, live),
            shares,
            settings: config.worker.clone(),
            shared: Arc::clone(shared),
            control: control.clone(),
            outlet: live.outlet.clone(),
            names: live.names.clone(),
        };
        let task = live.runtime().spawn(pulse.run(stop.clone()));
        Self { task, stop, outlet: live.outlet.clone() }
    }

    /// Says that the worker has ended.
    pub(super) async fn end(self) {
        self.stop.cancel();
        drop(timeout(LAST, self.task).await);
        drop(timeout(LAST, self.outlet.flush()).await);
    }
}

/// What does not change while the worker lives.
fn about(shared: &Shared, live: &Live) -> WorkerInfo {
    let kinds = shared.executor.registry().announcement();
    WorkerInfo {
        worker: live.instance.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host(),
        pid: std::process::id(),
        since: Timestamp::now(),
        queues: Vec::new(),
        kinds: kinds.into_iter().map(|known| WorkerKind { kind: known.kind, queue: known.queue }).collect(),
        jobs: Vec::new(),
    }
}

struct Pulse {
    about: WorkerInfo,
    shares: BTreeMap<QueueName, QueueShare>,
    settings: config::Worker,
    shared: Arc<Shared>,
    control: Control,
    outlet: Outlet,
    names: Names,
}

impl Pulse {
    async fn run(self, stop: CancellationToken) {
        let mut paused = self.control.paused();
        let mut due = interval(EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Nothing can be said before there is a connection.
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.control.caught_up() => {}
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = due.tick() => {}
                // The sender lives in `control`.
                _ = paused.changed() => {}
            }
            publish(&self.outlet, &self.names, self.now(), false);
        }
        publish(&self.outlet, &self.names, self.now(), true);
    }

    fn now(&self) -> WorkerInfo {
        let paused = self.control.paused();
        let paused = paused.borrow();
        let queues = self.shares.iter().map(|(queue, share)| WorkerQueue {
            queue: queue.clone(),
            concurrency: self.settings.concurrency_of(queue),
            prefetch: self.settings.prefetch_of(queue),
            running: share.running(),
            waiting: share.waiting(),
            paused: paused.contains_key(queue),
        });
        let jobs = self.shared.known.running(JOBS_MAX);
        WorkerInfo { queues: queues.collect(), jobs, ..self.about.clone() }
    }
}
