//! The key that requests are sent with. It comes from the environment: what stands on a command line is seen by others.

use std::fs;

use anyhow::{Context, bail};
use reqwest::header::HeaderValue;

const KEY: &str = "HOPLINE_API_KEY";
const KEY_FILE: &str = "HOPLINE_API_KEY_FILE";

/// The header of `Authorization`, if there is a key.
pub(super) fn authorization() -> anyhow::Result<Option<HeaderValue>> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let key = match (set(KEY), set(KEY_FILE)) {
        (Some(_), Some(_)) => bail!("{KEY} and {KEY_FILE} are both set"),
        (Some(key), None) => key.into_string().ok().with_context(|| format!("{KEY} is no API key"))?,
        (None, Some(path)) => fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}, which {KEY_FILE} names", path.display()))?,
        (None, None) => return Ok(None),
    };
    bearer(key.trim()).map(Some)
}

fn bearer(key: &str) -> anyhow::Result<HeaderValue> {
    let header = HeaderValue::try_from(format!("Bearer {key}")).ok().filter(|_| !key.is_empty());
    // Not repeated: it may be a secret that was mangled.
    let mut header = header.context("the API key in the environment is none")?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sent_and_not_shown() {
        let header = bearer("hl_a_b").unwrap();
        assert_eq!(header.as_bytes(), b"Bearer hl_a_b");
        assert!(!format!("{header:?}").contains("hl_a_b"));
        for bad in ["", "a\nb"] {
            let error = bearer(bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad));
        }
    }
}
