//! `refseg sam`: finds what points and boxes mean in a picture.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use refseg::{
    Image,
    image::DecodeOptions,
    mask::{Mask, MaskError, resize_bilinear},
    sam::{Label, Point, Prompt, SamError, SamMasks, SamPredictor},
};
use serde::Serialize;

use super::{
    Code, Picture, check_output, counted, mask_name, median_ms, milliseconds, options, readable_ms,
    timed, warn_of_unused, with_commas,
};
use crate::{
    cli::SamArgs,
    console::Console,
    failure::{Hint, WrongUsage},
    files::write_whole,
    npy,
    overlay::{self, Entry, Field},
    table::{Align, Cell, Table},
};

pub(crate) fn run(args: &SamArgs, console: &Console) -> Result<()> {
    let prompts = prompts(args)?;
    let overlay = overlay_path(args);
    let outputs = [&overlay, &args.logits, &args.low_res];
    for path in outputs.into_iter().flatten() {
        check_output(path, &args.image)?;
    }
    let image = Image::open_with(
        &args.image,
        &DecodeOptions {
            apply_orientation: !args.ignore_orientation,
            max_pixels: args.max_pixels,
        },
    )?;
    let (predictor, load) = timed(|| open(args, console));
    let predictor = predictor?;
    warn_of_unused(predictor.name(), predictor.unused_tensors(), console);

    let (mut encode, mut ask) = (Vec::new(), Vec::new());
    let mut results = Vec::new();
    for _ in 0..args.repeat.get() {
        let (scene, took) = timed(|| predictor.encode(&image));
        encode.push(took);
        let scene = scene?;
        let (answers, took) = timed(|| scene.prompt_many(&prompts, args.multimask));
        ask.push(took);
        results = answers?;
    }

    write_masks(args, &results, console)?;
    if let Some(path) = &args.logits {
        write_array(
            path,
            logits(&results)?,
            [image.height(), image.width()],
            console,
        )?;
    }
    if let Some(path) = &args.low_res {
        let side = results.first().map_or(0, |result| result.side as u32);
        let values = results.iter().flat_map(|result| result.low_res.concat());
        write_array(path, values.collect(), [side, side], console)?;
    }
    if let Some(path) = &overlay {
        draw(path, &image, &prompts, &results, console)?;
    }
    let timings = Timings {
        load: milliseconds(load),
        encode: median_ms(&encode),
        prompts: median_ms(&ask),
    };
    timings.say(prompts.len(), args.repeat.get(), console);
    if args.json {
        let answers = prompts.iter().zip(&results);
        console.json(&Document {
            model: predictor.name(),
            method: "sam",
            image: Picture {
                path: &args.image.to_string_lossy(),
                width: image.width(),
                height: image.height(),
            },
            results: answers
                .map(|(prompt, masks)| Answer::of(prompt, masks))
                .collect(),
            timings_ms: timings,
        })
    } else {
        console.result(table(&prompts, &results))
    }
}

/// A prompt for each box, or one of points alone.
fn prompts(args: &SamArgs) -> Result<Vec<Prompt>> {
    let labelled = |places: &[[f64; 2]], label| {
        let points = places.iter().map(move |&at_px| Point { at_px, label });
        points.collect::<Vec<_>>()
    };
    let points = [
        labelled(&args.points, Label::Foreground),
        labelled(&args.not_points, Label::Background),
    ]
    .concat();
    if args.boxes.len() > 1 && !points.is_empty() {
        return Err(WrongUsage("--point and --not go with one --box at most").into());
    }
    let alone = Prompt {
        points,
        ..Prompt::default()
    };
    let with_box = |&box_px| Prompt {
        box_px: Some(box_px),
        ..alone.clone()
    };
    let mut prompts: Vec<Prompt> = args.boxes.iter().map(with_box).collect();
    if prompts.is_empty() {
        prompts.push(alone);
    }
    if let Some(path) = &args.mask_input {
        for (prompt, mask) in prompts
            .iter_mut()
            .zip(read_masks(path, args.boxes.len().max(1))?)
        {
            prompt.mask = Some(mask);
        }
    }
    Ok(prompts)
}

/// Mask logits for `count` prompts: `[side, side]` for one, `[count, side, side]`.
fn read_masks(path: &Path, count: usize) -> Result<Vec<Vec<f32>>> {
    let npy::Array { shape, values } = npy::read(path)?;
    let (masks, sides) = shape.split_at(shape.len().saturating_sub(2));
    match sides {
        [height, width]
            if height == width && *height > 0 && masks.iter().product::<usize>() == count =>
        {
            Ok(values
                .chunks_exact(height * width)
                .map(<[f32]>::to_vec)
                .collect())
        }
        _ => {
            let prompts = counted(count, "prompt");
            anyhow::bail!(
                "`{}`: is an array {shape:?}, expected [{count}, side, side] for {prompts}",
                path.display()
            )
        }
    }
}

fn open(args: &SamArgs, console: &Console) -> Result<SamPredictor, SamError> {
    let options = options(&args.compute, console);
    match &args.decoder {
        None => SamPredictor::load(&args.model, &options),
        Some(decoder) => SamPredictor::load_tuned(&args.model, decoder, &options),
    }
}

fn overlay_path(args: &SamArgs) -> Option<PathBuf> {
    let beside = || {
        args.image
            .with_file_name(format!("{}.overlay.png", stem(&args.image)))
    };
    (!args.no_overlay).then(|| args.overlay.clone().unwrap_or_else(beside))
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn write_masks(args: &SamArgs, results: &[SamMasks], console: &Console) -> Result<()> {
    let Some(folder) = &args.masks else {
        return Ok(());
    };
    fs::create_dir_all(folder)
        .with_context(|| format!("`{}`: cannot make the folder", folder.display()))?;
    let masks: Vec<&Mask> = results.iter().flat_map(|result| &result.masks).collect();
    for (i, mask) in masks.iter().enumerate() {
        let name = mask_name(&stem(&args.image), i + 1, masks.len(), "");
        mask.save_png(folder.join(name))?;
    }
    let masks = counted(masks.len(), "mask");
    console.note(format_args!("wrote {masks} to {}", folder.display()));
    Ok(())
}

/// Logits of all masks at the size of the picture.
fn logits(results: &[SamMasks]) -> Result<Vec<f32>, MaskError> {
    let mut all = Vec::new();
    for result in results {
        for i in 0..result.masks.len() {
            all.extend(result.logits(i)?);
        }
    }
    Ok(all)
}

fn write_array(
    path: &Path,
    values: Vec<f32>,
    [height, width]: [u32; 2],
    console: &Console,
) -> Result<()> {
    let (height, width) = (height as usize, width as usize);
    let count = values.len() / (height * width).max(1);
    write_whole(path, &npy::encode([count, height, width], values.iter()))?;
    console.note(format_args!("wrote {}", path.display()));
    Ok(())
}

/// Side of the field that outlines are drawn from.
const FIELD_SIDE: usize = 512;

/// Draws the best mask of each prompt.
fn draw(
    path: &Path,
    image: &Image,
    prompts: &[Prompt],
    results: &[SamMasks],
    console: &Console,
) -> Result<()> {
    let size = (image.height() as usize, image.width() as usize);
    let field = |result: &SamMasks| {
        let logits = result.logits(result.best())?;
        let logits = resize_bilinear(&logits, size, (FIELD_SIDE, FIELD_SIDE))?;
        Ok(logits
            .iter()
            .map(|logit| 1.0 / (1.0 + (-logit).exp()))
            .collect())
    };
    let fields = results
        .iter()
        .map(field)
        .collect::<Result<Vec<Vec<f32>>, MaskError>>()?;
    let names: Vec<String> = prompts.iter().map(name).collect();
    let entries = names.iter().zip(results).zip(&fields);
    let entries: Vec<Entry<'_>> = entries
        .map(|((phrase, result), values)| Entry {
            phrase,
            found: (result.masks[result.best()].area() > 0).then_some(Field {
                values,
                side: FIELD_SIDE,
            }),
        })
        .collect();
    let drawn = overlay::draw(image, &entries)?;
    drawn.save_png(path).map_err(|error| Hint {
        hint: "choose another place with --overlay FILE, or none with --no-overlay",
        error: error.into(),
    })?;
    console.note(format_args!("wrote {}", path.display()));
    Ok(())
}

/// What a prompt is called: its box, and how many points there are.
fn name(prompt: &Prompt) -> String {
    let mut parts = Vec::new();
    if let Some([x1, y1, x2, y2]) = prompt.box_px {
        parts.push(format!("box {x1},{y1},{x2},{y2}"));
    }
    let of = |label| {
        prompt
            .points
            .iter()
            .filter(move |point| point.label == label)
    };
    for (word, label) in [("point", Label::Foreground), ("not", Label::Background)] {
        match of(label).collect::<Vec<_>>()[..] {
            [] => {}
            [Point { at_px: [x, y], .. }] => parts.push(format!("{word} {x},{y}")),
            ref several => parts.push(format!("{} × {word}", several.len())),
        }
    }
    parts.join(", ")
}

/// The result as people read it.
fn table(prompts: &[Prompt], results: &[SamMasks]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::plain(&[
        ("prompt", Left),
        ("mask", Right),
        ("score", Right),
        ("box x1 y1 x2 y2", Left),
        ("area", Right),
    ]);
    for (prompt, result) in prompts.iter().zip(results) {
        for (i, (mask, score)) in result.masks.iter().zip(&result.scores).enumerate() {
            let bounds = mask.bounds();
            table.row([
                Cell::from(&name(prompt)),
                (i + 1).to_string().into(),
                format!("{score:.3}").into(),
                bounds
                    .map_or_else(
                        || "–".to_owned(),
                        |[x1, y1, x2, y2]| format!("{x1} {y1} {x2} {y2}"),
                    )
                    .into(),
                with_commas(mask.area()).into(),
            ]);
        }
    }
    table
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    method: &'static str,
    image: Picture<'a>,
    results: Vec<Answer>,
    timings_ms: Timings,
}

/// A prompt and its masks.
#[derive(Serialize)]
struct Answer {
    points: Vec<[f64; 2]>,
    not_points: Vec<[f64; 2]>,
    prompt_box: Option<[f64; 4]>,
    /// Index of the mask with the best score.
    best: usize,
    masks: Vec<MaskAnswer>,
}

#[derive(Serialize)]
struct MaskAnswer {
    score: f32,
    #[serde(rename = "box")]
    box_px: Option<[f32; 4]>,
    area: u64,
    rle: Code,
}

impl Answer {
    fn of(prompt: &Prompt, result: &SamMasks) -> Self {
        let places = |label| {
            let points = prompt
                .points
                .iter()
                .filter(move |point| point.label == label);
            points.map(|point| point.at_px).collect()
        };
        let masks = result.masks.iter().zip(&result.scores);
        Self {
            points: places(Label::Foreground),
            not_points: places(Label::Background),
            prompt_box: prompt.box_px,
            best: result.best(),
            masks: masks
                .map(|(mask, &score)| MaskAnswer {
                    score,
                    box_px: mask.bounds(),
                    area: mask.area(),
                    rle: Code::from(mask.to_rle()),
                })
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct Timings {
    load: f64,
    encode: f64,
    prompts: f64,
}

impl Timings {
    fn say(&self, prompts: usize, repeat: usize, console: &Console) {
        let medians = if repeat > 1 {
            format!(" (medians of {repeat})")
        } else {
            String::new()
        };
        console.note(format_args!(
            "load {}, picture {}, {} {}{medians}",
            readable_ms(self.load),
            readable_ms(self.encode),
            counted(prompts, "prompt"),
            readable_ms(self.prompts),
        ));
    }
}
