//! The broker's address, which holds a password: shown without it.

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

#[cfg(test)]
mod tests {
    use super::*;

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
