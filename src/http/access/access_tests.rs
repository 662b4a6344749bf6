use std::collections::BTreeSet;

use axum::{
    Router,
    http::{HeaderValue, StatusCode},
    middleware::from_fn_with_state,
    response::IntoResponse,
    routing,
};
use futures_util::FutureExt;
use tower_service::Service;

use super::*;
use crate::access::{ApiKey, Entry, file_tests::Place, made};

/// Every call of the table, each answered with who made it; and one that has no place in it.
fn router(access: &Access) -> Router {
    let name = async |request: Request| {
        let caller = Caller::of(request.extensions());
        caller.name().unwrap_or("nobody").to_owned()
    };
    let mut router: Router = Router::new().route("/v1/new", routing::get(name));
    for (method, path, _) in routes::TABLE {
        let filter = routing::MethodFilter::try_from(method.clone()).unwrap();
        router = router.route(path, routing::on(filter, name));
    }
    let gate = Gate {
        access: access.clone(),
        memory: BodyMemory::new(1 << 20),
        read_timeout: Duration::from_secs(1),
    };
    router.route_layer(from_fn_with_state(gate, admit))
}

fn access(entries: &[&Entry]) -> (Access, Place) {
    let place = Place::new();
    place.write(entries);
    let http = config::Http { keys: Some(place.file().path().to_owned()), ..config::Http::default() };
    (Access::open(&http).unwrap(), place)
}

fn ask(access: &Access, method: &Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = axum::http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    router(access).call(request).now_or_never().unwrap().unwrap()
}

/// The status, and the code of a problem.
fn told(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).now_or_never().unwrap().unwrap();
    let code = serde_json::from_slice(&bytes)
        .ok()
        .and_then(|value: serde_json::Value| Some(value["code"].as_str()?.to_owned()));
    (status, code.unwrap_or_else(|| String::from_utf8(bytes.to_vec()).unwrap()))
}

fn path_of(route: &str) -> String {
    route
        .replace("{id}", "0198c0de-0000-7000-8000-000000000001")
        .replace("{queue}", "media")
        .replace("{kind}", "a.b")
}

fn with(key: &ApiKey) -> String {
    format!("Bearer {}", key.expose())
}

#[test]
fn each_call_is_for_the_scope_in_the_table() {
    let keys = Scope::ALL.map(|scope| made(scope.as_str(), &[scope], None));
    let (access, _place) = access(&keys.each_ref().map(|(entry, _)| entry));
    for (method, route, need) in routes::TABLE {
        let path = path_of(route);
        let nobody = told(ask(&access, method, &path, &[]));
        let Need::Scope(scope) = need else {
            assert_eq!(nobody, (200, "nobody".to_owned()), "{method} {path}");
            continue;
        };
        assert_eq!(nobody, (401, "unauthorized".to_owned()), "{method} {path}");
        for (entry, key) in &keys {
            let told = told(ask(&access, method, &path, &[("authorization", &with(key))]));
            let expected = if entry.scopes.contains(scope) {
                (200, scope.to_string())
            } else {
                (403, "scope_missing".to_owned())
            };
            assert_eq!(told, expected, "{method} {path} {}", entry.name);
        }
    }
}

#[test]
fn a_call_without_a_place_in_the_table_is_refused() {
    let all: BTreeSet<Scope> = Scope::ALL.into();
    let (entry, key) = made("all", &all.into_iter().collect::<Vec<_>>(), None);
    let (keyed, _place) = access(&[&entry]);
    let keyless = Access::open(&config::Http::default()).unwrap();
    for access in [&keyed, &keyless] {
        let told = told(ask(access, &Method::GET, "/v1/new", &[("authorization", &with(&key))]));
        assert_eq!(told, (500, "internal".to_owned()));
    }
    // What does not exist at all is nothing to keep anybody from.
    assert_eq!(ask(&keyed, &Method::GET, "/v1/none", &[]).status(), StatusCode::NOT_FOUND);
    assert_eq!(ask(&keyed, &Method::HEAD, "/v1/jobs", &[]).status(), StatusCode::UNAUTHORIZED);
}

#[test]
fn without_keys_everybody_is_let_in() {
    let access = Access::open(&config::Http::default()).unwrap();
    for (method, route, _) in routes::TABLE {
        assert_eq!(told(ask(&access, method, &path_of(route), &[])).0, 200, "{method} {route}");
    }
}

#[test]
fn only_a_key_that_holds_is_one() {
    let ((entry, key), (_, other)) = (made("ci", &[Scope::Read], None), made("x", &[Scope::Read], None));
    let (mut gone, gone_key) = made("gone", &[Scope::Read], None);
    gone.revoked = Some(Timestamp::now());
    let (access, _place) = access(&[&entry, &gone]);
    let get = |headers: &[(&str, &str)]| ask(&access, &Method::GET, "/v1/jobs", headers);
    let (good, other, gone) = (with(&key), with(&other), with(&gone_key));
    for header in [good.as_str(), &good.replacen("Bearer", "bearer", 1), &good.replacen(' ', "  ", 1)] {
        assert_eq!(told(get(&[("authorization", header)])), (200, "ci".to_owned()));
    }
    let mixed = format!("Bearer hl_{}_{}", key.id(), &other[23..]);
    for header in [
        "",
        "Bearer",
        "Bearer ",
        &key.expose(),
        &good.replacen("Bearer", "Basic", 1),
        &other,
        &mixed,
        &gone,
        &good[..good.len() - 1],
    ] {
        let response = get(&[("authorization", header)]);
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_eq!(told(response), (401, "unauthorized".to_owned()), "{header}");
    }
    assert_eq!(get(&[("authorization", &good), ("authorization", &good)]).status(), 401, "twice");
}

#[test]
fn a_path_names_no_queue_but_the_keys_own() {
    let (entry, key) = made("ci", &Scope::ALL, Some(&["mail"]));
    let (access, _place) = access(&[&entry]);
    let authorization = with(&key);
    let mut count = 0;
    for (method, route, _) in routes::TABLE.iter().filter(|(_, route, _)| route.contains("{queue}")) {
        let asked = |queue: &str| {
            told(ask(&access, method, &route.replace("{queue}", queue), &[("authorization", &authorization)]))
        };
        assert_eq!(asked("mail").0, 200, "{route}");
        for media in ["media", "m%65dia", "%6D%65%64%69%61"] {
            assert_eq!(asked(media), (403, "queue_forbidden".to_owned()), "{route} {media}");
        }
        assert_eq!(asked("m%61il").0, 200, "{route}");
        for none in ["Media", "m%2565dia", "mail%2Fx", "mail%00", "%ff"] {
            assert_eq!(asked(none), (404, "queue_not_found".to_owned()), "{route} {none}");
        }
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn a_session_stands_for_its_key_where_a_page_of_ours_asks() {
    let (entry, key) = made("ci", &Scope::ALL, None);
    let (access, _place) = access(&[&entry]);
    let (_, session) = access.keyring().unwrap().open_session(&key.expose(), Timestamp::now()).unwrap();
    let cookie = format!("a=b; {COOKIE}={session}; c");
    let asked = |method: &Method, headers: &[(&str, &str)]| told(ask(&access, method, "/v1/jobs", headers));
    assert_eq!(asked(&Method::GET, &[("cookie", &cookie)]), (200, "ci".to_owned()));
    let refused = (403, "cross_origin".to_owned());
    for (header, value, expected) in [
        ("origin", "http://localhost", (200, "ci".to_owned())),
        ("sec-fetch-site", "same-origin", (200, "ci".to_owned())),
        ("sec-fetch-site", "same-site", refused.clone()),
        ("sec-fetch-site", "none", refused.clone()),
        ("accept", "*/*", refused),
    ] {
        assert_eq!(
            asked(&Method::POST, &[("cookie", &cookie), (header, value)]),
            expected,
            "{header}: {value}"
        );
    }
    let denied = (401, "unauthorized".to_owned());
    let key_as_cookie = format!("{COOKIE}={}", key.expose());
    let twice = format!("{cookie}; {COOKIE}=x");
    for wrong in [format!("{COOKIE_TLS}={session}"), format!("{COOKIE}="), key_as_cookie, twice] {
        assert_eq!(asked(&Method::GET, &[("cookie", &wrong)]), denied, "{wrong}");
    }
    assert_eq!(asked(&Method::GET, &[("cookie", &cookie), ("authorization", "Bearer x")]), denied);
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back() {
    let (mut entry, key) = made("ci", &[Scope::Read], None);
    entry.rate = Some(0.01);
    let (access, _place) = access(&[&entry]);
    let authorization = with(&key);
    let get = || ask(&access, &Method::GET, "/v1/jobs", &[("authorization", &authorization)]);
    assert_eq!(get().status(), 200);
    let response = get();
    let again: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((90..=100).contains(&again), "{again}");
    assert_eq!(told(response), (429, "rate_limited".to_owned()));
    // Health is asked by others.
    assert_eq!(ask(&access, &Method::GET, "/healthz", &[("authorization", &authorization)]).status(), 200);
}

#[tokio::test]
async fn a_stream_ends_with_its_key() {
    let events = |media: &'static str| {
        let endless = futures_util::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>();
        let mut response = Body::from_stream(endless).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
        response
    };
    let read = |response: Response| axum::body::to_bytes(response.into_body(), 10).now_or_never();
    assert!(read(until(std::future::ready(()), events("text/event-stream"))).is_some(), "it has ended");
    assert!(read(until(std::future::pending(), events("text/event-stream"))).is_none());
    assert!(read(until(std::future::ready(()), events("application/json"))).is_none());
}
