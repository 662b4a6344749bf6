//! The broker: the only place that names lapin. Connections that come back by themselves, topology, a publisher
//! that confirms, consumers that are rebuilt, the delay ladder, replies, the control log.
//!
//! | module | owns |
//! |---|---|
//! | [`names`] | the name of every exchange, queue and binding key |
//! | [`delay`] | the arithmetic of the delay ladder |
//! | [`topology`] | declaring what [`names`] names |
//! | [`connection`] | one supervised connection ([`connection::Link`]) and its runtime |
//! | [`publisher`] | one confirming channel with one owner task |
//! | [`outlet`] | publishing what may be lost |
//! | [`consumer`] | consumers, channel epochs, acknowledgements |
//! | [`replies`] | the result queue of a process that waits |
//! | [`control`] | the control log: kinds, pauses, orders to cancel |
//! | [`heartbeats`] | what workers say of themselves every few seconds |
//! | [`stream`] | reading a stream: in order, across reconnects |
//! | [`tls`] | certificates for `amqps` |
//! | [`version`] | what broker answers |
//! | [`admin`] | short-lived questions, on pooled connections |
//! | [`probe`] | an operator's looks at the broker and at a login's rights |
//! | [`pass`] | going once over a dead-letter queue |
//! | [`pause`] | pauses between attempts to connect: the only file that names `backoff` |

pub(crate) mod admin;
#[cfg(feature = "server")]
pub mod baseline;
pub(crate) mod connection;
pub(crate) mod consumer;
pub(crate) mod control;
pub mod delay;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod heartbeats;
pub(crate) mod message;
pub mod names;
pub(crate) mod outlet;
#[cfg(feature = "server")]
pub(crate) mod pass;
pub(crate) mod pause;
#[cfg(feature = "server")]
pub(crate) mod probe;
pub(crate) mod publisher;
pub(crate) mod replies;
pub(crate) mod stream;
mod tls;
pub(crate) mod together;
pub mod topology;
pub(crate) mod version;

pub use self::names::Names;
pub use self::publisher::PublishError;
pub use self::topology::TopologyError;
