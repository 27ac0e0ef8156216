//! Learning by a recipe, whatever its subject.

use std::{num::NonZeroUsize, path::Path, time::Instant};

use anyhow::{Context, Result, anyhow, bail};
use refseg::{
    image::{DecodeOptions, Image},
    sam::SamPredictor,
};
use refseg_data::{
    conversations::DescribedPictures,
    dataset::{Dataset, Options, Source},
    evaluate::Examples,
};
use refseg_train::{
    conversing::{self, Conversing, lesson::Lessons},
    outlining::{self, Outlining, drawing::Drawings},
    parameters::Group,
    recipes::{Book, ByRecipe, Set},
    run::{Run, Workers},
    tuning::{Start, Tuning, recipe::Recipe, sampler::Sampler},
};
use serde::Serialize;

use crate::{
    cli::TrainArgs,
    commands::{counted, opened::warn_of_skipped, readable_bytes, with_commas},
    console::Console,
    failure::{Hint, WrongUsage},
    memory,
    table::{Align, Cell, Table},
};

/// Faults of the data that are listed; there may be thousands, all alike.
const LISTED: usize = 40;
/// Steps that a plan measures.
const REHEARSED: u64 = 3;
/// Values that are kept of a trained parameter: itself, its gradient, and two moments.
const COPIES: u64 = 4;

/// Opens the run that teaches to segment.
pub(super) fn open(book: Book, args: &TrainArgs, console: &Console) -> Result<Run<Tuning>> {
    let recipe = Recipe::of(book)?;
    let Data { sets, held_out } = data(&recipe.data.sets, args, console)?;
    let sets = sets.into_iter();
    let sets = sets.map(|(weight, set)| (weight, Box::new(set) as Box<dyn Examples + Send>));
    let sampler = Sampler::new(sets.collect(), recipe.data.sentences, recipe.seed);
    let held_out = held_out.map(|dataset| Box::new(dataset) as Box<dyn Examples + Send>);
    let start = Start::named(&args.tuning.model);
    Ok(Tuning::open(
        &args.out,
        start,
        recipe,
        workers(args),
        sampler,
        held_out,
    )?)
}

/// Opens the run that teaches to answer.
pub(super) fn open_conversing(
    book: Book,
    args: &TrainArgs,
    console: &Console,
) -> Result<Run<Conversing>> {
    let recipe = conversing::recipe::Recipe::of(book)?;
    let Data { sets, held_out } = data(&recipe.data.sets, args, console)?;
    let judge = recipe.talk.judge.as_ref();
    let judge = judge.map(|sam| SamPredictor::load(sam, &refseg::Options::default()));
    let lessons = Lessons::new(described(sets), judge.transpose()?);
    Ok(Conversing::open(
        &args.out,
        &args.tuning.model,
        recipe,
        workers(args),
        lessons,
        held_out.map(|dataset| Box::new(dataset) as Box<dyn DescribedPictures + Send>),
    )?)
}

/// Opens the run that teaches to draw what prompts mean.
pub(super) fn open_outlining(
    book: Book,
    args: &TrainArgs,
    console: &Console,
) -> Result<Run<Outlining>> {
    let recipe = outlining::recipe::Recipe::of(book)?;
    let Data { sets, held_out } = data(&recipe.data.sets, args, console)?;
    Ok(Outlining::open(
        &args.out,
        &args.tuning.model,
        recipe,
        workers(args),
        Drawings::new(described(sets)),
        held_out.map(|dataset| Box::new(dataset) as Box<dyn DescribedPictures + Send>),
    )?)
}

fn described(sets: Vec<(f64, Dataset)>) -> Vec<(f64, Box<dyn DescribedPictures + Send>)> {
    let boxed = |set| Box::new(set) as Box<dyn DescribedPictures + Send>;
    let sets = sets.into_iter();
    sets.map(|(weight, set)| (weight, boxed(set))).collect()
}

/// What is learned from, and what the run is judged on.
struct Data {
    sets: Vec<(f64, Dataset)>,
    held_out: Option<Dataset>,
}

fn data(sets: &[Set], args: &TrainArgs, console: &Console) -> Result<Data> {
    let mut faults = Vec::new();
    let mut opened = Vec::new();
    for set in sets {
        let root = set.root.as_deref().or(args.tuning.data.as_deref());
        let root = root.ok_or(WrongUsage(
            "--data is missing: the folder that holds the data sets",
        ))?;
        let mut dataset = open_set(set.source, set.split(), root)?;
        faults.extend(check(&mut dataset));
        if dataset.pictures.is_empty() {
            bail!("{} has no picture that can be read", dataset.name);
        }
        opened.push((set.weight, dataset));
    }
    let mut held_out = match &args.tuning.val {
        None => data_of_val(&sets[0], args),
        Some(root) => {
            let source = sets[0].source;
            Some(open_set(source, source.default_split(), root)?)
        }
    };
    if let Some(dataset) = &mut held_out {
        faults.extend(check(dataset));
    }
    if !faults.is_empty() && !args.tuning.keep_going {
        return Err(refusal(&faults));
    }
    warn_of_skipped(&faults, console);
    if held_out.is_none() {
        console.note("there is nothing to judge the model on; --val names a folder");
    }
    let pictures = opened.iter().map(|(_, set)| set.pictures.len()).sum();
    console.detail(format_args!(
        "learning from {}",
        counted(pictures, "picture")
    ));
    Ok(Data {
        sets: opened,
        held_out,
    })
}

/// The recipe with everything that the options replace.
pub(super) fn book(name: &str, args: &TrainArgs) -> Result<Book> {
    let mut overrides = args.tuning.overrides.clone();
    let mut replace = |key: &str, value: Option<String>| {
        overrides.extend(value.map(|value| format!("{key}={value}")));
    };
    replace("steps", args.steps.map(|n| n.to_string()));
    replace("pictures", args.pictures.map(|n| n.to_string()));
    replace("seed", args.seed.map(|n| n.to_string()));
    replace("watch.every", args.every.map(|n| n.to_string()));
    replace("watch.pictures", args.held_out.map(|n| n.to_string()));
    let rate = args.learning_rate.map(|rate| format!("{rate:e}"));
    replace("optimiser.learning_rate", rate);
    if !args.tuning.datasets.is_empty() {
        let sets = args.tuning.datasets.iter();
        let sets: Vec<String> = sets
            .map(|source| format!("{{ source = \"{source}\" }}"))
            .collect();
        replace("data.sets", Some(format!("[{}]", sets.join(", "))));
    }
    Ok(Book::open(name, &overrides)?)
}

/// One worker with all threads, unless asked otherwise: a large model is in memory once, but its
/// activations once for each worker.
fn workers(args: &TrainArgs) -> Workers {
    let count = args.workers.map_or(1, NonZeroUsize::get);
    Workers {
        count,
        threads: (rayon::current_num_threads() / count).max(1),
        loaders: (rayon::current_num_threads() / 2).max(1),
    }
}

/// Opens a split, leaving out what is wrong with it: [`check`] lists that.
fn open_set(source: Source, split: &str, root: &Path) -> Result<Dataset> {
    let options = Options { keep_going: true };
    let failed = || format!("`{}`: cannot learn from {source}", root.display());
    Dataset::open_with(&source, split, root, &options).with_context(failed)
}

/// The split `val` beside what is learned from, if there is one.
fn data_of_val(set: &Set, args: &TrainArgs) -> Option<Dataset> {
    let root = set.root.as_deref().or(args.tuning.data.as_deref())?;
    let has_val = set.source.splits().contains(&"val");
    has_val.then(|| open_set(set.source, "val", root).ok())?
}

/// Everything that is wrong with a data set, without decoding its pictures; pictures that cannot
/// be read are left out of it.
fn check(dataset: &mut Dataset) -> Vec<String> {
    let mut faults = dataset.skipped().to_vec();
    let options = DecodeOptions {
        apply_orientation: false,
        ..DecodeOptions::default()
    };
    dataset.pictures.retain(|picture| {
        match Image::read_size(&picture.path, &options) {
            Err(error) => faults.push(error.to_string()),
            Ok((width, height)) => {
                let found = (height as usize, width as usize);
                match picture.size {
                    Some(expected) if expected != found => faults.push(format!(
                        "`{}`: is {} × {} pixels, but its annotations are for {} × {}",
                        picture.path.display(),
                        found.1,
                        found.0,
                        expected.1,
                        expected.0,
                    )),
                    _ => return true,
                }
            }
        }
        false
    });
    faults
}

fn refusal(faults: &[String]) -> anyhow::Error {
    let listed: Vec<&str> = faults.iter().take(LISTED).map(String::as_str).collect();
    let more = match faults.len() - listed.len() {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    let error = anyhow!(
        "the data has {}:\n  {}{more}",
        counted(faults.len(), "fault"),
        listed.join("\n  "),
    );
    let hint = "mend them, or pass over them with --keep-going";
    Hint { hint, error }.into()
}

/// Prints what would be trained and what it costs, measured on some steps.
pub(super) fn show_plan<T: ByRecipe>(
    run: &Run<T>,
    args: &TrainArgs,
    console: &Console,
) -> Result<()> {
    let groups = run.parameters().groups();
    let trained: u64 = groups.iter().map(|group| group.parameters).sum();
    let (task, common) = (run.task(), run.task().common());
    let frozen = task.frozen_parameters(run.parameters());
    let start = Instant::now();
    let losses = run.rehearse(REHEARSED)?;
    let step_s = start.elapsed().as_secs_f64() / REHEARSED as f64;
    let plan = Plan {
        model: args.tuning.model.to_string_lossy().into_owned(),
        recipe: common.description.to_owned(),
        steps: run.steps(),
        pictures: common.pictures,
        precision: common.precision.precision().name(),
        available: task.available(),
        trained,
        frozen,
        groups,
        parameter_bytes: 4 * (COPIES * trained + frozen),
        peak_bytes: memory::peak(),
        step_s,
        losses: losses.iter().map(|losses| losses.total).collect(),
    };
    if args.json {
        return console.json(&plan);
    }
    console.result(plan.table())
}

/// What a run would do.
#[derive(Serialize)]
struct Plan {
    model: String,
    recipe: String,
    steps: u64,
    pictures: usize,
    /// What is multiplied with.
    precision: &'static str,
    /// Pictures to learn from.
    available: usize,
    trained: u64,
    frozen: u64,
    #[serde(serialize_with = "by_name")]
    groups: Vec<Group>,
    /// Parameters, gradients and moments.
    parameter_bytes: u64,
    /// Measured, activations included.
    peak_bytes: Option<u64>,
    step_s: f64,
    losses: Vec<f32>,
}

impl Plan {
    fn table(&self) -> Table {
        let mut table = Table::markdown(&[("what", Align::Left), ("", Align::Right)]);
        let mut row = |name: &str, value: String| {
            table.row([Cell::from(name.to_owned()), Cell::from(value)]);
        };
        row("recipe", self.recipe.clone());
        row("model", self.model.clone());
        row("pictures to learn from", with_commas(self.available as u64));
        row("steps", with_commas(self.steps));
        row("pictures a step", self.pictures.to_string());
        row("precision of products", self.precision.to_owned());
        for group in &self.groups {
            row(
                &format!("trained: {}", group.name),
                with_commas(group.parameters),
            );
        }
        row("trained in all", with_commas(self.trained));
        row("frozen", with_commas(self.frozen));
        row(
            "parameters and moments",
            readable_bytes(self.parameter_bytes),
        );
        if let Some(peak) = self.peak_bytes {
            row("peak memory of three steps", readable_bytes(peak));
        }
        row("time of a step", format!("{:.2} s", self.step_s));
        let hours = self.step_s * self.steps as f64 / 3600.0;
        row("time of the run", format!("{hours:.1} h"));
        let losses: Vec<String> = self
            .losses
            .iter()
            .map(|loss| format!("{loss:.3}"))
            .collect();
        row("losses before learning", losses.join(", "));
        table
    }
}

fn by_name<S: serde::Serializer>(groups: &[Group], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(groups.iter().map(|group| (group.name, group.parameters)))
}
