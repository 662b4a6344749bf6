//! The fault matrix: what is lost, and what runs again, when something breaks under load. Each row is a fault; `rows.rs`
//! lists them. Real RabbitMQ, real HTTP fronts and workers, real signals; a ledger outside of Hopline says what ran.
//!
//! ```text
//! cargo test --test faults -- [--all | --full] [--jobs N] [--row NAME ...] [--list] [--write FILE] [--shared]
//! ```
//!
//! Without arguments a dozen rows in the small mode: some hundreds of jobs and short faults for each; with `--all` all rows.
//! `--full` (`make faults`): all rows, at least 20,000 jobs for each, faults as long as they are in life, one row at a time.
//! `--write` puts the table of this broker's version into a file, row by row, and leaves those of other versions there.
//! Words without dashes are parts of rows' names.
//!
//! The broker is a node of our own; `HOPLINE_RABBITMQ_SBIN` names the folder of another RabbitMQ's `rabbitmq-server`
//! (for one in a chroot: wrappers of `rabbitmq-server`, `rabbitmqctl` and `epmd`, and a `TMPDIR` that has the same name
//! inside and outside). With `--shared` it is the one of `HOPLINE_TEST_AMQP_URL` and `HOPLINE_TEST_MANAGEMENT_URL`, and
//! the rows that must control it are left out.
//!
//! What a repeat after an end is: see `verdict.rs`.
//!
//! | file | owns |
//! |---|---|
//! | `rows.rs`, `rows/` | the faults |
//! | `scene.rs` | broker, processes and clients of a row |
//! | `load.rs` | the clients, and what they were told |
//! | `book.rs` | the workers, and the ledger of what they did |
//! | `proxy.rs` | the network between processes and broker |
//! | `verdict.rs` | whether a row holds |
//! | `report.rs` | lines and tables |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by unwrapping, also in its helpers, and says what it found"
)]

mod book;
mod load;
mod proxy;
mod report;
mod rows;
mod scene;
mod support;
mod verdict;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Instant,
};

use tokio::sync::RwLock;

use crate::{
    report::{Report, Result},
    rows::{Need, ROWS, Row},
    scene::{Scale, Site},
    support::{broker::Broker, process::new_folder},
};

/// Rows at the same time in the small mode: they mostly wait.
const TOGETHER: usize = 3;
/// Jobs of a row.
const SMALL: usize = 200;
const FULL: usize = 20_000;

/// What is played where nothing is asked for: one of each sort, so that all tests together take minutes.
const DOZEN: [&str; 12] = [
    "broker-killed",
    "memory-alarm",
    "spool-killed",
    "cut",
    "half-open",
    "channels",
    "subscriber-full",
    "worker-killed",
    "worker-frozen",
    "http-killed",
    "record-corrupted",
    "poison",
];

#[derive(Debug, Default)]
struct Arguments {
    full: bool,
    all: bool,
    jobs: Option<usize>,
    rows: Vec<String>,
    words: Vec<String>,
    list: bool,
    write: Option<PathBuf>,
    shared: bool,
}

impl Arguments {
    fn read() -> std::result::Result<Self, String> {
        let mut read = Self::default();
        let mut given = std::env::args().skip(1);
        while let Some(argument) = given.next() {
            let mut value = || given.next().ok_or_else(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--full" => read.full = true,
                "--all" => read.all = true,
                "--jobs" => read.jobs = Some(value()?.parse().map_err(|error| format!("--jobs: {error}"))?),
                "--row" => read.rows.push(value()?),
                "--list" => read.list = true,
                "--write" => read.write = Some(value()?.into()),
                "--shared" => read.shared = true,
                // What `cargo test -- …` says to all test programs.
                "--nocapture" | "--no-capture" | "--quiet" | "-q" | "--show-output" => {}
                "--test-threads" => drop(value()?),
                _ if argument.starts_with("--test-threads=") => {}
                _ if argument.starts_with('-') => return Err(format!("{argument} is not known")),
                _ => read.words.push(argument),
            }
        }
        if let Some(unknown) = read.rows.iter().find(|name| ROWS.iter().all(|row| row.name != *name)) {
            return Err(format!("there is no row {unknown}: see --list"));
        }
        Ok(read)
    }

    fn selects(&self, row: &Row) -> bool {
        if self.rows.is_empty() && self.words.is_empty() {
            return self.full || self.all || self.list || DOZEN.contains(&row.name);
        }
        self.rows.iter().any(|name| name == row.name)
            || self.words.iter().any(|word| row.name.contains(word.as_str()))
    }
}

fn main() -> ExitCode {
    support::broker::crypto();
    if std::env::args().nth(1).as_deref() == Some(book::WORKER) {
        book::work();
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(2);
        }
    };
    let chosen: Vec<&'static Row> = ROWS.iter().filter(|row| arguments.selects(row)).collect();
    if arguments.list {
        for row in chosen {
            println!("{:<20} {}", row.name, row.fault);
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        println!("0 passed, 0 failed, 0 skipped");
        return ExitCode::SUCCESS;
    }
    let scale = Scale {
        full: arguments.full,
        jobs: arguments.jobs.unwrap_or(if arguments.full { FULL } else { SMALL }),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = new_folder();
    let site = runtime.block_on(site(&arguments, &dir));
    let version = runtime.block_on(report::broker_version(&site));
    println!("RabbitMQ {version}, {} rows", chosen.len());
    let report = Mutex::new(Report::new(version));
    let begun = Instant::now();

    let together = if arguments.full { 1 } else { TOGETHER };
    let (alone, others): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|row| row.is_alone());
    // Written after each row: an hour's work is not lost with the last one.
    let keep = |row, result| {
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.add(row, result);
        arguments.write.as_deref().map_or(Ok(()), |file| report.write(file, scale))
    };
    let written = play_all(&runtime, others, together, &site, scale, &keep)
        .and_then(|()| play_all(&runtime, alone, 1, &site, scale, &keep));

    if let Some(node) = &site.node {
        runtime.block_on(async { node.write().await.stop().await });
    }
    let _ = std::fs::remove_dir_all(dir);
    if let Err(error) = written {
        eprintln!("{}: {error}", arguments.write.unwrap_or_default().display());
        return ExitCode::FAILURE;
    }
    let report = report.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{} ({} s)", report.last_line(), begun.elapsed().as_secs());
    if report.any_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn site(arguments: &Arguments, dir: &std::path::Path) -> Site {
    if arguments.shared {
        return Site { broker: Broker::shared(), node: None };
    }
    let (node, broker) = Broker::private(dir).await;
    Site { broker, node: Some(Arc::new(RwLock::new(node))) }
}

/// Plays rows, so many at a time; each on a thread of its own, whose panic is its failure. Ends early if a result cannot
/// be kept.
fn play_all(
    runtime: &tokio::runtime::Runtime,
    rows: Vec<&'static Row>,
    together: usize,
    site: &Site,
    scale: Scale,
    keep: &(impl Fn(&'static Row, Result) -> std::io::Result<()> + Sync),
) -> std::io::Result<()> {
    let (sender, waiting) = mpsc::channel();
    rows.into_iter().for_each(|row| sender.send(row).expect("the receiver is here"));
    drop(sender);
    let waiting = Mutex::new(waiting);
    std::thread::scope(|threads| {
        let player = || {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).try_recv();
                let Ok(row) = next else { return Ok(()) };
                keep(row, play(runtime, row, site, scale))?;
            }
        };
        let players: Vec<_> = (0..together).map(|_| threads.spawn(player)).collect();
        players.into_iter().try_for_each(|player| player.join().expect("a row's panic is its result"))
    })
}

fn play(runtime: &tokio::runtime::Runtime, row: &'static Row, site: &Site, scale: Scale) -> Result {
    if let Some(why) = row.needs.iter().find_map(|need: &Need| need.missing(site)) {
        return Result::Skipped(why);
    }
    let begun = Instant::now();
    let (handle, site) = (runtime.handle().clone(), site.clone());
    let played = std::thread::Builder::new().name(row.name.to_owned()).spawn(move || {
        handle.block_on(async {
            revive(&site).await;
            (row.play)(site, scale).await
        })
    });
    match played.expect("a thread").join() {
        Ok(played) => Result::Played(played, begun.elapsed()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Result::Broken(text.unwrap_or_else(|| "it panicked".to_owned()))
        }
    }
}

/// A row that failed may have left the broker down, or under an alarm.
async fn revive(site: &Site) {
    let Some(node) = &site.node else { return };
    // While another row is under way the node is well.
    let Ok(mut node) = node.try_write() else { return };
    if node.pid().is_none() {
        node.restart().await.expect("the broker comes back");
    }
}
