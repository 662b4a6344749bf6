//! `GET /v1/jobs/{id}`: a job's record, at its end if the client waits; `GET /v1/jobs/{id}/output`: its bare output.

use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};
use std::time::Duration;
use tokio::time::Instant;

use super::{
    App,
    answer::{self, name_job},
    body::Inbound,
    fields::Errors,
    jobs::{say_applied, wait_of},
    problem::{Code, Problem},
    submission::ERRORS_MAX,
    wait::{Prefer, Wait},
};
use crate::{
    job::JobId,
    record::model::{JobRecord, JobStatus},
};

/// The part of a path that names a job.
pub(super) type IdPath = Result<Path<String>, PathRejection>;

/// Reads the part of a path that names a job.
///
/// # Errors
/// The problem: a text that is no id is the id of no job.
pub(super) fn read_id(path: IdPath) -> Result<JobId, Problem> {
    path.ok().and_then(|Path(text)| text.parse().ok()).ok_or_else(Problem::no_job)
}

/// `GET /v1/jobs/{id}`.
pub(super) async fn get(State(app): State<App>, id: IdPath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show(&app, id, &mut inbound).await;
    inbound.answer(result).await
}

async fn show(app: &App, id: IdPath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let start = Instant::now();
    let mut errors = Errors::new(ERRORS_MAX);
    let [wait] = inbound.query(["wait"], &mut errors);
    let wait = wait_of(wait.as_deref(), &mut errors);
    let id = read_id(id)?;
    errors.none_or(Some(()))?;
    let preferred = Prefer::read(&inbound.parts.headers).wait;
    let wait = Wait::choose(wait, preferred, Duration::ZERO, app.http.max_wait);
    let caller = &inbound.caller;
    // Nobody waits for what is not there for him: the time would tell that there is something.
    let mut known = caller.visible(app, app.look_at(id).await?)?;
    if !wait.patience.is_zero() && !known.summary.status.is_final() {
        known = caller.visible(app, app.await_record(id, start + wait.patience).await?)?;
    }
    let mut response = answer::record(StatusCode::OK, &known);
    say_applied(&mut response, &wait, false);
    Ok(response)
}

/// `GET /v1/jobs/{id}/output`.
pub(super) async fn output(State(app): State<App>, id: IdPath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show_output(&app, id, &mut inbound).await;
    inbound.answer(result).await
}

async fn show_output(app: &App, id: IdPath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    let id = read_id(id)?;
    errors.none_or(Some(()))?;
    let job = inbound.caller.visible(app, app.look_up(id).await?)?;
    bare_output(&job)
}

fn bare_output(job: &JobRecord) -> Result<Response, Problem> {
    let summary = &job.summary;
    let problem = |code, detail: String| Err(Problem::new(code, detail).about(summary));
    match (&job.output, summary.status) {
        (Some(output), JobStatus::Succeeded) => {
            let mut response = answer::json(StatusCode::OK, output.get().to_owned());
            name_job(&mut response, summary.id);
            Ok(response)
        }
        (None, JobStatus::Succeeded) => problem(
            Code::OutputNotRecorded,
            "the output was over record.max_inline or limits.output, nested too deep, no JSON, or of a kind that is \
             not recorded"
                .to_owned(),
        ),
        (_, status) if status.is_final() => {
            problem(Code::NoOutput, format!("the job is {status}: only a job that succeeded has an output"))
        }
        (_, status) => problem(Code::NotFinished, format!("the job is {status}; ?wait= on its record waits")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        http::{
            answer::tests::{envelope, reply},
            ending::told,
        },
        job::Status,
    };

    #[test]
    fn only_a_success_has_an_output() {
        let job = |status, reason, body| told(&envelope("{}"), &reply(status, reason, body));
        let error = r#"{"code":"c","message":"m"}"#;
        let good = bare_output(&job(Status::Succeeded, None, " 1.50 ")).unwrap();
        assert_eq!(good.status(), StatusCode::OK);
        assert_eq!(good.headers()["content-type"], "application/json");

        let mut running = job(Status::Succeeded, None, "1");
        (running.summary.status, running.output) = (JobStatus::Running, None);
        for (job, code) in [
            (job(Status::Succeeded, None, ""), Code::OutputNotRecorded),
            (job(Status::Dead, Some("fatal"), error), Code::NoOutput),
            (job(Status::Cancelled, None, error), Code::NoOutput),
            (job(Status::Expired, None, error), Code::NoOutput),
            (running, Code::NotFinished),
        ] {
            let problem = bare_output(&job).unwrap_err();
            assert_eq!(problem.code, code);
            let value: Value = serde_json::from_str(&problem.to_json()).unwrap();
            assert_eq!(value["job"]["status"], job.summary.status.as_str());
            assert_eq!(value.get("error").is_some(), code == Code::NoOutput, "{value}");
        }
    }

    #[test]
    fn a_text_that_is_no_id_is_no_job() {
        for text in ["1", "", "x-y", "0198c0de-0000-7000-8000-00000000000g"] {
            assert_eq!(read_id(Ok(Path(text.to_owned()))).unwrap_err().code, Code::JobNotFound, "{text}");
        }
        let id = JobId::new();
        assert_eq!(read_id(Ok(Path(id.to_string()))).unwrap(), id);
    }
}
