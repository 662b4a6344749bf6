//! Which keys there are. Whatever else is written is a mistake, and what may have been meant is named.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Config;
use crate::near;

/// Sections whose keys are the user's own: kinds and queues.
const OPEN: [&str; 2] = ["routes", "worker.queues"];

/// Keys as `http.listen`, in the order of the alphabet.
pub(super) struct Known(BTreeSet<String>);

impl Known {
    pub(super) fn all() -> Self {
        let mut keys = BTreeSet::new();
        // The defaults have every key, and nothing in them cannot be written as JSON.
        leaves(&serde_json::to_value(Config::default()).unwrap_or_default(), "", &mut keys);
        Self(keys)
    }

    fn has(&self, key: &str) -> bool {
        self.0.contains(key) || OPEN.iter().any(|open| is_below(key, open))
    }

    /// What is wrong with the keys of a file.
    pub(super) fn problems_of(&self, file: &Value) -> Vec<String> {
        let mut found = BTreeSet::new();
        leaves(file, "", &mut found);
        let unknown = found.iter().filter(|key| !self.has(key) && !self.is_section(key));
        unknown.map(|key| said(&format!("there is no key {key}"), &self.near_key(key))).collect()
    }

    /// What is wrong with a variable, by the key that it would stand for.
    pub(super) fn problem_of(
        &self,
        variable: &str,
        key: &str,
        prefix: &str,
        others: &[&str],
    ) -> Option<String> {
        if self.has(key) {
            return None;
        }
        let known: Vec<String> =
            self.0.iter().map(|key| key.replace('.', "_").to_ascii_uppercase()).collect();
        let known = known
            .iter()
            .map(String::as_str)
            .chain(others.iter().filter_map(|other| other.strip_prefix(prefix)));
        let near = near::near(variable.strip_prefix(prefix).unwrap_or(variable), known);
        let near: Vec<String> = near.into_iter().map(|rest| format!("{prefix}{rest}")).collect();
        Some(said(&format!("there is no variable {variable}"), &near))
    }

    /// A section that was given a value, or is empty: whoever reads the whole says what belongs there.
    fn is_section(&self, key: &str) -> bool {
        self.0.iter().any(|known| is_below(known, key))
    }

    fn near_key(&self, key: &str) -> Vec<String> {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let sections: BTreeSet<&str> =
            self.0.iter().filter_map(|key| Some(key.rsplit_once('.')?.0)).collect();
        let named = |section: &str, name: &str| format!("{section}.{name}");
        if section.is_empty() {
            return near::near(name, sections).into_iter().map(str::to_owned).collect();
        }
        if !sections.contains(section) {
            let near = near::near(section, sections);
            return near
                .into_iter()
                .map(|section| named(section, name))
                .filter(|key| self.has(key))
                .collect();
        }
        let beside = self.0.iter().filter_map(|key| key.rsplit_once('.')).filter(|(of, _)| *of == section);
        let near = near::near(name, beside.map(|(_, name)| name));
        if !near.is_empty() {
            return near.into_iter().map(|name| named(section, name)).collect();
        }
        let elsewhere =
            sections.iter().map(|section| named(section, name)).filter(|key| self.0.contains(key));
        elsewhere.collect()
    }
}

fn is_below(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

fn said(what: &str, near: &[String]) -> String {
    if near.is_empty() { what.to_owned() } else { format!("{what}; did you mean {}?", near.join(" or ")) }
}

/// The paths of everything that is no object with members.
fn leaves(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(value, &path, into);
            }
        }
        _ if path.is_empty() => {}
        _ => {
            into.insert(path.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_that_there_is_not_is_told_with_the_one_that_is_meant() {
        let known = Known::all();
        for (file, problem) in [
            (json!({"http": {"lisen": "x"}}), Some("there is no key http.lisen; did you mean http.listen?")),
            (
                json!({"htpp": {"listen": "x"}}),
                Some("there is no key htpp.listen; did you mean http.listen?"),
            ),
            (json!({"http": {"concurrency": 4}}), Some("callbacks.concurrency or worker.concurrency?")),
            (json!({"zzz": {"yyy": 1}}), Some("there is no key zzz.yyy")),
            (json!({"zzz": 1}), Some("there is no key zzz")),
            (json!({"worker": {"queues": {"media": {"prefetch": 1}}}, "routes": {"a": "b"}}), None),
            (json!({"http": {}, "spool": {"path": null}}), None),
        ] {
            let problems = known.problems_of(&file);
            match problem {
                None => assert!(problems.is_empty(), "{problems:?}"),
                Some(problem) => {
                    assert!(problems.len() == 1 && problems[0].ends_with(problem), "{problems:?}");
                }
            }
        }
    }

    #[test]
    fn a_variable_that_there_is_not_is_told_with_the_one_that_is_meant() {
        let known = Known::all();
        let problem =
            |variable: &str, key: &str| known.problem_of(variable, key, "HOPLINE_", &["HOPLINE_API_KEY"]);
        for (variable, key, near) in [
            ("HOPLINE_HTTP_LISEN", "http.lisen", "did you mean HOPLINE_HTTP_LISTEN?"),
            ("HOPLINE_AMQPURL", "amqpurl", "did you mean HOPLINE_AMQP_URL?"),
            ("HOPLINE_APIKEY", "apikey", "did you mean HOPLINE_API_KEY?"),
        ] {
            let problem = problem(variable, key).unwrap();
            assert!(problem.contains(variable) && problem.ends_with(near), "{problem}");
        }
        assert_eq!(
            problem("HOPLINE_ZZZZZZ", "zzzzzz").as_deref(),
            Some("there is no variable HOPLINE_ZZZZZZ")
        );
        assert_eq!(problem("HOPLINE_HTTP_LISTEN", "http.listen"), None);
    }
}
