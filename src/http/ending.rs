//! Waits for the end of a job's run: by its reply, which is fast, or by the record, which is sure; whichever is first.
//!
//! So a wait survives the loss of the reply, and can be for a job that another process took. Who waits is counted
//! (`http.max_waiters`); a client that goes away drops its future, and with it its place.

use std::{
    future::{Future, ready},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    App, keyed,
    problem::{Code, Problem},
    spooling::Taken,
};
use crate::{
    client::{Submission, WaitError},
    event::EventError,
    job::{Envelope, JobId, Reply, Status},
    record::{
        JobWatch, RecordError,
        keys::Claim,
        model::{JobRecord, JobStatus, Position, Summary},
    },
    trace::trace_id_of,
};

/// How long a submit whose wait is over waits for its event to be in the log.
const TOLD: Duration = Duration::from_millis(500);
/// Longest time for the record to catch up with the event log before a call goes on without.
pub(super) const CATCH_UP: Duration = Duration::from_secs(2);
/// How long after a change the record is looked at: a reply is faster, and news often come several at a time.
const PAUSE: Duration = Duration::from_millis(50);
/// How long after the record told of an end its reply is waited for, where only that has the output.
const REPLY_GRACE: Duration = Duration::from_secs(1);

/// How a run ended, and who said so.
#[derive(Debug)]
pub(super) enum End {
    /// The worker's reply.
    Reply(Reply),
    /// The record.
    Record(Box<JobRecord>),
}

impl App {
    /// A place among those who wait for the end of a job.
    pub(super) fn enter_wait(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let full = |_| {
            let limit = self.http.max_waiters;
            let detail = format!("{limit} callers wait already (http.max_waiters); nothing was submitted");
            Problem::new(Code::WaitersFull, detail)
        };
        Arc::clone(&self.waiters).try_acquire_owned().map_err(full)
    }

    /// Submits a job and waits for the end of its run: none at the deadline, or when the server must end before.
    /// `held` is dropped when the job is accepted; `accepted` is told then.
    pub(super) async fn call(
        &self,
        mut job: Submission,
        claim: Option<Claim>,
        deadline: Instant,
        held: impl Send + 'static,
        accepted: Option<oneshot::Sender<()>>,
    ) -> Result<(Taken, Option<End>), Problem> {
        let id = job.envelope.id;
        let _place = self.enter_wait()?;
        let watch = self.record.watch_job(id);
        let waiter = match self.client.expect_reply(id).await {
            // The record tells the end, too.
            Err(WaitError::Unavailable(_)) if self.can_spool() => None,
            waiter => Some(waiter.map_err(|error| Problem::wait(&error))?),
        };
        if let Some(waiter) = &waiter {
            job.envelope.reply_to = Some(waiter.reply_to().to_owned());
            job.envelope.correlation_id = Some(id.to_string());
        }
        let (taken, end) = match waiter {
            Some(waiter) if claim.is_none() && keyed::gathers(self, &job) => {
                let fate = self.start_submit(job, held, accepted)?;
                let refused = |refusal| keyed::problem(&refusal, id, false);
                // A reply says that it was accepted, whether the confirm has come or not.
                let end = tokio::select! {
                    biased;
                    end = self.end_of(id, watch, waiter.reply(deadline), deadline) => end,
                    refusal = fate.refused() => return Err(refused(refusal)),
                };
                let taken =
                    if end.is_some() { Taken::Broker } else { fate.known().await.map_err(refused)? };
                (taken, end)
            }
            waiter => {
                let taken = self.submit(job, claim, held, accepted).await?;
                let waiter = waiter.filter(|_| taken == Taken::Broker);
                let reply = async {
                    match waiter {
                        Some(waiter) => waiter.reply(deadline).await,
                        None => None,
                    }
                };
                (taken, self.end_of(id, watch, reply, deadline).await)
            }
        };
        if end.is_none() {
            // Its submitter looks for it in the record now, and may ask another process.
            self.client.until_told(Instant::now() + TOLD).await;
        }
        Ok((taken, end))
    }

    /// Waits for the end of the present run of a job that was submitted before, whether the record knows of it yet or
    /// not: none at the deadline, or when the server must end before.
    ///
    /// # Errors
    /// The problem, when too many wait.
    pub(super) async fn attach(&self, id: JobId, deadline: Instant) -> Result<Option<End>, Problem> {
        let watch = self.record.watch_job(id);
        // The first look catches up; one that cannot is made up for by the watch.
        let known = self.look_up(id).await.ok().flatten();
        if let Some(job) = known.filter(|job| job.summary.status.is_final()) {
            return Ok(Some(End::Record(Box::new(job))));
        }
        let _place = self.enter_wait()?;
        Ok(self.end_of(id, watch, ready(None), deadline).await)
    }

    /// Waits for the end of the job's present run, as far as the record tells. At the deadline, or when the server
    /// must end before, whatever is known of the job by then; none if nothing is.
    ///
    /// # Errors
    /// The problem, when too many wait or the record is behind.
    pub(super) async fn await_record(
        &self,
        id: JobId,
        deadline: Instant,
    ) -> Result<Option<JobRecord>, Problem> {
        let watch = self.record.watch_job(id);
        let Some(known) = self.look_up(id).await? else { return Ok(None) };
        if known.summary.status.is_final() {
            return Ok(Some(known));
        }
        let _place = self.enter_wait()?;
        match self.end_of(id, watch, ready(None), deadline).await {
            Some(End::Record(job)) => Ok(Some(*job)),
            _ => self.look_up(id).await,
        }
    }

    /// Waits until the record knows what is in the log.
    ///
    /// # Errors
    /// The problem, when that takes too long.
    pub(super) async fn catch_up(&self) -> Result<(), Problem> {
        self.record.catch_up(Instant::now() + CATCH_UP).await.map_err(|error| Problem::record(&error))
    }

    /// A job's record, after catching up with the log where that is needed; none: there is no such job.
    ///
    /// # Errors
    /// The problem, when the job is unknown and the record is behind the log, or the log is behind what was accepted here.
    pub(super) async fn look_up(&self, id: JobId) -> Result<Option<JobRecord>, Problem> {
        self.look_up_within(id, CATCH_UP).await
    }

    /// As [`App::look_up`], but does not catch up for a job that has just been accepted here.
    pub(super) async fn look_at(&self, id: JobId) -> Result<Option<JobRecord>, Problem> {
        self.known(id, self.record.job_so_far(id, CATCH_UP)).await
    }

    /// As [`App::look_up`], with another patience for catching up.
    pub(super) async fn look_up_within(
        &self,
        id: JobId,
        patience: Duration,
    ) -> Result<Option<JobRecord>, Problem> {
        self.known(id, self.record.job(id, patience)).await
    }

    async fn known(
        &self,
        id: JobId,
        asked: impl Future<Output = Result<Option<JobRecord>, RecordError>>,
    ) -> Result<Option<JobRecord>, Problem> {
        if let Some(job) = self.spooled(id).await? {
            return Ok(Some(job));
        }
        // Before the record is asked: what is told meanwhile may be missing there.
        let is_untold = self.client.is_untold(id);
        match asked.await {
            Ok(None) if is_untold => Err(Problem {
                job: Some(id),
                ..Problem::new(
                    Code::RecordBehind,
                    "the job was accepted, which is not in the event log yet; try again",
                )
            }),
            known => known.map_err(|error| Problem::record(&error)),
        }
    }

    async fn end_of(
        &self,
        id: JobId,
        mut watch: JobWatch,
        reply: impl Future<Output = Option<Reply>>,
        deadline: Instant,
    ) -> Option<End> {
        let mut reply = pin!(reply);
        let mut replied = false;
        let mut look: Option<Instant> = None;
        loop {
            let looking = look.unwrap_or(deadline);
            tokio::select! {
                biased;
                end = &mut reply, if !replied => match end {
                    Some(reply) => return Some(End::Reply(reply)),
                    // At the deadline; or it is lost, and the record will tell.
                    None => replied = true,
                },
                () = self.stopping.hurry.cancelled() => return self.ended(id).await.ok().flatten(),
                () = sleep_until(looking.min(deadline)) => {
                    let ended = self.ended(id).await;
                    look = next_look(&ended, Instant::now());
                    match ended {
                        Ok(Some(end)) if !replied && is_without_output(&end) => {
                            let grace = deadline.min(Instant::now() + REPLY_GRACE);
                            return Some(timeout_at(grace, reply).await.ok().flatten().map_or(end, End::Reply));
                        }
                        Ok(Some(end)) => return Some(end),
                        _ if Instant::now() >= deadline => return None,
                        _ => {}
                    }
                }
                () = watch.changed(), if look.is_none() => look = Some(Instant::now() + PAUSE),
            }
        }
    }

    /// The end of the job's present run, if the record knows one now.
    async fn ended(&self, id: JobId) -> Result<Option<End>, RecordError> {
        let known = self.record.job(id, Duration::ZERO).await?;
        Ok(known.filter(|job| job.summary.status.is_final()).map(|job| End::Record(Box::new(job))))
    }

    /// The record of a job whose run has ended so, as its submitter may see it.
    pub(super) async fn record_of(&self, job: &Envelope, end: End) -> JobRecord {
        let reply = match end {
            End::Record(mut record) => {
                fill_in(&mut record, told_args(job), None);
                return *record;
            }
            End::Reply(reply) => reply,
        };
        // What the reply told must not be unknown to the next one who asks here.
        self.record.touch(job.id);
        match self.look_up(job.id).await {
            Ok(Some(mut record)) if record.summary.run == reply.run && record.summary.status.is_final() => {
                fill_in(&mut record, told_args(job), output(&reply));
                record
            }
            // The record is behind, or ahead: another run has begun.
            _ => told(job, &reply),
        }
    }
}

/// Whether the run has an output that was too long for the record.
fn is_without_output(end: &End) -> bool {
    matches!(end, End::Record(job) if job.output_omitted)
}

/// When the record is looked at again without a change. One that could not be read may have known the end, and no other
/// change may come.
fn next_look(ended: &Result<Option<End>, RecordError>, now: Instant) -> Option<Instant> {
    ended.is_err().then_some(now + PAUSE)
}

/// Completes a record with what was left out of it and is known here all the same.
fn fill_in(record: &mut JobRecord, args: Option<Box<RawValue>>, output: Option<Box<RawValue>>) {
    if let (None, Some(args)) = (&record.args, args) {
        (record.args, record.args_omitted) = (Some(args), false);
    }
    if let (None, Some(output), JobStatus::Succeeded) = (&record.output, output, record.summary.status) {
        (record.output, record.output_omitted) = (Some(output), false);
    }
}

fn told_args(job: &Envelope) -> Option<Box<RawValue>> {
    serde_json::from_slice(&job.args).ok()
}

/// The output of a run that succeeded: none if it was left out, or is not JSON (of a foreign worker).
fn output(reply: &Reply) -> Option<Box<RawValue>> {
    if reply.status != Status::Succeeded || reply.output_omitted {
        return None;
    }
    serde_json::from_slice(&reply.body).ok()
}

/// The record of a job whose run has ended, as far as its submitter and its reply know it.
pub(super) fn told(job: &Envelope, reply: &Reply) -> JobRecord {
    let output = output(reply);
    let failure = reply.failure().filter(|_| reply.status == Status::Dead);
    let status = match reply.status {
        Status::Succeeded => JobStatus::Succeeded,
        Status::Dead => JobStatus::Dead,
        Status::Cancelled => JobStatus::Cancelled,
        Status::Expired => JobStatus::Expired,
    };
    let summary = Summary {
        id: job.id,
        position: Position::default(),
        kind: Some(job.kind.clone()),
        queue: job.queue.clone(),
        status,
        run: reply.run,
        attempt: reply.attempt,
        step: job.step,
        max_attempts: job.max_attempts,
        tags: job.tags.clone(),
        created_at: job.created_at,
        run_at: None,
        started_at: reply.started_at,
        // A foreign worker may not say.
        finished_at: Some(reply.finished_at.unwrap_or_else(Timestamp::now)),
        expires_at: job.expires_at,
        worker: reply.worker.clone(),
        error: failure.map(|failure| EventError { code: failure.code, message: failure.message }),
        reason: reply.reason.clone(),
        by: None,
        fingerprint: None,
        cancel: None,
        purged: false,
        request: None,
    };
    JobRecord {
        summary,
        args: told_args(job),
        args_omitted: false,
        output_omitted: reply.status == Status::Succeeded && output.is_none(),
        output,
        attempts: Vec::new(),
        progress: None,
        trace_id: trace_id_of(&job.extra),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer::tests::{envelope, reply};

    #[test]
    fn a_record_that_could_not_be_read_is_looked_at_again() {
        let now = Instant::now();
        assert_eq!(next_look(&Ok(None), now), None);
        assert_eq!(next_look(&Err(RecordError::Busy), now), Some(now + PAUSE));
    }

    #[test]
    fn what_the_record_left_out_is_filled_in_from_what_is_known() {
        let raw = |text: &str| Some(RawValue::from_string(text.to_owned()).unwrap());
        let text = |raw: &Option<Box<RawValue>>| raw.as_deref().map(|raw| raw.get().to_owned());
        let mut record = told(&envelope("1"), &reply(Status::Succeeded, None, "2"));
        fill_in(&mut record, raw("3"), raw("4"));
        assert_eq!((text(&record.args), text(&record.output)), (Some("1".into()), Some("2".into())));
        (record.args, record.args_omitted) = (None, true);
        (record.output, record.output_omitted) = (None, true);
        fill_in(&mut record, raw("3"), raw("4"));
        assert_eq!((text(&record.args), text(&record.output)), (Some("3".into()), Some("4".into())));
        assert!(!record.args_omitted && !record.output_omitted);
        record.summary.status = JobStatus::Dead;
        record.output = None;
        fill_in(&mut record, None, raw("4"));
        assert!(record.output.is_none(), "only a success has an output");
    }
}
