//! API keys: who may ask the HTTP interface for what (`docs/http.md`, "Keys").
//!
//! Keys are kept in one file (`http.keys`): `hopline key` rewrites it, every HTTP process reads it and looks each second
//! whether it has changed. The file has no secret in it, only what a secret is recognised by.
//!
//! | module | owns |
//! |---|---|
//! | [`key`] | a key as its holder has it: its text, its secret, what is kept of it |
//! | [`entry`] | a key as the file has it: scopes, queues, rate |
//! | [`file`] | reading and rewriting the file |
//! | [`bucket`] | how many requests a key may make: pure |
//! | [`session`] | what a browser has instead of a key |
//! | [`keyring`] | the keys of a process, as they are now |
//!
//! Not here: which call needs which scope (`http::access`).

mod bucket;
mod entry;
mod file;
mod key;
mod keyring;
mod session;

use std::path::PathBuf;

use thiserror::Error;

pub use self::{
    entry::{Entry, NAME_MAX, Scope, Wanted},
    file::KeyFile,
    key::{ApiKey, KeyId},
};
pub(crate) use self::{
    keyring::{Denied, Keyring},
    session::SECONDS as SESSION_SECONDS,
};

/// Why keys cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The file is not there.
    #[error("there is no file of keys at {0}: `hopline key new` makes it")]
    Missing(PathBuf),
    /// The file cannot be read, written or locked.
    #[error("cannot {what} the file of keys {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A line of the file is no key.
    #[error("line {line} of the file of keys {path} is no key: {detail}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// A key that cannot be made.
    #[error("{0}")]
    Refused(String),
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

#[cfg(test)]
pub(crate) use self::{entry::tests::made, file::tests as file_tests};
