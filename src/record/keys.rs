//! Reservations of job ids that clients choose, so that a repeated request finds the first one (`docs/http.md`,
//! "Repeating safely").
//!
//! Before a job with a chosen id, or an id derived from an idempotency key, is published, its id and the digest of its
//! request are written to `keys.db` in the record's folder and are on disk. Nothing else has this between the request
//! and the job's first event, so unlike the record it cannot be rebuilt from the event log, and has a file of its own.
//!
//! There is a bound (`record.max_keys`). Beyond it the oldest reservations of jobs that were accepted are forgotten: the
//! record has those jobs, and is asked.
//!
//! One thread owns the file and writes everything that waits in one transaction: many requests share one fsync. That a
//! job is on its way is known in memory alone. After a restart such a reservation is [`Reserved::Unsure`]: the record
//! is asked, and a job that it does not have is published again.
//!
//! Not here: what the same request is, and what a repeat is answered with (`http::keyed`).

mod table;

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tracing::{error, warn};

use self::table::{Row, Table, Transaction};
use super::RecordError;
use crate::job::JobId;

/// The file's name in the record's folder.
pub const FILE: &str = "keys.db";
/// How long a reservation is kept, while there is room: 24 hours from its first request.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most commands that wait for the thread.
const WAITING: usize = 10_000;
/// Longest time that a caller waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// What tells one request from another: 128 bits over its canonical form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why nothing could be reserved.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeysError {
    /// As many reservations are kept as may be, and of none is it known that its job was accepted.
    #[error("too many jobs with ids and keys are on their way (record.max_keys)")]
    Full,
    /// The file cannot be written, or not in time.
    #[error("keys cannot be written: {0}")]
    Unavailable(String),
}

/// The answer to a reservation.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reserved {
    /// Nobody has asked with this id before, as far as this process remembers.
    New(Claim),
    /// The same request was made before, and what became of it is not known: it may or may not be a job.
    Unsure(Claim),
    /// The same request was made before, and its job was accepted.
    Accepted {
        /// When the request was made first.
        since: Timestamp,
    },
    /// The same request was made before, and is being worked on.
    InFlight,
    /// Another request was made with this id.
    Other,
}

/// An id that one request of this process has, and nobody else meanwhile.
///
/// Dropped before [`Claim::publishing`], and after [`Claim::refused`], it leaves things as they were before it. Dropped
/// otherwise, nobody knows whether there is a job: the next one who asks gets [`Reserved::Unsure`].
#[derive(Debug)]
pub struct Claim {
    /// None once it is handed to the thread.
    hold: Option<Hold>,
    commands: mpsc::Sender<Command>,
    /// Whether nobody has published this job before.
    fresh: bool,
    published: bool,
}

impl Claim {
    /// The job is published now: from here on it may be somewhere.
    pub fn publishing(&mut self) {
        self.published = true;
    }

    /// The job was surely not stored this time.
    pub fn refused(mut self) {
        self.published = false;
    }

    /// The job was accepted. Whoever asks after this returns is told so; that it is on disk is not waited for, because
    /// the record has the job.
    pub async fn confirm(mut self) {
        let Some(hold) = self.hold.take() else { return };
        let sent = self.commands.send(Command::End(hold, Fate::Accepted));
        if timeout_at(Instant::now() + PATIENCE, sent).await.is_err() {
            warn!("too many keys wait to be written");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take().filter(|_| self.fresh && !self.published) {
            // Without room the reservation stays, and costs a look into the record.
            drop(self.commands.try_send(Command::End(hold, Fate::Refused)));
        }
    }
}

/// Keeps others from an id.
#[derive(Debug)]
struct Hold {
    id: JobId,
    in_flight: InFlight,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.in_flight.ids().remove(&self.id);
    }
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Accepted,
    Refused,
}

type Answers = Vec<Result<Reserved, KeysError>>;

#[derive(Debug)]
enum Command {
    Reserve(Vec<(JobId, Digest)>, oneshot::Sender<Answers>),
    End(Hold, Fate),
    Close(oneshot::Sender<()>),
}

/// Which ids are claimed.
#[derive(Debug, Clone, Default)]
struct InFlight(Arc<Mutex<HashSet<JobId>>>);

impl InFlight {
    fn ids(&self) -> MutexGuard<'_, HashSet<JobId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reservations of a process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys {
    commands: mpsc::Sender<Command>,
}

impl Keys {
    /// Opens `keys.db` in `folder`, which nobody else may use, for at most `most` reservations: beyond that the oldest of
    /// jobs that were accepted make room. A file that cannot be read is set aside: what it had is
    /// forgotten, and that is logged.
    ///
    /// # Errors
    /// [`RecordError::Storage`]: the folder or the file cannot be used.
    pub fn open(folder: &Path, most: usize) -> Result<Self, RecordError> {
        let failed = |detail: String| RecordError::Storage { path: folder.to_owned(), detail };
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let table = Table::open(&folder.join(FILE), most).map_err(failed)?;
        let (commands, waiting) = mpsc::channel(WAITING);
        // Weak: else the thread, which hands out claims that can reach it, would keep itself alive.
        let keeper = Keeper { table, in_flight: InFlight::default(), commands: commands.downgrade() };
        let name = "hopline keys".to_owned();
        let spawned = thread::Builder::new().name(name).spawn(move || keeper.run(waiting));
        spawned.map_err(|error| failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { commands })
    }

    /// Reserves `id` for the request of this digest. When this returns [`Reserved::New`] it is on disk.
    ///
    /// # Errors
    /// [`KeysError`]; nothing is claimed then.
    pub async fn reserve(&self, id: JobId, digest: Digest) -> Result<Reserved, KeysError> {
        let first = self.reserve_all(vec![(id, digest)]).await.pop();
        first.unwrap_or_else(|| Err(KeysError::Unavailable("no answer".to_owned())))
    }

    /// Reserves many, in one transaction: an answer for each, in order, as [`Keys::reserve`] gives it. Of two that are
    /// the same the second one is [`Reserved::InFlight`].
    pub async fn reserve_all(&self, asked: Vec<(JobId, Digest)>) -> Vec<Result<Reserved, KeysError>> {
        let count = asked.len();
        self.ask(asked).await.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
    }

    async fn ask(&self, asked: Vec<(JobId, Digest)>) -> Result<Answers, KeysError> {
        let deadline = Instant::now() + PATIENCE;
        let (answer, answered) = oneshot::channel();
        let slow = |_| KeysError::Unavailable(format!("the disk did not answer within {PATIENCE:?}"));
        let closed = || KeysError::Unavailable("closed".to_owned());
        let sent = timeout_at(deadline, self.commands.send(Command::Reserve(asked, answer))).await;
        sent.map_err(slow)?.map_err(|_| closed())?;
        let failed = |_| KeysError::Unavailable("the file cannot be written".to_owned());
        timeout_at(deadline, answered).await.map_err(slow)?.map_err(failed)
    }

    /// Writes what waits and closes the file. Whoever asks afterwards is refused.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let deadline = Instant::now() + PATIENCE;
        if timeout_at(deadline, self.commands.send(Command::Close(done))).await.is_ok_and(|sent| sent.is_ok())
            && timeout_at(deadline, closed).await.is_err()
        {
            warn!("the file of keys did not close in time");
        }
    }
}

/// The thread that owns the file.
struct Keeper {
    table: Table,
    in_flight: InFlight,
    commands: mpsc::WeakSender<Command>,
}

impl Keeper {
    fn run(mut self, mut waiting: mpsc::Receiver<Command>) {
        let mut closing = Vec::new();
        while let Some(first) = waiting.blocking_recv() {
            let mut commands = VecDeque::from([first]);
            while commands.len() < WAITING
                && let Ok(command) = waiting.try_recv()
            {
                commands.push_back(command);
            }
            self.write(commands, &mut closing);
            if !closing.is_empty() {
                waiting.close();
            }
        }
        drop(self.table);
        for done in closing {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }

    /// Works commands off in one transaction, and answers when it is on disk.
    fn write(&mut self, mut commands: VecDeque<Command>, closing: &mut Vec<oneshot::Sender<()>>) {
        let Self { table, in_flight, commands: sender } = self;
        let hands = Hands { in_flight, sender };
        let mut answers = Vec::new();
        let written = table.transact(Timestamp::now(), commands.len(), |transaction| {
            while let Some(command) = commands.pop_front() {
                match command {
                    Command::Reserve(asked, answer) => {
                        let each =
                            asked.into_iter().map(|(id, digest)| hands.reserve(transaction, id, digest));
                        answers.push((answer, each.collect::<Result<Answers, _>>()?));
                    }
                    // The hold ends here: whoever comes next, in this transaction too, finds what is written now.
                    Command::End(hold, Fate::Accepted) => transaction.accept(hold.id)?,
                    Command::End(hold, Fate::Refused) => transaction.remove(hold.id)?,
                    Command::Close(done) => closing.push(done),
                }
            }
            Ok(())
        });
        let written = written.map_err(|error| error.to_string());
        if let Err(why) = &written {
            error!(error = why, "keys cannot be written");
        }
        // The one that failed is gone with its answer, which its caller understands.
        for (answer, results) in answers {
            let results = match &written {
                Ok(()) => results,
                Err(why) => failures(why, results.len()),
            };
            // Whoever asked may have given up: the claims are dropped with the answer.
            let _ = answer.send(results);
        }
        for command in commands {
            match (command, &written) {
                (Command::Reserve(asked, answer), Err(why)) => drop(answer.send(failures(why, asked.len()))),
                (Command::Close(done), _) => closing.push(done),
                _ => {}
            }
        }
    }
}

/// What the thread needs to hand out claims.
struct Hands<'a> {
    in_flight: &'a InFlight,
    sender: &'a mpsc::WeakSender<Command>,
}

impl Hands<'_> {
    fn reserve(
        &self,
        transaction: &mut Transaction<'_>,
        id: JobId,
        digest: Digest,
    ) -> rusqlite::Result<Result<Reserved, KeysError>> {
        let claimed = self.in_flight.ids().contains(&id);
        let reserved = match transaction.reserve(id, digest, claimed)? {
            Row::Full => Err(KeysError::Full),
            Row::Found { digest: first, .. } if first != digest => Ok(Reserved::Other),
            _ if claimed => Ok(Reserved::InFlight),
            Row::Inserted => self.claim(id, true).map(Reserved::New),
            Row::Found { accepted: false, .. } => self.claim(id, false).map(Reserved::Unsure),
            Row::Found { since, .. } => Ok(Reserved::Accepted { since }),
        };
        Ok(reserved)
    }

    fn claim(&self, id: JobId, fresh: bool) -> Result<Claim, KeysError> {
        let commands = self.sender.upgrade();
        let commands = commands.ok_or_else(|| KeysError::Unavailable("closed".to_owned()))?;
        self.in_flight.ids().insert(id);
        let hold = Some(Hold { id, in_flight: self.in_flight.clone() });
        Ok(Claim { hold, commands, fresh, published: false })
    }
}

fn failures(why: &str, count: usize) -> Answers {
    (0..count).map(|_| Err(KeysError::Unavailable(why.to_owned()))).collect()
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
