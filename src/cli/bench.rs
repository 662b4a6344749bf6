//! `hopline bench`: Hopline against bare lapin, on one broker, in one run.
//!
//! Front, worker and caller are one process here, on the same machine as the broker: what counts is the ratio of
//! numbers from one run, not a number by itself. Each measurement is repeated, interleaved with its baseline, and
//! the median is shown. The broker is the one that the configuration names (`HOPLINE_AMQP_URL`); what the
//! benchmark declares there has a prefix of its own and is deleted at the end.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, oneshot};

use super::{local_http, say};
use crate::{
    Client, Config, Context, EnqueueOptions, Job, JobResult, Options, QueueName, Worker,
    amqp::baseline::Baseline, http, record::Record,
};

/// Bytes of a job's args.
const ARGS: usize = 256;
/// Jobs in one batch request.
const HTTP_BATCH: usize = 500;
/// Longest wait for jobs to be run.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Jobs in each measurement.
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Calls in each latency measurement.
    #[arg(long, default_value_t = 500)]
    calls: usize,
    /// Times that everything is measured; the median is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// HTTP connections for single submits.
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

/// Returns its args; a job with nothing to do.
#[derive(Serialize, Deserialize)]
struct Noop {
    filler: String,
}

impl Job for Noop {
    const KIND: &'static str = "bench.noop";
    const QUEUE: &'static str = "bench";
    type Output = Self;
}

impl Noop {
    fn new() -> Self {
        Self { filler: "x".repeat(ARGS - r#"{"filler":""}"#.len()) }
    }
}

/// Counts jobs that were run.
#[derive(Clone, Default)]
struct Done(Arc<(AtomicUsize, Notify)>);

impl Done {
    async fn wait_for(&self, count: usize) -> anyhow::Result<()> {
        let reached = async {
            while self.0.0.load(Ordering::Relaxed) < count {
                self.0.1.notified().await;
            }
        };
        tokio::time::timeout(LONGEST, reached).await.context("the jobs were not run in time")
    }
}

async fn noop(job: Noop, cx: Context<Done>) -> JobResult<Noop> {
    let Done(done) = cx.state();
    done.0.fetch_add(1, Ordering::Relaxed);
    done.1.notify_one();
    Ok(job)
}

/// Medians by measurement, in the order of their first appearance.
#[derive(Default)]
struct Table(Vec<(&'static str, Vec<f64>)>);

impl Table {
    fn add(&mut self, name: &'static str, value: f64) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name, vec![value])),
        }
    }

    fn add_rate(&mut self, name: &'static str, count: usize, took: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        self.add(name, count as f64 / took.as_secs_f64());
    }

    fn add_latency(&mut self, p50: &'static str, p99: &'static str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let at = |share: usize| {
            times.get(times.len() * share / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        self.add(p50, at(50));
        self.add(p99, at(99));
    }

    fn median(&self, name: &str) -> f64 {
        let values = self.0.iter().find(|(other, _)| *other == name).map(|(_, values)| values.clone());
        let mut values = values.unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

const RAW_PUBLISH: &str = "raw publish + confirm";
const RAW_DRAIN: &str = "raw consume + ack";
const RAW_BOTH: &str = "raw both at once";
const RAW_P50: &str = "raw call, p50";
const RAW_P99: &str = "raw call, p99";

/// What is shown: name, unit, and the baseline that it is divided by.
const ROWS: [(&str, &str, &str); 14] = [
    (RAW_PUBLISH, "/s", RAW_PUBLISH),
    (RAW_DRAIN, "/s", RAW_DRAIN),
    (RAW_BOTH, "/s", RAW_BOTH),
    ("submit, library", "/s", RAW_PUBLISH),
    ("submit, HTTP batches", "/s", RAW_PUBLISH),
    ("submit, HTTP one by one", "/s", RAW_PUBLISH),
    ("drain, one worker", "/s", RAW_DRAIN),
    ("end to end, HTTP batches", "/s", RAW_BOTH),
    (RAW_P50, "ms", RAW_P50),
    (RAW_P99, "ms", RAW_P99),
    ("call, library, p50", "ms", RAW_P50),
    ("call, library, p99", "ms", RAW_P99),
    ("call, HTTP, p50", "ms", RAW_P50),
    ("call, HTTP, p99", "ms", RAW_P99),
];

/// Runs the benchmark and prints its table.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    ensure!(arguments.jobs >= 1 && arguments.calls >= 1 && arguments.rounds >= 1, "nothing to measure");
    let config = of_its_own(Config::load()?)?;
    let baseline = Baseline::start(&config.amqp, &format!("{}.raw", config.amqp.prefix), ARGS).await?;
    let bench = Bench::start(config.clone(), &arguments).await?;
    let mut table = Table::default();
    for round in 1..=arguments.rounds {
        say::error(format_args!("round {round} of {}", arguments.rounds));
        bench.round(&baseline, &arguments, &mut table).await?;
    }
    bench.end().await;
    std::fs::remove_dir_all(&config.record.path).context("cannot remove the record")?;
    baseline.take_down(&config.amqp, &config.amqp.queues).await?;
    baseline.end().await?;
    print(&table, &arguments);
    Ok(ExitCode::SUCCESS)
}

/// What the broker is asked with, and all else apart from what may run here already.
fn of_its_own(mut config: Config) -> anyhow::Result<Config> {
    let id = crate::JobId::new().to_string();
    config.amqp.prefix = format!("bench-{}", &id[id.len() - 12..]);
    config.amqp.ladder_prefix = String::new();
    config.amqp.queues = vec![QueueName::parse(Noop::QUEUE)?];
    config.http.listen = ([127, 0, 0, 1], 0).into();
    // It has no key of this file, and asks over plain HTTP.
    (config.http.keys, config.http.tls_cert, config.http.tls_key) = (None, None, None);
    config.worker.concurrency = 100;
    config.worker.prefetch = 500;
    config.worker.health = None;
    config.record.path = std::env::temp_dir().join(&config.amqp.prefix);
    // A server may run here that has it.
    config.spool.path = None;
    Ok(config)
}

fn print(table: &Table, arguments: &Arguments) {
    say::line(format_args!(
        "medians of {} rounds, {} jobs of {ARGS} bytes, {} calls; broker, front, worker and callers on this machine\n",
        arguments.rounds, arguments.jobs, arguments.calls
    ));
    say::line(format_args!("{:<28}{:>12}{:>4}{:>12}", "", "", "", "of raw"));
    for (name, unit, base) in ROWS {
        let (value, base) = (table.median(name), table.median(base));
        let digits = if unit == "ms" { 2 } else { 0 };
        say::line(format_args!("{name:<28}{value:>12.digits$}{unit:>4}{:>11.2}×", value / base));
    }
}

/// The processes of Hopline, in this one.
struct Bench {
    config: Config,
    client: Client,
    front: Client,
    record: Record,
    http: reqwest::Client,
    url: String,
    stop_front: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), http::ServeError>>,
}

impl Bench {
    async fn start(config: Config, arguments: &Arguments) -> anyhow::Result<Self> {
        let record = Record::open(&config)?;
        let front = Client::for_http(&config);
        record.follow(&front).map_err(anyhow::Error::msg)?;
        let listener = http::bind(&config).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (stop_front, stopped) = oneshot::channel();
        let served = tokio::spawn({
            let (config, front, record) = (config.clone(), front.clone(), record.clone());
            async move { http::serve_on(listener, &config, front, record, async { drop(stopped.await) }).await }
        });
        let http = local_http(LONGEST)?;
        let ready = async {
            loop {
                if http
                    .get(format!("{url}/readyz"))
                    .send()
                    .await
                    .is_ok_and(|answer| answer.status().is_success())
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ready)
            .await
            .context("the front did not become ready")?;
        ensure!(arguments.connections >= 1, "--connections must be at least 1");
        let client = Client::new(&config);
        Ok(Self { config, client, front, record, http, url, stop_front, served })
    }

    async fn end(self) {
        // The front may have failed; then there is nobody to tell.
        let _ = self.stop_front.send(());
        drop(self.served.await);
        self.client.close().await;
        self.record.close().await;
        self.front.close().await;
    }

    async fn round(
        &self,
        baseline: &Baseline,
        arguments: &Arguments,
        table: &mut Table,
    ) -> anyhow::Result<()> {
        let jobs = arguments.jobs;
        table.add_rate(RAW_PUBLISH, jobs, baseline.publish(jobs).await?);
        table.add_rate(RAW_DRAIN, jobs, baseline.drain(jobs).await?);
        table.add_rate("submit, library", jobs, self.submit_by_library(jobs).await?);
        table.add_rate("drain, one worker", jobs, self.drain(jobs).await?);
        table.add_rate("submit, HTTP batches", jobs, self.submit_batches(jobs).await?);
        self.drain(jobs).await?;
        table.add_rate(
            "submit, HTTP one by one",
            jobs,
            self.submit_singly(jobs, arguments.connections).await?,
        );
        self.drain(jobs).await?;
        table.add_rate(RAW_BOTH, jobs, baseline.both(jobs).await?);
        table.add_rate("end to end, HTTP batches", jobs, self.end_to_end(jobs).await?);
        table.add_latency(RAW_P50, RAW_P99, baseline.calls(arguments.calls).await?);
        let (by_library, by_http) = self.calls(arguments.calls).await?;
        table.add_latency("call, library, p50", "call, library, p99", by_library);
        table.add_latency("call, HTTP, p50", "call, HTTP, p99", by_http);
        Ok(())
    }

    async fn submit_by_library(&self, jobs: usize) -> anyhow::Result<Duration> {
        let job = Noop::new();
        let began = Instant::now();
        let mut left = jobs;
        while left > 0 {
            let batch = left.min(5_000);
            left -= batch;
            for result in self.client.enqueue_batch(std::iter::repeat_n(&job, batch)).await {
                result?;
            }
        }
        Ok(began.elapsed())
    }

    async fn submit_batches(&self, jobs: usize) -> anyhow::Result<Duration> {
        let item = json!({ "kind": Noop::KIND, "queue": Noop::QUEUE, "args": Noop::new() });
        let batches: Vec<usize> =
            (0..jobs).step_by(HTTP_BATCH).map(|from| HTTP_BATCH.min(jobs - from)).collect();
        let began = Instant::now();
        // Four clients take turns.
        try_join_all((0..4).map(|lane| {
            let (batches, item) = (&batches, &item);
            async move {
                for size in batches.iter().skip(lane).step_by(4) {
                    let body = serde_json::to_vec(&vec![item; *size])?;
                    self.post("/v1/jobs/batch", body).await?;
                }
                anyhow::Ok(())
            }
        }))
        .await?;
        Ok(began.elapsed())
    }

    async fn submit_singly(&self, jobs: usize, connections: usize) -> anyhow::Result<Duration> {
        let item = json!({ "kind": Noop::KIND, "queue": Noop::QUEUE, "args": Noop::new() });
        let body = serde_json::to_vec(&item)?;
        let next = AtomicUsize::new(0);
        let began = Instant::now();
        try_join_all((0..connections).map(|_| async {
            while next.fetch_add(1, Ordering::Relaxed) < jobs {
                self.post("/v1/jobs", body.clone()).await?;
            }
            anyhow::Ok(())
        }))
        .await?;
        Ok(began.elapsed())
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> anyhow::Result<()> {
        let request =
            self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let answer = request.body(body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path} answered {status}: {text}");
        Ok(())
    }

    /// Runs a worker until it has run so many jobs that wait already; the time from its first to its last.
    async fn drain(&self, jobs: usize) -> anyhow::Result<Duration> {
        self.with_worker(|done| async move {
            done.wait_for(1).await?;
            let began = Instant::now();
            done.wait_for(jobs).await?;
            Ok(began.elapsed())
        })
        .await
    }

    async fn end_to_end(&self, jobs: usize) -> anyhow::Result<Duration> {
        self.with_worker(|done| async move {
            let began = Instant::now();
            let (submitted, run) = tokio::join!(self.submit_batches(jobs), done.wait_for(jobs));
            submitted?;
            run?;
            Ok(began.elapsed())
        })
        .await
    }

    async fn calls(&self, count: usize) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
        self.with_worker(|_| async move {
            let (mut by_library, mut by_http) = (Vec::new(), Vec::new());
            let body = serde_json::to_vec(&Noop::new())?;
            let path = format!("/v1/rpc/{}?queue={}", Noop::KIND, Noop::QUEUE);
            // The first calls wait for the worker to start.
            self.post(&path, body.clone()).await?;
            self.client.call(&Noop::new(), Duration::from_secs(30), EnqueueOptions::default()).await?;
            for _ in 0..count {
                let began = Instant::now();
                self.client.call(&Noop::new(), Duration::from_secs(30), EnqueueOptions::default()).await?;
                by_library.push(began.elapsed());
                let began = Instant::now();
                self.post(&path, body.clone()).await?;
                by_http.push(began.elapsed());
            }
            Ok((by_library, by_http))
        })
        .await
    }

    async fn with_worker<T, F, R>(&self, work: F) -> anyhow::Result<T>
    where
        F: FnOnce(Done) -> R,
        R: Future<Output = anyhow::Result<T>>,
    {
        let done = Done::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = Worker::new(self.config.clone()).state(done.clone()).register_with(noop, Options::new());
        let running = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        let result = work(done).await;
        // The worker may have failed; then its error is the one to show.
        let _ = stop.send(());
        running.await??;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_asks_for_no_key_and_no_tls() {
        let mut config = Config::default();
        let file = || Some("file".into());
        (config.http.keys, config.http.tls_cert, config.http.tls_key) = (file(), file(), file());
        config.spool.path = file();
        let config = of_its_own(config).unwrap();
        assert_eq!(config.spool.path, None);
        let http = config.http;
        assert_eq!((http.keys, http.tls_cert, http.tls_key), (None, None, None));
        assert!(http.listen.ip().is_loopback());
    }
}
