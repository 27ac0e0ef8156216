//! A Segment Anything model learns to draw what prompts mean: the half of SAM4MLLM that draws.
//!
//! Paper: SAM4MLLM (ECCV 2024) fine-tunes the mask decoder on COCO's instances, "to adapt to its
//! polygons", and says no more about how; losses and values are those of EfficientViT-SAM's own
//! training (arXiv 2402.05008), with the prompts that PQPP sends, and the error of predicted IoUs
//! beside them, by which masks are chosen. Norms whose statistics a network measured in its own
//! training keep them.

pub mod beginner;
pub mod drawing;
pub mod pass;
pub mod recipe;

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use refseg::{
    nn::{Blueprint, Part, Tensors},
    sam::{Config, Prompt, Sam, SamMasks, SamPredictor, open_checkpoint},
};
use refseg_data::{
    conversations::{Described, DescribedPictures},
    metrics::{Outcome, Tally},
};
use serde_json::{Value, json};

use crate::{
    TrainError,
    conversing::beginner::copy_description,
    parameters::{Leaves, Over, Parameter, Parameters, Values, is_buffer},
    recipes::{ByRecipe, Common},
    run::{Measured, Run, SAMPLES, Sample, Task, Workers, judge_on},
    tuning::base::Base,
};
use drawing::{Drawing, Drawings};
use recipe::Recipe;

/// A Segment Anything model that is being trained.
pub struct Outlining {
    recipe: Recipe,
    /// The model that the run starts from: a checkpoint, or a folder.
    start: PathBuf,
    config: Config,
    base: Base,
    /// What the network asks for.
    parts: Vec<Part>,
    drawings: Drawings,
    held_out: Option<Box<dyn DescribedPictures + Send>>,
    device: Device,
}

/// What no published training changes: the random waves that places are written in.
const FIXED: &str = "positional_encoding_gaussian_matrix";

impl Outlining {
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
        drawings: Drawings,
        held_out: Option<Box<dyn DescribedPictures + Send>>,
    ) -> Result<Run<Self>, TrainError> {
        let device = Device::flex();
        let (config, weights) = open_checkpoint(start)?;
        let base = Base::new(weights, 0, recipe.seed, &device);
        let parts = Blueprint::of(|source| Sam::load(&Tensors::root(source), &config))?;
        let parameters = parameters(&recipe, &parts, &base)?;
        let plan = recipe.common().plan(workers);
        let task = Self {
            recipe,
            start: start.to_owned(),
            config,
            base,
            parts,
            drawings,
            held_out,
            device,
        };
        Run::open(folder, task, plan, parameters)
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The model as it is now, to be prompted.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn predictor(&self, parameters: &Parameters) -> Result<SamPredictor, TrainError> {
        let leaves = Leaves::constant(parameters, Values::Average, &self.device).over(self.over());
        let name = self.start.display().to_string();
        Ok(SamPredictor::new(name, self.config.clone(), &leaves)?)
    }

    /// Losses and gradients over some pictures.
    ///
    /// # Errors
    /// If a loss is not finite.
    pub fn measure_on(
        &self,
        parameters: &Parameters,
        drawings: &[Drawing],
    ) -> Result<Measured, TrainError> {
        let precision = self.recipe.precision.precision();
        let leaves = Leaves::tracked(parameters, &self.device);
        let tracked = leaves.over(self.over()).computing(precision);
        pass::measure(tracked, &self.config, &self.recipe.loss, drawings)
    }

    fn over(&self) -> Over<'_> {
        Over {
            base: &self.base,
            scale: 0.0,
            dropout: 0.0,
            first_row: 0,
        }
    }
}

impl std::fmt::Debug for Outlining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlining")
            .field("start", &self.start)
            .field("recipe", &self.recipe.description)
            .finish_non_exhaustive()
    }
}

impl ByRecipe for Outlining {
    fn common(&self) -> Common<'_> {
        self.recipe.common()
    }

    fn available(&self) -> usize {
        self.drawings.pictures()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl Task for Outlining {
    type Batch = Vec<Drawing>;

    fn batch(&self, step: u64, pass: usize) -> Result<Vec<Drawing>, TrainError> {
        let each = self.recipe.pictures_a_pass;
        let first = (step - 1) * self.recipe.pictures as u64 + (pass * each) as u64;
        let drawings = first..first + each as u64;
        drawings
            .map(|i| self.drawings.draw(&self.recipe, &self.config, i))
            .collect()
    }

    fn measure(
        &self,
        parameters: &Parameters,
        batch: Vec<Drawing>,
        _: u64,
        _: usize,
    ) -> Result<Measured, TrainError> {
        self.measure_on(parameters, &batch)
    }

    /// The mask that the model itself thinks best, from the box of each object.
    fn judge(
        &self,
        parameters: &mut Parameters,
        pools: &[rayon::ThreadPool],
    ) -> Result<Option<Tally>, TrainError> {
        let Some(held_out) = &self.held_out else {
            return Ok(None);
        };
        let predictor = self.predictor(parameters)?;
        let count = self.recipe.watch.pictures.min(held_out.count());
        let judge = || -> Result<Tally, TrainError> {
            let mut tally = Tally::default();
            for picture in 0..count {
                let (_, image, described) = held_out.described_picture(picture)?;
                let drawn = predictor.encode(&image)?;
                let prompts = boxes(&described);
                let masks = drawn.prompt_many(&prompts, true)?;
                for (object, masks) in described.objects.iter().zip(&masks) {
                    let outcome = Outcome::of_masks(best(masks), &object.mask, None, true)?;
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
        let predictor = self.predictor(parameters)?;
        let mut samples = Vec::new();
        for picture in 0..SAMPLES.min(held_out.count()) {
            let (name, image, described) = held_out.described_picture(picture)?;
            if described.objects.is_empty() {
                continue;
            }
            let object = picture % described.objects.len();
            let prompt = &boxes(&described)[object];
            let masks = predictor.encode(&image)?.prompt(prompt, true)?;
            let [x1, y1, x2, y2] = prompt.box_px.unwrap_or_default();
            samples.push(Sample {
                picture: name,
                phrase: format!("box {x1:.0}, {y1:.0}, {x2:.0}, {y2:.0}"),
                truth: described.objects[object].mask.clone(),
                found: true,
                drawn: best(&masks).clone(),
                image,
            });
        }
        Ok(samples)
    }

    /// The whole model, under the names of the one it started from.
    fn export(&self, folder: &Path, parameters: &Parameters) -> Result<(), TrainError> {
        fs::create_dir_all(folder).map_err(|source| TrainError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        if self.start.is_dir() {
            copy_description(&self.start, folder)?;
        }
        Ok(self.base.save(folder, parameters, 0.0, |_| true)?)
    }

    fn settings(&self) -> Value {
        let mut settings = json!(self.recipe);
        // What it comes to, so that a run goes on in the numbers that it was begun in.
        settings["precision"] = self.recipe.precision.precision().name().into();
        settings["model"] = self.start.display().to_string().into();
        settings
    }
}

/// The box of each object as a prompt, within the picture.
fn boxes(described: &Described) -> Vec<Prompt> {
    let (height, width) = (described.size.0 as f64, described.size.1 as f64);
    let prompt = |[x1, y1, x2, y2]: [f64; 4]| Prompt {
        box_px: Some([
            x1.clamp(0.0, width),
            y1.clamp(0.0, height),
            x2.clamp(0.0, width),
            y2.clamp(0.0, height),
        ]),
        ..Prompt::default()
    };
    let objects = described.objects.iter();
    objects.map(|object| prompt(object.box_px)).collect()
}

fn best(masks: &SamMasks) -> &refseg::Mask {
    &masks.masks[masks.best()]
}

/// Everything that the recipe trains.
fn parameters(recipe: &Recipe, parts: &[Part], base: &Base) -> Result<Parameters, TrainError> {
    let mut parameters = Parameters::default();
    let averaged = recipe.optimiser.average > 0.0;
    for Part { key, shape } in parts {
        let named = &recipe.train.parameters;
        let is_named = named.iter().any(|name| key.contains(name.as_str()));
        if is_named && !is_buffer(key) && !key.ends_with(FIXED) {
            let values = base.values(key, shape, "the network")?;
            let parameter = Parameter::trained(shape.clone(), values, averaged);
            parameters.insert(key.clone(), parameter);
        }
    }
    Ok(parameters)
}
