//! The webhook worker: `http.request` from queue `webhook`. Only wires; the kind is in the library beside it.

use std::time::Duration;

use hopline::{Config, Options, Worker};
use hopline_worker_webhook::{Settings, Webhook, request};

/// How much longer than its request an attempt may take.
const MARGIN: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if let Some(argument) = std::env::args().nth(1) {
        anyhow::bail!(
            "no arguments are taken, not {argument:?} either: see WEBHOOK_CONFIG, hopline.toml and HOPLINE_* variables"
        );
    }
    let settings = Settings::from_env()?;
    let options = Options::new().timeout(settings.max_timeout + MARGIN).concurrency(settings.concurrency);
    let options = if settings.private { options.private() } else { options };
    Worker::new(Config::load()?)
        .state(Webhook::new(settings)?)
        .register_with(request::request, options)
        .run()
        .await?;
    Ok(())
}
