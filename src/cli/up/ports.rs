//! Ports nobody listens on, all of them on loopback.
//!
//! A port that is free now may be taken a moment later: who uses it must be ready to ask again.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

use thiserror::Error;

/// How far from the usual port the next free one is looked for.
const REACH: u16 = 200;
/// Below the range from which systems take the ports of outgoing connections.
const ANY: std::ops::Range<u16> = 20_000..32_000;

/// No port is free.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PortError {
    /// Every one that was tried is taken.
    #[error("no free port from {first} to {last} on {host}: end what listens there")]
    AllTaken {
        /// The address.
        host: IpAddr,
        /// The first one tried.
        first: u16,
        /// The last one tried.
        last: u16,
    },
    /// The address cannot be listened on at all.
    #[error("cannot listen on {host}")]
    Refused {
        /// The address.
        host: IpAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The preferred port or the next free one.
pub(crate) fn preferred(host: IpAddr, port: u16, taken: &[u16]) -> Result<u16, PortError> {
    let last = port.saturating_add(REACH);
    for port in port..=last {
        if !taken.contains(&port) && is_free(host, port)? {
            return Ok(port);
        }
    }
    Err(PortError::AllTaken { host, first: port, last })
}

/// Any free port on loopback.
pub(crate) fn any(taken: &[u16]) -> Result<u16, PortError> {
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let count = ANY.end - ANY.start;
    // Starting at random keeps two processes that look at the same time apart.
    let random =
        uuid::Uuid::now_v7().as_bytes()[14..].iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte));
    for step in 0..count {
        let port = ANY.start + (random % count + step) % count;
        if !taken.contains(&port) && is_free(host, port)? {
            return Ok(port);
        }
    }
    Err(PortError::AllTaken { host, first: ANY.start, last: ANY.end - 1 })
}

fn is_free(host: IpAddr, port: u16) -> Result<bool, PortError> {
    match TcpListener::bind(SocketAddr::new(host, port)) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
            Ok(false)
        }
        Err(source) => Err(PortError::Refused { host, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over() {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind((host, any(&[]).unwrap())).unwrap();
        let port = listener.local_addr().unwrap().port();
        let next = preferred(host, port, &[port + 1]).unwrap();
        assert!(next > port + 1);
        assert_ne!(any(&[]).unwrap(), port);
    }
}
