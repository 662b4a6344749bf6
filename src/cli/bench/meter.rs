//! What processes use of the processors while something is measured.

use std::time::Duration;

use super::{clock, stats::Samples};

/// What the name of such a number starts with; it goes on with the measurement, a slash and the process.
pub(super) const CPU: &str = "cpu/";

/// What some processes had used when it was started.
pub(super) struct Meter {
    name: &'static str,
    before: Vec<(&'static str, u32, Duration)>,
}

impl Meter {
    pub(super) fn start(
        name: &'static str,
        processes: impl IntoIterator<Item = (&'static str, u32)>,
    ) -> Self {
        let read = |(role, pid)| Some((role, pid, clock::processor_time(pid)?));
        Self { name, before: processes.into_iter().filter_map(read).collect() }
    }

    /// Notes how many seconds each process has used since, per 1,000 jobs. A process that has ended is left out.
    #[expect(clippy::cast_precision_loss, reason = "counts, far below 2^53")]
    pub(super) fn stop(self, jobs: usize, samples: &mut Samples) {
        for (role, pid, before) in self.before {
            if let Some(now) = clock::processor_time(pid) {
                let used = now.saturating_sub(before).as_secs_f64() * 1000.0 / jobs as f64;
                samples.add(format!("{CPU}{}/{role}", self.name), used);
            }
        }
    }
}
