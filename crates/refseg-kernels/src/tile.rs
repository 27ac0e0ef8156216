//! The innermost loop: a strip of rows times a panel of columns, summed in registers.
//!
//! A *unit* is 32 bits that an instruction multiplies and adds at once: an f32, two bf16, two 16-bit or four 8-bit whole
//! numbers. A *panel* holds, for one step after another along the inputs, a unit for each of its columns. A *strip*
//! holds the units of a few rows in blocks of [`BLOCK`] steps, one row's block after the other's, so that it is packed
//! by copying cache lines. Sums lie as a strip does, a block for 16 columns, so that they can be one. Panels, strips and
//! sums are all kept as `u32`, whatever their bits mean.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::{InstructionSet, Precision};

/// Steps of a row that stand together in a strip: a cache line of units.
pub(crate) const BLOCK: usize = 16;

/// Steps that are summed before the next panel's: a slab of a panel stays in the nearest cache meanwhile.
pub(crate) const SLAB: usize = 64;

/// The most columns of a panel, for any instruction set.
pub(crate) const MOST_COLUMNS: usize = 64;

/// The most rows of a strip, for any instruction set.
pub(crate) const MOST_ROWS: usize = 6;

/// What the 32 bits of a unit are, in the panel and in the strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// An f32, summed in f32.
    Float,
    /// Two bf16 (the earlier one in the lower half), summed in f32. With AVX512-BF16 and the BF16 of AArch64 only.
    Bf16Pair,
    /// Two 16-bit whole numbers, summed in 32 bits.
    ShortPair,
    /// Four 8-bit whole numbers, summed in 32 bits: those of the panel signed, those of the strip unsigned. With VNNI
    /// only.
    ByteQuad,
    /// Four 8-bit whole numbers, all signed, summed in 32 bits. With DotProd and I8MM only.
    SignedQuad,
}

impl Unit {
    /// What a set multiplies with a weight of this precision.
    pub(crate) fn of(precision: Precision, set: InstructionSet) -> Self {
        use InstructionSet::*;
        match (precision, set) {
            (Precision::Bf16, Avx512Bf16 | NeonMatrix) => Self::Bf16Pair,
            (Precision::F32 | Precision::Bf16, _) => Self::Float,
            (Precision::Int8, Avx512Vnni | Avx512Bf16) => Self::ByteQuad,
            (Precision::Int8, NeonDot | NeonMatrix) => Self::SignedQuad,
            (Precision::Int16 | Precision::Int8, _) => Self::ShortPair,
        }
    }

    /// What a set multiplies in an attention of this precision: pairs of 16 bits, where it does that faster than f32.
    pub(crate) fn of_attention(precision: Precision, set: InstructionSet) -> Self {
        use InstructionSet::*;
        match (precision, set) {
            (Precision::Bf16 | Precision::Int16 | Precision::Int8, Avx512Bf16 | NeonMatrix) => {
                Self::Bf16Pair
            }
            (Precision::Int16 | Precision::Int8, Avx512Vnni) => Self::ShortPair,
            _ => Self::Float,
        }
    }

    /// Inputs that one unit covers.
    pub(crate) fn inputs(self) -> usize {
        match self {
            Self::Float => 1,
            Self::Bf16Pair | Self::ShortPair => 2,
            Self::ByteQuad | Self::SignedQuad => 4,
        }
    }
}

/// What the innermost loop works on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) rows: usize,
    pub(crate) steps: usize,
    pub(crate) strip: &'a [u32],
    pub(crate) panel: &'a [u32],
    /// Whether sums start at zero, whatever they hold.
    pub(crate) fresh: bool,
    pub(crate) next: Next,
}

/// What the innermost loop fetches from further caches while it multiplies: any address will do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next {
    /// The strip that comes next, from the second cache; a line every four steps.
    pub(crate) strip: *const u8,
    /// Some of the next slab of a panel, from memory.
    pub(crate) panel: *const u8,
    /// Cache lines of it every four steps.
    pub(crate) lines: usize,
}

/// The panel, or the slab of one, that comes next, shared out over the strips of this one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    panel: *const u8,
    /// Bytes of a strip's share.
    share: usize,
    lines: usize,
}

impl Ahead {
    /// Of `strips` strips, `steps` long. Divisions take as long as some steps, so they are here.
    pub(crate) fn new<T>(panel: &[T], strips: usize, steps: usize) -> Self {
        let share = size_of_val(panel).div_ceil(strips);
        Self {
            panel: panel.as_ptr().cast(),
            share,
            lines: share.div_ceil(64).div_ceil(steps.div_ceil(4).max(1)),
        }
    }

    /// While strip `index` is multiplied: its share, and the strip behind it.
    pub(crate) fn next(self, index: usize, strip: &[u32]) -> Next {
        Next {
            strip: strip.as_ptr().cast(),
            panel: self.panel.wrapping_add(index * self.share),
            lines: self.lines,
        }
    }
}

/// Fetches a cache line from further caches or memory, where there is an instruction for it: any address will do.
#[inline(always)]
pub(crate) fn fetch(_line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    x86::fetch(_line);
    #[cfg(target_arch = "aarch64")]
    aarch64::fetch(_line);
}

/// [`fetch`] of a line that will be written.
#[inline(always)]
pub(crate) fn fetch_to_write(_line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    x86::fetch(_line);
    #[cfg(target_arch = "aarch64")]
    aarch64::fetch_to_write(_line);
}

/// The innermost loop for an instruction set and a kind of unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) set: InstructionSet,
    pub(crate) unit: Unit,
}

impl Tile {
    /// The tile for weights of a precision.
    ///
    /// # Panics
    /// If this machine lacks the set.
    pub(crate) fn available(precision: Precision, set: InstructionSet) -> Self {
        assert!(set.is_available(), "this machine lacks {set}");
        let unit = Unit::of(precision, set);
        Self { set, unit }
    }

    /// The most rows of a strip.
    pub(crate) fn rows(self) -> usize {
        use InstructionSet::*;
        match (self.set, self.unit) {
            (Portable, _) => portable::ROWS,
            (Neon | NeonDot, _) | (NeonMatrix, Unit::Float | Unit::ShortPair) => 5,
            (Avx2 | Avx512 | Avx512Vnni | Avx512Bf16 | NeonMatrix, _) => 6,
        }
    }

    /// Columns of every panel.
    pub(crate) fn columns(self) -> usize {
        use InstructionSet::*;
        match self.set {
            Portable => portable::COLUMNS,
            Avx2 | Neon | NeonDot | NeonMatrix => 16,
            Avx512 | Avx512Vnni | Avx512Bf16 => 64,
        }
    }

    /// Adds `strip · panel` to the sums, a strip of `rows` rows and [`Tile::columns`] columns, in the order of the
    /// steps.
    pub(crate) fn accumulate(self, product: Product<'_>, sums: &mut [u32]) {
        let Product {
            rows,
            steps,
            strip,
            panel,
            ..
        } = product;
        assert!(
            strip.len() >= steps.next_multiple_of(BLOCK) * rows
                && panel.len() >= steps * self.columns()
                && sums.len() >= rows * self.columns(),
            "a tile reaches beyond its strip, its panel or its sums"
        );
        if self.set == InstructionSet::Portable {
            return portable::accumulate(self.unit, product, sums);
        }
        #[cfg(target_arch = "x86_64")]
        {
            use x86::*;
            let kernel = match (self.unit, self.set) {
                (Unit::Float, InstructionSet::Avx2) => floats_256(rows, product.next.lines),
                (Unit::Float, _) => floats_512(rows, product.next.lines),
                (Unit::ShortPair, InstructionSet::Avx2) => {
                    short_pairs_256(rows, product.next.lines)
                }
                (Unit::ShortPair, InstructionSet::Avx512) => {
                    short_pairs_512(rows, product.next.lines)
                }
                (Unit::ShortPair, _) => short_pairs_vnni(rows, product.next.lines),
                (Unit::ByteQuad, _) => byte_quads_512(rows, product.next.lines),
                (Unit::Bf16Pair, _) => bf16_pairs_512(rows, product.next.lines),
                (Unit::SignedQuad, _) => unreachable!("packed for other instruction sets"),
            };
            // SAFETY: a `Packed` is made for sets only that this machine has, and for units only that the set has; the
            // slices are as long as the kernel needs by the assertion above.
            unsafe { kernel(product, sums.as_mut_ptr()) }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use aarch64::*;
            let kernel = match (self.unit, self.set) {
                (Unit::Float, _) => floats(rows),
                (Unit::ShortPair, _) => short_pairs(rows),
                (Unit::SignedQuad, InstructionSet::NeonDot) => byte_quads(rows),
                (Unit::SignedQuad, _) => byte_matrices(rows),
                (Unit::Bf16Pair, _) => bf16_matrices(rows),
                (Unit::ByteQuad, _) => unreachable!("packed for other instruction sets"),
            };
            // SAFETY: as above.
            unsafe { kernel(product, sums.as_mut_ptr()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::round_to_bf16;

    /// There is a kernel for each number of rows, and on x86-64 for each of three numbers of lines.
    #[test]
    fn what_is_fetched_ahead_changes_no_sum() {
        // Units that are numbers up to 1 as f32, as two bf16, and as whole numbers anyway.
        let half = |i: usize| u32::from(round_to_bf16((i * 37 % 101) as f32 / 50.0 - 1.0));
        let units = |len: usize| -> Vec<_> {
            (0..len)
                .map(|i| half(2 * i) | half(2 * i + 1) << 16)
                .collect()
        };
        for set in InstructionSet::available() {
            for precision in Precision::ALL {
                let unit = Unit::of(precision, set);
                let tile = Tile { set, unit };
                let sizes = |rows| [1, 6, 37].map(|steps: usize| (rows, steps));
                for (rows, steps) in (1..=tile.rows()).flat_map(sizes) {
                    let strip = units(steps.next_multiple_of(BLOCK) * rows);
                    let panel = units(steps * tile.columns());
                    let sums = |lines| {
                        let mut sums = vec![u32::MAX; rows * tile.columns()];
                        for fresh in [true, false] {
                            let product = Product {
                                rows,
                                steps,
                                strip: &strip,
                                panel: &panel,
                                fresh,
                                next: Next {
                                    strip: std::ptr::null(),
                                    panel: std::ptr::null(),
                                    lines,
                                },
                            };
                            tile.accumulate(product, &mut sums);
                        }
                        sums
                    };
                    let plain = sums(0);
                    for lines in [2, 4, 5, 30] {
                        assert!(
                            sums(lines) == plain,
                            "{set}, {unit:?}, {rows} rows, {steps} steps"
                        );
                    }
                }
            }
        }
    }
}
