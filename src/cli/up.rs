//! `hopline up` and `hopline down`: all of Hopline on a developer's machine.
//!
//! Owns the two commands: who supervises, who only talks to a supervisor, what is printed. The supervisor itself
//! is in [`supervisor`], the private broker in [`node`].

mod detach;
pub(crate) mod files;
mod node;
mod own;
pub(super) mod ports;
pub(super) mod process;
mod report;
mod service;
mod settings;
mod state;
mod supervisor;
mod workers;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use tokio::time::Instant;

pub use self::{
    files::FileError,
    node::{Node, NodeError, NodeOptions, PortChoice, Ports},
    ports::PortError,
};
use self::{
    state::{Asked, Layout, Phase, State, Wish},
    supervisor::{Signals, Supervisor, end_left_overs, grace, is_broker_named, of_the_front},
};
use super::{Usage, say};
use crate::Config;

/// Longest time for a running supervisor to get ready or to carry out a wish.
const PATIENCE: Duration = Duration::from_secs(240);
/// Ended by a signal before all was ready.
const INTERRUPTED: u8 = 130;
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Return when all is ready, and leave it running until `hopline down`.
    #[arg(long)]
    detach: bool,
    /// How many processes of a worker, as in `media=4`; may be given several times. Default: one of each. Given
    /// while Hopline is up, it changes their number.
    #[arg(long = "scale", value_name = "NAME=N", value_parser = workers::parse)]
    scale: Vec<(String, u32)>,
    /// A worker of your own: the folder of its crate, which is built first, or its program; may be given several times.
    /// Given while Hopline is up, it is added, or started again.
    #[arg(long = "worker", value_name = "PATH")]
    workers: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// The background half of `--detach`.
    #[arg(long, hide = true)]
    supervise: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The folder of the broker's data, the logs and the state; one Hopline at a time uses it. Default: var.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The folder where none is named.
const USUAL: &str = "var";

impl Place {
    fn layout(&self) -> anyhow::Result<Layout> {
        let dir = self.dir.as_deref().unwrap_or(Path::new(USUAL));
        let dir = std::path::absolute(dir).context("--dir is no path")?;
        Ok(Layout { dir })
    }
}

/// `hopline up`.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let layout = arguments.place.layout()?;
    if arguments.place.dir.is_none()
        && let Some(above) = up_above(&layout)
    {
        let above = above.display();
        return Err(Usage(format!(
            "a Hopline is up in {above}: did you mean --dir {above}? (--dir {USUAL} starts another one here)"
        ))
        .into());
    }
    let scale = arguments.scale.iter().cloned().collect();
    if !arguments.supervise {
        check(&Config::load()?.http)?;
    }
    let asked = Asked { scale, own: own::programs(&arguments.workers)? };
    if arguments.supervise {
        return Ok(detach::in_background(supervise_detached(layout, asked)).await);
    }
    layout.make_dirs()?;
    let Some(lock) = lock_or_join(&layout, &asked).await? else { return Ok(ExitCode::SUCCESS) };
    if arguments.detach {
        drop(lock);
        return detach::start(&layout, &asked).await;
    }
    say::line("Starting; Ctrl-C ends all of it.");
    let was_ready = supervise(layout, asked, lock).await?;
    Ok(if was_ready { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

/// The usual folder of a folder above the working one, as it is named from here, where a Hopline is up in it; `None`: in
/// none, or one is up here.
fn up_above(layout: &Layout) -> Option<PathBuf> {
    if living(layout).is_some() {
        return None;
    }
    let mut named = PathBuf::new();
    // The first two are the folder itself, and the working one.
    layout.dir.ancestors().skip(2).find_map(|parent| {
        named.push("..");
        living(&Layout { dir: parent.join(USUAL) }).map(|_| named.join(USUAL))
    })
}

/// Checks that the front can be asked whether it is ready.
fn check(http: &crate::config::Http) -> anyhow::Result<()> {
    ensure!(
        http.tls_cert.is_none() && http.tls_key.is_none(),
        "`hopline up` is for a developer's machine and asks its front over plain HTTP: leave out http.tls_cert and \
         http.tls_key (HOPLINE_HTTP_TLS_CERT, HOPLINE_HTTP_TLS_KEY) for it, or start `hopline serve` by itself"
    );
    Ok(())
}

/// `hopline down`.
pub(super) async fn down(place: Place) -> anyhow::Result<ExitCode> {
    let layout = place.layout()?;
    let dir = layout.dir.display();
    if !layout.lock().exists() {
        say::line(format_args!("Nothing is up in {dir}."));
        return Ok(ExitCode::SUCCESS);
    }
    let grace = grace(&Config::load().unwrap_or_default());
    let asked = end_supervisor(&layout, grace).await?;
    let _lock = files::lock(&layout.lock())?.context("another `hopline up` is starting there")?;
    match (asked, end_left_overs(&layout, grace).await?) {
        (true, _) => say::line("All ended."),
        (false, 0) => say::line(format_args!("Nothing is up in {dir}.")),
        (false, count) => {
            say::line(format_args!("Ended what a killed `hopline up` had left (processes: {count})."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The address of the HTTP front of the `hopline up` of this folder, if it runs.
pub(super) fn running_http(dir: &Path) -> Option<String> {
    let state = Layout { dir: dir.to_owned() }.read_state()?;
    if state.supervisor.is_alive() { state.http().map(str::to_owned) } else { None }
}

/// What the front of the `hopline up` of this folder has in its environment, and the address of the management API, with
/// its login: where that runs with a broker of its own, and nobody here names another.
pub(super) fn running_broker(dir: &Path, config: &Config) -> Option<(Vec<(&'static str, String)>, String)> {
    let layout = Layout { dir: dir.to_owned() };
    let state = layout.read_state().filter(|state| state.supervisor.is_alive() && !is_broker_named())?;
    let broker = state.broker?;
    let management = broker.management?;
    let mut url = reqwest::Url::parse(&management.url).ok()?;
    url.set_username(&management.user).ok()?;
    url.set_password(Some(&management.password)).ok()?;
    let mut environment = of_the_front(&layout, config);
    environment.push(("HOPLINE_AMQP_URL", broker.amqp));
    Some((environment, url.into()))
}

async fn supervise_detached(layout: Layout, asked: Asked) -> anyhow::Result<()> {
    // Its own session: the end of the terminal is not its end.
    rustix::process::setsid().context("cannot begin a session")?;
    let lock = wait_for_lock(&layout, Duration::from_secs(5)).await?;
    let lock = lock.context("another `hopline up` has just begun there")?;
    supervise(layout, asked, lock).await.map(drop)
}

/// Runs everything until a signal asks for the end. Whether all was ready before.
async fn supervise(layout: Layout, asked: Asked, lock: File) -> anyhow::Result<bool> {
    let signals = Signals::install()?;
    let config = Config::load()?;
    crate::telemetry::init(&config.log)?;
    let left = end_left_overs(&layout, grace(&config)).await?;
    if left > 0 {
        tracing::warn!(processes = left, "ended what a killed supervisor had left");
    }
    let prefix = config.amqp.prefix.clone();
    let supervisor = Supervisor::new(layout.clone(), config, asked)?;
    let announce = async |state: &State| {
        say::line("Hopline is up.");
        say::line(report::up(&layout, state, &prefix).await);
        detach::announced();
    };
    let result = supervisor.run(signals, announce).await;
    drop(lock);
    result
}

/// The folder's lock; `None`: a supervisor is up there, has been told what is wanted, and was shown.
async fn lock_or_join(layout: &Layout, asked: &Asked) -> anyhow::Result<Option<File>> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        if let Some(lock) = files::lock(&layout.lock())? {
            return Ok(Some(lock));
        }
        match living(layout) {
            Some(state) if state.phase == Phase::Ready => break join(layout, state, asked).await?,
            Some(state) if !told => {
                told = true;
                let what = if state.phase == Phase::Starting { "starting" } else { "ending" };
                say::line(format_args!("Hopline is {what} in {}; waiting for it.", layout.dir.display()));
            }
            _ => {}
        }
        ensure!(Instant::now() < deadline, "the `hopline up` of {} does not get ready", layout.dir.display());
        tokio::time::sleep(LOOK).await;
    }
    Ok(None)
}

/// The state of a supervisor that runs.
fn living(layout: &Layout) -> Option<State> {
    layout.read_state().filter(|state| state.supervisor.is_alive())
}

async fn join(layout: &Layout, state: State, asked: &Asked) -> anyhow::Result<()> {
    let config = Config::load()?;
    let notice = settings::notice(layout, &state, &config);
    let is_scaled = asked.scale.iter().any(|(name, count)| state.scale.get(name) != Some(count));
    let differs = is_scaled || !asked.own.is_empty();
    let state = if differs { change(layout, &state, asked).await? } else { state };
    say::line(if differs { "Hopline is up, with the workers asked for." } else { "Hopline is up already." });
    say::line(report::up(layout, &state, &config.amqp.prefix).await);
    if let Some(notice) = notice {
        say::error(notice);
    }
    Ok(())
}

/// Has a running supervisor change its workers; its state afterwards.
async fn change(layout: &Layout, state: &State, asked: &Asked) -> anyhow::Result<State> {
    let wish = Wish { id: crate::JobId::new().to_string(), asked: asked.clone() };
    layout.write_wish(&wish)?;
    state.supervisor.signal(Signal::USR1);
    let deadline = Instant::now() + PATIENCE;
    while let Some(state) = living(layout) {
        match &state.answered {
            Some((id, None)) if *id == wish.id => return Ok(state),
            Some((id, Some(error))) if *id == wish.id => bail!("{error}"),
            _ => {}
        }
        ensure!(Instant::now() < deadline, "the supervisor does not answer");
        tokio::time::sleep(LOOK).await;
    }
    bail!("Hopline has ended meanwhile")
}

/// Ends a supervisor that holds the folder, by force if need be. Whether there was one.
async fn end_supervisor(layout: &Layout, grace: Duration) -> anyhow::Result<bool> {
    let mut asked = false;
    // Workers, front and broker end one after the other.
    let deadline = Instant::now() + grace * 2 + Duration::from_secs(60);
    loop {
        if let Some(lock) = files::lock(&layout.lock())? {
            drop(lock);
            return Ok(asked);
        }
        if let Some(state) = living(layout) {
            if !asked {
                asked = true;
                say::line("Ending workers, HTTP front and broker …");
                state.supervisor.signal(Signal::TERM);
            } else if Instant::now() > deadline {
                state.supervisor.signal(Signal::KILL);
            }
        }
        ensure!(
            Instant::now() < deadline + grace,
            "somebody holds {} and does not end",
            layout.lock().display()
        );
        tokio::time::sleep(LOOK).await;
    }
}

async fn wait_for_lock(layout: &Layout, patience: Duration) -> anyhow::Result<Option<File>> {
    let deadline = Instant::now() + patience;
    loop {
        // Whoever only looks holds it for a moment.
        let lock = files::lock(&layout.lock())?;
        if lock.is_some() || Instant::now() >= deadline {
            return Ok(lock);
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{process::Process, state::Board, *};

    #[test]
    fn one_that_is_up_in_a_folder_above_is_found() {
        let dir = std::env::temp_dir().join(format!("hopline-above-{}", crate::JobId::new()));
        let layout = |folder: &str| Layout { dir: dir.join(folder) };
        let state = |supervisor: Process| State {
            supervisor,
            phase: Phase::Ready,
            scale: state::Scale::new(),
            answered: None,
            broker: None,
            settings: serde_json::Value::Null,
            processes: BTreeMap::new(),
        };
        let up = |folder: &str| {
            let own = Process::own().unwrap();
            layout(folder).make_dirs().unwrap();
            Board::new(layout(folder), state(own)).unwrap();
        };
        assert_eq!(up_above(&layout("a/b/var")), None);
        up("var");
        for (folder, above) in
            [("var", None), ("a/var", Some("../var")), ("a/b/var", Some("../../var")), ("other", None)]
        {
            assert_eq!(up_above(&layout(folder)), above.map(PathBuf::from), "{folder}");
        }
        up("a/b/var");
        assert_eq!(up_above(&layout("a/b/var")), None, "this one is meant");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_front_that_speaks_tls_is_refused() {
        let mut http = crate::config::Http { keys: Some("keys".into()), ..Default::default() };
        assert!(check(&http).is_ok());
        (http.tls_cert, http.tls_key) = (Some("cert".into()), Some("key".into()));
        assert!(check(&http).unwrap_err().to_string().contains("http.tls_cert"));
    }
}
