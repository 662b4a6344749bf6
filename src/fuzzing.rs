//! What fuzzers run: for each parser of what comes from outside a function that takes any bytes, and panics where they
//! show that something does not hold. `make fuzz` runs them under libFuzzer (`fuzz/`); the tests here run them over the
//! kept inputs, `fuzz/corpus/<target>/`, and over changes of these.
//!
//! That nothing panics is the least of it. What is accepted must mean the same when it was written and read once more,
//! whoever reads it next; what is refused must say so in bounds, whatever it quotes.
//!
//! They say what does not hold by panicking, so `expect` is an assertion here and in those files.
//!
//! A part's own targets are beside it, in a file of this name: they see what nobody else should.

mod input;
mod message;
mod pure;

pub(crate) use self::{
    input::Input,
    message::{bounded, event_is_kept, incoming_holds},
};

/// A fuzzer's target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them. `fuzz/corpus/` has a folder of each name.
pub const TARGETS: [Target; 14] = [
    ("answers", crate::amqp::fuzzing::answers),
    ("batch", crate::http::fuzzing::batch),
    ("config", pure::config),
    ("control", crate::amqp::fuzzing::control),
    ("cursor", crate::http::fuzzing::cursor),
    ("duration", crate::http::fuzzing::duration),
    ("envelope", message::envelope),
    ("events", pure::events),
    ("properties", crate::amqp::fuzzing::properties),
    ("record", crate::record::fuzzing::record),
    ("request", crate::http::fuzzing::request),
    ("routing_key", pure::routing_key),
    ("spool", crate::spool::fuzzing::spool),
    ("submit", crate::http::fuzzing::submit),
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        panic::{AssertUnwindSafe, catch_unwind},
        path::{Path, PathBuf},
    };

    use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
    }

    /// The kept inputs of a target, by name.
    fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(folder().join(target)).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    }

    #[test]
    fn every_target_has_a_corpus_that_passes() {
        let folders = fs::read_dir(folder()).unwrap().map(|folder| folder.unwrap().file_name());
        let mut folders: Vec<_> = folders.map(|name| name.into_string().unwrap()).collect();
        folders.sort();
        assert_eq!(folders, TARGETS.map(|(name, _)| name), "one folder for each target, and no other");
        let mut failed = Vec::new();
        for (name, run) in TARGETS {
            let inputs = corpus(name);
            assert!(!inputs.is_empty(), "{name}");
            failed.extend(
                inputs
                    .into_iter()
                    .filter(|(_, input)| catch_unwind(|| run(input)).is_err())
                    .map(|(path, _)| path),
            );
        }
        assert!(failed.is_empty(), "{failed:#?}");
    }

    /// Kept inputs with a piece of one put into another: the fuzzer's own work in small, without its feedback.
    #[test]
    fn changed_inputs_pass_too() {
        for (name, run) in TARGETS {
            let inputs = corpus(name);
            // This one makes files.
            let cases = if name == "record" { 16 } else { 128 };
            let mut runner = TestRunner::new(ProptestConfig {
                cases,
                failure_persistence: None,
                ..ProptestConfig::default()
            });
            let piece = || (any::<Index>(), any::<Index>(), any::<Index>(), any::<Index>(), any::<u8>());
            let changes = (any::<Index>(), prop::collection::vec(piece(), 1..6));
            let outcome = runner.run(&changes, |(base, changes)| {
                let mut input = base.get(&inputs).1.clone();
                for (other, from, length, at, byte) in changes {
                    let other = &other.get(&inputs).1;
                    let from = from.index(other.len() + 1);
                    let piece = &other[from..from + length.index((other.len() - from).min(64) + 1)];
                    let at = at.index(input.len() + 1);
                    input.splice(
                        at..at + byte as usize % (input.len() - at + 1).min(16),
                        piece.iter().copied(),
                    );
                    if byte % 3 == 0 {
                        input.insert(at, byte);
                    }
                }
                input.truncate(4096);
                let passes = catch_unwind(AssertUnwindSafe(|| run(&input))).is_ok();
                prop_assert!(passes, "{name}: {}", input.escape_ascii());
                Ok(())
            });
            outcome.unwrap();
        }
    }
}
