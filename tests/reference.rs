//! `config/hopline.toml` is the reference: it must name every key, and say its default.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use hopline::Config;
use serde_json::Value;

const REFERENCE: &str = include_str!("../config/hopline.toml");
/// Tables that are empty by default: the reference shows an example, which is none of the defaults.
const EXAMPLES: [&str; 2] = ["routes", "worker.queues"];
/// Have no value by default, which TOML cannot write.
const ABSENT: [&str; 12] = [
    "worker.health",
    "spool.path",
    "http.keys",
    "http.trace_url",
    "http.tls_cert",
    "http.tls_key",
    "amqp.ca",
    "amqp.client_cert",
    "amqp.client_key",
    "telemetry.otlp_endpoint",
    "telemetry.sample_ratio",
    "telemetry.service_name",
];

fn load(name: &str, toml: &str) -> Config {
    let file: PathBuf = std::env::temp_dir().join(format!("hopline-{name}-{}.toml", std::process::id()));
    fs::write(&file, toml).unwrap();
    let config = Config::load_from(Some(&file), []);
    fs::remove_file(&file).unwrap();
    config.unwrap()
}

/// Each value as `(table, key, value)`; `# ` begins a comment, `#key` a value that is the default.
fn values() -> Vec<(String, &'static str, &'static str)> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in REFERENCE.lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            name.strip_suffix(']').unwrap().clone_into(&mut table);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            found.push((table.clone(), key.trim(), value.trim()));
        }
    }
    found
}

fn is_example(table: &str) -> bool {
    EXAMPLES.iter().any(|example| table.starts_with(example))
}

/// Every key as `table.key`, as serde writes it.
fn keys(config: &Config) -> BTreeSet<String> {
    let Value::Object(sections) = serde_json::to_value(config).unwrap() else { unreachable!() };
    let within = |(section, keys): (String, Value)| match keys {
        Value::Object(keys) => keys.keys().map(|key| format!("{section}.{key}")).collect::<Vec<_>>(),
        _ => vec![section],
    };
    sections.into_iter().flat_map(within).filter(|key| !EXAMPLES.contains(&key.as_str())).collect()
}

#[test]
fn as_it_stands_it_changes_nothing() {
    assert_eq!(load("as-it-stands", REFERENCE), Config::default());
}

#[test]
fn every_value_is_the_default() {
    let toml: String = values()
        .into_iter()
        .filter(|(table, key, _)| !is_example(table) && !ABSENT.contains(&format!("{table}.{key}").as_str()))
        .map(|(table, key, value)| format!("{table}.{key} = {value}\n"))
        .collect();
    assert_eq!(load("defaults", &toml), Config::default());
}

#[test]
fn every_key_is_there() {
    let shown = values().into_iter().filter(|(table, ..)| !is_example(table));
    let shown: BTreeSet<_> = shown.map(|(table, key, _)| format!("{table}.{key}")).collect();
    assert_eq!(shown, keys(&Config::default()));
}

#[test]
fn the_examples_can_be_used() {
    let toml: String = values()
        .into_iter()
        .filter(|(table, ..)| is_example(table))
        .map(|(table, key, value)| format!("[{table}]\n{key} = {value}\n"))
        .collect();
    // A table is opened once only; its second key goes on in it.
    let config = load("examples", &toml.replacen("[worker.queues.media]\nprefetch", "prefetch", 1));
    assert_eq!((config.routes.len(), config.worker.queues.len()), (1, 1));
    let media = config.worker.queues.values().next().unwrap();
    assert!(media.concurrency.is_some() && media.prefetch.is_some());
}
