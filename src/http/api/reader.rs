//! `GET /docs`: a reader of the description. One page, its script and its style, all from this binary: it asks for nothing
//! elsewhere, and its policy forbids it to.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};

/// What the page may load: its own script and style, and the description.
const POLICY: &str = "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// `GET /docs`.
pub(in crate::http) async fn page() -> Response {
    answer("text/html; charset=utf-8", include_str!("reader/page.html"))
}

/// `GET /docs/reader.js`.
pub(in crate::http) async fn script() -> Response {
    answer("text/javascript; charset=utf-8", include_str!("reader/reader.js"))
}

/// `GET /docs/reader.css`.
pub(in crate::http) async fn style() -> Response {
    answer("text/css; charset=utf-8", include_str!("reader/reader.css"))
}

fn answer(media: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, media),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
