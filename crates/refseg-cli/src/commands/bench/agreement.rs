//! `refseg bench --agreement`: what a precision does to the masks of a model.

use anyhow::Result;
use refseg::{Image, nn::Precision};
use refseg_data::scenes::{Scene, SceneOptions, Split};
use serde::Serialize;

use super::super::{options, warn_of_unused};
use crate::{
    cli::BenchArgs,
    console::Console,
    table::{Align, Table},
};

/// Asks the model the same in f32 and in the precision asked for, about drawn scenes that none was trained on.
pub(super) fn run(args: &BenchArgs, scenes: usize, console: &Console) -> Result<()> {
    let options = options(&args.compute, console);
    let mut exact = options.clone();
    exact.precision = Precision::F32;
    let (model, reference) = (
        refseg::open(&args.model, &options)?,
        refseg::open(&args.model, &exact)?,
    );
    warn_of_unused(model.name(), model.unused_tensors(), console);

    let drawn = SceneOptions {
        split: Split::HeldOut,
        ..SceneOptions::default()
    };
    let mut agreement = Agreement::default();
    let mut progress = console.progress(scenes as u64, "scenes");
    for index in 0..scenes {
        let scene = Scene::draw(&drawn, index as u64);
        let phrases: Vec<&str> = scene.phrases.iter().map(|p| p.text.as_str()).collect();
        let image = Image::from_rgb(scene.size, scene.size, scene.pixels.clone())?;
        let found = model.encode(&image)?.segment_many(&phrases)?;
        let expected = reference.encode(&image)?.segment_many(&phrases)?;
        for (found, expected) in found.iter().zip(&expected) {
            agreement.phrases += 1;
            match (found.found, expected.found) {
                (true, true) => {
                    let (shared, united) = found.mask.intersection_union(&expected.mask)?;
                    agreement.ious.push(if united == 0 {
                        1.0
                    } else {
                        shared as f64 / united as f64
                    });
                }
                (true, false) => agreement.only_here += 1,
                (false, true) => agreement.only_in_f32 += 1,
                (false, false) => {}
            }
        }
        progress.advance();
    }
    drop(progress);
    agreement.ious.sort_by(f64::total_cmp);
    let document = agreement.document(model.name(), options.precision, scenes);
    if args.json {
        console.json(&document)
    } else {
        console.result(document.table())
    }
}

#[derive(Default)]
struct Agreement {
    phrases: usize,
    /// Of the masks of phrases that both found.
    ious: Vec<f64>,
    only_here: usize,
    only_in_f32: usize,
}

impl Agreement {
    /// `ious` must be sorted.
    fn document<'a>(&self, model: &'a str, precision: Precision, scenes: usize) -> Document<'a> {
        let ious = &self.ious;
        let at = |share: f64| {
            let last = ious.len().checked_sub(1)?;
            ious.get((share * last as f64).round() as usize).copied()
        };
        Document {
            model,
            precision: precision.name(),
            scenes,
            phrases: self.phrases,
            both_found: ious.len(),
            mean_iou: (!ious.is_empty()).then(|| ious.iter().sum::<f64>() / ious.len() as f64),
            fifth_percentile: at(0.05),
            least: at(0.0),
            found_only_in_f32: self.only_in_f32,
            found_only_here: self.only_here,
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    precision: &'static str,
    scenes: usize,
    phrases: usize,
    both_found: usize,
    /// IoU of each mask with the one of f32, where both found something.
    mean_iou: Option<f64>,
    fifth_percentile: Option<f64>,
    least: Option<f64>,
    found_only_in_f32: usize,
    found_only_here: usize,
}

impl Document<'_> {
    fn table(&self) -> Table {
        let mut table = Table::markdown(&[("what", Align::Left), (self.precision, Align::Right)]);
        let iou = |iou: Option<f64>| iou.map_or("none".to_owned(), |iou| format!("{iou:.4}"));
        let rows = [
            ("phrases", self.phrases.to_string()),
            ("found in both", self.both_found.to_string()),
            ("IoU with f32, mean", iou(self.mean_iou)),
            ("5th percentile", iou(self.fifth_percentile)),
            ("least", iou(self.least)),
            ("found only in f32", self.found_only_in_f32.to_string()),
            ("found only here", self.found_only_here.to_string()),
        ];
        for (what, value) in rows {
            table.row([what.into(), value.into()]);
        }
        table
    }
}
