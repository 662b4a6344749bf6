//! Acts on many jobs: `POST /v1/jobs/replay`, `POST /v1/jobs/cancel`, and `POST /v1/jobs/{id}/replay` for one.
//!
//! An act is a job: it is accepted as one (202, and its record shows its progress and its output). What this file does
//! at once is to check what is asked for, and to count it for a dry run.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    App,
    access::Caller,
    answer::{self, Accepted},
    body::{self, Inbound, Media},
    cancel::{BY_MAX, REASON_MAX, is_note},
    fields::{self, Errors, Items, Object},
    filter,
    job::{IdPath, read_id},
    jobs::ENVELOPE_ROOM,
    keyed::{self, Begun},
    naming::{self, Choice, Named},
    problem::{Code, Problem},
    submission::{APP_ID, ERRORS_MAX, check_args},
};
use crate::{
    acts::{Cancel, IDS_MAX, OWN_KINDS, Replay, Set, is_own_queue},
    client::Submission,
    job::{Envelope, Job, JobId, Kind, QueueName},
    record::{
        keys::Claim,
        model::{Filter, JobRecord, JobStatus, Summary},
    },
};

/// Jobs that are looked at to count those that fit.
const COUNT_MAX: usize = 10_000;
/// Jobs looked at together.
const PAGE: usize = 500;
/// Jobs looked up at the same time.
const LOOK_UPS: usize = 16;
/// Most groups of a queue that the record tells.
const GROUPS_MAX: usize = 1000;
/// The slowest rate, per second.
const RATE_MIN: f64 = 1e-6;

/// `POST /v1/jobs/{id}/replay`.
pub(super) async fn replay_one(State(app): State<App>, id: IdPath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = one(&app, id, &mut inbound).await;
    inbound.answer(result).await
}

/// `POST /v1/jobs/replay`.
pub(super) async fn replay(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = replay_many(&app, &mut inbound).await;
    inbound.answer(result).await
}

/// `POST /v1/jobs/cancel`.
pub(super) async fn cancel(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = cancel_many(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn one(app: &App, id: IdPath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let order = Order::read(app, inbound, &["set", "by", "reason"], false).await?;
    let id = read_id(id)?;
    let ticket = match open::<Replay>(app, &inbound.caller, order.named, false).await? {
        Opened::New(ticket) => ticket,
        Opened::Repeat(answer) => return Ok(answer),
    };
    let mut job = inbound.caller.visible(app, app.look_up(id).await?)?;
    if check_dead(&job).is_err() {
        // The record may be some milliseconds behind: whoever has just seen it die is not told that it lives.
        app.record.touch(id);
        job = inbound.caller.visible(app, app.look_up(id).await?)?;
    }
    let (queue, kind) = (Some(&job.summary.queue), job.summary.kind.as_ref());
    order.check_set(queue, kind)?;
    check_dead(&job)?;
    order.check_args(app, queue, kind).await?;
    let filter = Filter { queue: Some(job.summary.queue), ..Filter::default() };
    let act = Replay { filter, ids: Some(vec![id]), expected: Some(1), ..order.into_replay() };
    start(app, &act, ticket).await
}

/// Checks that a job waits for a replay.
fn check_dead(job: &JobRecord) -> Result<(), Problem> {
    let summary = &job.summary;
    let detail = match summary.status {
        JobStatus::Dead if summary.purged => {
            "its message was purged from the dead-letter queue: there is nothing left to replay".to_owned()
        }
        JobStatus::Dead => return Ok(()),
        status => format!("the job is {status}: only a dead one can be replayed"),
    };
    Err(Problem::new(Code::NotDead, detail).about(summary))
}

async fn replay_many(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let members = ["filter", "ids", "rate", "dry_run", "set", "by", "reason"];
    let mut order = Order::read(app, inbound, &members, true).await?;
    order.require_target(JobStatus::Dead)?;
    order.narrow(app, &inbound.caller).await?;
    order.filter.status = vec![JobStatus::Dead];
    replay_order(app, &inbound.caller, order).await
}

/// Counts what an order to replay is about, and gives it unless it is a dry run.
pub(super) async fn replay_order(app: &App, caller: &Caller, order: Order) -> Result<Response, Problem> {
    let ticket = match open::<Replay>(app, caller, order.named, order.dry_run).await? {
        Opened::New(ticket) => ticket,
        Opened::Repeat(answer) => return Ok(answer),
    };
    order.check_set(order.filter.queue.as_ref(), order.filter.kind.as_ref())?;
    let kind_of_group = check_group(app, &order.filter).await?;
    let kind = order.filter.kind.as_ref().or(kind_of_group.as_ref());
    order.check_args(app, order.filter.queue.as_ref(), kind).await?;
    // What "all" is about does not include acts and callbacks.
    let all = order.filter.queue.is_none() && order.ids.is_none();
    let fit = |job: &Summary| is_replayable(job) && !(all && is_own_queue(&job.queue));
    let found = count(app, &order.filter, order.ids.as_deref(), fit).await?;
    if order.dry_run {
        return Ok(found.answer());
    }
    let act = Replay { expected: found.expected(), ..order.into_replay() };
    start(app, &act, ticket).await
}

/// Whether a job has a dead message.
pub(super) fn is_replayable(job: &Summary) -> bool {
    job.status == JobStatus::Dead && !job.purged
}

/// Checks that a group of dead jobs that is asked for is there; its kind, as far as that is known.
pub(super) async fn check_group(app: &App, filter: &Filter) -> Result<Option<Kind>, Problem> {
    let Some(fingerprint) = &filter.fingerprint else { return Ok(None) };
    let failed = |error| Problem::record(&error);
    app.catch_up().await?;
    let queues = match &filter.queue {
        Some(queue) => vec![queue.clone()],
        None => app.record.queues().await.map_err(failed)?.into_keys().collect(),
    };
    for queue in queues {
        let mut groups = app.record.groups(queue).await.map_err(failed)?.into_iter();
        // Where there are as many as are told, there may be more.
        let is_cut = groups.len() >= GROUPS_MAX;
        let group = groups.find(|group| group.fingerprint == *fingerprint);
        if group.is_some() || is_cut {
            return Ok(group.and_then(|group| group.kind));
        }
    }
    Err(Problem::new(Code::UnknownGroup, "no dead job that can be replayed has this fingerprint"))
}

async fn cancel_many(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let members = ["filter", "ids", "dry_run", "by", "reason"];
    let mut order = Order::read(app, inbound, &members, true).await?;
    order.require_target(JobStatus::Queued)?;
    order.narrow(app, &inbound.caller).await?;
    if order.filter.status.is_empty() {
        order.filter.status = JobStatus::ALL.into_iter().filter(|status| !status.is_final()).collect();
    }
    let ticket = match open::<Cancel>(app, &inbound.caller, order.named, order.dry_run).await? {
        Opened::New(ticket) => ticket,
        Opened::Repeat(answer) => return Ok(answer),
    };
    let is_open = |job: &Summary| !job.status.is_final() && job.cancel.is_none();
    let found = count(app, &order.filter, order.ids.as_deref(), is_open).await?;
    if order.dry_run {
        return Ok(found.answer());
    }
    let Order { filter, ids, by, reason, .. } = order;
    start(app, &Cancel { filter, ids, by, reason, expected: found.expected() }, ticket).await
}

/// What a request for an act is.
pub(super) enum Opened {
    /// To be checked and started.
    New(Ticket),
    /// A repeat, and its answer.
    Repeat(Response),
}

/// The right to start an act; dropped, it is as if the request had never come.
#[derive(Debug)]
pub(super) struct Ticket {
    named: Option<Named>,
    claim: Option<Claim>,
}

/// Finds out whether a request for an act is a repeat, before anything is checked that the first one may have changed.
/// A dry run changes nothing, so its name does not matter.
pub(super) async fn open<A: Job>(
    app: &App,
    caller: &Caller,
    named: Option<Named>,
    dry_run: bool,
) -> Result<Opened, Problem> {
    let named = named.filter(|_| !dry_run);
    let job = submission::<A>(app, Bytes::new(), named)?;
    match keyed::begin(app, named, &job.envelope.kind, None).await? {
        Begun::New(claim) => Ok(Opened::New(Ticket { named, claim })),
        Begun::Repeat(repeat) => keyed::answer(app, caller, repeat, job, None).await.map(Opened::Repeat),
    }
}

/// Submits an act.
pub(super) async fn start<A: Job>(app: &App, act: &A, ticket: Ticket) -> Result<Response, Problem> {
    let args = serde_json::to_vec(act).map_err(|error| internal(&error))?;
    check_args(args.len(), &app.limits)?;
    let job = submission::<A>(app, Bytes::from(args), ticket.named)?;
    let accepted = Accepted::new(&job);
    let taken = app.submit(job, ticket.claim, (), None).await?;
    Ok(accepted.taken(taken).response())
}

fn submission<A: Job>(app: &App, args: Bytes, named: Option<Named>) -> Result<Submission, Problem> {
    let kind = Kind::parse(A::KIND).map_err(|error| internal(&error))?;
    let mut envelope = Envelope::new(kind, app.acts.clone(), args);
    envelope.created_at = Some(Timestamp::now());
    envelope.app_id = Some(APP_ID.to_owned());
    let mut job = Submission::new(envelope, Duration::ZERO);
    if let Some(named) = named {
        named.put_on(&mut job);
    }
    Ok(job)
}

fn internal(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "an act cannot be made");
    Problem::new(Code::Internal, "the act could not be made; the log says why")
}

/// What an act is to be about, as a request says it.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The act's name, if the request has a key.
    pub(super) named: Option<Named>,
    pub(super) filter: Filter,
    /// Whether the request has a filter, if only an empty one.
    has_filter: bool,
    pub(super) ids: Option<Vec<JobId>>,
    pub(super) all: bool,
    rate: Option<f64>,
    pub(super) dry_run: bool,
    set: Option<Box<RawValue>>,
    pub(super) by: Option<String>,
    pub(super) reason: Option<String>,
}

impl Order {
    /// Reads a request's body, which may have these members; an empty one only where it is not `required`.
    pub(super) async fn read(
        app: &App,
        inbound: &mut Inbound,
        members: &[&str],
        required: bool,
    ) -> Result<Self, Problem> {
        let media = inbound.media(false)?;
        let received = inbound.read(app.limits.args + ENVELOPE_ROOM).await?;
        if media == Media::Unsaid && !received.bytes.is_empty() {
            return Err(body::content_type_missing());
        }
        let mut errors = Errors::new(ERRORS_MAX);
        let choice = Choice::of(None, &inbound.parts.headers, inbound.caller.scope(), &mut errors);
        let [] = inbound.query([], &mut errors);
        let text = fields::text(&received.bytes)?;
        let text = if text.is_empty() && !required { "{}" } else { text };
        let object = Object::parse(text, "")?;
        let named = choice.named(|| naming::digest_of_act(&inbound.parts, Some(&object)));
        let mut order = Self { named, ..Self::parse(object, members, errors)? };
        order.by = inbound.caller.by(order.by);
        Ok(order)
    }

    /// Reads an order from its JSON.
    fn parse(mut object: Object<'_>, members: &[&str], mut errors: Errors) -> Result<Self, Problem> {
        let errors_ref = &mut errors;
        let mut order = Self::default();
        for member in members {
            match *member {
                "filter" => {
                    let raw = object.take_raw("filter", errors_ref);
                    order.has_filter = raw.is_some();
                    order.filter = raw.map(|raw| read_filter(raw, errors_ref)).unwrap_or_default();
                }
                "kind" | "fingerprint" => {
                    let text = object.take(member, errors_ref, fields::string);
                    let own = filter_of(&[(member, text)], "", errors_ref);
                    order.filter.kind = own.kind.or(order.filter.kind);
                    order.filter.fingerprint = own.fingerprint.or(order.filter.fingerprint);
                }
                "ids" => order.ids = object.take_raw("ids", errors_ref).map(|raw| read_ids(raw, errors_ref)),
                "all" => order.all = object.take("all", errors_ref, truth).unwrap_or_default(),
                "rate" => order.rate = object.take("rate", errors_ref, rate),
                "dry_run" => order.dry_run = object.take("dry_run", errors_ref, truth).unwrap_or_default(),
                "set" => {
                    order.set = object.take_raw("set", errors_ref).and_then(|raw| read_set(raw, errors_ref));
                }
                "by" => order.by = object.take("by", errors_ref, |raw| note(raw, BY_MAX)),
                _ => order.reason = object.take("reason", errors_ref, |raw| note(raw, REASON_MAX)),
            }
        }
        object.finish(members, &mut errors);
        errors.none_or(Some(order))
    }

    /// Checks that the order says what it is about, in words that fit jobs that are `like` that.
    fn require_target(&self, like: JobStatus) -> Result<(), Problem> {
        let mut errors = Errors::new(ERRORS_MAX);
        if !self.has_filter && self.ids.is_none() {
            errors.at("", "must have filter or ids; an empty filter stands for all");
        }
        if self.has_filter && self.ids.is_some() {
            errors.at("/ids", "cannot be given together with filter");
        }
        let wrong =
            |status: &&JobStatus| status.is_final() != like.is_final() || like.is_final() && **status != like;
        if let Some(status) = self.filter.status.iter().find(wrong) {
            errors.at("/filter/status", format!("{status} cannot be asked for here"));
        }
        errors.none_or(Some(()))
    }

    /// Keeps the order to what its caller may touch: the queue of the filter; of jobs that are named by id, theirs.
    async fn narrow(&mut self, app: &App, caller: &Caller) -> Result<(), Problem> {
        let Some(ids) = self.ids.as_ref().filter(|_| caller.queues().is_some()) else {
            return match caller.queues() {
                Some(_) => caller.narrow_act(&mut self.filter.queue),
                None => Ok(()),
            };
        };
        app.catch_up().await?;
        let known = ids.clone().into_iter().map(|id| app.record.job(id, Duration::ZERO));
        let mut known = stream::iter(known).buffered(LOOK_UPS);
        while let Some(job) = known.next().await {
            let queue = caller.visible(app, job.ok().flatten())?.summary.queue;
            let queue = self.filter.queue.get_or_insert_with(|| queue.clone()) == &queue;
            if !queue {
                return caller.narrow_act(&mut None);
            }
        }
        caller.narrow_act(&mut self.filter.queue)
    }

    /// Refuses other args for acts and callbacks. Of those that the order does not name, the act says so.
    fn check_set(&self, queue: Option<&QueueName>, kind: Option<&Kind>) -> Result<(), Problem> {
        let own =
            queue.is_some_and(is_own_queue) || kind.is_some_and(|kind| kind.as_str().starts_with(OWN_KINDS));
        let mut errors = Errors::new(1);
        if own && self.set.is_some() {
            errors.at(
                "/set",
                "acts and callbacks keep their args: what they are about was checked, or is signed",
            );
        }
        errors.none_or(Some(()))
    }

    /// Refuses args that do not fit what the workers of the kind say of them, as a submit's are refused. Without a kind
    /// the jobs may be of any.
    async fn check_args(
        &self,
        app: &App,
        queue: Option<&QueueName>,
        kind: Option<&Kind>,
    ) -> Result<(), Problem> {
        let (Some(args), Some(kind)) = (&self.set, kind) else { return Ok(()) };
        let queue = queue.cloned().unwrap_or_else(|| app.client.queue_of(kind));
        app.checking().check_args((kind, &queue), args.get().as_bytes(), "/set/args", ERRORS_MAX).await
    }

    fn into_replay(self) -> Replay {
        let Self { filter, ids, rate, set, by, reason, .. } = self;
        Replay { filter, ids, rate, set: set.map(|args| Set { args }), by, reason, expected: None }
    }
}

/// Counts the jobs that `ids`, else `filter`, is about, of those that `fit`.
pub(super) async fn count(
    app: &App,
    filter: &Filter,
    ids: Option<&[JobId]>,
    fit: impl Fn(&Summary) -> bool,
) -> Result<Count, Problem> {
    app.catch_up().await?;
    let mut count = Count::default();
    if let Some(ids) = ids {
        let fits = |job: &Summary| fit(job) && filter.queue.as_ref().is_none_or(|queue| job.queue == *queue);
        let ids: BTreeSet<JobId> = ids.iter().copied().collect();
        // After catching up, what is not known now does not exist.
        let known = ids.into_iter().map(|id| app.record.job(id, Duration::ZERO));
        let mut known = stream::iter(known).buffer_unordered(LOOK_UPS);
        while let Some(job) = known.next().await {
            count.matched += u64::from(job.ok().flatten().is_some_and(|job| fits(&job.summary)));
        }
        return Ok(count);
    }
    let (mut after, mut looked_at) = (None, 0);
    loop {
        let page = app.record.jobs(filter.clone(), PAGE, after).await;
        let page = page.map_err(|error| Problem::record(&error))?;
        looked_at += page.items.len();
        count.matched += page.items.iter().filter(|job| fit(job)).count() as u64;
        match page.next {
            Some(_) if looked_at >= COUNT_MAX => {
                count.at_least = true;
                return Ok(count);
            }
            Some(next) => after = Some(next),
            None => return Ok(count),
        }
    }
}

/// How many jobs an order is about.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub(super) struct Count {
    matched: u64,
    /// There are more, which were not counted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    at_least: bool,
}

impl Count {
    /// The answer of a dry run.
    pub(super) fn answer(self) -> Response {
        answer::json_of(StatusCode::OK, &self)
    }

    /// What the act's progress is measured by.
    pub(super) fn expected(self) -> Option<u64> {
        (!self.at_least).then_some(self.matched)
    }
}

/// Reads `filter`: the members are the parameters of a list.
fn read_filter(raw: &RawValue, errors: &mut Errors) -> Filter {
    let Ok(mut object) = Object::parse(raw.get(), "/filter") else {
        errors.at("/filter", "must be an object");
        return Filter::default();
    };
    let values = filter::PARAMETERS.map(|name| {
        let read = if name == "status" { statuses } else { fields::string };
        (name, object.take(name, errors, read))
    });
    object.finish(&filter::PARAMETERS, errors);
    filter_of(&values.each_ref().map(|(name, value)| (name, value.clone())), "/filter", errors)
}

/// Reads members as a list's parameters are read; what is wrong with them goes to `errors`, at its place below `at`.
fn filter_of(values: &[(&&str, Option<String>)], at: &str, errors: &mut Errors) -> Filter {
    let mut own = Errors::new(ERRORS_MAX);
    let value =
        |name: &str| values.iter().find(|(known, _)| **known == name).and_then(|(_, value)| value.clone());
    let filter = filter::read(filter::PARAMETERS.map(value), &mut own);
    for error in own.into_list().1 {
        errors.at(format!("{at}/{}", error.parameter.unwrap_or_default()), error.detail);
    }
    filter
}

/// Reads states: a text as a list's parameter has it, or an array of texts.
fn statuses(raw: &RawValue) -> Result<String, String> {
    if raw.get().starts_with('"') {
        return fields::string(raw);
    }
    let wrong = || "must be text, or an array of texts".to_owned();
    let items = Items::parse(raw.get(), JobStatus::ALL.len()).map_err(|_| wrong())?;
    let texts: Result<Vec<_>, _> = items.list.iter().map(|item| fields::string(item)).collect();
    match texts {
        Ok(texts) if items.more == 0 => Ok(texts.join(",")),
        _ => Err(wrong()),
    }
}

fn read_ids(raw: &RawValue, errors: &mut Errors) -> Vec<JobId> {
    let Ok(items) = Items::parse(raw.get(), IDS_MAX) else {
        errors.at("/ids", "must be an array of job ids");
        return Vec::new();
    };
    if items.list.is_empty() {
        errors.at("/ids", "must name at least one job");
    }
    if items.more > 0 {
        let all = items.list.len() + items.more;
        errors.at("/ids", format!("has {all} ids; at most {IDS_MAX} are allowed"));
    }
    let mut ids = Vec::with_capacity(items.list.len());
    for (index, item) in items.list.iter().enumerate() {
        match fields::string(item).map(|text| text.parse()) {
            Ok(Ok(id)) => ids.push(id),
            Ok(Err(_)) => errors.at(format!("/ids/{index}"), "must be a job id, a UUID"),
            Err(detail) => errors.at(format!("/ids/{index}"), detail),
        }
    }
    ids
}

fn read_set(raw: &RawValue, errors: &mut Errors) -> Option<Box<RawValue>> {
    let Ok(mut object) = Object::parse(raw.get(), "/set") else {
        errors.at("/set", "must be an object with args");
        return None;
    };
    let args = object.take_raw("args", errors).map(ToOwned::to_owned);
    if args.is_none() {
        errors.at("/set/args", "is missing: it is what can be set");
    }
    object.finish(&["args"], errors);
    args
}

fn rate(raw: &RawValue) -> Result<f64, String> {
    match fields::number(raw)? {
        rate if rate >= RATE_MIN && rate.is_finite() => Ok(rate),
        _ => Err(format!("must be above 0: jobs per second, at least {RATE_MIN}")),
    }
}

fn truth(raw: &RawValue) -> Result<bool, String> {
    match raw.get() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

fn note(raw: &RawValue, max: usize) -> Result<String, String> {
    let text = fields::string(raw)?;
    if is_note(&text, max) {
        return Ok(text);
    }
    Err(format!("must be 1 to {max} bytes of text without control characters"))
}

#[cfg(test)]
#[path = "acts_tests.rs"]
mod tests;
