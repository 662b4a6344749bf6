//! Reckoning: a dead-letter queue against the record.
//!
//! A dead letter may outlive what condemns it: a crash between the copy and the acknowledgement leaves two of a run, a
//! replay takes one, and when the job that it replayed has ended and is forgotten, nothing says that the other one is
//! good for nothing. So where a dead-letter queue holds more messages than the record has dead jobs that can be
//! replayed, it is gone over now and then, and stale letters leave it.
//!
//! Not done: marking dead jobs whose letter is not met. It may be in somebody's hands (a consumer, a shovel), and what is
//! marked as purged would be thrown away when it comes back.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use tracing::{debug, info};

use super::{
    Acts, CONFIRM,
    attempt::summaries,
    letter::Facts,
    wanted::{Standing, standing},
};
use crate::{
    amqp::pass::{Pass, PassError},
    job::QueueName,
};

/// Bounds of the pause between two reckonings of a queue, in times of `record.lost_after` and in all. It doubles while
/// nothing is found.
const PAUSE: u32 = 6;
const PAUSE_MAX: Duration = Duration::from_secs(86_400);
/// Most letters looked at in one reckoning. More than a pass holds, so that each time others are met.
const LETTERS_MAX: usize = 20_000;
/// Letters looked at together.
const TOGETHER: usize = 100;

/// When each queue is reckoned next.
pub(super) struct Reckoning {
    lost_after: Duration,
    next: BTreeMap<QueueName, (Instant, Duration)>,
}

impl Reckoning {
    pub(super) fn new(lost_after: Duration) -> Self {
        Self { lost_after, next: BTreeMap::new() }
    }

    /// Reckons a queue, if it is due and holds too much.
    pub(super) async fn look(&mut self, acts: &Acts, queue: &QueueName) {
        if self.next.get(queue).is_some_and(|(due, _)| Instant::now() < *due) {
            return;
        }
        let mended = match holds_more(acts, queue).await {
            Ok(true) => reckon(acts, queue).await,
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

/// Whether the dead-letter queue holds more messages than the record has dead jobs that can be replayed.
async fn holds_more(acts: &Acts, queue: &QueueName) -> Result<bool, String> {
    let groups = acts.record.groups(queue.clone()).await.map_err(|error| error.to_string())?;
    let depth = acts.client.dead_depth(queue).await.map_err(|error| error.to_string())?;
    let replayable: u64 = groups.iter().map(|group| group.count).sum();
    Ok(depth.is_some_and(|depth| u64::from(depth.ready) > replayable))
}

/// Goes over the queue; whether something was wrong.
async fn reckon(acts: &Acts, queue: &QueueName) -> Result<bool, String> {
    let mut pass = match acts.passes.over_dead(queue, None).await {
        Ok(pass) => pass,
        // The queue is gone; or an act is at work, or another process.
        Err(PassError::NoQueue | PassError::Busy) => return Ok(false),
        Err(error) => return Err(error.to_string()),
    };
    let gone_over = go_over(acts, queue, &mut pass).await;
    pass.end().await.map_err(|error| error.to_string())?;
    let stale = gone_over?;
    if stale > 0 {
        info!(%queue, letters = stale, "stale dead letters were removed");
    }
    Ok(stale > 0)
}

/// Removes stale letters; how many.
async fn go_over(acts: &Acts, queue: &QueueName, pass: &mut Pass) -> Result<u64, String> {
    let lost = |error: PassError| error.to_string();
    let (mut met, mut stale) = (0, 0);
    while met < LETTERS_MAX {
        let letters = pass.take(TOGETHER).await.map_err(lost)?;
        if letters.is_empty() {
            break;
        }
        met += letters.len();
        acts.catch_up().await.map_err(|error| error.to_string())?;
        let facts: Vec<Facts> =
            letters.iter().map(|letter| Facts::of(&letter.incoming.message, queue)).collect();
        let ids = facts.iter().map(|facts| facts.id).collect();
        let known = summaries(&acts.record, ids).await.map_err(|error| error.to_string())?;
        let mut stay = Vec::with_capacity(letters.len());
        for ((letter, facts), known) in letters.into_iter().zip(facts).zip(known) {
            if standing(facts.run, known.as_ref()) == Standing::Stale {
                pass.done(&letter).await.map_err(lost)?;
                stale += 1;
            } else {
                stay.push(letter);
            }
        }
        pass.leave_all(stay, Instant::now() + CONFIRM).await.map_err(lost)?;
    }
    Ok(stale)
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
}
