//! One run of a command, as the worker sees it: its time, its output, its end.
//!
//! What is dropped here is ended there: the keeper takes the end of its socket for the order to end everything. So a
//! handler that is dropped (its grace is over, its worker ends) leaves nothing behind.

use std::{future::Future, io, path::Path, pin::pin, process::Stdio, time::Duration};

use serde_json::value::RawValue;
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedReadHalf},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    keeper::{self, End, Order, Report},
    launch::{CANNOT, Launch},
};

/// Most bytes of the end of standard error that are kept.
pub const TAIL: usize = 2 << 10;
/// How long a keeper has to end a command: only one that waits within the system, for a disk, withstands it.
const ENDING: Duration = Duration::from_secs(10);

/// How a command ended, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// What ended it before its time, if something did.
    pub cut: Option<Cut>,
    /// Its standard output; incomplete where it was cut.
    pub output: Vec<u8>,
    /// The end of its standard error, at most [`TAIL`] bytes.
    pub tail: Vec<u8>,
    /// How many processes it left behind, which were ended.
    pub left: usize,
}

/// What ends a command before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its time was over.
    Time,
    /// It wrote too much.
    Output,
    /// The worker was told to stop it.
    Stopped,
}

/// A run that nobody knows the end of.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// There is no keeper, so nothing ran.
    #[error("cannot start a keeper: {0}")]
    NoKeeper(#[source] io::Error),
    /// The keeper ended without a word.
    #[error("the keeper of the command ended: {0}")]
    Lost(String),
    /// What was to end goes on.
    #[error("the command did not end within {} s of being killed", ENDING.as_secs())]
    Undying,
}

/// What ends the attempt from outside, and when.
pub(crate) struct Bounds<S> {
    pub(crate) time: Duration,
    pub(crate) output: usize,
    pub(crate) stop: S,
}

/// Runs a command to its end, and all that it starts.
pub(crate) async fn run(
    program: &Path,
    launch: Launch,
    input: Box<RawValue>,
    bounds: Bounds<impl Future<Output = ()>>,
) -> Result<Ended, RunError> {
    let Bounds { time, output: most, stop } = bounds;
    let nonce = launch.nonce.clone();
    let order = serde_json::to_string(&Order { launch, input }).map_err(io::Error::other);
    // Outside of strings line breaks mean nothing in JSON; here they end an order.
    let order = order.map_err(RunError::NoKeeper)?.replace(['\n', '\r'], " ") + "\n";
    let (mut child, socket) = start(program).map_err(RunError::NoKeeper)?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(RunError::NoKeeper(io::Error::other("no pipes")));
    };
    let (from, mut to) = socket.into_split();
    let (too_much, over) = (CancellationToken::new(), CancellationToken::new());

    let watch = async {
        // A keeper that is gone is told by its missing report.
        let _ = to.write_all(order.as_bytes()).await;
        let cut = tokio::select! {
            () = over.cancelled() => return None,
            () = too_much.cancelled() => Cut::Output,
            () = sleep(time) => Cut::Time,
            () = stop => Cut::Stopped,
        };
        drop(to);
        Some(cut)
    };
    let report = async {
        let report = report(from).await;
        over.cancel();
        report
    };
    let reading = async { tokio::join!(read_output(stdout, most, &too_much), read_tail(stderr)) };
    let mut all = pin!(async { tokio::join!(watch, report, reading) });
    let mut patience = pin!(async {
        tokio::select! {
            () = sleep(time) => {}
            () = too_much.cancelled() => {}
            () = over.cancelled() => {}
        }
        sleep(ENDING).await;
    });
    let (cut, report, (output, tail)) = tokio::select! {
        all = &mut all => all,
        () = &mut patience => {
            let _ = child.start_kill();
            return Err(RunError::Undying);
        }
    };
    reaped(&mut child).await;
    let Report { end, left } = report?;
    Ok(Ended { end: unmasked(end, &tail, &nonce), cut, output, tail, left })
}

fn start(program: &Path) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(program)
        .arg(keeper::ARGUMENT)
        .env_clear()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

async fn report(socket: OwnedReadHalf) -> Result<Report, RunError> {
    let mut line = String::new();
    let read = BufReader::new(socket).read_line(&mut line).await;
    let lost = |why: &dyn std::fmt::Display| RunError::Lost(why.to_string());
    match read {
        Ok(0) => Err(lost(&"it was killed, or could not begin")),
        Ok(_) => serde_json::from_str(&line).map_err(|error| lost(&error)),
        Err(error) => Err(lost(&error)),
    }
}

/// Everything, up to `most` bytes; beyond that it says so and throws the rest away.
async fn read_output(mut from: impl AsyncRead + Unpin, most: usize, too_much: &CancellationToken) -> Vec<u8> {
    let (mut output, mut part) = (Vec::new(), vec![0; 16 << 10]);
    // An error is an end, too.
    while let Ok(length @ 1..) = from.read(&mut part).await {
        if output.len() + length > most {
            too_much.cancel();
        } else if !too_much.is_cancelled() {
            output.extend_from_slice(&part[..length]);
        }
    }
    output
}

/// The last [`TAIL`] bytes.
async fn read_tail(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut tail, mut part) = (Vec::new(), vec![0; 4 << 10]);
    while let Ok(length @ 1..) = from.read(&mut part).await {
        tail.extend_from_slice(&part[..length]);
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
    tail
}

async fn reaped(child: &mut Child) {
    // It has said its last word; the runtime waits for it where this does not.
    let _ = timeout(ENDING, child.wait()).await;
}

/// Tells a launcher that could not become the command from a command that ended with the same code.
fn unmasked(end: End, tail: &[u8], nonce: &str) -> End {
    let said = String::from_utf8_lossy(tail);
    match (&end, said.trim_end().rsplit_once(nonce)) {
        (End::Exit(CANNOT), Some((_, why))) => End::NotStarted(why.trim().to_owned()),
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_kept_to_its_limit_and_errors_to_their_end() {
        let token = CancellationToken::new();
        assert_eq!(read_output(&b"12345"[..], 5, &token).await, b"12345");
        assert!(!token.is_cancelled());
        read_output(&b"123456"[..], 5, &token).await;
        assert!(token.is_cancelled());
        let long = [vec![b'a'; 100_000], b"end".to_vec()].concat();
        let tail = read_tail(&long[..]).await;
        assert_eq!((tail.len(), tail.ends_with(b"aend")), (TAIL, true));
    }

    #[test]
    fn only_a_launcher_speaks_for_a_launcher() {
        let end = |end, tail: &str| unmasked(end, tail.as_bytes(), "n0nce");
        assert_eq!(
            end(End::Exit(126), "n0nce cannot start: no\n"),
            End::NotStarted("cannot start: no".into())
        );
        assert_eq!(end(End::Exit(126), "cannot start\n"), End::Exit(126));
        assert_eq!(end(End::Exit(1), "n0nce cannot start"), End::Exit(1));
    }
}
