//! Lists of the server, page by page.

use std::process::ExitCode;

use anyhow::bail;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Request, Server, Target};
use crate::cli::{
    say,
    table::{Column, Table},
};

/// Most items of a page that is asked for; the server allows no more.
const PAGE_MAX: usize = 500;
/// Items that are shown where nobody says.
const SHOWN: usize = 50;

/// How many items of a list.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(in crate::cli) struct Most {
    /// Show at most so many.
    #[arg(long, default_value_t = SHOWN, value_name = "N")]
    limit: usize,
    /// Show all, however many there are.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// A list that has only one page.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Listing {
    /// Print a JSON object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl Listing {
    /// Asks for `/v1/{path}` and prints its items, of which `what` is the name.
    pub(in crate::cli) async fn show(
        &self,
        path: &str,
        columns: &'static [Column],
        what: &str,
        row: impl Fn(&str) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let page: Page = server.ask(&Request::get(["v1", path])).await?.read()?;
        page.show(self.json, columns, what, row)
    }
}

/// A page as it came: the items' own bytes.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Page {
    /// The items.
    pub(in crate::cli) items: Vec<Box<RawValue>>,
    /// What asks for the next page.
    #[serde(default)]
    next: Option<String>,
}

impl Page {
    /// The items, a line each.
    pub(in crate::cli) fn lines(&self) -> String {
        // An item of a server that indents is on one line all the same.
        self.items.iter().map(|item| item.get().replace(['\n', '\r'], "") + "\n").collect()
    }

    /// Prints a list that has only one page: as lines of JSON, or as a table.
    pub(in crate::cli) fn show(
        &self,
        as_json: bool,
        columns: &'static [Column],
        what: &str,
        row: impl Fn(&str) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<ExitCode> {
        if as_json {
            say::result(&self.lines())?;
        } else if self.items.is_empty() {
            say::about_list(0, false, what);
        } else {
            let rows = self.items.iter().map(|item| row(item.get())).collect::<anyhow::Result<Vec<_>>>()?;
            say::result(&Table::new(columns, say::look()).page(&rows))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Server {
    /// Hands each page of a list to `visit`, up to `most` items in all; a list of this `queue`'s, if it is one.
    /// Whether there are more.
    pub(in crate::cli) async fn pages(
        &self,
        request: &Request,
        queue: Option<&str>,
        most: Most,
        mut visit: impl FnMut(Page) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let mut left = if most.all { usize::MAX } else { most.limit };
        let mut cursor: Option<String> = None;
        while left > 0 {
            let limit = left.min(PAGE_MAX).to_string();
            let request = request.clone().query("limit", Some(limit)).query("cursor", cursor.clone());
            let answer = match queue {
                Some(queue) => self.ask_about(queue, &request).await?,
                None => self.ask(&request).await?,
            };
            let mut page: Page = answer.read()?;
            page.items.truncate(left);
            left -= page.items.len();
            // A page may be short, or empty, and have a next one all the same.
            let next = page.next.take();
            if next.is_some() && next == cursor {
                bail!("the server's list does not go on: it answers with the cursor that it was asked with");
            }
            cursor = next;
            visit(page)?;
            if cursor.is_none() {
                return Ok(false);
            }
        }
        Ok(cursor.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::api::read_json;

    #[test]
    fn items_keep_their_bytes() {
        let page: Page = read_json(r#"{"items":[{"n": 1.00}, 2],"next":"abc","new":1}"#).unwrap();
        assert_eq!(page.items.iter().map(|item| item.get()).collect::<Vec<_>>(), [r#"{"n": 1.00}"#, "2"]);
        assert_eq!(page.lines(), "{\"n\": 1.00}\n2\n");
        let last: Page = read_json(r#"{"items":[],"next":null}"#).unwrap();
        assert!(last.next.is_none() && last.items.is_empty());
    }
}
