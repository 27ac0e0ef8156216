//! One forward pass over some pictures and prompts, its losses, and their gradients.
//!
//! Reference: the losses of Segment Anything, arXiv 2304.02643, and of EfficientViT-SAM, arXiv
//! 2402.05008. Differs: every pixel of the masks' own grid counts, where those draw 12,544 points.

use burn::tensor::{Tensor, TensorData, activation};
use refseg::{
    nn::Tensors,
    sam::{Config, Sam},
};

use super::{
    drawing::Drawing,
    recipe::{Loss, PixelForm},
};
use crate::{
    TrainError,
    losses::Losses,
    parameters::Leaves,
    run::{Measured, Work},
    tensors::{floats, scalar, values},
};

/// Losses and gradients of a pass.
///
/// # Errors
/// If a tensor is missing, or a loss is not finite.
pub fn measure(
    tracked: Leaves<'_>,
    config: &Config,
    loss: &Loss,
    drawings: &[Drawing],
) -> Result<Measured, TrainError> {
    let model = Sam::load(&Tensors::root(&tracked), config)?;
    let side = config.encoder.image_size();
    let pixels = drawings.iter().flat_map(|drawing| &drawing.pixels);
    let pixels: Vec<f32> = pixels.copied().collect();
    let pixels = TensorData::new(pixels, [drawings.len(), 3, side, side]);
    let positions = model.prompts.image_positions();
    let pixels = Tensor::<4>::from_data(pixels, &positions.device());
    let images = model.encoder.forward(pixels, &mut |_, _| {}); // (B, G², D)
    let images = images.split(1, 0);

    let masks = 4 * config.prompt.grid;
    let mut sums = [None, None, None];
    let (mut iou, mut prompts) = (0.0, 0);
    for (drawing, image) in drawings.iter().zip(images) {
        let decoded = model.decoder.forward(
            image,
            &positions,
            model.prompts.sparse(&drawing.prompts),
            model.prompts.dense(None),
            &mut |_, _| {},
        );
        let (first, count) = if drawing.several {
            (1, config.decoder.multimasks)
        } else {
            (0, 1)
        };
        let logits = decoded.logits.narrow(1, first, count);
        let scores = decoded.scores.narrow(1, first, count);
        let shape = [drawing.prompts.len(), 1, masks, masks];
        let targets = floats(&drawing.targets, shape, &logits.device());
        let drawn = Drawn::of(logits, scores, targets, loss);
        iou += drawn.iou;
        prompts += drawing.prompts.len();
        let parts = [drawn.pixels, drawn.dice, drawn.estimate];
        for (sum, part) in sums.iter_mut().zip(parts) {
            *sum = Some(match sum.take() {
                None => part,
                Some(sum) => sum + part,
            });
        }
    }
    let share = 1.0 / prompts.max(1) as f64;
    let mut losses = Losses::default();
    let mut total = None;
    let named = [
        ("pixels", loss.pixels),
        ("dice", loss.dice),
        ("estimate", loss.iou),
    ];
    for (sum, (name, weight)) in sums.into_iter().zip(named) {
        let Some(sum) = sum else { continue };
        let part: Tensor<1> = sum * share;
        losses.push(name, scalar(&part), weight as f32);
        let part = part * weight;
        total = Some(match total {
            None => part,
            Some(total) => total + part,
        });
    }
    losses.note("iou", iou * share as f32);
    if let Some((name, _)) = losses.parts.iter().find(|(_, value)| !value.is_finite()) {
        return Err(TrainError::LossNotFinite { loss: name });
    }
    tracked.differentiate(&total.ok_or(TrainError::NothingToLearn)?, &[]);
    Ok(Measured {
        losses,
        gradients: tracked.into_gradients(),
        statistics: Vec::new(),
        work: Work {
            pictures: drawings.len() as u64,
            tokens: 0,
        },
    })
}

/// Sums over the prompts of a picture.
struct Drawn {
    /// Of the best mask of each prompt.
    pixels: Tensor<1>,
    /// Of the best mask of each prompt.
    dice: Tensor<1>,
    /// Of the mean over all masks of a prompt.
    estimate: Tensor<1>,
    /// IoU of the best masks.
    iou: f32,
}

impl Drawn {
    /// The best mask of a prompt is the one that costs least: the others may mean something else.
    ///
    /// # Shapes
    /// `logits` `(Q, M, L, L)`, `scores` `(Q, M)`, `targets` `(Q, 1, L, L)`
    fn of(logits: Tensor<4>, scores: Tensor<2>, targets: Tensor<4>, loss: &Loss) -> Self {
        let [count, masks, height, width] = logits.dims();
        let flat = |x: Tensor<4>| {
            x.expand([count, masks, height, width])
                .reshape([count, masks, height * width])
        };
        let (logits, targets) = (flat(logits), flat(targets));
        let pixels = pixel_loss(logits.clone(), targets.clone(), loss);
        let dice = dice(activation::sigmoid(logits.clone()), targets.clone());
        let ious = ious(logits.inner(), targets.inner());

        let cost = pixels.clone().inner() * loss.pixels + dice.clone().inner() * loss.dice;
        let cost = values(cost);
        let known = values(ious.clone());
        let (mut chosen, mut iou) = (vec![0.0; count * masks], 0.0);
        for (prompt, cost) in cost.chunks(masks).enumerate() {
            let cheaper = |best: usize, i: usize| if cost[i] < cost[best] { i } else { best };
            let best = prompt * masks + (0..masks).fold(0, cheaper);
            chosen[best] = 1.0;
            iou += known[best];
        }
        let chosen: Tensor<2> = floats(&chosen, [count, masks], &scores.device());
        let ious: Tensor<2> = floats(&known, [count, masks], &scores.device());
        let gap = scores - ious;
        Self {
            pixels: (pixels * chosen.clone()).sum(),
            dice: (dice * chosen).sum(),
            estimate: (gap.clone() * gap).sum() / masks as f64,
            iou,
        }
    }
}

/// `(Q, M, P)` each, to `(Q, M)`.
fn pixel_loss(logits: Tensor<3>, targets: Tensor<3>, loss: &Loss) -> Tensor<2> {
    // The logit of being right.
    let right = logits * (targets.clone() * 2.0 - 1.0);
    let entropy = activation::log_sigmoid(right.clone()).neg();
    let wrong = match loss.form {
        PixelForm::BinaryCrossEntropy => entropy,
        PixelForm::Focal => entropy * activation::sigmoid(right.neg()).powi_scalar(2),
    };
    let weights = targets * (loss.foreground - 1.0) + 1.0;
    (wrong * weights).mean_dim(2).squeeze_dim(2)
}

/// `1 − (2Σpt + 1) / (Σp + Σt + 1)`: `(Q, M, P)` each, to `(Q, M)`.
fn dice(probabilities: Tensor<3>, targets: Tensor<3>) -> Tensor<2> {
    let sum = |x: Tensor<3>| x.sum_dim(2).squeeze_dim::<2>(2);
    let overlap = sum(probabilities.clone() * targets.clone());
    let total = sum(probabilities) + sum(targets);
    ((overlap * 2.0 + 1.0) / (total + 1.0)).neg() + 1.0
}

/// IoU of what is above zero: `(Q, M, P)` each, to `(Q, M)`.
fn ious(logits: Tensor<3>, targets: Tensor<3>) -> Tensor<2> {
    let sum = |x: Tensor<3>| x.sum_dim(2).squeeze_dim::<2>(2);
    let drawn = logits.greater_elem(0.0).float();
    let both = sum(drawn.clone() * targets.clone());
    let either = sum(drawn) + sum(targets) - both.clone();
    both / either.clamp_min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn loss(form: PixelForm) -> Loss {
        Loss {
            pixels: 20.0,
            form,
            foreground: 3.0,
            dice: 1.0,
            iou: 1.0,
        }
    }

    /// One prompt, two masks of two pixels: the first is right, the second wrong.
    fn two_masks() -> (Tensor<4>, Tensor<2>, Tensor<4>) {
        let device = Device::flex().autodiff();
        let logits = Tensor::from_floats([[[[2.0, -1.0]], [[-3.0, 1.0]]]], &device);
        let scores = Tensor::from_floats([[0.7, 0.5]], &device);
        let targets = Tensor::from_floats([[[[1.0, 0.0]]]], &device);
        (logits, scores, targets)
    }

    #[test]
    fn the_best_mask_counts_by_hand() {
        let (logits, scores, targets) = two_masks();
        let drawn = Drawn::of(
            logits,
            scores,
            targets,
            &loss(PixelForm::BinaryCrossEntropy),
        );
        let close = |found: &Tensor<1>, expected: f64| {
            let found = f64::from(scalar(found));
            assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
        };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let entropy = -(3.0 * sigmoid(2.0).ln() + sigmoid(1.0).ln()) / 2.0;
        close(&drawn.pixels, entropy);
        let (p, q) = (sigmoid(2.0), sigmoid(-1.0));
        close(&drawn.dice, 1.0 - (2.0 * p + 1.0) / (p + q + 2.0));
        // The first mask has an IoU of 1, the second of 0.
        close(&drawn.estimate, (0.09 + 0.25) / 2.0);
        assert!((drawn.iou - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_focal_form_by_hand() {
        let (logits, scores, targets) = two_masks();
        let drawn = Drawn::of(logits, scores, targets, &loss(PixelForm::Focal));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let pixel = |right: f64| -sigmoid(right).ln() * sigmoid(-right).powi(2);
        let expected = (3.0 * pixel(2.0) + pixel(1.0)) / 2.0;
        assert!((f64::from(scalar(&drawn.pixels)) - expected).abs() < 1e-6);
    }
}
