//! Configuration: a file, then `HOPLINE_*` variables; merged, checked as a whole, all problems reported at once.
//!
//! The file is `hopline.toml` in the working directory, or the one that `HOPLINE_CONFIG` names. A variable is
//! `HOPLINE_<SECTION>_<KEY>`, as in `HOPLINE_AMQP_URL`; with `_FILE` at its end it names a file that holds the
//! value (for secrets). `config/hopline.toml` shows every key with its meaning, unit and default.

mod address;
pub mod duration;
mod known;
mod load;
mod secret;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

#[cfg(feature = "fuzzing")]
pub(crate) use self::duration::format as format_duration;
pub use self::{
    duration::{DurationError, parse_duration},
    load::ConfigError,
    secret::{AmqpUrl, WebhookSecrets},
};
use crate::job::{Kind, QueueName};

/// Everything that can be configured. Each section is one concern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The broker.
    pub amqp: Amqp,
    /// The HTTP front.
    pub http: Http,
    /// Worker processes.
    pub worker: Worker,
    /// Sizes.
    pub limits: Limits,
    /// Ending a process.
    pub shutdown: Shutdown,
    /// The record of every job.
    pub record: Record,
    /// Accepting jobs while the broker is away.
    pub spool: Spool,
    /// Cancelling jobs.
    pub cancel: Cancel,
    /// Telling a URL how a job ended.
    pub callbacks: Callbacks,
    /// Logs.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
    /// Which queue a kind goes to while no worker has announced it: `"image.thumbnail" = "media"`.
    pub routes: BTreeMap<Kind, QueueName>,
}

/// `[amqp]`: the broker and how we talk to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Amqp {
    /// Where the broker is, `amqp://user:password@host:port/vhost`. Default `amqp://127.0.0.1:5672`.
    pub url: AmqpUrl,
    /// What the name of every exchange and queue starts with. Default `hopline`.
    pub prefix: String,
    /// What the names of the delay ladder start with, where several prefixes of one virtual host share one
    /// ladder (their queue names must then differ). Empty: the prefix. Default empty.
    pub ladder_prefix: String,
    /// Queues that exist from the start, declared by `hopline serve` and by workers. Default `["default"]`.
    pub queues: Vec<QueueName>,
    /// With `amqps`: a file of certificates (PEM) of authorities to trust besides the system's. Default none.
    pub ca: Option<PathBuf>,
    /// With `amqps`: the certificate to show to the broker, with its chain (PEM). Default none.
    pub client_cert: Option<PathBuf>,
    /// The key of that certificate (PEM). Default none.
    pub client_key: Option<PathBuf>,
    /// Whether processes declare exchanges, queues and bindings when they connect. False: `hopline topology apply` has
    /// made them, and the login needs no right to. Default true.
    pub declare: bool,
    /// Seconds between heartbeats; a peer silent for two of them is gone. 1 to 60. Default 10.
    pub heartbeat: u16,
    /// Longest time to connect, TLS and login included. Default 5 s.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Longest time from handing a message over to the broker's confirm. Default 5 s.
    #[serde(with = "duration")]
    pub confirm_timeout: Duration,
    /// Most publishes that await their confirm on a connection. 1 to 10,000. Default 2,000.
    pub window: usize,
    /// Most publishes that wait for room in the window. Default 10,000.
    pub backlog: usize,
}

impl Default for Amqp {
    fn default() -> Self {
        Self {
            url: AmqpUrl::default(),
            prefix: "hopline".to_owned(),
            ladder_prefix: String::new(),
            queues: vec![QueueName::parse("default").expect("a literal within the rule")],
            ca: None,
            client_cert: None,
            client_key: None,
            declare: true,
            heartbeat: 10,
            connect_timeout: Duration::from_secs(5),
            confirm_timeout: Duration::from_secs(5),
            window: 2_000,
            backlog: 10_000,
        }
    }
}

/// `[http]`: the HTTP front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address and port. Default `127.0.0.1:8080`. Any other host than loopback needs `keys` or
    /// `allow_unauthenticated`.
    #[serde(deserialize_with = "address::deserialize")]
    pub listen: SocketAddr,
    /// Listen beyond loopback although there are no keys: whoever reaches the port may submit jobs. Default false.
    pub allow_unauthenticated: bool,
    /// The file of API keys, which `hopline key` writes. With it every call needs a key. Default none: everybody is let
    /// in.
    pub keys: Option<PathBuf>,
    /// The server's certificate and its chain, a file (PEM): HTTP is over TLS then. Default none.
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate, a file (PEM). Default none.
    pub tls_key: Option<PathBuf>,
    /// Names that a request's `Host` may have besides loopback addresses and `localhost`; a guard against DNS
    /// rebinding. Default none.
    pub hosts: Vec<String>,
    /// Longest wait a caller may ask for. Default 60 s.
    #[serde(with = "duration")]
    pub max_wait: Duration,
    /// Most callers that wait for the end of a job at the same time. Default 10,000.
    pub max_waiters: usize,
    /// Most requests whose job awaits its confirm at the same time. Default 10,000.
    pub max_in_flight: usize,
    /// Most bytes of all request bodies in memory at the same time. Default 256 MiB.
    pub max_body_memory: usize,
    /// Most items in a batch. Default 10,000.
    pub batch_items: usize,
    /// Most bytes in a batch. Default 16 MiB.
    pub batch_bytes: usize,
    /// Longest time for a client to send its head, and again for its body. Default 30 s.
    #[serde(with = "duration")]
    pub read_timeout: Duration,
    /// Most connections at the same time. Default 20,000.
    pub max_connections: usize,
    /// Most event streams (`GET …/events`) at the same time. Default 1,000.
    pub max_streams: usize,
    /// Where the dashboard's page of a job links to its trace: an `http://` or `https://` URL with `{trace_id}` in it.
    /// Default none: there is no link.
    pub trace_url: Option<String>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            allow_unauthenticated: false,
            keys: None,
            tls_cert: None,
            tls_key: None,
            hosts: Vec::new(),
            max_wait: Duration::from_secs(60),
            max_waiters: 10_000,
            max_in_flight: 10_000,
            max_body_memory: 256 << 20,
            batch_items: 10_000,
            batch_bytes: 16 << 20,
            read_timeout: Duration::from_secs(30),
            max_connections: 20_000,
            max_streams: 1_000,
            trace_url: None,
        }
    }
}

/// `[worker]`: worker processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Address of `/healthz` and `/metrics`; absent: none. Default none.
    #[serde(deserialize_with = "address::optional")]
    pub health: Option<SocketAddr>,
    /// Attempts at the same time per queue, where `queues` says nothing. Default 10.
    pub concurrency: usize,
    /// Jobs taken from the broker ahead of being run, per queue, those running included; at least `concurrency`.
    /// 1 to 65,535. Default 20.
    pub prefetch: u16,
    /// Threads for `cx.cpu`. 0: one per core. Default 0.
    pub cpu_threads: usize,
    /// How often a message of unknown kind or newer version is tried again before it is dead. Default 5.
    pub patience: u32,
    /// The first pause of that patience; each further one is twice as long. Default 2 s.
    #[serde(with = "duration")]
    pub patience_initial: Duration,
    /// Run a job in a child process from this delivery on, because it may be what killed the worker before.
    /// 0: never. Default 3.
    pub isolate_from_delivery: u32,
    /// How long a delivery that may be a repeat is held until an HTTP process has said whether its job has ended.
    /// Then it is run, and others are not held until one answers again. Time during an alarm of the broker does not
    /// count. 0: never ask. At most half the time that a job may wait in the worker (5 min, or a quarter of
    /// `consumer_timeout`). Default 60 s.
    #[serde(with = "duration")]
    pub lookup_patience: Duration,
    /// The broker's consumer timeout: a delivery that is unacknowledged for longer closes the channel. Checked
    /// against timeouts and prefetch at start. Default 30 min, RabbitMQ's own.
    #[serde(with = "duration")]
    pub consumer_timeout: Duration,
    /// Reply queues of foreign callers that may be answered through the default exchange, besides
    /// `amq.rabbitmq.reply-to`; a `*` at the end stands for anything. The default exchange reaches every queue,
    /// so a job's `reply_to` is not followed blindly. Default none.
    pub reply_queues: Vec<String>,
    /// Per queue, what differs.
    pub queues: BTreeMap<QueueName, WorkerQueue>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            health: None,
            concurrency: 10,
            prefetch: 20,
            cpu_threads: 0,
            patience: 5,
            patience_initial: Duration::from_secs(2),
            isolate_from_delivery: 3,
            lookup_patience: Duration::from_secs(60),
            consumer_timeout: Duration::from_secs(1800),
            reply_queues: Vec::new(),
            queues: BTreeMap::new(),
        }
    }
}

/// `[worker.queues.<queue>]`: one queue of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerQueue {
    /// Attempts at the same time; absent: `worker.concurrency`.
    pub concurrency: Option<usize>,
    /// Jobs taken ahead; absent: `worker.prefetch`.
    pub prefetch: Option<u16>,
}

impl Worker {
    /// Attempts at the same time from `queue`.
    #[must_use]
    pub fn concurrency_of(&self, queue: &QueueName) -> usize {
        self.queues.get(queue).and_then(|queue| queue.concurrency).unwrap_or(self.concurrency)
    }

    /// Jobs taken ahead from `queue`.
    #[must_use]
    pub fn prefetch_of(&self, queue: &QueueName) -> u16 {
        self.queues.get(queue).and_then(|queue| queue.prefetch).unwrap_or(self.prefetch)
    }
}

/// `[limits]`: sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most bytes of a job's args, and of the request that submits it. At most 16 MiB, RabbitMQ 4's largest
    /// message. Default 1 MiB.
    pub args: usize,
    /// Most bytes of an output; a longer one is left out and the job still succeeds, as is one that is nested deeper
    /// than args may be. Default 1 MiB.
    pub output: usize,
    /// Longest delay of a job. At most 310 days. Default 30 days.
    #[serde(with = "duration")]
    pub max_delay: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { args: 1 << 20, output: 1 << 20, max_delay: Duration::from_secs(30 * 86_400) }
    }
}

/// `[shutdown]`: ending a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long running work may go on after SIGTERM. Default 25 s.
    #[serde(with = "duration")]
    pub grace: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace: Duration::from_secs(25) }
    }
}

/// `[record]`: what is remembered of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Record {
    /// Folder of an HTTP process's record; each process needs its own, and locks it. What is in `record.db` can be
    /// deleted while the process is down: it is rebuilt from the event log. `keys.db` cannot be: it has the ids and keys
    /// of requests of the last 24 hours. Default `hopline-record` in the working directory.
    pub path: PathBuf,
    /// Longest args and output that are recorded, in bytes; longer ones are left out of the record (not of the
    /// job). At most 1 MiB. Default 64 KiB.
    pub max_inline: usize,
    /// How long a job that has ended is remembered. Dead jobs are remembered until they are replayed or purged.
    /// At least 1 min. Default 7 d.
    #[serde(with = "duration")]
    pub retention: Duration,
    /// Most ids and keys of requests in `keys.db`, about 120 bytes each. Beyond it the oldest of accepted jobs make room.
    /// Default 1,000,000.
    pub max_keys: usize,
    /// How long a job may be waiting in a queue that is empty and idle until it counts as lost (its message was
    /// deleted by hand). At least 1 min, three times as long as a worker's heartbeat counts. Default 10 min.
    #[serde(with = "duration")]
    pub lost_after: Duration,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            path: PathBuf::from("hopline-record"),
            max_inline: 64 << 10,
            retention: Duration::from_secs(7 * 86_400),
            max_keys: 1_000_000,
            lost_after: Duration::from_secs(600),
        }
    }
}

/// `[spool]`: accepting jobs while the broker is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// Folder of an HTTP process's spool; each process needs its own, and locks it. It must survive the process, on a
    /// disk as safe as the broker's: accepted jobs lie there until they are forwarded. Absent: there is no spool, and
    /// submits are refused while the broker is away. Default none.
    pub path: Option<PathBuf>,
    /// Most jobs in it. 1 to 10,000,000. Default 100,000.
    pub max_jobs: usize,
    /// Most bytes of jobs in it. Default 1 GiB.
    pub max_bytes: usize,
}

impl Default for Spool {
    fn default() -> Self {
        Self { path: None, max_jobs: 100_000, max_bytes: 1 << 30 }
    }
}

/// `[cancel]`: cancelling jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cancel {
    /// How long a running handler has to end by itself after it was asked to; then it is dropped. Default 10 s.
    #[serde(with = "duration")]
    pub grace: Duration,
}

impl Default for Cancel {
    fn default() -> Self {
        Self { grace: Duration::from_secs(10) }
    }
}

/// `[callbacks]`: telling a URL how a job ended (`callback_url`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Callbacks {
    /// Secrets that callbacks are signed with: `whsec_` and 24 to 64 bytes in base64 each, with white space between them.
    /// All of them sign, so that receivers can change over. Empty: this process takes no callbacks and delivers none.
    /// Default empty.
    pub secret: WebhookSecrets,
    /// What may be told although it is not public, or not over HTTPS: networks (`10.0.0.0/8`), addresses, and names of
    /// hosts. Default none.
    pub allow: Vec<String>,
    /// Longest time to connect. 1 s to 1 min. Default 5 s.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Longest time until there is an answer, names and connection included. 1 s to 5 min. Default 15 s.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Most requests at the same time. 1 to 1,000. Default 20.
    pub concurrency: usize,
    /// How often one is tried; then it is dead. 1 to 1,000. Default 12.
    pub max_attempts: u32,
    /// The first pause between attempts; each further one is three times as long. At most 1 d. Default 5 s.
    #[serde(with = "duration")]
    pub retry_initial: Duration,
    /// The longest pause, also where the receiver asks for a longer one. 1 s to 30 d. Default 12 h.
    #[serde(with = "duration")]
    pub retry_max: Duration,
}

impl Default for Callbacks {
    fn default() -> Self {
        Self {
            secret: WebhookSecrets::default(),
            allow: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(15),
            concurrency: 20,
            max_attempts: 12,
            retry_initial: Duration::from_secs(5),
            retry_max: Duration::from_secs(12 * 3600),
        }
    }
}

/// `[log]`: logs, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged: `error`, `warn`, `info`, `debug` or `trace`, also per target as in `info,hopline=debug`.
    /// Default `info`.
    pub level: String,
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// `[telemetry]`: traces. What is absent is asked of OpenTelemetry's own variables (`docs/tracing.md`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where a collector takes traces by OTLP over HTTP, `http://host:4318`; `/v1/traces` is put behind it. Default:
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`, else traces are not exported.
    pub otlp_endpoint: Option<String>,
    /// Which share of the traces that begin here is exported, 0 to 1; one that began elsewhere is exported if that is
    /// said there. Default: `OTEL_TRACES_SAMPLER`, else all.
    pub sample_ratio: Option<f64>,
    /// What the collector calls this process. Default: `OTEL_SERVICE_NAME`, else the program's name.
    pub service_name: Option<String>,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}
