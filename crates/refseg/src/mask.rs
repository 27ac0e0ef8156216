//! Masks: from a network's probabilities to pixels of the picture, and from there to
//! areas, boxes, run lengths and files.
//!
//! This is the one place where probabilities become yes or no.

use std::fmt;
use std::path::Path;

use ::image::ExtendedColorType;
use hotcoco::mask as coco;

use crate::image::{self, ImageError};

/// Threshold at which a pixel counts as foreground: probability ≥ 0.5.
pub const THRESHOLD: f32 = 0.5;

/// A binary mask of the size of its picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    height: usize,
    width: usize,
    /// Row by row from the top left.
    bits: Vec<bool>,
}

/// Run-length code of a mask in COCO's compressed form, as pycocotools reads and
/// writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rle {
    /// Height and width of the mask.
    pub size: [usize; 2],
    /// Lengths of the runs, background first, going down each column from the left;
    /// in pycocotools' text form.
    pub counts: String,
}

impl Mask {
    /// A mask of `height` × `width` without foreground.
    ///
    /// # Errors
    /// [`MaskError::Size`].
    pub fn empty(height: usize, width: usize) -> Result<Self, MaskError> {
        let pixels = pixel_count(height, width)?;
        Ok(Self {
            height,
            width,
            bits: vec![false; pixels],
        })
    }

    /// Wraps a mask given row by row from the top left.
    ///
    /// # Errors
    /// [`MaskError::Size`]; [`MaskError::Length`] unless there are `height * width` bits.
    pub fn from_bits(height: usize, width: usize, bits: Vec<bool>) -> Result<Self, MaskError> {
        let expected = pixel_count(height, width)?;
        check_length((height, width), bits.len(), expected)?;
        Ok(Self {
            height,
            width,
            bits,
        })
    }

    /// Resizes probabilities from `(h, w)` to `(out_h, out_w)` as [`resize_bilinear`]
    /// does, then takes every pixel that reaches `threshold`.
    ///
    /// # Errors
    /// [`MaskError::Size`]; [`MaskError::Length`] unless there are `h * w` probabilities.
    pub fn from_probabilities(
        probs: &[f32],
        h: usize,
        w: usize,
        out_h: usize,
        out_w: usize,
        threshold: f32,
    ) -> Result<Self, MaskError> {
        let mut bits = Vec::with_capacity(pixel_count(out_h, out_w)?);
        for_each_bilinear_row(probs, (h, w), (out_h, out_w), |row| {
            bits.extend(row.iter().map(|&p| p >= threshold));
        })?;
        Self::from_bits(out_h, out_w, bits)
    }

    /// Resizes logits as [`resize_bilinear`] does, then takes every pixel that is above `threshold`.
    ///
    /// # Errors
    /// [`MaskError::Size`]; [`MaskError::Length`] unless `logits` fill `from`.
    pub fn from_logits(
        logits: &[f32],
        from: (usize, usize),
        to: (usize, usize),
        threshold: f32,
    ) -> Result<Self, MaskError> {
        let mut bits = Vec::with_capacity(pixel_count(to.0, to.1)?);
        for_each_bilinear_row(logits, from, to, |row| {
            bits.extend(row.iter().map(|&logit| logit > threshold));
        })?;
        Self::from_bits(to.0, to.1, bits)
    }

    /// Union of polygons, each a list x, y, x, y, … in pixels, rasterised as COCO does
    /// it. Fewer than three points cover nothing; a last lone number is ignored.
    ///
    /// # Errors
    /// [`MaskError::Size`].
    pub fn from_polygons(
        polygons: &[Vec<f64>],
        height: usize,
        width: usize,
    ) -> Result<Self, MaskError> {
        let (h, w) = coco_size(height, width)?;
        let rle = coco::fr_polys(polygons, h, w).map_err(|error| MaskError::rle(h, w, error))?;
        Self::from_run_lengths(height, width, &rle.counts)
    }

    /// Decodes a compressed COCO run-length code.
    ///
    /// # Errors
    /// [`MaskError::Size`]; [`MaskError::Rle`] if `counts` is malformed;
    /// [`MaskError::Length`] if the runs do not add up to the size.
    pub fn from_rle(rle: &Rle) -> Result<Self, MaskError> {
        Self::from_run_lengths(rle.size[0], rle.size[1], &rle.runs()?)
    }

    /// Decodes COCO's uncompressed run-length code: lengths of the runs, background
    /// first, going down each column from the left.
    ///
    /// # Errors
    /// [`MaskError::Size`]; [`MaskError::Length`] if the runs do not add up to the size.
    pub fn from_run_lengths(height: usize, width: usize, runs: &[u32]) -> Result<Self, MaskError> {
        check_runs([height, width], runs)?;
        let mut mask = Self::empty(height, width)?;
        let mut at = 0;
        for (index, &run) in runs.iter().enumerate() {
            let end = at + run as usize;
            if index % 2 == 1 {
                for pixel in at..end {
                    mask.bits[pixel % height * width + pixel / height] = true;
                }
            }
            at = end;
        }
        Ok(mask)
    }

    /// Encodes the mask as pycocotools does, to the same text.
    pub fn to_rle(&self) -> Rle {
        // Columns in blocks: whole cache lines are read, and few are written at a time.
        const BLOCK: usize = 32;
        let mut columns = vec![0; self.bits.len()];
        for left in (0..self.width).step_by(BLOCK) {
            let block = left..self.width.min(left + BLOCK);
            for (y, row) in self.bits.chunks_exact(self.width).enumerate() {
                for x in block.clone() {
                    columns[x * self.height + y] = u8::from(row[x]);
                }
            }
        }
        let runs = coco::encode(&columns, self.height as u32, self.width as u32)
            .expect("a Mask has height * width bits, and no more than u32 counts");
        Rle {
            size: [self.height, self.width],
            counts: coco::rle_to_string(&runs),
        }
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether each pixel is foreground, row by row from the top left.
    pub fn bits(&self) -> &[bool] {
        &self.bits
    }

    /// Number of foreground pixels.
    pub fn area(&self) -> u64 {
        self.bits.iter().map(|&bit| u64::from(bit)).sum()
    }

    /// Smallest box around the foreground: XYXY in pixels, along the pixels' outer
    /// edges, so that `x2 - x1` is the number of columns. `None` if there is no
    /// foreground.
    pub fn bounds(&self) -> Option<[f32; 4]> {
        let [x1, y1, x2, y2] = self.extent()?;
        Some([x1 as f32, y1 as f32, (x2 + 1) as f32, (y2 + 1) as f32])
    }

    /// The box of the reference's REC metric: least and greatest column and row of the
    /// foreground as XYXY pixel indices, with no one added; all zero if there is no
    /// foreground.
    ///
    /// The metric takes pixels strictly above one half, so the mask has to be made with
    /// `0.5_f32.next_up()` as its threshold. For anything else see [`Mask::bounds`].
    pub fn official_box(&self) -> [u32; 4] {
        self.extent()
            .map_or([0; 4], |extent| extent.map(|index| index as u32))
    }

    /// Pixels in both masks, and pixels in at least one of them.
    ///
    /// # Errors
    /// [`MaskError::Mismatch`] if the sizes differ.
    pub fn intersection_union(&self, other: &Self) -> Result<(u64, u64), MaskError> {
        self.check_size(other)?;
        let (mut intersection, mut union) = (0, 0);
        for (&a, &b) in self.bits.iter().zip(&other.bits) {
            intersection += u64::from(a & b);
            union += u64::from(a | b);
        }
        Ok((intersection, union))
    }

    /// The pixels in at least one of two masks.
    ///
    /// # Errors
    /// [`MaskError::Mismatch`] if the sizes differ.
    pub fn union(&self, other: &Self) -> Result<Self, MaskError> {
        self.check_size(other)?;
        let bits = self.bits.iter().zip(&other.bits);
        Ok(Self {
            height: self.height,
            width: self.width,
            bits: bits.map(|(a, b)| a | b).collect(),
        })
    }

    /// Writes the mask as a grey PNG: 255 is foreground, 0 background. The file
    /// appears complete or not at all.
    ///
    /// # Errors
    /// [`ImageError::Write`].
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<(), ImageError> {
        let levels: Vec<u8> = self.bits.iter().map(|&bit| u8::from(bit) * 255).collect();
        let size = (self.width as u32, self.height as u32);
        image::save_png(path.as_ref(), size, ExtendedColorType::L8, &levels)
    }

    fn check_size(&self, other: &Self) -> Result<(), MaskError> {
        if (self.height, self.width) == (other.height, other.width) {
            return Ok(());
        }
        Err(MaskError::Mismatch {
            height: self.height,
            width: self.width,
            other_height: other.height,
            other_width: other.width,
        })
    }

    /// First and last column and row of the foreground, as XYXY indices.
    fn extent(&self) -> Option<[usize; 4]> {
        let mut extent: Option<[usize; 4]> = None;
        for (y, row) in self.bits.chunks_exact(self.width).enumerate() {
            let Some(first) = row.iter().position(|&bit| bit) else {
                continue;
            };
            let last = row.iter().rposition(|&bit| bit).unwrap_or(first);
            let [x1, y1, x2, _] = extent.unwrap_or([first, y, last, y]);
            extent = Some([x1.min(first), y1, x2.max(last), y]);
        }
        extent
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Mask({}x{}, area {})",
            self.height,
            self.width,
            self.area()
        )
    }
}

impl Rle {
    /// Encodes run lengths, background first, going down each column from the left.
    ///
    /// # Errors
    /// [`MaskError::Size`]; [`MaskError::Length`] if the runs do not add up to the size.
    pub fn from_runs(size: [usize; 2], runs: &[u32]) -> Result<Self, MaskError> {
        let (h, w) = coco_size(size[0], size[1])?;
        check_runs(size, runs)?;
        let counts = coco::rle_to_string(&hotcoco::Rle {
            h,
            w,
            counts: runs.to_vec(),
        });
        Ok(Self { size, counts })
    }

    /// Lengths of the runs, background first, going down each column from the left.
    ///
    /// # Errors
    /// [`MaskError::Size`]; [`MaskError::Rle`] if `counts` is malformed;
    /// [`MaskError::Length`] if the runs do not add up to the size.
    pub fn runs(&self) -> Result<Vec<u32>, MaskError> {
        let (h, w) = coco_size(self.size[0], self.size[1])?;
        let decoded = coco::rle_from_string(&self.counts, h, w)
            .map_err(|error| MaskError::rle(h, w, error))?;
        check_runs(self.size, &decoded.counts)?;
        Ok(decoded.counts)
    }
}

/// Why a mask could not be made or compared. Sizes are (height, width).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// A side is zero, or the run lengths of the mask would not fit 32 bits.
    #[error(
        "a mask of {height}x{width} (height x width): both sides must be positive and the area below 2^32"
    )]
    Size {
        /// Height asked for.
        height: usize,
        /// Width asked for.
        width: usize,
    },
    /// The number of values is not height × width.
    #[error("a mask of {height}x{width} (height x width) needs {expected} values; found {found}")]
    Length {
        /// Height of the mask.
        height: usize,
        /// Width of the mask.
        width: usize,
        /// Values given.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// Two masks of different sizes were compared.
    #[error(
        "masks of {height}x{width} and {other_height}x{other_width} (height x width) cannot be compared"
    )]
    Mismatch {
        /// Height of the first mask.
        height: usize,
        /// Width of the first mask.
        width: usize,
        /// Height of the second mask.
        other_height: usize,
        /// Width of the second mask.
        other_width: usize,
    },
    /// `counts` is not a run-length code of a mask of this size.
    #[error("the run-length code of a mask of {height}x{width} (height x width) is malformed")]
    Rle {
        /// Height in the code.
        height: u32,
        /// Width in the code.
        width: u32,
        /// What is wrong with it.
        #[source]
        source: Box<hotcoco::Error>,
    },
}

impl MaskError {
    fn rle(height: u32, width: u32, source: hotcoco::Error) -> Self {
        Self::Rle {
            height,
            width,
            source: Box::new(source),
        }
    }
}

/// Bilinear resizing without antialiasing, in f32: the rule by which the reference
/// brings probabilities to the size of the picture (PyTorch's `interpolate` with
/// `align_corners=False`). Values are row by row, sizes (height, width).
///
/// # Errors
/// [`MaskError::Size`]; [`MaskError::Length`] unless `values` fill `from`.
pub fn resize_bilinear(
    values: &[f32],
    from: (usize, usize),
    to: (usize, usize),
) -> Result<Vec<f32>, MaskError> {
    let mut resized = Vec::with_capacity(pixel_count(to.0, to.1)?);
    for_each_bilinear_row(values, from, to, |row| resized.extend_from_slice(row))?;
    Ok(resized)
}

/// Calls `emit` with each row of the resized values, from the top.
fn for_each_bilinear_row(
    values: &[f32],
    from: (usize, usize),
    to: (usize, usize),
    mut emit: impl FnMut(&[f32]),
) -> Result<(), MaskError> {
    let expected = pixel_count(from.0, from.1)?;
    check_length(from, values.len(), expected)?;
    pixel_count(to.0, to.1)?;
    let columns: Vec<Tap> = (0..to.1).map(|x| Tap::new(x, from.1, to.1)).collect();
    let mut resized = vec![0.0; to.1];
    for y in 0..to.0 {
        let tap = Tap::new(y, from.0, to.0);
        let above = &values[tap.low * from.1..][..from.1];
        let below = &values[tap.high * from.1..][..from.1];
        for (value, column) in resized.iter_mut().zip(&columns) {
            *value = tap.mix(column.mix_of(above), column.mix_of(below));
        }
        emit(&resized);
    }
    Ok(())
}

/// The two neighbours along one axis that an output position lies between.
struct Tap {
    low: usize,
    high: usize,
    low_weight: f32,
    high_weight: f32,
}

impl Tap {
    fn new(index: usize, from: usize, to: usize) -> Self {
        let scale = from as f32 / to as f32;
        let position = (scale * (index as f32 + 0.5) - 0.5).max(0.0);
        // Rounding can carry the position past the end when enlarging very much.
        let low = (position as usize).min(from - 1);
        let high_weight = (position - low as f32).clamp(0.0, 1.0);
        Self {
            low,
            high: (low + 1).min(from - 1),
            low_weight: 1.0 - high_weight,
            high_weight,
        }
    }

    fn mix(&self, low: f32, high: f32) -> f32 {
        self.low_weight * low + self.high_weight * high
    }

    fn mix_of(&self, line: &[f32]) -> f32 {
        self.mix(line[self.low], line[self.high])
    }
}

/// Checks the size of a mask. COCO's run lengths are 32-bit, so its area must be, too.
fn pixel_count(height: usize, width: usize) -> Result<usize, MaskError> {
    coco_size(height, width)?;
    Ok(height * width)
}

fn coco_size(height: usize, width: usize) -> Result<(u32, u32), MaskError> {
    let area = height.checked_mul(width);
    match (area, u32::try_from(height), u32::try_from(width)) {
        (Some(area), Ok(h), Ok(w)) if area > 0 && u32::try_from(area).is_ok() => Ok((h, w)),
        _ => Err(MaskError::Size { height, width }),
    }
}

/// Checks that runs add up to the size, which must be that of a mask.
fn check_runs([height, width]: [usize; 2], runs: &[u32]) -> Result<(), MaskError> {
    let covered: u64 = runs.iter().map(|&run| u64::from(run)).sum();
    check_length(
        (height, width),
        covered as usize,
        pixel_count(height, width)?,
    )
}

fn check_length(
    (height, width): (usize, usize),
    found: usize,
    expected: usize,
) -> Result<(), MaskError> {
    if found == expected {
        return Ok(());
    }
    Err(MaskError::Length {
        height,
        width,
        found,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(height: usize, width: usize, inside: impl Fn(i64, i64) -> bool) -> Mask {
        let bit = |index: usize| inside((index % width) as i64, (index / width) as i64);
        let bits = (0..height * width).map(bit).collect();
        Mask::from_bits(height, width, bits).expect("one bit a pixel")
    }

    fn disc() -> Mask {
        drawn(48, 64, |x, y| (x - 20).pow(2) + (y - 25).pow(2) < 225)
    }

    /// From the specification, with the corner cases of a size.
    #[test]
    fn bilinear_matches_reference() -> Result<(), MaskError> {
        let values = [0.0, 1.0, 4.0, 9.0, 16.0, 25.0];
        let larger = resize_bilinear(&values, (2, 3), (3, 5))?;
        let expected = [
            0.0, 0.4, 1.0, 2.8, 4.0, 4.5, 6.1, 8.5, 12.1, 14.5, 9.0, 11.8, 16.0, 21.4, 25.0,
        ];
        for (found, expected) in larger.iter().zip(expected) {
            // The specification prints one decimal; f32 rounds at about 1e-6 here.
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert_eq!(resize_bilinear(&values, (2, 3), (1, 2))?, [5.5, 13.0]);
        assert_eq!(resize_bilinear(&values, (2, 3), (2, 3))?, values);
        assert_eq!(resize_bilinear(&[0.5], (1, 1), (2, 3))?, [0.5; 6]);
        Ok(())
    }

    #[test]
    fn threshold_is_inclusive() -> Result<(), MaskError> {
        let mask = Mask::from_probabilities(&[0.5, 0.499, 1.0], 1, 3, 1, 3, THRESHOLD)?;
        assert_eq!(mask.bits(), [true, false, true]);
        let nan = Mask::from_probabilities(&[f32::NAN], 1, 1, 1, 1, THRESHOLD)?;
        assert_eq!(nan.bits(), [false]);
        let mask = Mask::from_logits(&[0.0, -0.1, 0.1], (1, 3), (1, 3), 0.0)?;
        assert_eq!(
            mask.bits(),
            [false, false, true],
            "of logits it is exclusive"
        );
        let above = 0.5_f32.next_up();
        let mask = Mask::from_probabilities(&[0.5, 0.501], 1, 2, 1, 2, above)?;
        assert_eq!(mask.bits(), [false, true]);
        Ok(())
    }

    #[test]
    fn boxes_of_a_drawn_mask() -> Result<(), MaskError> {
        let mask = drawn(5, 7, |x, y| (2..5).contains(&x) && (1..3).contains(&y));
        assert_eq!(mask.area(), 6);
        assert_eq!(mask.bounds(), Some([2.0, 1.0, 5.0, 3.0]));
        assert_eq!(mask.official_box(), [2, 1, 4, 2]);
        let empty = Mask::empty(5, 7)?;
        assert_eq!(
            (empty.area(), empty.bounds(), empty.official_box()),
            (0, None, [0; 4])
        );
        Ok(())
    }

    #[test]
    fn intersection_and_union_count_pixels() -> Result<(), MaskError> {
        let left = drawn(2, 4, |x, _| x < 3);
        let right = drawn(2, 4, |x, _| x > 1);
        assert_eq!(left.intersection_union(&right)?, (2, 8));
        assert_eq!(left.intersection_union(&Mask::empty(2, 4)?)?, (0, 6));
        let other = left.intersection_union(&Mask::empty(4, 2)?);
        assert!(matches!(other, Err(MaskError::Mismatch { .. })));
        Ok(())
    }

    /// Strings written by pycocotools 2.0.11.
    #[test]
    fn rle_matches_pycocotools() -> Result<(), MaskError> {
        let cases = [
            (drawn(3, 4, |_, _| false), "<"),
            (drawn(3, 4, |_, _| true), "0<"),
            (drawn(1, 5, |x, _| x == 0 || x > 2), "0121"),
            (drawn(3, 1, |_, y| y > 0), "12"),
            (
                drawn(6, 6, |x, y| (x + y) % 2 == 1),
                "1110010O0010O0010O0010O0010O000",
            ),
            (
                disc(),
                "d9;S14M2M4M2O0O2N2O0O2O00000000000000000001N101N2N101N3L3N3LnZ1",
            ),
        ];
        for (mask, counts) in cases {
            let rle = mask.to_rle();
            assert_eq!(
                (rle.size, rle.counts.as_str()),
                ([mask.height, mask.width], counts)
            );
            assert_eq!(Mask::from_rle(&rle)?, mask);
        }
        Ok(())
    }

    #[test]
    fn runs_are_those_of_the_code() -> Result<(), MaskError> {
        let rle = drawn(2, 3, |x, _| x == 1).to_rle();
        assert_eq!(rle.runs()?, [2, 2, 2]);
        assert_eq!(Rle::from_runs([2, 3], &[2, 2, 2])?, rle);
        assert!(matches!(
            Rle::from_runs([2, 3], &[2, 2]),
            Err(MaskError::Length {
                found: 4,
                expected: 6,
                ..
            })
        ));
        let size = Rle::from_runs([usize::MAX, 2], &[0]);
        assert!(matches!(size, Err(MaskError::Size { .. })));
        Ok(())
    }

    #[test]
    fn run_lengths_go_down_the_columns() -> Result<(), MaskError> {
        let mask = Mask::from_run_lengths(3, 4, &[1, 2, 0, 3, 6])?;
        assert_eq!(mask, drawn(3, 4, |x, y| x == 1 || (x == 0 && y > 0)));
        for runs in [&[11][..], &[12, 1], &[], &[u32::MAX, u32::MAX]] {
            let result = Mask::from_run_lengths(3, 4, runs);
            assert!(matches!(result, Err(MaskError::Length { .. })), "{runs:?}");
        }
        let sizeless = Mask::from_run_lengths(0, 4, &[]);
        assert!(matches!(sizeless, Err(MaskError::Size { .. })));
        Ok(())
    }

    #[test]
    fn malformed_rle_is_an_error() {
        let rle = |h, w, counts: &str| {
            Mask::from_rle(&Rle {
                size: [h, w],
                counts: counts.to_owned(),
            })
        };
        for counts in ["0=", "é", "\u{1}", "ooooooooooooooooo", "=O", "1235"] {
            assert!(
                matches!(
                    rle(3, 4, counts),
                    Err(MaskError::Rle { .. } | MaskError::Length { .. })
                ),
                "{counts}"
            );
        }
        // pycocotools leaves the rest of such a mask uninitialised.
        assert!(matches!(
            rle(3, 4, "3"),
            Err(MaskError::Length {
                found: 3,
                expected: 12,
                ..
            })
        ));
        for (h, w) in [(0, 4), (4, 0), (1 << 20, 1 << 20), (usize::MAX, 2)] {
            assert!(matches!(rle(h, w, "0"), Err(MaskError::Size { .. })));
        }
    }

    /// From the specification.
    #[test]
    fn polygons_match_coco() -> Result<(), MaskError> {
        let polygons = [
            vec![10.2, 5.7, 50.9, 8.1, 60.4, 40.3, 33.3, 55.8, 5.5, 30.0],
            vec![70.0, 50.0, 79.6, 50.0, 79.6, 59.7, 70.0, 59.7],
            vec![-3.0, 2.0, 4.4, -1.0, 3.9, 9.2],
        ];
        let areas = [1892, 100, 27];
        for (polygon, area) in polygons.iter().zip(areas) {
            assert_eq!(
                Mask::from_polygons(std::slice::from_ref(polygon), 60, 80)?.area(),
                area
            );
        }
        let union = Mask::from_polygons(&polygons, 60, 80)?;
        assert_eq!(union.area(), 2019);
        let fnv = union
            .bits
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &bit| {
                (hash ^ u64::from(bit)).wrapping_mul(0x100_0000_01b3)
            });
        assert_eq!(fnv, 0x7c5c_cacb_42a6_7716);
        Ok(())
    }

    #[test]
    fn odd_polygons_are_no_panic() -> Result<(), MaskError> {
        for polygon in [
            vec![],
            vec![1.0; 5],
            vec![f64::NAN, 1e300, f64::INFINITY, -1e300, 3.0, 4.0, 5.0],
        ] {
            Mask::from_polygons(&[polygon], 6, 8)?;
        }
        assert_eq!(Mask::from_polygons(&[], 6, 8)?.area(), 0);
        Ok(())
    }

    #[test]
    fn png_holds_black_and_white() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("mask.png");
        disc().save_png(&path)?;
        let image = image::Image::open(&path)?;
        assert_eq!((image.height(), image.width()), (48, 64));
        let (pixels, _) = image.pixels().as_chunks::<3>();
        for (pixel, bit) in pixels.iter().zip(disc().bits()) {
            assert_eq!(*pixel, [u8::from(*bit) * 255; 3]);
        }
        Ok(())
    }

    fn any_mask() -> impl Strategy<Value = Mask> {
        let size = (1usize..40, 1usize..40);
        let mask = |(height, width): (usize, usize)| {
            // Dense, sparse, and nothing or everything.
            let density = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
            density.prop_flat_map(move |density| {
                prop::collection::vec(prop::bool::weighted(density), height * width).prop_map(
                    move |bits| Mask {
                        height,
                        width,
                        bits,
                    },
                )
            })
        };
        size.prop_flat_map(mask)
    }

    proptest! {
        #[test]
        fn rle_round_trips(mask in any_mask()) {
            let decoded = Mask::from_rle(&mask.to_rle());
            prop_assert_eq!(decoded.ok(), Some(mask));
        }

        #[test]
        fn any_rle_text_is_no_panic(counts in "[0-~]{0,20}", h in 1usize..9, w in 1usize..9) {
            let _ = Mask::from_rle(&Rle { size: [h, w], counts });
        }

        #[test]
        fn bilinear_stays_within_its_input(
            values in prop::collection::vec(0.0f32..1.0, 12),
            to in (1usize..50, 1usize..50),
        ) {
            let least = values.iter().copied().fold(f32::MAX, f32::min);
            let most = values.iter().copied().fold(f32::MIN, f32::max);
            let resized = resize_bilinear(&values, (3, 4), to);
            for value in resized.unwrap_or_default() {
                prop_assert!(value >= least - 1e-6 && value <= most + 1e-6);
            }
        }
    }
}
