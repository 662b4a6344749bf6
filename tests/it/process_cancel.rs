//! An order to cancel outlives every process that knew of it.

use hopline::amqp::delay;
use serde_json::json;

use crate::{
    process_worker::item,
    support::process::{Stage, eventually},
};

/// The order lies in the control log, and the job on the delay ladder, for days; nobody who runs then was there. The days
/// are not waited for: the test takes the message off its level, as the broker does when they are over.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_delayed_by_days_does_not_run_after_everything_was_restarted() {
    let stage = Stage::new();
    let mut front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[]);
    let first = front.submit(&stage, json!({})).await;
    stage.ledger().until_all_ended(&[first]).await;
    let mut far = item(&stage, &json!({}));
    far["delay"] = json!("2d");
    let [cancelled, kept] = [front.post("/v1/jobs", &far).await, front.post("/v1/jobs", &far).await]
        .map(|answer| (answer.status == 202).then(|| answer.id()).expect("accepted"));
    let answer = front.delete(&format!("/v1/jobs/{cancelled}?reason=moved&by=eve")).await;
    assert_eq!((answer.status, &answer.body["status"]), (202, &json!("scheduled")), "{answer:?}");

    worker.stop().await;
    front.process.stop().await;
    // The record is gone, too: only the broker remembers.
    std::fs::remove_dir_all(&front.record).expect("its folder");
    let front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[]);
    worker.until_logged("caught up with the control log", "kinds=").await;
    let ticks = delay::ticks(std::time::Duration::from_secs(2 * 86_400)).expect("a delay");
    let level = delay::entry_level(ticks).expect("a level");
    let queue = format!("{}.delay.{level:02}", stage.ladder);
    for id in [&cancelled, &kept] {
        stage.broker.release(&queue, id, &format!("{}.delay.ready", stage.ladder)).await;
    }
    stage.ledger().until_all_ended(std::slice::from_ref(&kept)).await;
    let job = eventually("its end", async || {
        let job = front.get(&format!("/v1/jobs/{cancelled}?wait=10s")).await.body;
        job["finished_at"].is_string().then_some(job)
    })
    .await;
    assert_eq!((&job["status"], &job["error"]["reason"]), (&json!("cancelled"), &json!("moved")), "{job}");
    assert_eq!(stage.ledger().of(&cancelled), [], "it ran");
    worker.stop().await;
}
