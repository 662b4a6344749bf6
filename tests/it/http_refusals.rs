//! What the HTTP interface refuses, against a live broker: the documented status and code, and nothing half done.

use std::time::Duration;

use futures_util::future::join_all;
use lapin::types::FieldTable;
use reqwest::Method;
use serde_json::json;

use crate::support::{eventually, front::Front, stage::stage};

/// `[[[…]]]`, so many levels.
fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

/// A problem that a request is answered with.
struct Expected {
    request: reqwest::RequestBuilder,
    status: u16,
    code: &'static str,
    /// A part of the answer.
    says: &'static str,
}

/// Submits that are wrong, each in one way.
fn wrong_submits(front: &Front) -> Vec<Expected> {
    let submit = |status, code, says, body: &str| Expected {
        request: front.request("/v1/jobs", body),
        status,
        code,
        says,
    };
    let probe = |status, code, says, more: &str| {
        submit(status, code, says, &format!(r#"{{"kind":"test.probe",{more}}}"#))
    };
    let mut all = vec![
        submit(400, "malformed_json", "line 2 column", "{\n\"kind\": }"),
        submit(400, "malformed_json", "line 1", ""),
        submit(400, "malformed_json", "line 1", r#"{"kind":"test.probe"} {}"#),
        submit(422, "invalid_request", r#""pointer":"/kind""#, "{}"),
        submit(422, "invalid_request", r#""pointer":"/kind""#, r#"{"kind":""}"#),
        submit(422, "invalid_request", r#""pointer":"/kind""#, r#"{"kind":"No Kind"}"#),
        submit(422, "invalid_request", r#""pointer":"/kind""#, r#"{"kind":7}"#),
        submit(422, "invalid_request", "is reserved", r#"{"kind":"hopline.replay"}"#),
        submit(422, "invalid_request", r#""pointer":"""#, "[]"),
        probe(422, "invalid_request", r#""pointer":"/prio""#, r#""prio":1"#),
        probe(422, "invalid_request", r#""pointer":"/kind""#, r#""kind":"test.probe""#),
        probe(422, "invalid_request", r#""pointer":"/queue""#, r#""queue":"a b""#),
        probe(422, "invalid_request", "is reserved", r#""queue":"hopline-acts""#),
        probe(422, "invalid_request", r#""pointer":"/delay""#, r#""delay":"soon""#),
        probe(422, "invalid_request", r#""pointer":"/delay""#, r#""delay":"31d""#),
        probe(422, "invalid_request", r#""pointer":"/run_at""#, r#""run_at":"tomorrow""#),
        probe(422, "invalid_request", r#""pointer":"/expires_in""#, r#""expires_in":"1s","delay":"2s""#),
        probe(422, "invalid_request", r#""pointer":"/timeout""#, r#""timeout":0"#),
        probe(422, "invalid_request", r#""pointer":"/max_attempts""#, r#""max_attempts":0"#),
        probe(422, "invalid_request", r#""pointer":"/max_attempts""#, r#""max_attempts":"3""#),
        probe(422, "invalid_request", r#""pointer":"/retry/factor""#, r#""retry":{"factor":0}"#),
        probe(422, "invalid_request", r#""pointer":"/tags/1""#, r#""tags":["a","b,c"]"#),
        probe(422, "not_supported", "callback_url", r#""callback_url":"http://example.org""#),
        probe(422, "too_deep", "64 levels", &format!(r#""args":{}"#, nested(65))),
        probe(422, "too_deep", "64 levels", &format!(r#""args":{}"#, nested(30_000))),
        probe(413, "too_large", "limits.args", &format!(r#""args":"{}""#, "x".repeat(4096))),
        submit(413, "too_large", "bytes", &format!(r#"{{"kind":"{}"}}"#, "x".repeat(100_000))),
    ];
    let good = r#"{"kind":"test.probe"}"#;
    let with = |header: &str, value: &str| front.request("/v1/jobs", good).header(header, value);
    let one = |request, status, code, says| Expected { request, status, code, says };
    all.extend([
        one(
            front.request_of("/v1/jobs", "", good),
            415,
            "unsupported_media_type",
            "Content-Type: application/json",
        ),
        one(
            front.request_of("/v1/jobs", "text/plain", good),
            415,
            "unsupported_media_type",
            "application/json",
        ),
        one(with("content-encoding", "gzip"), 415, "unsupported_media_type", ""),
        one(with("idempotency-key", "k 1"), 422, "bad_idempotency_key", "Idempotency-Key"),
        one(with("origin", "https://evil.example"), 403, "cross_origin", ""),
        one(with("sec-fetch-site", "cross-site"), 403, "cross_origin", ""),
        one(with("host", "evil.example"), 403, "bad_host", ""),
        one(front.request("/v1/jobs?wait=x", good), 422, "invalid_request", r#""parameter":"wait""#),
        one(front.request("/v1/jobs?later=1", good), 422, "invalid_request", "later"),
        one(front.request("/v1/job", good), 404, "not_found", ""),
        one(front.request("/readyz", good), 405, "method_not_allowed", ""),
    ]);
    all
}

fn wrong_calls_and_batches(front: &Front) -> Vec<Expected> {
    let call = |status, code, says, path: &str, body: &str| Expected {
        request: front.request(path, body),
        status,
        code,
        says,
    };
    let batch = |status, code, says, body: &str| call(status, code, says, "/v1/jobs/batch", body);
    let six = format!("[{}]", [r#"{"kind":"test.probe"}"#; 6].join(","));
    vec![
        call(400, "malformed_json", "line 1 column", "/v1/rpc/test.probe", "{\"a\":"),
        call(422, "too_deep", "64 levels", "/v1/rpc/test.probe", &nested(65)),
        call(413, "too_large", "limit", "/v1/rpc/test.probe", &format!("\"{}\"", "x".repeat(2048))),
        call(422, "invalid_request", r#""parameter":"kind""#, "/v1/rpc/Not.A.Kind", "{}"),
        call(422, "invalid_request", "is reserved", "/v1/rpc/hopline.cancel", "{}"),
        call(422, "invalid_request", "is reserved", "/v1/rpc/test.probe?queue=hopline-acts", "{}"),
        call(422, "invalid_request", r#""parameter":"wait""#, "/v1/rpc/test.probe?wait=0", "{}"),
        call(
            422,
            "invalid_request",
            r#""parameter":"max_attempts""#,
            "/v1/rpc/test.probe?max_attempts=0",
            "{}",
        ),
        call(422, "invalid_request", "on_timeout", "/v1/rpc/test.probe?on_timeout=later", "{}"),
        batch(422, "invalid_request", "empty", "[]"),
        batch(422, "invalid_request", "", r#"{"kind":"test.probe"}"#),
        batch(400, "malformed_json", "line 1", r#"[{"kind":"test.probe"},"#),
        batch(413, "too_many_items", "http.batch_items", &six),
        batch(413, "too_large", "bytes", &format!("[{}]", " ".repeat(10_000))),
    ]
}

#[tokio::test]
async fn what_is_wrong_is_named_and_not_done() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.limits.args = 1024;
        config.http.batch_items = 5;
        config.http.batch_bytes = 8192;
        let front = stage.front_with(&config).await;
        for expected in wrong_submits(&front).into_iter().chain(wrong_calls_and_batches(&front)) {
            let answer = front.send(expected.request).await;
            answer.problem(expected.status, expected.code);
            assert!(answer.text.contains(expected.says), "should say {}: {answer:?}", expected.says);
            assert_eq!(answer.header("location"), "", "no job: {answer:?}");
            if expected.status == 405 {
                assert_eq!(answer.header("allow"), "GET,HEAD");
            }
            assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0), "half done: {answer:?}");
        }
        // The front is none the worse for it.
        front.submit(r#"{"kind":"test.probe"}"#).await;
        stage.rabbit.wait_count(&stage.work_queue(), 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_chunked_body_has_the_same_limit() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.limits.args = 1024;
        let front = stage.front_with(&config).await;
        let head = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                    transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        let submit = |args: usize| {
            let body = format!(r#"{{"kind":"test.probe","args":"{}"}}"#, "x".repeat(args));
            let mut request = head.to_owned();
            for piece in body.as_bytes().chunks(5000) {
                request += &format!("{:x}\r\n{}\r\n", piece.len(), str::from_utf8(piece).expect("ASCII"));
            }
            request + "0\r\n\r\n"
        };
        let too_large = front.raw(submit(200_000).as_bytes()).await;
        assert!(too_large.starts_with("HTTP/1.1 413") && too_large.contains("\"too_large\""), "{too_large}");
        let broken = front.raw(format!("{head}zz\r\n").as_bytes()).await;
        assert!(broken.starts_with("HTTP/1.1 400"), "{broken}");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
        assert!(front.raw(submit(1000).as_bytes()).await.starts_with("HTTP/1.1 202"));
        stage.rabbit.wait_count(&stage.work_queue(), 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_exists_nowhere_is_refused() {
    stage(async |stage| {
        let front = stage.front().await;
        let nowhere = stage.other_queue("nowhere");
        for (path, body) in [
            ("/v1/jobs".to_owned(), format!(r#"{{"kind":"test.probe","queue":"{nowhere}"}}"#)),
            ("/v1/jobs?wait=5s".to_owned(), format!(r#"{{"kind":"test.probe","queue":"{nowhere}"}}"#)),
            ("/v1/jobs".to_owned(), format!(r#"{{"kind":"test.probe","queue":"{nowhere}","delay":"1h"}}"#)),
            (format!("/v1/rpc/test.probe?queue={nowhere}"), "{}".to_owned()),
        ] {
            let answer = front.post(&path, body).await;
            let problem = answer.problem(422, "unknown_queue");
            assert!(
                problem["detail"].as_str().is_some_and(|detail| detail.contains(nowhere.as_str())),
                "{problem}"
            );
        }
        // As soon as a worker declares it, it is there.
        let mut config = stage.config.clone();
        config.amqp.queues = vec![nowhere.clone()];
        stage.front_with(&config).await;
        front.submit(format!(r#"{{"kind":"test.probe","queue":"{nowhere}","delay":"100ms"}}"#)).await;
        stage.rabbit.wait_count(&stage.names.queue(&nowhere), 1).await;
    })
    .await;
}

#[tokio::test]
async fn submits_at_the_same_time_have_answers_of_their_own() {
    stage(async |stage| {
        let (front, nowhere) = (stage.front().await, stage.other_queue("nowhere"));
        let each = (0..120).map(async |n| {
            let queue = if n % 3 == 0 { &nowhere } else { &stage.queue };
            let body = format!(r#"{{"kind":"test.probe","queue":"{queue}","args":{{"n":{n}}}}}"#);
            // Who waits for the end is told of a refusal as well, and at the end of the wait that the job was accepted.
            let path = if n % 2 == 0 { "/v1/jobs" } else { "/v1/jobs?wait=50ms" };
            (n, front.post(path, body).await)
        });
        let mut accepted = Vec::new();
        for (n, answer) in join_all(each).await {
            if n % 3 == 0 {
                answer.problem(422, "unknown_queue");
            } else {
                accepted.push((n, answer.accepted()));
            }
        }
        stage.rabbit.wait_count(&stage.work_queue(), 80).await;
        assert_eq!(accepted.len(), 80);
        for (n, id) in accepted {
            assert_eq!(front.get(&format!("/v1/jobs/{id}")).await.json()["args"], json!({"n": n}));
        }
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_is_away_is_said_at_once() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        // Whoever waited for this would wait longer than the test.
        config.amqp.confirm_timeout = Duration::from_secs(600);
        // Nothing listens on port 1.
        config.amqp.url = serde_json::from_value(json!("amqp://127.0.0.1:1")).expect("an address");
        let front = stage.front_unready(&config).await;
        // No address, no user: these are for the log, and not for whoever may call.
        let away = "the broker is away (the log says why)";
        eventually("it was tried", async || {
            let ready = front.get("/readyz").await.json();
            (ready["publish"] == away && ready["consume"] == away).then_some(())
        })
        .await;
        for (path, body) in [
            ("/v1/jobs", r#"{"kind":"test.probe"}"#),
            ("/v1/jobs", r#"{"kind":"test.probe","delay":"1s"}"#),
            ("/v1/jobs?wait=5s", r#"{"kind":"test.probe"}"#),
            ("/v1/rpc/test.probe", "{}"),
        ] {
            let problem = front.post(path, body).await.problem(503, "broker_unavailable");
            assert_eq!(problem["detail"], format!("{away}; the job was not accepted; try again"), "{path}");
        }
        let batch = front.post("/v1/jobs/batch", r#"[{"kind":"test.probe"}]"#).await;
        assert_eq!((batch.status, batch.header("retry-after").is_empty()), (503, false), "{batch:?}");
        assert_eq!(batch.json()["items"][0]["error"]["code"], "broker_unavailable");
        assert_eq!((front.get("/healthz").await.status, front.get("/readyz").await.status), (200, 503));
    })
    .await;
}

#[tokio::test]
async fn what_someone_deleted_comes_back() {
    stage(async |stage| {
        let front = stage.front().await;
        // A queue of our own: declared again within the submit.
        stage.rabbit.delete_queue(&stage.work_queue()).await;
        front.submit(r#"{"kind":"test.probe"}"#).await;
        stage.rabbit.wait_count(&stage.work_queue(), 1).await;

        // The exchange: a documented answer, then healed.
        let path = format!("exchanges/{{vhost}}/{}", stage.names.direct());
        stage.rabbit.done(Method::DELETE, &path, None).await;
        let answer = front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await;
        let problem = answer.problem(503, "broker_unavailable");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("missing")), "{problem}");
        eventually("the exchange is back", async || {
            let answer = front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await;
            assert!([202, 503].contains(&answer.status), "{answer:?}");
            (answer.status == 202).then_some(())
        })
        .await;
        stage.rabbit.wait_count(&stage.work_queue(), 2).await;
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_an_older_version_declared_gets_its_jobs() {
    stage(async |stage| {
        let front = stage.front().await;
        let (queue, key) = (stage.work_queue(), format!("{}.normal", stage.queue));
        let (exchange, none) = (stage.names.direct(), FieldTable::default());
        let channel = stage.rabbit.channel().await;
        let unbound = channel.queue_unbind(queue.as_str().into(), exchange.as_str().into(), key.into(), none);
        unbound.await.expect("unbound");
        front.submit(r#"{"kind":"test.probe"}"#).await;
        let (_worker, mut log) = stage.probes();
        assert_eq!(log.next().await.attempt, 1);
    })
    .await;
}

#[tokio::test]
async fn limits_refuse_and_hold_nobody_up() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let mut config = stage.config.clone();
        config.http.max_waiters = 1;
        let front = stage.front_with(&config).await;
        let held = r#"{"script":["held"]}"#;
        let (first, ()) = tokio::join!(front.post("/v1/rpc/test.probe?wait=30s", held), async {
            log.next().await;
            front.post("/v1/rpc/test.probe", "{}").await.problem(503, "waiters_full");
            front.post("/v1/jobs?wait=1s", r#"{"kind":"test.probe"}"#).await.problem(503, "waiters_full");
            front.submit(r#"{"kind":"test.probe","args":"free"}"#).await;
            assert_eq!(
                log.next().await.args,
                "\"free\"",
                "who does not wait is not refused, and no other job ran"
            );
            log.release(1);
        });
        assert_eq!(first.status, 200, "{first:?}");

        // A caller that hangs up frees its place.
        let gone = front.request("/v1/rpc/test.probe?wait=30s", held).timeout(Duration::from_secs(2)).send();
        assert!(gone.await.is_err());
        log.next().await;
        eventually("a free place", async || {
            let answer = front.post("/v1/rpc/test.probe?wait=30s", "{}").await;
            (answer.status == 200).then_some(())
        })
        .await;
        log.release(1);

        let mut config = stage.config.clone();
        config.http.max_in_flight = 0;
        let full = stage.front_with(&config).await;
        full.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await.problem(503, "overloaded");
        full.post("/v1/rpc/test.probe", "{}").await.problem(503, "overloaded");
        let batch = full.post("/v1/jobs/batch", r#"[{"kind":"test.probe"}]"#).await;
        batch.problem(503, "overloaded");
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_is_refused_and_counted_right() {
    stage(async |stage| {
        let front = stage.front().await;
        stage.rabbit.limit(&stage.config.amqp.prefix, &stage.work_queue(), 5).await;
        let mut accepted = 0;
        eventually("a refusal", async || {
            let answer = front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await;
            if answer.status == 202 {
                accepted += 1;
                return None;
            }
            answer.problem(503, "broker_refused");
            Some(())
        })
        .await;
        let found = stage.rabbit.count(&stage.work_queue()).await;
        assert_eq!(found, Some(accepted), "what was accepted is there, what was refused is not");
    })
    .await;
}
