//! Where a network's tensors come from.

use burn::tensor::{Device, FloatDType, Tensor};

use refseg_kernels::{Packed, Precision};

use super::{Dropout, LowRank};
use crate::weights::WeightsError;

/// A store of named tensors: a checkpoint on disk, or the parameters of a
/// training run.
///
/// Networks are built from such a store and never know which one it is, so
/// that the model which trains is the model which runs.
pub trait TensorSource {
    /// The tensor `key`, flat and row-major.
    ///
    /// # Errors
    /// If there is no such tensor, or its shape is not `shape`; `implied_by`
    /// names the field of `config.json` that asks for this shape.
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        implied_by: &'static str,
    ) -> Result<Tensor<1>, WeightsError>;

    /// [`TensorSource::tensor`] in bf16, from a source that need not make it from one of f32; `None` from others.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`].
    fn table(
        &self,
        key: &str,
        shape: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Option<Tensor<1>>, WeightsError> {
        let _ = (key, shape, implied_by);
        Ok(None)
    }

    /// The `(out, in)` matrix `key`, packed from where it is stored; `None` from a source that has tensors alone.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`].
    fn packed(
        &self,
        key: &str,
        shape: [usize; 2],
        precision: Precision,
        implied_by: &'static str,
    ) -> Result<Option<Packed>, WeightsError> {
        let _ = (key, shape, precision, implied_by);
        Ok(None)
    }

    /// The device on which the tensors live.
    fn device(&self) -> Device;

    /// In which numbers layers of the network are packed for inference; `None` leaves them
    /// as tensors, which training needs. Depends on `key`, the beginning of the layer's keys.
    fn precision(&self, key: &str) -> Option<Precision> {
        let _ = key;
        None
    }

    /// What factors of products are rounded to where layers are not packed.
    fn computing(&self) -> Precision {
        Precision::F32
    }

    /// The change that is being trained beside the `(out, in)` matrix `key`, if there is one.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`].
    fn low_rank(&self, key: &str, shape: [usize; 2]) -> Result<Option<LowRank>, WeightsError> {
        let _ = (key, shape);
        Ok(None)
    }

    /// The dropout of the layer `key`, which was published with this rate: none outside of
    /// training.
    fn dropout(&self, key: &str, rate: f64) -> Dropout {
        let _ = (key, rate);
        Dropout::none()
    }
}

/// A view into a [`TensorSource`] under a key prefix.
#[derive(Clone)]
pub struct Tensors<'a> {
    source: &'a dyn TensorSource,
    prefix: String,
}

impl<'a> Tensors<'a> {
    /// The whole store.
    pub fn root(source: &'a dyn TensorSource) -> Self {
        Self {
            source,
            prefix: String::new(),
        }
    }

    /// The part whose keys begin with this prefix and `name`, joined by a dot.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self {
            source: self.source,
            prefix: self.key(&name.to_string()),
        }
    }

    /// The tensor `name` below the prefix.
    ///
    /// # Errors
    /// See [`TensorSource::tensor`].
    pub fn get<const R: usize>(
        &self,
        name: &str,
        shape: [usize; R],
        implied_by: &'static str,
    ) -> Result<Tensor<R>, WeightsError> {
        let flat = self.source.tensor(&self.key(name), &shape, implied_by)?;
        Ok(flat.reshape(shape))
    }

    /// A `(rows, columns)` table whose rows are looked up: in bf16 where layers are packed in less than f32.
    ///
    /// # Errors
    /// See [`TensorSource::tensor`].
    pub fn table(
        &self,
        name: &str,
        shape: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Tensor<2>, WeightsError> {
        if let None | Some(Precision::F32) = self.precision() {
            return self.get(name, shape, implied_by);
        }
        Ok(
            match self.source.table(&self.key(name), shape, implied_by)? {
                Some(table) => table.reshape(shape),
                None => self.get(name, shape, implied_by)?.cast(FloatDType::BF16),
            },
        )
    }

    /// The `(out, in)` matrix `name` below the prefix, if layers are packed and the source can pack: see
    /// [`TensorSource::packed`].
    ///
    /// # Errors
    /// See [`TensorSource::tensor`].
    pub fn packed(
        &self,
        name: &str,
        shape: [usize; 2],
        implied_by: &'static str,
    ) -> Result<Option<Packed>, WeightsError> {
        match self.precision() {
            None => Ok(None),
            Some(precision) => self
                .source
                .packed(&self.key(name), shape, precision, implied_by),
        }
    }

    /// The change that is being trained beside the `(out, in)` matrix `name`, if there is one.
    ///
    /// # Errors
    /// See [`TensorSource::tensor`].
    pub fn low_rank(&self, name: &str, shape: [usize; 2]) -> Result<Option<LowRank>, WeightsError> {
        self.source.low_rank(&self.key(name), shape)
    }

    /// The dropout `name` below the prefix: see [`TensorSource::dropout`].
    pub fn dropout(&self, name: &str, rate: f64) -> Dropout {
        self.source.dropout(&self.key(name), rate)
    }

    /// In which numbers a layer below the prefix is packed: see [`TensorSource::precision`].
    pub fn precision(&self) -> Option<Precision> {
        self.source.precision(&self.prefix)
    }

    /// What factors of products are rounded to where layers are not packed: see [`TensorSource::computing`].
    pub fn computing(&self) -> Precision {
        self.source.computing()
    }

    /// The device on which the tensors live.
    pub fn device(&self) -> Device {
        self.source.device()
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}

/// Values between 0.1 and 1.1 that depend on the key alone.
#[cfg(test)]
pub(super) struct Drawn {
    precision: Option<Precision>,
}

#[cfg(test)]
impl Drawn {
    pub(super) const PLAIN: Self = Self { precision: None };

    pub(super) fn packed(precision: Precision) -> Self {
        Self {
            precision: Some(precision),
        }
    }
}

#[cfg(test)]
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

    fn precision(&self, _: &str) -> Option<Precision> {
        self.precision
    }
}
