//! Callbacks: who is told, how often, signed; and who is not asked.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::IpAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hopline::{Config, JobId, config::WebhookSecrets, courier::Courier, egress::Resolver};
use lapin::BasicProperties;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    process_worker::item,
    support::{
        eventually,
        front::Front,
        process,
        receiver::{Received, Receiver, SECRET, status},
        stage::{Stage, stage},
    },
};

/// The test's configuration with callbacks to this machine, tried again soon.
fn calling(stage: &Stage) -> Config {
    let mut config = stage.config.clone();
    config.callbacks.secret = WebhookSecrets::new(SECRET);
    config.callbacks.allow = vec!["127.0.0.1".to_owned()];
    config.callbacks.retry_initial = Duration::from_millis(100);
    config
}

fn probe(stage: &Stage, url: &str, args: &str, more: &str) -> String {
    format!(r#"{{"kind":"test.probe","queue":"{}","args":{args},"callback_url":"{url}"{more}}}"#, stage.queue)
}

/// The jobs that tell of this one's ends, as lists show them, once there are `count` and all have ended.
async fn callbacks_of(front: &Front, job: &str, count: usize) -> Vec<Value> {
    eventually("its callbacks have ended", async || {
        let list = front.get(&format!("/v1/jobs?tag=callback:{job}")).await.json();
        let items = list["items"].as_array().expect("a list").clone();
        let ended = |item: &Value| matches!(item["status"].as_str(), Some("succeeded" | "dead"));
        (items.len() == count && items.iter().all(ended)).then_some(items)
    })
    .await
}

/// The only callback of a job.
async fn callback_of(front: &Front, job: &str) -> Value {
    let id = callbacks_of(front, job, 1).await[0]["id"].as_str().expect("an id").to_owned();
    front.get(&format!("/v1/jobs/{id}")).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_is_told_once_and_signed() {
    stage(async |stage| {
        let config = calling(stage);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let mut receiver = Receiver::new(vec![status(204)]).await;
        let url = receiver.url();
        let mut expected = BTreeMap::new();
        // What ends without a worker, or before it starts.
        let id = front.submit(probe(stage, &url, "{}", "")).await;
        front.acted(front.delete(&format!("/v1/queues/{}/jobs", stage.queue)).await).await;
        expected.insert(id, "cancelled");
        let id = front.submit(probe(stage, &url, "{}", "")).await;
        assert_eq!(front.delete(&format!("/v1/jobs/{id}?reason=no")).await.status, 202);
        expected.insert(id, "cancelled");
        expected.insert(front.submit(probe(stage, &url, "{}", r#","expires_in":0.001"#)).await, "expired");
        expected.insert(front.submit(probe(stage, &url, "{}", "")).await, "succeeded");
        let script = r#"{"script":["fail","fatal"]}"#;
        let dead = front.submit(probe(stage, &url, script, "")).await;
        expected.insert(dead.clone(), "dead");
        // No kind, and no job: what its headers say is heard all the same.
        let id = JobId::new().to_string();
        let mut headers = lapin::types::FieldTable::default();
        headers
            .insert("hopline-callback-url".into(), lapin::types::AMQPValue::LongString(url.as_str().into()));
        let properties = BasicProperties::default().with_message_id(id.as_str().into()).with_headers(headers);
        let key = format!("{}.normal.x", stage.queue);
        stage.rabbit.publish_raw(&stage.names.jobs(), &key, properties, b"no JSON").await;
        expected.insert(id, "dead");
        let (_worker, _log) = stage.probes();

        let mut told = BTreeMap::new();
        for _ in 0..expected.len() {
            let received = receiver.next().await;
            let id = received.verified();
            assert_eq!((received.path.as_str(), received.header("user-agent")), ("/hook", "hopline"));
            assert_eq!(received.header("content-type"), "application/cloudevents+json");
            let event = received.json();
            let (job, kind) =
                (event["subject"].as_str().expect("a job"), event["type"].as_str().expect("a type"));
            assert_eq!((&event["specversion"], &event["source"]), (&json!("1.0"), &json!("hopline")));
            let data = event["data"].as_object().expect("data");
            assert!(["args", "output", "worker"].iter().all(|part| !data.contains_key(*part)), "{data:?}");
            assert!(told.insert(job.to_owned(), kind.to_owned()).is_none(), "told twice: {received:?}");
            let callback = callback_of(&front, job).await;
            assert_eq!(
                (&callback["status"], callback["id"].as_str()),
                (&json!("succeeded"), Some(id.as_str()))
            );
            assert_eq!((&callback["kind"], &callback["args"]), (&json!("hopline.callback"), &Value::Null));
        }
        let expected: BTreeMap<String, String> =
            expected.into_iter().map(|(id, end)| (id, format!("hopline.job.{end}"))).collect();
        assert_eq!(told, expected);
        // A run more, an end more.
        let replayed = front.post(&format!("/v1/jobs/{dead}/replay"), "").await;
        assert_eq!(replayed.status, 202, "{replayed:?}");
        callbacks_of(&front, &dead, 2).await;
        let again = receiver.next().await;
        assert_eq!(
            (again.json()["subject"].as_str(), &again.json()["data"]["run"]),
            (Some(dead.as_str()), &json!(2))
        );
        assert!(receiver.rest().is_empty(), "somebody is told of more");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_is_asked_again_with_the_same_id() {
    stage(async |stage| {
        let config = calling(stage);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let (_worker, _log) = stage.probes();
        let soon = "429 Slowly\r\nretry-after: 1\r\n".to_owned();
        let mut receiver = Receiver::new(vec![status(500), soon, status(200)]).await;
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let request = front.request("/v1/jobs", probe(stage, &receiver.url(), "{}", ""));
        let job = front.send(request.header("traceparent", trace)).await.accepted();
        let all = [receiver.next().await, receiver.next().await, receiver.next().await];
        let ids: BTreeSet<String> = all.iter().map(Received::verified).collect();
        assert_eq!(ids.len(), 1, "{all:?}");
        assert!(all.iter().all(|one| one.body == all[0].body
            && one.header("traceparent").contains("4bf92f3577b34da6a3ce929d0e0e4736")));
        let times: Vec<u64> =
            all.iter().map(|one| one.header("webhook-timestamp").parse().expect("a time")).collect();
        assert!(times[2] > times[1], "Retry-After was heard: {times:?}");
        let callback = callback_of(&front, &job).await;
        assert_eq!((&callback["status"], &callback["attempt"]), (&json!("succeeded"), &json!(3)));
        let codes: Vec<&Value> = callback["attempts"]
            .as_array()
            .expect("attempts")
            .iter()
            .map(|one| &one["error"]["code"])
            .collect();
        assert_eq!(codes, [&json!("http_500"), &json!("http_429"), &Value::Null]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_or_leads_elsewhere_is_not_told_and_that_is_seen() {
    stage(async |stage| {
        let mut config = calling(stage);
        config.callbacks.max_attempts = 2;
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let (_worker, _log) = stage.probes();
        let gone = Receiver::new(vec![status(410)]).await;
        let inner = Receiver::new(vec![status(204)]).await;
        let elsewhere = format!("302 Found\r\nlocation: {}\r\n", inner.url());
        let leading = Receiver::new(vec![elsewhere]).await;
        for (receiver, reason, code, asked) in
            [(&gone, "fatal", "gone", 1), (&leading, "exhausted", "http_302", 2)]
        {
            let job = front.submit(probe(stage, &receiver.url(), "{}", "")).await;
            let callback = callback_of(&front, &job).await;
            let error = &callback["error"];
            assert_eq!(
                (&callback["status"], &error["reason"], &error["code"]),
                (&json!("dead"), &json!(reason), &json!(code))
            );
            assert_eq!(receiver.count(), asked);
        }
        assert_eq!(inner.count(), 0, "a redirect was followed");
        let queue = stage.names.callbacks();
        let dead = front.get(&format!("/v1/queues/{queue}/dead")).await.json();
        assert_eq!(dead["items"].as_array().map(Vec::len), Some(2), "{dead}");
    })
    .await;
}

/// Answers each question with the next of these, and the last one over and over.
struct Changing(Mutex<VecDeque<IpAddr>>);

impl Resolver for Changing {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut answers = self.0.lock().expect("no panic meanwhile");
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() };
        Box::pin(async move { Ok(answer.into_iter().collect()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves_to_a_private_address_is_not_asked_there() {
    stage(async |stage| {
        let mut config = calling(stage);
        // It stands for a public address.
        config.callbacks.allow = vec!["127.0.0.2".to_owned()];
        let front = stage.front_with(&config).await;
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|address| address.parse().expect("an address"));
        let resolver: Arc<dyn Resolver> = Arc::new(Changing(Mutex::new(addresses.into())));
        let courier = Courier::with_resolver(&config.callbacks, &resolver).expect("a courier");
        let _acting = stage.act_with(&front, &config, courier);
        let (_worker, _log) = stage.probes();
        let receiver = Receiver::new(vec![status(500), status(204)]).await;
        let url = format!("http://rebinding.example:{}/hook", receiver.port);
        let job = front.submit(probe(stage, &url, "{}", "")).await;
        let callback = callback_of(&front, &job).await;
        let error = &callback["error"];
        assert_eq!(
            (&callback["status"], &callback["attempt"], &error["code"]),
            (&json!("dead"), &json!(2), &json!("address_refused"))
        );
        let message = error["message"].as_str().expect("a text");
        let told = message.contains("callbacks.allow");
        assert!(told && !message.contains("127.0.0.1"), "which address is nobody's affair: {message}");
        assert_eq!(receiver.count(), 1, "it was asked at its new address");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_url_tells_is_refused_at_the_door() {
    stage(async |stage| {
        let config = calling(stage);
        let front = stage.front_with(&config).await;
        for bad in [
            "https://169.254.169.254/",
            "https://[::1]/",
            "http://2130706434/",
            "ftp://example.org/",
            "https://u:p@example.org/",
        ] {
            let answer = front.post("/v1/jobs", probe(stage, bad, "{}", "")).await;
            let problem = answer.problem(422, "invalid_request");
            assert_eq!(problem["errors"][0]["pointer"], "/callback_url", "{bad}: {problem}");
        }
        let batch = format!("[{}]", probe(stage, "https://10.0.0.1/", "{}", ""));
        let answer = front.post("/v1/jobs/batch", batch).await.json();
        assert_eq!(answer["items"][0]["error"]["errors"][0]["pointer"], "/callback_url", "{answer}");
        let plain = stage.front().await;
        plain
            .post("/v1/jobs", probe(stage, "https://example.org/", "{}", ""))
            .await
            .problem(422, "not_supported");
    })
    .await;
}

/// The end is in the log, its callback is not published, and the job is not acknowledged: so a worker leaves it that is
/// killed in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_died_after_the_end_and_before_its_callback_leaves_it_to_the_next() {
    stage(async |stage| {
        let config = calling(stage);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let mut receiver = Receiver::new(vec![status(204)]).await;
        let id = JobId::new().to_string();
        // A named job is looked up, as a redelivered one is.
        assert_eq!(front.put(&format!("/v1/jobs/{id}"), probe(stage, &receiver.url(), "{}", "")).await.status, 202);
        let event = json!([{"specversion": "1.0", "id": format!("{id}:1:0:succeeded"), "source": "killed",
            "type": "hopline.job.succeeded", "subject": id, "time": "2026-01-02T03:04:05.678Z",
            "data": {"kind": "test.probe", "queue": stage.queue, "run": 1, "attempt": 1, "step": 0, "worker": "killed",
                "finished_at": "2026-01-02T03:04:05.678Z", "outcome": "succeeded", "output": 1}}]);
        let properties = BasicProperties::default().with_type("hopline.events".into()).with_message_id("batch".into());
        stage.rabbit.publish_raw(&stage.names.record(), "", properties, event.to_string().as_bytes()).await;
        assert_eq!(front.settled(&id).await["status"], "succeeded");
        assert!(receiver.rest().is_empty());
        let (worker, mut log) = stage.probes();
        let received = receiver.next().await;
        received.verified();
        assert_eq!((&received.json()["subject"], &received.json()["time"]), (&json!(id), &json!("2026-01-02T03:04:05.678Z")));
        assert_eq!(callback_of(&front, &id).await["status"], "succeeded");
        assert_eq!(worker.stop().await.repeats, 1);
        assert!(log.rest().is_empty(), "it was run again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_again_and_again_lose_no_callback() {
    let stage = process::Stage::new();
    let mut receiver = Receiver::new(vec![status(204)]).await;
    let front = stage
        .serve_with(&[
            ("HOPLINE_CALLBACKS_SECRET", SECRET),
            ("HOPLINE_CALLBACKS_ALLOW", "127.0.0.1"),
            ("HOPLINE_CALLBACKS_RETRY_INITIAL", "100ms"),
        ])
        .await;
    front.until_ready().await;
    let mut job = item(&stage, &json!({ "ms": 20 }));
    job["callback_url"] = json!(receiver.url());
    let ids: BTreeSet<String> = front.submit_all(vec![job; 200]).await.into_iter().collect();
    for ended in [20, 60, 100, 140] {
        let mut worker = stage.ledger_worker(&[]);
        stage.ledger().until("end", ended).await;
        worker.kill9();
    }
    let _worker = stage.ledger_worker(&[]);
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    while told.len() < ids.len() {
        let received = receiver.next().await;
        let id = received.verified();
        let job = received.json()["subject"].as_str().expect("a job").to_owned();
        assert!(ids.contains(&job), "nobody asked for {job}");
        // Told twice, it has the same id.
        assert_eq!(*told.entry(job).or_insert_with(|| id.clone()), id);
    }
}

/// Asks the reference library of the specification, in a Python that `HOPLINE_TEST_WEBHOOK_PYTHON` names. `make
/// webhook-reference` installs it and runs this.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Python with standardwebhooks: make webhook-reference"]
async fn the_reference_library_verifies_what_is_sent() {
    let python = std::env::var("HOPLINE_TEST_WEBHOOK_PYTHON").expect("a Python with standardwebhooks");
    stage(async |stage| {
        let mut config = calling(stage);
        let old = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        config.callbacks.secret = WebhookSecrets::new(format!("{old} {SECRET}"));
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let (_worker, _log) = stage.probes();
        let mut receiver = Receiver::new(vec![status(204)]).await;
        front.submit(probe(stage, &receiver.url(), "{}", r#","tags":["größe"]"#)).await;
        let received = receiver.next().await;
        let asked = json!({"secrets": [old, SECRET], "wrong": "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "headers": received.headers, "body": received.body});
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/python/webhook.py");
        let mut child = Command::new(&python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python starts");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(asked.to_string().as_bytes()).await.expect("written");
        drop(input);
        let output = child.wait_with_output().await.expect("its end");
        assert!(output.status.success(), "the reference library says no");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "verified");
    })
    .await;
}

/// What is signed is what happened: nobody gives a callback other args, nor takes its id.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_changes_what_a_callback_says() {
    stage(async |stage| {
        let config = calling(stage);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let (_worker, _log) = stage.probes();
        let gone = Receiver::new(vec![status(410)]).await;
        let job = front.submit(probe(stage, &gone.url(), "{}", "")).await;
        let callback = callback_of(&front, &job).await["id"].as_str().expect("an id").to_owned();
        let forged = json!({ "args": { "url": gone.url(), "event": { "type": "forged" } } });

        let one =
            front.post(&format!("/v1/jobs/{callback}/replay"), json!({ "set": forged }).to_string()).await;
        assert_eq!(one.problem(422, "invalid_request")["errors"][0]["pointer"], "/set");
        let queue = json!({ "filter": { "queue": stage.names.callbacks() }, "set": forged });
        front.post("/v1/jobs/replay", queue.to_string()).await.problem(422, "invalid_request");
        // Of what is named by its id alone only the act learns what it is.
        let named = json!({ "ids": [callback], "set": forged }).to_string();
        let done = front.acted(front.post("/v1/jobs/replay", named).await).await;
        assert_eq!((&done["done"], &done["failed"]), (&json!(0), &json!(1)), "{done}");
        let taken = front.put(&format!("/v1/jobs/{callback}"), probe(stage, &gone.url(), "{}", "")).await;
        taken.problem(422, "invalid_request");
        assert_eq!(gone.count(), 1, "the one that it answered with 410");
    })
    .await;
}

/// To cancel all is about jobs, not about who is to be told of them.
#[tokio::test(flavor = "multi_thread")]
async fn cancelling_all_spares_callbacks() {
    stage(async |stage| {
        let mut config = calling(stage);
        config.callbacks.retry_initial = Duration::from_secs(600);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let (_worker, _log) = stage.probes();
        let away = Receiver::new(vec![status(503)]).await;
        let job = front.submit(probe(stage, &away.url(), "{}", "")).await;
        let waiting = async || {
            let list = front.get(&format!("/v1/jobs?tag=callback:{job}")).await.json();
            let callback = list["items"].as_array().and_then(|items| items.first()).cloned();
            callback.filter(|callback| callback["status"] == "retrying")
        };
        eventually("it is to be tried again", waiting).await;
        let delayed = json!({ "kind": "test.probe", "queue": stage.queue, "delay": "1h", "args": {} });
        let delayed = front.submit(delayed.to_string()).await;
        let done = front.acted(front.post("/v1/jobs/cancel", r#"{"filter":{}}"#).await).await;
        assert_eq!(done["done"], 1, "{done}");
        let asked = front.get(&format!("/v1/jobs/{delayed}")).await.json();
        assert!(asked.get("cancel_requested_at").is_some(), "{asked}");
        let callback = waiting().await.expect("it is still to be tried again");
        assert!(callback.get("cancel_requested_at").is_none(), "{callback}");
    })
    .await;
}
