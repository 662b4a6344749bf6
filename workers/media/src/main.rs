//! The media worker. Until it is wired to the worker library it only opens its picture folder.

fn main() -> anyhow::Result<()> {
    hopline_worker_media::Media::from_env()?;
    Ok(())
}
