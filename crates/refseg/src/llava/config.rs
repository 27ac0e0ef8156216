//! `config.json` of a LLaVA-NeXT checkpoint, in the original layout and in
//! that of `transformers`.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    internvl::{ConfigError, Fields},
    language::{LanguageConfig, LanguageFamily},
};

/// Everything about sizes that a checkpoint's `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Field `vision_config`, or what `mm_vision_tower` names.
    pub vision: VisionConfig,
    /// The root of the original layout, field `text_config` of the other.
    pub language: LanguageConfig,
    /// Field `image_grid_pinpoints`: width and height of the canvases that a picture may be laid on.
    pub canvases: Vec<[usize; 2]>,
    /// How the checkpoint names its tensors.
    pub layout: Layout,
    /// Whether the language model is Mistral, which is talked to differently.
    pub is_mistral: bool,
}

/// The vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Field `hidden_size`, C.
    pub width: usize,
    /// Field `intermediate_size`.
    pub inner: usize,
    /// Field `num_hidden_layers`.
    pub layers: usize,
    /// Layers up to the one whose output is taken: `layers`, counted back from the end by field
    /// `mm_vision_select_layer` or `vision_feature_layer`.
    pub used_layers: usize,
    /// Field `num_attention_heads`.
    pub heads: usize,
    /// Field `patch_size`, in pixels.
    pub patch: usize,
    /// Field `image_size`: side of a tile, in pixels.
    pub image_size: usize,
    /// Field `layer_norm_eps`.
    pub epsilon: f64,
}

/// Who wrote a checkpoint, and so what its tensors are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The authors: `model.mm_projector.0`, `model.layers.0`.
    Original,
    /// `transformers`: `multi_modal_projector.linear_1`, `language_model.model.layers.0`.
    Transformers,
}

impl Layout {
    /// Where the vision tower is.
    pub(super) fn tower_key(self) -> &'static str {
        match self {
            Self::Original => "model.vision_tower.vision_tower.vision_model",
            Self::Transformers => "vision_tower.vision_model",
        }
    }

    /// Where the two layers of the projector are.
    pub(super) fn projector_keys(self) -> [&'static str; 2] {
        match self {
            Self::Original => ["model.mm_projector.0", "model.mm_projector.2"],
            Self::Transformers => [
                "multi_modal_projector.linear_1",
                "multi_modal_projector.linear_2",
            ],
        }
    }

    /// What ends a row of patches.
    pub(super) fn newline_key(self) -> &'static str {
        match self {
            Self::Original => "model.image_newline",
            Self::Transformers => "image_newline",
        }
    }

    /// Where the language model is; the root if `None`.
    pub(super) fn language_key(self) -> Option<&'static str> {
        match self {
            Self::Original => None,
            Self::Transformers => Some("language_model"),
        }
    }
}

impl VisionConfig {
    /// Patches along the side of a tile.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch
    }
}

/// The architectures that are read.
const ARCHITECTURES: &str = "[\"LlavaLlamaForCausalLM\"], [\"LlavaMistralForCausalLM\"] or \
                             [\"LlavaNextForConditionalGeneration\"]";
/// The tower that original checkpoints without a `vision_config` name.
const CLIP_LARGE: &str = "clip-vit-large-patch14-336";
/// Tiles of a canvas: more than any published model has, few enough to fit in memory.
const MOST_TILES: usize = 64;

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
        let architecture = root.value("architectures").and_then(|names| names.get(0));
        let (layout, is_mistral) = match architecture.and_then(Value::as_str) {
            Some("LlavaLlamaForCausalLM") => (Layout::Original, false),
            Some("LlavaMistralForCausalLM") => (Layout::Original, true),
            Some("LlavaNextForConditionalGeneration") => {
                let text = root.object("text_config");
                match text.text_or("model_type", "llama")? {
                    "llama" => (Layout::Transformers, false),
                    "mistral" => (Layout::Transformers, true),
                    _ => return Err(text.wrong("model_type", "\"llama\" or \"mistral\"")),
                }
            }
            _ => return Err(root.wrong("architectures", ARCHITECTURES)),
        };
        let config = match layout {
            Layout::Original => Self::original(&root, is_mistral)?,
            Layout::Transformers => Self::transformers(&root, is_mistral)?,
        };
        config.check(&root)?;
        Ok(config)
    }

    fn original(root: &Fields<'_>, is_mistral: bool) -> Result<Self, ConfigError> {
        require(root, "mm_projector_type", json!("mlp2x_gelu"))?;
        require(root, "mm_patch_merge_type", json!("spatial_unpad"))?;
        require(root, "image_aspect_ratio", json!("anyres"))?;
        only(root, "mm_vision_select_feature", json!("patch"))?;
        only(root, "mm_use_im_start_end", json!(false))?;
        only(root, "mm_use_im_patch_token", json!(false))?;
        let layer = "mm_vision_select_layer";
        let vision = match root.value("vision_config") {
            Some(_) => vision(&root.object("vision_config"), root, layer)?,
            None => named_tower(root, layer)?,
        };
        Ok(Self {
            vision,
            language: language(root, is_mistral)?,
            canvases: canvases(root)?,
            layout: Layout::Original,
            is_mistral,
        })
    }

    fn transformers(root: &Fields<'_>, is_mistral: bool) -> Result<Self, ConfigError> {
        only(root, "projector_hidden_act", json!("gelu"))?;
        only(root, "vision_feature_select_strategy", json!("default"))?;
        let text = root.object("text_config");
        let tower = root.object("vision_config");
        let mut canvases = canvases(root)?;
        // This layout has heights first.
        canvases.iter_mut().for_each(|canvas| canvas.reverse());
        Ok(Self {
            vision: vision(&tower, root, "vision_feature_layer")?,
            language: language(&text, is_mistral)?,
            canvases,
            layout: Layout::Transformers,
            is_mistral,
        })
    }

    /// Prefixes of the tensors that a checkpoint has and no forward pass needs: what stands behind
    /// the layer of the tower whose output is taken.
    pub fn needless_keys(&self) -> Vec<String> {
        let tower = self.layout.tower_key();
        let layers = self.vision.used_layers..self.vision.layers;
        let layers = layers.map(|i| format!("{tower}.encoder.layers.{i}."));
        layers.chain([format!("{tower}.post_layernorm.")]).collect()
    }

    /// Sizes that must fit each other.
    fn check(&self, root: &Fields<'_>) -> Result<(), ConfigError> {
        let Self {
            vision, language, ..
        } = self;
        let tower = root.object("vision_config");
        if !vision.width.is_multiple_of(vision.heads) {
            let expected = format!("a multiple of the {} heads", vision.heads);
            return Err(tower.wrong("hidden_size", &expected));
        }
        if !vision.image_size.is_multiple_of(vision.patch) {
            let expected = format!("a multiple of the patch size {}", vision.patch);
            return Err(tower.wrong("image_size", &expected));
        }
        let text_config = root.object("text_config");
        let text = match self.layout {
            Layout::Original => root,
            Layout::Transformers => &text_config,
        };
        if !language.width.is_multiple_of(2 * language.heads) {
            let expected = format!("a multiple of twice the {} heads", language.heads);
            return Err(text.wrong("hidden_size", &expected));
        }
        if !language.heads.is_multiple_of(language.key_value_heads) {
            let expected = format!("a divisor of the {} heads", language.heads);
            return Err(text.wrong("num_key_value_heads", &expected));
        }
        let tile = vision.image_size;
        let fits = |&[width, height]: &[usize; 2]| {
            let is_tiled = |side: usize| side > 0 && side.is_multiple_of(tile);
            is_tiled(width) && is_tiled(height) && width / tile * (height / tile) <= MOST_TILES
        };
        if self.canvases.is_empty() || !self.canvases.iter().all(fits) {
            let expected = format!("pairs of multiples of {tile}, of {MOST_TILES} tiles at most");
            return Err(root.wrong("image_grid_pinpoints", &expected));
        }
        Ok(())
    }
}

/// The language model. `transformers` leaves out what is as in its own
/// defaults for Llama, or Mistral.
fn language(text: &Fields<'_>, is_mistral: bool) -> Result<LanguageConfig, ConfigError> {
    only(text, "hidden_act", json!("silu"))?;
    only(text, "attention_bias", json!(false))?;
    only(text, "mlp_bias", json!(false))?;
    only(text, "tie_word_embeddings", json!(false))?;
    if text.value("rope_scaling").is_some() {
        return Err(text.wrong("rope_scaling", "null"));
    }
    if text.value("sliding_window").is_some() {
        return Err(text.wrong("sliding_window", "null"));
    }
    let heads = text.size_or("num_attention_heads", 32)?;
    let width = text.size_or("hidden_size", 4096)?;
    let (inner, key_value_heads) = if is_mistral {
        (14_336, 8)
    } else {
        (11_008, heads)
    };
    if text.size_or("head_dim", width / heads)? != width / heads {
        return Err(text.wrong("head_dim", &format!("{}", width / heads)));
    }
    Ok(LanguageConfig {
        family: LanguageFamily::Llama,
        vocabulary: text.size_or("vocab_size", 32_000)?,
        width,
        inner: text.size_or("intermediate_size", inner)?,
        layers: text.size_or("num_hidden_layers", 32)?,
        heads,
        key_value_heads: text.size_or("num_key_value_heads", key_value_heads)?,
        epsilon: text.real_or("rms_norm_eps", 1e-6)?,
        rope_theta: text.real_or("rope_theta", 10_000.0)?,
        max_positions: text.size_or("max_position_embeddings", 2048)?,
    })
}

fn vision(
    tower: &Fields<'_>,
    root: &Fields<'_>,
    layer_field: &str,
) -> Result<VisionConfig, ConfigError> {
    only(tower, "hidden_act", json!("quick_gelu"))?;
    let layers = tower.size("num_hidden_layers")?;
    Ok(VisionConfig {
        width: tower.size("hidden_size")?,
        inner: tower.size("intermediate_size")?,
        layers,
        used_layers: used_layers(root, layer_field, layers)?,
        heads: tower.size("num_attention_heads")?,
        patch: tower.size("patch_size")?,
        image_size: tower.size("image_size")?,
        epsilon: tower.real_or("layer_norm_eps", 1e-5)?,
    })
}

/// The published tower, where the config has no more than its name.
fn named_tower(root: &Fields<'_>, layer_field: &str) -> Result<VisionConfig, ConfigError> {
    let name = root.text_or("mm_vision_tower", "")?;
    if !name.ends_with(CLIP_LARGE) {
        let expected = format!("the name of `{CLIP_LARGE}`, or a `vision_config` beside it");
        return Err(root.wrong("mm_vision_tower", &expected));
    }
    // From the public config of openai/clip-vit-large-patch14-336.
    Ok(VisionConfig {
        width: 1024,
        inner: 4096,
        layers: 24,
        used_layers: used_layers(root, layer_field, 24)?,
        heads: 16,
        patch: 14,
        image_size: 336,
        epsilon: 1e-5,
    })
}

/// How many of `layers` run: the list of hidden states begins with what goes
/// into the first layer, so that −1 is the last layer's output, −2 that of the one before.
fn used_layers(root: &Fields<'_>, field: &str, layers: usize) -> Result<usize, ConfigError> {
    let selected = root.value(field).map_or(Some(-2), Value::as_i64);
    let used = selected.and_then(|index| usize::try_from(layers as i64 + 1 + index).ok());
    match (selected, used) {
        (Some(..=-1), Some(used)) => Ok(used),
        _ => Err(root.wrong(field, &format!("a number from -{} to -1", layers + 1))),
    }
}

fn canvases(root: &Fields<'_>) -> Result<Vec<[usize; 2]>, ConfigError> {
    let field = "image_grid_pinpoints";
    let pair = |value: &Value| -> Option<[usize; 2]> {
        let sides = value.as_array()?.iter();
        let sides = sides.map(|side| side.as_u64().filter(|&side| side < 1 << 16));
        let sides: Vec<usize> = sides
            .map(|side| Some(side? as usize))
            .collect::<Option<_>>()?;
        sides.try_into().ok()
    };
    let pairs = root.value(field).and_then(Value::as_array);
    pairs
        .and_then(|pairs| pairs.iter().map(pair).collect())
        .ok_or_else(|| root.wrong(field, "a list of pairs of whole numbers"))
}

/// The field has this value, or is left out.
fn only(fields: &Fields<'_>, field: &str, expected: Value) -> Result<(), ConfigError> {
    match fields.value(field) {
        Some(found) if *found != expected => Err(fields.wrong(field, &expected.to_string())),
        _ => Ok(()),
    }
}

/// The field has this value.
fn require(fields: &Fields<'_>, field: &str, expected: Value) -> Result<(), ConfigError> {
    match fields.value(field) {
        None => Err(fields.wrong(field, &expected.to_string())),
        Some(_) => only(fields, field, expected),
    }
}
