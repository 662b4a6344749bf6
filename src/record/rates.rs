//! How fast jobs come and go, per queue, over the last minute, and how that went over the last ten: from the times that
//! events carry.
//!
//! Kept in memory: a process that has just started knows these minutes once it has read them. Jobs delayed by more
//! than a day do not count as arrivals.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;

use super::model::{MOMENT_SECONDS, Moment, QueueRecord};
use crate::{
    event::{AttemptOutcome, Event, EventType},
    job::QueueName,
};

/// The time that rates are about, in seconds.
const WINDOW: i64 = 60;
/// What is counted together, in seconds.
const SLOT: i64 = MOMENT_SECONDS as i64;
/// How long counts are kept, in seconds.
const KEPT: i64 = 600;
/// How far ahead arrivals are remembered, in seconds.
const AHEAD: i64 = 86_400;
/// Most queues.
const QUEUES_MAX: usize = 10_000;

/// Counts of one slot.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Slot {
    arrived: u64,
    ended: u64,
    /// Of those that ended, how many neither succeeded nor were snoozed or cancelled.
    failed: u64,
    /// Of those that ended, how many say how long they took.
    timed: u64,
    seconds: f64,
}

impl Slot {
    fn add(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.ended += other.ended;
        self.failed += other.failed;
        self.timed += other.timed;
        self.seconds += other.seconds;
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a minute")]
    fn mean_duration(&self) -> Option<f64> {
        (self.timed > 0).then(|| self.seconds / self.timed as f64)
    }
}

/// Whether an attempt that ended so went wrong.
fn is_failure(outcome: AttemptOutcome) -> bool {
    !matches!(outcome, AttemptOutcome::Succeeded | AttemptOutcome::Snoozed | AttemptOutcome::Cancelled)
}

/// What an event says that is counted.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    queue: Option<QueueName>,
    /// When its job is queued, if that is what happened.
    queued: Option<Timestamp>,
    ended: Option<Ended>,
}

/// The end of an attempt.
#[derive(Debug, Clone, Copy)]
struct Ended {
    at: Timestamp,
    failed: bool,
    took: Option<Duration>,
}

impl Said {
    pub(super) fn of(event: &Event) -> Self {
        let data = &event.data;
        let waits =
            matches!(event.event_type, EventType::Submitted | EventType::Scheduled | EventType::Retrying);
        let ended = data.outcome.map(|outcome| {
            let at = data.finished_at.unwrap_or(event.time);
            let took =
                data.started_at.and_then(|started| Duration::try_from(at.duration_since(started)).ok());
            Ended { at, failed: is_failure(outcome), took }
        });
        // A retry without a pause is queued when its attempt ends.
        let queued = waits.then(|| data.run_at.unwrap_or(event.time));
        Self { queue: data.queue.clone(), queued, ended }
    }
}

/// The rates of all queues.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<QueueName, BTreeMap<i64, Slot>>);

impl Rates {
    /// Counts what an event says. Each event is to be counted once.
    pub(super) fn count(&mut self, said: &Said, now: Timestamp) {
        let queue = said.queue.as_ref();
        if let Some(at) = said.queued
            && let Some(slot) = self.slot(queue, at, now)
        {
            slot.arrived += 1;
        }
        if let Some(Ended { at, failed, took }) = said.ended
            && let Some(slot) = self.slot(queue, at, now)
        {
            slot.ended += 1;
            slot.failed += u64::from(failed);
            if let Some(took) = took {
                slot.timed += 1;
                slot.seconds += took.as_secs_f64();
            }
        }
    }

    /// Adds the rates of the last minute.
    pub(super) fn fill(&self, queues: &mut BTreeMap<QueueName, QueueRecord>, now: Timestamp) {
        let (from, to) = (slot_of(now) - WINDOW / SLOT, slot_of(now));
        for (queue, slots) in &self.0 {
            let mut sum = Slot::default();
            for slot in slots.range(from..to).map(|(_, slot)| slot) {
                sum.add(slot);
            }
            if sum == Slot::default() {
                continue;
            }
            let record = queues.entry(queue.clone()).or_default();
            #[expect(clippy::cast_precision_loss, reason = "counts of a minute")]
            let per_second = |count: u64| count as f64 / WINDOW as f64;
            record.arrival_rate = per_second(sum.arrived);
            record.service_rate = per_second(sum.ended);
            record.mean_duration = sum.mean_duration();
        }
    }

    /// What happened in each slot of the last minutes, oldest first, without the one that goes on: in `queues`, or in all.
    pub(super) fn moments(&self, queues: Option<&BTreeSet<QueueName>>, now: Timestamp) -> Vec<Moment> {
        let (from, to) = (slot_of(now) - KEPT / SLOT, slot_of(now));
        let mut sums = vec![Slot::default(); usize::try_from(to - from).unwrap_or_default()];
        for (_, slots) in self.0.iter().filter(|(queue, _)| queues.is_none_or(|own| own.contains(*queue))) {
            for (number, slot) in slots.range(from..to) {
                let place = usize::try_from(number - from).ok();
                if let Some(sum) = place.and_then(|place| sums.get_mut(place)) {
                    sum.add(slot);
                }
            }
        }
        let moment = |slot: Slot| Moment {
            arrived: slot.arrived,
            ended: slot.ended,
            failed: slot.failed,
            mean_duration: slot.mean_duration(),
        };
        sums.into_iter().map(moment).collect()
    }

    fn slot(&mut self, queue: Option<&QueueName>, at: Timestamp, now: Timestamp) -> Option<&mut Slot> {
        let (queue, oldest) = (queue?, slot_of(now) - KEPT / SLOT);
        let number = slot_of(at);
        if number < oldest || number > slot_of(now) + AHEAD / SLOT {
            return None;
        }
        if self.0.len() >= QUEUES_MAX && !self.0.contains_key(queue) {
            return None;
        }
        let slots = self.0.entry(queue.clone()).or_default();
        // What has left the window. Each slot is removed once, so this costs little.
        while slots.first_key_value().is_some_and(|(number, _)| *number < oldest) {
            slots.pop_first();
        }
        Some(slots.entry(number).or_default())
    }
}

fn slot_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(SLOT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::AttemptOutcome,
        job::{Envelope, Kind},
    };

    const NOW: i64 = 1_000_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    fn event(event_type: EventType, time: i64) -> Event {
        let (kind, queue) = (Kind::parse("a").unwrap(), QueueName::parse("q").unwrap());
        Event::of(event_type, &Envelope::new(kind, queue, bytes::Bytes::new()), "test", at(time))
    }

    fn read(rates: &Rates, now: i64) -> QueueRecord {
        let mut queues = BTreeMap::new();
        rates.fill(&mut queues, at(now));
        queues.into_values().next().unwrap_or_default()
    }

    #[test]
    fn rates_are_of_the_last_minute() {
        let mut rates = Rates::default();
        for second in -120..0 {
            rates.count(&Said::of(&event(EventType::Submitted, second)), at(0));
        }
        let mut ended = event(EventType::Succeeded, -10);
        ended.data.outcome = Some(AttemptOutcome::Succeeded);
        ended.data.started_at = Some(at(-13));
        rates.count(&Said::of(&ended), at(0));
        let now = read(&rates, 0);
        assert!((now.arrival_rate - 1.0).abs() < 1e-9, "{now:?}");
        assert!((now.service_rate - 1.0 / 60.0).abs() < 1e-9);
        assert_eq!(now.mean_duration, Some(3.0));
        let later = read(&rates, 200);
        assert_eq!((later.arrival_rate, later.mean_duration), (0.0, None));
    }

    #[test]
    fn moments_tell_how_the_last_minutes_went() {
        let mut rates = Rates::default();
        let end = |second, outcome| {
            let mut ended = event(EventType::Retrying, second);
            ended.data.outcome = Some(outcome);
            ended.data.started_at = Some(at(second - 2));
            ended
        };
        rates.count(&Said::of(&end(-300, AttemptOutcome::Failed)), at(0));
        rates.count(&Said::of(&end(-300, AttemptOutcome::Snoozed)), at(0));
        rates.count(&Said::of(&end(-700, AttemptOutcome::Failed)), at(0));
        rates.count(&Said::of(&end(1, AttemptOutcome::Succeeded)), at(2));
        let moments = rates.moments(None, at(2));
        assert_eq!(moments.len(), 120);
        let told: Vec<(usize, &Moment)> =
            moments.iter().enumerate().filter(|(_, moment)| moment.ended > 0).collect();
        let [(place, moment)] = told.as_slice() else {
            panic!("neither the old one nor the slot that goes on: {told:?}")
        };
        assert_eq!(*place, 60);
        assert_eq!((moment.arrived, moment.ended, moment.failed, moment.mean_duration), (2, 2, 1, Some(2.0)));
        let own = BTreeSet::from([QueueName::parse("other").unwrap()]);
        assert!(rates.moments(Some(&own), at(2)).iter().all(|moment| moment.ended == 0), "of another queue");
    }

    #[test]
    fn a_delayed_job_arrives_when_its_time_has_come() {
        let mut rates = Rates::default();
        let mut delayed = event(EventType::Submitted, 0);
        delayed.data.run_at = Some(at(600));
        rates.count(&Said::of(&delayed), at(0));
        assert_eq!(read(&rates, 30).arrival_rate, 0.0);
        assert!(read(&rates, 620).arrival_rate > 0.0);
        delayed.data.run_at = Some(at(AHEAD * 2));
        rates.count(&Said::of(&delayed), at(0));
        assert_eq!(rates.0.values().map(BTreeMap::len).sum::<usize>(), 1);
    }
}
