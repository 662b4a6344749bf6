//! The media worker's library: what its job kinds do with pictures.
//!
//! One file per kind; [`thumbnail`] has `image.thumbnail`. [`picture`] is the pure part (bytes in, bytes out),
//! [`media`] the only place that touches files. Nothing here knows queues, retries or brokers: an error says
//! whether another attempt could help, and the worker library does the rest.

pub mod error;
mod jpeg;
pub mod media;
pub mod picture;
pub mod thumbnail;

pub use error::MediaError;
pub use media::Media;
