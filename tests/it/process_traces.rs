//! Traces through real processes: from a caller's header through jobs that enqueue jobs to a collector, and what becomes
//! of jobs when the collector does not answer. And what no log line may hold.

use std::{env, time::Duration};

use hopline::{Config, Context, EnqueueOptions, Job, JobError, JobResult, Options, RetryPolicy, Worker};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::Instrument;

use crate::{
    process_worker::stop_within,
    support::{
        broker::{Broker, crypto, header},
        otlp::{Collector, Seen},
        process::{Process, Stage, eventually},
    },
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// Spans are sent ten times a second.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "100");

/// Fails so often, then enqueues a [`Second`].
#[derive(Serialize, Deserialize)]
struct First {
    #[serde(default)]
    failures: u32,
    /// Whether the second is enqueued within a span of the worker's own.
    #[serde(default)]
    own_span: bool,
    /// Whether the second ends dead.
    #[serde(default)]
    dead: bool,
    #[serde(default)]
    secret: String,
}

impl Job for First {
    const KIND: &'static str = "trace.first";
    type Output = ();
}

#[derive(Serialize, Deserialize)]
struct Second {
    dead: bool,
    secret: String,
}

impl Job for Second {
    const KIND: &'static str = "trace.second";
    type Output = String;
}

async fn first(job: First, cx: Context) -> JobResult<()> {
    tracing::info!("the first runs");
    if cx.attempt() <= job.failures {
        return Err(JobError::retry("flaky", "as it was told"));
    }
    let options = EnqueueOptions { queue: Some(cx.queue().clone()), ..EnqueueOptions::default() };
    let second = Second { dead: job.dead, secret: job.secret };
    let enqueuing = cx.client().enqueue_with(&second, options);
    if job.own_span {
        enqueuing.instrument(tracing::info_span!("own work")).await?;
    } else {
        enqueuing.await?;
    }
    Ok(())
}

async fn second(job: Second, cx: Context) -> JobResult<String> {
    // On a thread of the pool, which is to know what it works for.
    cx.cpu(|_| {
        tracing::info!("the second runs");
        Ok(())
    })
    .await?;
    if job.dead { Err(JobError::fatal("told", "as it was told")) } else { Ok(job.secret) }
}

// No test: the entry point of the worker processes, as `process_ledger::ledger_worker` is.
#[test]
#[ignore = "the worker that other tests start"]
fn trace_worker() {
    let Ok(queue) = env::var("HOPLINE_TEST_TRACES") else { return };
    let options = || {
        let quick = RetryPolicy { initial: Duration::from_millis(100), ..RetryPolicy::default() };
        Options::new().queue(queue.clone()).retry(quick)
    };
    let worker = Worker::new(Config::load().expect("a configuration"))
        .register_with(first, options())
        .register_with(second, options());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(worker.run()).expect("the worker runs");
}

fn worker(stage: &Stage, variables: &[(&str, &str)]) -> Process {
    let mut command = stage.command(&env::current_exe().expect("the tests' own program"));
    command
        .args(["process_traces::trace_worker", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("HOPLINE_TEST_TRACES", &stage.queue)
        .envs([SOON, ("HOPLINE_LOG_FORMAT", "json")])
        .envs(variables.iter().copied());
    Process::spawn(command, &stage.dir, "worker")
}

/// The log lines of a process with this message.
async fn until_said(process: &Process, message: &str) -> Value {
    eventually(&format!("`{message}` is logged"), async || lines(process, message).into_iter().next()).await
}

fn lines(process: &Process, message: &str) -> Vec<Value> {
    let log = process.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

fn item(stage: &Stage, args: &Value) -> Value {
    json!({ "kind": First::KIND, "queue": stage.queue, "args": args })
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_http_through_two_chained_jobs() {
    let (stage, collector) = (Stage::new(), Collector::start().await);
    let to = ("HOPLINE_TELEMETRY_OTLP_ENDPOINT", collector.url.as_str());
    let front = stage.serve_with(&[to, SOON]).await;
    // Not by our own key: the standard variables do, too.
    let worker = worker(
        &stage,
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url), ("OTEL_SERVICE_NAME", "chain"), SOON],
    );
    front.until_ready().await;
    let parent = traceparent("01");
    let sent = [("traceparent", parent.as_str()), ("tracestate", "vendor=x")];
    let body = item(&stage, &json!({ "failures": 1, "own_span": true }));
    let answer = front.post_with("/v1/jobs", &body, &sent).await;
    assert_eq!(answer.status, 202, "{answer:?}");

    let spans = collector.until(TRACE, 7).await;
    let one = |name: &str, say: &str, what: &str| -> Seen {
        let found: Vec<&Seen> = spans
            .iter()
            .filter(|span| span.name.starts_with(name) && span.says(say).ends_with(what))
            .collect();
        let [one] = found[..] else { panic!("{name} {say} {what}: {found:?} of {spans:#?}") };
        one.clone()
    };
    let (kind, attempt) = ("hopline.job.kind", "hopline.job.attempt");
    let request = one("POST /v1/jobs", "http.route", "/v1/jobs");
    let publish = one("publish ", kind, First::KIND);
    let mut attempts: Vec<&Seen> = spans.iter().filter(|span| span.parent == publish.id).collect();
    attempts.sort_by_key(|span| span.says(attempt));
    let [failed, done] = attempts[..] else { panic!("attempts of the first: {spans:#?}") };
    let own = one("own work", "", "");
    let chained = one("publish ", kind, Second::KIND);
    let last = spans.iter().find(|span| span.parent == chained.id).expect("the second's attempt");

    assert_eq!((request.parent.as_str(), publish.parent.as_str()), (CALLER, request.id.as_str()));
    assert_eq!((failed.says(attempt), done.says(attempt)), ("1", "2"), "attempts lie side by side");
    assert_eq!((own.parent.as_str(), chained.parent.as_str()), (done.id.as_str(), own.id.as_str()));
    assert_eq!([request.kind, publish.kind, failed.kind, chained.kind, last.kind], [2, 4, 5, 4, 5]);
    assert_eq!((request.service.as_str(), last.service.as_str()), ("hopline", "chain"));
    assert_eq!(spans.len(), 7, "{spans:#?}");

    assert_eq!((request.says("http.request.method"), request.says("url.scheme")), ("POST", "http"));
    assert_eq!((request.says("http.response.status_code"), request.says("url.path")), ("202", "/v1/jobs"));
    assert_eq!(request.says("hopline.job.id"), answer.id());
    let (exchange, key) = (format!("{}.direct", stage.prefix), format!("{}.normal", stage.queue));
    for (span, destination, operation) in [
        (&publish, format!("{exchange}:{key}"), ["publish", "send"]),
        (failed, format!("{exchange}:{key}:{}", stage.work_queue()), ["process", "process"]),
    ] {
        assert_eq!(span.name, format!("{} {destination}", operation[0]));
        assert_eq!(span.says("messaging.system"), "rabbitmq");
        assert_eq!(span.says("messaging.destination.name"), destination);
        assert_eq!([span.says("messaging.operation.name"), span.says("messaging.operation.type")], operation);
        assert_eq!(span.says("messaging.rabbitmq.destination.routing_key"), key);
        assert_eq!(span.says("messaging.message.id"), answer.id());
    }
    assert_eq!((failed.failed, failed.says("error.type")), (true, "flaky"));
    assert_eq!((done.failed, done.says("hopline.outcome")), (false, "succeeded"));

    // The log lines of an attempt name it.
    let said = until_said(&worker, "the second runs").await;
    assert_eq!((&said["trace_id"], &said["span_id"]), (&json!(TRACE), &json!(last.id)));
    assert_eq!((&said["kind"], &said["queue"]), (&json!(Second::KIND), &json!(stage.queue)));
    assert_eq!((&said["attempt"], &said["job.id"]), (&json!(1), &json!(last.says("messaging.message.id"))));
    let said = until_said(&worker, "attempt failed").await;
    assert_eq!((&said["span_id"], &said["job.id"]), (&json!(failed.id), &json!(answer.id())));
    // Probes are no requests that anybody wants to see.
    assert!(collector.all().iter().all(|span| !span.name.contains("/readyz")), "{:#?}", collector.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_caller_does_not_sample_is_not_exported() {
    let (stage, collector) = (Stage::new(), Collector::start().await);
    let to = [("HOPLINE_TELEMETRY_OTLP_ENDPOINT", collector.url.as_str()), SOON];
    let front = stage.serve_with(&to).await;
    let worker = worker(&stage, &to);
    front.until_ready().await;
    let parent = traceparent("00");
    let unsampled = [("traceparent", parent.as_str())];
    front.post_with("/v1/jobs", &item(&stage, &json!({ "dead": true })), &unsampled).await;
    let dead = eventually("the second is dead", async || {
        stage.broker.look(&stage.dead_queue()).await.into_iter().next()
    });
    let carried = header(&dead.await, "traceparent").expect("a context");
    assert!(carried.starts_with(&format!("00-{TRACE}-")) && carried.ends_with("-00"), "{carried}");
    assert_eq!(until_said(&worker, "the second runs").await["trace_id"], TRACE);
    // What comes after it is there, so it would be, too.
    let other = "1af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{other}-{CALLER}-01");
    front.post_with("/v1/jobs", &item(&stage, &json!({})), &[("traceparent", parent.as_str())]).await;
    collector.until(other, 5).await;
    assert!(collector.all().iter().all(|span| span.trace != TRACE), "{:#?}", collector.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_export_the_context_goes_on_all_the_same() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let worker = worker(&stage, &[]);
    let parent = traceparent("01");
    let sent = [("traceparent", parent.as_str()), ("tracestate", "vendor=x")];
    front.post_with("/v1/jobs", &item(&stage, &json!({ "failures": 1, "dead": true })), &sent).await;
    let dead = eventually("the second is dead", async || {
        stage.broker.look(&stage.dead_queue()).await.into_iter().next()
    });
    let dead = dead.await;
    assert_eq!(header(&dead, "traceparent").as_ref(), Some(&parent));
    assert_eq!(header(&dead, "tracestate").as_deref(), Some("vendor=x"));
    let said = until_said(&worker, "the second runs").await;
    assert_eq!((&said["trace_id"], said.get("span_id")), (&json!(TRACE), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_up_neither_jobs_nor_the_end() {
    let (stage, collector) = (Stage::new(), Collector::hanging().await);
    let to = [("HOPLINE_TELEMETRY_OTLP_ENDPOINT", collector.url.as_str()), SOON];
    let mut front = stage.serve_with(&to).await;
    let mut worker = worker(&stage, &to);
    front.until_ready().await;
    for _ in 0..20 {
        let answer = front.post("/v1/jobs?wait=60s", &item(&stage, &json!({}))).await;
        assert_eq!(answer.body["status"], "succeeded", "{answer:?}");
    }
    stop_within(&mut worker, Duration::from_secs(20)).await;
    stop_within(&mut front.process, Duration::from_secs(20)).await;
    assert_eq!(lines(&worker, "spans that the collector has not taken are left behind").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_is_said_once() {
    let stage = Stage::new();
    // The port of one that was there.
    let gone = Collector::start().await;
    let url = gone.url.clone();
    drop(gone);
    let front = stage.serve().await;
    let worker = worker(&stage, &[("HOPLINE_TELEMETRY_OTLP_ENDPOINT", url.as_str())]);
    let away = "traces cannot be exported and are dropped";
    for _ in 0..5 {
        front.post("/v1/jobs?wait=60s", &item(&stage, &json!({}))).await;
        // Each in a batch of its own, most likely.
        until_said(&worker, away).await;
    }
    let back = Collector::at(url.strip_prefix("http://").expect("an address"), false).await;
    let parent = traceparent("01");
    eventually("a span comes", async || {
        let sent = [("traceparent", parent.as_str())];
        front.post_with("/v1/jobs?wait=60s", &item(&stage, &json!({})), &sent).await;
        back.all().into_iter().next()
    })
    .await;
    let said = until_said(&worker, "traces are exported again").await;
    assert_eq!(said["collector"], url);
    assert_eq!(lines(&worker, away).len(), 1, "{}", worker.log());
}

/// A login of the broker whose password is in no other word.
struct Login {
    broker: Broker,
    url: String,
}

impl Login {
    async fn new(broker: Broker, name: &str, password: &str) -> Self {
        let url = format!("{}/api/users/{name}", broker.management);
        let client = reqwest::Client::new();
        let user = json!({ "password": password, "tags": "" });
        let made = client.put(&url).json(&user).send().await.expect("an answer");
        assert!(made.status().is_success(), "{made:?}");
        let rights = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        let at = format!("{}/api/permissions/%2f/{name}", broker.management);
        let given = client.put(at).json(&rights).send().await.expect("an answer");
        assert!(given.status().is_success(), "{given:?}");
        let (_, host) = broker.amqp.rsplit_once('@').expect("a login");
        let amqp = format!("amqp://{name}:{password}@{host}");
        Self { broker: Broker { amqp, management: broker.management }, url }
    }

    async fn remove(self) {
        let _ = reqwest::Client::new().delete(self.url).send().await;
    }
}

/// Neither args nor outputs nor what proves who somebody is, however much is logged, in either format.
#[tokio::test(flavor = "multi_thread")]
async fn neither_args_nor_secrets_are_logged() {
    const ARGS: &str = "canary-of-args-5d1c";
    const PASSWORD: &str = "canary-of-password-77aa";
    const BEARER: &str = "canary-of-collector-31f0";
    crypto();
    let name = format!("hlt-canary-{}", std::process::id());
    let login = Login::new(Broker::shared(), &name, PASSWORD).await;
    let (stage, collector) = (Stage::over(login.broker.clone()), Collector::start().await);
    let authorization = format!("authorization=Bearer {BEARER}");
    let variables = [
        ("HOPLINE_TELEMETRY_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", authorization.as_str()),
        ("HOPLINE_LOG_LEVEL", "info,hopline=trace,it=trace"),
        SOON,
    ];
    let front = stage.serve_with(&variables).await;
    let worker = worker(&stage, &variables);
    front.until_ready().await;
    let secret = json!({ "secret": ARGS });
    for (kind, args) in [
        (First::KIND, secret.clone()),
        (First::KIND, json!({ "secret": ARGS, "dead": true, "failures": 1 })),
        // Does not fit the type, which says what it found.
        (First::KIND, json!({ "failures": ARGS })),
        (Second::KIND, json!(ARGS)),
        (Second::KIND, json!({ "dead": false, "secret": ARGS })),
        ("trace.unknown", secret.clone()),
    ] {
        let body = json!({ "kind": kind, "queue": stage.queue, "args": args, "tags": ["t"] });
        front.post("/v1/jobs", &body).await;
        front.post("/v1/jobs/batch", &json!([body])).await;
    }
    let path = format!("/v1/rpc/{}?queue={}", Second::KIND, stage.queue);
    let called = front.post(&path, &json!({ "dead": false, "secret": ARGS })).await;
    assert_eq!(called.body, json!(ARGS));
    // What is not understood is quoted to nobody but its sender.
    front.post("/v1/jobs", &json!({ "kind": ARGS.to_uppercase(), "args": ARGS })).await;
    eventually("what must die has", async || (lines(&worker, "dead").len() >= 6).then_some(())).await;
    let (mut front, mut worker) = (front, worker);
    worker.stop().await;
    front.process.stop().await;
    let logs = [worker.log(), front.process.log()];
    assert!(logs[0].contains("the second runs") && logs[1].contains("http.route"), "much is logged");
    for (log, never) in logs.iter().flat_map(|log| [ARGS, PASSWORD, BEARER].map(|never| (log, never))) {
        let line = log.lines().find(|line| line.contains(never));
        assert!(line.is_none(), "{never}: {line:?}");
    }
    let spans = format!("{:?}", collector.all());
    assert!(spans.contains(First::KIND) && !spans.contains("canary"), "spans hold no args either");
    drop(stage);
    login.remove().await;
}
