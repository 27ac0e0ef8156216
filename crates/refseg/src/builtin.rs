//! The models that are part of the program: MLLMSeg's, and a pair for SAM4MLLM.
//!
//! They were trained by `refseg train` on drawn scenes: they know flat shapes,
//! their colours, sizes and places, and no photographs.

use std::path::Path;

use crate::{
    chat::{Backbone, ChatError, ChatModel},
    internvl::{Config, ConfigError},
    nn::StoredTensors,
    predictor::Options,
    sam::{self, SamError, SamPredictor},
    sam4mllm::{PAIR_FILE, PairError, Settings},
    tokenizer::{Tokenizer, TokenizerError},
    weights::{Weights, WeightsError},
};

/// The name of MLLMSeg's, wherever a model can be named.
pub const NAME: &str = "builtin";

/// The pair's name, wherever a model can be asked.
pub const PAIR_NAME: &str = "builtin-sam4mllm";

/// Whether the built-in model of this name is meant, rather than a folder that is called so.
pub fn is(name: &str, model: &Path) -> bool {
    model == Path::new(name) && !model.is_dir()
}

const CONFIG: &[u8] = include_bytes!("../builtin/config.json");
const TOKENIZER: &[u8] = include_bytes!("../builtin/tokenizer.json");
const WEIGHTS: &[u8] = include_bytes!("../builtin/model.safetensors");

/// The files of MLLMSeg's, by name.
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

const PAIR: &[u8] = include_bytes!("../builtin-sam4mllm/sam4mllm.json");
const MLLM_CONFIG: &[u8] = include_bytes!("../builtin-sam4mllm/mllm/config.json");
const MLLM_TOKENIZER: &[u8] = include_bytes!("../builtin-sam4mllm/mllm/tokenizer.json");
const MLLM_WEIGHTS: &[u8] = include_bytes!("../builtin-sam4mllm/mllm/model.safetensors");
const SAM_CONFIG: &[u8] = include_bytes!("../builtin-sam4mllm/sam/config.json");
const SAM_WEIGHTS: &[u8] = include_bytes!("../builtin-sam4mllm/sam/model.safetensors");

/// The pair's files, by their paths in its folder.
pub const PAIR_FILES: [(&str, &[u8]); 6] = [
    (PAIR_FILE, PAIR),
    ("mllm/config.json", MLLM_CONFIG),
    ("mllm/tokenizer.json", MLLM_TOKENIZER),
    ("mllm/model.safetensors", MLLM_WEIGHTS),
    ("sam/config.json", SAM_CONFIG),
    ("sam/model.safetensors", SAM_WEIGHTS),
];

/// The pair's language model.
///
/// # Errors
/// As [`config`].
pub fn mllm(options: &Options) -> Result<ChatModel, ChatError> {
    let tokenizer = Tokenizer::from_json_bytes(MLLM_TOKENIZER)?;
    let backbone = Backbone::embedded("builtin-sam4mllm/mllm", MLLM_CONFIG, tokenizer)?;
    let path = Path::new("builtin-sam4mllm/mllm/model.safetensors");
    let weights = Weights::embedded(path, MLLM_WEIGHTS)?;
    ChatModel::of_weights(&backbone, &weights, options)
}

/// The pair's Segment Anything model.
///
/// # Errors
/// As [`config`].
pub fn sam(options: &Options) -> Result<SamPredictor, SamError> {
    let name = "builtin-sam4mllm/sam";
    let config = sam::Config::from_json(SAM_CONFIG, &Path::new(name).join("config.json"))?;
    let path = Path::new(name).join("model.safetensors");
    let weights = Weights::embedded(&path, SAM_WEIGHTS)?;
    let source = StoredTensors::new(&weights, options.device());
    SamPredictor::of_stored(name.to_owned(), config, source, options)
}

/// How the pair's models are asked.
///
/// # Errors
/// As [`config`].
pub fn pair_settings() -> Result<Settings, PairError> {
    Settings::from_json(PAIR, &Path::new(PAIR_NAME).join(PAIR_FILE))
}
