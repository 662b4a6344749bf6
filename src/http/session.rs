//! `GET /session`: who asks, and what the one may do here. The dashboard hides what a call would refuse.

use std::collections::BTreeSet;

use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{App, answer, body::Inbound, fields::Errors, problem::Problem, submission::ERRORS_MAX};
use crate::{access::Scope, job::QueueName};

/// Who asks.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Session")]
pub(super) struct Shown<'a> {
    /// Whether calls need a key here.
    keys: bool,
    /// The name of the key that was shown; absent: none, or there are no keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// What may be done.
    #[schemars(with = "Vec<String>")]
    scopes: Vec<Scope>,
    /// The queues that the key is for; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    queues: Option<&'a BTreeSet<QueueName>>,
    /// Where traces are looked at (`http.trace_url`), with `{trace_id}` for the trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_url: Option<&'a str>,
    /// The server's version.
    version: &'static str,
}

/// `GET /session`.
pub(super) async fn get(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show(&app, &mut inbound);
    inbound.answer(result).await
}

fn show(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))?;
    let keys = app.access.keyring().is_some();
    let entry = app.access.who(&inbound.parts.method, &inbound.parts.headers)?;
    let scopes = match &entry {
        Some(entry) => entry.scopes.iter().copied().collect(),
        None if keys => Vec::new(),
        None => Scope::ALL.to_vec(),
    };
    let reads = scopes.contains(&Scope::Read);
    let shown = Shown {
        keys,
        name: entry.as_ref().map(|entry| entry.name.as_str()),
        scopes,
        queues: entry.as_ref().and_then(|entry| entry.queues.as_ref()),
        trace_url: app.http.trace_url.as_deref().filter(|_| reads),
        version: env!("CARGO_PKG_VERSION"),
    };
    let mut response = answer::json_of(StatusCode::OK, &shown);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
