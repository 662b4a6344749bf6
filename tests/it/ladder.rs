//! Delays and retries: the ladder of the real broker.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use hopline::{Client, Envelope, Job, JobId, Kind, Options, RetryPolicy, client::Submission};
use jiff::{SignedDuration, Timestamp};
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions},
    types::FieldTable,
};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    PATIENCE,
    probe::{Probe, Start, quick},
    stage::{LADDER, Stage, stage, submit_all},
};

/// How much earlier than asked for a job may start: clocks and timers of two processes.
const EARLY: SignedDuration = SignedDuration::from_millis(50);

fn after(at: Timestamp, pause: Duration) -> Timestamp {
    at + SignedDuration::try_from(pause).expect("a short pause")
}

/// Fails if a start came before `due`.
fn check_not_early(start: &Start, due: Timestamp) {
    assert!(start.at + EARLY >= due, "started at {}, due at {due}: {start:?}", start.at);
}

/// A probe for `queue`, to start after `delay`.
fn delayed(queue: &hopline::QueueName, delay: Duration) -> Submission {
    let kind = Kind::parse(Probe::KIND).expect("a kind");
    Submission::new(Envelope::new(kind, queue.clone(), Bytes::from_static(b"{}")), delay)
}

/// The next number of a simple generator (SplitMix64 is the library's own; this one needs no secrecy either).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test]
async fn three_failures_are_four_attempts() {
    stage(async |stage| {
        let policy = quick().retry;
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let body = r#"{"kind":"test.probe","args":{"script":["fail","fail","fail","ok"]}}"#;
        let record = front.post("/v1/jobs?wait=40s", body).await.json();
        assert_eq!((&record["status"], &record["attempt"]), (&json!("succeeded"), &json!(4)), "{record}");
        let starts = log.take(4).await;
        assert_eq!(starts.iter().map(|start| start.attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
        for pair in starts.windows(2) {
            let pause = policy.delay(pair[0].attempt, pair[0].id.seed(pair[0].attempt));
            check_not_early(&pair[1], after(pair[0].at, pause));
        }
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.retried, report.dead), (1, 3, 0), "{report:?}");
        assert!(log.rest().is_empty());
    })
    .await;
}

#[tokio::test]
async fn one_job_goes_through_the_ladder_again_and_again() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes_with(&stage.config, Options::new().max_attempts(4));
        let front = stage.front().await;
        // Two levels of the ladder in the first round, one or three in others; 8 rounds, of which 3 spend an attempt.
        let steps = r#"[{"snooze":300},{"retry_in":100},{"snooze":100},{"snooze":700},{"retry_in":200},
                        {"snooze":100},{"snooze":400},{"retry_in":100},"fatal"]"#;
        let id = front.submit(format!(r#"{{"kind":"test.probe","args":{{"script":{steps}}}}}"#)).await;
        let starts = log.take(9).await;
        assert_eq!(starts.iter().map(|start| start.attempt).collect::<Vec<_>>(), [1, 1, 2, 2, 2, 3, 3, 3, 4]);
        for (pair, pause) in starts.windows(2).zip([300, 100, 100, 700, 200, 100, 400, 100]) {
            check_not_early(&pair[1], after(pair[0].at, Duration::from_millis(pause)));
        }
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!((dead.id(), &dead.headers["hopline-step"]), (id, &json!(8)));
        // What the broker wrote on the way is not carried along: a copy of it makes RabbitMQ 3.10 drop the job.
        // (The delivery count is of the dead-letter queue itself.)
        let names = dead.headers.as_object().into_iter().flat_map(|headers| headers.keys());
        let carried: Vec<&String> = names.filter(|name| !name.starts_with("hopline-")).collect();
        assert!(carried.iter().all(|name| *name == "x-delivery-count"), "{carried:?}");
    })
    .await;
}

#[tokio::test]
async fn ten_seconds_overtake_an_hour() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let hour = front.post("/v1/jobs", r#"{"kind":"test.probe","delay":"1h"}"#).await;
        hour.accepted();
        let asked = Timestamp::now();
        let answer = front.post("/v1/jobs", r#"{"kind":"test.probe","delay":"10s"}"#).await;
        let id = answer.accepted();
        assert_eq!(answer.json()["status"], "scheduled");
        let start = log.next().await;
        assert_eq!(start.id.to_string(), id);
        check_not_early(&start, after(asked, Duration::from_secs(10)));
        assert_eq!(worker.stop().await.succeeded, 1);
    })
    .await;
}

/// Submits so many jobs with random delays of up to 8 s; when each is due.
async fn submit_random(stage: &Stage, client: &Client, count: usize) -> HashMap<JobId, Timestamp> {
    let mut seed = u64::from_be_bytes(JobId::new().as_bytes()[8..].try_into().expect("8 bytes"));
    let mut due = HashMap::new();
    for _ in 0..count / 100 {
        let jobs: Vec<Submission> = (0..100)
            .map(|_| delayed(&stage.queue, Duration::from_millis(1 + random(&mut seed) % 8000)))
            .collect();
        let asked = Timestamp::now();
        due.extend(jobs.iter().map(|job| (job.envelope.id, after(asked, job.delay))));
        submit_all(client, jobs).await;
    }
    due
}

#[tokio::test]
async fn two_thousand_random_delays_all_arrive_and_none_early() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        (config.worker.concurrency, config.worker.prefetch) = (100, 500);
        let (_worker, mut log) = stage.probes_with(&config, quick());
        let client = stage.client();
        let mut due = submit_random(stage, &client, 2000).await;
        assert_eq!(due.len(), 2000);
        for start in log.take(2000).await {
            let due = due.remove(&start.id).expect("each once");
            check_not_early(&start, due);
        }
        assert!(due.is_empty());
    })
    .await;
}

#[tokio::test]
async fn delays_of_a_deleted_queue_hold_up_no_other() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let client = stage.client();
        let gone = stage.other_queue("gone");
        let mut other = stage.config.clone();
        other.amqp.queues = vec![gone.clone()];
        // Declared by a process that is gone too; nobody declares it again.
        let declarer = Client::new(&other);
        submit_all(&declarer, vec![delayed(&gone, Duration::ZERO)]).await;
        declarer.close().await;

        // More than the 32 messages that a level hands on at a time.
        let lost: Vec<Submission> = (0..40).map(|_| delayed(&gone, Duration::from_millis(1500))).collect();
        let mut lost_ids: HashSet<String> = lost.iter().map(|job| job.envelope.id.to_string()).collect();
        submit_all(&client, lost).await;
        stage.rabbit.delete_queue(&stage.names.queue(&gone)).await;
        let asked = Timestamp::now();
        let ours: Vec<Submission> =
            (0..100).map(|n| delayed(&stage.queue, Duration::from_millis(1500 + 15 * n))).collect();
        let mut due: HashMap<JobId, Timestamp> =
            ours.iter().map(|job| (job.envelope.id, after(asked, job.delay))).collect();
        submit_all(&client, ours).await;
        for start in log.take(100).await {
            check_not_early(&start, due.remove(&start.id).expect("each once"));
        }
        // What fell off the ladder is not lost.
        let channel = stage.rabbit.channel().await;
        let (queue, args) = (format!("{LADDER}.strays"), FieldTable::default());
        let consumed =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), args).await;
        let mut strays = consumed.expect("a consumer");
        while !lost_ids.is_empty() {
            let stray = timeout(PATIENCE, strays.next())
                .await
                .expect("all of them")
                .expect("open")
                .expect("a message");
            let id = stray.properties.message_id().as_ref().map(|id| id.as_str().to_owned());
            if lost_ids.remove(&id.unwrap_or_default()) {
                let options = BasicAckOptions::default();
                channel.basic_ack(stray.delivery_tag, options).await.expect("acknowledged");
            }
        }
        // Others' strays go back with the channel.
        channel.close(200, "done".into()).await.expect("closed");
    })
    .await;
}

#[tokio::test]
async fn a_jobs_own_policy_is_followed() {
    stage(async |stage| {
        let (_worker, mut log) =
            stage.probes_with(&stage.config, Options::new().retry(RetryPolicy::default()));
        let front = stage.front().await;
        let body = r#"{"kind":"test.probe","args":{"script":["fail","fail","ok"]},
                       "retry":{"initial":"400ms","factor":1,"jitter":0},"max_attempts":3}"#;
        front.submit(body).await;
        let starts = log.take(3).await;
        for pair in starts.windows(2) {
            check_not_early(&pair[1], after(pair[0].at, Duration::from_millis(400)));
            assert_eq!(pair[1].max_attempts, 3);
        }
    })
    .await;
}
