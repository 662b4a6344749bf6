//! Finding jobs whose message is gone: deleted or purged by hand, with its queue, or with the broker's disk.
//!
//! A job that is waiting, or running, while its queue has been empty and idle for `record.lost_after` has no message
//! any more. It ends dead, reason `lost`; from its args, if the record has them, a message is made for the dead-letter
//! queue, so that it can be replayed. Should its message turn up after all, what a handler finishes outranks this.
//!
//! Idle: no worker's heartbeat shows a job of the queue. Workers that send none (of other languages) are not seen: what
//! they hold longer than `record.lost_after` while their queue is empty counts as lost until they end it.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{Acts, Failure, event_error};
use crate::{
    amqp::{heartbeats, pass::PassError},
    event::{Data, Event, EventType},
    job::{
        Envelope, QueueName,
        dead::{self, Death, Reason},
    },
    record::model::{Counts, JobRecord, JobStatus, Summary},
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
    while acts.stop.run_until_cancelled(sleep(pause)).await.is_some() {
        if !acts.record.is_caught_up() {
            idle.0.clear();
            continue;
        }
        let looking = look(&acts, &mut idle, lost_after);
        match acts.stop.run_until_cancelled(looking).await {
            Some(Ok(())) => {}
            Some(Err(why)) => {
                // Nothing is known of the time in between.
                idle.0.clear();
                debug!(reason = why, "cannot look for lost jobs");
            }
            None => return,
        }
    }
}

/// Since when each queue has been empty and idle, at every look.
#[derive(Debug, Default)]
struct Idle(BTreeMap<QueueName, Instant>);

impl Idle {
    /// Takes in a look at all queues with open jobs; those that were idle for `long` at each look.
    fn look(&mut self, now: Instant, seen: &BTreeMap<QueueName, bool>, long: Duration) -> Vec<QueueName> {
        self.0.retain(|queue, _| seen.get(queue) == Some(&true));
        for queue in seen.iter().filter(|(_, idle)| **idle).map(|(queue, _)| queue) {
            self.0.entry(queue.clone()).or_insert(now);
        }
        let ripe = self.0.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= long);
        ripe.map(|(queue, _)| queue.clone()).collect()
    }
}

/// Whether there are jobs that wait or run, or are due.
fn has_open(counts: &Counts) -> bool {
    use JobStatus::{Queued, Retrying, Running, Scheduled};
    [Queued, Running, Scheduled, Retrying].into_iter().any(|status| counts.of(status) > 0)
}

async fn look(acts: &Acts, idle: &mut Idle, lost_after: Duration) -> Result<(), String> {
    let queues = acts.record.queues().await.map_err(|error| error.to_string())?;
    let mut seen = BTreeMap::new();
    for (queue, known) in queues {
        if has_open(&known.counts) {
            let is_idle = is_idle(acts, &queue).await?;
            seen.insert(queue, is_idle);
        }
    }
    for queue in idle.look(Instant::now(), &seen, lost_after) {
        end_lost(acts, &queue, lost_after).await?;
    }
    Ok(())
}

/// Whether nothing waits in the queue, and no worker has a job of it.
async fn is_idle(acts: &Acts, queue: &QueueName) -> Result<bool, String> {
    if acts.publisher.link().up().is_ok_and(|up| up.is_blocked()) {
        // During an alarm there are no heartbeats.
        return Ok(false);
    }
    let depth = acts.client.depth(queue).await.map_err(|error| error.to_string())?;
    let workers = acts.client.workers();
    let busy = workers
        .iter()
        .flat_map(|worker| &worker.queues)
        .any(|share| share.queue == *queue && (share.running > 0 || share.waiting > 0));
    // A queue that is gone is empty.
    Ok(!busy && depth.is_none_or(|depth| depth.ready == 0))
}

/// Ends the jobs of a queue that have no message any more.
async fn end_lost(acts: &Acts, queue: &QueueName, lost_after: Duration) -> Result<(), String> {
    // One process does it; the others see what it wrote.
    let lock = match acts.passes.lock(queue).await {
        Ok(lock) => lock,
        Err(PassError::Busy) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let ended = end_all(acts, queue, lost_after).await;
    lock.release().await;
    ended
}

async fn end_all(acts: &Acts, queue: &QueueName, lost_after: Duration) -> Result<(), String> {
    // A worker that has just taken a job may not have said so yet.
    let old = lost_after.saturating_add(heartbeats::EVERY * 2);
    let old = SignedDuration::try_from(old).unwrap_or(SignedDuration::MAX);
    loop {
        acts.catch_up().await.map_err(|error| error.to_string())?;
        let before = Timestamp::now().checked_sub(old).unwrap_or(Timestamp::MIN);
        let found = acts.record.waiting_since(queue.clone(), before, TOGETHER).await;
        let found = found.map_err(|error| error.to_string())?;
        // A message may have come meanwhile.
        if found.is_empty() || !is_idle(acts, queue).await? {
            return Ok(());
        }
        for job in &found {
            end_one(acts, job).await?;
        }
        if found.len() < TOGETHER {
            return Ok(());
        }
    }
}

async fn end_one(acts: &Acts, job: &Summary) -> Result<(), String> {
    let record = acts.record.job(job.id, Duration::ZERO).await.map_err(|error| error.to_string())?;
    let now = Timestamp::now();
    let envelope = record.as_ref().and_then(envelope);
    let detail = match &envelope {
        Some(_) => "its message is gone: it was deleted or purged in the broker",
        None => {
            "its message is gone: it was deleted or purged in the broker; its args are not in the record, so it \
             cannot be replayed"
        }
    };
    warn!(job.id = %job.id, queue = %job.queue, "dead: lost");
    let failed = |failure| match failure {
        Failure::Refused(why) | Failure::Broker(why) => why,
    };
    // The copy first: nothing would make it later, and one without an end is only stale.
    if let Some(envelope) = envelope {
        let code = Reason::Lost.as_str();
        let (reason, attempts) = (Reason::Lost, job.attempt);
        let death = Death { reason, code, error: detail, attempts, worker: &acts.instance, at: now };
        let copy = dead::mark(envelope.encode(), &death);
        acts.publish_dead(&job.queue, &copy).await.map_err(failed)?;
    }
    acts.write(vec![event(acts, job, detail, now)]).await.map_err(failed)?;
    acts.record.touch(job.id);
    Ok(())
}

fn event(acts: &Acts, job: &Summary, detail: &str, now: Timestamp) -> Event {
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
        finished_at: Some(now),
        error: Some(event_error(Reason::Lost.as_str(), detail)),
        reason: Some(Reason::Lost.as_str().to_owned()),
        ..Data::default()
    };
    Event { event_type: EventType::DeliveryLost, job: job.id, source: acts.instance.clone(), time: now, data }
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
        assert_eq!(look(0, &[("a", true), ("b", true), ("c", false)]), []);
        assert_eq!(look(5, &[("a", true), ("b", false), ("c", true)]), []);
        assert_eq!(look(10, &[("a", true), ("b", true), ("c", true)]), [queue("a")]);
        assert_eq!(look(15, &[("b", true), ("c", true)]), [queue("c")], "a has no open jobs any more");
        assert_eq!(look(20, &[("a", true), ("b", true), ("c", true)]), [queue("b"), queue("c")]);
    }
}
