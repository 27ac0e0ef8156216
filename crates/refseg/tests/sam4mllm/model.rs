//! The whole method. What the language model says is scripted; Segment Anything is a small random
//! network of the official code, whose own agreement is tested elsewhere.

use std::{error::Error, path::Path};

use refseg::{
    Image, Mask, Options, Segmentable, Segmentation, Segmenter,
    chat::ChatError,
    predictor::PredictorError,
    sam::{Label, Prompt, SamPredictor, SamScene},
    sam4mllm::{
        AnswerCount, Method, NO_OBJECT, ProbePattern, Reading, Sam4Mllm, Sam4MllmScene, Settings,
        Thresholds, sam_prompt,
    },
};

use crate::{
    cases::{Case, cases, check_prompt, labelled, mask, read},
    scripted::{Call, FIRST, Script},
};

type Outcome = Result<(), Box<dyn Error>>;

const TWO_BOXES: &str = "[100,100,600,600] [300,200,900,950]";

/// A drawn picture of some size: what is in it matters to nobody here, but it must not be plain.
fn picture(width: u32, height: u32) -> Image {
    let pixels = (0..width * height).flat_map(|i| {
        let (x, y) = (i % width, i / width);
        [
            (x * 5) as u8,
            (y * 3) as u8,
            (x / 40 * 90 + y / 30 * 50) as u8,
        ]
    });
    Image::from_rgb(width, height, pixels.collect()).expect("a picture")
}

fn sam() -> SamPredictor {
    let folder = Path::new("tests/fixtures/sam/sam-vit-tiny");
    SamPredictor::load(folder, &Options::default()).expect("a fixture")
}

fn pair(script: &Script, settings: Settings) -> Sam4Mllm {
    let mllm = Box::new(script.clone());
    Sam4Mllm::new("scripted".to_owned(), mllm, sam(), settings).expect("a pair")
}

fn scene(script: &Script, settings: Settings, image: &Image) -> Sam4MllmScene {
    pair(script, settings).encode(image).expect("a scene")
}

fn one(readings: Vec<Reading>) -> Reading {
    assert_eq!(readings.len(), 1);
    readings.into_iter().next().expect("a reading")
}

/// What Segment Anything draws for a reading, object by object, and all of it.
fn drawn(reading: &Reading, seen: &SamScene, size: (usize, usize)) -> Result<Mask, Box<dyn Error>> {
    let mut union = Mask::empty(size.0, size.1)?;
    for object in &reading.objects {
        let prompted = &object.prompted;
        let prompt = sam_prompt(prompted.box_norm, &prompted.points_norm, size);
        let masks = seen.prompt(&prompt, true)?;
        union = union.union(&masks.masks[masks.best()])?;
    }
    Ok(union)
}

#[test]
fn the_recorded_way_is_gone_from_end_to_end() -> Outcome {
    let case = case("end_to_end-112");
    let (height, width) = case.size();
    let confidences: Vec<Vec<[f32; 2]>> = case.get("probs_no_yes");
    let script = Script {
        answers: vec![("bird", case.get("round1_answer"))],
        confidences: vec![
            ("[281,251,863,999]", confidences[0].clone()),
            ("[010,020,110,220]", confidences[1].clone()),
        ],
        ..Script::default()
    };
    let settings = Settings {
        probes: ProbePattern::Grid5,
        thresholds: Thresholds::CODE,
        count: Some(AnswerCount::ZeroOrMore),
        ..Settings::paper()
    };
    let image = picture(width as u32, height as u32);
    let scene = scene(&script, settings, &image);
    let reading = one(scene.read(&["side view bird"])?);
    assert!(reading.unread.is_empty());
    let expected: Vec<serde_json::Value> = case.expected("objects");
    assert_eq!(reading.objects.len(), expected.len());
    for (object, expected) in reading.objects.iter().zip(&expected) {
        assert_eq!(
            object.prompted.box_norm,
            read::<[i32; 4]>(expected, "box", "112")
        );
        assert_eq!(object.prompted.points_norm, labelled(expected));
        assert_eq!(object.probes.len(), 25);
        let prompted = &object.prompted;
        let prompt = sam_prompt(prompted.box_norm, &prompted.points_norm, (height, width));
        check_prompt(&prompt, &expected["sam"], "112");
    }
    let calls = script.calls.lock().expect("no panic").clone();
    let second: Vec<String> = expected
        .iter()
        .map(|e| read(e, "round2_prompt", "112"))
        .collect();
    let first = "Please provide the bounding box coordinate of the region this sentence describes \
                 (0+):\n\"side view bird\".";
    // All boxes are asked about at once, behind the first answer as it was given.
    let expected = [
        Call {
            before: vec![],
            questions: vec![first.to_owned()],
        },
        Call {
            before: vec![(first.to_owned(), case.get("round1_answer"))],
            questions: second,
        },
    ];
    assert_eq!(calls, expected);

    let found = scene.draw(&reading)?;
    let seen = sam().encode(&image)?;
    assert_eq!(found.mask, drawn(&reading, &seen, (height, width))?);
    assert!(found.mask.area() > 0 && found.found);
    assert_eq!((found.presence, found.box_px), (FIRST, found.mask.bounds()));
    assert_eq!(found.probabilities.len(), found.side * found.side);
    assert_eq!(found, scene.segment("side view bird")?);
    Ok(())
}

#[test]
fn as_many_boxes_are_used_as_the_question_speaks_of() -> Outcome {
    for case in cases()
        .into_iter()
        .filter(|case| case.group == "select_boxes")
    {
        let script = Script {
            answers: vec![("cat", case.get("text"))],
            confidences: vec![("[", vec![[0.02, 0.97]; 25])],
            ..Script::default()
        };
        let settings = Settings {
            count: Some(case.count()),
            ..Settings::paper()
        };
        let reading = one(scene(&script, settings, &picture(64, 48)).read(&["cat"])?);
        let boxes = reading
            .objects
            .iter()
            .map(|object| object.prompted.box_norm);
        let expected: Vec<[i32; 4]> = case.expected("boxes");
        assert_eq!(boxes.collect::<Vec<_>>(), expected, "{}", case.id);
    }
    Ok(())
}

#[test]
fn without_an_object_nothing_is_drawn() -> Outcome {
    for case in cases().into_iter().filter(|case| case.group == "no_object") {
        let script = Script {
            answers: vec![("cat", case.get("answer"))],
            ..Script::default()
        };
        let (height, width) = case.size();
        let image = picture(width as u32, height as u32);
        let found = scene(&script, Settings::paper(), &image).segment("cat")?;
        assert_eq!(
            found.mask,
            mask(&case.expected::<Vec<String>>("mask")),
            "{}",
            case.id
        );
        assert_eq!(
            found.found,
            !case.expected::<bool>("no_target"),
            "{}",
            case.id
        );
        assert_eq!((found.score, found.box_px), (0.0, None));
        // A box without area is neither an object nor the answer that there is none.
        let said = case.get::<String>("answer") == NO_OBJECT;
        assert_eq!(found.presence, if said { 1.0 - FIRST } else { 0.0 });
        assert!(found.probabilities.iter().all(|&p| p == 0.0));
        // No box, so no second question.
        assert_eq!(script.calls.lock().expect("no panic").len(), 1);
    }
    Ok(())
}

#[test]
fn what_cannot_be_read_is_reported_and_not_drawn() -> Outcome {
    let script = Script {
        answers: vec![
            ("cat", "I see a cat at [12, 30, 99, 140].".to_owned()),
            ("dog", String::new()),
        ],
        ..Script::default()
    };
    let scene = scene(&script, Settings::paper(), &picture(64, 48));
    let answers = scene.segment_many(&["cat", "dog"])?;
    assert!(
        answers
            .iter()
            .all(|answer| !answer.found && answer.mask.area() == 0)
    );
    assert_eq!(answers[0].unread, ["I see a cat at [12, 30, 99, 140]."]);
    assert_eq!(answers[1].unread, [""]);
    // Neither was an object named, nor that there is none.
    assert!(answers.iter().all(|answer| answer.presence == 0.0));
    Ok(())
}

#[test]
fn phrases_are_asked_at_once_and_each_on_its_own() -> Outcome {
    let sure = |count: usize| vec![[0.02, 0.97]; count];
    let script = Script {
        answers: vec![
            ("cat", TWO_BOXES.to_owned()),
            ("dog", "[010,010,500,500]".to_owned()),
            ("cow", "No object found.".to_owned()),
        ],
        confidences: vec![("[", sure(36))],
        ..Script::default()
    };
    let settings = Settings {
        probes: ProbePattern::Random36,
        ..Settings::paper()
    };
    let scene = scene(&script, settings, &picture(96, 64));
    let phrases = ["cat", "dog", "cow"];
    let together = scene.segment_many(&phrases)?;
    let calls = script.calls.lock().expect("no panic").clone();
    assert_eq!(calls.len(), 3);
    assert_eq!((calls[0].questions.len(), calls[1].questions.len()), (3, 2));
    let alone = phrases.map(|phrase| scene.segment(phrase));
    let alone = alone
        .into_iter()
        .collect::<Result<Vec<Segmentation>, _>>()?;
    assert_eq!(together, alone);
    assert_eq!(
        together
            .iter()
            .map(|s| s.phrase.as_str())
            .collect::<Vec<_>>(),
        phrases
    );
    assert!(scene.segment_many(&[])?.is_empty());
    Ok(())
}

#[test]
fn a_phrase_for_one_object_keeps_the_first_box() -> Outcome {
    let script = Script {
        answers: vec![("cat", format!("[300,1,200,5] {TWO_BOXES}"))],
        confidences: vec![("[", vec![[0.02, 0.97]; 25])],
        ..Script::default()
    };
    let mut scene = scene(&script, Settings::paper(), &picture(96, 64));
    let boxes = |scene: &Sam4MllmScene| -> Result<Vec<[i32; 4]>, PredictorError> {
        let reading = one(scene.read(&["cat"])?);
        Ok(reading
            .objects
            .iter()
            .map(|object| object.prompted.box_norm)
            .collect())
    };
    // Without a data set any number is asked for.
    assert_eq!(boxes(&scene)?, [[100, 100, 600, 600], [300, 200, 900, 950]]);
    scene.expect(AnswerCount::One);
    assert_eq!(boxes(&scene)?, [[100, 100, 600, 600]]);
    let asked = script.calls.lock().expect("no panic").clone();
    assert!(asked[0].questions[0].contains("describes (0+):"));
    assert!(asked[2].questions[0].contains("describes (1):"));
    // What the settings say holds for every data set.
    let settings = Settings {
        count: Some(AnswerCount::OneOrMore),
        ..Settings::paper()
    };
    let mut scene = pair(&script, settings).encode(&picture(96, 64))?;
    scene.expect(AnswerCount::One);
    assert_eq!(boxes(&scene)?.len(), 2);
    Ok(())
}

#[test]
fn points_and_boxes_can_be_asked_for_at_once() -> Outcome {
    let script = Script {
        // Points are no part of the vocabulary that PPG needs.
        splits_yes: true,
        answers: vec![(
            "cat",
            "[100,100,600,600](300,300,1)(310,420,1)(110,590,0) [5,5,5,90](1,1,1)".to_owned(),
        )],
        ..Script::default()
    };
    let settings = Settings {
        method: Method::Ppg,
        ..Settings::paper()
    };
    let image = picture(96, 64);
    let scene = scene(&script, settings, &image);
    let reading = one(scene.read(&["cat"])?);
    assert_eq!(reading.objects.len(), 1);
    let points = [
        ([300, 300], Label::Foreground),
        ([310, 420], Label::Foreground),
        ([110, 590], Label::Background),
    ];
    assert_eq!(reading.objects[0].prompted.points_norm, points);
    assert!(reading.objects[0].probes.is_empty());
    assert_eq!(
        scene.draw(&reading)?.mask,
        drawn(&reading, &sam().encode(&image)?, (64, 96))?
    );
    let calls = script.calls.lock().expect("no panic");
    assert_eq!(calls.len(), 1);
    assert!(calls[0].questions[0].contains("coordinate and prompt points of"));
    Ok(())
}

#[test]
fn pictures_are_squashed_for_the_language_model_alone() -> Outcome {
    let script = Script {
        answers: vec![("cat", "No object found.".to_owned())],
        ..Script::default()
    };
    let settings = Settings {
        squash: Some(67),
        ..Settings::paper()
    };
    let found = scene(&script, settings, &picture(96, 64)).segment("cat")?;
    assert_eq!((found.mask.width(), found.mask.height()), (96, 64));
    scene(&script, Settings::paper(), &picture(96, 64));
    assert_eq!(
        *script.looks.lock().expect("no panic"),
        [(67, 67), (96, 64)]
    );
    Ok(())
}

#[test]
fn a_model_whose_yes_is_two_tokens_is_refused() {
    let script = Script {
        splits_yes: true,
        ..Script::default()
    };
    let error = Sam4Mllm::new("pair".into(), Box::new(script), sam(), Settings::paper());
    let error = error.expect_err("PQPP needs the word as one token");
    assert!(
        matches!(
            error,
            PredictorError::Chat(ChatError::NotOneToken { found: 3, .. })
        ),
        "{error}"
    );
}

#[test]
fn phrases_that_are_none_and_prompts_that_do_not_exist_are_refused() {
    let script = Script::default();
    let model: Box<dyn Segmenter> = Box::new(pair(&script, Settings::paper()));
    assert_eq!((model.name(), model.method()), ("scripted", "sam4mllm"));
    let scene = model.encode(&picture(64, 48)).expect("a scene");
    assert!(matches!(
        scene.segment(" "),
        Err(PredictorError::EmptyPhrase)
    ));
    assert!(matches!(
        scene.segment(&"x".repeat(1 << 17)),
        Err(PredictorError::LongPhrase { .. })
    ));
    let joint = scene.segment_joint(&["cat"]);
    assert!(matches!(joint, Err(PredictorError::OnlySingle)));
    // Nothing of this reached the language model.
    assert!(script.calls.lock().expect("no panic").is_empty());
}

/// A mask without a pixel is no object, whatever box was answered.
#[test]
fn the_prompt_of_an_object_is_its_box_where_no_point_is_sure() -> Outcome {
    let script = Script {
        answers: vec![("cat", "[100,100,600,600]".to_owned())],
        confidences: vec![("[", vec![[0.4, 0.6]; 25])],
        ..Script::default()
    };
    let image = picture(96, 64);
    let scene = scene(&script, Settings::paper(), &image);
    let reading = one(scene.read(&["cat"])?);
    assert!(reading.objects[0].prompted.points_norm.is_empty());
    let prompt = Prompt {
        box_px: Some([9.6, 6.4, 57.599999999999994, 38.4]),
        ..Prompt::default()
    };
    let masks = sam().encode(&image)?.prompt(&prompt, true)?;
    let found = scene.draw(&reading)?;
    assert_eq!(found.mask, masks.masks[masks.best()]);
    assert_eq!(
        found.score,
        if found.found {
            masks.scores[masks.best()]
        } else {
            0.0
        }
    );
    Ok(())
}

fn case(id: &str) -> Case {
    let found = cases().into_iter().find(|case| case.id == id);
    found.expect("a case of the fixture")
}
