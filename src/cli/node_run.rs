//! `hopline node run`: a private RabbitMQ node for as long as something runs, as the tests need it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
};

use super::{
    say,
    up::{Node, NodeOptions, files},
};

/// From SIGTERM to SIGKILL for the command.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run a node until SIGTERM, Ctrl-C or the end of standard input, or until a command given after `--` ends.
    Run(Run),
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The node's folder; made if missing. Default: a temporary one, removed at the end.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write `HOPLINE_TEST_AMQP_URL=…` and `HOPLINE_TEST_MANAGEMENT_URL=…` (both with login) to this file once
    /// the node is ready.
    #[arg(long)]
    env_file: Option<PathBuf>,
    /// Run this command with these variables, end the node when it ends, and exit with its code.
    #[arg(last = true)]
    command: Vec<std::ffi::OsString>,
}

pub(super) async fn run(Command::Run(run): Command) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::install()?;
    let dir = run
        .dir
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("hopline-node-{}", crate::JobId::new())));
    let result = with_node(&run, &dir, &mut signals).await;
    if run.dir.is_none() {
        // What cannot be removed is in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&dir);
    }
    result
}

async fn with_node(run: &Run, dir: &Path, signals: &mut Signals) -> anyhow::Result<ExitCode> {
    let mut node = tokio::select! {
        node = Node::start(NodeOptions::new(dir)) => node?,
        code = signals.any() => return Ok(ExitCode::from(code)),
    };
    let result = while_up(run, &node, signals).await;
    node.stop().await;
    result
}

async fn while_up(run: &Run, node: &Node, signals: &mut Signals) -> anyhow::Result<ExitCode> {
    let variables = variables(node);
    if let Some(file) = &run.env_file {
        let text: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        files::write(file, text.as_bytes())?;
    }
    let Some((program, arguments)) = run.command.split_first() else {
        say::line(format_args!("RabbitMQ is up at {}", node.management_url()));
        // The end of input, or an error that is as good as that.
        let input = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        tokio::select! {
            _ = tokio::task::spawn_blocking(input) => {}
            _ = signals.any() => {}
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .envs(variables)
        .kill_on_drop(true)
        // A group of its own, so that what it started ends with it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    tokio::select! {
        status = child.wait() => {
            // Ended by a signal: no code of its own.
            let code = status?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            Ok(ExitCode::from(code))
        }
        code = signals.any() => {
            end_group(&mut child, group).await;
            Ok(ExitCode::from(code))
        }
    }
}

async fn end_group(child: &mut Child, group: Option<Pid>) {
    // Either error means that nobody is left.
    let Some(group) = group else { return };
    let _ = kill_process_group(group, Signal::TERM);
    let _ = tokio::time::timeout(GRACE, child.wait()).await;
    let _ = kill_process_group(group, Signal::KILL);
}

struct Signals([(tokio::signal::unix::Signal, u8); 3]);

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self([
            (signal(SignalKind::terminate())?, 143),
            (signal(SignalKind::interrupt())?, 130),
            (signal(SignalKind::hangup())?, 129),
        ]))
    }

    /// The exit code for the one that came.
    async fn any(&mut self) -> u8 {
        let [(term, a), (interrupt, b), (hangup, c)] = &mut self.0;
        tokio::select! {
            _ = term.recv() => *a,
            _ = interrupt.recv() => *b,
            _ = hangup.recv() => *c,
        }
    }
}

fn variables(node: &Node) -> [(&'static str, String); 2] {
    let (user, password) = node.login();
    let management = node.management_url().replacen("://", &format!("://{user}:{password}@"), 1);
    [("HOPLINE_TEST_AMQP_URL", node.amqp_url()), ("HOPLINE_TEST_MANAGEMENT_URL", management)]
}
