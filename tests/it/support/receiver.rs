//! Somebody who is called back: an HTTP server that answers what it is told to, and keeps what it got.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::PATIENCE;

/// What callbacks of tests are signed with.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// An answer without a body.
pub(crate) fn status(code: u16) -> String {
    format!("{code} Told\r\n")
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// Its id, after its signature has been checked as the specification says.
    pub(crate) fn verified(&self) -> String {
        let (id, time) = (self.header("webhook-id"), self.header("webhook-timestamp"));
        let secret = STANDARD.decode(SECRET.trim_start_matches("whsec_")).expect("base64");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signed = format!("{id}.{time}.{}", self.body);
        let expected = format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed.as_bytes())));
        assert_eq!(self.header("webhook-signature"), expected, "{self:?}");
        id.to_owned()
    }
}

/// The server.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    requests: mpsc::UnboundedReceiver<Received>,
    count: Arc<AtomicUsize>,
}

impl Receiver {
    /// One that gives these answers, the last one over and over: a status, and header lines. On all addresses.
    pub(crate) async fn new(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let (sender, requests) = mpsc::unbounded_channel();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        // It ends with the test's runtime.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let answer = answers[number.min(answers.len() - 1)].clone();
                tokio::spawn(serve(stream, answer, sender.clone()));
            }
        });
        Self { port, requests, count }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Received {
        let next = timeout(PATIENCE, self.requests.recv()).await;
        next.unwrap_or_else(|_| panic!("nobody called in {PATIENCE:?}")).expect("the server lives")
    }

    /// Requests that nobody has looked at.
    pub(crate) fn rest(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    /// How many connections there were.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, answer: String, to: mpsc::UnboundedSender<Received>) {
    let mut bytes = Vec::new();
    let request = loop {
        if let Some(request) = read(&bytes) {
            break request;
        }
        if !stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            return;
        }
    };
    // Before it is answered: whoever sees that it succeeded finds it here.
    let _ = to.send(request);
    let answer = format!("HTTP/1.1 {answer}content-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// The request, once it is whole.
fn read(bytes: &[u8]) -> Option<Received> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    (body.len() >= length).then(|| Received { path, headers, body: body.to_owned() })
}
