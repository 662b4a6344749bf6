//! Colours of words that tell a state. They only stress what is there to be read: without them nothing is missing.
//!
//! Whether there are any is anstream's affair: a terminal, `NO_COLOR`, `CLICOLOR_FORCE`, and `--color` before all of them.

use clap::builder::styling::AnsiColor;

/// Whether standard output is to have colours.
pub(super) fn on_out() -> bool {
    anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
}

/// A word in its colour, if it has one.
pub(super) fn painted(word: &str) -> Option<String> {
    let colour = match word {
        "succeeded" | "same" | "made" | "ok" => AnsiColor::Green,
        "running" | "foreign" => AnsiColor::Cyan,
        "retrying" | "paused" | "missing" | "kept" | "WARN" => AnsiColor::Yellow,
        "dead" | "different" | "failed" | "FAIL" => AnsiColor::Red,
        "cancelled" | "expired" | "skip" => AnsiColor::BrightBlack,
        _ => return None,
    };
    let style = colour.on_default();
    Some(format!("{}{word}{}", style.render(), style.render_reset()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_colours_and_other_words_have_none() {
        assert_eq!(painted("dead").as_deref(), Some("\u{1b}[31mdead\u{1b}[0m"));
        assert_eq!(painted("queued"), None);
    }
}
