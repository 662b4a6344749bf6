//! Publishes in traces: a span for each, between what caused the job and its attempts.
//!
//! The span of the request, or of the attempt, that submits the job is not enough: collectors draw the way from service to
//! service by pairs of producer and consumer spans, a job may be published long after its request (the spool), and how
//! long the broker's confirm took is worth knowing.

use crate::{
    amqp::Names,
    job::Envelope,
    trace::{Plan, Span, SpanKind, TraceContext},
};

/// Begins the span of a publish, below what the job carries.
pub(super) fn begin(names: &Names, envelope: &Envelope) -> Span {
    let Envelope { id, kind, queue, .. } = envelope;
    Span::begin(TraceContext::of(&envelope.extra), || {
        // Where it is to arrive; the way there, for one that is delayed, is the ladder's affair.
        let (exchange, key) = names.route(queue, kind.as_str(), 0);
        let destination = format!("{exchange}:{key}");
        Plan {
            kind: SpanKind::Producer,
            name: format!("publish {destination}"),
            attributes: vec![
                ("messaging.system", "rabbitmq".into()),
                ("messaging.operation.name", "publish".into()),
                ("messaging.operation.type", "send".into()),
                ("messaging.destination.name", destination.into()),
                ("messaging.rabbitmq.destination.routing_key", key.into()),
                ("messaging.message.id", id.to_string().into()),
                ("hopline.job.kind", kind.as_str().into()),
                ("hopline.job.queue", queue.as_str().into()),
            ],
        }
    })
}
