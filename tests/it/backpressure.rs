//! What a front does about more than it can take: it refuses at once, says when to come again, and its memory stays flat.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::support::process::{Front, PATIENCE, Stage, eventually};

/// Connections of the slow.
const SLOW: usize = 10_000;
/// What one of them may cost, in a debug build, whose futures are large.
const EACH: usize = 48 << 10;
const MIB: usize = 1 << 20;

/// Bytes of a process that are in memory.
fn resident(front: &Front) -> usize {
    let path = format!("/proc/{}/status", front.process.id());
    let status = std::fs::read_to_string(&path).expect("Linux says what a process takes");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it says so");
    let kibibytes = line.split_whitespace().nth(1).and_then(|word| word.parse::<usize>().ok());
    kibibytes.expect("a number") << 10
}

fn address(front: &Front) -> &str {
    front.url.strip_prefix("http://").expect("an http address")
}

/// Connections that have each sent `start`; fewer, where the system allows this process fewer.
async fn slow(front: &Front, start: &str) -> Vec<TcpStream> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
    let allowed = limit.maximum.map_or(SLOW, |limit| usize::try_from(limit).unwrap_or(SLOW));
    let mut opening = JoinSet::new();
    let mut open = Vec::new();
    // A listener's backlog is short: so many at a time.
    for _ in 0..SLOW.min(allowed.saturating_sub(1000)) {
        let (address, start) = (address(front).to_owned(), start.to_owned());
        opening.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(start.as_bytes()).await.expect("a beginning");
            stream
        });
        if opening.len() >= 100 {
            open.extend(opening.join_next().await.map(|opened| opened.expect("opened")));
        }
    }
    while let Some(opened) = opening.join_next().await {
        open.push(opened.expect("opened"));
    }
    open
}

/// Asks a front that others hold up.
async fn works(front: &Front, stage: &Stage) {
    for _ in 0..20 {
        let accepted = timeout(Duration::from_secs(20), front.submit(stage, json!({}))).await;
        accepted.expect("a submit beside the slow is answered");
    }
    assert_eq!(front.get("/readyz").await.status, 200);
}

/// What the front takes while slow connections are there, and works for others.
async fn resident_beside(front: &Front, stage: &Stage, start: &str) -> usize {
    let held = slow(front, start).await;
    works(front, stage).await;
    let resident = resident(front);
    drop(held);
    let descriptors = format!("/proc/{}/fd", front.process.id());
    eventually("they are gone", async || {
        (std::fs::read_dir(&descriptors).ok()?.count() < 1000).then_some(())
    })
    .await;
    resident
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_slow_connections_hold_nobody_up() {
    let stage = Stage::new();
    let front = stage.serve().await;
    works(&front, &stage).await;
    let before = resident(&front);
    let starts = [
        "",
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\n",
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
    ];
    // Memory that some took is there for those who come after them, so it does not add up.
    for start in starts.iter().chain(&starts) {
        let now = resident_beside(&front, &stage, start).await;
        assert!(now < before + SLOW * EACH, "{start:?}: {now} bytes, {before} without them");
    }
    works(&front, &stage).await;
}

/// Where the system allows few descriptors, connections do not use up those that the rest needs.
#[tokio::test(flavor = "multi_thread")]
async fn connections_leave_descriptors_to_the_rest() {
    let stage = Stage::new();
    let mut command = stage.command(std::path::Path::new("/bin/sh"));
    command
        .args(["-c", "ulimit -n 300; exec \"$0\" serve"])
        .arg(crate::support::process::hopline())
        .env("HOPLINE_HTTP_LISTEN", "127.0.0.1:0")
        .env("HOPLINE_RECORD_PATH", stage.dir.join("record"));
    let front = stage.serve_by(command, &stage.dir.join("record")).await;
    front.until_ready().await;
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(TcpStream::connect(address(&front)).await.expect("a connection"));
    }
    // Too many are told so, or closed without a word; the front has descriptors left for everything else.
    let asked = async || {
        let mut stream = TcpStream::connect(address(&front)).await.ok()?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 503").then_some(())
    };
    eventually("too many connections are said", asked).await;
    drop(held);
    eventually("it serves again", async || (front.get("/readyz").await.status == 200).then_some(())).await;
    works(&front, &stage).await;
    assert!(!front.process.log().contains("Too many open files"), "{}", front.process.log());
}

/// A body without end is refused long before its end, whether it says how long it is or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_gigabyte_is_refused_and_holds_nobody_up() {
    const GIB: usize = 1 << 30;
    let stage = Stage::new();
    let front = stage.serve().await;
    works(&front, &stage).await;
    let before = resident(&front);
    for path in ["/v1/jobs", "/v1/jobs/batch", "/v1/rpc/ledger.do", "/v1/jobs/cancel"] {
        for (framing, chunked) in
            [(format!("content-length: {GIB}"), false), ("transfer-encoding: chunked".to_owned(), true)]
        {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{framing}\r\n\r\n"
            );
            let stream = TcpStream::connect(address(&front)).await.expect("a connection");
            let (mut read, mut write) = stream.into_split();
            let sending = tokio::spawn(async move {
                write.write_all(head.as_bytes()).await.ok()?;
                let mut piece = vec![b' '; MIB];
                if chunked {
                    piece = [format!("{MIB:x}\r\n").as_bytes(), &piece, b"\r\n"].concat();
                }
                for _ in 0..GIB / MIB {
                    write.write_all(&piece).await.ok()?;
                }
                Some(())
            });
            works(&front, &stage).await;
            let all_sent = timeout(PATIENCE, sending).await.expect("it is cut off").expect("no panic");
            assert_eq!(all_sent, None, "{path}, {framing}: somebody read a gigabyte");
            let mut answer = Vec::new();
            // The answer may be lost to the reset that cuts the rest off.
            let _ = timeout(PATIENCE, read.read_to_end(&mut answer)).await.expect("an end");
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{path}, {framing}: {answer}");
        }
    }
    let now = resident(&front);
    assert!(now < before + 64 * MIB, "{now} bytes, {before} before");
}
