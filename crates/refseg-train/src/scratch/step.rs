//! One training step: pictures and phrases in, losses and gradients out.

use burn::tensor::{Device, Tensor, activation};
use refseg::{internvl::Config, mllmseg::Mllmseg, prompt::PromptBuilder};

use super::{
    auxiliary::{Auxiliary, PhraseLosses},
    batch::Batch,
};
use crate::{
    TrainError,
    losses::{Losses, binary_cross_entropy, cross_entropy, dice},
    parameters::{Leaves, Parameters},
    run::{Measured, Statistics, Work},
    tensors::{floats, indices, packed_mask, scalar, values},
};

/// Weights of the losses; Dice counts double, as the small masks need it.
const WEIGHTS: [(&str, f32); 7] = [
    ("decision", 1.0),
    ("mask", 1.0),
    ("dice", 2.0),
    ("patch", 0.5),
    ("matching", 1.0),
    ("place", 2.0),
    ("words", 0.3),
];
/// One phrase in five has no target: without this a model says "found" when in doubt.
const REJECTION_WEIGHT: f32 = 3.0;
/// About 4 % of pixels belong to a target.
const MASK_POSITIVE_WEIGHT: f64 = 4.0;

/// What a forward pass over a batch gives.
#[derive(Debug)]
pub struct Forward {
    /// `(B, P, C)`.
    pub vit: Tensor<3>,
    /// `(B, Q, D)`: the states before each marker.
    pub phrases: Tensor<3>,
    /// The picture as the mask decoder sees it, before any phrase.
    pub image: refseg::mllmseg::DecodedImage,
    /// `(B·Q, V)`.
    pub decisions: Tensor<2>,
}

/// Runs a batch through the network: the picture once, all of its phrases in the same sequence.
///
/// Every phrase sees the picture and itself only, and its positions begin
/// again behind the picture: exactly what it would see alone.
///
/// # Errors
/// If the prompt cannot be built.
pub fn forward(
    model: &Mllmseg,
    batch: &Batch,
    config: &Config,
    prompts: &PromptBuilder,
) -> Result<Forward, TrainError> {
    let prefix = prompts.prefix()?;
    let (pictures, count, length) = (batch.pictures, batch.phrases, batch.longest_suffix());
    let width = config.language.width;

    let pixels = model
        .vision
        .pixels(batch.pixels.clone(), pictures, config.image_size);
    let device = pixels.device();
    let vit = model.vision.forward(pixels);
    let image = model.projector.forward(vit.clone());
    let before = model.splice(&prefix.ids, prefix.image_start, image);

    let padded: Vec<u32> = batch
        .suffixes
        .iter()
        .flat_map(|ids| {
            ids.iter()
                .copied()
                .chain(std::iter::repeat_n(0, length - ids.len()))
        })
        .collect();
    let after = model
        .language
        .embed(&padded)
        .reshape([pictures, count * length, width]);
    let x = Tensor::cat(vec![before, after], 1);
    let start = prefix.ids.len();
    let positions: Vec<usize> = (0..start)
        .chain((0..count).flat_map(|_| start..start + length))
        .collect();
    let total = start + count * length;
    let mask = packed_mask(start, count, length);
    let mask = floats(&mask, [1, 1, total, total], &device);
    let (hidden, _) = model.language.forward(x, &positions, &mask, None);

    let llm = model.image_states(hidden.clone(), prefix.image_start, config.image_tokens());
    let row = start + count * length;
    let ends = batch.suffixes.iter().enumerate().map(|(i, ids)| {
        let (picture, phrase) = (i / count, i % count);
        (picture * row + start + phrase * length + ids.len() - 1) as i64
    });
    let phrases = hidden
        .reshape([pictures * row, width])
        .select(0, indices(ends, &device));
    let decisions = model.language.logits(phrases.clone());
    Ok(Forward {
        image: model.decoder.encode(vit.clone(), llm),
        vit,
        phrases: phrases.reshape([pictures, count, width]),
        decisions,
    })
}

/// Picks the phrases that are decoded to masks: `(B, K, D)`.
pub fn chosen_phrases(forward: &Forward, batch: &Batch) -> Tensor<3> {
    let [pictures, count, width] = forward.phrases.dims();
    let flat = forward.phrases.clone().reshape([pictures * count, width]);
    let chosen = indices(batch.chosen.iter().map(|&i| i as i64), &flat.device());
    flat.select(0, chosen)
        .reshape([pictures, batch.masks, width])
}

/// Losses and gradients of one batch. With `sight_only`, of the vision tower alone.
///
/// # Errors
/// If a tensor is missing or the prompt cannot be built.
pub fn step(
    parameters: &Parameters,
    batch: &Batch,
    config: &Config,
    prompts: &PromptBuilder,
    sight_only: bool,
    device: &Device,
) -> Result<Measured, TrainError> {
    let leaves = Leaves::tracked(parameters, device);
    let model = Mllmseg::load(&leaves, config)?;
    let auxiliary = Auxiliary::load(&leaves, config)?;

    if sight_only {
        let pixels = model
            .vision
            .pixels(batch.pixels.clone(), batch.pictures, config.image_size);
        let patch = auxiliary.patch_loss(model.vision.forward(pixels), batch);
        let mut losses = Losses::default();
        losses.push("patch", scalar(&patch), 1.0);
        leaves.differentiate(&patch, &[]);
        return Ok(Measured {
            losses,
            gradients: leaves.into_gradients(),
            statistics: Vec::new(),
            work: Work {
                pictures: batch.pictures as u64,
                tokens: 0,
            },
        });
    }

    let forward = forward(&model, batch, config, prompts)?;
    let [_, vocabulary] = forward.decisions.dims();
    let device = forward.decisions.device();
    let special = prompts.tokens();
    let markers = batch
        .found
        .iter()
        .map(|&found| i64::from(if found { special.seg } else { special.rej }));
    debug_assert!(
        markers.clone().all(|id| (id as usize) < vocabulary),
        "markers are in the vocabulary"
    );
    let weights = batch
        .found
        .iter()
        .map(|&found| if found { 1.0 } else { REJECTION_WEIGHT });
    let weights = floats(&weights.collect::<Vec<f32>>(), [batch.found.len()], &device);
    let decision = cross_entropy(
        forward.decisions.clone(),
        indices(markers, &device),
        weights,
    );

    let decoded = model
        .decoder
        .decode_in_training(&forward.image, chosen_phrases(&forward, batch));
    let targets = floats(&batch.targets, decoded.logits.dims(), &device);
    let mask = binary_cross_entropy(
        decoded.logits.clone(),
        targets.clone(),
        MASK_POSITIVE_WEIGHT,
    );
    let overlap = dice(activation::sigmoid(decoded.logits), targets);
    let patch = auxiliary.patch_loss(forward.vit.clone(), batch);
    let of_phrases = auxiliary.phrase_losses(
        forward.vit.clone(),
        forward.image.places(),
        forward.phrases.clone(),
        batch,
    );
    let PhraseLosses {
        matching,
        place,
        words,
    } = of_phrases;

    let parts = [decision, mask, overlap, patch, matching, place, words];
    let mut losses = Losses::default();
    let weighted = parts
        .into_iter()
        .zip(WEIGHTS)
        .map(|(loss, (name, weight))| {
            losses.push(name, scalar(&loss), weight);
            loss * weight
        });
    let total = weighted
        .reduce(|sum, loss| sum + loss)
        .expect("there are seven losses");
    leaves.differentiate(&total, &[]);
    let row = prompts.prefix()?.ids.len() + batch.phrases * batch.longest_suffix();
    let statistics = decoded.statistics.map(|(mean, variance)| Statistics {
        mean: values(mean),
        variance: values(variance),
        count: batch.chosen.len() * config.grid() * config.grid(),
    });
    Ok(Measured {
        losses,
        gradients: leaves.into_gradients(),
        statistics: statistics.into_iter().collect(),
        work: Work {
            pictures: batch.pictures as u64,
            tokens: (batch.pictures * row) as u64,
        },
    })
}
