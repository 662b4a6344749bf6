//! The ledger: what handlers really did, outside of Hopline. One line for each word, on disk before the job goes on:
//! `job attempt word pid worker|child ms n parent`, where `n` is the number that a client gave its submission.
//!
//! The workers that keep it are this program, started again with [`WORKER`].

use std::{
    env,
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::mpsc,
    time::{Duration, SystemTime},
};

use hopline::{Config, Context, Job, JobError, JobResult, Options, RetryPolicy, Worker};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::process::KIND;

/// The first argument that makes this program a worker.
pub(crate) const WORKER: &str = "--ledger-worker";

/// What a job is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Do {
    /// The client's number of it.
    n: u64,
    /// How long it takes.
    ms: u64,
    /// Fails the first time.
    #[serde(default)]
    flaky: bool,
    /// Kills its process, always.
    #[serde(default)]
    poison: bool,
}

impl Job for Do {
    const KIND: &'static str = KIND;
    type Output = Value;
}

/// A line, and who waits until it is on disk.
type Entry = (String, oneshot::Sender<()>);

#[derive(Clone)]
struct Book(mpsc::Sender<Entry>);

impl Book {
    /// Lines that come together are synced together.
    fn open(path: &Path) -> Self {
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the ledger");
        let (sender, entries) = mpsc::channel::<Entry>();
        std::thread::spawn(move || {
            while let Ok(first) = entries.recv() {
                let together: Vec<Entry> = std::iter::once(first).chain(entries.try_iter()).collect();
                let text: String = together.iter().map(|(line, _)| line.as_str()).collect();
                // One write to a file that is only appended to: lines of several processes do not mix.
                file.write_all(text.as_bytes())
                    .and_then(|()| file.sync_data())
                    .expect("the ledger can be written");
                for (_, written) in together {
                    let _ = written.send(());
                }
            }
        });
        Self(sender)
    }

    async fn write(&self, cx: &Context<Self>, n: u64, word: &str) {
        let place = if env::var_os("HOPLINE_ISOLATE").is_some() { "child" } else { "worker" };
        let parent = std::os::unix::process::parent_id();
        let (pid, ms) = (std::process::id(), now_ms());
        let line = format!("{} {} {word} {pid} {place} {ms} {n} {parent}\n", cx.job_id(), cx.attempt());
        let (written, on_disk) = oneshot::channel();
        self.0.send((line, written)).expect("the ledger's thread lives");
        on_disk.await.expect("the ledger's thread lives");
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("milliseconds fit")
}

async fn run(job: Do, cx: Context<Book>) -> JobResult<Value> {
    let book = cx.state().clone();
    book.write(&cx, job.n, "start").await;
    // The job itself.
    tokio::time::sleep(Duration::from_millis(job.ms)).await;
    if job.poison {
        std::process::abort();
    }
    if job.flaky && cx.attempt() == 1 {
        book.write(&cx, job.n, "fail").await;
        return Err(JobError::retry("flaky", "as it was told"));
    }
    book.write(&cx, job.n, "end").await;
    Ok(json!(job.n))
}

/// A worker process, until SIGTERM.
pub(crate) fn work() {
    let ledger = env::var_os("HOPLINE_TEST_LEDGER").expect("the ledger's path");
    let queue = env::var("HOPLINE_TEST_QUEUE").expect("the queue's name");
    let quick = RetryPolicy { initial: Duration::from_millis(500), ..RetryPolicy::default() };
    let options = Options::new().queue(queue).retry(quick);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let book = Book::open(Path::new(&ledger));
    let worker =
        Worker::new(Config::load().expect("a configuration")).state(book).register_with(run, options);
    runtime.block_on(worker.run()).expect("the worker runs");
}

/// A line of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) job: String,
    pub(crate) attempt: u32,
    pub(crate) word: String,
    /// The worker process, also where a child process ran the job.
    pub(crate) worker: u32,
    pub(crate) child: bool,
    pub(crate) ms: u64,
    pub(crate) n: u64,
}

impl Line {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [job, attempt, word, pid, place, ms, n, parent] = words[..] else { return None };
        let child = place == "child";
        Some(Self {
            job: job.to_owned(),
            attempt: attempt.parse().ok()?,
            word: word.to_owned(),
            worker: if child { parent } else { pid }.parse().ok()?,
            child,
            ms: ms.parse().ok()?,
            n: n.parse().ok()?,
        })
    }
}

/// All of it.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    std::fs::read_to_string(path).unwrap_or_default().lines().filter_map(Line::parse).collect()
}

/// Reads what was added since the last time, whole lines only.
pub(crate) struct Tail {
    path: std::path::PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Tail {
    pub(crate) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, rest: Vec::new() }
    }

    pub(crate) fn read(&mut self) -> Vec<Line> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            let _ = std::io::Read::read_to_end(file, &mut self.rest);
        }
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        String::from_utf8_lossy(&lines).lines().filter_map(Line::parse).collect()
    }
}
