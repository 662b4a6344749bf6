//! The control log: pausing queues, ordering runs to be cancelled, and who is there to work.

use std::time::Duration;

use hopline::{
    Client, Context, Job, JobResult, QueueName, Worker,
    client::{CancelTarget, SubmitError, WorkerInfo},
    job::JobId,
};
use lapin::{
    BasicProperties,
    options::{QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::{Value, json};

use crate::support::{
    eventually,
    front::Front,
    probe::{Notes, Probe, notes, probe, quick},
    stage::{Stage, stage},
};

const HELD: &str = r#"{"kind":"test.probe","args":{"script":["held"]}}"#;
const QUICK: &str = r#"{"kind":"test.probe"}"#;

impl Stage {
    /// Writes a record to the control log as somebody else does.
    pub(crate) async fn write_control(&self, kind: &str, key: &str, body: &str) {
        let properties = BasicProperties::default().with_type(kind.into()).with_delivery_mode(2);
        self.rabbit.publish_raw(&self.names.control(), key, properties, body.as_bytes()).await;
    }
}

fn target(id: JobId, queue: &QueueName) -> CancelTarget {
    CancelTarget {
        id,
        run: 1,
        attempt: 1,
        step: 0,
        kind: None,
        queue: queue.clone(),
        by: Some("ops".into()),
        reason: Some("not needed".into()),
    }
}

async fn wait_paused(client: &Client, queue: &QueueName, paused: bool) {
    eventually("the pause is known", async || (client.paused().contains_key(queue) == paused).then_some(()))
        .await;
}

/// Waits until a queue has so many consumers and so many jobs that no worker has.
async fn wait_depth(front: &Front, queue: &QueueName, consumers: u32, ready: u32) {
    eventually(&format!("{consumers} consumers, {ready} ready"), async || {
        let depth = front.client.depth(queue).await.ok().flatten()?;
        (depth.consumers == consumers && depth.ready == ready).then_some(())
    })
    .await;
}

/// Waits until the workers that are there look as they should.
async fn wait_workers(front: &Front, what: &str, right: impl Fn(&[WorkerInfo]) -> bool) -> Vec<WorkerInfo> {
    eventually(what, async || Some(front.client.workers()).filter(|workers| right(workers))).await
}

#[tokio::test]
async fn a_pause_stops_a_queue_until_it_is_resumed() {
    stage(async |stage| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let mut config = stage.config.clone();
        config.worker.health = Some(address);
        config.worker.concurrency = 1;
        let (worker, mut log) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        let health = async || {
            let answer = reqwest::get(format!("http://{address}/healthz")).await.expect("an answer");
            (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
        };
        for body in [HELD, QUICK, QUICK, QUICK] {
            front.submit(body).await;
        }
        log.next().await;
        wait_depth(&front, &stage.queue, 1, 0).await;
        assert_eq!(health().await.0, 200);

        front.client.pause(&stage.queue, true, Some("ops".into())).await.expect("an order");
        let pause = front.client.paused()[&stage.queue].clone();
        assert_eq!(pause.by.as_deref(), Some("ops"));
        // What waited is handed back, what runs goes on.
        stage.rabbit.wait_count(&stage.work_queue(), 3).await;
        eventually("its consumer is gone, and that is no illness", async || {
            let (status, body) = health().await;
            assert_eq!(status, 200, "{body}");
            let expected = json!({"consuming": {stage.queue.as_str(): false}, "paused": [stage.queue]});
            (body == expected).then_some(())
        })
        .await;
        log.release(1);
        front.submit(QUICK).await;
        wait_depth(&front, &stage.queue, 0, 4).await;
        assert!(log.rest().is_empty(), "nothing starts");

        front.client.pause(&stage.queue, false, None).await.expect("an order");
        assert_eq!(log.take(4).await.iter().map(|start| start.running).max(), Some(1));
        wait_depth(&front, &stage.queue, 1, 0).await;
        assert_eq!(health().await.0, 200);
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.handed_back, report.dead), (5, 3, 0), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn a_pause_counts_what_still_runs_against_the_concurrency() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.worker.concurrency = 1;
        let (_worker, mut log) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        front.submit(HELD).await;
        log.next().await;
        front.client.pause(&stage.queue, true, None).await.expect("an order");
        let paused = |workers: &[WorkerInfo]| workers.iter().any(|worker| worker.queues[0].paused);
        wait_workers(&front, "a worker that knows of the pause", paused).await;
        front.client.pause(&stage.queue, false, None).await.expect("an order");
        front.submit(QUICK).await;
        // Taken, but not started: the worker says that it waits.
        let waits = |workers: &[WorkerInfo]| workers.iter().any(|worker| worker.queues[0].waiting == 1);
        let workers = wait_workers(&front, "a job that waits", waits).await;
        assert_eq!((workers[0].queues[0].running, workers[0].jobs.len()), (1, 1));
        assert!(log.rest().is_empty());
        log.release(1);
        assert_eq!(log.next().await.running, 1);
    })
    .await;
}

#[tokio::test]
async fn a_pause_holds_through_restarts() {
    stage(async |stage| {
        let other = stage.other_queue("open");
        let front = stage.front().await;
        front.client.pause(&stage.queue, true, Some("ops".into())).await.expect("an order");
        front.submit(QUICK).await;
        // A worker that starts now takes from its other queue only.
        let (notes, mut log) = notes();
        let worker = Worker::new(stage.config.clone()).state(notes.clone());
        let worker = worker.register_with(probe, quick().queue(stage.queue.as_str()));
        let worker = worker.register_with(echo, quick().queue(other.as_str()));
        let worker = stage.work(worker);
        let known =
            |workers: &[WorkerInfo]| workers.len() == 1 && workers[0].queues.iter().any(|share| share.paused);
        let workers = wait_workers(&front, "a worker that knows of the pause", known).await;
        let paused: Vec<&str> =
            workers[0].queues.iter().filter(|share| share.paused).map(|share| share.queue.as_str()).collect();
        assert_eq!(paused, [stage.queue.as_str()]);
        front.call("test.echo", "1").await;
        wait_depth(&front, &stage.queue, 0, 1).await;

        // All processes but the broker are replaced.
        worker.stop().await;
        front.client.close().await;
        let front = stage.front().await;
        let pause = front.client.paused().get(&stage.queue).cloned();
        assert_eq!(pause.and_then(|pause| pause.by).as_deref(), Some("ops"));
        let worker = Worker::new(stage.config.clone()).state(notes);
        let worker = worker.register_with(probe, quick().queue(stage.queue.as_str()));
        let _worker = stage.work(worker.register_with(echo, quick().queue(other.as_str())));
        front.call("test.echo", "2").await;
        wait_depth(&front, &stage.queue, 0, 1).await;
        assert!(log.rest().is_empty());

        // Another process resumes it, with a clock that is slow.
        let body = json!({"queue": stage.queue, "paused": false, "at": "2001-01-01T00:00:00Z"});
        stage.write_control("hopline.pause", "pause.x", &body.to_string()).await;
        let second = stage.front().await;
        assert!(second.client.paused().contains_key(&stage.queue), "an older word changes nothing");
        second.client.pause(&stage.queue, false, None).await.expect("an order");
        log.next().await;
        wait_paused(&front.client, &stage.queue, false).await;
    })
    .await;
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
struct Echo(Value);

impl Job for Echo {
    const KIND: &'static str = "test.echo";
    type Output = Value;
}

async fn echo(job: Echo, _: Context<Notes>) -> JobResult<Value> {
    Ok(job.0)
}

#[tokio::test]
async fn orders_to_cancel_are_known_everywhere_and_later() {
    stage(async |stage| {
        let (front, second) = (stage.front().await, stage.front().await);
        // Whoever listens hears of it.
        let channel = stage.rabbit.channel().await;
        let heard = format!("{}.heard", stage.config.amqp.prefix);
        let (options, none) = (QueueDeclareOptions::default(), FieldTable::default());
        channel.queue_declare(heard.as_str().into(), options, none.clone()).await.expect("a queue");
        let (exchange, key) = (stage.names.events(), format!("job.cancel_requested.{}.#", stage.queue));
        let options = QueueBindOptions::default();
        channel
            .queue_bind(heard.as_str().into(), exchange.as_str().into(), key.as_str().into(), options, none)
            .await
            .expect("bound");

        // More than fit one record.
        let ids: Vec<JobId> = (0..1201).map(|_| JobId::new()).collect();
        let targets = ids.iter().map(|id| target(*id, &stage.queue)).collect();
        front.client.request_cancel(targets).await.expect("orders");
        let is_known = |client: &Client| ids.iter().all(|id| client.cancel_order(*id, 1).is_some());
        assert!(is_known(&front.client), "at once where it was asked for");
        eventually("another process hears of it", async || is_known(&second.client).then_some(())).await;
        let order = second.client.cancel_order(ids[0], 1).expect("an order");
        assert_eq!((order.by.as_deref(), order.reason.as_deref()), (Some("ops"), Some("not needed")));
        assert_eq!(second.client.cancel_order(ids[0], 2), None, "of this run only");
        let event: Value = serde_json::from_slice(&stage.rabbit.take(&heard).await.body).expect("JSON");
        assert_eq!(event[0]["type"], "hopline.job.cancel_requested");
        assert_eq!((&event[0]["data"]["by"], &event[0]["data"]["run"]), (&json!("ops"), &json!(1)));

        let late = stage.front().await;
        assert!(is_known(&late.client), "as soon as it is ready");
        stage.rabbit.delete_queue(&heard).await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_skipped() {
    stage(async |stage| {
        let (good, id) = (stage.other_queue("good"), JobId::new());
        // It declares the exchange and the log.
        let first = stage.front().await;
        let at = "2026-01-01T00:00:00.000Z";
        for (kind, body) in [
            ("hopline.kinds", json!("no object")),
            (
                "hopline.kinds",
                json!({"worker": "w", "kinds": [{"kind": "Not A Kind", "queue": good}, 17, {"kind": "good.kind", "queue": good, "private": true, "more": 1}]}),
            ),
            ("hopline.cancel", json!({"orders": [{"id": "x"}, {"id": id, "run": 1, "at": at}, null]})),
            ("hopline.pause", json!({"queue": "Not A Queue", "paused": true, "at": at})),
            ("hopline.tomorrow", json!({})),
            ("hopline.pause", json!({"queue": good, "paused": true, "at": at})),
        ] {
            stage.write_control(kind, "any.key", &body.to_string()).await;
        }
        let front = stage.front().await;
        assert!(front.client.cancel_order(id, 1).is_some() && front.client.paused().contains_key(&good));
        let kinds = front.client.kinds();
        assert_eq!(kinds.len(), 1);
        assert_eq!((kinds[0].kind.as_str(), &kinds[0].queue, kinds[0].private), ("good.kind", &good, true));
        assert_eq!((kinds[0].announced_by.as_str(), kinds[0].workers.len()), ("w", 0));
        eventually("the first one has read them, too", async || first.client.cancel_order(id, 1)).await;
    })
    .await;
}

#[tokio::test]
async fn workers_are_seen_while_they_are_there() {
    stage(async |stage| {
        let front = stage.front().await;
        let (worker, mut log) = stage.probes_with(&stage.config, quick().private());
        let id = front.submit(HELD).await;
        log.next().await;
        let right = |workers: &[WorkerInfo]| workers.first().is_some_and(|worker| !worker.jobs.is_empty());
        let workers = wait_workers(&front, "a worker that runs a job", right).await;
        let [seen] = &workers[..] else { panic!("{workers:?}") };
        assert_eq!((seen.pid, seen.version.as_str()), (std::process::id(), env!("CARGO_PKG_VERSION")));
        let jobs: Vec<String> = seen.jobs.iter().map(ToString::to_string).collect();
        assert_eq!(jobs, [id]);
        let share = &seen.queues[0];
        assert_eq!((&share.queue, share.concurrency, share.prefetch), (&stage.queue, 10, 20));
        assert_eq!((share.running, share.waiting, share.paused), (1, 0, false));
        assert_eq!(seen.kinds[0].kind.as_str(), Probe::KIND);

        let kinds = front.client.kinds();
        assert_eq!((kinds.len(), kinds[0].private, kinds[0].queue.clone()), (1, true, stage.queue.clone()));
        assert_eq!((&kinds[0].announced_by, &kinds[0].workers), (&seen.worker, &vec![seen.worker.clone()]));
        assert!(kinds[0].announced_at.is_some());

        // On a new connection it is heard again.
        stage.rabbit.cut_connections(&[&stage.config.amqp.prefix, "control"], 1).await;
        log.release(1);
        let idle = |workers: &[WorkerInfo]| workers.len() == 1 && workers[0].jobs.is_empty();
        wait_workers(&front, "the job has ended", idle).await;
        // It says when it ends: nobody waits for its silence.
        worker.stop().await;
        wait_workers(&front, "nobody is there", <[_]>::is_empty).await;
        assert_eq!(front.client.kinds().len(), 1, "its kinds stay");
    })
    .await;
}

#[tokio::test]
async fn the_depth_of_a_queue_is_asked_for_anew() {
    stage(async |stage| {
        let front = stage.front().await;
        let unknown = stage.other_queue("none");
        assert_eq!(front.client.depth(&unknown).await, Ok(None));
        for ready in 1..4 {
            front.submit(QUICK).await;
            wait_depth(&front, &stage.queue, 0, ready).await;
        }
        front.client.close().await;
        let closed = front.client.depth(&stage.queue).await;
        assert!(matches!(closed, Err(SubmitError::Unavailable(_))), "{closed:?}");
    })
    .await;
}

#[tokio::test]
async fn what_is_about_to_leave_the_log_is_written_again() {
    stage(async |stage| {
        let (queue, id) = (stage.other_queue("old"), JobId::new());
        // Somebody paused it 21 days ago.
        let then = jiff::Timestamp::now() - Duration::from_secs(21 * 86_400);
        let pause = json!({"queue": queue, "paused": true, "by": "ops", "at": then.to_string()});
        let cancel = json!({"orders": [{"id": id, "run": 1, "at": then.to_string()}]});
        // The exchange and the log are declared by the first process.
        let first = stage.front().await;
        stage.write_control("hopline.pause", &format!("pause.{queue}"), &pause.to_string()).await;
        stage.write_control("hopline.cancel", "cancel", &cancel.to_string()).await;
        wait_paused(&first.client, &queue, true).await;
        first.client.close().await;
        let _second = stage.front().await;

        // As it was, but for when it was written.
        let records = eventually("both are written again", async || {
            let records = stage.control_log().await;
            let again = records.into_iter().filter(|(timestamp, _)| timestamp.is_some());
            let again: Vec<Value> = again.map(|(_, body)| body).collect();
            let found = |body: &Value| again.contains(body);
            let (pause, cancel) = (in_ms(&pause, then), in_ms(&cancel, then));
            (found(&pause) && found(&cancel)).then_some(again)
        })
        .await;
        let pauses = records.iter().filter(|body| body["queue"].is_string()).count();
        assert_eq!(pauses, 1, "once: whoever starts next sees that it is fresh");
    })
    .await;
}

/// A record with its times as precise as we write them.
fn in_ms(body: &Value, at: jiff::Timestamp) -> Value {
    let text = body.to_string().replace(&at.to_string(), &hopline::event::time_text(at));
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn what_was_written_last_is_written_again_on_a_new_connection() {
    stage(async |stage| {
        let front = stage.front().await;
        let told = async || {
            let records = stage.control_log().await.into_iter();
            let told: Vec<Value> =
                records.map(|(_, body)| body).filter(|body| body["paused"] == true).collect();
            told
        };
        front.client.pause(&stage.queue, true, Some("ops".into())).await.expect("an order");
        let first = eventually("an order in the log", async || told().await.pop()).await;
        stage.rabbit.cut_connections(&[&stage.config.amqp.prefix, "http", "publish"], 1).await;
        let both = eventually("once more", async || Some(told().await).filter(|told| told.len() > 1)).await;
        assert!(both.iter().all(|record| *record == first), "{both:?}");
    })
    .await;
}

#[tokio::test]
async fn a_log_that_was_deleted_is_told_again_what_is_known() {
    stage(async |stage| {
        let (worker, _log) = stage.probes();
        let front = stage.front().await;
        stage.wait_announced(&front.client, Probe::KIND, &stage.queue).await;
        front.client.pause(&stage.queue, true, Some("ops".into())).await.expect("an order");
        let id = JobId::new();
        front.client.request_cancel(vec![target(id, &stage.queue)]).await.expect("an order");
        stage.rabbit.delete_queue(&stage.names.control_log()).await;
        // The new log ends before where they stopped reading. The next word that is written shows it to them.
        eventually("a new process knows it all", async || {
            let late = stage.front().await;
            let known = late.client.paused().contains_key(&stage.queue)
                && late.client.cancel_order(id, 1).is_some()
                && late.client.kinds().len() == 1;
            late.client.close().await;
            known.then_some(())
        })
        .await;
        worker.stop().await;
    })
    .await;
}

impl Stage {
    /// What is in the control log: when it was written, where a record says, and its body.
    async fn control_log(&self) -> Vec<(Option<u64>, Value)> {
        use futures_util::StreamExt;
        use lapin::{
            options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
            types::AMQPValue,
        };
        let channel = self.rabbit.channel().await;
        channel.basic_qos(100, BasicQosOptions::default()).await.expect("a prefetch");
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let (log, options) = (self.names.control_log(), BasicConsumeOptions::default());
        let consumed = channel.basic_consume(log.as_str().into(), "".into(), options, arguments).await;
        let mut consumer = consumed.expect("a consumer");
        let mut records = Vec::new();
        // A stream has no end: what does not come in this time is found the next time.
        while let Ok(Some(Ok(delivery))) =
            tokio::time::timeout(Duration::from_millis(300), consumer.next()).await
        {
            delivery.ack(BasicAckOptions::default()).await.expect("an ack");
            let body = serde_json::from_slice(&delivery.data).unwrap_or_default();
            records.push((*delivery.properties.timestamp(), body));
        }
        let tag = consumer.tag();
        drop(channel.basic_cancel(tag, BasicCancelOptions::default()).await);
        drop(channel.close(200, "done".into()).await);
        records
    }
}
