//! The `hopline` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    hopline::cli::main()
}
