//! Our objects on the broker: are they as they must be, do policies harm them, are logs kept long enough, who leads.

use std::time::Duration;

use serde_json::Value;

use super::{Finding, Level};
use crate::{
    amqp::Names,
    config::Config,
    setup::{
        Item, Setup, State,
        found::{Found, Queue},
    },
};

/// What no policy may set on our queues, and what would come of it.
const HARMFUL: [(&str, &str); 8] = [
    ("max-length", "what is over it is refused, and jobs off the delay ladder hold up all others"),
    ("max-length-bytes", "what is over it is refused, and jobs off the delay ladder hold up all others"),
    ("overflow", "it decides what a full queue drops"),
    ("message-ttl", "jobs end before they have run"),
    ("expires", "the queue is deleted with its jobs when nobody takes from it"),
    ("dead-letter-exchange", "dead jobs and strays are led out of the system"),
    ("dead-letter-routing-key", "dead jobs and strays are led out of the system"),
    ("dead-letter-strategy", "what the broker moves may be lost"),
];
/// Hand-backs and lost connections count as deliveries, too.
const FEW_DELIVERIES: i64 = 20;
const DAY: u64 = 86_400;
/// Fewer bytes hold little of what a log is for: pauses, orders and schemas; the record.
const CONTROL_BYTES: u64 = 256 << 20;
const LOG_BYTES: u64 = 1 << 30;
/// HTTP processes write orders and pauses again that are older than 20 days.
const TOLD_AGAIN: Duration = Duration::from_secs(21 * DAY);

/// The comparison in a line.
pub(super) fn topology(items: &[Item], declares: bool, compared: bool) -> Finding {
    let of = |state: State| {
        items.iter().filter(move |item| item.state == state && item.object != "policy").collect::<Vec<_>>()
    };
    let (different, missing) = (of(State::Different), of(State::Missing));
    if let Some(first) = different.first() {
        let detail = first.detail.as_deref().unwrap_or_default();
        let found = format!("{} differ, as {} {}: {detail}", different.len(), first.object, first.name);
        let mend = first.to_do.clone().unwrap_or_default();
        return Finding::fail("topology", found, format!("{mend}. `hopline topology plan` tells all"));
    }
    if let Some(first) = missing.first() {
        let found = format!("{} are missing, as {} {}", missing.len(), first.object, first.name);
        return if declares {
            Finding::warn(
                "topology",
                found,
                "processes make them when they connect; so does `hopline topology apply`",
            )
        } else {
            Finding::fail(
                "topology",
                found,
                "hopline topology apply: processes do not declare (amqp.declare)",
            )
        };
    }
    let unseen: Vec<_> =
        of(State::Unknown).into_iter().filter_map(|item| Some((item, item.detail.as_ref()?))).collect();
    if let Some((first, detail)) = unseen.first() {
        let found =
            format!("{} could not be looked at, as {} {}: {detail}", unseen.len(), first.object, first.name);
        return Finding::warn(
            "topology",
            found,
            "start nodes that are down; the management API tells more (--management)",
        );
    }
    if !compared {
        let found =
            "all exchanges and queues are there; their arguments and bindings only the management API tells";
        return Finding::ok("topology", found);
    }
    Finding::ok("topology", format!("{} objects, all as they must be", of(State::Same).len()))
}

/// Bindings of others that can hold up what is ours.
pub(super) fn foreign(items: &[Item], setup: &Setup) -> Vec<Finding> {
    let harmless = [setup.names.events(), setup.names.replies()].map(|name| format!("{name} -> "));
    let foreign = items.iter().filter(|item| item.state == State::Foreign);
    foreign
        .filter(|item| !harmless.iter().any(|start| item.name.starts_with(start)))
        .map(|item| {
            let detail = item.detail.as_deref().unwrap_or_default();
            Finding::warn(
                "topology",
                format!("a binding that is not ours: {}: {detail}", item.name),
                "remove it in the management UI; events are at the events exchange",
            )
        })
        .collect()
}

/// Queues that kinds are sent to and that nobody has.
pub(super) fn routes(config: &Config, setup: &Setup, items: &[Item]) -> Option<Finding> {
    if config.routes.is_empty() {
        return None;
    }
    let is_there = |name: &str| {
        let there = [State::Same, State::Exists, State::Different];
        items.iter().any(|item| item.object == "queue" && item.name == name && there.contains(&item.state))
    };
    let lost = config.routes.iter().filter(|(_, queue)| !is_there(&setup.names.queue(queue)));
    let lost: Vec<String> = lost.map(|(kind, queue)| format!("{kind} to {queue}")).collect();
    Some(if lost.is_empty() {
        Finding::ok("routes", "every queue of [routes] is there")
    } else {
        Finding::warn(
            "routes",
            format!("[routes] sends {}, which is not there: such submits are refused", lost.join(", ")),
            "start a worker of that queue, or name it in amqp.queues",
        )
    })
}

fn is_log(queue: &Queue, names: &Names) -> bool {
    queue.name == names.log() || queue.name == names.control_log()
}

/// What policies do to our queues.
pub(super) fn policies(found: &Found, names: &Names) -> Finding {
    let ours = || found.queues.values().filter(|queue| !names.is_of_instance(&queue.name));
    let by = |queue: &Queue| {
        let both = [&queue.policy, &queue.operator_policy].map(|name| name.as_deref().unwrap_or_default());
        let named: Vec<&str> = both.into_iter().filter(|name| !name.is_empty()).collect();
        if named.is_empty() { "some policy".to_owned() } else { format!("policy {}", named.join(" and ")) }
    };
    let (mut harm, mut small) = (Vec::new(), Vec::new());
    for queue in ours() {
        let definition = &queue.effective_policy_definition.0;
        if !is_log(queue, names) {
            for (key, effect) in HARMFUL {
                if let Some(value) = definition.get(key) {
                    harm.push(format!("{} sets {key} {value} on {}: {effect}", by(queue), queue.name));
                }
            }
        }
        let limit = definition.get("delivery-limit").and_then(Value::as_i64);
        if let Some(limit) = limit.filter(|limit| *limit < FEW_DELIVERIES) {
            small.push(format!("{} sets delivery-limit {limit} on {}", by(queue), queue.name));
        }
    }
    if let Some(first) = harm.first() {
        let found =
            if harm.len() > 1 { format!("{first} (and {} more)", harm.len() - 1) } else { first.clone() };
        let mend =
            "change the policy's pattern, or apply ours, which keep others away (`hopline topology apply`)";
        return Finding::fail("policies", found, mend);
    }
    if let Some(first) = small.first() {
        let mend =
            "raise it to some hundreds, or take it away: hand-backs and lost connections count as deliveries";
        return Finding::warn("policies", format!("{first} (of {} queues)", small.len()), mend);
    }
    Finding::ok("policies", "none harms")
}

/// The age of a log that counts: the smaller of its argument and its policy.
fn age(queue: &Queue) -> Option<Duration> {
    let read = |value: Option<&Value>| value?.as_str().and_then(parse_age);
    let argument = read(queue.arguments.0.get("x-max-age"));
    let policy = read(queue.effective_policy_definition.0.get("max-age"));
    argument.into_iter().chain(policy).min()
}

/// How many bytes of a log are kept: the smaller of its argument and its policy.
fn bytes(queue: &Queue) -> Option<u64> {
    let argument = queue.arguments.0.get("x-max-length-bytes").and_then(Value::as_u64);
    let policy = queue.effective_policy_definition.0.get("max-length-bytes").and_then(Value::as_u64);
    argument.into_iter().chain(policy).min()
}

/// RabbitMQ's ages: `60D`, `12h`.
fn parse_age(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        'Y' => 365 * DAY,
        'M' => 30 * DAY,
        'D' => DAY,
        'h' => 3600,
        'm' => 60,
        's' => 1,
        _ => return None,
    };
    Some(Duration::from_secs(number.checked_mul(seconds)?))
}

fn days(span: Duration) -> String {
    format!("{:.1} d", span.as_secs_f64() / 86_400.0)
}

/// Whether the logs hold what is delayed.
pub(super) fn retention(config: &Config, found: &Found, names: &Names) -> Finding {
    let longest = config.limits.max_delay;
    let (mut short, mut small, mut lost, mut seen) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for name in [names.control_log(), names.log()] {
        let Some(queue) = found.queues.get(&name) else { continue };
        let least = if name == names.control_log() { CONTROL_BYTES } else { LOG_BYTES };
        if let Some(bytes) = bytes(queue).filter(|bytes| *bytes < least) {
            small.push(format!(
                "{name} keeps {} MiB at most, which is less than {} MiB",
                bytes >> 20,
                least >> 20
            ));
        }
        let Some(age) = age(queue) else { continue };
        seen.push(format!("{name} {}", days(age)));
        if name == names.control_log() && age < TOLD_AGAIN {
            lost.push(format!(
                "{name} is kept for {}: pauses and orders to cancel are gone before they are written again after 20 days",
                days(age)
            ));
        } else if age < longest {
            short.push(format!("{name} is kept for {}, limits.max_delay is {}", days(age), days(longest)));
        }
    }
    let mend = "raise max-age in the policy of the log, or lower limits.max_delay";
    if !lost.is_empty() {
        return Finding::fail("retention", lost.join("; "), mend);
    }
    if !small.is_empty() {
        let found = format!("{}: what is older is lost, whatever its age", small.join("; "));
        return Finding::warn("retention", found, "raise max-length-bytes in the policy of the log");
    }
    if !short.is_empty() {
        let found =
            format!("{}: what is delayed for longer is kept only by being written again", short.join("; "));
        return Finding::warn("retention", found, mend);
    }
    if seen.is_empty() {
        return Finding::skip("retention", "the logs are not there");
    }
    Finding::ok("retention", format!("{}; limits.max_delay is {}", seen.join(", "), days(longest)))
}

/// The broker's consumer timeout, where it can be known: a policy's, or an argument's. The node's own is told nowhere.
pub(super) fn consumer_timeout(config: &Config, found: Option<(&Found, &Names)>) -> Option<Finding> {
    let ours = config.worker.consumer_timeout;
    let of = |queue: &Queue| {
        let argument = queue.arguments.0.get("x-consumer-timeout");
        let policy = queue.effective_policy_definition.0.get("consumer-timeout");
        [argument, policy].into_iter().flatten().filter_map(Value::as_u64).min()
    };
    let known = found.into_iter().flat_map(|(found, names)| {
        found.queues.values().filter(|queue| names.work_queue_of(&queue.name).is_some())
    });
    let shortest = known.filter_map(|queue| Some((of(queue)?, &queue.name))).min();
    Some(match shortest {
        Some((ms, queue)) if Duration::from_millis(ms) < ours => Finding::fail(
            "consumer_timeout",
            format!(
                "{queue} has {ms} ms, worker.consumer_timeout is {ours:?}: jobs that take longer are taken away"
            ),
            "set worker.consumer_timeout to what the broker does, or raise it there",
        ),
        Some((ms, queue)) => Finding::ok(
            "consumer_timeout",
            format!("{queue} has {ms} ms, worker.consumer_timeout is {ours:?}"),
        ),
        None => Finding::skip(
            "consumer_timeout",
            format!(
                "the broker tells it nobody; rabbitmq.conf must have consumer_timeout = {} or more, as \
                 worker.consumer_timeout is {ours:?}",
                ours.as_millis()
            ),
        ),
    })
}

/// Whether a queue has members on several nodes, or could.
fn is_replicated(queue: &Queue) -> bool {
    let named = queue.arguments.0.get("x-queue-type").and_then(Value::as_str);
    matches!(named.unwrap_or(&queue.kind), "quorum" | "stream")
}

/// RabbitMQ 3.10 names no leader of a stream.
pub(super) fn lacks_leader(queue: &Queue) -> bool {
    let is_stream = queue.arguments.0.get("x-queue-type").is_some_and(|kind| kind == "stream");
    match queue.leader.as_deref() {
        Some(leader) => leader.is_empty(),
        None => !is_stream && is_replicated(queue),
    }
}

/// Whether each queue has a leader and a majority.
pub(super) fn members(found: &Found, names: &Names) -> Finding {
    let (mut worst, mut told) = (Level::Ok, Vec::new());
    let mut tell = |level: Level, text: String| {
        worst = worst.max(level);
        told.push((level, text));
    };
    let ours =
        || found.queues.values().filter(|queue| is_replicated(queue) && !names.is_of_instance(&queue.name));
    for queue in ours() {
        let Queue { name, members, online, .. } = queue;
        let away: Vec<&str> =
            members.iter().filter(|member| !online.contains(member)).map(String::as_str).collect();
        if lacks_leader(queue) {
            tell(Level::Fail, format!("{name} has no leader"));
        } else if !members.is_empty() && online.len() * 2 <= members.len() {
            tell(Level::Fail, format!("{name} has no majority: {} is away", away.join(", ")));
        } else if !away.is_empty() {
            tell(Level::Warn, format!("{name}: {} is away", away.join(", ")));
        }
    }
    let gravest: Vec<&str> =
        told.iter().filter(|(level, _)| *level == worst).map(|(_, text)| text.as_str()).collect();
    match gravest.first() {
        None => {
            Finding::ok("queues", format!("{} quorum queues and streams have their leaders", ours().count()))
        }
        Some(first) => Finding {
            check: "queues",
            level: worst,
            found: format!("{first} (of {} queues)", gravest.len()),
            mend: Some(
                "start the nodes that are away; rabbitmq-queues quorum_status QUEUE tells more".to_owned(),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn names() -> Names {
        Names::new("hopline", "")
    }

    fn with(queues: &[Value]) -> Found {
        let read = |queue: &Value| from_value::<Queue>(queue.clone()).unwrap();
        let queues = queues.iter().map(read).map(|queue| (queue.name.clone(), queue)).collect();
        Found { queues, ..Found::default() }
    }

    #[test]
    fn policies_that_harm_are_told() {
        let under = |name: &str, definition: Value| {
            let queue = json!({"name": name, "policy": "p", "effective_policy_definition": definition});
            policies(&with(&[queue]), &names())
        };
        for (key, _) in HARMFUL {
            let found = under("hopline.q.media", json!({key: 1}));
            assert_eq!(found.level, Level::Fail, "{key}");
            assert!(found.found.contains("policy p") && found.found.contains(key), "{found:?}");
        }
        for (name, definition, level) in [
            ("hopline.q.media", json!({"delivery-limit": 2147483647_i64}), Level::Ok),
            ("hopline.q.media", json!({"delivery-limit": 5}), Level::Warn),
            ("hopline.q.media", json!({"delivery-limit": -1}), Level::Warn),
            ("hopline.q.media", json!([]), Level::Ok),
            ("hopline.log", json!({"max-length-bytes": 1, "max-age": "9D"}), Level::Ok),
            ("hopline.q.media.dead", json!({"message-ttl": 1}), Level::Fail),
            ("hopline.replies.web.1", json!({"expires": 1}), Level::Ok),
        ] {
            assert_eq!(under(name, definition.clone()).level, level, "{name} {definition}");
        }
    }

    #[test]
    fn ages_are_rabbitmqs() {
        for (text, seconds) in
            [("60D", Some(60 * DAY)), ("1Y", Some(365 * DAY)), ("12h", Some(43_200)), ("7", None)]
        {
            assert_eq!(parse_age(text), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(parse_age(""), None);
        assert_eq!(parse_age("ä"), None);
    }

    #[test]
    fn logs_must_hold_what_is_delayed() {
        let judged = |control: &str, log: &str, max_delay: u64| {
            let mut config = Config::default();
            config.limits.max_delay = Duration::from_secs(max_delay * DAY);
            let queue = |name: &str, age: &str| json!({"name": name, "arguments": {"x-max-age": "60D"}, "effective_policy_definition": {"max-age": age}});
            let found = with(&[queue("hopline.control.log", control), queue("hopline.log", log)]);
            retention(&config, &found, &names()).level
        };
        let sized = |name: &str, argument: u64, policy: u64| {
            let queue = json!({
                "name": name, "arguments": {"x-max-age": "60D", "x-max-length-bytes": argument},
                "effective_policy_definition": {"max-length-bytes": policy},
            });
            retention(&Config::default(), &with(&[queue]), &names()).level
        };
        for (name, argument, policy, level) in [
            ("hopline.control.log", 1 << 30, 1 << 30, Level::Ok),
            ("hopline.control.log", 1 << 30, 1_000_000, Level::Warn),
            ("hopline.log", 16 << 30, 8 << 30, Level::Ok),
            ("hopline.log", 16 << 30, 1_000_000, Level::Warn),
            ("hopline.log", 1 << 20, 8 << 30, Level::Warn),
        ] {
            assert_eq!(sized(name, argument, policy), level, "{name} {argument} {policy}");
        }
        assert_eq!(judged("45D", "50D", 30), Level::Ok);
        assert_eq!(judged("45D", "50D", 100), Level::Warn);
        assert_eq!(judged("45D", "7D", 30), Level::Warn);
        assert_eq!(judged("20D", "50D", 1), Level::Fail);
        assert_eq!(judged("1Y", "1Y", 60), Level::Ok, "the smaller counts, which is 60 days");
        assert_eq!(judged("1Y", "1Y", 61), Level::Warn);
        assert_eq!(retention(&Config::default(), &Found::default(), &names()).level, Level::Skip);
    }

    #[test]
    fn leaders_and_majorities_are_told() {
        let queue = |leader: &str, of: &[&str], online: &[&str]| {
            let queue = json!({
                "name": "hopline.q.media", "type": "quorum", "leader": leader, "members": of, "online": online,
            });
            members_level(&with(&[queue]))
        };
        fn members_level(found: &Found) -> Level {
            members(found, &Names::new("hopline", "")).level
        }
        assert_eq!(queue("a", &["a"], &["a"]), Level::Ok);
        assert_eq!(queue("", &["a"], &["a"]), Level::Fail);
        assert_eq!(queue("a", &["a", "b", "c"], &["a", "b"]), Level::Warn);
        assert_eq!(queue("a", &["a", "b", "c"], &["a"]), Level::Fail);
        let told_nothing = json!({"name": "hopline.log", "arguments": {"x-queue-type": "stream"}});
        assert_eq!(members_level(&with(&[told_nothing])), Level::Ok, "as 3.10 does");
        let classic = json!({"name": "hopline.lookup", "type": "classic"});
        assert_eq!(members_level(&with(&[classic])), Level::Ok);
    }

    #[test]
    fn a_shorter_consumer_timeout_is_told() {
        let names = names();
        let judged = |arguments: Value, definition: Value| {
            let found = with(&[json!({
                "name": "hopline.q.media", "arguments": arguments, "effective_policy_definition": definition,
            })]);
            consumer_timeout(&Config::default(), Some((&found, &names))).unwrap().level
        };
        assert_eq!(judged(json!({}), json!({})), Level::Skip);
        assert_eq!(judged(json!({"x-consumer-timeout": 60_000}), json!({})), Level::Fail);
        assert_eq!(judged(json!({}), json!({"consumer-timeout": 60_000})), Level::Fail);
        assert_eq!(judged(json!({}), json!({"consumer-timeout": 7_200_000})), Level::Ok);
    }

    #[test]
    fn the_comparison_is_told_in_a_line() {
        let item = |state| Item::new("queue", "q", state);
        for (states, declares, level) in [
            (vec![State::Same], true, Level::Ok),
            (vec![State::Same, State::Missing], true, Level::Warn),
            (vec![State::Same, State::Missing], false, Level::Fail),
            (vec![State::Missing, State::Different], true, Level::Fail),
        ] {
            let items: Vec<Item> = states.iter().copied().map(item).collect();
            assert_eq!(topology(&items, declares, true).level, level, "{states:?}");
        }
        // A binding is never seen by AMQP; what says why it was not is something else.
        let unknown = [item(State::Exists), item(State::Unknown)];
        assert_eq!(topology(&unknown, true, false).level, Level::Ok);
        let away = [item(State::Exists), item(State::Unknown).because("home node is down")];
        let told = topology(&away, true, false);
        assert!(told.level == Level::Warn && told.found.contains("home node"), "{told:?}");
    }
}
