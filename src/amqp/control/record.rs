//! The records of the control log, as they are on the wire (`docs/wire.md`, "Control log").
//!
//! Reading is lenient: an entry of a list that cannot be read is counted and passed over, so that it costs none of the
//! others. Not here: what follows from a record (`state`), and when one is written.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::announced::Announced;
use crate::{
    event::time_text,
    job::{JobId, QueueName, dead::clip, json, wire::Message},
};

/// Most orders of one record.
pub(crate) const ORDERS_MAX: usize = 500;
/// Longest name of whoever asked for something, in bytes.
const BY_MAX: usize = 200;
/// Longest reason of an order, in bytes.
const REASON_MAX: usize = 1024;
/// Longest name of a process, in bytes.
const PROCESS_MAX: usize = 200;

/// Message types.
const KINDS: &str = "hopline.kinds";
const FRONT: &str = "hopline.front";
const CANCEL: &str = "hopline.cancel";
const PAUSE: &str = "hopline.pause";

/// Someone's order that a run of a job is not to go on. It holds for this run only: a replay is another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelOrder {
    /// The job.
    pub id: JobId,
    /// The run.
    pub run: u32,
    /// Who asked; at most 200 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why; at most 1 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was asked for.
    #[serde(with = "time")]
    pub at: Timestamp,
}

impl CancelOrder {
    /// This order with its texts within their bounds.
    pub(crate) fn bounded(mut self) -> Self {
        shorten(&mut self.by, BY_MAX);
        shorten(&mut self.reason, REASON_MAX);
        self
    }
}

/// Someone's order that a queue is paused, or goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PauseOrder {
    pub(crate) queue: QueueName,
    pub(crate) paused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    #[serde(with = "time")]
    pub(crate) at: Timestamp,
}

impl PauseOrder {
    pub(crate) fn bounded(mut self) -> Self {
        shorten(&mut self.by, BY_MAX);
        self
    }
}

fn shorten(text: &mut Option<String>, max: usize) {
    if let Some(text) = text
        && text.len() > max
    {
        *text = clip(text, max).to_owned();
    }
}

/// What a record says.
#[derive(Debug, PartialEq)]
pub(in crate::amqp) enum Record {
    /// A worker takes these kinds.
    Kinds { worker: String, kinds: Vec<Announced> },
    /// An HTTP process has started.
    Front,
    /// Runs that are not to go on.
    Cancel(Vec<CancelOrder>),
    /// A queue is paused, or goes on.
    Pause(PauseOrder),
}

/// A record that says something to us; `None`: another type, of an older or a later version. With it, how many of its
/// entries cannot be read.
///
/// # Errors
/// What is wrong, in bounds.
pub(in crate::amqp) fn read(message: &Message) -> Result<Option<(Record, usize)>, String> {
    #[derive(Deserialize)]
    struct Kinds<'a> {
        worker: String,
        #[serde(borrow)]
        kinds: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Cancel<'a> {
        by: Option<String>,
        reason: Option<String>,
        #[serde(borrow)]
        orders: Vec<&'a RawValue>,
    }
    let body = &message.body;
    Ok(Some(match message.kind.as_deref() {
        Some(KINDS) => {
            let Kinds { worker, kinds } = json::read(body)?;
            let (kinds, skipped) = entries(&kinds);
            (Record::Kinds { worker: clip(&worker, PROCESS_MAX).to_owned(), kinds }, skipped)
        }
        Some(CANCEL) => {
            let Cancel { by, reason, orders } = json::read(body)?;
            let (orders, skipped) = entries::<CancelOrder>(&orders);
            let whole = |mut order: CancelOrder| {
                order.by = order.by.or_else(|| by.clone());
                order.reason = order.reason.or_else(|| reason.clone());
                order.bounded()
            };
            (Record::Cancel(orders.into_iter().map(whole).collect()), skipped)
        }
        Some(PAUSE) => (Record::Pause(json::read::<PauseOrder>(body)?.bounded()), 0),
        Some(FRONT) => (Record::Front, 0),
        _ => return Ok(None),
    }))
}

/// The text that all of these orders have, if there is one.
fn shared(orders: &[CancelOrder], text: impl Fn(&CancelOrder) -> Option<&str>) -> Option<&str> {
    let first = text(orders.first()?)?;
    orders.iter().all(|order| text(order) == Some(first)).then_some(first)
}

fn entries<T: DeserializeOwned>(raw: &[&RawValue]) -> (Vec<T>, usize) {
    let read: Vec<T> = raw.iter().filter_map(|entry| serde_json::from_str(entry.get()).ok()).collect();
    let skipped = raw.len() - read.len();
    (read, skipped)
}

/// A record to be written, and its routing key.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) key: String,
    pub(crate) message: Message,
}

impl Written {
    fn new(key: String, kind: &str, body: &impl Serialize) -> Self {
        // Names, texts and times: nothing here can fail.
        let body = serde_json::to_vec(body).unwrap_or_default();
        let message = Message {
            message_id: Some(JobId::new().to_string()),
            kind: Some(kind.to_owned()),
            content_type: Some("application/json".to_owned()),
            body: Bytes::from(body),
            ..Message::default()
        };
        Self { key, message }
    }

    /// What a worker takes.
    pub(crate) fn kinds(worker: &str, kinds: &[Announced]) -> Self {
        #[derive(Serialize)]
        struct Body<'a> {
            worker: &'a str,
            kinds: &'a [Announced],
        }
        Self::new(format!("kinds.{worker}"), KINDS, &Body { worker, kinds })
    }

    /// That there is an HTTP process.
    pub(crate) fn front(instance: &str) -> Self {
        #[derive(Serialize)]
        struct Body<'a> {
            front: &'a str,
        }
        Self::new(format!("front.{instance}"), FRONT, &Body { front: instance })
    }

    /// At most [`ORDERS_MAX`] orders. Texts that all of them have are written once: in each of half a million orders a
    /// long reason would fill the log, and push out what still holds.
    pub(crate) fn cancel(orders: &[CancelOrder]) -> Self {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            by: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            orders: Vec<CancelOrder>,
        }
        let by = shared(orders, |order| order.by.as_deref());
        let reason = shared(orders, |order| order.reason.as_deref());
        let rest = |order: &CancelOrder| CancelOrder {
            id: order.id,
            run: order.run,
            by: order.by.clone().filter(|_| by.is_none()),
            reason: order.reason.clone().filter(|_| reason.is_none()),
            at: order.at,
        };
        Self::new(
            "cancel".to_owned(),
            CANCEL,
            &Body { by, reason, orders: orders.iter().map(rest).collect() },
        )
    }

    pub(crate) fn pause(order: &PauseOrder) -> Self {
        Self::new(format!("pause.{}", order.queue), PAUSE, order)
    }

    /// Says when it is written: by this others see whether a record is about to leave the log.
    pub(crate) fn stamped(mut self, now: Timestamp) -> Self {
        self.message.timestamp = u64::try_from(now.as_second()).ok();
        self
    }
}

/// Now, as precise as the wire has it.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

pub(crate) mod time {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::time_text(*at))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Kind;

    fn order(run: u32) -> CancelOrder {
        CancelOrder {
            id: JobId::new(),
            run,
            by: Some("ops".into()),
            reason: None,
            at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        }
    }

    fn message(kind: &str, body: &str) -> Message {
        Message { kind: Some(kind.into()), body: Bytes::from(body.to_owned()), ..Message::default() }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let orders = [order(1), order(2)];
        let written = Written::cancel(&orders);
        assert_eq!(written.key, "cancel");
        assert_eq!(read(&written.message).unwrap(), Some((Record::Cancel(orders.to_vec()), 0)));

        let pause =
            PauseOrder { queue: QueueName::parse("media").unwrap(), paused: true, by: None, at: now() };
        let written = Written::pause(&pause);
        assert_eq!(written.key, "pause.media");
        assert_eq!(read(&written.message).unwrap(), Some((Record::Pause(pause), 0)));

        let (kind, queue) = (Kind::parse("image.thumbnail").unwrap(), QueueName::parse("media").unwrap());
        let kinds = vec![Announced { private: true, ..Announced::new(kind, queue) }];
        let written = Written::kinds("w-1", &kinds);
        assert_eq!(written.key, "kinds.w-1");
        let worker = "w-1".to_owned();
        assert_eq!(read(&written.message).unwrap(), Some((Record::Kinds { worker, kinds }, 0)));
        assert_eq!(read(&Written::front("web").message).unwrap(), Some((Record::Front, 0)));
    }

    #[test]
    fn texts_of_all_orders_are_written_once() {
        let with = |by: Option<&str>, reason: Option<&str>| CancelOrder {
            by: by.map(str::to_owned),
            reason: reason.map(str::to_owned),
            ..order(1)
        };
        // orders -> how often "ops" and "why" are written
        for (orders, ops, why) in [
            (vec![with(Some("ops"), Some("why")), with(Some("ops"), Some("why"))], 1, 1),
            (vec![with(Some("ops"), Some("why")), with(Some("ops"), None)], 1, 1),
            (vec![with(Some("ops"), Some("why")), with(Some("dev"), Some("why"))], 1, 1),
            (vec![with(Some("ops"), None), with(None, None), with(Some("ops"), None)], 2, 0),
            (vec![with(None, None)], 0, 0),
            (vec![], 0, 0),
        ] {
            let written = Written::cancel(&orders).message;
            let text = String::from_utf8(written.body.to_vec()).unwrap();
            assert_eq!((text.matches("ops").count(), text.matches("why").count()), (ops, why), "{text}");
            assert_eq!(read(&written).unwrap(), Some((Record::Cancel(orders), 0)), "{text}");
        }
        // An order's own text counts; earlier versions wrote no other.
        let good = serde_json::to_string(&with(Some("dev"), None)).unwrap();
        let body = format!(r#"{{"by":"ops","reason":"{}","orders":[{good}]}}"#, "r".repeat(2000));
        let (record, _) = read(&message(CANCEL, &body)).unwrap().unwrap();
        let Record::Cancel(orders) = record else { panic!("{record:?}") };
        assert_eq!(
            (orders[0].by.as_deref(), orders[0].reason.as_deref().map(str::len)),
            (Some("dev"), Some(REASON_MAX))
        );
    }

    #[test]
    fn one_bad_entry_costs_no_other() {
        let body =
            r#"{"worker":"w","kinds":[{"kind":"Not A Kind","queue":"a"},{"kind":"k","queue":"a"},17]}"#;
        let (record, skipped) = read(&message(KINDS, body)).unwrap().unwrap();
        let Record::Kinds { kinds, .. } = record else { panic!("{record:?}") };
        assert_eq!((kinds.len(), kinds[0].kind.as_str(), skipped), (1, "k", 2));

        let good = serde_json::to_string(&order(1)).unwrap();
        let body = format!(r#"{{"orders":[{{"id":"x"}},{good},null]}}"#);
        let (record, skipped) = read(&message(CANCEL, &body)).unwrap().unwrap();
        let Record::Cancel(orders) = record else { panic!("{record:?}") };
        assert_eq!((orders.len(), skipped), (1, 2));
    }

    #[test]
    fn other_types_are_passed_over_and_broken_ones_are_errors() {
        for other in ["hopline.barrier", "hopline.tomorrow", ""] {
            assert_eq!(read(&message(other, "{}")).unwrap(), None);
        }
        for broken in ["", "[]", "{}", r#"{"queue":"log","paused":true,"at":"2026-01-01T00:00:00Z"}"#] {
            assert!(read(&message(PAUSE, broken)).is_err(), "{broken}");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let long = CancelOrder { by: Some("b".repeat(900)), reason: Some("ä".repeat(900)), ..order(1) };
        let (by, reason) = (long.clone().bounded().by.unwrap(), long.bounded().reason.unwrap());
        assert_eq!((by.len(), reason.len()), (BY_MAX, REASON_MAX));
    }
}
