//! Which cryptography this process's TLS uses: ring's, as `amqps` does.

/// Chooses it, once: no HTTP client can be made before. What somebody else has chosen stays.
pub(crate) fn choose() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
