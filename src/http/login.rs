//! `/login` and `/logout`: a browser shows a key once and gets a session, a cookie that no script can read and that is
//! sent by our own pages alone.
//!
//! The pages here are what is needed for that and no more. Where there are no keys, there is nothing here. `?next=` says
//! which page of ours is shown after the login; anything else is not followed.

use axum::{
    body::Body,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::Response,
};
use jiff::Timestamp;

use super::{
    App, access,
    body::Inbound,
    fields::Errors,
    problem::{Code, Problem},
    submission::ERRORS_MAX,
};
use crate::access::{Denied, Keyring, SESSION_SECONDS};

/// Longest form, in bytes: a key and its name.
const FORM_MAX: usize = 4 << 10;
const FORM: &str = "application/x-www-form-urlencoded";
/// Longest path that is gone on to, in bytes.
const NEXT_MAX: usize = 2000;
/// Where a login leads that does not say.
const HOME: &str = "/";

/// `GET /login`.
pub(super) async fn form(State(app): State<App>, request: Request) -> Response {
    let inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = show(&app, &inbound);
    inbound.answer(result).await
}

fn show(app: &App, inbound: &Inbound) -> Result<Response, Problem> {
    let keyring = keys(app)?;
    let mut errors = Errors::new(ERRORS_MAX);
    let [next] = inbound.query(["next"], &mut errors);
    errors.none_or(Some(()))?;
    let next = next.filter(|next| is_local(next));
    let session = access::cookie(&inbound.parts.headers, app.access.cookie());
    let entry = session.and_then(|session| keyring.find_session(session, Timestamp::now()).ok());
    Ok(match entry {
        Some(entry) => page(StatusCode::OK, &logged_in(&entry.name, next.as_deref().unwrap_or(HOME))),
        None => page(StatusCode::OK, &login("", next.as_deref())),
    })
}

/// `POST /login`.
pub(super) async fn log_in(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = open(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn open(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let keyring = keys(app)?;
    no_parameters(inbound)?;
    check_form(&inbound.parts.headers)?;
    let received = inbound.read(FORM_MAX).await?;
    let (key, next) = read_form(&received.bytes)?;
    match keyring.open_session(&key, Timestamp::now()) {
        Ok((entry, session)) => {
            tracing::info!(key.name = entry.name, key.id = %entry.id, "logged in");
            Ok(with_cookie(app, &session, SESSION_SECONDS, next.as_deref().unwrap_or(HOME)))
        }
        Err(Denied::Unknown) => {
            let again = login("<p role=\"alert\">There is no such key.</p>", next.as_deref());
            let mut response = page(StatusCode::UNAUTHORIZED, &again);
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
            Ok(response)
        }
        Err(other) => Err(access::denied(other)),
    }
}

/// `POST /logout`.
pub(super) async fn log_out(State(app): State<App>, request: Request) -> Response {
    let inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result =
        keys(&app).and_then(|_| no_parameters(&inbound)).map(|()| with_cookie(&app, "", 0, "/login"));
    inbound.answer(result).await
}

fn keys(app: &App) -> Result<&Keyring, Problem> {
    app.access.keyring().ok_or_else(|| Problem::new(Code::NotFound, "there are no API keys here (http.keys)"))
}

/// A key has no place in an address, which is logged everywhere.
fn no_parameters(inbound: &Inbound) -> Result<(), Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))
}

fn check_form(headers: &HeaderMap) -> Result<(), Problem> {
    let media = headers.get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or_default();
    if media.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(FORM) {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("a login is a form: Content-Type: {FORM}")))
}

/// The members `key` and `next` of a form; `next` only if it is a path of ours.
fn read_form(form: &[u8]) -> Result<(String, Option<String>), Problem> {
    // A form is written as a query is.
    let query =
        std::str::from_utf8(form).ok().and_then(|form| format!("/?{}", form.trim()).parse::<Uri>().ok());
    let pairs = query.and_then(|uri| Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
    let pairs = pairs.map(|Query(pairs)| pairs).unwrap_or_default();
    let member = |wanted: &str| pairs.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let key = member("key").map(|key| key.trim().to_owned()).ok_or_else(|| {
        let mut errors = Errors::new(1);
        errors.at("", "must be a form with the member key");
        Problem::invalid(errors)
    })?;
    Ok((key, member("next").filter(|next| is_local(next))))
}

/// Whether a browser that is sent there stays here: a path, and not `//host` or what browsers read like it.
fn is_local(next: &str) -> bool {
    next.len() <= NEXT_MAX
        && next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'\\' | b'"' | b'<' | b'>'))
}

/// The answer that gives or takes a session, and shows how that went.
fn with_cookie(app: &App, session: &str, seconds: i64, then: &str) -> Response {
    let (name, secure) = (app.access.cookie(), if app.access.secure { "; Secure" } else { "" });
    let cookie = format!("{name}={session}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    let then = HeaderValue::try_from(then).unwrap_or(HeaderValue::from_static(HOME));
    headers.insert(header::LOCATION, then);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(mut cookie) = HeaderValue::try_from(cookie) {
        cookie.set_sensitive(true);
        headers.insert(header::SET_COOKIE, cookie);
    }
    response
}

fn login(notice: &str, next: Option<&str>) -> String {
    // A path that was checked has no character that ends the attribute.
    let next = next.map(|next| format!("<input type=\"hidden\" name=\"next\" value=\"{}\">", escaped(next)));
    format!(
        "<h1>Log in</h1>{notice}<form method=\"post\" action=\"/login\">{}<label for=\"key\">API key</label>\
         <input id=\"key\" type=\"password\" name=\"key\" required autofocus autocomplete=\"off\">\
         <button class=\"primary\">Log in</button></form>\
         <p class=\"quiet\">A key is made with <code>hopline key new</code>. It is kept for 12 hours, in a cookie that \
         no script can read.</p>",
        next.unwrap_or_default()
    )
}

fn logged_in(name: &str, next: &str) -> String {
    // A key's name has no character that means something in HTML.
    format!(
        "<h1>Logged in</h1><p>With the key <b>{name}</b>.</p><p><a href=\"{}\">Go on</a></p>\
         <form method=\"post\" action=\"/logout\"><button>Log out</button></form>",
        escaped(next)
    )
}

/// A checked path in an attribute: of what it may have, only this means something there.
fn escaped(path: &str) -> String {
    path.replace('&', "&amp;")
}

fn page(status: StatusCode, body: &str) -> Response {
    let text = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Hopline: log in</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"icon\" href=\"/dashboard/icon.svg\"><link rel=\"stylesheet\" href=\"/dashboard/base.css\"></head>\
         <body class=\"login\"><main><p class=\"brand\">Hopline</p>{body}</main></body></html>"
    );
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
        // With none at all browsers send the form with `Origin: null` (Fetch, "append a request Origin header"), which is
        // refused.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_read_out_of_its_form() {
        let read = |form: &str| read_form(form.as_bytes()).map_err(|problem| problem.code);
        let is = |key: &str, next: Option<&str>| Ok((key.to_owned(), next.map(str::to_owned)));
        assert_eq!(read("key=hl_a_b"), is("hl_a_b", None));
        assert_eq!(read("other=1&key=+hl%5fa_b%0a"), is("hl_a_b", None));
        assert_eq!(read("next=%2Fjobs%3Fq%3Da&key=k"), is("k", Some("/jobs?q=a")));
        assert_eq!(read("key=k&next=https%3A%2F%2Fevil.example"), is("k", None));
        for bad in ["", "hl_a_b", "KEY=x", "key", "\u{e9}"] {
            assert!(bad == "key" || read(bad) == Err(Code::InvalidRequest), "{bad}");
        }
    }

    #[test]
    fn a_login_leads_to_a_page_of_ours_and_nowhere_else() {
        for (next, local) in [
            ("/", true),
            ("/jobs?status=dead&queue=media", true),
            ("/jobs/0198c0de-7a3c-7c3e-8d5f-0123456789ab#args", true),
            ("", false),
            ("jobs", false),
            ("//evil.example", false),
            ("/\\evil.example", false),
            ("https://evil.example", false),
            ("javascript:alert(1)", false),
            ("/a\tb", false),
            ("/a\r\nset-cookie: a=b", false),
            ("/\"><script>", false),
            ("/\u{e9}", false),
        ] {
            assert_eq!(is_local(next), local, "{next:?}");
        }
        assert!(!is_local(&format!("/{}", "x".repeat(NEXT_MAX))));
        assert!(login("", Some("/jobs?a=1&b=2")).contains("value=\"/jobs?a=1&amp;b=2\""));
    }

    #[test]
    fn only_a_form_logs_in() {
        let check = |media: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(media) = media {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
            }
            check_form(&headers).is_ok()
        };
        assert!(check(Some(FORM)) && check(Some("Application/X-WWW-Form-Urlencoded; charset=UTF-8")));
        // What a page of another origin may send without asking.
        assert!(!check(None) && !check(Some("text/plain")) && !check(Some("application/json")));
    }

    #[test]
    fn pages_run_nothing_and_load_only_their_style() {
        let response = page(StatusCode::OK, &login("", None));
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("script-src") && !policy.contains("unsafe"));
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["referrer-policy"], "same-origin", "else the form comes from nowhere");
        for text in [login("", Some("/jobs")), logged_in("ci", "/")] {
            assert!(!text.contains("<script") && !text.contains("style"));
        }
    }
}
