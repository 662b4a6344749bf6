//! JSON that comes from outside: checked for syntax and depth without building a value from it, so that the
//! bytes can be carried untouched (no number loses digits, no key changes place).

use serde::de::{Deserialize, IgnoredAny};
use thiserror::Error;

use super::dead::clip;

/// Deepest nesting of arrays and objects that args, outputs and requests may have.
pub const MAX_DEPTH: usize = 64;
/// Longest word about what cannot be read, in bytes.
pub const WORD_MAX: usize = 500;

/// Why bytes are not acceptable JSON.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON at all.
    #[error("not valid JSON: {detail} at line {line} column {column}")]
    Syntax {
        /// What is wrong.
        detail: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1; 0 at the very end of the text.
        column: usize,
    },
    /// JSON, but nested too deep.
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// Checks that `bytes` are one JSON text (RFC 8259), nested at most [`MAX_DEPTH`] levels.
///
/// # Errors
/// [`JsonError`], with line and column for broken syntax.
pub fn check(bytes: &[u8]) -> Result<(), JsonError> {
    check_depth(bytes)?;
    // serde_json skips ignored strings without looking at their encoding.
    let text = std::str::from_utf8(bytes).map_err(|error| not_utf8(bytes, error.valid_up_to()))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let end = Deserialize::deserialize(&mut reader).and_then(|_: IgnoredAny| reader.end());
    end.map_err(|error| syntax(&error))
}

fn not_utf8(bytes: &[u8], at: usize) -> JsonError {
    let line = 1 + bytes[..at].iter().filter(|&&byte| byte == b'\n').count();
    let column = 1 + bytes[..at].iter().rev().take_while(|&&byte| byte != b'\n').count();
    JsonError::Syntax { detail: "invalid UTF-8".to_owned(), line, column }
}

/// The syntax error of serde_json without its own "at line … column …".
#[must_use]
pub fn syntax(error: &serde_json::Error) -> JsonError {
    let text = error.to_string();
    let detail = text.split(" at line ").next().unwrap_or_default().to_owned();
    JsonError::Syntax { detail, line: error.line(), column: error.column() }
}

/// Reads what somebody wrote on the broker.
///
/// # Errors
/// What is wrong, in at most [`WORD_MAX`] bytes: serde_json quotes what it found, which may be megabytes.
pub fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| clip(&error.to_string(), WORD_MAX).to_owned())
}

/// Checks the depth alone, in one pass that allocates nothing. What is not JSON passes: the parser that follows
/// says what is wrong with it.
///
/// # Errors
/// [`JsonError::TooDeep`].
pub fn check_depth(bytes: &[u8]) -> Result<(), JsonError> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(JsonError::TooDeep);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_json_passes() {
        let deepest = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        for good in ["{}", "null", " 1 ", r#"{"a":[1,2,{"b":"]]]"}]}"#, r#""\"[[[""#, &deepest] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
    }

    #[test]
    fn bad_json_says_where() {
        let error = check(b"{\"a\": 1,\n \"b\": }").unwrap_err();
        assert!(matches!(error, JsonError::Syntax { line: 2, column: 7, .. }), "{error:?}");
        for bad in ["", "{", "{\"a\":1", "[1,]", "nul", "{} {}", "\u{1}", "'a'", "{\"a\" 1}"] {
            assert!(matches!(check(bad.as_bytes()), Err(JsonError::Syntax { .. })), "{bad}");
        }
        assert!(check(b"\"\xff\xfe\"").is_err(), "not UTF-8");
    }

    #[test]
    fn what_cannot_be_read_is_not_quoted_whole() {
        let long = serde_json::to_vec(&"ä".repeat(100_000)).unwrap();
        let error = read::<Vec<u8>>(&long).unwrap_err();
        assert!(error.starts_with("invalid type: string") && error.len() <= WORD_MAX, "{error}");
    }

    #[test]
    fn depth_is_bounded() {
        for levels in [MAX_DEPTH + 1, 100, 1_000_000] {
            assert_eq!(check(&"[".repeat(levels).into_bytes()), Err(JsonError::TooDeep));
            assert_eq!(check("{\"a\":".repeat(levels).as_bytes()), Err(JsonError::TooDeep));
        }
    }
}
