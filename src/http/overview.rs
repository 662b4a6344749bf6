//! `GET /v1/overview`: how everything stands, in one answer; `GET /v1/overview/events`: the same about once a second.
//!
//! What the record and the broker have to be asked for is asked once for all who look, and only while somebody does:
//! who comes within [`FRESH`] is given the same. Nothing is remembered here, so a look costs the same however many jobs
//! there are. A caller whose key is for some queues is shown these and nothing that adds up others.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use super::{
    App,
    access::Caller,
    answer,
    body::Inbound,
    fields::Errors,
    problem::Problem,
    queues::{self, Known, QUEUES_MAX, ask_depths, rounded},
    sse::{self, Frame, Frames},
    submission::ERRORS_MAX,
    workers::workers_of,
};
use crate::{
    client::{Depth, WorkerInfo},
    event::time_text,
    job::QueueName,
    record::model::{Counts, JobStatus, MOMENT_SECONDS, Moment, QueueRecord},
};

/// Longest time for what the broker has to be asked for. A queue that it says nothing of in time is shown without.
const LOOK: Duration = Duration::from_secs(2);
/// How long a look is good for others, and how often a stream tells.
const FRESH: Duration = Duration::from_secs(1);
/// A look is good for so many times as long as it took: with very many queues it is taken more seldom.
const REST: u32 = 4;
/// So much longer between the pieces of a stream for each stream there is.
const EACH: Duration = Duration::from_millis(1);
/// Most workers that are listed.
const WORKERS_MAX: usize = 100;
/// The name of the stream's events.
const EVENT: &str = "hopline.overview";

/// What was found when somebody looked last.
#[derive(Default)]
pub(super) struct Overviews(Mutex<Option<Arc<Look>>>);

/// What was found.
struct Look {
    at: Timestamp,
    /// Until when others are given it.
    good_until: Instant,
    known: Known,
    names: Vec<QueueName>,
    depths: BTreeMap<QueueName, Option<Depth>>,
    /// All of it as JSON, for those who may see all.
    whole: OnceLock<Bytes>,
}

/// `GET /v1/overview`.
pub(super) async fn get(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn show(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    read_nothing(inbound)?;
    let look = look(app).await?;
    Ok(answer::json(StatusCode::OK, look.json(app, &inbound.caller)))
}

/// `GET /v1/overview/events`.
pub(super) async fn follow(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = open(&app, &mut inbound);
    inbound.answer(result).await
}

fn open(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    read_nothing(inbound)?;
    let place = app.enter_stream()?;
    let stream = OverviewStream { app: app.clone(), caller: inbound.caller.clone(), next: Instant::now() };
    Ok(sse::response(stream, place))
}

fn read_nothing(inbound: &mut Inbound) -> Result<(), Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))
}

/// A look, taken now or a moment ago.
async fn look(app: &App) -> Result<Arc<Look>, Problem> {
    let mut last = app.overviews.0.lock().await;
    if let Some(look) = last.as_ref().filter(|look| Instant::now() < look.good_until) {
        return Ok(Arc::clone(look));
    }
    let start = Instant::now();
    let known = Known::gather(app).await?;
    let mut names = known.names_by_interest();
    names.truncate(QUEUES_MAX);
    let depths = ask_depths(app, names.clone(), start + LOOK).await;
    let good_until = start + FRESH.max(start.elapsed() * REST);
    let look =
        Arc::new(Look { at: Timestamp::now(), good_until, known, names, depths, whole: OnceLock::new() });
    *last = Some(Arc::clone(&look));
    Ok(look)
}

impl Look {
    /// What this caller is shown, as JSON.
    fn json(&self, app: &App, caller: &Caller) -> Bytes {
        if caller.queues().is_none() {
            return self.whole.get_or_init(|| self.written(app, caller)).clone();
        }
        self.written(app, caller)
    }

    fn written(&self, app: &App, caller: &Caller) -> Bytes {
        let moments = app.record.moments(caller.queues());
        let workers = workers_of(caller, self.known.workers.clone());
        let shown = self.shown(caller, &moments, &workers);
        // Our own shapes have text as keys and nothing that fails.
        serde_json::to_vec(&shown).unwrap_or_default().into()
    }

    fn shown<'a>(&'a self, caller: &Caller, moments: &[Moment], workers: &'a [WorkerInfo]) -> Shown<'a> {
        let mut sum = Sum::default();
        self.known
            .records
            .iter()
            .filter(|(queue, _)| caller.uses(queue))
            .for_each(|(_, record)| sum.add(record));
        Shown {
            at: time_text(self.at),
            jobs: JobStatus::ALL.iter().map(|status| (status.as_str(), sum.counts.of(*status))).collect(),
            arrival_rate: rounded(sum.arrival_rate),
            service_rate: rounded(sum.service_rate),
            mean_duration: sum.mean_duration().map(rounded),
            queues: self
                .names
                .iter()
                .filter(|queue| caller.uses(queue))
                .filter_map(|queue| self.queue(queue))
                .collect(),
            worker_count: workers.len(),
            workers: workers.iter().take(WORKERS_MAX).map(Member::of).collect(),
            history: History::of(moments),
        }
    }

    /// The queue, unless the broker says that it is gone and no job remembers it.
    fn queue<'a>(&'a self, queue: &'a QueueName) -> Option<queues::Shown<'a>> {
        let depth = self.depths.get(queue).copied();
        let is_there = depth != Some(None) || self.known.records.contains_key(queue);
        is_there.then(|| self.known.show(queue, depth.flatten()))
    }
}

/// The record's queues, added up.
#[derive(Default)]
struct Sum {
    counts: Counts,
    arrival_rate: f64,
    service_rate: f64,
    /// Of the queues whose durations were measured: attempts a second, and seconds that these took.
    timed: (f64, f64),
}

impl Sum {
    fn add(&mut self, record: &QueueRecord) {
        self.counts.by_status.iter_mut().zip(record.counts.by_status).for_each(|(sum, count)| *sum += count);
        self.arrival_rate += record.arrival_rate;
        self.service_rate += record.service_rate;
        if let Some(duration) = record.mean_duration {
            self.timed.0 += record.service_rate;
            self.timed.1 += record.service_rate * duration;
        }
    }

    fn mean_duration(&self) -> Option<f64> {
        (self.timed.0 > 0.0).then(|| self.timed.1 / self.timed.0)
    }
}

/// How everything stands.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Overview")]
pub(super) struct Shown<'a> {
    /// When this was found out.
    #[schemars(extend("format" = "date-time"))]
    at: String,
    /// How many jobs are in each state, of those that are remembered.
    jobs: BTreeMap<&'static str, u64>,
    /// Jobs that became ready, each second, over the last minute.
    arrival_rate: f64,
    /// Attempts that ended, each second, over the last minute.
    service_rate: f64,
    /// Mean seconds of those attempts; absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_duration: Option<f64>,
    /// As `GET /v1/queues` has them; at most 500.
    queues: Vec<queues::Shown<'a>>,
    /// How many workers are alive.
    worker_count: usize,
    /// Who they are; at most 100.
    workers: Vec<Member<'a>>,
    /// How the last ten minutes went.
    history: History,
}

/// A worker, in short.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OverviewWorker")]
struct Member<'a> {
    worker: &'a str,
    /// Attempts that run now.
    running: usize,
    /// Attempts that it makes at the same time.
    concurrency: usize,
    /// When it started.
    since: String,
}

impl<'a> Member<'a> {
    fn of(worker: &'a WorkerInfo) -> Self {
        Self {
            worker: &worker.worker,
            running: worker.queues.iter().map(|queue| queue.running).sum(),
            concurrency: worker.queues.iter().map(|queue| queue.concurrency).sum(),
            since: time_text(worker.since),
        }
    }
}

/// What happened in the moments of the last minutes, oldest first, one number for each in every list.
#[derive(Debug, Serialize, JsonSchema)]
struct History {
    /// How long a moment is, in seconds.
    seconds: u32,
    /// Jobs that became ready.
    arrived: Vec<u64>,
    /// Attempts that ended.
    ended: Vec<u64>,
    /// Those of them that failed, timed out, panicked or crashed.
    failed: Vec<u64>,
    /// Their mean seconds; `null` where none ended.
    mean_duration: Vec<Option<f64>>,
}

impl History {
    fn of(moments: &[Moment]) -> Self {
        Self {
            seconds: MOMENT_SECONDS,
            arrived: moments.iter().map(|moment| moment.arrived).collect(),
            ended: moments.iter().map(|moment| moment.ended).collect(),
            failed: moments.iter().map(|moment| moment.failed).collect(),
            mean_duration: moments.iter().map(|moment| moment.mean_duration.map(rounded)).collect(),
        }
    }
}

/// The overview, again and again.
struct OverviewStream {
    app: App,
    /// Who sees only what concerns his queues.
    caller: Caller,
    next: Instant,
}

impl OverviewStream {
    async fn read(&mut self) -> Frames {
        sleep_until(self.next).await;
        let among = u32::try_from(self.app.streams_in_use()).unwrap_or(u32::MAX);
        self.next = Instant::now() + FRESH + EACH.saturating_mul(among);
        let mut frames = Frames::default();
        match look(&self.app).await {
            // JSON as we write it is text without line breaks.
            Ok(look) => frames.plain(EVENT, &String::from_utf8_lossy(&look.json(&self.app, &self.caller))),
            // The record is opened or rebuilt: it will be there again.
            Err(_) => frames.keep_alive(None),
        }
        frames
    }
}

impl Frame for OverviewStream {
    async fn next(&mut self) -> Option<Frames> {
        let app = Arc::clone(&self.app.0);
        tokio::select! {
            biased;
            () = app.stopping.begun.cancelled() => None,
            frames = self.read() => Some(frames),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_added_up_by_how_much_they_do() {
        let record = |service_rate, mean_duration, dead| {
            let mut record =
                QueueRecord { service_rate, arrival_rate: 1.0, mean_duration, ..QueueRecord::default() };
            record.counts.by_status[JobStatus::Dead as usize] = dead;
            record
        };
        let mut sum = Sum::default();
        assert_eq!(sum.mean_duration(), None);
        for record in [record(3.0, Some(1.0), 2), record(1.0, Some(5.0), 3), record(9.0, None, 0)] {
            sum.add(&record);
        }
        assert_eq!((sum.arrival_rate, sum.service_rate, sum.mean_duration()), (3.0, 13.0, Some(2.0)));
        assert_eq!(sum.counts.of(JobStatus::Dead), 5);
    }

    #[test]
    fn a_history_has_a_number_for_each_moment() {
        let moment = Moment { arrived: 1, ended: 2, failed: 1, mean_duration: Some(0.12345) };
        let history = History::of(&[Moment::default(), moment]);
        assert_eq!((history.arrived, history.ended, history.failed), (vec![0, 1], vec![0, 2], vec![0, 1]));
        assert_eq!(history.mean_duration, [None, Some(0.123)]);
    }
}
