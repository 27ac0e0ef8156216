//! Shows and writes down what a run reports: the dashboard, the log, the curve, the report, and
//! events for TensorBoard.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use refseg_data::metrics::{Metric, Scores, Tally};
use refseg_train::{
    events::EventWriter,
    losses::Losses,
    run::{Event, Run, Sample, Task, Work},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    dashboard::{Dashboard, Snapshot},
    log::Log,
};
use crate::{
    console::Console,
    files::write_whole,
    report::{
        case_picture,
        training::{self, ParameterGroup, Series, SeriesStyle, TrainingReport},
    },
};

/// Folder of the events.
const EVENTS: &str = "events";
/// Folder of the pictures that the report shows.
const SAMPLES: &str = "samples";
/// The report.
const REPORT: &str = "report.html";

/// Takes in what a run reports.
pub(super) struct Monitor {
    log: Log,
    events: EventWriter,
    folder: PathBuf,
    dashboard: Dashboard,
    report: TrainingReport,
    steps: u64,
    held_out: Option<Scores>,
    failure: Option<anyhow::Error>,
}

impl Monitor {
    pub(super) fn open<T: Task>(run: &Run<T>, console: &Console) -> Result<Self> {
        let folder = run.folder().to_owned();
        let events = folder.join(EVENTS);
        let events = match run.done() {
            0 => EventWriter::create(&events)?,
            done => EventWriter::resume(&events, done)?,
        };
        let files = vec![
            folder.display().to_string(),
            format!("{REPORT}, {EVENTS}/, model/, best/"),
        ];
        Ok(Self {
            log: Log::open(&folder, run.done())?,
            events,
            dashboard: Dashboard::open(console, run.steps(), run.done(), files),
            report: TrainingReport {
                title: "Training".to_owned(),
                plan: plan(&run.task().settings()),
                groups: groups(run),
                ..TrainingReport::default()
            },
            folder,
            steps: run.steps(),
            held_out: None,
            failure: None,
        })
    }

    /// Takes in an event; what fails is kept, and the run is to stop.
    pub(super) fn hear(&mut self, event: Event) -> Result<(), ()> {
        self.take_in(event)
            .map_err(|error| self.failure = Some(error))
    }

    /// What went wrong, or the last evaluation.
    pub(super) fn finish(self) -> Result<Option<Scores>> {
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.held_out),
        }
    }

    fn take_in(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Step {
                step,
                losses,
                norm,
                rate,
                work,
            } => self.step(step, &losses, norm, rate, work)?,
            Event::Pausing { .. } => {
                self.events.flush()?;
                self.dashboard
                    .doing("writing a checkpoint and judging held-out pictures");
            }
            Event::Saved { .. } => self.draw_curve()?,
            Event::HeldOut {
                step,
                tally,
                samples,
                ..
            } => self.held_out(step, &tally, &samples)?,
        }
        Ok(())
    }

    fn step(&mut self, step: u64, losses: &Losses, norm: f64, rate: f64, work: Work) -> Result<()> {
        self.log.step(step, losses, norm, rate)?;
        let mut named = vec![("loss", f64::from(losses.total))];
        let parts = losses.parts.iter();
        named.extend(parts.map(|&(name, value)| (name, f64::from(value))));
        let tags: Vec<String> = named
            .iter()
            .map(|(name, _)| format!("loss/{name}"))
            .collect();
        let mut scalars: Vec<(&str, f64)> = tags
            .iter()
            .zip(&named)
            .map(|(tag, &(_, value))| (tag.as_str(), value))
            .collect();
        scalars.extend([("optimiser/rate", rate), ("optimiser/norm", norm)]);
        self.events.scalars(step, &scalars)?;
        self.dashboard.step(&Snapshot {
            step,
            losses: named,
            rate,
            norm,
            pictures: work.pictures,
            tokens: work.tokens,
        });
        Ok(())
    }

    fn held_out(&mut self, step: u64, tally: &Tally, samples: &[Sample]) -> Result<()> {
        self.log.held_out(step, tally)?;
        let scores = Tally::scores(&tally.all());
        let metrics = named(&scores);
        let tags: Vec<(String, f64)> = metrics
            .iter()
            .filter_map(|(name, value)| Some((format!("held_out/{name}"), (*value)?)))
            .collect();
        let scalars: Vec<(&str, f64)> = tags.iter().map(|(tag, x)| (tag.as_str(), *x)).collect();
        self.events.scalars(step, &scalars)?;
        self.keep_samples(step, samples)?;
        self.events.flush()?;
        self.draw_curve()?;
        self.write_report(step)?;
        self.dashboard.evaluated(step, metrics);
        self.held_out = Some(scores);
        Ok(())
    }

    /// Writes the pictures of an evaluation, for the report and for whoever looks into the folder.
    fn keep_samples(&self, step: u64, samples: &[Sample]) -> Result<()> {
        let folder = self.folder.join(SAMPLES).join(format!("{step:07}"));
        if samples.is_empty() {
            return Ok(());
        }
        let failed = || format!("`{}`: cannot be written", folder.display());
        fs::create_dir_all(&folder).with_context(failed)?;
        let mut kept = Vec::new();
        for (i, sample) in samples.iter().enumerate() {
            let name = format!("{i:02}.jpg");
            let picture = case_picture(&sample.image, &sample.truth, &sample.drawn)?;
            write_whole(&folder.join(&name), &picture)?;
            let (intersection, union) = sample.truth.intersection_union(&sample.drawn)?;
            kept.push(KeptSample {
                picture: sample.picture.clone(),
                phrase: sample.phrase.clone(),
                has_target: sample.truth.area() > 0,
                found: sample.found,
                iou: intersection as f64 / union.max(1) as f64,
                file: name,
            });
        }
        let text = serde_json::to_vec_pretty(&kept).context("cannot describe the samples")?;
        write_whole(&folder.join("samples.json"), &text)
    }

    fn write_report(&mut self, step: u64) -> Result<()> {
        let history = History::read(&self.folder.join("log.jsonl"))?;
        let report = TrainingReport {
            subtitle: format!("step {step} of {}", self.steps),
            losses: history.losses,
            optimiser: history.optimiser,
            evaluations: history.evaluations,
            samples: samples_of(&self.folder.join(SAMPLES), step)?,
            ..self.report.clone()
        };
        write_whole(&self.folder.join(REPORT), report.to_html()?.as_bytes())
    }

    fn draw_curve(&self) -> Result<()> {
        let svg =
            refseg_train::curve::svg(self.log.curve()).context("cannot draw the loss curve")?;
        write_whole(&self.folder.join("curve.svg"), svg.as_bytes())
    }
}

/// Names and values of a run's settings, without braces.
fn plan(settings: &Value) -> Vec<(String, String)> {
    fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let name = if prefix.is_empty() {
                        name.clone()
                    } else {
                        format!("{prefix}.{name}")
                    };
                    flatten(&name, value, rows);
                }
            }
            Value::String(text) => rows.push((prefix.to_owned(), text.clone())),
            other => rows.push((prefix.to_owned(), other.to_string())),
        }
    }
    let mut rows = Vec::new();
    flatten("", settings, &mut rows);
    rows
}

fn groups<T: Task>(run: &Run<T>) -> Vec<ParameterGroup> {
    let groups = run.parameters().groups().into_iter();
    let group = |group: refseg_train::parameters::Group| ParameterGroup {
        name: group.name.to_owned(),
        treatment: "trained".to_owned(),
        rate: Some(run.peak_rate()),
        tensors: group.tensors,
        parameters: group.parameters,
    };
    groups.map(group).collect()
}

fn named(scores: &Scores) -> Vec<(String, Option<f64>)> {
    let shown = [
        ("cIoU", Metric::Ciou),
        ("gIoU", Metric::Giou),
        ("N-acc", Metric::NAcc),
        ("T-acc", Metric::TAcc),
        ("Prec@0.5", Metric::PrecAt0_5),
    ];
    let of = |(name, metric): (&str, Metric)| (name.to_owned(), scores[metric]);
    shown.into_iter().map(of).collect()
}

/// What is kept of a sample beside its picture.
#[derive(Serialize, Deserialize)]
struct KeptSample {
    picture: String,
    phrase: String,
    has_target: bool,
    found: bool,
    iou: f64,
    file: String,
}

/// The samples of all evaluations up to `step`, picture by picture.
fn samples_of(folder: &Path, step: u64) -> Result<Vec<training::Sample>> {
    let mut steps: Vec<(u64, PathBuf)> = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(at) = name.to_str().and_then(|name| name.parse().ok())
            && at <= step
        {
            steps.push((at, entry.path()));
        }
    }
    steps.sort();
    let mut samples: Vec<training::Sample> = Vec::new();
    for (at, path) in steps {
        let failed = || format!("`{}`: cannot be read", path.display());
        let text = fs::read(path.join("samples.json")).with_context(failed)?;
        let kept: Vec<KeptSample> = serde_json::from_slice(&text).with_context(failed)?;
        for (i, kept) in kept.into_iter().enumerate() {
            let answer = training::Answer {
                step: at,
                iou: kept.iou,
                found: kept.found,
                picture: fs::read(path.join(&kept.file)).with_context(failed)?,
            };
            match samples.get_mut(i) {
                Some(sample) => sample.answers.push(answer),
                None => samples.push(training::Sample {
                    picture_id: kept.picture,
                    phrase: kept.phrase,
                    has_target: kept.has_target,
                    answers: vec![answer],
                }),
            }
        }
    }
    Ok(samples)
}

/// What `log.jsonl` tells.
#[derive(Default)]
struct History {
    losses: Vec<Series>,
    optimiser: Vec<Series>,
    evaluations: Vec<training::Evaluation>,
}

impl History {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("`{}`: cannot be read", path.display()))?;
        let mut series: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
        let mut order: Vec<String> = Vec::new();
        let mut evaluations = Vec::new();
        for line in text.lines() {
            let Ok(Value::Object(record)) = serde_json::from_str(line) else {
                continue;
            };
            let Some(step) = record.get("step").and_then(Value::as_u64) else {
                continue;
            };
            if let Some(scores) = record.get("held_out").and_then(Value::as_object) {
                let metric = |(name, key): (&str, &str)| {
                    (name.to_owned(), scores.get(key).and_then(Value::as_f64))
                };
                evaluations.push(training::Evaluation {
                    step,
                    metrics: LOGGED.map(metric).into(),
                });
                continue;
            }
            for (name, value) in &record {
                if let Some(value) = value.as_f64().filter(|_| name != "step") {
                    if !series.contains_key(name) {
                        order.push(name.clone());
                    }
                    series.entry(name.clone()).or_default().push((step, value));
                }
            }
        }
        let is_sum = |name: &String| name == "loss";
        order.sort_by_key(|name| !is_sum(name));
        let mut history = Self {
            evaluations,
            ..Self::default()
        };
        for name in order {
            let points = series.remove(&name).unwrap_or_default();
            let is_rate = name == "rate";
            let is_of_optimiser = is_rate || name == "norm";
            let one = Series {
                style: if is_rate {
                    SeriesStyle::Exact
                } else {
                    SeriesStyle::Noisy
                },
                name,
                points,
            };
            if is_of_optimiser {
                history.optimiser.push(one);
            } else {
                history.losses.push(one);
            }
        }
        Ok(history)
    }
}

/// Metrics of an evaluation, as people and as the log call them.
const LOGGED: [(&str, &str); 5] = [
    ("cIoU", "ciou"),
    ("gIoU", "giou"),
    ("N-acc", "n_acc"),
    ("T-acc", "t_acc"),
    ("Prec@0.5", "precision_at_half"),
];
