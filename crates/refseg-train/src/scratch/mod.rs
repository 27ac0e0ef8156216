//! From scratch on drawn scenes: how the built-in model came to be.

pub mod auxiliary;
pub mod batch;
pub mod step;
pub mod vocabulary;

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::{Device, activation};
use refseg::{
    internvl::{Config, Fusion},
    mllmseg::Mllmseg,
    nn::Blueprint,
    predictor::Predictor,
    prompt::{PromptBuilder, Template},
    tokenizer::Tokenizer,
    weights::{SaveDtype, TensorSpec, WeightsError, save_safetensors},
};
use refseg_data::{
    metrics::{Outcome, Tally},
    scenes::{DrawnScenes, Scene, SceneOptions, Split},
};
use serde::{Deserialize, Serialize};

use crate::{
    TrainError, checkpoint,
    optimiser::{Decline, Optimiser, Rule, Schedule},
    parameters::{Leaves, Parameters, Values},
    run::{
        Measured, Plan, RUNNING_MEAN, RUNNING_VARIANCE, Run, Sample, Task, in_parallel, samples,
    },
    tensors::values,
};
use auxiliary::Auxiliary;
use batch::{Batch, BatchOptions};
use vocabulary::{TrainedTokenizer, train_tokenizer};

/// How a run from scratch on drawn scenes goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Steps in which the vision tower learns alone what each patch shows.
    pub sight_steps: u64,
    /// Steps in all.
    pub steps: u64,
    /// Pictures a step, over all workers.
    pub pictures: usize,
    /// Phrases for each picture.
    pub phrases: usize,
    /// Of which this many are decoded to masks.
    pub masks: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps of warm-up.
    pub warm_up: u64,
    /// Workers, each with one thread and its share of the pictures.
    pub workers: usize,
    /// Steps between evaluations and checkpoints.
    pub every: u64,
    /// Held-out scenes in each evaluation.
    pub held_out: usize,
    /// Seed of the initial values.
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            sight_steps: 700,
            steps: 5000,
            pictures: 16,
            phrases: 12,
            masks: 4,
            learning_rate: 1e-3,
            warm_up: 200,
            workers: 2,
            every: 200,
            held_out: 64,
            seed: 1,
        }
    }
}

impl Recipe {
    fn plan(&self) -> Plan {
        Plan {
            steps: self.steps,
            passes: self.workers,
            workers: self.workers,
            threads: 1,
            loaders: 1,
            every: self.every,
            optimiser: Optimiser {
                rule: Rule::AdamW {
                    beta1: 0.9,
                    beta2: 0.98,
                    epsilon: 1e-8,
                },
                weight_decay: 0.05,
                decay_vectors: false,
                clip_norm: 1.0,
                average_decay: 0.998,
            },
            schedule: Schedule {
                peak: self.learning_rate,
                warm_up: self.warm_up,
                steps: self.steps,
                floor: 0.02,
                first: 0.0,
                decline: Decline::Cosine,
            },
        }
    }
}

/// The size of the built-in model: a picture of 112 pixels in patches of 8.
///
/// The template is the short one, so that a phrase costs a handful of tokens.
pub fn builtin_config(vocabulary: usize) -> Config {
    use refseg::{
        internvl::{UnshuffleVersion, VisionConfig},
        language::{LanguageConfig, LanguageFamily},
    };
    Config {
        image_size: 112,
        unshuffle: 2,
        unshuffle_version: UnshuffleVersion::V2,
        template: "refseg-phrase".to_owned(),
        lora_rank: 0,
        fusion: Fusion::Dsff,
        vision: VisionConfig {
            width: 160,
            inner: 640,
            layers: 4,
            heads: 5,
            patch: 8,
            image_size: 112,
            epsilon: 1e-6,
            qkv_bias: true,
        },
        language: LanguageConfig {
            family: LanguageFamily::Qwen2,
            vocabulary,
            width: 192,
            inner: 512,
            layers: 4,
            heads: 6,
            key_value_heads: 2,
            epsilon: 1e-6,
            rope_theta: 10_000.0,
            max_positions: 32_768,
        },
    }
}

/// Scenes whose phrases make the vocabulary.
const CORPUS_SCENES: u64 = 2000;
/// Room for every word of the generator.
const VOCABULARY: usize = 512;
/// Batches over which statistics are measured anew for averaged values.
const STATISTICS_BATCHES: u64 = 12;
/// First scene of those batches: far behind any that training reaches.
const STATISTICS_FIRST: u64 = 1 << 40;

/// Training from scratch on drawn scenes.
#[derive(Debug)]
pub struct Scratch {
    recipe: Recipe,
    config: Config,
    files: TrainedTokenizer,
    tokenizer: Tokenizer,
    device: Device,
}

impl Scratch {
    /// Begins a run in `folder`, or goes on with the one that lies there.
    ///
    /// # Errors
    /// If the folder cannot be written, or holds the checkpoint of another recipe.
    pub fn open(folder: &Path, recipe: Recipe) -> Result<Run<Self>, TrainError> {
        let files = train_tokenizer(corpus(), VOCABULARY)?;
        let tokenizer = Tokenizer::from_json_bytes(&files.tokenizer_json)?;
        let config = builtin_config(files.vocabulary_size);
        let parts = Blueprint::of(|source| {
            Mllmseg::load(source, &config)?;
            Auxiliary::load(source, &config)
        })?;
        let parameters = Parameters::initialise(&parts, recipe.seed);
        let plan = recipe.plan();
        let task = Self {
            recipe,
            config,
            files,
            tokenizer,
            device: Device::flex(),
        };
        Run::open(folder, task, plan, parameters)
    }

    /// Batches of training scenes, one worker's share.
    fn batches(&self) -> BatchOptions {
        BatchOptions {
            pictures: self.recipe.pictures / self.recipe.workers,
            phrases: self.recipe.phrases,
            masks: self.recipe.masks,
            split: Split::Train,
        }
    }

    /// Measures batch-norm statistics for the averaged values: theirs lag behind those of any step.
    fn settle(
        &self,
        parameters: &mut Parameters,
        pools: &[rayon::ThreadPool],
    ) -> Result<(), TrainError> {
        let options = self.batches();
        let batches = STATISTICS_BATCHES.div_ceil(pools.len() as u64);
        let workers = || (0..pools.len()).collect();
        let measured = in_parallel(pools, workers(), |worker| {
            let prompts = self.prompts()?;
            let leaves = Leaves::constant(parameters, Values::Average, &self.device);
            let model = Mllmseg::load(&leaves, &self.config)?;
            let mut measured = Vec::new();
            for i in 0..batches {
                let first =
                    STATISTICS_FIRST + (worker as u64 * batches + i) * options.pictures as u64;
                let batch = Batch::draw(&options, first, &self.config, &prompts)?;
                let forward = step::forward(&model, &batch, &self.config, &prompts)?;
                let chosen = step::chosen_phrases(&forward, &batch);
                if let Some((mean, variance)) = model
                    .decoder
                    .decode_in_training(&forward.image, chosen)
                    .statistics
                {
                    measured.push((values(mean), values(variance)));
                }
            }
            Ok::<_, TrainError>(measured)
        });
        let measured: Vec<_> = measured
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?
            .concat();
        let count = measured.len() as f32;
        let mean_of = |values: Vec<&Vec<f32>>| -> Vec<f32> {
            (0..values[0].len())
                .map(|i| values.iter().map(|v| v[i]).sum::<f32>() / count)
                .collect()
        };
        let mean = mean_of(measured.iter().map(|(mean, _)| mean).collect());
        let variance = mean_of(measured.iter().map(|(_, variance)| variance).collect());
        for (key, values) in [(RUNNING_MEAN, mean), (RUNNING_VARIANCE, variance)] {
            if let Some(parameter) = parameters.get_mut(key) {
                parameter.average = values;
            }
        }
        Ok(())
    }

    /// Judges the averaged values on held-out scenes, at the model's own resolution.
    fn held_out(
        &self,
        parameters: &Parameters,
        pools: &[rayon::ThreadPool],
    ) -> Result<Tally, TrainError> {
        let share = self.recipe.held_out / pools.len();
        let workers = (0..pools.len()).collect();
        let tallies = in_parallel(pools, workers, |worker| {
            let prompts = self.prompts()?;
            let leaves = Leaves::constant(parameters, Values::Average, &self.device);
            let model = Mllmseg::load(&leaves, &self.config)?;
            let special = prompts.tokens();
            let mut tally = Tally::default();
            for scene in 0..share {
                let index = (worker * share + scene) as u64;
                let options = SceneOptions {
                    split: Split::HeldOut,
                    ..SceneOptions::default()
                };
                let drawn = Scene::draw(&options, index);
                let batch = Batch::of_scene(&drawn, &self.config, &prompts)?;
                let forward = step::forward(&model, &batch, &self.config, &prompts)?;
                let logits = model
                    .decoder
                    .decode(&forward.image, forward.phrases.clone());
                let masks = values(activation::sigmoid(logits));
                let pixels = self.config.image_size.pow(2);
                let chosen = values(forward.decisions.argmax(1).float());
                for (i, phrase) in drawn.phrases.iter().enumerate() {
                    let found = chosen[i] as u32 != special.rej;
                    let predicted = masks[i * pixels..][..pixels].iter().map(|&p| p >= 0.5);
                    let target = batch.targets[i * pixels..][..pixels]
                        .iter()
                        .map(|&t| t > 0.5);
                    let outcome = Outcome::of_pixels(predicted.zip(target), found);
                    tally.add(phrase.kind.name(), &outcome);
                }
            }
            Ok::<_, TrainError>(tally)
        });
        let mut all = Tally::default();
        for tally in tallies {
            all.merge(&tally?);
        }
        Ok(all)
    }

    fn prompts(&self) -> Result<PromptBuilder, TrainError> {
        Ok(PromptBuilder::new(
            self.tokenizer.clone(),
            Template::Phrase,
            self.config.image_tokens(),
        )?)
    }
}

impl Task for Scratch {
    type Batch = Batch;

    fn batch(&self, step: u64, pass: usize) -> Result<Batch, TrainError> {
        let options = self.batches();
        let first = (step - 1) * self.recipe.pictures as u64 + (pass * options.pictures) as u64;
        Batch::draw(&options, first, &self.config, &self.prompts()?)
    }

    fn measure(
        &self,
        parameters: &Parameters,
        batch: Batch,
        step: u64,
        _: usize,
    ) -> Result<Measured, TrainError> {
        let sight_only = step <= self.recipe.sight_steps;
        let prompts = self.prompts()?;
        step::step(
            parameters,
            &batch,
            &self.config,
            &prompts,
            sight_only,
            &self.device,
        )
    }

    /// Until then no phrase was asked.
    fn is_usable(&self, step: u64) -> bool {
        step > self.recipe.sight_steps
    }

    fn judge(
        &self,
        parameters: &mut Parameters,
        pools: &[rayon::ThreadPool],
    ) -> Result<Option<Tally>, TrainError> {
        self.settle(parameters, pools)?;
        self.held_out(parameters, pools).map(Some)
    }

    fn samples(&self, parameters: &Parameters) -> Result<Vec<Sample>, TrainError> {
        let leaves = Leaves::constant(parameters, Values::Average, &self.device);
        let (config, tokenizer) = (self.config.clone(), self.tokenizer.clone());
        let predictor = Predictor::new("the run".to_owned(), config, tokenizer, &leaves)
            .map_err(|error| TrainError::Model(Box::new(error)))?;
        let scenes = DrawnScenes {
            options: SceneOptions {
                split: Split::HeldOut,
                ..SceneOptions::default()
            },
            first: 0,
            count: self.recipe.held_out,
        };
        samples(&predictor, &scenes)
    }

    /// The averaged values, in the official layout, f16.
    fn export(&self, folder: &Path, parameters: &Parameters) -> Result<(), TrainError> {
        fs::create_dir_all(folder).map_err(|source| TrainError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let helper = format!("{}.", auxiliary::PREFIX);
        let specs: Vec<TensorSpec> = parameters
            .iter()
            .filter(|(key, _)| !key.starts_with(&helper))
            .map(|(key, parameter)| TensorSpec {
                name: key.to_owned(),
                shape: parameter.shape.clone(),
            })
            .collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        save_safetensors(
            &folder.join("model.safetensors"),
            &specs,
            SaveDtype::F16,
            &metadata,
            |spec| {
                let parameter = parameters.get(&spec.name);
                let missing = || WeightsError::Missing {
                    path: folder.to_owned(),
                    key: spec.name.clone(),
                };
                Ok(parameter.ok_or_else(missing)?.of(Values::Average).to_vec())
            },
        )?;
        let config = checkpoint::json(&self.config.to_json());
        let files = [
            ("config.json", &config),
            ("tokenizer.json", &self.files.tokenizer_json),
            ("tokenizer_config.json", &self.files.tokenizer_config_json),
            (
                "special_tokens_map.json",
                &self.files.special_tokens_map_json,
            ),
        ];
        for (name, bytes) in files {
            checkpoint::write(&folder.join(name), bytes)?;
        }
        Ok(())
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(&self.recipe).expect("plain numbers serialise")
    }

    /// A helper head that is newer than the checkpoint begins fresh.
    fn is_optional(&self, key: &str) -> bool {
        key.starts_with(auxiliary::PREFIX)
    }
}

/// The phrases that the vocabulary is made from, as the prompt writes them.
fn corpus() -> impl Iterator<Item = String> {
    let options = SceneOptions {
        size: 64,
        phrases_per_scene: 12,
        ..SceneOptions::default()
    };
    (0..CORPUS_SCENES).flat_map(move |index| {
        Scene::draw(&options, index)
            .phrases
            .into_iter()
            .map(|phrase| format!("{}:", phrase.text))
    })
}
