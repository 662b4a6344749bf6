//! The `hopline` command: one file per noun.
//!
//! Owns the arguments, what is printed, and the exit code. What a command does is done by the library.

mod bench;
mod jobs;
mod node_run;
mod say;
mod serve;
pub mod up;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

/// Background jobs on RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "hopline", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit jobs and call them, over HTTP.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Serve HTTP: jobs are submitted and called here.
    Serve,
    /// Start all of Hopline on this machine: a private RabbitMQ node, the HTTP front, the workers.
    Up(up::Arguments),
    /// End what `hopline up` started.
    Down(up::Place),
    /// Compare Hopline with bare lapin on the configured broker.
    Bench(bench::Arguments),
    /// A private RabbitMQ node by itself.
    #[command(subcommand, hide = true)]
    Node(node_run::Command),
}

/// Runs the command that the process's arguments ask for, and says how it ended.
///
/// 0: done. 1: it failed, and standard error says why. 2: the arguments are wrong. Other codes are the commands'
/// own and stand in their help.
#[must_use]
pub fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let result = runtime.block_on(async {
        match command {
            Command::Serve => Box::pin(serve::run()).await,
            Command::Jobs(command) => Box::pin(jobs::run(command)).await,
            Command::Up(arguments) => Box::pin(up::run(arguments)).await,
            Command::Down(place) => Box::pin(up::down(place)).await,
            Command::Bench(arguments) => Box::pin(bench::run(arguments)).await,
            Command::Node(command) => Box::pin(node_run::run(command)).await,
        }
    });
    // Nothing that still blocks a thread (reading standard input) may hold up the end.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> ExitCode {
    say::error(format_args!("hopline: {error:#}"));
    ExitCode::FAILURE
}

/// A client for our own processes: never through a proxy.
fn local_http(timeout: Duration) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().connect_timeout(timeout).timeout(timeout).build()
}
