//! `refseg train`: trains a small model from scratch on drawn scenes, or any model on pictures.

mod dashboard;
mod log;
mod monitor;
mod tuning;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};
use refseg_data::metrics::Scores;
use refseg_train::{
    recipes::{ByRecipe, Subject},
    run::{MODEL, Run, Task},
    scratch::{Recipe, Scratch},
};
use serde::Serialize;

use crate::{cli::TrainArgs, console::Console};
use monitor::Monitor;

pub(crate) fn run(args: &TrainArgs, console: &Console) -> Result<()> {
    match &args.tuning.recipe {
        None => drive(Scratch::open(&args.out, recipe(args)?)?, args, console),
        Some(name) => {
            let book = tuning::book(name, args)?;
            match book.subject() {
                Subject::Masks => by_recipe(tuning::open(book, args, console)?, args, console),
                Subject::Answers => {
                    by_recipe(tuning::open_conversing(book, args, console)?, args, console)
                }
                Subject::Outlines => {
                    by_recipe(tuning::open_outlining(book, args, console)?, args, console)
                }
            }
        }
    }
}

/// Trains, or says what that would be.
fn by_recipe<T: ByRecipe>(run: Run<T>, args: &TrainArgs, console: &Console) -> Result<()> {
    if args.tuning.dry_run {
        tuning::show_plan(&run, args, console)
    } else {
        drive(run, args, console)
    }
}

/// Trains to the end, or until Ctrl-C, and says where the model lies.
fn drive<T: Task>(mut run: Run<T>, args: &TrainArgs, console: &Console) -> Result<()> {
    let stop = on_interrupt()?;
    if run.done() > 0 {
        console.note(format_args!(
            "going on after step {} of {}",
            run.done(),
            run.steps()
        ));
    }
    let mut monitor = Monitor::open(&run, console)?;
    run.train(|event| monitor.hear(event).is_ok() && !stop.load(Ordering::Relaxed))?;
    let held_out = monitor.finish()?;
    if run.done() < run.steps() {
        console.note(format_args!(
            "stopped after step {} of {}; the same command goes on from there",
            run.done(),
            run.steps(),
        ));
    }
    let model = args.out.join(MODEL);
    if args.json {
        return console.json(&Document {
            model: &model.to_string_lossy(),
            step: run.done(),
            steps: run.steps(),
            held_out,
        });
    }
    console.result(model.display())
}

/// The default recipe with what was asked for.
fn recipe(args: &TrainArgs) -> Result<Recipe> {
    let default = Recipe::default();
    let count =
        |given: Option<std::num::NonZeroUsize>, default: usize| given.map_or(default, |n| n.get());
    let recipe = Recipe {
        sight_steps: args.scratch.sight_steps.unwrap_or(default.sight_steps),
        steps: args.steps.unwrap_or(default.steps),
        pictures: count(args.pictures, default.pictures),
        phrases: count(args.scratch.phrases, default.phrases),
        masks: count(args.scratch.masks, default.masks),
        learning_rate: args.learning_rate.unwrap_or(default.learning_rate),
        warm_up: args.scratch.warm_up.unwrap_or(default.warm_up),
        workers: count(args.workers, default.workers),
        every: args.every.map_or(default.every, |n| n.get()),
        held_out: count(args.held_out, default.held_out),
        seed: args.seed.unwrap_or(default.seed),
    };
    let is_shared = |count: usize| count.is_multiple_of(recipe.workers);
    if !is_shared(recipe.pictures) || !is_shared(recipe.held_out) {
        bail!(
            "{} workers cannot share {} pictures a step and {} held-out scenes evenly",
            recipe.workers,
            recipe.pictures,
            recipe.held_out,
        );
    }
    if !(recipe.learning_rate.is_finite() && recipe.learning_rate > 0.0) {
        bail!(
            "--learning-rate is {}, expected a positive number",
            recipe.learning_rate
        );
    }
    Ok(recipe)
}

/// A flag that Ctrl-C sets; pressed again, it ends the program at once.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    use signal_hook::{consts::SIGINT, flag};
    let stop = Arc::new(AtomicBool::new(false));
    // The order matters: the first press finds the flag unset.
    flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&stop))
        .and_then(|_| flag::register(SIGINT, Arc::clone(&stop)))
        .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    step: u64,
    steps: u64,
    held_out: Option<Scores>,
}
