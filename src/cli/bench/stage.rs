//! The processes that are measured: real ones, with a prefix of their own on the configured broker, and a folder for
//! record and logs. All end with the benchmark, however it ends; what they declared is deleted by [`Stage::take_down`].

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    super::up::{
        files::{self, Since},
        ports,
        process::Lifeline,
    },
    clock,
    load::Connection,
    orders::{self, Answer, Order},
    worker::{Noop, SPREAD},
};
use crate::{Config, Job, JobId, QueueName, amqp::baseline};

/// Longest time until a process is ready, for an answer of one that works, and for its end.
const READY: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(960);
const END: Duration = Duration::from_secs(40);
/// How often it is looked whether the front is ready: that is a part of what is measured.
const LOOK: Duration = Duration::from_millis(2);

/// Where processes are started.
pub(super) struct Stage {
    pub(super) config: Config,
    dir: PathBuf,
    program: PathBuf,
    lifeline: Arc<Mutex<Lifeline>>,
    number: AtomicUsize,
    /// The broker, if it runs on this machine and may be seen.
    pub(super) broker: Option<u32>,
}

impl Stage {
    pub(super) fn new(config: Config) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(&config.amqp.prefix);
        files::make_dir(&dir)?;
        Ok(Self {
            broker: broker_of(&config),
            program: std::env::current_exe().context("cannot find the running program")?,
            lifeline: Arc::new(Mutex::new(Lifeline::new().context("cannot start /bin/sh")?)),
            number: AtomicUsize::new(0),
            config,
            dir,
        })
    }

    /// Deletes what the processes declared and wrote. They must have ended.
    pub(super) async fn take_down(self) -> anyhow::Result<()> {
        let removed = std::fs::remove_dir_all(&self.dir);
        let mut declared = self.config.amqp.clone();
        declared.queues.extend(SPREAD.iter().filter_map(|(_, queue)| QueueName::parse(*queue).ok()));
        baseline::take_down(&declared).await?;
        removed.with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    /// The folder of the front's record.
    pub(super) fn record(&self) -> PathBuf {
        self.dir.join("record")
    }

    /// `hopline serve`, ready.
    pub(super) async fn front(&self) -> anyhow::Result<Front> {
        let address = SocketAddr::from(([127, 0, 0, 1], ports::any(&[])?));
        let mut command = self.command(&["serve"]);
        command
            .env("HOPLINE_HTTP_LISTEN", address.to_string())
            .env("HOPLINE_RECORD_PATH", self.record())
            .stdout(Stdio::null());
        let child = self.spawn("http", command)?;
        let mut front = Front { child, address, ready_after: Duration::ZERO };
        let ready = until_ready(address, "/readyz");
        let ready = timeout(READY, ready).await;
        front.ready_after = front.child.age();
        match ready {
            Ok(()) => Ok(front),
            Err(_) => Err(front.child.failed("was not ready in time")),
        }
    }

    /// A worker, ready: it consumes.
    pub(super) async fn worker(&self) -> anyhow::Result<Told> {
        self.ready_worker(&["bench", "worker"]).await
    }

    async fn ready_worker(&self, arguments: &[&str]) -> anyhow::Result<Told> {
        let health = SocketAddr::from(([127, 0, 0, 1], ports::any(&[])?));
        let mut command = self.command(arguments);
        command.env("HOPLINE_WORKER_HEALTH", health.to_string());
        let mut worker = self.told("worker", command)?;
        let ready = timeout(READY, until_ready(health, "/healthz")).await;
        worker.ready_after = worker.child.age();
        if ready.is_err() {
            return Err(worker.child.failed("was not ready in time"));
        }
        Ok(worker)
    }

    /// A worker, ready, with jobs of more queues.
    pub(super) async fn spread_worker(&self) -> anyhow::Result<Told> {
        self.ready_worker(&["bench", "worker", "--spread"]).await
    }

    /// A worker that has not begun to consume, and counts from its first job on.
    pub(super) async fn worker_that_expects(&self, count: usize) -> anyhow::Result<Told> {
        let mut worker = self.told("worker", self.command(&["bench", "worker"]))?;
        worker.tell(&Order::Expect { count }).await?;
        worker.ready().await?;
        Ok(worker)
    }

    /// A process of bare lapin.
    pub(super) async fn raw(&self, name: &'static str) -> anyhow::Result<Told> {
        let mut raw = self.told(name, self.command(&["bench", "raw"]))?;
        // Answered when it is connected.
        raw.tell(&Order::Stop).await?;
        raw.ready().await?;
        Ok(raw)
    }

    fn told(&self, name: &'static str, mut command: Command) -> anyhow::Result<Told> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.spawn(name, command)?;
        let (orders, answers) = (child.process.stdin.take(), child.process.stdout.take());
        let (orders, answers) = orders.zip(answers).context("a process has no input and output")?;
        Ok(Told { child, orders, answers: BufReader::new(answers).lines(), ready_after: Duration::ZERO })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HOPLINE_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .env("HOPLINE_CONFIG", "/dev/null")
            .envs(environment(&self.config))
            .stdin(Stdio::null())
            // Out of reach of the terminal's Ctrl-C: the benchmark ends it.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    fn spawn(&self, name: &'static str, mut command: Command) -> anyhow::Result<Child> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.join(format!("{number}-{name}.log"));
        let since = Since::now(log.clone());
        command.stderr(files::append(&log)?);
        let began = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = process.id().context("a process ended at once")?;
        self.lifeline.lock().unwrap_or_else(PoisonError::into_inner).watch(pid);
        let lifeline = Arc::clone(&self.lifeline);
        Ok(Child { name, pid, process, log: since, began, lifeline })
    }
}

/// A running process. Dropped, it is killed.
pub(super) struct Child {
    name: &'static str,
    pub(super) pid: u32,
    process: tokio::process::Child,
    log: Since,
    began: Instant,
    lifeline: Arc<Mutex<Lifeline>>,
}

impl Drop for Child {
    fn drop(&mut self) {
        // It has ended, or is killed now: its id may soon be another's.
        self.lifeline.lock().unwrap_or_else(PoisonError::into_inner).release(self.pid);
    }
}

impl Child {
    /// SIGTERM; it must end with code 0.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It is our own child and not yet waited for: the id is its own. One that has ended shows below.
            let _ = kill_process(pid, Signal::TERM);
        }
        self.ended().await
    }

    /// Waits for its end; it must end with code 0.
    async fn ended(&mut self) -> anyhow::Result<()> {
        match timeout(END, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.failed(&format!("ended with {status}"))),
            Ok(Err(error)) => Err(error).context("cannot wait for a process"),
            Err(_) => Err(self.failed("does not end")),
        }
    }

    fn age(&self) -> Duration {
        self.began.elapsed()
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("the process `{}` {what}; the end of its log:\n{}", self.name, self.log.tail(8))
    }
}

/// `hopline serve`.
pub(super) struct Front {
    pub(super) child: Child,
    pub(super) address: SocketAddr,
    /// From its start until `/readyz` was 200.
    pub(super) ready_after: Duration,
}

/// A process that takes orders.
pub(super) struct Told {
    pub(super) child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// From its start until it was ready, where that was waited for.
    pub(super) ready_after: Duration,
}

impl Told {
    pub(super) async fn tell(&mut self, order: &Order) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        let written = self.orders.write_all(&line).await;
        written.map_err(|error| self.child.failed(&format!("takes no orders ({error})")))
    }

    /// Its next answer; a failure is an error.
    pub(super) async fn hear(&mut self) -> anyhow::Result<Answer> {
        match timeout(LONGEST, orders::heard(&mut self.answers)).await {
            Ok(Ok(Some(Answer::Failed { why }))) => Err(self.child.failed(&format!("failed: {why}"))),
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(self.child.failed("ended")),
            Ok(Err(error)) => Err(error.context("an answer that cannot be read")),
            Err(_) => Err(self.child.failed("does not answer")),
        }
    }

    /// Ends its input, and so the process, unless it is a worker.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let Self { mut child, orders, .. } = self;
        drop(orders);
        child.ended().await
    }

    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let answer = self.hear().await?;
        ensure!(answer == Answer::Ready, "expected ready, not {answer:?}");
        Ok(())
    }

    /// When what it was told to do began, and when it was done.
    pub(super) async fn done(&mut self) -> anyhow::Result<(u64, u64)> {
        match self.hear().await? {
            Answer::Done { began, ended } => Ok((began, ended)),
            other => bail!("expected an end, not {other:?}"),
        }
    }
}

/// Waits until `GET path` is 200.
async fn until_ready(address: SocketAddr, path: &str) {
    let request = super::load::request("GET", path, b"");
    loop {
        if let Ok(mut connection) = Connection::open(address).await
            && connection.ask(&request).await.is_ok_and(|(status, _)| status == 200)
        {
            return;
        }
        sleep(LOOK).await;
    }
}

/// The configuration of what is measured: the broker and all else as configured, apart from what may run here already.
pub(super) fn of_its_own(mut config: Config, concurrency: usize, prefetch: u16) -> anyhow::Result<Config> {
    let id = JobId::new().to_string();
    config.amqp.prefix = format!("bench-{}", &id[id.len() - 12..]);
    config.amqp.ladder_prefix = String::new();
    config.amqp.declare = true;
    config.amqp.queues = vec![QueueName::parse(Noop::QUEUE)?];
    config.http.listen = ([127, 0, 0, 1], 0).into();
    // It has no key of this file, and asks over plain HTTP.
    (config.http.keys, config.http.tls_cert, config.http.tls_key) = (None, None, None);
    config.worker.concurrency = concurrency;
    config.worker.prefetch = prefetch;
    config.worker.health = None;
    config.worker.queues = BTreeMap::new();
    // A child process would take the orders of its parent.
    config.worker.isolate_from_delivery = 0;
    config.routes = BTreeMap::new();
    // A server may run here that has it.
    config.spool.path = None;
    config.check()?;
    Ok(config)
}

/// The configuration as variables. Secrets other than the broker's are left out, and so are tables by name, which
/// variables cannot have.
fn environment(config: &Config) -> Vec<(String, String)> {
    let value = serde_json::to_value(config).unwrap_or_default();
    let sections = value.as_object().into_iter().flatten();
    let keys = sections.flat_map(|(section, keys)| {
        keys.as_object().into_iter().flatten().map(move |(key, value)| (section, key, value))
    });
    let shown = keys.filter_map(|(section, key, value)| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            Value::Null | Value::Object(_) => return None,
        };
        let name = format!("HOPLINE_{section}_{key}").to_ascii_uppercase();
        match name.as_str() {
            "HOPLINE_CALLBACKS_SECRET" => None,
            "HOPLINE_AMQP_URL" => Some((name, config.amqp.url.expose().to_owned())),
            _ => Some((name, text)),
        }
    });
    shown.collect()
}

/// The process of the broker, if it is on this machine.
fn broker_of(config: &Config) -> Option<u32> {
    let url = reqwest::Url::parse(config.amqp.url.expose()).ok()?;
    let local = ["localhost", "127.0.0.1", "[::1]"].contains(&url.host_str()?);
    let port = url.port().unwrap_or(if config.amqp.url.is_tls() { 5671 } else { 5672 });
    local.then(|| clock::listener(port)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AmqpUrl;

    #[test]
    fn the_front_asks_for_no_key_and_no_tls() {
        let mut config = Config::default();
        let file = || Some("file".into());
        (config.http.keys, config.http.tls_cert, config.http.tls_key) = (file(), file(), file());
        config.spool.path = file();
        let config = of_its_own(config, 10, 20).unwrap();
        assert_eq!(config.spool.path, None);
        let http = config.http;
        assert_eq!((http.keys, http.tls_cert, http.tls_key), (None, None, None));
        assert!(http.listen.ip().is_loopback());
    }

    #[test]
    fn what_a_process_is_started_with_is_the_same_configuration() {
        let mut config = Config::default();
        config.amqp.url = AmqpUrl::new("amqp://user:pass%20word@host:1234/vhost");
        config.amqp.window = 77;
        config.http.hosts = vec!["a".into(), "b".into()];
        config.http.max_wait = Duration::from_millis(90_500);
        config.telemetry.sample_ratio = Some(0.25);
        let config = of_its_own(config, 10, 20).unwrap();
        assert_eq!(Config::load_from(None, environment(&config)).unwrap(), config);
    }
}
