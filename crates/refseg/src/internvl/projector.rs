//! Pixel unshuffle and the MLP that turns patches into image tokens.
//!
//! Reference: `InternVLChatModel.pixel_shuffle`, `InternVLChatModel.mlp1`.

use burn::tensor::Tensor;

use super::{Config, UnshuffleVersion};
use crate::{
    nn::{Activation, LayerNorm, Linear, Tensors},
    weights::WeightsError,
};

/// Joins neighbouring patches and maps them to the language model's width.
#[derive(Debug, Clone)]
pub struct Projector {
    /// Key `mlp1.0`, over the joined channels.
    norm: LayerNorm,
    /// Key `mlp1.1`: C·r² → D.
    fc1: Linear,
    /// Key `mlp1.3`: D → D.
    fc2: Linear,
    unshuffle: usize,
    version: UnshuffleVersion,
}

impl Projector {
    /// Reads the projector; `tensors` is at the root of the checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &Config) -> Result<Self, WeightsError> {
        // The default of `nn.LayerNorm`, which the reference leaves as it is.
        const EPSILON: f64 = 1e-5;
        let joined = config.vision.width * config.unshuffle * config.unshuffle;
        let width = config.language.width;
        Ok(Self {
            norm: LayerNorm::load(
                &tensors.at("mlp1.0"),
                joined,
                EPSILON,
                "vision_config.hidden_size",
            )?,
            fc1: Linear::load(
                &tensors.at("mlp1.1"),
                [joined, width],
                "llm_config.hidden_size",
            )?,
            fc2: Linear::load(
                &tensors.at("mlp1.3"),
                [width, width],
                "llm_config.hidden_size",
            )?,
            unshuffle: config.unshuffle,
            version: config.unshuffle_version,
        })
    }

    /// # Shapes
    /// - `vit`: `(B, P, C)`, patches of a square picture in reading order
    /// - returns `(B, P/r², D)`, image tokens
    pub fn forward(&self, vit: Tensor<3>) -> Tensor<3> {
        let joined = pixel_unshuffle(vit, self.unshuffle, self.version);
        let inner = self.norm.forward(joined);
        let inner = self.fc1.forward_activated(inner, Activation::Gelu);
        self.fc2.forward(inner)
    }
}

/// Joins `r × r` neighbouring patches: token `(i, j)` holds patches `(r·i + a, r·j + b)`, `b` fastest.
///
/// # Shapes
/// `(B, P, C)` to `(B, P/r², r²·C)`.
pub(crate) fn pixel_unshuffle(vit: Tensor<3>, r: usize, version: UnshuffleVersion) -> Tensor<3> {
    let [batch, patches, width] = vit.dims();
    let tokens = patches.isqrt() / r;
    let grid = vit.reshape([batch, tokens, r, tokens, r, width]);
    let grid = match version {
        UnshuffleVersion::V2 => grid.permute([0, 1, 3, 2, 4, 5]),
        UnshuffleVersion::V1 => grid.permute([0, 3, 1, 2, 4, 5]),
    };
    grid.reshape([batch, tokens * tokens, r * r * width])
}
