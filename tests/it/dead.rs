//! Dead letters: what they say, that they stay, and how they come back.

use hopline::{Job, job::dead::mark};
use serde_json::{Value, json};

use crate::support::{
    eventually,
    probe::{Probe, quick},
    rabbit::Seen,
    stage::stage,
};

/// Args that anything but copying would change.
const ODD: &str = r#"{"script":["fail"],  "n":1.000000000000000000001,"n":[ ],"e":"\u00e9\/", "big":12345678901234567890123}"#;

fn text<'a>(seen: &'a Seen, header: &str) -> &'a str {
    seen.headers[header].as_str().unwrap_or_else(|| panic!("{header}: {seen:?}"))
}

#[tokio::test]
async fn a_dead_letter_says_why_and_keeps_the_args() {
    stage(async |stage| {
        let (worker, _log) = stage.probes();
        let front = stage.front().await;
        let body = format!(r#"{{"kind":"test.probe","args":{ODD},"max_attempts":3,"tags":["x","y"]}}"#);
        let before = jiff::Timestamp::now().as_millisecond();
        let id = front.submit(body).await;
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!((dead.text(), dead.id()), (ODD, id), "byte for byte");
        assert_eq!((text(&dead, mark::REASON), text(&dead, mark::CODE)), ("exhausted", "probe_failed"));
        assert_eq!(text(&dead, mark::ERROR), "start 3 fails");
        assert_eq!(dead.headers[mark::ATTEMPTS], 3);
        assert!(!text(&dead, mark::WORKER).is_empty());
        assert!(dead.headers[mark::DIED_AT].as_i64().is_some_and(|at| at >= before));
        assert_eq!(
            (&dead.properties["type"], &dead.properties["delivery_mode"]),
            (&json!("test.probe"), &json!(2))
        );
        assert_eq!((text(&dead, "hopline-tags"), &dead.headers["hopline-run"]), ("x,y", &json!(1)));
        assert_eq!(dead.exchange, stage.names.dead());

        front.submit(r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#).await;
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!((text(&dead, mark::REASON), &dead.headers[mark::ATTEMPTS]), ("fatal", &json!(1)));
        front.submit(r#"{"kind":"test.probe","args":{"script":["panic"]},"max_attempts":1}"#).await;
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!((text(&dead, mark::CODE), text(&dead, mark::ERROR)), ("panic", "the probe panics"));
        let report = worker.stop().await;
        assert_eq!((report.dead, report.retried), (3, 2), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn looking_a_hundred_times_leaves_a_dead_letter_where_it_is() {
    stage(async |stage| {
        let (_worker, _log) = stage.probes();
        let front = stage.front().await;
        let id = front.submit(r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#).await;
        stage.rabbit.wait_count(&stage.dead_queue(), 1).await;
        for look in 0..100 {
            let seen = stage.rabbit.look(&stage.dead_queue(), 10).await;
            assert!(seen.len() == 1 && seen[0].id() == id, "look {look}: {seen:?}");
        }
        assert_eq!(stage.rabbit.take(&stage.dead_queue()).await.id(), id);
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_that_is_moved_back_starts_a_new_run() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let body = format!(
            r#"{{"kind":"test.probe","args":{ODD},"max_attempts":2,"expires_in":"20s","tags":["t"]}}"#
        );
        let id = front.submit(body).await;
        log.take(2).await;
        for run in 2..=3 {
            let dead = stage.rabbit.take(&stage.dead_queue()).await;
            // As a person moves it, and as the UI's "move messages" does: the same message, on the work queue.
            let mut properties: Value = dead.properties.clone();
            properties["headers"] = dead.headers.clone();
            assert!(stage.rabbit.publish("", &stage.work_queue(), properties, dead.text()).await);
            let starts = log.take(2).await;
            let seen: Vec<_> = starts.iter().map(|start| (start.run, start.attempt)).collect();
            assert_eq!(seen, [(run, 1), (run, 2)], "fresh attempts");
            assert!(starts.iter().all(|start| start.id.to_string() == id && start.args == ODD));
            assert_eq!((starts[0].max_attempts, starts[0].tags.as_slice()), (2, &["t".to_owned()][..]));
        }
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!((&dead.headers["hopline-run"], &dead.headers[mark::ATTEMPTS]), (&json!(3), &json!(2)));
        assert!(dead.headers.get("hopline-expires-at").is_none(), "an expiry is of the first run");
        assert_eq!(dead.text(), ODD);
    })
    .await;
}

/// The args of a private kind are no more the record's business where an operator has mended them.
#[tokio::test(flavor = "multi_thread")]
async fn the_mended_args_of_a_replay_are_told_by_its_jobs_alone() {
    for private in [true, false] {
        stage(async |stage| {
            let front = stage.front().await;
            let _acting = stage.act(&front, &stage.config);
            let options = if private { quick().private() } else { quick() };
            let (_worker, _log) = stage.probes_with(&stage.config, options);
            // Before that the front cannot know that the kind is private.
            stage.wait_announced(&front.client, Probe::KIND, &stage.queue).await;
            let id = front.submit(r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#).await;
            stage.rabbit.wait_count(&stage.dead_queue(), 1).await;
            let set = json!({ "set": { "args": { "mended": "4711" } }, "reason": "mended" }).to_string();
            let ordered = front.post(&format!("/v1/jobs/{id}/replay"), set).await;
            let act = ordered.accepted();
            front.acted(ordered).await;
            let told = front.get(&format!("/v1/jobs/{act}")).await.json();
            assert_eq!((&told["args"]["ids"], &told["args"]["reason"]), (&json!([id]), &json!("mended")));
            assert!(told["args"].get("set").is_none(), "{told}");
            let job = eventually("it has run again", async || {
                let job = front.settled(&id).await;
                (job["status"] == "succeeded").then_some(job)
            })
            .await;
            let args = if private { Value::Null } else { json!({ "mended": "4711" }) };
            assert_eq!((&job["run"], &job["args"]), (&json!(2), &args), "{job}");
        })
        .await;
    }
}
