//! Logs on standard error, as text or JSON lines.
//!
//! Owns the process's subscriber. What is logged, and under which fields, is each module's own affair.

use std::io::IsTerminal;

use thiserror::Error;
use tracing::{Dispatch, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{self, Targets},
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
};

use crate::config::{Log, LogFormat};

/// lapin logs returned messages whole, bodies included; what is in a job is nobody's business in a log.
const WITH_BODIES: &str = "lapin::returned_messages";

/// Logs that cannot be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// `log.level` is not understood.
    #[error("log.level `{level}` is neither a level nor a list such as `info,hopline=debug`: {reason}")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another subscriber is in place already.
    #[error("logs have already been set up")]
    Installed,
}

/// Sends the process's logs to standard error, as `log` has it.
///
/// # Errors
/// [`TelemetryError::Level`] for a level that is not understood, [`TelemetryError::Installed`] at a second call.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let dispatch = subscriber(log, std::io::stderr, colour)?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| TelemetryError::Installed)
}

fn subscriber<W>(log: &Log, to: W, colour: bool) -> Result<Dispatch, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let parsed = log.level.parse();
    let targets: Targets = parsed.map_err(|error: filter::ParseError| TelemetryError::Level {
        level: log.level.clone(),
        reason: error.to_string(),
    })?;
    // lapin repeats, as errors, what the connection's own log lines say once and in words.
    let asked = log.level.contains("lapin");
    let targets = if asked { targets } else { targets.with_target("lapin", LevelFilter::OFF) };
    let targets = targets.with_target(WITH_BODIES, LevelFilter::OFF);
    // A log that cannot be written must not bring the process down, which the default's complaint on the very
    // same standard error would.
    let layer = fmt::layer().with_writer(to).with_ansi(colour).log_internal_errors(false);
    Ok(match log.format {
        LogFormat::Text => Dispatch::new(Registry::default().with(layer.with_filter(targets))),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_span_list(false);
            Dispatch::new(Registry::default().with(layer.with_filter(targets)))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat) -> String {
        let lines = Lines::default();
        let to = lines.clone();
        let log = Log { level: level.to_owned(), format };
        let dispatch = subscriber(&log, move || to.clone(), false).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(job.id = 7, "seen");
            tracing::debug!("too fine");
            tracing::error!(target: "lapin::returned_messages", "a body");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_and_json_at_the_level_asked_for() {
        let text = logged("info", LogFormat::Text);
        assert!(text.contains("seen") && text.contains("job.id=7") && !text.contains("too fine"), "{text}");
        let json = logged("info", LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
        assert_eq!((&line["message"], &line["job.id"]), (&"seen".into(), &7.into()));
    }

    #[test]
    fn message_bodies_are_never_logged() {
        for level in ["trace", "info,lapin=trace", "error,lapin::returned_messages=trace"] {
            assert!(!logged(level, LogFormat::Text).contains("a body"), "{level}");
        }
    }

    #[test]
    fn a_bad_level_is_an_error() {
        let log = Log { level: "hopline=loud".to_owned(), format: LogFormat::Text };
        let error = subscriber(&log, std::io::sink, false).unwrap_err();
        assert!(matches!(error, TelemetryError::Level { .. }) && error.to_string().contains("hopline=loud"));
    }
}
