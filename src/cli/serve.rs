//! `hopline serve`: the HTTP front, until SIGTERM or SIGINT.

use std::process::ExitCode;

use crate::{Client, Config, http, shutdown, telemetry};

pub(super) async fn run() -> anyhow::Result<ExitCode> {
    let config = Config::load()?;
    telemetry::init(&config.log)?;
    let shutdown = shutdown::requested()?;
    let client = Client::for_http(&config);
    let served = http::serve(&config, client.clone(), shutdown).await;
    client.close().await;
    served?;
    Ok(ExitCode::SUCCESS)
}
