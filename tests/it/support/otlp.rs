//! A collector: takes spans by OTLP over HTTP, or takes connections and never answers.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    body::{Body, to_bytes},
    http::{Request, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::status::StatusCode,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};

use super::process::eventually;

/// A span that has come.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) service: String,
    pub(crate) name: String,
    /// 2: server, 4: producer, 5: consumer, 1: internal.
    pub(crate) kind: i32,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) failed: bool,
}

impl Seen {
    pub(crate) fn says(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// A collector that listens; it ends when it is dropped.
pub(crate) struct Collector {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::at("127.0.0.1:0", false).await
    }

    /// One that takes requests and answers none.
    pub(crate) async fn hanging() -> Self {
        Self::at("127.0.0.1:0", true).await
    }

    pub(crate) async fn at(address: &str, hanging: bool) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::default();
        let task = tokio::spawn(listen(listener, Arc::clone(&seen), hanging));
        Self { url, seen, task }
    }

    /// All that has come.
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many spans of a trace have come, and returns them.
    pub(crate) async fn until(&self, trace: &str, count: usize) -> Vec<Seen> {
        eventually(&format!("{count} spans of trace {trace}"), async || {
            let found: Vec<Seen> = self.all().into_iter().filter(|span| span.trace == trace).collect();
            (found.len() >= count).then_some(found)
        })
        .await
    }
}

async fn listen(listener: TcpListener, seen: Arc<Mutex<Vec<Seen>>>, hanging: bool) {
    while let Ok((stream, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        let answer = service_fn(move |request| take(request, Arc::clone(&seen), hanging));
        let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(async move { drop(serving.await) });
    }
}

async fn take(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
    hanging: bool,
) -> Result<Response<Body>, Infallible> {
    if hanging {
        std::future::pending::<()>().await;
    }
    assert_eq!(request.uri().path(), "/v1/traces");
    let body = to_bytes(Body::new(request.into_body()), 16 << 20).await.expect("a body");
    let request = ExportTraceServiceRequest::decode(body).expect("protobuf");
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    for group in request.resource_spans {
        let service = read(&group.resource.unwrap_or_default().attributes).remove("service.name");
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            seen.push(Seen {
                service: service.clone().unwrap_or_default(),
                name: span.name,
                kind: span.kind,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: read(&span.attributes),
                failed: span.status.is_some_and(|status| status.code == StatusCode::Error as i32),
            });
        }
    }
    Ok(Response::new(Body::empty()))
}

fn read(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
