//! `hopline topology`: what the broker is to have, what it has, and making what is missing.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use serde::Serialize;

use super::{
    Usage,
    broker::{self, Api},
    human::{count, one_line},
    say,
    table::{Column, Table},
};
use crate::{
    amqp::probe::{self, Probe},
    config::Config,
    job::QueueName,
    management::Management,
    setup::{
        self, Item, Setup, State,
        rights::{self, Login},
        users,
    },
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say what `apply` would make, and what it cannot. Changes nothing.
    Plan(Plan),
    /// Make the exchanges, queues, bindings and policies that are missing. Deletes and changes nothing that is there.
    Apply(Apply),
}

/// What is looked at, and how it is shown.
#[derive(Debug, clap::Args)]
struct Look {
    #[command(flatten)]
    api: Api,
    /// A queue besides those of `amqp.queues` and those that are there. Again for more.
    #[arg(long, value_name = "QUEUE")]
    queue: Vec<String>,
    /// The logins of the processes, too: one each for HTTP fronts, workers and people who look.
    #[arg(long)]
    users: bool,
    /// Show what is the same, too.
    #[arg(long)]
    all: bool,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    #[command(flatten)]
    look: Look,
}

#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    #[command(flatten)]
    look: Look,
    /// Folder for the passwords of new logins: a file each, as HOPLINE_AMQP_URL_FILE takes it.
    #[arg(long, value_name = "DIR", requires = "users")]
    credentials: Option<PathBuf>,
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Plan(plan) => plan.run().await,
        Command::Apply(apply) => apply.run().await,
    }
}

/// What was compared.
struct Compared {
    config: Config,
    management: Option<Management>,
    setup: Setup,
    probe: Option<Probe>,
    logins: Vec<Login>,
    items: Vec<Item>,
}

impl Look {
    /// Compares; `connected`: by AMQP as well, where the management API would do.
    async fn compare(&self, connected: bool) -> anyhow::Result<Compared> {
        let (config, management) = broker::found(&self.api)?;
        let config = config?;
        let parse = |name: &String| QueueName::parse(name.as_str()).map_err(|error| Usage(error.to_string()));
        let more = self.queue.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let management = management.map(|url| Management::new(&url, &config.amqp.url)).transpose()?;
        let mut probe = None;
        if connected || management.is_none() {
            probe::greet(&config.amqp).await?;
            probe = Some(Probe::connect(&config.amqp, "hopline topology").await?);
        }
        let found = match &management {
            Some(management) => {
                let asked = setup::survey(&config, management).await;
                Some(asked.context("the management API")?)
            }
            None => None,
        };
        let setup = Setup::new(&config, &more, found.as_ref());
        let mut items = match (&found, &probe) {
            (Some(found), _) => setup.compare(found),
            (None, Some(probe)) => setup.look(probe).await,
            (None, None) => Vec::new(),
        };
        let mut logins = Vec::new();
        if self.users {
            logins = rights::logins(&setup.names, config.amqp.declare);
            items.extend(match &management {
                Some(management) => {
                    users::compare(management, &logins).await.context("the management API")?
                }
                None => logins.iter().map(|login| Item::new("user", &login.name, State::Unknown)).collect(),
            });
        }
        Ok(Compared { config, management, setup, probe, logins, items })
    }

    fn show(&self, compared: &Compared) -> anyhow::Result<()> {
        let sums = Sums::of(&compared.items);
        if self.json {
            let report = Report {
                management: compared.management.is_some(),
                sums,
                items: &compared.items,
                logins: self.users.then_some(&compared.logins),
            };
            say::result_line(&serde_json::to_string(&report)?)?;
            return Ok(());
        }
        if self.users {
            say::result(&logins(&compared.logins))?;
        }
        let shown: Vec<&Item> =
            compared.items.iter().filter(|item| self.all || item.state != State::Same).collect();
        let rows: Vec<Vec<String>> = shown.iter().map(|item| row(item)).collect();
        if !rows.is_empty() {
            say::result(&Table::new(COLUMNS, say::look()).page(&rows))?;
        }
        let to_do = compared.items.iter().filter_map(|item| {
            Some(format!(
                "\n{} {}:\n  {}\n",
                item.object,
                one_line(&item.name),
                one_line(item.to_do.as_ref()?)
            ))
        });
        say::result(&to_do.collect::<String>())?;
        if !rows.is_empty() {
            say::result("\n")?;
        }
        say::result_line(&sums.in_words())?;
        if compared.management.is_none() {
            say::error(
                "The management API was not asked (--management): only names could be looked at. Arguments, bindings, \
                 policies and logins were not compared.",
            );
        }
        Ok(())
    }
}

impl Plan {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let compared = self.look.compare(false).await?;
        self.look.show(&compared)?;
        if let Some(probe) = compared.probe {
            probe.close().await;
        }
        let sums = Sums::of(&compared.items);
        Ok(broker::code(sums.by_hand > 0, sums.to_make > 0))
    }
}

impl Apply {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let mut compared = self.look.compare(true).await?;
        if self.look.users && compared.management.is_none() {
            return Err(Usage(
                "logins are made by the management API: give its address (--management)".to_owned(),
            )
            .into());
        }
        let Compared { config, management, setup, probe, logins, items } = &mut compared;
        if let Some(probe) = probe {
            setup.apply(probe, management.as_ref(), items).await;
        }
        if let Some(management) = management {
            users::make(management, &config.amqp.url, logins, self.credentials.as_deref(), items).await;
        }
        self.look.show(&compared)?;
        if let Some(probe) = compared.probe {
            probe.close().await;
        }
        let sums = Sums::of(&compared.items);
        // What could not be compared was not made either: policies, without the management API.
        Ok(broker::code(sums.by_hand > 0, sums.to_make + sums.not_compared > 0))
    }
}

/// How many stand how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
struct Sums {
    to_make: u64,
    made: u64,
    by_hand: u64,
    same: u64,
    not_compared: u64,
}

impl Sums {
    fn of(items: &[Item]) -> Self {
        let mut sums = Self::default();
        for item in items {
            match item.state {
                State::Missing => sums.to_make += 1,
                State::Made => sums.made += 1,
                State::Different | State::Failed => sums.by_hand += 1,
                State::Same => sums.same += 1,
                State::Exists | State::Unknown => sums.not_compared += 1,
                State::Foreign | State::Kept => {}
            }
        }
        sums
    }

    fn in_words(self) -> String {
        let Self { to_make, made, by_hand, same, not_compared } = self;
        let parts = [
            (to_make, "to be made"),
            (made, "made"),
            (by_hand, "to be mended by hand"),
            (not_compared, "not compared"),
        ];
        let mut said: Vec<String> = parts
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}"))
            .collect();
        said.push(format!("{} as wanted", count(same, "object")));
        format!("{}.", said.join(", "))
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Whether the management API was asked.
    management: bool,
    #[serde(flatten)]
    sums: Sums,
    items: &'a [Item],
    #[serde(skip_serializing_if = "Option::is_none")]
    logins: Option<&'a Vec<Login>>,
}

const COLUMNS: &[Column] =
    &[Column::Left("OBJECT"), Column::State("STATE"), Column::Left("NAME"), Column::Left("NOTE")];

fn row(item: &Item) -> Vec<String> {
    let state = match item.state {
        State::Same => "same",
        State::Exists => "exists",
        State::Unknown => "unknown",
        State::Foreign => "foreign",
        State::Kept => "kept",
        State::Missing => "missing",
        State::Made => "made",
        State::Different => "different",
        State::Failed => "failed",
    };
    // The foot of the ladder is bound by 28 of them.
    let name = one_line(&item.name).replace(&"*.".repeat(28), "(28 x *.)");
    vec![item.object.to_owned(), state.to_owned(), name, one_line(item.detail.as_deref().unwrap_or_default())]
}

/// The logins, and as commands: patterns are for copying.
fn logins(logins: &[Login]) -> String {
    let mut text = String::new();
    for login in logins {
        let Login { name, tags, configure, write, read, .. } = login;
        text.push_str(&format!("{name}\n"));
        for (right, pattern) in [("configure", configure), ("write", write), ("read", read)] {
            text.push_str(&format!("  {right:<9}  {pattern}\n"));
        }
        if !tags.is_empty() {
            text.push_str(&format!("  {:<9}  {tags}\n", "tags"));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_told_in_words() {
        let items = [State::Missing, State::Different, State::Same, State::Same, State::Foreign, State::Kept]
            .map(|state| Item::new("queue", "q", state));
        let sums = Sums::of(&items);
        assert_eq!(sums.in_words(), "1 to be made, 1 to be mended by hand, 2 objects as wanted.");
        assert_eq!(Sums::default().in_words(), "0 objects as wanted.");
    }

    #[test]
    fn the_foots_key_is_short_in_a_table() {
        let key = format!("hopline.delay.ready -> hopline.q.a by {}a.normal.#", "*.".repeat(28));
        assert_eq!(
            row(&Item::new("binding", key, State::Missing))[2],
            "hopline.delay.ready -> hopline.q.a by (28 x *.)a.normal.#"
        );
    }
}
