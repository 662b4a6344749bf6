//! The file of reservations: one table, one transaction at a time. Knows nothing of threads and claims.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Statement, TransactionBehavior, params};
use tracing::error;

use super::{Digest, KEPT};
use crate::{disk, job::JobId, record::store};

/// The version of the table; the file's `user_version`.
const VERSION: i64 = 1;
/// How long another process that looks into the file may hold us up.
const BUSY: Duration = Duration::from_secs(5);
/// Expired rows that a transaction removes at least, if there are so many.
const SWEEP: usize = 1_000;
/// The longest that the write-ahead log stays after it was emptied, in bytes.
const WAL_MAX: i64 = 16 << 20;

const CREATE: &str = "
    CREATE TABLE keys (
        id BLOB PRIMARY KEY,            -- the job's id, 16 bytes
        digest BLOB NOT NULL,           -- of its request, 16 bytes
        accepted INTEGER NOT NULL,      -- 1: the broker has the job; 0: not known
        created_at INTEGER NOT NULL     -- ms since 1970: the first request
    ) WITHOUT ROWID;
    CREATE INDEX keys_by_age ON keys (created_at);
    PRAGMA user_version = 1;";

/// Finds what makes room. Not part of [`CREATE`]: files that were made without it are good files too.
const ACCEPTED: &str = "CREATE INDEX IF NOT EXISTS keys_accepted ON keys (created_at) WHERE accepted = 1";

/// What the table has of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    /// It had nothing; now it has a reservation.
    Inserted,
    /// It had a reservation, which stays as it is.
    Found {
        /// Of the first request.
        digest: Digest,
        /// Whether its job was accepted.
        accepted: bool,
        /// When it came.
        since: Timestamp,
    },
    /// It had nothing, and has room for no more: what it has may still be on its way.
    Full,
}

/// The table, and how many rows it has.
#[derive(Debug)]
pub(super) struct Table {
    db: Connection,
    rows: i64,
    most: i64,
}

/// Why a file could not be opened.
enum Failure {
    /// What is in it is no table of ours any more.
    Corrupt(String),
    /// Anything else.
    Other(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

impl Table {
    /// Opens the file, of at most `most` rows. One that cannot be read is renamed, and a new one begun.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub(super) fn open(path: &Path, most: i64) -> Result<Self, String> {
        if let Some(folder) = path.parent() {
            disk::make_folder(folder).map_err(|error| error.to_string())?;
        }
        let opened = match Self::open_file(path, most) {
            Err(Failure::Corrupt(why)) => {
                let aside = store::set_aside(path).map_err(|error| format!("{why}, and {error}"))?;
                error!(
                    file = %path.display(), aside = %aside.display(), error = why,
                    "the file of keys cannot be read and is set aside: requests that were not confirmed before are \
                     not recognised when they come again"
                );
                Self::open_file(path, most)
            }
            opened => opened,
        };
        opened.map_err(|(Failure::Corrupt(why) | Failure::Other(why))| format!("{}: {why}", path.display()))
    }

    fn open_file(path: &Path, most: i64) -> Result<Self, Failure> {
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        // A reservation must be on disk before its job is published.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "journal_size_limit", WAL_MAX)?;
        match db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
            0 => db.execute_batch(&format!("BEGIN; {CREATE} COMMIT;"))?,
            VERSION => check(&db)?,
            newer => return Err(Failure::Other(format!("made by a newer version ({newer})"))),
        }
        db.execute_batch(ACCEPTED)?;
        let rows = db.query_row("SELECT count(*) FROM keys", [], |row| row.get(0))?;
        Ok(Self { db, rows, most })
    }

    #[cfg(test)]
    pub(super) fn has(&self, id: JobId) -> bool {
        let count = "SELECT count(*) FROM keys WHERE id = ?1";
        self.db.query_row(count, params![id.as_bytes()], |row| row.get::<_, i64>(0)) == Ok(1)
    }

    /// Does `work` in one transaction of about `size` reservations, which is on disk afterwards. Removes expired ones.
    ///
    /// # Errors
    /// Why nothing of it was written.
    pub(super) fn transact(
        &mut self,
        now: Timestamp,
        size: usize,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), rusqlite::Error> {
        let begun = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut transaction = Transaction {
            rows: self.rows,
            most: self.most,
            now: now.as_millisecond(),
            find: begun.prepare("SELECT digest, accepted, created_at FROM keys WHERE id = ?1")?,
            insert: begun
                .prepare("INSERT INTO keys (id, digest, accepted, created_at) VALUES (?1, ?2, 0, ?3)")?,
            accept: begun.prepare("UPDATE keys SET accepted = 1 WHERE id = ?1")?,
            remove: begun.prepare("DELETE FROM keys WHERE id = ?1")?,
            make_room: begun.prepare(
                "DELETE FROM keys WHERE id IN (SELECT id FROM keys INDEXED BY keys_accepted
                 WHERE accepted = 1 ORDER BY created_at LIMIT ?1)",
            )?,
        };
        transaction.sweep(&begun, size.saturating_mul(2).max(SWEEP))?;
        work(&mut transaction)?;
        let rows = transaction.rows;
        drop(transaction);
        begun.commit()?;
        self.rows = rows;
        Ok(())
    }
}

/// A transaction on the table; rolled back unless all of it goes well.
pub(super) struct Transaction<'a> {
    rows: i64,
    most: i64,
    /// In ms since 1970.
    now: i64,
    find: Statement<'a>,
    insert: Statement<'a>,
    accept: Statement<'a>,
    remove: Statement<'a>,
    make_room: Statement<'a>,
}

impl Transaction<'_> {
    /// Reserves an id, if it is free. What is `claimed` does not expire.
    pub(super) fn reserve(&mut self, id: JobId, digest: Digest, claimed: bool) -> rusqlite::Result<Row> {
        match self.find(id)? {
            Some((row, at)) if claimed || at > expired(self.now) => return Ok(row),
            Some(_) => self.remove(id)?,
            None => {}
        }
        if self.rows >= self.most && !self.make_room()? {
            return Ok(Row::Full);
        }
        self.insert.execute(params![id.as_bytes(), digest.0, self.now])?;
        self.rows += 1;
        Ok(Row::Inserted)
    }

    /// Notes that the job of `id` was accepted.
    pub(super) fn accept(&mut self, id: JobId) -> rusqlite::Result<()> {
        self.accept.execute(params![id.as_bytes()]).map(drop)
    }

    /// Frees an id.
    pub(super) fn remove(&mut self, id: JobId) -> rusqlite::Result<()> {
        let removed = self.remove.execute(params![id.as_bytes()])?;
        self.rows = self.rows - i64::try_from(removed).unwrap_or(self.rows);
        Ok(())
    }

    /// Removes the oldest of which it is known that their jobs were accepted; whether there were any. The record knows
    /// those jobs, by the digests of their requests: a repeat costs a look there.
    fn make_room(&mut self) -> rusqlite::Result<bool> {
        // More than one too many where the bound was lowered: then it is come down to in steps.
        let count = (self.rows - self.most + 1).min(i64::try_from(SWEEP).unwrap_or(i64::MAX));
        let removed = self.make_room.execute([count])?;
        self.rows = self.rows - i64::try_from(removed).unwrap_or(self.rows);
        Ok(removed > 0)
    }

    fn find(&mut self, id: JobId) -> rusqlite::Result<Option<(Row, i64)>> {
        let row = self.find.query_row(params![id.as_bytes()], |row| {
            let at: i64 = row.get(2)?;
            let since = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
            Ok((Row::Found { digest: Digest(row.get(0)?), accepted: row.get(1)?, since }, at))
        });
        row.optional()
    }

    /// Removes expired rows, at most so many.
    fn sweep(&mut self, db: &Connection, most: usize) -> rusqlite::Result<()> {
        let removed = db.execute(
            "DELETE FROM keys WHERE id IN (SELECT id FROM keys WHERE created_at <= ?1 LIMIT ?2)",
            params![expired(self.now), i64::try_from(most).unwrap_or(i64::MAX)],
        )?;
        self.rows = self.rows - i64::try_from(removed).unwrap_or(self.rows);
        Ok(())
    }
}

/// When a reservation was made that expires `now`, both in ms since 1970.
fn expired(now: i64) -> i64 {
    now.saturating_sub(i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX))
}

fn check(db: &Connection) -> Result<(), Failure> {
    let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(Failure::Corrupt(found));
    }
    let readable = db.prepare("SELECT id, digest, accepted, created_at FROM keys");
    readable.map(drop).map_err(|error| Failure::Corrupt(error.to_string()))
}
