//! The HTTP front over TLS.

use std::time::Duration;

use hopline::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    PATIENCE, eventually,
    front::Front,
    keys::Keys,
    stage::{Stage, stage},
    tls::{Authority, Signed},
};
use hopline::access::Scope;

fn secured(config: &Config, authority: &Authority) -> Config {
    let Signed { cert, key } = authority.server();
    let mut config = config.clone();
    (config.http.tls_cert, config.http.tls_key) = (Some(cert), Some(key));
    config
}

fn client(authority: &Authority) -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
    client.tls_certs_only([authority.certificate()]).build().expect("an HTTP client")
}

async fn front(stage: &Stage, config: &Config, client: &reqwest::Client) -> (Front, String) {
    let front = stage.front_unready(config).await;
    let base = format!("https://localhost:{}", front.address.port());
    eventually("readiness", async || {
        let answer = client.get(format!("{base}/readyz")).send().await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    (front, base)
}

#[tokio::test]
async fn jobs_are_taken_over_tls_and_in_no_other_way() {
    stage(async |stage| {
        let authority = Authority::new();
        let client = client(&authority);
        let (front, base) = front(stage, &secured(&stage.config, &authority), &client).await;
        let submit = client.post(format!("{base}/v1/jobs")).header("content-type", "application/json");
        let answer = submit.body(r#"{"kind":"test.probe"}"#).send().await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.version()), (202, reqwest::Version::HTTP_11));
        // Plain HTTP gets no HTTP back, and an end.
        let plain = front.raw(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(!plain.contains("HTTP/"), "{plain:?}");
        let stranger = reqwest::Client::builder().no_proxy().tls_certs_only([Authority::new().certificate()]);
        let refused = stranger.build().expect("a client").get(format!("{base}/healthz")).send().await;
        assert!(refused.is_err(), "another authority's certificate is no proof");
    })
    .await;
}

/// A handshake counts as a connection, and does not last longer than it may.
#[tokio::test]
async fn who_makes_no_handshake_does_not_keep_his_place() {
    stage(async |stage| {
        let authority = Authority::new();
        let mut config = secured(&stage.config, &authority);
        config.http.read_timeout = Duration::from_secs(1);
        config.http.max_connections = 1;
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_max_idle_per_host(0);
        let client = client.tls_certs_only([authority.certificate()]).build().expect("an HTTP client");
        let (front, base) = front(stage, &config, &client).await;
        for begun in [&b""[..], b"\x16\x03\x01"] {
            let mut silent = eventually("the only place is his", async || {
                let mut stream = TcpStream::connect(front.address).await.ok()?;
                stream.write_all(begun).await.ok()?;
                // One that found no place is closed at once.
                let early = timeout(Duration::from_millis(300), stream.read(&mut [0; 1])).await;
                early.is_err().then_some(stream)
            })
            .await;
            assert!(client.get(format!("{base}/healthz")).send().await.is_err(), "there is no other place");
            let end = timeout(PATIENCE, silent.read(&mut [0; 64])).await.expect("in time");
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
            eventually("the place is free", async || client.get(format!("{base}/healthz")).send().await.ok())
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn over_tls_a_session_is_for_tls_alone() {
    stage(async |stage| {
        let (authority, keys) = (Authority::new(), Keys::new());
        let key = keys.make(&[Scope::Read], None);
        let client = client(&authority);
        let (_front, base) = front(stage, &keys.guard(&secured(&stage.config, &authority)), &client).await;
        let no_redirect = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let browser = no_redirect.tls_certs_only([authority.certificate()]).build().expect("a client");
        let login = browser.post(format!("{base}/login")).header("origin", &base);
        let login = login.header("content-type", "application/x-www-form-urlencoded");
        let answer = login.body(format!("key={}", key.expose())).send().await.expect("an answer");
        assert_eq!(answer.status(), 303);
        let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
        assert!(cookie.starts_with("__Host-hopline_session=") && cookie.contains("; Secure"), "{cookie}");
        assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
        let session = cookie.split(';').next().expect("a pair").to_owned();
        let jobs = browser.get(format!("{base}/v1/jobs")).header("cookie", session).send().await;
        assert_eq!(jobs.expect("an answer").status(), 200);
    })
    .await;
}
