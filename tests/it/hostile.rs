//! Messages that are no jobs: dead at once, with a reason, their bytes untouched, and whoever asked is told.

use std::{collections::BTreeMap, time::Duration};

use hopline::job::dead::mark;
use lapin::{
    BasicProperties,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldArray, FieldTable},
};
use serde_json::{Value, json};

use crate::support::{
    rabbit::Seen,
    stage::{Stage, stage},
};

/// A message that is no job.
struct Hostile {
    name: &'static str,
    kind: Option<&'static str>,
    headers: Vec<(&'static str, AMQPValue)>,
    body: Vec<u8>,
    reason: &'static str,
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Messages with bodies that are no args.
fn bodies() -> Vec<Hostile> {
    let body = |name, body: &[u8], reason| Hostile {
        name,
        kind: Some("test.probe"),
        headers: vec![],
        body: body.to_vec(),
        reason,
    };
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    let mut lying = body("wrong content type", b"<job/>", "undecodable");
    lying.headers = vec![("mine", text("kept"))];
    vec![
        body("truncated", b"{\"a\": [1, 2", "undecodable"),
        body("binary", &[0, 159, 146, 150, 255, 0, 10, 13], "undecodable"),
        body("empty", b"", "undecodable"),
        body("100 levels", deep.as_bytes(), "undecodable"),
        body("two values", b"{} {}", "undecodable"),
        body("oversize", format!("\"{}\"", "x".repeat(70_000)).as_bytes(), "oversize"),
        lying,
    ]
}

/// Messages with a bad kind, version or header.
fn marks() -> Vec<Hostile> {
    let kind =
        |name, kind, reason| Hostile { name, kind, headers: vec![], body: b"{\"n\": 1}".to_vec(), reason };
    let header = |name, header, value, reason| Hostile {
        headers: vec![(header, value)],
        ..kind(name, Some("test.probe"), reason)
    };
    vec![
        kind("no type", None, "undecodable"),
        kind("empty type", Some(""), "undecodable"),
        kind("bad type", Some("No Kind!"), "undecodable"),
        kind("unknown kind", Some("test.unknown"), "unknown_kind"),
        header("newer version", "hopline-version", AMQPValue::LongInt(99), "unsupported_version"),
        header("version as text", "hopline-version", text("2"), "unsupported_version"),
        header("attempt as words", "hopline-attempt", text("first"), "undecodable"),
        header("attempt below one", "hopline-attempt", AMQPValue::LongInt(0), "undecodable"),
        header(
            "attempt as table",
            "hopline-attempt",
            AMQPValue::FieldTable(FieldTable::default()),
            "undecodable",
        ),
        header("run as list", "hopline-run", AMQPValue::FieldArray(FieldArray::default()), "undecodable"),
        header("timeout as flag", "hopline-timeout-ms", AMQPValue::Boolean(true), "undecodable"),
        header("expiry beyond time", "hopline-expires-at", AMQPValue::LongLongInt(i64::MAX), "undecodable"),
        header("tags as number", "hopline-tags", AMQPValue::LongInt(7), "undecodable"),
        header("jitter of 9", "hopline-retry-jitter", AMQPValue::Double(9.0), "undecodable"),
        header("headers too long", "mine", text(&"x".repeat(70_000)), "oversize"),
    ]
}

impl Hostile {
    /// Publishes it as a stranger would, with an address for the answer.
    async fn publish(&self, stage: &Stage, reply_to: &str) {
        let mut headers = FieldTable::default();
        for (name, value) in &self.headers {
            headers.insert((*name).into(), value.clone());
        }
        let mut properties = BasicProperties::default()
            .with_correlation_id(self.name.into())
            .with_reply_to(reply_to.into())
            .with_headers(headers);
        if let Some(kind) = self.kind {
            properties = properties.with_type(kind.into());
        }
        stage.rabbit.publish_raw("", &stage.work_queue(), properties, &self.body).await;
    }

    fn check_dead(&self, dead: &Seen) {
        assert_eq!(dead.headers[mark::REASON], self.reason, "{}: {dead:?}", self.name);
        assert_eq!(dead.body, self.body, "{}: the body is untouched", self.name);
        assert!(dead.headers[mark::ERROR].as_str().is_some_and(|error| !error.is_empty()), "{dead:?}");
        assert_eq!(dead.headers[mark::ATTEMPTS], 0, "{}", self.name);
        assert_eq!(dead.id().len(), 36, "{}: it has an id", self.name);
        assert_eq!(dead.properties["type"].as_str(), self.kind, "{}", self.name);
        for (name, value) in &self.headers {
            let kept = dead.headers.get(*name).is_some();
            let too_long = matches!(value, AMQPValue::LongString(text) if text.as_bytes().len() > 60_000);
            assert_eq!(kept, !too_long, "{}: header {name}: {dead:?}", self.name);
        }
    }

    fn check_reply(&self, reply: &Seen, dead: &Seen) {
        assert_eq!(
            (&reply.headers["hopline-status"], &reply.headers["hopline-reason"]),
            (&json!("dead"), &json!(self.reason))
        );
        assert_eq!(reply.headers["hopline-job-id"], dead.id(), "{}", self.name);
        let body: Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(
            (&body["code"], &body["message"]),
            (&json!(self.reason), &dead.headers[mark::ERROR]),
            "{}",
            self.name
        );
    }
}

/// So many messages of a queue, by correlation id.
async fn take(stage: &Stage, queue: &str, count: usize) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::new();
    for _ in 0..count {
        let seen = stage.rabbit.take(queue).await;
        let name = seen.properties["correlation_id"].as_str().unwrap_or_default().to_owned();
        assert!(all.insert(name, seen).is_none(), "each once");
    }
    all
}

#[tokio::test]
async fn what_is_no_job_is_dead_with_its_reason() {
    stage(async |stage| {
        let replies = format!("{}.answers", stage.config.amqp.prefix);
        let mut config = stage.config.clone();
        config.worker.patience = 2;
        config.worker.patience_initial = Duration::from_millis(100);
        config.worker.reply_queues = vec![replies.clone()];
        config.limits.args = 60_000;
        let (worker, mut log) = stage.probes_with(&config, crate::support::probe::quick());
        let front = stage.front().await;
        let channel = stage.rabbit.channel().await;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel
            .queue_declare(replies.as_str().into(), durable, FieldTable::default())
            .await
            .expect("a queue");

        let hostile: Vec<Hostile> = bodies().into_iter().chain(marks()).collect();
        for message in &hostile {
            message.publish(stage, &replies).await;
        }
        let dead = take(stage, &stage.dead_queue(), hostile.len()).await;
        let replies = take(stage, &replies, hostile.len()).await;
        for message in &hostile {
            message.check_dead(&dead[message.name]);
            message.check_reply(&replies[message.name], &dead[message.name]);
        }
        assert_eq!(dead["unknown kind"].headers["hopline-patience"], 2, "it waited for a deploy");
        assert_eq!(dead["newer version"].headers["hopline-patience"], 2);
        // The worker is none the worse for it.
        assert_eq!(front.call("test.probe", "[1]").await, "[1]");
        assert_eq!(log.next().await.args, "[1]", "nothing else was run");
        let report = worker.stop().await;
        assert_eq!(
            (usize::try_from(report.dead).unwrap(), report.succeeded),
            (hostile.len(), 1),
            "{report:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn an_address_that_is_not_allowed_gets_no_reply() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        // A job that asks for its reply to be put on a work queue, where it would be taken for a job.
        let properties = json!({"type": "test.probe", "reply_to": stage.work_queue()});
        assert!(stage.rabbit.publish("", &stage.work_queue(), properties, "{}").await);
        log.next().await;
        front.call("test.probe", "{}").await;
        log.next().await;
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.dead), (2, 0), "{report:?}");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
    })
    .await;
}
