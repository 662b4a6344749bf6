use std::{fs, path::PathBuf};

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::task::coop::unconstrained;

use super::*;
use crate::job::{Envelope, Kind, QueueName, envelope::RetryOverrides, wire::HeaderValue};

/// A folder of the test's own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("hopline-spool-{}", JobId::new())))
    }

    fn open(&self, max_jobs: usize, max_bytes: usize) -> Result<Spool, SpoolError> {
        let config = config::Spool { path: Some(self.0.clone()), max_jobs, max_bytes };
        Spool::open(&config).map(Option::unwrap)
    }

    /// What a process that is killed now leaves behind.
    fn snapshot(&self) -> Self {
        let copy = Self::new();
        fs::create_dir_all(&copy.0).unwrap();
        for entry in fs::read_dir(&self.0).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), copy.0.join(entry.file_name())).unwrap();
        }
        copy
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn job(args: &'static str) -> Submission {
    let (kind, queue) = (Kind::parse("a.b").unwrap(), QueueName::parse("q").unwrap());
    Submission::new(Envelope::new(kind, queue, Bytes::from_static(args.as_bytes())), Duration::ZERO)
}

/// A job with everything that a submit can say.
fn full() -> Submission {
    let mut job = job("{\"a\": 1.50}");
    let envelope = &mut job.envelope;
    envelope.created_at = Timestamp::from_millisecond(1_900_000_000_123).ok();
    envelope.expires_at = Timestamp::from_millisecond(1_900_000_900_000).ok();
    envelope.timeout = Some(Duration::from_millis(1500));
    envelope.max_attempts = Some(7);
    envelope.retry = RetryOverrides {
        initial: Some(Duration::from_millis(250)),
        factor: Some(1.5),
        max: Some(Duration::from_secs(60)),
        jitter: Some(0.1),
    };
    envelope.tags = vec!["x".to_owned(), "y z".to_owned()];
    envelope.app_id = Some("hopline-http".to_owned());
    envelope.extra.insert("traceparent".to_owned(), HeaderValue::Text("00-1-2-01".to_owned()));
    (job.delay, job.request, job.routed) = (Duration::from_millis(2500), Some("abc".to_owned()), true);
    job
}

async fn take(spool: &Spool, place: i64, most: usize) -> Vec<Entry> {
    spool.take(place, most, Box::new(|_| true)).await.unwrap().entries
}

async fn places(spool: &Spool) -> Vec<JobId> {
    let entries = take(spool, 0, 1000).await;
    entries.into_iter().map(|entry| entry.job.envelope.id).collect()
}

#[tokio::test]
async fn a_job_comes_out_as_it_went_in() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let job = full();
    spool.put(&job).await.unwrap();
    let found = spool.find(job.envelope.id).await.unwrap().unwrap();
    let mut expected = job.clone();
    // The delay is rounded up to whole ms, so as not to come early.
    expected.delay = found.delay;
    assert!((job.delay..=job.delay + Duration::from_millis(1)).contains(&found.delay));
    assert_eq!(found, expected);
    assert_eq!(spool.find(JobId::new()).await.unwrap(), None);
}

/// Only of what may have been published there may be a second copy.
#[tokio::test]
async fn what_was_tried_before_is_unsure() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let mut lost = job("1");
    lost.envelope.unsure = true;
    for job in [&lost, &job("2"), &job("3"), &job("4")] {
        spool.put(job).await.unwrap();
    }
    let unsure = async |spool: &Spool, place, most| {
        let taken = take(spool, place, most).await;
        taken.into_iter().map(|entry| entry.job.envelope.unsure).collect::<Vec<_>>()
    };
    assert_eq!(unsure(&spool, 0, 2).await, [true, false]);
    assert_eq!(unsure(&spool, 2, 1).await, [false]);
    spool.put(&job("5")).await.unwrap();
    assert_eq!(unsure(&spool, 0, 10).await, [true, true, true, false, false]);
    let left = folder.snapshot();
    let killed = left.open(10, 1 << 20).unwrap();
    assert_eq!(unsure(&killed, 0, 10).await, [true; 5]);
    killed.put(&job("6")).await.unwrap();
    assert_eq!(unsure(&killed, 5, 10).await, [false]);
}

#[tokio::test]
async fn what_was_confirmed_survives_a_kill_in_its_order() {
    let folder = Folder::new();
    let spool = folder.open(1000, 1 << 20).unwrap();
    let jobs: Vec<Submission> = (0..50).map(|_| job("1")).collect();
    for job in &jobs {
        spool.put(job).await.unwrap();
    }
    let many: Vec<Submission> = (0..200).map(|_| job("2")).collect();
    let put = unconstrained(join_all(many.iter().map(|job| spool.put(job)))).await;
    assert!(put.into_iter().all(|put| put.is_ok()));
    let expected: Vec<JobId> = jobs.iter().chain(&many).map(|job| job.envelope.id).collect();
    let killed = folder.snapshot();
    let again = killed.open(1000, 1 << 20).unwrap();
    assert_eq!(places(&again).await, expected);
    assert_eq!(again.fill().jobs, 250);
    assert_eq!(again.fill().bytes, spool.fill().bytes);

    let first = take(&again, 0, 100).await;
    again.remove(first).await.unwrap();
    assert_eq!(places(&again).await, expected[100..]);
    assert_eq!(take(&again, 0, 1).await.len(), 1);
    again.close().await;
    // Places go on: what comes later is later.
    let again = killed.open(1000, 1 << 20).unwrap();
    let last = job("3");
    again.put(&last).await.unwrap();
    assert_eq!(places(&again).await.last(), Some(&last.envelope.id));
}

/// The thread may have no room for the question.
#[tokio::test]
async fn what_was_forwarded_is_not_taken_again_although_the_thread_does_not_hear_of_it() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let (first, second) = (job("1"), job("2"));
    spool.put(&first).await.unwrap();
    spool.put(&second).await.unwrap();
    let taken = take(&spool, 0, 1).await;
    spool.close().await;
    assert!(spool.remove(taken).await.is_err());
    let known = spool.known.lock();
    assert!(!known.has(first.envelope.id) && known.has(second.envelope.id));
    assert_eq!(known.next(0, 10, |_| true).len(), 1);
}

#[tokio::test]
async fn what_the_broker_never_takes_stays_and_others_pass_it() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let (big, small) = (job("1"), job("2"));
    spool.put(&big).await.unwrap();
    spool.put(&small).await.unwrap();
    let taken = take(&spool, 0, 1).await;
    spool.set_aside(&taken[0], "too large");
    assert_eq!(places(&spool).await, [small.envelope.id]);
    // What is written meanwhile does not bring it back.
    spool.put(&job("3")).await.unwrap();
    let rest = take(&spool, 0, 10).await;
    assert_eq!(rest.len(), 2);
    spool.remove(rest).await.unwrap();
    assert_eq!((spool.fill().jobs, spool.fill().unreadable, spool.is_holding()), (1, 1, false));
    assert!(spool.find(big.envelope.id).await.unwrap().is_some());
    spool.close().await;
    // It has another chance: somebody may have raised the broker's limit.
    let again = folder.open(10, 1 << 20).unwrap();
    assert_eq!(places(&again).await, [big.envelope.id]);
}

#[tokio::test]
async fn it_is_bounded_by_jobs_and_by_bytes() {
    let folder = Folder::new();
    let spool = folder.open(3, 1 << 20).unwrap();
    let jobs: Vec<Submission> = (0..8).map(|_| job("1")).collect();
    let put = join_all(jobs.iter().map(|job| spool.put(job))).await;
    assert_eq!(put.iter().filter(|put| put.is_ok()).count(), 3);
    assert!(put.iter().all(|put| matches!(put, Ok(()) | Err(SpoolError::Full))));
    assert!(!spool.fill().has_room_for(0));
    // What is there already takes no room, and is no second one.
    let first = take(&spool, 0, 1).await;
    spool.remove(first.clone()).await.unwrap();
    spool.put(&first[0].job).await.unwrap();
    assert_eq!((spool.fill().jobs, places(&spool).await.len()), (3, 3));
    spool.close().await;

    let small = Folder::new();
    let spool = small.open(1000, 2000).unwrap();
    let mut taken = 0;
    while spool.put(&job("[1,2,3]")).await.is_ok() {
        taken += 1;
    }
    let fill = spool.fill();
    assert!(taken > 5 && fill.jobs == taken && fill.bytes <= 2000 && fill.bytes > 1500, "{fill:?}");
    let all = take(&spool, 0, 1000).await;
    spool.remove(all).await.unwrap();
    assert_eq!((spool.fill().jobs, spool.fill().bytes), (0, 0));
}

#[tokio::test]
async fn one_process_has_it_and_what_cannot_be_read_is_left_alone() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    assert!(matches!(folder.open(10, 1 << 20), Err(SpoolError::Locked(_))));
    spool.put(&job("1")).await.unwrap();
    spool.close().await;
    assert!(matches!(spool.put(&job("1")).await, Err(SpoolError::Unavailable(_))), "closed");

    let file = folder.0.join(FILE);
    let bytes: Vec<u8> = fs::read(&file).unwrap().iter().map(|byte| byte ^ 0x55).collect();
    fs::write(&file, &bytes).unwrap();
    assert!(matches!(folder.open(10, 1 << 20), Err(SpoolError::Unavailable(_))));
    assert_eq!(fs::read(&file).unwrap(), bytes, "it may hold accepted jobs");
    fs::write(&file, "").unwrap();
    fs::write(folder.0.join("spool.db-wal"), "x").unwrap();
    assert!(matches!(folder.open(10, 1 << 20), Err(SpoolError::Unavailable(_))), "nor is it new");
    assert!(Spool::open(&config::Spool::default()).unwrap().is_none());
}

#[tokio::test]
async fn whoever_waits_for_jobs_is_told() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let waiting = tokio::spawn({
        let spool = spool.clone();
        async move { spool.filled().await }
    });
    tokio::task::yield_now().await;
    spool.put(&job("1")).await.unwrap();
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    spool.close().await;
    let again = folder.open(10, 1 << 20).unwrap();
    tokio::time::timeout(PATIENCE, again.filled()).await.unwrap();
}

impl Folder {
    /// The file, beside the process that has it.
    fn db(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.0.join(FILE)).unwrap()
    }
}

/// As a disk does that has room for a page and not for more.
const NO_REMOVAL: &str =
    "CREATE TRIGGER stuck BEFORE DELETE ON jobs BEGIN SELECT RAISE(ABORT, 'no room'); END";

#[tokio::test]
async fn what_was_forwarded_and_cannot_be_removed_is_not_taken_again_and_holds_up_the_rest() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let jobs = [job("1"), job("2")];
    for job in &jobs {
        spool.put(job).await.unwrap();
    }
    let first = take(&spool, 0, 1).await;
    folder.db().execute_batch(NO_REMOVAL).unwrap();
    spool.remove(first).await.unwrap_err();
    for _ in 0..2 {
        spool.take(0, 10, Box::new(|_| true)).await.unwrap_err();
    }
    assert!(spool.is_holding(), "whoever forwards tries again");
    assert_eq!(spool.find(jobs[0].envelope.id).await.unwrap(), None, "the broker has it");
    folder.db().execute_batch("DROP TRIGGER stuck").unwrap();
    assert_eq!(places(&spool).await, [jobs[1].envelope.id]);
    assert_eq!(spool.fill().jobs, 1);

    // A submit may be what removes it.
    let second = take(&spool, 0, 10).await;
    folder.db().execute_batch(NO_REMOVAL).unwrap();
    spool.remove(second).await.unwrap_err();
    spool.put(&job("3")).await.unwrap_err();
    folder.db().execute_batch("DROP TRIGGER stuck").unwrap();
    let third = job("3");
    spool.put(&third).await.unwrap();
    assert_eq!(places(&spool).await, [third.envelope.id]);
    assert_eq!(spool.fill().jobs, 1);
}

#[tokio::test]
async fn what_cannot_be_read_stays_and_others_pass_it() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let jobs: Vec<Submission> = ["1", "2", "3", "4"].map(job).into();
    for job in &jobs {
        spool.put(job).await.unwrap();
    }
    let spoil = |which: &str| {
        let sql = format!("UPDATE jobs SET body = '{{\"of\": \"the future\"}}' WHERE place {which}");
        folder.db().execute_batch(&sql).unwrap();
    };
    spoil("= 1");
    let found = spool.take(0, 1, Box::new(|_| true)).await.unwrap();
    assert_eq!((found.entries.len(), found.last), (0, Some(1)), "it goes on after it");
    assert_eq!(places(&spool).await, [&jobs[1], &jobs[2], &jobs[3]].map(|job| job.envelope.id));
    assert!(spool.is_holding());
    assert_eq!((spool.fill().jobs, spool.fill().unreadable), (4, 1));
    spool.find(jobs[0].envelope.id).await.unwrap_err();
    spool.close().await;

    spoil("< 4");
    let spool = folder.open(10, 1 << 20).unwrap();
    assert_eq!((spool.fill().jobs, spool.fill().unreadable), (4, 3), "known from the start");
    let last = take(&spool, 0, 1).await;
    assert_eq!(last[0].job.envelope.id, jobs[3].envelope.id);
    spool.remove(last).await.unwrap();
    assert!(!spool.is_holding(), "nothing that could be forwarded");
    assert!(!spool.waits_for(&jobs[0].envelope.queue, |_| QueueName::parse("q").unwrap()));
    assert_eq!(spool.fill().jobs, 3, "nothing is lost");
    spool.find(jobs[1].envelope.id).await.unwrap_err();
}

#[tokio::test]
async fn older_files_are_taken_over_and_newer_ones_left_alone() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    spool.put(&job("1")).await.unwrap();
    spool.close().await;
    folder.db().execute_batch("DROP TABLE tried; PRAGMA user_version = 1").unwrap();
    let spool = folder.open(10, 1 << 20).unwrap();
    let entries = take(&spool, 0, 10).await;
    assert_eq!(entries.len(), 1);
    assert!(entries[0].job.envelope.unsure, "nobody knows whether it was published");
    spool.close().await;
    folder.db().execute_batch("PRAGMA user_version = 3").unwrap();
    let Err(SpoolError::Unavailable(why)) = folder.open(10, 1 << 20) else {
        panic!("it is of a newer version")
    };
    assert!(why.contains("version 3") && why.contains("hopline spool drain"), "{why}");
}

#[tokio::test]
async fn another_request_under_the_same_id_is_told_from_a_repeat() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let named = |args, request: &str| Submission { request: Some(request.to_owned()), ..job(args) };
    let first = named("1", "a");
    spool.put(&first).await.unwrap();
    let mut again = named("1", "a");
    again.envelope.id = first.envelope.id;
    again.envelope.created_at = Some(Timestamp::now());
    spool.put(&again).await.unwrap();
    let mut other = named("2", "b");
    other.envelope.id = first.envelope.id;
    assert_eq!(spool.put(&other).await, Err(SpoolError::Other));
    let mut plain = job("2");
    plain.envelope.id = first.envelope.id;
    assert_eq!(spool.put(&plain).await, Err(SpoolError::Other));
    assert_eq!(spool.fill().jobs, 1);
    assert_eq!(spool.find(first.envelope.id).await.unwrap(), Some(first));
}

/// Another connection writes, so the thread waits for it.
#[tokio::test]
async fn a_slow_disk_says_not_stored_only_of_what_is_not() {
    let folder = Folder::new();
    let spool = folder.open(10, 1 << 20).unwrap();
    let (begun, waiting) = (Turn::default(), Turn::default());
    assert!(begun.begin() && !begun.give_up(), "it may be stored");
    assert!(waiting.give_up() && !waiting.begin(), "it never is");

    let other = folder.db();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The first one is being written, and keeps the second one waiting.
    let (first, turn, (told, answered)) = (job("1"), Turn::default(), oneshot::channel());
    let room = Arc::clone(&spool.room).acquire_many_owned(1).await.unwrap();
    let put = Put { row: Row::of(&first), turn: turn.clone(), told, _room: room };
    assert!(spool.commands.send(Command::Put(put)).await.is_ok());
    while !turn.has_begun() {
        tokio::task::yield_now().await;
    }
    let second = job("2");
    let mut put = Box::pin(spool.put(&second));
    assert!(futures_util::poll!(&mut put).is_pending());
    assert!(spool.room.available_permits() < WAITING_KIB as usize - 1, "its memory is counted");
    // Its caller goes away.
    drop(put);
    other.execute_batch("COMMIT").unwrap();
    answered.await.unwrap().unwrap();
    assert_eq!(places(&spool).await, [first.envelope.id], "what nobody waits for is not stored");
}

#[tokio::test]
async fn what_it_has_done_is_counted() {
    let folder = Folder::new();
    let spool = folder.open(2, 1 << 20).unwrap();
    assert_eq!((spool.tally(), spool.oldest().await.unwrap()), (Tally::default(), None));
    let (first, second) = (full(), full());
    spool.put(&first).await.unwrap();
    spool.put(&second).await.unwrap();
    assert_eq!(spool.put(&full()).await, Err(SpoolError::Full));
    assert_eq!(spool.tally(), Tally { taken: 2, refused: 1, forwarded: 0 });
    assert_eq!(spool.oldest().await.unwrap(), first.envelope.created_at);
    let entries = take(&spool, 0, 1).await;
    spool.remove(entries).await.unwrap();
    assert_eq!(spool.tally(), Tally { taken: 2, refused: 1, forwarded: 1 });
    spool.close().await;
    // A new process counts anew; what waits is there.
    let spool = folder.open(2, 1 << 20).unwrap();
    assert_eq!((spool.tally(), spool.fill().jobs), (Tally::default(), 1));
}
