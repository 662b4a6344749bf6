//! `hopline dead`: dead jobs, by their errors; replay and purge.

use std::process::ExitCode;

use serde::Deserialize;

use super::{
    Usage,
    acts::{self, Note, Order, Trying},
    api::{Answer, Most, Page, Request, Server, Target, read_json},
    filter::Narrow,
    human::{At, ago, one_line},
    input::Sure,
    jobs::{self, Show},
    table::Column,
};
use crate::JobId;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the dead jobs of a queue by what they share: kind, code and error.
    Groups(Groups),
    /// List the dead jobs of a queue.
    Ls(List),
    /// Show all that is known of a job.
    Show(Show),
    /// Start a new run of dead jobs: all of a queue, a kind, a group, or those named.
    ///
    /// Exit codes: 0 done; 1 it failed, or a job was not replayed; with --wait 6: the time is over; of one job its run's
    /// end: 0 it succeeded, 3 dead, 4 cancelled, 5 expired.
    Replay(Replay),
    /// Remove dead jobs for good: their records stay, and they cannot be replayed any more.
    Purge(Purge),
}

#[derive(Debug, clap::Args)]
pub(super) struct Groups {
    /// The queue.
    queue: String,
    /// Print a JSON object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// The queue.
    queue: String,
    #[command(flatten)]
    filter: Narrow,
    #[command(flatten)]
    most: Most,
    /// Print a JSON object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Which dead jobs of a queue.
#[derive(Debug, clap::Args)]
struct Which {
    /// The queue.
    queue: String,
    /// All of them.
    #[arg(long)]
    all: bool,
    /// Of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Of this group (see `dead groups`).
    #[arg(long)]
    fingerprint: Option<String>,
    /// This job; may be given several times.
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<JobId>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Replay {
    #[command(flatten)]
    which: Which,
    /// Most jobs per second. Default: as fast as it goes.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Run them with these args instead of theirs: JSON, `@FILE`, or `-` for standard input.
    #[arg(long, value_name = "JSON")]
    set_args: Option<String>,
    #[command(flatten)]
    sure: Sure,
    #[command(flatten)]
    note: Note,
    #[command(flatten)]
    trying: Trying,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Purge {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    sure: Sure,
    #[command(flatten)]
    note: Note,
    #[command(flatten)]
    trying: Trying,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Groups(groups) => groups.run().await,
        Command::Ls(list) => list.run().await,
        Command::Show(show) => show.run().await,
        Command::Replay(replay) => replay.run().await,
        Command::Purge(purge) => purge.run().await,
    }
}

/// A group as the server shows it.
#[derive(Debug, Deserialize)]
struct Group {
    fingerprint: String,
    kind: Option<String>,
    #[serde(default)]
    code: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    count: u64,
    first_at: Option<At>,
    last_at: Option<At>,
}

const COLUMNS: &[Column] = &[
    Column::Left("FINGERPRINT"),
    Column::Right("COUNT"),
    Column::Left("KIND"),
    Column::Left("REASON"),
    Column::Right("FIRST"),
    Column::Right("LAST"),
    Column::Left("ERROR"),
];

impl Group {
    fn row(&self, now: At) -> Vec<String> {
        let dash = || "-".to_owned();
        let when = |at: Option<At>| at.map_or_else(dash, |at| ago(at, now));
        let error = if self.message.is_empty() { one_line(&self.code) } else { self.error() };
        vec![
            one_line(&self.fingerprint),
            self.count.to_string(),
            self.kind.as_deref().map_or_else(dash, one_line),
            one_line(&self.reason),
            when(self.first_at),
            when(self.last_at),
            error,
        ]
    }

    fn error(&self) -> String {
        one_line(&format!("{}: {}", self.code, self.message))
    }
}

impl Groups {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let request = Request::get(["v1", "queues", &self.queue, "dead", "groups"]);
        let page: Page = server.ask_about(&self.queue, &request).await?.read()?;
        let now = At::now();
        page.show(self.json, COLUMNS, "dead job", |item| Ok(read_json::<Group>(item)?.row(now)))
    }
}

impl List {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let request = self.filter.query(Request::get(["v1", "queues", &self.queue, "dead"]));
        jobs::list(&server, &request, Some(&self.queue), self.most, self.json).await
    }
}

impl Which {
    fn check(&self) -> Result<(), Usage> {
        let some = !self.ids.is_empty() || self.kind.is_some() || self.fingerprint.is_some();
        match (self.all, some) {
            (false, false) => {
                Err(Usage("say which: --all, or some of --kind, --fingerprint and --id".to_owned()))
            }
            (true, true) => {
                Err(Usage("--all leaves nothing to choose: leave it out, or the rest".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

impl Replay {
    async fn run(self) -> anyhow::Result<ExitCode> {
        self.which.check()?;
        let queue = &self.which.queue;
        let order = self
            .order()?
            .with("dry_run", self.trying.dry())?
            .with("rate", self.rate)?
            .with("set", jobs::set_args(self.set_args.as_deref())?)?
            .note(&self.note)?;
        let server = Server::new(&self.target)?;
        let asks = self.which.all && !self.trying.dry_run;
        if asks && !self.sure.agreed(async || self.told(&server).await).await? {
            return Ok(ExitCode::FAILURE);
        }
        let request = Request::post(["v1", "queues", queue, "dead", "replay"]).json(&order)?;
        let answer = server.ask_about(queue, &self.trying.following.keyed(request)).await?;
        acts::told_of_replay(&server, &answer, &self.trying.following, &self.which.ids).await
    }

    fn order(&self) -> anyhow::Result<Order> {
        let which = &self.which;
        Order::default()
            .with("all", which.all.then_some(true))?
            .with("kind", which.kind.as_ref())?
            .with("fingerprint", which.fingerprint.as_ref())?
            .ids(&which.ids)
    }

    /// What it would do.
    async fn told(&self, server: &Server) -> anyhow::Result<String> {
        let queue = &self.which.queue;
        let order = self.order()?.with("dry_run", Some(true))?;
        let request = Request::post(["v1", "queues", queue, "dead", "replay"]).json(&order)?;
        let jobs = acts::counted(&server.ask_about(queue, &request).await?, "dead job")?;
        Ok(format!("Start a new run of {jobs} of queue {queue}"))
    }
}

impl Purge {
    async fn run(self) -> anyhow::Result<ExitCode> {
        self.which.check()?;
        let server = Server::new(&self.target)?;
        if !self.trying.dry_run && !self.sure.agreed(async || self.told(&server).await).await? {
            return Ok(ExitCode::FAILURE);
        }
        let answer = self.ask(&server, self.trying.dry()).await?;
        acts::told(&server, &answer, &self.trying.following).await
    }

    /// What it would do.
    async fn told(&self, server: &Server) -> anyhow::Result<String> {
        let jobs = acts::counted(&self.ask(server, Some(true)).await?, "dead job")?;
        Ok(format!("Remove {jobs} of queue {} for good", self.which.queue))
    }

    async fn ask(&self, server: &Server, dry_run: Option<bool>) -> anyhow::Result<Answer> {
        let Which { queue, kind, fingerprint, ids, .. } = &self.which;
        let ids: Vec<String> = ids.iter().map(JobId::to_string).collect();
        let request = Request::delete(["v1", "queues", queue, "dead"])
            .query("kind", kind.as_deref())
            .query("fingerprint", fingerprint.as_deref())
            .query("id", (!ids.is_empty()).then(|| ids.join(",")))
            .query("dry_run", dry_run.map(|dry| dry.to_string()));
        server.ask_about(queue, &self.trying.following.keyed(self.note.query(request))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_rows() {
        let group: Group = read_json(
            r#"{"fingerprint":"0f","kind":"a.b","code":"c","reason":"exhausted","message":"no\nroute","count":500,
            "first_at":"2030-01-01T00:00:00.000Z","last_at":"2030-01-01T00:04:00.000Z","latest":"j"}"#,
        )
        .unwrap();
        let now = "2030-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(group.row(now), ["0f", "500", "a.b", "exhausted", "5m", "1m", "c: no route"]);
        let bare: Group = read_json(r#"{"fingerprint":"0f","kind":null,"code":"lost","count":1}"#).unwrap();
        assert_eq!(bare.row(now), ["0f", "1", "-", "", "-", "-", "lost"]);
    }
}
