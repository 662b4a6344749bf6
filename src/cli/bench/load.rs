//! The load: HTTP/1.1 over kept connections, as lean as it can be: what it uses of the processors, the measured
//! processes do not have.
//!
//! All connections are one task on a thread of its own. A connection is TCP with the requests written before; of an
//! answer its status and its body are read, which has a `Content-Length` always.

use std::{cell::RefCell, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{clock, stats::Times};

/// Jobs in one batch request.
pub(super) const BATCH: usize = 500;
/// Clients that send batches, taking turns.
const LANES: usize = 4;
/// Longest time for one request, and for all of a measurement.
const LONGEST_REQUEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(900);
/// Longest head of an answer.
const HEAD_MAX: usize = 16 << 10;

/// From the first request to the last answer, on the machine's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) began: u64,
    pub(super) ended: u64,
}

impl Sent {
    pub(super) fn took(self) -> Duration {
        clock::between(self.began, self.ended)
    }
}

/// A kept connection.
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends a request; the status and the body of its answer.
    pub(super) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (status, head, length) = loop {
            if let Some(found) = head(&self.buffer)? {
                break found;
            }
            ensure!(self.buffer.len() < HEAD_MAX, "the head of an answer does not end");
            self.read().await?;
        };
        while self.buffer.len() < head + length {
            self.read().await?;
        }
        Ok((status, &self.buffer[head..head + length]))
    }

    /// As [`ask`](Self::ask); what is no success is an error.
    pub(super) async fn demand(&mut self, request: &[u8]) -> anyhow::Result<&[u8]> {
        let (status, body) = self.ask(request).await?;
        if !(200..300).contains(&status) {
            bail!("the front answered {status}: {}", String::from_utf8_lossy(body));
        }
        Ok(body)
    }

    /// Sends a request whose answer has no end, and reads its head.
    async fn begin(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        while !contains(&self.buffer, b"\r\n\r\n") {
            ensure!(self.buffer.len() < HEAD_MAX, "the head of an answer does not end");
            self.read().await?;
        }
        ensure!(self.buffer.starts_with(b"HTTP/1.1 200 "), "the front opens no stream");
        Ok(())
    }

    /// Reads until `mark` has come so many times.
    async fn count(&mut self, mark: &[u8], mut left: usize) -> anyhow::Result<()> {
        loop {
            let found = self.buffer.windows(mark.len()).filter(|window| *window == mark).count();
            left = left.saturating_sub(found);
            // What may be the begin of another one stays.
            let rest = self.buffer.len().saturating_sub(mark.len() - 1);
            self.buffer.drain(..rest);
            if left == 0 {
                return Ok(());
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the front closed a connection");
        Ok(())
    }
}

/// Status, length of the head, length of the body; `None`: the head is not whole yet.
fn head(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = answer.parse(bytes)? else { return Ok(None) };
    let status = answer.code.unwrap_or_default();
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.context("an answer has no Content-Length")?;
    Ok(Some((status, head, std::str::from_utf8(length.value)?.trim().parse()?)))
}

/// A request as it is written.
pub(super) fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Sends so many of `items`, which take turns, in batches, as fast as they are taken.
pub(super) async fn batches(address: SocketAddr, items: Vec<Vec<u8>>, count: usize) -> anyhow::Result<Sent> {
    apart(move || async move {
        let request_of = |size: usize| {
            let items: Vec<&[u8]> = items.iter().map(Vec::as_slice).cycle().take(size).collect();
            let items = items.join(&b","[..]);
            request("POST", "/v1/jobs/batch", &[b"[", items.as_slice(), b"]"].concat())
        };
        let (whole, last) = (request_of(BATCH), request_of(count % BATCH));
        let sizes = (0..count).step_by(BATCH).map(|from| if count - from < BATCH { &last } else { &whole });
        let requests: Vec<&Vec<u8>> = sizes.collect();
        let mut lanes = open(address, LANES).await?;
        let began = clock::now();
        let each = lanes.iter_mut().enumerate().map(|(lane, connection)| {
            let requests = &requests;
            async move {
                for request in requests.iter().skip(lane).step_by(LANES) {
                    let answer = connection.demand(request).await?;
                    // It comes first.
                    let counts = &answer[..answer.len().min(64)];
                    ensure!(contains(counts, b"\"rejected\":0,"), "a job of a batch was refused");
                }
                anyhow::Ok(())
            }
        });
        try_join_all(each).await?;
        Ok(Sent { began, ended: clock::now() })
    })
    .await
}

/// Sends a request so many times over so many connections, each as soon as the one before it on its connection is
/// answered. How long each took.
pub(super) async fn each(
    address: SocketAddr,
    request: Vec<u8>,
    count: usize,
    connections: usize,
) -> anyhow::Result<(Sent, Times)> {
    apart(move || async move {
        let mut lanes = open(address, connections).await?;
        let (left, times) = (RefCell::new(count), RefCell::new(Times::new()));
        let take = || {
            let mut left = left.borrow_mut();
            let any = *left > 0;
            *left = left.saturating_sub(1);
            any
        };
        let began = clock::now();
        let each = lanes.iter_mut().map(|connection| async {
            while take() {
                let began = Instant::now();
                connection.demand(&request).await?;
                times.borrow_mut().add(began.elapsed());
            }
            anyhow::Ok(())
        });
        try_join_all(each).await?;
        let sent = Sent { began, ended: clock::now() };
        drop(lanes);
        Ok((sent, times.into_inner()))
    })
    .await
}

/// Streams of events, all open: each counts what comes.
pub(super) struct Streams {
    lanes: Vec<Connection>,
}

impl Streams {
    /// Opens so many streams of `path`.
    pub(super) async fn open(address: SocketAddr, path: &str, count: usize) -> anyhow::Result<Self> {
        let (mut lanes, request) = (open(address, count).await?, request("GET", path, b""));
        let begin = lanes.iter_mut().map(|lane| lane.begin(&request));
        timeout(LONGEST_REQUEST, try_join_all(begin)).await.context("the front opens no streams")??;
        Ok(Self { lanes })
    }

    /// Waits until each has had so many events more; when that was.
    pub(super) async fn until(&mut self, events: usize) -> anyhow::Result<u64> {
        let counting = try_join_all(self.lanes.iter_mut().map(|lane| lane.count(b"\ndata:", events)));
        timeout(LONGEST, counting).await.context("the events do not all come")??;
        Ok(clock::now())
    }
}

async fn open(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Connection>> {
    let opening = try_join_all((0..count).map(|_| Connection::open(address)));
    Ok(timeout(LONGEST_REQUEST, opening).await.context("the front takes no connections")??)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Does something on a thread of its own, with a runtime of one thread.
async fn apart<T: Send + 'static, R: Future<Output = anyhow::Result<T>>>(
    work: impl FnOnce() -> R + Send + 'static,
) -> anyhow::Result<T> {
    let thread = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { timeout(LONGEST, work()).await.context("the load takes too long")? })
    };
    tokio::task::spawn_blocking(thread).await?
}

/// A connection for questions beside the load.
pub(super) struct Asking {
    address: SocketAddr,
    connection: Option<Connection>,
}

impl Asking {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// `GET` of a path; what is no success is an error.
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<serde_json::Value> {
        let (address, request) = (self.address, Arc::new(request("GET", path, b"")));
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(address).await?,
        };
        let asked = timeout(LONGEST_REQUEST, connection.demand(&request)).await;
        let value = serde_json::from_slice(asked.with_context(|| format!("no answer to GET {path}"))??)?;
        self.connection = Some(connection);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn heads_are_read_when_they_are_whole() {
        let answer = b"HTTP/1.1 202 Accepted\r\nDate: x\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(head(answer).unwrap(), Some((202, answer.len() - 2, 2)));
        assert_eq!(head(&answer[..30]).unwrap(), None);
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(head(b"nothing of the kind\r\n\r\n").is_err());
    }

    /// Answers each request on each connection by what `answer` makes of its body.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                        if bytes.ends_with(b"!") {
                            bytes.clear();
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        address
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn each_request_is_answered_and_timed() {
        let address = server("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes").await;
        let (sent, times) = each(address, request("POST", "/", b"go!"), 50, 4).await.unwrap();
        assert!(sent.ended > sent.began && times.at(0.5) > 0.0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_refusal_is_an_error() {
        let address = server("HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nfull").await;
        let error = each(address, request("POST", "/", b"go!"), 5, 1).await.unwrap_err();
        assert!(error.to_string().contains("503: full"), "{error}");
    }
}
