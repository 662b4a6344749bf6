//! The file: opening, checking, setting aside, its schema, and the connections to it.

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::StoreError;
use crate::job::{Kind, QueueName};

/// Marks the file as ours ("HOPL").
const APPLICATION_ID: i32 = 0x484f_504c;
/// Changes with the schema and with the shape of what is stored as JSON. Older files are not converted: the log has it
/// all.
const SCHEMA_VERSION: i32 = 2;
/// Connections that read.
const READERS: usize = 4;
/// How long a reader is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Broken files that are kept.
const BROKEN_KEPT: usize = 3;
/// Up to this size, in bytes, a file is checked page by page when it is opened.
const CHECKED_MAX: u64 = 64 << 20;
/// Most classes remembered by a connection.
const CLASSES_MAX: usize = 10_000;

const SCHEMA: &str = include_str!("schema.sql");

/// A queue and a kind, as the tables name them by a number. No kind: the job's message had none.
pub(super) type Class = (QueueName, Option<Kind>);

/// Numbers by queue and kind.
pub(super) type Numbers = HashMap<QueueName, HashMap<Option<Kind>, i64>>;

/// The connection that writes.
pub(super) struct Writer {
    pub(super) db: Connection,
    /// Numbers of classes. Cleared when a transaction fails, for it may have made some of them.
    pub(super) classes: Numbers,
    /// Jobs in an entry of `blocks`.
    pub(super) full_block: i64,
}

/// A connection that reads.
pub(super) struct Reader {
    pub(super) db: Connection,
    pub(super) classes: HashMap<i64, Class>,
}

/// Locks the folder for this process, until the file is dropped.
pub(super) fn lock(folder: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::Folder { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join("lock");
    let file = File::options().create(true).append(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Opens the file, or makes it. One that cannot be used is set aside; why is in the log.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let exists = path.try_exists().map_err(|source| StoreError::Folder { path: path.to_owned(), source })?;
    if exists {
        match open_known(path) {
            Ok(db) => return Ok(db),
            Err(StoreError::Corrupt(why)) => {
                let aside = set_aside(path)?;
                tracing::warn!(
                    record.file = %path.display(),
                    record.set_aside = %aside.display(),
                    why,
                    "the record's file cannot be used: it is set aside, and the record is rebuilt from the event log"
                );
            }
            Err(other) => return Err(other),
        }
    }
    create(path)
}

fn open_known(path: &Path) -> Result<Connection, StoreError> {
    let db = connect(path)?;
    let pragma = |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    if (application, version) != (APPLICATION_ID, SCHEMA_VERSION) {
        return Err(StoreError::Corrupt(format!(
            "it has schema {version} of application {application:#x}, not {SCHEMA_VERSION} of {APPLICATION_ID:#x}"
        )));
    }
    check(&db, path)?;
    Ok(db)
}

/// Finds what is visibly wrong: all pages of a small file; the ends of the tables of a large one, for reading it all
/// would keep the process from starting. Other damage shows when it is met.
fn check(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let size = fs::metadata(path).map_or(0, |data| data.len());
    if size <= CHECKED_MAX {
        let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        return if found == "ok" { Ok(()) } else { Err(StoreError::Corrupt(found)) };
    }
    db.query_row("SELECT tail FROM meta", [], |row| row.get::<_, i64>(0))?;
    for (table, key) in [("jobs", "position"), ("events", "position"), ("args", "job"), ("outputs", "job")] {
        for order in ["ASC", "DESC"] {
            let sql = format!("SELECT * FROM {table} ORDER BY {key} {order} LIMIT 1");
            db.query_row(&sql, [], |row| row.get::<_, i64>(0)).optional()?;
        }
    }
    Ok(())
}

fn create(path: &Path) -> Result<Connection, StoreError> {
    let mut db = connect(path)?;
    let tx = db.transaction()?;
    tx.execute_batch(SCHEMA)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    tx.commit()?;
    Ok(db)
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(10))?;
    // Read by `page_size` only while the file is empty. What is lost in a power cut is read from the log again.
    db.execute_batch(
        "PRAGMA page_size = 8192;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -65536;",
    )?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

fn connect_reader(path: &Path) -> Result<Reader, StoreError> {
    let db = connect(path)?;
    db.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -16384; PRAGMA mmap_size = 1073741824;")?;
    Ok(Reader { db, classes: HashMap::new() })
}

/// Renames a database, with what SQLite keeps beside it, to `<name>.broken-<time>`; of such files the newest three stay.
pub(in crate::record) fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |source| StoreError::Folder { path: path.to_owned(), source };
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%S%.3fZ").to_string();
    let aside = with_suffix(path, &format!(".broken-{stamp}"));
    // It is gone already where setting it aside was done, and making a new one failed.
    for suffix in ["", "-wal", "-shm"] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    forget_old(path).map_err(failed)?;
    Ok(aside)
}

fn forget_old(path: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.broken-", name.to_string_lossy());
    let mut broken: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm") {
            broken.push(entry.path());
        }
    }
    // The time in the name sorts.
    broken.sort();
    for old in broken.iter().take(broken.len().saturating_sub(BROKEN_KEPT)) {
        fs::remove_file(old)?;
        for suffix in ["-wal", "-shm"] {
            match fs::remove_file(with_suffix(old, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Locks a mutex; what a panic left behind is a transaction that was rolled back.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connections that read, a fixed number. `deadpool-sqlite` does the same for async callers, but with an rusqlite of
/// its own choice, and two of them cannot link one SQLite.
pub(super) struct Readers {
    pool: Mutex<Pool>,
    changed: Condvar,
}

struct Pool {
    idle: Vec<Reader>,
    /// How many are in use.
    lent: usize,
    /// None is lent any more: the file is being replaced.
    closed: bool,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let pool = Pool { idle: connect_readers(path)?, lent: 0, closed: false };
        Ok(Self { pool: Mutex::new(pool), changed: Condvar::new() })
    }

    /// Closes all connections, after those in use have come back; [`StoreError::Busy`] if they do not in time.
    ///
    /// None may outlive the file's name: the last connection to a file removes its `-wal` and `-shm` by name. SQLite looks
    /// before that whether the file was moved, but not in one step: they could be those of the file in its place.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        let mut pool = hold(&self.pool);
        pool.closed = true;
        let (mut pool, timeout) = self
            .changed
            .wait_timeout_while(pool, PATIENCE, |pool| pool.lent > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            pool.closed = false;
            self.changed.notify_all();
            return Err(StoreError::Busy);
        }
        pool.idle.clear();
        Ok(())
    }

    /// Opens new ones after [`Readers::close`].
    pub(super) fn reopen(&self, path: &Path) -> Result<(), StoreError> {
        let idle = connect_readers(path)?;
        let mut pool = hold(&self.pool);
        pool.idle = idle;
        pool.closed = false;
        self.changed.notify_all();
        Ok(())
    }

    /// Reads something: one snapshot of the file.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>, &mut HashMap<i64, Class>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut lease = self.lease()?;
        let Some(reader) = lease.reader.as_mut() else { return Err(StoreError::Busy) };
        if reader.classes.len() > CLASSES_MAX {
            reader.classes.clear();
        }
        let tx = reader.db.transaction()?;
        read(&tx, &mut reader.classes)
    }

    /// Whether one is idle now, and may be lent.
    pub(super) fn has_idle(&self) -> bool {
        let pool = hold(&self.pool);
        !pool.closed && !pool.idle.is_empty()
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        hold(&self.pool).closed
    }

    fn lease(&self) -> Result<Lease<'_>, StoreError> {
        let pool = hold(&self.pool);
        let (mut pool, timeout) = self
            .changed
            .wait_timeout_while(pool, PATIENCE, |pool| pool.closed || pool.idle.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(StoreError::Busy);
        }
        let reader = Some(pool.idle.pop().ok_or(StoreError::Busy)?);
        pool.lent += 1;
        Ok(Lease { readers: self, reader })
    }
}

fn connect_readers(path: &Path) -> Result<Vec<Reader>, StoreError> {
    (0..READERS).map(|_| connect_reader(path)).collect()
}

/// A reader in use; goes back when dropped, after a panic too.
struct Lease<'a> {
    readers: &'a Readers,
    reader: Option<Reader>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut pool = hold(&self.readers.pool);
        pool.lent -= 1;
        pool.idle.extend(self.reader.take());
        if pool.closed {
            self.readers.changed.notify_all();
        } else {
            self.readers.changed.notify_one();
        }
    }
}

/// The number of a class, made if need be.
#[expect(clippy::ref_option, reason = "the key of the map that it is looked up in")]
pub(super) fn class_number(
    tx: &Transaction<'_>,
    classes: &mut Numbers,
    queue: &QueueName,
    kind: &Option<Kind>,
) -> Result<i64, StoreError> {
    if let Some(number) = classes.get(queue).and_then(|kinds| kinds.get(kind)) {
        return Ok(*number);
    }
    let name = kind.as_ref().map_or("", Kind::as_str);
    tx.prepare_cached("INSERT INTO classes (queue, kind) VALUES (?, ?) ON CONFLICT DO NOTHING")?
        .execute(params![queue.as_str(), name])?;
    let number = tx
        .prepare_cached("SELECT id FROM classes WHERE queue = ? AND kind = ?")?
        .query_row(params![queue.as_str(), name], |row| row.get(0))?;
    if classes.values().map(HashMap::len).sum::<usize>() > CLASSES_MAX {
        classes.clear();
    }
    classes.entry(queue.clone()).or_default().insert(kind.clone(), number);
    Ok(number)
}

/// The class of a number.
pub(super) fn class_of(
    tx: &Transaction<'_>,
    classes: &mut HashMap<i64, Class>,
    number: i64,
) -> Result<Class, StoreError> {
    if let Some(class) = classes.get(&number) {
        return Ok(class.clone());
    }
    let (queue, kind): (String, String) = tx
        .prepare_cached("SELECT queue, kind FROM classes WHERE id = ?")?
        .query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let class = read_class(queue, kind)?;
    classes.insert(number, class.clone());
    Ok(class)
}

/// A class from its names.
pub(super) fn read_class(queue: String, kind: String) -> Result<Class, StoreError> {
    let bad = |error| StoreError::Corrupt(format!("a class cannot be read: {error}"));
    let kind = if kind.is_empty() { None } else { Some(Kind::parse(kind).map_err(bad)?) };
    Ok((QueueName::parse(queue).map_err(bad)?, kind))
}
