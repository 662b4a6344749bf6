//! Spans that are exported: OpenTelemetry's, by its interface.
//!
//! Not by `tracing`: names, kinds, parents and attributes are those of OpenTelemetry's conventions, and log lines have
//! fields of their own. The two meet in the current context, below which a handler's own `tracing` spans are.

use std::{str::FromStr, sync::OnceLock};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        FutureExt, SpanContext, SpanId, SpanKind as Kind, Status, TraceContextExt, TraceFlags, TraceId,
        TraceState, Tracer, WithContext,
    },
};
use opentelemetry_sdk::trace::SdkTracer;

use super::{Plan, SpanKind, TraceContext, Value};

/// Who begins spans, once traces are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// From here on spans are exported.
pub(crate) fn export(tracer: SdkTracer) {
    // Logs are set up once, and traces with them.
    let _ = TRACER.set(tracer);
}

/// A span that has begun; its end is when the last of its contexts is dropped, or when it is said.
#[derive(Debug)]
pub(super) struct Live(Context);

impl Live {
    pub(super) fn begin(parent: Option<&TraceContext>, plan: impl FnOnce() -> Plan) -> Option<Self> {
        let tracer = TRACER.get()?;
        let Plan { kind, name, attributes } = plan();
        let parent =
            parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(read(parent)));
        let kind = match kind {
            SpanKind::Server => Kind::Server,
            SpanKind::Producer => Kind::Producer,
            SpanKind::Consumer => Kind::Consumer,
        };
        let attributes = attributes.into_iter().map(|(key, value)| attribute(key, value));
        let span = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        Some(Self(Context::new().with_span(tracer.build_with_context(span, &parent))))
    }

    pub(super) fn context(&self) -> Option<TraceContext> {
        write(self.0.span().span_context())
    }

    pub(super) fn set(&self, key: &'static str, value: Value) {
        self.0.span().set_attribute(attribute(key, value));
    }

    pub(super) fn fail(&self, word: &str) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("error.type", word.to_owned()));
        // Without the error's text: it may quote what nobody else is to see.
        span.set_status(Status::error(word.to_owned()));
    }

    pub(super) fn end(&self) {
        self.0.span().end();
    }

    pub(super) fn within<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.0.clone())
    }
}

pub(super) fn current() -> Option<TraceContext> {
    Context::map_current(|context| write(context.span().span_context()))
}

#[cfg(feature = "server")]
pub(super) fn here<F: Future>(future: F) -> WithContext<F> {
    future.with_current_context()
}

fn attribute(key: &'static str, value: Value) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::new(key, text),
        Value::Number(number) => KeyValue::new(key, number),
    }
}

fn read(context: &TraceContext) -> SpanContext {
    let flags = if context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(
        TraceId::from_hex(context.trace_id()).unwrap_or(TraceId::INVALID),
        SpanId::from_hex(context.span_id()).unwrap_or(SpanId::INVALID),
        flags,
        true,
        context.state().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default(),
    )
}

fn write(span: &SpanContext) -> Option<TraceContext> {
    let flags = u8::from(span.is_sampled());
    let parent = format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
    // An invalid one has ids of zeros, which are none.
    TraceContext::new(&parent, Some(&span.trace_state().header()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_comes_back_from_a_span() {
        for flags in ["00", "01"] {
            let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            let context = TraceContext::new(&parent, Some("vendor=x,other=y")).unwrap();
            assert_eq!(write(&read(&context)), Some(context));
        }
        assert_eq!(write(&SpanContext::empty_context()), None);
        // A state that breaks W3C's rules does not cost the trace.
        let context =
            TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("UPPER=x"))
                .unwrap();
        assert!(write(&read(&context)).unwrap().state().is_none());
    }
}
