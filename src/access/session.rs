//! What a browser has instead of a key: a statement that this key was shown, until when it holds, and a signature.
//!
//! Any process can check it that reads the same file, and none has to remember it. The signing key is derived from the
//! key's secret, which is there only at the login; the file has the public one. So neither the file nor a stolen cookie
//! gives the key away, and the file makes no sessions.

use jiff::Timestamp;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::{
    AccessError,
    key::{ApiKey, Bits, KeyId, hex, unhex},
};

/// What signing keys are derived for.
const PURPOSE: &str = "hopline session";
/// How long a session holds, in seconds: a working day.
pub(crate) const SECONDS: i64 = 12 * 3600;

/// A session as a cookie has it: `<id>.<end>.<signature>`.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: KeyId,
    end: i64,
    signature: Vec<u8>,
}

fn pair(key: &ApiKey) -> Result<Ed25519KeyPair, AccessError> {
    let seed = key.derive(PURPOSE);
    Ed25519KeyPair::from_seed_unchecked(&seed.0).map_err(|_| AccessError::Random)
}

/// What sessions of a key are recognised by.
pub(super) fn public_key(key: &ApiKey) -> Result<Bits, AccessError> {
    let pair = pair(key)?;
    let bits = pair.public_key().as_ref().try_into().map_err(|_| AccessError::Random)?;
    Ok(Bits(bits))
}

/// A session of this key from now on.
pub(super) fn open(key: &ApiKey, now: Timestamp) -> Result<String, AccessError> {
    let (id, end) = (key.id(), now.as_second() + SECONDS);
    let signature = pair(key)?.sign(&statement(id, end));
    Ok(format!("{id}.{end}.{}", hex(signature.as_ref())))
}

fn statement(id: KeyId, end: i64) -> Vec<u8> {
    format!("{PURPOSE}\n{id}\n{end}").into_bytes()
}

impl Session {
    /// Reads a cookie.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let (id, end, signature) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { id: id.parse().ok()?, end: end.parse().ok()?, signature: unhex(signature)? })
    }

    /// Whether it is one of the key that has this public key, and holds.
    pub(super) fn holds(&self, public_key: &Bits, now: Timestamp) -> bool {
        let signed = UnparsedPublicKey::new(&ED25519, public_key.0)
            .verify(&statement(self.id, self.end), &self.signature)
            .is_ok();
        signed && now.as_second() < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_holds_for_its_key_and_its_time() {
        let (key, other) = (ApiKey::random().unwrap(), ApiKey::random().unwrap());
        let at = |second| Timestamp::from_second(second).unwrap();
        let text = open(&key, at(1000)).unwrap();
        assert!(!text.contains(&key.expose()[16..]));
        let holds = |text: &str, key: &ApiKey, second| {
            Session::read(text).is_some_and(|session| session.holds(&public_key(key).unwrap(), at(second)))
        };
        assert!(holds(&text, &key, 1000) && holds(&text, &key, 1000 + SECONDS - 1));
        assert!(!holds(&text, &key, 1000 + SECONDS), "it has ended");
        assert!(!holds(&text, &other, 1000));
        let later = text.replacen(&(1000 + SECONDS).to_string(), &(9000 + SECONDS).to_string(), 1);
        assert!(!holds(&later, &key, 1000), "nobody makes it longer");
        let elsewhere = text.replacen(key.id().as_str(), other.id().as_str(), 1);
        assert!(!holds(&elsewhere, &key, 1000), "nor another key's");
        for bad in ["", "..", "a.b.c", &text[..text.len() - 2], &text[1..]] {
            assert!(!holds(bad, &key, 1000), "{bad}");
        }
    }
}
