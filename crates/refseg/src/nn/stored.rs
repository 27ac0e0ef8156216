//! Tensors of a checkpoint, put on a device one by one.

use std::{cell::RefCell, collections::HashSet};

use burn::tensor::{Device, Tensor, TensorData};
use refseg_kernels::Precision;

use super::TensorSource;
use crate::weights::{Weights, WeightsError};

/// Layers that [`Precision::Int8`] leaves in bf16: those that draw the mask, those that read pixels, and what stands
/// between the vision tower and the language model. They are a small part of the work, and nothing behind them can mend
/// what rounding does to them.
const DELICATE: [&str; 6] = [
    "res_decoder",
    "mask_decoder",
    "prompt_encoder",
    "vision_model.embeddings",
    "patch_embed",
    "mlp1",
];

/// A checkpoint as a [`TensorSource`]: reads each tensor when a network asks for it.
#[derive(Debug)]
pub struct StoredTensors<'a> {
    weights: &'a Weights,
    device: Device,
    /// Where the sizes stand that tensors are compared with.
    sizes_from: &'static str,
    precision: Option<Precision>,
    used: RefCell<HashSet<String>>,
}

impl<'a> StoredTensors<'a> {
    /// The tensors of `weights`, to be put on `device`.
    pub fn new(weights: &'a Weights, device: Device) -> Self {
        Self {
            weights,
            device,
            sizes_from: "in config.json",
            precision: None,
            used: RefCell::default(),
        }
    }

    /// The same for a checkpoint without a `config.json`, whose sizes its own tensors tell.
    pub fn without_config(weights: &'a Weights, device: Device) -> Self {
        Self {
            sizes_from: "as other tensors tell it",
            ..Self::new(weights, device)
        }
    }

    /// The same tensors, packed in this precision where they are multiplied with; with
    /// [`Precision::Int8`] some layers are packed in bf16.
    #[must_use]
    pub fn packed(self, precision: Precision) -> Self {
        Self {
            precision: Some(precision),
            ..self
        }
    }

    /// Keys that no network has asked for, sorted.
    pub fn unused(&self) -> Vec<String> {
        self.weights.unused(&self.used.borrow())
    }
}

impl TensorSource for StoredTensors<'_> {
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        implied_by: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let values =
            self.weights
                .read_f32(key, shape, &format!("`{implied_by}` {}", self.sizes_from))?;
        self.used.borrow_mut().insert(key.to_owned());
        let count = values.len();
        Ok(Tensor::from_data(
            TensorData::new(values, [count]),
            &self.device,
        ))
    }

    fn precision(&self, key: &str) -> Option<Precision> {
        let is_delicate = || DELICATE.iter().any(|name| key.contains(name));
        match self.precision {
            Some(Precision::Int8) if is_delicate() => Some(Precision::Bf16),
            precision => precision,
        }
    }

    fn device(&self) -> Device {
        self.device.clone()
    }
}
