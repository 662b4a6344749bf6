//! Writing: batches of the log into the tables, one transaction for all of them.
//!
//! The events of a job are gathered over all batches first, so that its row is read and written once, however many of
//! its events came.

use std::{collections::HashMap, iter};

use jiff::Timestamp;
use rusqlite::{CachedStatement, OptionalExtension, Transaction, TransactionBehavior, params};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    Applied, LogBatch, StoreError,
    blocks::Blocks,
    coding,
    file::{Numbers, Writer, class_number},
    row::{HIDDEN, Index, read_row},
};
use crate::{
    event::Event,
    job::JobId,
    record::{fold::Row, rates::Said},
};

/// Applies batches; see [`super::Store::apply`].
pub(super) fn apply(writer: &mut Writer, batches: Vec<LogBatch>) -> Result<Applied, StoreError> {
    let tx = writer.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Numbers that were made in a transaction that fails, or panics, are none.
    let mut classes = std::mem::take(&mut writer.classes);
    let applied = apply_in(&tx, &mut classes, writer.full_block, batches)?;
    tx.commit()?;
    writer.classes = classes;
    Ok(applied)
}

fn apply_in(
    tx: &Transaction<'_>,
    classes: &mut Numbers,
    full_block: i64,
    batches: Vec<LogBatch>,
) -> Result<Applied, StoreError> {
    let mut place = LogPlace::read(tx)?;
    let Gathered { jobs, mut events } = gather(&mut place, batches)?;
    let mut work = Work::new(tx, classes, full_block)?;
    for job in jobs {
        work.take_job(&job, &mut events)?;
    }
    let Work { mut applied, counts, groups, blocks, .. } = work;
    write_sums(tx, &counts, &groups)?;
    blocks.write(tx)?;
    place.write(tx)?;
    applied.tail = coding::unpack(place.tail);
    Ok(applied)
}

/// Where in the log the record is.
struct LogPlace {
    base: u64,
    /// Offset and message id of the last batch.
    last: Option<(u64, String)>,
    tail: i64,
    first: i64,
    clock: i64,
    gap: i64,
    now: i64,
}

impl LogPlace {
    fn read(tx: &Transaction<'_>) -> Result<Self, StoreError> {
        let place =
            tx.query_row("SELECT base, offset, message_id, tail, first, clock, gap FROM meta", [], |row| {
                let offset: Option<i64> = row.get(1)?;
                let message_id: Option<String> = row.get(2)?;
                Ok(Self {
                    base: row.get::<_, i64>(0)?.unsigned_abs(),
                    last: offset.map(i64::unsigned_abs).zip(message_id),
                    tail: row.get(3)?,
                    first: row.get(4)?,
                    clock: row.get(5)?,
                    gap: row.get(6)?,
                    now: Timestamp::now().as_millisecond(),
                })
            })?;
        Ok(place)
    }

    /// Moves over a batch; whether it is the first one behind a gap.
    fn enter(&mut self, offset: u64, message_id: String, last_index: u16) -> Result<bool, StoreError> {
        let position = self.position(offset, 0)?;
        self.tick(written_at(&message_id));
        if self.last.is_none() {
            self.first = self.first.max(position);
        }
        // Nothing is missing before the first record of a log.
        let behind_gap =
            offset > 0 && position == self.first && self.last.as_ref().is_none_or(|(last, _)| *last < offset);
        if self.last.as_ref().is_none_or(|(last, _)| *last <= offset) {
            self.last = Some((offset, message_id));
        }
        self.tail = self.tail.max(self.position(offset, last_index)?);
        Ok(behind_gap)
    }

    fn position(&self, offset: u64, index: u16) -> Result<i64, StoreError> {
        coding::pack(self.base.saturating_add(offset), index)
    }

    /// Moves the log's own time on, to the latest of all times that its batches and events had so far. A clock that runs
    /// ahead of ours moves it no further than ours.
    fn tick(&mut self, time: Option<i64>) -> i64 {
        self.clock = time.map_or(self.clock, |time| self.clock.max(time.min(self.now)));
        self.clock
    }

    fn write(&self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        let (offset, message_id) = self.last.as_ref().map(|(offset, id)| (offset, id.as_str())).unzip();
        tx.prepare_cached(
            "UPDATE meta SET offset = ?, message_id = ?, tail = ?, first = ?, clock = ?, gap = ?",
        )?
        .execute(params![
            offset.map(|offset| offset.cast_signed()),
            message_id,
            self.tail,
            self.first,
            self.clock,
            self.gap
        ])?;
        Ok(())
    }
}

/// When a batch was written, in ms: its message's id is a UUID that has the time in it. Events that are written once
/// more say when they happened and not when that was.
pub(in crate::record) fn written_at(message_id: &str) -> Option<i64> {
    made_at(Uuid::try_parse(message_id).ok()?)
}

/// When a UUID was made, in ms, if that is in it.
pub(super) fn made_at(id: Uuid) -> Option<i64> {
    let time = id.get_timestamp()?;
    let (seconds, nanoseconds) = time.to_unix();
    i64::try_from(seconds.saturating_mul(1000).saturating_add(u64::from(nanoseconds) / 1_000_000)).ok()
}

/// What the batches say, job by job.
struct Gathered {
    jobs: Vec<Told>,
    /// In the order of the log. Events are large, so they lie here, and are not moved to their jobs.
    events: Vec<Placed>,
}

/// What is told of one job.
struct Told {
    id: JobId,
    /// The log's clock at its last event.
    heard: i64,
    /// Where its first and its last event lie among all.
    first: usize,
    last: usize,
}

/// An event of the log.
struct Placed {
    at: i64,
    event: Event,
    /// Where the next one of its job lies.
    next: Option<usize>,
}

fn gather(place: &mut LogPlace, batches: Vec<LogBatch>) -> Result<Gathered, StoreError> {
    let count = batches.iter().map(|batch| batch.events.len()).sum();
    let (mut jobs, mut events): (Vec<Told>, _) = (Vec::new(), Vec::<Placed>::with_capacity(count));
    let mut known: HashMap<JobId, usize> = HashMap::new();
    for LogBatch { offset, message_id, events: batch } in batches {
        let last_index = batch.iter().map(|(index, _)| *index).max().unwrap_or_default();
        let behind_gap = place.enter(offset, message_id, last_index)?;
        for (index, event) in batch {
            let at = place.position(offset, index)?;
            let heard = place.tick(Some(event.time.as_millisecond()));
            let (id, number) = (event.job, events.len());
            events.push(Placed { at, event, next: None });
            let slot = *known.entry(id).or_insert(jobs.len());
            match jobs.get_mut(slot) {
                Some(job) => {
                    events[job.last].next = Some(number);
                    (job.heard, job.last) = (heard, number);
                }
                None => jobs.push(Told { id, heard, first: number, last: number }),
            }
        }
        if behind_gap {
            place.gap = place.clock;
        }
    }
    Ok(Gathered { jobs, events })
}

/// A job as it is stored.
struct Known {
    position: i64,
    index: Index,
    row: Row,
}

/// New args or output of a job: to be written, or (none) to be removed.
type Change = Option<Option<Box<RawValue>>>;

/// One call's work: its statements, and what it adds up.
struct Work<'a> {
    tx: &'a Transaction<'a>,
    classes: &'a mut Numbers,
    select_job: CachedStatement<'a>,
    insert_job: CachedStatement<'a>,
    update_job: CachedStatement<'a>,
    insert_event: CachedStatement<'a>,
    applied: Applied,
    /// Changes of `counts` by class and state.
    counts: HashMap<(i64, u8), i64>,
    /// Changes of `dead_groups` by class and fingerprint.
    groups: HashMap<(i64, i64), i64>,
    blocks: Blocks,
}

impl<'a> Work<'a> {
    fn new(tx: &'a Transaction<'a>, classes: &'a mut Numbers, full_block: i64) -> Result<Self, StoreError> {
        Ok(Self {
            tx,
            classes,
            select_job: tx.prepare_cached(
                "SELECT position, class, state, at, ended, failed, fingerprint, died, created, body
                 FROM jobs WHERE id = ?",
            )?,
            insert_job: tx.prepare_cached(
                "INSERT INTO jobs (position, id, heard, class, state, at, ended, failed, fingerprint, died, created, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?,
            update_job: tx.prepare_cached(
                "UPDATE jobs SET heard = ?2, class = ?3, state = ?4, at = ?5, ended = ?6, failed = ?7,
                 fingerprint = ?8, died = ?9, created = ?10, body = ?11 WHERE position = ?1",
            )?,
            insert_event: tx.prepare_cached(
                "INSERT INTO events (position, job, class, what, run, step, extra, time, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (job, what, run, step, extra) DO NOTHING",
            )?,
            applied: Applied::default(),
            counts: HashMap::new(),
            groups: HashMap::new(),
            blocks: Blocks::new(full_block),
        })
    }

    fn take_job(&mut self, told: &Told, events: &mut [Placed]) -> Result<(), StoreError> {
        let known = self.known(told.id)?;
        let before = known.as_ref().map(|known| known.row.clone());
        let (position, index, mut row) = match known {
            Some(Known { position, index, row }) => (position, Some(index), row),
            // A job that nobody has heard of lies where its first event does.
            None => (earliest(told, events), None, Row::default()),
        };
        let (mut args, mut output): (Change, Change) = (None, None);
        let mut next = Some(told.first);
        while let Some(number) = next {
            let Placed { at, event, next: following } = &mut events[number];
            next = *following;
            let merged = row.merge(event);
            if self.store_event(*at, position, event)? {
                self.applied.news.push((coding::unpack(*at), Said::of(event)));
            }
            if merged.args {
                args = Some(event.data.args.take());
            }
            if merged.output {
                output = Some(event.data.output.take());
            }
        }
        self.store_payload("args", position, before.is_none(), args)?;
        self.store_payload("outputs", position, before.is_none(), output)?;
        self.store_row(told.id, position, told.heard, before.as_ref().zip(index), &row)
    }

    fn known(&mut self, id: JobId) -> Result<Option<Known>, StoreError> {
        let mut rows = self.select_job.query(params![id.as_bytes()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let index = Index {
            class: row.get(1)?,
            state: row.get(2)?,
            at: row.get(3)?,
            ended: row.get(4)?,
            failed: row.get(5)?,
            fingerprint: row.get(6)?,
            died: row.get(7)?,
            created: row.get(8)?,
        };
        let body = row.get_ref(9)?.as_str().map_err(rusqlite::Error::from)?;
        Ok(Some(Known { position: row.get(0)?, index, row: read_row(body)? }))
    }

    /// Stores an event unless a copy of it is there; whether it is new. Of twins that share a place but say different
    /// things the greater one stays, whichever came first.
    fn store_event(&mut self, at: i64, job: i64, event: &Event) -> Result<bool, StoreError> {
        // The decoder lets no event pass that has no queue.
        let Some(queue) = &event.data.queue else { return Ok(false) };
        let class = class_number(self.tx, self.classes, queue, &event.data.kind)?;
        let key = coding::key(event);
        let (time, body) = (event.time.as_millisecond(), coding::encode(event, &key));
        let inserted = self
            .insert_event
            .execute(params![at, job, class, key.what, key.run, key.step, key.extra, time, body])?;
        if inserted == 0 {
            self.tx
                .prepare_cached(
                    "UPDATE events SET class = ?6, time = ?7, body = ?8
                     WHERE job = ?1 AND what = ?2 AND run = ?3 AND step = ?4 AND extra = ?5
                     AND (time, body, class) < (?7, ?8, ?6)",
                )?
                .execute(params![job, key.what, key.run, key.step, key.extra, class, time, body])?;
        }
        Ok(inserted > 0)
    }

    fn store_payload(
        &mut self,
        table: &str,
        job: i64,
        is_new: bool,
        change: Change,
    ) -> Result<(), StoreError> {
        match change {
            None => {}
            Some(Some(value)) => {
                let otherwise = if is_new { "" } else { "ON CONFLICT DO UPDATE SET body = excluded.body" };
                self.tx
                    .prepare_cached(&format!("INSERT INTO {table} (job, body) VALUES (?, ?) {otherwise}"))?
                    .execute(params![job, value.get()])?;
            }
            Some(None) => {
                self.tx.prepare_cached(&format!("DELETE FROM {table} WHERE job = ?"))?.execute([job])?;
            }
        }
        Ok(())
    }

    fn store_row(
        &mut self,
        id: JobId,
        position: i64,
        heard: i64,
        before: Option<(&Row, Index)>,
        row: &Row,
    ) -> Result<(), StoreError> {
        self.applied.changed.push(id);
        if let Some((old, index)) = &before
            && *old == row
        {
            return self.store_heard(position, heard, index);
        }
        let class = match row.queue() {
            Some(queue) => class_number(self.tx, self.classes, queue, &row.kind().cloned())?,
            None => 0,
        };
        let index = Index::of(row, class, heard);
        let body = serde_json::to_string(row)
            .map_err(|error| StoreError::Corrupt(format!("a row cannot be written: {error}")))?;
        if before.is_some() {
            self.update_job.execute(params![
                position,
                heard,
                index.class,
                index.state,
                index.at,
                index.ended,
                index.failed,
                index.fingerprint,
                index.died,
                index.created,
                body
            ])?;
        } else {
            self.insert_job.execute(params![
                position,
                id.as_bytes(),
                heard,
                index.class,
                index.state,
                index.at,
                index.ended,
                index.failed,
                index.fingerprint,
                index.died,
                index.created,
                body
            ])?;
        }
        self.store_beside(position, before.as_ref().map(|(old, _)| *old), row)?;
        if before.as_ref().is_none_or(|(_, old)| old.created != index.created) {
            self.blocks.add(self.tx, position, index.created, before.is_none())?;
        }
        self.add_up(id, before, row, &index);
        Ok(())
    }

    /// Copies say nothing new, but that the log still tells of the job.
    fn store_heard(&mut self, position: i64, heard: i64, index: &Index) -> Result<(), StoreError> {
        if index.state < super::row::FIRST_FINAL || index.died.is_some() {
            self.tx
                .prepare_cached("UPDATE jobs SET heard = ? WHERE position = ?")?
                .execute([heard, position])?;
        }
        Ok(())
    }

    /// Tags and searchable text.
    fn store_beside(&mut self, position: i64, before: Option<&Row>, row: &Row) -> Result<(), StoreError> {
        let (old_tags, tags) = (before.map(Row::tags).unwrap_or_default(), row.tags());
        if old_tags != tags {
            for tag in old_tags {
                self.tx
                    .prepare_cached("DELETE FROM tags WHERE tag = ? AND position = ?")?
                    .execute(params![tag, position])?;
            }
            for tag in tags {
                self.tx
                    .prepare_cached("INSERT OR IGNORE INTO tags (tag, position) VALUES (?, ?)")?
                    .execute(params![tag, position])?;
            }
        }
        let (old_error, error) = (before.and_then(Row::error), row.error());
        if old_error != error {
            if old_error.is_some() {
                self.tx.prepare_cached("DELETE FROM search WHERE rowid = ?")?.execute([position])?;
            }
            if let Some(error) = error {
                self.tx
                    .prepare_cached("INSERT INTO search (rowid, text) VALUES (?, ?)")?
                    .execute(params![position, super::list::searchable(error)])?;
            }
        }
        Ok(())
    }

    fn add_up(&mut self, id: JobId, before: Option<(&Row, Index)>, row: &Row, index: &Index) {
        if index.state >= super::row::FIRST_FINAL && index.state != HIDDEN {
            let same = |(old, known): &(&Row, Index)| known.state == index.state && old.run() == row.run();
            if !before.as_ref().is_some_and(same) {
                self.applied.ended.push(id);
            }
        }
        let old = before.map(|(_, index)| index);
        for (known, by) in [(old.as_ref(), -1), (Some(index), 1)] {
            let Some(known) = known else { continue };
            if known.state != HIDDEN {
                *self.counts.entry((known.class, known.state)).or_default() += by;
            }
            if let (Some(fingerprint), Some(_)) = (known.fingerprint, known.died) {
                *self.groups.entry((known.class, fingerprint)).or_default() += by;
            }
        }
    }
}

/// Where the first event of a job lies. Batches may come in any order.
fn earliest(told: &Told, events: &[Placed]) -> i64 {
    let each = iter::successors(events.get(told.first), |placed| events.get(placed.next?));
    each.map(|placed| placed.at).min().unwrap_or_default()
}

/// Adds to the tables that are sums over others.
pub(super) fn write_sums(
    tx: &Transaction<'_>,
    counts: &HashMap<(i64, u8), i64>,
    groups: &HashMap<(i64, i64), i64>,
) -> Result<(), StoreError> {
    let mut add = tx.prepare_cached(
        "INSERT INTO counts (class, state, n) VALUES (?, ?, ?)
         ON CONFLICT (class, state) DO UPDATE SET n = n + excluded.n",
    )?;
    for ((class, state), by) in counts.iter().filter(|(_, by)| **by != 0) {
        add.execute(params![class, state, by])?;
    }
    let mut add = tx.prepare_cached(
        "INSERT INTO dead_groups (class, fingerprint, n) VALUES (?1, ?2, ?3)
         ON CONFLICT (class, fingerprint) DO UPDATE SET n = n + excluded.n RETURNING n",
    )?;
    let mut remove = tx.prepare_cached("DELETE FROM dead_groups WHERE class = ? AND fingerprint = ?")?;
    for ((class, fingerprint), by) in groups.iter().filter(|(_, by)| **by != 0) {
        let left: i64 = add.query_row(params![class, fingerprint, by], |row| row.get(0))?;
        if left <= 0 {
            remove.execute([class, fingerprint])?;
        }
    }
    Ok(())
}

/// The position and the row of a job.
pub(super) fn find_job(tx: &Transaction<'_>, id: JobId) -> Result<Option<(i64, Row)>, StoreError> {
    let found: Option<(i64, String)> = tx
        .prepare_cached("SELECT position, body FROM jobs WHERE id = ?")?
        .query_row(params![id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    found.map(|(position, body)| Ok((position, read_row(&body)?))).transpose()
}
