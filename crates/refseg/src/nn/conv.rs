//! Two-dimensional convolution, and maps cut into patches.

use std::sync::Arc;

use burn::tensor::{Tensor, module, ops::ConvOptions};

use super::{
    Tensors,
    inference::{self, PackedConvolution},
};
use crate::weights::WeightsError;

/// A convolution with a square kernel of odd side and zeros around the map, so
/// that a stride of one keeps its size.
#[derive(Debug, Clone)]
pub struct Conv2d(Form);

#[derive(Debug, Clone)]
enum Form {
    /// As the framework computes it.
    Plain(Box<Plain>),
    /// With a stride of one and in one group: a product for each cell of the kernel.
    Packed(Arc<PackedConvolution>),
}

#[derive(Debug, Clone)]
struct Plain {
    /// Key `weight`: `(out, in / groups, side, side)`.
    weight: Tensor<4>,
    /// Key `bias`: `(out)`.
    bias: Option<Tensor<1>>,
    stride: usize,
    groups: usize,
}

/// Sizes of a [`Conv2d`].
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
    /// Channels that go in.
    pub inputs: usize,
    /// Channels that come out.
    pub outputs: usize,
    /// Side of the kernel, odd.
    pub side: usize,
    /// Cells from one output to the next.
    pub stride: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl ConvShape {
    /// `inputs` to `outputs` channels with stride one, in one group.
    pub fn new(inputs: usize, outputs: usize, side: usize) -> Self {
        Self {
            inputs,
            outputs,
            side,
            stride: 1,
            groups: 1,
        }
    }

    /// Each channel on its own.
    pub fn depthwise(channels: usize, side: usize) -> Self {
        Self::new(channels, channels, side).grouped(channels)
    }

    /// The same with another stride.
    #[must_use]
    pub fn strided(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same in groups.
    #[must_use]
    pub fn grouped(self, groups: usize) -> Self {
        Self { groups, ..self }
    }
}

impl Conv2d {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(
        tensors: &Tensors<'_>,
        shape: ConvShape,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        let bias = tensors.get("bias", [shape.outputs], implied_by)?;
        let plain = Plain {
            bias: Some(bias),
            ..Plain::load(tensors, shape, implied_by)?
        };
        Ok(plain.prepared(tensors))
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// If the tensor is missing or of another shape.
    pub fn load_without_bias(
        tensors: &Tensors<'_>,
        shape: ConvShape,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        Ok(Plain::load(tensors, shape, implied_by)?.prepared(tensors))
    }

    /// Reads a convolution without a bias and the batch norm behind it, with its stored statistics, as one: the
    /// norm is affine, so it scales the kernel and gives the bias.
    ///
    /// # Errors
    /// If `weight` of `tensors`, or `weight`, `bias`, `running_mean` or `running_var` of `norm` is missing or of
    /// another shape.
    pub fn load_with_batch_norm(
        tensors: &Tensors<'_>,
        norm: &Tensors<'_>,
        shape: ConvShape,
        epsilon: f64,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        let plain = Plain::load(tensors, shape, implied_by)?;
        let get = |name| norm.get::<1>(name, [shape.outputs], implied_by);
        let scale = get("weight")? / (get("running_var")? + epsilon).sqrt();
        let folded = Plain {
            bias: Some(get("bias")? - get("running_mean")? * scale.clone()),
            weight: plain.weight * scale.reshape([shape.outputs, 1, 1, 1]),
            ..plain
        };
        Ok(folded.prepared(tensors))
    }

    /// # Shapes
    /// `(B, in, h, w)` to `(B, out, ⌈h/stride⌉, ⌈w/stride⌉)`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            Form::Plain(plain) => plain.forward(x),
            Form::Packed(packed) => {
                inference::convolution(x.permute([0, 2, 3, 1]), packed).permute([0, 3, 1, 2])
            }
        }
    }
}

impl Plain {
    fn load(
        tensors: &Tensors<'_>,
        shape: ConvShape,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        let ConvShape {
            inputs,
            outputs,
            side,
            stride,
            groups,
        } = shape;
        Ok(Self {
            weight: tensors.get("weight", [outputs, inputs / groups, side, side], implied_by)?,
            bias: None,
            stride,
            groups,
        })
    }

    fn prepared(self, tensors: &Tensors<'_>) -> Conv2d {
        Conv2d(match tensors.precision() {
            Some(precision) if self.stride == 1 && self.groups == 1 => {
                let packed = PackedConvolution::new(self.weight, self.bias, precision);
                Form::Packed(Arc::new(packed))
            }
            _ => Form::Plain(Box::new(self)),
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., side] = self.weight.dims();
        let (stride, padding) = ([self.stride; 2], [side / 2; 2]);
        let options = ConvOptions::new(stride, padding, [1, 1], self.groups);
        module::conv2d(x, self.weight.clone(), self.bias.clone(), options)
    }
}

/// Cuts maps into square patches, each flattened channel by channel.
///
/// # Shapes
/// `(B, C, h, w)` to `(B, P, C·patch²)`, patches in reading order.
pub fn patches(maps: Tensor<4>, patch: usize) -> Tensor<3> {
    let [batch, channels, height, width] = maps.dims();
    let (rows, columns) = (height / patch, width / patch);
    maps.reshape([batch, channels, rows, patch, columns, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch, rows * columns, channels * patch * patch])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::nn::{Precision, tensors::Drawn};

    #[test]
    fn a_batch_norm_folds_into_the_convolution_before_it() -> Result<(), WeightsError> {
        let tensors = Tensors::root(&Drawn::PLAIN);
        let shape = ConvShape::new(4, 6, 3).strided(2).grouped(2);
        let x = Tensor::random(
            [2, 4, 7, 5],
            Distribution::Normal(0.0, 1.0),
            &Device::flex(),
        );
        let norm = tensors.at("norm");
        let get = |name| norm.get::<1>(name, [6], "");
        let apart = module::batch_norm(
            Conv2d::load_without_bias(&tensors, shape, "")?.forward(x.clone()),
            get("weight")?,
            get("bias")?,
            get("running_mean")?,
            get("running_var")?,
            1e-3,
        );
        let folded = Conv2d::load_with_batch_norm(&tensors, &norm, shape, 1e-3, "")?.forward(x);
        assert_eq!(folded.dims(), [2, 6, 4, 3]);
        let gap: f32 = (folded - apart).abs().max().into_scalar();
        assert!(gap < 1e-5, "{gap}");
        Ok(())
    }

    #[test]
    fn products_for_each_cell_of_the_kernel_are_the_convolution() -> Result<(), WeightsError> {
        for (side, height, width) in [(1, 4, 3), (3, 7, 5), (3, 1, 1), (5, 6, 9)] {
            let shape = ConvShape::new(4, 6, side);
            let x = Tensor::random(
                [2, 4, height, width],
                Distribution::Normal(0.0, 1.0),
                &Device::flex(),
            );
            let plain = Conv2d::load(&Tensors::root(&Drawn::PLAIN), shape, "")?;
            let packed = Conv2d::load(&Tensors::root(&Drawn::packed(Precision::F32)), shape, "")?;
            assert!(matches!(packed.0, Form::Packed(_)));
            let gap = plain.forward(x.clone()) - packed.forward(x);
            let gap: f32 = gap.abs().max().into_scalar();
            assert!(gap < 1e-4, "{side}: {gap}");
        }
        Ok(())
    }
}
