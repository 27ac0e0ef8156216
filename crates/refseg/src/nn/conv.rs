//! Two-dimensional convolution, and maps cut into patches.

use burn::tensor::{Tensor, module, ops::ConvOptions};

use super::Tensors;
use crate::weights::WeightsError;

/// A convolution with a square kernel of odd side and zeros around the map, so
/// that a stride of one keeps its size.
#[derive(Debug, Clone)]
pub struct Conv2d {
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
        Ok(Self {
            bias: Some(bias),
            ..Self::load_without_bias(tensors, shape, implied_by)?
        })
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

    /// This convolution and the batch norm behind it, with its stored statistics, in one: the norm
    /// is affine, so it scales the kernel and moves the bias.
    ///
    /// # Errors
    /// If `weight`, `bias`, `running_mean` or `running_var` of the norm is missing or of another shape.
    pub fn with_batch_norm(
        self,
        norm: &Tensors<'_>,
        epsilon: f64,
        implied_by: &'static str,
    ) -> Result<Self, WeightsError> {
        let [outputs, ..] = self.weight.dims();
        let get = |name| norm.get::<1>(name, [outputs], implied_by);
        let scale = get("weight")? / (get("running_var")? + epsilon).sqrt();
        let mean = get("running_mean")?;
        let offset = match self.bias {
            Some(bias) => bias - mean,
            None => -mean,
        };
        Ok(Self {
            bias: Some(offset * scale.clone() + get("bias")?),
            weight: self.weight * scale.reshape([outputs, 1, 1, 1]),
            ..self
        })
    }

    /// # Shapes
    /// `(B, in, h, w)` to `(B, out, ⌈h/stride⌉, ⌈w/stride⌉)`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
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
    use crate::nn::TensorSource;

    /// Values that depend on the key alone.
    struct Drawn;

    impl TensorSource for Drawn {
        fn tensor(
            &self,
            key: &str,
            shape: &[usize],
            _: &'static str,
        ) -> Result<Tensor<1>, WeightsError> {
            let count: usize = shape.iter().product();
            let mut random = crate::random::SplitMix64::named(key, 0);
            let values: Vec<f32> = (0..count).map(|_| random.uniform() as f32 + 0.1).collect();
            Ok(Tensor::from_floats(&values[..], &Device::flex()))
        }

        fn device(&self) -> Device {
            Device::flex()
        }
    }

    #[test]
    fn a_batch_norm_folds_into_the_convolution_before_it() -> Result<(), WeightsError> {
        let tensors = Tensors::root(&Drawn);
        let shape = ConvShape::new(4, 6, 3).strided(2).grouped(2);
        let x = Tensor::random(
            [2, 4, 7, 5],
            Distribution::Normal(0.0, 1.0),
            &Device::flex(),
        );
        let norm = tensors.at("norm");
        let get = |name| norm.get::<1>(name, [6], "");
        for conv in [
            Conv2d::load(&tensors, shape, "")?,
            Conv2d::load_without_bias(&tensors, shape, "")?,
        ] {
            let apart = module::batch_norm(
                conv.forward(x.clone()),
                get("weight")?,
                get("bias")?,
                get("running_mean")?,
                get("running_var")?,
                1e-3,
            );
            let folded = conv.with_batch_norm(&norm, 1e-3, "")?.forward(x.clone());
            assert_eq!(folded.dims(), [2, 6, 4, 3]);
            let gap: f32 = (folded - apart).abs().max().into_scalar();
            assert!(gap < 1e-5, "{gap}");
        }
        Ok(())
    }
}
