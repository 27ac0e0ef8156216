//! MobileSAM's image encoder: convolutions, then attention in windows.
//!
//! Paper: MobileSAM, arXiv 2306.14289; TinyViT, arXiv 2207.10666. Reference:
//! `TinyViT.forward`. Differs: strides come from the config, where the
//! reference goes by the width of a layer; batch norms are part of the
//! convolutions before them; the unused classification head is not read;
//! returns vectors in reading order, not a map.

use burn::tensor::{Int, Tensor, TensorData};

use super::{
    Watch,
    config::{LOCAL_CONV_SIDE, TinyVitConfig},
    image_encoder::Neck,
    windows,
};
use crate::{
    nn::{Activation, Conv2d, ConvShape, DotProductAttention, LayerNorm, Linear, Tensors, gelu},
    weights::WeightsError,
};

/// The image encoder of MobileSAM.
#[derive(Debug, Clone)]
pub struct TinyVitEncoder {
    /// Key `patch_embed.seq.0`: 3 → C/2, stride 2.
    patch1: Conv2d,
    /// Key `patch_embed.seq.2`: C/2 → C, stride 2.
    patch2: Conv2d,
    /// Keys `layers.{i}`.
    layers: Vec<Layer>,
    /// Key `neck`.
    neck: Neck,
}

impl TinyVitEncoder {
    /// Reads the encoder; `tensors` is at `image_encoder`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &TinyVitConfig) -> Result<Self, WeightsError> {
        let (first, last) = (config.widths[0], config.widths[config.widths.len() - 1]);
        let patch = |name: &str, inputs, outputs| {
            let shape = ConvShape::new(inputs, outputs, 3).strided(2);
            normed(&tensors.at("patch_embed.seq").at(name), shape, config)
        };
        Ok(Self {
            patch1: patch("0", 3, first / 2)?,
            patch2: patch("2", first / 2, first)?,
            layers: (0..config.widths.len())
                .map(|i| Layer::load(&tensors.at("layers").at(i), config, i))
                .collect::<Result<_, _>>()?,
            neck: Neck::load(
                &tensors.at("neck"),
                [last, config.outputs],
                config.neck_epsilon,
            )?,
        })
    }

    /// The image embedding.
    ///
    /// `watch` is shown the patches and what leaves each layer.
    ///
    /// # Shapes
    /// - `pixels`: `(B, 3, S, S)`, normalised
    /// - returns `(B, G², D)`
    pub fn forward(&self, pixels: Tensor<4>, watch: Watch<'_, 4>) -> Tensor<3> {
        let mut x = self.patch2.forward(gelu(self.patch1.forward(pixels)));
        watch("patch_embed", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            watch(&format!("layer{i}"), &x);
        }
        self.neck.forward(x.permute([0, 2, 3, 1]))
    }
}

/// Blocks at one resolution, and the way to the next.
#[derive(Debug, Clone)]
struct Layer {
    /// Keys `blocks.{i}`.
    blocks: Vec<Block>,
    /// Key `downsample`; the last layer has none.
    merge: Option<Merge>,
}

#[derive(Debug, Clone)]
enum Block {
    /// In the first layer.
    Convolution(Box<MbConv>),
    /// In all others.
    Transformer(Box<Transformer>),
}

impl Layer {
    fn load(
        tensors: &Tensors<'_>,
        config: &TinyVitConfig,
        index: usize,
    ) -> Result<Self, WeightsError> {
        let block = |i: usize| {
            let tensors = tensors.at("blocks").at(i);
            Ok(if index == 0 {
                Block::Convolution(Box::new(MbConv::load(&tensors, config)?))
            } else {
                Block::Transformer(Box::new(Transformer::load(&tensors, config, index)?))
            })
        };
        let merge = match config.merge_strides.get(index) {
            None => None,
            Some(_) => Some(Merge::load(&tensors.at("downsample"), config, index)?),
        };
        Ok(Self {
            blocks: (0..config.depths[index])
                .map(block)
                .collect::<Result<_, WeightsError>>()?,
            merge,
        })
    }

    /// `(B, C, h, w)` to the next layer's.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.blocks.iter().fold(x, |x, block| match block {
            Block::Convolution(block) => block.forward(x),
            Block::Transformer(block) => block.forward(x),
        });
        match &self.merge {
            None => x,
            Some(merge) => merge.forward(x),
        }
    }
}

/// Widens, looks at neighbours, narrows, and adds.
#[derive(Debug, Clone)]
struct MbConv {
    /// Key `conv1`: 1×1.
    widen: Conv2d,
    /// Key `conv2`: depthwise 3×3.
    look: Conv2d,
    /// Key `conv3`: 1×1.
    narrow: Conv2d,
}

impl MbConv {
    fn load(tensors: &Tensors<'_>, config: &TinyVitConfig) -> Result<Self, WeightsError> {
        let width = config.widths[0];
        let wide = width * config.expansion;
        Ok(Self {
            widen: normed(&tensors.at("conv1"), ConvShape::new(width, wide, 1), config)?,
            look: normed(&tensors.at("conv2"), ConvShape::depthwise(wide, 3), config)?,
            narrow: normed(&tensors.at("conv3"), ConvShape::new(wide, width, 1), config)?,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let wide = gelu(self.widen.forward(x.clone()));
        // Here the activation comes after the sum.
        gelu(x + self.narrow.forward(gelu(self.look.forward(wide))))
    }
}

/// The way from one layer to the next: other width, often half the resolution.
#[derive(Debug, Clone)]
struct Merge {
    /// Key `conv1`: 1×1.
    widen: Conv2d,
    /// Key `conv2`: depthwise 3×3, with the stride.
    look: Conv2d,
    /// Key `conv3`: 1×1.
    mix: Conv2d,
}

impl Merge {
    fn load(
        tensors: &Tensors<'_>,
        config: &TinyVitConfig,
        index: usize,
    ) -> Result<Self, WeightsError> {
        let (width, next) = (config.widths[index], config.widths[index + 1]);
        let look = ConvShape::depthwise(next, 3).strided(config.merge_strides[index]);
        Ok(Self {
            widen: normed(&tensors.at("conv1"), ConvShape::new(width, next, 1), config)?,
            look: normed(&tensors.at("conv2"), look, config)?,
            mix: normed(&tensors.at("conv3"), ConvShape::new(next, next, 1), config)?,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = gelu(self.look.forward(gelu(self.widen.forward(x))));
        self.mix.forward(x)
    }
}

/// Attention in windows, a convolution, and an MLP.
#[derive(Debug, Clone)]
struct Transformer {
    /// Key `attn`.
    attention: Attention,
    /// Key `local_conv`: depthwise.
    local: Conv2d,
    /// Key `mlp.norm`.
    norm: LayerNorm,
    /// Key `mlp.fc1`.
    fc1: Linear,
    /// Key `mlp.fc2`.
    fc2: Linear,
}

impl Transformer {
    fn load(
        tensors: &Tensors<'_>,
        config: &TinyVitConfig,
        index: usize,
    ) -> Result<Self, WeightsError> {
        let width = config.widths[index];
        let inner = width * config.mlp_ratio;
        let field = "image_encoder.mlp_ratio";
        let local = ConvShape::depthwise(width, LOCAL_CONV_SIDE);
        let norm = tensors.at("mlp.norm");
        Ok(Self {
            attention: Attention::load(&tensors.at("attn"), config, index)?,
            local: normed(&tensors.at("local_conv"), local, config)?,
            norm: LayerNorm::load(&norm, width, config.epsilon, "image_encoder.embed_dims")?,
            fc1: Linear::load(&tensors.at("mlp.fc1"), [width, inner], field)?,
            fc2: Linear::load(&tensors.at("mlp.fc2"), [inner, width], field)?,
        })
    }

    /// `(B, C, h, w)` to `(B, C, h, w)`.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = x.permute([0, 2, 3, 1]);
        let [batch, height, width, _] = x.dims();
        let side = self.attention.side;
        // Padding comes before the norm of the attention, unlike in Segment Anything's ViT.
        let seen = self.attention.forward(windows::cut(x.clone(), side));
        let x = x + windows::join(seen, side, [batch, height, width]);
        let x = self
            .local
            .forward(x.permute([0, 3, 1, 2]))
            .permute([0, 2, 3, 1]);
        let inner = self.norm.forward(x.clone());
        let inner = self.fc1.forward_activated(inner, Activation::Gelu);
        self.fc2.forward_added(inner, x).permute([0, 3, 1, 2])
    }
}

/// Attention with a learned number for each distance.
#[derive(Debug, Clone)]
struct Attention {
    /// Key `norm`.
    norm: LayerNorm,
    /// Key `qkv`: for each head its queries, keys and values.
    qkv: Linear,
    /// Key `proj`.
    proj: Linear,
    /// Key `attention_biases`, for each pair of cells: `(1, H, side², side²)`.
    biases: Tensor<4>,
    attention: DotProductAttention,
    heads: usize,
    /// Side of the window.
    side: usize,
}

impl Attention {
    fn load(
        tensors: &Tensors<'_>,
        config: &TinyVitConfig,
        index: usize,
    ) -> Result<Self, WeightsError> {
        let width = config.widths[index];
        let (heads, side) = (config.heads[index - 1], config.windows[index - 1]);
        let field = "image_encoder.embed_dims";
        let cells = side * side;
        let table = tensors.get(
            "attention_biases",
            [heads, cells],
            "image_encoder.window_sizes",
        )?;
        let pairs = (0..cells).flat_map(|query| (0..cells).map(move |key| (query, key)));
        let distance = |(query, key): (usize, usize)| {
            let rows = (query / side).abs_diff(key / side);
            let columns = (query % side).abs_diff(key % side);
            (rows * side + columns) as i64
        };
        let distances = TensorData::new(pairs.map(distance).collect::<Vec<i64>>(), [cells * cells]);
        let distances = Tensor::<1, Int>::from_data(distances, &tensors.device());
        Ok(Self {
            norm: LayerNorm::load(&tensors.at("norm"), width, config.epsilon, field)?,
            qkv: Linear::load(&tensors.at("qkv"), [width, 3 * width], field)?,
            proj: Linear::load(&tensors.at("proj"), [width, width], field)?,
            attention: DotProductAttention::new(tensors),
            biases: table.select(1, distances).reshape([1, heads, cells, cells]),
            heads,
            side,
        })
    }

    /// `(N, side², C)` to `(N, side², C)`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [count, length, width] = x.dims();
        let head_dim = width / self.heads;
        let qkv = self
            .qkv
            .forward(self.norm.forward(x))
            .reshape([count, length, self.heads, 3 * head_dim])
            .swap_dims(1, 2); // (N, H, side², 3·d)
        let part = |i: usize| qkv.clone().narrow(3, i * head_dim, head_dim);
        let seen = self
            .attention
            .forward(part(0), part(1), part(2), Some(&self.biases));
        self.proj.forward(seen)
    }
}

/// A convolution `c` without bias and the batch norm `bn` behind it.
fn normed(
    tensors: &Tensors<'_>,
    shape: ConvShape,
    config: &TinyVitConfig,
) -> Result<Conv2d, WeightsError> {
    let field = "image_encoder.embed_dims";
    let (convolution, norm) = (tensors.at("c"), tensors.at("bn"));
    let epsilon = config.batch_norm_epsilon;
    Conv2d::load_with_batch_norm(&convolution, &norm, shape, epsilon, field)
}
