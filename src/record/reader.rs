//! The record of an HTTP process: one handle on the store, on what follows the log, and on who waits for news.
//!
//! Reads run on threads that may block. What is read is as new as the projection; who must not miss what happened
//! before asks for a barrier first ([`Record::catch_up`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    runtime::{self, RuntimeFlavor},
    sync::{Notify, watch},
    task::{block_in_place, spawn_blocking},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    answers,
    barrier::Barriers,
    fold,
    latest::{Follower, Latest},
    looks::Looks,
    model::{
        Counts, Filter, Group, JobRecord, Moment, Page, Position, QueueRecord, Scope, StoredEvent, Stretch,
        Summary,
    },
    projector::Projector,
    rates::Rates,
    store::{Store, StoreError},
    touched::Touched,
    upkeep,
    watching::{JobWatch, Watching},
};
use crate::{
    amqp::{connection::Link, stream::Place},
    client::Client,
    config::{self, Config},
    event::Event,
    job::{JobId, QueueName},
};

/// How long what follows the log is waited for at the end.
const CLOSE: Duration = Duration::from_secs(5);

/// Why the record cannot answer, or cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Another process has the folder.
    #[error(
        "the record in {0} belongs to a process that runs: give each its own folder (record.path, HOPLINE_RECORD_PATH)"
    )]
    Locked(PathBuf),
    /// The folder or the file cannot be used.
    #[error("cannot use the record in {path}: {detail}")]
    Storage {
        /// Which folder.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// Too many questions at the same time.
    #[error("the record is too busy")]
    Busy,
    /// This member of a filter cannot be read.
    #[error("filter member {0} cannot be read")]
    Filter(&'static str),
    /// The log could not be read up to its end in time: what is asked for may be in the part not read yet.
    #[error("the record is behind the event log: {0}")]
    Behind(String),
}

/// The record of an HTTP process; cheap to clone. With the last clone it stops following the log.
#[derive(Clone)]
pub struct Record(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    config: config::Record,
    /// The last record of the log that is known.
    place: Option<Place>,
    stop: CancellationToken,
    tasks: TaskTracker,
    following: OnceLock<Following>,
}

/// What can be seen of the reading of the log.
struct Following {
    link: Link,
    consuming: Arc<AtomicBool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(following) = self.following.get() {
            following.link.give_up();
        }
    }
}

/// What the handle shares with the tasks that follow the log.
pub(super) struct Shared {
    store: RwLock<Option<Arc<Store>>>,
    path: PathBuf,
    pub(super) barriers: Barriers,
    pub(super) watching: Watching,
    pub(super) looks: Looks,
    pub(super) latest: Latest,
    pub(super) tail: watch::Sender<Position>,
    /// Somebody has found that the file is damaged.
    pub(super) damaged: Notify,
    rates: Mutex<Rates>,
    touched: Mutex<Touched>,
    trouble: Mutex<Option<String>>,
}

/// Why the store did not do what it was asked for.
#[derive(Debug)]
pub(super) enum Failed {
    /// It says why.
    Store(StoreError),
    /// It panicked.
    Panicked,
    /// The record is closed.
    Closed,
}

impl Shared {
    /// Asks the store on a thread that may block.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failed> {
        let store = self.store().ok_or(Failed::Closed)?;
        match spawn_blocking(move || question(&store)).await {
            Ok(answer) => answer.map_err(Failed::Store),
            Err(_) => Err(Failed::Panicked),
        }
    }

    /// As [`Shared::ask`], for whoever reads the record.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RecordError> {
        self.answer(self.ask(question).await)
    }

    fn answer<T>(&self, answer: Result<T, Failed>) -> Result<T, RecordError> {
        answer.map_err(|failed| match failed {
            Failed::Store(StoreError::Busy) => RecordError::Busy,
            Failed::Store(StoreError::Filter(member)) => RecordError::Filter(member),
            Failed::Store(error) => {
                if matches!(error, StoreError::Corrupt(_)) {
                    self.damaged.notify_one();
                }
                self.unusable(&error)
            }
            Failed::Panicked => self.storage("an error in the program; the log has more".to_owned()),
            Failed::Closed => self.storage("closed".to_owned()),
        })
    }

    /// As [`Shared::read`], for what takes some microseconds: on this thread, where it may block and no other reader is
    /// waited for, as far as can be seen. Two changes of threads cost more than that, and many times more while the
    /// processors are busy.
    async fn glance<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RecordError> {
        let may_block = runtime::Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
        match self.store() {
            Some(store) if may_block && store.is_at_leisure() => {
                let looked = block_in_place(|| catch_unwind(AssertUnwindSafe(|| question(&store))));
                self.answer(looked.map_or(Err(Failed::Panicked), |answer| answer.map_err(Failed::Store)))
            }
            _ => self.read(question).await,
        }
    }

    fn store(&self) -> Option<Arc<Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unusable(&self, error: &StoreError) -> RecordError {
        match error {
            StoreError::Locked(path) => RecordError::Locked(path.clone()),
            error => self.storage(in_full(error)),
        }
    }

    fn storage(&self, detail: String) -> RecordError {
        RecordError::Storage { path: self.path.clone(), detail }
    }

    pub(super) fn rates(&self) -> MutexGuard<'_, Rates> {
        // Counts: whole after every statement.
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touched(&self) -> MutexGuard<'_, Touched> {
        // Losing a mark costs at worst one answer that is some milliseconds old.
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps the projection from going on; `None`: nothing.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The last record of the log that is known, and the last position.
fn known(store: &Store) -> Result<(Option<Place>, Position), StoreError> {
    let place = store.resume()?.map(|resume| Place { offset: resume.offset, mark: resume.message_id });
    Ok((place, store.tail()?))
}

/// An error with its causes.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Record {
    /// Opens the record in `record.path`, and locks the folder. A file that cannot be read is set aside. Blocks for as
    /// long as the disk takes.
    ///
    /// # Errors
    /// [`RecordError::Locked`], [`RecordError::Storage`].
    pub fn open(config: &Config) -> Result<Self, RecordError> {
        let shared = Shared {
            store: RwLock::default(),
            path: config.record.path.clone(),
            barriers: Barriers::default(),
            watching: Watching::default(),
            looks: Looks::default(),
            latest: Latest::default(),
            tail: watch::Sender::default(),
            damaged: Notify::new(),
            rates: Mutex::default(),
            touched: Mutex::default(),
            trouble: Mutex::default(),
        };
        let unusable = |error: StoreError| shared.unusable(&error);
        let store = Store::open(&config.record.path).map_err(unusable)?;
        let (place, tail) = match known(&store) {
            Err(StoreError::Corrupt(detail)) => {
                let aside = store.start_over().map_err(unusable)?;
                warn!(detail, aside = %aside.display(), "the record was damaged and is rebuilt from the event log");
                known(&store).map_err(unusable)?
            }
            known => known.map_err(unusable)?,
        };
        shared.tail.send_replace(tail);
        *shared.store.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(store));
        Ok(Self(Arc::new(Handle {
            shared: Arc::new(shared),
            config: config.record.clone(),
            place,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            following: OnceLock::new(),
        })))
    }

    /// Starts to follow the event log over `client`'s broker, and to answer workers' questions. Once; called again, it
    /// changes nothing. Within a tokio runtime.
    ///
    /// # Errors
    /// A sentence: the client could not be started.
    pub fn follow(&self, client: &Client) -> Result<(), String> {
        let live = client.live()?;
        let Handle { shared, config, place, stop, tasks, following } = &*self.0;
        let (names, publisher) = (&live.names, &live.publisher);
        let mut projector = None;
        following.get_or_init(|| {
            // On a connection of its own: a record that lapin cannot read costs the connection.
            let link = live.links.start("record");
            let new = Projector::new(Arc::clone(shared), &link, names.log(), place.clone());
            let consuming = new.consuming();
            projector = Some((new, link.clone()));
            Following { link, consuming }
        });
        let Some((projector, link)) = projector else { return Ok(()) };
        let rounds = projector.rounds();
        tasks.spawn(projector.run(stop.clone()));
        tasks.spawn(shared.barriers.clone().write(publisher.clone(), names.clone(), rounds, stop.clone()));
        let desk = answers::Desk {
            shared: Arc::clone(shared),
            link: live.consume.clone(),
            publisher: publisher.clone(),
            names: names.clone(),
        };
        tasks.spawn(desk.run(stop.clone()));
        let upkeep = upkeep::Upkeep {
            shared: Arc::clone(shared),
            retention: config.retention,
            link,
            publisher: publisher.clone(),
            names: names.clone(),
        };
        tasks.spawn(upkeep.run(stop.clone()));
        tasks.close();
        Ok(())
    }

    /// Stops following, and closes the file. Whatever is asked afterwards is answered with [`RecordError::Storage`].
    pub async fn close(&self) {
        let Handle { shared, stop, tasks, following, .. } = &*self.0;
        stop.cancel();
        tasks.close();
        drop(timeout(CLOSE, tasks.wait()).await);
        if let Some(following) = following.get() {
            following.link.give_up();
        }
        let store = shared.store.write().unwrap_or_else(PoisonError::into_inner).take();
        // Closing writes.
        drop(spawn_blocking(move || drop(store)).await);
    }

    /// Whether all events written before this process started, or began to rebuild its record, are known.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        *self.0.shared.barriers.caught_up().borrow()
    }

    /// The state in a word or a sentence.
    #[must_use]
    pub fn describe(&self) -> String {
        let Handle { shared, following, .. } = &*self.0;
        let Some(Following { link, consuming }) = following.get() else {
            return "does not follow the event log".to_owned();
        };
        if let Some(trouble) = shared.trouble() {
            return trouble;
        }
        if !consuming.load(Ordering::Relaxed) {
            return match link.up() {
                Ok(_) => "the event log cannot be read".to_owned(),
                Err(down) => down.to_string(),
            };
        }
        if self.is_caught_up() { "caught up" } else { "catching up with the event log" }.to_owned()
    }

    /// Waits until everything that was confirmed before this call is in the record. Calls share their barriers.
    ///
    /// # Errors
    /// [`RecordError::Behind`], at the deadline.
    pub async fn catch_up(&self, deadline: Instant) -> Result<(), RecordError> {
        if self.0.following.get().is_some() && self.0.shared.barriers.catch_up(deadline).await {
            return Ok(());
        }
        let state = self.describe();
        let slow = "not read to its end in time".to_owned();
        Err(RecordError::Behind(if state == "caught up" { slow } else { state }))
    }

    /// This process wrote something about this job: the next [`Record::job`] catches up first.
    pub fn touch(&self, id: JobId) {
        let Shared { barriers, .. } = &*self.0.shared;
        self.0.shared.touched().add(id, barriers.asked());
    }

    /// This process has accepted a job, and wrote this event of it: [`Record::touch`], and what [`Record::job_so_far`] tells
    /// until the record has it.
    pub(crate) fn submitted(&self, event: Event) {
        let Shared { barriers, .. } = &*self.0.shared;
        self.0.shared.touched().add_submitted(event, barriers.asked());
    }

    /// A job's record, as [`Record::job`]; but of one that this process has just accepted what is known now, be it only
    /// that it was submitted. So it takes no longer while much is written.
    ///
    /// # Errors
    /// As [`Record::job`].
    pub(crate) async fn job_so_far(
        &self,
        id: JobId,
        patience: Duration,
    ) -> Result<Option<JobRecord>, RecordError> {
        let Some(event) = self.0.shared.touched().submitted(id) else { return self.job(id, patience).await };
        let known = self.job(id, Duration::ZERO).await?;
        Ok(known.or_else(|| fold::submitted(&event, Timestamp::now())))
    }

    /// A job's record. Catches up, for at most `patience`, when the job is unknown or was touched, or has not ended as far
    /// as a record knows that is still being read; without patience, it is what is known now.
    ///
    /// # Errors
    /// [`RecordError::Behind`] when it is unknown and catching up took too long; [`RecordError::Storage`].
    pub async fn job(&self, id: JobId, patience: Duration) -> Result<Option<JobRecord>, RecordError> {
        let shared = &self.0.shared;
        let fetch = || shared.glance(move |store| store.job(id, Timestamp::now()));
        if patience.is_zero() {
            return fetch().await;
        }
        let wanted = shared.touched().of(id);
        if wanted.is_none_or(|asked| shared.barriers.answered() > asked) {
            let mut known = fetch().await?;
            let has_ended = |job: &JobRecord| job.summary.status.is_final();
            if !known.as_ref().is_some_and(has_ended) && shared.looks.look().await {
                known = fetch().await?;
            }
            if let Some(job) = known
                && (self.is_caught_up() || has_ended(&job))
            {
                return Ok(Some(job));
            }
        }
        let caught_up = self.catch_up(Instant::now() + patience).await;
        match (fetch().await?, caught_up) {
            (None, Err(behind)) => Err(behind),
            (job, _) => Ok(job),
        }
    }

    /// Jobs, newest first, after the position `after`. A page may be short, even empty, although `next` says that more
    /// may follow.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn jobs(
        &self,
        filter: Filter,
        limit: usize,
        after: Option<Position>,
    ) -> Result<Page, RecordError> {
        self.0.shared.looks.look().await;
        self.0.shared.read(move |store| store.jobs(&filter, limit, after, Timestamp::now())).await
    }

    /// How many jobs there are in each state, in one queue or in all.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn counts(&self, queue: Option<QueueName>) -> Result<Counts, RecordError> {
        self.0.shared.looks.look().await;
        self.0.shared.read(move |store| store.counts(queue.as_ref(), Timestamp::now())).await
    }

    /// What is known of each queue that had a job.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn queues(&self) -> Result<BTreeMap<QueueName, QueueRecord>, RecordError> {
        let now = Timestamp::now();
        self.0.shared.looks.look().await;
        let mut queues = self.0.shared.read(move |store| store.queues(now)).await?;
        self.0.shared.rates().fill(&mut queues, now);
        Ok(queues)
    }

    /// What happened in each [`MOMENT_SECONDS`](super::model::MOMENT_SECONDS) of the last ten minutes, oldest first, in `queues` or in all. The one that goes on
    /// is not among them.
    #[must_use]
    pub fn moments(&self, queues: Option<&BTreeSet<QueueName>>) -> Vec<Moment> {
        self.0.shared.rates().moments(queues, Timestamp::now())
    }

    /// Groups of dead jobs of a queue that can be replayed, largest first, at most 1000.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn groups(&self, queue: QueueName) -> Result<Vec<Group>, RecordError> {
        self.0.shared.read(move |store| store.groups(&queue)).await
    }

    /// Events of `scope` after `after`, in the order of the log, at most `limit`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn events(&self, scope: Scope, after: Position, limit: usize) -> Result<Stretch, RecordError> {
        self.0.shared.read(move |store| store.events(&scope, after, limit)).await
    }

    /// Follows the log together with others.
    pub(crate) fn follower(&self) -> Follower {
        Follower::new(&self.0.shared)
    }

    /// All events of a job that are kept, in the order of [`crate::event::Rank`]; at most 10,000: of the progress
    /// the newest that there is room for.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn job_events(&self, id: JobId) -> Result<Vec<StoredEvent>, RecordError> {
        self.0.shared.read(move |store| store.job_events(id)).await
    }

    /// The last position applied.
    #[must_use]
    pub fn tail(&self) -> watch::Receiver<Position> {
        self.0.shared.tail.subscribe()
    }

    /// Before this position events are missing here: the log no longer had them, or retention removed them.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn first(&self) -> Result<Position, RecordError> {
        self.0.shared.read(Store::first).await
    }

    /// A watch on one job.
    #[must_use]
    pub fn watch_job(&self, id: JobId) -> JobWatch {
        self.0.shared.watching.watch(id)
    }

    /// Jobs of `queue` that have been queued, or running without news, since before `before`: the oldest first, at most
    /// `limit`. Not those that may be late since the broker was `connected`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) async fn waiting_since(
        &self,
        queue: QueueName,
        before: Timestamp,
        connected: Timestamp,
        limit: usize,
    ) -> Result<Vec<Summary>, RecordError> {
        self.0.shared.read(move |store| store.waiting_since(&queue, before, connected, limit)).await
    }
}
