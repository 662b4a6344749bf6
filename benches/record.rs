//! What the record costs: applying events, and every kind of answer, with many jobs in it. No broker is needed. Run by
//! `cargo bench --features server --bench record`, with 100,000 jobs, or as many as `HOPLINE_BENCH_JOBS` says. The file
//! is made anew in a temporary folder, or in `HOPLINE_BENCH_FOLDER`.
//!
//! Each line has the time that passed and, in brackets, the thread's time on a processor (Linux), which is what remains
//! comparable on a machine that does other things too.
//!
//! The store is no part of the public interface, so its sources are built into this program.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a bench fails by unwrapping")]
#![allow(dead_code, unreachable_pub, unused_imports, reason = "the sources of another crate")]

use std::{
    io::Write,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hopline::{Envelope, JobId, Kind, QueueName, event, job, record::model};
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::{
    event::{AttemptOutcome, Event, EventError, EventType},
    model::{Filter, JobStatus, Scope},
    record::store::{LogBatch, Store},
};

#[path = "../src/record"]
mod record {
    pub(crate) use hopline::record::model;
    pub(crate) mod fold;
    pub(crate) mod rates;
    pub(crate) mod store;
}

/// Jobs in a batch of the log, and batches in a call of `apply`.
const BATCH: usize = 200;
const BATCHES: usize = 50;

/// Time that passed, and this thread's time on a processor.
#[derive(Clone, Copy)]
struct Clock(Instant, Duration);

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), on_processor())
    }
    fn read(self) -> (Duration, Duration) {
        (self.0.elapsed(), on_processor().saturating_sub(self.1))
    }
}

fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let spent = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(spent.unwrap_or_default())
}

/// Makes jobs that differ from one another by their number.
struct Maker {
    start: i64,
    kinds: Vec<(Kind, QueueName)>,
    args: Bytes,
}

impl Maker {
    fn new() -> Self {
        let kinds = (0..20).map(|n| {
            let queue = ["default", "media", "mail", "billing"][n % 4];
            (Kind::parse(format!("kind.n{n}")).unwrap(), QueueName::parse(queue).unwrap())
        });
        let args = Bytes::from(format!("{{\"filler\":\"{}\"}}", "x".repeat(180)));
        Self { start: Timestamp::now().as_millisecond() - 86_400_000, kinds: kinds.collect(), args }
    }

    fn at(&self, n: usize) -> Timestamp {
        Timestamp::from_millisecond(self.start + n as i64).unwrap()
    }

    fn envelope(&self, n: usize) -> Envelope {
        let (kind, queue) = self.kinds[n % self.kinds.len()].clone();
        let mut envelope = Envelope::new(kind, queue, self.args.clone());
        envelope.created_at = Some(self.at(n));
        envelope.tags = vec![format!("customer-{}", n % 1000)];
        envelope
    }

    fn submitted(&self, envelope: &Envelope, n: usize) -> Event {
        let mut event = Event::of(EventType::Submitted, envelope, "http-1-4711-abcdef", self.at(n));
        event.data.args =
            Some(RawValue::from_string(String::from_utf8(self.args.to_vec()).unwrap()).unwrap());
        event
    }

    fn ended(&self, envelope: &Envelope, what: EventType, n: usize) -> Event {
        let mut event = Event::of(what, envelope, "worker-1-4712-abcdef", self.at(n + 100));
        event.data.worker = Some("worker-1-4712-abcdef".into());
        event.data.started_at = Some(self.at(n + 50));
        event.data.finished_at = Some(self.at(n + 100));
        if what == EventType::Succeeded {
            event.data.outcome = Some(AttemptOutcome::Succeeded);
            event.data.output = Some(RawValue::from_string("{\"width\":640,\"height\":480}".into()).unwrap());
        } else {
            event.data.outcome = Some(AttemptOutcome::Failed);
            event.data.reason = Some("exhausted".into());
            event.data.error = Some(EventError {
                code: ["http_502", "timeout", "refused"][n % 3].into(),
                message: format!(
                    "connection {} to 10.0.{}.{} was reset by peer",
                    envelope.id,
                    n % 250,
                    n % 199
                ),
            });
        }
        event
    }
}

struct Applier<'a> {
    store: &'a Store,
    offset: u64,
    pending: Vec<LogBatch>,
    batch: Vec<(u16, Event)>,
    spent: (Duration, Duration),
    events: usize,
}

impl Applier<'_> {
    fn push(&mut self, event: Event) {
        self.batch.push((self.batch.len() as u16, event));
    }
    fn end_batch(&mut self) {
        let events = std::mem::take(&mut self.batch);
        self.events += events.len();
        self.offset += 1;
        self.pending.push(LogBatch { offset: self.offset, message_id: "m".into(), events });
        if self.pending.len() >= BATCHES {
            self.flush();
        }
    }
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let clock = Clock::start();
        let applied = self.store.apply(pending).unwrap();
        let (passed, used) = clock.read();
        drop(applied);
        self.spent = (self.spent.0 + passed, self.spent.1 + used);
    }
    fn report(&mut self, name: &str) {
        self.end_batch();
        self.flush();
        let rate = |time: Duration| self.events as f64 / time.as_secs_f64();
        let (passed, used) = (rate(self.spent.0), rate(self.spent.1));
        say(&format!("{name:<58}{passed:>9.0} events/s  [{used:>7.0}]  {:>9} events", self.events));
        (self.spent, self.events) = ((Duration::ZERO, Duration::ZERO), 0);
    }
}

fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
}

fn measure(name: &str, turns: usize, mut turn: impl FnMut(usize) -> String) {
    let mut note = String::new();
    let (mut passed, mut used): (Vec<f64>, Vec<f64>) = (0..turns)
        .map(|n| {
            let clock = Clock::start();
            note = turn(n);
            let (passed, used) = clock.read();
            (passed.as_secs_f64() * 1e3, used.as_secs_f64() * 1e3)
        })
        .unzip();
    let sorted = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[turns / 2], times[(turns * 99 / 100).min(turns - 1)])
    };
    let ((median, p99), (used, used_p99)) = (sorted(&mut passed), sorted(&mut used));
    say(&format!("{name:<58}{median:>9.3} ms [{used:>7.3}]  p99 {p99:>9.3} ms [{used_p99:>7.3}]  {note}"));
}

fn main() {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let jobs: usize = number("HOPLINE_BENCH_JOBS").unwrap_or(100_000);
    let folder = std::env::var("HOPLINE_BENCH_FOLDER").map_or_else(
        |_| std::env::temp_dir().join(format!("hopline-bench-{}", std::process::id())),
        std::path::PathBuf::from,
    );
    let store = Store::open(&folder).unwrap();
    let ids = fill(&store, jobs);
    answers(&store, &ids);
    let size: u64 =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    say(&format!("{:<58}{:>9} MB", "size of the files", size >> 20));
    drop(store);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Of the jobs 45 % end in the batch that submits them, 35 % later, 10 % die with an error, 5 % succeed after an error,
/// 3 % wait, 2 % are due later.
fn fill(store: &Store, jobs: usize) -> Vec<JobId> {
    let maker = Maker::new();
    let mut log = Applier {
        store,
        offset: 0,
        pending: Vec::new(),
        batch: Vec::new(),
        spent: (Duration::ZERO, Duration::ZERO),
        events: 0,
    };
    let mut ids = Vec::with_capacity(jobs);
    let (together, apart, dead) = (jobs * 45 / 100, jobs * 80 / 100, jobs * 90 / 100);
    for n in 0..together {
        let envelope = maker.envelope(n);
        ids.push(envelope.id);
        log.push(maker.submitted(&envelope, n));
        log.push(maker.ended(&envelope, EventType::Succeeded, n));
        if n % BATCH == BATCH - 1 {
            log.end_batch();
        }
    }
    log.report("apply: submitted and succeeded in one batch");
    let mut running = std::collections::VecDeque::new();
    for n in together..apart {
        let envelope = maker.envelope(n);
        ids.push(envelope.id);
        log.push(maker.submitted(&envelope, n));
        running.push_back((n, envelope));
        if n % BATCH == BATCH - 1 {
            log.end_batch();
            // The end comes two calls of `apply` later.
            while running.len() > 2 * BATCH * BATCHES {
                let (n, envelope) = running.pop_front().unwrap();
                log.push(maker.ended(&envelope, EventType::Succeeded, n));
            }
        }
    }
    for (n, envelope) in running {
        log.push(maker.ended(&envelope, EventType::Succeeded, n));
    }
    log.report("apply: submitted, and succeeded in a later call");
    for n in apart..dead {
        let envelope = maker.envelope(n);
        ids.push(envelope.id);
        log.push(maker.submitted(&envelope, n));
        log.push(maker.ended(&envelope, EventType::Dead, n));
        if n % BATCH == BATCH - 1 {
            log.end_batch();
        }
    }
    log.report("apply: submitted and dead, each error different");
    let mut failed = Vec::new();
    for n in dead..jobs {
        let mut envelope = maker.envelope(n);
        ids.push(envelope.id);
        let mut submitted = maker.submitted(&envelope, n);
        if n % 10 < 2 {
            submitted.data.run_at = Timestamp::from_millisecond(maker.start + 90_000_000 + n as i64).ok();
        }
        log.push(submitted);
        if n % 10 >= 5 {
            let mut retrying = maker.ended(&envelope, EventType::Retrying, n);
            retrying.data.run_at = Some(maker.at(n));
            log.push(retrying);
            envelope.step = 1;
            envelope.attempt = 2;
            failed.push((n, envelope));
        }
        if n % BATCH == BATCH - 1 {
            log.end_batch();
        }
    }
    log.report("apply: submitted, scheduled or with a failed attempt");
    for (n, envelope) in failed {
        log.push(maker.ended(&envelope, EventType::Succeeded, n));
        if n % BATCH == BATCH - 1 {
            log.end_batch();
        }
    }
    log.report("apply: succeeded after a failed attempt");
    ids
}

fn answers(store: &Store, ids: &[JobId]) {
    let now = Timestamp::now();
    let pick = |n: usize| ids[(n * 7_919 + 13) % ids.len()];
    measure("get by id", 20_000, |n| {
        let job = store.job(pick(n), now).unwrap().unwrap();
        format!("{} attempts", job.attempts.len())
    });
    measure("get by id, unknown", 1000, |_| format!("{:?}", store.job(JobId::new(), now).unwrap().is_some()));
    measure("events of a job", 5000, |n| format!("{} events", store.job_events(pick(n)).unwrap().len()));
    measure("lookup of 500 runs", 50, |n| {
        let asked: Vec<_> = (0..500).map(|k| (pick(n * 500 + k), 1)).collect();
        format!("{} ended", store.lookup(&asked).unwrap().iter().filter(|found| found.end.is_some()).count())
    });
    measure("counts of all", 200, |_| format!("{:?}", store.counts(None, now).unwrap().by_status));
    measure("queues", 200, |_| format!("{} queues", store.queues(now).unwrap().len()));
    let queue = QueueName::parse("media").unwrap();
    measure("groups of a queue", 50, |_| {
        let groups = store.groups(&queue).unwrap();
        format!("{} groups of {}", groups.len(), groups.iter().map(|group| group.count).sum::<u64>())
    });
    measure("waiting since, 100", 50, |_| {
        format!("{} jobs", store.waiting_since(&queue, now, now, 100).unwrap().len())
    });
    lists(store, now);
    let after = store.tail().unwrap();
    let middle = model::Position { offset: after.offset / 2, index: 0 };
    for (name, scope) in [
        ("events of all, 1000", Scope::default()),
        ("events of a queue, 1000", Scope { queue: Some(queue), ..Scope::default() }),
        ("events of a tag, 1000", Scope { tag: Some("customer-17".into()), ..Scope::default() }),
    ] {
        measure(name, 50, |_| format!("{} events", store.events(&scope, middle, 1000).unwrap().events.len()));
    }
    measure("promote", 1, |_| {
        let mut all = 0;
        loop {
            let n = store.promote(now, 10_000).unwrap();
            all += n;
            if n < 10_000 {
                return format!("{all} jobs");
            }
        }
    });
    measure("expire 1000", 20, |_| {
        format!("{} jobs", store.expire(now, Duration::from_secs(600), 1000).unwrap())
    });
}

fn lists(store: &Store, now: Timestamp) {
    let queue = || QueueName::parse("media").ok();
    let kind = |n: usize| Kind::parse(format!("kind.n{n}")).ok();
    let any = Filter::default;
    let text = |q: &str| Filter { q: Some(q.into()), ..Filter::default() };
    let second = |n: i64| {
        Timestamp::from_millisecond(now.as_millisecond() - 86_400_000 + n * 1000)
            .ok()
            .map(|at| at.to_string())
    };
    let newest_dead = store
        .jobs(&Filter { status: vec![JobStatus::Dead], ..any() }, 1, None, now)
        .unwrap()
        .items
        .pop()
        .unwrap();
    let message = newest_dead.error.unwrap().message;
    let filters = [
        ("all", any()),
        ("status=succeeded", Filter { status: vec![JobStatus::Succeeded], ..any() }),
        ("status=dead", Filter { status: vec![JobStatus::Dead], ..any() }),
        ("status=queued", Filter { status: vec![JobStatus::Queued], ..any() }),
        ("status=scheduled", Filter { status: vec![JobStatus::Scheduled], ..any() }),
        (
            "status=queued,running,retrying,dead",
            Filter {
                status: vec![JobStatus::Queued, JobStatus::Running, JobStatus::Retrying, JobStatus::Dead],
                ..any()
            },
        ),
        ("queue", Filter { queue: queue(), ..any() }),
        ("kind", Filter { kind: kind(3), ..any() }),
        ("queue and kind that never meet", Filter { queue: queue(), kind: kind(3), ..any() }),
        (
            "queue, kind, status=dead",
            Filter { queue: queue(), kind: kind(1), status: vec![JobStatus::Dead], ..any() },
        ),
        ("tag", Filter { tag: Some("customer-17".into()), ..any() }),
        ("tag, unknown", Filter { tag: Some("nobody".into()), ..any() }),
        (
            "tag, status=dead",
            Filter { tag: Some("customer-17".into()), status: vec![JobStatus::Dead], ..any() },
        ),
        ("from, to: a stretch in the middle", Filter { from: second(10), to: second(20), ..any() }),
        (
            "from, to, status=dead, tag",
            Filter {
                from: second(1),
                to: second(49),
                tag: Some("customer-17".into()),
                status: vec![JobStatus::Dead],
                ..any()
            },
        ),
        ("q: in every error", text("RESET by peer")),
        ("q: in one error", text(&message[11..47])),
        ("q: in no error, of frequent trigrams", text("connection reset to peer")),
        ("q: in no error, of rare trigrams", text("zzyzx")),
        ("q: hexadecimal digits", text("0a1b2")),
        ("q: two letters", text("pe")),
        ("q: two letters that no error has", text("%$")),
        (
            "q, status=dead, queue",
            Filter { q: Some("http_502".into()), status: vec![JobStatus::Dead], queue: queue(), ..any() },
        ),
        ("fingerprint", Filter { fingerprint: newest_dead.fingerprint.clone(), ..any() }),
        (
            "fingerprint, queue it is not in",
            Filter { fingerprint: newest_dead.fingerprint, queue: QueueName::parse("mail").ok(), ..any() },
        ),
    ];
    for (name, filter) in filters {
        measure(&format!("list 50: {name}"), 30, |_| {
            let page = store.jobs(&filter, 50, None, now).unwrap();
            format!("{} jobs, {}", page.items.len(), if page.next.is_some() { "more" } else { "end" })
        });
    }
    let mut after = None;
    measure("list 50: status=succeeded, page by page", 200, |_| {
        let filter = Filter { status: vec![JobStatus::Succeeded], ..any() };
        let page = store.jobs(&filter, 50, after, now).unwrap();
        after = page.next;
        String::new()
    });
}
