//! Jobs that this process runs or has settled: what a delivery means to it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::hold::Hold;
use crate::{amqp::consumer::Receipt, job::JobId};

/// Jobs remembered as settled here. A redelivery of one of them (its ack was lost with the connection) is
/// settled again, without a run.
const REMEMBERED: usize = 20_000;

/// A job, its run and its step: copies of one message share it.
pub(super) type Key = (JobId, u32, u32);

/// Jobs that this process runs or has settled.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<KnownJobs>);

#[derive(Debug, Default)]
struct KnownJobs {
    running: HashMap<Key, Arc<Hold>>,
    settled: HashSet<Key>,
    /// The settled ones by age, for forgetting.
    order: VecDeque<Key>,
}

/// What a delivery is to this process.
pub(super) enum Standing {
    New(Receipt),
    /// The job runs here: the delivery is settled with it.
    Attached,
    /// The job was settled here: only the acknowledgement is missing.
    Settled(Receipt),
}

impl Known {
    pub(super) fn standing(&self, key: &Key, receipt: Receipt) -> Standing {
        let known = self.lock();
        if let Some(hold) = known.running.get(key) {
            hold.attach(receipt);
            return Standing::Attached;
        }
        if known.settled.contains(key) { Standing::Settled(receipt) } else { Standing::New(receipt) }
    }

    /// Puts a job on the table of running ones; [`Running`] takes it off.
    pub(super) fn begin(&self, key: Key, hold: &Arc<Hold>) {
        self.lock().running.insert(key, Arc::clone(hold));
    }

    fn end(&self, key: &Key, settled: bool) {
        let mut known = self.lock();
        known.running.remove(key);
        if settled && known.settled.insert(*key) {
            known.order.push_back(*key);
            if known.order.len() > REMEMBERED
                && let Some(oldest) = known.order.pop_front()
            {
                known.settled.remove(&oldest);
            }
        }
    }

    /// Some of the jobs that run now.
    pub(super) fn running(&self, most: usize) -> Vec<JobId> {
        self.lock().running.keys().take(most).map(|(id, ..)| *id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, KnownJobs> {
        // Each method leaves the tables whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a job off the table of running ones, also when its task panics.
pub(super) struct Running<'a> {
    known: &'a Known,
    key: Key,
    pub(super) settled: bool,
}

impl<'a> Running<'a> {
    /// The guard for a job that was put on the table by [`Known::begin`].
    pub(super) fn of(known: &'a Known, key: Key) -> Self {
        Self { known, key, settled: false }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.known.end(&self.key, self.settled);
    }
}
