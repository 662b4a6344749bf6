//! RabbitMQ's management API: what AMQP cannot tell (arguments, bindings, policies, nodes) and cannot do (policies,
//! users).
//!
//! For the commands of operators only: it is a plugin, so no process depends on it. Plain HTTP only.

use std::time::{Duration, SystemTime};

use reqwest::{Method, StatusCode, Url, redirect::Policy};
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::{amqp::probe::Target, config::AmqpUrl};

/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer, in bytes: some lists are not given in pages.
const ANSWER_MAX: usize = 64 << 20;
/// Items of one page.
const PAGE: usize = 200;
/// Most pages read of a list.
const PAGES: usize = 50;

/// Why the management API gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ManagementError {
    /// The address cannot be used.
    #[error("{0}")]
    Address(String),
    /// Nobody answers there.
    #[error("nobody answers at {address}: {reason}")]
    Unreachable {
        /// Without its password.
        address: String,
        /// Why.
        reason: String,
    },
    /// User or password are wrong, or the user has no tag that lets it in.
    #[error(
        "{address} does not know this login, or it has none of the tags management, policymaker, monitoring and \
         administrator"
    )]
    Login {
        /// Without its password.
        address: String,
    },
    /// It lets this user in, and not there.
    #[error("the login may not ask for {path}: it needs the tag {tag}")]
    Forbidden {
        /// What was asked for.
        path: String,
        /// What would do.
        tag: &'static str,
    },
    /// Anything else that is no answer.
    #[error("{path}: {detail}")]
    Answer {
        /// What was asked for.
        path: String,
        /// What came.
        detail: String,
    },
}

/// A management API, a login, and the virtual host that is meant.
#[derive(Clone)]
pub(crate) struct Management {
    http: reqwest::Client,
    base: Url,
    user: String,
    password: String,
    /// As a part of a path.
    vhost: String,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
    /// The server's clock, and ours in the middle of the request.
    pub(crate) clock: Option<(SystemTime, SystemTime)>,
}

impl Management {
    /// The API at `url`. A login that it does not name is that of the broker's address.
    pub(crate) fn new(url: &str, amqp: &AmqpUrl) -> Result<Self, ManagementError> {
        let wrong = |why: &str| {
            ManagementError::Address(format!(
                "the address of the management API {why}: it is written http://USER:PASSWORD@HOST:15672"
            ))
        };
        let mut base = Url::parse(url).map_err(|error| wrong(&format!("cannot be read ({error})")))?;
        if base.scheme() == "https" {
            return Err(wrong("is https, which this program cannot speak; use a tunnel or a local address"));
        }
        if base.scheme() != "http" || base.host_str().is_none() {
            return Err(wrong("is none of HTTP"));
        }
        let target = Target::of(amqp).map_err(ManagementError::Address)?;
        let (user, password) = match base.username() {
            "" => (target.user, target.password),
            user => (decoded(user), decoded(base.password().unwrap_or_default())),
        };
        // None of these fails for an address that has a host.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        base.set_query(None);
        base.set_fragment(None);
        crate::crypto::choose();
        // Logins and new passwords go to this address and to no other.
        let http = reqwest::Client::builder()
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .redirect(Policy::none())
            .no_proxy();
        let http = http.build().map_err(|error| wrong(&error.to_string()))?;
        Ok(Self { http, base, user, password, vhost: part(&target.vhost) })
    }

    /// The address without the login.
    pub(crate) fn shown(&self) -> String {
        self.base.to_string()
    }

    /// The virtual host, as a part of a path.
    pub(crate) fn vhost(&self) -> &str {
        &self.vhost
    }

    /// What is at `path`, below `/api/`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ManagementError> {
        self.send(Method::GET, path, None).await.map(|answer| answer.body)
    }

    /// As [`Management::get`]; `None`: there is no such thing.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, ManagementError> {
        let answer = self.send(Method::GET, path, None).await?;
        Ok((answer.status != StatusCode::NOT_FOUND).then_some(answer.body))
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<(), ManagementError> {
        self.send(Method::PUT, path, Some(body)).await.map(drop)
    }

    /// All items of a list whose name contains `name`, page by page.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        name: &str,
    ) -> Result<Vec<T>, ManagementError> {
        self.list_of(path, name, "").await
    }

    /// As [`Management::list`], with these columns only; none named: all.
    pub(crate) async fn list_of<T: DeserializeOwned>(
        &self,
        path: &str,
        name: &str,
        columns: &str,
    ) -> Result<Vec<T>, ManagementError> {
        let columns = if columns.is_empty() { String::new() } else { format!("&columns={columns}") };
        let mut items = Vec::new();
        for page in 1..=PAGES {
            let asked =
                format!("{path}?page={page}&page_size={PAGE}&use_regex=false&name={}{columns}", part(name));
            let answer = self.get(&asked).await?;
            items.extend(read::<Vec<T>>(path, answer["items"].clone())?);
            if answer["page_count"].as_u64().unwrap_or(0) <= page as u64 {
                return Ok(items);
            }
        }
        Err(ManagementError::Answer {
            path: path.to_owned(),
            detail: format!("more than {} items", PAGE * PAGES),
        })
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ManagementError> {
        let began = SystemTime::now();
        let url = format!("{}/api/{path}", self.base.as_str().trim_end_matches('/'));
        let mut request = self.http.request(method.clone(), url).basic_auth(&self.user, Some(&self.password));
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| ManagementError::Unreachable {
            address: self.shown(),
            reason: in_full(&error.without_url()),
        };
        let mut answer = request.send().await.map_err(unreachable)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_MAX {
                let detail = format!("more than {} MiB", ANSWER_MAX >> 20);
                return Err(ManagementError::Answer { path: path.to_owned(), detail });
            }
        }
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status == StatusCode::UNAUTHORIZED {
            // RabbitMQ says 401 both to whom it does not know, and to whom it knows and does not let there.
            return Err(if path == "whoami" || self.knows_us().await? {
                ManagementError::Forbidden { path: path.to_owned(), tag: tag(path, &method) }
            } else {
                ManagementError::Login { address: self.shown() }
            });
        }
        if status == StatusCode::FORBIDDEN {
            return Err(ManagementError::Forbidden { path: path.to_owned(), tag: tag(path, &method) });
        }
        if !status.is_success() && status != StatusCode::NOT_FOUND {
            let reason = body["reason"].as_str().map_or_else(|| status.to_string(), str::to_owned);
            return Err(ManagementError::Answer { path: path.to_owned(), detail: reason });
        }
        if method != Method::GET && status == StatusCode::NOT_FOUND {
            return Err(ManagementError::Answer {
                path: path.to_owned(),
                detail: "404 Not Found".to_owned(),
            });
        }
        let middle = began + began.elapsed().unwrap_or_default() / 2;
        let date = headers.get("date").and_then(|date| http_date(date.to_str().ok()?));
        Ok(Answer { status, body, clock: date.map(|date| (date, middle)) })
    }

    async fn knows_us(&self) -> Result<bool, ManagementError> {
        let asking = self
            .http
            .get(format!("{}/api/whoami", self.base.as_str().trim_end_matches('/')))
            .basic_auth(&self.user, Some(&self.password));
        let answer = asking.send().await.map_err(|error| ManagementError::Unreachable {
            address: self.shown(),
            reason: in_full(&error.without_url()),
        })?;
        Ok(answer.status().is_success())
    }
}

/// The tag with which RabbitMQ lets a user there.
fn tag(path: &str, method: &Method) -> &'static str {
    let first = path.split(['/', '?']).next().unwrap_or_default();
    match first {
        "nodes" => "monitoring",
        "policies" | "operator-policies" if *method != Method::GET => "policymaker",
        "policies" => "policymaker",
        "users" | "permissions" | "feature-flags" | "operator-policies" => "administrator",
        _ => "management",
    }
}

/// JSON of the API in the shape that we expect.
pub(crate) fn read<T: DeserializeOwned>(path: &str, body: Value) -> Result<T, ManagementError> {
    serde_json::from_value(body).map_err(|error| ManagementError::Answer {
        path: path.to_owned(),
        detail: format!("not the answer that is expected: {error}"),
    })
}

fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The date of an HTTP header, as `Tue, 15 Nov 1994 08:12:31 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.replace("GMT", "+0000"));
    let seconds = u64::try_from(parsed.ok()?.as_second()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Text as a part of a path or a query.
pub(crate) fn part(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut part, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                part.push(char::from(byte));
            }
            _ => part.push_str(&format!("%{byte:02X}")),
        }
        part
    })
}

/// A part of an address as text; what is no encoding stays as it is.
fn decoded(part: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(part.len()), part.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(url: &str) -> Result<Management, ManagementError> {
        Management::new(url, &AmqpUrl::new("amqp://amqp:se%2Fcret@broker/my%2Fvhost"))
    }

    #[test]
    fn the_login_is_that_of_the_address_or_of_amqp() {
        let own = new("http://u%40:p%25@broker:15672").unwrap();
        assert_eq!((own.user.as_str(), own.password.as_str()), ("u@", "p%"));
        let shared = new("http://broker:15672/rabbit/").unwrap();
        assert_eq!((shared.user.as_str(), shared.password.as_str()), ("amqp", "se/cret"));
        assert_eq!(shared.vhost(), "my%2Fvhost");
        assert!(!own.shown().contains("p%25") && !own.shown().contains("u%40"), "{}", own.shown());
    }

    #[test]
    fn other_addresses_are_refused_without_saying_them() {
        for url in ["https://u:secret@h", "ftp://u:secret@h", "u:secret", "http://"] {
            let error = new(url).map(drop).unwrap_err().to_string();
            assert!(error.contains("http://USER:PASSWORD@HOST") && !error.contains("secret"), "{error}");
        }
    }

    /// A new password is in the body of a request.
    #[tokio::test]
    async fn nothing_is_sent_to_another_address() {
        use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener};
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = elsewhere.local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            let answer = format!(
                "HTTP/1.1 307 Elsewhere\r\nlocation: http://{there}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let management = new(&format!("http://{address}")).unwrap();
        let password = serde_json::json!({ "password": "new" });
        let (put, ()) = tokio::join!(management.put("users/u", &password), answering);
        let error = put.unwrap_err().to_string();
        assert!(error.contains("307"), "{error}");
    }

    #[test]
    fn dates_are_read() {
        let date = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 784_111_777);
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn parts_are_encoded_and_decoded() {
        assert_eq!(part("/a b#ä"), "%2Fa%20b%23%C3%A4");
        for text in ["/a b#ä", "%", "%zz", "a%"] {
            assert_eq!(decoded(&part(text)), text);
        }
        assert_eq!(decoded("100%"), "100%");
    }
}
