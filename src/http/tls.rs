//! TLS for the HTTP front: which certificate it shows, and the handshake. The cryptography is ring's, as for `amqps`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::config;

/// Longest handshake; `http.read_timeout` where that is shorter.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why there is no TLS.
#[derive(Debug, Error)]
#[error("{path} is of no use as {what}: {detail}")]
pub struct TlsError {
    /// What the file should be.
    what: &'static str,
    /// Which file.
    path: PathBuf,
    /// What is wrong with it.
    detail: String,
}

/// Takes TLS connections; cheap to clone.
#[derive(Clone)]
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    patience: Duration,
}

impl Tls {
    /// What the configuration asks for; none: plain HTTP.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn open(config: &config::Http) -> Result<Option<Self>, TlsError> {
        let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
        let acceptor = TlsAcceptor::from(Arc::new(load(cert, key)?));
        Ok(Some(Self { acceptor, patience: HANDSHAKE.min(config.read_timeout) }))
    }

    /// Makes the handshake.
    ///
    /// # Errors
    /// When the other side speaks something else, or too slowly.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        timeout(self.patience, self.acceptor.accept(stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn load(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let wrong = |what, path: &Path, detail: String| TlsError { what, path: path.to_owned(), detail };
    let bad_cert = |detail: String| wrong("the certificate of the server (http.tls_cert)", cert, detail);
    let bad_key = |detail: String| wrong("the key of its certificate (http.tls_key)", key, detail);
    let read = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
    let chain: Vec<CertificateDer<'static>> = read.map_err(|error| bad_cert(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad_cert("it has no certificate in PEM".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| bad_key(error.to_string()))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad_cert(error.to_string()))?;
    let mut config = builder
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| bad_key(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::access::file_tests::Place;

    /// A certificate for `localhost` that signs itself, and its key, in files.
    pub(crate) fn made() -> (Place, config::Http, String) {
        let place = Place::new();
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let (cert, key) = (place.0.join("cert.pem"), place.0.join("key.pem"));
        fs::write(&cert, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let config = config::Http { tls_cert: Some(cert), tls_key: Some(key), ..config::Http::default() };
        (place, config, made.cert.pem())
    }

    #[test]
    fn files_that_are_of_no_use_are_named() {
        let (place, good, _) = made();
        assert!(Tls::open(&good).unwrap().is_some());
        assert!(Tls::open(&config::Http::default()).unwrap().is_none());
        let empty = place.0.join("empty");
        fs::write(&empty, "").unwrap();
        let (other, config, _) = made();
        let file = |config: &config::Http, name: &str| {
            let files = [&config.tls_cert, &config.tls_key];
            files.into_iter().flatten().find(|path| path.ends_with(name)).unwrap().clone()
        };
        let (cert, key) = (file(&good, "cert.pem"), file(&good, "key.pem"));
        for (cert, key, named) in [
            (&place.0.join("none"), &key, "none"),
            (&empty, &key, "empty"),
            (&cert, &empty, "empty"),
            // Another certificate's.
            (&cert, &file(&config, "key.pem"), "key.pem"),
        ] {
            let error = load(cert, key).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        drop(other);
    }
}
