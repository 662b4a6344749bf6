//! What broker answers: product and version, read from `connection.start`.
//!
//! lapin keeps no server properties, and the management API is a plugin. So one extra handshake is made, over
//! plain TCP, and dropped after the server's first frame (AMQP 0.9.1, 1.4.2.1 `connection.start`). Over TLS the
//! version stays unknown.

use std::{io, time::Duration};

use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The oldest RabbitMQ that has what we need: streams, and quorum queues with message TTL and at-least-once
/// dead-lettering.
const OLDEST: (u32, u32) = (3, 10);
/// A frame longer than this before login is no AMQP server's.
const FRAME_MAX: usize = 64 * 1024;

/// The broker at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokerVersion {
    pub(crate) product: String,
    pub(crate) version: String,
}

impl BrokerVersion {
    /// What is wrong with this broker, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.product != "RabbitMQ" {
            return Err(format!(
                "the broker is {} {}, but Hopline needs RabbitMQ",
                self.product, self.version
            ));
        }
        let mut parts = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if found < OLDEST {
            let (major, minor) = OLDEST;
            return Err(format!(
                "RabbitMQ {} is too old: Hopline needs {major}.{minor} or newer",
                self.version
            ));
        }
        Ok(())
    }
}

/// Asks the broker; `None` over TLS, and when it does not name itself.
///
/// Asked before each attempt to connect: lapin gives a connection a thread, which stays for as long as a peer
/// keeps the socket open and says nothing. Such a peer is found out here, where nothing is left behind.
///
/// # Errors
/// A sentence: nobody listens, or nobody answers within `deadline`.
pub(crate) async fn ask(url: &str, deadline: Duration) -> Result<Option<BrokerVersion>, String> {
    let uri = parse(url)?;
    let address = (uri.authority.host.clone(), uri.authority.port);
    if uri.scheme != AMQPScheme::AMQP {
        return Ok(None);
    }
    let start = match timeout(deadline, first_frame(address)).await {
        Ok(Ok(start)) => start,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer within {deadline:?}")),
    };
    Ok(named(&start))
}

/// What a broker calls itself in its first frame.
pub(super) fn named(start: &[u8]) -> Option<BrokerVersion> {
    let named = |name| property(start, name);
    named("product").zip(named("version")).map(|(product, version)| BrokerVersion { product, version })
}

/// Reads an address.
///
/// # Errors
/// A sentence that says what to do.
pub(crate) fn parse(url: &str) -> Result<AMQPUri, String> {
    let wrong = |error| {
        format!(
            "amqp.url (HOPLINE_AMQP_URL) is no AMQP address: {error}; percent-encode what is special in user, password and virtual host"
        )
    };
    let uri: AMQPUri = url.parse().map_err(wrong)?;
    // lapin's parser takes any for localhost.
    if has_ipv6(url) {
        return Err(wrong(
            "an IPv6 address cannot be written here; give a name that resolves to it".to_owned(),
        ));
    }
    if uri.authority.host.is_empty() { Err(wrong("it names no host".to_owned())) } else { Ok(uri) }
}

/// Whether the host is an IPv6 address in brackets.
fn has_ipv6(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().is_some_and(|host| host.starts_with('['))
}

pub(super) async fn first_frame(address: (String, u16)) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let mut head = [0; 7]; // type, channel, size
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    if head[0] != 1 || size > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// The text of a server property: its name as a short string, `S`, its length, its bytes.
fn property(start: &[u8], name: &str) -> Option<String> {
    let mut mark = vec![u8::try_from(name.len()).ok()?];
    mark.extend_from_slice(name.as_bytes());
    mark.push(b'S');
    let at = start.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let length = u32::from_be_bytes(start.get(at..at + 4)?.try_into().ok()?) as usize;
    let bytes = start.get(at + 4..(at + 4).checked_add(length)?)?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_found_and_hostile_ones_are_not() {
        let mut frame =
            b"junk\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8".to_vec();
        assert_eq!(property(&frame, "product").as_deref(), Some("RabbitMQ"));
        assert_eq!(property(&frame, "version").as_deref(), Some("3.10.8"));
        assert_eq!(property(&frame, "cluster"), None);
        frame.truncate(frame.len() - 1);
        assert_eq!(property(&frame, "version"), None, "shorter than it says");
        assert_eq!(property(b"\x07versionS\xff\xff\xff\xff", "version"), None);
    }

    #[test]
    fn ipv6_addresses_are_refused() {
        for bad in
            ["amqp://[::1]:5672/%2f", "amqp://guest:guest@[2001:db8::1]", "amqps://u:p@[::1]/v?heartbeat=5"]
        {
            assert!(parse(bad).unwrap_err().contains("IPv6"), "{bad}");
        }
        for good in
            ["amqp://guest:%5b@localhost:5672/%2f", "amqp://127.0.0.1/[v]", "amqp://u:p@rabbit.example"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn old_and_other_brokers_are_refused() {
        let broker =
            |product: &str, version: &str| BrokerVersion { product: product.into(), version: version.into() };
        for good in ["3.10.8", "3.13.0", "4.0.5", "4.3.1-rc.1"] {
            assert_eq!(broker("RabbitMQ", good).check(), Ok(()));
        }
        for bad in ["3.9.13", "3.8.2", "2.0", ""] {
            assert!(broker("RabbitMQ", bad).check().is_err(), "{bad}");
        }
        assert!(broker("LavinMQ", "2.0.0").check().is_err());
    }
}
