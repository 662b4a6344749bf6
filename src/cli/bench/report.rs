//! The report of a run: what was measured, under which circumstances, and which goals are met; as text and as JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{
    super::{
        say::Look,
        table::{Column, Table},
    },
    machine::Machine,
    measure::{Grown, Measured},
    meter::CPU,
    plan::{Bound, GOALS, NUMBERS, number},
    stats::median,
};

/// All of it. The JSON output is this.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// How it was measured.
    pub(super) settings: Settings,
    /// On what.
    pub(super) machine: Machine,
    pub(super) numbers: Vec<Number>,
    pub(super) goals: Vec<Judged>,
    /// Seconds of processor time per 1,000 jobs.
    pub(super) cpu: Vec<Used>,
    pub(super) times: Vec<Spread>,
    pub(super) growth: Vec<Grown>,
    /// Under which guarantees other libraries worked.
    pub(super) peers: BTreeMap<String, String>,
}

/// How the times of a measurement are spread, over all rounds, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Spread {
    pub(super) measurement: &'static str,
    pub(super) count: u64,
    /// At each of [`QUANTILES`].
    pub(super) at: [f64; QUANTILES.len()],
    /// How many up to each of so many milliseconds, above the one before it.
    pub(super) steps: Vec<(f64, u64)>,
}

/// What is told of a histogram: so many of all times are shorter.
pub(super) const QUANTILES: [(&str, f64); 7] = [
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("longest", 1.0),
];

/// How it was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Settings {
    pub(super) rounds: usize,
    pub(super) jobs: usize,
    pub(super) backlog: usize,
    pub(super) calls: usize,
    /// Bytes of a job's args.
    pub(super) args: usize,
    pub(super) concurrency: usize,
    pub(super) prefetch: u16,
    /// What the names of all that was declared began with.
    pub(super) prefix: String,
}

/// A number of several rounds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Number {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) median: f64,
    pub(super) rounds: Vec<f64>,
}

/// A goal that was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Judged {
    pub(super) number: &'static str,
    /// What the number is divided by.
    pub(super) of: Option<&'static str>,
    pub(super) measured: f64,
    pub(super) at_least: Option<f64>,
    pub(super) at_most: Option<f64>,
    pub(super) met: bool,
}

/// What a process has used.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Used {
    pub(super) measurement: String,
    pub(super) process: String,
    pub(super) seconds: f64,
}

impl Report {
    pub(super) fn new(settings: Settings, machine: Machine, measured: Measured) -> Self {
        let Measured { samples, times, grown, peers } = measured;
        let samples = &samples;
        let times = times.iter().map(|(name, times)| Spread {
            measurement: name,
            count: times.count(),
            at: QUANTILES.map(|(_, quantile)| times.at(quantile)),
            steps: times.steps(),
        });
        let numbers = NUMBERS.iter().filter_map(|(name, unit, title)| {
            let (median, rounds) = (samples.median(name)?, samples.of(name).to_vec());
            Some(Number { name, title, unit: unit.as_str(), median, rounds })
        });
        let goals = GOALS.iter().filter_map(|goal| {
            let (measured, met) = goal.judge(samples)?;
            let (at_least, at_most) = match goal.bound {
                Bound::AtLeast(bound) => (Some(bound), None),
                Bound::AtMost(bound) => (None, Some(bound)),
            };
            Some(Judged { number: goal.number, of: goal.of, measured, at_least, at_most, met })
        });
        let cpu = samples.below(CPU).filter_map(|(name, values)| {
            let (measurement, process) = name.split_once('/')?;
            let seconds = median(values)?;
            Some(Used { measurement: measurement.to_owned(), process: process.to_owned(), seconds })
        });
        Self {
            numbers: numbers.collect(),
            goals: goals.collect(),
            cpu: cpu.collect(),
            times: times.collect(),
            growth: grown,
            settings,
            machine,
            peers,
        }
    }

    /// As people read it in a terminal.
    pub(super) fn text(&self) -> String {
        let Settings { rounds, jobs, backlog, calls, args, .. } = &self.settings;
        let mut text = format!(
            "Medians of {rounds} rounds: {jobs} jobs of {args} bytes, {backlog} waiting, {calls} calls.\n\n"
        );
        text.push_str(&self.numbers_table());
        if !self.goals.is_empty() {
            let _ = write!(text, "\n{}", self.goals_table());
        }
        if !self.cpu.is_empty() {
            let _ = write!(text, "\n{}", self.cpu_table());
        }
        if !self.growth.is_empty() {
            let _ = write!(text, "\n{}", self.growth_table());
        }
        text
    }

    fn numbers_table(&self) -> String {
        const COLUMNS: &[Column] =
            &[Column::Left("MEASURED"), Column::Right("MEDIAN"), Column::Right("FROM"), Column::Right("TO")];
        let rows: Vec<Vec<String>> = self.numbers.iter().filter_map(Number::row).collect();
        Table::new(COLUMNS, Look::default()).page(&rows)
    }

    fn goals_table(&self) -> String {
        const COLUMNS: &[Column] =
            &[Column::Left("GOAL"), Column::Right("MEASURED"), Column::Right("WANTED"), Column::Left("")];
        let rows: Vec<Vec<String>> = self.goals.iter().filter_map(Judged::row).collect();
        Table::new(COLUMNS, Look::default()).page(&rows)
    }

    fn growth_table(&self) -> String {
        const COLUMNS: &[Column] =
            &[Column::Left("OF"), Column::Right("SO MANY"), Column::Left("MEASURED"), Column::Right("")];
        let rows: Vec<Vec<String>> = self.growth.iter().map(Grown::row).collect();
        Table::new(COLUMNS, Look::default()).page(&rows)
    }

    fn cpu_table(&self) -> String {
        const COLUMNS: &[Column] =
            &[Column::Left("CPU SECONDS PER 1,000"), Column::Left("PROCESS"), Column::Right("SECONDS")];
        let rows =
            self.cpu.iter().filter(|used| used.seconds > 0.0).map(|used| {
                vec![used.measurement.clone(), used.process.clone(), format!("{:.4}", used.seconds)]
            });
        Table::new(COLUMNS, Look::default()).page(&rows.collect::<Vec<_>>())
    }
}

impl Number {
    pub(super) fn row(&self) -> Option<Vec<String>> {
        let (unit, _) = number(self.name)?;
        let least = self.rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some(vec![self.title.to_owned(), unit.show(self.median), unit.show(least), unit.show(most)])
    }
}

impl Grown {
    pub(super) fn row(&self) -> Vec<String> {
        let Self { what, size, number, value, unit } = self;
        vec![(*what).to_owned(), size.to_string(), (*number).to_owned(), unit.show(*value)]
    }
}

impl Spread {
    pub(super) fn row(&self) -> Vec<String> {
        let times = self.at.iter().map(|ms| format!("{ms:.2}"));
        [self.measurement.to_owned(), self.count.to_string()].into_iter().chain(times).collect()
    }
}

impl Judged {
    pub(super) fn row(&self) -> Option<Vec<String>> {
        let (unit, _) = number(self.number)?;
        let what = match self.of {
            Some(of) => format!("{} ÷ {of}", self.number),
            None => self.number.to_owned(),
        };
        let show = |value: f64| if self.of.is_some() { format!("{value:.2} ×") } else { unit.show(value) };
        let wanted = match (self.at_least, self.at_most) {
            (Some(bound), _) => format!("≥ {}", show(bound)),
            (_, Some(bound)) => format!("≤ {}", show(bound)),
            _ => String::new(),
        };
        Some(vec![what, show(self.measured), wanted, if self.met { "met" } else { "missed" }.to_owned()])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::bench::{
        plan::Unit,
        stats::{Samples, Times},
    };

    pub(in super::super) fn settings() -> Settings {
        let prefix = "bench-1".to_owned();
        Settings {
            rounds: 3,
            jobs: 10,
            backlog: 20,
            calls: 5,
            args: 256,
            concurrency: 100,
            prefetch: 500,
            prefix,
        }
    }

    /// What was measured, with something that grew, and times.
    pub(in super::super) fn measured(samples: Samples) -> Measured {
        let mut times = Times::new();
        [1, 2, 3, 90].into_iter().for_each(|ms| times.add(Duration::from_millis(ms)));
        let (what, number, unit) = ("queues", "run", Unit::PerSecond);
        let grown = vec![Grown { what, size: 4, number, value: 1234.0, unit }];
        Measured { samples, times: BTreeMap::from([("call", times)]), grown, ..Measured::default() }
    }

    #[test]
    fn a_report_has_what_was_measured_and_nothing_else() {
        let mut samples = Samples::default();
        for value in [900.0, 1100.0, 1000.0] {
            samples.add("drain", value);
            samples.add("raw.drain", 2.5 * value);
            samples.add("cpu/drain/http", 0.25);
        }
        let report = Report::new(settings(), Machine::default(), measured(samples));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["numbers"][1]["name"], "drain");
        assert_eq!(json["numbers"][1]["median"], 1000.0);
        assert_eq!(json["goals"].as_array().unwrap().len(), 1);
        assert_eq!(json["goals"][0]["met"], false);
        let cpu = &json["cpu"][0];
        assert_eq!((&cpu["measurement"], &cpu["process"]), (&"drain".into(), &"http".into()));
        assert_eq!((&json["times"][0]["count"], &json["growth"][0]["unit"]), (&4.into(), &"/s".into()));
        assert!(json["times"][0]["at"][6].as_f64().unwrap() >= 90.0, "{json}");
        let text = report.text();
        for part in ["drain ÷ raw.drain", "0.40 ×", "≥ 0.50 ×", "missed", "1000 /s", "900 /s", "0.2500"]
        {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(!text.contains("rpc"), "{text}");
    }
}
