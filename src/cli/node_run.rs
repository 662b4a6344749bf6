//! `hopline node run`: a private RabbitMQ node for as long as something runs, as the tests need it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    say,
    up::{Node, NodeOptions, files},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run a node until SIGTERM, Ctrl-C or the end of standard input, or until a command given after `--` ends.
    Run(Run),
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The node's folder; made if missing.
    #[arg(long)]
    dir: PathBuf,
    /// Write `HOPLINE_TEST_AMQP_URL=…` and `HOPLINE_TEST_MANAGEMENT_URL=…` (both with login) to this file once
    /// the node is ready.
    #[arg(long)]
    env_file: Option<PathBuf>,
    /// Run this command with these variables, end the node when it ends, and exit with its code.
    #[arg(last = true)]
    command: Vec<std::ffi::OsString>,
}

pub(super) async fn run(Command::Run(run): Command) -> anyhow::Result<ExitCode> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let asked_to_end = async {
        tokio::select! {
            _ = term.recv() => 143,
            _ = interrupt.recv() => 130,
            _ = hangup.recv() => 129,
        }
    };
    tokio::pin!(asked_to_end);
    let mut node = tokio::select! {
        node = Node::start(NodeOptions::new(&run.dir)) => node?,
        code = &mut asked_to_end => return Ok(ExitCode::from(code)),
    };
    let result = tokio::select! {
        result = while_up(&run, &node) => result,
        code = &mut asked_to_end => Ok(ExitCode::from(if run.command.is_empty() { 0 } else { code })),
    };
    node.stop().await;
    result
}

async fn while_up(run: &Run, node: &Node) -> anyhow::Result<ExitCode> {
    let variables = variables(node);
    if let Some(file) = &run.env_file {
        let text: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        files::write(file, text.as_bytes())?;
    }
    let Some((program, arguments)) = run.command.split_first() else {
        say::line(format_args!("RabbitMQ is up at {}", node.management_url()));
        // Its end, or an error that is as good as its end.
        let _ =
            tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await;
        return Ok(ExitCode::SUCCESS);
    };
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .envs(variables)
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    // Ended by a signal: no code of its own.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn variables(node: &Node) -> [(&'static str, String); 2] {
    let (user, password) = node.login();
    let management = node.management_url().replacen("://", &format!("://{user}:{password}@"), 1);
    [("HOPLINE_TEST_AMQP_URL", node.amqp_url()), ("HOPLINE_TEST_MANAGEMENT_URL", management)]
}
