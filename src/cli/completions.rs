//! `hopline completions`: what a shell needs to complete the commands.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::say;

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// For which shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        generate(self.shell, &mut super::Arguments::command(), "hopline", &mut script);
        say::result(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
