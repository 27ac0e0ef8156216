//! A small Segment Anything model to begin with: random values.

use std::{collections::BTreeMap, path::Path};

use refseg::{
    internvl::ConfigError,
    nn::{Blueprint, Tensors},
    random::initial_values,
    sam::{Config, Sam},
    weights::{SaveDtype, TensorSpec, save_safetensors},
};
use serde_json::{Value, json};

use crate::{TrainError, checkpoint};

/// What `refseg init` calls it.
pub const NAME: &str = "small-sam";

/// Its sizes.
///
/// # Errors
/// None: the program's own sizes fit each other, and tests read them.
pub fn config() -> Result<Config, ConfigError> {
    Config::from_json(&checkpoint::json(&config_json()), Path::new(NAME))
}

/// Segment Anything's own encoder on 168 pixels in patches of 8, so that masks have half of the
/// picture's resolution.
fn config_json() -> Value {
    json!({
        "model_type": "sam-vit",
        "image_encoder": {
            "image_size": 168, "patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 4,
            "mlp_ratio": 4, "window_size": 7, "global_attn_indexes": [1], "out_chans": 64,
        },
        "prompt_encoder": {
            "embed_dim": 64, "image_embedding_size": [21, 21], "input_image_size": [168, 168],
            "mask_in_chans": 16,
        },
        "mask_decoder": {
            "transformer_dim": 64, "num_multimask_outputs": 3, "transformer_depth": 2,
            "transformer_num_heads": 4, "transformer_mlp_dim": 256,
            "attention_downsample_rate": 2, "iou_head_depth": 3, "iou_head_hidden_dim": 64,
        },
    })
}

/// Writes the model into a folder that exists; `seed` decides about its values.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, seed: u64) -> Result<(), TrainError> {
    let config = config()?;
    let parts = Blueprint::of(|source| Sam::load(&Tensors::root(source), &config))?;
    let specs = parts.into_iter().map(|part| TensorSpec {
        name: part.key,
        shape: part.shape,
    });
    let specs: Vec<TensorSpec> = specs.collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    save_safetensors(&path, &specs, SaveDtype::F16, &metadata, |spec| {
        Ok(initial_values(&spec.name, &spec.shape, seed))
    })?;
    let path = folder.join("config.json");
    checkpoint::write(&path, &checkpoint::json(&config_json()))
}
