//! An input taken apart from its front.

use crate::job::{
    dead::mark,
    envelope::header,
    wire::{HeaderValue, Headers, Incoming, Message},
};

/// Names that mean something in a message's headers.
const NAMES: [&str; 30] = [
    header::VERSION,
    header::RUN,
    header::ATTEMPT,
    header::STEP,
    header::PATIENCE,
    header::MAX_ATTEMPTS,
    header::TIMEOUT,
    header::CREATED_AT,
    header::EXPIRES_AT,
    header::UNSURE,
    header::TAGS,
    header::RETRY_INITIAL,
    header::RETRY_FACTOR,
    header::RETRY_MAX,
    header::RETRY_JITTER,
    header::TRACEPARENT,
    header::TRACESTATE,
    mark::REASON,
    mark::CODE,
    mark::ERROR,
    mark::ATTEMPTS,
    mark::WORKER,
    mark::DIED_AT,
    mark::HEADERS_DROPPED,
    "hopline-replayed-by",
    "x-death",
    "x-delivery-count",
    "queue",
    "reason",
    "CC",
];

/// Bytes that are used up from the front; then there are zeros.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// So many bytes as the next one says, if there are so many.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    pub(crate) fn text(&mut self) -> String {
        let text = String::from_utf8_lossy(self.bytes()).into_owned();
        crate::job::dead::clip(&text, 255).to_owned()
    }

    /// Up to the next line break, or all there is.
    pub(crate) fn line(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == b'\n');
        let line = &self.0[..end.unwrap_or(self.0.len())];
        self.0 = &self.0[end.map_or(self.0.len(), |end| end + 1)..];
        line
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    fn maybe(&mut self) -> Option<String> {
        (!self.byte().is_multiple_of(4)).then(|| self.text())
    }

    fn value(&mut self, depth: u8) -> HeaderValue {
        match self.byte() % if depth > 3 { 10 } else { 12 } {
            0 => HeaderValue::Void,
            1 => HeaderValue::Bool(self.byte() % 2 == 1),
            2 => HeaderValue::Int(i64::from(self.byte())),
            3 => HeaderValue::Int(i64::from_le_bytes(self.number())),
            4 => HeaderValue::Double(f64::from_le_bytes(self.number())),
            5 => HeaderValue::Bytes(self.bytes().to_vec()),
            6 => HeaderValue::Time(u64::from_le_bytes(self.number())),
            7 => HeaderValue::Int(i64::from(i32::from_le_bytes(self.number()))),
            8 | 9 => HeaderValue::Text(self.text()),
            10 => HeaderValue::List((0..self.byte() % 4).map(|_| self.value(depth + 1)).collect()),
            _ => HeaderValue::Table(self.headers(depth + 1)),
        }
    }

    fn headers(&mut self, depth: u8) -> Headers {
        let count = self.byte() % 16;
        let header = |_| {
            let name = match NAMES.get(usize::from(self.byte())) {
                Some(name) => (*name).to_owned(),
                None => self.text(),
            };
            (name, self.value(depth))
        };
        (0..count).map(header).collect()
    }

    /// A message as a broker hands it over, of what is left.
    pub(crate) fn incoming(&mut self) -> Incoming {
        let message = Message {
            kind: self.maybe(),
            message_id: self.maybe(),
            content_type: self.maybe(),
            content_encoding: None,
            correlation_id: self.maybe(),
            reply_to: self.maybe(),
            app_id: self.maybe(),
            timestamp: (self.byte() % 2 == 1).then(|| u64::from_le_bytes(self.number())),
            headers: self.headers(0),
            body: bytes::Bytes::new(),
        };
        let (exchange, routing_key) = (self.text(), self.text());
        let redelivered = self.byte() % 2 == 1;
        let body = bytes::Bytes::copy_from_slice(self.0);
        Incoming { message: Message { body, ..message }, exchange, routing_key, redelivered, returns: 0 }
    }
}
