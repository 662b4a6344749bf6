//! Going over dead-letter queues: replaying what is wanted, or purging it.
//!
//! A dead message leaves its queue exactly when what follows is confirmed: the job of the next run and its event, or
//! the event that it was purged. One that the record has left behind (its job was replayed by other means, or ended
//! otherwise after all) leaves it without anything.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Acts, CONFIRM, Failure,
    attempt::{Attempt, failed, passing},
    letter::{Facts, next_run, next_run_raw},
    wanted::{Standing, Wanted, standing},
    words::{Done, IDS_MAX, Replay},
};
use crate::{
    amqp::pass::{Letter, Pass, PassError},
    event::{Event, EventType},
    job::{JobError, JobId, JobResult, QueueName, ResultExt, json, wire::Message},
    worker::Context,
};

/// Jobs on their way at the same time.
const TOGETHER: usize = 64;

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
    let sweep = Sweep { attempt, wanted, deed: Deed::Replay { set, by: job.by } };
    sweep.over(queue, ids).await
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
    pub(super) attempt: Attempt,
    pub(super) wanted: Wanted,
    pub(super) deed: Deed,
}

impl Sweep {
    /// Does it: in `queue`; in those of the jobs `ids`, as the record knows them; else in all.
    pub(super) async fn over(mut self, queue: Option<QueueName>, ids: Option<Vec<JobId>>) -> JobResult<Done> {
        let named = ids.as_ref().map_or(0, |ids| ids.iter().collect::<BTreeSet<_>>().len() as u64);
        let queues = match (queue, ids) {
            (None, Some(ids)) => self.queues_of(&ids).await?.into_iter().collect(),
            (queue, _) => self.attempt.queues(queue.as_ref()).await?,
        };
        for queue in queues {
            self.over_queue(&queue).await?;
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

    async fn over_queue(&mut self, queue: &QueueName) -> JobResult<()> {
        loop {
            self.attempt.check()?;
            let mut pass = match self.attempt.acts().passes.over_dead(queue).await {
                Ok(pass) => pass,
                Err(PassError::NoQueue) => return Ok(()),
                Err(error) => return Err(passing(error)),
            };
            // An error on the way drops the pass, which leaves in the queue what is unsettled.
            loop {
                self.attempt.check()?;
                let letters = pass.take(self.attempt.window()).await.map_err(passing)?;
                if letters.is_empty() || self.found_all() {
                    break;
                }
                self.window(&mut pass, queue, letters).await?;
                self.attempt.tell();
            }
            let late = pass.is_late();
            pass.end().await.map_err(passing)?;
            if !late || self.found_all() {
                return Ok(());
            }
        }
    }

    /// Whether every job that was named has been met.
    fn found_all(&self) -> bool {
        self.wanted.ids.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Deals with some messages of `queue`.
    async fn window(&mut self, pass: &mut Pass, queue: &QueueName, letters: Vec<Letter>) -> JobResult<()> {
        let deadline = Instant::now() + CONFIRM;
        let mut ours = Vec::new();
        for letter in letters {
            let facts = Facts::of(&letter.incoming.message, queue);
            if self.wanted.has(&facts) {
                ours.push((letter, facts));
            } else {
                pass.leave(letter, deadline).await.map_err(passing)?;
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let current = self.current(pass, ours).await?;
        match &self.deed {
            Deed::Replay { set, by } => {
                let (set, by) = (set.clone(), by.clone());
                self.replay(pass, queue, current, set.as_ref(), by.as_ref()).await
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
        let facts: Vec<&Facts> = ours.iter().map(|(_, facts)| facts).collect();
        let known = self.attempt.known(&facts).await?;
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
        queue: &QueueName,
        letters: Vec<(Letter, Facts)>,
        set: Option<&Bytes>,
        by: Option<&String>,
    ) -> JobResult<()> {
        let mut sending = FuturesUnordered::new();
        for (letter, facts) in letters {
            while sending.len() >= TOGETHER {
                let Some(sent) = sending.next().await else { break };
                self.sent(pass, sent).await?;
            }
            match self.next_run(&letter, &facts, queue, set, by) {
                Ok((message, event)) => {
                    self.attempt.turn().await?;
                    let (acts, queue) = (self.attempt.acts(), queue.clone());
                    sending.push(async move {
                        let sent = start(&acts, &queue, &message, event).await;
                        (letter, facts, sent)
                    });
                }
                Err(why) => self.sent(pass, (letter, facts, Err(Failure::Refused(why)))).await?,
            }
        }
        while let Some(sent) = sending.next().await {
            self.sent(pass, sent).await?;
        }
        Ok(())
    }

    /// The message of the next run, and the event that says so; or why there is none.
    fn next_run(
        &self,
        letter: &Letter,
        facts: &Facts,
        queue: &QueueName,
        set: Option<&Bytes>,
        by: Option<&String>,
    ) -> Result<(Message, Event), String> {
        let (acts, act, now) = (self.attempt.acts(), self.attempt.cx().job_id(), Timestamp::now());
        let limit = acts.config.limits.args;
        let (message, mut event) = match next_run(&letter.incoming, queue, limit, set, act) {
            Ok(envelope) => {
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
    async fn sent(
        &mut self,
        pass: &mut Pass,
        (letter, facts, sent): (Letter, Facts, Result<(), Failure>),
    ) -> JobResult<()> {
        match sent {
            Ok(()) => {
                pass.done(&letter).await.map_err(passing)?;
                self.attempt.acts().record.touch(facts.id);
                self.met(facts.id);
                self.attempt.tally.done += 1;
            }
            Err(Failure::Refused(why)) => {
                let deadline = Instant::now() + CONFIRM;
                pass.leave(letter, deadline).await.map_err(passing)?;
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

/// Starts a run: the job, then the event that says so. Both are confirmed.
async fn start(acts: &Acts, queue: &QueueName, message: &Message, event: Event) -> Result<(), Failure> {
    acts.publish_job(queue, message).await?;
    acts.write(vec![event]).await
}
