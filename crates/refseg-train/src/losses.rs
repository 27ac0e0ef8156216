//! What a mask and a decision cost.

use burn::tensor::{Int, Tensor, TensorData, activation};

/// The losses of a step, each before its weight, and what else is worth watching.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Losses {
    /// The weighted sum that is differentiated.
    pub total: f32,
    /// Names and values.
    pub parts: Vec<(&'static str, f32)>,
}

impl Losses {
    /// Adds a loss to the sum.
    pub(crate) fn push(&mut self, name: &'static str, value: f32, weight: f32) {
        self.total += weight * value;
        self.note(name, value);
    }

    /// Adds something to watch.
    pub(crate) fn note(&mut self, name: &'static str, value: f32) {
        self.parts.push((name, value));
    }

    /// Adds a share of other losses.
    pub(crate) fn add(&mut self, other: &Self, share: f32) {
        self.total += share * other.total;
        for &(name, value) in &other.parts {
            match self.parts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += share * value,
                None => self.parts.push((name, share * value)),
            }
        }
    }
}

/// Binary cross-entropy on logits, averaged over everything.
///
/// Positives count `positive_weight` times. The reference takes a second
/// sigmoid of probabilities instead, so that its gradient never vanishes
/// where the mask is right and is weak where it is wrong.
///
/// # Shapes
/// `logits` and `targets` (0 to 1) are alike; returns `(1)`.
pub fn binary_cross_entropy<const R: usize>(
    logits: Tensor<R>,
    targets: Tensor<R>,
    positive_weight: f64,
) -> Tensor<1> {
    let of_positives = activation::log_sigmoid(logits.clone()) * targets.clone() * positive_weight;
    let of_negatives = activation::log_sigmoid(logits.neg()) * (targets.neg() + 1.0);
    (of_positives + of_negatives).mean().neg()
}

/// Whether vectors point at what they mean: cross-entropy of the scores of what is pointed at.
/// Positives count four times, for little belongs to what is meant, and the threshold begins low.
///
/// # Shapes
/// - `asking`: `(B, Q, W)`; `asked`: `(B, P, W)`
/// - `coverage`: `(B, Q, P)`, the share of each of the P that belongs to what is meant
/// - returns `(1)`
pub(crate) fn pointing(asking: Tensor<3>, asked: Tensor<3>, coverage: Tensor<3>) -> Tensor<1> {
    let [_, _, width] = asking.dims();
    let scores = asking.matmul(asked.transpose()) * (width as f64).powf(-0.5);
    binary_cross_entropy(scores - 2.0, coverage, 4.0)
}

/// By how much boxes miss theirs: the mean over four sides, and over those that are `found`.
///
/// # Shapes
/// - `logits`: `(N, 4)`, of shares of the picture's sides; `boxes`: `(N, 4)`, as such shares
/// - `found`: `(N)`, 0 or 1
/// - returns `(1)`
pub(crate) fn box_miss(logits: Tensor<2>, boxes: Tensor<2>, found: Tensor<1>) -> Tensor<1> {
    let wrong = (activation::sigmoid(logits) - boxes).abs().mean_dim(1);
    (wrong.reshape([-1]) * found.clone()).sum() / (found.sum() + 1e-6)
}

/// Dice, the official form: `1 − (2Σpt + 1) / (Σp + Σt + 1)` for each mask, averaged over the
/// masks.
///
/// # Shapes
/// - `probabilities`, `targets` (0 or 1): `(N, H, W)`
/// - returns `(1)`
pub fn dice(probabilities: Tensor<3>, targets: Tensor<3>) -> Tensor<1> {
    let overlap = pixel_sums(probabilities.clone() * targets.clone());
    let total = pixel_sums(probabilities) + pixel_sums(targets);
    ((overlap * 2.0 + 1.0) / (total + 1.0)).mean().neg() + 1.0
}

/// The official focal loss, as the reference computes it: its cross-entropy takes probabilities
/// for logits, so that a second sigmoid is inside (spec §7). Its gradient does not vanish where
/// the mask is right; [`binary_cross_entropy`] is the loss it was meant to be. Averaged over the
/// masks.
///
/// # Shapes
/// - `probabilities`, `targets` (0 or 1): `(N, H, W)`
/// - returns `(1)`
pub fn official_focal(probabilities: Tensor<3>, targets: Tensor<3>) -> Tensor<1> {
    let (p, t) = (probabilities, targets);
    let (not_p, not_t) = (p.clone().neg() + 1.0, t.clone().neg() + 1.0);
    let entropy = activation::softplus(p.clone(), 1.0) - t.clone() * p.clone();
    let p_true = t.clone() * p + not_t.clone() * not_p;
    let alpha = t * FOCAL_ALPHA + not_t * (1.0 - FOCAL_ALPHA);
    let modulation = (p_true.neg() + 1.0).powi_scalar(2);
    (alpha * entropy * modulation).mean()
}

/// The focal loss on logits: cross-entropy times the square of how wrong a pixel is. Averaged
/// over everything; positives count `positive_weight` times.
///
/// Paper: arXiv 1708.02002, with γ = 2.
///
/// # Shapes
/// `logits` and `targets` (0 or 1) are alike; returns `(1)`.
pub fn focal(logits: Tensor<3>, targets: Tensor<3>, positive_weight: f64) -> Tensor<1> {
    let p = activation::sigmoid(logits.clone());
    let (not_p, not_t) = (p.clone().neg() + 1.0, targets.clone().neg() + 1.0);
    let of_positives = activation::log_sigmoid(logits.clone()) * not_p.powi_scalar(2);
    let of_negatives = activation::log_sigmoid(logits.neg()) * p.powi_scalar(2);
    let all = of_positives * targets * positive_weight + of_negatives * not_t;
    all.mean().neg()
}

/// Weight of the foreground in [`official_focal`]; the background has the rest (spec §7).
const FOCAL_ALPHA: f64 = 0.25;

/// The reference's soft IoU, which it logs and does not train on: for each mask
/// `(Σpt + 1e-8) / (Σp + Σt − Σpt + 1e-8)`, averaged over the masks.
///
/// # Shapes
/// - `probabilities`, `targets` (0 or 1): `(N, H, W)`
/// - returns `(1)`
pub fn soft_iou(probabilities: Tensor<3>, targets: Tensor<3>) -> Tensor<1> {
    let overlap = pixel_sums(probabilities.clone() * targets.clone());
    let union = pixel_sums(probabilities) + pixel_sums(targets) - overlap.clone();
    ((overlap + 1e-8) / (union + 1e-8)).mean()
}

/// Bilinear resizing as inference does it (`align_corners = false`, no smoothing), by a product
/// with weights on either side, so that gradients flow.
///
/// # Shapes
/// `(N, S, T)` to `(N, H, W)`, for `size` `[H, W]`.
pub fn resize(masks: Tensor<3>, size: [usize; 2]) -> Tensor<3> {
    let [_, rows, columns] = masks.dims();
    if [rows, columns] == size {
        return masks;
    }
    let device = masks.device();
    let weights = |from: usize, to: usize| {
        let data = TensorData::new(bilinear_weights(from, to), [1, to, from]);
        Tensor::<3>::from_data(data, &device)
    };
    let across = weights(columns, size[1]).swap_dims(1, 2);
    weights(rows, size[0]).matmul(masks).matmul(across)
}

/// `(to, from)`: what each input cell gives to each output cell (spec §3.5).
fn bilinear_weights(from: usize, to: usize) -> Vec<f32> {
    let scale = from as f32 / to as f32;
    let mut weights = vec![0.0; to * from];
    for (cell, row) in weights.chunks_mut(from).enumerate() {
        let source = (scale * (cell as f32 + 0.5) - 0.5).max(0.0);
        let first = (source as usize).min(from - 1);
        let second = (first + 1).min(from - 1);
        let fraction = source - first as f32;
        row[first] += 1.0 - fraction;
        row[second] += fraction;
    }
    weights
}

/// Sum over the pixels of each mask: `(N, H, W)` to `(N)`.
fn pixel_sums(masks: Tensor<3>) -> Tensor<1> {
    masks.sum_dim(2).sum_dim(1).reshape([-1])
}

/// Cross-entropy of a choice among classes, each row weighted.
///
/// # Shapes
/// - `logits`: `(N, classes)`
/// - `targets`, `weights`: `(N)`
/// - returns `(1)`: the weighted mean
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>, weights: Tensor<1>) -> Tensor<1> {
    let chosen = activation::log_softmax(logits, 1).gather(1, targets.unsqueeze_dim(1));
    let total = weights.clone().sum() + 1e-6;
    (chosen.reshape([-1]) * weights).sum().neg() / total
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn value(tensor: Tensor<1>) -> f64 {
        f64::from(tensor.into_data().try_into_vec::<f32>().expect("f32")[0])
    }

    /// Probabilities and targets of the specification's two masks (§11.5).
    fn two_masks() -> (Tensor<3>, Tensor<3>) {
        let device = Device::flex();
        let p = [[[0.2, 0.7], [0.9, 0.4]], [[0.1, 0.1], [0.6, 0.95]]];
        let t = [[[0., 1.], [1., 0.]], [[0., 0.], [1., 1.]]];
        (
            Tensor::from_floats(p, &device),
            Tensor::from_floats(t, &device),
        )
    }

    #[test]
    fn official_losses_match_the_specification() {
        let (p, t) = two_masks();
        let of = |loss: fn(Tensor<3>, Tensor<3>) -> Tensor<1>, masks: usize| {
            let first = |x: &Tensor<3>| x.clone().narrow(0, 0, masks);
            value(loss(first(&p), first(&t)))
        };
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-7, "{found}, {expected}");
        };
        close(of(official_focal, 2), 0.021_537_547_9);
        close(of(dice, 2), 0.164_574_898_8);
        close(of(soft_iou, 2), 0.659_965_036_4);
        close(of(official_focal, 1), 0.035_857_641_8);
        close(of(dice, 1), 0.192_307_692_3);
    }

    #[test]
    fn resizing_matches_the_specification() {
        let device = Device::flex();
        let small = Tensor::<3>::from_floats([[[0., 1., 4.], [9., 16., 25.]]], &device);
        let of = |size| {
            let resized = resize(small.clone(), size).into_data();
            resized.try_into_vec::<f32>().expect("f32")
        };
        let expected = [
            [0.0, 0.4, 1.0, 2.8, 4.0],
            [4.5, 6.1, 8.5, 12.1, 14.5],
            [9.0, 11.8, 16.0, 21.4, 25.0],
        ];
        for (found, expected) in of([3, 5]).iter().zip(expected.as_flattened()) {
            assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
        }
        assert_eq!(of([1, 2]), [5.5, 13.0]);
    }

    #[test]
    fn focal_by_hand() {
        let device = Device::flex();
        let logits = Tensor::<3>::from_floats([[[0.0, 2.0]]], &device);
        let targets = Tensor::<3>::from_floats([[[1.0, 0.0]]], &device);
        let wrong = 1.0 / (1.0 + (-2f64).exp());
        let of_negative = (1.0 + 2f64.exp()).ln() * wrong * wrong;
        let expected = (3.0 * 2f64.ln() * 0.25 + of_negative) / 2.0;
        assert!((value(focal(logits, targets, 3.0)) - expected).abs() < 1e-6);
    }

    #[test]
    fn binary_cross_entropy_by_hand() {
        let device = Device::flex();
        let logits = Tensor::<1>::from_floats([0.0, 2.0], &device);
        let targets = Tensor::<1>::from_floats([1.0, 0.0], &device);
        let expected = (3.0 * 2f64.ln() + (1.0 + 2f64.exp()).ln()) / 2.0;
        assert!((value(binary_cross_entropy(logits, targets, 3.0)) - expected).abs() < 1e-6);
    }

    #[test]
    fn cross_entropy_by_hand() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[0.0, 0.0], [0.0, 1.0]], &device);
        let targets = Tensor::<1, Int>::from_ints([0, 1], &device);
        let weights = Tensor::<1>::from_floats([1.0, 3.0], &device);
        let expected = (2f64.ln() + 3.0 * (1.0 + (-1f64).exp()).ln()) / 4.0;
        assert!((value(cross_entropy(logits, targets, weights)) - expected).abs() < 1e-6);
    }
}
