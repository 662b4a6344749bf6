//! W3C trace context, as two texts.

use serde::{Deserialize, Serialize};

use crate::job::{
    envelope::header,
    wire::{HeaderValue, Headers},
};

/// Longest `tracestate` that is carried; W3C asks for at least this much.
const STATE_MAX: usize = 512;
/// Longest `traceparent`: those of later versions may be longer than ours.
const PARENT_MAX: usize = 200;

/// A `traceparent` that is one, and the `tracestate` that came with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceContext {
    parent: String,
    state: Option<String>,
}

impl TraceContext {
    /// Nothing, if `parent` is no `traceparent`; a `state` that cannot be carried is left out.
    pub(crate) fn new(parent: &str, state: Option<&str>) -> Option<Self> {
        let state = state.filter(|state| (1..=STATE_MAX).contains(&state.len()) && state.contains('='));
        is_traceparent(parent).then(|| Self { parent: parent.to_owned(), state: state.map(str::to_owned) })
    }

    /// What a message's headers say.
    pub(crate) fn of(headers: &Headers) -> Option<Self> {
        let text = |name| match headers.get(name) {
            Some(HeaderValue::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        Self::new(text(header::TRACEPARENT)?, text(header::TRACESTATE))
    }

    /// Puts it on a message, in the place of what is there.
    pub(crate) fn put_on(&self, headers: &mut Headers) {
        headers.insert(header::TRACEPARENT.to_owned(), self.parent.as_str().into());
        match &self.state {
            Some(state) => drop(headers.insert(header::TRACESTATE.to_owned(), state.as_str().into())),
            None => drop(headers.remove(header::TRACESTATE)),
        }
    }

    #[cfg(feature = "server")]
    pub(crate) fn parent(&self) -> &str {
        &self.parent
    }

    #[cfg(feature = "otlp")]
    pub(crate) fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// 32 digits.
    pub(crate) fn trace_id(&self) -> &str {
        &self.parent[3..35]
    }

    /// 16 digits.
    #[cfg(feature = "worker")]
    pub(crate) fn span_id(&self) -> &str {
        &self.parent[36..52]
    }

    /// Whether whoever began the trace keeps it.
    #[cfg(feature = "otlp")]
    pub(crate) fn is_sampled(&self) -> bool {
        u8::from_str_radix(&self.parent[53..55], 16).is_ok_and(|flags| flags & 1 == 1)
    }
}

/// The trace that a message's headers name.
pub(crate) fn trace_id_of(headers: &Headers) -> Option<String> {
    TraceContext::of(headers).map(|context| context.trace_id().to_owned())
}

/// Whether `text` is a `traceparent`: `<version>-<trace id>-<span id>-<flags>` in lower-case hex, neither id
/// zero; versions after 00 may have more at the end.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, len| hex(part, len) && part.bytes().any(|c| c != b'0');
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let [version, trace, span, flags, rest @ ..] = parts.as_slice() else { return false };
    let whole = hex(version, 2) && *version != "ff" && id(trace, 32) && id(span, 16) && hex(flags, 2);
    whole && text.len() <= PARENT_MAX && (rest.is_empty() || *version != "00")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_goes_through_a_messages_headers() {
        let mut headers = Headers::new();
        assert_eq!(TraceContext::of(&headers), None);
        TraceContext::new(PARENT, Some("a=b")).unwrap().put_on(&mut headers);
        let read = TraceContext::of(&headers).unwrap();
        assert_eq!((read.parent.as_str(), read.state.as_deref()), (PARENT, Some("a=b")));
        // What comes without a state leaves none of another trace behind.
        TraceContext::new(PARENT, Some("nothing")).unwrap().put_on(&mut headers);
        assert_eq!(headers.len(), 1);
        headers.insert(header::TRACEPARENT.to_owned(), 7_i64.into());
        assert_eq!(TraceContext::of(&headers), None);
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn its_parts() {
        for (flags, sampled) in [("00", false), ("01", true), ("02", false), ("03", true), ("ff", true)] {
            let context = TraceContext::new(&format!("{}{flags}", &PARENT[..53]), None).unwrap();
            assert_eq!(context.is_sampled(), sampled, "{flags}");
            assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
            assert_eq!(context.span_id(), "b7ad6b7169203331");
        }
    }
}
