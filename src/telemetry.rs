//! Logs on standard error, as text or JSON lines; and traces, where they are to be exported.
//!
//! Owns the process's subscriber. What is logged, and under which fields, is each module's own affair; the shape of a
//! line is that of [`lines`].

mod lines;
#[cfg(feature = "otlp")]
mod otlp;

use std::io::IsTerminal;

use thiserror::Error;
use tracing::{Dispatch, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{self, Targets},
    fmt::{self, MakeWriter, format::JsonFields},
    layer::SubscriberExt,
};

use self::lines::{Json, Marking, Text};
use crate::{
    config::{Log, LogFormat, Telemetry},
    trace::MARKS,
};

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
    /// Traces are to be exported, and cannot be.
    #[error("traces cannot be exported: {0}")]
    Traces(String),
    /// Another subscriber is in place already.
    #[error("logs have already been set up")]
    Installed,
}

/// Sends the process's logs to standard error, as `log` has it.
///
/// # Errors
/// [`TelemetryError::Level`] for a level that is not understood, [`TelemetryError::Installed`] at a second call.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    install(vec![logs(log, std::io::stderr, colour())?])
}

/// As [`init`], and exports traces where `telemetry` or OpenTelemetry's own variables ask for it (feature `otlp`).
///
/// # Errors
/// As [`init`]; [`TelemetryError::Traces`] for what makes no sense. A collector that is away is no error.
#[cfg_attr(not(feature = "otlp"), allow(unused_variables))]
pub fn start(log: &Log, telemetry: &Telemetry) -> Result<Traces, TelemetryError> {
    let logs = logs(log, std::io::stderr, colour())?;
    #[cfg(feature = "otlp")]
    {
        let export = otlp::Export::start(telemetry).map_err(TelemetryError::Traces)?;
        let mut layers = vec![logs];
        layers.extend(export.as_ref().map(|export| programs_spans(export.programs())));
        install(layers)?;
        if let Some(export) = &export {
            export.say();
            crate::trace::spans::export(export.own());
        }
        Ok(Traces { export })
    }
    #[cfg(not(feature = "otlp"))]
    install(vec![logs]).map(|()| Traces::default())
}

/// The traces of a process, while they are exported.
#[derive(Default)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    export: Option<otlp::Export>,
}

impl Traces {
    /// Sends what is left, for at most a few seconds: the last thing that a process does.
    pub async fn close(self) {
        #[cfg(feature = "otlp")]
        if let Some(export) = self.export {
            export.close().await;
        }
    }
}

type Part = Box<dyn Layer<Registry> + Send + Sync>;

fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn install(parts: Vec<Part>) -> Result<(), TelemetryError> {
    let dispatch = Dispatch::new(Registry::default().with(parts));
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| TelemetryError::Installed)
}

/// Puts the spans of the program's own code into the trace, below the attempt that they are a part of.
#[cfg(feature = "otlp")]
fn programs_spans(tracer: opentelemetry_sdk::trace::SdkTracer) -> Part {
    // Spans alone: events are log lines. Not those of what Hopline is made of, whose spans are of no use to others.
    let wanted = filter::FilterFn::new(|metadata: &tracing::Metadata<'_>| {
        let from = metadata.target().split("::").next().unwrap_or_default();
        metadata.is_span() && *metadata.level() <= tracing::Level::INFO && !OWN.contains(&from)
    });
    let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
    layer.with_filter(wanted.with_max_level_hint(LevelFilter::INFO)).boxed()
}

/// lapin's lines as they are asked for, but none below `info`: it logs frames, the one with the login's password among them.
fn without_frames(targets: Targets) -> Targets {
    let named = |target: &str| target == "lapin" || target.starts_with("lapin::");
    let asked: Vec<_> = targets.iter().filter(|(target, _)| named(target)).collect();
    let asked: Vec<_> =
        asked.into_iter().map(|(target, level)| (target.to_owned(), level.min(LevelFilter::INFO))).collect();
    targets.with_target("lapin", LevelFilter::OFF).with_targets(asked)
}

/// Whose spans are not the program's.
#[cfg(feature = "otlp")]
const OWN: [&str; 7] = ["hopline", "lapin", "hyper", "hyper_util", "reqwest", "rustls", "opentelemetry"];

fn logs<W>(log: &Log, to: W, colour: bool) -> Result<Part, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let parsed = log.level.parse();
    let targets: Targets = parsed.map_err(|error: filter::ParseError| TelemetryError::Level {
        level: log.level.clone(),
        reason: error.to_string(),
    })?;
    // lapin repeats, as errors, what the connection's own log lines say once and in words.
    let targets = without_frames(targets)
        .with_target(WITH_BODIES, LevelFilter::OFF)
        .with_target(MARKS, LevelFilter::ERROR);
    // A log that cannot be written must not bring the process down, which the default's complaint on the very
    // same standard error would.
    let layer = fmt::layer().with_writer(to).with_ansi(colour).log_internal_errors(false);
    let lines = match log.format {
        LogFormat::Text => layer.event_format(Text).with_filter(targets).boxed(),
        LogFormat::Json => {
            layer.fmt_fields(JsonFields::new()).event_format(Json).with_filter(targets).boxed()
        }
    };
    let marking = Marking.with_filter(Targets::new().with_target(MARKS, LevelFilter::ERROR));
    Ok(vec![marking.boxed(), lines].boxed())
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
        let parts = vec![logs(&log, move || to.clone(), false).unwrap()];
        let dispatch = Dispatch::new(Registry::default().with(parts));
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(job.id = 7, "seen");
            tracing::debug!("too fine");
            tracing::error!(target: "lapin::returned_messages", "a body");
            let marks =
                tracing::error_span!(target: MARKS, "attempt", job.id = "j", attempt = 2_u32, trace_id = "t");
            let _marked = marks.enter();
            tracing::warn!(attempt = 3, "marked");
            let _own = tracing::info_span!("own", x = 1).entered();
            tracing::warn!(ok = true, ratio = 0.5, "within");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_and_json_at_the_level_asked_for() {
        let text = logged("info", LogFormat::Text);
        assert!(text.contains("seen") && text.contains("job.id=7") && !text.contains("too fine"), "{text}");
        let json = logged("info", LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!((&line["message"], &line["job.id"]), (&"seen".into(), &7.into()));
    }

    #[test]
    fn lines_of_an_attempt_have_its_fields_at_every_level() {
        for level in ["warn", "off,hopline=warn"] {
            let text = logged(level, LogFormat::Text);
            let lines: Vec<&str> = text.lines().filter(|line| line.contains("telemetry")).collect();
            assert!(lines[0].ends_with("marked attempt=3 job.id=j trace_id=t"), "{text}");
            assert!(lines[1].contains("within ok=true ratio=0.5 job.id=j attempt=2 trace_id=t"), "{text}");
            let json = logged(level, LogFormat::Json);
            let lines: Vec<serde_json::Value> = json
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .filter(|line: &serde_json::Value| {
                    line["target"].as_str().is_some_and(|target| target.contains("telemetry"))
                })
                .collect();
            let [marked, within] = &lines[..] else { panic!("{json}") };
            assert_eq!((&marked["attempt"], &marked["job.id"]), (&3.into(), &"j".into()));
            assert_eq!((&within["attempt"], &within["trace_id"]), (&2.into(), &"t".into()));
            assert_eq!((&within["ok"], &within["ratio"]), (&true.into(), &0.5.into()));
            assert!(marked.get("span").is_none() && !json.contains("hopline::marks"), "{json}");
            // A program's own span is enabled by its own level.
            assert!(within.get("span").is_none());
        }
        let json = logged("info", LogFormat::Json);
        let within: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
        assert_eq!(within["span"], serde_json::json!({ "name": "own", "x": 1 }));
        assert!(logged("info", LogFormat::Text).contains(" own{x=1}:hopline::telemetry"));
    }

    #[test]
    fn message_bodies_are_never_logged() {
        for level in ["trace", "info,lapin=trace", "error,lapin::returned_messages=trace"] {
            assert!(!logged(level, LogFormat::Text).contains("a body"), "{level}");
        }
    }

    #[test]
    fn frames_are_never_logged_and_what_lapin_says_only_where_it_is_asked() {
        for (level, said) in [
            ("trace", LevelFilter::OFF),
            ("trace,hopline=lapin", LevelFilter::OFF),
            ("info,lapin=trace", LevelFilter::INFO),
            ("info,lapin=warn,lapin::channel=debug", LevelFilter::WARN),
        ] {
            let Ok(targets) = level.parse() else { continue };
            let targets: Targets = without_frames(targets);
            let at = |level| targets.would_enable("lapin::connection", &level);
            let most =
                [tracing::Level::TRACE, tracing::Level::DEBUG, tracing::Level::INFO, tracing::Level::WARN];
            let most = most.into_iter().find(|level| at(*level)).map_or(LevelFilter::OFF, LevelFilter::from);
            assert_eq!(most, said, "{level}");
            assert!(!targets.would_enable("lapin::channel", &tracing::Level::DEBUG), "{level}");
        }
    }

    #[test]
    fn a_bad_level_is_an_error() {
        let log = Log { level: "hopline=loud".to_owned(), format: LogFormat::Text };
        let error = logs(&log, std::io::sink, false).err().unwrap();
        assert!(matches!(error, TelemetryError::Level { .. }) && error.to_string().contains("hopline=loud"));
    }
}
