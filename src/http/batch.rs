//! `POST /v1/jobs/batch`: many jobs in one request, each with an answer of its own.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::{sync::OwnedSemaphorePermit, task::coop::unconstrained};

use super::{
    App,
    access::Caller,
    answer::{self, status_of},
    body::{self, Inbound, Media, Received, Room, held},
    fields::{self, Errors, FieldError, Items},
    finished,
    keyed::{self, Begun},
    naming::{self, Choice, Named},
    problem::{Code, Problem},
    spooling::{Refusal, Taken},
    submission::{Draft, ERRORS_MAX, ITEM_ERRORS_MAX, trace_context},
};
use crate::{
    client::Submission,
    job::{
        JobId,
        json::{self, JsonError},
        wire::Headers,
    },
    record::{keys::Claim, model::JobStatus},
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
    let received = inbound.read(app.http.batch_bytes).await?;
    if media == Media::Unsaid && !received.bytes.is_empty() {
        return Err(body::content_type_missing());
    }
    // Memory for what comes next is taken when the body is there: slow clients are many.
    Box::pin(submit_received(app, inbound, media, received)).await
}

async fn submit_received(
    app: &App,
    inbound: &mut Inbound,
    media: Media,
    mut received: Received,
) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    naming::refuse_key(
        &inbound.parts.headers,
        "is for one job: give each item an idempotency_key of its own",
        &mut errors,
    );
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))?;
    let items = split(&received.bytes, media, app.http.batch_items)?;
    received.room.cover(received.bytes.len().max(items.len() * ITEM_COST))?;
    let trace = trace_context(&inbound.parts.headers);
    let mut batch = read(app, &inbound.caller, &trace, &received.bytes, &items).await;
    inbound.caller.charge_more(items.len() - 1);
    batch.begin(app, &inbound.caller).await;
    batch.check(app).await;
    batch.submit(app, &mut received.room).await?;
    Ok(batch.answer(Some(received.room)))
}

/// An item's text, and its line in NDJSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) text: &'a [u8],
    line: Option<usize>,
}

/// The items of a batch.
///
/// # Errors
/// The problem, when the batch as a whole cannot be read, is empty, or has more than `max` items.
pub(super) fn split(bytes: &Bytes, media: Media, max: usize) -> Result<Vec<Item<'_>>, Problem> {
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
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "BatchAnswerItem")]
struct Answer {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    /// The same item came before, in an earlier request or in this one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::problem::Shape<'static>>")]
    error: Option<Box<RawValue>>,
}

/// The answer for the batch.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BatchAnswer")]
pub(super) struct Whole<'a> {
    accepted: usize,
    rejected: usize,
    items: &'a [Answer],
}

/// A job of the batch, whose answer is the one at `place`.
#[derive(Debug)]
struct Job {
    place: usize,
    job: Submission,
    named: Option<Named>,
    too_late: Option<FieldError>,
}

/// A batch on its way: an answer per item, and the jobs they are about.
#[derive(Debug, Default)]
struct Batch {
    answers: Vec<Answer>,
    /// Read, and nothing more.
    read: Vec<Job>,
    /// To be submitted, those with a claim whose client chose their id.
    ready: Vec<(usize, Submission, Option<Claim>)>,
    /// Items that are the same as an earlier one: their places, and its place.
    same: Vec<(usize, usize)>,
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

async fn read(app: &App, caller: &Caller, trace: &Headers, bytes: &Bytes, items: &[Item<'_>]) -> Batch {
    let now = Timestamp::now();
    let mut batch = Batch::default();
    for (index, item) in items.iter().enumerate() {
        let told = if batch.refused < TOLD_ALL { ITEM_ERRORS_MAX } else { 1 };
        match read_item(item, bytes, app, (caller, now), told) {
            Ok(mut draft) => {
                let (named, too_late) = (draft.named, draft.too_late.take());
                let mut job = draft.into_submission(|kind| app.client.queue_of(kind), trace, now);
                match caller.check(app, &mut job) {
                    Ok(()) => batch.add(item, job, named, too_late),
                    Err(problem) => batch.refuse(item, problem),
                }
            }
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
    (caller, now): (&Caller, Timestamp),
    told: usize,
) -> Result<Draft, Problem> {
    let read = || {
        let text = fields::text(item.text)?;
        Draft::read(
            text,
            bytes,
            &app.limits,
            app.callbacks.as_ref(),
            now,
            Choice::Members(caller.scope()),
            Errors::new(told),
        )
    };
    read().map_err(|problem| place(problem, item))
}

/// A line of NDJSON has its own line numbers, all of them 1: the batch's is put in place.
pub(super) fn place(problem: Problem, item: &Item<'_>) -> Problem {
    match (item.line, json::check(item.text)) {
        (Some(line), Err(JsonError::Syntax { detail, column, .. }))
            if problem.code == Code::MalformedJson =>
        {
            Problem::json(&JsonError::Syntax { detail, line, column })
        }
        _ => problem,
    }
}

/// A job to be submitted: its place, and what is held until that is done.
type Part = (usize, Submission, Option<Claim>, Option<(Arc<OwnedSemaphorePermit>, Room)>);
/// What became of it.
type Done = (usize, Result<Taken, Problem>);

async fn submit_each(app: &App, parts: Vec<Part>) -> Vec<Done> {
    let each = parts.into_iter().map(|(place, job, claim, held)| {
        let (id, named) = (job.envelope.id, claim.is_some());
        let submitted = keyed::submit(app, job, claim, true, held);
        async move { (place, submitted.await.map_err(|error| keyed::problem(&error, id, named))) }.boxed()
    });
    // In the items' order: see `spool::drain`.
    unconstrained(join_all(each)).await
}

async fn submit_together(app: &App, parts: Vec<Part>) -> Vec<Done> {
    let (places, jobs): (Vec<_>, Vec<_>) =
        parts.into_iter().map(|(place, job, ..)| ((place, job.envelope.id), job)).unzip();
    let results = keyed::submit_all(app, jobs).await;
    let done = |((place, id), result): ((usize, JobId), Result<Taken, Refusal>)| {
        (place, result.map_err(|error| keyed::problem(&error, id, false)))
    };
    places.into_iter().zip(results).map(done).collect()
}

fn written(problem: &Problem) -> Option<Box<RawValue>> {
    RawValue::from_string(problem.to_json()).ok()
}

impl Batch {
    fn add(&mut self, item: &Item<'_>, job: Submission, named: Option<Named>, too_late: Option<FieldError>) {
        let place = self.answers.len();
        self.answers.push(Answer {
            index: place,
            line: item.line,
            id: Some(job.envelope.id),
            status: Some(status_of(&job)),
            replayed: false,
            error: None,
        });
        self.read.push(Job { place, job, named, too_late });
    }

    /// Finds out which items are new.
    async fn begin(&mut self, app: &App, caller: &Caller) {
        let (mut named, mut first) = (Vec::new(), HashMap::new());
        for job in std::mem::take(&mut self.read) {
            let Some(name) = job.named else {
                self.ready.push((job.place, job.job, None));
                continue;
            };
            match first.get(&name.id) {
                None => {
                    first.insert(name.id, (job.place, name.digest));
                    named.push(job);
                }
                Some((place, digest)) if *digest == name.digest => self.same.push((job.place, *place)),
                Some(_) => self.fail(job.place, keyed::reused()),
            }
        }
        if named.is_empty() {
            return;
        }
        let asked = named
            .iter_mut()
            .filter_map(|job| Some((job.named?, &job.job.envelope.kind, job.too_late.take())));
        let begun = keyed::begin_all(app, asked.collect()).await;
        for (Job { place, job, .. }, begun) in named.into_iter().zip(begun) {
            match begun {
                Ok(Begun::New(claim)) => self.ready.push((place, job, claim)),
                Ok(Begun::Repeat(_)) => {
                    let now = keyed::status_now(app, caller, job.envelope.id).await;
                    let answer = &mut self.answers[place];
                    answer.status = now.or(answer.status);
                    answer.replayed = true;
                }
                Err(problem) => self.fail(place, problem),
            }
        }
    }

    /// Refuses what does not fit what its kind's workers say.
    async fn check(&mut self, app: &App) {
        let (mut fit, mut checking) = (Vec::with_capacity(self.ready.len()), app.checking());
        for (index, (place, job, claim)) in std::mem::take(&mut self.ready).into_iter().enumerate() {
            let told = if self.refused < TOLD_ALL { ITEM_ERRORS_MAX } else { 1 };
            match checking.check(&job.envelope, "/args", told).await {
                Ok(()) => fit.push((place, job, claim)),
                Err(problem) => {
                    self.refused += 1;
                    self.fail(place, problem);
                }
            }
            if index % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.ready = fit;
    }

    /// Submits what is ready.
    ///
    /// # Errors
    /// The problem, when too many requests await their confirm; nothing was submitted then.
    async fn submit(&mut self, app: &App, room: &mut Room) -> Result<(), Problem> {
        let ready = std::mem::take(&mut self.ready);
        if !ready.is_empty() {
            let entered = Arc::new(app.enter()?);
            let parts: Vec<Part> = ready
                .into_iter()
                .map(|(place, job, claim)| {
                    let held =
                        claim.is_some().then(|| (Arc::clone(&entered), room.split(job.envelope.args.len())));
                    (place, job, claim, held)
                })
                .collect();
            let (app, rest) = (app.clone(), room.split(usize::MAX));
            // Goes on when the client goes away, as a single submit does.
            let submitting = tokio::spawn(crate::trace::here(async move {
                let alone = |(_, job, claim, _): &Part| claim.is_some() || app.spools_now(job);
                let results = if parts.iter().any(alone) {
                    submit_each(&app, parts).await
                } else {
                    submit_together(&app, parts).await
                };
                drop(entered);
                (results, rest)
            }));
            let (results, rest) = finished(submitting.await)?;
            *room = rest;
            for (place, result) in results {
                match result {
                    Ok(Taken::Broker) => {}
                    Ok(Taken::Spool) => self.answers[place].status = Some(JobStatus::Spooled.as_str()),
                    Err(problem) => self.fail(place, problem),
                }
            }
        }
        for (place, first) in std::mem::take(&mut self.same) {
            let first = &self.answers[first];
            let (id, status, error) = (first.id, first.status, first.error.clone());
            let answer = &mut self.answers[place];
            answer.replayed = error.is_none();
            (answer.id, answer.status, answer.error) = (id, status, error);
        }
        Ok(())
    }

    fn refuse(&mut self, item: &Item<'_>, problem: Problem) {
        self.refused += 1;
        let index = self.answers.len();
        let error = written(&problem);
        let line = item.line;
        self.answers.push(Answer { index, line, id: None, status: None, replayed: false, error });
        self.weigh(problem);
    }

    /// The item at `place` was read and is refused all the same.
    fn fail(&mut self, place: usize, problem: Problem) {
        let answer = &mut self.answers[place];
        // Whoever's job may still run is told its id.
        (answer.id, answer.status) = (problem.job, None);
        answer.error = written(&problem);
        self.weigh(problem);
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
