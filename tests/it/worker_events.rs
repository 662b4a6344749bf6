//! What a worker says in the event log, and that it settles nothing before that is confirmed.

use std::time::Duration;

use hopline::{
    Context, Job, JobResult, Worker,
    event::{AttemptOutcome, Event, EventType},
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    eventually,
    log::{EventLog, Jam, steps},
    probe::{Probe, quick},
    stage::{Stage, stage},
};

/// A probe that does what `script` says.
fn probe(script: &str, more: &str) -> String {
    format!(r#"{{"kind":"test.probe","args":{{"script":{script}}}{more}}}"#)
}

fn last(events: &[Event]) -> Value {
    serde_json::to_value(&events.last().expect("an event").data).expect("JSON")
}

#[tokio::test]
async fn each_end_is_told_with_what_led_to_it() {
    use EventType::{Dead, Expired, Retrying, Scheduled, Submitted, Succeeded};
    stage(async |stage| {
        let (worker, _starts) = stage.probes();
        let front = stage.front().await;
        let mut log = EventLog::of(stage).await;

        let id = front.submit(probe(r#"["ok"]"#, r#","tags":["a"]"#)).await;
        // (The worker may be faster than the front.)
        log.until("both ends", |events| events.len() == 2).await;
        let mut told = steps(&log.of_job(&id));
        told.sort();
        assert_eq!(told, [(Submitted, 1, 0), (Succeeded, 1, 0)], "no word of a start: it was short");
        let end = log.of_job(&id).into_iter().find(|event| event.event_type == Succeeded).expect("an end");
        assert_eq!(end.data.output.expect("inline").get(), r#"{"script":["ok"]}"#);
        assert_eq!(
            (end.data.outcome, end.data.tags),
            (Some(AttemptOutcome::Succeeded), vec!["a".to_owned()])
        );
        assert!(end.data.started_at <= end.data.finished_at && end.data.started_at.is_some());
        assert!(end.data.args.is_none() && !end.data.args_omitted, "the front has told the args");

        let id = front.submit(probe(r#"["fail",{"snooze":100},"ok"]"#, "")).await;
        let events = log.until_end(&id).await;
        let mut told = steps(&events);
        told.retain(|(event_type, ..)| *event_type != Submitted);
        assert_eq!(told, [(Retrying, 1, 0), (Scheduled, 2, 1), (Succeeded, 2, 2)]);
        let retrying = events.iter().find(|event| event.event_type == Retrying).expect("told");
        assert_eq!(retrying.data.error.as_ref().map(|error| error.code.as_str()), Some("probe_failed"));
        assert_eq!(retrying.data.outcome, Some(AttemptOutcome::Failed));
        assert!(retrying.data.run_at > retrying.data.finished_at);

        let id = front.submit(probe(r#"["fail"]"#, r#","max_attempts":2"#)).await;
        let events = log.until_end(&id).await;
        assert_eq!(steps(&events).last(), Some(&(Dead, 2, 1)));
        let end = last(&events);
        assert_eq!((&end["reason"], &end["max_attempts"]), (&json!("exhausted"), &json!(2)), "{end}");

        let id = front.submit(probe(r#"["fatal"]"#, "")).await;
        let end = last(&log.until_end(&id).await);
        assert_eq!((&end["reason"], &end["outcome"]), (&json!("fatal"), &json!("fatal")), "{end}");
        assert_eq!(end["error"], json!({"code": "probe_fatal", "message": "never again"}));
        assert_eq!(end["max_attempts"], 5, "the kind's, as the job says nothing");

        let id = hopline::JobId::new().to_string();
        let mut headers = FieldTable::default();
        headers.insert("hopline-expires-at".into(), AMQPValue::LongInt(1));
        let properties = BasicProperties::default().with_type(Probe::KIND.into());
        let properties = properties.with_message_id(id.as_str().into()).with_headers(headers);
        let key = format!("{}.normal.x", stage.queue);
        stage.rabbit.publish_raw(&stage.names.jobs(), &key, properties, b"{}").await;
        let events = log.until_end(&id).await;
        assert_eq!(steps(&events).last(), Some(&(Expired, 1, 0)));
        assert_eq!(last(&events)["outcome"], Value::Null, "no attempt was made");
        worker.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_no_job_and_what_strangers_send_is_told_as_well() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        (config.worker.patience, config.worker.patience_initial) = (1, Duration::from_millis(100));
        config.record.max_inline = 100;
        let (_worker, _starts) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        front.call("test.probe", "1").await;
        let mut log = EventLog::of(stage).await;
        let send = async |kind: &str, body: &[u8], headers: FieldTable| {
            let id = hopline::JobId::new().to_string();
            let properties = BasicProperties::default().with_message_id(id.as_str().into());
            let properties = properties.with_type(kind.into()).with_headers(headers);
            let key = format!("{}.normal.x", stage.queue);
            stage.rabbit.publish_raw(&stage.names.jobs(), &key, properties, body).await;
            id
        };
        let plain = FieldTable::default;

        let id = send(Probe::KIND, br#"{"from":"afar"}"#, plain()).await;
        let end = last(&log.until_end(&id).await);
        assert_eq!(end["args"], json!({"from": "afar"}), "nobody else has told them: {end}");
        let id = send(Probe::KIND, format!("\"{}\"", "x".repeat(200)).as_bytes(), plain()).await;
        let end = last(&log.until_end(&id).await);
        assert_eq!((&end["args_omitted"], &end["output_omitted"]), (&json!(true), &json!(true)), "{end}");

        let id = send("Not A Kind", b"{}", plain()).await;
        let events = log.until_end(&id).await;
        let end = last(&events);
        assert_eq!((&end["reason"], &end["kind"]), (&json!("undecodable"), &Value::Null), "{end}");
        assert_eq!((&end["worker"].is_string(), &end["outcome"]), (&true, &Value::Null), "{end}");

        let id = send("test.unknown", b"{}", plain()).await;
        let events = log.until_end(&id).await;
        let expected = [(EventType::Scheduled, 1, 0), (EventType::Dead, 1, 1)];
        assert_eq!(steps(&events), expected, "patience, and its end");
        assert_eq!(last(&events)["reason"], "unknown_kind");

        let mut newer = plain();
        newer.insert("hopline-version".into(), AMQPValue::LongInt(7));
        newer.insert("hopline-run".into(), AMQPValue::LongInt(3));
        let id = send(Probe::KIND, b"{}", newer).await;
        let events = log.until_end(&id).await;
        assert_eq!(steps(&events), expected);
        let end = last(&events);
        assert_eq!((&end["reason"], &end["run"]), (&json!("unsupported_version"), &json!(3)), "{end}");
    })
    .await;
}

#[tokio::test]
async fn what_a_private_kind_is_given_and_returns_stays_out_of_the_log() {
    stage(async |stage| {
        let (_worker, _starts) = stage.probes_with(&stage.config, quick().private());
        let front = stage.front().await;
        stage.wait_announced(&front.client, Probe::KIND, &stage.queue).await;
        let mut log = EventLog::of(stage).await;
        let answer = front.post("/v1/jobs?wait=40s", r#"{"kind":"test.probe","args":"secret"}"#).await.json();
        assert_eq!(answer["output"], "secret", "its caller gets it all the same: {answer}");
        let events = log.until_end(answer["id"].as_str().expect("an id")).await;
        let end = last(&events);
        assert_eq!((&end["output"], &end["output_omitted"]), (&Value::Null, &json!(true)), "{end}");
        let text: String = events.iter().map(|event| format!("{:?}", event.data)).collect();
        assert!(!text.contains("secret"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn nothing_is_answered_or_acknowledged_before_its_event_is_confirmed() {
    stage(async |stage| {
        let (worker, mut starts) = stage.probes();
        let front = stage.front().await;
        front.call("test.probe", "0").await;
        starts.next().await;
        let jam = Jam::of(stage).await;
        // A client that is no front: its submits wait for their events, too.
        let publish = async |script: &str| publish(stage, &format!(r#"{{"script":{script}}}"#)).await;
        publish(r#"["ok"]"#).await;
        starts.next().await;
        publish(r#"["fatal"]"#).await;
        starts.next().await;
        // A retry's copy comes before its event: the second attempt starts meanwhile.
        publish(r#"[{"retry_in":100},"ok"]"#).await;
        assert_eq!(starts.take(2).await.iter().map(|start| start.attempt).collect::<Vec<_>>(), [1, 2]);
        // The success, the death, and both attempts of the last one.
        unsettled(stage, 4).await;
        assert_eq!(
            stage.rabbit.count(&stage.dead_queue()).await,
            Some(0),
            "no dead letter without its event"
        );
        jam.free().await;
        stage.rabbit.wait_count(&stage.dead_queue(), 1).await;
        unsettled(stage, 0).await;
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.dead, report.retried), (3, 1, 1), "{report:?}");
        assert!(starts.rest().is_empty(), "nothing ran twice");
    })
    .await;
}

#[tokio::test]
async fn a_success_counts_although_its_delivery_was_lost() {
    stage(async |stage| {
        let (worker, mut starts) = stage.probes();
        let front = stage.front().await;
        front.call("test.probe", "0").await;
        starts.next().await;
        let jam = Jam::of(stage).await;
        publish(stage, r#"{"script":["ok"]}"#).await;
        starts.next().await;
        unsettled(stage, 1).await;
        // The broker hands the job out again, to this worker: it waits for the event, too.
        stage.rabbit.cut_connections(&[&stage.config.amqp.prefix, "worker", "consume"], 1).await;
        jam.free().await;
        assert_eq!(front.call("test.probe", "1").await, "1");
        starts.next().await;
        eventually("the queue is empty", async || {
            (stage.rabbit.count(&stage.work_queue()).await == Some(0)).then_some(())
        })
        .await;
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.handed_back), (3, 0), "{report:?}");
        assert!(starts.rest().is_empty(), "nothing ran twice");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
    })
    .await;
}

/// Publishes a probe as a stranger does.
async fn publish(stage: &Stage, args: &str) {
    let id = hopline::JobId::new().to_string();
    let properties = BasicProperties::default().with_type(Probe::KIND.into()).with_message_id(id.into());
    let key = format!("{}.normal.{}", stage.queue, Probe::KIND);
    stage.rabbit.publish_raw(&stage.names.jobs(), &key, properties, args.as_bytes()).await;
}

/// Waits until the broker counts so many deliveries that are not settled.
async fn unsettled(stage: &Stage, count: u64) {
    let path = format!("queues/{{vhost}}/{}?disable_stats=false", stage.work_queue());
    eventually(&format!("{count} unsettled"), async || {
        let queue = stage.rabbit.done(reqwest::Method::GET, &path, None).await;
        (queue["messages_unacknowledged"] == count && queue["messages_ready"] == 0).then_some(())
    })
    .await;
}

/// Tells so many words, so fast, and then takes its time.
#[derive(Serialize, Deserialize)]
struct Talk {
    words: u64,
    hold_ms: u64,
}

impl Job for Talk {
    const KIND: &'static str = "test.talk";
    type Output = ();
}

async fn talk(job: Talk, cx: Context) -> JobResult<()> {
    for word in 1..=job.words {
        cx.progress(word, format!("word {word}"));
        // The job itself: it takes as long as its args say.
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(job.hold_ms)).await;
    cx.progress(100, "the end");
    Ok(())
}

#[tokio::test]
async fn a_long_attempt_is_told_of_and_its_progress_within_reason() {
    stage(async |stage| {
        let queue = stage.queue.as_str();
        let worker = Worker::new(stage.config.clone()).register_with(talk, quick().queue(queue));
        let _worker = stage.work(worker);
        let front = stage.front().await;
        stage.wait_announced(&front.client, "test.talk", &stage.queue).await;
        let mut log = EventLog::of(stage).await;
        let submit = |words, hold_ms| {
            format!(r#"{{"kind":"test.talk","args":{{"words":{words},"hold_ms":{hold_ms}}}}}"#)
        };
        let began = Instant::now();
        let id = front.submit(submit(90, 600)).await;
        let events = log.until_end(&id).await;
        let seconds = usize::try_from(began.elapsed().as_secs()).expect("few");
        let count = |event_type| events.iter().filter(|event| event.event_type == event_type).count();
        assert_eq!(count(EventType::Started), 1);
        let told = count(EventType::Progress);
        assert!((2..=seconds + 3).contains(&told), "{told} words of 91 in {seconds} s");
        let place = |wanted| events.iter().position(|event| event.event_type == wanted);
        assert!(place(EventType::Started) < place(EventType::Progress));
        let (end, before) = (events.last().expect("an end"), &events[events.len() - 2]);
        assert_eq!(end.event_type, EventType::Succeeded);
        let said = before.data.progress.clone().expect("told before the end");
        assert_eq!((said.percent, said.message.as_str()), (100, "the end"));
        let numbers: Vec<u32> =
            events.iter().filter_map(|event| event.data.progress.as_ref().map(|said| said.n)).collect();
        assert_eq!(numbers, (1..=u32::try_from(told).expect("few")).collect::<Vec<_>>());

        // A short one: only its last word.
        let id = front.submit(submit(3, 0)).await;
        let events = log.until_end(&id).await;
        assert!(events.iter().filter(|event| event.event_type == EventType::Progress).count() <= 2);
    })
    .await;
}
