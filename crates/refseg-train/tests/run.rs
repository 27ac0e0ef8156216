//! A run is a function of its recipe: killed or not, it comes to the same values.

use std::error::Error;

use refseg::{Options, Predictor};
use refseg_train::{
    TrainError,
    run::Event,
    scratch::{Recipe, Scratch},
};

/// Small enough for a test, with both phases.
fn recipe() -> Recipe {
    Recipe {
        sight_steps: 1,
        steps: 4,
        pictures: 2,
        phrases: 3,
        masks: 1,
        warm_up: 2,
        every: 100,
        held_out: 2,
        ..Recipe::default()
    }
}

#[test]
fn a_run_that_was_stopped_ends_like_one_that_was_not() -> Result<(), Box<dyn Error>> {
    let (whole, parts) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut uninterrupted = Scratch::open(whole.path(), recipe())?;
    uninterrupted.train(|_| true)?;

    let mut first = Scratch::open(parts.path(), recipe())?;
    first.train(|event| !matches!(event, Event::Step { step: 2, .. }))?;
    assert_eq!(first.done(), 2);
    drop(first);
    let mut second = Scratch::open(parts.path(), recipe())?;
    assert_eq!(second.done(), 2);
    second.train(|_| true)?;

    for (key, expected) in uninterrupted.parameters().iter() {
        let found = second.parameters().get(key).expect("the same network");
        assert!(found.values == expected.values, "{key}: values differ");
        assert!(
            found.first_moment == expected.first_moment,
            "{key}: moments differ"
        );
    }

    // What it leaves is a model like any other.
    let predictor = Predictor::load(whole.path().join("model"), &Options::default())?;
    assert!(
        predictor.unused_tensors().is_empty(),
        "helper heads are left out"
    );
    Ok(())
}

#[test]
fn every_tensor_is_trained() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut run = Scratch::open(folder.path(), recipe())?;
    run.train(|_| true)?;
    for (key, parameter) in run
        .parameters()
        .iter()
        .filter(|(_, parameter)| parameter.is_trained())
    {
        let moved = parameter.second_moment.iter().any(|&moment| moment > 0.0);
        assert!(moved, "{key} received no gradient");
    }
    Ok(())
}

#[test]
fn a_folder_belongs_to_its_recipe() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    Scratch::open(folder.path(), recipe())?.train(|event| matches!(event, Event::Saved { .. }))?;
    let longer = Recipe {
        steps: 9,
        ..recipe()
    };
    assert_eq!(
        Scratch::open(folder.path(), longer)?.done(),
        1,
        "how long it goes on may change"
    );
    let other = Recipe {
        learning_rate: 0.5,
        ..recipe()
    };
    assert!(matches!(
        Scratch::open(folder.path(), other),
        Err(TrainError::OtherRecipe { .. })
    ));
    Ok(())
}
