//! CLIP's vision transformer: a tile to one vector per patch.
//!
//! Paper: CLIP, arXiv 2103.00020. Reference: `CLIPVisionTransformer.forward`.
//! Differs: layers behind the one whose output is taken are neither read nor
//! run; the class token is dropped here, where its last use is.

use burn::tensor::{Tensor, TensorData};

use super::VisionConfig;
use crate::{
    nn::{Activation, DotProductAttention, LayerNorm, Linear, Tensors, patches, split_heads},
    weights::WeightsError,
};

/// The vision tower.
#[derive(Debug, Clone)]
pub struct VisionModel {
    /// Key `embeddings.patch_embedding`, a convolution whose stride is its kernel, without bias.
    patch_embedding: Linear,
    /// Key `embeddings.class_embedding`: `(1, 1, C)`.
    class_embedding: Tensor<3>,
    /// Key `embeddings.position_embedding`: `(1, 1 + P, C)`, the class token first.
    position_embedding: Tensor<3>,
    /// Key `pre_layrnorm`, as the checkpoints spell it.
    pre_norm: LayerNorm,
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
            epsilon,
            ..
        } = *config;
        let embeddings = tensors.at("embeddings");
        let field = "vision_config.hidden_size";
        let kernel = embeddings.get(
            "patch_embedding.weight",
            [width, 3, patch, patch],
            "vision_config.patch_size",
        )?;
        let positions = embeddings.get(
            "position_embedding.weight",
            [1 + config.grid().pow(2), width],
            "vision_config.image_size",
        )?;
        Ok(Self {
            patch_embedding: Linear::new(tensors, kernel.reshape([width, 3 * patch * patch]), None),
            class_embedding: embeddings
                .get("class_embedding", [width], field)?
                .reshape([1, 1, width]),
            position_embedding: positions.unsqueeze(),
            pre_norm: LayerNorm::load(&tensors.at("pre_layrnorm"), width, epsilon, field)?,
            layers: (0..config.used_layers)
                .map(|i| Block::load(&tensors.at("encoder.layers").at(i), config))
                .collect::<Result<_, _>>()?,
            patch,
        })
    }

    /// One vector per patch, in reading order, after the layer that the config selects.
    ///
    /// # Shapes
    /// - `pixels`: `(B, 3, S, S)`, normalised
    /// - returns `(B, P, C)`
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let x = self.embed(pixels);
        let [_, tokens, _] = x.dims();
        self.layers
            .iter()
            .fold(x, |x, layer| layer.forward(x))
            .narrow(1, 1, tokens - 1)
    }

    /// What goes into the first layer, the class token first.
    ///
    /// # Shapes
    /// `(B, 3, S, S)` to `(B, 1 + P, C)`.
    pub fn embed(&self, pixels: Tensor<4>) -> Tensor<3> {
        let x = self.patch_embedding.forward(patches(pixels, self.patch)); // (B, P, C)
        let [batch, _, width] = x.dims();
        let class = self.class_embedding.clone().expand([batch, 1, width]);
        let x = Tensor::cat(vec![class, x], 1) + self.position_embedding.clone(); // (B, 1 + P, C)
        self.pre_norm.forward(x)
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

/// One pre-norm transformer block.
#[derive(Debug, Clone)]
struct Block {
    /// Key `layer_norm1`.
    norm1: LayerNorm,
    /// Key `self_attn.q_proj`.
    query: Linear,
    /// Key `self_attn.k_proj`.
    key: Linear,
    /// Key `self_attn.v_proj`.
    value: Linear,
    /// Key `self_attn.out_proj`.
    output: Linear,
    /// Key `layer_norm2`.
    norm2: LayerNorm,
    /// Key `mlp.fc1`.
    fc1: Linear,
    /// Key `mlp.fc2`.
    fc2: Linear,
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
        let inner_field = "vision_config.intermediate_size";
        let norm = |name| LayerNorm::load(&tensors.at(name), width, epsilon, field);
        let square = |name| Linear::load(&tensors.at("self_attn").at(name), [width, width], field);
        Ok(Self {
            norm1: norm("layer_norm1")?,
            query: square("q_proj")?,
            key: square("k_proj")?,
            value: square("v_proj")?,
            output: square("out_proj")?,
            norm2: norm("layer_norm2")?,
            fc1: Linear::load(&tensors.at("mlp.fc1"), [width, inner], inner_field)?,
            fc2: Linear::load(&tensors.at("mlp.fc2"), [inner, width], inner_field)?,
            attention: DotProductAttention::new(tensors),
            heads,
        })
    }

    /// `(B, L, C)` to `(B, L, C)`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let seen = self.attend(self.norm1.forward(x.clone()));
        let x = self.output.forward_added(seen, x);
        let inner = self.norm2.forward(x.clone());
        let inner = self.fc1.forward_activated(inner, Activation::QuickGelu);
        self.fc2.forward_added(inner, x)
    }

    fn attend(&self, x: Tensor<3>) -> Tensor<3> {
        let heads = |linear: &Linear| split_heads(linear.forward(x.clone()), self.heads);
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));
        self.attention.forward(query, key, value, None)
    }
}
