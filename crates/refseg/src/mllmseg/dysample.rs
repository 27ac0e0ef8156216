//! DySample: upsampling by learned sampling positions.
//!
//! Paper: DySample, arXiv 2308.15085 (style "lp", no dynamic scope).
//! Reference: `DySample.forward`. Differs: the closed form of the sampling
//! grid is used, so the stored constant `init_pos` is not read.

use burn::tensor::{Device, Tensor, TensorData};

use crate::{
    nn::{Linear, Tensors, sample},
    weights::WeightsError,
};

/// Doubles the resolution of a feature map.
#[derive(Debug, Clone)]
pub(super) struct DySample {
    /// Key `offset`, a 1×1 convolution: C → 2·G·s², channels `[x or y][group][row][column]`.
    offset: Linear,
}

/// How much finer the output is along each axis.
const SCALE: usize = 2;
/// Channel groups that are sampled at positions of their own.
const GROUPS: usize = 4;
/// How far an offset of one reaches, in cells of the input.
const REACH: f64 = 0.25;

impl DySample {
    /// Reads `offset`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub(super) fn load(tensors: &Tensors<'_>, width: usize) -> Result<Self, WeightsError> {
        let outputs = 2 * GROUPS * SCALE * SCALE;
        let field = "vision_config.hidden_size";
        let kernel = tensors.get("offset.weight", [outputs, width, 1, 1], field)?;
        let bias = tensors.get("offset.bias", [outputs], field)?;
        Ok(Self {
            offset: Linear::new(tensors, kernel.reshape([outputs, width]), Some(bias)),
        })
    }

    /// # Shapes
    /// - `x`: `(B, S·S, C)`, a square map in reading order
    /// - returns `(B, 2S·2S, C)`
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, cells, width] = x.dims();
        let side = cells.isqrt();
        let (fine, channels) = (side * SCALE, width / GROUPS);

        // Offsets of each group: (B, G, 2S·2S, 2).
        let offsets = self.offset.forward(x.clone()).mul_scalar(REACH);
        let offsets = offsets
            .reshape([batch, side, side, 2, GROUPS, SCALE, SCALE])
            .permute([0, 4, 1, 5, 2, 6, 3])
            .reshape([batch, GROUPS, fine * fine, 2]);
        let points = offsets + base_points(side, &x.device());
        let maps = x.reshape([batch, cells, GROUPS, channels]).swap_dims(1, 2);
        sample(maps, side, points)
    }
}

/// Where the fine cells lie when every offset is zero, in cells of the input: `(1, 1, 2S·2S, 2)`, x first.
///
/// Sub-cell 0 lies a quarter before its cell's centre, sub-cell 1 a quarter behind it.
fn base_points(side: usize, device: &Device) -> Tensor<4> {
    let at = |fine: usize| (fine as f32 + 0.5) / SCALE as f32;
    let fine = side * SCALE;
    let values = (0..fine).flat_map(|row| (0..fine).flat_map(move |column| [at(column), at(row)]));
    Tensor::from_data(
        TensorData::new(values.collect(), [1, 1, fine * fine, 2]),
        device,
    )
}
