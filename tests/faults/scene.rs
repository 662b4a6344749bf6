//! What a row plays on: one broker, HTTP fronts and workers as real processes, each with its own way to the broker, and
//! clients.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use hopline::up::Node;
use lapin::{Channel, Connection};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    sync::{RwLock, RwLockWriteGuard},
    time::sleep,
};

use crate::{
    book,
    load::{Load, Pace},
    proxy::{Mode, Proxy},
    support::{
        broker::Broker,
        process::{Front, Process, Stage, free_port, new_folder},
    },
    verdict::{self, Expected, Figures},
};

/// What came of a row.
#[derive(Debug, Default, Clone)]
pub(crate) struct Played {
    /// How often, or how long, the fault was there.
    pub(crate) times: String,
    pub(crate) note: String,
    pub(crate) figures: Figures,
}

/// What workers log of lookups, which the verdict reads.
const LOG_LEVEL: &str = "info,hopline::worker::lookup=debug";
/// How often things are looked at that tell nobody: other processes, their files, the broker.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// How much, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) full: bool,
    pub(crate) jobs: usize,
}

impl Scale {
    /// One value for the full mode, one for the small.
    pub(crate) fn of<T>(&self, full: T, small: T) -> T {
        if self.full { full } else { small }
    }

    pub(crate) fn seconds(&self, full: u64, small: u64) -> Duration {
        Duration::from_secs(self.of(full, small))
    }

    /// Longest wait for anything.
    pub(crate) fn patience(&self) -> Duration {
        self.seconds(900, 90)
    }

    fn pace(&self, cast: Cast) -> Pace {
        Pace {
            jobs: self.jobs,
            batch: self.of(20, 10),
            pause: Duration::from_millis(self.of(20, 60)),
            open_max: self.of(cast.open_max, cast.open_max / 7),
        }
    }
}

/// Who takes part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cast {
    pub(crate) fronts: usize,
    pub(crate) workers: usize,
    /// In the small mode.
    pub(crate) workers_small: usize,
    /// The prefix of the ladder is that of all else, so that what falls off it is taken up: for rows that are alone.
    pub(crate) own_ladder: bool,
    /// Clients pause while so many jobs have not ended; in the small mode a seventh.
    pub(crate) open_max: usize,
    /// For all processes.
    pub(crate) variables: &'static [(&'static str, &'static str)],
}

/// Two fronts and three workers (two in the small mode), which notice a silent broker within seconds.
pub(crate) const USUAL: Cast = Cast {
    fronts: 2,
    workers: 3,
    workers_small: 2,
    own_ladder: false,
    open_max: 3000,
    variables: &[("HOPLINE_AMQP_HEARTBEAT", "2"), ("HOPLINE_RECORD_LOST_AFTER", "10m")],
};

/// The broker of this run, and what of it can be controlled.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) broker: Broker,
    /// `None`: it is somebody else's.
    pub(crate) node: Option<Arc<RwLock<Node>>>,
}

/// An HTTP front that can be started again at the same address, with the same record.
pub(crate) struct Serving {
    pub(crate) front: Front,
    pub(crate) proxy: Proxy,
    pub(crate) record: PathBuf,
    variables: Variables,
}

/// A worker that can be started again.
pub(crate) struct Working {
    pub(crate) process: Process,
    pub(crate) proxy: Proxy,
    variables: Variables,
    /// Logs of those that went before, and of this one.
    logs: Vec<(u32, PathBuf)>,
}

type Variables = Vec<(String, String)>;

pub(crate) struct Scene {
    pub(crate) scale: Scale,
    pub(crate) site: Site,
    pub(crate) fronts: Vec<Serving>,
    pub(crate) workers: Vec<Working>,
    pub(crate) load: Load,
    /// Last, so that the processes have ended before their objects are removed.
    pub(crate) stage: Stage,
}

impl Scene {
    /// Starts everything, and waits until work is being done.
    pub(crate) async fn set(site: Site, scale: Scale, cast: Cast) -> Self {
        Self::set_with(site, scale, cast, |_, _, _| Vec::new()).await
    }

    /// As [`Scene::set`]; `extra` names variables of one process, by the row's folder, and whether it is a worker, by its
    /// number among them.
    pub(crate) async fn set_with(
        site: Site,
        scale: Scale,
        cast: Cast,
        extra: impl Fn(&Path, bool, usize) -> Vec<(&'static str, String)>,
    ) -> Self {
        let broker = site.broker.clone();
        let stage = if cast.own_ladder { Stage::private(broker, new_folder()) } else { Stage::over(broker) };
        let common = |is_worker, number| {
            let mut all: Variables = vec![("HOPLINE_LOG_LEVEL".into(), LOG_LEVEL.into())];
            all.extend(cast.variables.iter().map(|(name, value)| ((*name).into(), (*value).into())));
            all.extend(
                extra(&stage.dir, is_worker, number).into_iter().map(|(name, value)| (name.into(), value)),
            );
            all
        };
        let (mut fronts, mut workers) = (Vec::new(), Vec::new());
        for number in 0..scale.of(cast.workers, cast.workers_small) {
            let proxy = Proxy::to(&site.broker.amqp).await;
            let mut variables = common(true, number);
            variables.push(("HOPLINE_AMQP_URL".into(), proxy.amqp.clone()));
            let process = start_worker(&stage, &variables);
            workers.push(Working { logs: vec![log_of(&process)], process, proxy, variables });
        }
        for number in 0..cast.fronts {
            let proxy = Proxy::to(&site.broker.amqp).await;
            let mut variables = common(false, number);
            variables.push(("HOPLINE_AMQP_URL".into(), proxy.amqp.clone()));
            variables.push(("HOPLINE_HTTP_LISTEN".into(), format!("127.0.0.1:{}", free_port())));
            let record = stage.dir.join(format!("record-{number}"));
            let front = start_front(&stage, &record, &variables).await;
            fronts.push(Serving { front, proxy, record, variables });
        }
        let urls: Vec<String> = fronts.iter().map(|serving| serving.front.url.clone()).collect();
        for url in &urls {
            until("a front is ready", scale.patience(), async || is_ready(url).await).await;
        }
        let load = Load::start(urls, &stage.queue, &stage.dir, scale.pace(cast));
        let scene = Self { scale, site, fronts, workers, load, stage };
        scene.until_more_ended(scale.of(500, 10)).await;
        scene
    }

    /// Waits until so many more jobs have ended.
    pub(crate) async fn until_more_ended(&self, more: usize) {
        let goal = self.load.ended() + more;
        until("work goes on", self.scale.patience(), async || self.load.ended() >= goal).await;
    }

    /// Pauses the clients and waits until nothing is left to do.
    pub(crate) async fn drained(&self) {
        self.load.pause();
        until("all have ended", self.scale.patience(), async || self.load.is_quiet()).await;
    }

    /// Everything well again: the fault's time is over.
    pub(crate) fn heal(&self) {
        for proxy in self.proxies() {
            proxy.set(Mode::Pass);
        }
    }

    pub(crate) fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.fronts
            .iter()
            .map(|serving| &serving.proxy)
            .chain(self.workers.iter().map(|working| &working.proxy))
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.stage.dir.join("ledger")
    }

    pub(crate) async fn until_ready(&self) {
        for serving in &self.fronts {
            let url = &serving.front.url;
            until("a front is ready again", self.scale.patience(), async || is_ready(url).await).await;
        }
    }

    /// Starts front `number` again, after its end.
    pub(crate) async fn restart_front(&mut self, number: usize) {
        let serving = &mut self.fronts[number];
        serving.front = start_front(&self.stage, &serving.record, &serving.variables).await;
    }

    /// Starts worker `number` again, after its end.
    pub(crate) fn restart_worker(&mut self, number: usize) {
        let working = &mut self.workers[number];
        working.process = start_worker(&self.stage, &working.variables);
        working.logs.push(log_of(&working.process));
    }

    /// Asks a process to end, and waits until it has, within the patience.
    pub(crate) async fn stop(process: &mut Process, patience: Duration) {
        process.signal(Signal::TERM);
        Self::ended(process, patience).await;
    }

    async fn ended(process: &mut Process, patience: Duration) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = process.status() {
                break status;
            }
            assert!(begun.elapsed() < patience, "a process does not end; its log:\n{}", process.log());
            sleep(LOOK).await;
        };
        assert!(status.success(), "{status} after SIGTERM; its log:\n{}", process.log());
    }

    /// Everything well again; waits until nothing is left to do, and judges.
    pub(crate) async fn end(mut self, times: impl ToString, expected: &Expected) -> Played {
        self.heal();
        self.load.go_on();
        self.until_ready().await;
        let mut figures = verdict::judge(&mut self, expected).await;
        if !figures.problems.is_empty() {
            // Kept, for whoever studies it.
            let kept = self.stage.dir.with_extension("failed");
            if std::fs::rename(&self.stage.dir, &kept).is_ok() {
                figures.problems.push(format!("everything is in {}", kept.display()));
            }
        }
        Played { times: times.to_string(), note: String::new(), figures }
    }

    /// The broker's node, for rows that end it.
    pub(crate) async fn node(&self) -> RwLockWriteGuard<'_, Node> {
        self.site.node.as_ref().expect("a row that needs the node has one").write().await
    }

    /// Asks the management API, which must agree.
    pub(crate) async fn manage(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let url = format!("{}/api/{path}", self.site.broker.management);
        let mut request = reqwest::Client::new().request(method, &url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        answer.json().await.unwrap_or_default()
    }

    /// A channel past all proxies.
    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection = self.site.broker.connect().await;
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    /// Ends the workers in good order: what they held unsettled is in the queue again.
    pub(crate) async fn stop_workers(&mut self) {
        self.workers.iter().for_each(|working| working.process.signal(Signal::TERM));
        for working in &mut self.workers {
            Self::ended(&mut working.process, self.scale.patience()).await;
        }
    }

    /// Runs `rabbitmqctl`.
    pub(crate) async fn ctl(&self, arguments: &[&str]) {
        let node = self.site.node.as_ref().expect("a row that needs the node has one").read().await;
        node.ctl(arguments).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Everything the workers logged, by their process ids.
    pub(crate) fn worker_logs(&self) -> Vec<(u32, PathBuf)> {
        self.workers.iter().flat_map(|working| working.logs.clone()).collect()
    }
}

fn start_worker(stage: &Stage, variables: &Variables) -> Process {
    let mut command = stage.command(&std::env::current_exe().expect("this program"));
    command
        .arg(book::WORKER)
        .env("HOPLINE_TEST_LEDGER", stage.dir.join("ledger"))
        .env("HOPLINE_TEST_QUEUE", &stage.queue)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    Process::spawn(command, &stage.dir, "worker")
}

fn log_of(process: &Process) -> (u32, PathBuf) {
    (process.id(), process.log_path().to_owned())
}

async fn start_front(stage: &Stage, record: &Path, variables: &Variables) -> Front {
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    stage.serve_in(record, &variables).await
}

async fn is_ready(url: &str) -> bool {
    reqwest::get(format!("{url}/readyz")).await.is_ok_and(|answer| answer.status() == 200)
}

/// Looks until it is so.
pub(crate) async fn until(what: &str, patience: Duration, mut look: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !look().await {
        assert!(begun.elapsed() < patience, "{what}: not within {} s", patience.as_secs());
        sleep(LOOK).await;
    }
}
