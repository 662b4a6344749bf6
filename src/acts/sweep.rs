//! Going over dead-letter queues: replaying what is wanted, or purging it.
//!
//! A dead message leaves its queue exactly when what follows is confirmed: the job of the next run and its event, or
//! the event that it was purged. One that the record has left behind (its job was replayed by other means, or ended
//! otherwise after all) leaves it without anything, also where it is not among what is wanted: a job is forgotten some
//! time after its end, and then nothing would tell that such a message is good for nothing.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Acts, CONFIRM, Failure,
    attempt::{Attempt, failed, passing},
    is_own,
    letter::{Facts, next_run, next_run_raw},
    tally::At,
    wanted::{Standing, Wanted, standing},
    words::{Done, IDS_MAX, Replay},
};
use crate::{
    amqp::{
        Names,
        pass::{Letter, Pass, PassError},
    },
    event::{Event, EventType},
    job::{JobError, JobId, JobResult, QueueName, ResultExt, json, wire::Message},
    worker::Context,
};

/// Jobs on their way at the same time.
const TOGETHER: usize = 64;

/// A job whose next run was begun, or not.
type Sent = (Letter, Facts, Result<(), Failure>);
/// Jobs on their way.
type Sending = FuturesUnordered<BoxFuture<'static, Sent>>;

/// Replays dead jobs.
pub(super) async fn replay(job: Replay, cx: Context<Acts>) -> JobResult<Done> {
    check_ids(job.ids.as_deref())?;
    let wanted = Wanted::new(&job.filter, job.ids.as_deref(), Some(cx.job_id())).fatal("bad_args")?;
    let set = match &job.set {
        Some(set) => {
            json::check(set.args.get().as_bytes()).fatal("bad_args")?;
            Some(Bytes::copy_from_slice(set.args.get().as_bytes()))
        }
        None => None,
    };
    let (queue, ids) = (job.filter.queue.clone(), job.ids.clone());
    let attempt = Attempt::begin(cx, job.expected, job.rate).await?;
    Sweep::new(attempt, wanted, Deed::Replay { set, by: job.by }).over(queue, ids).await
}

/// Checks how many jobs are named.
pub(super) fn check_ids(ids: Option<&[JobId]>) -> JobResult<()> {
    match ids {
        Some(ids) if ids.len() > IDS_MAX => {
            Err(JobError::fatal("bad_args", format!("at most {IDS_MAX} ids")))
        }
        _ => Ok(()),
    }
}

/// What is done with a wanted message.
pub(super) enum Deed {
    /// Its job's next run begins.
    Replay { set: Option<Bytes>, by: Option<String> },
    /// It is removed for good.
    Purge { by: Option<String>, reason: Option<String> },
}

/// An act over dead-letter queues.
pub(super) struct Sweep {
    attempt: Attempt,
    wanted: Wanted,
    /// The queue that messages must belong to, also where they lie nowhere; none: any.
    only: Option<QueueName>,
    deed: Deed,
    /// Of those that failed: how many this pass holds, so that the next one meets them again.
    failed: u64,
}

impl Sweep {
    pub(super) fn new(attempt: Attempt, wanted: Wanted, deed: Deed) -> Self {
        Self { attempt, wanted, only: None, deed, failed: 0 }
    }

    /// Does it: in `queue`; in those of the jobs `ids`, as the record knows them; else in all.
    pub(super) async fn over(mut self, queue: Option<QueueName>, ids: Option<Vec<JobId>>) -> JobResult<Done> {
        let named = ids.as_ref().map_or(0, |ids| ids.iter().collect::<BTreeSet<_>>().len() as u64);
        let mut queues = match (&queue, ids) {
            (None, Some(ids)) => self.queues_of(&ids).await?,
            (queue, _) => self.attempt.queues(queue.as_ref()).await?.into_iter().collect(),
        };
        queues.extend(self.elsewhere().await);
        self.only = queue.filter(|queue| *queue != Names::nowhere());
        for queue in queues {
            let left = match &self.attempt.tally.at {
                // An earlier attempt was done with it.
                Some(at) if queue < at.queue => continue,
                Some(at) if queue == at.queue => at.left,
                _ => None,
            };
            if left != Some(0) && !self.found_all() {
                self.over_queue(&queue, left).await?;
            }
        }
        let missing = named.saturating_sub(self.attempt.tally.matched());
        Ok(self.attempt.tally.end(missing))
    }

    async fn queues_of(&self, ids: &[JobId]) -> JobResult<BTreeSet<QueueName>> {
        let mut queues = BTreeSet::new();
        for id in ids {
            queues.extend(self.attempt.job(*id).await?.map(|job| job.queue));
        }
        Ok(queues)
    }

    /// Where jobs lie whose queue had no dead-letter queue. Usually there are none.
    async fn elsewhere(&self) -> Option<QueueName> {
        let nowhere = Names::nowhere();
        let depth = self.attempt.acts().client.dead_depth(&nowhere).await;
        depth.is_ok_and(|depth| depth.is_some_and(|depth| depth.ready > 0)).then_some(nowhere)
    }

    /// Goes over a queue, or over the first so many messages of it: what has come to its tail since the act began, by
    /// itself or sent there by a pass, is not met.
    async fn over_queue(&mut self, queue: &QueueName, mut left: Option<u64>) -> JobResult<()> {
        loop {
            self.is_at(queue, left);
            self.attempt.check()?;
            let mut pass = match self.attempt.acts().passes.over_dead(queue, left).await {
                Ok(pass) => pass,
                Err(PassError::NoQueue) => break,
                Err(error) => return Err(self.attempt.not_begun(error)),
            };
            let swept = self.over_letters(&mut pass, queue).await;
            let late = pass.is_late();
            left = pass.rest();
            // Also after an error: a pass that is dropped may lose acknowledgements.
            let ended = pass.end().await.map_err(passing);
            swept.and(ended)?;
            if !late || self.found_all() {
                break;
            }
            if self.wanted.ids.is_none() {
                // Those that are named are wanted once in an attempt.
                self.attempt.tally.failed -= std::mem::take(&mut self.failed);
            }
        }
        self.failed = 0;
        self.is_at(queue, Some(0));
        Ok(())
    }

    async fn over_letters(&mut self, pass: &mut Pass, queue: &QueueName) -> JobResult<()> {
        loop {
            self.attempt.check()?;
            let letters = pass.take(self.attempt.window()).await.map_err(passing)?;
            if letters.is_empty() || self.found_all() {
                return Ok(());
            }
            let dealt_with = self.window(pass, queue, letters).await;
            self.is_at(queue, pass.rest());
            self.attempt.tell();
            dealt_with?;
        }
    }

    /// So many messages of `queue` are still to be met.
    fn is_at(&mut self, queue: &QueueName, left: Option<u64>) {
        self.attempt.tally.at = Some(At { queue: queue.clone(), left, failed: self.failed });
    }

    /// Whether every job that was named has been met.
    fn found_all(&self) -> bool {
        self.wanted.ids.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Deals with some messages of `queue`.
    async fn window(&mut self, pass: &mut Pass, queue: &QueueName, letters: Vec<Letter>) -> JobResult<()> {
        let letters = letters.into_iter().map(|letter| {
            let facts = Facts::of(&letter.incoming.message, queue);
            (letter, facts)
        });
        let (ours, others): (Vec<_>, Vec<_>) = letters.partition(|(_, facts)| {
            self.only.as_ref().is_none_or(|only| *only == facts.queue) && self.wanted.has(facts)
        });
        // What is stale now stays stale, so the record need not have caught up.
        let known = self.attempt.known(ids_of(&others)).await?;
        let mut stay = Vec::with_capacity(others.len());
        for ((letter, facts), known) in others.into_iter().zip(known) {
            if standing(facts.run, known.as_ref()) == Standing::Stale {
                pass.done(&letter).await.map_err(passing)?;
            } else {
                stay.push(letter);
            }
        }
        pass.leave_all(stay, Instant::now() + CONFIRM).await.map_err(passing)?;
        if ours.is_empty() {
            return Ok(());
        }
        let current = self.current(pass, ours).await?;
        match &self.deed {
            Deed::Replay { set, by } => {
                let (set, by) = (set.clone(), by.clone());
                self.replay(pass, current, set.as_ref(), by.as_ref()).await
            }
            Deed::Purge { by, reason } => {
                let (by, reason) = (by.clone(), reason.clone());
                self.purge(pass, current, by.as_ref(), reason.as_ref()).await
            }
        }
    }

    /// Takes out what the record has left behind, and twins; the rest is to be dealt with.
    async fn current(
        &mut self,
        pass: &mut Pass,
        ours: Vec<(Letter, Facts)>,
    ) -> JobResult<Vec<(Letter, Facts)>> {
        // Each time: what this act did a moment ago is in the log.
        self.attempt.catch_up().await?;
        let known = self.attempt.known(ids_of(&ours)).await?;
        let mut seen = BTreeSet::new();
        let mut current = Vec::new();
        for ((letter, facts), known) in ours.into_iter().zip(known) {
            let twin = !seen.insert((facts.id, facts.run));
            if twin || standing(facts.run, known.as_ref()) == Standing::Stale {
                pass.done(&letter).await.map_err(passing)?;
                self.met(facts.id);
                self.attempt.tally.skipped += 1;
            } else {
                current.push((letter, facts));
            }
        }
        Ok(current)
    }

    fn met(&mut self, id: JobId) {
        if let Some(ids) = &mut self.wanted.ids {
            ids.remove(&id);
        }
    }

    async fn replay(
        &mut self,
        pass: &mut Pass,
        letters: Vec<(Letter, Facts)>,
        set: Option<&Bytes>,
        by: Option<&String>,
    ) -> JobResult<()> {
        let mut sending = Sending::new();
        let mut result = self.send(pass, letters, (set, by), &mut sending).await;
        // However that ended: these runs have begun, or will have, and their dead messages must go.
        while let Some(sent) = sending.next().await {
            let sent = self.sent(pass, sent).await;
            result = result.and(sent);
        }
        result
    }

    /// Puts the next runs of `letters` on their way, each in its turn.
    async fn send(
        &mut self,
        pass: &mut Pass,
        letters: Vec<(Letter, Facts)>,
        (set, by): (Option<&Bytes>, Option<&String>),
        sending: &mut Sending,
    ) -> JobResult<()> {
        for (letter, facts) in letters {
            let (message, event) = match self.next_run(&letter, &facts, set, by) {
                Ok(next) => next,
                Err(why) => {
                    self.sent(pass, (letter, facts, Err(Failure::Refused(why)))).await?;
                    continue;
                }
            };
            let at = self.attempt.next_turn()?;
            loop {
                let (some, full) = (!sending.is_empty(), sending.len() >= TOGETHER);
                tokio::select! {
                    Some(sent) = sending.next(), if some => self.sent(pass, sent).await?,
                    waited = self.attempt.wait_until(at), if !full => {
                        waited?;
                        break;
                    }
                }
            }
            let (acts, queue) = (self.attempt.acts(), facts.queue.clone());
            let starting = async move {
                let sent = start(&acts, &queue, &message, event).await;
                (letter, facts, sent)
            };
            sending.push(starting.boxed());
        }
        Ok(())
    }

    /// The message of the next run, and the event that says so; or why there is none.
    fn next_run(
        &self,
        letter: &Letter,
        facts: &Facts,
        set: Option<&Bytes>,
        by: Option<&String>,
    ) -> Result<(Message, Event), String> {
        let (acts, act, now) = (self.attempt.acts(), self.attempt.cx().job_id(), Timestamp::now());
        if set.is_some() && is_own(&facts.queue, facts.kind.as_ref()) {
            return Err("acts and callbacks keep their args".to_owned());
        }
        let limit = acts.config.limits.args;
        let (message, mut event) = match next_run(&letter.incoming, &facts.queue, limit, set, act) {
            Ok(envelope) => {
                let envelope = envelope.due_in(Duration::ZERO);
                let mut event = Event::of(EventType::Submitted, &envelope, &acts.instance, now);
                acts.inline_args(&mut event, &envelope.args);
                (envelope.encode(), event)
            }
            Err(error) if set.is_some() => return Err(format!("with the new args: {error}")),
            Err(error) if !self.wanted.is_precise() => {
                return Err(format!("{error}; it is replayed as it is if asked for by id or group"));
            }
            Err(_) => {
                let message = next_run_raw(&letter.incoming.message, facts, act);
                let next = Facts { run: facts.run.saturating_add(1), attempt: 1, step: 0, ..facts.clone() };
                (message, next.event(EventType::Submitted, &acts.instance, now))
            }
        };
        event.data.by = by.cloned();
        Ok((message, event))
    }

    /// Takes a message out of its queue whose job is on its way, or leaves it there.
    async fn sent(&mut self, pass: &mut Pass, (letter, facts, sent): Sent) -> JobResult<()> {
        match sent {
            Ok(()) => {
                pass.done(&letter).await.map_err(passing)?;
                self.attempt.acts().record.touch(facts.id);
                self.met(facts.id);
                self.attempt.tally.done += 1;
            }
            Err(Failure::Refused(why)) => {
                let deadline = Instant::now() + CONFIRM;
                let held = pass.leave(letter, deadline).await.map_err(passing)?;
                self.failed += u64::from(held);
                self.met(facts.id);
                self.attempt.tally.fail(format!("{}: {why}", facts.id));
            }
            Err(failure) => return Err(failed(failure)),
        }
        Ok(())
    }

    async fn purge(
        &mut self,
        pass: &mut Pass,
        letters: Vec<(Letter, Facts)>,
        by: Option<&String>,
        reason: Option<&String>,
    ) -> JobResult<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let (acts, now) = (self.attempt.acts(), Timestamp::now());
        let purged = |(_, facts): &(Letter, Facts)| {
            let mut event = facts.event(EventType::Purged, &acts.instance, now);
            event.data.by = by.cloned();
            event.data.reason = reason.cloned();
            event
        };
        acts.write(letters.iter().map(purged).collect()).await.map_err(failed)?;
        for (letter, facts) in letters {
            pass.done(&letter).await.map_err(passing)?;
            acts.record.touch(facts.id);
            self.met(facts.id);
            self.attempt.tally.done += 1;
        }
        Ok(())
    }
}

fn ids_of(letters: &[(Letter, Facts)]) -> Vec<JobId> {
    letters.iter().map(|(_, facts)| facts.id).collect()
}

/// Starts a run: the job, then the event that says so. Both are confirmed.
async fn start(acts: &Acts, queue: &QueueName, message: &Message, event: Event) -> Result<(), Failure> {
    acts.publish_job(queue, message).await?;
    acts.write(vec![event]).await
}
