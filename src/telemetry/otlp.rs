//! Traces, exported to a collector by OTLP over HTTP (protobuf).
//!
//! A thread of its own takes finished spans from a bounded queue, in batches, and sends them on a runtime of its own:
//! however busy the handlers are, they do not hold it up, and a collector that is away or hangs holds up nobody. What
//! does not fit into the queue, or is not taken in time, is dropped. That it cannot be sent is said once, and again when
//! it can.
//!
//! Settings that the configuration leaves open are OpenTelemetry's own variables (`docs/tracing.md`).

use std::{
    env,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry::{InstrumentationScope, KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use reqwest::{Url, header::RETRY_AFTER};
use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

use crate::{config, job::JobId};

/// Longest wait for a collector's answer, where `OTEL_EXPORTER_OTLP_TIMEOUT` says nothing: as the specification has it.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer of a collector, in bytes.
const ANSWER_MAX: usize = 64 << 10;
/// Longest time for the rest to be sent when the process ends.
const CLOSE: Duration = Duration::from_secs(3);
/// Where a collector is whom `OTEL_TRACES_EXPORTER` asks for, and nobody names.
const LOCAL: &str = "http://localhost:4318";

/// Traces that are exported.
pub(super) struct Export {
    provider: SdkTracerProvider,
    shown: String,
}

impl Export {
    /// Starts to export, if the configuration or the environment asks for it.
    ///
    /// # Errors
    /// A sentence: what is wrong with what they say.
    pub(super) fn start(settings: &config::Telemetry) -> Result<Option<Self>, String> {
        let Some(url) = endpoint(settings, variable)? else { return Ok(None) };
        let collector = Collector::new(&url)?;
        let shown = collector.shown.clone();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_http_client(collector)
            .build()
            .map_err(|error| error.to_string())?;
        let mut provider =
            SdkTracerProvider::builder().with_resource(resource(settings)).with_batch_exporter(exporter);
        if let Some(ratio) = settings.sample_ratio {
            provider =
                provider.with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))));
        }
        Ok(Some(Self { provider: provider.build(), shown }))
    }

    /// Says where spans go.
    pub(super) fn say(&self) {
        info!(collector = self.shown, "traces are exported");
    }

    /// Who begins Hopline's own spans.
    pub(super) fn own(&self) -> SdkTracer {
        let scope = InstrumentationScope::builder("hopline").with_version(env!("CARGO_PKG_VERSION")).build();
        self.provider.tracer_with_scope(scope)
    }

    /// Who begins those that a program makes by `tracing`.
    pub(super) fn programs(&self) -> SdkTracer {
        self.provider.tracer("tracing")
    }

    /// Sends what is left, for a short while.
    pub(super) async fn close(self) {
        let closing = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(CLOSE));
        if !matches!(closing.await, Ok(Ok(()))) {
            warn!("spans that the collector has not taken are left behind");
        }
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The address to send spans to; nothing: nobody wants them.
fn endpoint(
    settings: &config::Telemetry,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let exporter = variable("OTEL_TRACES_EXPORTER");
    let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if off || exporter.as_deref() == Some("none") {
        return Ok(None);
    }
    let below = |base: String| format!("{}/v1/traces", base.trim_end_matches('/'));
    let url = settings
        .otlp_endpoint
        .clone()
        .map(below)
        .or_else(|| variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT").map(below))
        .or_else(|| exporter.filter(|exporter| exporter == "otlp").map(|_| below(LOCAL.to_owned())));
    let protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        .or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"))
        .filter(|protocol| protocol != "http/protobuf");
    match (url, protocol) {
        (Some(_), Some(protocol)) if settings.otlp_endpoint.is_none() => Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL asks for {protocol}; Hopline speaks http/protobuf (a collector's port 4318)"
        )),
        (url, _) => Ok(url),
    }
}

/// Who this is, for the collector.
fn resource(settings: &config::Telemetry) -> Resource {
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let says = |name: &str| {
        attributes.split(',').any(|pair| pair.split_once('=').is_some_and(|(key, _)| key.trim() == name))
    };
    let mut resource = Resource::builder();
    if let Some(name) = &settings.service_name {
        resource = resource.with_service_name(name.clone());
    } else if variable("OTEL_SERVICE_NAME").is_none() && !says("service.name") {
        resource = resource.with_service_name(program());
    }
    if !says("service.instance.id") {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", JobId::new().to_string()));
    }
    resource.build()
}

/// The name of this program.
fn program() -> String {
    let path = env::current_exe().ok();
    let name = path.as_deref().and_then(std::path::Path::file_stem);
    name.map_or_else(|| "hopline".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The receiver of spans.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    /// Made by the thread that sends, and dropped by it.
    runtime: OnceLock<Runtime>,
    /// Scheme, host and port.
    shown: String,
    failing: AtomicBool,
}

impl Collector {
    fn new(url: &str) -> Result<Self, String> {
        let parsed = Url::parse(url).map_err(|error| format!("`{url}` is no address: {error}"))?;
        let host = parsed.host_str().unwrap_or_default();
        let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
        let shown = format!("{}://{host}{port}", parsed.scheme());
        let timeout = variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_TIMEOUT"))
            .and_then(|ms| ms.parse().ok())
            .map_or(ANSWER, Duration::from_millis);
        let builder = match parsed.scheme() {
            "http" => plain(),
            "https" if cfg!(feature = "tls") => secure()?,
            "https" => return Err("https needs hopline's feature `tls`".to_owned()),
            scheme => return Err(format!("`{scheme}` is neither http nor https")),
        };
        let client = builder
            .timeout(timeout)
            .connect_timeout(timeout)
            // A batch comes every few seconds: an idle connection may have gone stale, and is not worth it.
            .pool_max_idle_per_host(0)
            // Headers may hold credentials, which are for this receiver alone.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| format!("no HTTP client: {}", in_full(&error)))?;
        Ok(Self { client, runtime: OnceLock::new(), shown, failing: AtomicBool::new(false) })
    }

    fn runtime(&self) -> std::io::Result<&Runtime> {
        if self.runtime.get().is_none() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            // Spans are sent by one thread.
            let _ = self.runtime.set(runtime);
        }
        self.runtime.get().ok_or_else(|| std::io::Error::other("no runtime"))
    }

    /// Says that spans are lost, or that they are not any more.
    fn tell(&self, failure: Option<&str>) {
        match failure {
            Some(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                warn!(collector = self.shown, error, "traces cannot be exported and are dropped");
            }
            None if self.failing.swap(false, Ordering::Relaxed) => {
                info!(collector = self.shown, "traces are exported again");
            }
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // The thread that sends has no runtime: it waits here.
        let sent = self.runtime().map_err(|error| error.to_string());
        let sent = sent.and_then(|runtime| runtime.block_on(send(&self.client, request)));
        match &sent {
            Ok(response) if response.status().is_success() => self.tell(None),
            Ok(response) => self.tell(Some(&format!("answered {}", response.status()))),
            Err(error) => self.tell(Some(error)),
        }
        sent.map_err(HttpError::from)
    }
}

async fn send(client: &reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
    let (parts, body) = request.into_parts();
    let sending =
        client.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body).send();
    let mut answer = sending.await.map_err(|error| in_full(&error.without_url()))?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| in_full(&error.without_url()))? {
        if bytes.len() + chunk.len() > ANSWER_MAX {
            return Err(format!("the answer is longer than {ANSWER_MAX} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    let mut response = Response::builder().status(answer.status());
    if let Some(value) = answer.headers().get(RETRY_AFTER) {
        response = response.header(RETRY_AFTER, value);
    }
    response.body(bytes.into()).map_err(|error| error.to_string())
}

/// An error and what is behind it.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A client for plain HTTP. It needs no certificates, so that it can be had on a machine without any.
fn plain() -> reqwest::ClientBuilder {
    #[cfg(feature = "tls")]
    {
        use rustls::{ClientConfig, RootCertStore, crypto::ring};
        let config = ClientConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions();
        // ring has them.
        if let Ok(config) = config {
            let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            return reqwest::ClientBuilder::new().tls_backend_preconfigured(config);
        }
    }
    reqwest::ClientBuilder::new()
}

/// A client for HTTPS, which trusts what `OTEL_EXPORTER_OTLP_CERTIFICATE` names, else what the system trusts.
#[cfg(feature = "tls")]
fn secure() -> Result<reqwest::ClientBuilder, String> {
    crate::crypto::choose();
    let named = variable("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE")
        .or_else(|| variable("OTEL_EXPORTER_OTLP_CERTIFICATE"));
    let Some(path) = named else { return Ok(reqwest::ClientBuilder::new()) };
    let pem = std::fs::read(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem);
    match certificates.ok().filter(|certificates| !certificates.is_empty()) {
        Some(certificates) => Ok(reqwest::ClientBuilder::new().tls_certs_only(certificates)),
        None => Err(format!("{path} has no certificate in PEM")),
    }
}

#[cfg(not(feature = "tls"))]
fn secure() -> Result<reqwest::ClientBuilder, String> {
    Err("https needs hopline's feature `tls`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_wins_over_the_standard_variables() {
        const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
        for (key, variables, expected) in [
            (None, &[][..], None),
            (Some("http://a:1"), &[(ALL, "http://b")], Some("http://a:1/v1/traces")),
            (Some("http://a/base/"), &[], Some("http://a/base/v1/traces")),
            (None, &[(ALL, "http://b/")], Some("http://b/v1/traces")),
            (None, &[(ALL, "http://b"), (TRACES, "http://c/as-it-is")], Some("http://c/as-it-is")),
            (None, &[(EXPORTER, "otlp")], Some("http://localhost:4318/v1/traces")),
            (Some("http://a"), &[(EXPORTER, "none")], None),
            (Some("http://a"), &[("OTEL_SDK_DISABLED", "TRUE")], None),
            (None, &[(ALL, "http://b"), (EXPORTER, "console")], Some("http://b/v1/traces")),
        ] {
            let settings =
                config::Telemetry { otlp_endpoint: key.map(str::to_owned), ..config::Telemetry::default() };
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(endpoint(&settings, variable).unwrap().as_deref(), expected, "{key:?} {variables:?}");
        }
    }

    #[test]
    fn a_protocol_that_is_not_spoken_is_refused() {
        let variable = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://b:4317".to_owned()),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("grpc".to_owned()),
            _ => None,
        };
        let error = endpoint(&config::Telemetry::default(), variable).unwrap_err();
        assert!(error.contains("grpc") && error.contains("4318"), "{error}");
    }

    #[test]
    fn credentials_in_an_address_are_not_shown() {
        let collector = Collector::new("http://user:hush@collector:4318/v1/traces").unwrap();
        assert_eq!(collector.shown, "http://collector:4318");
        assert!(Collector::new("ftp://collector").is_err());
    }
}
