//! Tests of checks by schemas that come from anywhere.

use serde_json::json;

use super::*;

fn schema(value: &Value) -> Schema {
    Schema::parse(&value.to_string()).unwrap()
}

async fn check(checks: &Checks, schemas: &[Value], args: &Value) -> Vec<(String, String)> {
    let schemas: Vec<Schema> = schemas.iter().map(schema).collect();
    let verdict = checks.check(&schemas, args.to_string().as_bytes(), Instant::now() + PATIENCE).await;
    let told = |error: FieldError| (error.pointer.unwrap_or_default(), error.detail);
    verdict.err().unwrap_or_default().into_iter().map(told).collect()
}

#[tokio::test]
async fn what_does_not_fit_is_told_with_its_place_and_what_is_allowed() {
    let picture = json!({
        "type": "object",
        "properties": {
            "width": { "type": "integer", "minimum": 1, "maximum": 8192 },
            "fit": { "enum": ["cover", "contain"] },
            "image": { "oneOf": [
                { "type": "object", "properties": { "path": { "type": "string" } }, "required": ["path"], "additionalProperties": false },
                { "type": "object", "properties": { "url": { "type": "string" } }, "required": ["url"] },
            ] },
            "note": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
            "a/b": { "const": 1 },
        },
        "required": ["width"],
        "additionalProperties": false,
    });
    let checks = Checks::new();
    for (args, expected) in [
        (json!({ "width": 5, "fit": "cover", "image": { "path": "x" }, "note": null }), &[][..]),
        (json!({}), &[("/width", "is missing")]),
        (json!({ "width": 0 }), &[("/width", "is less than the minimum of 1")]),
        (json!({ "width": "5" }), &[("/width", "is not of type \"integer\"")]),
        (
            json!({ "width": 5, "hight": 3 }),
            &[("/hight", "is unknown; known are a/b, fit, image, note, width")],
        ),
        (json!({ "width": 5, "fit": "x" }), &[("/fit", "must be one of [\"cover\",\"contain\"]")]),
        (json!({ "width": 5, "a/b": 2 }), &[("/a~1b", "must be 1")]),
        (
            json!({ "width": 5, "note": 7 }),
            &[("/note", "fits no alternative: is not of type \"string\"; is not of type \"null\"")],
        ),
        (json!({ "width": 5, "image": { "path": 1 } }), &[("/image/path", "is not of type \"string\"")]),
        (json!([]), &[("", "is not of type \"object\"")]),
    ] {
        // Compiled on the first round, and found on the second.
        for _ in 0..2 {
            let told = check(&checks, std::slice::from_ref(&picture), &args).await;
            let told: Vec<_> = told.iter().map(|(at, detail)| (at.as_str(), detail.as_str())).collect();
            assert_eq!(told, expected, "{args}");
        }
    }
}

#[tokio::test]
async fn args_that_fit_one_of_several_schemas_fit() {
    let (one, two) = (json!({ "required": ["a"] }), json!({ "required": ["b"] }));
    let checks = Checks::new();
    for (args, expected) in [(json!({ "a": 1 }), ""), (json!({ "b": 1 }), ""), (json!({}), "/b")] {
        let told = check(&checks, &[two.clone(), one.clone()], &args).await;
        assert_eq!(told.first().map_or("", |(at, _)| at), expected, "{args}");
    }
    // What is no schema says nothing of what its worker takes.
    let told = check(&checks, &[two, json!({ "type": "nonsense" })], &json!({})).await;
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn a_hostile_schema_neither_hangs_nor_crashes_nor_refuses() {
    let deep = |open: &str, close: &str, levels: usize| {
        Schema::parse(&format!("{}true{}", open.repeat(levels), close.repeat(levels))).unwrap()
    };
    let many: serde_json::Map<_, _> = (0..1500).map(|n| (n.to_string(), json!({ "$ref": "#" }))).collect();
    let chain: serde_json::Map<_, _> = (0..800)
        .map(|n| {
            (
                format!("a{n}"),
                json!({ "properties": { "x": { "$ref": format!("#/$defs/a{}", (n + 1) % 800) } } }),
            )
        })
        .collect();
    let doubled: serde_json::Map<_, _> = (0..60)
        .map(|n| {
            let next = json!({ "$ref": format!("#/$defs/a{}", (n + 1) % 60) });
            (format!("a{n}"), json!({ "properties": { "x": { "anyOf": [next, next] } } }))
        })
        .collect();
    let checks = Checks::new();
    let nested = (0..63).fold(json!(1), |inner, _| json!({ "x": inner }));
    for (hostile, args) in [
        (deep(r#"{"not":"#, "}", 8000), json!({})),
        (deep(r#"{"properties":{"a":"#, "}}", 3000), json!({})),
        (schema(&json!({ "$ref": "#" })), json!({})),
        (schema(&json!({ "allOf": [{ "$ref": "#" }] })), json!({})),
        (schema(&json!({ "properties": many.clone() })), nested.clone()),
        (
            schema(
                &json!({ "patternProperties": { "": { "$ref": "#" } }, "additionalProperties": { "$ref": "#" } }),
            ),
            nested.clone(),
        ),
        (schema(&json!({ "$ref": "#/$defs/a0", "$defs": chain })), nested.clone()),
        (schema(&json!({ "$ref": "#/$defs/a0", "$defs": doubled })), nested.clone()),
        (
            schema(
                &json!({ "anyOf": [{ "properties": { "x": { "$ref": "#" } } }, { "properties": { "x": { "$ref": "#" } } }] }),
            ),
            nested.clone(),
        ),
        (schema(&json!({ "pattern": "^(a|a)*$" })), json!("a".repeat(2000))),
        (schema(&json!({ "pattern": "(a*)*b|(x{1,100}){1,100}" })), json!("b")),
        (schema(&json!({ "pattern": "((a{0,1000}){0,1000}){0,1000}" })), json!("a")),
        (schema(&json!({ "pattern": "(?=a)b" })), json!("a")),
        (schema(&json!({ "pattern": "(" })), json!("a")),
        (schema(&json!({ "$ref": "http://127.0.0.1:1/x.json" })), json!({})),
        (schema(&json!({ "$ref": "file:///dev/zero" })), json!({})),
        (schema(&json!({ "$schema": "http://127.0.0.1:1/meta" })), json!({})),
        (schema(&json!({ "type": 7 })), json!({})),
        (schema(&json!({ "minimum": 1e308, "multipleOf": 1e-308 })), json!("x")),
    ] {
        let start = std::time::Instant::now();
        let (args, until) = (args.to_string(), Instant::now() + PATIENCE);
        let verdict = checks.check(std::slice::from_ref(&hostile), args.as_bytes(), until).await;
        assert!(verdict.is_ok(), "{}: {verdict:?}", clip(hostile.as_str(), 100));
        assert!(start.elapsed() < PATIENCE, "{}", clip(hostile.as_str(), 100));
    }
    // The thread is still there.
    let told = check(&checks, &[json!({ "type": "object" })], &json!("x".repeat(SHORT))).await;
    assert_eq!(told.len(), 1);
}

#[tokio::test]
async fn long_args_are_told_one_thing() {
    let checks = Checks::new();
    let numbers = json!({ "items": { "type": "integer" } });
    let told = check(&checks, std::slice::from_ref(&numbers), &json!(vec!["x"; 100_000])).await;
    assert_eq!(told, [("/0".to_owned(), "is not of type \"integer\"".to_owned())]);
    let told = check(&checks, &[numbers], &json!(vec!["x"; 200])).await;
    assert_eq!(told.len(), ERRORS_MAX);
}

#[tokio::test(start_paused = true)]
async fn who_has_gone_is_not_checked_for_and_leaves_no_body() {
    let (thread, tasks) = sync_channel::<Task>(WAITING_MAX);
    let checks = Checks(Arc::new(Shared { compiled: Mutex::default(), thread: Some(thread) }));
    let nothing = schema(&json!(false));
    let body = Bytes::from(vec![b'1'; 100 * SHORT]);
    let args = body.slice(..2 * SHORT);
    let until = Instant::now() + PATIENCE;
    assert!(checks.check(std::slice::from_ref(&nothing), &args, until).await.is_ok(), "not in time");
    drop(args);
    assert!(body.is_unique(), "the check has its own copy");
    tasks.try_recv().unwrap().work_off();
    assert!(checks.0.compiled().known.is_empty(), "nothing was checked");
    // Another one of the same request: even what takes no time is not looked at.
    checks.0.compile(&nothing);
    assert!(checks.check(std::slice::from_ref(&nothing), b"1", until).await.is_ok());
    assert!(checks.check(&[nothing], b"1", until + PATIENCE).await.is_err());
}

#[tokio::test]
async fn a_schema_that_was_checked_by_can_be_forgotten() {
    let checks = Checks::new();
    let numbers = schema(&json!({ "items": { "type": "integer" } }));
    for args in [json!(["x"]), json!(vec!["x"; 2 * SHORT])] {
        let args = args.to_string();
        let until = Instant::now() + PATIENCE;
        assert!(checks.check(std::slice::from_ref(&numbers), args.as_bytes(), until).await.is_err());
        assert!(!numbers.is_shared());
    }
    let mut cache = Cache::default();
    let long = |n: usize| schema(&json!({ "title": n, "description": "x".repeat(60 << 10) }));
    for n in 0..1000 {
        cache.keep(&long(n % 300), None);
        assert!(cache.bytes <= COMPILED_BYTES && cache.known.len() <= 280);
    }
}
