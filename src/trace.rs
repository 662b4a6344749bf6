//! Traces: the W3C context that jobs carry, and Hopline's own spans.
//!
//! A job carries its context in two headers, whether or not anybody exports traces: what a caller sent reaches the jobs
//! that its job enqueues. Spans exist where `telemetry` has set an export up (feature `otlp`); everywhere else a [`Span`]
//! does nothing but hand the context on. What a span is called and what it says of itself is the affair of those who
//! begin it: `client::live`, `worker::traced`, `http::traced`.

mod context;
#[cfg(feature = "otlp")]
pub(crate) mod spans;

#[cfg(feature = "otlp")]
use futures_util::future::Either;
#[cfg(feature = "server")]
use tracing::Instrument;

pub(crate) use self::context::{TraceContext, trace_id_of};
use crate::job::{Envelope, envelope::header};

/// The target of spans whose fields every log line within them has (`telemetry::lines`). They are no part of traces.
#[cfg(feature = "worker")]
pub(crate) const MARKS: &str = "hopline::marks";

/// Where a span stands between services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "server"), allow(dead_code))]
pub(crate) enum SpanKind {
    /// A request is answered.
    Server,
    /// A message is sent.
    Producer,
    /// A message is worked on.
    Consumer,
}

/// What a span says of itself.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// A span to be begun.
#[derive(Debug)]
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
pub(crate) struct Plan {
    pub(crate) kind: SpanKind,
    pub(crate) name: String,
    pub(crate) attributes: Vec<(&'static str, Value)>,
}

/// A span of ours, ended when it is dropped; where traces are not exported it only knows the context that came.
#[derive(Debug)]
pub(crate) struct Span {
    context: Option<TraceContext>,
    #[cfg(feature = "otlp")]
    live: Option<spans::Live>,
}

impl Span {
    /// No span: what is done goes on in the context that came.
    pub(crate) fn none(context: Option<TraceContext>) -> Self {
        Self {
            context,
            #[cfg(feature = "otlp")]
            live: None,
        }
    }

    /// Begins a span below `parent`; `plan` is asked only if there is somebody to export it.
    #[cfg_attr(not(feature = "otlp"), allow(unused_variables))]
    pub(crate) fn begin(parent: Option<TraceContext>, plan: impl FnOnce() -> Plan) -> Self {
        #[cfg(feature = "otlp")]
        if let Some(live) = spans::Live::begin(parent.as_ref(), plan) {
            return Self { context: live.context(), live: Some(live) };
        }
        Self::none(parent)
    }

    /// What jobs carry that this span causes.
    pub(crate) fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Whether there is a span, and not only the context that came.
    pub(crate) fn is_live(&self) -> bool {
        #[cfg(feature = "otlp")]
        return self.live.is_some();
        #[cfg(not(feature = "otlp"))]
        false
    }

    /// The ids for log lines: of the trace, and of this span if it is one.
    #[cfg(feature = "worker")]
    pub(crate) fn ids(&self) -> (Option<&str>, Option<&str>) {
        let context = self.context.as_ref();
        (context.map(TraceContext::trace_id), context.filter(|_| self.is_live()).map(TraceContext::span_id))
    }

    #[cfg_attr(not(feature = "otlp"), allow(unused_variables))]
    #[cfg(feature = "worker")]
    pub(crate) fn set(&self, key: &'static str, value: impl Into<Value>) {
        #[cfg(feature = "otlp")]
        if let Some(live) = &self.live {
            live.set(key, value.into());
        }
    }

    /// What it is about has failed, by a word of few.
    #[cfg_attr(not(feature = "otlp"), allow(unused_variables))]
    pub(crate) fn fail(&self, word: &str) {
        #[cfg(feature = "otlp")]
        if let Some(live) = &self.live {
            live.fail(word);
        }
    }

    /// Ends it now; what is caused later may still name it.
    #[cfg(feature = "worker")]
    pub(crate) fn end(&self) {
        #[cfg(feature = "otlp")]
        if let Some(live) = &self.live {
            live.end();
        }
    }

    /// The same future, during which this is the current span.
    #[cfg(feature = "worker")]
    pub(crate) fn within<F: Future>(&self, future: F) -> impl Future<Output = F::Output> {
        #[cfg(feature = "otlp")]
        return match &self.live {
            Some(live) => Either::Left(live.within(future)),
            None => Either::Right(future),
        };
        #[cfg(not(feature = "otlp"))]
        future
    }
}

/// The context of the span that is current here; of the program's own spans, too, where it has some.
pub(crate) fn current() -> Option<TraceContext> {
    #[cfg(feature = "otlp")]
    return spans::current();
    #[cfg(not(feature = "otlp"))]
    None
}

/// Gives a job the context of what causes it: of the span that is current here, else `cause`. A context that the job
/// already carries stays.
pub(crate) fn inherit(job: &mut Envelope, cause: Option<&TraceContext>) {
    if job.extra.contains_key(header::TRACEPARENT) {
        return;
    }
    if let Some(context) = current().as_ref().or(cause) {
        context.put_on(&mut job.extra);
    }
}

/// The same future, to be spawned: it goes on in the spans that are current here.
#[cfg(feature = "server")]
pub(crate) fn here<F: Future>(future: F) -> impl Future<Output = F::Output> {
    spans::here(future.in_current_span())
}

/// The spans that are current somewhere, to be taken to another thread.
#[cfg(feature = "worker")]
pub(crate) struct Here {
    logs: tracing::Span,
    #[cfg(feature = "otlp")]
    traces: opentelemetry::Context,
}

#[cfg(feature = "worker")]
impl Here {
    pub(crate) fn now() -> Self {
        Self {
            logs: tracing::Span::current(),
            #[cfg(feature = "otlp")]
            traces: opentelemetry::Context::current(),
        }
    }

    /// Does `work` in them.
    pub(crate) fn run<T>(self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "otlp")]
        let _traced = self.traces.attach();
        self.logs.in_scope(work)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::job::{Kind, QueueName};

    #[test]
    fn a_job_has_its_causes_context_unless_it_has_its_own() {
        let context = |span: &str| {
            TraceContext::new(&format!("00-0af7651916cd43dd8448eb211c80319c-{span}-01"), Some("a=b")).unwrap()
        };
        let (cause, own) = (context("b7ad6b7169203331"), context("00f067aa0ba902b7"));
        let job = || {
            Envelope::new(
                Kind::parse("a").unwrap(),
                QueueName::parse("q").unwrap(),
                Bytes::from_static(b"{}"),
            )
        };
        let mut caused = job();
        inherit(&mut caused, None);
        assert!(caused.extra.is_empty());
        inherit(&mut caused, Some(&cause));
        assert_eq!(TraceContext::of(&caused.extra), Some(cause.clone()));
        let mut chosen = job();
        own.put_on(&mut chosen.extra);
        inherit(&mut chosen, Some(&cause));
        assert_eq!(TraceContext::of(&chosen.extra), Some(own));
    }

    #[test]
    fn without_an_export_a_span_only_hands_the_context_on() {
        let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None);
        let span = Span::begin(context.clone(), || unreachable!("nobody would export it"));
        assert_eq!((span.context(), span.is_live()), (context.as_ref(), false));
        #[cfg(feature = "worker")]
        assert_eq!(span.ids(), (Some("0af7651916cd43dd8448eb211c80319c"), None));
    }
}
