//! Writes weights as safetensors: one file, or shards with an index.
//!
//! Values arrive one tensor at a time, so a model needs no more memory than
//! its largest tensor. Files are written under a temporary name and renamed
//! when complete: a name either holds what it held before, or everything.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;

use half::slice::HalfFloatSliceExt;
use serde_json::{Map, Value, json};

use super::WeightsError;

/// The type in which weights are saved; values round to nearest, ties to even.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveDtype {
    /// 32-bit float: lossless.
    F32,
    /// IEEE half precision; values beyond ±65504 are an error.
    F16,
    /// The upper half of an f32, rounded.
    Bf16,
}

/// Name and shape of a tensor to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

/// Writes one safetensors file.
///
/// `values` is called once per tensor, in the order of `tensors`, and returns
/// its values row-major. `metadata` goes to the header's `__metadata__`;
/// Hugging Face's loaders want `format` = `pt` in there.
///
/// # Errors
/// When `values` fails or returns another number of values than the shape
/// says, when a value is not finite or outside the range of `dtype`, when a
/// name occurs twice, or when writing fails. Nothing is left behind then.
pub fn save_safetensors(
    path: &Path,
    tensors: &[TensorSpec],
    dtype: SaveDtype,
    metadata: &BTreeMap<String, String>,
    values: impl FnMut(&TensorSpec) -> Result<Vec<f32>, WeightsError>,
) -> Result<(), WeightsError> {
    check_names(path, tensors)?;
    write_file(path, tensors, dtype, metadata, values)?.publish()
}

/// Writes a model folder's weights: `model.safetensors`, or shards of at most
/// `max_shard_bytes` (a larger tensor gets a shard of its own) with
/// `model.safetensors.index.json`.
///
/// Returns the paths written. A `model.safetensors.index.json` from an earlier
/// model would hide the new `model.safetensors`, so it is removed; other old
/// files stay. The folder must exist.
///
/// # Errors
/// As [`save_safetensors`]. No file gets its final name before all are
/// written.
pub fn save_sharded(
    folder: &Path,
    tensors: &[TensorSpec],
    dtype: SaveDtype,
    metadata: &BTreeMap<String, String>,
    max_shard_bytes: u64,
    mut values: impl FnMut(&TensorSpec) -> Result<Vec<f32>, WeightsError>,
) -> Result<Vec<PathBuf>, WeightsError> {
    let index_path = folder.join("model.safetensors.index.json");
    check_names(&index_path, tensors)?;
    let shards = split(tensors, dtype, max_shard_bytes, &index_path)?;
    if let [_] = shards[..] {
        let path = folder.join("model.safetensors");
        write_file(&path, tensors, dtype, metadata, values)?.publish()?;
        match fs::remove_file(&index_path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io(&index_path, "remove")(error));
            }
            _ => return Ok(vec![path]),
        }
    }

    let mut written = Vec::new();
    let mut weight_map = Map::new();
    let mut total_size = 0;
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let path = folder.join(&name);
        written.push(write_file(&path, shard, dtype, metadata, &mut values)?);
        for tensor in *shard {
            total_size += byte_len(tensor, dtype, &path)?;
            weight_map.insert(tensor.name.clone(), Value::from(name.clone()));
        }
    }
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    let mut file = TemporaryFile::create(&index_path)?;
    let text = serde_json::to_vec_pretty(&index).map_err(|source| WeightsError::Json {
        path: index_path.clone(),
        expected: "an index of weight shards",
        source,
    })?;
    file.write(&text)?;
    file.finish()?;
    written.push(file);
    // The index comes last: until then the folder's old model is in charge.
    let paths = written.iter().map(|file| file.path.clone()).collect();
    written.into_iter().try_for_each(TemporaryFile::publish)?;
    Ok(paths)
}

impl SaveDtype {
    /// The type's name in a safetensors header.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes per value.
    fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Writes one file under its temporary name.
fn write_file(
    path: &Path,
    tensors: &[TensorSpec],
    dtype: SaveDtype,
    metadata: &BTreeMap<String, String>,
    mut values: impl FnMut(&TensorSpec) -> Result<Vec<f32>, WeightsError>,
) -> Result<TemporaryFile, WeightsError> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut end = 0u64;
    for tensor in tensors {
        let start = end;
        end = start
            .checked_add(byte_len(tensor, dtype, path)?)
            .ok_or_else(|| too_long(tensor, path))?;
        let entry = json!({
            "dtype": dtype.name(), "shape": tensor.shape, "data_offsets": [start, end],
        });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Spaces after the JSON align the values to eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = TemporaryFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for tensor in tensors {
        let values = values(tensor)?;
        if values.len() as u64 * dtype.size() != byte_len(tensor, dtype, path)? {
            return Err(WeightsError::ValueCount {
                path: path.to_owned(),
                key: tensor.name.clone(),
                found: values.len(),
                shape: tensor.shape.clone(),
            });
        }
        write_values(&mut file, &values, dtype, &tensor.name)?;
    }
    file.finish()?;
    Ok(file)
}

fn write_values(
    file: &mut TemporaryFile,
    values: &[f32],
    dtype: SaveDtype,
    key: &str,
) -> Result<(), WeightsError> {
    super::check_finite(values, &file.path, key)?;
    /// Values converted at a time.
    const CHUNK: usize = 1 << 16;
    let mut bytes = Vec::with_capacity(CHUNK * 4);
    for (i, chunk) in values.chunks(CHUNK).enumerate() {
        bytes.clear();
        let overflow = match dtype {
            SaveDtype::F32 => {
                bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                None
            }
            SaveDtype::F16 => {
                let mut halves = vec![half::f16::ZERO; chunk.len()];
                halves.convert_from_f32_slice(chunk);
                bytes.extend(halves.iter().flat_map(|value| value.to_le_bytes()));
                halves.iter().position(|value| !value.is_finite())
            }
            SaveDtype::Bf16 => {
                let mut halves = vec![half::bf16::ZERO; chunk.len()];
                halves.convert_from_f32_slice(chunk);
                bytes.extend(halves.iter().flat_map(|value| value.to_le_bytes()));
                halves.iter().position(|value| !value.is_finite())
            }
        };
        if let Some(at) = overflow {
            return Err(WeightsError::Overflow {
                path: file.path.clone(),
                key: key.to_owned(),
                index: i * CHUNK + at,
                value: chunk[at],
                dtype,
            });
        }
        file.write(&bytes)?;
    }
    Ok(())
}

/// Cuts the list of tensors into consecutive shards; at least one.
fn split<'a>(
    tensors: &'a [TensorSpec],
    dtype: SaveDtype,
    max_shard_bytes: u64,
    path: &Path,
) -> Result<Vec<&'a [TensorSpec]>, WeightsError> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        let more = byte_len(tensor, dtype, path)?;
        if i > start && bytes.saturating_add(more) > max_shard_bytes {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes = bytes.saturating_add(more);
    }
    shards.push(&tensors[start..]);
    Ok(shards)
}

fn check_names(path: &Path, tensors: &[TensorSpec]) -> Result<(), WeightsError> {
    let mut seen = HashSet::new();
    for tensor in tensors {
        let reason = if tensor.name == "__metadata__" {
            "the format reserves it"
        } else if !seen.insert(&tensor.name) {
            "it occurs twice"
        } else {
            continue;
        };
        return Err(WeightsError::Name {
            path: path.to_owned(),
            key: tensor.name.clone(),
            reason,
        });
    }
    Ok(())
}

fn byte_len(tensor: &TensorSpec, dtype: SaveDtype, path: &Path) -> Result<u64, WeightsError> {
    tensor
        .shape
        .iter()
        .try_fold(dtype.size(), |bytes, &extent| {
            bytes.checked_mul(u64::try_from(extent).ok()?)
        })
        .ok_or_else(|| too_long(tensor, path))
}

fn too_long(tensor: &TensorSpec, path: &Path) -> WeightsError {
    WeightsError::TooLarge {
        path: path.to_owned(),
        key: tensor.name.clone(),
        shape: tensor.shape.clone(),
        bytes: u64::MAX,
    }
}

fn io(path: &Path, action: &'static str) -> impl Fn(std::io::Error) -> WeightsError {
    move |source| WeightsError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// A file being written beside its final place; removed unless published.
struct TemporaryFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
}

impl TemporaryFile {
    fn create(path: &Path) -> Result<Self, WeightsError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        // Two processes that write the same model do not share a file; the
        // last to finish wins.
        name.push(format!(".{}.tmp", process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(io(path, "write"))?;
        Ok(Self {
            path: path.to_owned(),
            temporary,
            writer: BufWriter::new(file),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        self.writer
            .write_all(bytes)
            .map_err(io(&self.path, "write"))
    }

    /// Brings everything to disk.
    fn finish(&mut self) -> Result<(), WeightsError> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().sync_all())
            .map_err(io(&self.path, "write"))
    }

    /// Gives the file its final name.
    fn publish(self) -> Result<(), WeightsError> {
        fs::rename(&self.temporary, &self.path).map_err(io(&self.path, "write"))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After `publish` there is nothing to remove, and when removal fails
        // the error that led here is the one worth reporting.
        let _ = fs::remove_file(&self.temporary);
    }
}
