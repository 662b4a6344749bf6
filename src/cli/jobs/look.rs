//! `hopline jobs ls`, `show`, `wait` and `output`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use super::submit::told;
use crate::{
    JobId,
    cli::{
        api::{Most, Request, Server, Target, read_json},
        filter::Filter,
        follow,
        human::{At, indented},
        input, say,
        shown::{COLUMNS, Job},
        table::Table,
    },
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    most: Most,
    /// Print a JSON object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Show {
    /// The job.
    id: JobId,
    /// Print the record as JSON, as it came.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Wait {
    /// The job.
    id: JobId,
    /// Longest wait, as 90s. Default: as long as it takes.
    #[arg(long, value_parser = input::duration)]
    timeout: Option<Duration>,
    /// Print the record as JSON, as it came.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Output {
    /// The job.
    id: JobId,
    /// Indent it.
    #[arg(long)]
    pretty: bool,
    #[command(flatten)]
    target: Target,
}

impl List {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let request = self.filter.query(Request::get(["v1", "jobs"]));
        list(&server, &request, None, self.most, self.json).await
    }
}

impl Show {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let answer = server.ask(&Request::get(["v1", "jobs", &self.id.to_string()])).await?;
        let text = if self.json { answer.text } else { answer.read::<Job>()?.block(At::now()) };
        say::result_line(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Wait {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        follow::tell_end(&server, &self.id.to_string(), deadline, self.json).await
    }
}

impl Output {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        match server.ask(&Request::get(["v1", "jobs", &self.id.to_string(), "output"])).await {
            Ok(answer) if self.pretty => say::result_line(&indented(&answer.text))?,
            Ok(answer) => say::result_line(&answer.text)?,
            Err(failure) => return told(failure),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a list of jobs; of those in the path's `queue`, if it has one.
pub(in crate::cli) async fn list(
    server: &Server,
    request: &Request,
    queue: Option<&str>,
    most: Most,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut table = Table::new(COLUMNS, say::look());
    let mut shown = 0;
    let now = At::now();
    let more = server.pages(request, queue, most, |page| {
        shown += page.items.len();
        if as_json {
            return Ok(say::result(&page.lines())?);
        }
        let jobs = page.items.iter().map(|item| Ok(read_json::<Job>(item.get())?.row(now).to_vec()));
        let rows = jobs.collect::<anyhow::Result<Vec<_>>>()?;
        if !rows.is_empty() {
            say::result(&table.page(&rows))?;
        }
        Ok(())
    });
    let more = more.await?;
    if !as_json {
        say::about_list(shown, more, "job");
    }
    Ok(ExitCode::SUCCESS)
}
