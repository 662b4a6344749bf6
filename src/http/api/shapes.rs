//! What requests may be: these are read by hand (`http::fields`), so they are described by hand. `tests/it/openapi.rs`
//! compares their members and parameters with those that a front names when it is sent an unknown one.

use serde_json::{Map, Value, json};

use crate::{
    egress::URL_MAX,
    http::cancel,
    job::envelope::{TAG_MAX, TAGS_MAX},
    record::model::JobStatus,
    retry::MAX_ATTEMPTS,
};

/// A reference to a schema of the components.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The schemas that requests share, by name.
pub(super) fn shared(max_delay: f64) -> Map<String, Value> {
    let text = |description: &str, pattern: &str| json!({ "type": "string", "description": description, "pattern": pattern });
    let duration = |description: &str, least: f64, most: f64| {
        json!({
            "description": description,
            "anyOf": [
                { "type": "number", "minimum": least, "maximum": most },
                { "type": "string", "minLength": 1, "pattern": DURATION },
            ],
            "examples": ["250ms", "30s", "1h30m", 1.5],
        })
    };
    // What `parse_duration` takes.
    let century = 36_600.0 * 86_400.0;
    let mut shared = json!({
        "Args": {
            "description": "Any JSON of at most `limits.args` bytes and 64 levels. Carried as the bytes that came. Where \
                            workers announced a schema for the kind, args that do not fit are refused.",
        },
        "Delay": duration("At most `limits.max_delay`. A number of seconds, or text as in `\"250ms\"` or `\"1h30m\"`.", 0.0, max_delay),
        "Pause": duration("At most 310 days.", 0.0, 310.0 * 86_400.0),
        "Timeout": duration("At least 1 ms.", 0.001, century),
        "Duration": duration("A number of seconds, or text as in `\"250ms\"` or `\"1h30m\"`.", 0.0, century),
        "DurationText": {
            "type": "string",
            "minLength": 1,
            "pattern": DURATION,
            "description": "A duration as text: `30s`, `250ms`, or a number of seconds.",
            "examples": ["10s"],
        },
        "Time": {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339.",
            "examples": ["2030-01-31T12:00:00+02:00"],
        },
        "Tag": {
            "type": "string",
            "minLength": 1,
            "maxLength": TAG_MAX,
            "description": "At most 100 bytes, without comma, control characters, or white space at either end.",
            "pattern": r"^[^,\x00-\x1f\x7f-\x9f]+$",
            "examples": ["customer-17"],
        },
        "Kind": kind(),
        "OwnKind": own_kind(),
        "QueueName": queue(),
        "Fingerprint": text("Stands for a kind, an error's code, and its text without numbers, identifiers and quoted parts.", "^[0-9a-f]{16}$"),
        "By": note("Who asks, for the record. Nobody checks it while there are no keys.", cancel::BY_MAX),
        "Reason": note("Why, for the record.", cancel::REASON_MAX),
        "Search": note("Text in an error's code or message, upper and lower case alike.", 200),
        "JobId": { "type": "string", "format": "uuid", "description": "The job's id: a UUID.", "examples": [JOB] },
        "IdempotencyKey": text("1 to 255 printable ASCII characters.", "^[ -~]{1,255}$"),
    });
    shared["Retry"] = object(
        "When a failed attempt is tried again; what is not given is the kind's.",
        &[
            ("initial", reference("Pause")),
            ("factor", json!({ "type": "number", "minimum": 1, "maximum": 100 })),
            ("max", reference("Pause")),
            ("jitter", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        ],
        &[],
    );
    shared["Submit"] = submit(&[]);
    shared["BatchItem"] = submit(&[
        ("id", json!({ "$ref": "#/components/schemas/JobId" })),
        ("idempotency_key", reference("IdempotencyKey")),
    ]);
    shared["BatchItem"]["not"] = json!({ "required": ["id", "idempotency_key"] });
    shared["Filter"] = object(
        "Which jobs. An empty one stands for all.",
        &[
            (
                "status",
                json!({ "anyOf": [{ "type": "string" }, { "type": "array", "maxItems": 8, "items": { "type": "string" } }] }),
            ),
            ("queue", reference("QueueName")),
            ("kind", reference("Kind")),
            ("tag", reference("Tag")),
            ("q", reference("Search")),
            ("from", reference("Time")),
            ("to", reference("Time")),
            ("fingerprint", reference("Fingerprint")),
        ],
        &[],
    );
    match shared {
        Value::Object(shared) => shared,
        _ => Map::new(),
    }
}

/// A job's id in examples.
pub(super) const JOB: &str = "0198c0de-7a3c-7c3e-8d5f-0123456789ab";
/// Text that is a duration. Others are understood, too.
const DURATION: &str = r"^[0-9]+(\.[0-9]+)?$|^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";

fn kind() -> Value {
    json!({
        "type": "string",
        "maxLength": 100,
        "pattern": r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$",
        "description": "The name of a kind of job.",
        "examples": ["image.thumbnail"],
    })
}

fn own_kind() -> Value {
    let mut kind = kind();
    kind["description"] = "The name of a kind of job. Those that begin with `hopline.` are acts, which have calls of their own.".into();
    kind["not"] = json!({ "pattern": r"^hopline\." });
    kind
}

fn queue() -> Value {
    json!({
        "type": "string",
        "pattern": "^[a-z0-9_-]{1,60}$",
        "description": "The name of a queue.",
        "not": { "enum": crate::job::name::RESERVED },
        "examples": ["default"],
    })
}

fn note(text: &str, max: usize) -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": max,
        "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$",
        "description": format!("{text} At most {max} bytes without control characters, and not only white space."),
    })
}

/// The header's key: a text in quotes, or bare.
pub(super) fn key_header() -> Value {
    json!({
        "type": "string",
        "pattern": r#"^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-+\--:<-\[\]-~]{1,255})$"#,
        "examples": ["\"order 17\"", "8e03978e-40d5-43e8-bc93-6894a57f9324"],
    })
}

/// A closed object with these members.
fn object(text: &str, members: &[(&str, Value)], required: &[&str]) -> Value {
    let members: Map<_, _> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let mut object = json!({ "type": "object", "description": text, "properties": members, "additionalProperties": false });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn submit(more: &[(&str, Value)]) -> Value {
    let described = |name: &str, text: &str| {
        let mut schema = reference(name);
        schema["description"] = text.into();
        schema
    };
    let mut members = vec![
        ("kind", reference("OwnKind")),
        ("args", described("Args", "What the handler gets. Default `{}`.")),
        (
            "queue",
            described(
                "QueueName",
                "Where the job waits. Default: what workers announced for the kind, else `[routes]`, else `default`.",
            ),
        ),
        ("delay", described("Delay", "Run after this.")),
        (
            "run_at",
            described(
                "Time",
                "Run then; a time that has passed means now. At most `limits.max_delay` from now.",
            ),
        ),
        (
            "expires_in",
            described(
                "Duration",
                "No attempt starts after this, counted from now. Must lie after the job's start.",
            ),
        ),
        (
            "expires_at",
            described(
                "Time",
                "No attempt starts after this. Must lie in the future, and after the job's start.",
            ),
        ),
        ("timeout", described("Timeout", "Longest run of one attempt.")),
        (
            "max_attempts",
            json!({ "type": "integer", "minimum": 1, "maximum": MAX_ATTEMPTS, "description": "Attempts in all." }),
        ),
        ("retry", reference("Retry")),
        ("tags", json!({ "type": "array", "maxItems": TAGS_MAX, "items": reference("Tag") })),
        (
            "callback_url",
            json!({
                "type": "string",
                "format": "uri",
                "maxLength": URL_MAX,
                "description": "Who is told how the job ended: an https address that is not private. Refused (`not_supported`) where no `callbacks.secret` is configured.",
                "examples": ["https://example.com/hooks/hopline"],
            }),
        ),
    ];
    members.extend(more.iter().map(|(name, schema)| (*name, schema.clone())));
    let mut object = object("A job to be submitted.", &members, &["kind"]);
    object["allOf"] = json!([{ "not": { "required": ["delay", "run_at"] } }, { "not": { "required": ["expires_in", "expires_at"] } }]);
    object["examples"] = json!([{ "kind": "demo.echo", "args": { "hello": "world" } }]);
    object
}

/// States as a list's parameter has them: some, joined by commas.
pub(super) fn states() -> Value {
    let names = JobStatus::ALL.map(JobStatus::as_str).join("|");
    json!({ "type": "string", "pattern": format!("^({names})(, ?({names}))*$"), "examples": ["succeeded,dead"] })
}

/// The body of an act, with these members.
pub(super) fn act(members: &[&'static str], required: Value) -> Value {
    let member = |name: &'static str| {
        let schema = match name {
            "filter" => reference("Filter"),
            "ids" => {
                json!({ "type": "array", "minItems": 1, "maxItems": crate::acts::IDS_MAX, "items": reference("JobId") })
            }
            "rate" => {
                json!({ "type": "number", "minimum": 1e-6, "description": "At most so many per second. Default: as fast as it goes." })
            }
            "set" => object(
                "What the jobs get instead of theirs: checked as a submit's where the request says of which kind they are.",
                &[("args", reference("Args"))],
                &["args"],
            ),
            "dry_run" => json!({ "type": "boolean", "description": "Only count the jobs." }),
            "all" => json!({ "type": "boolean", "description": "All of them." }),
            "kind" => reference("Kind"),
            "fingerprint" => reference("Fingerprint"),
            "by" => reference("By"),
            _ => reference("Reason"),
        };
        (name, schema)
    };
    let members: Vec<_> = members.iter().copied().map(member).collect();
    let mut object = object("What the act is about.", &members, &[]);
    if let Value::Object(required) = required {
        object.as_object_mut().into_iter().for_each(|object| object.extend(required.clone()));
    }
    object
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::{filter, submission};

    fn members(schema: &Value) -> BTreeSet<&str> {
        schema["properties"].as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn members_are_those_that_are_read() {
        let shared = shared(60.0);
        assert_eq!(members(&shared["Submit"]), BTreeSet::from(submission::MEMBERS));
        assert_eq!(members(&shared["Filter"]), BTreeSet::from(filter::PARAMETERS));
    }
}
