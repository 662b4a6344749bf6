//! The thread that owns the spool's file.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tracing::{error, info};

use super::{
    Entry, Shared, SpoolError,
    body::Row,
    file::{Table, Taken},
    index::Lane,
    number,
};
use crate::job::JobId;

/// Most commands that wait for the thread.
pub(super) const WAITING: usize = 10_000;
/// Bytes of jobs after which a transaction is written: what the write-ahead log may need at once (`ballast`).
const BATCH: u64 = 4 << 20;

/// Who is told what was written, once it is on disk.
type Told = oneshot::Sender<Result<(), SpoolError>>;
/// Which lanes are wanted; asked job by job, in order.
pub(super) type Pick = Box<dyn FnMut(&Lane) -> bool + Send>;

/// A job on its way to the file.
pub(super) struct Put {
    pub(super) row: Row,
    pub(super) turn: Turn,
    pub(super) told: Told,
    /// Its memory, until it is written.
    pub(super) _room: OwnedSemaphorePermit,
}

pub(super) enum Command {
    Put(Put),
    /// Some have left, which the index knows.
    Remove(Told),
    /// The jobs after a place, at most so many, to be published.
    Take(i64, usize, Pick, oneshot::Sender<Result<Taken, SpoolError>>),
    Find(JobId, oneshot::Sender<Result<Option<Entry>, SpoolError>>),
    /// When the job was submitted that is forwarded next.
    Oldest(oneshot::Sender<Result<Option<Timestamp>, SpoolError>>),
    Close(oneshot::Sender<()>),
}

impl Command {
    fn size(&self) -> u64 {
        match self {
            Self::Put(put) => put.row.size(),
            _ => 0,
        }
    }
}

/// Whose turn it is: a job that is not being written yet can be given up, and then surely is not stored.
#[derive(Debug, Clone, Default)]
pub(super) struct Turn(Arc<AtomicU8>);

impl Turn {
    const WAITS: u8 = 0;
    const BEGUN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn change(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::WAITS, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// It is written now; not if it was given up.
    pub(super) fn begin(&self) -> bool {
        self.change(Self::BEGUN)
    }

    #[cfg(test)]
    pub(super) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::BEGUN
    }

    /// It is given up; not if it is being written.
    pub(super) fn give_up(&self) -> bool {
        self.change(Self::GIVEN_UP)
    }
}

pub(super) struct Keeper {
    pub(super) table: Table,
    pub(super) known: Shared,
    pub(super) filled: Arc<Notify>,
    /// Why the last write failed: it is said once, not for each that follows.
    pub(super) failed: Option<SpoolError>,
    pub(super) _lock: File,
}

impl Keeper {
    pub(super) fn run(mut self, mut waiting: mpsc::Receiver<Command>) {
        let mut closing = None;
        while let Some(first) = waiting.blocking_recv() {
            let mut size = first.size();
            let mut commands = vec![first];
            while commands.len() < WAITING
                && size < BATCH
                && let Ok(command) = waiting.try_recv()
            {
                size = size.saturating_add(command.size());
                commands.push(command);
            }
            if let Some(done) = self.work_off(commands) {
                waiting.close();
                closing = Some(done);
            }
        }
        // What the broker has need not be forwarded again.
        if let Err(error) = self.clear() {
            error!(%error, "forwarded jobs are left in the spool: they are forwarded once more");
        }
        drop(self);
        if let Some(done) = closing {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }

    /// Writes first, all of it in one transaction; then the rest.
    fn work_off(&mut self, commands: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let (mut puts, mut told, mut others, mut closing) = (vec![], vec![], vec![], None);
        for command in commands {
            match command {
                // Whose asker is gone, or was told that it is not stored, is not.
                Command::Put(put) if !put.told.is_closed() && put.turn.begin() => puts.push(put),
                Command::Put(_) => {}
                Command::Remove(answer) => told.push(answer),
                Command::Close(done) => closing = Some(done),
                other => others.push(other),
            }
        }
        if !puts.is_empty() {
            self.put(puts);
        }
        if !told.is_empty() {
            let done = self.clear();
            told.into_iter().for_each(|answer| drop(answer.send(done.clone())));
        }
        for other in others {
            // Whoever asked may have given up.
            match other {
                Command::Take(place, most, pick, answer) => {
                    drop(answer.send(self.take(place, most, pick)));
                }
                Command::Find(id, answer) => drop(answer.send(self.table.find(id))),
                Command::Oldest(answer) => drop(answer.send(self.oldest())),
                Command::Put(_) | Command::Remove(_) | Command::Close(_) => {}
            }
        }
        closing
    }

    /// Stores jobs, and removes what has left in the same transaction.
    fn put(&mut self, puts: Vec<Put>) {
        let (mut rows, mut askers) = (Vec::with_capacity(puts.len()), Vec::with_capacity(puts.len()));
        for put in puts {
            rows.push(put.row);
            askers.push((put.told, put._room));
        }
        let (fill, gone) = self.known.lock().to_write();
        let written = if self.table.may_grow() {
            self.table.write(&rows, &gone, fill)
        } else {
            Err(SpoolError::Unavailable("its disk is full".to_owned()))
        };
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                if self.failed.as_ref() != Some(&error) {
                    error!(%error, "the spool cannot be written: submits are refused");
                    self.failed = Some(error.clone());
                }
                self.known.lock().tally.refused += number(askers.len());
                for (asker, _) in askers {
                    let _ = asker.send(Err(error.clone()));
                }
                return;
            }
        };
        if self.failed.take().is_some() {
            info!("the spool can be written again");
        }
        {
            let mut known = self.known.lock();
            known.written(written.fill, gone.len());
            let stored = number(written.rows.iter().filter(|stored| stored.is_ok()).count());
            known.tally.taken += stored;
            known.tally.refused += number(written.rows.len()) - stored;
            for (row, place) in rows.into_iter().zip(&written.rows) {
                if let Ok(Some(place)) = place {
                    known.add(*place, row.id, row.lane);
                }
            }
        }
        self.filled.notify_one();
        for ((asker, _), stored) in askers.into_iter().zip(written.rows) {
            let _ = asker.send(stored.map(drop));
        }
    }

    /// Removes what has left.
    fn clear(&mut self) -> Result<(), SpoolError> {
        let (fill, gone) = self.known.lock().to_write();
        if !gone.is_empty() {
            let fill = self.table.remove(&gone, fill)?;
            self.known.lock().written(fill, gone.len());
        }
        Ok(())
    }

    fn oldest(&self) -> Result<Option<Timestamp>, SpoolError> {
        let first = self.known.lock().first();
        first.map_or(Ok(None), |place| self.table.submitted_at(place))
    }

    fn take(&mut self, place: i64, most: usize, pick: Pick) -> Result<Taken, SpoolError> {
        self.clear()?;
        let places = self.known.lock().next(place, most, pick);
        let taken = self.table.take(&places)?;
        let mut known = self.known.lock();
        taken.unreadable.iter().for_each(|place| known.unreadable(*place));
        Ok(taken)
    }
}
