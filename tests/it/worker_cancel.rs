//! Cancelling: by orders in the control log, before, while and after a job runs, and while no worker is there.

use std::time::Duration;

use hopline::event::{AttemptOutcome, EventType};
use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::{
    front::Front,
    log::{EventLog, steps},
    probe::quick,
    stage::{Stage, stage},
};

/// Writes an order into the control log.
async fn order(stage: &Stage, ids: &[&str]) {
    let orders: Vec<Value> = ids
        .iter()
        .map(|id| json!({"id": id, "run": 1, "by": "ops", "reason": "why not", "at": "2026-01-02T03:04:05.678Z"}))
        .collect();
    let properties = BasicProperties::default().with_type("hopline.cancel".into());
    let body = json!({ "orders": orders }).to_string();
    stage.rabbit.publish_raw(&stage.names.control(), "cancel", properties, body.as_bytes()).await;
}

async fn submit(front: &Front, script: &str, more: &str) -> String {
    front.submit(format!(r#"{{"kind":"test.probe","args":{{"script":{script}}}{more}}}"#)).await
}

async fn check_cancelled(log: &mut EventLog, id: &str, ran: bool) {
    let events = log.until_end(id).await;
    let end = events.iter().find(|event| event.event_type.is_final()).expect("an end");
    assert_eq!(end.event_type, EventType::Cancelled, "{events:?}");
    assert_eq!((end.data.by.as_deref(), end.data.reason.as_deref()), (Some("ops"), Some("why not")));
    assert_eq!(end.data.outcome, ran.then_some(AttemptOutcome::Cancelled));
}

#[tokio::test]
async fn what_waits_is_delayed_or_retried_does_not_run() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        (config.worker.concurrency, config.worker.prefetch) = (1, 10);
        let (worker, mut starts) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        let retried = submit(&front, r#"["fail",{"retry_in":3000},"ok"]"#, "").await;
        starts.take(2).await;
        let held = submit(&front, r#"["held"]"#, "").await;
        starts.next().await;
        let waiting = submit(&front, r#"["ok"]"#, "").await;
        let delayed = submit(&front, r#"["ok"]"#, r#","delay":"2s""#).await;
        let mut log = EventLog::of(stage).await;
        order(stage, &[&retried, &waiting, &delayed]).await;
        // At once, although its turn has not come.
        check_cancelled(&mut log, &waiting, false).await;
        starts.release(1);
        for id in [&retried, &delayed] {
            check_cancelled(&mut log, id, false).await;
        }
        let end = log.until_end(&held).await;
        assert_eq!(steps(&end).last().map(|(event_type, ..)| *event_type), Some(EventType::Succeeded));
        assert!(starts.rest().is_empty(), "none of them ran");
        let report = worker.stop().await;
        assert_eq!((report.cancelled, report.succeeded), (3, 1), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn what_runs_is_asked_to_stop_and_then_dropped() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.cancel.grace = Duration::from_millis(300);
        let (worker, mut starts) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        let mut log = EventLog::of(stage).await;
        let asked = submit(&front, r#"["stop"]"#, "").await;
        let dropped = submit(&front, r#"["hang"]"#, "").await;
        let left_alone = submit(&front, r#"["held"]"#, "").await;
        starts.take(3).await;
        order(stage, &[&asked, &dropped]).await;
        check_cancelled(&mut log, &asked, true).await;
        check_cancelled(&mut log, &dropped, true).await;
        starts.release(1);
        log.until_end(&left_alone).await;
        // Too late: it has ended, and stays so.
        order(stage, &[&left_alone]).await;
        front.call("test.probe", "1").await;
        let report = worker.stop().await;
        assert_eq!((report.cancelled, report.succeeded, report.retried), (2, 2, 0), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn an_order_holds_for_workers_that_come_later() {
    stage(async |stage| {
        let front = stage.front().await;
        let (waiting, other) = (submit(&front, r#"["ok"]"#, "").await, submit(&front, r#"["ok"]"#, "").await);
        let delayed = submit(&front, r#"["ok"]"#, r#","delay":"3s""#).await;
        order(stage, &[&waiting, &delayed]).await;
        let mut log = EventLog::of(stage).await;
        let (first, mut starts) = stage.probes();
        check_cancelled(&mut log, &waiting, false).await;
        assert_eq!(starts.next().await.id.to_string(), other);
        first.stop().await;
        let (_second, mut starts) = stage.probes();
        check_cancelled(&mut log, &delayed, false).await;
        assert!(starts.rest().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_caller_hears_of_the_cancellation() {
    stage(async |stage| {
        let (_worker, mut starts) = stage.probes();
        let client = stage.client();
        let caller = client.clone();
        let queue = stage.queue.clone();
        let called = tokio::spawn(async move {
            let args = serde_json::value::RawValue::from_string(r#"{"script":["stop"]}"#.to_owned());
            let job = crate::support::probe::Probe(args.expect("JSON"));
            let options = hopline::EnqueueOptions { queue: Some(queue), ..Default::default() };
            caller.call(&job, Duration::from_secs(40), options).await.map(drop)
        });
        let id = starts.next().await.id.to_string();
        order(stage, &[&id]).await;
        let error = called.await.expect("no panic").expect_err("no output");
        assert!(matches!(error, hopline::client::CallError::Cancelled(_)), "{error:?}");
    })
    .await;
}
