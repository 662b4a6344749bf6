//! A key as its holder has it: `hl_<id>_<secret>`, and what is kept of the secret.
//!
//! The secret has 256 random bits, so what is kept is its SHA-256. A slow hash is for what people choose, which can be
//! guessed; nobody guesses 256 bits, at whatever speed, and a slow hash would only let strangers keep the server busy.

use std::{fmt, str::FromStr};

use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq;

use super::AccessError;

/// What every key begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "hl_";
/// Digits of an id.
const ID_LEN: usize = 12;

/// A key's id: 12 hexadecimal digits. It is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; ID_LEN]);

impl KeyId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Digits are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    fn random() -> Result<Self, AccessError> {
        let text = hex(&random::<{ ID_LEN / 2 }>()?);
        text.parse().map_err(AccessError::Refused)
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = <[u8; ID_LEN]>::try_from(text.as_bytes()).ok().filter(|id| id.iter().all(is_digit));
        id.map(Self).ok_or_else(|| format!("an id of a key has {ID_LEN} of 0-9 a-f"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// 256 bits, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Bits(pub(super) [u8; 32]);

impl Bits {
    /// The SHA-256 of these parts, one after the other.
    pub(super) fn hash(parts: &[&[u8]]) -> Self {
        let mut bits = [0; 32];
        bits.copy_from_slice(digest(&SHA256, &parts.concat()).as_ref());
        Self(bits)
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    pub(super) fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = unhex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| "must be 64 of 0-9 a-f".to_owned())
    }
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// A key as its holder has it. Neither `Debug` nor an error shows its secret.
#[derive(Clone)]
pub struct ApiKey {
    id: KeyId,
    secret: Bits,
}

impl ApiKey {
    /// A new one.
    ///
    /// # Errors
    /// [`AccessError::Random`].
    pub fn random() -> Result<Self, AccessError> {
        Ok(Self { id: KeyId::random()?, secret: Bits(random()?) })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The whole key, secret included.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, hex(&self.secret.0))
    }

    /// What the secret is recognised by.
    pub(super) fn digest(&self) -> Bits {
        Bits::hash(&[&self.secret.0])
    }

    /// Bits for another purpose, from which the secret cannot be found.
    pub(super) fn derive(&self, purpose: &str) -> Bits {
        Bits::hash(&[purpose.as_bytes(), b"\0", &self.secret.0])
    }
}

impl FromStr for ApiKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_'));
        let key =
            parts.and_then(|(id, secret)| Some(Self { id: id.parse().ok()?, secret: secret.parse().ok()? }));
        // What was given may be a secret all the same: it is not repeated.
        key.ok_or_else(|| "is no API key: it is written hl_<id>_<secret>".to_owned())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_…", self.id)
    }
}

fn random<const N: usize>() -> Result<[u8; N], AccessError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| AccessError::Random)?;
    Ok(bytes)
}

fn is_digit(c: &u8) -> bool {
    matches!(c, b'0'..=b'9' | b'a'..=b'f')
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|c| is_digit(&c)) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_nothing_else_is() {
        let key = ApiKey::random().unwrap();
        let text = key.expose();
        assert_eq!(text.len(), 3 + 12 + 1 + 64);
        let read: ApiKey = text.parse().unwrap();
        assert_eq!((read.id(), read.secret), (key.id(), key.secret));
        let upper = text.to_uppercase();
        for bad in [
            "",
            "hl_",
            "hl__",
            "hl_0123456789ab",
            "hl_0123456789ab_",
            &text[1..],
            &text[..79],
            &format!("{text}0"),
            &upper,
        ] {
            let error = bad.parse::<ApiKey>().unwrap_err();
            assert!(bad.len() < 4 || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let key = ApiKey::random().unwrap();
        let secret = hex(&key.secret.0);
        assert!(key.expose().contains(&secret));
        assert_eq!(format!("{key:?}"), format!("hl_{}_…", key.id()));
        assert!(!hex(&key.digest().0).contains(&secret) && !format!("{:?}", key.secret).contains(&secret));
        assert_ne!(ApiKey::random().unwrap().secret, key.secret);
    }

    #[test]
    fn what_is_kept_is_the_sha_256_of_the_secret() {
        let key: ApiKey = format!("hl_0123456789ab_{}", "00".repeat(32)).parse().unwrap();
        // As `sha256sum` has it of 32 zero bytes: files of keys outlive versions.
        assert_eq!(hex(&key.digest().0), "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925");
        assert!(key.digest().matches(&key.digest()) && !key.digest().matches(&key.secret));
    }
}
