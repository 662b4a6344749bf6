//! Jobs by apalis and apalis-amqp: `submit COUNT FILLER` pushes so many, `worker` runs them until SIGTERM.
//!
//! Broker, queue and folder are what `BENCH_PEER_URL`, `BENCH_PEER_NAME` and `BENCH_PEER_FOLDER` name, as for the
//! other peers.

use std::{
    env,
    error::Error,
    fs::File,
    future::poll_fn,
    io,
    os::unix::fs::FileExt,
    path::Path,
    pin::Pin,
    process,
    sync::{Arc, Mutex, PoisonError},
};

use apalis::prelude::*;
use apalis_amqp::{AmqpBackend, Config};
use deadpool_lapin::{Pool, Runtime};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

/// Jobs that a worker has taken from the broker, and jobs that it runs at the same time.
const PREFETCH: u16 = 500;
const TOGETHER: usize = 100;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Noop {
    filler: String,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["submit", count, filler] => submit(count.parse()?, filler).await,
        ["worker"] => worker().await,
        _ => Err("usage: submit COUNT FILLER | worker".into()),
    }
}

/// Pushes as a program does: one after the other.
async fn submit(count: usize, filler: &str) -> Result<(), Failure> {
    let pool = pool()?;
    let mut backend = backend(pool.clone())?;
    for _ in 0..count {
        backend.push(Noop { filler: filler.to_owned() }).await?;
    }
    // Nothing is confirmed, so that the last ones may not be sent yet: whatever is sent before the close arrives. But
    // lapin drops what is left to send if channels of the backend are about to be closed right then: a channel that
    // comes and goes after them gives them the time.
    drop(backend);
    let connection = pool.get().await?;
    connection.create_channel().await?.close(200, "".into()).await?;
    connection.close(200, "".into()).await?;
    Ok(())
}

async fn worker() -> Result<(), Failure> {
    let ran = Arc::new(Ran::new(env::var("BENCH_PEER_FOLDER")?.as_ref())?);
    let mut backend = backend(pool()?)?;
    // A worker panics at its start unless its backend has a channel, and what acknowledges is a copy of the backend as
    // it is then. Else only a push would open one.
    poll_fn(|context| TaskSink::poll_ready(Pin::new(&mut backend), context)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    WorkerBuilder::new(env::var("BENCH_PEER_NAME")?)
        .backend(backend)
        .concurrency(TOGETHER)
        .build(move |_: Noop| {
            let ran = Arc::clone(&ran);
            async move { ran.one() }
        })
        .run_until(async move {
            terminate.recv().await;
            Ok::<(), WorkerError>(())
        })
        .await?;
    Ok(())
}

fn pool() -> Result<Pool, Failure> {
    let config = deadpool_lapin::Config { url: Some(env::var("BENCH_PEER_URL")?), pool: None };
    Ok(config.create_pool(Default::default, Runtime::Tokio1)?)
}

fn backend(pool: Pool) -> Result<AmqpBackend<Noop>, Failure> {
    let config = Config::default().queue(env::var("BENCH_PEER_NAME")?).quorum(true).prefetch_count(PREFETCH);
    Ok(AmqpBackend::new(pool).with_config(config))
}

/// Counts jobs that were run, in a file as `ran.py` has them.
struct Ran {
    file: File,
    /// How many, when the first, when the last; nanoseconds of the machine's monotonic clock.
    counted: Mutex<[u64; 3]>,
}

impl Ran {
    fn new(folder: &Path) -> io::Result<Self> {
        let file = File::create(folder.join(format!("ran-{}", process::id())))?;
        Ok(Self { file, counted: Mutex::default() })
    }

    /// A job has been run.
    fn one(&self) -> Result<(), Failure> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock_gettime(ClockId::Monotonic);
        let now = u64::try_from(now.tv_sec)? * 1_000_000_000 + u64::try_from(now.tv_nsec)?;
        let [count, first, _] = *counted;
        *counted = [count + 1, if count == 0 { now } else { first }, now];
        self.file.write_all_at(counted.map(u64::to_ne_bytes).as_flattened(), 0)?;
        Ok(())
    }
}
