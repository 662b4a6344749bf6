//! Connections: accepts them, bounds their number and their patience, and ends them.
//!
//! HTTP/1.1 only, over TLS where there is a certificate. hyper serves each connection; this file owns the accept loop, the limits that hyper leaves to
//! its caller, and the order in which everything stops. It knows nothing of what the routes do.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use hyper::{
    body::Incoming,
    server::conn::http1::{self, Connection},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::{
    Stopping,
    front::new_request_id,
    problem::{Code, Problem},
    stall::Stall,
    tls::Tls,
};

/// Most bytes of a head, and of what is read of a body at once.
const BUFFER_MAX: usize = 32 << 10;
/// Most connections that are told at the same time that there are too many; more are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long such a connection may take to read that.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// The pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Longest time for a head to arrive, a connection to be idle, or a write to stand still.
    pub(super) read_timeout: Duration,
    /// Most connections.
    pub(super) max_connections: usize,
    /// Longest time from `shutdown` to the return.
    pub(super) grace: Duration,
}

/// Serves `router` on `listener` until `shutdown` is ready, then ends within the grace time.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    (settings, tls): (Settings, Option<Tls>),
    stopping: &Stopping,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS)));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let take = |stream| {
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let work = connection(stream, tls.clone(), router.clone(), settings, stopping.clone(), place);
            connections.spawn(work);
        } else if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
            connections.spawn(refuse(stream, tls.is_some(), place));
        }
    };
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            stream = accept(&listener) => take(stream),
        }
    }
    stopping.begun.cancel();
    arrived(listener).into_iter().for_each(take);
    connections.close();
    drain(&connections, settings.grace, stopping).await;
}

/// Waits for the connections to end: first by themselves, then without waiting for replies, then by force.
async fn drain(connections: &TaskTracker, grace: Duration, stopping: &Stopping) {
    // What is left for sending the answers after the waits were ended.
    let margin = (grace / 5).min(Duration::from_secs(2));
    if timeout(grace - margin, connections.wait()).await.is_ok() {
        return;
    }
    stopping.hurry.cancel();
    if timeout(margin, connections.wait()).await.is_ok() {
        return;
    }
    tracing::warn!(http.connections = connections.len(), "cutting connections at the end of the grace time");
    stopping.cut.cancel();
    connections.wait().await;
}

/// Connections that the system has taken for us already: to close the listener over them would reset them.
fn arrived(listener: TcpListener) -> Vec<TcpStream> {
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    std::iter::from_fn(|| listener.accept().ok())
        .filter_map(|(stream, _)| {
            stream.set_nonblocking(true).ok()?;
            TcpStream::from_std(stream).ok()
        })
        .collect()
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                tracing::error!(error = %error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the connection went away before it was accepted.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    tls: Option<Tls>,
    router: Router,
    settings: Settings,
    stopping: Stopping,
    _place: OwnedSemaphorePermit,
) {
    // Answers are small and wait for nothing.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(tls) = tls else { return serve(stream, router, settings, stopping).await };
    let accepted = tokio::select! {
        accepted = Box::pin(tls.accept(stream)) => accepted,
        () = stopping.cut.cancelled() => return,
    };
    match accepted {
        // In a box: it is the larger one, and plain connections are tasks of this size, too.
        Ok(stream) => Box::pin(serve(stream, router, settings, stopping)).await,
        // Whoever speaks something else is not answered in it.
        Err(error) => tracing::debug!(error = %error, "no TLS was agreed on"),
    }
}

async fn serve<S>(stream: S, router: Router, settings: Settings, stopping: Stopping)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move { router.call(request.map(Body::new)).await }
    });
    let io = TokioIo::new(Stall::new(stream, settings.read_timeout));
    let mut connection = Box::pin(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.read_timeout)
            .max_buf_size(BUFFER_MAX)
            .serve_connection(io, service),
    );
    // Biased: what has arrived is read before the connection is told to end.
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = stopping.cut.cancelled() => return,
        () = stopping.begun.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection.as_mut() => result,
                () = stopping.cut.cancelled() => return,
            }
        }
    };
    match result {
        Err(error) if error.is_timeout() => Box::pin(late(Pin::into_inner(connection))).await,
        Err(error) => tracing::debug!(error = %error, "a connection broke"),
        Ok(()) => {}
    }
}

/// Tells a client whose head came too slowly; one that had sent nothing was idle, and is closed without a word.
async fn late<S, H>(connection: Box<Connection<TokioIo<Stall<S>>, H>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: HttpService<Incoming, ResBody = Body>,
{
    let parts = connection.into_parts();
    if !parts.read_buf.is_empty() {
        let problem = Problem::new(Code::RequestTimeout, "the head did not arrive in http.read_timeout");
        say(parts.io.into_inner().into_inner(), &problem).await;
    }
}

async fn refuse(stream: TcpStream, tls: bool, _place: OwnedSemaphorePermit) {
    // A handshake for a refusal is what there is no room for.
    if tls {
        return;
    }
    let problem =
        Problem::new(Code::Overloaded, "there are too many connections (http.max_connections); try again");
    say(stream, &problem).await;
}

/// Answers with a problem on a connection that hyper does not serve, and closes it.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, problem: &Problem) {
    let answer = raw(problem);
    let exchange = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the client might lose the answer.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    if !matches!(timeout(REFUSAL_TIME, exchange).await, Ok(Ok(()))) {
        tracing::debug!("a client did not take its refusal");
    }
}

/// A problem as HTTP/1.1 writes it.
fn raw(problem: &Problem) -> String {
    let (status, body) = (problem.code.status(), problem.to_json());
    let id = new_request_id();
    let again = problem.retry_after.map(|pause| format!("retry-after: {}\r\n", pause.as_secs()));
    let again = again.unwrap_or_default();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{again}\
         x-request-id: {}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
        id.to_str().unwrap_or_default(),
    )
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
