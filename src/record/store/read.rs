//! Answers about one job and about queues.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    Ended, Found, StoreError,
    apply::{find_job, made_at},
    coding,
    events::{events_of, read_event},
    file::{Class, read_class},
    list::count_due,
    row::{read_row, status_of, unpack_fingerprint},
};
use crate::{
    event::EventType,
    job::{JobId, Kind, QueueName},
    record::{
        fold::{Row, Slot, attempts},
        model::{ATTEMPTS_MAX, Counts, Group, JobRecord, JobStatus, QueueRecord, Summary},
    },
};

/// Most groups of dead jobs.
const GROUPS_MAX: usize = 1000;
/// Most events of a type that tell how a run went that is not the newest.
const TOLD_MAX: usize = 100;

type Classes = HashMap<i64, Class>;

/// A job's record.
pub(super) fn job(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    id: JobId,
    now: Timestamp,
) -> Result<Option<JobRecord>, StoreError> {
    let Some((position, row)) = find_job(tx, id)? else { return Ok(None) };
    let Some(summary) = row.summary(id, coding::unpack(position), now) else { return Ok(None) };
    let succeeded = summary.status == JobStatus::Succeeded;
    let output = row.output(summary.run).filter(|_| succeeded);
    let (output, output_omitted) = payload(tx, "outputs", position, output)?;
    let (args, args_omitted) = payload(tx, "args", position, row.args())?;
    let mut told = Vec::new();
    for what in EventType::ALL.into_iter().filter(|what| may_tell_attempts(*what)) {
        told.extend(events_of(tx, classes, id, position, what, ATTEMPTS_MAX)?);
    }
    let attempts = attempts(told.iter().map(|(stored, _)| &stored.event));
    let progress = row.progress();
    let trace_id = row.trace_id().map(str::to_owned);
    Ok(Some(JobRecord { summary, args, args_omitted, output, output_omitted, attempts, progress, trace_id }))
}

fn may_tell_attempts(what: EventType) -> bool {
    what.moves() && what != EventType::Submitted
}

/// The args or the output that a slot tells of, and whether they were left out.
pub(super) fn payload(
    tx: &Transaction<'_>,
    table: &str,
    job: i64,
    slot: Option<Slot>,
) -> Result<(Option<Box<RawValue>>, bool), StoreError> {
    let Some(slot) = slot else { return Ok((None, false)) };
    if !slot.kept {
        return Ok((None, true));
    }
    let text: String = tx
        .prepare_cached(&format!("SELECT body FROM {table} WHERE job = ?"))?
        .query_row([job], |row| row.get(0))?;
    let value = RawValue::from_string(text)
        .map_err(|error| StoreError::Corrupt(format!("{table} that are no JSON: {error}")))?;
    Ok((Some(value), false))
}

/// What is known of runs; see [`super::Store::lookup`].
pub(super) fn lookup(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    asked: &[(JobId, u32)],
    now: Timestamp,
) -> Result<Vec<Found>, StoreError> {
    let gap = tx.query_row("SELECT gap FROM meta", [], |row| row.get(0))?;
    asked.iter().map(|(id, run)| look_up(tx, classes, *id, *run, gap, now)).collect()
}

fn look_up(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    id: JobId,
    run: u32,
    gap: i64,
    now: Timestamp,
) -> Result<Found, StoreError> {
    // A job from before a gap may have ended in it.
    let is_behind = |created: i64| gap == 0 || created >= gap;
    let Some((position, row)) = find_job(tx, id)? else {
        let sure = made_at(Uuid::from_bytes(*id.as_bytes())).map_or(gap == 0, is_behind);
        return Ok(Found { sure, ..Found::default() });
    };
    let latest_run = row.run();
    let sure = is_behind(row.created()) || latest_run > run;
    let row = if latest_run == run { row } else { fold_run(tx, classes, id, position, run)? };
    let mut found = Found { latest_run, step: row.step(run), cancel: row.cancel(run), end: None, sure };
    if row.run() != run {
        return Ok(found);
    }
    let Some(summary) = row.summary(id, coding::unpack(position), now) else { return Ok(found) };
    if summary.status.is_final() {
        (found.end, found.sure) = (Some(end(tx, position, run, summary)?), true);
    }
    Ok(found)
}

/// What a run that is not the newest came to, from its events.
fn fold_run(
    tx: &Transaction<'_>,
    classes: &mut Classes,
    id: JobId,
    job: i64,
    run: u32,
) -> Result<Row, StoreError> {
    let mut row = Row::default();
    let mut select = tx.prepare_cached(
        "SELECT position, class, what, run, step, time, body FROM events
         WHERE job = ?1 AND what = ?2 AND run = ?3 ORDER BY step DESC LIMIT ?4",
    )?;
    for what in EventType::ALL.into_iter().filter(|what| *what != EventType::Progress) {
        let mut rows = select.query(params![job, what as u8, run, coding::rows(TOLD_MAX)])?;
        while let Some(found) = rows.next()? {
            row.merge(&read_event(tx, classes, id, found)?.0.event);
        }
    }
    Ok(row)
}

fn end(tx: &Transaction<'_>, job: i64, run: u32, summary: Summary) -> Result<Ended, StoreError> {
    // The slot of the stored row: a fold of events without outputs does not know which one is kept.
    let slot = match find_job(tx, summary.id)? {
        Some((_, row)) if summary.status == JobStatus::Succeeded => row.output(run),
        _ => None,
    };
    let (output, output_omitted) = payload(tx, "outputs", job, slot)?;
    let lost_to_newer_run = summary.status == JobStatus::Succeeded && slot.is_none();
    Ok(Ended {
        status: summary.status,
        attempt: summary.attempt,
        worker: summary.worker,
        reason: summary.reason,
        error: summary.error,
        output,
        output_omitted: output_omitted || lost_to_newer_run,
        started_at: summary.started_at,
        finished_at: summary.finished_at,
    })
}

/// Counts; see [`super::Store::counts`].
pub(super) fn counts(
    tx: &Transaction<'_>,
    queue: Option<&QueueName>,
    now: Timestamp,
) -> Result<Counts, StoreError> {
    let mut sum = Counts::default();
    each_count(tx, queue, now, |_, _, counts| {
        for (sum, n) in sum.by_status.iter_mut().zip(counts.by_status) {
            *sum += n;
        }
        Ok(())
    })?;
    Ok(sum)
}

/// The counts of each class and stored state, with what has come due moved to `queued`.
fn each_count(
    tx: &Transaction<'_>,
    queue: Option<&QueueName>,
    now: Timestamp,
    mut take: impl FnMut(i64, &str, Counts) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut select = tx.prepare_cached(
        "SELECT class, queue, state, n FROM counts JOIN classes ON id = class WHERE ?1 IS NULL OR queue = ?1",
    )?;
    let mut rows = select.query([queue.map(QueueName::as_str)])?;
    while let Some(row) = rows.next()? {
        let (class, state, n): (i64, u8, i64) = (row.get(0)?, row.get(2)?, row.get(3)?);
        let queue = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        let Some(status) = status_of(state) else { continue };
        let n = n.unsigned_abs();
        let may_be_due = matches!(status, JobStatus::Scheduled | JobStatus::Retrying) && n > 0;
        let due = if may_be_due { count_due(tx, class, state, now)?.min(n) } else { 0 };
        let mut counts = Counts::default();
        counts.by_status[status as usize] = n - due;
        counts.by_status[JobStatus::Queued as usize] += due;
        take(class, queue, counts)?;
    }
    Ok(())
}

/// Queues; see [`super::Store::queues`].
pub(super) fn queues(
    tx: &Transaction<'_>,
    now: Timestamp,
) -> Result<BTreeMap<QueueName, QueueRecord>, StoreError> {
    let mut queues: BTreeMap<QueueName, QueueRecord> = BTreeMap::new();
    let mut waiting: BTreeMap<i64, QueueName> = BTreeMap::new();
    each_count(tx, None, now, |class, queue, counts| {
        let (queue, _) = read_class(queue.to_owned(), String::new())?;
        if counts.of(JobStatus::Queued) > 0 {
            waiting.insert(class, queue.clone());
        }
        let sum = &mut queues.entry(queue).or_default().counts.by_status;
        for (sum, n) in sum.iter_mut().zip(counts.by_status) {
            *sum += n;
        }
        Ok(())
    })?;
    for (class, queue) in waiting {
        let oldest = oldest_queued(tx, class, now)?.map(coding::time).transpose()?;
        let known = &mut queues.entry(queue).or_default().oldest_queued_at;
        *known = known.iter().copied().chain(oldest).min();
    }
    Ok(queues)
}

fn oldest_queued(tx: &Transaction<'_>, class: i64, now: Timestamp) -> Result<Option<i64>, StoreError> {
    let mut select = tx.prepare_cached(
        "SELECT at FROM jobs INDEXED BY jobs_live WHERE state < 4 AND class = ? AND state = ? AND at <= ?
         ORDER BY at LIMIT 1",
    )?;
    let mut oldest: Option<i64> = None;
    for status in [JobStatus::Scheduled, JobStatus::Queued, JobStatus::Retrying] {
        // A queued job is queued, whatever its writer's clock says.
        let until = if status == JobStatus::Queued { i64::MAX } else { now.as_millisecond() };
        let at = select.query_row(params![class, status as u8, until], |row| row.get(0)).optional()?;
        oldest = oldest.into_iter().chain(at).min();
    }
    Ok(oldest)
}

/// Groups of dead jobs; see [`super::Store::groups`].
pub(super) fn groups(tx: &Transaction<'_>, queue: &QueueName) -> Result<Vec<Group>, StoreError> {
    let mut select = tx.prepare_cached(
        "SELECT class, fingerprint, n, kind FROM dead_groups JOIN classes ON id = class
         WHERE queue = ? ORDER BY n DESC, class, fingerprint LIMIT ?",
    )?;
    let mut rows = select.query(params![queue.as_str(), coding::rows(GROUPS_MAX)])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let (class, fingerprint, n): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (_, kind) = read_class(queue.to_string(), row.get(3)?)?;
        groups.extend(group(tx, class, fingerprint, n.unsigned_abs(), kind)?);
    }
    Ok(groups)
}

fn group(
    tx: &Transaction<'_>,
    class: i64,
    fingerprint: i64,
    count: u64,
    kind: Option<Kind>,
) -> Result<Option<Group>, StoreError> {
    let mut first = tx.prepare_cached(
        "SELECT died FROM jobs INDEXED BY jobs_group WHERE died IS NOT NULL AND class = ? AND fingerprint = ?
         ORDER BY died LIMIT 1",
    )?;
    let mut latest = tx.prepare_cached(
        "SELECT died, position, id, body FROM jobs INDEXED BY jobs_group
         WHERE died IS NOT NULL AND class = ? AND fingerprint = ? ORDER BY died DESC, position DESC LIMIT 1",
    )?;
    let first: Option<i64> = first.query_row([class, fingerprint], |row| row.get(0)).optional()?;
    let mut rows = latest.query([class, fingerprint])?;
    let (Some(first), Some(row)) = (first, rows.next()?) else { return Ok(None) };
    let last: i64 = row.get(0)?;
    let body = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?;
    let (id, position) = (JobId::from_bytes(row.get(2)?), coding::unpack(row.get(1)?));
    let Some(newest) = read_row(body)?.summary(id, position, Timestamp::UNIX_EPOCH) else { return Ok(None) };
    let reason = newest.reason.unwrap_or_default();
    let (code, message) = match newest.error {
        Some(error) => (error.code, error.message),
        None => (reason.clone(), String::new()),
    };
    Ok(Some(Group {
        fingerprint: unpack_fingerprint(fingerprint),
        kind,
        code,
        reason,
        message,
        count,
        first_at: Some(coding::time(first)?),
        last_at: Some(coding::time(last)?),
        latest: id,
    }))
}

/// Jobs that wait, or run without news; see [`super::Store::waiting_since`].
pub(super) fn waiting_since(
    tx: &Transaction<'_>,
    queue: &QueueName,
    before: Timestamp,
    connected: Timestamp,
    limit: usize,
    now: Timestamp,
) -> Result<Vec<Summary>, StoreError> {
    let mut streams = tx.prepare_cached(
        "SELECT class, state FROM counts JOIN classes ON id = class WHERE queue = ? AND state < 4 AND n > 0",
    )?;
    let streams = streams
        .query_map([queue.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(i64, u8)>, _>>()?;
    let mut select = tx.prepare_cached(
        "SELECT at, position FROM jobs INDEXED BY jobs_live
         WHERE state < 4 AND class = ?1 AND state = ?2 AND at < ?3 AND heard >= (SELECT gap FROM meta)
         AND (state = ?5 OR created >= ?6 OR ?6 + at - created < ?3)
         ORDER BY at LIMIT ?4",
    )?;
    let mut found: Vec<(i64, i64)> = Vec::new();
    for (class, state) in streams {
        let rows = select.query_map(
            params![
                class,
                state,
                before.min(now).as_millisecond(),
                coding::rows(limit),
                JobStatus::Running as u8,
                connected.as_millisecond()
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        for row in rows {
            found.push(row?);
        }
    }
    found.sort_unstable();
    found.truncate(limit);
    let mut select = tx.prepare_cached("SELECT id, body FROM jobs WHERE position = ?")?;
    let mut jobs = Vec::with_capacity(found.len());
    for (_, position) in found {
        let (id, body): (_, String) = select.query_row([position], |row| Ok((row.get(0)?, row.get(1)?)))?;
        jobs.extend(read_row(&body)?.summary(JobId::from_bytes(id), coding::unpack(position), now));
    }
    Ok(jobs)
}
