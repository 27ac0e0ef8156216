//! Segment Anything: agreement with the official implementations, stage by stage.
//!
//! Fixtures: `fixtures/sam`, computed by the official classes on small random
//! models in f32. More of the same kind, a folder each in DIR, can be tried with
//! `REFSEG_SAM_FIXTURES=DIR cargo test --test sam`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    error::Error,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use refseg::{
    Image, Options,
    nn::{StoredTensors, Tensors},
    sam::{
        Config, Frame, ImageEncoder, Label, Point, Prompt, Sam, SamError, SamMasks, SamPredictor,
        SamScene, Token,
    },
    weights::{SaveDtype, TensorSpec, Weights, WeightsError, save_safetensors},
};
use safetensors::SafeTensors;
use serde::Deserialize;

type Outcome = Result<(), Box<dyn Error>>;

/// Tolerance of everything up to the decoder's own masks and scores, absolute.
const INTERMEDIATE: f32 = 1e-4;
/// Tolerance of logits at the size of the picture.
const LOGIT: f32 = 5e-4;
/// Pixels whose logit lies within rounding of zero.
const PIXELS: i64 = 2;

#[derive(Deserialize)]
struct Description {
    images: Vec<Picture>,
    cases: Vec<Case>,
    #[serde(default)]
    decoder_overlay_cases: Vec<String>,
}

#[derive(Deserialize)]
struct Picture {
    file: String,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    image_index: usize,
    #[serde(default)]
    points_px: Vec<[f64; 2]>,
    #[serde(default)]
    point_labels: Vec<u8>,
    box_px: Option<[f64; 4]>,
    #[serde(default)]
    boxes_px_batch: Vec<[f64; 4]>,
    mask_input: Option<String>,
    multimask: bool,
}

struct Fixture {
    folder: PathBuf,
    config: Config,
    description: Description,
    images: Vec<Image>,
    expected: BTreeMap<String, Values>,
    inputs: BTreeMap<String, Values>,
    /// Names that were compared.
    compared: RefCell<BTreeSet<String>>,
    /// Largest gap met.
    gap: RefCell<f32>,
}

/// A tensor of a fixture; of floats, whatever it is stored as.
struct Values {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Every so manieth index was kept.
    stride: usize,
}

impl Fixture {
    fn open(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(folder.join("case.json"))?;
        let description: Description = serde_json::from_slice(&bytes)?;
        let images = description.images.iter();
        let images = images.map(|image| Image::open(folder.join(&image.file)));
        Ok(Self {
            config: Config::from_folder(folder)?,
            images: images.collect::<Result<_, _>>()?,
            description,
            expected: read(&folder.join("expected.safetensors"))?,
            inputs: match folder.join("inputs.safetensors") {
                path if path.exists() => read(&path)?,
                _ => BTreeMap::new(),
            },
            folder: folder.to_owned(),
            compared: RefCell::default(),
            gap: RefCell::default(),
        })
    }

    fn weights(&self) -> Result<Weights, WeightsError> {
        Weights::open(&self.folder)
    }

    fn has_decoder(&self) -> bool {
        self.expected.keys().any(|key| key.starts_with("case."))
    }

    /// The prompts of a case; several where it is a batch.
    fn prompts(&self, case: &Case) -> Vec<Prompt> {
        let points = case.points_px.iter().zip(&case.point_labels);
        let points = points.map(|(&at_px, &label)| Point {
            at_px,
            label: if label == 1 {
                Label::Foreground
            } else {
                Label::Background
            },
        });
        let prompt = Prompt {
            points: points.collect(),
            box_px: case.box_px,
            mask: case
                .mask_input
                .as_ref()
                .map(|name| self.inputs[name].values.clone()),
        };
        if case.boxes_px_batch.is_empty() {
            return vec![prompt];
        }
        let boxes = case.boxes_px_batch.iter();
        boxes
            .map(|&box_px| Prompt {
                box_px: Some(box_px),
                ..prompt.clone()
            })
            .collect()
    }

    /// Compares a tensor with the fixture's of that name, if it has one.
    fn compare<const R: usize>(&self, name: &str, found: Tensor<R>, tolerance: f32) {
        let Some(expected) = self.expected.get(name) else {
            return;
        };
        let dims = found.dims().to_vec();
        let axes = if name.ends_with("image_tokens_out") {
            [1, usize::MAX]
        } else {
            [R - 1, R.wrapping_sub(2)]
        };
        let found = thinned(&values(found), &dims, axes, expected.stride);
        self.compare_values(name, &found, tolerance);
    }

    fn compare_values(&self, name: &str, found: &[f32], tolerance: f32) {
        let what = format!("{}: {name}", self.folder.display());
        let expected = &self.expected[name];
        assert_eq!(
            found.len(),
            expected.values.len(),
            "{what}: {:?}",
            expected.shape
        );
        let gaps = found
            .iter()
            .zip(&expected.values)
            .map(|(a, b)| (a - b).abs());
        let gap = gaps.fold(0.0, |most: f32, gap| {
            if gap > most || gap.is_nan() {
                gap
            } else {
                most
            }
        });
        assert!(
            gap <= tolerance,
            "{what}: differs by {gap}, more than {tolerance}"
        );
        self.compared.borrow_mut().insert(name.to_owned());
        let mut most = self.gap.borrow_mut();
        *most = most.max(gap);
    }

    /// Everything of that prefix must have been compared, but for what is listed.
    fn assert_complete(&self, prefix: &str, but: &[&str]) {
        let compared = self.compared.borrow();
        let left: Vec<&String> = self
            .expected
            .keys()
            .filter(|key| key.starts_with(prefix) && !compared.contains(*key))
            .filter(|key| !but.iter().any(|end| key.ends_with(end)))
            .collect();
        assert!(
            left.is_empty(),
            "{}: not compared: {left:?}",
            self.folder.display()
        );
    }
}

/// Reads every tensor of a safetensors file; strides leave the names.
fn read(path: &Path) -> Result<BTreeMap<String, Values>, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let mut all = BTreeMap::new();
    for (name, tensor) in tensors.tensors() {
        let (chunks, bytes) = (tensor.data(), tensor.dtype());
        let values = match bytes {
            safetensors::Dtype::F32 => chunks
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
            // Sizes and areas, far below the whole numbers that f32 has.
            safetensors::Dtype::I64 => chunks
                .as_chunks()
                .0
                .iter()
                .map(|&b| i64::from_le_bytes(b) as f32)
                .collect(),
            _ => chunks.iter().map(|&b| f32::from(b)).collect(),
        };
        let (name, stride) = match name.rsplit_once(".stride") {
            Some((name, stride)) => (name.to_owned(), stride.parse()?),
            None => (name, 1),
        };
        let shape = tensor.shape().to_vec();
        all.insert(
            name,
            Values {
                shape,
                values,
                stride,
            },
        );
    }
    Ok(all)
}

fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

/// Every `stride`-th index of two axes.
fn thinned(values: &[f32], dims: &[usize], axes: [usize; 2], stride: usize) -> Vec<f32> {
    let is_kept = |index: &usize| {
        let mut rest = *index;
        dims.iter().enumerate().rev().all(|(axis, &extent)| {
            let at = rest % extent;
            rest /= extent;
            !axes.contains(&axis) || at.is_multiple_of(stride)
        })
    };
    (0..values.len())
        .filter(is_kept)
        .map(|i| values[i])
        .collect()
}

fn fixtures() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sam");
    let folders = std::env::var_os("REFSEG_SAM_FIXTURES").map(PathBuf::from);
    let folders = std::iter::once(own).chain(folders);
    let all = folders.flat_map(|folder| std::fs::read_dir(folder).expect("a folder of fixtures"));
    let paths = all.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.join("case.json").exists() && Config::from_folder(path).is_ok())
        .collect();
    paths.sort();
    paths
}

fn for_each_fixture(check: impl Fn(&Fixture) -> Outcome) -> Outcome {
    let folders = fixtures();
    assert!(
        folders.len() >= 3,
        "the repository's own fixtures are there"
    );
    for folder in folders {
        let fixture = Fixture::open(&folder)?;
        check(&fixture).map_err(|error| format!("{}: {error}", folder.display()))?;
        let gap = *fixture.gap.borrow();
        eprintln!("{}: largest gap {gap:e}", folder.display());
    }
    Ok(())
}

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/sam")
        .join(name)
}

/// `(1, G², D)` as the reference has it: `(D, G, G)`.
fn as_map(cells: Tensor<3>) -> Tensor<3> {
    let [_, cells_count, width] = cells.dims();
    let grid = cells_count.isqrt();
    cells.reshape([grid, grid, width]).permute([2, 0, 1])
}

fn encoder_input(fixture: &Fixture, image: &Image) -> Tensor<4> {
    let side = fixture.config.encoder.image_size();
    let pixels = Frame::new(image, side).pixels(image, &fixture.config);
    Tensor::from_data(TensorData::new(pixels, [1, 3, side, side]), &Device::flex())
}

#[test]
fn image_encoders_match() -> Outcome {
    for_each_fixture(|fixture| {
        let weights = fixture.weights()?;
        let source = StoredTensors::new(&weights, Device::flex());
        let tensors = Tensors::root(&source).at("image_encoder");
        let encoder = ImageEncoder::load(&tensors, &fixture.config.encoder)?;
        for (i, image) in fixture.images.iter().enumerate() {
            let name = |part: &str| format!("image{i}.{part}");
            let frame = Frame::new(image, fixture.config.prompt.frame);
            let pair = |(a, b): (usize, usize)| [a as f32, b as f32];
            fixture.compare_values(&name("original_size"), &pair(frame.picture()), 0.0);
            fixture.compare_values(&name("input_size"), &pair(frame.inside()), 0.0);
            let pixels = encoder_input(fixture, image);
            fixture.compare(
                &name("pixel_values"),
                pixels.clone().squeeze_dim::<3>(0),
                1e-5,
            );
            let embedding = encoder.forward(pixels, &mut |part, x| {
                fixture.compare(&name(part), x.clone(), INTERMEDIATE);
            });
            fixture.compare(&name("image_embedding"), as_map(embedding), INTERMEDIATE);
            fixture.assert_complete(&name(""), &[]);
        }
        Ok(())
    })
}

/// The tokens of a prompt, written down anew.
fn tokens(prompt: &Prompt, frame: &Frame) -> Vec<(Token, [f32; 2])> {
    let points = prompt.points.iter().map(|point| match point.label {
        Label::Foreground => (Token::Foreground, frame.place(point.at_px)),
        Label::Background => (Token::Background, frame.place(point.at_px)),
    });
    let mut tokens: Vec<_> = points.collect();
    match prompt.box_px {
        Some([x1, y1, x2, y2]) => tokens.extend([
            (Token::UpperLeft, frame.place([x1, y1])),
            (Token::LowerRight, frame.place([x2, y2])),
        ]),
        None => tokens.push((Token::Nothing, [0.0, 0.0])),
    }
    tokens
}

#[test]
fn prompts_and_masks_match() -> Outcome {
    for_each_fixture(|fixture| {
        if !fixture.has_decoder() {
            return Ok(());
        }
        let weights = fixture.weights()?;
        let source = StoredTensors::new(&weights, Device::flex());
        let model = Sam::load(&Tensors::root(&source), &fixture.config)?;
        let predictor = SamPredictor::load(&fixture.folder, &Options::default())?;
        assert_eq!(
            predictor.unused_tensors(),
            [""; 0],
            "every tensor has its place"
        );
        let positions = model.prompts.image_positions();
        fixture.compare("image_pe", as_map(positions.clone()), INTERMEDIATE);
        for (i, image) in fixture.images.iter().enumerate() {
            let frame = Frame::new(image, fixture.config.prompt.frame);
            let embedding = model
                .encoder
                .forward(encoder_input(fixture, image), &mut |_, _| {});
            let scene = predictor.encode(image)?;
            let cases = fixture.description.cases.iter();
            for case in cases.filter(|case| case.image_index == i) {
                let name = |part: &str| format!("case.{}.{part}", case.name);
                let prompts = fixture.prompts(case);
                let tokens: Vec<_> = prompts
                    .iter()
                    .map(|prompt| tokens(prompt, &frame))
                    .collect();
                let sparse = model.prompts.sparse(&tokens);
                fixture.compare(&name("sparse"), sparse.clone(), INTERMEDIATE);
                let side = model.prompts.mask_side();
                let mask = prompts[0].mask.clone().map(|mask| {
                    Tensor::from_data(TensorData::new(mask, [1, 1, side, side]), &Device::flex())
                });
                let dense = model.prompts.dense(mask);
                if dense.dims()[1] > 1 {
                    fixture.compare(&name("dense"), as_map(dense.clone()), INTERMEDIATE);
                }
                let decoded = model.decoder.forward(
                    embedding.clone(),
                    &positions,
                    sparse,
                    dense,
                    &mut |part, x| fixture.compare(&name(part), x.clone(), INTERMEDIATE),
                );
                fixture.compare(&name("low_res_all"), decoded.logits, INTERMEDIATE);
                fixture.compare(&name("iou_all"), decoded.scores, INTERMEDIATE);
                let answers = scene.prompt_many(&prompts, case.multimask)?;
                check_answers(fixture, &format!("case.{}", case.name), &answers)?;
            }
        }
        fixture.assert_complete("case.", &[]);
        Ok(())
    })
}

/// Scores, logits at the size of the picture, areas and best masks.
fn check_answers(fixture: &Fixture, case: &str, answers: &[SamMasks]) -> Outcome {
    let name = |part: &str| format!("{case}.{part}");
    let scores: Vec<f32> = answers.iter().flat_map(|a| a.scores.clone()).collect();
    fixture.compare_values(&name("iou"), &scores, INTERMEDIATE);
    let best: Vec<f32> = answers.iter().map(|a| a.best() as f32).collect();
    fixture.compare_values(&name("best_index"), &best, 0.0);
    let areas = answers
        .iter()
        .flat_map(|a| a.masks.iter().map(|mask| mask.area() as f32));
    fixture.compare_values(
        &name("mask_area"),
        &areas.collect::<Vec<_>>(),
        PIXELS as f32,
    );

    let mask = &answers[0].masks[0];
    let dims = [
        answers.len(),
        answers[0].masks.len(),
        mask.height(),
        mask.width(),
    ];
    let mut logits = Vec::new();
    for answer in answers {
        for (i, mask) in answer.masks.iter().enumerate() {
            let of_mask = answer.logits(i)?;
            let bits: Vec<bool> = of_mask.iter().map(|&logit| logit > 0.0).collect();
            assert_eq!(
                bits,
                mask.bits(),
                "{case}: a mask is where its logits are positive"
            );
            logits.extend(of_mask);
        }
    }
    let expected = &fixture.expected[&name("logits")];
    let logits = thinned(&logits, &dims, [2, 3], expected.stride);
    fixture.compare_values(&name("logits"), &logits, LOGIT);

    if let Some(expected) = fixture.expected.get(&name("best_mask")) {
        let bits = answers.iter().flat_map(|a| a.masks[a.best()].bits());
        let differing = bits
            .zip(&expected.values)
            .filter(|(bit, value)| **bit != (**value == 1.0));
        assert!(differing.count() as i64 <= PIXELS, "{case}: best mask");
        fixture.compared.borrow_mut().insert(name("best_mask"));
    }
    Ok(())
}

#[test]
fn tensors_tell_what_config_json_says() -> Outcome {
    for_each_fixture(|fixture| {
        let weights = fixture.weights()?;
        let shape_of = |key: &str| Some(weights.info(key)?.shape.clone());
        let found = Config::recognise(weights.path(), &shape_of);
        if fixture.has_decoder() {
            assert_eq!(found?, fixture.config);
        } else {
            let error = found.expect_err("it has an image encoder only");
            assert!(matches!(error, SamError::Incomplete { .. }), "{error}");
        }
        Ok(())
    })
}

#[test]
fn a_checkpoint_is_the_same_as_a_pickle_and_without_config_json() -> Outcome {
    for_each_fixture(|fixture| {
        for file in ["model.safetensors", "model.pt"] {
            let path = fixture.folder.join(file);
            if !fixture.has_decoder() || !path.exists() {
                continue;
            }
            let predictor = SamPredictor::load(&path, &Options::default())?;
            assert_eq!(predictor.config(), &fixture.config);
            let case = &fixture.description.cases[0];
            let scene = predictor.encode(&fixture.images[case.image_index])?;
            let answers = scene.prompt_many(&fixture.prompts(case), case.multimask)?;
            check_answers(fixture, &format!("case.{}", case.name), &answers)?;
        }
        Ok(())
    })
}

/// With a decoder that the official code has laid over the model, where a fixture has one.
#[test]
fn a_tuned_decoder_takes_the_place_of_the_models() -> Outcome {
    for_each_fixture(|fixture| {
        let cases = fixture.description.cases.iter();
        let names = &fixture.description.decoder_overlay_cases;
        let tuned = fixture.folder.join("decoder_ft.pt");
        for case in cases.filter(|case| names.contains(&case.name)) {
            let predictor = SamPredictor::load_tuned(&fixture.folder, &tuned, &Options::default())?;
            assert_eq!(predictor.unused_tensors(), [""; 0]);
            let scene = predictor.encode(&fixture.images[case.image_index])?;
            let answers = scene.prompt_many(&fixture.prompts(case), case.multimask)?;
            check_answers(fixture, &format!("decoder_ft.case.{}", case.name), &answers)?;
        }
        Ok(())
    })
}

/// A scene of the ViT fixture, and the fixture.
fn scene() -> Result<(Fixture, SamScene), Box<dyn Error>> {
    let fixture = Fixture::open(&own("sam-vit-tiny"))?;
    let predictor = SamPredictor::load(&fixture.folder, &Options::default())?;
    let scene = predictor.encode(&fixture.images[0])?;
    Ok((fixture, scene))
}

#[test]
fn prompts_of_any_kind_can_be_asked_together() -> Outcome {
    let (fixture, scene) = scene()?;
    let cases = fixture.description.cases.iter();
    let mut prompts: Vec<Prompt> = cases
        .filter(|case| case.image_index == 0)
        .flat_map(|case| fixture.prompts(case))
        .cycle()
        .take(23)
        .collect();
    // With and without a mask, side by side.
    let masked = prompts.iter().find(|prompt| prompt.mask.is_some());
    let masked = masked.cloned().ok_or("a case begins with a mask")?;
    let plain = Prompt {
        mask: None,
        ..masked.clone()
    };
    prompts.splice(0..0, [plain.clone(), masked, plain]);
    let together = scene.prompt_many(&prompts, true)?;
    assert_eq!(together.len(), prompts.len());
    for (prompt, together) in prompts.iter().zip(&together) {
        let alone = scene.prompt(prompt, true)?;
        let gaps = together
            .low_res
            .iter()
            .flatten()
            .zip(alone.low_res.iter().flatten());
        let gap = gaps.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(gap < 2e-5, "{prompt:?}: {gap}");
    }
    assert_eq!(scene.prompt_many(&[], true)?, []);
    Ok(())
}

#[test]
fn one_mask_unless_several_are_asked_for() -> Outcome {
    let (fixture, scene) = scene()?;
    let prompt = &fixture.prompts(&fixture.description.cases[0])[0];
    let (one, several) = (scene.prompt(prompt, false)?, scene.prompt(prompt, true)?);
    assert_eq!((one.masks.len(), several.masks.len()), (1, 3));
    assert_eq!((one.side, scene.mask_side()), (64, 64));
    assert_eq!((scene.width(), scene.height()), (320, 241));
    assert!(!several.low_res.contains(&one.low_res[0]));
    Ok(())
}

#[test]
fn prompts_that_cannot_be_answered_are_errors() -> Outcome {
    let (_, scene) = scene()?;
    let point = |x, y| Prompt {
        points: vec![Point {
            at_px: [x, y],
            label: Label::Foreground,
        }],
        ..Prompt::default()
    };
    let a_box = |box_px| Prompt {
        box_px: Some(box_px),
        ..Prompt::default()
    };
    let masked = |mask| Prompt {
        mask: Some(mask),
        ..point(1.0, 1.0)
    };
    let mut with_nan = vec![0.0; 64 * 64];
    with_nan[70] = f32::NAN;
    for (prompt, message) in [
        (
            Prompt::default(),
            "a prompt is empty: give at least a point or a box",
        ),
        (
            Prompt {
                mask: Some(vec![0.0; 64 * 64]),
                ..Prompt::default()
            },
            "a prompt is empty: give at least a point or a box",
        ),
        (
            point(320.5, 3.0),
            "the point (320.5, 3) is outside the picture, which is 320x241 pixels",
        ),
        (
            point(-1.0, 3.0),
            "the point (-1, 3) is outside the picture, which is 320x241 pixels",
        ),
        (
            point(f64::NAN, 3.0),
            "the point (NaN, 3) is outside the picture, which is 320x241 pixels",
        ),
        (
            a_box([0.0, 0.0, 320.0, f64::INFINITY]),
            "the box's second corner (320, inf) is outside the picture, which is 320x241 pixels",
        ),
        (
            a_box([9.0, 0.0, 8.0, 1.0]),
            "the box [9.0, 0.0, 8.0, 1.0] has its corners swapped; expected [x1, y1, x2, y2] with x1 ≤ x2 and y1 ≤ y2",
        ),
        (
            masked(vec![0.0; 100]),
            "the mask input has 100 values; expected 64 squared, the size of this model's mask logits",
        ),
        (
            masked(Vec::new()),
            "the mask input has 0 values; expected 64 squared, the size of this model's mask logits",
        ),
        (
            masked(with_nan),
            "the mask input holds NaN at index 70; expected finite logits",
        ),
    ] {
        let error = scene.prompt(&prompt, true).expect_err(message);
        assert_eq!(error.to_string(), message);
    }
    // The border belongs to the picture, and a box may be a line.
    scene.prompt(&point(320.0, 241.0), true)?;
    scene.prompt(&a_box([0.0, 0.0, 0.0, 241.0]), true)?;
    Ok(())
}

/// Shape and values of tensors by name.
type Changeable = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The ViT fixture as a file, after `change` has been at its tensors.
fn changed(folder: &Path, change: impl Fn(&mut Changeable)) -> Result<PathBuf, Box<dyn Error>> {
    let weights = Weights::open(&own("sam-vit-tiny"))?;
    let mut tensors = BTreeMap::new();
    for key in weights.keys() {
        let shape = weights.info(key).expect("a listed key").shape.clone();
        let values = weights.read_f32(key, &shape, "")?;
        tensors.insert(key.to_owned(), (shape, values));
    }
    change(&mut tensors);
    let path = folder.join("changed.safetensors");
    save(&path, tensors)?;
    Ok(path)
}

fn save(path: &Path, tensors: Changeable) -> Outcome {
    let specs = tensors.iter().map(|(key, (shape, _))| TensorSpec {
        name: key.clone(),
        shape: shape.clone(),
    });
    let specs: Vec<_> = specs.collect();
    save_safetensors(path, &specs, SaveDtype::F32, &BTreeMap::new(), |spec| {
        Ok(tensors[&spec.name].1.clone())
    })?;
    Ok(())
}

#[test]
fn damaged_models_are_errors_that_name_the_tensor() -> Outcome {
    let folder = tempfile::tempdir()?;
    let message = |change: &dyn Fn(&mut Changeable)| -> Result<String, Box<dyn Error>> {
        let path = changed(folder.path(), change)?;
        let error = SamPredictor::load(&path, &Options::default()).expect_err("a damaged model");
        Ok(error
            .to_string()
            .replace(&path.display().to_string(), "FILE"))
    };
    let missing = message(&|t| drop(t.remove("mask_decoder.transformer.norm_final_attn.bias")))?;
    assert_eq!(
        missing,
        "`FILE`: no tensor `mask_decoder.transformer.norm_final_attn.bias`"
    );
    let no_sizes = message(&|t| drop(t.remove("mask_decoder.mask_tokens.weight")))?;
    assert_eq!(
        no_sizes,
        "`FILE`: no tensor `mask_decoder.mask_tokens.weight`, from which sizes are read"
    );
    let wrong_shape = message(&|t| {
        t.insert(
            "image_encoder.blocks.1.norm1.bias".to_owned(),
            (vec![31], vec![0.0; 31]),
        );
    })?;
    assert_eq!(
        wrong_shape,
        "`FILE`: `image_encoder.blocks.1.norm1.bias` is [31], but `image_encoder.embed_dim` as other tensors tell it implies [32]"
    );
    let flat = message(&|t| {
        let (_, values) = t["image_encoder.pos_embed"].clone();
        t.insert(
            "image_encoder.pos_embed".to_owned(),
            (vec![values.len()], values),
        );
    })?;
    assert_eq!(
        flat,
        "`FILE`: `image_encoder.pos_embed` is [8192], expected 4 dimensions and none of them 0"
    );
    let not_square = message(&|t| {
        t.insert(
            "prompt_encoder.no_mask_embed.weight".to_owned(),
            (vec![1, 60], vec![0.0; 60]),
        );
    })?;
    assert_eq!(
        not_square,
        "`FILE`: field `prompt_encoder.embed_dim` is 60, expected 64, the width of what the image encoder gives"
    );
    let other = message(&|t| t.clear())?;
    assert!(
        other.starts_with("`FILE` is no Segment Anything network"),
        "{other}"
    );
    Ok(())
}

#[test]
fn weights_that_are_no_numbers_are_named() -> Outcome {
    const MARK: f32 = 12_345.678;
    let folder = tempfile::tempdir()?;
    let path = changed(folder.path(), |t| {
        let neck = t.get_mut("image_encoder.neck.0.weight");
        neck.expect("the neck").1[5] = MARK;
    })?;
    let mut bytes = std::fs::read(&path)?;
    let at = bytes
        .windows(4)
        .position(|window| window == MARK.to_le_bytes());
    let at = at.expect("the value is in the file");
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes)?;
    let error = SamPredictor::load(&path, &Options::default()).expect_err("a damaged model");
    let message = error.to_string();
    assert!(
        message.ends_with(
            "`image_encoder.neck.0.weight` holds NaN at index 5, but weights are finite"
        ),
        "{message}"
    );
    Ok(())
}

#[test]
fn a_network_that_overflows_says_so() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = changed(folder.path(), |t| {
        let values = &mut t
            .get_mut("image_encoder.neck.0.weight")
            .expect("the neck")
            .1;
        values.fill(f32::MAX);
    })?;
    let predictor = SamPredictor::load(&path, &Options::default())?;
    let image = Image::open(own("sam-vit-tiny").join("image0.png"))?;
    let error = predictor.encode(&image).expect_err("no numbers");
    assert!(matches!(error, SamError::NotANumber { .. }), "{error}");
    Ok(())
}

#[test]
fn tuned_tensors_replace_the_models_under_their_own_prefix() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (fixture, plain) = scene()?;
    let bias = "mask_decoder.iou_prediction_head.layers.2.bias";
    let tuned = folder.path().join("tuned.safetensors");
    let moved: Vec<f32> = fixture
        .weights()?
        .read_f32(bias, &[4], "")?
        .iter()
        .map(|value| value + 1.0)
        .collect();
    save(
        &tuned,
        BTreeMap::from([(format!("model.{bias}"), (vec![4], moved))]),
    )?;
    let options = Options::default();
    let predictor = SamPredictor::load_tuned(&fixture.folder, &tuned, &options)?;
    let prompt = &fixture.prompts(&fixture.description.cases[0])[0];
    let after = predictor.encode(&fixture.images[0])?.prompt(prompt, true)?;
    let before = plain.prompt(prompt, true)?;
    for (before, after) in before.scores.iter().zip(&after.scores) {
        assert!((after - before - 1.0).abs() < 1e-5, "{before} {after}");
    }
    assert_eq!(before.low_res, after.low_res);

    save(
        &tuned,
        BTreeMap::from([("model.head.bias".to_owned(), (vec![1], vec![0.0]))]),
    )?;
    let error =
        SamPredictor::load_tuned(&fixture.folder, &tuned, &options).expect_err("no such tensor");
    assert!(
        error
            .to_string()
            .ends_with("`head.bias` is no tensor of the model it is to be laid over"),
        "{error}"
    );
    Ok(())
}

#[test]
fn wrong_fields_of_config_json_are_named() -> Outcome {
    let bytes = std::fs::read(own("sam-vit-tiny").join("config.json"))?;
    let efficient = std::fs::read(own("efficientvit-sam-l-tiny").join("config.json"))?;
    let tiny = std::fs::read(own("mobilesam-tiny").join("config.json"))?;
    let message = |bytes: &[u8], pointer: &str, value: serde_json::Value| -> String {
        let mut json: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        *json.pointer_mut(pointer).expect("a field of the fixture") = value;
        let error = Config::from_json(json.to_string().as_bytes(), Path::new("m/config.json"));
        error.expect_err(pointer).to_string()
    };
    for (bytes, pointer, value, expected) in [
        (
            &bytes,
            "/model_type",
            "sam2".into(),
            "field `model_type` is \"sam2\", expected \"sam-vit\", ",
        ),
        (
            &bytes,
            "/image_encoder/use_rel_pos",
            false.into(),
            "field `image_encoder.use_rel_pos` is false, expected true",
        ),
        (
            &bytes,
            "/image_encoder/num_heads",
            3.into(),
            "field `image_encoder.embed_dim` is 32, expected a multiple of 3, for num_heads",
        ),
        (
            &bytes,
            "/image_encoder/image_size",
            100_000.into(),
            "field `image_encoder.image_size` is 100000, expected 1 to 4096",
        ),
        (
            &bytes,
            "/image_encoder/window_size",
            16_000_000.into(),
            "field `image_encoder.window_size` is 16000000, expected 1 to 64",
        ),
        (
            &bytes,
            "/image_encoder/patch_size",
            1.into(),
            "field `prompt_encoder.image_embedding_size` is 256, expected 1 to 128",
        ),
        (
            &bytes,
            "/prompt_encoder/image_embedding_size",
            serde_json::json!([16, 8]),
            "field `prompt_encoder.image_embedding_size` is [16,8], expected two equal",
        ),
        (
            &bytes,
            "/mask_decoder/transformer_dim",
            48.into(),
            "field `mask_decoder.transformer_dim` is 48, expected 64, the width",
        ),
        (
            &bytes,
            "/pixel_std",
            serde_json::json!([1, 0, 1]),
            "field `pixel_std` is [1,0,1], expected three positive numbers",
        ),
        (
            &efficient,
            "/image_encoder/block_list/2",
            "conv".into(),
            "field `image_encoder.block_list` is ",
        ),
        (
            &efficient,
            "/image_encoder/width_list",
            serde_json::json!([]),
            "field `image_encoder.depth_list` is 5 long, expected one for each",
        ),
        (
            &efficient,
            "/image_encoder/neck/fid_list/0",
            "stage9".into(),
            "field `image_encoder.neck.fid_list` is [9, 3, 2], expected at least one of the 5",
        ),
        (
            &efficient,
            "/image_encoder/neck/fid_list",
            serde_json::json!([]),
            "field `image_encoder.neck.fid_list` is [], expected at least one",
        ),
        (
            &tiny,
            "/image_encoder/embed_dims",
            serde_json::json!([]),
            "field `image_encoder.depths` is 4 long, expected one for each",
        ),
        (
            &tiny,
            "/image_encoder/merge_strides/1",
            0.into(),
            "field `image_encoder.merge_strides` is [2, 0, 1], expected positive",
        ),
        (
            &tiny,
            "/image_encoder/merge_strides/1",
            1.into(),
            "field `prompt_encoder.image_embedding_size` is 64, expected 128",
        ),
    ] {
        let found = message(bytes, pointer, value);
        assert!(
            found.starts_with(&format!("`m/config.json`: {expected}")),
            "{pointer}: {found}"
        );
    }
    Ok(())
}
