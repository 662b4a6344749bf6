//! Why the broker moved a message, and where it was on its way to. Pure.
//!
//! A work queue dead-letters with its own name as routing key, and `x-death` says why. What falls off the delay ladder,
//! because no queue is bound for it, keeps the key it had there: the bits of its delay, then its address.

use crate::{
    amqp::{Names, delay::LEVELS},
    job::{
        QueueName,
        dead::Reason,
        wire::{HeaderValue, Headers, Incoming},
    },
    record::model::{JobStatus, Summary},
};

/// A message that the broker moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stray {
    /// The queue it was in, or was on its way to.
    pub(super) queue: QueueName,
    pub(super) reason: Reason,
    /// For people.
    pub(super) detail: String,
}

impl Stray {
    /// Reads what the broker says of a message.
    pub(super) fn of(incoming: &Incoming, names: &Names) -> Self {
        let headers = &incoming.message.headers;
        if let Some(queue) = off_the_ladder(&incoming.routing_key) {
            let detail = format!("queue {queue} did not exist when the job was due");
            return Self { queue, reason: Reason::Unroutable, detail };
        }
        let named = QueueName::parse(incoming.routing_key.as_str()).ok();
        let deaths = deaths(headers);
        let told = deaths
            .iter()
            .find(|death| named.as_ref().is_some_and(|queue| death.queue == names.queue(queue)))
            .or(deaths.first());
        let from = || told.and_then(|death| work_queue(death.queue, names));
        let queue = named.or_else(from).unwrap_or_else(Names::nowhere);
        let (reason, detail) = match told.map(|death| death.reason) {
            Some("delivery_limit") => (
                Reason::DeliveryLimit,
                "it came back to its queue more often than the queue's x-delivery-limit allows".to_owned(),
            ),
            Some("expired") => (
                Reason::BrokerExpired,
                "the broker expired it: the message, its queue or a policy has a TTL".to_owned(),
            ),
            Some("rejected") => (Reason::Rejected, "somebody rejected it".to_owned()),
            Some(other) => (Reason::Rejected, format!("the broker moved it: {}", clip(other))),
            None => (Reason::Unroutable, "nothing says how it came among the strays".to_owned()),
        };
        Self { queue, reason, detail }
    }

    /// Whether its job has never had its chance, so that it is offered to its queue once more.
    pub(super) fn may_be_offered(&self) -> bool {
        self.reason == Reason::Unroutable && self.queue != Names::nowhere()
    }
}

fn clip(text: &str) -> &str {
    crate::job::dead::clip(text, 100)
}

/// The queue of an address that follows the bits of a delay.
fn off_the_ladder(key: &str) -> Option<QueueName> {
    let mut words = key.split('.');
    for _ in 0..LEVELS {
        words.next().filter(|bit| matches!(*bit, "0" | "1"))?;
    }
    let queue = QueueName::parse(words.next()?).ok()?;
    // A lane follows.
    words.next().map(|_| queue)
}

/// The work queue of that name.
fn work_queue(name: &str, names: &Names) -> Option<QueueName> {
    let queue = name.rsplit_once(".q.").map_or(name, |(_, queue)| queue);
    QueueName::parse(queue).ok().filter(|queue| names.queue(queue) == name)
}

/// An entry of `x-death`.
struct DeathEntry<'a> {
    queue: &'a str,
    reason: &'a str,
}

/// The entries of `x-death`, the newest first.
fn deaths(headers: &Headers) -> Vec<DeathEntry<'_>> {
    let Some(HeaderValue::List(entries)) = headers.get("x-death") else { return Vec::new() };
    entries.iter().filter_map(death).collect()
}

fn death(entry: &HeaderValue) -> Option<DeathEntry<'_>> {
    let HeaderValue::Table(entry) = entry else { return None };
    match (entry.get("queue"), entry.get("reason")) {
        (Some(HeaderValue::Text(queue)), Some(HeaderValue::Text(reason))) => {
            Some(DeathEntry { queue, reason })
        }
        _ => None,
    }
}

/// What the record says of a stray.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Its run has not ended, as far as is known: it ends here.
    Open,
    /// Its run ended, or went on in another copy: it is good for nothing.
    Over,
}

/// Compares a stray of that run and step with what is known of its job.
///
/// A run that is dead already may be so by this very message, whose copy in the dead-letter queue is not confirmed
/// yet: it is done once more.
pub(super) fn known(run: u32, step: u32, job: Option<&Summary>) -> Known {
    let Some(job) = job else { return Known::Open };
    let over = match () {
        () if job.run != run => job.run > run,
        () if job.status == JobStatus::Dead => job.purged,
        () if job.status.is_final() => true,
        () => job.step > step,
    };
    if over { Known::Over } else { Known::Open }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::wire::Message;

    fn names() -> Names {
        Names::new("hopline", "")
    }

    fn entry(queue: &str, reason: &str) -> HeaderValue {
        HeaderValue::Table(Headers::from([
            ("queue".to_owned(), queue.into()),
            ("reason".to_owned(), reason.into()),
            ("count".to_owned(), 1_i64.into()),
        ]))
    }

    fn moved(key: &str, deaths: Vec<HeaderValue>) -> Stray {
        let mut message = Message::default();
        if !deaths.is_empty() {
            message.headers.insert("x-death".to_owned(), HeaderValue::List(deaths));
        }
        Stray::of(&Incoming { message, routing_key: key.to_owned(), ..Incoming::default() }, &names())
    }

    #[test]
    fn the_reason_is_in_x_death_and_the_queue_in_the_key() {
        use Reason::{BrokerExpired, DeliveryLimit, Rejected, Unroutable};
        let work = "hopline.q.media";
        for (key, deaths, queue, reason) in [
            ("media", vec![entry(work, "delivery_limit")], "media", DeliveryLimit),
            ("media", vec![entry(work, "expired")], "media", BrokerExpired),
            ("media", vec![entry(work, "rejected")], "media", Rejected),
            ("media", vec![entry(work, "maxlen")], "media", Rejected),
            // A job that came off the ladder before: those entries are older, or of other queues.
            (
                "media",
                vec![entry("hopline.delay.03", "expired"), entry(work, "delivery_limit")],
                "media",
                DeliveryLimit,
            ),
            ("media", Vec::new(), "media", Unroutable),
            ("No Queue", vec![entry(work, "rejected")], "media", Rejected),
            ("No Queue", vec![entry("other", "rejected")], "nowhere", Rejected),
            ("", Vec::new(), "nowhere", Unroutable),
        ] {
            let stray = moved(key, deaths);
            assert_eq!((stray.queue.as_str(), stray.reason), (queue, reason), "{key}");
        }
    }

    #[test]
    fn what_fell_off_the_ladder_still_has_its_bits() {
        let bits = "0.".repeat(26) + "1.1.";
        let ladder = vec![entry("hopline.delay.00", "expired")];
        let stray = moved(&format!("{bits}media.normal.image.thumbnail"), ladder);
        assert_eq!((stray.queue.as_str(), stray.reason), ("media", Reason::Unroutable));
        assert!(stray.may_be_offered());
        for broken in
            [bits.clone(), format!("{bits}media"), format!("{bits}No Queue.normal.k"), "0.1.0".into()]
        {
            assert_eq!(off_the_ladder(&broken), None, "{broken}");
        }
        assert!(!moved("", Vec::new()).may_be_offered(), "there is no queue to offer it to");
        assert!(!moved("media", vec![entry("hopline.q.media", "delivery_limit")]).may_be_offered());
    }

    #[test]
    fn an_x_death_of_any_shape_is_survived() {
        for odd in [
            HeaderValue::Void,
            HeaderValue::List(vec![HeaderValue::Void, HeaderValue::Table(Headers::new())]),
            HeaderValue::List(vec![HeaderValue::Table(Headers::from([("queue".into(), 1_i64.into())]))]),
        ] {
            let mut message = Message::default();
            message.headers.insert("x-death".to_owned(), odd);
            let incoming = Incoming { message, routing_key: "media".into(), ..Incoming::default() };
            assert_eq!(Stray::of(&incoming, &names()).reason, Reason::Unroutable);
        }
    }

    #[test]
    fn a_stray_whose_run_is_over_has_no_end_of_its_own() {
        use JobStatus::{Cancelled, Dead, Queued, Retrying, Succeeded};
        use Known::{Open, Over};
        let job = |run, step, status, purged| Summary { status, run, step, purged, ..Summary::sample() };
        assert_eq!(known(2, 3, None), Open);
        for (run, step, status, purged, expected) in [
            (2, 3, Queued, false, Open),
            (2, 2, Retrying, false, Open),
            (2, 4, Retrying, false, Over),
            (2, 3, Succeeded, false, Over),
            (2, 3, Cancelled, false, Over),
            (2, 3, Dead, false, Open),
            (2, 3, Dead, true, Over),
            (3, 0, Queued, false, Over),
            (1, 9, Succeeded, false, Open),
        ] {
            assert_eq!(known(2, 3, Some(&job(run, step, status, purged))), expected, "{run} {step} {status}");
        }
    }
}
