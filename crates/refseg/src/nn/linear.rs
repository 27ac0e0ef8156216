//! The affine layer and the activations that follow it.

use burn::tensor::{Tensor, activation, module};

use super::{Tensors, kernels};
use crate::weights::WeightsError;

/// `x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Key `weight`: `(out, in)`, as in the checkpoint.
    weight: Tensor<2>,
    /// Key `bias`: `(out)`.
    bias: Option<Tensor<1>>,
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
        Ok(Self::new(
            tensors.get("weight", [outputs, inputs], implied_by)?,
            None,
        ))
    }

    /// A layer of the given `(out, in)` weight and `(out)` bias.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self { weight, bias }
    }

    /// # Shapes
    /// - `x`: `(…, in)`
    /// - returns `(…, out)`
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        module::linear(x, self.weight.clone().transpose(), self.bias.clone())
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
