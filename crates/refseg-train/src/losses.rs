//! What a mask and a decision cost.

use burn::tensor::{Int, Tensor, activation};

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

/// `1 − (2Σpt + 1) / (Σp + Σt + 1)` for each mask, averaged over the masks (spec of the official Dice).
///
/// # Shapes
/// - `logits`, `targets`: `(N, S, S)`
/// - returns `(1)`
pub fn dice(logits: Tensor<3>, targets: Tensor<3>) -> Tensor<1> {
    let sums = |x: Tensor<3>| -> Tensor<1> { x.sum_dim(2).sum_dim(1).reshape([-1]) };
    let p = activation::sigmoid(logits);
    let overlap = sums(p.clone() * targets.clone());
    let total = sums(p) + sums(targets);
    ((overlap * 2.0 + 1.0) / (total + 1.0)).mean().neg() + 1.0
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

    #[test]
    fn dice_matches_the_specification() {
        let device = Device::flex();
        let logit = |p: f32| (p / (1.0 - p)).ln();
        let p =
            [[[0.2, 0.7], [0.9, 0.4]], [[0.1, 0.1], [0.6, 0.95]]].map(|m| m.map(|r| r.map(logit)));
        let t = [[[0., 1.], [1., 0.]], [[0., 0.], [1., 1.]]];
        let got = value(dice(
            Tensor::from_floats(p, &device),
            Tensor::from_floats(t, &device),
        ));
        assert!((got - 0.164_574_898_8).abs() < 1e-6, "{got}");
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
