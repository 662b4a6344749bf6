//! From a job's params to a command line. Pure.
//!
//! A value becomes a part of exactly one argument, whatever is in it: there is no shell, and nothing is split. What is
//! left to fear is an argument that the program takes for an option, so none may begin with a `-` of the job's.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use crate::config::{Command, Param};

/// Longest value, in bytes.
pub const VALUE_MAX: usize = 4096;
/// Most bytes of all arguments together: well below what the system takes.
const LINE_MAX: usize = 64 << 10;

/// A value that a job gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, hopline::schemars::JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(untagged)]
pub enum Value {
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Given)
    }
}

/// Says in words what a value is where it may not be: an untagged enum would say that it fits no variant.
struct Given;

impl Visitor<'_> for Given {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text, or a whole number from {} to {} (a larger one as text)", i64::MIN, i64::MAX)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        let fits = number.try_into().map(Value::Number);
        fits.map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// The arguments of `command` with the job's params in their places.
///
/// # Errors
/// A sentence: a param that is unknown, missing, or not allowed.
pub fn arguments(command: &Command, given: &BTreeMap<String, Value>) -> Result<Vec<String>, String> {
    if let Some(unknown) = given.keys().find(|name| !command.params.contains_key(*name)) {
        let known = command.params.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(match known.as_str() {
            "" => format!("there is no param {unknown:?}: the command takes none"),
            known => format!("there is no param {unknown:?}; there is {known}"),
        });
    }
    let mut values = BTreeMap::new();
    for (name, param) in &command.params {
        values.insert(name.as_str(), value(name, param, given.get(name))?);
    }
    let mut arguments = Vec::new();
    for template in &command.args {
        arguments.extend(fill(template, command, &values)?);
    }
    match arguments.iter().map(String::len).sum::<usize>() {
        0..=LINE_MAX => Ok(arguments),
        long => Err(format!("the arguments are {long} bytes; at most {LINE_MAX}")),
    }
}

/// What a param is worth; nothing where it is left out.
fn value(name: &str, param: &Param, given: Option<&Value>) -> Result<Option<String>, String> {
    let Some(value) = given.map(ToString::to_string).or_else(|| param.default.clone()) else {
        return if param.optional { Ok(None) } else { Err(format!("param {name:?} is missing")) };
    };
    if value.len() > VALUE_MAX || value.contains('\0') {
        return Err(format!("param {name:?} is longer than {VALUE_MAX} bytes, or holds a zero byte"));
    }
    if param.allows(&value) {
        return Ok(Some(value));
    }
    Err(match &param.choices {
        Some(choices) => format!("param {name:?} must be one of {choices:?}"),
        None => format!("param {name:?} does not match what is allowed"),
    })
}

/// One argument; none where it names a param that was left out.
fn fill(
    template: &str,
    command: &Command,
    values: &BTreeMap<&str, Option<String>>,
) -> Result<Option<String>, String> {
    let mut argument = String::new();
    // Checked when the file was read.
    for part in parts(template).unwrap_or_default() {
        match part {
            Part::Text(text) => argument.push_str(text),
            Part::Param(name) => {
                let Some(Some(value)) = values.get(name) else { return Ok(None) };
                let free = command.params.get(name).is_some_and(|param| param.choices.is_none());
                if argument.is_empty() && free && value.starts_with('-') {
                    return Err(format!(
                        "param {name:?} must not begin with -: it would be taken for an option"
                    ));
                }
                argument.push_str(value);
            }
        }
    }
    Ok(Some(argument))
}

enum Part<'a> {
    Text(&'a str),
    Param(&'a str),
}

/// The params that an argument names.
///
/// # Errors
/// What is wrong with its braces.
pub(crate) fn placeholders(template: &str) -> Result<Vec<&str>, &'static str> {
    let named = |part| match part {
        Part::Param(name) => Some(name),
        Part::Text(_) => None,
    };
    Ok(parts(template)?.into_iter().filter_map(named).collect())
}

/// `{name}` is a param; `{{` and `}}` are braces.
fn parts(template: &str) -> Result<Vec<Part<'_>>, &'static str> {
    const WRONG: &str = "has braces that are no {param}: write {{ and }} for braces";
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (text, from) = rest.split_at(at);
        parts.push(Part::Text(text));
        if from.starts_with("{{") || from.starts_with("}}") {
            parts.push(Part::Text(&from[..1]));
            rest = &from[2..];
            continue;
        }
        let (name, after) = from.strip_prefix('{').and_then(|from| from.split_once('}')).ok_or(WRONG)?;
        let fits = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
        if !fits {
            return Err(WRONG);
        }
        parts.push(Part::Param(name));
        rest = after;
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        toml::from_str(&format!("program = \"/bin/true\"\n{text}")).unwrap()
    }

    fn line(command: &Command, given: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), Value::Text((*value).to_owned())));
        arguments(command, &given.collect())
    }

    #[test]
    fn params_fill_their_places_and_nothing_else() {
        let command = command(
            r#"
            args = ["-c", "{{x}}", "--lang={lang}", "{file}", "--max={max}"]
            params.lang = { choices = ["de", "en", "-x"], default = "en" }
            params.file = { pattern = "[^/]*" }
            params.max = { pattern = "[0-9]+", optional = true }
            "#,
        );
        for (given, expected) in [
            (&[("file", "a.txt")][..], Ok("-c|{x}|--lang=en|a.txt")),
            (&[("file", "a b; rm -rf $(x)"), ("lang", "de")], Ok("-c|{x}|--lang=de|a b; rm -rf $(x)")),
            (&[("file", "{lang}"), ("max", "5")], Ok("-c|{x}|--lang=en|{lang}|--max=5")),
            (&[("file", ""), ("lang", "-x")], Ok("-c|{x}|--lang=-x|")),
            (&[], Err("\"file\" is missing")),
            (&[("file", "../etc")], Err("\"file\" does not match")),
            (&[("file", "a\n/b")], Err("\"file\" does not match")),
            (&[("file", "--output=x")], Err("must not begin with -")),
            (&[("file", "a"), ("lang", "fr")], Err("one of [\"de\", \"en\", \"-x\"]")),
            (&[("file", "a"), ("max", "5x")], Err("\"max\" does not match")),
            (&[("file", "a"), ("size", "5")], Err("there is file, lang, max")),
            (&[("file", "a\0b")], Err("zero byte")),
        ] {
            match (line(&command, given), expected) {
                (Ok(line), Ok(expected)) => assert_eq!(line.join("|"), expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (got, expected) => panic!("{given:?}: {got:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn values_are_text_or_whole_numbers_and_else_it_is_said_in_words() {
        let words = "expected text, or a whole number from -9223372036854775808 to 9223372036854775807";
        for (json, expected) in [
            ("\"1.0\"", Ok("1.0")),
            ("-9223372036854775808", Ok("-9223372036854775808")),
            ("9223372036854775807", Ok("9223372036854775807")),
            ("9223372036854775808", Err("integer `9223372036854775808`")),
            ("123456789012345678901234567890", Err("floating point `1.23456789")),
            ("1.5", Err("floating point `1.5`")),
            ("true", Err("boolean `true`")),
            ("null", Err("null")),
            ("[1]", Err("sequence")),
        ] {
            match (serde_json::from_str::<Value>(json), expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value.to_string(), expected),
                (Err(error), Err(part)) => {
                    let error = error.to_string();
                    assert!(error.contains(part) && error.contains(words), "{error}");
                }
                (got, expected) => panic!("{json}: {got:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let command = command(
            "args = [\"{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}{a}\"]\nparams.a.pattern = \".*\"",
        );
        assert!(line(&command, &[("a", &"x".repeat(VALUE_MAX + 1))]).unwrap_err().contains("longer"));
        assert!(line(&command, &[("a", &"x".repeat(VALUE_MAX))]).unwrap_err().contains("at most"));
    }

    #[test]
    fn braces_that_are_no_param_are_refused() {
        for bad in ["{", "}", "{}", "{a", "a}", "{a b}", "{a{b}}"] {
            assert!(placeholders(bad).is_err(), "{bad}");
        }
        assert_eq!(placeholders("x{a}{{{b-c}}}"), Ok(vec!["a", "b-c"]));
    }
}
