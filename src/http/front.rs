//! What every request passes before its call: request id, log line, panics caught, guard, and the answers for
//! paths and methods that do not exist. One layer does all of that, and tells who counts: each layer more would take
//! memory for each request.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    answer::About,
    body::{self, BodyMemory},
    guard::Guard,
    problem::{Code, Problem},
    traced,
};
use crate::job::JobId;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken over, in bytes.
const REQUEST_ID_MAX: usize = 128;

/// What stands before the routes.
pub(super) struct Front {
    pub(super) guard: Guard,
    pub(super) memory: BodyMemory,
    pub(super) read_timeout: Duration,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// Is told of each request, also of those that are refused and those that panic.
    pub(super) count: Box<dyn Fn(&Answered<'_>) + Send + Sync>,
}

/// A request that has its answer.
pub(super) struct Answered<'a> {
    pub(super) method: &'a Method,
    /// The path with names in braces; `none`: there is no such path.
    pub(super) route: &'a str,
    pub(super) status: StatusCode,
    pub(super) took: Duration,
}

/// Puts the front before `routes`.
pub(super) fn wrap<S: Clone + Send + Sync + 'static>(routes: Router<S>, front: Front) -> Router<S> {
    let front = Arc::new(front);
    let refusing = |code: Code, detail: &'static str| {
        let front = Arc::clone(&front);
        move |request: Request| async move { front.refuse(request, Problem::new(code, detail)).await }
    };
    routes
        .fallback(refusing(Code::NotFound, "no call has this path"))
        .method_not_allowed_fallback(refusing(
            Code::MethodNotAllowed,
            "see the Allow header for the methods of this path",
        ))
        .layer(from_fn_with_state(front, pass))
}

/// Gives the request its id and its span, lets it in, writes its log line, and tells who counts.
async fn pass(State(front): State<Arc<Front>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers().get(REQUEST_ID));
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let span = traced::begin(&mut request, route.as_ref().map(MatchedPath::as_str), front.scheme);
    let marks = traced::marks(&span, &id);
    let answering = AssertUnwindSafe(front.let_in(request, next)).catch_unwind();
    let answered = span.within(answering).instrument(marks.clone()).await;
    let _marked = marks.entered();
    let mut response = answered.unwrap_or_else(|panic| panicked(&*panic));
    let (status, took, job) = (response.status(), start.elapsed(), response.extensions().get::<About>());
    traced::end(&span, status, job.map(|about| about.0));
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    tracing::debug!(
        http.method = %method,
        http.route = route,
        http.status = status.as_u16(),
        request.id = id.to_str().unwrap_or_default(),
        job.id = job.map(|about| tracing::field::display(about.0)),
        elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "request"
    );
    (front.count)(&Answered { method: &method, route, status, took });
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

impl Front {
    async fn let_in(&self, request: Request, next: Next) -> Response {
        match self.guard.check(request.method(), request.uri(), request.headers()) {
            Ok(()) => next.run(request).await,
            // In a box: few are refused, and each request's future would have the size of this.
            Err(problem) => Box::pin(self.refuse(request, problem)).await,
        }
    }

    async fn refuse(&self, request: Request, problem: Problem) -> Response {
        body::refuse(request, &self.memory, self.read_timeout, problem).await
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without text");
    tracing::error!(panic = text, "a request panicked");
    Problem::new(Code::Internal, "the log has more under this answer's X-Request-Id").into_response()
}

/// The client's request id, if it is fit for a log line, else a new one.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let sane = |id: &&HeaderValue| {
        (1..=REQUEST_ID_MAX).contains(&id.len())
            && id.as_bytes().iter().all(|c| c.is_ascii_alphanumeric() || b"-_.:/+=@".contains(c))
    };
    given.filter(sane).cloned().unwrap_or_else(new_request_id)
}

/// A new request id: a UUID version 7, as job ids are.
pub(super) fn new_request_id() -> HeaderValue {
    HeaderValue::try_from(JobId::new().to_string()).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        routing::{get, post},
    };
    use tower_service::Service;

    use super::*;
    use crate::config;

    fn front() -> Router {
        let routes = Router::new()
            .route("/ok", get(|| async { "ok" }))
            .route("/submit", post(|| async { "ok" }))
            .route(
                "/panic",
                get(|| async {
                    if true {
                        panic!("on purpose")
                    }
                }),
            );
        let front = Front {
            guard: Guard::new(&config::Http::default()),
            memory: BodyMemory::new(1 << 20),
            read_timeout: Duration::from_secs(1),
            scheme: "http",
            count: Box::new(|_| {}),
        };
        wrap(routes, front)
    }

    fn ask(method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        front().call(request).now_or_never().unwrap().unwrap()
    }

    #[test]
    fn every_answer_has_a_request_id() {
        for (method, path, status) in
            [("GET", "/ok", 200), ("GET", "/none", 404), ("PUT", "/ok", 405), ("GET", "/panic", 500)]
        {
            let response = ask(method, path, &[]);
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers()["x-request-id"].len(), 36, "{path}");
            if status != 200 {
                assert_eq!(response.headers()["content-type"], "application/problem+json");
            }
        }
        assert_eq!(ask("GET", "/ok", &[("x-request-id", "abc-1")]).headers()["x-request-id"], "abc-1");
        for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
            assert_eq!(
                ask("GET", "/ok", &[("x-request-id", bad)]).headers()["x-request-id"].len(),
                36,
                "{bad}"
            );
        }
    }

    #[test]
    fn a_wrong_method_names_the_right_ones() {
        for (method, path, allow) in [
            ("GET", "/submit", "POST"),
            ("DELETE", "/submit", "POST"),
            ("HEAD", "/submit", "POST"),
            ("OPTIONS", "/submit", "POST"),
            ("POST", "/ok", "GET,HEAD"),
        ] {
            let response = ask(method, path, &[]);
            assert_eq!(
                (response.status().as_u16(), &response.headers()["allow"]),
                (405, &HeaderValue::from_static(allow)),
                "{method} {path}"
            );
            assert_eq!(response.headers()["content-type"], "application/problem+json");
        }
    }

    #[test]
    fn the_guard_is_before_everything() {
        for path in ["/submit", "/none"] {
            let response = ask("POST", path, &[("origin", "https://evil.example")]);
            assert_eq!(response.status(), 403, "{path}");
            assert!(response.headers().contains_key("x-request-id"));
        }
    }
}
