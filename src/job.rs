//! The job model: what is enqueued, what a message says, what a handler answers.
//!
//! Everything below is pure: no I/O, no clock of its own, no tokio, no lapin, no axum, so that it is tested as
//! tables and properties. The wire contract (`docs/wire.md`) is implemented in [`envelope`] and [`reply`].

pub mod dead;
pub mod envelope;
pub mod error;
pub mod json;
pub mod name;
pub mod options;
pub mod reply;
pub mod schema;
pub mod wire;

use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    envelope::Envelope,
    error::{JobError, JobResult, ResultExt, Verdict},
    name::{JobId, Kind, NameError, QueueName},
    options::Options,
    reply::{Reply, Status},
    schema::{Schema, Schemas},
};

/// A type of work: the arguments of a job, under a stable wire name.
///
/// The args are what serde makes of the value: JSON, and nothing around it.
///
/// ```
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Greet { name: String }
///
/// impl hopline::Job for Greet {
///     const KIND: &'static str = "demo.greet";
///     type Output = String;
/// }
/// ```
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The name on the wire: `[a-z0-9_-]+(\.[a-z0-9_-]+)*`, at most 100 characters. Never the name of a Rust
    /// type: renaming a struct must not orphan the jobs that wait.
    const KIND: &'static str;

    /// Earlier names of this kind, still run by the same handler. To rename: deploy workers with the old name
    /// as an alias, then producers with the new name; drop the alias when no job with the old name is left.
    const ALIASES: &'static [&'static str] = &[];

    /// The queue these jobs wait in unless the submitter names another: `[a-z0-9_-]{1,60}`.
    const QUEUE: &'static str = "default";

    /// What a successful job returns, as JSON.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// JSON Schemas of args and output, which workers announce: the HTTP front then refuses args that do not fit, and
    /// describes the kind. [`Schemas::of::<Self>()`](Schemas::of) where both types derive [`schemars::JsonSchema`];
    /// nothing by default.
    #[must_use]
    fn schemas() -> Schemas {
        Schemas::none()
    }
}
