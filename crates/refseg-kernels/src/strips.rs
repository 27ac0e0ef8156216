//! Rows packed for the innermost loop, as strips of a few rows each.

use std::{mem::MaybeUninit, ops::Range};

use crate::{
    Precision,
    epilogue::RowScale,
    instruction_set::vectorised,
    memory::Aligned,
    numbers::each,
    packing::pair,
    precision::{
        MOST_INT16, ROUND, largest_magnitude, round_to_bf16, round_to_whole, whole_scales,
    },
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
    pub(crate) fn pack(
        tile: Tile,
        precision: Precision,
        x: &[f32],
        rows: usize,
        inputs: usize,
    ) -> Self {
        // A block of zeros if nothing goes in.
        let steps = inputs.div_ceil(tile.unit.inputs()).max(1);
        let stride = steps.next_multiple_of(BLOCK);
        // As few strips as there can be.
        let rows_a_strip = rows.div_ceil(rows.div_ceil(tile.rows()));
        let pack = |strip: usize, units: &mut [MaybeUninit<u32>]| {
            let first = strip * rows_a_strip;
            let rows = rows_a_strip.min(rows - first);
            let x = &x[first * inputs..][..rows * inputs];
            pack_strip(tile.set, tile.unit, precision, x, rows, inputs, units)
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
        precision: Precision,
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
                Unit::ShortPair if precision == Precision::Int16 => {
                    let (inverse, scale) = whole_scales(largest_magnitude(x), MOST_INT16);
                    scales[row].scale = scale;
                    let parts = Parts::<{ 2 * BLOCK }>::of(x);
                    for index in 0..count {
                        let shorts: [_; 2 * BLOCK] =
                            converted(parts.get(index), |x| round_to_whole(x, inverse));
                        write(index, converted(shorts.as_chunks().0, pair));
                    }
                }
                Unit::ShortPair => {
                    let (rounding, scale) = Rounding::of(x);
                    scales[row] = scale;
                    let short = |x| u16::from(rounding.byte(x));
                    let parts = Parts::<{ 2 * BLOCK }>::of(x);
                    for index in 0..count {
                        let shorts: [_; 2 * BLOCK] = converted(parts.get(index), short);
                        write(index, converted(shorts.as_chunks().0, pair));
                    }
                }
                Unit::ByteQuad | Unit::SignedQuad => {
                    let (rounding, mut scale) = Rounding::of(x);
                    let mut turned = 0;
                    if unit == Unit::SignedQuad {
                        turned = 0x80;
                        scale.zero += 128;
                    }
                    scales[row] = scale;
                    let parts = Parts::<{ 4 * BLOCK }>::of(x);
                    for index in 0..count {
                        let bytes: [_; 4 * BLOCK] =
                            converted(parts.get(index), |x| rounding.byte(x) ^ turned);
                        write(index, converted(bytes.as_chunks().0, u32::from_le_bytes));
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

/// What turns the numbers of a row into whole numbers from 0 to 255.
#[derive(Clone, Copy)]
struct Rounding {
    inverse: f32,
    round: f32,
}

impl Rounding {
    /// And what turns those back. The steps are the 254th part from the smallest number to the largest one, zero being
    /// one of them: it stays what it is. They are NaN if one of the numbers is NaN or infinite.
    #[inline(always)]
    fn of(x: &[f32]) -> (Self, RowScale) {
        let [lowest, highest] = limits(x);
        let (inverse, scale) = whole_scales(0.5 * highest - 0.5 * lowest, 127.0);
        // Of the smallest number: it becomes 0, and the largest one 254, or 255 if both are rounded up.
        let zero = (lowest * inverse + ROUND) - ROUND;
        let rounding = Self {
            inverse,
            round: ROUND - zero,
        };
        let zero = zero as i32;
        (rounding, RowScale { scale, zero })
    }

    /// The nearest whole number, ties to even.
    #[inline(always)]
    fn byte(self, x: f32) -> u8 {
        (x * self.inverse + self.round).to_bits() as u8
    }
}

/// The smallest and the largest of some numbers and zero; one of them is NaN if one of the numbers is.
#[inline(always)]
fn limits(x: &[f32]) -> [f32; 2] {
    const LANES: usize = 64;
    // As bits of whole numbers, which compare faster and lose no NaN. With their signs, numbers from zero on come behind
    // all others, in their order; without one, those below zero do, the smallest one last.
    let (mut lowest, mut highest) = ([0u32; LANES], [0i32; LANES]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lowest[i] = lowest[i].max(chunk[i].to_bits());
            highest[i] = highest[i].max(chunk[i].to_bits() as i32);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        lowest[i] = lowest[i].max(x.to_bits());
        highest[i] = highest[i].max(x.to_bits() as i32);
    }
    let lowest = f32::from_bits(lowest.into_iter().max().unwrap_or(0));
    let highest = f32::from_bits(highest.into_iter().max().unwrap_or(0) as u32);
    [if lowest > 0.0 { 0.0 } else { lowest }, highest]
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
