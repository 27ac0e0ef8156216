//! How a weight is packed: its panels, word by word.

use std::{mem::MaybeUninit, ops::Range};

use rayon::prelude::*;

use crate::{
    Numbers, Precision,
    instruction_set::vectorised,
    memory::Aligned,
    numbers::{PIECE, each},
    precision::{round_to_bf16, round_to_whole, whole_scales},
    tile::{MOST_COLUMNS, Tile, Unit},
};

/// What a word of a panel, 32 bits, holds: numbers of one output, or of two that stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// An f32.
    Float,
    /// Two bf16 of one output.
    Bf16Pair,
    /// A bf16 of each of two outputs.
    Bf16,
    /// Two whole numbers of 16 bits of one output.
    ShortPair,
    /// Four bytes of one output.
    Quad,
    /// Two bytes of each of two outputs.
    BytePair,
}

/// Steps that are packed at a time: what is written of a panel stays in the nearest cache.
const STEPS: usize = 64;

/// Words that are written side by side.
const GROUP: usize = 8;

impl Form {
    /// In which a weight is kept whose units are these.
    pub(crate) fn of(precision: Precision, unit: Unit) -> Self {
        match (precision, unit) {
            (Precision::F32, _) => Self::Float,
            (Precision::Bf16, Unit::Bf16Pair) => Self::Bf16Pair,
            (Precision::Bf16, _) => Self::Bf16,
            (Precision::Int16, _) => Self::ShortPair,
            (Precision::Int8, Unit::ByteQuad | Unit::SignedQuad) => Self::Quad,
            (Precision::Int8, _) => Self::BytePair,
        }
    }

    /// Inputs that a word has of each of its outputs.
    #[inline(always)]
    fn inputs(self) -> usize {
        match self {
            Self::Float | Self::Bf16 => 1,
            Self::Bf16Pair | Self::ShortPair | Self::BytePair => 2,
            Self::Quad => 4,
        }
    }

    /// The largest whole number, if they are whole.
    #[inline(always)]
    fn largest_whole(self) -> Option<f32> {
        match self {
            Self::Float | Self::Bf16 | Self::Bf16Pair => None,
            Self::ShortPair => Precision::Int16.largest_whole(),
            Self::Quad | Self::BytePair => Precision::Int8.largest_whole(),
        }
    }

    /// What numbers of at most this magnitude are multiplied by to become whole numbers.
    #[inline(always)]
    fn inverse(self, largest: f32) -> f32 {
        self.largest_whole()
            .map_or(0.0, |whole| whole_scales(largest, whole).0)
    }

    /// Outputs that share a word.
    #[inline(always)]
    fn outputs(self) -> usize {
        match self {
            Self::Bf16 | Self::BytePair => 2,
            Self::Float | Self::Bf16Pair | Self::ShortPair | Self::Quad => 1,
        }
    }
}

/// The panels of an `(outputs, inputs)` weight one after the other, the last one filled up with zeros; and of each output
/// the largest magnitude, NaN if one of its numbers is NaN.
///
/// # Panics
/// If `weight` is not of `outputs · inputs` numbers.
pub(crate) fn pack(
    weight: Numbers<'_>,
    [outputs, inputs]: [usize; 2],
    form: Form,
    tile: Tile,
) -> (Aligned<u32>, Vec<f32>) {
    check(weight.len(), [outputs, inputs]);
    let columns = tile.columns();
    in_panels([outputs, inputs], form, columns, |range, panel| {
        let mut largest = vec![0.0; range.len()];
        let rows = Rows {
            numbers: weight.part(range.start * inputs..range.end * inputs),
            inputs,
        };
        pack_panel(tile.set, rows, form, columns, &mut largest, panel);
        largest
    })
}

/// [`pack`] of a weight that lies `(inputs, outputs)`; largest magnitudes are found for whole numbers alone, and zeros
/// otherwise.
///
/// # Panics
/// As [`pack`].
pub(crate) fn pack_transposed(
    weight: &[f32],
    [outputs, inputs]: [usize; 2],
    form: Form,
    tile: Tile,
) -> (Aligned<u32>, Vec<f32>) {
    check(weight.len(), [outputs, inputs]);
    let columns = tile.columns();
    in_panels([outputs, inputs], form, columns, |range, panel| {
        pack_columns(tile.set, weight, outputs, range, form, columns, panel)
    })
}

/// Panics if there are not as many numbers.
fn check(found: usize, [outputs, inputs]: [usize; 2]) {
    assert!(
        found == outputs * inputs,
        "a weight of {found} numbers is not one of {outputs}×{inputs}"
    );
}

/// Panels that `write`, which is given the outputs of each, fills word by word; and what it gives for the outputs.
fn in_panels(
    [outputs, inputs]: [usize; 2],
    form: Form,
    columns: usize,
    write: impl Fn(Range<usize>, &mut [MaybeUninit<u32>]) -> Vec<f32> + Sync,
) -> (Aligned<u32>, Vec<f32>) {
    if outputs == 0 || inputs == 0 {
        return (Aligned::default(), vec![0.0; outputs]);
    }
    assert!(
        columns.is_multiple_of(form.outputs() * GROUP),
        "a panel of {columns} columns is written in groups of {GROUP} words"
    );
    let panel = inputs.div_ceil(form.inputs()) * columns / form.outputs();
    let write = |index: usize, panel: &mut [MaybeUninit<u32>]| {
        let first = index * columns;
        write(first..outputs.min(first + columns), panel)
    };
    let panels = outputs.div_ceil(columns);
    // SAFETY: panels are of whole steps, which are of whole groups, and each word of each step is written.
    let (panels, largest) = unsafe { Aligned::in_parts(panels * panel, panel, write) };
    (panels, largest.concat())
}

/// The earlier one in the lower half.
#[inline(always)]
pub(crate) fn pair([first, second]: [u16; 2]) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

/// Numbers of a row as f32, where a cache line starts.
#[repr(align(64))]
struct Piece([f32; PIECE]);

/// Some rows of a weight: what it has for as many outputs.
#[derive(Clone, Copy)]
struct Rows<'a> {
    numbers: Numbers<'a>,
    inputs: usize,
}

impl Rows<'_> {
    #[inline(always)]
    fn count(self) -> usize {
        self.numbers.len() / self.inputs
    }

    /// The numbers of a row as f32, in `piece`, which is filled up with zeros; all zeros behind the last row.
    #[inline(always)]
    fn read(self, row: usize, inputs: Range<usize>, piece: &mut Piece) {
        let len = if row < self.count() { inputs.len() } else { 0 };
        if len > 0 {
            let start = row * self.inputs + inputs.start;
            self.numbers
                .part(start..start + len)
                .widen(&mut piece.0[..len]);
        }
        piece.0[len..].fill(0.0);
    }
}

vectorised! {
    /// Finds the largest magnitude of each row, and packs all of them as a panel, every word of which is written. Rows
    /// are read twice, the second time from a cache: also where nobody needs magnitudes, as reading row by row is so much
    /// quicker than piece by piece that without it packing takes up to seven tenths longer.
    fn pack_panel(
        rows: Rows<'_>,
        form: Form,
        columns: usize,
        largest: &mut [f32],
        panel: &mut [MaybeUninit<u32>],
    ) {
        let row = |row: usize| rows.numbers.part(row * rows.inputs..(row + 1) * rows.inputs);
        for (index, largest) in largest.iter_mut().enumerate() {
            *largest = row(index).largest();
        }
        // Behind the last row there are zeros only, whatever they are multiplied by.
        let inverse = |row: usize| largest.get(row).map_or(0.0, |&largest| form.inverse(largest));
        let across = columns / form.outputs();
        let (mut piece, mut other) = (Piece([0.0; PIECE]), Piece([0.0; PIECE]));
        for (block, panel) in panel.chunks_mut(STEPS * across).enumerate() {
            let start = block * STEPS * form.inputs();
            let inputs = start..rows.inputs.min(start + STEPS * form.inputs());
            for group in 0..across / GROUP {
                let mut words = [[0; STEPS]; GROUP];
                for (index, words) in words.iter_mut().enumerate() {
                    let first = (group * GROUP + index) * form.outputs();
                    if first >= rows.count() {
                        break;
                    }
                    rows.read(first, inputs.clone(), &mut piece);
                    if form.outputs() == 2 {
                        rows.read(first + 1, inputs.clone(), &mut other);
                    }
                    *words = match form {
                        Form::Float => converted(&piece, f32::to_bits),
                        Form::Bf16Pair => joined(&converted(&piece, round_to_bf16)),
                        Form::Bf16 => interleaved(
                            &converted(&piece, round_to_bf16),
                            &converted(&other, round_to_bf16),
                        ),
                        Form::ShortPair => {
                            let inverse = inverse(first);
                            joined(&converted(&piece, |x| round_to_whole(x, inverse)))
                        }
                        Form::Quad => quads(&bytes(&piece, inverse(first))),
                        Form::BytePair => interleaved(
                            &halves(&bytes(&piece, inverse(first))),
                            &halves(&bytes(&other, inverse(first + 1))),
                        ),
                    };
                }
                for (step, panel) in panel.chunks_exact_mut(across).enumerate() {
                    let places = &mut panel[group * GROUP..][..GROUP];
                    for (place, words) in places.iter_mut().zip(&words) {
                        place.write(words[step]);
                    }
                }
            }
        }
    }
}

/// Of each output of panels in whole numbers, their sum.
pub(crate) fn whole_sums(
    panels: &[u32],
    [outputs, inputs]: [usize; 2],
    form: Form,
    tile: Tile,
) -> Vec<i32> {
    let across = tile.columns() / form.outputs();
    let panel = inputs.div_ceil(form.inputs()).max(1) * across;
    let sums = panels.par_chunks(panel).map(|panel| {
        let mut sums = vec![0; tile.columns()];
        sum_panel(tile.set, panel, form, &mut sums);
        sums
    });
    let mut sums = sums.collect::<Vec<_>>().concat();
    // The last panel is filled up, and there is none if nothing goes in.
    sums.resize(outputs, 0);
    sums
}

vectorised! {
    fn sum_panel(panel: &[u32], form: Form, sums: &mut [i32]) {
        let bytes = |word: u32| word.to_le_bytes().map(|byte| i32::from(byte as i8));
        for words in panel.chunks_exact(sums.len() / form.outputs()) {
            if form.outputs() == 1 {
                for (sum, &word) in sums.iter_mut().zip(words) {
                    let [a, b, c, d] = bytes(word);
                    *sum += a + b + c + d;
                }
            } else {
                for (sums, &word) in sums.as_chunks_mut().0.iter_mut().zip(words) {
                    let [first, second]: &mut [i32; 2] = sums;
                    let [a, b, c, d] = bytes(word);
                    *first += a + b;
                    *second += c + d;
                }
            }
        }
    }
}

vectorised! {
    /// [`pack_panel`] of some columns of a weight that lies `(inputs, outputs)`.
    fn pack_columns(
        weight: &[f32],
        outputs: usize,
        range: Range<usize>,
        form: Form,
        columns: usize,
        panel: &mut [MaybeUninit<u32>],
    ) -> Vec<f32> {
        let mut largest = vec![0f32; range.len()];
        if form.largest_whole().is_some() {
            for row in weight.chunks_exact(outputs) {
                for (largest, x) in largest.iter_mut().zip(&row[range.clone()]) {
                    // As their bits, which lose no NaN.
                    *largest = f32::from_bits(largest.to_bits().max(x.abs().to_bits()));
                }
            }
        }
        let mut inverse = [0.0; MOST_COLUMNS];
        each(&largest, &mut inverse, |largest| form.inverse(largest));
        let whole = |x: f32, column: usize| round_to_whole(x, inverse[column]);
        let byte = |x: f32, column: usize| whole(x, column) as u8;
        let mut rows = weight.chunks_exact(outputs);
        for words in panel.chunks_exact_mut(columns / form.outputs()) {
            // Behind the last row and the last column there are zeros.
            let mut x = [[0.0; MOST_COLUMNS]; 4];
            for (x, row) in x.iter_mut().zip(rows.by_ref().take(form.inputs())) {
                x[..range.len()].copy_from_slice(&row[range.clone()]);
            }
            for (i, word) in words.iter_mut().enumerate() {
                word.write(match form {
                    Form::Float => x[0][i].to_bits(),
                    Form::Bf16Pair => pair([x[0][i], x[1][i]].map(round_to_bf16)),
                    Form::Bf16 => pair([x[0][2 * i], x[0][2 * i + 1]].map(round_to_bf16)),
                    Form::ShortPair => pair([x[0][i], x[1][i]].map(|x| whole(x, i))),
                    Form::Quad => u32::from_le_bytes(x.map(|x| byte(x[i], i))),
                    Form::BytePair => u32::from_le_bytes(
                        [(0, 2 * i), (1, 2 * i), (0, 2 * i + 1), (1, 2 * i + 1)]
                            .map(|(input, column)| byte(x[input][column], column)),
                    ),
                });
            }
        }
        largest
    }
}

/// As many numbers as fit, converted: in a loop of their own, which the compiler vectorises.
#[inline(always)]
fn converted<T: Copy + Default, const N: usize>(
    piece: &Piece,
    convert: impl Fn(f32) -> T,
) -> [T; N] {
    let mut converted = [T::default(); N];
    each(&piece.0, &mut converted, convert);
    converted
}

#[inline(always)]
fn bytes<const N: usize>(piece: &Piece, inverse: f32) -> [u8; N] {
    converted(piece, |x| round_to_whole(x, inverse) as u8)
}

#[inline(always)]
fn halves(bytes: &[u8; 2 * STEPS]) -> [u16; STEPS] {
    let mut halves = [0; STEPS];
    each(bytes.as_chunks().0, &mut halves, u16::from_le_bytes);
    halves
}

#[inline(always)]
fn quads(bytes: &[u8; 4 * STEPS]) -> [u32; STEPS] {
    let mut words = [0; STEPS];
    each(bytes.as_chunks().0, &mut words, u32::from_le_bytes);
    words
}

#[inline(always)]
fn joined(halves: &[u16; 2 * STEPS]) -> [u32; STEPS] {
    let mut words = [0; STEPS];
    each(halves.as_chunks().0, &mut words, pair);
    words
}

#[inline(always)]
fn interleaved(first: &[u16; STEPS], second: &[u16; STEPS]) -> [u32; STEPS] {
    let mut words = [0; STEPS];
    for ((word, &first), &second) in words.iter_mut().zip(first).zip(second) {
        *word = pair([first, second]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstructionSet;

    /// A weight as a file has it.
    struct Stored {
        values: Vec<f32>,
        bytes: Vec<u8>,
        numbers: fn(&[u8]) -> Numbers<'_>,
    }

    /// Weights in each type.
    fn stored(count: usize) -> [Stored; 4] {
        // Both signs, magnitudes over the whole range of halves, what rounding finds in the middle, and zeros.
        let value = |i: usize| match (i * 37 + 11) % 29 {
            0 => 0.0,
            k => ((i * 7919) % 2001) as f32 * 2f32.powi(k as i32 % 14 - 16) - 1.0 / 64.0,
        };
        let values: Vec<f32> = (0..count).map(value).collect();
        let upper: Vec<_> = values.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
        let half = |i: usize| ((i * 2749) % 0x7C00) as u16 | (i as u16 & 1) << 15;
        let halves: Vec<_> = (0..count).map(half).collect();
        let widened = |&half: &u16| {
            let mut out = [0.0];
            Numbers::F16(&[half.to_le_bytes()]).widen(&mut out);
            out[0]
        };
        let bytes = |numbers: &[u16]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let doubles = values.iter().flat_map(|&x| f64::from(x).to_le_bytes());
        [
            Stored {
                bytes: doubles.collect(),
                values: values.clone(),
                numbers: |bytes| Numbers::F64(bytes.as_chunks().0),
            },
            Stored {
                bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                values,
                numbers: |bytes| Numbers::F32(bytes.as_chunks().0),
            },
            Stored {
                bytes: bytes(&halves),
                values: halves.iter().map(widened).collect(),
                numbers: |bytes| Numbers::F16(bytes.as_chunks().0),
            },
            Stored {
                bytes: bytes(&upper),
                values: upper
                    .iter()
                    .map(|&x| f32::from_bits(u32::from(x) << 16))
                    .collect(),
                numbers: |bytes| Numbers::Bf16(bytes.as_chunks().0),
            },
        ]
    }

    /// A panel by its definition, a number at a time.
    fn panel_by_definition(
        weight: &[f32],
        [outputs, inputs]: [usize; 2],
        form: Form,
        columns: usize,
    ) -> Vec<u8> {
        let rows = weight.chunks_exact(inputs);
        let largest = rows.map(|row| row.iter().fold(0f32, |largest, x| largest.max(x.abs())));
        let inverse: Vec<_> = largest.map(|largest| form.inverse(largest)).collect();
        let mut packed = Vec::new();
        for first in (0..outputs).step_by(columns) {
            for step in 0..inputs.div_ceil(form.inputs()) {
                for output in first..first + columns {
                    for input in step * form.inputs()..(step + 1) * form.inputs() {
                        let x = match input < inputs && output < outputs {
                            true => weight[output * inputs + input],
                            false => 0.0,
                        };
                        match form {
                            Form::Float => packed.extend(x.to_le_bytes()),
                            Form::Bf16 | Form::Bf16Pair => {
                                packed.extend(round_to_bf16(x).to_le_bytes());
                            }
                            Form::ShortPair | Form::Quad | Form::BytePair => {
                                let whole = match output < outputs {
                                    true => round_to_whole(x, inverse[output]),
                                    false => 0,
                                };
                                let len = if form == Form::ShortPair { 2 } else { 1 };
                                packed.extend_from_slice(&whole.to_le_bytes()[..len]);
                            }
                        }
                    }
                }
            }
        }
        packed
    }

    #[test]
    fn every_stored_type_is_packed_to_the_same_bits_for_every_set() {
        // Less than a panel, than a block and than a word; more of each; and exactly as much.
        for [outputs, inputs] in [[1, 1], [3, 7], [20, 70], [5, 515], [64, 256], [66, 67]] {
            for Stored {
                values,
                bytes,
                numbers,
            } in stored(outputs * inputs + 1)
            {
                let size = bytes.len() / values.len();
                // From an odd address on, as a file may have them.
                let moved = [&[0], &bytes[size..]].concat();
                for set in InstructionSet::available() {
                    for form in [
                        Form::Float,
                        Form::Bf16Pair,
                        Form::Bf16,
                        Form::ShortPair,
                        Form::Quad,
                        Form::BytePair,
                    ] {
                        let unit = Unit::Float;
                        let tile = Tile { set, unit };
                        let shape = [outputs, inputs];
                        let expected =
                            panel_by_definition(&values[1..], shape, form, tile.columns());
                        for weight in [Numbers::Floats(&values[1..]), numbers(&moved[1..])] {
                            let (words, _) = pack(weight, shape, form, tile);
                            assert!(
                                crate::memory::bytes(&words[..]) == expected,
                                "{size} bytes a number, {set}, {form:?}, {outputs}×{inputs}"
                            );
                        }
                    }
                }
            }
        }
    }
}
