//! Workers of one's own: what `hopline up --worker` names, as programs that can be started.
//!
//! The folder of a crate is built by cargo, in the foreground and before anything is started; what it says goes to
//! standard error. A program is taken as it is.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::workers::{self, Programs};

/// Each path as a program, by the worker's name.
pub(super) fn programs(paths: &[PathBuf]) -> anyhow::Result<Programs> {
    let mut programs = Programs::new();
    for path in paths {
        let shown = path.display();
        let program = if path.is_dir() {
            // As cargo will name it.
            build(&path.canonicalize().with_context(|| format!("--worker {shown}"))?)?
        } else {
            std::path::absolute(path).with_context(|| format!("--worker {shown}"))?
        };
        let name = named(&program)?;
        if let Some(other) = programs.insert(name.clone(), program.clone()) {
            ensure!(
                other == program,
                "{} and {} would both be worker `{name}`: rename one",
                other.display(),
                program.display()
            );
        }
    }
    Ok(programs)
}

/// `media` for `hopline-worker-media`, `greet` for `greet` and `greet.py`.
fn named(program: &Path) -> anyhow::Result<String> {
    let shown = program.display();
    let mode = program.metadata().with_context(|| format!("--worker {shown}"))?.permissions().mode();
    ensure!(
        mode & 0o111 != 0,
        "--worker {shown}: neither the folder of a crate nor a program (it is not executable)"
    );
    let stem = program.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = stem.strip_prefix(workers::PREFIX).unwrap_or(stem);
    ensure!(
        workers::is_name(name),
        "--worker {shown}: a worker is called like its program, and that name may have letters, digits, - and _ only"
    );
    Ok(name.to_owned())
}

/// A line of what `cargo build --message-format=json` says; other lines have other members.
#[derive(Deserialize)]
struct Said {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Has cargo build the crate of a folder; its program.
fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    let shown = folder.display();
    ensure!(manifest.is_file(), "--worker {shown}: no crate (it has no Cargo.toml), and no program");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["build", "--message-format=json-render-diagnostics", "--manifest-path"])
        .arg(&manifest)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| {
            format!(
                "cannot build {shown}: no {} (Rust is at https://rustup.rs; or name a built program)",
                cargo.display()
            )
        })?;
    ensure!(output.status.success(), "cargo could not build {shown} ({})", output.status);
    program_of(&manifest, &String::from_utf8_lossy(&output.stdout))
}

/// The program that the crate of this manifest has, by what cargo said.
fn program_of(manifest: &Path, said: &str) -> anyhow::Result<PathBuf> {
    let ours = |said: Said| {
        let target = said.target.filter(|target| target.kind.iter().any(|kind| kind == "bin"))?;
        (said.manifest_path.as_deref() == Some(manifest)).then_some(())?;
        Some((target.name, said.executable?))
    };
    let lines = said.lines().filter_map(|line| serde_json::from_str(line).ok());
    let programs: BTreeMap<String, PathBuf> = lines.filter_map(ours).collect();
    match programs.len() {
        0 => bail!("{} has no program (no src/main.rs)", manifest.display()),
        1 => Ok(programs.into_values().next().unwrap_or_default()),
        _ => {
            let paths: Vec<_> = programs.values().map(|path| path.display().to_string()).collect();
            bail!("{} has several programs; name the one: {}", manifest.display(), paths.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCY: &str = r#"{"reason":"compiler-artifact","manifest_path":"/h/Cargo.toml","target":{"kind":["lib"],"name":"h"},"executable":null}"#;
    const SCRIPT: &str = r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","target":{"kind":["custom-build"],"name":"b"},"executable":"/t/b"}"#;
    const PROGRAM: &str = r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","target":{"kind":["bin"],"name":"greet"},"executable":"/t/greet"}"#;
    const END: &str = r#"{"reason":"build-finished","success":true}"#;

    #[test]
    fn the_program_is_the_crates_own() {
        let manifest = Path::new("/a/Cargo.toml");
        let found = |lines: &[&str]| program_of(manifest, &lines.join("\n"));
        assert_eq!(found(&[DEPENDENCY, SCRIPT, PROGRAM, END]).unwrap(), Path::new("/t/greet"));
        assert!(found(&[DEPENDENCY, SCRIPT, END]).unwrap_err().to_string().contains("no program"));
        let second = PROGRAM.replace("greet", "wave");
        let error = found(&[PROGRAM, &second]).unwrap_err().to_string();
        assert!(error.contains("/t/greet, /t/wave"), "{error}");
    }

    #[test]
    fn a_worker_is_called_like_its_program() {
        let dir = std::env::temp_dir().join(format!("hopline-own-{}", crate::JobId::new()));
        std::fs::create_dir(&dir).unwrap();
        let file = |name: &str, mode: u32| {
            let path = dir.join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        for (file_name, name) in
            [("hopline-worker-media", "media"), ("greet", "greet"), ("greet.py", "greet")]
        {
            assert_eq!(named(&file(file_name, 0o755)).unwrap(), name);
        }
        for (file_name, mode, why) in [
            ("notes", 0o644, "not executable"),
            ("a b", 0o755, "may have"),
            ("hopline-worker-", 0o755, "may have"),
        ] {
            let error = named(&file(file_name, mode)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let both = programs(&[dir.join("greet"), dir.join("greet.py")]).unwrap_err().to_string();
        assert!(both.contains("would both be worker `greet`"), "{both}");
        assert!(programs(std::slice::from_ref(&dir)).unwrap_err().to_string().contains("no Cargo.toml"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
