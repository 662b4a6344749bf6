//! What holds for strays and letters ([`crate::fuzzing`]).

use bytes::Bytes;

use super::{
    letter::{Facts, next_run, next_run_raw},
    stray::Stray,
    wanted::Wanted,
};
use crate::{
    amqp::Names,
    fuzzing::bounded,
    job::{
        Envelope, JobId, QueueName,
        dead::{self, Reason},
        envelope::{carried_all, place_of},
        wire::{Incoming, Message},
    },
    record::model::Filter,
};

/// A message that the broker moved, or that lies in a dead-letter queue: whatever it is, something is known of it, and
/// its job has a next run.
pub(crate) fn letter_holds(incoming: &Incoming, queue: &QueueName, limit: usize) {
    bounded(&Stray::of(incoming, &Names::new("hopline", "")).detail);
    let message = &incoming.message;
    let facts = Facts::of(message, queue);
    // As whoever gave it up had it: also of what cannot be read as a whole.
    let mut headers = carried_all(&message.headers);
    dead::unmark(&mut headers);
    let ended = place_of(&Message { headers, ..message.clone() });
    assert_eq!((facts.run, facts.attempt, facts.step), (ended.run, ended.attempt, ended.step));
    assert_eq!(facts.fingerprint.len(), 16);
    let act = JobId::from_bytes([7; 16]);
    let next = match next_run(incoming, queue, limit, None, act) {
        Ok(envelope) => {
            let next = Incoming { message: envelope.encode(), ..Incoming::default() };
            let read = Envelope::decode(&next, queue, limit).expect("what was written").envelope;
            assert!(read.unsure && read.run == envelope.run && read.attempt == 1);
            next.message
        }
        Err(error) => {
            bounded(&error.to_string());
            // Other args mend it, unless its headers are what is wrong.
            drop(next_run(incoming, queue, limit, Some(&Bytes::from_static(b"{}")), act));
            next_run_raw(message, &facts, act)
        }
    };
    assert!(!dead::is_marked(&next.headers));
    assert_eq!(place_of(&next).run, facts.run.saturating_add(1));
    let known = Facts::of(&next, queue).replayed_by;
    assert_eq!(known, Some(act.to_string()));
    if message.message_id.as_deref().is_some_and(|id| !id.is_empty()) {
        assert_eq!(Facts::of(&next, queue).id, facts.id);
    }
}

/// Of the dead letter of a job it is known which run ended.
pub(crate) fn ended_run_is_known(letter: &Message, envelope: &Envelope) {
    let facts = Facts::of(letter, &envelope.queue);
    let Envelope { id, run, attempt, step, .. } = *envelope;
    assert_eq!((facts.id, facts.run, facts.attempt, facts.step), (id, run, attempt, step));
    assert_eq!((&facts.tags, facts.created_at), (&envelope.tags, envelope.created_at));
}

fn stray(key: &str) -> Stray {
    let incoming = Incoming { routing_key: key.to_owned(), ..Incoming::default() };
    Stray::of(&incoming, &Names::new("hopline", ""))
}

/// Any routing key leads somewhere.
pub(crate) fn key_holds(key: &str) {
    let stray = stray(key);
    bounded(&stray.detail);
    assert!(stray.may_be_offered() || stray.queue.as_str() == "nowhere");
}

/// What fell off the ladder goes back to its queue.
pub(crate) fn key_leads_to(key: &str, queue: &QueueName) {
    let stray = stray(key);
    assert_eq!((&stray.queue, stray.reason), (queue, Reason::Unroutable));
}

/// What passed as a filter is one that messages are compared with, too.
pub(crate) fn filter_is_wanted(filter: &Filter) {
    let filter = Filter { status: Vec::new(), ..filter.clone() };
    let wanted = Wanted::new(&filter, None, None).expect("a checked filter");
    let queue = QueueName::parse("media").expect("a literal within the rule");
    wanted.has(&Facts::of(&Message::default(), &queue));
}
