use std::{fs, path::PathBuf};

use futures_util::future::join_all;

use super::*;

/// A folder of the test's own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("hopline-keys-{}", JobId::new()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// What a process that is killed now leaves behind.
    fn snapshot(&self) -> Self {
        let copy = Self::new();
        for entry in fs::read_dir(&self.0).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), copy.0.join(entry.file_name())).unwrap();
        }
        copy
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MOST: usize = 1_000;
const A: Digest = Digest([1; 16]);
const B: Digest = Digest([2; 16]);

fn claim(reserved: Result<Reserved, KeysError>) -> Claim {
    match reserved.unwrap() {
        Reserved::New(claim) | Reserved::Unsure(claim) => claim,
        other => panic!("not claimed: {other:?}"),
    }
}

/// Publishes, and never learns what became of that.
fn publish(mut claim: Claim) {
    claim.publishing();
}

#[tokio::test]
async fn an_id_goes_from_new_to_accepted() {
    let folder = Folder::new();
    let keys = Keys::open(&folder.0, MOST).unwrap();
    let id = JobId::new();
    let first = keys.reserve(id, A).await.unwrap();
    assert!(matches!(first, Reserved::New(_)), "{first:?}");
    assert!(matches!(keys.reserve(id, A).await, Ok(Reserved::InFlight)));
    assert!(matches!(keys.reserve(id, B).await, Ok(Reserved::Other)));
    claim(Ok(first)).confirm().await;
    assert!(matches!(keys.reserve(id, A).await, Ok(Reserved::Accepted { .. })));
    assert!(matches!(keys.reserve(id, B).await, Ok(Reserved::Other)));
}

#[tokio::test]
async fn a_refused_job_frees_its_id() {
    let folder = Folder::new();
    let keys = Keys::open(&folder.0, MOST).unwrap();
    let id = JobId::new();
    let mut first = claim(keys.reserve(id, A).await);
    first.publishing();
    first.refused();
    let next = keys.reserve(id, B).await.unwrap();
    assert!(matches!(next, Reserved::New(_)), "{next:?}");
}

#[tokio::test]
async fn a_request_that_ends_before_its_publish_frees_its_id() {
    let folder = Folder::new();
    let keys = Keys::open(&folder.0, MOST).unwrap();
    let id = JobId::new();
    drop(claim(keys.reserve(id, A).await));
    let next = keys.reserve(id, B).await.unwrap();
    assert!(matches!(next, Reserved::New(_)), "{next:?}");
}

#[tokio::test]
async fn a_publish_of_unknown_fate_leaves_the_id_unsure() {
    let folder = Folder::new();
    let keys = Keys::open(&folder.0, MOST).unwrap();
    let id = JobId::new();
    publish(claim(keys.reserve(id, A).await));
    // A second try that is refused says nothing about the first one.
    let mut second = claim(keys.reserve(id, A).await);
    second.publishing();
    second.refused();
    drop(claim(keys.reserve(id, A).await));
    let second = keys.reserve(id, A).await.unwrap();
    assert!(matches!(second, Reserved::Unsure(_)), "{second:?}");
    assert!(matches!(keys.reserve(id, A).await, Ok(Reserved::InFlight)), "one at a time");
    assert!(matches!(keys.reserve(id, B).await, Ok(Reserved::Other)));
}

#[tokio::test]
async fn of_many_who_ask_at_once_one_is_first() {
    let folder = Folder::new();
    let keys = Keys::open(&folder.0, MOST).unwrap();
    for _ in 0..20 {
        let id = JobId::new();
        let answers = join_all((0..50).map(|_| keys.reserve(id, A))).await;
        let first = answers.iter().filter(|answer| matches!(answer, Ok(Reserved::New(_)))).count();
        let others = answers.iter().filter(|answer| matches!(answer, Ok(Reserved::InFlight))).count();
        assert_eq!((first, others), (1, 49));
    }
    let id = JobId::new();
    let twice = keys.reserve_all(vec![(id, A), (JobId::new(), A), (id, A), (id, B)]).await;
    let [Ok(Reserved::New(_)), Ok(Reserved::New(_)), Ok(Reserved::InFlight), Ok(Reserved::Other)] =
        twice.as_slice()
    else {
        panic!("{twice:?}")
    };
}

#[tokio::test]
async fn what_is_reserved_survives_the_process() {
    let folder = Folder::new();
    let keys = Keys::open(&folder.0, MOST).unwrap();
    let (accepted, unsure, refused) = (JobId::new(), JobId::new(), JobId::new());
    let mut held = claim(keys.reserve(unsure, A).await);
    held.publishing();
    claim(keys.reserve(accepted, A).await).confirm().await;
    claim(keys.reserve(refused, A).await).refused();
    // Written together with what came before: now that is on disk too.
    drop(keys.reserve(JobId::new(), A).await);
    let killed = folder.snapshot();
    drop((held, keys));
    for folder in [&killed, &folder] {
        let keys = Keys::open(&folder.0, MOST).unwrap();
        assert!(matches!(keys.reserve(accepted, A).await, Ok(Reserved::Accepted { .. })));
        assert!(matches!(keys.reserve(unsure, B).await, Ok(Reserved::Other)));
        publish(claim(keys.reserve(unsure, A).await));
        assert!(matches!(keys.reserve(unsure, A).await, Ok(Reserved::Unsure(_))));
        assert!(matches!(keys.reserve(refused, A).await, Ok(Reserved::New(_))));
        keys.close().await;
        assert!(matches!(keys.reserve(unsure, A).await, Err(KeysError::Unavailable(_))), "closed");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_set_aside() {
    let broken: [&dyn Fn(&PathBuf); 3] = [
        &|file| {
            fs::write(file, "this is no database, and longer than the header of one".repeat(100)).unwrap();
        },
        &|file| {
            // Pages that hold nothing sensible.
            let mut bytes = fs::read(file).unwrap();
            let len = bytes.len();
            bytes[4096..len].fill(0xA5);
            fs::write(file, bytes).unwrap();
        },
        &|file| {
            let db = rusqlite::Connection::open(file).unwrap();
            db.execute_batch("DROP TABLE keys").unwrap();
        },
    ];
    for (number, break_it) in broken.into_iter().enumerate() {
        let folder = Folder::new();
        let id = JobId::new();
        let keys = Keys::open(&folder.0, MOST).unwrap();
        drop(keys.reserve(id, A).await);
        keys.close().await;
        break_it(&folder.0.join(FILE));
        let keys = Keys::open(&folder.0, MOST).unwrap();
        assert!(matches!(keys.reserve(id, A).await, Ok(Reserved::New(_))), "{number}");
        let files = folder.files();
        assert!(files.iter().any(|name| name.starts_with("keys.db.broken-")), "{number}: {files:?}");
    }
}

#[test]
fn a_newer_file_is_left_alone() {
    let folder = Folder::new();
    let file = folder.0.join(FILE);
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = Table::open(&file, 10).unwrap_err();
    assert!(error.contains("newer version (7)"), "{error}");
    assert_eq!(folder.files().iter().filter(|name| name.contains("broken")).count(), 0);
}

/// A table and a clock that is set.
struct Timed(Table, i64);

impl Timed {
    fn new(folder: &Folder, most: i64) -> Self {
        Self(Table::open(&folder.0.join(FILE), most).unwrap(), 1_900_000_000_000)
    }

    fn pass(&mut self, time: Duration) {
        self.1 += i64::try_from(time.as_millis()).unwrap();
    }

    fn reserve(&mut self, id: JobId, claimed: bool) -> Row {
        let mut row = None;
        let now = Timestamp::from_millisecond(self.1).unwrap();
        self.0
            .transact(now, 1, |transaction| {
                row = Some(transaction.reserve(id, A, claimed)?);
                Ok(())
            })
            .unwrap();
        row.unwrap()
    }

    fn accept(&mut self, ids: &[JobId]) {
        let now = Timestamp::from_millisecond(self.1).unwrap();
        let accept =
            |transaction: &mut Transaction<'_>| ids.iter().try_for_each(|id| transaction.accept(*id));
        self.0.transact(now, 1, accept).unwrap();
    }

    /// How many of these it has.
    fn count(&self, ids: &[JobId]) -> usize {
        ids.iter().filter(|id| self.0.has(**id)).count()
    }
}

#[test]
fn a_reservation_expires_after_a_day_unless_it_is_in_flight() {
    let folder = Folder::new();
    let mut table = Timed::new(&folder, 10);
    let id = JobId::new();
    assert_eq!(table.reserve(id, false), Row::Inserted);
    table.pass(KEPT.checked_sub(Duration::from_millis(1)).unwrap());
    assert!(matches!(table.reserve(id, false), Row::Found { accepted: false, .. }));
    table.pass(Duration::from_millis(1));
    assert_eq!(table.reserve(id, false), Row::Inserted, "the day is over");
    assert!(matches!(table.reserve(id, true), Row::Found { .. }));
}

#[test]
fn there_is_a_most() {
    let folder = Folder::new();
    let mut table = Timed::new(&folder, 3);
    let ids: Vec<JobId> = (0..4).map(|_| JobId::new()).collect();
    let rows: Vec<Row> = ids.iter().map(|id| table.reserve(*id, false)).collect();
    assert_eq!(rows, [Row::Inserted, Row::Inserted, Row::Inserted, Row::Full]);
    assert!(matches!(table.reserve(ids[0], false), Row::Found { .. }), "known ones are still found");
    let mut table = Timed(Table::open(&folder.0.join(FILE), 3).unwrap(), table.1);
    assert_eq!(table.reserve(ids[3], false), Row::Full, "counted when the file is opened");
    table.pass(KEPT);
    let again: Vec<Row> = ids.iter().map(|id| table.reserve(*id, false)).collect();
    assert_eq!(again, rows, "those of yesterday make room");
}

#[test]
fn accepted_jobs_make_room_the_oldest_first() {
    let folder = Folder::new();
    let mut table = Timed::new(&folder, 3);
    let ids: Vec<JobId> = (0..6).map(|_| JobId::new()).collect();
    for id in &ids[..3] {
        assert_eq!(table.reserve(*id, false), Row::Inserted);
        table.pass(Duration::from_secs(1));
    }
    table.accept(&[ids[1], ids[2]]);
    for (id, gone) in [(ids[3], ids[1]), (ids[4], ids[2])] {
        assert_eq!(table.reserve(id, false), Row::Inserted);
        assert_eq!(table.count(&[gone]), 0);
    }
    assert_eq!(table.reserve(ids[5], false), Row::Full, "of none is it known that it was accepted");
    assert_eq!(table.count(&ids), 3);
    assert!(matches!(table.reserve(ids[0], false), Row::Found { accepted: false, .. }), "the oldest of all");

    // A bound that was lowered is come down to.
    table.accept(&[ids[0], ids[3], ids[4]]);
    let mut table = Timed(Table::open(&folder.0.join(FILE), 1).unwrap(), table.1);
    assert_eq!(table.reserve(ids[5], false), Row::Inserted);
    assert_eq!(table.count(&ids), 1);
}

#[test]
fn a_file_that_was_made_without_the_newest_index_is_used() {
    let folder = Folder::new();
    let mut table = Timed::new(&folder, 1);
    let id = JobId::new();
    table.reserve(id, false);
    drop(table);
    let db = rusqlite::Connection::open(folder.0.join(FILE)).unwrap();
    db.execute_batch("DROP INDEX keys_accepted").unwrap();
    drop(db);
    let mut table = Timed::new(&folder, 1);
    table.accept(&[id]);
    assert_eq!(table.reserve(JobId::new(), false), Row::Inserted);
}

#[test]
fn what_fails_is_undone() {
    let folder = Folder::new();
    let mut table = Timed::new(&folder, 1);
    let (now, id) = (Timestamp::now(), JobId::new());
    let failed = table.0.transact(now, 1, |transaction| {
        transaction.reserve(id, A, false)?;
        Err(rusqlite::Error::InvalidQuery)
    });
    assert!(failed.is_err());
    assert_eq!(table.reserve(JobId::new(), false), Row::Inserted, "there is room");
}
