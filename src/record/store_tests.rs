//! Each test has a folder of its own.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    super::{
        fold::tests::{at, event, with},
        model::CancelRequest,
    },
    *,
};
use crate::{
    event::{AttemptOutcome, EventType, Progress},
    job::Kind,
};

#[path = "store_properties.rs"]
mod properties;

/// A folder, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("hopline-store-{}-{number}", std::process::id())))
    }

    /// With bounds so small that tests meet them.
    fn open(&self) -> Store {
        let mut store = Store::open(&self.0).unwrap();
        store.bounds = list::Bounds { looked: 12, looked_min: 3, streams: 6, due: 2 };
        hold(&store.writer).full_block = 4;
        store
    }

    fn files(&self, part: &str) -> Vec<String> {
        let names = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.contains(part));
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn id(n: u8) -> JobId {
    JobId::from_bytes([n; 16])
}

/// The event, of another job.
fn of(n: u8, mut event: Event) -> Event {
    event.job = id(n);
    event
}

fn batch(offset: u64, events: impl IntoIterator<Item = Event>) -> LogBatch {
    let events = events.into_iter().enumerate();
    let events = events.map(|(index, event)| (u16::try_from(index).unwrap(), event)).collect();
    LogBatch { offset, message_id: format!("message-{offset}"), events }
}

fn media() -> QueueName {
    QueueName::parse("media").unwrap()
}

fn failed(n: u8, code: &str, message: &str) -> Event {
    of(
        n,
        with(EventType::Dead, 1, 0, 1000 + i64::from(n), |data| {
            data.error = Some(EventError { code: code.into(), message: message.into() });
            data.reason = Some("fatal".into());
            data.outcome = Some(AttemptOutcome::Fatal);
        }),
    )
}

/// All pages of a list.
fn list(store: &Store, filter: &Filter, limit: usize, now: i64) -> Vec<Summary> {
    let (mut jobs, mut after) = (Vec::new(), None);
    loop {
        let page = store.jobs(filter, limit, after, at(now)).unwrap();
        assert!(page.items.len() <= limit);
        jobs.extend(page.items);
        match page.next {
            None => break,
            Some(next) => {
                assert!(after.replace(next).is_none_or(|after| next < after), "a page makes progress");
            }
        }
    }
    assert!(jobs.is_sorted_by(|a, b| a.position > b.position), "newest first, none twice");
    jobs
}

fn ids(jobs: &[Summary]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

#[test]
fn what_is_applied_is_there_after_a_restart() {
    let folder = Folder::new();
    let store = folder.open();
    assert_eq!((store.resume().unwrap(), store.tail().unwrap()), (None, Position::default()));
    let submitted = with(EventType::Submitted, 1, 0, 0, |data| {
        data.args = RawValue::from_string("{\"x\": 1.00}".into()).ok();
    });
    let succeeded = with(EventType::Succeeded, 1, 0, 90, |data| {
        data.output = RawValue::from_string("[ 2 ]".into()).ok();
        data.outcome = Some(AttemptOutcome::Succeeded);
    });
    let applied =
        store.apply(vec![batch(7, [of(1, submitted.clone())]), batch(8, [of(1, succeeded)])]).unwrap();
    assert_eq!(applied.news.len(), 2);
    assert_eq!((applied.ended, applied.changed), (vec![id(1)], vec![id(1)]));
    assert_eq!(applied.tail, Position { offset: 8, index: 0 });
    store.apply(vec![batch(9, [])]).unwrap();
    let again = store.apply(vec![batch(7, [of(1, submitted)])]).unwrap();
    assert!(again.news.is_empty() && again.ended.is_empty(), "a copy is no news");
    drop(store);
    let store = folder.open();
    let resume = Resume { offset: 9, message_id: "message-9".into(), base: 0 };
    assert_eq!(store.resume().unwrap(), Some(resume), "an earlier batch moves nothing back");
    assert_eq!(store.first().unwrap(), Position { offset: 7, index: 0 });
    let job = store.job(id(1), at(100)).unwrap().unwrap();
    assert_eq!(job.args.unwrap().get(), "{\"x\": 1.00}", "bytes as they came");
    assert_eq!(job.output.unwrap().get(), "[ 2 ]");
    assert_eq!((job.summary.status, job.attempts.len()), (JobStatus::Succeeded, 1));
    assert_eq!(store.job_events(id(1)).unwrap().len(), 2);
    assert!(store.job(id(2), at(100)).unwrap().is_none());
}

#[test]
fn positions_go_on_above_all_others_when_the_log_was_reset() {
    let folder = Folder::new();
    let store = folder.open();
    store.apply(vec![batch(500, [of(1, event(EventType::Submitted, 1, 0, 0))])]).unwrap();
    store.new_epoch().unwrap();
    assert_eq!(store.resume().unwrap(), None);
    let old = of(1, event(EventType::Submitted, 1, 0, 0));
    let applied = store.apply(vec![batch(3, [old, of(2, event(EventType::Submitted, 1, 0, 5))])]).unwrap();
    let base = 1 << 36;
    let position = Position { offset: base + 3, index: 1 };
    assert_eq!((applied.tail, applied.news.len(), applied.news[0].0), (position, 1, position));
    assert_eq!(store.resume().unwrap().unwrap().base, base);
    assert_eq!(store.first().unwrap(), Position { offset: base + 3, index: 0 });
    assert_eq!(ids(&list(&store, &Filter::default(), 10, 9)), [id(2), id(1)]);
    store.missing_before(40).unwrap();
    assert_eq!(store.first().unwrap(), Position { offset: base + 40, index: 0 });
}

#[test]
fn a_job_whose_time_has_come_is_queued() {
    let folder = Folder::new();
    let store = folder.open();
    let delayed = |n: u8, what| of(n, with(what, 1, 0, 0, |data| data.run_at = Some(at(100 * i64::from(n)))));
    let jobs = (1..6).map(|n| delayed(n, [EventType::Submitted, EventType::Retrying][usize::from(n % 2)]));
    store.apply(vec![batch(0, jobs)]).unwrap();
    let queued = Filter { status: vec![JobStatus::Queued], ..Filter::default() };
    let check = |now, expected: &[u8]| {
        let found = list(&store, &queued, 2, now);
        assert_eq!(ids(&found), expected.iter().map(|n| id(*n)).collect::<Vec<_>>());
        let counts = store.counts(None, at(now)).unwrap();
        assert_eq!(counts.of(JobStatus::Queued), expected.len() as u64);
        assert_eq!(counts.by_status.iter().sum::<u64>(), 5);
        let oldest = store.queues(at(now)).unwrap().remove(&media()).unwrap().oldest_queued_at;
        assert_eq!(oldest, (!expected.is_empty()).then(|| at(100)));
        assert!(found.iter().all(|job| job.run_at.is_some()));
        let waiting = store.waiting_since(&media(), at(now - 50), Timestamp::MIN, 10).unwrap();
        let long: Vec<_> = (1..6).map(id).take(usize::try_from((now - 51).max(0) / 100).unwrap()).collect();
        assert_eq!(ids(&waiting), long, "the oldest first");
    };
    check(99, &[]);
    check(450, &[4, 3, 2, 1]);
    assert_eq!(store.promote(at(250), 1).unwrap(), 1);
    check(250, &[2, 1]);
    assert_eq!((store.promote(at(250), 9).unwrap(), store.promote(at(250), 9).unwrap()), (1, 0));
    check(250, &[2, 1]);
    check(600, &[5, 4, 3, 2, 1]);
    // A note about a promoted job brings back what its events say; it reads the same.
    store.apply(vec![batch(1, [of(1, event(EventType::CancelRequested, 1, 0, 260))])]).unwrap();
    check(300, &[3, 2, 1]);
}

#[test]
fn dead_jobs_are_grouped_until_they_are_purged_or_replayed() {
    let folder = Folder::new();
    let store = folder.open();
    let message = |n| format!("order {n} has no address");
    let dead = (1..6).map(|n| failed(n, "no_address", &message(n))).chain([failed(9, "refused", "go away")]);
    store.apply(vec![batch(0, dead)]).unwrap();
    let groups = store.groups(&media()).unwrap();
    let [address, refused] = &groups[..] else { panic!("two groups: {groups:?}") };
    assert_eq!((address.count, refused.count), (5, 1));
    assert_eq!((address.latest, address.message.as_str()), (id(5), "order 5 has no address"));
    assert_eq!((address.first_at, address.last_at), (Some(at(1001)), Some(at(1005))));
    assert_eq!((address.code.as_str(), address.reason.as_str()), ("no_address", "fatal"));
    let alike = Filter { fingerprint: Some(address.fingerprint.clone()), ..Filter::default() };
    assert_eq!(list(&store, &alike, 2, 2000).len(), 5);
    let no_fingerprint = Filter { fingerprint: Some("so what".into()), ..Filter::default() };
    assert!(list(&store, &no_fingerprint, 2, 2000).is_empty());
    store
        .apply(vec![batch(
            1,
            [of(5, event(EventType::Purged, 1, 0, 1100)), of(1, event(EventType::Submitted, 2, 0, 1200))],
        )])
        .unwrap();
    let groups = store.groups(&media()).unwrap();
    assert_eq!((groups[0].count, groups[0].first_at, groups[0].latest), (3, Some(at(1002)), id(4)));
    let rest = [2, 3, 4, 9].map(|n| of(n, event(EventType::Purged, 1, 0, 1300)));
    store.apply(vec![batch(2, rest)]).unwrap();
    assert!(store.groups(&media()).unwrap().is_empty());
    assert_eq!(store.counts(None, at(2000)).unwrap().of(JobStatus::Dead), 5, "purged ones are still dead");
}

#[test]
fn pages_tell_nothing_of_queues_that_are_not_there() {
    let (one, other) = (Folder::new(), Folder::new());
    let (alone, beside) = (one.open(), other.open());
    let queue = |n: u8| QueueName::parse(["mail", "news"][usize::from(n % 2)]).ok();
    let own = |n: u8| {
        let mut event = failed(n, "other", &format!("the {n}th thing"));
        (event.data.queue, event.data.tags) = (queue(n), vec![format!("t{}", n % 5)]);
        event
    };
    let foreign = (100..160).map(|n| {
        let mut event = failed(n, "other", "the secret thing");
        event.data.tags = vec!["t1".into(), "secret".into()];
        event
    });
    for store in [&alone, &beside] {
        store.apply(vec![batch(0, (0..20).map(own))]).unwrap();
    }
    beside.apply(vec![batch(1, foreign)]).unwrap();
    let fingerprint = beside.groups(&media()).unwrap().remove(0).fingerprint;
    for store in [&alone, &beside] {
        store.apply(vec![batch(2, (20..40).map(own))]).unwrap();
    }
    let queues = Some([queue(0), queue(1)].into_iter().flatten().collect());
    let all = Filter { queues, ..Filter::default() };
    for filter in [
        all.clone(),
        Filter { q: Some("secret".into()), ..all.clone() },
        Filter { q: Some("se".into()), ..all.clone() },
        Filter { q: Some("thing".into()), ..all.clone() },
        Filter { tag: Some("secret".into()), ..all.clone() },
        Filter { tag: Some("t1".into()), ..all.clone() },
        Filter { fingerprint: Some(fingerprint), ..all.clone() },
        Filter { q: Some("secret".into()), queue: queue(0), ..all.clone() },
        Filter { queue: Some(media()), ..all },
    ] {
        for limit in [1, 2, 7] {
            let pages = |store: &Store| {
                let (mut pages, mut after) = (Vec::new(), None);
                loop {
                    let page = store.jobs(&filter, limit, after, at(5000)).unwrap();
                    after = page.next;
                    pages.push((ids(&page.items), page.next));
                    if after.is_none() {
                        return pages;
                    }
                }
            };
            assert_eq!(pages(&alone), pages(&beside), "{limit} {filter:?}");
        }
    }
}

#[test]
fn errors_are_found_by_any_part_of_them() {
    let folder = Folder::new();
    let store = folder.open();
    let texts =
        ["Straße \"gesperrt\" 50%", "CONNECTION reset", "connection refused by İzmir", "日本語のエラー", "x"];
    let dead = (1..).zip(texts).map(|(n, text)| failed(n, "E_CODE", text));
    let others = (50..80).map(|n| failed(n, "other", "quite another text"));
    store.apply(vec![batch(0, dead.chain(others))]).unwrap();
    let found = |q: &str| {
        let filter = Filter { q: Some(q.into()), ..Filter::default() };
        let mut found: Vec<_> =
            list(&store, &filter, 3, 2000).iter().map(|job| job.id.as_bytes()[0]).collect();
        found.sort_unstable();
        found
    };
    for (q, expected) in [
        ("connection", vec![2, 3]),
        ("Connection Re", vec![2, 3]),
        ("STRASSE", vec![]),
        ("straße \"ge", vec![1]),
        ("50%", vec![1]),
        ("%", vec![1]),
        ("BY İZM", vec![3]),
        ("本語の", vec![4]),
        ("語", vec![4]),
        ("e_code", vec![1, 2, 3, 4, 5]),
        ("noitcennoc", vec![]),
        ("E_CODE\nx", vec![]),
        ("AND OR NOT * ^ ( :", vec![]),
    ] {
        assert_eq!(found(q), expected, "{q}");
    }
    assert_eq!(found("").len(), 35, "no text, no filter");
    // What a job does not say any more is not found.
    let ended = with(EventType::Succeeded, 1, 0, 3000, |_| {});
    store.apply(vec![batch(1, [of(2, ended)])]).unwrap();
    assert_eq!(found("connection"), [3]);
}

#[test]
fn a_lookup_knows_every_run() {
    let folder = Folder::new();
    let store = folder.open();
    let output = |run, text: &str| {
        with(EventType::Succeeded, run, 1, 90, |data| {
            data.output = RawValue::from_string(text.into()).ok();
            (data.worker, data.started_at) = (Some("w".into()), Some(at(80)));
            data.outcome = Some(AttemptOutcome::Succeeded);
        })
    };
    let asked = with(EventType::CancelRequested, 1, 0, 20, |data| data.by = Some("ann".into()));
    let events = [failed(1, "odd", "odd"), of(1, asked), of(1, event(EventType::Submitted, 2, 0, 50))];
    store.apply(vec![batch(0, events)]).unwrap();
    store
        .apply(vec![batch(1, [of(1, event(EventType::Retrying, 2, 0, 60)), of(1, output(2, "[2]"))])])
        .unwrap();
    let found = store.lookup(&[(id(1), 2), (id(9), 1), (id(1), 1), (id(1), 3)]).unwrap();
    let [second, unknown, first, third] = &found[..] else { panic!("{found:?}") };
    let end = second.end.as_ref().unwrap();
    assert_eq!((second.latest_run, second.step, end.status, end.attempt), (2, 1, JobStatus::Succeeded, 2));
    assert_eq!((end.output.as_ref().unwrap().get(), end.worker.as_deref()), ("[2]", Some("w")));
    assert_eq!((end.started_at, end.finished_at), (Some(at(80)), Some(at(90))));
    assert_eq!((unknown.latest_run, unknown.step, unknown.end.is_none()), (0, 0, true));
    let end = first.end.as_ref().unwrap();
    assert_eq!((first.latest_run, end.status, end.reason.as_deref()), (2, JobStatus::Dead, Some("fatal")));
    assert_eq!(first.cancel, Some(CancelRequest { at: at(20), by: Some("ann".into()), reason: None }));
    assert_eq!(end.error.as_ref().unwrap().code, "odd");
    assert!(second.cancel.is_none(), "a request is for one run");
    assert_eq!((third.latest_run, third.step, third.end.is_none()), (2, 0, true));
    // A run that ended well although a later one has too: its output gave way.
    store.apply(vec![batch(2, [of(1, output(1, "[1]"))])]).unwrap();
    let end = store.lookup(&[(id(1), 1)]).unwrap().remove(0).end.unwrap();
    assert_eq!((end.status, end.output.is_none(), end.output_omitted), (JobStatus::Succeeded, true, true));
}

#[test]
fn events_are_read_by_scope_in_the_order_of_the_log() {
    let folder = Folder::new();
    let store = folder.open();
    let tagged =
        |n, tag: &str| of(n, with(EventType::Submitted, 1, 0, 0, |data| data.tags = vec![tag.into()]));
    let elsewhere =
        of(3, with(EventType::Submitted, 1, 0, 0, |data| data.queue = QueueName::parse("mail").ok()));
    let told = Progress { percent: 5, message: "m".into(), n: 1 };
    let progress = with(EventType::Progress, 1, 0, 5, |data| data.progress = Some(told));
    store
        .apply(vec![batch(4, [tagged(1, "a"), tagged(2, "b"), elsewhere]), batch(6, [of(1, progress)])])
        .unwrap();
    store.apply(vec![batch(9, [])]).unwrap();
    let read = |scope: Scope, after: &str, limit| {
        let Stretch { events, searched, first, tail } =
            store.events(&scope, after.parse().unwrap(), limit).unwrap();
        assert_eq!((first, tail), (store.first().unwrap(), store.tail().unwrap()));
        let places: Vec<_> = events.iter().map(|stored| stored.position.to_string()).collect();
        (places.join(" "), searched.to_string())
    };
    let all = Scope::default;
    let answer = |places: &str, searched: &str| (places.to_owned(), searched.to_owned());
    assert_eq!(read(all(), "0.0", 10), answer("4.0 4.1 4.2 6.0", "9.0"));
    assert_eq!(read(all(), "4.1", 1), answer("4.2", "4.2"));
    assert_eq!(read(all(), "9.0", 10), answer("", "9.0"));
    assert_eq!(read(all(), "11.0", 10), answer("", "11.0"), "never back");
    assert_eq!(read(Scope { queue: Some(media()), ..all() }, "4.0", 10), answer("4.1 6.0", "9.0"));
    assert_eq!(read(Scope { job: Some(id(1)), ..all() }, "4.0", 10), answer("6.0", "9.0"));
    assert_eq!(read(Scope { job: Some(id(77)), ..all() }, "4.0", 10), answer("", "9.0"));
    assert_eq!(read(Scope { tag: Some("a".into()), ..all() }, "0.0", 1), answer("4.0", "4.0"));
    assert_eq!(read(Scope { tag: Some("a".into()), ..all() }, "0.0", 9), answer("4.0 6.0", "9.0"));
    let kind = Kind::parse("none").ok();
    assert_eq!(read(Scope { kind, ..all() }, "0.0", 9), answer("", "9.0"));
    let ranks: Vec<_> =
        store.job_events(id(1)).unwrap().iter().map(|stored| stored.event.event_type).collect();
    assert_eq!(ranks, [EventType::Submitted, EventType::Progress]);
}

#[test]
fn of_much_progress_the_newest_is_kept_in_sight() {
    let folder = Folder::new();
    let store = folder.open();
    let progress = |n: u32| {
        let told = Progress { percent: 1, message: String::new(), n };
        of(1, with(EventType::Progress, 1, 0, 5, |data| data.progress = Some(told)))
    };
    let began = [of(1, event(EventType::Submitted, 1, 0, 0)), of(1, event(EventType::Started, 1, 0, 1))];
    store.apply(vec![batch(0, began.into_iter().chain((1..=10_500).map(progress)))]).unwrap();
    let events = store.job_events(id(1)).unwrap();
    let told = |events: &[Event]| -> Vec<u32> {
        events.iter().filter_map(|event| event.data.progress.as_ref()).map(|told| told.n).collect()
    };
    let events: Vec<Event> = events.into_iter().map(|stored| stored.event).collect();
    assert_eq!(events[0].event_type, EventType::Submitted, "the beginning is not dropped for it");
    assert_eq!((events.len(), told(&events)), (10_000, (503..=10_500).collect()));
    let (_, again) = store.stale(Timestamp::MAX, 10).unwrap().remove(0);
    assert_eq!(told(&again), [10_500]);
}

#[test]
fn old_ends_are_deleted_with_all_that_is_known_of_them() {
    let folder = Folder::new();
    let store = folder.open();
    let tag = |n| of(n, with(EventType::Submitted, 1, 0, 0, |data| data.tags = vec!["t".into()]));
    let end = |n, what, ms| of(n, event(what, 1, 0, ms));
    store
        .apply(vec![
            batch(0, [tag(1), end(1, EventType::Succeeded, 10), tag(2), end(2, EventType::Cancelled, 20)]),
            batch(1, [failed(3, "odd", "odd thing"), failed(4, "odd", "odd thing"), tag(5)]),
            batch(2, [of(4, event(EventType::Purged, 1, 0, 1100)), end(6, EventType::Expired, 5000)]),
            batch(3, [of(7, event(EventType::CancelRequested, 1, 0, 30))]),
        ])
        .unwrap();
    let retention = Duration::from_millis(1000);
    assert_eq!(store.expire(at(1015), retention, 10).unwrap(), 1);
    assert_eq!(store.first().unwrap(), Position { offset: 0, index: 2 });
    assert_eq!(store.expire(at(3000), retention, 1).unwrap(), 1, "in steps");
    assert_eq!(store.expire(at(3000), retention, 10).unwrap(), 2, "the purged one, and the one never seen");
    assert_eq!(store.expire(at(3000), retention, 10).unwrap(), 0);
    let left = list(&store, &Filter::default(), 10, 3000);
    assert_eq!(ids(&left), [id(6), id(5), id(3)], "live, dead and recent ones stay");
    assert_eq!(store.first().unwrap(), Position { offset: 3, index: 1 });
    let q = Filter { q: Some("odd thing".into()), ..Filter::default() };
    assert_eq!(ids(&list(&store, &q, 10, 3000)), [id(3)]);
    let tagged = Filter { tag: Some("t".into()), ..Filter::default() };
    assert_eq!(ids(&list(&store, &tagged, 10, 3000)), [id(5)]);
    assert_eq!(store.counts(None, at(3000)).unwrap().by_status.iter().sum::<u64>(), 3);
    let writer = hold(&store.writer);
    let rows = |table: &str| -> i64 {
        writer.db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!((rows("events"), rows("tags"), rows("jobs")), (3, 1, 3));
    // Queued (5), dead (3) and expired (6): what others came to is not counted as nothing for ever.
    assert_eq!(rows("counts"), 3);
}

#[test]
fn live_jobs_that_the_log_forgets_are_told_again() {
    let folder = Folder::new();
    let store = folder.open();
    let submitted = |n| {
        let args = |data: &mut crate::event::Data| data.args = RawValue::from_string("[1]".into()).ok();
        of(n, with(EventType::Submitted, 1, 0, i64::from(n), args))
    };
    store.apply(vec![batch(0, [submitted(1), submitted(2)])]).unwrap();
    store.apply(vec![batch(1, [submitted(3), of(1, event(EventType::Succeeded, 1, 0, 50))])]).unwrap();
    let stale = store.stale(at(3), 10).unwrap();
    assert_eq!(stale.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id(2)]);
    let told = stale.into_iter().next().unwrap().1;
    assert_eq!(told[0].data.args.as_ref().unwrap().get(), "[1]");
    assert!(!told[0].data.args_omitted);
    let again = store.apply(vec![batch(2, told)]).unwrap();
    assert!(again.news.is_empty(), "they are copies");
    assert!(store.stale(at(3), 10).unwrap().is_empty(), "but the log has them");
    // In a quiet system nothing tells the time but the batch itself.
    let told = store.stale(Timestamp::now(), 10).unwrap().remove(0).1;
    let before = Timestamp::now();
    store.apply(vec![LogBatch { message_id: JobId::new().to_string(), ..batch(3, told) }]).unwrap();
    assert_eq!(store.stale(before, 10).unwrap().len(), 1, "the other one");
}

/// A message id with a time in it, in seconds; and an event's time.
fn written(seconds: u64) -> String {
    uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0)).to_string()
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// A job that was made then, in seconds, and its first event.
fn made(at: u64) -> (JobId, Event) {
    let id: JobId = written(at).parse().unwrap();
    let mut submitted = with(EventType::Submitted, 1, 0, 0, |_| {});
    (submitted.job, submitted.time) = (id, seconds(i64::try_from(at).unwrap()));
    submitted.data.created_at = Some(submitted.time);
    (id, submitted)
}

#[test]
fn who_missed_a_part_of_the_log_is_not_sure_of_what_was_before() {
    let folder = Folder::new();
    let store = folder.open();
    let at_second = |offset, second, events: Vec<Event>| {
        store.apply(vec![LogBatch { message_id: written(second), ..batch(offset, events) }]).unwrap();
    };
    let sure = |jobs: &[(JobId, u32)]| -> Vec<bool> {
        store.lookup(jobs).unwrap().iter().map(|found| found.sure).collect()
    };
    let waiting = |before| store.waiting_since(&media(), seconds(before), Timestamp::MIN, 10).unwrap().len();
    let stale = |before| store.stale(seconds(before), 10).unwrap().len();
    let end = |id, at| {
        let mut end = event(EventType::Succeeded, 1, 0, 0);
        (end.job, end.time) = (id, seconds(at));
        end
    };
    let ((ended, one), (live, two), (again, three)) = (made(100), made(101), made(102));
    let foreign = id(7);
    at_second(0, 103, vec![one, two, three, end(ended, 103)]);
    at_second(1, 104, vec![]);
    let (unknown, later) = (made(105).0, made(301));
    assert_eq!(sure(&[(ended, 1), (live, 1), (unknown, 1), (foreign, 1)]), [true; 4], "it knows it all");
    assert_eq!((waiting(1000), stale(1000)), (2, 2));

    store.missing_before(50).unwrap();
    let mut replayed = made(102).1;
    (replayed.job, replayed.time, replayed.data.run) = (again, seconds(300), 2);
    at_second(50, 300, vec![replayed]);
    at_second(51, 302, vec![later.1]);
    assert_eq!(sure(&[(ended, 1), (live, 1), (unknown, 1), (foreign, 1)]), [true, false, false, false]);
    let later_unknown = made(303).0;
    assert_eq!(sure(&[(later.0, 1), (later_unknown, 1)]), [true, true], "from behind the gap");
    assert_eq!(sure(&[(again, 1), (again, 2)]), [true, false], "a later run is certain");
    assert_eq!((waiting(1000), stale(1000)), (2, 2), "not the one that was last heard of before the gap");
    let mut copy = made(101).1;
    copy.job = live;
    at_second(52, 304, vec![copy]);
    assert_eq!((waiting(1000), stale(1000)), (3, 3), "another process knows that it lives");
    assert_eq!(sure(&[(live, 1)]), [false], "a late copy may say so, too");
}

#[test]
fn what_may_be_late_on_the_ladder_is_not_waited_for_in_vain() {
    let folder = Folder::new();
    let store = folder.open();
    let (id, mut submitted) = made(100);
    submitted.data.created_at = Some(seconds(100));
    submitted.data.run_at = Some(seconds(400));
    store.apply(vec![LogBatch { message_id: written(101), ..batch(0, [submitted]) }]).unwrap();
    let waits = |before, connected| {
        let found = store.waiting_since(&media(), seconds(before), seconds(connected), 10).unwrap();
        found.iter().any(|job| job.id == id)
    };
    // looked at before, connected at → given up
    for (before, connected, expected) in [
        (400, 50, false),
        (401, 50, true),
        (401, 100, true),
        // The broker was away while it was on the ladder: from then on it may take its whole delay once more.
        (401, 101, false),
        (549, 250, false),
        (551, 250, true),
        (800, 500, false),
        (801, 500, true),
    ] {
        assert_eq!(waits(before, connected), expected, "{before} {connected}");
    }
}

#[test]
fn a_record_that_begins_in_the_middle_of_the_log_has_a_gap() {
    for (offset, is_sure) in [(0, true), (1, false)] {
        let folder = Folder::new();
        let store = folder.open();
        let (known, submitted) = made(100);
        let first = LogBatch { message_id: written(200), ..batch(offset, [submitted]) };
        store.apply(vec![first.clone()]).unwrap();
        // Read once more, later, it is no other gap.
        store.apply(vec![LogBatch { message_id: written(300), ..batch(offset + 1, []) }]).unwrap();
        store.apply(vec![first]).unwrap();
        let found = store.lookup(&[(known, 1), (made(150).0, 1), (made(200).0, 1)]).unwrap();
        let sure: Vec<_> = found.iter().map(|found| found.sure).collect();
        assert_eq!(sure, [is_sure, is_sure, true], "{offset}");
        assert_eq!(
            store.waiting_since(&media(), seconds(1000), Timestamp::MIN, 9).unwrap().len(),
            1,
            "heard of behind it"
        );
    }
}

#[test]
fn dead_jobs_are_told_again_until_they_are_purged() {
    let folder = Folder::new();
    let store = folder.open();
    store.apply(vec![batch(0, [failed(1, "odd", "odd"), failed(2, "odd", "odd")])]).unwrap();
    store.apply(vec![batch(1, [of(2, event(EventType::Purged, 1, 0, 1100))])]).unwrap();
    let told = store.stale(at(1050), 10).unwrap();
    assert_eq!(told.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id(1)]);
    let copies = told.into_iter().next().unwrap().1;
    store.apply(vec![batch(2, [event(EventType::Submitted, 1, 0, 2000)]), batch(3, copies)]).unwrap();
    assert!(store.stale(at(1050), 10).unwrap().is_empty(), "the log has it again");
    assert_eq!(store.stale(at(2001), 10).unwrap().len(), 2, "and will lose it again, and the live one");
    assert_eq!(store.stale(at(2001), 1).unwrap().len(), 1, "in steps");
}

#[test]
fn a_dead_job_that_is_purged_after_long_stays_for_a_while() {
    let folder = Folder::new();
    let store = folder.open();
    store.apply(vec![batch(0, [failed(1, "odd", "odd")])]).unwrap();
    store.apply(vec![batch(1, [of(1, event(EventType::Purged, 1, 0, 90_000))])]).unwrap();
    let retention = Duration::from_secs(10);
    assert_eq!(store.expire(at(99_000), retention, 10).unwrap(), 0);
    assert_eq!(store.expire(at(100_001), retention, 10).unwrap(), 1);
}

#[test]
fn a_folder_belongs_to_one_process() {
    let folder = Folder::new();
    let store = folder.open();
    assert!(matches!(Store::open(&folder.0), Err(StoreError::Locked(path)) if path == folder.0));
    drop(store);
    folder.open();
}

#[test]
fn a_file_that_cannot_be_used_is_set_aside() {
    let folder = Folder::new();
    for n in 0..5 {
        let store = folder.open();
        assert_eq!(store.resume().unwrap(), None, "{n}: empty");
        store.apply(vec![batch(n, [of(1, event(EventType::Submitted, 1, 0, 0))])]).unwrap();
        drop(store);
        let path = folder.0.join("record.db");
        match n {
            0 => std::fs::write(path, b"this is no database, and never was one, whatever it is called")
                .unwrap(),
            1 => {
                let db = Connection::open(path).unwrap();
                db.pragma_update(None, "user_version", 99).unwrap();
            }
            2 => {
                let length = std::fs::metadata(&path).unwrap().len();
                File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
            }
            _ => {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 4;
                bytes[middle..].fill(0xA5);
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
    let store = folder.open();
    assert_eq!(store.resume().unwrap(), None);
    let aside: Vec<_> =
        folder.files("record.db.broken-").into_iter().filter(|name| name.ends_with('Z')).collect();
    assert_eq!(aside.len(), 3, "{aside:?}");
    assert!(!folder.files("lock").is_empty());
}

#[test]
fn damage_that_is_met_at_work_is_told_and_a_new_file_begun() {
    let folder = Folder::new();
    let store = folder.open();
    let jobs = |offset| batch(offset, (0..200).map(|n| of(n, event(EventType::Submitted, 1, 0, 0))));
    store.apply(vec![jobs(0)]).unwrap();
    hold(&store.writer)
        .db
        .execute("UPDATE jobs SET body = 'no json' WHERE id = ?", [id(3).as_bytes()])
        .unwrap();
    assert!(matches!(store.job(id(3), at(0)), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.apply(vec![jobs(1)]), Err(StoreError::Corrupt(_))));
    assert_eq!(store.resume().unwrap().unwrap().offset, 0, "nothing of a failed call stays");
    let aside = store.start_over().unwrap();
    assert!(aside.exists());
    // Also when a first try came no further than this.
    std::fs::remove_file(folder.0.join("record.db")).unwrap();
    store.start_over().unwrap();
    assert_eq!(store.resume().unwrap(), None);
    store.apply(vec![jobs(0)]).unwrap();
    assert!(store.job(id(3), at(0)).unwrap().is_some());
    // Two events at one place: the offsets are those of another log.
    let other = batch(0, [of(201, event(EventType::Submitted, 1, 0, 0))]);
    assert!(matches!(store.apply(vec![other]), Err(StoreError::Corrupt(_))));
    let far = LogBatch { offset: 1 << 47, ..jobs(0) };
    assert!(matches!(store.apply(vec![far]), Err(StoreError::Corrupt(_))));
}

#[test]
fn readers_work_while_one_writes_and_starts_over() {
    let folder = Folder::new();
    let store = folder.open();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for n in 0..200 {
                    store.job(id(n), at(0)).unwrap();
                    list(&store, &Filter::default(), 5, 0);
                }
            });
        }
        for offset in 0..40 {
            let jobs =
                (0..20).map(|n| of(n, event(EventType::Submitted, 1, u32::try_from(offset).unwrap(), 0)));
            store.apply(vec![batch(offset, jobs)]).unwrap();
            if offset == 20 {
                store.start_over().unwrap();
            }
        }
    });
    assert_eq!(store.job_events(id(1)).unwrap().len(), 19);
}

#[test]
fn the_file_is_not_replaced_under_those_who_read() {
    let folder = Folder::new();
    let store = folder.open();
    let jobs = |offset| batch(offset, (0..20).map(|n| of(n, event(EventType::Submitted, 1, 0, 0))));
    store.apply(vec![jobs(0)]).unwrap();
    std::thread::scope(|scope| {
        let (began, go) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let store = &store;
        let reading = scope.spawn(move || {
            store.readers.read(|tx, classes| {
                began.0.send(()).unwrap();
                go.1.recv().unwrap();
                read::job(tx, classes, id(1), at(0))
            })
        });
        began.1.recv().unwrap();
        let replacing = scope.spawn(|| store.start_over());
        // It has begun: nobody else is let in.
        while !store.readers.is_closed() {
            std::thread::yield_now();
        }
        assert!(folder.files("broken").is_empty(), "it waits");
        go.0.send(()).unwrap();
        assert!(reading.join().unwrap().unwrap().is_some(), "what was read is the old file");
        replacing.join().unwrap().unwrap();
    });
    // The old file's last connection took nothing of the new one with it.
    assert_eq!(folder.files("broken").len(), 1);
    assert_eq!(folder.files("record.db-"), ["record.db-shm", "record.db-wal"]);
    store.apply(vec![jobs(0)]).unwrap();
    assert!(store.job(id(1), at(0)).unwrap().is_some());
}
