//! How values look to people: ages, rates, counts, text that came from outside, JSON with its digits kept.
//!
//! Pure. Text from jobs may hold anything: what a terminal would obey or reorder is replaced before it is shown.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::Error};

use crate::job::json;

/// One level of indented JSON.
const INDENT: &str = "  ";
/// Levels that are indented. What is nested deeper stays on its line: with indents it would grow with the square of its
/// depth, which whoever wrote it has chosen.
const INDENTED: usize = json::MAX_DEPTH;

/// A time, as the server writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At(Timestamp);

impl At {
    /// This moment.
    pub(super) fn now() -> Self {
        Self(Timestamp::now())
    }

    /// RFC 3339, UTC, with milliseconds.
    pub(super) fn text(self) -> String {
        crate::event::time_text(self.0)
    }
}

impl std::str::FromStr for At {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        text.parse().map(Self)
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A time span in its largest unit: `12s`, `3m`, `5h`, `2d`.
pub(super) fn age(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long something took, to about three digits: `250ms`, `3.20s`, `1m12s`, `5h03m`.
pub(super) fn took(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{}ms", span.as_millis()),
        1..60 => format!("{:.2}s", span.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The span from `from` to `to`; nothing where clocks disagree.
pub(super) fn between(from: At, to: At) -> Duration {
    Duration::try_from(to.0.duration_since(from.0)).unwrap_or_default()
}

/// How long ago `at` was.
pub(super) fn ago(at: At, now: At) -> String {
    age(between(at, now))
}

/// A time, and how long ago or how far ahead it is.
pub(super) fn moment(at: At, now: At) -> String {
    let distance =
        if at > now { format!("in {}", age(between(now, at))) } else { format!("{} ago", ago(at, now)) };
    format!("{} ({distance})", at.text())
}

/// A number per second: `0`, `0.25`, `3.1`, `1200`.
pub(super) fn rate(per_second: f64) -> String {
    if per_second == 0.0 {
        "0".to_owned()
    } else if per_second < 1.0 {
        format!("{per_second:.2}")
    } else if per_second < 100.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

/// `1 job`, `2 jobs`.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Text from outside on one line: line ends and other white space become spaces, the rest as [`harmless`].
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().map(harmless).collect::<Vec<_>>().join(" ")
}

/// Text from outside without what a terminal obeys (control characters), reorders (directional marks) or does not show
/// (characters without a width, which make two names look the same).
pub(super) fn harmless(text: &str) -> String {
    let replaced = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t')
            || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
            || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|c| if replaced(c) { '\u{fffd}' } else { c }).collect()
}

/// The first `width` characters of a line; `…` is the last of them where something was cut.
pub(super) fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Valid JSON with one member or item per line. Only white space outside of texts changes: numbers keep their digits,
/// members their order.
pub(super) fn indented(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    let mut tokens = json.chars().peekable();
    // Between what stands `within` so many levels.
    let new_line = |out: &mut String, within: usize, depth: usize| {
        if within <= INDENTED {
            out.push('\n');
            out.push_str(&INDENT.repeat(depth));
        }
    };
    while let Some(c) = tokens.next() {
        if quoted {
            out.push(c);
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                while tokens.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                // An empty one stays together.
                if let Some(end) = tokens.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    new_line(&mut out, depth, depth);
                }
            }
            '}' | ']' => {
                let within = depth;
                depth = depth.saturating_sub(1);
                new_line(&mut out, within, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => {
                quoted = c == '"';
                out.push(c);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn spans_are_short() {
        for (ms, old, long) in [
            (0, "0s", "0ms"),
            (250, "0s", "250ms"),
            (3_204, "3s", "3.20s"),
            (59_000, "59s", "59.00s"),
            (72_000, "1m", "1m12s"),
            (3_599_000, "59m", "59m59s"),
            (18_180_000, "5h", "5h03m"),
            (172_799_000, "47h", "47h59m"),
            (172_800_000, "2d", "48h00m"),
        ] {
            let span = Duration::from_millis(ms);
            assert_eq!((age(span).as_str(), took(span).as_str()), (old, long), "{ms} ms");
        }
        let now = "2030-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(ago("2030-01-01T00:01:30Z".parse().unwrap(), now), "3m");
        assert_eq!(ago("2030-01-01T00:05:01Z".parse().unwrap(), now), "0s", "another clock is ahead");
    }

    #[test]
    fn rates_and_counts() {
        for (number, text) in [(0.0, "0"), (0.25, "0.25"), (3.12, "3.1"), (1234.5, "1234")] {
            assert_eq!(rate(number), text);
        }
        assert_eq!((count(1, "job").as_str(), count(0, "job").as_str()), ("1 job", "0 jobs"));
    }

    #[test]
    fn a_terminal_is_told_nothing_by_a_job() {
        assert_eq!(
            one_line("a\r\n b\t\x1b[31mred\u{9b}2J\u{202e}x"),
            "a b \u{fffd}[31mred\u{fffd}2J\u{fffd}x"
        );
        assert_eq!(harmless("a\n\tb\x07"), "a\n\tb\u{fffd}");
        // Nor shown as nothing, or as something else than it is; marks of letters stay.
        assert_eq!(
            one_line("pay\u{200b}ment\u{feff} a\u{ad}b\u{2060}c\u{e0041} e\u{301}"),
            "pay\u{fffd}ment\u{fffd} a\u{fffd}b\u{fffd}c\u{fffd} e\u{301}"
        );
    }

    #[test]
    fn lines_are_cut_at_the_width() {
        for (line, width, cut_line) in
            [("abc", 3, "abc"), ("äbcd", 3, "äb…"), ("abc", 1, "…"), ("abc", 0, "…")]
        {
            assert_eq!(cut(line, width), cut_line);
        }
    }

    #[test]
    fn json_is_indented_and_nothing_else() {
        let json = r#" {"b" : 12345678901234567890123, "a":[1.50,"x, \"y\": {z}\\"], "e":{ },"f":[ ] } "#;
        let shown = "{\n  \"b\": 12345678901234567890123,\n  \"a\": [\n    1.50,\n    \
                     \"x, \\\"y\\\": {z}\\\\\"\n  ],\n  \"e\": {},\n  \"f\": []\n}";
        assert_eq!(indented(json), shown);
        assert_eq!(indented(r#""text""#), r#""text""#);
    }

    #[test]
    fn what_is_nested_too_deep_is_not_indented() {
        let nested = |levels: usize| format!("{}1,2{}", "[".repeat(levels), "]".repeat(levels));
        let shown = indented(&nested(INDENTED + 2));
        assert_eq!(shown.lines().count(), 2 * INDENTED + 1);
        assert!(shown.contains(&format!("\n{}[[1,2]]\n", INDENT.repeat(INDENTED))), "{shown}");
        let (one, two) = (indented(&nested(30_000)).len(), indented(&nested(60_000)).len());
        assert_eq!(two - one, 60_000, "each more level is its brackets");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn indented_json_is_that_of_serde(value in any_json()) {
            prop_assert_eq!(indented(&value.to_string()), format!("{value:#}"));
        }
    }
}
