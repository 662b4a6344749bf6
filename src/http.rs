//! The HTTP front: submits jobs, waits for their ends, shows their records and events, cancels them, says whether it
//! can (`docs/http.md`).
//!
//! This module owns what a request may be and what it is answered with. It knows the broker through
//! [`crate::client::Client`] and the past through [`crate::record::Record`] alone, and keeps nothing between requests:
//! any number of these processes may run. [`serve`] runs it; a request goes through `front` (request id, log line,
//! panics, guard) and `access` (keys) to one file per call.

mod access;
mod acts;
mod answer;
mod api;
mod batch;
mod body;
mod cancel;
mod cursor;
mod dashboard;
mod dead;
mod descriptors;
mod ending;
mod etag;
mod events;
mod fate;
mod fields;
mod filter;
mod front;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod guard;
mod health;
mod job;
mod jobs;
mod keyed;
mod list;
mod login;
mod metrics;
mod naming;
mod overview;
pub mod problem;
mod queues;
mod rpc;
mod schemas;
mod server;
mod session;
mod spooling;
mod sse;
mod stall;
mod submission;
mod tls;
mod traced;
mod wait;
mod workers;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::Method,
    middleware::from_fn_with_state,
    routing::{delete, get, post},
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinError,
};
use tokio_util::sync::CancellationToken;

pub use self::tls::TlsError;
use self::{
    access::{Access, Gate},
    api::Description,
    body::BodyMemory,
    fate::Fate,
    front::Front,
    guard::{Guard, is_loopback},
    metrics::HttpMetrics,
    overview::Overviews,
    problem::{Code, Problem},
    schemas::Checks,
    spooling::{Refusal, Taken},
    tls::Tls,
};
use crate::{
    access::{AccessError, Scope},
    amqp::Names,
    client::{Client, Submission},
    config::{self, Config},
    egress,
    job::QueueName,
    record::{
        Record, RecordError,
        keys::{Claim, Keys},
    },
    spool::{self, Spool, SpoolError},
    trace,
};

/// Why the HTTP front cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Anyone who reaches the address could submit jobs, and the configuration does not say that this is wanted.
    #[error(
        "refusing to listen on {0}: without API keys whoever reaches this address may submit jobs. Make keys \
         (http.keys), listen on loopback (http.listen = \"127.0.0.1:8080\"), or set http.allow_unauthenticated = true \
         (HOPLINE_HTTP_ALLOW_UNAUTHENTICATED=true) if something else guards the port"
    )]
    Exposed(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on {address}{}", listen_advice(.source))]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file of API keys cannot be read.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The ids and keys that clients chose cannot be kept.
    #[error(transparent)]
    Keys(#[from] RecordError),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What to do where an address cannot be had.
fn listen_advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            ": another process listens there, perhaps another `hopline serve` or `hopline up`. End it, or choose another \
             port by http.listen (HOPLINE_HTTP_LISTEN=127.0.0.1:8081)"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            ": no interface of this machine has that address (http.listen, HOPLINE_HTTP_LISTEN)"
        }
        std::io::ErrorKind::PermissionDenied => {
            ": the system keeps ports below 1024 for root; choose another by http.listen (HOPLINE_HTTP_LISTEN)"
        }
        _ => "",
    }
}

/// What all requests share.
#[derive(Clone)]
struct App(Arc<Shared>);

struct Shared {
    access: Access,
    client: Client,
    record: Record,
    keys: Keys,
    spool: Option<Spool>,
    http: config::Http,
    limits: config::Limits,
    /// What may be told of the end of jobs; none where no callbacks are sent.
    callbacks: Option<egress::Guard>,
    /// The queue of acts.
    acts: QueueName,
    confirm_timeout: Duration,
    /// Queues that the configuration names.
    queues: Vec<QueueName>,
    in_flight: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    memory: BodyMemory,
    guard: Guard,
    checks: Checks,
    stopping: Stopping,
    metrics: HttpMetrics,
    overviews: Overviews,
    description: Description,
}

/// How far the end has come.
#[derive(Debug, Clone, Default)]
struct Stopping {
    /// No new connections; requests under way go on.
    begun: CancellationToken,
    /// Whoever waits for a reply is answered now.
    hurry: CancellationToken,
    /// Connections that are left are cut.
    cut: CancellationToken,
}

impl std::ops::Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    fn new(
        config: &Config,
        client: Client,
        record: Record,
        (keys, spool): (Keys, Option<Spool>),
        access: Access,
        stopping: Stopping,
    ) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Shared {
            access,
            client,
            record,
            keys,
            spool,
            http: config.http.clone(),
            limits: config.limits.clone(),
            callbacks: callbacks(&config.callbacks),
            acts: Names::new(&config.amqp.prefix, &config.amqp.ladder_prefix).acts(),
            confirm_timeout: config.amqp.confirm_timeout,
            queues: config.amqp.queues.clone(),
            in_flight: places(config.http.max_in_flight),
            waiters: places(config.http.max_waiters),
            streams: places(config.http.max_streams),
            memory: BodyMemory::new(config.http.max_body_memory),
            guard: Guard::new(&config.http),
            checks: Checks::new(),
            stopping,
            metrics: HttpMetrics::new(),
            overviews: Overviews::default(),
            description: Description::default(),
        }))
    }

    /// A place among the requests whose job awaits its confirm.
    fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.in_flight).try_acquire_owned().map_err(|_| {
            let limit = self.http.max_in_flight;
            let detail =
                format!("{limit} requests await their confirm already (http.max_in_flight); try again");
            Problem::new(Code::Overloaded, detail)
        })
    }

    /// Submits a job, within its claim if it has one: accepted only after the broker's confirm, or when it is in the
    /// spool. `held` is dropped then, and `accepted` told.
    ///
    /// Goes on when the client goes away: half of it would be a job whose record does not know what was asked for.
    async fn submit(
        &self,
        job: Submission,
        claim: Option<Claim>,
        held: impl Send + 'static,
        accepted: Option<oneshot::Sender<()>>,
    ) -> Result<Taken, Problem> {
        let (id, named) = (job.envelope.id, claim.is_some());
        let submitted = if !named && keyed::gathers(self, &job) {
            self.start_submit(job, held, accepted)?.known().await
        } else {
            let (app, place) = (self.clone(), self.enter()?);
            let submitting = tokio::spawn(trace::here(async move {
                let result = keyed::submit(&app, job, claim, false, (place, held)).await;
                say_accepted(accepted, &result);
                result
            }));
            finished(submitting.await)?
        };
        submitted.map_err(|error| keyed::problem(&error, id, named))
    }

    /// As [`App::submit`], for a job without a claim that [`keyed::gathers`]: what becomes of it is told later.
    fn start_submit(
        &self,
        job: Submission,
        held: impl Send + 'static,
        accepted: Option<oneshot::Sender<()>>,
    ) -> Result<Fate, Problem> {
        let (place, (fate, teller)) = (self.enter()?, Fate::new());
        keyed::submit_gathered(self, job, (place, held), move |result| {
            say_accepted(accepted, &result);
            teller.tell(result);
        });
        Ok(fate)
    }
}

fn say_accepted(accepted: Option<oneshot::Sender<()>>, result: &Result<Taken, Refusal>) {
    if let (Some(accepted), Ok(_)) = (accepted, result) {
        // The client may be gone.
        let _ = accepted.send(());
    }
}

/// What may be told of the end of jobs, where anybody is told.
fn callbacks(config: &config::Callbacks) -> Option<egress::Guard> {
    // What it allows was checked with the configuration.
    egress::Guard::new(&config.allow).ok().filter(|_| !config.secret.is_empty())
}

/// What a task returned that nobody aborts.
fn finished<T>(result: Result<T, JoinError>) -> Result<T, Problem> {
    result.map_err(|error| {
        tracing::error!(%error, "a submit panicked");
        Problem::new(Code::Internal, "the log has more; the job may still run")
    })
}

/// Serves HTTP at `http.listen` until `shutdown` is ready; then takes no more connections, lets requests end within
/// `shutdown.grace`, and returns.
///
/// # Errors
/// [`ServeError`], when the address is not loopback and there are neither keys nor `http.allow_unauthenticated`, or
/// cannot be had, or the folder of the record, the keys or the certificate cannot be used.
pub async fn serve(
    config: &Config,
    client: Client,
    record: Record,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    serve_on(bind(config).await?, config, client, record, shutdown).await
}

/// Takes the address `http.listen`; with port 0 the system chooses one, which [`TcpListener::local_addr`] tells.
///
/// # Errors
/// [`ServeError`], as [`serve`].
pub async fn bind(config: &Config) -> Result<TcpListener, ServeError> {
    let address = config.http.listen;
    check_exposure(config, address)?;
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

/// As [`serve`], on a listener that is bound already.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on(
    listener: TcpListener,
    config: &Config,
    client: Client,
    record: Record,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let unknown = |source| ServeError::Listen { address: config.http.listen, source };
    let address = listener.local_addr().map_err(unknown)?;
    check_exposure(config, address)?;
    let (access, tls) = (Access::open(&config.http)?, Tls::open(&config.http)?);
    tracing::info!(http.address = %address, http.tls = tls.is_some(), "listening");
    let stopping = Stopping::default();
    let keys = Keys::open(&config.record.path, config.record.max_keys)?;
    let spool = Spool::open(&config.spool)?;
    let app =
        App::new(config, client, record, (keys.clone(), spool.clone()), access.clone(), stopping.clone());
    let following =
        access.keyring().cloned().map(|keyring| tokio::spawn(async move { keyring.follow().await }));
    let forwarding = spool.clone().map(|spool| {
        let app = app.clone();
        tokio::spawn(async move {
            spool::keep_empty(&spool, &app.client, |id| app.record.touch(id)).await;
        })
    });
    let settings = server::Settings {
        read_timeout: config.http.read_timeout,
        max_connections: descriptors::connections(config.http.max_connections),
        grace: config.shutdown.grace,
    };
    server::run(listener, router(app), (settings, tls), &stopping, shutdown).await;
    if let Some(following) = following {
        following.abort();
    }
    if let Some(forwarding) = forwarding {
        // What is on its way stays in the spool, too.
        forwarding.abort();
    }
    if let Some(spool) = spool {
        spool.close().await;
    }
    keys.close().await;
    Ok(())
}

/// Every call of the interface: its method, its path with names in braces, and the scope that a key needs for it; none:
/// it needs no key.
pub fn calls() -> impl Iterator<Item = (Method, &'static str, Option<Scope>)> {
    access::routes::TABLE.iter().map(|(method, path, need)| (method.clone(), *path, need.scope()))
}

fn check_exposure(config: &Config, address: SocketAddr) -> Result<(), ServeError> {
    if config.http.allow_unauthenticated || config.http.keys.is_some() || is_loopback(address.ip()) {
        Ok(())
    } else {
        Err(ServeError::Exposed(address))
    }
}

fn router(app: App) -> Router {
    let routes = Router::new()
        .route("/v1/jobs", post(jobs::post).get(list::get))
        .route("/v1/jobs/batch", post(batch::post))
        .route("/v1/jobs/counts", get(list::counts))
        .route("/v1/jobs/replay", post(acts::replay))
        .route("/v1/jobs/cancel", post(acts::cancel))
        .route("/v1/jobs/{id}/replay", post(acts::replay_one))
        .route("/v1/jobs/{id}", get(job::get).put(jobs::put).delete(cancel::delete))
        .route("/v1/jobs/{id}/output", get(job::output))
        .route("/v1/jobs/{id}/events", get(events::of_job))
        .route("/v1/events", get(events::of_log))
        .route("/v1/queues", get(queues::list))
        .route("/v1/queues/{queue}", get(queues::get))
        .route("/v1/queues/{queue}/pause", post(queues::pause))
        .route("/v1/queues/{queue}/resume", post(queues::resume))
        .route("/v1/queues/{queue}/dead", get(dead::list).delete(dead::purge))
        .route("/v1/queues/{queue}/dead/groups", get(dead::groups))
        .route("/v1/queues/{queue}/dead/replay", post(dead::replay))
        .route("/v1/queues/{queue}/jobs", delete(dead::purge_jobs))
        .route("/v1/workers", get(workers::list))
        .route("/v1/kinds", get(workers::kinds))
        .route("/v1/overview", get(overview::get))
        .route("/v1/overview/events", get(overview::follow))
        .route("/v1/rpc/{kind}", post(rpc::post))
        .route("/", get(dashboard::page))
        .route("/jobs", get(dashboard::page))
        .route("/jobs/{id}", get(dashboard::page))
        .route("/queues", get(dashboard::page))
        .route("/dead", get(dashboard::page))
        .route("/workers", get(dashboard::page))
        .route("/kinds", get(dashboard::page))
        .route("/submit", get(dashboard::page))
        .route("/dashboard/{file}", get(dashboard::file))
        .route("/session", get(session::get))
        .route("/login", get(login::form).post(login::log_in))
        .route("/logout", post(login::log_out))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::get))
        .route("/openapi.json", get(api::get))
        .route("/docs", get(api::reader::page))
        .route("/docs/reader.js", get(api::reader::script))
        .route("/docs/reader.css", get(api::reader::style));
    let gate =
        Gate { access: app.access.clone(), memory: app.memory.clone(), read_timeout: app.http.read_timeout };
    // Of routes alone: a path or a method that does not exist needs no key.
    let routes = routes.route_layer(from_fn_with_state(gate, access::admit));
    let counting = app.clone();
    let front = Front {
        guard: app.guard.clone(),
        memory: app.memory.clone(),
        read_timeout: app.http.read_timeout,
        scheme: if app.access.secure { "https" } else { "http" },
        count: Box::new(move |answered| counting.metrics.request(answered)),
    };
    front::wrap(routes, front).with_state(app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_taken_is_told_with_what_to_do() {
        let mut config = Config::default();
        config.http.listen.set_port(0);
        let first = bind(&config).await.unwrap();
        config.http.listen = first.local_addr().unwrap();
        let error = bind(&config).await.unwrap_err().to_string();
        assert!(
            error.contains("another process listens there") && error.contains("HOPLINE_HTTP_LISTEN"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn only_loopback_is_served_without_being_told() {
        let mut config = Config::default();
        for (address, allowed) in [
            ("127.0.0.1:0", true),
            ("[::1]:0", true),
            ("0.0.0.0:0", false),
            ("[::]:0", false),
            ("10.0.0.1:0", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(check_exposure(&config, address).is_ok(), allowed, "{address}");
        }
        config.http.listen = "0.0.0.0:0".parse().unwrap();
        let error = bind(&config).await.unwrap_err();
        assert!(error.to_string().contains("http.allow_unauthenticated = true"), "{error}");
        config.http.allow_unauthenticated = true;
        assert!(bind(&config).await.is_ok());
        config.http =
            config::Http { listen: config.http.listen, keys: Some("keys".into()), ..config::Http::default() };
        assert!(bind(&config).await.is_ok(), "with keys");
    }
}
