//! The whole network: image encoder, prompt encoder, mask decoder.
//!
//! Paper: Segment Anything, arXiv 2304.02643. Reference: `Sam.forward`.

use burn::tensor::Tensor;

use super::{
    EfficientVitEncoder, MaskDecoder, PromptEncoder, TinyVitEncoder, VitEncoder, Watch,
    config::{Config, EncoderConfig},
};
use crate::{nn::Tensors, weights::WeightsError};

/// A Segment Anything network with any of its image encoders.
#[derive(Debug, Clone)]
pub struct Sam {
    /// Keys `image_encoder.*`.
    pub encoder: ImageEncoder,
    /// Keys `prompt_encoder.*`.
    pub prompts: PromptEncoder,
    /// Keys `mask_decoder.*`.
    pub decoder: MaskDecoder,
}

/// What turns a picture into its image embedding.
#[derive(Debug, Clone)]
pub enum ImageEncoder {
    /// Segment Anything's own.
    Vit(Box<VitEncoder>),
    /// MobileSAM's.
    TinyVit(Box<TinyVitEncoder>),
    /// EfficientViT-SAM's.
    EfficientVit(Box<EfficientVitEncoder>),
}

impl Sam {
    /// Builds the network from a checkpoint; `tensors` is at its root.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &Config) -> Result<Self, WeightsError> {
        Ok(Self {
            encoder: ImageEncoder::load(&tensors.at("image_encoder"), &config.encoder)?,
            prompts: PromptEncoder::load(&tensors.at("prompt_encoder"), &config.prompt)?,
            decoder: MaskDecoder::load(&tensors.at("mask_decoder"), &config.decoder)?,
        })
    }
}

impl ImageEncoder {
    /// Reads the encoder; `tensors` is at `image_encoder`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &EncoderConfig) -> Result<Self, WeightsError> {
        Ok(match config {
            EncoderConfig::Vit(config) => Self::Vit(Box::new(VitEncoder::load(tensors, config)?)),
            EncoderConfig::TinyVit(config) => {
                Self::TinyVit(Box::new(TinyVitEncoder::load(tensors, config)?))
            }
            EncoderConfig::EfficientVit(config) => {
                Self::EfficientVit(Box::new(EfficientVitEncoder::load(tensors, config)?))
            }
        })
    }

    /// The image embedding; `watch` is shown what comes before.
    ///
    /// # Shapes
    /// - `pixels`: `(B, 3, S, S)`, normalised
    /// - returns `(B, G², D)`
    pub fn forward(&self, pixels: Tensor<4>, watch: Watch<'_, 4>) -> Tensor<3> {
        match self {
            Self::Vit(encoder) => encoder.forward(pixels, watch),
            Self::TinyVit(encoder) => encoder.forward(pixels, watch),
            Self::EfficientVit(encoder) => encoder.forward(pixels, watch),
        }
    }
}
