//! The affine layer and the activations that follow it.

use burn::tensor::{Tensor, activation, module};

use super::{Dropout, Tensors, kernels};
use crate::weights::WeightsError;

/// `x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Key `weight`: `(out, in)`, as in the checkpoint.
    weight: Tensor<2>,
    /// Key `bias`: `(out)`.
    bias: Option<Tensor<1>>,
    /// Keys `lora_A` and `lora_B`, while they are being trained.
    low_rank: Option<LowRank>,
}

/// A change of a weight that is being trained beside it: `x` gains `s · drop(x) · Aᵀ · Bᵀ`.
///
/// Paper: LoRA, arXiv 2106.09685.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Key `lora_A.default.weight`: `(r, in)`.
    pub a: Tensor<2>,
    /// Key `lora_B.default.weight`: `(out, r)`.
    pub b: Tensor<2>,
    /// `s`, alpha over rank.
    pub scale: f64,
    /// On the input of `A` alone.
    pub dropout: Dropout,
}

impl Linear {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(
        tensors: &Tensors<'_>,
        [inputs, outputs]: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        let bias = tensors.get("bias", [outputs], implied_by)?;
        Ok(Self {
            bias: Some(bias),
            ..Self::load_without_bias(tensors, [inputs, outputs], implied_by)?
        })
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// If the tensor is missing or of another shape.
    pub fn load_without_bias(
        tensors: &Tensors<'_>,
        [inputs, outputs]: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        let weight = tensors.get("weight", [outputs, inputs], implied_by)?;
        Ok(Self {
            low_rank: tensors.low_rank("weight", [outputs, inputs])?,
            ..Self::new(weight, None)
        })
    }

    /// A layer of the given `(out, in)` weight and `(out)` bias.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight,
            bias,
            low_rank: None,
        }
    }

    /// # Shapes
    /// - `x`: `(…, in)`
    /// - returns `(…, out)`
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        let change = self
            .low_rank
            .as_ref()
            .map(|low_rank| low_rank.forward(x.clone()));
        let y = module::linear(x, self.weight.clone().transpose(), self.bias.clone());
        match change {
            None => y,
            Some(change) => y + change,
        }
    }
}

impl LowRank {
    fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        let narrow = module::linear(self.dropout.forward(x), self.a.clone().transpose(), None);
        module::linear(narrow, self.b.clone().transpose(), None).mul_scalar(self.scale)
    }
}

/// Exact GELU, `x/2 · (1 + erf(x/√2))`: the checkpoints were trained with erf,
/// and the tanh form moves logits past our tolerance.
pub fn gelu<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    kernels::gelu(x)
}

/// GELU in its tanh form, for networks that were trained with it.
pub fn gelu_tanh<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    kernels::gelu_tanh(x)
}

/// `x · sigmoid(1.702·x)`, which CLIP was trained with in place of GELU.
pub fn quick_gelu<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    x.clone() * activation::sigmoid(x.mul_scalar(1.702))
}

/// `x · sigmoid(x)`.
pub fn silu<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    activation::silu(x)
}
