//! One forward pass over some pictures, its losses, and their gradients.
//!
//! Reference: `MLLMSeg.forward` in training. The answer is fed with its true markers; each phrase
//! is the state before its marker; masks are decoded picture by picture, with batch norm over the
//! phrases of that picture.

use burn::tensor::{Device, Tensor, TensorData, activation};
use refseg::{
    internvl::Config,
    mask::Mask,
    mllmseg::Mllmseg,
    nn::Rope,
    prompt::{Prefix, Suffix},
    tokenizer::SpecialTokens,
};

use super::{
    EMBEDDINGS, LAYERS,
    recipe::{Loss, MaskForm, Padding},
};
use crate::{
    TrainError,
    losses::{
        Losses, binary_cross_entropy, cross_entropy, dice, focal, official_focal, resize, soft_iou,
    },
    parameters::{Leaves, Parameters},
    run::{Measured, Statistics, Work},
    tensors::{indices, packed_mask, scalar, values},
};

/// A picture and what is asked about it.
#[derive(Debug, Clone)]
pub struct Question {
    /// `(3, S, S)`, normalised.
    pub pixels: Vec<f32>,
    /// Prompts behind the picture, each of which sees the picture and itself alone.
    pub prompts: Vec<Suffix>,
    /// What each phrase means, in the order of the prompts' markers; masks without a pixel where
    /// there is nothing.
    pub targets: Vec<Mask>,
}

/// What a pass needs to know besides its pictures.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// Sizes of the network.
    pub config: &'a Config,
    /// The prompt in front of every picture's own.
    pub prefix: &'a Prefix,
    /// The markers.
    pub tokens: &'a SpecialTokens,
    /// What mistakes cost.
    pub loss: &'a Loss,
    /// Whether layers are computed again for their gradients.
    pub recompute: bool,
}

/// How the tokens of a pass lie in memory: one row a picture, which holds the prefix and then
/// `count` prompts of `length` tokens each.
#[derive(Debug, Clone, Copy)]
struct Layout {
    start: usize,
    count: usize,
    length: usize,
}

impl Layout {
    fn of(questions: &[Question], prefix: &Prefix) -> Self {
        let prompts = || questions.iter().flat_map(|question| &question.prompts);
        Self {
            start: prefix.ids.len(),
            count: questions.iter().map(|q| q.prompts.len()).max().unwrap_or(0),
            length: prompts().map(|prompt| prompt.ids.len()).max().unwrap_or(0),
        }
    }

    /// Tokens of a row.
    fn row(&self) -> usize {
        self.start + self.count * self.length
    }

    /// Place of a token of a prompt within its row.
    fn place(&self, prompt: usize, token: usize) -> usize {
        self.start + prompt * self.length + token
    }

    /// Positions of a row's tokens in their own sequences.
    fn positions(&self) -> Vec<usize> {
        let prompt = self.start..self.start + self.length;
        let prompts = (0..self.count).flat_map(|_| prompt.clone());
        (0..self.start).chain(prompts).collect()
    }

    /// Every prompt filled up with token 0.
    fn filled<'a>(&self, question: &'a Question) -> impl Iterator<Item = u32> + use<'a> {
        let Self { count, length, .. } = *self;
        (0..count).flat_map(move |k| {
            let ids = question
                .prompts
                .get(k)
                .map_or(&[][..], |prompt| &prompt.ids);
            let filling = std::iter::repeat_n(0, length - ids.len());
            ids.iter().copied().chain(filling)
        })
    }
}

/// Losses and gradients of a pass. `tracked` and `untracked` are leaves of the same parameters
/// with the same noise; the second is used where layers are computed again.
///
/// # Errors
/// If a tensor is missing, or a loss is not finite.
pub fn measure(
    tracked: Leaves<'_>,
    untracked: &Leaves<'_>,
    parameters: &Parameters,
    setting: &Setting<'_>,
    questions: &[Question],
) -> Result<Measured, TrainError> {
    let pass = Pass::new(setting, questions);
    let model = Mllmseg::load(&tracked, setting.config)?;
    let head = if setting.recompute {
        let quiet = Mllmseg::load(untracked, setting.config)?;
        pass.layer_by_layer(&tracked, &model, &quiet, parameters)?
    } else {
        let Front { x, vit } = pass.front(&model);
        let (rope, mask) = pass.around(&model, &x.device());
        let mut x = x;
        for layer in model.language.layers() {
            x = layer.forward(x, &rope, &mask);
        }
        let head = pass.head(&model, x, vit)?;
        tracked.differentiate(&head.total, &[]);
        head
    };
    Ok(Measured {
        losses: head.losses,
        gradients: tracked.into_gradients(),
        statistics: head.statistics,
        work: Work {
            pictures: questions.len() as u64,
            tokens: (questions.len() * pass.layout.row()) as u64,
        },
    })
}

struct Pass<'a> {
    setting: &'a Setting<'a>,
    questions: &'a [Question],
    layout: Layout,
}

/// What the language model and the mask decoder are given.
struct Front {
    /// `(B, L, D)`.
    x: Tensor<3>,
    /// `(B, P, C)`.
    vit: Tensor<3>,
}

/// What comes out at the end.
struct Head {
    total: Tensor<1>,
    losses: Losses,
    statistics: Vec<Statistics>,
}

impl<'a> Pass<'a> {
    fn new(setting: &'a Setting<'a>, questions: &'a [Question]) -> Self {
        Self {
            setting,
            questions,
            layout: Layout::of(questions, setting.prefix),
        }
    }

    /// Pictures and prompts as embedded tokens.
    fn front(&self, model: &Mllmseg) -> Front {
        let Setting { config, prefix, .. } = self.setting;
        let (pictures, layout) = (self.questions.len(), &self.layout);
        let pixels = self.questions.iter().flat_map(|q| q.pixels.iter().copied());
        let pixels = model
            .vision
            .pixels(pixels.collect(), pictures, config.image_size);
        let vit = model.vision.forward(pixels);
        let image = model.projector.forward(vit.clone());
        let before = model.splice(&prefix.ids, prefix.image_start, image);
        let ids: Vec<u32> = self
            .questions
            .iter()
            .flat_map(|q| layout.filled(q))
            .collect();
        let after = model.language.embed(&ids).reshape([
            pictures,
            layout.count * layout.length,
            config.language.width,
        ]);
        Front {
            x: Tensor::cat(vec![before, after], 1),
            vit,
        }
    }

    /// Where tokens stand, and what each of them sees.
    fn around(&self, model: &Mllmseg, device: &Device) -> (Rope, Tensor<4>) {
        let rope = model.language.rope(&self.layout.positions(), device);
        let mask = match self.setting.loss.padding {
            Padding::Ignored => self.mask(&[], device),
            // The reference hides every token 0, and so real ones too: Qwen2's exclamation mark.
            Padding::TokenZero => self.mask(&[0], device),
        };
        (rope, mask)
    }

    /// [`packed_mask`] as `(1, 1, L, L)`, or without `hidden` tokens as `(B, 1, L, L)`.
    fn mask(&self, hidden: &[u32], device: &Device) -> Tensor<4> {
        let Layout {
            start,
            count,
            length,
        } = self.layout;
        let row = self.layout.row();
        let seen = packed_mask(start, count, length);
        if hidden.is_empty() {
            return Tensor::from_data(TensorData::new(seen, [1, 1, row, row]), device);
        }
        let mut all = Vec::with_capacity(self.questions.len() * seen.len());
        for question in self.questions {
            let prefix = self.setting.prefix.ids.iter().copied();
            let keys: Vec<u32> = prefix.chain(self.layout.filled(question)).collect();
            let visible = seen.iter().zip(keys.iter().cycle());
            all.extend(visible.map(|(&seen, key)| {
                if hidden.contains(key) {
                    f32::NEG_INFINITY
                } else {
                    seen
                }
            }));
        }
        let shape = [self.questions.len(), 1, row, row];
        Tensor::from_data(TensorData::new(all, shape), device)
    }

    /// From the last layer's output to the losses.
    fn head(&self, model: &Mllmseg, x: Tensor<3>, vit: Tensor<3>) -> Result<Head, TrainError> {
        let Setting {
            config,
            prefix,
            loss,
            ..
        } = self.setting;
        let [pictures, row, width] = x.dims();
        let hidden = model.language.finish(x);
        let llm = model.image_states(hidden.clone(), prefix.image_start, config.image_tokens());
        let flat = hidden.reshape([pictures * row, width]);
        let text = self.text_loss(model, &flat);

        let mut sums = MaskSums::default();
        let mut statistics = Vec::new();
        let mut expressions = 0;
        for (i, question) in self.questions.iter().enumerate() {
            expressions += question.targets.len();
            let found: Vec<usize> = (0..question.targets.len())
                .filter(|&k| question.targets[k].area() > 0)
                .collect();
            if found.is_empty() {
                continue;
            }
            let states = self.states_before_markers(i);
            let chosen = indices(found.iter().map(|&k| states[k] as i64), &flat.device());
            let phrases = flat.clone().select(0, chosen).unsqueeze::<3>();
            let image = model
                .decoder
                .encode(vit.clone().narrow(0, i, 1), llm.clone().narrow(0, i, 1));
            let decoded = model.decoder.decode_in_training(&image, phrases);
            for (at, &k) in found.iter().enumerate() {
                let logits = decoded.logits.clone().narrow(0, at, 1);
                sums.add(logits, &question.targets[k], loss);
            }
            statistics.extend(decoded.statistics.map(|(mean, variance)| Statistics {
                mean: values(mean),
                variance: values(variance),
                count: found.len() * config.grid() * config.grid(),
            }));
        }
        let share = 1.0 / expressions.max(1) as f64;
        let rejected = expressions - sums.count;
        let average = |sum: Option<Tensor<1>>| sum.map(|sum| sum * share);
        let (mask, overlap) = (average(sums.mask), average(sums.dice));
        // A rejected phrase has nothing to find and finds it.
        let iou = (sums.iou + rejected as f32) * share as f32;

        let mut losses = Losses::default();
        let mut total = None;
        let parts = [
            ("text", text, loss.text),
            ("mask", mask, loss.mask),
            ("dice", overlap, loss.dice),
        ];
        for (name, part, weight) in parts {
            let Some(part) = part else { continue };
            losses.push(name, scalar(&part), weight as f32);
            let part = part * weight;
            total = Some(match total {
                None => part,
                Some(total) => total + part,
            });
        }
        losses.note("iou", iou);
        if let Some((name, _)) = losses.parts.iter().find(|(_, value)| !value.is_finite()) {
            return Err(TrainError::LossNotFinite { loss: name });
        }
        Ok(Head {
            total: total.ok_or(TrainError::NothingToLearn)?,
            losses,
            statistics,
        })
    }

    /// Cross-entropy of the answers' tokens, each read off the state before it.
    fn text_loss(&self, model: &Mllmseg, flat: &Tensor<2>) -> Option<Tensor<1>> {
        let Setting { tokens, loss, .. } = self.setting;
        let row = self.layout.row();
        let (mut states, mut labels, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (i, question) in self.questions.iter().enumerate() {
            for (k, prompt) in question.prompts.iter().enumerate() {
                let mut learn = |token: usize, label: u32, weight: f64| {
                    states.push((i * row + self.layout.place(k, token) - 1) as i64);
                    labels.push(i64::from(label));
                    weights.push(weight as f32);
                };
                for &token in &prompt.supervised {
                    let label = prompt.ids[token];
                    let is_rejection = label == tokens.rej && prompt.markers.contains(&token);
                    learn(
                        token,
                        label,
                        if is_rejection { loss.rejection } else { 1.0 },
                    );
                }
                if loss.padding == Padding::TokenZero {
                    (prompt.ids.len()..self.layout.length).for_each(|token| learn(token, 0, 1.0));
                }
            }
        }
        if states.is_empty() {
            return None;
        }
        let device = flat.device();
        let count = weights.len();
        let weights = Tensor::from_data(TensorData::new(weights, [count]), &device);
        let logits = model
            .language
            .logits(flat.clone().select(0, indices(states, &device)));
        Some(cross_entropy(logits, indices(labels, &device), weights))
    }

    /// Rows of the flat states that stand for a picture's phrases.
    fn states_before_markers(&self, picture: usize) -> Vec<usize> {
        let prompts = self.questions[picture].prompts.iter().enumerate();
        let first = picture * self.layout.row();
        prompts
            .flat_map(|(k, prompt)| {
                let place = move |&marker: &usize| first + self.layout.place(k, marker) - 1;
                prompt.markers.iter().map(place)
            })
            .collect()
    }

    /// The same as one graph from end to end, with one layer's activations in memory at a time:
    /// the network is run once without a graph, keeping each layer's input, and then layer by
    /// layer from the end with one.
    fn layer_by_layer(
        &self,
        tracked: &Leaves<'_>,
        model: &Mllmseg,
        quiet: &Mllmseg,
        parameters: &Parameters,
    ) -> Result<Head, TrainError> {
        let leaf = |x: Tensor<3>| x.inner().autodiff().require_grad();
        let Front { x, vit } = self.front(quiet);
        let (rope, mask) = self.around(quiet, &x.device());
        let mut inputs = vec![x];
        for layer in quiet.language.layers() {
            let x = inputs.last().expect("there is a first input").clone();
            inputs.push(layer.forward(x, &rope, &mask));
        }
        let last = leaf(inputs.pop().expect("there is a first input"));
        let sight = leaf(vit);
        let head = self.head(model, last.clone(), sight.clone())?;
        let found = tracked.differentiate(&head.total, &[&last, &sight]);
        let [mut flow, of_sight] = <[_; 2]>::try_from(found).expect("two inputs");

        let is_trained = |prefix: &str| {
            let mut below = parameters.iter().filter(|(key, _)| key.starts_with(prefix));
            below.any(|(_, parameter)| parameter.is_trained())
        };
        let mut in_front = ["vision_model.", "mlp1."].into_iter().chain(EMBEDDINGS);
        let front_is_trained = in_front.any(is_trained);
        if !front_is_trained && !is_trained(LAYERS) {
            return Ok(head);
        }
        let (rope, mask) = self.around(model, &last.device());
        for (layer, x) in model.language.layers().iter().zip(inputs).rev() {
            let Some(gradient) = flow else { break };
            let x = leaf(x);
            let y = layer.forward(x.clone(), &rope, &mask);
            let surrogate = (y * gradient.autodiff()).sum();
            flow = tracked.differentiate(&surrogate, &[&x]).pop().flatten();
        }
        if front_is_trained {
            let front = self.front(model);
            let part = |y: Tensor<3>, gradient: Option<Tensor<3>>| {
                gradient.map(|gradient| (y * gradient.autodiff()).sum())
            };
            let parts = [part(front.x, flow), part(front.vit, of_sight)];
            let sum = parts.into_iter().flatten().reduce(|a, b| a + b);
            if let Some(surrogate) = sum {
                tracked.differentiate(&surrogate, &[]);
            }
        }
        Ok(head)
    }
}

/// Losses over masks, not yet averaged.
#[derive(Default)]
struct MaskSums {
    mask: Option<Tensor<1>>,
    dice: Option<Tensor<1>>,
    iou: f32,
    count: usize,
}

impl MaskSums {
    /// Adds one mask's: `(1, S, S)` logits against the truth, at the size of the truth.
    fn add(&mut self, logits: Tensor<3>, truth: &Mask, loss: &Loss) {
        let size = [truth.height(), truth.width()];
        let bits: Vec<f32> = truth.bits().iter().map(|&bit| f32::from(bit)).collect();
        let data = TensorData::new(bits, [1, size[0], size[1]]);
        let truth = Tensor::<3>::from_data(data, &logits.device());
        // The reference resizes probabilities.
        let probabilities = resize(activation::sigmoid(logits.clone()), size);
        let pixels = match loss.mask_form {
            MaskForm::OfficialFocal => official_focal(probabilities.clone(), truth.clone()),
            MaskForm::BinaryCrossEntropy => {
                binary_cross_entropy(resize(logits, size), truth.clone(), loss.foreground)
            }
            MaskForm::Focal => focal(resize(logits, size), truth.clone(), loss.foreground),
        };
        self.iou += scalar(&soft_iou(probabilities.clone(), truth.clone()));
        let add = |sum: &mut Option<Tensor<1>>, more: Tensor<1>| {
            *sum = Some(match sum.take() {
                None => more,
                Some(sum) => sum + more,
            });
        };
        add(&mut self.mask, pixels);
        add(&mut self.dice, dice(probabilities, truth));
        self.count += 1;
    }
}
