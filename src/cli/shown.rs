//! A job as the server shows it, for people: a row of a list, or all that is known as a block. Pure.
//!
//! Read leniently: what a later server adds is passed over, what an earlier one leaves out is not shown.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    human::{At, age, ago, between, harmless, indented, moment, one_line, took},
    table::{Column, block},
};

/// A job, or a job in a list.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) queue: String,
    pub(super) status: String,
    #[serde(default)]
    run: u32,
    #[serde(default)]
    attempt: u32,
    max_attempts: Option<u32>,
    args: Option<Box<RawValue>>,
    #[serde(default)]
    args_omitted: bool,
    pub(super) output: Option<Box<RawValue>>,
    #[serde(default)]
    output_omitted: bool,
    error: Option<Failed>,
    #[serde(default)]
    attempts: Vec<Attempt>,
    pub(super) progress: Option<Progress>,
    #[serde(default)]
    tags: Vec<String>,
    worker: Option<String>,
    created_at: Option<At>,
    run_at: Option<At>,
    started_at: Option<At>,
    finished_at: Option<At>,
    expires_at: Option<At>,
    cancel_requested_at: Option<At>,
    cancel_requested_by: Option<String>,
    cancel_reason: Option<String>,
    fingerprint: Option<String>,
    #[serde(default)]
    purged: bool,
}

/// Why a run, or an attempt, did not succeed.
#[derive(Debug, Clone, Deserialize)]
struct Failed {
    code: String,
    #[serde(default)]
    message: String,
    reason: Option<String>,
}

/// One attempt.
#[derive(Debug, Clone, Deserialize)]
struct Attempt {
    #[serde(default)]
    run: u32,
    #[serde(default)]
    attempt: u32,
    worker: Option<String>,
    started_at: Option<At>,
    finished_at: Option<At>,
    outcome: Option<String>,
    error: Option<Failed>,
}

/// How far the running attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Progress {
    pub(super) percent: u8,
    #[serde(default)]
    pub(super) message: String,
}

/// The columns of a list of jobs.
pub(super) const COLUMNS: &[Column] = &[
    Column::Left("ID"),
    Column::Left("KIND"),
    Column::Left("QUEUE"),
    Column::State("STATUS"),
    Column::Right("ATTEMPT"),
    Column::Right("AGE"),
    Column::Left("NOTE"),
];

impl Job {
    /// Whether its run has ended.
    pub(super) fn is_final(&self) -> bool {
        super::api::exit_code(&self.status).is_some()
    }

    /// Its row under [`COLUMNS`].
    pub(super) fn row(&self, now: At) -> [String; 7] {
        [
            one_line(&self.id),
            self.kind.as_deref().map_or_else(|| "-".to_owned(), one_line),
            one_line(&self.queue),
            one_line(&self.status),
            self.attempts_made(),
            self.created_at.map_or_else(|| "-".to_owned(), |at| ago(at, now)),
            self.note(now),
        ]
    }

    /// `3/20`; `run 2, 1/20` of a job that was replayed.
    fn attempts_made(&self) -> String {
        let most = self.max_attempts.map(|most| format!("/{most}")).unwrap_or_default();
        let run = if self.run > 1 { format!("run {}, ", self.run) } else { String::new() };
        format!("{run}{}{most}", self.attempt)
    }

    /// What else matters about a job in this state, on one line.
    pub(super) fn note(&self, now: At) -> String {
        let mut parts = Vec::new();
        if !self.is_final() {
            match (self.cancelled_in(now), self.delay(now)) {
                (Some(cancelled), _) => parts.push(cancelled),
                _ if self.cancel_requested_at.is_some() => parts.push("cancel requested".to_owned()),
                (None, delay) => parts.extend(delay.map(|delay| format!("in {delay}"))),
            }
            if let Some(progress) = &self.progress {
                parts.push(progress.line());
            }
        }
        if self.purged {
            parts.push("purged".to_owned());
        }
        if let Some(error) = &self.error {
            parts.push(one_line(&error.line()));
        }
        if let (true, Some(span)) = (parts.is_empty(), self.ran()) {
            parts.push(format!("took {}", took(span)));
        }
        parts.join("; ")
    }

    /// How long it is delayed yet.
    fn delay(&self, now: At) -> Option<String> {
        self.run_at.filter(|at| *at > now).map(|at| age(between(now, at)))
    }

    /// What becomes of a job whose cancellation was asked for while it is delayed: its message lies with the broker, where
    /// nobody looks at it before, so that its status stays what it is.
    fn cancelled_in(&self, now: At) -> Option<String> {
        let left = self.delay(now).filter(|_| self.cancel_requested_at.is_some() && !self.is_final())?;
        let again = if self.attempt > 0 { " again" } else { "" };
        Some(format!("will not run{again}; shown as cancelled when its delay is over, in {left}"))
    }

    /// When an attempt failed last, as far as is known.
    pub(super) fn failed_at(&self) -> Option<At> {
        self.finished_at.or(self.started_at)
    }

    /// Why it failed, in a line.
    pub(super) fn error_line(&self) -> String {
        self.error.as_ref().map(|error| one_line(&error.line())).unwrap_or_default()
    }

    /// How long its last attempt ran.
    fn ran(&self) -> Option<Duration> {
        Some(between(self.started_at?, self.finished_at?))
    }

    /// A sentence on how it stands: `<id> succeeded, took 3.20s`.
    pub(super) fn sentence(&self, now: At) -> String {
        let note = self.note(now);
        let note = if note.is_empty() { note } else { format!(", {note}") };
        format!("{} {}{note}", one_line(&self.id), one_line(&self.status))
    }

    /// The same of one that has not ended, without its id: `retrying 3/5: in 3s; error: not yet`.
    pub(super) fn standing(&self, now: At) -> String {
        let attempts = if self.attempt > 0 { format!(" {}", self.attempts_made()) } else { String::new() };
        let note = self.note(now);
        let note = if note.is_empty() { note } else { format!(": {note}") };
        format!("{}{attempts}{note}", one_line(&self.status))
    }

    /// All that is known of it.
    pub(super) fn block(&self, now: At) -> String {
        let when = |at: Option<At>| at.map(|at| moment(at, now));
        let tags = self.tags.iter().map(|tag| one_line(tag)).collect::<Vec<_>>().join(", ");
        let fields = [
            ("id", Some(one_line(&self.id))),
            ("kind", self.kind.as_deref().map(one_line)),
            ("queue", Some(one_line(&self.queue))),
            ("status", Some(one_line(&self.status))),
            ("reason", self.error.as_ref().and_then(|error| error.reason.as_deref()).map(one_line)),
            ("error", self.error.as_ref().map(|error| harmless(&error.line()))),
            ("group", self.fingerprint.as_deref().map(one_line)),
            ("purged", self.purged.then(|| "yes: it cannot be replayed".to_owned())),
            ("progress", self.progress.as_ref().map(Progress::line)),
            ("run", Some(self.run.to_string()).filter(|_| self.run > 1)),
            ("attempt", Some(self.attempts_in_words())),
            ("worker", self.worker.as_deref().map(one_line)),
            ("tags", Some(tags).filter(|tags| !tags.is_empty())),
            ("created", when(self.created_at)),
            ("run at", when(self.run_at)),
            ("started", when(self.started_at)),
            ("finished", when(self.finished_at)),
            ("took", self.ran().map(took)),
            ("expires", when(self.expires_at)),
            ("cancel", self.cancel_request(now)),
            ("attempts", Some(self.attempts_block()).filter(|text| !text.is_empty())),
            ("args", long(self.args.as_deref(), self.args_omitted)),
            ("output", long(self.output.as_deref(), self.output_omitted)),
        ];
        let known = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
        block(&known.collect::<Vec<_>>())
    }

    fn attempts_in_words(&self) -> String {
        match self.max_attempts {
            Some(most) => format!("{} of {most}", self.attempt),
            None => self.attempt.to_string(),
        }
    }

    fn cancel_request(&self, now: At) -> Option<String> {
        let asked = self.cancel_requested_at.map(|at| format!("asked for {}", moment(at, now)));
        let by = self.cancel_requested_by.as_deref().map(|by| format!("by {}", one_line(by)));
        let reason = self.cancel_reason.as_deref().map(one_line);
        let parts: Vec<String> = [asked, by, reason].into_iter().flatten().collect();
        let parts = [Some(parts.join(", ")), self.cancelled_in(now)].into_iter().flatten();
        Some(parts.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
    }

    /// A line for each attempt; its error below.
    fn attempts_block(&self) -> String {
        let mut text = String::new();
        for attempt in &self.attempts {
            let number = match self.run {
                0 | 1 => attempt.attempt.to_string(),
                _ => format!("{}.{}", attempt.run, attempt.attempt),
            };
            let span = attempt.started_at.zip(attempt.finished_at).map(|(from, to)| between(from, to));
            let parts = [
                attempt.started_at.map(At::text),
                Some(attempt.outcome.as_deref().map_or_else(|| "running".to_owned(), one_line)),
                span.map(|span| format!("after {}", took(span))),
                attempt.worker.as_deref().map(|worker| format!("on {}", one_line(worker))),
            ];
            let line = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
            text.push_str(&format!("{number}  {line}\n"));
            if let Some(error) = &attempt.error {
                for line in harmless(&error.line()).lines() {
                    text.push_str(&format!("   {line}\n"));
                }
            }
        }
        text
    }
}

impl Failed {
    fn line(&self) -> String {
        let Self { code, message, .. } = self;
        if message.is_empty() { code.clone() } else { format!("{code}: {message}") }
    }
}

impl Progress {
    /// `50 % read`.
    pub(super) fn line(&self) -> String {
        format!("{} % {}", self.percent, one_line(&self.message)).trim_end().to_owned()
    }
}

fn long(json: Option<&RawValue>, omitted: bool) -> Option<String> {
    match json {
        Some(json) => Some(harmless(&indented(json.get()))),
        None => omitted.then(|| "(not recorded)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2030-01-01T00:10:00Z";

    fn now() -> At {
        NOW.parse().unwrap()
    }

    fn job(json: &str) -> Job {
        super::super::api::read_json(json).unwrap()
    }

    #[test]
    fn rows_say_what_matters_in_each_state() {
        let base = r#""id":"j","queue":"q","run":1,"attempt":1,"created_at":"2030-01-01T00:00:00.000Z""#;
        for (members, row) in [
            (
                r#""kind":"a.b","status":"succeeded","started_at":"2030-01-01T00:00:01Z","finished_at":"2030-01-01T00:00:01.25Z""#,
                ["j", "a.b", "q", "succeeded", "1", "10m", "took 250ms"],
            ),
            (
                r#""status":"dead","max_attempts":1,"error":{"code":"c","message":"line 1\nline 2","reason":"fatal"}"#,
                ["j", "-", "q", "dead", "1/1", "10m", "c: line 1 line 2"],
            ),
            (
                r#""kind":"a.b","status":"retrying","run_at":"2030-01-01T00:13:00Z","error":{"code":"c"},"new":{}"#,
                ["j", "a.b", "q", "retrying", "1", "10m", "in 3m; c"],
            ),
            (
                r#""kind":"a.b","status":"running","cancel_requested_at":"2030-01-01T00:09:00Z","progress":{"percent":5,"message":"reading"}"#,
                ["j", "a.b", "q", "running", "1", "10m", "cancel requested; 5 % reading"],
            ),
            (
                r#""status":"retrying","run_at":"2030-01-01T00:13:00Z","cancel_requested_at":"2030-01-01T00:09:00Z","error":{"code":"c"}"#,
                [
                    "j",
                    "-",
                    "q",
                    "retrying",
                    "1",
                    "10m",
                    "will not run again; shown as cancelled when its delay is over, in 3m; c",
                ],
            ),
            (r#""kind":"a.b","status":"queued""#, ["j", "a.b", "q", "queued", "1", "10m", ""]),
        ] {
            assert_eq!(job(&format!("{{{base},{members}}}")).row(now()), row, "{members}");
        }
        let replayed =
            job(r#"{"id":"j","queue":"q","status":"queued","run":2,"attempt":0,"max_attempts":20}"#);
        assert_eq!(replayed.row(now())[4..], ["run 2, 0/20", "-", ""]);
    }

    #[test]
    fn a_block_has_all_that_is_known() {
        let shown = job(
            r#"{"id":"j","kind":"a.b","queue":"q","status":"dead","run":2,"attempt":2,"max_attempts":2,
            "args":{"b":1.00,"a":[]},"output_omitted":true,
            "error":{"code":"c","message":"m","reason":"exhausted"},
            "attempts":[
              {"run":1,"attempt":1,"worker":"w","started_at":"2030-01-01T00:00:00Z","finished_at":"2030-01-01T00:00:02Z","outcome":"failed","error":{"code":"c","message":"one\ntwo"}},
              {"run":2,"attempt":1,"outcome":null}],
            "tags":["x","y"],"created_at":"2030-01-01T00:00:00Z","expires_at":"2030-01-01T01:10:00Z",
            "cancel_requested_by":"eve","fingerprint":"0f"}"#,
        );
        let expected = "\
id        j
kind      a.b
queue     q
status    dead
reason    exhausted
error     c: m
group     0f
run       2
attempt   2 of 2
tags      x, y
created   2030-01-01T00:00:00.000Z (10m ago)
expires   2030-01-01T01:10:00.000Z (in 1h)
cancel    by eve
attempts  1.1  2030-01-01T00:00:00.000Z failed after 2.00s on w
             c: one
             two
          2.1  running
args      {
            \"b\": 1.00,
            \"a\": []
          }
output    (not recorded)
";
        assert_eq!(shown.block(now()), expected);
    }

    #[test]
    fn a_cancelled_job_that_is_delayed_does_not_look_as_if_it_would_run() {
        let will_not = "will not run; shown as cancelled when its delay is over, in 59m";
        let delayed = job(r#"{"id":"j","queue":"q","status":"scheduled","run_at":"2030-01-01T01:09:59Z",
            "cancel_requested_at":"2030-01-01T00:09:00Z","cancel_requested_by":"eve"}"#);
        assert_eq!(delayed.sentence(now()), format!("j scheduled, {will_not}"));
        let asked = "asked for 2030-01-01T00:09:00.000Z (1m ago), by eve";
        let block = delayed.block(now());
        assert!(block.contains(&format!("{asked}; {will_not}\n")), "{block}");
        let due = Job { run_at: None, ..delayed };
        assert_eq!(due.sentence(now()), "j scheduled, cancel requested");
    }

    #[test]
    fn one_that_has_not_ended_is_told_with_its_attempts() {
        for (members, standing) in [
            (r#""status":"queued""#, "queued"),
            (r#""status":"scheduled","run_at":"2030-01-01T00:13:00Z""#, "scheduled: in 3m"),
            (
                r#""status":"retrying","attempt":3,"max_attempts":5,"error":{"code":"error","message":"not yet"}"#,
                "retrying 3/5: error: not yet",
            ),
        ] {
            assert_eq!(job(&format!(r#"{{"id":"j","queue":"q",{members}}}"#)).standing(now()), standing);
        }
    }

    #[test]
    fn a_sentence_says_how_it_ended() {
        let done = job(
            r#"{"id":"j","queue":"q","status":"cancelled","error":{"code":"cancelled","message":"cancelled: late"}}"#,
        );
        assert_eq!(done.sentence(now()), "j cancelled, cancelled: cancelled: late");
        assert!(done.is_final() && done.note(now()).ends_with("late"));
    }
}
