//! What commands are given besides words: JSON from a file or standard input, durations, keys, and a person's yes.

use std::{
    io::{IsTerminal, Read, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::value::RawValue;

use crate::config::parse_duration;

/// A duration as an argument.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// A key that makes an act safe to repeat. An empty one is a variable that was not set, most likely, and no key.
pub(super) fn key(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// JSON that was given as text, as `@FILE`, or as `-` for standard input; as it was given: large numbers and the order
/// of keys are the job's own affair.
pub(super) fn json(text: &str) -> anyhow::Result<Box<RawValue>> {
    let (text, from) = match text.strip_prefix('@') {
        Some(file) => {
            let text =
                std::fs::read_to_string(Path::new(file)).with_context(|| format!("cannot read {file}"))?;
            (text, file)
        }
        None if text == "-" => {
            let mut input = String::new();
            std::io::stdin().read_to_string(&mut input).context("cannot read standard input")?;
            (input, "standard input")
        }
        None => (text.to_owned(), "the args"),
    };
    serde_json::from_str(&text).with_context(|| format!("{from}: not JSON"))
}

/// Of acts that nobody should ask for by mistake.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Sure {
    /// Do not ask whether this is wanted.
    #[arg(long)]
    yes: bool,
}

impl Sure {
    /// Whether the act is to be asked for: the person at the terminal is told `what` it would do, and agrees; without
    /// one, `--yes` is needed.
    pub(super) async fn agreed(
        &self,
        what: impl AsyncFnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<bool> {
        if self.yes {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            bail!("nobody can be asked whether this is wanted (standard input is no terminal): add --yes");
        }
        confirmed(&what().await?)
    }
}

fn confirmed(what: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    let mut err = std::io::stderr().lock();
    write!(err, "{what}? This cannot be undone. [y/N] ").and_then(|()| err.flush())?;
    let mut answer = String::new();
    stdin.read_line(&mut answer).context("cannot read the answer")?;
    let yes = is_yes(&answer);
    if !yes {
        writeln!(err, "Nothing was done.")?;
    }
    Ok(yes)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_comes_inline_or_from_a_file() {
        let file = std::env::temp_dir().join(format!("hopline-args-{}.json", crate::JobId::new()));
        std::fs::write(&file, r#"{"a": 1}"#).unwrap();
        assert_eq!(json(&format!("@{}", file.display())).unwrap().get(), r#"{"a": 1}"#);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(json("[12345678901234567890123]").unwrap().get(), "[12345678901234567890123]");
        assert!(json("{").unwrap_err().to_string().contains("not JSON"));
        assert!(json("@/nonexistent").is_err());
    }

    #[test]
    fn an_empty_key_is_none() {
        for (text, is_key) in [("order-17", true), ("a b", true), ("", false), (" ", false)] {
            assert_eq!(key(text).is_ok(), is_key, "{text:?}");
        }
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, yes) in
            [("y\n", true), (" Yes\r\n", true), ("\n", false), ("", false), ("yy", false), ("n", false)]
        {
            assert_eq!(is_yes(answer), yes, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn whoever_is_sure_is_not_asked() {
        let asked = async || -> anyhow::Result<String> { panic!("nobody needs to know what it would do") };
        assert!(Sure { yes: true }.agreed(asked).await.unwrap());
    }
}
