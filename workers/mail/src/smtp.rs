//! Connections to the server, and sending by them.
//!
//! The protocol is lettre's. Its pool is not used: its asynchronous connections wait for answers without a limit, and one
//! whose mail was given up comes back into the pool in the middle of a conversation. Here a conversation as a whole has a
//! time, and only a connection whose mail was taken is kept for the next one; every other is closed.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lettre::{
    Message,
    transport::smtp::{
        Error,
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, Certificate, TlsParameters},
        extension::ClientId,
    },
};
use thiserror::Error;
use tokio::time::{Instant, timeout};

use crate::settings::{SettingsError, Smtp, Tls, text_of};

/// How long a connection is kept for the next mail; servers hang up after some minutes.
const IDLE: Duration = Duration::from_secs(30);

/// A mail that was not sent, as far as we know.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SmtpError {
    /// There is no connection that mail can be sent by: TCP, TLS, the greeting or the login failed.
    #[error("cannot connect to the mail server: {0}")]
    Connect(#[source] Error),
    /// The server refused the mail, or the connection broke.
    #[error("{0}")]
    Send(#[source] Error),
    /// It took too long.
    #[error("the mail server took more than {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Sends mail by one server.
pub struct Mailer {
    server: (String, u16),
    tls: Tls,
    parameters: Option<TlsParameters>,
    hello: ClientId,
    credentials: Option<Credentials>,
    connect_timeout: Duration,
    timeout: Duration,
    most: usize,
    idle: Mutex<Vec<(AsyncSmtpConnection, Instant)>>,
}

impl Mailer {
    /// One for this server. Nothing is asked of it yet.
    ///
    /// # Errors
    /// The certificates of authorities cannot be read, or the name cannot be one of a certificate.
    pub fn new(smtp: &Smtp) -> Result<Self, SettingsError> {
        let parameters = match smtp.tls {
            Tls::None => None,
            Tls::StartTls | Tls::Tls => Some(parameters(smtp)?),
        };
        let credentials = smtp.user.clone().zip(smtp.password.clone());
        Ok(Self {
            server: (smtp.host.clone(), smtp.port()),
            tls: smtp.tls,
            parameters,
            hello: smtp.hello.clone().map_or_else(ClientId::default, ClientId::Domain),
            credentials: credentials.map(|(user, password)| Credentials::new(user, password.0)),
            connect_timeout: smtp.connect_timeout,
            timeout: smtp.timeout,
            most: smtp.pool,
            idle: Mutex::default(),
        })
    }

    /// Sends a message to all its recipients, or to none; what the server said.
    ///
    /// # Errors
    /// [`SmtpError`]. After a timeout, or where the connection broke, it may have been sent.
    pub async fn send(&self, message: &Message) -> Result<String, SmtpError> {
        // Dropped, the connection is closed.
        timeout(self.timeout, self.converse(message)).await.unwrap_or(Err(SmtpError::Timeout(self.timeout)))
    }

    async fn converse(&self, message: &Message) -> Result<String, SmtpError> {
        let mut connection = self.connection().await?;
        let sent = connection.send(message.envelope(), &message.formatted()).await;
        let response = sent.map_err(SmtpError::Send)?;
        let said = response.message().collect::<Vec<_>>().join(" ");
        self.keep(connection);
        Ok(said)
    }

    /// One that was kept and still answers, or a new one.
    async fn connection(&self) -> Result<AsyncSmtpConnection, SmtpError> {
        while let Some((mut connection, since)) = self.take() {
            if since.elapsed() < IDLE && connection.test_connected().await {
                return Ok(connection);
            }
        }
        self.connect().await.map_err(SmtpError::Connect)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let (host, port) = (self.server.0.as_str(), self.server.1);
        let from_the_start = self.parameters.clone().filter(|_| self.tls == Tls::Tls);
        let limit = Some(self.connect_timeout);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1((host, port), limit, &self.hello, from_the_start, None)
                .await?;
        if let (Tls::StartTls, Some(parameters)) = (self.tls, &self.parameters) {
            // Fails where the server does not offer it: neither password nor mail goes out in the clear.
            connection.starttls(parameters.clone(), &self.hello).await?;
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }

    fn take(&self) -> Option<(AsyncSmtpConnection, Instant)> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.most {
            idle.push((connection, Instant::now()));
        }
    }
}

fn parameters(smtp: &Smtp) -> Result<TlsParameters, SettingsError> {
    let invalid = |error: Error| SettingsError::Invalid(vec![format!("smtp: {error}")]);
    let mut builder = TlsParameters::builder(smtp.host.clone());
    if let Some(path) = &smtp.ca {
        builder =
            builder.add_root_certificate(Certificate::from_pem(text_of(path)?.as_bytes()).map_err(invalid)?);
    }
    builder.build().map_err(invalid)
}
