//! Reckoning: a dead-letter queue against the record.
//!
//! A dead letter may outlive what condemns it: a crash between the copy and the acknowledgement leaves two of a run, a
//! replay takes one, and when the job that it replayed has ended and is forgotten, nothing says that the other one is
//! good for nothing. And a dead job may have no letter, because the dead-letter queue was purged or deleted by hand: it
//! would be shown as one that can be replayed for ever.
//!
//! So where a dead-letter queue does not hold as many messages as the record has dead jobs that can be replayed, it is
//! gone over now and then: stale letters leave it, and dead jobs whose letter was not met are marked as purged.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tracing::{debug, info};

use super::{
    Acts, CONFIRM, Failure,
    attempt::summaries,
    letter::Facts,
    lost::{State, long_ago, purged, see},
    wanted::{Standing, standing},
};
use crate::{
    amqp::pass::{Pass, PassError},
    job::{JobId, QueueName},
    record::model::{Filter, JobStatus, Summary},
};

/// Bounds of the pause between two reckonings of a queue, in times of `record.lost_after` and in all. It doubles while
/// nothing is found.
const PAUSE: u32 = 6;
const PAUSE_MAX: Duration = Duration::from_secs(86_400);
/// Most letters looked at in one reckoning. More than a pass holds, so that each time others are met.
const LETTERS_MAX: usize = 20_000;
/// Letters, and jobs, looked at together.
const TOGETHER: usize = 100;
/// How long a job must be dead that is given up while its queue is busy: a message of its run may still wait there,
/// whose worker died before the copy in the dead-letter queue.
const SURELY: SignedDuration = SignedDuration::from_hours(24);

/// When each queue is reckoned next.
pub(super) struct Reckoning {
    lost_after: Duration,
    next: BTreeMap<QueueName, (Instant, Duration)>,
}

impl Reckoning {
    pub(super) fn new(lost_after: Duration) -> Self {
        Self { lost_after, next: BTreeMap::new() }
    }

    /// Reckons a queue, if it is due and something is wrong with it. `idle`: its work queue has been empty and idle
    /// for `record.lost_after`.
    pub(super) async fn look(&mut self, acts: &Acts, queue: &QueueName, idle: bool) {
        if self.next.get(queue).is_some_and(|(due, _)| Instant::now() < *due) {
            return;
        }
        let mended = match differ(acts, queue).await {
            Ok(true) => reckon(acts, queue, idle, self.lost_after).await,
            Ok(false) => {
                self.next.remove(queue);
                return;
            }
            Err(why) => Err(why),
        };
        let found = match mended {
            Ok(found) => found,
            Err(why) => {
                debug!(%queue, reason = why, "a dead-letter queue was not compared with the record");
                false
            }
        };
        self.put_off(queue, found, Instant::now());
    }

    fn put_off(&mut self, queue: &QueueName, found: bool, now: Instant) {
        let first = self.lost_after.saturating_mul(PAUSE).min(PAUSE_MAX);
        let pause = match self.next.get(queue) {
            Some((_, before)) if !found => before.saturating_mul(2).min(PAUSE_MAX),
            _ => first,
        };
        self.next.insert(queue.clone(), (now + pause, pause));
    }
}

/// Whether the dead-letter queue holds more, or fewer, messages than the record has dead jobs that can be replayed.
async fn differ(acts: &Acts, queue: &QueueName) -> Result<bool, String> {
    let groups = acts.record.groups(queue.clone()).await.map_err(|error| error.to_string())?;
    let depth = acts.client.dead_depth(queue).await.map_err(|error| error.to_string())?;
    let replayable: u64 = groups.iter().map(|group| group.count).sum();
    Ok(u64::from(depth.map_or(0, |depth| depth.ready)) != replayable)
}

/// What a reckoning met.
#[derive(Default)]
struct Met {
    letters: usize,
    stale: u64,
    /// Jobs with a letter that counts.
    jobs: BTreeSet<JobId>,
}

/// Goes over the queue; whether something was wrong.
async fn reckon(acts: &Acts, queue: &QueueName, idle: bool, lost_after: Duration) -> Result<bool, String> {
    let mut before = long_ago(lost_after);
    let mut met = Met::default();
    let (whole, empty) = match acts.passes.over_dead(queue, None).await {
        Ok(mut pass) => {
            let compared = compare(acts, queue, &mut pass, &mut met).await;
            let ended = pass.end().await.map_err(|error| error.to_string());
            let compared = compared?;
            ended?;
            compared
        }
        Err(PassError::NoQueue) => (true, see(acts, queue).await? != State::Busy),
        // An act is at work, or another process.
        Err(PassError::Busy) => return Ok(false),
        Err(error) => return Err(error.to_string()),
    };
    if met.stale > 0 {
        info!(%queue, letters = met.stale, "stale dead letters were removed");
    }
    let blocked = acts.publisher.link().up().is_ok_and(|up| up.is_blocked());
    let paused = acts.client.paused().contains_key(queue);
    if !whole || blocked || paused && !empty {
        return Ok(met.stale > 0);
    }
    if !idle || !empty {
        before = before.min(Timestamp::now().checked_sub(SURELY).unwrap_or(Timestamp::MIN));
    }
    let given_up = give_up(acts, queue, before, &met.jobs).await?;
    Ok(met.stale > 0 || given_up > 0)
}

/// Removes stale letters; whether all were met, and whether nothing waits in the work queue.
async fn compare(
    acts: &Acts,
    queue: &QueueName,
    pass: &mut Pass,
    met: &mut Met,
) -> Result<(bool, bool), String> {
    let whole = go_over(acts, queue, pass, met).await?;
    let empty = match see(acts, queue).await? {
        State::Busy => false,
        State::Idle => pass.no_jobs().await.map_err(|error| error.to_string())?,
        State::Gone => true,
    };
    Ok((whole, empty))
}

/// Removes stale letters; whether every letter of the queue was met, and nothing takes from it but passes.
async fn go_over(acts: &Acts, queue: &QueueName, pass: &mut Pass, met: &mut Met) -> Result<bool, String> {
    let lost = |error: PassError| error.to_string();
    while met.letters < LETTERS_MAX {
        let letters = pass.take(TOGETHER).await.map_err(lost)?;
        if letters.is_empty() {
            break;
        }
        met.letters += letters.len();
        acts.catch_up().await.map_err(|error| error.to_string())?;
        let facts: Vec<Facts> =
            letters.iter().map(|letter| Facts::of(&letter.incoming.message, queue)).collect();
        let ids = facts.iter().map(|facts| facts.id).collect();
        let known = summaries(&acts.record, ids).await.map_err(|error| error.to_string())?;
        let mut stay = Vec::with_capacity(letters.len());
        for ((letter, facts), known) in letters.into_iter().zip(facts).zip(known) {
            if standing(facts.run, known.as_ref()) == Standing::Stale {
                pass.done(&letter).await.map_err(lost)?;
                met.stale += 1;
            } else {
                met.jobs.insert(facts.id);
                stay.push(letter);
            }
        }
        pass.leave_all(stay, Instant::now() + CONFIRM).await.map_err(lost)?;
    }
    let consumers = acts.client.dead_depth(queue).await.map_err(|error| error.to_string())?;
    let alone = consumers.is_none_or(|depth| depth.consumers == 0);
    Ok(alone && pass.has_met_all().await.map_err(lost)?)
}

/// Marks dead jobs that have no letter, and died before `before`, as purged; how many.
async fn give_up(
    acts: &Acts,
    queue: &QueueName,
    before: Timestamp,
    met: &BTreeSet<JobId>,
) -> Result<u64, String> {
    acts.catch_up().await.map_err(|error| error.to_string())?;
    let filter = Filter { queue: Some(queue.clone()), status: vec![JobStatus::Dead], ..Filter::default() };
    let (mut after, mut given_up) = (None, 0);
    loop {
        let page = acts.record.jobs(filter.clone(), TOGETHER, after).await;
        let page = page.map_err(|error| error.to_string())?;
        let gone: Vec<&Summary> =
            page.items.iter().filter(|job| is_given_up(job, before) && !met.contains(&job.id)).collect();
        if !gone.is_empty() {
            let now = Timestamp::now();
            let events = gone.iter().map(|job| purged(acts, job, "its dead message is gone", now)).collect();
            acts.write(events).await.map_err(|failure| match failure {
                Failure::Refused(why) | Failure::Broker(why) => why,
            })?;
            gone.iter().for_each(|job| acts.record.touch(job.id));
            given_up += gone.len() as u64;
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if given_up > 0 {
        info!(%queue, jobs = given_up, "dead jobs without a dead message cannot be replayed");
    }
    Ok(given_up)
}

/// Whether a job that has no letter will have none.
fn is_given_up(job: &Summary, before: Timestamp) -> bool {
    job.status == JobStatus::Dead && !job.purged && job.finished_at.is_some_and(|at| at < before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_found_in_order_is_reckoned_less_and_less() {
        let mut reckoning = Reckoning::new(Duration::from_secs(600));
        let (queue, now) = (QueueName::parse("q").unwrap(), Instant::now());
        let mut pauses = Vec::new();
        for found in [false, false, false, true, false, false, false, false, false, false] {
            reckoning.put_off(&queue, found, now);
            pauses.push(reckoning.next[&queue].1.as_secs() / 3600);
        }
        assert_eq!(pauses, [1, 2, 4, 1, 2, 4, 8, 16, 24, 24], "in hours");
    }

    #[test]
    fn only_what_died_long_ago_and_can_be_replayed_is_given_up() {
        let (before, at) = (Timestamp::from_second(100).unwrap(), Timestamp::from_second(99).unwrap());
        let dead = Summary { status: JobStatus::Dead, finished_at: Some(at), ..Summary::sample() };
        assert!(is_given_up(&dead, before));
        for other in [
            Summary { finished_at: Some(before), ..dead.clone() },
            Summary { finished_at: None, ..dead.clone() },
            Summary { purged: true, ..dead.clone() },
            Summary { status: JobStatus::Succeeded, ..dead },
        ] {
            assert!(!is_given_up(&other, before), "{other:?}");
        }
    }
}
