//! What files are told apart by: SHA-256, in hexadecimal.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use refseg::{builtin, weights::Weights};
use sha2::{Digest, Sha256};

/// Files beside the weights that decide what a model answers.
const BESIDE: [&str; 9] = [
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "adapter_config.json",
];

/// The digest of a model: of its weights, configuration and tokenizer, name by name.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn of_model(model: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    if model == Path::new(builtin::NAME) && !model.is_dir() {
        for (name, bytes) in builtin::FILES {
            add(&mut hash, name, &mut &bytes[..])?;
        }
    } else {
        let mut files: Vec<PathBuf> = BESIDE
            .iter()
            .map(|name| model.join(name))
            .filter(|path| path.is_file())
            .collect();
        files.extend(Weights::open(model)?.files().map(Path::to_owned));
        for path in files {
            let unreadable = || format!("`{}`: cannot be read", path.display());
            let mut file = File::open(&path).with_context(unreadable)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            add(&mut hash, &name, &mut file).with_context(unreadable)?;
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Adds a file with its name and length, so that no two sets of files look alike.
fn add(hash: &mut Sha256, name: &str, bytes: &mut impl io::Read) -> io::Result<()> {
    hash.update(name);
    hash.update([0]);
    let length = io::copy(bytes, hash)?;
    hash.update(length.to_le_bytes());
    Ok(())
}
