use super::*;

fn raw(text: &str) -> &RawValue {
    serde_json::from_str(text).unwrap()
}

#[test]
fn times_are_rfc_3339() {
    for (good, seconds) in [
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01t00:00:10.5z", 10),
        ("1970-01-01T02:00:10+02:00", 10),
        ("1969-12-31T23:00:10.123456789-01:00", 10),
    ] {
        assert_eq!(time(raw(&format!("{good:?}"))).map(|time| time.as_second()), Ok(seconds), "{good}");
    }
    for bad in [
        "",
        "now",
        "1970-01-01",
        "1970-01-01T00:00:10",
        "1970-01-01 00:00:10Z",
        "1970-01-01T00:00Z",
        "1970-01-01T00:00:10.Z",
        "1970-01-01T00:00:10+02",
        "1970-01-01T00:00:10+0200",
        "1970-02-30T00:00:10Z",
        "1970-01-01T25:00:10Z",
        "1970-01-01T00:00:10Z[UTC]",
        "1970-01-01T00:00:10Zx",
        "ä970-01-01T00:00:10Z",
    ] {
        assert!(time(raw(&format!("{bad:?}"))).is_err(), "{bad}");
    }
    assert!(time(raw("10")).unwrap_err().contains("not a number"));
}

#[test]
fn durations_are_numbers_or_text() {
    for (good, ms) in
        [("1.5", 1500), ("0", 0), ("1e2", 100_000), ("\"250ms\"", 250), ("\"1h30m\"", 5_400_000)]
    {
        assert_eq!(duration(raw(good)), Ok(Duration::from_millis(ms)), "{good}");
    }
    for bad in ["-1", "1e400", "\"\"", "\"x\"", "null", "true", "[]", "{}", "\"-1s\"", "\"\\ud800\""] {
        assert!(duration(raw(bad)).is_err(), "{bad}");
    }
}

#[test]
fn whole_numbers_are_whole() {
    assert_eq!(whole(raw("3"), 1, 1000), Ok(3));
    for bad in ["0", "1001", "-1", "1.5", "1e2", "99999999999999999999", "\"3\"", "null", "true"] {
        assert!(whole(raw(bad), 1, 1000).is_err(), "{bad}");
    }
}

#[test]
fn leftovers_are_named() {
    let mut errors = Errors::new(10);
    let mut object = Object::parse(r#"{"a":1,"b/~":2,"a":3,"\u0063":4}"#, "").unwrap();
    assert_eq!(object.take("a", &mut errors, number), Some(1.0));
    assert_eq!(object.take("c", &mut errors, number), Some(4.0), "an escaped name is the same name");
    object.finish(&["a", "c"], &mut errors);
    let (code, list) = errors.into_list();
    assert_eq!(code, Code::InvalidRequest);
    let pointers: Vec<_> = list.iter().map(|error| error.pointer.as_deref().unwrap()).collect();
    assert_eq!(pointers, ["/b~1~0", "/a"]);
}

#[test]
fn what_is_no_object_says_why() {
    for (text, code) in [
        ("", Code::MalformedJson),
        ("{", Code::MalformedJson),
        ("{\"a\":1}x", Code::MalformedJson),
        ("[1,", Code::MalformedJson),
        ("{\"\\ud800\":1}", Code::MalformedJson),
        ("[]", Code::InvalidRequest),
        ("null", Code::InvalidRequest),
        ("\"x\"", Code::InvalidRequest),
    ] {
        assert_eq!(Object::parse(text, "").unwrap_err().code, code, "{text}");
    }
    let deep = "[".repeat(100) + &"]".repeat(100);
    assert_eq!(Object::parse(&deep, "").unwrap_err().code, Code::TooDeep);
    assert_eq!(Items::parse("{}", 5).unwrap_err().code, Code::InvalidRequest);
    assert_eq!(Items::parse("[1,]", 5).unwrap_err().code, Code::MalformedJson);
    assert_eq!(Items::parse("[1]x", 5).unwrap_err().code, Code::MalformedJson);
}

#[test]
fn hostile_objects_cost_little() {
    let many = format!("{{{}\"z\":1}}", "\"a\":1,".repeat(100_000));
    let mut errors = Errors::new(5);
    Object::parse(&many, "").unwrap().finish(&["a"], &mut errors);
    let (_, list) = errors.into_list();
    assert_eq!(list.len(), 6);
    let items = Items::parse("[1,2,3]", 2).unwrap();
    assert_eq!((items.list.len(), items.more), (2, 1));
    let mut errors = Errors::new(5);
    let long = format!("{{\"{}\":1}}", "k".repeat(100_000));
    Object::parse(&long, "").unwrap().finish(&["a"], &mut errors);
    assert!(errors.into_list().1[0].pointer.as_ref().unwrap().len() < 200);
}
