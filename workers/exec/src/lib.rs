//! The exec worker's library: running commands that the operator has listed, in any language, as jobs.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | the file of commands: what may be run, by whom, within which limits |
//! | [`command`] | from a job's params to a command line; pure |
//! | [`run`] | the kind `exec.run` and its handler |
//! | [`attempt`] | one run of a command, as the worker sees it: time, output, its end |
//! | [`keeper`] | the process that stands between worker and command, and ends the whole tree |
//! | [`launch`] | the process that limits itself and becomes the command |
//! | [`tree`] | the processes below one, and signals to them |
//! | [`verdict`] | what an end means for the job; pure |
//!
//! Three processes of one program: the worker starts a keeper, the keeper a launcher, and that becomes the command. No
//! code runs between `fork` and `exec` but the standard library's. Linux only: who is below whom is read from `/proc`.

pub mod attempt;
pub mod command;
pub mod config;
pub mod keeper;
pub mod launch;
pub mod run;
pub mod tree;
pub mod verdict;

pub use config::{Commands, ExecError};
pub use run::Exec;
