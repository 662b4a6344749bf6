//! An operator's connection: looks at the broker, tells apart why it cannot, makes single objects, and finds out what a
//! login may do without doing it.

use std::{sync::Arc, time::Duration};

use async_rs::Runtime;
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    protocol::AMQPErrorKind,
    types::{AMQPValue, FieldTable},
    uri::AMQPScheme,
};
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use super::{
    connection::{AmqpRuntime, REQUEST_TIMEOUT, with_parameters},
    message::short,
    tls,
    topology::{Object, TopologyError},
    version::{self, BrokerVersion},
};
use crate::config::{Amqp, AmqpUrl};

/// The parts of the broker's address, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) vhost: String,
}

impl Target {
    /// # Errors
    /// A sentence that says what is wrong with the address.
    pub(crate) fn of(url: &AmqpUrl) -> Result<Self, String> {
        let uri = version::parse(url.expose())?;
        let login = uri.authority.userinfo;
        Ok(Self {
            host: uri.authority.host,
            port: uri.authority.port,
            tls: uri.scheme != AMQPScheme::AMQP,
            user: login.username,
            password: login.password,
            vhost: uri.vhost,
        })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Why there is no connection: each is mended in another way.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ConnectError {
    /// `amqp.url` is no address.
    #[error("{0}")]
    Address(String),
    /// The host has no address.
    #[error("the name {host} is not known: {reason}")]
    Name { host: String, reason: String },
    /// Nobody listens, or nobody lets us through.
    #[error("nobody answers at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    /// TLS on one side only, or no AMQP.
    #[error("{address} does not speak {wanted}: {detail}")]
    Protocol { address: String, wanted: &'static str, detail: String },
    /// TLS failed, as by a certificate that is not trusted.
    #[error("TLS with {address} fails: {reason}")]
    Tls { address: String, reason: String },
    /// Wrong user or password.
    #[error("the broker does not know this user and password ({shown})")]
    Login { shown: String },
    /// No such virtual host, or the user may not enter it.
    #[error("the broker does not let this user into the virtual host `{vhost}`: {reason}")]
    VirtualHost { vhost: String, reason: String },
    /// Another reason.
    #[error("cannot connect to {shown}: {reason}")]
    Other { shown: String, reason: String },
}

/// Why the broker did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    /// It is not there.
    #[error("it is not there")]
    Missing,
    /// The login may not; the broker's words.
    #[error("{0}")]
    Forbidden(String),
    /// It is there with other arguments; the broker's words.
    #[error("{0}")]
    Differs(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What a login is asked whether it may do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// Declare a queue of this name, which is exclusive and goes with its channel; nobody else has one.
    Configure(String),
    /// Declare an object that is there, as it is described.
    Declare(Object),
    /// Publish to an exchange. `own` is a queue that it may declare.
    Write { own: String, exchange: String },
    /// Consume a queue.
    Read(String),
    /// Bind a queue of one's own to an exchange.
    Bind { own: String, exchange: String },
    /// Make this binding. Tried with the key `other`, by which nothing is bound.
    BindAs { binding: Object, other: String },
}

/// A connection for looking. Dropped, it is closed.
pub(crate) struct Probe {
    connection: Connection,
    _runtime: Arc<AmqpRuntime>,
}

/// Asks who listens at the broker's address, by TCP and, without TLS, by the first frame.
pub(crate) async fn greet(config: &Amqp) -> Result<Option<BrokerVersion>, ConnectError> {
    let target = Target::of(&config.url).map_err(ConnectError::Address)?;
    let address = target.address();
    let resolving = async {
        tokio::net::lookup_host((target.host.as_str(), target.port))
            .await
            .map(|mut found| found.next().is_some())
    };
    let resolved = timeout(config.connect_timeout, resolving).await;
    let reason = match resolved {
        Ok(Ok(true)) => None,
        Ok(Ok(false)) => Some("it has no address".to_owned()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {:?}", config.connect_timeout)),
    };
    if let Some(reason) = reason {
        return Err(ConnectError::Name { host: target.host, reason });
    }
    let place = (target.host.clone(), target.port);
    match timeout(config.connect_timeout, TcpStream::connect(place)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(ConnectError::Unreachable { address, reason: error.to_string() }),
        Err(_) => {
            let reason = format!("no answer within {:?}", config.connect_timeout);
            return Err(ConnectError::Unreachable { address, reason });
        }
    }
    let hello = timeout(config.connect_timeout, version::first_frame((target.host, target.port))).await;
    match (target.tls, hello) {
        (false, Ok(Ok(start))) => Ok(version::named(&start)),
        (false, Ok(Err(error))) => Err(ConnectError::Protocol {
            address,
            wanted: "AMQP without TLS",
            detail: format!("{error}; is it the TLS port, which wants amqps:// ?"),
        }),
        (false, Err(_)) => Err(ConnectError::Protocol {
            address,
            wanted: "AMQP without TLS",
            detail: format!("it says nothing within {:?}", config.connect_timeout),
        }),
        // An AMQP frame where TLS was expected.
        (true, Ok(Ok(_))) => Err(ConnectError::Protocol {
            address,
            wanted: "TLS",
            detail: "it answers AMQP without TLS there; that port wants amqp://".to_owned(),
        }),
        (true, _) => Ok(None),
    }
}

impl Probe {
    /// Connects, and says exactly why not.
    pub(crate) async fn connect(config: &Amqp, name: &str) -> Result<Self, ConnectError> {
        let target = Target::of(&config.url).map_err(ConnectError::Address)?;
        let shown = config.url.to_string();
        let other = |reason: String| ConnectError::Other { shown: shown.clone(), reason };
        let runtime = AmqpRuntime::start().map_err(|error| other(error.to_string()))?;
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let url = with_parameters(config.url.expose(), config.heartbeat);
        let handle = Runtime::tokio_with_handle(runtime.handle());
        // As processes do: an authority of one's own, a certificate for the broker.
        let tls =
            tls::config(config).map_err(|reason| ConnectError::Tls { address: target.address(), reason })?;
        let connecting = Connection::connect_with_config(&url, properties, tls, handle);
        let connection = match timeout(config.connect_timeout, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(refused(&error, &target, shown)),
            Err(_) => return Err(other(format!("no answer within {:?}", config.connect_timeout))),
        };
        Ok(Self { connection, _runtime: runtime })
    }

    async fn channel(&self) -> Result<Channel, Refusal> {
        let mut failed = String::new();
        // A channel's number is given out again at once, and what closed the old one may be told to the new one.
        for _ in 0..5 {
            match timeout(REQUEST_TIMEOUT, self.connection.create_channel()).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(error)) => failed = error.to_string(),
                Err(_) => failed = "no answer".to_owned(),
            }
        }
        Err(Refusal::Other(format!("cannot open a channel: {failed}")))
    }

    /// Runs a request on a channel of its own: a refusal closes it.
    async fn ask(
        &self,
        request: impl AsyncFnOnce(&Channel) -> Result<(), lapin::Error>,
    ) -> Result<(), Refusal> {
        let channel = self.channel().await?;
        let answer = timeout(REQUEST_TIMEOUT, request(&channel)).await;
        drop(timeout(REQUEST_TIMEOUT, channel.close(200, "asked".into())).await);
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Refusal::of(&error)),
            Err(_) => Err(Refusal::Other(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }

    /// Looks whether an object is there. A binding cannot be looked for.
    pub(crate) async fn look(&self, object: &Object) -> Result<(), Refusal> {
        self.ask(async |channel| object.look(channel).await).await
    }

    /// Makes an object, or finds that it is there just so.
    pub(crate) async fn declare(&self, object: &Object) -> Result<(), Refusal> {
        self.ask(async |channel| object.declare(channel).await).await
    }

    /// Whether the login may do something. Nothing stays of it, no message is published or taken.
    pub(crate) async fn may(&self, act: &Act) -> Result<(), Refusal> {
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let none = FieldTable::default;
        match act {
            Act::Configure(name) => {
                self.ask(async |channel| {
                    channel.queue_declare(short(name), own, none()).await?;
                    forget(channel, name).await
                })
                .await
            }
            Act::Declare(object) => {
                self.look(object).await?;
                self.declare(object).await
            }
            // Who declares a queue that dead-letters to an exchange must be allowed to write there.
            Act::Write { own: name, exchange } => {
                let mut arguments = none();
                let to = AMQPValue::LongString(exchange.as_str().into());
                arguments.insert("x-dead-letter-exchange".into(), to);
                self.ask(async |channel| {
                    channel.queue_declare(short(name), own, arguments).await?;
                    forget(channel, name).await
                })
                .await
            }
            // The right is looked at before the arguments are: an argument that cannot be ends it before a message comes.
            Act::Read(queue) => {
                let mut arguments = none();
                arguments.insert("x-priority".into(), AMQPValue::LongString("looking".into()));
                let options = BasicConsumeOptions::default();
                let asked = self
                    .ask(async |channel| {
                        channel.basic_consume(short(queue), "".into(), options, arguments).await.map(drop)
                    })
                    .await;
                match asked {
                    Err(Refusal::Differs(_)) => Ok(()),
                    other => other,
                }
            }
            Act::Bind { own: name, exchange } => {
                let options = QueueBindOptions::default();
                self.ask(async |channel| {
                    channel.queue_declare(short(name), own, none()).await?;
                    channel.queue_bind(short(name), short(exchange), short(name), options, none()).await?;
                    forget(channel, name).await
                })
                .await
            }
            // To take away what is not there needs the same rights, and changes nothing.
            Act::BindAs { binding, other } => {
                self.ask(async |channel| binding.unbind(channel, other).await).await
            }
        }
    }

    pub(crate) async fn close(self) {
        drop(timeout(Duration::from_secs(2), self.connection.close(200, "bye".into())).await);
    }
}

/// Deletes a queue of one's own: the next act that declares one under its name would only find it.
async fn forget(channel: &Channel, name: &str) -> Result<(), lapin::Error> {
    channel.queue_delete(short(name), QueueDeleteOptions::default()).await.map(drop)
}

impl Refusal {
    fn of(error: &lapin::Error) -> Self {
        match TopologyError::from_lapin(error) {
            TopologyError::Differs { detail } => Self::Differs(detail),
            TopologyError::Forbidden { detail } => Self::Forbidden(detail),
            TopologyError::Missing { .. } => Self::Missing,
            TopologyError::Other(text) => Self::Other(text),
        }
    }
}

fn refused(error: &lapin::Error, target: &Target, shown: String) -> ConnectError {
    let text = error.to_string();
    if let ErrorKind::ProtocolError(amqp) = error.kind() {
        let reason = amqp.get_message().to_string();
        // Only an error of the whole connection is about the login; one of a channel cannot be before there is one.
        let of_connection = matches!(amqp.kind(), AMQPErrorKind::Hard(_));
        if of_connection && reason.contains("NOT_ALLOWED") {
            return ConnectError::VirtualHost { vhost: target.vhost.clone(), reason };
        }
        if reason.contains("ACCESS_REFUSED") {
            return ConnectError::Login { shown };
        }
    }
    if text.contains("ACCESS_REFUSED") {
        return ConnectError::Login { shown };
    }
    if text.contains("NOT_ALLOWED") {
        return ConnectError::VirtualHost { vhost: target.vhost.clone(), reason: text };
    }
    if target.tls {
        return ConnectError::Tls { address: target.address(), reason: text };
    }
    ConnectError::Other { shown, reason: text }
}
