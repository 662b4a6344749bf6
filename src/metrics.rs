//! Metrics: what a process counts, and the text in which Prometheus reads it (`docs/metrics.md`).
//!
//! Each client has its own [`Metrics`], and so has each process: nothing is global, so several fronts and workers in one
//! program do not mix. What happens often holds the handle of its counter; what is labelled by a job's queue and kind
//! looks it up in a map, under a lock that writers take only for a new pair of labels. What is a state, not an event, is
//! looked up when it is asked for, into a [`Snapshot`] of that moment.
//!
//! Labels are bounded: queues and kinds are those that this process has handlers for, or at most so many
//! ([`Bounded`]); all others are [`OTHER`].

pub(crate) mod table;

#[cfg(feature = "server")]
use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
};
use std::{sync::Arc, time::Duration};

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector, proto::MetricFamily,
};

use self::table::{Form, Metric};

/// The content type of [`text`].
#[cfg(feature = "worker")]
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The label's value for whatever is not named.
pub(crate) const OTHER: &str = "other";

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The run ended well.
    Succeeded,
    /// The attempt failed, and there is a next one.
    Retried,
    /// The attempt asked to be made again later.
    Snoozed,
    /// The run ended dead.
    Dead,
    /// The run ended before it could start.
    Expired,
    /// Somebody ended the run.
    Cancelled,
    /// Nothing is known; the queue has it again.
    HandedBack,
    /// Its run had ended or gone on already.
    Repeat,
}

impl Settlement {
    pub(crate) const ALL: [Self; 8] = [
        Self::Succeeded,
        Self::Retried,
        Self::Snoozed,
        Self::Dead,
        Self::Expired,
        Self::Cancelled,
        Self::HandedBack,
        Self::Repeat,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Retried => "retried",
            Self::Snoozed => "snoozed",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::HandedBack => "handed_back",
            Self::Repeat => "repeat",
        }
    }
}

/// What the broker said to a message that was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// It has it.
    Confirmed,
    /// No queue took it.
    Unroutable,
    /// It did not take it.
    Refused,
    /// Nothing: the connection or the channel ended before.
    Lost,
}

impl Published {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Confirmed, "confirmed"),
        (Self::Unroutable, "unroutable"),
        (Self::Refused, "refused"),
        (Self::Lost, "lost"),
    ];
}

/// What a process counts; cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    broker_up: GaugeVec,
    broker_blocked: GaugeVec,
    connection_up: IntGaugeVec,
    reconnects: IntCounterVec,
    publishes: IntCounterVec,
    publish_duration: HistogramVec,
    settled: IntCounterVec,
    attempts: IntCounterVec,
    attempt_duration: HistogramVec,
    wait: HistogramVec,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let inner = Inner {
            broker_up: gauges(&registry, &table::BROKER_UP),
            broker_blocked: gauges(&registry, &table::BROKER_BLOCKED),
            connection_up: registered(
                &registry,
                IntGaugeVec::new(opts(&table::CONNECTION_UP), table::CONNECTION_UP.labels),
            ),
            reconnects: counters(&registry, &table::RECONNECTS),
            publishes: counters(&registry, &table::PUBLISHES),
            publish_duration: histograms(&registry, &table::PUBLISH_DURATION),
            settled: counters(&registry, &table::SETTLED),
            attempts: counters(&registry, &table::ATTEMPTS),
            attempt_duration: histograms(&registry, &table::ATTEMPT_DURATION),
            wait: histograms(&registry, &table::WAIT),
            registry,
        };
        gauges(&inner.registry, &table::BUILD).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        Self(Arc::new(inner))
    }

    /// The metrics of one connection, of a process in this role.
    pub(crate) fn connection(&self, role: &str, purpose: &str) -> ConnectionMetrics {
        ConnectionMetrics {
            up: self.0.connection_up.with_label_values(&[role, purpose]),
            reconnects: self.0.reconnects.with_label_values(&[role, purpose]),
        }
    }

    /// The metrics of a channel that publishes.
    pub(crate) fn channel(&self, traffic: &str) -> ChannelMetrics {
        let result = |(_, name)| self.0.publishes.with_label_values(&[traffic, name]);
        ChannelMetrics {
            results: Published::ALL.map(result),
            duration: self.0.publish_duration.with_label_values(&[traffic]),
        }
    }

    /// Says that jobs of this kind are run from this queue, so that their counters begin at 0 and not at the first of
    /// them, which Prometheus would not see.
    pub(crate) fn expect(&self, queue: &str, kind: &str, outcomes: &[&str]) {
        for what in Settlement::ALL {
            self.0.settled.with_label_values(&[queue, kind, what.as_str()]);
        }
        for outcome in outcomes {
            self.0.attempts.with_label_values(&[queue, kind, outcome]);
        }
        self.0.attempt_duration.with_label_values(&[queue, kind]);
        self.0.wait.with_label_values(&[queue, kind]);
    }

    /// A delivery has been settled. The kind must be one of a bounded set.
    pub(crate) fn settled(&self, queue: &str, kind: &str, what: Settlement) {
        self.0.settled.with_label_values(&[queue, kind, what.as_str()]).inc();
    }

    /// An attempt starts, so long after its job was due.
    pub(crate) fn waited(&self, queue: &str, kind: &str, wait: Duration) {
        self.0.wait.with_label_values(&[queue, kind]).observe(wait.as_secs_f64());
    }

    /// An attempt has ended.
    pub(crate) fn attempted(&self, queue: &str, kind: &str, outcome: &str, took: Duration) {
        self.0.attempts.with_label_values(&[queue, kind, outcome]).inc();
        self.0.attempt_duration.with_label_values(&[queue, kind]).observe(took.as_secs_f64());
    }

    /// All that was counted, with how the broker stands now.
    pub(crate) fn families(&self, broker_up: bool, broker_blocked: bool) -> Vec<MetricFamily> {
        self.0.broker_up.with_label_values::<&str>(&[]).set(f64::from(u8::from(broker_up)));
        self.0.broker_blocked.with_label_values::<&str>(&[]).set(f64::from(u8::from(broker_blocked)));
        self.0.registry.gather()
    }
}

/// One connection's.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionMetrics {
    up: IntGauge,
    reconnects: IntCounter,
}

impl ConnectionMetrics {
    /// It is there; `again`: not for the first time.
    pub(crate) fn made(&self, again: bool) {
        self.up.set(1);
        if again {
            self.reconnects.inc();
        }
    }

    pub(crate) fn lost(&self) {
        self.up.set(0);
    }
}

/// One publishing channel's.
#[derive(Debug, Clone)]
pub(crate) struct ChannelMetrics {
    /// In the order of [`Published::ALL`].
    results: [IntCounter; Published::ALL.len()],
    duration: Histogram,
}

impl ChannelMetrics {
    /// The broker answered, or will not any more, so long after the message was handed over.
    pub(crate) fn answered(&self, result: Published, after: Duration) {
        self.results[result as usize].inc();
        if result == Published::Confirmed {
            self.duration.observe(after.as_secs_f64());
        }
    }
}

/// Values of one moment, to be shown with what is counted.
#[cfg(feature = "worker")]
#[derive(Default)]
pub(crate) struct Snapshot(Registry);

#[cfg(feature = "worker")]
impl Snapshot {
    /// A gauge, by its labels. Each metric once.
    pub(crate) fn gauge(&self, metric: &Metric) -> GaugeVec {
        gauges(&self.0, metric)
    }

    /// A gauge without labels.
    #[cfg(feature = "server")]
    pub(crate) fn set(&self, metric: &Metric, value: f64) {
        self.gauge(metric).with_label_values::<&str>(&[]).set(value);
    }

    /// A counter without labels, counted elsewhere.
    #[cfg(feature = "server")]
    pub(crate) fn count(&self, metric: &Metric, value: u64) {
        counters(&self.0, metric).with_label_values::<&str>(&[]).inc_by(value);
    }

    pub(crate) fn families(&self) -> Vec<MetricFamily> {
        self.0.gather()
    }
}

/// Names that may be labels: the first so many that come, all others are [`OTHER`].
#[cfg(feature = "server")]
#[derive(Debug)]
pub(crate) struct Bounded {
    most: usize,
    names: RwLock<HashSet<String>>,
}

#[cfg(feature = "server")]
impl Bounded {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, names: RwLock::default() }
    }

    /// The label for this name.
    pub(crate) fn label<'a>(&self, name: &'a str) -> &'a str {
        // A set is whole after every statement, here and below.
        let known = |names: &HashSet<String>| (names.contains(name), names.len() >= self.most);
        match known(&self.names.read().unwrap_or_else(PoisonError::into_inner)) {
            (true, _) => return name,
            (false, true) => return OTHER,
            (false, false) => {}
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        match known(&names) {
            (false, true) => OTHER,
            (true, _) => name,
            (false, false) => {
                names.insert(name.to_owned());
                name
            }
        }
    }
}

fn opts(metric: &Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}

/// Counters of this metric, in `registry`.
pub(crate) fn counters(registry: &Registry, metric: &Metric) -> IntCounterVec {
    debug_assert_eq!(metric.form, Form::Counter, "{}", metric.name);
    registered(registry, IntCounterVec::new(opts(metric), metric.labels))
}

/// Gauges of this metric, in `registry`.
fn gauges(registry: &Registry, metric: &Metric) -> GaugeVec {
    debug_assert_eq!(metric.form, Form::Gauge, "{}", metric.name);
    registered(registry, GaugeVec::new(opts(metric), metric.labels))
}

/// Histograms of this metric, in `registry`.
pub(crate) fn histograms(registry: &Registry, metric: &Metric) -> HistogramVec {
    let Form::Histogram(bounds) = metric.form else { unreachable!("{} is no histogram", metric.name) };
    let opts = HistogramOpts::new(metric.name, metric.help).buckets(bounds.to_vec());
    registered(registry, HistogramVec::new(opts, metric.labels))
}

fn registered<T: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<T>) -> T {
    // The names are literals of `table`, which a test renders, and each registry gets each of them once.
    let metric = metric.expect("a name within the rules");
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

/// Families as Prometheus reads them, in the order of their names.
pub(crate) fn text(mut families: Vec<MetricFamily>) -> String {
    families.sort_by(|a, b| a.name().cmp(b.name()));
    // It refuses families without a name or a value: there are none.
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: &Metrics) -> String {
        text(metrics.families(true, false))
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "no line {line} in:\n{text}");
    }

    #[test]
    fn what_happened_is_shown() {
        let metrics = Metrics::new();
        metrics.expect("media", "image.thumbnail", &["succeeded", "failed"]);
        metrics.settled("media", "image.thumbnail", Settlement::Succeeded);
        metrics.settled("media", OTHER, Settlement::Dead);
        metrics.waited("media", "image.thumbnail", Duration::from_millis(30));
        metrics.attempted("media", "image.thumbnail", "succeeded", Duration::from_secs(2));
        let connection = metrics.connection("worker", "publish");
        connection.made(false);
        connection.lost();
        connection.made(true);
        let channel = metrics.channel("jobs");
        channel.answered(Published::Confirmed, Duration::from_millis(2));
        channel.answered(Published::Lost, Duration::from_secs(9));
        let text = shown(&metrics);
        for line in [
            "# TYPE hopline_jobs_settled_total counter",
            "# HELP hopline_jobs_settled_total Deliveries of jobs by what became of them.",
            r#"hopline_jobs_settled_total{kind="image.thumbnail",queue="media",result="succeeded"} 1"#,
            r#"hopline_jobs_settled_total{kind="image.thumbnail",queue="media",result="retried"} 0"#,
            r#"hopline_jobs_settled_total{kind="other",queue="media",result="dead"} 1"#,
            r#"hopline_attempts_total{kind="image.thumbnail",outcome="failed",queue="media"} 0"#,
            r#"hopline_attempts_total{kind="image.thumbnail",outcome="succeeded",queue="media"} 1"#,
            r#"hopline_attempt_duration_seconds_bucket{kind="image.thumbnail",queue="media",le="1"} 0"#,
            r#"hopline_attempt_duration_seconds_bucket{kind="image.thumbnail",queue="media",le="2.5"} 1"#,
            r#"hopline_attempt_duration_seconds_bucket{kind="image.thumbnail",queue="media",le="+Inf"} 1"#,
            r#"hopline_attempt_duration_seconds_sum{kind="image.thumbnail",queue="media"} 2"#,
            r#"hopline_job_wait_seconds_count{kind="image.thumbnail",queue="media"} 1"#,
            r#"hopline_connection_up{connection="publish",role="worker"} 1"#,
            r#"hopline_reconnects_total{connection="publish",role="worker"} 1"#,
            r#"hopline_publishes_total{result="confirmed",traffic="jobs"} 1"#,
            r#"hopline_publishes_total{result="lost",traffic="jobs"} 1"#,
            r#"hopline_publishes_total{result="refused",traffic="jobs"} 0"#,
            r#"hopline_publish_duration_seconds_count{traffic="jobs"} 1"#,
            "hopline_broker_up 1",
            "hopline_broker_blocked 0",
        ] {
            has(&text, line);
        }
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn each_client_counts_by_itself() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.settled("q", "k", Settlement::Repeat);
        assert!(!shown(&other).contains("hopline_jobs_settled_total{"));
        assert_eq!(text(one.families(false, true)).matches("repeat").count(), 1);
        has(&text(one.families(false, true)), "hopline_broker_up 0");
        has(&text(one.families(false, true)), "hopline_broker_blocked 1");
    }

    #[test]
    fn results_are_in_their_order() {
        for (place, (result, _)) in Published::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place);
        }
        for (place, what) in Settlement::ALL.into_iter().enumerate() {
            assert_eq!(what as usize, place, "{}", what.as_str());
        }
    }

    #[cfg(feature = "server")]
    #[test]
    fn names_that_clients_choose_are_bounded() {
        let names = Bounded::new(2);
        for (name, label) in [("a", "a"), ("b", "b"), ("c", OTHER), ("a", "a"), ("d", OTHER), ("b", "b")] {
            assert_eq!(names.label(name), label, "{name}");
        }
        assert_eq!(names.names.read().unwrap().len(), 2);
        let nothing = Bounded::new(0);
        assert_eq!(nothing.label("a"), OTHER);
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_snapshot_is_shown_with_what_is_counted() {
        let snapshot = Snapshot::default();
        snapshot.gauge(&table::http::QUEUE_READY).with_label_values(&["media"]).set(3.0);
        snapshot.set(&table::http::WAITERS, 4.0);
        snapshot.count(&table::http::SPOOL_FORWARDED, 5);
        let mut families = Metrics::new().families(true, false);
        families.extend(snapshot.families());
        let text = text(families);
        for line in [
            r#"hopline_queue_jobs_ready{queue="media"} 3"#,
            "hopline_http_waiters 4",
            "hopline_spool_forwarded_total 5",
            "# TYPE hopline_spool_forwarded_total counter",
        ] {
            has(&text, line);
        }
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(names.is_sorted(), "{names:?}");
    }
}
