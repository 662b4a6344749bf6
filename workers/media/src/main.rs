//! The media worker: `image.thumbnail` from queue `media`. Only wires; the kinds are in the library beside it.

use std::time::Duration;

use hopline::{Config, Options, Worker};
use hopline_worker_media::{Media, thumbnail};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if let Some(argument) = std::env::args().nth(1) {
        anyhow::bail!(
            "no arguments are taken, not {argument:?} either: see hopline.toml and HOPLINE_* variables"
        );
    }
    // A minute is ample for 50 million pixels; 4 at a time bound the memory (README.md).
    let options = Options::new().timeout(Duration::from_secs(60)).concurrency(4);
    Worker::new(Config::load()?)
        .state(Media::from_env()?)
        .register_with(thumbnail::thumbnail, options)
        .run()
        .await?;
    Ok(())
}
