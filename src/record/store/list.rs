//! Lists of jobs: any filter, newest first.
//!
//! One source gives candidates in order, chosen for the fewest that do not match; each is then compared with the whole
//! filter. Status, queue and kind together are exact (their jobs lie in streams of one index, which are merged), and so
//! is every filter that matches few jobs by these three. What remains are filters that cross: a tag and a status that
//! are frequent but seldom together, a text that is nearly there in many errors. For these a page ends after
//! [`Bounds::looked`] candidates or [`PATIENCE`], with fewer items, perhaps none, and the cursor to go on.
//!
//! Where a page ends tells of its candidates, also of those that do not match. So for whom only some queues are there
//! ([`Filter::queues`]) candidates come from these alone, though that takes more pages where they hold much.
//!
//! Text is looked for by trigrams. One or two characters have none: then all jobs with an error are candidates.

use std::{
    collections::{BTreeSet, BinaryHeap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::{Transaction, params};

use super::{
    StoreError, blocks, coding,
    row::{pack_fingerprint, read_row, status_of},
};
use crate::{
    event::EventError,
    job::{JobId, QueueName},
    record::{
        fold::{Row, shown},
        model::{Filter, JobStatus, Page, Position, Summary},
    },
};

/// How much work a list is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most candidates that a page looks at.
    pub(super) looked: usize,
    /// A page always looks at so many, however long it takes, so that following the cursor ends.
    pub(super) looked_min: usize,
    /// Most streams that are merged; with more kinds than that, all jobs are candidates.
    pub(super) streams: usize,
    /// Most jobs that have come due since [`super::Store::promote`] and are looked at one by one.
    pub(super) due: usize,
}

/// The bounds, but in tests.
pub(super) const BOUNDS: Bounds = Bounds { looked: 4000, looked_min: 100, streams: 1000, due: 10_000 };
/// Longest that a page looks at candidates, once it has looked at [`Bounds::looked_min`].
const PATIENCE: Duration = Duration::from_millis(25);

/// What of an error is searched: its code and its message, in lower case.
pub(super) fn searchable(error: &EventError) -> String {
    format!("{}\n{}", error.code.to_lowercase(), error.message.to_lowercase())
}

/// A page; see [`super::Store::jobs`].
pub(super) fn jobs(
    tx: &Transaction<'_>,
    filter: &Filter,
    limit: usize,
    after: Option<Position>,
    now: Timestamp,
    bounds: Bounds,
) -> Result<Page, StoreError> {
    let nothing = Page { items: Vec::new(), next: None };
    let Some(wanted) = Wanted::new(tx, filter, now, bounds)? else { return Ok(nothing) };
    let Some((low, high)) = blocks::stretch(tx, wanted.from, wanted.to)? else { return Ok(nothing) };
    let below = after.map_or(i64::MAX, coding::pack_given).min(high);
    let mut source = wanted.source(tx, low, below)?;
    let began = Instant::now();
    let (mut items, mut looked, mut last) = (Vec::new(), 0, None);
    loop {
        // One more than fits tells whether a page follows.
        let asked = (limit - items.len() + 1).max(if looked == 0 { 0 } else { bounds.looked_min });
        let candidates = source.next(tx, asked)?;
        let ends = candidates.len() < asked;
        for candidate in candidates {
            let is_tired = looked >= bounds.looked
                || looked >= bounds.looked_min && looked % 16 == 0 && began.elapsed() > PATIENCE;
            if items.len() >= limit || is_tired {
                return Ok(Page { items, next: last.map(coding::unpack) });
            }
            looked += 1;
            last = Some(candidate);
            items.extend(wanted.compare(tx, candidate)?);
        }
        if ends {
            return Ok(Page { items, next: None });
        }
    }
}

/// A filter, read.
struct Wanted {
    /// Stored states whose jobs may match.
    streams: Vec<Stream>,
    /// Jobs in these streams.
    total: u64,
    /// Jobs in other streams that have come due since the last promotion.
    due: Vec<i64>,
    /// Nothing but time, text, tag and fingerprint is asked for.
    any_class_and_state: bool,
    /// No other job may show, in whatever way.
    alone: bool,
    classes: HashSet<i64>,
    statuses: Vec<JobStatus>,
    tag: Option<String>,
    needle: Option<String>,
    from: Option<i64>,
    to: Option<i64>,
    fingerprint: Option<i64>,
    now: Timestamp,
    bounds: Bounds,
}

impl Wanted {
    /// `None`: nothing can match.
    fn new(
        tx: &Transaction<'_>,
        filter: &Filter,
        now: Timestamp,
        bounds: Bounds,
    ) -> Result<Option<Self>, StoreError> {
        let time = |text: &Option<String>, name| {
            let read = |text: &String| text.parse().map(Timestamp::as_millisecond);
            text.as_ref().map(read).transpose().map_err(|_| StoreError::Filter(name))
        };
        let fingerprint = match &filter.fingerprint {
            Some(digits) => match pack_fingerprint(digits) {
                Some(packed) => Some(packed),
                None => return Ok(None),
            },
            None => None,
        };
        let statuses = if filter.status.is_empty() { JobStatus::ALL.to_vec() } else { filter.status.clone() };
        let mut wanted = Self {
            streams: Vec::new(),
            total: 0,
            due: Vec::new(),
            any_class_and_state: statuses.len() == JobStatus::ALL.len()
                && filter.queue.is_none()
                && filter.kind.is_none(),
            alone: filter.queues.is_some(),
            classes: HashSet::new(),
            statuses,
            tag: filter.tag.clone(),
            needle: filter.q.as_ref().map(|text| text.to_lowercase()).filter(|text| !text.is_empty()),
            from: time(&filter.from, "from")?,
            to: time(&filter.to, "to")?,
            fingerprint,
            now,
            bounds,
        };
        let queue = filter.queue.as_ref().map(|queue| queue.as_str());
        let kind = filter.kind.as_ref().map(|kind| kind.as_str());
        wanted.find_streams(tx, queue, filter.queues.as_ref(), kind)?;
        Ok((wanted.total > 0 || !wanted.due.is_empty()).then_some(wanted))
    }

    /// Which streams match by queue, kind and status, and how many jobs they have.
    fn find_streams(
        &mut self,
        tx: &Transaction<'_>,
        queue: Option<&str>,
        queues: Option<&BTreeSet<QueueName>>,
        kind: Option<&str>,
    ) -> Result<(), StoreError> {
        let queues: Option<HashSet<&str>> =
            queues.map(|queues| queues.iter().map(QueueName::as_str).collect());
        let mut select = tx.prepare_cached(
            "SELECT class, state, n, queue FROM counts JOIN classes ON id = class
             WHERE n > 0 AND (?1 IS NULL OR queue = ?1) AND (?2 IS NULL OR kind = ?2)",
        )?;
        let mut rows = select.query([queue, kind])?;
        // Scheduled and retrying jobs whose time has come are listed as queued.
        let mut may_be_due = Vec::new();
        while let Some(row) = rows.next()? {
            let (class, state, n): (i64, u8, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let Some(status) = status_of(state) else { continue };
            if let Some(queues) = &queues
                && !row.get_ref(3)?.as_str().is_ok_and(|queue| queues.contains(queue))
            {
                continue;
            }
            let stream = Stream::new(class, state);
            if self.statuses.contains(&status) {
                self.total += n.unsigned_abs();
                self.streams.push(stream);
            } else if matches!(status, JobStatus::Scheduled | JobStatus::Retrying)
                && self.statuses.contains(&JobStatus::Queued)
            {
                may_be_due.push((stream, n.unsigned_abs()));
            } else {
                continue;
            }
            self.classes.insert(class);
        }
        for (stream, _) in &may_be_due {
            let room = self.bounds.due + 1 - self.due.len();
            self.due.extend(due(tx, stream.class, stream.state, self.now, room)?);
        }
        if self.due.len() > self.bounds.due {
            // Promotion is far behind: these streams have to be searched.
            self.due.clear();
            for (stream, n) in may_be_due {
                self.total += n;
                self.streams.push(stream);
            }
        }
        self.due.sort_unstable_by(|a, b| b.cmp(a));
        Ok(())
    }

    /// The source of the fewest candidates.
    fn source(&self, tx: &Transaction<'_>, low: i64, below: i64) -> Result<Source, StoreError> {
        let few = self.total + self.due.len() as u64 <= self.bounds.looked as u64;
        let scan = |kind| Ok(Source::Scan { kind, low, below });
        if let Some(fingerprint) = self.fingerprint.filter(|_| !self.alone) {
            return scan(Scan::Alike(fingerprint));
        }
        if !few && !self.alone {
            match (&self.needle, &self.tag) {
                (Some(needle), _) if needle.chars().nth(2).is_some() => {
                    return scan(Scan::Text(trigrams(needle)));
                }
                (_, Some(tag)) => return scan(Scan::Tag(tag.clone())),
                (Some(_), None) => return scan(Scan::Failed),
                (None, None) if self.any_class_and_state => return scan(Scan::All),
                (None, None) => {}
            }
        }
        if self.streams.len() > self.bounds.streams {
            return scan(Scan::All);
        }
        let due = self.due.iter().copied().filter(|at| (low..below).contains(at)).collect();
        Merge::new(tx, self.streams.clone(), due, low, below).map(Source::Merge)
    }

    /// The job at `position`, if it matches.
    fn compare(&self, tx: &Transaction<'_>, position: i64) -> Result<Option<Summary>, StoreError> {
        let mut select = tx.prepare_cached(
            "SELECT class, state, at, created, fingerprint, id, body FROM jobs WHERE position = ?",
        )?;
        let mut rows = select.query([position])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let Some(state) = status_of(row.get(1)?) else { return Ok(None) };
        let status = shown(state, row.get(2)?, self.now.as_millisecond());
        let created: i64 = row.get(3)?;
        if !self.classes.contains(&row.get(0)?)
            || !self.statuses.contains(&status)
            || self.from.is_some_and(|from| created < from)
            || self.to.is_some_and(|to| created >= to)
            || self.fingerprint.is_some_and(|wanted| row.get(4).ok().flatten() != Some(wanted))
        {
            return Ok(None);
        }
        let body = row.get_ref(6)?.as_str().map_err(rusqlite::Error::from)?;
        let job = read_row(body)?;
        if !self.compare_texts(&job) {
            return Ok(None);
        }
        Ok(job.summary(JobId::from_bytes(row.get(5)?), coding::unpack(position), self.now))
    }

    fn compare_texts(&self, job: &Row) -> bool {
        let tagged = self.tag.as_ref().is_none_or(|tag| job.tags().contains(tag));
        let told = self.needle.as_ref().is_none_or(|needle| {
            let holds = |text: &str| text.to_lowercase().contains(needle.as_str());
            job.error().is_some_and(|error| holds(&error.code) || holds(&error.message))
        });
        tagged && told
    }
}

/// Jobs of a class and state whose time has come, at most `limit`.
fn due(
    tx: &Transaction<'_>,
    class: i64,
    state: u8,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<i64>, StoreError> {
    let mut select = tx.prepare_cached(
        "SELECT position FROM jobs INDEXED BY jobs_live
         WHERE state < 4 AND class = ? AND state = ? AND at <= ? LIMIT ?",
    )?;
    let found = select
        .query_map(params![class, state, now.as_millisecond(), coding::rows(limit)], |row| row.get(0))?;
    Ok(found.collect::<Result<_, _>>()?)
}

/// The query that finds texts with all trigrams of `needle`: they may have them in another order.
fn trigrams(needle: &str) -> String {
    let letters: Vec<char> = needle.chars().collect();
    let mut seen = HashSet::new();
    let mut query = String::new();
    for three in letters.windows(3) {
        if !seen.insert(three) {
            continue;
        }
        if !query.is_empty() {
            query.push_str(" AND ");
        }
        query.push('"');
        for letter in three {
            if *letter == '"' {
                query.push('"');
            }
            query.push(*letter);
        }
        query.push('"');
    }
    query
}

/// Where candidates come from: positions, highest first.
enum Source {
    /// One scan of a table or an index.
    Scan {
        kind: Scan,
        low: i64,
        below: i64,
    },
    Merge(Merge),
}

enum Scan {
    All,
    Alike(i64),
    Failed,
    Tag(String),
    Text(String),
}

impl Source {
    /// At most `limit` more; fewer: these were the last.
    fn next(&mut self, tx: &Transaction<'_>, limit: usize) -> Result<Vec<i64>, StoreError> {
        match self {
            Self::Merge(merge) => merge.next(tx, limit),
            Self::Scan { kind, low, below } => {
                let found = kind.below(tx, *low, *below, limit)?;
                *below = found.last().copied().unwrap_or(*below);
                Ok(found)
            }
        }
    }
}

impl Scan {
    fn below(
        &self,
        tx: &Transaction<'_>,
        low: i64,
        below: i64,
        limit: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let (sql, key): (_, &dyn rusqlite::ToSql) = match self {
            Self::All => (
                "SELECT position FROM jobs WHERE ?1 AND position >= ?2 AND position < ?3
                 ORDER BY position DESC LIMIT ?4",
                &true,
            ),
            Self::Alike(fingerprint) => (
                "SELECT position FROM jobs INDEXED BY jobs_alike
                 WHERE fingerprint IS NOT NULL AND fingerprint = ?1 AND position >= ?2 AND position < ?3
                 ORDER BY position DESC LIMIT ?4",
                fingerprint,
            ),
            Self::Failed => (
                "SELECT position FROM jobs INDEXED BY jobs_failed
                 WHERE failed IS NOT NULL AND failed = ?1 AND position >= ?2 AND position < ?3
                 ORDER BY position DESC LIMIT ?4",
                &1,
            ),
            Self::Tag(tag) => (
                "SELECT position FROM tags WHERE tag = ?1 AND position >= ?2 AND position < ?3
                 ORDER BY position DESC LIMIT ?4",
                tag,
            ),
            Self::Text(query) => (
                "SELECT rowid FROM search WHERE search MATCH ?1 AND rowid >= ?2 AND rowid < ?3
                 ORDER BY rowid DESC LIMIT ?4",
                query,
            ),
        };
        let mut select = tx.prepare_cached(sql)?;
        let found = select.query_map(params![key, low, below, coding::rows(limit)], |row| row.get(0))?;
        Ok(found.collect::<Result<_, _>>()?)
    }
}

/// The jobs of one class in one stored state, in the order of lists.
#[derive(Clone)]
struct Stream {
    class: i64,
    state: u8,
    /// Read ahead.
    ahead: VecDeque<i64>,
    ended: bool,
}

impl Stream {
    fn new(class: i64, state: u8) -> Self {
        Self { class, state, ahead: VecDeque::new(), ended: false }
    }

    fn fill(&mut self, tx: &Transaction<'_>, low: i64, below: i64, count: usize) -> Result<(), StoreError> {
        let mut select = tx.prepare_cached(
            "SELECT position FROM jobs INDEXED BY jobs_class
             WHERE class = ? AND state = ? AND position >= ? AND position < ? ORDER BY position DESC LIMIT ?",
        )?;
        let found = select
            .query_map(params![self.class, self.state, low, below, coding::rows(count)], |row| row.get(0))?;
        for position in found {
            self.ahead.push_back(position?);
        }
        self.ended = self.ahead.len() < count;
        Ok(())
    }
}

/// Streams merged into one.
struct Merge {
    streams: Vec<Stream>,
    /// The highest position of each stream, with the stream's number.
    heads: BinaryHeap<(i64, usize)>,
    low: i64,
    /// How many positions a stream reads ahead. Grows, so that few streams of many matches are read in large steps.
    step: usize,
}

impl Merge {
    fn new(
        tx: &Transaction<'_>,
        streams: Vec<Stream>,
        due: Vec<i64>,
        low: i64,
        below: i64,
    ) -> Result<Self, StoreError> {
        let step = 256_usize.checked_div(streams.len()).unwrap_or_default().max(8);
        let mut merge = Self { streams, heads: BinaryHeap::new(), low, step };
        merge.streams.push(Stream { ahead: due.into(), ended: true, ..Stream::new(0, 0) });
        for number in 0..merge.streams.len() {
            merge.advance(tx, number, below)?;
        }
        Ok(merge)
    }

    /// Puts the next position of a stream, below `below`, among the heads.
    fn advance(&mut self, tx: &Transaction<'_>, number: usize, below: i64) -> Result<(), StoreError> {
        let Some(stream) = self.streams.get_mut(number) else { return Ok(()) };
        if stream.ahead.is_empty() && !stream.ended {
            stream.fill(tx, self.low, below, self.step)?;
        }
        if let Some(position) = stream.ahead.pop_front() {
            self.heads.push((position, number));
        }
        Ok(())
    }

    fn next(&mut self, tx: &Transaction<'_>, limit: usize) -> Result<Vec<i64>, StoreError> {
        let mut found = Vec::with_capacity(limit);
        while found.len() < limit
            && let Some((position, number)) = self.heads.pop()
        {
            found.push(position);
            self.advance(tx, number, position)?;
        }
        self.step = (self.step * 2).min(1000);
        Ok(found)
    }
}

/// Counts of jobs that have come due since the last promotion, by class and stored state.
pub(super) fn count_due(
    tx: &Transaction<'_>,
    class: i64,
    state: u8,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let mut select = tx.prepare_cached(
        "SELECT count(*) FROM jobs INDEXED BY jobs_live WHERE state < 4 AND class = ? AND state = ? AND at <= ?",
    )?;
    let n: i64 = select.query_row(params![class, state, now.as_millisecond()], |row| row.get(0))?;
    Ok(n.unsigned_abs())
}
