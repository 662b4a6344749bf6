//! The worker that other tests start as a process and kill: it writes into a ledger, a file outside of Hopline, when it
//! starts a job and how it ends. The program is the tests' own, started again for this one test function.

use std::{
    env,
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hopline::{Config, Context, Job, JobError, JobResult, Options, RetryPolicy, Worker};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::process::KIND;

/// What a job is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Do {
    /// How long it takes.
    #[serde(default)]
    ms: u64,
    /// How its first start ends, its second, and so on; the last word holds for all later ones. Empty: well.
    #[serde(default)]
    ends: Vec<Way>,
    /// Whether it goes on although it is asked to stop.
    #[serde(default)]
    stubborn: bool,
    /// Whether it tells how far it is.
    #[serde(default)]
    tells: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Well,
    Fail,
    Fatal,
    Snooze,
    Panic,
    Abort,
    /// Ends the process as if all were well.
    Exit,
    /// Waits until the timeout.
    Hang,
    /// Keeps its thread busy, deaf to everything.
    Spin,
    /// Keeps a thread of the CPU pool busy, deaf to everything.
    Grind,
}

impl Job for Do {
    const KIND: &'static str = KIND;
    type Output = Value;
}

#[derive(Clone)]
struct Book(Arc<PathBuf>);

impl Book {
    /// One write to a file that is only appended to: lines of several processes do not mix.
    fn write(&self, cx: &Context<Book>, word: &str) {
        let place = if env::var_os("HOPLINE_ISOLATE").is_some() { "child" } else { "worker" };
        let line = format!("{} {} {word} {} {place}\n", cx.job_id(), cx.attempt(), std::process::id());
        let file = OpenOptions::new().create(true).append(true).open(&*self.0);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the ledger can be written");
    }

    /// How often this job has been started, this time included. A file for each job, a byte for each start: the ledger
    /// itself would be read as a whole by every job.
    fn starts(&self, cx: &Context<Book>) -> usize {
        let dir = self.0.with_extension("starts");
        std::fs::create_dir_all(&dir).expect("a folder beside the ledger");
        let file = OpenOptions::new().create(true).append(true).open(dir.join(cx.job_id().to_string()));
        let counted = file.and_then(|mut file| {
            file.write_all(b".")?;
            file.metadata()
        });
        usize::try_from(counted.expect("the starts can be counted").len()).expect("few starts")
    }
}

async fn run(job: Do, cx: Context<Book>) -> JobResult<Value> {
    let book = cx.state().clone();
    book.write(&cx, "start");
    let way = match job.ends.as_slice() {
        [] => Way::Well,
        [always] => *always,
        ways => ways[(book.starts(&cx) - 1).min(ways.len() - 1)],
    };
    if job.tells {
        cx.progress(50, "half");
    }
    // The job itself: it takes as long as its args say.
    let pause = tokio::time::sleep(Duration::from_millis(job.ms));
    tokio::select! {
        () = pause => {}
        () = cx.cancelled(), if !job.stubborn => {
            book.write(&cx, "stopped");
            return Err(JobError::retry("stopped", "the worker was told to stop"));
        }
    }
    let outcome = end(way, &cx).await;
    book.write(&cx, if outcome.is_ok() { "end" } else { "fail" });
    outcome
}

async fn end(way: Way, cx: &Context<Book>) -> JobResult<Value> {
    match way {
        Way::Well => Ok(json!({ "job": cx.job_id(), "attempt": cx.attempt(), "pid": std::process::id() })),
        Way::Fail => Err(JobError::retry("failed", "as it was told")),
        Way::Fatal => Err(JobError::fatal("hopeless", "as it was told")),
        Way::Snooze => Err(JobError::snooze(Duration::from_millis(100))),
        Way::Panic => panic!("as it was told"),
        Way::Abort => std::process::abort(),
        Way::Exit => std::process::exit(0),
        Way::Hang => std::future::pending().await,
        Way::Spin => spin(),
        Way::Grind => cx.cpu(|_| spin()).await,
    }
}

fn spin<T>() -> T {
    loop {
        // Keeps its thread for ever, without keeping the core from others.
        std::thread::sleep(Duration::from_millis(50));
    }
}

// No test: the entry point of the worker processes, which are this program started again for this function alone.
#[test]
#[ignore = "the worker that other tests start"]
fn ledger_worker() {
    let (Some(ledger), Ok(queue)) = (env::var_os("HOPLINE_TEST_LEDGER"), env::var("HOPLINE_TEST_QUEUE"))
    else {
        return;
    };
    let book = Book(Arc::new(Path::new(&ledger).to_owned()));
    let quick = RetryPolicy { initial: Duration::from_millis(100), ..RetryPolicy::default() };
    let mut options = Options::new().queue(queue).retry(quick);
    if let Ok(seconds) = env::var("HOPLINE_TEST_TIMEOUT") {
        options = options.timeout(Duration::from_secs(seconds.parse().expect("a number of seconds")));
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let worker =
        Worker::new(Config::load().expect("a configuration")).state(book).register_with(run, options);
    runtime.block_on(worker.run()).expect("the worker runs");
}
