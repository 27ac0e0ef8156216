//! Truth and prediction in one small picture: the truth in a solid outline, the
//! prediction tinted in a dashed one, the rest a little darker.

use refseg::{Image, Mask, image::ImageError};
use tiny_skia::{Color, FillRule, IntSize, Pixmap, Rect, StrokeDash, Transform};

use super::{Field, Fit, Item, Shape, legend::paint, rgb, to_image};

/// Far apart for every kind of colour vision, and the same as the report's legend.
const TRUTH: [u8; 3] = [86, 190, 255];
const PREDICTION: [u8; 3] = [255, 184, 28];

/// A longer side is reduced to this many pixels; a much shorter one is enlarged.
const LONGEST: u32 = 320;
/// Outlines are found on a grid of as many cells as the masks have pixels along
/// their longer side, up to this: the longest side of RefCOCO's pictures.
const FINEST: u32 = 640;
/// What overlays call the size of text, and measure lines by.
const UNIT: f32 = 16.0;
/// Lengths of dash and gap in pixels; round ends take some of the gap.
const DASH: [f32; 2] = [6.5, 7.0];
/// How much darker the surroundings are, and how strong the tint is.
const SHADE: u8 = 110;
const TINT: u8 = 70;

/// Draws both masks of an expression into its picture, and makes that small.
///
/// # Errors
/// None for a picture and masks of its size.
pub(crate) fn compare(image: &Image, truth: &Mask, prediction: &Mask) -> Result<Image, ImageError> {
    let fit = thumbnail(image);
    let truth = outlined(truth, &fit, TRUTH, None)?;
    let dash = StrokeDash::new(DASH.to_vec(), 0.0);
    let prediction = outlined(prediction, &fit, PREDICTION, dash)?;

    let mut canvas = pixmap(&image.resize(fit.width, fit.height), &fit)?;
    let shapes = || truth.iter().chain(&prediction);
    let still = Transform::identity();
    let mut outside = tiny_skia::Mask::new(fit.width, fit.height).ok_or_else(|| no_room(&fit))?;
    for shape in shapes() {
        outside.fill_path(&shape.path, FillRule::EvenOdd, true, still);
    }
    outside.invert();
    if let Some(everywhere) = Rect::from_xywh(0.0, 0.0, fit.width as f32, fit.height as f32) {
        let shade = paint(Color::from_rgba8(0, 0, 0, SHADE));
        canvas.fill_rect(everywhere, &shade, still, Some(&outside));
    }
    if let Some(shape) = &prediction {
        let [red, green, blue] = PREDICTION;
        let tint = paint(Color::from_rgba8(red, green, blue, TINT));
        canvas.fill_path(&shape.path, &tint, FillRule::EvenOdd, still, None);
    }
    for shape in shapes() {
        shape.draw_outline(&mut canvas, UNIT);
    }
    to_image(&canvas)
}

fn thumbnail(image: &Image) -> Fit {
    let longest = image.width().max(image.height());
    let factor = (LONGEST / longest).max(1);
    Fit::within(image.width() * factor, image.height() * factor, LONGEST)
}

/// `None` if the mask is empty.
fn outlined(
    mask: &Mask,
    fit: &Fit,
    colour: [u8; 3],
    dash: Option<StrokeDash>,
) -> Result<Option<Shape>, ImageError> {
    let (width, height) = (mask.width() as u32, mask.height() as u32);
    let levels = mask.bits().iter().flat_map(|&bit| [u8::from(bit) * 255; 3]);
    let side = width.max(height).min(FINEST);
    let square = Image::from_rgb(width, height, levels.collect())?.resize(side, side);
    let (levels, _) = square.pixels().as_chunks::<3>();
    let values: Vec<f32> = levels.iter().map(|rgb| f32::from(rgb[0]) / 255.0).collect();
    let field = Field {
        values: &values,
        side: side as usize,
    };
    let item = Item {
        phrase: "",
        colour: Some(rgb(colour)),
        number: None,
    };
    let shape = Shape::new(&field, fit, 0, UNIT, &item);
    Ok(shape.map(|shape| Shape { dash, ..shape }))
}

fn pixmap(picture: &Image, fit: &Fit) -> Result<Pixmap, ImageError> {
    let (colours, _) = picture.pixels().as_chunks::<3>();
    let opaque = colours
        .iter()
        .flat_map(|&[red, green, blue]| [red, green, blue, 255]);
    IntSize::from_wh(fit.width, fit.height)
        .and_then(|size| Pixmap::from_vec(opaque.collect(), size))
        .ok_or_else(|| no_room(fit))
}

fn no_room(fit: &Fit) -> ImageError {
    ImageError::PixelCount {
        width: fit.width,
        height: fit.height,
        found: 0,
        expected: u64::from(fit.width) * u64::from(fit.height) * 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn band(height: usize, width: usize, columns: std::ops::Range<usize>) -> Mask {
        let bits = (0..height * width).map(|i| columns.contains(&(i % width)));
        Mask::from_bits(height, width, bits.collect()).expect("one bit a pixel")
    }

    fn grey(width: u32, height: u32) -> Image {
        let bytes = vec![200; (width * height * 3) as usize];
        Image::from_rgb(width, height, bytes).expect("bytes for every pixel")
    }

    fn pixel(image: &Image, x: u32, y: u32) -> [u8; 3] {
        let start = ((y * image.width() + x) * 3) as usize;
        [0, 1, 2].map(|i| image.pixels()[start + i])
    }

    #[test]
    fn each_region_looks_different() {
        // Truth and prediction share the columns from 240 to 400 of 640.
        let (truth, prediction) = (band(480, 640, 80..400), band(480, 640, 240..560));
        let drawn = compare(&grey(640, 480), &truth, &prediction).expect("a comparison");
        assert_eq!((drawn.width(), drawn.height()), (320, 240));
        let [outside, missed, shared, extra] = [20, 80, 160, 240].map(|x| pixel(&drawn, x, 120));
        assert_eq!(missed, [200; 3]);
        assert!(outside[0] < 130, "{outside:?}");
        assert_eq!(shared, extra);
        assert!(shared[0] > 200 && shared[2] < 160, "{shared:?}");
    }

    #[test]
    fn the_truth_is_solid_and_the_prediction_dashed() {
        let drawn = compare(
            &grey(640, 480),
            &band(480, 640, 160..320),
            &band(480, 640, 400..560),
        )
        .expect("a comparison");
        let marked = |x, colour: [u8; 3]| {
            let is_close = |y: &u32| {
                let found = pixel(&drawn, x, *y);
                found.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 40)
            };
            (20..220).filter(is_close).count()
        };
        assert_eq!(marked(80, TRUTH), 200);
        let dashed = marked(200, PREDICTION);
        assert!((80..160).contains(&dashed), "{dashed} of 200 pixels");
    }

    #[test]
    fn the_smallest_target_is_seen() {
        let mut bits = vec![false; 640 * 480];
        bits[200 * 640 + 301] = true;
        let truth = Mask::from_bits(480, 640, bits).expect("one bit a pixel");
        let nothing = Mask::empty(480, 640).expect("a mask");
        let picture = grey(640, 480);
        let drawn = compare(&picture, &truth, &nothing).expect("a comparison");
        let without = compare(&picture, &nothing, &nothing).expect("a comparison");
        assert_ne!(pixel(&drawn, 150, 100), pixel(&without, 150, 100));
    }

    #[test]
    fn any_size_can_be_drawn() {
        for (width, height) in [(1_u32, 1), (1, 3000), (3000, 2), (112, 112), (321, 7)] {
            let mask = band(
                height as usize,
                width as usize,
                0..width.div_ceil(2) as usize,
            );
            let drawn = compare(&grey(width, height), &mask, &mask).expect("a comparison");
            assert!(drawn.width().max(drawn.height()) <= LONGEST);
        }
        let scene = band(112, 112, 0..50);
        let drawn = compare(&grey(112, 112), &scene, &scene).expect("a comparison");
        assert_eq!((drawn.width(), drawn.height()), (224, 224));
    }
}
