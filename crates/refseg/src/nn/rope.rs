//! Rotary position embedding, half-split ("rotate half") form.

use burn::tensor::{Device, Tensor, TensorData};

use super::inference;

/// Cosines and sines for a list of positions.
///
/// Angle `k` of position `p` is `p · theta^(−2k/d)`; it turns the pair of
/// components `k` and `k + d/2` of a head `d` wide.
#[derive(Debug, Clone)]
pub struct Rope {
    /// `(L, d/2)`.
    cos: Tensor<2>,
    /// `(L, d/2)`.
    sin: Tensor<2>,
}

impl Rope {
    /// Tables for `positions`, for heads `head_dim` wide.
    ///
    /// Angles are f32 products of an f32 frequency, as the checkpoints' own
    /// code computes them.
    pub fn new(positions: &[usize], head_dim: usize, theta: f64, device: &Device) -> Self {
        let half = head_dim / 2;
        let frequency: Vec<f32> = (0..half)
            .map(|k| 1.0 / (theta as f32).powf((2 * k) as f32 / head_dim as f32))
            .collect();
        let angles = positions
            .iter()
            .flat_map(|&p| frequency.iter().map(move |f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos(), a.sin())).unzip();
        let table =
            |values| Tensor::from_data(TensorData::new(values, [positions.len(), half]), device);
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Turns queries or keys.
    ///
    /// # Shapes
    /// `(B, H, L, d)` to `(B, H, L, d)`.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        if !x.device().is_autodiff() {
            return inference::rope(x, self.cos.clone(), self.sin.clone());
        }
        let [_, _, _, head_dim] = x.dims();
        let half = head_dim / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        let cos = self.cos.clone().unsqueeze::<4>();
        let sin = self.sin.clone().unsqueeze::<4>();
        Tensor::cat(
            vec![
                first.clone() * cos.clone() - second.clone() * sin.clone(),
                second * cos + first * sin,
            ],
            3,
        )
    }
}
