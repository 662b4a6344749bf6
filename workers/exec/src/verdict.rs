//! What the end of a command means for its job. Pure.
//!
//! | the command | then | code |
//! |---|---|---|
//! | ends with 0, its output is as promised | success | |
//! | ends with 0, its output is not | dead: it has done its work, and would do it again | `bad_output` |
//! | ends with 75, or a code in `retry` | tried again | `exit_75` |
//! | ends with a code in `fatal` | dead | `exit_65` |
//! | ends with another code | what `otherwise` says | `exit_3` |
//! | is ended by a signal (also by the system, for want of memory) | tried again | `signal_9` |
//! | uses up its CPU time | tried again | `cpu_limit` |
//! | uses up its time | tried again | `time_limit` |
//! | writes too much | dead | `output_limit` |
//! | could not be started | tried again | `cannot_start` |
//! | is stopped, because the job was cancelled or the worker ends | that is its end, or it is handed back | `stopped` |

use hopline::JobError;
use serde_json::value::RawValue;

use crate::{
    attempt::{Cut, Ended, RunError},
    config::{Command, Otherwise, Output, TEMPFAIL},
    keeper::End,
};

/// SIGXCPU: the soft limit of CPU time.
const XCPU: i32 = 24;

/// The output of a command that succeeded, or what its end means.
///
/// # Errors
/// As the table above.
pub fn judge(command: &Command, ended: &Ended) -> Result<Box<RawValue>, JobError> {
    let said = tail_of(&ended.tail);
    let limits = &command.limits;
    match ended.cut {
        Some(Cut::Time) => {
            let what = format!("it was ended after {} s{said}", limits.time.as_secs_f32());
            return Err(JobError::retry("time_limit", what));
        }
        Some(Cut::Output) => {
            let what = format!("it wrote more than {} bytes on standard output{said}", limits.output);
            return Err(JobError::fatal("output_limit", what));
        }
        Some(Cut::Stopped) => return Err(JobError::retry("stopped", "it was told to stop")),
        None => {}
    }
    match &ended.end {
        End::Exit(0) => output(command.output, &ended.output),
        End::Exit(code) => Err(exited(command, *code, &said)),
        End::Signal(XCPU) => {
            let what = format!("it used more than {} s of CPU time{said}", limits.cpu.as_secs());
            Err(JobError::retry("cpu_limit", what))
        }
        End::Signal(signal) => {
            let what = format!("it was ended by signal {signal}{said}");
            Err(JobError::retry(format!("signal_{signal}"), what))
        }
        End::NotStarted(why) => Err(JobError::retry("cannot_start", why)),
    }
}

/// A run that nobody knows the end of is tried again.
#[must_use]
pub fn lost(error: &RunError) -> JobError {
    JobError::retry("cannot_start", error)
}

fn exited(command: &Command, code: i32, said: &str) -> JobError {
    let again = code == TEMPFAIL
        || command.retry.contains(&code)
        || !command.fatal.contains(&code) && command.otherwise == Otherwise::Retry;
    let (name, what) = (format!("exit_{code}"), format!("it ended with exit code {code}{said}"));
    if again { JobError::retry(name, what) } else { JobError::fatal(name, what) }
}

fn output(kind: Output, bytes: &[u8]) -> Result<Box<RawValue>, JobError> {
    let bad =
        |why: String| JobError::fatal("bad_output", format!("it succeeded, but its standard output {why}"));
    let text = std::str::from_utf8(bytes).map_err(|error| bad(format!("is no UTF-8: {error}")))?;
    match kind {
        Output::Json if text.trim().is_empty() => {
            Err(bad("is empty, not JSON (null is JSON, too)".to_owned()))
        }
        Output::Json => RawValue::from_string(text.trim().to_owned()).map_err(|error| {
            bad(format!(
                "is no JSON: {error}; it begins with {:?}",
                text.chars().take(100).collect::<String>()
            ))
        }),
        Output::Text => {
            let text = text.strip_suffix('\n').unwrap_or(text);
            serde_json::value::to_raw_value(text).map_err(|error| bad(error.to_string()))
        }
    }
}

/// The end of standard error, for people: without what would steer a terminal.
fn tail_of(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let plain: String = text.trim().chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    match plain.as_str() {
        "" => String::new(),
        plain => format!("; it said: {plain}"),
    }
}

#[cfg(test)]
mod tests {
    use hopline::job::Verdict;

    use super::*;

    fn verdict(settings: &str, ended: &Ended) -> (Option<Verdict>, String, String) {
        let command: Command = toml::from_str(&format!("program = \"/bin/true\"\n{settings}")).unwrap();
        match judge(&command, ended) {
            Ok(output) => (None, String::new(), output.get().to_owned()),
            Err(error) => (Some(error.verdict()), error.code().to_owned(), error.message().to_owned()),
        }
    }

    fn ended(end: End, cut: Option<Cut>, output: &str) -> Ended {
        Ended { end, cut, output: output.into(), tail: b"\x1b[31mno disk\n".to_vec(), left: 0 }
    }

    #[test]
    fn every_end_means_something() {
        let (again, dead) = (Some(Verdict::Retry), Some(Verdict::Fatal));
        for (settings, end, cut, expected, code) in [
            ("", End::Exit(0), None, None, ""),
            ("", End::Exit(1), None, again, "exit_1"),
            ("", End::Exit(75), None, again, "exit_75"),
            ("", End::Exit(65), None, dead, "exit_65"),
            ("otherwise = \"fatal\"", End::Exit(1), None, dead, "exit_1"),
            ("otherwise = \"fatal\"", End::Exit(75), None, again, "exit_75"),
            ("otherwise = \"fatal\"\nretry = [1]", End::Exit(1), None, again, "exit_1"),
            ("fatal = [3]", End::Exit(3), None, dead, "exit_3"),
            ("fatal = [3]", End::Exit(65), None, again, "exit_65"),
            ("", End::Signal(9), None, again, "signal_9"),
            ("", End::Signal(24), None, again, "cpu_limit"),
            ("", End::NotStarted("no".into()), None, again, "cannot_start"),
            ("", End::Signal(9), Some(Cut::Time), again, "time_limit"),
            ("", End::Exit(0), Some(Cut::Time), again, "time_limit"),
            ("", End::Signal(13), Some(Cut::Output), dead, "output_limit"),
            ("", End::Signal(9), Some(Cut::Stopped), again, "stopped"),
        ] {
            let (verdict, got, message) = verdict(settings, &ended(end.clone(), cut, "1"));
            assert_eq!((verdict, got.as_str()), (expected, code), "{settings} {end:?} {cut:?}");
            let silent = ["", "cannot_start", "stopped"].contains(&code);
            assert_eq!(message.ends_with("; it said: [31mno disk"), !silent, "{message}");
        }
    }

    #[test]
    fn output_is_what_was_promised() {
        let text = "output = \"text\"";
        for (settings, output, expected) in [
            ("", " {\"a\": 1.10}\n", Ok("{\"a\": 1.10}")),
            ("", "null", Ok("null")),
            ("", "", Err("is empty")),
            ("", "\n", Err("is empty")),
            ("", "done", Err("is no JSON: expected value at line 1 column 1; it begins with \"done\"")),
            ("", "1 2", Err("is no JSON")),
            (text, "done\n", Ok("\"done\"")),
            (text, "", Ok("\"\"")),
        ] {
            let (verdict, code, message) = verdict(settings, &ended(End::Exit(0), None, output));
            match expected {
                Ok(expected) => assert_eq!((verdict, message.as_str()), (None, expected)),
                Err(part) => {
                    assert_eq!((verdict, code.as_str()), (Some(Verdict::Fatal), "bad_output"));
                    assert!(message.contains(part), "{message}");
                }
            }
        }
    }
}
