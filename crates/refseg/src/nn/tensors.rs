//! Where a network's tensors come from.

use burn::tensor::{Device, Tensor};

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

    /// The device on which the tensors live.
    fn device(&self) -> Device;
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
