//! `GET /metrics`, of fronts and of workers: the counters say exactly what happened, the text is what Prometheus reads, and
//! an answer comes in time whatever the broker does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Write},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use hopline::Config;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    broker::{Broker, Way},
    eventually,
    front::{Answer, Front},
    probe::quick,
    process::say,
    stage::stage,
};

/// How long Prometheus waits for a scrape, unless told otherwise.
const SCRAPE: Duration = Duration::from_secs(10);

/// What a process shows.
#[derive(Debug)]
struct Shown(String);

impl Shown {
    fn of(answer: Answer) -> Self {
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, "text/plain; version=0.0.4; charset=utf-8")
        );
        Self(answer.text)
    }

    async fn by(front: &Front) -> Self {
        Self::of(timeout(SCRAPE, front.get("/metrics")).await.expect("within the time of a scrape"))
    }

    async fn by_worker(address: SocketAddr) -> Option<Self> {
        let answer = reqwest::get(format!("http://{address}/metrics")).await.ok()?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Some(Self::of(Answer { status, headers, text: answer.text().await.ok()? }))
    }

    /// Each sample: its name, its labels and its value.
    fn samples(&self) -> impl Iterator<Item = (&str, BTreeMap<&str, &str>, f64)> {
        self.0.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (what, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) =
                what.strip_suffix('}').map_or((what, ""), |what| what.split_once('{').expect("labels"));
            // No label of these tests has a quote or a comma in it.
            let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
                let (name, value) = label.split_once('=').expect("a label");
                (name, value.trim_matches('"'))
            });
            (name, labels.collect(), value.parse().expect("a number"))
        })
    }

    /// The sum of the samples of this name that have these labels; none where there are none.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits =
            |found: &BTreeMap<&str, &str>| labels.iter().all(|(name, value)| found.get(name) == Some(value));
        let values = self.samples().filter(|(found, labels, _)| *found == name && fits(labels));
        values.map(|(.., value)| value).reduce(|sum, value| sum + value)
    }

    /// A whole number, 0 where there is none.
    fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum = self.sum(name, labels).unwrap_or_default();
        assert_eq!(sum.fract(), 0.0, "{name}");
        format!("{sum}").parse().expect("a count")
    }

    /// All counters of this name, by one of their labels, without those that are 0.
    fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let values: BTreeSet<&str> = self
            .samples()
            .filter(|(found, ..)| *found == name)
            .filter_map(|(_, labels, _)| labels.get(label).copied())
            .collect();
        let counts = values.into_iter().map(|value| (value.to_owned(), self.count(name, &[(label, value)])));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Checks that this is what Prometheus reads: by our own rules, and by `promtool` where it is installed.
    fn check(&self, process: &str) {
        let documented = documented();
        let mut helped = BTreeSet::new();
        let mut types = BTreeMap::new();
        for line in self.0.lines() {
            if let Some(line) = line.strip_prefix("# HELP ") {
                let (name, help) = line.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && helped.insert(name), "{name}: helped once");
            } else if let Some(line) = line.strip_prefix("# TYPE ") {
                let (name, form) = line.split_once(' ').expect("a type");
                assert!(types.insert(name, form).is_none(), "{name}: declared once");
                let (documented, processes) =
                    documented.get(name).unwrap_or_else(|| panic!("{name} is not documented"));
                assert_eq!(form, documented, "{name}");
                assert!(["all", process].contains(&processes.as_str()), "{name} is shown by {process}");
            }
        }
        let mut series = BTreeSet::new();
        for (name, labels, value) in self.samples() {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|name| types.get(name) == Some(&"histogram")))
                .unwrap_or(name);
            assert!(helped.contains(family) && types.contains_key(family), "{name}: no HELP or no TYPE");
            assert!(value.is_finite() && value >= 0.0, "{name}: {value}");
            assert!(series.insert((name.to_owned(), format!("{labels:?}"))), "{name} {labels:?}: twice");
        }
        assert!(series.len() > 20 && self.0.ends_with('\n'), "{}", self.0);
        promtool(&["check", "metrics"], &self.0);
    }
}

/// Each metric of `docs/metrics.md`, with its type and the processes that have it.
fn documented() -> BTreeMap<String, (String, String)> {
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `hopline_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), cells[3].to_owned()))
    })
    .collect()
}

/// Runs `promtool`, where it is installed; it must have nothing to say against its input.
fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            say(format_args!("not checked: promtool is not installed (Debian: prometheus)"));
            return;
        }
        child => child.expect("it starts"),
    };
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}\n{input}");
}

fn away(config: &Config) -> Config {
    let mut config = config.clone();
    // Nothing listens on port 1.
    config.amqp.url = serde_json::from_value(json!("amqp://127.0.0.1:1")).expect("an address");
    config
}

fn free_address() -> SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    free.expect("a free port")
}

fn counts<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(name, count)| (name.to_owned(), count)).into()
}

#[tokio::test]
async fn the_counters_say_exactly_what_became_of_jobs() {
    stage(async |stage| {
        let address = free_address();
        let mut config = stage.config.clone();
        config.worker.health = Some(address);
        config.worker.patience = 0;
        let (worker, mut log) = stage.probes_with(&config, quick());
        let front = stage.front().await;
        let shown = async || eventually("the worker answers", async || Shown::by_worker(address).await).await;
        let queue = stage.queue.as_str();
        let at_start = shown().await;
        for result in
            ["succeeded", "retried", "snoozed", "dead", "expired", "cancelled", "handed_back", "repeat"]
        {
            let labels = [("queue", queue), ("kind", "test.probe"), ("result", result)];
            assert_eq!(
                at_start.sum("hopline_jobs_settled_total", &labels),
                Some(0.0),
                "{result} begins at 0"
            );
        }

        let probe = |script: &str, more: &str| {
            format!(r#"{{"kind":"test.probe","args":{{"script":{script}}}{more}}}"#)
        };
        let bodies = [
            (4, probe(r#"["ok"]"#, "")),
            (3, probe(r#"["fail","ok"]"#, "")),
            (2, probe(r#"["fatal"]"#, "")),
            (1, probe(r#"["fail"]"#, r#","max_attempts":2"#)),
            (1, probe(r#"[{"snooze":100},"ok"]"#, "")),
            (1, probe(r#"["panic","ok"]"#, r#","delay":"200ms""#)),
            (1, probe(r#"["hang"]"#, r#","timeout":"100ms","max_attempts":1"#)),
            (1, format!(r#"{{"kind":"test.stranger","queue":"{queue}"}}"#)),
        ];
        let mut jobs = Vec::new();
        for (times, body) in bodies {
            for _ in 0..times {
                jobs.push(front.submit(body.clone()).await);
            }
        }
        for id in &jobs {
            front.settled(id).await;
        }
        let starts = log.take(19).await.len();
        assert!(log.rest().is_empty());

        // Counted when it is done, which is after everybody was told.
        let settled = counts([("succeeded", 9), ("retried", 5), ("snoozed", 1), ("dead", 5)]);
        let shown = eventually("all is counted", async || {
            let shown = shown().await;
            (shown.by_label("hopline_jobs_settled_total", "result") == settled).then_some(shown)
        })
        .await;
        assert_eq!(
            shown.by_label("hopline_jobs_settled_total", "kind"),
            counts([("test.probe", 19), ("other", 1)]),
            "what no handler is for is no label"
        );
        let outcomes = [
            ("succeeded", 9),
            ("failed", 5),
            ("fatal", 2),
            ("snoozed", 1),
            ("panicked", 1),
            ("timed_out", 1),
        ];
        assert_eq!(shown.by_label("hopline_attempts_total", "outcome"), counts(outcomes));
        for histogram in ["hopline_attempt_duration_seconds_count", "hopline_job_wait_seconds_count"] {
            assert_eq!(shown.by_label(histogram, "kind"), counts([("test.probe", 19)]), "{histogram}");
        }
        assert_eq!(starts, 19, "every start was an attempt");
        for (name, value) in [
            ("hopline_worker_jobs_running", 0),
            ("hopline_worker_jobs_waiting", 0),
            ("hopline_worker_concurrency", 10),
            ("hopline_worker_consuming", 1),
            ("hopline_worker_paused", 0),
        ] {
            assert_eq!(shown.count(name, &[("queue", queue)]), value, "{name}");
        }
        assert_eq!(shown.count("hopline_broker_up", &[]), 1);
        // Retries, and the copies in the dead-letter queue.
        let confirmed = [("traffic", "jobs"), ("result", "confirmed")];
        assert!(shown.count("hopline_publishes_total", &confirmed) >= 11, "{}", shown.0);
        shown.check("worker");

        let shown = eventually("the front's record has all ends", async || {
            let shown = Shown::by(&front).await;
            let dead = shown.count("hopline_queue_jobs", &[("queue", queue), ("status", "dead")]);
            (dead == 5 && shown.count("hopline_workers", &[]) == 1).then_some(shown)
        })
        .await;
        let submitted = "hopline_http_jobs_submitted_total";
        for (kind, count) in [("test.probe", 13), ("other", 1)] {
            // A busy broker may have refused some more.
            assert_eq!(shown.count(submitted, &[("kind", kind), ("result", "accepted")]), count, "{kind}");
        }
        for (name, value) in [
            ("hopline_queue_jobs_ready", 0),
            ("hopline_queue_consumers", 1),
            ("hopline_queue_latency_seconds", 0),
            ("hopline_queue_workers", 1),
        ] {
            assert_eq!(shown.count(name, &[("queue", queue)]), value, "{name}");
        }
        assert_eq!(shown.count("hopline_cluster_view_complete", &[]), 1);
        assert!(shown.sum("hopline_record_lag_seconds", &[]).is_some());
        let requests = [("method", "POST"), ("route", "/v1/jobs"), ("status", "202")];
        assert_eq!(shown.count("hopline_http_requests_total", &requests), 14);
        shown.check("http");
        worker.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_waits_is_shown_and_whom_it_concerns() {
    stage(async |stage| {
        let front = stage.front().await;
        let queue = [("queue", stage.queue.as_str())];
        for _ in 0..3 {
            front.submit(r#"{"kind":"test.probe"}"#).await;
        }
        front.submit(r#"{"kind":"test.probe","delay":"1h"}"#).await;
        front.client.pause(&stage.queue, true, None).await.expect("an order");
        let status = |status: &'static str| [queue[0], ("status", status)];
        // The record hears of it a moment later.
        let shown = eventually("three wait and one is delayed", async || {
            let shown = Shown::by(&front).await;
            let waits =
                shown.sum("hopline_queue_latency_seconds", &queue).is_some_and(|latency| latency > 0.0);
            let jobs = [
                shown.count("hopline_queue_jobs_ready", &queue),
                shown.count("hopline_queue_jobs", &status("queued")),
                shown.count("hopline_queue_jobs", &status("scheduled")),
            ];
            (waits && jobs == [3, 3, 1] && shown.count("hopline_record_caught_up", &[]) == 1).then_some(shown)
        })
        .await;
        assert_eq!(shown.count("hopline_queue_consumers", &queue), 0);
        assert_eq!(shown.count("hopline_queue_paused", &queue), 1);
        shown.check("http");

        // As any other call.
        front.get_with("/metrics", "host", "evil.example").await.problem(403, "bad_host");
        front.get("/no/such/path").await.problem(404, "not_found");
        front
            .send(front.method("BREW".parse().expect("a method"), "/v1/jobs"))
            .await
            .problem(405, "method_not_allowed");
        let shown = Shown::by(&front).await;
        let requests = |method: &'static str, route: &'static str, status: &'static str| {
            shown.count(
                "hopline_http_requests_total",
                &[("method", method), ("route", route), ("status", status)],
            )
        };
        assert_eq!(requests("GET", "/metrics", "403"), 1);
        assert_eq!(requests("GET", "none", "404"), 1);
        assert_eq!(requests("other", "/v1/jobs", "405"), 1);
        let asked = shown.count("hopline_http_request_duration_seconds_count", &[("route", "/metrics")]);
        assert_eq!(asked, requests("GET", "/metrics", "200") + 1);
    })
    .await;
}

/// A worker elsewhere must not count the delay, or the pause before a retry, as waiting.
#[tokio::test]
async fn a_job_says_when_it_is_due_if_that_is_not_at_once() {
    stage(async |stage| {
        let front = stage.front().await;
        let due = async || {
            let seen = stage.rabbit.take(&stage.work_queue()).await;
            let at = |name: &str| seen.headers[name].as_i64();
            (at("hopline-created-at").expect("when it was submitted"), at("hopline-due-at"))
        };
        front.submit(r#"{"kind":"test.probe"}"#).await;
        assert_eq!(due().await.1, None);
        front.submit(r#"{"kind":"test.probe","delay":"300ms"}"#).await;
        let (created, due_at) = due().await;
        assert_eq!(due_at, Some(created + 300));

        let before = Timestamp::now();
        let (worker, mut log) = stage.probes();
        let id = front.submit(r#"{"kind":"test.probe","args":{"script":[{"retry_in":5000},"ok"]}}"#).await;
        log.next().await;
        eventually("it waits for its second attempt", async || {
            (front.get(&format!("/v1/jobs/{id}")).await.json()["status"] == "retrying").then_some(())
        })
        .await;
        worker.stop().await;
        let (created, due_at) = due().await;
        let due_at = due_at.expect("a retry says it");
        assert!(due_at >= created + 5000 && due_at >= before.as_millisecond() + 5000, "{created} {due_at}");
    })
    .await;
}

#[tokio::test]
async fn while_the_broker_is_away_what_is_known_is_said() {
    stage(async |stage| {
        let front = stage.front_unready(&away(&stage.config)).await;
        front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await.problem(503, "broker_unavailable");
        let shown = Shown::by(&front).await;
        assert_eq!(shown.count("hopline_broker_up", &[]), 0);
        assert_eq!(shown.count("hopline_cluster_view_complete", &[]), 0);
        assert_eq!(shown.sum("hopline_queue_jobs_ready", &[]), None, "only the broker knows");
        assert_eq!(shown.sum("hopline_connection_up", &[("connection", "publish")]), Some(0.0));
        let refused = [("kind", "test.probe"), ("result", "refused")];
        assert_eq!(shown.count("hopline_http_jobs_submitted_total", &refused), 1);
        shown.check("http");

        let address = free_address();
        let mut config = away(&stage.config);
        config.worker.health = Some(address);
        let (worker, _log) = stage.probes_with(&config, quick());
        let shown = eventually("the worker answers", async || Shown::by_worker(address).await).await;
        assert_eq!(shown.count("hopline_broker_up", &[]), 0);
        assert_eq!(shown.count("hopline_worker_consuming", &[]), 0);
        shown.check("worker");
        worker.stop().await;
    })
    .await;
}

/// Connected, and nothing it is asked is answered.
#[tokio::test]
async fn a_broker_that_says_nothing_delays_no_scrape_for_long_and_is_asked_once() {
    stage(async |stage| {
        let way = Way::to(&Broker::shared()).await;
        let mut config = stage.config.clone();
        config.amqp.url = serde_json::from_value(way.broker.amqp.clone().into()).expect("an AMQP address");
        // Else it would notice meanwhile.
        config.amqp.heartbeat = 60;
        let front = stage.front_with(&config).await;
        let lag = |shown: &Shown| shown.sum("hopline_record_lag_seconds", &[]).map(f64::to_bits);
        eventually("it has seen all", async || {
            let shown = Shown::by(&front).await;
            (shown.count("hopline_cluster_view_complete", &[]) == 1 && lag(&shown).is_some()).then_some(())
        })
        .await;
        let parallel = async || join_all((0..20).map(|_| Shown::by(&front))).await;
        let lags: BTreeSet<_> = parallel().await.iter().map(lag).collect();
        assert!(lags.len() <= 5, "each would have its own, if it asked by itself: {lags:?}");

        way.hold(Some(""));
        let shown = eventually("nobody answers", async || {
            // Each within the time of a scrape.
            let shown = parallel().await;
            shown.into_iter().find(|shown| shown.count("hopline_cluster_view_complete", &[]) == 0)
        })
        .await;
        assert_eq!(shown.sum("hopline_queue_jobs_ready", &[("queue", stage.queue.as_str())]), None);
        way.hold(None);
        eventually("it sees all again", async || {
            (Shown::by(&front).await.count("hopline_cluster_view_complete", &[]) == 1).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_comes_back_is_counted() {
    stage(async |stage| {
        let front = stage.front().await;
        let publish = [("role", "http"), ("connection", "publish")];
        let before = Shown::by(&front).await;
        assert_eq!(before.count("hopline_reconnects_total", &publish), 0);
        stage.rabbit.cut_connections(&[&stage.config.amqp.prefix, "http", "publish"], 1).await;
        let shown = eventually("it is back", async || {
            let shown = Shown::by(&front).await;
            (shown.count("hopline_reconnects_total", &publish) > 0).then_some(shown)
        })
        .await;
        assert_eq!(shown.count("hopline_reconnects_total", &publish), 1);
        front.wait_ready().await;
        assert_eq!(Shown::by(&front).await.count("hopline_connection_up", &publish), 1);
    })
    .await;
}

#[tokio::test]
async fn a_spool_is_shown_where_there_is_one() {
    stage(async |stage| {
        let without = stage.front_unready(&away(&stage.config)).await;
        assert!(!Shown::by(&without).await.0.contains("hopline_spool_"));
        let mut config = away(&stage.config);
        config.spool.path = Some(stage.config.record.path.join("spool"));
        config.spool.max_jobs = 2;
        let front = stage.front_unready(&config).await;
        let empty = Shown::by(&front).await;
        assert_eq!(empty.sum("hopline_spool_oldest_age_seconds", &[]), Some(0.0));
        for _ in 0..2 {
            let answer = front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await;
            assert_eq!(answer.json()["status"], "spooled", "{answer:?}");
        }
        front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await.problem(503, "spool_full");
        let shown = eventually("its age is shown", async || {
            let shown = Shown::by(&front).await;
            (shown.sum("hopline_spool_oldest_age_seconds", &[])? > 0.0).then_some(shown)
        })
        .await;
        for (name, value) in [
            ("hopline_spool_jobs", 2),
            ("hopline_spool_jobs_max", 2),
            ("hopline_spool_taken_total", 2),
            ("hopline_spool_refused_total", 1),
            ("hopline_spool_forwarded_total", 0),
        ] {
            assert_eq!(shown.count(name, &[]), value, "{name}");
        }
        assert!(shown.count("hopline_spool_bytes", &[]) > 0);
        let results = counts([("spooled", 2), ("refused", 1)]);
        assert_eq!(shown.by_label("hopline_http_jobs_submitted_total", "result"), results);
        shown.check("http");
    })
    .await;
}

#[test]
fn alert_rules_hold_their_tests() {
    promtool(&["check", "rules", "config/prometheus/alerts.yml"], "");
    promtool(&["test", "rules", "config/prometheus/alerts_test.yml"], "");
}

/// Every expression of the dashboard is one.
#[test]
fn the_dashboard_can_be_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/grafana/hopline.json");
    let dashboard: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions: Vec<String> = targets
        .map(|target| {
            target["expr"].as_str().unwrap().replace("$__rate_interval", "1m").replace("$queue", ".*")
        })
        .collect();
    assert!(expressions.len() > 20, "{expressions:?}");
    let rules: Vec<_> = expressions
        .iter()
        .enumerate()
        .map(|(n, expr)| json!({"record": format!("a:b:c{n}"), "expr": expr}))
        .collect();
    let file = std::env::temp_dir().join(format!("hopline-dashboard-{}.yml", std::process::id()));
    // JSON is YAML.
    std::fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    promtool(&["check", "rules", &file.display().to_string()], "");
    std::fs::remove_file(file).unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
}
