//! The report as it is printed: every number already a text, every list in the
//! order of the page.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    Case, CaseKind, DifferenceRow, Group, MetricRow, Report, System,
    histogram::{self, Scale},
};
use crate::commands::{counted, with_commas};

/// What the template fills in.
#[derive(Serialize)]
pub(super) struct Page<'a> {
    style: &'static str,
    script: &'static str,
    title: &'a str,
    subtitle: &'a str,
    notes: &'a [String],
    facts: &'a [(String, String)],
    systems: Vec<Name<'a>>,
    is_comparison: bool,
    has_differences: bool,
    has_intervals: bool,
    metrics: Vec<Metric<'a>>,
    counts: Vec<Count<'a>>,
    histograms: Vec<Histogram<'a>>,
    breakdowns: Vec<Breakdown<'a>>,
    galleries: Vec<Gallery<'a>>,
    cases: usize,
}

/// A system, and the letter that stands for it.
#[derive(Clone, Serialize)]
struct Name<'a> {
    letter: String,
    name: &'a str,
}

#[derive(Serialize)]
struct Metric<'a> {
    name: &'a str,
    meaning: &'static str,
    values: Vec<Shown>,
    difference: Shown,
    /// Whether the difference's interval excludes zero; `None` without an interval.
    is_clear: Option<bool>,
}

/// A number with its interval.
#[derive(Default, Serialize)]
struct Shown {
    value: String,
    interval: Option<String>,
}

#[derive(Serialize)]
struct Count<'a> {
    name: &'a str,
    values: Vec<String>,
}

#[derive(Serialize)]
struct Histogram<'a> {
    system: Name<'a>,
    lines: Vec<histogram::Line>,
    bars: Vec<histogram::Bar>,
}

/// Scores by some property of the expressions.
#[derive(Serialize)]
struct Breakdown<'a> {
    title: &'static str,
    property: &'static str,
    rows: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    label: &'a str,
    expressions: String,
    scores: Vec<Score>,
}

/// What one system scored on a group, also as a bar.
#[derive(Serialize)]
struct Score {
    letter: String,
    /// Per cent of the cell.
    width: String,
    miou: String,
    ciou: String,
}

/// The cases of a system that are shown for the same reason.
#[derive(Serialize)]
struct Gallery<'a> {
    system: Name<'a>,
    kind: &'static str,
    title: String,
    cards: Vec<Card<'a>>,
}

#[derive(Serialize)]
struct Card<'a> {
    picture_id: &'a str,
    expression_id: &'a str,
    phrase: &'a str,
    /// Whether the phrase is more than a card has room for.
    is_long: bool,
    iou: String,
    /// Per cent of the card.
    width: String,
    found: bool,
    has_target: bool,
    verdict: &'static str,
    presence: Option<String>,
    /// Base64.
    picture: Option<String>,
}

/// Letters of a phrase, beyond which it scrolls.
const LONG_PHRASE: usize = 160;
pub(super) const NOTHING: &str = "–";

impl<'a> Page<'a> {
    pub(super) fn of(report: &'a Report) -> Self {
        let names: Vec<Name<'a>> = report.systems.iter().zip('A'..).map(Name::of).collect();
        let metrics = metrics(report);
        Self {
            style: include_str!("page.css"),
            script: include_str!("page.js"),
            title: &report.title,
            subtitle: &report.subtitle,
            notes: &report.notes,
            facts: &report.facts,
            is_comparison: names.len() > 1,
            has_differences: report.difference.is_some(),
            has_intervals: metrics.iter().any(Metric::has_interval),
            metrics,
            counts: counts(&report.systems),
            histograms: histograms(&report.systems, &names),
            breakdowns: vec![
                breakdown("By phrase length", "Phrase", &names, &report.systems, |s| {
                    &s.by_length
                }),
                breakdown("By target size", "Target", &names, &report.systems, |s| {
                    &s.by_size
                }),
            ],
            galleries: galleries(&report.systems, &names),
            cases: report.systems.iter().map(|s| s.cases.len()).sum(),
            systems: names,
        }
    }
}

impl<'a> Name<'a> {
    fn of((system, letter): (&'a System, char)) -> Self {
        Self {
            letter: letter.to_string(),
            name: &system.name,
        }
    }
}

fn metrics(report: &Report) -> Vec<Metric<'_>> {
    let differences = report.difference.as_deref().unwrap_or_default();
    let rows = joined(&report.systems, |system| &system.metrics, |row| &row.name);
    let metric = |(name, rows): (_, Vec<Option<&MetricRow>>)| {
        let difference = differences.iter().find(|row| row.name == name);
        let interval = difference.and_then(|row| row.interval);
        Metric {
            name,
            meaning: rows.iter().flatten().next().map_or("", |row| row.meaning),
            values: rows.iter().map(|row| Shown::of(*row)).collect(),
            difference: difference.map_or_else(Shown::default, Shown::signed),
            is_clear: interval.map(|(low, high)| low > 0.0 || high < 0.0),
        }
    };
    rows.into_iter().map(metric).collect()
}

impl Metric<'_> {
    fn has_interval(&self) -> bool {
        self.values.iter().any(|shown| shown.interval.is_some())
    }
}

impl Shown {
    fn of(row: Option<&MetricRow>) -> Self {
        let interval = |(low, high)| format!("[{}, {}]", fixed(low), fixed(high));
        Self {
            value: percent(row.and_then(|row| row.value)),
            interval: row.and_then(|row| row.interval).map(interval),
        }
    }

    fn signed(row: &DifferenceRow) -> Self {
        let interval = |(low, high)| format!("[{}, {}]", signed(low), signed(high));
        Self {
            value: row.value.map_or_else(|| NOTHING.to_owned(), signed),
            interval: row.interval.map(interval),
        }
    }
}

fn counts(systems: &[System]) -> Vec<Count<'_>> {
    let count = |(name, rows): (_, Vec<Option<&(String, u64)>>)| {
        let value = |row: Option<&(String, u64)>| match row {
            Some((_, count)) => with_commas(*count),
            None => NOTHING.to_owned(),
        };
        Count {
            name,
            values: rows.into_iter().map(value).collect(),
        }
    };
    let rows = joined(systems, |system| &system.counts, |(name, _)| name);
    rows.into_iter().map(count).collect()
}

/// All on one scale, so that they can be compared.
fn histograms<'a>(systems: &[System], names: &[Name<'a>]) -> Vec<Histogram<'a>> {
    let scale = Scale::of(systems.iter().map(|system| &system.histogram));
    let drawn = systems.iter().zip(names).map(|(system, name)| Histogram {
        system: name.clone(),
        lines: scale.lines(),
        bars: scale.bars(&system.histogram),
    });
    drawn.collect()
}

fn breakdown<'a>(
    title: &'static str,
    property: &'static str,
    names: &[Name<'a>],
    systems: &'a [System],
    groups: fn(&System) -> &[Group],
) -> Breakdown<'a> {
    let row = |(label, groups): (_, Vec<Option<&Group>>)| {
        let expressions = groups.iter().flatten().map(|group| group.expressions);
        let scores = groups.iter().zip(names).map(|(group, name)| Score {
            letter: name.letter.clone(),
            width: width(group.and_then(|group| group.miou).unwrap_or(0.0)),
            miou: percent(group.and_then(|group| group.miou)),
            ciou: percent(group.and_then(|group| group.ciou)),
        });
        Row {
            label,
            expressions: with_commas(expressions.max().unwrap_or(0)),
            scores: scores.collect(),
        }
    };
    let rows = joined(systems, groups, |group| &group.label);
    Breakdown {
        title,
        property,
        rows: rows.into_iter().map(row).collect(),
    }
}

fn galleries<'a>(systems: &'a [System], names: &[Name<'a>]) -> Vec<Gallery<'a>> {
    let mut galleries = Vec::new();
    for (system, name) in systems.iter().zip(names) {
        for kind in [CaseKind::Worst, CaseKind::Random] {
            let cases = system.cases.iter().filter(|case| case.kind == kind);
            let cards: Vec<Card<'a>> = cases.map(Card::of).collect();
            if cards.is_empty() {
                continue;
            }
            let (kind, title) = match kind {
                CaseKind::Worst => ("worst", "with the lowest IoU"),
                CaseKind::Random => ("random", "drawn at random"),
            };
            galleries.push(Gallery {
                system: name.clone(),
                kind,
                title: format!("{} {title}", counted(cards.len(), "expression")),
                cards,
            });
        }
    }
    galleries
}

impl<'a> Card<'a> {
    fn of(case: &'a Case) -> Self {
        Self {
            picture_id: &case.picture_id,
            expression_id: &case.expression_id,
            phrase: &case.phrase,
            is_long: case.phrase.chars().count() > LONG_PHRASE,
            iou: format!("{:.2}", share(case.iou)),
            width: width(100.0 * case.iou),
            found: case.found,
            has_target: case.has_target,
            verdict: match (case.has_target, case.found) {
                (true, true) => "found",
                (true, false) => "not found, but it is there",
                (false, true) => "found, but nothing is there",
                (false, false) => "not found, and nothing is there",
            },
            presence: case.presence.map(|p| format!("{:.2}", share(p.into()))),
            picture: case.picture.as_ref().map(|jpeg| STANDARD.encode(jpeg)),
        }
    }
}

/// The systems' rows of the same name, in the order in which names first appear.
fn joined<T>(
    systems: &[System],
    list: fn(&System) -> &[T],
    name: fn(&T) -> &str,
) -> Vec<(&str, Vec<Option<&T>>)> {
    let mut names: Vec<&str> = Vec::new();
    for row in systems.iter().flat_map(list) {
        if !names.contains(&name(row)) {
            names.push(name(row));
        }
    }
    let rows = |wanted| {
        let row_of = |system| list(system).iter().find(|row| name(row) == wanted);
        systems.iter().map(row_of).collect()
    };
    names.into_iter().map(|name| (name, rows(name))).collect()
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), fixed)
}

/// Two decimals, as on the terminal, with a true minus sign.
fn fixed(value: f64) -> String {
    if !value.is_finite() {
        return NOTHING.to_owned();
    }
    let digits = format!("{value:.2}").replace('-', "−");
    if digits == "−0.00" {
        "0.00".to_owned()
    } else {
        digits
    }
}

fn signed(value: f64) -> String {
    let digits = fixed(value);
    if digits.starts_with(|first: char| first.is_ascii_digit()) && digits != "0.00" {
        format!("+{digits}")
    } else {
        digits
    }
}

/// The width of a bar for a value in per cent.
fn width(percent: f64) -> String {
    format!("{:.2}%", 100.0 * share(percent / 100.0))
}

/// A number from 0 to 1, which is 0 if it is none.
pub(super) fn share(value: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, 1.0)
    }
}
