//! Which queue a kind goes to, and what is said of a queue that is not as it should be.

use std::collections::BTreeMap;

use hopline::{Job, Kind, Worker};
use reqwest::Method;
use serde_json::json;

use crate::support::{
    eventually,
    front::Front,
    probe::{Probe, notes, probe, quick},
    stage::stage,
};

/// The queue that a submit is answered with.
async fn queue_of(front: &Front, more: &str) -> String {
    let answer = front.post("/v1/jobs", format!(r#"{{"kind":"test.probe"{more}}}"#)).await;
    answer.accepted();
    answer.json()["queue"].as_str().expect("a queue").to_owned()
}

#[tokio::test]
async fn explicit_before_announced_before_configured_before_default() {
    stage(async |stage| {
        let (configured, announced) = (stage.queue.clone(), stage.other_queue("announced"));
        let front = stage.front().await;
        assert_eq!(queue_of(&front, "").await, configured.as_str());
        // Without a route it is `default`, which nobody has declared here.
        let mut config = stage.config.clone();
        config.routes = BTreeMap::new();
        let plain = stage.front_with(&config).await;
        let problem = plain.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await.problem(422, "unknown_queue");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("default")), "{problem}");

        let (notes, mut log) = notes();
        let options = quick().queue(announced.as_str());
        let worker = stage.work(Worker::new(stage.config.clone()).state(notes).register_with(probe, options));
        for front in [&front, &plain] {
            stage.wait_announced(&front.client, Probe::KIND, &announced).await;
            assert_eq!(queue_of(front, "").await, announced.as_str());
            log.next().await;
        }
        let explicit = queue_of(&front, &format!(r#","queue":"{configured}""#)).await;
        assert_eq!(explicit, configured.as_str());

        // A front that starts later has heard of it too, by the time it is ready; and the worker may be gone.
        worker.stop().await;
        let late = stage.front_with(&config).await;
        assert_eq!(queue_of(&late, "").await, announced.as_str());
        assert_eq!(late.client.queue_of(&Kind::parse(Probe::KIND).unwrap()), announced);
    })
    .await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named_with_what_to_do() {
    stage(async |stage| {
        let path = format!("queues/{{vhost}}/{}", stage.work_queue());
        let classic = json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
        stage.rabbit.done(Method::PUT, &path, Some(classic)).await;
        let front = stage.front_unready(&stage.config).await;
        let said = eventually("the reason", async || {
            let ready = front.get("/readyz").await;
            assert_eq!(ready.status, 503);
            let said = ready.json()["publish"].as_str().unwrap_or_default().to_owned();
            said.contains("other arguments").then_some(said)
        })
        .await;
        for part in [&stage.work_queue(), "inequivalent arg", "delete it", "policy"] {
            assert!(said.contains(part), "should name {part}: {said}");
        }
        let problem =
            front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await.problem(503, "broker_unavailable");
        assert!(
            problem["detail"].as_str().is_some_and(|detail| detail.contains("other arguments")),
            "{problem}"
        );

        // It is done as it says, and nobody needs to be restarted.
        stage.rabbit.delete_queue(&stage.work_queue()).await;
        front.wait_ready().await;
        front.submit(r#"{"kind":"test.probe"}"#).await;
    })
    .await;
}
