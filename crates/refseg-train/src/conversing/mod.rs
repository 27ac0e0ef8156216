//! A language model learns to answer questions about a picture: the half of SAM4MLLM that speaks.
//!
//! Paper: SAM4MLLM (ECCV 2024). Reference: `sam4mllm_train.py` of its repository. Any model that
//! `refseg::chat` can talk with is taught by the cross-entropy of the assistant's words, the token
//! that ends them included; what the user says and the picture teach nothing. Differs: pictures are
//! drawn at random, where the reference goes through all conversations in turn, and its
//! one-cycle schedule moves beta1 too; small models are taught with blurred numbers ([`pass::Blur`])
//! and helper heads ([`auxiliary`]), which no published recipe has.

pub mod auxiliary;
pub mod beginner;
pub mod lesson;
pub mod pass;
pub mod recipe;

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use refseg::{
    Image,
    chat::{Backbone, ChatModel, Mllm, Question},
    mask::Mask,
    nn::{Blueprint, Part},
    random::SplitMix64,
    sam4mllm::{
        AnswerCount, Method, first_question, is_box, quantise_box, read_boxes, read_objects,
    },
    weights::Weights,
};
use refseg_data::{
    conversations::{Described, DescribedPictures},
    metrics::{Outcome, Tally},
};
use serde_json::{Value, json};

use crate::{
    TrainError,
    parameters::{Leaves, Noise, Over, Parameter, Parameters, Values},
    recipes::{ByRecipe, Common},
    run::{Measured, Run, SAMPLES, Sample, Task, Workers, judge_on},
    tuning::{base::Base, kaiming},
};
use auxiliary::Auxiliary;
use lesson::{Lesson, Lessons};
use pass::{Blur, Costs};
use recipe::{Lora, Recipe};

/// A language model that is being taught.
pub struct Conversing {
    recipe: Recipe,
    /// The folder of the model that the run starts from.
    start: PathBuf,
    backbone: Backbone,
    base: Base,
    /// What the network asks for.
    parts: Vec<Part>,
    blur: Option<Blur>,
    lessons: Lessons,
    held_out: Option<Box<dyn DescribedPictures + Send>>,
    device: Device,
}

/// Tokens of an answer while the model is judged: a dozen boxes.
const ANSWER_TOKENS: usize = 128;

impl Conversing {
    /// Begins a run in `folder` from the model in `start`, or goes on with the one that lies there.
    ///
    /// # Errors
    /// If the model is at fault, the folder cannot be written, another run works in it, or it
    /// holds a run with another recipe.
    pub fn open(
        folder: &Path,
        start: &Path,
        recipe: Recipe,
        workers: Workers,
        lessons: Lessons,
        held_out: Option<Box<dyn DescribedPictures + Send>>,
    ) -> Result<Run<Self>, TrainError> {
        let device = Device::flex();
        let backbone = Backbone::from_folder(start)?;
        let weights = Weights::open(start)?;
        let base = Base::new(weights, backbone.sizes().vocabulary, recipe.seed, &device);
        let parts = Blueprint::of(|source| backbone.network(source))?;
        let blur = Blur::new(&backbone, recipe.loss.blur)?;
        let mut parameters = parameters(&recipe, &parts, &base)?;
        if recipe.loss.helpers > 0.0 {
            if backbone.grid().is_none() {
                return Err(TrainError::NoGrid {
                    model: backbone.name().to_owned(),
                });
            }
            let width = backbone.sizes().width;
            let helpers = Blueprint::of(|source| Auxiliary::load(source, width))?;
            parameters.extend(Parameters::initialise(&helpers, recipe.seed));
        }
        let plan = recipe.common().plan(workers);
        let task = Self {
            recipe,
            start: start.to_owned(),
            backbone,
            base,
            parts,
            blur,
            lessons,
            held_out,
            device,
        };
        Run::open(folder, task, plan, parameters)
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The model's sizes, its tokenizer, and how it is talked with.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// The model as it is now, to be talked with.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn model(&self, parameters: &Parameters) -> Result<ChatModel, TrainError> {
        let leaves = Leaves::constant(parameters, Values::Average, &self.device).over(self.over());
        Ok(ChatModel::new(&self.backbone, &leaves)?)
    }

    /// Loss and gradients over some lessons.
    ///
    /// # Errors
    /// If the loss is not finite, or nothing is taught.
    pub fn measure_on(
        &self,
        parameters: &Parameters,
        lessons: &[Lesson],
        noise: Option<Noise>,
    ) -> Result<Measured, TrainError> {
        let precision = self.recipe.precision.precision();
        let leaves = Leaves::tracked(parameters, &self.device);
        let mut tracked = leaves.over(self.over()).computing(precision);
        if let Some(noise) = noise {
            tracked = tracked.with_noise(noise);
        }
        let costs = Costs {
            mean_of: self.recipe.loss.mean_of,
            blur: self.blur.as_ref(),
            helpers: self.recipe.loss.helpers,
        };
        pass::measure(tracked, &self.backbone, lessons, costs)
    }

    fn over(&self) -> Over<'_> {
        let lora = self.recipe.train.lora.as_ref();
        Over {
            base: &self.base,
            scale: lora.map_or(0.0, Lora::scale),
            dropout: lora.map_or(0.0, |lora| lora.dropout),
            first_row: 0,
        }
    }

    /// What the model answers about each phrase of a picture, as boxes.
    fn asked(
        &self,
        model: &ChatModel,
        image: &Image,
        described: &Described,
    ) -> Result<Vec<Boxed>, TrainError> {
        let method = if self.recipe.talk.pqpp > 0.0 {
            Method::Pqpp
        } else {
            Method::Ppg
        };
        let count = |said: AnswerCount| self.recipe.count().unwrap_or(said);
        let texts = described.expressions.iter();
        let texts: Vec<String> = texts
            .map(|said| first_question(method, &said.phrase, count(said.count)))
            .collect();
        let questions = texts.iter().map(|text| Question {
            max_tokens: ANSWER_TOKENS,
            ..Question::new(text)
        });
        let questions: Vec<Question<'_>> = questions.collect();
        let seen = match self.recipe.data.squash {
            None => model.look(image)?,
            Some(side) => model.look(&image.resize(side, side))?,
        };
        let answers = seen.ask_many(&questions)?;
        let pairs = described.expressions.iter().zip(answers);
        pairs
            .map(|(said, answer)| {
                let truth = said.objects.iter();
                let truth =
                    truth.map(|&i| quantise_box(described.objects[i].box_px, described.size));
                let boxes: Vec<[i32; 4]> = match method {
                    Method::Pqpp => read_boxes(&answer.text).said,
                    Method::Ppg => {
                        let objects = read_objects(&answer.text).said.into_iter();
                        objects.map(|object| object.box_norm).collect()
                    }
                };
                let boxes: Vec<[i32; 4]> = boxes.into_iter().filter(|&b| is_box(b)).collect();
                Ok(Boxed {
                    phrase: said.phrase.clone(),
                    truth: painted(truth, described.size)?,
                    found: !boxes.is_empty(),
                    drawn: painted(boxes.into_iter(), described.size)?,
                })
            })
            .collect()
    }
}

/// A phrase, the boxes of what it means, and those that were answered, both as filled rectangles.
struct Boxed {
    phrase: String,
    truth: Mask,
    found: bool,
    drawn: Mask,
}

/// Boxes in thousandths as filled rectangles of a picture of `size` (height, width).
fn painted(
    boxes_norm: impl Iterator<Item = [i32; 4]>,
    (height, width): (usize, usize),
) -> Result<Mask, TrainError> {
    let mut bits = vec![false; height * width];
    let place = |at: i32, side: usize| {
        let at = f64::from(at.clamp(0, 1000)) / 1000.0 * side as f64;
        (at.round() as usize).min(side)
    };
    for [x1, y1, x2, y2] in boxes_norm {
        for row in place(y1, height)..place(y2, height) {
            let from = place(x1, width);
            let to = place(x2, width).max(from);
            bits[row * width + from..row * width + to].fill(true);
        }
    }
    Ok(Mask::from_bits(height, width, bits)?)
}

impl std::fmt::Debug for Conversing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversing")
            .field("start", &self.start)
            .field("recipe", &self.recipe.description)
            .finish_non_exhaustive()
    }
}

impl ByRecipe for Conversing {
    fn common(&self) -> Common<'_> {
        self.recipe.common()
    }

    fn available(&self) -> usize {
        self.lessons.pictures()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl Task for Conversing {
    type Batch = Vec<Lesson>;

    fn batch(&self, step: u64, pass: usize) -> Result<Vec<Lesson>, TrainError> {
        let each = self.recipe.pictures_a_pass;
        let first = (step - 1) * self.recipe.pictures as u64 + (pass * each) as u64;
        let lessons = first..first + each as u64;
        lessons
            .map(|i| self.lessons.draw(&self.recipe, &self.backbone, i))
            .collect()
    }

    fn measure(
        &self,
        parameters: &Parameters,
        batch: Vec<Lesson>,
        step: u64,
        pass: usize,
    ) -> Result<Measured, TrainError> {
        let mut random = SplitMix64::named("pass", self.recipe.seed);
        let number = step * self.recipe.common().passes() as u64 + pass as u64;
        let noise = Noise {
            seed: random.next_u64() ^ number,
            decoder: false,
        };
        self.measure_on(parameters, &batch, Some(noise))
    }

    /// How well boxes agree: both the answered and the true ones count as filled rectangles.
    fn judge(
        &self,
        parameters: &mut Parameters,
        pools: &[rayon::ThreadPool],
    ) -> Result<Option<Tally>, TrainError> {
        let Some(held_out) = &self.held_out else {
            return Ok(None);
        };
        let model = self.model(parameters)?;
        let count = self.recipe.watch.pictures.min(held_out.count());
        let judge = || -> Result<Tally, TrainError> {
            let mut tally = Tally::default();
            for picture in 0..count {
                let (_, image, described) = held_out.described_picture(picture)?;
                for boxed in self.asked(&model, &image, &described)? {
                    let outcome = Outcome::of_masks(&boxed.drawn, &boxed.truth, None, boxed.found)?;
                    tally.add("all", &outcome);
                }
            }
            Ok(tally)
        };
        judge_on(pools, judge).map(Some)
    }

    fn samples(&self, parameters: &Parameters) -> Result<Vec<Sample>, TrainError> {
        let Some(held_out) = &self.held_out else {
            return Ok(Vec::new());
        };
        let model = self.model(parameters)?;
        let mut samples = Vec::new();
        for picture in 0..SAMPLES.min(held_out.count()) {
            let (name, image, mut described) = held_out.described_picture(picture)?;
            if described.expressions.is_empty() {
                continue;
            }
            // Not always the first, which is the plainest in many data sets.
            let asked = picture % described.expressions.len();
            described.expressions = vec![described.expressions.swap_remove(asked)];
            for boxed in self.asked(&model, &image, &described)? {
                samples.push(Sample {
                    picture: name.clone(),
                    image: image.clone(),
                    phrase: boxed.phrase,
                    truth: boxed.truth,
                    found: boxed.found,
                    drawn: boxed.drawn,
                });
            }
        }
        Ok(samples)
    }

    /// The whole model in the layout of the one it started from, low-rank changes merged.
    fn export(&self, folder: &Path, parameters: &Parameters) -> Result<(), TrainError> {
        fs::create_dir_all(folder).map_err(|source| TrainError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        beginner::copy_description(&self.start, folder)?;
        let is_kept = |key: &str| !self.backbone.is_needless(key);
        let scale = self.over().scale;
        Ok(self.base.save(folder, parameters, scale, is_kept)?)
    }

    fn settings(&self) -> Value {
        let mut settings = json!(self.recipe);
        // What it comes to, so that a run goes on in the numbers that it was begun in.
        settings["precision"] = self.recipe.precision.precision().name().into();
        settings["model"] = self.start.display().to_string().into();
        settings
    }
}

impl Lora {
    /// The factor of the change: alpha over rank.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Whether it changes the tensor `key` of this shape.
    fn changes(&self, key: &str, shape: &[usize]) -> bool {
        let names = |names: &[String]| names.iter().any(|name| key.contains(name.as_str()));
        shape.len() == 2 && key.ends_with(".weight") && names(&self.of) && !names(&self.but)
    }
}

/// Everything that the recipe trains.
fn parameters(recipe: &Recipe, parts: &[Part], base: &Base) -> Result<Parameters, TrainError> {
    let mut parameters = Parameters::default();
    let averaged = recipe.optimiser.average > 0.0;
    for Part { key, shape } in parts {
        let named = &recipe.train.parameters;
        if named.iter().any(|name| key.contains(name.as_str())) {
            let values = base.values(key, shape, "the network")?;
            let parameter = Parameter::trained(shape.clone(), values, averaged);
            parameters.insert(key.clone(), parameter);
            continue;
        }
        let lora = recipe.train.lora.as_ref();
        if let Some(lora) = lora.filter(|lora| lora.changes(key, shape)) {
            let module = key.trim_end_matches(".weight");
            let (outputs, inputs) = (shape[0], shape[1]);
            let a = kaiming(
                &format!("{module}.low_rank_a"),
                inputs,
                lora.rank,
                recipe.seed,
            );
            let a = Parameter::trained(vec![lora.rank, inputs], a, averaged);
            let b = vec![0.0; outputs * lora.rank];
            let b = Parameter::trained(vec![outputs, lora.rank], b, averaged);
            parameters.insert(format!("{module}.low_rank_a"), a);
            parameters.insert(format!("{module}.low_rank_b"), b);
        }
    }
    Ok(parameters)
}
