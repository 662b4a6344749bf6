//! The HTTP interface from the command line's side: one place that asks, reads problems, and says what to do when
//! nobody answers.
//!
//! Not here: what is asked and how it is shown (one file per noun), and `up`'s own questions to its processes.

mod failure;
mod key;
mod near;
mod pages;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};

pub(super) use self::{
    failure::Failure,
    pages::{Listing, Most, Page},
};
use super::{tls, up};

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Longest time for a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for an answer, above what the request asks the server to wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the exit codes say about a job that was waited for.
pub(super) mod exit {
    /// It is dead.
    pub(in crate::cli) const DEAD: u8 = 3;
    /// It was cancelled.
    pub(in crate::cli) const CANCELLED: u8 = 4;
    /// It expired before an attempt could start.
    pub(in crate::cli) const EXPIRED: u8 = 5;
    /// The wait is over and it has not ended.
    pub(in crate::cli) const NOT_FINISHED: u8 = 6;
}

/// The exit code that stands for a job's status; `None`: it has not ended.
pub(super) fn exit_code(status: &str) -> Option<ExitCode> {
    Some(match status {
        "succeeded" => ExitCode::SUCCESS,
        "dead" => ExitCode::from(exit::DEAD),
        "cancelled" => ExitCode::from(exit::CANCELLED),
        "expired" => ExitCode::from(exit::EXPIRED),
        _ => return None,
    })
}

/// Which server.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// Address of the HTTP front. Default: that of the `hopline up` whose folder is ./var, else
    /// http://127.0.0.1:8080.
    #[arg(long, visible_alias = "server", env = "HOPLINE_URL")]
    url: Option<String>,
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub(super) struct Request {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Option<(&'static str, String)>,
    patience: Duration,
}

impl Request {
    fn new<const N: usize>(method: Method, path: [&str; N]) -> Self {
        let path = path.map(str::to_owned).to_vec();
        Self { method, path, query: Vec::new(), headers: Vec::new(), body: None, patience: PATIENCE }
    }

    /// `GET` of the path with these parts.
    pub(super) fn get<const N: usize>(path: [&str; N]) -> Self {
        Self::new(Method::GET, path)
    }

    /// `POST`.
    pub(super) fn post<const N: usize>(path: [&str; N]) -> Self {
        Self::new(Method::POST, path)
    }

    /// `PUT`.
    pub(super) fn put<const N: usize>(path: [&str; N]) -> Self {
        Self::new(Method::PUT, path)
    }

    /// `DELETE`.
    pub(super) fn delete<const N: usize>(path: [&str; N]) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// With a parameter in the query, if there is a value.
    pub(super) fn query(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.query.extend(value.map(|value| (name, value.into())));
        self
    }

    /// With a header, if there is a value.
    pub(super) fn header(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.headers.extend(value.map(|value| (name, value.into())));
        self
    }

    /// With a key that makes it safe to repeat, if there is one.
    pub(super) fn key(self, key: Option<&str>) -> Self {
        self.header("idempotency-key", key.map(key_header))
    }

    /// With a body.
    pub(super) fn json(mut self, body: &impl Serialize) -> anyhow::Result<Self> {
        self.body = Some(("application/json", serde_json::to_string(body)?));
        Ok(self)
    }

    /// With a body of JSON objects, a line each.
    pub(super) fn ndjson(mut self, lines: String) -> Self {
        self.body = Some(("application/x-ndjson", lines));
        self
    }

    /// The server may take this much longer to answer.
    pub(super) fn longer(mut self, wait: Duration) -> Self {
        self.patience = PATIENCE.saturating_add(wait);
        self
    }
}

/// A key as a header: bare, or as a string (RFC 8941) where it could be taken for one.
fn key_header(key: &str) -> String {
    if key.contains(['"', '\\']) {
        format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        key.to_owned()
    }
}

/// An answer below 300, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The body as it came.
    pub(super) text: String,
}

impl Answer {
    /// The body as JSON of this shape.
    pub(super) fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        read_json(&self.text)
    }
}

/// JSON of the server in the shape that we expect.
pub(super) fn read_json<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the server's answer is not what this version of hopline expects")
}

/// A server that can be asked.
pub(super) struct Server {
    base: reqwest::Url,
    /// Why this server, where nobody named it.
    by_default: bool,
    http: reqwest::Client,
    /// The key, if there is one.
    authorization: Option<header::HeaderValue>,
}

impl Server {
    /// The server that the arguments, the environment or a running `hopline up` name.
    pub(super) fn new(target: &Target) -> anyhow::Result<Self> {
        let named = target.url.clone().or_else(|| up::running_http(Path::new("var")));
        let by_default = named.is_none();
        let base = named.unwrap_or_else(|| DEFAULT_URL.to_owned());
        let url = reqwest::Url::parse(&base).with_context(|| format!("`{base}` is no address"))?;
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            bail!("`{base}` is no address of an HTTP server: it is written http://HOST:PORT");
        }
        let http = if url.scheme() == "https" { tls::secure()? } else { tls::plain() };
        let http = http.connect_timeout(CONNECT);
        // A proxy cannot reach this machine's loopback.
        let local = matches!(url.host_str(), Some("localhost" | "[::1]"))
            || url.host_str().is_some_and(|host| host.starts_with("127."));
        let http = if local { http.no_proxy() } else { http }.build()?;
        Ok(Self { base: url, by_default, http, authorization: key::authorization()? })
    }

    /// Its address.
    pub(super) fn address(&self) -> &str {
        self.base.as_str()
    }

    /// Asks, and reads the answer to its end.
    ///
    /// # Errors
    /// [`Failure`] where there is no answer, or one that is no success.
    pub(super) async fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        let (status, text) = self.answered(request).await?;
        if status.is_success() { Ok(Answer { status, text }) } else { Err(Failure::refused(status, &text)) }
    }

    /// Asks, and reads any answer to its end.
    ///
    /// # Errors
    /// [`Failure`] where there is none.
    pub(super) async fn answered(&self, request: &Request) -> Result<(StatusCode, String), Failure> {
        let response = self.send(request, Some(request.patience)).await?;
        let status = response.status();
        let text = response.text().await.map_err(|error| self.broken(error))?;
        Ok((status, text))
    }

    /// Asks for an answer that is read as it arrives.
    ///
    /// # Errors
    /// As [`Server::ask`].
    pub(super) async fn open(&self, request: &Request) -> Result<reqwest::Response, Failure> {
        let answer = tokio::time::timeout(request.patience, self.send(request, None)).await;
        let response = answer.map_err(|_| Failure::Late { base: self.base.to_string() })??;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = tokio::time::timeout(CONNECT, response.text()).await;
        Err(Failure::refused(status, &text.ok().and_then(Result::ok).unwrap_or_default()))
    }

    async fn send(&self, request: &Request, limit: Option<Duration>) -> Result<reqwest::Response, Failure> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(&request.path);
        }
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let mut sent = self.http.request(request.method.clone(), url);
        if let Some(key) = &self.authorization {
            sent = sent.header(header::AUTHORIZATION, key.clone());
        }
        for (name, value) in &request.headers {
            sent = sent.header(*name, value);
        }
        if let Some((content_type, body)) = &request.body {
            sent = sent.header("content-type", *content_type).body(body.clone());
        }
        if let Some(limit) = limit {
            sent = sent.timeout(limit);
        }
        sent.send().await.map_err(|error| self.broken(error))
    }

    fn broken(&self, error: reqwest::Error) -> Failure {
        let base = self.base.to_string();
        match error {
            error if error.is_builder() => Failure::Unasked(error.without_url()),
            error if error.is_timeout() && !error.is_connect() => Failure::Late { base },
            error if error.is_connect() => {
                Failure::Unreachable { base, by_default: self.by_default, cause: error.without_url() }
            }
            error => Failure::Broken { base, cause: error.without_url() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> anyhow::Result<Server> {
        Server::new(&Target { url: Some(url.to_owned()) })
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["http://localhost:8080", "https://jobs.example.org/hopline/", "http://[::1]:1"] {
            assert!(server(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost:8080", "127.0.0.1:8080", "ftp://x", "mailto:x"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_quoted_where_they_must_be() {
        for (key, header) in [("order-17", "order-17"), (r#""a"\"#, r#""\"a\"\\""#)] {
            assert_eq!(key_header(key), header);
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_the_address_and_what_to_do() {
        // Bound and not listening any more: nobody else gets it meanwhile, most likely.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = server(&format!("http://127.0.0.1:{port}")).unwrap();
        let failure = server.ask(&Request::get(["v1", "queues"])).await.unwrap_err();
        let text = failure.to_string();
        assert!(matches!(failure, Failure::Unreachable { .. }), "{failure:?}");
        assert!(
            text.contains(&format!("http://127.0.0.1:{port}/")) && text.contains("HOPLINE_URL"),
            "{text}"
        );
    }

    #[test]
    fn exit_codes_tell_the_ends_apart() {
        for (status, code) in [("succeeded", 0), ("dead", 3), ("cancelled", 4), ("expired", 5)] {
            assert_eq!(exit_code(status), Some(ExitCode::from(code)));
        }
        assert_eq!(exit_code("running"), None);
    }
}
