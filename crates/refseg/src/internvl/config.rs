//! `config.json` of an InternVL or MLLMSeg checkpoint.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::language::{LanguageConfig, LanguageFamily};

/// Everything about sizes that a checkpoint's `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Field `vision_config`.
    pub vision: VisionConfig,
    /// Field `llm_config`.
    pub language: LanguageConfig,
    /// Field `force_image_size`: side of the square picture that the model sees.
    pub image_size: usize,
    /// Field `downsample_ratio`, inverted: patches joined along each axis into one image token.
    pub unshuffle: usize,
    /// Field `ps_version`.
    pub unshuffle_version: UnshuffleVersion,
    /// Field `template`: the name of the prompt layout.
    pub template: String,
    /// Field `use_llm_lora`: rank of unmerged adapters, 0 when merged.
    pub lora_rank: usize,
}

/// The vision tower, field `vision_config`.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Field `hidden_size`, C.
    pub width: usize,
    /// Field `intermediate_size`.
    pub inner: usize,
    /// Field `num_hidden_layers`.
    pub layers: usize,
    /// Field `num_attention_heads`.
    pub heads: usize,
    /// Field `patch_size`, in pixels.
    pub patch: usize,
    /// Field `image_size`: the side that the position table was made for.
    pub image_size: usize,
    /// Field `layer_norm_eps`.
    pub epsilon: f64,
    /// Field `qkv_bias`.
    pub qkv_bias: bool,
}

/// Order of the image tokens after pixel unshuffle, field `ps_version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnshuffleVersion {
    /// Old models: the token grid comes out transposed.
    V1,
    /// Every MLLMSeg model.
    V2,
}

/// What is wrong with a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("`{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error("`{path}` is not JSON")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A field is missing or of another type.
    #[error("`{path}`: field `{field}` is {found}, expected {expected}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, with the objects that hold it.
        field: String,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
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
        let vision = root.object("vision_config");
        let language = root.object("llm_config");

        let heads = language.size("num_attention_heads")?;
        let vision_image_size = vision.size("image_size")?;
        let config = Self {
            image_size: root.size_or("force_image_size", vision_image_size)?,
            unshuffle: root.inverse("downsample_ratio", 0.5)?,
            unshuffle_version: match root.text_or("ps_version", "v1")? {
                "v1" => UnshuffleVersion::V1,
                "v2" => UnshuffleVersion::V2,
                _ => return Err(root.wrong("ps_version", "\"v1\" or \"v2\"")),
            },
            template: root.text_or("template", "internvl2_5")?.to_owned(),
            lora_rank: root.count_or("use_llm_lora", 0)?,
            vision: VisionConfig {
                width: vision.size("hidden_size")?,
                inner: vision.size("intermediate_size")?,
                layers: vision.size("num_hidden_layers")?,
                heads: vision.size("num_attention_heads")?,
                patch: vision.size("patch_size")?,
                image_size: vision_image_size,
                epsilon: vision.real_or("layer_norm_eps", 1e-6)?,
                qkv_bias: vision.flag_or("qkv_bias", true)?,
            },
            language: LanguageConfig {
                family: language.family()?,
                vocabulary: language.size("vocab_size")?,
                width: language.size("hidden_size")?,
                inner: language.size("intermediate_size")?,
                layers: language.size("num_hidden_layers")?,
                heads,
                key_value_heads: language.size_or("num_key_value_heads", heads)?,
                epsilon: language.real_or("rms_norm_eps", 1e-6)?,
                rope_theta: language.real_or("rope_theta", 10_000.0)?,
                max_positions: language.size_or("max_position_embeddings", 32_768)?,
            },
        };
        root.check_supported(&vision, &language)?;
        config.check(&root)?;
        Ok(config)
    }

    /// Patches along one side of the picture.
    pub fn grid(&self) -> usize {
        self.image_size / self.vision.patch
    }

    /// Image tokens along one side of the picture.
    pub fn token_grid(&self) -> usize {
        self.grid() / self.unshuffle
    }

    /// Image tokens of a picture: one tile, never more (the reference does not tile).
    pub fn image_tokens(&self) -> usize {
        self.token_grid() * self.token_grid()
    }

    /// This configuration as `config.json`, in the official layout.
    pub fn to_json(&self) -> Value {
        let Self {
            vision, language, ..
        } = self;
        json!({
            "architectures": ["MLLMSeg"],
            "model_type": "internvl_chat",
            "force_image_size": self.image_size,
            "downsample_ratio": 1.0 / self.unshuffle as f64,
            "ps_version": match self.unshuffle_version { UnshuffleVersion::V1 => "v1", UnshuffleVersion::V2 => "v2" },
            "template": self.template,
            "select_layer": -1,
            "use_llm_lora": self.lora_rank,
            "tie_word_embeddings": false,
            "vision_config": {
                "architectures": ["InternVisionModel"],
                "hidden_size": vision.width,
                "intermediate_size": vision.inner,
                "num_hidden_layers": vision.layers,
                "num_attention_heads": vision.heads,
                "patch_size": vision.patch,
                "image_size": vision.image_size,
                "layer_norm_eps": vision.epsilon,
                "qkv_bias": vision.qkv_bias,
                "qk_normalization": false,
                "norm_type": "layer_norm",
                "hidden_act": "gelu",
            },
            "llm_config": {
                "architectures": [match language.family {
                    LanguageFamily::Qwen2 => "Qwen2ForCausalLM",
                    LanguageFamily::InternLm2 => "InternLM2ForCausalLM",
                    LanguageFamily::Llama => "LlamaForCausalLM",
                    LanguageFamily::Qwen => "QWenLMHeadModel",
                }],
                "vocab_size": language.vocabulary,
                "hidden_size": language.width,
                "intermediate_size": language.inner,
                "num_hidden_layers": language.layers,
                "num_attention_heads": language.heads,
                "num_key_value_heads": language.key_value_heads,
                "rms_norm_eps": language.epsilon,
                "rope_theta": language.rope_theta,
                "max_position_embeddings": language.max_positions,
                "hidden_act": "silu",
            },
        })
    }

    /// A published base size by its name, such as `internvl2_5-1b`; `None` if there is none.
    pub fn preset(name: &str) -> Option<Self> {
        // The base vocabulary and the two markers, and the norms' epsilon.
        let qwen2 = (LanguageFamily::Qwen2, 151_676, 1e-6);
        let internlm2 = (LanguageFamily::InternLm2, 92_555, 1e-5);
        // Columns: D, layers, heads, key-value heads, MLP inner; from the public model configs.
        let ((family, vocabulary, epsilon), [width, layers, heads, key_value_heads, inner]) =
            match name {
                "internvl2_5-1b" => (qwen2, [896, 24, 14, 2, 4864]),
                "internvl2_5-2b" => (internlm2, [2048, 24, 16, 8, 8192]),
                "internvl2_5-4b" => (qwen2, [2048, 36, 16, 2, 11008]),
                "internvl2_5-8b" | "internvl2-8b" => (internlm2, [4096, 32, 32, 8, 14336]),
                _ => return None,
            };
        Some(Self {
            image_size: 448,
            unshuffle: 2,
            unshuffle_version: UnshuffleVersion::V2,
            template: "internvl2_5".to_owned(),
            lora_rank: 0,
            vision: VisionConfig {
                width: 1024,
                inner: 4096,
                layers: 24,
                heads: 16,
                patch: 14,
                image_size: 448,
                epsilon: 1e-6,
                qkv_bias: true,
            },
            language: LanguageConfig {
                family,
                vocabulary,
                width,
                inner,
                layers,
                heads,
                key_value_heads,
                epsilon,
                rope_theta: 1e6,
                max_positions: 32_768,
            },
        })
    }

    /// The names that [`Config::preset`] knows.
    pub const PRESETS: [&'static str; 5] = [
        "internvl2_5-1b",
        "internvl2_5-2b",
        "internvl2_5-4b",
        "internvl2_5-8b",
        "internvl2-8b",
    ];

    /// Sizes that must fit each other.
    fn check(&self, root: &Fields<'_>) -> Result<(), ConfigError> {
        let wrong = |field: &str, found: String, expected: String| {
            Err(ConfigError::Field {
                path: root.path.to_owned(),
                field: field.to_owned(),
                found,
                expected,
            })
        };
        let Self {
            vision, language, ..
        } = self;
        if !self
            .image_size
            .is_multiple_of(vision.patch * self.unshuffle)
        {
            let cell = vision.patch * self.unshuffle;
            return wrong(
                "force_image_size",
                self.image_size.to_string(),
                format!("a multiple of {cell}"),
            );
        }
        if self.image_size != vision.image_size {
            return wrong(
                "force_image_size",
                self.image_size.to_string(),
                format!("{}, the size of the position table", vision.image_size),
            );
        }
        if !vision.width.is_multiple_of(vision.heads) {
            let expected = format!("a multiple of the {} heads", vision.heads);
            return wrong(
                "vision_config.hidden_size",
                vision.width.to_string(),
                expected,
            );
        }
        if !language.width.is_multiple_of(2 * language.heads) {
            let expected = format!("a multiple of twice the {} heads", language.heads);
            return wrong(
                "llm_config.hidden_size",
                language.width.to_string(),
                expected,
            );
        }
        if !language.heads.is_multiple_of(language.key_value_heads) {
            let expected = format!("a divisor of the {} heads", language.heads);
            return wrong(
                "llm_config.num_key_value_heads",
                language.key_value_heads.to_string(),
                expected,
            );
        }
        Ok(())
    }
}

/// A JSON object and what to call it in errors.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// Dotted names of the enclosing objects, with a dot at the end.
    name: String,
    object: Option<&'a Map<String, Value>>,
}

/// No network of this size exists; a larger number is a damaged or hostile file.
const LARGEST_SIZE: u64 = 1 << 24;

impl<'a> Fields<'a> {
    /// The fields of a whole file.
    pub(crate) fn root(root: &'a Value, path: &'a Path) -> Self {
        Self {
            path,
            name: String::new(),
            object: root.as_object(),
        }
    }

    pub(crate) fn object(&self, field: &str) -> Fields<'a> {
        Fields {
            path: self.path,
            name: format!("{}{field}.", self.name),
            object: self.value(field).and_then(Value::as_object),
        }
    }

    pub(crate) fn value(&self, field: &str) -> Option<&'a Value> {
        self.object
            .and_then(|object| object.get(field))
            .filter(|value| !value.is_null())
    }

    pub(crate) fn wrong(&self, field: &str, expected: &str) -> ConfigError {
        ConfigError::Field {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.name),
            found: self
                .value(field)
                .map_or_else(|| "missing".to_owned(), Value::to_string),
            expected: expected.to_owned(),
        }
    }

    pub(crate) fn size(&self, field: &str) -> Result<usize, ConfigError> {
        let size = self
            .value(field)
            .and_then(Value::as_u64)
            .filter(|n| (1..=LARGEST_SIZE).contains(n));
        size.map(|n| n as usize)
            .ok_or_else(|| self.wrong(field, "a positive whole number"))
    }

    /// A list of whole numbers, zero included.
    pub(crate) fn sizes(&self, field: &str) -> Result<Vec<usize>, ConfigError> {
        let size = |value: &Value| value.as_u64().filter(|&n| n <= LARGEST_SIZE);
        let sizes = self.value(field).and_then(Value::as_array);
        sizes
            .and_then(|sizes| sizes.iter().map(|v| Some(size(v)? as usize)).collect())
            .ok_or_else(|| self.wrong(field, "a list of whole numbers"))
    }

    pub(crate) fn size_or(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
        if self.value(field).is_none() {
            Ok(default)
        } else {
            self.size(field)
        }
    }

    fn count_or(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
        match self.value(field) {
            None => Ok(default),
            Some(value) if value.as_u64() == Some(0) => Ok(0),
            Some(_) => self.size(field),
        }
    }

    pub(crate) fn real_or(&self, field: &str, default: f64) -> Result<f64, ConfigError> {
        match self.value(field) {
            None => Ok(default),
            Some(value) => {
                let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
                number.ok_or_else(|| self.wrong(field, "a positive number"))
            }
        }
    }

    fn inverse(&self, field: &str, default: f64) -> Result<usize, ConfigError> {
        let inverse = 1.0 / self.real_or(field, default)?;
        if inverse.fract() == 0.0 && (1.0..=64.0).contains(&inverse) {
            Ok(inverse as usize)
        } else {
            Err(self.wrong(field, "1 over a whole number"))
        }
    }

    pub(crate) fn flag_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.value(field) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(field, "true or false")),
        }
    }

    pub(crate) fn text_or(&self, field: &str, default: &'a str) -> Result<&'a str, ConfigError> {
        match self.value(field) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.wrong(field, "a string")),
        }
    }

    fn family(&self) -> Result<LanguageFamily, ConfigError> {
        let name = self
            .value("architectures")
            .and_then(|names| names.get(0))
            .and_then(Value::as_str);
        match name {
            Some("Qwen2ForCausalLM") => Ok(LanguageFamily::Qwen2),
            Some("InternLM2ForCausalLM") => Ok(LanguageFamily::InternLm2),
            _ => Err(self.wrong(
                "architectures",
                "[\"Qwen2ForCausalLM\"] or [\"InternLM2ForCausalLM\"]",
            )),
        }
    }

    /// Refuses variants of the architecture that no MLLMSeg model has, rather than compute something else.
    fn check_supported(&self, vision: &Self, language: &Self) -> Result<(), ConfigError> {
        let is =
            |value: Option<&Value>, allowed: Value| value.is_none_or(|value| *value == allowed);
        if !is(self.value("select_layer"), json!(-1)) {
            return Err(self.wrong("select_layer", "-1"));
        }
        if !is(vision.value("norm_type"), json!("layer_norm")) {
            return Err(vision.wrong("norm_type", "\"layer_norm\""));
        }
        if !is(vision.value("qk_normalization"), json!(false)) {
            return Err(vision.wrong("qk_normalization", "false"));
        }
        if !is(vision.value("hidden_act"), json!("gelu")) {
            return Err(vision.wrong("hidden_act", "\"gelu\""));
        }
        if !is(language.value("hidden_act"), json!("silu")) {
            return Err(language.wrong("hidden_act", "\"silu\""));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_survive_config_json() {
        for name in Config::PRESETS {
            let config = Config::preset(name).expect("a listed preset exists");
            let bytes = serde_json::to_vec(&config.to_json()).expect("a JSON value serialises");
            let read = Config::from_json(&bytes, Path::new("config.json"))
                .expect("our own config is valid");
            assert_eq!(read, config, "{name}");
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_what_it_holds() {
        let mut json = Config::preset("internvl2_5-1b").expect("preset").to_json();
        json["llm_config"]["num_key_value_heads"] = json!(5);
        let error =
            Config::from_json(json.to_string().as_bytes(), Path::new("m/config.json")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`m/config.json`: field `llm_config.num_key_value_heads` is 5, expected a divisor of the 14 heads"
        );
        json["llm_config"] = Value::Null;
        let error =
            Config::from_json(json.to_string().as_bytes(), Path::new("m/config.json")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`llm_config.num_attention_heads` is missing"),
            "{error}"
        );
    }
}
