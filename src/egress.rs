//! Requests to URLs that somebody else has named: never to addresses that are not public, unless they are allowed.
//!
//! Two looks. [`Guard::check`] tells what the URL alone tells, also at the door, before anything is accepted. The second
//! look is at the addresses: a name is resolved by the client's own resolver, which hands over none that was not looked at,
//! and each request resolves anew on a connection of its own. So there is nothing between the look and the connection that
//! could change the answer (DNS rebinding). Redirects are not followed, and no proxy of the environment is asked: it would
//! resolve by itself.
//!
//! Names nothing of Hopline, so that whatever asks foreign URLs can use it: callbacks, and workers with the feature
//! `egress`.

mod address;

use std::{
    collections::BTreeSet,
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use jiff::{Timestamp, fmt::rfc2822};
pub use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use reqwest::{
    RequestBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::RETRY_AFTER,
};
use thiserror::Error;
use tokio::time::timeout;

use self::address::is_public;

/// Longest URL, in bytes.
pub const URL_MAX: usize = 2_000;
/// The ports below 1024 that may be asked of anybody: others are no web servers, but mail, shells, databases.
const LOW_PORTS: [u16; 2] = [80, 443];
/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;
/// How much of an answer's body is read, and how long; it is thrown away. An end without reading looks like a fault.
const BODY_MAX: usize = 16 << 10;
const BODY_TIME: Duration = Duration::from_secs(1);

/// A URL that is not asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No URL.
    #[error("is no URL: {0}")]
    NoUrl(String),
    /// Too long.
    #[error("is longer than {URL_MAX} bytes")]
    TooLong,
    /// Another scheme.
    #[error("must begin with https://")]
    Scheme,
    /// Without encryption, to who is not allowed.
    #[error("must begin with https://: without TLS only what is allowed ({setting}) is asked")]
    Plain {
        /// What allows it.
        setting: &'static str,
    },
    /// A user or a password.
    #[error("must hold no user and no password")]
    Userinfo,
    /// A port that is none for the web.
    #[error(
        "port {port} is refused: below 1024 only 80 and 443 may be asked, others of what is allowed ({setting})"
    )]
    Port {
        /// The port.
        port: u16,
        /// What allows it.
        setting: &'static str,
    },
    /// An address that may not be asked.
    #[error("{host} is at an address that is not public: mend the name, or allow the address ({setting})")]
    Address {
        /// The host, as the URL says it.
        host: String,
        /// The address, or the first of them.
        address: IpAddr,
        /// What allows it.
        setting: &'static str,
    },
}

impl Refusal {
    /// A stable code, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address_refused",
            _ => "bad_url",
        }
    }
}

/// Which addresses may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Those that are public, and those that are allowed.
    Public,
    /// Those that are allowed alone.
    Allowed,
}

/// What may be asked besides public addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    networks: Vec<IpNet>,
    hosts: BTreeSet<String>,
    /// The setting that says so, for people.
    setting: &'static str,
}

impl Default for Guard {
    fn default() -> Self {
        Self { networks: Vec::new(), hosts: BTreeSet::new(), setting: "callbacks.allow" }
    }
}

/// A URL that passed the first look.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    url: Url,
    /// Host and port, for people.
    host: String,
    reach: Reach,
}

impl Guard {
    /// Allows these networks (`10.0.0.0/8`), addresses and names of hosts besides.
    ///
    /// # Errors
    /// Which of them is none of these.
    pub fn new(allow: &[String]) -> Result<Self, String> {
        let mut guard = Self::default();
        for entry in allow {
            if let Ok(network) = entry.parse::<IpNet>() {
                guard.networks.push(network);
            } else if let Ok(address) = entry.parse::<IpAddr>() {
                guard.networks.push(address.to_canonical().into());
            } else if is_host_name(entry) {
                guard.hosts.insert(plain(entry));
            } else {
                return Err(format!(
                    "{entry:?} is no network (10.0.0.0/8), no address and no name of a host"
                ));
            }
        }
        Ok(guard)
    }

    /// Calls the setting that allows something so in refusals; `callbacks.allow` without it.
    #[must_use]
    pub fn allowed_by(self, setting: &'static str) -> Self {
        Self { setting, ..self }
    }

    /// Looks at a URL by itself: what can be told without asking for the addresses of a name.
    ///
    /// # Errors
    /// Why it is not asked.
    pub fn check(&self, url: &str) -> Result<(), Refusal> {
        self.look(url).map(drop)
    }

    fn look(&self, url: &str) -> Result<Target, Refusal> {
        if url.len() > URL_MAX {
            return Err(Refusal::TooLong);
        }
        let url = Url::parse(url).map_err(|error| Refusal::NoUrl(error.to_string()))?;
        // Host and port are there in URLs of these schemes.
        let (true, Some(host), Some(port)) =
            (matches!(url.scheme(), "http" | "https"), url.host_str(), url.port_or_known_default())
        else {
            return Err(Refusal::Scheme);
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Userinfo);
        }
        let plain_http = url.scheme() == "http";
        let low = port < 1024 && !LOW_PORTS.contains(&port);
        let reach = if plain_http || low { Reach::Allowed } else { Reach::Public };
        // Numbers in any notation have become an address in its usual one.
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let loopback = || plain(host) == "localhost" || plain(host).ends_with(".localhost");
        let known: Option<IpAddr> = literal.or_else(|| loopback().then(|| [127, 0, 0, 1].into()));
        let may_be = match known {
            Some(address) => self.admits(host, reach, address),
            None => reach == Reach::Public || self.hosts.contains(&plain(host)) || !self.networks.is_empty(),
        };
        if !may_be {
            // What is wrong with the address itself is said first.
            return Err(match known.filter(|address| !is_public(*address)) {
                Some(address) => Refusal::Address { host: shown(host), address, setting: self.setting },
                None if plain_http => Refusal::Plain { setting: self.setting },
                None => Refusal::Port { port, setting: self.setting },
            });
        }
        let host = match url.port() {
            Some(port) => format!("{}:{port}", shown(host)),
            None => shown(host),
        };
        Ok(Target { url, host, reach })
    }

    fn admits(&self, host: &str, reach: Reach, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.hosts.contains(&plain(host))
            || self.networks.iter().any(|network| network.contains(&address))
            || reach == Reach::Public && is_public(address)
    }

    /// Those of a name's addresses that may be asked.
    fn admitted(&self, host: &str, reach: Reach, found: &[IpAddr]) -> Result<Vec<IpAddr>, Refusal> {
        let admitted: Vec<IpAddr> = found
            .iter()
            .copied()
            .filter(|address| self.admits(host, reach, *address))
            .take(ADDRESSES_MAX)
            .collect();
        match found.first() {
            Some(address) if admitted.is_empty() => {
                Err(Refusal::Address { host: shown(host), address: *address, setting: self.setting })
            }
            _ => Ok(admitted),
        }
    }
}

/// A host for people: a URL's may be longer than any name.
fn shown(host: &str) -> String {
    host.chars().take(253).collect()
}

/// A host as it is compared: names are the same in any case, and with the root's dot.
fn plain(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
    };
    let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    text.len() <= 253
        && text.trim_end_matches('.').split('.').all(label)
        // An address that is mistyped.
        && !last.bytes().all(|c| c.is_ascii_digit())
}

/// Says which addresses a name has.
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of `host` now.
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's own.
#[derive(Debug, Clone, Copy)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Hands over only addresses that may be asked.
struct Checked {
    guard: Arc<Guard>,
    resolver: Arc<dyn Resolver>,
    reach: Reach,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, reach, host) = (Arc::clone(&self.guard), self.reach, name.as_str().to_owned());
        let asked = self.resolver.resolve(&host);
        Box::pin(async move {
            let found = asked.await?;
            let admitted = guard.admitted(&host, reach, &found)?;
            if admitted.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address").into());
            }
            // The port is that of the URL.
            Ok(Box::new(admitted.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until there is a connection.
    pub connect: Duration,
    /// In all, from the name to the answer.
    pub total: Duration,
}

/// What was answered; its body is thrown away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// What `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// Who answered: host and port, for people.
    pub host: String,
}

/// A request of any kind.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// What is asked for.
    pub method: Method,
    /// Whom.
    pub url: &'a str,
    /// What is said besides.
    pub headers: HeaderMap,
    /// What is sent.
    pub body: Bytes,
    /// Longest time in all, the answer's body included, instead of [`Timeouts::total`].
    pub timeout: Duration,
    /// Most bytes of the answer's body that are kept.
    pub body_max: usize,
}

/// What was answered, with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status, and who answered.
    pub answer: Answer,
    /// What was said besides.
    pub headers: HeaderMap,
    /// Its body, or as much of it as was to be kept.
    pub body: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
}

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EgressError {
    /// It is not asked.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was asked, or tried.
    #[error("{host}: {why}")]
    NoAnswer {
        /// `timeout`, `no_connection` or `no_answer`.
        code: &'static str,
        /// Host and port.
        host: String,
        /// What went wrong, without the URL: that may hold a secret.
        why: String,
    },
}

/// Asks foreign URLs.
pub struct Egress {
    guard: Arc<Guard>,
    public: reqwest::Client,
    allowed: reqwest::Client,
}

impl Egress {
    /// A client that asks what `guard` admits, at the addresses that `resolver` says.
    ///
    /// # Errors
    /// A sentence: there can be no HTTP client.
    pub fn new(guard: Guard, resolver: &Arc<dyn Resolver>, timeouts: Timeouts) -> Result<Self, String> {
        crate::crypto::choose();
        let guard = Arc::new(guard);
        let client = |reach| {
            let checked = Checked { guard: Arc::clone(&guard), resolver: Arc::clone(resolver), reach };
            reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .dns_resolver(Arc::new(checked))
                .connect_timeout(timeouts.connect)
                .timeout(timeouts.total)
                // A connection of its own for each: what was looked at is what is connected to.
                .pool_max_idle_per_host(0)
                .user_agent("hopline")
                .build()
                .map_err(|error| format!("cannot make an HTTP client: {}", causes(&error)))
        };
        let (public, allowed) = (client(Reach::Public)?, client(Reach::Allowed)?);
        Ok(Self { guard, public, allowed })
    }

    /// Sends `body`, and waits for the answer.
    ///
    /// # Errors
    /// [`EgressError`].
    pub async fn post(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Result<Answer, EgressError> {
        let fill = |request: RequestBuilder| {
            headers.iter().fold(request.body(body), |request, (name, value)| request.header(*name, value))
        };
        let (answer, mut response) = self.ask(Method::POST, url, fill).await?;
        let reading = async {
            let mut left = BODY_MAX;
            while let (true, Ok(Some(part))) = (left > 0, response.chunk().await) {
                left = left.saturating_sub(part.len());
            }
        };
        // Whatever comes of it: the answer is known.
        drop(timeout(BODY_TIME, reading).await);
        Ok(answer)
    }

    /// Sends a request, and waits for the answer and its body.
    ///
    /// # Errors
    /// [`EgressError`].
    pub async fn send(&self, request: Request<'_>) -> Result<Response, EgressError> {
        let Request { method, url, headers, body, timeout, body_max } = request;
        let fill = |request: RequestBuilder| request.headers(headers).body(body).timeout(timeout);
        let (answer, mut response) = self.ask(method, url, fill).await?;
        let headers = std::mem::take(response.headers_mut());
        let (mut body, mut truncated) = (Vec::new(), false);
        while let (false, Some(part)) =
            (truncated, response.chunk().await.map_err(|error| no_answer(error, answer.host.clone()))?)
        {
            let room = body_max - body.len();
            truncated = part.len() > room;
            body.extend_from_slice(&part[..part.len().min(room)]);
        }
        Ok(Response { answer, headers, body, truncated })
    }

    /// Looks at the URL, asks, and waits for the head of the answer.
    async fn ask(
        &self,
        method: Method,
        url: &str,
        fill: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<(Answer, reqwest::Response), EgressError> {
        let Target { url, host, reach } = self.guard.look(url)?;
        let client = match reach {
            Reach::Public => &self.public,
            Reach::Allowed => &self.allowed,
        };
        let response = match fill(client.request(method, url)).send().await {
            Ok(response) => response,
            Err(error) => return Err(no_answer(error, host)),
        };
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers(), Timestamp::now());
        Ok((Answer { status, retry_after, host }, response))
    }
}

fn no_answer(error: reqwest::Error, host: String) -> EgressError {
    if let Some(refusal) = refusal_in(&error) {
        return refusal.into();
    }
    let code = match () {
        () if error.is_timeout() => "timeout",
        () if error.is_connect() => "no_connection",
        () => "no_answer",
    };
    EgressError::NoAnswer { code, host, why: causes(&error.without_url()) }
}

/// What our resolver said, below all that the client said of it.
fn refusal_in(error: &(dyn Error + 'static)) -> Option<Refusal> {
    chain(error).find_map(|error| error.downcast_ref::<Refusal>()).cloned()
}

fn causes(error: &(dyn Error + 'static)) -> String {
    chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// An error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// Seconds, or a time. More seconds than a number holds are as many as it holds: what is asked for is a long pause.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
#[path = "egress/egress_tests.rs"]
mod tests;
