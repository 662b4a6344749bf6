//! `hopline key`: makes, lists and revokes API keys, in the file that `http.keys` names. It asks no server: whoever may
//! write that file may make keys.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    human::{age, rate},
    say,
    table::{Column, Table},
};
use crate::{
    Config, QueueName,
    access::{AccessError, Entry, KeyFile, Scope, Wanted},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a key. It is printed once, and kept nowhere.
    New(New),
    /// List keys.
    List(List),
    /// Revoke a key: within two seconds no server takes it any more.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
pub(super) struct New {
    /// Its name, for logs and records: of a-z A-Z 0-9 - _ .
    name: String,
    /// What it may do: some of submit, read and operate, joined by commas.
    #[arg(long, required = true, value_delimiter = ',')]
    scope: Vec<Scope>,
    /// A queue that it is for; may be given several times. Default: all queues.
    #[arg(long = "queue", value_name = "QUEUE", value_parser = queue)]
    queues: Vec<QueueName>,
    /// Most requests a second, on average, in each server process. Default: any number.
    #[arg(long)]
    rate: Option<f64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Those that were revoked, too.
    #[arg(long)]
    all: bool,
    /// Print them as JSON, one a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Revoke {
    /// Its name or its id.
    key: String,
}

fn queue(text: &str) -> Result<QueueName, String> {
    QueueName::parse(text).map_err(|error| error.to_string())
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let path = Config::load()?.http.keys;
    let path = path.context(
        "the configuration names no file of keys: set http.keys, or HOPLINE_HTTP_KEYS, for this command and for the server",
    )?;
    let file = KeyFile::new(path);
    match command {
        Command::New(new) => new.run(&file)?,
        Command::List(list) => list.run(&file)?,
        Command::Revoke(revoke) => revoke.run(&file)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl New {
    fn run(self, file: &KeyFile) -> anyhow::Result<()> {
        let Self { name, scope, queues, rate } = self;
        let queues = (!queues.is_empty()).then(|| queues.into_iter().collect());
        let wanted = Wanted { name, scopes: scope.into_iter().collect(), queues, rate };
        let (entry, key) = Entry::generate(wanted, Timestamp::now())?;
        file.update(|known| add(known, entry.clone()))?;
        say::error(format_args!(
            "Key {} ({}): {}. It is shown only now; whoever has it may do that.",
            entry.name,
            entry.id,
            may(&entry)
        ));
        say::result_line(&key.expose())?;
        Ok(())
    }
}

fn add(known: &mut Vec<Entry>, entry: Entry) -> Result<(), AccessError> {
    if known.iter().any(|other| other.is_live() && other.name == entry.name) {
        return Err(AccessError::Refused(format!("there is a key of the name {} already", entry.name)));
    }
    known.push(entry);
    Ok(())
}

/// A key as it is listed: nothing that its secret is recognised by.
#[derive(Serialize)]
struct Shown<'a> {
    id: String,
    name: &'a str,
    scopes: &'a BTreeSet<Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queues: Option<&'a BTreeSet<QueueName>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<String>,
}

const COLUMNS: &[Column] = &[
    Column::Left("NAME"),
    Column::Left("ID"),
    Column::Left("SCOPES"),
    Column::Left("QUEUES"),
    Column::Right("RATE"),
    Column::Left("AGE"),
    Column::Left("REVOKED"),
];

impl List {
    fn run(self, file: &KeyFile) -> anyhow::Result<()> {
        let keys = file.read()?;
        let keys: Vec<&Entry> = keys.iter().filter(|key| self.all || key.is_live()).collect();
        if self.json {
            for key in keys {
                say::result_line(&serde_json::to_string(&shown(key))?)?;
            }
            return Ok(());
        }
        let now = Timestamp::now();
        let rows: Vec<_> = keys.iter().map(|key| row(key, now)).collect();
        say::result(&Table::new(COLUMNS, say::look()).page(&rows))?;
        Ok(())
    }
}

fn shown(key: &Entry) -> Shown<'_> {
    Shown {
        id: key.id.to_string(),
        name: &key.name,
        scopes: &key.scopes,
        queues: key.queues.as_ref(),
        rate: key.rate,
        created: key.created.to_string(),
        revoked: key.revoked.map(|at| at.to_string()),
    }
}

fn joined(names: impl IntoIterator<Item = impl ToString>) -> String {
    names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>().join(",")
}

/// What a key may do, for people.
fn may(key: &Entry) -> String {
    let queues = match &key.queues {
        Some(queues) => format!("in {}", joined(queues)),
        None => "in all queues".to_owned(),
    };
    let rate = key.rate.map(|rate| format!(", {rate} requests a second")).unwrap_or_default();
    format!("{} {queues}{rate}", joined(&key.scopes))
}

fn row(key: &Entry, now: Timestamp) -> Vec<String> {
    let ago = |at: Timestamp| age(now.duration_since(at).unsigned_abs());
    vec![
        key.name.clone(),
        key.id.to_string(),
        joined(&key.scopes),
        key.queues.as_ref().map_or_else(|| "all".to_owned(), joined),
        key.rate.map_or_else(|| "-".to_owned(), rate),
        ago(key.created),
        key.revoked.map(|at| format!("{} ago", ago(at))).unwrap_or_default(),
    ]
}

impl Revoke {
    fn run(self, file: &KeyFile) -> anyhow::Result<()> {
        let revoked = file.update(|known| revoke(known, &self.key, Timestamp::now()))?;
        say::result_line(&format!("Key {} ({}) is revoked.", revoked.name, revoked.id))?;
        Ok(())
    }
}

/// Revokes the key of this name or id. It stays in the file: the record has its name.
fn revoke(known: &mut [Entry], key: &str, now: Timestamp) -> Result<Entry, AccessError> {
    let live = known.iter_mut().filter(|entry| entry.is_live());
    let mut found: Vec<_> = live.filter(|entry| entry.name == key || entry.id.as_str() == key).collect();
    match found.as_mut_slice() {
        [entry] => {
            entry.revoked = Some(now);
            Ok(entry.clone())
        }
        [] => Err(AccessError::Refused(format!(
            "there is no key {key:?} that holds; `hopline key list` has all"
        ))),
        _ => Err(AccessError::Refused(format!(
            "{key:?} is the name of one key and the id of another: give the other one"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::made;

    #[test]
    fn a_name_is_one_keys_until_it_is_revoked() {
        let mut known = Vec::new();
        let (first, _) = made("ci", &[Scope::Submit], Some(&["media"]));
        let (second, _) = made("ci", &[Scope::Read, Scope::Operate], None);
        add(&mut known, first.clone()).unwrap();
        assert!(add(&mut known, second.clone()).unwrap_err().to_string().contains("ci"));
        let now = Timestamp::from_second(90).unwrap();
        assert!(revoke(&mut known, "other", now).is_err());
        assert_eq!(revoke(&mut known, first.id.as_str(), now).unwrap().revoked, Some(now));
        assert!(revoke(&mut known, "ci", now).is_err(), "it is already");
        add(&mut known, second.clone()).unwrap();
        assert_eq!(revoke(&mut known, "ci", now).unwrap().id, second.id);
        assert_eq!(known.len(), 2, "both stay");
        let later = Timestamp::from_second(150).unwrap();
        let rows = known.iter().map(|key| row(key, later)).collect::<Vec<_>>();
        assert_eq!(rows[0], ["ci", first.id.as_str(), "submit", "media", "-", "2m", "1m ago"]);
        assert_eq!(rows[1][2..4], ["read,operate", "all"]);
        assert_eq!(may(&first), "submit in media");
    }

    #[test]
    fn a_list_has_nothing_that_a_secret_is_recognised_by() {
        let (entry, _) = made("ci", &[Scope::Submit], None);
        let text = serde_json::to_string(&shown(&entry)).unwrap();
        assert!(text.contains("\"name\":\"ci\"") && !text.contains("sha256") && !text.contains("session"));
    }
}
