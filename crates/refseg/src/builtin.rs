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

pub(crate) fn config() -> Result<Config, ConfigError> {
    Config::from_json(CONFIG, Path::new("builtin/config.json"))
}

pub(crate) fn tokenizer() -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json_bytes(TOKENIZER)
}

pub(crate) fn weights() -> Result<Weights, WeightsError> {
    Weights::embedded(Path::new("builtin/model.safetensors"), WEIGHTS)
}
