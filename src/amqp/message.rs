//! Our messages as lapin's types, and back.

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, ByteArray, FieldArray, FieldTable, ShortString},
};

use crate::job::wire::{HeaderValue, Headers, Incoming, Message};

/// Header in which a quorum queue counts how often a message came back.
const DELIVERY_COUNT: &str = "x-delivery-count";
const PERSISTENT: u8 = 2;

/// A text that an AMQP short string can hold; a longer one is cut. Names are bounded where they are parsed, so
/// only foreign text (an app id, a correlation id) can be too long, and such came from a short string itself.
pub(crate) fn short(text: &str) -> ShortString {
    ShortString::try_new(crate::job::dead::clip(text, 255)).unwrap_or_default()
}

pub(crate) fn properties(message: &Message) -> BasicProperties {
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if !message.headers.is_empty() {
        properties = properties.with_headers(table(&message.headers));
    }
    if let Some(id) = &message.message_id {
        properties = properties.with_message_id(short(id));
    }
    if let Some(kind) = &message.kind {
        properties = properties.with_type(short(kind));
    }
    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(short(content_type));
    }
    if let Some(encoding) = &message.content_encoding {
        properties = properties.with_content_encoding(short(encoding));
    }
    if let Some(id) = &message.correlation_id {
        properties = properties.with_correlation_id(short(id));
    }
    if let Some(to) = &message.reply_to {
        properties = properties.with_reply_to(short(to));
    }
    if let Some(app) = &message.app_id {
        properties = properties.with_app_id(short(app));
    }
    if let Some(seconds) = message.timestamp {
        properties = properties.with_timestamp(seconds);
    }
    properties
}

pub(crate) fn incoming(delivery: Delivery) -> Incoming {
    let Delivery { exchange, routing_key, redelivered, properties, data, .. } = delivery;
    let headers = properties.headers().as_ref().map(read_table).unwrap_or_default();
    let returns = match headers.get(DELIVERY_COUNT) {
        Some(HeaderValue::Int(count)) => u32::try_from(*count).unwrap_or(0),
        _ => 0,
    };
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    let message = Message {
        message_id: text(properties.message_id()),
        kind: text(properties.kind()),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        app_id: text(properties.app_id()),
        timestamp: *properties.timestamp(),
        headers,
        body: data.into(),
    };
    Incoming { message, exchange: exchange.into(), routing_key: routing_key.into(), redelivered, returns }
}

fn table(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(short(name), write(value));
    }
    table
}

fn write(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Int(value) => AMQPValue::LongLongInt(*value),
        HeaderValue::Double(value) => AMQPValue::Double(*value),
        HeaderValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
        HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(ByteArray::from(bytes.as_slice())),
        HeaderValue::Time(seconds) => AMQPValue::Timestamp(*seconds),
        HeaderValue::List(items) => {
            AMQPValue::FieldArray(FieldArray::from(items.iter().map(write).collect::<Vec<_>>()))
        }
        HeaderValue::Table(inner) => AMQPValue::FieldTable(table(inner)),
        HeaderValue::Void => AMQPValue::Void,
    }
}

fn read_table(table: &FieldTable) -> Headers {
    table.inner().iter().map(|(name, value)| (name.as_str().to_owned(), read(value))).collect()
}

fn read(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        AMQPValue::ShortShortInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortShortUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongLongInt(value) => HeaderValue::Int(*value),
        AMQPValue::Float(value) => HeaderValue::Double((*value).into()),
        AMQPValue::Double(value) => HeaderValue::Double(*value),
        AMQPValue::DecimalValue(value) => {
            HeaderValue::Double(f64::from(value.value) / 10_f64.powi(i32::from(value.scale)))
        }
        AMQPValue::ShortString(text) => HeaderValue::Text(text.as_str().to_owned()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => HeaderValue::Bytes(text.as_bytes().to_vec()),
        },
        AMQPValue::FieldArray(items) => HeaderValue::List(items.as_slice().iter().map(read).collect()),
        AMQPValue::Timestamp(seconds) => HeaderValue::Time(*seconds),
        AMQPValue::FieldTable(inner) => HeaderValue::Table(read_table(inner)),
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(bytes.as_slice().to_vec()),
        AMQPValue::Void => HeaderValue::Void,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_survives() {
        let inner = Headers::from([("a".to_owned(), HeaderValue::Void)]);
        let all = Headers::from([
            ("bool".to_owned(), HeaderValue::Bool(true)),
            ("int".to_owned(), HeaderValue::Int(-7)),
            ("double".to_owned(), HeaderValue::Double(1.5)),
            ("text".to_owned(), "äöü".into()),
            ("bytes".to_owned(), HeaderValue::Bytes(vec![0xff, 0])),
            ("time".to_owned(), HeaderValue::Time(1_700_000_000)),
            ("list".to_owned(), HeaderValue::List(vec![HeaderValue::Int(1), "x".into()])),
            ("table".to_owned(), HeaderValue::Table(inner)),
            ("void".to_owned(), HeaderValue::Void),
        ]);
        assert_eq!(read_table(&table(&all)), all);
    }

    #[test]
    fn foreign_number_types_are_one() {
        for value in [AMQPValue::ShortShortUInt(7), AMQPValue::LongInt(7), AMQPValue::LongUInt(7)] {
            assert_eq!(read(&value), HeaderValue::Int(7));
        }
        assert_eq!(read(&AMQPValue::LongString(vec![0xff].into())), HeaderValue::Bytes(vec![0xff]));
    }

    #[test]
    fn messages_are_persistent() {
        assert_eq!(*properties(&Message::default()).delivery_mode(), Some(PERSISTENT));
    }
}
