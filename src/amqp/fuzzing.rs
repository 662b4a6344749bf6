//! What holds for messages on their way through the AMQP client, and for what others say on the broker
//! ([`crate::fuzzing`]).

use std::io::Cursor;

use bytes::Bytes;
use lapin::{
    message::Delivery,
    protocol::{
        BasicProperties,
        basic::{gen_properties, parse_properties},
    },
    types::ShortString,
};

use super::{
    control::{
        CancelOrder, Written,
        record::{self, PauseOrder, Record},
    },
    heartbeats::Heartbeat,
    message,
};
use crate::{
    fuzzing::{Input, bounded, incoming_holds},
    job::{
        Reply, json,
        wire::{Incoming, Message},
    },
    record::lookup::{LookupAnswer, LookupRequest},
};

/// Room for the properties of a message: inputs are far smaller.
const FRAME: usize = 64 << 10;

fn delivery(properties: BasicProperties, body: &[u8]) -> Delivery {
    let mut delivery =
        Delivery::mock(1, ShortString::default(), ShortString::default(), false, body.to_vec());
    delivery.properties = properties;
    delivery
}

/// A message through its bytes in a frame, and back.
pub(crate) fn over_the_wire(message: &Message) -> Message {
    let properties = message::properties(message);
    let mut frame = vec![0; FRAME];
    let written = gen_properties::<Cursor<&mut [u8]>>(&properties)(Cursor::new(&mut frame[..]).into());
    let (_, length) = written.expect("there is room").into_inner();
    frame.truncate(usize::try_from(length).expect("in memory"));
    let (rest, properties) = parse_properties(frame.as_slice()).expect("what was written");
    assert!(rest.is_empty());
    message::incoming(delivery(properties, &message.body)).message
}

/// The properties of a message as a frame has them; what follows is the body.
pub(crate) fn properties(data: &[u8]) {
    // Nesting as deep as a longer input could make it is known to overflow the stack, in the AMQP client itself.
    let Some(data) = data.get(..data.len().min(2048)) else { return };
    let Ok((body, properties)) = parse_properties(data) else { return };
    let incoming = message::incoming(delivery(properties, body));
    let Incoming { message, .. } = &incoming;
    let again = over_the_wire(message);
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
    incoming_holds(&incoming);
}

/// A record of the control log: its type, a line break, its body.
pub(crate) fn control(data: &[u8]) {
    let mut input = Input(data);
    let kind = String::from_utf8_lossy(input.line()).into_owned();
    let message = Message { kind: Some(kind), body: Bytes::copy_from_slice(input.0), ..Message::default() };
    match record::read(&message) {
        Ok(Some((record, _))) => record_holds(record),
        Ok(None) => {}
        Err(error) => bounded(&error),
    }
}

/// A record that was read is told again as the same.
fn record_holds(record: Record) {
    let written = match &record {
        Record::Kinds { worker, kinds } => Written::kinds(worker, kinds),
        Record::Front => Written::front("web"),
        Record::Cancel(orders) => Written::cancel(orders),
        Record::Pause(order) => Written::pause(order),
    };
    // Of a time finer than the wire has it, what is written is told once more: from then on it stays.
    let (read, skipped) = record::read(&written.message).expect("what was written").expect("a record");
    assert_eq!(skipped, 0);
    match (record, read) {
        (Record::Cancel(orders), Record::Cancel(read)) => {
            let known = |orders: &[CancelOrder]| -> Vec<_> {
                orders.iter().map(|order| (order.id, order.run, order.at.as_millisecond())).collect()
            };
            assert_eq!(known(&orders), known(&read));
            assert!(
                read.iter()
                    .zip(&orders)
                    .all(|(read, order)| (&read.by, &read.reason) == (&order.by, &order.reason))
            );
        }
        (Record::Pause(order), Record::Pause(read)) => {
            let known = |order: PauseOrder| (order.queue, order.paused, order.by, order.at.as_millisecond());
            assert_eq!(known(order), known(read));
        }
        (record, read) => assert_eq!(record, read),
    }
}

/// What comes to a process in answer to something, or unasked: a type, a line break, a body. Of a reply, what follows
/// the line are the properties of the message.
pub(crate) fn answers(data: &[u8]) {
    let mut input = Input(data);
    let kind = String::from_utf8_lossy(input.line()).into_owned();
    let body = input.0;
    match kind.as_str() {
        "hopline.lookup" => match json::read::<LookupRequest>(body) {
            Ok(asked) => {
                let written = serde_json::to_vec(&asked).expect("names and numbers");
                assert_eq!(json::read::<LookupRequest>(&written).as_ref(), Ok(&asked));
            }
            Err(error) => bounded(&error),
        },
        "hopline.lookup.answer" => match json::read::<LookupAnswer>(body) {
            Ok(answer) => {
                let written = serde_json::to_vec(&answer).expect("names, numbers and JSON");
                let read: LookupAnswer = json::read(&written).expect("what was written");
                assert_eq!(serde_json::to_vec(&read).expect("the same"), written);
            }
            Err(error) => bounded(&error),
        },
        "hopline.reply" => reply(body),
        _ => {
            let message =
                Message { kind: Some(kind), body: Bytes::copy_from_slice(body), ..Message::default() };
            match Heartbeat::read(&message) {
                Ok(Some(heartbeat)) => {
                    let written = serde_json::to_vec(&heartbeat).expect("names and numbers");
                    let message = Message { body: written.into(), ..message };
                    assert!(Heartbeat::read(&message).is_ok_and(|read| read.is_some()), "{message:?}");
                }
                Ok(None) => {}
                Err(error) => bounded(&error),
            }
        }
    }
}

fn reply(data: &[u8]) {
    let incoming = Input(data).incoming();
    match Reply::decode(&incoming.message) {
        Ok(reply) => {
            assert_eq!(Reply::decode(&over_the_wire(&reply.encode(None))).as_ref(), Ok(&reply));
            drop(reply.failure());
        }
        Err(error) => bounded(&error.to_string()),
    }
}
