//! Prompt encoder: points, boxes and masks to vectors that the mask decoder understands.
//!
//! Paper: Segment Anything, arXiv 2304.02643. Reference: `PromptEncoder.forward`.
//! Differs: dense embeddings are vectors in reading order, not a map.

use std::f64::consts::TAU;

use burn::tensor::{Int, Tensor, TensorData};

use super::config::PromptConfig;
use crate::{
    nn::{LayerNorm, Linear, Tensors, gelu, patches},
    weights::WeightsError,
};

/// Turns prompts into sparse and dense embeddings.
#[derive(Debug, Clone)]
pub struct PromptEncoder {
    /// Key `pe_layer.positional_encoding_gaussian_matrix`: `(2, D/2)`, x first.
    frequencies: Tensor<2>,
    /// Keys `point_embeddings.{0..3}` and `not_a_point_embed`: `(5, D)`, in the order of [`Token`].
    kinds: Tensor<2>,
    /// Key `no_mask_embed`: `(1, 1, D)`.
    no_mask: Tensor<3>,
    /// Keys `mask_downscaling.{0,1,3,4,6}`.
    mask: MaskEncoder,
    grid: usize,
    frame: usize,
}

/// What a vector of the sparse embedding stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A point that is not on the object.
    Background,
    /// A point on the object.
    Foreground,
    /// The upper left corner of a box.
    UpperLeft,
    /// The lower right corner of a box.
    LowerRight,
    /// No point at all: it stands behind points without a box.
    Nothing,
}

impl PromptEncoder {
    /// Reads the encoder; `tensors` is at `prompt_encoder`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &PromptConfig) -> Result<Self, WeightsError> {
        let PromptConfig {
            width, grid, frame, ..
        } = *config;
        let field = "prompt_encoder.embed_dim";
        let vector = |name: &str| tensors.get(name, [1, width], field);
        let kinds = vec![
            vector("point_embeddings.0.weight")?,
            vector("point_embeddings.1.weight")?,
            vector("point_embeddings.2.weight")?,
            vector("point_embeddings.3.weight")?,
            vector("not_a_point_embed.weight")?,
        ];
        let matrix = "pe_layer.positional_encoding_gaussian_matrix";
        Ok(Self {
            frequencies: tensors.get(matrix, [2, width / 2], field)?,
            kinds: Tensor::cat(kinds, 0),
            no_mask: vector("no_mask_embed.weight")?.unsqueeze(),
            mask: MaskEncoder::load(&tensors.at("mask_downscaling"), config)?,
            grid,
            frame,
        })
    }

    /// Sparse embeddings of prompts that have the same number of tokens.
    ///
    /// # Shapes
    /// - `prompts`: for each of `Q` prompts `T` tokens, each with its place `(x, y)` in pixels of the frame
    /// - returns `(Q, T, D)`
    pub fn sparse(&self, prompts: &[Vec<(Token, [f32; 2])>]) -> Tensor<3> {
        let (count, length) = (prompts.len(), prompts.first().map_or(0, Vec::len));
        let tokens = || prompts.iter().flatten();
        // A pixel's middle is half a pixel from its edge.
        let share = |px: f32| (px + 0.5) / self.frame as f32;
        let places: Vec<f32> = tokens().flat_map(|(_, px)| px.map(share)).collect();
        let kinds: Vec<i64> = tokens().map(|(kind, _)| *kind as i64).collect();
        let is_somewhere = tokens().map(|(kind, _)| f32::from(*kind != Token::Nothing));
        let (total, device) = (count * length, self.kinds.device());
        let kinds = Tensor::<1, Int>::from_data(TensorData::new(kinds, [total]), &device);
        let is_somewhere = TensorData::new(is_somewhere.collect(), [total, 1]);
        let [_, width] = self.kinds.dims();
        let positions = self.positions(places) * Tensor::from_data(is_somewhere, &device);
        (positions + self.kinds.clone().select(0, kinds)).reshape([count, length, width])
    }

    /// Dense embeddings: of masks, or of there being none.
    ///
    /// # Shapes
    /// - `masks`: `(Q, 1, 4·G, 4·G)`, mask logits
    /// - returns `(Q, G², D)`, or `(1, 1, D)` without masks
    pub fn dense(&self, masks: Option<Tensor<4>>) -> Tensor<3> {
        match masks {
            Some(masks) => self.mask.forward(masks),
            None => self.no_mask.clone(),
        }
    }

    /// The positional encoding of every cell of the image embedding: `(1, G², D)`.
    pub fn image_positions(&self) -> Tensor<3> {
        let middle = |cell: usize| (cell as f32 + 0.5) / self.grid as f32;
        let cells = (0..self.grid)
            .flat_map(|row| (0..self.grid).flat_map(move |column| [middle(column), middle(row)]));
        self.positions(cells.collect()).unsqueeze()
    }

    /// Side of the mask logits that [`PromptEncoder::dense`] takes.
    pub fn mask_side(&self) -> usize {
        4 * self.grid
    }

    /// Random Fourier features of places: pairs `(x, y)` in shares of the frame, to `(n, D)`.
    fn positions(&self, places: Vec<f32>) -> Tensor<2> {
        let count = places.len() / 2;
        let places = TensorData::new(places, [count, 2]);
        let centred = Tensor::<2>::from_data(places, &self.kinds.device()) * 2.0 - 1.0;
        let angles = centred.matmul(self.frequencies.clone()) * TAU;
        Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
    }
}

/// Halves a mask twice and widens it to vectors.
#[derive(Debug, Clone)]
struct MaskEncoder {
    /// Key `0`, a convolution whose stride is its kernel: 2×2, 1 → M/4.
    first: Linear,
    /// Key `1`.
    first_norm: LayerNorm,
    /// Key `3`: 2×2, M/4 → M.
    second: Linear,
    /// Key `4`.
    second_norm: LayerNorm,
    /// Key `6`: 1×1, M → D.
    widen: Linear,
}

impl MaskEncoder {
    fn load(tensors: &Tensors<'_>, config: &PromptConfig) -> Result<Self, WeightsError> {
        let (most, few) = (config.mask_channels, config.mask_channels / 4);
        let field = "prompt_encoder.mask_in_chans";
        let convolution = |name: &str, inputs: usize, outputs: usize, side: usize| {
            let tensors = tensors.at(name);
            let kernel = tensors.get("weight", [outputs, inputs, side, side], field)?;
            let bias = tensors.get("bias", [outputs], field)?;
            let kernel = kernel.reshape([outputs, inputs * side * side]);
            Ok::<_, WeightsError>(Linear::new(&tensors, kernel, Some(bias)))
        };
        let norm =
            |name: &str, width| LayerNorm::load(&tensors.at(name), width, config.epsilon, field);
        Ok(Self {
            first: convolution("0", 1, few, 2)?,
            first_norm: norm("1", few)?,
            second: convolution("3", few, most, 2)?,
            second_norm: norm("4", most)?,
            widen: convolution("6", most, config.width, 1)?,
        })
    }

    /// `(Q, 1, 4·G, 4·G)` to `(Q, G², D)`.
    fn forward(&self, masks: Tensor<4>) -> Tensor<3> {
        let [count, _, height, width] = masks.dims();
        let x = self.first.forward(patches(masks, 2)); // (Q, 4·G², M/4)
        let x = gelu(self.first_norm.forward(x));
        let [_, _, channels] = x.dims();
        let x = x
            .reshape([count, height / 2, width / 2, channels])
            .permute([0, 3, 1, 2]);
        let x = self.second.forward(patches(x, 2)); // (Q, G², M)
        self.widen.forward(gelu(self.second_norm.forward(x)))
    }
}
