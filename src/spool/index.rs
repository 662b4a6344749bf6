//! What is known of the spool's file without reading it: which jobs wait there, in which order, and behind which.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use super::{Fill, Tally};
use crate::{
    client::Submission,
    job::{JobId, Kind, QueueName},
};

/// Most kinds whose queue is asked for one submit. Beyond that it queues up, whatever its queue.
const KINDS_MAX: usize = 64;

/// Jobs that keep their order: those of a queue, and, where the queue is chosen when they are forwarded, those of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Queue(QueueName),
    Kind(Kind),
}

impl Lane {
    pub(super) fn of(job: &Submission) -> Self {
        if job.routed {
            Self::Kind(job.envelope.kind.clone())
        } else {
            Self::Queue(job.envelope.queue.clone())
        }
    }

    /// The queue that they go to now.
    pub(super) fn queue(&self, queue_of: impl FnOnce(&Kind) -> QueueName) -> QueueName {
        match self {
            Self::Queue(queue) => queue.clone(),
            Self::Kind(kind) => queue_of(kind),
        }
    }
}

/// A row of the file.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) place: i64,
    /// None: it has none, so it cannot be read.
    pub(super) id: Option<JobId>,
    pub(super) size: u64,
    /// None: it cannot be read.
    pub(super) lane: Option<Lane>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    /// Rows that are there, also those that cannot be read; without those that were forwarded.
    ids: HashSet<JobId>,
    /// Jobs that are to be forwarded, by their place.
    places: BTreeMap<i64, Arc<Lane>>,
    /// How many of them there are.
    lanes: HashMap<Arc<Lane>, u64>,
    /// The kinds among them: there may be many more queues.
    kinds: HashSet<Kind>,
    /// Places of jobs that the broker has and that are still in the file: nothing is published before they are out of
    /// it, lest more and more are published again.
    gone: Vec<i64>,
    pub(super) fill: Fill,
    pub(super) tally: Tally,
}

impl Index {
    pub(super) fn new(limits: Fill) -> Self {
        Self { fill: limits, ..Self::default() }
    }

    /// A row that was in the file before.
    pub(super) fn found(&mut self, found: Found) {
        self.fill.jobs += 1;
        self.fill.bytes = self.fill.bytes.saturating_add(found.size);
        self.ids.extend(found.id);
        match (found.id, found.lane) {
            (Some(_), Some(lane)) => self.place(found.place, lane),
            _ => self.fill.unreadable += 1,
        }
    }

    /// A job that was written just now.
    pub(super) fn add(&mut self, place: i64, id: JobId, lane: Lane) {
        self.ids.insert(id);
        self.place(place, lane);
    }

    fn place(&mut self, place: i64, lane: Lane) {
        let lane =
            self.lanes.get_key_value(&lane).map_or_else(|| Arc::new(lane), |(lane, _)| Arc::clone(lane));
        *self.lanes.entry(Arc::clone(&lane)).or_default() += 1;
        if let Lane::Kind(kind) = &*lane
            && !self.kinds.contains(kind)
        {
            self.kinds.insert(kind.clone());
        }
        self.places.insert(place, lane);
    }

    fn displace(&mut self, place: i64) -> bool {
        let Some(lane) = self.places.remove(&place) else { return false };
        if let Some(count) = self.lanes.get_mut(&lane) {
            *count -= 1;
            if *count == 0 {
                self.lanes.remove(&lane);
                if let Lane::Kind(kind) = &*lane {
                    self.kinds.remove(kind);
                }
            }
        }
        true
    }

    /// A job was forwarded: it is not published again, and none queues up behind it, although it is in the file still.
    pub(super) fn forwarded(&mut self, place: i64, id: JobId) {
        self.displace(place);
        self.ids.remove(&id);
        self.gone.push(place);
        self.tally.forwarded += 1;
    }

    /// How much the file holds, and what is to leave it.
    pub(super) fn to_write(&self) -> (Fill, Vec<i64>) {
        (self.fill, self.gone.clone())
    }

    /// So much is in the file now, without the first `gone` of those that were to leave it.
    pub(super) fn written(&mut self, fill: Fill, gone: usize) {
        // More may have left meanwhile, or turned out to be unreadable.
        self.gone.drain(..gone);
        (self.fill.jobs, self.fill.bytes) = (fill.jobs, fill.bytes);
    }

    /// The place of the job that is forwarded next.
    pub(super) fn first(&self) -> Option<i64> {
        self.places.keys().next().copied()
    }

    /// A job turns out to be none that can be read, or that the broker takes.
    pub(super) fn unreadable(&mut self, place: i64) {
        if self.displace(place) {
            self.fill.unreadable += 1;
        }
    }

    pub(super) fn has(&self, id: JobId) -> bool {
        self.ids.contains(&id)
    }

    /// The first `most` places after `place` whose lane `pick` wants; it is asked in their order.
    pub(super) fn next(&self, place: i64, most: usize, mut pick: impl FnMut(&Lane) -> bool) -> Vec<i64> {
        let after = self.places.range((Bound::Excluded(place), Bound::Unbounded));
        after.filter(|(_, lane)| pick(lane)).map(|(place, _)| *place).take(most).collect()
    }

    pub(super) fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lanes.keys().cloned().collect()
    }

    /// Whether jobs for `queue` wait.
    pub(super) fn waits_for(&self, queue: &QueueName, queue_of: impl Fn(&Kind) -> QueueName) -> bool {
        if self.lanes.is_empty() {
            return false;
        }
        if self.lanes.contains_key(&Lane::Queue(queue.clone())) {
            return true;
        }
        self.kinds.len() > KINDS_MAX || self.kinds.iter().any(|kind| queue_of(kind) == *queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    fn kind(name: &str) -> Kind {
        Kind::parse(name).unwrap()
    }

    #[test]
    fn a_job_queues_up_behind_those_of_its_queue_alone() {
        let mut index = Index::default();
        let to_c = |_: &Kind| queue("c");
        assert!(!index.waits_for(&queue("a"), to_c));
        let (first, second, third) = (JobId::new(), JobId::new(), JobId::new());
        index.add(1, first, Lane::Queue(queue("a")));
        index.add(2, second, Lane::Queue(queue("a")));
        index.add(3, third, Lane::Kind(kind("k.k")));
        let waits = |index: &Index| ["a", "b", "c"].map(|name| index.waits_for(&queue(name), to_c));
        assert_eq!(waits(&index), [true, false, true]);
        assert_eq!(index.next(0, 10, |_| true), [1, 2, 3]);
        assert_eq!(index.next(0, 10, |lane| *lane != Lane::Queue(queue("a"))), [3]);
        assert_eq!(index.next(1, 1, |_| true), [2]);
        index.forwarded(1, first);
        assert_eq!(waits(&index), [true, false, true]);
        assert!(!index.has(first) && index.has(second));
        index.forwarded(2, second);
        assert_eq!(waits(&index), [false, false, true]);
        index.unreadable(3);
        index.unreadable(3);
        assert_eq!(waits(&index), [false; 3]);
        assert_eq!(index.fill.unreadable, 1);
        assert!(index.has(third) && index.lanes().is_empty());
        // Nobody asks for ever.
        for number in 0..=KINDS_MAX {
            index.add(
                10 + i64::try_from(number).unwrap(),
                JobId::new(),
                Lane::Kind(kind(&format!("k.{number}"))),
            );
        }
        assert_eq!(waits(&index), [true; 3]);
    }
}
