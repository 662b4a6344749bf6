//! One process that is kept running: started, watched until it is ready, started again when it dies.

use std::{
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    files::{Since, append},
    ports,
    process::{Lifeline, Process},
    state::{Board, Running},
};

/// Stack of a process's threads, in bytes; only what is used takes memory. lapin reads the headers of a message by
/// recursion without a limit: with the usual 2 MiB a few kilobytes of nested tables end the process.
const STACK: &str = "67108864";

/// Deaths before it was ever ready, after which its start has failed. It is tried further all the same.
const DEATHS: u32 = 3;
const PROBE_PAUSE: Duration = Duration::from_millis(150);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    /// Its name among the processes, and of its log.
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(&'static str, String)>,
    /// The variable that tells it where to listen.
    pub(super) variable: &'static str,
    pub(super) host: IpAddr,
    /// The port it should have, if one; else any.
    pub(super) port: Option<u16>,
    /// What answers 200 when it is ready.
    pub(super) path: &'static str,
    pub(super) log: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub(super) grace: Duration,
}

/// What all services of a supervisor share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) board: Board,
    pub(super) lifeline: Arc<Mutex<Lifeline>>,
    /// Ends what runs without waiting for it.
    pub(super) hurry: CancellationToken,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    Starting,
    Ready,
    Failing(String),
}

/// A service that is being kept running.
#[derive(Debug)]
pub(super) struct Service {
    name: String,
    log: Since,
    stop: CancellationToken,
    readiness: watch::Receiver<Readiness>,
    task: JoinHandle<()>,
}

impl Service {
    pub(super) fn start(spec: Spec, shared: Shared) -> Self {
        let (sender, readiness) = watch::channel(Readiness::Starting);
        let stop = CancellationToken::new();
        let (name, log) = (spec.name.clone(), Since::now(spec.log.clone()));
        let task = tokio::spawn(Keeper { spec, shared, stop: stop.clone(), readiness: sender }.keep());
        Self { name, log, stop, readiness, task }
    }

    /// Waits until it is ready; the error says why it cannot be.
    pub(super) async fn ready(&mut self, patience: Duration) -> Result<(), String> {
        let waited = self.readiness.wait_for(|readiness| *readiness != Readiness::Starting);
        let why = match tokio::time::timeout(patience, waited).await {
            Ok(Ok(readiness)) => match &*readiness {
                Readiness::Failing(why) => why.clone(),
                _ => return Ok(()),
            },
            Ok(Err(_)) => "is being ended".to_owned(),
            Err(_) => format!("was not ready within {} s", patience.as_secs()),
        };
        Err(format!("{} {why}; its log is {}:\n{}", self.name, self.log.path().display(), self.log.tail(8)))
    }

    /// Asks it to end; [`ended`](Self::ended) waits for that.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) async fn ended(self) {
        // The task does not panic, and nobody aborts it.
        let _ = self.task.await;
    }
}

struct Keeper {
    spec: Spec,
    shared: Shared,
    stop: CancellationToken,
    readiness: watch::Sender<Readiness>,
}

impl Keeper {
    async fn keep(self) {
        let (mut pause, mut deaths) = (Pause::default(), 0);
        loop {
            let began = Instant::now();
            let death = match self.spawn() {
                Err(error) => error.to_string(),
                Ok((child, address)) => match self.watch(child, &address).await {
                    Some(Ok(status)) => format!("ended ({status})"),
                    Some(Err(error)) => format!("was lost ({error})"),
                    None => return,
                },
            };
            deaths += 1;
            let pause = pause.next(began.elapsed());
            tracing::warn!(
                process.name = self.spec.name,
                reason = death,
                pause.ms = pause.as_millis(),
                "a process is started again"
            );
            if deaths >= DEATHS && *self.readiness.borrow() == Readiness::Starting {
                self.readiness.send_replace(Readiness::Failing(format!("{death}, {deaths} times")));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn spawn(&self) -> io::Result<(Child, SocketAddr)> {
        let spec = &self.spec;
        let port = match spec.port {
            Some(port) => ports::preferred(spec.host, port, &[]),
            None => ports::any(&[]),
        };
        let address = SocketAddr::new(spec.host, port.map_err(io::Error::other)?);
        let log =
            append(&spec.log).map_err(|error| io::Error::other(format!("{error}: {}", error.source)))?;
        let child = Command::new(&spec.program)
            .args(&spec.arguments)
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .env(spec.variable, address.to_string())
            .env("RUST_MIN_STACK", STACK)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            // Out of reach of the terminal's Ctrl-C: the supervisor ends everything in order.
            .process_group(0)
            .spawn()?;
        Ok((child, address))
    }

    /// Until it dies by itself; `None`: it was asked to end.
    async fn watch(&self, mut child: Child, address: &SocketAddr) -> Option<io::Result<ExitStatus>> {
        let pid = child.id();
        let process = pid.and_then(Process::of);
        let url = format!("http://{}", reachable(address));
        self.announce(pid, process.clone(), &url);
        let died = tokio::select! {
            status = child.wait() => Some(status),
            () = self.stop.cancelled() => None,
            () = self.probe(&url) => None,
        };
        if died.is_none() {
            self.end(&mut child, process.as_ref()).await;
        }
        self.retract(pid);
        died
    }

    fn announce(&self, pid: Option<u32>, process: Option<Process>, url: &str) {
        let mut lifeline = self.shared.lifeline.lock().unwrap_or_else(PoisonError::into_inner);
        pid.into_iter().for_each(|pid| lifeline.watch(pid));
        self.shared.board.change(|state| {
            let running = process.map(|process| Running { process, address: url.to_owned() });
            state.processes.extend(running.map(|running| (self.spec.name.clone(), running)));
        });
    }

    fn retract(&self, pid: Option<u32>) {
        let mut lifeline = self.shared.lifeline.lock().unwrap_or_else(PoisonError::into_inner);
        pid.into_iter().for_each(|pid| lifeline.release(pid));
        self.shared.board.change(|state| drop(state.processes.remove(&self.spec.name)));
    }

    /// Reports when it is ready, and then never completes.
    async fn probe(&self, url: &str) {
        if let Ok(client) = crate::cli::local_http(PROBE_TIMEOUT) {
            let url = format!("{url}{}", self.spec.path);
            while !client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
                tokio::time::sleep(PROBE_PAUSE).await;
            }
            self.readiness.send_replace(Readiness::Ready);
        }
        std::future::pending::<()>().await;
    }

    async fn end(&self, child: &mut Child, process: Option<&Process>) {
        process.into_iter().for_each(|process| process.signal(Signal::TERM));
        tokio::select! {
            _ = child.wait() => return,
            () = tokio::time::sleep(self.spec.grace) => {}
            () = self.shared.hurry.cancelled() => {}
        }
        tracing::warn!(process.name = self.spec.name, "a process did not end in time and is killed");
        // An error means that it has ended.
        let _ = child.kill().await;
    }
}

/// Where somebody on this machine reaches what listens on `address`.
fn reachable(address: &SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        *address
    }
}

/// Pauses between starts: they grow while the process dies young.
#[derive(Debug)]
pub(super) struct Pause(Duration);

impl Pause {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);
    /// Whoever lived this long begins anew.
    const OLD: Duration = Duration::from_secs(60);

    /// The pause after a life of this length.
    pub(super) fn next(&mut self, lived: Duration) -> Duration {
        if lived >= Self::OLD {
            self.0 = Self::FIRST;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

impl Default for Pause {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_begin_anew_after_a_long_life() {
        let mut pause = Pause::default();
        let young = Duration::from_secs(1);
        let pauses: Vec<_> = (0..8).map(|_| pause.next(young).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(pause.next(Pause::OLD).as_millis(), 500);
    }
}
