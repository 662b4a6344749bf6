//! What the control log says, as far as it was read. Pure: records in, answers out.
//!
//! Kinds: the newest announcement in the log holds; schemas: see `catalogue`. Pauses: the last by their own time hold; ties are broken by
//! content. Orders to cancel: the first by its own time holds. So pauses and orders are a function of the *set* of
//! records read: to write one again changes nothing.
//!
//! Bounded: kinds and schemas (`catalogue`), [`PAUSES_MAX`] queues, [`ORDERS_KEPT`] orders. What is over is forgotten, the oldest
//! first. Of orders it is remembered up to when some of them are not known, forgotten here or gone from the log: a job
//! from before then may be cancelled without being known to be ([`State::is_blind`]), so it is asked about.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    catalogue::Catalogue,
    record::{CancelOrder, PauseOrder},
};
use crate::job::{JobId, QueueName};

/// Most queues whose pause is remembered.
const PAUSES_MAX: usize = 10_000;
/// Most orders remembered, about 120 MB of them.
pub(super) const ORDERS_KEPT: usize = 500_000;
/// By how much the clocks of who submits a job and of who cancels it may differ.
const SKEW: SignedDuration = SignedDuration::from_secs(60);

/// A pause that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Who asked for it.
    pub by: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// The queues that are paused.
pub type Pauses = BTreeMap<QueueName, Pause>;

/// All that is known.
#[derive(Debug)]
pub(super) struct State {
    /// What workers announced.
    pub(super) kinds: Catalogue,
    pauses: BTreeMap<QueueName, Told<PauseOrder>>,
    orders: Orders,
    /// When the last order was given that is not known any more, if there may be one.
    blind_before: Option<Timestamp>,
    has_front: bool,
}

/// Something, and when it was last written to the log, in seconds since 1970.
#[derive(Debug, Clone)]
struct Told<T> {
    what: T,
    at: i64,
}

impl Default for State {
    fn default() -> Self {
        Self::with_orders(ORDERS_KEPT)
    }
}

impl State {
    /// Nothing is known yet, and at most so many orders ever.
    fn with_orders(limit: usize) -> Self {
        Self {
            kinds: Catalogue::default(),
            pauses: BTreeMap::new(),
            orders: Orders::new(limit),
            blind_before: None,
            has_front: false,
        }
    }

    pub(super) fn learn_front(&mut self) {
        self.has_front = true;
    }

    pub(super) fn has_front(&self) -> bool {
        self.has_front
    }

    /// Whether this changed which queues are paused, by whom or since when.
    pub(super) fn learn_pause(&mut self, order: PauseOrder, told: i64) -> bool {
        if let Some(known) = self.pauses.get_mut(&order.queue) {
            known.at = known.at.max(told);
            let rank = |order: &PauseOrder| (order.at, order.paused, order.by.clone());
            if rank(&known.what) >= rank(&order) {
                return false;
            }
            let changed = known.what.paused || order.paused;
            known.what = order;
            return changed;
        }
        let paused = order.paused;
        self.pauses.insert(order.queue.clone(), Told { what: order, at: told });
        self.forget_a_pause() || paused
    }

    /// Where there are too many, those that are over go before those in force; whether one in force went.
    fn forget_a_pause(&mut self) -> bool {
        if self.pauses.len() <= PAUSES_MAX {
            return false;
        }
        let oldest =
            self.pauses.values().map(|told| (told.what.paused, told.what.at, &told.what.queue)).min();
        let Some((paused, _, queue)) = oldest else { return false };
        let queue = queue.clone();
        self.pauses.remove(&queue);
        paused
    }

    pub(super) fn paused(&self) -> Pauses {
        let in_force = self.pauses.values().map(|told| &told.what).filter(|order| order.paused);
        in_force.map(|order| (order.queue.clone(), Pause { by: order.by.clone(), at: order.at })).collect()
    }

    /// A time for the next order about `queue`, later than that of the last one whatever the clocks say.
    pub(super) fn pause_time(&self, queue: &QueueName, now: Timestamp) -> Timestamp {
        let known = self.pauses.get(queue).map(|told| told.what.at);
        let after = known.and_then(|at| at.checked_add(SignedDuration::from_millis(1)).ok());
        after.map_or(now, |after| after.max(now))
    }

    /// Whether the run was not known to be cancelled.
    pub(super) fn learn_order(&mut self, order: &CancelOrder, told: i64) -> bool {
        let (new, forgotten) = self.orders.insert(order, told);
        self.blind_before = self.blind_before.max(forgotten);
        new
    }

    /// Orders may be missing that were given until then.
    pub(super) fn miss_orders(&mut self, until: Timestamp) {
        self.blind_before = self.blind_before.max(Some(until));
    }

    /// Whether a job of that time may be cancelled although no order for it is known.
    pub(super) fn is_blind(&self, created_at: Option<Timestamp>) -> bool {
        self.blind_before.is_some_and(|until| {
            // Saturating: at the end of time nothing is later.
            let until = until.checked_add(SKEW).unwrap_or(Timestamp::MAX);
            created_at.is_none_or(|at| at <= until)
        })
    }

    pub(super) fn order(&self, id: JobId, run: u32) -> Option<CancelOrder> {
        self.orders.get(id, run)
    }

    /// What is to be written again, if it was written last at a time that is `due` (in seconds since 1970, and whether
    /// it is a pause in force): pauses (those that are over, too, or an old record of their beginning would outlive
    /// that of their end), and orders that are younger than `max_age`.
    pub(super) fn to_retell(
        &self,
        due: impl Fn(i64, bool) -> bool,
        now: Timestamp,
        max_age: Duration,
    ) -> (Vec<PauseOrder>, Vec<CancelOrder>) {
        let pauses = self.pauses.values().filter(|told| due(told.at, told.what.paused));
        let pauses = pauses.map(|told| told.what.clone());
        (pauses.collect(), self.orders.to_retell(|told| due(told, false), now, max_age))
    }

    /// Everything is to be written again: the log that it was written to is gone.
    pub(super) fn forget_told(&mut self) {
        self.pauses.values_mut().for_each(|told| told.at = i64::MIN);
        self.orders.known.values_mut().for_each(|order| order.told = i64::MIN);
    }

    /// How much is known: kinds, pauses in force, orders.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let paused = self.pauses.values().filter(|told| told.what.paused).count();
        (self.kinds.len(), paused, self.orders.known.len())
    }
}

/// Orders by run, at most so many.
#[derive(Debug)]
struct Orders {
    known: HashMap<(JobId, u32), Order>,
    by_age: BTreeSet<(Timestamp, JobId, u32)>,
    /// The texts of the order before: those of a record are mostly the same.
    last: [Option<Arc<str>>; 2],
    limit: usize,
}

/// What is kept of an order.
#[derive(Debug, Clone)]
struct Order {
    at: Timestamp,
    told: i64,
    by: Option<Arc<str>>,
    reason: Option<Arc<str>>,
}

impl Order {
    fn whole(&self, (id, run): (JobId, u32)) -> CancelOrder {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        CancelOrder { id, run, by: text(&self.by), reason: text(&self.reason), at: self.at }
    }
}

impl Orders {
    fn new(limit: usize) -> Self {
        Self { known: HashMap::new(), by_age: BTreeSet::new(), last: [None, None], limit }
    }

    /// Whether the run was not known to be cancelled, and when the order was given that was forgotten for this one.
    fn insert(&mut self, order: &CancelOrder, told: i64) -> (bool, Option<Timestamp>) {
        let key = (order.id, order.run);
        let rank = |at, by: Option<&str>, reason: Option<&str>| {
            (at, by.map(str::to_owned), reason.map(str::to_owned))
        };
        if let Some(known) = self.known.get_mut(&key) {
            known.told = known.told.max(told);
            let (old, new) = (
                rank(known.at, known.by.as_deref(), known.reason.as_deref()),
                rank(order.at, order.by.as_deref(), order.reason.as_deref()),
            );
            if new < old {
                let told = known.told;
                self.by_age.remove(&(known.at, order.id, order.run));
                self.put(order, told);
            }
            return (false, None);
        }
        self.put(order, told);
        let forgotten = if self.known.len() > self.limit { self.by_age.pop_first() } else { None };
        if let Some((_, id, run)) = forgotten {
            self.known.remove(&(id, run));
        }
        // Told even if it is itself the oldest: what runs here is to hear of it.
        (true, forgotten.map(|(at, ..)| at))
    }

    fn put(&mut self, order: &CancelOrder, told: i64) {
        let [by, reason] = &mut self.last;
        let kept = Order {
            at: order.at,
            told,
            by: shared(by, order.by.as_deref()),
            reason: shared(reason, order.reason.as_deref()),
        };
        self.by_age.insert((order.at, order.id, order.run));
        self.known.insert((order.id, order.run), kept);
    }

    fn get(&self, id: JobId, run: u32) -> Option<CancelOrder> {
        self.known.get(&(id, run)).map(|order| order.whole((id, run)))
    }

    fn to_retell(&self, due: impl Fn(i64) -> bool, now: Timestamp, max_age: Duration) -> Vec<CancelOrder> {
        let since = now.checked_sub(max_age).unwrap_or(Timestamp::MIN);
        let young = self.by_age.iter().rev().take_while(|(at, ..)| *at >= since);
        young
            .map(|&(_, id, run)| (id, run))
            .filter_map(|key| self.known.get(&key).map(|order| (key, order)))
            .filter(|(_, order)| due(order.told))
            .map(|(key, order)| order.whole(key))
            .collect()
    }
}

/// `text`, in the memory of `last` where that is the same text.
fn shared(last: &mut Option<Arc<str>>, text: Option<&str>) -> Option<Arc<str>> {
    let text = text?;
    if last.as_deref() != Some(text) {
        *last = Some(text.into());
    }
    last.clone()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
