//! `hopline up --detach`: the supervisor as a process of its own, and the pipe on which it tells how it starts.
//!
//! Each line on the pipe begins with a mark. After the last one the process that asked goes away, and with it the
//! pipe; the supervisor writes nothing to it any more.

use std::{
    ffi::OsStr,
    future::Future,
    process::{ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    signal::unix::{SignalKind, signal},
};

use super::{
    files::{self, Since},
    process::Process,
    say,
    state::{Asked, Layout},
};

/// What the supervisor's log is called.
const LOG: &str = "up";
/// A line by itself: all is ready.
const READY: &str = "\u{4}";
/// A line by itself: what follows is why it failed.
const FAILED: &str = "\u{15}";

/// Whether this process is the background half.
static BACKGROUND: AtomicBool = AtomicBool::new(false);

/// Runs the background half; its failure goes to the one who asked, and to the log.
pub(super) async fn in_background(supervise: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    BACKGROUND.store(true, Ordering::Relaxed);
    match supervise.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::error(format_args!("hopline: {error:#}"));
            say::line(FAILED);
            say::line(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells the one who asked that all is ready.
pub(super) fn announced() {
    if BACKGROUND.load(Ordering::Relaxed) {
        say::line(READY);
    }
}

/// Starts the background half and waits until all is ready, or it failed.
pub(super) async fn start(layout: &Layout, asked: &Asked) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let log = Since::now(layout.log(LOG));
    let mut child = spawn(layout, asked)?;
    let process = child.id().and_then(Process::of);
    let output = child.stdout.take().context("the supervisor has no output")?;
    let mut stopped = false;
    let heard = listen(output);
    tokio::pin!(heard);
    let heard = loop {
        tokio::select! {
            heard = &mut heard => break heard,
            _ = interrupt.recv() => stopped = true,
            _ = term.recv() => stopped = true,
        }
        // It ends what it has started so far, and then the pipe.
        process.iter().for_each(|process| process.signal(Signal::TERM));
    };
    match heard {
        Heard::Ready if !stopped => Ok(ExitCode::SUCCESS),
        Heard::Failed(why) => anyhow::bail!("{why}"),
        _ => {
            let status = child.wait().await?;
            if stopped {
                return Ok(ExitCode::from(130));
            }
            anyhow::bail!(
                "the supervisor ended ({status}); its log is {}:\n{}",
                log.path().display(),
                log.tail(8)
            )
        }
    }
}

fn spawn(layout: &Layout, asked: &Asked) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find the running program")?;
    Command::new(&program)
        .args(["up", "--supervise", "--dir"])
        .arg(&layout.dir)
        .args(asked.scale.iter().flat_map(|(name, count)| ["--scale".to_owned(), format!("{name}={count}")]))
        .args(asked.own.values().flat_map(|program| [OsStr::new("--worker"), program.as_os_str()]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(files::append(&layout.log(LOG))?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

enum Heard {
    Ready,
    Failed(String),
    Ended,
}

/// Passes on what the supervisor says until it is ready or gone.
async fn listen(output: ChildStdout) -> Heard {
    let mut lines = BufReader::new(output).lines();
    let mut why: Option<Vec<String>> = None;
    while let Ok(Some(line)) = lines.next_line().await {
        match (line.as_str(), &mut why) {
            (READY, _) => return Heard::Ready,
            (FAILED, _) => why = Some(Vec::new()),
            (_, Some(why)) => why.push(line),
            _ => say::line(line),
        }
    }
    why.map_or(Heard::Ended, |why| Heard::Failed(why.join("\n")))
}
