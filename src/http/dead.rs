//! Dead jobs of a queue: `GET /v1/queues/{queue}/dead` and `…/groups` from the record, `POST …/dead/replay`,
//! `DELETE …/dead`; and `DELETE /v1/queues/{queue}/jobs`, which purges what waits.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    App,
    acts::{Opened, Order, check_group, count, is_replayable, open, replay_order, start},
    answer,
    body::Inbound,
    cancel::{read_by, read_reason},
    fields::Errors,
    filter, list,
    naming::{self, Choice},
    problem::{Code, Problem},
    queues::{QueuePath, no_queue, read_queue},
    submission::ERRORS_MAX,
};
use crate::{
    acts::{Purge, Target},
    event::time_text,
    job::{JobId, Kind, QueueName},
    record::model::{Filter, Group, JobStatus},
};

/// `GET /v1/queues/{queue}/dead`.
pub(super) async fn list(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = match read_queue(queue) {
        Ok(queue) => list::dead(&app, &mut inbound, queue).await,
        Err(problem) => Err(problem),
    };
    inbound.answer(result).await
}

/// `GET /v1/queues/{queue}/dead/groups`.
pub(super) async fn groups(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show_groups(&app, queue, &mut inbound).await;
    inbound.answer(result).await
}

/// A group as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadGroup")]
pub(super) struct Shown<'a> {
    fingerprint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a Kind>,
    code: &'a str,
    reason: &'a str,
    message: &'a str,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at: Option<String>,
    latest: JobId,
}

impl<'a> From<&'a Group> for Shown<'a> {
    fn from(group: &'a Group) -> Self {
        Self {
            fingerprint: &group.fingerprint,
            kind: group.kind.as_ref(),
            code: &group.code,
            reason: &group.reason,
            message: &group.message,
            count: group.count,
            first_at: group.first_at.map(time_text),
            last_at: group.last_at.map(time_text),
            latest: group.latest,
        }
    }
}

async fn show_groups(app: &App, queue: QueuePath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let queue = read_queue(queue)?;
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))?;
    check_queue(app, &queue).await?;
    let groups = app.record.groups(queue).await.map_err(|error| Problem::record(&error))?;
    let items: Vec<Shown<'_>> = groups.iter().map(Shown::from).collect();
    Ok(answer::json_of(StatusCode::OK, &serde_json::json!({ "items": items })))
}

/// Checks that a queue exists, or that there was a job for it.
pub(super) async fn check_queue(app: &App, queue: &QueueName) -> Result<(), Problem> {
    let known = app.record.queues().await.map_err(|error| Problem::record(&error))?;
    if known.contains_key(queue) || app.queues.contains(queue) {
        return Ok(());
    }
    match app.client.depth(queue).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(no_queue()),
        Err(error) => Err(Problem::act(&error)),
    }
}

/// `POST /v1/queues/{queue}/dead/replay`.
pub(super) async fn replay(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = order_replay(&app, queue, &mut inbound).await;
    inbound.answer(result).await
}

async fn order_replay(app: &App, queue: QueuePath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let members = ["kind", "fingerprint", "ids", "all", "rate", "dry_run", "set", "by", "reason"];
    let mut order = Order::read(app, inbound, &members, true).await?;
    let queue = read_queue(queue)?;
    let some = order.ids.is_some() || order.filter.kind.is_some() || order.filter.fingerprint.is_some();
    if some == order.all {
        let mut errors = Errors::new(ERRORS_MAX);
        errors.at("", "must have some of kind, fingerprint and ids, or else \"all\": true");
        return Err(Problem::invalid(errors));
    }
    check_queue(app, &queue).await?;
    (order.filter.queue, order.filter.status) = (Some(queue), vec![JobStatus::Dead]);
    replay_order(app, &inbound.caller, order).await
}

/// `DELETE /v1/queues/{queue}/dead`.
pub(super) async fn purge(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = order_purge(&app, queue, &mut inbound).await;
    inbound.answer(result).await
}

async fn order_purge(app: &App, queue: QueuePath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let choice = Choice::of(None, &inbound.parts.headers, inbound.caller.scope(), &mut errors);
    let [kind, fingerprint, id, dry_run, by, reason] =
        inbound.query(["kind", "fingerprint", "id", "dry_run", "by", "reason"], &mut errors);
    let (by, reason) = (inbound.caller.by(read_by(by, &mut errors)), read_reason(reason, &mut errors));
    let filter = filter::read([None, None, kind, None, None, None, None, fingerprint], &mut errors);
    let ids = id.map(|text| read_ids(&text, &mut errors));
    let dry_run = dry_run.is_some_and(|text| read_truth(&text, &mut errors));
    let queue = read_queue(queue)?;
    errors.none_or(Some(()))?;
    let named = choice.named(|| naming::digest_of_act(&inbound.parts, None));
    let ticket = match open::<Purge>(app, &inbound.caller, named, dry_run).await? {
        Opened::New(ticket) => ticket,
        Opened::Repeat(answer) => return Ok(answer),
    };
    check_queue(app, &queue).await?;
    let filter = Filter { queue: Some(queue.clone()), status: vec![JobStatus::Dead], ..filter };
    check_group(app, &filter).await?;
    let found = count(app, &filter, ids.as_deref(), is_replayable).await?;
    if dry_run {
        return Ok(found.answer());
    }
    let act = Purge { queue, target: Target::Dead, filter, ids, by, reason, expected: found.expected() };
    start(app, &act, ticket).await
}

/// Reads `?id=`: one id, or several joined by commas.
fn read_ids(text: &str, errors: &mut Errors) -> Vec<JobId> {
    let ids: Result<Vec<JobId>, _> = text.split(',').map(|id| id.trim().parse()).collect();
    match ids {
        Ok(ids) if ids.len() <= crate::acts::IDS_MAX => ids,
        _ => {
            errors.parameter("id", "must be a job id, or several joined by commas");
            Vec::new()
        }
    }
}

fn read_truth(text: &str, errors: &mut Errors) -> bool {
    if !matches!(text, "true" | "false") {
        errors.parameter("dry_run", "must be true or false");
    }
    text == "true"
}

/// `DELETE /v1/queues/{queue}/jobs`.
pub(super) async fn purge_jobs(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = order_purge_jobs(&app, queue, &mut inbound).await;
    inbound.answer(result).await
}

async fn order_purge_jobs(app: &App, queue: QueuePath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let choice = Choice::of(None, &inbound.parts.headers, inbound.caller.scope(), &mut errors);
    let [by, reason] = inbound.query(["by", "reason"], &mut errors);
    let (by, reason) = (inbound.caller.by(read_by(by, &mut errors)), read_reason(reason, &mut errors));
    let queue = read_queue(queue)?;
    errors.none_or(Some(()))?;
    let named = choice.named(|| naming::digest_of_act(&inbound.parts, None));
    let ticket = match open::<Purge>(app, &inbound.caller, named, false).await? {
        Opened::New(ticket) => ticket,
        Opened::Repeat(answer) => return Ok(answer),
    };
    let depth = app.client.depth(&queue).await.map_err(|error| Problem::act(&error))?.ok_or_else(no_queue)?;
    if queue == app.acts {
        return Err(Problem::new(Code::InvalidRequest, "acts cannot be purged; cancel them one by one"));
    }
    let act = Purge {
        queue,
        target: Target::Jobs,
        filter: Filter::default(),
        ids: None,
        by,
        reason,
        expected: Some(u64::from(depth.ready)),
    };
    start(app, &act, ticket).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_query_are_one_or_several() {
        let read = |text: &str| {
            let mut errors = Errors::new(5);
            let ids = read_ids(text, &mut errors);
            (ids.len(), errors.into_list().1.len())
        };
        let id = JobId::new();
        assert_eq!(read(&id.to_string()), (1, 0));
        assert_eq!(read(&format!("{id}, {id}")), (2, 0));
        for bad in ["", "x", &format!("{id},")] {
            assert_eq!(read(bad), (0, 1), "{bad}");
        }
    }
}
