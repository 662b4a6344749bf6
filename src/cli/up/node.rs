//! A private RabbitMQ node: its own folders, ports, login, Erlang cookie and port mapper; on loopback only.
//!
//! Owns the node's processes: none outlives its [`Node`], not even when this process is killed. It shares nothing
//! with the system's RabbitMQ but the installed program, and adopts no broker that happens to run.

mod files;
mod locate;
mod ready;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use thiserror::Error;
use tokio::process::{Child, Command};

use self::files::{Files, Record};
use super::{
    files::{FileError, Since, append, lock},
    ports::{self, PortError},
    process::{Lifeline, Process},
};

/// The user of every node; its password is random and the node's own.
pub(super) const USER: &str = "hopline";
/// The same in every folder: each node has its own port mapper, and its data lies under its name.
const NAME: &str = "hopline@localhost";
/// What RabbitMQ and the port mapper say when somebody was quicker to take a port.
const PORT_TAKEN: &[&str] = &["eaddrinuse", "already in use", "already_in_use", "in use by another"];
const DISK_FULL: &[&str] = &["enospc", "No space left on device"];
/// Starts with other ports, when somebody was quicker to take the chosen ones.
const TRIES: usize = 3;

/// How a node is started.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NodeOptions {
    /// Its folder; made if missing. One node at a time uses it.
    pub dir: PathBuf,
    /// Where it listens. Default: any free ports.
    pub ports: PortChoice,
    /// Lines to add to its `rabbitmq.conf`. Default none.
    pub extra_conf: String,
    /// The broker's consumer timeout: a delivery unacknowledged for longer closes its channel. Default 24 h, far
    /// above `worker.consumer_timeout`'s, which workers check their handlers against.
    pub consumer_timeout: Duration,
    /// Longest time from its start until it is ready. Default 120 s.
    pub start_timeout: Duration,
    /// Longest time from SIGTERM to its end; then it is killed. Default 30 s.
    pub stop_timeout: Duration,
}

impl NodeOptions {
    /// The defaults, in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            ports: PortChoice::Any,
            extra_conf: String::new(),
            consumer_timeout: Duration::from_secs(86_400),
            start_timeout: Duration::from_secs(120),
            stop_timeout: Duration::from_secs(30),
        }
    }
}

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortChoice {
    /// RabbitMQ's usual ports (AMQP 5672, management 15672, Prometheus 15692) or the next free ones.
    Usual,
    /// Any free ports.
    Any,
}

/// The ports of a node, all on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ports {
    /// AMQP.
    pub amqp: u16,
    /// Management UI and HTTP API.
    pub management: u16,
    /// Metrics.
    pub prometheus: u16,
    distribution: u16,
    epmd: u16,
}

impl Ports {
    fn choose(choice: PortChoice) -> Result<Self, PortError> {
        let mut taken = Vec::new();
        let mut next = |usual: Option<u16>| {
            let port = match (choice, usual) {
                (PortChoice::Usual, Some(port)) => ports::preferred([127, 0, 0, 1].into(), port, &taken)?,
                _ => ports::any(&taken)?,
            };
            taken.push(port);
            Ok(port)
        };
        Ok(Self {
            amqp: next(Some(5672))?,
            management: next(Some(15672))?,
            prometheus: next(Some(15692))?,
            distribution: next(None)?,
            epmd: next(None)?,
        })
    }
}

/// A node that cannot be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NodeError {
    /// RabbitMQ is not on this machine.
    #[error(
        "RabbitMQ is not installed: run scripts/setup, or name the folder of `rabbitmq-server` in {}",
        locate::VARIABLE
    )]
    NotInstalled,
    /// The variable names a folder without it.
    #[error("{} names {}, which holds no `rabbitmq-server`", locate::VARIABLE, .0.display())]
    NoServerIn(PathBuf),
    /// Erlang's port mapper is not on this machine.
    #[error("Erlang's `epmd` was found neither beside rabbitmq-server nor in PATH")]
    NoEpmd,
    /// RabbitMQ asks a shell how full the disk is, and puts the folder between quotes: it hangs at its start.
    #[error("RabbitMQ cannot run in {}: a quote in the folder's name", .0.display())]
    QuoteInPath(PathBuf),
    /// Another process runs a node in this folder.
    #[error("another process runs a RabbitMQ node in {}", .0.display())]
    InUse(PathBuf),
    /// The folder has data of a node whose password was removed.
    #[error("the password of the node in {} is gone; remove the folder to begin anew", .0.display())]
    PasswordGone(PathBuf),
    /// A file of the node.
    #[error(transparent)]
    File(#[from] FileError),
    /// No port is free.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A process did not start.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `rabbitmqctl` failed.
    #[error("rabbitmqctl {arguments}: {said}")]
    Ctl {
        /// What it was asked.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// It ended while it started.
    #[error("RabbitMQ ended while it started ({status}); its log is {}:\n{tail}", log.display())]
    Ended {
        /// How.
        status: ExitStatus,
        /// Where its log is.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// It was not ready in time.
    #[error(
        "RabbitMQ was not ready within {} s: {last}. Its data is kept, so a slow machine may try again; its log is {}:\n{tail}",
        patience.as_secs(),
        log.display()
    )]
    NotReady {
        /// How long it was waited for.
        patience: Duration,
        /// What was still missing.
        last: String,
        /// Where its log is.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

/// A running node, or one that [`kill9`](Self::kill9) or its own end stopped and [`restart`](Self::restart) starts
/// again. Dropping it kills it.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    files: Files,
    ports: Ports,
    password: String,
    broker: Option<Child>,
    epmd: Option<Child>,
    lifeline: Lifeline,
    /// What RabbitMQ has written since it was started: its log, and what it writes where it has none.
    written: [Since; 2],
    _lock: File,
}

impl Node {
    /// Starts a node and waits until it takes connections and logins.
    ///
    /// A node that a killed process left in this folder is ended first; its data is kept.
    ///
    /// # Errors
    /// [`NodeError`]. Nothing is left running then.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn start(options: NodeOptions) -> Result<Self, NodeError> {
        locate::sbin()?;
        let dir = std::path::absolute(&options.dir).unwrap_or_else(|_| options.dir.clone());
        files::check_quotes(&dir)?;
        super::files::make_dir(&dir)?;
        let files = Files { dir };
        files.make_dirs()?;
        let lock = lock(&files.lock())?.ok_or_else(|| NodeError::InUse(files.dir.clone()))?;
        end_recorded(&files, options.stop_timeout).await?;
        let lifeline =
            Lifeline::new().map_err(|source| NodeError::Spawn { program: "/bin/sh".into(), source })?;
        let mut node = Self {
            ports: Ports::choose(options.ports)?,
            password: files.password_or_new()?,
            broker: None,
            epmd: None,
            lifeline,
            written: [Since::now(files.log()), Since::now(files.output())],
            options,
            files,
            _lock: lock,
        };
        for tries_left in (0..TRIES).rev() {
            match node.launch().await {
                Err(NodeError::Ended { .. }) if tries_left > 0 && node.says(PORT_TAKEN) => {
                    tracing::info!("a port was taken meanwhile; choosing others");
                    node.ports = Ports::choose(node.options.ports)?;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(node)
    }

    /// Ends a node that a killed process left running in this folder. Whether there was one.
    ///
    /// # Errors
    /// [`NodeError::InUse`] if the process that started it is there, [`NodeError::File`].
    pub async fn end_left_over(dir: &Path, patience: Duration) -> Result<bool, NodeError> {
        let files = Files { dir: dir.to_owned() };
        if !files.dir.exists() {
            return Ok(false);
        }
        let _lock = lock(&files.lock())?.ok_or_else(|| NodeError::InUse(dir.to_owned()))?;
        Ok(end_recorded(&files, patience).await?)
    }

    /// The broker's process id; `None`: it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.broker.as_ref().and_then(Child::id)
    }

    /// Where it listens; the same after a restart.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Where its log is.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.files.log()
    }

    /// User and password of its administrator, the only user it has at first.
    #[must_use]
    pub fn login(&self) -> (&str, &str) {
        (USER, &self.password)
    }

    /// `amqp://user:password@127.0.0.1:port`, password included.
    #[must_use]
    pub fn amqp_url(&self) -> String {
        format!("amqp://{USER}:{}@127.0.0.1:{}", self.password, self.ports.amqp)
    }

    /// `http://127.0.0.1:port` of the management UI and API, without the login.
    #[must_use]
    pub fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.management)
    }

    /// Waits until the broker's process ends by itself; at once if it does not run. Safe to cancel.
    pub async fn ended(&mut self) {
        if let Some(broker) = &mut self.broker {
            let pid = broker.id();
            // An error means that there is no such child any more.
            let _ = broker.wait().await;
            pid.into_iter().for_each(|pid| self.lifeline.release(pid));
            self.broker = None;
        }
    }

    /// Stops the broker and its port mapper in good order: SIGTERM, and SIGKILL after `stop_timeout`.
    pub async fn stop(&mut self) {
        if let Some(broker) = &self.broker {
            signal(broker, Signal::TERM);
            if tokio::time::timeout(self.options.stop_timeout, self.ended()).await.is_err() {
                tracing::warn!("the broker did not stop in time and is killed");
            }
        }
        self.kill9().await;
        if let Some(mut epmd) = self.epmd.take() {
            let pid = epmd.id();
            // It keeps nothing on disk: killing it is its orderly end.
            let _ = epmd.kill().await;
            pid.into_iter().for_each(|pid| self.lifeline.release(pid));
        }
        self.files.remove_record();
    }

    /// Kills the broker at once, as a crash would.
    pub async fn kill9(&mut self) {
        if let Some(broker) = &self.broker {
            signal(broker, Signal::KILL);
            self.ended().await;
        }
    }

    /// Starts it again with its data, ports and login, after stopping it in good order if it runs.
    ///
    /// # Errors
    /// As [`Node::start`]; it may be tried again.
    pub async fn restart(&mut self) -> Result<(), NodeError> {
        self.stop().await;
        self.launch().await
    }

    /// Runs `rabbitmqctl` on this node, and returns what it says.
    ///
    /// # Errors
    /// [`NodeError::Spawn`] if it does not start, [`NodeError::Ctl`] if it fails.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String, NodeError> {
        let mut command = Command::new(locate::sbin()?.join("rabbitmqctl"));
        self.environment(&mut command);
        let program = PathBuf::from(command.as_std().get_program());
        let output = command.args(arguments).current_dir(&self.files.dir).kill_on_drop(true).output().await;
        let output = output.map_err(|source| NodeError::Spawn { program, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(NodeError::Ctl { arguments: arguments.join(" "), said })
    }

    async fn launch(&mut self) -> Result<(), NodeError> {
        let result = self.spawn_and_wait().await;
        if result.is_err() {
            self.kill9().await;
            self.stop().await;
        }
        result
    }

    async fn spawn_and_wait(&mut self) -> Result<(), NodeError> {
        let Self { files, ports, password, options, .. } = &*self;
        files.write_config(ports, password, options.consumer_timeout, &options.extra_conf)?;
        let written = [Since::now(files.log()), Since::now(files.output())];
        let sbin = locate::sbin()?;
        let mut epmd = Command::new(locate::epmd(&sbin)?);
        // In the foreground and our own child, so that it can be ended: `epmd -kill` refuses while nodes are known.
        epmd.args(["-address", "127.0.0.1", "-port", &ports.epmd.to_string()]);
        let mut broker = Command::new(sbin.join("rabbitmq-server"));
        self.environment(&mut broker);
        self.written = written;
        self.epmd = Some(self.spawn(epmd)?);
        self.record()?;
        self.broker = Some(self.spawn(broker)?);
        self.record()?;
        self.wait_ready().await
    }

    fn spawn(&mut self, mut command: Command) -> Result<Child, NodeError> {
        let program = PathBuf::from(command.as_std().get_program());
        let output = append(&self.files.output())?;
        let second =
            output.try_clone().map_err(|source| NodeError::Spawn { program: program.clone(), source })?;
        let child = command
            .current_dir(&self.files.dir)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(second)
            .kill_on_drop(true)
            // Out of reach of the terminal's Ctrl-C: who holds the node ends it, in order.
            .process_group(0)
            .spawn()
            .map_err(|source| NodeError::Spawn { program, source })?;
        child.id().into_iter().for_each(|pid| self.lifeline.watch(pid));
        Ok(child)
    }

    /// Everything by which RabbitMQ could find the system's files instead of its own is set.
    fn environment(&self, command: &mut Command) {
        let Files { dir, .. } = &self.files;
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
            .env("LANG", "C.UTF-8")
            // Where Erlang keeps its cookie.
            .env("HOME", dir)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string())
            // The shell becomes the broker: its process id is the broker's, which ends in good order at SIGTERM.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_NODENAME", NAME)
            .env("RABBITMQ_CONF_ENV_FILE", dir.join("rabbitmq-env.conf"))
            .env("RABBITMQ_CONFIG_FILE", self.files.config())
            .env("RABBITMQ_CONFIG_FILES", dir.join("conf.d").join("*.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.files.advanced())
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.files.plugins())
            .env("RABBITMQ_MNESIA_BASE", self.files.data())
            .env("RABBITMQ_LOG_BASE", self.files.logs())
            .env("RABBITMQ_PID_FILE", dir.join("rabbitmq.pid"))
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            );
    }

    fn record(&self) -> Result<(), FileError> {
        let process = |child: &Option<Child>| child.as_ref().and_then(Child::id).and_then(Process::of);
        self.files.write_record(&Record { broker: process(&self.broker), epmd: process(&self.epmd) })
    }

    async fn wait_ready(&mut self) -> Result<(), NodeError> {
        let patience = self.options.start_timeout;
        let log = self.files.log();
        let last = ready::Missing::default();
        let Some(broker) = &mut self.broker else { return Ok(()) };
        tokio::select! {
            () = ready::wait(&self.ports, &self.password, &last) => Ok(()),
            status = broker.wait() => {
                let status = status.map_err(|source| NodeError::Spawn { program: "rabbitmq-server".into(), source })?;
                Err(NodeError::Ended { status, tail: self.last_lines(), log })
            }
            () = tokio::time::sleep(patience) => {
                Err(NodeError::NotReady { patience, last: last.to_string(), tail: self.last_lines(), log })
            }
        }
    }

    fn last_lines(&self) -> String {
        let hint = if self.says(DISK_FULL) { "the disk is full; the log ends:\n" } else { "" };
        let tails = self.written.iter().map(|log| log.tail(12));
        format!("{hint}{}", tails.filter(|tail| !tail.is_empty()).collect::<Vec<_>>().join("\n"))
    }

    fn says(&self, words: &[&str]) -> bool {
        self.written.iter().map(Since::read).any(|text| words.iter().any(|word| text.contains(word)))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in [&mut self.broker, &mut self.epmd].into_iter().flatten() {
            // Reaped by the runtime, or by the system after us.
            let _ = child.start_kill();
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        // It is our child and not yet reaped, so the id is its own; that it ended already shows at the wait.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

async fn end_recorded(files: &Files, patience: Duration) -> Result<bool, FileError> {
    let record = files.read_record()?;
    let mut any = false;
    for process in [record.broker, record.epmd].into_iter().flatten() {
        if process.is_alive() {
            any = true;
            process.end(patience).await;
        }
    }
    files.remove_record();
    Ok(any)
}
