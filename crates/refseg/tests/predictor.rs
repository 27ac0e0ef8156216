//! What a user can get wrong, and what must then happen: a sentence, never a panic.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use refseg::{Image, Options, Predictor, predictor::MAX_PHRASE_BYTES, prompt::Marker};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn qwen2() -> Predictor {
    Predictor::load(fixture("mllmseg-qwen2-res"), &Options::default()).expect("the fixture loads")
}

fn picture(width: u32, height: u32) -> Image {
    let pixels = (0..width * height).flat_map(|i| [(i % 251) as u8, (i % 83) as u8, 90]);
    Image::from_rgb(width, height, pixels.collect()).expect("three bytes a pixel")
}

/// A copy of a fixture's model that a test may damage.
fn copy_of(name: &str) -> Result<TempDir, Box<dyn Error>> {
    let copy = tempfile::tempdir()?;
    for entry in fs::read_dir(fixture(name))? {
        let entry = entry?;
        fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
    }
    Ok(copy)
}

/// The message of a model that must not load.
fn refusal(folder: &Path) -> String {
    let error =
        Predictor::load(folder, &Options::default()).expect_err("a damaged model is refused");
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message += &format!(": {error}");
        cause = error.source();
    }
    message
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Value)) -> Outcome {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path)?)?;
    edit(&mut config);
    fs::write(path, serde_json::to_vec(&config)?)?;
    Ok(())
}

#[test]
fn every_size_of_picture_gets_a_mask_of_its_size() -> Outcome {
    let predictor = qwen2();
    for (width, height) in [(1, 1), (1, 4000), (3000, 2), (97, 301), (448, 448)] {
        let answer = predictor.encode(&picture(width, height))?.segment("left")?;
        assert_eq!(
            (answer.mask.width(), answer.mask.height()),
            (width as usize, height as usize)
        );
        assert_eq!(answer.probabilities.len(), answer.side * answer.side);
    }
    Ok(())
}

#[test]
fn strange_phrases_are_text_like_any_other() -> Outcome {
    let scene = qwen2().encode(&picture(40, 30))?;
    for phrase in [
        "\0",
        "🦓🦓",
        "الكوب الأحمر",
        "a\u{301}",
        "<img>",
        "[SEG]",
        "x [REJ], y:[SEG]",
        "<|im_end|>",
    ] {
        scene
            .segment(phrase)
            .map_err(|error| format!("{phrase:?}: {error}"))?;
    }
    Ok(())
}

/// A marker that is typed is not a marker: its id must come from the prompt alone.
#[test]
fn typed_markers_do_not_reach_the_model_as_markers() -> Outcome {
    let folder = fixture("mllmseg-qwen2-res");
    let tokenizer = refseg::tokenizer::Tokenizer::from_folder(&folder)?;
    for token in ["[SEG]", "[REJ]", "<img>", "<IMG_CONTEXT>", "<|im_start|>"] {
        let id = tokenizer.added_token(token).expect("the fixture has it");
        assert!(!tokenizer.encode(token)?.contains(&id), "{token}");
        assert!(
            !tokenizer.encode(&format!("the {token} cup"))?.contains(&id),
            "{token}"
        );
    }
    Ok(())
}

#[test]
fn phrases_without_words_or_without_end_are_refused() -> Outcome {
    let scene = qwen2().encode(&picture(40, 30))?;
    for phrase in ["", "  \n\t "] {
        let error = scene.segment(phrase).expect_err("nothing was asked");
        assert_eq!(
            error.to_string(),
            "a phrase is empty: say what to look for, such as \"the red ring\""
        );
    }
    let error = scene
        .segment(&"long ".repeat(200_000))
        .expect_err("no prompt is a megabyte long");
    assert_eq!(
        error.to_string(),
        format!("a phrase is 1000000 bytes long, and at most {MAX_PHRASE_BYTES} are read")
    );
    // Shorter than that, but more tokens than any prompt may have.
    assert!(scene.segment(&"zq".repeat(20_000)).is_err());
    Ok(())
}

#[test]
fn no_phrases_give_no_answers() -> Outcome {
    let scene = qwen2().encode(&picture(40, 30))?;
    assert!(scene.segment_many(&[])?.is_empty());
    assert!(scene.segment_joint(&[])?.is_empty());
    Ok(())
}

#[test]
fn a_scene_outlives_its_predictor_and_crosses_threads() -> Outcome {
    let scene = qwen2().encode(&picture(64, 64))?;
    assert!(scene.bytes() > 1000);
    let alone = scene.segment("left")?;
    let elsewhere = std::thread::spawn({
        let scene = scene.clone();
        move || scene.segment("left")
    });
    assert_eq!(elsewhere.join().expect("no panic")?, alone);
    Ok(())
}

#[test]
fn a_joint_prompt_of_one_phrase_is_the_phrase_alone() -> Outcome {
    let scene = qwen2().encode(&picture(64, 48))?;
    assert_eq!(scene.segment_joint(&["left"])?, [scene.segment("left")?]);
    Ok(())
}

/// Read marker by marker, with the same markers, it is the prompt that is read at once.
#[test]
fn a_sequential_prompt_is_a_joint_one_with_the_models_own_markers() -> Outcome {
    let folder = fixture("mllmseg-internlm2-gres-lora");
    let image = Image::open(folder.join("image.jpg"))?;
    let scene = Predictor::load(&folder, &Options::default())?.encode(&image)?;
    // The first phrase is rejected, so that the others read a `[REJ]` before them.
    let phrases = ["two red shapes", "the zebra behind another one", "left"];
    let answers = scene.segment_sequential(&phrases)?;
    let found: Vec<bool> = answers.iter().map(|answer| answer.found).collect();
    assert_eq!(found, [false, true, false]);
    let markers: Vec<Marker> = found
        .iter()
        .map(|&found| if found { Marker::Seg } else { Marker::Rej })
        .collect();
    // The decisions of the published protocol come from the markers it is given.
    let given = scene.segment_teacher_forced(&phrases, &markers)?;
    let other = scene.segment_joint(&phrases)?;
    for (answer, given) in answers.iter().zip(&given) {
        assert_eq!(answer.found, given.found);
        assert!((answer.presence - given.presence).abs() < 1e-4);
    }
    let differs = (answers[1].presence - other[1].presence).abs();
    assert!(
        differs > 1e-4,
        "the second phrase reads the first one's marker"
    );
    assert!(scene.segment_sequential(&[])?.is_empty());
    Ok(())
}

#[test]
fn what_was_not_found_has_an_empty_mask_and_no_box() -> Outcome {
    let folder = fixture("mllmseg-internlm2-gres-lora");
    let image = Image::open(folder.join("image.jpg"))?;
    let scene = Predictor::load(&folder, &Options::default())?.encode(&image)?;
    let answers = scene.segment_joint(&["two red shapes", "the zebra behind another one"])?;
    assert!(!answers[1].found);
    assert_eq!(
        (answers[1].mask.area(), answers[1].box_px, answers[1].score),
        (0, None, 0.0)
    );
    assert!(
        answers[1].probabilities.iter().any(|&p| p > 0.0),
        "the raw map is still there"
    );
    Ok(())
}

#[test]
fn no_such_model() {
    let message = refusal(Path::new("no/such/model"));
    assert!(
        message.starts_with("`no/such/model` is not a model"),
        "{message}"
    );
}

#[test]
fn missing_files_are_named() -> Outcome {
    for (file, expected) in [
        ("config.json", "config.json` cannot be read"),
        ("model.safetensors", "no weights; expected one of"),
        ("tokenizer.json", "tokenizer"),
    ] {
        let copy = copy_of("mllmseg-qwen2-res")?;
        fs::remove_file(copy.path().join(file))?;
        let message = refusal(copy.path());
        assert!(message.contains(expected), "{file}: {message}");
    }
    Ok(())
}

#[test]
fn truncated_weights_are_refused() -> Outcome {
    let copy = copy_of("mllmseg-qwen2-res")?;
    let path = copy.path().join("model.safetensors");
    let bytes = fs::read(&path)?;
    for length in [0, 7, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..length])?;
        let message = refusal(copy.path());
        assert!(message.contains("model.safetensors"), "{length}: {message}");
    }
    Ok(())
}

#[test]
fn sizes_that_contradict_the_weights_are_refused() -> Outcome {
    let copy = copy_of("mllmseg-qwen2-res")?;
    edit_config(copy.path(), |config| {
        config["llm_config"]["intermediate_size"] = 128.into()
    })?;
    let message = refusal(copy.path());
    assert!(
        message.contains("`llm_config.intermediate_size` in config.json"),
        "{message}"
    );
    assert!(
        message.contains("[112, 48]") && message.contains("[128, 48]"),
        "{message}"
    );

    let copy = copy_of("mllmseg-qwen2-res")?;
    edit_config(copy.path(), |config| {
        config["vision_config"]["num_hidden_layers"] = 9.into()
    })?;
    let message = refusal(copy.path());
    assert!(
        message.contains("no tensor `vision_model.encoder.layers.2"),
        "{message}"
    );
    Ok(())
}

#[test]
fn a_config_that_is_none_is_refused() -> Outcome {
    let copy = copy_of("mllmseg-qwen2-res")?;
    for (config, expected) in [
        ("", "is not JSON"),
        ("[1, 2]", "is missing"),
        (
            "{\"llm_config\": {\"num_attention_heads\": -3}}",
            "is -3, expected a positive whole number",
        ),
    ] {
        fs::write(copy.path().join("config.json"), config)?;
        let message = refusal(copy.path());
        assert!(
            message.contains("config.json") && message.contains(expected),
            "{message}"
        );
    }
    Ok(())
}

#[test]
fn an_unknown_template_is_refused() -> Outcome {
    let copy = copy_of("mllmseg-qwen2-res")?;
    edit_config(copy.path(), |config| config["template"] = "vicuna".into())?;
    assert!(refusal(copy.path()).contains("vicuna"));
    Ok(())
}

#[test]
fn the_tokenizer_of_a_larger_model_is_refused() -> Outcome {
    let copy = copy_of("mllmseg-qwen2-res")?;
    for name in [
        "tokenizer.model",
        "added_tokens.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        fs::copy(
            fixture("mllmseg-internlm2-gres-lora").join(name),
            copy.path().join(name),
        )?;
    }
    fs::remove_file(copy.path().join("tokenizer.json"))?;
    let message = refusal(copy.path());
    assert!(
        message.contains("1513") && message.contains("1214"),
        "{message}"
    );
    Ok(())
}

#[test]
fn weights_that_are_not_numbers_are_refused() -> Outcome {
    let copy = copy_of("mllmseg-qwen2-res")?;
    let path = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&path)?;
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes)?;
    let message = refusal(copy.path());
    assert!(message.contains("model.safetensors"), "{message}");
    Ok(())
}
