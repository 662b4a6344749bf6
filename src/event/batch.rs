//! Batches of events: the body of a message, `application/cloudevents-batch+json` (CloudEvents 1.0, JSON format,
//! section 4). The AMQP binding of CloudEvents knows no batches; `docs/wire.md` says so and shows a reader.
//!
//! Decoding is lenient: what is not an event of ours is counted and passed over, so that one bad writer cannot stop
//! the log. The place of an event in the batch is part of its address, so skipped ones keep their number.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{Data, Event, EventType, TYPE_PREFIX, time_text};
use crate::job::{JobId, json};

/// Content type of a batch.
pub const CONTENT_TYPE: &str = "application/cloudevents-batch+json";
/// Content type of one event by itself.
pub const EVENT_CONTENT_TYPE: &str = "application/cloudevents+json";
/// Type of a message that carries a batch.
pub const MESSAGE_TYPE: &str = "hopline.events";
/// Most bytes of a batch that a writer makes, but for a single event that is longer.
pub const BATCH_MAX: usize = 1 << 20;
/// Most events of a batch: an index fits 16 bits.
pub const EVENTS_MAX: usize = 10_000;

/// A body that is no batch at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a batch of events: {0}")]
pub struct BatchError(String);

#[derive(Serialize)]
struct Written<'a> {
    specversion: &'static str,
    id: String,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: String,
    subject: JobId,
    time: String,
    data: &'a Data,
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    source: std::borrow::Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    event_type: std::borrow::Cow<'a, str>,
    subject: JobId,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
    data: Data,
}

/// One event as a CloudEvents JSON object.
#[must_use]
pub fn encode_one(event: &Event) -> Vec<u8> {
    let written = Written {
        specversion: "1.0",
        id: event.id(),
        source: &event.source,
        event_type: format!("{TYPE_PREFIX}{}", event.event_type.as_str()),
        subject: event.job,
        time: time_text(event.time),
        data: &event.data,
    };
    // Texts, numbers and JSON that was checked: nothing here can fail.
    serde_json::to_vec(&written).unwrap_or_default()
}

/// Joins encoded events to a batch's body.
#[must_use]
pub fn join<'a>(events: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut body = vec![b'['];
    for (index, event) in events.into_iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(event);
    }
    body.push(b']');
    body
}

/// The events of a batch, each with its index; and how many entries are none that we know.
///
/// # Errors
/// [`BatchError`] when the body is no JSON array.
pub fn decode(body: &[u8]) -> Result<(Vec<(u16, Event)>, usize), BatchError> {
    let entries: Vec<&RawValue> = json::read(body).map_err(BatchError)?;
    let (mut events, mut skipped) = (Vec::with_capacity(entries.len()), 0);
    for (index, entry) in entries.into_iter().enumerate() {
        match (u16::try_from(index), read(entry.get())) {
            (Ok(index), Some(event)) => events.push((index, event)),
            _ => skipped += 1,
        }
    }
    Ok((events, skipped))
}

fn read(text: &str) -> Option<Event> {
    let read: Read<'_> = serde_json::from_str(text).ok()?;
    let event_type = EventType::parse(read.event_type.strip_prefix(TYPE_PREFIX)?)?;
    let time: Timestamp = read.time.parse().ok()?;
    let Data { run, attempt, .. } = read.data;
    if run == 0 || attempt == 0 || read.data.queue.is_none() {
        return None;
    }
    Some(Event { event_type, job: read.subject, source: read.source.into_owned(), time, data: read.data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Envelope, Kind, QueueName};

    fn event() -> Event {
        let (kind, queue) = (Kind::parse("demo.echo").unwrap(), QueueName::parse("default").unwrap());
        let mut envelope = Envelope::new(kind, queue, bytes::Bytes::from_static(b"{}"));
        envelope.tags = vec!["a".into()];
        let mut event = Event::of(EventType::Submitted, &envelope, "web-1", Timestamp::UNIX_EPOCH);
        event.data.args = Some(RawValue::from_string("{\"x\": 1.00}".to_owned()).unwrap());
        event
    }

    #[test]
    fn a_batch_is_read_as_it_was_written() {
        let event = event();
        let body = join([encode_one(&event).as_slice(), encode_one(&event.public()).as_slice()]);
        let (events, skipped) = decode(&body).unwrap();
        assert_eq!((events.len(), skipped), (2, 0));
        let read = &events[0].1;
        assert_eq!(read.id(), event.id());
        assert_eq!(read.data.args.as_ref().unwrap().get(), "{\"x\": 1.00}", "bytes as they came");
        assert!(events[1].1.data.args.is_none() && events[1].1.data.args_omitted);
        assert_eq!(format!("{:?}", read.data.tags), "[\"a\"]");
    }

    #[test]
    fn what_is_no_event_is_counted_and_keeps_its_number() {
        let good = encode_one(&event());
        let body = join([&b"{}"[..], good.as_slice(), &b"17"[..]]);
        let (events, skipped) = decode(&body).unwrap();
        assert_eq!((events.len(), events[0].0, skipped), (1, 1, 2));
        assert!(decode(b"{}").is_err() && decode(b"[").is_err());
    }

    #[test]
    fn it_is_a_cloud_event() {
        let value: serde_json::Value = serde_json::from_slice(&encode_one(&event())).unwrap();
        assert_eq!(value["specversion"], "1.0");
        assert_eq!(value["type"], "hopline.job.submitted");
        assert_eq!(value["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(value["id"], format!("{}:1:0:submitted", value["subject"].as_str().unwrap()));
        assert_eq!(value["data"]["kind"], "demo.echo");
    }
}
