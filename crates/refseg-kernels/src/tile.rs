//! The innermost loop: a strip of rows times a panel of columns, summed in registers.
//!
//! A *unit* is 32 bits that an instruction multiplies and adds at once: an f32, two bf16, two 16-bit or four 8-bit whole
//! numbers. A *panel* holds, for one step after another along the inputs, a unit for each of its columns. A *strip*
//! holds the units of a few rows in blocks of [`BLOCK`] steps, one row's block after the other's, so that it is packed
//! by copying cache lines. Panels, strips and sums are all kept as `u32`, whatever their bits mean.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::InstructionSet;

/// Steps of a row that stand together in a strip: a cache line of units.
pub(crate) const BLOCK: usize = 16;

/// The most columns of a panel, for any instruction set.
pub(crate) const MOST_COLUMNS: usize = 64;

/// What the 32 bits of a unit are, in the panel and in the strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// An f32, summed in f32.
    Float,
    /// Two bf16 (the earlier one in the lower half), summed in f32. With AVX512-BF16 only.
    Bf16Pair,
    /// Two 16-bit whole numbers, summed in 32 bits.
    ShortPair,
    /// Four 8-bit whole numbers, summed in 32 bits: those of the panel raised by 128, those of the strip signed. With
    /// VNNI only.
    ByteQuad,
}

impl Unit {
    /// Inputs that one unit covers.
    pub(crate) fn inputs(self) -> usize {
        match self {
            Self::Float => 1,
            Self::Bf16Pair | Self::ShortPair => 2,
            Self::ByteQuad => 4,
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

impl Next {
    /// Nothing worth fetching.
    pub(crate) const NONE: Self = Self {
        strip: std::ptr::null(),
        panel: std::ptr::null(),
        lines: 0,
    };
}

/// The innermost loop for an instruction set and a kind of unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) set: InstructionSet,
    pub(crate) unit: Unit,
}

impl Tile {
    /// The most rows of a strip.
    pub(crate) fn rows(self) -> usize {
        match self.set {
            InstructionSet::Portable => portable::ROWS,
            _ => 6,
        }
    }

    /// Columns of every panel.
    pub(crate) fn columns(self) -> usize {
        match self.set {
            InstructionSet::Portable => portable::COLUMNS,
            InstructionSet::Avx2 => 16,
            _ => 64,
        }
    }

    /// Adds `strip · panel` to the sums of `rows` × [`Tile::columns`], in the order of the steps.
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
                (Unit::ShortPair, _) => short_pairs_512(rows, product.next.lines),
                (Unit::ByteQuad, _) => byte_quads_512(rows, product.next.lines),
                (Unit::Bf16Pair, _) => bf16_pairs_512(rows, product.next.lines),
            };
            // SAFETY: a `Packed` is made for sets only that this machine has, and for units only that the set has; the
            // slices are as long as the kernel needs by the assertion above.
            unsafe { kernel(product, sums.as_mut_ptr()) }
        }
    }
}
