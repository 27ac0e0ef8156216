//! What can go wrong between a model folder and a tensor.

use std::path::PathBuf;

use super::{Dtype, SaveDtype};

/// A problem with a model's weights: which file, which tensor, what was found
/// and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused to read or write.
    #[error("`{path}`: cannot {action}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, as a verb: "open", "read", "write".
        action: &'static str,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The folder holds none of the weight files that refseg knows.
    #[error("`{folder}`: no weights; expected one of {}", expected.join(", "))]
    NoWeights {
        /// The model folder.
        folder: PathBuf,
        /// The file names looked for, in order.
        expected: &'static [&'static str],
    },
    /// A file of the model would be read from outside its folder.
    #[error("`{folder}`: refuses `{name}`, {reason}; a model's files stay inside its folder")]
    Outside {
        /// The model folder.
        folder: PathBuf,
        /// The name as written in the index, or as found in the folder.
        name: String,
        /// Why the name leads outside.
        reason: &'static str,
    },
    /// A path that must be a regular file is a folder, a pipe or a device.
    #[error("`{path}`: expected a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A JSON file beside the weights is larger than any real one.
    #[error("`{path}`: {bytes} bytes, but at most {limit} are read as JSON")]
    JsonTooLarge {
        /// The JSON file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The largest size read.
        limit: u64,
    },
    /// A JSON file beside the weights does not have the expected form.
    #[error("`{path}`: cannot be read as {expected}")]
    Json {
        /// The JSON file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// Where and why parsing failed.
        #[source]
        source: serde_json::Error,
    },
    /// The index promises a tensor that its shard does not hold.
    #[error("`{index}`: puts `{key}` in `{shard}`, which does not hold it")]
    IndexKey {
        /// The index file.
        index: PathBuf,
        /// The tensor's name.
        key: String,
        /// The shard's name.
        shard: String,
    },
    /// The header of a safetensors file is not valid for the file's size.
    #[error("`{path}`: not a complete safetensors file ({bytes} bytes)")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// What the header got wrong.
        #[source]
        source: Box<safetensors::SafeTensorError>,
    },
    /// A PyTorch checkpoint is damaged, or holds tensors of an unknown kind.
    #[error("`{path}`: not a readable PyTorch checkpoint ({bytes} bytes)")]
    Pytorch {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// What the reader met.
        #[source]
        source: Box<pytorch_reader::PytorchError>,
    },
    /// A pickle names something other than tensors and plain values.
    #[error(
        "`{path}`: `{key}` names the Python object `{found}`, but only tensors and plain \
         values are expected; refseg never executes pickles"
    )]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The key that holds the object; `.` for the whole file.
        key: String,
        /// The object's qualified Python name.
        found: String,
    },
    /// A tensor claims more bytes than its file can hold.
    #[error(
        "`{path}`: `{key}` claims shape {shape:?}, more than the file's {bytes} bytes can hold"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// The claimed shape.
        shape: Vec<usize>,
        /// The file's size in bytes.
        bytes: u64,
    },
    /// One tensor is stored twice, for example both merged and as a LoRA base.
    #[error("`{path}`: `{first}` and `{second}` both stand for `{key}`")]
    Duplicate {
        /// The file that holds the second.
        path: PathBuf,
        /// The logical name.
        key: String,
        /// The stored name met first.
        first: String,
        /// The stored name met second.
        second: String,
    },
    /// A tensor the model needs is not there.
    #[error("`{path}`: no tensor `{key}`")]
    Missing {
        /// The weight file, or the index where there are several.
        path: PathBuf,
        /// The tensor's logical name.
        key: String,
    },
    /// A tensor's shape differs from what the configuration implies.
    #[error("`{path}`: `{key}` is {found:?}, but {implied_by} implies {expected:?}")]
    Shape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape wanted.
        expected: Vec<usize>,
        /// Where the wanted shape comes from, e.g. "`hidden_size` in config.json".
        implied_by: Box<str>,
    },
    /// A tensor is stored in a type that cannot serve as a weight.
    #[error("`{path}`: `{key}` is {found}, but weights are F64, F32, F16 or BF16")]
    Dtype {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// The stored type.
        found: Dtype,
    },
    /// A weight is NaN or infinite (as f32).
    #[error("`{path}`: `{key}` holds {value} at index {index}, but weights are finite")]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// Row-major index of the first such value.
        index: usize,
        /// The value: NaN or an infinity.
        value: f32,
    },
    /// The bytes of a tensor cannot be read, though the header promised them.
    #[error("`{path}`: cannot read `{key}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// What the reader met.
        #[source]
        source: std::io::Error,
    },
    /// One of the three tensors of a LoRA module is missing.
    #[error("`{path}`: `{key}` has LoRA tensors, but no `{missing}`")]
    LoraIncomplete {
        /// The weight file or index.
        path: PathBuf,
        /// The logical name of the adapted weight.
        key: String,
        /// What is missing: "base_layer", "lora_A" or "lora_B".
        missing: &'static str,
    },
    /// The shapes of a LoRA module do not fit together.
    #[error(
        "`{path}`: `{key}` is {base:?} with lora_A {a:?} and lora_B {b:?}, \
         expected [out, in], [r, in] and [out, r]"
    )]
    LoraShape {
        /// The weight file or index.
        path: PathBuf,
        /// The logical name of the adapted weight.
        key: String,
        /// Shape of the base weight.
        base: Box<[usize]>,
        /// Shape of `lora_A`.
        a: Box<[usize]>,
        /// Shape of `lora_B`.
        b: Box<[usize]>,
    },
    /// The rank of a LoRA module differs from the one configured.
    #[error("`{path}`: `{field}` is {configured}, but lora_A of `{key}` has {found} rows")]
    LoraRank {
        /// The configuration file.
        path: PathBuf,
        /// The field: `use_llm_lora`, or `r` of adapter_config.json.
        field: &'static str,
        /// The field's value.
        configured: u64,
        /// The logical name of the adapted weight.
        key: String,
        /// Rows of its `lora_A`.
        found: usize,
    },
    /// The adapter is of a kind that a plain `W + s·B·A` does not express.
    #[error("`{path}`: `{found}` is not supported; only plain LoRA on linear layers can be merged")]
    LoraUnsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// The field or tensor name.
        found: String,
    },
    /// A value is outside the range of the type it is to be saved in.
    #[error("`{path}`: `{key}` holds {value} at index {index}, which {dtype:?} cannot represent")]
    Overflow {
        /// The file being written.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// Row-major index of the first such value.
        index: usize,
        /// The value.
        value: f32,
        /// The type asked for.
        dtype: SaveDtype,
    },
    /// The number of values handed over differs from the shape announced.
    #[error("`{path}`: `{key}` has {found} values, but its shape {shape:?} says otherwise")]
    ValueCount {
        /// The file being written.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// Values handed over.
        found: usize,
        /// The shape announced.
        shape: Vec<usize>,
    },
    /// A name that cannot be written: used twice, or reserved by the format.
    #[error("`{path}`: cannot write a tensor named `{key}`: {reason}")]
    Name {
        /// The file being written.
        path: PathBuf,
        /// The name.
        key: String,
        /// Why not.
        reason: &'static str,
    },
}
