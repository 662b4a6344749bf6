//! `hopline jobs cancel` and `hopline jobs replay`.

use std::process::ExitCode;

use crate::{
    JobId,
    cli::{
        Usage,
        acts::{self, Note, Order, Set, Trying},
        api::{Failure, Request, Server, Target, read_json},
        filter::Filter,
        human::At,
        input::{self, Sure},
        say,
        shown::Job,
    },
};

/// Which jobs: those named, or all that a filter finds.
#[derive(Debug, clap::Args)]
struct Chosen {
    /// The jobs.
    ids: Vec<JobId>,
    /// All that the filter finds; without a filter, all.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Cancel {
    #[command(flatten)]
    chosen: Chosen,
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
pub(in crate::cli) struct Replay {
    #[command(flatten)]
    chosen: Chosen,
    /// Run them with these args instead of theirs: JSON, `@FILE`, or `-` for standard input.
    #[arg(long, value_name = "JSON")]
    set_args: Option<String>,
    /// Most jobs per second. Default: as fast as it goes.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    #[command(flatten)]
    sure: Sure,
    #[command(flatten)]
    note: Note,
    #[command(flatten)]
    trying: Trying,
    #[command(flatten)]
    target: Target,
}

impl Chosen {
    fn check(&self, dry: bool) -> Result<(), Usage> {
        let wrong = match (self.ids.is_empty(), self.filter.is_empty() && !self.all) {
            (false, false) => "name jobs, or give a filter and --all, not both",
            (true, _) if !self.all && !dry => {
                "name jobs; or give --all and a filter for all that it finds (--dry-run counts them first)"
            }
            _ => return Ok(()),
        };
        Err(Usage(wrong.to_owned()))
    }

    fn order(&self) -> anyhow::Result<Order> {
        if self.ids.is_empty() {
            // Also an empty one, which stands for all.
            return Order::default().with("filter", Some(self.filter.members()));
        }
        Order::default().ids(&self.ids)
    }

    /// Whether the act is to be asked for; one about jobs that nobody has named is asked about first.
    async fn agreed(
        &self,
        sure: &Sure,
        dry_run: bool,
        server: &Server,
        act: &'static str,
    ) -> anyhow::Result<bool> {
        Ok(!self.all || dry_run || sure.agreed(async || self.told(server, act).await).await?)
    }

    /// What the act would do.
    async fn told(&self, server: &Server, act: &'static str) -> anyhow::Result<String> {
        let order = self.order()?.with("dry_run", Some(true))?;
        let answer = server.ask(&Request::post(["v1", "jobs", act]).json(&order)?).await?;
        let what = if act == "cancel" { "Cancel" } else { "Start a new run of" };
        Ok(format!("{what} {}", acts::counted(&answer, "job")?))
    }
}

impl Cancel {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        self.chosen.check(self.trying.dry_run)?;
        let server = Server::new(&self.target)?;
        if !self.chosen.agreed(&self.sure, self.trying.dry_run, &server, "cancel").await? {
            return Ok(ExitCode::FAILURE);
        }
        if self.chosen.ids.is_empty() || self.trying.needs_act() {
            self.order(&server).await
        } else {
            self.cancel_each(&server).await
        }
    }

    async fn order(&self, server: &Server) -> anyhow::Result<ExitCode> {
        let order = self.chosen.order()?.note(&self.note)?.with("dry_run", self.trying.dry())?;
        let request = Request::post(["v1", "jobs", "cancel"]).json(&order)?;
        let answer = server.ask(&self.trying.following.keyed(request)).await?;
        acts::told(server, &answer, &self.trying.following).await
    }

    /// One by one; one that cannot be cancelled keeps no other from it.
    async fn cancel_each(&self, server: &Server) -> anyhow::Result<ExitCode> {
        let mut exit = ExitCode::SUCCESS;
        for id in &self.chosen.ids {
            let request = self.note.query(Request::delete(["v1", "jobs", &id.to_string()]));
            match server.ask(&request).await {
                Ok(answer) if self.trying.following.is_json() => say::result_line(&answer.text)?,
                Ok(answer) => {
                    let job: Job = read_json(&answer.text)?;
                    say::result_line(&job.sentence(At::now()))?;
                }
                Err(failure @ Failure::Problem(_)) => {
                    say::error(format_args!("hopline: {id}: {failure}"));
                    exit = ExitCode::FAILURE;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(exit)
    }
}

/// Reads `--set-args`.
pub(in crate::cli) fn set_args(text: Option<&str>) -> anyhow::Result<Option<Set>> {
    text.map(|text| Ok(Set { args: input::json(text)? })).transpose()
}

impl Replay {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        self.chosen.check(self.trying.dry_run)?;
        let server = Server::new(&self.target)?;
        if !self.chosen.agreed(&self.sure, self.trying.dry_run, &server, "replay").await? {
            return Ok(ExitCode::FAILURE);
        }
        let answer = server.ask(&self.trying.following.keyed(self.request()?)).await?;
        acts::told_of_replay(&server, &answer, &self.trying.following, &self.chosen.ids).await
    }

    fn request(&self) -> anyhow::Result<Request> {
        let order = Order::default();
        let (request, order) = match self.chosen.ids.as_slice() {
            // One job that cannot be replayed is a problem; of many, each act says so at its end.
            [id] if !self.trying.dry_run && self.rate.is_none() => {
                (Request::post(["v1", "jobs", &id.to_string(), "replay"]), order)
            }
            _ => {
                let order =
                    self.chosen.order()?.with("rate", self.rate)?.with("dry_run", self.trying.dry())?;
                (Request::post(["v1", "jobs", "replay"]), order)
            }
        };
        let order = order.with("set", set_args(self.set_args.as_deref())?)?.note(&self.note)?;
        request.json(&order)
    }
}
