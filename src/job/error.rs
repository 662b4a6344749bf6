//! What a handler answers: output, or an error that says what to do next.

use std::{error::Error, fmt, time::Duration};

use super::dead::{ERROR_MAX, clip};

/// What a handler returns.
pub type JobResult<T> = Result<T, JobError>;

/// What becomes of a job whose handler returned an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Try again after the policy's pause, while attempts are left.
    Retry,
    /// Try again after this pause, while attempts are left.
    RetryIn(Duration),
    /// Try again after this pause; nothing failed and no attempt is spent.
    Snooze(Duration),
    /// Never try again: dead now.
    Fatal,
}

/// Why an attempt did not succeed, and what to do about it.
///
/// `?` makes one from any error (anyhow's too): tried again by the policy, with code `error`. The constructors
/// and [`ResultExt`] say otherwise. It is deliberately no [`std::error::Error`]: that is what lets `?` take all
/// others.
///
/// ```
/// use std::time::Duration;
/// use hopline::{JobError, JobResult, ResultExt};
///
/// fn parse(text: &str) -> JobResult<u32> {
///     let number: u32 = text.parse().fatal("not_a_number")?; // dead now, with a code
///     if number == 0 {
///         return Err(JobError::retry_in(Duration::from_secs(60), "too_early", "the source is empty yet"));
///     }
///     Ok(number)
/// }
/// assert_eq!(parse("x").unwrap_err().code(), "not_a_number");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct JobError {
    verdict: Verdict,
    code: String,
    message: String,
}

impl JobError {
    fn new(verdict: Verdict, code: impl Into<String>, message: impl fmt::Display) -> Self {
        let (code, message) = (code.into(), message.to_string());
        Self { verdict, code: clip(&code, 100).to_owned(), message: clip(&message, ERROR_MAX).to_owned() }
    }

    /// Failed; try again by the policy.
    pub fn retry(code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::new(Verdict::Retry, code, message)
    }

    /// Failed; try again after `pause` instead of the policy's.
    pub fn retry_in(pause: Duration, code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::new(Verdict::RetryIn(pause), code, message)
    }

    /// Nothing failed, but it is not time yet: come back after `pause`, without spending an attempt.
    #[must_use]
    pub fn snooze(pause: Duration) -> Self {
        Self::new(Verdict::Snooze(pause), "snooze", "snoozed")
    }

    /// Failed for good: the job is dead now.
    pub fn fatal(code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::new(Verdict::Fatal, code, message)
    }

    /// What to do.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The stable code, for programs; at most 100 bytes.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The text, for people, causes included; at most 4 KiB.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} [{}] {}", self.verdict, self.code, self.message)
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.message)
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::retry("error", Causes(&*error.into()))
    }
}

/// Prints an error with its causes, each once.
struct Causes<'a>(&'a (dyn Error + 'a));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors print their cause themselves.
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

/// Says at the call site what an error means for the job.
pub trait ResultExt<T, E> {
    /// An error here is final: dead now, with `code`.
    ///
    /// # Errors
    /// The error, as a fatal one.
    fn fatal(self, code: &str) -> JobResult<T>;

    /// An error here is final if `when` says so, else it is tried again; `code` names it either way.
    ///
    /// # Errors
    /// The error, fatal or to be retried.
    fn fatal_if(self, when: impl FnOnce(&E) -> bool, code: &str) -> JobResult<T>;

    /// An error here is tried again after `pause`, with `code`.
    ///
    /// # Errors
    /// The error, to be retried.
    fn retry_in(self, pause: Duration, code: &str) -> JobResult<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> ResultExt<T, E> for Result<T, E> {
    fn fatal(self, code: &str) -> JobResult<T> {
        self.fatal_if(|_| true, code)
    }

    fn fatal_if(self, when: impl FnOnce(&E) -> bool, code: &str) -> JobResult<T> {
        self.map_err(|error| {
            let verdict = if when(&error) { Verdict::Fatal } else { Verdict::Retry };
            JobError::new(verdict, code, Causes(&*error.into()))
        })
    }

    fn retry_in(self, pause: Duration, code: &str) -> JobResult<T> {
        self.map_err(|error| JobError::new(Verdict::RetryIn(pause), code, Causes(&*error.into())))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn any_error_is_retried_with_its_causes() {
        fn fails() -> JobResult<()> {
            let error = io::Error::new(io::ErrorKind::NotFound, "no such picture");
            Err(anyhow::Error::new(error).context("reading the source"))?;
            Ok(())
        }
        let error = fails().unwrap_err();
        assert_eq!(error.verdict(), Verdict::Retry);
        assert_eq!(error.code(), "error");
        assert_eq!(error.message(), "reading the source: no such picture");
    }

    #[test]
    fn the_call_site_says_what_an_error_means() {
        let missing = || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(missing().fatal("gone").unwrap_err().verdict(), Verdict::Fatal);
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        assert_eq!(missing().fatal_if(is_missing, "gone").unwrap_err().verdict(), Verdict::Fatal);
        let other = missing().fatal_if(|_| false, "gone").unwrap_err();
        assert_eq!((other.verdict(), other.code()), (Verdict::Retry, "gone"));
        let pause = Duration::from_secs(5);
        assert_eq!(missing().retry_in(pause, "busy").unwrap_err().verdict(), Verdict::RetryIn(pause));
    }

    #[test]
    fn text_is_bounded() {
        let error = JobError::retry("c".repeat(1000), "m".repeat(1_000_000));
        assert_eq!((error.code().len(), error.message().len()), (100, ERROR_MAX));
    }
}
