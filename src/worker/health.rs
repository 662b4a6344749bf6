//! `/healthz` of a worker: 200 while every queue has a consumer on a live channel or is paused, else 503. And its
//! `/metrics`, for which nobody is asked.
//!
//! A process that is alive but consumes nothing is the classic silent failure of queue workers, so that is what
//! the probe asks. The answers need two paths and no library; anything but a GET of them is refused.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::figures::Figures;
use crate::{job::QueueName, metrics};

/// Longest time for a probe to ask and read.
const PROBE: Duration = Duration::from_secs(5);
/// Most probes at a time.
const PROBES: usize = 32;
/// Longest request that is read.
const REQUEST_MAX: usize = 8 * 1024;

/// How one queue stands.
#[derive(Debug, Default)]
pub(super) struct QueueHealth {
    /// Whether a consumer is registered on a live channel.
    pub(super) consuming: Arc<AtomicBool>,
    /// Whether there need not be one.
    pub(super) paused: AtomicBool,
}

pub(super) type Health = BTreeMap<QueueName, Arc<QueueHealth>>;

const JSON: &str = "application/json";
const NOT_FOUND: &str = "404 Not Found";

/// Listens; the future answers until `stop`.
pub(super) async fn serve(
    address: SocketAddr,
    queues: Health,
    figures: Figures,
    stop: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let listener = TcpListener::bind(address).await?;
    let (answers, places) = (Arc::new((queues, figures)), Arc::new(Semaphore::new(PROBES)));
    Ok(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    let answers = Arc::clone(&answers);
                    tokio::spawn(async move {
                        let _place = place;
                        let (queues, figures) = &*answers;
                        // A probe that hangs or breaks off is its own affair.
                        drop(timeout(PROBE, answer(stream, queues, || figures.text())).await);
                    });
                }
                // Out of file descriptors, most likely: try again soon.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    })
}

async fn answer(mut stream: TcpStream, queues: &Health, figures: impl Fn() -> String) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let (status, media, body) = response(&head, queues, figures);
    let response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {media}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < REQUEST_MAX {
        match stream.read(&mut chunk).await? {
            0 => break,
            count => head.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(head)
}

/// Whether this is the head of a GET of `path`, whatever its query.
fn gets(head: &[u8], path: &str) -> bool {
    let rest = head.strip_prefix(b"GET ").and_then(|rest| rest.strip_prefix(path.as_bytes()));
    rest.is_some_and(|rest| matches!(rest.first(), Some(b' ' | b'?')))
}

/// Status, content type and body.
fn response(
    head: &[u8],
    queues: &Health,
    figures: impl Fn() -> String,
) -> (&'static str, &'static str, String) {
    if gets(head, "/metrics") {
        return ("200 OK", metrics::CONTENT_TYPE, figures());
    }
    if !gets(head, "/healthz") {
        return (NOT_FOUND, JSON, json!({ "detail": "GET /healthz or /metrics" }).to_string());
    }
    let (status, body) = health(queues);
    (status, JSON, body)
}

fn health(queues: &Health) -> (&'static str, String) {
    let (mut consuming, mut paused) = (BTreeMap::new(), Vec::new());
    for (queue, health) in queues {
        // In this order: a consumer that ends because of a pause does so after the pause is told.
        consuming.insert(queue.as_str(), health.consuming.load(Ordering::SeqCst));
        if health.paused.load(Ordering::SeqCst) {
            paused.push(queue.as_str());
        }
    }
    let healthy = consuming.iter().all(|(queue, consuming)| *consuming || paused.contains(queue));
    let status = if healthy { "200 OK" } else { "503 Service Unavailable" };
    (status, json!({ "consuming": consuming, "paused": paused }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_is_consuming_everywhere_or_paused() {
        let queues = Health::from(["a", "b"].map(|queue| {
            let health = QueueHealth::default();
            health.consuming.store(true, Ordering::Relaxed);
            (QueueName::parse(queue).unwrap(), Arc::new(health))
        }));
        let get = |head: &[u8]| response(head, &queues, || "hopline_x 1\n".to_owned());
        let asked = b"GET /healthz HTTP/1.1\r\n\r\n";
        assert_eq!(get(asked), ("200 OK", JSON, r#"{"consuming":{"a":true,"b":true},"paused":[]}"#.into()));
        queues["b"].consuming.store(false, Ordering::Relaxed);
        queues["b"].paused.store(true, Ordering::Relaxed);
        assert_eq!(
            get(asked),
            ("200 OK", JSON, r#"{"consuming":{"a":true,"b":false},"paused":["b"]}"#.into())
        );
        queues["b"].paused.store(false, Ordering::Relaxed);
        assert_eq!(get(asked).0, "503 Service Unavailable");
        for metrics in [&b"GET /metrics HTTP/1.1\r\n\r\n"[..], b"GET /metrics?a=b HTTP/1.0\r\n"] {
            assert_eq!(
                get(metrics),
                ("200 OK", metrics::CONTENT_TYPE, "hopline_x 1\n".into()),
                "also when it is ill"
            );
        }
        for other in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"POST /healthz HTTP/1.1\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\n\r\n",
            b"",
            b"GET /healthzz ",
            b"GET /metrics",
            b"GET /metrics/ ",
        ] {
            assert_eq!(get(other).0, NOT_FOUND);
        }
    }
}
