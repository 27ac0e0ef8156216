//! What a checkpoint without a `config.json` is, from its tensors' names and shapes.
//!
//! Official checkpoints are single files of named tensors. All sizes can be
//! read off them, except the few that every published network of its kind
//! shares: they are constants here.

use std::path::Path;

use super::{
    SamError,
    config::{
        Config, DecoderConfig, EfficientVitConfig, EncoderConfig, NeckConfig, PIXEL_MEAN,
        PIXEL_STD, PromptConfig, StageKind, TinyVitConfig, VitConfig,
    },
};

/// A tensor that only a network with this encoder has.
pub(super) const VIT_KEY: &str = "image_encoder.pos_embed";
/// As [`VIT_KEY`], for MobileSAM.
pub(super) const TINY_VIT_KEY: &str = "image_encoder.patch_embed.seq.0.c.weight";
/// As [`VIT_KEY`], for EfficientViT-SAM.
pub(super) const EFFICIENT_VIT_KEY: &str = "image_encoder.backbone.stages.0.op_list.0.conv.weight";

/// Side of the prompts' frame: `image_size` of the reference's constructors.
const FRAME: usize = 1024;
/// Pixels of the frame that a cell of the image embedding stands for: `vit_patch_size`.
const CELL: usize = 16;

impl Config {
    /// Reads the sizes off the shapes that `shape_of` gives for keys; `path` is what errors call them.
    ///
    /// # Errors
    /// If this is no Segment Anything network, or one of its tensors is missing or misshapen.
    pub fn recognise(
        path: &Path,
        shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Self, SamError> {
        let shapes = Shapes { path, shape_of };
        let encoder = if shapes.has(VIT_KEY) {
            EncoderConfig::Vit(shapes.vit()?)
        } else if shapes.has(TINY_VIT_KEY) {
            EncoderConfig::TinyVit(shapes.tiny_vit()?)
        } else if shapes.has(EFFICIENT_VIT_KEY) {
            EncoderConfig::EfficientVit(shapes.efficient_vit()?)
        } else {
            return Err(SamError::Unknown {
                path: path.to_owned(),
            });
        };
        let config = Self {
            prompt: shapes.prompt(&encoder)?,
            decoder: shapes.decoder(&encoder)?,
            encoder,
            pixel_mean: PIXEL_MEAN,
            pixel_std: PIXEL_STD,
            mask_threshold: 0.0,
        };
        config.check(path)?;
        Ok(config)
    }
}

/// The shapes of a checkpoint.
struct Shapes<'a> {
    path: &'a Path,
    shape_of: &'a dyn Fn(&str) -> Option<Vec<usize>>,
}

impl Shapes<'_> {
    fn vit(&self) -> Result<VitConfig, SamError> {
        let key = |name: &str| format!("image_encoder.{name}");
        let [width, _, patch, _] = self.of(&key("patch_embed.proj.weight"))?;
        let [_, grid, _, _] = self.of(VIT_KEY)?;
        let table = |layer: usize| key(&format!("blocks.{layer}.attn.rel_pos_h"));
        let layers = self.count(table);
        let [_, head_dim] = self.of(&table(0))?;
        let [inner, _] = self.of(&key("blocks.0.mlp.lin1.weight"))?;
        let [outputs, ..] = self.of::<4>(&key("neck.0.weight"))?;
        // A table has a row for each distance within the window, negative ones included.
        let sides = (0..layers)
            .map(|layer| Ok(self.of::<2>(&table(layer))?[0].div_ceil(2)))
            .collect::<Result<Vec<usize>, SamError>>()?;
        let is_global = |&layer: &usize| sides[layer] == grid;
        let window = sides.iter().copied().find(|&side| side != grid);
        Ok(VitConfig {
            image_size: grid.saturating_mul(patch),
            patch,
            width,
            layers,
            heads: width / head_dim,
            inner,
            window: window.unwrap_or(grid),
            global_blocks: (0..layers).filter(is_global).collect(),
            outputs,
            epsilon: 1e-6,
            neck_epsilon: 1e-6,
        })
    }

    fn tiny_vit(&self) -> Result<TinyVitConfig, SamError> {
        let key = |name: String| format!("image_encoder.{name}");
        let merge = |layer: usize| key(format!("layers.{layer}.downsample.conv1.c.weight"));
        let [first, ..] = self.of::<4>(&key("patch_embed.seq.2.c.weight".to_owned()))?;
        let merges = self.count(merge);
        let mut widths = vec![first];
        for layer in 0..merges {
            let [width, ..] = self.of::<4>(&merge(layer))?;
            widths.push(width);
        }
        let convolution = |block: usize| key(format!("layers.0.blocks.{block}.conv1.c.weight"));
        let mut depths = vec![self.count(convolution)];
        let [mut heads, mut windows] = [Vec::new(), Vec::new()];
        for layer in 1..=merges {
            let biases = |block| {
                key(format!(
                    "layers.{layer}.blocks.{block}.attn.attention_biases"
                ))
            };
            let [number, distances] = self.of(&biases(0))?;
            depths.push(self.count(biases));
            heads.push(number);
            windows.push(distances.isqrt());
        }
        let [inner, width] = self.of(&key("layers.1.blocks.0.mlp.fc1.weight".to_owned()))?;
        let [wide, ..] = self.of::<4>(&convolution(0))?;
        let [outputs, ..] = self.of::<4>(&key("neck.0.weight".to_owned()))?;
        // Strides cannot be seen. Maps are halved until they have the embedding's size.
        let (mut side, mut merge_strides) = (FRAME / 4, Vec::new());
        for _ in 0..merges {
            let stride = if side > FRAME / CELL { 2 } else { 1 };
            side /= stride;
            merge_strides.push(stride);
        }
        Ok(TinyVitConfig {
            image_size: FRAME,
            mlp_ratio: inner / width,
            expansion: wide / first,
            widths,
            depths,
            heads,
            windows,
            merge_strides,
            outputs,
            batch_norm_epsilon: 1e-5,
            epsilon: 1e-5,
            neck_epsilon: 1e-6,
        })
    }

    fn efficient_vit(&self) -> Result<EfficientVitConfig, SamError> {
        let key = |stage: usize, block: usize, name: &str| {
            format!("image_encoder.backbone.stages.{stage}.op_list.{block}.{name}")
        };
        const RES: &str = "main.conv1.conv.weight";
        const FUSED: &str = "main.spatial_conv.conv.weight";
        const INVERTED: &str = "main.inverted_conv.conv.weight";
        const QKV: &str = "context_module.main.qkv.conv.weight";
        const POINT: &str = "main.point_conv.conv.weight";
        let blocks = |stage: usize| {
            let is_block = |block: &usize| {
                let names = [RES, FUSED, INVERTED, QKV];
                names.iter().any(|name| self.has(&key(stage, *block, name)))
            };
            (1..).take_while(is_block).count()
        };
        let [first, ..] = self.of::<4>(EFFICIENT_VIT_KEY)?;
        let (mut widths, mut kinds, mut expansions) = (vec![first], vec![StageKind::Res], vec![1]);
        let mut attention = None;
        for stage in 1.. {
            if !self.has(&key(stage, 0, POINT)) {
                break;
            }
            let [width, middle, ..] = self.of::<4>(&key(stage, 0, POINT))?;
            kinds.push(if self.has(&key(stage, 0, FUSED)) {
                StageKind::Fused
            } else if self.has(&key(stage, 1, QKV)) {
                attention.get_or_insert(stage);
                StageKind::Attention
            } else {
                StageKind::Inverted
            });
            // The first block of a stage is four times as wide inside as its others.
            expansions.push(middle / (4 * widths[stage - 1]));
            widths.push(width);
        }
        let stages = widths.len();
        let attention = attention.unwrap_or(stages - 1);
        let aggregated = |name| {
            key(
                attention,
                1,
                &format!("context_module.main.aggreg.0.{name}"),
            )
        };
        let [.., aggregation] = self.of::<4>(&aggregated("0.weight"))?;
        let [_, head_dim, ..] = self.of::<4>(&aggregated("1.weight"))?;
        Ok(EfficientVitConfig {
            // The L networks have five stages and see 512 pixels a side, the XL networks six and 1024.
            image_size: CELL << stages,
            depths: (0..stages).map(blocks).collect(),
            widths,
            kinds,
            expansions,
            head_dim,
            aggregation,
            neck: self.neck(stages)?,
            epsilon: 1e-6,
        })
    }

    /// The neck joins the last three stages, the last first.
    fn neck(&self, stages: usize) -> Result<NeckConfig, SamError> {
        let key = |name: String| format!("image_encoder.neck.{name}");
        let input = |i: usize| key(format!("input_ops.{i}.op_list.0.conv.weight"));
        let wide = |i: usize| key(format!("middle.op_list.{i}.main.spatial_conv.conv.weight"));
        let [outputs, width, ..] =
            self.of::<4>(&key("output_ops.0.op_list.0.conv.weight".to_owned()))?;
        let depth = self.count(wide);
        let expansion = match depth {
            0 => 1,
            _ => self.of::<4>(&wide(0))?[0] / width,
        };
        Ok(NeckConfig {
            stages: (0..stages).rev().take(self.count(input)).collect(),
            width,
            depth,
            expansion,
            outputs,
            grid: FRAME / CELL,
        })
    }

    fn prompt(&self, encoder: &EncoderConfig) -> Result<PromptConfig, SamError> {
        let [_, width] = self.of("prompt_encoder.no_mask_embed.weight")?;
        let [mask_channels, ..] = self.of::<4>("prompt_encoder.mask_downscaling.3.weight")?;
        Ok(PromptConfig {
            width,
            grid: encoder.grid(),
            frame: match encoder {
                EncoderConfig::Vit(vit) => vit.image_size,
                EncoderConfig::TinyVit(_) | EncoderConfig::EfficientVit(_) => FRAME,
            },
            mask_channels,
            epsilon: 1e-6,
        })
    }

    fn decoder(&self, encoder: &EncoderConfig) -> Result<DecoderConfig, SamError> {
        let key = |name: String| format!("mask_decoder.{name}");
        let layer = |i: usize| key(format!("transformer.layers.{i}.mlp.lin1.weight"));
        let iou = |i: usize| key(format!("iou_prediction_head.layers.{i}.weight"));
        let cross = "transformer.final_attn_token_to_image.q_proj.weight";
        let [masks, width] = self.of(&key("mask_tokens.weight".to_owned()))?;
        let [inner, _] = self.of(&layer(0))?;
        let [iou_inner, _] = self.of(&iou(0))?;
        let [narrow, _] = self.of(&key(cross.to_owned()))?;
        Ok(DecoderConfig {
            width,
            multimasks: masks - 1,
            layers: self.count(layer),
            heads: 8,
            inner,
            narrowing: width / narrow,
            iou_layers: self.count(iou),
            iou_inner,
            epsilon: encoder.decoder_epsilon(),
            upscaling_epsilon: 1e-6,
        })
    }

    fn has(&self, key: &str) -> bool {
        (self.shape_of)(key).is_some()
    }

    /// How many tensors there are, counted from 0 without a gap.
    fn count(&self, key: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.has(&key(i))).count()
    }

    /// The extents of a tensor, none of which is zero.
    fn of<const R: usize>(&self, key: &str) -> Result<[usize; R], SamError> {
        let Some(shape) = (self.shape_of)(key) else {
            return Err(SamError::Incomplete {
                path: self.path.to_owned(),
                key: key.to_owned(),
            });
        };
        match <[usize; R]>::try_from(&shape[..]) {
            Ok(extents) if !extents.contains(&0) => Ok(extents),
            _ => Err(SamError::Rank {
                path: self.path.to_owned(),
                key: key.to_owned(),
                found: shape,
                expected: R,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        nn::{Blueprint, Part, Tensors},
        sam::Sam,
    };

    fn parts(config: &Config) -> Vec<Part> {
        Blueprint::of(|source| Sam::load(&Tensors::root(source), config))
            .expect("any name has a tensor")
    }

    #[test]
    fn every_preset_is_recognised_by_its_tensors() {
        for name in Config::PRESETS {
            let config = Config::preset(name).expect("a listed preset exists");
            config
                .check(Path::new(name))
                .expect("its sizes fit each other");
            let shapes: BTreeMap<String, Vec<usize>> = parts(&config)
                .into_iter()
                .map(|part| (part.key, part.shape))
                .collect();
            let found = Config::recognise(Path::new(name), &|key| shapes.get(key).cloned());
            assert_eq!(found.expect("all tensors are there"), config, "{name}");
        }
    }

    /// The counts of the published networks, without the statistics of batch norms.
    #[test]
    fn presets_have_as_many_parameters_as_published() {
        let count = |parts: &[Part], prefix: &str| -> usize {
            let is_counted =
                |part: &&Part| part.key.starts_with(prefix) && !part.key.contains(".running_");
            parts.iter().filter(is_counted).map(Part::len).sum()
        };
        for (name, backbone, neck) in [
            ("efficientvit-sam-l0", 27_805_472, 2_922_752),
            ("efficientvit-sam-l1", 38_037_280, 5_548_288),
            ("efficientvit-sam-l2", 49_090_208, 8_173_824),
            ("efficientvit-sam-xl0", 96_622_752, 16_270_592),
            ("efficientvit-sam-xl1", 167_266_976, 32_014_592),
        ] {
            let parts = parts(&Config::preset(name).expect("a preset"));
            assert_eq!(count(&parts, "image_encoder.backbone."), backbone, "{name}");
            let neck_and_norm =
                count(&parts, "image_encoder.neck.") + count(&parts, "image_encoder.norm.");
            assert_eq!(neck_and_norm, neck, "{name}");
        }
        for (name, whole) in [
            ("sam-vit-b", 93_735_472),
            ("sam-vit-l", 312_342_832),
            ("sam-vit-h", 641_090_608),
        ] {
            let parts = parts(&Config::preset(name).expect("a preset"));
            assert_eq!(count(&parts, "mask_decoder."), 4_058_340, "{name}");
            // The random matrix of the positional encoding is no parameter.
            let matrix = count(&parts, "prompt_encoder.pe_layer.");
            assert_eq!(count(&parts, "prompt_encoder.") - matrix, 6_220, "{name}");
            assert_eq!(count(&parts, "") - matrix, whole, "{name}");
        }
    }
}
