//! What the file needs from time to time: jobs come due, old ones go.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use rusqlite::{Transaction, TransactionBehavior, params};

use super::{
    StoreError,
    apply::write_sums,
    blocks, coding,
    file::Writer,
    row::{HIDDEN, read_row},
};
use crate::record::{fold::Row, model::JobStatus};

/// Brings jobs whose time has come to `queued`; see [`super::Store::promote`].
pub(super) fn promote(writer: &mut Writer, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
    let tx = writer.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let promoted = promote_in(&tx, now, limit)?;
    tx.commit()?;
    Ok(promoted)
}

fn promote_in(tx: &Transaction<'_>, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
    let mut streams = tx.prepare_cached("SELECT class, state FROM counts WHERE state IN (?, ?) AND n > 0")?;
    let streams = streams
        .query_map([JobStatus::Scheduled as u8, JobStatus::Retrying as u8], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<Result<Vec<(i64, u8)>, _>>()?;
    let mut select = tx.prepare_cached(
        "SELECT position FROM jobs INDEXED BY jobs_live
         WHERE state < 4 AND class = ? AND state = ? AND at <= ? ORDER BY at LIMIT ?",
    )?;
    let mut update = tx.prepare_cached("UPDATE jobs SET state = ? WHERE position = ?")?;
    let mut promoted = 0;
    let mut counts: HashMap<(i64, u8), i64> = HashMap::new();
    for (class, state) in streams {
        let due = select
            .query_map(params![class, state, now.as_millisecond(), coding::rows(limit - promoted)], |row| {
                row.get(0)
            })?
            .collect::<Result<Vec<i64>, _>>()?;
        for position in &due {
            update.execute(params![JobStatus::Queued as u8, position])?;
            *counts.entry((class, state)).or_default() -= 1;
            *counts.entry((class, JobStatus::Queued as u8)).or_default() += 1;
        }
        promoted += due.len();
    }
    write_sums(tx, &counts, &HashMap::new())?;
    Ok(promoted)
}

/// Deletes jobs that ended long ago; see [`super::Store::expire`].
pub(super) fn expire(
    writer: &mut Writer,
    now: Timestamp,
    retention: Duration,
    limit: usize,
) -> Result<usize, StoreError> {
    let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    let before = now.as_millisecond().saturating_sub(retention);
    let tx = writer.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let expired = expire_in(&tx, before, limit)?;
    if expired < limit {
        forget_counts(&tx)?;
    }
    tx.commit()?;
    Ok(expired)
}

fn expire_in(tx: &Transaction<'_>, before: i64, limit: usize) -> Result<usize, StoreError> {
    let mut select = tx.prepare_cached(
        "SELECT position, class, state, body FROM jobs INDEXED BY jobs_ended
         WHERE ended IS NOT NULL AND ended < ? ORDER BY ended LIMIT ?",
    )?;
    let old = select
        .query_map(params![before, coding::rows(limit)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?
        .collect::<Result<Vec<(i64, i64, u8, String)>, _>>()?;
    let (mut counts, mut last) = (HashMap::new(), 0);
    for (position, class, state, body) in &old {
        last = delete(tx, *position, &read_row(body)?)?.max(last);
        if *state != HIDDEN {
            *counts.entry((*class, *state)).or_default() -= 1;
        }
    }
    write_sums(tx, &counts, &HashMap::new())?;
    if !old.is_empty() {
        // Between the events that are left some are missing now, up to the last one deleted.
        tx.prepare_cached("UPDATE meta SET first = max(first, ?)")?.execute([last + 1])?;
        blocks::forget(tx)?;
    }
    Ok(old.len())
}

/// Deletes counts of nothing: lists and counts look at all of them, and there is one for each queue, kind and state that
/// ever was. The class itself stays: events of jobs that have another class by now may name it.
fn forget_counts(tx: &Transaction<'_>) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM counts WHERE n = 0")?.execute([])?;
    Ok(())
}

/// Deletes all that is known of a job; the position of its last event.
fn delete(tx: &Transaction<'_>, position: i64, row: &Row) -> Result<i64, StoreError> {
    let mut last = position;
    {
        let mut events = tx.prepare_cached("DELETE FROM events WHERE job = ? RETURNING position")?;
        let mut rows = events.query([position])?;
        while let Some(row) = rows.next()? {
            last = last.max(row.get(0)?);
        }
    }
    for tag in row.tags() {
        tx.prepare_cached("DELETE FROM tags WHERE tag = ? AND position = ?")?
            .execute(params![tag, position])?;
    }
    if row.error().is_some() {
        tx.prepare_cached("DELETE FROM search WHERE rowid = ?")?.execute([position])?;
    }
    for table in ["args", "outputs"] {
        tx.prepare_cached(&format!("DELETE FROM {table} WHERE job = ?"))?.execute([position])?;
    }
    tx.prepare_cached("DELETE FROM jobs WHERE position = ?")?.execute([position])?;
    Ok(last)
}
