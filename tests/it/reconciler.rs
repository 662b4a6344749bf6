//! What happens behind our back: queues purged and messages deleted by hand, and what the broker moves by itself.

use std::time::Duration;

use hopline::{Config, QueueName, amqp::Names, job::dead::mark};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    front::Front,
    probe::quick,
    rabbit::Seen,
    stage::{Stage, stage},
};

/// Jobs count as lost soon.
fn hasty(stage: &Stage) -> Config {
    let mut config = stage.config.clone();
    config.record.lost_after = Duration::from_secs(3);
    config
}

/// A ladder of the test's own: its strays are then the test's too.
fn own_ladder(stage: &Stage) -> Config {
    let mut config = stage.config.clone();
    config.amqp.ladder_prefix = String::new();
    config
}

fn probe(queue: &QueueName, args: &Value) -> Value {
    json!({"kind": "test.probe", "queue": queue, "args": args, "tags": ["t"]})
}

/// A probe for the test's queue.
fn plain(stage: &Stage) -> String {
    probe(&stage.queue, &json!({"n": 1})).to_string()
}

/// Waits for a job to die for this reason, and for its message in the dead-letter queue.
async fn dead_of(front: &Front, stage: &Stage, id: &str, reason: &str) -> Seen {
    let record = front.settled(id).await;
    assert_eq!((&record["status"], &record["error"]["reason"]), (&json!("dead"), &json!(reason)), "{record}");
    let seen = eventually("its message", async || {
        let mut seen = stage.rabbit.look(&stage.dead_queue(), 100).await;
        seen.iter().position(|seen| seen.id() == id).map(|at| seen.remove(at))
    })
    .await;
    assert_eq!(seen.headers[mark::REASON], reason, "{seen:?}");
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_messages_were_removed_by_hand_are_lost_and_can_be_replayed() {
    stage(async |stage| {
        let config = hasty(stage);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let purged = [front.submit(plain(stage)).await, front.submit(plain(stage)).await];
        stage.rabbit.wait_count(&stage.work_queue(), 2).await;
        stage.rabbit.purge(&stage.work_queue()).await;
        for id in &purged {
            let dead = dead_of(&front, stage, id, "lost").await;
            assert_eq!((dead.text(), &dead.headers["hopline-tags"]), (r#"{"n":1}"#, &json!("t")));
        }
        // One of two is taken out in the UI: while the other waits nobody can tell; then it is lost.
        let kept = front.submit(plain(stage)).await;
        let taken = front.submit(plain(stage)).await;
        let out = stage.rabbit.take(&stage.work_queue()).await;
        assert_eq!(out.id(), kept, "the first in");
        let (_worker, mut log) = stage.probes();
        assert_eq!(log.next().await.id.to_string(), taken);
        assert_eq!(front.settled(&taken).await["status"], "succeeded");
        dead_of(&front, stage, &kept, "lost").await;

        let order = json!({"all": true}).to_string();
        let ordered = front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), order).await;
        assert_eq!(front.acted(ordered).await["done"], 3);
        assert!(log.take(3).await.iter().all(|start| start.run == 2));
        for id in purged.iter().chain([&kept]) {
            let record = front.settled(id).await;
            assert_eq!((&record["status"], &record["run"]), (&json!("succeeded"), &json!(2)), "{record}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_job_without_args_or_with_an_order_to_cancel_has_no_dead_message() {
    stage(async |stage| {
        let mut config = hasty(stage);
        config.record.max_inline = 0;
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let (lost, cancelled) = (front.submit(plain(stage)).await, front.submit(plain(stage)).await);
        stage.rabbit.wait_count(&stage.work_queue(), 2).await;
        let ordered = front.delete(&format!("/v1/jobs/{cancelled}?by=eve&reason=late")).await;
        assert_eq!(ordered.status, 202, "{ordered:?}");
        stage.rabbit.purge(&stage.work_queue()).await;
        let record = front.settled(&lost).await;
        assert_eq!(
            (&record["status"], &record["error"]["reason"]),
            (&json!("dead"), &json!("lost")),
            "{record}"
        );
        eventually("it is known that it cannot be replayed", async || {
            (front.get(&format!("/v1/jobs/{lost}")).await.json()["purged"] == true).then_some(())
        })
        .await;
        front.post(&format!("/v1/jobs/{lost}/replay"), "").await.problem(409, "not_dead");
        let record = front.settled(&cancelled).await;
        assert_eq!(record["status"], "cancelled", "{record}");
        assert_eq!(stage.rabbit.count(&stage.dead_queue()).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_queue_is_compared_with_the_record() {
    stage(async |stage| {
        let config = hasty(stage);
        let (_worker, mut log) = stage.probes();
        let front = stage.front_with(&config).await;
        let fatal = probe(&stage.queue, &json!({"script": ["fatal"]})).to_string();
        let (twice, gone) = (front.submit(fatal.clone()).await, front.submit(fatal).await);
        log.take(2).await;
        stage.rabbit.wait_count(&stage.dead_queue(), 2).await;
        // A person takes both out, and puts one back twice.
        for _ in 0..2 {
            let seen = stage.rabbit.take(&stage.dead_queue()).await;
            for _ in 0..if seen.id() == twice { 2 } else { 0 } {
                let mut properties = seen.properties.clone();
                properties["headers"] = seen.headers.clone();
                assert!(stage.rabbit.publish("", &stage.dead_queue(), properties, seen.text()).await);
            }
        }
        stage.rabbit.wait_count(&stage.dead_queue(), 2).await;
        let acting = stage.act(&front, &config);
        let order = json!({"ids": [twice], "set": {"args": {}}}).to_string();
        let ordered = front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), order).await;
        assert_eq!(front.acted(ordered).await["done"], 1);
        assert_eq!(front.settled(&twice).await["status"], "succeeded");
        // Nobody asks for the other one: it goes by itself.
        stage.rabbit.wait_count(&stage.dead_queue(), 0).await;
        // What somebody took out may come back: it is no purge.
        let record = front.get(&format!("/v1/jobs/{gone}")).await.json();
        assert!(record["status"] == "dead" && record.get("purged").is_none(), "{record}");
        acting.stop().await;
        assert_eq!(log.take(1).await[0].run, 2);
        assert!(log.rest().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_or_runs_is_not_lost() {
    stage(async |stage| {
        let mut config = hasty(stage);
        let (busy, gone) = (stage.other_queue("busy"), stage.other_queue("gone"));
        config.amqp.queues.extend([busy.clone(), gone.clone()]);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let (_worker, mut log) = stage.probes_with(&config, quick().queue(busy.as_str()));
        let waiting = front.submit(probe(&stage.queue, &json!({})).to_string()).await;
        let mut delayed = probe(&busy, &json!({}));
        delayed["delay"] = json!("1h");
        let delayed = front.submit(delayed.to_string()).await;
        let running = front.submit(probe(&busy, &json!({"script": ["held"]})).to_string()).await;
        log.next().await;
        // As long as it takes to lose one job, twice.
        for _ in 0..2 {
            let lost = front.submit(probe(&gone, &json!({})).to_string()).await;
            stage.rabbit.wait_count(&stage.names.queue(&gone), 1).await;
            stage.rabbit.purge(&stage.names.queue(&gone)).await;
            let record = front.settled(&lost).await;
            assert_eq!(record["error"]["reason"], "lost", "{record}");
        }
        for (id, status) in [(&waiting, "queued"), (&delayed, "scheduled"), (&running, "running")] {
            let record = front.get(&format!("/v1/jobs/{id}")).await.json();
            assert_eq!(record["status"], status, "{record}");
        }
        log.release(1);
        assert_eq!(front.settled(&running).await["status"], "succeeded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_takes_out_of_a_queue_ends_with_its_reason() {
    stage(async |stage| {
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let rabbit = &stage.rabbit;

        // Rejected by hand.
        let rejected = front.submit(plain(stage)).await;
        rabbit.wait_count(&stage.work_queue(), 1).await;
        assert_eq!(rabbit.reject(&stage.work_queue()).await.id(), rejected);
        let dead = dead_of(&front, stage, &rejected, "rejected").await;
        assert_eq!((dead.text(), &dead.headers[mark::ATTEMPTS]), (r#"{"n":1}"#, &json!(0)));
        assert!(dead.headers.get("x-death").is_none(), "{dead:?}");

        // Expired: a producer's own TTL. Its args are known from nobody but the message.
        let id = "0198c0de-0000-7000-8000-00000000e0e0";
        let properties = json!({"type": "test.probe", "message_id": id, "expiration": "100"});
        assert!(
            rabbit
                .publish(
                    &stage.names.jobs(),
                    &format!("{}.normal.test.probe", stage.queue),
                    properties,
                    "[7]"
                )
                .await
        );
        dead_of(&front, stage, id, "broker_expired").await;
        assert_eq!(front.settled(id).await["args"], json!([7]));

        // The delivery limit, tightened by a policy.
        let pattern = format!("^{}$", stage.work_queue().replace('.', "\\."));
        let rule = json!({"pattern": pattern, "apply-to": "queues", "definition": {"delivery-limit": 2}});
        let policy = format!("policies/{{vhost}}/{}", stage.config.amqp.prefix);
        rabbit.done(Method::PUT, &policy, Some(rule)).await;
        eventually("the policy applies", async || {
            let queue =
                rabbit.done(Method::GET, &format!("queues/{{vhost}}/{}", stage.work_queue()), None).await;
            (queue["policy"] == stage.config.amqp.prefix).then_some(())
        })
        .await;
        let limited = front.submit(plain(stage)).await;
        eventually("the broker gives up on it", async || {
            let left = rabbit.look(&stage.work_queue(), 1).await;
            left.is_empty().then_some(())
        })
        .await;
        let dead = dead_of(&front, stage, &limited, "delivery_limit").await;
        assert_eq!(dead.headers[mark::ATTEMPTS], 1);

        // Not a job at all.
        let id = "0198c0de-0000-7000-8000-00000000e0e1";
        assert!(rabbit.publish("", &stage.work_queue(), json!({"message_id": id}), "{broken").await);
        rabbit.wait_count(&stage.work_queue(), 1).await;
        rabbit.reject(&stage.work_queue()).await;
        assert_eq!(dead_of(&front, stage, id, "rejected").await.text(), "{broken");
        rabbit.wait_count(&stage.names.strays(), 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_told_that_the_broker_took_its_job() {
    stage(async |stage| {
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        let call = front.post("/v1/rpc/test.probe?wait=60s", "{}");
        let reject = async {
            stage.rabbit.wait_count(&stage.work_queue(), 1).await;
            stage.rabbit.reject(&stage.work_queue()).await;
        };
        let (answer, ()) = tokio::join!(call, reject);
        assert_eq!(answer.problem(502, "job_dead")["error"]["reason"], "rejected", "{answer:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_job_whose_queue_is_gone_is_offered_again_and_then_dead() {
    stage(async |stage| {
        let mut config = own_ladder(stage);
        config.amqp.queues = Vec::new();
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        stage.declare(&config, &stage.queue).await;
        let delayed = json!({"kind": "test.probe", "queue": stage.queue, "delay": "2s", "args": {"n": 2}});
        let first = front.submit(delayed.to_string()).await;
        stage.rabbit.delete_queue(&stage.work_queue()).await;
        stage.rabbit.delete_queue(&stage.dead_queue()).await;
        let dead = dead_of(&front, stage, &first, "unroutable").await;
        assert_eq!((dead.text(), &dead.headers["hopline-run"]), (r#"{"n":2}"#, &json!(1)));

        // The queue comes back, as with a worker that starts late.
        stage.declare(&config, &stage.queue).await;
        let second = front.submit(delayed.to_string()).await;
        stage.rabbit.delete_queue(&stage.work_queue()).await;
        let late = async {
            // Until the job has fallen off the ladder.
            eventually("it is among the strays, or dead", async || {
                let record = front.get(&format!("/v1/jobs/{second}")).await.json();
                (record["status"] != "scheduled").then_some(())
            })
            .await;
            let mut own = config.clone();
            own.amqp.queues = vec![stage.queue.clone()];
            stage.probes_with(&own, quick())
        };
        let (_worker, _log) = late.await;
        let record = front.settled(&second).await;
        // A queue that was found missing a moment ago is asked once; then the job is dead, and can be replayed.
        if record["status"] == "dead" {
            assert_eq!(record["error"]["reason"], "unroutable", "{record}");
        } else {
            assert_eq!(record["status"], "succeeded", "{record}");
        }
        // A death is told before its letter is there.
        let letters = if record["status"] == "dead" { 2 } else { 1 };
        stage.rabbit.wait_count(&stage.dead_queue(), letters).await;
        // The worker may not have declared it yet: a job is not replayed into nothing.
        stage.rabbit.wait_count(&stage.work_queue(), 0).await;
        let order = json!({"all": true}).to_string();
        let ordered = front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), order).await;
        let done = front.acted(ordered).await;
        assert_eq!(done["done"], letters, "{done}");
        for id in [&first, &second] {
            eventually("both have run", async || {
                (front.settled(id).await["status"] == "succeeded").then_some(())
            })
            .await;
        }
    })
    .await;
}

/// Where processes declare nothing, and nobody has made the dead-letter queue: there is one place that is always there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stray_without_a_dead_letter_queue_ends_in_nowhere_and_can_be_replayed() {
    stage(async |stage| {
        let mut config = own_ladder(stage);
        config.amqp.queues = Vec::new();
        stage.declare(&config, &Names::new(&config.amqp.prefix, "").acts()).await;
        stage.declare(&config, &stage.queue).await;
        let mut narrow = config.clone();
        (narrow.amqp.declare, narrow.amqp.queues) = (false, Vec::new());
        let front = stage.front_with(&narrow).await;
        let delayed = json!({"kind": "test.probe", "queue": stage.queue, "delay": "1s", "args": {"n": 3}});
        let id = front.submit(delayed.to_string()).await;
        stage.rabbit.delete_queue(&stage.work_queue()).await;
        stage.rabbit.delete_queue(&stage.dead_queue()).await;
        let _acting = stage.act(&front, &narrow);
        let record = front.settled(&id).await;
        assert_eq!(
            (&record["status"], &record["error"]["reason"]),
            (&json!("dead"), &json!("unroutable")),
            "{record}"
        );
        let nowhere = stage.names.dead_queue(&Names::nowhere());
        stage.rabbit.wait_count(&nowhere, 1).await;
        let seen = stage.rabbit.look(&nowhere, 1).await.remove(0);
        assert_eq!((seen.id(), &seen.headers[mark::QUEUE]), (id.clone(), &json!(stage.queue)), "{seen:?}");
        stage.rabbit.wait_count(&stage.names.strays(), 0).await;

        // The queue is made, and the job has not gone with it.
        stage.declare(&config, &stage.queue).await;
        let ordered = front.post(&format!("/v1/jobs/{id}/replay"), "").await;
        assert_eq!(front.acted(ordered).await["done"], 1);
        stage.rabbit.wait_count(&stage.work_queue(), 1).await;
        let next = stage.rabbit.look(&stage.work_queue(), 1).await.remove(0);
        assert_eq!((next.id(), &next.headers["hopline-run"]), (id, &json!(2)), "{next:?}");
        assert!(next.headers.get(mark::QUEUE).is_none(), "{next:?}");
        stage.rabbit.wait_count(&nowhere, 0).await;
    })
    .await;
}
