//! Which file may import what: `docs/architecture.md` has the map, this reads the code.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A source file: its path below `src/`, and its code without comments and without its `mod tests`.
struct Source {
    path: String,
    code: Vec<String>,
}

impl Source {
    fn names(&self, word: &str) -> Option<&str> {
        let found = self.code.iter().find(|line| contains_word(line, word));
        found.map(String::as_str)
    }
}

/// A line without what stands in quotes: a log target is no import.
fn without_texts(line: &str) -> String {
    line.split('"').step_by(2).collect()
}

/// Whether `line` has `word` as a word: no part of a longer name. One that ends in `::` may be followed by anything.
fn contains_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let whole = word.ends_with(part);
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !(before.is_some_and(part) || whole && after.is_some_and(part))
    })
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            files(&entry, into);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            into.push(entry);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a source");
        let code = text.lines().take_while(|line| *line != "mod tests {").map(str::trim_start);
        let code = code.filter(|line| !line.starts_with("//")).map(without_texts).collect();
        let path = path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
        Source { path, code }
    };
    let sources: Vec<Source> =
        paths.iter().map(read).filter(|source| !source.path.ends_with("_tests.rs")).collect();
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

/// Fails if a file that `concerns` names one of `words`.
fn forbid(concerns: impl Fn(&str) -> bool, words: &[&str]) {
    let sources = sources();
    let concerned: Vec<&Source> = sources.iter().filter(|source| concerns(&source.path)).collect();
    assert!(!concerned.is_empty(), "no file is concerned");
    for source in concerned {
        for word in words {
            if let Some(line) = source.names(word) {
                panic!("src/{} names {word}: {line}", source.path);
            }
        }
    }
}

fn is_part(path: &str, part: &str) -> bool {
    path == format!("{part}.rs") || path.starts_with(&format!("{part}/"))
}

#[test]
fn only_amqp_names_lapin() {
    forbid(|path| !is_part(path, "amqp"), &["lapin", "deadpool_lapin", "async_rs"]);
}

#[test]
fn the_pure_part_does_no_io() {
    forbid(
        |path| is_part(path, "job") || is_part(path, "retry") || is_part(path, "event"),
        &["tokio", "lapin", "axum", "std::fs", "std::net"],
    );
}

#[test]
fn http_and_worker_do_not_know_each_other() {
    forbid(|path| is_part(path, "http"), &["worker::", "crate::worker"]);
    forbid(|path| is_part(path, "worker"), &["http::", "crate::http"]);
}

#[test]
fn the_record_is_written_by_all_and_read_by_http() {
    forbid(|path| is_part(path, "record"), &["axum", "http::", "worker::", "cli::"]);
    // Every process writes events, so its client has a writer; what is read is for HTTP processes, and follows the log
    // over such a client.
    let reading = ["Record", "RecordError", "record::reader", "record::store", "rusqlite"];
    forbid(|path| is_part(path, "client") || is_part(path, "worker"), &reading);
    forbid(|path| is_part(path, "record") && path != "record/reader.rs", &["client::", "Client"]);
}

#[test]
fn amqp_knows_neither_its_users_nor_http() {
    forbid(|path| is_part(path, "amqp"), &["axum", "crate::http", "crate::worker", "crate::client"]);
}

#[test]
fn metrics_know_nothing_of_what_they_count() {
    forbid(|path| is_part(path, "metrics"), &["tokio", "lapin", "axum", "crate::"]);
}

#[test]
fn acts_know_neither_http_nor_the_command_line() {
    forbid(|path| is_part(path, "acts"), &["axum", "rusqlite", "crate::http", "crate::cli"]);
    forbid(
        |path| is_part(path, "worker") || is_part(path, "record") || is_part(path, "client"),
        &["crate::acts"],
    );
}

#[test]
fn the_spool_knows_only_the_client() {
    forbid(|path| is_part(path, "spool"), &["axum", "record::", "crate::http", "crate::cli", "crate::acts"]);
    forbid(
        |path| ["acts", "client", "record", "worker"].iter().any(|part| is_part(path, part)),
        &["crate::spool", "spool::"],
    );
}

#[test]
fn attempt_and_disposition_know_no_broker() {
    forbid(|path| ["worker/executor.rs", "worker/disposition.rs"].contains(&path), &["lapin", "amqp"]);
}

#[test]
fn backoff_is_one_files_affair() {
    forbid(|path| path != "amqp/pause.rs", &["backoff::", "use backoff"]);
}

#[test]
fn words_are_found_as_words() {
    assert!(
        contains_word("use lapin::Channel;", "lapin") && contains_word("deadpool_lapin", "deadpool_lapin")
    );
    assert!(
        contains_word("    worker::Worker,", "worker::") && !contains_word("coworker::Worker", "worker::")
    );
    assert!(!contains_word("deadpool_lapin", "lapin") && !contains_word("lapins", "lapin"));
}
