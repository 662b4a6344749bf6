//! `DELETE /v1/jobs/{id}`: asks for a job's cancellation.
//!
//! The order is durable before the answer, and nothing more has happened then: whoever holds the job's message ends
//! it. So the answer is 202, and the record shows `cancel_requested_at` until it shows the end.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use jiff::Timestamp;

use super::{
    App, answer,
    body::Inbound,
    fields::Errors,
    job::{IdPath, read_id},
    problem::{Code, Problem},
    submission::ERRORS_MAX,
};
use crate::{
    client::{CancelTarget, SubmitError},
    record::model::{CancelRequest, JobRecord, JobStatus, Summary},
};

/// Longest reason, in bytes.
pub(super) const REASON_MAX: usize = 1024;
/// Longest name of who asks, in bytes.
pub(super) const BY_MAX: usize = 200;

/// `DELETE /v1/jobs/{id}`.
pub(super) async fn delete(State(app): State<App>, id: IdPath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = cancel(&app, id, &mut inbound).await;
    inbound.answer(result).await
}

async fn cancel(app: &App, id: IdPath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [reason, by] = inbound.query(["reason", "by"], &mut errors);
    let reason = read_reason(reason, &mut errors);
    let by = inbound.caller.by(read_by(by, &mut errors));
    let id = read_id(id)?;
    errors.none_or(Some(()))?;
    inbound.nothing().await?;
    // An order names a run: it must be the newest, not the one that this replica has heard of.
    app.catch_up().await?;
    let job = inbound.caller.visible(app, app.look_up(id).await?)?;
    if let Some(answer) = settled(&job) {
        return answer;
    }
    let asked = CancelRequest { at: Timestamp::now(), by: by.clone(), reason: reason.clone() };
    let Summary { run, attempt, step, kind, queue, .. } = job.summary.clone();
    let target = CancelTarget { id, run, attempt: attempt.max(1), step, kind, queue, by, reason };
    app.order_cancel(target).await.map_err(|error| Problem::act(&error))?;
    // If the event of the order is not in the record yet, it is shown all the same.
    let mut job = app.look_up(id).await.ok().flatten().unwrap_or(job);
    job.summary.cancel.get_or_insert(asked);
    Ok(answer::record(StatusCode::ACCEPTED, &job))
}

/// The answer that needs no order: the job has ended, or its cancellation was asked for before.
fn settled(job: &JobRecord) -> Option<Result<Response, Problem>> {
    let summary = &job.summary;
    let again = summary.status == JobStatus::Cancelled || summary.cancel.is_some();
    match summary.status {
        status if status.is_final() && status != JobStatus::Cancelled => {
            let detail = format!("the job is {status}: there is nothing to cancel");
            Some(Err(Problem::new(Code::AlreadyFinished, detail).about(summary)))
        }
        _ if again => Some(Ok(answer::record(StatusCode::OK, job))),
        _ => None,
    }
}

impl App {
    /// Puts an order into the control log, and its event into the event log.
    pub(super) async fn order_cancel(&self, target: CancelTarget) -> Result<(), SubmitError> {
        let id = target.id;
        let result = self.client.request_cancel(vec![target]).await;
        self.record.touch(id);
        result
    }
}

/// Reads `?by=`: who asks, for the record. Nobody checks it; the name of a key is put before it.
pub(super) fn read_by(text: Option<String>, errors: &mut Errors) -> Option<String> {
    read_note("by", text, BY_MAX, errors)
}

/// Reads `?reason=`.
pub(super) fn read_reason(text: Option<String>, errors: &mut Errors) -> Option<String> {
    read_note("reason", text, REASON_MAX, errors)
}

fn read_note(name: &str, text: Option<String>, max: usize, errors: &mut Errors) -> Option<String> {
    let text = text?;
    if !is_note(&text, max) {
        errors.parameter(name, format!("must be 1 to {max} bytes of text without control characters"));
        return None;
    }
    Some(text)
}

/// Whether `text` is something to be shown beside a job.
pub(super) fn is_note(text: &str, max: usize) -> bool {
    text.len() <= max && !text.trim().is_empty() && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::{
            answer::tests::{envelope, reply},
            ending::told,
        },
        job::Status,
    };

    #[test]
    fn each_state_has_its_answer() {
        let job = |status, asked: bool| {
            let mut job = told(&envelope("{}"), &reply(Status::Succeeded, None, "1"));
            job.summary.status = status;
            job.summary.cancel =
                asked.then_some(CancelRequest { at: Timestamp::UNIX_EPOCH, by: None, reason: None });
            settled(&job).map(|answer| match answer {
                Ok(response) => response.status().as_u16(),
                Err(problem) => problem.code.status().as_u16(),
            })
        };
        for status in JobStatus::ALL {
            let (first, again) = match status {
                JobStatus::Cancelled => (Some(200), Some(200)),
                status if status.is_final() => (Some(409), Some(409)),
                _ => (None, Some(200)),
            };
            assert_eq!((job(status, false), job(status, true)), (first, again), "{status}");
        }
    }

    #[test]
    fn notes_are_bounded_text() {
        let read = |text: &str| {
            let mut errors = Errors::new(5);
            let read = read_by(Some(text.to_owned()), &mut errors);
            assert_eq!(read.is_none(), errors.into_list().1.len() == 1);
            read
        };
        assert_eq!(read("eve at desk 4").as_deref(), Some("eve at desk 4"));
        for bad in ["", " ", "a\nb", &"x".repeat(BY_MAX + 1)] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
