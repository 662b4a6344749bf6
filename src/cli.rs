//! The `hopline` command: one file per noun.
//!
//! Owns the arguments, what is printed, and the exit code. What a command does is done by the library, or by the
//! server that it asks.
//!
//! | module | owns |
//! |---|---|
//! | `jobs`, `dead`, `queues`, `events`, `workers`, `kinds` | a noun each: its commands and how its answers look |
//! | `key` | API keys, in their file |
//! | `api` | requests to the server, with the key, problems, pages, exit codes |
//! | `tls` | which servers are trusted |
//! | `acts`, `follow` | asking for bulk acts; waiting for the end of a job |
//! | `filter`, `input` | arguments that several commands take |
//! | `shown`, `table`, `human`, `colour`, `bar` | a job, tables and values for people; how far long work is |
//! | `top` | the live view |
//! | `sse` | server-sent events |
//! | `topology`, `doctor`, `broker` | what asks the broker itself; where its management API is |
//! | `new` | the crate of a worker of one's own |
//! | `say` | standard output and standard error |
//! | `completions` | what shells need to complete commands |
//! | `serve`, `up`, `bench`, `node_run` | what runs processes |

mod acts;
mod api;
mod bar;
mod bench;
mod broker;
mod colour;
mod completions;
mod dead;
mod doctor;
mod events;
mod filter;
mod follow;
mod human;
mod input;
mod jobs;
mod key;
mod kinds;
mod new;
mod node_run;
mod queues;
mod say;
mod serve;
mod shown;
mod spool;
mod sse;
mod table;
mod tls;
mod top;
mod topology;
pub mod up;
mod workers;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

/// The exit code of wrong arguments, as clap has it.
const WRONG_USE: u8 = 2;

/// Background jobs on RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "hopline", version, about, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    colour: colorchoice_clap::Color,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit jobs, call them, look at them, cancel and replay them.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Look at dead jobs, replay them or purge them.
    #[command(subcommand)]
    Dead(dead::Command),
    /// Look at queues; pause, resume and purge them.
    #[command(subcommand)]
    Queues(queues::Command),
    /// Watch what happens.
    #[command(subcommand)]
    Events(events::Command),
    /// Look at the workers that are alive.
    #[command(subcommand)]
    Workers(workers::Command),
    /// Watch queues, workers and failures, live in the terminal.
    Top(top::Top),
    /// Look at the kinds of jobs that workers have announced.
    #[command(subcommand)]
    Kinds(kinds::Command),
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Key(key::Command),
    /// Begin something of your own.
    #[command(subcommand)]
    New(new::Command),
    /// Serve HTTP: jobs are submitted and called here.
    Serve,
    /// Look at a spool that no process serves, and forward what waits in it.
    #[command(subcommand)]
    Spool(spool::Command),
    /// Compare the broker's exchanges, queues, bindings and policies with what Hopline needs, and make them.
    #[command(subcommand)]
    Topology(topology::Command),
    /// Look for what is wrong with broker, configuration and machine, and say how to mend it.
    Doctor(doctor::Arguments),
    /// Start all of Hopline on this machine: a private RabbitMQ node, the HTTP front, the workers.
    Up(up::Arguments),
    /// End what `hopline up` started.
    Down(up::Place),
    /// Compare Hopline with bare lapin on the configured broker.
    Bench(bench::Arguments),
    /// Print what a shell needs to complete these commands.
    Completions(completions::Completions),
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
    crate::crypto::choose();
    let Arguments { colour, command } = Arguments::parse();
    colour.write_global();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let result = runtime.block_on(async {
        match command {
            Command::Serve => Box::pin(serve::run()).await,
            Command::Spool(command) => Box::pin(spool::run(command)).await,
            Command::Jobs(command) => Box::pin(jobs::run(command)).await,
            Command::Dead(command) => Box::pin(dead::run(command)).await,
            Command::Queues(command) => Box::pin(queues::run(command)).await,
            Command::Events(command) => Box::pin(events::run(command)).await,
            Command::Workers(command) => Box::pin(workers::run(command)).await,
            Command::Top(top) => Box::pin(top.run()).await,
            Command::Kinds(command) => Box::pin(kinds::run(command)).await,
            Command::Key(command) => key::run(command),
            Command::New(command) => new::run(command),
            Command::Topology(command) => Box::pin(topology::run(command)).await,
            Command::Doctor(arguments) => Box::pin(doctor::run(arguments)).await,
            Command::Up(arguments) => Box::pin(up::run(arguments)).await,
            Command::Down(place) => Box::pin(up::down(place)).await,
            Command::Completions(completions) => completions.run(),
            Command::Bench(arguments) => Box::pin(bench::run(arguments)).await,
            Command::Node(command) => Box::pin(node_run::run(command)).await,
        }
    });
    // Nothing that still blocks a thread (reading standard input) may hold up the end.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| failed(&error))
}

/// Arguments that each are right, and make no sense together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn failed(error: &anyhow::Error) -> ExitCode {
    if matches!(error.downcast_ref(), Some(say::OutError::Gone)) {
        return ExitCode::SUCCESS;
    }
    say::error(format_args!("hopline: {error:#}"));
    if error.is::<Usage>() { ExitCode::from(WRONG_USE) } else { ExitCode::FAILURE }
}

/// A client for our own processes: never through a proxy.
fn local_http(timeout: Duration) -> reqwest::Result<reqwest::Client> {
    tls::plain().no_proxy().connect_timeout(timeout).timeout(timeout).build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The commands that do something, as words.
    fn leaves(command: &clap::Command, words: &str, into: &mut Vec<String>) {
        let mut is_leaf = true;
        for below in
            command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
        {
            is_leaf = false;
            leaves(below, &format!("{words} {}", below.get_name()), into);
        }
        if is_leaf {
            into.push(words.to_owned());
        }
    }

    #[test]
    fn the_arguments_make_sense() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_is_documented() {
        let page = include_str!("../docs/cli.md");
        let mut commands = Vec::new();
        leaves(&Arguments::command(), "hopline", &mut commands);
        assert!(commands.len() > 20, "{commands:?}");
        for command in commands {
            let section = page.split("\n## ").find(|section| section.starts_with(&format!("`{command}")));
            let section = section.unwrap_or_else(|| panic!("docs/cli.md has no section `{command}`"));
            assert!(section.contains("```sh\n"), "no example of `{command}`");
            let mut found = Arguments::command();
            for word in command.split(' ').skip(1) {
                found = found.find_subcommand(word).expect("a command that was listed").clone();
            }
            let shown = found.get_arguments().filter(|argument| !argument.is_hide_set());
            for option in shown.filter_map(clap::Arg::get_long) {
                // Of all commands that ask a server.
                let common = ["url", "help", "json", "color"].contains(&option);
                assert!(common || section.contains(&format!("--{option}")), "`{command}`: no --{option}");
            }
        }
    }

    #[test]
    fn no_example_has_words_that_are_no_command() {
        let page = include_str!("../docs/cli.md");
        let examples = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        let lines = examples.flat_map(str::lines).filter_map(|line| line.strip_prefix("hopline "));
        let mut count = 0;
        for line in lines {
            let words = shell_words(line);
            let parsed = Arguments::try_parse_from(["hopline".to_owned()].into_iter().chain(words));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            count += 1;
        }
        assert!(count > 20, "the examples were not found");
    }

    /// The words of a line up to its comment, pipe or redirection. Single quotes keep words together.
    fn shell_words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (index, part) in line.split('\'').enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned());
                continue;
            }
            let ended = part.split_whitespace().take_while(|word| !["|", "#", ">"].contains(word));
            words.extend(ended.map(str::to_owned));
        }
        words
    }
}
