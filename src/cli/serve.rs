//! `hopline serve`: the HTTP front.

use std::process::ExitCode;

use anyhow::Context;

use crate::{Config, client::Client, http, record::Record, shutdown, telemetry};

/// Serves until SIGTERM or Ctrl-C.
pub(super) async fn run() -> anyhow::Result<ExitCode> {
    let config = Config::load()?;
    telemetry::init(&config.log)?;
    let asked_to_end = shutdown::requested().context("cannot listen for signals")?;
    let record = Record::open(&config)?;
    let client = Client::for_http(&config);
    client.started().map_err(anyhow::Error::msg)?;
    record.follow(&client).map_err(anyhow::Error::msg)?;
    let served = http::serve(&config, client.clone(), record.clone(), asked_to_end).await;
    // Also after an error: what was handed over is still published.
    record.close().await;
    client.close().await;
    served?;
    Ok(ExitCode::SUCCESS)
}
