//! Agreement with the official implementation, stage by stage.
//!
//! Fixtures: `mllmseg-qwen2-res` and `mllmseg-internlm2-gres-lora`, computed by
//! the official classes on small random models in f32. A further folder of the
//! same kind can be tried with `REFSEG_FIXTURES=DIR cargo test --test parity`.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use refseg::{
    Image, Options, Predictor,
    image::DecodeOptions,
    internvl::Config,
    language::causal_mask,
    mllmseg::Mllmseg,
    nn::StoredTensors,
    prompt::{Marker, PromptBuilder},
    tokenizer::Tokenizer,
    weights::Weights,
};
use safetensors::SafeTensors;
use serde::Deserialize;

type Outcome = Result<(), Box<dyn Error>>;

/// Tolerance of intermediates, absolute: f32 sums run in another order.
const INTERMEDIATE: f32 = 2e-4;
/// Tolerance of probabilities.
const PROBABILITY: f32 = 1e-4;
/// The fixtures keep every fourth row and column of large maps.
const STRIDE: usize = 4;

#[derive(Deserialize)]
struct Case {
    image: String,
    expressions: Vec<String>,
    answers: Vec<String>,
    solo_input_ids: Vec<Vec<u32>>,
    seg_token_id: u32,
    rej_token_id: u32,
}

struct Fixture {
    folder: PathBuf,
    case: Case,
    expected: Vec<u8>,
    config: Config,
    model: Mllmseg,
    prompts: PromptBuilder,
    image: Image,
}

impl Fixture {
    fn open(folder: PathBuf) -> Result<Self, Box<dyn Error>> {
        let case: Case = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
        let config = Config::from_folder(&folder)?;
        let weights = Weights::open(&folder)?;
        let source = StoredTensors::new(&weights, Device::flex());
        let model = Mllmseg::load(&source, &config)?;
        assert_eq!(
            source.unused(),
            Vec::<String>::new(),
            "every tensor of the checkpoint has its place"
        );
        let tokenizer = Tokenizer::from_folder(&folder)?;
        let prompts =
            PromptBuilder::new(tokenizer, config.template.parse()?, config.image_tokens())?;
        // The reference ignores EXIF.
        let options = DecodeOptions {
            apply_orientation: false,
            ..DecodeOptions::default()
        };
        let image = Image::open_with(folder.join(&case.image), &options)?;
        let expected = std::fs::read(folder.join("expected.safetensors"))?;
        Ok(Self {
            folder,
            case,
            expected,
            config,
            model,
            prompts,
            image,
        })
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, Box<dyn Error>> {
        let tensors = SafeTensors::deserialize(&self.expected)?;
        let bytes = tensors.tensor(name)?.data().to_vec();
        Ok(bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>, Box<dyn Error>> {
        let tensors = SafeTensors::deserialize(&self.expected)?;
        let bytes = tensors.tensor(name)?.data().to_vec();
        Ok(bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")))
            .collect())
    }

    fn phrases(&self) -> Vec<&str> {
        self.case.expressions.iter().map(String::as_str).collect()
    }

    fn truth(&self) -> Vec<Marker> {
        let marker = |answer: &String| {
            if answer == "SEG" {
                Marker::Seg
            } else {
                Marker::Rej
            }
        };
        self.case.answers.iter().map(marker).collect()
    }

    /// Whether the official model found each phrase: its choice stands in place of each marker.
    fn found(&self) -> Result<Vec<bool>, Box<dyn Error>> {
        let (input, output) = (self.integers("input_ids")?, self.integers("output_ids")?);
        let markers = [
            i64::from(self.case.seg_token_id),
            i64::from(self.case.rej_token_id),
        ];
        let at_markers = input
            .iter()
            .zip(output)
            .filter(|(id, _)| markers.contains(id));
        Ok(at_markers
            .map(|(_, chosen)| chosen != i64::from(self.case.rej_token_id))
            .collect())
    }

    fn pixels(&self) -> Vec<f32> {
        let side = self.config.image_size as u32;
        self.image.resize(side, side).normalised()
    }
}

fn fixtures() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut folders = vec![
        own.join("mllmseg-qwen2-res"),
        own.join("mllmseg-internlm2-gres-lora"),
    ];
    folders.extend(std::env::var_os("REFSEG_FIXTURES").map(PathBuf::from));
    folders
}

fn for_each_fixture(check: impl Fn(&Fixture) -> Outcome) -> Outcome {
    for folder in fixtures() {
        check(&Fixture::open(folder.clone())?)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    Ok(())
}

fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let gap = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        gap <= tolerance,
        "{what}: differs by {gap}, more than {tolerance}"
    );
    assert!(
        found.iter().all(|value| value.is_finite()),
        "{what}: not finite"
    );
}

/// Every fourth row and column of maps `side` wide.
fn strided(maps: &[f32], side: usize) -> Vec<f32> {
    let row = |row: &[f32]| row.iter().step_by(STRIDE).copied().collect::<Vec<_>>();
    let map = |map: &[f32]| {
        map.chunks_exact(side)
            .step_by(STRIDE)
            .flat_map(row)
            .collect::<Vec<_>>()
    };
    maps.chunks_exact(side * side).flat_map(map).collect()
}

#[test]
fn pixels_match() -> Outcome {
    for_each_fixture(|fixture| {
        let found = strided(&fixture.pixels(), fixture.config.image_size);
        assert_close(
            "pixel_values",
            &found,
            &fixture.floats("pixel_values.stride4")?,
            1e-5,
        );
        Ok(())
    })
}

#[test]
fn token_ids_match() -> Outcome {
    for_each_fixture(|fixture| {
        let prefix = fixture.prompts.prefix()?;
        let joint = fixture
            .prompts
            .joint(&fixture.phrases(), &fixture.truth())?;
        let ids: Vec<i64> = prefix
            .ids
            .iter()
            .chain(&joint.ids)
            .map(|&id| i64::from(id))
            .collect();
        assert_eq!(ids, fixture.integers("input_ids")?);
        assert_eq!(
            fixture.prompts.labels(&prefix, &joint),
            fixture.integers("labels")?
        );
        for (phrase, expected) in fixture
            .phrases()
            .into_iter()
            .zip(&fixture.case.solo_input_ids)
        {
            let single = fixture.prompts.single(phrase)?;
            assert_eq!(
                &[&prefix.ids[..], &single.ids].concat(),
                expected,
                "{phrase}"
            );
        }
        Ok(())
    })
}

#[test]
fn every_stage_of_the_network_matches() -> Outcome {
    for_each_fixture(|fixture| {
        let Fixture {
            config,
            model,
            prompts,
            ..
        } = fixture;
        let pixels = model.vision.pixels(fixture.pixels(), 1, config.image_size);
        let vit = model.vision.forward(pixels);
        assert_close(
            "vit_feature",
            &values(vit.clone()),
            &fixture.floats("vit_feature")?,
            INTERMEDIATE,
        );
        let tokens = model.projector.forward(vit);
        assert_close(
            "image_embeds",
            &values(tokens.clone()),
            &fixture.floats("image_embeds")?,
            INTERMEDIATE,
        );

        let prefix = prompts.prefix()?;
        let joint = prompts.joint(&fixture.phrases(), &fixture.truth())?;
        let ids = [&prefix.ids[..], &joint.ids].concat();
        let x = model.splice(&ids, prefix.image_start, tokens);
        let positions: Vec<usize> = (0..ids.len()).collect();
        let (hidden, _) = model.language.forward(
            x,
            &positions,
            &causal_mask(ids.len(), &Device::flex()),
            None,
        );
        let expected = fixture.floats("last_hidden_state")?;
        assert_close(
            "last_hidden_state",
            &values(hidden.clone()),
            &expected,
            INTERMEDIATE,
        );

        let hidden = hidden.squeeze_dim::<2>(0);
        let at = |rows: Vec<i64>| {
            let count = rows.len();
            let rows = Tensor::from_data(TensorData::new(rows, [count]), &Device::flex());
            values(model.language.logits(hidden.clone().select(0, rows)))
        };
        let last = at(vec![ids.len() as i64 - 1]);
        assert_close(
            "logits_last",
            &last,
            &fixture.floats("logits_last")?,
            INTERMEDIATE,
        );
        let before = |marker: &usize| (prefix.ids.len() + marker - 1) as i64;
        let decisions = at(joint.markers.iter().map(before).collect());
        assert_close(
            "logits_at_decision",
            &decisions,
            &fixture.floats("logits_at_decision")?,
            INTERMEDIATE,
        );
        Ok(())
    })
}

#[test]
fn masks_and_decisions_of_the_joint_prompt_match() -> Outcome {
    for_each_fixture(|fixture| {
        let predictor = Predictor::load(&fixture.folder, &Options::default())?;
        let scene = predictor.encode(&fixture.image)?;
        let answers = scene.segment_teacher_forced(&fixture.phrases(), &fixture.truth())?;
        let side = fixture.config.image_size;
        let found: Vec<f32> = answers
            .iter()
            .flat_map(|answer| strided(&answer.probabilities, side))
            .collect();
        assert_close(
            "mask_probs",
            &found,
            &fixture.floats("mask_probs.stride4")?,
            PROBABILITY,
        );
        check_areas(&answers, &fixture.integers("mask_area")?, side);
        let decisions: Vec<bool> = answers.iter().map(|answer| answer.found).collect();
        assert_eq!(decisions, fixture.found()?, "found");
        Ok(())
    })
}

#[test]
fn masks_and_decisions_of_single_prompts_match() -> Outcome {
    for_each_fixture(|fixture| {
        let predictor = Predictor::load(&fixture.folder, &Options::default())?;
        let scene = predictor.encode(&fixture.image)?;
        let answers = scene.segment_many(&fixture.phrases())?;
        let side = fixture.config.image_size;
        let found: Vec<f32> = answers
            .iter()
            .flat_map(|answer| strided(&answer.probabilities, side))
            .collect();
        assert_close(
            "solo_mask_probs",
            &found,
            &fixture.floats("solo_mask_probs.stride4")?,
            PROBABILITY,
        );
        check_areas(&answers, &fixture.integers("solo_mask_area")?, side);

        let logits = fixture.floats("solo_logits_at_decision")?;
        let rej = fixture.case.rej_token_id as usize;
        for (answer, logits) in answers
            .iter()
            .zip(logits.chunks_exact(fixture.config.language.vocabulary))
        {
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(
                answer.found,
                logits.iter().position(|&x| x == best) != Some(rej),
                "{}",
                answer.phrase
            );
            let presence =
                1.0 / (1.0 + (logits[rej] - logits[fixture.case.seg_token_id as usize]).exp());
            assert!(
                (answer.presence - presence).abs() < 1e-4,
                "{}: presence",
                answer.phrase
            );
        }
        Ok(())
    })
}

/// Areas at 0.5 on the model's own grid, within 0.02 % of its pixels.
fn check_areas(answers: &[refseg::Segmentation], expected: &[i64], side: usize) {
    let slack = (side * side) as f64 * 2e-4;
    for (answer, &expected) in answers.iter().zip(expected) {
        let area = answer.probabilities.iter().filter(|&&p| p >= 0.5).count();
        assert!(
            (area as f64 - expected as f64).abs() <= slack,
            "{}: {area} not {expected}",
            answer.phrase
        );
    }
}

/// Twenty phrases that share words, length, or nothing.
const TWENTY: [&str; 20] = [
    "left",
    "right",
    "the man",
    "the woman on the left",
    "red",
    "a red shape",
    "two red shapes",
    "zebra",
    "the zebra behind another one",
    "small ellipse",
    "the small ellipse",
    "square on the left",
    "Largest triangle",
    "it",
    "everything round",
    "die blaue Tasse",
    "猫",
    "the one that is not there",
    "top",
    "blue blue blue",
];

#[test]
fn many_phrases_in_any_order_equal_one_by_one() -> Outcome {
    for_each_fixture(|fixture| {
        let predictor = Predictor::load(&fixture.folder, &Options::default())?;
        let scene = predictor.encode(&fixture.image)?;
        let together = scene.segment_many(&TWENTY)?;
        let mut reversed = TWENTY;
        reversed.reverse();
        let mut backwards = scene.segment_many(&reversed)?;
        backwards.reverse();
        for ((together, backwards), phrase) in together.iter().zip(&backwards).zip(TWENTY) {
            let alone = scene.segment(phrase)?;
            assert_close(
                phrase,
                &together.probabilities,
                &alone.probabilities,
                PROBABILITY,
            );
            assert_close(
                phrase,
                &backwards.probabilities,
                &alone.probabilities,
                PROBABILITY,
            );
            assert_eq!(
                (together.found, backwards.found),
                (alone.found, alone.found),
                "{phrase}"
            );
        }
        Ok(())
    })
}

/// The factored decoder over a cached prefix, against the published form over the whole prompt.
#[test]
fn the_cached_form_equals_the_plain_form() -> Outcome {
    for_each_fixture(|fixture| {
        let Fixture {
            config,
            model,
            prompts,
            ..
        } = fixture;
        let predictor = Predictor::load(&fixture.folder, &Options::default())?;
        let answers = predictor.encode(&fixture.image)?.segment_many(&TWENTY)?;

        let vit = model
            .vision
            .forward(model.vision.pixels(fixture.pixels(), 1, config.image_size));
        let tokens = model.projector.forward(vit.clone());
        let prefix = prompts.prefix()?;
        for (phrase, answer) in TWENTY.iter().zip(answers) {
            let suffix = prompts.single(phrase)?;
            let ids = [&prefix.ids[..], &suffix.ids].concat();
            let x = model.splice(&ids, prefix.image_start, tokens.clone());
            let positions: Vec<usize> = (0..ids.len()).collect();
            let mask = causal_mask(ids.len(), &Device::flex());
            let (hidden, _) = model.language.forward(x, &positions, &mask, None);
            let state = hidden
                .clone()
                .narrow(1, prefix.ids.len() + suffix.markers[0] - 1, 1);
            let llm = model.image_states(hidden, prefix.image_start, config.image_tokens());
            let logits = model.decoder.forward_plain(vit.clone(), llm, state);
            let plain = values(burn::tensor::activation::sigmoid(logits));
            assert_close(phrase, &answer.probabilities, &plain, PROBABILITY);
        }
        Ok(())
    })
}
