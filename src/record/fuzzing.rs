//! What holds for the record, whatever is in the log ([`crate::fuzzing`]).

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    model::{Filter, Position, Scope},
    store::{LogBatch, Store},
};
use crate::{event::batch, fuzzing::event_is_kept};

/// A folder of one's own, removed in the end. In memory, where there is such a place: it is for one input.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        Self(parent.join(format!("hopline-fuzz-{}-{number}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Batches of the log, a line each. A file that cannot be read any more would be made anew for ever, by a log that
/// stays as it is.
pub(crate) fn record(data: &[u8]) {
    let batches: Vec<LogBatch> = data
        .split(|byte| *byte == b'\n')
        .take(8)
        .enumerate()
        .filter_map(|(place, line)| {
            let (events, _) = batch::decode(line).ok()?;
            let offset = u64::try_from(place).ok()?;
            Some(LogBatch { offset, message_id: format!("m{place}"), events })
        })
        .collect();
    let events: Vec<_> =
        batches.iter().flat_map(|batch| &batch.events).map(|(_, event)| event.clone()).collect();
    if events.is_empty() {
        return;
    }
    let folder = Folder::new();
    let store = Store::open(&folder.0).expect("a new file");
    let applied = store.apply(batches.clone()).expect("the log as it is");
    assert!(applied.news.len() <= events.len());
    assert!(store.apply(batches).expect("the same").news.is_empty());
    for now in [Timestamp::UNIX_EPOCH, Timestamp::MAX, Timestamp::MIN] {
        let page = store.jobs(&Filter::default(), 100, None, now).expect("a list");
        let shown: BTreeSet<_> = page.items.iter().map(|job| job.id).collect();
        let counts = store.counts(None, now).expect("counts");
        assert_eq!(counts.by_status.iter().sum::<u64>(), u64::try_from(shown.len()).expect("few"));
        store.queues(now).expect("queues");
        for event in &events {
            let job = store.job(event.job, now).expect("a job");
            assert_eq!(job.is_some(), shown.contains(&event.job));
            let asked = [(event.job, event.data.run)];
            assert_eq!(store.lookup(&asked).expect("an answer").len(), 1);
            if let Some(queue) = &event.data.queue {
                store.groups(queue).expect("groups");
                store.waiting_since(queue, now, now, 10).expect("who waits");
            }
        }
    }
    for event in &events {
        for stored in store.job_events(event.job).expect("its events") {
            event_is_kept(&stored.event);
        }
    }
    let stretch = store.events(&Scope::default(), Position::default(), 100).expect("all events");
    assert!(stretch.events.len() <= events.len());
    for (_, told) in store.stale(Timestamp::MAX, 100).expect("what is told again") {
        told.iter().for_each(event_is_kept);
    }
    store.promote(Timestamp::MAX, 100).expect("what has come due");
    store.expire(Timestamp::MAX, Duration::ZERO, 100).expect("what is old");
    store.jobs(&Filter::default(), 100, None, Timestamp::MAX).expect("what is left");
}
