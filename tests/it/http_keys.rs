//! Repeating safely, against a live broker: one job for any number of repeats.

use std::{path::Path, time::Duration};

use futures_util::future::join_all;
use hopline::{
    Config,
    event::EventType,
    job::JobId,
    record::keys::{Digest, Keys, Reserved},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    broker::{Broker, Way},
    eventually,
    front::{Answer, Front},
    process::say,
    stage::{Stage, stage},
};

const BODY: &str = r#"{"kind":"test.probe","args":{"n":1}}"#;
const HELD: &str = r#"{"kind":"test.probe","args":{"script":["held"]}}"#;

/// A submit under a key.
async fn keyed(front: &Front, key: &str, body: &str) -> Answer {
    front.send(front.request("/v1/jobs", body).header("idempotency-key", key)).await
}

/// Checks that this answers a repeat, with the record or the first answer of job `id`.
fn replayed(answer: &Answer, id: &str) -> Value {
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (200, "true"), "{answer:?}");
    assert_eq!(answer.header("location"), format!("/v1/jobs/{id}"), "{answer:?}");
    let job = answer.json();
    assert_eq!(job["id"], id, "{answer:?}");
    job
}

/// How often the job was submitted, as far as the log tells.
async fn submits(front: &Front, id: &str) -> usize {
    let events = front.record.job_events(id.parse().unwrap()).await.expect("the record");
    events.iter().filter(|stored| stored.event.event_type == EventType::Submitted).count()
}

/// A configuration whose record is in `folder`.
fn in_folder(stage: &Stage, folder: &Path) -> Config {
    let mut config = stage.config.clone();
    config.record.path = folder.to_owned();
    config
}

/// Ends a front, and starts it again on the same folder.
async fn restart(stage: &Stage, front: Front, config: &Config) -> Front {
    front.tell_to_end();
    front.record.close().await;
    stage.front_with(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_put_many_times_at_once_is_one_job() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let id = JobId::new().to_string();
        let path = format!("/v1/jobs/{id}");
        let answers = join_all((0..50).map(|_| front.put(&path, BODY))).await;
        let mut accepted = 0;
        for answer in &answers {
            match answer.status {
                202 => {
                    accepted += 1;
                    assert_eq!(answer.accepted(), id);
                    assert_eq!(answer.header("idempotency-replayed"), "");
                }
                409 => {
                    let problem = answer.problem(409, "in_flight");
                    assert_eq!(problem["job"]["id"], id);
                }
                _ => drop(replayed(answer, &id)),
            }
        }
        assert_eq!(accepted, 1, "{answers:?}");
        assert_eq!(log.next().await.id.to_string(), id);
        let last = front.put(&format!("{path}?wait=30s"), BODY).await;
        assert_eq!(replayed(&last, &id)["status"], "succeeded");
        assert_eq!(submits(&front, &id).await, 1);
        let report = worker.stop().await;
        assert!(log.rest().is_empty() && report.succeeded == 1, "{report:?}");
    })
    .await;
}

/// Both may publish it. One worker is enough to see that it is run once.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_are_asked_at_once_make_one_job() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let fronts = [stage.front().await, stage.front().await];
        for _ in 0..20 {
            let id = JobId::new().to_string();
            let path = format!("/v1/jobs/{id}");
            let puts = (0..8).map(|number: usize| fronts[number % 2].put(&path, BODY));
            let answers = join_all(puts).await;
            let accepted = answers.iter().filter(|answer| answer.status == 202).count();
            assert!((1..=2).contains(&accepted), "{answers:?}");
            assert!(answers.iter().all(|answer| [200, 202, 409].contains(&answer.status)), "{answers:?}");
            for front in &fronts {
                let ended = front.put(&format!("{path}?wait=60s"), BODY).await;
                assert_eq!(replayed(&ended, &id)["status"], "succeeded");
            }
        }
        fronts[0].call("test.probe", "\"last\"").await;
        let report = worker.stop().await;
        assert_eq!((log.rest().len(), report.succeeded), (21, 21), "each once: {report:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stands_for_one_job() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let id = keyed(&front, "order-17", HELD).await.accepted();
        assert_eq!(id, JobId::from_key("", "order-17").to_string(), "as documented");
        log.next().await;

        // The same key, however it is written; the same request, however it is sent.
        replayed(&keyed(&front, "\"order-17\"", HELD).await, &id);
        let spaced = r#" { "args" : {"script":["held"]} , "kind" : "test.probe" } "#;
        replayed(&keyed(&front, "order-17", spaced).await, &id);
        // Nobody comes by its id before the key does: anybody could, who knows how it is derived.
        let taken = front.put(&format!("/v1/jobs/{id}"), HELD).await.problem(422, "invalid_request");
        assert_eq!(taken["errors"][0]["parameter"], "id");

        // Another request.
        for other in [
            r#"{"kind":"test.probe","args":{"script": ["held"]}}"#,
            r#"{"kind":"test.probe","args":{"script":["held"]},"tags":["x"]}"#,
            r#"{"kind":"test.other","args":{"script":["held"]}}"#,
        ] {
            keyed(&front, "order-17", other).await.problem(422, "key_reused");
        }
        let call = front.request("/v1/rpc/test.probe", r#"{"script":["held"]}"#);
        front.send(call.header("idempotency-key", "order-17")).await.problem(422, "key_reused");
        // The id of a job that was submitted without a name.
        let plain = front.submit(BODY).await;
        log.next().await;
        front.put(&format!("/v1/jobs/{plain}"), BODY).await.problem(422, "key_reused");

        // A repeat may wait.
        let wait = front.request("/v1/jobs?wait=30s", HELD).header("idempotency-key", "order-17");
        let (answer, ()) = tokio::join!(front.send(wait), async { log.release(1) });
        let job = replayed(&answer, &id);
        assert_eq!((&job["status"], &job["output"]), (&json!("succeeded"), &json!({"script": ["held"]})));
        assert!(log.rest().is_empty(), "one run");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_the_record_knows_the_job() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.record.max_keys = 1;
        let front = stage.front_with(&config).await;
        let mut first = String::new();
        for n in 0..5 {
            let id = keyed(&front, &format!("k{n}"), BODY).await.accepted();
            if n == 0 {
                first = id;
            }
        }
        replayed(&keyed(&front, "k0", BODY).await, &first);
        keyed(&front, "k0", HELD).await.problem(422, "key_reused");
        assert_eq!(submits(&front, &first).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_be_are_refused() {
    stage(async |stage| {
        let front = stage.front().await;
        front.put("/v1/jobs/order-17", BODY).await.problem(404, "job_not_found");
        for id in ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"] {
            let problem = front.put(&format!("/v1/jobs/{id}"), BODY).await.problem(422, "invalid_request");
            assert_eq!(problem["errors"][0]["parameter"], "id");
        }
        for key in ["", "a b", "\"", "a,b", "\"\"", &"k".repeat(256)] {
            let problem = keyed(&front, key, BODY).await.problem(422, "bad_idempotency_key");
            assert_eq!(problem["errors"][0]["header"], "Idempotency-Key", "{key}");
        }
        let twice =
            front.request("/v1/jobs", BODY).header("idempotency-key", "a").header("idempotency-key", "a");
        front.send(twice).await.problem(422, "bad_idempotency_key");
        let batch = front.request("/v1/jobs/batch", format!("[{BODY}]")).header("idempotency-key", "a");
        front.send(batch).await.problem(422, "bad_idempotency_key");
        // A refused request leaves its key free.
        keyed(&front, "a", r#"{"kind":"test.probe","queue":"nowhere-at-all"}"#)
            .await
            .problem(422, "unknown_queue");
        keyed(&front, "a", BODY).await.accepted();
        // With an expiry, the repeat may come after it.
        let soon = format!(
            r#"{{"kind":"test.probe","expires_at":"{}"}}"#,
            jiff::Timestamp::now() + Duration::from_millis(1500)
        );
        let id = keyed(&front, "b", &soon).await.accepted();
        keyed(&front, "c", &soon).await.accepted();
        eventually("it has expired", async || {
            let late = keyed(&front, &JobId::new().to_string(), &soon).await;
            (late.status == 422).then(|| late.problem(422, "invalid_request"))
        })
        .await;
        replayed(&keyed(&front, "b", &soon).await, &id);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_processes_and_later_ones_know_the_job() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let folder = stage.config.record.path.join("restarted");
        let config = in_folder(stage, &folder);
        let first = stage.front_with(&config).await;
        let other = stage.front().await;
        let id = keyed(&first, "k", BODY).await.accepted();
        log.next().await;
        replayed(&keyed(&other, "k", BODY).await, &id);
        keyed(&other, "k", r#"{"kind":"test.probe"}"#).await.problem(422, "key_reused");

        let first = restart(stage, first, &config).await;
        replayed(&keyed(&first, "k", BODY).await, &id);

        // Without what it knew of the job, or without what it knew of the key.
        first.tell_to_end();
        first.record.close().await;
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            if entry.file_name().to_string_lossy().starts_with("record.db") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        let first = stage.front_with(&config).await;
        assert_eq!(replayed(&keyed(&first, "k", BODY).await, &id)["status"], "succeeded");
        first.tell_to_end();
        first.record.close().await;
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            if entry.file_name().to_string_lossy().starts_with("keys.db") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        let first = stage.front_with(&config).await;
        replayed(&keyed(&first, "k", BODY).await, &id);
        keyed(&first, "k", r#"{"kind":"test.probe"}"#).await.problem(422, "key_reused");

        let report = worker.stop().await;
        assert!(log.rest().is_empty() && report.succeeded == 1, "{report:?}");
    })
    .await;
}

/// What a process leaves behind that is killed between writing down the name and publishing the job, and between
/// publishing it and writing that down.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_on_the_way_leaves_one_job() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let folder = stage.config.record.path.join("killed");
        let other = stage.front().await;
        let ids: Vec<JobId> = (0..3).map(|_| JobId::new()).collect();
        let path = |id: JobId| format!("/v1/jobs/{id}");
        // The second one has reached the broker and the log; any other process could have sent it.
        other.put(&path(ids[1]), BODY).await.accepted();
        log.next().await;
        let request =
            other.record.job(ids[1], Duration::from_secs(20)).await.unwrap().unwrap().summary.request;
        let digest = u128::from_str_radix(&request.expect("a digest"), 16).unwrap();
        let digest = Digest(digest.to_be_bytes());
        let keys = Keys::open(&folder, 1_000).unwrap();
        for id in &ids[..2] {
            let Ok(Reserved::New(mut claim)) = keys.reserve(*id, digest).await else { panic!("not new") };
            claim.publishing();
        }
        keys.close().await;

        let front = stage.front_with(&in_folder(stage, &folder)).await;
        front.put(&path(ids[0]), r#"{"kind":"test.probe"}"#).await.problem(422, "key_reused");
        assert_eq!(front.put(&path(ids[0]), BODY).await.accepted(), ids[0].to_string());
        assert_eq!(log.next().await.id, ids[0]);
        replayed(&front.put(&path(ids[0]), BODY).await, &ids[0].to_string());
        replayed(&front.put(&path(ids[1]), BODY).await, &ids[1].to_string());
        front.put(&path(ids[2]), BODY).await.accepted();
        assert_eq!(log.next().await.id, ids[2]);
        front.call("test.probe", "{}").await;
        log.next().await;
        let report = worker.stop().await;
        assert!(log.rest().is_empty() && report.succeeded == 4, "each once: {report:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_batch_may_be_named() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let id = JobId::new();
        let items = format!(
            r#"[{{"kind":"test.probe","args":1,"id":"{id}"}},
                {{"kind":"test.probe","args":2,"idempotency_key":"two"}},
                {{"kind":"test.probe","args":3}},
                {{"kind":"test.probe","args":1,"id":"{id}"}},
                {{"kind":"test.probe","args":9,"id":"{id}"}},
                {{"kind":"test.probe","args":4,"queue":"nowhere-at-all","idempotency_key":"four"}},
                {{"kind":"test.probe","args":4,"queue":"nowhere-at-all","idempotency_key":"four"}},
                {{"kind":"test.probe","id":"{id}","idempotency_key":"x"}},
                {{"kind":"test.probe","idempotency_key":""}}]"#
        );
        let answer = front.post("/v1/jobs/batch", items.clone()).await.json();
        assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(4), &json!(5)), "{answer}");
        let item = |index: usize| &answer["items"][index];
        assert_eq!((&item(0)["id"], &item(0)["status"]), (&json!(id), &json!("queued")));
        assert_eq!(item(1)["id"], json!(JobId::from_key("", "two")));
        assert_eq!((&item(3)["id"], &item(3)["replayed"]), (&json!(id), &json!(true)));
        let codes: Vec<&Value> = (4..9).map(|index| &item(index)["error"]["code"]).collect();
        assert_eq!(
            codes,
            ["key_reused", "unknown_queue", "unknown_queue", "invalid_request", "bad_idempotency_key"]
        );
        let mut args: Vec<String> = log.take(3).await.into_iter().map(|start| start.args).collect();
        args.sort();
        assert_eq!(args, ["1", "2", "3"]);

        // The whole batch again: what was named is not run again.
        let again = front.post("/v1/jobs/batch", items).await.json();
        assert_eq!(again["accepted"], 4, "{again}");
        for index in [0, 1, 3] {
            let (first, second) = (&answer["items"][index], &again["items"][index]);
            assert_eq!((&second["id"], &second["replayed"]), (&first["id"], &json!(true)), "{again}");
        }
        assert_eq!(log.next().await.args, "3");
        // And one of them by itself.
        let one = r#"{"kind":"test.probe","args":1}"#;
        replayed(&front.put(&format!("/v1/jobs/{id}"), one).await, &id.to_string());
        let report = worker.stop().await;
        assert!(log.rest().is_empty() && report.succeeded == 4, "{report:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_named_batch_can_be_repeated() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let items: Vec<Value> = (0..1000)
            .map(|n| json!({"kind": "test.probe", "args": n, "idempotency_key": format!("item {n}")}))
            .collect();
        let body = serde_json::to_string(&items).unwrap();
        let first = front.post("/v1/jobs/batch", body.clone()).await.json();
        assert_eq!((&first["accepted"], &first["rejected"]), (&json!(1000), &json!(0)));
        let again = front.post("/v1/jobs/batch", body).await.json();
        let repeats =
            again["items"].as_array().unwrap().iter().filter(|item| item["replayed"] == true).count();
        assert_eq!((&again["accepted"], repeats), (&json!(1000), 1000));
        let mut args: Vec<u32> =
            log.take(1000).await.iter().map(|start| start.args.parse().unwrap()).collect();
        args.sort_unstable();
        assert!(args.into_iter().eq(0..1000));
        let report = worker.stop().await;
        assert!(log.rest().is_empty() && report.succeeded == 1000, "each once: {report:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_attaches_to_the_first_ones_job() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let call = async |key: &str, args: &str| {
            let call = || {
                let request = front.request("/v1/rpc/test.probe?wait=60s", args.to_owned());
                front.send(request.header("idempotency-key", key))
            };
            eventually("the first one is confirmed", async || {
                let answer = call().await;
                let in_flight = answer.status == 409;
                if in_flight {
                    answer.problem(409, "in_flight");
                }
                (!in_flight).then_some(answer)
            })
            .await
        };
        let held = r#"{"script":["held"]}"#;
        let release = async {
            log.next().await;
            log.release(1);
        };
        let (first, second, third, ()) =
            tokio::join!(call("k", held), call("k", held), call("k", held), release);
        for answer in [&first, &second, &third] {
            assert_eq!((answer.status, answer.text.as_str()), (200, held), "{answer:?}");
        }
        let replays = [&first, &second, &third].map(|answer| answer.header("idempotency-replayed") == "true");
        assert_eq!(replays.into_iter().filter(|replay| *replay).count(), 2);
        let late = call("k", held).await;
        assert_eq!((late.text.as_str(), late.header("idempotency-replayed")), (held, "true"), "{late:?}");
        let id = JobId::from_key("", "k").to_string();
        assert_eq!(late.header("location"), format!("/v1/jobs/{id}"));

        // A failure is told again, too.
        let fatal = r#"{"script":["fatal"]}"#;
        call("f", fatal).await.problem(422, "job_fatal");
        let again = call("f", fatal).await;
        let (first, problem) = (JobId::from_key("", "f"), again.problem(422, "job_fatal"));
        assert_eq!(
            (&problem["error"]["code"], &problem["job"]["id"]),
            (&json!("probe_fatal"), &json!(first))
        );
        assert_eq!(again.header("idempotency-replayed"), "true");
        call("k", fatal).await.problem(422, "key_reused");

        // With a patience of its own.
        let stop = r#"{"script":["stop"]}"#;
        let brief = || front.request("/v1/rpc/test.probe?wait=300ms", stop).header("idempotency-key", "s");
        front.send(brief()).await.problem(504, "wait_timeout");
        let again = front.send(brief()).await;
        again.problem(504, "wait_timeout");
        assert_eq!(again.header("idempotency-replayed"), "true");
        let starts = 1 + log.rest().len();
        assert!(starts <= 3, "{starts} starts");
        worker.tell();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_may_be_named() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let fatal = r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#;
        let job = front.post("/v1/jobs?wait=60s", fatal).await.json()["id"].as_str().unwrap().to_owned();
        log.next().await;
        let act = async |path: &str, key: &str, body: &str| {
            front.send(front.request(path, body).header("idempotency-key", key)).await
        };
        let ids = format!(r#"{{"ids":["{job}"],"set":{{"args":{{}}}}}}"#);
        let one = format!("/v1/jobs/{job}/replay");

        // A dry run is no act: its key stays free.
        let counted = act("/v1/jobs/replay", "r", &format!(r#"{{"ids":["{job}"],"dry_run":true}}"#)).await;
        assert_eq!((counted.status, &counted.json()["matched"]), (200, &json!(1)), "{counted:?}");
        // Refused until acts have a queue, and however often, the key stays free.
        let id = eventually("acts are run", async || {
            let answer = act("/v1/jobs/replay", "r", &ids).await;
            (answer.status != 422).then(|| answer.accepted())
        })
        .await;
        assert_eq!(id, JobId::from_key("", "r").to_string());
        replayed(&act("/v1/jobs/replay", "r", &ids).await, &id);
        act("/v1/jobs/replay", "r", r#"{"filter":{}}"#).await.problem(422, "key_reused");
        act("/v1/jobs/cancel", "r", r#"{"filter":{}}"#).await.problem(422, "key_reused");
        act(&one, "r", "").await.problem(422, "key_reused");
        act("/v1/jobs/replay", "a b", &ids).await.problem(422, "bad_idempotency_key");

        // Repeated after it was done, when the job is dead no more.
        let again = log.next().await;
        assert_eq!((again.id.to_string(), again.run), (job.clone(), 2));
        eventually("the replay has ended", async || {
            let record = front.get(&format!("/v1/jobs/{job}?wait=30s")).await.json();
            (record["run"] == 2 && record["status"] == "succeeded").then_some(())
        })
        .await;
        replayed(&act("/v1/jobs/replay", "r", &ids).await, &id);
        act(&one, "o", "").await.problem(409, "not_dead");
        assert!(log.rest().is_empty(), "no third run");
    })
    .await;
}

/// Connections are cut again and again, and clients repeat until they have an answer.
#[tokio::test(flavor = "multi_thread")]
async fn repeats_through_cut_connections_make_one_job_each() {
    stage(async |stage| {
        const JOBS: i64 = 300;
        let (worker, mut log) = stage.probes();
        // The front's connections alone are cut.
        let way = Way::to(&Broker::shared()).await;
        let mut config = stage.config.clone();
        config.amqp.url = serde_json::from_value(json!(way.broker.amqp)).unwrap();
        let front = stage.front_with(&config).await;
        let until_answered = async |number: i64| {
            // Spread over the cuts.
            sleep(Duration::from_millis(10) * u32::try_from(number).unwrap()).await;
            let body = format!(r#"{{"kind":"test.probe","args":{number}}}"#);
            let path = format!("/v1/jobs/c4700000-0000-4000-8000-{number:012}");
            eventually("an answer", async || {
                let answer = front.put(&path, body.clone()).await;
                match answer.status {
                    200 | 202 => Some(answer.status),
                    409 => {
                        answer.problem(409, "in_flight");
                        None
                    }
                    503 | 504 => None,
                    _ => panic!("{answer:?}"),
                }
            })
            .await
        };
        let cutting = async {
            let mut cut = 0;
            for _ in 0..10 {
                // The fault's own rhythm.
                sleep(Duration::from_millis(300)).await;
                cut += way.cut();
            }
            cut
        };
        let (statuses, cut) = tokio::join!(join_all((0..JOBS).map(until_answered)), cutting);
        assert!(cut >= 10, "{cut} connections cut");
        front.wait_ready().await;
        let mut starts = log.take(usize::try_from(JOBS).unwrap()).await;
        // Behind whatever else there is.
        let last = eventually("a call through", async || {
            let answer = front.post("/v1/rpc/test.probe?wait=60s", "-1").await;
            (answer.status == 200).then_some(answer)
        });
        last.await;
        let report = worker.stop().await;
        starts.extend(log.rest());
        let mut args: Vec<i64> = starts.iter().filter_map(|start| start.args.parse().ok()).collect();
        args.retain(|number| *number >= 0);
        args.sort_unstable();
        assert!(args.iter().copied().eq(0..JOBS), "each once: {args:?}, {report:?}");
        let repeats = statuses.iter().filter(|status| **status == 200).count();
        say(format_args!("{cut} connections cut; {repeats} of {JOBS} answers were for a repeat"));
    })
    .await;
}
