//! The whole network: vision tower, projector, language model, mask decoder.
//!
//! Paper: MLLMSeg, arXiv 2508.04107. Reference: `MLLMSeg.forward`.

use burn::tensor::Tensor;

use super::MaskDecoder;
use crate::{
    internvl::{Config, Projector, VisionModel},
    language::LanguageModel,
    nn::{TensorSource, Tensors},
    weights::WeightsError,
};

/// InternVL with a light mask decoder.
#[derive(Debug, Clone)]
pub struct Mllmseg {
    /// Keys `vision_model.*`.
    pub vision: VisionModel,
    /// Keys `mlp1.*`.
    pub projector: Projector,
    /// Keys `language_model.*`.
    pub language: LanguageModel,
    /// Keys `res_decoder.*`.
    pub decoder: MaskDecoder,
}

impl Mllmseg {
    /// Builds the network from a checkpoint, or from the parameters of a training run.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(source: &dyn TensorSource, config: &Config) -> Result<Self, WeightsError> {
        let tensors = Tensors::root(source);
        Ok(Self {
            vision: VisionModel::load(&tensors.at("vision_model"), &config.vision)?,
            projector: Projector::load(&tensors, config)?,
            language: LanguageModel::load(&tensors.at("language_model"), &config.language)?,
            decoder: MaskDecoder::load(&tensors.at("res_decoder"), config)?,
        })
    }

    /// Puts image tokens in the place of their placeholders.
    ///
    /// # Shapes
    /// - `ids`: `L` token ids of which those from `image_start` on are placeholders
    /// - `image`: `(B, M, D)`, image tokens
    /// - returns `(B, L, D)`
    pub fn splice(&self, ids: &[u32], image_start: usize, image: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = image.dims();
        let embed = |ids: &[u32]| {
            let embedded = self.language.embed(ids);
            embedded.expand([batch, ids.len(), width])
        };
        let (before, after) = (&ids[..image_start], &ids[image_start + tokens..]);
        Tensor::cat(vec![embed(before), image, embed(after)], 1)
    }

    /// The language model's view of the picture: the states one position before each image token.
    ///
    /// The reference reads every token one position early, so that the first
    /// cell is the state of `<img>` and the last image token's is dropped; the
    /// decoder was trained that way.
    ///
    /// # Shapes
    /// `hidden` is `(B, L, D)`; returns `(B, M, D)`.
    pub fn image_states(&self, hidden: Tensor<3>, image_start: usize, tokens: usize) -> Tensor<3> {
        hidden.narrow(1, image_start - 1, tokens)
    }
}
