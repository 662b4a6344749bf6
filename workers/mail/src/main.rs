//! The mail worker: `email.send` from queue `mail`. Only wires; the kind is in the library beside it.

use hopline::{Config, Options, Worker};
use hopline_worker_mail::{Mail, Settings, email};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if let Some(argument) = std::env::args().nth(1) {
        anyhow::bail!(
            "no arguments are taken, not {argument:?} either: see MAIL_CONFIG, hopline.toml and HOPLINE_* variables"
        );
    }
    let settings = Settings::from_env()?;
    let options = Options::new().timeout(settings.longest()).concurrency(settings.concurrency);
    let options = if settings.private { options.private() } else { options };
    Worker::new(Config::load()?)
        .state(Mail::new(settings)?)
        .register_with(email::send, options)
        .run()
        .await?;
    Ok(())
}
