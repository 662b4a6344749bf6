//! Jobs that may have killed their worker: they run in a child process, and only its death convicts them.

use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};

use crate::{
    process_worker::item,
    support::{
        broker::header,
        process::{Front, Process, Stage, eventually},
    },
};

/// Every job is a suspect from its first delivery on.
const ALL: (&str, &str) = ("HOPLINE_WORKER_ISOLATE_FROM_DELIVERY", "1");

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    test_kill_process(pid).is_ok()
}

/// Starts the worker again whenever it dies, until all is done; how often it died.
async fn restarting(start: impl Fn() -> Process, mut done: impl AsyncFnMut() -> bool) -> u32 {
    let (mut worker, mut deaths) = (start(), 0);
    eventually("all jobs have ended", async || {
        if worker.status().is_some() {
            deaths += 1;
            worker = start();
        }
        done().await.then_some(())
    })
    .await;
    deaths
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_worker_is_convicted_and_its_neighbours_are_not() {
    let stage = Stage::demo();
    let front = stage.serve().await;
    let mut jobs = vec![json!({ "kind": "demo.echo", "queue": "demo", "args": 1 }); 100];
    jobs[50]["kind"] = json!("demo.abort");
    jobs[50]["args"] = json!({});
    let ids = front.submit_all(jobs).await;
    let many = [("HOPLINE_WORKER_PREFETCH", "100"), ("HOPLINE_WORKER_CONCURRENCY", "100")];
    let (work, dead) = (stage.work_queue(), stage.dead_queue());
    let deaths = restarting(
        || stage.demo_worker(&many),
        async || stage.broker.waiting(&dead).await == 1 && stage.broker.unsettled(&work).await == 0,
    )
    .await;
    assert_eq!(deaths, 2, "the third delivery runs apart");
    let buried = stage.broker.look(&dead).await;
    let id = buried[0].delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned());
    assert_eq!((buried.len(), id.as_deref()), (1, Some(ids[50].as_str())));
    assert_eq!(header(&buried[0], "hopline-reason").as_deref(), Some("poison"));
    // One job is dead and the queue is empty: the 99 others were settled, and the only other way is success.
    assert_eq!(stage.broker.waiting(&work).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_innocent_suspect_succeeds_with_its_output() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let queue = stage.work_queue();
    let body = item(&stage, &json!({}));
    let mut worker = None;
    let (answer, ()) = tokio::join!(front.post("/v1/jobs?wait=60s", &body), async {
        // Delivered twice, to somebody who gives it back.
        eventually("the job is queued", async || (stage.broker.waiting(&queue).await == 1).then_some(()))
            .await;
        for _ in 0..2 {
            assert_eq!(stage.broker.look(&queue).await.len(), 1);
            eventually("the job is back", async || (stage.broker.waiting(&queue).await == 1).then_some(()))
                .await;
        }
        worker = Some(stage.ledger_worker(&[]));
    });
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("succeeded")), "{answer:?}");
    let lines = stage.ledger().lines();
    assert!(lines.iter().all(|line| line.child && line.attempt == 1), "{lines:?}");
    assert_eq!(answer.body["output"]["pid"], json!(lines[0].pid));
    assert_ne!(Some(lines[0].pid), worker.map(|worker| worker.id()));
}

async fn wait_for(front: &Front, stage: &Stage, args: Value, extra: Value) -> Value {
    let mut body = item(stage, &args);
    let members = body.as_object_mut().expect("an object");
    members.extend(extra.as_object().expect("an object").clone());
    let answer = front.post("/v1/jobs?wait=60s", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_processes_ends_mean_what_they_mean_elsewhere() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let _worker = stage.ledger_worker(&[ALL]);
    let ends = |ways: &[&str]| json!({ "ends": ways });
    let once = json!({ "max_attempts": 1 });
    let cases = [
        // how it ends, what the submit adds, status, attempt, reason, code
        (ends(&["fail", "well"]), json!({}), "succeeded", 2, None, None),
        (ends(&["panic", "well"]), json!({}), "succeeded", 2, None, None),
        (ends(&["snooze", "snooze", "well"]), json!({}), "succeeded", 1, None, None),
        (ends(&["hang", "well"]), json!({ "timeout": "300ms" }), "succeeded", 2, None, None),
        (ends(&["fail"]), once.clone(), "dead", 1, Some("exhausted"), Some("failed")),
        (ends(&["panic"]), once.clone(), "dead", 1, Some("exhausted"), Some("panic")),
        (
            ends(&["hang"]),
            json!({ "max_attempts": 1, "timeout": "300ms" }),
            "dead",
            1,
            Some("exhausted"),
            Some("timeout"),
        ),
        // Nobody but its parent can stop it.
        (
            ends(&["spin"]),
            json!({ "max_attempts": 1, "timeout": "300ms" }),
            "dead",
            1,
            Some("exhausted"),
            Some("timeout"),
        ),
        (
            ends(&["grind"]),
            json!({ "max_attempts": 1, "timeout": "300ms" }),
            "dead",
            1,
            Some("exhausted"),
            Some("timeout"),
        ),
        (ends(&["fatal"]), json!({}), "dead", 1, Some("fatal"), Some("hopeless")),
        (ends(&["abort"]), json!({}), "dead", 1, Some("poison"), Some("crashed")),
        (ends(&["exit"]), json!({}), "dead", 1, Some("poison"), Some("crashed")),
    ];
    let waits = cases.iter().map(|(args, extra, ..)| wait_for(&front, &stage, args.clone(), extra.clone()));
    let records = futures_util::future::join_all(waits).await;
    for (record, (args, _, status, attempt, reason, code)) in records.iter().zip(&cases) {
        let found =
            (&record["status"], &record["attempt"], &record["error"]["reason"], &record["error"]["code"]);
        assert_eq!(
            found,
            (&json!(status), &json!(attempt), &json!(reason), &json!(code)),
            "{args}: {record}"
        );
    }
    let lines = stage.ledger().lines();
    assert!(lines.iter().all(|line| line.child), "run in the worker itself: {lines:?}");
    // Also those that timed out have ended.
    eventually("no child is left", async || lines.iter().all(|line| !is_alive(line.pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_suspect_does_not_run() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let mut body = item(&stage, &json!({}));
    body["expires_in"] = json!("1ms");
    let mut worker = None;
    let (answer, ()) = tokio::join!(front.post("/v1/jobs?wait=60s", &body), async {
        let queue = stage.work_queue();
        eventually("the job is queued", async || (stage.broker.waiting(&queue).await == 1).then_some(()))
            .await;
        worker = Some(stage.ledger_worker(&[ALL]));
    });
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("expired")), "{answer:?}");
    assert!(stage.ledger().lines().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_hands_its_suspects_back() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[ALL, ("HOPLINE_SHUTDOWN_GRACE", "1s")]);
    let jobs = [json!({ "ms": 600_000 }), json!({ "ends": ["spin"] })];
    let ids = front.submit_all(jobs.map(|args| item(&stage, &args)).to_vec()).await;
    stage.ledger().until("start", 2).await;
    worker.stop().await;
    let lines = stage.ledger().lines();
    assert!(lines.iter().all(|line| line.child && !is_alive(line.pid)), "{lines:?}");
    // What can be asked to stop was asked.
    assert!(lines.iter().any(|line| line.job == ids[0] && line.word == "stopped"), "{lines:?}");
    // A quorum queue counts what came back a moment later.
    eventually("both are back", async || {
        (stage.broker.waiting(&stage.work_queue()).await == 2).then_some(())
    })
    .await;
    assert_eq!(stage.broker.waiting(&stage.dead_queue()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_does_not_outlive_a_killed_worker() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[ALL]);
    let jobs = [json!({ "ms": 600_000 }), json!({ "ends": ["spin"] }), json!({ "ends": ["grind"] })];
    front.submit_all(jobs.map(|args| item(&stage, &args)).to_vec()).await;
    stage.ledger().until("start", 3).await;
    worker.kill9();
    let children: Vec<u32> = stage.ledger().lines().iter().map(|line| line.pid).collect();
    eventually("no child is left", async || children.iter().all(|pid| !is_alive(*pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_process_tells_how_far_it_is_and_can_be_cancelled() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let _worker = stage.ledger_worker(&[ALL, ("HOPLINE_CANCEL_GRACE", "1s")]);
    let jobs = [json!({ "ms": 600_000, "tells": true }), json!({ "ends": ["spin"] })];
    let ids = front.submit_all(jobs.map(|args| item(&stage, &args)).to_vec()).await;
    stage.ledger().until("start", 2).await;
    let record = async |id: &str| front.get(&format!("/v1/jobs/{id}")).await.body;
    eventually("progress is told", async || {
        (record(&ids[0]).await["progress"] == json!({ "percent": 50, "message": "half" })).then_some(())
    })
    .await;
    for id in &ids {
        front.delete(&format!("/v1/jobs/{id}")).await;
        eventually("cancelled", async || (record(id).await["status"] == "cancelled").then_some(())).await;
        assert_eq!(record(id).await["attempts"][0]["outcome"], "cancelled");
    }
    let lines = stage.ledger().lines();
    assert!(lines.iter().any(|line| line.job == ids[0] && line.word == "stopped"), "{lines:?}");
    eventually("no child is left", async || lines.iter().all(|line| !is_alive(line.pid)).then_some(())).await;
    assert_eq!(stage.broker.waiting(&stage.work_queue()).await, 0);
}
