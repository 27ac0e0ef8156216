//! `config.json` of a Qwen-VL checkpoint.

use std::path::Path;

use serde_json::{Value, json};

use super::resampler::HEAD_DIM;
use crate::{
    internvl::{ConfigError, Fields},
    language::{LanguageConfig, LanguageFamily},
};

/// Everything about sizes that a checkpoint's `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Field `visual`.
    pub visual: VisualConfig,
    /// The root.
    pub language: LanguageConfig,
}

/// The vision transformer and its resampler, field `visual`.
#[derive(Debug, Clone, PartialEq)]
pub struct VisualConfig {
    /// Field `image_size`: side of the square picture that the model sees.
    pub image_size: usize,
    /// Field `patch_size`, in pixels.
    pub patch: usize,
    /// Field `width`, C.
    pub width: usize,
    /// Field `layers`.
    pub layers: usize,
    /// Field `heads`.
    pub heads: usize,
    /// Fields `width` and `mlp_ratio`.
    pub inner: usize,
    /// Field `output_dim`: the language model's width.
    pub outputs: usize,
}

impl VisualConfig {
    /// Patches along the side of the picture.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch
    }
}

impl Config {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If the file is missing, is not JSON, or a field is missing, malformed or unsupported.
    pub fn from_folder(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        Self::from_json(&bytes, &path)
    }

    /// Reads a `config.json` already in memory; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::from_folder`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self, ConfigError> {
        let root: Value = serde_json::from_slice(bytes).map_err(|source| ConfigError::Json {
            path: path.to_owned(),
            source,
        })?;
        let root = Fields::root(&root, path);
        let visual = root.object("visual");
        for (field, expected) in [
            ("no_bias", json!(true)),
            ("rotary_pct", json!(1.0)),
            ("tie_word_embeddings", json!(false)),
        ] {
            if root.value(field).is_some_and(|found| *found != expected) {
                return Err(root.wrong(field, &expected.to_string()));
            }
        }
        let heads = root.size("num_attention_heads")?;
        let width = visual.size("width")?;
        let config = Self {
            language: LanguageConfig {
                family: LanguageFamily::Qwen,
                vocabulary: root.size("vocab_size")?,
                width: root.size("hidden_size")?,
                // The field counts both halves of what goes into the product.
                inner: root.size("intermediate_size")? / 2,
                layers: root.size("num_hidden_layers")?,
                heads,
                key_value_heads: heads,
                epsilon: root.real_or("layer_norm_epsilon", 1e-6)?,
                rope_theta: root.real_or("rotary_emb_base", 10_000.0)?,
                max_positions: root.size_or("seq_length", 2048)?,
            },
            visual: VisualConfig {
                image_size: visual.size("image_size")?,
                patch: visual.size("patch_size")?,
                width,
                layers: visual.size("layers")?,
                heads: visual.size("heads")?,
                inner: (width as f64 * visual.real_or("mlp_ratio", 4.0)?) as usize,
                outputs: visual.size("output_dim")?,
            },
        };
        config.check(&root, &visual)?;
        Ok(config)
    }

    /// Sizes that must fit each other.
    fn check(&self, root: &Fields<'_>, visual: &Fields<'_>) -> Result<(), ConfigError> {
        let Self {
            visual: v,
            language,
        } = self;
        let multiple = |fields: &Fields<'_>, field: &str, size: usize, of: usize| {
            if size > 0 && size.is_multiple_of(of) {
                return Ok(());
            }
            Err(fields.wrong(field, &format!("a multiple of {of}")))
        };
        multiple(root, "hidden_size", language.width, 2 * language.heads)?;
        multiple(root, "intermediate_size", language.inner, 1)?;
        multiple(visual, "image_size", v.image_size, v.patch)?;
        multiple(visual, "width", v.width, v.heads)?;
        multiple(visual, "mlp_ratio", v.inner, 1)?;
        multiple(visual, "output_dim", v.outputs, HEAD_DIM)?;
        if v.outputs != language.width {
            let expected = format!("{}, the `hidden_size`", language.width);
            return Err(visual.wrong("output_dim", &expected));
        }
        Ok(())
    }
}
