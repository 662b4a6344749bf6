//! The HTTP interface against a live broker: what is accepted, run and answered.

use serde_json::{Value, json};

use crate::support::probe::Log;
use crate::support::{
    probe::{notes, probe, quick},
    stage::{Stage, stage},
};
use hopline::Worker;

/// A front, and a worker that runs probes from the test's queue.
async fn play(stage: &Stage) -> (crate::support::front::Front, Log) {
    let (notes, log) = notes();
    let options = quick().queue(stage.queue.as_str());
    stage.work(Worker::new(stage.config.clone()).state(notes).register_with(probe, options));
    (stage.front().await, log)
}

#[tokio::test]
async fn a_job_travels() {
    stage(async |stage| {
        let (front, mut log) = play(stage).await;
        let id = front.submit(r#"{"kind":"test.probe","args":{"n":1},"tags":["a","b"]}"#).await;
        let start = log.next().await;
        assert_eq!((start.id.to_string(), start.run, start.attempt), (id, 1, 1));
        assert_eq!((start.args.as_str(), start.tags), (r#"{"n":1}"#, vec!["a".to_owned(), "b".to_owned()]));
        let answer = front.post("/v1/jobs?wait=30s", r#"{"kind":"test.probe"}"#).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let record: Value = answer.json();
        assert_eq!((&record["status"], &record["output"]), (&json!("succeeded"), &json!({})));
    })
    .await;
}
