//! What is done with scores between the two products, a strip at a time.

use std::ops::Range;

use super::{
    MOST_WEIGHT,
    panels::{block, meet, pairs, scaled},
};
use crate::{
    epilogue::Shared,
    instruction_set::vectorised,
    math,
    precision::{largest_magnitude, round_to_bf16, round_to_whole, whole_scales},
    tile::{BLOCK, MOST_COLUMNS, MOST_ROWS, Unit},
};

/// What is known of a query and of its keys so far, its lanes at the start of a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Running {
    /// The largest scores, in independent lanes.
    lanes: [f32; BLOCK],
    /// The sum of the exponents, in independent lanes.
    totals: [f32; BLOCK],
    /// The largest score of the chunks so far.
    largest: f32,
    /// What is taken off before exponents.
    shift: f32,
    /// What the query is multiplied by, if it became whole numbers.
    scale: f32,
    /// What the weights of the latest slab are multiplied by, if they became whole numbers.
    pub(super) share: f32,
}

impl Running {
    /// Of a query that has met no key.
    pub(super) const NEW: Self = Self {
        lanes: [f32::NEG_INFINITY; BLOCK],
        totals: [0.0; BLOCK],
        largest: f32::NEG_INFINITY,
        shift: 0.0,
        scale: 1.0,
        share: 1.0,
    };
}

vectorised! {
    /// Packs queries as a strip, each multiplied by `scale`; if they become whole numbers, up to `largest`.
    pub(super) fn pack_queries(
        unit: Unit,
        q: &[&[f32]],
        scale: f32,
        largest: f32,
        running: &mut [Running],
        strip: &mut [u32],
    ) {
        let (blocks, _) = strip.as_chunks_mut::<BLOCK>();
        for (row, (x, running)) in q.iter().zip(running).enumerate() {
            let mut inverse = 0.0;
            if unit == Unit::ShortPair {
                let (forth, back) = whole_scales(largest_magnitude(x), largest);
                (inverse, running.scale) = (forth, back * scale);
            }
            let (mut index, mut start) = (row, 0);
            while start < x.len() {
                let mut halves = [[0.0; BLOCK]; 2];
                for half in &mut halves[..unit.inputs()] {
                    *half = block(x, start);
                    start += BLOCK;
                }
                blocks[index] = match unit {
                    Unit::Float => scaled(halves[0], scale).map(f32::to_bits),
                    Unit::Bf16Pair => pairs(&halves, |x| round_to_bf16(x * scale)),
                    _ => pairs(&halves, |x| round_to_whole(x, inverse)),
                };
                index += q.len();
            }
        }
    }
}

vectorised! {
    /// Makes sums of products the scores of so many keys, a strip, and looks for the largest ones of each row.
    ///
    /// Sums of whole numbers are multiplied by the `scales` of their columns; a row of the mask is added, if there are
    /// any.
    pub(super) fn look(
        keys: usize,
        scales: Option<&[f32]>,
        masks: &[&[f32]],
        scores: &mut [u32],
        running: &mut [Running],
    ) {
        let rows = running.len();
        let (blocks, _) = scores.as_chunks_mut::<BLOCK>();
        if let Some(scales) = scales {
            let mut index = 0;
            for scales in scales.as_chunks::<BLOCK>().0 {
                for running in running.iter() {
                    let block = &mut blocks[index];
                    for (score, scale) in block.iter_mut().zip(scales) {
                        *score = (*score as i32 as f32 * (running.scale * scale)).to_bits();
                    }
                    index += 1;
                }
            }
        }
        for (row, mask) in masks.iter().enumerate() {
            for (index, mask) in mask[..keys].chunks(BLOCK).enumerate() {
                for (score, mask) in blocks[index * rows + row].iter_mut().zip(mask) {
                    *score = (f32::from_bits(*score) + mask).to_bits();
                }
            }
        }
        // What stands behind the last key is no key.
        if !keys.is_multiple_of(BLOCK) {
            for block in &mut blocks[keys / BLOCK * rows..][..rows] {
                block[keys % BLOCK..].fill(f32::NEG_INFINITY.to_bits());
            }
        }
        for (row, running) in running.iter_mut().enumerate() {
            let mut lanes = running.lanes;
            // By index: iterators that step cost a division.
            let (mut index, mut first) = (row, 0);
            while first < keys {
                for (lane, score) in lanes.iter_mut().zip(blocks[index].map(f32::from_bits)) {
                    *lane = if score > *lane { score } else { *lane };
                }
                index += rows;
                first += BLOCK;
            }
            running.lanes = lanes;
        }
    }
}

vectorised! {
    /// Before the exponents of a chunk: scales down what is there if a larger score has been met.
    pub(super) fn settle(running: &mut [Running], sums: &mut [u32]) {
        let rows = running.len();
        let (blocks, _) = sums.as_chunks_mut::<BLOCK>();
        for (row, running) in running.iter_mut().enumerate() {
            let largest = fold(running.lanes, |a, b| if b > a { b } else { a });
            // As long as all keys are hidden nothing is taken off: infinity less infinity would be no number.
            running.shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            let shrink = math::exp_of::<FUSED>(running.largest - running.shift);
            // Before the first chunk there is nothing to scale down.
            if running.largest > f32::NEG_INFINITY && shrink != 1.0 {
                for total in &mut running.totals {
                    *total *= shrink;
                }
                let mut index = row;
                while let Some(block) = blocks.get_mut(index) {
                    *block = block.map(|sum| (f32::from_bits(sum) * shrink).to_bits());
                    index += rows;
                }
            }
            running.largest = largest;
        }
    }
}

vectorised! {
    /// Turns the scores of some keys, a strip, into weights, a strip of units: what they are the logarithms of, up to what
    /// is taken off. Weights that become whole numbers take the scales of their values along, and are as large as they
    /// can be.
    pub(super) fn weigh(
        unit: Unit,
        scales: Option<&[f32]>,
        scores: &mut [u32],
        running: &mut [Running],
    ) {
        let rows = running.len();
        let (blocks, _) = scores.as_chunks_mut::<BLOCK>();
        let mut largest = [[0; BLOCK]; MOST_ROWS];
        for ((row, running), largest) in running.iter_mut().enumerate().zip(&mut largest) {
            let (mut totals, mut lanes) = (running.totals, [0; BLOCK]);
            let (mut index, mut first) = (row, 0);
            while let Some(block) = blocks.get_mut(index) {
                // Apart from memory, so that the compiler keeps all of it in registers.
                let mut weights = block.map(f32::from_bits);
                for weight in &mut weights {
                    *weight = math::exp_below::<FUSED>(*weight - running.shift);
                }
                for (total, weight) in totals.iter_mut().zip(weights) {
                    *total += weight;
                }
                if let Some(scales) = scales {
                    for (weight, scale) in weights.iter_mut().zip(&scales[first..first + BLOCK]) {
                        *weight *= scale;
                    }
                    // As their bits, which are ordered as they are, and lose no NaN.
                    for (lane, weight) in lanes.iter_mut().zip(weights) {
                        *lane = weight.to_bits().max(*lane);
                    }
                }
                *block = weights.map(f32::to_bits);
                index += rows;
                first += BLOCK;
            }
            running.totals = totals;
            *largest = lanes;
        }
        if unit == Unit::Float {
            return;
        }

        // All rows first: each of these waits long for the one before it.
        let mut inverses = [0.0; MOST_ROWS];
        if unit == Unit::ShortPair {
            for ((running, largest), inverse) in running.iter_mut().zip(largest).zip(&mut inverses) {
                let mut most = 0;
                for largest in largest {
                    most = largest.max(most);
                }
                (*inverse, running.share) = whole_scales(f32::from_bits(most), MOST_WEIGHT);
            }
        }
        for (row, &inverse) in inverses[..rows].iter().enumerate() {
            let (mut from, mut to) = (row, row);
            while from < blocks.len() {
                let earlier = blocks[from].map(f32::from_bits);
                let mut later = [0.0; BLOCK];
                if let Some(block) = blocks.get(from + rows) {
                    later = block.map(f32::from_bits);
                }
                blocks[to] = match unit {
                    Unit::Bf16Pair => meet(&earlier, &later, round_to_bf16),
                    _ => meet(&earlier, &later, |x| round_to_whole(x, inverse)),
                };
                from += 2 * rows;
                to += rows;
            }
        }
    }
}

vectorised! {
    /// Writes a row of a strip's sums to its place, each as a share of the row's total.
    ///
    /// Only its own part of `out` is touched; the caller hands each row to one thread.
    pub(super) fn write_mean(
        sums: &[u32],
        row: usize,
        running: &[Running],
        place: Range<usize>,
        out: Shared,
    ) {
        let scale = 1.0 / fold(running[row].totals, |a, b| a + b);
        let (blocks, _) = sums.as_chunks::<BLOCK>();
        let (mut index, mut start) = (row, place.start);
        while start < place.end {
            let mut values = [[0.0; BLOCK]; MOST_COLUMNS / BLOCK];
            for part in &mut values {
                let Some(block) = blocks.get(index) else {
                    break;
                };
                *part = block.map(f32::from_bits);
                for value in part {
                    *value *= scale;
                }
                index += running.len();
            }
            let len = MOST_COLUMNS.min(place.end - start);
            // SAFETY: each row of each head belongs to one strip, each strip to one job, and the memory outlives the
            // jobs.
            unsafe { out.write(start, &values.as_flattened()[..len]) };
            start += len;
        }
    }
}

/// Joins halves until one number is left.
#[inline(always)]
fn fold(mut lanes: [f32; BLOCK], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut len = BLOCK;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            lanes[i] = join(lanes[i], lanes[i + len]);
        }
    }
    lanes[0]
}
