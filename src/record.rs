//! The record of every job: the event log, and what is read from it (`docs/architecture.md`).
//!
//! | module | owns |
//! |---|---|
//! | [`writer`] | the event writer of a process: events in batches, confirmed, into the log |
//! | [`keys`] | ids that clients chose, and what request each belongs to (feature `server`) |
//! | [`lookup`] | what a worker asks about a job that it may have run already |
//! | [`model`] | what is known of a job, as others see it |
//! | `fold`, `store` | what the events say of each job, in one SQLite file |
//! | `projector`, `barrier` | the log, applied to the store, and how its end is found |
//! | `reader` | [`Record`]: what an HTTP process asks |
//! | `latest` | the newest events, read once for all who follow them |
//! | `watching`, `touched`, `rates` | who waits for news; what was written here a moment ago; how fast jobs come and go |
//! | `answers` | the answers to workers' questions |
//! | `upkeep` | what must be done every now and then: retention, and events that must not leave with the log's old end |
//!
//! Writing is for every process; reading is for HTTP processes (feature `server`).

#[cfg(feature = "server")]
mod answers;
#[cfg(feature = "server")]
mod barrier;
#[cfg(feature = "server")]
mod fold;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
#[cfg(feature = "server")]
pub mod keys;
#[cfg(feature = "server")]
pub(crate) mod latest;
#[cfg(feature = "server")]
mod looks;
pub(crate) mod lookup;
pub mod model;
#[cfg(feature = "server")]
mod projector;
#[cfg(feature = "server")]
mod rates;
#[cfg(feature = "server")]
mod reader;
#[cfg(feature = "server")]
mod store;
#[cfg(feature = "server")]
mod touched;
#[cfg(feature = "server")]
mod upkeep;
#[cfg(feature = "server")]
mod watching;
pub(crate) mod writer;

#[cfg(feature = "server")]
pub use self::{
    reader::{Record, RecordError},
    watching::JobWatch,
};
