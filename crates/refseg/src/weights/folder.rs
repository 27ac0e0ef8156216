//! Finds a model folder's weight files, and keeps them inside the folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::WeightsError;

/// The files looked for, in order of preference.
const NAMES: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// The largest index or configuration read. Real ones stay below 1 MB.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Which files hold a model's weights.
pub(super) struct Layout {
    /// The single weight file, or the index.
    pub(super) path: PathBuf,
    pub(super) is_safetensors: bool,
    pub(super) shards: Vec<Shard>,
}

/// One weight file and what to take from it.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Names promised by the index; `None` without an index, meaning all.
    pub(super) keys: Option<Vec<String>>,
}

impl Layout {
    /// Finds the weights in `folder`; an index wins over a single file, and
    /// safetensors over PyTorch.
    pub(super) fn find(folder: &Path) -> Result<Self, WeightsError> {
        for name in NAMES {
            let Some(path) = find_in_folder(folder, name)? else {
                continue;
            };
            let is_safetensors = name.starts_with("model.safetensors");
            let shards = if name.ends_with(".json") {
                Self::shards_of_index(folder, &path)?
            } else {
                vec![Shard {
                    name: name.to_owned(),
                    path: path.clone(),
                    keys: None,
                }]
            };
            return Ok(Self {
                path,
                is_safetensors,
                shards,
            });
        }
        Err(WeightsError::NoWeights {
            folder: folder.to_owned(),
            expected: &NAMES,
        })
    }

    fn shards_of_index(folder: &Path, index: &Path) -> Result<Vec<Shard>, WeightsError> {
        let ShardIndex { weight_map } = read_json(index, "an index of weight shards")?;
        let mut by_file = BTreeMap::<String, Vec<String>>::new();
        for (key, file) in weight_map {
            by_file.entry(file).or_default().push(key);
        }
        by_file
            .into_iter()
            .map(|(name, keys)| {
                Ok(Shard {
                    path: resolve_in_folder(folder, &name)?,
                    name,
                    keys: Some(keys),
                })
            })
            .collect()
    }
}

/// The part of an index file that matters here.
#[derive(Deserialize)]
struct ShardIndex {
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
}

/// Turns the name of a model's file into a path that is safe to open.
///
/// The name is relative, has no `..`, and names a regular file that lies in
/// the folder once symbolic links are followed (the folder itself may be
/// reached through one). One exception: in Hugging Face's cache the files of
/// `models--owner--name/snapshots/<revision>` are links into
/// `models--owner--name/blobs`, so a folder inside a `models--*` folder may
/// link to anywhere inside that.
///
/// The returned path is spelled as `folder` joined with `name`.
///
/// # Errors
/// [`WeightsError::Outside`] when the name leads elsewhere,
/// [`WeightsError::Io`] when there is no such file.
pub fn resolve_in_folder(folder: &Path, name: &str) -> Result<PathBuf, WeightsError> {
    let outside = |reason| WeightsError::Outside {
        folder: folder.to_owned(),
        name: name.to_owned(),
        reason,
    };
    // A backslash separates folders on Windows only; an index that works on
    // one system and not on another is refused on both.
    if name.is_empty() || name.contains(['\\', '\0']) {
        return Err(outside("not a plain relative file name"));
    }
    for component in Path::new(name).components() {
        match component {
            Component::Normal(_) => {}
            Component::CurDir => return Err(outside("not a plain relative file name")),
            Component::ParentDir => return Err(outside("a name with `..`")),
            Component::RootDir | Component::Prefix(_) => return Err(outside("an absolute path")),
        }
    }
    let path = folder.join(name);
    let root = canonicalize(folder)?;
    let target = canonicalize(&path)?;
    if !target.starts_with(&root) && !same_cache_entry(&root, &target) {
        return Err(outside("a symbolic link that leaves the folder"));
    }
    // A pipe or a device would block or never end.
    if !target.is_file() {
        return Err(WeightsError::NotAFile { path });
    }
    Ok(path)
}

/// As [`resolve_in_folder`], but `None` when there is no such entry.
pub(super) fn find_in_folder(folder: &Path, name: &str) -> Result<Option<PathBuf>, WeightsError> {
    // Not `exists()`: a dangling link is an entry, and deserves its error.
    match fs::symlink_metadata(folder.join(name)) {
        Ok(_) => resolve_in_folder(folder, name).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder.is_dir() => Ok(None),
        Err(source) => Err(WeightsError::Io {
            path: folder.to_owned(),
            action: "open",
            source,
        }),
    }
}

/// Reads a JSON file of a model folder; unknown fields are ignored.
pub(super) fn read_json<T: DeserializeOwned>(
    path: &Path,
    expected: &'static str,
) -> Result<T, WeightsError> {
    let io = |source| WeightsError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    };
    let bytes = fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_JSON_BYTES {
        return Err(WeightsError::JsonTooLarge {
            path: path.to_owned(),
            bytes,
            limit: MAX_JSON_BYTES,
        });
    }
    serde_json::from_slice(&fs::read(path).map_err(io)?).map_err(|source| WeightsError::Json {
        path: path.to_owned(),
        expected,
        source,
    })
}

/// Whether both paths lie in the same `models--*` folder.
fn same_cache_entry(root: &Path, target: &Path) -> bool {
    root.ancestors()
        .find(|ancestor| {
            ancestor
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("models--"))
        })
        .is_some_and(|entry| target.starts_with(entry))
}

fn canonicalize(path: &Path) -> Result<PathBuf, WeightsError> {
    fs::canonicalize(path).map_err(|source| WeightsError::Io {
        path: path.to_owned(),
        action: "open",
        source,
    })
}
