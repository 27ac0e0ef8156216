//! Drawn scenes as a training batch.

use refseg::{
    image::{Chroma, DecodeOptions, Image, ImageError},
    internvl::Config,
    prompt::PromptBuilder,
    random::SplitMix64,
};
use refseg_data::scenes::{Colour, Scene, SceneOptions, ScenePhrase, Shape, Split};

use super::auxiliary::SCALES;
use crate::{TrainError, canvas::Canvas};

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
            let view = View::stretched(&scene, &mut random);
            let picture = worn(view.picture()?, &mut random)?;
            batch.add(&view, &picture, &chosen, config, prompts)?;
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
        let chosen: Vec<usize> = (0..count).collect();
        let view = View::whole(scene);
        batch.add(&view, &view.picture()?, &chosen, config, prompts)?;
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

    /// Adds a scene as `picture` shows it; `chosen` are the phrases whose masks are wanted.
    fn add(
        &mut self,
        view: &View<'_>,
        picture: &Image,
        chosen: &[usize],
        config: &Config,
        prompts: &PromptBuilder,
    ) -> Result<(), TrainError> {
        let (scene, side) = (view.scene, config.image_size);
        self.pixels
            .extend(picture.resize(side as u32, side as u32).normalised());
        self.patches.add(view, config.grid());

        let start = self.suffixes.len();
        for slot in 0..self.phrases {
            let phrase = phrase_at(scene, slot);
            let prompt = prompts.single(&phrase.text)?;
            self.suffixes.push(prompt.before_last_marker().to_vec());
            self.found.push(!phrase.targets.is_empty());
            let mask = scene.target_mask(&phrase.targets);
            self.coverage.extend(view.shares(&mask, config.grid()));
            self.boxes.extend(view.bounds(&phrase.targets));
        }
        for &slot in chosen {
            self.chosen.push(start + slot);
            let mask = scene.target_mask(&phrase_at(scene, slot).targets);
            let shares = view.shares(&mask, side);
            self.targets
                .extend(shares.into_iter().map(|share| f32::from(share >= 0.5)));
        }
        self.pictures += 1;
        Ok(())
    }

    /// Tokens of the longest suffix.
    pub fn longest_suffix(&self) -> usize {
        self.suffixes.iter().map(Vec::len).max().unwrap_or(0)
    }
}

impl PatchLabels {
    fn add(&mut self, view: &View<'_>, grid: usize) {
        let objects = &view.scene.objects;
        let shares: Vec<Vec<f32>> = objects
            .iter()
            .map(|object| view.shares(&object.mask, grid))
            .collect();
        for cell in 0..grid * grid {
            let covered = shares.iter().map(|shares| shares[cell]).enumerate();
            let most = covered.max_by(|(_, a), (_, b)| a.total_cmp(b));
            let coverage = most.map_or(0.0, |(_, coverage)| coverage);
            match most.filter(|_| coverage >= LEAST_COVERAGE) {
                Some((i, _)) => {
                    self.shapes.push(objects[i].shape as i64);
                    self.colours.push(objects[i].colour as i64);
                    self.scales.push(objects[i].scale as i64);
                    self.weights.push(1.0);
                    self.boxes.extend(view.bounds(&[i]));
                }
                None => {
                    self.shapes.push(Shape::ALL.len() as i64);
                    self.colours.push(Colour::ALL.len() as i64);
                    self.scales.push(SCALES as i64);
                    let is_background = coverage == 0.0;
                    self.weights.push(if is_background {
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

/// A scene on a canvas.
struct View<'a> {
    scene: &'a Scene,
    canvas: Canvas,
}

/// The longest side over the shortest: 16 : 9 pictures are inside it.
const LONGEST_ASPECT: f64 = 1.8;

impl<'a> View<'a> {
    /// The scene alone.
    fn whole(scene: &'a Scene) -> Self {
        let side = scene.size as usize;
        Self {
            scene,
            canvas: Canvas::of((side, side)),
        }
    }

    /// The scene, often on a wider or taller canvas.
    fn stretched(scene: &'a Scene, random: &mut SplitMix64) -> Self {
        let side = scene.size as usize;
        Self {
            scene,
            canvas: Canvas::draw((side, side), LONGEST_ASPECT, random),
        }
    }

    fn picture(&self) -> Result<Image, ImageError> {
        let side = self.scene.size as usize;
        self.canvas.picture((side, side), &self.scene.pixels)
    }

    /// Share of each cell of a `cells × cells` grid over the canvas that a 0/1 mask of the scene
    /// covers, also across pixels cut by a cell's edge.
    fn shares(&self, mask: &[u8], cells: usize) -> Vec<f32> {
        let side = self.scene.size as usize;
        let across = cell_weights(self.canvas.width, cells, self.canvas.left, side);
        let down = cell_weights(self.canvas.height, cells, self.canvas.top, side);
        let mut shares = Vec::with_capacity(cells * cells);
        let mut row = vec![0.0f32; side];
        for taps in down {
            row.fill(0.0);
            for (y, weight) in taps {
                for (sum, &value) in row.iter_mut().zip(&mask[y * side..][..side]) {
                    *sum += weight * f32::from(value);
                }
            }
            let cell = |taps: &Vec<(usize, f32)>| {
                taps.iter().map(|&(x, weight)| weight * row[x]).sum::<f32>()
            };
            shares.extend(across.iter().map(cell));
        }
        shares
    }

    /// Box around objects, XYXY as shares of the canvas.
    fn bounds(&self, objects: &[usize]) -> [f32; 4] {
        let boxes = objects.iter().map(|&i| self.scene.objects[i].box_px);
        let joined = boxes.reduce(|a, b| {
            [
                a[0].min(b[0]),
                a[1].min(b[1]),
                a[2].max(b[2]),
                a[3].max(b[3]),
            ]
        });
        let Canvas {
            width,
            height,
            left,
            top,
        } = self.canvas;
        let [width, height, left, top] = [width, height, left, top].map(|px| px as f32);
        joined.map_or([0.0; 4], |[x1, y1, x2, y2]| {
            [
                (x1 + left) / width,
                (y1 + top) / height,
                (x2 + left) / width,
                (y2 + top) / height,
            ]
        })
    }
}

/// Pictures, of a hundred, that are stored as JPEG on their way to the model.
const STORED_AS_JPEG: usize = 50;
/// Worst quality that they are stored at: far worse than cameras do, but flat shapes survive it.
const LEAST_QUALITY: usize = 40;

/// The picture after a life as a file: users' pictures are JPEG more often than not, and the
/// generator's have none of its blurred colours and rings around edges.
fn worn(picture: Image, random: &mut SplitMix64) -> Result<Image, ImageError> {
    if random.below(100) >= STORED_AS_JPEG {
        return Ok(picture);
    }
    let quality = LEAST_QUALITY + random.below(100 - LEAST_QUALITY + 1);
    let jpeg = picture.to_jpeg(quality as u8, Chroma::Half)?;
    Image::decode(&jpeg, "a drawn scene", &DecodeOptions::default())
}

/// For each of `cells` cells along an axis `length` long, the pixels it overlaps and by what share
/// of the cell. Only pixels of the scene count, which lies at `start` and is `side` long.
fn cell_weights(length: usize, cells: usize, start: usize, side: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = length as f32 / cells as f32;
    let taps = |cell: usize| {
        let (from, to) = (cell as f32 * scale, (cell + 1) as f32 * scale);
        let first = (from.floor() as usize).max(start);
        let end = (to.ceil() as usize).min(start + side);
        let overlap = |pixel: usize| (to.min((pixel + 1) as f32) - from.max(pixel as f32)).max(0.0);
        (first..end)
            .map(|pixel| (pixel - start, overlap(pixel) / scale))
            .collect()
    };
    (0..cells).map(taps).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_take_their_share_of_cut_pixels() {
        // Three pixels into two cells: the middle one is cut in half.
        let weights = cell_weights(3, 2, 0, 3);
        assert_eq!(
            weights,
            [
                vec![(0, 2.0 / 3.0), (1, 1.0 / 3.0)],
                vec![(1, 1.0 / 3.0), (2, 2.0 / 3.0)]
            ]
        );
        // The same scene at the right end of a canvas of six: the left cell shows none of it.
        assert_eq!(
            cell_weights(6, 2, 3, 3),
            [vec![], (0..3).map(|x| (x, 1.0 / 3.0)).collect()]
        );
    }

    #[test]
    fn a_stretched_view_keeps_every_pixel_of_a_mask() {
        let scene = Scene::draw(
            &SceneOptions {
                size: 64,
                ..SceneOptions::default()
            },
            5,
        );
        let canvas = Canvas {
            width: 96,
            height: 64,
            left: 20,
            top: 0,
        };
        let view = View {
            scene: &scene,
            canvas,
        };
        let picture = view.picture().expect("the canvas has pixels");
        assert_eq!((picture.width(), picture.height()), (96, 64));
        let object = &scene.objects[0];
        let shares = view.shares(&object.mask, 14);
        let area: f32 = shares.iter().sum::<f32>() * (96 * 64) as f32 / (14 * 14) as f32;
        assert!(
            (area - object.area as f32).abs() < 0.01 * object.area as f32,
            "{area}, {}",
            object.area
        );
        let [x1, _, x2, _] = view.bounds(&[0]).map(|share| share * 96.0);
        assert!((x2 - x1 - (object.box_px[2] - object.box_px[0])).abs() < 1e-3);
        assert!((x1 - object.box_px[0] - 20.0).abs() < 1e-3);
    }
}
