//! Cancelling many jobs: asking for each, as for a single one.

use super::{
    Acts,
    attempt::{Attempt, behind},
    is_own_queue,
    sweep::check_ids,
    words::{Cancel, Done},
};
use crate::{
    client::CancelTarget,
    job::{JobError, JobId, JobResult},
    record::model::{Filter, JobStatus, Summary},
    worker::Context,
};

/// Jobs asked for together: what one record of the control log takes.
const TOGETHER: usize = 500;
/// The states of jobs that can be cancelled.
const LIVE: [JobStatus; 4] =
    [JobStatus::Scheduled, JobStatus::Queued, JobStatus::Running, JobStatus::Retrying];

/// Asks for the cancellation of jobs.
pub(super) async fn cancel(job: Cancel, cx: Context<Acts>) -> JobResult<Done> {
    check_ids(job.ids.as_deref())?;
    let attempt = Attempt::begin(cx, job.expected, None).await?;
    let cancelling = Cancelling { attempt, by: job.by, reason: job.reason };
    match job.ids {
        Some(ids) => cancelling.jobs(&ids).await,
        None => cancelling.filter(job.filter).await,
    }
}

struct Cancelling {
    attempt: Attempt,
    by: Option<String>,
    reason: Option<String>,
}

impl Cancelling {
    async fn jobs(mut self, ids: &[JobId]) -> JobResult<Done> {
        let mut missing = 0;
        for some in ids.chunks(TOGETHER) {
            let mut found = Vec::new();
            for id in some {
                match self.attempt.job(*id).await? {
                    Some(job) => found.push(job),
                    None => missing += 1,
                }
            }
            self.ask(found).await?;
        }
        Ok(self.attempt.tally.end(missing))
    }

    async fn filter(mut self, filter: Filter) -> JobResult<Done> {
        let filter = live(filter)?;
        // Unless it is asked for, an act does not cancel acts, itself included, nor what tells of ends.
        let acts = self.attempt.acts();
        let spares = filter.queue.is_none() && filter.kind.is_none();
        let mut after = None;
        loop {
            let page = acts.record.jobs(filter.clone(), TOGETHER, after).await.map_err(behind)?;
            let found = page.items.into_iter().filter(|job| !(spares && is_own_queue(&job.queue)));
            self.ask(found.collect()).await?;
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(self.attempt.tally.end(0)),
            }
        }
    }

    async fn ask(&mut self, jobs: Vec<Summary>) -> JobResult<()> {
        self.attempt.check()?;
        let act = self.attempt.cx().job_id();
        let count = jobs.len();
        let open = jobs.into_iter().filter(|job| is_open(job, act));
        let orders: Vec<CancelTarget> = open
            .map(|job| CancelTarget {
                id: job.id,
                run: job.run,
                attempt: job.attempt.max(1),
                step: job.step,
                kind: job.kind,
                queue: job.queue,
                by: self.by.clone(),
                reason: self.reason.clone(),
            })
            .collect();
        self.attempt.tally.skipped += (count - orders.len()) as u64;
        if orders.is_empty() {
            return Ok(());
        }
        let (acts, asked) = (self.attempt.acts(), orders.len() as u64);
        for order in &orders {
            acts.record.touch(order.id);
        }
        let done = acts.client.request_cancel(orders).await;
        done.map_err(|error| JobError::retry("broker_unavailable", error))?;
        self.attempt.tally.done += asked;
        self.attempt.tell();
        Ok(())
    }
}

/// Whether there is something to cancel. Not the act that asks.
fn is_open(job: &Summary, act: JobId) -> bool {
    !job.status.is_final() && job.cancel.is_none() && job.id != act
}

/// The filter, for jobs that have not ended.
fn live(mut filter: Filter) -> JobResult<Filter> {
    if filter.status.is_empty() {
        filter.status = LIVE.to_vec();
    }
    match filter.status.iter().find(|status| status.is_final()) {
        Some(status) => {
            Err(JobError::fatal("bad_args", format!("filter.status: a job that is {status} has ended")))
        }
        None => Ok(filter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_live_jobs_are_cancelled() {
        assert_eq!(live(Filter::default()).unwrap().status, LIVE);
        let some = |status| Filter { status: vec![status], ..Filter::default() };
        assert_eq!(live(some(JobStatus::Retrying)).unwrap().status, [JobStatus::Retrying]);
        assert!(live(some(JobStatus::Dead)).is_err());
    }
}
