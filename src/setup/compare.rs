//! What is wanted against what is there: missing, the same, different, foreign. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::{
    Item, State,
    found::{Arguments, Binding, Exchange, Found, Queue},
};
use crate::amqp::{
    Names,
    topology::{self, Object, Routing, Value},
};

/// Arguments that RabbitMQ does not compare when a queue is declared.
const NOT_COMPARED: [&str; 4] =
    ["x-consumer-timeout", "x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max"];

/// What is wanted.
pub(super) struct Wanted<'a> {
    pub(super) names: &'a Names,
    pub(super) objects: &'a [Object],
}

/// What an object is, and how it is called.
pub(crate) fn called(object: &Object) -> (&'static str, String) {
    match object {
        Object::Exchange { name, .. } => ("exchange", name.clone()),
        Object::Queue { name, .. } => ("queue", name.clone()),
        Object::Bound { queue, exchange, key } => ("binding", arrow(exchange, queue, key)),
        Object::Passes { to, from, key } => ("binding", arrow(from, to, key)),
    }
}

/// The objects that a binding joins; none for other objects.
pub(super) fn ends(object: &Object) -> Vec<&str> {
    match object {
        Object::Exchange { .. } | Object::Queue { .. } => Vec::new(),
        Object::Bound { queue, exchange, .. } => vec![exchange, queue],
        Object::Passes { to, from, .. } => vec![from, to],
    }
}

fn arrow(from: &str, to: &str, key: &str) -> String {
    if key.is_empty() { format!("{from} -> {to}") } else { format!("{from} -> {to} by {key}") }
}

/// Every object that is wanted, and how it stands.
pub(super) fn objects(wanted: &Wanted<'_>, found: &Found) -> Vec<Item> {
    let there: BTreeSet<Object> = found.bindings.iter().map(object_of).collect();
    let one = |object: &Object| {
        let (kind, name) = called(object);
        let differences = match object {
            Object::Exchange { name, routing, arguments } => {
                found.exchanges.get(name).map(|exchange| exchange_differs(exchange, *routing, arguments))
            }
            Object::Queue { name, arguments } => {
                found.queues.get(name).map(|queue| queue_differs(queue, arguments))
            }
            binding => there.contains(binding).then(Vec::new),
        };
        match differences {
            None => Item::new(kind, name, State::Missing),
            Some(differences) if differences.is_empty() => Item::new(kind, name, State::Same),
            Some(differences) => {
                let item = Item::new(kind, name, State::Different).because(differences.join("; "));
                item.advise(mend(object, wanted.names))
            }
        }
    };
    wanted.objects.iter().map(one).collect()
}

fn object_of(binding: &Binding) -> Object {
    let Binding { source, destination, destination_type, routing_key } = binding.clone();
    if destination_type == "queue" {
        Object::Bound { queue: destination, exchange: source, key: routing_key }
    } else {
        Object::Passes { to: destination, from: source, key: routing_key }
    }
}

fn exchange_differs(found: &Exchange, routing: Routing, wanted: &topology::Arguments) -> Vec<String> {
    let mut differences = Vec::new();
    let kind = match routing {
        Routing::Topic => "topic",
        Routing::Fanout => "fanout",
        Routing::Direct => "direct",
    };
    if found.kind != kind {
        differences.push(format!("type is {}, not {kind}", found.kind));
    }
    flags(&mut differences, &[("durable", found.durable, true), ("auto_delete", found.auto_delete, false)]);
    flags(&mut differences, &[("internal", found.internal, false)]);
    arguments_differ(&mut differences, &found.arguments, wanted);
    differences
}

fn queue_differs(found: &Queue, wanted: &topology::Arguments) -> Vec<String> {
    let mut differences = Vec::new();
    flags(&mut differences, &[("durable", found.durable, true), ("auto_delete", found.auto_delete, false)]);
    flags(&mut differences, &[("exclusive", found.exclusive, false)]);
    arguments_differ(&mut differences, &found.arguments, wanted);
    differences
}

fn flags(differences: &mut Vec<String>, flags: &[(&str, bool, bool)]) {
    let wrong = flags.iter().filter(|(_, found, wanted)| found != wanted);
    differences.extend(wrong.map(|(name, found, wanted)| format!("{name} is {found}, not {wanted}")));
}

fn arguments_differ(differences: &mut Vec<String>, found: &Arguments, wanted: &topology::Arguments) {
    let mut found: Map<String, Json> = found.0.clone();
    // RabbitMQ adds one itself where none is named, and to what is declared: the virtual host's default.
    if !wanted.iter().any(|(name, _)| *name == "x-queue-type") {
        found.remove("x-queue-type");
    }
    for (name, value) in wanted {
        let value = json(value);
        match found.remove(*name) {
            Some(there) if there == value => {}
            Some(there) => differences.push(format!("{name} is {there}, not {value}")),
            None => differences.push(format!("{name} is missing, not {value}")),
        }
    }
    let more = found.iter().filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()));
    differences.extend(more.map(|(name, value)| format!("{name} is {value}, not missing")));
}

fn json(value: &Value) -> Json {
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Int(number) => (*number).into(),
        Value::Long(number) => (*number).into(),
        Value::Flag(flag) => (*flag).into(),
    }
}

/// What a person can do about an object that differs.
pub(super) fn mend(object: &Object, names: &Names) -> String {
    let (kind, name) = called(object);
    let delete = format!(
        "delete it (`rabbitmqctl delete_queue {name}` or the management UI), then `hopline topology apply`"
    );
    if kind == "exchange" {
        return "arguments of an exchange cannot be changed: stop the processes, delete it in the management UI (its \
                bindings go with it), then `hopline topology apply`"
            .to_owned();
    }
    let first = if let Some(queue) = names.work_queue_of(&name) {
        format!("stop submitting to {queue}, let its workers run it empty, stop them")
    } else if name.ends_with(".dead") {
        "replay or purge what is in it, or move it to another queue".to_owned()
    } else if name == names.log() {
        "everything that a new record could be built from is lost with it; running HTTP processes keep theirs"
            .to_owned()
    } else if name == names.control_log() {
        "keep an HTTP process running meanwhile: it writes pauses and orders to cancel again".to_owned()
    } else if name == names.strays() {
        "let an HTTP process empty it".to_owned()
    } else if name == names.ladder_strays() {
        "nobody empties it, because several prefixes share the ladder: what is in it are delayed jobs whose queue was gone; \
         submit them anew"
            .to_owned()
    } else if name == names.lookup() {
        "nothing in it is worth keeping".to_owned()
    } else {
        "what is in it are delayed jobs, which lose their way in any other queue: submit none with such a delay \
         (limits.max_delay), and wait until it is empty"
            .to_owned()
    };
    format!("arguments of a queue cannot be changed: {first}; {delete}")
}

/// What is bound to our exchanges and is none of ours.
pub(super) fn foreign(wanted: &Wanted<'_>, found: &Found) -> Vec<Item> {
    let ours: BTreeSet<&Object> = wanted.objects.iter().collect();
    let names = wanted.names;
    let mut items = Vec::new();
    for binding in &found.bindings {
        let object = object_of(binding);
        if ours.contains(&object) || is_own(binding, names) {
            continue;
        }
        let (kind, name) = called(&object);
        items.push(Item::new(kind, name, State::Foreign).because(effect(binding, names)));
    }
    items
}

/// Whether a binding is one that our processes make for themselves.
fn is_own(binding: &Binding, names: &Names) -> bool {
    let Binding { source, destination, routing_key, .. } = binding;
    // Of a result queue, or of what a process hears of workers.
    if names.is_of_instance(destination) {
        return true;
    }
    // A dead-letter queue stays when its work queue is gone.
    if let Some(queue) = destination.strip_suffix(".dead").and_then(|work| names.work_queue_of(work)) {
        return *source == names.dead() && *routing_key == Names::dead_binding(&queue);
    }
    // A ladder that several prefixes share leads to the queues of all of them.
    names.prefixes().len() > 1 && *source == names.ready()
}

fn effect(binding: &Binding, names: &Names) -> &'static str {
    let source = binding.source.as_str();
    if source == names.events() {
        "gets copies of events, as anybody may"
    } else if source == names.replies() {
        "gets replies, as a caller's own queue may"
    } else if source == names.record() {
        "if it refuses or is slow, submits and acknowledgements wait: bind it to the events exchange instead"
    } else if source == names.jobs() || source == names.direct() {
        "gets copies of jobs; if it refuses one, the submit is refused"
    } else {
        "gets copies of what is not meant for it; if it refuses, ours is held up"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{amqp::topology::Plan, job::QueueName, setup::found::Policy};

    /// A broker that has exactly what is wanted.
    fn perfect(objects: &[Object]) -> Found {
        let mut found = Found { policies: Some(Vec::<Policy>::new()), ..Found::default() };
        let arguments = |all: &topology::Arguments| {
            Arguments(all.iter().map(|(name, value)| ((*name).to_owned(), json(value))).collect())
        };
        for object in objects {
            match object {
                Object::Exchange { name, routing, arguments: all } => {
                    let kind = match routing {
                        Routing::Topic => "topic",
                        Routing::Fanout => "fanout",
                        Routing::Direct => "direct",
                    };
                    let exchange = Exchange {
                        name: name.clone(),
                        kind: kind.to_owned(),
                        durable: true,
                        arguments: arguments(all),
                        ..Exchange::default()
                    };
                    found.exchanges.insert(name.clone(), exchange);
                }
                Object::Queue { name, arguments: all } => {
                    let queue = Queue {
                        name: name.clone(),
                        durable: true,
                        arguments: arguments(all),
                        ..Queue::default()
                    };
                    found.queues.insert(name.clone(), queue);
                }
                Object::Bound { queue, exchange, key } => found.bindings.push(Binding {
                    source: exchange.clone(),
                    destination: queue.clone(),
                    destination_type: "queue".into(),
                    routing_key: key.clone(),
                }),
                Object::Passes { to, from, key } => found.bindings.push(Binding {
                    source: from.clone(),
                    destination: to.clone(),
                    destination_type: "exchange".into(),
                    routing_key: key.clone(),
                }),
            }
        }
        found
    }

    fn plan() -> Plan {
        let queues = vec![QueueName::parse("media").unwrap()];
        Plan { names: Names::new("hopline", ""), queues, declares: true }
    }

    fn compared(change: impl FnOnce(&mut Found)) -> Vec<Item> {
        let plan = plan();
        let all = plan.objects();
        let mut found = perfect(&all);
        change(&mut found);
        let wanted = Wanted { names: &plan.names, objects: &all };
        let mut items = objects(&wanted, &found);
        items.extend(foreign(&wanted, &found));
        items.retain(|item| item.state != State::Same);
        items
    }

    #[test]
    fn what_is_just_so_is_the_same() {
        assert_eq!(compared(|_| {}), []);
        let total = plan().objects().len();
        assert!(total > 120, "{total} objects");
        let nothing = compared(|found| *found = Found::default());
        assert!(nothing.len() == total && nothing.iter().all(|item| item.state == State::Missing));
    }

    #[test]
    fn a_queue_without_a_type_has_the_virtual_hosts() {
        for kind in ["classic", "quorum"] {
            let arguments = |found: &mut Found| {
                let lookup = found.queues.get_mut("hopline.lookup").unwrap();
                lookup.arguments.0.insert("x-queue-type".into(), json!(kind));
            };
            assert_eq!(compared(arguments), [], "{kind}");
        }
        let items = compared(|found| {
            found.queues.get_mut("hopline.q.media").unwrap().arguments.0["x-queue-type"] = json!("classic");
        });
        assert_eq!(items.len(), 1, "{items:?}");
    }

    #[test]
    fn each_difference_is_named() {
        let items = compared(|found| {
            let work = found.queues.get_mut("hopline.q.media").unwrap();
            work.arguments.0.insert("x-delivery-limit".into(), json!(5));
            work.arguments.0.remove("x-overflow");
            work.arguments.0.insert("x-max-length".into(), json!(7));
            work.arguments.0.insert("x-consumer-timeout".into(), json!(1));
            found.exchanges.get_mut("hopline.record").unwrap().kind = "topic".into();
            found.queues.get_mut("hopline.log").unwrap().durable = false;
            found.bindings.retain(|binding| binding.destination != "hopline.lookup");
        });
        let told = |name: &str| {
            let item =
                items.iter().find(|item| item.name == name).unwrap_or_else(|| panic!("{name}: {items:?}"));
            (item.state, item.detail.clone().unwrap_or_default(), item.to_do.clone().unwrap_or_default())
        };
        let (state, detail, to_do) = told("hopline.q.media");
        assert_eq!(state, State::Different);
        assert_eq!(
            detail,
            "x-overflow is missing, not \"reject-publish\"; x-delivery-limit is 5, not 1000; x-max-length is 7, not missing"
        );
        assert!(
            to_do.contains("stop submitting to media")
                && to_do.contains("rabbitmqctl delete_queue hopline.q.media")
        );
        assert_eq!(told("hopline.record").1, "type is topic, not fanout");
        assert_eq!(told("hopline.log").1, "durable is false, not true");
        let lookup = told("hopline.replies -> hopline.lookup by hopline.lookup");
        assert_eq!((lookup.0, items.len()), (State::Missing, 4));
    }

    #[test]
    fn what_is_bound_to_ours_and_not_ours_is_shown() {
        let bind = |source: &str, destination: &str, key: &str| Binding {
            source: source.into(),
            destination: destination.into(),
            destination_type: "queue".into(),
            routing_key: key.into(),
        };
        let items = compared(|found| {
            found.bindings.extend([
                bind("hopline.replies", "hopline.replies.web.1", "hopline.replies.web.1"),
                bind("hopline.events", "hopline.heartbeats.web.1", "worker.heartbeat.*"),
                bind("hopline.dead", "hopline.q.gone.dead", "gone.#"),
                bind("hopline.events", "audit", "job.#"),
                bind("hopline.record", "spy", ""),
                bind("hopline.jobs", "hopline.q.media", "other.#"),
            ]);
        });
        let shown: Vec<_> = items.iter().map(|item| (item.name.as_str(), item.state)).collect();
        assert_eq!(
            shown,
            [
                ("hopline.events -> audit by job.#", State::Foreign),
                ("hopline.record -> spy", State::Foreign),
                ("hopline.jobs -> hopline.q.media by other.#", State::Foreign),
            ]
        );
        assert!(items[0].detail.as_ref().unwrap().contains("as anybody may"));
    }

    #[test]
    fn every_object_that_differs_has_its_own_mend() {
        let plan = plan();
        for object in plan.objects() {
            if matches!(object, Object::Exchange { .. } | Object::Queue { .. }) {
                let mend = mend(&object, &plan.names);
                assert!(mend.contains("hopline topology apply"), "{object:?}");
                // In another queue a delayed job loses its key, and stops the level when it comes back.
                assert!(!called(&object).1.contains(".delay.") || !mend.contains("move"), "{mend}");
            }
        }
    }
}
