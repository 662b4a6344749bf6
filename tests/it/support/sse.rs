//! A reader of server-sent events.

use std::collections::VecDeque;

use hopline::access::ApiKey;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tokio::time::timeout;

use super::{PATIENCE, front::Front};

/// An event as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sse {
    /// Empty where it has none.
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) data: Value,
}

impl Sse {
    /// The last word of its type.
    pub(crate) fn name(&self) -> &str {
        self.event.rsplit('.').next().unwrap_or_default()
    }

    /// Its place in the log, comparable.
    pub(crate) fn place(&self) -> (u64, u64) {
        let (offset, index) = self.id.split_once('.').unwrap_or_else(|| panic!("an id: {self:?}"));
        (offset.parse().expect("an offset"), index.parse().expect("an index"))
    }
}

fn get(front: &Front, path: &str) -> RequestBuilder {
    let client = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    client.get(front.url(path))
}

/// A stream of events that is read one by one. Dropped, it hangs up.
pub(crate) struct Stream {
    response: Response,
    bytes: Vec<u8>,
    events: VecDeque<Sse>,
}

impl Stream {
    /// Opens the stream at `path`, after the event `last`. An answer other than 200 is returned as its status.
    pub(crate) async fn open(front: &Front, path: &str, last: Option<&str>) -> Result<Self, u16> {
        let mut request = get(front, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        Self::of(request).await
    }

    /// Opens the stream at `path` with a key.
    pub(crate) async fn open_by(front: &Front, path: &str, key: &ApiKey) -> Result<Self, u16> {
        Self::of(get(front, path).bearer_auth(key.expose())).await
    }

    async fn of(request: RequestBuilder) -> Result<Self, u16> {
        let response = timeout(PATIENCE, request.send()).await.expect("in time").expect("an answer");
        if response.status() != 200 {
            return Err(response.status().as_u16());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(Self { response, bytes: Vec::new(), events: VecDeque::new() })
    }

    /// The next event; `None`: the stream has ended, or was cut.
    pub(crate) async fn next(&mut self) -> Option<Sse> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("an event or a sign of life");
            self.bytes.extend_from_slice(&chunk.ok()??);
            while let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
                self.events.extend(read(std::str::from_utf8(&block).expect("text")));
            }
        }
    }

    /// The next so many events.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Sse> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.next().await.unwrap_or_else(|| panic!("ended after {} events", events.len())));
        }
        events
    }

    /// All events until the stream ends.
    pub(crate) async fn rest(mut self) -> Vec<Sse> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The event of a block; none: a comment, or something for the client alone.
fn read(block: &str) -> Option<Sse> {
    let field = |name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let data = serde_json::from_str(&field("data")?).expect("JSON");
    Some(Sse { id: field("id").unwrap_or_default(), event: field("event").expect("a name"), data })
}
