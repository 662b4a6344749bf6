//! Coming back: connections that are closed, queues and exchanges that are deleted, while everything runs on.

use reqwest::Method;

use crate::support::{eventually, front::Front, stage::stage};

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
        assert_eq!(stage.rabbit.cut_connections(&[prefix, "http", "consume"]).await, 1);
        wait_for_calls(&front).await;
        // Not by chance: the next ones come at once.
        for n in 0..20 {
            assert_eq!(front.call("test.probe", &n.to_string()).await, n.to_string());
        }
        stage.rabbit.cut_connections(&[prefix, "http", "publish"]).await;
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
        stage.rabbit.cut_connections(&[prefix, "worker", "consume"]).await;
        front.call("test.probe", "\"next\"").await;
        assert_eq!(log.next().await.args, "\"next\"", "taken on a new connection");
        log.release(1);
        stage.rabbit.cut_connections(&[prefix, "worker", "publish"]).await;
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
