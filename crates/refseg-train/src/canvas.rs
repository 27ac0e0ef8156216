//! Pictures on a wider or taller canvas.
//!
//! Drawn scenes are square, and models see whatever they are shown squeezed into a square, or with
//! an empty margin. Without other canvases they would never see a squeezed shape, nor a margin.

use refseg::{
    image::{Image, ImageError},
    mask::{Mask, MaskError},
    random::SplitMix64,
};
use refseg_data::conversations::Described;

use crate::TrainError;

/// Pictures that are stretched, of a hundred.
const STRETCHED: usize = 50;

/// Where a picture lies on its canvas, in pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Canvas {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Where the picture's left edge lies.
    pub(crate) left: usize,
    /// Where its top edge lies.
    pub(crate) top: usize,
}

impl Canvas {
    /// One that a picture of this height and width just fills.
    pub(crate) fn of((height, width): (usize, usize)) -> Self {
        Self {
            width,
            height,
            left: 0,
            top: 0,
        }
    }

    /// Often one that is wider or taller than a picture of this height and width, by up to
    /// `longest − 1` of its longer side.
    pub(crate) fn draw(size: (usize, usize), longest: f64, random: &mut SplitMix64) -> Self {
        let mut canvas = Self::of(size);
        if random.below(100) < STRETCHED {
            let side = size.0.max(size.1);
            let more = (side as f64 * random.uniform() * (longest - 1.0)) as usize;
            let before = random.below(more + 1);
            if random.below(2) == 0 {
                (canvas.width, canvas.left) = (canvas.width + more, before);
            } else {
                (canvas.height, canvas.top) = (canvas.height + more, before);
            }
        }
        canvas
    }

    /// The canvas with the RGB `pixels` of a picture of this height and width; what lies beside
    /// the picture continues its edge.
    pub(crate) fn picture(
        &self,
        (height, width): (usize, usize),
        pixels: &[u8],
    ) -> Result<Image, ImageError> {
        let inside = |at: usize, start: usize, side: usize| at.saturating_sub(start).min(side - 1);
        let mut painted = Vec::with_capacity(self.width * self.height * 3);
        for y in 0..self.height {
            let row = &pixels[inside(y, self.top, height) * width * 3..][..width * 3];
            for x in 0..self.width {
                painted.extend_from_slice(&row[inside(x, self.left, width) * 3..][..3]);
            }
        }
        Image::from_rgb(self.width as u32, self.height as u32, painted)
    }

    /// A mask of the picture as one of the canvas: nothing beside the picture is meant.
    fn mask(&self, mask: &Mask) -> Result<Mask, MaskError> {
        let mut bits = vec![false; self.width * self.height];
        for (y, row) in mask.bits().chunks_exact(mask.width()).enumerate() {
            bits[(self.top + y) * self.width + self.left..][..mask.width()].copy_from_slice(row);
        }
        Mask::from_bits(self.height, self.width, bits)
    }
}

/// A picture and what is known of it, often on a longer canvas ([`Canvas::draw`]); as it is if there
/// is no `longest`. Groups of points are drawn later.
pub(crate) fn stretched(
    image: Image,
    mut described: Described,
    longest: Option<f64>,
    random: &mut SplitMix64,
) -> Result<(Image, Described), TrainError> {
    let Some(longest) = longest else {
        return Ok((image, described));
    };
    let canvas = Canvas::draw(described.size, longest, random);
    let (left, top) = (canvas.left as f64, canvas.top as f64);
    let image = canvas.picture(described.size, image.pixels())?;
    described.size = (canvas.height, canvas.width);
    for object in &mut described.objects {
        object.mask = canvas.mask(&object.mask)?;
        let [x1, y1, x2, y2] = object.box_px;
        object.box_px = [x1 + left, y1 + top, x2 + left, y2 + top];
    }
    Ok((image, described))
}

#[cfg(test)]
mod tests {
    use refseg_data::{
        conversations::DescribedPictures,
        scenes::{DrawnScenes, SceneOptions},
    };

    use super::*;

    fn scene() -> Result<(Image, Described), TrainError> {
        let scenes = DrawnScenes {
            options: SceneOptions {
                size: 64,
                ..SceneOptions::default()
            },
            first: 5,
            count: 1,
        };
        let (_, image, described) = scenes.described_picture(0)?;
        Ok((image, described))
    }

    #[test]
    fn what_is_known_moves_with_the_picture() -> Result<(), TrainError> {
        let (square, known) = scene()?;
        let mut shapes = [false; 3];
        for seed in 0..20 {
            let mut random = SplitMix64::new(seed);
            let (image, described) =
                stretched(square.clone(), known.clone(), Some(1.8), &mut random)?;
            let (height, width) = described.size;
            assert_eq!(
                (image.height() as usize, image.width() as usize),
                (height, width)
            );
            assert!(height.max(width) <= 115 && height.min(width) == 64);
            shapes[usize::from(width > 64) + 2 * usize::from(height > 64)] = true;
            for (object, before) in described.objects.iter().zip(&known.objects) {
                let [dx, dy] = [0, 1].map(|i| (object.box_px[i] - before.box_px[i]) as usize);
                assert_eq!((object.mask.height(), object.mask.width()), (height, width));
                assert_eq!(object.mask.area(), before.mask.area());
                for (i, _) in before
                    .mask
                    .bits()
                    .iter()
                    .enumerate()
                    .filter(|(_, is_inside)| **is_inside)
                {
                    let (x, y) = (i % 64 + dx, i / 64 + dy);
                    assert!(object.mask.bits()[y * width + x]);
                    let at = |image: &Image, i: usize| image.pixels()[3 * i..][..3].to_vec();
                    assert_eq!(at(&image, y * width + x), at(&square, i));
                }
            }
        }
        assert_eq!(shapes, [true; 3], "as it is, wider, taller");
        Ok(())
    }

    #[test]
    fn nothing_is_drawn_where_nothing_is_stretched() -> Result<(), TrainError> {
        let (square, known) = scene()?;
        let mut random = SplitMix64::new(1);
        assert_eq!(
            stretched(square.clone(), known.clone(), None, &mut random)?,
            (square, known)
        );
        assert_eq!(random.next_u64(), SplitMix64::new(1).next_u64());
        Ok(())
    }
}
