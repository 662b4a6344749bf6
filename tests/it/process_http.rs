//! The HTTP front killed and told to stop, with callers that wait.

use serde_json::json;

use crate::{
    process_worker::item,
    support::process::{Stage, eventually},
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
