//! `/healthz`: the process is alive. `/readyz`: it can take a submit, and a call, now.

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;

use super::{App, answer::json_of};

/// `GET /healthz`: 200 as long as the process answers at all.
pub(super) async fn alive() -> Response {
    json_of(StatusCode::OK, &serde_json::json!({ "alive": true }))
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    stopping: bool,
    publish: String,
    consume: String,
    control: String,
    /// Whether what is asked about jobs is up to date. Submits and calls do not need it.
    record: String,
}

/// `GET /readyz`: 200 when a submit and a call would be taken now, else 503; the body says what is missing.
pub(super) async fn ready(State(app): State<App>) -> Response {
    let health = app.client.health();
    let stopping = app.stopping.begun.is_cancelled();
    let ready = health.ready && !stopping;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Readiness {
        ready,
        stopping,
        publish: health.publish,
        consume: health.consume,
        control: health.control,
        record: app.record.describe(),
    };
    json_of(status, &body)
}
