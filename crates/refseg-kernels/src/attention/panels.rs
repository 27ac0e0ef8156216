//! Keys and values as the innermost loop reads them.

use std::{mem::MaybeUninit, ops::Range};

use super::{AttentionShape, Heads, MOST_VALUE, keys_a_slab, largest_whole, steps_of};
use crate::{
    instruction_set::vectorised,
    memory::Aligned,
    packing::pair,
    precision::{largest_magnitude, round_to_bf16, round_to_whole, whole_scales},
    tile::{BLOCK, SLAB, Tile, Unit, fetch},
};

/// The keys of every key-value head: columns of panels.
///
/// Panels of the same keys follow each other, head by head: where a token has the keys of all heads side by side, they are
/// read as they lie, and each page of memory is met once.
pub(super) struct Keys {
    units: Aligned<u32>,
    /// Of each column, for whole numbers.
    scales: Vec<f32>,
    /// Units of a panel.
    len: usize,
    columns: usize,
    /// Panels of a head.
    count: usize,
    groups: usize,
}

impl Keys {
    pub(super) fn pack(tile: Tile, shape: AttentionShape, k: Heads<'_>) -> Self {
        let columns = tile.columns();
        let count = shape.keys.div_ceil(columns);
        let len = shape.head_dim.div_ceil(tile.unit.inputs()) * columns;
        let largest = largest_whole(shape.head_dim);
        let write = |index: usize, panel: &mut [MaybeUninit<u32>]| {
            let part = Part::of(k, shape, index, count, columns);
            pack_keys(tile.set, tile.unit, &part, columns, largest, panel)
        };
        let panels = shape.batch * shape.groups * count;
        // SAFETY: panels are of whole steps, and each word of each step is written.
        let (units, scales) = unsafe { Aligned::in_parts(panels * len, len, write) };
        Self {
            units,
            scales: scales.concat(),
            len,
            columns,
            count,
            groups: shape.groups,
        }
    }

    pub(super) fn panel(&self, head: usize, index: usize) -> &[u32] {
        &self.units[self.place(head, index) * self.len..][..self.len]
    }

    fn place(&self, head: usize, index: usize) -> usize {
        let (batch, group) = (head / self.groups, head % self.groups);
        (batch * self.count + index) * self.groups + group
    }

    /// What the columns of a panel are multiplied by, if they are whole numbers.
    pub(super) fn scales(&self, head: usize, index: usize) -> Option<&[f32]> {
        let start = self.place(head, index) * self.columns;
        (!self.scales.is_empty()).then(|| &self.scales[start..start + self.columns])
    }
}

/// The values of every key-value head: steps of panels, whose columns are their numbers. Slabs of the same keys follow
/// each other, head by head.
pub(super) struct Values {
    units: Aligned<u32>,
    /// Of each key, for whole numbers; as many for each slab as it has room for.
    scales: Vec<f32>,
    /// Steps of a slab.
    steps: usize,
    keys_a_slab: usize,
    columns: usize,
    /// Panels side by side.
    wide: usize,
    /// Slabs of a head.
    count: usize,
    groups: usize,
}

impl Values {
    pub(super) fn pack(tile: Tile, shape: AttentionShape, v: Heads<'_>) -> Self {
        let (columns, keys_a_slab) = (tile.columns(), keys_a_slab(tile.unit));
        let count = shape.keys.div_ceil(keys_a_slab);
        let steps = SLAB.min(steps_of(tile.unit, shape.keys));
        let wide = shape.head_dim.div_ceil(columns);
        let len = wide * steps * columns;
        let write = |index: usize, slab: &mut [MaybeUninit<u32>]| {
            let part = Part::of(v, shape, index, count, keys_a_slab);
            pack_values(tile.set, tile.unit, &part, columns, steps, slab)
        };
        let slabs = shape.batch * shape.groups * count;
        // SAFETY: `pack_values` writes each word of a slab.
        let (units, scales) = unsafe { Aligned::in_parts(slabs * len, len, write) };
        Self {
            units,
            scales: scales.concat(),
            steps,
            keys_a_slab,
            columns,
            wide,
            count,
            groups: shape.groups,
        }
    }

    /// So many steps of one of the panels side by side, from the first one of the slab of a key.
    pub(super) fn slab(&self, head: usize, key: usize, panel: usize, steps: usize) -> &[u32] {
        let start = (self.place(head, key) * self.wide + panel) * self.steps;
        &self.units[start * self.columns..][..steps * self.columns]
    }

    /// What the values of the slab of a key are multiplied by, if they are whole numbers.
    pub(super) fn scales(&self, head: usize, key: usize) -> Option<&[f32]> {
        let start = self.place(head, key) * self.keys_a_slab;
        (!self.scales.is_empty()).then(|| &self.scales[start..start + self.keys_a_slab])
    }

    fn place(&self, head: usize, key: usize) -> usize {
        let (batch, group) = (head / self.groups, head % self.groups);
        (batch * self.count + key / self.keys_a_slab) * self.groups + group
    }
}

/// Some keys or values of a head.
struct Part<'a> {
    heads: Heads<'a>,
    batch: usize,
    group: usize,
    keys: Range<usize>,
    /// Numbers of each.
    width: usize,
}

impl<'a> Part<'a> {
    /// The part with this index, if each has so many keys, and each head as many parts.
    fn of(
        heads: Heads<'a>,
        shape: AttentionShape,
        index: usize,
        parts: usize,
        keys: usize,
    ) -> Self {
        let (place, group) = (index / shape.groups, index % shape.groups);
        let first = place % parts * keys;
        Self {
            heads,
            batch: place / parts,
            group,
            keys: first..shape.keys.min(first + keys),
            width: shape.head_dim,
        }
    }

    /// Fetches what the next head has where this one has its numbers of a key, if they lie side by side.
    #[inline(always)]
    fn fetch_next(&self, index: usize) {
        let row = self.row(index);
        for line in row.chunks(BLOCK) {
            fetch(line.as_ptr().wrapping_add(row.len()).cast());
        }
    }

    /// The numbers of the key with this index, none behind the last one.
    #[inline(always)]
    fn row(&self, index: usize) -> &[f32] {
        if index < self.keys.len() {
            let key = self.keys.start + index;
            self.heads.row(self.batch, self.group, key, self.width)
        } else {
            &[]
        }
    }
}

/// A block of numbers of a row, filled up with zeros.
#[inline(always)]
pub(super) fn block(row: &[f32], start: usize) -> [f32; BLOCK] {
    let rest = row.get(start..).unwrap_or_default();
    if let Some(whole) = rest.first_chunk() {
        return *whole;
    }
    let mut block = [0.0; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block
}

vectorised! {
    /// Packs the keys of a panel, each word of which is written, and gives the scale of each column if they become whole
    /// numbers up to `largest`.
    fn pack_keys(
        unit: Unit,
        keys: &Part<'_>,
        columns: usize,
        largest: f32,
        panel: &mut [MaybeUninit<u32>],
    ) -> Vec<f32> {
        let mut scales = vec![0.0; if unit == Unit::ShortPair { columns } else { 0 }];
        for first in (0..columns).step_by(BLOCK) {
            let mut inverses = [0.0; BLOCK];
            if unit == Unit::ShortPair {
                for (i, inverse) in inverses.iter_mut().enumerate() {
                    let magnitude = largest_magnitude(keys.row(first + i));
                    (*inverse, scales[first + i]) = whole_scales(magnitude, largest);
                }
            }
            for (index, panel) in panel.chunks_mut(BLOCK * columns).enumerate() {
                let start = index * BLOCK * unit.inputs();
                // Of each key its units, to be turned around.
                let mut units = [[0; BLOCK]; BLOCK];
                for (i, units) in units.iter_mut().enumerate() {
                    let row = keys.row(first + i);
                    if index == 0 {
                        keys.fetch_next(first + i);
                    }
                    let halves = [0, BLOCK].map(|half| block(row, start + half));
                    *units = match unit {
                        Unit::Float => halves[0].map(f32::to_bits),
                        Unit::Bf16Pair => pairs(&halves, round_to_bf16),
                        _ => pairs(&halves, |x| round_to_whole(x, inverses[i])),
                    };
                }
                for (step, panel) in panel.chunks_exact_mut(columns).enumerate() {
                    for (i, word) in panel[first..first + BLOCK].iter_mut().enumerate() {
                        word.write(units[i][step]);
                    }
                }
            }
        }
        scales
    }
}

vectorised! {
    /// Packs the values of some keys, panel by panel, each `steps` long, each word of which is written; and gives the scale
    /// of each key that fits there if they become whole numbers.
    ///
    /// In pairs, numbers of the keys `k` and `k + 16` of 32 meet in a unit: so do the weights that they are multiplied by,
    /// which are made 16 keys at a time.
    fn pack_values(
        unit: Unit,
        values: &Part<'_>,
        columns: usize,
        steps: usize,
        slab: &mut [MaybeUninit<u32>],
    ) -> Vec<f32> {
        let mut scales = vec![0.0; if unit == Unit::ShortPair { 2 * SLAB } else { 0 }];
        let mut inverses = [0.0; 2 * SLAB];
        for (key, scale) in scales.iter_mut().enumerate().take(values.keys.len()) {
            let magnitude = largest_magnitude(values.row(key));
            (inverses[key], *scale) = whole_scales(magnitude, MOST_VALUE);
        }
        for (index, panel) in slab.chunks_exact_mut(steps * columns).enumerate() {
            for (step, words) in panel.chunks_exact_mut(columns).enumerate() {
                let earlier = if unit == Unit::Float { step } else { step / BLOCK * 2 * BLOCK + step % BLOCK };
                let later = earlier + BLOCK;
                let rows = [earlier, later].map(|key| values.row(key));
                if index == 0 {
                    values.fetch_next(earlier);
                    values.fetch_next(later);
                }
                for first in (0..columns).step_by(BLOCK) {
                    let x = rows.map(|row| block(row, index * columns + first));
                    let units = match unit {
                        Unit::Float => x[0].map(f32::to_bits),
                        Unit::Bf16Pair => meet(&x[0], &x[1], round_to_bf16),
                        _ => {
                            let [x, y] = [(x[0], earlier), (x[1], later)].map(|(x, key)| scaled(x, inverses[key]));
                            meet(&x, &y, |x| round_to_whole(x, 1.0))
                        }
                    };
                    for (word, unit) in words[first..first + BLOCK].iter_mut().zip(units) {
                        word.write(unit);
                    }
                }
            }
        }
        scales
    }
}

#[inline(always)]
pub(super) fn scaled(mut x: [f32; BLOCK], scale: f32) -> [f32; BLOCK] {
    for x in &mut x {
        *x *= scale;
    }
    x
}

/// Units of the numbers of two blocks: each of the earlier one, and its like of the later one.
#[inline(always)]
pub(super) fn meet(
    earlier: &[f32; BLOCK],
    later: &[f32; BLOCK],
    round: impl Fn(f32) -> u16,
) -> [u32; BLOCK] {
    let mut units = [0; BLOCK];
    for ((unit, &earlier), &later) in units.iter_mut().zip(earlier).zip(later) {
        *unit = pair([round(earlier), round(later)]);
    }
    units
}

/// Units of numbers that follow each other.
#[inline(always)]
pub(super) fn pairs(halves: &[[f32; BLOCK]; 2], round: impl Fn(f32) -> u16) -> [u32; BLOCK] {
    let mut units = [0; BLOCK];
    for (unit, numbers) in units
        .iter_mut()
        .zip(halves.as_flattened().as_chunks::<2>().0)
    {
        *unit = pair([round(numbers[0]), round(numbers[1])]);
    }
    units
}
