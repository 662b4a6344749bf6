//! Jobs that take longer than the broker waits for them.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    broker::Broker,
    process::{Stage, eventually, new_folder},
};

/// RabbitMQ ends the channel of a delivery that is not settled within its consumer timeout, and with it all that came on
/// that channel. Here it is less patient than the worker was told. What comes after a job that takes long has another
/// channel, so it keeps its deliveries.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_too_long_takes_no_other_down() {
    let dir = new_folder();
    let (mut node, broker) =
        Broker::private_with(&dir, |options| options.consumer_timeout = Duration::from_secs(8)).await;
    // How often a channel looks; a minute otherwise. Of channels that begin from now on.
    let often = "application:set_env(rabbit, channel_tick_interval, 1000).";
    node.ctl(&["eval", often]).await.expect("set");
    let stage = Stage::private(broker, dir);
    let front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[
        ("HOPLINE_WORKER_CONCURRENCY", "4"),
        ("HOPLINE_WORKER_PREFETCH", "4"),
        // The shortest there is: after 2 s a job takes long.
        ("HOPLINE_WORKER_CONSUMER_TIMEOUT", "60s"),
        ("HOPLINE_SHUTDOWN_GRACE", "5s"),
        ("HOPLINE_TEST_TIMEOUT", "30"),
        ("HOPLINE_LOG_LEVEL", "info,hopline::amqp::consumer=debug"),
    ]);
    let long = front.submit(&stage, json!({ "ms": 20_000 })).await;
    let mut others = vec![];
    worker.until_logged("what comes next gets another channel", "queue=").await;
    // Always one of them under way, until the broker has taken the long one back and handed it out again.
    eventually("the long one's channel is gone", async || {
        others.push(front.submit(&stage, json!({ "ms": 1500 })).await);
        stage.ledger().until_all_ended(&others).await;
        worker.log().contains("the broker has ended a channel with what takes long on it").then_some(())
    })
    .await;
    stage.ledger().until_all_ended(std::slice::from_ref(&long)).await;
    let starts = stage.ledger().count("start");
    assert!(others.iter().all(|job| starts[job] == 1), "{starts:?}");
    let log = worker.log();
    assert!(!log.contains("consumer ended, starting over"), "{log}");
    worker.stop().await;
    node.stop().await;
}
