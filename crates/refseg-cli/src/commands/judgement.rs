//! Judged answers, and the three forms in which they are shown: a table, JSON, a page.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use refseg_data::{
    dataset::Truth,
    evaluate::{Asked, Examples, Protocol},
    metrics::{Bootstrap, Difference, Family, Interval, Metric, PerMetric, Rules, Sums},
    predictions::Answers,
    scenes::PhraseKind,
    score::{self, Case, CaseRecord, Scorer, TrueMask},
};
use serde_json::{Map, Value, json};

use super::{opened::warn_of_skipped, with_commas};
use crate::{
    console::Console,
    files::write_whole,
    report::{self, Report},
    table::{Align, Table},
};

/// Cases of each sort that a report shows.
const SHOWN: usize = 24;
/// Decides which random cases are shown.
const SHOWN_SEED: u64 = 0;

/// What was judged, for who reads the numbers.
pub(crate) struct About {
    pub(crate) dataset: String,
    pub(crate) split: String,
    /// SHA-256 of the annotation files, where there are any.
    pub(crate) data_sha256: Option<String>,
    /// How the phrases were asked, if it was refseg that asked.
    pub(crate) protocol: Option<Protocol>,
    /// A model and its SHA-256, if it was refseg that asked.
    pub(crate) model: Option<(String, String)>,
    /// What makes these numbers again.
    pub(crate) command: String,
}

/// The answers of one system, judged.
pub(crate) struct System {
    pub(crate) name: String,
    cases: Vec<CaseRecord>,
    /// The kind of each case's phrase, where the data set knows it.
    kinds: Vec<Option<&'static str>>,
    answers: Answers,
}

impl System {
    /// Compares answers with the truth, picture by picture.
    ///
    /// # Errors
    /// If the data set or an answer is at fault; with `keep_going` answers at fault are
    /// passed over with a warning.
    pub(crate) fn judge(
        name: String,
        examples: &dyn Examples,
        pictures: &[usize],
        answers: Answers,
        keep_going: bool,
        console: &Console,
    ) -> Result<Self> {
        let mut scorer = Scorer::new(&answers, keep_going);
        let mut kinds = HashMap::new();
        for &picture in pictures {
            let id = examples.ids(picture)?.picture;
            for asked in examples.asked(picture)? {
                scorer.score(&case(&id, &asked), &true_mask(&asked.truth))?;
                if let Some(kind) = asked.kind {
                    kinds.insert(asked.id, kind);
                }
            }
        }
        let scored = scorer.finish()?;
        warn_of_skipped(&answers.skipped, console);
        warn_of_skipped(&scored.skipped, console);
        if scored.cases.is_empty() {
            bail!("`{name}`: has no answer that could be judged");
        }
        let kind = |case: &CaseRecord| kinds.get(&case.expression).copied();
        Ok(Self {
            name,
            kinds: scored.cases.iter().map(kind).collect(),
            cases: scored.cases,
            answers,
        })
    }

    /// Sums by kind of phrase, of those kinds that there are.
    fn by_kind(&self, rules: &Rules) -> Vec<(&'static str, Sums)> {
        let sums = |kind: &PhraseKind| {
            let cases = self.cases.iter().zip(&self.kinds);
            let of_kind = cases.filter(|(_, other)| **other == Some(kind.name()));
            let pictures = score::by_picture(of_kind.map(|(case, _)| case), rules);
            (kind.name(), pictures.into_iter().sum())
        };
        let all = PhraseKind::ALL.iter().map(sums);
        all.filter(|(_, sums): &(_, Sums)| sums.expressions > 0)
            .collect()
    }
}

fn case<'a>(picture: &'a str, asked: &'a Asked) -> Case<'a> {
    Case {
        picture,
        expression: &asked.id,
        phrase: &asked.phrase,
    }
}

fn true_mask(truth: &Truth) -> TrueMask<'_> {
    TrueMask {
        mask: &truth.mask,
        ignore: truth.ignore.as_ref(),
        official_box: truth.official_box,
    }
}

/// One system, or two on the same expressions.
pub(crate) struct Judgement {
    about: About,
    rules: Rules,
    systems: Vec<(System, Scored)>,
    /// The second system less the first.
    difference: Option<PerMetric<Option<Difference>>>,
}

/// What a system comes to.
struct Scored {
    pictures: usize,
    sums: Sums,
    scores: PerMetric<Option<f64>>,
    intervals: PerMetric<Option<Interval>>,
}

impl Scored {
    fn counts(&self) -> Value {
        let mut counts = counts(&self.sums);
        counts["pictures"] = json!(self.pictures);
        counts
    }
}

impl Judgement {
    /// Adds up what was judged.
    ///
    /// # Errors
    /// If two systems did not answer the same expressions.
    pub(crate) fn new(about: About, rules: Rules, systems: Vec<System>) -> Result<Self> {
        let bootstrap = Bootstrap::default();
        let pictures: Vec<Vec<Sums>> = systems
            .iter()
            .map(|system| score::by_picture(&system.cases, &rules))
            .collect();
        let difference = match &pictures[..] {
            [first, second] => Some(bootstrap.compare(&rules, second, first)?),
            _ => None,
        };
        let scored = pictures.iter().map(|pictures| {
            let sums: Sums = pictures.iter().copied().sum();
            Scored {
                pictures: pictures.len(),
                scores: rules.scores(&sums),
                intervals: bootstrap.intervals(&rules, pictures),
                sums,
            }
        });
        let scored: Vec<Scored> = scored.collect();
        Ok(Self {
            about,
            rules,
            systems: systems.into_iter().zip(scored).collect(),
            difference,
        })
    }

    /// Prints the result: a table, or `metrics.json` with `json`.
    ///
    /// # Errors
    /// If standard output is closed.
    pub(crate) fn show(&self, json: bool, console: &Console) -> Result<()> {
        for line in self.notes() {
            console.note(line);
        }
        if json {
            return console.json(&self.document());
        }
        for (system, scored) in &self.systems {
            if self.systems.len() > 1 {
                console.result(format_args!("{}", system.name))?;
            }
            let kinds = system.by_kind(&self.rules);
            if !kinds.is_empty() {
                console.result(self.kinds_table(&kinds, &scored.sums))?;
                console.result("")?;
            }
            console.result(metrics_table(scored))?;
        }
        if let Some(difference) = &self.difference {
            console.result("second less first")?;
            console.result(difference_table(difference))?;
        }
        Ok(())
    }

    /// Writes `metrics.json` and `report.html` into a folder.
    ///
    /// # Errors
    /// If a file cannot be written, or a picture cannot be read again.
    pub(crate) fn write(&self, folder: &Path, examples: &dyn Examples) -> Result<()> {
        fs::create_dir_all(folder)
            .with_context(|| format!("`{}`: cannot make the folder", folder.display()))?;
        let metrics = serde_json::to_vec_pretty(&self.document())
            .context("cannot write the metrics as JSON")?;
        write_whole(&folder.join("metrics.json"), &metrics)?;
        let page = self.report(examples)?.to_html()?;
        write_whole(&folder.join("report.html"), page.as_bytes())
    }

    /// What is in `metrics.json`. Nothing in it depends on the time or on how often the run
    /// was interrupted.
    fn document(&self) -> Value {
        let about = &self.about;
        let mut document = json!({
            "refseg": env!("CARGO_PKG_VERSION"),
            "dataset": about.dataset,
            "split": about.split,
            "data_sha256": about.data_sha256,
            "blank_rejected": self.rules.blank_rejected,
            "command": about.command,
        });
        if let Some(protocol) = about.protocol {
            document["protocol"] = json!(protocol.name());
            document["leak_free"] = json!(protocol.is_leak_free());
        }
        if let Some((model, sha256)) = &about.model {
            document["model"] = json!(model);
            document["model_sha256"] = json!(sha256);
        }
        match &self.systems[..] {
            [(system, scored)] => {
                document["metrics"] = metrics(scored);
                document["counts"] = scored.counts();
                let kinds = system.by_kind(&self.rules);
                if !kinds.is_empty() {
                    let of = |(kind, sums): (&str, Sums)| (kind.to_owned(), self.kind(&sums));
                    document["kinds"] = kinds.into_iter().map(of).collect::<Map<_, _>>().into();
                }
            }
            systems => {
                let of = |(system, scored): &(System, Scored)| json!({"name": system.name, "metrics": metrics(scored), "counts": scored.counts()});
                document["systems"] = systems.iter().map(of).collect();
            }
        }
        if let Some(difference) = &self.difference {
            document["difference"] = json!(difference);
        }
        document
    }

    fn kind(&self, sums: &Sums) -> Value {
        json!({"metrics": self.rules.scores(sums), "counts": counts(sums)})
    }

    /// What a reader of the numbers has to know.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(protocol) = self.about.protocol {
            notes.push(format!("protocol {protocol}: {}", protocol.meaning()));
        }
        if self.rules.family == Family::Gres {
            notes.push(if self.rules.blank_rejected {
                "what was answered \"not found\" counts with an empty mask".to_owned()
            } else {
                "published rules: a target that was answered \"not found\" counts with the mask it would have had; --blank-rejected counts it as empty".to_owned()
            });
        }
        notes
    }

    fn kinds_table(&self, kinds: &[(&'static str, Sums)], all: &Sums) -> Table {
        use Align::{Left, Right};
        let mut table = Table::markdown(&[
            ("kind", Left),
            ("phrases", Right),
            ("cIoU", Right),
            ("mIoU", Right),
            ("Prec@0.5", Right),
            ("found", Right),
        ]);
        for (kind, sums) in kinds.iter().copied().chain([("all", *all)]) {
            let scores = self.rules.scores(&sums);
            let found = sums.accepted + sums.without_target - sums.rejected;
            // Without targets there is nothing that masks could share.
            let ciou = scores[Metric::Ciou].filter(|_| sums.with_target > 0);
            table.row([
                kind.into(),
                with_commas(sums.expressions).into(),
                shown(ciou).into(),
                shown(scores[Metric::Miou]).into(),
                shown(scores[Metric::PrecAt0_5]).into(),
                shown(Some(100.0 * found as f64 / sums.expressions as f64)).into(),
            ]);
        }
        table
    }

    fn report(&self, examples: &dyn Examples) -> Result<Report> {
        let about = &self.about;
        let mut facts = Vec::new();
        let mut fact = |name: &str, value: &str| facts.push((name.to_owned(), value.to_owned()));
        if let Some((model, sha256)) = &about.model {
            fact("model", model);
            fact("model SHA-256", sha256);
        }
        if let Some(sha256) = &about.data_sha256 {
            fact("annotations SHA-256", sha256);
        }
        if let Some(protocol) = about.protocol {
            fact("protocol", protocol.name());
        }
        let blanked = if self.rules.blank_rejected {
            "yes"
        } else {
            "no"
        };
        fact("rejected masks counted as empty", blanked);
        fact("refseg", env!("CARGO_PKG_VERSION"));
        fact("command", &about.command);
        let subtitle = match about.protocol {
            Some(protocol) => format!("{} · {} · {protocol}", about.dataset, about.split),
            None => format!("{} · {}", about.dataset, about.split),
        };
        let of_system = |(system, scored): &(System, Scored)| self.system(system, scored, examples);
        Ok(Report {
            title: "Evaluation".to_owned(),
            subtitle,
            facts,
            systems: self.systems.iter().map(of_system).collect::<Result<_>>()?,
            difference: self.difference.as_ref().map(|difference| {
                let row =
                    |(metric, difference): (Metric, &Option<Difference>)| report::DifferenceRow {
                        name: label(metric).to_owned(),
                        value: difference.map(|it| it.difference),
                        interval: difference.map(|it| (it.interval.low, it.interval.high)),
                    };
                difference.iter().map(row).collect()
            }),
            notes: self.notes(),
        })
    }

    fn system(
        &self,
        system: &System,
        scored: &Scored,
        examples: &dyn Examples,
    ) -> Result<report::System> {
        let cases = &system.cases;
        let group = |(label, sums): (&'static str, Sums)| {
            let scores = self.rules.scores(&sums);
            report::Group {
                label: label.to_owned(),
                expressions: sums.expressions,
                miou: scores[Metric::Miou],
                ciou: scores[Metric::Ciou],
            }
        };
        let chosen = [
            (
                report::CaseKind::Worst,
                score::worst(cases, &self.rules, SHOWN),
            ),
            (
                report::CaseKind::Random,
                score::at_random(cases, SHOWN, SHOWN_SEED),
            ),
        ];
        let mut shown = Vec::new();
        let pictures = Pictures::of(examples)?;
        for (kind, indices) in chosen {
            for index in indices {
                let case = &cases[index];
                shown.push(self.case(kind, case, &system.answers, &pictures)?);
            }
        }
        Ok(report::System {
            name: system.name.clone(),
            metrics: Metric::ALL
                .into_iter()
                .map(|metric| report::MetricRow {
                    name: label(metric).to_owned(),
                    value: scored.scores[metric],
                    interval: scored.intervals[metric].map(|it| (it.low, it.high)),
                    meaning: meaning(metric),
                })
                .collect(),
            counts: [("pictures", scored.pictures as u64)]
                .into_iter()
                .chain(count_rows(&scored.sums))
                .map(|(name, count)| (name.replace('_', " "), count))
                .collect(),
            histogram: score::iou_histogram(cases, &self.rules),
            by_length: score::by_length(cases, &self.rules).map(group).to_vec(),
            by_size: score::by_target_size(cases, &self.rules)
                .map(group)
                .to_vec(),
            cases: shown,
        })
    }

    fn case(
        &self,
        kind: report::CaseKind,
        record: &CaseRecord,
        answers: &Answers,
        pictures: &Pictures<'_>,
    ) -> Result<report::Case> {
        let (image, asked) = pictures.find(&record.picture, &record.expression)?;
        let truth = &asked.truth.mask;
        let answer = answers.of(&record.picture, &asked.id, &asked.phrase);
        let predicted = match answer.and_then(|answer| answer.rle.as_ref()) {
            Some(rle) => refseg::mask::Mask::from_rle(rle)?,
            None => refseg::mask::Mask::empty(truth.height(), truth.width())?,
        };
        Ok(report::Case {
            kind,
            picture_id: record.picture.clone(),
            expression_id: record.expression.clone(),
            phrase: asked.phrase,
            iou: self.rules.iou(&record.outcome),
            found: record.outcome.found,
            has_target: record.outcome.has_target(),
            presence: answer.and_then(|answer| answer.presence),
            picture: Some(report::case_picture(&image, truth, &predicted)?),
        })
    }
}

/// Pictures of a data set by their ids.
struct Pictures<'a> {
    examples: &'a dyn Examples,
    by_id: HashMap<String, usize>,
}

impl<'a> Pictures<'a> {
    fn of(examples: &'a dyn Examples) -> Result<Self> {
        let id = |picture| Ok((examples.ids(picture)?.picture, picture));
        Ok(Self {
            examples,
            by_id: (0..examples.pictures()).map(id).collect::<Result<_>>()?,
        })
    }

    /// A picture, and one of its expressions.
    fn find(&self, picture: &str, expression: &str) -> Result<(refseg::Image, Asked)> {
        let gone = || format!("picture `{picture}`: `{expression}` is no longer in the data set");
        let &index = self.by_id.get(picture).with_context(gone)?;
        let example = self.examples.example(index)?;
        let mut expressions = example.expressions.into_iter();
        let asked = expressions
            .find(|asked| asked.id == expression)
            .with_context(gone)?;
        Ok((example.image, asked))
    }
}

/// Metrics in per cent, each with its interval beside it; null where there is nothing to count.
fn metrics(scored: &Scored) -> Value {
    let mut map = Map::new();
    for metric in Metric::ALL {
        let interval = scored.intervals[metric].map(|it| [it.low, it.high]);
        map.insert(metric.name().to_owned(), json!(scored.scores[metric]));
        map.insert(format!("{}_interval", metric.name()), json!(interval));
    }
    map.into()
}

fn counts(sums: &Sums) -> Value {
    let rows = count_rows(sums).map(|(name, count)| (name.to_owned(), json!(count)));
    rows.into_iter().collect::<Map<_, _>>().into()
}

fn count_rows(sums: &Sums) -> [(&'static str, u64); 7] {
    [
        ("expressions", sums.expressions),
        ("with_target", sums.with_target),
        ("accepted", sums.accepted),
        ("without_target", sums.without_target),
        ("rejected", sums.rejected),
        ("intersection", sums.intersection),
        ("union", sums.union),
    ]
}

fn metrics_table(scored: &Scored) -> Table {
    let mut table = Table::markdown(&[
        ("metric", Align::Left),
        ("value", Align::Right),
        ("95 % interval", Align::Right),
    ]);
    for metric in Metric::ALL {
        if let Some(value) = scored.scores[metric] {
            table.row([
                label(metric).into(),
                shown(Some(value)).into(),
                between(scored.intervals[metric]).into(),
            ]);
        }
    }
    table
}

fn difference_table(difference: &PerMetric<Option<Difference>>) -> Table {
    let mut table = Table::markdown(&[
        ("metric", Align::Left),
        ("difference", Align::Right),
        ("95 % interval", Align::Right),
        ("p", Align::Right),
    ]);
    for (metric, difference) in difference.iter() {
        if let Some(difference) = difference {
            table.row([
                label(metric).into(),
                format!("{:+.2}", difference.difference).into(),
                between(Some(difference.interval)).into(),
                format!("{:.3}", difference.p_value).into(),
            ]);
        }
    }
    table
}

fn between(interval: Option<Interval>) -> String {
    interval.map_or_else(String::new, |it| format!("{:.2} to {:.2}", it.low, it.high))
}

fn shown(percent: Option<f64>) -> String {
    percent.map_or_else(|| "–".to_owned(), |percent| format!("{percent:.2}"))
}

/// The metric's name as people write it.
fn label(metric: Metric) -> &'static str {
    match metric {
        Metric::Ciou => "cIoU",
        Metric::Giou => "gIoU",
        Metric::Miou => "mIoU",
        Metric::PrecAt0_5 => "Prec@0.5",
        Metric::PrecAt0_6 => "Prec@0.6",
        Metric::PrecAt0_7 => "Prec@0.7",
        Metric::PrecAt0_8 => "Prec@0.8",
        Metric::PrecAt0_9 => "Prec@0.9",
        Metric::RecPrecAt0_5 => "REC Prec@0.5",
        Metric::NAcc => "N-acc",
        Metric::TAcc => "T-acc",
    }
}

fn meaning(metric: Metric) -> &'static str {
    match metric {
        Metric::Ciou => "summed intersection over summed union",
        Metric::Giou => "mean IoU as the data set's evaluation averages it",
        Metric::Miou => "mean IoU over expressions",
        Metric::PrecAt0_5 => "expressions with a mask IoU above 0.5",
        Metric::PrecAt0_6 => "expressions with a mask IoU above 0.6",
        Metric::PrecAt0_7 => "expressions with a mask IoU above 0.7",
        Metric::PrecAt0_8 => "expressions with a mask IoU above 0.8",
        Metric::PrecAt0_9 => "expressions with a mask IoU above 0.9",
        Metric::RecPrecAt0_5 => "expressions with a box IoU above 0.5",
        Metric::NAcc => "expressions without a target that were rejected",
        Metric::TAcc => "expressions with a target that were not rejected",
    }
}
