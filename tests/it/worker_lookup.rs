//! What may be a repeat is asked about before it runs.

use std::time::Duration;

use futures_util::StreamExt;
use hopline::{Client, Config, Job, client::WorkerInfo, event::EventType};
use lapin::{
    BasicProperties, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{
    PATIENCE, eventually,
    log::EventLog,
    probe::{Probe, quick},
    stage::{Stage, stage},
};

/// Says that there is an HTTP process: workers ask only then. Before that, a worker declares everything.
async fn announce_front(stage: &Stage) {
    let (early, mut starts) = stage.probes();
    let args = serde_json::value::RawValue::from_string("0".to_owned()).expect("JSON");
    let options = hopline::EnqueueOptions { queue: Some(stage.queue.clone()), ..Default::default() };
    // RabbitMQ may refuse what comes while a queue is just being declared.
    let (client, probe) = (stage.client(), Probe(args));
    eventually("it is accepted", async || client.enqueue_with(&probe, options.clone()).await.ok()).await;
    starts.next().await;
    early.stop().await;
    let properties = BasicProperties::default().with_type("hopline.front".into());
    stage.rabbit.publish_raw(&stage.names.control(), "front.test", properties, b"{\"front\":\"test\"}").await;
}

/// A configuration whose workers ask.
fn asking(stage: &Stage, patience: Duration) -> Config {
    let mut config = stage.config.clone();
    config.worker.lookup_patience = patience;
    config
}

/// Somebody who answers in an HTTP process's place.
struct Desk<'a> {
    stage: &'a Stage,
    questions: Consumer,
    channel: lapin::Channel,
}

impl<'a> Desk<'a> {
    async fn open(stage: &'a Stage) -> Self {
        let channel = stage.rabbit.channel().await;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let lookup = stage.names.lookup();
        let questions = channel.basic_consume(lookup.into(), "desk".into(), options, arguments).await;
        Self { stage, questions: questions.expect("the queue of questions"), channel }
    }

    /// Answers the next question, whose jobs it returns; `know` says what is known of each.
    async fn answer(&mut self, know: impl Fn(&Value) -> Value) -> Vec<Value> {
        let question = timeout(PATIENCE, self.questions.next()).await.expect("a question");
        let question = question.expect("the consumer lives").expect("a delivery");
        question.ack(BasicAckOptions::default()).await.expect("acked");
        let asked: Value = serde_json::from_slice(&question.data).expect("JSON");
        let asked = asked["jobs"].as_array().expect("jobs").clone();
        let known: Vec<Value> = asked
            .iter()
            .map(|job| {
                let mut known = json!({"id": job["id"], "run": job["run"], "step": 0, "latest_run": 0});
                let more = know(job);
                let more = more.as_object().expect("an object").clone();
                known.as_object_mut().expect("an object").extend(more);
                known
            })
            .collect();
        let id = question.properties.correlation_id().clone().expect("a correlation id");
        let properties = BasicProperties::default().with_type("hopline.lookup.answer".into());
        let properties = properties.with_correlation_id(id);
        let to = question.properties.reply_to().clone().expect("an address");
        let body = json!({ "jobs": known }).to_string();
        let replies = self.stage.names.replies();
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish(replies.into(), to, options, body.as_bytes(), properties).await;
        sent.expect("written").await.expect("sent");
        asked
    }
}

/// Publishes a probe that says nothing of the kind.
async fn publish_plain(stage: &Stage, script: &str) -> String {
    let id = hopline::JobId::new().to_string();
    publish(stage, &id, script, None, FieldTable::default()).await;
    id
}

/// Publishes a probe that says that it may be a copy.
async fn publish_unsure(stage: &Stage, script: &str, reply_to: Option<&str>) -> String {
    let id = hopline::JobId::new().to_string();
    publish_copy(stage, &id, script, reply_to).await;
    id
}

async fn publish_copy(stage: &Stage, id: &str, script: &str, reply_to: Option<&str>) {
    let mut headers = FieldTable::default();
    headers.insert("hopline-unsure".into(), AMQPValue::Boolean(true));
    headers.insert("hopline-step".into(), AMQPValue::LongInt(2));
    publish(stage, id, script, reply_to, headers).await;
}

async fn publish(stage: &Stage, id: &str, script: &str, reply_to: Option<&str>, headers: FieldTable) {
    let mut properties = BasicProperties::default()
        .with_type(Probe::KIND.into())
        .with_message_id(id.into())
        .with_headers(headers);
    if let Some(reply_to) = reply_to {
        properties = properties.with_reply_to(reply_to.into()).with_correlation_id("c".into());
    }
    let key = format!("{}.normal.{}", stage.queue, Probe::KIND);
    let body = format!(r#"{{"script":{script}}}"#);
    stage.rabbit.publish_raw(&stage.names.jobs(), &key, properties, body.as_bytes()).await;
}

/// A queue that replies go to.
async fn mailbox(stage: &Stage) -> String {
    let name = format!("{}.replies.test", stage.config.amqp.prefix);
    let channel = stage.rabbit.channel().await;
    let declared = channel.queue_declare(name.as_str().into(), Default::default(), FieldTable::default());
    declared.await.expect("a queue");
    let replies = stage.names.replies();
    let bound = channel.queue_bind(
        name.as_str().into(),
        replies.into(),
        name.as_str().into(),
        Default::default(),
        FieldTable::default(),
    );
    bound.await.expect("bound");
    name
}

#[tokio::test]
async fn a_run_that_has_ended_is_settled_without_running() {
    stage(async |stage| {
        announce_front(stage).await;
        let (worker, mut starts) = stage.probes_with(&asking(stage, Duration::from_secs(60)), quick());
        let mut desk = Desk::open(stage).await;
        let reply_to = mailbox(stage).await;

        // Succeeded: only the reply is sent again.
        let id = publish_unsure(stage, r#"["ok"]"#, Some(&reply_to)).await;
        let end = json!({"status": "succeeded", "attempt": 2, "worker": "w", "output": {"n": 1}});
        let asked = desk.answer(|_| json!({"final": end, "step": 2, "latest_run": 1})).await;
        assert_eq!(asked, [json!({"id": id, "run": 1, "step": 2})]);
        let reply = stage.rabbit.take(&reply_to).await;
        assert_eq!((reply.text(), &reply.headers["hopline-attempt"]), (r#"{"n":1}"#, &json!(2)), "{reply:?}");

        // Dead: the copy in the dead-letter queue may be missing.
        let id = publish_unsure(stage, r#"["ok"]"#, Some(&reply_to)).await;
        let error = json!({"code": "c", "message": "m"});
        let end = json!({"status": "dead", "attempt": 2, "worker": "w", "reason": "fatal", "error": error});
        desk.answer(|_| json!({"final": end, "step": 2, "latest_run": 1})).await;
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!((dead.id(), &dead.headers["hopline-reason"]), (id, &json!("fatal")), "{dead:?}");
        assert_eq!(stage.rabbit.take(&reply_to).await.headers["hopline-status"], "dead");

        // Gone on without this message: nothing is left to do.
        for known in [json!({"step": 3, "latest_run": 1}), json!({"step": 0, "latest_run": 2})] {
            publish_unsure(stage, r#"["ok"]"#, None).await;
            desk.answer(|_| known.clone()).await;
        }

        // To be cancelled.
        let id = publish_unsure(stage, r#"["ok"]"#, None).await;
        desk.answer(|_| json!({"step": 2, "latest_run": 1, "cancel": {"by": "ops"}})).await;
        let events = EventLog::of(stage).await.until_end(&id).await;
        assert_eq!(events[0].event_type, EventType::Cancelled);

        // Not ended: it runs.
        let id = publish_unsure(stage, r#"["ok"]"#, None).await;
        desk.answer(|_| json!({"step": 2, "latest_run": 1})).await;
        assert_eq!(starts.next().await.id.to_string(), id);
        assert!(starts.rest().is_empty());
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.repeats, report.cancelled), (1, 4, 1), "{report:?}");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
    })
    .await;
}

/// Half a million orders are remembered; the one that is forgotten for them is the record's to know.
#[tokio::test]
async fn what_is_cancelled_with_half_a_million_others_is_asked_about() {
    stage(async |stage| {
        announce_front(stage).await;
        let args = serde_json::value::RawValue::from_string("1".to_owned()).expect("JSON");
        let options = hopline::EnqueueOptions { queue: Some(stage.queue.clone()), ..Default::default() };
        let id = stage.client().enqueue_with(&Probe(args), options).await.expect("accepted").to_string();
        let order = async |orders: Vec<Value>| {
            let properties = BasicProperties::default().with_type("hopline.cancel".into());
            let body = json!({ "orders": orders }).to_string();
            stage.rabbit.publish_raw(&stage.names.control(), "cancel", properties, body.as_bytes()).await;
        };
        order(vec![json!({"id": id, "run": 1, "at": "2090-01-02T03:04:05Z"})]).await;
        for _ in 0..50 {
            let other = || json!({"id": hopline::JobId::new(), "run": 1, "at": "2100-01-02T03:04:05Z"});
            order((0..10_000).map(|_| other()).collect()).await;
        }
        let (_worker, mut starts) = stage.probes_with(&asking(stage, Duration::from_secs(60)), quick());
        let mut desk = Desk::open(stage).await;
        let asked = desk.answer(|_| json!({"latest_run": 1, "cancel": {"by": "ops"}})).await;
        assert_eq!(asked, [json!({"id": id, "run": 1, "step": 0})]);
        let events = EventLog::of(stage).await.until_end(&id).await;
        assert!(events.iter().any(|event| event.event_type == EventType::Cancelled), "{events:?}");
        assert!(starts.rest().is_empty());
    })
    .await;
}

#[tokio::test]
async fn what_is_not_suspicious_is_not_asked_about_and_what_is_goes_together() {
    stage(async |stage| {
        announce_front(stage).await;
        for _ in 0..20 {
            publish_unsure(stage, r#"["ok"]"#, None).await;
        }
        let (worker, mut starts) = stage.probes_with(&asking(stage, Duration::from_secs(60)), quick());
        let client = stage.client();
        let args = serde_json::value::RawValue::from_string("1".to_owned()).expect("JSON");
        let options = hopline::EnqueueOptions { queue: Some(stage.queue.clone()), ..Default::default() };
        client.enqueue_with(&Probe(args), options).await.expect("accepted");
        // Nobody has answered anything yet; twenty are held, which is the whole prefetch but not for long.
        let mut desk = Desk::open(stage).await;
        let (mut asked, mut questions) = (0, 0);
        while asked < 20 {
            asked += desk.answer(|_| json!({})).await.len();
            questions += 1;
        }
        assert!(questions < 20, "{questions} questions for {asked} jobs");
        let starts = starts.take(21).await;
        assert!(starts.iter().any(|start| start.args == "1"));
        assert_eq!(worker.stop().await.succeeded, 21);
    })
    .await;
}

#[tokio::test]
async fn where_nobody_answers_jobs_run_after_a_while_and_then_at_once() {
    stage(async |stage| {
        announce_front(stage).await;
        let (worker, mut starts) = stage.probes_with(&asking(stage, Duration::from_secs(2)), quick());
        let first = publish_unsure(stage, r#"["ok"]"#, None).await;
        assert_eq!(starts.next().await.id.to_string(), first);
        // Nobody there: these are not held for two seconds each.
        for _ in 0..60 {
            publish_unsure(stage, r#"["ok"]"#, None).await;
            starts.next().await;
        }
        // Until somebody answers again, be it a question about nothing.
        let mut desk = Desk::open(stage).await;
        desk.answer(|_| json!({})).await;
        eventually("it is asked again", async || {
            let id = publish_unsure(stage, r#"["ok"]"#, None).await;
            let asked = timeout(Duration::from_secs(1), desk.answer(|_| json!({}))).await;
            starts.next().await;
            asked.is_ok_and(|asked| asked.iter().any(|job| job["id"] == id.as_str())).then_some(())
        })
        .await;
        assert_eq!(worker.stop().await.handed_back, 0);
    })
    .await;
}

#[tokio::test]
async fn what_is_held_at_the_end_is_handed_back() {
    stage(async |stage| {
        announce_front(stage).await;
        for _ in 0..5 {
            publish_unsure(stage, r#"["ok"]"#, None).await;
        }
        let (worker, mut starts) = stage.probes_with(&asking(stage, Duration::from_secs(60)), quick());
        stage.rabbit.wait_count(&stage.work_queue(), 0).await;
        worker.stop().await;
        stage.rabbit.wait_count(&stage.work_queue(), 5).await;
        assert!(starts.rest().is_empty(), "none has run");
    })
    .await;
}

/// The first of two copies is like any other message; it may wait in a worker while the second one runs elsewhere.
#[tokio::test]
async fn what_waited_for_its_turn_is_looked_up_before_it_starts() {
    stage(async |stage| {
        announce_front(stage).await;
        let mut config = asking(stage, Duration::from_secs(60));
        config.worker.concurrency = 1;
        let (worker, mut starts) = stage.probes_with(&config, quick());
        let first = publish_plain(stage, r#"["held"]"#).await;
        assert_eq!(starts.next().await.id.to_string(), first);
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(publish_plain(stage, r#"["ok"]"#).await);
        }
        // Its heartbeats tell when it has taken them; from then on each must wait for 2 s.
        let front = Client::for_http(&config);
        eventually("the three wait in the worker", async || {
            let waiting =
                |worker: &WorkerInfo| worker.queues.iter().any(|share| share.waiting == others.len());
            front.workers().iter().any(waiting).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let mut desk = Desk::open(stage).await;
        starts.release(1);
        let end = json!({"status": "succeeded", "attempt": 1, "worker": "w", "output": null});
        let known = |job: &Value| {
            if job["id"] == others[1].as_str() { json!({"final": end, "latest_run": 1}) } else { json!({}) }
        };
        // Asked together; the first of them may have left by itself.
        let mut asked = Vec::new();
        while asked.len() < others.len() {
            let jobs = desk.answer(known).await;
            asked.extend(jobs.iter().filter_map(|job| job["id"].as_str()).map(str::to_owned));
        }
        assert_eq!(asked, others, "all that waited");
        for expected in [&others[0], &others[2]] {
            assert_eq!(starts.next().await.id.to_string(), *expected);
        }
        let report = worker.stop().await;
        assert!(starts.rest().is_empty());
        assert_eq!((report.succeeded, report.repeats, report.handed_back), (3, 1, 0), "{report:?}");
    })
    .await;
}

/// What is not suspicious does not wait long for somebody who is not there.
#[tokio::test]
async fn where_nobody_answers_what_waited_for_its_turn_starts_soon() {
    stage(async |stage| {
        announce_front(stage).await;
        let mut config = asking(stage, Duration::from_secs(600));
        config.worker.concurrency = 1;
        let (worker, mut starts) = stage.probes_with(&config, quick());
        publish_plain(stage, r#"["held"]"#).await;
        starts.next().await;
        let second = publish_plain(stage, r#"["ok"]"#).await;
        stage.rabbit.wait_count(&stage.work_queue(), 0).await;
        // So long it must have waited.
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        starts.release(1);
        // It would be held for minutes if it might be a repeat.
        assert_eq!(starts.next().await.id.to_string(), second);
        assert_eq!(worker.stop().await.succeeded, 2);
    })
    .await;
}

#[tokio::test]
async fn another_worker_does_not_run_what_has_ended() {
    stage(async |stage| {
        let front = stage.front().await;
        let config = asking(stage, Duration::from_secs(60));
        let (first, mut starts) = stage.probes_with(&config, quick());
        stage.wait_announced(&front.client, Probe::KIND, &stage.queue).await;
        let ends = [r#"["ok"]"#, r#"["fatal"]"#, r#"[{"retry_in":100},"ok"]"#];
        let mut ids = Vec::new();
        for script in ends {
            ids.push(publish_unsure(stage, script, None).await);
        }
        starts.take(4).await;
        let mut log = EventLog::of(stage).await;
        for id in &ids {
            log.until_end(id).await;
        }
        let report = first.stop().await;
        assert_eq!((report.succeeded, report.dead, report.retried), (2, 1, 1), "{report:?}");
        stage.rabbit.wait_count(&stage.dead_queue(), 1).await;

        // As if their acknowledgements had been lost.
        for (id, script) in ids.iter().zip(ends) {
            publish_copy(stage, id, script, None).await;
        }
        let (second, mut starts) = stage.probes_with(&config, quick());
        stage.rabbit.wait_count(&stage.dead_queue(), 2).await;
        front.call("test.probe", "\"after\"").await;
        assert_eq!(starts.next().await.args, "\"after\"");
        eventually("all are acknowledged", async || {
            (stage.rabbit.count(&stage.work_queue()).await == Some(0)).then_some(())
        })
        .await;
        let report = second.stop().await;
        assert!(starts.rest().is_empty(), "none ran again");
        assert_eq!((report.succeeded, report.repeats, report.dead), (1, 3, 0), "{report:?}");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
    })
    .await;
}
