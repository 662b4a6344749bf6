//! `hopline jobs`: submit a job or call one, over HTTP.

use std::{io::Read, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json, value::RawValue};

use super::{say, up};
use crate::config::parse_duration;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// The longest string that `--brief` leaves whole, in characters.
const BRIEF: usize = 96;
/// Waited for and not ended yet.
const NOT_YET: u8 = 3;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Submit a job and print the answer. Exit code 1: refused, or it ended badly while being waited for; 3: it
    /// was waited for and has not ended yet.
    Submit(Submit),
    /// Run a job and print its output. Exit code 1: it failed, or the wait ended first.
    Call(Call),
}

#[derive(Debug, clap::Args)]
struct Target {
    /// Address of the HTTP front. Default: that of the `hopline up` whose folder is ./var, else
    /// http://127.0.0.1:8080.
    #[arg(long, env = "HOPLINE_URL")]
    url: Option<String>,
    /// Shorten long strings in what is printed.
    #[arg(long)]
    brief: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Submit {
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
    /// Wait this long for its end.
    #[arg(long, value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Call {
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
    /// Longest time to wait for the output. Default: the server's.
    #[arg(long, value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    target: Target,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

#[derive(serde::Serialize)]
struct Body<'a> {
    kind: &'a str,
    /// As they were given: large numbers and the order of keys are the job's own affair.
    args: Box<RawValue>,
    #[serde(flatten)]
    options: Map<String, Value>,
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Submit(submit) => self::submit(submit).await,
        Command::Call(call) => self::call(call).await,
    }
}

async fn submit(submit: Submit) -> anyhow::Result<ExitCode> {
    let mut options = Map::new();
    let texts = [
        ("queue", submit.queue),
        ("delay", submit.delay),
        ("run_at", submit.run_at),
        ("expires_in", submit.expires_in),
        ("timeout", submit.timeout),
    ];
    for (name, value) in texts {
        options.extend(value.map(|value| (name.to_owned(), value.into())));
    }
    options.extend(submit.max_attempts.map(|most| ("max_attempts".to_owned(), most.into())));
    if !submit.tags.is_empty() {
        options.insert("tags".to_owned(), json!(submit.tags));
    }
    let body = Body { kind: &submit.kind, args: args(&submit.args)?, options };
    let (status, answer) = ask(&submit.target, &["v1", "jobs"], &[], &body, submit.wait).await?;
    print(&answer, submit.target.brief);
    Ok(match answer.get("status").and_then(Value::as_str) {
        Some("dead" | "cancelled" | "expired") => ExitCode::FAILURE,
        _ if submit.wait.is_some() && status == StatusCode::ACCEPTED => ExitCode::from(NOT_YET),
        _ => ExitCode::SUCCESS,
    })
}

async fn call(call: Call) -> anyhow::Result<ExitCode> {
    let query = [("queue", call.queue), ("timeout", call.timeout)];
    let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let path = ["v1", "rpc", &call.kind];
    let (_, output) = ask(&call.target, &path, &query, &args(&call.args)?, call.wait).await?;
    print(&output, call.target.brief);
    Ok(ExitCode::SUCCESS)
}

/// Posts and reads the answer; a problem (RFC 9457) becomes the error.
async fn ask(
    target: &Target,
    path: &[&str],
    query: &[(&str, String)],
    body: &(impl serde::Serialize + Sync),
    wait: Option<Duration>,
) -> anyhow::Result<(StatusCode, Value)> {
    let base = target.url.clone().or_else(|| up::running_http("var".as_ref()));
    if base.is_none() {
        say::error(format_args!(
            "No Hopline is up in ./var; using {DEFAULT_URL} (--url or HOPLINE_URL to change that)."
        ));
    }
    let base = base.as_deref().unwrap_or(DEFAULT_URL);
    let mut url = reqwest::Url::parse(base).with_context(|| format!("`{base}` is no address"))?;
    match url.path_segments_mut() {
        Ok(mut segments) => drop(segments.pop_if_empty().extend(path)),
        Err(()) => bail!("`{base}` is no address of an HTTP server"),
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    let mut request = client(&url, wait)?.request(Method::POST, url).json(body);
    if let Some(wait) = wait {
        request = request.header("prefer", format!("wait={}", wait.as_secs().max(1)));
    }
    let response = request.send().await.with_context(|| format!("no answer from {base}"))?;
    let status = response.status();
    let text = response.text().await.with_context(|| format!("broken answer from {base}"))?;
    let answer: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if status.is_success() {
        return Ok((status, answer));
    }
    bail!("{}", problem(status, &answer))
}

fn client(url: &reqwest::Url, wait: Option<Duration>) -> anyhow::Result<reqwest::Client> {
    let patience = wait.unwrap_or(Duration::from_secs(60)) + Duration::from_secs(30);
    let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).timeout(patience);
    // A proxy cannot reach this machine's loopback.
    let local = matches!(url.host_str(), Some("localhost" | "[::1]"))
        || url.host_str().is_some_and(|host| host.starts_with("127."));
    Ok(if local { client.no_proxy() } else { client }.build()?)
}

fn problem(status: StatusCode, answer: &Value) -> String {
    let part = |name: &str| answer.get(name).and_then(Value::as_str);
    match (part("title"), part("detail")) {
        (Some(title), detail) => {
            let code = part("code").map(|code| format!(" [{code}]")).unwrap_or_default();
            let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("{} {title}{code}{detail}", status.as_u16())
        }
        _ => format!("{status}: {}", shortened(answer)),
    }
}

fn args(text: &str) -> anyhow::Result<Box<RawValue>> {
    let (text, from) = match text.strip_prefix('@') {
        Some(file) => {
            let text =
                std::fs::read_to_string(Path::new(file)).with_context(|| format!("cannot read {file}"))?;
            (text, file)
        }
        None if text == "-" => {
            let mut input = String::new();
            std::io::stdin().read_to_string(&mut input).context("cannot read standard input")?;
            (input, "standard input")
        }
        None => (text.to_owned(), "the args"),
    };
    serde_json::from_str(&text).with_context(|| format!("{from}: not JSON"))
}

fn print(answer: &Value, brief: bool) {
    let shown = if brief { shortened(answer) } else { answer.clone() };
    say::line(format_args!("{shown:#}"));
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
    fn a_problem_is_told_by_title_code_and_detail() {
        let answer = json!({"title": "Unknown queue", "code": "unknown_queue", "detail": "no queue `x`"});
        assert_eq!(
            problem(StatusCode::NOT_FOUND, &answer),
            "404 Unknown queue [unknown_queue]: no queue `x`"
        );
        assert!(problem(StatusCode::BAD_GATEWAY, &json!("<html>")).starts_with("502 Bad Gateway"));
    }

    #[test]
    fn args_come_inline_or_from_a_file() {
        let file = std::env::temp_dir().join(format!("hopline-args-{}.json", crate::JobId::new()));
        std::fs::write(&file, r#"{"a": 1}"#).unwrap();
        assert_eq!(args(&format!("@{}", file.display())).unwrap().get(), r#"{"a": 1}"#);
        std::fs::remove_file(&file).unwrap();
        let body = Body { kind: "x", args: args("[12345678901234567890123]").unwrap(), options: Map::new() };
        assert_eq!(serde_json::to_string(&body).unwrap(), r#"{"kind":"x","args":[12345678901234567890123]}"#);
        assert!(args("{").unwrap_err().to_string().contains("not JSON"));
        assert!(args("@/nonexistent").is_err());
    }
}
