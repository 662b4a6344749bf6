//! Where configuration comes from, and whether it holds together.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use super::{Config, known::Known};
use crate::job::QueueName;

/// The file that is read when `HOPLINE_CONFIG` names none.
const FILE: &str = "hopline.toml";
const PREFIX: &str = "HOPLINE_";
/// Variables that are read by themselves and are no keys of the configuration.
const OTHERS: [&str; 7] = [
    "HOPLINE_CONFIG",
    "HOPLINE_ISOLATE",
    "HOPLINE_API_KEY",
    "HOPLINE_API_KEY_FILE",
    "HOPLINE_CA_FILE",
    "HOPLINE_MANAGEMENT_URL",
    "HOPLINE_MANAGEMENT_URL_FILE",
];
/// Variables of the test and development tools start with one of these.
const TOOLS: [&str; 3] = ["HOPLINE_TEST_", "HOPLINE_RABBITMQ_", "HOPLINE_URL"];

/// A configuration that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {path}{}", .variable.as_ref().map(|name| format!(", which {name} names")).unwrap_or_default())]
    Read {
        /// The variable that names it, if one does.
        variable: Option<String>,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file or a variable is malformed.
    #[error("configuration ({origin}): {detail}")]
    Malformed {
        /// Where it was read from.
        origin: String,
        /// What is wrong.
        detail: String,
    },
    /// Values that cannot be, or cannot be together: all of them, a line each.
    #[error("configuration:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Invalid(Vec<String>),
}

impl Config {
    /// Reads the configuration: `hopline.toml` (or the file that `HOPLINE_CONFIG` names), then `HOPLINE_*`
    /// variables, which win.
    ///
    /// # Errors
    /// [`ConfigError`]: a file that cannot be read, an unknown key, a value out of its range.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_from(file_named().as_deref(), variables())
    }

    /// As [`Config::load`], with `more` variables.
    ///
    /// # Errors
    /// As [`Config::load`].
    #[cfg(feature = "server")]
    pub(crate) fn load_with(more: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        Self::load_from(file_named().as_deref(), variables().chain(more))
    }

    /// Reads the configuration from a given file and given variables.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| ConfigError::Read {
                variable: None,
                path: path.into(),
                source,
            })
        };
        Self::read(file.map(read).transpose()?.as_deref(), file, variables)
    }

    /// Reads the configuration from what `file` holds, and variables.
    pub(crate) fn read(
        text: Option<&str>,
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = config::Config::builder();
        let known = Known::all();
        let mut problems = Vec::new();
        if let Some(text) = text {
            layers = layers.add_source(config::File::from_str(text, config::FileFormat::Toml));
            let file =
                layers.build_cloned().and_then(config::Config::try_deserialize).map_err(malformed(file))?;
            problems.extend(known.problems_of(&file));
        }
        let (mut scalars, mut lists) = (HashMap::new(), Vec::new());
        for (key, Setting { variable, value }) in keys(variables)? {
            problems.extend(known.problem_of(&variable, &key, PREFIX, &OTHERS));
            // A list is written with commas: the layering crate would need to know which keys are lists.
            match key.as_str() {
                "amqp.queues" | "callbacks.allow" | "http.hosts" | "worker.reply_queues" => {
                    lists.push((key, split(&value)));
                }
                _ => drop(scalars.insert(key, value)),
            }
        }
        if !problems.is_empty() {
            return Err(ConfigError::Invalid(problems));
        }
        layers = layers.add_source(
            config::Environment::default()
                .separator(".")
                .try_parsing(true)
                .ignore_empty(false)
                .source(Some(scalars)),
        );
        for (key, value) in lists {
            layers = layers.set_override(key, value).map_err(malformed(file))?;
        }
        let config: Self =
            layers.build().and_then(config::Config::try_deserialize).map_err(malformed(file))?;
        config.check()?;
        Ok(config)
    }

    /// Checks each value and the relations between them, and reports all that is wrong.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with a line for each problem.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut demand = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        if let Some(problem) = self.amqp.url.problem() {
            demand(false, problem);
        }
        let url = self.amqp.url.expose();
        demand(
            url.starts_with("amqp://") || url.starts_with("amqps://"),
            "amqp.url must start with amqp:// or amqps://".into(),
        );
        demand(
            cfg!(feature = "tls") || !self.amqp.url.is_tls(),
            "amqp.url asks for TLS, which this program is built without: enable hopline's feature `tls`"
                .into(),
        );
        let tls_files = [&self.amqp.ca, &self.amqp.client_cert, &self.amqp.client_key];
        demand(
            self.amqp.url.is_tls() || tls_files.iter().all(|file| file.is_none()),
            "amqp.ca, amqp.client_cert and amqp.client_key need an amqp.url that starts with amqps://".into(),
        );
        for (name, cert, key) in [
            ("amqp.client", &self.amqp.client_cert, &self.amqp.client_key),
            ("http.tls", &self.http.tls_cert, &self.http.tls_key),
        ] {
            demand(cert.is_some() == key.is_some(), format!("{name}_cert and {name}_key need each other"));
        }
        demand(
            self.http.keys.is_none() || !self.http.allow_unauthenticated,
            "http.keys and http.allow_unauthenticated contradict each other".into(),
        );
        demand(
            self.http.trace_url.as_deref().is_none_or(is_trace_url),
            "http.trace_url must start with http:// or https:// and have {trace_id} in it".into(),
        );
        demand(
            QueueName::parse(self.amqp.prefix.as_str()).is_ok(),
            "amqp.prefix must be 1 to 60 of a-z, 0-9, _ and -".into(),
        );
        demand(
            self.amqp.ladder_prefix.is_empty() || QueueName::parse(self.amqp.ladder_prefix.as_str()).is_ok(),
            "amqp.ladder_prefix must be empty or 1 to 60 of a-z, 0-9, _ and -".into(),
        );
        if let Some(url) = &self.telemetry.otlp_endpoint {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            demand(
                rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#'])),
                "telemetry.otlp_endpoint must be http://host:port or https://host:port, without credentials: they go \
                 into OTEL_EXPORTER_OTLP_HEADERS"
                    .into(),
            );
            demand(
                cfg!(feature = "otlp"),
                "telemetry.otlp_endpoint is set, but this program exports no traces: enable hopline's feature `otlp`"
                    .into(),
            );
        }
        demand(
            self.telemetry.sample_ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio)),
            "telemetry.sample_ratio must be 0 to 1".into(),
        );
        let within = |name: &str, value: usize, low: usize, high: usize| {
            ((low..=high).contains(&value), format!("{name} must be {low} to {high}, not {value}"))
        };
        let ranges = [
            within("amqp.heartbeat", self.amqp.heartbeat.into(), 1, 60),
            within("amqp.window", self.amqp.window, 1, 10_000),
            within("amqp.backlog", self.amqp.backlog, 1, 1_000_000),
            within("http.max_waiters", self.http.max_waiters, 0, 1_000_000),
            within("http.max_in_flight", self.http.max_in_flight, 1, 1_000_000),
            within("http.batch_items", self.http.batch_items, 1, 100_000),
            within("http.batch_bytes", self.http.batch_bytes, 1 << 10, 256 << 20),
            within("http.max_body_memory", self.http.max_body_memory, 1 << 20, 1 << 40),
            within("http.max_connections", self.http.max_connections, 1, 1_000_000),
            within("http.max_streams", self.http.max_streams, 0, 1_000_000),
            within("limits.args", self.limits.args, 1 << 10, 16 << 20),
            within("limits.output", self.limits.output, 0, 16 << 20),
            within("spool.max_jobs", self.spool.max_jobs, 1, 10_000_000),
            within("spool.max_bytes", self.spool.max_bytes, 1 << 20, 1 << 40),
            within("record.max_inline", self.record.max_inline, 0, 1 << 20),
            within("record.max_keys", self.record.max_keys, 1, 1_000_000_000),
            within("callbacks.concurrency", self.callbacks.concurrency, 1, 1000),
            within("callbacks.max_attempts", self.callbacks.max_attempts as usize, 1, 1000),
            within("worker.cpu_threads", self.worker.cpu_threads, 0, 1024),
            within("worker.patience", self.worker.patience as usize, 0, 20),
        ];
        for (holds, problem) in ranges {
            demand(holds, problem);
        }
        demand(
            self.http.max_body_memory >= self.http.batch_bytes.max(self.limits.args),
            "http.max_body_memory must hold at least one batch (http.batch_bytes) and one job (limits.args)"
                .into(),
        );
        let durations = [
            ("amqp.connect_timeout", self.amqp.connect_timeout, 1, 300),
            ("amqp.confirm_timeout", self.amqp.confirm_timeout, 1, 300),
            ("http.max_wait", self.http.max_wait, 1, 3600),
            ("http.read_timeout", self.http.read_timeout, 1, 3600),
            ("limits.max_delay", self.limits.max_delay, 0, 310 * 86_400),
            ("shutdown.grace", self.shutdown.grace, 0, 86_400),
            ("record.retention", self.record.retention, 60, 3650 * 86_400),
            // Three times as long as a worker counts as there that has said nothing: a front that has just started, or
            // was away, must not take its jobs for lost.
            ("record.lost_after", self.record.lost_after, 60, 30 * 86_400),
            ("callbacks.connect_timeout", self.callbacks.connect_timeout, 1, 60),
            ("callbacks.timeout", self.callbacks.timeout, 1, 300),
            ("callbacks.retry_initial", self.callbacks.retry_initial, 0, 86_400),
            ("callbacks.retry_max", self.callbacks.retry_max, 1, 30 * 86_400),
            ("cancel.grace", self.cancel.grace, 0, 3600),
            ("worker.lookup_patience", self.worker.lookup_patience, 0, 3600),
            ("worker.patience_initial", self.worker.patience_initial, 0, 86_400),
            ("worker.consumer_timeout", self.worker.consumer_timeout, 60, 100 * 86_400),
        ];
        for (name, value, low, high) in durations {
            let range = Duration::from_secs(low)..=Duration::from_secs(high);
            demand(range.contains(&value), format!("{name} must be {low} s to {high} s"));
        }
        for problem in self.callbacks.secret.problem().into_iter().chain(callbacks_problem(&self.callbacks)) {
            demand(false, problem);
        }
        let shared = [("worker", self.worker.concurrency, self.worker.prefetch)];
        let each =
            self.worker.queues.keys().map(|queue| {
                (queue.as_str(), self.worker.concurrency_of(queue), self.worker.prefetch_of(queue))
            });
        for (name, concurrency, prefetch) in shared.into_iter().chain(each) {
            demand(concurrency >= 1, format!("{name}: concurrency must be at least 1"));
            demand(
                usize::from(prefetch) >= concurrency,
                format!("{name}: prefetch ({prefetch}) must be at least concurrency ({concurrency})"),
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }
}

/// Whether a browser can be sent there, with the trace's id put in.
fn is_trace_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| rest.contains("{trace_id}") && !rest.starts_with('{'))
        && !url.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// What the feature that delivers callbacks has to say about what it may tell.
#[cfg(feature = "server")]
fn callbacks_problem(callbacks: &super::Callbacks) -> Option<String> {
    crate::egress::Guard::new(&callbacks.allow).err().map(|error| format!("callbacks.allow: {error}"))
}

#[cfg(not(feature = "server"))]
fn callbacks_problem(_: &super::Callbacks) -> Option<String> {
    None
}

/// The error of the layering crate, with the places that it may be about.
fn malformed(file: Option<&Path>) -> impl Fn(config::ConfigError) -> ConfigError {
    let variables = format!("{PREFIX}* variables");
    let origin = file.map_or_else(|| variables.clone(), |file| format!("{} and {variables}", file.display()));
    move |error| ConfigError::Malformed { origin: origin.clone(), detail: error.to_string() }
}

fn split(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// A key's value, and the variable that it comes from.
struct Setting {
    variable: String,
    value: String,
}

/// `HOPLINE_HTTP_MAX_WAIT` → `http.max_wait`: sections have no underscore, so the first one is the dot. With
/// `_FILE` at the end the value is what the file holds.
fn keys(
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, Setting>, ConfigError> {
    let mut found = BTreeMap::new();
    for (name, value) in variables {
        if OTHERS.contains(&name.as_str()) || TOOLS.iter().any(|tool| name.starts_with(tool)) {
            continue;
        }
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let (rest, value) = match rest.strip_suffix("_FILE") {
            Some(rest) => (rest, read_secret(&name, &value)?),
            None => (rest, value),
        };
        let key = rest.to_ascii_lowercase().replacen('_', ".", 1);
        found.insert(key, Setting { variable: name, value });
    }
    Ok(found)
}

fn read_secret(variable: &str, path: &str) -> Result<String, ConfigError> {
    let variable = Some(variable.to_owned());
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        variable,
        path: path.into(),
        source,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The file that is named, or else the one that is there.
fn file_named() -> Option<PathBuf> {
    match std::env::var_os("HOPLINE_CONFIG") {
        Some(path) => Some(path.into()),
        None => Some(PathBuf::from(FILE)).filter(|path| path.exists()),
    }
}

/// This process's variables; those that are not UTF-8 are not ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = std::env::temp_dir().join(format!("hopline-config-{}.toml", crate::JobId::new()));
        fs::write(&file, toml).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let result = Config::load_from(Some(&file), variables);
        fs::remove_file(&file).unwrap();
        result
    }

    #[test]
    fn nothing_gives_the_defaults() {
        assert_eq!(Config::load_from(None, []).unwrap(), Config::default());
        assert_eq!(load("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn a_variable_wins_over_the_file() {
        let toml = "[http]\nmax_wait = \"5s\"\n[amqp]\nprefix = \"a\"\nqueues = [\"x\"]\n[routes]\n\"image.thumbnail\" = \"media\"\n";
        let config = load(
            toml,
            &[("HOPLINE_HTTP_MAX_WAIT", "1m"), ("HOPLINE_AMQP_QUEUES", "default, media"), ("PATH", "/bin")],
        )
        .unwrap();
        assert_eq!(config.http.max_wait, Duration::from_secs(60));
        assert_eq!(config.amqp.prefix, "a");
        assert_eq!(
            config.amqp.queues.iter().map(QueueName::as_str).collect::<Vec<_>>(),
            ["default", "media"]
        );
        assert_eq!(config.routes.len(), 1);
    }

    #[test]
    fn a_secret_may_be_in_a_file() {
        let file = std::env::temp_dir().join(format!("hopline-secret-{}", crate::JobId::new()));
        fs::write(&file, "amqp://u:p@h\n").unwrap();
        let config = load("", &[("HOPLINE_AMQP_URL_FILE", file.to_str().unwrap())]).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(config.amqp.url.expose(), "amqp://u:p@h");
        assert!(!format!("{config:?}").contains("u:p"));
    }

    #[test]
    fn callbacks_are_checked_and_their_secrets_are_not_shown() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let both = format!("{secret}\n{secret}\n");
        let config = load(
            "",
            &[("HOPLINE_CALLBACKS_SECRET", &both), ("HOPLINE_CALLBACKS_ALLOW", "10.0.0.0/8, hooks")],
        )
        .unwrap();
        assert_eq!(config.callbacks.secret.expose().count(), 2);
        assert_eq!(config.callbacks.allow, ["10.0.0.0/8", "hooks"]);
        let shown = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("MfKQ"), "{shown}");
        assert!(load("[callbacks]\nsecret = \"\"\n", &[]).unwrap().callbacks.secret.is_empty());
        for bad in [
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_short",
            "whsec_MfKQ9r8GKYqr;wjUPD8ILPZIo2LaLaSw",
        ] {
            let error = load("", &[("HOPLINE_CALLBACKS_SECRET", bad)]).unwrap_err().to_string();
            assert!(error.contains("callbacks.secret") && !error.contains("MfKQ"), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        for (toml, variables, told) in [
            ("[http]\nlisen = \"x\"\n", vec![], "no key http.lisen; did you mean http.listen?"),
            (
                "",
                vec![("HOPLINE_HTTP_LISEN", "x")],
                "no variable HOPLINE_HTTP_LISEN; did you mean HOPLINE_HTTP_LISTEN?",
            ),
            (
                "",
                vec![("HOPLINE_AMPQ_URL_FILE", "/dev/null")],
                "HOPLINE_AMPQ_URL_FILE; did you mean HOPLINE_AMQP_URL?",
            ),
            ("[htpp]\n", vec![], "no key htpp; did you mean http?"),
            ("[worker.queues.media]\nprefetsch = 1\n", vec![], "unknown field `prefetsch`, expected"),
        ] {
            let error = load(toml, &variables).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let both = load("[http]\nlisen = \"x\"\n", &[("HOPLINE_HTTP_HOST", "x")]).unwrap_err().to_string();
        assert!(both.contains("http.lisen") && both.contains("HOPLINE_HTTP_HOSTS"), "{both}");
    }

    #[test]
    fn what_people_write_for_an_address_is_answered_with_what_to_write() {
        for (variable, value, told) in [
            ("HOPLINE_HTTP_LISTEN", "8080", "127.0.0.1:8080 for this machine"),
            ("HOPLINE_HTTP_LISTEN", "localhost:8080", "127.0.0.1:8080"),
            ("HOPLINE_WORKER_HEALTH", ":9100", "0.0.0.0:9100 for all"),
            ("HOPLINE_AMQP_URL", "amqp://u:a#b@h", "%23"),
        ] {
            let error = load("", &[(variable, value)]).unwrap_err().to_string();
            let key = variable.trim_start_matches(PREFIX).to_ascii_lowercase().replacen('_', ".", 1);
            assert!(error.contains(told) && error.contains(&key), "{error}");
        }
    }

    #[test]
    fn a_trace_url_is_a_link_with_a_place_for_the_trace() {
        for (url, good) in [
            ("http://localhost:16686/trace/{trace_id}", true),
            ("https://traces.example/?q={trace_id}&tab=1", true),
            ("https://traces.example/", false),
            ("https://{trace_id}", false),
            ("javascript:alert({trace_id})", false),
            ("/trace/{trace_id}", false),
            ("https://a b/{trace_id}", false),
        ] {
            assert_eq!(is_trace_url(url), good, "{url}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let toml = "[amqp]\nheartbeat = 0\nurl = \"http://x\"\nca = \"x\"\n[worker]\nconcurrency = 30\nprefetch = 10\n[record]\nlost_after = \"59s\"\n[http]\nkeys = \"k\"\nallow_unauthenticated = true\ntls_key = \"k\"\ntrace_url = \"javascript:{trace_id}\"\n[telemetry]\notlp_endpoint = \"http://u:p@h\"\nsample_ratio = 1.5\n";
        let error = load(toml, &[]).unwrap_err().to_string();
        for part in [
            "amqp.heartbeat",
            "amqp.url",
            "prefetch (10) must be at least concurrency (30)",
            "record.lost_after must be 60 s to",
            "http.tls_cert and http.tls_key",
            "http.keys and http.allow_unauthenticated",
            "http.trace_url must",
            "amqp.ca,",
            "telemetry.otlp_endpoint must be",
            "telemetry.sample_ratio must be 0 to 1",
        ] {
            assert!(error.contains(part), "{part} not in {error}");
        }
    }
}
