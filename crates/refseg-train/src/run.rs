//! The loop: batches in, parameters out, and nothing lost when it is killed.
//!
//! What is trained, and on what, is a [`Task`]; the loop knows neither. A step is made of passes.
//! Passes run on workers, each of which has threads of its own, and their gradients are averaged
//! in the order of the passes: how many workers there are changes nothing.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use refseg::{Image, Mask, mask::THRESHOLD, predictor::Predictor};
use refseg_data::{
    evaluate::{Example, Examples},
    metrics::Tally,
};

use crate::{
    TrainError, checkpoint,
    losses::Losses,
    optimiser::{Optimiser, Schedule},
    parameters::{Gradients, Parameter, Parameters},
};

/// Something that is trained.
pub trait Task: Sync {
    /// What a pass is computed on.
    type Batch: Send;

    /// Prepares a pass of a step (counted from 1). The same numbers give the same batch: nothing
    /// else is random.
    ///
    /// # Errors
    /// If the data is at fault.
    fn batch(&self, step: u64, pass: usize) -> Result<Self::Batch, TrainError>;

    /// Losses and gradients of a pass.
    ///
    /// # Errors
    /// If a loss is not finite.
    fn measure(
        &self,
        parameters: &Parameters,
        batch: Self::Batch,
        step: u64,
        pass: usize,
    ) -> Result<Measured, TrainError>;

    /// Whether there is a model to speak of after `step`.
    fn is_usable(&self, step: u64) -> bool {
        let _ = step;
        true
    }

    /// Judges what has been learned, and may settle what only evaluation needs; `None` if there
    /// is nothing to judge it on.
    ///
    /// # Errors
    /// If the data is at fault.
    fn judge(
        &self,
        parameters: &mut Parameters,
        pools: &[rayon::ThreadPool],
    ) -> Result<Option<Tally>, TrainError>;

    /// The same held-out pictures each time, and what the model says of them now.
    ///
    /// # Errors
    /// If the data is at fault.
    fn samples(&self, parameters: &Parameters) -> Result<Vec<Sample>, TrainError>;

    /// Writes the model as anyone may use it into a folder.
    ///
    /// # Errors
    /// If it cannot be written.
    fn export(&self, folder: &Path, parameters: &Parameters) -> Result<(), TrainError>;

    /// What the run was begun with: a run in the same folder must be begun with the same.
    fn settings(&self) -> serde_json::Value;

    /// Whether a tensor may be missing in an older state of the same run.
    fn is_optional(&self, key: &str) -> bool {
        let _ = key;
        false
    }
}

/// What a run computes on, whatever it learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// Passes at once.
    pub count: usize,
    /// Threads of each.
    pub threads: usize,
    /// Threads that read pictures ahead.
    pub loaders: usize,
}

/// How long a run is, and what it computes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Steps in all.
    pub steps: u64,
    /// Passes of a step.
    pub passes: usize,
    /// Workers that passes are shared among.
    pub workers: usize,
    /// Threads of each worker.
    pub threads: usize,
    /// Threads that prepare batches ahead.
    pub loaders: usize,
    /// Steps between checkpoints and evaluations.
    pub every: u64,
    /// How parameters follow their gradients.
    pub optimiser: Optimiser,
    /// The learning rate over time.
    pub schedule: Schedule,
}

/// What came out of a pass.
#[derive(Debug)]
pub struct Measured {
    /// Losses.
    pub losses: Losses,
    /// Gradients of their weighted sum.
    pub gradients: Gradients,
    /// Batch-norm statistics, in the order in which running ones follow them.
    pub statistics: Vec<Statistics>,
    /// How much was computed.
    pub work: Work,
}

/// How much was computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Pictures.
    pub pictures: u64,
    /// Tokens of the language model, filling included.
    pub tokens: u64,
}

/// Mean and biased variance of the mask decoder's convolution over one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `(patch²)`.
    pub mean: Vec<f32>,
    /// `(patch²)`, biased.
    pub variance: Vec<f32>,
    /// Values behind each.
    pub count: usize,
}

/// What a run reports while it goes.
#[derive(Debug, Clone)]
pub enum Event {
    /// A step is done.
    Step {
        /// Counted from 1.
        step: u64,
        /// Losses, averaged over the passes.
        losses: Losses,
        /// Norm of the gradient before clipping.
        norm: f64,
        /// Learning rate.
        rate: f64,
        /// How much was computed.
        work: Work,
    },
    /// A checkpoint is written, and the model judged, before the next step.
    Pausing {
        /// After this step.
        step: u64,
    },
    /// What was held out was judged.
    HeldOut {
        /// After this step.
        step: u64,
        /// What came out.
        tally: Tally,
        /// Whether no evaluation before gave a better cIoU; the model is then kept.
        is_best: bool,
        /// The same held-out pictures each time, and what was answered.
        samples: Vec<Sample>,
    },
    /// A checkpoint lies on disk.
    Saved {
        /// After this step.
        step: u64,
    },
}

/// A held-out picture, an expression about it, and what the model answered.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The picture's name.
    pub picture: String,
    /// The pixels.
    pub image: Image,
    /// The expression.
    pub phrase: String,
    /// What it means.
    pub truth: Mask,
    /// Whether the model says that there is something.
    pub found: bool,
    /// What the model drew, also where it says that there is nothing.
    pub drawn: Mask,
}

/// How many pictures are shown after each evaluation.
pub(crate) const SAMPLES: usize = 12;

/// Asks a model for one expression of each of the first pictures.
///
/// # Errors
/// If a picture cannot be read, or the model's values are not finite.
pub(crate) fn samples(
    predictor: &Predictor,
    examples: &dyn Examples,
) -> Result<Vec<Sample>, TrainError> {
    let mut samples = Vec::new();
    for picture in 0..SAMPLES.min(examples.pictures()) {
        let Example {
            id,
            image,
            mut expressions,
        } = examples.example(picture)?;
        if expressions.is_empty() {
            continue;
        }
        // Not always the first, which is the plainest in many data sets.
        let asked = expressions.swap_remove(picture % expressions.len());
        let answer = predictor
            .encode(&image)
            .and_then(|scene| scene.segment(&asked.phrase))
            .map_err(|error| TrainError::Model(Box::new(error)))?;
        let (side, truth) = (answer.side, asked.truth.mask);
        let (height, width) = (truth.height(), truth.width());
        let probabilities = &answer.probabilities;
        samples.push(Sample {
            picture: id,
            drawn: Mask::from_probabilities(probabilities, side, side, height, width, THRESHOLD)?,
            image,
            phrase: asked.phrase,
            truth,
            found: answer.found,
        });
    }
    Ok(samples)
}

/// A task on its way.
#[derive(Debug)]
pub struct Run<T> {
    task: T,
    plan: Plan,
    parameters: Parameters,
    done: u64,
    folder: PathBuf,
    /// Held while the run lives, so that no other works in the same folder.
    _lock: File,
}

/// Folder of the model that a run has come to.
pub const MODEL: &str = "model";
/// Folder of the model that was best on what is held out.
pub const BEST: &str = "best";
/// Batches that are ready and wait, for each thread that prepares them.
const BATCHES_AHEAD: usize = 2;
/// PyTorch's default momentum of batch norm, which the reference keeps.
const STATISTICS_MOMENTUM: f32 = 0.1;
/// Keys of the running statistics.
pub(crate) const RUNNING_MEAN: &str = "res_decoder.conv1.1.running_mean";
pub(crate) const RUNNING_VARIANCE: &str = "res_decoder.conv1.1.running_var";

impl<T: Task> Run<T> {
    /// Begins a run in `folder` with these parameters, or goes on with the one that lies there.
    ///
    /// # Errors
    /// If the folder cannot be written, another run works in it, or it holds the checkpoint of a
    /// run with other settings.
    pub fn open(
        folder: &Path,
        task: T,
        plan: Plan,
        mut parameters: Parameters,
    ) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(|source| TrainError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let lock = lock(folder)?;
        let is_optional = |key: &str| task.is_optional(key);
        let done = checkpoint::load(folder, &task.settings(), &mut parameters, is_optional)?;
        Ok(Self {
            task,
            plan,
            parameters,
            done: done.unwrap_or(0),
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// What is trained.
    pub fn task(&self) -> &T {
        &self.task
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Highest learning rate.
    pub fn peak_rate(&self) -> f64 {
        self.plan.schedule.peak
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
        self.plan.steps
    }

    /// Trains to the end, or until `report` returns false; a checkpoint is written either way.
    ///
    /// # Errors
    /// If something is not finite, the data is at fault, or a file cannot be written.
    pub fn train(&mut self, report: impl FnMut(Event) -> bool) -> Result<(), TrainError> {
        let Self {
            task,
            plan,
            parameters,
            done,
            folder,
            ..
        } = self;
        let pools = worker_pools(plan.workers, plan.threads)?;
        let passes = plan.passes as u64;
        let next = AtomicU64::new(*done * passes);
        let end = plan.steps * passes;
        let loaders = plan.loaders.max(1);
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(BATCHES_AHEAD * loaders);
            for _ in 0..loaders {
                let (sender, next, task) = (sender.clone(), &next, &*task);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= end {
                            break;
                        }
                        let batch = task.batch(number / passes + 1, (number % passes) as usize);
                        // Nobody listens any more once the run has stopped.
                        if sender.send((number, batch)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let batches = InOrder {
                receiver,
                waiting: BTreeMap::new(),
                next: *done * passes,
            };
            steps(
                task, plan, parameters, done, folder, &pools, batches, report,
            )
        })
    }

    /// Runs some steps and throws them away: what a step costs. Returns the losses.
    ///
    /// # Errors
    /// As [`Run::train`].
    pub fn rehearse(&self, steps: u64) -> Result<Vec<Losses>, TrainError> {
        let pools = worker_pools(self.plan.workers, self.plan.threads)?;
        let mut losses = Vec::new();
        for step in 1..=steps {
            let batches = (0..self.plan.passes).map(|pass| self.task.batch(step, pass));
            let batches: Vec<_> = batches.collect::<Result<_, _>>()?;
            let (of_step, ..) = one_step(&self.task, &self.parameters, step, &pools, batches)?;
            losses.push(of_step);
        }
        Ok(losses)
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of a run, taken apart for its threads"
)]
fn steps<T: Task>(
    task: &T,
    plan: &Plan,
    parameters: &mut Parameters,
    done: &mut u64,
    folder: &Path,
    pools: &[rayon::ThreadPool],
    mut batches: InOrder<T::Batch>,
    mut report: impl FnMut(Event) -> bool,
) -> Result<(), TrainError> {
    let mut go_on = true;
    while *done < plan.steps && go_on {
        let step = *done + 1;
        let taken = batches.take(plan.passes)?;
        let (losses, gradients, statistics, work) = one_step(task, parameters, step, pools, taken)?;
        if let Some(key) = first_not_finite(&gradients) {
            return Err(TrainError::NotFinite { step, key });
        }
        let rate = plan.schedule.rate(step);
        let norm = plan.optimiser.step(parameters, &gradients, rate, step);
        for statistics in statistics {
            follow(parameters, &statistics);
        }
        *done = step;
        go_on = report(Event::Step {
            step,
            losses,
            norm,
            rate,
            work,
        });
        if step.is_multiple_of(plan.every) || step == plan.steps || !go_on {
            go_on &= report(Event::Pausing { step });
            checkpoint::save(folder, &task.settings(), parameters, step)?;
            go_on &= report(Event::Saved { step });
            if !task.is_usable(step) {
                continue;
            }
            let judged = task.judge(parameters, pools)?;
            task.export(&folder.join(MODEL), parameters)?;
            if let Some(tally) = judged {
                let is_best = checkpoint::is_best(folder, step, &tally)?;
                if is_best {
                    task.export(&folder.join(BEST), parameters)?;
                }
                go_on &= report(Event::HeldOut {
                    step,
                    tally,
                    is_best,
                    samples: task.samples(parameters)?,
                });
            }
        }
    }
    Ok(())
}

/// Losses, gradients and statistics of the passes of a step, averaged in their order.
fn one_step<T: Task>(
    task: &T,
    parameters: &Parameters,
    step: u64,
    pools: &[rayon::ThreadPool],
    batches: Vec<T::Batch>,
) -> Result<(Losses, Gradients, Vec<Statistics>, Work), TrainError> {
    let share = 1.0 / batches.len() as f32;
    let mut losses = Losses::default();
    let mut gradients = Gradients::new();
    let mut statistics = Vec::new();
    let mut work = Work::default();
    let mut batches = batches.into_iter().enumerate();
    loop {
        let at_once: Vec<_> = batches.by_ref().take(pools.len()).collect();
        if at_once.is_empty() {
            return Ok((losses, gradients, statistics, work));
        }
        let measured = in_parallel(pools, at_once, |(pass, batch)| {
            task.measure(parameters, batch, step, pass)
        });
        for measured in measured {
            let measured = measured.map_err(|error| named(error, step, parameters))?;
            losses.add(&measured.losses, share);
            statistics.extend(measured.statistics);
            work.pictures += measured.work.pictures;
            work.tokens += measured.work.tokens;
            for (key, values) in measured.gradients {
                let sum = gradients
                    .entry(key)
                    .or_insert_with(|| vec![0.0; values.len()]);
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += share * value;
                }
            }
        }
    }
}

/// Says of a loss that is not finite where that began: at the first parameter that is not, in the
/// order of their keys, or else at the loss.
fn named(error: TrainError, step: u64, parameters: &Parameters) -> TrainError {
    let TrainError::LossNotFinite { loss } = error else {
        return error;
    };
    let is_bad = |parameter: &Parameter| parameter.values.iter().any(|value| !value.is_finite());
    let bad = parameters.iter().find(|(_, parameter)| is_bad(parameter));
    let tensor = match bad {
        Some((key, _)) => format!("the parameter `{key}`"),
        None => format!("the loss `{loss}`"),
    };
    TrainError::Diverged { step, tensor }
}

/// Judges on the threads of the only worker; where there are several, on all threads there are.
pub(crate) fn judge_on<R: Send>(
    pools: &[rayon::ThreadPool],
    judge: impl FnOnce() -> R + Send,
) -> R {
    match pools {
        [pool] => pool.install(judge),
        _ => judge(),
    }
}

/// Batches in the order of their numbers, from threads that prepare them in any.
struct InOrder<B> {
    receiver: Receiver<(u64, Result<B, TrainError>)>,
    waiting: BTreeMap<u64, Result<B, TrainError>>,
    next: u64,
}

impl<B> InOrder<B> {
    fn take(&mut self, count: usize) -> Result<Vec<B>, TrainError> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            if let Some(batch) = self.waiting.remove(&self.next) {
                taken.push(batch?);
                self.next += 1;
                continue;
            }
            let (number, batch) = self.receiver.recv().map_err(|_| TrainError::Loaders)?;
            self.waiting.insert(number, batch);
        }
        Ok(taken)
    }
}

/// Moves the running statistics of batch norm towards those of a batch.
fn follow(parameters: &mut Parameters, statistics: &Statistics) {
    let count = statistics.count as f32;
    // PyTorch keeps the unbiased variance.
    let unbiased = count / (count - 1.0).max(1.0);
    let pairs = [
        (RUNNING_MEAN, &statistics.mean, 1.0),
        (RUNNING_VARIANCE, &statistics.variance, unbiased),
    ];
    for (key, measured, scale) in pairs {
        if let Some(parameter) = parameters.get_mut(key) {
            for (value, measured) in parameter.values.iter_mut().zip(measured) {
                *value += STATISTICS_MOMENTUM * (measured * scale - *value);
            }
        }
    }
}

/// Threads for each worker: several small products are faster whole on one thread each than
/// shared by all.
fn worker_pools(workers: usize, threads: usize) -> Result<Vec<rayon::ThreadPool>, TrainError> {
    let pool = |_| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .build()
            .map_err(TrainError::Threads)
    };
    (0..workers.max(1)).map(pool).collect()
}

/// Works on each item with the threads of one pool.
pub(crate) fn in_parallel<I: Send, O: Send>(
    pools: &[rayon::ThreadPool],
    items: Vec<I>,
    work: impl Fn(I) -> O + Sync,
) -> Vec<O> {
    let work = &work;
    thread::scope(|scope| {
        let handles: Vec<_> = pools
            .iter()
            .zip(items)
            .map(|(pool, item)| scope.spawn(move || pool.install(|| work(item))))
            .collect();
        let join = |handle: thread::ScopedJoinHandle<'_, O>| match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        handles.into_iter().map(join).collect()
    })
}

fn first_not_finite(gradients: &Gradients) -> Option<String> {
    let bad = gradients
        .iter()
        .find(|(_, values)| values.iter().any(|value| !value.is_finite()));
    bad.map(|(key, _)| key.clone())
}

/// Takes the folder for this run alone. The lock goes with the process, however it ends.
fn lock(folder: &Path) -> Result<File, TrainError> {
    let path = folder.join("lock");
    let failed = |source| TrainError::Folder {
        path: path.clone(),
        source,
    };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(TrainError::Busy {
            path: folder.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}
