//! The kinds that workers have announced, as parts of the description: a call of each, with what it takes and returns.

use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    document::{gathering, place},
    operation::Operation,
    shapes::reference,
    tell,
};
use crate::{
    client::KindInfo,
    http::{App, access::Caller, submission::open_kind},
    job::Schema,
};

/// Most kinds that are described each by itself; the rest are in `GET /v1/kinds`.
const KINDS_MAX: usize = 1000;
/// Most bytes of schemas. Kinds that come later are described without theirs.
const SCHEMAS_MAX: usize = 8 << 20;
/// Members of a schema that hold data, not schemas.
const DATA: [&str; 5] = ["const", "enum", "default", "examples", "example"];
/// Members of a schema that hold schemas by names of their own.
const NAMED: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Members by which a schema refers to itself otherwise than by a path: it cannot be put into another document.
const FIXED: [&str; 7] =
    ["$id", "id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"];
/// What schemas are written in here, and where they do not say.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The kinds that a caller sees, without what the description does not tell of them.
pub(super) fn known(app: &App, caller: &Caller) -> Vec<KindInfo> {
    let mut kinds = app.client.kinds();
    // Acts have calls of their own, and no other.
    kinds.retain(|kind| caller.uses(&kind.queue) && open_kind(kind.kind.clone()).is_ok());
    kinds.truncate(KINDS_MAX);
    for kind in &mut kinds {
        (kind.announced_at, kind.workers) = (None, Vec::new());
        kind.announced_by.clear();
        kind.schemas.iter_mut().for_each(|schemas| schemas.announced_by.clear());
    }
    kinds
}

/// Longest time that schemas are looked at for one description.
const LOOKING: Duration = Duration::from_secs(5);

/// Puts the kinds in. Whether that is all: a schema that nobody had time to look at is left out.
pub(super) async fn put_in(app: &App, kinds: &[KindInfo], document: &mut Value) -> bool {
    let (mut complete, mut room) = (true, SCHEMAS_MAX);
    let until = Instant::now() + LOOKING;
    let path = "/v1/rpc/{kind}";
    for kind in kinds {
        let (mut args, mut output) = (Vec::new(), Vec::new());
        for schemas in &kind.schemas {
            for (from, into) in [(&schemas.args, &mut args), (&schemas.output, &mut output)] {
                let valid = match from {
                    Some(schema) => timeout_at(until, app.checks.is_valid(schema)).await.ok().flatten(),
                    None => Some(false),
                };
                complete &= valid.is_some();
                let schema = from.as_ref().filter(|_| valid == Some(true)).and_then(|schema| {
                    room = room.checked_sub(schema.as_str().len())?;
                    read(schema)
                });
                into.push(
                    schema.unwrap_or_else(|| json!({ "description": "Anything: nothing is known of it." })),
                );
            }
        }
        let name = |what: &str| format!("kind.{}.{what}", kind.kind);
        for (what, schemas) in [("args", args), ("output", output)] {
            document["components"]["schemas"][name(what)] = one_of(&name(what), schemas);
        }
        let operation = described(kind, reference(&name("args")), reference(&name("output")));
        let operation = operation.written(&place(&Method::POST, path, app.access.keyring().is_some()));
        document["paths"][format!("/v1/rpc/{}", kind.kind)] = json!({ "post": operation });
    }
    complete
}

fn described(kind: &KindInfo, args: Value, output: Value) -> Operation {
    let mut text = format!("Queue `{}`.", kind.queue);
    if let Some(other) = &kind.alias_of {
        text += &format!(" An earlier name of `{other}`.");
    }
    if let Some(instead) = &kind.deprecated {
        text += &format!(" Deprecated: {instead}");
    }
    if let Some(timeout) = kind.timeout {
        text += &format!(" An attempt runs for at most {timeout} s.");
    }
    if kind.private {
        text += " Its args and outputs are not recorded.";
    }
    let operation = Operation::new(format!("call:{}", kind.kind), "Kinds", format!("Run `{}`", kind.kind))
        .text(text)
        .deprecated(kind.deprecated.is_some() || kind.alias_of.is_some());
    // What it refers to is there already: the call of any kind has the same answers.
    tell::calling(operation, &mut gathering(), args, output, None)
}

/// A schema as a value, if it means the same in another document.
fn read(schema: &Schema) -> Option<Value> {
    let schema: Value = serde_json::from_str(schema.as_str()).ok()?;
    let dialect = schema.get("$schema").and_then(Value::as_str);
    let same = dialect.is_none_or(|dialect| dialect.trim_end_matches('#') == DIALECT);
    (same && is_movable(&schema, true)).then_some(schema)
}

/// Whether a schema refers to itself by paths alone. The root may have a name, if nothing uses it.
fn is_movable(schema: &Value, root: bool) -> bool {
    match schema {
        Value::Array(items) => items.iter().all(|item| is_movable(item, false)),
        Value::Object(members) => members.iter().all(|(name, value)| match (name.as_str(), value) {
            ("$ref", Value::String(target)) => target == "#" || target.starts_with("#/"),
            ("$id", Value::String(_)) if root => true,
            ("$schema", _) => root,
            (name, _) if FIXED.contains(&name) => false,
            (name, _) if DATA.contains(&name) => true,
            (name, Value::Object(named)) if NAMED.contains(&name) => {
                named.values().all(|schema| is_movable(schema, false))
            }
            (_, value) => is_movable(value, false),
        }),
        _ => true,
    }
}

/// What fits one of these: all of them, where workers do not agree.
fn one_of(name: &str, mut schemas: Vec<Value>) -> Value {
    schemas.dedup();
    let place = format!("/components/schemas/{name}");
    match schemas.len() {
        0 => json!({}),
        1 => moved(schemas.remove(0), &place),
        _ => {
            let each = schemas.into_iter().enumerate();
            let any: Vec<Value> =
                each.map(|(index, schema)| moved(schema, &format!("{place}/anyOf/{index}"))).collect();
            json!({ "anyOf": any })
        }
    }
}

/// A schema that lies at `place` now: its references go there.
fn moved(mut schema: Value, place: &str) -> Value {
    if let Value::Object(members) = &mut schema {
        members.remove("$schema");
        members.remove("$id");
    }
    redirect(&mut schema, place);
    schema
}

fn redirect(schema: &mut Value, place: &str) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| redirect(item, place)),
        Value::Object(members) => {
            for (name, value) in members.iter_mut().filter(|(name, _)| !DATA.contains(&name.as_str())) {
                match value {
                    Value::String(target) if name == "$ref" => {
                        if let Some(inside) = target.strip_prefix('#') {
                            *value = format!("#{place}{inside}").into();
                        }
                    }
                    Value::Object(named) if NAMED.contains(&name.as_str()) => {
                        named.values_mut().for_each(|schema| redirect(schema, place));
                    }
                    value => redirect(value, place),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_go_to_where_a_schema_lies_now() {
        let schema = json!({
            "$schema": DIALECT,
            "properties": {
                "a": { "$ref": "#/$defs/A" },
                "default": { "$ref": "#/$defs/A" },
                "$ref": { "const": { "$ref": "#/x" } },
            },
            "$defs": { "A": { "items": { "$ref": "#" } } },
        });
        let one = one_of("k", vec![schema.clone()]);
        for name in ["a", "default"] {
            assert_eq!(one["properties"][name]["$ref"], "#/components/schemas/k/$defs/A", "{name}");
        }
        assert_eq!(one["$defs"]["A"]["items"]["$ref"], "#/components/schemas/k");
        assert_eq!(one["properties"]["$ref"]["const"]["$ref"], "#/x");
        assert!(one.get("$schema").is_none());
        let two = one_of("k", vec![schema, json!(true)]);
        assert_eq!(two["anyOf"][0]["properties"]["a"]["$ref"], "#/components/schemas/k/anyOf/0/$defs/A");
        assert_eq!(one_of("k", Vec::new()), json!({}));
    }

    #[test]
    fn a_schema_that_cannot_be_moved_is_left_out() {
        let is_told = |schema: Value| read(&Schema::parse(&schema.to_string()).unwrap()).is_some();
        for good in [
            json!(true),
            json!({ "$schema": DIALECT, "$id": "urn:x", "$ref": "#/$defs/A", "$defs": { "A": {} } }),
            json!({ "properties": { "$id": { "type": "string" }, "$ref": { "const": "x" } } }),
            json!({ "const": { "$ref": "elsewhere" } }),
        ] {
            assert!(is_told(good.clone()), "{good}");
        }
        for bad in [
            json!({ "$schema": "http://json-schema.org/draft-07/schema#" }),
            json!({ "$ref": "#name" }),
            json!({ "$ref": "https://example.com/schema" }),
            json!({ "properties": { "a": { "$id": "urn:a" } } }),
            json!({ "items": { "$anchor": "a" } }),
            json!({ "$dynamicRef": "#a" }),
        ] {
            assert!(!is_told(bad.clone()), "{bad}");
        }
    }
}
