//! The whole network: vision tower, projector, row ends, language model.
//!
//! Reference: `LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal`.

use burn::tensor::Tensor;

use super::{Config, Geometry, Projector, VisionModel};
use crate::{
    image::{CLIP_MEAN, CLIP_STD, Image},
    language::LanguageModel,
    nn::{TensorSource, Tensors},
    weights::WeightsError,
};

/// LLaVA-NeXT.
#[derive(Debug, Clone)]
pub struct Llava {
    /// What makes a picture tokens.
    pub pictures: PictureEncoder,
    /// What reads them.
    pub language: LanguageModel,
}

impl Llava {
    /// Builds the network from a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(source: &dyn TensorSource, config: &Config) -> Result<Self, WeightsError> {
        let tensors = Tensors::root(source);
        let language = match config.layout.language_key() {
            Some(key) => tensors.at(key),
            None => tensors.clone(),
        };
        Ok(Self {
            pictures: PictureEncoder::load(&tensors, config)?,
            language: LanguageModel::load(&language, &config.language)?,
        })
    }
}

/// The half that makes a picture tokens.
#[derive(Debug, Clone)]
pub struct PictureEncoder {
    /// Keys `…vision_tower.vision_model.*`.
    pub tower: VisionModel,
    /// Keys `model.mm_projector.*` or `multi_modal_projector.*`.
    pub projector: Projector,
    /// Key `model.image_newline` or `image_newline`: `(1, 1, D)`, ends each row of patches.
    newline: Tensor<3>,
    canvases: Vec<[usize; 2]>,
    tile_px: usize,
    /// Patches along the side of a tile.
    grid: usize,
}

impl PictureEncoder {
    /// Reads this half; `tensors` is at the root of the checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &Config) -> Result<Self, WeightsError> {
        let layout = config.layout;
        let width = config.language.width;
        let newline = tensors.get(layout.newline_key(), [width], "hidden_size")?;
        Ok(Self {
            tower: VisionModel::load(&tensors.at(layout.tower_key()), &config.vision)?,
            projector: Projector::load(tensors, config)?,
            newline: newline.reshape([1, 1, width]),
            canvases: config.canvases.clone(),
            tile_px: config.vision.image_size,
            grid: config.vision.grid(),
        })
    }

    /// Where the picture lies on its canvas.
    pub fn geometry(&self, image: &Image) -> Geometry {
        let size = [image.width() as usize, image.height() as usize];
        Geometry::of(size, &self.canvases, self.tile_px, self.grid)
            .expect("a config has at least one canvas")
    }

    /// The picture as tokens: the base view, then the rows that the picture
    /// reaches, each with its end.
    ///
    /// # Shapes
    /// returns `(1, M, D)`, M as [`Geometry::tokens`] says
    pub fn forward(&self, image: &Image) -> Tensor<3> {
        let geometry = self.geometry(image);
        self.forward_views(&geometry, &geometry.views(image))
    }

    /// As [`PictureEncoder::forward`], of the views of [`Geometry::views`].
    pub fn forward_views(&self, geometry: &Geometry, views: &[Image]) -> Tensor<3> {
        // One view at a time: more would only take more memory.
        let views = views.iter().map(|view| {
            let pixels = view.normalised_by(CLIP_MEAN, CLIP_STD);
            let pixels = self.tower.pixels(pixels, 1, self.tile_px);
            self.projector.forward(self.tower.forward(pixels)) // (1, P, D)
        });
        self.pack(geometry, views.collect())
    }

    /// Joins the tokens of all views: see [`PictureEncoder::forward`].
    ///
    /// # Shapes
    /// - `views`: each `(1, P, D)`, in the order of [`Geometry::views`]
    /// - returns `(1, M, D)`
    fn pack(&self, geometry: &Geometry, mut views: Vec<Tensor<3>>) -> Tensor<3> {
        let tiles = views.split_off(1);
        let [columns, rows] = geometry.grid();
        let [_, _, width] = self.newline.dims();
        let side = self.grid;
        let map = Tensor::cat(tiles, 0)
            .reshape([rows, columns, side, side, width])
            .permute([0, 2, 1, 3, 4])
            .reshape([rows * side, columns * side, width]);
        let base = views.remove(0);
        let kept = &geometry.rows;
        // A picture flatter than a patch leaves no rows.
        if kept.is_empty() {
            return base;
        }
        let newlines = self.newline.clone().expand([kept.len(), 1, width]);
        // And one thinner than a patch nothing but their ends.
        let lines = if geometry.columns.is_empty() {
            newlines
        } else {
            let map = map.narrow(0, kept.start, kept.len()).narrow(
                1,
                geometry.columns.start,
                geometry.columns.len(),
            );
            Tensor::cat(vec![map, newlines], 1)
        };
        let [rows, columns, _] = lines.dims();
        let lines = lines.reshape([1, rows * columns, width]);
        Tensor::cat(vec![base, lines], 1)
    }
}
