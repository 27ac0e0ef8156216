//! What a step learns from: pictures, prompts about their objects, and what they should draw.

use refseg::{
    Image,
    mask::Mask,
    random::SplitMix64,
    sam::{Config, Frame, Token},
};
use refseg_data::conversations::{Described, DescribedPictures, Object};

use super::recipe::{Prompts, Recipe};
use crate::{
    TrainError,
    canvas::stretched,
    draws::{self, MOST_DRAWS, choose, take, worn},
};

/// A picture with prompts about it, all of them with equally many tokens.
#[derive(Debug, Clone)]
pub struct Drawing {
    /// `(3, S, S)`, normalised.
    pub pixels: Vec<f32>,
    /// For each prompt its tokens, with their places in the prompts' frame.
    pub prompts: Vec<Vec<(Token, [f32; 2])>>,
    /// For each prompt what it means, 0 or 1: `(4·G, 4·G)`.
    pub targets: Vec<f32>,
    /// Whether several masks are drawn for each prompt, the best of which counts.
    pub several: bool,
}

/// What drawings are made of.
pub struct Drawings {
    sets: Vec<(f64, Box<dyn DescribedPictures + Send>)>,
}

impl Drawings {
    /// Draws pictures from `sets` by their weights.
    pub fn new(sets: Vec<(f64, Box<dyn DescribedPictures + Send>)>) -> Self {
        Self { sets }
    }

    /// Pictures in all data sets.
    pub fn pictures(&self) -> usize {
        self.sets.iter().map(|(_, set)| set.count()).sum()
    }

    /// The drawing of this number. The same number gives the same drawing.
    ///
    /// # Errors
    /// If the data is at fault, or none of its pictures has an object.
    pub fn draw(
        &self,
        recipe: &Recipe,
        config: &Config,
        number: u64,
    ) -> Result<Drawing, TrainError> {
        let mut random = draws::random("drawing", recipe.seed, number);
        for _ in 0..MOST_DRAWS {
            let set = choose(&self.sets, &mut random);
            let (_, image, described) = set.described_picture(random.below(set.count()))?;
            let (image, described) = stretched(image, described, recipe.data.stretch, &mut random)?;
            let Described { mut objects, .. } = described;
            objects.retain(|object| object.mask.area() > 0);
            take(&mut objects, recipe.data.objects, &mut random);
            if !objects.is_empty() {
                let image = worn(image, recipe.data.jpeg_quality, &mut random)?;
                return Ok(drawing(recipe, config, &image, &objects, &mut random));
            }
        }
        Err(TrainError::NothingToLearn)
    }
}

fn drawing(
    recipe: &Recipe,
    config: &Config,
    image: &Image,
    objects: &[Object],
    random: &mut SplitMix64,
) -> Drawing {
    let frame = Frame::new(image, config.prompt.frame);
    let kind = Kind::draw(&recipe.prompts, random);
    let prompts = objects
        .iter()
        .map(|object| kind.prompt(object, &recipe.prompts, &frame, random));
    let prompts = prompts.collect();
    let canvas = Frame::new(image, 4 * config.prompt.grid);
    Drawing {
        pixels: Frame::new(image, config.encoder.image_size()).pixels(image, config),
        prompts,
        targets: objects
            .iter()
            .flat_map(|object| on_canvas(&object.mask, &canvas, 4 * config.prompt.grid))
            .collect(),
        several: random.uniform() < recipe.prompts.several,
    }
}

/// What all prompts of a picture look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Box,
    /// So many points on the object.
    Points(usize),
    /// A box, and so many points anywhere in it.
    Both(usize),
}

impl Kind {
    fn draw(prompts: &Prompts, random: &mut SplitMix64) -> Self {
        let Prompts {
            boxes,
            points,
            both,
            most_points,
            ..
        } = *prompts;
        let drawn = random.uniform() * (boxes + points + both);
        let count = 1 + random.below(most_points);
        if drawn < boxes {
            Self::Box
        } else if drawn < boxes + points {
            Self::Points(count)
        } else {
            Self::Both(count)
        }
    }

    /// Points first, then the box, as in use.
    fn prompt(
        self,
        object: &Object,
        prompts: &Prompts,
        frame: &Frame,
        random: &mut SplitMix64,
    ) -> Vec<(Token, [f32; 2])> {
        let mask = &object.mask;
        let mut tokens = Vec::new();
        let (count, is_boxed) = match self {
            Self::Box => (0, true),
            Self::Points(count) => (count, false),
            Self::Both(count) => (count, true),
        };
        let on: Vec<usize> = match self {
            Self::Points(_) => (0..mask.bits().len()).filter(|&i| mask.bits()[i]).collect(),
            _ => Vec::new(),
        };
        for _ in 0..count {
            let [column, row] = if is_boxed {
                within(object.box_px, mask, random)
            } else {
                let at = on[random.below(on.len())];
                [at % mask.width(), at / mask.width()]
            };
            let kind = if mask.bits()[row * mask.width() + column] {
                Token::Foreground
            } else {
                Token::Background
            };
            // The middle of the pixel.
            let place = [column, row].map(|at| at as f64 + 0.5);
            tokens.push((kind, frame.place(place)));
        }
        if is_boxed {
            let [x1, y1, x2, y2] = jittered(object.box_px, prompts.jitter, mask, random);
            tokens.push((Token::UpperLeft, frame.place([x1, y1])));
            tokens.push((Token::LowerRight, frame.place([x2, y2])));
        } else {
            tokens.push((Token::Nothing, [0.0; 2]));
        }
        tokens
    }
}

/// A pixel `(column, row)` anywhere in a box.
fn within([x1, y1, x2, y2]: [f64; 4], mask: &Mask, random: &mut SplitMix64) -> [usize; 2] {
    let mut place = |from: f64, to: f64, side: usize| {
        let at = from + random.uniform() * (to - from);
        (at.max(0.0) as usize).min(side - 1)
    };
    [place(x1, x2, mask.width()), place(y1, y2, mask.height())]
}

/// A box whose sides have moved, within the picture and the right way round.
fn jittered(
    [x1, y1, x2, y2]: [f64; 4],
    deviation: f64,
    mask: &Mask,
    random: &mut SplitMix64,
) -> [f64; 4] {
    let mut moved = |at: f64, length: f64, side: usize| {
        (at + random.normal() * deviation * length).clamp(0.0, side as f64)
    };
    let (width, height) = (x2 - x1, y2 - y1);
    let xs = [x1, x2].map(|x| moved(x, width, mask.width()));
    let ys = [y1, y2].map(|y| moved(y, height, mask.height()));
    [
        xs[0].min(xs[1]),
        ys[0].min(ys[1]),
        xs[0].max(xs[1]),
        ys[0].max(ys[1]),
    ]
}

/// A mask in the square of masks, `side` squared: 1 where at least half of a cell is covered.
fn on_canvas(mask: &Mask, canvas: &Frame, side: usize) -> Vec<f32> {
    let (rows, columns) = canvas.inside();
    let (height, width) = (mask.height(), mask.width());
    let across = shares(width, columns);
    let mut values = vec![0.0; side * side];
    for (row, down) in shares(height, rows).into_iter().enumerate() {
        let mut sums = vec![0.0f32; width];
        for (y, weight) in down {
            for (sum, &bit) in sums.iter_mut().zip(&mask.bits()[y * width..][..width]) {
                *sum += weight * f32::from(bit);
            }
        }
        for (column, taps) in across.iter().enumerate() {
            let covered: f32 = taps.iter().map(|&(x, weight)| weight * sums[x]).sum();
            values[row * side + column] = f32::from(covered >= 0.5);
        }
    }
    values
}

/// For each of `cells` cells along `length` pixels, the pixels that it overlaps and by what share
/// of itself.
fn shares(length: usize, cells: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = length as f32 / cells as f32;
    let taps = |cell: usize| {
        let (from, to) = (cell as f32 * scale, (cell + 1) as f32 * scale);
        let end = (to.ceil() as usize).min(length);
        let overlap = |pixel: usize| (to.min((pixel + 1) as f32) - from.max(pixel as f32)).max(0.0);
        let pixels = from.floor() as usize..end;
        pixels
            .map(|pixel| (pixel, overlap(pixel) / scale))
            .collect()
    };
    (0..cells).map(taps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::Book;
    use refseg_data::scenes::{DrawnScenes, SceneOptions};

    /// A picture of 4 × 2 pixels whose left half is the object.
    fn halves() -> Result<(Image, Object), Box<dyn std::error::Error>> {
        let image = Image::from_rgb(4, 2, vec![0; 24])?;
        let bits = vec![true, true, false, false, true, true, false, false];
        let object = Object {
            box_px: [0.0, 0.0, 2.0, 2.0],
            mask: Mask::from_bits(2, 4, bits)?,
            groups: Vec::new(),
        };
        Ok((image, object))
    }

    #[test]
    fn targets_lie_where_the_picture_does() -> Result<(), Box<dyn std::error::Error>> {
        let (image, object) = halves()?;
        let canvas = on_canvas(&object.mask, &Frame::new(&image, 8), 8);
        let row = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        for y in 0..8 {
            let expected = if y < 4 { row } else { [0.0; 8] };
            assert_eq!(canvas[y * 8..][..8], expected);
        }
        Ok(())
    }

    #[test]
    fn labels_are_what_the_mask_says() -> Result<(), Box<dyn std::error::Error>> {
        let (image, mut object) = halves()?;
        object.box_px = [0.0, 0.0, 4.0, 2.0];
        let frame = Frame::new(&image, 8);
        let recipe = Recipe::of(Book::open("sam-small", &[])?)?;
        let mut random = SplitMix64::new(7);
        let both = Kind::Both(40).prompt(&object, &recipe.prompts, &frame, &mut random);
        assert_eq!(both.len(), 42);
        for (kind, [x, _]) in &both[..40] {
            let is_on = *kind == Token::Foreground;
            assert_eq!(is_on, *x < 4.0, "{kind:?} at {x}");
        }
        assert_eq!(both[40].0, Token::UpperLeft);
        let points = Kind::Points(5).prompt(&object, &recipe.prompts, &frame, &mut random);
        let kinds: Vec<Token> = points.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds[..5], [Token::Foreground; 5]);
        assert_eq!(kinds[5..], [Token::Nothing]);
        Ok(())
    }

    #[test]
    fn a_number_always_draws_the_same() -> Result<(), Box<dyn std::error::Error>> {
        let scenes = DrawnScenes {
            options: SceneOptions {
                size: 64,
                ..SceneOptions::default()
            },
            first: 0,
            count: 20,
        };
        let drawings = Drawings::new(vec![(1.0, Box::new(scenes))]);
        let recipe = Recipe::of(Book::open("sam-small", &[])?)?;
        let config = super::super::beginner::config()?;
        let draw = |number| drawings.draw(&recipe, &config, number);
        assert_eq!(draw(3)?.prompts, draw(3)?.prompts);
        assert_ne!(draw(3)?.pixels, draw(4)?.pixels);
        let drawn = draw(5)?;
        let lengths: Vec<usize> = drawn.prompts.iter().map(Vec::len).collect();
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]));
        let side = 4 * config.prompt.grid;
        assert_eq!(drawn.targets.len(), drawn.prompts.len() * side * side);
        Ok(())
    }
}
