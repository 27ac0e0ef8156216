//! The loop: batches in, a model folder out, and nothing lost when it is killed.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, activation};
use refseg::{
    internvl::Config,
    mllmseg::Mllmseg,
    nn::Blueprint,
    prompt::{PromptBuilder, Template},
    tokenizer::Tokenizer,
};
use refseg_data::{
    metrics::{Outcome, Tally},
    scenes::{Scene, SceneOptions, Split},
};
use serde::{Deserialize, Serialize};

use crate::{
    TrainError,
    auxiliary::Auxiliary,
    batch::{Batch, BatchOptions},
    checkpoint,
    optimiser::{AdamW, Schedule},
    parameters::{Gradients, Leaves, Parameters, Values},
    step::{self, Losses, StepResult},
    vocabulary::{TrainedTokenizer, train_tokenizer},
};

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

/// The size of the built-in model: a picture of 112 pixels in patches of 8.
///
/// The template is the short one, so that a phrase costs a handful of tokens.
pub fn builtin_config(vocabulary: usize) -> Config {
    use refseg::internvl::{UnshuffleVersion, VisionConfig};
    use refseg::language::{LanguageConfig, LanguageFamily};
    Config {
        image_size: 112,
        unshuffle: 2,
        unshuffle_version: UnshuffleVersion::V2,
        template: "refseg-phrase".to_owned(),
        lora_rank: 0,
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

/// What a run reports while it goes.
#[derive(Debug, Clone)]
pub enum Event {
    /// A step is done.
    Step {
        /// Counted from 1.
        step: u64,
        /// Losses, averaged over the workers.
        losses: Losses,
        /// Norm of the gradient before clipping.
        norm: f64,
    },
    /// Held-out scenes were judged, at the model's own resolution.
    HeldOut {
        /// After this step.
        step: u64,
        /// What came out.
        tally: Tally,
    },
    /// A checkpoint lies on disk.
    Saved {
        /// After this step.
        step: u64,
    },
}

/// A run from scratch on drawn scenes.
#[derive(Debug)]
pub struct Run {
    recipe: Recipe,
    config: Config,
    files: TrainedTokenizer,
    tokenizer: Tokenizer,
    parameters: Parameters,
    done: u64,
    folder: PathBuf,
    device: Device,
}

/// Scenes whose phrases make the vocabulary.
const CORPUS_SCENES: u64 = 2000;
/// Room for every word of the generator.
const VOCABULARY: usize = 512;
/// PyTorch's default momentum of batch norm, which the reference keeps.
const STATISTICS_MOMENTUM: f32 = 0.1;
/// Batches over which statistics are measured anew for averaged values.
const STATISTICS_BATCHES: u64 = 12;
/// First scene of those batches: far behind any that training reaches.
const STATISTICS_FIRST: u64 = 1 << 40;

impl Run {
    /// Begins a run in `folder`, or goes on with the one that lies there.
    ///
    /// # Errors
    /// If the folder cannot be written, or holds the checkpoint of another recipe.
    pub fn open(folder: &Path, recipe: Recipe) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(|source| TrainError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let files = train_tokenizer(corpus(), VOCABULARY)?;
        let tokenizer = Tokenizer::from_json_bytes(&files.tokenizer_json)?;
        let config = builtin_config(files.vocabulary_size);
        let device = Device::flex();
        let parts = Blueprint::of(|source| {
            Mllmseg::load(source, &config)?;
            Auxiliary::load(source, &config)
        })?;
        let mut parameters = Parameters::initialise(&parts, recipe.seed);
        let done = checkpoint::load(folder, &recipe, &mut parameters)?.unwrap_or(0);
        Ok(Self {
            recipe,
            config,
            files,
            tokenizer,
            parameters,
            done,
            folder: folder.to_owned(),
            device,
        })
    }

    /// The values as they are now.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Steps already done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Steps in all.
    pub fn steps(&self) -> u64 {
        self.recipe.steps
    }

    /// Trains to the end, or until `report` returns false; a checkpoint is written either way.
    ///
    /// # Errors
    /// If a loss is not finite, or something cannot be written.
    pub fn train(&mut self, mut report: impl FnMut(Event) -> bool) -> Result<(), TrainError> {
        let optimiser = AdamW {
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            weight_decay: 0.05,
            clip_norm: 1.0,
            average_decay: 0.998,
        };
        let schedule = Schedule {
            peak: self.recipe.learning_rate,
            warm_up: self.recipe.warm_up,
            steps: self.recipe.steps,
            floor: 0.02,
        };
        let pools = worker_pools(self.recipe.workers)?;
        let mut go_on = true;
        while self.done < self.recipe.steps && go_on {
            let step = self.done + 1;
            let (losses, gradients, statistics) = self.measure(step, &pools)?;
            if let Some(key) = first_not_finite(&gradients) {
                return Err(TrainError::NotFinite { step, key });
            }
            let norm = optimiser.step(&mut self.parameters, &gradients, schedule.rate(step), step);
            for statistics in statistics {
                self.follow(&statistics, STATISTICS_MOMENTUM);
            }
            self.done = step;
            go_on = report(Event::Step { step, losses, norm });
            if step.is_multiple_of(self.recipe.every) || step == self.recipe.steps || !go_on {
                checkpoint::save(&self.folder, &self.recipe, &self.parameters, step)?;
                go_on &= report(Event::Saved { step });
                if step > self.recipe.sight_steps {
                    self.settle(&pools)?;
                    let tally = self.judge(&pools)?;
                    go_on &= report(Event::HeldOut { step, tally });
                    checkpoint::export(&self.folder, &self.config, &self.files, &self.parameters)?;
                }
            }
        }
        Ok(())
    }

    /// Losses and gradients of one step, the workers' shares averaged.
    fn measure(
        &self,
        step: u64,
        pools: &[rayon::ThreadPool],
    ) -> Result<(Losses, Gradients, Vec<step::Statistics>), TrainError> {
        let share = self.recipe.pictures / pools.len();
        let options = BatchOptions {
            pictures: share,
            phrases: self.recipe.phrases,
            masks: self.recipe.masks,
            split: Split::Train,
        };
        let sight_only = step <= self.recipe.sight_steps;
        let results = in_parallel(pools, |worker| {
            let first = (step - 1) * self.recipe.pictures as u64 + (worker * share) as u64;
            let prompts = self.prompts()?;
            let batch = Batch::draw(&options, first, &self.config, &prompts)?;
            step::step(
                &self.parameters,
                &batch,
                &self.config,
                &prompts,
                sight_only,
                &self.device,
            )
        });
        average(results.into_iter().collect::<Result<_, _>>()?)
    }

    /// Measures batch-norm statistics for the averaged values: theirs lag behind those of any step.
    fn settle(&mut self, pools: &[rayon::ThreadPool]) -> Result<(), TrainError> {
        let options = BatchOptions {
            pictures: self.recipe.pictures / pools.len(),
            phrases: self.recipe.phrases,
            masks: self.recipe.masks,
            split: Split::Train,
        };
        let batches = STATISTICS_BATCHES.div_ceil(pools.len() as u64);
        let measured = in_parallel(pools, |worker| {
            let prompts = self.prompts()?;
            let leaves = Leaves::constant(&self.parameters, Values::Average, &self.device);
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
                    measured.push((step::values(mean), step::values(variance)));
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
            if let Some(parameter) = self.parameters.get_mut(key) {
                parameter.average = values;
            }
        }
        Ok(())
    }

    /// Judges the averaged values on held-out scenes, at the model's own resolution.
    fn judge(&self, pools: &[rayon::ThreadPool]) -> Result<Tally, TrainError> {
        let share = self.recipe.held_out / pools.len();
        let tallies = in_parallel(pools, |worker| {
            let prompts = self.prompts()?;
            let leaves = Leaves::constant(&self.parameters, Values::Average, &self.device);
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
                let masks = step::values(activation::sigmoid(logits));
                let pixels = self.config.image_size.pow(2);
                let chosen = step::values(forward.decisions.argmax(1).float());
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

    /// Moves the running statistics of batch norm towards those of a batch.
    fn follow(&mut self, statistics: &step::Statistics, momentum: f32) {
        let count = statistics.count as f32;
        // PyTorch keeps the unbiased variance.
        let unbiased = count / (count - 1.0).max(1.0);
        let pairs = [
            (RUNNING_MEAN, &statistics.mean, 1.0),
            (RUNNING_VARIANCE, &statistics.variance, unbiased),
        ];
        for (key, measured, scale) in pairs {
            if let Some(parameter) = self.parameters.get_mut(key) {
                for (value, measured) in parameter.values.iter_mut().zip(measured) {
                    *value += momentum * (measured * scale - *value);
                }
            }
        }
    }

    fn prompts(&self) -> Result<PromptBuilder, TrainError> {
        Ok(PromptBuilder::new(
            self.tokenizer.clone(),
            Template::Phrase,
            self.config.image_tokens(),
        )?)
    }
}

const RUNNING_MEAN: &str = "res_decoder.conv1.1.running_mean";
const RUNNING_VARIANCE: &str = "res_decoder.conv1.1.running_var";

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

/// One pool of one thread for each worker: small products are faster whole on one thread than shared by two.
fn worker_pools(workers: usize) -> Result<Vec<rayon::ThreadPool>, TrainError> {
    let pool = |_| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map_err(TrainError::Threads)
    };
    (0..workers.max(1)).map(pool).collect()
}

fn in_parallel<T: Send>(pools: &[rayon::ThreadPool], work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let handles: Vec<_> = pools
            .iter()
            .enumerate()
            .map(|(worker, pool)| scope.spawn(move || pool.install(|| work(worker))))
            .collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, T>| match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        handles.into_iter().map(join).collect()
    })
}

/// The mean of the workers' losses and gradients.
fn average(
    results: Vec<StepResult>,
) -> Result<(Losses, Gradients, Vec<step::Statistics>), TrainError> {
    let share = 1.0 / results.len() as f32;
    let mut gradients = Gradients::new();
    let mut losses = Losses::default();
    let mut statistics = Vec::new();
    for result in results {
        losses.add(&result.losses, share);
        statistics.extend(result.statistics);
        for (key, values) in result.gradients {
            let sum = gradients
                .entry(key)
                .or_insert_with(|| vec![0.0; values.len()]);
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += share * value;
            }
        }
    }
    Ok((losses, gradients, statistics))
}

fn first_not_finite(gradients: &Gradients) -> Option<String> {
    let bad = gradients
        .iter()
        .find(|(_, values)| values.iter().any(|value| !value.is_finite()));
    bad.map(|(key, _)| key.clone())
}
