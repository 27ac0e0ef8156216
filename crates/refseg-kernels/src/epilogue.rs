//! What happens to a product before it is written.

use crate::{
    InstructionSet,
    instruction_set::vectorised,
    math,
    tile::{BLOCK, MOST_COLUMNS, fetch, fetch_to_write},
};

/// What happens to a product `y` before it is written: `residual + scale · (activation(y + bias) · times)`, each part
/// where it is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `(outputs)`.
    pub bias: Option<&'a [f32]>,
    /// Of each element.
    pub activation: Activation,
    /// `(rows, outputs)`: the other half of a gated layer.
    pub times: Option<&'a [f32]>,
    /// `(outputs)`, as in LayerScale.
    pub scale: Option<&'a [f32]>,
    /// `(rows, outputs)`.
    pub residual: Option<&'a [f32]>,
}

/// A function of each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x`.
    #[default]
    Identity,
    /// `x · Φ(x)`, off by at most `1e-7·|x|` and rounding.
    Gelu,
    /// GELU with the tanh form of `Φ`.
    GeluTanh,
    /// `x · sigmoid(1.702·x)`.
    QuickGelu,
    /// `x · sigmoid(x)`.
    Silu,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
}

impl Activation {
    /// Of each element of `x`, for the current instruction set.
    pub fn apply(self, x: &mut [f32]) {
        activate(InstructionSet::current(), self, x);
    }
}

impl<'a> Epilogue<'a> {
    /// Nothing but a bias.
    pub fn bias(bias: &'a [f32]) -> Self {
        Self {
            bias: Some(bias),
            ..Self::default()
        }
    }

    /// Panics if a part is not of the shape of the product.
    pub(crate) fn check(&self, rows: usize, outputs: usize) {
        let parts = [
            ("bias", self.bias, outputs),
            ("times", self.times, rows * outputs),
            ("scale", self.scale, outputs),
            ("residual", self.residual, rows * outputs),
        ];
        for (name, part, expected) in parts {
            if let Some(part) = part {
                let found = part.len();
                assert!(
                    found == expected,
                    "`{name}` has {found} numbers, but the product of {rows}×{outputs} needs {expected}"
                );
            }
        }
    }
}

/// How sums become f32.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sums<'a> {
    /// They are.
    Floats,
    /// They are, up to a factor for each column of the tile.
    Scaled(&'a [f32]),
    /// They are whole numbers.
    Whole {
        /// Of each row of the tile.
        rows: &'a [RowScale],
        /// Of each column of the tile, its scale.
        scales: &'a [f32],
        /// Of each column of the tile, the sum of its weights.
        weights: &'a [i32],
    },
}

/// What the whole numbers `n` of a row are: `scale · (zero + n)`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowScale {
    pub(crate) scale: f32,
    /// What a zero of them stands for.
    pub(crate) zero: i32,
}

/// Where a tile stands in the product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Columns of the product.
    pub(crate) outputs: usize,
}

impl Place {
    /// Fetches the memory that a tile will be written to, and what the epilogue reads for it, so that [`finish`] need
    /// not wait for them.
    pub(crate) fn fetch(self, epilogue: &Epilogue<'_>, out: Shared) {
        for part in [epilogue.times, epilogue.residual].into_iter().flatten() {
            self.fetch_part(part.as_ptr(), fetch);
        }
        self.fetch_part(out.start, fetch_to_write);
    }

    #[inline(always)]
    fn fetch_part(self, part: *const f32, fetch: impl Fn(*const u8)) {
        for row in 0..self.rows {
            let start = part.wrapping_add((self.row + row) * self.outputs + self.column);
            // A block is as long as a cache line; the last one ends in a line of its own.
            for block in 0..self.columns.div_ceil(BLOCK) {
                fetch(start.wrapping_add(block * BLOCK).cast());
            }
            fetch(start.wrapping_add(self.columns - 1).cast());
        }
    }
}

/// Memory that several threads write to, each its own part, and that nobody reads meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: it is only a place; whoever writes there (`write`) answers for it that nobody else does.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(memory: &mut [f32]) -> Self {
        Self {
            start: memory.as_mut_ptr(),
            len: memory.len(),
        }
    }

    /// Runs `write` on new memory of `len` numbers.
    ///
    /// # Safety
    /// `write` writes all of them.
    pub(crate) unsafe fn fill(len: usize, write: impl FnOnce(Self)) -> Vec<f32> {
        let mut memory = Vec::with_capacity(len);
        write(Self {
            start: memory.as_mut_ptr(),
            len,
        });
        // SAFETY: as many numbers fit, and all of them have been written.
        unsafe { memory.set_len(len) };
        memory
    }

    /// Where a number goes.
    pub(crate) fn place(self, index: usize) -> *const f32 {
        self.start.wrapping_add(index)
    }

    /// # Safety
    /// The memory outlives this, and nobody else touches what is written.
    #[inline(always)]
    pub(crate) unsafe fn write(self, start: usize, values: &[f32]) {
        assert!(
            start + values.len() <= self.len,
            "a tile reaches beyond the product"
        );
        // SAFETY: within the memory by the line above; the rest is the caller's word.
        unsafe {
            let place = self.start.add(start);
            // Most are of these widths, which are copied without a call.
            if let Some(values) = values.as_array::<MOST_COLUMNS>() {
                place.cast::<[f32; MOST_COLUMNS]>().write(*values);
            } else if let Some(values) = values.as_array::<BLOCK>() {
                place.cast::<[f32; BLOCK]>().write(*values);
            } else {
                Self::write_few(place, values);
            }
        }
    }

    /// Apart, or the compiler makes one call of all three ways to copy.
    ///
    /// # Safety
    /// As many numbers fit there, and they are the caller's to write.
    #[cold]
    #[inline(never)]
    unsafe fn write_few(place: *mut f32, values: &[f32]) {
        // SAFETY: by the caller's word.
        unsafe { place.copy_from_nonoverlapping(values.as_ptr(), values.len()) }
    }
}

vectorised! {
    /// Adds a tile's sums of whole numbers, each row multiplied by its scale, to sums that are f32, or makes them those.
    pub(crate) fn add_whole(whole: &[u32], rows: &[f32], fresh: bool, sums: &mut [u32]) {
        let (whole, _) = whole.as_chunks::<BLOCK>();
        let (sums, _) = sums.as_chunks_mut::<BLOCK>();
        let mut index = 0;
        while index + rows.len() <= sums.len() && !rows.is_empty() {
            for scale in rows {
                let block = &mut sums[index];
                let mut values = if fresh { [0.0; BLOCK] } else { block.map(f32::from_bits) };
                for (value, &whole) in values.iter_mut().zip(&whole[index]) {
                    *value += whole as i32 as f32 * scale;
                }
                *block = values.map(f32::to_bits);
                index += 1;
            }
        }
    }
}

vectorised! {
    /// Writes a tile, whose sums lie as a strip, to its place in `out`.
    ///
    /// Only the tile's own part of `out` is touched; the caller hands each tile to one thread.
    pub(crate) fn finish(
        sums: &[u32],
        kind: Sums<'_>,
        epilogue: &Epilogue<'_>,
        place: Place,
        out: Shared,
    ) {
        let (blocks, _) = sums.as_chunks::<BLOCK>();
        let mut first = 0;
        while first < place.columns {
            let width = BLOCK.min(place.columns - first);
            let column = place.column + first;
            let bias = epilogue.bias.map(|bias| part(bias, column, width));
            let scale = epilogue.scale.map(|scale| part(scale, column, width));
            let (scales, whole) = match kind {
                Sums::Floats => (None, None),
                Sums::Scaled(scales) => (Some(part(scales, first, width)), None),
                Sums::Whole {
                    rows,
                    scales,
                    weights,
                } => {
                    let scales = part(scales, first, width);
                    (None, Some((rows, scales, part(weights, first, width))))
                }
            };
            // By index: iterators that step cost a division.
            for row in 0..place.rows {
                let sums = &blocks[first / BLOCK * place.rows + row];
                let start = (place.row + row) * place.outputs + column;
                let mut values = sums.map(f32::from_bits);
                if let Some(scales) = scales {
                    for (value, column) in values.iter_mut().zip(scales) {
                        *value *= column;
                    }
                }
                if let Some((rows, scales, weights)) = whole {
                    let RowScale { scale, zero } = rows[row];
                    let columns = scales.iter().zip(weights);
                    for ((value, &sum), (column, weights)) in values.iter_mut().zip(sums).zip(columns) {
                        let sum = (sum as i32).wrapping_add(zero.wrapping_mul(weights));
                        *value = sum as f32 * (scale * column);
                    }
                }
                if let Some(bias) = bias {
                    for (value, bias) in values.iter_mut().zip(bias) {
                        *value += bias;
                    }
                }
                activate_plain::<FUSED>(epilogue.activation, &mut values);
                if let Some(times) = epilogue.times {
                    for (value, times) in values.iter_mut().zip(part(times, start, width)) {
                        *value *= times;
                    }
                }
                if let Some(scale) = scale {
                    for (value, scale) in values.iter_mut().zip(scale) {
                        *value *= scale;
                    }
                }
                if let Some(residual) = epilogue.residual {
                    for (value, residual) in values.iter_mut().zip(part(residual, start, width)) {
                        *value += residual;
                    }
                }
                // SAFETY: tiles do not overlap, each is finished once, and the memory outlives the jobs.
                unsafe { out.write(start, &values[..width]) };
            }
            first += BLOCK;
        }
    }
}

/// `width` numbers from `start` on, filled up with zeros.
#[inline(always)]
fn part<T: Copy + Default>(numbers: &[T], start: usize, width: usize) -> [T; BLOCK] {
    let numbers = &numbers[start..start + width];
    match numbers.as_array() {
        Some(numbers) => *numbers,
        None => {
            let mut part = [T::default(); BLOCK];
            part[..width].copy_from_slice(numbers);
            part
        }
    }
}

vectorised! {
    fn activate(activation: Activation, x: &mut [f32]) {
        activate_plain::<FUSED>(activation, x);
    }
}

#[inline(always)]
fn activate_plain<const FUSED: bool>(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Gelu => map(x, |x| x * math::phi_of::<FUSED>(x).0),
        Activation::GeluTanh => map(x, |x| x * math::phi_tanh(x).0),
        Activation::QuickGelu => map(x, |x| x * math::sigmoid(1.702 * x)),
        Activation::Silu => map(x, |x| x * math::sigmoid(x)),
        Activation::Relu => map(x, |x| if x < 0.0 { 0.0 } else { x }),
    }
}

/// By a plain loop: adapters of iterators may be compiled apart from it, and then for no instruction set.
#[inline(always)]
fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in x {
        *x = f(*x);
    }
}
