//! `POST /v1/jobs/batch`: many jobs in one request, each with an answer of its own.

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    App,
    answer::{self, status_of},
    body::{self, Inbound, Media, Room, held},
    fields::{self, Errors, Items},
    problem::{Code, Problem},
    submission::{Draft, ERRORS_MAX, ITEM_ERRORS_MAX, trace_context},
};
use crate::{
    client::Submission,
    job::{
        JobId,
        json::{self, JsonError},
        wire::Headers,
    },
};

/// What an item takes in memory beside its bytes, roughly, in bytes.
const ITEM_COST: usize = 1024;
/// After so many items others get their turn on this thread.
const TURN: usize = 128;
/// So many wrong items are told all that is wrong with them, further ones one thing: an answer may not be many times
/// its request.
const TOLD_ALL: usize = 100;

/// `POST /v1/jobs/batch`.
pub(super) async fn post(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = submit(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn submit(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let media = inbound.media(true)?;
    let mut received = inbound.read(app.http.batch_bytes).await?;
    if media == Media::Unsaid && !received.bytes.is_empty() {
        return Err(body::content_type_missing());
    }
    let mut errors = Errors::new(ERRORS_MAX);
    inbound.refuse_unsupported(&mut errors);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))?;
    let items = split(&received.bytes, media, app.http.batch_items)?;
    received.room.cover(received.bytes.len().max(items.len() * ITEM_COST))?;
    let trace = trace_context(&inbound.parts.headers);
    let mut batch = read(app, &trace, &received.bytes, &items).await;
    let jobs = std::mem::take(&mut batch.jobs);
    let mut room = received.room;
    if !jobs.is_empty() {
        let (results, held) = app.submit_all(jobs, room).await?;
        room = held;
        batch.settle(results);
    }
    Ok(batch.answer(Some(room)))
}

/// An item's text, and its line in NDJSON.
#[derive(Debug, Clone, Copy)]
struct Item<'a> {
    text: &'a [u8],
    line: Option<usize>,
}

/// The items of a batch.
///
/// # Errors
/// The problem, when the batch as a whole cannot be read, is empty, or has more than `max` items.
fn split(bytes: &Bytes, media: Media, max: usize) -> Result<Vec<Item<'_>>, Problem> {
    let items = if media == Media::Ndjson {
        let lines = bytes.split(|byte| *byte == b'\n').enumerate();
        let full = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
        full.take(max + 1).map(|(index, text)| Item { text, line: Some(index + 1) }).collect()
    } else {
        let array = Items::parse(fields::text(bytes)?, max + 1)?;
        array.list.iter().map(|raw| Item { text: raw.get().as_bytes(), line: None }).collect::<Vec<_>>()
    };
    if items.len() > max {
        let detail = format!("a batch has at most {max} items (http.batch_items)");
        return Err(Problem::new(Code::TooManyItems, detail));
    }
    if items.is_empty() {
        let mut errors = Errors::new(1);
        errors.at("", "the batch is empty");
        return Err(Problem::invalid(errors));
    }
    Ok(items)
}

/// The answer for one item.
#[derive(Debug, Serialize)]
struct Answer {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Box<RawValue>>,
}

/// The answer for the batch.
#[derive(Serialize)]
struct Whole<'a> {
    accepted: usize,
    rejected: usize,
    items: &'a [Answer],
}

/// A batch on its way: an answer per item, and the jobs whose answers are those at `places`.
#[derive(Debug, Default)]
struct Batch {
    answers: Vec<Answer>,
    jobs: Vec<Submission>,
    places: Vec<usize>,
    /// Items that were refused before anything was published.
    refused: usize,
    gravest: Option<Gravest>,
}

/// The gravest problem so far: what the whole batch answers if no item was accepted.
#[derive(Debug)]
struct Gravest {
    status: StatusCode,
    retry_after: Option<axum::http::HeaderValue>,
}

async fn read(app: &App, trace: &Headers, bytes: &Bytes, items: &[Item<'_>]) -> Batch {
    let now = Timestamp::now();
    let mut batch = Batch::default();
    for (index, item) in items.iter().enumerate() {
        let told = if batch.refused < TOLD_ALL { ITEM_ERRORS_MAX } else { 1 };
        match read_item(item, bytes, app, now, told) {
            Ok(draft) => batch.add(item, draft.into_submission(&app.client, trace, now)),
            Err(problem) => batch.refuse(item, problem),
        }
        if index % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
    }
    batch
}

fn read_item(
    item: &Item<'_>,
    bytes: &Bytes,
    app: &App,
    now: Timestamp,
    told: usize,
) -> Result<Draft, Problem> {
    let read = || {
        let text = fields::text(item.text)?;
        Draft::read(text, bytes, &app.limits, now, Errors::new(told))
    };
    read().map_err(|problem| place(problem, item))
}

/// A line of NDJSON has its own line numbers, all of them 1: the batch's is put in place.
fn place(problem: Problem, item: &Item<'_>) -> Problem {
    match (item.line, json::check(item.text)) {
        (Some(line), Err(JsonError::Syntax { detail, column, .. }))
            if problem.code == Code::MalformedJson =>
        {
            Problem::json(&JsonError::Syntax { detail, line, column })
        }
        _ => problem,
    }
}

fn written(problem: &Problem) -> Option<Box<RawValue>> {
    RawValue::from_string(problem.to_json()).ok()
}

impl Batch {
    fn add(&mut self, item: &Item<'_>, job: Submission) {
        self.places.push(self.answers.len());
        self.answers.push(Answer {
            index: self.answers.len(),
            line: item.line,
            id: Some(job.envelope.id),
            status: Some(status_of(&job)),
            error: None,
        });
        self.jobs.push(job);
    }

    fn refuse(&mut self, item: &Item<'_>, problem: Problem) {
        self.refused += 1;
        let index = self.answers.len();
        let error = written(&problem);
        self.answers.push(Answer { index, line: item.line, id: None, status: None, error });
        self.weigh(problem);
    }

    /// Puts the submits' results into the answers.
    fn settle(&mut self, results: Vec<Result<(), crate::client::SubmitError>>) {
        // A missing result would be a bug of the client: such a job may run, and must not read as accepted.
        let missing = || Err(crate::client::SubmitError::Lost("the result is missing".to_owned()));
        let results = results.into_iter().chain(std::iter::repeat_with(missing));
        for (place, result) in std::mem::take(&mut self.places).into_iter().zip(results) {
            let answer = &mut self.answers[place];
            let (Err(error), Some(id)) = (result, answer.id) else { continue };
            let problem = Problem::submit(&error, id);
            // Whoever's job may still run is told its id.
            answer.id = problem.job;
            answer.status = None;
            answer.error = written(&problem);
            self.weigh(problem);
        }
    }

    fn weigh(&mut self, problem: Problem) {
        let status = problem.code.status();
        if self.gravest.as_ref().is_none_or(|gravest| gravest.status < status) {
            let retry_after = problem.into_response().headers_mut().remove(header::RETRY_AFTER);
            self.gravest = Some(Gravest { status, retry_after });
        }
    }

    /// The answer, which keeps its part of `room` until the client has taken it: who does not read must not fill the
    /// memory.
    fn answer(self, room: Option<Room>) -> Response {
        let accepted = self.answers.iter().filter(|answer| answer.error.is_none()).count();
        let rejected = self.answers.len() - accepted;
        let gravest = self.gravest.filter(|_| accepted == 0);
        let status = gravest.as_ref().map_or(StatusCode::ACCEPTED, |gravest| gravest.status);
        // Our own shapes have text as keys and nothing that fails.
        let whole = Whole { accepted, rejected, items: &self.answers };
        let body = serde_json::to_vec(&whole).unwrap_or_default();
        let mut response = answer::json(status, held(body, room));
        if let Some(pause) = gravest.and_then(|gravest| gravest.retry_after) {
            response.headers_mut().insert(header::RETRY_AFTER, pause);
        }
        response
    }
}
