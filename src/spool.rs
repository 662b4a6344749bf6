//! The spool: accepted jobs on disk, where they wait while the broker is away (`docs/http.md`, "The spool").
//!
//! An HTTP process that has one (`spool.path`) takes submits while it cannot publish, and says 202 when they are on
//! disk. They are forwarded in the order in which they came when the broker is back; what is submitted meanwhile queues
//! up behind them. The folder is as precious as the broker's own disk until it is empty, and belongs to one process.
//!
//! One thread owns the file and writes everything that waits in one transaction: many submits share one fsync. A job
//! leaves the file after the broker's confirm, so a crash in between forwards it twice. Which ones may have been published
//! is in the file before they are; the second copy is marked `hopline-unsure`, by which workers recognise it. What the
//! broker has and the disk does not let go of is remembered, and nothing is published before it is out of the file.
//!
//! What keeps its order is a queue. While the broker is there, only what is for a queue that has jobs here queues up
//! behind them; the others go straight.
//!
//! | module | owns |
//! |---|---|
//! | `keeper` | the thread: what waits for the disk, and who is told |
//! | [`file`] | the table, one transaction at a time |
//! | `body` | a row of it |
//! | `ballast` | room on the disk for emptying it |
//! | `index` | what is in it, and what is behind what |
//! | [`drain`](mod@drain) | forwarding what waits |
//!
//! Not here: which submits go there (`http::keyed`), and what their clients are told.

mod ballast;
mod body;
mod drain;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod index;
mod keeper;

use std::{
    fs::TryLockError,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tracing::{error, warn};

pub(crate) use self::drain::keep_empty;
pub use self::drain::{Drained, Drainer};
use self::{
    body::Row,
    file::{Table, Taken},
    index::{Index, Lane},
    keeper::{Command, Keeper, Pick, Put, Turn, WAITING},
};
use crate::{
    client::Submission,
    config, disk,
    job::{JobId, Kind, QueueName},
};

/// The file's name in the spool's folder.
pub const FILE: &str = "spool.db";
/// Most KiB of jobs that wait for the thread: their requests may be answered before.
const WAITING_KIB: u32 = 64 << 10;
/// Longest time that a caller waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the spool did not take a job, or cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// It holds as many jobs or bytes as it may. Not stored.
    #[error("the spool is full (spool.max_jobs, spool.max_bytes)")]
    Full,
    /// Its disk cannot be written, or not in time. Not stored, as far as can be told.
    #[error("the spool cannot be used: {0}")]
    Unavailable(String),
    /// It was being written when the time was up. It may be stored, and forwarded.
    #[error("the disk did not answer in time; the job may run")]
    Timeout,
    /// Another job waits under this id. Not stored.
    #[error("another job with this id waits in the spool")]
    Other,
    /// Another process has it.
    #[error("the spool in {0} belongs to another process, which forwards it by itself")]
    Locked(PathBuf),
}

/// A job that waits in the spool.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its place: jobs are forwarded in this order.
    pub(crate) place: i64,
    /// The job.
    pub(crate) job: Submission,
}

/// How much waits, and how much may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, schemars::JsonSchema)]
pub struct Fill {
    /// Jobs that wait.
    pub jobs: u64,
    /// Those of them that this version cannot read, or of which the broker has said that it takes no such message: they
    /// stay, and the others pass them.
    pub unreadable: u64,
    /// Bytes of their args and what else they carry.
    pub bytes: u64,
    /// Most jobs.
    pub max_jobs: u64,
    /// Most bytes.
    pub max_bytes: u64,
}

impl Fill {
    /// Whether another job of this size may come.
    #[must_use]
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.jobs < self.max_jobs && self.bytes.saturating_add(bytes) <= self.max_bytes
    }
}

/// What a spool has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// Jobs that were stored.
    pub(crate) taken: u64,
    /// Jobs that were not: there was no room, or the disk failed.
    pub(crate) refused: u64,
    /// Jobs that the broker has.
    pub(crate) forwarded: u64,
}

#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<Index>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The spool of a process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    commands: mpsc::Sender<Command>,
    known: Shared,
    /// Told when the spool is not empty any more.
    filled: Arc<Notify>,
    /// For jobs that wait for the thread, in KiB.
    room: Arc<Semaphore>,
    folder: PathBuf,
}

impl Spool {
    /// Opens the spool in `spool.path` and locks the folder; `None` where none is configured. What it holds from
    /// before is still there. A file that cannot be read is an error, not set aside: it may hold accepted jobs.
    ///
    /// # Errors
    /// [`SpoolError::Locked`] or [`SpoolError::Unavailable`], with what is wrong.
    pub fn open(config: &config::Spool) -> Result<Option<Self>, SpoolError> {
        let Some(folder) = config.path.clone() else { return Ok(None) };
        let lock = lock(&folder)?;
        let mut index = Index::new(limits(config));
        let table = Table::open(&folder.join(FILE), |found| index.found(found))?;
        let known = Shared(Arc::new(Mutex::new(index)));
        let (commands, waiting) = mpsc::channel(WAITING);
        let room = Arc::new(Semaphore::new(WAITING_KIB as usize));
        let spool = Self { commands, known: known.clone(), filled: Arc::new(Notify::new()), room, folder };
        let filled = Arc::clone(&spool.filled);
        let keeper = Keeper { table, known, filled, failed: None, _lock: lock };
        let spawned = thread::Builder::new().name("hopline spool".to_owned());
        let spawned = spawned.spawn(move || keeper.run(waiting));
        spawned.map_err(|error| unavailable(format!("cannot start a thread: {error}")))?;
        if spool.is_holding() {
            spool.filled.notify_one();
        }
        Ok(Some(spool))
    }

    /// Stores a job, to be forwarded. When this returns `Ok` it is on disk.
    ///
    /// # Errors
    /// [`SpoolError`]; after [`SpoolError::Timeout`] it may be stored.
    pub async fn put(&self, job: &Submission) -> Result<(), SpoolError> {
        let row = Row::of(job);
        if !self.fill().has_room_for(row.size()) {
            self.known.lock().tally.refused += 1;
            return Err(SpoolError::Full);
        }
        let deadline = Instant::now() + PATIENCE;
        let kib = u32::try_from(row.size().div_ceil(1024)).unwrap_or(u32::MAX).min(WAITING_KIB);
        let room = timeout_at(deadline, Arc::clone(&self.room).acquire_many_owned(kib)).await;
        let room = room.map_err(|_| slow())?.map_err(|_| closed())?;
        let (turn, (told, answered)) = (Turn::default(), oneshot::channel());
        let put = Put { row, turn: turn.clone(), told, _room: room };
        let sent = timeout_at(deadline, self.commands.send(Command::Put(put))).await;
        sent.map_err(|_| slow())?.map_err(|_| closed())?;
        match timeout_at(deadline, answered).await {
            Ok(answer) => answer.map_err(|_| closed())?,
            Err(_) if turn.give_up() => Err(slow()),
            Err(_) => Err(SpoolError::Timeout),
        }
    }

    /// What it has done.
    pub(crate) fn tally(&self) -> Tally {
        self.known.lock().tally
    }

    /// When the job was submitted that is forwarded next; none if there is none, or it does not say.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`].
    pub(crate) async fn oldest(&self) -> Result<Option<Timestamp>, SpoolError> {
        self.ask(Command::Oldest).await
    }

    /// Whether jobs wait here that can be forwarded, or were and are still in the file.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        let fill = self.fill();
        fill.jobs > fill.unreadable
    }

    /// Whether a job for `queue` has to queue up behind others.
    pub(crate) fn waits_for(&self, queue: &QueueName, queue_of: impl Fn(&Kind) -> QueueName) -> bool {
        self.known.lock().waits_for(queue, queue_of)
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        self.known.lock().lanes()
    }

    /// How much waits.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.known.lock().fill
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// The job of this id, if it waits here.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`].
    pub async fn find(&self, id: JobId) -> Result<Option<Submission>, SpoolError> {
        if !self.known.lock().has(id) {
            return Ok(None);
        }
        let found = self.ask(|answer| Command::Find(id, answer)).await?;
        Ok(found.map(|entry| entry.job))
    }

    /// The jobs after `place` in lanes that `pick` wants, at most `most` of them, in order, to be published: unsure if
    /// they were taken before. None are while forwarded ones cannot be removed.
    async fn take(&self, place: i64, most: usize, pick: Pick) -> Result<Taken, SpoolError> {
        self.ask(|answer| Command::Take(place, most, pick, answer)).await
    }

    /// These have been forwarded. If this fails it is done later; they are not taken again.
    async fn remove(&self, gone: Vec<Entry>) -> Result<(), SpoolError> {
        {
            // Before the thread is asked: it may have no room for a question.
            let mut known = self.known.lock();
            gone.iter().for_each(|entry| known.forwarded(entry.place, entry.job.envelope.id));
        }
        self.ask(Command::Remove).await
    }

    /// The broker takes no such message: it stays here, and the others pass it. It is tried again by the next process.
    fn set_aside(&self, entry: &Entry, why: &str) {
        error!(
            spool.place = entry.place,
            job.id = %entry.job.envelope.id,
            reason = why,
            "the broker takes no such message: the job stays in the spool, and others pass it"
        );
        self.known.lock().unreadable(entry.place);
    }

    /// Waits until something is there.
    async fn filled(&self) {
        while !self.is_holding() {
            self.filled.notified().await;
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, SpoolError>>) -> Command,
    ) -> Result<T, SpoolError> {
        let deadline = Instant::now() + PATIENCE;
        let (answer, answered) = oneshot::channel();
        let sent = timeout_at(deadline, self.commands.send(command(answer))).await;
        sent.map_err(|_| slow())?.map_err(|_| closed())?;
        timeout_at(deadline, answered).await.map_err(|_| slow())?.map_err(|_| closed())?
    }

    /// Writes what waits for the disk and closes the file. Whoever asks afterwards is refused. Says so in the log if
    /// jobs are left, because they run only when a process with this folder forwards them.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let deadline = Instant::now() + PATIENCE;
        if timeout_at(deadline, self.commands.send(Command::Close(done))).await.is_ok_and(|sent| sent.is_ok())
            && timeout_at(deadline, closed).await.is_err()
        {
            warn!("the spool did not close in time");
        }
        let fill = self.fill();
        if fill.jobs > 0 {
            warn!(
                spool.folder = %self.folder.display(),
                spool.jobs = fill.jobs,
                spool.bytes = fill.bytes,
                "accepted jobs are left in the spool: start a process with this folder again, or run `hopline spool drain`"
            );
        }
    }
}

fn limits(config: &config::Spool) -> Fill {
    Fill { max_jobs: number(config.max_jobs), max_bytes: number(config.max_bytes), ..Fill::default() }
}

fn number(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn slow() -> SpoolError {
    unavailable(format!("the disk did not answer within {PATIENCE:?}"))
}

fn closed() -> SpoolError {
    unavailable("closed".to_owned())
}

fn unavailable(why: String) -> SpoolError {
    SpoolError::Unavailable(why)
}

/// Locks the folder for this process, until the file is dropped.
fn lock(folder: &std::path::Path) -> Result<std::fs::File, SpoolError> {
    let failed = |error: std::io::Error| unavailable(format!("{}: {error}", folder.display()));
    disk::make_folder(folder).map_err(failed)?;
    let file =
        std::fs::File::options().create(true).append(true).open(folder.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::Locked(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
#[path = "spool/spool_tests.rs"]
mod tests;
