//! `/healthz` of a worker: 200 while every queue has a consumer on a live channel or is paused, else 503.
//!
//! A process that is alive but consumes nothing is the classic silent failure of queue workers, so that is what
//! the probe asks. The answer needs one path and no library; anything but a GET of it is refused.

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

use crate::job::QueueName;

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

/// Listens; the future answers until `stop`.
pub(super) async fn serve(
    address: SocketAddr,
    queues: Health,
    stop: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let listener = TcpListener::bind(address).await?;
    let (queues, places) = (Arc::new(queues), Arc::new(Semaphore::new(PROBES)));
    Ok(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    let queues = Arc::clone(&queues);
                    tokio::spawn(async move {
                        let _place = place;
                        // A probe that hangs or breaks off is its own affair.
                        drop(timeout(PROBE, answer(stream, &queues)).await);
                    });
                }
                // Out of file descriptors, most likely: try again soon.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    })
}

async fn answer(mut stream: TcpStream, queues: &Health) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let (status, body) = response(&head, queues);
    let response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
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

fn response(head: &[u8], queues: &Health) -> (&'static str, String) {
    if !(head.starts_with(b"GET /healthz ") || head.starts_with(b"GET /healthz?")) {
        return ("404 Not Found", json!({ "detail": "GET /healthz" }).to_string());
    }
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
        let get = b"GET /healthz HTTP/1.1\r\n\r\n";
        assert_eq!(
            response(get, &queues),
            ("200 OK", r#"{"consuming":{"a":true,"b":true},"paused":[]}"#.into())
        );
        queues["b"].consuming.store(false, Ordering::Relaxed);
        queues["b"].paused.store(true, Ordering::Relaxed);
        assert_eq!(
            response(get, &queues),
            ("200 OK", r#"{"consuming":{"a":true,"b":false},"paused":["b"]}"#.into())
        );
        queues["b"].paused.store(false, Ordering::Relaxed);
        assert_eq!(response(get, &queues).0, "503 Service Unavailable");
        for other in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"POST /healthz HTTP/1.1\r\n\r\n", b"", b"GET /healthzz "]
        {
            assert_eq!(response(other, &queues).0, "404 Not Found");
        }
    }
}
