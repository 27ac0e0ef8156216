//! A Segment Anything model that is ready to be asked, and pictures it has looked at.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Tensor, TensorData};

use super::{
    Config, Frame, Sam, Token,
    recognise::{EFFICIENT_VIT_KEY, TINY_VIT_KEY, VIT_KEY},
};
use crate::{
    builtin,
    image::Image,
    internvl::ConfigError,
    mask::{Mask, MaskError, resize_bilinear},
    nn::{StoredTensors, TensorSource, Tensors},
    predictor::Options,
    weights::{Weights, WeightsError},
};

/// A Segment Anything model, loaded.
#[derive(Debug, Clone)]
pub struct SamPredictor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    config: Config,
    model: Sam,
    /// `(1, G², D)`.
    image_positions: Tensor<3>,
    unused: Vec<String>,
}

/// A picture that a model has looked at: a value to keep, share between threads, and ask.
#[derive(Debug, Clone)]
pub struct SamScene {
    model: Arc<Inner>,
    /// `(1, G², D)`.
    embedding: Tensor<3>,
    frame: Frame,
}

/// What to segment: at least a point or a box.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// Points on the object, and beside it.
    pub points: Vec<Point>,
    /// A box XYXY around the object, in pixels of the picture.
    pub box_px: Option<[f64; 4]>,
    /// Logits of an earlier mask, such as [`SamMasks::low_res`] has: [`SamScene::mask_side`] squared, row by row.
    pub mask: Option<Vec<f32>>,
}

/// A point of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// The place `(x, y)` in pixels of the picture.
    pub at_px: [f64; 2],
    /// What it says.
    pub label: Label,
}

/// What a point says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// The object is here.
    Foreground,
    /// The object is not here.
    Background,
}

/// The masks of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct SamMasks {
    /// The masks at the size of the picture: one, or several for an ambiguous prompt.
    pub masks: Vec<Mask>,
    /// The model's estimate of each mask's IoU with the object.
    pub scores: Vec<f32>,
    /// Each mask's logits as the decoder gives them, row by row, [`SamMasks::side`] squared.
    pub low_res: Vec<Vec<f32>>,
    /// Side of `low_res`.
    pub side: usize,
    frame: Frame,
}

/// Why a model cannot be loaded or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SamError {
    /// There is no such file or folder.
    #[error("`{path}` is not a model: there is no such file or folder")]
    NoModel {
        /// What was asked for.
        path: PathBuf,
    },
    /// The file holds some other network.
    #[error(
        "`{path}` is no Segment Anything network that refseg knows: it has neither `{VIT_KEY}` (SAM) \
         nor `{TINY_VIT_KEY}` (MobileSAM) nor `{EFFICIENT_VIT_KEY}` (EfficientViT-SAM)"
    )]
    Unknown {
        /// The weights.
        path: PathBuf,
    },
    /// A tensor that tells sizes is missing.
    #[error("`{path}`: no tensor `{key}`, from which sizes are read")]
    Incomplete {
        /// The weights.
        path: PathBuf,
        /// The tensor.
        key: String,
    },
    /// A tensor that tells sizes has another number of dimensions, or an empty one.
    #[error("`{path}`: `{key}` is {found:?}, expected {expected} dimensions and none of them 0")]
    Rank {
        /// The weights.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// How many dimensions it should have.
        expected: usize,
    },
    /// Weights to lay over a model hold something that it does not have.
    #[error("`{path}`: `{key}` is no tensor of the model it is to be laid over")]
    Foreign {
        /// The weights to lay over it.
        path: PathBuf,
        /// The tensor.
        key: String,
    },
    /// `config.json` is at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are at fault.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A mask cannot be made.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A prompt says nothing.
    #[error("a prompt is empty: give at least a point or a box")]
    EmptyPrompt,
    /// A point or the corner of a box is not in the picture.
    #[error("{what} ({x}, {y}) is outside the picture, which is {width}x{height} pixels")]
    Outside {
        /// A point, or which corner.
        what: &'static str,
        /// Its place.
        x: f64,
        /// Its place.
        y: f64,
        /// Width of the picture.
        width: usize,
        /// Height of the picture.
        height: usize,
    },
    /// The corners of a box are swapped.
    #[error(
        "the box {found:?} has its corners swapped; expected [x1, y1, x2, y2] with x1 ≤ x2 and y1 ≤ y2"
    )]
    Box {
        /// The box.
        found: [f64; 4],
    },
    /// A mask to begin with is not of the model's size.
    #[error(
        "the mask input has {found} values; expected {side} squared, the size of this model's mask logits"
    )]
    MaskInput {
        /// Values given.
        found: usize,
        /// Side of what is expected.
        side: usize,
    },
    /// A mask to begin with holds something that is no number.
    #[error("the mask input holds {value} at index {index}; expected finite logits")]
    MaskValue {
        /// The value.
        value: f32,
        /// Its place, row-major.
        index: usize,
    },
    /// The network gave numbers that are none.
    #[error("`{model}` computed values that are not numbers: its weights do not belong together")]
    NotANumber {
        /// The model.
        model: String,
    },
}

/// Sizes and weights of a model, as [`SamPredictor::load`] finds them: what training starts from.
///
/// # Errors
/// If there is no such model, or a file of it is missing, damaged or does not fit the others.
pub fn open_checkpoint(model: impl AsRef<Path>) -> Result<(Config, Weights), SamError> {
    let path = model.as_ref();
    let weights = open(path)?;
    Ok((config_of(path, &weights)?, weights))
}

/// Sizes of a model, from its `config.json` or its tensors.
fn config_of(path: &Path, weights: &Weights) -> Result<Config, SamError> {
    if path.join("config.json").exists() {
        return Ok(Config::from_folder(path)?);
    }
    let shape_of = |key: &str| Some(weights.info(key)?.shape.clone());
    Config::recognise(weights.path(), &shape_of)
}

/// Prompts decoded at once: bounds memory, and is enough to keep every core busy.
const PROMPTS_AT_ONCE: usize = 8;
/// What MobileSAM's checkpoint has beside the network: the head of a classifier.
const NEEDLESS: [&str; 2] = ["image_encoder.norm_head.", "image_encoder.head."];

impl SamPredictor {
    /// Loads a model: an official checkpoint (`.pth`, `.pt`, `.safetensors`), or a folder; or that of
    /// the pair called `builtin-sam4mllm`.
    ///
    /// A folder has its weights under one of the names that [`Weights::open`] knows. Where it has a
    /// `config.json`, sizes are taken from there; otherwise, and for a file, from the tensors.
    ///
    /// # Errors
    /// If there is no such model, or a file of it is missing, damaged or does not fit the others.
    pub fn load(model: impl AsRef<Path>, options: &Options) -> Result<Self, SamError> {
        let path = model.as_ref();
        if builtin::is(builtin::PAIR_NAME, path) {
            return builtin::sam(options);
        }
        Self::assemble(path, open(path)?, options)
    }

    /// Loads a model and lays fine-tuned tensors over it, such as those of a decoder.
    ///
    /// The prefix `model.`, under which training code keeps the network, is left out of their names.
    /// The built-in pair's takes none.
    ///
    /// # Errors
    /// As [`SamPredictor::load`], and if `tuned` holds a tensor that the model does not have.
    pub fn load_tuned(
        model: impl AsRef<Path>,
        tuned: impl AsRef<Path>,
        options: &Options,
    ) -> Result<Self, SamError> {
        let (path, tuned) = (model.as_ref(), tuned.as_ref());
        let weights = open(path)?;
        let over = open(tuned)?.renamed(|key| key.replace("model.", ""))?;
        if let Some(key) = over.keys().find(|key| !weights.contains(key)) {
            return Err(SamError::Foreign {
                path: tuned.to_owned(),
                key: key.to_owned(),
            });
        }
        Self::assemble(path, weights.overlaid(over), options)
    }

    fn assemble(path: &Path, weights: Weights, options: &Options) -> Result<Self, SamError> {
        let device = options.device();
        let config = config_of(path, &weights)?;
        let source = if path.join("config.json").exists() {
            StoredTensors::new(&weights, device)
        } else {
            StoredTensors::without_config(&weights, device)
        };
        Self::of_stored(path.display().to_string(), config, source, options)
    }

    /// The model of these sizes and a checkpoint, which may have more than the network needs.
    pub(crate) fn of_stored(
        name: String,
        config: Config,
        source: StoredTensors<'_>,
        options: &Options,
    ) -> Result<Self, SamError> {
        let source = source.packed(options.precision);
        let model = Sam::load(&Tensors::root(&source), &config)?;
        let mut unused = source.unused();
        unused.retain(|key| !NEEDLESS.iter().any(|prefix| key.starts_with(prefix)));
        Ok(Self::joined(name, config, model, unused))
    }

    /// The model of these sizes and tensors: a checkpoint's, or those of a training run.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn new(
        name: String,
        config: Config,
        source: &dyn TensorSource,
    ) -> Result<Self, WeightsError> {
        let model = Sam::load(&Tensors::root(source), &config)?;
        Ok(Self::joined(name, config, model, Vec::new()))
    }

    fn joined(name: String, config: Config, model: Sam, unused: Vec<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                name,
                image_positions: model.prompts.image_positions(),
                config,
                model,
                unused,
            }),
        }
    }

    /// The file or folder the model was loaded from.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Tensors of the checkpoint that no part of the network uses: worth a warning.
    pub fn unused_tensors(&self) -> &[String] {
        &self.inner.unused
    }

    /// Looks at a picture: the slow part, once per picture.
    ///
    /// # Errors
    /// If the network computes values that are not numbers.
    pub fn encode(&self, image: &Image) -> Result<SamScene, SamError> {
        let Inner { config, model, .. } = &*self.inner;
        let side = config.encoder.image_size();
        let pixels = Frame::new(image, side).pixels(image, config);
        let pixels = TensorData::new(pixels, [1, 3, side, side]);
        let pixels = Tensor::from_data(pixels, &self.inner.image_positions.device());
        let embedding = model.encoder.forward(pixels, &mut |_, _| {});
        // Checked here, so that a picture which cannot be asked about is no scene.
        self.inner.values(embedding.clone())?;
        Ok(SamScene {
            model: Arc::clone(&self.inner),
            embedding,
            frame: Frame::new(image, config.prompt.frame),
        })
    }
}

impl SamScene {
    /// Width of the picture in pixels.
    pub fn width(&self) -> u32 {
        self.frame.picture().1 as u32
    }

    /// Height of the picture in pixels.
    pub fn height(&self) -> u32 {
        self.frame.picture().0 as u32
    }

    /// Memory that this value holds, in bytes, the shared model aside.
    pub fn bytes(&self) -> usize {
        self.embedding.shape().num_elements() * size_of::<f32>()
    }

    /// Side of the mask logits that the model gives and takes.
    pub fn mask_side(&self) -> usize {
        self.model.model.prompts.mask_side()
    }

    /// Segments what a prompt means.
    ///
    /// `several` asks for several masks (three in published models), since a single point may mean
    /// the whole or a part; otherwise the answer is the one mask that fits best.
    ///
    /// # Errors
    /// If the prompt has neither point nor box, or says something that cannot be about this picture.
    pub fn prompt(&self, prompt: &Prompt, several: bool) -> Result<SamMasks, SamError> {
        let mut all = self.prompt_many(std::slice::from_ref(prompt), several)?;
        Ok(all.remove(0))
    }

    /// Segments what each prompt means on its own, several prompts in one pass.
    ///
    /// # Errors
    /// As [`SamScene::prompt`].
    pub fn prompt_many(
        &self,
        prompts: &[Prompt],
        several: bool,
    ) -> Result<Vec<SamMasks>, SamError> {
        let tokens = prompts
            .iter()
            .map(|prompt| self.tokens(prompt))
            .collect::<Result<Vec<_>, _>>()?;
        let mut answers = Vec::with_capacity(prompts.len());
        while answers.len() < prompts.len() {
            let first = answers.len();
            let fits = |&i: &usize| {
                tokens[i].len() == tokens[first].len()
                    && prompts[i].mask.is_some() == prompts[first].mask.is_some()
            };
            let last = prompts.len().min(first + PROMPTS_AT_ONCE);
            let group = first..first + (first..last).take_while(fits).count();
            answers.extend(self.decode(&prompts[group.clone()], &tokens[group], several)?);
        }
        Ok(answers)
    }

    /// Answers prompts with equally many tokens, all of them with a mask or none.
    fn decode(
        &self,
        prompts: &[Prompt],
        tokens: &[Vec<(Token, [f32; 2])>],
        several: bool,
    ) -> Result<Vec<SamMasks>, SamError> {
        let Inner {
            model,
            image_positions,
            config,
            ..
        } = &*self.model;
        let masks: Vec<f32> = prompts
            .iter()
            .flat_map(|p| p.mask.iter().flatten())
            .copied()
            .collect();
        let side = self.mask_side();
        let masks = (!masks.is_empty()).then(|| {
            let masks = TensorData::new(masks, [prompts.len(), 1, side, side]);
            Tensor::from_data(masks, &self.embedding.device())
        });
        let decoded = model.decoder.forward(
            self.embedding.clone(),
            image_positions,
            model.prompts.sparse(tokens),
            model.prompts.dense(masks),
            &mut |_, _| {},
        );
        // The first mask is for prompts that mean one thing.
        let (first, count) = if several {
            (1, config.decoder.multimasks)
        } else {
            (0, 1)
        };
        let logits = self.model.values(decoded.logits.narrow(1, first, count))?;
        let scores = self.model.values(decoded.scores.narrow(1, first, count))?;
        logits
            .chunks_exact(count * side * side)
            .zip(scores.chunks_exact(count))
            .map(|(logits, scores)| {
                let low_res: Vec<Vec<f32>> = logits
                    .chunks_exact(side * side)
                    .map(<[f32]>::to_vec)
                    .collect();
                let masks = low_res.iter().map(|logits| self.mask(logits));
                Ok(SamMasks {
                    masks: masks.collect::<Result<_, MaskError>>()?,
                    scores: scores.to_vec(),
                    low_res,
                    side,
                    frame: self.frame,
                })
            })
            .collect()
    }

    fn mask(&self, logits: &[f32]) -> Result<Mask, MaskError> {
        let logits = self.frame.cut(logits, self.mask_side())?;
        let threshold = self.model.config.mask_threshold;
        Mask::from_logits(
            &logits,
            self.frame.inside(),
            self.frame.picture(),
            threshold,
        )
    }

    /// A prompt's points, then its box, in the frame.
    fn tokens(&self, prompt: &Prompt) -> Result<Vec<(Token, [f32; 2])>, SamError> {
        if prompt.points.is_empty() && prompt.box_px.is_none() {
            return Err(SamError::EmptyPrompt);
        }
        let mut tokens = Vec::with_capacity(prompt.points.len() + 2);
        for point in &prompt.points {
            let kind = match point.label {
                Label::Foreground => Token::Foreground,
                Label::Background => Token::Background,
            };
            tokens.push((kind, self.place("the point", point.at_px)?));
        }
        match prompt.box_px {
            Some(found @ [x1, y1, x2, y2]) => {
                let corners = [
                    (
                        Token::UpperLeft,
                        self.place("the box's first corner", [x1, y1])?,
                    ),
                    (
                        Token::LowerRight,
                        self.place("the box's second corner", [x2, y2])?,
                    ),
                ];
                if x1 > x2 || y1 > y2 {
                    return Err(SamError::Box { found });
                }
                tokens.extend(corners);
            }
            // Points alone were trained with one that says nothing behind them.
            None => tokens.push((Token::Nothing, [0.0; 2])),
        }
        self.check_mask(prompt)?;
        Ok(tokens)
    }

    fn place(&self, what: &'static str, [x, y]: [f64; 2]) -> Result<[f32; 2], SamError> {
        let (height, width) = self.frame.picture();
        let is_inside = (0.0..=width as f64).contains(&x) && (0.0..=height as f64).contains(&y);
        if is_inside {
            Ok(self.frame.place([x, y]))
        } else {
            Err(SamError::Outside {
                what,
                x,
                y,
                width,
                height,
            })
        }
    }

    fn check_mask(&self, prompt: &Prompt) -> Result<(), SamError> {
        let Some(mask) = &prompt.mask else {
            return Ok(());
        };
        let side = self.mask_side();
        if mask.len() != side * side {
            return Err(SamError::MaskInput {
                found: mask.len(),
                side,
            });
        }
        match mask.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(index) => Err(SamError::MaskValue {
                value: mask[index],
                index,
            }),
        }
    }
}

impl SamMasks {
    /// Which mask the model thinks best; the first of equals.
    pub fn best(&self) -> usize {
        let better = |best: usize, i: usize| {
            if self.scores[i] > self.scores[best] {
                i
            } else {
                best
            }
        };
        (0..self.scores.len()).fold(0, better)
    }

    /// The logits of mask `index` at the size of the picture, row by row: where they are above the
    /// threshold, the mask is.
    ///
    /// # Errors
    /// None, unless `low_res` was changed.
    ///
    /// # Panics
    /// If there is no such mask.
    pub fn logits(&self, index: usize) -> Result<Vec<f32>, MaskError> {
        self.frame.logits(&self.low_res[index], self.side)
    }

    /// The probabilities of mask `index`, with the picture stretched to a square of
    /// [`SamMasks::side`], as other methods give theirs. The mask itself is sharper.
    ///
    /// # Errors
    /// As [`SamMasks::logits`].
    ///
    /// # Panics
    /// If there is no such mask.
    pub fn probabilities(&self, index: usize) -> Result<Vec<f32>, MaskError> {
        let square = (self.side, self.side);
        let logits = resize_bilinear(&self.logits(index)?, self.frame.picture(), square)?;
        let probability = |logit: &f32| 1.0 / (1.0 + (-logit).exp());
        Ok(logits.iter().map(probability).collect())
    }
}

impl Inner {
    fn values<const R: usize>(&self, tensor: Tensor<R>) -> Result<Vec<f32>, SamError> {
        let not_numbers = || SamError::NotANumber {
            model: self.name.clone(),
        };
        let values: Vec<f32> = tensor
            .into_data()
            .try_into_vec()
            .map_err(|_| not_numbers())?;
        if values.iter().any(|value| value.is_nan()) {
            Err(not_numbers())
        } else {
            Ok(values)
        }
    }
}

/// Opens the weights of a file or a folder.
fn open(path: &Path) -> Result<Weights, SamError> {
    if path.is_dir() {
        Ok(Weights::open(path)?)
    } else if path.exists() {
        Ok(Weights::open_file(path)?)
    } else {
        Err(SamError::NoModel {
            path: path.to_owned(),
        })
    }
}
