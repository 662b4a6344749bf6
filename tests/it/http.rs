//! The HTTP interface against a live broker: what is accepted, run and answered.

use serde_json::{Value, json};

use crate::support::{
    front::Front,
    probe::Log,
    stage::{Stage, stage},
};

async fn play(stage: &Stage) -> (Front, Log) {
    let (_, log) = stage.probes();
    (stage.front().await, log)
}

/// JSON that anything but copying would change.
const ODD: &str = r#"{"b":1.0000000000000000000001,  "a":1e2,"\u0061":[ ],"é":"\u00e9\/",	"big":123456789012345678901234567890}"#;

#[tokio::test]
async fn a_submitted_job_runs_with_what_was_asked_for() {
    stage(async |stage| {
        let (front, mut log) = play(stage).await;
        let body = r#"{"kind":"test.probe","args":{"n":1},"tags":["a","b"],"max_attempts":7,"timeout":"9s"}"#;
        let answer = front.post("/v1/jobs", body).await;
        let id = answer.accepted();
        let accepted = answer.json();
        assert_eq!((&accepted["kind"], &accepted["status"]), (&json!("test.probe"), &json!("queued")));
        assert_eq!(accepted["queue"], stage.queue.as_str());
        assert_eq!(accepted["links"]["self"], format!("/v1/jobs/{id}"));
        let start = log.next().await;
        assert_eq!((start.id.to_string(), start.run, start.attempt), (id, 1, 1));
        assert_eq!((start.max_attempts, start.tags), (7, vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((start.kind.as_str(), start.args.as_str()), ("test.probe", r#"{"n":1}"#));
    })
    .await;
}

#[tokio::test]
async fn a_submit_can_wait_for_the_record() {
    stage(async |stage| {
        let (front, log) = play(stage).await;
        let wait = |prefer: &'static str, body: &'static str| {
            front.request("/v1/jobs", body).header("prefer", prefer)
        };

        let answer =
            front.send(wait("wait=30", r#"{"kind":"test.probe","args":{"x":1},"tags":["t"]}"#)).await;
        assert_eq!((answer.status, answer.header("preference-applied")), (200, "wait=30"), "{answer:?}");
        let record: Value = answer.json();
        assert_eq!(record["status"], "succeeded");
        assert_eq!((&record["output"], &record["args"]), (&json!({"x":1}), &json!({"x":1})));
        assert_eq!(
            (&record["run"], &record["attempt"], &record["tags"]),
            (&json!(1), &json!(1), &json!(["t"]))
        );
        for time in ["created_at", "started_at", "finished_at"] {
            assert!(record[time].as_str().is_some_and(|time| time.ends_with('Z')), "{time}: {record}");
        }

        let dead = r#"{"kind":"test.probe","args":{"script":["fail"]},"max_attempts":2}"#;
        let record = front.post("/v1/jobs?wait=30s", dead).await.json();
        assert_eq!((&record["status"], &record["attempt"]), (&json!("dead"), &json!(2)), "{record}");
        let error = json!({"code": "probe_failed", "message": "start 2 fails", "reason": "exhausted"});
        assert_eq!(record["error"], error);

        // Malformed, it is ignored in the header and refused in the query.
        let answer = front.send(wait("wait=soon", r#"{"kind":"test.probe"}"#)).await;
        assert_eq!((answer.status, answer.header("preference-applied")), (202, ""));
        let problem = front.post("/v1/jobs?wait=soon", r#"{"kind":"test.probe"}"#).await;
        assert_eq!(problem.problem(422, "invalid_request")["errors"][0]["parameter"], "wait");

        // The patience ends before the job does: accepted, as without a wait.
        let held = r#"{"kind":"test.probe","args":{"script":["held"]}}"#;
        front.post("/v1/jobs?wait=100ms", held).await.accepted();
        log.release(1);
    })
    .await;
}

#[tokio::test]
async fn a_call_answers_with_the_output() {
    stage(async |stage| {
        let (front, mut log) = play(stage).await;
        for args in [ODD, "null", " [1, 2.50]", "\"text\"", "1e400"] {
            assert_eq!(front.call("test.probe", args).await, args.trim(), "the output's bytes");
            assert_eq!(log.next().await.args, args.trim(), "the args' bytes");
        }
        assert_eq!(front.call("test.probe", "").await, "{}", "no body is an empty object");
        assert_eq!(log.next().await.max_attempts, 1);
    })
    .await;
}

#[tokio::test]
async fn args_in_a_submit_keep_their_bytes() {
    stage(async |stage| {
        let (front, mut log) = play(stage).await;
        let body = format!("{{ \"args\" : {ODD} ,\n\"kind\":\"test.probe\"}}");
        let answer = front.post("/v1/jobs?wait=30s", body).await;
        assert!(answer.text.contains(&format!("\"output\":{ODD}")), "{answer:?}");
        assert!(answer.text.contains(&format!("\"args\":{ODD}")), "{answer:?}");
        assert_eq!(log.next().await.args, ODD);
    })
    .await;
}

#[tokio::test]
async fn a_call_that_fails_says_how() {
    stage(async |stage| {
        let (front, mut log) = play(stage).await;
        let fails = front.post("/v1/rpc/test.probe?wait=30s", r#"{"script":["fail"]}"#).await;
        let problem = fails.problem(502, "job_dead");
        let error = json!({"code": "probe_failed", "message": "start 1 fails", "reason": "exhausted"});
        assert_eq!((&problem["error"], &problem["job"]["status"]), (&error, &json!("dead")));
        assert_eq!(problem["job"]["id"], log.next().await.id.to_string());
        assert_eq!(fails.header("location"), format!("/v1/jobs/{}", problem["job"]["id"].as_str().unwrap()));

        let fatal = front.post("/v1/rpc/test.probe?wait=30s&max_attempts=5", r#"{"script":["fatal"]}"#).await;
        let problem = fatal.problem(422, "job_fatal");
        assert_eq!(
            (&problem["error"]["code"], &problem["error"]["reason"]),
            (&json!("probe_fatal"), &json!("fatal"))
        );
        assert_eq!(problem["job"]["attempt"], 1);

        // Asked for more attempts, it gets them.
        let answer =
            front.post("/v1/rpc/test.probe?wait=30s&max_attempts=3", r#"{"script":["fail","ok"]}"#).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn an_output_over_the_limit_is_left_out() {
    stage(async |stage| {
        let (front, _log) = play(stage).await;
        let long = format!(r#"{{"script":[{{"long":{}}}]}}"#, 2 << 20);
        let problem =
            front.post("/v1/rpc/test.probe?wait=30s", long.clone()).await.problem(502, "output_omitted");
        assert_eq!(problem["job"]["status"], "succeeded");
        let submit = format!(r#"{{"kind":"test.probe","args":{long}}}"#);
        let record = front.post("/v1/jobs?wait=30s", submit).await.json();
        assert_eq!((&record["status"], &record["output_omitted"]), (&json!("succeeded"), &json!(true)));
        assert!(record.get("output").is_none());
    })
    .await;
}

#[tokio::test]
async fn a_call_that_nobody_starts_in_time_never_runs() {
    stage(async |stage| {
        let front = stage.front().await;
        let late = front.post("/v1/rpc/test.probe?wait=300ms", r#"{"call":"expires"}"#).await;
        let problem = late.problem(504, "wait_timeout");
        let id = problem["job"]["id"].as_str().expect("the job's id").to_owned();
        assert_eq!(late.header("location"), format!("/v1/jobs/{id}"));

        // Whoever says that the answer may come later gets a job that does not expire.
        let asynchronous = front
            .request("/v1/rpc/test.probe?wait=300ms", r#"{"call":"lives"}"#)
            .header("prefer", "respond-async");
        let answer = front.send(asynchronous).await;
        let lives = answer.accepted();
        assert!(answer.header("preference-applied").contains("respond-async"), "{answer:?}");

        // And one that is submitted with an expiry.
        let expired =
            front.submit(r#"{"kind":"test.probe","args":{"call":"short"},"expires_in":"1ms"}"#).await;
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(3), "all wait");

        let (worker, mut log) = stage.probes();
        assert_eq!(log.next().await.id.to_string(), lives, "not {id}, nor {expired}");
        front.call("test.probe", "{}").await;
        let report = worker.stop().await;
        assert_eq!((report.expired, report.succeeded), (2, 2), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn a_started_call_runs_on_after_its_caller_gave_up() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        front.call("test.probe", "{}").await;
        log.next().await;
        let late = front.post("/v1/rpc/test.probe?wait=1s", r#"{"script":["held"]}"#).await;
        late.problem(504, "wait_timeout");
        log.next().await;
        log.release(1);
        let report = worker.stop().await;
        assert_eq!((report.succeeded, report.handed_back), (2, 0), "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn one_bad_item_spoils_no_batch() {
    stage(async |stage| {
        let (front, mut log) = play(stage).await;
        let unknown = stage.other_queue("unknown");
        let items = format!(
            r#"[{{"kind":"test.probe","args":1}}, {{"kind":""}}, {{"kind":"test.probe","args":2,"bad":1}},
                {{"kind":"test.probe","queue":"{unknown}"}}, {{"kind":"test.probe","args":3}}]"#
        );
        let answer = front.post("/v1/jobs/batch", items).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let answer = answer.json();
        assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(2), &json!(3)));
        let codes: Vec<&Value> = (1..4).map(|index| &answer["items"][index]["error"]["code"]).collect();
        assert_eq!(codes, ["invalid_request", "invalid_request", "unknown_queue"]);
        let mut ids: Vec<String> = log.take(2).await.iter().map(|start| start.id.to_string()).collect();
        let mut told = [0, 4].map(|index| answer["items"][index]["id"].as_str().expect("an id").to_owned());
        ids.sort();
        told.sort();
        assert_eq!(ids, told);

        let lines =
            "{\"kind\":\"test.probe\",\"args\":4}\n\n{\"kind\":\n{\"kind\":\"test.probe\",\"args\":5}\n";
        let answer =
            front.send(front.request_of("/v1/jobs/batch", "application/x-ndjson", lines)).await.json();
        assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(2), &json!(1)));
        let bad = &answer["items"][1];
        assert_eq!((&bad["line"], &bad["error"]["code"]), (&json!(3), &json!("malformed_json")));
        let mut args: Vec<String> = log.take(2).await.into_iter().map(|start| start.args).collect();
        args.sort();
        assert_eq!(args, ["4", "5"]);

        // Nothing accepted: the gravest item's status.
        let answer =
            front.post("/v1/jobs/batch", r#"[{"kind":"A"},{"kind":"test.probe","args":0,"delay":-1}]"#).await;
        assert_eq!((answer.status, &answer.json()["accepted"]), (422, &json!(0)), "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn a_large_batch_runs_once_each() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        let front = stage.front().await;
        let items: Vec<Value> = (0..2000).map(|n| json!({"kind": "test.probe", "args": n})).collect();
        let answer = front.post("/v1/jobs/batch", serde_json::to_string(&items).unwrap()).await;
        assert_eq!((answer.status, &answer.json()["accepted"]), (202, &json!(2000)));
        let mut args: Vec<u32> =
            log.take(2000).await.iter().map(|start| start.args.parse().unwrap()).collect();
        args.sort_unstable();
        assert!(args.into_iter().eq(0..2000));
        let report = worker.stop().await;
        assert!(log.rest().is_empty() && report.succeeded == 2000, "each once: {report:?}");
    })
    .await;
}

#[tokio::test]
async fn trace_context_reaches_the_dead_letter() {
    stage(async |stage| {
        let (front, _log) = play(stage).await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let body = r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#;
        front.send(front.request("/v1/jobs", body).header("traceparent", trace)).await.accepted();
        let dead = stage.rabbit.take(&stage.dead_queue()).await;
        assert_eq!(dead.headers["traceparent"], trace);
        assert_eq!(dead.properties["app_id"], "hopline-http");
    })
    .await;
}
