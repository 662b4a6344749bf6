//! Addresses to listen on: `127.0.0.1:8080`.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// Reads an address. What people write instead is answered with what to write.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    match Value::deserialize(from)? {
        Value::String(text) => parse(&text).map_err(de::Error::custom),
        // A port by itself is a number to who reads the variables.
        other => parse(&other.to_string()).map_err(de::Error::custom),
    }
}

/// The same where it may be absent.
pub(super) fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    match Option::<Value>::deserialize(from)? {
        None | Some(Value::Null) => Ok(None),
        Some(value) => deserialize(value).map(Some).map_err(de::Error::custom),
    }
}

fn parse(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.trim().parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let advice = match (host, port.parse::<u16>()) {
        (_, Err(_)) => "write an IP address and a port, as in 127.0.0.1:8080 or [::1]:8080".to_owned(),
        ("", Ok(port)) => {
            format!("write the host, too: 127.0.0.1:{port} for this machine, 0.0.0.0:{port} for all")
        }
        ("localhost", Ok(port)) => format!("write the host as an IP address: 127.0.0.1:{port}"),
        ("*", Ok(port)) => format!("write 0.0.0.0:{port} for all addresses"),
        _ => "write the host as an IP address, as in 127.0.0.1:8080 or [::1]:8080; 0.0.0.0 stands for all"
            .to_owned(),
    };
    let shown: String = text.chars().take(60).collect();
    Err(format!("{shown:?} is no address to listen on: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_an_ip_address_and_a_port() {
        for good in ["127.0.0.1:8080", "[::1]:0", " 0.0.0.0:80 "] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, advice) in [
            ("8080", "127.0.0.1:8080 for this machine"),
            (":8080", "0.0.0.0:8080 for all"),
            ("localhost:9000", "127.0.0.1:9000"),
            ("*:80", "0.0.0.0:80 for all"),
            ("jobs.example.org:80", "as an IP address"),
            ("127.0.0.1", "a port, as in"),
            ("127.0.0.1:99999", "a port, as in"),
            ("", "a port, as in"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(advice), "{bad}: {error}");
        }
    }
}
