//! `hopline events`: what happens, as it happens.

use std::{process::ExitCode, time::Duration};

use reqwest::StatusCode;
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    api::{Failure, Request, Server, Target, read_json},
    human::{At, one_line},
    say,
    sse::{Parser, SseEvent},
    table::{Column, Table},
};
use crate::{JobId, event::TYPE_PREFIX, record::model::Position};

/// A stream that is silent for so long is dead: the server gives a sign of life every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// Pauses before connecting again, the last one for ever after.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// The event that stands for events that are gone.
const GAP: &str = "hopline.gap";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print events as they happen, until Ctrl-C; with --job its story, to its end.
    Tail(Tail),
}

#[derive(Debug, clap::Args)]
pub(super) struct Tail {
    /// Of this job, from its beginning to its end.
    #[arg(long, conflicts_with_all = ["queue", "kind", "tag"])]
    job: Option<JobId>,
    /// Of jobs of this queue.
    #[arg(long)]
    queue: Option<String>,
    /// Of jobs of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Of jobs with this tag.
    #[arg(long)]
    tag: Option<String>,
    /// After this position in the log, as in 1234.0 (`position` in --json); 0.0 is the beginning.
    #[arg(long, value_name = "POSITION")]
    from: Option<Position>,
    /// Print a JSON object per line: the event, and its position.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Tail(tail) = command;
    let server = Server::new(&tail.target)?;
    let printer = Printer::new(tail.json);
    let mut follower = Follower { server, last: tail.from.map(|from| from.to_string()), tail, printer };
    tokio::select! {
        ended = follower.follow() => ended?,
        stopped = tokio::signal::ctrl_c() => stopped?,
    }
    Ok(ExitCode::SUCCESS)
}

struct Follower {
    server: Server,
    tail: Tail,
    printer: Printer,
    /// Where it goes on.
    last: Option<String>,
}

impl Follower {
    /// Reads to the end of the story; connects again as often as it takes, once it was connected.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let mut failures = None;
        loop {
            match self.connect().await {
                Ok(response) if response.status() == StatusCode::NO_CONTENT => return Ok(()),
                Ok(response) => {
                    failures = Some(0);
                    self.read(response).await?;
                }
                Err(failure) => match &mut failures {
                    Some(failures) if failure.may_pass() => {
                        if *failures == 0 {
                            say::error(format_args!("hopline: {failure}\nTrying again."));
                        }
                        *failures += 1;
                    }
                    _ => return Err(self.explained(failure).await),
                },
            }
            let pause = PAUSES.get(failures.unwrap_or_default()).or(PAUSES.last());
            tokio::time::sleep(pause.copied().unwrap_or_default()).await;
        }
    }

    async fn connect(&self) -> Result<reqwest::Response, Failure> {
        let Tail { job, queue, kind, tag, .. } = &self.tail;
        let request = match job {
            Some(job) => Request::get(["v1", "jobs", &job.to_string(), "events"]),
            None => Request::get(["v1", "events"]),
        };
        let request = request.query("queue", queue.as_deref()).query("kind", kind.as_deref());
        let request = request.query("tag", tag.as_deref());
        let request = request.header("accept", Some("text/event-stream"));
        self.server.open(&request.header("last-event-id", self.last.as_deref())).await
    }

    async fn explained(&self, failure: Failure) -> anyhow::Error {
        match &self.tail.queue {
            Some(queue) => self.server.with_names(queue, failure).await,
            None => failure.into(),
        }
    }

    /// Reads until the server, or what lies between, ends the connection.
    async fn read(&mut self, mut response: reqwest::Response) -> anyhow::Result<()> {
        let mut parser = Parser::resuming(self.last.clone());
        loop {
            let Ok(Ok(Some(bytes))) = timeout(SILENCE, response.chunk()).await else {
                return Ok(());
            };
            for event in parser.feed(&bytes)? {
                self.printer.print(&event)?;
            }
            self.last = parser.last_id().map(str::to_owned).or_else(|| self.last.take());
        }
    }
}

const COLUMNS: &[Column] = &[
    Column::Left("TIME"),
    Column::Left("EVENT"),
    Column::Left("JOB"),
    Column::Left("QUEUE"),
    Column::Left("KIND"),
    Column::Left("NOTE"),
];

/// A CloudEvent of a job.
#[derive(Debug, Deserialize)]
struct Told {
    #[serde(rename = "type")]
    event_type: String,
    #[serde(default)]
    subject: String,
    time: Option<At>,
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    kind: Option<String>,
    queue: Option<String>,
    #[serde(default)]
    run: u32,
    #[serde(default)]
    attempt: u32,
    run_at: Option<At>,
    worker: Option<String>,
    error: Option<JobError>,
    reason: Option<String>,
    by: Option<String>,
    progress: Option<super::shown::Progress>,
}

#[derive(Debug, Deserialize)]
struct JobError {
    code: String,
    #[serde(default)]
    message: String,
}

/// Prints events, as lines for people or as JSON.
struct Printer {
    table: Option<Table>,
}

impl Printer {
    fn new(as_json: bool) -> Self {
        Self { table: (!as_json).then(|| Table::new(COLUMNS, say::look())) }
    }

    fn print(&mut self, event: &SseEvent) -> anyhow::Result<()> {
        match &mut self.table {
            None => say::result_line(&json_line(event))?,
            Some(_) if event.name == GAP => say::error(gap(event)),
            Some(table) => say::result(&table.page(&[read_json::<Told>(&event.data)?.row()]))?,
        }
        Ok(())
    }
}

/// What is missing, in words.
fn gap(event: &SseEvent) -> String {
    let place = event.id.as_deref().map(|id| format!(" up to {}", one_line(id))).unwrap_or_default();
    format!("-- events are missing{place}: the log does not have them any more --")
}

/// The event with its position, on one line. A gap has a type too.
fn json_line(event: &SseEvent) -> String {
    let data = event.data.replace(['\n', '\r'], "");
    let position = serde_json::to_string(&event.id).unwrap_or_default();
    let named = if event.name == GAP { format!(r#","type":"{GAP}""#) } else { String::new() };
    match data.trim_start().strip_prefix('{').map(str::trim_start) {
        Some("}") => format!(r#"{{"position":{position}{named}}}"#),
        Some(members) => format!(r#"{{"position":{position}{named},{members}"#),
        // No event of ours.
        None => data,
    }
}

impl Told {
    fn row(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let name = self.event_type.strip_prefix(TYPE_PREFIX).unwrap_or(&self.event_type);
        vec![
            self.time.map_or_else(dash, At::text),
            one_line(name),
            one_line(&self.subject),
            self.data.queue.as_deref().map_or_else(dash, one_line),
            self.data.kind.as_deref().map_or_else(dash, one_line),
            self.note(name),
        ]
    }

    fn note(&self, name: &str) -> String {
        let Data { run, attempt, run_at, worker, error, reason, by, progress, .. } = &self.data;
        let about_attempt = matches!(name, "started" | "progress" | "retrying" | "succeeded" | "dead");
        let parts = [
            (*run > 1).then(|| format!("run {run}")),
            about_attempt.then(|| format!("attempt {attempt}")),
            progress.as_ref().map(|progress| progress.line()),
            run_at.map(|at| format!("at {}", at.text())),
            worker.as_deref().filter(|_| about_attempt).map(|worker| format!("on {}", one_line(worker))),
            reason.as_deref().map(one_line),
            by.as_deref().map(|by| format!("by {}", one_line(by))),
            error.as_ref().map(|error| one_line(&format!("{}: {}", error.code, error.message))),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, name: &str, data: &str) -> SseEvent {
        SseEvent { id: Some(id.to_owned()), name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn an_event_is_a_row() {
        for (data, row) in [
            (
                r#"{"specversion":"1.0","id":"j:1:0:dead","source":"s","type":"hopline.job.dead","subject":"j",
                "time":"2030-01-01T00:00:00.000Z","data":{"kind":"a.b","queue":"q","run":2,"attempt":3,"step":2,
                "worker":"w","reason":"exhausted","error":{"code":"c","message":"m"},"outcome":"failed"}}"#,
                [
                    "2030-01-01T00:00:00.000Z",
                    "dead",
                    "j",
                    "q",
                    "a.b",
                    "run 2, attempt 3, on w, exhausted, c: m",
                ],
            ),
            (
                r#"{"type":"hopline.job.progress","subject":"j","data":{"queue":"q","run":1,"attempt":1,
                "progress":{"percent":50,"message":"read","n":1}}}"#,
                ["-", "progress", "j", "q", "-", "attempt 1, 50 % read"],
            ),
            (
                r#"{"type":"hopline.job.submitted","subject":"j","data":{"queue":"q","run":1,"attempt":1,
                "run_at":"2030-01-01T00:00:00Z"}}"#,
                ["-", "submitted", "j", "q", "-", "at 2030-01-01T00:00:00.000Z"],
            ),
            (
                r#"{"type":"hopline.job.cancel_requested","subject":"j","data":{"queue":"q","run":1,"attempt":1,"by":"eve","reason":"late"}}"#,
                ["-", "cancel_requested", "j", "q", "-", "late, by eve"],
            ),
        ] {
            assert_eq!(read_json::<Told>(data).unwrap().row(), row, "{data}");
        }
    }

    #[test]
    fn json_lines_have_the_position() {
        for (event, line) in [
            (
                event("7.1", "hopline.job.dead", "{\"type\":\"x\",\n\"n\":1.00}"),
                r#"{"position":"7.1","type":"x","n":1.00}"#,
            ),
            (
                event("9.0", GAP, r#"{"last_event_id":"1.0"}"#),
                r#"{"position":"9.0","type":"hopline.gap","last_event_id":"1.0"}"#,
            ),
            (event("9.0", GAP, "{ }"), r#"{"position":"9.0","type":"hopline.gap"}"#),
        ] {
            let written = json_line(&event);
            assert_eq!(written, line);
            assert!(serde_json::from_str::<serde_json::Value>(&written).is_ok());
        }
        assert!(gap(&event("9.0", GAP, "{}")).contains("9.0"));
    }
}
