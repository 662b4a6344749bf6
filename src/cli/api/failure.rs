//! Why a question to the server got no answer that helps.

use std::{fmt, process::ExitCode};

use reqwest::StatusCode;
use serde::Deserialize;
use thiserror::Error;

use super::{exit, exit_code};
use crate::cli::human::{cut, harmless, one_line};

/// Longest part of an answer that is no problem, in characters.
const EXCERPT: usize = 200;

/// Why there is no good answer.
#[derive(Debug, Error)]
pub(in crate::cli) enum Failure {
    /// Nobody listens there.
    #[error("cannot reach the server at {base}: {}\n{}", innermost(.cause), advice(*.by_default))]
    Unreachable {
        /// Its address.
        base: String,
        /// Nobody named it.
        by_default: bool,
        /// Why.
        cause: reqwest::Error,
    },
    /// The connection broke.
    #[error("the connection to {base} broke: {}", innermost(.cause))]
    Broken {
        /// The server's address.
        base: String,
        /// How.
        cause: reqwest::Error,
    },
    /// No answer in time.
    #[error("no answer from {base} in time")]
    Late {
        /// The server's address.
        base: String,
    },
    /// The request cannot be written: a header with characters that no header can have.
    #[error("the request cannot be sent: {}", innermost(.0))]
    Unasked(reqwest::Error),
    /// The server says what is wrong.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// Another answer that is no success: from a proxy, most likely.
    #[error("the server answered {status}: {text}")]
    Strange {
        /// Its status.
        status: StatusCode,
        /// How its body begins.
        text: String,
    },
}

fn advice(by_default: bool) -> &'static str {
    if by_default {
        "No Hopline is up in ./var, so this default address was tried. Start one (hopline up, hopline serve), or \
         name its address by --url or HOPLINE_URL."
    } else {
        "Is `hopline serve` running there? --url or HOPLINE_URL name another address."
    }
}

/// The cause that says something: those above it say "error sending request".
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

impl Failure {
    /// What an answer that is no success says.
    pub(in crate::cli) fn refused(status: StatusCode, text: &str) -> Self {
        match serde_json::from_str::<Problem>(text) {
            Ok(problem) => Self::Problem(Box::new(Problem { http: status.as_u16(), ..problem })),
            Err(_) => Self::Strange { status, text: cut(&one_line(text), EXCERPT) },
        }
    }

    /// The problem, if the server told one.
    pub(in crate::cli) fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// Whether there is no queue of the name that was given.
    pub(in crate::cli) fn is_about_queue(&self) -> bool {
        self.problem()
            .is_some_and(|problem| matches!(problem.code.as_str(), "queue_not_found" | "unknown_queue"))
    }

    /// Whether the same question may be answered later: nobody answered, or the server is busy or cut off itself.
    pub(in crate::cli) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Late { .. } => true,
            Self::Problem(problem) => matches!(problem.http, 429 | 502..=504),
            Self::Strange { status, .. } => matches!(status.as_u16(), 429 | 502..=504),
            Self::Unasked(_) => false,
        }
    }
}

/// RFC 9457, as the server writes it.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Problem {
    /// The answer's status.
    #[serde(skip)]
    http: u16,
    title: String,
    /// For programs.
    pub(in crate::cli) code: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<Wrong>,
    #[serde(default)]
    job: Option<AboutJob>,
    #[serde(default)]
    error: Option<JobError>,
}

/// What is wrong with a part of a request.
#[derive(Debug, Deserialize)]
struct Wrong {
    detail: String,
    pointer: Option<String>,
    parameter: Option<String>,
    header: Option<String>,
}

/// The job that a problem is about.
#[derive(Debug, Deserialize)]
struct AboutJob {
    id: String,
    status: Option<String>,
}

/// Why that job did not succeed.
#[derive(Debug, Deserialize)]
struct JobError {
    code: String,
    #[serde(default)]
    message: String,
}

impl Problem {
    /// The exit code of a command that was asked to run this job or for its output.
    pub(in crate::cli) fn end_code(&self) -> ExitCode {
        let ended = self.job.as_ref().and_then(|job| exit_code(job.status.as_deref()?));
        match (self.code.as_str(), ended) {
            // It did succeed, and still there is nothing to show.
            ("output_omitted" | "output_not_recorded", _) => ExitCode::FAILURE,
            (_, Some(code)) => code,
            ("job_fatal" | "job_dead", None) => ExitCode::from(exit::DEAD),
            ("job_cancelled", None) => ExitCode::from(exit::CANCELLED),
            ("wait_timeout" | "not_finished", None) => ExitCode::from(exit::NOT_FINISHED),
            _ => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { http, title, code, detail, .. } = self;
        write!(f, "{http} {} [{}]", harmless(title), harmless(code))?;
        if !detail.is_empty() {
            write!(f, ": {}", harmless(detail))?;
        }
        // A single error is the detail already.
        let several = self.errors.len() > 1;
        for wrong in self.errors.iter().filter(|wrong| several || !detail.contains(&wrong.detail)) {
            let place = wrong.parameter.as_ref().or(wrong.header.as_ref()).or(wrong.pointer.as_ref());
            let place = place.filter(|place| !place.is_empty()).map_or("the body", String::as_str);
            write!(f, "\n  {}: {}", harmless(place), harmless(&wrong.detail))?;
        }
        if let Some(error) = &self.error {
            write!(f, "\n  error {}", harmless(&error.code))?;
            if !detail.contains(&error.message) {
                write!(f, ": {}", harmless(&error.message))?;
            }
        }
        if let Some(job) = &self.job {
            write!(f, "\n  job {}", harmless(&job.id))?;
        }
        if *http == 401 {
            write!(
                f,
                "\nThe key that is sent is that of HOPLINE_API_KEY, or in the file that HOPLINE_API_KEY_FILE names; `hopline key \
                 new NAME --scope submit,read` makes one."
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, text: &str) -> Failure {
        Failure::refused(StatusCode::from_u16(status).unwrap(), text)
    }

    #[test]
    fn a_problem_is_told_by_title_code_detail_and_each_error() {
        for (status, text, shown) in [
            (
                404,
                r#"{"title":"There is no such queue","code":"queue_not_found","detail":"no queue `x`"}"#,
                "404 There is no such queue [queue_not_found]: no queue `x`",
            ),
            (
                422,
                r#"{"title":"T","code":"invalid_request","detail":"see errors","new":[1],
                    "errors":[{"pointer":"/a","detail":"bad"},{"parameter":"wait","detail":"worse"},{"pointer":"","detail":"no object"}]}"#,
                "422 T [invalid_request]: see errors\n  /a: bad\n  wait: worse\n  the body: no object",
            ),
            (
                422,
                r#"{"title":"T","code":"c","detail":"/a: bad","errors":[{"pointer":"/a","detail":"bad"}]}"#,
                "422 T [c]: /a: bad",
            ),
            (
                502,
                r#"{"title":"The job is dead","code":"job_dead","detail":"gone","job":{"id":"j","status":"dead"},"error":{"code":"e","message":"m\u001b[2J"}}"#,
                "502 The job is dead [job_dead]: gone\n  error e: m\u{fffd}[2J\n  job j",
            ),
            (
                502,
                r#"{"title":"The job is dead","code":"job_dead","detail":"it failed","error":{"code":"e","message":"it failed"}}"#,
                "502 The job is dead [job_dead]: it failed\n  error e",
            ),
            (
                401,
                r#"{"title":"T","code":"unauthenticated","detail":"no key"}"#,
                "401 T [unauthenticated]: no key\nThe key that is sent is that of HOPLINE_API_KEY, or in the file that \
                 HOPLINE_API_KEY_FILE names; `hopline key new NAME --scope submit,read` makes one.",
            ),
            (502, "<html>\n bad   gateway", "the server answered 502 Bad Gateway: <html> bad gateway"),
        ] {
            assert_eq!(told(status, text).to_string(), shown);
        }
    }

    #[test]
    fn the_end_of_a_job_makes_the_exit_code() {
        for (code, job, exit) in [
            ("job_fatal", "", 3),
            ("job_dead", r#"{"id":"j","status":"dead"}"#, 3),
            ("job_cancelled", r#"{"id":"j"}"#, 4),
            ("wait_timeout", r#"{"id":"j","status":"running"}"#, 6),
            ("wait_timeout", r#"{"id":"j","status":"expired"}"#, 5),
            ("no_output", r#"{"id":"j","status":"cancelled"}"#, 4),
            ("not_finished", r#"{"id":"j","status":"queued"}"#, 6),
            ("output_not_recorded", r#"{"id":"j","status":"succeeded"}"#, 1),
            ("job_not_found", "", 1),
        ] {
            let job = if job.is_empty() { String::new() } else { format!(r#","job":{job}"#) };
            let failure = told(409, &format!(r#"{{"title":"T","code":"{code}"{job}}}"#));
            assert_eq!(failure.problem().unwrap().end_code(), ExitCode::from(exit), "{code}");
        }
    }

    #[test]
    fn busy_servers_may_answer_later() {
        assert!(told(503, r#"{"title":"T","code":"record_behind"}"#).may_pass() && told(502, "").may_pass());
        assert!(!told(404, r#"{"title":"T","code":"job_not_found"}"#).may_pass());
    }
}
