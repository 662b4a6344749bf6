//! One connection to the broker that comes back by itself.
//!
//! A [`Link`] is a named connection and the task that keeps it: connect, check the broker's version, declare the
//! topology, hand the connection out, and start over with jittered pauses when it is lost. lapin's own recovery
//! stays off: it declares every binding twice at each reconnect. Users of a link open channels of their own and
//! rebuild them when they fail; after a channel error they ask for [`Link::repair`], because the usual cause is
//! an object that someone deleted.

use std::{borrow::Cow, sync::Arc, time::Duration};

use async_rs::Runtime;
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, Event, options::ConfirmSelectOptions,
    protocol::AMQPErrorKind,
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    pause::Pauses,
    tls,
    topology::{Plan, TopologyError},
    version::{self, BrokerVersion},
};
use crate::{
    config::{Amqp, AmqpUrl},
    metrics::{ConnectionMetrics, Metrics},
};

/// Bytes of the longest frame: what brokers offer unless they are told otherwise. Named, so that lapin makes its buffers
/// (32 frames each way) in this size at once and the system gives pages as they are used; else it grows small ones, and
/// writes zeros to all 8 MiB of a connection that may never use them.
const FRAME_MAX: u32 = 128 << 10;
/// How often a connection's state is looked at, besides the events it sends.
const LOOK: Duration = Duration::from_millis(500);
/// How often the topology is declared again.
const REPAIR: Duration = Duration::from_secs(60);
/// How long a connection must last for the next one to be made at once.
const LASTING: Duration = Duration::from_secs(1);
/// What is told of a broker that cannot be connected to.
const AWAY: &str = "the broker is away (the log says why)";
/// And of one that was connected to.
const LOST: &str = "connection lost";
/// Longest time for one request on a channel: open, declare, consume, cancel.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The runtime of lapin's tasks and ours: of its own, so that busy handlers starve no heartbeat.
#[derive(Debug)]
pub(crate) struct AmqpRuntime(Option<tokio::runtime::Runtime>);

impl AmqpRuntime {
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4) // name look-ups
            .thread_name("hopline-amqp")
            .enable_all()
            .build()?;
        Ok(Arc::new(Self(Some(runtime))))
    }

    pub(crate) fn handle(&self) -> Handle {
        // Taken only by Drop, after which nobody can call this.
        self.0.as_ref().expect("the runtime lives until drop").handle().clone()
    }
}

impl Drop for AmqpRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Dropping a runtime blocks, which panics inside another one.
            runtime.shutdown_background();
        }
    }
}

/// Why a link gives no channel.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LinkDown(pub(crate) String);

/// A connection as it is now.
#[derive(Clone)]
pub(crate) enum LinkState {
    /// Not connected; why, in words that may be told to anyone: callers of the HTTP interface get them. What names the
    /// broker's address or a user is in the log alone.
    Down(Cow<'static, str>),
    /// Connected, and the topology is declared.
    Up(Up),
    /// Closed for good.
    Closed,
}

/// A live connection.
#[derive(Clone)]
pub(crate) struct Up {
    connection: Arc<Connection>,
    /// Which connection of this link, from 1.
    pub(crate) epoch: u64,
}

impl Up {
    /// Whether an alarm (memory, disk) keeps this connection from publishing. The broker says so only after a
    /// connection has published during the alarm.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.connection.status().connected()
    }

    /// After what time without a word each side may give the connection up; none: never.
    pub(crate) fn heartbeat(&self) -> Option<Duration> {
        let seconds = self.connection.configuration().heartbeat();
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    pub(crate) async fn channel(&self) -> Result<Channel, LinkDown> {
        in_time("open a channel", self.connection.create_channel()).await
    }

    pub(crate) async fn confirming_channel(&self) -> Result<Channel, LinkDown> {
        let channel = self.channel().await?;
        in_time("turn confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }
}

/// Runs a request to the broker within [`REQUEST_TIMEOUT`].
pub(crate) async fn in_time<T>(
    what: &str,
    request: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, LinkDown> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(LinkDown(format!("could not {what}: {error}"))),
        Err(_) => {
            Err(LinkDown(format!("could not {what}: no answer within {} s", REQUEST_TIMEOUT.as_secs())))
        }
    }
}

/// A supervised connection; cheap to clone.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    name: String,
    url: String,
    /// The address without its password.
    shown: AmqpUrl,
    config: Amqp,
    plan: Plan,
    state: watch::Sender<LinkState>,
    runtime: Arc<AmqpRuntime>,
    /// The newest connection that was given up, and why.
    kick: watch::Sender<(u64, &'static str)>,
    closing: CancellationToken,
    metrics: Metrics,
    own_metrics: ConnectionMetrics,
}

impl Link {
    /// Starts to keep a connection under `name`, which the management UI shows.
    pub(crate) fn start(
        config: &Amqp,
        name: String,
        plan: Plan,
        runtime: &Arc<AmqpRuntime>,
        metrics: (&Metrics, ConnectionMetrics),
    ) -> Self {
        let url = with_parameters(config.url.expose(), config.heartbeat);
        let inner = Arc::new(Inner {
            name,
            url,
            shown: config.url.clone(),
            config: config.clone(),
            plan,
            state: watch::Sender::new(LinkState::Down("connecting".into())),
            runtime: Arc::clone(runtime),
            kick: watch::Sender::new((0, "")),
            closing: CancellationToken::new(),
            metrics: metrics.0.clone(),
            own_metrics: metrics.1,
        });
        runtime.handle().spawn(supervise(Arc::clone(&inner)));
        Self(inner)
    }

    pub(crate) fn runtime(&self) -> Handle {
        self.0.runtime.handle()
    }

    /// What this process counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.0.state.subscribe()
    }

    /// The live connection, or why there is none.
    pub(crate) fn up(&self) -> Result<Up, LinkDown> {
        match &*self.0.state.borrow() {
            LinkState::Up(up) if up.is_alive() => Ok(up.clone()),
            LinkState::Up(_) => Err(LinkDown(LOST.to_owned())),
            LinkState::Down(why) => Err(LinkDown(why.to_string())),
            LinkState::Closed => Err(LinkDown("closed".to_owned())),
        }
    }

    /// The live connection as soon as there is one.
    pub(crate) async fn wait_up(&self, deadline: Instant) -> Result<Up, LinkDown> {
        let mut watch = self.watch();
        loop {
            // Marked as seen before it is looked at: a change in between is then seen once more, not missed.
            let closed = matches!(*watch.borrow_and_update(), LinkState::Closed);
            match self.up() {
                Ok(up) => return Ok(up),
                Err(down) if closed => return Err(down),
                Err(down) => match timeout_at(deadline, watch.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Err(down),
                },
            }
        }
    }

    /// The state in a word or a sentence.
    pub(crate) fn describe(&self) -> String {
        match self.up() {
            Ok(up) if up.is_blocked() => "blocked by an alarm of the broker (memory or disk)".to_owned(),
            Ok(_) => "connected".to_owned(),
            Err(LinkDown(why)) => why,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.up().is_ok_and(|up| !up.is_blocked())
    }

    /// Declares the topology again: after a channel error that says something is missing.
    pub(crate) async fn repair(&self) -> Result<(), LinkDown> {
        declare(&self.up()?, &self.0.plan).await
    }

    /// Declares the topology again every now and then: a binding that someone deleted makes no noise.
    pub(crate) fn keep_repaired(&self) {
        let link = self.clone();
        self.runtime().spawn(async move {
            let mut due = interval(REPAIR);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            due.tick().await; // at once: declared already
            loop {
                tokio::select! {
                    () = link.0.closing.cancelled() => return,
                    _ = due.tick() => {}
                }
                if let Err(LinkDown(why)) = link.repair().await {
                    debug!(link = link.0.name, reason = why, "cannot declare the topology again");
                }
            }
        });
    }

    /// Declares `queue` and its company once more; an error where it is none of this process's queues.
    pub(crate) fn declares(&self, queue: &crate::job::QueueName) -> bool {
        self.0.plan.queues.contains(queue)
    }

    /// Gives that connection up, and makes a new one; a no-op if there is a newer one already.
    pub(crate) fn kick(&self, epoch: u64, why: &'static str) {
        self.0.kick.send_if_modified(|kicked| {
            let is_news = kicked.0 < epoch;
            if is_news {
                *kicked = (epoch, why);
            }
            is_news
        });
    }

    /// Closes the connection for good, without waiting for it.
    pub(crate) fn give_up(&self) {
        self.0.closing.cancel();
    }

    /// Closes the connection for good.
    pub(crate) async fn close(&self) {
        self.give_up();
        let mut watch = self.watch();
        let closed = watch.wait_for(|state| matches!(state, LinkState::Closed));
        drop(timeout(Duration::from_secs(5), closed).await);
    }
}

/// The address with the heartbeat asked for and [`FRAME_MAX`], unless it names them itself.
pub(super) fn with_parameters(url: &str, heartbeat: u16) -> String {
    let mut url = url.to_owned();
    for (name, value) in [("heartbeat", u32::from(heartbeat)), ("frame_max", FRAME_MAX)] {
        if !url.contains(&format!("{name}=")) {
            let separator = if url.contains('?') { '&' } else { '?' };
            url.push_str(&format!("{separator}{name}={value}"));
        }
    }
    url
}

/// Keeps the connection until the link is closed.
async fn supervise(inner: Arc<Inner>) {
    let mut pauses = Pauses::new();
    let mut epoch = 0;
    let mut again = false;
    let mut last_error = String::new();
    while !inner.closing.is_cancelled() {
        epoch += 1;
        let established = tokio::select! {
            established = establish(&inner, epoch) => established,
            () = inner.closing.cancelled() => break,
        };
        match established {
            Ok(up) => {
                last_error.clear();
                inner.own_metrics.made(std::mem::replace(&mut again, true));
                inner.state.send_replace(LinkState::Up(up.clone()));
                let began = Instant::now();
                let why = until_lost(&inner, &up).await;
                inner.own_metrics.lost();
                // What ends a connection at once, such as a message that cannot be parsed, is there the next time, too.
                if began.elapsed() >= LASTING {
                    pauses.reset();
                }
                if inner.closing.is_cancelled() {
                    drop(timeout(Duration::from_secs(2), up.connection.close(200, "bye".into())).await);
                    break;
                }
                warn!(link = inner.name, epoch, reason = why, "connection lost");
                inner.state.send_replace(LinkState::Down(LOST.into()));
            }
            Err(failed) => {
                let (LinkDown(why), told) = failed.told();
                // Once per cause: a broker that is away for an hour is one line, not a thousand.
                if why != last_error {
                    warn!(link = inner.name, reason = why, "cannot connect, trying again");
                    last_error = why;
                }
                inner.state.send_replace(LinkState::Down(told));
            }
        }
        let pause = pauses.next();
        drop(timeout(pause, inner.closing.cancelled()).await);
    }
    inner.state.send_replace(LinkState::Closed);
}

/// Why there is no connection that can be used.
enum Failed {
    /// There is none. Why names the broker's address, or a user.
    Connecting(LinkDown),
    /// The broker does not have what this process needs. Why names queues and exchanges, and says what to do.
    Declaring(LinkDown),
}

impl Failed {
    /// Why, and what may be told of it to anyone.
    fn told(self) -> (LinkDown, Cow<'static, str>) {
        match self {
            Self::Connecting(why) => (why, AWAY.into()),
            Self::Declaring(why) => {
                let told = why.0.clone().into();
                (why, told)
            }
        }
    }
}

async fn establish(inner: &Inner, epoch: u64) -> Result<Up, Failed> {
    let (up, version) = connect(inner, epoch).await.map_err(Failed::Connecting)?;
    declare(&up, &inner.plan).await.map_err(Failed::Declaring)?;
    info!(link = inner.name, epoch, broker = version.map(|broker| broker.version), "connected");
    Ok(up)
}

async fn connect(inner: &Inner, epoch: u64) -> Result<(Up, Option<BrokerVersion>), LinkDown> {
    let version = check_version(inner).await?;
    let properties = ConnectionProperties::default()
        .with_connection_name(inner.name.as_str().into())
        .with_client_property("product".into(), "Hopline".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let runtime = Runtime::tokio_with_handle(inner.runtime.handle());
    let tls = tls::config(&inner.config).map_err(LinkDown)?;
    let connecting = Connection::connect_with_config(&inner.url, properties, tls, runtime);
    let connection = match timeout(inner.config.connect_timeout, connecting).await {
        Ok(Ok(connection)) => Arc::new(connection),
        Ok(Err(error)) => return Err(LinkDown(refused(inner, &error))),
        Err(_) => {
            return Err(LinkDown(format!(
                "cannot connect: no answer within {:?}",
                inner.config.connect_timeout
            )));
        }
    };
    Ok((Up { connection, epoch }, version))
}

/// Why the broker did not take the connection, and what to do about it.
fn refused(inner: &Inner, error: &lapin::Error) -> String {
    let shown = &inner.shown;
    let text = error.to_string();
    if text.contains("ACCESS_REFUSED") || text.contains("NOT_ALLOWED") {
        let user = version::parse(&inner.url).map(|uri| uri.authority.userinfo.username).unwrap_or_default();
        return format!(
            "the broker refuses user `{user}` at {shown}: check user, password and virtual host in amqp.url \
             (HOPLINE_AMQP_URL); `hopline doctor` says more: {text}"
        );
    }
    format!("cannot connect to {shown}: {text}")
}

async fn check_version(inner: &Inner) -> Result<Option<BrokerVersion>, LinkDown> {
    let asked = version::ask(&inner.url, inner.config.connect_timeout).await;
    let found = asked.map_err(|why| LinkDown(format!("cannot connect to {}: {why}", inner.shown)))?;
    if let Some(found) = &found {
        found.check().map_err(LinkDown)?;
    }
    Ok(found)
}

async fn declare(up: &Up, plan: &Plan) -> Result<(), LinkDown> {
    let channel = up.channel().await?;
    let declared = timeout(REQUEST_TIMEOUT * 3, plan.declare(&channel)).await;
    // Closing is politeness; a refused declare has closed it already.
    drop(timeout(REQUEST_TIMEOUT, channel.close(200, "declared".into())).await);
    match declared {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(LinkDown(TopologyError::to_string(&error))),
        Err(_) => Err(LinkDown("cannot declare the topology: no answer".to_owned())),
    }
}

/// Whether an error ended a channel only (AMQP 0-9-1, "soft error").
fn is_of_a_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

/// Why this connection was given up, as soon as it is.
async fn given_up(kick: &mut watch::Receiver<(u64, &'static str)>, epoch: u64) -> &'static str {
    let why = kick.wait_for(|(of, _)| *of >= epoch).await.map(|kicked| kicked.1);
    match why {
        Ok(why) => why,
        // The sender lives as long as the link.
        Err(_) => std::future::pending().await,
    }
}

/// Waits until the connection is lost, given up or closed, and says why.
async fn until_lost(inner: &Inner, up: &Up) -> String {
    // lapin's listeners share events, so there is one: this.
    let mut events = Box::pin(up.connection.events_listener());
    let mut kick = inner.kick.subscribe();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = inner.closing.cancelled() => return "closed".to_owned(),
            why = given_up(&mut kick, up.epoch) => {
                drop(timeout(Duration::from_secs(1), up.connection.close(200, "starting over".into())).await);
                return format!("given up: {why}");
            }
            event = events.next() => match event {
                // One channel's end; those who use it see it.
                Some(Event::Error(error)) if is_of_a_channel(&error) => debug!(link = inner.name, %error, "a channel ended"),
                Some(Event::Error(error)) => return error.to_string(),
                Some(Event::ConnectionBlocked(reason)) => warn!(link = inner.name, reason, "blocked by the broker"),
                Some(Event::ConnectionUnblocked) => info!(link = inner.name, "no longer blocked"),
                Some(_) => {}
                None => return "connection ended".to_owned(),
            },
            _ = look.tick() => {
                if !up.is_alive() {
                    return format!("connection is {:?}", up.connection.status());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_what_it_says_itself() {
        for (url, expected) in [
            ("amqp://h", "amqp://h?heartbeat=10&frame_max=131072"),
            ("amqp://h/v?channel_max=9", "amqp://h/v?channel_max=9&heartbeat=10&frame_max=131072"),
            ("amqp://h?heartbeat=5", "amqp://h?heartbeat=5&frame_max=131072"),
            ("amqp://h?frame_max=8192&heartbeat=5", "amqp://h?frame_max=8192&heartbeat=5"),
        ] {
            assert_eq!(with_parameters(url, 10), expected);
        }
    }
}
