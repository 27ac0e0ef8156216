//! `refseg init`: makes a model of a published size with random weights.

mod tokenizer;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use refseg::{
    internvl::Config,
    mllmseg::Mllmseg,
    nn::{Blueprint, Part, Tensors},
    random::initial_values,
    sam::{self, Sam},
    weights::{SaveDtype, TensorSpec, WeightsError, save_sharded},
};

use refseg_train::{TrainError, conversing, outlining};

use super::{readable_bytes, torch_name, with_commas};
use crate::{
    cli::InitArgs,
    console::Console,
    failure::Hint,
    files::{NewFolder, write_whole},
};

/// Models that training begins with, and what writes them into a folder.
const SMALL: [(&str, Write); 2] = [
    (
        conversing::beginner::NAME,
        conversing::beginner::write as Write,
    ),
    (
        outlining::beginner::NAME,
        outlining::beginner::write as Write,
    ),
];
type Write = fn(&Path, u64) -> Result<(), TrainError>;

/// Largest weight file, as Hugging Face's tools cut them.
const SHARD_BYTES: u64 = 4_000_000_000;
/// Tensors drawn at once: each is in memory as a whole until it is written.
const MOST_WORKERS: usize = 4;

pub(crate) fn run(args: &InitArgs, console: &Console) -> Result<()> {
    for (name, write) in SMALL {
        if args.preset == name {
            let folder = NewFolder::begin(&args.dir).map_err(new_folder)?;
            write(folder.path(), args.seed)?;
            folder.publish()?;
            return console.result(args.dir.display());
        }
    }
    let parts = parts(&args.preset)?;
    let folder = NewFolder::begin(&args.dir).map_err(new_folder)?;
    let start = Instant::now();
    let parameters: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let dtype = SaveDtype::from(args.dtype);
    // Segment Anything has neither: its own tensors tell its sizes.
    if let Some(config) = Config::preset(&args.preset) {
        let mut json = config.to_json();
        json["torch_dtype"] = torch_name(dtype).into();
        let text = serde_json::to_vec_pretty(&json).context("cannot write config.json")?;
        write_whole(&folder.path().join("config.json"), &text)?;
        for (name, contents) in tokenizer::files(&config.language)? {
            write_whole(&folder.path().join(name), &contents)?;
        }
    }

    let mut progress = console.progress(parts.len() as u64, "tensors");
    let files = save_random(&folder, &parts, dtype, args.seed, || progress.advance())?;
    drop(progress);
    folder.publish()?;
    console.note(format_args!(
        "{} parameters in {} of weights ({files} {}), {:.0} s",
        with_commas(parameters),
        readable_bytes(
            parameters
                * if matches!(dtype, SaveDtype::F32) {
                    4
                } else {
                    2
                }
        ),
        if files == 1 { "file" } else { "files" },
        start.elapsed().as_secs_f64(),
    ));
    console.result(args.dir.display())
}

fn new_folder(error: anyhow::Error) -> Hint {
    Hint {
        hint: "give a folder that does not exist",
        error,
    }
}

/// The names of all presets.
pub(crate) fn presets() -> impl Iterator<Item = &'static str> {
    let networks = Config::PRESETS.into_iter().chain(sam::Config::PRESETS);
    networks.chain(SMALL.map(|(name, _)| name))
}

/// The tensors of a preset.
fn parts(preset: &str) -> Result<Vec<Part>> {
    Ok(
        match (Config::preset(preset), sam::Config::preset(preset)) {
            (Some(config), _) => Blueprint::of(|source| Mllmseg::load(source, &config))?,
            (None, Some(config)) => {
                Blueprint::of(|source| Sam::load(&Tensors::root(source), &config))?
            }
            (None, None) => bail!("there is no preset `{preset}`"),
        },
    )
}

/// Writes random weights and returns the number of files. Some tensors are
/// drawn ahead of the one that is being written, one on each core.
fn save_random(
    folder: &NewFolder,
    parts: &[Part],
    dtype: SaveDtype,
    seed: u64,
    mut each: impl FnMut(),
) -> Result<usize> {
    let specs: Vec<TensorSpec> = parts
        .iter()
        .map(|part| TensorSpec {
            name: part.key.clone(),
            shape: part.shape.clone(),
        })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let workers = rayon::current_num_threads().clamp(1, MOST_WORKERS);
    let written = thread::scope(|scope| {
        let drawn: Vec<Receiver<Vec<f32>>> = (0..workers)
            .map(|worker| {
                // Without room in between, so that no worker is more than one tensor ahead.
                let (sender, receiver) = sync_channel(0);
                let mine = parts.iter().skip(worker).step_by(workers);
                scope.spawn(move || {
                    for part in mine {
                        let values = initial_values(&part.key, &part.shape, seed);
                        // Nobody waits any longer if writing failed.
                        if sender.send(values).is_err() {
                            return;
                        }
                    }
                });
                receiver
            })
            .collect();
        let mut next = 0;
        save_sharded(
            folder.path(),
            &specs,
            dtype,
            &metadata,
            SHARD_BYTES,
            |spec| {
                let values = drawn[next % workers].recv();
                next += 1;
                each();
                values.map_err(|_| WeightsError::Missing {
                    path: folder.path().to_owned(),
                    key: spec.name.clone(),
                })
            },
        )
    })?;
    // An index is not a weight file.
    Ok(written
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .count())
}
