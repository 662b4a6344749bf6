//! Names with rules: job ids, kinds and queues. Parsed once at the edge, trusted inside.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use uuid::Uuid;

/// Longest kind, in characters (all ASCII).
pub const KIND_MAX: usize = 100;
/// Longest queue name, in characters (all ASCII).
pub const QUEUE_MAX: usize = 60;

/// Queue names that would read like Hopline's own objects in the management UI.
pub(crate) const RESERVED: [&str; 10] =
    ["control", "dead", "delay", "events", "jobs", "log", "lookup", "parked", "replies", "strays"];

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a kind.
    #[error(
        "invalid kind {0:?}: use words of a-z, 0-9, _ and - joined by single dots, at most {KIND_MAX} characters"
    )]
    Kind(String),
    /// Not a queue name.
    #[error("invalid queue {0:?}: use 1 to {QUEUE_MAX} of a-z, 0-9, _ and -")]
    Queue(String),
    /// A queue name that Hopline keeps for itself.
    #[error("queue name {0:?} is reserved")]
    Reserved(String),
    /// Not a job id.
    #[error("invalid job id {0:?}: a job id is a UUID")]
    Id(String),
}

/// Names a job; the same through all its attempts and runs. A UUID: version 7 when Hopline makes it, version 8
/// when it is derived from a foreign message id or from an idempotency key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct JobId(#[schemars(with = "String")] Uuid);

/// Namespace of ids derived from foreign message ids. Part of the wire contract: never change it.
const FOREIGN: Uuid = Uuid::from_u128(0x6d1f_31b7_59a5_4c1e_8f0e_2f6a_90c5_77d3);
/// Namespace of ids derived from idempotency keys. Part of the wire contract: never change it.
const KEYED: Uuid = Uuid::from_u128(0x58b8_d7f0_9398_4a5e_8340_8025_0afd_8375);

/// Namespace of ids of callbacks. Part of the wire contract: never change it.
const CALLBACK: Uuid = Uuid::from_u128(0x0b1f_5c5e_3f0a_4d57_9a35_6a8e_71d4_c2b6);

impl JobId {
    /// A new id (UUID version 7, RFC 9562 section 5.7): ids made later sort later, to the millisecond.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "every call gives another id, which a default should not")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of a message that came with a message id of its own which is no UUID: a UUID version 8 (RFC 9562
    /// section 5.8) whose bits are those of the version 5 name-based UUID of `<queue>\0<message id>`, so that
    /// each delivery of the message gives the same job.
    #[must_use]
    pub fn from_foreign(queue: &QueueName, message_id: &str) -> Self {
        Self::derive(&FOREIGN, &format!("{queue}\0{message_id}"))
    }

    /// The id of the job that is submitted under an idempotency key: a UUID version 8 whose bits are those of the
    /// version 5 UUID of `<scope>\0<key>`. So every HTTP process derives the same id, and a client can too. The scope
    /// keeps the keys of different clients apart; it has no zero byte, and is empty where nothing tells clients apart.
    #[must_use]
    pub fn from_key(scope: &str, key: &str) -> Self {
        Self::derive(&KEYED, &format!("{scope}\0{key}"))
    }

    /// The id of the callback that tells of one end of one run: a UUID version 8 whose bits are those of the version 5
    /// UUID of `<job>\0<run>\0<status>`. So whoever tells of that end makes the same job, however often.
    #[must_use]
    pub fn of_callback(job: Self, run: u32, status: &str) -> Self {
        Self::derive(&CALLBACK, &format!("{job}\0{run}\0{status}"))
    }

    fn derive(namespace: &Uuid, name: &str) -> Self {
        Self(Uuid::new_v8(Uuid::new_v5(namespace, name.as_bytes()).into_bytes()))
    }

    /// Whether these are the bits of the nil or the max UUID (RFC 9562 sections 5.9 and 5.10), which name nothing.
    #[must_use]
    pub fn is_nil_or_max(&self) -> bool {
        self.0.is_nil() || self.0.is_max()
    }

    /// Whether this is a UUID version 8, as ids that are derived from something else are: of messages with foreign ids, of
    /// submits under an idempotency key, of callbacks.
    #[must_use]
    pub fn is_derived(&self) -> bool {
        self.0.get_version_num() == 8
    }

    /// The id of these 128 bits, most significant byte first.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The id's 128 bits, most significant byte first.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// A number for jitter: the same for the same id and `turn`, spread evenly otherwise (FNV-1a, 64 bits).
    #[must_use]
    pub fn seed(&self, turn: u32) -> u64 {
        let bytes = self.0.as_bytes().iter().copied().chain(turn.to_be_bytes());
        bytes
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Uuid::try_parse(text).map(Self).map_err(|_| NameError::Id(shorten(text)))
    }
}

/// Reads a text in place: most are in the buffer that is read, and become what they stand for without a copy between.
pub(crate) struct Text<F>(pub(crate) F);

impl<T, E: fmt::Display, F: FnOnce(&str) -> Result<T, E>> de::Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<Error: de::Error>(self, text: &str) -> Result<T, Error> {
        (self.0)(text).map_err(Error::custom)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, schemars::JsonSchema)]
        pub struct $type(#[schemars(with = "String")] Arc<str>);

        impl $type {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`NameError`] when it breaks the rule.
            pub fn parse(text: impl AsRef<str>) -> Result<Self, NameError> {
                let text = text.as_ref();
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                (*name.0).to_owned()
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text(|text: &str| Self::parse(text)))
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The stable wire name of a job type, such as `image.thumbnail`.
    Kind,
    check_kind
);
name!(
    /// The name of a queue where jobs wait, such as `media`.
    QueueName,
    check_queue
);

fn is_name_char(c: u8) -> bool {
    matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')
}

fn check_kind(text: &str) -> Result<(), NameError> {
    let good = text.len() <= KIND_MAX
        && text.split('.').all(|word| !word.is_empty() && word.bytes().all(is_name_char));
    if good { Ok(()) } else { Err(NameError::Kind(shorten(text))) }
}

fn check_queue(text: &str) -> Result<(), NameError> {
    if !(1..=QUEUE_MAX).contains(&text.len()) || !text.bytes().all(is_name_char) {
        return Err(NameError::Queue(shorten(text)));
    }
    if RESERVED.contains(&text) {
        return Err(NameError::Reserved(text.to_owned()));
    }
    Ok(())
}

/// Keeps a hostile name from filling a log line.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 120 {
        text.to_owned()
    } else {
        text.chars().take(117).chain("...".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_rule() {
        for good in ["a", "image.thumbnail", "a-b_c.d1.e2", &"k".repeat(KIND_MAX)] {
            assert!(Kind::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "A", "a b", "ä", "a#", "a*", &"k".repeat(KIND_MAX + 1)] {
            assert!(matches!(Kind::parse(bad), Err(NameError::Kind(_))), "{bad}");
        }
    }

    #[test]
    fn queues_follow_the_rule() {
        for good in ["default", "media", "a-1_b", &"q".repeat(QUEUE_MAX)] {
            assert!(QueueName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "Q", "a b", "#", &"q".repeat(QUEUE_MAX + 1)] {
            assert!(matches!(QueueName::parse(bad), Err(NameError::Queue(_))), "{bad}");
        }
        assert_eq!(QueueName::parse("dead"), Err(NameError::Reserved("dead".into())));
    }

    #[test]
    fn a_foreign_id_is_stable_and_version_8() {
        let queue = QueueName::parse("media").unwrap();
        let id = JobId::from_foreign(&queue, "order-17");
        assert_eq!(id, JobId::from_foreign(&queue, "order-17"));
        assert_ne!(id, JobId::from_foreign(&queue, "order-18"));
        assert_ne!(id, JobId::from_foreign(&QueueName::parse("mail").unwrap(), "order-17"));
        assert_eq!(id.0.get_version_num(), 8);
    }

    #[test]
    fn a_key_gives_the_same_id_everywhere() {
        let id = JobId::from_key("", "order-17");
        assert_eq!(id.to_string(), "7b700206-a59b-8686-b95a-ca9e28065d01", "documented in docs/wire.md");
        assert_eq!(id.0.get_version_num(), 8);
        assert_ne!(id, JobId::from_key("", "order-18"));
        assert_ne!(id, JobId::from_key("shop", "order-17"));
        assert_ne!(id, JobId::from_foreign(&QueueName::parse("a").unwrap(), "order-17"));
    }

    #[test]
    fn an_overlong_name_is_cut_in_the_error() {
        let error = Kind::parse("X".repeat(10_000)).unwrap_err().to_string();
        assert!(error.len() < 400, "{}", error.len());
    }
}
