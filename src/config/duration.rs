//! Durations as people write them: a number of seconds, or `250ms`, `1h30m`. Also for the configuration of workers:
//! `#[serde(with = "hopline::config::duration")]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};
use thiserror::Error;

/// Longest duration we take: a hundred years. Far below where arithmetic on times overflows.
const MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Text or a number that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no duration: give a number of seconds, or units as in 250ms, 30s or 1h30m")]
pub struct DurationError(String);

/// Reads a duration: a number of seconds (`1.5`), or units as in `250ms`, `1h30m`, `2d`.
///
/// ```
/// use std::time::Duration;
/// # use hopline::config::parse_duration;
/// assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
/// assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
/// assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
/// assert!(parse_duration("-1s").is_err());
/// ```
///
/// # Errors
/// [`DurationError`] for anything else, for what is negative and for more than a hundred years.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError(text.chars().take(60).collect());
    if let Ok(seconds) = text.trim().parse::<f64>() {
        return from_seconds(seconds).ok_or_else(wrong);
    }
    let duration = days(text.trim()).or_else(|| {
        let signed: jiff::SignedDuration = text.trim().parse().ok()?;
        Duration::try_from(signed).ok()
    });
    duration.filter(|duration| *duration <= MAX).ok_or_else(wrong)
}

/// A leading number of days, which jiff leaves to calendars, and what follows it.
fn days(text: &str) -> Option<Duration> {
    let (number, rest) = text.split_once('d')?;
    let days = Duration::from_secs(number.trim().parse::<u64>().ok()?.checked_mul(86_400)?);
    match rest.trim() {
        "" => Some(days),
        rest => days.checked_add(Duration::try_from(rest.parse::<jiff::SignedDuration>().ok()?).ok()?),
    }
}

/// A number of seconds as a duration.
#[must_use]
pub(crate) fn from_seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration <= MAX)
}

/// Writes a duration the way it is read.
#[must_use]
pub(crate) fn format(duration: Duration) -> String {
    match duration {
        whole if whole.subsec_nanos() == 0 => format!("{}s", whole.as_secs()),
        other => format!("{}ms", other.as_millis()),
    }
}

/// Writes it, for `#[serde(with = "hopline::config::duration")]`.
///
/// # Errors
/// The serializer's own.
pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format(*duration))
}

/// Reads it, for `#[serde(with = "hopline::config::duration")]`.
///
/// # Errors
/// It is no duration.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    match serde_json::Value::deserialize(from)? {
        serde_json::Value::String(text) => parse_duration(&text).map_err(de::Error::custom),
        serde_json::Value::Number(number) => {
            let seconds = number.as_f64().and_then(from_seconds);
            seconds
                .ok_or_else(|| de::Error::custom("a duration cannot be negative, nor above a hundred years"))
        }
        _ => {
            Err(de::Error::custom("a duration is a number of seconds, or text as in \"250ms\" or \"1h30m\""))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        for (text, ms) in [
            ("0", 0),
            ("10", 10_000),
            ("0.25", 250),
            ("250ms", 250),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1d 2h", 93_600_000),
            (" 5s ", 5_000),
            ("1m 30s", 90_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "x", "1x", "-1", "-5s", "NaN", "inf", "1e300", "99999999d", "1d2x", "d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
