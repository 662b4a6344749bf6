//! Answers about events: of a job, of a scope, and those that tell a job once more.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Row as SqlRow, Transaction, params};

use super::{
    StoreError,
    apply::find_job,
    coding,
    file::{Class, class_of},
    read::payload,
    row::read_row,
};
use crate::{
    event::{Event, EventType},
    job::JobId,
    record::{
        fold::Row,
        model::{Position, Scope, StoredEvent, Stretch},
    },
};

/// Most events that [`job_events`] gives.
const EVENTS_MAX: usize = 10_000;
/// Most events that one call of [`events`] looks at.
const LOOKED_MAX: usize = 10_000;
/// Most events that tell a job again.
const SNAPSHOT_MAX: usize = 100;

type Classes = HashMap<i64, Class>;

/// The newest events of one type of a job, by run and step.
pub(super) fn events_of(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    id: JobId,
    job: i64,
    what: EventType,
    limit: usize,
) -> Result<Vec<(StoredEvent, bool)>, StoreError> {
    let mut select = tx.prepare_cached(
        "SELECT position, class, what, run, step, time, body FROM events WHERE job = ? AND what = ?
         ORDER BY run DESC, step DESC, extra DESC LIMIT ?",
    )?;
    let mut rows = select.query(params![job, what as u8, coding::rows(limit)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read_event(tx, classes, id, row)?);
    }
    Ok(found)
}

/// The event in the columns position, class, what, run, step, time, body; and whether it had args.
pub(super) fn read_event(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    job: JobId,
    row: &SqlRow<'_>,
) -> Result<(StoredEvent, bool), StoreError> {
    let (queue, kind) = class_of(tx, classes, row.get(1)?)?;
    let (event, had_args) = coding::decode(coding::Columns {
        job,
        queue: Some(queue),
        kind,
        what: row.get(2)?,
        run: row.get(3)?,
        step: row.get(4)?,
        time: row.get(5)?,
        body: row.get_ref(6)?.as_str().map_err(rusqlite::Error::from)?,
    })?;
    Ok((StoredEvent { position: coding::unpack(row.get(0)?), event }, had_args))
}

/// All events of a job; see [`super::Store::job_events`].
pub(super) fn job_events(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    id: JobId,
) -> Result<Vec<StoredEvent>, StoreError> {
    let Some((job, _)) = find_job(tx, id)? else { return Ok(Vec::new()) };
    let mut events: Vec<StoredEvent> = Vec::new();
    // Progress comes last: what there is no room for is the oldest of that, and not the job's beginning.
    let others = EventType::ALL.into_iter().filter(|what| *what != EventType::Progress);
    for what in others.chain([EventType::Progress]) {
        let room = match what {
            EventType::Progress => EVENTS_MAX.saturating_sub(events.len()),
            _ => EVENTS_MAX,
        };
        events.extend(events_of(tx, classes, id, job, what, room)?.into_iter().map(|(stored, _)| stored));
    }
    events.sort_by_cached_key(|stored| (stored.event.rank(), stored.position));
    let skipped = events.len().saturating_sub(EVENTS_MAX);
    Ok(events.split_off(skipped))
}

/// Events of `scope`; see [`super::Store::events`].
pub(super) fn events(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    scope: &Scope,
    after: Position,
    limit: usize,
) -> Result<Stretch, StoreError> {
    let after = coding::pack_given(after);
    let (tail, first): (i64, i64) =
        tx.query_row("SELECT tail, first FROM meta", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let stretch = |events, searched| Stretch {
        events,
        searched: coding::unpack(searched),
        first: coding::unpack(first),
        tail: coding::unpack(tail),
    };
    let job = match scope.job {
        Some(id) => match find_job(tx, id)? {
            Some((job, _)) => Some(job),
            None => return Ok(stretch(Vec::new(), tail.max(after))),
        },
        None => None,
    };
    let mut select = tx.prepare_cached(if job.is_some() {
        "SELECT position, class, what, run, step, time, body, job FROM events INDEXED BY events_job
         WHERE position > ?1 AND job = ?2 ORDER BY position LIMIT ?3"
    } else {
        "SELECT position, class, what, run, step, time, body, job FROM events
         WHERE position > ?1 AND ?2 IS NULL ORDER BY position LIMIT ?3"
    })?;
    let mut rows = select.query(params![after, job, coding::rows(LOOKED_MAX)])?;
    let (mut found, mut looked, mut last) = (Vec::new(), 0, after);
    while let Some(row) = rows.next()? {
        if found.len() >= limit {
            return Ok(stretch(found, last));
        }
        (looked, last) = (looked + 1, row.get(0)?);
        if in_scope(tx, classes, scope, row)? {
            let id = match scope.job {
                Some(id) => id,
                None => id_of(tx, row.get(7)?)?,
            };
            found.push(read_event(tx, classes, id, row)?.0);
        }
    }
    // Else everything that is known was searched.
    let searched = if looked >= LOOKED_MAX { last } else { tail.max(after) };
    Ok(stretch(found, searched))
}

fn in_scope(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    scope: &Scope,
    row: &SqlRow<'_>,
) -> Result<bool, StoreError> {
    if scope.queue.is_some() || scope.kind.is_some() {
        let (queue, kind) = class_of(tx, classes, row.get(1)?)?;
        if scope.queue.as_ref().is_some_and(|wanted| *wanted != queue)
            || scope.kind.as_ref().is_some_and(|wanted| Some(wanted) != kind.as_ref())
        {
            return Ok(false);
        }
    }
    let Some(tag) = &scope.tag else { return Ok(true) };
    // The job's tags, not the event's: not every writer of an event knows them.
    let mut select = tx.prepare_cached("SELECT 1 FROM tags WHERE tag = ? AND position = ?")?;
    Ok(select.exists(params![tag, row.get::<_, i64>(7)?])?)
}

fn id_of(tx: &Transaction<'_>, position: i64) -> Result<JobId, StoreError> {
    let id = tx
        .prepare_cached("SELECT id FROM jobs WHERE position = ?")?
        .query_row([position], |row| row.get(0))?;
    Ok(JobId::from_bytes(id))
}

/// Jobs that the log has not told of for long; see [`super::Store::stale`].
pub(super) fn stale(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    before: Timestamp,
    limit: usize,
) -> Result<Vec<(JobId, Vec<Event>)>, StoreError> {
    // One that was not heard of since a gap may have ended in it.
    let mut jobs = Vec::new();
    for which in ["jobs_live WHERE state < 4", "jobs_dead WHERE died IS NOT NULL"] {
        let mut select = tx.prepare_cached(&format!(
            "SELECT id, position, body FROM jobs INDEXED BY {which}
             AND heard < ? AND heard >= (SELECT gap FROM meta) LIMIT ?"
        ))?;
        let mut rows = select.query(params![before.as_millisecond(), coding::rows(limit - jobs.len())])?;
        while let Some(row) = rows.next()? {
            let (id, job) = (JobId::from_bytes(row.get(0)?), row.get(1)?);
            let body = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
            jobs.push((id, snapshot(tx, classes, id, job, &read_row(body)?)?));
        }
    }
    Ok(jobs)
}

/// The events that tell a job's record once more, the newest of them, but always the one with its args.
fn snapshot(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    id: JobId,
    job: i64,
    row: &Row,
) -> Result<Vec<Event>, StoreError> {
    let mut told = Vec::new();
    for what in EventType::ALL {
        let limit = if what == EventType::Progress { 1 } else { SNAPSHOT_MAX };
        told.extend(events_of(tx, classes, id, job, what, limit)?);
    }
    told.sort_by_cached_key(|(stored, _)| stored.event.rank());
    let (args, _) = payload(tx, "args", job, row.args())?;
    let args_run = row.args().map(|slot| slot.run);
    let bearer =
        told.iter().position(|(stored, had_args)| *had_args && Some(stored.event.data.run) == args_run);
    let mut events = Vec::with_capacity(told.len().min(SNAPSHOT_MAX));
    let skipped = told.len().saturating_sub(SNAPSHOT_MAX - 1);
    for (number, (stored, _)) in told.into_iter().enumerate() {
        let is_bearer = bearer == Some(number);
        if number < skipped && !is_bearer {
            continue;
        }
        let mut event = stored.event;
        if is_bearer && let Some(args) = &args {
            event.data.args_omitted = false;
            event.data.args = Some(args.clone());
        }
        events.push(event);
    }
    Ok(events)
}
