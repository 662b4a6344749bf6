//! What the HTTP interface tells of jobs: records, lists, waits, cancellations, queues.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    front::{Answer, Front},
    stage::stage,
};

/// JSON that anything but copying would change.
const ODD: &str =
    r#"{"b":1.0000000000000000000001,  "a":1e2,"é":"\u00e9\/","big":123456789012345678901234567890}"#;
const HELD: &str = r#"{"kind":"test.probe","args":{"script":["held"]}}"#;

/// Waits until a job's record says `status`, and returns it.
async fn until(front: &Front, id: &str, status: &str) -> Value {
    let path = format!("/v1/jobs/{id}?wait=1s");
    eventually(&format!("{id} is {status}"), async || {
        let record = front.get(&path).await.json();
        (record["status"] == status).then_some(record)
    })
    .await
}

#[tokio::test]
async fn a_job_is_found_on_every_replica() {
    stage(async |stage| {
        let (_worker, log) = stage.probes();
        let (here, there) = (stage.front().await, stage.front().await);
        for _ in 0..20 {
            let id = here.submit(r#"{"kind":"test.probe","args":{"a":1},"tags":["t"],"delay":"1h"}"#).await;
            for front in [&here, &there] {
                let answer = front.get(&format!("/v1/jobs/{id}")).await;
                assert_eq!(answer.status, 200, "at once: {answer:?}");
                let record = answer.json();
                assert_eq!((&record["id"], &record["status"]), (&json!(id), &json!("scheduled")));
                assert_eq!((&record["args"], &record["tags"]), (&json!({"a":1}), &json!(["t"])));
                assert!(record["run_at"].is_string() && record.get("finished_at").is_none(), "{record}");
            }
        }
        let id = here.submit(HELD).await;
        there.get(&format!("/v1/jobs/{id}/output")).await.problem(409, "not_finished");
        log.release(1);
        let record = until(&there, &id, "succeeded").await;
        assert_eq!((&record["run"], &record["attempt"]), (&json!(1), &json!(1)), "{record}");
        assert_eq!(record["attempts"][0]["outcome"], "succeeded", "{record}");
        assert!(record["finished_at"].is_string(), "{record}");
    })
    .await;
}

#[tokio::test]
async fn an_output_is_the_bytes_that_came() {
    stage(async |stage| {
        let (_worker, _log) = stage.probes();
        let (here, there) = (stage.front().await, stage.front().await);
        let id = here.submit(format!(r#"{{"kind":"test.probe","args":{ODD}}}"#)).await;
        until(&there, &id, "succeeded").await;
        let output = there.get(&format!("/v1/jobs/{id}/output")).await;
        assert_eq!((output.status, output.text.as_str()), (200, ODD));
        assert_eq!(output.header("content-type"), "application/json");
        // The worker may have told of the end before the log had the submit.
        eventually("the record has the args", async || {
            let record = there.get(&format!("/v1/jobs/{id}")).await;
            record.text.contains(&format!("\"args\":{ODD}")).then_some(())
        })
        .await;

        // Too long to be recorded, but not for the one who waits for it.
        let long = r#"{"kind":"test.probe","args":{"script":[{"long":100000}]}}"#;
        let waited = here.post("/v1/jobs?wait=30s", long).await.json();
        assert_eq!(waited["output"].as_str().map(str::len), Some(100_000));
        let id = waited["id"].as_str().expect("an id");
        assert_eq!(until(&there, id, "succeeded").await["output_omitted"], true);
        there.get(&format!("/v1/jobs/{id}/output")).await.problem(404, "output_not_recorded");

        let dead =
            here.post("/v1/jobs?wait=30s", r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#).await;
        let problem =
            here.get(&format!("{}/output", dead.header("location"))).await.problem(409, "no_output");
        assert_eq!(
            (&problem["job"]["status"], &problem["error"]["code"]),
            (&json!("dead"), &json!("probe_fatal"))
        );
    })
    .await;
}

#[tokio::test]
async fn a_wait_ends_on_a_replica_that_did_not_take_the_job() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let (here, there) = (stage.front().await, stage.front().await);
        let id = here.submit(HELD).await;
        log.next().await;
        let path = format!("/v1/jobs/{id}?wait=50s");
        let (waited, ()) = tokio::join!(there.get(&path), async {
            // It shows that it runs, and still does not end.
            eventually("it runs", async || {
                let record = there.get(&format!("/v1/jobs/{id}")).await.json();
                (record["status"] == "running").then_some(())
            })
            .await;
            log.release(1);
        });
        assert_eq!((waited.status, &waited.json()["status"]), (200, &json!("succeeded")), "{waited:?}");

        // A patience that ends first answers with what is known.
        let id = here.submit(HELD).await;
        let prefer = there.get_with(&format!("/v1/jobs/{id}"), "prefer", "wait=1").await;
        assert_eq!((prefer.status, prefer.header("preference-applied")), (200, "wait=1"), "{prefer:?}");
        assert!(prefer.json().get("finished_at").is_none());
        log.release(1);
    })
    .await;
}

#[tokio::test]
async fn a_wait_survives_the_loss_of_the_reply() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        front.call("test.probe", "1").await;
        log.next().await;
        let prefix = &stage.config.amqp.prefix;
        let submit = format!(r#"{{"kind":"test.probe","args":{{"script":["held"],"odd":{ODD}}}}}"#);
        let call = format!(r#"{{"script":["held"],"odd":{ODD}}}"#);
        let long = format!(r#"{{"script":["held"],"long":"{}"}}"#, "x".repeat(100_000));
        let (submitted, called, omitted, ()) = tokio::join!(
            front.post("/v1/jobs?wait=50s", submit),
            front.post("/v1/rpc/test.probe?wait=50s", call.clone()),
            front.post("/v1/rpc/test.probe?wait=50s", long),
            async {
                log.take(3).await;
                // Their result queue goes with its connection.
                stage.rabbit.cut_connections(&[prefix, "http", "consume"], 1).await;
                log.release(3);
            }
        );
        assert_eq!(omitted.problem(502, "output_omitted")["job"]["status"], "succeeded");
        assert_eq!(
            (submitted.status, &submitted.json()["status"]),
            (200, &json!("succeeded")),
            "{submitted:?}"
        );
        assert!(submitted.text.contains(&format!("\"odd\":{ODD}")), "{submitted:?}");
        assert_eq!((called.status, called.text.as_str()), (200, call.as_str()), "the output's bytes");
    })
    .await;
}

#[tokio::test]
async fn a_list_goes_on_where_it_ended_whatever_is_added() {
    stage(async |stage| {
        let (_worker, _log) = stage.probes();
        let (here, there) = (stage.front().await, stage.front().await);
        let mut ids = Vec::new();
        for n in 0..7 {
            let body = format!(r#"{{"kind":"test.probe","args":{n},"tags":["page"],"delay":"1h"}}"#);
            ids.push(here.submit(body).await);
        }
        ids.reverse();
        until(&there, &ids[0], "scheduled").await;
        let (mut found, mut path) = (Vec::new(), "/v1/jobs?tag=page&limit=3".to_owned());
        let mut fronts = [&here, &there].into_iter().cycle();
        loop {
            let page = fronts.next().expect("endless").get(&path).await;
            assert_eq!(page.status, 200, "{page:?}");
            let answer = page.json();
            let items = answer["items"].as_array().expect("items");
            assert!(items.iter().all(|job| job.get("args").is_none() && job["tags"] == json!(["page"])));
            found.extend(items.iter().map(|job| job["id"].as_str().expect("an id").to_owned()));
            let Some(next) = answer["next"].as_str() else {
                assert_eq!(page.header("link"), "");
                break;
            };
            let link = format!("</v1/jobs?tag=page&limit=3&cursor={next}>; rel=\"next\"");
            assert_eq!(page.header("link"), link);
            path = format!("/v1/jobs?tag=page&limit=3&cursor={next}");
            here.submit(r#"{"kind":"test.probe","tags":["page"],"delay":"1h"}"#).await;
            let other = there.get(&format!("/v1/jobs?tag=other&cursor={next}")).await;
            other.problem(422, "bad_cursor");
        }
        assert_eq!(found, ids, "newest first, each once");

        let whole = here.get("/v1/jobs?tag=page&include=args,output&limit=100").await.json();
        let items = whole["items"].as_array().expect("items");
        let args: BTreeSet<String> = items.iter().map(|job| job["args"].to_string()).collect();
        assert!((0..7).all(|n| args.contains(&n.to_string())), "{args:?}");
    })
    .await;
}

#[tokio::test]
async fn lists_and_counts_know_the_states() {
    stage(async |stage| {
        let (_worker, _log) = stage.probes();
        let front = stage.front().await;
        let submit = |body: &'static str| front.post("/v1/jobs?wait=30s", body);
        submit(r#"{"kind":"test.probe","args":1}"#).await;
        submit(r#"{"kind":"test.probe","args":2,"tags":["x"]}"#).await;
        submit(r#"{"kind":"test.probe","args":{"script":["fatal"]}}"#).await;
        front.submit(r#"{"kind":"test.probe","delay":"1h"}"#).await;
        let queue = stage.queue.as_str();
        let counted = eventually("all are counted", async || {
            let counts = front.get(&format!("/v1/jobs/counts?queue={queue}")).await.json();
            (counts["total"] == 4).then_some(counts)
        });
        let counts = &counted.await["counts"];
        let of = |status: &str| counts[status].as_u64();
        assert_eq!(
            (of("succeeded"), of("dead"), of("scheduled"), of("queued")),
            (Some(2), Some(1), Some(1), Some(0))
        );

        let count = async |filter: &str| {
            let page = front.get(&format!("/v1/jobs?{filter}")).await;
            assert_eq!(page.status, 200, "{page:?}");
            page.json()["items"].as_array().map(Vec::len)
        };
        for (filter, expected) in [
            ("status=succeeded", 2),
            ("status=dead,scheduled", 2),
            ("tag=x", 1),
            ("q=NEVER", 1),
            ("q=sometimes", 0),
            ("kind=test.probe", 4),
            ("kind=test.other", 0),
            ("from=2020-01-01T00:00:00Z", 4),
            ("to=2020-01-01T00:00:00Z", 0),
            ("from=2120-01-01T00:00:00%2B01:00", 0),
        ] {
            assert_eq!(count(&format!("queue={queue}&{filter}")).await, Some(expected), "{filter}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_its_name() {
    stage(async |stage| {
        let front = stage.front().await;
        let unknown = hopline::JobId::new();
        for (path, status, code, says) in [
            (format!("/v1/jobs/{unknown}"), 404, "job_not_found", ""),
            ("/v1/jobs/17".into(), 404, "job_not_found", ""),
            (format!("/v1/jobs/{unknown}?wait=10s"), 404, "job_not_found", ""),
            (format!("/v1/jobs/{unknown}/output"), 404, "job_not_found", ""),
            (format!("/v1/jobs/{unknown}/events"), 404, "job_not_found", ""),
            (format!("/v1/jobs/{unknown}?wait=soon"), 422, "invalid_request", "wait"),
            (format!("/v1/jobs/{unknown}?what=1"), 422, "invalid_request", "what"),
            ("/v1/jobs?limit=-1".into(), 422, "invalid_request", "limit"),
            ("/v1/jobs?limit=0".into(), 422, "invalid_request", "limit"),
            ("/v1/jobs?limit=501".into(), 422, "invalid_request", "limit"),
            ("/v1/jobs?limit=101&include=args".into(), 422, "invalid_request", "limit"),
            ("/v1/jobs?status=done".into(), 422, "invalid_request", "scheduled, queued"),
            ("/v1/jobs?queue=No+Queue".into(), 422, "invalid_request", "queue"),
            ("/v1/jobs?kind=a..b".into(), 422, "invalid_request", "kind"),
            ("/v1/jobs?tag=a,b".into(), 422, "invalid_request", "tag"),
            ("/v1/jobs?from=today".into(), 422, "invalid_request", "RFC 3339"),
            (
                "/v1/jobs?from=2030-01-02T00:00:00Z&to=2030-01-01T00:00:00Z".into(),
                422,
                "invalid_request",
                "to",
            ),
            ("/v1/jobs?include=everything".into(), 422, "invalid_request", "include"),
            ("/v1/jobs?fingerprint=x".into(), 422, "invalid_request", "fingerprint"),
            ("/v1/jobs?cursor=x".into(), 422, "bad_cursor", ""),
            ("/v1/jobs?page=2".into(), 422, "invalid_request", "page"),
            ("/v1/jobs/counts?kind=a".into(), 422, "invalid_request", "kind"),
            ("/v1/events?last_event_id=x".into(), 422, "bad_last_event_id", ""),
            ("/v1/events?last_event_id=-1.0".into(), 422, "bad_last_event_id", ""),
            (format!("/v1/jobs/{unknown}/events?last_event_id=7"), 422, "bad_last_event_id", ""),
            ("/v1/events?queue=A".into(), 422, "invalid_request", "queue"),
            ("/v1/queues/unknown".into(), 404, "queue_not_found", ""),
            ("/v1/queues/No%20Queue".into(), 404, "queue_not_found", ""),
        ] {
            let answer = front.get(&path).await;
            answer.problem(status, code);
            assert!(answer.text.contains(says), "{path}: {answer:?}");
        }
        front.delete(&format!("/v1/jobs/{unknown}")).await.problem(404, "job_not_found");
        front.delete("/v1/jobs/x?reason=y").await.problem(404, "job_not_found");
        front.delete(&format!("/v1/jobs/{unknown}?reason=")).await.problem(422, "invalid_request");
        front.post("/v1/queues/unknown/pause", "").await.problem(404, "queue_not_found");
        let path = format!("/v1/queues/{}/pause", stage.queue);
        front.post(&path, r#"{"by":"eve"}"#).await.problem(422, "invalid_request");
    })
    .await;
}

#[tokio::test]
async fn a_job_is_cancelled_once() {
    stage(async |stage| {
        let front = stage.front().await;
        let there = stage.front().await;
        let id = front.submit(r#"{"kind":"test.probe"}"#).await;
        let path = format!("/v1/jobs/{id}?reason=a+mistake&by=eve");
        let first = front.delete(&path).await;
        assert_eq!(first.status, 202, "{first:?}");
        let asked = |answer: &Answer| {
            let record = answer.json();
            assert_eq!(record["cancel_requested_by"], "eve", "{record}");
            assert_eq!(record["cancel_reason"], "a mistake", "{record}");
            record["cancel_requested_at"].as_str().expect("a time").to_owned()
        };
        asked(&first);
        let shown = there.get(&format!("/v1/jobs/{id}")).await;
        let at = eventually("the other replica shows it", async || {
            let shown = there.get(&format!("/v1/jobs/{id}?wait=1s")).await;
            shown.json().get("cancel_requested_at").is_some().then(|| asked(&shown))
        });
        at.await;
        assert_eq!(shown.status, 200);
        for front in [&front, &there] {
            assert_eq!(front.delete(&path).await.status, 200, "asked for already");
        }

        let (_worker, mut log) = stage.probes();
        let record = until(&there, &id, "cancelled").await;
        assert_eq!(
            (&record["error"]["code"], &record["cancel_requested_by"]),
            (&json!("cancelled"), &json!("eve"))
        );
        assert_eq!(front.delete(&path).await.status, 200, "cancelled");
        front.get(&format!("/v1/jobs/{id}/output")).await.problem(409, "no_output");
        let done = front.post("/v1/jobs?wait=30s", r#"{"kind":"test.probe","args":1}"#).await;
        let problem = front.delete(done.header("location")).await.problem(409, "already_finished");
        assert_eq!(problem["job"]["status"], "succeeded");
        assert_eq!(log.next().await.args, "1", "the cancelled one never ran");
    })
    .await;
}

#[tokio::test]
async fn a_call_can_be_cancelled_at_its_deadline_and_when_its_caller_hangs_up() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        let front = stage.front().await;
        front.call("test.probe", "1").await;
        log.next().await;
        let call = "/v1/rpc/test.probe?wait=1s&on_timeout=cancel";
        let late = front.post(call, r#"{"script":["stop"]}"#).await;
        let id = late.problem(504, "wait_timeout")["job"]["id"].as_str().expect("an id").to_owned();
        assert_eq!(log.next().await.id.to_string(), id);
        until(&front, &id, "cancelled").await;

        let call = "/v1/rpc/test.probe?wait=50s&on_timeout=cancel";
        let calling = front.request(call, r#"{"script":["stop"]}"#).send();
        let id = tokio::select! {
            _ = calling => panic!("it does not end by itself"),
            start = log.next() => start.id.to_string(),
        };
        until(&front, &id, "cancelled").await;
    })
    .await;
}

#[tokio::test]
async fn who_goes_away_frees_the_place_of_a_waiter() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.http.max_waiters = 1;
        let front = stage.front_with(&config).await;
        let id = front.submit(r#"{"kind":"test.probe","delay":"1h"}"#).await;
        let path = format!("/v1/jobs/{id}?wait=50s");
        // Hangs up as soon as the place is taken; who looks whether it is takes it for a moment.
        let waiting = async {
            loop {
                let answer = front.get(&path).await;
                assert_eq!(answer.status, 503, "it ends: {answer:?}");
            }
        };
        tokio::select! {
            () = waiting => {}
            () = eventually("the place is taken", async || {
                (front.get(&format!("/v1/jobs/{id}?wait=1ms")).await.status == 503).then_some(())
            }) => {}
        }
        eventually("the place is free", async || {
            (front.get(&format!("/v1/jobs/{id}?wait=1ms")).await.status == 200).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn queues_show_what_waits_and_can_be_paused() {
    stage(async |stage| {
        let (here, there) = (stage.front().await, stage.front().await);
        let queue = stage.queue.as_str();
        for _ in 0..3 {
            here.submit(r#"{"kind":"test.probe"}"#).await;
        }
        here.submit(r#"{"kind":"test.probe","delay":"1h"}"#).await;
        let path = format!("/v1/queues/{queue}");
        let shown = eventually("all are seen", async || {
            let shown = there.get(&path).await.json();
            (shown["ready"] == 3 && shown["scheduled"] == 1).then_some(shown)
        })
        .await;
        assert_eq!(
            (&shown["running"], &shown["dead"], &shown["consumers"]),
            (&json!(0), &json!(0), &json!(0))
        );
        assert!(shown["oldest_age"].is_number() && shown.get("time_to_drain").is_none(), "{shown}");
        let all = there.get("/v1/queues").await.json();
        assert!(all["items"].as_array().expect("items").iter().any(|one| one["queue"] == queue), "{all}");

        let paused = here.post(&format!("{path}/pause?by=eve"), "").await;
        assert_eq!(
            (paused.status, paused.json()),
            (200, json!({"queue":queue,"paused":true,"paused_by":"eve"}))
        );
        let (_worker, mut log) = stage.probes();
        eventually("the other replica and the worker know", async || {
            let shown = there.get(&path).await.json();
            let workers = there.get("/v1/workers").await.json();
            let knows = workers["items"][0]["queues"][0]["paused"] == true;
            (knows && shown["paused"] == true && shown["paused_by"] == "eve").then_some(())
        })
        .await;
        assert_eq!(there.get(&path).await.json()["ready"], 3);
        let announced = eventually("the kind is announced", async || {
            let kinds = there.get("/v1/kinds").await.json();
            kinds["items"].as_array()?.iter().find(|one| one["kind"] == "test.probe").cloned()
        })
        .await;
        assert_eq!(announced["queue"], queue);
        assert!(log.rest().is_empty());
        assert_eq!(there.post(&format!("{path}/resume"), "").await.status, 200);
        log.take(3).await;
        let drained = eventually("it is empty", async || {
            let shown = here.get(&path).await.json();
            (shown["ready"] == 0 && shown["paused"] == false).then_some(shown)
        });
        assert_eq!(drained.await["time_to_drain"], 0.0);
    })
    .await;
}

#[tokio::test]
async fn a_front_is_ready_before_its_record_is() {
    stage(async |stage| {
        let front = stage.front().await;
        let ready = eventually("the record catches up", async || {
            let ready = front.get("/readyz").await;
            (ready.json()["record"] == "caught up").then_some(ready)
        });
        assert_eq!(ready.await.status, 200);
        let options = front.send(front.method(Method::OPTIONS, "/v1/jobs")).await;
        assert_eq!((options.status, options.header("allow")), (405, "POST,GET,HEAD"));
    })
    .await;
}
