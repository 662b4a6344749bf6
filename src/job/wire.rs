//! A message without a broker: the AMQP properties, headers and body that the wire contract uses.
//!
//! `amqp::message` turns these into lapin's types and back; everything else works on these, so the envelope can
//! be tested without a broker. What no field here carries (priority, expiration, user id, cluster id) is left
//! out on purpose: copied into a republished message it would change its fate (`docs/wire.md`, "Republishing").

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;

/// An AMQP 0.9.1 field value, as far as we tell them apart: all integers are one, all floats are one.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum HeaderValue {
    /// A boolean.
    Bool(bool),
    /// Any integer type of AMQP that fits 64 bits with sign.
    Int(i64),
    /// Either float type.
    Double(f64),
    /// A string that is UTF-8.
    Text(String),
    /// A byte array, or a string that is not UTF-8.
    Bytes(Vec<u8>),
    /// A timestamp, in seconds since the epoch.
    Time(u64),
    /// An array.
    List(Vec<HeaderValue>),
    /// A table.
    Table(Headers),
    /// Nothing.
    Void,
}

/// The time so many milliseconds after 1970, as far as there is one. Any [`Timestamp`] comes back from its milliseconds,
/// also one of the last second there is, which [`Timestamp::from_millisecond`] refuses.
#[must_use]
pub fn time_of_ms(ms: i64) -> Option<Timestamp> {
    let nanoseconds = i32::try_from(ms.rem_euclid(1000) * 1_000_000).ok()?;
    Timestamp::new(ms.div_euclid(1000), nanoseconds).ok()
}

/// Headers by name, in order of name.
pub type Headers = BTreeMap<String, HeaderValue>;

impl From<i64> for HeaderValue {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u32> for HeaderValue {
    fn from(value: u32) -> Self {
        Self::Int(i64::from(value))
    }
}

impl From<bool> for HeaderValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for HeaderValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl HeaderValue {
    /// Roughly the bytes this takes in a header frame.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Bool(_) | Self::Void => 2,
            Self::Int(_) | Self::Double(_) | Self::Time(_) => 9,
            Self::Text(text) => 5 + text.len(),
            Self::Bytes(bytes) => 5 + bytes.len(),
            Self::List(items) => 5 + items.iter().map(HeaderValue::size).sum::<usize>(),
            Self::Table(table) => 5 + headers_size(table),
        }
    }
}

/// Roughly the bytes these headers take in a header frame.
#[must_use]
pub fn headers_size(headers: &Headers) -> usize {
    headers.iter().map(|(name, value)| 1 + name.len() + value.size()).sum()
}

/// A message as it is published or delivered: properties, headers, body. Always persistent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// `message_id`: the job id, for ours.
    pub message_id: Option<String>,
    /// `type`: the kind, for jobs.
    pub kind: Option<String>,
    /// `content_type`.
    pub content_type: Option<String>,
    /// `content_encoding`.
    pub content_encoding: Option<String>,
    /// `correlation_id`: what a caller knows its reply by.
    pub correlation_id: Option<String>,
    /// `reply_to`: where the reply goes.
    pub reply_to: Option<String>,
    /// `app_id`: who published.
    pub app_id: Option<String>,
    /// `timestamp`, in seconds since the epoch.
    pub timestamp: Option<u64>,
    /// Headers.
    pub headers: Headers,
    /// The body's bytes: a job's args.
    pub body: Bytes,
}

/// A message as the broker hands it over, with what the broker says of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Incoming {
    /// The message.
    pub message: Message,
    /// The exchange it was published to last; empty for the default exchange.
    pub exchange: String,
    /// The routing key it was published with last.
    pub routing_key: String,
    /// Whether the broker handed it over before.
    pub redelivered: bool,
    /// How often it came back unacknowledged, as a quorum queue counts (`x-delivery-count`): 0 at first.
    pub returns: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_comes_back_from_its_milliseconds() {
        for at in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
            for ms in [0, 1, 999, 1000, 1500] {
                for ms in [at.as_millisecond() + ms, at.as_millisecond() - ms] {
                    let within =
                        (Timestamp::MIN.as_millisecond()..=Timestamp::MAX.as_millisecond()).contains(&ms);
                    assert_eq!(time_of_ms(ms).map(Timestamp::as_millisecond), within.then_some(ms));
                }
            }
        }
        assert_eq!((time_of_ms(i64::MIN), time_of_ms(i64::MAX)), (None, None));
    }
}
