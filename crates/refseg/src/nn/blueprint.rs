//! A network without weights: which tensors it needs, and of which shape.

use std::cell::RefCell;

use burn::tensor::{Device, Tensor};

use super::TensorSource;
use crate::weights::WeightsError;

/// Records what a network asks for while it is being built.
///
/// The tensors it hands out are views of the same zeros, so that the blueprint
/// of a network far larger than memory can be drawn.
#[derive(Debug)]
pub struct Blueprint {
    device: Device,
    /// As long as the longest part so far.
    zeros: RefCell<Tensor<1>>,
    parts: RefCell<Vec<Part>>,
}

/// One tensor of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The checkpoint key.
    pub key: String,
    /// The shape, row-major.
    pub shape: Vec<usize>,
}

impl Part {
    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Blueprint {
    /// The parts that `build` asks for, in its order.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn of<T>(
        build: impl FnOnce(&dyn TensorSource) -> Result<T, WeightsError>,
    ) -> Result<Vec<Part>, WeightsError> {
        let device = Device::flex();
        let zeros = RefCell::new(Tensor::zeros([1], &device));
        let blueprint = Self {
            device,
            zeros,
            parts: RefCell::default(),
        };
        build(&blueprint)?;
        Ok(blueprint.parts.into_inner())
    }
}

impl TensorSource for Blueprint {
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        _: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let part = Part {
            key: key.to_owned(),
            shape: shape.to_vec(),
        };
        let mut zeros = self.zeros.borrow_mut();
        if zeros.dims()[0] < part.len() {
            *zeros = Tensor::zeros([part.len()], &self.device);
        }
        let view = zeros.clone().narrow(0, 0, part.len());
        self.parts.borrow_mut().push(part);
        Ok(view)
    }

    fn device(&self) -> Device {
        self.device.clone()
    }
}
