//! Predicted masks as run lengths: compared with a true mask, never unpacked.

use refseg::mask::{Mask, MaskError, Rle};

/// Lengths of the runs of a mask, background first, going down each column from the left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// Height and width.
    size: [usize; 2],
    lengths: Vec<u32>,
}

impl Runs {
    /// Reads a run-length code.
    ///
    /// # Errors
    /// As [`Rle::runs`].
    pub fn decode(rle: &Rle) -> Result<Self, MaskError> {
        Ok(Self {
            size: rle.size,
            lengths: rle.runs()?,
        })
    }

    /// Height and width in pixels.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Number of foreground pixels.
    pub fn area(&self) -> u64 {
        let foreground = self.lengths.iter().skip(1).step_by(2);
        foreground.map(|&length| u64::from(length)).sum()
    }

    /// The box of REC's metric, XYXY, as [`Mask::official_box`] gives it.
    pub fn official_box(&self) -> [u32; 4] {
        let mut extent: Option<[usize; 4]> = None;
        self.for_each_segment(|x, y, rows| {
            let [x1, y1, x2, y2] = extent.unwrap_or([x, y, x, y]);
            extent = Some([x1.min(x), y1.min(y), x2.max(x), y2.max(y + rows - 1)]);
        });
        extent.map_or([0; 4], |extent| extent.map(|index| index as u32))
    }

    /// Foreground pixels that are also in a mask of the same size.
    pub(crate) fn overlap(&self, mask: &Mask) -> u64 {
        let (bits, width) = (mask.bits(), mask.width());
        let mut shared = 0;
        self.for_each_segment(|x, y, rows| {
            let column = bits.iter().skip(y * width + x).step_by(width).take(rows);
            shared += column.map(|&bit| u64::from(bit)).sum::<u64>();
        });
        shared
    }

    /// Calls `visit` with column, first row and number of rows of each stretch of
    /// foreground within a column.
    fn for_each_segment(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let height = self.size[0];
        let mut at = 0;
        for (index, &length) in self.lengths.iter().enumerate() {
            let end = at + length as usize;
            while index % 2 == 1 && at < end {
                let rows = (height - at % height).min(end - at);
                visit(at / height, at % height, rows);
                at += rows;
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use refseg::random::SplitMix64;

    use super::*;

    /// A mask of random pixels, dense or sparse, and its runs.
    fn random(random: &mut SplitMix64) -> Result<(Mask, Runs), MaskError> {
        let (height, width) = (7, 5);
        let density = random.uniform();
        let bits = (0..height * width).map(|_| random.uniform() < density);
        let mask = Mask::from_bits(height, width, bits.collect())?;
        let runs = Runs::decode(&mask.to_rle())?;
        Ok((mask, runs))
    }

    #[test]
    fn runs_measure_as_masks_do() -> Result<(), MaskError> {
        let mut numbers = SplitMix64::new(1);
        for _ in 0..500 {
            let (mask, runs) = random(&mut numbers)?;
            let (other, _) = random(&mut numbers)?;
            assert_eq!(runs.area(), mask.area());
            assert_eq!(runs.official_box(), mask.official_box());
            assert_eq!(runs.overlap(&other), mask.intersection_union(&other)?.0);
        }
        Ok(())
    }

    #[test]
    fn a_run_goes_on_in_the_next_column() -> Result<(), MaskError> {
        // Rows 1 and 2 of the first column, all of the second, row 0 of the third.
        let runs = Runs::decode(&Rle::from_runs([3, 4], &[1, 6, 5])?)?;
        assert_eq!(runs.area(), 6);
        assert_eq!(runs.official_box(), [0, 0, 2, 2]);
        let right = Mask::from_bits(3, 4, [false, false, true, true].repeat(3))?;
        assert_eq!(runs.overlap(&right), 1);
        Ok(())
    }
}
