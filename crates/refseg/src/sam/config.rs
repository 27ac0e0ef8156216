//! Sizes of a Segment Anything network.
//!
//! A folder may say them in a `config.json` ([`Config::from_folder`]). Official
//! checkpoints come without one; [`Config::recognise`] reads theirs off the
//! tensors' names and shapes.

use std::path::Path;

use serde_json::Value;

use crate::internvl::{ConfigError, Fields};

/// Everything about sizes, and the few constants that go with them.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Field `image_encoder`.
    pub encoder: EncoderConfig,
    /// Field `prompt_encoder`.
    pub prompt: PromptConfig,
    /// Field `mask_decoder`.
    pub decoder: DecoderConfig,
    /// Field `pixel_mean`: of each colour channel, for values in 0–255.
    pub pixel_mean: [f32; 3],
    /// Field `pixel_std`.
    pub pixel_std: [f32; 3],
    /// Field `mask_threshold`: logits above it are foreground.
    pub mask_threshold: f32,
}

/// Which image encoder, field `model_type`, and its sizes.
#[derive(Debug, Clone, PartialEq)]
pub enum EncoderConfig {
    /// `sam-vit`: ViT-B, -L and -H of Segment Anything.
    Vit(VitConfig),
    /// `mobile-sam`: TinyViT of MobileSAM.
    TinyVit(TinyVitConfig),
    /// `efficientvit-sam-l` and `efficientvit-sam-xl`.
    EfficientVit(EfficientVitConfig),
}

/// Segment Anything's ViT, field `image_encoder`.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Field `image_size`: side of the square that the encoder sees.
    pub image_size: usize,
    /// Field `patch_size`, in pixels.
    pub patch: usize,
    /// Field `embed_dim`, C.
    pub width: usize,
    /// Field `depth`.
    pub layers: usize,
    /// Field `num_heads`.
    pub heads: usize,
    /// Field `mlp_ratio`, times `embed_dim`.
    pub inner: usize,
    /// Field `window_size`, in patches.
    pub window: usize,
    /// Field `global_attn_indexes`: blocks that attend to the whole picture.
    pub global_blocks: Vec<usize>,
    /// Field `out_chans`, D.
    pub outputs: usize,
    /// Field `layer_norm_eps`.
    pub epsilon: f64,
    /// Field `neck_layer_norm_eps`.
    pub neck_epsilon: f64,
}

/// MobileSAM's TinyViT, field `image_encoder`.
#[derive(Debug, Clone, PartialEq)]
pub struct TinyVitConfig {
    /// Field `image_size`.
    pub image_size: usize,
    /// Field `embed_dims`: width of each layer.
    pub widths: Vec<usize>,
    /// Field `depths`: blocks of each layer.
    pub depths: Vec<usize>,
    /// Field `num_heads`, without that of the first layer, which has no attention.
    pub heads: Vec<usize>,
    /// Field `window_sizes`, in cells, without that of the first layer.
    pub windows: Vec<usize>,
    /// Field `mlp_ratio`.
    pub mlp_ratio: usize,
    /// Field `mbconv_expand_ratio`.
    pub expansion: usize,
    /// Field `merge_strides`: of the convolution between one layer and the next.
    pub merge_strides: Vec<usize>,
    /// Field `out_chans`, D.
    pub outputs: usize,
    /// Field `batch_norm_eps`.
    pub batch_norm_epsilon: f64,
    /// Field `layer_norm_eps`.
    pub epsilon: f64,
    /// Field `neck_layer_norm_eps`.
    pub neck_epsilon: f64,
}

/// EfficientViT-SAM's encoder, field `image_encoder`.
#[derive(Debug, Clone, PartialEq)]
pub struct EfficientVitConfig {
    /// Field `image_size`, its last number: prompts keep to the frame of [`PromptConfig::frame`].
    pub image_size: usize,
    /// Field `width_list`: width of each stage.
    pub widths: Vec<usize>,
    /// Field `depth_list`: blocks of each stage after its first.
    pub depths: Vec<usize>,
    /// Field `block_list`: kind of those blocks.
    pub kinds: Vec<StageKind>,
    /// Field `expand_list`.
    pub expansions: Vec<usize>,
    /// Field `qkv_dim`: width of an attention head.
    pub head_dim: usize,
    /// Field `lite_mla_scale`: side of the kernel that aggregates neighbouring tokens.
    pub aggregation: usize,
    /// Field `neck`.
    pub neck: NeckConfig,
    /// Field `norm_eps` of the whole model.
    pub epsilon: f64,
}

/// Kind of a stage's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageKind {
    /// `res`: two 3×3 convolutions.
    Res,
    /// `fmb`: a 3×3 convolution that widens, a 1×1 one that narrows.
    Fused,
    /// `mb`: 1×1, depthwise 3×3, 1×1, with few norms.
    Inverted,
    /// `att`, `att@3`: linear attention, then `mb`.
    Attention,
}

/// The part of EfficientViT-SAM that joins stages, field `image_encoder.neck`.
#[derive(Debug, Clone, PartialEq)]
pub struct NeckConfig {
    /// Field `fid_list`: the stages that are joined.
    pub stages: Vec<usize>,
    /// Field `head_width`.
    pub width: usize,
    /// Field `head_depth`.
    pub depth: usize,
    /// Field `expand_ratio`.
    pub expansion: usize,
    /// Field `out_dim`, D.
    pub outputs: usize,
    /// Field `upsample_size`: side of the joined map.
    pub grid: usize,
}

/// The prompt encoder, field `prompt_encoder`.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptConfig {
    /// Field `embed_dim`, D.
    pub width: usize,
    /// Field `image_embedding_size`: side of the image embedding, in cells.
    pub grid: usize,
    /// Field `input_image_size`: side of the square in which prompts have their coordinates.
    pub frame: usize,
    /// Field `mask_in_chans`.
    pub mask_channels: usize,
    /// Field `layer_norm_eps`.
    pub epsilon: f64,
}

/// The mask decoder, field `mask_decoder`.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Field `transformer_dim`, D.
    pub width: usize,
    /// Field `num_multimask_outputs`: masks of an ambiguous prompt; there is one more for others.
    pub multimasks: usize,
    /// Field `transformer_depth`.
    pub layers: usize,
    /// Field `transformer_num_heads`.
    pub heads: usize,
    /// Field `transformer_mlp_dim`.
    pub inner: usize,
    /// Field `attention_downsample_rate`: how much narrower cross-attentions are.
    pub narrowing: usize,
    /// Field `iou_head_depth`.
    pub iou_layers: usize,
    /// Field `iou_head_hidden_dim`.
    pub iou_inner: usize,
    /// Field `layer_norm_eps`.
    pub epsilon: f64,
    /// Field `upscaling_layer_norm_eps`.
    pub upscaling_epsilon: f64,
}

/// `Sam.pixel_mean` of the reference.
pub(super) const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// `Sam.pixel_std` of the reference.
pub(super) const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];
impl Config {
    /// The names that [`Config::preset`] knows.
    pub const PRESETS: [&'static str; 9] = [
        "sam-vit-b",
        "sam-vit-l",
        "sam-vit-h",
        "mobile-sam",
        "efficientvit-sam-l0",
        "efficientvit-sam-l1",
        "efficientvit-sam-l2",
        "efficientvit-sam-xl0",
        "efficientvit-sam-xl1",
    ];

    /// A published size by its name, such as `sam-vit-b`; `None` if there is none.
    pub fn preset(name: &str) -> Option<Self> {
        let encoder = match name {
            "sam-vit-b" => vit(768, 12, 12, [2, 5, 8, 11]),
            "sam-vit-l" => vit(1024, 24, 16, [5, 11, 17, 23]),
            "sam-vit-h" => vit(1280, 32, 16, [7, 15, 23, 31]),
            "mobile-sam" => tiny_vit(),
            "efficientvit-sam-l0" => efficient_vit_l([1, 1, 1, 4, 4], 4),
            "efficientvit-sam-l1" => efficient_vit_l([1, 1, 1, 6, 6], 8),
            "efficientvit-sam-l2" => efficient_vit_l([1, 2, 2, 8, 8], 12),
            "efficientvit-sam-xl0" => efficient_vit_xl([0, 1, 1, 2, 3, 3], 6),
            "efficientvit-sam-xl1" => efficient_vit_xl([1, 2, 2, 4, 6, 6], 12),
            _ => return None,
        };
        Some(Self {
            prompt: PromptConfig {
                width: 256,
                grid: 64,
                frame: 1024,
                mask_channels: 16,
                epsilon: 1e-6,
            },
            decoder: DecoderConfig {
                width: 256,
                multimasks: 3,
                layers: 2,
                heads: 8,
                inner: 2048,
                narrowing: 2,
                iou_layers: 3,
                iou_inner: 256,
                epsilon: encoder.decoder_epsilon(),
                upscaling_epsilon: 1e-6,
            },
            encoder,
            pixel_mean: PIXEL_MEAN,
            pixel_std: PIXEL_STD,
            mask_threshold: 0.0,
        })
    }

    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If the file is missing, is not JSON, or a field is missing, malformed or does not fit the others.
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
        let prompt = root.object("prompt_encoder");
        let decoder = root.object("mask_decoder");
        let config = Self {
            encoder: EncoderConfig::from_fields(&root)?,
            prompt: PromptConfig {
                width: prompt.size("embed_dim")?,
                grid: square(&prompt, "image_embedding_size")?,
                frame: square(&prompt, "input_image_size")?,
                mask_channels: prompt.size("mask_in_chans")?,
                epsilon: prompt.real_or("layer_norm_eps", 1e-6)?,
            },
            decoder: DecoderConfig {
                width: decoder.size("transformer_dim")?,
                multimasks: decoder.size("num_multimask_outputs")?,
                layers: decoder.size("transformer_depth")?,
                heads: decoder.size("transformer_num_heads")?,
                inner: decoder.size("transformer_mlp_dim")?,
                narrowing: decoder.size("attention_downsample_rate")?,
                iou_layers: decoder.size("iou_head_depth")?,
                iou_inner: decoder.size("iou_head_hidden_dim")?,
                epsilon: decoder.real_or("layer_norm_eps", 1e-5)?,
                upscaling_epsilon: decoder.real_or("upscaling_layer_norm_eps", 1e-6)?,
            },
            pixel_mean: colour(&root, "pixel_mean", PIXEL_MEAN)?,
            pixel_std: colour(&root, "pixel_std", PIXEL_STD)?,
            mask_threshold: number(&root, "mask_threshold", 0.0)?,
        };
        config.check(path)?;
        Ok(config)
    }
}

impl EncoderConfig {
    /// Side of the square that the encoder sees.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(config) => config.image_size,
            Self::TinyVit(config) => config.image_size,
            Self::EfficientVit(config) => config.image_size,
        }
    }

    /// Side of the image embedding, in cells.
    pub fn grid(&self) -> usize {
        match self {
            Self::Vit(config) => config.grid(),
            Self::TinyVit(config) => config.sides().last().copied().unwrap_or(0),
            Self::EfficientVit(config) => config.neck.grid,
        }
    }

    /// Width of the image embedding, D.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Vit(config) => config.outputs,
            Self::TinyVit(config) => config.outputs,
            Self::EfficientVit(config) => config.neck.outputs,
        }
    }

    /// What the published networks with this encoder have in the norms of their mask decoder:
    /// EfficientViT-SAM sets every epsilon to its own.
    pub(super) fn decoder_epsilon(&self) -> f64 {
        match self {
            Self::Vit(_) | Self::TinyVit(_) => 1e-5,
            Self::EfficientVit(config) => config.epsilon,
        }
    }

    fn from_fields(root: &Fields<'_>) -> Result<Self, ConfigError> {
        match root.value("model_type").and_then(Value::as_str) {
            Some("sam-vit") => VitConfig::from_fields(&root.object("image_encoder")).map(Self::Vit),
            Some("mobile-sam") => {
                TinyVitConfig::from_fields(&root.object("image_encoder")).map(Self::TinyVit)
            }
            Some("efficientvit-sam-l" | "efficientvit-sam-xl") => {
                EfficientVitConfig::from_fields(root).map(Self::EfficientVit)
            }
            _ => Err(root.wrong(
                "model_type",
                "\"sam-vit\", \"mobile-sam\", \"efficientvit-sam-l\" or \"efficientvit-sam-xl\"",
            )),
        }
    }
}

impl VitConfig {
    /// Patches along one side of the picture.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        for flag in ["qkv_bias", "use_rel_pos"] {
            if fields
                .value(flag)
                .is_some_and(|value| value != &Value::Bool(true))
            {
                return Err(fields.wrong(flag, "true"));
            }
        }
        let width = fields.size("embed_dim")?;
        Ok(Self {
            image_size: fields.size("image_size")?,
            patch: fields.size("patch_size")?,
            width,
            layers: fields.size("depth")?,
            heads: fields.size("num_heads")?,
            inner: whole(fields, "mlp_ratio")? * width,
            window: fields.size("window_size")?,
            global_blocks: fields.sizes("global_attn_indexes")?,
            outputs: fields.size("out_chans")?,
            epsilon: fields.real_or("layer_norm_eps", 1e-6)?,
            neck_epsilon: fields.real_or("neck_layer_norm_eps", 1e-6)?,
        })
    }
}

impl TinyVitConfig {
    /// Side of the map that each layer works on, and at the end that of the embedding, in cells.
    pub(super) fn sides(&self) -> Vec<usize> {
        // Two convolutions of stride 2 make patches.
        let mut sides = vec![self.image_size / 4];
        for (i, stride) in self.merge_strides.iter().enumerate() {
            sides.push(sides[i].div_ceil(*stride));
        }
        sides
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        if fields.size("local_conv_size")? != LOCAL_CONV_SIDE {
            return Err(fields.wrong("local_conv_size", "3"));
        }
        let after_first = |field| Ok(fields.sizes(field)?.into_iter().skip(1).collect());
        Ok(Self {
            image_size: fields.size("image_size")?,
            widths: fields.sizes("embed_dims")?,
            depths: fields.sizes("depths")?,
            heads: after_first("num_heads")?,
            windows: after_first("window_sizes")?,
            mlp_ratio: whole(fields, "mlp_ratio")?,
            expansion: whole(fields, "mbconv_expand_ratio")?,
            merge_strides: fields.sizes("merge_strides")?,
            outputs: fields.size("out_chans")?,
            batch_norm_epsilon: fields.real_or("batch_norm_eps", 1e-5)?,
            epsilon: fields.real_or("layer_norm_eps", 1e-5)?,
            neck_epsilon: fields.real_or("neck_layer_norm_eps", 1e-6)?,
        })
    }
}

/// Side of TinyViT's local convolution.
pub(super) const LOCAL_CONV_SIDE: usize = 3;

impl EfficientVitConfig {
    fn from_fields(root: &Fields<'_>) -> Result<Self, ConfigError> {
        let fields = root.object("image_encoder");
        let neck = fields.object("neck");
        let text = |fields: &Fields<'_>, field: &str, expected: &str| match fields
            .value(field)
            .and_then(Value::as_str)
        {
            Some(text) if text == expected => Ok(()),
            _ => Err(fields.wrong(field, expected)),
        };
        text(&fields, "activation", "gelu_tanh")?;
        text(&neck, "middle_op", "fmb")?;
        let sides = root.sizes("image_size")?;
        let kinds = texts(&fields, "block_list", StageKind::named)?;
        let few_norms = |kind: &StageKind| {
            Value::Bool(matches!(kind, StageKind::Inverted | StageKind::Attention))
        };
        if let Some(found) = fields.value("fewer_norm_list")
            && *found != Value::Array(kinds.iter().map(few_norms).collect())
        {
            return Err(fields.wrong("fewer_norm_list", "true where block_list is mb or att"));
        }
        Ok(Self {
            image_size: *sides
                .last()
                .ok_or_else(|| root.wrong("image_size", "[frame, side]"))?,
            widths: fields.sizes("width_list")?,
            depths: fields.sizes("depth_list")?,
            kinds,
            expansions: fields.sizes("expand_list")?,
            head_dim: fields.size("qkv_dim")?,
            aggregation: fields.size("lite_mla_scale")?,
            neck: NeckConfig {
                stages: texts(&neck, "fid_list", |name| {
                    name.strip_prefix("stage")?.parse().ok()
                })?,
                width: neck.size("head_width")?,
                depth: neck.size("head_depth")?,
                expansion: neck.size("expand_ratio")?,
                outputs: neck.size("out_dim")?,
                grid: square(&neck, "upsample_size")?,
            },
            epsilon: root.real_or("norm_eps", 1e-6)?,
        })
    }
}

impl StageKind {
    fn named(name: &str) -> Option<Self> {
        match name {
            "res" => Some(Self::Res),
            "fmb" => Some(Self::Fused),
            "mb" => Some(Self::Inverted),
            "att" | "att@3" => Some(Self::Attention),
            _ => None,
        }
    }
}

fn vit(width: usize, layers: usize, heads: usize, global_blocks: [usize; 4]) -> EncoderConfig {
    EncoderConfig::Vit(VitConfig {
        image_size: 1024,
        patch: 16,
        width,
        layers,
        heads,
        inner: 4 * width,
        window: 14,
        global_blocks: global_blocks.to_vec(),
        outputs: 256,
        epsilon: 1e-6,
        neck_epsilon: 1e-6,
    })
}

fn tiny_vit() -> EncoderConfig {
    EncoderConfig::TinyVit(TinyVitConfig {
        image_size: 1024,
        widths: vec![64, 128, 160, 320],
        depths: vec![2, 2, 6, 2],
        heads: vec![4, 5, 10],
        windows: vec![7, 14, 7],
        mlp_ratio: 4,
        expansion: 4,
        merge_strides: vec![2, 2, 1],
        outputs: 256,
        batch_norm_epsilon: 1e-5,
        epsilon: 1e-5,
        neck_epsilon: 1e-6,
    })
}

fn efficient_vit_l(depths: [usize; 5], neck_depth: usize) -> EncoderConfig {
    use StageKind::{Attention, Fused, Inverted, Res};
    EncoderConfig::EfficientVit(EfficientVitConfig {
        image_size: 512,
        widths: vec![32, 64, 128, 256, 512],
        depths: depths.to_vec(),
        kinds: vec![Res, Fused, Fused, Inverted, Attention],
        expansions: vec![1, 4, 4, 4, 6],
        head_dim: 32,
        aggregation: 5,
        neck: NeckConfig {
            stages: vec![4, 3, 2],
            width: 256,
            depth: neck_depth,
            expansion: 1,
            outputs: 256,
            grid: 64,
        },
        epsilon: 1e-6,
    })
}

fn efficient_vit_xl(depths: [usize; 6], neck_depth: usize) -> EncoderConfig {
    use StageKind::{Attention, Fused, Res};
    EncoderConfig::EfficientVit(EfficientVitConfig {
        image_size: 1024,
        widths: vec![32, 64, 128, 256, 512, 1024],
        depths: depths.to_vec(),
        kinds: vec![Res, Fused, Fused, Fused, Attention, Attention],
        expansions: vec![1, 4, 4, 4, 4, 6],
        head_dim: 32,
        aggregation: 3,
        neck: NeckConfig {
            stages: vec![5, 4, 3],
            width: 256,
            depth: neck_depth,
            expansion: 4,
            outputs: 256,
            grid: 64,
        },
        epsilon: 1e-6,
    })
}

/// The side of a size `[side, side]`.
fn square(fields: &Fields<'_>, field: &str) -> Result<usize, ConfigError> {
    match fields.sizes(field)?[..] {
        [height, width] if height == width && height > 0 => Ok(height),
        _ => Err(fields.wrong(field, "two equal positive numbers")),
    }
}

/// A whole number that may be written with a decimal point, small enough to multiply sizes.
fn whole(fields: &Fields<'_>, field: &str) -> Result<usize, ConfigError> {
    let number = fields.value(field).and_then(Value::as_f64);
    match number.filter(|n| n.fract() == 0.0 && (1.0..=1024.0).contains(n)) {
        Some(number) => Ok(number as usize),
        None => Err(fields.wrong(field, "a positive whole number")),
    }
}

fn colour(fields: &Fields<'_>, field: &str, default: [f32; 3]) -> Result<[f32; 3], ConfigError> {
    let Some(value) = fields.value(field) else {
        return Ok(default);
    };
    let level = |i: usize| value.get(i)?.as_f64().filter(|level| *level > 0.0);
    match [level(0), level(1), level(2)] {
        [Some(red), Some(green), Some(blue)] if value.get(3).is_none() => {
            Ok([red as f32, green as f32, blue as f32])
        }
        _ => Err(fields.wrong(field, "three positive numbers")),
    }
}

fn number(fields: &Fields<'_>, field: &str, default: f32) -> Result<f32, ConfigError> {
    match fields.value(field) {
        None => Ok(default),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(number as f32),
            None => Err(fields.wrong(field, "a number")),
        },
    }
}

/// A list of names, each with a meaning.
fn texts<T>(
    fields: &Fields<'_>,
    field: &str,
    meaning: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, ConfigError> {
    let names = fields.value(field).and_then(Value::as_array);
    names
        .and_then(|names| names.iter().map(|name| meaning(name.as_str()?)).collect())
        .ok_or_else(|| fields.wrong(field, "a list of known names"))
}
