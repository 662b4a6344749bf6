//! Batches of events: the body of a message, `application/cloudevents-batch+json` (CloudEvents 1.0, JSON format,
//! section 4). The AMQP binding of CloudEvents knows no batches; `docs/wire.md` says so and shows a reader.
//!
//! Decoding is lenient: what is not an event of ours is counted and passed over, so that one bad writer cannot stop
//! the log. The place of an event in the batch is part of its address, so skipped ones keep their number.

use std::{
    borrow::Cow,
    fmt::{self, Display},
};

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{Data, Event, EventType, Id, TYPE_PREFIX, TimeText};
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
    #[serde(serialize_with = "shown")]
    id: Id<'a>,
    source: &'a str,
    #[serde(rename = "type", serialize_with = "shown")]
    event_type: fmt::Arguments<'a>,
    subject: JobId,
    #[serde(serialize_with = "shown")]
    time: TimeText,
    /// The last: see [`public`].
    data: &'a Data,
}

fn shown<S: Serializer>(text: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(text)
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    subject: JobId,
    #[serde(borrow)]
    time: Cow<'a, str>,
    data: Data,
}

/// What an event takes without args, output and errors.
const USUAL: usize = 640;

/// One event as a CloudEvents JSON object.
#[must_use]
pub fn encode_one(event: &Event) -> Vec<u8> {
    let inline = |json: &Option<Box<RawValue>>| json.as_ref().map_or(0, |json| json.get().len());
    let mut bytes = Vec::with_capacity(USUAL + inline(&event.data.args) + inline(&event.data.output));
    // Texts, numbers and JSON that was checked: nothing here can fail.
    let _ = serde_json::to_writer(
        &mut bytes,
        &Written {
            specversion: "1.0",
            id: Id(event),
            source: &event.source,
            event_type: format_args!("{TYPE_PREFIX}{}", event.event_type.as_str()),
            subject: event.job,
            time: TimeText(event.time),
            data: &event.data,
        },
    );
    bytes
}

/// What [`encode_one`] makes of [`Event::public`], from what it made of the event; `None`: the same.
///
/// Args and output are the last members of what comes last, so all before them stays as it is.
#[must_use]
pub(crate) fn public(event: &Event, encoded: &[u8]) -> Option<Vec<u8>> {
    let Data { args, output, args_omitted, output_omitted, .. } = &event.data;
    let end = b"}}";
    let mut kept = encoded.len().checked_sub(end.len())?;
    let mut said = Vec::new();
    for (name, inline, is_said) in [("args", args, *args_omitted), ("output", output, *output_omitted)] {
        let Some(json) = inline else { continue };
        kept = kept.checked_sub(r#","":"#.len() + name.len() + json.get().len())?;
        if !is_said {
            said.push(format!(r#","{name}_omitted":true"#));
        }
    }
    (args.is_some() || output.is_some()).then(|| [&encoded[..kept], said.concat().as_bytes(), end].concat())
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
    match serde_json::from_slice(body) {
        Ok(Numbered { events, count }) => {
            let skipped = count - events.len();
            Ok((events, skipped))
        }
        // One of them is none of ours: each by itself.
        Err(_) => {
            let entries: Vec<&RawValue> = json::read(body).map_err(BatchError)?;
            let mut numbered = Numbered::default();
            entries.iter().for_each(|entry| numbered.add(serde_json::from_str(entry.get()).ok()));
            let skipped = numbered.count - numbered.events.len();
            Ok((numbered.events, skipped))
        }
    }
}

/// Events, each with its number; those behind the last number are passed over, too.
#[derive(Default)]
struct Numbered {
    events: Vec<(u16, Event)>,
    count: usize,
}

impl Numbered {
    fn add(&mut self, read: Option<Read<'_>>) {
        if let (Ok(number), Some(event)) = (u16::try_from(self.count), read.and_then(event)) {
            self.events.push((number, event));
        }
        self.count += 1;
    }
}

impl<'de> Deserialize<'de> for Numbered {
    /// One by one: a list of what was read, before one of events, would have each moved twice more.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Numbered;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an array of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Numbered, A::Error> {
                let mut numbered = Numbered::default();
                while let Some(read) = entries.next_element()? {
                    numbered.add(Some(read));
                }
                Ok(numbered)
            }
        }
        deserializer.deserialize_seq(List)
    }
}

fn event(read: Read<'_>) -> Option<Event> {
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
    fn what_subscribers_get_is_the_event_without_args_and_output() {
        let text = |json: &str| Some(RawValue::from_string(json.to_owned()).unwrap());
        let cases = [None, text("null"), text("{\"x\": [1.00, \"}}\"]}")];
        for args in &cases {
            for output in &cases {
                for omitted in [false, true] {
                    let mut event = event();
                    (event.data.args, event.data.output) = (args.clone(), output.clone());
                    (event.data.args_omitted, event.data.output_omitted) = (omitted, omitted);
                    event.data.worker = Some("}}".to_owned());
                    let value = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
                    let (encoded, expected) = (encode_one(&event), value(&encode_one(&event.public())));
                    let public = public(&event, &encoded);
                    assert_eq!(public.is_some(), args.is_some() || output.is_some());
                    assert_eq!(value(public.as_ref().unwrap_or(&encoded)), expected);
                }
            }
        }
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
