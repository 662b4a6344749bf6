//! Running a suspect job in a child process.
//!
//! A job that came back several times may be what killed the workers before: or it was only prefetched by one that
//! died. The count convicts nobody. From the configured delivery on, the handler runs in a child process of the
//! same program, and only that child's own death convicts the job.
//!
//! The child is this program started again with the same arguments and [`VARIABLE`] set; its standard input is one
//! end of a socket. It says that it is ready, reads one job, runs it and answers; meanwhile it passes on what the
//! handler tells, at most once a second. If it ends without an answer after it got the job, and nobody asked it to, the
//! job killed it. It does not outlive its parent.
//!
//! The end of its input asks the child to stop, soon; the word [`CANCEL`] asks the handler to, and leaves it the time
//! that the parent gives it.

use std::{
    io,
    os::{
        fd::AsFd,
        unix::process::{ExitStatusExt, parent_id},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    thread,
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tracing::Instrument;

use super::{
    CpuPool, Executor, Report, WorkerError,
    context::Slot,
    executor::{Outcome, Strings, Terms},
    news::{Listener, Said},
    registry::Registry,
    traced,
};
use crate::{
    client::{Client, Role},
    config::Config,
    job::{Envelope, JobError, Kind, QueueName, Verdict},
    trace::{self, Span, TraceContext},
};

/// Set for a child process.
const VARIABLE: &str = "HOPLINE_ISOLATE";
/// Longest time for a child to get as far as its worker's `run`.
const READY: Duration = Duration::from_secs(30);
/// How long a child gets to stop by itself.
const STOP: Duration = Duration::from_secs(2);
/// Time for the child to answer a timeout by itself, with what it knows, before it is killed for it.
const LATE: Duration = Duration::from_secs(2);
/// How often a child looks whether its parent lives.
const ORPHAN_LOOK: Duration = Duration::from_millis(500);
/// How often the child passes on what the handler tells.
const TELL: Duration = Duration::from_secs(1);
/// The parent's word that the job was cancelled.
const CANCEL: &str = "cancel";
/// The exit code of a child whose parent is gone; nobody reads it.
const ORPHANED: i32 = 1;
/// Signals by which somebody else ends a process: they convict nobody.
const ASKED_TO_END: [i32; 3] = [1, 2, 15];

/// A job as it goes to the child. The args travel as they are: JSON in JSON.
#[derive(Serialize, Deserialize)]
struct Order {
    id: String,
    kind: Kind,
    queue: QueueName,
    run: u32,
    attempt: u32,
    tags: Vec<String>,
    terms: Terms,
    /// What jobs carry that it enqueues.
    trace: Option<TraceContext>,
    args: Box<RawValue>,
}

/// What the child says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Ready,
    Success { output: Box<RawValue>, omitted: bool },
    Failed { verdict: Told, code: String, message: String },
    TimedOut,
    Panicked(String),
    HandedBack,
    Progress { percent: u8, message: String },
}

/// A verdict on the wire between the two.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Retry,
    RetryIn(Duration),
    Snooze(Duration),
    Fatal,
}

/// Whether this process is such a child.
pub(super) fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Runs one attempt in a child process.
///
/// An error means that no child could be had, and that the job did not run.
pub(super) async fn run(envelope: &Envelope, terms: &Terms, strings: &Strings) -> io::Result<Outcome> {
    let order = order(envelope, terms)?;
    let (child, stream) = spawn()?;
    let mut parent = Parent { child, stream: BufReader::new(stream), line: Vec::new() };
    parent.until_ready().await?;
    parent.say(&order).await?;
    // From here on the child's death is the job's doing.
    Ok(strings.under_order(parent.verdict(terms, strings).await))
}

fn order(envelope: &Envelope, terms: &Terms) -> io::Result<String> {
    let args = std::str::from_utf8(&envelope.args).map_err(io::Error::other)?;
    let order = Order {
        id: envelope.id.to_string(),
        kind: envelope.kind.clone(),
        queue: envelope.queue.clone(),
        run: envelope.run,
        attempt: envelope.attempt,
        tags: envelope.tags.clone(),
        terms: *terms,
        trace: trace::current().or_else(|| TraceContext::of(&envelope.extra)),
        args: RawValue::from_string(args.to_owned()).map_err(io::Error::other)?,
    };
    // A raw value may hold line breaks, which end a line on this wire; outside of strings they mean nothing.
    Ok(serde_json::to_string(&order).map_err(io::Error::other)?.replace(['\n', '\r'], " "))
}

fn spawn() -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(program()?)
        .args(std::env::args_os().skip(1))
        .env(VARIABLE, "1")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        // Ctrl-C in a terminal goes to a process group; the child is ended by its parent.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

/// This program, also after a deploy has replaced its file.
fn program() -> io::Result<PathBuf> {
    let running = Path::new("/proc/self/exe");
    if running.exists() { Ok(running.to_owned()) } else { std::env::current_exe() }
}

struct Parent {
    child: Child,
    stream: BufReader<UnixStream>,
    /// What has come of the child's next line.
    line: Vec<u8>,
}

impl Parent {
    async fn until_ready(&mut self) -> io::Result<()> {
        match timeout(READY, self.listen()).await {
            Ok(Some(Word::Ready)) => Ok(()),
            Ok(_) => {
                Err(io::Error::other("the child process ended, or spoke otherwise, before it was ready"))
            }
            Err(_) => Err(io::Error::other("the child process was not ready in time")),
        }
    }

    async fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(line.as_bytes()).await?;
        self.stream.get_mut().write_all(b"\n").await
    }

    /// The child's next word; `None` when it has ended. Cancel safe: half a line is kept for the next call.
    async fn listen(&mut self) -> Option<Word> {
        let read = self.stream.read_until(b'\n', &mut self.line).await;
        let word = match read {
            Ok(_) if self.line.ends_with(b"\n") => serde_json::from_slice(&self.line).ok(),
            Ok(_) | Err(_) => None,
        };
        self.line.clear();
        word
    }

    /// The child's last word; passes on what the handler tells before that.
    async fn last_word(&mut self, strings: &Strings) -> Option<Word> {
        loop {
            match self.listen().await? {
                Word::Progress { percent, message } => {
                    strings.news.say(Said::new(percent.into(), &message));
                }
                word => return Some(word),
            }
        }
    }

    async fn verdict(mut self, terms: &Terms, strings: &Strings) -> Outcome {
        let deadline = Instant::now() + terms.timeout + LATE;
        let word = tokio::select! {
            word = timeout_at(deadline, self.last_word(strings)) => word.map_err(drop),
            () = strings.abort.cancelled() => {
                self.end().await;
                return Outcome::HandedBack;
            }
            () = strings.cancel.cancelled() => self.ask_to_stop(strings).await,
        };
        match word {
            Ok(Some(word)) => outcome(word, terms),
            Err(_) if strings.cancel.is_cancelled() => {
                self.end().await;
                Outcome::HandedBack
            }
            Err(_) => {
                self.end().await;
                Outcome::TimedOut(terms.timeout)
            }
            Ok(None) => self.autopsy(strings).await,
        }
    }

    /// Asks the child to stop. What it still says counts; an error: it did not say so in time.
    async fn ask_to_stop(&mut self, strings: &Strings) -> Result<Option<Word>, ()> {
        let (patience, asked) = match strings.order.get() {
            Some(_) => (strings.grace, self.say(CANCEL).await),
            None => (STOP, self.stream.get_mut().shutdown().await),
        };
        if asked.is_err() {
            return Ok(None);
        }
        tokio::select! {
            word = timeout(patience, self.last_word(strings)) => word.map_err(drop),
            () = strings.abort.cancelled() => Err(()),
        }
    }

    /// The child has ended without an answer: why?
    async fn autopsy(mut self, strings: &Strings) -> Outcome {
        match timeout(STOP, self.child.wait()).await {
            Ok(Ok(status)) if strings.cancel.is_cancelled() || was_asked(status) => Outcome::HandedBack,
            Ok(Ok(status)) => Outcome::Crashed(format!("the process that ran it ended with {status}")),
            // It closed its end and lives on, or cannot be waited for.
            Ok(Err(_)) | Err(_) => {
                self.end().await;
                Outcome::Crashed("the process that ran it stopped answering".to_owned())
            }
        }
    }

    async fn end(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.start_kill();
        drop(timeout(STOP, self.child.wait()).await);
    }
}

fn was_asked(status: ExitStatus) -> bool {
    status.signal().is_some_and(|signal| ASKED_TO_END.contains(&signal))
}

fn outcome(word: Word, terms: &Terms) -> Outcome {
    match word {
        Word::Success { output, omitted } => {
            Outcome::Success { output: Bytes::from(Box::<str>::from(output).into_boxed_bytes()), omitted }
        }
        Word::Failed { verdict, code, message } => Outcome::Failed(match verdict {
            Told::Retry => JobError::retry(code, message),
            Told::RetryIn(pause) => JobError::retry_in(pause, code, message),
            Told::Snooze(pause) => JobError::snooze(pause),
            Told::Fatal => JobError::fatal(code, message),
        }),
        Word::TimedOut => Outcome::TimedOut(terms.timeout),
        Word::Panicked(text) => Outcome::Panicked(text),
        Word::HandedBack => Outcome::HandedBack,
        Word::Ready | Word::Progress { .. } => {
            Outcome::Crashed("the process that ran it started over".to_owned())
        }
    }
}

/// The child's side: runs the one job that the parent sends, answers and ends.
pub(super) async fn serve_parent(config: Config, registry: Registry) -> Result<Report, WorkerError> {
    let registry = std::sync::Arc::new(registry.checked().map_err(WorkerError::Registry)?);
    let failed = |source| WorkerError::System { what: "talk to the parent process", source };
    end_with_parent().map_err(failed)?;
    let mut stream = BufReader::new(parent_stream().map_err(failed)?);
    write(&mut stream, &Word::Ready).await.map_err(failed)?;
    let mut line = String::new();
    if stream.read_line(&mut line).await.map_err(failed)? == 0 {
        return Ok(Report::default()); // the parent has ended
    }
    let order: Order = serde_json::from_str(&line).map_err(|error| failed(io::Error::other(error)))?;
    let client = Client::with_role(&config, Role::Worker(registry.queues()));
    let cpu = CpuPool::new(config.worker.cpu_threads).map_err(failed)?;
    let executor = Executor::new(registry, client, cpu, config.limits.output);
    let word = obey(&executor, order, &mut stream).await.map_err(failed)?;
    write(&mut stream, &word).await.map_err(failed)?;
    Ok(Report::default())
}

/// Ends this process some time after its parent, whatever the handler does: one that keeps its thread busy does not
/// see that the input has ended, and would run on beside the job's next delivery. Where the parent died before this
/// is called, the input has ended before there was a job.
fn end_with_parent() -> io::Result<()> {
    let parent = parent_id();
    let watch = move || {
        while parent_id() == parent {
            thread::sleep(ORPHAN_LOOK);
        }
        // A handler that listens was asked to stop when the input ended.
        thread::sleep(STOP);
        std::process::exit(ORPHANED);
    };
    thread::Builder::new().name("hopline-orphan".to_owned()).spawn(watch).map(drop)
}

fn parent_stream() -> io::Result<UnixStream> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

async fn write(stream: &mut BufReader<UnixStream>, word: &Word) -> io::Result<()> {
    let line = serde_json::to_string(word).map_err(io::Error::other)?.replace(['\n', '\r'], " ");
    stream.get_mut().write_all(line.as_bytes()).await?;
    stream.get_mut().write_all(b"\n").await
}

async fn obey(executor: &Executor, order: Order, stream: &mut BufReader<UnixStream>) -> io::Result<Word> {
    let Order { id, kind, queue, run, attempt, tags, terms, trace, args } = order;
    let entry = executor.registry().get(&kind).cloned();
    let entry = entry.ok_or_else(|| io::Error::other(format!("kind {kind} is not registered here")))?;
    let mut envelope = Envelope::new(kind, queue, Bytes::from(Box::<str>::from(args).into_boxed_bytes()));
    envelope.id = id.parse().map_err(io::Error::other)?;
    (envelope.run, envelope.attempt, envelope.tags) = (run, attempt, tags);
    envelope.timeout = Some(terms.timeout);
    envelope.max_attempts = Some(terms.retry.max_attempts);
    if let Some(context) = &trace {
        context.put_on(&mut envelope.extra);
    }
    let marks = traced::marks(&envelope, &Span::none(trace));

    let strings = Strings::default();
    let mut news = strings.news.listen();
    let running = executor.execute(envelope, &entry, strings.clone(), Slot::default()).instrument(marks);
    tokio::pin!(running);
    let (mut said, mut tell_at) = (Vec::new(), Instant::now());
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            read = stream.read_until(b'\n', &mut said) => {
                // Either way the handler is to stop: its job was cancelled, or the parent says no more because it
                // stops, or has died.
                strings.cancel.cancel();
                if !matches!(read, Ok(1..)) {
                    break timeout(STOP, &mut running).await.unwrap_or(Outcome::HandedBack);
                }
            }
            said = next(&mut news, tell_at) => {
                write(stream, &progress(said)).await?;
                tell_at = Instant::now() + TELL;
            }
        }
    };
    if let Some(said) = news.rest() {
        write(stream, &progress(said)).await?;
    }
    Ok(word(outcome))
}

async fn next(news: &mut Listener, not_before: Instant) -> Said {
    sleep_until(not_before).await;
    news.next().await
}

fn progress(said: Said) -> Word {
    Word::Progress { percent: said.percent, message: said.message }
}

fn word(outcome: Outcome) -> Word {
    match outcome {
        Outcome::Success { output, omitted } => {
            let text = String::from_utf8_lossy(&output).into_owned();
            // The executor's outputs are what serde_json wrote.
            let output = RawValue::from_string(text).unwrap_or_default();
            Word::Success { output, omitted }
        }
        Outcome::Failed(error) => {
            let verdict = match error.verdict() {
                Verdict::Retry => Told::Retry,
                Verdict::RetryIn(pause) => Told::RetryIn(pause),
                Verdict::Snooze(pause) => Told::Snooze(pause),
                Verdict::Fatal => Told::Fatal,
            };
            Word::Failed { verdict, code: error.code().to_owned(), message: error.message().to_owned() }
        }
        Outcome::TimedOut(_) => Word::TimedOut,
        Outcome::Panicked(text) | Outcome::Crashed(text) => Word::Panicked(text),
        Outcome::Expired | Outcome::Cancelled { .. } | Outcome::HandedBack => Word::HandedBack,
    }
}
