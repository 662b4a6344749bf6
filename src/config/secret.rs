//! Values that hold secrets: the broker's address, shown without its password, and the secrets that sign callbacks, not
//! shown at all.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// An `amqp://` or `amqps://` address. `Debug`, `Display` and serialisation leave the password out.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct AmqpUrl(String);

impl AmqpUrl {
    /// Takes an address; whether it is one is checked with the whole configuration.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The address with its password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A character that ends the address where it stands, without showing what is around it: a password that was written
    /// as it is.
    pub(super) fn problem(&self) -> Option<String> {
        let (_, rest) = self.0.split_once("://")?;
        let authority = rest.split(['/', '?']).next()?;
        let is_cut = || {
            let port = authority.rsplit_once(':').map(|(_, port)| port);
            !authority.contains('@')
                && rest.contains('@')
                && port.is_some_and(|port| port.parse::<u16>().is_err())
        };
        // Nothing in an AMQP address begins with #.
        let sign = match rest.contains('#') {
            true => '#',
            false if is_cut() => rest[authority.len()..].chars().next()?,
            false => return None,
        };
        Some(format!(
            "amqp.url (HOPLINE_AMQP_URL): `{sign}` ends the address; in user, password and virtual host write it as %{:02X}, and \
             whatever else is not a letter, a digit or one of -._~ likewise",
            u32::from(sign)
        ))
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("amqps:")
    }
}

impl Default for AmqpUrl {
    fn default() -> Self {
        Self("amqp://127.0.0.1:5672".to_owned())
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last @ before the path ends the credentials; a password may hold one that is not encoded.
        let Some((scheme, rest)) = self.0.split_once("://") else { return f.write_str("(not a URL)") };
        let authority = rest.split('/').next().unwrap_or_default();
        match authority.rsplit_once('@') {
            None => write!(f, "{scheme}://{rest}"),
            Some((credentials, _)) => {
                let user = credentials.split(':').next().unwrap_or_default();
                write!(f, "{scheme}://{user}:***{}", &rest[credentials.len()..])
            }
        }
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for AmqpUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Secrets of the Standard Webhooks specification, with white space between them. `Debug` and serialisation tell only
/// how many there are.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct WebhookSecrets(String);

/// What each starts with.
const WEBHOOK: &str = "whsec_";

impl WebhookSecrets {
    /// Takes secrets; whether they are any is checked with the whole configuration.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Each secret, without its prefix.
    pub fn expose(&self) -> impl Iterator<Item = &str> {
        self.0.split_whitespace().map(|secret| secret.strip_prefix(WEBHOOK).unwrap_or_default())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// What is wrong with one of them, without showing it: 24 to 64 bytes are 32 to 88 characters.
    pub(super) fn problem(&self) -> Option<String> {
        let fits = |secret: &str| {
            let base64 = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/');
            let digits = secret.trim_end_matches('=');
            digits.len() >= 32 && secret.len() <= 88 && digits.bytes().all(base64)
        };
        let number = self.expose().position(|secret| !fits(secret))? + 1;
        Some(format!(
            "callbacks.secret: secret {number} must be {WEBHOOK} and 24 to 64 bytes in base64, as \
             `echo {WEBHOOK}$(openssl rand -base64 32)` makes one"
        ))
    }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expose().map(|_| "***").collect::<Vec<_>>().join(" "))
    }
}

impl Serialize for WebhookSecrets {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_shown_by_their_number() {
        for (secrets, shown) in [("", ""), ("whsec_a", "***"), ("whsec_a\n whsec_b\n", "*** ***")] {
            let secrets = WebhookSecrets::new(secrets);
            assert_eq!((format!("{secrets:?}").as_str(), secrets.is_empty()), (shown, shown.is_empty()));
            assert_eq!(serde_json::to_value(&secrets).unwrap(), shown);
        }
    }

    #[test]
    fn what_ends_an_address_too_early_is_named() {
        for (url, code) in [
            ("amqp://u:se#cret@host:5672", "%23"),
            ("amqp://u:se/cret@host", "%2F"),
            ("amqp://u:se?cret@host/v", "%3F"),
        ] {
            let problem = AmqpUrl::new(url).problem().unwrap();
            assert!(problem.contains(code) && !problem.contains("cret"), "{problem}");
        }
        for url in [
            "amqp://host:5672",
            "amqp://u:p%23@host/v@w",
            "amqp://host/v@w",
            "amqp://host:5672/v@w",
            "amqps://u:p@host?auth_mechanism=external",
            "amqp://u:s@cret@host:5672/%2f",
        ] {
            assert_eq!(AmqpUrl::new(url).problem(), None, "{url}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        for (url, shown) in [
            ("amqp://u:secret@host:5672/v", "amqp://u:***@host:5672/v"),
            ("amqps://u:se@cret@host", "amqps://u:***@host"),
            ("amqp://host:5672", "amqp://host:5672"),
            ("secret", "(not a URL)"),
        ] {
            let url = AmqpUrl::new(url);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
            assert_eq!(serde_json::to_value(&url).unwrap(), shown);
        }
    }
}
