//! What a worker's `/metrics` says: what was counted, and how its queues stand in it now. Nobody is asked for that, so the
//! answer never waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use super::{
    dispatch::QueueShare,
    health::{Health, QueueHealth},
};
use crate::{
    client::Client,
    job::QueueName,
    metrics::{self, Snapshot, table::worker as table},
};

/// What is looked at.
pub(super) struct Figures {
    client: Client,
    queues: Vec<(QueueShare, Arc<QueueHealth>)>,
}

impl Figures {
    pub(super) fn new(client: &Client, healths: &Health, shares: &BTreeMap<QueueName, QueueShare>) -> Self {
        let of = |share: &QueueShare| Some((share.clone(), Arc::clone(healths.get(&share.queue)?)));
        Self { client: client.clone(), queues: shares.values().filter_map(of).collect() }
    }

    /// All of it, as Prometheus reads it.
    pub(super) fn text(&self) -> String {
        let snapshot = Snapshot::default();
        let gauges =
            [&table::RUNNING, &table::WAITING, &table::CONCURRENCY, &table::CONSUMING, &table::PAUSED];
        let gauges = gauges.map(|metric| snapshot.gauge(metric));
        for (share, health) in &self.queues {
            let flag = |flag: bool| usize::from(flag);
            let values = [
                share.running(),
                share.waiting(),
                share.concurrency,
                flag(health.consuming.load(Ordering::SeqCst)),
                flag(health.paused.load(Ordering::SeqCst)),
            ];
            for (gauge, value) in gauges.iter().zip(values) {
                #[expect(clippy::cast_precision_loss, reason = "counts of jobs in one process")]
                gauge.with_label_values(&[share.queue.as_str()]).set(value as f64);
            }
        }
        let mut families = self.client.metric_families();
        families.extend(snapshot.families());
        metrics::text(families)
    }
}
