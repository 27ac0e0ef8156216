//! One PyTorch checkpoint (`pytorch_model.bin`, `.pt`, `.pth`).
//!
//! `pytorch-reader` parses the pickle and interprets nothing but the calls
//! that rebuild tensors. It leaves other objects aside without a word; here
//! they are an error, so that a file that tries to run something is named as
//! one, and not half loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pytorch_reader::{PickleValue, PytorchReader, Tensor};

use super::{Dtype, WeightsError};

/// Python names that checkpoints hold beside tensors; they stay unread.
///
/// Prefixes, to be followed by one plain identifier.
const HARMLESS: [&str; 4] = ["torch.", "collections.", "numpy.", "numpy.core.multiarray."];

/// A parsed checkpoint; tensors are read from the file when asked for.
pub(super) struct PickleFile {
    path: PathBuf,
    /// Size of the file.
    bytes: u64,
    tensors: BTreeMap<String, Tensor>,
}

impl PickleFile {
    /// Parses the pickle, without touching the tensors' bytes.
    pub(super) fn open(path: PathBuf) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.clone(),
            action: "open",
            source,
        };
        let bytes = std::fs::metadata(&path).map_err(io)?.len();
        let unreadable = |source| WeightsError::Pytorch {
            path: path.clone(),
            bytes,
            source: Box::new(source),
        };
        let contents = PytorchReader::read_pickle_data(&path, None).map_err(unreadable)?;
        if let Some((key, found)) = foreign_object(&contents, ".") {
            return Err(WeightsError::Pickle { path, key, found });
        }
        let tensors = PytorchReader::new(&path)
            .map_err(unreadable)?
            .into_tensors();
        // Trainers wrap the weights; networks name theirs without the wrapper.
        let nested = tensors.keys().any(|name| name.starts_with("state_dict."));
        let tensors: BTreeMap<_, _> = tensors
            .into_iter()
            .filter_map(|(name, tensor)| match nested {
                false => Some((name, tensor)),
                true => Some((name.strip_prefix("state_dict.")?.to_owned(), tensor)),
            })
            .collect();
        for (name, tensor) in &tensors {
            // A stride of zero repeats bytes, so a tiny file could otherwise
            // ask for any amount of memory.
            if tensor.byte_len() as u64 > bytes {
                return Err(WeightsError::TooLarge {
                    path,
                    key: name.clone(),
                    shape: tensor.shape().to_vec(),
                    bytes,
                });
            }
        }
        Ok(Self {
            path,
            bytes,
            tensors,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.dtype().into(), tensor.shape()))
    }

    pub(super) fn dtype_and_shape(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let tensor = self.tensors.get(name)?;
        Some((tensor.dtype().into(), tensor.shape()))
    }

    /// Reads the tensor's bytes: little-endian on every machine refseg runs
    /// on, contiguous whatever its strides in the file.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| WeightsError::Missing {
                path: self.path.clone(),
                key: name.to_owned(),
            })?;
        tensor.read().map_err(|source| WeightsError::Read {
            path: self.path.clone(),
            key: name.to_owned(),
            source,
        })
    }
}

/// Finds an object that is no tensor, no plain value and not known to be
/// harmless; returns its key and its Python name.
fn foreign_object(value: &PickleValue, key: &str) -> Option<(String, String)> {
    match value {
        PickleValue::Unsupported(name) if !is_harmless(name) => {
            Some((key.to_owned(), name.clone()))
        }
        PickleValue::List(items) => items.iter().find_map(|item| foreign_object(item, key)),
        PickleValue::Dict(entries) => entries
            .iter()
            .find_map(|(key, value)| foreign_object(value, key)),
        _ => None,
    }
}

fn is_harmless(name: &str) -> bool {
    // An integer wider than 64 bits, as random seeds are, has no module.
    name == "int"
        || HARMLESS.iter().any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty() && !rest.contains('.'))
        })
}
