//! One test's stage: a prefix of its own, the processes that play on it, and the clean-up afterwards.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use futures_util::FutureExt;
use hopline::{
    Client, Config, Kind, Options, QueueName, Worker,
    amqp::Names,
    client::{Submission, SubmitError},
    config,
    courier::Courier,
    job::{Job, JobId},
    record::Record,
    telemetry,
    worker::{Report, WorkerError},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    eventually,
    front::Front,
    probe::{self, Log, Probe, quick},
    rabbit::Rabbit,
};

/// What the names of the ladder start with: it is shared.
pub(crate) const LADDER: &str = "hltest";
/// Longest time for a test, its waiting included.
const TEST_MAX: Duration = Duration::from_secs(120);
/// Longest time for what a test started to end.
const END_MAX: Duration = Duration::from_secs(30);

/// A test's part of the broker, and what runs on it.
pub(crate) struct Stage {
    pub(crate) rabbit: Rabbit,
    pub(crate) config: Config,
    pub(crate) names: Names,
    /// The test's work queue. No other test has one of this name: the ladder is shared.
    pub(crate) queue: QueueName,
    ending: CancellationToken,
    tasks: TaskTracker,
    clients: Mutex<Vec<Client>>,
    /// Records of fronts, each in a folder of its own below `folder`.
    records: Mutex<Vec<Record>>,
    folder: PathBuf,
}

/// Runs a test on a stage of its own, in bounded time, and cleans up however it ends.
pub(crate) async fn stage(test: impl AsyncFnOnce(&Stage)) {
    // `HOPLINE_TEST_LOG=hopline=debug` shows what all processes of all tests log.
    if let Ok(level) = std::env::var("HOPLINE_TEST_LOG") {
        // The first test installs it.
        drop(telemetry::init(&config::Log { level, ..config::Log::default() }));
    }
    let stage = Stage::new();
    let played = timeout(TEST_MAX, AssertUnwindSafe(test(&stage)).catch_unwind()).await;
    stage.clear().await;
    match played {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => panic!("the test took longer than {TEST_MAX:?}"),
    }
}

impl Stage {
    fn new() -> Self {
        let rabbit = Rabbit::new();
        let random = JobId::new().to_string()[24..].to_owned();
        let queue = QueueName::parse(format!("t{random}")).expect("a good name");
        let mut config = Config::default();
        config.amqp.url = serde_json::from_value(rabbit.url.clone().into()).expect("an AMQP address");
        config.amqp.prefix = format!("hlt-{random}");
        config.amqp.ladder_prefix = LADDER.to_owned();
        config.amqp.queues = vec![queue.clone()];
        // The machine may be busy; no test is about these being short.
        config.amqp.confirm_timeout = Duration::from_secs(20);
        config.amqp.connect_timeout = Duration::from_secs(20);
        config.http.listen = "127.0.0.1:0".parse().expect("an address");
        config.routes = BTreeMap::from([(Kind::parse(Probe::KIND).expect("a kind"), queue.clone())]);
        let names = Names::new(&config.amqp.prefix, LADDER);
        let folder = std::env::temp_dir().join(&config.amqp.prefix);
        config.record.path.clone_from(&folder);
        Self {
            rabbit,
            config,
            names,
            queue,
            ending: CancellationToken::new(),
            tasks: TaskTracker::new(),
            clients: Mutex::default(),
            records: Mutex::default(),
            folder,
        }
    }

    /// The AMQP name of the test's work queue.
    pub(crate) fn work_queue(&self) -> String {
        self.names.queue(&self.queue)
    }

    /// The AMQP name of its dead-letter queue.
    pub(crate) fn dead_queue(&self) -> String {
        self.names.dead_queue(&self.queue)
    }

    /// Another queue of this test; declared where a configuration or a worker names it.
    pub(crate) fn other_queue(&self, word: &str) -> QueueName {
        QueueName::parse(format!("{}-{word}", self.queue)).expect("a good name")
    }

    /// An HTTP front that is ready.
    pub(crate) async fn front(&self) -> Front {
        self.front_with(&self.config).await
    }

    pub(crate) async fn front_with(&self, config: &Config) -> Front {
        let front = self.front_unready(config).await;
        front.wait_ready().await;
        front
    }

    /// An HTTP front, ready or not.
    pub(crate) async fn front_unready(&self, config: &Config) -> Front {
        let mut config = config.clone();
        if config.record.path == self.folder {
            config.record.path = self.folder.join(JobId::new().to_string());
        }
        // The front before may still be closing it.
        let record = eventually("the record's folder is free", async || Record::open(&config).ok()).await;
        let client = self.keep(Client::for_http(&config));
        record.follow(&client).expect("a thread");
        self.records.lock().expect("no panic meanwhile").push(record.clone());
        let listener = hopline::http::bind(&config).await.expect("a port");
        let address = listener.local_addr().expect("its number");
        let shutdown = self.ending.child_token();
        let (until, served, kept) = (shutdown.clone(), client.clone(), record.clone());
        self.tasks.spawn(async move {
            hopline::http::serve_on(listener, &config, served, kept, until.cancelled_owned()).await
        });
        Front::new(address, client, record, shutdown)
    }

    /// What `hopline serve` does beside a front: runs acts, and reconciles.
    pub(crate) fn act(&self, front: &Front, config: &Config) -> Acting {
        let stop = self.ending.child_token();
        let (config, record, client) = (config.clone(), front.record.clone(), front.client.clone());
        let until = stop.clone();
        let acting = async move { hopline::acts::serve(&config, record, &client, until.cancelled()).await };
        Acting { stop, task: self.tasks.spawn(acting) }
    }

    /// The same, with a courier of the test's own.
    pub(crate) fn act_with(&self, front: &Front, config: &Config, courier: Option<Courier>) -> Acting {
        let stop = self.ending.child_token();
        let (config, record, client) = (config.clone(), front.record.clone(), front.client.clone());
        let until = stop.clone();
        let acting = async move {
            hopline::acts::serve_with(&config, record, &client, courier, until.cancelled()).await
        };
        Acting { stop, task: self.tasks.spawn(acting) }
    }

    /// Declares a work queue, as a worker does that has ended since.
    pub(crate) async fn declare(&self, config: &Config, queue: &QueueName) {
        let mut config = config.clone();
        config.amqp.queues = vec![queue.clone()];
        let client = Client::new(&config);
        client.started().expect("a thread");
        eventually("the queue is declared", async || client.health().ready.then_some(())).await;
        client.close().await;
    }

    /// A client that enqueues.
    pub(crate) fn client(&self) -> Client {
        self.keep(Client::new(&self.config))
    }

    fn keep(&self, client: Client) -> Client {
        self.clients.lock().expect("no panic meanwhile").push(client.clone());
        client
    }

    /// Runs a worker until it is stopped or the test ends.
    pub(crate) fn work<S: Send + Sync + 'static>(&self, worker: Worker<S>) -> Working {
        let stop = self.ending.child_token();
        let until = stop.clone();
        let task = self.tasks.spawn(async move { worker.run_until(until.cancelled()).await });
        Working { stop, task }
    }

    /// A worker that runs probes from the test's queue.
    pub(crate) fn probes(&self) -> (Working, Log) {
        self.probes_with(&self.config, quick())
    }

    pub(crate) fn probes_with(&self, config: &Config, options: Options) -> (Working, Log) {
        let (notes, log) = probe::notes();
        let queue = options.queue.clone().unwrap_or_else(|| self.queue.to_string());
        let options = options.queue(queue);
        (self.work(Worker::new(config.clone()).state(notes).register_with(probe::probe, options)), log)
    }

    /// Waits until a client sends a kind to a queue because a worker announced it: a configured route says nothing of what
    /// else is announced.
    pub(crate) async fn wait_announced(&self, client: &Client, kind: &str, queue: &QueueName) {
        let kind = Kind::parse(kind).expect("a kind");
        let announced = || client.kinds().iter().any(|known| known.kind == kind && known.queue == *queue);
        eventually("an announcement", async || announced().then_some(())).await;
    }

    async fn clear(self) {
        self.ending.cancel();
        self.tasks.close();
        let ended = timeout(END_MAX, self.tasks.wait()).await;
        let clients = self.clients.into_inner().expect("no panic meanwhile");
        for record in self.records.into_inner().expect("no panic meanwhile") {
            record.close().await;
        }
        for client in clients {
            client.close().await;
        }
        // Fronts may never have been started.
        let _ = std::fs::remove_dir_all(&self.folder);
        self.rabbit.unlimit(&self.config.amqp.prefix).await;
        self.rabbit.sweep(&self.config.amqp.prefix).await;
        assert!(ended.is_ok(), "something that the test started did not end in {END_MAX:?}");
    }
}

/// Submits jobs, those again that the broker refused: a busy broker may, and they were not accepted.
pub(crate) async fn submit_all(client: &Client, mut jobs: Vec<Submission>) {
    while !jobs.is_empty() {
        let answers = client.submit_all(jobs.clone()).await.into_iter();
        let refused = answers.zip(jobs).filter_map(|(answer, job)| match answer {
            Ok(()) => None,
            Err(SubmitError::Refused) => Some(job),
            Err(error) => panic!("not accepted: {error}"),
        });
        jobs = refused.collect();
    }
}

/// Acts that run in this process.
pub(crate) struct Acting {
    stop: CancellationToken,
    task: JoinHandle<Result<Report, WorkerError>>,
}

impl Acting {
    /// Tells them to stop, and waits for that.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(END_MAX, self.task).await.expect("it ends in time").expect("no panic").expect("it started");
    }
}

/// A worker that runs in this process.
pub(crate) struct Working {
    stop: CancellationToken,
    task: JoinHandle<Result<Report, WorkerError>>,
}

impl Working {
    /// Tells it to stop.
    pub(crate) fn tell(&self) {
        self.stop.cancel();
    }

    /// Tells it to stop, and waits for its report.
    pub(crate) async fn stop(self) -> Report {
        self.tell();
        let report = timeout(END_MAX, self.task).await.expect("it ends in time");
        report.expect("no panic").expect("a worker that started")
    }
}
