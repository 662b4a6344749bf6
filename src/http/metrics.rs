//! `GET /metrics`: what this process has counted, and how the cluster stands, in Prometheus's text format
//! (`docs/metrics.md`).
//!
//! What was counted is there at once. What the broker, the record and the spool have to be asked for is asked by one scrape
//! at a time, within [`LOOK`]; whoever comes meanwhile, or right after, is given the same. So any number of scrapers cost
//! the broker a few channels, and one that is away costs them the values that only it has.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Method, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use prometheus::{HistogramVec, IntCounterVec, Registry};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};

use super::{
    App,
    access::Caller,
    front::Answered,
    problem::{Code, Problem},
    queues::{Crew, Known, QUEUES_MAX, ask_depths},
    spooling::{Refusal, Taken},
    sse::in_use,
};
use crate::{
    client::{Depth, SubmitError},
    job::{Kind, QueueName},
    metrics::{self, Bounded, OTHER, Snapshot, table::http as table},
    record::model::JobStatus,
    spool::SpoolError,
};

/// Longest time for all that has to be asked for. Prometheus gives a scrape 10 s.
const LOOK: Duration = Duration::from_secs(2);
/// How long an answer is good for others.
const FRESH: Duration = Duration::from_secs(1);
/// Most kinds that are told apart, of those that clients name.
const KINDS_MAX: usize = 500;
/// States of jobs that have not ended, or can go on: how many have ended is a matter of what is remembered.
const SHOWN: [JobStatus; 5] =
    [JobStatus::Scheduled, JobStatus::Queued, JobStatus::Running, JobStatus::Retrying, JobStatus::Dead];

/// What an HTTP process counts besides its client.
pub(super) struct HttpMetrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    submitted: IntCounterVec,
    kinds: Bounded,
    seen: Mutex<Seen>,
}

/// What was found when it was last asked.
#[derive(Default)]
struct Seen {
    view: Option<(Instant, Arc<View>)>,
    /// Up to when everything in the event log is known to be in the record.
    caught_up: Option<Instant>,
}

/// What has to be asked for.
#[derive(Default)]
struct View {
    queues: Vec<Queue>,
    workers: Option<usize>,
    lag: Option<Duration>,
    spool_oldest: Option<Duration>,
    complete: bool,
}

struct Queue {
    name: QueueName,
    depth: Option<Depth>,
    latency: f64,
    jobs: [u64; SHOWN.len()],
    workers: usize,
    paused: bool,
}

impl HttpMetrics {
    /// Counts a request.
    pub(super) fn request(&self, answered: &Answered<'_>) {
        let Answered { method, route, status, took } = *answered;
        let method = method_label(method);
        self.requests.with_label_values(&[method, route, status.as_str()]).inc();
        self.duration.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }

    pub(super) fn new() -> Self {
        let registry = Registry::new();
        Self {
            requests: metrics::counters(&registry, &table::REQUESTS),
            duration: metrics::histograms(&registry, &table::REQUEST_DURATION),
            submitted: metrics::counters(&registry, &table::SUBMITTED),
            kinds: Bounded::new(KINDS_MAX),
            seen: Mutex::default(),
            registry,
        }
    }
}

/// The method, unless a client has made it up.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => OTHER,
    }
}

/// How the result of a submit is called.
fn result_label(result: &Result<Taken, Refusal>) -> &'static str {
    match result {
        Ok(Taken::Broker) => "accepted",
        Ok(Taken::Spool) => "spooled",
        Err(
            Refusal::Submit(SubmitError::Timeout | SubmitError::Lost(_))
            | Refusal::Spool(SpoolError::Timeout),
        ) => "unknown",
        Err(_) => "refused",
    }
}

impl App {
    /// Counts a job that was to be submitted.
    pub(super) fn count_submit(&self, kind: &Kind, result: &Result<Taken, Refusal>) {
        let HttpMetrics { submitted, kinds, .. } = &self.metrics;
        // Clients name kinds; only those that somebody runs are worth a label.
        let kind = if self.client.knows(kind) { kinds.label(kind.as_str()) } else { OTHER };
        submitted.with_label_values(&[kind, result_label(result)]).inc();
    }
}

/// `GET /metrics`.
pub(super) async fn get(State(app): State<App>, request: Request) -> Response {
    let caller = Caller::of(request.extensions());
    if caller.queues().is_some() {
        // Sums over all queues cannot be narrowed to some.
        let name = caller.name().unwrap_or_default();
        let why = format!("the key {name} is for some queues, and metrics are of all");
        return Problem::new(Code::QueueForbidden, why).into_response();
    }
    // Behind at most one look that has begun already.
    let view = timeout(LOOK * 2, look(&app)).await.unwrap_or_default();
    let snapshot = Snapshot::default();
    show_process(&app, &view, &snapshot);
    show_cluster(&view, &snapshot);
    let mut families = app.client.metric_families();
    families.extend(app.metrics.registry.gather());
    families.extend(snapshot.families());
    let mut response = Response::new(Body::from(metrics::text(families)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    response
}

/// What is to be asked for, asked now or a moment ago.
async fn look(app: &App) -> Arc<View> {
    let mut seen = app.metrics.seen.lock().await;
    if let Some((at, view)) = &seen.view
        && at.elapsed() < FRESH
    {
        return Arc::clone(view);
    }
    let start = Instant::now();
    let until = start + LOOK;
    let (reached, mut view, spool_oldest) =
        tokio::join!(catch_up(app, until), ask_queues(app, until), timeout_at(until, spool_oldest(app)),);
    view.lag = if reached.is_some() {
        seen.caught_up = Some(start);
        reached
    } else {
        // Since when something may be missing. A record that never caught up is missing all.
        seen.caught_up.map(|at| at.elapsed())
    };
    view.spool_oldest = spool_oldest.ok().flatten();
    let view = Arc::new(view);
    seen.view = Some((Instant::now(), Arc::clone(&view)));
    view
}

/// How long it takes to read the event log to its end; none where that cannot be done in time.
async fn catch_up(app: &App, until: Instant) -> Option<Duration> {
    let start = Instant::now();
    if !app.client.health().ready {
        return None;
    }
    app.record.catch_up(until).await.ok().map(|()| start.elapsed())
}

/// What the record and the broker say of queues, as far as they say it in time.
async fn ask_queues(app: &App, until: Instant) -> View {
    let Ok(Ok(known)) = timeout_at(until, Known::gather(app)).await else { return View::default() };
    let mut names = known.names_by_interest();
    let all = names.len();
    names.truncate(QUEUES_MAX);
    let depths = ask_depths(app, names.clone(), until).await;
    let is_there =
        |queue: &QueueName| known.records.contains_key(queue) || !matches!(depths.get(queue), Some(None));
    let show = |queue: &QueueName| {
        let depth = depths.get(queue).copied().flatten();
        let counts = known.records.get(queue).map(|record| record.counts).unwrap_or_default();
        Queue {
            name: queue.clone(),
            depth,
            latency: known.oldest_age(queue, depth.map(|depth| depth.ready)).unwrap_or_default(),
            jobs: SHOWN.map(|status| counts.of(status)),
            workers: Crew::of(queue, &known.workers).workers.len(),
            paused: known.paused.contains_key(queue),
        }
    };
    View {
        queues: names.iter().filter(|queue| is_there(queue)).map(show).collect(),
        workers: Some(known.workers.len()),
        complete: depths.len() == all,
        ..View::default()
    }
}

/// Age of the job that is forwarded next; none where there is no spool, or it does not say.
async fn spool_oldest(app: &App) -> Option<Duration> {
    let oldest = app.spool.as_ref()?.oldest().await.ok()?;
    let age = oldest.map(|at| Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default());
    Some(age.unwrap_or_default())
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes, far below 2^53")]
fn show_process(app: &App, view: &View, snapshot: &Snapshot) {
    let http = &app.http;
    for (metric, value) in [
        (&table::WAITERS, in_use(&app.waiters, http.max_waiters)),
        (&table::WAITERS_MAX, http.max_waiters),
        (&table::STREAMS, app.streams_in_use()),
        (&table::STREAMS_MAX, http.max_streams),
        (&table::IN_FLIGHT, in_use(&app.in_flight, http.max_in_flight)),
        (&table::RECORD_CAUGHT_UP, usize::from(app.record.is_caught_up())),
        (&table::CLUSTER_COMPLETE, usize::from(view.complete)),
    ] {
        snapshot.set(metric, value as f64);
    }
    if let Some(lag) = view.lag {
        snapshot.set(&table::RECORD_LAG, lag.as_secs_f64());
    }
    let Some(spool) = &app.spool else { return };
    let (fill, tally) = (spool.fill(), spool.tally());
    for (metric, value) in [
        (&table::SPOOL_JOBS, fill.jobs),
        (&table::SPOOL_JOBS_MAX, fill.max_jobs),
        (&table::SPOOL_BYTES, fill.bytes),
        (&table::SPOOL_BYTES_MAX, fill.max_bytes),
    ] {
        snapshot.set(metric, value as f64);
    }
    for (metric, value) in [
        (&table::SPOOL_TAKEN, tally.taken),
        (&table::SPOOL_FORWARDED, tally.forwarded),
        (&table::SPOOL_REFUSED, tally.refused),
    ] {
        snapshot.count(metric, value);
    }
    if let Some(age) = view.spool_oldest {
        snapshot.set(&table::SPOOL_OLDEST, age.as_secs_f64());
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts, far below 2^53")]
fn show_cluster(view: &View, snapshot: &Snapshot) {
    // Nothing is known of them where nobody could be asked: no value says so better than 0.
    let Some(workers) = view.workers else { return };
    snapshot.set(&table::WORKERS, workers as f64);
    let [ready, consumers, latency, jobs, workers, paused] = [
        &table::QUEUE_READY,
        &table::QUEUE_CONSUMERS,
        &table::QUEUE_LATENCY,
        &table::QUEUE_JOBS,
        &table::QUEUE_WORKERS,
        &table::QUEUE_PAUSED,
    ]
    .map(|metric| snapshot.gauge(metric));
    for queue in &view.queues {
        let name = queue.name.as_str();
        if let Some(depth) = queue.depth {
            ready.with_label_values(&[name]).set(f64::from(depth.ready));
            consumers.with_label_values(&[name]).set(f64::from(depth.consumers));
        }
        latency.with_label_values(&[name]).set(queue.latency);
        workers.with_label_values(&[name]).set(queue.workers as f64);
        paused.with_label_values(&[name]).set(f64::from(u8::from(queue.paused)));
        for (status, count) in SHOWN.into_iter().zip(queue.jobs) {
            jobs.with_label_values(&[name, status.as_str()]).set(count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_a_client_made_up_is_no_label() {
        for (method, label) in
            [("GET", "GET"), ("DELETE", "DELETE"), ("get", OTHER), ("X".repeat(99).as_str(), OTHER)]
        {
            assert_eq!(method_label(&method.parse().unwrap()), label);
        }
    }

    #[test]
    fn a_submit_counts_by_what_is_known_of_it() {
        let why = || "why".to_owned();
        for (result, label) in [
            (Ok(Taken::Broker), "accepted"),
            (Ok(Taken::Spool), "spooled"),
            (Err(Refusal::Submit(SubmitError::Timeout)), "unknown"),
            (Err(Refusal::Submit(SubmitError::Lost(why()))), "unknown"),
            (Err(Refusal::Spool(SpoolError::Timeout)), "unknown"),
            (Err(Refusal::Spool(SpoolError::Unavailable(why()))), "refused"),
            (Err(Refusal::Submit(SubmitError::Unavailable(why()))), "refused"),
            (Err(Refusal::Submit(SubmitError::Refused)), "refused"),
            (Err(Refusal::Spool(SpoolError::Full)), "refused"),
        ] {
            assert_eq!(result_label(&result), label, "{result:?}");
        }
    }

    #[test]
    fn what_is_known_of_queues_is_shown_and_nothing_else() {
        let queue = |name: &str, depth| Queue {
            name: QueueName::parse(name).unwrap(),
            depth,
            latency: 4.25,
            jobs: [1, 2, 3, 4, 5],
            workers: 2,
            paused: true,
        };
        let shown = |view: &View| {
            let snapshot = Snapshot::default();
            show_cluster(view, &snapshot);
            metrics::text(snapshot.families())
        };
        let depth = Some(Depth { ready: 7, consumers: 3 });
        let view = View {
            queues: vec![queue("media", depth), queue("mail", None)],
            workers: Some(2),
            ..View::default()
        };
        let text = shown(&view);
        for line in [
            r#"hopline_queue_jobs_ready{queue="media"} 7"#,
            r#"hopline_queue_consumers{queue="media"} 3"#,
            r#"hopline_queue_latency_seconds{queue="media"} 4.25"#,
            r#"hopline_queue_jobs{queue="media",status="scheduled"} 1"#,
            r#"hopline_queue_jobs{queue="media",status="dead"} 5"#,
            r#"hopline_queue_workers{queue="mail"} 2"#,
            r#"hopline_queue_paused{queue="mail"} 1"#,
            "hopline_workers 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains(r#"hopline_queue_jobs_ready{queue="mail"}"#), "nobody said: {text}");
        assert_eq!(shown(&View::default()), "", "nobody was asked");
    }
}
