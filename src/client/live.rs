//! The connections behind a client: what a process is decides which of them it starts.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;

#[cfg(feature = "server")]
use super::gather::Gatherer;
use super::{Callbacks, SubmitError, traced, untold::Untold};
use crate::{
    amqp::{
        Names, PublishError,
        admin::{Admin, Depth},
        connection::{AmqpRuntime, Link},
        control::{Control, Hello},
        heartbeats::Heartbeats,
        outlet::Outlet,
        publisher::{Publisher, Target},
        replies::Replies,
        together::Together,
        topology::Plan,
        version,
    },
    config::{self, Config},
    job::{Envelope, JobId, QueueName, wire::Message},
    metrics::Metrics,
    record::writer::EventWriter,
    trace::Span,
};

/// How long events that are not confirmed yet are waited for when the process ends.
const EVENTS_FLUSH: Duration = Duration::from_secs(2);

/// What a process is, which decides what it starts and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// A program that enqueues. Waits for a connection within the confirm timeout.
    Producer,
    /// The HTTP front. Refuses at once what cannot be published now.
    Http,
    /// A worker, with its queues.
    Worker(Vec<QueueName>),
}

impl Role {
    fn name(&self) -> &'static str {
        match self {
            Self::Producer => "client",
            Self::Http => "http",
            Self::Worker(_) => "worker",
        }
    }
}

/// How long a publish may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until when a connection and room are waited for; `None`: not at all.
    pub(super) room: Option<Instant>,
    /// Until when the confirm is.
    pub(super) confirm: Instant,
}

/// Starts connections of this process, and closes them all; cheap to clone.
#[derive(Clone)]
pub(crate) struct Links {
    amqp: config::Amqp,
    plan: Plan,
    /// What the connections' names start with.
    name: String,
    /// What the process is, in metrics.
    role: &'static str,
    metrics: Metrics,
    runtime: Arc<AmqpRuntime>,
    started: Arc<Mutex<Vec<Link>>>,
}

impl Links {
    /// A connection for one purpose, which the management UI shows in its name.
    pub(crate) fn start(&self, purpose: &str) -> Link {
        let name = format!("{} {purpose}", self.name);
        let metrics = (&self.metrics, self.metrics.connection(self.role, purpose));
        let link = Link::start(&self.amqp, name, self.plan.clone(), &self.runtime, metrics);
        self.started.lock().unwrap_or_else(PoisonError::into_inner).push(link.clone());
        link
    }

    fn all(&self) -> Vec<Link> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The connections of a client, once they are needed.
pub(crate) struct Live {
    pub(crate) names: Names,
    pub(crate) instance: String,
    pub(crate) publisher: Publisher,
    /// For jobs that were accepted before: one over which the broker closes the channel takes no other submit with it.
    #[cfg(feature = "server")]
    forwarding: OnceLock<Publisher>,
    /// Bounds of a channel for jobs: unconfirmed, waiting.
    #[cfg(feature = "server")]
    bounds: (usize, usize),
    /// Writes events into the log.
    pub(crate) events: EventWriter,
    /// Jobs of which it has not written yet that they were submitted.
    pub(super) untold: Untold,
    /// Hands over what many callers submit at the same time.
    #[cfg(feature = "server")]
    gatherer: OnceLock<Gatherer>,
    pub(crate) consume: Link,
    /// For what must hold up neither jobs nor acknowledgements: the control log, heartbeats, events for subscribers.
    pub(crate) control: Link,
    pub(crate) outlet: Outlet,
    pub(crate) links: Links,
    admin: Admin,
    pub(super) replies: OnceLock<Replies>,
    pub(super) known: OnceLock<Control>,
    pub(super) heartbeats: OnceLock<Heartbeats>,
}

impl Live {
    pub(super) fn start(config: &Config, role: &Role, metrics: &Metrics) -> Result<Self, String> {
        version::parse(config.amqp.url.expose())?;
        let runtime = AmqpRuntime::start().map_err(|error| format!("cannot start a thread: {error}"))?;
        let names = Names::new(&config.amqp.prefix, &config.amqp.ladder_prefix);
        let instance = instance();
        let mut queues = config.amqp.queues.clone();
        match role {
            Role::Worker(own) => {
                queues.extend(own.iter().filter(|queue| !config.amqp.queues.contains(queue)).cloned());
            }
            // Its acts wait there.
            Role::Http => queues.push(names.acts()),
            Role::Producer => {}
        }
        let plan = Plan { names: names.clone(), queues, declares: config.amqp.declare };
        let name = format!("{} {} {instance}", config.amqp.prefix, role.name());
        let counted = (metrics, metrics.connection(role.name(), "admin"));
        let admin = Admin::new(&config.amqp, format!("{name} admin"), &names, &runtime, counted)
            .map_err(|error| error.to_string())?;
        let links = Links {
            amqp: config.amqp.clone(),
            plan,
            name,
            role: role.name(),
            metrics: metrics.clone(),
            runtime,
            started: Arc::default(),
        };
        let publish = links.start("publish");
        publish.keep_repaired();
        let control = links.start("control");
        let outlet = Outlet::start(&control);
        Ok(Self {
            events: EventWriter::start(&publish, &names, outlet.clone()),
            untold: Untold::default(),
            #[cfg(feature = "server")]
            gatherer: OnceLock::new(),
            control,
            outlet,
            publisher: Publisher::start(&publish, "jobs", config.amqp.window, config.amqp.backlog),
            #[cfg(feature = "server")]
            forwarding: OnceLock::new(),
            #[cfg(feature = "server")]
            bounds: (config.amqp.window, config.amqp.backlog),
            names,
            instance,
            consume: links.start("consume"),
            links,
            admin,
            replies: OnceLock::new(),
            known: OnceLock::new(),
            heartbeats: OnceLock::new(),
        })
    }

    /// The runtime that the connections live on.
    pub(crate) fn runtime(&self) -> tokio::runtime::Handle {
        self.links.runtime.handle()
    }

    pub(crate) fn replies(&self, limit: usize) -> &Replies {
        self.replies.get_or_init(|| Replies::start(&self.consume, &self.names, &self.instance, limit))
    }

    /// Starts to follow the control log, with `hello` as this process's word in it. Those of an HTTP process write
    /// again what is about to leave the log (`retell_younger`).
    pub(crate) fn follow_control(&self, hello: Hello, retell_younger: Option<Duration>) -> &Control {
        // Not on a connection that jobs use: a record that lapin cannot read costs the connection.
        self.known.get_or_init(|| {
            Control::start(&self.control, self.publisher.clone(), &self.names, hello, retell_younger)
        })
    }

    /// Starts to receive what workers say of themselves.
    pub(super) fn follow_workers(&self) -> &Heartbeats {
        self.heartbeats.get_or_init(|| Heartbeats::start(&self.control, &self.names, &self.instance))
    }

    /// Publishes callbacks.
    pub(crate) fn callbacks(&self) -> Callbacks {
        Callbacks {
            names: self.names.clone(),
            instance: self.instance.clone(),
            publisher: self.publisher.clone(),
            admin: self.admin.clone(),
        }
    }

    /// What waits in a queue of that AMQP name.
    pub(super) async fn depth(&self, name: &str, deadline: Instant) -> Result<Option<Depth>, SubmitError> {
        // A broker that is away is not asked on a connection of its own, which would be another wait.
        let up = self.publisher.link().wait_up(deadline).await;
        up.map_err(|down| SubmitError::Unavailable(down.0))?;
        let depth = self.admin.depth(name).await;
        depth.map_err(|down| SubmitError::Unavailable(down.0))
    }

    /// Declares a queue's company and bindings anew, if the queue itself exists or is one of this process's own;
    /// whether it does.
    #[cfg(feature = "server")]
    pub(crate) async fn restore(&self, queue: &QueueName) -> Result<bool, crate::amqp::connection::LinkDown> {
        let link = self.publisher.link();
        if link.declares(queue) {
            return link.repair().await.map(|()| true);
        }
        self.admin.restore(&self.names, queue).await
    }

    /// Declares the dead-letter queue of a queue that may not exist; whether it is there.
    #[cfg(feature = "server")]
    pub(crate) async fn declare_dead(
        &self,
        queue: &QueueName,
    ) -> Result<bool, crate::amqp::connection::LinkDown> {
        self.admin.declare_dead(&self.names, queue).await
    }

    /// Whether args and outputs of a kind stay out of the record, as far as workers have said.
    #[cfg(feature = "server")]
    pub(crate) fn is_private(&self, kind: &crate::job::Kind) -> bool {
        self.known.get().is_some_and(|known| known.is_private(kind))
    }

    pub(super) async fn check_queue(&self, queue: &QueueName, deadline: Instant) -> Result<(), SubmitError> {
        let link = self.publisher.link();
        if link.declares(queue) {
            return Ok(());
        }
        // A broker that is away is not asked on a connection of its own, which would be another wait.
        link.wait_up(deadline).await.map_err(|down| SubmitError::Unavailable(down.0))?;
        match self.admin.queue_exists(&self.names.queue(queue)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SubmitError::UnknownQueue(queue.clone())),
            Err(down) => Err(SubmitError::Unavailable(down.0)),
        }
    }

    #[cfg(feature = "server")]
    pub(super) fn gatherer(&self) -> &Gatherer {
        self.gatherer.get_or_init(|| {
            Gatherer::start(&self.runtime(), self.publisher.clone(), self.events.clone(), self.untold.clone())
        })
    }

    /// Publishes what was accepted before.
    #[cfg(feature = "server")]
    pub(super) fn forwarding(&self) -> &Publisher {
        let (window, backlog) = self.bounds;
        self.forwarding.get_or_init(|| Publisher::start(self.publisher.link(), "jobs", window, backlog))
    }

    /// Publishes a job by `publisher` towards its queue, to arrive after `ticks`: a span of its own, if traces are exported,
    /// which is then the parent of the job's attempts.
    pub(super) async fn publish_job(
        &self,
        publisher: &Publisher,
        envelope: &Envelope,
        ticks: u32,
        patience: Patience,
    ) -> Result<(), SubmitError> {
        match self.publish_once(publisher, envelope, ticks, patience).await {
            Err(PublishError::Unroutable) => {
                // Boxed: each publish would have room for it, several KiB.
                Box::pin(self.make_way(&envelope.queue)).await?;
                Ok(self.publish_once(publisher, envelope, ticks, patience).await?)
            }
            other => Ok(other?),
        }
    }

    async fn publish_once(
        &self,
        publisher: &Publisher,
        envelope: &Envelope,
        ticks: u32,
        Patience { room, confirm }: Patience,
    ) -> Result<(), PublishError> {
        let ((span, message), target) = (self.message(envelope), self.target(envelope, ticks));
        let published = match room {
            Some(room) => publisher.publish_within(target, message, room, confirm).await,
            None => publisher.publish(target, message, confirm).await,
        };
        if let Err(error) = &published {
            span.fail(SubmitError::from(error.clone()).word());
        }
        published
    }

    /// A job as it is published, and the span of that.
    pub(super) fn message(&self, envelope: &Envelope) -> (Span, Message) {
        let span = traced::begin(&self.names, envelope);
        let message = match span.context().filter(|_| span.is_live()) {
            Some(context) => {
                let mut envelope = envelope.clone();
                context.put_on(&mut envelope.extra);
                envelope.encode()
            }
            None => envelope.encode(),
        };
        (span, message)
    }

    /// Hands jobs over to be published, each to arrive after so many ticks, in order.
    pub(super) async fn hand_over(
        &self,
        jobs: impl Iterator<Item = (&Envelope, u32)>,
        patience: Patience,
    ) -> Handed {
        let (mut spans, mut messages) = (Vec::new(), Vec::new());
        for (envelope, ticks) in jobs {
            let (span, message) = self.message(envelope);
            spans.push(span);
            messages.push((self.target(envelope, ticks), message));
        }
        let Patience { room, confirm } = patience;
        let room = room.unwrap_or_else(Instant::now);
        Handed { together: self.publisher.hand_over_all(messages.into_iter(), room, confirm).await, spans }
    }

    pub(super) fn target(&self, envelope: &Envelope, ticks: u32) -> Target {
        let (exchange, key) = self.names.route(&envelope.queue, envelope.kind.as_str(), ticks);
        Target { exchange, key, mandatory: true }
    }

    /// Makes what is missing between the exchange of jobs and a queue.
    async fn make_way(&self, queue: &QueueName) -> Result<(), SubmitError> {
        if self.publisher.link().declares(queue) {
            // One of our own queues: someone deleted it or its binding.
            return self.publisher.link().repair().await.map_err(|down| SubmitError::Unavailable(down.0));
        }
        // Another process's queue: it is unknown only if it does not exist. If it does, its binding is gone.
        let restored = self.admin.restore(&self.names, queue).await;
        if restored.map_err(|down| SubmitError::Unavailable(down.0))? {
            return Ok(());
        }
        Err(SubmitError::UnknownQueue(queue.clone()))
    }

    /// Stops what uses the connections.
    fn give_up(&self) {
        if let Some(replies) = self.replies.get() {
            replies.close();
        }
        if let Some(known) = self.known.get() {
            known.close();
        }
        if let Some(heartbeats) = self.heartbeats.get() {
            heartbeats.close();
        }
        self.admin.close();
    }

    pub(crate) async fn close(&self) {
        self.events.flush(Instant::now() + EVENTS_FLUSH).await;
        self.give_up();
        join_all(self.links.all().iter().map(Link::close)).await;
    }
}

/// Jobs that were handed over, each with its span.
pub(super) struct Handed {
    together: Together,
    spans: Vec<Span>,
}

impl Handed {
    /// What became of each, in order.
    pub(super) async fn results(self) -> Vec<Result<(), PublishError>> {
        let results = self.together.results().await;
        for (span, result) in self.spans.iter().zip(&results) {
            if let Err(error) = result {
                span.fail(SubmitError::from(error.clone()).word());
            }
        }
        results
    }
}

/// The tasks that keep the connections hold the runtime they run on: without this, a dropped client would leave
/// both behind.
impl Drop for Live {
    fn drop(&mut self) {
        self.give_up();
        self.links.all().iter().for_each(Link::give_up);
    }
}

/// A name for this process that people can find: host, process id, and some random digits, because containers
/// repeat both.
fn instance() -> String {
    let host: String = host().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let random = uuid::Uuid::new_v8(*JobId::new().as_bytes()).simple().to_string();
    format!("{host}-{}-{}", std::process::id(), &random[random.len() - 6..])
}

/// The name of the machine, or `host`.
pub(crate) fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME").map_err(std::io::Error::other));
    host.map_or_else(|_| "host".to_owned(), |host| host.trim().to_owned())
}
