//! `hopline jobs submit` and `hopline jobs call`.

use std::{process::ExitCode, time::Duration};

use reqwest::StatusCode;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    JobId,
    cli::{
        api::{self, Answer, Failure, Request, Server, Target, exit},
        human::indented,
        input, say,
    },
};

/// The longest string that `--brief` leaves whole, in characters.
const BRIEF: usize = 96;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Submit {
    /// The kind, as in `image.thumbnail`.
    kind: String,
    /// The args as JSON, `@FILE`, or `-` for standard input.
    #[arg(default_value = "{}")]
    args: String,
    /// The queue. Default: where the kind's workers are.
    #[arg(long)]
    queue: Option<String>,
    /// Run it after this time: `90s`, `5m`, `2h`, `1d`.
    #[arg(long)]
    delay: Option<String>,
    /// Run it at this time (RFC 3339).
    #[arg(long, conflicts_with = "delay")]
    run_at: Option<String>,
    /// Let no attempt start after this time from now.
    #[arg(long)]
    expires_in: Option<String>,
    /// Longest time of one attempt.
    #[arg(long)]
    timeout: Option<String>,
    /// Most attempts.
    #[arg(long)]
    max_attempts: Option<u32>,
    /// A tag; may be given several times.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// Who is told how the job ended: an `https://` URL.
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,
    /// The job's id, a UUID of your choice: submitted again with it, the job runs once.
    #[arg(long, value_name = "UUID", conflicts_with = "key")]
    id: Option<JobId>,
    /// A key of your choice (`Idempotency-Key`): submitted again with it, the job runs once.
    #[arg(long, value_parser = input::key)]
    key: Option<String>,
    /// Wait this long for its end.
    #[arg(long, value_parser = input::duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    how: Shown,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Call {
    /// The kind, as in `demo.echo`.
    kind: String,
    /// The args as JSON, `@FILE`, or `-` for standard input.
    #[arg(default_value = "{}")]
    args: String,
    /// The queue. Default: where the kind's workers are.
    #[arg(long)]
    queue: Option<String>,
    /// Longest time of one attempt.
    #[arg(long)]
    timeout: Option<String>,
    /// A key of your choice (`Idempotency-Key`): called again with it, the job runs once.
    #[arg(long, value_parser = input::key)]
    key: Option<String>,
    /// Longest time to wait for the output. Default: the server's.
    #[arg(long, value_parser = input::duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    how: Shown,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Shown {
    /// Shorten long strings in what is printed.
    #[arg(long, conflicts_with = "json")]
    brief: bool,
    /// Print the answer as it came, not indented.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Body<'a> {
    kind: &'a str,
    args: Box<RawValue>,
    #[serde(flatten)]
    options: Map<String, Value>,
}

impl Submit {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let request = match self.id {
            Some(id) => Request::put(["v1", "jobs", &id.to_string()]),
            None => Request::post(["v1", "jobs"]),
        };
        let request = request.key(self.key.as_deref());
        let request = waiting(request, self.wait).json(&self.body()?)?;
        let answer = match server.ask_for_job(&self.kind, &request).await {
            Ok(answer) => answer,
            Err(failure) => match &self.queue {
                Some(queue) => return Err(server.with_names(queue, failure).await),
                None => return Err(failure.into()),
            },
        };
        self.how.print(&answer)?;
        Ok(self.exit(&answer))
    }

    fn body(&self) -> anyhow::Result<Body<'_>> {
        let mut options = Map::new();
        let texts = [
            ("queue", &self.queue),
            ("delay", &self.delay),
            ("run_at", &self.run_at),
            ("expires_in", &self.expires_in),
            ("timeout", &self.timeout),
            ("callback_url", &self.callback_url),
        ];
        for (name, value) in texts {
            options.extend(value.as_ref().map(|value| (name.to_owned(), value.as_str().into())));
        }
        options.extend(self.max_attempts.map(|most| ("max_attempts".to_owned(), most.into())));
        if !self.tags.is_empty() {
            options.insert("tags".to_owned(), json!(self.tags));
        }
        Ok(Body { kind: &self.kind, args: input::json(&self.args)?, options })
    }

    /// A submit that was repeated is told how the job stands, also without waiting: only a wait asks for its end.
    fn exit(&self, answer: &Answer) -> ExitCode {
        if self.wait.is_none() {
            return ExitCode::SUCCESS;
        }
        let answered: Value = answer.read().unwrap_or_default();
        let ended = answered.get("status").and_then(Value::as_str).and_then(api::exit_code);
        let unfinished = answer.status == StatusCode::ACCEPTED || ended.is_none();
        if unfinished { ExitCode::from(exit::NOT_FINISHED) } else { ended.unwrap_or(ExitCode::SUCCESS) }
    }
}

impl Call {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = Server::new(&self.target)?;
        let request = Request::post(["v1", "rpc", &self.kind])
            .query("queue", self.queue.as_deref())
            .query("timeout", self.timeout)
            .key(self.key.as_deref());
        let request = waiting(request, self.wait).json(&input::json(&self.args)?)?;
        match server.ask_for_job(&self.kind, &request).await {
            Ok(answer) => {
                self.how.print(&answer)?;
                Ok(ExitCode::SUCCESS)
            }
            Err(failure) => match &self.queue {
                Some(queue) if failure.is_about_queue() => Err(server.with_names(queue, failure).await),
                _ => told(failure),
            },
        }
    }
}

/// The exit code of the job's end where the problem is one; else the failure.
pub(super) fn told(failure: Failure) -> anyhow::Result<ExitCode> {
    let Some(problem) = failure.problem() else { return Err(failure.into()) };
    let code = problem.end_code();
    say::error(format_args!("hopline: {failure}"));
    Ok(code)
}

impl Shown {
    fn print(&self, answer: &Answer) -> Result<(), say::OutError> {
        match answer.read::<Value>() {
            Ok(value) if self.brief => say::result_line(&format!("{:#}", shortened(&value))),
            Ok(_) if !self.json => say::result_line(&indented(&answer.text)),
            _ => say::result_line(&answer.text),
        }
    }
}

fn waiting(request: Request, wait: Option<Duration>) -> Request {
    let prefer = wait.map(|wait| format!("wait={}", wait.as_secs().max(1)));
    request.header("prefer", prefer).longer(wait.unwrap_or_default())
}

/// The same with long strings cut, and how long they are.
fn shortened(value: &Value) -> Value {
    match value {
        Value::String(text) => match text.char_indices().nth(BRIEF) {
            None => value.clone(),
            Some(_) => {
                let start: String = text.chars().take(BRIEF / 2).collect();
                format!("{start}… ({} characters)", text.chars().count()).into()
            }
        },
        Value::Array(items) => items.iter().map(shortened).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), shortened(value))).collect::<Map<_, _>>().into()
        }
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_strings_are_cut_wherever_they_are() {
        let long = "ü".repeat(200);
        let value = shortened(&json!({"a": [{"image": long}], "short": "x", "n": 1}));
        assert_eq!(value["a"][0]["image"], format!("{}… (200 characters)", "ü".repeat(48)));
        assert_eq!((&value["short"], &value["n"]), (&json!("x"), &json!(1)));
    }

    #[test]
    fn args_are_sent_as_they_were_given() {
        let args = input::json("[12345678901234567890123]").unwrap();
        let body = Body { kind: "x", args, options: Map::new() };
        assert_eq!(serde_json::to_string(&body).unwrap(), r#"{"kind":"x","args":[12345678901234567890123]}"#);
    }
}
