//! Bulk acts from the command line's side: replaying, purging and cancelling many jobs is a job itself, which can be
//! followed. Its progress goes to standard error, its result to standard output.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::{
    api::{self, Answer, Request, Server, exit, read_json},
    bar::{Bar, Of},
    follow,
    human::{At, count, one_line},
    input, say,
};
use crate::JobId;

/// How often the progress is asked for.
const LOOK: Duration = Duration::from_secs(1);

/// Whether an act is asked for, or only what it would be about.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Trying {
    /// Only count the jobs that it would be about.
    #[arg(long, conflicts_with = "wait")]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) following: Following,
}

/// What is done after an act was taken.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Following {
    /// Wait for its end; the progress goes to standard error.
    #[arg(long)]
    wait: bool,
    /// With --wait: for at most this long. Default: as long as it takes.
    #[arg(long, requires = "wait", value_parser = input::duration)]
    timeout: Option<Duration>,
    /// A key of your choice (`Idempotency-Key`): asked for again with it, it is the same act.
    #[arg(long, value_parser = input::key)]
    key: Option<String>,
    /// Print the answer, or with --wait the record of what was waited for, as JSON, as it came.
    #[arg(long)]
    json: bool,
}

/// What the record keeps of who asked, and why.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Note {
    /// Who you are, for the record.
    #[arg(long)]
    by: Option<String>,
    /// Why, for the record.
    #[arg(long)]
    reason: Option<String>,
}

impl Note {
    /// The request with it in its query.
    pub(super) fn query(&self, request: Request) -> Request {
        request.query("by", self.by.as_deref()).query("reason", self.reason.as_deref())
    }
}

/// What an act is asked with: the members of the body.
#[derive(Debug, Default, Serialize)]
pub(super) struct Order(BTreeMap<&'static str, Box<RawValue>>);

/// What replayed jobs get instead of what they had.
#[derive(Debug, Serialize)]
pub(super) struct Set {
    /// As they were given.
    pub(super) args: Box<RawValue>,
}

impl Order {
    /// With a member, if there is a value.
    pub(super) fn with(mut self, name: &'static str, value: Option<impl Serialize>) -> anyhow::Result<Self> {
        if let Some(value) = value {
            self.0.insert(name, to_raw_value(&value)?);
        }
        Ok(self)
    }

    /// With who asked, and why.
    pub(super) fn note(self, note: &Note) -> anyhow::Result<Self> {
        self.with("by", note.by.as_ref())?.with("reason", note.reason.as_ref())
    }

    /// About these jobs, if there are any.
    pub(super) fn ids(self, ids: &[JobId]) -> anyhow::Result<Self> {
        self.with("ids", (!ids.is_empty()).then_some(ids))
    }
}

impl Trying {
    /// The member of the body that says that it is a dry run.
    pub(super) fn dry(&self) -> Option<bool> {
        self.dry_run.then_some(true)
    }

    /// Whether it is about an act at all.
    pub(super) fn needs_act(&self) -> bool {
        self.dry_run || self.following.wait || self.following.key.is_some()
    }
}

impl Following {
    /// The request with its key, if it has one.
    pub(super) fn keyed(&self, request: Request) -> Request {
        request.key(self.key.as_deref())
    }

    /// Whether answers are shown as they came.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }
}

/// The answer to an act that was asked for.
#[derive(Debug, Deserialize)]
struct Taken {
    id: Option<String>,
    matched: Option<u64>,
    /// There are more, which were not counted.
    #[serde(default)]
    at_least: bool,
}

/// What an act did.
#[derive(Debug, Deserialize)]
struct Done {
    #[serde(default)]
    done: u64,
    #[serde(default)]
    skipped: u64,
    #[serde(default)]
    failed: u64,
    #[serde(default)]
    missing: u64,
    #[serde(default)]
    failures: Vec<String>,
}

impl Done {
    /// What was done, in the word for it.
    fn line(&self, word: &str) -> String {
        let mut line = format!("{} {word}, {} skipped, {} failed", self.done, self.skipped, self.failed);
        if self.missing > 0 {
            line.push_str(&format!(", {} not found", self.missing));
        }
        line
    }

    fn is_all_well(&self) -> bool {
        self.failed == 0 && self.missing == 0
    }
}

/// Tells of an act that was taken, and follows it if that is wanted.
pub(super) async fn told(
    server: &Server,
    answer: &Answer,
    following: &Following,
) -> anyhow::Result<ExitCode> {
    tell(server, answer, following, "done", None).await
}

/// As [`told`], of a replay. Of one job it is its new run that is waited for: the act has ended well as soon as that has
/// begun, however it ends.
pub(super) async fn told_of_replay(
    server: &Server,
    answer: &Answer,
    following: &Following,
    ids: &[JobId],
) -> anyhow::Result<ExitCode> {
    let one = if let [id] = ids { Some(*id) } else { None };
    tell(server, answer, following, "replayed", one).await
}

async fn tell(
    server: &Server,
    answer: &Answer,
    following: &Following,
    word: &str,
    run_of: Option<JobId>,
) -> anyhow::Result<ExitCode> {
    let taken: Taken = answer.read()?;
    match &taken.id {
        Some(id) if following.wait => return follow_to_end(server, id, following, word, run_of).await,
        _ if following.json => say::result_line(&answer.text)?,
        _ => say::result_line(&taken.sentence())?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Taken {
    fn sentence(&self) -> String {
        match &self.id {
            None => format!("It would be about {}.", self.jobs("job")),
            Some(id) => format!("Begun; `hopline jobs wait {}` waits for its end.", one_line(id)),
        }
    }

    fn jobs(&self, what: &str) -> String {
        let number = self.matched.unwrap_or_default();
        format!("{}{}", if self.at_least { "at least " } else { "" }, count(number, what))
    }
}

/// How many there are, as a dry run says: `7 dead jobs`.
pub(super) fn counted(answer: &Answer, what: &str) -> anyhow::Result<String> {
    Ok(answer.read::<Taken>()?.jobs(what))
}

async fn follow_to_end(
    server: &Server,
    id: &str,
    following: &Following,
    word: &str,
    run_of: Option<JobId>,
) -> anyhow::Result<ExitCode> {
    say::error(format_args!("Act {}.", one_line(id)));
    let deadline = following.timeout.map(|timeout| Instant::now() + timeout);
    let mut shown = None;
    let bar = Bar::new(Of::Percent);
    let (answer, job) = follow::await_end(server, id, deadline, LOOK, |job| {
        let Some(progress) = &job.progress else { return };
        if bar.is_shown() {
            bar.set(progress.percent.into(), one_line(&progress.message));
        } else if job.progress != shown {
            shown.clone_from(&job.progress);
            say::error(progress.line());
        }
    })
    .await?;
    drop(bar);
    let output = job.output.as_ref().and_then(|output| read_json::<Done>(output.get()).ok());
    match (api::exit_code(&job.status), output) {
        (Some(_), Some(done)) => {
            let run_of = run_of.filter(|_| done.is_all_well());
            if !following.json {
                say::result_line(&format!("{}.", done.line(word)))?;
            } else if run_of.is_none() {
                say::result_line(&answer.text)?;
            }
            for failure in &done.failures {
                say::error(one_line(failure));
            }
            match run_of {
                Some(id) => follow::tell_end(server, &id.to_string(), deadline, following.json).await,
                None => Ok(if done.is_all_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            }
        }
        (ended, _) => {
            say::result_line(&if following.json { answer.text } else { job.sentence(At::now()) })?;
            Ok(ended.unwrap_or(ExitCode::from(exit::NOT_FINISHED)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_only_what_was_said() {
        let order = Order::default().with("rate", Some(50)).unwrap().with("dry_run", None::<bool>).unwrap();
        let order = order.ids(&[]).unwrap();
        assert_eq!(serde_json::to_string(&order).unwrap(), r#"{"rate":50}"#);
        let id = JobId::new();
        let named = Order::default().ids(&[id]).unwrap();
        assert_eq!(serde_json::to_string(&named).unwrap(), format!(r#"{{"ids":["{id}"]}}"#));
    }

    #[test]
    fn args_are_set_as_they_were_given() {
        let set = Set { args: input::json("[12345678901234567890123]").unwrap() };
        let order = Order::default().with("set", Some(set)).unwrap();
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(text, r#"{"set":{"args":[12345678901234567890123]}}"#);
    }

    #[test]
    fn answers_become_sentences() {
        for (json, sentence) in [
            (r#"{"id":"a","status":"queued"}"#, "Begun; `hopline jobs wait a` waits for its end."),
            (r#"{"matched":1}"#, "It would be about 1 job."),
            (r#"{"matched":10000,"at_least":true}"#, "It would be about at least 10000 jobs."),
        ] {
            assert_eq!(read_json::<Taken>(json).unwrap().sentence(), sentence);
        }
    }

    #[test]
    fn what_was_done_is_told() {
        let done: Done =
            read_json(r#"{"matched":6,"done":3,"skipped":1,"failed":1,"missing":1,"failures":["x"]}"#)
                .unwrap();
        assert_eq!(done.line("done"), "3 done, 1 skipped, 1 failed, 1 not found");
        assert_eq!(done.line("replayed"), "3 replayed, 1 skipped, 1 failed, 1 not found");
        assert!(!done.is_all_well() && read_json::<Done>(r#"{"done":3}"#).unwrap().is_all_well());
    }
}
