//! Where RabbitMQ is installed on this machine.

use std::path::{Path, PathBuf};

use super::NodeError;

/// Names the folder that holds `rabbitmq-server`, before any that is looked for.
pub(super) const VARIABLE: &str = "HOPLINE_RABBITMQ_SBIN";

/// Folders in which a folder per version lies. Never `/usr/sbin`: the script there insists on being root or the
/// system's own RabbitMQ user.
const VERSIONED: [&str; 4] =
    ["/usr/lib/rabbitmq/lib", "/usr/local/lib/rabbitmq/lib", "/opt", "/opt/rabbitmq"];
const FIXED: [&str; 3] =
    ["/opt/rabbitmq/sbin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"];
const EPMD: [&str; 6] = [
    "/usr/bin",
    "/usr/local/bin",
    "/usr/lib/erlang/bin",
    "/usr/lib64/erlang/bin",
    "/opt/homebrew/bin",
    "/opt/erlang/bin",
];

/// The folder with `rabbitmq-server`.
pub(super) fn sbin() -> Result<PathBuf, NodeError> {
    if let Some(dir) = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()) {
        let dir = PathBuf::from(dir);
        return if is_server(&dir) { Ok(dir) } else { Err(NodeError::NoServerIn(dir)) };
    }
    let mut versions: Vec<PathBuf> = VERSIONED
        .iter()
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("rabbitmq_server-")))
        .map(|path| path.join("sbin"))
        .collect();
    // The newest, where several are installed side by side.
    versions.sort_by_key(|path| std::cmp::Reverse(version(path)));
    versions
        .into_iter()
        .chain(FIXED.map(PathBuf::from))
        .find(|dir| is_server(dir))
        .ok_or(NodeError::NotInstalled)
}

/// Erlang's port mapper; beside the server where it is a wrapper's folder.
pub(super) fn epmd(sbin: &Path) -> Result<PathBuf, NodeError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(sbin.to_owned())
        .chain(std::env::split_paths(&path))
        .chain(EPMD.map(PathBuf::from))
        .map(|dir| dir.join("epmd"))
        .find(|file| file.is_file())
        .ok_or(NodeError::NoEpmd)
}

fn is_server(dir: &Path) -> bool {
    dir.join("rabbitmq-server").is_file()
}

fn version(sbin: &Path) -> Vec<u32> {
    let name = sbin.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    name.split(['-', '.']).filter_map(|part| part.parse().ok()).collect()
}
