//! Whether the sizes of a network fit each other.

use std::{fmt::Display, path::Path};

use super::config::{
    Config, EfficientVitConfig, EncoderConfig, StageKind, TinyVitConfig, VitConfig,
};
use crate::internvl::ConfigError;

/// Side of a picture in pixels; published networks have 1024.
const LARGEST_SIDE: usize = 4096;
/// Side of an image embedding in cells; published networks have 64.
const LARGEST_GRID: usize = 128;
/// Side of a window in cells; published networks have 14. Attention grows with its fourth power.
const LARGEST_WINDOW: usize = 64;

impl Config {
    /// Checks that sizes fit each other; `path` is what errors call their source.
    pub(super) fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let Self {
            encoder,
            prompt,
            decoder,
            ..
        } = self;
        let check = Check { path };
        for (field, side) in [
            ("image_encoder.image_size", encoder.image_size()),
            ("prompt_encoder.input_image_size", prompt.frame),
        ] {
            check.within(field, side, LARGEST_SIDE)?;
        }
        match encoder {
            EncoderConfig::Vit(config) => check.vit(config)?,
            EncoderConfig::TinyVit(config) => check.tiny_vit(config)?,
            EncoderConfig::EfficientVit(config) => check.efficient_vit(config)?,
        }
        let grid = encoder.grid();
        check.within("prompt_encoder.image_embedding_size", grid, LARGEST_GRID)?;
        for (field, found, given, what) in [
            (
                "prompt_encoder.image_embedding_size",
                prompt.grid,
                grid,
                "side",
            ),
            (
                "prompt_encoder.embed_dim",
                prompt.width,
                encoder.outputs(),
                "width",
            ),
            (
                "mask_decoder.transformer_dim",
                decoder.width,
                encoder.outputs(),
                "width",
            ),
        ] {
            let expected = format!("{given}, the {what} of what the image encoder gives");
            check.that(found == given, field, found, expected)?;
        }
        let channels = prompt.mask_channels;
        check.multiple("prompt_encoder.mask_in_chans", channels, 4, "each halving")?;
        let masks = decoder.multimasks;
        check.positive("mask_decoder.num_multimask_outputs", &[masks])?;
        // Masks are drawn in an eighth of the width, and attention cuts a share of it into heads.
        let field = "mask_decoder.transformer_dim";
        check.multiple(field, decoder.width, 8, "upscaling")?;
        let cut = decoder.narrowing.saturating_mul(decoder.heads);
        let what = "attention_downsample_rate · transformer_num_heads";
        check.multiple(field, decoder.width, cut, what)
    }
}

/// Checks that name where sizes come from.
struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn vit(&self, config: &VitConfig) -> Result<(), ConfigError> {
        let (side, width) = (config.image_size, config.width);
        self.multiple("image_encoder.image_size", side, config.patch, "patch_size")?;
        self.within("image_encoder.window_size", config.window, LARGEST_WINDOW)?;
        self.multiple("image_encoder.embed_dim", width, config.heads, "num_heads")
    }

    fn tiny_vit(&self, config: &TinyVitConfig) -> Result<(), ConfigError> {
        let layers = config.widths.len();
        // Neither heads nor windows of the first layer are kept, and the last layer has no stride.
        for (field, found) in [
            ("image_encoder.depths", config.depths.len()),
            ("image_encoder.num_heads", config.heads.len() + 1),
            ("image_encoder.window_sizes", config.windows.len() + 1),
            (
                "image_encoder.merge_strides",
                config.merge_strides.len() + 1,
            ),
        ] {
            let expected = "one for each of embed_dims (strides one fewer)";
            self.that(found == layers, field, format!("{found} long"), expected)?;
        }
        let field = "image_encoder.embed_dims";
        self.positive(field, &config.widths)?;
        for &window in &config.windows {
            self.within("image_encoder.window_sizes", window, LARGEST_WINDOW)?;
        }
        self.positive("image_encoder.merge_strides", &config.merge_strides)?;
        for (&width, &heads) in config.widths[1..].iter().zip(&config.heads) {
            self.multiple(field, width, heads, "num_heads")?;
        }
        let side = config.image_size;
        self.multiple("image_encoder.image_size", side, 4, "the side of a patch")
    }

    fn efficient_vit(&self, config: &EfficientVitConfig) -> Result<(), ConfigError> {
        let stages = config.widths.len();
        for (field, found) in [
            ("image_encoder.depth_list", config.depths.len()),
            ("image_encoder.block_list", config.kinds.len()),
            ("image_encoder.expand_list", config.expansions.len()),
        ] {
            let expected = "one for each of width_list";
            self.that(found == stages, field, format!("{found} long"), expected)?;
        }
        self.positive("image_encoder.width_list", &config.widths)?;
        self.positive("image_encoder.expand_list", &config.expansions)?;
        let res = config
            .kinds
            .iter()
            .skip(1)
            .find(|&&kind| kind == StageKind::Res);
        let expected = "\"res\" in the first place only";
        self.that(
            res.is_none(),
            "image_encoder.block_list",
            "another",
            expected,
        )?;
        for (&width, &kind) in config.widths.iter().zip(&config.kinds) {
            if kind == StageKind::Attention {
                let field = "image_encoder.width_list";
                self.multiple(field, width, config.head_dim, "qkv_dim")?;
            }
        }
        let side = config.aggregation;
        self.that(side % 2 == 1, "image_encoder.lite_mla_scale", side, "odd")?;
        let halvings = 1usize.checked_shl(stages as u32).unwrap_or(0);
        let side = config.image_size;
        self.multiple(
            "image_encoder.image_size",
            side,
            halvings,
            "each stage's halving",
        )?;
        let joined = &config.neck.stages;
        let fits = !joined.is_empty() && joined.iter().all(|&stage| stage < stages);
        let found = format!("{joined:?}");
        let expected = format!("at least one of the {stages} stages");
        self.that(fits, "image_encoder.neck.fid_list", found, expected)
    }

    fn within(&self, field: &str, found: usize, most: usize) -> Result<(), ConfigError> {
        let fits = (1..=most).contains(&found);
        self.that(fits, field, found, format!("1 to {most}"))
    }

    fn multiple(
        &self,
        field: &str,
        found: usize,
        divisor: usize,
        what: &str,
    ) -> Result<(), ConfigError> {
        let fits = found > 0 && divisor > 0 && found.is_multiple_of(divisor);
        self.that(
            fits,
            field,
            found,
            format!("a multiple of {divisor}, for {what}"),
        )
    }

    fn positive(&self, field: &str, sizes: &[usize]) -> Result<(), ConfigError> {
        let fits = !sizes.contains(&0);
        self.that(fits, field, format!("{sizes:?}"), "positive sizes")
    }

    fn that(
        &self,
        fits: bool,
        field: &str,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Result<(), ConfigError> {
        if fits {
            return Ok(());
        }
        Err(ConfigError::Field {
            path: self.path.to_owned(),
            field: field.to_owned(),
            found: found.to_string(),
            expected: expected.into(),
        })
    }
}
