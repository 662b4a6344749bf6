use super::*;

const MEMBERS: [&str; 10] =
    ["filter", "ids", "kind", "fingerprint", "all", "rate", "dry_run", "set", "by", "reason"];

fn parse(text: &str) -> Result<Order, Problem> {
    Order::parse(Object::parse(text, "").unwrap(), &MEMBERS, Errors::new(20))
}

#[test]
fn an_order_is_read_whole() {
    let id = JobId::new();
    let order = parse(&format!(
        r#"{{"filter":{{"status":["dead"],"queue":"media","q":"Timeout"}},"ids":["{id}"],"rate":0.5,
            "dry_run":true,"set":{{"args":{{"a":1.50}}}},"by":"eve","reason":"fixed"}}"#
    ))
    .unwrap();
    assert_eq!(order.filter.status, [JobStatus::Dead]);
    assert_eq!((order.filter.queue.unwrap().as_str(), order.filter.q.as_deref()), ("media", Some("Timeout")));
    assert_eq!((order.ids.as_deref(), order.rate, order.dry_run), (Some(&[id][..]), Some(0.5), true));
    assert_eq!(order.set.unwrap().get(), r#"{"a":1.50}"#);
    let group = parse(r#"{"kind":"a.b","fingerprint":"0123456789abcdef","all":true}"#).unwrap();
    assert_eq!((group.filter.kind.unwrap().as_str(), group.all), ("a.b", true));
    assert_eq!(group.filter.fingerprint.as_deref(), Some("0123456789abcdef"));
    assert_eq!(parse(r#"{"filter":{"status":"dead,queued"}}"#).unwrap().filter.status.len(), 2);
}

#[test]
fn each_bad_member_is_named() {
    let many = format!("[{}]", vec![format!("\"{}\"", JobId::new()); IDS_MAX + 1].join(","));
    for (text, pointer) in [
        (r#"{"rate":0}"#, "/rate"),
        (r#"{"rate":-1}"#, "/rate"),
        (r#"{"rate":"fast"}"#, "/rate"),
        (r#"{"rate":1e-9}"#, "/rate"),
        (r#"{"ids":[]}"#, "/ids"),
        (r#"{"ids":"x"}"#, "/ids"),
        (r#"{"ids":["x"]}"#, "/ids/0"),
        (r#"{"ids":[7]}"#, "/ids/0"),
        (&format!("{{\"ids\":{many}}}"), "/ids"),
        (r#"{"filter":7}"#, "/filter"),
        (r#"{"filter":{"status":["done"]}}"#, "/filter/status"),
        (r#"{"filter":{"status":7}}"#, "/filter/status"),
        (r#"{"filter":{"queue":"A B"}}"#, "/filter/queue"),
        (r#"{"filter":{"from":"yesterday"}}"#, "/filter/from"),
        (r#"{"filter":{"colour":"red"}}"#, "/filter/colour"),
        (r#"{"kind":"A"}"#, "/kind"),
        (r#"{"fingerprint":"xyz"}"#, "/fingerprint"),
        (r#"{"set":{}}"#, "/set/args"),
        (r#"{"set":[]}"#, "/set"),
        (r#"{"set":{"args":1,"queue":"x"}}"#, "/set/queue"),
        (r#"{"dry_run":1}"#, "/dry_run"),
        (r#"{"by":""}"#, "/by"),
        (r#"{"reason":7}"#, "/reason"),
        (r#"{"colour":"red"}"#, "/colour"),
    ] {
        let problem = parse(text).unwrap_err();
        let pointers: Vec<_> = problem.errors.iter().filter_map(|error| error.pointer.as_deref()).collect();
        assert_eq!((problem.code, pointers), (Code::InvalidRequest, vec![pointer]), "{text}");
    }
}

#[test]
fn an_order_says_what_it_is_about() {
    let check = |text: &str, like| parse(text).unwrap().require_target(like).is_ok();
    for (text, dead, live) in [
        ("{}", false, false),
        (r#"{"filter":{}}"#, true, true),
        (r#"{"ids":["0198c0de-0000-7000-8000-000000000001"]}"#, true, true),
        (r#"{"ids":["0198c0de-0000-7000-8000-000000000001"],"filter":{}}"#, false, false),
        (r#"{"filter":{"status":"dead"}}"#, true, false),
        (r#"{"filter":{"status":"succeeded"}}"#, false, false),
        (r#"{"filter":{"status":"queued,retrying"}}"#, false, true),
    ] {
        assert_eq!((check(text, JobStatus::Dead), check(text, JobStatus::Queued)), (dead, live), "{text}");
    }
}
