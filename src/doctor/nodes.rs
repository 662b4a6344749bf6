//! What the management API tells of the broker itself.

use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde::Deserialize;

use super::Finding;
use crate::management::{Management, ManagementError, read};

/// How often RabbitMQ gathers what the management API tells, and a bit.
pub(super) const STATISTICS: Duration = Duration::from_secs(6);
/// An HTTP date has whole seconds.
const CLOCK_SKEW: Duration = Duration::from_secs(2);
/// The smallest disk limit that keeps a broker able to write.
const DISK_LIMIT: u64 = 1_000_000_000;
/// A share that is close to a limit, in percent.
const CLOSE: u64 = 80;
/// Descriptors that a broker should have.
const BROKER_DESCRIPTORS: u64 = 4096;
/// Feature flags that we cannot do without.
const NEEDED_FLAGS: [&str; 2] = ["quorum_queue", "stream_queue"];

/// A node of the broker. What a version does not tell is missing.
#[derive(Debug, Clone, Default, Deserialize)]
struct Node {
    name: String,
    #[serde(default)]
    running: bool,
    #[serde(default)]
    mem_alarm: bool,
    #[serde(default)]
    disk_free_alarm: bool,
    mem_used: Option<u64>,
    mem_limit: Option<u64>,
    disk_free: Option<u64>,
    disk_free_limit: Option<u64>,
    fd_used: Option<u64>,
    fd_total: Option<u64>,
    #[serde(default)]
    partitions: Vec<String>,
}

/// A feature flag.
#[derive(Debug, Clone, Deserialize)]
struct Flag {
    name: String,
    state: String,
    #[serde(default)]
    stability: String,
}

/// Whether the API answers; then what it says of the clock.
pub(super) async fn reach(management: &Management, findings: &mut Vec<Finding>) -> Option<Finding> {
    match management.send(Method::GET, "overview", None).await {
        Ok(answer) => {
            let version = answer.body["rabbitmq_version"].as_str().unwrap_or("of unknown version").to_owned();
            let shown = management.shown();
            findings.push(Finding::ok("management", format!("{shown} answers, RabbitMQ {version}")));
            Some(clock(answer.clock))
        }
        Err(error) => {
            let mend = match &error {
                ManagementError::Unreachable { .. } => {
                    "check the address; the plugin is turned on by `rabbitmq-plugins enable rabbitmq_management`"
                }
                _ => "check the login: rabbitmqctl set_user_tags USER monitoring",
            };
            findings.push(Finding::fail("management", error.to_string(), mend));
            None
        }
    }
}

fn clock(clocks: Option<(SystemTime, SystemTime)>) -> Finding {
    let Some((theirs, ours)) = clocks else { return Finding::skip("clock", "the broker tells no date") };
    // A date has no fractions: on average it is half a second behind.
    let theirs = theirs + Duration::from_millis(500);
    let (apart, word) = match ours.duration_since(theirs) {
        Ok(behind) => (behind, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    if apart <= CLOCK_SKEW {
        return Finding::ok("clock", "this machine and the broker agree within about a second");
    }
    Finding::warn(
        "clock",
        format!("this machine is {} s {word} the broker", apart.as_secs()),
        "keep both machines' time by NTP: expiry, delays and the order of pauses are told by the clock",
    )
}

/// The nodes and the feature flags.
pub(super) async fn examine(management: &Management, findings: &mut Vec<Finding>) {
    let flags = match management.get("feature-flags").await {
        Ok(list) => read::<Vec<Flag>>("feature-flags", list),
        Err(error) => Err(error),
    };
    findings.push(match flags {
        Ok(flags) => feature_flags(&flags),
        Err(error) => Finding::skip("feature_flags", error.to_string()),
    });
    let nodes = match management.get("nodes").await {
        Ok(list) => read::<Vec<Node>>("nodes", list),
        Err(error) => Err(error),
    };
    match nodes {
        Ok(nodes) => {
            findings.push(alarms(&nodes));
            findings.push(memory(&nodes));
            findings.push(disk(&nodes));
            findings.push(descriptors(&nodes));
        }
        Err(error) => {
            let checks = ["alarms", "memory", "disk", "broker_descriptors"];
            findings.extend(checks.map(|check| Finding::skip(check, error.to_string())));
        }
    }
}

fn feature_flags(flags: &[Flag]) -> Finding {
    let off = |flag: &&Flag| flag.state != "enabled";
    // One that a version has made a part of itself is not told any more.
    let needed = flags.iter().filter(off).find(|flag| NEEDED_FLAGS.contains(&flag.name.as_str()));
    if let Some(flag) = needed {
        let mend = format!("rabbitmqctl enable_feature_flag {}", flag.name);
        return Finding::fail("feature_flags", format!("{} is {}", flag.name, flag.state), mend);
    }
    // What is experimental is left off on purpose.
    let stable: Vec<&str> = flags
        .iter()
        .filter(off)
        .filter(|flag| flag.stability == "stable")
        .map(|flag| flag.name.as_str())
        .collect();
    if stable.is_empty() {
        return Finding::ok("feature_flags", "all that are stable are on");
    }
    Finding::warn(
        "feature_flags",
        format!("not on: {}", stable.join(", ")),
        "rabbitmqctl enable_feature_flag all, when all nodes have the same version: the next upgrade needs them",
    )
}

fn alarms(nodes: &[Node]) -> Finding {
    let mut wrong = Vec::new();
    for node in nodes {
        let name = &node.name;
        if !node.running {
            wrong.push(format!("{name} is down"));
        }
        if node.mem_alarm {
            wrong.push(format!("{name}: memory alarm"));
        }
        if node.disk_free_alarm {
            wrong.push(format!("{name}: disk alarm"));
        }
        if !node.partitions.is_empty() {
            wrong.push(format!("{name} does not see {}", node.partitions.join(", ")));
        }
    }
    if wrong.is_empty() {
        return Finding::ok("alarms", format!("none; nodes that run: {}", nodes.len()));
    }
    Finding::fail(
        "alarms",
        wrong.join("; "),
        "during an alarm nobody can publish: submits are refused or spooled, workers start nothing. Free memory or disk of the \
         node, or raise its limit; start nodes that are down",
    )
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

fn memory(nodes: &[Node]) -> Finding {
    let told: Vec<_> =
        nodes.iter().filter_map(|node| Some((node, node.mem_used?, node.mem_limit?))).collect();
    let Some((node, used, limit)) = told.into_iter().max_by_key(|(_, used, limit)| percent(*used, *limit))
    else {
        return Finding::skip("memory", "no node tells it");
    };
    let share = percent(used, limit);
    let found = format!("{} uses {share} % of the {} MiB before an alarm", node.name, limit >> 20);
    if share < CLOSE {
        return Finding::ok("memory", found);
    }
    let mend = "give the node more memory, or raise vm_memory_high_watermark; look for long queues and many connections";
    Finding::warn("memory", found, mend)
}

fn disk(nodes: &[Node]) -> Finding {
    let told: Vec<_> =
        nodes.iter().filter_map(|node| Some((node, node.disk_free?, node.disk_free_limit?))).collect();
    let in_words = |(node, free, limit): (&Node, u64, u64)| {
        format!("{} has {} MB free, the alarm is at {} MB", node.name, free / 1_000_000, limit / 1_000_000)
    };
    let lowest = told.iter().copied().min_by_key(|(_, _, limit)| *limit);
    let Some((node, free, limit)) =
        told.into_iter().min_by_key(|(_, free, limit)| free.saturating_sub(*limit))
    else {
        return Finding::skip("disk", "no node tells it");
    };
    let found = in_words((node, free, limit));
    // Of any node: which is nearest to its alarm says nothing about the others' limits.
    if let Some(low) = lowest.filter(|(_, _, limit)| *limit < DISK_LIMIT) {
        let found = in_words(low);
        let mend = "set disk_free_limit.absolute = 2GB: below it a busy queue fills the disk before the alarm is heard";
        return Finding::warn("disk", found, mend);
    }
    if free < limit.saturating_mul(2) {
        return Finding::warn("disk", found, "make room before the alarm does");
    }
    Finding::ok("disk", found)
}

fn descriptors(nodes: &[Node]) -> Finding {
    // Newer versions tell none.
    let told: Vec<_> = nodes
        .iter()
        .filter_map(|node| Some((node, node.fd_used?, node.fd_total?)))
        .filter(|(_, _, total)| *total > 0)
        .collect();
    let Some((node, used, total)) = told.into_iter().max_by_key(|(_, used, total)| percent(*used, *total))
    else {
        return Finding::skip("broker_descriptors", "no node tells it");
    };
    let found = format!("{} uses {used} of {total}", node.name);
    if percent(used, total) >= CLOSE || total < BROKER_DESCRIPTORS {
        let mend = "raise the broker's limit (LimitNOFILE=, ulimit -n): each connection and each open file takes one";
        return Finding::warn("broker_descriptors", found, mend);
    }
    Finding::ok("broker_descriptors", found)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::doctor::Level;

    fn node(more: &serde_json::Value) -> Vec<Node> {
        let mut node = json!({
            "name": "a", "running": true, "mem_used": 10, "mem_limit": 100, "disk_free": 10_000_000_000_u64,
            "disk_free_limit": 2_000_000_000_u64, "fd_used": 10, "fd_total": 65536,
        });
        let object = node.as_object_mut().unwrap();
        object.extend(more.as_object().unwrap().clone());
        vec![from_value(node).unwrap()]
    }

    #[test]
    fn nodes_are_judged() {
        type Check = fn(&[Node]) -> Finding;
        let cases: [(serde_json::Value, Check, Level); 14] = [
            (json!({}), alarms, Level::Ok),
            (json!({"running": false}), alarms, Level::Fail),
            (json!({"mem_alarm": true}), alarms, Level::Fail),
            (json!({"disk_free_alarm": true}), alarms, Level::Fail),
            (json!({"partitions": ["b"]}), alarms, Level::Fail),
            (json!({}), memory, Level::Ok),
            (json!({"mem_used": 80}), memory, Level::Warn),
            (json!({"mem_limit": null}), memory, Level::Skip),
            (json!({}), disk, Level::Ok),
            (json!({"disk_free_limit": 50_000_000}), disk, Level::Warn),
            (json!({"disk_free": 3_000_000_000_u64}), disk, Level::Warn),
            (json!({}), descriptors, Level::Ok),
            (json!({"fd_total": 1024}), descriptors, Level::Warn),
            (json!({"fd_total": 0}), descriptors, Level::Skip),
        ];
        for (more, check, level) in cases {
            let found = check(&node(&more));
            assert_eq!(found.level, level, "{more}: {found:?}");
        }
        // The one that is nearest to its alarm is not the one whose alarm comes too late.
        let near = node(&json!({"name": "near"})).remove(0);
        let late =
            node(&json!({"name": "late", "disk_free_limit": 50_000_000, "disk_free": 20_000_000_000_u64}));
        let found = disk(&[vec![near], late].concat());
        assert!(found.level == Level::Warn && found.found.contains("late has"), "{found:?}");
    }

    #[test]
    fn flags_are_judged() {
        let flag = |name: &str, state: &str, stability: &str| Flag {
            name: name.into(),
            state: state.into(),
            stability: stability.into(),
        };
        assert_eq!(feature_flags(&[]).level, Level::Ok, "a part of the version");
        assert_eq!(feature_flags(&[flag("stream_queue", "enabled", "stable")]).level, Level::Ok);
        assert_eq!(feature_flags(&[flag("khepri_db", "disabled", "experimental")]).level, Level::Ok);
        assert_eq!(feature_flags(&[flag("other", "disabled", "stable")]).level, Level::Warn);
        assert_eq!(feature_flags(&[flag("stream_queue", "disabled", "stable")]).level, Level::Fail);
    }

    #[test]
    fn clocks_are_compared() {
        let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        for (theirs, ours, level) in [
            (10_000, 10_999, Level::Ok),
            (10_000, 12_400, Level::Ok),
            (10_000, 12_600, Level::Warn),
            (20_000, 10_000, Level::Warn),
        ] {
            assert_eq!(clock(Some((at(theirs), at(ours)))).level, level, "{theirs} {ours}");
        }
        assert_eq!(clock(None).level, Level::Skip);
        assert!(clock(Some((at(0), at(61_000)))).found.contains("60 s ahead of"));
    }
}
