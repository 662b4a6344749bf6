//! `hopline queues`: how full queues are; pause, resume and purge them.

use std::{process::ExitCode, time::Duration};

use serde::Deserialize;

use super::{
    acts::{self, Following, Note},
    api::{Listing, Request, Server, Target, read_json},
    human::{At, age, count, moment, one_line, rate, took},
    input::Sure,
    say,
    table::{Column, block},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List queues: what waits, what runs, how fast they empty.
    Ls(Listing),
    /// Show a queue.
    Show(Show),
    /// Let no worker take jobs from a queue until it is resumed; running ones finish.
    Pause(Switch),
    /// Let workers take jobs from a queue again.
    Resume(Switch),
    /// End all jobs that wait in a queue: they are cancelled, reason `purged`. Delayed and retrying ones stay.
    Purge(Purge),
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The queue.
    queue: String,
    /// Print it as JSON, as it came.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Switch {
    /// The queue.
    queue: String,
    /// Who you are, for the others.
    #[arg(long)]
    by: Option<String>,
    /// Print the answer as JSON, as it came.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Purge {
    /// The queue.
    queue: String,
    #[command(flatten)]
    sure: Sure,
    #[command(flatten)]
    note: Note,
    #[command(flatten)]
    following: Following,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ls(list) => {
            list.show("queues", COLUMNS, "queue", |item| Ok(read_json::<Queue>(item)?.row().to_vec())).await
        }
        Command::Show(show) => show.run().await,
        Command::Pause(pause) => pause.run("pause").await,
        Command::Resume(resume) => resume.run("resume").await,
        Command::Purge(purge) => purge.run().await,
    }
}

/// A queue as the server shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Queue {
    pub(super) queue: String,
    /// Absent where the broker could not be asked.
    pub(super) ready: Option<u64>,
    #[serde(default)]
    pub(super) running: u64,
    #[serde(default)]
    pub(super) scheduled: u64,
    #[serde(default)]
    pub(super) retrying: u64,
    #[serde(default)]
    pub(super) dead: u64,
    pub(super) oldest_age: Option<f64>,
    #[serde(default)]
    pub(super) arrival_rate: f64,
    #[serde(default)]
    pub(super) service_rate: f64,
    mean_duration: Option<f64>,
    time_to_drain: Option<f64>,
    suggested_replicas: Option<u64>,
    #[serde(default)]
    pub(super) workers: Vec<String>,
    #[serde(default)]
    pub(super) paused: bool,
    paused_at: Option<At>,
    paused_by: Option<String>,
}

const COLUMNS: &[Column] = &[
    Column::Left("QUEUE"),
    Column::Right("READY"),
    Column::Right("RUNNING"),
    Column::Right("SCHEDULED"),
    Column::Right("RETRYING"),
    Column::Right("DEAD"),
    Column::Right("OLDEST"),
    Column::Right("IN/S"),
    Column::Right("OUT/S"),
    Column::Right("DRAIN"),
    Column::Right("WORKERS"),
    Column::State("STATE"),
];

fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or_default()
}

impl Queue {
    /// A row of [`COLUMNS`].
    pub(super) fn row(&self) -> [String; 12] {
        let dash = || "-".to_owned();
        [
            one_line(&self.queue),
            self.ready.map_or_else(dash, |ready| ready.to_string()),
            self.running.to_string(),
            self.scheduled.to_string(),
            self.retrying.to_string(),
            self.dead.to_string(),
            self.oldest_age.map_or_else(dash, |old| age(seconds(old))),
            rate(self.arrival_rate),
            rate(self.service_rate),
            self.time_to_drain.map_or_else(dash, |left| age(seconds(left))),
            self.workers.len().to_string(),
            if self.paused { "paused" } else { "" }.to_owned(),
        ]
    }

    /// Why nobody takes its jobs, where nobody does.
    pub(super) fn hindrance(&self) -> Option<String> {
        let queue = one_line(&self.queue);
        if self.paused {
            return Some(format!("queue {queue} is paused; `hopline queues resume {queue}` ends that"));
        }
        self.workers.is_empty().then(|| format!("no worker that is alive takes jobs from queue {queue}"))
    }

    fn block(&self, now: At) -> String {
        let workers = self.workers.iter().map(|worker| one_line(worker)).collect::<Vec<_>>().join("\n");
        let fields = [
            ("queue", Some(one_line(&self.queue))),
            ("paused", self.paused.then(|| self.pause(now))),
            ("ready", self.ready.map(|ready| ready.to_string())),
            ("running", Some(self.running.to_string())),
            ("scheduled", Some(self.scheduled.to_string())),
            ("retrying", Some(self.retrying.to_string())),
            ("dead", Some(self.dead.to_string())),
            ("oldest", self.oldest_age.map(|old| took(seconds(old)))),
            ("in", Some(format!("{}/s", rate(self.arrival_rate)))),
            ("out", Some(format!("{}/s", rate(self.service_rate)))),
            ("attempt", self.mean_duration.map(|mean| format!("{} on average", took(seconds(mean))))),
            ("drain", self.time_to_drain.map(|left| took(seconds(left)))),
            ("suggested", self.suggested_replicas.map(|number| count(number, "worker"))),
            ("workers", Some(workers).filter(|workers| !workers.is_empty()).or(Some("none".to_owned()))),
        ];
        block(&fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect::<Vec<_>>())
    }

    fn pause(&self, now: At) -> String {
        let by = self.paused_by.as_deref().map(|by| format!(" by {}", one_line(by))).unwrap_or_default();
        let at = self.paused_at.map(|at| format!(", {}", moment(at, now))).unwrap_or_default();
        format!("yes{by}{at}")
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let answer = server.ask_about(&self.queue, &Request::get(["v1", "queues", &self.queue])).await?;
        let text = if self.json { answer.text } else { answer.read::<Queue>()?.block(At::now()) };
        say::result_line(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Switch {
    async fn run(self, act: &str) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let request = Request::post(["v1", "queues", &self.queue, act]).query("by", self.by);
        let answer = server.ask_about(&self.queue, &request).await?;
        let told = if act == "pause" { "is paused: no worker takes jobs from it." } else { "is resumed." };
        say::result_line(&if self.json { answer.text } else { format!("Queue {} {told}", self.queue) })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Purge {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        if !self.sure.agreed(async || self.told(&server).await).await? {
            return Ok(ExitCode::FAILURE);
        }
        let request = self.note.query(Request::delete(["v1", "queues", &self.queue, "jobs"]));
        let answer = server.ask_about(&self.queue, &self.following.keyed(request)).await?;
        acts::told(&server, &answer, &self.following).await
    }

    /// What it would do.
    async fn told(&self, server: &Server) -> anyhow::Result<String> {
        let shown = server.ask_about(&self.queue, &Request::get(["v1", "queues", &self.queue])).await?;
        let ready = shown.read::<Queue>()?.ready.map(|ready| format!(" {ready}")).unwrap_or_default();
        Ok(format!("End all{ready} jobs that wait in queue {}", self.queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::Table;

    const FULL: &str = r#"{"queue":"media","ready":12,"running":3,"scheduled":1,"retrying":2,"dead":4,"oldest_age":192.5,
        "arrival_rate":0.25,"service_rate":12.04,"mean_duration":0.25,"time_to_drain":1.0,"suggested_replicas":2,
        "consumers":2,"workers":["a","b"],"paused":true,"paused_at":"2030-01-01T00:00:00.000Z","paused_by":"eve"}"#;

    #[test]
    fn a_row_has_all_that_an_operator_looks_at() {
        let full: Queue = read_json(FULL).unwrap();
        assert_eq!(
            full.row(),
            ["media", "12", "3", "1", "2", "4", "3m", "0.25", "12.0", "1s", "2", "paused"]
        );
        let bare: Queue = read_json(r#"{"queue":"x","new":{}}"#).unwrap();
        assert_eq!(bare.row(), ["x", "-", "0", "0", "0", "0", "-", "0", "0", "-", "0", ""]);
        assert_eq!(Table::new(COLUMNS, say::Look::default()).page(&[bare.row().to_vec()]).lines().count(), 2);
    }

    #[test]
    fn what_keeps_jobs_waiting_is_told() {
        for (json, hindrance) in [
            (FULL, Some("queue media is paused; `hopline queues resume media` ends that")),
            (r#"{"queue":"x"}"#, Some("no worker that is alive takes jobs from queue x")),
            (r#"{"queue":"x","workers":["w"]}"#, None),
        ] {
            assert_eq!(read_json::<Queue>(json).unwrap().hindrance().as_deref(), hindrance, "{json}");
        }
    }

    #[test]
    fn a_block_has_the_rest() {
        let full: Queue = read_json(FULL).unwrap();
        assert_eq!(
            full.block("2030-01-01T00:05:00Z".parse().unwrap()),
            "\
queue      media
paused     yes by eve, 2030-01-01T00:00:00.000Z (5m ago)
ready      12
running    3
scheduled  1
retrying   2
dead       4
oldest     3m12s
in         0.25/s
out        12.0/s
attempt    250ms on average
drain      1.00s
suggested  2 workers
workers    a
           b
"
        );
    }
}
