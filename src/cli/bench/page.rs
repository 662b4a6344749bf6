//! The report as a page for people, in Markdown, with a chart in SVG. Pure.

use std::fmt::Write as _;

use super::{
    measure::Grown,
    plan::number,
    report::{QUANTILES, Report, Settings, Spread},
};

/// What the chart shows: rates that can be compared, in groups of what is alike.
const CHART: &[(&str, &[(&str, &str)])] = &[
    (
        "Submitted and run, with a record of it",
        &[
            ("raw.naive", "bare lapin, one event each way"),
            ("raw.batched", "bare lapin, batched events"),
            ("end-to-end", "Hopline, HTTP batches"),
            ("celery.end-to-end", "Celery (no record)"),
            ("dramatiq.end-to-end", "Dramatiq (no record)"),
            ("taskiq.end-to-end", "TaskIQ (no record)"),
            ("apalis.end-to-end", "Apalis (no record)"),
        ],
    ),
    (
        "Submitted and confirmed",
        &[
            ("raw.publish", "bare lapin, publish + confirm"),
            ("submit-batch", "Hopline, HTTP batches"),
            ("submit-256", "Hopline, 256 HTTP connections"),
            ("submit-64", "Hopline, 64 HTTP connections"),
            ("celery.submit", "Celery"),
            ("dramatiq.submit", "Dramatiq"),
            ("taskiq.submit", "TaskIQ"),
            ("fastapi.submit", "FastAPI, Celery; 64 connections"),
            ("apalis.submit", "Apalis (unconfirmed)"),
        ],
    ),
    (
        "Waiting jobs run by one worker process",
        &[
            ("raw.drain", "bare lapin, batched events"),
            ("drain", "Hopline"),
            ("celery.drain", "Celery"),
            ("dramatiq.drain", "Dramatiq"),
            ("taskiq.drain", "TaskIQ"),
            ("apalis.drain", "Apalis"),
        ],
    ),
];

/// What the page begins with.
const HEAD: &str = concat!(
    "# Performance\n\n",
    "<!-- Written by `hopline bench --docs docs`: do not edit. -->\n\n",
    "What counts here are ratios: broker, clients and all processes share one machine, and numbers of one run are of the\n",
    "same minutes. Each number of Hopline stands beside what bare lapin does with the same work on the same broker, right\n",
    "before it.\n\n",
    "![Jobs a second](images/performance.svg)\n\n",
);

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut page = HEAD.to_owned();
    circumstances(&mut page, report);
    goals(&mut page, report);
    numbers(&mut page, report);
    times(&mut page, report);
    growth(&mut page, report);
    processors(&mut page, report);
    peers(&mut page, report);
    page
}

fn circumstances(page: &mut String, report: &Report) {
    let Report { machine, settings, .. } = report;
    let Settings { rounds, jobs, backlog, calls, args, concurrency, prefetch, .. } = settings;
    let memory = machine.memory_gib;
    let _ = write!(
        page,
        "Measured on {} × {} ({memory} GiB, {}), {}, Hopline {}. Medians of {rounds} rounds after a warm-up; {jobs} jobs of\n\
         {args} bytes, {backlog} waiting where a worker drains, {calls} calls (of many callers ten times as many),\n\
         {concurrency} attempts at once and a prefetch of {prefetch} in each worker. Everything is durable and confirmed, and\n\
         the full record is on. `make performance` does it again.\n\n",
        machine.processors, machine.processor, machine.system, machine.broker, machine.hopline
    );
}

fn goals(page: &mut String, report: &Report) {
    page.push_str("## What we want, and what we have\n\n");
    table(page, &["goal", "measured", "wanted", ""], report.goals.iter().filter_map(|goal| goal.row()));
}

fn numbers(page: &mut String, report: &Report) {
    page.push_str("## All numbers\n\n");
    let header = ["measured", "median", "from", "to"];
    table(page, &header, report.numbers.iter().filter_map(|number| number.row()));
}

fn times(page: &mut String, report: &Report) {
    if report.times.is_empty() {
        return;
    }
    page.push_str("## How times are spread\n\n![Histograms of times](images/times.svg)\n\nIn milliseconds, over all rounds.\n\n");
    let header: Vec<&str> =
        ["measured", "times"].into_iter().chain(QUANTILES.map(|(name, _)| name)).collect();
    table(page, &header, report.times.iter().map(Spread::row));
}

fn growth(page: &mut String, report: &Report) {
    if report.growth.is_empty() {
        return;
    }
    page.push_str(
        "## How cost grows\n\nOnce, after the rounds. Each line is of so many queues, streams, or jobs; what is measured beside\n\
         them is the same work as above.\n\n",
    );
    let header = ["of", "so many", "measured", ""];
    table(page, &header, report.growth.iter().map(Grown::row));
}

fn processors(page: &mut String, report: &Report) {
    if report.cpu.is_empty() {
        return;
    }
    page.push_str(
        "## Processor time for each job\n\nIn microseconds, of each process, in user and system mode.\n\n",
    );
    let rows = report.cpu.iter().filter(|used| used.seconds > 0.0).map(|used| {
        vec![used.measurement.clone(), used.process.clone(), format!("{:.0}", used.seconds * 1e3)]
    });
    table(page, &["measured", "process", "µs"], rows);
}

fn peers(page: &mut String, report: &Report) {
    if report.peers.is_empty() {
        return;
    }
    page.push_str("## What the others guarantee in this\n\n");
    let rows = report.peers.iter().map(|(peer, says)| vec![peer.clone(), says.clone()]);
    table(page, &["library", "as measured"], rows);
}

fn table(page: &mut String, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    page.push_str(&line(&header));
    page.push_str(&line(&vec!["---".to_owned(); header.len()]));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        page.push_str(&line(&cells));
    }
    page.push('\n');
}

const WIDTH: f64 = 760.0;
/// Where bars begin, and the longest of them.
const LEFT: f64 = 250.0;
const LONGEST: f64 = 400.0;
const LINE: f64 = 22.0;

/// The chart: a bar for each rate, in each group relative to its greatest.
pub(super) fn chart(report: &Report) -> String {
    let value =
        |name: &str| report.numbers.iter().find(|number| number.name == name).map(|number| number.median);
    let (mut bars, mut y) = (String::new(), 10.0);
    for (title, group) in CHART {
        let found: Vec<(&str, &str, f64)> =
            group.iter().filter_map(|(name, label)| Some((*name, *label, value(name)?))).collect();
        let greatest = found.iter().map(|(.., value)| *value).fold(0.0, f64::max);
        if greatest <= 0.0 {
            continue;
        }
        y += LINE;
        let _ = writeln!(bars, r#"<text class="title" x="10" y="{y}">{title}</text>"#);
        for (name, label, value) in found {
            y += LINE;
            let (class, length) = (if is_ours(name) { "ours" } else { "other" }, LONGEST * value / greatest);
            let shown = number(name).map_or_else(String::new, |(unit, _)| unit.show(value));
            let _ = writeln!(
                bars,
                r#"<text x="{}" y="{y}" text-anchor="end">{label}</text><rect class="{class}" x="{LEFT}" y="{:.1}" width="{length:.1}" height="15" rx="2"/><text x="{:.1}" y="{y}">{shown}</text>"#,
                LEFT - 8.0,
                y - 12.0,
                LEFT + length + 6.0
            );
        }
        y += 14.0;
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {:.0}" font-family="system-ui, sans-serif" font-size="13">
<style>text{{fill:#24292f}}.title{{font-weight:600}}.ours{{fill:#d9480f}}.other{{fill:#8c959f}}@media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}}}</style>
{bars}</svg>
"#,
        y + 10.0
    )
}

fn is_ours(name: &str) -> bool {
    !["raw.", "celery.", "dramatiq.", "taskiq.", "fastapi.", "apalis."]
        .iter()
        .any(|other| name.starts_with(other))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::bench::{
        machine::Machine,
        measure::Measured,
        report::tests::{measured, settings},
        stats::Samples,
    };

    fn report() -> Report {
        let machine = Machine { processor: "A CPU".to_owned(), processors: 2, ..Machine::default() };
        let mut samples = Samples::default();
        for (name, value) in
            [("raw.drain", 2000.0), ("drain", 1000.0), ("call.p50", 1.5), ("cpu/drain/http", 0.25)]
        {
            samples.add(name, value);
        }
        let said = BTreeMap::from([("celery".to_owned(), "durable | confirmed".to_owned())]);
        Report::new(settings(), machine, Measured { peers: said, ..measured(samples) })
    }

    #[test]
    fn a_page_has_all_of_the_report() {
        let page = page(&report());
        for part in [
            "2 × A CPU",
            "| drain ÷ raw.drain | 0.50 × | ≥ 0.50 × | met |",
            "| Hopline: drain by one worker, recorded | 1000 /s | 1000 /s | 1000 /s |",
            "| drain | http | 250 |",
            "| measured | times | p50 | p75 | p90 | p95 | p99 | p99.9 | longest |",
            "| call | 4 | 2.00 | ",
            "| queues | 4 | run | 1234 /s |",
            "| celery | durable \\| confirmed |",
        ] {
            assert!(page.contains(part), "`{part}` is not in:\n{page}");
        }
    }

    #[test]
    fn a_chart_has_bars_of_what_was_measured() {
        let chart = chart(&report());
        assert!(chart.contains(r#"class="ours" x="250" y="64.0" width="200.0""#), "{chart}");
        assert!(chart.contains("2000 /s") && !chart.contains("Celery"), "{chart}");
    }

    #[test]
    fn whatever_the_chart_shows_is_a_number() {
        for (_, group) in CHART {
            assert!(group.iter().all(|(name, _)| number(name).is_some()));
        }
    }
}
