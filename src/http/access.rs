//! Who may make a request: looks at its key, or at its session, before anything else is done for it.
//!
//! What a call needs stands in [`routes`], for all calls; there is no check in any handler that could be forgotten. What
//! depends on what a request says (which queue) is asked of its [`Caller`], who comes with it.
//!
//! Without keys (`http.keys`) everybody is let in, and the address is loopback or somebody else guards it.

mod caller;
pub(super) mod routes;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, MatchedPath, Path, Request, State},
    http::{HeaderMap, Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::time::Instant;

pub(super) use self::caller::Caller;
use self::routes::Need;
use super::{
    answer::About,
    body::{self, BodyMemory},
    guard,
    problem::{Code, Problem},
    queues::{no_queue, read_queue},
};
use crate::{
    access::{AccessError, Denied, Entry, KeyFile, Keyring, Scope},
    config,
};

/// What a session's cookie is called. Over TLS its name keeps other hosts and plain HTTP from setting it.
const COOKIE: &str = "hopline_session";
const COOKIE_TLS: &str = "__Host-hopline_session";

/// How this process tells callers apart.
#[derive(Debug, Clone)]
pub(super) struct Access {
    keyring: Option<Keyring>,
    /// Whether it speaks TLS.
    pub(super) secure: bool,
}

impl Access {
    /// What the configuration asks for.
    ///
    /// # Errors
    /// [`AccessError`]: the file of keys cannot be read.
    pub(super) fn open(config: &config::Http) -> Result<Self, AccessError> {
        let file = config.keys.as_ref().map(KeyFile::new);
        let keyring = file.map(Keyring::open).transpose()?;
        Ok(Self { keyring, secure: config.tls_cert.is_some() })
    }

    /// The keys, if there are any.
    pub(super) fn keyring(&self) -> Option<&Keyring> {
        self.keyring.as_ref()
    }

    /// What the session's cookie is called.
    pub(super) fn cookie(&self) -> &'static str {
        if self.secure { COOKIE_TLS } else { COOKIE }
    }
}

/// What stands before the calls.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    pub(super) access: Access,
    pub(super) memory: BodyMemory,
    pub(super) read_timeout: Duration,
}

/// Lets a request in, with its [`Caller`], or answers it.
pub(super) async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let (caller, need) = match gate.access.judge(&mut parts) {
        Ok(admitted) => admitted,
        Err(problem) => {
            let request = Request::from_parts(parts, body);
            // Boxed, or its memory would be taken for each request that is let in, too.
            return Box::pin(body::refuse(request, &gate.memory, gate.read_timeout, problem)).await;
        }
    };
    parts.extensions.insert(caller.clone());
    let mut changed = caller.until_changed().map(Box::pin);
    let operation = (changed.is_some() && need == Need::Scope(Scope::Operate))
        .then(|| (parts.method.clone(), parts.uri.path().to_owned()));
    let request = Request::from_parts(parts, body);
    // Who only looks is cut off when the key is revoked, however long the wait; what was begun is ended.
    let ends = changed.as_mut().filter(|_| need == Need::Scope(Scope::Read));
    let response = tokio::select! {
        response = next.run(request) => response,
        () = maybe(ends) => return unauthorized().into_response(),
    };
    if let Some((method, path)) = operation {
        let job = response.extensions().get::<About>().map(|about| tracing::field::display(about.0));
        tracing::info!(
            key.name = caller.name(),
            key.id = caller.scope().as_ref().map(tracing::field::display),
            http.method = %method,
            http.path = path,
            http.status = response.status().as_u16(),
            job.id = job,
            "operator action"
        );
    }
    match changed {
        Some(changed) => until(changed, response),
        None => response,
    }
}

/// Completes when `future` does, if there is one.
async fn maybe(future: Option<impl Future<Output = ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// A stream ends when its key is revoked.
fn until(changed: impl Future<Output = ()> + Send + Unpin + 'static, response: Response) -> Response {
    let media = response.headers().get(header::CONTENT_TYPE);
    if media.is_none_or(|media| media != "text/event-stream") {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(changed)))
}

impl Access {
    /// Who makes a request, and what it needs.
    fn judge(&self, parts: &mut Parts) -> Result<(Caller, Need), Problem> {
        let route = parts.extensions.get::<MatchedPath>().cloned();
        let route = route.as_ref().map_or("", MatchedPath::as_str);
        let need = routes::need(&parts.method, route).ok_or_else(|| {
            tracing::error!(http.method = %parts.method, http.route = route, "a call without a place in the table of access");
            Problem::new(Code::Internal, "nobody has said who may make this call")
        })?;
        let Some(keyring) = &self.keyring else { return Ok((Caller::Anyone, need)) };
        let Need::Scope(scope) = need else { return Ok((Caller::Nobody, need)) };
        let entry = self.identify(keyring, &parts.method, &parts.headers)?;
        keyring.charge(&entry, Instant::now()).map_err(|wait| limited(&entry.name, wait))?;
        if !entry.scopes.contains(&scope) {
            let detail =
                format!("the key {} does not have the scope {scope}, which this call needs", entry.name);
            return Err(Problem::new(Code::ScopeMissing, detail));
        }
        let caller = Caller::Key(entry, keyring.clone());
        if caller.queues().is_some() && routes::names_queue(route) {
            // As the handler will read it: a path can write a name in many ways.
            let queue = Path::<String>::from_request_parts(parts, &()).now_or_never().ok_or_else(no_queue)?;
            caller.may_use(&read_queue(queue)?)?;
        }
        Ok((caller, need))
    }

    /// Whose key or session this is; none: nobody has shown one that holds, or there are no keys.
    ///
    /// # Errors
    /// The problem, when the keys cannot be read.
    pub(super) fn who(&self, method: &Method, headers: &HeaderMap) -> Result<Option<Arc<Entry>>, Problem> {
        let Some(keyring) = &self.keyring else { return Ok(None) };
        match self.identify(keyring, method, headers) {
            Ok(entry) => Ok(Some(entry)),
            Err(problem) if problem.code == Code::AccessUnknown => Err(problem),
            Err(_) => Ok(None),
        }
    }

    fn identify(
        &self,
        keyring: &Keyring,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Arc<Entry>, Problem> {
        // Who shows a key means it: a session does not stand in for a wrong one.
        if headers.contains_key(header::AUTHORIZATION) {
            return keyring.find(bearer(headers).unwrap_or_default()).map_err(denied);
        }
        let Some(session) = cookie(headers, self.cookie()) else { return Err(denied(Denied::Unknown)) };
        let entry = keyring.find_session(session, Timestamp::now()).map_err(denied)?;
        // A browser sends the cookie by itself, so it must also say that a page of ours asked.
        if !method.is_safe() && !guard::shows_origin(headers) {
            let detail =
                "a session needs an Origin header, or Sec-Fetch-Site: same-origin; programs send their key";
            return Err(Problem::new(Code::CrossOrigin, detail));
        }
        Ok(entry)
    }
}

/// Why nobody is let in, as an answer.
pub(super) fn denied(denied: Denied) -> Problem {
    match denied {
        Denied::Unknown => unauthorized(),
        Denied::Unreadable => {
            Problem::new(Code::AccessUnknown, "the file http.keys cannot be read; the log says why")
        }
    }
}

fn unauthorized() -> Problem {
    Problem::new(
        Code::Unauthorized,
        "send a key that holds: `Authorization: Bearer <key>` (the command line takes it from HOPLINE_API_KEY)",
    )
}

fn limited(name: &str, wait: Duration) -> Problem {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Problem {
        retry_after: Some(Duration::from_secs(seconds.max(1))),
        ..Problem::new(Code::RateLimited, format!("the key {name} has made as many requests as it may"))
    }
}

/// The key in the one `Authorization` header that there is.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, None) = (values.next()?, values.next()) else { return None };
    let (scheme, key) = first.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim_matches(' '))
}

/// The value of a cookie, if there is one of this name.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (first, other) = (pairs.find(|(known, _)| *known == name)?, pairs.find(|(known, _)| *known == name));
    // Two of one name: one of them is not ours.
    other.is_none().then_some(first.1)
}

#[cfg(test)]
#[path = "access/access_tests.rs"]
mod tests;
