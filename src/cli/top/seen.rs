//! What one look at the server finds: queues, workers, the latest failures.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::cli::{
    api::{Page, Request, Server, read_json},
    human::At,
    queues::Queue,
    shown::Job,
    workers::Worker,
};

/// Longest time for a look.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many jobs that failed are asked for.
const FAILURES: &str = "100";

/// The server at a moment.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) at: At,
    pub(super) queues: Vec<Queue>,
    pub(super) workers: Vec<Worker>,
    /// Dead ones, and those that are tried again.
    pub(super) failures: Vec<Job>,
}

impl Seen {
    pub(super) async fn look(server: &Server) -> anyhow::Result<Self> {
        let jobs = Request::get(["v1", "jobs"]).query("status", Some("dead,retrying"));
        let jobs = jobs.query("limit", Some(FAILURES));
        let all = async {
            tokio::try_join!(
                items(server, Request::get(["v1", "queues"])),
                items(server, Request::get(["v1", "workers"])),
                items(server, jobs),
            )
        };
        let answered = tokio::time::timeout(PATIENCE, all).await;
        let (queues, workers, failures) = answered.map_err(|_| {
            anyhow::anyhow!("no answer from {} within {} s", server.address(), PATIENCE.as_secs())
        })??;
        Ok(Self { at: At::now(), queues, workers, failures })
    }
}

async fn items<T: DeserializeOwned>(server: &Server, request: Request) -> anyhow::Result<Vec<T>> {
    let page: Page = server.ask(&request).await?.read()?;
    page.items.iter().map(|item| read_json(item.get())).collect()
}
