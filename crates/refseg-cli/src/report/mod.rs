//! Reports: plain data in, one HTML page out. Here that of an evaluation, in `training` that of a run.
//!
//! A page is a single file without scripts, styles, fonts or pictures from
//! elsewhere, so it can be opened from disk, sent and kept. Without JavaScript
//! it only loses the filter of its cases. It holds no date and nothing random:
//! the same report gives the same bytes.

mod histogram;
mod page;
mod picture;
#[cfg(test)]
mod tests;
pub(crate) mod training;

use anyhow::{Context, Result};
use minijinja::{Environment, UndefinedBehavior, escape_formatter};
use serde::Serialize;

use page::Page;
pub(crate) use picture::case_picture;

/// The evaluation of one system, or of two on the same expressions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// The page's heading.
    pub(crate) title: String,
    /// Data set, split and protocol.
    pub(crate) subtitle: String,
    /// What the numbers were made from and with, as names and values: models,
    /// hashes, protocol, versions, command.
    pub(crate) facts: Vec<(String, String)>,
    /// The system, or the two to compare, which the page calls A and B.
    pub(crate) systems: Vec<System>,
    /// The second system's metrics less the first's, if two are compared.
    pub(crate) difference: Option<Vec<DifferenceRow>>,
    /// What has to be known to read the numbers, in whole sentences.
    pub(crate) notes: Vec<String>,
}

/// What a system scored.
#[derive(Debug, Clone, Default)]
pub(crate) struct System {
    /// The name that tells it apart from the other.
    pub(crate) name: String,
    /// Metrics in the order of the table.
    pub(crate) metrics: Vec<MetricRow>,
    /// Whole numbers worth knowing: expressions, pictures, rejections.
    pub(crate) counts: Vec<(String, u64)>,
    /// Expressions by IoU, in steps of 0.05 from 0; the last includes 1.
    pub(crate) histogram: [u64; 20],
    /// Scores by length of the phrase.
    pub(crate) by_length: Vec<Group>,
    /// Scores by the target's share of the picture.
    pub(crate) by_size: Vec<Group>,
    /// Expressions to look at.
    pub(crate) cases: Vec<Case>,
}

/// A metric in per cent.
#[derive(Debug, Clone)]
pub(crate) struct MetricRow {
    /// Its name, by which the systems' rows and the differences are matched.
    pub(crate) name: String,
    /// Its value; `None` where there was nothing to count.
    pub(crate) value: Option<f64>,
    /// Ends of its 95 % interval.
    pub(crate) interval: Option<(f64, f64)>,
    /// What it measures, in a few words.
    pub(crate) meaning: &'static str,
}

/// How far a metric of the second system is above that of the first.
#[derive(Debug, Clone)]
pub(crate) struct DifferenceRow {
    /// The metric's name.
    pub(crate) name: String,
    /// The difference in percentage points.
    pub(crate) value: Option<f64>,
    /// Ends of its 95 % interval, the expressions being paired.
    pub(crate) interval: Option<(f64, f64)>,
}

/// Expressions that have something in common.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// What that is, such as "3–4 words".
    pub(crate) label: String,
    /// How many there are.
    pub(crate) expressions: u64,
    /// Mean IoU per expression, in per cent.
    pub(crate) miou: Option<f64>,
    /// Summed intersection over summed union, in per cent.
    pub(crate) ciou: Option<f64>,
}

/// One expression and its answer.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Why it is shown.
    pub(crate) kind: CaseKind,
    /// The picture's name in the data set.
    pub(crate) picture_id: String,
    /// The expression's name in the data set.
    pub(crate) expression_id: String,
    /// The referring expression, as anybody may have written it.
    pub(crate) phrase: String,
    /// IoU of prediction and truth, from 0 to 1.
    pub(crate) iou: f64,
    /// Whether the answer was "found".
    pub(crate) found: bool,
    /// Whether the truth has any pixel.
    pub(crate) has_target: bool,
    /// Probability that there is a target, as the system gave it.
    pub(crate) presence: Option<f32>,
    /// A JPEG from [`case_picture`]; `None` if the picture is not at hand.
    pub(crate) picture: Option<Vec<u8>>,
}

/// Why a case is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CaseKind {
    /// Its IoU is among the lowest.
    Worst,
    /// It was drawn by chance.
    Random,
}

impl Report {
    /// The report as an HTML page.
    ///
    /// # Errors
    /// If the page's template is broken.
    pub(crate) fn to_html(&self) -> Result<String> {
        fill_in(include_str!("page.html"), Page::of(self))
    }
}

/// A page from its template. All text is escaped.
fn fill_in(template: &str, page: impl Serialize) -> Result<String> {
    let mut templates = Environment::new();
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    templates.set_trim_blocks(true);
    templates.set_lstrip_blocks(true);
    templates.set_formatter(|out, state, value| match value.as_str() {
        Some(text) if text.contains(is_forbidden) => {
            escape_formatter(out, state, &visible(text).into())
        }
        _ => escape_formatter(out, state, value),
    });
    templates
        // The name's ending switches the escaping of all text on.
        .template_from_named_str("report.html", template)
        .and_then(|template| template.render(page))
        .context("cannot fill in the report's template")
}

/// Whether HTML has no way to hold a letter.
fn is_forbidden(letter: char) -> bool {
    letter.is_control() && !letter.is_ascii_whitespace()
}

/// A text with forbidden letters as escapes, as on the terminal.
fn visible(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        if is_forbidden(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}
