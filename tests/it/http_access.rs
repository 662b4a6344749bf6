//! API keys against a live front: who is let in, what a key that is for some queues sees, and what it is called in
//! records.

use std::time::Duration;

use hopline::{
    access::{ApiKey, Scope},
    http::calls,
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE, eventually,
    front::Front,
    keys::{Keys, Seen},
    sse::Stream,
    stage::stage,
};

/// A body that the call may have, about `queue`.
fn body(method: &Method, path: &str, queue: &str) -> Option<Value> {
    let job = json!({ "kind": "test.probe", "queue": queue });
    match (method.as_str(), path) {
        ("POST", "/v1/jobs") | ("PUT", _) => Some(job),
        ("POST", "/v1/jobs/batch") => Some(json!([job])),
        ("POST", "/v1/jobs/replay" | "/v1/jobs/cancel") => {
            Some(json!({ "filter": { "queue": queue }, "dry_run": true }))
        }
        ("POST", path) if path.ends_with("/dead/replay") => Some(json!({ "all": true, "dry_run": true })),
        _ => None,
    }
}

/// A request of each call, about this job and this queue.
fn requests(front: &Front, job: &str, queue: &str) -> Vec<(String, Option<Scope>, RequestBuilder)> {
    let request = |(method, route, scope): (Method, &'static str, Option<Scope>)| {
        let mut path = route.replace("{id}", job).replace("{queue}", queue).replace("{kind}", "test.probe");
        match (method.as_str(), route) {
            ("GET", "/v1/jobs" | "/v1/jobs/counts" | "/v1/events") => path += &format!("?queue={queue}"),
            ("POST", "/v1/rpc/{kind}") => path += &format!("?queue={queue}&wait=1ms"),
            _ => {}
        }
        let request = front.method(method.clone(), &path);
        let request = match body(&method, route, queue) {
            Some(body) => request.json(&body),
            None => request,
        };
        (format!("{method} {route}"), scope, request)
    };
    calls().map(request).collect()
}

/// The status, and the code of a problem. The body of a success is not read: it may be a stream.
async fn told(request: RequestBuilder) -> (u16, String) {
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    if status < 400 {
        return (status, String::new());
    }
    let problem: Value = answer.json().await.unwrap_or_default();
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn no_call_is_made_without_a_key_that_holds_and_is_for_it() {
    stage(async |stage| {
        let (keys, other) = (Keys::new(), stage.other_queue("b"));
        let all = keys.make(&Scope::ALL, None);
        let revoked = keys.make(&Scope::ALL, None);
        keys.revoke(&revoked);
        let elsewhere = keys.make(&Scope::ALL, Some(&[&other]));
        let mut config = keys.guard(&stage.config);
        config.amqp.queues.push(other.clone());
        let front = stage.front_with(&config).await;
        let owner = Seen { front: &front, key: &all };
        let submit = json!({ "kind": "test.probe", "queue": stage.queue, "delay": "1h" }).to_string();
        let job = owner.post("/v1/jobs", submit).await.accepted();
        let wrong_secret = {
            let text = all.expose();
            let turned = if text.ends_with('0') { '1' } else { '0' };
            format!("{}{turned}", &text[..text.len() - 1])
        };
        let narrow = Scope::ALL.map(|scope| (scope, keys.make(&[scope], None)));
        // The front learns of what was made after it has started.
        eventually("the newest key is known", async || {
            let seen = Seen { front: &front, key: &narrow[2].1 };
            (seen.get("/v1/jobs").await.status == 403).then_some(())
        })
        .await;
        let unknown = ApiKey::random().expect("a key").expose();
        for (call, scope, request) in requests(&front, &job, stage.queue.as_str()) {
            let with = |key: &str| request.try_clone().expect("no stream").bearer_auth(key);
            let Some(scope) = scope else {
                assert_ne!(told(request.try_clone().expect("no stream")).await.1, "unauthorized", "{call}");
                continue;
            };
            let nobody = [
                request.try_clone().expect("no stream"),
                with(&wrong_secret),
                with(&unknown),
                with(&revoked.expose()),
                with("nonsense"),
                request.try_clone().expect("no stream").basic_auth("x", Some(all.expose())),
            ];
            for request in nobody {
                assert_eq!(told(request).await, (401, "unauthorized".to_owned()), "{call}");
            }
            for (_, key) in narrow.iter().filter(|(own, _)| *own != scope) {
                assert_eq!(told(with(&key.expose())).await, (403, "scope_missing".to_owned()), "{call}");
            }
            let (status, code) = told(with(&elsewhere.expose())).await;
            let expected = match call.as_str() {
                // What names a job of another queue, under a new id there is nothing to see.
                "PUT /v1/jobs/{id}" => (403, "queue_forbidden"),
                call if call.contains("{id}") => (404, "job_not_found"),
                // Each item has an answer of its own.
                "POST /v1/jobs/batch" => (403, ""),
                // What names no queue shows less.
                "GET /v1/queues" | "GET /v1/workers" | "GET /v1/kinds" | "GET /openapi.json" => (200, ""),
                "GET /v1/overview" | "GET /v1/overview/events" => (200, ""),
                _ => (403, "queue_forbidden"),
            };
            assert_eq!((status, code.as_str()), expected, "{call}");
        }
        // Nothing of all that did anything.
        assert_eq!(owner.get(&format!("/v1/jobs/{job}")).await.json()["status"], "scheduled");
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(0));
        let paused = owner.get(&format!("/v1/queues/{}", stage.queue)).await.json()["paused"].clone();
        assert_eq!(paused, false);
        // And who may, may.
        for (call, scope, request) in requests(&front, &job, stage.queue.as_str()) {
            if scope.is_some() {
                let (status, code) = told(request.bearer_auth(all.expose())).await;
                assert!(!matches!(status, 401 | 403 | 429 | 500), "{call}: {status} {code}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_sees_the_jobs_of_its_queues_alone() {
    stage(async |stage| {
        let (keys, theirs, third) = (Keys::new(), stage.other_queue("b"), stage.other_queue("c"));
        let owner = keys.make(&Scope::ALL, None);
        let bound = keys.make(&Scope::ALL, Some(&[&stage.queue]));
        let two = keys.make(&Scope::ALL, Some(&[&stage.queue, &third]));
        let mut config = keys.guard(&stage.config);
        config.amqp.queues.extend([theirs.clone(), third.clone()]);
        let front = stage.front_with(&config).await;
        let _acting = stage.act(&front, &config);
        let owner = Seen { front: &front, key: &owner };
        let submit = |queue: &str| json!({ "kind": "test.probe", "queue": queue, "delay": "1h" }).to_string();
        let foreign = owner.post("/v1/jobs", submit(theirs.as_str())).await.accepted();
        let more = owner.post("/v1/jobs", submit(third.as_str())).await.accepted();
        for key in [&bound, &two] {
            let seen = Seen { front: &front, key };
            let own = seen.post("/v1/jobs", submit(stage.queue.as_str())).await.accepted();
            seen.post("/v1/jobs", submit(theirs.as_str())).await.problem(403, "queue_forbidden");
            // Routed by its kind: it is the queue that counts.
            let routed = seen.post("/v1/jobs", r#"{"kind":"test.probe","delay":"1h"}"#).await.accepted();
            seen.post("/v1/jobs", r#"{"kind":"test.elsewhere"}"#).await.problem(403, "queue_forbidden");
            seen.post("/v1/rpc/test.elsewhere?wait=1ms", "{}").await.problem(403, "queue_forbidden");
            let items = format!("[{},{}]", submit(theirs.as_str()), submit(stage.queue.as_str()));
            let batch = seen.post("/v1/jobs/batch", items).await;
            assert_eq!((batch.status, &batch.json()["rejected"]), (202, &json!(1)), "{batch:?}");
            assert_eq!(batch.json()["items"][0]["error"]["code"], "queue_forbidden");

            for path in ["", "/output", "/events", "?wait=5s"] {
                seen.get(&format!("/v1/jobs/{foreign}{path}")).await.problem(404, "job_not_found");
            }
            seen.delete(&format!("/v1/jobs/{foreign}")).await.problem(404, "job_not_found");
            seen.get(&format!("/v1/jobs?queue={theirs}")).await.problem(403, "queue_forbidden");
            for id in [&own, &routed] {
                assert_eq!(seen.get(&format!("/v1/jobs/{id}")).await.status, 200);
            }
            let list = eventually("all of its jobs are listed", async || {
                let list = seen.get("/v1/jobs?limit=500").await.json()["items"].as_array().cloned()?;
                list.iter().any(|job| job["id"] == routed.as_str()).then_some(list)
            })
            .await;
            let uses = |queue: &str| {
                queue == stage.queue.as_str() || key.id() == two.id() && queue == third.as_str()
            };
            assert!(list.iter().all(|job| uses(job["queue"].as_str().unwrap())), "{list:?}");
            assert_eq!(list.iter().any(|job| job["id"] == more.as_str()), key.id() == two.id());
            // Nor does a page tell that there is something between.
            let mut next = Some(String::new());
            while let Some(cursor) = next {
                let page = seen.get(&format!("/v1/jobs?limit=1{cursor}")).await.json();
                assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{page}");
                next = page["next"].as_str().map(|next| format!("&cursor={next}"));
            }
            // However the queue is written.
            for (method, path) in [("GET", ""), ("DELETE", "/jobs"), ("POST", "/pause")] {
                let name = theirs.as_str();
                let path = format!("/v1/queues/%{:02x}{}{path}", name.as_bytes()[0], &name[1..]);
                let answer = match method {
                    "GET" => seen.get(&path).await,
                    "POST" => seen.post(&path, "").await,
                    _ => seen.delete(&path).await,
                };
                answer.problem(403, "queue_forbidden");
            }
            let counts = seen.get("/v1/jobs/counts").await.json()["total"].as_u64();
            assert_eq!(counts, Some(list.len() as u64));
            let queues = seen.get("/v1/queues").await.json();
            let queues = queues["items"].as_array().expect("items");
            assert!(!queues.is_empty() && queues.iter().all(|queue| uses(queue["queue"].as_str().unwrap())));
        }

        // What is done to all that fits is done in its queues.
        let (bound, two) = (Seen { front: &front, key: &bound }, Seen { front: &front, key: &two });
        two.post("/v1/jobs/cancel", r#"{"filter":{}}"#).await.problem(403, "queue_forbidden");
        let ids = json!({ "ids": [foreign] }).to_string();
        bound.post("/v1/jobs/cancel", ids.clone()).await.problem(404, "job_not_found");
        two.post("/v1/jobs/replay", ids).await.problem(404, "job_not_found");
        let act = bound.post("/v1/jobs/cancel", r#"{"filter":{}}"#).await.accepted();
        let ended = eventually("the act ends", async || {
            let act = bound.get(&format!("/v1/jobs/{act}?wait=20s")).await;
            assert_eq!(act.status, 200, "its own act is its to see: {act:?}");
            Some(act.json()).filter(|act| act["status"] == "succeeded")
        })
        .await;
        assert!(ended["output"]["done"].as_u64() >= Some(2), "{ended}");
        assert!(owner.get(&format!("/v1/jobs/{foreign}")).await.json()["cancel_requested_at"].is_null());
        assert!(owner.get(&format!("/v1/jobs/{more}")).await.json()["cancel_requested_at"].is_null());
        // Somebody else's act is not.
        let other = json!({ "filter": { "queue": theirs } }).to_string();
        let other = owner.post("/v1/jobs/cancel", other).await.accepted();
        bound.get(&format!("/v1/jobs/{other}")).await.problem(404, "job_not_found");
    })
    .await;
}

#[tokio::test]
async fn two_keys_with_one_idempotency_key_have_two_jobs() {
    stage(async |stage| {
        let keys = Keys::new();
        let made = [(); 2].map(|()| keys.make(&[Scope::Submit], None));
        let front = stage.front_with(&keys.guard(&stage.config)).await;
        let submit = async |key: &ApiKey, more: &str| {
            let seen = Seen { front: &front, key };
            let request = seen.request(Method::POST, "/v1/jobs").header("idempotency-key", "k1");
            let body = format!(r#"{{"kind":"test.probe","delay":"1h"{more}}}"#);
            front.send(request.header("content-type", "application/json").body(body)).await
        };
        let first = submit(&made[0], "").await.accepted();
        let second = submit(&made[1], r#","tags":["x"]"#).await.accepted();
        assert_ne!(first, second);
        let again = submit(&made[0], "").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (200, "true"), "{again:?}");
        assert_eq!(again.json()["id"], first.as_str());
        let batch = Seen { front: &front, key: &made[1] };
        let items = r#"[{"kind":"test.probe","delay":"1h","tags":["x"],"idempotency_key":"k1"}]"#;
        let item = batch.post("/v1/jobs/batch", items).await.json()["items"][0].clone();
        assert_eq!((&item["id"], &item["replayed"]), (&json!(second), &json!(true)), "{item}");
    })
    .await;
}

#[tokio::test]
async fn a_revoked_key_works_no_more_and_its_streams_end() {
    stage(async |stage| {
        let keys = Keys::new();
        let (key, other) = (keys.make(&Scope::ALL, None), keys.make(&[Scope::Read], None));
        let front = stage.front_with(&keys.guard(&stage.config)).await;
        let seen = Seen { front: &front, key: &key };
        let job = seen.post("/v1/jobs", r#"{"kind":"test.probe","delay":"1h"}"#).await.accepted();
        let open =
            async |key: &ApiKey, path: &str| Stream::open_by(&front, path, key).await.expect("a stream");
        let mut cut = open(&key, "/v1/events").await;
        let mut story = open(&key, &format!("/v1/jobs/{job}/events")).await;
        let mut kept = open(&other, "/v1/events").await;
        let waiting = seen.request(Method::GET, &format!("/v1/jobs/{job}?wait=55s")).send();
        let waiting = tokio::spawn(waiting);
        keys.revoke(&key);
        while cut.next().await.is_some() {}
        while story.next().await.is_some() {}
        assert_eq!(waiting.await.expect("no panic").expect("an answer").status(), 401);
        seen.get("/v1/jobs").await.problem(401, "unauthorized");
        // Who still has a key goes on.
        let next = keys.make(&[Scope::Submit], None);
        let later = eventually("the new key is known", async || {
            let seen = Seen { front: &front, key: &next };
            let answer = seen.post("/v1/jobs", r#"{"kind":"test.probe","delay":"1h"}"#).await;
            (answer.status == 202).then_some(answer)
        })
        .await
        .accepted();
        let told = tokio::time::timeout(PATIENCE, async {
            while let Some(event) = kept.next().await {
                if event.data["subject"] == later.as_str() {
                    return true;
                }
            }
            false
        });
        assert!(told.await.expect("in time"), "the other stream was cut too");
    })
    .await;
}

#[tokio::test]
async fn a_key_has_its_name_in_what_it_orders() {
    stage(async |stage| {
        let keys = Keys::new();
        let key = keys.make(&Scope::ALL, None);
        let name = keys.name(&key);
        let front = stage.front_with(&keys.guard(&stage.config)).await;
        let seen = Seen { front: &front, key: &key };
        let queue = &stage.queue;
        let paused = seen.post(&format!("/v1/queues/{queue}/pause?by=eve"), "").await.json();
        assert_eq!(paused["paused_by"], format!("{name} (eve)"));
        seen.post(&format!("/v1/queues/{queue}/resume"), "").await;
        let job = seen.post("/v1/jobs", r#"{"kind":"test.probe","delay":"1h"}"#).await.accepted();
        let cancelled = seen.delete(&format!("/v1/jobs/{job}")).await;
        assert_eq!(
            (cancelled.status, &cancelled.json()["cancel_requested_by"]),
            (202, &json!(name)),
            "{cancelled:?}"
        );
        let act = seen
            .post("/v1/jobs/cancel", json!({ "filter": { "queue": queue }, "by": "eve" }).to_string())
            .await;
        let record = seen.get(&format!("/v1/jobs/{}", act.accepted())).await.json();
        assert_eq!(record["args"]["by"], format!("{name} (eve)"), "{record}");
    })
    .await;
}

#[tokio::test]
async fn a_browser_logs_in_and_out() {
    stage(async |stage| {
        let keys = Keys::new();
        let key = keys.make(&Scope::ALL, None);
        let front = stage.front_with(&keys.guard(&stage.config)).await;
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = client.timeout(Duration::from_secs(60)).build().expect("an HTTP client");
        let origin = front.url("");
        let ask =
            |method: Method, path: &str| client.request(method, front.url(path)).header("origin", &origin);
        let login = |key: &str| {
            let form =
                ask(Method::POST, "/login").header("content-type", "application/x-www-form-urlencoded");
            front.send(form.body(format!("key={key}")))
        };
        let page = front.send(ask(Method::GET, "/login")).await;
        assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
        assert!(
            page.text.contains("<form")
                && page.header("content-security-policy").contains("default-src 'none'")
        );
        let wrong = login(&ApiKey::random().expect("a key").expose()).await;
        assert_eq!((wrong.status, wrong.header("set-cookie")), (401, ""), "{wrong:?}");
        let answer = login(&key.expose()).await;
        assert_eq!((answer.status, answer.header("location")), (303, "/"), "{answer:?}");
        let cookie = answer.header("set-cookie").to_owned();
        assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains("Secure"), "{cookie}");
        assert!(!cookie.contains(&key.expose()[16..]), "the key itself is in no cookie");
        let session = cookie.split(';').next().expect("a pair").to_owned();
        let with = |request: RequestBuilder| front.send(request.header("cookie", &session));
        assert!(with(ask(Method::GET, "/login")).await.text.contains(&keys.name(&key)));
        assert_eq!(with(ask(Method::GET, "/v1/jobs")).await.status, 200);
        let submit = |request: RequestBuilder| {
            with(
                request
                    .header("content-type", "application/json")
                    .body(r#"{"kind":"test.probe","delay":"1h"}"#),
            )
        };
        submit(ask(Method::POST, "/v1/jobs")).await.accepted();
        // Without a word of the browser that it was a page of ours, or with one that it was not.
        submit(client.post(front.url("/v1/jobs"))).await.problem(403, "cross_origin");
        for (header, value) in [
            ("origin", "https://evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            submit(client.post(front.url("/v1/jobs")).header(header, value))
                .await
                .problem(403, "cross_origin");
        }
        let forged = client.post(front.url("/login")).header("origin", "https://evil.example");
        front.send(forged.body(format!("key={}", key.expose()))).await.problem(403, "cross_origin");
        let out = with(ask(Method::POST, "/logout")).await;
        assert!(out.status == 303 && out.header("set-cookie").contains("Max-Age=0"), "{out:?}");
        keys.revoke(&key);
        eventually("the session ends with its key", async || {
            (with(ask(Method::GET, "/v1/jobs")).await.status == 401).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn without_keys_there_is_no_login() {
    stage(async |stage| {
        let front = stage.front().await;
        front.get("/login").await.problem(404, "not_found");
        front.post("/login", "{}").await.problem(404, "not_found");
        front.post("/logout", "").await.problem(404, "not_found");
        // A key that nobody asked for does no harm.
        let key = ApiKey::random().expect("a key");
        assert_eq!(Seen { front: &front, key: &key }.get("/v1/jobs").await.status, 200);
    })
    .await;
}
