//! The model that a run starts from: its files, and what they say.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use refseg::{
    builtin,
    internvl::Config,
    tokenizer::Tokenizer,
    weights::{Weights, resolve_in_folder},
};
use serde_json::{Value, json};

use crate::{TrainError, checkpoint};

/// A model to start from, as a folder or as part of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The built-in model.
    Builtin,
    /// A folder in the official layout: InternVL2 or 2.5 as published, or MLLMSeg.
    Folder(PathBuf),
}

/// Files that describe how text becomes tokens, and what belongs to a model besides.
const COPIED: [&str; 10] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE",
    "README.md",
];
/// What MLLMSeg adds to the vocabulary of InternVL.
const MARKERS: [&str; 2] = ["[SEG]", "[REJ]"];

impl Start {
    /// `builtin`, or a folder.
    pub fn named(model: &Path) -> Self {
        if builtin::is(builtin::NAME, model) {
            Self::Builtin
        } else {
            Self::Folder(model.to_owned())
        }
    }

    /// Name of the model, for messages and for the settings of a run.
    pub fn name(&self) -> String {
        match self {
            Self::Builtin => builtin::NAME.to_owned(),
            Self::Folder(folder) => folder.display().to_string(),
        }
    }

    /// Its sizes, and its `config.json` with every field.
    ///
    /// # Errors
    /// If it is missing or malformed.
    pub(super) fn config(&self) -> Result<(Config, Value), TrainError> {
        match self {
            Self::Builtin => {
                let config = builtin::config()?;
                let json = config.to_json();
                Ok((config, json))
            }
            Self::Folder(folder) => {
                let config = Config::from_folder(folder)?;
                let path = folder.join("config.json");
                let bytes = fs::read(&path).map_err(|source| TrainError::Read {
                    path: path.clone(),
                    source,
                })?;
                let json = serde_json::from_slice(&bytes)
                    .map_err(|source| TrainError::Json { path, source })?;
                Ok((config, json))
            }
        }
    }

    /// Its weights.
    ///
    /// # Errors
    /// If they are missing or damaged.
    pub(super) fn weights(&self) -> Result<Weights, TrainError> {
        Ok(match self {
            Self::Builtin => builtin::weights()?,
            Self::Folder(folder) => Weights::open(folder)?,
        })
    }

    /// Copies everything but weights and configuration to `folder`, adds the markers to the
    /// vocabulary if they are not in it, and reads it.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub(super) fn tokenizer(&self, folder: &Path) -> Result<Tokenizer, TrainError> {
        fs::create_dir_all(folder).map_err(|source| TrainError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        match self {
            Self::Builtin => {
                for (name, bytes) in builtin::FILES {
                    if COPIED.contains(&name) {
                        checkpoint::write(&folder.join(name), bytes)?;
                    }
                }
            }
            Self::Folder(from) => {
                for name in COPIED {
                    if from.join(name).exists() {
                        let path = resolve_in_folder(from, name)?;
                        let bytes =
                            fs::read(&path).map_err(|source| TrainError::Read { path, source })?;
                        checkpoint::write(&folder.join(name), &bytes)?;
                    }
                }
            }
        }
        let tokenizer = Tokenizer::from_folder(folder)?;
        let missing: Vec<&str> = MARKERS
            .into_iter()
            .filter(|marker| tokenizer.added_token(marker).is_none())
            .collect();
        if missing.is_empty() {
            return Ok(tokenizer);
        }
        add_tokens(folder, &missing, tokenizer.vocabulary_size())?;
        Ok(Tokenizer::from_folder(folder)?)
    }
}

/// Adds special tokens with consecutive ids to every tokenizer file that lists such.
fn add_tokens(folder: &Path, tokens: &[&str], first: usize) -> Result<(), TrainError> {
    let new = || tokens.iter().zip(first..);
    let described = |token: &str| {
        json!({
            "content": token, "lstrip": false, "normalized": false, "rstrip": false,
            "single_word": false, "special": true,
        })
    };
    edit(&folder.join("added_tokens.json"), |file| {
        for (token, id) in new() {
            file[*token] = id.into();
        }
    })?;
    edit(&folder.join("tokenizer_config.json"), |file| {
        for (token, id) in new() {
            file["added_tokens_decoder"][id.to_string()] = described(token);
        }
    })?;
    edit(&folder.join("tokenizer.json"), |file| {
        if let Some(list) = file["added_tokens"].as_array_mut() {
            list.extend(new().map(|(token, id)| {
                let mut token = described(token);
                token["id"] = id.into();
                token
            }));
        }
    })
}

/// Changes a JSON file if there is one.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) -> Result<(), TrainError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(TrainError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut file: Value = serde_json::from_slice(&bytes).map_err(|source| TrainError::Json {
        path: path.to_owned(),
        source,
    })?;
    if file.is_object() {
        change(&mut file);
    }
    checkpoint::write(path, &checkpoint::json(&file))
}
