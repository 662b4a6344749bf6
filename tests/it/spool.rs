//! The spool: what is accepted while the broker is away ends when it is back, in the order in which it came.

use std::time::Duration;

use hopline::up::Node;
use serde_json::{Value, json};

use crate::{
    process_worker::item,
    support::{
        broker::Broker,
        process::{Answer, Front, Stage, eventually, new_folder},
    },
};

/// A front with a spool in `folder` of the stage.
async fn spooling(stage: &Stage, folder: &str, more: &[(&str, &str)]) -> Front {
    let path = stage.dir.join(folder).display().to_string();
    let record = stage.dir.join(format!("record-of-{folder}"));
    stage.serve_in(&record, &[&[("HOPLINE_SPOOL_PATH", path.as_str())], more].concat()).await
}

async fn away(node: &mut Node, front: &Front) {
    node.stop().await;
    // It says so in words; it stays ready, because the spool has room.
    eventually("the front knows that the broker is away", async || {
        let answer = front.get("/readyz").await;
        (answer.status == 200 && answer.body["publish"] != "connected").then_some(())
    })
    .await;
}

async fn emptied(front: &Front) {
    eventually("the spool is empty", async || {
        (front.get("/readyz").await.body["spool"]["jobs"] == 0).then_some(())
    })
    .await;
}

async fn ended(front: &Front, id: &str) -> Value {
    eventually(&format!("the end of {id}"), async || {
        let Answer { status, body, .. } = front.get(&format!("/v1/jobs/{id}?wait=5s")).await;
        (status == 200 && body["finished_at"].is_string()).then_some(body)
    })
    .await
}

/// guarantees: submitting while the broker is away, and the front killed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_while_the_broker_is_away_runs_in_order_although_the_front_is_killed() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let mut front = spooling(&stage, "spool", &[]).await;
    front.until_ready().await;
    // One at a time: the ledger shows the order.
    let mut worker =
        stage.ledger_worker(&[("HOPLINE_WORKER_CONCURRENCY", "1"), ("HOPLINE_WORKER_PREFETCH", "1")]);
    let before = front.submit(&stage, json!({})).await;
    stage.ledger().until_all_ended(std::slice::from_ref(&before)).await;
    away(&mut node, &front).await;

    let mut jobs = Vec::new();
    for _ in 0..20 {
        let answer = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
        assert_eq!((answer.status, &answer.body["status"]), (202, &json!("spooled")), "{answer:?}");
        jobs.push(answer.id());
    }
    let batch = front.post("/v1/jobs/batch", &json!(vec![item(&stage, &json!({})); 300])).await;
    assert_eq!((batch.status, &batch.body["accepted"]), (202, &json!(300)), "{batch:?}");
    for item in batch.body["items"].as_array().expect("items") {
        assert_eq!(item["status"], "spooled");
        jobs.push(item["id"].as_str().expect("an id").to_owned());
    }
    let shown = front.get(&format!("/v1/jobs/{}", jobs[0])).await;
    assert_eq!(
        (shown.status, &shown.body["status"], &shown.body["args"]),
        (200, &json!("spooled"), &json!({}))
    );

    // Repeats find the first one, here and after a crash.
    let key = [("Idempotency-Key", "spooled-1")];
    let named = front.post_with("/v1/jobs", &item(&stage, &json!({})), &key).await;
    assert_eq!((named.status, &named.body["status"]), (202, &json!("spooled")), "{named:?}");
    jobs.push(named.id());
    front.process.kill9();
    let front = spooling(&stage, "spool", &[]).await;
    let again = front.post_with("/v1/jobs", &item(&stage, &json!({})), &key).await;
    assert_eq!(
        (again.status, again.id(), &again.body["status"]),
        (200, named.id(), &json!("spooled")),
        "{again:?}"
    );
    let other = front.post_with("/v1/jobs", &item(&stage, &json!({ "ms": 1 })), &key).await;
    assert_eq!((other.status, other.code()), (422, "key_reused"), "{other:?}");
    let last = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
    assert_eq!((last.status, &last.body["status"]), (202, &json!("spooled")), "{last:?}");
    jobs.push(last.id());

    node.restart().await.expect("the broker comes back");
    stage.ledger().until_all_ended(&jobs).await;
    let starts: Vec<String> =
        stage.ledger().lines().into_iter().filter(|line| line.word == "start").map(|line| line.job).collect();
    assert_eq!(starts[1..], jobs, "each ran once, in the order in which it was accepted");
    emptied(&front).await;
    for id in &jobs {
        assert_eq!(ended(&front, id).await["status"], "succeeded");
    }
    let fresh = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
    assert_eq!((fresh.status, &fresh.body["status"]), (202, &json!("queued")), "{fresh:?}");
    stage.ledger().until_all_ended(&[fresh.id()]).await;
    worker.stop().await;
    node.stop().await;
}

/// What waits for an end waits through the outage; what is delayed comes when it is due; an unknown queue has an end.
#[tokio::test(flavor = "multi_thread")]
async fn calls_and_waits_outlast_an_outage() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    // A loaded machine takes its time to start a broker.
    let front = spooling(&stage, "spool", &[("HOPLINE_HTTP_MAX_WAIT", "10m")]).await;
    front.until_ready().await;
    let mut worker = stage.ledger_worker(&[]);
    stage.ledger().until_all_ended(&[front.submit(&stage, json!({})).await]).await;
    away(&mut node, &front).await;
    let late = json!({ "kind": "ledger.do", "queue": stage.queue, "delay": "2s" });
    let late = front.post("/v1/jobs", &late).await;
    assert_eq!((late.status, &late.body["status"]), (202, &json!("spooled")), "{late:?}");
    let nowhere = front.post("/v1/jobs", &json!({ "kind": "ledger.do", "queue": "nobody-has-it" })).await;
    assert_eq!((nowhere.status, &nowhere.body["status"]), (202, &json!("spooled")), "{nowhere:?}");
    let call = format!("/v1/rpc/ledger.do?queue={}&wait=3m", stage.queue);
    let waiting = item(&stage, &json!({}));
    let args = json!({});
    let (called, waited, ()) =
        tokio::join!(front.post(&call, &args), front.post("/v1/jobs?wait=3m", &waiting), async {
            // Both wait in the spool before the broker is there.
            eventually("four wait", async || {
                (front.get("/readyz").await.body["spool"]["jobs"] == 4).then_some(())
            })
            .await;
            node.restart().await.expect("the broker comes back");
        });
    assert_eq!((called.status, &called.body["attempt"]), (200, &json!(1)), "{called:?}");
    assert_eq!((waited.status, &waited.body["status"]), (200, &json!("succeeded")), "{waited:?}");
    assert_eq!(ended(&front, &late.id()).await["status"], "succeeded");
    let end = ended(&front, &nowhere.id()).await;
    assert_eq!((&end["status"], &end["error"]["reason"]), (&json!("dead"), &json!("unroutable")), "{end}");
    worker.stop().await;
    node.stop().await;
}

/// A full spool refuses at once; what it holds is forwarded by the command line, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_refuses_and_can_be_drained_by_hand() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let mut front = spooling(&stage, "spool", &[("HOPLINE_SPOOL_MAX_JOBS", "5")]).await;
    front.until_ready().await;
    let mut worker = stage.ledger_worker(&[]);
    stage.ledger().until_all_ended(&[front.submit(&stage, json!({})).await]).await;
    away(&mut node, &front).await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        let answer = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        jobs.push(answer.id());
    }
    let full = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
    assert_eq!((full.status, full.code()), (503, "spool_full"), "{full:?}");
    let ready = front.get("/readyz").await;
    assert_eq!((ready.status, &ready.body["spool"]["jobs"]), (503, &json!(5)), "{ready:?}");

    let drain = |stage: &Stage, more: &[&str]| {
        let mut command = stage.command(&crate::support::process::hopline());
        command.args(["spool", "drain", "--path", "spool"]).args(more);
        command
    };
    let locked = drain(&stage, &[]).output().expect("it runs");
    assert!(!locked.status.success());
    assert!(String::from_utf8_lossy(&locked.stderr).contains("belongs to another process"), "{locked:?}");
    front.process.stop().await;
    let log = front.process.log();
    assert!(log.contains("accepted jobs are left in the spool"), "{log}");

    let early = drain(&stage, &["--timeout", "1s"]).output().expect("it runs");
    assert_eq!(early.status.code(), Some(1), "{early:?}");
    assert_eq!(String::from_utf8_lossy(&early.stdout), "0 jobs forwarded, 5 left\n");
    node.restart().await.expect("the broker comes back");
    let drained = drain(&stage, &["--timeout", "60s"]).output().expect("it runs");
    assert!(drained.status.success(), "{drained:?}");
    assert_eq!(String::from_utf8_lossy(&drained.stdout), "5 jobs forwarded, 0 left\n");
    stage.ledger().until_all_ended(&jobs).await;
    let missing = stage.command(&crate::support::process::hopline()).args(["spool", "drain"]).output();
    assert_eq!(missing.expect("it runs").status.code(), Some(2));
    worker.stop().await;
    node.stop().await;
}

/// The broker is there and takes nothing: what cannot be on its way goes to the spool, what may be is said to be unsure.
#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_fills_the_spool() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let soon = ("HOPLINE_AMQP_CONFIRM_TIMEOUT", "1s");
    let front = spooling(&stage, "spool", &[soon]).await;
    front.until_ready().await;
    let mut worker = stage.ledger_worker(&[]);
    stage.ledger().until_all_ended(&[front.submit(&stage, json!({})).await]).await;
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await.expect("an alarm");
    // The broker says that it is blocked only to who publishes: the first submit finds out, and its publish is pending.
    let first = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
    assert_eq!((first.status, first.code()), (504, "confirm_timeout"), "{first:?}");
    let mut jobs = vec![first.job()];
    for _ in 0..10 {
        let answer = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
        assert_eq!((answer.status, &answer.body["status"]), (202, &json!("spooled")), "{answer:?}");
        jobs.push(answer.id());
    }
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]).await.expect("the end of the alarm");
    stage.ledger().until_all_ended(&jobs).await;
    let ends = stage.ledger().count("end");
    assert!(ends.values().all(|count| *count == 1), "{ends:?}");
    emptied(&front).await;
    worker.stop().await;
    node.stop().await;
}

/// Without a broker from the start: accepted, kept, and the queue is chosen when it is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_kind_finds_its_queue_when_the_broker_is_there() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let mut worker = stage.ledger_worker(&[]);
    worker.until_logged("caught up with the control log", "kinds=").await;
    node.stop().await;
    let front = spooling(&stage, "spool", &[("HOPLINE_AMQP_QUEUES", "default")]).await;
    eventually("it listens", async || (front.get("/healthz").await.status == 200).then_some(())).await;
    let answer = front.post("/v1/jobs", &json!({ "kind": "ledger.do" })).await;
    assert_eq!((answer.status, &answer.body["status"]), (202, &json!("spooled")), "{answer:?}");
    node.restart().await.expect("the broker comes back");
    stage.ledger().until_all_ended_within(Duration::from_secs(90), &[answer.id()]).await;
    assert_eq!(ended(&front, &answer.id()).await["queue"], json!(stage.queue));
    worker.stop().await;
    node.stop().await;
}

/// A queue that refuses keeps its own jobs in the spool, in order, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_refuses_holds_up_no_other() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let front = spooling(&stage, "spool", &[("HOPLINE_AMQP_QUEUES", "default")]).await;
    front.until_ready().await;
    let one = [("HOPLINE_WORKER_CONCURRENCY", "1"), ("HOPLINE_WORKER_PREFETCH", "1")];
    let mut worker = stage.ledger_worker(&one);
    stage.ledger().until_all_ended(&[front.submit(&stage, json!({})).await]).await;
    worker.stop().await;
    let pattern = format!("^{}$", stage.work_queue().replace('.', "\\."));
    let limit = ["set_policy", "--apply-to", "queues", "small", &pattern, r#"{"max-length":3}"#];
    node.ctl(&limit).await.expect("a policy");
    let mut jobs = Vec::new();
    eventually("the queue is full", async || {
        let answer = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
        if answer.status == 202 {
            jobs.push(answer.id());
        }
        (answer.status == 503 && answer.code() == "broker_refused").then_some(())
    })
    .await;
    away(&mut node, &front).await;
    let elsewhere = json!({ "kind": "ledger.do", "queue": "default" });
    for number in 0..30 {
        let answer = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
        assert_eq!((answer.status, &answer.body["status"]), (202, &json!("spooled")), "{answer:?}");
        jobs.push(answer.id());
        if number % 10 == 0 {
            let other = front.post("/v1/jobs", &elsewhere).await;
            assert_eq!((other.status, &other.body["status"]), (202, &json!("spooled")), "{other:?}");
        }
    }
    node.restart().await.expect("the broker comes back");
    eventually("a job of the other queue goes straight", async || {
        let answer = front.post("/v1/jobs", &elsewhere).await;
        (answer.status == 202 && answer.body["status"] == "queued").then_some(())
    })
    .await;
    front
        .process
        .until_logged("jobs are left in the spool for now", "the broker refused jobs for queue")
        .await;
    let behind = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
    assert_eq!((behind.status, &behind.body["status"]), (202, &json!("spooled")), "{behind:?}");
    jobs.push(behind.id());
    // It takes more as this one makes room. (RabbitMQ goes on refusing on a channel if the limit itself goes away.)
    let mut worker = stage.ledger_worker(&one);
    stage.ledger().until_all_ended(&jobs).await;
    emptied(&front).await;
    let ran = stage.ledger().lines().into_iter().filter(|line| line.word == "start").map(|line| line.job);
    let mut ran: Vec<String> = ran.filter(|job| jobs.contains(job)).collect();
    // What is on its way together while room is made may change places.
    ran.sort();
    jobs.sort();
    assert_eq!(ran, jobs, "each ran once");
    worker.stop().await;
    node.stop().await;
}

/// A message over the broker's `max_message_size` closes the channel: it is found, set aside, and nothing else is published
/// again and again beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_broker_never_takes_holds_up_no_other() {
    let dir = new_folder();
    let small =
        |options: &mut hopline::up::NodeOptions| options.extra_conf = "max_message_size = 65536\n".to_owned();
    let (mut node, broker) = Broker::private_with(&dir, small).await;
    let stage = Stage::private(broker, dir);
    let front = spooling(&stage, "spool", &[("HOPLINE_AMQP_QUEUES", "default")]).await;
    front.until_ready().await;
    let mut worker = stage.ledger_worker(&[]);
    stage.ledger().until_all_ended(&[front.submit(&stage, json!({})).await]).await;
    away(&mut node, &front).await;
    let big = item(&stage, &json!({ "note": "x".repeat(100_000) }));
    let (mut jobs, mut large) = (Vec::new(), Vec::new());
    for number in 0..40 {
        let body = if number % 20 == 5 { big.clone() } else { item(&stage, &json!({})) };
        let answer = front.post("/v1/jobs", &body).await;
        assert_eq!((answer.status, &answer.body["status"]), (202, &json!("spooled")), "{answer:?}");
        if number % 20 == 5 {
            large.push(answer.id());
        } else {
            jobs.push(answer.id());
        }
        let elsewhere = front.post("/v1/jobs", &json!({ "kind": "ledger.do", "queue": "default" })).await;
        assert_eq!(elsewhere.status, 202, "{elsewhere:?}");
    }
    node.restart().await.expect("the broker comes back");
    stage.ledger().until_all_ended(&jobs).await;
    let spool = eventually("those two alone are left", async || {
        let spool = front.get("/readyz").await.body["spool"].clone();
        (spool["jobs"] == 2 && spool["unreadable"] == 2).then_some(spool)
    })
    .await;
    // The first window may have been stored whole before the channel was closed, and once more one by one.
    let others = stage.broker.waiting("hltest.q.default").await;
    assert!((40..=80).contains(&others), "{others} messages of 40 jobs");
    for id in &large {
        assert_eq!(front.get(&format!("/v1/jobs/{id}")).await.body["status"], "spooled");
    }
    // Neither waits for those.
    let fresh = front.post("/v1/jobs", &item(&stage, &json!({}))).await;
    assert_eq!((fresh.status, &fresh.body["status"]), (202, &json!("queued")), "{fresh:?}");
    let direct = front.post("/v1/jobs", &big).await;
    assert_eq!((direct.status, direct.code()), (413, "too_large"), "{direct:?}");
    stage.ledger().until_all_ended(&[fresh.id()]).await;
    assert_eq!(front.get("/readyz").await.body["spool"], spool);
    assert_eq!(stage.broker.waiting("hltest.q.default").await, others, "nothing is published again");
    worker.stop().await;
    node.stop().await;
}

/// Where processes declare nothing, a queue whose binding is gone keeps its own jobs in the spool, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_not_bound_holds_up_no_other() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let queues = ("HOPLINE_AMQP_QUEUES", "default,media");
    let applied = stage
        .command(&crate::support::process::hopline())
        .args(["topology", "apply"])
        .envs([queues])
        .output();
    let applied = applied.expect("it runs");
    assert_eq!(applied.status.code(), Some(7), "policies are missing: {applied:?}");
    let narrow = [queues, ("HOPLINE_AMQP_DECLARE", "false")];
    let front = spooling(&stage, "spool", &narrow).await;
    eventually("it is connected", async || {
        (front.get("/readyz").await.body["publish"] == "connected").then_some(())
    })
    .await;
    let connection = stage.broker.connect().await;
    let channel = connection.create_channel().await.expect("a channel");
    for (exchange, key) in [("hltest.direct", "media.normal"), ("hltest.jobs", "media.normal.#")] {
        let none = lapin::types::FieldTable::default();
        let unbound = channel.queue_unbind("hltest.q.media".into(), exchange.into(), key.into(), none);
        unbound.await.expect("unbound");
    }
    let submit =
        async |queue: &str| front.post("/v1/jobs", &json!({ "kind": "ledger.do", "queue": queue })).await;
    let refused = submit("media").await;
    assert_eq!((refused.status, refused.code()), (503, "broker_refused"), "{refused:?}");
    away(&mut node, &front).await;
    for queue in ["media", "default", "media", "default"] {
        let answer = submit(queue).await;
        assert_eq!((answer.status, &answer.body["status"]), (202, &json!("spooled")), "{answer:?}");
    }
    node.restart().await.expect("the broker comes back");
    eventually("the others are forwarded", async || {
        (stage.broker.waiting("hltest.q.default").await == 2).then_some(())
    })
    .await;
    eventually("two are left", async || {
        (front.get("/readyz").await.body["spool"]["jobs"] == 2).then_some(())
    })
    .await;
    let bound = stage
        .command(&crate::support::process::hopline())
        .args(["topology", "apply"])
        .envs([queues])
        .output();
    assert!(bound.is_ok(), "{bound:?}");
    emptied(&front).await;
    assert_eq!(stage.broker.waiting("hltest.q.media").await, 2);
    node.stop().await;
}
