//! Dead letters and the acts over them: groups, replaying, purging, cancelling.

use std::{collections::BTreeMap, time::Duration};

use hopline::{Config, job::dead::mark};
use serde_json::{Value, json};

use crate::support::{
    eventually,
    front::{Answer, Front},
    probe::quick,
    process,
    rabbit::Seen,
    stage::{Stage, stage},
};

/// Submits so many probes that do what `script` says, in one attempt.
async fn submit(stage: &Stage, front: &Front, script: &str, count: usize) -> Vec<String> {
    let one = json!({
        "kind": "test.probe", "queue": stage.queue, "args": {"script": [script]}, "max_attempts": 1, "tags": [script],
    });
    let answer = front.post("/v1/jobs/batch", Value::Array(vec![one; count]).to_string()).await;
    let items = answer.json()["items"].as_array().cloned().unwrap_or_default();
    let id = |item: &Value| item["id"].as_str().unwrap_or_else(|| panic!("not accepted: {item}")).to_owned();
    items.iter().map(id).collect()
}

/// Waits until the record shows so many dead jobs of the test's queue, and the dead-letter queue holds them.
async fn wait_dead(stage: &Stage, front: &Front, count: u32) {
    stage.rabbit.wait_count(&stage.dead_queue(), count).await;
    let path = format!("/v1/jobs/counts?queue={}", stage.queue);
    eventually(&format!("{count} dead jobs in the record"), async || {
        (front.get(&path).await.json()["counts"]["dead"] == count).then_some(())
    })
    .await;
}

async fn groups(stage: &Stage, front: &Front) -> BTreeMap<String, Value> {
    let answer = front.get(&format!("/v1/queues/{}/dead/groups", stage.queue)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let items = answer.json()["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().map(|group| (group["code"].as_str().unwrap_or_default().to_owned(), group)).collect()
}

async fn replay(stage: &Stage, front: &Front, order: Value) -> Answer {
    front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), order.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_group_of_five_hundred_dead_jobs_is_replayed() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let fatal = submit(stage, &front, "fatal", 280).await;
        let failed = submit(stage, &front, "fail", 200).await;
        submit(stage, &front, "panic", 20).await;
        log.take(500).await;
        wait_dead(stage, &front, 500).await;

        let groups = groups(stage, &front).await;
        let counts: Vec<_> = groups.iter().map(|(code, group)| (code.as_str(), &group["count"])).collect();
        assert_eq!(
            counts,
            [("panic", &json!(20)), ("probe_failed", &json!(200)), ("probe_fatal", &json!(280))]
        );
        let group = &groups["probe_failed"];
        assert_eq!((&group["kind"], &group["reason"]), (&json!("test.probe"), &json!("exhausted")));

        let mut order = json!({
            "fingerprint": group["fingerprint"], "rate": 50, "set": {"args": {"mended": 1.50}}, "by": "eve",
            "dry_run": true,
        });
        let dry = replay(stage, &front, order.clone()).await;
        assert_eq!((dry.status, dry.json()), (200, json!({"matched": 200})));
        order["dry_run"] = json!(false);
        let done = front.acted(replay(stage, &front, order).await).await;
        assert_eq!(done, json!({"matched": 200, "done": 200, "skipped": 0, "failed": 0}));

        stage.rabbit.wait_count(&stage.dead_queue(), 300).await;
        let starts = log.take(200).await;
        for start in &starts {
            assert!(failed.contains(&start.id.to_string()), "of another group: {start:?}");
            assert_eq!((start.run, start.attempt, start.max_attempts), (2, 1, 1), "{start:?}");
            // The args went through the act's own JSON, and are the bytes that were sent.
            assert_eq!(start.args, r#"{"mended":1.5}"#);
        }
        let record = front.settled(&failed[0]).await;
        assert_eq!((&record["status"], &record["run"]), (&json!("succeeded"), &json!(2)), "{record}");
        assert_eq!(record["attempts"].as_array().map(Vec::len), Some(2), "the history stays: {record}");
        assert_eq!(record["args"], json!({"mended": 1.5}));
        let untouched = front.settled(&fatal[0]).await;
        assert_eq!((&untouched["status"], &untouched["run"]), (&json!("dead"), &json!(1)));
        assert!(log.rest().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_whose_process_is_killed_goes_on_and_loses_none() {
    const JOBS: usize = 80;
    let stage = process::Stage::new();
    let mut front = stage.serve().await;
    let mut worker = stage.ledger_worker(&[]);
    let job = json!({"kind": process::KIND, "queue": stage.queue, "args": {"ends": ["fatal", "well"]}});
    let ids = front.submit_all(vec![job; JOBS]).await;
    eventually("all are dead", async || {
        (stage.broker.waiting(&stage.dead_queue()).await as usize == JOBS).then_some(())
    })
    .await;
    let order = json!({"all": true, "rate": 20});
    let act = front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), &order).await.id();
    stage.ledger().until("end", 20).await;
    front.process.kill9();

    let next = stage.serve().await;
    stage.ledger().until("end", JOBS).await;
    let ends = stage.ledger().count("end");
    assert!(ids.iter().all(|id| ends.get(id) == Some(&1)), "each ended, and once: {ends:?}");
    let record = eventually("the act ends", async || {
        let record = next.get(&format!("/v1/jobs/{act}?wait=20s")).await.body;
        (record["status"] == "succeeded").then_some(record)
    })
    .await;
    let output = &record["output"];
    assert_eq!((&output["failed"], output.get("missing")), (&json!(0), None), "{record}");
    // Those that a pass holds are counted too.
    process::eventually("the dead-letter queue is empty", async || {
        (stage.broker.unsettled(&stage.dead_queue()).await == 0).then_some(())
    })
    .await;
    for id in &ids {
        let record = next.get(&format!("/v1/jobs/{id}")).await.body;
        assert_eq!((&record["status"], &record["run"]), (&json!("succeeded"), &json!(2)), "{record}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_job_that_dies_again_is_not_replayed_by_the_same_act() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let ids = submit(stage, &front, "fatal", 5).await;
        wait_dead(stage, &front, 5).await;
        log.take(5).await;
        let done = front.acted(replay(stage, &front, json!({"all": true, "rate": 20})).await).await;
        assert_eq!((&done["matched"], &done["done"]), (&json!(5), &json!(5)));
        let starts = log.take(5).await;
        assert!(starts.iter().all(|start| start.run == 2));
        stage.rabbit.wait_count(&stage.dead_queue(), 5).await;

        // One by its id; what it replayed is gone from the list, the others stay.
        let ordered = front.post(&format!("/v1/jobs/{}/replay", ids[0]), "").await;
        assert_eq!(front.acted(ordered).await["done"], 1);
        let again = log.take(1).await;
        assert_eq!((again[0].id.to_string(), again[0].run), (ids[0].clone(), 3));
        stage.rabbit.wait_count(&stage.dead_queue(), 5).await;
        let seen = stage.rabbit.look(&stage.dead_queue(), 10).await;
        let runs: Vec<_> = seen.iter().map(|seen| seen.headers["hopline-run"].as_i64()).collect();
        assert_eq!(runs.iter().filter(|run| **run == Some(2)).count(), 4, "{runs:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_or_a_twin_goes_without_a_run() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let ids = submit(stage, &front, "fatal", 1).await;
        wait_dead(stage, &front, 1).await;
        log.take(1).await;
        // A second copy of it, as a crash between publish and acknowledgement leaves one.
        let dead = stage.rabbit.look(&stage.dead_queue(), 1).await.remove(0);
        let mut properties = dead.properties.clone();
        properties["headers"] = dead.headers.clone();
        assert!(stage.rabbit.publish("", &stage.dead_queue(), properties.clone(), dead.text()).await);
        stage.rabbit.wait_count(&stage.dead_queue(), 2).await;
        let done = front.acted(replay(stage, &front, json!({"all": true, "set": {"args": {}}})).await).await;
        assert_eq!(done, json!({"matched": 2, "done": 1, "skipped": 1, "failed": 0}));
        assert_eq!(log.take(1).await[0].run, 2);
        assert_eq!(front.settled(&ids[0]).await["status"], "succeeded");

        // A third copy of the run that is long over.
        assert!(stage.rabbit.publish("", &stage.dead_queue(), properties, dead.text()).await);
        stage.rabbit.wait_count(&stage.dead_queue(), 1).await;
        let done = front.acted(replay(stage, &front, json!({"all": true})).await).await;
        assert_eq!(done, json!({"matched": 1, "done": 0, "skipped": 1, "failed": 0}));
        stage.rabbit.wait_count(&stage.dead_queue(), 0).await;
        assert!(log.rest().is_empty());
    })
    .await;
}

/// Puts a message once more into a queue, with what its headers say if they are kept.
async fn put(stage: &Stage, queue: &str, seen: &Seen, headers: bool) {
    let mut properties = seen.properties.clone();
    properties["headers"] = if headers { seen.headers.clone() } else { json!({}) };
    assert!(stage.rabbit.publish("", queue, properties, seen.text()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_goes_when_its_job_is_in_a_later_run_whatever_is_asked_for() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let ids = submit(stage, &front, "fatal", 1).await;
        wait_dead(stage, &front, 1).await;
        let dead = stage.rabbit.look(&stage.dead_queue(), 1).await.remove(0);
        put(stage, &stage.dead_queue(), &dead, true).await;
        stage.rabbit.wait_count(&stage.dead_queue(), 2).await;
        // By id: the act is done with the first one it meets.
        let done = front.acted(replay(stage, &front, json!({"ids": ids, "set": {"args": {}}})).await).await;
        assert_eq!(done["done"], 1, "{done}");
        assert_eq!(front.settled(&ids[0]).await["status"], "succeeded");
        let done = front.acted(replay(stage, &front, json!({"kind": "test.other"})).await).await;
        assert_eq!(done, json!({"matched": 0, "done": 0, "skipped": 0, "failed": 0}));
        stage.rabbit.wait_count(&stage.dead_queue(), 0).await;
        assert_eq!(log.take(2).await[1].run, 2);
        assert!(log.rest().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_jobs_asks_the_record_what_they_are() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let died = submit(stage, &front, "fatal", 1).await.remove(0);
        let ended = submit(stage, &front, "ok", 1).await.remove(0);
        log.take(2).await;
        wait_dead(stage, &front, 1).await;
        assert_eq!(front.settled(&ended).await["status"], "succeeded");
        worker.stop().await;
        // As if the worker had died: of the first before the copy in the dead-letter queue, of the second before the
        // acknowledgement.
        let mut seen = stage.rabbit.take(&stage.dead_queue()).await;
        put(stage, &stage.work_queue(), &seen, false).await;
        seen.properties["message_id"] = json!(ended);
        put(stage, &stage.work_queue(), &seen, false).await;
        stage.rabbit.wait_count(&stage.work_queue(), 2).await;
        let done = front.acted(front.delete(&format!("/v1/queues/{}/jobs", stage.queue)).await).await;
        assert_eq!(done, json!({"matched": 2, "done": 1, "skipped": 1, "failed": 0}));
        stage.rabbit.wait_count(&stage.work_queue(), 0).await;
        let record = front.settled(&died).await;
        assert_eq!((&record["status"], &record["purged"]), (&json!("dead"), &json!(true)), "{record}");
        front.post(&format!("/v1/jobs/{died}/replay"), "").await.problem(409, "not_dead");
        assert_eq!(front.settled(&ended).await["status"], "succeeded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_is_replayed_as_it_is_if_named() {
    stage(async |stage| {
        let (_worker, _log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let id = "0198c0de-0000-7000-8000-000000000001";
        let properties = json!({"type": "test.probe", "message_id": id});
        assert!(stage.rabbit.publish("", &stage.work_queue(), properties, "{broken").await);
        stage.rabbit.wait_count(&stage.dead_queue(), 1).await;
        assert_eq!(front.settled(id).await["error"]["reason"], "undecodable");

        let done = front.acted(replay(stage, &front, json!({"all": true})).await).await;
        assert_eq!((&done["failed"], &done["done"]), (&json!(1), &json!(0)), "{done}");
        let done = front.acted(replay(stage, &front, json!({"ids": [id]})).await).await;
        assert_eq!((&done["failed"], &done["done"]), (&json!(0), &json!(1)), "{done}");
        let dead = eventually("it is dead again", async || {
            let seen = stage.rabbit.look(&stage.dead_queue(), 1).await.pop()?;
            (seen.headers["hopline-run"] == 2).then_some(seen)
        })
        .await;
        assert_eq!((dead.text(), dead.headers[mark::REASON].as_str()), ("{broken", Some("undecodable")));

        let mended = json!({"ids": [id], "set": {"args": {"whole": true}}});
        let done = front.acted(replay(stage, &front, mended).await).await;
        assert_eq!(done["done"], 1, "{done}");
        let record = front.settled(id).await;
        assert_eq!((&record["status"], &record["run"]), (&json!("succeeded"), &json!(3)), "{record}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_messages_are_purged_by_kind_by_group_and_by_id() {
    stage(async |stage| {
        let (_worker, _log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let fatal = submit(stage, &front, "fatal", 3).await;
        submit(stage, &front, "fail", 2).await;
        wait_dead(stage, &front, 5).await;
        let path = format!("/v1/queues/{}/dead", stage.queue);

        let by_id = front.delete(&format!("{path}?id={}&by=eve&reason=no%20use", fatal[0])).await;
        assert_eq!(front.acted(by_id).await, json!({"matched": 1, "done": 1, "skipped": 0, "failed": 0}));
        stage.rabbit.wait_count(&stage.dead_queue(), 4).await;
        let listed = front.get(&path).await.json();
        assert_eq!(listed["items"].as_array().map(Vec::len), Some(4), "{listed}");
        assert_eq!(front.settled(&fatal[0]).await["status"], "dead", "purging revives nobody");
        front.post(&format!("/v1/jobs/{}/replay", fatal[0]), "").await.problem(409, "not_dead");

        let group = groups(stage, &front).await["probe_fatal"]["fingerprint"].as_str().unwrap().to_owned();
        let by_group = front.delete(&format!("{path}?fingerprint={group}")).await;
        assert_eq!(front.acted(by_group).await["done"], 2);
        stage.rabbit.wait_count(&stage.dead_queue(), 2).await;
        front.delete(&format!("{path}?fingerprint={group}")).await.problem(404, "unknown_group");

        let dry = front.delete(&format!("{path}?kind=test.probe&dry_run=true")).await;
        assert_eq!((dry.status, dry.json()), (200, json!({"matched": 2})));
        assert_eq!(front.acted(front.delete(&format!("{path}?kind=test.probe")).await).await["done"], 2);
        stage.rabbit.wait_count(&stage.dead_queue(), 0).await;
        assert_eq!(front.get(&path).await.json()["items"], json!([]));
        assert!(groups(stage, &front).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_a_queue_ends_the_jobs_that_wait_in_it() {
    stage(async |stage| {
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let waiting = submit(stage, &front, "ok", 30).await;
        let body = json!({"kind": "test.probe", "queue": stage.queue, "delay": "1h"}).to_string();
        let delayed = front.submit(body.clone()).await;
        let call = front.post("/v1/rpc/test.probe?wait=60s", "{}");
        let purged = async {
            stage.rabbit.wait_count(&stage.work_queue(), 31).await;
            front.acted(front.delete(&format!("/v1/queues/{}/jobs?by=eve", stage.queue)).await).await
        };
        let (called, done) = tokio::join!(call, purged);
        assert_eq!(done, json!({"matched": 31, "done": 31, "skipped": 0, "failed": 0}));
        called.problem(409, "job_cancelled");
        stage.rabbit.wait_count(&stage.work_queue(), 0).await;
        for id in &waiting {
            let record = front.settled(id).await;
            assert_eq!(record["status"], "cancelled", "{record}");
            assert_eq!(
                (&record["error"]["reason"], &record["run"]),
                (&json!("purged"), &json!(1)),
                "{record}"
            );
        }
        let record = front.get(&format!("/v1/jobs/{delayed}")).await.json();
        assert_eq!(record["status"], "scheduled", "the ladder is not purged: {record}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_are_cancelled_at_once() {
    stage(async |stage| {
        let front = stage.front().await;
        let acting = stage.act(&front, &stage.config);
        let some = submit(stage, &front, "ok", 700).await;
        let others = submit(stage, &front, "snooze", 0).await;
        assert!(others.is_empty());
        let spared = submit(stage, &front, "fatal", 3).await;
        let order = json!({"filter": {"tag": "ok", "queue": stage.queue}, "by": "eve", "reason": "too many"});
        let mut dry = order.clone();
        dry["dry_run"] = json!(true);
        let dry = front.post("/v1/jobs/cancel", dry.to_string()).await;
        assert_eq!((dry.status, dry.json()), (200, json!({"matched": 700})));
        let done = front.acted(front.post("/v1/jobs/cancel", order.to_string()).await).await;
        assert_eq!(done, json!({"matched": 700, "done": 700, "skipped": 0, "failed": 0}));
        let again = json!({"ids": [some[0], some[1], "0198c0de-0000-7000-8000-000000000001"]});
        let done = front.acted(front.post("/v1/jobs/cancel", again.to_string()).await).await;
        assert_eq!(done, json!({"matched": 2, "done": 0, "skipped": 2, "failed": 0, "missing": 1}));
        let asked = front.get(&format!("/v1/jobs/{}", some[0])).await.json();
        assert!(asked["cancel_requested_at"].is_string(), "{asked}");

        let (_worker, mut log) = stage.probes_with(&stage.config, quick());
        for id in &some[..20] {
            let record = front.settled(id).await;
            assert_eq!(record["status"], "cancelled", "{record}");
        }
        let started = log.take(3).await;
        assert!(started.iter().all(|start| spared.contains(&start.id.to_string())), "{started:?}");
        acting.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_goes_on_in_another_process_when_its_own_ends() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        submit(stage, &front, "fatal", 60).await;
        log.take(60).await;
        wait_dead(stage, &front, 60).await;
        let first = stage.act(&front, &stage.config);
        let order = json!({"all": true, "rate": 20, "set": {"args": {}}});
        let ordered = replay(stage, &front, order).await;
        log.take(10).await;
        first.stop().await;
        let mut begun = 10;
        eventually("what was on its way has left the dead-letter queue", async || {
            begun += log.rest().len();
            (stage.rabbit.count(&stage.dead_queue()).await? as usize + begun == 60).then_some(())
        })
        .await;
        let _second = stage.act(&front, &stage.config);
        let done = front.acted(ordered).await;
        log.take(60 - begun).await;
        stage.rabbit.wait_count(&stage.dead_queue(), 0).await;
        assert_eq!((&done["matched"], &done["failed"]), (&json!(60), &json!(0)), "counted on: {done}");
        assert!(log.rest().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_act_stops_and_the_rest_stays() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        submit(stage, &front, "fatal", 100).await;
        log.take(100).await;
        wait_dead(stage, &front, 100).await;
        let order = json!({"all": true, "rate": 5, "set": {"args": {}}});
        let act = replay(stage, &front, order).await.accepted();
        log.take(1).await;
        let cancelled = front.delete(&format!("/v1/jobs/{act}?by=eve")).await;
        assert_eq!(cancelled.status, 202, "{cancelled:?}");
        let record = front.settled(&act).await;
        assert_eq!(record["status"], "cancelled", "{record}");
        let replayed = eventually("each job is in one place", async || {
            let left = stage.rabbit.count(&stage.dead_queue()).await?;
            let path = format!("/v1/jobs/counts?queue={}", stage.queue);
            let counts = front.get(&path).await.json();
            let ended = counts["counts"]["succeeded"].as_u64()?;
            (u64::from(left) + ended == 100).then_some(ended)
        })
        .await;
        assert!(replayed < 100, "it stopped");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_orders_are_refused_at_the_door() {
    stage(async |stage| {
        let front = stage.front().await;
        let dead = format!("/v1/queues/{}/dead", stage.queue);
        let replay = format!("{dead}/replay");
        let id = "0198c0de-0000-7000-8000-000000000001";
        let group = "0123456789abcdef";
        for (path, body, status, code) in [
            (replay.as_str(), json!({"all": true, "rate": -1}), 422, "invalid_request"),
            (&replay, json!({"all": true, "rate": 0}), 422, "invalid_request"),
            (&replay, json!({}), 422, "invalid_request"),
            (&replay, json!({"all": true, "kind": "a.b"}), 422, "invalid_request"),
            (&replay, json!({"ids": ["x"]}), 422, "invalid_request"),
            (&replay, json!({"fingerprint": "x"}), 422, "invalid_request"),
            (&replay, json!({"fingerprint": group}), 404, "unknown_group"),
            (&replay, json!({"filter": {}}), 422, "invalid_request"),
            ("/v1/queues/no-such-queue/dead/replay", json!({"all": true}), 404, "queue_not_found"),
            ("/v1/queues/No%20Queue/dead/replay", json!({"all": true}), 404, "queue_not_found"),
            ("/v1/jobs/replay", json!({}), 422, "invalid_request"),
            ("/v1/jobs/replay", json!({"filter": {"status": "succeeded"}}), 422, "invalid_request"),
            ("/v1/jobs/replay", json!({"filter": {}, "set": {}}), 422, "invalid_request"),
            ("/v1/jobs/cancel", json!({"filter": {"status": "dead"}}), 422, "invalid_request"),
            ("/v1/jobs/cancel", json!({"filter": {}, "ids": [id]}), 422, "invalid_request"),
            ("/v1/jobs/cancel", json!({"filter": {}, "rate": 1}), 422, "invalid_request"),
            (&format!("/v1/jobs/{id}/replay"), json!({}), 404, "job_not_found"),
            ("/v1/jobs/x/replay", json!({}), 404, "job_not_found"),
        ] {
            front.post(path, body.to_string()).await.problem(status, code);
        }
        front.post(&replay, "{").await.problem(400, "malformed_json");
        front.get("/v1/queues/no-such-queue/dead").await.problem(404, "queue_not_found");
        front.get("/v1/queues/no-such-queue/dead/groups").await.problem(404, "queue_not_found");
        front.get(&format!("{dead}?cursor=x")).await.problem(422, "bad_cursor");
        front.get(&format!("{dead}?status=dead")).await.problem(422, "invalid_request");
        front.delete(&format!("{dead}?id=x")).await.problem(422, "invalid_request");
        front.delete(&format!("{dead}?fingerprint={group}")).await.problem(404, "unknown_group");
        front.delete("/v1/queues/no-such-queue/dead").await.problem(404, "queue_not_found");
        front.delete("/v1/queues/no-such-queue/jobs").await.problem(404, "queue_not_found");
        let queued = front.submit(json!({"kind": "test.probe"}).to_string()).await;
        let problem = front.post(&format!("/v1/jobs/{queued}/replay"), "").await.problem(409, "not_dead");
        assert_eq!(problem["job"]["status"], "queued", "{problem}");
        assert_eq!(front.get(&dead).await.json(), json!({"items": [], "next": null}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acts_need_no_more_of_the_configuration_than_the_front() {
    stage(async |stage| {
        let mut config: Config = stage.config.clone();
        // A broker's short consumer timeout, and a health port that another worker has.
        config.worker.consumer_timeout = Duration::from_secs(60);
        config.worker.health = Some("127.0.0.1:1".parse().expect("an address"));
        let front = stage.front_with(&config).await;
        let acting = stage.act(&front, &config);
        let done = front.acted(replay(stage, &front, json!({"all": true})).await).await;
        assert_eq!(done["matched"], 0);
        acting.stop().await;
    })
    .await;
}
