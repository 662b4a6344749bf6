//! What a command tells its user: results on standard output, the rest on standard error.
//!
//! Logs are not this module's affair. A reader that has gone away (`hopline … | head`) is no error: [`line`] goes on
//! without it, for commands with other work to do; [`result`] ends the command.

use std::{
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
};

use thiserror::Error;

/// Why a result could not be written.
#[derive(Debug, Error)]
pub(crate) enum OutError {
    /// Whoever read standard output has what they wanted.
    #[error("nobody reads the output any more")]
    Gone,
    /// Anything else, as a full disk.
    #[error("cannot write to standard output")]
    Failed(#[source] io::Error),
}

/// Writes a line to standard output, and goes on whatever happens.
pub(crate) fn line(text: impl Display) {
    let mut out = io::stdout().lock();
    // Whoever closed the pipe does not want to hear more, nor can they be told.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Writes text as it is to standard output.
pub(crate) fn result(text: &str) -> Result<(), OutError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => OutError::Gone,
        _ => OutError::Failed(error),
    })
}

/// Writes text that a person or a program reads, ended by a line end if it has none.
pub(crate) fn result_line(text: &str) -> Result<(), OutError> {
    if text.ends_with('\n') { result(text) } else { result(&format!("{text}\n")) }
}

/// Writes a complaint to standard error.
pub(crate) fn error(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Tells a person what a list of theirs does not: that it is empty, or goes on.
pub(crate) fn about_list(shown: usize, more: bool, what: &str) {
    if shown == 0 {
        error(format_args!("No {what}s."));
    } else if more && io::stdout().is_terminal() {
        error(format_args!("These are {shown}; --limit N or --all show more."));
    }
}

/// How standard output shows lines.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Look {
    /// As [`width`].
    pub(crate) width: Option<usize>,
    /// Whether there are colours.
    pub(crate) colours: bool,
}

/// How standard output shows lines now.
pub(crate) fn look() -> Look {
    Look { width: width(), colours: super::colour::on_out() }
}

/// The width of the terminal that standard output is, in columns; `None`: it is none, or does not say.
pub(crate) fn width() -> Option<usize> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let told = rustix::termios::tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col));
    told.filter(|columns| *columns > 0)
}
