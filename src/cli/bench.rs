//! `hopline bench`: Hopline against bare lapin, on one broker, in one run.
//!
//! What is measured are real processes: `hopline serve`, a worker, and for bare lapin one that publishes and one that
//! consumes. They run on this machine, as the broker mostly does, too: what counts is the ratio of numbers from one run,
//! not a number by itself. After a warm-up everything is measured in rounds, each measurement right after its
//! baseline, and medians are shown. The broker is the one that the configuration names; what is declared there has a
//! prefix of its own and is deleted at the end.
//!
//! | module | owns |
//! |---|---|
//! | `plan` | what can be measured, what the numbers are called, the goals |
//! | `measure` | the measurements |
//! | `stage`, `orders` | the processes that are measured, and what they are told |
//! | `worker`, `raw` | the worker and bare lapin, inside their own processes |
//! | `load` | the clients |
//! | `clock`, `meter` | time, processors, memory |
//! | `peers` | other libraries for jobs |
//! | `stats`, `report`, `page` | medians; what is printed and written |

mod clock;
mod load;
mod machine;
mod measure;
mod meter;
mod orders;
mod page;
mod peers;
mod plan;
mod raw;
mod report;
mod spread;
mod stage;
mod stats;
mod worker;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;

use self::{
    machine::Machine,
    measure::{Measured, Run, Sizes},
    peers::Peers,
    plan::Measure,
    report::{Report, Settings},
    stage::{Stage, of_its_own},
};
use super::{say, up::files};
use crate::{Config, shutdown};

/// Bytes of a job's args.
const ARGS: usize = 256;
/// How far things grow where nobody says it.
const LARGE: usize = 1_000_000;
/// Ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    /// Jobs in each measurement.
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Jobs that wait when `drain` begins.
    #[arg(long, default_value_t = 100_000)]
    backlog: usize,
    /// Calls one at a time; of 64 callers at once there are ten times as many.
    #[arg(long, default_value_t = 500)]
    calls: usize,
    /// Times that everything is measured; the median is shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure only these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Measure>,
    /// Measure `growth`, too: how cost grows, up to so many jobs. Without it, that is measured only where `--only` has it,
    /// up to 1,000,000.
    #[arg(long, overrides_with = "large")]
    large: Option<usize>,
    /// Attempts at the same time in the worker.
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
    /// Jobs that the worker takes ahead.
    #[arg(long, default_value_t = 500)]
    prefetch: u16,
    /// Write the report to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write it into this folder as a page, `performance.md`, with pictures, `images/performance.svg` and `times.svg`.
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
    /// Measure other libraries for jobs, too, by this program (`bench/peers/run` of the repository).
    #[arg(long, value_name = "PROGRAM")]
    peers: Option<PathBuf>,
    /// A process of the benchmark, started by it.
    #[command(subcommand)]
    process: Option<Process>,
}

#[derive(Debug, Clone, Copy, clap::Subcommand)]
enum Process {
    /// The worker.
    #[command(hide = true)]
    Worker {
        /// With jobs of more queues.
        #[arg(long)]
        spread: bool,
    },
    /// Bare lapin.
    #[command(hide = true)]
    Raw,
}

/// Runs the benchmark and prints its tables; or one of its processes.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.process {
        Some(Process::Worker { spread }) => worker::run(spread).await,
        Some(Process::Raw) => raw::run().await,
        None => compare(&arguments).await,
    }
}

async fn compare(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { jobs, backlog, calls, large, rounds, concurrency, prefetch, .. } = *arguments;
    let sizes = [jobs, backlog, calls, rounds, large.unwrap_or(LARGE)];
    ensure!(sizes.iter().all(|size| *size >= 1), "nothing to measure");
    let interrupted = shutdown::requested().context("cannot listen for signals")?;
    let stage = Stage::new(of_its_own(Config::load()?, concurrency, prefetch)?)?;
    let machine = Machine::of(&stage.config).await;
    let measured = tokio::select! {
        measured = Box::pin(measure(&stage, arguments)) => Some(measured),
        () = interrupted => None,
    };
    // The processes have ended by now, or are killed.
    let prefix = stage.config.amqp.prefix.clone();
    let taken_down = stage.take_down().await.context("what was declared is left behind");
    let Some(measured) = measured else {
        taken_down?;
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let settings = Settings { rounds, jobs, backlog, calls, args: ARGS, concurrency, prefetch, prefix };
    show(&Report::new(settings, machine, measured?), arguments)?;
    taken_down?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(stage: &Stage, arguments: &Arguments) -> anyhow::Result<Measured> {
    let Arguments { jobs, backlog, calls, large, .. } = *arguments;
    let sizes = Sizes { jobs, backlog, calls };
    let measures = match arguments.only.as_slice() {
        [] => Measure::value_variants(),
        only => only,
    };
    let peers = match &arguments.peers {
        Some(program) => Some(Peers::of(program, &stage.config).await?),
        None => None,
    };
    let mut run = Run::start(stage, sizes, peers).await?;
    if measures.contains(&Measure::Start) {
        say::error("idling");
        run.idle().await?;
    }
    say::error("warming up");
    run.warm_up(measures).await?;
    for round in 1..=arguments.rounds {
        say::error(format_args!("round {round} of {}", arguments.rounds));
        run.round(measures).await?;
    }
    if large.is_some() || arguments.only.contains(&Measure::Growth) {
        run.growth(large.unwrap_or(LARGE)).await?;
    }
    run.end().await
}

fn show(report: &Report, arguments: &Arguments) -> anyhow::Result<()> {
    say::result_line(&report.text())?;
    if let Some(path) = &arguments.json {
        files::write(path, &serde_json::to_vec_pretty(report)?)?;
    }
    if let Some(folder) = &arguments.docs {
        let images = folder.join("images");
        std::fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
        files::write(&images.join("performance.svg"), page::chart(report).as_bytes())?;
        files::write(&images.join("times.svg"), spread::picture(&report.times).as_bytes())?;
        files::write(&folder.join("performance.md"), page::page(report).as_bytes())?;
    }
    Ok(())
}
