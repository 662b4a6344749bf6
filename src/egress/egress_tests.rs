use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

fn guard(allow: &[&str]) -> Guard {
    Guard::new(&allow.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>()).unwrap()
}

/// What the first look says: `ok`, or the variant's name.
fn verdict(guard: &Guard, url: &str) -> String {
    match guard.check(url) {
        Ok(()) => "ok".to_owned(),
        Err(refusal) => format!("{refusal:?}").split([' ', '(']).next().unwrap_or_default().to_owned(),
    }
}

#[test]
fn the_first_look_tells_what_a_url_tells() {
    let strict = guard(&[]);
    for (url, expected) in [
        ("https://example.org/hook?token=x", "ok"),
        ("https://example.org:8443/", "ok"),
        ("https://8.8.8.8/", "ok"),
        ("https://[2606:4700:4700::1111]/", "ok"),
        ("HTTPS://EXAMPLE.ORG", "ok"),
        ("http://example.org/", "Plain"),
        ("http://8.8.8.8/", "Plain"),
        ("https://example.org:25/", "Port"),
        ("https://8.8.8.8:22/", "Port"),
        ("https://example.org:0/", "Port"),
        ("ftp://example.org/", "Scheme"),
        ("file:///etc/passwd", "Scheme"),
        ("gopher://127.0.0.1:6379/_x", "Scheme"),
        ("data:text/plain,x", "Scheme"),
        ("https://user@example.org/", "Userinfo"),
        ("https://user:password@example.org/", "Userinfo"),
        ("https://:x@example.org/", "Userinfo"),
        ("example.org/x", "NoUrl"),
        ("", "NoUrl"),
        ("https://", "NoUrl"),
        ("https://exa mple.org/", "NoUrl"),
        // Loopback in all notations.
        ("https://127.0.0.1/", "Address"),
        ("http://127.0.0.1/", "Address"),
        ("https://127.1/", "Address"),
        ("https://2130706433/", "Address"),
        ("https://0x7f000001/", "Address"),
        ("https://0x7f.0.0.1/", "Address"),
        ("https://0177.0.0.1/", "Address"),
        ("https://017700000001/", "Address"),
        ("https://127.0.0.1./", "Address"),
        ("https://127.0.0.1:8080/", "Address"),
        ("https://１２７.０.０.１/", "Address"),
        ("https://①②⑦.⓪.⓪.①/", "Address"),
        ("https://%31%32%37.0.0.1/", "Address"),
        ("https:/\\127.0.0.1/", "Address"),
        ("https:127.0.0.1", "Address"),
        ("https://0/", "Address"),
        ("https://[::]/", "Address"),
        ("https://[::1]/", "Address"),
        ("https://[::ffff:127.0.0.1]/", "Address"),
        ("https://[::ffff:7f00:1]/", "Address"),
        ("https://[::127.0.0.1]/", "Address"),
        ("https://[64:ff9b::7f00:1]/", "Address"),
        ("https://[2002:7f00:1::]/", "Address"),
        ("https://localhost/", "Address"),
        ("https://LOCALHOST./", "Address"),
        ("https://a.localhost/", "Address"),
        // Metadata of clouds, and other private ones.
        ("https://169.254.169.254/latest/meta-data/", "Address"),
        ("https://[fd00:ec2::254]/", "Address"),
        ("https://[fe80::1]/", "Address"),
        ("https://10.1.2.3/", "Address"),
        ("https://100.64.0.1/", "Address"),
        ("https://255.255.255.255/", "Address"),
    ] {
        assert_eq!(verdict(&strict, url), expected, "{url}");
    }
    let long = format!("https://example.org/{}", "x".repeat(URL_MAX));
    assert_eq!(verdict(&strict, &long), "TooLong");
}

#[test]
fn what_is_allowed_may_be_private_and_without_tls() {
    let some = guard(&["127.0.0.1", "10.0.0.0/8", "fd00::/8", "Hooks.Internal."]);
    for (url, expected) in [
        ("http://127.0.0.1:3000/", "ok"),
        ("http://localhost:3000/", "ok"),
        ("http://[::ffff:127.0.0.1]/", "ok"),
        ("http://127.0.0.2/", "Address"),
        ("http://[::1]/", "Address"),
        ("http://10.9.9.9:25/", "ok"),
        ("http://[fd12::1]/", "ok"),
        ("http://hooks.internal/", "ok"),
        ("http://hooks.internal.:81/", "ok"),
        ("http://8.8.8.8/", "Plain"),
        // It may have an address that is allowed: the second look tells.
        ("http://example.org/", "ok"),
    ] {
        assert_eq!(verdict(&some, url), expected, "{url}");
    }
    assert_eq!(verdict(&guard(&["hooks.internal"]), "http://example.org/"), "Plain");
    for bad in ["", "10.0.0.0/33", "10.0.0.300", "*.internal", "http://x", "a..b", "[::1]"] {
        assert!(Guard::new(&[bad.to_owned()]).is_err(), "{bad}");
    }
}

#[test]
fn the_second_look_leaves_only_what_may_be_asked() {
    let addresses = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
    let found = addresses(&["10.0.0.1", "8.8.8.8", "::ffff:127.0.0.1", "fe80::1"]);
    let strict = guard(&[]);
    assert_eq!(strict.admitted("x", Reach::Public, &found), Ok(addresses(&["8.8.8.8"])));
    let refused = strict.admitted("x", Reach::Allowed, &found).unwrap_err();
    let setting = "callbacks.allow";
    assert_eq!(refused, Refusal::Address { host: "x".into(), address: found[0], setting });
    assert!(refused.to_string().contains(setting), "{refused}");
    let other = guard(&[]).allowed_by("mine").admitted("x", Reach::Allowed, &found).unwrap_err();
    assert!(other.to_string().ends_with("allow the address (mine)"), "{other}");
    assert_eq!(refused.code(), "address_refused");
    let some = guard(&["10.0.0.0/8", "trusted"]);
    assert_eq!(some.admitted("x", Reach::Public, &found), Ok(addresses(&["10.0.0.1", "8.8.8.8"])));
    assert_eq!(some.admitted("x", Reach::Allowed, &found), Ok(addresses(&["10.0.0.1"])));
    assert_eq!(some.admitted("trusted", Reach::Allowed, &found), Ok(found.clone()));
    assert_eq!(strict.admitted("x", Reach::Public, &[]), Ok(Vec::new()));
}

/// Answers each question with the next of these, and the last one over and over.
struct Changing(Mutex<VecDeque<Vec<IpAddr>>>);

impl Resolver for Changing {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut answers = self.0.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        Box::pin(async move { Ok(answer.unwrap_or_default()) })
    }
}

/// A server that answers each connection with `answer`; its port, and how many there were.
async fn server(answer: &'static str) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, count)
}

fn egress(allow: &[&str], answers: &[&[&str]]) -> Egress {
    let answers = answers.iter().map(|all| all.iter().map(|one| one.parse().unwrap()).collect()).collect();
    let timeouts = Timeouts { connect: Duration::from_secs(20), total: Duration::from_secs(20) };
    let resolver: Arc<dyn Resolver> = Arc::new(Changing(Mutex::new(answers)));
    Egress::new(guard(allow), &resolver, timeouts).unwrap()
}

#[tokio::test]
async fn a_name_that_changes_its_address_is_refused() {
    let (port, count) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    // 127.0.0.2 is allowed, and stands for a public address.
    let egress = egress(&["127.0.0.2"], &[&["127.0.0.2"], &["127.0.0.1"]]);
    let url = format!("http://rebinding.example:{port}/");
    assert_eq!(egress.post(&url, &[], String::new()).await.unwrap().status, 204);
    let error = egress.post(&url, &[], String::new()).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused(Refusal::Address { .. })), "{error}");
    assert_eq!(count.load(Ordering::SeqCst), 1, "the second address was never asked");
}

#[tokio::test]
async fn of_several_addresses_those_that_are_refused_are_not_asked() {
    let (port, count) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let egress = egress(&["127.0.0.2"], &[&["127.0.0.1", "127.0.0.2"], &["127.0.0.1"], &[]]);
    let url = format!("http://two.example:{port}/");
    assert_eq!(egress.post(&url, &[], String::new()).await.unwrap().status, 204);
    assert!(egress.post(&url, &[], String::new()).await.is_err());
    let nowhere = egress.post(&url, &[], String::new()).await.unwrap_err();
    assert!(matches!(nowhere, EgressError::NoAnswer { .. }), "{nowhere}");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (inner, reached) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let answer = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:{inner}/\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n"
    );
    let (port, _) = server(answer.leak()).await;
    let egress = egress(&["127.0.0.0/8"], &[&["127.0.0.2"]]);
    let answer = egress.post(&format!("http://x.example:{port}/"), &[], String::new()).await.unwrap();
    assert_eq!((answer.status, answer.retry_after), (307, Some(Duration::from_secs(7))));
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_body_is_kept_up_to_its_limit() {
    let (port, _) = server("HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 5\r\n\r\n12345").await;
    let egress = egress(&["127.0.0.1"], &[&["127.0.0.1"]]);
    let url = format!("http://x.example:{port}/");
    for (body_max, kept, truncated) in
        [(0, "", true), (4, "1234", true), (5, "12345", false), (9, "12345", false)]
    {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let timeout = Duration::from_secs(20);
        let request = Request { method: Method::PUT, url: &url, headers, body, timeout, body_max };
        let response = egress.send(request).await.unwrap();
        assert_eq!((response.body, response.truncated), (kept.as_bytes().to_vec(), truncated), "{body_max}");
        assert_eq!((response.answer.status, response.headers["x-a"].as_bytes()), (200, &b"b"[..]));
    }
}

#[tokio::test]
async fn an_error_does_not_show_the_url() {
    let egress = egress(&["127.0.0.1"], &[&["127.0.0.1"]]);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let url = format!("http://x.example:{closed}/hook?token=secret");
    let error = egress.post(&url, &[], String::new()).await.unwrap_err();
    let EgressError::NoAnswer { code, host, why } = &error else { panic!("{error}") };
    assert_eq!((*code, host.as_str()), ("no_connection", format!("x.example:{closed}").as_str()));
    assert!(!error.to_string().contains("secret") && !why.is_empty(), "{error}");
}

#[test]
fn retry_after_is_seconds_or_a_time() {
    let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    let asked = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers, now).map(|pause| pause.as_secs())
    };
    for (text, seconds) in [
        ("120", Some(120)),
        ("0", Some(0)),
        ("Fri, 02 Jan 2026 03:05:05 GMT", Some(60)),
        ("Fri, 02 Jan 2026 03:00:00 GMT", Some(0)),
        ("soon", None),
        ("-1", None),
        ("", None),
        ("99999999999999999999999", Some(u64::MAX)),
        ("99999999999999999999999 s", None),
    ] {
        assert_eq!(asked(text), seconds, "{text}");
    }
}
