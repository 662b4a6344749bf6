//! Dead letters: the marks that a dead job's message carries in its dead-letter queue.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    QueueName,
    wire::{HeaderValue, Headers, Message},
};

/// Longest error text in a header, in bytes: header frames are bounded, and a longer one closes the connection.
pub const ERROR_MAX: usize = 4096;

/// The marks. A message with [`mark::REASON`] on a work queue was moved back by hand: a replay.
pub mod mark {
    /// Why the job is dead, see [`super::Reason`].
    pub const REASON: &str = "hopline-reason";
    /// The error's code.
    pub const CODE: &str = "hopline-error-code";
    /// The error's text.
    pub const ERROR: &str = "hopline-error";
    /// How many attempts were made.
    pub const ATTEMPTS: &str = "hopline-attempts";
    /// The worker that gave up.
    pub const WORKER: &str = "hopline-worker";
    /// When, in ms since the epoch.
    pub const DIED_AT: &str = "hopline-died-at";
    /// The queue it belongs to, where that has no dead-letter queue.
    pub const QUEUE: &str = "hopline-queue";
    /// Set where the message's own headers were too large to be kept.
    pub const HEADERS_DROPPED: &str = "hopline-headers-dropped";
}

const MARKS: [&str; 8] = [
    mark::REASON,
    mark::CODE,
    mark::ERROR,
    mark::ATTEMPTS,
    mark::WORKER,
    mark::DIED_AT,
    mark::QUEUE,
    mark::HEADERS_DROPPED,
];

/// Why a run ended dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// All attempts failed.
    Exhausted,
    /// The handler said that trying again is pointless.
    Fatal,
    /// The job killed the process that ran it.
    Poison,
    /// The message is not a job: no kind, args that are not JSON, headers of a wrong type.
    Undecodable,
    /// No worker of its queue knows its kind.
    UnknownKind,
    /// Written by a newer Hopline.
    UnsupportedVersion,
    /// Args or headers over the limit.
    Oversize,
    /// The broker gave up on it: it came back too often (`x-delivery-limit`).
    DeliveryLimit,
    /// The broker expired it: a TTL that is none of ours.
    BrokerExpired,
    /// Someone rejected it by hand.
    Rejected,
    /// Its queue was gone when its delay was over.
    Unroutable,
    /// Its message is gone: deleted or purged by hand, with its queue, or with the broker's disk.
    Lost,
}

impl Reason {
    /// The reason's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Fatal => "fatal",
            Self::Poison => "poison",
            Self::Undecodable => "undecodable",
            Self::UnknownKind => "unknown_kind",
            Self::UnsupportedVersion => "unsupported_version",
            Self::Oversize => "oversize",
            Self::DeliveryLimit => "delivery_limit",
            Self::BrokerExpired => "broker_expired",
            Self::Rejected => "rejected",
            Self::Unroutable => "unroutable",
            Self::Lost => "lost",
        }
    }
}

/// What is known of a job's death.
#[derive(Debug, Clone, PartialEq)]
pub struct Death<'a> {
    /// Why.
    pub reason: Reason,
    /// The error's code.
    pub code: &'a str,
    /// The error's text.
    pub error: &'a str,
    /// Attempts made.
    pub attempts: u32,
    /// The worker that gave up.
    pub worker: &'a str,
    /// When.
    pub at: Timestamp,
}

/// Marks `message` as dead. Its body stays as it is.
#[must_use]
pub fn mark(mut message: Message, death: &Death<'_>) -> Message {
    for (name, value) in [
        (mark::REASON, HeaderValue::from(death.reason.as_str())),
        (mark::CODE, clip(death.code, 100).into()),
        (mark::ERROR, clip(death.error, ERROR_MAX).into()),
        (mark::ATTEMPTS, death.attempts.into()),
        (mark::WORKER, clip(death.worker, 200).into()),
        (mark::DIED_AT, death.at.as_millisecond().into()),
    ] {
        message.headers.insert(name.to_owned(), value);
    }
    message
}

/// Marks `message`, which is dead, as one of `queue`: it lies elsewhere.
#[must_use]
pub fn belongs_to(mut message: Message, queue: &QueueName) -> Message {
    message.headers.insert(mark::QUEUE.to_owned(), queue.as_str().into());
    message
}

/// The queue that `message` belongs to, if it says so.
#[must_use]
pub fn queue_of(message: &Message) -> Option<QueueName> {
    match message.headers.get(mark::QUEUE) {
        Some(HeaderValue::Text(named)) => QueueName::parse(named.as_str()).ok(),
        _ => None,
    }
}

/// What alike deaths share: 16 hexadecimal digits that depend on the kind, the error's code, and its text without what
/// differs from job to job (numbers, identifiers, quoted parts).
///
/// Computed from what both the record and the dead message know, so that a group can be replayed. 64 bits of FNV-1a:
/// a name for a group, no proof.
#[must_use]
pub fn fingerprint(kind: Option<&str>, code: &str, error: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |text: &str| {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    feed(kind.unwrap_or_default());
    feed(clip(code, 100));
    feed(&likeness(clip(error, ERROR_MAX)));
    format!("{hash:016x}")
}

/// The first line of `text`, with each word that has a digit, and each quoted part, replaced.
fn likeness(text: &str) -> String {
    let mut alike = String::new();
    let mut quote = None;
    let mut word = String::new();
    let end_word = |word: &mut String, alike: &mut String| {
        let varies = word.bytes().any(|byte| byte.is_ascii_digit());
        alike.push_str(if varies { "#" } else { word });
        word.clear();
    };
    for c in text.lines().next().unwrap_or_default().chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`') => {
                end_word(&mut word, &mut alike);
                alike.push('"');
                quote = Some(c);
            }
            (None, c) if c.is_alphanumeric() || matches!(c, '_' | '-') => word.push(c),
            (None, c) => {
                end_word(&mut word, &mut alike);
                alike.push(c);
            }
        }
    }
    end_word(&mut word, &mut alike);
    alike
}

/// Whether these are the headers of a dead job.
#[must_use]
pub fn is_marked(headers: &Headers) -> bool {
    headers.contains_key(mark::REASON)
}

/// Takes the marks off.
pub fn unmark(headers: &mut Headers) {
    headers.retain(|name, _| !MARKS.contains(&name.as_str()));
}

/// The first `max` bytes of `text`, at a character's boundary.
#[must_use]
pub fn clip(text: &str, max: usize) -> &str {
    // `str::floor_char_boundary` says the same, from Rust 1.91 on.
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        assert_eq!(clip("äöü", 3), "ä");
        assert_eq!(clip("abc", 10), "abc");
        let text = "é".repeat(ERROR_MAX);
        let death = Death {
            reason: Reason::Fatal,
            code: "c",
            error: &text,
            attempts: 1,
            worker: "w",
            at: Timestamp::UNIX_EPOCH,
        };
        let marked = mark(Message::default(), &death);
        assert!(is_marked(&marked.headers));
        assert!(matches!(&marked.headers[mark::ERROR], HeaderValue::Text(text) if text.len() == ERROR_MAX));
    }

    #[test]
    fn alike_deaths_share_a_fingerprint() {
        let of = |error: &str| fingerprint(Some("a.b"), "http_500", error);
        let same = [
            "user 17 has no address \"Main St. 4\"",
            "user 18 has no address \"\"",
            "user 99123 has no address \"x\"\nand more",
        ];
        assert!(same.iter().all(|error| of(error) == of(same[0])));
        assert_ne!(of("user 17 has no address"), of("user 17 has no name"));
        assert_ne!(of("x"), fingerprint(Some("a.c"), "http_500", "x"));
        assert_ne!(of("x"), fingerprint(Some("a.b"), "http_502", "x"));
        assert_eq!(of("id 0191d2c4-7b1e-7000-8000-00000000aaaa gone"), of("id 5 gone"));
        // Part of what clients store: never change it.
        assert_eq!(fingerprint(None, "", ""), "d94d12186c0f2fb7");
    }

    #[test]
    fn unmark_leaves_nothing_of_the_death() {
        let death = Death {
            reason: Reason::Poison,
            code: "",
            error: "",
            attempts: 3,
            worker: "w",
            at: Timestamp::now(),
        };
        let mut marked = mark(Message::default(), &death);
        marked.headers.insert("mine".into(), 1_i64.into());
        unmark(&mut marked.headers);
        assert_eq!(marked.headers.keys().collect::<Vec<_>>(), ["mine"]);
    }

    #[test]
    fn a_reason_reads_the_same_in_json_and_in_headers() {
        for reason in [
            Reason::Exhausted,
            Reason::Fatal,
            Reason::Poison,
            Reason::Undecodable,
            Reason::UnknownKind,
            Reason::UnsupportedVersion,
            Reason::Oversize,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
