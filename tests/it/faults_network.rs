//! Connections that are cut again and again, and a broker that takes connections and says nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    process_worker::{item, stop_within},
    support::{
        broker::{Broker, Way},
        process::{Stage, eventually, free_port, new_folder, say, submit_until, until_status},
    },
};

const CUTS: usize = 20;

/// Deliveries climb with every cut, beyond where jobs become suspects. None is lost, and none is convicted.
#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_every_second_lose_and_convict_nothing() {
    let way = Way::to(&Broker::shared()).await;
    let stage = Stage::over(way.broker.clone());
    let front = stage.serve().await;
    // Few at a time, so that many wait in the workers at each cut.
    let few = [("HOPLINE_WORKER_CONCURRENCY", "3")];
    let mut workers = [stage.ledger_worker(&few), stage.ledger_worker(&few)];
    let slow = item(&stage, &json!({ "ms": 250 }));
    let failing = item(&stage, &json!({ "ms": 250, "ends": ["fail", "well"] }));
    let mut jobs = front.submit_all([vec![slow.clone(); 150], vec![failing.clone(); 50]].concat()).await;
    let stop = CancellationToken::new();
    let submitting = submit_until(&stop, &front, [slow, failing], Duration::from_millis(250));
    let cutting = async {
        let mut cut = 0;
        for _ in 0..CUTS {
            // The fault itself: a cut every second.
            sleep(Duration::from_secs(1)).await;
            cut += way.cut();
        }
        stop.cancel();
        cut
    };
    let (submitted, cut) = tokio::join!(submitting, cutting);
    jobs.extend(submitted.accepted);
    stage.ledger().until_all_ended(&jobs).await;
    let lines = stage.ledger().lines();
    let starts = lines.iter().filter(|line| line.word == "start").count();
    let apart = lines.iter().filter(|line| line.child && line.word == "start").count();
    say(format_args!(
        "{} jobs accepted, {} unsure, {} refused; {cut} connections cut; {starts} starts, {apart} in a child process",
        jobs.len(),
        submitted.unsure.len(),
        submitted.refused
    ));
    assert!(cut >= CUTS * 3 && apart > 0, "too little happened");
    for process in workers.iter().chain([&front.process]) {
        let threads = process.threads();
        // A front has about 20 of its own; each cut ends several connections, and each of those had a thread.
        assert!(threads < CUTS * 2, "{threads} threads after {CUTS} lost connections:\n{}", process.log());
    }
    for worker in &mut workers {
        worker.stop().await;
    }
    assert_eq!(stage.broker.waiting(&stage.dead_queue()).await, 0, "innocents were convicted");
    assert_eq!(stage.broker.waiting(&stage.work_queue()).await, 0);
}

/// A listener that takes connections and says nothing. How many it took, and how many are still open.
async fn silent() -> (Broker, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let amqp = format!("amqp://{}", listener.local_addr().expect("an address"));
    let (taken, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counting, closing) = (Arc::clone(&taken), Arc::clone(&open));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counting.fetch_add(1, Ordering::Relaxed);
            closing.fetch_add(1, Ordering::Relaxed);
            let closing = Arc::clone(&closing);
            tokio::spawn(async move {
                let mut bytes = [0; 64];
                while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
                closing.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (Broker { amqp, management: String::new() }, taken, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_is_an_absent_one() {
    let (broker, taken, open) = silent().await;
    let stage = Stage::private(broker, new_folder());
    let soon = ("HOPLINE_AMQP_CONNECT_TIMEOUT", "1s");
    let mut front = stage.serve_with(&[soon]).await;
    let health = format!("127.0.0.1:{}", free_port());
    let mut worker = stage.ledger_worker(&[soon, ("HOPLINE_WORKER_HEALTH", &health)]);
    until_status(&format!("http://{health}/healthz"), 503).await;
    assert_eq!(front.get("/healthz").await.status, 200);
    assert_eq!(front.get("/readyz").await.status, 503);
    for path in ["/v1/jobs", "/v1/jobs?wait=10s"] {
        let answer = front.post(path, &item(&stage, &json!({}))).await;
        assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"), "{answer:?}");
    }
    // About ten connections (front, its acts, worker) are tried for again and again; those given up are closed.
    eventually("it is tried again", async || (taken.load(Ordering::Relaxed) >= 60).then_some(())).await;
    let left = open.load(Ordering::Relaxed);
    assert!(left <= 20, "{left} of {} connections are left open", taken.load(Ordering::Relaxed));
    // Promptly, although nobody answers: far below the grace of 25 s.
    tokio::join!(
        stop_within(&mut front.process, Duration::from_secs(8)),
        stop_within(&mut worker, Duration::from_secs(8))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_processes_start_refuse_and_end() {
    let broker = Broker { amqp: format!("amqp://127.0.0.1:{}", free_port()), management: String::new() };
    let stage = Stage::private(broker, new_folder());
    let mut front = stage.serve_with(&[]).await;
    let mut worker = stage.ledger_worker(&[]);
    assert_eq!(front.get("/readyz").await.status, 503);
    let answer = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
    assert_eq!((answer.status, answer.code()), (503, "broker_unavailable"), "{answer:?}");
    worker.until_logged("cannot connect", "reason=").await;
    tokio::join!(
        stop_within(&mut front.process, Duration::from_secs(8)),
        stop_within(&mut worker, Duration::from_secs(8))
    );
}
