//! The HTTP front killed and told to stop, with callers that wait.

use std::time::Duration;

use futures_util::future::join_all;
use hopline::job::JobId;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    process_worker::item,
    support::process::{KIND, Stage, eventually, say},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_although_the_front_that_took_it_was_killed() {
    let stage = Stage::new();
    let mut front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[]);
    let waited_for = item(&stage, &json!({ "ms": 500 }));
    let plain = front.submit(&stage, json!({ "ms": 500 })).await;
    let caller = {
        let (client, url) = (reqwest::Client::new(), format!("{}/v1/jobs?wait=60s", front.url));
        tokio::spawn(async move { client.post(url).json(&waited_for).send().await })
    };
    stage.ledger().until("start", 2).await;
    front.process.kill9();
    assert!(caller.await.expect("no panic").is_err(), "the caller is told that nobody answers");
    stage.ledger().until("end", 2).await;
    assert!(stage.ledger().count("end").contains_key(&plain));
    assert!(stage.ledger().count("start").values().all(|count| *count == 1));
    // The reply had nowhere to go, which disturbs nothing.
    let next = stage.serve().await;
    let answer = next.post("/v1/jobs?wait=60s", &item(&stage, &json!({}))).await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("succeeded")), "{answer:?}");
    worker.stop().await;
    assert_eq!(stage.broker.waiting(&stage.work_queue()).await, 0);
}

/// Clients that name their jobs repeat each request until it is answered, whatever happens to the front.
#[tokio::test(flavor = "multi_thread")]
async fn named_jobs_run_once_although_their_front_is_killed_again_and_again() {
    const CLIENTS: usize = 10;
    const JOBS: usize = 30;
    let stage = Stage::new();
    let mut worker = stage.ledger_worker(&[]);
    let mut front = stage.serve().await;
    let (url, urls) = watch::channel(front.url.clone());
    let body = item(&stage, &json!({}));
    let clients = (0..CLIENTS).map(|_| {
        let (mut urls, body, http) = (urls.clone(), body.clone(), reqwest::Client::new());
        tokio::spawn(async move {
            let (mut ids, mut repeats) = (Vec::new(), 0);
            while ids.len() < JOBS {
                let id = JobId::new().to_string();
                loop {
                    let url = format!("{}/v1/jobs/{id}", *urls.borrow_and_update());
                    match http.put(url).json(&body).send().await.map(|answer| answer.status().as_u16()) {
                        Ok(202) => break,
                        Ok(200) => break repeats += 1,
                        Ok(409 | 503 | 504) => sleep(Duration::from_millis(20)).await,
                        Ok(status) => panic!("answered with {status}"),
                        // Killed, most likely: there is another one soon.
                        Err(_) => drop(timeout(Duration::from_millis(500), urls.changed()).await),
                    }
                }
                ids.push(id);
            }
            (ids, repeats)
        })
    });
    let clients = join_all(clients);
    let killing = async {
        for kill in 1..=4 {
            stage.ledger().until("start", kill * CLIENTS * JOBS / 6).await;
            front.process.kill9();
            front = stage.serve().await;
            url.send_replace(front.url.clone());
        }
    };
    let (done, ()) = tokio::join!(clients, killing);
    let done: Vec<(Vec<String>, usize)> = done.into_iter().map(|done| done.expect("no panic")).collect();
    let ids: Vec<String> = done.iter().flat_map(|(ids, _)| ids.clone()).collect();
    stage.ledger().until_all_ended(&ids).await;
    eventually("the queue is empty", async || {
        (stage.broker.waiting(&stage.work_queue()).await == 0).then_some(())
    })
    .await;
    worker.stop().await;
    let starts = stage.ledger().count("start");
    assert_eq!(starts.len(), CLIENTS * JOBS, "one job for each name");
    assert!(starts.values().all(|count| *count == 1), "each once: {starts:?}");
    let repeats: usize = done.iter().map(|(_, repeats)| repeats).sum();
    say(format_args!("{} jobs, {repeats} answered as repeats, after 4 kills", ids.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_that_is_told_to_stop_answers_who_waits_and_takes_no_more() {
    let stage = Stage::new();
    let mut front = stage.serve().await;
    let _worker = stage.ledger_worker(&[]);
    let body = item(&stage, &json!({ "ms": 1500 }));
    let (answer, ()) = tokio::join!(front.post("/v1/jobs?wait=60s", &body), async {
        stage.ledger().until("start", 1).await;
        front.process.signal(rustix::process::Signal::TERM);
        let address = front.url.trim_start_matches("http://");
        eventually("new connections are refused", async || {
            tokio::net::TcpStream::connect(address).await.is_err().then_some(())
        })
        .await;
        assert!(stage.ledger().count("end").is_empty(), "the job was over before the front refused");
    });
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("succeeded")), "{answer:?}");
    assert!(front.process.ended().await.success(), "{}", front.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_still_waits_at_the_end_of_the_grace_is_answered() {
    let stage = Stage::new();
    let mut front = stage.serve_with(&[("HOPLINE_SHUTDOWN_GRACE", "1s")]).await;
    front.until_ready().await;
    let _worker = stage.ledger_worker(&[]);
    let body = item(&stage, &json!({ "ms": 600_000 }));
    let (answer, ()) = tokio::join!(front.post("/v1/jobs?wait=60s", &body), async {
        stage.ledger().until("start", 1).await;
        front.process.signal(rustix::process::Signal::TERM);
    });
    assert_eq!((answer.status, &answer.body["status"]), (202, &json!("queued")), "{answer:?}");
    assert!(front.process.ended().await.success(), "{}", front.process.log());
}

/// A front that has just started does not know yet where a kind's workers are. It refuses what names no queue until it
/// does, instead of sending it where nobody takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_front_that_has_just_started_guesses_no_queue() {
    let stage = Stage::new();
    let mut front = stage.serve().await;
    let worker = stage.ledger_worker(&[]);
    worker.until_logged("caught up with the control log", "kinds=").await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        front.process.kill9();
        let record = front.record.clone();
        front = stage.serve_in(&record, &[("HOPLINE_AMQP_QUEUES", "default")]).await;
        // As a client does that does not look at /readyz.
        let id = eventually("it is taken", async || {
            let answer = front.post("/v1/jobs", &json!({ "kind": KIND })).await;
            match (answer.status, answer.code()) {
                (202, _) => Some(answer),
                (503, "broker_unavailable") | (0, _) => None,
                _ => panic!("not documented: {answer:?}"),
            }
        });
        let answer = id.await;
        assert_eq!(answer.body["queue"], json!(stage.queue), "{answer:?}");
        jobs.push(answer.id());
    }
    stage.ledger().until_all_ended(&jobs).await;
}
