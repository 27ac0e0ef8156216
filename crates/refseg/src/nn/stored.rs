//! Tensors of a checkpoint, put on a device one by one.

use std::{cell::RefCell, collections::HashSet};

use burn::tensor::{DType, Device, Tensor, TensorData};
use refseg_kernels::{InstructionSet, Packed, Precision};

use super::TensorSource;
use crate::weights::{Weights, WeightsError};

/// Layers that [`Precision::Int8`] leaves in two bytes a weight: those that draw the mask, those that read pixels, and
/// what stands between the vision tower and the language model. They are a small part of the work, and nothing behind them
/// can mend what rounding does to them.
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
    /// [`Precision::Int8`] some layers are packed in two bytes a weight.
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

    /// Notes that a tensor was asked for, and says what implies its shape.
    fn asked(&self, key: &str, implied_by: &str) -> String {
        self.used.borrow_mut().insert(key.to_owned());
        format!("`{implied_by}` {}", self.sizes_from)
    }
}

impl TensorSource for StoredTensors<'_> {
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        implied_by: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let implied_by = self.asked(key, implied_by);
        let values = self.weights.read_f32(key, shape, &implied_by)?;
        let count = values.len();
        Ok(Tensor::from_data(
            TensorData::new(values, [count]),
            &self.device,
        ))
    }

    fn table(
        &self,
        key: &str,
        shape: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Option<Tensor<1>>, WeightsError> {
        let implied_by = self.asked(key, implied_by);
        let values = self.weights.read_bf16(key, &shape, &implied_by)?;
        let count = values.len();
        Ok(Some(Tensor::from_data(
            TensorData::new(values, [count]),
            (&self.device, DType::BF16),
        )))
    }

    fn packed(
        &self,
        key: &str,
        shape: [usize; 2],
        precision: Precision,
        implied_by: &'static str,
    ) -> Result<Option<Packed>, WeightsError> {
        let implied_by = self.asked(key, implied_by);
        let packed = self
            .weights
            .read_packed(key, shape, precision, &implied_by)?;
        Ok(Some(packed))
    }

    fn precision(&self, key: &str) -> Option<Precision> {
        let is_delicate = || DELICATE.iter().any(|name| key.contains(name));
        match self.precision {
            Some(Precision::Int8) if is_delicate() => {
                Some(InstructionSet::current().preferred_of_two_bytes())
            }
            precision => precision,
        }
    }

    fn device(&self) -> Device {
        self.device.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, error::Error};

    use burn::tensor::Distribution;

    use super::*;
    use crate::{
        nn::{Linear, Tensors},
        weights::{SaveDtype, TensorSpec, save_safetensors},
    };

    /// A source that has tensors alone.
    struct TensorsAlone<'a>(StoredTensors<'a>);

    impl TensorSource for TensorsAlone<'_> {
        fn tensor(
            &self,
            key: &str,
            shape: &[usize],
            implied_by: &'static str,
        ) -> Result<Tensor<1>, WeightsError> {
            self.0.tensor(key, shape, implied_by)
        }

        fn precision(&self, key: &str) -> Option<Precision> {
            self.0.precision(key)
        }

        fn device(&self) -> Device {
            self.0.device()
        }
    }

    /// The numbers 0, 1, 2, … turned into weights of all magnitudes that halves have.
    fn weight(i: usize) -> f32 {
        let fraction = ((i * 7919) % 4001) as f32 / 2000.0 - 1.0;
        fraction * 2f32.powi((i % 9) as i32 - 6)
    }

    #[test]
    fn what_is_packed_from_the_file_is_what_is_packed_from_a_tensor() -> Result<(), Box<dyn Error>>
    {
        let [inputs, outputs] = [70, 133];
        let shapes = [
            ("l.weight", vec![outputs, inputs]),
            ("l.bias", vec![outputs]),
        ];
        let specs = shapes.map(|(name, shape)| TensorSpec {
            name: name.into(),
            shape,
        });
        let device = Device::flex();
        let x: Tensor<2> = Tensor::random([3, inputs], Distribution::Normal(0.0, 1.0), &device);
        for dtype in [SaveDtype::F32, SaveDtype::F16, SaveDtype::Bf16] {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("model.safetensors");
            save_safetensors(&path, &specs, dtype, &BTreeMap::new(), |spec| {
                Ok((0..spec.shape.iter().product()).map(weight).collect())
            })?;
            let weights = Weights::open(folder.path())?;
            for precision in Precision::ALL {
                let source = || StoredTensors::new(&weights, device.clone()).packed(precision);
                let (stored, alone) = (source(), TensorsAlone(source()));
                let (stored, alone) = (Tensors::root(&stored), Tensors::root(&alone));
                assert!(
                    stored
                        .at("l")
                        .packed("weight", [outputs, inputs], "")?
                        .is_some()
                );
                assert!(
                    alone
                        .at("l")
                        .packed("weight", [outputs, inputs], "")?
                        .is_none()
                );
                let [found, expected] = [&stored, &alone].map(|tensors| {
                    let layer = Linear::load(&tensors.at("l"), [inputs, outputs], "")?;
                    let table = tensors.table("l.weight", [outputs, inputs], "")?;
                    Ok::<_, WeightsError>((layer.forward(x.clone()).into_data(), table.into_data()))
                });
                assert!(found? == expected?, "{dtype:?}, {precision}");
            }
        }
        Ok(())
    }
}
