//! Jobs to try Hopline with: see `jobs.rs`. Queue `demo`.

mod jobs;

use std::time::Duration;

use hopline::{Config, Options, RetryPolicy, Worker};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if let Some(argument) = std::env::args().nth(1) {
        anyhow::bail!(
            "no arguments are taken, not {argument:?} either: see hopline.toml and HOPLINE_* variables"
        );
    }
    // Short pauses: a person is watching.
    let quick = RetryPolicy {
        initial: Duration::from_millis(200),
        max: Duration::from_secs(5),
        ..RetryPolicy::default()
    };
    Worker::new(Config::load()?)
        .register(jobs::echo)
        .register(jobs::sleep)
        .register_with(jobs::flaky, Options::new().retry(quick))
        .register_with(jobs::fail, Options::new().retry(RetryPolicy { max_attempts: 3, ..quick }))
        .register_with(jobs::panic, Options::new().retry(RetryPolicy { max_attempts: 3, ..quick }))
        .register(jobs::abort)
        .run()
        .await?;
    Ok(())
}
