//! Rows packed for the innermost loop, as strips of a few rows each.

use std::{mem::MaybeUninit, ops::Range};

use crate::{
    epilogue::RowScale,
    instruction_set::vectorised,
    memory::Aligned,
    numbers::each,
    packing::pair,
    precision::{int8_scales, largest_magnitude, round_to_bf16, round_to_int8},
    tile::{BLOCK, Tile, Unit},
};

/// Rows packed as strips, all of as many rows but the last one.
pub(crate) struct Strips {
    units: Aligned<u32>,
    /// Of each strip's rows, for whole numbers.
    scales: Vec<Vec<RowScale>>,
    rows: usize,
    rows_a_strip: usize,
    /// Steps of a row, filled up to whole blocks.
    stride: usize,
}

impl Strips {
    /// Packs `(rows, inputs)` numbers; there is a row at least.
    pub(crate) fn pack(tile: Tile, x: &[f32], rows: usize, inputs: usize) -> Self {
        // A block of zeros if nothing goes in.
        let steps = inputs.div_ceil(tile.unit.inputs()).max(1);
        let stride = steps.next_multiple_of(BLOCK);
        // As few strips as there can be, and those as even as can be.
        let rows_a_strip = rows.div_ceil(rows.div_ceil(tile.rows()));
        let pack = |strip: usize, units: &mut [MaybeUninit<u32>]| {
            let first = strip * rows_a_strip;
            let rows = rows_a_strip.min(rows - first);
            let x = &x[first * inputs..][..rows * inputs];
            pack_strip(tile.set, tile.unit, x, rows, inputs, units)
        };
        // SAFETY: a strip is of whole rows, which are of whole blocks, and each of them is written.
        let (units, scales) =
            unsafe { Aligned::in_parts(rows * stride, rows_a_strip * stride, pack) };
        Self {
            units,
            scales,
            rows,
            rows_a_strip,
            stride,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.scales.len()
    }

    pub(crate) fn rows(&self, strip: usize) -> Range<usize> {
        let start = strip * self.rows_a_strip;
        start..self.rows.min(start + self.rows_a_strip)
    }

    /// Of each row of a strip, for whole numbers.
    pub(crate) fn scales(&self, strip: usize) -> &[RowScale] {
        &self.scales[strip]
    }

    /// Some steps of a strip, from the start of a block on.
    pub(crate) fn units(&self, strip: usize, start: usize, len: usize) -> &[u32] {
        let rows = self.rows(strip.min(self.count() - 1));
        let at = rows.start * self.stride + start * rows.len();
        &self.units[at..at + len.next_multiple_of(BLOCK) * rows.len()]
    }
}

vectorised! {
    /// Writes all units of a strip; and what its whole numbers are turned back by.
    ///
    /// By index, and without closures that do much: iterators that step cost a division, and what is not inlined is
    /// compiled for no instruction set.
    fn pack_strip(
        unit: Unit,
        x: &[f32],
        rows: usize,
        inputs: usize,
        units: &mut [MaybeUninit<u32>],
    ) -> Vec<RowScale> {
        let mut scales = match unit {
            Unit::Float | Unit::Bf16Pair => Vec::new(),
            Unit::ShortPair | Unit::ByteQuad | Unit::SignedQuad => vec![RowScale::default(); rows],
        };
        let (blocks, _) = units.as_chunks_mut::<BLOCK>();
        let count = blocks.len() / rows;
        for row in 0..rows {
            let x = &x[row * inputs..][..inputs];
            let mut write = |index: usize, block: [u32; BLOCK]| {
                blocks[index * rows + row] = block.map(MaybeUninit::new);
            };
            match unit {
                Unit::Float => {
                    let parts = Parts::<BLOCK>::of(x);
                    for index in 0..count {
                        write(index, converted(parts.get(index), f32::to_bits));
                    }
                }
                Unit::Bf16Pair => {
                    let parts = Parts::<{ 2 * BLOCK }>::of(x);
                    for index in 0..count {
                        let halves: [_; 2 * BLOCK] = converted(parts.get(index), round_to_bf16);
                        write(index, converted(halves.as_chunks().0, pair));
                    }
                }
                Unit::ShortPair => {
                    let (inverse, back) = int8_scales(largest_magnitude(x));
                    scales[row].scale = back;
                    let short = |x| i16::from(round_to_int8(x, inverse)) as u16;
                    let parts = Parts::<{ 2 * BLOCK }>::of(x);
                    for index in 0..count {
                        let shorts: [_; 2 * BLOCK] = converted(parts.get(index), short);
                        write(index, converted(shorts.as_chunks().0, pair));
                    }
                }
                Unit::ByteQuad | Unit::SignedQuad => {
                    let (inverse, back) = int8_scales(largest_magnitude(x));
                    scales[row].scale = back;
                    let mut sums = [0; BLOCK];
                    let parts = Parts::<{ 4 * BLOCK }>::of(x);
                    for index in 0..count {
                        let bytes: [_; 4 * BLOCK] =
                            converted(parts.get(index), |x| round_to_int8(x, inverse) as u8);
                        for bytes in bytes.as_chunks::<BLOCK>().0 {
                            for (sum, &byte) in sums.iter_mut().zip(bytes) {
                                *sum += i32::from(byte as i8);
                            }
                        }
                        write(index, converted(bytes.as_chunks().0, u32::from_le_bytes));
                    }
                    if unit == Unit::ByteQuad {
                        // The weights are raised by 128, so the sums are larger by 128 times the sum of the row.
                        scales[row].excess = sums.iter().sum::<i32>().wrapping_mul(128);
                    }
                }
            }
        }
        scales
    }
}

/// A row in parts, the last one filled up with zeros.
struct Parts<'a, const N: usize> {
    whole: &'a [[f32; N]],
    last: [f32; N],
}

impl<'a, const N: usize> Parts<'a, N> {
    #[inline(always)]
    fn of(x: &'a [f32]) -> Self {
        let (whole, rest) = x.as_chunks();
        let mut last = [0.0; N];
        last[..rest.len()].copy_from_slice(rest);
        Self { whole, last }
    }

    #[inline(always)]
    fn get(&self, index: usize) -> &[f32; N] {
        self.whole.get(index).unwrap_or(&self.last)
    }
}

/// As many numbers, converted: in a loop of their own, which the compiler vectorises.
#[inline(always)]
fn converted<A: Copy, B: Copy + Default, const N: usize>(
    from: &[A],
    convert: impl Fn(A) -> B,
) -> [B; N] {
    let mut converted = [B::default(); N];
    each(from, &mut converted, convert);
    converted
}
