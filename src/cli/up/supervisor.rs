//! The supervisor: starts the broker, the HTTP front and the workers, keeps them running, ends them in order.
//!
//! Owns every process of one folder from its start to its end. It moves no job: what a broker's or a worker's
//! death means for jobs is the library's affair.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Node, NodeOptions, PortChoice, files,
    process::{Lifeline, Process},
    say,
    service::{Pause, Service, Shared, Spec},
    settings,
    state::{Asked, Board, Broker, HTTP, Layout, Management, Phase, Scale, State},
    workers::{self, Programs},
};
use crate::Config;

/// Longest time until the front and all workers are ready.
const READY: Duration = Duration::from_secs(60);
/// What a process may take beyond `shutdown.grace`: settling, and closing its connections.
const MARGIN: Duration = Duration::from_secs(10);
const LOG_CHECK: Duration = Duration::from_secs(10);
/// A log is begun anew at this size; the one before is kept as `.1`.
const LOG_MOST: u64 = 16 << 20;

/// The signals that a supervisor acts on.
pub(super) struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
    rescale: Signal,
}

impl Signals {
    pub(super) fn install() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            rescale: signal(SignalKind::user_defined1())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    async fn end_or_rescale(&mut self) -> Wanted {
        tokio::select! {
            _ = self.term.recv() => Wanted::End,
            _ = self.interrupt.recv() => Wanted::End,
            _ = self.hangup.recv() => Wanted::End,
            _ = self.rescale.recv() => Wanted::Rescale,
        }
    }
}

enum Wanted {
    End,
    Rescale,
}

/// Whether another broker than our own is to be used.
pub(super) fn is_broker_named() -> bool {
    ["HOPLINE_AMQP_URL", "HOPLINE_AMQP_URL_FILE"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()))
}

/// How long a process may take to end.
pub(super) fn grace(config: &Config) -> Duration {
    config.shutdown.grace + MARGIN
}

pub(super) struct Supervisor {
    layout: Layout,
    config: Config,
    hopline: PathBuf,
    /// Those beside `hopline`.
    found: Programs,
    /// Those that were named.
    own: Programs,
    shared: Shared,
    node: Option<(CancellationToken, JoinHandle<()>)>,
    http: Option<Service>,
    running: BTreeMap<String, Vec<Service>>,
}

impl Supervisor {
    /// Takes over the folder, whose lock the caller holds.
    pub(super) fn new(layout: Layout, config: Config, asked: Asked) -> anyhow::Result<Self> {
        // Asked once: after a new build the path reads "… (deleted)".
        let hopline = std::env::current_exe().context("cannot find the running program")?;
        let found = workers::beside(&hopline)?;
        let all = workers::with_own(found.clone(), &asked.own)?;
        let state = State {
            supervisor: Process::own().context("cannot read this process's start time")?,
            phase: Phase::Starting,
            scale: workers::initial(&all, &asked.scale, |name| workers::off(name).is_some())?,
            answered: None,
            broker: None,
            settings: settings::of(&config),
            processes: BTreeMap::new(),
        };
        let shared = Shared {
            board: Board::new(layout.clone(), state)?,
            lifeline: Arc::new(Mutex::new(Lifeline::new().context("cannot start /bin/sh")?)),
            hurry: CancellationToken::new(),
        };
        Ok(Self {
            layout,
            config,
            hopline,
            found,
            own: asked.own,
            shared,
            node: None,
            http: None,
            running: BTreeMap::new(),
        })
    }

    /// Starts everything, calls `ready` once, and goes on until a signal asks for the end. Whatever the outcome,
    /// nothing is left running. Whether it ever was ready.
    pub(super) async fn run(
        mut self,
        mut signals: Signals,
        ready: impl AsyncFnOnce(&State),
    ) -> anyhow::Result<bool> {
        let started = tokio::select! {
            result = self.start() => result.map(|()| true),
            () = signals.end() => Ok(false),
        };
        if let Ok(true) = started {
            self.shared.board.change(|state| state.phase = Phase::Ready);
            ready(&self.shared.board.state()).await;
            self.serve(&mut signals).await;
        }
        self.shared.board.change(|state| state.phase = Phase::Stopping);
        let hurry = self.shared.hurry.clone();
        let ending = self.end();
        tokio::pin!(ending);
        loop {
            tokio::select! {
                () = &mut ending => break,
                // Asked again: then without waiting.
                () = signals.end() => hurry.cancel(),
            }
        }
        started
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        self.start_broker().await?;
        self.make_callback_secret()?;
        self.http = Some(Service::start(self.http_spec(), self.shared.clone()));
        let scale = self.shared.board.state().scale;
        self.scale_to(&scale).await;
        self.all_ready().await
    }

    /// Starts our own node, unless another broker is named.
    async fn start_broker(&mut self) -> anyhow::Result<()> {
        if is_broker_named() {
            let amqp = self.config.amqp.url.to_string();
            self.shared.board.change(|state| state.broker = Some(Broker { amqp, management: None }));
            return Ok(());
        }
        let mut options = NodeOptions::new(self.layout.node());
        options.ports = PortChoice::Usual;
        options.consumer_timeout = options.consumer_timeout.max(self.config.worker.consumer_timeout);
        say::line(format_args!(
            "Starting RabbitMQ, for at most {} s; its log is in {}.",
            options.start_timeout.as_secs(),
            self.layout.node().join("log").display()
        ));
        let node = Node::start(options).await.context("the broker did not start")?;
        let (user, password) = node.login();
        let management =
            Management { url: node.management_url(), user: user.into(), password: password.into() };
        let broker = Broker { amqp: node.amqp_url(), management: Some(management) };
        self.shared.board.change(|state| state.broker = Some(broker));
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep_node(node, stop.clone(), self.shared.hurry.clone()));
        self.node = Some((stop, task));
        Ok(())
    }

    /// Callbacks are signed: a secret is made, once, where none is configured.
    fn make_callback_secret(&self) -> anyhow::Result<()> {
        let path = self.layout.callback_secret();
        if !self.config.callbacks.secret.is_empty() || files::read(&path)?.is_some() {
            return Ok(());
        }
        let secret = crate::sign::new_secret().context("the system has no random numbers")?;
        files::write(&path, format!("{secret}\n").as_bytes())?;
        Ok(())
    }

    async fn all_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        for service in self.http.iter_mut().chain(self.running.values_mut().flatten()) {
            let patience = deadline.saturating_duration_since(Instant::now());
            service.ready(patience).await.map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    async fn serve(&mut self, signals: &mut Signals) {
        let mut check = tokio::time::interval(LOG_CHECK);
        loop {
            tokio::select! {
                wanted = signals.end_or_rescale() => match wanted {
                    Wanted::End => return,
                    Wanted::Rescale => tokio::select! {
                        () = self.rescale() => {}
                        () = signals.end() => return,
                    },
                },
                _ = check.tick() => bound_logs(self.layout.logs()).await,
            }
        }
    }

    /// Carries out the wish that lies in the folder.
    async fn rescale(&mut self) {
        let Some(wish) = self.layout.read_wish() else { return };
        let result = self.change(wish.asked).await;
        if let Err(error) = &result {
            tracing::warn!(error = format!("{error:#}"), "scaling did not succeed");
        }
        let error = result.err().map(|error| format!("{error:#}"));
        self.shared.board.change(|state| state.answered = Some((wish.id, error)));
    }

    /// Has the workers that are asked for: new ones are started, those that run already are started again, since
    /// their program may be another now.
    async fn change(&mut self, asked: Asked) -> anyhow::Result<()> {
        let mut own = self.own.clone();
        own.extend(asked.own.clone());
        let all = workers::with_own(self.found.clone(), &own)?;
        workers::check(&all, &asked.scale)?;
        self.own = own;
        let again = asked.own.keys().filter_map(|name| self.running.remove(name)).flatten().collect();
        end_all(again).await;
        let mut scale = self.shared.board.state().scale;
        for name in asked.own.into_keys() {
            scale.entry(name).or_insert(1);
        }
        scale.extend(asked.scale);
        self.shared.board.change(|state| state.scale.clone_from(&scale));
        self.scale_to(&scale).await;
        self.all_ready().await
    }

    /// Starts or ends processes until there are as many as wanted.
    async fn scale_to(&mut self, scale: &Scale) {
        let mut surplus = Vec::new();
        for (name, count) in scale {
            let Some(program) = self.found.get(name).or_else(|| self.own.get(name)) else { continue };
            let count = *count as usize;
            let mut services = self.running.remove(name).unwrap_or_default();
            surplus.extend(services.drain(count.min(services.len())..));
            for number in services.len() + 1..=count {
                services.push(Service::start(self.worker_spec(name, number, program), self.shared.clone()));
            }
            self.running.insert(name.clone(), services);
        }
        end_all(surplus).await;
    }

    fn http_spec(&self) -> Spec {
        let listen = self.config.http.listen;
        let mut spec = self.spec(HTTP.to_owned(), &self.hopline);
        spec.environment.extend(of_the_front(&self.layout, &self.config));
        Spec {
            variable: "HOPLINE_HTTP_LISTEN",
            host: listen.ip(),
            port: Some(listen.port()),
            path: "/readyz",
            arguments: vec![OsString::from("serve")],
            ..spec
        }
    }

    fn worker_spec(&self, name: &str, number: usize, program: &Path) -> Spec {
        self.spec(format!("worker-{name}-{number}"), program)
    }

    fn spec(&self, name: String, program: &Path) -> Spec {
        let broker = self.shared.board.state().broker.filter(|broker| broker.management.is_some());
        Spec {
            log: self.layout.log(&name),
            name,
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: broker.map(|broker| ("HOPLINE_AMQP_URL", broker.amqp)).into_iter().collect(),
            variable: "HOPLINE_WORKER_HEALTH",
            host: [127, 0, 0, 1].into(),
            port: None,
            path: "/healthz",
            grace: grace(&self.config),
        }
    }

    /// Workers, then the front, then the broker: each finishes while what it needs is still there.
    async fn end(mut self) {
        end_all(std::mem::take(&mut self.running).into_values().flatten().collect()).await;
        end_all(self.http.take().into_iter().collect()).await;
        if let Some((stop, task)) = self.node.take() {
            stop.cancel();
            // The task does not panic, and nobody aborts it.
            let _ = task.await;
        }
        self.layout.remove_state();
    }
}

/// What the front gets in its environment where the configuration says nothing else: its places in the folder.
pub(super) fn of_the_front(layout: &Layout, config: &Config) -> Vec<(&'static str, String)> {
    let mut environment = Vec::new();
    if config.record.path == crate::config::Record::default().path {
        environment.push(("HOPLINE_RECORD_PATH", layout.record().display().to_string()));
    }
    if config.callbacks.secret.is_empty() {
        environment.push(("HOPLINE_CALLBACKS_SECRET_FILE", layout.callback_secret().display().to_string()));
    }
    environment
}

async fn end_all(services: Vec<Service>) {
    services.iter().for_each(Service::stop);
    for service in services {
        service.ended().await;
    }
}

/// Keeps the node running until `stop`, and then stops it in good order, or at once when in a `hurry`.
async fn keep_node(mut node: Node, stop: CancellationToken, hurry: CancellationToken) {
    let mut pause = Pause::default();
    let _ = stop.run_until_cancelled(run_node(&mut node, &mut pause)).await;
    if hurry.run_until_cancelled(node.stop()).await.is_none() {
        node.kill9().await;
        node.stop().await;
    }
}

async fn run_node(node: &mut Node, pause: &mut Pause) {
    loop {
        let began = Instant::now();
        node.ended().await;
        let pause = pause.next(began.elapsed());
        tracing::warn!(pause.ms = pause.as_millis(), "the broker ended and is started again");
        tokio::time::sleep(pause).await;
        if let Err(error) = node.restart().await {
            tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "the broker did not start");
        }
    }
}

/// Copies what is too long aside and begins it anew. Those who write to it go on at its new end.
async fn bound_logs(dir: PathBuf) {
    let work = move || -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "log") && path.metadata()?.len() > LOG_MOST {
                std::fs::copy(&path, path.with_extension("log.1"))?;
                std::fs::OpenOptions::new().write(true).open(&path)?.set_len(0)?;
            }
        }
        Ok(())
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a log cannot be shortened"),
        Err(error) => tracing::warn!(%error, "the logs were not looked at"),
    }
}

/// Ends what a killed supervisor left in the folder, whose lock the caller holds. How many processes there were.
pub(super) async fn end_left_overs(layout: &Layout, grace: Duration) -> anyhow::Result<usize> {
    let state = layout.read_state();
    let mut count = 0;
    for group in state.iter().flat_map(State::ending_order) {
        let alive: Vec<_> = group.into_iter().filter(|(_, process)| process.is_alive()).collect();
        count += alive.len();
        alive.iter().for_each(|(_, process)| process.signal(rustix::process::Signal::TERM));
        for (name, process) in alive {
            if !process.end(grace).await {
                bail!("process {} ({name}) does not end", process.pid());
            }
        }
    }
    if Node::end_left_over(&layout.node(), Duration::from_secs(30)).await? {
        count += 1;
    }
    layout.remove_state();
    Ok(count)
}
