//! `GET /v1/queues`, `GET /v1/queues/{queue}`: how full queues are and how fast they empty;
//! `POST /v1/queues/{queue}/pause` and `…/resume`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};
use futures_util::{StreamExt, future::ready, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{
    App, answer,
    body::Inbound,
    cancel::read_by,
    fields::Errors,
    problem::{Code, Problem},
    submission::ERRORS_MAX,
};
use crate::{
    client::{Depth, Pauses, SubmitError, WorkerInfo},
    event::time_text,
    job::QueueName,
    record::model::{JobStatus, QueueRecord},
};

/// Questions to the broker at the same time.
const ASKING: usize = 8;
/// Most queues that are asked about for what looks at all of them again and again.
pub(super) const QUEUES_MAX: usize = 500;
/// In so many seconds a suggested number of workers empties the queue.
const DRAIN_TIME: f64 = 60.0;

/// The part of a path that names a queue.
pub(super) type QueuePath = Result<Path<String>, PathRejection>;

pub(super) fn no_queue() -> Problem {
    Problem::new(Code::QueueNotFound, "no worker has declared this queue, and no job was ever sent to it")
}

pub(super) fn read_queue(path: QueuePath) -> Result<QueueName, Problem> {
    path.ok().and_then(|Path(text)| QueueName::parse(text).ok()).ok_or_else(no_queue)
}

/// Reads a request that has nothing to say but its path.
fn read_nothing(inbound: &mut Inbound) -> Result<(), Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))
}

/// `GET /v1/queues`.
pub(super) async fn list(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show_all(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn show_all(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    read_nothing(inbound)?;
    let known = Known::gather(app).await?;
    let caller = &inbound.caller;
    let asked =
        stream::iter(known.names()).filter(|queue| ready(caller.uses(queue))).map(|queue| async move {
            let depth = app.client.depth(&queue).await;
            (queue, depth)
        });
    let depths: Vec<_> = asked.buffered(ASKING).collect().await;
    let items: Vec<Shown<'_>> = depths
        .iter()
        .filter(|(queue, depth)| !matches!(depth, Ok(None)) || known.records.contains_key(queue))
        .map(|(queue, depth)| known.show(queue, depth.as_ref().ok().copied().flatten()))
        .collect();
    Ok(answer::json_of(StatusCode::OK, &serde_json::json!({ "items": items })))
}

/// `GET /v1/queues/{queue}`.
pub(super) async fn get(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show_one(&app, queue, &mut inbound).await;
    inbound.answer(result).await
}

async fn show_one(app: &App, queue: QueuePath, inbound: &mut Inbound) -> Result<Response, Problem> {
    let queue = read_queue(queue)?;
    read_nothing(inbound)?;
    let known = Known::gather(app).await?;
    let depth = match app.client.depth(&queue).await {
        Ok(depth) => depth,
        // What the record knows is shown without the broker.
        Err(_) if known.records.contains_key(&queue) => None,
        Err(error) => return Err(Problem::act(&error)),
    };
    if depth.is_none() && !known.records.contains_key(&queue) {
        return Err(no_queue());
    }
    Ok(answer::json_of(StatusCode::OK, &known.show(&queue, depth)))
}

/// `POST /v1/queues/{queue}/pause`.
pub(super) async fn pause(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    switch(&app, queue, request, true).await
}

/// `POST /v1/queues/{queue}/resume`.
pub(super) async fn resume(State(app): State<App>, queue: QueuePath, request: Request) -> Response {
    switch(&app, queue, request, false).await
}

async fn switch(app: &App, queue: QueuePath, request: Request, paused: bool) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = order_pause(app, queue, &mut inbound, paused).await;
    inbound.answer(result).await
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Switched<'a> {
    queue: &'a QueueName,
    paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_by: Option<&'a str>,
}

async fn order_pause(
    app: &App,
    queue: QueuePath,
    inbound: &mut Inbound,
    paused: bool,
) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [by] = inbound.query(["by"], &mut errors);
    let by = inbound.caller.by(read_by(by, &mut errors));
    let queue = read_queue(queue)?;
    errors.none_or(Some(()))?;
    inbound.nothing().await?;
    let failed = |error: SubmitError| Problem::act(&error);
    // A queue that was paused and then deleted can be let go.
    let known = app.client.paused().contains_key(&queue);
    if !known && app.client.depth(&queue).await.map_err(failed)?.is_none() {
        return Err(no_queue());
    }
    app.client.pause(&queue, paused, by.clone()).await.map_err(failed)?;
    let switched = Switched { queue: &queue, paused, paused_by: by.as_deref().filter(|_| paused) };
    Ok(answer::json_of(StatusCode::OK, &switched))
}

/// How full these queues are, as far as the broker says so in time: of one that is missing it did not, of one with none
/// it said that it is not there.
pub(super) async fn ask_depths(
    app: &App,
    queues: Vec<QueueName>,
    until: Instant,
) -> BTreeMap<QueueName, Option<Depth>> {
    let mut asking = stream::iter(queues)
        .map(|queue| async move {
            let depth = app.client.depth(&queue).await;
            (queue, depth)
        })
        .buffer_unordered(ASKING);
    let mut depths = BTreeMap::new();
    while let Ok(Some((queue, depth))) = timeout_at(until, asking.next()).await {
        if let Ok(depth) = depth {
            depths.insert(queue, depth);
        }
    }
    depths
}

/// What is known of all queues, but for what the broker has to be asked.
pub(super) struct Known {
    pub(super) records: BTreeMap<QueueName, QueueRecord>,
    pub(super) workers: Vec<WorkerInfo>,
    announced: BTreeSet<QueueName>,
    pub(super) paused: Arc<Pauses>,
    now: Timestamp,
}

impl Known {
    pub(super) async fn gather(app: &App) -> Result<Self, Problem> {
        Ok(Self {
            records: app.record.queues().await.map_err(|error| Problem::record(&error))?,
            workers: app.client.workers(),
            announced: app.client.announced_queues().into_iter().chain(app.queues.iter().cloned()).collect(),
            paused: app.client.paused(),
            now: Timestamp::now(),
        })
    }

    /// All queues that anything is known of.
    pub(super) fn names(&self) -> BTreeSet<QueueName> {
        let consumed = self.workers.iter().flat_map(|worker| worker.queues.iter().map(|queue| &queue.queue));
        let all = self.records.keys().chain(&self.announced).chain(self.paused.keys()).chain(consumed);
        all.cloned().collect()
    }

    /// All queues, those that the configuration or a worker has named before those that only a job has.
    pub(super) fn names_by_interest(&self) -> Vec<QueueName> {
        let (first, rest): (Vec<_>, Vec<_>) =
            self.names().into_iter().partition(|queue| self.announced.contains(queue));
        first.into_iter().chain(rest).collect()
    }

    /// For how many seconds the job has been ready that has waited longest; none where none waits, also if the record
    /// thinks otherwise.
    pub(super) fn oldest_age(&self, queue: &QueueName, ready: Option<u32>) -> Option<f64> {
        let oldest = self.records.get(queue)?.oldest_queued_at.filter(|_| ready != Some(0))?;
        Some(self.now.duration_since(oldest).as_secs_f64().max(0.0))
    }

    pub(super) fn show<'a>(&'a self, queue: &'a QueueName, depth: Option<Depth>) -> Shown<'a> {
        let plain = QueueRecord::default();
        let record = self.records.get(queue).unwrap_or(&plain);
        let crew = Crew::of(queue, &self.workers);
        let pause = self.paused.get(queue);
        let count = |status| record.counts.of(status);
        let ready = depth.map(|depth| depth.ready);
        Shown {
            queue,
            ready,
            // Workers know of short attempts too, of which the record hears at their end.
            running: if crew.workers.is_empty() { count(JobStatus::Running) } else { crew.running as u64 },
            scheduled: count(JobStatus::Scheduled),
            retrying: count(JobStatus::Retrying),
            dead: count(JobStatus::Dead),
            oldest_age: self.oldest_age(queue, ready).map(rounded),
            arrival_rate: rounded(record.arrival_rate),
            service_rate: rounded(record.service_rate),
            mean_duration: record.mean_duration.map(rounded),
            time_to_drain: ready.and_then(|ready| time_to_drain(ready, record.service_rate)).map(rounded),
            suggested_replicas: suggested_replicas(ready.unwrap_or_default(), record, crew.concurrency),
            consumers: depth.map(|depth| depth.consumers),
            workers: crew.workers,
            paused: pause.is_some(),
            paused_at: pause.map(|pause| time_text(pause.at)),
            paused_by: pause.and_then(|pause| pause.by.as_deref()),
        }
    }
}

/// A queue as it is shown.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Queue")]
pub(super) struct Shown<'a> {
    queue: &'a QueueName,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<u32>,
    running: u64,
    scheduled: u64,
    retrying: u64,
    dead: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_age: Option<f64>,
    arrival_rate: f64,
    service_rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_duration: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_to_drain: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_replicas: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumers: Option<u32>,
    workers: Vec<&'a str>,
    paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_by: Option<&'a str>,
}

/// The workers of one queue.
#[derive(Debug, PartialEq)]
pub(super) struct Crew<'a> {
    pub(super) workers: Vec<&'a str>,
    running: usize,
    /// Attempts at the same time in one of them, on average.
    concurrency: Option<f64>,
}

impl<'a> Crew<'a> {
    pub(super) fn of(queue: &QueueName, workers: &'a [WorkerInfo]) -> Self {
        let mut crew = Self { workers: Vec::new(), running: 0, concurrency: None };
        let mut slots = 0;
        for worker in workers {
            for own in worker.queues.iter().filter(|own| own.queue == *queue) {
                crew.workers.push(&worker.worker);
                crew.running += own.running;
                slots += own.concurrency;
            }
        }
        if !crew.workers.is_empty() {
            crew.concurrency = Some(slots as f64 / crew.workers.len() as f64);
        }
        crew
    }
}

/// Seconds until `ready` jobs are worked off at `rate` a second, if nothing arrives; none while nothing is worked off.
fn time_to_drain(ready: u32, rate: f64) -> Option<f64> {
    if ready == 0 {
        return Some(0.0);
    }
    (rate > 0.0).then(|| f64::from(ready) / rate)
}

/// How many workers keep up with what arrives and empty the queue in [`DRAIN_TIME`]: the attempts that must run at the
/// same time for that, over those that one worker runs. At least 1; none while nothing was measured.
#[expect(clippy::cast_possible_truncation, reason = "a number of workers; an absurd one saturates")]
fn suggested_replicas(ready: u32, record: &QueueRecord, concurrency: Option<f64>) -> Option<u64> {
    let wanted = record.arrival_rate + f64::from(ready) / DRAIN_TIME;
    let (duration, concurrency) = (record.mean_duration?, concurrency.filter(|slots| *slots > 0.0)?);
    Some((wanted * duration / concurrency).ceil().max(1.0) as u64)
}

/// To a thousandth: more would be noise.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::WorkerQueue;

    #[test]
    fn workers_are_suggested_for_arrivals_and_backlog() {
        let record = |arrival_rate, mean_duration| QueueRecord {
            arrival_rate,
            mean_duration,
            ..QueueRecord::default()
        };
        for (ready, arrivals, duration, concurrency, suggested) in [
            (0, 0.0, Some(1.0), Some(10.0), Some(1)),
            // 5 jobs of 4 s arrive each second: 20 run at once, 2 workers of 10.
            (0, 5.0, Some(4.0), Some(10.0), Some(2)),
            // 600 wait: 10 more a second, 40 more at once.
            (600, 5.0, Some(4.0), Some(10.0), Some(6)),
            (600, 5.0, Some(4.0), Some(2.5), Some(24)),
            (600, 5.0, None, Some(10.0), None),
            (600, 5.0, Some(4.0), None, None),
            (600, 5.0, Some(4.0), Some(0.0), None),
        ] {
            let found = suggested_replicas(ready, &record(arrivals, duration), concurrency);
            assert_eq!(found, suggested, "{ready} {arrivals} {duration:?} {concurrency:?}");
        }
    }

    #[test]
    fn a_queue_that_is_not_worked_off_has_no_time_to_drain() {
        assert_eq!(time_to_drain(0, 0.0), Some(0.0));
        assert_eq!(time_to_drain(10, 0.0), None);
        assert_eq!(time_to_drain(10, 4.0), Some(2.5));
    }

    #[test]
    fn a_crew_is_all_workers_of_a_queue() {
        let media = QueueName::parse("media").unwrap();
        let queue = |queue: &str, concurrency, running| WorkerQueue {
            queue: QueueName::parse(queue).unwrap(),
            concurrency,
            prefetch: 0,
            running,
            waiting: 0,
            paused: false,
        };
        let worker = |name: &str, queues| WorkerInfo {
            worker: name.to_owned(),
            version: String::new(),
            host: String::new(),
            pid: 1,
            since: Timestamp::UNIX_EPOCH,
            queues,
            kinds: Vec::new(),
            jobs: Vec::new(),
        };
        let workers = [
            worker("a", vec![queue("media", 4, 3), queue("mail", 9, 9)]),
            worker("b", vec![queue("media", 6, 1)]),
            worker("c", vec![queue("mail", 1, 1)]),
        ];
        let crew = Crew::of(&media, &workers);
        assert_eq!(crew, Crew { workers: vec!["a", "b"], running: 4, concurrency: Some(5.0) });
        assert_eq!(Crew::of(&QueueName::parse("x").unwrap(), &workers).concurrency, None);
    }
}
