//! `POST /v1/jobs`: submits a job, and waits for its end where the client asks.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode},
    response::Response,
};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    App,
    answer::{self, Accepted},
    body::{self, Inbound, Media},
    fields::{self, Errors},
    problem::Problem,
    submission::{Draft, ERRORS_MAX, trace_context},
    wait::{PREFERENCE_APPLIED, Prefer, Wait},
};
use crate::config::parse_duration;

/// What a submit's body may have beside its args, in bytes.
pub(super) const ENVELOPE_ROOM: usize = 64 << 10;

/// `POST /v1/jobs`.
pub(super) async fn post(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = submit(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn submit(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let media = inbound.media(false)?;
    let received = inbound.read(app.limits.args + ENVELOPE_ROOM).await?;
    if media == Media::Unsaid && !received.bytes.is_empty() {
        return Err(body::content_type_missing());
    }
    let (start, now) = (Instant::now(), Timestamp::now());
    let mut errors = Errors::new(ERRORS_MAX);
    inbound.refuse_unsupported(&mut errors);
    let [wait] = inbound.query(["wait"], &mut errors);
    let wait = wait_of(wait.as_deref(), &mut errors);
    let text = fields::text(&received.bytes)?;
    let draft = Draft::read(text, &received.bytes, &app.limits, now, errors)?;

    let headers = &inbound.parts.headers;
    let wait = Wait::choose(wait, Prefer::read(headers).wait, Duration::ZERO, app.http.max_wait);
    let job = draft.into_submission(&app.client, &trace_context(headers), now);
    let accepted = Accepted::new(&job);
    // Held as long as the args are: by the answer of a wait to its end.
    let room = Arc::new(received.room);
    let mut response = if wait.patience.is_zero() {
        app.submit(job, room, None).await?;
        accepted.response()
    } else {
        let envelope = job.envelope.clone();
        match app.call(job, start + wait.patience, Arc::clone(&room), None).await? {
            None => accepted.response(),
            Some(end) => answer::record(StatusCode::OK, &app.record_of(&envelope, end).await),
        }
    };
    say_applied(&mut response, &wait, false);
    Ok(response)
}

/// Reads `?wait=`.
pub(super) fn wait_of(text: Option<&str>, errors: &mut Errors) -> Option<Duration> {
    parse_duration(text?).map_err(|error| errors.parameter("wait", error.to_string())).ok()
}

/// Says which preferences were applied.
pub(super) fn say_applied(response: &mut Response, wait: &Wait, respond_async: bool) {
    if let Some(applied) = wait.applied(respond_async).and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
}
