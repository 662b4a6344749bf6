//! The spool's file: one table, one transaction at a time, on disk when it returns. Knows nothing of threads.

use std::{collections::HashSet, path::Path, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use tracing::error;

use super::{Entry, Fill, SpoolError};
use crate::{
    client::Submission,
    job::{
        Envelope, JobId, Kind, QueueName,
        envelope::RetryOverrides,
        json,
        wire::{HeaderValue, Headers, time_of_ms},
    },
};

/// The version of the table and of [`Body`]; the file's `user_version`.
const VERSION: i64 = 1;
/// Most bytes that are read at once, roughly.
const READ_MAX: u64 = 16 << 20;
/// The longest that the write-ahead log stays after it was emptied, in bytes.
const WAL_MAX: i64 = 16 << 20;

const CREATE: &str = "
    CREATE TABLE jobs (
        place INTEGER PRIMARY KEY AUTOINCREMENT,  -- jobs are forwarded in this order
        id    BLOB NOT NULL UNIQUE,               -- the job's id, 16 bytes
        size  INTEGER NOT NULL,                   -- of what follows
        body  TEXT NOT NULL,                      -- file::Body
        args  BLOB NOT NULL                       -- as they came
    );
    CREATE TABLE tried (place INTEGER NOT NULL);  -- one row: jobs up to here may have been published from here
    INSERT INTO tried VALUES (0);
    PRAGMA user_version = 1;";

/// A job as it is stored, without its id and args. Times are ms since the epoch. What the HTTP front submits has no more:
/// always the first run, attempt and step; replies are not waited for through the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    kind: Kind,
    queue: QueueName,
    /// The queue was chosen by us: it is chosen anew when the job is forwarded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    routed: bool,
    created_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_initial_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_max_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_jitter: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app_id: Option<String>,
    /// Trace context.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    /// Another copy may exist, see `tried` for those that we publish.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsure: bool,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn time(ms: Option<i64>) -> Option<Timestamp> {
    ms.and_then(time_of_ms)
}

impl Body {
    fn of(job: &Submission) -> Self {
        let Submission { envelope, delay, request, routed } = job;
        let text = |value: &HeaderValue| match value {
            HeaderValue::Text(text) => Some(text.clone()),
            _ => None,
        };
        Self {
            kind: envelope.kind.clone(),
            queue: envelope.queue.clone(),
            routed: *routed,
            created_at: envelope.created_at.map(Timestamp::as_millisecond),
            // Rounded up: nothing comes early.
            delay_ms: (!delay.is_zero()).then(|| ms(*delay + Duration::from_nanos(999_999))),
            expires_at: envelope.expires_at.map(Timestamp::as_millisecond),
            timeout_ms: envelope.timeout.map(ms),
            max_attempts: envelope.max_attempts,
            retry_initial_ms: envelope.retry.initial.map(ms),
            retry_factor: envelope.retry.factor,
            retry_max_ms: envelope.retry.max.map(ms),
            retry_jitter: envelope.retry.jitter,
            tags: envelope.tags.clone(),
            app_id: envelope.app_id.clone(),
            headers: (envelope.extra.iter())
                .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
                .collect(),
            request: request.clone(),
            unsure: envelope.unsure,
        }
    }

    fn into_job(self, id: JobId, args: Vec<u8>) -> Submission {
        let duration = |ms: Option<u64>| ms.map(Duration::from_millis);
        let mut envelope = Envelope::new(self.kind, self.queue, Bytes::from(args));
        envelope.id = id;
        envelope.created_at = time(self.created_at);
        envelope.expires_at = time(self.expires_at);
        envelope.timeout = duration(self.timeout_ms);
        envelope.max_attempts = self.max_attempts;
        envelope.retry = RetryOverrides {
            initial: duration(self.retry_initial_ms),
            factor: self.retry_factor,
            max: duration(self.retry_max_ms),
            jitter: self.retry_jitter,
        };
        envelope.tags = self.tags;
        envelope.app_id = self.app_id;
        envelope.extra =
            self.headers.into_iter().map(|(name, text)| (name, HeaderValue::Text(text))).collect::<Headers>();
        envelope.unsure = self.unsure;
        Submission {
            envelope,
            delay: duration(self.delay_ms).unwrap_or_default(),
            request: self.request,
            routed: self.routed,
        }
    }
}

/// A job on its way into the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: JobId,
    pub(super) body: String,
    args: Bytes,
}

impl Row {
    pub(super) fn of(job: &Submission) -> Self {
        // Texts, numbers and lists of them: nothing that fails.
        let body = serde_json::to_string(&Body::of(job)).unwrap_or_default();
        Self { id: job.envelope.id, body, args: job.envelope.args.clone() }
    }

    /// What it takes of `spool.max_bytes`.
    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.body.len() + self.args.len()).unwrap_or(u64::MAX)
    }
}

/// The table, and how full it is.
#[derive(Debug)]
pub(super) struct Table {
    db: Connection,
    fill: Fill,
}

impl Table {
    /// Opens the file, with the limits in `fill`; and the ids of the jobs in it.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`]: why it cannot be used. It is left as it is.
    pub(super) fn open(path: &Path, fill: Fill) -> Result<(Self, HashSet<JobId>), SpoolError> {
        let opened = Self::open_file(path, fill);
        opened.map_err(|why| SpoolError::Unavailable(format!("{}: {why}", path.display())))
    }

    fn open_file(path: &Path, mut fill: Fill) -> Result<(Self, HashSet<JobId>), String> {
        let text = |error: rusqlite::Error| error.to_string();
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        if length(path) == 0 && length(&path.with_extension("db-wal")) > 0 {
            return Err("it is empty, and its write-ahead log is not".to_owned());
        }
        let db = Connection::open(path).map_err(text)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(text)?;
        // A 202 is given when this is on disk.
        db.pragma_update(None, "synchronous", "FULL").map_err(text)?;
        db.pragma_update(None, "journal_size_limit", WAL_MAX).map_err(text)?;
        match db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).map_err(text)? {
            0 => db.execute_batch(&format!("BEGIN; {CREATE} COMMIT;")).map_err(text)?,
            VERSION => {}
            newer => return Err(format!("made by a newer version ({newer})")),
        }
        let mut ids = HashSet::new();
        {
            let mut select = db.prepare("SELECT id, size FROM jobs").map_err(text)?;
            let mut rows = select.query([]).map_err(text)?;
            while let Some(row) = rows.next().map_err(text)? {
                ids.insert(read_id(&row.get::<_, Vec<u8>>(0).map_err(text)?)?);
                fill.bytes += row.get::<_, i64>(1).map_err(text)?.unsigned_abs();
            }
        }
        fill.jobs = u64::try_from(ids.len()).unwrap_or(u64::MAX);
        Ok((Self { db, fill }, ids))
    }

    pub(super) fn fill(&self) -> Fill {
        self.fill
    }

    /// Writes rows and removes entries in one transaction, which is on disk afterwards: for each row whether it is
    /// stored; the others found no room. One that is there already stays as it is.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`]: nothing was written.
    pub(super) fn write(&mut self, rows: &[Row], gone: &[Entry]) -> Result<Vec<bool>, SpoolError> {
        let mut fill = self.fill;
        let mut work = || -> rusqlite::Result<Vec<bool>> {
            let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut taken = Vec::with_capacity(rows.len());
            {
                let mut remove = tx.prepare_cached("DELETE FROM jobs WHERE place = ?1 RETURNING size")?;
                for entry in gone {
                    let size: Option<i64> =
                        remove.query_row(params![entry.place], |row| row.get(0)).optional()?;
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
                        taken.push(false);
                        continue;
                    }
                    let size = i64::try_from(row.size()).unwrap_or(i64::MAX);
                    let new = insert.execute(params![row.id.as_bytes(), size, row.body, &row.args[..]])?;
                    if new > 0 {
                        fill.jobs += 1;
                        fill.bytes += row.size();
                    }
                    taken.push(true);
                }
            }
            tx.commit()?;
            Ok(taken)
        };
        let taken = work().map_err(|error| SpoolError::Unavailable(error.to_string()))?;
        self.fill = fill;
        Ok(taken)
    }

    /// The jobs after `place`, at most `most` of them and about [`READ_MAX`] bytes, in order, to be published: they are
    /// unsure if that was tried before, also by a process that was killed. One that cannot be read stays where it is,
    /// which is logged.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`].
    pub(super) fn take(&mut self, place: i64, most: usize) -> Result<Vec<Entry>, SpoolError> {
        let mut take = || -> rusqlite::Result<Vec<Entry>> {
            let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let tried: i64 = tx.query_row("SELECT place FROM tried", [], |row| row.get(0))?;
            let mut entries = read_after(&tx, place, most)?;
            for entry in entries.iter_mut().filter(|entry| entry.place <= tried) {
                entry.job.envelope.unsure = true;
            }
            if let Some(last) = entries.last().filter(|last| last.place > tried) {
                tx.execute("UPDATE tried SET place = ?1", params![last.place])?;
            }
            tx.commit()?;
            Ok(entries)
        };
        take().map_err(|error| SpoolError::Unavailable(error.to_string()))
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

    /// When the first job in order was submitted.
    ///
    /// # Errors
    /// [`SpoolError::Unavailable`].
    pub(super) fn oldest(&self) -> Result<Option<Timestamp>, SpoolError> {
        let read = || -> Result<Option<Timestamp>, String> {
            let text = |error: rusqlite::Error| error.to_string();
            let mut select =
                self.db.prepare_cached("SELECT body FROM jobs ORDER BY place LIMIT 1").map_err(text)?;
            let body: Option<String> = select.query_row([], |row| row.get(0)).optional().map_err(text)?;
            let body = body.map(|body| json::read::<Body>(body.as_bytes()));
            Ok(body.transpose()?.and_then(|body| time(body.created_at)))
        };
        read().map_err(SpoolError::Unavailable)
    }
}

fn read_after(db: &Connection, place: i64, most: usize) -> rusqlite::Result<Vec<Entry>> {
    let sql = "SELECT place, id, body, args FROM jobs WHERE place > ?1 ORDER BY place LIMIT ?2";
    let mut select = db.prepare_cached(sql)?;
    let mut rows = select.query(params![place, i64::try_from(most).unwrap_or(i64::MAX)])?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        match read_entry(row) {
            Ok(entry) => {
                bytes += u64::try_from(entry.job.envelope.args.len()).unwrap_or(u64::MAX);
                entries.push(entry);
            }
            Err(error) => error!(error, "a job in the spool cannot be read, and stays there"),
        }
        if bytes >= READ_MAX {
            break;
        }
    }
    Ok(entries)
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

/// The job whose row has this body.
pub(super) fn read_job(id: JobId, body: &str, args: Vec<u8>) -> Result<Submission, String> {
    let body =
        json::read::<Body>(body.as_bytes()).map_err(|error| format!("job {id} cannot be read: {error}"))?;
    Ok(body.into_job(id, args))
}
