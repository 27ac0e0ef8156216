//! `refseg scenes`: draws scenes as a data set in RefCOCO's layout.

use std::{num::NonZeroUsize, time::Instant};

use anyhow::Result;
use refseg_data::scenes::{DatasetOptions, Part, SceneOptions, Split, write_dataset};
use serde::Serialize;

use super::{counted, with_commas};
use crate::{cli::ScenesArgs, cli::SplitName, console::Console, failure::WrongUsage};

pub(crate) fn run(args: &ScenesArgs, console: &Console) -> Result<()> {
    let options = DatasetOptions {
        scenes: SceneOptions {
            size: args.size,
            min_objects: args.min_objects,
            max_objects: args.max_objects,
            phrases_per_scene: args.phrases,
            split: args.split.into(),
        },
        parts: parts(args)?,
        overwrite: args.overwrite,
        threads: NonZeroUsize::new(rayon::current_num_threads()),
    };
    let total: usize = options.parts.iter().map(|part| part.count).sum();
    let mut progress = console.progress(total as u64, "scenes");
    let start = Instant::now();
    let summary = write_dataset(&args.dir, &options, |done| progress.set(done as u64))?;
    let seconds = start.elapsed().as_secs_f64();
    drop(progress);
    console.note(format_args!(
        "{} in {seconds:.1} s, {:.0} scenes/s",
        counted(summary.images, "scene"),
        summary.images as f64 / seconds,
    ));
    if args.json {
        return console.json(&Document {
            folder: &args.dir.to_string_lossy(),
            images: summary.images,
            objects: summary.annotations,
            phrases: summary.phrases,
            single_target_phrases: summary.single_target_phrases,
            seconds,
        });
    }
    console.result(format_args!(
        "{}: {}, {}, {} ({} with one target)",
        args.dir.display(),
        counted(summary.images, "picture"),
        counted(summary.annotations, "object"),
        counted(summary.phrases, "phrase"),
        with_commas(summary.single_target_phrases as u64),
    ))
}

/// The splits that the data set shall have, under RefCOCO's names.
fn parts(args: &ScenesArgs) -> Result<Vec<Part>, WrongUsage> {
    if args.split == SplitName::Train {
        return Ok(Part::refcoco(args.first, args.count, args.val, args.test));
    }
    if args.val + args.test > 0 {
        return Err(WrongUsage("--val and --test go with --split train alone"));
    }
    let split = Split::from(args.split);
    let name = if split == Split::Unseen {
        "testB"
    } else {
        "val"
    };
    Ok(vec![Part {
        name: name.to_owned(),
        split,
        first_index: args.first,
        count: args.count,
    }])
}

#[derive(Serialize)]
struct Document<'a> {
    folder: &'a str,
    images: usize,
    objects: usize,
    phrases: usize,
    single_target_phrases: usize,
    seconds: f64,
}
