//! `hopline spool`: the spool of an HTTP process that runs no more (`spool.path`). One that runs forwards by itself.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::{Usage, human::count, input, say};
use crate::{
    Config,
    client::Client,
    spool::{self, Drainer, Fill, Spool},
    telemetry,
};

/// Pause between two passes.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the broker is waited for at a time.
const LOOK: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say how much waits in the spool.
    Show(Show),
    /// Forward all that waits in the spool to the broker.
    ///
    /// Exits with 0 when the spool is empty, with 1 when something is left.
    Drain(Drain),
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    #[command(flatten)]
    place: Place,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    #[command(flatten)]
    place: Place,
    /// Give up after this long. Default: as long as it takes.
    #[arg(long, value_parser = input::duration)]
    timeout: Option<Duration>,
}

/// Which spool.
#[derive(Debug, clap::Args)]
struct Place {
    /// The spool's folder. Default: `spool.path` of the configuration.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

impl Place {
    /// The spool, locked, and the configuration.
    fn open(self) -> anyhow::Result<(Spool, Config)> {
        let mut config = Config::load()?;
        config.spool.path = self.path.or(config.spool.path);
        if let Some(path) = &config.spool.path
            && !path.join(spool::FILE).is_file()
        {
            // A wrong path must not look like an empty spool.
            return Err(
                Usage(format!("{} holds no spool ({} is missing)", path.display(), spool::FILE)).into()
            );
        }
        let none =
            || Usage("there is no spool: set spool.path (HOPLINE_SPOOL_PATH), or give --path".to_owned());
        let spool = Spool::open(&config.spool)?.ok_or_else(none)?;
        Ok((spool, config))
    }
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(show) => show.run().await,
        Command::Drain(drain) => drain.run().await,
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let (spool, _) = self.place.open()?;
        let fill = spool.fill();
        say::result_line(&if self.json {
            serde_json::to_string(&fill)?
        } else {
            format!(
                "{} of at most {}, {} of at most {} bytes",
                count(fill.jobs, "job"),
                fill.max_jobs,
                fill.bytes,
                fill.max_bytes
            )
        })?;
        say_unreadable(fill);
        Ok(ExitCode::SUCCESS)
    }
}

impl Drain {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let (spool, config) = self.place.open()?;
        telemetry::init(&config.log)?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        // As an HTTP process: it has to know where each kind goes.
        let client = Client::for_http(&config);
        client.started().map_err(anyhow::Error::msg).context("cannot connect")?;
        let (mut forwarded, mut left, mut drainer) = (0, None, Drainer::default());
        while spool.is_holding() {
            let look = Instant::now() + LOOK;
            let patience = deadline.map_or(look, |deadline| deadline.min(look));
            let pass = drainer.pass(&spool, &client, patience, |_| {}).await;
            forwarded += pass.forwarded;
            left = pass.left;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
            if left.is_some() || pass.forwarded == 0 {
                sleep(AGAIN).await;
            }
        }
        client.close().await;
        spool.close().await;
        let fill = spool.fill();
        say::result_line(&format!("{} forwarded, {} left", count(forwarded, "job"), fill.jobs))?;
        if fill.jobs == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        say_unreadable(fill);
        if fill.jobs > fill.unreadable {
            say::error(format_args!(
                "hopline: {}",
                left.unwrap_or_else(|| "the spool is not empty".to_owned())
            ));
        }
        Ok(ExitCode::FAILURE)
    }
}

fn say_unreadable(fill: Fill) {
    if fill.unreadable > 0 {
        say::error(format_args!(
            "hopline: {} stay where they are: this version cannot read them, so the one that wrote them has to forward \
             them, or the broker takes no such message (the log says which, and why)",
            count(fill.unreadable, "job")
        ));
    }
}
