//! What concerns more than one job: cancelling, pausing queues, and who works on what.
//!
//! Orders go to the control log, from where every worker and every HTTP process learns them; see
//! [`crate::amqp::control`].

#[cfg(feature = "server")]
use std::collections::BTreeSet;
use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::{Client, Live, Role, SubmitError};
#[cfg(feature = "server")]
use crate::amqp::control::Control;
use crate::{
    amqp::{
        admin::Depth,
        control::{
            CancelOrder, Pauses, RetryPauses, Route, Version, Written,
            record::{ORDERS_MAX, PauseOrder, now},
        },
        heartbeats::WorkerInfo,
        publisher::Target,
    },
    event::{Data, Event, EventType},
    job::{JobId, Kind, QueueName, Schema},
};

/// A run to be cancelled: where it stands, as far as its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelTarget {
    /// The job.
    pub id: JobId,
    /// The run; a replay is not touched.
    pub run: u32,
    /// Its attempt.
    pub attempt: u32,
    /// Its step.
    pub step: u32,
    /// Its kind, where that could be read.
    pub kind: Option<Kind>,
    /// Its queue.
    pub queue: QueueName,
    /// Who asks; at most 200 bytes, the rest is cut.
    pub by: Option<String>,
    /// Why; at most 1 KiB, the rest is cut.
    pub reason: Option<String>,
}

/// A kind that workers have announced.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
pub struct KindInfo {
    /// Which.
    pub kind: Kind,
    /// Where it goes.
    pub queue: QueueName,
    /// Whether its args and outputs stay out of the record.
    pub private: bool,
    /// The worker that announced it last; it may be gone.
    pub announced_by: String,
    /// When that was, where the announcement says.
    #[serde(serialize_with = "time_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub announced_at: Option<Timestamp>,
    /// The workers that are there and run it, by name.
    pub workers: Vec<String>,
    /// The kind whose earlier name this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_of: Option<Kind>,
    /// It should not be used any more: what to use instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deprecated: Option<String>,
    /// Longest run of an attempt, in seconds, if it is not the default of 10 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Attempts in all, if they are not the default of 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The pauses between attempts, if they are not the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<KindRetry>,
    /// What workers say that they take and return. Several while they do not agree, as during a deploy: those that came
    /// last first. Args that fit one of them are taken. Empty where none of them says anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<KindSchemas>,
}

/// The pauses between a kind's attempts, in the members of a submit's `retry`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, schemars::JsonSchema)]
pub struct KindRetry {
    /// The first pause, in seconds.
    pub initial: f64,
    /// Each further pause is so many times longer.
    pub factor: f64,
    /// The longest pause, in seconds.
    pub max: f64,
    /// The share by which a pause is lengthened or shortened.
    pub jitter: f64,
}

/// What some workers say of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct KindSchemas {
    /// The JSON Schema of the args that they take; absent: they do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub args: Option<Schema>,
    /// The JSON Schema of the output that they return; absent: they do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub output: Option<Schema>,
    /// Which workers; they may be gone where no other is there.
    pub announced_by: Vec<String>,
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn time_option<S: serde::Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(crate::event::time_text).serialize(serializer)
}

impl Client {
    /// Orders runs to be cancelled: `Ok` when the control log has all orders and the event log says so. Workers that
    /// start later know them, too.
    ///
    /// # Errors
    /// [`SubmitError`]. Some of the orders may have been given; to give them again does no harm.
    pub async fn request_cancel(&self, targets: Vec<CancelTarget>) -> Result<(), SubmitError> {
        let live = self.ordering()?;
        let at = now();
        for chunk in targets.chunks(ORDERS_MAX) {
            let orders: Vec<CancelOrder> = chunk.iter().map(|target| target.order(at)).collect();
            self.write_order(live, Written::cancel(&orders)).await?;
            let events = chunk.iter().zip(&orders).map(|(target, order)| target.event(order, &live.instance));
            let events: Vec<_> = events.collect();
            if let Some(known) = live.known.get() {
                known.learn_orders(orders);
            }
            live.events.write(&events, self.deadline()).await?;
        }
        Ok(())
    }

    /// The order to cancel this run, if there is one among the newest half million. Known to the HTTP front and to
    /// workers; none elsewhere.
    #[must_use]
    pub fn cancel_order(&self, id: JobId, run: u32) -> Option<CancelOrder> {
        self.live().ok()?.known.get()?.cancelled(id, run)
    }

    /// Orders that no worker takes jobs from `queue`, or that they do again: `Ok` when the control log has the order.
    /// What runs goes on. Holds until the next order, whatever is restarted.
    ///
    /// # Errors
    /// [`SubmitError`]; after `Timeout` and `Lost` the order may have been given.
    pub async fn pause(
        &self,
        queue: &QueueName,
        paused: bool,
        by: Option<String>,
    ) -> Result<(), SubmitError> {
        let live = self.ordering()?;
        let at = live.known.get().map_or_else(now, |known| known.pause_time(queue));
        let order = PauseOrder { queue: queue.clone(), paused, by, at }.bounded();
        self.write_order(live, Written::pause(&order)).await?;
        if let Some(known) = live.known.get() {
            known.learn_pause(order);
        }
        Ok(())
    }

    /// The queues that are paused. Known to the HTTP front and to workers; empty elsewhere.
    #[must_use]
    pub fn paused(&self) -> Arc<Pauses> {
        let known = self.live().ok().and_then(|live| live.known.get());
        known.map(|known| Arc::clone(&known.paused().borrow())).unwrap_or_default()
    }

    /// Every kind that a worker has announced, by name. Known to the HTTP front; `workers` is empty elsewhere.
    #[must_use]
    pub fn kinds(&self) -> Vec<KindInfo> {
        let Some(known) = self.live().ok().and_then(|live| live.known.get()) else { return Vec::new() };
        let mut running: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        for worker in self.workers() {
            for kind in worker.kinds {
                running.entry(kind.kind).or_default().push(worker.worker.clone());
            }
        }
        let routes = known.kinds().into_iter();
        routes
            .map(|(kind, route)| {
                let workers = running.remove(&kind).unwrap_or_default();
                let schemas = self.schemas(&kind);
                KindInfo::new(kind, route, workers, schemas)
            })
            .collect()
    }

    /// What the workers that may be there say of a kind, those that came last first. Empty where it is not known of all
    /// of them; the HTTP front alone knows.
    #[must_use]
    pub fn schemas(&self, kind: &Kind) -> Vec<KindSchemas> {
        let Ok(live) = self.live() else { return Vec::new() };
        let (Some(known), Some(heartbeats)) = (live.known.get(), live.heartbeats.get()) else {
            return Vec::new();
        };
        if !known.is_caught_up() {
            return Vec::new();
        }
        let versions = known.versions(kind, heartbeats.gone()).into_iter();
        versions
            .map(|Version { schemas, workers }| KindSchemas {
                args: schemas.args,
                output: schemas.output,
                announced_by: workers.iter().map(ToString::to_string).collect(),
            })
            .collect()
    }

    /// What args of a kind must fit one of, in a job for `queue`; none: anything is taken, or it is not known.
    #[cfg(feature = "server")]
    pub(crate) fn args_schemas(&self, kind: &Kind, queue: &QueueName) -> Option<Vec<Schema>> {
        let live = self.live().ok()?;
        let (known, heartbeats) = (live.known.get()?, live.heartbeats.get()?);
        if !known.is_caught_up() {
            return None;
        }
        known.args_schemas(kind, queue, heartbeats.gone())
    }

    /// The queues of all kinds that workers have announced.
    #[cfg(feature = "server")]
    pub(crate) fn announced_queues(&self) -> BTreeSet<QueueName> {
        self.live().ok().and_then(|live| live.known.get()).map(Control::queues).unwrap_or_default()
    }

    /// Whether workers have announced this kind, or the configuration routes it: not every name that a client makes up.
    #[cfg(feature = "server")]
    pub(crate) fn knows(&self, kind: &Kind) -> bool {
        let known = self.live().ok().and_then(|live| live.known.get());
        known.is_some_and(|known| known.queue_of(kind).is_some())
            || self.inner.config.routes.contains_key(kind)
    }

    /// Whether it is known which queue each announced kind goes to: the control log was read.
    #[cfg(feature = "server")]
    pub(crate) fn knows_kinds(&self) -> bool {
        self.live().is_ok_and(|live| live.known.get().is_none_or(|known| known.is_caught_up()))
    }

    /// The workers that have said something in the last 20 s, by name. Known to the HTTP front; empty elsewhere, and
    /// while an alarm of the broker keeps everybody from publishing.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let heartbeats = self.live().ok().and_then(|live| live.heartbeats.get());
        heartbeats.map(|heartbeats| heartbeats.all()).unwrap_or_default()
    }

    /// What waits in `queue` now, asked anew each time; `None`: there is no such queue.
    ///
    /// # Errors
    /// [`SubmitError::Unavailable`].
    pub async fn depth(&self, queue: &QueueName) -> Result<Option<Depth>, SubmitError> {
        let live = self.ordering()?;
        live.depth(&live.names.queue(queue), self.ask_until()).await
    }

    /// The same of the dead-letter queue of `queue`.
    #[cfg(feature = "server")]
    pub(crate) async fn dead_depth(&self, queue: &QueueName) -> Result<Option<Depth>, SubmitError> {
        let live = self.ordering()?;
        live.depth(&live.names.dead_queue(queue), self.ask_until()).await
    }

    fn ask_until(&self) -> Instant {
        if self.inner.role == Role::Http { Instant::now() } else { self.deadline() }
    }

    /// Writes events about jobs, and waits until the log has them or `deadline`.
    ///
    /// # Errors
    /// [`SubmitError`]; after `Timeout` they will still be written, unless the process ends.
    pub async fn write_events(&self, events: Vec<Event>, deadline: Instant) -> Result<(), SubmitError> {
        Ok(self.ordering()?.events.write(&events, deadline).await?)
    }

    /// The connections, for what a recording client cannot do.
    fn ordering(&self) -> Result<&Live, SubmitError> {
        if self.inner.recording.is_some() {
            return Err(SubmitError::Unavailable("a recording client has no broker".to_owned()));
        }
        self.live().map_err(SubmitError::Unavailable)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.inner.config.amqp.confirm_timeout
    }

    async fn write_order(&self, live: &Live, order: Written) -> Result<(), SubmitError> {
        let Written { key, message } = order.stamped(now());
        let target = Target { exchange: live.names.control(), key, mandatory: true };
        let written = if self.inner.role == Role::Http {
            live.publisher.publish(target, message, self.deadline()).await
        } else {
            live.publisher.publish_patiently(target, message, self.deadline()).await
        };
        Ok(written?)
    }
}

impl KindInfo {
    fn new(kind: Kind, route: Route, workers: Vec<String>, mut schemas: Vec<KindSchemas>) -> Self {
        // Nobody says anything.
        if schemas.iter().all(|schemas| schemas.args.is_none() && schemas.output.is_none()) {
            schemas.clear();
        }
        #[expect(clippy::cast_precision_loss, reason = "310 days in milliseconds fit a double exactly")]
        let seconds = |millis: u64| millis as f64 / 1000.0;
        let retry = route.retry.map(|RetryPauses { initial_ms, factor, max_ms, jitter }| KindRetry {
            initial: seconds(initial_ms),
            factor,
            max: seconds(max_ms),
            jitter,
        });
        Self {
            kind,
            queue: route.queue,
            private: route.private,
            announced_by: route.worker.to_string(),
            announced_at: route.at,
            workers,
            alias_of: route.alias_of,
            deprecated: route.deprecated,
            timeout: route.timeout_ms.map(seconds),
            max_attempts: route.max_attempts,
            retry,
            schemas,
        }
    }
}

impl CancelTarget {
    fn order(&self, at: Timestamp) -> CancelOrder {
        let Self { id, run, by, reason, .. } = self.clone();
        CancelOrder { id, run, by, reason, at }.bounded()
    }

    fn event(&self, order: &CancelOrder, source: &str) -> Event {
        let data = Data {
            kind: self.kind.clone(),
            queue: Some(self.queue.clone()),
            run: self.run,
            attempt: self.attempt,
            step: self.step,
            by: order.by.clone(),
            reason: order.reason.clone(),
            ..Data::default()
        };
        Event {
            event_type: EventType::CancelRequested,
            job: self.id,
            source: source.to_owned(),
            time: order.at,
            data,
        }
    }
}
