//! The spool: accepted jobs on disk, where they wait while the broker is away (`docs/http.md`, "The spool").
//!
//! An HTTP process that has one (`spool.path`) takes submits while it cannot publish, and says 202 when they are on
//! disk. They are forwarded in the order in which they came when the broker is back; what is submitted meanwhile queues
//! up behind them. The folder is as precious as the broker's own disk until it is empty, and belongs to one process.
//!
//! One thread owns the file and writes everything that waits in one transaction: many submits share one fsync. A job
//! leaves the file after the broker's confirm, so a crash in between forwards it twice. Which ones may have been published
//! is in the file before they are; the second copy is marked `hopline-unsure`, by which workers recognise it.
//!
//! | module | owns |
//! |---|---|
//! | [`file`] | the table, one transaction at a time |
//! | [`drain`](mod@drain) | forwarding what waits |
//!
//! Not here: which submits go there (`http::keyed`), and what their clients are told.

mod drain;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

use std::{
    collections::HashSet,
    fs::TryLockError,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tracing::{error, warn};

pub(crate) use self::drain::keep_empty;
pub use self::drain::{Drained, drain};
use self::file::Table;
use crate::{client::Submission, config, job::JobId};

/// The file's name in the spool's folder.
pub const FILE: &str = "spool.db";
/// Most commands that wait for the thread.
const WAITING: usize = 10_000;
/// Longest time that a caller waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the spool did not take a job, or cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// It holds as many jobs or bytes as it may. Not stored.
    #[error("the spool is full (spool.max_jobs, spool.max_bytes)")]
    Full,
    /// Its disk cannot be written, or not in time. It may be stored.
    #[error("the spool cannot be used: {0}")]
    Unavailable(String),
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Fill {
    /// Jobs that wait.
    pub jobs: u64,
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
    /// Jobs that have left, because the broker has them.
    pub(crate) forwarded: u64,
}

#[derive(Debug)]
enum Command {
    /// The row of a job, and its size.
    Put(file::Row, oneshot::Sender<Result<(), SpoolError>>),
    /// These have left.
    Remove(Vec<Entry>, oneshot::Sender<Result<(), SpoolError>>),
    /// The jobs after a place, at most so many, to be published.
    Take(i64, usize, oneshot::Sender<Result<Vec<Entry>, SpoolError>>),
    Find(JobId, oneshot::Sender<Result<Option<Entry>, SpoolError>>),
    /// When the job was submitted that is forwarded next.
    Oldest(oneshot::Sender<Result<Option<Timestamp>, SpoolError>>),
    Close(oneshot::Sender<()>),
}

/// What is known of the file without asking its thread.
#[derive(Debug, Default)]
struct Known {
    ids: HashSet<JobId>,
    fill: Fill,
    tally: Tally,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Known>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
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
        let (table, ids) = Table::open(&folder.join(FILE), limits(config))?;
        let known = Shared(Arc::new(Mutex::new(Known { ids, fill: table.fill(), ..Known::default() })));
        let (commands, waiting) = mpsc::channel(WAITING);
        let spool = Self { commands, known: known.clone(), filled: Arc::new(Notify::new()), folder };
        let keeper = Keeper { table, known, filled: Arc::clone(&spool.filled), _lock: lock };
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
    /// [`SpoolError::Full`]: not stored; [`SpoolError::Unavailable`]: stored or not.
    pub async fn put(&self, job: &Submission) -> Result<(), SpoolError> {
        let row = file::Row::of(job);
        if !self.fill().has_room_for(row.size()) {
            self.known.lock().tally.refused += 1;
            return Err(SpoolError::Full);
        }
        self.ask(|answer| Command::Put(row, answer)).await
    }

    /// Whether jobs wait here.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.fill().jobs > 0
    }

    /// How much waits.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.known.lock().fill
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
        if !self.is_holding() {
            return Ok(None);
        }
        self.ask(Command::Oldest).await
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
        if !self.known.lock().ids.contains(&id) {
            return Ok(None);
        }
        let found = self.ask(|answer| Command::Find(id, answer)).await?;
        Ok(found.map(|entry| entry.job))
    }

    /// The jobs after `place`, at most `most` of them, in order, to be published: unsure if they were taken before.
    pub(crate) async fn take(&self, place: i64, most: usize) -> Result<Vec<Entry>, SpoolError> {
        self.ask(|answer| Command::Take(place, most, answer)).await
    }

    /// These have been forwarded.
    pub(crate) async fn remove(&self, gone: Vec<Entry>) -> Result<(), SpoolError> {
        self.ask(|answer| Command::Remove(gone, answer)).await
    }

    /// Waits until something is there.
    pub(crate) async fn filled(&self) {
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
        let slow = |_| unavailable(format!("the disk did not answer within {PATIENCE:?}"));
        let closed = || unavailable("closed".to_owned());
        let sent = timeout_at(deadline, self.commands.send(command(answer))).await;
        sent.map_err(slow)?.map_err(|_| closed())?;
        timeout_at(deadline, answered).await.map_err(slow)?.map_err(|_| closed())?
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

fn unavailable(why: String) -> SpoolError {
    SpoolError::Unavailable(why)
}

/// Locks the folder for this process, until the file is dropped.
fn lock(folder: &std::path::Path) -> Result<std::fs::File, SpoolError> {
    let failed = |error: std::io::Error| unavailable(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let file =
        std::fs::File::options().create(true).append(true).open(folder.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::Locked(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The thread that owns the file.
struct Keeper {
    table: Table,
    known: Shared,
    filled: Arc<Notify>,
    _lock: std::fs::File,
}

/// Who is told what was written, once it is on disk.
type Told = oneshot::Sender<Result<(), SpoolError>>;

impl Keeper {
    fn run(mut self, mut waiting: mpsc::Receiver<Command>) {
        let mut closing = None;
        while let Some(first) = waiting.blocking_recv() {
            let mut commands = vec![first];
            while commands.len() < WAITING
                && let Ok(command) = waiting.try_recv()
            {
                commands.push(command);
            }
            if let Some(done) = self.work_off(commands) {
                waiting.close();
                closing = Some(done);
            }
        }
        drop(self);
        if let Some(done) = closing {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }

    /// Writes first, all of it in one transaction; then the rest.
    fn work_off(&mut self, commands: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let (mut puts, mut told, mut gone, mut others, mut closing) = (vec![], vec![], vec![], vec![], None);
        for command in commands {
            match command {
                Command::Put(row, answer) => puts.push((row, answer)),
                Command::Remove(entries, answer) => {
                    gone.extend(entries);
                    told.push(answer);
                }
                Command::Close(done) => closing = Some(done),
                other => others.push(other),
            }
        }
        if !(puts.is_empty() && told.is_empty()) {
            self.write(puts, &gone, told);
        }
        for other in others {
            match other {
                Command::Take(place, most, answer) => drop(answer.send(self.table.take(place, most))),
                Command::Find(id, answer) => drop(answer.send(self.table.find(id))),
                Command::Oldest(answer) => drop(answer.send(self.table.oldest())),
                Command::Put(..) | Command::Remove(..) | Command::Close(_) => {}
            }
        }
        closing
    }

    fn write(&mut self, puts: Vec<(file::Row, Told)>, gone: &[Entry], told: Vec<Told>) {
        let (rows, askers): (Vec<_>, Vec<_>) = puts.into_iter().unzip();
        match self.table.write(&rows, gone) {
            Ok(taken) => {
                self.note(&rows, &taken, gone);
                for (asker, taken) in askers.into_iter().zip(taken) {
                    // Whoever asked may have given up, here and below.
                    let _ = asker.send(if taken { Ok(()) } else { Err(SpoolError::Full) });
                }
                told.into_iter().for_each(|answer| drop(answer.send(Ok(()))));
            }
            Err(error) => {
                error!(%error, "the spool cannot be written");
                self.known.lock().tally.refused += number(rows.len());
                for answer in askers.into_iter().chain(told) {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Takes over what was written into what is known without asking.
    fn note(&self, rows: &[file::Row], taken: &[bool], gone: &[Entry]) {
        let mut known = self.known.lock();
        known.ids.extend(rows.iter().zip(taken).filter(|(_, taken)| **taken).map(|(row, _)| row.id));
        for entry in gone {
            known.ids.remove(&entry.job.envelope.id);
        }
        known.fill = self.table.fill();
        let stored = number(taken.iter().filter(|taken| **taken).count());
        known.tally.taken += stored;
        known.tally.refused += number(taken.len()) - stored;
        known.tally.forwarded += number(gone.len());
        if known.fill.jobs > 0 {
            self.filled.notify_one();
        }
    }
}

#[cfg(test)]
#[path = "spool/spool_tests.rs"]
mod tests;
