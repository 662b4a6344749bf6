//! The dashboard as the server gives it: its document and files, the session that it hides things by, where a login leads, and
//! the overview. What it looks like and does in a browser is looked at by `make dashboard`.

use std::collections::BTreeSet;

use hopline::access::Scope;
use reqwest::{Method, redirect::Policy};
use serde_json::{Value, json};

use crate::support::{
    eventually,
    front::{Answer, Front},
    keys::{Keys, Seen},
    sse::Stream,
    stage::stage,
};

const PAGES: [&str; 10] = [
    "/",
    "/jobs",
    "/jobs?status=failed&queue=media",
    "/jobs/0198c0de-7a3c-7c3e-8d5f-0123456789ab",
    "/queues",
    "/dead?queue=media",
    "/workers",
    "/kinds",
    "/submit",
    "/submit?kind=image.thumbnail",
];

/// The files that a file names: of a document by their address, of a script beside it.
fn named(text: &str) -> BTreeSet<String> {
    let quoted = text.split(['"', '\'']);
    quoted
        .filter_map(|part| part.strip_prefix("/dashboard/").or_else(|| part.strip_prefix("./")))
        .map(|name| format!("/dashboard/{name}"))
        .collect()
}

fn check_headers(answer: &Answer, path: &str) {
    let policy = answer.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{path}: {policy}");
    for word in ["script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(word), "{path}: {policy}");
    }
    assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    assert_eq!(answer.header("cache-control"), "no-cache", "{path}");
}

#[tokio::test]
async fn all_pages_are_one_document_and_what_it_needs_is_there() {
    stage(async |stage| {
        // The pages tell nothing: with keys they need none.
        let keys = Keys::new();
        let front = stage.front_with(&keys.guard(&stage.config)).await;
        let page = front.get("/").await;
        for path in PAGES {
            let answer = front.get(path).await;
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, "text/html; charset=utf-8"),
                "{path}"
            );
            check_headers(&answer, path);
            assert_eq!(answer.text, page.text, "{path}");
            let tag = answer.header("etag");
            assert!(tag.starts_with('"'), "{path}: a strong tag, {tag}");
            let again = front.get_with(path, "if-none-match", tag).await;
            assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
            front.post(path, "").await.problem(405, "method_not_allowed");
        }
        assert!(!page.text.contains("<style") && !page.text.contains(" style="), "no inline style");
        assert_eq!(
            page.text.matches("<script").count(),
            page.text.matches("<script src=").count() + 1,
            "no inline script"
        );
        assert!(page.text.contains("<script type=\"module\" src="));
        let (mut seen, mut open) = (BTreeSet::new(), named(&page.text));
        while let Some(path) = open.pop_first() {
            let file = front.get(&path).await;
            assert_eq!(file.status, 200, "{path}");
            check_headers(&file, &path);
            let media = match path.rsplit('.').next() {
                Some("js") => "text/javascript; charset=utf-8",
                Some("css") => "text/css; charset=utf-8",
                _ => "image/svg+xml",
            };
            assert_eq!(file.header("content-type"), media, "{path}");
            assert_eq!(
                front.get_with(&path, "if-none-match", file.header("etag")).await.status,
                304,
                "{path}"
            );
            seen.insert(path);
            open.extend(named(&file.text).difference(&seen).cloned());
        }
        assert!(seen.len() > 20, "{seen:?}");
        for path in ["/dashboard/none.js", "/dashboard/..%2Fhttp.rs", "/dashboard/", "/jobs/a/b", "/nothing"]
        {
            front.get(path).await.problem(404, "not_found");
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_says_what_may_be_done() {
    stage(async |stage| {
        let open = stage.front().await.get("/session").await.json();
        assert_eq!(open["keys"], false);
        assert_eq!(open["scopes"], json!(["submit", "read", "operate"]));
        assert!(open.get("name").is_none() && open.get("trace_url").is_none(), "{open}");

        let keys = Keys::new();
        let reads = keys.make(&[Scope::Read], Some(&[&stage.queue]));
        let submits = keys.make(&[Scope::Submit], None);
        let mut config = keys.guard(&stage.config);
        config.http.trace_url = Some("https://traces.example/{trace_id}".to_owned());
        let front = stage.front_with(&config).await;
        let nobody = front.get("/session").await;
        assert_eq!((nobody.status, nobody.header("cache-control")), (200, "no-store"));
        assert_eq!(nobody.json()["scopes"], json!([]), "{nobody:?}");
        assert!(nobody.json()["keys"] == true && nobody.json().get("trace_url").is_none());
        let reader = Seen { front: &front, key: &reads }.get("/session").await.json();
        assert_eq!(reader["scopes"], json!(["read"]), "it is read-only");
        assert_eq!(reader["queues"], json!([stage.queue]));
        assert_eq!(reader["name"], keys.name(&reads));
        assert_eq!(reader["trace_url"], "https://traces.example/{trace_id}");
        let submitter = Seen { front: &front, key: &submits }.get("/session").await.json();
        assert!(
            submitter["scopes"] == json!(["submit"]) && submitter.get("trace_url").is_none(),
            "{submitter}"
        );
        front.get("/session?x=1").await.problem(422, "invalid_request");
    })
    .await;
}

/// Logs in with `form` behind the key: the answer, which is not followed.
async fn log_in(front: &Front, key: &str, form: &str) -> Answer {
    let client =
        reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().expect("an HTTP client");
    let request = client
        .request(Method::POST, front.url("/login"))
        .header("origin", front.url(""))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("key={key}{form}"));
    front.send(request).await
}

#[tokio::test]
async fn a_login_leads_back_to_the_page_and_nowhere_else() {
    stage(async |stage| {
        let keys = Keys::new();
        let key = keys.make(&[Scope::Read], None).expose();
        let front = stage.front_with(&keys.guard(&stage.config)).await;
        let page = front.get("/login?next=%2Fjobs%3Fstatus%3Ddead%26queue%3Da").await;
        assert!(page.text.contains("name=\"next\" value=\"/jobs?status=dead&amp;queue=a\""), "{page:?}");
        let page = front.get("/login?next=https%3A%2F%2Fevil.example").await;
        assert!(page.status == 200 && !page.text.contains("evil"), "{page:?}");
        front.get("/login?key=x").await.problem(422, "invalid_request");
        for (form, leads) in [
            ("", "/"),
            ("&next=%2Fjobs%3Fstatus%3Ddead", "/jobs?status=dead"),
            ("&next=%2F%2Fevil.example", "/"),
            ("&next=https%3A%2F%2Fevil.example", "/"),
            ("&next=%2F%5Cevil.example", "/"),
            ("&next=%2Fa%0D%0Aset-cookie%3A%20a%3Db", "/"),
        ] {
            let answer = log_in(&front, &key, form).await;
            assert_eq!((answer.status, answer.header("location")), (303, leads), "{form}");
        }
        let wrong = log_in(&front, "wrong", "&next=%2Fdead").await;
        assert!(
            wrong.status == 401 && wrong.text.contains("value=\"/dead\""),
            "it is asked for once more: {wrong:?}"
        );
        let cookie = log_in(&front, &key, "").await.header("set-cookie").to_owned();
        let session = cookie.split(';').next().expect("a pair");
        assert_eq!(front.get_with("/session", "cookie", session).await.json()["scopes"], json!(["read"]));
    })
    .await;
}

fn queue_of<'a>(overview: &'a Value, name: &str) -> Option<&'a Value> {
    overview["queues"].as_array().expect("queues").iter().find(|queue| queue["queue"] == name)
}

fn sum(numbers: &Value) -> u64 {
    numbers.as_array().expect("a list").iter().map(|number| number.as_u64().expect("a number")).sum()
}

#[tokio::test]
async fn an_overview_tells_of_jobs_queues_workers_and_the_last_minutes() {
    stage(async |stage| {
        let front = stage.front().await;
        let (working, _log) = stage.probes();
        let submit = |steps: Value| json!({ "kind": "test.probe", "args": { "script": steps } }).to_string();
        let done = front.submit(submit(json!(["ok"]))).await;
        let dead = front.submit(submit(json!(["fatal"]))).await;
        let later = json!({ "kind": "test.probe", "delay": "1h" }).to_string();
        front.submit(later).await;
        front.settled(&done).await;
        front.settled(&dead).await;
        let seen = eventually("all of it is in the overview", async || {
            let seen = front.get("/v1/overview").await.json();
            let jobs = &seen["jobs"];
            let told = jobs["succeeded"] == 1 && jobs["dead"] == 1 && jobs["scheduled"] == 1;
            (told && seen["worker_count"] == 1 && sum(&seen["history"]["ended"]) == 2).then_some(seen)
        })
        .await;
        let history = &seen["history"];
        assert_eq!(history["seconds"], 5);
        assert_eq!((sum(&history["failed"]), sum(&history["arrived"])), (1, 2));
        for list in ["arrived", "ended", "failed", "mean_duration"] {
            assert_eq!(history[list].as_array().map(Vec::len), Some(120), "{list}");
        }
        let queue = queue_of(&seen, stage.queue.as_str()).expect("its queue");
        let alone = front.get(&format!("/v1/queues/{}", stage.queue)).await.json();
        for member in ["ready", "dead", "scheduled", "consumers", "workers", "paused"] {
            assert_eq!(queue[member], alone[member], "{member}");
        }
        assert_eq!(seen["workers"][0]["worker"], alone["workers"][0]);
        working.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_overview_is_told_again_and_again_until_the_front_ends() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.http.max_streams = 2;
        let front = stage.front_with(&config).await;
        let mut one = Stream::open(&front, "/v1/overview/events", None).await.expect("a stream");
        let mut two = Stream::open(&front, "/v1/overview/events", None).await.expect("another");
        assert_eq!(
            Stream::open(&front, "/v1/overview/events", None).await.err(),
            Some(503),
            "they are counted"
        );
        let (first, other) = (one.next().await.expect("an event"), two.next().await.expect("an event"));
        assert_eq!((first.event.as_str(), other.event.as_str()), ("hopline.overview", "hopline.overview"));
        front.submit(json!({ "kind": "test.probe", "delay": "1h" }).to_string()).await;
        while one.next().await.expect("an event").data["jobs"]["scheduled"] != 1 {}
        front.tell_to_end();
        while one.next().await.is_some() {}
        while two.next().await.is_some() {}
    })
    .await;
}

#[tokio::test]
async fn a_key_for_some_queues_has_an_overview_of_these() {
    stage(async |stage| {
        let (keys, other) = (Keys::new(), stage.other_queue("b"));
        let all = keys.make(&Scope::ALL, None);
        let one = keys.make(&[Scope::Read], Some(&[&other]));
        let mut config = keys.guard(&stage.config);
        config.amqp.queues.push(other.clone());
        let front = stage.front_with(&config).await;
        let (all, one) = (Seen { front: &front, key: &all }, Seen { front: &front, key: &one });
        for (queue, number) in [(&stage.queue, 3), (&other, 2)] {
            for _ in 0..number {
                let job = json!({ "kind": "test.probe", "queue": queue, "delay": "1h" }).to_string();
                all.post("/v1/jobs", job).await.accepted();
            }
        }
        eventually("all are in the record", async || {
            (all.get("/v1/overview").await.json()["jobs"]["scheduled"] == 5).then_some(())
        })
        .await;
        let own = one.get("/v1/overview").await.json();
        assert_eq!(own["jobs"]["scheduled"], 2);
        assert!(
            queue_of(&own, other.as_str()).is_some() && queue_of(&own, stage.queue.as_str()).is_none(),
            "{own}"
        );
        assert!(!own.to_string().contains(&format!("\"{}\"", stage.queue)), "nothing of the other: {own}");
        let mut stream = Stream::open_by(&front, "/v1/overview/events", one.key).await.expect("a stream");
        assert_eq!(stream.next().await.expect("an event").data["jobs"]["scheduled"], 2);
        keys.revoke(one.key);
        while stream.next().await.is_some() {}
    })
    .await;
}

#[tokio::test]
async fn a_job_names_the_trace_that_it_is_part_of() {
    stage(async |stage| {
        let front = stage.front().await;
        let (working, _log) = stage.probes();
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let body = json!({ "kind": "test.probe" }).to_string();
        let request =
            front.request("/v1/jobs", body).header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
        let id = front.send(request).await.accepted();
        let record = front.settled(&id).await;
        assert_eq!(record["trace_id"], trace);
        let plain = front.submit(json!({ "kind": "test.probe" }).to_string()).await;
        assert!(front.settled(&plain).await.get("trace_id").is_none());
        let listed = front.get("/v1/jobs").await.json();
        assert!(listed["items"][0].get("trace_id").is_none(), "lists leave it out");
        working.stop().await;
    })
    .await;
}
