//! What can go wrong with a picture, and what that means for the job.

use std::io;

use hopline::JobError;
use thiserror::Error;

/// Why a picture job did not succeed. All but [`MediaError::Io`] and [`MediaError::Stopped`] are final.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MediaError {
    /// The arguments ask for what cannot be.
    #[error("{0}")]
    BadArgs(String),
    /// No file has that name.
    #[error("there is no picture {0:?}")]
    Missing(String),
    /// A path that leads out of the picture folder, by `..`, from `/` or through a link.
    #[error("{0:?} leads out of the picture folder")]
    OutsideRoot(String),
    /// The bytes are no picture of a supported format, or a damaged one.
    #[error("not a readable picture: {0}")]
    BadPicture(String),
    /// The source, or what decoding it would take, is over a limit.
    #[error("{0}")]
    TooLarge(String),
    /// Reading or writing failed for a reason that may pass: a full disk, a network share that is away.
    #[error("cannot {act} {path:?}")]
    Io {
        /// `read` or `write`.
        act: &'static str,
        /// The path as the job gave it.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The attempt was told to stop before it was done.
    #[error("stopped before it was done")]
    Stopped,
}

impl MediaError {
    /// The stable code, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadArgs(_) => "bad_args",
            Self::Missing(_) => "picture_missing",
            Self::OutsideRoot(_) => "outside_root",
            Self::BadPicture(_) => "bad_picture",
            Self::TooLarge(_) => "too_large",
            Self::Io { .. } => "io",
            Self::Stopped => "stopped",
        }
    }

    /// Whether another attempt could end differently.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Stopped)
    }

    /// The error for the job: fatal, or to be retried by the policy.
    #[must_use]
    pub fn into_job_error(self) -> JobError {
        let text = match &self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        };
        match self.is_transient() {
            true => JobError::retry(self.code(), text),
            false => JobError::fatal(self.code(), text),
        }
    }
}

#[cfg(test)]
mod tests {
    use hopline::job::Verdict;

    use super::*;

    #[test]
    fn only_what_may_pass_is_retried() {
        let io = MediaError::Io { act: "read", path: "a.jpg".into(), source: io::ErrorKind::TimedOut.into() };
        let error = io.into_job_error();
        assert_eq!((error.verdict(), error.code()), (Verdict::Retry, "io"));
        assert_eq!(error.message(), "cannot read \"a.jpg\": timed out");
        assert_eq!(MediaError::Stopped.into_job_error().verdict(), Verdict::Retry);
        for (error, code) in [
            (MediaError::BadArgs("x".into()), "bad_args"),
            (MediaError::Missing("x".into()), "picture_missing"),
            (MediaError::OutsideRoot("x".into()), "outside_root"),
            (MediaError::BadPicture("x".into()), "bad_picture"),
            (MediaError::TooLarge("x".into()), "too_large"),
        ] {
            let error = error.into_job_error();
            assert_eq!((error.verdict(), error.code()), (Verdict::Fatal, code));
        }
    }
}
