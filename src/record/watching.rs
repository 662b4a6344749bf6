//! Who wants to know when something happens to a job.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::job::JobId;

/// Most jobs that are watched one by one; who comes after is woken by every change.
const WATCHED_MAX: usize = 100_000;

/// The watches of one process; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Watching(Arc<Inner>);

#[derive(Default)]
struct Inner {
    jobs: Mutex<HashMap<JobId, watch::Sender<()>>>,
    any: watch::Sender<()>,
}

/// Tells when something happens to a job. Dropped, it frees its place.
pub struct JobWatch {
    /// Whose place; none for one that is woken by every change.
    id: Option<JobId>,
    /// Taken only when it is dropped.
    changes: Option<watch::Receiver<()>>,
    watching: Watching,
}

impl Watching {
    pub(super) fn watch(&self, id: JobId) -> JobWatch {
        let mut jobs = self.jobs();
        if jobs.len() >= WATCHED_MAX && !jobs.contains_key(&id) {
            let changes = Some(self.0.any.subscribe());
            return JobWatch { id: None, changes, watching: self.clone() };
        }
        let changes = Some(jobs.entry(id).or_default().subscribe());
        drop(jobs);
        JobWatch { id: Some(id), changes, watching: self.clone() }
    }

    /// Something happened to these jobs, and the record shows it.
    pub(super) fn wake<'a>(&self, changed: impl IntoIterator<Item = &'a JobId>) {
        let jobs = self.jobs();
        if !jobs.is_empty() {
            for sender in changed.into_iter().filter_map(|id| jobs.get(id)) {
                sender.send_replace(());
            }
        }
        drop(jobs);
        self.0.any.send_replace(());
    }

    /// Anything may have happened: the record was begun anew.
    pub(super) fn wake_all(&self) {
        self.jobs().values().for_each(|sender| sender.send_replace(()));
        self.0.any.send_replace(());
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<()>>> {
        // The map is whole after every statement.
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobWatch {
    /// Completes when the record of the job may have changed since the watch was made or this completed last.
    pub async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes {
            // The sender lives as long as this watch does.
            let _ = changes.changed().await;
        }
    }
}

impl Drop for JobWatch {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut jobs = self.watching.jobs();
        // Under the lock, or each of two that go at the same time takes the other one for one that stays.
        drop(self.changes.take());
        if jobs.get(&id).is_some_and(|sender| sender.receiver_count() == 0) {
            jobs.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_watch_is_woken_by_its_job_and_frees_its_place() {
        let (watching, id, other) = (Watching::default(), JobId::new(), JobId::new());
        let (mut first, mut second) = (watching.watch(id), watching.watch(id));
        watching.wake([&other]);
        assert!(first.changed().now_or_never().is_none());
        watching.wake([&other, &id]);
        assert!(first.changed().now_or_never().is_some() && second.changed().now_or_never().is_some());
        assert!(first.changed().now_or_never().is_none(), "told once");
        // What happened between two looks is told.
        watching.wake_all();
        first.changed().await;
        drop(first);
        assert_eq!(watching.jobs().len(), 1);
        drop(second);
        assert_eq!(watching.jobs().len(), 0);
    }

    #[test]
    fn watches_that_go_at_the_same_time_leave_no_place_behind() {
        let watching = Watching::default();
        for _ in 0..200 {
            let id = JobId::new();
            let watches = [(); 8].map(|()| watching.watch(id));
            std::thread::scope(|scope| {
                let held = watching.jobs();
                for watch in watches {
                    scope.spawn(|| drop(watch));
                }
                // They come one right behind the other when they wait for the lock, as most do by then.
                std::thread::sleep(std::time::Duration::from_millis(1));
                drop(held);
            });
        }
        assert_eq!(watching.jobs().len(), 0);
    }

    #[tokio::test]
    async fn too_many_watches_are_woken_by_everything() {
        let watching = Watching::default();
        let kept: Vec<JobWatch> = (0..WATCHED_MAX).map(|_| watching.watch(JobId::new())).collect();
        let mut late = watching.watch(JobId::new());
        watching.wake([&JobId::new()]);
        assert!(late.changed().now_or_never().is_some());
        assert_eq!(watching.jobs().len(), WATCHED_MAX);
        drop(kept);
        assert_eq!(watching.jobs().len(), 0);
    }
}
