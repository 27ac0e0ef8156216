//! `refseg segment`: finds what phrases mean in a picture.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use owo_colors::Style;
use refseg::{
    Image, Segmentable, Segmentation,
    image::DecodeOptions,
    predictor::{MAX_PHRASE_BYTES, PredictorError},
};
use serde::Serialize;

use super::{
    Code, Picture, check_output, counted, load, mask_name, median_ms, milliseconds, readable_ms,
    timed, with_commas,
};
use crate::{
    cli::SegmentArgs,
    console::Console,
    failure::Hint,
    files::write_whole,
    npy,
    overlay::{self, Entry, Field},
    table::{Align, Cell, Table},
};

pub(crate) fn run(args: &SegmentArgs, console: &Console) -> Result<()> {
    if let Some(phrase) = args
        .phrases
        .iter()
        .find(|phrase| phrase.len() > MAX_PHRASE_BYTES)
    {
        return Err(PredictorError::LongPhrase {
            bytes: phrase.len(),
        }
        .into());
    }
    let outputs = Outputs::of(args)?;
    let image = Image::open_with(
        &args.image,
        &DecodeOptions {
            apply_orientation: !args.ignore_orientation,
            max_pixels: args.max_pixels,
        },
    )?;
    let (predictor, load) = load(&args.model, console)?;
    console.detail(format_args!(
        "loaded {} in {}",
        predictor.name(),
        readable_ms(milliseconds(load))
    ));

    let phrases: Vec<&str> = args.phrases.iter().map(String::as_str).collect();
    let (mut encode, mut ask) = (Vec::new(), Vec::new());
    let mut results = Vec::new();
    for _ in 0..args.repeat.get() {
        let (scene, took) = timed(|| predictor.encode(&image));
        encode.push(took);
        let scene = scene?;
        let (answers, took) = timed(|| answer(&*scene, &phrases, args.joint));
        ask.push(took);
        results = answers?;
    }

    warn_of_unread(&results, console);
    outputs.write(args, &image, &results, console)?;
    let timings = Timings {
        load: milliseconds(load),
        encode: median_ms(&encode),
        // They share their passes through the network, so each took an equal part.
        phrases: vec![median_ms(&ask) / phrases.len() as f64; phrases.len()],
    };
    timings.say(args.repeat.get(), console);
    let answers = results.iter().map(Answer::of);
    if args.json {
        console.json(&Document {
            model: predictor.name(),
            method: predictor.method(),
            image: Picture {
                path: &args.image.to_string_lossy(),
                width: image.width(),
                height: image.height(),
            },
            results: answers.collect(),
            timings_ms: timings,
        })
    } else if args.rle {
        answers
            .into_iter()
            .try_for_each(|answer| console.json(&answer.coded()))
    } else {
        console.result(table(&results))
    }
}

fn answer(
    scene: &dyn Segmentable,
    phrases: &[&str],
    joint: bool,
) -> Result<Vec<Segmentation>, PredictorError> {
    if joint {
        scene.segment_joint(phrases)
    } else {
        scene.segment_many(phrases)
    }
}

/// Says what a model that answers in words said beside boxes and points.
fn warn_of_unread(results: &[Segmentation], console: &Console) {
    for Segmentation { phrase, unread, .. } in results.iter().filter(|r| !r.unread.is_empty()) {
        let pieces: Vec<String> = unread.iter().map(|piece| format!("{piece:?}")).collect();
        console.warn(format_args!(
            "about {phrase:?} the model also said {}, which means nothing here",
            pieces.join(", ")
        ));
    }
}

/// Files to write, checked before the work begins.
struct Outputs {
    overlay: Option<PathBuf>,
    /// Name of the picture without its extension.
    stem: String,
}

impl Outputs {
    fn of(args: &SegmentArgs) -> Result<Self> {
        let stem = args
            .image
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let beside = || args.image.with_file_name(format!("{stem}.overlay.png"));
        let overlay = (!args.no_overlay).then(|| args.overlay.clone().unwrap_or_else(beside));
        for path in overlay.iter().chain(&args.probs) {
            check_output(path, &args.image)?;
        }
        Ok(Self { overlay, stem })
    }

    fn write(
        &self,
        args: &SegmentArgs,
        image: &Image,
        results: &[Segmentation],
        console: &Console,
    ) -> Result<()> {
        if let Some(folder) = &args.masks {
            fs::create_dir_all(folder)
                .with_context(|| format!("`{}`: cannot make the folder", folder.display()))?;
            for (i, result) in results.iter().enumerate() {
                let name = mask_name(&self.stem, i + 1, results.len(), &result.phrase);
                result.mask.save_png(folder.join(name))?;
            }
            let masks = counted(results.len(), "mask");
            console.note(format_args!("wrote {masks} to {}", folder.display()));
        }
        if let Some(path) = &args.probs {
            write_whole(path, &probabilities(results))?;
            console.note(format_args!("wrote {}", path.display()));
        }
        if let Some(path) = &self.overlay {
            let drawn = overlay::draw(image, &results.iter().map(entry).collect::<Vec<_>>())?;
            drawn.save_png(path).map_err(|error| Hint {
                hint: "choose another place with --overlay FILE, or none with --no-overlay",
                error: error.into(),
            })?;
            console.note(format_args!("wrote {}", path.display()));
        }
        Ok(())
    }
}

/// Probabilities of all phrases as a file, `[phrases, side, side]`.
fn probabilities(results: &[Segmentation]) -> Vec<u8> {
    let side = results.first().map_or(0, |result| result.side);
    let values = results.iter().flat_map(|result| &result.probabilities);
    npy::encode([results.len(), side, side], values)
}

fn entry(result: &Segmentation) -> Entry<'_> {
    Entry {
        phrase: &result.phrase,
        found: result.found.then_some(Field {
            values: &result.probabilities,
            side: result.side,
        }),
    }
}

/// The result as people read it.
fn table(results: &[Segmentation]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::plain(&[
        ("phrase", Left),
        ("found", Left),
        ("presence", Right),
        ("score", Right),
        ("box x1 y1 x2 y2", Left),
        ("area", Right),
    ]);
    for result in results {
        let (yes, no) = (Style::new().green(), Style::new().dimmed());
        let found = Cell::from(if result.found { "yes" } else { "no" });
        let none = || "–".to_owned();
        let area = result.mask.area();
        table.row([
            Cell::from(&result.phrase),
            found.with(if result.found { yes } else { no }),
            format!("{:.3}", result.presence).into(),
            if area > 0 {
                format!("{:.3}", result.score)
            } else {
                none()
            }
            .into(),
            result
                .box_px
                .map_or_else(none, |[x1, y1, x2, y2]| format!("{x1} {y1} {x2} {y2}"))
                .into(),
            if result.found {
                with_commas(area)
            } else {
                none()
            }
            .into(),
        ]);
    }
    table
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    method: &'a str,
    image: Picture<'a>,
    results: Vec<Answer<'a>>,
    timings_ms: Timings,
}

#[derive(Serialize)]
struct Answer<'a> {
    phrase: &'a str,
    found: bool,
    presence: f32,
    score: f32,
    #[serde(rename = "box")]
    box_px: Option<[f32; 4]>,
    area: u64,
    rle: Option<Code>,
}

impl<'a> Answer<'a> {
    fn of(result: &'a Segmentation) -> Self {
        Self {
            phrase: &result.phrase,
            found: result.found,
            presence: result.presence,
            score: result.score,
            box_px: result.box_px,
            area: result.mask.area(),
            rle: result.found.then(|| Code::from(result.mask.to_rle())),
        }
    }

    fn coded(self) -> CodedAnswer<'a> {
        CodedAnswer {
            phrase: self.phrase,
            found: self.found,
            rle: self.rle,
        }
    }
}

/// A line of `--rle`.
#[derive(Serialize)]
struct CodedAnswer<'a> {
    phrase: &'a str,
    found: bool,
    rle: Option<Code>,
}

#[derive(Serialize)]
struct Timings {
    load: f64,
    encode: f64,
    phrases: Vec<f64>,
}

impl Timings {
    fn say(&self, repeat: usize, console: &Console) {
        let phrases: f64 = self.phrases.iter().sum();
        let medians = if repeat > 1 {
            format!(" (medians of {repeat})")
        } else {
            String::new()
        };
        console.note(format_args!(
            "load {}, picture {}, {} {}{medians}",
            readable_ms(self.load),
            readable_ms(self.encode),
            counted(self.phrases.len(), "phrase"),
            readable_ms(phrases),
        ));
    }
}
