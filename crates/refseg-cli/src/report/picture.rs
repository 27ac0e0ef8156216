//! Small pictures of cases.

use anyhow::{Result, ensure};
use refseg::{Image, Mask, image::Chroma};

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
    // Outlines are of one or two pixels: their colour needs full resolution.
    Ok(drawn.to_jpeg(QUALITY, Chroma::Full)?)
}
