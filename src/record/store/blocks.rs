//! Stretches of the list of jobs with the earliest and latest submission in each: what a range of times leaves out.
//!
//! Lists are in the order of the log, which is nearly, but not quite, the order of submission. So a range of times is
//! first narrowed to the stretches that have jobs of these times; their jobs are then compared one by one.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Transaction, params};

use super::StoreError;

/// Jobs in a block. (Small in tests, so that they have several.)
const FULL: i64 = if cfg!(test) { 4 } else { 512 };

#[derive(Debug, Clone, Copy)]
struct Block {
    n: i64,
    low: i64,
    high: i64,
}

/// Blocks that a transaction changes, by the position that they begin at.
#[derive(Default)]
pub(super) struct Blocks {
    changed: BTreeMap<i64, Block>,
    /// Where the last block begins, once that is known.
    last: Option<i64>,
}

impl Blocks {
    /// A job was submitted at `created`; `is_new`: it is heard of for the first time.
    pub(super) fn add(
        &mut self,
        tx: &Transaction<'_>,
        position: i64,
        created: i64,
        is_new: bool,
    ) -> Result<(), StoreError> {
        let start = self.find(tx, position)?;
        let is_last = start.is_some() && start == self.last;
        let known = start.and_then(|start| Some((start, *self.changed.get(&start)?)));
        let (start, block) = match known {
            Some((start, block)) if !(is_new && is_last && block.n >= FULL) => (start, block),
            _ => {
                self.last = self.last.max(Some(position));
                (position, Block { n: 0, low: created, high: created })
            }
        };
        let (low, high) = (block.low.min(created), block.high.max(created));
        self.changed.insert(start, Block { n: block.n + i64::from(is_new), low, high });
        Ok(())
    }

    /// The start of the block that has `position`; the block is among the changed ones then.
    fn find(&mut self, tx: &Transaction<'_>, position: i64) -> Result<Option<i64>, StoreError> {
        if self.last.is_none() {
            self.last = self.load(tx, i64::MAX)?;
        }
        let changed = self.changed.range(..=position).next_back().map(|(start, _)| *start);
        // Most jobs are new ones, and in the last block.
        if changed.is_some() && changed == self.last {
            return Ok(changed);
        }
        let stored = self.load(tx, position)?;
        Ok(changed.max(stored))
    }

    fn load(&mut self, tx: &Transaction<'_>, position: i64) -> Result<Option<i64>, StoreError> {
        let mut select = tx.prepare_cached(
            "SELECT start, n, low, high FROM blocks WHERE start <= ? ORDER BY start DESC LIMIT 1",
        )?;
        let found = select
            .query_row([position], |row| {
                Ok((row.get(0)?, Block { n: row.get(1)?, low: row.get(2)?, high: row.get(3)? }))
            })
            .optional()?;
        let Some((start, block)) = found else { return Ok(None) };
        self.changed.entry(start).or_insert(block);
        Ok(Some(start))
    }

    pub(super) fn write(&self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        let mut put =
            tx.prepare_cached("INSERT OR REPLACE INTO blocks (start, n, low, high) VALUES (?, ?, ?, ?)")?;
        for (start, block) in &self.changed {
            put.execute(params![start, block.n, block.low, block.high])?;
        }
        Ok(())
    }
}

/// Between which positions jobs submitted in `from..to` lie: from the first to below the second. `None`: there are none.
pub(super) fn stretch(
    tx: &Transaction<'_>,
    from: Option<i64>,
    to: Option<i64>,
) -> Result<Option<(i64, i64)>, StoreError> {
    if from.is_none() && to.is_none() {
        return Ok(Some((0, i64::MAX)));
    }
    let (from, to) = (from.unwrap_or(i64::MIN), to.unwrap_or(i64::MAX));
    let end = |order: &str| {
        tx.prepare_cached(&format!(
            "SELECT start FROM blocks WHERE high >= ? AND low < ? ORDER BY start {order} LIMIT 1"
        ))?
        .query_row([from, to], |row| row.get::<_, i64>(0))
        .optional()
    };
    let Some((first, last)) = end("ASC")?.zip(end("DESC")?) else { return Ok(None) };
    let next = tx
        .prepare_cached("SELECT start FROM blocks WHERE start > ? ORDER BY start LIMIT 1")?
        .query_row([last], |row| row.get(0))
        .optional()?;
    Ok(Some((first, next.unwrap_or(i64::MAX))))
}

/// Forgets the blocks before the first job.
pub(super) fn forget(tx: &Transaction<'_>) -> Result<(), StoreError> {
    tx.prepare_cached(
        "DELETE FROM blocks WHERE start < (
             SELECT max(start) FROM blocks WHERE start <= (SELECT coalesce(min(position), 0) FROM jobs))",
    )?
    .execute([])?;
    Ok(())
}
