//! A broker that takes no publishes, because its memory is (said to be) short.

use std::time::Duration;

use serde_json::json;

use crate::{
    process_worker::item,
    support::{
        broker::Broker,
        process::{Stage, eventually, new_folder},
    },
};

/// Far shorter than the alarm, so that confirms are missed while it lasts.
const SOON: (&str, &str) = ("HOPLINE_AMQP_CONFIRM_TIMEOUT", "1s");

/// guarantees: memory alarm. Nothing is lost, and what was on its way is not doubled when it ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_holds_up_but_neither_loses_nor_doubles() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let front = stage.serve_with(&[SOON]).await;
    front.until_ready().await;
    let wide = [SOON, ("HOPLINE_WORKER_CONCURRENCY", "16")];
    let mut workers = [stage.ledger_worker(&wide), stage.ledger_worker(&wide)];

    // These run while the alarm is raised. Half of them then want a retry, which is a publish.
    let good = item(&stage, &json!({ "ms": 4000 }));
    let failing = item(&stage, &json!({ "ms": 4000, "ends": ["fail", "well"] }));
    let mut jobs = front.submit_all([vec![good; 8], vec![failing; 8]].concat()).await;
    stage.ledger().until("start", 16).await;
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await.expect("an alarm");

    // The broker says that it is blocked only to who publishes: the first submit finds out.
    let quick = item(&stage, &json!({}));
    let first = front.post("/v1/jobs", &quick).await;
    assert_eq!((first.status, first.code()), (504, "confirm_timeout"), "{first:?}");
    for path in ["/v1/jobs", "/v1/jobs?wait=10s"] {
        let next = front.post(path, &quick).await;
        assert_eq!((next.status, next.code()), (503, "broker_blocked"), "{next:?}");
    }
    assert_eq!(front.get("/readyz").await.status, 503);
    // Work goes on, and so do acknowledgements.
    stage.ledger().until("end", 8).await;
    stage.ledger().until("fail", 8).await;
    // A worker that starts now waits: it could settle nothing that it took.
    let mut late = stage.ledger_worker(&wide);
    late.until_logged("nothing is taken before the control log is read", "queue=").await;
    // Nothing happens here to wait for: the alarm must last long enough for the retries' confirms to be missed, more
    // than once.
    tokio::time::sleep(Duration::from_secs(3)).await;

    node.ctl(&["set_vm_memory_high_watermark", "0.4"]).await.expect("the end of the alarm");
    front.until_ready().await;
    jobs.push(first.job());
    jobs.push(front.submit(&stage, json!({})).await);
    late.until_logged("caught up with the control log", "kinds=").await;
    stage.ledger().until_all_ended(&jobs).await;
    late.stop().await;
    for worker in &mut workers {
        worker.stop().await;
    }
    eventually("the queue is empty", async || {
        (stage.broker.waiting(&stage.work_queue()).await == 0).then_some(())
    })
    .await;
    let ends = stage.ledger().count("end");
    let twice: Vec<_> = ends.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "run to the end more than once: {twice:?}");
    assert_eq!(ends.len(), jobs.len());
    assert_eq!(stage.broker.waiting(&stage.dead_queue()).await, 0);
    node.stop().await;
}
