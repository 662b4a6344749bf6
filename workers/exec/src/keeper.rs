//! The keeper: the process between the worker and one command, which sees to it that nothing of the command is left.
//!
//! It is a subreaper, so whatever the command starts stays below it, however it detaches itself. It ends it all when the
//! command itself has ended, when the worker says so, and when the worker is gone: the end of its input means either. It
//! has ended only when it has no children left, which is what the system says and not what it has counted.
//!
//! Its standard input is one end of a socket: an [`Order`] comes in, a [`Report`] goes out, a line each. Its standard
//! output and error are the command's. A thread and a blocking `wait`; no runtime.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    process::{
        DumpableBehavior, Pid, WaitOptions, getpid, set_child_subreaper, set_dumpable_behavior, setsid, wait,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    launch::{self, Launch},
    tree,
};

/// What makes this program a keeper.
pub const ARGUMENT: &str = "keeper";
/// Between two rounds of killing.
const ROUND: Duration = Duration::from_millis(5);

/// What to run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) launch: Launch,
    /// What the command finds on its standard input.
    pub(crate) input: Box<RawValue>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) end: End,
    /// How many of its processes were still there when the command itself had ended.
    pub(crate) left: usize,
}

/// How the command itself ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// There was no command to run; why.
    NotStarted(String),
}

/// Hides memory and environment of this process from others of the same user.
///
/// # Errors
/// The system refuses.
pub fn hide_from_others() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Keeps one command.
#[must_use]
pub fn main() -> ExitCode {
    match keep() {
        Ok(()) => ExitCode::SUCCESS,
        // The worker is gone, or learns of it by the missing report.
        Err(_) => ExitCode::FAILURE,
    }
}

fn keep() -> io::Result<()> {
    hide_from_others()?;
    // Away from the terminal, whose Ctrl-C is for the worker to handle.
    setsid()?;
    set_child_subreaper(Some(getpid()))?;
    let mut socket = BufReader::new(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?));
    let mut line = String::new();
    socket.read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    drop(line);
    let mut answers = socket.get_ref().try_clone()?;
    let report = match start(&order) {
        Ok(command) => guard(command, socket)?,
        Err(error) => Report { end: End::NotStarted(error.to_string()), left: 0 },
    };
    writeln!(answers, "{}", serde_json::to_string(&report)?)
}

/// Starts the launcher, which becomes the command under the same id.
fn start(order: &Order) -> io::Result<Pid> {
    // A file in memory: whoever does not read it holds nobody up.
    let mut input = File::from(memfd_create("hopline-exec-input", MemfdFlags::CLOEXEC)?);
    input.write_all(order.input.get().as_bytes())?;
    input.rewind()?;
    let child = Command::new("/proc/self/exe")
        .arg(launch::ARGUMENT)
        .env(launch::VARIABLE, serde_json::to_string(&order.launch)?)
        .stdin(Stdio::from(input))
        .spawn()?;
    Ok(Pid::from_child(&child))
}

/// Why everything is to end.
enum Word {
    CommandEnded,
    WorkerSaysSo,
}

/// Waits for the end of all that is below, and brings it about when it is time.
fn guard(command: Pid, mut socket: BufReader<UnixStream>) -> io::Result<Report> {
    let (say, words) = mpsc::channel();
    let listening = say.clone();
    thread::Builder::new().spawn(move || {
        // Whatever comes, and be it an error, is the end.
        let _ = socket.read(&mut [0]);
        let _ = listening.send(Word::WorkerSaysSo);
    })?;
    let (over, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let ending = {
        let (over, left) = (Arc::clone(&over), Arc::clone(&left));
        thread::Builder::new().spawn(move || end_all(&words, &over, &left))?
    };
    let end = reap(command, &say);
    over.store(true, Ordering::Release);
    // Where nothing was left it still waits for a word.
    let _ = say.send(Word::CommandEnded);
    let _ = ending.join();
    Ok(Report { end: end?, left: left.load(Ordering::Acquire) })
}

fn end_all(words: &mpsc::Receiver<Word>, over: &AtomicBool, left: &AtomicUsize) {
    let own = getpid().as_raw_nonzero().get();
    if let Ok(Word::CommandEnded) = words.recv() {
        left.store(tree::count_below(own), Ordering::Release);
    }
    while !over.load(Ordering::Acquire) {
        tree::kill_below(own);
        thread::sleep(ROUND);
    }
}

/// Waits until there is no child left, those included that were adopted; how the command itself ended.
fn reap(command: Pid, say: &mpsc::Sender<Word>) -> io::Result<End> {
    let mut end = None;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == command => {
                let by_signal = status.terminating_signal().map(End::Signal);
                end = by_signal.or_else(|| status.exit_status().map(End::Exit));
                let _ = say.send(Word::CommandEnded);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return end.ok_or_else(|| io::Error::other("the command was lost")),
            Err(error) => return Err(error.into()),
        }
    }
}
