//! The report as it is printed: every number already a text, every list in the order of the page.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    Evaluation, ParameterGroup, Sample, Series, TrainingReport,
    chart::{Chart, significant},
};
use crate::{
    commands::with_commas,
    report::page::{NOTHING, share},
};

/// What the template fills in.
#[derive(Serialize)]
pub(super) struct Page<'a> {
    style: &'static str,
    own_style: &'static str,
    title: &'a str,
    subtitle: &'a str,
    notes: &'a [String],
    plan: &'a [(String, String)],
    /// Held-out pictures first.
    sections: Vec<Section>,
    metrics: Vec<Metric<'a>>,
    names: Vec<&'a str>,
    evaluations: Vec<EvaluationRow>,
    groups: Vec<GroupRow<'a>>,
    parameters: String,
    /// Steps of the evaluations that the pictures are from.
    columns: Vec<String>,
    /// Says so where these are not all.
    selection: Option<String>,
    samples: Vec<SampleRow<'a>>,
}

/// Charts under a heading.
#[derive(Serialize)]
struct Section {
    class: &'static str,
    title: &'static str,
    caption: &'static str,
    /// What is said where there is no chart.
    empty: &'static str,
    charts: Vec<Chart>,
}

/// A metric at its last and at its best.
#[derive(Serialize)]
struct Metric<'a> {
    name: &'a str,
    last: String,
    best: String,
    best_step: String,
}

#[derive(Serialize)]
struct EvaluationRow {
    step: String,
    values: Vec<String>,
}

#[derive(Serialize)]
struct GroupRow<'a> {
    name: &'a str,
    treatment: &'a str,
    rate: String,
    tensors: String,
    parameters: String,
}

#[derive(Serialize)]
struct SampleRow<'a> {
    picture_id: &'a str,
    phrase: &'a str,
    is_long: bool,
    has_target: bool,
    /// One for each column; `None` where nothing was kept.
    answers: Vec<Option<AnswerCell>>,
}

#[derive(Serialize)]
struct AnswerCell {
    step: String,
    iou: String,
    is_wrong: bool,
    found: bool,
    /// Media type, and the file in base64.
    media: &'static str,
    picture: String,
}

/// Columns of pictures, so that a long run makes no huge page.
const COLUMNS: usize = 8;
/// Letters of a phrase, beyond which it scrolls.
const LONG_PHRASE: usize = 90;

impl<'a> Page<'a> {
    pub(super) fn of(report: &'a TrainingReport) -> Self {
        let last_step = last_step(report);
        let chart = |series: &Series| Chart::of_series(series, last_step);
        let names = names(&report.evaluations);
        let pictured: BTreeSet<u64> = report
            .samples
            .iter()
            .flat_map(|sample| sample.answers.iter().map(|answer| answer.step))
            .collect();
        let pictured: Vec<u64> = pictured.into_iter().collect();
        let columns = spread(&pictured);
        let parameters = report.groups.iter().map(|group| group.parameters).sum();
        Self {
            style: include_str!("../page.css"),
            own_style: include_str!("../training.css"),
            title: &report.title,
            subtitle: &report.subtitle,
            notes: &report.notes,
            plan: &report.plan,
            sections: vec![
                Section {
                    class: "results",
                    title: "Held-out pictures",
                    caption: "Per cent, by step. The numbers are those of the last evaluation.",
                    empty: "Not judged yet.",
                    charts: Chart::of_evaluations(&report.evaluations, last_step)
                        .into_iter()
                        .collect(),
                },
                Section {
                    class: "losses",
                    title: "Losses",
                    caption: "By step, on logarithmic scales: faint as they were, strong smoothed. \
                              The numbers are the last smoothed ones.",
                    empty: "No step is done yet.",
                    charts: report.losses.iter().filter_map(chart).collect(),
                },
                Section {
                    class: "optimiser",
                    title: "Optimiser",
                    caption: "By step.",
                    empty: "No step is done yet.",
                    charts: report.optimiser.iter().filter_map(chart).collect(),
                },
            ],
            metrics: names
                .iter()
                .map(|name| Metric::of(name, &report.evaluations))
                .collect(),
            evaluations: report
                .evaluations
                .iter()
                .map(|evaluation| EvaluationRow::of(evaluation, &names))
                .collect(),
            names,
            groups: report.groups.iter().map(GroupRow::of).collect(),
            parameters: with_commas(parameters),
            samples: report
                .samples
                .iter()
                .map(|sample| SampleRow::of(sample, &columns))
                .collect(),
            selection: (columns.len() < pictured.len())
                .then(|| format!("{} of {} evaluations.", columns.len(), pictured.len())),
            columns: columns.into_iter().map(with_commas).collect(),
        }
    }
}

impl Evaluation {
    /// A metric, if there is one of that name and something was counted.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        let metric = self.metrics.iter().find(|(metric, _)| metric == name);
        metric?.1.filter(|value| value.is_finite())
    }
}

impl<'a> Metric<'a> {
    fn of(name: &'a str, evaluations: &[Evaluation]) -> Self {
        let last = evaluations.last().and_then(|last| last.value(name));
        let values = evaluations
            .iter()
            .filter_map(|evaluation| Some((evaluation.value(name)?, evaluation.step)));
        // Of equal ones the first: it was best from then on.
        let best = values.reduce(|best, next| if next.0 > best.0 { next } else { best });
        Self {
            name,
            last: percent(last),
            best: percent(best.map(|(value, _)| value)),
            best_step: best.map_or_else(String::new, |(_, step)| with_commas(step)),
        }
    }
}

impl EvaluationRow {
    fn of(evaluation: &Evaluation, names: &[&str]) -> Self {
        Self {
            step: with_commas(evaluation.step),
            values: names
                .iter()
                .map(|name| percent(evaluation.value(name)))
                .collect(),
        }
    }
}

impl<'a> GroupRow<'a> {
    fn of(group: &'a ParameterGroup) -> Self {
        Self {
            name: &group.name,
            treatment: &group.treatment,
            rate: group.rate.map_or_else(|| NOTHING.to_owned(), significant),
            tensors: with_commas(group.tensors),
            parameters: with_commas(group.parameters),
        }
    }
}

impl<'a> SampleRow<'a> {
    fn of(sample: &'a Sample, columns: &[u64]) -> Self {
        let cell = |step: &u64| {
            let answer = sample.answers.iter().find(|answer| answer.step == *step)?;
            let is_png = answer.picture.starts_with(b"\x89PNG");
            Some(AnswerCell {
                step: with_commas(answer.step),
                iou: format!("{:.2}", share(answer.iou)),
                is_wrong: answer.found != sample.has_target,
                found: answer.found,
                media: if is_png { "image/png" } else { "image/jpeg" },
                picture: STANDARD.encode(&answer.picture),
            })
        };
        Self {
            picture_id: &sample.picture_id,
            phrase: &sample.phrase,
            is_long: sample.phrase.chars().count() > LONG_PHRASE,
            has_target: sample.has_target,
            answers: columns.iter().map(cell).collect(),
        }
    }
}

/// The last step of which anything is known.
fn last_step(report: &TrainingReport) -> u64 {
    let series = report.losses.iter().chain(&report.optimiser);
    let stepped = series.filter_map(|series| Some(series.points.last()?.0));
    let evaluated = report.evaluations.last().map(|last| last.step);
    stepped.chain(evaluated).max().unwrap_or(0)
}

/// Names of metrics in the order in which they first appear.
fn names(evaluations: &[Evaluation]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in evaluations.iter().flat_map(|each| &each.metrics) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// The first, the last, and as many between them as there is room for, at even distances.
fn spread(steps: &[u64]) -> Vec<u64> {
    if steps.len() <= COLUMNS {
        return steps.to_vec();
    }
    let last = steps.len() - 1;
    (0..COLUMNS)
        .map(|i| steps[(i * last + (COLUMNS - 1) / 2) / (COLUMNS - 1)])
        .collect()
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| format!("{value:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_spread_from_first_to_last() {
        let steps = |count: u64| (1..=count).map(|i| 100 * i).collect::<Vec<_>>();
        assert_eq!(spread(&steps(8)), steps(8));
        assert_eq!(spread(&steps(9)).len(), COLUMNS);
        assert_eq!(
            spread(&steps(22)),
            [100, 400, 700, 1000, 1300, 1600, 1900, 2200]
        );
        assert!(spread(&[]).is_empty());
    }

    #[test]
    fn the_best_is_the_first_of_the_highest() {
        let evaluation = |step, value| Evaluation {
            step,
            metrics: vec![("cIoU".to_owned(), value)],
        };
        let evaluations = [
            evaluation(1, Some(3.0)),
            evaluation(2, Some(7.0)),
            evaluation(3, Some(7.0)),
            evaluation(4, None),
        ];
        let metric = Metric::of("cIoU", &evaluations);
        let shown = [&metric.last, &metric.best, &metric.best_step].map(String::as_str);
        assert_eq!(shown, ["–", "7.0", "2"]);
    }
}
