//! Coming back: connections that are closed, queues and exchanges that are deleted, while everything runs on.

use hopline::client::CancelTarget;
use reqwest::Method;

use crate::support::{
    broker::{Broker, Way},
    eventually,
    front::Front,
    probe::quick,
    stage::stage,
};

/// Calls until it works again; any answer in between is a documented refusal or timeout.
async fn wait_for_calls(front: &Front) {
    eventually("calls work again", async || {
        let answer = front.post("/v1/rpc/test.probe?wait=2s", "{}").await;
        assert!([200, 503, 504].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replies_come_again_after_their_connection_was_closed() {
    stage(async |stage| {
        let (_worker, _log) = stage.probes();
        let front = stage.front().await;
        assert_eq!(front.call("test.probe", "1").await, "1");
        let prefix = &stage.config.amqp.prefix;
        stage.rabbit.cut_connections(&[prefix, "http", "consume"], 1).await;
        wait_for_calls(&front).await;
        // Not by chance: the next ones come at once.
        for n in 0..20 {
            assert_eq!(front.call("test.probe", &n.to_string()).await, n.to_string());
        }
        stage.rabbit.cut_connections(&[prefix, "http", "publish"], 1).await;
        wait_for_calls(&front).await;
        front.wait_ready().await;
        assert_eq!(front.call("test.probe", "2").await, "2");
    })
    .await;
}

#[tokio::test]
async fn a_worker_takes_jobs_again_after_its_connections_were_closed() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let prefix = &stage.config.amqp.prefix;
        // A job that runs while its delivery is lost: the broker hands it to this worker again, which knows it.
        front.submit(r#"{"kind":"test.probe","args":{"script":["held"]}}"#).await;
        log.next().await;
        stage.rabbit.cut_connections(&[prefix, "worker", "consume"], 1).await;
        front.call("test.probe", "\"next\"").await;
        assert_eq!(log.next().await.args, "\"next\"", "taken on a new connection");
        log.release(1);
        stage.rabbit.cut_connections(&[prefix, "worker", "publish"], 1).await;
        // A retry needs that connection; it waits for it.
        let retried =
            front.post("/v1/jobs?wait=40s", r#"{"kind":"test.probe","args":{"script":["fail","ok"]}}"#).await;
        assert_eq!((retried.status, &retried.json()["attempt"]), (200, &2.into()), "{retried:?}");
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.retried, report.dead), (3, 1, 0), "{report:?}");
        assert_eq!(log.take(2).await.len(), 2);
        assert!(log.rest().is_empty(), "nothing ran twice");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
    })
    .await;
}

/// Its connections are cut, and orders are given meanwhile; then the one that jobs come on is back before all others.
#[tokio::test]
async fn a_worker_that_was_cut_off_learns_what_was_ordered_before_it_starts_anything() {
    stage(async |stage| {
        let way = Way::to(&Broker::shared()).await;
        let mut config = stage.config.clone();
        config.amqp.url = serde_json::from_value(way.broker.amqp.clone().into()).expect("an AMQP address");
        let (worker, mut log) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        front.call("test.probe", "1").await;
        log.next().await;
        let wait_depth = async |consumers: u32, ready: Option<u32>| {
            eventually(&format!("{consumers} consumers, {ready:?} ready"), async || {
                let depth = front.client.depth(&stage.queue).await.ok().flatten()?;
                let is_so = depth.consumers == consumers && ready.is_none_or(|ready| depth.ready == ready);
                is_so.then_some(())
            })
            .await;
        };
        let cut_off = async || {
            way.hold(Some(""));
            way.cut();
            // The last job's acknowledgement may be lost with its connection: the worker will know it again.
            wait_depth(0, None).await;
        };

        cut_off().await;
        let id = front.submit(r#"{"kind":"test.probe"}"#).await;
        let target = CancelTarget {
            id: id.parse().expect("an id"),
            run: 1,
            attempt: 1,
            step: 0,
            kind: None,
            queue: stage.queue.clone(),
            by: None,
            reason: None,
        };
        front.client.request_cancel(vec![target]).await.expect("an order");
        way.hold(Some(" control"));
        wait_depth(1, Some(0)).await;
        assert!(log.rest().is_empty(), "it has the job, and does not know yet");
        way.hold(None);
        assert_eq!(front.settled(&id).await["status"], "cancelled");

        cut_off().await;
        front.submit(r#"{"kind":"test.probe","args":2}"#).await;
        front.client.pause(&stage.queue, true, None).await.expect("an order");
        way.hold(Some(" control"));
        wait_depth(1, Some(0)).await;
        way.hold(None);
        wait_depth(0, Some(1)).await;
        assert!(log.rest().is_empty(), "nothing of a paused queue is started");
        front.client.pause(&stage.queue, false, None).await.expect("an order");
        assert_eq!(log.next().await.args, "2");
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.cancelled), (2, 1), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn a_worker_declares_its_queue_again() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        front.call("test.probe", "1").await;
        // The front declares it before the worker hears of it, which RabbitMQ 3.10 answers by forgetting the worker.
        stage.rabbit.delete_queue(&stage.work_queue()).await;
        wait_for_calls(&front).await;
        assert_eq!(front.call("test.probe", "3").await, "3");
        assert!(!log.rest().is_empty());
        let report = worker.stop().await;
        assert_eq!(report.dead, 0, "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn what_a_worker_publishes_to_is_declared_again() {
    stage(async |stage| {
        let (worker, _log) = stage.probes();
        let front = stage.front().await;
        front.call("test.probe", "1").await;
        // A publish to an exchange that is missing is a channel error: the job must not be lost with it.
        let path = format!("exchanges/{{vhost}}/{}", stage.names.dead());
        stage.rabbit.done(Method::DELETE, &path, None).await;
        let id = front.submit(r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#).await;
        assert_eq!(stage.rabbit.take(&stage.dead_queue()).await.id(), id);
        // A queue that is missing returns the message.
        stage.rabbit.delete_queue(&stage.dead_queue()).await;
        let id = front.submit(r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#).await;
        assert_eq!(stage.rabbit.take(&stage.dead_queue()).await.id(), id);
        assert_eq!(stage.rabbit.count(&stage.dead_queue()).await, Some(0), "each once");
        // The replies' exchange: a caller loses its reply, the job does not suffer, and the next reply arrives.
        let path = format!("exchanges/{{vhost}}/{}", stage.names.replies());
        stage.rabbit.done(Method::DELETE, &path, None).await;
        wait_for_calls(&front).await;
        assert_eq!(worker.stop().await.dead, 2);
    })
    .await;
}
