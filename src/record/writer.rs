//! The event writer of a process.

use tokio::time::Instant;

use crate::{amqp::PublishError, event::Event};

/// Writes events; cheap to clone.
#[derive(Clone)]
pub(crate) struct EventWriter {}

impl EventWriter {
    /// Writes events and waits until the log has them. Waits for a connection and for room until the deadline.
    pub(crate) async fn write(&self, events: Vec<Event>, deadline: Instant) -> Result<(), PublishError> {
        todo!("{events:?} {deadline:?}")
    }

    /// Hands events over without waiting: they are written as soon as that is possible.
    pub(crate) fn post(&self, events: Vec<Event>) {
        todo!("{events:?}")
    }
}
