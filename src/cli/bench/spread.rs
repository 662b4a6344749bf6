//! A picture of how times are spread, in SVG: a histogram for each measurement, all over one logarithmic axis. Pure.

use std::fmt::Write as _;

use super::report::Spread;

const WIDTH: f64 = 780.0;
/// Where the axis begins and ends.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 740.0;
/// Height of a row, and of its highest bar.
const ROW: f64 = 58.0;
const HIGHEST: f64 = 40.0;
/// Powers of ten, in milliseconds, from the begin of the axis to its end.
const DECADES: std::ops::RangeInclusive<i32> = -1..=3;

/// Where so many milliseconds are on the axis.
fn place(milliseconds: f64) -> f64 {
    let (first, last) = (f64::from(*DECADES.start()), f64::from(*DECADES.end()));
    LEFT + (RIGHT - LEFT) * ((milliseconds.log10() - first) / (last - first)).clamp(0.0, 1.0)
}

/// The picture.
pub(super) fn picture(times: &[Spread]) -> String {
    let (mut shapes, mut y) = (String::new(), 10.0);
    for spread in times {
        y += ROW;
        let _ = writeln!(
            shapes,
            r#"<text x="{}" y="{y}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            spread.measurement
        );
        bars(&mut shapes, spread, y);
        for (name, milliseconds) in [("p50", spread.at[0]), ("p99", spread.at[4])] {
            let x = place(milliseconds);
            let _ = writeln!(
                shapes,
                r#"<path class="mark" d="M{x:.1} {y}V{:.1}"/><text class="small" x="{:.1}" y="{:.1}">{name}</text>"#,
                y - HIGHEST - 4.0,
                x + 2.0,
                y - HIGHEST + 4.0
            );
        }
    }
    let bottom = y + 4.0;
    for decade in DECADES {
        let (milliseconds, x) = (10f64.powi(decade), place(10f64.powi(decade)));
        let _ = writeln!(
            shapes,
            r#"<path class="axis" d="M{x:.1} 10V{bottom:.1}"/><text class="small" x="{x:.1}" y="{:.1}" text-anchor="middle">{milliseconds} ms</text>"#,
            bottom + 14.0
        );
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {:.0}" font-family="system-ui, sans-serif" font-size="13">
<style>text{{fill:#24292f}}.small{{font-size:11px}}.bar{{fill:#d9480f}}.mark{{stroke:#24292f;stroke-dasharray:2}}.axis{{stroke:#8c959f;stroke-width:.5}}@media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}.mark{{stroke:#e6edf3}}}}</style>
{shapes}</svg>
"#,
        bottom + 24.0
    )
}

/// A bar for each step, relative to the highest of its row.
#[expect(clippy::cast_precision_loss, reason = "counts, far below 2^53")]
fn bars(shapes: &mut String, spread: &Spread, y: f64) {
    let most = spread.steps.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1) as f64;
    let mut from = spread.steps.first().map_or(LEFT, |(first, _)| place(first / 2f64.powf(0.25)));
    for (up_to, count) in &spread.steps {
        let (to, height) = (place(*up_to), HIGHEST * *count as f64 / most);
        if *count > 0 {
            let _ = writeln!(
                shapes,
                r#"<rect class="bar" x="{from:.1}" y="{:.1}" width="{:.1}" height="{height:.1}"/>"#,
                y - height,
                (to - from - 1.0).max(1.0)
            );
        }
        from = to;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::bench::{report::QUANTILES, stats::Times};

    #[test]
    fn each_measurement_is_a_row_of_bars_over_one_axis() {
        let times: Times = [1, 1, 1, 10].into_iter().map(Duration::from_millis).collect();
        let spread = |measurement| Spread {
            measurement,
            count: times.count(),
            at: QUANTILES.map(|(_, quantile)| times.at(quantile)),
            steps: times.steps(),
        };
        let picture = picture(&[spread("call"), spread("submit-64")]);
        assert_eq!(picture.matches(r#"class="bar""#).count(), 4, "{picture}");
        assert_eq!(picture.matches(r#"height="40.0""#).count(), 2, "{picture}");
        assert!(picture.contains(">submit-64</text>") && picture.contains(">1000 ms</text>"), "{picture}");
        assert!((place(0.1) - LEFT).abs() < 0.01 && (place(5000.0) - RIGHT).abs() < 0.01);
    }
}
