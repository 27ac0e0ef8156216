//! What became of one expression.

use refseg::mask::{Mask, MaskError};

use crate::runs::Runs;

/// Everything that a metric needs to know about one expression. Areas are pixels
/// of the picture as it is stored, without those that the truth tells to ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Pixels in both masks.
    pub intersection: u64,
    /// Pixels in either mask.
    pub union: u64,
    /// Pixels in the predicted mask.
    pub predicted: u64,
    /// Pixels in the true mask.
    pub truth: u64,
    /// Whether the answer was "found".
    pub found: bool,
    /// Whether the predicted box hits the true one ([`rec_hit`]); `None` where there is no true box.
    pub box_hit: Option<bool>,
}

impl Outcome {
    /// Compares two masks, given as whether each pixel is in the predicted and in the true one.
    pub fn of_pixels(pixels: impl IntoIterator<Item = (bool, bool)>, found: bool) -> Self {
        let (mut shared, mut predicted_area, mut true_area) = (0, 0, 0);
        for (predicted, truth) in pixels {
            shared += u64::from(predicted & truth);
            predicted_area += u64::from(predicted);
            true_area += u64::from(truth);
        }
        Self::of_areas(shared, predicted_area, true_area, found)
    }

    /// Compares two masks; pixels of `ignore` are removed from both.
    ///
    /// # Errors
    /// [`MaskError::Mismatch`] if the sizes differ.
    pub fn of_masks(
        predicted: &Mask,
        truth: &Mask,
        ignore: Option<&Mask>,
        found: bool,
    ) -> Result<Self, MaskError> {
        check_sizes(size(predicted), size(truth))?;
        let pixels = predicted.bits().iter().zip(truth.bits());
        let Some(ignore) = ignore else {
            return Ok(Self::of_pixels(pixels.map(|(&p, &t)| (p, t)), found));
        };
        check_sizes(size(ignore), size(truth))?;
        let pixels = pixels
            .zip(ignore.bits())
            .filter(|&(_, &ignored)| !ignored)
            .map(|((&p, &t), _)| (p, t));
        Ok(Self::of_pixels(pixels, found))
    }

    /// The same as [`Outcome::of_masks`], from the run lengths of the predicted mask,
    /// which it does not decode.
    ///
    /// # Errors
    /// [`MaskError::Mismatch`] if the sizes differ.
    pub fn of_runs(
        predicted: &Runs,
        truth: &Mask,
        ignore: Option<&Mask>,
        found: bool,
    ) -> Result<Self, MaskError> {
        check_sizes(predicted.size(), size(truth))?;
        let Some(ignore) = ignore else {
            let (area, intersection) = (predicted.area(), predicted.overlap(truth));
            return Ok(Self::of_areas(intersection, area, truth.area(), found));
        };
        check_sizes(size(ignore), size(truth))?;
        let pixels = truth.bits().iter().zip(ignore.bits());
        let counted = pixels.map(|(&truth, &ignored)| truth & !ignored).collect();
        let counted = Mask::from_bits(truth.height(), truth.width(), counted)?;
        let area = predicted.area() - predicted.overlap(ignore);
        let intersection = predicted.overlap(&counted);
        Ok(Self::of_areas(intersection, area, counted.area(), found))
    }

    fn of_areas(intersection: u64, predicted: u64, truth: u64, found: bool) -> Self {
        Self {
            intersection,
            union: predicted + truth - intersection,
            predicted,
            truth,
            found,
            box_hit: None,
        }
    }

    /// The same, with what became of the box.
    pub fn with_box_hit(self, box_hit: Option<bool>) -> Self {
        Self { box_hit, ..self }
    }

    /// The same, had the predicted mask been empty.
    pub fn blanked(&self) -> Self {
        Self {
            intersection: 0,
            union: self.truth,
            predicted: 0,
            truth: self.truth,
            found: self.found,
            box_hit: self.box_hit.map(|_| false),
        }
    }

    /// Whether the truth has any pixel.
    pub fn has_target(&self) -> bool {
        self.truth > 0
    }

    /// IoU of the masks, 0 to 1: 1 if both are empty.
    pub fn iou(&self) -> f64 {
        if self.union == 0 {
            1.0
        } else {
            self.intersection as f64 / self.union as f64
        }
    }
}

/// REC's question: does the predicted box hit the true one, with an IoU strictly above one half?
///
/// `predicted` is XYXY in pixel indices with no one added, all zero for an empty
/// mask, as [`Mask::official_box`] gives it. `truth` is XYXY, from the annotation's
/// x, y, width and height, each rounded to f16. Areas are plain products of side
/// lengths; the intersection is 0 unless both its sides are positive, and the IoU
/// is 0 if the union is not positive.
pub fn rec_hit(predicted: [u32; 4], truth: [f32; 4]) -> bool {
    // Exact: f64 holds products and sums of such numbers without rounding.
    let (p, t) = (predicted.map(f64::from), truth.map(f64::from));
    let area = |[x1, y1, x2, y2]: [f64; 4]| (x2 - x1) * (y2 - y1);
    let width = p[2].min(t[2]) - p[0].max(t[0]);
    let height = p[3].min(t[3]) - p[1].max(t[1]);
    let intersection = if width > 0.0 && height > 0.0 {
        width * height
    } else {
        0.0
    };
    let union = area(p) + area(t) - intersection;
    union > 0.0 && intersection / union > 0.5
}

fn size(mask: &Mask) -> [usize; 2] {
    [mask.height(), mask.width()]
}

fn check_sizes(found: [usize; 2], expected: [usize; 2]) -> Result<(), MaskError> {
    if found == expected {
        return Ok(());
    }
    Err(MaskError::Mismatch {
        height: found[0],
        width: found[1],
        other_height: expected[0],
        other_width: expected[1],
    })
}
