//! `refseg bench`: what a model costs in time and memory.

mod agreement;
mod points;
mod profile;

use std::time::{Duration, Instant};

use anyhow::Result;
use refseg::{
    Image, Options, Predictor, Segmenter,
    internvl::Config,
    mllmseg::Mllmseg,
    nn::Blueprint,
    sam4mllm::{Pair, Sam4Mllm},
};
use refseg_data::scenes::{Scene, SceneOptions, Split};
use serde::Serialize;

use super::{median_ms, milliseconds, options, readable_bytes, readable_ms, timed, warn_of_unused};
use crate::{
    cli::BenchArgs,
    console::Console,
    memory,
    table::{Align, Table},
};

/// Phrases to ask if the picture is not a drawn one, or has too few of its own.
const PHRASES: [&str; 8] = [
    "the small red ring",
    "all blue circles",
    "the second star from the left",
    "the square below the green cross",
    "the largest heart",
    "the yellow diamond",
    "the object on the right",
    "every striped triangle",
];

pub(crate) fn run(args: &BenchArgs, console: &Console) -> Result<()> {
    if let Some(scenes) = args.agreement {
        return agreement::run(args, scenes.get(), console);
    }
    let image = match &args.image {
        Some(path) => Image::open(path)?,
        None => drawn()?,
    };
    let (opened, load) = timed(|| Model::new(args, &options(&args.compute, console)));
    let opened = opened?;
    let model = opened.segmenter();
    warn_of_unused(model.name(), model.unused_tensors(), console);
    if args.profile {
        return profile::run(model, &image, args, console);
    }
    let after_loading = memory::peak();
    let many: Vec<&str> = PHRASES
        .into_iter()
        .cycle()
        .take(args.phrases.get())
        .collect();
    let one = many[0];

    let mut progress = console.progress(args.repeat.get() as u64 + 1, "rounds");
    let mut times = Times::default();
    let mut scene_bytes = 0;
    for round in 0..=args.repeat.get() {
        let start = Instant::now();
        let scene = model.encode(&image)?;
        let encoded = start.elapsed();
        scene.segment(one)?;
        let first = start.elapsed();
        let start = Instant::now();
        scene.segment(one)?;
        let further = start.elapsed();
        let start = Instant::now();
        scene.segment_many(&many)?;
        let together = start.elapsed();
        scene_bytes = scene.bytes();
        // The first round warms caches and thread pools up.
        if round > 0 {
            times.encode.push(encoded);
            times.first.push(first);
            times.further.push(further);
            times.many.push(together);
        }
        progress.advance();
    }
    drop(progress);

    // Before anything else takes memory.
    let peak = memory::peak();
    let (first, further) = (median_ms(&times.first), median_ms(&times.further));
    let together = median_ms(&times.many);
    let points = match &opened {
        Model::Pair(pair) => points::measure(pair, &image, one, args.repeat.get())?,
        Model::Mllmseg(_) => None,
    };
    let document = Document {
        model: model.name(),
        image: [image.width(), image.height()],
        threads: rayon::current_num_threads(),
        repeat: args.repeat.get(),
        load_ms: milliseconds(load),
        encode_ms: median_ms(&times.encode),
        first_phrase_ms: first,
        further_phrase_ms: further,
        many_phrases_ms: together,
        phrases: many.len(),
        further_to_first: further / first,
        many_to_one: together / further,
        weights_bytes: opened.weight_bytes()?,
        scene_bytes: scene_bytes as u64,
        peak_after_loading_bytes: after_loading,
        peak_bytes: peak,
        points,
    };
    if args.json {
        console.json(&document)
    } else {
        document.print(console)
    }
}

/// The picture of a drawn scene, at the size of published models.
fn drawn() -> Result<Image> {
    let options = SceneOptions {
        size: 448,
        split: Split::HeldOut,
        ..SceneOptions::default()
    };
    let scene = Scene::draw(&options, 0);
    Ok(Image::from_rgb(scene.size, scene.size, scene.pixels)?)
}

/// A model of either method.
enum Model {
    Mllmseg(Predictor),
    Pair(Sam4Mllm),
}

impl Model {
    fn new(args: &BenchArgs, options: &Options) -> Result<Self> {
        Ok(if Pair::is_in(&args.model) {
            Self::Pair(Sam4Mllm::load(&args.model, options)?)
        } else {
            Self::Mllmseg(Predictor::load(&args.model, options)?)
        })
    }

    fn segmenter(&self) -> &dyn Segmenter {
        match self {
            Self::Mllmseg(model) => model,
            Self::Pair(model) => model,
        }
    }

    /// What the network's weights take as f32; not counted for a pair.
    fn weight_bytes(&self) -> Result<Option<u64>> {
        let Self::Mllmseg(model) = self else {
            return Ok(None);
        };
        let config: &Config = model.config();
        let parts = Blueprint::of(|source| Mllmseg::load(source, config))?;
        Ok(Some(parts.iter().map(|part| 4 * part.len() as u64).sum()))
    }
}

#[derive(Default)]
struct Times {
    encode: Vec<Duration>,
    first: Vec<Duration>,
    further: Vec<Duration>,
    many: Vec<Duration>,
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    /// Width and height.
    image: [u32; 2],
    threads: usize,
    repeat: usize,
    load_ms: f64,
    encode_ms: f64,
    /// Encode and one phrase.
    first_phrase_ms: f64,
    /// Another phrase on the same picture.
    further_phrase_ms: f64,
    /// `phrases` phrases at once.
    many_phrases_ms: f64,
    phrases: usize,
    further_to_first: f64,
    many_to_one: f64,
    weights_bytes: Option<u64>,
    scene_bytes: u64,
    peak_after_loading_bytes: Option<u64>,
    peak_bytes: Option<u64>,
    /// Of a pair that asks about points.
    #[serde(skip_serializing_if = "Option::is_none")]
    points: Option<points::Times>,
}

impl Document<'_> {
    fn print(&self, console: &Console) -> Result<()> {
        let mut table = Table::markdown(&[
            ("what", Align::Left),
            ("median", Align::Right),
            ("", Align::Left),
        ]);
        let share = format!("{:.1} % of the first", 100.0 * self.further_to_first);
        let many = format!("{} phrases at once", self.phrases);
        let rows = [
            ("load", self.load_ms, String::new()),
            (
                "encode",
                self.encode_ms,
                format!("{} x {} pixels", self.image[0], self.image[1]),
            ),
            (
                "first phrase",
                self.first_phrase_ms,
                "encode and one phrase".to_owned(),
            ),
            ("further phrase", self.further_phrase_ms, share),
            (
                &many,
                self.many_phrases_ms,
                format!("{:.2} times a further one", self.many_to_one),
            ),
        ];
        for (what, ms, note) in rows {
            table.row([what.into(), readable_ms(ms).into(), note.into()]);
        }
        for (what, ms, note) in self.points.iter().flat_map(points::Times::rows) {
            table.row([what.into(), readable_ms(ms).into(), note.into()]);
        }
        let memory = [
            ("weights as f32", self.weights_bytes),
            ("a scene kept", Some(self.scene_bytes)),
            ("peak after loading", self.peak_after_loading_bytes),
            ("peak", self.peak_bytes),
        ];
        for (what, bytes) in memory {
            let Some(bytes) = bytes else { continue };
            let weights = self.weights_bytes.filter(|_| what.starts_with("peak"));
            let note = weights.map_or_else(String::new, |weights| {
                let beyond = bytes as f64 / 1e9 - weights as f64 / 1e9;
                format!("weights {beyond:+.2} GB")
            });
            table.row([what.into(), readable_bytes(bytes).into(), note.into()]);
        }
        console.note(format_args!(
            "{}, {} threads, {} rounds",
            self.model, self.threads, self.repeat
        ));
        console.result(table)
    }
}
