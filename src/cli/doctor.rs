//! `hopline doctor`: what is wrong with the broker, the configuration and this machine, and how to mend it.

use std::process::ExitCode;

use serde::Serialize;

use super::{
    broker::{self, Api},
    colour,
    human::one_line,
    say,
};
use crate::{
    doctor::{self, Finding, Level},
    setup::rights::Role,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    api: Api,
    /// Whose rights the login of amqp.url is to have, and whose folders are looked at.
    #[arg(long, value_enum, default_value = "http")]
    role: Role,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    worst: Level,
    findings: &'a [Finding],
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (config, management) = broker::found(&arguments.api)?;
    let findings = doctor::examine(config, management, arguments.role).await;
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if arguments.json {
        say::result_line(&serde_json::to_string(&Report { worst, findings: &findings })?)?;
    } else {
        say::result(&in_words(&findings, colour::on_out()))?;
    }
    Ok(broker::code(worst == Level::Fail, worst == Level::Warn))
}

fn in_words(findings: &[Finding], with_colours: bool) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { check, level, found, mend } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Skip => "skip",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        let gap = " ".repeat(4 - level.len());
        let level = colour::painted(level).filter(|_| with_colours).unwrap_or_else(|| level.to_owned());
        text.push_str(&format!("{level}{gap}  {check:<width$}  {}\n", one_line(found)));
        if let Some(mend) = mend {
            text.push_str(&format!("{:width$}        -> {}\n", "", one_line(mend)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_its_mend_another() {
        let findings = [Finding::ok("broker", "is there"), Finding::fail("disk", "is full\n!", "empty it")];
        assert_eq!(
            in_words(&findings, false),
            "ok    broker  is there\nFAIL  disk    is full !\n              -> empty it\n"
        );
    }
}
