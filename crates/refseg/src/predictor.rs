//! A model that is ready to be asked, and pictures it has looked at.
//!
//! The language model is causal and the picture comes first, so everything up
//! to the first word of a phrase is the same for every phrase:
//! [`Predictor::encode`] computes it once, and each phrase then costs a few
//! tokens and the phrase's half of the mask decoder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Device, Tensor, TensorData, activation};

use crate::{
    builtin,
    chat::ChatError,
    image::Image,
    internvl::{Config, ConfigError},
    language::{KeyValues, causal_mask},
    mask::{Mask, MaskError, THRESHOLD, resize_bilinear},
    mllmseg::{DecodedImage, Mllmseg},
    nn::{Precision, StoredTensors, TensorSource},
    prompt::{Marker, Prefix, PromptBuilder, PromptError, Suffix, Template},
    sam::SamError,
    sam4mllm::{Pair, PairError},
    segmenter::{Segmentable, Segmenter},
    tokenizer::{Tokenizer, TokenizerError},
    weights::{Weights, WeightsError},
};

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Where it computes.
    pub processor: Processor,
    /// In which numbers weights are kept.
    pub precision: Precision,
}

impl Options {
    /// The framework's name for where it computes.
    pub(crate) fn device(&self) -> Device {
        match self.processor {
            Processor::Cpu => Device::flex(),
        }
    }
}

/// Where a model computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Processor {
    /// The CPU.
    #[default]
    Cpu,
}

/// A model, loaded.
#[derive(Debug, Clone)]
pub struct Predictor {
    inner: Arc<Inner>,
    unused: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    config: Config,
    model: Mllmseg,
    prompts: PromptBuilder,
    prefix: Prefix,
}

/// A picture that a model has looked at: a value to keep, share between threads, and ask.
#[derive(Debug, Clone)]
pub struct Scene {
    model: Arc<Inner>,
    /// The language model's memory of everything before the phrases.
    seen: KeyValues,
    /// The mask decoder's half of the picture.
    image: DecodedImage,
    width: u32,
    height: u32,
}

/// The answer to one phrase.
#[derive(Debug, Clone, PartialEq)]
pub struct Segmentation {
    /// The phrase, as it was asked.
    pub phrase: String,
    /// Whether the model says that something fits: `[REJ]` is not its likeliest next token, or it
    /// answers with an object.
    pub found: bool,
    /// Probability of `[SEG]` against `[REJ]`; of a model that answers in words, that it begins to
    /// name an object.
    pub presence: f32,
    /// Mean probability of the pixels in the mask; where Segment Anything drew it, the network's own
    /// estimate of its IoU, on average over objects. 0 if there is no pixel.
    pub score: f32,
    /// What fits, at the size of the picture; empty if nothing was found.
    pub mask: Mask,
    /// Box XYXY around the mask in pixel edges of the picture; `None` if the mask is empty.
    pub box_px: Option<[f32; 4]>,
    /// The mask's probabilities as the model gives them, also when nothing was found: row by row, [`Segmentation::side`] squared.
    pub probabilities: Vec<f32>,
    /// Side of `probabilities`.
    pub side: usize,
    /// Whether the mask is where `probabilities`, resized, reach one half. Segment Anything's masks
    /// have borders of their own, from logits at the size of the picture.
    pub from_probabilities: bool,
    /// What could not be read of an answer in words.
    pub unread: Vec<String>,
}

/// Why a model cannot be loaded or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictorError {
    /// There is no such folder.
    #[error(
        "`{path}` is not a model: there is no such folder, and the models with a name are `builtin` and `builtin-sam4mllm`"
    )]
    NoModel {
        /// What was asked for.
        path: PathBuf,
    },
    /// `config.json` is at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are at fault.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer is at fault.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A prompt cannot be written.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A mask cannot be made.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The tokenizer has ids that the model has no embedding for.
    #[error(
        "`{model}`: the tokenizer has {tokens} tokens, but `llm_config.vocab_size` is {vocabulary}; is it another model's tokenizer?"
    )]
    OtherTokenizer {
        /// The model.
        model: String,
        /// Largest id plus one.
        tokens: usize,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A phrase without words.
    #[error("a phrase is empty: say what to look for, such as \"the red ring\"")]
    EmptyPhrase,
    /// A phrase far longer than any prompt.
    #[error(
        "a phrase is {bytes} bytes long, and at most {} are read",
        MAX_PHRASE_BYTES
    )]
    LongPhrase {
        /// Its length.
        bytes: usize,
    },
    /// The folder holds two models, for another method.
    #[error("`{path}` is a pair of models for SAM4MLLM; expected one model of MLLMSeg")]
    OtherMethod {
        /// The folder.
        path: PathBuf,
    },
    /// The pair of models is at fault.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The language model of a pair cannot be loaded or asked.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The Segment Anything model cannot be loaded or asked.
    #[error(transparent)]
    Sam(#[from] SamError),
    /// The method knows no prompt with several phrases.
    #[error("this method asks for each phrase on its own; it has no prompt for several")]
    OnlySingle,
    /// The network gave numbers that are none.
    #[error("`{model}` computed values that are not numbers: its weights do not belong together")]
    NotANumber {
        /// The model.
        model: String,
    },
}

/// Longest phrase, in UTF-8 bytes: several times what fits a prompt.
pub const MAX_PHRASE_BYTES: usize = 1 << 16;
/// Masks decoded at once: bounds memory, and is enough to keep every core busy.
const MASKS_AT_ONCE: usize = 4;
/// Tokens of phrases that share a forward pass: bounds the square of the attention mask.
const TOKENS_AT_ONCE: usize = 1024;

impl Predictor {
    /// Loads a model by name (`builtin`) or from a folder in the official layout.
    ///
    /// # Errors
    /// If there is no such model, or a file of it is missing, damaged or does not fit the others.
    pub fn load(model: impl AsRef<Path>, options: &Options) -> Result<Self, PredictorError> {
        let folder = model.as_ref();
        if builtin::is(builtin::NAME, folder) {
            return Self::builtin(options);
        }
        if Pair::is_in(folder) {
            return Err(PredictorError::OtherMethod {
                path: folder.to_owned(),
            });
        }
        if !folder.is_dir() {
            return Err(PredictorError::NoModel {
                path: folder.to_owned(),
            });
        }
        let config = Config::from_folder(folder)?;
        let weights = Weights::open(folder)?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        Self::assemble(
            folder.display().to_string(),
            config,
            &weights,
            tokenizer,
            options,
        )
    }

    /// The model that is part of the program.
    ///
    /// # Errors
    /// None, unless the program was built with a damaged model.
    pub fn builtin(options: &Options) -> Result<Self, PredictorError> {
        let config = builtin::config()?;
        let weights = builtin::weights()?;
        let tokenizer = builtin::tokenizer()?;
        Self::assemble(
            builtin::NAME.to_owned(),
            config,
            &weights,
            tokenizer,
            options,
        )
    }

    fn assemble(
        name: String,
        config: Config,
        weights: &Weights,
        tokenizer: Tokenizer,
        options: &Options,
    ) -> Result<Self, PredictorError> {
        let source = StoredTensors::new(weights, options.device()).packed(options.precision);
        let predictor = Self::new(name, config, tokenizer, &source)?;
        let unused = source.unused();
        Ok(Self {
            unused,
            ..predictor
        })
    }

    /// A model of these parts, called `name` in errors; its tensors come from a checkpoint, or
    /// from a training run.
    ///
    /// # Errors
    /// If the parts do not fit each other.
    pub fn new(
        name: String,
        config: Config,
        tokenizer: Tokenizer,
        source: &dyn TensorSource,
    ) -> Result<Self, PredictorError> {
        let (tokens, vocabulary) = (tokenizer.vocabulary_size(), config.language.vocabulary);
        if tokens > vocabulary {
            return Err(PredictorError::OtherTokenizer {
                model: name,
                tokens,
                vocabulary,
            });
        }
        let template: Template = config.template.parse()?;
        let prompts =
            PromptBuilder::new(tokenizer, template.for_inference(), config.image_tokens())?;
        let prefix = prompts.prefix()?;
        let model = Mllmseg::load(source, &config)?;
        Ok(Self {
            inner: Arc::new(Inner {
                name,
                config,
                model,
                prompts,
                prefix,
            }),
            unused: Vec::new(),
        })
    }

    /// `builtin`, or the folder the model was loaded from.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Tensors of the checkpoint that no part of the network uses: worth a warning.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused
    }

    /// Looks at a picture: the slow part, once per picture.
    ///
    /// # Errors
    /// If the network computes values that are not numbers.
    pub fn encode(&self, image: &Image) -> Result<Scene, PredictorError> {
        let Inner {
            config,
            model,
            prefix,
            ..
        } = &*self.inner;
        let side = config.image_size;
        let pixels = image.resize(side as u32, side as u32).normalised();
        let vit = model.vision.forward(model.vision.pixels(pixels, 1, side));
        let tokens = model.projector.forward(vit.clone());
        let x = model.splice(&prefix.ids, prefix.image_start, tokens);
        let length = prefix.ids.len();
        let positions: Vec<usize> = (0..length).collect();
        let mask = causal_mask(length, &x.device());
        let (hidden, seen) = model.language.forward(x, &positions, &mask, None);
        let llm = model.image_states(hidden, prefix.image_start, config.image_tokens());
        let image_half = model.decoder.encode(vit, llm);
        Ok(Scene {
            model: Arc::clone(&self.inner),
            seen,
            image: image_half,
            width: image.width(),
            height: image.height(),
        })
    }
}

impl Scene {
    /// Width of the picture in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height of the picture in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Memory that this value holds, in bytes, the shared model aside.
    pub fn bytes(&self) -> usize {
        self.seen.bytes() + self.image.bytes()
    }

    /// Segments what a phrase means.
    ///
    /// The phrase is used as it is written; published evaluations lower-case it
    /// and strip full stops first ([`crate::prompt::normalise_phrase`]).
    ///
    /// # Errors
    /// If the phrase is empty or too long.
    pub fn segment(&self, phrase: &str) -> Result<Segmentation, PredictorError> {
        let mut all = self.segment_many(&[phrase])?;
        Ok(all.remove(0))
    }

    /// Segments what each phrase means on its own, several phrases in one pass.
    ///
    /// # Errors
    /// If a phrase is empty or too long.
    pub fn segment_many(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        let prompts = &self.model.prompts;
        let suffixes = phrases
            .iter()
            .map(|phrase| {
                check_phrase(phrase)?;
                Ok(prompts.single(phrase)?.before_last_marker().to_vec())
            })
            .collect::<Result<Vec<Vec<u32>>, PredictorError>>()?;
        let mut states = Vec::new();
        let mut rest = &suffixes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(how_many_fit(rest));
            states.push(self.read_alone(now));
            rest = later;
        }
        if states.is_empty() {
            return Ok(Vec::new());
        }
        let states = Tensor::cat(states, 0);
        let decisions = self.decide(states.clone())?;
        self.answer(phrases, states, &decisions)
    }

    /// Segments several phrases in one prompt, where each may depend on those before it.
    ///
    /// Published evaluations ask for all phrases of a picture like this.
    ///
    /// # Errors
    /// If a phrase is empty or too long.
    pub fn segment_joint(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        if phrases.is_empty() {
            return Ok(Vec::new());
        }
        let states = self.read_jointly(phrases, &vec![Marker::Seg; phrases.len()])?;
        let decisions = self.decide(states.clone())?;
        self.answer(phrases, states, &decisions)
    }

    /// Segments several phrases in one prompt, where each may depend on those before it and on
    /// what the model itself decided about them.
    ///
    /// [`Scene::segment_joint`] writes `[SEG]` behind every phrase before the model has decided.
    ///
    /// # Errors
    /// If a phrase is empty or too long.
    pub fn segment_sequential(
        &self,
        phrases: &[&str],
    ) -> Result<Vec<Segmentation>, PredictorError> {
        if phrases.is_empty() {
            return Ok(Vec::new());
        }
        phrases.iter().try_for_each(|phrase| check_phrase(phrase))?;
        let prompts = &self.model.prompts;
        let mut suffix = prompts.joint(phrases, &vec![Marker::Seg; phrases.len()])?;
        let device = self.device();
        let mut seen = self.seen.clone();
        let (mut states, mut decisions) = (Vec::new(), Vec::new());
        let mut first = 0;
        for &marker in &suffix.markers {
            let ids = &suffix.ids[first..marker];
            let (start, rows) = (seen.length(), ids.len());
            let positions: Vec<usize> = (start..start + rows).collect();
            let mask = causal_mask_behind(start, rows, &device);
            let (state, new) = self.read(&seen, ids, &positions, &mask, &[rows - 1]);
            seen = seen.followed_by(&new);
            let decided = self.decide(state.clone())?;
            // The next pass begins with this marker.
            suffix.ids[marker] = if decided[0].found {
                prompts.tokens().seg
            } else {
                prompts.tokens().rej
            };
            first = marker;
            states.push(state);
            decisions.extend(decided);
        }
        self.answer(phrases, Tensor::cat(states, 0), &decisions)
    }

    /// The protocol of published evaluations: one prompt for all phrases, in which the model reads the true
    /// markers of the phrases before.
    ///
    /// Decisions come from that prompt, masks from a second one with `[SEG]` everywhere. The first shows the
    /// model part of the truth, so its scores are for comparison with published ones only.
    ///
    /// # Errors
    /// If a phrase is empty or too long, or there are not as many markers as phrases.
    pub fn segment_teacher_forced(
        &self,
        phrases: &[&str],
        truth: &[Marker],
    ) -> Result<Vec<Segmentation>, PredictorError> {
        if phrases.is_empty() {
            return Ok(Vec::new());
        }
        let decisions = self.decide(self.read_jointly(phrases, truth)?)?;
        let states = self.read_jointly(phrases, &vec![Marker::Seg; phrases.len()])?;
        self.answer(phrases, states, &decisions)
    }

    /// States before the marker of each suffix, each of which sees the picture and itself only: `(n, D)`.
    fn read_alone(&self, suffixes: &[Vec<u32>]) -> Tensor<2> {
        let start = self.seen.length();
        let ids = suffixes.concat();
        let positions: Vec<usize> = suffixes
            .iter()
            .flat_map(|ids| start..start + ids.len())
            .collect();
        let mut ends = Vec::with_capacity(suffixes.len());
        let rows = ids.len();
        let mut mask = vec![f32::NEG_INFINITY; rows * (start + rows)];
        let mut first = 0;
        for suffix in suffixes {
            for row in first..first + suffix.len() {
                let seen = &mut mask[row * (start + rows)..][..start + rows];
                seen[..start].fill(0.0);
                seen[start + first..=start + row].fill(0.0);
            }
            first += suffix.len();
            ends.push(first - 1);
        }
        let device = self.device();
        let mask = Tensor::from_data(TensorData::new(mask, [1, 1, rows, start + rows]), &device);
        self.read(&self.seen, &ids, &positions, &mask, &ends).0
    }

    /// States before the marker of each phrase of a joint prompt: `(n, D)`.
    fn read_jointly(
        &self,
        phrases: &[&str],
        markers: &[Marker],
    ) -> Result<Tensor<2>, PredictorError> {
        phrases.iter().try_for_each(|phrase| check_phrase(phrase))?;
        let suffix: Suffix = self.model.prompts.joint(phrases, markers)?;
        let ids = suffix.before_last_marker();
        let (start, rows) = (self.seen.length(), ids.len());
        let device = self.device();
        let mask = causal_mask_behind(start, rows, &device);
        let positions: Vec<usize> = (start..start + rows).collect();
        let ends: Vec<usize> = suffix.markers.iter().map(|marker| marker - 1).collect();
        Ok(self.read(&self.seen, ids, &positions, &mask, &ends).0)
    }

    /// Reads `ids` behind what was `seen`: the states at `ends`, `(n, D)`, and the new tokens' keys
    /// and values.
    fn read(
        &self,
        seen: &KeyValues,
        ids: &[u32],
        positions: &[usize],
        mask: &Tensor<4>,
        ends: &[usize],
    ) -> (Tensor<2>, KeyValues) {
        let language = &self.model.model.language;
        let (hidden, new) = language.forward(language.embed(ids), positions, mask, Some(seen));
        let [_, rows, width] = hidden.dims();
        let indices: Vec<i64> = ends.iter().map(|&end| end as i64).collect();
        let indices = Tensor::from_data(TensorData::new(indices, [ends.len()]), &self.device());
        (hidden.reshape([rows, width]).select(0, indices), new)
    }

    /// Reads the decision about each phrase from the scores of its next token.
    fn decide(&self, states: Tensor<2>) -> Result<Vec<Decision>, PredictorError> {
        let tokens = self.model.prompts.tokens();
        let [count, _] = states.dims();
        let logits = self.model.model.language.logits(states);
        let logits = self.values(logits)?;
        let vocabulary = logits.len() / count;
        Ok(logits
            .chunks_exact(vocabulary)
            .map(|row| Decision::of(row, tokens.seg, tokens.rej))
            .collect())
    }

    fn answer(
        &self,
        phrases: &[&str],
        states: Tensor<2>,
        decisions: &[Decision],
    ) -> Result<Vec<Segmentation>, PredictorError> {
        let side = self.model.config.image_size;
        let mut answers = Vec::with_capacity(phrases.len());
        for (group, states) in states.split(MASKS_AT_ONCE, 0).into_iter().enumerate() {
            let logits = self
                .model
                .model
                .decoder
                .decode(&self.image, states.unsqueeze());
            let probabilities = self.values(activation::sigmoid(logits))?;
            for (i, probabilities) in probabilities.chunks_exact(side * side).enumerate() {
                let index = group * MASKS_AT_ONCE + i;
                answers.push(self.segmentation(phrases[index], decisions[index], probabilities)?);
            }
        }
        Ok(answers)
    }

    fn segmentation(
        &self,
        phrase: &str,
        decision: Decision,
        probabilities: &[f32],
    ) -> Result<Segmentation, PredictorError> {
        let side = self.model.config.image_size;
        let (height, width) = (self.height as usize, self.width as usize);
        let (mask, score) = if decision.found {
            let resized = resize_bilinear(probabilities, (side, side), (height, width))?;
            let inside = resized.iter().filter(|&&p| p >= THRESHOLD);
            let (sum, count) = inside.fold((0.0, 0u64), |(sum, count), &p| {
                (sum + f64::from(p), count + 1)
            });
            let bits = resized.iter().map(|&p| p >= THRESHOLD).collect();
            let score = if count == 0 {
                0.0
            } else {
                (sum / count as f64) as f32
            };
            (Mask::from_bits(height, width, bits)?, score)
        } else {
            (Mask::empty(height, width)?, 0.0)
        };
        Ok(Segmentation {
            phrase: phrase.to_owned(),
            found: decision.found,
            presence: decision.presence,
            score,
            box_px: mask.bounds(),
            mask,
            probabilities: probabilities.to_vec(),
            side,
            from_probabilities: true,
            unread: Vec::new(),
        })
    }

    fn values<const R: usize>(&self, tensor: Tensor<R>) -> Result<Vec<f32>, PredictorError> {
        let not_numbers = || PredictorError::NotANumber {
            model: self.model.name.clone(),
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

    fn device(&self) -> Device {
        self.image.places().device()
    }
}

impl Segmenter for Predictor {
    fn name(&self) -> &str {
        self.name()
    }

    fn method(&self) -> &str {
        "mllmseg"
    }

    fn unused_tensors(&self) -> &[String] {
        self.unused_tensors()
    }

    fn encode(&self, image: &Image) -> Result<Box<dyn Segmentable>, PredictorError> {
        Ok(Box::new(self.encode(image)?))
    }
}

impl Segmentable for Scene {
    fn width(&self) -> u32 {
        self.width()
    }

    fn height(&self) -> u32 {
        self.height()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn segment_many(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        self.segment_many(phrases)
    }

    fn segment_joint(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        self.segment_joint(phrases)
    }

    fn segment_sequential(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        self.segment_sequential(phrases)
    }

    fn segment_teacher_forced(
        &self,
        phrases: &[&str],
        truth: &[Marker],
    ) -> Result<Vec<Segmentation>, PredictorError> {
        self.segment_teacher_forced(phrases, truth)
    }
}

/// What the model says of a phrase before it draws anything.
#[derive(Debug, Clone, Copy)]
struct Decision {
    found: bool,
    presence: f32,
}

impl Decision {
    /// From the scores over the vocabulary; the first of equal scores wins, as in the reference.
    fn of(logits: &[f32], seg: u32, rej: u32) -> Self {
        let (seg, rej) = (seg as usize, rej as usize);
        let better =
            |id: usize| logits[id] > logits[rej] || (logits[id] == logits[rej] && id < rej);
        Self {
            found: (0..logits.len()).any(|id| id != rej && better(id)),
            presence: 1.0 / (1.0 + (logits[rej] - logits[seg]).exp()),
        }
    }
}

/// `(1, 1, rows, start + rows)`: every token sees all `start` earlier ones, and the new ones up to
/// itself.
fn causal_mask_behind(start: usize, rows: usize, device: &Device) -> Tensor<4> {
    let before = Tensor::zeros([1, 1, rows, start], device);
    Tensor::cat(vec![before, causal_mask(rows, device)], 3)
}

/// Refuses a phrase that no method can be asked for.
pub(crate) fn check_phrase(phrase: &str) -> Result<(), PredictorError> {
    if phrase.trim().is_empty() {
        return Err(PredictorError::EmptyPhrase);
    }
    if phrase.len() > MAX_PHRASE_BYTES {
        return Err(PredictorError::LongPhrase {
            bytes: phrase.len(),
        });
    }
    Ok(())
}

/// How many suffixes to read in one pass: one at least.
fn how_many_fit(suffixes: &[Vec<u32>]) -> usize {
    let mut tokens = 0;
    let fits = |suffix: &&Vec<u32>| {
        tokens += suffix.len();
        tokens <= TOKENS_AT_ONCE
    };
    suffixes.iter().take_while(fits).count().max(1)
}
