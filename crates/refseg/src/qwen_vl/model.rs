//! The whole network: vision transformer, resampler, language model.
//!
//! Reference: `QWenModel.forward` of Qwen-VL.

use burn::tensor::Tensor;

use super::{Config, Resampler, VisionModel};
use crate::{
    image::{CLIP_MEAN, CLIP_STD, Image},
    language::LanguageModel,
    nn::{TensorSource, Tensors},
    weights::WeightsError,
};

/// Qwen-VL.
#[derive(Debug, Clone)]
pub struct QwenVl {
    /// What makes a picture tokens.
    pub pictures: PictureEncoder,
    /// What reads them.
    pub language: LanguageModel,
}

impl QwenVl {
    /// Builds the network from a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(source: &dyn TensorSource, config: &Config) -> Result<Self, WeightsError> {
        let tensors = Tensors::root(source);
        let visual = tensors.at("transformer.visual");
        Ok(Self {
            pictures: PictureEncoder {
                vision: VisionModel::load(&visual, &config.visual)?,
                resampler: Resampler::load(&visual, &config.visual)?,
                side: config.visual.image_size,
            },
            language: LanguageModel::load(&tensors, &config.language)?,
        })
    }
}

/// The half that makes a picture tokens.
#[derive(Debug, Clone)]
pub struct PictureEncoder {
    /// Keys `transformer.visual.*`.
    pub vision: VisionModel,
    /// Keys `transformer.visual.attn_pool.*`, `ln_post` and `proj`.
    pub resampler: Resampler,
    /// Of the picture that the model sees, in pixels.
    side: usize,
}

impl PictureEncoder {
    /// The picture as tokens, squashed to a square.
    ///
    /// # Shapes
    /// returns `(1, 256, D)`
    pub fn forward(&self, image: &Image) -> Tensor<3> {
        let side = self.side as u32;
        let pixels = image.resize(side, side).normalised_by(CLIP_MEAN, CLIP_STD);
        let pixels = self.vision.pixels(pixels, self.side);
        self.resampler.forward(self.vision.forward(pixels))
    }
}
