//! Is the node ready: does it, and not some other broker, take connections and logins?

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Ports, USER};

const PAUSE: Duration = Duration::from_millis(200);
const EACH: Duration = Duration::from_secs(5);
const HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";

/// What is still missing, for the message when patience ends.
#[derive(Debug, Default)]
pub(super) struct Missing(Mutex<&'static str>);

impl Missing {
    fn set(&self, what: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Deserialize)]
struct Overview {
    listeners: Vec<Listener>,
}

#[derive(Deserialize)]
struct Listener {
    protocol: String,
    port: u16,
}

/// Completes when the node is ready. Without end otherwise: the caller brings the deadline.
///
/// A broker that took one of the ports a moment before would answer too, but it neither knows this password nor
/// says that it listens on the other port.
pub(super) async fn wait(ports: &Ports, password: &str, missing: &Missing) {
    let client = crate::cli::local_http(EACH);
    loop {
        match &client {
            Err(_) => missing.set("no HTTP client"),
            Ok(client) if !is_ours(client, ports, password).await => {
                missing.set("the management API is silent");
            }
            Ok(_) if !greets(ports.amqp).await => missing.set("the AMQP port does not answer"),
            Ok(_) => return,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn is_ours(client: &reqwest::Client, ports: &Ports, password: &str) -> bool {
    let url = format!("http://127.0.0.1:{}/api/overview", ports.management);
    let answer =
        async { client.get(url).basic_auth(USER, Some(password)).send().await?.json::<Overview>().await };
    answer.await.is_ok_and(|overview: Overview| {
        overview.listeners.iter().any(|listener| listener.protocol == "amqp" && listener.port == ports.amqp)
    })
}

/// Whether the protocol header is answered by a method frame (`connection.start`).
async fn greets(port: u16) -> bool {
    let talk = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(HEADER).await?;
        stream.read_u8().await
    };
    matches!(tokio::time::timeout(EACH, talk).await, Ok(Ok(1)))
}
