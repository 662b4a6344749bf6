//! A whole worker: `demo.greet` from queue `default`.

use hopline::{Config, Context, Job, JobResult, Worker};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}

impl Job for Greet {
    const KIND: &'static str = "demo.greet";
    type Output = String;
}

async fn greet(job: Greet, _cx: Context) -> JobResult<String> {
    Ok(format!("Hello, {}!", job.name))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Worker::new(Config::load()?).register(greet).run().await?;
    Ok(())
}
