//! What a kind says of its args and its output: JSON Schemas, as text. Pure.
//!
//! A schema is announced by workers and comes from the broker, so it may be anything: here it is bounded in bytes, and
//! nothing is built from it. Who checks args by it (`http::schemas`) bounds the rest.

use std::{fmt, sync::Arc};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::value::RawValue;

use super::Job;

/// Longest schema that is announced, and that is read, in bytes.
pub const SCHEMA_MAX: usize = 64 << 10;

/// A JSON Schema as its text: an object or a truth value, of at most [`SCHEMA_MAX`] bytes. Whether it is a valid schema
/// is not known.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Schema(Arc<str>);

impl Schema {
    /// Takes the text of a schema.
    ///
    /// # Errors
    /// What is wrong: it is too long, or no object and no truth value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > SCHEMA_MAX {
            return Err(format!("is {} bytes; a schema has at most {SCHEMA_MAX}", text.len()));
        }
        serde_json::from_str::<&RawValue>(text).map_err(|error| format!("is no JSON: {error}"))?;
        if !matches!(text.as_bytes().first(), Some(b'{' | b't' | b'f')) {
            return Err("is no schema: it must be an object, true or false".to_owned());
        }
        Ok(Self(text.into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, in memory of its own.
    #[cfg(feature = "server")]
    pub(crate) fn copied(&self) -> Self {
        Self(Arc::from(self.as_str()))
    }

    /// Whether both are the same text in the same memory.
    #[cfg(feature = "server")]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether somebody else holds the same text in the same memory.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({} bytes)", self.0.len())
    }
}

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(D::Error::custom)
    }
}

/// What a kind says of its args and of its output. Nothing by default: then any args are taken.
///
/// ```
/// use hopline::{Job, Schemas, schemars::{self, JsonSchema}};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// struct Greet { name: String }
///
/// impl Job for Greet {
///     const KIND: &'static str = "demo.greet";
///     type Output = String;
///     fn schemas() -> Schemas { Schemas::of::<Self>() }
/// }
/// assert!(Greet::schemas().args.is_some());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schemas {
    /// What the handler takes, if it is said.
    pub args: Option<Schema>,
    /// What it returns, if it is said.
    pub output: Option<Schema>,
    /// What could not be said, and why; a worker logs it when it starts.
    pub(crate) left_out: Vec<String>,
}

impl Schemas {
    /// Nothing is said.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The schemas of a job's own type, as serde reads it, and of its output's, as serde writes it.
    #[must_use]
    pub fn of<J: Job + JsonSchema>() -> Self
    where
        J::Output: JsonSchema,
    {
        Self::none().with_args::<J>().with_output::<J::Output>()
    }

    /// With the schema of `T`, as serde reads it, for the args.
    #[must_use]
    pub fn with_args<T: JsonSchema>(self) -> Self {
        let schema =
            SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>();
        self.args_of(&serde_json::Value::from(schema).to_string())
    }

    /// With the schema of `T`, as serde writes it, for the output.
    #[must_use]
    pub fn with_output<T: JsonSchema>(self) -> Self {
        let schema =
            SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>();
        self.output_of(&serde_json::Value::from(schema).to_string())
    }

    /// With this text as the schema of the args, for types whose schema is not derived.
    #[must_use]
    pub fn args_of(mut self, text: &str) -> Self {
        self.args = self.parsed("args", text);
        self
    }

    /// With this text as the schema of the output.
    #[must_use]
    pub fn output_of(mut self, text: &str) -> Self {
        self.output = self.parsed("output", text);
        self
    }

    fn parsed(&mut self, what: &str, text: &str) -> Option<Schema> {
        let schema = Schema::parse(text);
        schema.map_err(|why| self.left_out.push(format!("the schema of the {what} {why}"))).ok()
    }

    /// Their length together, in bytes.
    pub(crate) fn len(&self) -> usize {
        [&self.args, &self.output].into_iter().flatten().map(|schema| schema.0.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Resize {
        /// In pixels.
        width: u32,
        #[serde(default)]
        #[deprecated = "use width"]
        size: Option<u32>,
    }

    impl Job for Resize {
        const KIND: &'static str = "resize";
        type Output = Vec<u8>;

        fn schemas() -> Schemas {
            Schemas::of::<Self>()
        }
    }

    #[test]
    fn a_type_says_what_it_takes_and_returns() {
        let Schemas { args, output, left_out } = Resize::schemas();
        let read = |schema: Option<Schema>| serde_json::from_str::<Value>(schema.unwrap().as_str()).unwrap();
        let (args, output) = (read(args), read(output));
        assert_eq!(
            (&args["required"], &args["properties"]["width"]["minimum"]),
            (&json!(["width"]), &json!(0))
        );
        assert_eq!(args["properties"]["width"]["description"], "In pixels.");
        assert_eq!(args["properties"]["size"]["deprecated"], true);
        assert_eq!(output["items"]["maximum"], 255);
        assert!(left_out.is_empty());
    }

    #[test]
    fn what_is_too_long_or_no_schema_is_left_out_and_said() {
        let long = format!(r#"{{"description":"{}"}}"#, "x".repeat(SCHEMA_MAX));
        for (text, word) in
            [(long.as_str(), "at most"), ("[]", "must be"), ("7", "must be"), ("{", "JSON"), ("", "JSON")]
        {
            let schemas = Schemas::none().args_of(text).output_of("true");
            assert_eq!((schemas.args.is_some(), schemas.output.is_some()), (false, true), "{word}");
            assert!(
                schemas.left_out.len() == 1 && schemas.left_out[0].contains(word),
                "{:?}",
                schemas.left_out
            );
        }
    }
}
