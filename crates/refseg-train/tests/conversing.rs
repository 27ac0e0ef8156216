//! A language model that is taught to answer: what its mistakes cost, and what a run leaves.

use std::{error::Error, path::Path};

use refseg::{
    Image, Options,
    chat::{self, Conversation, Mllm, Question},
};
use refseg_data::{
    conversations::DescribedPictures,
    scenes::{DrawnScenes, SceneOptions},
};
use refseg_train::{
    TrainError,
    conversing::{
        Conversing, beginner,
        lesson::{Lesson, Lessons},
        recipe::Recipe,
    },
    parameters::Parameters,
    recipes::Book,
    run::{Event, Run, Task, Workers},
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

fn recipe(overrides: &[&str]) -> Result<Recipe, Box<dyn Error>> {
    let small = [
        "steps=4",
        "pictures=2",
        "pictures_a_pass=1",
        "talk.phrases=3",
        "talk.probed=0.5",
        "schedule.warm_up=0.5",
        "watch.every=100",
        "watch.pictures=2",
    ];
    let all = small.iter().chain(overrides).map(|&text| text.to_owned());
    let all: Vec<String> = all.collect();
    Ok(Recipe::of(Book::open("sam4mllm-small", &all)?)?)
}

/// A run that is judged on nothing: an untaught model says a lot, and that takes its time.
fn open(folder: &Path, start: &Path, recipe: &Recipe) -> Result<Run<Conversing>, TrainError> {
    open_judged(folder, start, recipe, None)
}

fn open_judged(
    folder: &Path,
    start: &Path,
    recipe: &Recipe,
    held_out: Option<Box<dyn DescribedPictures + Send>>,
) -> Result<Run<Conversing>, TrainError> {
    let workers = Workers {
        count: 1,
        threads: 1,
        loaders: 1,
    };
    let lessons = Lessons::new(vec![(1.0, Box::new(scenes(20)))], None);
    Conversing::open(folder, start, recipe.clone(), workers, lessons, held_out)
}

/// A model to begin with, and a picture.
fn begun() -> Result<(tempfile::TempDir, Image), Box<dyn Error>> {
    let start = tempfile::tempdir()?;
    beginner::write(start.path(), 0)?;
    let picture = Image::from_rgb(2, 2, vec![9, 99, 200, 0, 0, 0, 255, 30, 60, 77, 88, 99])?;
    Ok((start, picture))
}

/// What each token of `count` times `word`, and then the end, costs as an answer: computed token
/// by token, by the code that answers.
fn costs(
    seen: &dyn Conversation,
    question: &str,
    [word, end]: [u32; 2],
    count: usize,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let answer = seen.ask(&Question {
        text: question,
        max_tokens: count + 1,
        only: &[word],
        watched: &[end],
    })?;
    let words = answer.log_probabilities[..count].iter();
    let words = words.map(|&log| -f64::from(log));
    let end = -f64::from(answer.watched[count][0]).ln();
    Ok(words.chain([end]).collect())
}

fn mean(costs: &[f64]) -> f64 {
    costs.iter().sum::<f64>() / costs.len() as f64
}

#[test]
fn only_what_the_model_says_itself_costs() -> Outcome {
    let (start, image) = begun()?;
    let model = chat::open(start.path(), &Options::default())?;
    let end = chat::Backbone::from_folder(start.path())?;
    let end = end.tokenizer().require("<|im_end|>")?;
    let yes = [model.token("Yes")?, end];
    let seen = model.look(&image)?;
    // Of quite different lengths, so that one of them is filled up, and one is two turns long.
    let short = costs(&*seen, "Is it?", yes, 1)?;
    let long = costs(&*seen, "Is it red, or is it blue?", yes, 3)?;
    let later = seen.followed_by("Is it?", "Yes")?;
    let later = costs(&*later, "Really?", yes, 2)?;
    let both = [short.clone(), later].concat();

    let folder = tempfile::tempdir()?;
    let cost = |turns: &[&[(&str, &str)]], mean_of: &str| -> Result<f64, Box<dyn Error>> {
        let recipe = recipe(&[&format!("loss.mean_of={mean_of}")])?;
        let run = open(&folder.path().join(mean_of), start.path(), &recipe)?;
        let write = |turns: &&[(&str, &str)]| run.task().backbone().write(turns);
        let lesson = Lesson {
            image: image.clone(),
            talks: turns.iter().map(write).collect::<Result<_, _>>()?,
        };
        let measured = run.task().measure_on(run.parameters(), &[lesson], None)?;
        Ok(f64::from(measured.losses.total))
    };
    let close = |found: f64, expected: f64| {
        assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
    };
    let first = ("Is it?", "Yes");
    let second = ("Is it red, or is it blue?", "YesYesYes");
    close(cost(&[&[first]], "tokens")?, mean(&short));
    let talks: [&[(&str, &str)]; 3] = [&[first], &[second], &[first, ("Really?", "YesYes")]];
    let all = [short.clone(), long.clone(), both.clone()];
    close(cost(&talks, "tokens")?, mean(&all.concat()));
    let means = all.map(|costs| mean(&costs));
    close(cost(&talks, "conversations")?, mean(&means));
    Ok(())
}

#[test]
fn a_run_that_was_stopped_ends_like_one_that_was_not() -> Outcome {
    let (start, image) = begun()?;
    let lora = "train.lora={ rank = 4, alpha = 8.0, dropout = 0.1, of = [\"model.layers.\"] }";
    for overrides in [
        &["train.parameters=[\"\"]"][..],
        &["train.parameters=[]", lora],
    ] {
        let recipe = recipe(overrides)?;
        let (whole, parts) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let mut uninterrupted = open(whole.path(), start.path(), &recipe)?;
        uninterrupted.train(|_| true)?;
        for stop in 1..=3 {
            let mut run = open(parts.path(), start.path(), &recipe)?;
            run.train(|event| !matches!(event, Event::Step { step, .. } if step == stop))?;
            assert_eq!(run.done(), stop);
        }
        let mut last = open(parts.path(), start.path(), &recipe)?;
        last.train(|_| true)?;
        assert_same(last.parameters(), uninterrupted.parameters());

        // What it leaves answers as the run itself would.
        let left = chat::open(whole.path().join("model"), &Options::default())?;
        assert!(left.unused_tensors().is_empty());
        let own = last.task().model(last.parameters())?;
        // Only these two, so that something is said.
        let words = [own.token("No")?, own.token("Yes")?];
        let question = Question {
            max_tokens: 3,
            only: &words,
            ..Question::new("Is it red?")
        };
        let (found, expected) = (
            left.look(&image)?.ask(&question)?,
            own.look(&image)?.ask(&question)?,
        );
        assert_eq!(found.ids, expected.ids);
        // The start, and so what is left, is kept in f16.
        let gap = found.log_probabilities[0] - expected.log_probabilities[0];
        assert!(gap.abs() < 0.05, "{gap}");
    }
    Ok(())
}

fn assert_same(found: &Parameters, expected: &Parameters) {
    for (key, expected) in expected.iter() {
        let found = found.get(key).expect("the same network");
        assert!(found.values == expected.values, "{key}: values differ");
        assert!(
            found.first_moment == expected.first_moment,
            "{key}: moments differ"
        );
    }
}

#[test]
fn everything_learns() -> Outcome {
    let (start, _) = begun()?;
    let folder = tempfile::tempdir()?;
    // Pictures of one shape, so that losses of different lessons can be compared.
    let recipe = recipe(&[
        "talk.probed=1.0",
        "talk.ppg=1.0",
        "talk.pqpp=1.0",
        "data.stretch=none",
    ])?;
    let held_out = Some(Box::new(scenes(1)) as Box<_>);
    let mut run = open_judged(folder.path(), start.path(), &recipe, held_out)?;
    let (mut losses, mut judged) = (Vec::new(), 0);
    run.train(|event| {
        match event {
            Event::Step { losses: of, .. } => losses.push(of.total),
            Event::HeldOut { tally, .. } => judged += tally.all().expressions,
            _ => {}
        }
        true
    })?;
    assert_eq!(
        judged,
        scenes(1).described_picture(0)?.2.expressions.len() as u64
    );
    assert!(losses[3] < losses[0], "{losses:?}");
    for (key, parameter) in run.parameters().iter() {
        let moved = parameter.second_moment.iter().any(|&moment| moment > 0.0);
        assert!(moved, "{key} received no gradient");
    }
    Ok(())
}

#[test]
fn a_number_always_draws_the_same_lesson() -> Outcome {
    let (start, _) = begun()?;
    let folder = tempfile::tempdir()?;
    let recipe = recipe(&[])?;
    let run = open(folder.path(), start.path(), &recipe)?;
    let ids = |step| -> Result<Vec<_>, TrainError> {
        let lessons = run.task().batch(step, 0)?;
        let talks = lessons.into_iter().flat_map(|lesson| lesson.talks);
        Ok(talks.map(|talk| talk.ids).collect())
    };
    assert_eq!(ids(3)?, ids(3)?);
    assert_ne!(ids(3)?, ids(4)?);
    Ok(())
}

#[test]
fn helper_heads_need_to_know_where_tokens_lie() -> Outcome {
    let llava = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../refseg/tests/fixtures/llava/llava-next-tiny");
    let folder = tempfile::tempdir()?;
    let recipe = recipe(&["loss.blur=0"])?;
    let error = open(folder.path(), &llava, &recipe).expect_err("tiles are no square of tokens");
    assert!(matches!(error, TrainError::NoGrid { .. }), "{error}");
    Ok(())
}
