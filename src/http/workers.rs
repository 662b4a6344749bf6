//! `GET /v1/workers`: the workers that are alive; `GET /v1/kinds`: the kinds of jobs that workers have announced.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use serde::Serialize;
use serde_json::json;

use super::{App, answer, body::Inbound, fields::Errors, problem::Problem, submission::ERRORS_MAX};

/// `GET /v1/workers`.
pub(super) async fn list(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = items(&mut inbound, || app.client.workers());
    inbound.answer(result).await
}

/// `GET /v1/kinds`.
pub(super) async fn kinds(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = items(&mut inbound, || app.client.kinds());
    inbound.answer(result).await
}

fn items<T: Serialize>(inbound: &mut Inbound, known: impl FnOnce() -> Vec<T>) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))?;
    Ok(answer::json_of(StatusCode::OK, &json!({ "items": known() })))
}
