//! What the tests stand on.
//!
//! | module | owns |
//! |---|---|
//! | [`process`], [`broker`] | for `process_*` and `faults_*`: processes, and the broker behind them |
//! | [`rabbit`] | the broker under test: its addresses, its management API, a raw AMQP connection |
//! | [`receiver`] | somebody who is called back |
//! | [`stage`] | one test's prefix, processes and clean-up |
//! | [`keys`] | API keys |
//! | [`tls`] | certificates |
//! | [`front`] | an HTTP front and what it answers |
//! | [`log`] | the event log, read raw |
//! | [`sse`] | a reader of server-sent events |
//! | [`otlp`] | a collector of traces |
//! | [`operator`] | a virtual host of one test, and the commands that ask the broker itself |
//! | [`probe`] | a job whose args say what is to happen |

pub(crate) mod broker;
pub(crate) mod front;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod operator;
pub(crate) mod otlp;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod rabbit;
pub(crate) mod receiver;
pub(crate) mod sse;
pub(crate) mod stage;
pub(crate) mod tls;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longest time to wait for something that must happen. Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until the answer is `Some`; panics when it does not become so in [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "did not happen in {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(25)).await;
    }
}
