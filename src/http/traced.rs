//! Requests in traces and logs: a span for each, below that of its caller, and what its log lines have in common.
//!
//! A request whose span is exported goes on with that span in its `traceparent`, as if its caller had sent it so: what it
//! submits carries that, whichever way it takes.

use std::borrow::Cow;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode},
};

use crate::{
    job::{JobId, envelope::header},
    trace::{MARKS, Plan, Span, SpanKind, TraceContext},
};

/// Calls that are asked for every few seconds, by machines: they have no spans.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The W3C trace context of a request, if it looks right.
pub(super) fn context(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(header::TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    let states: Option<Vec<Cow<'_, str>>> =
        headers.get_all(header::TRACESTATE).iter().map(|state| state.to_str().ok().map(Cow::from)).collect();
    TraceContext::new(parent.to_str().ok()?, Some(&states.unwrap_or_default().join(",")))
}

/// Begins the span of a request to `route`, and puts it into the request's headers.
pub(super) fn begin(request: &mut Request, route: Option<&str>, scheme: &str) -> Span {
    let caller = context(request.headers());
    if route.is_some_and(|route| PROBES.contains(&route)) {
        return Span::none(caller);
    }
    let span = Span::begin(caller, || plan(request, route, scheme));
    if let Some(context) = span.context().filter(|_| span.is_live()) {
        let headers = request.headers_mut();
        headers.remove(header::TRACESTATE);
        let texts = [(header::TRACEPARENT, Some(context.parent())), (header::TRACESTATE, context.state())];
        for (name, text) in texts {
            // Both are what a header may hold.
            if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
                headers.insert(name, value);
            }
        }
    }
    span
}

fn plan(request: &Request, route: Option<&str>, scheme: &str) -> Plan {
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::CONNECT,
        Method::TRACE,
    ];
    let (method, name) = match request.method() {
        method if known.contains(method) => (method.as_str(), method.as_str()),
        _ => ("_OTHER", "HTTP"),
    };
    let mut attributes = vec![
        ("http.request.method", method.into()),
        ("url.path", request.uri().path().into()),
        ("url.scheme", scheme.into()),
        ("network.protocol.version", "1.1".into()),
    ];
    // Not the query: it may hold anything.
    attributes.extend(route.map(|route| ("http.route", route.into())));
    let name = route.map_or_else(|| name.to_owned(), |route| format!("{name} {route}"));
    Plan { kind: SpanKind::Server, name, attributes }
}

/// Says how it was answered, and ends it.
pub(super) fn end(span: &Span, status: StatusCode, job: Option<JobId>) {
    if !span.is_live() {
        return;
    }
    span.set("http.response.status_code", u32::from(status.as_u16()));
    if let Some(job) = job {
        span.set("hopline.job.id", job.to_string());
    }
    if status.is_server_error() {
        span.fail(status.as_str());
    }
    span.end();
}

/// What all log lines of a request have.
pub(super) fn marks(span: &Span, request_id: &HeaderValue) -> tracing::Span {
    let (trace_id, span_id) = span.ids();
    let request_id = request_id.to_str().unwrap_or_default();
    tracing::error_span!(target: MARKS, "request", request.id = request_id, trace_id, span_id)
}
