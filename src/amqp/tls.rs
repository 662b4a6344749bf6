//! TLS to the broker: whom to trust, and which certificate to show.

use std::{fs, path::Path};

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};

use crate::config::Amqp;

/// Reads the files that the configuration names. They are read for each connection: certificates are renewed.
///
/// # Errors
/// A sentence: which file cannot be read.
pub(super) fn config(config: &Amqp) -> Result<OwnedTLSConfig, String> {
    let read = |name: &str, path: &Path| {
        fs::read(path).map_err(|error| format!("cannot read {} ({name}): {error}", path.display()))
    };
    let cert_chain = match &config.ca {
        Some(path) => {
            let text = String::from_utf8(read("amqp.ca", path)?);
            Some(text.map_err(|_| format!("{} (amqp.ca) is no PEM", path.display()))?)
        }
        None => None,
    };
    let identity = match (&config.client_cert, &config.client_key) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 {
            pem: read("amqp.client_cert", cert)?,
            key: read("amqp.client_key", key)?,
        }),
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

/// Whether there is anything that an address cannot say.
pub(super) fn is_asked_for(config: &Amqp) -> bool {
    config.ca.is_some() || config.client_cert.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_is_named_with_its_key() {
        let plain = Amqp::default();
        let found = config(&plain).unwrap();
        assert!(found.identity.is_none() && found.cert_chain.is_none() && !is_asked_for(&plain));
        let none = Some("/nonexistent/x.pem".into());
        let ca = Amqp { ca: none.clone(), ..Amqp::default() };
        let client = Amqp { client_cert: none.clone(), client_key: none, ..Amqp::default() };
        for (amqp, name) in [(ca, "amqp.ca"), (client, "amqp.client_cert")] {
            assert!(is_asked_for(&amqp));
            let error = config(&amqp).unwrap_err();
            assert!(error.contains(name) && error.contains("/nonexistent/x.pem"), "{error}");
        }
    }
}
