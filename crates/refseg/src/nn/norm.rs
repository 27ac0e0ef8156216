//! Layer norm and root-mean-square norm.

use burn::tensor::Tensor;

use super::{Tensors, inference, kernels};
use crate::weights::WeightsError;

/// Layer normalisation over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// Key `weight`: `(D)`.
    weight: Tensor<1>,
    /// Key `bias`: `(D)`.
    bias: Tensor<1>,
    epsilon: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(
        tensors: &Tensors<'_>,
        width: usize,
        epsilon: f64,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: tensors.get("weight", [width], implied_by)?,
            bias: tensors.get("bias", [width], implied_by)?,
            epsilon,
        })
    }

    /// # Shapes
    /// `(…, D)` to `(…, D)`.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        if x.device().is_autodiff() {
            kernels::layer_norm(x, weight, self.epsilon) + bias.unsqueeze()
        } else {
            inference::layer_norm(x, weight, bias, self.epsilon)
        }
    }
}

/// Root-mean-square normalisation over the last dimension.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// Key `weight`: `(D)`.
    weight: Tensor<1>,
    epsilon: f64,
}

impl RmsNorm {
    /// Reads `weight`.
    ///
    /// # Errors
    /// If the tensor is missing or of another shape.
    pub fn load(
        tensors: &Tensors<'_>,
        width: usize,
        epsilon: f64,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: tensors.get("weight", [width], implied_by)?,
            epsilon,
        })
    }

    /// # Shapes
    /// `(…, D)` to `(…, D)`.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        kernels::rms_norm(x, self.weight.clone(), self.epsilon)
    }
}
