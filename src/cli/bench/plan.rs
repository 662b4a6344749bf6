//! What can be measured, what each number is called, and which ratios it has to reach. Tables; pure.

use clap::ValueEnum;

use super::stats::Samples;

/// A measurement, as it is chosen by name. Each measures what it is compared with in the same round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Measure {
    /// Bare lapin alone: consume + ack, and publish and consume at once.
    Raw,
    /// Batches over HTTP, run, and recorded as succeeded.
    EndToEnd,
    /// Single submits over 64 connections, while a worker drains.
    #[value(name = "submit-64")]
    Submit64,
    /// Single submits over 256 connections, while a worker drains.
    #[value(name = "submit-256")]
    Submit256,
    /// One worker process, and all jobs waiting.
    Drain,
    /// Calls one at a time.
    Call,
    /// Calls of 64 callers at once.
    #[value(name = "call-64")]
    Call64,
    /// Calls of 1,000 callers at once, all waiting.
    #[value(name = "call-1000")]
    Call1000,
    /// Looking at jobs and lists while batches come in.
    Read,
    /// Batches, run by 1, 2, 4 and 8 worker processes.
    Scale,
    /// Processes that are started: how soon they are ready.
    Start,
    /// The record deleted, and read anew from the log.
    Rebuild,
    /// Other libraries for jobs, with the same jobs (`--peers`).
    Peers,
    /// How cost grows with queues, backlog, delayed jobs, streams of events and the record; once, and only if asked for
    /// (`--large`).
    Growth,
}

/// Worker processes of the parts of [`Measure::Scale`], and what each is called.
pub(super) const SCALE: [(usize, &str); 4] = [(1, "scale-1"), (2, "scale-2"), (4, "scale-4"), (8, "scale-8")];

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    PerSecond,
    Milliseconds,
    Mebibytes,
    /// Of one processor.
    Percent,
}

impl Unit {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::PerSecond => "/s",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Percent => "%",
        }
    }

    /// A value as people read it.
    pub(super) fn show(self, value: f64) -> String {
        let digits = match self {
            Self::PerSecond => 0,
            Self::Milliseconds | Self::Percent => 2,
            Self::Mebibytes => 1,
        };
        format!("{value:.digits$} {}", self.as_str())
    }
}

use Unit::{Mebibytes, Milliseconds, PerSecond, Percent};

/// Every number: its name, its unit, and what it is.
pub(super) const NUMBERS: &[(&str, Unit, &str)] = &[
    ("raw.publish", PerSecond, "bare lapin: publish + confirm"),
    ("raw.consume", PerSecond, "bare lapin: consume + ack"),
    ("raw.both", PerSecond, "bare lapin: publish and consume at once"),
    ("raw.naive", PerSecond, "bare lapin: publish, consume, one event each way, ack"),
    ("raw.batched", PerSecond, "bare lapin: the same with batched events"),
    ("end-to-end", PerSecond, "Hopline: HTTP batches, run, recorded"),
    ("end-to-end.lag", Milliseconds, "Hopline: from the last run to its record"),
    ("submit-64", PerSecond, "Hopline: POST /v1/jobs, 64 connections, workers draining"),
    ("submit-64.p50", Milliseconds, "its p50"),
    ("submit-64.p99", Milliseconds, "its p99"),
    ("submit-256", PerSecond, "Hopline: POST /v1/jobs, 256 connections, workers draining"),
    ("submit-256.p50", Milliseconds, "its p50"),
    ("submit-256.p99", Milliseconds, "its p99"),
    ("raw.drain", PerSecond, "bare lapin: consume + batched event + ack, all waiting"),
    ("submit-batch", PerSecond, "Hopline: POST /v1/jobs/batch, 500 jobs each, no worker"),
    ("drain", PerSecond, "Hopline: drain by one worker, recorded"),
    ("drain.run", PerSecond, "Hopline: drain by one worker, run"),
    ("raw.call.p50", Milliseconds, "bare lapin: call and reply, p50"),
    ("raw.call.p99", Milliseconds, "bare lapin: call and reply, p99"),
    ("raw.call-events.p50", Milliseconds, "bare lapin: with two confirmed events, p50"),
    ("raw.call-events.p99", Milliseconds, "bare lapin: with two confirmed events, p99"),
    ("call.p50", Milliseconds, "Hopline: POST /v1/rpc, one at a time, p50"),
    ("call.p99", Milliseconds, "Hopline: POST /v1/rpc, one at a time, p99"),
    ("call-64", PerSecond, "Hopline: POST /v1/rpc, 64 callers"),
    ("call-64.p50", Milliseconds, "its p50"),
    ("call-64.p99", Milliseconds, "its p99"),
    ("call-1000", PerSecond, "Hopline: POST /v1/rpc, 1,000 callers"),
    ("call-1000.p50", Milliseconds, "its p50"),
    ("call-1000.p99", Milliseconds, "its p99"),
    ("read.job.p50", Milliseconds, "Hopline: GET /v1/jobs/{id} under load, p50"),
    ("read.job.p99", Milliseconds, "its p99"),
    ("read.list.p50", Milliseconds, "Hopline: GET /v1/jobs, 50 of them, under load, p50"),
    ("read.list.p99", Milliseconds, "its p99"),
    ("scale-1", PerSecond, "Hopline: HTTP batches, run by 1 worker process, recorded"),
    ("scale-2", PerSecond, "Hopline: the same, 2 worker processes"),
    ("scale-4", PerSecond, "Hopline: the same, 4 worker processes"),
    ("scale-8", PerSecond, "Hopline: the same, 8 worker processes"),
    ("start.http", Milliseconds, "Hopline: from the start of `serve` until it is ready"),
    ("start.worker", Milliseconds, "Hopline: from the start of a worker until it is ready"),
    ("rebuild", PerSecond, "Hopline: events, the record rebuilt from the log"),
    ("idle.http.memory", Mebibytes, "Hopline: `serve` with nothing to do, resident"),
    ("idle.http.cpu", Percent, "Hopline: its processor time"),
    ("idle.worker.memory", Mebibytes, "Hopline: a worker with nothing to do, resident"),
    ("idle.worker.cpu", Percent, "Hopline: its processor time"),
    ("celery.submit", PerSecond, "Celery: one program enqueues"),
    ("celery.drain", PerSecond, "Celery: drain by one worker"),
    ("celery.end-to-end", PerSecond, "Celery: enqueued and run"),
    ("celery.call.p50", Milliseconds, "Celery: call and result, p50"),
    ("fastapi.submit", PerSecond, "FastAPI before Celery: POST of a job, 64 connections"),
    ("fastapi.drain", PerSecond, "FastAPI before Celery: drain by one worker"),
    ("fastapi.end-to-end", PerSecond, "FastAPI before Celery: POST of a job, 64 connections, and run"),
    ("dramatiq.submit", PerSecond, "Dramatiq: one program enqueues"),
    ("dramatiq.drain", PerSecond, "Dramatiq: drain by one worker"),
    ("dramatiq.end-to-end", PerSecond, "Dramatiq: enqueued and run"),
    ("dramatiq.call.p50", Milliseconds, "Dramatiq: call and result, p50"),
    ("taskiq.submit", PerSecond, "TaskIQ: one program enqueues"),
    ("taskiq.drain", PerSecond, "TaskIQ: drain by one worker"),
    ("taskiq.end-to-end", PerSecond, "TaskIQ: enqueued and run"),
    ("taskiq.call.p50", Milliseconds, "TaskIQ: call and result, p50"),
    ("apalis.submit", PerSecond, "Apalis: one program enqueues, unconfirmed"),
    ("apalis.drain", PerSecond, "Apalis: drain by one worker"),
    ("apalis.end-to-end", PerSecond, "Apalis: enqueued and run"),
];

/// What a goal demands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// A number, what it is divided by, and what is demanded of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    pub(super) number: &'static str,
    /// `None`: the number itself counts.
    pub(super) of: Option<&'static str>,
    pub(super) bound: Bound,
}

const fn ratio(number: &'static str, of: &'static str, bound: Bound) -> Goal {
    Goal { number, of: Some(of), bound }
}

const fn itself(number: &'static str, bound: Bound) -> Goal {
    Goal { number, of: None, bound }
}

/// What Hopline wants to reach: on two cores, broker and all processes on one machine.
pub(super) const GOALS: &[Goal] = &[
    ratio("end-to-end", "raw.batched", Bound::AtLeast(0.9)),
    ratio("end-to-end", "raw.naive", Bound::AtLeast(1.3)),
    itself("end-to-end.lag", Bound::AtMost(1000.0)),
    ratio("submit-64", "raw.publish", Bound::AtLeast(0.35)),
    itself("submit-64.p99", Bound::AtMost(20.0)),
    ratio("submit-256", "raw.publish", Bound::AtLeast(0.5)),
    itself("submit-256.p99", Bound::AtMost(40.0)),
    ratio("drain", "raw.drain", Bound::AtLeast(0.5)),
    ratio("call.p50", "raw.call.p50", Bound::AtMost(2.0)),
    ratio("call.p99", "raw.call.p99", Bound::AtMost(2.5)),
    itself("call-64.p99", Bound::AtMost(30.0)),
    itself("read.job.p99", Bound::AtMost(5.0)),
    itself("read.list.p99", Bound::AtMost(50.0)),
    itself("start.http", Bound::AtMost(300.0)),
    itself("start.worker", Bound::AtMost(300.0)),
    itself("rebuild", Bound::AtLeast(100_000.0)),
    itself("idle.http.memory", Bound::AtMost(30.0)),
    itself("idle.http.cpu", Bound::AtMost(0.5)),
    itself("idle.worker.memory", Bound::AtMost(30.0)),
    itself("idle.worker.cpu", Bound::AtMost(0.5)),
    ratio("submit-batch", "celery.submit", Bound::AtLeast(10.0)),
    ratio("end-to-end", "celery.end-to-end", Bound::AtLeast(10.0)),
    ratio("submit-batch", "dramatiq.submit", Bound::AtLeast(5.0)),
    ratio("end-to-end", "dramatiq.end-to-end", Bound::AtLeast(5.0)),
    ratio("submit-batch", "taskiq.submit", Bound::AtLeast(5.0)),
    ratio("end-to-end", "taskiq.end-to-end", Bound::AtLeast(5.0)),
];

impl Goal {
    /// What was measured, and whether that is enough; `None`: it was not measured.
    pub(super) fn judge(&self, samples: &Samples) -> Option<(f64, bool)> {
        let number = samples.median(self.number)?;
        let value = match self.of {
            Some(of) => number / samples.median(of)?,
            None => number,
        };
        Some((value, self.bound.is_met(value)))
    }
}

/// The unit of a number and what it is.
pub(super) fn number(name: &str) -> Option<(Unit, &'static str)> {
    NUMBERS.iter().find(|(other, ..)| *other == name).map(|(_, unit, title)| (*unit, *title))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn goals_are_about_numbers_and_names_are_unique() {
        let names: BTreeSet<&str> = NUMBERS.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names.len(), NUMBERS.len());
        for goal in GOALS {
            assert!(names.contains(goal.number), "{}", goal.number);
            let of = goal.of.and_then(number);
            // A ratio of two units would mean nothing.
            assert!(
                goal.of.is_none() || of.map(|(unit, _)| unit) == number(goal.number).map(|(unit, _)| unit)
            );
        }
    }

    #[test]
    fn every_part_of_the_scale_is_a_number() {
        assert!(SCALE.iter().all(|(_, name)| number(name).is_some()));
    }

    #[test]
    fn goals_are_judged_by_medians() {
        let mut samples = Samples::default();
        for (name, values) in
            [("drain", [4.0, 6.0, 5.0]), ("raw.drain", [10.0, 8.0, 12.0]), ("call-64.p99", [31.0; 3])]
        {
            values.into_iter().for_each(|value| samples.add(name, value));
        }
        for (goal, expected) in [
            (ratio("drain", "raw.drain", Bound::AtLeast(0.5)), Some((0.5, true))),
            (ratio("drain", "raw.drain", Bound::AtLeast(0.51)), Some((0.5, false))),
            (ratio("drain", "raw.publish", Bound::AtLeast(0.5)), None),
            (itself("call-64.p99", Bound::AtMost(30.0)), Some((31.0, false))),
            (itself("call-64.p99", Bound::AtMost(31.0)), Some((31.0, true))),
            (itself("call.p99", Bound::AtMost(1.0)), None),
        ] {
            assert_eq!(goal.judge(&samples), expected, "{goal:?}");
        }
    }
}
