//! What files are told apart by: SHA-256, in hexadecimal.

use std::{fs::File, io, path::Path};

use anyhow::{Context, Result};
use refseg::{
    builtin,
    sam4mllm::{PAIR_FILE, Pair},
    weights::Weights,
};
use sha2::{Digest, Sha256};

use crate::cli::ModelArgs;

/// Files beside the weights that decide what a model answers.
const BESIDE: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "qwen.tiktoken",
    "adapter_config.json",
];
/// Weights of an adapter that has a folder of its own.
const ADAPTERS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The digest of a model: of its weights, configuration and tokenizer, name by name; of all models,
/// where several work together.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn of_model(args: &ModelArgs) -> Result<String> {
    let mut hash = Sha256::new();
    let model = &args.model;
    if builtin::is(builtin::NAME, model) {
        for (name, bytes) in builtin::FILES {
            add(&mut hash, name, &mut &bytes[..])?;
        }
    } else if builtin::is(builtin::PAIR_NAME, model) {
        add_network(&mut hash, model)?;
    } else if Pair::is_in(model) {
        let pair = Pair::from_folder(model)?;
        add_file(&mut hash, &model.join(PAIR_FILE))?;
        for part in [Some(pair.mllm), Some(pair.sam), pair.sam_decoder]
            .iter()
            .flatten()
        {
            add_network(&mut hash, part)?;
        }
        if let Some(adapter) = &pair.adapter {
            add_beside(&mut hash, adapter, &[&BESIDE[..], &ADAPTERS].concat())?;
        }
    } else {
        add_network(&mut hash, model)?;
    }
    if let Some(sam) = &args.refine {
        add_network(&mut hash, sam)?;
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Adds the files of one network: a checkpoint, or a folder.
fn add_network(hash: &mut Sha256, path: &Path) -> Result<()> {
    if builtin::is(builtin::PAIR_NAME, path) {
        for (name, bytes) in builtin::PAIR_FILES {
            add(hash, name, &mut &bytes[..])?;
        }
        return Ok(());
    }
    let weights = if path.is_dir() {
        Weights::open(path)?
    } else {
        Weights::open_file(path)?
    };
    add_beside(hash, path, &BESIDE)?;
    weights.files().try_for_each(|path| add_file(hash, path))
}

/// Adds those files of a folder that there are.
fn add_beside(hash: &mut Sha256, folder: &Path, names: &[&str]) -> Result<()> {
    let files = names.iter().map(|name| folder.join(name));
    files
        .filter(|path| path.is_file())
        .try_for_each(|path| add_file(hash, &path))
}

fn add_file(hash: &mut Sha256, path: &Path) -> Result<()> {
    let unreadable = || format!("`{}`: cannot be read", path.display());
    let mut file = File::open(path).with_context(unreadable)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    add(hash, &name, &mut file).with_context(unreadable)
}

/// Adds a file with its name and length, so that no two sets of files look alike.
fn add(hash: &mut Sha256, name: &str, bytes: &mut impl io::Read) -> io::Result<()> {
    hash.update(name);
    hash.update([0]);
    let length = io::copy(bytes, hash)?;
    hash.update(length.to_le_bytes());
    Ok(())
}
