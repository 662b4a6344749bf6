//! Jobs that the broker has and whose event is not in the log yet.
//!
//! Nobody who reads the log knows of them. The process that accepted such a job must not say that there is none: it
//! remembers the id until what waits to be written has been written.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use crate::{amqp::PublishError, job::JobId, record::writer::EventWriter};

/// Most ids that are remembered: many more than events that may wait for the log.
const MOST: usize = 100_000;
/// How long one look at whether the writer has got so far may take.
const LOOK: Duration = Duration::from_secs(30);
/// Pause before the next one, when there was no room to ask.
const AGAIN: Duration = Duration::from_secs(1);

/// The ids; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Untold(Arc<Mutex<Ids>>);

#[derive(Debug, Default)]
struct Ids {
    all: HashSet<JobId>,
    /// Those of them whose event was not written in time.
    late: Vec<JobId>,
    /// Somebody waits for the late ones.
    awaited: bool,
}

impl Untold {
    /// The broker has these jobs: they are untold until the end of [`Telling`].
    pub(super) fn begin(&self, mut these: Vec<JobId>, writer: &EventWriter) -> Telling {
        let mut ids = self.ids();
        these.retain(|id| ids.all.len() < MOST && ids.all.insert(*id));
        Telling { ids: these, untold: self.clone(), writer: writer.clone() }
    }

    /// Whether the job's event may not be in the log yet.
    #[cfg(feature = "server")]
    pub(super) fn has(&self, id: JobId) -> bool {
        self.ids().all.contains(&id)
    }

    /// Not in time; true: somebody has to wait for it, and nobody does.
    fn put_off(&self, these: &[JobId]) -> bool {
        let mut ids = self.ids();
        ids.late.extend(these);
        !std::mem::replace(&mut ids.awaited, true)
    }

    /// Waits until the events of those that are late are written: all that was handed over before is, when something is
    /// that is handed over now.
    async fn await_late(self, writer: EventWriter) {
        while let Some(late) = self.late() {
            loop {
                match writer.write(&[], Instant::now() + LOOK).await {
                    Ok(()) => break,
                    // The process ends.
                    Err(PublishError::Unavailable(_)) => return,
                    Err(_) => sleep(AGAIN).await,
                }
            }
            self.forget(&late);
        }
    }

    /// Those that are late; none: nobody waits any more.
    fn late(&self) -> Option<Vec<JobId>> {
        let mut ids = self.ids();
        let late = std::mem::take(&mut ids.late);
        ids.awaited = !late.is_empty();
        ids.awaited.then_some(late)
    }

    fn forget(&self, told: &[JobId]) {
        let mut ids = self.ids();
        for id in told {
            ids.all.remove(id);
        }
    }

    fn ids(&self) -> MutexGuard<'_, Ids> {
        // Whole after every statement; at worst an id stays.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of jobs are being written. Dropped before [`Telling::done`], they are written later.
pub(super) struct Telling {
    ids: Vec<JobId>,
    untold: Untold,
    writer: EventWriter,
}

impl Telling {
    /// The log has the events.
    pub(super) fn done(mut self) {
        self.untold.forget(&std::mem::take(&mut self.ids));
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if self.ids.is_empty() {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) => {
                if self.untold.put_off(&self.ids) {
                    runtime.spawn(self.untold.clone().await_late(self.writer.clone()));
                }
            }
            // Nobody is left to ask.
            Err(_) => self.untold.forget(&self.ids),
        }
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;

    #[test]
    fn late_ones_are_awaited_by_one_and_forgotten_when_they_are_written() {
        let untold = Untold::default();
        let ids: Vec<JobId> = (0..3).map(|_| JobId::new()).collect();
        untold.ids().all.extend(&ids);
        assert!(untold.put_off(&ids[..1]), "nobody waits yet");
        assert!(!untold.put_off(&ids[1..2]), "somebody does");
        assert_eq!(untold.late(), Some(vec![ids[0], ids[1]]));
        assert!(!untold.put_off(&ids[2..]));
        untold.forget(&ids[..2]);
        assert_eq!(ids.iter().map(|id| untold.has(*id)).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(untold.late(), Some(vec![ids[2]]));
        untold.forget(&ids[2..]);
        assert_eq!(untold.late(), None);
        assert!(untold.put_off(&[JobId::new()]), "the next one needs somebody again");
    }
}
