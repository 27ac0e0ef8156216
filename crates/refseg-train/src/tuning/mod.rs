//! Fine-tuning: any model that refseg runs, on pictures with phrases.
//!
//! Paper: MLLMSeg, arXiv 2508.04107, section 3.4 and the appendix on training. Reference: the
//! official training script. What is trained and how is a [`recipe::Recipe`]; the published ones
//! are among them.

pub mod base;
mod export;
pub mod pass;
pub mod recipe;
pub mod sampler;
mod start;

use std::path::Path;

use burn::tensor::Device;
use refseg::{
    internvl::Config,
    mllmseg::Mllmseg,
    nn::{Blueprint, Part},
    predictor::Predictor,
    prompt::{Marker, Prefix, PromptBuilder, Template, Wording},
    random::SplitMix64,
    tokenizer::Tokenizer,
};
use refseg_data::{
    evaluate::{Asked, Examples, Protocol, predict},
    metrics::Tally,
};
use serde_json::{Value, json};

use crate::{
    TrainError,
    draws::worn,
    parameters::{Leaves, Noise, Over, Parameter, Parameters, Values, is_buffer},
    recipes::{ByRecipe, Common},
    run::{MODEL, Measured, Run, Sample, Task, Workers, judge_on, samples},
};
use base::Base;
use pass::{Question, Setting};
use recipe::{Lora, Recipe, WordingChoice};
use sampler::{Drawn, Sampler};
pub use start::Start;

/// Fine-tuning on its way.
pub struct Tuning {
    recipe: Recipe,
    start: Start,
    config: Config,
    /// `config.json` of the model that the run starts from, with every field.
    config_json: Value,
    base: Base,
    /// What the network asks for.
    parts: Vec<Part>,
    tokenizer: Tokenizer,
    prompts: PromptBuilder,
    prefix: Prefix,
    sampler: Sampler,
    held_out: Option<Box<dyn Examples + Send>>,
    device: Device,
}

/// Prefix of the mask decoder's keys.
const DECODER: &str = "res_decoder.";
/// Keys of the language model's layers begin so.
const LAYERS: &str = "language_model.model.layers.";
/// Keys of the embedding, in either family.
const EMBEDDINGS: [&str; 2] = [
    "language_model.model.embed_tokens.weight",
    "language_model.model.tok_embeddings.weight",
];
/// Keys of the head, in either family.
const HEADS: [&str; 2] = [
    "language_model.lm_head.weight",
    "language_model.output.weight",
];

/// Whether a tensor has a row for each token.
fn is_vocabulary(key: &str) -> bool {
    EMBEDDINGS.contains(&key) || HEADS.contains(&key)
}

impl Tuning {
    /// Begins a run in `folder`, or goes on with the one that lies there.
    ///
    /// `sampler` is what is learned from, `held_out` what the run is judged on.
    ///
    /// # Errors
    /// If the model is at fault, the folder cannot be written, another run works in it, or it
    /// holds a run with another recipe.
    pub fn open(
        folder: &Path,
        start: Start,
        recipe: Recipe,
        workers: Workers,
        sampler: Sampler,
        held_out: Option<Box<dyn Examples + Send>>,
    ) -> Result<Run<Self>, TrainError> {
        let device = Device::flex();
        let (mut config, config_json) = start.config()?;
        let tokenizer = start.tokenizer(&folder.join(MODEL))?;
        config.language.vocabulary = config.language.vocabulary.max(tokenizer.vocabulary_size());
        let weights = start.weights()?;
        if let Some(fusion) = recipe.train.fusion {
            config.fusion = fusion;
        }
        let base = Base::new(weights, config.language.vocabulary, recipe.seed, &device);
        let base = base.adapted_as(recipe.train.lora)?;
        let template: Template = config.template.parse()?;
        // The published evaluation asks every model alike; so does its training but for one.
        let template = match recipe.prompt.wording {
            WordingChoice::Training => template,
            WordingChoice::Evaluation => template.for_inference(),
        };
        let prompts = PromptBuilder::new(tokenizer.clone(), template, config.image_tokens())?;
        let first_row = first_marker(&prompts)?;
        let parts = Blueprint::of(|source| Mllmseg::load(source, &config))?;
        let parameters = parameters(&recipe, &parts, &base, first_row)?;
        let plan = recipe.common().plan(workers);
        let task = Self {
            prefix: prompts.prefix()?,
            recipe,
            start,
            config,
            config_json,
            base,
            parts,
            tokenizer,
            prompts,
            sampler,
            held_out,
            device,
        };
        Run::open(folder, task, plan, parameters)
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Sizes of the network.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the network has a tensor of this key.
    fn is_part(&self, key: &str) -> bool {
        self.parts.iter().any(|part| part.key == key)
    }

    fn over(&self) -> Over<'_> {
        let lora = self.recipe.train.lora;
        Over {
            base: &self.base,
            scale: lora.map_or(0.0, Lora::scale),
            dropout: lora.map_or(0.0, |lora| lora.dropout),
            first_row: self.prompts.tokens().seg.min(self.prompts.tokens().rej) as usize,
        }
    }

    /// The model as it is now, to be asked.
    ///
    /// # Errors
    /// If the parts do not fit each other.
    pub fn predictor(&self, parameters: &Parameters) -> Result<Predictor, TrainError> {
        let leaves = Leaves::constant(parameters, Values::Average, &self.device).over(self.over());
        let name = self.start.name();
        let (config, tokenizer) = (self.config.clone(), self.tokenizer.clone());
        Predictor::new(name, config, tokenizer, &leaves)
            .map_err(|error| TrainError::Model(Box::new(error)))
    }

    /// A draw as the network sees it.
    fn question(&self, drawn: Drawn) -> Result<Question, TrainError> {
        let Drawn {
            image,
            asked,
            mut random,
        } = drawn;
        let image = worn(image, self.recipe.data.jpeg_quality, &mut random)?;
        let side = self.config.image_size as u32;
        let wording = match self.recipe.prompt.wording {
            WordingChoice::Evaluation => Wording::Evaluation,
            WordingChoice::Training => Wording::Training {
                question: random.below(Wording::QUESTIONS),
                answer: random.below(Wording::ANSWERS),
            },
        };
        let phrases: Vec<&str> = asked.iter().map(|asked| asked.phrase.as_str()).collect();
        let marker = |asked: &Asked| match asked.truth.mask.area() {
            0 => Marker::Rej,
            _ => Marker::Seg,
        };
        let markers: Vec<Marker> = asked.iter().map(marker).collect();
        let prompts = if self.recipe.prompt.joint {
            vec![self.prompts.worded(&phrases, &markers, wording)?]
        } else {
            let one = |(phrase, marker): (&&str, &Marker)| {
                self.prompts.worded(&[*phrase], &[*marker], wording)
            };
            let each = phrases.iter().zip(&markers).map(one);
            each.collect::<Result<_, _>>()?
        };
        Ok(Question {
            pixels: image.resize(side, side).normalised(),
            prompts,
            targets: asked.into_iter().map(|asked| asked.truth.mask).collect(),
        })
    }

    /// Losses and gradients over some pictures.
    ///
    /// # Errors
    /// If a loss is not finite.
    pub fn measure_on<'a>(
        &'a self,
        parameters: &'a Parameters,
        questions: &[Question],
        noise: Option<Noise>,
    ) -> Result<Measured, TrainError> {
        let setting = Setting {
            config: &self.config,
            prefix: &self.prefix,
            tokens: self.prompts.tokens(),
            loss: &self.recipe.loss,
            recompute: self.recipe.recompute,
        };
        let precision = self.recipe.precision.precision();
        let prepared = |leaves: Leaves<'a>| leaves.over(self.over()).computing(precision);
        let mut tracked = prepared(Leaves::tracked(parameters, &self.device));
        let mut untracked = prepared(Leaves::untracked(parameters, &self.device));
        if let Some(noise) = noise {
            (tracked, untracked) = (tracked.with_noise(noise), untracked.with_noise(noise));
        }
        pass::measure(tracked, &untracked, parameters, &setting, questions)
    }
}

impl std::fmt::Debug for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tuning")
            .field("start", &self.start)
            .field("recipe", &self.recipe.description)
            .finish_non_exhaustive()
    }
}

impl ByRecipe for Tuning {
    fn common(&self) -> Common<'_> {
        self.recipe.common()
    }

    fn available(&self) -> usize {
        self.sampler.pictures()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl Task for Tuning {
    type Batch = Vec<Question>;

    fn batch(&self, step: u64, pass: usize) -> Result<Vec<Question>, TrainError> {
        let each = self.recipe.pictures_a_pass;
        let first = (step - 1) * self.recipe.pictures as u64 + (pass * each) as u64;
        let questions = (first..first + each as u64).map(|i| self.question(self.sampler.draw(i)?));
        questions.collect()
    }

    fn measure(
        &self,
        parameters: &Parameters,
        batch: Vec<Question>,
        step: u64,
        pass: usize,
    ) -> Result<Measured, TrainError> {
        let mut random = SplitMix64::named("pass", self.recipe.seed);
        let number = step * self.recipe.common().passes() as u64 + pass as u64;
        let noise = Noise {
            seed: random.next_u64() ^ number,
            decoder: self.recipe.train.decoder_dropout,
        };
        self.measure_on(parameters, &batch, Some(noise))
    }

    fn judge(
        &self,
        parameters: &mut Parameters,
        pools: &[rayon::ThreadPool],
    ) -> Result<Option<Tally>, TrainError> {
        let Some(examples) = &self.held_out else {
            return Ok(None);
        };
        let predictor = self.predictor(parameters)?;
        let count = self.recipe.watch.pictures.min(examples.pictures());
        let pictures: Vec<usize> = (0..count).collect();
        let protocol = if self.recipe.prompt.joint {
            Protocol::Joint
        } else {
            Protocol::Single
        };
        let mut tally = Tally::default();
        let judge = || {
            predict::<TrainError>(&predictor, &**examples, &pictures, protocol, |answers| {
                for answer in answers {
                    tally.add("all", &answer.outcome(None));
                }
                Ok(())
            })
        };
        judge_on(pools, judge)?;
        Ok(Some(tally))
    }

    fn samples(&self, parameters: &Parameters) -> Result<Vec<Sample>, TrainError> {
        match &self.held_out {
            None => Ok(Vec::new()),
            Some(examples) => samples(&self.predictor(parameters)?, &**examples),
        }
    }

    fn export(&self, folder: &Path, parameters: &Parameters) -> Result<(), TrainError> {
        self.start.tokenizer(folder)?;
        export::export(self, folder, parameters)
    }

    fn settings(&self) -> Value {
        let mut settings = json!(self.recipe);
        // What it comes to, so that a run goes on in the numbers that it was begun in.
        settings["precision"] = self.recipe.precision.precision().name().into();
        settings["model"] = self.start.name().into();
        settings
    }
}

impl Lora {
    /// The factor of the change: alpha over rank.
    pub fn scale(self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// The first of the two markers' ids, which must stand side by side.
fn first_marker(prompts: &PromptBuilder) -> Result<usize, TrainError> {
    let tokens = prompts.tokens();
    if tokens.rej.abs_diff(tokens.seg) != 1 {
        return Err(TrainError::Markers {
            seg: tokens.seg,
            rej: tokens.rej,
        });
    }
    Ok(tokens.seg.min(tokens.rej) as usize)
}

/// Everything that the recipe trains, and the decoder's running statistics, with the values that
/// the checkpoint has for them or that a new model begins with.
fn parameters(
    recipe: &Recipe,
    parts: &[Part],
    base: &Base,
    first_row: usize,
) -> Result<Parameters, TrainError> {
    let mut parameters = Parameters::default();
    let averaged = recipe.optimiser.average > 0.0;
    for Part { key, shape } in parts {
        let values = || base.values(key, shape, "the network");
        let fan_in = || {
            let weight = key.replace("bias", "weight");
            let beside = parts.iter().find(|part| part.key == weight);
            beside.map_or(1, |part| part.shape[1..].iter().product())
        };
        let is_named = recipe
            .train
            .parameters
            .iter()
            .any(|name| key.contains(name));
        let is_replaced = recipe.train.fusion.is_some() || !base.contains(key);
        let is_new = key.starts_with(DECODER) && is_replaced;
        if is_named || is_new || is_buffer(key) {
            let values = if is_new {
                decoder_values(key, shape, fan_in(), recipe.seed)
            } else {
                values()?
            };
            let parameter = if is_buffer(key) || !is_named {
                Parameter::measured(shape.clone(), values, false)
            } else {
                Parameter::trained(shape.clone(), values, averaged)
            };
            parameters.insert(key.clone(), parameter);
            continue;
        }
        if recipe.train.new_rows && is_vocabulary(key) {
            let width = shape[1];
            let rows = values()?[first_row * width..][..2 * width].to_vec();
            let parameter = Parameter::trained(vec![2, width], rows, averaged);
            parameters.insert(format!("{key}.rows"), parameter);
        }
        let Some((lora, module)) = recipe.train.lora.zip(key.strip_suffix(".weight")) else {
            continue;
        };
        if let (true, &[outputs, inputs]) = (key.starts_with(LAYERS), &shape[..]) {
            let (a, b) = match base.low_rank(key)? {
                Some(factors) => (factors.a, factors.b),
                None => (
                    kaiming(
                        &format!("{module}.low_rank_a"),
                        inputs,
                        lora.rank,
                        recipe.seed,
                    ),
                    vec![0.0; outputs * lora.rank],
                ),
            };
            let a = Parameter::trained(vec![lora.rank, inputs], a, averaged);
            let b = Parameter::trained(vec![outputs, lora.rank], b, averaged);
            parameters.insert(format!("{module}.low_rank_a"), a);
            parameters.insert(format!("{module}.low_rank_b"), b);
        }
    }
    Ok(parameters)
}

/// `[rank, inputs]`, uniform within `1/√inputs`: what `kaiming_uniform_` with `a = √5` comes to.
pub(crate) fn kaiming(key: &str, inputs: usize, rank: usize, seed: u64) -> Vec<f32> {
    uniform(key, rank * inputs, (inputs as f64).powf(-0.5), seed)
}

/// Initial values of a new mask decoder, as the reference has them (spec §7): matrices
/// Xavier-uniform, biases of the transformer layers and of DySample zero, other biases PyTorch's
/// default, norms 1 and 0. `fan_in` is that of the weight beside a bias.
fn decoder_values(key: &str, shape: &[usize], fan_in: usize, seed: u64) -> Vec<f32> {
    let count: usize = shape.iter().product();
    if key.contains(".norm") || key.contains("conv1.1.") {
        let is_one = key.ends_with("weight") || key.ends_with("running_var");
        return vec![if is_one { 1.0 } else { 0.0 }; count];
    }
    let reach = if shape.len() > 1 {
        let receptive: usize = shape[2..].iter().product();
        (6.0 / ((shape[0] + shape[1]) * receptive) as f64).sqrt()
    } else if key.contains(".decoder.") || key.contains(".offset.") {
        0.0
    } else {
        (fan_in as f64).powf(-0.5)
    };
    uniform(key, count, reach, seed)
}

fn uniform(key: &str, count: usize, reach: f64, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::named(key, seed);
    let value = || ((2.0 * random.uniform() - 1.0) * reach) as f32;
    std::iter::repeat_with(value).take(count).collect()
}
