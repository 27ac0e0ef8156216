//! The MLP that gives patches the language model's width.
//!
//! Reference: `mm_projector` of type `mlp2x_gelu`.

use burn::tensor::Tensor;

use super::Config;
use crate::{
    nn::{Activation, Linear, Tensors},
    weights::WeightsError,
};

/// Two linear layers with an exact GELU between them.
#[derive(Debug, Clone)]
pub struct Projector {
    /// Key `model.mm_projector.0` or `multi_modal_projector.linear_1`: C → D.
    fc1: Linear,
    /// Key `model.mm_projector.2` or `multi_modal_projector.linear_2`: D → D.
    fc2: Linear,
}

impl Projector {
    /// Reads the projector; `tensors` is at the root of the checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &Config) -> Result<Self, WeightsError> {
        let [fc1, fc2] = config.layout.projector_keys();
        let (inner, width) = (config.vision.width, config.language.width);
        Ok(Self {
            fc1: Linear::load(&tensors.at(fc1), [inner, width], "hidden_size")?,
            fc2: Linear::load(&tensors.at(fc2), [width, width], "hidden_size")?,
        })
    }

    /// # Shapes
    /// `(B, P, C)` to `(B, P, D)`.
    pub fn forward(&self, patches: Tensor<3>) -> Tensor<3> {
        self.fc2
            .forward(self.fc1.forward_activated(patches, Activation::Gelu))
    }
}
