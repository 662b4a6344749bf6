//! A job whose args say what is to happen, and the log of what happened.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hopline::{Context, Job, JobError, JobResult, Options, RetryPolicy, job::JobId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::PATIENCE;

/// Any args. With a `script`, each start of the job does the next of its steps, and the last one over and over;
/// without, it succeeds. The output is the args.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Probe(pub(crate) Box<RawValue>);

impl Job for Probe {
    const KIND: &'static str = "test.probe";
    type Output = Box<RawValue>;
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// Succeeds.
    Ok,
    /// Fails, to be tried again.
    Fail,
    /// Fails for good.
    Fatal,
    /// Asks to be run again after so many ms, spending no attempt.
    Snooze(u64),
    /// Fails, and names the pause, in ms.
    RetryIn(u64),
    /// Panics.
    Panic,
    /// Never returns, and does not listen either.
    Hang,
    /// Waits until it is told to stop, then fails.
    Stop,
    /// Waits until the test lets one go (`Log::release`), then succeeds.
    Held,
    /// An output of so many bytes and a few.
    Long(usize),
}

#[derive(Deserialize, Default)]
struct Script {
    #[serde(default)]
    script: Vec<Step>,
}

/// A start of the job.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) id: JobId,
    pub(crate) kind: String,
    pub(crate) run: u32,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) at: Timestamp,
    pub(crate) args: String,
    pub(crate) tags: Vec<String>,
    /// How many run at this moment, this one included.
    pub(crate) running: usize,
}

/// Counts a start as running until it is dropped.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin(count: &Arc<AtomicUsize>) -> (Self, usize) {
        let running = count.fetch_add(1, Ordering::SeqCst) + 1;
        (Self(Arc::clone(count)), running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a probe's handler writes down; its state.
#[derive(Clone)]
pub(crate) struct Notes {
    starts: mpsc::UnboundedSender<Start>,
    seen: Arc<Mutex<HashMap<(JobId, u32), usize>>>,
    gate: Arc<Semaphore>,
    running: Arc<AtomicUsize>,
}

/// The test's end of the notes.
pub(crate) struct Log {
    starts: mpsc::UnboundedReceiver<Start>,
    gate: Arc<Semaphore>,
}

/// New notes.
pub(crate) fn notes() -> (Notes, Log) {
    let (sender, starts) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    (
        Notes { starts: sender, seen: Arc::default(), gate: Arc::clone(&gate), running: Arc::default() },
        Log { starts, gate },
    )
}

impl Log {
    /// The next start.
    pub(crate) async fn next(&mut self) -> Start {
        let start = timeout(PATIENCE, self.starts.recv()).await;
        start
            .unwrap_or_else(|_| panic!("no job started in {PATIENCE:?}"))
            .expect("the notes live in the worker")
    }

    /// The next so many starts.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Start> {
        let mut starts = Vec::new();
        for index in 0..count {
            let next = timeout(PATIENCE, self.starts.recv()).await;
            starts.push(
                next.unwrap_or_else(|_| panic!("only {index} of {count} jobs started")).expect("notes"),
            );
        }
        starts
    }

    /// Starts that are not read yet.
    pub(crate) fn rest(&mut self) -> Vec<Start> {
        std::iter::from_fn(|| self.starts.try_recv().ok()).collect()
    }

    /// Lets so many held jobs go.
    pub(crate) fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }
}

/// Options for a probe: retries come quickly.
pub(crate) fn quick() -> Options {
    Options::new().retry(RetryPolicy {
        max_attempts: 5,
        initial: Duration::from_millis(200),
        factor: 2.0,
        max: Duration::from_secs(1),
        jitter: 0.2,
    })
}

/// The handler.
pub(crate) async fn probe(job: Probe, cx: Context<Notes>) -> JobResult<Box<RawValue>> {
    let notes = cx.state().clone();
    let args = job.0.get().to_owned();
    let turn = {
        let mut seen = notes.seen.lock().expect("no panic meanwhile");
        let turn = seen.entry((cx.job_id(), cx.run())).or_default();
        *turn += 1;
        *turn
    };
    let (_running, running) = Running::begin(&notes.running);
    // The test may have seen enough.
    let _ = notes.starts.send(Start {
        id: cx.job_id(),
        kind: cx.kind().to_string(),
        run: cx.run(),
        attempt: cx.attempt(),
        max_attempts: cx.max_attempts(),
        at: Timestamp::now(),
        args: args.clone(),
        tags: cx.tags().to_vec(),
        running,
    });
    let Script { script } = serde_json::from_str(&args).unwrap_or_default();
    match script.get(turn - 1).or(script.last()) {
        None | Some(Step::Ok) => Ok(job.0),
        Some(Step::Fail) => Err(JobError::retry("probe_failed", format!("start {turn} fails"))),
        Some(Step::Fatal) => Err(JobError::fatal("probe_fatal", "never again")),
        Some(Step::Snooze(ms)) => Err(JobError::snooze(Duration::from_millis(*ms))),
        Some(Step::RetryIn(ms)) => {
            Err(JobError::retry_in(Duration::from_millis(*ms), "probe_later", "later"))
        }
        Some(Step::Panic) => panic!("the probe panics"),
        Some(Step::Hang) => std::future::pending().await,
        Some(Step::Stop) => {
            cx.cancelled().await;
            Err(JobError::retry("stopped", "told to stop"))
        }
        Some(Step::Held) => {
            tokio::select! {
                permit = notes.gate.acquire() => permit.expect("never closed").forget(),
                () = cx.cancelled() => Err(JobError::retry("stopped", "told to stop"))?,
            }
            Ok(job.0)
        }
        Some(Step::Long(bytes)) => Ok(RawValue::from_string(format!("\"{}\"", "x".repeat(*bytes)))?),
    }
}
