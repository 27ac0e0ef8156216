//! The affine layer and the activations that follow it.

use std::sync::Arc;

use burn::tensor::{Tensor, activation};
use refseg_kernels::{Activation, Precision};

use super::{
    Dropout, Tensors,
    inference::{self, PackedLinear},
    kernels,
    product::product,
};
use crate::weights::WeightsError;

/// `x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear(Form);

#[derive(Debug, Clone)]
enum Form {
    /// With gradients if they are wanted.
    Plain(Box<Plain>),
    /// As the CPU reads it best.
    Packed(Arc<PackedLinear>),
}

#[derive(Debug, Clone)]
struct Plain {
    /// Key `weight`: `(out, in)`, as in the checkpoint.
    weight: Tensor<2>,
    /// Key `bias`: `(out)`.
    bias: Option<Tensor<1>>,
    /// Keys `lora_A` and `lora_B`, while they are being trained.
    low_rank: Option<LowRank>,
    /// What factors of products are rounded to.
    precision: Precision,
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
        size: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        let bias = tensors.get("bias", [size[1]], implied_by)?;
        Self::read(tensors, size, Some(bias), implied_by)
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// If the tensor is missing or of another shape.
    pub fn load_without_bias(
        tensors: &Tensors<'_>,
        size: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        Self::read(tensors, size, None, implied_by)
    }

    fn read(
        tensors: &Tensors<'_>,
        [inputs, outputs]: [usize; 2],
        bias: Option<Tensor<1>>,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        if let Some(weight) = tensors.packed("weight", [outputs, inputs], implied_by)? {
            let packed = PackedLinear::new(weight, bias);
            return Ok(Self(Form::Packed(Arc::new(packed))));
        }
        let weight = tensors.get("weight", [outputs, inputs], implied_by)?;
        let mut linear = Self::new(tensors, weight, bias);
        if let Form::Plain(plain) = &mut linear.0 {
            plain.low_rank = tensors.low_rank("weight", [outputs, inputs])?;
        }
        Ok(linear)
    }

    /// A layer of the given `(out, in)` weight and `(out)` bias, in the precision of `tensors`.
    pub fn new(tensors: &Tensors<'_>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self(match tensors.precision() {
            None => Form::Plain(Box::new(Plain {
                weight,
                bias,
                low_rank: None,
                precision: tensors.computing(),
            })),
            Some(precision) => Form::Packed(Arc::new(PackedLinear::pack(weight, bias, precision))),
        })
    }

    /// # Shapes
    /// - `x`: `(…, in)`
    /// - returns `(…, out)`
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        self.forward_activated(x, Activation::Identity)
    }

    /// `activation(x · Wᵀ + b)`.
    ///
    /// # Shapes
    /// As [`Linear::forward`].
    pub fn forward_activated<const R: usize>(
        &self,
        x: Tensor<R>,
        activation: Activation,
    ) -> Tensor<R> {
        match &self.0 {
            Form::Packed(layer) => inference::linear(x, layer, activation),
            Form::Plain(plain) => activate(plain.forward(x), activation),
        }
    }

    /// `activation(x · Wᵀ + b) · times`, as in gated layers.
    ///
    /// # Shapes
    /// - `x`: `(…, in)`
    /// - `times`: `(…, out)`
    /// - returns `(…, out)`
    pub fn forward_gated<const R: usize>(
        &self,
        x: Tensor<R>,
        activation: Activation,
        times: Tensor<R>,
    ) -> Tensor<R> {
        match &self.0 {
            Form::Packed(layer) => inference::gated_linear(x, times, layer, activation),
            Form::Plain(plain) => activate(plain.forward(x), activation) * times,
        }
    }

    /// `residual + x · Wᵀ + b`.
    ///
    /// # Shapes
    /// - `x`: `(…, in)`
    /// - `residual`: `(…, out)`
    /// - returns `(…, out)`
    pub fn forward_added<const R: usize>(&self, x: Tensor<R>, residual: Tensor<R>) -> Tensor<R> {
        match &self.0 {
            Form::Packed(layer) => inference::added_linear(x, residual, layer),
            Form::Plain(plain) => residual + plain.forward(x),
        }
    }

    /// `residual + scale · (x · Wᵀ + b)`, where `scale` is a LayerScale.
    ///
    /// # Shapes
    /// - `x`: `(…, in)`
    /// - `scale`: `(out)`
    /// - `residual`: `(…, out)`
    /// - returns `(…, out)`
    pub fn forward_scaled<const R: usize>(
        &self,
        x: Tensor<R>,
        scale: &Tensor<1>,
        residual: Tensor<R>,
    ) -> Tensor<R> {
        match &self.0 {
            Form::Packed(layer) => inference::scaled_linear(x, residual, scale.clone(), layer),
            Form::Plain(plain) => residual + plain.forward(x) * scale.clone().unsqueeze(),
        }
    }
}

impl Plain {
    fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        let change = self
            .low_rank
            .as_ref()
            .map(|change| change.forward(x.clone(), self.precision));
        let bias = self.bias.clone().map(Tensor::unsqueeze);
        let y = product(x, self.weight.clone(), self.precision);
        bias.into_iter()
            .chain(change)
            .fold(y, |sum, part| sum + part)
    }
}

/// A function of each element.
fn activate<const R: usize>(x: Tensor<R>, activation: Activation) -> Tensor<R> {
    match activation {
        Activation::Identity => x,
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::QuickGelu => quick_gelu(x),
        Activation::Silu => silu(x),
        Activation::Relu => activation::relu(x),
    }
}

impl LowRank {
    fn forward<const R: usize>(&self, x: Tensor<R>, precision: Precision) -> Tensor<R> {
        let narrow = product(self.dropout.forward(x), self.a.clone(), precision);
        product(narrow, self.b.clone(), precision).mul_scalar(self.scale)
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
