//! What people publish in the management UI, and other programs by AMQP: the wire contract from outside.

use hopline::JobId;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::{eventually, probe::Start, stage::stage};

const KEPT: &str = r#"{"n": 1.50,  "by":"hand"}"#;

#[tokio::test]
async fn a_message_on_the_jobs_exchange_needs_a_key_and_a_type() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        stage.front().await;
        let key = format!("{}.normal.test.probe", stage.queue);
        assert!(stage.rabbit.publish(&stage.names.jobs(), &key, json!({"type": "test.probe"}), KEPT).await);
        let start = log.next().await;
        assert_eq!((start.args.as_str(), start.run, start.attempt), (KEPT, 1, 1));
        // The routing key need not end in the kind.
        let key = format!("{}.normal", stage.queue);
        assert!(stage.rabbit.publish(&stage.names.jobs(), &key, json!({"type": "test.probe"}), "2").await);
        assert_eq!(log.next().await.args, "2");
        // And where no queue is bound, the publisher is told.
        let elsewhere =
            stage.rabbit.publish(&stage.names.jobs(), "nowhere.normal.x", json!({"type": "x"}), "{}").await;
        assert!(!elsewhere);
        assert_eq!(worker.stop().await.succeeded, 2);
    })
    .await;
}

#[tokio::test]
async fn a_message_on_a_queues_page_needs_a_type() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        stage.front().await;
        let publish = async |properties: Value, body| {
            assert!(stage.rabbit.publish("", &stage.work_queue(), properties, body).await);
        };
        // No id: it is given one before it runs, and keeps it through its retries.
        publish(json!({"type": "test.probe"}), r#"{"script":["fail","ok"]}"#).await;
        let starts = log.take(2).await;
        assert_eq!((starts[0].id, starts[0].attempt, starts[1].attempt), (starts[1].id, 1, 2));

        // A UUID is taken as it is; any other id gives the same UUID again and again.
        let id = JobId::new().to_string();
        publish(json!({"type": "test.probe", "message_id": id}), KEPT).await;
        let start = log.next().await;
        assert_eq!((start.id.to_string(), start.args.as_str()), (id, KEPT));
        publish(json!({"type": "test.probe", "message_id": "order/17"}), KEPT).await;
        assert_eq!(log.next().await.id, JobId::from_foreign(&stage.queue, "order/17"));

        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.dead), (3, 0), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn numbers_may_be_typed_as_text() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let later = Timestamp::now().as_millisecond() + 60_000;
        let headers = json!({
            "hopline-version": "1", "hopline-attempt": "2", "hopline-max-attempts": "3", "hopline-timeout-ms": "5000",
            "hopline-expires-at": later.to_string(), "hopline-retry-initial-ms": "100", "hopline-retry-factor": "1.5",
            "hopline-unsure": "true", "hopline-tags": "a, b", "mine": "kept",
        });
        let properties = json!({"type": "test.probe", "headers": headers, "message_id": "n"});
        assert!(stage.rabbit.publish("", &stage.work_queue(), properties, r#"{"script":["fail"]}"#).await);
        let starts = log.take(2).await;
        let [Start { attempt: 2, max_attempts: 3, tags, .. }, Start { attempt: 3, .. }] = &starts[..] else {
            panic!("{starts:?}")
        };
        assert_eq!(tags, &["a", "b"]);
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!((&dead.headers["hopline-attempts"], &dead.headers["mine"]), (&json!(3), &json!("kept")));

        // And one that has expired by such a number never runs.
        let headers = json!({"hopline-expires-at": "1000"});
        let properties = json!({"type": "test.probe", "headers": headers, "message_id": "old"});
        assert!(stage.rabbit.publish("", &stage.work_queue(), properties, "{}").await);
        eventually("it has expired", async || {
            let expired = front.get("/v1/jobs?status=expired").await.json();
            (expired["items"].as_array()?.len() == 1).then_some(())
        })
        .await;
        stage.rabbit.publish("", &stage.work_queue(), json!({"type": "test.probe"}), "\"last\"").await;
        assert_eq!(log.next().await.args, "\"last\"");
        assert_eq!(worker.stop().await.expired, 1);
    })
    .await;
}
