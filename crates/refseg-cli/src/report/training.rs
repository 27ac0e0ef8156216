//! The report of a training run: its plan, its curves, and the same pictures over time.

mod chart;
mod page;
#[cfg(test)]
mod tests;

use anyhow::Result;

use page::Page;

/// A run, finished or under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrainingReport {
    /// The page's heading.
    pub(crate) title: String,
    /// Method, data and how far the run is.
    pub(crate) subtitle: String,
    /// What has to be known to read the page, in whole sentences.
    pub(crate) notes: Vec<String>,
    /// The recipe, as names and values.
    pub(crate) plan: Vec<(String, String)>,
    /// The network's parameters, part by part.
    pub(crate) groups: Vec<ParameterGroup>,
    /// Losses, the sum first.
    pub(crate) losses: Vec<Series>,
    /// Learning rates and the gradient's norm.
    pub(crate) optimiser: Vec<Series>,
    /// Scores on held-out pictures, in the order of steps.
    pub(crate) evaluations: Vec<Evaluation>,
    /// The same expressions, asked at every evaluation.
    pub(crate) samples: Vec<Sample>,
}

/// Parameters that are treated alike.
#[derive(Debug, Clone)]
pub(crate) struct ParameterGroup {
    /// The part of the network.
    pub(crate) name: String,
    /// What is done with it, such as "frozen" or "LoRA of rank 64".
    pub(crate) treatment: String,
    /// Highest learning rate; `None` where nothing is learnt.
    pub(crate) rate: Option<f64>,
    /// Tensors in it.
    pub(crate) tensors: u64,
    /// Numbers in all of them.
    pub(crate) parameters: u64,
}

/// A number over the steps of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    /// What it is.
    pub(crate) name: String,
    /// Step and value, ascending. Values that are not finite are left out of the curve.
    pub(crate) points: Vec<(u64, f64)>,
    /// How it is drawn.
    pub(crate) style: SeriesStyle,
}

/// How a number is drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SeriesStyle {
    /// Noisy and positive: smoothed, on a logarithmic scale, where values of 0 have no place.
    #[default]
    Noisy,
    /// Exact: as it is, from zero.
    Exact,
}

/// Scores on held-out pictures.
#[derive(Debug, Clone)]
pub(crate) struct Evaluation {
    /// After this step.
    pub(crate) step: u64,
    /// Metrics by name in per cent; `None` where there was nothing to count.
    pub(crate) metrics: Vec<(String, Option<f64>)>,
}

/// An expression, and what was answered to it as training went on.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// The picture's name in the data set.
    pub(crate) picture_id: String,
    /// The referring expression, as anybody may have written it.
    pub(crate) phrase: String,
    /// Whether the truth has any pixel.
    pub(crate) has_target: bool,
    /// Answers in the order of steps. The page has room for eight, evenly chosen of all evaluations.
    pub(crate) answers: Vec<Answer>,
}

/// An answer to a sample.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// After this step.
    pub(crate) step: u64,
    /// IoU of prediction and truth, from 0 to 1.
    pub(crate) iou: f64,
    /// Whether the answer was "found".
    pub(crate) found: bool,
    /// The picture with truth and prediction drawn on it, as [`case_picture`](super::case_picture) makes it: a JPEG,
    /// or a PNG.
    pub(crate) picture: Vec<u8>,
}

impl TrainingReport {
    /// The report as an HTML page.
    ///
    /// # Errors
    /// If the page's template is broken.
    pub(crate) fn to_html(&self) -> Result<String> {
        super::fill_in(include_str!("training.html"), Page::of(self))
    }
}
