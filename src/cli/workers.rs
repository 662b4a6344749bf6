//! `hopline workers`: the workers that are alive.

use std::process::ExitCode;

use serde::Deserialize;

use super::{
    api::{Listing, read_json},
    human::{At, ago, one_line},
    table::Column,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the workers that are alive, and what they take.
    Ls(Listing),
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Ls(list) = command;
    let now = At::now();
    list.show("workers", COLUMNS, "worker", |item| Ok(read_json::<Worker>(item)?.row(now).to_vec())).await
}

/// A worker as the server shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Worker {
    pub(super) worker: String,
    #[serde(default)]
    version: String,
    pub(super) since: Option<At>,
    #[serde(default)]
    queues: Vec<Queue>,
    #[serde(default)]
    kinds: Vec<Kind>,
}

/// A queue that it takes jobs from.
#[derive(Debug, Clone, Deserialize)]
struct Queue {
    queue: String,
    #[serde(default)]
    concurrency: u64,
    #[serde(default)]
    running: u64,
    #[serde(default)]
    waiting: u64,
    #[serde(default)]
    paused: bool,
}

/// A kind that it runs.
#[derive(Debug, Clone, Deserialize)]
struct Kind {
    kind: String,
}

const COLUMNS: &[Column] = &[
    Column::Left("WORKER"),
    Column::Left("VERSION"),
    Column::Right("AGE"),
    Column::Right("RUNNING"),
    Column::Right("WAITING"),
    Column::Left("QUEUES"),
    Column::Left("KINDS"),
];

impl Worker {
    /// Jobs that run in it.
    pub(super) fn running(&self) -> u64 {
        self.queues.iter().map(|queue| queue.running).sum()
    }

    /// How many could.
    pub(super) fn concurrency(&self) -> u64 {
        self.queues.iter().map(|queue| queue.concurrency).sum()
    }

    /// A row of [`COLUMNS`].
    pub(super) fn row(&self, now: At) -> [String; 7] {
        let waiting: u64 = self.queues.iter().map(|queue| queue.waiting).sum();
        let paused = |queue: &Queue| if queue.paused { " (paused)" } else { "" };
        let queues = self.queues.iter().map(|queue| one_line(&queue.queue) + paused(queue));
        [
            one_line(&self.worker),
            one_line(&self.version),
            self.since.map_or_else(|| "-".to_owned(), |since| ago(since, now)),
            format!("{}/{}", self.running(), self.concurrency()),
            waiting.to_string(),
            queues.collect::<Vec<_>>().join(", "),
            self.kinds.iter().map(|kind| one_line(&kind.kind)).collect::<Vec<_>>().join(", "),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sums_up_the_queues() {
        let worker: Worker = read_json(
            r#"{"worker":"w","version":"0.1.0","host":"h","pid":7,"since":"2030-01-01T00:00:00.000Z",
            "queues":[{"queue":"a","concurrency":4,"prefetch":8,"running":3,"waiting":1,"paused":false},
                      {"queue":"b","concurrency":6,"prefetch":8,"running":0,"waiting":0,"paused":true}],
            "kinds":[{"kind":"x.y","queue":"a"},{"kind":"z","queue":"b"}],"jobs":[]}"#,
        )
        .unwrap();
        let now = "2030-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(worker.row(now), ["w", "0.1.0", "5m", "3/10", "1", "a, b (paused)", "x.y, z"]);
        let bare: Worker = read_json(r#"{"worker":"w"}"#).unwrap();
        assert_eq!(bare.row(now), ["w", "", "-", "0/0", "0", "", ""]);
    }
}
