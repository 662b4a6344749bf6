//! Reads JSON objects strictly and collects everything that is wrong with them, each under its JSON pointer.
//!
//! No value is built from what a client sent: members are kept as the raw text they came in, so args keep their
//! digits and their order of keys, and a hostile body costs no more memory than its bytes.

use std::{borrow::Cow, fmt, time::Duration};

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::problem::{Code, Problem};
use crate::{
    config::parse_duration,
    job::{
        dead::clip,
        json::{self, JsonError},
    },
};

/// Most members of an object that are looked at. Ours have fewer than 16; the rest is counted.
const MEMBERS_MAX: usize = 64;
/// Longest piece of a client's own text in an answer, in bytes.
const ECHO_MAX: usize = 120;

/// What is wrong with one part of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(super) struct FieldError {
    /// Where in the body: a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pointer: Option<String>,
    /// Which query parameter or part of the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parameter: Option<String>,
    /// Which header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) header: Option<&'static str>,
    /// What is wrong, and what is allowed.
    pub(super) detail: String,
}

impl FieldError {
    /// An error in the body.
    pub(super) fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), parameter: None, header: None, detail: detail.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.pointer.as_deref().or(self.parameter.as_deref()).or(self.header);
        match place.filter(|place| !place.is_empty()) {
            Some(place) => write!(f, "{place}: {}", self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

/// All that is wrong with a request.
#[derive(Debug)]
pub(super) struct Errors {
    list: Vec<FieldError>,
    cap: usize,
    left_out: usize,
    too_deep: bool,
    unsupported: usize,
    bad_keys: usize,
}

impl Errors {
    /// A list that names at most `cap` problems and counts the rest.
    pub(super) fn new(cap: usize) -> Self {
        Self { list: Vec::new(), cap, left_out: 0, too_deep: false, unsupported: 0, bad_keys: 0 }
    }

    fn push(&mut self, error: FieldError) {
        if self.list.len() < self.cap {
            self.list.push(error);
        } else {
            self.left_out += 1;
        }
    }

    /// Something wrong in the body, at a JSON pointer.
    pub(super) fn at(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.push(FieldError::at(pointer, detail));
    }

    /// Something wrong with a query parameter or a part of the path.
    pub(super) fn parameter(&mut self, name: &str, detail: impl Into<String>) {
        let parameter = Some(clip(name, ECHO_MAX).to_owned());
        self.push(FieldError { pointer: None, parameter, header: None, detail: detail.into() });
    }

    /// An idempotency key in a header that is none, or means nothing there.
    pub(super) fn bad_key(&mut self, header: &'static str, detail: impl Into<String>) {
        self.bad_keys += 1;
        self.push(FieldError { pointer: None, parameter: None, header: Some(header), detail: detail.into() });
    }

    /// An idempotency key in the body that is none.
    pub(super) fn bad_key_at(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.bad_keys += 1;
        self.at(pointer, detail);
    }

    /// A member that asks for what is not available.
    pub(super) fn unsupported_at(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.unsupported += 1;
        self.at(pointer, detail);
    }

    /// A value that is nested too deep.
    pub(super) fn deep(&mut self, pointer: String) {
        self.too_deep = true;
        self.at(pointer, format!("is {}", JsonError::TooDeep));
    }

    fn total(&self) -> usize {
        self.list.len() + self.left_out
    }

    /// `value` if nothing is wrong, else the problem.
    pub(super) fn none_or<T>(self, value: Option<T>) -> Result<T, Problem> {
        match value {
            Some(value) if self.total() == 0 => Ok(value),
            _ => Err(Problem::invalid(self)),
        }
    }

    /// The code that fits, and the list.
    pub(super) fn into_list(mut self) -> (Code, Vec<FieldError>) {
        let code = match () {
            () if self.too_deep => Code::TooDeep,
            () if self.unsupported > 0 && self.unsupported == self.total() => Code::NotSupported,
            () if self.bad_keys > 0 && self.bad_keys == self.total() => Code::BadIdempotencyKey,
            () => Code::InvalidRequest,
        };
        if self.left_out > 0 {
            let detail = format!("{} more problems are left out", self.left_out);
            self.list.push(FieldError::at("", detail));
        }
        (code, self.list)
    }
}

/// The bytes as text.
///
/// # Errors
/// The problem, when they are no UTF-8.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|_| {
        // The check finds the same error, with its line and column.
        Problem::json(&json::check(bytes).err().unwrap_or(JsonError::TooDeep))
    })
}

/// Why `text` did not become what was wanted, where `wrong` says what it should have been.
fn refused(text: &str, error: &serde_json::Error, wrong: impl FnOnce() -> Problem) -> Problem {
    match json::check(text.as_bytes()) {
        Err(error) => Problem::json(&error),
        Ok(()) if error.is_data() => wrong(),
        Ok(()) => Problem::json(&json::syntax(error)),
    }
}

/// An object whose members are taken out one by one; what is left over is unknown or given twice.
#[derive(Debug)]
pub(super) struct Object<'a> {
    at: String,
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    more: usize,
}

impl<'a> Object<'a> {
    /// Reads the object that `text` is, found at the pointer `at`.
    ///
    /// # Errors
    /// The problem, when it is not JSON or no object.
    pub(super) fn parse(text: &'a str, at: &str) -> Result<Self, Problem> {
        let members: Members<'a> = serde_json::from_str(text).map_err(|error| {
            refused(text, &error, || {
                let mut errors = Errors::new(1);
                errors.at(at, "must be an object");
                Problem::invalid(errors)
            })
        })?;
        Ok(Self { at: at.to_owned(), members: members.list, more: members.more })
    }

    /// Whether a member is there and not taken.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(key, _)| key == name)
    }

    /// The members that are there and not taken.
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.members.iter().map(|(name, raw)| (name.as_ref(), *raw))
    }

    /// The pointer of a member.
    pub(super) fn pointer(&self, name: &str) -> String {
        let name = clip(name, ECHO_MAX).replace('~', "~0").replace('/', "~1");
        format!("{}/{name}", self.at)
    }

    /// Takes out a member, if it is there, by `read`; what is wrong with it goes to `errors`.
    pub(super) fn take<T>(
        &mut self,
        name: &str,
        errors: &mut Errors,
        read: impl FnOnce(&'a RawValue) -> Result<T, String>,
    ) -> Option<T> {
        let raw = self.take_raw(name, errors)?;
        read(raw).map_err(|detail| errors.at(self.pointer(name), detail)).ok()
    }

    /// Takes out a member as its text, checked for depth alone.
    pub(super) fn take_raw(&mut self, name: &str, errors: &mut Errors) -> Option<&'a RawValue> {
        let index = self.members.iter().position(|(key, _)| key == name)?;
        let (_, raw) = self.members.remove(index);
        if json::check_depth(raw.get().as_bytes()).is_err() {
            errors.deep(self.pointer(name));
            return None;
        }
        Some(raw)
    }

    /// Ends the reading: members that are left are given twice, if among `known`, or unknown.
    pub(super) fn finish(self, known: &[&str], errors: &mut Errors) {
        for (name, raw) in &self.members {
            let pointer = self.pointer(name);
            if json::check_depth(raw.get().as_bytes()).is_err() {
                errors.deep(pointer);
            } else if known.contains(&name.as_ref()) {
                errors.at(pointer, "is given more than once");
            } else {
                errors.at(pointer, format!("is unknown; known are {}", known.join(", ")));
            }
        }
        if self.more > 0 {
            errors.at(self.at, format!("has {} members more than the first {MEMBERS_MAX}", self.more));
        }
    }
}

#[derive(Default)]
struct Members<'a> {
    list: Vec<(Cow<'a, str>, &'a RawValue)>,
    more: usize,
}

/// A member's name: borrowed unless it is written with escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                while members.list.len() < MEMBERS_MAX {
                    let Some((Name(name), value)) = map.next_entry()? else { return Ok(members) };
                    members.list.push((name, value));
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    members.more += 1;
                }
                Ok(members)
            }
        }
        from.deserialize_map(Collect)
    }
}

/// The items of an array as their texts: the first so many, and how many more there are.
#[derive(Debug)]
pub(super) struct Items<'a> {
    /// The first items.
    pub(super) list: Vec<&'a RawValue>,
    /// How many follow.
    pub(super) more: usize,
}

impl<'a> Items<'a> {
    /// Reads the array that `text` is, of which at most `cap` items are kept.
    ///
    /// # Errors
    /// The problem, when it is not JSON or no array.
    pub(super) fn parse(text: &'a str, cap: usize) -> Result<Self, Problem> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let items = Capped(cap).deserialize(&mut reader).and_then(|items| reader.end().map(|()| items));
        items.map_err(|error| {
            refused(text, &error, || {
                let mut errors = Errors::new(1);
                errors.at("", "must be an array");
                Problem::invalid(errors)
            })
        })
    }
}

struct Capped(usize);

impl<'de> DeserializeSeed<'de> for Capped {
    type Value = Items<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Items<'de>, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Capped {
    type Value = Items<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<'de>, A::Error> {
        let mut items = Items { list: Vec::new(), more: 0 };
        while items.list.len() < self.0 {
            let Some(item) = seq.next_element()? else { return Ok(items) };
            items.list.push(item);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            items.more += 1;
        }
        Ok(items)
    }
}

/// What a value is, for "must be …, not …".
fn sort(raw: &RawValue) -> &'static str {
    match raw.get().bytes().next() {
        Some(b'"') => "text",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a truth value",
        Some(b'n') => "null (leave the member out instead)",
        _ => "a number",
    }
}

fn is_number(raw: &RawValue) -> bool {
    matches!(raw.get().bytes().next(), Some(b'-' | b'0'..=b'9'))
}

/// Reads text.
pub(super) fn string(raw: &RawValue) -> Result<String, String> {
    if !raw.get().starts_with('"') {
        return Err(format!("must be text, not {}", sort(raw)));
    }
    serde_json::from_str(raw.get()).map_err(|_| "must be text without half surrogates".to_owned())
}

/// Reads a whole number from `low` to `high`.
pub(super) fn whole(raw: &RawValue, low: u32, high: u32) -> Result<u32, String> {
    let allowed = format!("must be a whole number from {low} to {high}");
    if !is_number(raw) {
        return Err(format!("{allowed}, not {}", sort(raw)));
    }
    let value: u32 = serde_json::from_str(raw.get()).map_err(|_| allowed.clone())?;
    if (low..=high).contains(&value) { Ok(value) } else { Err(allowed) }
}

/// Reads a number.
pub(super) fn number(raw: &RawValue) -> Result<f64, String> {
    if !is_number(raw) {
        return Err(format!("must be a number, not {}", sort(raw)));
    }
    serde_json::from_str(raw.get()).map_err(|_| "is a number out of range".to_owned())
}

/// Reads a duration: a number of seconds, or text with units.
pub(super) fn duration(raw: &RawValue) -> Result<Duration, String> {
    let text = if is_number(raw) {
        raw.get().to_owned()
    } else if raw.get().starts_with('"') {
        string(raw)?
    } else {
        return Err(format!(
            "must be a number of seconds, or text as in \"250ms\" or \"1h30m\", not {}",
            sort(raw)
        ));
    };
    parse_duration(&text).map_err(|error| error.to_string())
}

/// Reads a time as RFC 3339 writes it.
pub(super) fn time(raw: &RawValue) -> Result<Timestamp, String> {
    string(raw)
        .map_err(|_| format!("must be a time as text, not {}", sort(raw)))
        .and_then(|text| time_of(&text))
}

/// Reads a time from its text.
pub(super) fn time_of(text: &str) -> Result<Timestamp, String> {
    let wrong = || {
        format!(
            "{:?} is no time: give RFC 3339 as in \"2030-01-31T12:00:00Z\" or with an offset as in +02:00",
            clip(text, 60)
        )
    };
    // The parser takes more than RFC 3339, times without minutes or with names of zones for instance.
    if !is_rfc3339(text.as_bytes()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

/// Whether `text` has the shape of RFC 3339's `date-time`; whether its numbers exist is not looked at.
fn is_rfc3339(text: &[u8]) -> bool {
    let fits = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(c, want)| match want {
                b'0' => c.is_ascii_digit(),
                want => c.eq_ignore_ascii_case(want),
            })
    };
    let Some((head, mut rest)) = text.split_at_checked(19) else { return false };
    if !fits(head, b"0000-00-00T00:00:00") {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|c| c.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        rest = &fraction[digits..];
    }
    fits(rest, b"Z") || fits(rest, b"+00:00") || fits(rest, b"-00:00")
}

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;
