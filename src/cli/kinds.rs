//! `hopline kinds`: the kinds of jobs that workers have announced.

use std::process::ExitCode;

use serde::Deserialize;

use super::{
    api::{Listing, read_json},
    human::one_line,
    table::Column,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the kinds that workers have announced, and where their jobs go.
    Ls(Listing),
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Ls(list) = command;
    list.show("kinds", COLUMNS, "kind", |item| Ok(read_json::<Kind>(item)?.row())).await
}

/// A kind as the server shows it.
#[derive(Debug, Deserialize)]
struct Kind {
    kind: String,
    #[serde(default)]
    queue: String,
    #[serde(default)]
    private: bool,
    /// Those alive that run it.
    #[serde(default)]
    workers: Vec<String>,
}

const COLUMNS: &[Column] =
    &[Column::Left("KIND"), Column::Left("QUEUE"), Column::Right("WORKERS"), Column::Left("NOTE")];

impl Kind {
    fn row(&self) -> Vec<String> {
        let note = if self.private { "private: args and output are not recorded" } else { "" };
        vec![one_line(&self.kind), one_line(&self.queue), self.workers.len().to_string(), note.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let kind: Kind = read_json(r#"{"kind":"x.y","queue":"a","private":true,"workers":["w"]}"#).unwrap();
        assert_eq!(kind.row(), ["x.y", "a", "1", "private: args and output are not recorded"]);
        let bare: Kind = read_json(r#"{"kind":"x","queue":"a"}"#).unwrap();
        assert_eq!(bare.row(), ["x", "a", "0", ""]);
    }
}
