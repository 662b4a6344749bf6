//! `hopline serve`: the HTTP front, and beside it the acts.

use std::process::ExitCode;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::{Config, acts, client::Client, http, record::Record, shutdown, telemetry};

/// Serves until SIGTERM or Ctrl-C.
pub(super) async fn run() -> anyhow::Result<ExitCode> {
    let config = Config::load()?;
    let traces = telemetry::start(&config.log, &config.telemetry)?;
    let asked_to_end = shutdown::requested().context("cannot listen for signals")?;
    let record = Record::open(&config)?;
    let client = Client::for_http(&config);
    client.started().map_err(anyhow::Error::msg)?;
    record.follow(&client).map_err(anyhow::Error::msg)?;
    // Whichever ends, or cannot start, ends the other.
    let stop = CancellationToken::new();
    let told = {
        let stop = stop.clone();
        async move {
            tokio::select! {
                () = asked_to_end => {}
                () = stop.cancelled() => {}
            }
            stop.cancel();
        }
    };
    let serving = async {
        let served = http::serve(&config, client.clone(), record.clone(), told).await;
        stop.cancel();
        served
    };
    let acting = async {
        let acted = acts::serve(&config, record.clone(), &client, stop.cancelled()).await;
        stop.cancel();
        acted
    };
    let (served, acted) = tokio::join!(serving, acting);
    // Also after an error: what was handed over is still published.
    record.close().await;
    client.close().await;
    traces.close().await;
    served?;
    acted?;
    Ok(ExitCode::SUCCESS)
}
