//! The webhook worker's library: HTTP requests as jobs.
//!
//! | module | owns |
//! |---|---|
//! | [`settings`] | what the operator allows: addresses, times, secrets |
//! | [`request`] | the kind `http.request` and its handler |
//! | [`outgoing`] | from a job to a request; pure |
//! | [`answer`] | what an answer means for the job, and what is told of it; pure |
//!
//! Which addresses may be asked is `hopline::egress`'s affair, as for callbacks: nothing here opens a connection.

pub mod answer;
pub mod outgoing;
pub mod request;
pub mod settings;

pub use request::Webhook;
pub use settings::Settings;
