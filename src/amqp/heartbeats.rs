//! Heartbeats: what each worker says of itself every few seconds, and who has said so lately.
//!
//! Best effort on both sides: a worker publishes on `hopline.events` without confirms, an HTTP process keeps the newest
//! word of each worker in memory. It is what people look at; and a queue that a worker has jobs of is not looked through
//! for lost ones. During an alarm of the broker nothing is published, so all workers seem to be gone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use lapin::{
    Channel,
    options::{QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    connection::{Link, LinkDown, in_time},
    consumer::{Consuming, Delivery, Source, consume},
    control::record::time,
    message::short,
    names::Names,
    outlet::Outlet,
};
use crate::job::{JobId, Kind, QueueName, json, wire::Message};

/// Message type.
const HEARTBEAT: &str = "hopline.worker.heartbeat";
/// How often a worker says that it is there.
pub(crate) const EVERY: Duration = Duration::from_secs(5);
/// A worker that has said nothing for so long is gone.
const GONE: Duration = Duration::from_secs(20);
/// For so long it is remembered that a worker was there, and whether it has ended.
const REMEMBERED: Duration = Duration::from_secs(2 * 3600);
/// Most workers known at a time.
const WORKERS_MAX: usize = 10_000;
/// Longest heartbeat that is read.
const BODY_MAX: usize = 64 << 10;
/// Heartbeats that wait in the queue of an HTTP process; the oldest go.
const LENGTH: i32 = 10_000;
/// Heartbeats taken at a time.
const PREFETCH: u16 = 500;
/// Most queues, kinds and jobs of a heartbeat: with the longest names they stay within [`BODY_MAX`].
const QUEUES_MAX: usize = 100;
const KINDS_MAX: usize = 150;
pub(crate) const JOBS_MAX: usize = 100;

/// A worker process, by its last heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WorkerInfo {
    /// Its name, as in logs and records.
    pub worker: String,
    /// Version of the library it is built with.
    pub version: String,
    /// The machine it runs on.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// When it started.
    #[serde(with = "time")]
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// The queues it takes jobs from; at most 100, those with jobs before idle ones.
    pub queues: Vec<WorkerQueue>,
    /// The kinds it runs, aliases too; the first 150.
    pub kinds: Vec<WorkerKind>,
    /// Jobs that it runs now; at most 100 of them.
    pub jobs: Vec<JobId>,
}

/// One queue of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WorkerQueue {
    /// Which.
    pub queue: QueueName,
    /// Attempts that it makes at the same time.
    pub concurrency: usize,
    /// Jobs that it takes ahead, those running included.
    pub prefetch: u16,
    /// Attempts that run now.
    pub running: usize,
    /// Jobs that wait in the worker for their turn.
    pub waiting: usize,
    /// Whether the queue is paused, as this worker knows.
    pub paused: bool,
}

/// One kind of a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WorkerKind {
    /// Which.
    pub kind: Kind,
    /// The queue it is taken from.
    pub queue: QueueName,
}

/// A heartbeat on the wire.
#[derive(Serialize, Deserialize)]
pub(super) struct Heartbeat {
    #[serde(flatten)]
    info: WorkerInfo,
    /// The last one: the worker has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
}

impl Heartbeat {
    /// Reads a heartbeat; `None`: another message, or one that is too long.
    ///
    /// # Errors
    /// What is wrong, in bounds.
    pub(super) fn read(message: &Message) -> Result<Option<Self>, String> {
        if message.kind.as_deref() != Some(HEARTBEAT) || message.body.len() > BODY_MAX {
            return Ok(None);
        }
        json::read(&message.body).map(Some)
    }
}

/// Publishes a heartbeat, if that is possible now.
pub(crate) fn publish(outlet: &Outlet, names: &Names, mut info: WorkerInfo, ended: bool) {
    keep_busy(&mut info.queues);
    info.kinds.truncate(KINDS_MAX);
    info.jobs.truncate(JOBS_MAX);
    let key = Names::heartbeat_key(&info.worker);
    let heartbeat = Heartbeat { info, ended };
    let message = Message {
        kind: Some(HEARTBEAT.to_owned()),
        content_type: Some("application/json".to_owned()),
        // Names and numbers: nothing here can fail.
        body: serde_json::to_vec(&heartbeat).unwrap_or_default().into(),
        ..Message::default()
    };
    outlet.beat(names.events(), key, message);
}

/// Leaves out as many queues as have no place: idle ones first. Of a queue that no heartbeat shows, jobs count as lost.
fn keep_busy(queues: &mut Vec<WorkerQueue>) {
    if queues.len() > QUEUES_MAX {
        // Stable: otherwise the first stay.
        queues.sort_by_key(|share| share.running == 0 && share.waiting == 0);
        queues.truncate(QUEUES_MAX);
    }
}

/// The workers that are there; cheap to clone.
#[derive(Clone)]
pub(crate) struct Heartbeats {
    workers: Arc<Mutex<Workers>>,
    stop: CancellationToken,
}

impl Heartbeats {
    /// Starts to receive heartbeats over `link`.
    pub(crate) fn start(link: &Link, names: &Names, instance: &str) -> Self {
        let this = Self { workers: Arc::default(), stop: CancellationToken::new() };
        let (deliveries, mut incoming) = mpsc::channel::<Delivery>(PREFETCH.into());
        let consuming = Consuming {
            link: link.clone(),
            prefetch: PREFETCH,
            long: None,
            deliveries,
            stop: this.stop.clone(),
            consuming: Arc::new(AtomicBool::new(false)),
            acknowledging: TaskTracker::new(),
        };
        let source =
            HeartbeatQueue { names: names.clone(), instance: instance.to_owned(), queue: String::new() };
        link.runtime().spawn(consume(consuming, source));
        let learning = this.clone();
        link.runtime().spawn(async move {
            while let Some(delivery) = incoming.recv().await {
                learning.workers().learn(&delivery.incoming.message, Instant::now());
                delivery.receipt.ack();
            }
        });
        this
    }

    /// The workers that have said something lately, by name.
    pub(crate) fn all(&self) -> Vec<WorkerInfo> {
        self.workers().alive(Instant::now())
    }

    /// Whether a worker is known to be gone that spoke in the control log at `heard`: it said so, or has said nothing for
    /// long since then, while others spoke. An alarm of the broker silences all of them, and then nobody is known to be
    /// gone.
    pub(crate) fn gone(&self) -> impl Fn(&str, Instant) -> bool + '_ {
        let workers = self.workers();
        move |worker, heard| workers.is_gone(worker, heard)
    }

    pub(crate) fn close(&self) {
        self.stop.cancel();
    }

    fn workers(&self) -> MutexGuard<'_, Workers> {
        // The map is whole after every statement.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest word of each worker, and when it came.
#[derive(Debug, Default)]
struct Workers {
    seen: HashMap<String, Seen>,
    /// When anybody spoke last.
    last: Option<Instant>,
}

/// What a worker said last.
#[derive(Debug)]
struct Seen {
    at: Instant,
    /// None: it has ended.
    info: Option<WorkerInfo>,
}

impl Workers {
    fn learn(&mut self, message: &Message, now: Instant) {
        let Heartbeat { info, ended } = match Heartbeat::read(message) {
            Ok(Some(heartbeat)) => heartbeat,
            Ok(None) => return,
            Err(error) => return debug!(error, "not a heartbeat"),
        };
        self.last = Some(now);
        if self.seen.len() >= WORKERS_MAX && !self.seen.contains_key(&info.worker) {
            self.seen.retain(|_, seen| seen.info.is_some() && now.duration_since(seen.at) < GONE);
            if self.seen.len() >= WORKERS_MAX {
                return;
            }
        }
        self.seen.insert(info.worker.clone(), Seen { at: now, info: Some(info).filter(|_| !ended) });
    }

    fn alive(&mut self, now: Instant) -> Vec<WorkerInfo> {
        self.seen.retain(|_, seen| now.duration_since(seen.at) < REMEMBERED);
        let spoke = self.seen.values().filter(|seen| now.duration_since(seen.at) < GONE);
        let mut alive: Vec<WorkerInfo> = spoke.filter_map(|seen| seen.info.clone()).collect();
        alive.sort_by(|a, b| a.worker.cmp(&b.worker));
        alive
    }

    fn is_gone(&self, worker: &str, heard: Instant) -> bool {
        let spoke = match self.seen.get(worker) {
            Some(Seen { info: None, .. }) => return true,
            Some(seen) => seen.at.max(heard),
            None => heard,
        };
        self.last.is_some_and(|last| last.saturating_duration_since(spoke) >= GONE)
    }
}

/// Declares a queue of a new name for each channel: RabbitMQ keeps an exclusive one locked for a while after its
/// connection was cut.
struct HeartbeatQueue {
    names: Names,
    instance: String,
    queue: String,
}

impl HeartbeatQueue {
    async fn bind(&self, channel: &Channel) -> Result<(), LinkDown> {
        let (queue, exchange, key) =
            (short(&self.queue), short(&self.names.events()), Names::heartbeat_key("*"));
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(queue, exchange, short(&key), options, FieldTable::default());
        in_time("bind the queue of heartbeats", bound).await
    }
}

impl Source for HeartbeatQueue {
    async fn prepare(&mut self, channel: &Channel, round: u64) -> Result<(String, FieldTable), LinkDown> {
        self.queue = self.names.heartbeat_queue(&self.instance, round);
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(LENGTH));
        let declared = channel.queue_declare(short(&self.queue), options, arguments);
        in_time("declare the queue of heartbeats", declared).await?;
        self.bind(channel).await?;
        Ok((self.queue.clone(), FieldTable::default()))
    }

    /// The exchange may have been deleted and declared again, without our binding.
    async fn when_quiet(&mut self, channel: &Channel) -> Result<bool, LinkDown> {
        self.bind(channel).await.map(|()| false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(worker: &str) -> WorkerInfo {
        WorkerInfo {
            worker: worker.to_owned(),
            version: "0.1.0".into(),
            host: "web".into(),
            pid: 7,
            since: Timestamp::UNIX_EPOCH,
            queues: Vec::new(),
            kinds: Vec::new(),
            jobs: vec![JobId::new()],
        }
    }

    fn beat(worker: &str, ended: bool) -> Message {
        let body = serde_json::to_vec(&Heartbeat { info: info(worker), ended }).unwrap();
        Message { kind: Some(HEARTBEAT.into()), body: body.into(), ..Message::default() }
    }

    fn names(workers: &mut Workers, now: Instant) -> Vec<String> {
        workers.alive(now).into_iter().map(|info| info.worker).collect()
    }

    #[test]
    fn a_worker_is_there_until_it_ends_or_falls_silent() {
        let (mut workers, start) = (Workers::default(), Instant::now());
        workers.learn(&beat("b", false), start);
        workers.learn(&beat("a", false), start);
        assert_eq!(names(&mut workers, start), ["a", "b"]);
        workers.learn(&beat("a", true), start);
        assert_eq!(names(&mut workers, start), ["b"]);
        workers.learn(&beat("b", false), start + GONE / 2);
        assert_eq!(names(&mut workers, start + GONE), ["b"]);
        assert_eq!(names(&mut workers, start + GONE + GONE / 2), [""; 0]);
    }

    #[test]
    fn a_worker_is_gone_when_it_says_so_or_is_silent_while_others_speak() {
        let (mut workers, start) = (Workers::default(), Instant::now());
        let gone = |workers: &Workers, worker| workers.is_gone(worker, start);
        assert!(!gone(&workers, "a"), "nothing is known of anybody");
        workers.learn(&beat("a", false), start);
        workers.learn(&beat("b", false), start + GONE / 2);
        // An alarm: nobody speaks.
        assert_eq!(names(&mut workers, start + 9 * GONE), [""; 0]);
        assert!(!gone(&workers, "a") && !gone(&workers, "b") && !gone(&workers, "never heard"));
        workers.learn(&beat("b", false), start + 9 * GONE);
        assert!(gone(&workers, "a") && gone(&workers, "never heard") && !gone(&workers, "b"));
        assert!(!workers.is_gone("announced just now", start + 9 * GONE));
        workers.learn(&beat("b", true), start + 9 * GONE);
        assert!(workers.is_gone("b", start + 9 * GONE));
        assert_eq!(names(&mut workers, start + 9 * GONE), [""; 0]);
    }

    #[test]
    fn the_number_of_workers_is_bounded() {
        let (mut workers, start) = (Workers::default(), Instant::now());
        for n in 0..=WORKERS_MAX {
            workers.learn(&beat(&n.to_string(), false), start);
        }
        assert_eq!(workers.seen.len(), WORKERS_MAX);
        workers.learn(&beat("later", false), start + GONE);
        assert_eq!(names(&mut workers, start + GONE), ["later"], "those that are gone make room");
    }

    #[test]
    fn what_is_no_heartbeat_is_passed_over() {
        let mut workers = Workers::default();
        let now = Instant::now();
        for message in [
            Message { kind: None, ..beat("a", false) },
            Message { body: "{}".into(), ..beat("a", false) },
            Message { body: vec![b' '; BODY_MAX + 1].into(), ..beat("a", false) },
        ] {
            workers.learn(&message, now);
        }
        assert!(workers.seen.is_empty());
    }

    #[test]
    fn queues_with_jobs_are_shown_before_idle_ones() {
        let share = |n: usize, running, waiting| WorkerQueue {
            queue: QueueName::parse(format!("q{n}")).unwrap(),
            concurrency: 1,
            prefetch: 2,
            running,
            waiting,
            paused: false,
        };
        let shown = |queues: &[WorkerQueue]| -> Vec<String> {
            let mut queues = queues.to_vec();
            keep_busy(&mut queues);
            queues.iter().map(|share| share.queue.to_string()).collect()
        };
        let mut queues: Vec<_> = (0..QUEUES_MAX).map(|n| share(n, 0, 0)).collect();
        queues[7].running = 1;
        let all: Vec<String> = queues.iter().map(|share| share.queue.to_string()).collect();
        assert_eq!(shown(&queues), all, "in their order, where all have a place");
        queues.extend([share(500, 0, 0), share(501, 1, 0), share(502, 0, 1)]);
        let expected = ["q7", "q501", "q502", "q0", "q1"];
        let shown = shown(&queues);
        assert_eq!((&shown[..5], shown.len()), (&expected.map(str::to_owned)[..], QUEUES_MAX));
    }

    #[test]
    fn the_longest_heartbeat_is_read() {
        let (queue, kind) =
            (QueueName::parse("q".repeat(60)).unwrap(), Kind::parse("k".repeat(100)).unwrap());
        let share = WorkerQueue {
            queue: queue.clone(),
            concurrency: 65_535,
            prefetch: 65_535,
            running: 65_535,
            waiting: 65_535,
            paused: false,
        };
        let info = WorkerInfo {
            worker: "w".repeat(200),
            queues: vec![share; QUEUES_MAX],
            kinds: vec![WorkerKind { kind, queue }; KINDS_MAX],
            jobs: vec![JobId::new(); JOBS_MAX],
            ..info("")
        };
        let body = serde_json::to_vec(&Heartbeat { info, ended: true }).unwrap();
        assert!(body.len() <= BODY_MAX, "{}", body.len());
    }
}
