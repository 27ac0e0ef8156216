//! The checkpoint that a run starts from: read once, and constant.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

use burn::tensor::{Device, Tensor, TensorData};
use refseg::{
    random::SplitMix64,
    weights::{
        Dtype, LowRankFactors, SaveDtype, TensorInfo, TensorSpec, Weights, WeightsError,
        save_sharded,
    },
};

use super::recipe::Lora;
use crate::parameters::{Parameters, Values};

/// A checkpoint whose tensors are kept on the device once they have been asked for.
///
/// Its embedding and head may have fewer rows than the network: markers that the tokenizer gained
/// are appended as the reference appends them.
#[derive(Debug)]
pub struct Base {
    weights: Weights,
    /// Rows of the network's embedding and head.
    vocabulary: usize,
    seed: u64,
    /// Whether low-rank changes of the checkpoint go on being trained, rather than being merged.
    apart: bool,
    device: Device,
    kept: Mutex<BTreeMap<String, Tensor<1>>>,
}

/// Largest weight file, as Hugging Face's tools cut them.
const SHARD_BYTES: u64 = 4_000_000_000;
/// `initializer_range` of every published configuration: deviation of new embedding rows.
const NEW_ROW_DEVIATION: f64 = 0.02;

impl Base {
    /// The tensors of `weights` for a network with so many rows in its embedding; `seed` decides about new rows.
    pub fn new(weights: Weights, vocabulary: usize, seed: u64, device: &Device) -> Self {
        Self {
            weights,
            vocabulary,
            seed,
            apart: false,
            device: device.clone(),
            kept: Mutex::default(),
        }
    }

    /// The same checkpoint, whose own low-rank changes are kept apart if they are like these, and
    /// merged if not.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn adapted_as(self, lora: Option<Lora>) -> Result<Self, WeightsError> {
        let Some(lora) = lora else { return Ok(self) };
        let mut factors = Vec::new();
        for key in self.weights.keys() {
            factors.extend(self.weights.low_rank(key)?);
        }
        let is_alike = |factors: &LowRankFactors| {
            factors.rank == lora.rank && f64::from(factors.scale) == lora.scale()
        };
        let apart = !factors.is_empty() && factors.iter().all(is_alike);
        Ok(Self { apart, ..self })
    }

    /// Whether the checkpoint has this tensor.
    pub fn contains(&self, key: &str) -> bool {
        self.weights.contains(key)
    }

    /// Type and shape of a tensor in the checkpoint.
    pub fn info(&self, key: &str) -> Option<&TensorInfo> {
        self.weights.info(key)
    }

    /// All keys of the checkpoint.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.weights.keys()
    }

    /// The checkpoint's own low-rank change of a tensor, if it is kept apart.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn low_rank(&self, key: &str) -> Result<Option<LowRankFactors>, WeightsError> {
        if self.apart {
            self.weights.low_rank(key)
        } else {
            Ok(None)
        }
    }

    /// The values of a tensor, without a low-rank change that is kept apart.
    ///
    /// # Errors
    /// If it is missing, of another shape, or cannot be read.
    pub fn values(
        &self,
        key: &str,
        shape: &[usize],
        implied_by: &str,
    ) -> Result<Vec<f32>, WeightsError> {
        let read = |shape: &[usize]| {
            if self.apart {
                self.weights.read_base_f32(key, shape, implied_by)
            } else {
                self.weights.read_f32(key, shape, implied_by)
            }
        };
        match (self.weights.info(key).map(|info| &info.shape[..]), shape) {
            (Some(&[old, width]), &[rows, wide])
                if old < rows && width == wide && rows == self.vocabulary =>
            {
                let mut values = read(&[old, width])?;
                self.append_rows(key, &mut values, [old, rows, width]);
                Ok(values)
            }
            _ => read(shape),
        }
    }

    /// New rows of the embedding are normal; those of the head are the mean of all old ones.
    fn append_rows(&self, key: &str, values: &mut Vec<f32>, [old, rows, width]: [usize; 3]) {
        if key.contains("embed") {
            let mut random = SplitMix64::named(key, self.seed);
            let normal = || (random.normal() * NEW_ROW_DEVIATION) as f32;
            values.extend(std::iter::repeat_with(normal).take((rows - old) * width));
        } else {
            let mut sums = vec![0f64; width];
            for row in values.chunks(width) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(value);
                }
            }
            let mean: Vec<f32> = sums.iter().map(|sum| (sum / old as f64) as f32).collect();
            for _ in old..rows {
                values.extend_from_slice(&mean);
            }
        }
    }

    /// The values of a tensor as a run leaves them: replaced, or with the low-rank change beside it.
    ///
    /// # Errors
    /// As [`Base::values`].
    pub(crate) fn changed(
        &self,
        parameters: &Parameters,
        key: &str,
        shape: &[usize],
        scale: f64,
    ) -> Result<Vec<f32>, WeightsError> {
        if let Some(parameter) = parameters.get(key) {
            return Ok(parameter.of(Values::Average).to_vec());
        }
        let mut values = self.values(key, shape, "the network")?;
        let factor = |end: &str| {
            let module = key.strip_suffix(".weight")?;
            parameters.get(&format!("{module}.{end}"))
        };
        if let Some((a, b)) = factor("low_rank_a").zip(factor("low_rank_b")) {
            let rank = a.shape[0];
            let (a, b) = (a.of(Values::Average), b.of(Values::Average));
            let inputs = a.len() / rank;
            for (row, b) in values.chunks_mut(inputs).zip(b.chunks(rank)) {
                for (b, a) in b.iter().zip(a.chunks(inputs)) {
                    for (value, a) in row.iter_mut().zip(a) {
                        *value += scale as f32 * b * a;
                    }
                }
            }
        }
        Ok(values)
    }

    /// Writes every tensor that `is_kept` as a run leaves it, in the checkpoint's own type;
    /// low-rank changes, whose factor is `scale`, are merged.
    ///
    /// # Errors
    /// If a tensor cannot be read or written.
    pub(crate) fn save(
        &self,
        folder: &Path,
        parameters: &Parameters,
        scale: f64,
        is_kept: impl Fn(&str) -> bool,
    ) -> Result<(), WeightsError> {
        let mut specs = Vec::new();
        let mut dtype = SaveDtype::F32;
        for key in self.keys().filter(|key| is_kept(key)) {
            let Some(info) = self.info(key) else { continue };
            match info.dtype {
                Dtype::Other(_) => continue,
                Dtype::Bf16 => dtype = SaveDtype::Bf16,
                Dtype::F16 => dtype = SaveDtype::F16,
                _ => {}
            }
            specs.push(TensorSpec {
                name: key.to_owned(),
                shape: info.shape.clone(),
            });
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        save_sharded(folder, &specs, dtype, &metadata, SHARD_BYTES, |spec| {
            self.changed(parameters, &spec.name, &spec.shape, scale)
        })?;
        Ok(())
    }

    /// A tensor, flat: see [`Base::values`].
    ///
    /// # Errors
    /// As [`Base::values`].
    pub fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        implied_by: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = kept().get(key) {
            return Ok(tensor.clone());
        }
        let implied_by = format!("`{implied_by}` in config.json");
        let values = self.values(key, shape, &implied_by)?;
        let count = values.len();
        let tensor = Tensor::from_data(TensorData::new(values, [count]), &self.device);
        kept().insert(key.to_owned(), tensor.clone());
        Ok(tensor)
    }
}
