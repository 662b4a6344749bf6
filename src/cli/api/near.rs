//! What somebody may have meant by the name of a queue that there is not.

use serde::Deserialize;

use super::{Answer, Failure, Request, Server, read_json};

/// Names this alike are worth mentioning (0 to 1, Jaro–Winkler).
const ALIKE: f64 = 0.8;
/// Most names that are mentioned.
const MOST: usize = 3;

#[derive(Deserialize)]
struct Queue {
    queue: String,
}

#[derive(Deserialize)]
struct Queues {
    items: Vec<Queue>,
}

impl Server {
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
    let mut alike: Vec<(f64, &str)> =
        names.iter().map(|name| (strsim::jaro_winkler(queue, name), name.as_str())).collect();
    alike.retain(|(score, _)| *score >= ALIKE);
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    let alike: Vec<&str> = alike.into_iter().take(MOST).map(|(_, name)| name).collect();
    match (alike.is_empty(), names.is_empty()) {
        (false, _) => Some(format!("Did you mean {}?", alike.join(" or "))),
        (true, false) => Some("`hopline queues ls` lists those there are.".to_owned()),
        (true, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_mentioned_nearest_first() {
        let names = ["media", "mail", "medium", "default"].map(str::to_owned);
        for (queue, expected) in [
            ("medi", Some("Did you mean media or medium?")),
            ("meida", Some("Did you mean media?")),
            ("defautl", Some("Did you mean default?")),
            ("xyz", Some("`hopline queues ls` lists those there are.")),
        ] {
            assert_eq!(hint(queue, &names).as_deref(), expected, "{queue}");
        }
        assert_eq!(hint("media", &[]), None);
    }
}
