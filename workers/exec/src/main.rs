//! The exec worker: `exec.run` from queue `exec`. Only wires; also the program of its keepers and launchers.

use std::{path::PathBuf, process::ExitCode};

use hopline::{Config, Options, Worker};
use hopline_worker_exec::{Commands, Exec, keeper, launch, run};

fn main() -> anyhow::Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some(keeper::ARGUMENT) => Ok(keeper::main()),
        Some(launch::ARGUMENT) => Ok(launch::main()),
        Some(argument) => anyhow::bail!(
            "no arguments are taken, not {argument:?} either: see EXEC_CONFIG, hopline.toml and HOPLINE_* variables"
        ),
        None => serve().map(|()| ExitCode::SUCCESS),
    }
}

#[tokio::main]
async fn serve() -> anyhow::Result<()> {
    // Commands may run as this user: without this they could read the broker's password from our environment.
    keeper::hide_from_others()?;
    let commands = Commands::from_env()?;
    let options = Options::new().timeout(commands.longest()).concurrency(commands.concurrency);
    // As the system knows it, also after a deploy has replaced the file.
    let exec = Exec::new(commands, PathBuf::from("/proc/self/exe"))?;
    Worker::new(Config::load()?).state(exec).register_with(run::run, options).run().await?;
    Ok(())
}
