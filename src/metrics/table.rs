//! Every metric there is: its name, type, labels and meaning. `docs/metrics.md` has the same table, and a test compares
//! them.
//!
//! Names are Prometheus's: `hopline_`, what is measured, its unit (seconds, bytes), and `_total` for what only grows.

/// A metric as it is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

/// How a metric's values behave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// Only grows, until the process ends.
    Counter,
    /// As it is now.
    Gauge,
    /// How many were at most so large, for each of these bounds.
    Histogram(&'static [f64]),
}

/// Seconds of what a broker or a disk answers to.
const QUICK: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Seconds of jobs: from milliseconds to the longest attempts that a broker's consumer timeout allows.
const JOBS: &[f64] =
    &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0];

macro_rules! metrics {
    ($($id:ident = $name:literal, $form:expr, [$($label:literal),*], $help:literal;)*) => {
        $(pub(crate) const $id: Metric =
            Metric { name: $name, form: $form, labels: &[$($label),*], help: $help };)*
        #[cfg(test)]
        pub(super) const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    BUILD = "hopline_build_info", Form::Gauge, ["version"], "1, and the version of this process.";
    BROKER_UP = "hopline_broker_up", Form::Gauge, [],
        "Whether this process has a connection to the broker that it can publish on.";
    BROKER_BLOCKED = "hopline_broker_blocked", Form::Gauge, [],
        "Whether a memory or disk alarm of the broker keeps this process from publishing.";
    CONNECTION_UP = "hopline_connection_up", Form::Gauge, ["role", "connection"],
        "Whether this connection to the broker is there.";
    RECONNECTS = "hopline_reconnects_total", Form::Counter, ["role", "connection"],
        "How often this connection to the broker was made again.";
    PUBLISHES = "hopline_publishes_total", Form::Counter, ["traffic", "result"],
        "Messages that were written to the broker, by what they carried and what it said to them.";
    PUBLISH_DURATION = "hopline_publish_duration_seconds", Form::Histogram(QUICK), ["traffic"],
        "Time from handing a message over to the broker's confirm, of those that it confirmed.";
    SETTLED = "hopline_jobs_settled_total", Form::Counter, ["queue", "kind", "result"],
        "Deliveries of jobs by what became of them.";
    ATTEMPTS = "hopline_attempts_total", Form::Counter, ["queue", "kind", "outcome"],
        "Attempts that ended, by how.";
    ATTEMPT_DURATION = "hopline_attempt_duration_seconds", Form::Histogram(JOBS), ["queue", "kind"],
        "How long attempts took that ended.";
    WAIT = "hopline_job_wait_seconds", Form::Histogram(JOBS), ["queue", "kind"],
        "Time from when a job was due to the start of its attempt.";
}

/// What a worker says of its queues.
#[cfg(feature = "worker")]
pub(crate) mod worker {
    use super::{Form, Metric};

    metrics! {
        RUNNING = "hopline_worker_jobs_running", Form::Gauge, ["queue"], "Attempts that run in this worker.";
        WAITING = "hopline_worker_jobs_waiting", Form::Gauge, ["queue"],
            "Jobs that this worker has taken ahead and not started.";
        CONCURRENCY = "hopline_worker_concurrency", Form::Gauge, ["queue"],
            "Attempts that this worker runs at the same time.";
        CONSUMING = "hopline_worker_consuming", Form::Gauge, ["queue"],
            "Whether this worker has a consumer on a live channel.";
        PAUSED = "hopline_worker_paused", Form::Gauge, ["queue"],
            "Whether this worker knows that the queue is paused.";
    }
}

/// What an HTTP process says besides.
#[cfg(feature = "server")]
pub(crate) mod http {
    use super::{Form, Metric, QUICK};

    metrics! {
        REQUESTS = "hopline_http_requests_total", Form::Counter, ["method", "route", "status"],
            "HTTP requests that were answered.";
        REQUEST_DURATION = "hopline_http_request_duration_seconds", Form::Histogram(QUICK), ["method", "route"],
            "Time from a request's head to the head of its answer, waits included.";
        SUBMITTED = "hopline_http_jobs_submitted_total", Form::Counter, ["kind", "result"],
            "Jobs that this process was asked to submit, by what became of that.";
        WAITERS = "hopline_http_waiters", Form::Gauge, [], "Callers that wait for the end of a job.";
        WAITERS_MAX = "hopline_http_waiters_max", Form::Gauge, [], "Most callers that may wait (http.max_waiters).";
        STREAMS = "hopline_http_event_streams", Form::Gauge, [], "Event streams that are open.";
        STREAMS_MAX = "hopline_http_event_streams_max", Form::Gauge, [],
            "Most event streams that may be open (http.max_streams).";
        IN_FLIGHT = "hopline_http_submits_in_flight", Form::Gauge, [], "Requests whose job awaits its confirm.";
        RECORD_LAG = "hopline_record_lag_seconds", Form::Gauge, [],
            "How far this process's record is behind the event log.";
        RECORD_CAUGHT_UP = "hopline_record_caught_up", Form::Gauge, [],
            "Whether this process's record has all that was in the event log when it began to read.";
        SPOOL_JOBS = "hopline_spool_jobs", Form::Gauge, [], "Accepted jobs that wait in this process's spool.";
        SPOOL_JOBS_MAX = "hopline_spool_jobs_max", Form::Gauge, [], "Most jobs in the spool (spool.max_jobs).";
        SPOOL_BYTES = "hopline_spool_bytes", Form::Gauge, [], "Bytes of the jobs in the spool.";
        SPOOL_BYTES_MAX = "hopline_spool_bytes_max", Form::Gauge, [], "Most bytes in the spool (spool.max_bytes).";
        SPOOL_OLDEST = "hopline_spool_oldest_age_seconds", Form::Gauge, [],
            "Age of the job that is forwarded next; 0 if the spool is empty.";
        SPOOL_TAKEN = "hopline_spool_taken_total", Form::Counter, [], "Jobs that the spool took.";
        SPOOL_FORWARDED = "hopline_spool_forwarded_total", Form::Counter, [],
            "Jobs that were forwarded to the broker and have left the spool.";
        SPOOL_REFUSED = "hopline_spool_refused_total", Form::Counter, [],
            "Jobs that the spool did not take: it was full, or its disk failed.";
        QUEUE_READY = "hopline_queue_jobs_ready", Form::Gauge, ["queue"],
            "Messages in the queue that no worker has taken, as the broker says.";
        QUEUE_CONSUMERS = "hopline_queue_consumers", Form::Gauge, ["queue"],
            "Consumers of the queue, as the broker says.";
        QUEUE_LATENCY = "hopline_queue_latency_seconds", Form::Gauge, ["queue"],
            "How long the job has been ready that has waited longest; 0 if none waits.";
        QUEUE_JOBS = "hopline_queue_jobs", Form::Gauge, ["queue", "status"],
            "Jobs of the queue in this state, as the record has them.";
        QUEUE_WORKERS = "hopline_queue_workers", Form::Gauge, ["queue"],
            "Workers that take from the queue, by their heartbeats.";
        QUEUE_PAUSED = "hopline_queue_paused", Form::Gauge, ["queue"], "Whether the queue is paused.";
        WORKERS = "hopline_workers", Form::Gauge, [], "Workers that are alive, by their heartbeats.";
        CLUSTER_COMPLETE = "hopline_cluster_view_complete", Form::Gauge, [],
            "Whether this answer has what the broker and the record say of all queues.";
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const DOCS: &str = include_str!("../../docs/metrics.md");

    fn all() -> Vec<Metric> {
        [ALL, worker::ALL, http::ALL].concat()
    }

    fn type_name(form: Form) -> &'static str {
        match form {
            Form::Counter => "counter",
            Form::Gauge => "gauge",
            Form::Histogram(_) => "histogram",
        }
    }

    #[test]
    fn the_documentation_has_exactly_these_metrics() {
        let rows = DOCS.lines().filter(|line| line.starts_with("| `hopline_"));
        let shown: Vec<String> = rows
            .map(|row| {
                let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
                let [name, form, labels, processes, meaning] = cells[..] else {
                    panic!("not five cells: {row}")
                };
                assert!(!meaning.is_empty() && ["all", "http", "worker"].contains(&processes), "{row}");
                format!("{name} {form} {labels}")
            })
            .collect();
        let expected: Vec<String> = all()
            .iter()
            .map(|metric| {
                let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
                let line = format!("`{}` {} {}", metric.name, type_name(metric.form), labels.join(", "));
                line.trim_end().to_owned()
            })
            .collect();
        let set =
            |lines: &[String]| lines.iter().map(|line| line.trim_end().to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(set(&shown), set(&expected));
        assert_eq!(shown.len(), expected.len(), "each once");
    }

    /// What `promtool check metrics` says of names, as far as it can be said of a table.
    #[test]
    fn names_follow_the_conventions() {
        for Metric { name, form, labels, help } in all() {
            let word = |text: &str| {
                !text.is_empty()
                    && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            };
            assert!(name.starts_with("hopline_") && name.split('_').all(word), "{name}");
            assert_eq!(form == Form::Counter, name.ends_with("_total"), "{name}: only counters are totals");
            for reserved in ["_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(reserved), "{name}: a suffix of histograms");
            }
            // Base units, never a part or a multiple of them, and no name of a type.
            for wrong in
                ["ms", "milliseconds", "minutes", "hours", "kib", "mib", "kilobytes", "percent", "gauge"]
            {
                assert!(!name.split('_').any(|part| part == wrong), "{name}: {wrong}");
            }
            if let Form::Histogram(bounds) = form {
                assert!(name.ends_with("_seconds"), "{name}: all histograms are of time");
                assert!(bounds.is_sorted() && bounds.iter().all(|bound| *bound > 0.0), "{name}");
            }
            assert!(labels.iter().all(|label| label.split('_').all(word) && *label != "le"), "{name}");
            let whole = help.ends_with('.') && help.starts_with(|c: char| c.is_ascii_uppercase() || c == '1');
            assert!(whole && !help.contains('\n'), "{name}: {help}");
        }
    }

    #[test]
    fn what_is_shipped_for_prometheus_and_grafana_names_metrics_that_exist() {
        let known: BTreeSet<&str> = all().iter().map(|metric| metric.name).collect();
        for (file, text) in [
            ("alerts.yml", include_str!("../../config/prometheus/alerts.yml")),
            ("hopline.json", include_str!("../../config/grafana/hopline.json")),
        ] {
            let mut found = 0;
            for (at, _) in text.match_indices("hopline_") {
                let rest = &text[at..];
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
                let name = &rest[..end];
                let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                assert!(
                    known.contains(name) || histogram.is_some_and(|name| known.contains(name)),
                    "{file}: {name}"
                );
                found += 1;
            }
            assert!(found > 10, "{file}");
        }
    }
}
