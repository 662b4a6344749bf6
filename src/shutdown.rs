//! When a process should end: SIGTERM or SIGINT (Ctrl-C).
//!
//! Owns the process's reaction to these two signals. What ending means, and how long it may take, is up to who
//! awaits it.

use std::{future::Future, io};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit codes of a process that a signal ended at once: 128 + the signal's number, as shells have it.
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// A future that completes at the first SIGTERM or SIGINT from now on.
///
/// A second signal ends the process at once, with code 143 or 130: whoever sends it does not want to wait for
/// the orderly way. This holds from the call on, whether or not the future is awaited.
///
/// # Errors
/// The system refused to install the signal handlers.
///
/// # Panics
/// Outside of a tokio runtime with its I/O driver enabled.
pub fn requested() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals =
        Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? };
    let asked = CancellationToken::new();
    let told = asked.clone();
    tokio::spawn(async move {
        let name = signals.next().await.0;
        tracing::info!(signal = name, "shutting down; a second signal ends the process at once");
        told.cancel();
        let (name, code) = signals.next().await;
        tracing::warn!(signal = name, "ended by a second signal");
        std::process::exit(code);
    });
    Ok(asked.cancelled_owned())
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.term.recv() => ("SIGTERM", TERMINATED),
            _ = self.int.recv() => ("SIGINT", INTERRUPTED),
        }
    }
}
