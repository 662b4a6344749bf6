//! What is printed as rows end, and the page that is made of them.

use std::{fmt::Write as _, io, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    rows::{ROWS, Row},
    scene::{Played, Scale, Site},
};

/// What came of a row.
pub(crate) enum Result {
    Played(Played, Duration),
    /// It did not come to a verdict.
    Broken(String),
    Skipped(&'static str),
}

impl Result {
    fn has_failed(&self) -> bool {
        match self {
            Self::Played(played, _) => !played.figures.problems.is_empty(),
            Self::Broken(_) => true,
            Self::Skipped(_) => false,
        }
    }
}

pub(crate) struct Report {
    version: String,
    results: Vec<(&'static Row, Result)>,
}

const TITLE: &str = "# Faults\n";
const HEAD: &str = "\
| fault | times | jobs | lost | repeats after an end | repeats before an end | 504: ended / not | refused | longest stall | |
|---|---|---|---|---|---|---|---|---|---|
";

impl Report {
    pub(crate) fn new(version: String) -> Self {
        Self { version, results: Vec::new() }
    }

    /// Takes a row's result and prints it.
    pub(crate) fn add(&mut self, row: &'static Row, result: Result) {
        match &result {
            Result::Skipped(why) => println!("skip {:<20} {why}", row.name),
            Result::Broken(why) => println!("FAIL {:<20} {why}", row.name),
            Result::Played(played, time) => {
                let figures = &played.figures;
                let word = if result.has_failed() { "FAIL" } else { "ok  " };
                println!(
                    "{word} {:<20} {}: {} jobs, {} lost, {} repeats after an end{}, {} before, 504: {} ended {} not, \
                     {} refused, {} unanswered, stall {:.1} s{}{} ({:.0} s)",
                    row.name,
                    played.times,
                    figures.jobs,
                    figures.lost,
                    figures.after,
                    some(figures.after_unsure, "of 504s"),
                    figures.before,
                    figures.unsure_ended,
                    figures.unsure_not,
                    figures.refused,
                    figures.unanswered,
                    figures.stall.as_secs_f64(),
                    if played.note.is_empty() { "" } else { "; " },
                    played.note,
                    time.as_secs_f64(),
                );
                for problem in &figures.problems {
                    println!("     {problem}");
                }
                if result.has_failed() {
                    println!("     answers: {:?}", figures.codes);
                }
            }
        }
        self.results.push((row, result));
    }

    pub(crate) fn any_failed(&self) -> bool {
        self.results.iter().any(|(_, result)| result.has_failed())
    }

    pub(crate) fn last_line(&self) -> String {
        let count =
            |word: fn(&Result) -> bool| self.results.iter().filter(|(_, result)| word(result)).count();
        let failed = count(Result::has_failed);
        let skipped = count(|result| matches!(result, Result::Skipped(_)));
        format!("{} passed, {failed} failed, {skipped} skipped", self.results.len() - failed - skipped)
    }

    /// Writes this version's table into the page, and leaves those of other versions there; rows that have not been
    /// played keep their lines if those are of the same mode, build and machine.
    pub(crate) fn write(&self, file: &Path, scale: Scale) -> io::Result<()> {
        let old = std::fs::read_to_string(file).unwrap_or_default();
        let heading = format!("## RabbitMQ {}", self.version);
        let made_by = made_by(scale);
        let (ours, mut sections): (Vec<String>, Vec<String>) = old
            .split("\n## ")
            .skip(1)
            .map(|section| format!("## {}", section.trim_end()))
            .partition(|section| section.lines().next() == Some(heading.as_str()));
        let old_rows = ours.first().filter(|section| section.lines().any(|line| line == made_by));
        let table = self.table(old_rows.map_or("", String::as_str));
        sections.push(format!("{heading}\n\n{made_by}\n\n{}", table.trim_end()));
        sections.sort();
        std::fs::write(file, format!("{TITLE}\n{}\n\n{}\n", PREFACE.trim_end(), sections.join("\n\n")))
    }

    fn table(&self, old_rows: &str) -> String {
        let mut table = HEAD.to_owned();
        for row in ROWS {
            let fault = row.fault;
            let Some((_, result)) = self.results.iter().find(|(of, _)| of.name == row.name) else {
                let start = format!("| {fault} | ");
                table.extend(
                    old_rows.lines().find(|line| line.starts_with(&start)).map(|line| format!("{line}\n")),
                );
                continue;
            };
            // Writing to a String does not fail.
            let _ = match result {
                Result::Skipped(why) => writeln!(table, "| {fault} | | | | | | | | | skipped: {why} |"),
                Result::Broken(_) => writeln!(table, "| {fault} | | | | | | | | | **failed** |"),
                Result::Played(Played { times, note, figures }, _) => writeln!(
                    table,
                    "| {fault} | {times} | {} | {} | {}{} | {} | {} / {} | {} | {:.1} s | {note}{} |",
                    figures.jobs,
                    figures.lost,
                    figures.after,
                    some(figures.after_unsure, "of 504s"),
                    figures.before,
                    figures.unsure_ended,
                    figures.unsure_not,
                    figures.refused,
                    figures.stall.as_secs_f64(),
                    if result.has_failed() { " **failed**" } else { "" },
                ),
            };
        }
        table
    }
}

const PREFACE: &str = "\
Made by `make faults` (`tests/faults/`); do not edit. Each row is a fault under load: clients submit over HTTP, single
jobs and batches, some under an id of their own and repeated until they are answered; one job in ten fails once, one in
ten is delayed. Real processes: two HTTP fronts, three workers, RabbitMQ. A ledger outside of Hopline says what ran.

- **jobs**: submissions that were answered with 202. **lost**: those of them that did not run to their end, or whose record
  does not say so. All others are in the record as `succeeded`, nothing is left in the queue, and nobody is in the
  dead-letter queue (but for the poison job).
- **repeats after an end**: starts although the record could be known to have the end of the run. *of 504s*: where a
  submission had been answered with 504, two copies may be stored, and they are counted apart.
- **repeats before an end**: starts that repeat an attempt which was cut off, or goes on elsewhere.
- **504**: submissions whose confirm was lost: they may end or not. **refused**: 503, nothing accepted; none of them ran.
- **longest stall**: the longest time without the end of a job while there were jobs to be run, the fault's own time
  included.
";

fn made_by(scale: Scale) -> String {
    let mode =
        if scale.full { "make faults".to_owned() } else { format!("small mode, {} jobs a row", scale.jobs) };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let processor =
        from_proc("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = from_proc("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes >> 20);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "`{mode}`, hopline {} ({}), {cores} cores ({processor}), {memory} GiB, Linux {}.",
        env!("CARGO_PKG_VERSION"),
        if cfg!(debug_assertions) { "debug build" } else { "release build" },
        kernel.trim(),
    )
}

fn from_proc(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn some(count: usize, what: &str) -> String {
    if count == 0 { String::new() } else { format!(" (+ {count} {what})") }
}

pub(crate) async fn broker_version(site: &Site) -> String {
    let overview = async {
        let answer = reqwest::get(format!("{}/api/overview", site.broker.management)).await.ok()?;
        answer.json::<Value>().await.ok()
    };
    let overview = overview.await.unwrap_or_default();
    overview["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned()
}
