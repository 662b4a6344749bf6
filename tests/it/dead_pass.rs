//! Going over a dead-letter queue that is too long to be held.

use std::time::Duration;

use hopline::job::dead::mark;
use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::json;

use crate::support::stage::{Stage, stage};

/// More than a pass holds (2,000).
const MANY: usize = 2_300;

fn id(number: usize) -> String {
    format!("0198c0de-0000-7000-8000-{number:012}")
}

/// Fills the dead-letter queue with jobs that the record does not know.
async fn fill(stage: &Stage, count: usize) {
    fill_with(stage, "test.probe", 0..count).await;
}

async fn fill_with(stage: &Stage, kind: &str, numbers: std::ops::Range<usize>) {
    let channel = stage.rabbit.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let mut confirms = Vec::new();
    for number in numbers {
        let mut headers = FieldTable::default();
        for (name, value) in [(mark::REASON, "fatal"), (mark::CODE, "old"), (mark::ERROR, "of old")] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_type(kind.into())
            .with_message_id(id(number).into())
            .with_headers(headers);
        let (options, queue) = (BasicPublishOptions::default(), stage.dead_queue());
        let sent = channel.basic_publish("".into(), queue.into(), options, b"{}", properties).await;
        confirms.push(sent.expect("written"));
    }
    for confirm in confirms {
        assert!(confirm.await.expect("confirmed").is_ack());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_is_found_behind_thousands_and_the_others_stay() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        fill(stage, MANY).await;
        stage.rabbit.wait_count(&stage.dead_queue(), u32::try_from(MANY).unwrap()).await;
        let last = id(MANY - 1);
        let order = json!({"ids": [last, id(0)]}).to_string();
        let ordered = front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), order).await;
        assert_eq!(front.acted(ordered).await, json!({"matched": 2, "done": 2, "skipped": 0, "failed": 0}));
        let mut started: Vec<String> = log.take(2).await.iter().map(|start| start.id.to_string()).collect();
        started.sort();
        assert_eq!(started, [id(0), last]);
        stage.rabbit.wait_count(&stage.dead_queue(), u32::try_from(MANY - 2).unwrap()).await;

        // All the others are still whole: each can be replayed.
        let order = json!({"all": true}).to_string();
        let ordered = front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), order).await;
        assert_eq!(front.acted(ordered).await["done"], MANY - 2);
        let mut rest: Vec<String> =
            log.take(MANY - 2).await.iter().map(|start| start.id.to_string()).collect();
        rest.sort();
        assert!(rest.into_iter().eq((1..MANY - 1).map(id)), "each once");
        stage.rabbit.wait_count(&stage.dead_queue(), 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_goes_once_over_a_queue_that_no_pass_meets_as_a_whole() {
    const LONG: usize = 1_800;
    stage(async |stage| {
        let mut config = stage.config.clone();
        // A pass ends after 3 s, an attempt after 4.5: what was sent to the tail must not be met again and again.
        config.worker.consumer_timeout = Duration::from_secs(12);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        fill_with(stage, "test.probe", 0..LONG).await;
        fill_with(stage, "test.other", LONG..LONG + 3).await;
        stage.rabbit.wait_count(&stage.dead_queue(), u32::try_from(LONG + 3).unwrap()).await;
        let path = format!("/v1/queues/{}/dead?kind=test.other", stage.queue);
        let done = front.acted(front.delete(&path).await).await;
        assert_eq!(done, json!({"matched": 3, "done": 3, "skipped": 0, "failed": 0}));
        stage.rabbit.wait_count(&stage.dead_queue(), u32::try_from(LONG).unwrap()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_acts_over_one_queue_take_turns() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        fill(stage, 60).await;
        stage.rabbit.wait_count(&stage.dead_queue(), 60).await;
        let path = format!("/v1/queues/{}/dead/replay", stage.queue);
        let slow = front.post(&path, json!({"all": true, "rate": 30}).to_string()).await;
        let other = front.post(&path, json!({"all": true}).to_string()).await;
        let (first, second) = (front.acted(slow).await, front.acted(other).await);
        let done = |output: &serde_json::Value| output["done"].as_u64().unwrap_or_default();
        assert_eq!(done(&first) + done(&second), 60, "{first} {second}");
        let starts = log.take(60).await;
        assert!(starts.iter().all(|start| start.run == 2));
        assert!(log.rest().is_empty());
    })
    .await;
}
