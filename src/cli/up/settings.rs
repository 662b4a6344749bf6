//! The settings of a running `hopline up`, beside those that a later call was given: what has changed meanwhile is not in
//! force, and that is said. Secrets are not compared, since none is kept.

use serde_json::Value;

use super::state::{Layout, State};
use crate::Config;

/// What is kept of a configuration.
pub(super) fn of(config: &Config) -> Value {
    // A configuration was read from text, and can be written as such.
    serde_json::to_value(config).unwrap_or_default()
}

/// What to tell somebody whose configuration is not the one that runs.
pub(super) fn notice(layout: &Layout, state: &State, config: &Config) -> Option<String> {
    let changed = changed(&state.settings, &of(config));
    (!changed.is_empty()).then(|| {
        format!(
            "Not in force, since Hopline was started with others: {}. `hopline down --dir {}` and `hopline up` apply them.",
            changed.join(", "),
            layout.dir.display()
        )
    })
}

/// The keys whose values differ; none where nothing is known, as of an older `hopline`.
fn changed(running: &Value, now: &Value) -> Vec<String> {
    let mut keys = Vec::new();
    if running.is_object() {
        compare(running, now, "", &mut keys);
    }
    keys
}

fn compare(a: &Value, b: &Value, path: &str, into: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(
                    a.get(name).unwrap_or(&Value::Null),
                    b.get(name).unwrap_or(&Value::Null),
                    &path,
                    into,
                );
            }
        }
        _ if a != b => into.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_changed_is_named_by_its_key() {
        let started = of(&Config::default());
        let now = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            of(&Config::load_from(None, variables).unwrap())
        };
        assert!(changed(&started, &now(&[])).is_empty());
        let other = now(&[("HOPLINE_WORKER_CONCURRENCY", "4"), ("HOPLINE_HTTP_KEYS", "keys")]);
        assert_eq!(changed(&started, &other), ["http.keys", "worker.concurrency"]);
        assert_eq!(changed(&json!({"routes": {}}), &json!({"routes": {"a": "b"}})), ["routes.a"]);
        assert!(changed(&Value::Null, &started).is_empty());
    }
}
