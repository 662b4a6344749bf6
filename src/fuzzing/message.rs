//! What holds for any message that a broker may hand over.

use std::fmt::Debug;

use jiff::Timestamp;

use super::Input;
use crate::{
    amqp::{Names, delay},
    event::{self, Event, EventType, batch},
    job::{
        Envelope, QueueName,
        dead::{self, Death, Reason},
        envelope::{DecodeError, id_of, patience_of, patient_copy, place_of, raw_copy},
        wire::{Incoming, Message},
    },
    retry::{MAX_ATTEMPTS, RetryPolicy},
};

/// Longest args.
const LIMIT: usize = 2048;
/// Longest word about what is wrong with an input; names that are quoted have at most 120 characters, each of which may
/// be written as an escape.
const WORD_MAX: usize = 1500;

/// A message of parts that are chosen by the input.
pub(super) fn envelope(data: &[u8]) {
    incoming_holds(&Input(data).incoming());
}

/// What is said of something wrong does not grow with it.
pub(crate) fn bounded(word: &str) {
    assert!(word.len() <= WORD_MAX, "{} bytes: {}", word.len(), dead::clip(word, 200));
}

/// The same, but for a NaN, which is another one than itself.
fn same<T: Debug>(one: &T, other: &T) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

fn delivered(message: Message) -> Incoming {
    Incoming { message, ..Incoming::default() }
}

pub(crate) fn incoming_holds(incoming: &Incoming) {
    let queue = QueueName::parse("media").expect("a literal within the rule");
    let message = &incoming.message;
    match Envelope::decode(incoming, &queue, LIMIT) {
        Ok(decoded) => {
            assert_eq!(decoded.envelope.args, message.body);
            assert_eq!(decoded.adopt, message.message_id.as_deref().is_none_or(str::is_empty));
            if !decoded.adopt {
                assert_eq!(id_of(message, &queue), decoded.envelope.id);
            }
            let place = place_of(message);
            let Envelope { run, attempt, step, .. } = decoded.envelope;
            assert_eq!((place.run, place.attempt, place.step), (run, attempt, step));
            envelope_holds(&decoded.envelope);
        }
        Err(error) => unreadable_holds(message, &queue, &error),
    }
    crate::acts::fuzzing::letter_holds(incoming, &queue, LIMIT);
}

/// A message that is no job is tried again, or is dead, as it came.
fn unreadable_holds(message: &Message, queue: &QueueName, error: &DecodeError) {
    bounded(&error.to_string());
    let raw = raw_copy(message, queue);
    same(&raw_copy(&raw, queue), &raw);
    assert_eq!((&raw.body, &raw.kind), (&message.body, &message.kind));
    assert_eq!(place_of(&raw).run, place_of(message).run);
    let patient = patient_copy(message, queue);
    assert_eq!(patience_of(&patient), patience_of(message).saturating_add(1));
    assert_eq!(place_of(&patient).step, place_of(message).step.saturating_add(1));
}

/// What a worker read it can publish again, whatever comes of it, and the next worker reads the same.
pub(crate) fn envelope_holds(envelope: &Envelope) {
    let again = |envelope: &Envelope| {
        let decoded = Envelope::decode(&delivered(envelope.encode()), &envelope.queue, LIMIT);
        let decoded = decoded.unwrap_or_else(|error| panic!("{error}: {envelope:?}"));
        assert!(!decoded.adopt);
        decoded.envelope
    };
    same(&again(envelope), envelope);
    let stepped = envelope.clone().next_step();
    same(&again(&stepped), &stepped);
    if envelope.attempt < MAX_ATTEMPTS {
        let next = envelope.clone().next_attempt();
        same(&again(&next), &next);
    }
    dying_holds(envelope);
    event_is_kept(&Event::of(EventType::Succeeded, envelope, "fuzz", Timestamp::UNIX_EPOCH));
    assert!(event::inline(&envelope.args, usize::MAX, false).is_some(), "args travel as JSON");
    let policy = envelope.retry.over(RetryPolicy::default());
    let ticks = delay::ticks_capped(policy.delay(envelope.attempt, envelope.id.seed(envelope.attempt)));
    let (exchange, key) = Names::new("hopline", "").route(&envelope.queue, envelope.kind.as_str(), ticks);
    assert!(exchange.len() <= 255 && key.len() <= 255);
}

/// Dead and moved back, it is the next run; and it says which run ended.
fn dying_holds(envelope: &Envelope) {
    let death = Death {
        reason: Reason::Exhausted,
        code: "error",
        error: "no",
        attempts: envelope.attempt,
        worker: "fuzz",
        at: Timestamp::UNIX_EPOCH,
    };
    let dead = delivered(dead::mark(envelope.encode(), &death));
    let replayed =
        Envelope::decode(&dead, &envelope.queue, LIMIT).expect("only the marks came to it").envelope;
    assert_eq!((replayed.id, replayed.run), (envelope.id, envelope.run.saturating_add(1)));
    assert_eq!((replayed.attempt, replayed.step, replayed.expires_at), (1, 0, None));
    assert!(!dead::is_marked(&replayed.encode().headers));
    crate::acts::fuzzing::ended_run_is_known(&dead.message, envelope);
}

/// An event that is written is read, by this version and so by every process.
pub(crate) fn event_is_kept(event: &Event) {
    let written = batch::encode_one(event);
    let (read, skipped) = batch::decode(&batch::join([written.as_slice()])).expect("a batch");
    assert!(skipped == 0 && read.len() == 1, "{}", String::from_utf8_lossy(&written));
    let (index, read) = &read[0];
    assert_eq!((*index, read.id(), read.rank()), (0, event.id(), event.rank()));
    assert_eq!(String::from_utf8_lossy(&batch::encode_one(read)), String::from_utf8_lossy(&written));
    assert!(event.routing_key().len() <= 255);
}
