//! `GET /v1/workers`: the workers that are alive; `GET /v1/kinds`: the kinds of jobs that workers have announced.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use serde::Serialize;
use serde_json::json;

use super::{
    App, access::Caller, answer, body::Inbound, fields::Errors, problem::Problem, submission::ERRORS_MAX,
};
use crate::client::WorkerInfo;

/// `GET /v1/workers`.
pub(super) async fn list(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = items(&mut inbound, |caller| workers_of(caller, app.client.workers()));
    inbound.answer(result).await
}

/// `GET /v1/kinds`.
pub(super) async fn kinds(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = items(&mut inbound, |caller| {
        let kinds = app.client.kinds().into_iter();
        kinds.filter(|kind| caller.uses(&kind.queue)).collect()
    });
    inbound.answer(result).await
}

/// What a caller sees of workers: those of its queues, and of them what is about these.
pub(super) fn workers_of(caller: &Caller, mut workers: Vec<WorkerInfo>) -> Vec<WorkerInfo> {
    if caller.queues().is_none() {
        return workers;
    }
    for worker in &mut workers {
        // Which queue a job is of is not told.
        if !worker.queues.iter().all(|own| caller.uses(&own.queue)) {
            worker.jobs.clear();
        }
        worker.queues.retain(|own| caller.uses(&own.queue));
        worker.kinds.retain(|kind| caller.uses(&kind.queue));
    }
    workers.retain(|worker| !worker.queues.is_empty());
    workers
}

fn items<T: Serialize>(
    inbound: &mut Inbound,
    known: impl FnOnce(&Caller) -> Vec<T>,
) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))?;
    Ok(answer::json_of(StatusCode::OK, &json!({ "items": known(&inbound.caller) })))
}
