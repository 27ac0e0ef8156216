//! Where a picture lies in the squares that Segment Anything works in.
//!
//! Reference: `ResizeLongestSide`, `Sam.preprocess`, `Sam.postprocess_masks`.

use super::config::Config;
use crate::{
    image::Image,
    mask::{MaskError, resize_bilinear},
};

/// A picture that has been scaled so that its longer side fills a square, in whose upper left corner it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// Width and height of the picture.
    picture: [u32; 2],
    /// Width and height of the picture in the square.
    inside: [u32; 2],
    /// Side of the square.
    side: usize,
}

impl Frame {
    /// A picture in a square of a side.
    pub fn new(image: &Image, side: usize) -> Self {
        let picture = [image.width(), image.height()];
        let scale = side as f64 / f64::from(picture[0].max(picture[1]));
        // A very long picture is narrower than a pixel.
        let scaled = |pixels: u32| ((f64::from(pixels) * scale + 0.5) as u32).max(1);
        Self {
            picture,
            inside: picture.map(scaled),
            side,
        }
    }

    /// Height and width of the picture in the square.
    pub fn inside(&self) -> (usize, usize) {
        (self.inside[1] as usize, self.inside[0] as usize)
    }

    /// Height and width of the picture itself.
    pub fn picture(&self) -> (usize, usize) {
        (self.picture[1] as usize, self.picture[0] as usize)
    }

    /// A point `(x, y)` of the picture, in pixels of the square.
    pub fn place(&self, point_px: [f64; 2]) -> [f32; 2] {
        let scale = |axis: usize| f64::from(self.inside[axis]) / f64::from(self.picture[axis]);
        [0, 1].map(|axis| (point_px[axis] * scale(axis)) as f32)
    }

    /// The picture as an encoder sees it: resized, normalised, then surrounded with zeros.
    ///
    /// # Shapes
    /// Returns `(3, side, side)`.
    pub fn pixels(&self, image: &Image, config: &Config) -> Vec<f32> {
        let resized = image.resize_bilinear(self.inside[0], self.inside[1]);
        let (pixels, _) = resized.pixels().as_chunks::<3>();
        let area = self.side * self.side;
        let mut planes = vec![0.0; 3 * area];
        for (channel, plane) in planes.chunks_exact_mut(area).enumerate() {
            let (mean, std) = (config.pixel_mean[channel], config.pixel_std[channel]);
            let rows = pixels.chunks_exact(self.inside[0] as usize);
            for (values, row) in plane.chunks_exact_mut(self.side).zip(rows) {
                for (value, rgb) in values.iter_mut().zip(row) {
                    *value = (f32::from(rgb[channel]) - mean) / std;
                }
            }
        }
        planes
    }

    /// Mask logits at the size of the picture.
    ///
    /// Like the reference they are enlarged to the square, cut to the picture, and resized again;
    /// one step in place of two would move borders by some hundredths of a pixel.
    ///
    /// # Errors
    /// If `logits` do not fill a square of side `from`.
    pub fn logits(&self, logits: &[f32], from: usize) -> Result<Vec<f32>, MaskError> {
        resize_bilinear(&self.cut(logits, from)?, self.inside(), self.picture())
    }

    /// Mask logits at the size of the picture in the square.
    pub(super) fn cut(&self, logits: &[f32], from: usize) -> Result<Vec<f32>, MaskError> {
        let whole = resize_bilinear(logits, (from, from), (self.side, self.side))?;
        let (height, width) = self.inside();
        let rows = whole.chunks_exact(self.side).take(height);
        Ok(rows.flat_map(|row| &row[..width]).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> Image {
        let bytes = vec![0; (width * height * 3) as usize];
        Image::from_rgb(width, height, bytes).expect("bytes for every pixel")
    }

    #[test]
    fn the_longer_side_fills_the_square() {
        for ((width, height), inside) in [
            ((320, 241), (771, 1024)),
            ((149, 233), (1024, 655)),
            ((1024, 1024), (1024, 1024)),
            ((3000, 1), (1, 1024)),
        ] {
            assert_eq!(Frame::new(&picture(width, height), 1024).inside(), inside);
        }
    }

    #[test]
    fn points_scale_with_each_axis() {
        let frame = Frame::new(&picture(320, 241), 256);
        assert_eq!(frame.inside(), (193, 256));
        let [x, y] = frame.place([320.0, 241.0]);
        assert_eq!([x, y], [256.0, 193.0]);
    }

    #[test]
    fn zeros_surround_the_normalised_picture() {
        let config = Config::preset("sam-vit-b").expect("a preset");
        let image = picture(4, 2);
        let pixels = Frame::new(&image, 4).pixels(&image, &config);
        let black = -123.675 / 58.395;
        assert_eq!(pixels[..8], [black; 8]);
        assert_eq!(pixels[8..16], [0.0; 8]);
    }

    #[test]
    fn logits_are_cut_before_they_are_resized() -> Result<(), MaskError> {
        // The lower half of the square is no picture, so its logits do not matter.
        let frame = Frame::new(&picture(8, 4), 4);
        let logits = [1.0, 1.0, -9.0, -9.0];
        let resized = frame.logits(&logits, 2)?;
        assert_eq!(resized.len(), 8 * 4);
        // Rows of the square: 1, 1 − 10/4, …; the picture has the first two.
        assert_eq!(resized[..8], [1.0; 8]);
        assert_eq!(resized[24..], [-1.5; 8]);
        Ok(())
    }
}
