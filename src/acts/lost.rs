//! Finding jobs whose message is gone: deleted or purged by hand, with its queue, or with the broker's disk.
//!
//! A job that is waiting, or running, while its queue has been empty and idle for `record.lost_after` has no message
//! any more. It ends dead, reason `lost`; from its args, if the record has them, a message is made for the dead-letter
//! queue, so that it can be replayed. Should its message turn up after all, what a handler finishes outranks this. One
//! whose cancellation was asked for ends cancelled.
//!
//! One that is due, but was submitted before the broker was connected last, may be late: a broker that is started again
//! lets the levels of the delay ladder begin anew. It has its whole delay once more.
//!
//! Empty: a get finds nothing. The broker's count says 0 also where it does not know.
//!
//! Idle: no worker's heartbeat shows a job of the queue, and heartbeats are heard: this process's own worker is one that
//! sends them. Workers that send none (of other languages) are not seen: what they hold longer than `record.lost_after`
//! while their queue is empty counts as lost until they end it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{Acts, Failure, event_error, reckon::Reckoning};
use crate::{
    amqp::{
        heartbeats,
        pass::{Lock, PassError},
    },
    event::{Data, Event, EventType},
    job::{
        Envelope, QueueName,
        dead::{self, Death, Reason},
    },
    record::model::{CancelRequest, Counts, JobRecord, JobStatus, Summary},
};

/// Bounds of the pause between two looks.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Jobs ended together.
const TOGETHER: usize = 200;

/// Looks for lost jobs again and again, until told to stop.
pub(super) async fn watch(acts: Acts) {
    let lost_after = acts.config.record.lost_after;
    let pause = (lost_after / 4).clamp(LOOK_MIN, LOOK_MAX);
    let mut idle = Idle::default();
    let mut reckoning = Reckoning::new(lost_after);
    while acts.stop.run_until_cancelled(sleep(pause)).await.is_some() {
        if !acts.record.is_caught_up() {
            idle.forget();
            continue;
        }
        let looking = look(&acts, &mut idle, &mut reckoning, lost_after);
        match acts.stop.run_until_cancelled(looking).await {
            Some(Ok(())) => {}
            Some(Err(why)) => {
                // Nothing is known of the time in between.
                idle.forget();
                debug!(reason = why, "cannot look for lost jobs");
            }
            None => return,
        }
    }
}

/// Since when each queue has been empty and idle, at every look.
#[derive(Debug, Default)]
struct Idle {
    queues: BTreeMap<QueueName, Instant>,
    /// Since when heartbeats are heard.
    hearing: Option<Instant>,
    /// The connection at the last look, and when it was seen first.
    connected: Option<(u64, Timestamp)>,
}

impl Idle {
    fn forget(&mut self) {
        self.queues.clear();
    }

    /// Since when this connection is there, at the latest.
    fn connected(&mut self, epoch: u64, now: Timestamp) -> Timestamp {
        let (_, since) = *self.connected.take_if(|(known, _)| *known == epoch).get_or_insert((epoch, now));
        self.connected = Some((epoch, since));
        since
    }

    /// Whether heartbeats have been heard for so long that every worker has said something.
    fn hears(&mut self, now: Instant, anything: bool) -> bool {
        if !anything {
            self.hearing = None;
            return false;
        }
        now.saturating_duration_since(*self.hearing.get_or_insert(now)) >= heartbeats::EVERY * 2
    }

    /// Takes in a look at queues; those that were idle for `long` at each look.
    fn look(
        &mut self,
        now: Instant,
        seen: &BTreeMap<QueueName, bool>,
        long: Duration,
    ) -> BTreeSet<QueueName> {
        self.queues.retain(|queue, _| seen.get(queue) == Some(&true));
        for queue in seen.iter().filter(|(_, idle)| **idle).map(|(queue, _)| queue) {
            self.queues.entry(queue.clone()).or_insert(now);
        }
        let ripe = self.queues.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= long);
        ripe.map(|(queue, _)| queue.clone()).collect()
    }
}

/// Whether there are jobs that wait or run, or are due.
fn has_open(counts: &Counts) -> bool {
    use JobStatus::{Queued, Retrying, Running, Scheduled};
    [Queued, Running, Scheduled, Retrying].into_iter().any(|status| counts.of(status) > 0)
}

async fn look(
    acts: &Acts,
    idle: &mut Idle,
    reckoning: &mut Reckoning,
    lost_after: Duration,
) -> Result<(), String> {
    if !idle.hears(Instant::now(), !acts.client.workers().is_empty()) {
        idle.forget();
        return Ok(());
    }
    let epoch = acts.publisher.link().up().map_err(|down| down.0)?.epoch;
    let connected = idle.connected(epoch, Timestamp::now());
    let queues = acts.record.queues().await.map_err(|error| error.to_string())?;
    let mut seen = BTreeMap::new();
    for (queue, known) in &queues {
        if has_open(&known.counts) {
            let is_idle = see(acts, queue).await? != State::Busy;
            seen.insert(queue.clone(), is_idle);
        }
    }
    let ripe = idle.look(Instant::now(), &seen, lost_after);
    for queue in &ripe {
        if !end_lost(acts, queue, connected, lost_after).await? {
            idle.queues.remove(queue);
        }
    }
    for queue in queues.keys() {
        reckoning.look(acts, queue).await;
    }
    Ok(())
}

/// What is to be seen of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Something waits in it, or a worker has a job of it, or that cannot be told.
    Busy,
    /// Nothing waits, as far as the broker's count tells, and no worker has a job of it.
    Idle,
    /// There is no such queue, and no worker has a job of it.
    Gone,
}

/// Looks at a work queue.
pub(super) async fn see(acts: &Acts, queue: &QueueName) -> Result<State, String> {
    if acts.publisher.link().up().is_ok_and(|up| up.is_blocked()) {
        // During an alarm there are no heartbeats.
        return Ok(State::Busy);
    }
    let depth = acts.client.depth(queue).await.map_err(|error| error.to_string())?;
    let workers = acts.client.workers();
    let busy = workers
        .iter()
        .flat_map(|worker| &worker.queues)
        .any(|share| share.queue == *queue && (share.running > 0 || share.waiting > 0));
    Ok(match depth {
        _ if busy => State::Busy,
        None => State::Gone,
        Some(depth) if depth.ready == 0 => State::Idle,
        Some(_) => State::Busy,
    })
}

/// Before when something must have happened so that it counts as long ago. A worker that has just taken a job may not
/// have said so yet.
pub(super) fn long_ago(lost_after: Duration) -> Timestamp {
    let old = lost_after.saturating_add(heartbeats::EVERY * 2);
    let old = SignedDuration::try_from(old).unwrap_or(SignedDuration::MAX);
    Timestamp::now().checked_sub(old).unwrap_or(Timestamp::MIN)
}

/// Ends the jobs of a queue that have no message any more; false: there is a message.
async fn end_lost(
    acts: &Acts,
    queue: &QueueName,
    connected: Timestamp,
    lost_after: Duration,
) -> Result<bool, String> {
    // One process does it; the others see what it wrote.
    let lock = match acts.passes.lock(queue).await {
        Ok(lock) => lock,
        Err(PassError::Busy) => return Ok(true),
        Err(error) => return Err(error.to_string()),
    };
    let ended = end_all(acts, queue, &lock, connected, lost_after).await;
    lock.release().await;
    ended
}

async fn end_all(
    acts: &Acts,
    queue: &QueueName,
    lock: &Lock,
    connected: Timestamp,
    lost_after: Duration,
) -> Result<bool, String> {
    loop {
        acts.catch_up().await.map_err(|error| error.to_string())?;
        let found = acts.record.waiting_since(queue.clone(), long_ago(lost_after), connected, TOGETHER).await;
        let found = found.map_err(|error| error.to_string())?;
        if found.is_empty() {
            return Ok(true);
        }
        // A message may have come meanwhile; and the count may have been none.
        let empty = match see(acts, queue).await? {
            State::Busy => false,
            State::Idle => lock.no_jobs().await.map_err(|error| error.to_string())?,
            State::Gone => true,
        };
        if !empty {
            return Ok(false);
        }
        for job in &found {
            end_one(acts, job).await?;
        }
        if found.len() < TOGETHER {
            return Ok(true);
        }
    }
}

async fn end_one(acts: &Acts, job: &Summary) -> Result<(), String> {
    let record = acts.record.job(job.id, Duration::ZERO).await.map_err(|error| error.to_string())?;
    let now = Timestamp::now();
    let failed = |failure| match failure {
        Failure::Refused(why) | Failure::Broker(why) => why,
    };
    let events = if let Some(cancel) = &job.cancel {
        info!(job.id = %job.id, queue = %job.queue, "cancelled: its message is gone");
        vec![cancelled(acts, job, cancel, now)]
    } else {
        let envelope = record.as_ref().and_then(envelope);
        let detail = match &envelope {
            Some(_) => "its message is gone: it was deleted or purged in the broker",
            None => {
                "its message is gone: it was deleted or purged in the broker; its args are not in the record, so it \
                 cannot be replayed"
            }
        };
        warn!(job.id = %job.id, queue = %job.queue, "dead: lost");
        let lost = lost(acts, job, detail, now);
        match envelope {
            // The copy first: nothing would make it later, and one without an end is only stale.
            Some(envelope) => {
                let code = Reason::Lost.as_str();
                let (reason, attempts) = (Reason::Lost, job.attempt);
                let death = Death { reason, code, error: detail, attempts, worker: &acts.instance, at: now };
                let copy = dead::mark(envelope.encode(), &death);
                acts.publish_dead(&job.queue, &copy).await.map_err(failed)?;
                vec![lost]
            }
            None => vec![lost, purged(acts, job, "there is no message left", now)],
        }
    };
    acts.write(events).await.map_err(failed)?;
    acts.record.touch(job.id);
    Ok(())
}

fn lost(acts: &Acts, job: &Summary, detail: &str, now: Timestamp) -> Event {
    let mut event = event(acts, EventType::DeliveryLost, job, now);
    event.data.finished_at = Some(now);
    event.data.error = Some(event_error(Reason::Lost.as_str(), detail));
    event.data.reason = Some(Reason::Lost.as_str().to_owned());
    event
}

fn cancelled(acts: &Acts, job: &Summary, cancel: &CancelRequest, now: Timestamp) -> Event {
    let mut event = event(acts, EventType::Cancelled, job, now);
    event.data.finished_at = Some(now);
    (event.data.by, event.data.reason) = (cancel.by.clone(), cancel.reason.clone());
    event
}

/// Says that a dead job has no message, so that it cannot be replayed.
pub(super) fn purged(acts: &Acts, job: &Summary, why: &str, now: Timestamp) -> Event {
    let mut event = event(acts, EventType::Purged, job, now);
    event.data.reason = Some(why.to_owned());
    event
}

pub(super) fn event(acts: &Acts, event_type: EventType, job: &Summary, now: Timestamp) -> Event {
    let data = Data {
        kind: job.kind.clone(),
        queue: Some(job.queue.clone()),
        run: job.run,
        attempt: job.attempt.max(1),
        step: job.step,
        max_attempts: job.max_attempts,
        created_at: job.created_at,
        expires_at: job.expires_at,
        tags: job.tags.clone(),
        ..Data::default()
    };
    Event { event_type, job: job.id, source: acts.instance.clone(), time: now, data }
}

/// The job as the record knows it, if that is enough to run it: what it said of its timeout and its retries is gone.
fn envelope(record: &JobRecord) -> Option<Envelope> {
    let job = &record.summary;
    let args = record.args.as_ref()?.get().as_bytes();
    let mut envelope = Envelope::new(job.kind.clone()?, job.queue.clone(), Bytes::copy_from_slice(args));
    envelope.id = job.id;
    (envelope.run, envelope.attempt, envelope.step) = (job.run, job.attempt.max(1), job.step);
    envelope.max_attempts = job.max_attempts;
    envelope.created_at = job.created_at;
    envelope.tags.clone_from(&job.tags);
    envelope.unsure = true;
    Some(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    #[test]
    fn a_queue_is_given_up_only_after_it_was_idle_all_the_time() {
        let (mut idle, start, long) = (Idle::default(), Instant::now(), Duration::from_secs(10));
        let mut look = |second, state: &[(&str, bool)]| {
            let seen = state.iter().map(|(name, is_idle)| (queue(name), *is_idle)).collect();
            idle.look(start + Duration::from_secs(second), &seen, long)
        };
        let some = |names: &[&str]| names.iter().map(|name| queue(name)).collect::<BTreeSet<_>>();
        assert_eq!(look(0, &[("a", true), ("b", true), ("c", false)]), some(&[]));
        assert_eq!(look(5, &[("a", true), ("b", false), ("c", true)]), some(&[]));
        assert_eq!(look(10, &[("a", true), ("b", true), ("c", true)]), some(&["a"]));
        assert_eq!(look(15, &[("b", true), ("c", true)]), some(&["c"]), "a has no open jobs any more");
        assert_eq!(look(20, &[("a", true), ("b", true), ("c", true)]), some(&["b", "c"]));
    }

    #[test]
    fn a_connection_counts_from_when_it_was_seen_first() {
        let (mut idle, at) = (Idle::default(), |second| Timestamp::from_second(second).unwrap());
        for (epoch, now, since) in [(1, 10, 10), (1, 20, 10), (3, 30, 30), (3, 40, 30)] {
            assert_eq!(idle.connected(epoch, at(now)), at(since));
            idle.forget();
        }
    }

    #[test]
    fn silence_is_no_idleness() {
        let (mut idle, start, every) = (Idle::default(), Instant::now(), heartbeats::EVERY);
        for (periods, anything, hears) in [
            (0, false, false),
            (9, false, false),
            (10, true, false),
            (11, true, false),
            (12, true, true),
            (13, false, false),
            (14, true, false),
            (16, true, true),
        ] {
            assert_eq!(idle.hears(start + every * periods, anything), hears, "{periods}");
        }
    }
}
