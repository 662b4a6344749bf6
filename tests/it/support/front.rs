//! An HTTP front under test, and what it answers.

use std::net::SocketAddr;

use hopline::{Client, record::Record};
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, eventually};

/// A front that listens on a port of its own.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    /// The client that it submits through.
    pub(crate) client: Client,
    /// Its record.
    pub(crate) record: Record,
    stop: CancellationToken,
    http: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or_default())
    }

    /// Checks that this is the documented problem, whole, and returns it.
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.json();
        assert_eq!((self.status, problem["code"].as_str()), (status, Some(code)), "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:hopline:problem:{code}"));
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{self:?}");
        assert!(!self.header("x-request-id").is_empty(), "{self:?}");
        let again = status == 503 || code == "in_flight";
        assert_eq!(again, !self.header("retry-after").is_empty(), "{self:?}");
        problem
    }

    /// Checks that this is an accepted submit, and returns the job's id.
    pub(crate) fn accepted(&self) -> String {
        assert_eq!(self.status, 202, "{self:?}");
        let id = self.json()["id"].as_str().expect("an id").to_owned();
        assert_eq!(self.header("location"), format!("/v1/jobs/{id}"));
        assert_eq!(self.header("hopline-job-id"), id);
        id
    }
}

impl Front {
    pub(crate) fn new(address: SocketAddr, client: Client, record: Record, stop: CancellationToken) -> Self {
        let http = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("an HTTP client");
        Self { address, client, record, stop, http }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.http.get(self.url(path))).await
    }

    pub(crate) async fn get_with(&self, path: &str, header: &str, value: &str) -> Answer {
        self.send(self.http.get(self.url(path)).header(header, value)).await
    }

    /// Any method, without a body.
    pub(crate) fn method(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path))
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.http.delete(self.url(path))).await
    }

    /// A `PUT` of JSON.
    pub(crate) async fn put(&self, path: &str, body: impl Into<String>) -> Answer {
        let request = self.http.put(self.url(path)).header("content-type", "application/json");
        self.send(request.body(body.into())).await
    }

    /// Tells the front to end, without waiting for it.
    pub(crate) fn tell_to_end(&self) {
        self.stop.cancel();
    }

    /// A `POST` of JSON, for more headers.
    pub(crate) fn request(&self, path: &str, body: impl Into<String>) -> RequestBuilder {
        self.request_of(path, "application/json", body)
    }

    /// A `POST` of another content type; an empty one is left out.
    pub(crate) fn request_of(&self, path: &str, media: &str, body: impl Into<String>) -> RequestBuilder {
        let request = self.http.post(self.url(path)).body(body.into());
        if media.is_empty() { request } else { request.header("content-type", media) }
    }

    /// A `POST` of JSON.
    pub(crate) async fn post(&self, path: &str, body: impl Into<String>) -> Answer {
        self.send(self.request(path, body)).await
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Answer { status, headers, text: answer.text().await.expect("a whole answer") }
    }

    /// Writes bytes as they are, and reads the answer's head and what follows until the server closes.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(request).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        timeout(PATIENCE, exchange).await.expect("an answer in time").expect("an answer")
    }

    pub(crate) async fn wait_ready(&self) {
        eventually("readiness", async || (self.get("/readyz").await.status == 200).then_some(())).await;
    }

    /// Gives an order for an act, and waits for its end: its output.
    pub(crate) async fn acted(&self, ordered: Answer) -> Value {
        let record = self.settled(&ordered.accepted()).await;
        assert_eq!(record["status"], "succeeded", "{record}");
        record["output"].clone()
    }

    /// Waits for a job's end: its record.
    pub(crate) async fn settled(&self, id: &str) -> Value {
        eventually(&format!("job {id} ends"), async || {
            let record = self.get(&format!("/v1/jobs/{id}?wait=20s")).await.json();
            matches!(record["status"].as_str(), Some("succeeded" | "dead" | "cancelled" | "expired"))
                .then_some(record)
        })
        .await
    }

    /// Submits, and expects that it is accepted; a busy broker may refuse it at first.
    pub(crate) async fn submit(&self, body: impl Into<String>) -> String {
        let body = body.into();
        let answer = eventually("a submit is accepted", async || {
            let answer = self.post("/v1/jobs", body.clone()).await;
            let refused = answer.status == 503 && answer.json()["code"] == "broker_refused";
            (!refused).then_some(answer)
        });
        answer.await.accepted()
    }

    /// Calls, and expects the output.
    pub(crate) async fn call(&self, kind: &str, args: &str) -> String {
        let answer = self.post(&format!("/v1/rpc/{kind}?wait={}s", PATIENCE.as_secs()), args).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text
    }
}
