//! A Segment Anything model that is trained: what learns, and what a run leaves.

use std::{error::Error, path::Path};

use refseg::{
    Image, Options,
    sam::{Prompt, SamPredictor},
};
use refseg_data::scenes::{DrawnScenes, SceneOptions};
use refseg_train::{
    TrainError,
    outlining::{Outlining, beginner, drawing::Drawings, recipe::Recipe},
    recipes::{Book, ByRecipe},
    run::{Event, Run, Workers},
};

type Outcome = Result<(), Box<dyn Error>>;

fn scenes(count: usize) -> DrawnScenes {
    DrawnScenes {
        options: SceneOptions {
            size: 112,
            ..SceneOptions::default()
        },
        first: 0,
        count,
    }
}

fn open(folder: &Path, start: &Path, overrides: &[&str]) -> Result<Run<Outlining>, TrainError> {
    let small = [
        "steps=4",
        "pictures=2",
        "pictures_a_pass=1",
        "data.objects=2",
        "schedule.warm_up=0.5",
        "watch.every=100",
        "watch.pictures=2",
    ];
    let all = small.iter().chain(overrides).map(|&text| text.to_owned());
    let recipe = Recipe::of(Book::open("sam-small", &all.collect::<Vec<_>>())?)?;
    let workers = Workers {
        count: 1,
        threads: 1,
        loaders: 1,
    };
    let drawings = Drawings::new(vec![(1.0, Box::new(scenes(20)))]);
    let held_out = Some(Box::new(scenes(2)) as Box<_>);
    Outlining::open(folder, start, recipe, workers, drawings, held_out)
}

#[test]
fn a_run_that_was_stopped_ends_like_one_that_was_not() -> Outcome {
    let start = tempfile::tempdir()?;
    beginner::write(start.path(), 0)?;
    let (whole, parts) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut losses = Vec::new();
    let mut uninterrupted = open(whole.path(), start.path(), &[])?;
    uninterrupted.train(|event| {
        if let Event::Step { losses: of, .. } = event {
            losses.push(of.total);
        }
        true
    })?;
    assert!(losses[3] < losses[0], "{losses:?}");
    let mut first = open(parts.path(), start.path(), &[])?;
    first.train(|event| !matches!(event, Event::Step { step: 2, .. }))?;
    drop(first);
    let mut second = open(parts.path(), start.path(), &[])?;
    assert_eq!(second.done(), 2);
    second.train(|_| true)?;
    for (key, expected) in uninterrupted.parameters().iter() {
        let found = second.parameters().get(key).expect("the same network");
        assert!(found.values == expected.values, "{key}: values differ");
    }

    // What it leaves draws as the run itself would.
    let picture = Image::from_rgb(4, 3, (0..36).map(|i| i * 7).collect())?;
    let prompt = Prompt {
        box_px: Some([0.0, 1.0, 3.0, 2.0]),
        ..Prompt::default()
    };
    let left = SamPredictor::load(whole.path().join("model"), &Options::default())?;
    assert!(left.unused_tensors().is_empty());
    let own = second.task().predictor(second.parameters())?;
    let found = left.encode(&picture)?.prompt(&prompt, true)?;
    let expected = own.encode(&picture)?.prompt(&prompt, true)?;
    for (found, expected) in found.scores.iter().zip(&expected.scores) {
        // The start, and so what is left, is kept in f16.
        assert!((found - expected).abs() < 0.02, "{found}, {expected}");
    }
    Ok(())
}

#[test]
fn only_what_is_named_learns() -> Outcome {
    let start = tempfile::tempdir()?;
    beginner::write(start.path(), 0)?;
    let folder = tempfile::tempdir()?;
    // A decoder that is fine-tuned leaves the rest alone.
    let decoder = [
        "train.parameters=[\"mask_decoder.\"]",
        "prompts.several=0.5",
    ];
    let mut run = open(folder.path(), start.path(), &decoder)?;
    run.train(|_| true)?;
    let mut parameters = run.parameters().iter();
    assert!(parameters.all(|(key, _)| key.starts_with("mask_decoder.")));
    assert!(run.task().frozen_parameters(run.parameters()) > 100_000);

    let folder = tempfile::tempdir()?;
    let mut run = open(folder.path(), start.path(), &["steps=12"])?;
    run.train(|_| true)?;
    for (key, parameter) in run.parameters().iter() {
        let moved = parameter.second_moment.iter().any(|&moment| moment > 0.0);
        // No prompt is a mask, and not every mask was the best of its prompt.
        let is_idle = key.contains("mask_downscaling");
        let may_idle = key.contains("output_hypernetworks_mlps.");
        assert!(moved != is_idle || may_idle, "{key}");
        assert!(!key.contains("gaussian_matrix"));
    }
    Ok(())
}
