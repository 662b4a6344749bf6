//! Workers in this process: concurrency, time, panics, twins, draining, health.

use std::time::Duration;

use bytes::Bytes;
use hopline::{
    Client, Context, EnqueueOptions, Envelope, FromRef, Job, JobResult, Kind, QueueName, Worker,
    client::Submission,
};
use lapin::BasicProperties;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{
    eventually,
    probe::{Notes, Probe, notes, probe, quick},
    stage::{Stage, stage, submit_all},
};

/// A second kind: enqueues so many probes, with its queue's name in their args.
#[derive(Serialize, Deserialize)]
struct Fan {
    #[serde(default)]
    probes: u32,
}

impl Job for Fan {
    const KIND: &'static str = "test.fan";
    const ALIASES: &'static [&'static str] = &["test.fan-out"];
    type Output = Vec<String>;
}

async fn fan(job: Fan, cx: Context<()>) -> JobResult<Vec<String>> {
    let mut ids = Vec::new();
    for number in 0..job.probes {
        let probe = Probe(serde_json::value::to_raw_value(&json!({ "number": number }))?);
        let options = EnqueueOptions { queue: Some(cx.queue().clone()), ..EnqueueOptions::default() };
        ids.push(cx.client().enqueue_with(&probe, options).await?.to_string());
    }
    Ok(ids)
}

/// A state of which handlers see a part.
struct Whole(Notes);

impl FromRef<Whole> for Notes {
    fn from_ref(whole: &Whole) -> Self {
        whole.0.clone()
    }
}

impl FromRef<Whole> for () {
    fn from_ref(_: &Whole) -> Self {}
}

/// So many jobs that wait to be let go.
async fn submit_held(client: &Client, queue: &QueueName, count: usize) {
    let kind = Kind::parse(Probe::KIND).expect("a kind");
    let args = Bytes::from_static(br#"{"script":["held"]}"#);
    let job = || Envelope::new(kind.clone(), queue.clone(), args.clone());
    let jobs = (0..count).map(|_| Submission::new(job(), Duration::ZERO)).collect();
    submit_all(client, jobs).await;
}

#[tokio::test]
async fn a_queue_runs_no_more_than_its_concurrency() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.worker.concurrency = 3;
        config.worker.prefetch = 10;
        let (worker, mut log) = stage.probes_with(&config, quick());
        submit_held(&stage.client(), &stage.queue, 20).await;
        let mut most = 0;
        for _ in 0..20 {
            let start = log.next().await;
            most = most.max(start.running);
            if start.running == 3 || most == 3 {
                log.release(1);
            }
        }
        log.release(3);
        assert_eq!(most, 3);
        eventually("all are done", async || {
            (stage.rabbit.count(&stage.work_queue()).await == Some(0)).then_some(())
        })
        .await;
        assert_eq!(worker.stop().await.succeeded, 20);
    })
    .await;
}

#[tokio::test]
async fn a_kind_at_its_limit_holds_up_no_other() {
    stage(async |stage| {
        let (notes, mut log) = notes();
        let worker = Worker::new(stage.config.clone())
            .state(Whole(notes))
            .register_with(probe, quick().queue(stage.queue.as_str()).concurrency(1))
            .register_with(fan, quick().queue(stage.queue.as_str()));
        let worker = stage.work(worker);
        let front = stage.front().await;
        stage.wait_announced(&front.client, "test.fan", &stage.queue).await;
        submit_held(&stage.client(), &stage.queue, 5).await;
        assert_eq!(log.next().await.running, 1);
        // All five probes are ahead of it.
        assert_eq!(front.call("test.fan", "{}").await, "[]");
        assert_eq!(front.call("test.fan-out", "{}").await, "[]", "by its earlier name");
        for _ in 1..5 {
            log.release(1);
            assert_eq!(log.next().await.running, 1);
        }
        log.release(1);
        assert_eq!(worker.stop().await.succeeded, 7);
    })
    .await;
}

#[tokio::test]
async fn a_handler_can_enqueue() {
    stage(async |stage| {
        let (notes, mut log) = notes();
        let worker = Worker::new(stage.config.clone())
            .state(Whole(notes))
            .register_with(probe, quick().queue(stage.queue.as_str()))
            .register_with(fan, quick().queue(stage.queue.as_str()));
        stage.work(worker);
        let front = stage.front().await;
        stage.wait_announced(&front.client, "test.fan", &stage.queue).await;
        let mut ids: Vec<String> =
            serde_json::from_str(&front.call("test.fan", r#"{"probes":10}"#).await).expect("ids");
        let mut seen: Vec<String> = log.take(10).await.iter().map(|start| start.id.to_string()).collect();
        ids.sort();
        seen.sort();
        assert_eq!(ids, seen);
    })
    .await;
}

#[tokio::test]
async fn timeouts_and_panics_are_tried_again() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        for (script, code, message) in [
            (r#"["hang","ok"]"#, "timeout", "ran longer than its timeout of 300ms"),
            (r#"["panic","ok"]"#, "panic", "the probe panics"),
        ] {
            let submit = |more: &str| {
                format!(r#"{{"kind":"test.probe","args":{{"script":{script}}},"timeout":"300ms"{more}}}"#)
            };
            let record = front.post("/v1/jobs?wait=40s", submit("")).await.json();
            assert_eq!((&record["status"], &record["attempt"]), (&json!("succeeded"), &json!(2)), "{record}");
            let record = front.post("/v1/jobs?wait=40s", submit(r#","max_attempts":1"#)).await.json();
            let error = json!({"code": code, "message": message, "reason": "exhausted"});
            assert_eq!((&record["status"], &record["error"]), (&json!("dead"), &error), "{record}");
        }
        assert_eq!(log.take(6).await.len(), 6);
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.retried, report.dead), (2, 2, 2), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn a_snooze_spends_no_attempt_and_retry_in_names_the_pause() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let body = r#"{"kind":"test.probe","args":{"script":[{"snooze":100},{"snooze":100},{"retry_in":100},"ok"]},
                       "max_attempts":2}"#;
        let record = front.post("/v1/jobs?wait=40s", body).await.json();
        assert_eq!((&record["status"], &record["attempt"]), (&json!("succeeded"), &json!(2)), "{record}");
        let attempts: Vec<u32> = log.take(4).await.iter().map(|start| start.attempt).collect();
        assert_eq!(attempts, [1, 1, 1, 2]);
    })
    .await;
}

/// Publishes a probe with this id; a second time it is the first one's twin.
async fn publish_twin(stage: &Stage, id: &str, args: &str) {
    let properties = BasicProperties::default().with_type(Probe::KIND.into()).with_message_id(id.into());
    let key = format!("{}.normal.{}", stage.queue, Probe::KIND);
    stage.rabbit.publish_raw(&stage.names.jobs(), &key, properties, args.as_bytes()).await;
}

#[tokio::test]
async fn twins_are_run_once() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let id = hopline::JobId::new().to_string();
        let held = r#"{"script":["held"]}"#;
        publish_twin(stage, &id, held).await;
        assert_eq!(log.next().await.id.to_string(), id);
        // While it runs: settled with it.
        publish_twin(stage, &id, held).await;
        // Deliveries come in order: with this one, the twin has been seen.
        assert_eq!(front.call("test.probe", "\"after\"").await, "\"after\"");
        log.next().await;
        log.release(1);
        // After it has ended: acknowledged.
        publish_twin(stage, &id, held).await;
        front.call("test.probe", "\"last\"").await;
        assert_eq!(log.next().await.args, "\"last\"", "no twin ran");
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.handed_back), (3, 0), "{report:?}");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_run_what_runs_and_hands_back_the_rest() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        (config.worker.concurrency, config.worker.prefetch) = (2, 5);
        let (first, mut log) = stage.probes_with(&config, quick());
        submit_held(&stage.client(), &stage.queue, 8).await;
        log.take(2).await;
        // Three are taken ahead, three stay.
        stage.rabbit.wait_count(&stage.work_queue(), 3).await;
        first.tell();
        stage.rabbit.wait_count(&stage.work_queue(), 6).await;
        log.release(2);
        let report = first.stop().await;
        // (What had not come as far as its dispatcher is handed back without being counted.)
        assert!(report.succeeded == 2 && report.handed_back <= 3 && report.retried == 0, "{report:?}");
        assert!(log.rest().is_empty());

        let (second, mut log) = stage.probes();
        log.release(6);
        let starts = log.take(6).await;
        assert!(starts.iter().all(|start| start.attempt == 1), "no attempt was spent: {starts:?}");
        assert_eq!(second.stop().await.succeeded, 6);
    })
    .await;
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_is_handed_back() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.shutdown.grace = Duration::from_millis(300);
        let (first, mut log) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        for step in ["stop", "hang"] {
            front.submit(format!(r#"{{"kind":"test.probe","args":{{"script":["{step}"]}}}}"#)).await;
        }
        log.take(2).await;
        let report = first.stop().await;
        assert_eq!((report.handed_back, report.succeeded, report.retried), (2, 0, 0), "{report:?}");
        stage.rabbit.wait_count(&stage.work_queue(), 2).await;
        let (second, mut log) = stage.probes_with(&config, quick());
        assert!(log.take(2).await.iter().all(|start| start.attempt == 1), "no attempt was spent");
        second.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_kind_that_is_deployed_later_is_waited_for() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.worker.patience_initial = Duration::from_millis(500);
        let queue = stage.queue.as_str();
        let old = stage.work(Worker::new(config.clone()).register_with(fan, quick().queue(queue)));
        let front = stage.front().await;
        stage.wait_announced(&front.client, "test.fan", &stage.queue).await;
        front.call("test.fan", "{}").await;
        let id = front.submit(r#"{"kind":"test.probe"}"#).await;
        // The old worker has taken it, and puts it off.
        stage.rabbit.wait_count(&stage.work_queue(), 0).await;
        let report = old.stop().await;
        assert_eq!(report.dead, 0, "{report:?}");
        let (_new, mut log) = stage.probes_with(&config, quick());
        let start = log.next().await;
        assert_eq!((start.id.to_string(), start.attempt), (id, 1));
    })
    .await;
}

#[tokio::test]
async fn a_healthy_worker_consumes() {
    stage(async |stage| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let url = format!("http://{address}/healthz");
        let health = async || {
            let answer = reqwest::get(&url).await.ok()?;
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.expect("JSON");
            Some((status, body["consuming"][stage.queue.as_str()].as_bool()))
        };
        let mut config = stage.config.clone();
        config.worker.health = Some(address);
        let mut away = config.clone();
        // Nothing listens on port 1.
        away.amqp.url = serde_json::from_value(json!("amqp://127.0.0.1:1")).expect("an address");
        let (worker, _log) = stage.probes_with(&away, quick());
        let said = eventually("an answer", health).await;
        assert_eq!(said, (503, Some(false)), "alive, but nothing comes");
        worker.stop().await;

        let (worker, _log) = stage.probes_with(&config, quick());
        let consuming = async || health().await.filter(|said| *said == (200, Some(true)));
        eventually("consuming", consuming).await;
        stage.rabbit.cut_connections(&[&config.amqp.prefix, "worker", "consume"], 1).await;
        eventually("consuming again", consuming).await;
        worker.stop().await;
        assert_eq!(health().await, None, "closed with the worker");
    })
    .await;
}
