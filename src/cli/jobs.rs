//! `hopline jobs`: submit jobs and call them, look at them, wait for them, cancel and replay them.

mod change;
mod import;
mod look;
mod submit;

use std::process::ExitCode;

pub(super) use self::{
    change::set_args,
    look::{Show, list},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Submit a job and print the answer. With --wait the exit code tells its end.
    ///
    /// Exit codes: 0 accepted, with --wait: it succeeded; 1 not accepted; 3 dead, 4 cancelled, 5 expired; 6 it has
    /// not ended yet.
    Submit(submit::Submit),
    /// Submit the jobs of a file, a JSON object per line.
    ///
    /// Exit codes: 0 all were accepted; 1 some were not, or it ended early.
    Import(import::Import),
    /// Run a job and print its output.
    ///
    /// Exit codes: 0 it succeeded; 1 not accepted, or there is no output to show; 3 dead, 4 cancelled, 5 expired; 6
    /// the wait ended first.
    Call(submit::Call),
    /// List jobs, newest first.
    Ls(look::List),
    /// Show all that is known of a job.
    Show(Show),
    /// Wait for the end of a job's run.
    ///
    /// Exit codes: 0 it succeeded; 1 no such job, or no answer; 3 dead, 4 cancelled, 5 expired; 6 it has not ended
    /// when the time is over.
    Wait(look::Wait),
    /// Print a job's output as it is.
    ///
    /// Exit codes: 0 done; 1 no such job, or its output was not recorded; 3 dead, 4 cancelled, 5 expired; 6 it has
    /// not ended.
    Output(look::Output),
    /// Cancel jobs: those named, or all that a filter finds.
    Cancel(change::Cancel),
    /// Start a new run of dead jobs. Of one job --wait waits for the end of that run.
    ///
    /// Exit codes: 0 done; 1 it failed, or a job was not replayed; with --wait 6: the time is over; of one job its run's
    /// end: 0 it succeeded, 3 dead, 4 cancelled, 5 expired.
    Replay(change::Replay),
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Submit(submit) => submit.run().await,
        Command::Import(import) => import.run().await,
        Command::Call(call) => call.run().await,
        Command::Ls(list) => list.run().await,
        Command::Show(show) => show.run().await,
        Command::Wait(wait) => wait.run().await,
        Command::Output(output) => output.run().await,
        Command::Cancel(cancel) => cancel.run().await,
        Command::Replay(replay) => replay.run().await,
    }
}
