//! Events as they happen: `GET /v1/jobs/{id}/events` and `GET /v1/events`.
//!
//! Both are read from the record and are woken by its tail. A stream can be cut at any place and go on at another
//! replica: its ids are positions in the log, which are the same everywhere.

mod log;
mod story;

use std::time::Duration;

use axum::{
    extract::{Request, State},
    response::Response,
};
use tokio::time::Instant;

use self::{log::LogStream, story::StoryStream};
use super::{
    App,
    body::Inbound,
    ending::CATCH_UP,
    fields::Errors,
    filter,
    job::{IdPath, read_id},
    problem::Problem,
    sse,
    submission::ERRORS_MAX,
};
use crate::record::model::Position;

/// How long a stream waits for the record to catch up before it begins.
const SOON: Duration = Duration::from_millis(500);

/// `GET /v1/jobs/{id}/events`.
pub(super) async fn of_job(State(app): State<App>, id: IdPath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = follow_job(&app, id, &mut inbound).await;
    inbound.answer(result).await
}

async fn follow_job(app: &App, id: IdPath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [last] = inbound.query(["last_event_id"], &mut errors);
    let id = read_id(id)?;
    errors.none_or(Some(()))?;
    let last = sse::last_event_id(&inbound.parts.headers, last.as_deref())?;
    let place = app.enter_stream()?;
    let job = inbound.caller.visible(app, app.look_up(id).await?)?;
    let at = match last {
        Some(last) => Some(app.find(last).await?),
        None => None,
    };
    match StoryStream::open(app, &job.summary, at).await? {
        Some(stream) => Ok(sse::response(stream, place)),
        None => Ok(sse::over()),
    }
}

/// `GET /v1/events`.
pub(super) async fn of_log(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = follow_log(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn follow_log(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [queue, kind, tag, last] = inbound.query(["queue", "kind", "tag", "last_event_id"], &mut errors);
    let mut scope = filter::scope([queue, kind, tag], &mut errors);
    errors.none_or(Some(()))?;
    inbound.caller.narrow(&mut scope.queue)?;
    let last = sse::last_event_id(&inbound.parts.headers, last.as_deref())?;
    let place = app.enter_stream()?;
    let at = match last {
        Some(last) => app.find(last).await?,
        None => Found { last: None, beyond: false, tail: app.now().await? },
    };
    Ok(sse::response(LogStream::new(app, inbound.caller.clone(), scope, at), place))
}

/// Where a stream is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    /// What the client had last.
    last: Option<Position>,
    /// That lies beyond the end of the log: it is another log's.
    beyond: bool,
    /// The last position that is known here.
    tail: Position,
}

impl App {
    /// Where `last` lies. Another replica may have shown it before this one has read it.
    async fn find(&self, last: Position) -> Result<Found, Problem> {
        let mut tail = *self.record.tail().borrow();
        if last > tail {
            tail = self.caught_up().await?;
        }
        Ok(Found { last: Some(last), beyond: last > tail, tail })
    }

    /// The end of the log, so that what was confirmed before is not told; what is known here where that takes long, but
    /// not the past that a starting process reads.
    async fn now(&self) -> Result<Position, Problem> {
        if !self.record.is_caught_up() {
            return self.caught_up().await;
        }
        // In time or not.
        let _ = self.record.catch_up(Instant::now() + SOON).await;
        Ok(*self.record.tail().borrow())
    }

    async fn caught_up(&self) -> Result<Position, Problem> {
        let caught_up = self.record.catch_up(Instant::now() + CATCH_UP).await;
        caught_up.map_err(|error| Problem::record(&error))?;
        Ok(*self.record.tail().borrow())
    }
}
