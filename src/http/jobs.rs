//! `POST /v1/jobs` and `PUT /v1/jobs/{id}`: submits a job, and waits for its end where the client asks.

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
    body::{self, Inbound, Media, Received, Room},
    fields::{self, Errors},
    job::{IdPath, read_id},
    keyed::{self, Begun},
    naming::{self, Choice},
    problem::Problem,
    submission::{Draft, ERRORS_MAX, trace_context},
    wait::{PREFERENCE_APPLIED, Prefer, Wait},
};
use crate::{client::Submission, config::parse_duration, job::JobId, record::keys::Claim};

/// What a submit's body may have beside its args, in bytes.
pub(super) const ENVELOPE_ROOM: usize = 64 << 10;

/// `POST /v1/jobs`.
pub(super) async fn post(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = submit(&app, None, &mut inbound).await;
    inbound.answer(result).await
}

/// `PUT /v1/jobs/{id}`.
pub(super) async fn put(State(app): State<App>, id: IdPath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = match read_id(id).and_then(naming::chosen) {
        Ok(id) => submit(&app, Some(id), &mut inbound).await,
        Err(problem) => Err(problem),
    };
    inbound.answer(result).await
}

async fn submit(app: &App, id: Option<JobId>, inbound: &mut Inbound) -> Result<Response, Problem> {
    let media = inbound.media(false)?;
    let received = inbound.read(app.limits.args + ENVELOPE_ROOM).await?;
    if media == Media::Unsaid && !received.bytes.is_empty() {
        return Err(body::content_type_missing());
    }
    // Memory for what comes next is taken when the body is there: slow clients are many.
    Box::pin(submit_received(app, id, inbound, received)).await
}

async fn submit_received(
    app: &App,
    id: Option<JobId>,
    inbound: &mut Inbound,
    received: Received,
) -> Result<Response, Problem> {
    let (start, now) = (Instant::now(), Timestamp::now());
    let mut errors = Errors::new(ERRORS_MAX);
    let headers = &inbound.parts.headers;
    let choice = Choice::of(id, headers, inbound.caller.scope(), &mut errors);
    let [wait] = inbound.query(["wait"], &mut errors);
    let wait = wait_of(wait.as_deref(), &mut errors);
    let text = fields::text(&received.bytes)?;
    let mut draft =
        Draft::read(text, &received.bytes, &app.limits, app.callbacks.as_ref(), now, choice, errors)?;

    let wait = Wait::choose(wait, Prefer::read(headers).wait, Duration::ZERO, app.http.max_wait);
    let deadline = (!wait.patience.is_zero()).then(|| start + wait.patience);
    let (named, too_late) = (draft.named, draft.too_late.take());
    let mut job = draft.into_submission(|kind| app.client.queue_of(kind), &trace_context(headers), now);
    inbound.caller.check(app, &mut job)?;
    let mut response = match keyed::begin(app, named, &job.envelope.kind, too_late).await? {
        Begun::New(claim) => {
            app.checking().check(&job.envelope, "/args", ERRORS_MAX).await?;
            submit_new(app, job, claim, deadline, received.room).await?
        }
        // Boxed, as the waits are: each submit would have room for it, several KiB.
        Begun::Repeat(repeat) => Box::pin(keyed::answer(app, &inbound.caller, repeat, job, deadline)).await?,
    };
    say_applied(&mut response, &wait, false);
    Ok(response)
}

async fn submit_new(
    app: &App,
    job: Submission,
    claim: Option<Claim>,
    deadline: Option<Instant>,
    room: Room,
) -> Result<Response, Problem> {
    let accepted = Accepted::new(&job);
    let Some(deadline) = deadline else {
        let taken = app.submit(job, claim, room, None).await?;
        return Ok(accepted.taken(taken).response());
    };
    let envelope = job.envelope.clone();
    // Kept with the args: for the answer of a wait to its end.
    let room = Arc::new(room);
    match Box::pin(app.call(job, claim, deadline, Arc::clone(&room), None)).await? {
        (taken, None) => Ok(accepted.taken(taken).response()),
        (_, Some(end)) => Ok(answer::record(StatusCode::OK, &Box::pin(app.record_of(&envelope, end)).await)),
    }
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
