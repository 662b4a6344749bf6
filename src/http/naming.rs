//! The ids that clients choose for their jobs: idempotency keys, ids in paths and batches, and the digest that tells
//! whether two requests with one id are the same. Pure.

use axum::http::{HeaderMap, HeaderName, request::Parts};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    fields::{self, Errors, Object},
    problem::Problem,
};
use crate::{
    access::KeyId,
    client::Submission,
    job::{JobId, Kind},
    record::keys::Digest,
};

/// The header's name.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The header's name, as it is written.
const HEADER: &str = "Idempotency-Key";
/// Longest key, in characters (all ASCII).
const KEY_MAX: usize = 255;
/// What keeps the idempotency keys of different clients apart: the id of their API key, where they have one.
pub(super) type Scope = Option<KeyId>;

fn id_of(scope: Scope, key: &str) -> JobId {
    JobId::from_key(scope.as_ref().map_or("", KeyId::as_str), key)
}

/// What a submit asks for, in its digest.
pub(super) const SUBMIT: &str = "job";
/// Members that say how a job is called, not what it is.
pub(super) const NAMING_MEMBERS: [&str; 2] = ["id", "idempotency_key"];
/// Namespace of digests. Replicas of different versions compare their digests: never change it, nor what is hashed.
const REQUESTS: Uuid = Uuid::from_u128(0x629a_f448_3753_4ed9_a896_db7d_b12a_80aa);

/// A job's id that its client chose, and what tells its request from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    /// The id.
    pub(super) id: JobId,
    /// Of the request.
    pub(super) digest: Digest,
}

impl Named {
    /// Gives a job this name.
    pub(super) fn put_on(self, job: &mut Submission) {
        // Another copy may exist: of a repeat that another replica took in the same moment, for one.
        (job.envelope.id, job.envelope.unsure) = (self.id, true);
        job.request = Some(self.digest.to_string());
    }
}

/// Where a job's id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// From us.
    Ours,
    /// From the path, or a key in the header.
    Client(JobId),
    /// From members of the job itself, if it has them.
    Members(Scope),
}

impl Choice {
    /// The id in the path, or the one that the header's key stands for. What is wrong goes to `errors`.
    pub(super) fn of(path: Option<JobId>, headers: &HeaderMap, scope: Scope, errors: &mut Errors) -> Self {
        if let Some(id) = path {
            refuse_key(headers, "cannot be given with PUT: the id in the path says what a repeat is", errors);
            return Self::Client(id);
        }
        match header_key(headers, errors) {
            Some(key) => Self::Client(id_of(scope, &key)),
            None => Self::Ours,
        }
    }

    /// The id, where it is known already, with the digest of its request.
    pub(super) fn named(self, digest: impl FnOnce() -> Digest) -> Option<Named> {
        match self {
            Self::Client(id) => Some(Named { id, digest: digest() }),
            Self::Ours | Self::Members(_) => None,
        }
    }

    /// Takes the id out of the members of a job, where it may be there.
    pub(super) fn read(self, object: &mut Object<'_>, errors: &mut Errors) -> Option<JobId> {
        match self {
            Self::Ours => None,
            Self::Client(id) => Some(id),
            Self::Members(scope) => {
                let both = NAMING_MEMBERS.iter().all(|name| object.has(name));
                let id = object.take("id", errors, |raw| {
                    let id = fields::string(raw)?.parse::<JobId>().map_err(|error| error.to_string())?;
                    usable(id)
                });
                let key = object.take_raw("idempotency_key", errors);
                let key = key.map(|raw| fields::string(raw).and_then(|key| check_key(&key).map(|()| key)));
                let key = key.and_then(|key| {
                    key.map_err(|detail| errors.bad_key_at(object.pointer("idempotency_key"), detail)).ok()
                });
                if both {
                    errors.at(object.pointer("idempotency_key"), "cannot be given together with id");
                }
                id.or_else(|| key.map(|key| id_of(scope, &key)))
            }
        }
    }
}

/// Refuses keys where they mean nothing: `why` says what to do instead.
pub(super) fn refuse_key(headers: &HeaderMap, why: &str, errors: &mut Errors) {
    if headers.contains_key(IDEMPOTENCY_KEY) {
        errors.bad_key(HEADER, why);
    }
}

fn usable(id: JobId) -> Result<JobId, String> {
    if id.is_nil_or_max() {
        return Err("must be a UUID of the job's own: neither the nil nor the max UUID".to_owned());
    }
    if id.is_derived() {
        return Err(
            "must not be a UUID version 8: those are derived, from idempotency keys among others".to_owned()
        );
    }
    Ok(id)
}

/// The key in the header: a text (RFC 8941) or the key as it is.
fn header_key(headers: &HeaderMap, errors: &mut Errors) -> Option<String> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let first = values.next()?;
    if values.next().is_some() {
        errors.bad_key(HEADER, "is given more than once");
        return None;
    }
    let text = first.to_str().map_err(|_| MALFORMED.to_owned());
    text.and_then(parse_key).map_err(|detail| errors.bad_key(HEADER, detail)).ok()
}

const MALFORMED: &str = "must be a text in quotes, or 1 to 255 printable ASCII characters without spaces, quotes, commas, semicolons and \\";

fn parse_key(text: &str) -> Result<String, String> {
    let text = text.trim_matches([' ', '\t']);
    let key = match text.strip_prefix('"') {
        Some(rest) => unquote(rest).ok_or_else(|| MALFORMED.to_owned())?,
        // A comma would be a second key, a semicolon a parameter.
        None if text.bytes().all(|c| c.is_ascii_graphic() && !br#"",;\"#.contains(&c)) => text.to_owned(),
        None => return Err(MALFORMED.to_owned()),
    };
    check_key(&key).map(|()| key)
}

/// The text of RFC 8941 that `rest` is after its opening quote.
fn unquote(rest: &str) -> Option<String> {
    let mut text = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(text),
            '\\' => text.push(chars.next().filter(|c| matches!(c, '"' | '\\'))?),
            c => text.push(c),
        }
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let printable = key.bytes().all(|c| (0x20..0x7f).contains(&c));
    if (1..=KEY_MAX).contains(&key.len()) && printable {
        return Ok(());
    }
    Err(format!("must have 1 to {KEY_MAX} printable ASCII characters"))
}

/// The digest of a request whose body is `object`: `what` it asks for, and the body's members, in order of name, without
/// white space between their parts. Args count as the bytes they are.
pub(super) fn digest_of(what: &str, object: &Object<'_>) -> Digest {
    let mut canonical = Canonical::new(what);
    let mut members: Vec<_> =
        object.members().filter(|(name, _)| *name != "args" && !NAMING_MEMBERS.contains(name)).collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    for (name, raw) in members {
        canonical.member(name, &compact(raw));
    }
    let args = object.members().find(|(name, _)| *name == "args").map_or("{}", |(_, raw)| raw.get());
    canonical.digest(args.as_bytes())
}

/// The digest of a call: its kind, what its query says of the job, and its args.
pub(super) fn digest_of_call(kind: &Kind, query: &[(&str, Option<&str>)], args: &[u8]) -> Digest {
    let mut canonical = Canonical::new("rpc");
    canonical.member("kind", kind.as_str());
    for (name, value) in query {
        if let Some(value) = value {
            canonical.member(name, value);
        }
    }
    canonical.digest(args)
}

/// The digest of a request for an act: its method, path and query, and its body's members, if it has a body.
pub(super) fn digest_of_act(head: &Parts, body: Option<&Object<'_>>) -> Digest {
    let what = format!("{} {}", head.method, head.uri);
    match body {
        Some(object) => digest_of(&what, object),
        None => Canonical::new(&what).digest(b""),
    }
}

/// A request as it is hashed: what it is, then a line for each member, the last one for the args.
struct Canonical(String);

impl Canonical {
    fn new(what: &str) -> Self {
        Self(format!("{what}\n"))
    }

    /// Adds a member, whose name and value have no line break.
    fn member(&mut self, name: &str, value: &str) {
        self.0.extend([name, "=", value, "\n"]);
    }

    fn digest(self, args: &[u8]) -> Digest {
        // The args' hash instead of the args: they may be long, and this needs no copy of them.
        let text = format!("{}args={}\n", self.0, Uuid::new_v5(&REQUESTS, args));
        Digest(Uuid::new_v5(&REQUESTS, text.as_bytes()).into_bytes())
    }
}

/// JSON without the white space between its parts.
fn compact(raw: &RawValue) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let kept = raw.get().chars().filter(|&c| {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        in_string || !matches!(c, ' ' | '\t' | '\n' | '\r')
    });
    kept.collect()
}

/// Reads the id of a job that the client puts there.
///
/// # Errors
/// The problem, when it is one that no job can have.
pub(super) fn chosen(id: JobId) -> Result<JobId, Problem> {
    usable(id).map_err(|detail| {
        let mut errors = Errors::new(1);
        errors.parameter("id", detail);
        Problem::invalid(errors)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::problem::Code;

    fn key(values: &[&[u8]]) -> Result<Option<String>, Code> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, axum::http::HeaderValue::from_bytes(value).unwrap());
        }
        let mut errors = Errors::new(5);
        let key = header_key(&headers, &mut errors);
        errors.none_or(Some(key)).map_err(|problem| problem.code)
    }

    #[test]
    fn keys_are_texts_or_bare() {
        let longest = "k".repeat(KEY_MAX);
        let quoted = format!("\"{longest}\"");
        let escaped = format!("\"{}\"", r#"\""#.repeat(KEY_MAX));
        for (value, expected) in [
            (&b"k1"[..], "k1"),
            (b"\"k1\"", "k1"),
            (b"  k1\t", "k1"),
            (b"8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
            (b"a/b+c=:~!{}'", "a/b+c=:~!{}'"),
            (br#""a b, c; d""#, "a b, c; d"),
            (br#""a\"b\\c""#, r#"a"b\c"#),
            (br#"" ""#, " "),
            (longest.as_bytes(), &longest),
            (quoted.as_bytes(), &longest),
            (escaped.as_bytes(), &"\"".repeat(KEY_MAX)),
        ] {
            assert_eq!(key(&[value]), Ok(Some(expected.to_owned())), "{}", value.escape_ascii());
        }
        assert_eq!(key(&[]), Ok(None));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let (long, quoted) = ("k".repeat(KEY_MAX + 1), format!("\"{}\"", "k".repeat(KEY_MAX + 1)));
        for value in [
            &b""[..],
            b"\"\"",
            b"\"k1",
            b"k1\"",
            b"\"k1\"x",
            b"\"k1\";a=b",
            b"\"k1\", \"k2\"",
            b"k1,k2",
            b"k1;a",
            b"k 1",
            b"k\\1",
            br#""k\1""#,
            br#""k\"#,
            "\"schl\u{fc}ssel\"".as_bytes(),
            b"\xff",
            b"\"a\tb\"",
            b"'k 1'",
            long.as_bytes(),
            quoted.as_bytes(),
        ] {
            assert_eq!(key(&[value]), Err(Code::BadIdempotencyKey), "{}", value.escape_ascii());
        }
        assert_eq!(key(&[b"k1", b"k1"]), Err(Code::BadIdempotencyKey), "twice");
    }

    fn chosen_by(json: &str) -> Result<Option<JobId>, Code> {
        let mut object = Object::parse(json, "").unwrap();
        let mut errors = Errors::new(5);
        let id = Choice::Members(None).read(&mut object, &mut errors);
        object.finish(&[], &mut errors);
        errors.none_or(Some(id)).map_err(|problem| problem.code)
    }

    #[test]
    fn an_item_may_name_its_job() {
        let id = JobId::new();
        assert_eq!(chosen_by("{}"), Ok(None));
        assert_eq!(chosen_by(&format!(r#"{{"id":"{id}"}}"#)), Ok(Some(id)));
        assert_eq!(chosen_by(r#"{"idempotency_key":"a \"b\""}"#), Ok(Some(JobId::from_key("", "a \"b\""))));
        for (json, code) in [
            (r#"{"id":"x"}"#.to_owned(), Code::InvalidRequest),
            (r#"{"id":7}"#.to_owned(), Code::InvalidRequest),
            (r#"{"id":"00000000-0000-0000-0000-000000000000"}"#.to_owned(), Code::InvalidRequest),
            (r#"{"id":"ffffffff-ffff-ffff-ffff-ffffffffffff"}"#.to_owned(), Code::InvalidRequest),
            (format!(r#"{{"id":"{id}","idempotency_key":"k"}}"#), Code::InvalidRequest),
            (format!(r#"{{"id":"{id}","id":"{id}"}}"#), Code::InvalidRequest),
            (r#"{"idempotency_key":""}"#.to_owned(), Code::BadIdempotencyKey),
            (r#"{"idempotency_key":"é"}"#.to_owned(), Code::BadIdempotencyKey),
            (r#"{"idempotency_key":1}"#.to_owned(), Code::BadIdempotencyKey),
            (format!(r#"{{"idempotency_key":"{}"}}"#, "k".repeat(256)), Code::BadIdempotencyKey),
        ] {
            assert_eq!(chosen_by(&json), Err(code), "{json}");
        }
    }

    #[test]
    fn the_keys_of_two_clients_are_two_jobs() {
        let (mut headers, mut errors) = (HeaderMap::new(), Errors::new(5));
        headers.insert(IDEMPOTENCY_KEY, axum::http::HeaderValue::from_static("k1"));
        let ids = [None, "0123456789ab".parse().ok(), "ba9876543210".parse().ok()];
        let [nobody, one, other] = ids.map(|scope| Choice::of(None, &headers, scope, &mut errors));
        assert_eq!(nobody, Choice::Client(JobId::from_key("", "k1")));
        assert_eq!(one, Choice::Client(JobId::from_key("0123456789ab", "k1")));
        assert!(one != nobody && one != other);
        for (scope, header) in ids.into_iter().zip([nobody, one, other]) {
            let mut object = Object::parse(r#"{"idempotency_key":"k1"}"#, "").unwrap();
            let member = Choice::Members(scope).read(&mut object, &mut errors);
            assert_eq!(member.map(Choice::Client), Some(header), "a header and a member are the same key");
        }
    }

    fn kind(name: &str) -> Kind {
        Kind::parse(name).unwrap()
    }

    fn digest(json: &str) -> Digest {
        digest_of(SUBMIT, &Object::parse(json, "").unwrap())
    }

    #[test]
    fn a_digest_is_the_same_in_every_version() {
        let submit = r#"{"kind":"demo.echo","args":{"a":1}}"#;
        assert_eq!(digest(submit).to_string(), "b7b36cd98a29515798e31ba38a310817");
        let call = digest_of_call(&kind("demo.echo"), &[("queue", Some("media")), ("timeout", None)], b"{}");
        assert_eq!(call.to_string(), "66f94999acfd5d99ba468eed61df4984");
    }

    #[test]
    fn the_same_request_has_the_same_digest() {
        let first = digest(r#"{"kind":"a","args":{"x": 1},"tags":["b c","d"],"delay":5}"#);
        for same in [
            r#" { "delay" : 5 , "tags" : [ "b c" , "d" ] , "args" : {"x": 1} , "kind" : "a" } "#,
            r#"{"id":"x","idempotency_key":"y","kind":"a","args":{"x": 1},"tags":["b c","d"],"delay":5}"#,
        ] {
            assert_eq!(digest(same), first, "{same}");
        }
        for other in [
            r#"{"kind":"a","args":{"x":1},"tags":["b c","d"],"delay":5}"#,
            r#"{"kind":"a","args":{"x": 1},"tags":["bc","d"],"delay":5}"#,
            r#"{"kind":"a","args":{"x": 1},"tags":["b c","d"],"delay":"5"}"#,
            r#"{"kind":"a","args":{"x": 1},"tags":["b c","d"]}"#,
            r#"{"kind":"b","args":{"x": 1},"tags":["b c","d"],"delay":5}"#,
        ] {
            assert_ne!(digest(other), first, "{other}");
        }
        assert_eq!(digest(r#"{"kind":"a"}"#), digest(r#"{"kind":"a","args":{}}"#));
        assert_ne!(
            digest(r#"{"kind":"a"}"#),
            digest_of_call(&kind("a"), &[], b"{}"),
            "a call is another job"
        );
    }

    proptest! {
        #[test]
        fn any_key_can_be_written_in_quotes(key in "[ -~]{1,255}") {
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(parse_key(&quoted), Ok(key));
        }

        #[test]
        fn no_header_is_too_much(text in "\\PC*") {
            drop(parse_key(&text));
        }
    }
}
