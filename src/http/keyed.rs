//! Repeating safely: requests whose client chose the job's id, or gave a key that stands for one.
//!
//! The id is reserved durably before the job is published (`record::keys`), so on one replica a job is published once
//! for any number of repeats. What this replica does not know is asked of the record: another replica's job is there as
//! soon as it was accepted. Two replicas that get the same request at the same moment may both publish it; such jobs are
//! marked unsure, so workers ask the record before they run one (`docs/http.md`, "Repeating safely").
//!
//! A publish whose fate is unknown is not repeated while the broker may still answer it: it goes on, and keeps its
//! claim, after its caller was told that the time is up or has gone away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode},
    response::Response,
};
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::{
    task::coop::unconstrained,
    time::{Instant, timeout_at},
};

use super::{
    App,
    access::Caller,
    answer::{self, Accepted},
    fields::FieldError,
    naming::Named,
    problem::{Code, Problem},
    spooling::{Refusal, Taken},
};
use crate::{
    client::{Submission, SubmitError},
    job::{JobId, Kind},
    record::{
        RecordError,
        keys::{Claim, KeysError, Reserved},
        model::JobRecord,
    },
    spool::SpoolError,
};

/// The answer's header that says that nothing new was submitted.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longest time for the fate of a publish to become known. The publisher knows sooner: when the broker answers, or the
/// connection ends. Only an alarm of the broker lasts so long.
const FATE: Duration = Duration::from_secs(600);
/// Jobs of a batch that are looked up at the same time.
const LOOK_UPS: usize = 16;

/// What a request is.
#[derive(Debug)]
pub(super) enum Begun {
    /// To be submitted; with a claim, if its client chose the id.
    New(Option<Claim>),
    /// A repeat of one whose job was accepted.
    Repeat(Repeat),
}

/// The repeat of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeat {
    /// When the first one came, if it came here.
    since: Option<Timestamp>,
}

/// Finds out what a request is. `kind` is of the job that it would submit, and `too_late` what would be wrong with that.
///
/// # Errors
/// The problem, when the id belongs to another request, the first one is still on its way, or nobody can tell.
pub(super) async fn begin(
    app: &App,
    named: Option<Named>,
    kind: &Kind,
    too_late: Option<FieldError>,
) -> Result<Begun, Problem> {
    match named {
        None => Ok(Begun::New(None)),
        // Boxed: each submit would have room for it, several KiB.
        Some(named) => Box::pin(begin_named(app, named, kind, too_late)).await,
    }
}

async fn begin_named(
    app: &App,
    named: Named,
    kind: &Kind,
    too_late: Option<FieldError>,
) -> Result<Begun, Problem> {
    let reserved = app.keys.reserve(named.id, named.digest).await;
    let claim = match weigh(named.id, reserved)? {
        Weighed::Repeat(repeat) => return Ok(Begun::Repeat(repeat)),
        Weighed::Claim(claim) => claim,
    };
    let known = match app.look_up_within(named.id, app.patience()).await {
        // While the broker is away nobody knows what other processes took. The job is marked unsure, so a second one is
        // recognised.
        Err(problem) if problem.code == Code::RecordBehind && app.can_spool() => None,
        known => known?,
    };
    compare(claim, known.as_ref(), named, kind, too_late).await
}

/// As [`begin`], for many: one transaction, and one look at the end of the log.
pub(super) async fn begin_all(
    app: &App,
    asked: Vec<(Named, &Kind, Option<FieldError>)>,
) -> Vec<Result<Begun, Problem>> {
    let names: Vec<_> = asked.iter().map(|(named, ..)| (named.id, named.digest)).collect();
    let reserved = app.keys.reserve_all(names.clone()).await;
    let reserved: Vec<_> =
        names.iter().zip(reserved).map(|((id, _), reserved)| weigh(*id, reserved)).collect();
    let unknown = reserved.iter().any(|reserved| matches!(reserved, Ok(Weighed::Claim(_))));
    let behind =
        if unknown { app.record.catch_up(Instant::now() + app.patience()).await.err() } else { None };
    // See [`begin`].
    let behind = behind.filter(|error| !(matches!(error, RecordError::Behind(_)) && app.can_spool()));
    let mut begun = Vec::with_capacity(reserved.len());
    let mut each = reserved.into_iter().zip(asked);
    loop {
        let some: Vec<_> = each.by_ref().take(LOOK_UPS).collect();
        if some.is_empty() {
            return begun;
        }
        let looks = some.into_iter().map(|(weighed, asked)| look(app, weighed, asked, behind.as_ref()));
        begun.extend(join_all(looks).await);
    }
}

async fn look(
    app: &App,
    weighed: Result<Weighed, Problem>,
    (named, kind, too_late): (Named, &Kind, Option<FieldError>),
    behind: Option<&RecordError>,
) -> Result<Begun, Problem> {
    let claim = match weighed? {
        Weighed::Repeat(repeat) => return Ok(Begun::Repeat(repeat)),
        Weighed::Claim(claim) => claim,
    };
    if let Some(waiting) = app.spooled(named.id).await? {
        return compare(claim, Some(&waiting), named, kind, too_late).await;
    }
    if let Some(error) = behind {
        return Err(Problem::record(error));
    }
    let known = match app.record.job(named.id, Duration::ZERO).await {
        Ok(known) => known,
        // It is not known, and before it was caught up with.
        Err(RecordError::Behind(_)) => None,
        Err(error) => return Err(Problem::record(&error)),
    };
    compare(claim, known.as_ref(), named, kind, too_late).await
}

/// What the reservation says.
enum Weighed {
    Claim(Claim),
    Repeat(Repeat),
}

fn weigh(id: JobId, reserved: Result<Reserved, KeysError>) -> Result<Weighed, Problem> {
    match reserved {
        Ok(Reserved::New(claim) | Reserved::Unsure(claim)) => Ok(Weighed::Claim(claim)),
        Ok(Reserved::Accepted { since }) => Ok(Weighed::Repeat(Repeat { since: Some(since) })),
        Ok(Reserved::InFlight) => {
            let detail = "the same request came before and its job is not confirmed yet; ask again";
            Err(Problem { job: Some(id), ..Problem::new(Code::InFlight, detail) })
        }
        Ok(Reserved::Other) => Err(reused()),
        Err(KeysError::Full) => Err(Problem::new(
            Code::KeysFull,
            "record.max_keys jobs with ids and keys are on their way, or their fate is not known; nothing was submitted; try again",
        )),
        Err(KeysError::Unavailable(why)) => {
            Err(Problem::new(Code::KeysUnavailable, format!("{why}; nothing was submitted; try again")))
        }
    }
}

/// What the request is, by what the record knows of its id.
async fn compare(
    claim: Claim,
    known: Option<&JobRecord>,
    named: Named,
    kind: &Kind,
    too_late: Option<FieldError>,
) -> Result<Begun, Problem> {
    match (known, too_late) {
        (Some(known), _) if is_same(known, named, kind) => {
            claim.confirm().await;
            Ok(Begun::Repeat(Repeat { since: None }))
        }
        (Some(_), _) => Err(reused()),
        (None, Some(error)) => {
            let detail = error.to_string();
            Err(Problem { errors: vec![error], ..Problem::new(Code::InvalidRequest, detail) })
        }
        (None, None) => Ok(Begun::New(Some(claim))),
    }
}

/// Whether the job that is known was submitted by this request.
fn is_same(known: &JobRecord, named: Named, kind: &Kind) -> bool {
    match &known.summary.request {
        Some(request) => *request == named.digest.to_string(),
        // Its submit was never told, because who took it died just then: only workers have spoken of it.
        None => {
            let told = known.args.is_some() || known.args_omitted;
            !told && known.summary.kind.as_ref() == Some(kind)
        }
    }
}

/// The id or key belongs to another request.
pub(super) fn reused() -> Problem {
    Problem::new(
        Code::KeyReused,
        "another request was made with this id or key: a new request needs a new one",
    )
}

/// Submits a job, within its claim if it has one. One that has goes on in the background when the time is up or the
/// caller goes away, and keeps the claim and `held` so long.
pub(super) async fn submit(
    app: &App,
    job: Submission,
    claim: Option<Claim>,
    patient: bool,
    held: impl Send + 'static,
) -> Result<Taken, Refusal> {
    let deadline = Instant::now() + app.confirm_timeout;
    match claim {
        // Boxed, as the ways to the spool are: each submit would have room for it, several KiB.
        Some(claim) => Box::pin(submit_claimed(app, job, claim, patient, held, deadline)).await,
        None => hand_over(app, job, patient, deadline, || {}).await,
    }
}

/// Whether a job without a claim may go with those of other requests.
pub(super) fn gathers(app: &App, job: &Submission) -> bool {
    !app.can_spool() && app.client.gathers(job)
}

/// Submits a job that [`gathers`]; it goes on when the caller goes away, and keeps `held` so long. `told` is, in the end.
pub(super) fn submit_gathered(
    app: &App,
    job: Submission,
    held: impl Send + 'static,
    told: impl FnOnce(Result<Taken, Refusal>) + Send + 'static,
) {
    let (give_up, kind) = (Instant::now() + app.confirm_timeout, job.envelope.kind.clone());
    let counting = app.clone();
    app.client.submit_gathered(job, give_up, move |result| {
        let result = result.map_err(Refusal::from).map(|event| {
            counting.record.submitted(event);
            Taken::Broker
        });
        counting.count_submit(&kind, &result);
        drop(held);
        told(result);
    });
}

/// Submits jobs that have no claims, in order; those that the broker does not take go to the spool where that is due.
pub(super) async fn submit_all(app: &App, mut jobs: Vec<Submission>) -> Vec<Result<Taken, Refusal>> {
    let give_up = Instant::now() + app.confirm_timeout;
    let submitted = app.client.submit_together(&mut jobs, give_up).await;
    let (mut taken, mut failed) = (Vec::with_capacity(jobs.len()), Vec::new());
    for (index, result) in submitted.into_iter().enumerate() {
        taken.push(Ok(Taken::Broker));
        match result {
            Ok(event) => app.record.submitted(event),
            Err(error) => failed.push((index, error)),
        }
    }
    let spooled =
        failed.into_iter().map(async |(index, error)| (index, app.spool_after(error, &jobs[index]).await));
    // In the jobs' order: see `spool::drain`.
    for (index, result) in unconstrained(join_all(spooled)).await {
        taken[index] = result;
    }
    for (job, result) in jobs.iter().zip(&taken) {
        app.count_submit(&job.envelope.kind, result);
    }
    taken
}

/// Hands a job to the broker, or to the spool where that is due, and counts it. `confirmed` is told when the broker has
/// it.
async fn hand_over(
    app: &App,
    job: Submission,
    patient: bool,
    give_up: Instant,
    confirmed: impl FnOnce() + Send,
) -> Result<Taken, Refusal> {
    let kind = job.envelope.kind.clone();
    let result = take(app, job, patient, give_up, confirmed).await;
    app.count_submit(&kind, &result);
    result
}

async fn take(
    app: &App,
    job: Submission,
    patient: bool,
    give_up: Instant,
    confirmed: impl FnOnce() + Send,
) -> Result<Taken, Refusal> {
    if app.spools_now(&job) {
        return Box::pin(app.spool(&job)).await;
    }
    let kept = app.can_spool().then(|| job.clone());
    match (app.client.submit_watched(job, patient, give_up, confirmed).await, kept) {
        (Ok(event), _) => {
            app.record.submitted(event);
            Ok(Taken::Broker)
        }
        (Err(error), Some(job)) => Box::pin(app.spool_after(error, &job)).await,
        (Err(error), None) => Err(error.into()),
    }
}

async fn submit_claimed(
    app: &App,
    job: Submission,
    mut claim: Claim,
    patient: bool,
    held: impl Send + 'static,
    deadline: Instant,
) -> Result<Taken, Refusal> {
    let (app, record, id) = (app.clone(), app.record.clone(), job.envelope.id);
    let confirmed = Arc::new(AtomicBool::new(false));
    let confirm = Arc::clone(&confirmed);
    claim.publishing();
    let task = tokio::spawn(crate::trace::here(async move {
        let _held = held;
        let confirm = || confirm.store(true, Ordering::Release);
        let result = hand_over(&app, job, patient, Instant::now() + FATE, confirm).await;
        match &result {
            Ok(_) => claim.confirm().await,
            // It may be stored.
            Err(
                Refusal::Submit(SubmitError::Timeout | SubmitError::Lost(_))
                | Refusal::Spool(SpoolError::Unavailable(_) | SpoolError::Timeout),
            ) => drop(claim),
            Err(_) => claim.refused(),
        }
        result
    }));
    match timeout_at(deadline, task).await {
        Ok(done) => done.unwrap_or_else(|_| Err(SubmitError::Lost("it broke off here".to_owned()).into())),
        // The broker has the job, and its event is on its way.
        Err(_) if confirmed.load(Ordering::Acquire) => {
            record.touch(id);
            Ok(Taken::Broker)
        }
        Err(_) => Err(SubmitError::Timeout.into()),
    }
}

/// Why `job` was not accepted, or may not have been.
pub(super) fn problem(refusal: &Refusal, job: JobId, named: bool) -> Problem {
    let problem = refusal.problem(job);
    match problem.code {
        Code::ConfirmTimeout | Code::ConfirmLost if named => Problem {
            detail: "the job may still run: repeat this request to learn what became of it".into(),
            ..problem
        },
        _ => problem,
    }
}

/// The status of a job, if it is known now and the caller sees it.
pub(super) async fn status_now(app: &App, caller: &Caller, id: JobId) -> Option<&'static str> {
    let known = match app.spooled(id).await.ok().flatten() {
        Some(job) => Some(job),
        None => app.record.job(id, Duration::ZERO).await.ok().flatten(),
    };
    known.filter(|job| caller.sees(app, job)).map(|job| job.summary.status.as_str())
}

/// The answer to the repeat of a submit: the job as it is now, or as it is when its run ends, if that is not later than
/// `deadline`. Where the record has nothing of it (its events are not written yet, or it is forgotten), the first
/// answer again.
///
/// # Errors
/// The problem, when too many wait.
pub(super) async fn answer(
    app: &App,
    caller: &Caller,
    repeat: Repeat,
    mut job: Submission,
    deadline: Option<Instant>,
) -> Result<Response, Problem> {
    let id = job.envelope.id;
    let known = match deadline {
        Some(deadline) => app.await_record(id, deadline).await,
        None => app.look_up(id).await,
    };
    let known = match known {
        Err(problem) if problem.code != Code::RecordBehind => return Err(problem),
        known => known.ok().flatten(),
    };
    // The kind went to another queue then.
    if known.as_ref().is_some_and(|job| !caller.sees(app, job)) {
        return Err(reused());
    }
    let mut response = if let Some(known) = &known {
        answer::record(StatusCode::OK, known)
    } else {
        job.envelope.created_at = repeat.since.or(job.envelope.created_at);
        let mut first = Accepted::new(&job).response();
        *first.status_mut() = StatusCode::OK;
        first
    };
    say_replayed(&mut response);
    Ok(response)
}

/// Says that nothing new was submitted.
pub(super) fn say_replayed(response: &mut Response) {
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
}
