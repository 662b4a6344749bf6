//! `hopline jobs import`: a file of jobs, a line each, as batches.
//!
//! What the server does not take now is offered again while that is safe: where each line is named by a key or an id, or
//! where nothing of it can have been accepted.

mod lines;

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufReader, Read},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::lines::{Line, Lines};
use crate::cli::{
    api::{Failure, Request, Server, Target, read_json},
    bar::{Bar, Of},
    human::count,
    input, say,
};

/// Most bytes of a request; a line alone may be longer.
const BYTES: usize = 4 << 20;
/// Pause before lines are offered again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long lines are offered again without any that is accepted.
const PATIENCE: Duration = Duration::from_secs(300);
/// Most lines whose refusal is told.
const TOLD: u64 = 100;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Import {
    /// A file with a job on each line, as a JSON object (`{"kind": …, "args": …}`); `-` for standard input.
    file: PathBuf,
    /// Names the import: repeated with the same file and key, each line's job runs once.
    #[arg(long, value_parser = input::key)]
    key: Option<String>,
    /// Leave out the lines before this one.
    #[arg(long, value_name = "N", default_value_t = 1)]
    from_line: u64,
    /// Most jobs of a request.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Print the numbers at the end as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// The numbers at the end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct Done {
    accepted: u64,
    /// Of these, so many had been accepted before.
    repeated: u64,
    refused: u64,
}

/// The answer to a batch.
#[derive(Debug, Deserialize)]
struct Answered {
    items: Vec<Item>,
}

/// What became of an item.
#[derive(Debug, Deserialize)]
struct Item {
    #[serde(default)]
    replayed: bool,
    error: Option<Box<RawValue>>,
}

#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    status: u16,
    #[serde(default)]
    code: String,
}

impl Import {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let (input, size): (Box<dyn Read>, _) = if self.file.as_os_str() == "-" {
            (Box::new(io::stdin()), None)
        } else {
            let named = || format!("cannot read {}", self.file.display());
            let file = File::open(&self.file).with_context(named)?;
            let size = file.metadata().with_context(named)?.len();
            (Box::new(file), Some(size))
        };
        let lines = Lines::new(BufReader::new(input), self.key.clone(), self.from_line);
        let bar = Bar::new(size.map_or(Of::Open, Of::Bytes));
        let server = Server::new(&self.target)?;
        let began = Instant::now();
        let mut work = Work {
            server,
            bar,
            lines,
            most: self.batch.into(),
            done: Done::default(),
            waiting: VecDeque::new(),
        };
        let ended = work.all().await;
        let done = work.done;
        drop(work);
        say::result_line(&if self.json {
            serde_json::to_string(&done)?
        } else {
            done.sentence(began.elapsed())
        })?;
        ended?;
        Ok(if done.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Done {
    fn sentence(&self, took: Duration) -> String {
        let before =
            if self.repeated > 0 { format!(" ({} of them before)", self.repeated) } else { String::new() };
        format!(
            "{} accepted{before}, {} refused, in {}.",
            count(self.accepted, "job"),
            self.refused,
            crate::cli::human::took(took)
        )
    }
}

fn left_out(first: u64, failure: &Failure) -> anyhow::Error {
    anyhow::anyhow!(
        "line {first} and those after it were not accepted (--from-line {first} goes on there): {failure}"
    )
}

struct Work {
    server: Server,
    bar: Bar,
    lines: Lines<BufReader<Box<dyn Read>>>,
    most: usize,
    done: Done,
    /// Lines to be offered, the first one first.
    waiting: VecDeque<Line>,
}

impl Work {
    async fn all(&mut self) -> anyhow::Result<()> {
        let mut moved = Instant::now();
        loop {
            let batch = self.next_batch()?;
            let Some(first) = batch.first().map(|line| line.number) else { return Ok(()) };
            let before = self.done;
            let failure = self.offer(batch).await?;
            if self.done != before {
                moved = Instant::now();
            }
            if let Some(failure) = failure {
                if moved.elapsed() > PATIENCE {
                    bail!(
                        "line {first} and those after it were not accepted (--from-line {first}): {failure}"
                    );
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// What is offered next: lines that were not taken, then new ones.
    fn next_batch(&mut self) -> anyhow::Result<Vec<Line>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < self.most {
            let line = match self.waiting.pop_front() {
                Some(line) => line,
                None => match self.lines.next().context("cannot read the jobs")? {
                    None => break,
                    Some(Ok(line)) => line,
                    Some(Err((number, why))) => {
                        self.refused(number, &why);
                        continue;
                    }
                },
            };
            if !batch.is_empty() && bytes + line.text.len() > BYTES {
                self.waiting.push_front(line);
                break;
            }
            bytes += line.text.len() + 1;
            batch.push(line);
        }
        Ok(batch)
    }

    /// Offers lines. Those that may be offered again wait, and why is said; an error is for what nobody can tell.
    async fn offer(&mut self, batch: Vec<Line>) -> anyhow::Result<Option<Failure>> {
        let body = batch.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n");
        let request = Request::post(["v1", "jobs", "batch"]).ndjson(body);
        let is_named = batch.iter().all(|line| line.is_named);
        let mut again = None;
        match self.server.answered(&request).await {
            Ok((status, text)) => match read_json::<Answered>(&text) {
                Ok(answered) if answered.items.len() == batch.len() => {
                    for (line, item) in batch.into_iter().zip(answered.items) {
                        if let Some(failure) = self.judge(line, item) {
                            again = Some(failure);
                        }
                    }
                }
                // Of the whole: nothing of it was submitted.
                _ => again = Some(self.whole(batch, Failure::refused(status, &text))?),
            },
            Err(failure @ Failure::Unreachable { .. }) => again = Some(self.whole(batch, failure)?),
            Err(failure) if is_named => again = Some(self.whole(batch, failure)?),
            Err(failure) => bail!(
                "from line {} on it is unknown what was accepted (with --key it could be repeated): {failure}",
                batch.first().map_or(0, |line| line.number)
            ),
        }
        self.tell_progress();
        Ok(again)
    }

    /// A request that failed as a whole is made again later, if that may help.
    fn whole(&mut self, batch: Vec<Line>, failure: Failure) -> anyhow::Result<Failure> {
        if !failure.may_pass() {
            return Err(left_out(batch.first().map_or(0, |line| line.number), &failure));
        }
        for line in batch.into_iter().rev() {
            self.waiting.push_front(line);
        }
        Ok(failure)
    }

    /// Counts what became of a line; why it is to be offered again, if it is.
    fn judge(&mut self, line: Line, item: Item) -> Option<Failure> {
        let Some(error) = item.error else {
            self.done.accepted += 1;
            self.done.repeated += u64::from(item.replayed);
            return None;
        };
        let Status { status, code } =
            read_json(error.get()).unwrap_or(Status { status: 0, code: String::new() });
        let failure =
            Failure::refused(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), error.get());
        // Of these the job may run all the same.
        let is_open = matches!(code.as_str(), "confirm_timeout" | "confirm_lost");
        if failure.may_pass() && (line.is_named || !is_open) {
            self.waiting.push_back(line);
            return Some(failure);
        }
        self.refused(line.number, &failure.to_string());
        None
    }

    fn refused(&mut self, number: u64, why: &str) {
        self.done.refused += 1;
        if self.done.refused <= TOLD {
            self.bar.say(format_args!("line {number}: {why}"));
        } else if self.done.refused == TOLD + 1 {
            self.bar.say("More lines are refused, which are only counted.");
        }
    }

    fn tell_progress(&self) {
        let Done { accepted, refused, .. } = self.done;
        self.bar.set(self.lines.bytes(), format!("{} accepted, {refused} refused", count(accepted, "job")));
    }
}
