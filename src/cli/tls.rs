//! HTTP clients of the command line: which certificates they trust.
//!
//! Plain HTTP needs none, so that a machine without any can ask its own processes.

use std::{fs, sync::Arc};

use anyhow::Context;
use reqwest::{Certificate, ClientBuilder};
use rustls::{ClientConfig, RootCertStore, crypto::ring};

/// Names a file of certificates (PEM) to trust instead of the system's.
const CA_FILE: &str = "HOPLINE_CA_FILE";

/// A client for plain HTTP.
pub(super) fn plain() -> ClientBuilder {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        // ring has them.
        .map(|builder| builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    match config {
        Ok(config) => ClientBuilder::new().tls_backend_preconfigured(config),
        Err(_) => ClientBuilder::new(),
    }
}

/// A client for HTTPS: it trusts what `HOPLINE_CA_FILE` names, else what the system trusts.
pub(super) fn secure() -> anyhow::Result<ClientBuilder> {
    crate::crypto::choose();
    let Some(path) = std::env::var_os(CA_FILE) else { return Ok(ClientBuilder::new()) };
    let shown = path.display().to_string();
    let pem = fs::read(&path).with_context(|| format!("cannot read {shown}, which {CA_FILE} names"))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).ok().filter(|certificates| !certificates.is_empty());
    let certificates =
        certificates.with_context(|| format!("{shown}, which {CA_FILE} names, has no certificate in PEM"))?;
    Ok(ClientBuilder::new().tls_certs_only(certificates))
}
