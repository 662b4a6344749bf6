//! Other libraries for jobs: what they do with the same jobs, on the same broker, in the same rounds.
//!
//! They are measured by `bench/peers/run` of the repository, which says in lines of JSON what it found and under which
//! guarantees that is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tokio::{process::Command, time::timeout};

use super::stats::Samples;
use crate::Config;

/// Longest time of one round of one of them, its installation in the first one included.
const LONGEST: Duration = Duration::from_secs(900);

/// A line of what is printed.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Number { peer: String, name: String, value: f64 },
    Says { peer: String, says: String },
}

/// Who is measured, and how.
#[derive(Debug)]
pub(super) struct Peers {
    program: PathBuf,
    url: String,
    names: Vec<String>,
    /// Under which guarantees each has worked.
    said: Mutex<BTreeMap<String, String>>,
}

impl Peers {
    /// Those that `program` knows.
    pub(super) async fn of(program: &Path, config: &Config) -> anyhow::Result<Self> {
        let mut peers = Self {
            program: program.to_owned(),
            url: config.amqp.url.expose().to_owned(),
            names: Vec::new(),
            said: Mutex::default(),
        };
        peers.names = peers.run(&["--list"]).await?.lines().map(str::to_owned).collect();
        Ok(peers)
    }

    /// Measures each of them once.
    pub(super) async fn round(&self, jobs: usize, calls: usize, samples: &mut Samples) -> anyhow::Result<()> {
        let (jobs, calls) = (jobs.to_string(), calls.to_string());
        for name in &self.names {
            let printed = self.run(&[name, "--jobs", &jobs, "--calls", &calls]).await?;
            for line in printed.lines() {
                match serde_json::from_str(line).with_context(|| format!("`{line}` of {name}"))? {
                    Line::Number { peer, name, value } => samples.add(format!("{peer}.{name}"), value),
                    Line::Says { peer, says } => {
                        self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, says);
                    }
                }
            }
        }
        Ok(())
    }

    /// Under which guarantees each has worked.
    pub(super) fn said(&self) -> BTreeMap<String, String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("HOPLINE_AMQP_URL", &self.url).stdin(Stdio::null()).kill_on_drop(true);
        let ran = timeout(LONGEST, command.output()).await;
        let Ok(ran) = ran else { bail!("{} {arguments:?} takes too long", self.program.display()) };
        let ran = ran.with_context(|| format!("cannot start {}", self.program.display()))?;
        let errors = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{} {arguments:?} failed: {errors}", self.program.display());
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_printed_becomes_numbers() {
        let dir = std::env::temp_dir().join(format!("bench-peers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let program = dir.join("run");
        let script = r#"#!/bin/sh
[ "$1" = --list ] && { echo a; echo b; exit; }
[ "$3" = 7 ] && [ "$5" = 9 ] || exit 1
echo '{"peer": "'$1'", "name": "submit", "unit": "/s", "value": 12.5}'
echo '{"peer": "'$1'", "says": "durable"}'
"#;
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let peers = Peers::of(&program, &Config::default()).await.unwrap();
        let mut samples = Samples::default();
        peers.round(7, 9, &mut samples).await.unwrap();
        assert_eq!((samples.of("a.submit"), samples.of("b.submit")), (&[12.5][..], &[12.5][..]));
        assert_eq!(peers.said()["b"], "durable");
        assert!(peers.round(8, 9, &mut samples).await.unwrap_err().to_string().contains("failed"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
