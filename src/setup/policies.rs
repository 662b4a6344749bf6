//! The policies that we make, and why there are any: a queue obeys one policy only, so one that changes nothing keeps a
//! general one (a length limit or a TTL on `.*`) away. Those of the logs bound them; they are an operator's to change.

use serde_json::{Map, Value, json};

use super::{Item, State, found::Policy};
use crate::{
    amqp::Names,
    management::{Management, ManagementError, part},
};

/// Above policies that people make without a thought of priorities.
const PRIORITY: i64 = 50;
const LOG_PRIORITY: i64 = 60;

/// The policies of a prefix, as `config/definitions.json` has them for `hopline`.
pub(crate) fn wanted(names: &Names) -> Vec<Policy> {
    let policy = |name: &str, pattern: String, priority: i64, definition: Value| Policy {
        name: name.to_owned(),
        pattern,
        apply_to: "queues".to_owned(),
        priority,
        definition: definition.as_object().cloned().unwrap_or_default(),
    };
    let log = |name: String, definition: Value| {
        policy(&name.replace('.', "-"), format!("^{}$", name.replace('.', "\\.")), LOG_PRIORITY, definition)
    };
    let mut all: Vec<Policy> = names
        .prefixes()
        .into_iter()
        .map(|prefix| {
            let nothing = json!({ "delivery-limit": i32::MAX });
            policy(prefix, format!("^{prefix}\\."), PRIORITY, nothing)
        })
        .collect();
    all.push(log(names.control_log(), json!({ "max-age": "45D", "max-length-bytes": 1_i64 << 30 })));
    all.push(log(names.log(), json!({ "max-age": "90D", "max-length-bytes": 8_i64 << 30 })));
    all
}

/// How each stands. One that somebody has changed is theirs.
pub(super) fn compare(wanted: &[Policy], found: &Option<Vec<Policy>>) -> Vec<Item> {
    let one = |wanted: &Policy| {
        let item = |state| Item::new("policy", &wanted.name, state);
        let Some(found) = found else {
            return item(State::Unknown)
                .because("this login may not see policies: it needs the tag policymaker");
        };
        match found.iter().find(|policy| policy.name == wanted.name) {
            None => item(State::Missing),
            Some(policy) if policy == wanted => item(State::Same),
            Some(policy) => item(State::Kept).because(format!("yours: {}", in_words(&policy.definition))),
        }
    };
    wanted.iter().map(one).collect()
}

fn in_words(definition: &Map<String, Value>) -> String {
    definition.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

pub(super) async fn make(management: &Management, policy: &Policy) -> Result<(), ManagementError> {
    let Policy { name, pattern, apply_to, priority, definition } = policy;
    let body = json!({
        "pattern": pattern, "apply-to": apply_to, "priority": priority, "definition": definition,
    });
    management.put(&format!("policies/{}/{}", management.vhost(), part(name)), &body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_definitions_have_the_same() {
        let text = include_str!("../../config/definitions.json");
        let definitions: Value = serde_json::from_str(text).unwrap();
        let mut shipped: Vec<Policy> = serde_json::from_value(definitions["policies"].clone()).unwrap();
        let mut ours = wanted(&Names::new("hopline", ""));
        shipped.sort_by(|a, b| a.name.cmp(&b.name));
        ours.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(ours, shipped);
    }

    #[test]
    fn a_changed_policy_is_its_owners() {
        let wanted = wanted(&Names::new("hopline", "ladder"));
        assert_eq!(wanted.len(), 4, "the ladder has its own");
        let mut found = wanted.clone();
        found.remove(0);
        found[1].definition.insert("max-age".into(), json!("30D"));
        let states = |found: &Option<Vec<Policy>>| -> Vec<State> {
            compare(&wanted, found).iter().map(|item| item.state).collect()
        };
        assert_eq!(states(&Some(found)), [State::Missing, State::Same, State::Kept, State::Same]);
        assert_eq!(states(&None), [State::Unknown; 4]);
    }
}
