//! `refseg train`: trains a small model from scratch on drawn scenes, or any model on pictures.

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the loop does not count pictures and tokens yet")
)]
mod dashboard;
mod log;
mod tuning;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, bail};
use refseg_data::metrics::{Metric, Scores, Tally};
use refseg_train::{
    run::{Event, MODEL, Run, Task},
    scratch::{Recipe, Scratch},
};
use serde::Serialize;

use crate::{cli::TrainArgs, console::Console, files::write_whole, progress::Progress};
use log::Log;

/// Steps between two lines where there is no terminal.
const STEPS_A_LINE: u64 = 20;

pub(crate) fn run(args: &TrainArgs, console: &Console) -> Result<()> {
    match &args.tuning.recipe {
        None => drive(Scratch::open(&args.out, recipe(args)?)?, args, console),
        Some(name) => {
            let run = tuning::open(name, args, console)?;
            if args.tuning.dry_run {
                return tuning::show_plan(&run, args, console);
            }
            drive(run, args, console)
        }
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
    let log = Log::open(&args.out, run.done())?;
    let mut monitor = Monitor {
        log,
        folder: &args.out,
        progress: console.progress(run.steps(), "steps"),
        since: (Instant::now(), run.done()),
        held_out: None,
        failure: None,
    };
    monitor.progress.set(run.done());
    run.train(|event| monitor.hear(event).is_ok() && !stop.load(Ordering::Relaxed))?;
    let Monitor {
        held_out,
        failure,
        progress,
        ..
    } = monitor;
    drop(progress);
    if let Some(error) = failure {
        return Err(error);
    }
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

/// Shows and writes down what a run reports.
struct Monitor<'a> {
    log: Log,
    folder: &'a Path,
    progress: Progress,
    /// When the last line was printed, and after which step.
    since: (Instant, u64),
    held_out: Option<Scores>,
    failure: Option<anyhow::Error>,
}

impl Monitor<'_> {
    /// Takes in an event; what fails is kept, and the run is to stop.
    fn hear(&mut self, event: Event) -> Result<(), ()> {
        self.take_in(event)
            .map_err(|error| self.failure = Some(error))
    }

    fn take_in(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Step {
                step,
                losses,
                norm,
                rate,
            } => {
                self.log.step(step, &losses, norm, rate)?;
                self.progress.set(step);
                let parts = losses.parts.iter();
                let parts: Vec<String> = parts
                    .map(|(name, value)| format!("{name} {value:.3}"))
                    .collect();
                let mut message = format!("loss {:.3} ({})", losses.total, parts.join(" "));
                if let Some(scores) = &self.held_out {
                    message += &format!("  held-out cIoU {} %", shown(scores[Metric::Ciou]));
                }
                if step.is_multiple_of(STEPS_A_LINE) {
                    let (start, first) = self.since;
                    let pace = start.elapsed().as_secs_f64() / (step - first).max(1) as f64;
                    self.since = (Instant::now(), step);
                    message += &format!("  {pace:.2} s/step");
                    self.progress.message(message);
                    self.progress.line();
                } else {
                    self.progress.message(message);
                }
            }
            Event::HeldOut {
                step,
                tally,
                is_best,
            } => {
                self.log.held_out(step, &tally)?;
                self.held_out = Some(Tally::scores(&tally.all()));
                self.progress.print(&summary(step, &tally, is_best));
                self.draw_curve()?;
            }
            Event::Saved { .. } => self.draw_curve()?,
        }
        Ok(())
    }

    fn draw_curve(&self) -> Result<()> {
        let svg =
            refseg_train::curve::svg(self.log.curve()).context("cannot draw the loss curve")?;
        write_whole(&self.folder.join("curve.svg"), svg.as_bytes())
    }
}

fn summary(step: u64, tally: &Tally, is_best: bool) -> String {
    let all = Tally::scores(&tally.all());
    let kinds: Vec<String> = tally
        .kinds()
        .map(|(kind, sums)| format!("{kind} {}", shown(Tally::scores(sums)[Metric::Miou])))
        .collect();
    format!(
        "step {step}, held out: cIoU {}  N-acc {}  T-acc {}  mIoU of {}{}",
        shown(all[Metric::Ciou]),
        shown(all[Metric::NAcc]),
        shown(all[Metric::TAcc]),
        kinds.join(", "),
        if is_best { "  (best)" } else { "" },
    )
}

fn shown(percent: Option<f64>) -> String {
    percent.map_or_else(|| "–".to_owned(), |percent| format!("{percent:.1}"))
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    step: u64,
    steps: u64,
    held_out: Option<Scores>,
}
