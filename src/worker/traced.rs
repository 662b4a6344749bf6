//! Attempts in traces and logs: a span for each, below what its job was caused by, and what its log lines have in common.

use super::executor::Outcome;
use crate::{
    amqp::Names,
    job::Envelope,
    trace::{MARKS, Plan, Span, SpanKind, TraceContext},
};

/// Begins the span of an attempt. Its parent is what the message says, so that all attempts of a job lie side by side.
pub(super) fn begin(names: &Names, envelope: &Envelope) -> Span {
    let Envelope { id, kind, queue, run, attempt, .. } = envelope;
    Span::begin(TraceContext::of(&envelope.extra), || {
        let (exchange, key) = names.route(queue, kind.as_str(), 0);
        let destination = format!("{exchange}:{key}:{}", names.queue(queue));
        let mut attributes = vec![
            ("messaging.system", "rabbitmq".into()),
            ("messaging.operation.name", "process".into()),
            ("messaging.operation.type", "process".into()),
            ("messaging.rabbitmq.destination.routing_key", key.into()),
            ("messaging.message.id", id.to_string().into()),
            ("hopline.job.kind", kind.as_str().into()),
            ("hopline.job.queue", queue.as_str().into()),
            ("hopline.job.run", (*run).into()),
            ("hopline.job.attempt", (*attempt).into()),
        ];
        let name = format!("process {destination}");
        attributes.push(("messaging.destination.name", destination.into()));
        Plan { kind: SpanKind::Consumer, name, attributes }
    })
}

/// Says how the attempt ended, and ends its span.
pub(super) fn end(span: &Span, outcome: &Outcome) {
    if !span.is_live() {
        return;
    }
    let word = outcome.recorded().map_or("handed_back", |outcome| outcome.as_str());
    span.set("hopline.outcome", word);
    match outcome {
        Outcome::Failed(error) if word != "snoozed" => span.fail(error.code()),
        Outcome::TimedOut(_) | Outcome::Panicked(_) | Outcome::Crashed(_) => span.fail(word),
        _ => {}
    }
    span.end();
}

/// What all log lines about an attempt have.
pub(super) fn marks(envelope: &Envelope, span: &Span) -> tracing::Span {
    let Envelope { id, kind, queue, attempt, .. } = envelope;
    let (trace_id, span_id) = span.ids();
    tracing::error_span!(
        target: MARKS, "attempt", job.id = %id, kind = %kind, queue = %queue, attempt, trace_id, span_id
    )
}
