//! `refseg bench --profile`: what the time of a first phrase goes to.

use std::collections::HashMap;

use anyhow::Result;
use refseg::{
    Image, Segmenter,
    nn::{self, InstructionSet, Kind, Profile, Spent},
};
use serde::Serialize;

use super::PHRASES;
use crate::{
    cli::BenchArgs,
    console::Console,
    table::{Align, Table},
};

/// Work below this share is summed up.
const LEAST_SHARE: f64 = 0.005;

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    threads: usize,
    repeat: usize,
    /// Billions of f32 operations a second, between the rounds, with nothing but fused products.
    peak_gflops: Option<f64>,
    /// Encode and one phrase, on average.
    first_phrase_ms: f64,
    work: Vec<Row>,
}

/// One kind of work, in one first phrase.
#[derive(Serialize)]
struct Row {
    what: String,
    calls: u64,
    ms: f64,
    share: f64,
    /// Billions of operations a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
    /// Of the most that the instructions it uses could reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    of_peak: Option<f64>,
    /// Billions of bytes a second, counting each that has to be read or written once.
    #[serde(skip_serializing_if = "Option::is_none")]
    gigabytes_per_second: Option<f64>,
}

pub(super) fn run(
    model: &dyn Segmenter,
    image: &Image,
    args: &BenchArgs,
    console: &Console,
) -> Result<()> {
    let repeat = args.repeat.get();
    let first = || model.encode(image)?.segment(PHRASES[0]).map(drop);
    let mut peaks = Vec::with_capacity(repeat);
    let mut profiles = Vec::with_capacity(repeat);
    let mut progress = console.progress(repeat as u64 + 1, "rounds");
    for round in 0..=repeat {
        let peak = nn::peak();
        let (done, profile) = nn::profile(first);
        done?;
        // The first round warms caches and thread pools up.
        if round > 0 {
            peaks.extend(peak);
            profiles.push(profile);
        }
        progress.advance();
    }
    drop(progress);
    peaks.sort_by(f64::total_cmp);
    let document = Document::new(model.name(), peaks.get(repeat / 2).copied(), &profiles);
    if args.json {
        console.json(&document)
    } else {
        document.print(console)
    }
}

impl<'a> Document<'a> {
    fn new(model: &'a str, peak: Option<f64>, profiles: &[Profile]) -> Self {
        let repeat = profiles.len();
        let per_round = 1e3 / repeat as f64;
        let total: f64 = profiles.iter().map(|p| p.total.as_secs_f64()).sum();
        let mut sums = HashMap::<_, Spent>::new();
        for (work, spent) in profiles.iter().flat_map(|profile| &profile.work) {
            let sum = sums.entry(*work).or_default();
            sum.calls += spent.calls;
            sum.time += spent.time;
            sum.operations += spent.operations;
            sum.bytes += spent.bytes;
        }
        let mut work = Vec::new();
        let mut small = Spent::default();
        let mut left = total;
        for (what, spent) in &sums {
            let seconds = spent.time.as_secs_f64();
            left -= seconds;
            if seconds < LEAST_SHARE * total {
                small.calls += spent.calls;
                small.time += spent.time;
                continue;
            }
            let rate = spent.operations * 1e-9 / seconds;
            let at_once = match what.kind {
                Kind::Product(precision) | Kind::Convolution(precision) => {
                    InstructionSet::current().products_at_once(precision)
                }
                Kind::Attention(precision) => {
                    InstructionSet::current().attention_products_at_once(precision)
                }
                Kind::Norm | Kind::Elementwise | Kind::Rope | Kind::Sample => 1,
            };
            let multiplies = spent.operations > 0.0;
            work.push(Row {
                what: what.to_string(),
                calls: spent.calls / repeat as u64,
                ms: seconds * per_round,
                share: seconds / total,
                gflops: multiplies.then_some(rate),
                of_peak: peak
                    .filter(|_| multiplies)
                    .map(|peak| rate / (peak * at_once as f64)),
                gigabytes_per_second: (!multiplies).then_some(spent.bytes * 1e-9 / seconds),
            });
        }
        work.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        let seconds = small.time.as_secs_f64();
        for (what, calls, seconds) in [
            ("less than half a per cent each", small.calls, seconds),
            (
                "all else: the framework's sums and copies, the picture, the mask",
                0,
                left,
            ),
        ] {
            work.push(Row {
                what: what.to_owned(),
                calls: calls / repeat as u64,
                ms: seconds * per_round,
                share: seconds / total,
                gflops: None,
                of_peak: None,
                gigabytes_per_second: None,
            });
        }
        Self {
            model,
            threads: rayon::current_num_threads(),
            repeat,
            peak_gflops: peak,
            first_phrase_ms: total * per_round,
            work,
        }
    }

    fn print(&self, console: &Console) -> Result<()> {
        let mut table = Table::markdown(&[
            ("what", Align::Left),
            ("calls", Align::Right),
            ("ms", Align::Right),
            ("share", Align::Right),
            ("GFLOP/s", Align::Right),
            ("of the peak", Align::Right),
            ("GB/s", Align::Right),
        ]);
        let shown =
            |x: Option<f64>, digits: usize| x.map_or_else(String::new, |x| format!("{x:.digits$}"));
        for row in &self.work {
            let calls = if row.calls == 0 {
                String::new()
            } else {
                row.calls.to_string()
            };
            table.row([
                row.what.clone().into(),
                calls.into(),
                format!("{:.1}", row.ms).into(),
                format!("{:.1} %", 100.0 * row.share).into(),
                shown(row.gflops, 0).into(),
                shown(row.of_peak, 2).into(),
                shown(row.gigabytes_per_second, 1).into(),
            ]);
        }
        let peak = self.peak_gflops.map_or_else(String::new, |peak| {
            format!("; nothing but fused f32 products: {peak:.0} GFLOP/s")
        });
        console.note(format_args!(
            "{}, {} threads, {} rounds: {:.0} ms for a first phrase{peak}",
            self.model, self.threads, self.repeat, self.first_phrase_ms
        ));
        console.result(table)
    }
}
