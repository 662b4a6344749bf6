//! Publishing callbacks: for who ends a run, be it a worker or an HTTP process.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::{error, info};

use crate::{
    amqp::{
        Names, PublishError,
        admin::Admin,
        publisher::{Publisher, Target},
        topology::TopologyError,
    },
    callback,
    event::Event,
    job::{Envelope, wire::Headers},
};

/// Pause before a publish that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// No deadline: an alarm of the broker may hold it up for hours.
const FOREVER: Duration = Duration::from_secs(100 * 86_400);

/// Why a callback is not in its queue.
#[derive(Debug, Error)]
pub(crate) enum CallbackError {
    /// It may be later.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// There is no queue, and there will be none before somebody makes it.
    #[error(transparent)]
    NoQueue(TopologyError),
}

/// Makes and publishes callbacks; cheap to clone.
#[derive(Clone)]
pub(crate) struct Callbacks {
    pub(super) names: Names,
    pub(super) instance: String,
    pub(super) publisher: Publisher,
    pub(super) admin: Admin,
}

impl Callbacks {
    /// The callback about the end that `event` tells of; none where the job's headers ask for none.
    pub(crate) fn of(&self, event: &Event, headers: &Headers) -> Option<Envelope> {
        callback::of(event, headers, self.names.callbacks())
    }

    /// The event that says that this callback is there: to be written with that of the end, so that the record never
    /// has one without the other.
    pub(crate) fn submitted(&self, callback: &Envelope) -> Event {
        callback::submitted(callback, &self.instance)
    }

    /// Publishes it until the broker has confirmed it; gives up only where there can be no queue for it, because to wait
    /// for a person would hold up all that ends as well.
    #[cfg(feature = "worker")]
    pub(crate) async fn publish_surely(&self, mut callback: Envelope) {
        let mut told = false;
        loop {
            match self.publish(&callback, Instant::now() + FOREVER).await {
                Ok(()) => return,
                Err(CallbackError::NoQueue(error)) => {
                    return error!(job.id = %callback.id, %error, "a callback is given up: there is no queue for it");
                }
                Err(CallbackError::Publish(error)) if !told => {
                    info!(job.id = %callback.id, %error, "a callback is not confirmed, trying again");
                    told = true;
                }
                Err(CallbackError::Publish(_)) => {}
            }
            // It may be stored all the same.
            callback.unsure = true;
            sleep(AGAIN).await;
        }
    }

    /// Publishes it, and waits for the confirm until `deadline`. Its queue is made where it is missing: no process that
    /// delivers need be there yet.
    pub(crate) async fn publish(&self, callback: &Envelope, deadline: Instant) -> Result<(), CallbackError> {
        let (exchange, key) = self.names.route(&callback.queue, callback.kind.as_str(), 0);
        let target = Target { exchange, key, mandatory: true };
        match self.publisher.publish_patiently(target.clone(), callback.encode(), deadline).await {
            Err(PublishError::Unroutable) => {
                self.admin.declare(&self.names, &callback.queue).await.map_err(|error| match error {
                    TopologyError::Other(why) => PublishError::Unavailable(why).into(),
                    error => CallbackError::NoQueue(error),
                })?;
                Ok(self.publisher.publish_patiently(target, callback.encode(), deadline).await?)
            }
            other => Ok(other?),
        }
    }
}
