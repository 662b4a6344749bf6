//! The description without kinds: it is OpenAPI 3.1, and what it says of problems is what the table says.

use std::collections::BTreeSet;

use super::*;

/// The OpenAPI Initiative's schema of a 3.1 document, 2022-10-07 (Apache-2.0). What schemas in it are, it leaves open.
const OPENAPI: &str = include_str!("testdata/openapi-3.1.json");

fn with_keys() -> Value {
    made(60.0, Some("hopline_session"))
}

fn without_keys() -> Value {
    made(60.0, None)
}

/// Everything in a document.
fn each<'a>(document: &'a Value, look: &mut impl FnMut(&'a Map<String, Value>)) {
    match document {
        Value::Object(members) => {
            look(members);
            members.values().for_each(|part| each(part, look));
        }
        Value::Array(items) => items.iter().for_each(|part| each(part, look)),
        _ => {}
    }
}

fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap();
        methods.iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    });
    all.collect()
}

/// The codes that an operation tells of.
fn codes_of(operation: &Value) -> BTreeSet<String> {
    let answers = operation["responses"].as_object().unwrap().values();
    let examples = answers.filter_map(|answer| {
        answer.pointer("/content/application~1problem+json/examples").and_then(Value::as_object)
    });
    examples.flat_map(|examples| examples.keys().cloned()).collect()
}

#[test]
fn it_is_openapi() {
    let meta: Value = serde_json::from_str(OPENAPI).unwrap();
    let openapi = jsonschema::options().build(&meta).unwrap();
    for document in [with_keys(), without_keys()] {
        let wrong: Vec<String> = openapi
            .iter_errors(&document)
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        assert_eq!(wrong, Vec::<String>::new());
    }
}

#[test]
fn schemas_are_schemas_and_examples_fit_them() {
    let document = with_keys();
    let mut looked_at = 0;
    let build = |schema: &Value| {
        assert!(jsonschema::meta::is_valid(schema), "{schema}");
        let mut whole = json!({ "$ref": "#/schema", "schema": schema });
        whole["components"] = document["components"].clone();
        jsonschema::draft202012::options().build(&whole).unwrap_or_else(|error| panic!("{error}: {schema}"))
    };
    for schema in document["components"]["schemas"].as_object().unwrap().values() {
        let validator = build(schema);
        for example in schema.get("examples").and_then(Value::as_array).into_iter().flatten() {
            assert!(validator.is_valid(example), "{example} does not fit {schema}");
        }
    }
    each(&document["paths"], &mut |part| {
        let Some(schema) = part.get("schema") else { return };
        let validator = build(schema);
        let named = part
            .get("examples")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(_, example)| &example["value"]);
        for example in part.get("example").into_iter().chain(named) {
            if let Err(error) = validator.validate(example) {
                panic!("{error}: {example}");
            }
            looked_at += 1;
        }
    });
    assert!(looked_at > 200, "{looked_at}");
}

#[test]
fn every_reference_leads_somewhere_and_names_are_used_once() {
    for document in [with_keys(), without_keys()] {
        let mut used = BTreeSet::new();
        each(&document, &mut |part| {
            if let Some(Value::String(target)) = part.get("$ref") {
                assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
                used.insert(target.clone());
            }
        });
        let components = document["components"].as_object().unwrap();
        for (sort, named) in components.iter().filter(|(sort, _)| *sort != "securitySchemes") {
            for name in named.as_object().unwrap().keys() {
                assert!(used.contains(&format!("#/components/{sort}/{name}")), "nobody uses {sort}/{name}");
            }
        }
        let ids: Vec<&Value> = operations(&document).iter().map(|(_, told)| &told["operationId"]).collect();
        let different: BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(ids.len(), different.len());
    }
}

#[test]
fn every_code_is_told_of_where_it_may_come() {
    let all: BTreeSet<String> = Code::ALL.iter().map(|code| code.as_str().to_owned()).collect();
    // Of methods that are not there.
    let nowhere = BTreeSet::from(["method_not_allowed".to_owned()]);
    let keys = ["access_unknown", "queue_forbidden", "rate_limited", "scope_missing", "unauthorized"];
    let keys: BTreeSet<String> = keys.map(str::to_owned).into();
    let locked = with_keys();
    let told =
        |document: &Value| operations(document).into_iter().flat_map(|(_, told)| codes_of(told)).collect();
    let told_with: BTreeSet<String> = told(&locked);
    assert_eq!(told_with, &all - &nowhere);
    let told_without: BTreeSet<String> = told(&without_keys());
    assert_eq!(told_without, &told_with - &keys);
    let names = locked["components"]["schemas"]["ProblemCode"]["enum"].as_array().unwrap().iter();
    let names: BTreeSet<String> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
    assert_eq!(names, all);
}

#[test]
fn with_keys_each_call_says_which_scope_it_needs() {
    let document = with_keys();
    let told: BTreeSet<(String, Option<String>)> = operations(&document)
        .into_iter()
        .map(|(name, told)| {
            let scope = told.pointer("/security/0/key/0").and_then(Value::as_str).map(str::to_owned);
            let unauthorized = codes_of(told).contains("unauthorized");
            assert_eq!(scope.is_some(), unauthorized, "{name}");
            (name, scope)
        })
        .collect();
    let table = routes::TABLE.iter().map(|(method, path, need)| {
        (format!("{} {path}", method.as_str().to_lowercase()), need.scope().map(|scope| scope.to_string()))
    });
    assert_eq!(told, table.collect());
    for (name, told) in operations(&without_keys()) {
        assert!(told.get("security").is_none(), "{name}");
    }
}
