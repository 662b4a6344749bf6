//! What an answer of the server means for the job. Pure.
//!
//! | the server | then | code |
//! |---|---|---|
//! | takes the mail | success | |
//! | answers 4xx | tried again | `smtp_451` |
//! | answers 5xx to the mail, its sender or one of its recipients | dead, with its words | `smtp_550` |
//! | answers 5xx to the login, or says that one is needed (530, 534, 535, 538) | tried again: the worker's settings are wrong, not the job | `smtp_535` |
//! | cannot take such mail (no SMTPUTF8, no 8BITMIME) | dead | `smtp_unsupported` |
//! | is not there, does not answer, offers no STARTTLS, shows a wrong certificate | tried again | `smtp_connection`, `smtp_no_answer`, `timeout` |

use hopline::JobError;

use crate::smtp::SmtpError;

/// Answers that are about who logs in.
const LOGIN: [u16; 4] = [530, 534, 535, 538];

/// What follows from a mail that was not sent.
#[must_use]
pub fn of(error: &SmtpError) -> JobError {
    let words = plain(&error.to_string());
    match error {
        SmtpError::Timeout(_) => JobError::retry("timeout", words),
        SmtpError::Connect(cause) => match cause.status() {
            Some(code) => answered(u16::from(code), true, words),
            None => JobError::retry("smtp_connection", words),
        },
        SmtpError::Send(cause) => match cause.status() {
            Some(code) => answered(u16::from(code), false, words),
            None if cause.is_client() => JobError::fatal("smtp_unsupported", words),
            None => JobError::retry("smtp_no_answer", words),
        },
    }
}

fn answered(code: u16, connecting: bool, words: String) -> JobError {
    let again = connecting || code < 500 || LOGIN.contains(&code);
    let name = format!("smtp_{code}");
    if again { JobError::retry(name, words) } else { JobError::fatal(name, words) }
}

/// The server's words without what would steer a terminal.
fn plain(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use hopline::job::Verdict;

    use super::*;

    #[test]
    fn codes_decide_what_follows() {
        for (code, connecting, expected) in [
            (421, false, Verdict::Retry),
            (450, false, Verdict::Retry),
            (550, false, Verdict::Fatal),
            (554, false, Verdict::Fatal),
            (530, false, Verdict::Retry),
            (535, true, Verdict::Retry),
            (554, true, Verdict::Retry),
        ] {
            let error = answered(code, connecting, "no".to_owned());
            assert_eq!((error.verdict(), error.code()), (expected, format!("smtp_{code}").as_str()));
        }
        assert_eq!(plain("5.1.1 no\x1b[31m such user\r\n"), "5.1.1 no[31m such user");
    }
}
