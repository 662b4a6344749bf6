//! Workers that are killed, or told to stop, in the middle of their work.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::process::{KIND, Process, Stage, eventually, free_port, until_status};

/// A job of the ledger worker, as an item of a batch.
pub(crate) fn item(stage: &Stage, args: &Value) -> Value {
    json!({ "kind": KIND, "queue": stage.queue, "args": args })
}

/// Nothing was lost, nothing ran twice, no attempt was spent, nothing is left.
async fn assert_each_ran_once(stage: &Stage, jobs: &[String]) {
    let lines = stage.ledger().lines();
    let (starts, ends) = (stage.ledger().count("start"), stage.ledger().count("end"));
    let lost: Vec<_> = jobs.iter().filter(|job| !ends.contains_key(*job)).collect();
    let twice: Vec<_> = starts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(lost.is_empty() && twice.is_empty(), "lost: {lost:?}, run more than once: {twice:?}");
    assert_eq!(starts.len(), jobs.len(), "runs of jobs that nobody submitted");
    assert!(lines.iter().all(|line| line.attempt == 1), "an attempt was spent");
    assert_eq!(stage.broker.waiting(&stage.work_queue()).await, 0);
    assert_eq!(stage.broker.waiting(&stage.dead_queue()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_job_is_finished_by_another() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let mut first = stage.ledger_worker(&[]);
    let body = item(&stage, &json!({ "ms": 1000 }));
    let mut second = None;
    let (answer, ()) = tokio::join!(front.post("/v1/jobs?wait=60s", &body), async {
        stage.ledger().until("start", 1).await;
        first.kill9();
        second = Some(stage.ledger_worker(&[]));
    });
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("succeeded")), "{answer:?}");
    let second = second.expect("started").id();
    // A crash is no failed attempt: the number repeats.
    assert_eq!(
        (&answer.body["output"]["attempt"], &answer.body["output"]["pid"]),
        (&json!(1), &json!(second))
    );
    let starts: Vec<_> = stage.ledger().lines().into_iter().filter(|line| line.word == "start").collect();
    assert_eq!(
        starts.iter().map(|line| (line.attempt, line.pid)).collect::<Vec<_>>(),
        [(1, first.id()), (1, second)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_under_load_loses_nothing_and_runs_nothing_twice() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let many = [("HOPLINE_WORKER_CONCURRENCY", "50"), ("HOPLINE_WORKER_PREFETCH", "100")];
    let (mut first, mut second) = (stage.ledger_worker(&many), stage.ledger_worker(&many));
    for worker in [&first, &second] {
        worker.until_logged("worker started", "worker=").await;
    }
    // As much as keeps them busy, until the new worker is there: however fast the machine is.
    let replaced = CancellationToken::new();
    let submitting = async {
        let mut jobs = Vec::new();
        while !replaced.is_cancelled() {
            let slow = item(&stage, &json!({ "ms": 60, "stubborn": true }));
            jobs.extend(front.submit_all(vec![slow; 500]).await);
            let enough = jobs.len().saturating_sub(1000);
            stage.ledger().until("end", enough).await;
        }
        jobs
    };
    let replacing = async {
        stage.ledger().until("end", 1000).await;
        // Each says that it has started before it is connected.
        stage.ledger().until_run_by(first.id()).await;
        stage.ledger().until_run_by(second.id()).await;
        first.stop().await;
        let third = stage.ledger_worker(&many);
        stage.ledger().until_run_by(third.id()).await;
        replaced.cancel();
        third
    };
    let (jobs, mut third) = tokio::join!(submitting, replacing);
    stage.ledger().until_all_ended(&jobs).await;
    let lines = stage.ledger().lines();
    for worker in [&first, &second, &third] {
        assert!(lines.iter().any(|line| line.pid == worker.id()), "a worker had no part in it");
    }
    second.stop().await;
    third.stop().await;
    assert_each_ran_once(&stage, &jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlasts_the_grace_is_handed_back() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let grace = [("HOPLINE_SHUTDOWN_GRACE", "1s"), ("HOPLINE_WORKER_CONCURRENCY", "4")];
    let mut first = stage.ledger_worker(&grace);
    // One stops when asked, one is dropped, and one holds a thread that nobody can stop. One has not started.
    let kind = json!({ "ms": 600_000 });
    let deaf = json!({ "ms": 600_000, "stubborn": true });
    let grinding = json!({ "ends": ["grind", "well"] });
    let jobs = front.submit_all([&kind, &deaf, &grinding].map(|args| item(&stage, args)).to_vec()).await;
    stage.ledger().until("start", 3).await;
    first.stop().await;
    assert_eq!(stage.ledger().of(&jobs[0]).last().map(|line| line.word.as_str()), Some("stopped"));
    assert!(stage.ledger().count("end").is_empty() && stage.ledger().count("fail").is_empty());
    assert_eq!(stage.broker.waiting(&stage.work_queue()).await, 3);

    let second = stage.ledger_worker(&grace);
    stage.ledger().until("start", 6).await;
    let again: Vec<_> = stage.ledger().lines().into_iter().filter(|line| line.pid == second.id()).collect();
    assert!(again.iter().all(|line| line.attempt == 1), "an attempt was spent: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_worker_at_once() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[("HOPLINE_SHUTDOWN_GRACE", "600s")]);
    front.submit(&stage, json!({ "ms": 600_000, "stubborn": true })).await;
    stage.ledger().until("start", 1).await;
    worker.signal(Signal::TERM);
    worker.until_logged("shutting down", "signal=").await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await.code(), Some(143));
    assert_eq!(stage.ledger().count("start").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_health_is_its_consuming() {
    let stage = Stage::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut worker = stage.ledger_worker(&[("HOPLINE_WORKER_HEALTH", &address)]);
    let url = format!("http://{address}/healthz");
    until_status(&url, 200).await;
    stop_within(&mut worker, Duration::from_secs(15)).await;
}

/// SIGTERM; the process must end well before the grace of 25 s.
pub(crate) async fn stop_within(process: &mut Process, limit: Duration) {
    let ended = tokio::time::timeout(limit, process.stop()).await;
    assert!(ended.is_ok(), "not ended within {limit:?}; its log:\n{}", process.log());
}

/// What a stopped process was handed before lies in its memory and looks well when it wakes up; others have done it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_does_not_start_what_others_have_done() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let variables = [
        ("HOPLINE_AMQP_HEARTBEAT", "2"),
        ("HOPLINE_WORKER_CONCURRENCY", "1"),
        ("HOPLINE_WORKER_PREFETCH", "20"),
    ];
    let mut frozen = stage.ledger_worker(&variables);
    let first = front.submit(&stage, json!({ "ms": 5000 })).await;
    stage.ledger().until("start", 1).await;
    let others = front.submit_all(vec![item(&stage, &json!({})); 10]).await;
    let queue = stage.work_queue();
    eventually("all are handed out", async || (stage.broker.waiting(&queue).await == 0).then_some(())).await;
    frozen.signal(Signal::STOP);
    let mut other = stage.ledger_worker(&variables);
    stage.ledger().until_all_ended(&others).await;
    frozen.signal(Signal::CONT);
    frozen.until_logged("this process stood still", "for").await;
    let last = front.submit(&stage, json!({})).await;
    stage.ledger().until_all_ended(&[first, last]).await;
    let starts = stage.ledger().count("start");
    assert!(others.iter().all(|job| starts[job] == 1), "{starts:?}");
    frozen.stop().await;
    other.stop().await;
}
