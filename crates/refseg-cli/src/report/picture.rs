//! Small pictures of cases.

use anyhow::{Context, Result, ensure};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress_optimized};
use refseg::{Image, Mask};

use crate::overlay;

/// Of JPEG, up to 100: a photograph of many details takes about 20 kB.
const QUALITY: u8 = 75;

/// A small JPEG of a picture with the truth in a solid outline and the prediction
/// in a dashed one.
///
/// # Errors
/// If a mask is not of the picture's size.
pub(crate) fn case_picture(image: &Image, truth: &Mask, prediction: &Mask) -> Result<Vec<u8>> {
    let size = (image.height() as usize, image.width() as usize);
    for (name, mask) in [("truth", truth), ("prediction", prediction)] {
        ensure!(
            (mask.height(), mask.width()) == size,
            "the {name} is a mask of {}x{} (height x width), but its picture is {}x{}",
            mask.height(),
            mask.width(),
            size.0,
            size.1,
        );
    }
    let drawn = overlay::compare(image, truth, prediction)?;
    let (width, height) = (drawn.width() as usize, drawn.height() as usize);
    compress_optimized(
        drawn.pixels(),
        width,
        height,
        PixelFormat::Rgb,
        QUALITY,
        // Outlines are of one or two pixels: their colour needs full resolution.
        Subsampling::S444,
    )
    .context("cannot compress the picture of a case")
}
