//! Tiles in NEON: 5 rows of four vectors with its 32 registers, or, where it multiplies matrices, 3 pairs of rows.
//!
//! Dot products and products of matrices are single instructions in assembly, since the intrinsics for them are not
//! stable in Rust 1.95.

use std::arch::{aarch64::*, asm};

use super::{BLOCK, Next, Product};

/// Adds a product to sums.
///
/// # Safety
/// The machine has the kernel's instructions; the slices, and what `sums` points at, are as long as
/// [`super::Tile::accumulate`] has them.
pub(super) type Kernel = unsafe fn(product: Product<'_>, sums: *mut u32);

/// Units of a vector.
const LANES: usize = 4;

/// Vectors of a row of a tile.
const WIDTH: usize = 4;

const COLUMNS: usize = WIDTH * LANES;

// A row of sums is one block, so that they lie as a strip.
const _: () = assert!(COLUMNS == BLOCK);

/// Makes a function that gives the kernel for a number of rows, from what adds the products of a vector of weights and
/// one lane of a vector of activations.
macro_rules! kernels {
    ($(#[$attribute:meta])* $name:ident, $features:literal, $add:ident) => {
        $(#[$attribute])*
        pub(super) fn $name(rows: usize) -> Kernel {
            /// Adds one step, which is a lane of `x`.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn add<const R: usize, const LANE: i32>(
                tile: &mut [[uint32x4_t; WIDTH]; R],
                x: [uint32x4_t; R],
                panel: *const u32,
            ) {
                for i in 0..WIDTH {
                    // SAFETY: as for the kernel.
                    let weights = unsafe { vld1q_u32(panel.add(i * LANES)) };
                    for (sums, x) in tile.iter_mut().zip(x) {
                        sums[i] = $add::<LANE>(sums[i], weights, x);
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn kernel<const R: usize>(product: Product<'_>, sums: *mut u32) {
                let Product { steps, mut next, fresh, .. } = product;
                let (strip, panel) = (product.strip.as_ptr(), product.panel.as_ptr());
                // SAFETY: sums are R rows of COLUMNS, a panel has COLUMNS a step, and a strip R blocks, each of them
                // whole, for each block of steps. That is what the caller answers for.
                unsafe {
                    let mut tile = [[vdupq_n_u32(0); WIDTH]; R];
                    if !fresh {
                        tile = std::array::from_fn(|row| {
                            std::array::from_fn(|i| vld1q_u32(sums.add(row * COLUMNS + i * LANES)))
                        });
                    }
                    for step in (0..steps).step_by(LANES) {
                        next.fetch();
                        let block = strip.add(step / BLOCK * BLOCK * R + step % BLOCK);
                        let x = std::array::from_fn(|row| vld1q_u32(block.add(row * BLOCK)));
                        let panel = panel.add(step * COLUMNS);
                        let left = steps - step;
                        if left >= LANES {
                            add::<R, 0>(&mut tile, x, panel);
                            add::<R, 1>(&mut tile, x, panel.add(COLUMNS));
                            add::<R, 2>(&mut tile, x, panel.add(2 * COLUMNS));
                            add::<R, 3>(&mut tile, x, panel.add(3 * COLUMNS));
                        } else {
                            add::<R, 0>(&mut tile, x, panel);
                            if left > 1 {
                                add::<R, 1>(&mut tile, x, panel.add(COLUMNS));
                            }
                            if left > 2 {
                                add::<R, 2>(&mut tile, x, panel.add(2 * COLUMNS));
                            }
                        }
                    }
                    for (row, tile) in tile.into_iter().enumerate() {
                        for (i, tile) in tile.into_iter().enumerate() {
                            vst1q_u32(sums.add(row * COLUMNS + i * LANES), tile);
                        }
                    }
                }
            }
            match rows {
                1 => kernel::<1>,
                2 => kernel::<2>,
                3 => kernel::<3>,
                4 => kernel::<4>,
                5 => kernel::<5>,
                _ => unreachable!("no strip has {rows} rows"),
            }
        }
    };
}

kernels! { floats, "neon", add_floats }

kernels! { short_pairs, "neon", add_short_pairs }

kernels! {
    /// Four products of signed bytes are at most 4·127²: `sdot` sums them in 32 bits, and wraps around as `wrapping_add`
    /// does.
    byte_quads, "neon,dotprod", add_byte_quads
}

#[inline]
#[target_feature(enable = "neon")]
fn add_floats<const LANE: i32>(sum: uint32x4_t, weights: uint32x4_t, x: uint32x4_t) -> uint32x4_t {
    vreinterpretq_u32_f32(vfmaq_laneq_f32::<LANE>(
        vreinterpretq_f32_u32(sum),
        vreinterpretq_f32_u32(weights),
        vreinterpretq_f32_u32(x),
    ))
}

#[inline]
#[target_feature(enable = "neon")]
fn add_short_pairs<const LANE: i32>(
    sum: uint32x4_t,
    weights: uint32x4_t,
    x: uint32x4_t,
) -> uint32x4_t {
    #[inline]
    #[target_feature(enable = "neon")]
    fn add<const EARLIER: i32, const LATER: i32>(
        sum: int32x4_t,
        weights: int16x8_t,
        x: int16x8_t,
    ) -> int32x4_t {
        let earlier = vget_low_s16(vuzp1q_s16(weights, weights));
        let later = vget_low_s16(vuzp2q_s16(weights, weights));
        let sum = vmlal_laneq_s16::<EARLIER>(sum, earlier, x);
        vmlal_laneq_s16::<LATER>(sum, later, x)
    }
    let (weights, x) = (vreinterpretq_s16_u32(weights), vreinterpretq_s16_u32(x));
    let sum = vreinterpretq_s32_u32(sum);
    vreinterpretq_u32_s32(match LANE {
        0 => add::<0, 1>(sum, weights, x),
        1 => add::<2, 3>(sum, weights, x),
        2 => add::<4, 5>(sum, weights, x),
        _ => add::<6, 7>(sum, weights, x),
    })
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_byte_quads<const LANE: i32>(
    mut sum: uint32x4_t,
    weights: uint32x4_t,
    x: uint32x4_t,
) -> uint32x4_t {
    // SAFETY: it reads and writes these registers only, and the function's features have the instruction.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {weights:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Makes a function that gives the kernel for a number of rows, from an instruction that multiplies matrices: to sums of
/// two rows and two columns it adds the products of 8 bytes of each row and of each column.
macro_rules! matrix_kernels {
    ($(#[$attribute:meta])* $name:ident, $features:literal, $instruction:literal) => {
        $(#[$attribute])*
        pub(super) fn $name(rows: usize) -> Kernel {
            #[inline]
            #[target_feature(enable = $features)]
            fn multiply(mut sum: uint32x4_t, x: uint32x4_t, weights: uint32x4_t) -> uint32x4_t {
                // SAFETY: it reads and writes these registers only, and the function's features have the instruction.
                unsafe {
                    asm!(
                        $instruction,
                        sum = inout(vreg) sum,
                        x = in(vreg) x,
                        weights = in(vreg) weights,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                sum
            }

            /// Adds two steps, or a last one.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn add<const PAIRS: usize, const BOTH: bool>(
                tile: &mut [[[uint32x4_t; 2]; WIDTH]; PAIRS],
                x: [uint32x4_t; PAIRS],
                panel: *const u32,
            ) {
                for i in 0..WIDTH {
                    // SAFETY: as for the kernel.
                    let (earlier, later) = unsafe {
                        let panel = panel.add(i * LANES);
                        let none = vdupq_n_u32(0);
                        (
                            vld1q_u32(panel),
                            if BOTH { vld1q_u32(panel.add(COLUMNS)) } else { none },
                        )
                    };
                    let weights = [vzip1q_u32(earlier, later), vzip2q_u32(earlier, later)];
                    for (sums, x) in tile.iter_mut().zip(x) {
                        for (sum, weights) in sums[i].iter_mut().zip(weights) {
                            *sum = multiply(*sum, x, weights);
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn kernel<const PAIRS: usize>(product: Product<'_>, sums: *mut u32) {
                let Product { rows, steps, mut next, fresh, .. } = product;
                let (strip, panel) = (product.strip.as_ptr(), product.panel.as_ptr());
                // The rows of each pair. An odd number of them ends with one that is paired with itself.
                let pairs: [[usize; 2]; PAIRS] =
                    std::array::from_fn(|pair| [2 * pair, (2 * pair + 1).min(rows - 1)]);
                // SAFETY: sums are `rows` rows of COLUMNS, a panel has COLUMNS a step, and a strip as many blocks, each
                // of them whole, for each block of steps. That is what the caller answers for.
                unsafe {
                    // Of each pair and vector: the first two columns, and the last two.
                    let mut tile = [[[vdupq_n_u32(0); 2]; WIDTH]; PAIRS];
                    if !fresh {
                        tile = pairs.map(|pair| {
                            std::array::from_fn(|i| {
                                swap_halves(
                                    pair.map(|row| vld1q_u32(sums.add(row * COLUMNS + i * LANES))),
                                )
                            })
                        });
                    }
                    for step in (0..steps).step_by(2) {
                        if step % LANES == 0 {
                            next.fetch();
                        }
                        let block = strip.add(step / BLOCK * BLOCK * rows + step % BLOCK);
                        let x = pairs.map(|pair| {
                            let [first, second] = pair.map(|row| vld1_u32(block.add(row * BLOCK)));
                            vcombine_u32(first, second)
                        });
                        let panel = panel.add(step * COLUMNS);
                        if step + 1 < steps {
                            add::<PAIRS, true>(&mut tile, x, panel);
                        } else {
                            // Behind its last step a strip has zeros, and a panel nothing.
                            add::<PAIRS, false>(&mut tile, x, panel);
                        }
                    }
                    for (pair, tile) in pairs.into_iter().zip(tile) {
                        for (i, tile) in tile.into_iter().enumerate() {
                            for (row, sum) in pair.into_iter().zip(swap_halves(tile)) {
                                vst1q_u32(sums.add(row * COLUMNS + i * LANES), sum);
                            }
                        }
                    }
                }
            }
            match rows {
                1 | 2 => kernel::<1>,
                3 | 4 => kernel::<2>,
                5 | 6 => kernel::<3>,
                _ => unreachable!("no strip has {rows} rows"),
            }
        }
    };
}

matrix_kernels! {
    /// `smmla` sums in 32 bits, and wraps around as `wrapping_add` does.
    byte_matrices, "neon,i8mm", "smmla {sum:v}.4s, {x:v}.16b, {weights:v}.16b"
}

matrix_kernels! {
    bf16_matrices, "neon,bf16", "bfmmla {sum:v}.4s, {x:v}.8h, {weights:v}.8h"
}

/// Swaps the upper half of the first vector for the lower half of the second: two rows of four columns become two rows
/// of their first and of their last two columns, and those become what they were.
#[inline]
#[target_feature(enable = "neon")]
fn swap_halves([first, second]: [uint32x4_t; 2]) -> [uint32x4_t; 2] {
    let (first, second) = (vreinterpretq_u64_u32(first), vreinterpretq_u64_u32(second));
    [
        vreinterpretq_u32_u64(vzip1q_u64(first, second)),
        vreinterpretq_u32_u64(vzip2q_u64(first, second)),
    ]
}

/// Fetches a cache line.
#[inline(always)]
pub(super) fn fetch(line: *const u8) {
    // SAFETY: a prefetch changes nothing that a program can see, and any address will do.
    unsafe {
        asm!("prfm pldl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

/// Fetches a cache line that will be written.
#[inline(always)]
pub(super) fn fetch_to_write(line: *const u8) {
    // SAFETY: a prefetch changes nothing that a program can see, and any address will do.
    unsafe {
        asm!("prfm pstl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

impl Next {
    /// Fetches what is due every four steps.
    #[inline]
    fn fetch(&mut self) {
        // SAFETY: a prefetch changes nothing that a program can see, and any address will do.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) self.strip, options(readonly, nostack, preserves_flags));
        }
        self.strip = self.strip.wrapping_add(64);
        for _ in 0..self.lines {
            // SAFETY: as above.
            unsafe {
                asm!("prfm pldl2keep, [{}]", in(reg) self.panel, options(readonly, nostack, preserves_flags));
            }
            self.panel = self.panel.wrapping_add(64);
        }
    }
}
