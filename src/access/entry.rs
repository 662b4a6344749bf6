//! A key as the file has it: whose it is, and what it may do.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    AccessError,
    key::{ApiKey, Bits, KeyId},
    session,
};
use crate::{
    event::{time_option, time_text},
    job::QueueName,
};

/// Longest name of a key.
pub const NAME_MAX: usize = 60;
/// The slowest and the fastest rate, in requests a second.
const RATE: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Submit and call jobs.
    Submit,
    /// Look at jobs, events, queues and workers.
    Read,
    /// Cancel, replay, purge, pause, resume.
    Operate,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Submit, Self::Read, Self::Operate];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| "must be submit, read or operate".to_owned())
    }
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// The queues it is for; none: all.
    pub queues: Option<BTreeSet<QueueName>>,
    /// Most requests a second, on average.
    pub rate: Option<f64>,
}

/// A key as the file has it, in one line. What a newer version adds is refused, not overlooked: it may be a limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its id.
    pub id: KeyId,
    /// Its name, the only one among keys that are not revoked.
    pub name: String,
    /// SHA-256 of the secret.
    pub(super) sha256: Bits,
    /// What sessions of this key are recognised by: an Ed25519 public key.
    pub(super) session: Bits,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// The queues it is for; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<BTreeSet<QueueName>>,
    /// Most requests a second, on average; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Since when.
    #[serde(with = "time")]
    pub created: Timestamp,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub revoked: Option<Timestamp>,
}

impl Entry {
    /// Makes a key: what is kept of it, and what its holder gets.
    ///
    /// # Errors
    /// [`AccessError`]: it asks for what no key can have, or there are no random numbers.
    pub fn generate(wanted: Wanted, now: Timestamp) -> Result<(Self, ApiKey), AccessError> {
        let key = ApiKey::random()?;
        let Wanted { name, scopes, queues, rate } = wanted;
        let session = session::public_key(&key)?;
        let entry = Self {
            id: key.id(),
            name,
            sha256: key.digest(),
            session,
            scopes,
            queues,
            rate,
            created: now,
            revoked: None,
        };
        entry.check().map_err(AccessError::Refused)?;
        Ok((entry, key))
    }

    /// Whether it is in force.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.revoked.is_none()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        // Parentheses are for what a holder says of himself: `<name> (<by>)`.
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        if !(1..=NAME_MAX).contains(&self.name.len()) || !self.name.bytes().all(plain) {
            return Err(format!("a key's name must have 1 to {NAME_MAX} of a-z A-Z 0-9 - _ ."));
        }
        if self.scopes.is_empty() {
            return Err("a key must have a scope: submit, read or operate".to_owned());
        }
        match self.rate {
            Some(rate) if !RATE.contains(&rate) => {
                Err(format!("a key's rate must be {} to {} requests a second", RATE.start(), RATE.end()))
            }
            _ => Ok(()),
        }
    }
}

/// A time in UTC with milliseconds.
mod time {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::time_text(*at))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A key of these scopes and queues.
    pub(crate) fn made(name: &str, scopes: &[Scope], queues: Option<&[&str]>) -> (Entry, ApiKey) {
        let queue = |name: &&str| QueueName::parse(*name).unwrap();
        let queues = queues.map(|queues| queues.iter().map(queue).collect());
        let wanted =
            Wanted { name: name.to_owned(), scopes: scopes.iter().copied().collect(), queues, rate: None };
        Entry::generate(wanted, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn an_entry_is_written_as_documented_and_read_strictly() {
        let (entry, key) = made("ci", &[Scope::Read, Scope::Submit], Some(&["media"]));
        let text = serde_json::to_string(&entry).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], key.id().as_str());
        assert_eq!(value["scopes"], serde_json::json!(["submit", "read"]));
        assert_eq!(value["queues"], serde_json::json!(["media"]));
        assert!(value.get("rate").is_none() && value.get("revoked").is_none());
        assert!(!text.contains(&key.expose()[16..]), "no secret");
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
        let more = text.replacen('{', r#"{"until":"2030-01-01T00:00:00Z","#, 1);
        assert!(serde_json::from_str::<Entry>(&more).is_err());
    }

    #[test]
    fn what_no_key_can_have_is_refused() {
        let wanted = |name: &str, scopes: &[Scope], rate| Wanted {
            name: name.to_owned(),
            scopes: scopes.iter().copied().collect(),
            queues: None,
            rate,
        };
        let make = |wanted| {
            Entry::generate(wanted, Timestamp::UNIX_EPOCH).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(make(wanted("a.B-1_", &[Scope::Read], Some(0.5))), Ok(()));
        for (name, scopes, rate) in [
            ("", &[Scope::Read][..], None),
            ("a b", &[Scope::Read], None),
            ("a(b)", &[Scope::Read], None),
            (&"x".repeat(61), &[Scope::Read], None),
            ("a", &[], None),
            ("a", &[Scope::Read], Some(0.0)),
            ("a", &[Scope::Read], Some(-1.0)),
            ("a", &[Scope::Read], Some(f64::NAN)),
        ] {
            assert!(make(wanted(name, scopes, rate)).is_err(), "{name} {rate:?}");
        }
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert!("all".parse::<Scope>().is_err());
    }
}
