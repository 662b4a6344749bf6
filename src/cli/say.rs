//! What a command tells its user: on standard output, a line at a time.
//!
//! Logs are not this module's affair; they go to standard error. A reader that has gone away (`hopline … | head`)
//! is no error.

use std::io::Write;

/// Writes a line to standard output.
pub(crate) fn line(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    // Whoever closed the pipe does not want to hear more, nor can they be told.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Writes a complaint to standard error.
pub(crate) fn error(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
