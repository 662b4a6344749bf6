//! What somebody may have meant by the name of a queue or a kind that there is not.

use std::time::Duration;

use serde::Deserialize;

use super::{Answer, Failure, Request, Server, read_json};
use crate::{cli::say, near};

/// How long a submit is held up at most by the question whether its kind is known.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Queue {
    queue: String,
}

#[derive(Deserialize)]
struct Queues {
    items: Vec<Queue>,
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

#[derive(Deserialize)]
struct Kinds {
    items: Vec<Kind>,
}

impl Server {
    /// As [`Server::ask`], a request that makes a job of this kind, for this queue if one was named. Beside it, says on
    /// standard error if no worker has announced the kind: it is taken all the same, for its first worker may come later.
    pub(in crate::cli) async fn ask_for_job(
        &self,
        kind: &str,
        queue: Option<&str>,
        request: &Request,
    ) -> Result<Answer, Failure> {
        let (answer, ()) = tokio::join!(self.ask(request), self.warn_of(kind, queue));
        answer
    }

    async fn warn_of(&self, kind: &str, queue: Option<&str>) {
        // Who may submit need not be allowed to read: then nothing is said.
        let asked = tokio::time::timeout(PATIENCE, self.ask(&Request::get(["v1", "kinds"]))).await;
        let known = asked.ok().and_then(Result::ok).and_then(|answer| read_json::<Kinds>(&answer.text).ok());
        let kinds = known.map(|known| known.items.into_iter().map(|item| item.kind).collect::<Vec<_>>());
        if let Some(warning) = kinds.and_then(|kinds| unannounced(kind, queue, &kinds)) {
            say::error(format_args!("hopline: {warning}"));
        }
    }

    /// As [`Server::ask`], about a queue: where there is none of this name, says which others there are.
    pub(in crate::cli) async fn ask_about(&self, queue: &str, request: &Request) -> anyhow::Result<Answer> {
        match self.ask(request).await {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.with_names(queue, failure).await),
        }
    }

    /// The failure, with near names if it is that there is no such queue.
    pub(in crate::cli) async fn with_names(&self, queue: &str, failure: Failure) -> anyhow::Error {
        if !failure.is_about_queue() {
            return failure.into();
        }
        let known = self.ask(&Request::get(["v1", "queues"])).await.ok();
        let known = known.and_then(|answer| read_json::<Queues>(&answer.text).ok());
        let names = known.map(|known| known.items.into_iter().map(|item| item.queue).collect::<Vec<_>>());
        match names.and_then(|names| hint(queue, &names)) {
            Some(hint) => anyhow::anyhow!("{failure}\n{hint}"),
            None => failure.into(),
        }
    }
}

fn hint(queue: &str, names: &[String]) -> Option<String> {
    let listed = || (!names.is_empty()).then(|| "`hopline queues ls` lists those there are.".to_owned());
    near::did_you_mean(queue, names.iter().map(String::as_str)).or_else(listed)
}

/// That nobody has announced this kind, what that means for a job of it, and what may be meant; `None`: somebody has.
fn unannounced(kind: &str, queue: Option<&str>, kinds: &[String]) -> Option<String> {
    if kinds.iter().any(|known| known == kind) {
        return None;
    }
    let hint = near::did_you_mean(kind, kinds.iter().map(String::as_str));
    let hint = hint.unwrap_or_else(|| "`hopline kinds ls` lists those that are announced.".to_owned());
    let fate = match queue {
        Some(queue) => format!("; its jobs wait in queue {queue} for one"),
        // Which routes the server has is not known here.
        None => ", so it goes to queue default, or where a route of the server sends it; a worker that takes from \
                 another queue will not find it there: start the worker first, or name the queue (--queue)"
            .to_owned(),
    };
    Some(format!("no worker has announced kind {kind} yet{fate}. {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_not_is_told_with_what_there_is() {
        let names = ["media", "default"].map(str::to_owned);
        assert_eq!(hint("medai", &names).as_deref(), Some("Did you mean media?"));
        assert_eq!(hint("xyz", &names).as_deref(), Some("`hopline queues ls` lists those there are."));
        assert_eq!(hint("media", &[]), None);

        let kinds = ["demo.echo", "demo.sleep"].map(str::to_owned);
        for (kind, queue, parts) in [
            (
                "demo.ehco",
                Some("media"),
                ["; its jobs wait in queue media for one.", "Did you mean demo.echo?"],
            ),
            ("demo.ehco", None, [", so it goes to queue default,", "(--queue). Did you mean demo.echo?"]),
            ("x", None, ["kind x yet, so", "kinds ls"]),
        ] {
            let warning = unannounced(kind, queue, &kinds).unwrap();
            assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
        }
        assert_eq!(unannounced("demo.echo", None, &kinds), None);
    }
}
