//! The vision transformer of OpenCLIP's ViT-bigG, without a class token.
//!
//! Reference: `VisionTransformer.forward` of Qwen-VL, up to the resampler.

use burn::tensor::{Tensor, TensorData};

use super::{VisualConfig, bicubic::resize_table};
use crate::{
    nn::{Activation, DotProductAttention, LayerNorm, Linear, Tensors, patches},
    weights::WeightsError,
};

/// Side of the stored table of positions: the reference makes it of 256 rows,
/// whatever the picture's size.
const TABLE: usize = 16;
/// Of every layer norm here, as the reference sets it.
pub(super) const EPSILON: f64 = 1e-6;

/// A picture to one vector per patch.
#[derive(Debug, Clone)]
pub struct VisionModel {
    /// Key `conv1`, a convolution whose stride is its kernel, without bias.
    conv1: Linear,
    /// Key `positional_embedding`, resized to the patches: `(1, P, C)`.
    positions: Tensor<3>,
    /// Key `ln_pre`.
    pre_norm: LayerNorm,
    /// Keys `transformer.resblocks.{i}`.
    layers: Vec<Block>,
    patch: usize,
}

impl VisionModel {
    /// Reads the transformer; `tensors` is at `transformer.visual`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &VisualConfig) -> Result<Self, WeightsError> {
        let VisualConfig { width, patch, .. } = *config;
        let kernel = tensors.get(
            "conv1.weight",
            [width, 3, patch, patch],
            "visual.patch_size",
        )?;
        let table = tensors.get(
            "positional_embedding",
            [TABLE * TABLE, width],
            "visual.width",
        )?;
        let blocks = tensors.at("transformer.resblocks");
        Ok(Self {
            conv1: Linear::new(tensors, kernel.reshape([width, 3 * patch * patch]), None),
            positions: resize_table(table, TABLE, config.grid()).unsqueeze(),
            pre_norm: LayerNorm::load(&tensors.at("ln_pre"), width, EPSILON, "visual.width")?,
            layers: (0..config.layers)
                .map(|i| Block::load(&blocks.at(i), config))
                .collect::<Result<_, _>>()?,
            patch,
        })
    }

    /// One vector per patch, in reading order, after the last block.
    ///
    /// # Shapes
    /// - `pixels`: `(B, 3, S, S)`, normalised
    /// - returns `(B, P, C)`
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let x = self.conv1.forward(patches(pixels, self.patch)) + self.positions.clone();
        let x = self.pre_norm.forward(x);
        self.layers.iter().fold(x, |x, layer| layer.forward(x))
    }

    /// Puts normalised pixels, channel by channel, onto the device of the weights.
    ///
    /// # Shapes
    /// `pixels` holds `3·S·S` values; returns `(1, 3, S, S)`.
    pub fn pixels(&self, pixels: Vec<f32>, side: usize) -> Tensor<4> {
        let data = TensorData::new(pixels, [1, 3, side, side]);
        Tensor::from_data(data, &self.positions.device())
    }
}

/// One pre-norm transformer block.
#[derive(Debug, Clone)]
struct Block {
    /// Key `ln_1`.
    norm1: LayerNorm,
    /// Key `attn.in_proj`: for each head its query, key and value rows.
    in_proj: Linear,
    /// Key `attn.out_proj`.
    out_proj: Linear,
    /// Key `ln_2`.
    norm2: LayerNorm,
    /// Key `mlp.c_fc`.
    fc: Linear,
    /// Key `mlp.c_proj`.
    proj: Linear,
    attention: DotProductAttention,
    heads: usize,
}

impl Block {
    fn load(tensors: &Tensors<'_>, config: &VisualConfig) -> Result<Self, WeightsError> {
        let VisualConfig {
            width,
            inner,
            heads,
            ..
        } = *config;
        let field = "visual.width";
        let linear = |name, size, field| Linear::load(&tensors.at(name), size, field);
        Ok(Self {
            norm1: LayerNorm::load(&tensors.at("ln_1"), width, EPSILON, field)?,
            in_proj: linear("attn.in_proj", [width, 3 * width], field)?,
            out_proj: linear("attn.out_proj", [width, width], field)?,
            norm2: LayerNorm::load(&tensors.at("ln_2"), width, EPSILON, field)?,
            fc: linear("mlp.c_fc", [width, inner], "visual.mlp_ratio")?,
            proj: linear("mlp.c_proj", [inner, width], "visual.mlp_ratio")?,
            attention: DotProductAttention::new(tensors),
            heads,
        })
    }

    /// `(B, L, C)` to `(B, L, C)`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let seen = self.attend(self.norm1.forward(x.clone()));
        let x = self.out_proj.forward_added(seen, x);
        let inner = self.norm2.forward(x.clone());
        let inner = self.fc.forward_activated(inner, Activation::Gelu);
        self.proj.forward_added(inner, x)
    }

    fn attend(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, length, width] = x.dims();
        let head_dim = width / self.heads;
        let fused = self.in_proj.forward(x);
        let fused = fused.reshape([batch, length, self.heads, 3 * head_dim]);
        let heads = fused.swap_dims(1, 2); // (B, H, L, 3·d)
        let part = |i: usize| heads.clone().narrow(3, i * head_dim, head_dim);
        self.attention.forward(part(0), part(1), part(2), None)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{nn::TensorSource, random::SplitMix64};

    /// Values that depend on the key alone.
    struct Drawn;

    impl TensorSource for Drawn {
        fn tensor(
            &self,
            key: &str,
            shape: &[usize],
            _: &'static str,
        ) -> Result<Tensor<1>, WeightsError> {
            let mut random = SplitMix64::named(key, 0);
            let values = (0..shape.iter().product()).map(|_| random.uniform() as f32 - 0.5);
            Ok(Tensor::from_floats(
                &values.collect::<Vec<f32>>()[..],
                &Device::flex(),
            ))
        }

        fn device(&self) -> Device {
            Device::flex()
        }
    }

    fn values(tensor: Tensor<3>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    const CONFIG: VisualConfig = VisualConfig {
        image_size: 28,
        patch: 14,
        width: 12,
        layers: 1,
        heads: 3,
        inner: 20,
        outputs: 128,
    };

    /// Attention in plain loops: the rows of a head are its query, key and value, one after the other.
    #[test]
    fn each_head_has_its_own_query_key_and_value_rows() -> Result<(), WeightsError> {
        let block = Block::load(&Tensors::root(&Drawn), &CONFIG)?;
        let (length, width, head_dim) = (5, 12, 4);
        let mut random = SplitMix64::named("x", 0);
        let x: Vec<f32> = (0..length * width)
            .map(|_| random.uniform() as f32)
            .collect();
        let x = Tensor::<3>::from_data(TensorData::new(x, [1, length, width]), &Device::flex());
        let found = values(block.attend(x.clone()));

        let fused = values(block.in_proj.forward(x));
        let at = |token: usize, head: usize, part: usize, i: usize| {
            fused[token * 3 * width + head * 3 * head_dim + part * head_dim + i]
        };
        let mut joined = vec![0.0; length * width];
        for head in 0..3 {
            for query in 0..length {
                let score = |key: usize| -> f32 {
                    let products =
                        (0..head_dim).map(|i| at(query, head, 0, i) * at(key, head, 1, i));
                    (products.sum::<f32>() / (head_dim as f32).sqrt()).exp()
                };
                let sum: f32 = (0..length).map(score).sum();
                for i in 0..head_dim {
                    joined[query * width + head * head_dim + i] = (0..length)
                        .map(|key| score(key) / sum * at(key, head, 2, i))
                        .sum();
                }
            }
        }
        for (a, b) in found.iter().zip(joined) {
            assert!((a - b).abs() < 1e-5, "{a}, expected {b}");
        }
        Ok(())
    }

    /// Positions go to the keys alone: where all patches are alike, whatever is
    /// attended to is the same, so every query gets the same answer.
    #[test]
    fn the_resampler_adds_positions_to_keys_alone() -> Result<(), WeightsError> {
        let resampler = super::super::Resampler::load(&Tensors::root(&Drawn), &CONFIG)?;
        let same = Tensor::<3>::ones([1, 4, 12], &Device::flex());
        let tokens = values(resampler.forward(same.clone()));
        assert_eq!(tokens.len(), 256 * 128);
        let (first, rest) = tokens.split_at(128);
        for token in rest.chunks(128) {
            assert!(token.iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-4));
        }
        // Patches that differ are told apart.
        let ramp = same * Tensor::from_floats([[[0.0], [1.0], [2.0], [5.0]]], &Device::flex());
        let tokens = values(resampler.forward(ramp));
        let (first, second) = tokens.split_at(128);
        assert!(first.iter().zip(second).any(|(a, b)| (a - b).abs() > 1e-3));
        Ok(())
    }

    #[test]
    fn patches_are_where_their_pixels_are() -> Result<(), WeightsError> {
        let vision = VisionModel::load(&Tensors::root(&Drawn), &CONFIG)?;
        let mut pixels = vec![0.0; 3 * 28 * 28];
        let plain = values(
            vision
                .conv1
                .forward(patches(vision.pixels(pixels.clone(), 28), 14)),
        );
        // A pixel of the lower left patch.
        pixels[20 * 28 + 3] = 1.0;
        let lit = values(
            vision
                .conv1
                .forward(patches(vision.pixels(pixels.clone(), 28), 14)),
        );
        let changed = |patch: usize| plain[patch * 12..][..12] != lit[patch * 12..][..12];
        assert_eq!([0, 1, 2, 3].map(changed), [false, false, true, false]);
        assert_eq!(vision.forward(vision.pixels(pixels, 28)).dims(), [1, 4, 12]);
        Ok(())
    }
}
