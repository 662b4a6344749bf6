//! On what was measured: without it no number means anything.

use std::time::Duration;

use serde::Serialize;

use crate::{Config, amqp::version};

/// Longest time to ask the broker what it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine and the programs. What the system does not tell is empty.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) memory_gib: u64,
    pub(super) system: String,
    pub(super) broker: String,
    pub(super) hopline: &'static str,
}

impl Machine {
    /// This one, and the broker of this configuration.
    pub(super) async fn of(config: &Config) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let kernel = read("/proc/sys/kernel/osrelease");
        let broker = version::ask(config.amqp.url.expose(), PATIENCE).await.ok().flatten();
        let kib: u64 = value(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
        Self {
            processor: value(&cpu, "model name").to_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib >> 20,
            // Without what a distribution or a host calls its own build.
            system: format!(
                "{} {}",
                std::env::consts::OS,
                kernel.trim().split('-').next().unwrap_or_default()
            ),
            broker: broker
                .map_or_else(String::new, |broker| format!("{} {}", broker.product, broker.version)),
            hopline: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// What stands behind the colon of the first line that begins with `name`.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_behind_their_names() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: B\n";
        assert_eq!(value(text, "model name"), "A CPU: fast");
        assert_eq!(value(text, "MemTotal"), "");
    }
}
