//! A kind as a worker announces it. Reading is lenient: what cannot be read of a kind beside its name and its queue is
//! as if it were not said, so that the kind still gets its jobs.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tracing::debug;

use crate::{
    job::{Kind, QueueName, Schema, Schemas, dead::clip},
    retry::{MAX_ATTEMPTS, RetryPolicy},
};

/// Longest text about a kind that is not to be used any more, in bytes.
const DEPRECATED_MAX: usize = 500;
/// Most bytes of schemas in an announcement: it is one message.
const SCHEMAS_MAX: usize = 1 << 20;
/// Longest timeout that is believed, in milliseconds: 310 days.
const TIMEOUT_MAX: u64 = 310 * 86_400_000;

/// One kind of an announcement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Announced {
    pub(crate) kind: Kind,
    pub(crate) queue: QueueName,
    /// Args and outputs of this kind stay out of the record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) private: bool,
    /// The kind whose earlier name this is.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub(crate) alias_of: Option<Kind>,
    /// It is not to be used any more: what to use instead.
    #[serde(default, deserialize_with = "notice", skip_serializing_if = "Option::is_none")]
    pub(crate) deprecated: Option<String>,
    /// Longest run of an attempt.
    #[serde(default, deserialize_with = "timeout", skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    #[serde(default, deserialize_with = "max_attempts", skip_serializing_if = "Option::is_none")]
    pub(crate) max_attempts: Option<u32>,
    #[serde(default, deserialize_with = "retry", skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<Pauses>,
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub(crate) args_schema: Option<Schema>,
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub(crate) output_schema: Option<Schema>,
}

/// The pauses between a kind's attempts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pauses {
    pub(crate) initial_ms: u64,
    pub(crate) factor: f64,
    pub(crate) max_ms: u64,
    pub(crate) jitter: f64,
}

impl From<RetryPolicy> for Pauses {
    fn from(policy: RetryPolicy) -> Self {
        let millis = |pause: std::time::Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        Self {
            initial_ms: millis(policy.initial),
            factor: short(policy.factor),
            max_ms: millis(policy.max),
            jitter: short(policy.jitter),
        }
    }
}

/// To a millionth: such a number is read as it was written.
fn short(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

impl Announced {
    /// A kind of which nothing more is said.
    pub(crate) fn new(kind: Kind, queue: QueueName) -> Self {
        Self {
            kind,
            queue,
            private: false,
            alias_of: None,
            deprecated: None,
            timeout_ms: None,
            max_attempts: None,
            retry: None,
            args_schema: None,
            output_schema: None,
        }
    }

    /// With these schemas, as far as they are said.
    pub(crate) fn with_schemas(self, schemas: Schemas) -> Self {
        Self { args_schema: schemas.args, output_schema: schemas.output, ..self }
    }

    /// Its schemas.
    pub(super) fn take_schemas(&mut self) -> Schemas {
        let mut schemas = Schemas::none();
        (schemas.args, schemas.output) = (self.args_schema.take(), self.output_schema.take());
        schemas
    }

    /// Without its schemas.
    fn brief(&self) -> Self {
        self.clone().with_schemas(Schemas::none())
    }

    /// `kinds` without their schemas.
    pub(crate) fn briefly(kinds: &[Self]) -> Vec<Self> {
        kinds.iter().map(Self::brief).collect()
    }

    /// Leaves out the schemas for which there is no room in one message, those of the last kinds: which kinds.
    pub(crate) fn bound(kinds: &mut [Self]) -> Vec<Kind> {
        let (mut room, mut left_out) = (SCHEMAS_MAX, Vec::new());
        for kind in kinds {
            let schemas = kind.take_schemas();
            match room.checked_sub(schemas.len()) {
                Some(rest) => {
                    room = rest;
                    (kind.args_schema, kind.output_schema) = (schemas.args, schemas.output);
                }
                None => left_out.push(kind.kind.clone()),
            }
        }
        left_out
    }
}

/// Reads a member; one that cannot be read is not there.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    let read = serde_json::from_str(raw.get());
    Ok(read.map_err(|error| debug!(%error, "a member of an announced kind cannot be read")).ok())
}

fn notice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = lenient::<_, String>(deserializer)?;
    Ok(text.map(|text| clip(&text, DEPRECATED_MAX).to_owned()))
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(lenient(deserializer)?.filter(|timeout| (1..=TIMEOUT_MAX).contains(timeout)))
}

fn max_attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Ok(lenient(deserializer)?.filter(|attempts| (1..=MAX_ATTEMPTS).contains(attempts)))
}

fn retry<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Pauses>, D::Error> {
    let pauses = lenient::<_, Pauses>(deserializer)?;
    let pauses =
        pauses.map(|pauses| Pauses { factor: short(pauses.factor), jitter: short(pauses.jitter), ..pauses });
    Ok(pauses.filter(|pauses| {
        let (factor, jitter) = (pauses.factor, pauses.jitter);
        RetryPolicy { factor, jitter, ..RetryPolicy::default() }.check().is_ok()
            && pauses.initial_ms.max(pauses.max_ms) <= TIMEOUT_MAX
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::schema::SCHEMA_MAX;

    fn read(members: &str) -> Announced {
        serde_json::from_str(&format!(r#"{{"kind":"k","queue":"a"{members}}}"#)).unwrap()
    }

    fn plain() -> Announced {
        Announced::new(Kind::parse("k").unwrap(), QueueName::parse("a").unwrap())
    }

    #[test]
    fn what_is_said_is_read_as_it_was_written() {
        let policy = RetryPolicy { factor: 1.3, jitter: 1.0 / 3.0, ..RetryPolicy::default() };
        let said = Announced {
            private: true,
            alias_of: Some(Kind::parse("k.new").unwrap()),
            deprecated: Some("use k.new".to_owned()),
            timeout_ms: Some(60_000),
            max_attempts: Some(3),
            retry: Some(policy.into()),
            ..plain().with_schemas(Schemas::none().args_of(r#"{ "type": "object" }"#).output_of("true"))
        };
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(serde_json::from_str::<Announced>(&text).unwrap(), said, "{text}");
        assert_eq!(read(""), plain());
        assert_eq!(serde_json::to_string(&plain()).unwrap(), r#"{"kind":"k","queue":"a"}"#);
    }

    #[test]
    fn a_member_that_cannot_be_read_costs_nothing_else() {
        let long = format!(r#","args_schema":{{"description":"{}"}}"#, "x".repeat(SCHEMA_MAX));
        for members in [
            r#","args_schema":[]"#,
            r#","args_schema":"x","output_schema":null"#,
            &long,
            r#","timeout_ms":0,"max_attempts":1001"#,
            r#","timeout_ms":"1s","max_attempts":1.5,"deprecated":true"#,
            r#","retry":{"initial_ms":1,"factor":0.5,"max_ms":1,"jitter":0}"#,
            r#","retry":{"initial_ms":1}"#,
            r#","alias_of":"Not A Kind","later":[{}]"#,
        ] {
            assert_eq!(read(members), plain(), "{}", clip(members, 100));
        }
    }

    #[test]
    fn schemas_for_which_there_is_no_room_are_left_out() {
        let text = format!(r#"{{"description":"{}"}}"#, "x".repeat(SCHEMA_MAX - 100));
        let mut kinds =
            vec![plain().with_schemas(Schemas::none().args_of(&text)); SCHEMAS_MAX / SCHEMA_MAX + 2];
        kinds.push(plain().with_schemas(Schemas::none().args_of("true")));
        assert_eq!(Announced::bound(&mut kinds).len(), 2);
        assert!(kinds.last().is_some_and(|kind| kind.args_schema.is_some()), "a short one has room");
        assert!(Announced::briefly(&kinds).iter().all(|kind| kind.args_schema.is_none()));
    }
}
