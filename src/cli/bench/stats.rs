//! Numbers of several rounds, and their medians. Pure.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

/// Longest time that a histogram tells from longer ones.
const LONGEST_US: u64 = 600_000_000;

/// The end of the first step of a histogram that is shown.
const FIRST_STEP_US: u64 = 16;

/// Times, in microseconds, to three digits.
#[derive(Debug, Clone)]
pub(super) struct Times(Histogram<u64>);

impl Times {
    pub(super) fn new() -> Self {
        // The bounds are right, so it is never an error.
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("bounds of a histogram"))
    }

    pub(super) fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// Takes the other ones in.
    pub(super) fn join(&mut self, other: &Self) {
        // Both have the same bounds, so it is never an error.
        self.0.add(&other.0).expect("histograms of the same bounds");
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// How many there are up to each of so many milliseconds, above the one before it: four steps to the double.
    #[expect(clippy::cast_precision_loss, reason = "microseconds, far below 2^53")]
    pub(super) fn steps(&self) -> Vec<(f64, u64)> {
        let steps = self.0.iter_log(FIRST_STEP_US, 2f64.powf(0.25));
        let step = |step: hdrhistogram::iterators::IterationValue<u64>| {
            (step.value_iterated_to() as f64 / 1e3, step.count_since_last_iteration())
        };
        steps.map(step).skip_while(|(_, count)| *count == 0).collect()
    }

    /// In milliseconds; NaN where there is none.
    pub(super) fn at(&self, quantile: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        #[expect(clippy::cast_precision_loss, reason = "microseconds, far below 2^53")]
        let us = self.0.value_at_quantile(quantile) as f64;
        us / 1e3
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut all = Self::new();
        times.into_iter().for_each(|time| all.add(time));
        all
    }
}

/// The numbers of each name, one for each round.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    pub(super) fn add(&mut self, name: impl Into<String>, value: f64) {
        if value.is_finite() {
            self.0.entry(name.into()).or_default().push(value);
        }
    }

    /// How many a second.
    pub(super) fn add_rate(&mut self, name: impl Into<String>, count: usize, took: Duration) {
        self.add(name, rate(count, took));
    }

    pub(super) fn of(&self, name: &str) -> &[f64] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn median(&self, name: &str) -> Option<f64> {
        median(self.of(name))
    }

    /// Each name that starts with `prefix`, without it, and its numbers.
    pub(super) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [f64])> {
        self.0.iter().filter_map(move |(name, values)| Some((name.strip_prefix(prefix)?, values.as_slice())))
    }
}

/// How many a second.
#[expect(clippy::cast_precision_loss, reason = "counts, far below 2^53")]
pub(super) fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// The one in the middle; of an even number, the mean of the two.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![9.0, 1.0], Some(5.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0, 3.0, 100.0], Some(3.5)),
        ] {
            assert_eq!(median(&values), expected, "{values:?}");
        }
    }

    #[test]
    fn steps_of_times() {
        let times: Times = [1, 1, 3, 100].into_iter().map(Duration::from_millis).collect();
        let steps = times.steps();
        assert_eq!(steps.iter().map(|(_, count)| count).sum::<u64>(), 4);
        assert_eq!(
            (steps[0].1, steps.last().map(|(_, count)| *count)),
            (2, Some(1)),
            "none before, none behind"
        );
        assert!(steps[0].0 >= 1.0 && steps[0].0 < 1.2, "{steps:?}");
        assert!(steps.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(Times::new().steps().is_empty());
    }

    #[test]
    fn quantiles_of_times() {
        let times: Times = (1..=1000).map(Duration::from_millis).collect();
        for (quantile, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            assert!(
                (times.at(quantile) - expected).abs() <= expected / 500.0,
                "{quantile}: {}",
                times.at(quantile)
            );
        }
        assert!(Times::new().at(0.5).is_nan());
    }

    #[test]
    fn samples_are_kept_by_name() {
        let mut samples = Samples::default();
        samples.add_rate("cpu.a", 1000, Duration::from_millis(500));
        samples.add("cpu.a", 1000.0);
        samples.add("cpu.b", f64::NAN);
        samples.add("rate", 1.0);
        assert_eq!(samples.median("cpu.a"), Some(1500.0));
        assert_eq!(samples.median("cpu.b"), None);
        assert_eq!(
            samples.below("cpu.").map(|(name, values)| (name, values.len())).collect::<Vec<_>>(),
            [("a", 2)]
        );
    }
}
