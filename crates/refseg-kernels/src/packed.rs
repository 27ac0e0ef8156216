//! A weight packed once, and products with it.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    Epilogue, InstructionSet, Precision,
    epilogue::{Place, Shared, Sums, add_whole, finish},
    instruction_set::vectorised,
    memory::{Aligned, bytes},
    numbers::{NonFinite, Numbers},
    packing::{Form, pack, pack_transposed, pair, whole_sums},
    precision::{whole_scales, widen_bf16},
    strips::Strips,
    tile::{Ahead, MOST_ROWS, Product, SLAB, Tile},
};

/// A weight `(outputs, inputs)`, packed for one instruction set.
#[derive(Debug, Clone)]
pub struct Packed {
    outputs: usize,
    inputs: usize,
    precision: Precision,
    tile: Tile,
    panels: Panels,
    /// Of each output, for whole numbers: what they are multiplied by.
    scales: Vec<f32>,
    /// Of each output in int8: what its whole numbers come to.
    sums: Vec<i32>,
}

/// Panels one after the other, the last one filled up with zeros.
#[derive(Debug, Clone)]
enum Panels {
    /// As the innermost loop reads them.
    Units(Aligned<u32>),
    /// To be widened to [`Unit::Float`].
    Bf16(Aligned<u16>),
    /// To be widened to [`Unit::ShortPair`].
    Int8(Aligned<i8>),
}

/// The most inputs of a weight in whole numbers: sums are kept in 32 bits, and wrap around on the way, but what they
/// come to must fit: `inputs · 254 · 127 < 2³¹`.
const MOST_INT8_INPUTS: usize = (i32::MAX / (254 * 127)) as usize;

impl Packed {
    /// Packs a weight for [`InstructionSet::current`].
    ///
    /// # Panics
    /// If `weight` is not of `outputs · inputs` numbers, or if it is to be [`Precision::Int8`] and has over 66,000
    /// inputs.
    pub fn new(weight: &[f32], outputs: usize, inputs: usize, precision: Precision) -> Self {
        Self::for_set(
            weight,
            outputs,
            inputs,
            precision,
            InstructionSet::current(),
        )
    }

    /// Packs a weight for an instruction set.
    ///
    /// # Panics
    /// As [`Packed::new`], and if this machine lacks the set.
    pub fn for_set(
        weight: &[f32],
        outputs: usize,
        inputs: usize,
        precision: Precision,
        set: InstructionSet,
    ) -> Self {
        let tile = Tile::available(precision, set);
        Self::for_tile(Numbers::Floats(weight), outputs, inputs, precision, tile).0
    }

    /// Packs a weight as it is stored for [`InstructionSet::current`]: what [`Packed::new`] makes of its numbers as f32.
    ///
    /// # Errors
    /// If a number is NaN or infinite.
    ///
    /// # Panics
    /// As [`Packed::new`].
    pub fn from_stored(
        weight: Numbers<'_>,
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Result<Self, NonFinite> {
        let tile = Tile::available(precision, InstructionSet::current());
        let (packed, finite) = Self::for_tile(weight, outputs, inputs, precision, tile);
        weight.checked(finite, packed)
    }

    /// Packs a weight that lies `(inputs, outputs)`.
    ///
    /// # Panics
    /// As [`Packed::new`].
    pub fn transposed(weight: &[f32], outputs: usize, inputs: usize, precision: Precision) -> Self {
        let tile = Tile::available(precision, InstructionSet::current());
        Self::assemble(outputs, inputs, precision, tile, |form| {
            pack_transposed(weight, [outputs, inputs], form, tile)
        })
        .0
    }

    /// The packed weight, and whether all its numbers are finite.
    fn for_tile(
        weight: Numbers<'_>,
        outputs: usize,
        inputs: usize,
        precision: Precision,
        tile: Tile,
    ) -> (Self, bool) {
        let pack = |form| pack(weight, [outputs, inputs], form, tile);
        Self::assemble(outputs, inputs, precision, tile, pack)
    }

    /// Of panels and of the largest magnitude of each output; and whether these are finite.
    fn assemble(
        outputs: usize,
        inputs: usize,
        precision: Precision,
        tile: Tile,
        pack: impl FnOnce(Form) -> (Aligned<u32>, Vec<f32>),
    ) -> (Self, bool) {
        if precision == Precision::Int8 {
            assert!(
                inputs <= MOST_INT8_INPUTS,
                "{inputs} inputs are too many to be summed in 32 bits"
            );
        }
        let form = Form::of(precision, tile.unit);
        let (words, largest) = pack(form);
        let scales = |most| {
            largest
                .iter()
                .map(move |&x| whole_scales(x, most).1)
                .collect()
        };
        let packed = Self {
            outputs,
            inputs,
            precision,
            tile,
            sums: match precision {
                Precision::Int8 => whole_sums(&words, [outputs, inputs], form, tile),
                Precision::F32 | Precision::Bf16 | Precision::Int16 => Vec::new(),
            },
            panels: match form {
                Form::Bf16 => Panels::Bf16(words.cast()),
                Form::BytePair => Panels::Int8(words.cast()),
                Form::Float | Form::Bf16Pair | Form::ShortPair | Form::Quad => Panels::Units(words),
            },
            scales: precision.largest_whole().map_or_else(Vec::new, scales),
        };
        (packed, largest.iter().all(|largest| largest.is_finite()))
    }

    /// Numbers that come out for each row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers that go in for each row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// In which numbers it is kept.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The instruction set it is packed for.
    pub fn instruction_set(&self) -> InstructionSet {
        self.tile.set
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        let panels = match &self.panels {
            Panels::Units(units) => size_of_val::<[_]>(units),
            Panels::Bf16(numbers) => size_of_val::<[_]>(numbers),
            Panels::Int8(numbers) => size_of_val::<[_]>(numbers),
        };
        panels + size_of_val::<[_]>(&self.scales) + size_of_val::<[_]>(&self.sums)
    }

    /// `x · Wᵀ`, then the epilogue.
    ///
    /// # Shapes
    /// - `x`: `(rows, inputs)`
    /// - `out`: `(rows, outputs)`
    ///
    /// # Panics
    /// If `x`, `out` or a part of the epilogue is of another shape.
    pub fn multiply(&self, x: &[f32], epilogue: &Epilogue<'_>, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let rows = out.len().checked_div(self.outputs).unwrap_or(0);
        assert!(
            out.len() == rows * self.outputs,
            "{} numbers are no rows of {}",
            out.len(),
            self.outputs
        );
        self.multiply_rows(x, rows, epilogue, Shared::new(out));
    }

    /// [`Packed::multiply`] of so many rows, into new memory.
    ///
    /// # Panics
    /// If `x` or a part of the epilogue is of another shape.
    pub fn product(&self, x: &[f32], rows: usize, epilogue: &Epilogue<'_>) -> Vec<f32> {
        let write = |out| self.multiply_rows(x, rows, epilogue, out);
        // SAFETY: every job finishes its tiles, and together they cover all rows and outputs.
        unsafe { Shared::fill(rows * self.outputs, write) }
    }

    fn multiply_rows(&self, x: &[f32], rows: usize, epilogue: &Epilogue<'_>, out: Shared) {
        assert!(
            x.len() == rows * self.inputs,
            "{} numbers are no {rows} rows of {}",
            x.len(),
            self.inputs
        );
        epilogue.check(rows, self.outputs);
        if rows == 0 || self.outputs == 0 {
            return;
        }
        let strips = Strips::pack(self.tile, self.precision, x, rows, self.inputs);
        let jobs = Jobs::split(strips.count(), self.panel_count());
        (0..jobs.count())
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, job| {
                self.run(jobs.get(job), &strips, epilogue, out, scratch);
            });
    }

    fn run(
        &self,
        job: Job,
        strips: &Strips,
        epilogue: &Epilogue<'_>,
        out: Shared,
        scratch: &mut Scratch,
    ) {
        let Scratch { sums, slab, whole } = scratch;
        let (most_rows, columns) = (self.tile.rows(), self.tile.columns());
        let tile_len = most_rows * columns;
        // Sums of slabs that are whole numbers, which together need not fit 32 bits.
        let by_slab = self.precision == Precision::Int16;
        whole.resize(tile_len);
        sums.resize(job.strips.len() * job.panels.len() * tile_len);
        let steps = self.steps();
        let mut start = 0;
        loop {
            let len = SLAB.min(steps - start);
            let last = start + len == steps;
            let mut tiles = sums.chunks_exact_mut(tile_len);
            for panel in job.panels.clone() {
                let weights = self.slab(panel, start, len, slab);
                let next = if panel + 1 < job.panels.end {
                    self.stored(panel + 1, start, len)
                } else {
                    let start = start + len;
                    self.stored(job.panels.start, start, SLAB.min(steps - start))
                };
                let ahead = Ahead::new(next, job.strips.len(), len);
                for (index, (strip, sums)) in job.strips.clone().zip(&mut tiles).enumerate() {
                    let rows = strips.rows(strip);
                    let column = panel * columns;
                    let place = Place {
                        row: rows.start,
                        column,
                        rows: rows.len(),
                        columns: columns.min(self.outputs - column),
                        outputs: self.outputs,
                    };
                    if last {
                        place.fetch(epilogue, out);
                    }
                    let fresh = start == 0;
                    let product = Product {
                        rows: rows.len(),
                        steps: len,
                        strip: strips.units(strip, start, len),
                        panel: weights,
                        fresh: fresh || by_slab,
                        next: ahead.next(index, strips.units(strip + 1, start, len)),
                    };
                    if by_slab {
                        self.tile.accumulate(product, whole);
                        let mut scales = [0.0; MOST_ROWS];
                        for (scale, row) in scales.iter_mut().zip(strips.scales(strip)) {
                            *scale = row.scale;
                        }
                        add_whole(self.tile.set, whole, &scales[..rows.len()], fresh, sums);
                    } else {
                        self.tile.accumulate(product, sums);
                    }
                    if last {
                        let kind = match self.precision {
                            Precision::Int8 => Sums::Whole {
                                rows: strips.scales(strip),
                                scales: &self.scales[column..],
                                weights: &self.sums[column..],
                            },
                            Precision::Int16 => Sums::Scaled(&self.scales[column..]),
                            Precision::F32 | Precision::Bf16 => Sums::Floats,
                        };
                        finish(self.tile.set, sums, kind, epilogue, place, out);
                    }
                }
            }
            if last {
                break;
            }
            start += len;
        }
    }

    fn steps(&self) -> usize {
        self.inputs.div_ceil(self.tile.unit.inputs())
    }

    fn panel_count(&self) -> usize {
        self.outputs.div_ceil(self.tile.columns())
    }

    /// Some steps of a panel, as they are kept.
    fn stored(&self, panel: usize, start: usize, len: usize) -> &[u8] {
        let columns = self.tile.columns();
        let range = (panel * self.steps() + start) * columns
            ..(panel * self.steps() + start + len) * columns;
        match &self.panels {
            Panels::Units(units) => bytes(&units[range]),
            Panels::Bf16(numbers) => bytes(&numbers[range]),
            Panels::Int8(numbers) => bytes(&numbers[2 * range.start..2 * range.end]),
        }
    }

    /// Some steps of a panel, as the innermost loop reads them.
    fn slab<'a>(
        &'a self,
        panel: usize,
        start: usize,
        len: usize,
        widened: &'a mut Aligned<u32>,
    ) -> &'a [u32] {
        let columns = self.tile.columns();
        let start = (panel * self.steps() + start) * columns;
        let len = len * columns;
        match &self.panels {
            Panels::Units(units) => &units[start..start + len],
            Panels::Bf16(numbers) => {
                widened.resize(len);
                widen_floats(self.tile.set, &numbers[start..start + len], widened);
                widened
            }
            Panels::Int8(numbers) => {
                widened.resize(len);
                widen_pairs(
                    self.tile.set,
                    &numbers[2 * start..2 * (start + len)],
                    widened,
                );
                widened
            }
        }
    }
}

vectorised! {
    fn widen_floats(numbers: &[u16], widened: &mut [u32]) {
        for (widened, &number) in widened.iter_mut().zip(numbers) {
            *widened = widen_bf16(number).to_bits();
        }
    }
}

vectorised! {
    fn widen_pairs(numbers: &[i8], widened: &mut [u32]) {
        for (widened, numbers) in widened.iter_mut().zip(numbers.chunks_exact(2)) {
            *widened = pair([i16::from(numbers[0]) as u16, i16::from(numbers[1]) as u16]);
        }
    }
}

/// What a job works in, kept for the next one.
#[derive(Default)]
struct Scratch {
    sums: Aligned<u32>,
    /// A slab of a panel, widened.
    slab: Aligned<u32>,
    /// A tile's sums of a slab, in whole numbers.
    whole: Aligned<u32>,
}

/// A part of a product: some strips times some panels.
#[derive(Debug, Clone)]
struct Job {
    strips: Range<usize>,
    panels: Range<usize>,
}

/// How a product is cut into jobs.
#[derive(Debug, Clone, Copy)]
struct Jobs {
    strips: usize,
    panels: usize,
    strips_a_job: usize,
    panels_a_job: usize,
}

impl Jobs {
    /// Strips whose sums, with those of the panels below, stay in the second cache.
    const STRIPS: usize = 28;
    const PANELS: usize = 4;
    /// Jobs for each thread, so that none waits long for the last one.
    const SHARE: usize = 6;

    fn split(strips: usize, panels: usize) -> Self {
        let strips_a_job = strips.div_ceil(strips.div_ceil(Self::STRIPS));
        let wanted = Self::SHARE * rayon::current_num_threads();
        let cuts = wanted.div_ceil(strips.div_ceil(strips_a_job));
        Self {
            strips,
            panels,
            strips_a_job,
            panels_a_job: panels.div_ceil(cuts).clamp(1, Self::PANELS),
        }
    }

    fn count(self) -> usize {
        self.strips.div_ceil(self.strips_a_job) * self.panels.div_ceil(self.panels_a_job)
    }

    /// Jobs with the same panels follow each other.
    fn get(self, index: usize) -> Job {
        let across = self.strips.div_ceil(self.strips_a_job);
        let part =
            |index: usize, size: usize, whole: usize| index * size..((index + 1) * size).min(whole);
        Job {
            strips: part(index % across, self.strips_a_job, self.strips),
            panels: part(index / across, self.panels_a_job, self.panels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{precision::round_to_bf16, tile::Unit};

    #[test]
    fn a_weight_is_packed_alike_whichever_way_it_lies() {
        for [inputs, outputs] in [[1, 1], [7, 20], [70, 130], [131, 64]] {
            let by_output: Vec<_> = (0..outputs * inputs)
                .map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0)
                .collect();
            let at = |i: usize| by_output[i % outputs * inputs + i / outputs];
            let by_input: Vec<_> = (0..outputs * inputs).map(at).collect();
            for set in InstructionSet::available() {
                for precision in Precision::ALL {
                    let tile = Tile::available(precision, set);
                    let parts = |(packed, _): (Packed, bool)| {
                        let panels = packed.stored(0, 0, packed.panel_count() * packed.steps());
                        (panels.to_vec(), packed.scales, packed.sums)
                    };
                    let by_output = Numbers::Floats(&by_output);
                    assert_eq!(
                        parts(Packed::assemble(outputs, inputs, precision, tile, |form| {
                            pack_transposed(&by_input, [outputs, inputs], form, tile)
                        })),
                        parts(Packed::for_tile(
                            by_output, outputs, inputs, precision, tile
                        )),
                        "{inputs}×{outputs} in {precision} by {set}"
                    );
                }
            }
        }
    }

    /// Units of instruction sets that this machine may lack, multiplied in plain Rust.
    #[test]
    fn every_unit_is_packed_as_its_instruction_reads_it() {
        for [rows, inputs, outputs] in [[1, 1, 1], [3, 7, 20], [5, 70, 33], [2, 130, 16]] {
            let number = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
            let x: Vec<_> = (0..rows * inputs).map(number).collect();
            let w: Vec<_> = (0..outputs * inputs).map(|i| number(3 * i + 1)).collect();
            let set = InstructionSet::Portable;
            let product = |x: &[f32], w: &[f32], precision, unit| {
                let mut out = vec![0.0; rows * outputs];
                let (w, tile) = (Numbers::Floats(w), Tile { set, unit });
                let (packed, _) = Packed::for_tile(w, outputs, inputs, precision, tile);
                packed.multiply(x, &Epilogue::default(), &mut out);
                out
            };
            let shorts = product(&x, &w, Precision::Int8, Unit::ShortPair);
            for unit in [Unit::ByteQuad, Unit::SignedQuad] {
                let bytes = product(&x, &w, Precision::Int8, unit);
                assert_eq!(bytes, shorts, "{unit:?}, {rows}×{inputs}×{outputs}");
            }

            let round = |x: &[f32]| x.iter().map(|&x| widen_bf16(round_to_bf16(x))).collect();
            let (rounded_x, rounded_w): (Vec<_>, Vec<_>) = (round(&x), round(&w));
            let pairs = product(&x, &w, Precision::Bf16, Unit::Bf16Pair);
            let floats = product(&rounded_x, &rounded_w, Precision::F32, Unit::Float);
            for (pairs, floats) in pairs.into_iter().zip(floats) {
                // Products of numbers up to 1, in another order: each rounds to half a unit of its sum.
                let gap = 2.0 * (inputs * inputs) as f32 * f32::EPSILON;
                assert!((pairs - floats).abs() <= gap, "{rows}×{inputs}×{outputs}");
            }
        }
    }
}
