//! Drawn scenes as a training batch.

use burn::tensor::{Device, Int, Tensor, TensorData};
use refseg::{image::Image, internvl::Config, prompt::PromptBuilder, random::SplitMix64};
use refseg_data::scenes::{Colour, Scene, SceneOptions, ScenePhrase, Shape, Split};

use crate::{TrainError, auxiliary::SCALES};

/// What the network sees and what it should answer, for `B` pictures with `Q` phrases each.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Pictures, B.
    pub pictures: usize,
    /// Phrases for each picture, Q.
    pub phrases: usize,
    /// Masks decoded for each picture, K.
    pub masks: usize,
    /// `(B, 3, S, S)`, normalised.
    pub pixels: Vec<f32>,
    /// Token ids of each phrase up to its marker, `B·Q` of them.
    pub suffixes: Vec<Vec<u32>>,
    /// `(B·Q)`: whether the phrase has a target.
    pub found: Vec<bool>,
    /// `(B·Q, 4)`: box around the targets, XYXY as shares of the side; zeros when there are none.
    pub boxes: Vec<f32>,
    /// `(B·Q, P)`: share of each patch that the targets cover.
    pub coverage: Vec<f32>,
    /// `(B·K)`: which of the `B·Q` phrases are decoded to masks; all have targets.
    pub chosen: Vec<usize>,
    /// `(B·K, S, S)`: their masks, 0 or 1.
    pub targets: Vec<f32>,
    /// `(B, P)` patch labels.
    pub patches: PatchLabels,
}

/// What each patch shows: the generator knows it.
#[derive(Debug, Clone, Default)]
pub struct PatchLabels {
    /// Class of the shape; the last class is background.
    pub shapes: Vec<i64>,
    /// Class of the colour; the last class is background.
    pub colours: Vec<i64>,
    /// Class of the scale; the last class is background.
    pub scales: Vec<i64>,
    /// How much the patch counts.
    pub weights: Vec<f32>,
    /// Box of the object, XYXY as shares of the side, four a patch.
    pub boxes: Vec<f32>,
}

/// A patch with less of an object than this is neither object nor background.
const LEAST_COVERAGE: f32 = 0.35;
/// Background is most of a picture and easily learned.
const BACKGROUND_WEIGHT: f32 = 0.25;

/// What to draw for a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchOptions {
    /// Pictures.
    pub pictures: usize,
    /// Phrases for each picture.
    pub phrases: usize,
    /// Masks decoded for each picture; no more than the phrases.
    pub masks: usize,
    /// Which scenes.
    pub split: Split,
}

/// The sides, in pixels, that scenes are drawn at before the model resizes them.
const DRAWN_SIDES: [u32; 4] = [128, 176, 224, 288];

impl Batch {
    /// Draws scenes `first..first + pictures` of the split.
    ///
    /// The same numbers give the same batch: nothing else is random.
    ///
    /// # Errors
    /// If a phrase cannot be tokenised.
    pub fn draw(
        options: &BatchOptions,
        first: u64,
        config: &Config,
        prompts: &PromptBuilder,
    ) -> Result<Self, TrainError> {
        let mut batch = Self::empty(options.phrases, options.masks);
        for index in first..first + options.pictures as u64 {
            let mut random = SplitMix64::named("batch", index);
            let size = DRAWN_SIDES[random.below(DRAWN_SIDES.len())];
            let scene = Scene::draw(
                &SceneOptions {
                    size,
                    phrases_per_scene: options.phrases,
                    split: options.split,
                    ..SceneOptions::default()
                },
                index,
            );
            let chosen = choose_masks(&scene, options, &mut random);
            batch.add(&scene, &chosen, config, prompts)?;
        }
        Ok(batch)
    }

    /// One scene with a mask for every phrase, in order.
    ///
    /// # Errors
    /// If a phrase cannot be tokenised.
    pub fn of_scene(
        scene: &Scene,
        config: &Config,
        prompts: &PromptBuilder,
    ) -> Result<Self, TrainError> {
        let count = scene.phrases.len();
        let mut batch = Self::empty(count, count);
        batch.add(scene, &(0..count).collect::<Vec<_>>(), config, prompts)?;
        Ok(batch)
    }

    fn empty(phrases: usize, masks: usize) -> Self {
        Self {
            pictures: 0,
            phrases,
            masks,
            pixels: Vec::new(),
            suffixes: Vec::new(),
            found: Vec::new(),
            boxes: Vec::new(),
            coverage: Vec::new(),
            chosen: Vec::new(),
            targets: Vec::new(),
            patches: PatchLabels::default(),
        }
    }

    /// Adds a scene; `chosen` are the phrases whose masks are wanted.
    fn add(
        &mut self,
        scene: &Scene,
        chosen: &[usize],
        config: &Config,
        prompts: &PromptBuilder,
    ) -> Result<(), TrainError> {
        let (size, side) = (scene.size as usize, config.image_size);
        let picture = Image::from_rgb(scene.size, scene.size, scene.pixels.clone())?;
        self.pixels
            .extend(picture.resize(side as u32, side as u32).normalised());
        self.patches.add(scene, config.grid());

        let start = self.suffixes.len();
        for slot in 0..self.phrases {
            let phrase = phrase_at(scene, slot);
            self.suffixes
                .push(prompts.single(&phrase.text)?.before_last_marker().to_vec());
            self.found.push(!phrase.targets.is_empty());
            let mask = scene.target_mask(&phrase.targets);
            self.coverage
                .extend(area_average(&mask, size, config.grid()));
            self.boxes.extend(bounds(scene, &phrase.targets));
        }
        for &slot in chosen {
            self.chosen.push(start + slot);
            let mask = scene.target_mask(&phrase_at(scene, slot).targets);
            self.targets.extend(
                area_average(&mask, size, side)
                    .into_iter()
                    .map(|share| f32::from(share >= 0.5)),
            );
        }
        self.pictures += 1;
        Ok(())
    }

    /// Tokens of the longest suffix.
    pub fn longest_suffix(&self) -> usize {
        self.suffixes.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// A tensor of values prepared on the host.
    pub fn tensor<const R: usize>(values: &[f32], shape: [usize; R], device: &Device) -> Tensor<R> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
    }

    /// A tensor of classes or indices prepared on the host.
    pub fn indices(values: impl IntoIterator<Item = i64>, device: &Device) -> Tensor<1, Int> {
        let values: Vec<i64> = values.into_iter().collect();
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), device)
    }
}

impl PatchLabels {
    fn add(&mut self, scene: &Scene, grid: usize) {
        for cell in scene.label_grid(grid) {
            let object = cell
                .object
                .filter(|_| cell.coverage >= LEAST_COVERAGE)
                .map(|i| &scene.objects[i]);
            match object {
                Some(object) => {
                    self.shapes.push(object.shape as i64);
                    self.colours.push(object.colour as i64);
                    self.scales.push(object.scale as i64);
                    self.weights.push(1.0);
                    self.boxes
                        .extend(object.box_px.map(|edge| edge / scene.size as f32));
                }
                None => {
                    self.shapes.push(Shape::ALL.len() as i64);
                    self.colours.push(Colour::ALL.len() as i64);
                    self.scales.push(SCALES as i64);
                    self.weights.push(if cell.coverage == 0.0 {
                        BACKGROUND_WEIGHT
                    } else {
                        0.0
                    });
                    self.boxes.extend([0.0; 4]);
                }
            }
        }
    }
}

/// The phrase in a slot; a scene may have fewer distinct phrases than slots, then they come again.
fn phrase_at(scene: &Scene, slot: usize) -> &ScenePhrase {
    &scene.phrases[slot % scene.phrases.len()]
}

/// Picks phrases that have targets, different ones as long as there are enough.
fn choose_masks(scene: &Scene, options: &BatchOptions, random: &mut SplitMix64) -> Vec<usize> {
    let has_target = |&slot: &usize| !phrase_at(scene, slot).targets.is_empty();
    let all: Vec<usize> = (0..options.phrases).filter(has_target).collect();
    let mut left = Vec::new();
    let pick = |_| {
        if left.is_empty() {
            left.clone_from(&all);
        }
        left.swap_remove(random.below(left.len()))
    };
    (0..options.masks).map(pick).collect()
}

/// Box around objects, XYXY as shares of the side.
fn bounds(scene: &Scene, objects: &[usize]) -> [f32; 4] {
    let boxes = objects.iter().map(|&i| scene.objects[i].box_px);
    let joined = boxes.reduce(|a, b| {
        [
            a[0].min(b[0]),
            a[1].min(b[1]),
            a[2].max(b[2]),
            a[3].max(b[3]),
        ]
    });
    joined
        .unwrap_or_default()
        .map(|edge| edge / scene.size as f32)
}

/// Share of each cell of a `cells × cells` grid that a square 0/1 mask covers, also across pixels cut by a cell's edge.
fn area_average(mask: &[u8], side: usize, cells: usize) -> Vec<f32> {
    let weights = cell_weights(side, cells);
    let mut rows = vec![0.0f32; cells * side];
    for (cell, taps) in weights.iter().enumerate() {
        for &(y, weight) in taps {
            let source = &mask[y * side..][..side];
            for (sum, &value) in rows[cell * side..][..side].iter_mut().zip(source) {
                *sum += weight * f32::from(value);
            }
        }
    }
    let mut shares = Vec::with_capacity(cells * cells);
    for row in rows.chunks_exact(side) {
        shares.extend(
            weights
                .iter()
                .map(|taps| taps.iter().map(|&(x, weight)| weight * row[x]).sum::<f32>()),
        );
    }
    shares
}

/// For each cell, the pixels it overlaps and by what share of the cell.
fn cell_weights(side: usize, cells: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = side as f32 / cells as f32;
    let taps = |cell: usize| {
        let (from, to) = (cell as f32 * scale, (cell + 1) as f32 * scale);
        let pixels = from.floor() as usize..(to.ceil() as usize).min(side);
        pixels
            .map(|pixel| {
                let overlap = to.min((pixel + 1) as f32) - from.max(pixel as f32);
                (pixel, overlap.max(0.0) / scale)
            })
            .collect()
    };
    (0..cells).map(taps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_take_their_share_of_cut_pixels() {
        // Three pixels into two cells: the middle one is cut in half.
        let mask = [1, 1, 0, 0, 0, 0, 0, 0, 1];
        let shares = area_average(&mask, 3, 2);
        let expected = [
            2.0 / 3.0 * 1.0,
            2.0 / 3.0 * (1.0 / 3.0),
            0.0,
            2.0 / 3.0 * (2.0 / 3.0),
        ];
        for (got, expected) in shares.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{shares:?}");
        }
    }
}
