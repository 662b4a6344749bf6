//! The storage half of the record: what the events say of each job, in one SQLite file (`<folder>/record.db`).
//!
//! Everything here blocks: call it from threads that may. A page or a single answer takes milliseconds; `apply` takes
//! as long as its batches need. One connection writes, four read.
//!
//! By rusqlite and not sqlx: SQLite is called, not awaited, so an async driver would be a second set of threads and
//! channels between us and it; applying a batch is a hundred thousand short calls in one transaction.
//!
//! | module | owns |
//! |---|---|
//! | [`file`] | the file, its schema and connections; setting it aside |
//! | [`apply`] | writing batches |
//! | [`tend`] | what has come due, what is too old |
//! | [`list`], [`blocks`] | lists by filter |
//! | [`events`] | events |
//! | [`read`] | every other answer |
//! | [`row`], [`coding`] | columns from rows, and rows from columns |
//!
//! **Positions.** A position is the offset of a batch, plus `base`, and the index in it. `base` is 0 until the log is
//! reset (its offsets begin anew); then it becomes the next multiple of 2^36 above all positions, so that lists and
//! streams of events stay in order, and so that processes that saw the same resets give the same positions.
//!
//! Not here: reading the log, waiting, rates, and what a set of events means ([`super::fold`]).

mod apply;
mod blocks;
mod coding;
mod events;
mod file;
mod list;
mod read;
mod row;
mod tend;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, ffi};
use serde_json::value::RawValue;
use thiserror::Error;

use self::file::{Readers, Writer, hold};
pub(super) use self::{apply::written_at, file::set_aside};
use super::{
    model::{
        CancelRequest, Counts, Filter, Group, JobRecord, JobStatus, Page, Position, QueueRecord, Scope,
        StoredEvent, Stretch, Summary,
    },
    rates::Said,
};
use crate::{
    event::{Event, EventError},
    job::{JobId, QueueName},
};

/// Why the store cannot do what it was asked for.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// Another process has the folder.
    #[error("{0} is locked by another process")]
    Locked(PathBuf),
    /// The folder or a file in it cannot be used.
    #[error("cannot use {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is damaged: [`Store::start_over`] and read the log again.
    #[error("the record's file is damaged: {0}")]
    Corrupt(String),
    /// A filter that no check should have let through: which member is wrong.
    #[error("filter member {0} cannot be read")]
    Filter(&'static str),
    /// All connections are busy for too long.
    #[error("the record is too busy")]
    Busy,
    /// Anything else that SQLite reports: a full disk, most likely.
    #[error("the record's file cannot be used")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // A file that is shorter than it says.
        let is_short =
            error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHORT_READ);
        match error.sqlite_error_code() {
            Some(_) if is_short => Self::Corrupt(error.to_string()),
            // A constraint: two events at one position, so the offsets are not those of the log that was read.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::ConstraintViolation) => {
                Self::Corrupt(error.to_string())
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(_) => Self::Sqlite(error),
            // No error of SQLite's: what was read is not what was written.
            None => Self::Corrupt(error.to_string()),
        }
    }
}

/// A batch of the log as the projector hands it over.
#[derive(Debug, Clone)]
pub(crate) struct LogBatch {
    /// Its offset in the stream.
    pub(crate) offset: u64,
    /// Its message's id: tells a log that was reset.
    pub(crate) message_id: String,
    /// Its events, each with its index. May be empty (a barrier): the offset moves on all the same.
    pub(crate) events: Vec<(u16, Event)>,
}

/// The last batch applied: where to read on, and what must be found there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resume {
    /// Its offset in the stream.
    pub(crate) offset: u64,
    /// Its message's id.
    pub(crate) message_id: String,
    /// What is added to the stream's offsets to make positions; 0 until the log was reset for the first time.
    pub(crate) base: u64,
}

/// What [`Store::apply`] did.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Events that were not known: where they lie, and what is counted of them.
    pub(crate) news: Vec<(Position, Said)>,
    /// Jobs that came to a final status, or from one to another.
    pub(crate) ended: Vec<JobId>,
    /// Jobs whose record may have changed, those of `ended` included.
    pub(crate) changed: Vec<JobId>,
    /// The last position applied, see [`Store::tail`].
    pub(crate) tail: Position,
}

/// What [`Store::lookup`] knows of a job and one of its runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// The newest run that is known; 0: the job is not.
    pub(crate) latest_run: u32,
    /// The newest step of the asked run that is known to exist.
    pub(crate) step: u32,
    /// How the asked run ended.
    pub(crate) end: Option<Ended>,
    /// Whether the cancellation of the asked run was asked for.
    pub(crate) cancel: Option<CancelRequest>,
    /// Whether the run would be known to have ended. Not so where that may have been said in a gap of the log.
    pub(crate) sure: bool,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    /// Always a final one.
    pub(crate) status: JobStatus,
    /// Attempts made.
    pub(crate) attempt: u32,
    /// The worker of the last attempt.
    pub(crate) worker: Option<String>,
    /// Why it is dead, or was cancelled.
    pub(crate) reason: Option<String>,
    /// The last error, unless it succeeded.
    pub(crate) error: Option<EventError>,
    /// The output, unless left out.
    pub(crate) output: Option<Box<RawValue>>,
    /// There is an output and it was left out.
    pub(crate) output_omitted: bool,
    /// When the last attempt started.
    pub(crate) started_at: Option<Timestamp>,
    /// When the run ended.
    pub(crate) finished_at: Option<Timestamp>,
}

/// The record's file. All methods block.
pub(crate) struct Store {
    path: PathBuf,
    writer: Mutex<Writer>,
    readers: Readers,
    bounds: list::Bounds,
    /// Holds the folder.
    _lock: File,
}

/// Positions of a new epoch begin at a multiple of two to this power.
const EPOCH_BITS: u32 = 36;

impl Store {
    /// Locks `folder` (created if need be) and opens the record in it. A file of another schema version, or one that is
    /// visibly damaged, is set aside first (with a warning in the log), and an empty one made.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = file::lock(folder)?;
        let path = folder.join("record.db");
        let writer = Writer { db: file::open(&path)?, classes: HashMap::new(), full_block: blocks::FULL };
        let readers = Readers::open(&path)?;
        Ok(Self { path, writer: Mutex::new(writer), readers, bounds: list::BOUNDS, _lock: lock })
    }

    /// Sets the file aside as `record.db.broken-<time>` (the newest three are kept) and makes an empty one. For
    /// [`StoreError::Corrupt`]; the log must be read from its beginning then. Says where the old file is. Waits for those
    /// who read; [`StoreError::Busy`] if they take too long: nothing has changed then.
    pub(crate) fn start_over(&self) -> Result<PathBuf, StoreError> {
        let mut writer = hold(&self.writer);
        self.readers.close()?;
        // Closes the file.
        writer.db = Connection::open_in_memory()?;
        writer.classes.clear();
        let aside = set_aside(&self.path)?;
        writer.db = file::open(&self.path)?;
        self.readers.reopen(&self.path)?;
        Ok(aside)
    }

    /// The last batch applied; `None` in an empty record and after [`Store::new_epoch`].
    pub(crate) fn resume(&self) -> Result<Option<Resume>, StoreError> {
        self.readers.read(|tx, _| {
            Ok(tx.query_row("SELECT base, offset, message_id FROM meta", [], |row| {
                let base = row.get::<_, i64>(0)?.unsigned_abs();
                let offset: Option<i64> = row.get(1)?;
                let message_id: Option<String> = row.get(2)?;
                let last = offset.map(i64::unsigned_abs).zip(message_id);
                Ok(last.map(|(offset, message_id)| Resume { offset, message_id, base }))
            })?)
        })
    }

    /// The log was reset and its offsets begin anew: what is applied from now on gets positions above all others, and
    /// [`Store::first`] moves there. Read the log from its beginning.
    pub(crate) fn new_epoch(&self) -> Result<(), StoreError> {
        let mut writer = hold(&self.writer);
        let tx = writer.db.transaction()?;
        let tail: i64 = tx.query_row("SELECT tail FROM meta", [], |row| row.get(0))?;
        let base = ((coding::unpack(tail).offset >> EPOCH_BITS) + 1) << EPOCH_BITS;
        tx.execute(
            "UPDATE meta SET base = ?1, offset = NULL, message_id = NULL, first = max(first, ?2)",
            [base.cast_signed(), coding::pack(base, 0)?],
        )?;
        tx.commit()?;
        Ok(())
    }

    /// The log does not have what lies between the last batch applied and `offset` any more: [`Store::first`] moves to
    /// `offset`. (The first batch ever applied to an empty record, or in a new epoch, does this by itself.) Of jobs from
    /// before the batch there, what this record does not know is not certain: see [`Found::sure`].
    pub(crate) fn missing_before(&self, offset: u64) -> Result<(), StoreError> {
        let writer = hold(&self.writer);
        let base: i64 = writer.db.query_row("SELECT base FROM meta", [], |row| row.get(0))?;
        let first = coding::pack(base.unsigned_abs().saturating_add(offset), 0)?;
        writer.db.execute("UPDATE meta SET first = max(first, ?)", [first])?;
        Ok(())
    }

    /// Applies batches in one transaction: rows, events and the offset. Doing it twice changes nothing more. After an
    /// error nothing was applied: read the log again from [`Store::resume`].
    pub(crate) fn apply(&self, batches: Vec<LogBatch>) -> Result<Applied, StoreError> {
        apply::apply(&mut hold(&self.writer), batches)
    }

    /// The last position applied.
    pub(crate) fn tail(&self) -> Result<Position, StoreError> {
        self.position("tail")
    }

    /// From this position on no event is missing here.
    pub(crate) fn first(&self) -> Result<Position, StoreError> {
        self.position("first")
    }

    /// Brings at most `limit` jobs whose time has come to `queued`; how many there were. To be called about every second
    /// (again at once while it returns `limit`): answers are right without it, but get slower.
    pub(crate) fn promote(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        tend::promote(&mut hold(&self.writer), now, limit)
    }

    /// Deletes at most `limit` jobs that ended before `now - retention`, with all that is known of them; how many there
    /// were. Dead ones stay until they are purged. To be called about every minute, and again at once while it returns
    /// `limit`.
    pub(crate) fn expire(
        &self,
        now: Timestamp,
        retention: Duration,
        limit: usize,
    ) -> Result<usize, StoreError> {
        tend::expire(&mut hold(&self.writer), now, retention, limit)
    }

    /// Whether a connection is free to read, as it seems.
    pub(crate) fn is_at_leisure(&self) -> bool {
        self.readers.has_idle()
    }

    /// A job's record.
    pub(crate) fn job(&self, id: JobId, now: Timestamp) -> Result<Option<JobRecord>, StoreError> {
        self.readers.read(|tx, classes| read::job(tx, classes, id, now))
    }

    /// Jobs, newest first, below the position `after`, at most `limit`. A page may be short, even empty, although `next`
    /// says that more may follow: where few of many jobs match, a page ends after it has looked at some thousands.
    pub(crate) fn jobs(
        &self,
        filter: &Filter,
        limit: usize,
        after: Option<Position>,
        now: Timestamp,
    ) -> Result<Page, StoreError> {
        self.readers.read(|tx, _| list::jobs(tx, filter, limit, after, now, self.bounds))
    }

    /// How many jobs there are in each state, in one queue or in all.
    pub(crate) fn counts(&self, queue: Option<&QueueName>, now: Timestamp) -> Result<Counts, StoreError> {
        self.readers.read(|tx, _| read::counts(tx, queue, now))
    }

    /// Counts and age of each queue that had a job; the rates are left at nothing.
    pub(crate) fn queues(&self, now: Timestamp) -> Result<BTreeMap<QueueName, QueueRecord>, StoreError> {
        self.readers.read(|tx, _| read::queues(tx, now))
    }

    /// Groups of dead jobs of a queue that are not purged, largest first, at most 1000.
    pub(crate) fn groups(&self, queue: &QueueName) -> Result<Vec<Group>, StoreError> {
        self.readers.read(|tx, _| read::groups(tx, queue))
    }

    /// Events of `scope` after `after` in the order of the log, at most `limit`. Where few events match, they may be few or
    /// none before the tail is reached.
    pub(crate) fn events(&self, scope: &Scope, after: Position, limit: usize) -> Result<Stretch, StoreError> {
        self.readers.read(|tx, classes| events::events(tx, classes, scope, after, limit))
    }

    /// All events of a job that are kept, in the order of [`crate::event::Rank`]; at most 10,000: of the progress
    /// the newest that there is room for.
    pub(crate) fn job_events(&self, id: JobId) -> Result<Vec<StoredEvent>, StoreError> {
        self.readers.read(|tx, classes| events::job_events(tx, classes, id))
    }

    /// What is known of these runs, in the order asked.
    pub(crate) fn lookup(&self, asked: &[(JobId, u32)]) -> Result<Vec<Found>, StoreError> {
        self.readers.read(|tx, classes| read::lookup(tx, classes, asked, Timestamp::now()))
    }

    /// Jobs of `queue` that have been queued, or running without news, since before `before`: the oldest first, at most
    /// `limit`. Not those that were last heard of before a gap in the log.
    ///
    /// Nor those that were there before the broker was `connected` and may be late since: when it is started again, the
    /// level of the delay ladder that a message lies in begins its pause anew. What is left of a delay after that is at
    /// most the delay, which is at most the time from the job's submit to when it is due.
    pub(crate) fn waiting_since(
        &self,
        queue: &QueueName,
        before: Timestamp,
        connected: Timestamp,
        limit: usize,
    ) -> Result<Vec<Summary>, StoreError> {
        self.readers.read(|tx, _| read::waiting_since(tx, queue, before, connected, limit, Timestamp::now()))
    }

    /// Jobs without an end, and dead ones that can be replayed, of which the log has said nothing since `before` (by the
    /// log's own time: the latest that a batch or an event had at that place), at most `limit`, in no order; each with the
    /// events that tell its record, args included, at most 100. Writing these once more keeps them from leaving with the
    /// log's old end; they change no record. Not those that were last heard of before a gap in the log.
    pub(crate) fn stale(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(JobId, Vec<Event>)>, StoreError> {
        self.readers.read(|tx, classes| events::stale(tx, classes, before, limit))
    }

    fn position(&self, column: &str) -> Result<Position, StoreError> {
        self.readers.read(|tx, _| {
            let packed = tx.query_row(&format!("SELECT {column} FROM meta"), [], |row| row.get(0))?;
            Ok(coding::unpack(packed))
        })
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
