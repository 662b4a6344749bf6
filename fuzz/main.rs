//! Every target of `hopline::fuzzing`, under libFuzzer: `HOPLINE_FUZZ_TARGET` names the one to run, `scripts/fuzz` does
//! the rest.
#![no_main]

use std::{env, process, sync::LazyLock};

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = env::var("HOPLINE_FUZZ_TARGET").unwrap_or_default();
    hopline::fuzzing::target(&name).unwrap_or_else(|| {
        let known = hopline::fuzzing::TARGETS.map(|(name, _)| name).join(", ");
        eprintln!("HOPLINE_FUZZ_TARGET is {name:?}; targets are {known}");
        process::exit(2);
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (*TARGET)(data));
