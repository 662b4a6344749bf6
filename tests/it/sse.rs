//! Server-sent events against a live broker: no gap, no repeat, an end, and limits.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::timeout,
};

use crate::support::{
    PATIENCE, eventually,
    sse::{Sse, Stream},
    stage::stage,
};

fn names(events: &[Sse]) -> Vec<&str> {
    events.iter().map(Sse::name).collect()
}

#[tokio::test]
async fn a_jobs_stream_ends_with_its_end_and_says_so() {
    stage(async |stage| {
        let (_worker, log) = stage.probes();
        let (here, there) = (stage.front().await, stage.front().await);
        let id = here.submit(r#"{"kind":"test.probe","args":{"script":["fail","held"]}}"#).await;
        let path = format!("/v1/jobs/{id}/events");
        let mut stream = Stream::open(&there, &path, None).await.expect("a stream");
        let first = stream.next().await.expect("an event");
        assert_eq!(first.event, "hopline.job.submitted");
        assert_eq!((&first.data["subject"], &first.data["data"]["args_omitted"]), (&json!(id), &json!(true)));
        log.release(1);
        let mut events = vec![first];
        events.extend(stream.rest().await);
        let told: Vec<&str> = names(&events).into_iter().filter(|name| *name != "started").collect();
        assert_eq!(told, ["submitted", "retrying", "succeeded"]);

        for front in [&here, &there] {
            // From the beginning once more, and after each of its events.
            let again = Stream::open(front, &path, None).await.expect("a stream").rest().await;
            assert_eq!(again, events);
            for (index, event) in events.iter().enumerate() {
                match Stream::open(front, &path, Some(&event.id)).await {
                    Ok(stream) => assert_eq!(stream.rest().await, events[index + 1..], "after {}", event.id),
                    Err(status) => assert_eq!((status, index), (204, events.len() - 1)),
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_events_across_cuts_and_replicas() {
    stage(async |stage| {
        const JOBS: usize = 5_000;
        let (_worker, _log) = stage.probes();
        let fronts = [stage.front().await, stage.front().await];
        let items: Vec<_> =
            (0..JOBS).map(|n| json!({"kind": "test.probe", "args": n, "tags": ["many"]})).collect();
        let submitting = async {
            for chunk in items.chunks(500) {
                let answer = fronts[0].post("/v1/jobs/batch", serde_json::to_string(chunk).unwrap()).await;
                assert_eq!(answer.json()["accepted"], chunk.len(), "{answer:?}");
            }
        };
        let reading = async {
            let mut events: Vec<Sse> = Vec::new();
            let mut last = "0.0".to_owned();
            // Each stream is dropped after so many events, and goes on at the other replica.
            for (turn, front) in fronts.iter().cycle().enumerate() {
                let stream = Stream::open(front, "/v1/events?tag=many", Some(&last)).await;
                let left = 2 * JOBS - events.len();
                let some = stream.expect("a stream").take(left.min(700 + 100 * turn)).await;
                events.extend(some);
                if events.len() == 2 * JOBS {
                    return events;
                }
                last.clone_from(&events.last().expect("some").id);
            }
            unreachable!("endless")
        };
        let ((), events) = tokio::join!(submitting, reading);
        assert!(events.windows(2).all(|pair| pair[0].place() < pair[1].place()), "in the order of the log");
        let ids: BTreeSet<&str> = events.iter().map(|event| event.data["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 2 * JOBS, "each once");
        let of = |name: &str| events.iter().filter(|event| event.name() == name).count();
        assert_eq!((of("submitted"), of("succeeded")), (JOBS, JOBS));
    })
    .await;
}

#[tokio::test]
async fn a_stream_begins_now_and_has_what_fits() {
    stage(async |stage| {
        let front = stage.front().await;
        front.submit(r#"{"kind":"test.probe","tags":["a"],"delay":"1h"}"#).await;
        let before = front.submit(r#"{"kind":"test.probe","tags":["b"],"delay":"1h"}"#).await;
        assert_eq!(front.get(&format!("/v1/jobs/{before}")).await.status, 200, "the record has it");
        let queue = stage.queue.as_str();
        let mut all = Stream::open(&front, "/v1/events", None).await.expect("a stream");
        let mut tagged = Stream::open(&front, "/v1/events?tag=b", None).await.expect("a stream");
        let mut queued = Stream::open(&front, &format!("/v1/events?queue={queue}&kind=test.probe"), None)
            .await
            .expect("one");
        let a = front.submit(r#"{"kind":"test.probe","tags":["a"],"delay":"1h"}"#).await;
        let b = front.submit(r#"{"kind":"test.probe","tags":["b"],"delay":"1h"}"#).await;
        assert_eq!(tagged.next().await.expect("an event").data["subject"], b);
        for stream in [&mut all, &mut queued] {
            let heard = stream.take(2).await;
            let subjects: BTreeSet<&str> =
                heard.iter().filter_map(|event| event.data["subject"].as_str()).collect();
            assert_eq!(subjects, BTreeSet::from([a.as_str(), b.as_str()]));
        }
    })
    .await;
}

#[tokio::test]
async fn a_place_that_does_not_exist_is_a_gap() {
    stage(async |stage| {
        let front = stage.front().await;
        let id = front.submit(r#"{"kind":"test.probe","delay":"1h"}"#).await;
        let beyond = "99999999.0";
        let mut log = Stream::open(&front, "/v1/events", Some(beyond)).await.expect("a stream");
        let gap = log.next().await.expect("an event");
        assert_eq!((gap.event.as_str(), &gap.data["last_event_id"]), ("hopline.gap", &json!(beyond)));
        assert_eq!(gap.data["goes_on_after"], gap.id);
        let next = front.submit(r#"{"kind":"test.probe","delay":"1h"}"#).await;
        assert_eq!(log.next().await.expect("an event").data["subject"], next, "goes on from now");

        let mut job =
            Stream::open(&front, &format!("/v1/jobs/{id}/events"), Some(beyond)).await.expect("a stream");
        assert_eq!(names(&job.take(2).await), ["gap", "submitted"], "told from its beginning");
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.http.read_timeout = Duration::from_secs(2);
        config.http.max_streams = 1;
        let front = stage.front_with(&config).await;
        let other = stage.front().await;
        // Events that fill all buffers in between: 10,000 of 2 KB.
        let tags: Vec<String> = (0..18).map(|n| format!("{n:0100}")).collect();
        let items = vec![json!({"kind": "test.probe", "tags": tags, "delay": "1h"}); 500];
        let items = serde_json::to_string(&items).unwrap();

        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut slow = socket.connect(front.address).await.unwrap();
        slow.write_all(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut head = [0; 64];
        slow.read_exact(&mut head).await.unwrap();
        front.get("/v1/events").await.problem(503, "streams_full");
        for _ in 0..20 {
            assert_eq!(other.post("/v1/jobs/batch", items.clone()).await.status, 202);
        }
        // Its place is free again: nobody waits for it.
        eventually("it is cut off", async || Stream::open(&front, "/v1/events", None).await.ok()).await;
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, slow.read_to_end(&mut rest)).await.expect("the connection is closed");
        assert!(end.is_err() || !rest.ends_with(b"0\r\n\r\n"), "cut, not ended");
    })
    .await;
}

#[tokio::test]
async fn streams_end_with_the_server_and_free_their_places() {
    stage(async |stage| {
        let mut config = stage.config.clone();
        config.http.max_streams = 1;
        let front = stage.front_with(&config).await;
        let stream = Stream::open(&front, "/v1/events", None).await.expect("a stream");
        front.get("/v1/events").await.problem(503, "streams_full");
        drop(stream);
        let mut stream =
            eventually("the place is free", async || Stream::open(&front, "/v1/events", None).await.ok())
                .await;
        front.submit(r#"{"kind":"test.probe","delay":"1h"}"#).await;
        assert_eq!(stream.next().await.expect("an event").name(), "submitted");
        front.tell_to_end();
        assert_eq!(timeout(PATIENCE, stream.next()).await.expect("it ends"), None);
    })
    .await;
}
