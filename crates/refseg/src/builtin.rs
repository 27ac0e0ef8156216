//! The model that is part of the program.
//!
//! It was trained by `refseg train` on drawn scenes: it knows flat shapes,
//! their colours, sizes and places, and no photographs.

use std::path::Path;

use crate::{
    internvl::{Config, ConfigError},
    tokenizer::{Tokenizer, TokenizerError},
    weights::{Weights, WeightsError},
};

/// Its name, wherever a model can be named.
pub const NAME: &str = "builtin";

const CONFIG: &[u8] = include_bytes!("../builtin/config.json");
const TOKENIZER: &[u8] = include_bytes!("../builtin/tokenizer.json");
const WEIGHTS: &[u8] = include_bytes!("../builtin/model.safetensors");

/// Its files, by name.
pub const FILES: [(&str, &[u8]); 3] = [
    ("config.json", CONFIG),
    ("tokenizer.json", TOKENIZER),
    ("model.safetensors", WEIGHTS),
];

/// Its `config.json`.
///
/// # Errors
/// None: the file is part of the program, and tests read it.
pub fn config() -> Result<Config, ConfigError> {
    Config::from_json(CONFIG, Path::new("builtin/config.json"))
}

/// Its tokenizer.
///
/// # Errors
/// As [`config`].
pub fn tokenizer() -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json_bytes(TOKENIZER)
}

/// Its weights, not yet read.
///
/// # Errors
/// As [`config`].
pub fn weights() -> Result<Weights, WeightsError> {
    Weights::embedded(Path::new("builtin/model.safetensors"), WEIGHTS)
}
