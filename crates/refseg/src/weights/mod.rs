//! A model folder's weights: one view on safetensors and PyTorch files, single
//! or sharded, merged or with LoRA.
//!
//! Tensors go by their *logical* name, the one a merged checkpoint would use.
//! Names that peft adds while training
//! (`language_model.base_model.model.….base_layer.weight`) are hidden, and
//! reading such a tensor merges its LoRA pair on the fly.
//!
//! Opening reads headers only; a tensor's values are read when asked for.
//! Everything in the files is checked against the file's size before memory is
//! reserved for it, and pickles are parsed, never executed.

mod error;
mod folder;
mod lora;
mod pickle;
mod safetensors;
mod save;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype as SafetensorsDtype;
use half::{bf16, vec::HalfBitsVecExt};
use refseg_kernels::{NonFinite, Numbers, Packed, Precision};

pub use self::error::WeightsError;
pub use self::folder::resolve_in_folder;
pub use self::lora::merge_lora;
pub use self::save::{SaveDtype, TensorSpec, save_safetensors, save_sharded};

use self::folder::Layout;
use self::lora::{LoraModule, LoraScale};
use self::pickle::PickleFile;
use self::safetensors::SafetensorsFile;

/// The weights of one model, opened but not yet read.
///
/// safetensors files are memory-mapped: they must not be truncated or
/// rewritten in place while this value lives. Replacing them by rename, as
/// [`save_safetensors`] does, is safe.
pub struct Weights {
    /// The weight file, or the index where there are several; for messages.
    path: PathBuf,
    files: Vec<WeightsFile>,
    tensors: BTreeMap<String, Tensor>,
}

/// What is known of a tensor before its values are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type it is stored in.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
}

/// The type in which a tensor is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Any other type, by its name in the file; not readable as a weight.
    Other(String),
}

/// Unmerged LoRA of one weight `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankFactors {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    /// Columns of `b`.
    pub rank: usize,
    /// The factor in front of `B·A`.
    pub scale: f32,
}

impl Weights {
    /// Opens the weights in `folder`, reading headers only.
    ///
    /// Looks for `model.safetensors.index.json`, `model.safetensors`,
    /// `pytorch_model.bin.index.json` and `pytorch_model.bin`, in this order.
    /// Shards must lie inside the folder; symbolic links may lead to elsewhere
    /// in the folder, or to elsewhere in the Hugging Face cache entry
    /// (`models--*`) that the folder belongs to.
    ///
    /// # Errors
    /// When no weights are found, when a file is damaged or lies outside the
    /// folder, when a pickle names anything but tensors and plain values, or
    /// when LoRA tensors do not fit each other or the configuration.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        let layout = Layout::find(folder)?;
        let mut files = Vec::new();
        let mut stored = BTreeMap::new();
        for shard in layout.shards {
            let file = WeightsFile::open(shard.path, layout.is_safetensors)?;
            let names = match shard.keys {
                None => file.tensors().map(|(name, ..)| name.to_owned()).collect(),
                Some(keys) => keys,
            };
            for name in names {
                let Some(info) = file.info(&name) else {
                    return Err(WeightsError::IndexKey {
                        index: layout.path,
                        key: name,
                        shard: shard.name,
                    });
                };
                stored.insert(name, (files.len(), info));
            }
            files.push(file);
        }
        let scale = LoraScale::from_folder(folder)?;
        Self::from_stored(layout.path, files, stored, &scale)
    }

    /// Opens a single weight file (`.safetensors`, `.pt`, `.pth`, `.bin`).
    ///
    /// A checkpoint that nests its weights under `state_dict` is seen without
    /// that prefix.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn open_file(path: &Path) -> Result<Self, WeightsError> {
        let is_safetensors = path.extension().is_some_and(|end| end == "safetensors");
        Self::from_file(path, WeightsFile::open(path.to_owned(), is_safetensors)?)
    }

    /// Opens a safetensors file that is part of the program; `path` is what
    /// errors call it.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn embedded(path: &Path, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        let file = SafetensorsFile::embedded(path.to_owned(), bytes)?;
        Self::from_file(path, WeightsFile::Safetensors(file))
    }

    fn from_file(path: &Path, file: WeightsFile) -> Result<Self, WeightsError> {
        let stored = file
            .tensors()
            .map(|(name, dtype, shape)| {
                let info = TensorInfo {
                    dtype,
                    shape: shape.to_vec(),
                    file: path.to_owned(),
                };
                (name.to_owned(), (0, info))
            })
            .collect();
        Self::from_stored(path.to_owned(), vec![file], stored, &LoraScale::default())
    }

    /// The same tensors under other names.
    ///
    /// # Errors
    /// When two of them come to have the same.
    pub fn renamed(self, rename: impl Fn(&str) -> String) -> Result<Self, WeightsError> {
        let mut tensors = BTreeMap::<String, Tensor>::new();
        for (name, tensor) in self.tensors {
            let key = rename(&name);
            if let Some(other) = tensors.get(&key) {
                return Err(WeightsError::Duplicate {
                    path: self.path,
                    first: other.stored.name.clone(),
                    second: tensor.stored.name,
                    key,
                });
            }
            tensors.insert(key, tensor);
        }
        Ok(Self { tensors, ..self })
    }

    /// These weights with those of `over` in place of, or beside, their own.
    #[must_use]
    pub fn overlaid(mut self, over: Self) -> Self {
        let first = self.files.len();
        self.files.extend(over.files);
        for (key, mut tensor) in over.tensors {
            tensor.stored.file += first;
            if let Some(lora) = &mut tensor.lora {
                lora.a.file += first;
                lora.b.file += first;
            }
            self.tensors.insert(key, tensor);
        }
        self
    }

    /// These weights with the LoRA of a peft adapter, which has a folder of its
    /// own (`adapter_config.json` and `adapter_model.safetensors` or `.bin`):
    /// reading a tensor that it adapts merges the two.
    ///
    /// # Errors
    /// When the folder has no adapter, its files are damaged, it is not plain
    /// LoRA, or it adapts a tensor that these weights do not have, or have in another shape.
    pub fn adapted(mut self, folder: &Path) -> Result<Self, WeightsError> {
        const NAMES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
        let found = NAMES.iter().find_map(|name| {
            let path = folder::find_in_folder(folder, name);
            Some((path.transpose()?, name.ends_with("safetensors")))
        });
        let Some((path, is_safetensors)) = found else {
            return Err(WeightsError::NoWeights {
                folder: folder.to_owned(),
                expected: &NAMES,
            });
        };
        let path = path?;
        let scale = LoraScale::of_adapter(folder)?;
        let file = WeightsFile::open(path.clone(), is_safetensors)?;
        let index = self.files.len();
        let stored = file.tensors().map(|(name, dtype, shape)| StoredTensor {
            name: name.to_owned(),
            file: index,
            info: TensorInfo {
                dtype,
                shape: shape.to_vec(),
                file: path.clone(),
            },
        });
        lora::adapt(&mut self.tensors, stored, &path, &scale)?;
        self.files.push(file);
        Ok(self)
    }

    /// The weight file, or the index file of a sharded model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weight files.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(WeightsFile::path)
    }

    /// Size of the weight files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(WeightsFile::len).sum()
    }

    /// Logical names of all tensors, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this logical name.
    pub fn contains(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// Type, shape and file of a tensor; of the base weight where it has LoRA.
    pub fn info(&self, key: &str) -> Option<&TensorInfo> {
        self.tensors.get(key).map(|tensor| &tensor.info)
    }

    /// Whether any tensor carries unmerged LoRA.
    pub fn is_lora(&self) -> bool {
        self.tensors.values().any(|tensor| tensor.lora.is_some())
    }

    /// Reads one tensor as f32, row-major, with its LoRA merged.
    ///
    /// `implied_by` says where `expected_shape` comes from, for the message:
    /// "`hidden_size` in config.json".
    ///
    /// # Errors
    /// When the tensor is missing, has another shape, is not a float tensor,
    /// holds NaN or infinity, or cannot be read.
    pub fn read_f32(
        &self,
        key: &str,
        expected_shape: &[usize],
        implied_by: &str,
    ) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.tensor(key, expected_shape, implied_by)?;
        match self.merged(tensor)? {
            None => self.read_stored(&tensor.stored, |numbers| numbers.to_f32()),
            // Not `read`, which would copy them.
            Some(values) => {
                check_finite(&values, &tensor.info.file, key)?;
                Ok(values)
            }
        }
    }

    /// [`Weights::read_f32`] rounded to bf16.
    ///
    /// # Errors
    /// As [`Weights::read_f32`].
    pub fn read_bf16(
        &self,
        key: &str,
        expected_shape: &[usize],
        implied_by: &str,
    ) -> Result<Vec<bf16>, WeightsError> {
        let numbers = self.read(key, expected_shape, implied_by, |numbers| numbers.to_bf16())?;
        Ok(numbers.reinterpret_into())
    }

    /// [`Weights::read_f32`] of an `[out, in]` matrix, packed to multiply with: from where it is stored, without a copy as
    /// f32 unless LoRA is to be merged.
    ///
    /// # Errors
    /// As [`Weights::read_f32`].
    pub fn read_packed(
        &self,
        key: &str,
        [outputs, inputs]: [usize; 2],
        precision: Precision,
        implied_by: &str,
    ) -> Result<Packed, WeightsError> {
        self.read(key, &[outputs, inputs], implied_by, |numbers| {
            Packed::from_stored(numbers, outputs, inputs, precision)
        })
    }

    /// [`Weights::read_f32`] without its LoRA: the weight that was adapted.
    ///
    /// # Errors
    /// As [`Weights::read_f32`].
    pub fn read_base_f32(
        &self,
        key: &str,
        expected_shape: &[usize],
        implied_by: &str,
    ) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.tensor(key, expected_shape, implied_by)?;
        self.read_stored(&tensor.stored, |numbers| numbers.to_f32())
    }

    /// The unmerged LoRA of a tensor, if it has one.
    ///
    /// # Errors
    /// When it holds NaN or infinity, or cannot be read.
    pub fn low_rank(&self, key: &str) -> Result<Option<LowRankFactors>, WeightsError> {
        match self.tensors.get(key) {
            None => Ok(None),
            Some(tensor) => self.factors(tensor),
        }
    }

    /// Logical names of tensors that are not in `used`, sorted.
    ///
    /// Buffers that training leaves behind and no forward pass needs
    /// (`num_batches_tracked`, `init_pos`, `position_ids`,
    /// `rotary_emb.inv_freq`) are not mentioned.
    pub fn unused(&self, used: &HashSet<String>) -> Vec<String> {
        const NEVER_NEEDED: [&str; 4] = [
            "num_batches_tracked",
            "init_pos",
            "position_ids",
            "rotary_emb.inv_freq",
        ];
        let needless = |key: &str| {
            NEVER_NEEDED.iter().any(|end| {
                key.strip_suffix(end)
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        };
        self.keys()
            .filter(|key| !used.contains(*key) && !needless(key))
            .map(str::to_owned)
            .collect()
    }

    /// Turns stored names into logical ones and pairs LoRA factors with their
    /// base weights.
    fn from_stored(
        path: PathBuf,
        files: Vec<WeightsFile>,
        stored: BTreeMap<String, (usize, TensorInfo)>,
        scale: &LoraScale,
    ) -> Result<Self, WeightsError> {
        let stored =
            stored
                .into_iter()
                .map(|(name, (file, info))| StoredTensor { name, file, info });
        let tensors = lora::to_logical(stored, &path, scale)?;
        Ok(Self {
            path,
            files,
            tensors,
        })
    }

    /// The tensor of this logical name, if it has this shape.
    fn tensor(
        &self,
        key: &str,
        expected_shape: &[usize],
        implied_by: &str,
    ) -> Result<&Tensor, WeightsError> {
        let tensor = self.tensors.get(key).ok_or_else(|| WeightsError::Missing {
            path: self.path.clone(),
            key: key.to_owned(),
        })?;
        if tensor.info.shape != expected_shape {
            return Err(WeightsError::Shape {
                path: tensor.info.file.clone(),
                key: key.to_owned(),
                found: tensor.info.shape.clone(),
                expected: expected_shape.to_vec(),
                implied_by: implied_by.into(),
            });
        }
        Ok(tensor)
    }

    /// What `take` makes of a tensor's numbers with its LoRA merged.
    fn read<T>(
        &self,
        key: &str,
        expected_shape: &[usize],
        implied_by: &str,
        take: impl FnOnce(Numbers<'_>) -> Result<T, NonFinite>,
    ) -> Result<T, WeightsError> {
        let tensor = self.tensor(key, expected_shape, implied_by)?;
        match self.merged(tensor)? {
            None => self.read_stored(&tensor.stored, take),
            Some(values) => take(Numbers::Floats(&values))
                .map_err(|fault| non_finite(fault, &tensor.info.file, key)),
        }
    }

    /// A tensor as f32 with its LoRA merged, if it has one. Finite factors can still overflow in their product.
    fn merged(&self, tensor: &Tensor) -> Result<Option<Vec<f32>>, WeightsError> {
        let Some(LowRankFactors { a, b, rank, scale }) = self.factors(tensor)? else {
            return Ok(None);
        };
        let mut values = self.read_stored(&tensor.stored, |numbers| numbers.to_f32())?;
        merge_lora(&mut values, &a, &b, rank, scale);
        Ok(Some(values))
    }

    fn factors(&self, tensor: &Tensor) -> Result<Option<LowRankFactors>, WeightsError> {
        let Some(lora) = &tensor.lora else {
            return Ok(None);
        };
        Ok(Some(LowRankFactors {
            a: self.read_stored(&lora.a, |numbers| numbers.to_f32())?,
            b: self.read_stored(&lora.b, |numbers| numbers.to_f32())?,
            rank: lora.rank,
            scale: lora.scale,
        }))
    }

    /// What `take` makes of a stored tensor's numbers.
    fn read_stored<T>(
        &self,
        tensor: &Stored,
        take: impl FnOnce(Numbers<'_>) -> Result<T, NonFinite>,
    ) -> Result<T, WeightsError> {
        let file = &self.files[tensor.file];
        file.with_numbers(&tensor.name, take)?
            .map_err(|fault| non_finite(fault, file.path(), &tensor.name))
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Dtype {
    /// The type of this name as safetensors and PyTorch spell it.
    fn from_name(name: &str) -> Self {
        match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            other => Self::Other(other.to_ascii_uppercase()),
        }
    }
}

impl From<SafetensorsDtype> for Dtype {
    fn from(dtype: SafetensorsDtype) -> Self {
        Self::from_name(&dtype.to_string())
    }
}

impl From<pytorch_reader::DType> for Dtype {
    fn from(dtype: pytorch_reader::DType) -> Self {
        Self::from_name(&format!("{dtype:?}"))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name) => name,
        })
    }
}

/// A tensor by its logical name.
struct Tensor {
    stored: Stored,
    info: TensorInfo,
    lora: Option<LoraModule>,
}

/// Where a tensor's bytes are: which file, and its name in there.
struct Stored {
    file: usize,
    name: String,
}

/// A tensor as the files name it, before logical names are worked out.
struct StoredTensor {
    name: String,
    file: usize,
    info: TensorInfo,
}

/// One opened weight file.
enum WeightsFile {
    Safetensors(SafetensorsFile),
    Pickle(PickleFile),
}

impl WeightsFile {
    fn open(path: PathBuf, is_safetensors: bool) -> Result<Self, WeightsError> {
        Ok(if is_safetensors {
            Self::Safetensors(SafetensorsFile::open(path)?)
        } else {
            Self::Pickle(PickleFile::open(path)?)
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Safetensors(file) => file.path(),
            Self::Pickle(file) => file.path(),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Safetensors(file) => file.len(),
            Self::Pickle(file) => file.len(),
        }
    }

    fn tensors(&self) -> Box<dyn Iterator<Item = (&str, Dtype, &[usize])> + '_> {
        match self {
            Self::Safetensors(file) => Box::new(file.tensors()),
            Self::Pickle(file) => Box::new(file.tensors()),
        }
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (dtype, shape) = match self {
            Self::Safetensors(file) => file.dtype_and_shape(name)?,
            Self::Pickle(file) => file.dtype_and_shape(name)?,
        };
        Some(TensorInfo {
            dtype,
            shape: shape.to_vec(),
            file: self.path().to_owned(),
        })
    }

    /// Hands a tensor's numbers to `take`.
    fn with_numbers<T>(
        &self,
        name: &str,
        take: impl FnOnce(Numbers<'_>) -> T,
    ) -> Result<T, WeightsError> {
        let missing = || WeightsError::Missing {
            path: self.path().to_owned(),
            key: name.to_owned(),
        };
        let (dtype, _) = match self {
            Self::Safetensors(file) => file.dtype_and_shape(name),
            Self::Pickle(file) => file.dtype_and_shape(name),
        }
        .ok_or_else(missing)?;
        // The type is judged before the bytes are touched, which for a pickle
        // means before they are read.
        let numbers: fn(&[u8]) -> Numbers<'_> = match dtype {
            Dtype::F64 => |bytes| Numbers::F64(bytes.as_chunks().0),
            Dtype::F32 => |bytes| Numbers::F32(bytes.as_chunks().0),
            Dtype::F16 => |bytes| Numbers::F16(bytes.as_chunks().0),
            Dtype::Bf16 => |bytes| Numbers::Bf16(bytes.as_chunks().0),
            Dtype::Other(_) => {
                return Err(WeightsError::Dtype {
                    path: self.path().to_owned(),
                    key: name.to_owned(),
                    found: dtype,
                });
            }
        };
        Ok(match self {
            Self::Safetensors(file) => file
                .with_bytes(name, |bytes| take(numbers(bytes)))
                .ok_or_else(missing)?,
            Self::Pickle(file) => take(numbers(&file.read(name)?)),
        })
    }
}

fn check_finite(values: &[f32], path: &Path, key: &str) -> Result<(), WeightsError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let value = values[index];
            Err(non_finite(NonFinite { index, value }, path, key))
        }
    }
}

fn non_finite(NonFinite { index, value }: NonFinite, path: &Path, key: &str) -> WeightsError {
    WeightsError::NonFinite {
        path: path.to_owned(),
        key: key.to_owned(),
        index,
        value,
    }
}
