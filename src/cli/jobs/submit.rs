//! `hopline jobs submit` and `hopline jobs call`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    JobId,
    cli::{
        api::{self, Answer, Failure, Request, Server, Target, exit},
        follow,
        human::{At, age, indented},
        input, say,
        shown::Job,
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

/// What tells whether a job has ended. The rest of an answer may be more than a [`Value`] holds.
#[derive(Deserialize)]
struct Standing {
    status: String,
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
        let began = Instant::now();
        let answer = match server.ask_for_job(&self.kind, self.queue.as_deref(), &request).await {
            Ok(answer) => answer,
            Err(failure) => match &self.queue {
                Some(queue) => return Err(server.with_names(queue, failure).await),
                None => return Err(failure.into()),
            },
        };
        let answer = match self.wait {
            Some(_) => latest(&server, answer, began).await,
            None => answer,
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
        if self.wait.is_none() { ExitCode::SUCCESS } else { end_code(answer) }
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
        match server.ask_for_job(&self.kind, self.queue.as_deref(), &request).await {
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

/// The exit code of a wait that got this answer.
fn end_code(answer: &Answer) -> ExitCode {
    let ended = answer.read::<Standing>().ok().and_then(|job| api::exit_code(&job.status));
    ended.filter(|_| answer.status != StatusCode::ACCEPTED).unwrap_or(ExitCode::from(exit::NOT_FINISHED))
}

/// The answer to a wait; of one that ended before the job, the job's record now, for the answer tells how the job stood
/// when it was accepted. What it waits for goes to standard error.
async fn latest(server: &Server, answer: Answer, began: Instant) -> Answer {
    let Some(job) = answer.read::<Job>().ok().filter(|job| !job.is_final()) else { return answer };
    let waited = age(began.elapsed());
    // Who may submit need not be allowed to read: then there is nothing newer.
    let record = server.ask(&Request::get(["v1", "jobs", &job.id])).await.ok();
    let record = record.and_then(|answer| answer.read::<Job>().ok().map(|job| (answer, job)));
    let (answer, job) = record.unwrap_or((answer, job));
    if !job.is_final() {
        say::error(format_args!("hopline: not ended after {waited}: {}", job.standing(At::now())));
        follow::tell_hindrance(server, &job).await;
    }
    answer
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
        match answer.read::<IgnoredAny>() {
            Ok(_) if self.brief => say::result_line(&indented(&shortened(&answer.text))),
            Ok(_) if !self.json => say::result_line(&indented(&answer.text)),
            _ => say::result_line(&answer.text),
        }
    }
}

fn waiting(request: Request, wait: Option<Duration>) -> Request {
    let prefer = wait.map(|wait| format!("wait={}", wait.as_secs().max(1)));
    request.header("prefer", prefer).longer(wait.unwrap_or_default())
}

/// The same JSON with long strings cut, and how long they are; all else, names of members too, is as it was.
fn shortened(json: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(at) = rest.find('"') {
        let (before, from) = rest.split_at(at);
        let (string, after) = from.split_at(string_length(from));
        let is_name = after.trim_ascii_start().starts_with(':');
        out.push_str(before);
        out.push_str(&cut_string(string).filter(|_| !is_name).unwrap_or_else(|| string.to_owned()));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// How many bytes of a text are the JSON string that it begins with.
fn string_length(json: &str) -> usize {
    let mut escaped = false;
    let end = json.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(json.len(), |end| end + 2)
}

/// A JSON string that is too long, cut.
fn cut_string(json: &str) -> Option<String> {
    let text: String = serde_json::from_str(json).ok()?;
    text.char_indices().nth(BRIEF)?;
    let start: String = text.chars().take(BRIEF / 2).collect();
    Some(json!(format!("{start}… ({} characters)", text.chars().count())).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_strings_are_cut_and_nothing_else() {
        let (long, quotes) = ("ü".repeat(200), r#"\""#.repeat(97));
        let cut = format!("{}… (200 characters)", "ü".repeat(48));
        let cut_quotes = format!("{}… (97 characters)", r#"\""#.repeat(48));
        for (json, expected) in [
            (
                format!(r#"{{"b":[{{"image":"{long}"}}],"a":"x"}}"#),
                format!(r#"{{"b":[{{"image":"{cut}"}}],"a":"x"}}"#),
            ),
            (format!(r#"{{"z":1.10,"a":[1e400,"{long}"]}}"#), format!(r#"{{"z":1.10,"a":[1e400,"{cut}"]}}"#)),
            (
                format!(r#"["{quotes}","{}"]"#, "x".repeat(96)),
                format!(r#"["{cut_quotes}","{}"]"#, "x".repeat(96)),
            ),
            (format!(r#"{{"{long}" : "\\"}}"#), format!(r#"{{"{long}" : "\\"}}"#)),
            (format!("\"{long}\""), format!("\"{cut}\"")),
        ] {
            assert_eq!(shortened(&json), expected);
        }
    }

    #[test]
    fn an_end_is_known_whatever_the_output_holds() {
        let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        for (http, text, code) in [
            (200, r#"{"status":"succeeded","output":{"a":1e400}}"#.to_owned(), 0),
            (200, format!(r#"{{"status":"succeeded","output":{deep}}}"#), 0),
            (200, r#"{"output":-1e400,"status":"dead"}"#.to_owned(), exit::DEAD),
            (202, r#"{"status":"succeeded"}"#.to_owned(), exit::NOT_FINISHED),
            (200, r#"{"status":"running"}"#.to_owned(), exit::NOT_FINISHED),
            (200, "[]".to_owned(), exit::NOT_FINISHED),
        ] {
            let answer = Answer { status: StatusCode::from_u16(http).unwrap(), text };
            assert_eq!(end_code(&answer), ExitCode::from(code), "{http} {:.60}", answer.text);
        }
    }

    #[test]
    fn args_are_sent_as_they_were_given() {
        let args = input::json("[12345678901234567890123]").unwrap();
        let body = Body { kind: "x", args, options: Map::new() };
        assert_eq!(serde_json::to_string(&body).unwrap(), r#"{"kind":"x","args":[12345678901234567890123]}"#);
    }
}
