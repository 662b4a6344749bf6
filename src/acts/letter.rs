//! What a message says of its job, also where it cannot be decoded; and the message that starts its next run. Pure.

use bytes::Bytes;
use jiff::Timestamp;

use super::words::REPLAYED_BY;
use crate::{
    amqp::Names,
    event::{Data, Event, EventType},
    job::{
        Envelope, JobId, Kind, QueueName,
        dead::{self, mark},
        envelope::{DecodeError, Place, carried_all, header, id_of, place_of},
        wire::{HeaderValue, Headers, Incoming, Message},
    },
};

/// What is known of a message that is not decoded as a whole.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) id: JobId,
    pub(super) queue: QueueName,
    /// None where its type is no kind.
    pub(super) kind: Option<Kind>,
    /// The run that it belongs to: of a dead one, the run that ended.
    pub(super) run: u32,
    pub(super) attempt: u32,
    pub(super) step: u32,
    pub(super) tags: Vec<String>,
    pub(super) created_at: Option<Timestamp>,
    /// Its marks of death; empty where it has none.
    pub(super) code: String,
    pub(super) error: String,
    pub(super) fingerprint: String,
    /// The act that started the run.
    pub(super) replayed_by: Option<String>,
}

impl Facts {
    /// Reads `message`, which came from `queue` or its dead-letter queue. What lies nowhere says where it belongs.
    pub(super) fn of(message: &Message, queue: &QueueName) -> Self {
        let named = Some(queue).filter(|queue| **queue == Names::nowhere());
        let named = named.and_then(|_| dead::queue_of(message));
        let queue = named.as_ref().unwrap_or(queue);
        let kind = message.kind.as_deref().and_then(|kind| Kind::parse(kind).ok());
        let (code, error) = (text(&message.headers, mark::CODE), text(&message.headers, mark::ERROR));
        let fingerprint = dead::fingerprint(kind.as_ref().map(Kind::as_str), code, error);
        let bare = headers_alone(message);
        // As the worker had it that gave up on the message: it may have been unable to read the rest as well.
        let Place { run, attempt, step } = place_of(&bare);
        let incoming = Incoming { message: bare, ..Incoming::default() };
        let read = Envelope::decode(&incoming, queue, usize::MAX).ok().map(|decoded| decoded.envelope);
        Self {
            id: id_of(message, queue),
            queue: queue.clone(),
            kind,
            run,
            attempt,
            step,
            code: code.to_owned(),
            error: error.to_owned(),
            fingerprint,
            replayed_by: Some(text(&message.headers, REPLAYED_BY).to_owned()).filter(|act| !act.is_empty()),
            created_at: read.as_ref().and_then(|envelope| envelope.created_at),
            tags: read.map(|envelope| envelope.tags).unwrap_or_default(),
        }
    }

    /// An event about the run that the message belongs to.
    pub(super) fn event(&self, event_type: EventType, source: &str, time: Timestamp) -> Event {
        let data = Data {
            kind: self.kind.clone(),
            queue: Some(self.queue.clone()),
            run: self.run,
            attempt: self.attempt,
            step: self.step,
            created_at: self.created_at,
            tags: self.tags.clone(),
            ..Data::default()
        };
        Event { event_type, job: self.id, source: source.to_owned(), time, data }
    }
}

/// The message's headers as those of a job, without its args, and without its marks: they would make it the next run's.
fn headers_alone(message: &Message) -> Message {
    let mut headers = carried_all(&message.headers);
    dead::unmark(&mut headers);
    let kind = message.kind.clone().filter(|kind| Kind::parse(kind.as_str()).is_ok());
    Message {
        kind: Some(kind.unwrap_or_else(|| "unknown".to_owned())),
        headers,
        body: Bytes::from_static(b"{}"),
        ..message.clone()
    }
}

fn text<'a>(headers: &'a Headers, name: &str) -> &'a str {
    match headers.get(name) {
        Some(HeaderValue::Text(text)) => text,
        _ => "",
    }
}

/// The job of a dead message in its next run, with other args where `set` has some, as `act` asks for it.
///
/// # Errors
/// [`DecodeError`]: it is still no job.
pub(super) fn next_run(
    incoming: &Incoming,
    queue: &QueueName,
    limit: usize,
    set: Option<&Bytes>,
    act: JobId,
) -> Result<Envelope, DecodeError> {
    let mut incoming = incoming.clone();
    if let Some(args) = set {
        incoming.message.body = args.clone();
    }
    let mut envelope = Envelope::decode(&incoming, queue, limit)?.envelope;
    if !dead::is_marked(&incoming.message.headers) {
        // Put into the dead-letter queue by hand.
        envelope.start_next_run();
    }
    // The copy in the dead-letter queue lives until this one is confirmed, and may be replayed a second time.
    envelope.unsure = true;
    envelope.extra.insert(REPLAYED_BY.to_owned(), act.to_string().into());
    Ok(envelope)
}

/// The same for a message that is no job we can read: its bytes as they are.
pub(super) fn next_run_raw(message: &Message, facts: &Facts, act: JobId) -> Message {
    let mut headers = carried_all(&message.headers);
    dead::unmark(&mut headers);
    for name in [header::ATTEMPT, header::STEP, header::PATIENCE, header::EXPIRES_AT, header::DUE_AT] {
        headers.remove(name);
    }
    headers.insert(header::RUN.to_owned(), facts.run.saturating_add(1).into());
    headers.insert(header::UNSURE.to_owned(), true.into());
    headers.insert(REPLAYED_BY.to_owned(), act.to_string().into());
    Message { message_id: Some(facts.id.to_string()), headers, ..message.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::dead::{Death, Reason};

    fn queue() -> QueueName {
        QueueName::parse("media").unwrap()
    }

    #[test]
    fn what_lies_nowhere_says_where_it_belongs() {
        let message = dead::belongs_to(Message::default(), &queue());
        assert_eq!(Facts::of(&message, &Names::nowhere()).queue, queue());
        assert_eq!(Facts::of(&Message::default(), &Names::nowhere()).queue, Names::nowhere());
        // Anybody may have written that.
        let other = QueueName::parse("other").unwrap();
        assert_eq!(Facts::of(&message, &other).queue, other);
    }

    fn dead_job() -> (Envelope, Message) {
        let mut envelope = Envelope::new(Kind::parse("a.b").unwrap(), queue(), Bytes::from_static(b"[1]"));
        (envelope.run, envelope.attempt, envelope.step) = (2, 5, 7);
        envelope.tags = vec!["x".into(), "y".into()];
        envelope.created_at = Timestamp::from_millisecond(1_700_000_000_123).ok();
        envelope.expires_at = Some(Timestamp::UNIX_EPOCH);
        let death = Death {
            reason: Reason::Exhausted,
            code: "c",
            error: "no 5",
            attempts: 5,
            worker: "w",
            at: Timestamp::UNIX_EPOCH,
        };
        let message = mark(envelope.encode(), &death);
        (envelope, message)
    }

    fn incoming(message: &Message) -> Incoming {
        Incoming { message: message.clone(), ..Incoming::default() }
    }

    #[test]
    fn a_dead_message_says_which_run_ended() {
        let (job, message) = dead_job();
        let facts = Facts::of(&message, &queue());
        assert_eq!((facts.id, facts.run, facts.attempt, facts.step), (job.id, 2, 5, 7));
        assert_eq!(
            (&facts.kind, &facts.tags, facts.created_at),
            (&Some(job.kind), &job.tags, job.created_at)
        );
        assert_eq!(facts.fingerprint, dead::fingerprint(Some("a.b"), "c", "no 5"));
        assert_eq!(facts.replayed_by, None);
    }

    #[test]
    fn what_cannot_be_read_still_has_an_id_and_a_group() {
        let (_, mut message) = dead_job();
        message.kind = Some("Not A Kind".into());
        message.body = Bytes::from_static(b"\xff");
        let facts = Facts::of(&message, &queue());
        assert_eq!((facts.kind, facts.run), (None, 2));
        assert_eq!(facts.fingerprint, dead::fingerprint(None, "c", "no 5"));
        // One header is broken, or the version is a later one's: the run is what the worker took it for.
        for (name, value) in [(header::TAGS, HeaderValue::Int(7)), (header::VERSION, HeaderValue::Int(2))] {
            let mut message = message.clone();
            message.headers.insert(name.into(), value);
            let facts = Facts::of(&message, &queue());
            assert_eq!((facts.run, facts.attempt, facts.step), (2, 5, 7), "{name}");
            assert_eq!(
                next_run_raw(&message, &facts, JobId::new()).headers[header::RUN],
                HeaderValue::Int(3)
            );
        }
        message.headers.insert(header::RUN.into(), "many".into());
        assert_eq!(Facts::of(&message, &queue()).run, 1, "a header that is broken says nothing");
    }

    #[test]
    fn the_next_run_starts_afresh_and_knows_its_act() {
        let ((job, message), act) = (dead_job(), JobId::new());
        let next = next_run(&incoming(&message), &queue(), 100, None, act).unwrap();
        assert_eq!((next.id, next.run, next.attempt, next.step), (job.id, 3, 1, 0));
        assert_eq!((next.expires_at, next.unsure, &next.args), (None, true, &job.args));
        assert!(!dead::is_marked(&next.encode().headers));
        let again = mark(
            next.encode(),
            &Death {
                reason: Reason::Fatal,
                code: "",
                error: "",
                attempts: 1,
                worker: "",
                at: Timestamp::UNIX_EPOCH,
            },
        );
        assert_eq!(Facts::of(&again, &queue()).replayed_by, Some(act.to_string()));
    }

    #[test]
    fn new_args_may_mend_a_broken_message() {
        let (_, mut message) = dead_job();
        message.body = Bytes::from_static(b"{");
        let (act, args) = (JobId::new(), Bytes::from_static(b"{\"a\":1.50}"));
        assert!(next_run(&incoming(&message), &queue(), 100, None, act).is_err());
        let mended = next_run(&incoming(&message), &queue(), 100, Some(&args), act).unwrap();
        assert_eq!((mended.args, mended.run), (args, 3));
    }

    #[test]
    fn a_message_without_marks_starts_its_next_run_too() {
        let (job, _) = dead_job();
        let next = next_run(&incoming(&job.encode()), &queue(), 100, None, JobId::new()).unwrap();
        assert_eq!((next.run, next.attempt, next.expires_at), (3, 1, None));
    }

    #[test]
    fn a_raw_replay_keeps_the_bytes() {
        let (_, mut message) = dead_job();
        (message.kind, message.body) = (None, Bytes::from_static(b"\xff\xfe"));
        message.headers.insert("x-death".into(), 1_i64.into());
        message.headers.insert("mine".into(), "kept".into());
        let facts = Facts::of(&message, &queue());
        let raw = next_run_raw(&message, &facts, JobId::new());
        assert_eq!((&raw.body, raw.message_id), (&message.body, Some(facts.id.to_string())));
        assert_eq!(raw.headers[header::RUN], HeaderValue::Int(3));
        assert!(raw.headers.contains_key("mine") && !dead::is_marked(&raw.headers));
        for gone in ["x-death", header::STEP, header::ATTEMPT, header::EXPIRES_AT] {
            assert!(!raw.headers.contains_key(gone), "{gone}");
        }
    }
}
