//! The spool's file: one table, one transaction at a time, on disk when it returns. Knows nothing of threads.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use tracing::{debug, error};

use super::{
    Entry, Fill, SpoolError,
    ballast::Ballast,
    body::{Row, read_job},
    index::{Found, Lane},
};
use crate::job::JobId;

/// The version of the table and of `body::Body`; the file's `user_version`.
const VERSION: i64 = 2;
/// The ballast's name.
const BALLAST: &str = "ballast";
/// Most bytes that are read at once, roughly.
const READ_MAX: u64 = 16 << 20;
/// The longest that the write-ahead log stays after it was emptied, in bytes.
const WAL_MAX: i64 = 16 << 20;

const CREATE: &str = "
    CREATE TABLE jobs (
        place INTEGER PRIMARY KEY AUTOINCREMENT,  -- jobs are forwarded in this order
        id    BLOB NOT NULL UNIQUE,               -- the job's id, 16 bytes
        size  INTEGER NOT NULL,                   -- of what follows
        body  TEXT NOT NULL,                      -- body::Body
        args  BLOB NOT NULL                       -- as they came
    );
    CREATE TABLE tried (place INTEGER NOT NULL);  -- one row: jobs up to here may have been published from here
    INSERT INTO tried VALUES (0);
    PRAGMA user_version = 2;";

/// The table, and the room that is kept for emptying it.
#[derive(Debug)]
pub(super) struct Table {
    db: Connection,
    ballast: Ballast,
}

/// What a transaction has done.
#[derive(Debug)]
pub(super) struct Written {
    /// For each row its place; none where the same request is there already.
    pub(super) rows: Vec<Result<Option<i64>, SpoolError>>,
    pub(super) fill: Fill,
}

/// Entries that were read.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) entries: Vec<Entry>,
    /// Places whose rows cannot be read.
    pub(super) unreadable: Vec<i64>,
    /// The last place that was looked at.
    pub(super) last: Option<i64>,
}

impl Table {
    /// Opens the file, and tells of each row in it.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`]: why it cannot be used. It is left as it is.
    pub(super) fn open(path: &Path, mut found: impl FnMut(Found)) -> Result<Self, SpoolError> {
        let mut ballast = Ballast::open(path.with_file_name(BALLAST));
        let opened = match open_file(path) {
            // To open it takes some room, too.
            Err(_) if is_disk_full(path) && ballast.release() => open_file(path),
            opened => opened,
        };
        let opened = opened.and_then(|db| read_all(&db, &mut found).map(|()| db));
        let db = opened.map_err(|why| SpoolError::Unavailable(format!("{}: {why}", path.display())))?;
        Ok(Self { db, ballast })
    }

    /// Whether a job may be stored: there is room then to take it out again. Makes the room, if that can be.
    pub(super) fn may_grow(&mut self) -> bool {
        if !self.ballast.is_there() && self.ballast.is_due() {
            self.shrink();
            self.ballast.make();
        }
        self.ballast.is_there()
    }

    /// Gives back to the disk what the file does not need, as far as that is cheap.
    fn shrink(&self) {
        let shrink = || -> rusqlite::Result<()> {
            let free: i64 = self.db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
            if free > 0 {
                if self.db.query_row("SELECT EXISTS (SELECT 1 FROM jobs)", [], |row| row.get::<_, bool>(0))? {
                    let mut vacuum = self.db.prepare("PRAGMA incremental_vacuum(1000)")?;
                    let mut steps = vacuum.query([])?;
                    while steps.next()?.is_some() {}
                } else {
                    // So does a file that was not made for it.
                    self.db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
                    self.db.execute_batch("VACUUM")?;
                }
            }
            self.checkpoint("TRUNCATE")
        };
        if let Err(error) = shrink() {
            debug!(%error, "the spool's file cannot be made smaller now");
        }
    }

    fn checkpoint(&self, how: &str) -> rusqlite::Result<()> {
        self.db.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()))
    }

    /// Does what empties the file, on a full disk too: once more without the ballast.
    fn with_room<T>(
        &mut self,
        work: impl Fn(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SpoolError> {
        let mut done = work(&mut self.db);
        if done.as_ref().is_err_and(is_full) && self.ballast.release() {
            // What the write-ahead log has may not have found room in the file: let it be emptied first.
            if let Err(error) = self.checkpoint("PASSIVE") {
                debug!(%error, "no checkpoint");
            }
            done = work(&mut self.db);
        }
        done.map_err(|error| unusable(&error))
    }

    /// Writes rows and removes those at `gone` in one transaction, which is on disk afterwards.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`]: nothing was written.
    pub(super) fn write(&mut self, rows: &[Row], gone: &[i64], fill: Fill) -> Result<Written, SpoolError> {
        write(&mut self.db, rows, gone, fill).map_err(|error| unusable(&error))
    }

    /// Removes those at `gone`, on a full disk too.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`]: nothing was removed.
    pub(super) fn remove(&mut self, gone: &[i64], fill: Fill) -> Result<Fill, SpoolError> {
        self.with_room(|db| write(db, &[], gone, fill)).map(|written| written.fill)
    }

    /// The jobs at `places` up to about [`READ_MAX`] bytes, to be published: they are unsure if that was tried before,
    /// also by a process that was killed.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`].
    pub(super) fn take(&mut self, places: &[i64]) -> Result<Taken, SpoolError> {
        if places.is_empty() {
            return Ok(Taken::default());
        }
        self.with_room(|db| {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let tried: i64 = tx.query_row("SELECT place FROM tried", [], |row| row.get(0))?;
            let mut taken = read(&tx, places)?;
            for entry in taken.entries.iter_mut().filter(|entry| entry.place <= tried) {
                entry.job.envelope.unsure = true;
            }
            if let Some(last) = taken.entries.last().filter(|last| last.place > tried) {
                tx.execute("UPDATE tried SET place = ?1", params![last.place])?;
            }
            tx.commit()?;
            Ok(taken)
        })
    }

    /// The job of this id.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`].
    pub(super) fn find(&self, id: JobId) -> Result<Option<Entry>, SpoolError> {
        let read = || -> Result<Option<Entry>, String> {
            let text = |error: rusqlite::Error| error.to_string();
            let sql = "SELECT place, id, body, args FROM jobs WHERE id = ?1";
            let mut select = self.db.prepare_cached(sql).map_err(text)?;
            let mut rows = select.query(params![id.as_bytes()]).map_err(text)?;
            rows.next().map_err(text)?.map(read_entry).transpose()
        };
        read().map_err(SpoolError::Unavailable)
    }

    /// When the job at `place` was submitted; none if it does not say, or cannot be read.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`].
    pub(super) fn submitted_at(&self, place: i64) -> Result<Option<Timestamp>, SpoolError> {
        let taken = read(&self.db, &[place]).map_err(|error| unusable(&error))?;
        Ok(taken.entries.first().and_then(|entry| entry.job.envelope.created_at))
    }
}

fn open_file(path: &Path) -> Result<Connection, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    let is_new = length(path) == 0;
    if is_new && length(&path.with_extension("db-wal")) > 0 {
        return Err("it is empty, and its write-ahead log is not".to_owned());
    }
    let mut db = Connection::open(path).map_err(text)?;
    if is_new {
        // To give back room ([`Table::may_grow`]); this must come first.
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(text)?;
    }
    db.pragma_update(None, "journal_mode", "WAL").map_err(text)?;
    // A 202 is given when this is on disk.
    db.pragma_update(None, "synchronous", "FULL").map_err(text)?;
    db.pragma_update(None, "journal_size_limit", WAL_MAX).map_err(text)?;
    db.pragma_update(None, "temp_store", "MEMORY").map_err(text)?;
    match db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).map_err(text)? {
        0 => db.execute_batch(&format!("BEGIN; {CREATE} COMMIT;")).map_err(text)?,
        1 => from_version_1(&mut db).map_err(text)?,
        VERSION => {}
        newer => {
            return Err(format!(
                "its format is version {newer}, of a newer Hopline; this one reads up to {VERSION}. Let the newer one \
                 forward what is in it (`hopline serve`, or `hopline spool drain`)"
            ));
        }
    }
    Ok(db)
}

/// A file of version 1 may not say what was tried. Then all may have been.
fn from_version_1(db: &mut Connection) -> rusqlite::Result<()> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch("CREATE TABLE IF NOT EXISTS tried (place INTEGER NOT NULL)")?;
    if tx.query_row("SELECT count(*) FROM tried", [], |row| row.get::<_, i64>(0))? == 0 {
        tx.execute("INSERT INTO tried SELECT coalesce(max(place), 0) FROM jobs", [])?;
    }
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()
}

fn read_all(db: &Connection, found: &mut impl FnMut(Found)) -> Result<(), String> {
    let text = |error: rusqlite::Error| error.to_string();
    let mut select = db.prepare("SELECT place, id, size, body FROM jobs ORDER BY place").map_err(text)?;
    let mut rows = select.query([]).map_err(text)?;
    while let Some(row) = rows.next().map_err(text)? {
        let place = row.get(0).map_err(text)?;
        let size = row.get::<_, i64>(2).map_or(0, i64::unsigned_abs);
        let id = row.get(1).map_err(text).and_then(|id: Vec<u8>| read_id(&id));
        let job = id.clone().and_then(|id| read_job(id, &row.get::<_, String>(3).map_err(text)?, Vec::new()));
        if let Err(error) = &job {
            say_unreadable(place, error);
        }
        found(Found { place, id: id.ok(), size, lane: job.ok().map(|job| Lane::of(&job)) });
    }
    Ok(())
}

fn say_unreadable(place: i64, error: &str) {
    error!(
        spool.place = place,
        error, "a job in the spool cannot be read: it stays there, and others pass it"
    );
}

fn unusable(error: &rusqlite::Error) -> SpoolError {
    SpoolError::Unavailable(error.to_string())
}

/// Whether more room might help. A quota is said to be a failure of the disk.
fn is_full(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure))
}

/// Whether nothing more can be written beside the file.
fn is_disk_full(path: &Path) -> bool {
    let probe = path.with_file_name("probe");
    let is_full = std::fs::write(&probe, [1; 64 << 10]).is_err();
    // It may not be there.
    let _ = std::fs::remove_file(probe);
    is_full
}

fn write(db: &mut Connection, rows: &[Row], gone: &[i64], mut fill: Fill) -> rusqlite::Result<Written> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut written = Vec::with_capacity(rows.len());
    {
        let mut remove = tx.prepare_cached("DELETE FROM jobs WHERE place = ?1 RETURNING size")?;
        for place in gone {
            let size: Option<i64> = remove.query_row(params![place], |row| row.get(0)).optional()?;
            if let Some(size) = size {
                fill.jobs = fill.jobs.saturating_sub(1);
                fill.bytes = fill.bytes.saturating_sub(size.unsigned_abs());
            }
        }
        let mut insert = tx.prepare_cached(
            "INSERT INTO jobs (id, size, body, args) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO NOTHING",
        )?;
        for row in rows {
            if !fill.has_room_for(row.size()) {
                written.push(Err(SpoolError::Full));
                continue;
            }
            let size = i64::try_from(row.size()).unwrap_or(i64::MAX);
            if insert.execute(params![row.id.as_bytes(), size, row.body, &row.args[..]])? > 0 {
                fill.jobs += 1;
                fill.bytes += row.size();
                written.push(Ok(Some(tx.last_insert_rowid())));
            } else {
                written.push(same(&tx, row).map(|()| None));
            }
        }
    }
    tx.commit()?;
    Ok(Written { rows: written, fill })
}

/// Whether the row with this id was made for the same request.
fn same(db: &Connection, row: &Row) -> Result<(), SpoolError> {
    let sql = "SELECT body, args FROM jobs WHERE id = ?1";
    let there = db.prepare_cached(sql).and_then(|mut select| {
        select.query_row(params![row.id.as_bytes()], |there| {
            Ok((there.get::<_, String>(0)?, there.get::<_, Vec<u8>>(1)?))
        })
    });
    let (body, args) = there.map_err(|error| unusable(&error))?;
    match row.is_same(&body, &args) {
        Ok(true) => Ok(()),
        Ok(false) => Err(SpoolError::Other),
        Err(why) => Err(SpoolError::Unavailable(why)),
    }
}

fn read(db: &Connection, places: &[i64]) -> rusqlite::Result<Taken> {
    let mut select = db.prepare_cached("SELECT place, id, body, args FROM jobs WHERE place = ?1")?;
    let (mut taken, mut bytes) = (Taken::default(), 0);
    for place in places {
        let entry = select.query_row([place], |row| Ok(read_entry(row))).optional()?;
        taken.last = Some(*place);
        match entry.unwrap_or_else(|| Err("it is gone".to_owned())) {
            Ok(entry) => {
                bytes += u64::try_from(entry.job.envelope.args.len()).unwrap_or(u64::MAX);
                taken.entries.push(entry);
            }
            Err(error) => {
                say_unreadable(*place, &error);
                taken.unreadable.push(*place);
            }
        }
        if bytes >= READ_MAX {
            break;
        }
    }
    Ok(taken)
}

fn read_id(bytes: &[u8]) -> Result<JobId, String> {
    bytes.try_into().map(JobId::from_bytes).map_err(|_| "an id has not 16 bytes".to_owned())
}

fn read_entry(row: &rusqlite::Row<'_>) -> Result<Entry, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let id = read_id(&row.get::<_, Vec<u8>>(1).map_err(text)?)?;
    let job = read_job(id, &row.get::<_, String>(2).map_err(text)?, row.get(3).map_err(text)?)?;
    Ok(Entry { place: row.get(0).map_err(text)?, job })
}
