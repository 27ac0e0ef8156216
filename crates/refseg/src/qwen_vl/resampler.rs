//! The resampler: learned queries that attend to the patches once.
//!
//! Reference: `Resampler.forward` of Qwen-VL, with the norm and the projection
//! behind it.

use burn::tensor::Tensor;

use super::{VisualConfig, bicubic::resize_table, vision::EPSILON};
use crate::{
    nn::{DotProductAttention, LayerNorm, Linear, Tensors, split_heads},
    weights::WeightsError,
};

/// Side of the grid of queries: the reference always has 256 of them.
const QUERIES: usize = 16;
/// Width of a head, as the reference divides the output.
pub(super) const HEAD_DIM: usize = 128;

/// Patches to 256 tokens.
#[derive(Debug, Clone)]
pub struct Resampler {
    /// Key `attn_pool.kv_proj`: C → D, without bias.
    kv_proj: Linear,
    /// Key `attn_pool.ln_kv`.
    kv_norm: LayerNorm,
    /// What attends: keys `attn_pool.query` through `attn_pool.ln_q`, with the positions added, and projected.
    query: Tensor<4>,
    /// Key `attn_pool.pos_embed`, resized to the patches: `(1, P, D)`, added to the keys alone.
    key_positions: Tensor<3>,
    /// Rows `D..2D` of keys `attn_pool.attn.in_proj_weight` and `in_proj_bias`.
    key: Linear,
    /// Rows `2D..3D`.
    value: Linear,
    /// Key `attn_pool.attn.out_proj`.
    output: Linear,
    attention: DotProductAttention,
    /// Key `ln_post`.
    post_norm: LayerNorm,
    /// Key `proj`: `(D, D)`, applied from the right.
    proj: Tensor<2>,
}

impl Resampler {
    /// Reads the resampler; `tensors` is at `transformer.visual`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &VisualConfig) -> Result<Self, WeightsError> {
        let (inner, width) = (config.width, config.outputs);
        let field = "visual.output_dim";
        let pool = tensors.at("attn_pool");
        let table = |name| pool.get(name, [QUERIES * QUERIES, width], field);
        let norm =
            |tensors: &Tensors<'_>, name| LayerNorm::load(&tensors.at(name), width, EPSILON, field);
        let weight = pool.get("attn.in_proj_weight", [3 * width, width], field)?;
        let bias = pool.get("attn.in_proj_bias", [3 * width], field)?;
        let rows = |i: usize| {
            let bias = bias.clone().narrow(0, i * width, width);
            Linear::new(
                &pool,
                weight.clone().narrow(0, i * width, width),
                Some(bias),
            )
        };
        let positions = table("pos_embed")?;
        let query = norm(&pool, "ln_q")?.forward(table("query")?) + positions.clone();
        let query = rows(0).forward(query).unsqueeze();
        Ok(Self {
            kv_proj: Linear::load_without_bias(&pool.at("kv_proj"), [inner, width], field)?,
            kv_norm: norm(&pool, "ln_kv")?,
            query: split_heads(query, width / HEAD_DIM),
            key_positions: resize_table(positions, QUERIES, config.grid()).unsqueeze(),
            key: rows(1),
            value: rows(2),
            attention: DotProductAttention::new(&pool),
            output: Linear::load(&pool.at("attn.out_proj"), [width, width], field)?,
            post_norm: norm(tensors, "ln_post")?,
            proj: tensors.get("proj", [width, width], field)?,
        })
    }

    /// # Shapes
    /// - `patches`: `(1, P, C)`
    /// - returns `(1, 256, D)`
    pub fn forward(&self, patches: Tensor<3>) -> Tensor<3> {
        let values = self.kv_norm.forward(self.kv_proj.forward(patches)); // (1, P, D)
        let keys = values.clone() + self.key_positions.clone();
        let [_, heads, _, _] = self.query.dims();
        let keys = split_heads(self.key.forward(keys), heads);
        let values = split_heads(self.value.forward(values), heads);
        let x = self.output.forward(
            self.attention
                .forward(self.query.clone(), keys, values, None),
        );
        self.post_norm
            .forward(x)
            .matmul(self.proj.clone().unsqueeze())
    }
}
