//! InternViT: a picture to one vector per patch.
//!
//! Paper: InternVL, arXiv 2312.14238. Reference: `InternVisionModel.forward`.
//! Differs: the position table is used at its own size only, so it is never
//! resized; the class token is dropped here, where its last use is.

use burn::tensor::{Tensor, TensorData};

use super::VisionConfig;
use crate::{
    nn::{Activation, DotProductAttention, LayerNorm, Linear, Tensors, patches, split_heads},
    weights::WeightsError,
};

/// The vision tower.
#[derive(Debug, Clone)]
pub struct VisionModel {
    /// Key `embeddings.patch_embedding`, a convolution whose stride is its kernel: an affine map of each patch.
    patch_embedding: Linear,
    /// Key `embeddings.class_embedding`: `(1, 1, C)`.
    class_embedding: Tensor<3>,
    /// Key `embeddings.position_embedding`: `(1, 1 + P, C)`, the class token first.
    position_embedding: Tensor<3>,
    /// Keys `encoder.layers.{i}`.
    layers: Vec<Block>,
    patch: usize,
}

impl VisionModel {
    /// Reads the tower; `tensors` is at `vision_model`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &VisionConfig) -> Result<Self, WeightsError> {
        let VisionConfig {
            width,
            patch,
            image_size,
            ..
        } = *config;
        let patches = (image_size / patch).pow(2);
        let embeddings = tensors.at("embeddings");
        let field = "vision_config.hidden_size";
        let kernel = embeddings.get(
            "patch_embedding.weight",
            [width, 3, patch, patch],
            "vision_config.patch_size",
        )?;
        Ok(Self {
            patch_embedding: Linear::new(
                &embeddings,
                kernel.reshape([width, 3 * patch * patch]),
                Some(embeddings.get("patch_embedding.bias", [width], field)?),
            ),
            class_embedding: embeddings.get("class_embedding", [1, 1, width], field)?,
            position_embedding: embeddings.get(
                "position_embedding",
                [1, 1 + patches, width],
                "vision_config.image_size",
            )?,
            layers: (0..config.layers)
                .map(|i| Block::load(&tensors.at("encoder.layers").at(i), config))
                .collect::<Result<_, _>>()?,
            patch,
        })
    }

    /// One vector per patch, in reading order, after the last block (there is no final norm).
    ///
    /// # Shapes
    /// - `pixels`: `(B, 3, S, S)`, normalised
    /// - returns `(B, P, C)`
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let x = self.patch_embedding.forward(patches(pixels, self.patch)); // (B, P, C)
        let [batch, patches, width] = x.dims();
        let class = self.class_embedding.clone().expand([batch, 1, width]);
        let x = Tensor::cat(vec![class, x], 1) + self.position_embedding.clone(); // (B, 1 + P, C)
        self.layers
            .iter()
            .fold(x, |x, layer| layer.forward(x))
            .narrow(1, 1, patches)
    }

    /// Puts normalised pixels, channel by channel, onto the device of the weights.
    ///
    /// # Shapes
    /// `pixels` holds `B·3·S·S` values; returns `(B, 3, S, S)`.
    pub fn pixels(&self, pixels: Vec<f32>, batch: usize, side: usize) -> Tensor<4> {
        let data = TensorData::new(pixels, [batch, 3, side, side]);
        Tensor::from_data(data, &self.class_embedding.device())
    }
}

/// One transformer block: attention, then an MLP, each scaled and added.
#[derive(Debug, Clone)]
struct Block {
    /// Key `norm1`.
    norm1: LayerNorm,
    /// Key `attn.qkv`: all queries, all keys, all values.
    qkv: Linear,
    /// Key `attn.proj`.
    proj: Linear,
    /// Key `ls1`: `(C)`, LayerScale.
    ls1: Tensor<1>,
    /// Key `norm2`.
    norm2: LayerNorm,
    /// Key `mlp.fc1`.
    fc1: Linear,
    /// Key `mlp.fc2`.
    fc2: Linear,
    /// Key `ls2`: `(C)`.
    ls2: Tensor<1>,
    attention: DotProductAttention,
    heads: usize,
}

impl Block {
    fn load(tensors: &Tensors<'_>, config: &VisionConfig) -> Result<Self, WeightsError> {
        let VisionConfig {
            width,
            inner,
            heads,
            epsilon,
            ..
        } = *config;
        let field = "vision_config.hidden_size";
        let (qkv, size) = (tensors.at("attn.qkv"), [width, 3 * width]);
        Ok(Self {
            norm1: LayerNorm::load(&tensors.at("norm1"), width, epsilon, field)?,
            qkv: if config.qkv_bias {
                Linear::load(&qkv, size, field)?
            } else {
                Linear::load_without_bias(&qkv, size, field)?
            },
            proj: Linear::load(&tensors.at("attn.proj"), [width, width], field)?,
            ls1: tensors.get("ls1", [width], field)?,
            norm2: LayerNorm::load(&tensors.at("norm2"), width, epsilon, field)?,
            fc1: Linear::load(
                &tensors.at("mlp.fc1"),
                [width, inner],
                "vision_config.intermediate_size",
            )?,
            fc2: Linear::load(
                &tensors.at("mlp.fc2"),
                [inner, width],
                "vision_config.intermediate_size",
            )?,
            ls2: tensors.get("ls2", [width], field)?,
            attention: DotProductAttention::new(tensors),
            heads,
        })
    }

    /// `(B, L, C)` to `(B, L, C)`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let seen = self.attend(self.norm1.forward(x.clone()));
        let x = self.proj.forward_scaled(seen, &self.ls1, x);
        let inner = self.norm2.forward(x.clone());
        let inner = self.fc1.forward_activated(inner, Activation::Gelu);
        self.fc2.forward_scaled(inner, &self.ls2, x)
    }

    fn attend(&self, x: Tensor<3>) -> Tensor<3> {
        let heads = split_heads(self.qkv.forward(x), 3 * self.heads);
        let part = |i: usize| heads.clone().narrow(1, i * self.heads, self.heads);
        self.attention.forward(part(0), part(1), part(2), None)
    }
}
