//! The spool, as the calls see it: which submits go there, and what is known of a job that waits there.

use std::time::Duration;

use super::{
    App,
    ending::CATCH_UP,
    keyed,
    problem::{Code, Problem},
};
use crate::{
    client::{Submission, SubmitError},
    job::{Envelope, JobId},
    record::model::{JobRecord, JobStatus, Position, Summary},
    spool::SpoolError,
    trace::trace_id_of,
};

/// Who has a job that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The broker.
    Broker,
    /// The spool.
    Spool,
}

/// Why a job was not accepted, or not surely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// What the broker, or the way to it, says.
    Submit(SubmitError),
    /// The broker is away, or others wait in the spool already; and the spool takes no more.
    Spool(SpoolError),
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        Self::Submit(error)
    }
}

impl Refusal {
    /// The problem to answer with, about `job`.
    pub(super) fn problem(&self, job: JobId) -> Problem {
        match self {
            Self::Submit(error) => Problem::submit(error, job),
            Self::Spool(SpoolError::Full) => Problem::new(
                Code::SpoolFull,
                "the job has to wait in the spool (the broker is away, or jobs of its queue wait there), which is full \
                 (spool.max_jobs, spool.max_bytes); the job was not accepted",
            ),
            // It may be forwarded, as a publish that was not confirmed in time may be stored.
            Self::Spool(SpoolError::Timeout) => Problem::submit(&SubmitError::Timeout, job),
            Self::Spool(SpoolError::Other) => keyed::reused(),
            Self::Spool(error) => {
                let detail =
                    format!("the job has to wait in the spool, but {error}; it was not accepted; try again");
                Problem::new(Code::SpoolUnavailable, detail)
            }
        }
    }
}

/// Whether a submit that failed so may go to the spool: it is surely not on its way to the broker any more.
fn may_be_spooled(error: &SubmitError) -> bool {
    // After a loss the broker may have it: what is forwarded is marked unsure. A time-out says nothing: the publish may
    // still be carried out, beside the forwarded one.
    matches!(error, SubmitError::Unavailable(_) | SubmitError::Blocked | SubmitError::Lost(_))
}

impl App {
    /// Whether a submit has to queue up behind others of its queue in the spool.
    pub(super) fn spools_now(&self, job: &Submission) -> bool {
        let behind = |spool: &crate::spool::Spool| {
            spool.waits_for(&job.envelope.queue, |kind| self.client.queue_of(kind))
        };
        self.spool.as_ref().is_some_and(behind)
    }

    /// Chooses the queue of a job that names none, now.
    ///
    /// # Errors
    /// The problem, when it is not known yet.
    pub(super) fn route(&self, job: &mut Submission) -> Result<(), Problem> {
        self.client.route(job).map_err(|error| {
            let refusal = Refusal::Submit(error);
            let problem = refusal.problem(job.envelope.id);
            self.count_submit(&job.envelope.kind, &Err(refusal));
            problem
        })
    }

    /// Whether a submit goes to the spool when the broker does not take it.
    pub(super) fn can_spool(&self) -> bool {
        self.spool.is_some()
    }

    /// How long a submit waits for the record to catch up: not at all where the broker is away and the spool takes it.
    pub(super) fn patience(&self) -> Duration {
        if self.can_spool() && !self.client.health().ready { Duration::ZERO } else { CATCH_UP }
    }

    /// Puts a job into the spool after the broker did not take it.
    ///
    /// # Errors
    /// Why it was not accepted, or not surely.
    pub(super) async fn spool_after(&self, error: SubmitError, job: &Submission) -> Result<Taken, Refusal> {
        if !(self.can_spool() && may_be_spooled(&error)) {
            return Err(error.into());
        }
        let mut job = job.clone();
        job.envelope.unsure |= matches!(error, SubmitError::Lost(_));
        self.spool(&job).await.map_err(|refusal| of_both(error, refusal))
    }

    /// Puts a job into the spool, which there is.
    pub(super) async fn spool(&self, job: &Submission) -> Result<Taken, Refusal> {
        let Some(spool) = &self.spool else {
            return Err(SubmitError::Unavailable("there is no spool".to_owned()).into());
        };
        spool.put(job).await.map(|()| Taken::Spool).map_err(Refusal::Spool)
    }

    /// The job's record as far as its spool tells; none if it is not there.
    ///
    /// # Errors
    /// The problem, when it is there and cannot be read: nobody else knows it.
    pub(super) async fn spooled(&self, id: JobId) -> Result<Option<JobRecord>, Problem> {
        let Some(spool) = &self.spool else { return Ok(None) };
        match spool.find(id).await {
            Ok(job) => Ok(job.map(|job| record_of(&job))),
            Err(error) => {
                tracing::warn!(job.id = %id, %error, "the spool has this job, and does not tell more");
                let detail = format!("the job was accepted and is in the spool, but {error}; try again");
                Err(Problem { job: Some(id), ..Problem::new(Code::SpoolUnavailable, detail) })
            }
        }
    }
}

/// What is said of a job that the broker did not take, for `error`, and then the spool did not: where the broker may have
/// it, that says more than why the spool has not.
fn of_both(error: SubmitError, refusal: Refusal) -> Refusal {
    if matches!(error, SubmitError::Lost(_)) { error.into() } else { refusal }
}

fn record_of(job: &Submission) -> JobRecord {
    let Envelope { id, kind, queue, args, max_attempts, tags, created_at, expires_at, .. } =
        job.envelope.clone();
    let run_at = created_at.filter(|_| !job.delay.is_zero()).and_then(|at| at.checked_add(job.delay).ok());
    JobRecord {
        summary: Summary {
            id,
            position: Position::default(),
            kind: Some(kind),
            queue,
            status: JobStatus::Spooled,
            run: 1,
            attempt: 0,
            step: 0,
            max_attempts,
            tags,
            created_at,
            run_at,
            started_at: None,
            finished_at: None,
            expires_at,
            worker: None,
            error: None,
            reason: None,
            by: None,
            fingerprint: None,
            cancel: None,
            purged: false,
            request: job.request.clone(),
        },
        args: serde_json::from_slice(&args).ok(),
        args_omitted: false,
        output: None,
        output_omitted: false,
        attempts: Vec::new(),
        progress: None,
        trace_id: trace_id_of(&job.envelope.extra),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer::tests::envelope;

    #[test]
    fn only_what_cannot_be_on_its_way_goes_to_the_spool() {
        let why = || "away".to_owned();
        for (error, expected) in [
            (SubmitError::Unavailable(why()), true),
            (SubmitError::Blocked, true),
            (SubmitError::Lost(why()), true),
            (SubmitError::Timeout, false),
            (SubmitError::Refused, false),
            (SubmitError::Full, false),
            (SubmitError::NotTaken(why()), false),
            (SubmitError::Unfit(why()), false),
            (SubmitError::DelayTooLong, false),
        ] {
            assert_eq!(may_be_spooled(&error), expected, "{error}");
        }
    }

    #[test]
    fn what_may_be_stored_is_not_said_to_be_refused() {
        let lost = SubmitError::Lost("cut".to_owned());
        for spool in [SpoolError::Full, SpoolError::Unavailable("x".into()), SpoolError::Timeout] {
            let said = of_both(lost.clone(), Refusal::Spool(spool.clone()));
            assert_eq!(said, Refusal::Submit(lost.clone()), "{spool}");
            let said = of_both(SubmitError::Blocked, Refusal::Spool(spool.clone()));
            assert_eq!(said, Refusal::Spool(spool));
        }
    }

    #[test]
    fn a_spooled_job_has_a_record() {
        let mut job = Submission::new(envelope("[1.50]"), Duration::from_secs(9));
        job.envelope.created_at = Some(jiff::Timestamp::UNIX_EPOCH);
        let record = record_of(&job);
        assert_eq!(record.summary.status.as_str(), "spooled");
        assert!(!record.summary.status.is_final());
        assert_eq!(record.args.map(|args| args.get().to_owned()).as_deref(), Some("[1.50]"));
        assert_eq!(record.summary.run_at.map(jiff::Timestamp::as_second), Some(9));
        for (refusal, code) in [
            (Refusal::Spool(SpoolError::Full), Code::SpoolFull),
            (Refusal::Spool(SpoolError::Unavailable("x".into())), Code::SpoolUnavailable),
            (Refusal::Submit(SubmitError::Blocked), Code::BrokerBlocked),
        ] {
            let problem = refusal.problem(job.envelope.id);
            assert_eq!(problem.code, code);
            assert!(problem.retry_after.is_some() && problem.job.is_none());
        }
        let late = Refusal::Spool(SpoolError::Timeout).problem(job.envelope.id);
        assert_eq!((late.code, late.job), (Code::ConfirmTimeout, Some(job.envelope.id)), "it may run");
        assert_eq!(Refusal::Spool(SpoolError::Other).problem(job.envelope.id).code, Code::KeyReused);
    }
}
