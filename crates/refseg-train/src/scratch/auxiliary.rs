//! Heads that help a small network to learn from scratch and are then dropped.
//!
//! The masks alone teach too slowly: a phrase must already pick patches before
//! its mask says anything. The generator knows what every patch shows and
//! which patches a phrase means, and these heads are asked for it directly.
//! None of them is part of the model that a run leaves behind.

use burn::tensor::{Tensor, activation};
use refseg::{
    internvl::Config,
    nn::{Linear, TensorSource, Tensors},
    weights::WeightsError,
};
use refseg_data::scenes::{Colour, Shape};

use super::batch::Batch;
use crate::{
    losses::{box_miss, cross_entropy, pointing},
    tensors::{floats, indices},
};

/// Prefix of the heads' keys.
pub const PREFIX: &str = "auxiliary";

/// The helper heads.
#[derive(Debug, Clone)]
pub struct Auxiliary {
    /// Key `patch`: C → classes of shape, colour and scale, and a box.
    patch: Linear,
    /// Key `phrase`: D → [`MATCH_WIDTH`].
    phrase: Linear,
    /// Key `place`: C → [`MATCH_WIDTH`], patches as the mask decoder sees them.
    place: Linear,
    /// Key `sight`: C → [`MATCH_WIDTH`], patches as the vision tower leaves them.
    sight: Linear,
    /// Key `words`: D → V.
    words: Linear,
    /// Key `box`: D → 4.
    bounds: Linear,
}

/// Width in which phrases and patches are compared.
const MATCH_WIDTH: usize = 64;
/// Small and large.
pub(crate) const SCALES: usize = 2;
/// Sizes of the class heads, background included, and of the box.
const PATCH_OUTPUTS: [usize; 4] = [Shape::ALL.len() + 1, Colour::ALL.len() + 1, SCALES + 1, 4];

impl Auxiliary {
    /// Builds the heads from the parameters of a run.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(source: &dyn TensorSource, config: &Config) -> Result<Self, WeightsError> {
        let tensors = Tensors::root(source).at(PREFIX);
        let (vision, language) = (config.vision.width, config.language.width);
        let head = |name, size| Linear::load(&tensors.at(name), size, "vision_config.hidden_size");
        Ok(Self {
            patch: head("patch", [vision, PATCH_OUTPUTS.iter().sum()])?,
            phrase: head("phrase", [language, MATCH_WIDTH])?,
            place: head("place", [vision, MATCH_WIDTH])?,
            sight: head("sight", [vision, MATCH_WIDTH])?,
            words: head("words", [language, config.language.vocabulary])?,
            bounds: head("box", [language, 4])?,
        })
    }

    /// Whether each patch knows what it shows.
    ///
    /// # Shapes
    /// `vit` is `(B, P, C)`; returns `(1)`.
    pub fn patch_loss(&self, vit: Tensor<3>, batch: &Batch) -> Tensor<1> {
        let device = vit.device();
        let labels = &batch.patches;
        let [pictures, patches, _] = vit.dims();
        let count = pictures * patches;
        let outputs = self
            .patch
            .forward(vit)
            .reshape([count, PATCH_OUTPUTS.iter().sum::<usize>()]);
        let weights = floats(&labels.weights, [count], &device);
        let mut start = 0;
        let mut next = |width: usize| {
            start += width;
            outputs.clone().narrow(1, start - width, width)
        };
        let classes = [&labels.shapes, &labels.colours, &labels.scales];
        let class_losses: Vec<Tensor<1>> = classes
            .into_iter()
            .zip(PATCH_OUTPUTS)
            .map(|(classes, width)| {
                let targets = indices(classes.iter().copied(), &device);
                cross_entropy(next(width), targets, weights.clone())
            })
            .collect();
        let boxes = next(PATCH_OUTPUTS[3]);
        let is_object = weights.greater_equal_scalar(1.0).float();
        let wrong = (boxes - floats(&labels.boxes, [count, 4], &device))
            .abs()
            .mean_dim(1);
        let box_loss = (wrong.reshape([-1]) * is_object.clone()).sum() / (is_object.sum() + 1e-6);
        class_losses
            .into_iter()
            .fold(box_loss * 4.0, |sum, loss| sum + loss)
    }

    /// Whether each phrase's vector says which patches are meant, where they are, and what was asked.
    ///
    /// The last one comes first in time: the state before a marker hardly depends on the few words
    /// before it until something asks for them, and without words nothing can be picked.
    ///
    /// # Shapes
    /// - `vit`: `(B, P, C)`, patches as the vision tower leaves them
    /// - `places`: `(B, P, C)`, patches as the mask decoder sees them
    /// - `phrases`: `(B, Q, D)`
    pub fn phrase_losses(
        &self,
        vit: Tensor<3>,
        places: Tensor<3>,
        phrases: Tensor<3>,
        batch: &Batch,
    ) -> PhraseLosses {
        let device = places.device();
        let [pictures, count, width] = phrases.dims();
        let [_, patches, _] = places.dims();
        let phrase = self.phrase.forward(phrases.clone()); // (B, Q, W)
        let coverage = floats(&batch.coverage, [pictures, count, patches], &device);
        let matching = |patch| pointing(phrase.clone(), patch, coverage.clone());
        let matching = matching(self.place.forward(places)) + matching(self.sight.forward(vit));

        let found: Vec<f32> = batch.found.iter().map(|&found| f32::from(found)).collect();
        let found = floats(&found, [pictures * count], &device);
        let boxes = self.bounds.forward(phrases.clone());
        let target = floats(&batch.boxes, [pictures * count, 4], &device);
        let place = box_miss(boxes.reshape([pictures * count, 4]), target, found);

        let scores = self
            .words
            .forward(phrases.reshape([pictures * count, width]));
        let [_, vocabulary] = scores.dims();
        let asked = floats(
            &word_shares(batch, vocabulary),
            [pictures * count, vocabulary],
            &device,
        );
        let words =
            (activation::log_softmax(scores, 1) * asked).sum().neg() / (pictures * count) as f64;
        PhraseLosses {
            matching,
            place,
            words,
        }
    }
}

/// Losses of the phrases' vectors, `(1)` each.
#[derive(Debug, Clone)]
pub struct PhraseLosses {
    /// Which patches are meant, judged on both views of the patches.
    pub matching: Tensor<1>,
    /// Where they are.
    pub place: Tensor<1>,
    /// Which words were said.
    pub words: Tensor<1>,
}

/// For each phrase, its tokens as shares of one: `(B·Q, V)`.
fn word_shares(batch: &Batch, vocabulary: usize) -> Vec<f32> {
    let mut shares = vec![0.0; batch.suffixes.len() * vocabulary];
    for (row, ids) in shares.chunks_exact_mut(vocabulary).zip(&batch.suffixes) {
        for &id in ids {
            row[id as usize] += 1.0 / ids.len() as f32;
        }
    }
    shares
}
