//! Requests to a real HTTP server, as a job sends them: the handler, without a broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by unwrapping, also in its helpers"
)]

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use hopline::{
    egress::Resolver,
    job::Verdict,
    testing::{self, Tested},
    worker::{Disposition, Outcome},
};
use hopline_worker_webhook::{
    Settings, Webhook,
    request::{self, Answered, Request},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

/// A server that gives one answer to all, and the requests that came, as text.
async fn server(answer: impl Into<Vec<u8>>) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = mpsc::unbounded_channel();
    let answer: Vec<u8> = answer.into();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, sender) = (answer.clone(), sender.clone());
            tokio::spawn(async move {
                let (mut text, mut part) = (Vec::new(), [0; 4096]);
                // A request of a test ends within its last read: with its head, or with `END`.
                while !(text.ends_with(b"\r\n\r\n") || text.ends_with(b"END")) {
                    match stream.read(&mut part).await {
                        Ok(length @ 1..) => text.extend_from_slice(&part[..length]),
                        _ => return,
                    }
                }
                let _ = sender.send(String::from_utf8(text).unwrap());
                let _ = stream.write_all(&answer).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (port, requests)
}

/// All names are at this address.
struct At(&'static str);

impl Resolver for At {
    fn resolve(&self, _: &str) -> std::pin::Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let address = self.0.parse().unwrap();
        Box::pin(async move { Ok(vec![address]) })
    }
}

fn webhook(settings: &str, names_at: &'static str) -> Webhook {
    let resolver: Arc<dyn Resolver> = Arc::new(At(names_at));
    Webhook::with_resolver(toml::from_str::<Settings>(settings).unwrap(), &resolver).unwrap()
}

const LOOPBACK: &str =
    "allow = [\"127.0.0.1\"]\nsecrets.a = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\nbody = 10\n";

async fn ask(webhook: Webhook, args: Value) -> Tested {
    let job: Request = serde_json::from_str(&args.to_string()).unwrap();
    testing::run(request::request, job).state(webhook).await
}

fn failure(tested: &Tested) -> (Verdict, &str, &str) {
    match &tested.outcome {
        Outcome::Failed(error) => (error.verdict(), error.code(), error.message()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_arrives_as_the_job_says_and_its_answer_is_the_output() {
    let answer = "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nx-mine: 1\r\nx-else: 2\r\ncontent-length: 8\r\n\r\n{\"id\":7}";
    let (port, mut requests) = server(answer).await;
    let args = json!({
        "url": format!("http://shop.example:{port}/orders?x=1"),
        "body": "{\"a\": 1} END",
        "headers": {"x-tenant": "9", "content-type": "application/vnd.x+json"},
        "sign": "a",
        "response_headers": ["X-Mine"],
    });
    // 10 bytes are kept, and the answer has 8.
    let tested = ask(webhook(LOOPBACK, "127.0.0.1"), args).await;
    let answered: Answered = tested.output().unwrap();
    assert_eq!((answered.status, answered.json.unwrap().get()), (201, "{\"id\":7}"));
    assert_eq!(
        answered.headers.into_iter().collect::<Vec<_>>(),
        [("content-type".to_owned(), "application/json".to_owned()), ("x-mine".to_owned(), "1".to_owned()),]
    );
    let request = requests.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "{\"a\": 1} END");
    assert!(head.starts_with("POST /orders?x=1 HTTP/1.1\r\n"), "{head}");
    let value = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).collect::<Vec<_>>().join("|")
    };
    assert_eq!((value("x-tenant").as_str(), value("content-type").as_str()), ("9", "application/vnd.x+json"));
    assert_eq!(value("host"), format!("shop.example:{port}"));
    assert_eq!(value("idempotency-key"), value("webhook-id"));
    assert!(value("webhook-signature").starts_with("v1,"), "{head}");
}

#[tokio::test]
async fn a_long_body_is_cut_and_a_bad_status_says_why() {
    let (port, _requests) = server("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n123456789012").await;
    let url = format!("http://127.0.0.1:{port}/");
    let answered: Answered = ask(webhook(LOOPBACK, "::1"), json!({"url": url})).await.output().unwrap();
    assert_eq!((answered.text.as_deref(), answered.truncated), (Some("1234567890"), true));

    let (port, _requests) =
        server("HTTP/1.1 503 Busy\r\nretry-after: 120\r\ncontent-length: 5\r\n\r\nlater").await;
    let tested = ask(webhook(LOOPBACK, "::1"), json!({"url": format!("http://127.0.0.1:{port}/")})).await;
    let told = format!("127.0.0.1:{port} answered 503: later");
    assert_eq!(failure(&tested), (Verdict::RetryIn(Duration::from_secs(120)), "http_503", told.as_str()));
    assert_eq!(tested.retried_in(), Some(Duration::from_secs(120)));
}

#[tokio::test]
async fn redirects_are_told_and_not_followed() {
    let (inner, mut reached) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let answer =
        format!("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{inner}/\r\ncontent-length: 0\r\n\r\n");
    let (port, _requests) = server(answer).await;
    let url = format!("http://127.0.0.1:{port}/");
    let tested = ask(webhook(LOOPBACK, "::1"), json!({"url": url})).await;
    let (verdict, code, message) = failure(&tested);
    assert_eq!((verdict, code), (Verdict::Fatal, "http_302"));
    assert!(message.ends_with(&format!("leads to http://127.0.0.1:{inner}/")), "{message}");
    let answered: Answered =
        ask(webhook(LOOPBACK, "::1"), json!({"url": url, "expect": [302]})).await.output().unwrap();
    assert_eq!(answered.headers["location"], format!("http://127.0.0.1:{inner}/"));
    assert!(reached.try_recv().is_err(), "nobody went there");
}

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_after_their_name_is_resolved() {
    let (port, mut reached) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    for (settings, url, code) in [
        ("", format!("http://127.0.0.1:{port}/"), "address_refused"),
        ("", format!("https://[::ffff:127.0.0.1]:{port}/"), "address_refused"),
        ("", "https://169.254.169.254/latest/meta-data/".to_owned(), "address_refused"),
        // Only the resolver tells.
        ("", format!("https://inside.example:{port}/"), "address_refused"),
        ("allow = [\"127.0.0.2\"]", format!("http://inside.example:{port}/"), "address_refused"),
        ("", format!("http://inside.example:{port}/"), "bad_url"),
        ("", "https://inside.example:25/".to_owned(), "bad_url"),
        ("", "file:///etc/passwd".to_owned(), "bad_url"),
        ("", "https://user:password@inside.example/".to_owned(), "bad_url"),
    ] {
        let tested = ask(webhook(settings, "127.0.0.1"), json!({"url": url})).await;
        let (verdict, got, message) = failure(&tested);
        assert_eq!((verdict, got), (Verdict::Fatal, code), "{url}: {message}");
        assert!(!message.contains("callbacks.allow"), "{message}");
    }
    assert!(reached.try_recv().is_err(), "nobody was asked");
}

#[tokio::test]
async fn who_does_not_answer_is_asked_again() {
    let (port, _requests) = server("").await;
    let url = format!("http://127.0.0.1:{port}/");
    let tested = ask(webhook(LOOPBACK, "::1"), json!({"url": url, "timeout": 1})).await;
    let (verdict, code, _) = failure(&tested);
    assert_eq!((verdict, code), (Verdict::Retry, "timeout"));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{closed}/?token=secret");
    let tested = ask(webhook(LOOPBACK, "::1"), json!({"url": url})).await;
    let (verdict, code, message) = failure(&tested);
    assert_eq!((verdict, code), (Verdict::Retry, "no_connection"));
    assert!(!message.contains("secret"), "{message}");
    let job: Request = serde_json::from_str(&json!({"url": url}).to_string()).unwrap();
    let (port, _requests) = server("").await;
    let job = Request { url: format!("http://127.0.0.1:{port}/"), ..job };
    let tested = testing::run(request::request, job).state(webhook(LOOPBACK, "::1")).cancelled().await;
    assert_eq!(tested.disposition, Disposition::HandBack);
}
