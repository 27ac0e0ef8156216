//! Segment Anything's ViT: a picture to one vector per cell of its grid.
//!
//! Paper: Segment Anything, arXiv 2304.02643; relative positions from MViTv2,
//! arXiv 2112.01526. Reference: `ImageEncoderViT.forward`. Differs: tables of
//! relative positions are used at their own size, so they are never resized;
//! returns vectors in reading order, not a map.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{Watch, config::VitConfig, windows};
use crate::{
    nn::{
        Activation, Conv2d, ConvShape, LayerNorm, Linear, Tensors, patches, softmax, split_heads,
    },
    weights::WeightsError,
};

/// The image encoder of ViT-B, ViT-L and ViT-H.
#[derive(Debug, Clone)]
pub struct VitEncoder {
    /// Key `patch_embed.proj`, a convolution whose stride is its kernel: an affine map of each patch.
    patch_embed: Linear,
    /// Key `pos_embed`: `(1, G, G, C)`.
    positions: Tensor<4>,
    /// Keys `blocks.{i}`.
    blocks: Vec<Block>,
    /// Key `neck`.
    neck: Neck,
    patch: usize,
}

impl VitEncoder {
    /// Reads the encoder; `tensors` is at `image_encoder`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &VitConfig) -> Result<Self, WeightsError> {
        let VitConfig { width, patch, .. } = *config;
        let grid = config.grid();
        let proj = tensors.at("patch_embed.proj");
        let kernel = proj.get(
            "weight",
            [width, 3, patch, patch],
            "image_encoder.patch_size",
        )?;
        let bias = proj.get("bias", [width], "image_encoder.embed_dim")?;
        Ok(Self {
            patch_embed: Linear::new(
                tensors,
                kernel.reshape([width, 3 * patch * patch]),
                Some(bias),
            ),
            positions: tensors.get(
                "pos_embed",
                [1, grid, grid, width],
                "image_encoder.image_size",
            )?,
            blocks: (0..config.layers)
                .map(|i| Block::load(&tensors.at("blocks").at(i), config, i))
                .collect::<Result<_, _>>()?,
            neck: Neck::load(
                &tensors.at("neck"),
                [width, config.outputs],
                config.neck_epsilon,
            )?,
            patch,
        })
    }

    /// The image embedding.
    ///
    /// `watch` is shown the patches and what leaves each block.
    ///
    /// # Shapes
    /// - `pixels`: `(B, 3, S, S)`, normalised
    /// - returns `(B, G², D)`
    pub fn forward(&self, pixels: Tensor<4>, watch: Watch<'_, 4>) -> Tensor<3> {
        let [batch, _, height, width] = pixels.dims();
        let x = self.patch_embed.forward(patches(pixels, self.patch)); // (B, P, C)
        let [.., channels] = x.dims();
        let x = x.reshape([batch, height / self.patch, width / self.patch, channels]);
        watch("patch_embed", &x);
        let mut x = x + self.positions.clone(); // (B, G, G, C)
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x);
            watch(&format!("block{i}"), &x);
        }
        self.neck.forward(x)
    }
}

/// One transformer block, within windows or over the whole map.
#[derive(Debug, Clone)]
struct Block {
    /// Key `norm1`.
    norm1: LayerNorm,
    /// Key `attn`.
    attention: Attention,
    /// Key `norm2`.
    norm2: LayerNorm,
    /// Key `mlp.lin1`.
    lin1: Linear,
    /// Key `mlp.lin2`.
    lin2: Linear,
}

impl Block {
    fn load(tensors: &Tensors<'_>, config: &VitConfig, index: usize) -> Result<Self, WeightsError> {
        let VitConfig {
            width,
            inner,
            epsilon,
            ..
        } = *config;
        let field = "image_encoder.embed_dim";
        let side = if config.global_blocks.contains(&index) {
            config.grid()
        } else {
            config.window
        };
        Ok(Self {
            norm1: LayerNorm::load(&tensors.at("norm1"), width, epsilon, field)?,
            attention: Attention::load(&tensors.at("attn"), config, side)?,
            norm2: LayerNorm::load(&tensors.at("norm2"), width, epsilon, field)?,
            lin1: Linear::load(
                &tensors.at("mlp.lin1"),
                [width, inner],
                "image_encoder.mlp_ratio",
            )?,
            lin2: Linear::load(
                &tensors.at("mlp.lin2"),
                [inner, width],
                "image_encoder.mlp_ratio",
            )?,
        })
    }

    /// `(B, G, G, C)` to `(B, G, G, C)`.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, _] = x.dims();
        let side = self.attention.side;
        // Padding comes after the norm: what is added is zero, and is attended to.
        let seen = windows::cut(self.norm1.forward(x.clone()), side);
        let seen = self.attention.forward(seen);
        let x = x + windows::join(seen, side, [batch, height, width]);
        let inner = self.norm2.forward(x.clone());
        let inner = self.lin1.forward_activated(inner, Activation::Gelu);
        self.lin2.forward_added(inner, x)
    }
}

/// Attention with decomposed relative positions.
///
/// To the product of query and key comes that of the query with a vector for
/// their distance in rows, and one for their distance in columns. As these
/// depend on the key's row and column alone, they are computed as further
/// channels of the product: the query's products with all rows and columns,
/// against keys that have a one at their own.
#[derive(Debug, Clone)]
struct Attention {
    /// Key `qkv`: C → 3C, queries first.
    qkv: Linear,
    /// Key `proj`.
    proj: Linear,
    /// Key `rel_pos_h`, for each row of the query and row of the key: `(side, side, d)`.
    row_distances: Tensor<3>,
    /// Key `rel_pos_w`, the same for columns.
    column_distances: Tensor<3>,
    /// A one at each key's row, and one at its column: `(1, side², 2·side)`.
    places: Tensor<3>,
    heads: usize,
    /// Side of the window.
    side: usize,
}

/// Scores that are computed at once: 64 MB.
const SCORES_AT_ONCE: usize = 1 << 24;

impl Attention {
    fn load(tensors: &Tensors<'_>, config: &VitConfig, side: usize) -> Result<Self, WeightsError> {
        let VitConfig { width, heads, .. } = *config;
        let field = "image_encoder.embed_dim";
        let device = tensors.device();
        // Row `i` of a table is for a distance of `i − (side − 1)`.
        let distances =
            (0..side).flat_map(|query| (0..side).map(move |key| query + side - 1 - key));
        let distances: Vec<i64> = distances.map(|distance| distance as i64).collect();
        let distances = TensorData::new(distances, [side * side]);
        let distances = Tensor::<1, Int>::from_data(distances, &device);
        let table = |name: &str| {
            let shape = [2 * side - 1, width / heads];
            let table = tensors.get(name, shape, "image_encoder.window_size")?;
            let of_pairs = table.select(0, distances.clone());
            Ok::<_, WeightsError>(of_pairs.reshape([side, side, width / heads]))
        };
        Ok(Self {
            qkv: Linear::load(&tensors.at("qkv"), [width, 3 * width], field)?,
            proj: Linear::load(&tensors.at("proj"), [width, width], field)?,
            row_distances: table("rel_pos_h")?,
            column_distances: table("rel_pos_w")?,
            places: places(side, &device),
            heads,
            side,
        })
    }

    /// `(N, side², C)` to `(N, side², C)`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [count, length, width] = x.dims();
        let qkv = self.qkv.forward(x);
        let heads = |i: usize| {
            let part = qkv.clone().narrow(2, i * width, width);
            let heads = split_heads(part, self.heads); // (N, H, side², d)
            heads.reshape([count * self.heads, length, width / self.heads])
        };
        let at_once = (SCORES_AT_ONCE / (length * length)).max(1);
        let parts = [heads(0), heads(1), heads(2)].map(|part| part.split(at_once, 0));
        let [queries, keys, values] = parts;
        let seen = queries
            .into_iter()
            .zip(keys)
            .zip(values)
            .map(|((query, key), value)| self.attend(query, key, value));
        let seen = Tensor::cat(seen.collect(), 0)
            .reshape([count, self.heads, length, width / self.heads])
            .swap_dims(1, 2)
            .reshape([count, length, width]);
        self.proj.forward(seen)
    }

    /// `(n, side², d)` each.
    fn attend(&self, query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Tensor<3> {
        let [count, length, head_dim] = query.dims();
        let by_row = self.distances(query.clone(), &self.row_distances, 1);
        let by_column = self.distances(query.clone(), &self.column_distances, 2);
        let scaled = query.mul_scalar((head_dim as f64).powf(-0.5));
        let query = Tensor::cat(vec![scaled, by_row, by_column], 2);
        let places = self.places.clone().expand([count, length, 2 * self.side]);
        let key = Tensor::cat(vec![key, places], 2);
        softmax(query.matmul(key.transpose())).matmul(value)
    }

    /// Products of each query with the vectors for its distance from every row (axis 1) or column (axis 2).
    ///
    /// # Shapes
    /// `query` is `(n, side², d)`, `vectors` `(side, side, d)`; returns `(n, side², side)`.
    fn distances(&self, query: Tensor<3>, vectors: &Tensor<3>, axis: usize) -> Tensor<3> {
        let [count, length, head_dim] = query.dims();
        let side = self.side;
        // All queries of one row, or column, share their vectors.
        query
            .reshape([count, side, side, head_dim])
            .swap_dims(0, axis)
            .reshape([side, count * side, head_dim])
            .matmul(vectors.clone().transpose())
            .reshape(if axis == 1 {
                [side, count, side, side]
            } else {
                [side, side, count, side]
            })
            .swap_dims(0, axis)
            .reshape([count, length, side])
    }
}

/// For each cell of a square in reading order a one at its row, and one at its column.
fn places(side: usize, device: &Device) -> Tensor<3> {
    let mut values = vec![0.0f32; side * side * 2 * side];
    for (cell, ones) in values.chunks_exact_mut(2 * side).enumerate() {
        ones[cell / side] = 1.0;
        ones[side + cell % side] = 1.0;
    }
    Tensor::from_data(TensorData::new(values, [1, side * side, 2 * side]), device)
}

/// What brings an encoder's map to the width of the image embedding.
#[derive(Debug, Clone)]
pub(super) struct Neck {
    /// Key `0`: 1×1, C → D.
    narrow: Linear,
    /// Key `1`.
    norm1: LayerNorm,
    /// Key `2`: 3×3, D → D.
    smooth: Conv2d,
    /// Key `3`.
    norm2: LayerNorm,
}

impl Neck {
    pub(super) fn load(
        tensors: &Tensors<'_>,
        [inputs, outputs]: [usize; 2],
        epsilon: f64,
    ) -> Result<Self, WeightsError> {
        let field = "image_encoder.out_chans";
        let kernel = tensors.get("0.weight", [outputs, inputs, 1, 1], field)?;
        let norm = |name: &str| LayerNorm::load(&tensors.at(name), outputs, epsilon, field);
        let shape = ConvShape::new(outputs, outputs, 3);
        Ok(Self {
            narrow: Linear::new(tensors, kernel.reshape([outputs, inputs]), None),
            norm1: norm("1")?,
            smooth: Conv2d::load_without_bias(&tensors.at("2"), shape, field)?,
            norm2: norm("3")?,
        })
    }

    /// `(B, G, G, C)` to `(B, G², D)`.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        let x = self.norm1.forward(self.narrow.forward(x));
        let x = self.smooth.forward(x.permute([0, 3, 1, 2]));
        let [batch, width, rows, columns] = x.dims();
        let x = x.reshape([batch, width, rows * columns]).swap_dims(1, 2);
        self.norm2.forward(x)
    }
}
