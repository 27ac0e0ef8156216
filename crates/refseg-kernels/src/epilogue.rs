//! What happens to a product before it is written.

use crate::{
    InstructionSet,
    instruction_set::vectorised,
    math,
    tile::{BLOCK, MOST_COLUMNS},
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
    /// They are whole numbers.
    Whole {
        /// Of each row of the tile.
        rows: &'a [RowScale],
        /// Of each column of the tile.
        columns: &'a [f32],
    },
}

/// How sums of a row of whole numbers become f32.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowScale {
    pub(crate) scale: f32,
    /// What the sums are too large by.
    pub(crate) excess: i32,
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
    /// The tile's columns of a row of the product's.
    #[inline(always)]
    fn part(self, of: Option<&[f32]>) -> Option<&[f32]> {
        of.map(|x| &x[self.column..][..self.columns])
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
                place.copy_from_nonoverlapping(values.as_ptr(), values.len());
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
        let Place { columns, .. } = place;
        let (bias, scale) = (place.part(epilogue.bias), place.part(epilogue.scale));
        let (blocks, _) = sums.as_chunks::<BLOCK>();
        let wide = columns.div_ceil(BLOCK);
        for row in 0..place.rows {
            let mut values = [[0.0; BLOCK]; MOST_COLUMNS / BLOCK];
            for (block, values) in values.iter_mut().enumerate().take(wide) {
                // By index: iterators that step cost a division for each row.
                let sums = &blocks[block * place.rows + row];
                for (value, &sum) in values.iter_mut().zip(sums) {
                    *value = match kind {
                        Sums::Floats => f32::from_bits(sum),
                        Sums::Whole { rows, .. } => (sum as i32).wrapping_sub(rows[row].excess) as f32,
                    };
                }
            }
            let values = &mut values.as_flattened_mut()[..columns];
            if let Sums::Whole { rows, columns } = kind {
                let scale = rows[row].scale;
                for (value, column) in values.iter_mut().zip(columns) {
                    *value *= scale * column;
                }
            }
            if let Some(bias) = bias {
                values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
            activate_plain::<FUSED>(epilogue.activation, values);
            let start = (place.row + row) * place.outputs + place.column;
            if let Some(times) = epilogue.times {
                let times = &times[start..][..columns];
                values.iter_mut().zip(times).for_each(|(value, times)| *value *= times);
            }
            if let Some(scale) = scale {
                values.iter_mut().zip(scale).for_each(|(value, scale)| *value *= scale);
            }
            if let Some(residual) = epilogue.residual {
                let residual = &residual[start..][..columns];
                values.iter_mut().zip(residual).for_each(|(value, residual)| *value += residual);
            }
            // SAFETY: tiles do not overlap, each is finished once, and the memory outlives the jobs.
            unsafe { out.write(start, values) };
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
        Activation::Gelu => x.iter_mut().for_each(|x| *x *= math::phi_of::<FUSED>(*x).0),
        Activation::GeluTanh => x.iter_mut().for_each(|x| *x *= math::phi_tanh(*x).0),
        Activation::QuickGelu => x.iter_mut().for_each(|x| *x *= math::sigmoid(1.702 * *x)),
        Activation::Silu => x.iter_mut().for_each(|x| *x *= math::sigmoid(*x)),
        Activation::Relu => x
            .iter_mut()
            .for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
    }
}
