//! One forward pass over some pictures and what is said about them, its loss, and the gradients.
//!
//! A picture is read once. Its conversations are rows that continue it: none sees another.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData, activation};
use refseg::{
    Image,
    chat::{Backbone, ChatError, WrittenTalk},
    language::causal_mask,
};

use super::{
    auxiliary::{Aim, Auxiliary},
    lesson::{Lesson, packs, supervised},
    recipe::MeanOf,
};
use crate::{
    TrainError,
    losses::{Losses, cross_entropy},
    parameters::Leaves,
    run::{Measured, Work},
    tensors::{indices, scalar, values},
};

/// What a mistake costs.
#[derive(Debug, Clone, Copy)]
pub struct Costs<'a> {
    /// What is averaged first.
    pub mean_of: MeanOf,
    /// Numbers whose neighbours are right in part.
    pub blur: Option<&'a Blur>,
    /// What the losses of the helper heads count beside that of the text; 0 if there are none.
    pub helpers: f64,
}

/// Loss and gradients of a pass.
///
/// # Errors
/// If a tensor is missing, a loss is not finite, or nothing is taught.
pub fn measure(
    tracked: Leaves<'_>,
    backbone: &Backbone,
    lessons: &[Lesson],
    costs: Costs<'_>,
) -> Result<Measured, TrainError> {
    let Said {
        states,
        logits,
        labels,
        weights,
        aims,
        pictures,
        tokens,
    } = said(&tracked, backbone, lessons, costs)?;
    let device = logits.device();
    let right = logits.clone().argmax(1).reshape([-1]).float();
    let right = values(right).into_iter().zip(&labels);
    let right = right
        .filter(|(found, label)| *found as i64 == **label)
        .count();
    let share = right as f32 / labels.len() as f32;
    let count = weights.len();
    let weights = Tensor::from_data(TensorData::new(weights, [count]), &device);
    let text = match costs.blur {
        None => cross_entropy(logits, indices(labels, &device), weights),
        Some(blur) => blur.cross_entropy(logits, &labels, weights),
    };
    let mut losses = Losses::default();
    losses.push("text", scalar(&text), 1.0);
    let mut total = text;
    if let Some([seen, read]) = pictures.filter(|_| !aims.is_empty()) {
        let [_, width] = states.dims();
        let auxiliary = Auxiliary::load(&tracked, width)?;
        let begin = indices(aims.iter().map(|(state, ..)| *state as i64), &device);
        let aims: Vec<(usize, &Aim)> = aims.iter().map(|(_, at, aim)| (*at, aim)).collect();
        let of_helpers = auxiliary.losses(states.select(0, begin), &aims, seen, read);
        for (name, loss) in ["matching", "place"].into_iter().zip(of_helpers) {
            losses.push(name, scalar(&loss), costs.helpers as f32);
            total = total + loss * costs.helpers;
        }
    }
    losses.note("right", share);
    if let Some(&(loss, _)) = losses.parts.iter().find(|(_, value)| !value.is_finite()) {
        return Err(TrainError::LossNotFinite { loss });
    }
    tracked.differentiate(&total, &[]);
    Ok(Measured {
        losses,
        gradients: tracked.into_gradients(),
        statistics: Vec::new(),
        work: Work {
            pictures: lessons.len() as u64,
            tokens,
        },
    })
}

/// Numbers whose neighbours are right in part.
#[derive(Debug)]
pub struct Blur {
    /// Ids of `000` to `999`.
    numbers: Vec<u32>,
    /// What a number counts by its distance, from 0 on; with both sides the sum is one.
    shares: Vec<f32>,
}

impl Blur {
    /// Normally distributed with this deviation, in thousandths; none if it is zero.
    ///
    /// # Errors
    /// If a number of three digits is not one token of the model.
    pub fn new(backbone: &Backbone, deviation: f64) -> Result<Option<Self>, TrainError> {
        if deviation == 0.0 {
            return Ok(None);
        }
        let number = |number: usize| {
            let text = format!("{number:03}");
            match backbone.tokenizer().encode(&text)?[..] {
                [id] => Ok(id),
                ref ids => Err(ChatError::NotOneToken {
                    model: backbone.name().to_owned(),
                    found: ids.len(),
                    text,
                }
                .into()),
            }
        };
        let reach = (2.0 * deviation).ceil() as usize;
        let density = |distance: usize| (-0.5 * (distance as f64 / deviation).powi(2)).exp();
        let total: f64 = (0..=reach)
            .map(|d| density(d) * if d == 0 { 1.0 } else { 2.0 })
            .sum();
        Ok(Some(Self {
            numbers: (0..1000).map(number).collect::<Result<_, TrainError>>()?,
            shares: (0..=reach).map(|d| (density(d) / total) as f32).collect(),
        }))
    }

    /// The weighted mean of what each row of logits `(n, V)` misses of its label and, where that is
    /// a number, of the numbers around it.
    fn cross_entropy(&self, logits: Tensor<2>, labels: &[i64], weights: Tensor<1>) -> Tensor<1> {
        let reach = self.shares.len() as i64 - 1;
        let columns = 2 * self.shares.len() - 1;
        let number_of: BTreeMap<i64, i64> = (0..)
            .zip(&self.numbers)
            .map(|(number, &id)| (i64::from(id), number))
            .collect();
        let (mut ids, mut shares) = (Vec::new(), Vec::new());
        for label in labels {
            let number = number_of.get(label);
            for distance in -reach..=reach {
                let share = self.shares[distance.unsigned_abs() as usize];
                match number {
                    // Beyond the last number nothing lies: the last one has it all.
                    Some(number) => {
                        let near = (number + distance).clamp(0, 999) as usize;
                        ids.push(i64::from(self.numbers[near]));
                        shares.push(share);
                    }
                    None => {
                        ids.push(*label);
                        shares.push(share);
                    }
                }
            }
        }
        let (count, device) = (labels.len(), logits.device());
        let ids = indices(ids, &device).reshape([count, columns]);
        let shares = Tensor::<2>::from_data(TensorData::new(shares, [count, columns]), &device);
        let said = activation::log_softmax(logits, 1).gather(1, ids) * shares;
        let missed = said.sum_dim(1).reshape([-1]);
        let total = weights.clone().sum();
        (missed * weights).sum().neg() / total
    }
}

/// What the network says where it is taught to speak.
struct Said {
    /// `(n, D)`, behind the last norm.
    states: Tensor<2>,
    /// `(n, V)`.
    logits: Tensor<2>,
    /// `n` tokens that it should say.
    labels: Vec<i64>,
    /// What each counts.
    weights: Vec<f32>,
    /// For helper heads, answers that point at something: the state from which each begins, its
    /// picture, and what it points at.
    aims: Vec<(usize, usize, Aim)>,
    /// For helper heads, `(B, M, D)` twice: pictures as they enter the language model, and as it
    /// leaves them.
    pictures: Option<[Tensor<3>; 2]>,
    /// Tokens read, filling included.
    tokens: u64,
}

fn said(
    leaves: &Leaves<'_>,
    backbone: &Backbone,
    lessons: &[Lesson],
    costs: Costs<'_>,
) -> Result<Said, TrainError> {
    let network = backbone.network(leaves)?;
    let language = &network.language;
    let opening = language.embed(&backbone.opening()?);
    let begin = opening.dims()[1];
    let (mut states, mut labels, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    let (mut aims, mut pictures) = (Vec::new(), None);
    let mut tokens = 0;
    let images: Vec<&Image> = lessons.iter().map(|lesson| &lesson.image).collect();
    let seen = network.pictures(&images);
    for group in alike(&seen) {
        let x = group.iter().map(|&i| {
            let parts = vec![opening.clone(), seen[i].clone()];
            Tensor::cat(parts, 1)
        });
        let x = Tensor::cat(x.collect(), 0);
        let ([rows, start, width], device) = (x.dims(), x.device());
        let positions: Vec<usize> = (0..start).collect();
        let mask = causal_mask(start, &device);
        let (left, read) = language.forward(x.clone(), &positions, &mask, None);
        // Pictures that helper heads know of all have one number of tokens.
        if costs.helpers > 0.0 {
            let of_picture = |x: Tensor<3>| x.narrow(1, begin, start - begin);
            pictures = Some([x, left].map(of_picture));
        }
        tokens += (rows * start) as u64;
        let talks = group.iter().enumerate();
        let talks: Vec<(usize, &WrittenTalk)> = talks
            .flat_map(|(row, &i)| lessons[i].talks.iter().map(move |talk| (row, talk)))
            .collect();
        for pack in packs(&talks) {
            let length = longest(&pack);
            let ids = pack.iter().flat_map(|(_, talk)| filled(talk, length));
            let x = language.embed(&ids.collect::<Vec<u32>>());
            let x = x.reshape([pack.len(), length, width]);
            let positions: Vec<usize> = (start..start + length).collect();
            let mask = behind(start, length, &device);
            let rows: Vec<usize> = pack.iter().map(|(row, _)| *row).collect();
            let (hidden, _) = language.forward(x, &positions, &mask, Some(&read.rows(&rows)));
            let mut before = Vec::new();
            for (row, (picture, talk)) in pack.iter().enumerate() {
                let mut state = labels.len();
                let answers = talk.answers.iter().filter(|_| costs.helpers > 0.0);
                for answer in answers {
                    let text = backbone.tokenizer().decode(&talk.ids[answer.clone()])?;
                    aims.extend(Aim::of(&text).map(|aim| (state, group[*picture], aim)));
                    state += answer.len();
                }
                let weight = match costs.mean_of {
                    MeanOf::Tokens => 1.0,
                    MeanOf::Conversations => 1.0 / supervised(talk).count().max(1) as f32,
                };
                for token in supervised(talk) {
                    before.push((row * length + token - 1) as i64);
                    labels.push(i64::from(talk.ids[token]));
                    weights.push(weight);
                }
            }
            let flat = hidden.reshape([pack.len() * length, width]);
            states.push(flat.select(0, indices(before, &device)));
            tokens += (pack.len() * length) as u64;
        }
    }
    if labels.is_empty() {
        return Err(TrainError::NothingToLearn);
    }
    let states = Tensor::cat(states, 0);
    Ok(Said {
        logits: language.logits(states.clone()),
        states,
        labels,
        weights,
        aims,
        pictures,
        tokens,
    })
}

/// Pictures with equally many tokens, so that they are read side by side: groups of indices.
fn alike(pictures: &[Tensor<3>]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, picture) in pictures.iter().enumerate() {
        let [_, tokens, _] = picture.dims();
        groups.entry(tokens).or_default().push(i);
    }
    groups.into_values().collect()
}

fn longest(pack: &[(usize, &WrittenTalk)]) -> usize {
    pack.iter()
        .map(|(_, talk)| talk.ids.len())
        .max()
        .unwrap_or(0)
}

/// The tokens of a conversation, filled up with token 0: nothing sees that, for it comes last.
fn filled(talk: &WrittenTalk, length: usize) -> impl Iterator<Item = u32> + use<'_> {
    let filling = std::iter::repeat_n(0, length - talk.ids.len());
    talk.ids.iter().copied().chain(filling)
}

/// What `length` tokens behind `start` others see: `(1, 1, length, start + length)`.
fn behind(start: usize, length: usize, device: &Device) -> Tensor<4> {
    let row = start + length;
    let value = |query: usize, key: usize| {
        if key <= start + query {
            0.0
        } else {
            f32::NEG_INFINITY
        }
    };
    let values = (0..length).flat_map(|query| (0..row).map(move |key| value(query, key)));
    Tensor::from_data(
        TensorData::new(values.collect(), [1, 1, length, row]),
        device,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversing::beginner;

    #[test]
    fn a_near_miss_costs_less_than_a_far_one() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        beginner::write(folder.path(), 0)?;
        let backbone = Backbone::from_folder(folder.path())?;
        assert!(Blur::new(&backbone, 0.0)?.is_none());
        let blur = Blur::new(&backbone, 10.0)?.ok_or("a blur")?;
        let total: f32 = blur.shares.iter().sum::<f32>() * 2.0 - blur.shares[0];
        assert!((total - 1.0).abs() < 1e-6);

        let device = Device::flex();
        let vocabulary = backbone.sizes().vocabulary;
        let yes = i64::from(backbone.tokenizer().encode("Yes")?[0]);
        let number = |number: usize| i64::from(blur.numbers[number]);
        // Sure of one number, but not quite.
        let cost = |sure_of: i64, label: i64| {
            let logit = |id: i64| if id == sure_of { 5.0f32 } else { 0.0 };
            let logits: Vec<f32> = (0..vocabulary as i64).map(logit).collect();
            let logits = TensorData::new(logits, [1, vocabulary]);
            let logits = Tensor::<2>::from_data(logits, &device);
            let weights = Tensor::from_floats([3.0], &device);
            f64::from(scalar(&blur.cross_entropy(logits, &[label], weights)))
        };
        let rest = (vocabulary as f64 - 1.0 + 5f64.exp()).ln();
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
        };
        let share = |distance: usize| f64::from(blur.shares[distance]);
        close(cost(number(500), number(500)), rest - 5.0 * share(0));
        close(cost(number(507), number(500)), rest - 5.0 * share(7));
        close(cost(number(600), number(500)), rest);
        // Beyond the last number lies nothing.
        let above: f64 = (0..=20).map(share).sum();
        close(cost(number(999), number(999)), rest - 5.0 * above);
        // A word has no neighbours.
        close(cost(yes, yes), rest - 5.0);
        close(cost(yes + 1, yes), rest);
        Ok(())
    }
}
