//! `/healthz`: the process is alive. `/readyz`: it can take a submit, and a call, now: by the broker or by the spool.

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;

use super::{App, answer::json_of};
use crate::spool::{Fill, Spool};

/// `GET /healthz`: 200 as long as the process answers at all.
pub(super) async fn alive() -> Response {
    json_of(StatusCode::OK, &serde_json::json!({ "alive": true }))
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Readiness {
    ready: bool,
    stopping: bool,
    publish: String,
    consume: String,
    control: String,
    /// Whether what is asked about jobs is up to date. Submits and calls do not need it.
    record: String,
    /// How full the spool is, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    spool: Option<Fill>,
}

/// `GET /readyz`: 200 when a submit and a call would be taken now, else 503; the body says what is missing.
pub(super) async fn ready(State(app): State<App>) -> Response {
    let health = app.client.health();
    let stopping = app.stopping.begun.is_cancelled();
    let spool = app.spool.as_ref().map(Spool::fill);
    // A job of the largest size must find room.
    let largest = u64::try_from(app.limits.args).unwrap_or(u64::MAX);
    let room = spool.is_some_and(|fill| fill.has_room_for(largest));
    let ready = (health.ready || room) && !stopping;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Readiness {
        ready,
        stopping,
        publish: health.publish,
        consume: health.consume,
        control: health.control,
        record: app.record.describe(),
        spool,
    };
    json_of(status, &body)
}
