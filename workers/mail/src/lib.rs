//! The mail worker's library: sending mail by SMTP as jobs.
//!
//! | module | owns |
//! |---|---|
//! | [`settings`] | the operator's: the server, who may be the sender, which headers, how much |
//! | [`email`] | the kind `email.send` and its handler |
//! | [`message`] | from a job to a message; pure but for its date |
//! | [`smtp`] | connections to the server, and sending by them |
//! | [`verdict`] | what an answer means for the job; pure |

pub mod email;
pub mod message;
pub mod settings;
pub mod smtp;
pub mod verdict;

pub use email::Mail;
pub use settings::Settings;
