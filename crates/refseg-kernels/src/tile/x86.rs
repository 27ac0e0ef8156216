//! Tiles in AVX2 and AVX-512: 6 rows of two vectors with the 16 registers of the one, of four with the 32 of the other.
//!
//! A tile of 14 rows of two vectors fills 32 registers as well, but loads more for each product: where another
//! hyperthread takes its share of the core's loads and instructions, 6 rows of four are a tenth faster; alone on a core,
//! both run at the speed of the products.

use std::arch::x86_64::*;

use super::{BLOCK, Product};

/// Adds a product to sums.
///
/// # Safety
/// The machine has the kernel's instructions; the slices, and what `sums` points at, are as long as
/// [`super::Tile::accumulate`] has them.
pub(super) type Kernel = unsafe fn(product: Product<'_>, sums: *mut u32);

/// Fetches a cache line.
#[inline(always)]
pub(super) fn fetch(line: *const u8) {
    // SAFETY: all x86-64 has it, and it changes nothing that a program can see, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
}

/// Makes a function that gives the kernel for a number of rows, and of cache lines to fetch every four steps.
macro_rules! kernels {
    (
        $(#[$attribute:meta])*
        $name:ident, $features:literal, $width:literal $vector:ty,
        $load:ident, $store:ident, $spread:ident, $add:expr
    ) => {
        $(#[$attribute])*
        pub(super) fn $name(rows: usize, lines: usize) -> Kernel {
            const LANES: usize = size_of::<$vector>() / size_of::<u32>();
            const COLUMNS: usize = $width * LANES;

            /// Where a vector of a row's sums stands: sums lie as a strip of so many rows.
            const fn place(rows: usize, row: usize, vector: usize) -> usize {
                let column = vector * LANES;
                (column / BLOCK * rows + row) * BLOCK + column % BLOCK
            }

            /// Adds one step.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn add<const R: usize>(
                tile: &mut [[$vector; $width]; R],
                strip: *const u32,
                panel: *const u32,
            ) {
                // SAFETY: as for the kernel.
                unsafe {
                    let weights: [$vector; $width] =
                        std::array::from_fn(|i| $load(panel.add(i * LANES).cast()));
                    for (row, sums) in tile.iter_mut().enumerate() {
                        let x = $spread(*strip.add(row * BLOCK).cast());
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = $add(*sum, x, weights);
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn kernel<const R: usize, const LINES: usize>(
                product: Product<'_>,
                sums: *mut u32,
            ) {
                let Product {
                    mut steps,
                    mut next,
                    fresh,
                    ..
                } = product;
                let (mut strip, mut panel) = (product.strip.as_ptr(), product.panel.as_ptr());
                // SAFETY: sums are a strip of R rows, COLUMNS long, a panel has COLUMNS a step, and a strip R blocks for
                // each block of steps; no pointer is read from beyond the steps. That is what the caller answers for.
                unsafe {
                    let mut tile: [[$vector; $width]; R] = [[std::mem::zeroed(); $width]; R];
                    if !fresh {
                        tile = std::array::from_fn(|row| {
                            std::array::from_fn(|i| {
                                $load(sums.add(place(R, row, i)).cast())
                            })
                        });
                    }
                    while steps > 0 {
                        let block = steps.min(BLOCK);
                        // Four at a time, so that little but products is left.
                        for step in (0..block / 4 * 4).step_by(4) {
                            _mm_prefetch::<_MM_HINT_T0>(next.strip.cast());
                            next.strip = next.strip.wrapping_add(64);
                            for _ in 0..LINES {
                                _mm_prefetch::<_MM_HINT_T1>(next.panel.cast());
                                next.panel = next.panel.wrapping_add(64);
                            }
                            for step in step..step + 4 {
                                add(&mut tile, strip.add(step), panel.add(step * COLUMNS));
                            }
                        }
                        for step in block / 4 * 4..block {
                            add(&mut tile, strip.add(step), panel.add(step * COLUMNS));
                        }
                        panel = panel.add(block * COLUMNS);
                        strip = strip.add(R * BLOCK);
                        steps -= block;
                    }
                    for (row, tile) in tile.into_iter().enumerate() {
                        for (i, tile) in tile.into_iter().enumerate() {
                            $store(sums.add(place(R, row, i)).cast(), tile);
                        }
                    }
                }
            }
            match (rows, lines) {
                (1,0..=1) => kernel::<1,1>, (1,2..=4) => kernel::<1,4>, (1,_) => kernel::<1,16>,
(2,0..=1) => kernel::<2,1>, (2,2..=4) => kernel::<2,4>, (2,_) => kernel::<2,16>,
(3,0..=1) => kernel::<3,1>, (3,2..=4) => kernel::<3,4>, (3,_) => kernel::<3,16>,
(4,0..=1) => kernel::<4,1>, (4,2..=4) => kernel::<4,4>, (4,_) => kernel::<4,16>,
(5,0..=1) => kernel::<5,1>, (5,2..=4) => kernel::<5,4>, (5,_) => kernel::<5,16>,
(6,0..=1) => kernel::<6,1>, (6,2..=4) => kernel::<6,4>, (6,_) => kernel::<6,16>,_ => unreachable!("no strip has {rows} rows"),
            }
        }
    };
}

kernels! {
    floats_512, "avx512f", 4 __m512,
    _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
    |sum, x, weights| _mm512_fmadd_ps(x, weights, sum)
}

kernels! {
    /// `vpmaddwd` sums two products in 32 bits, which only four times −32,768 would not fit.
    short_pairs_512, "avx512f,avx512bw", 4 __m512i,
    _mm512_loadu_epi32, _mm512_storeu_epi32, _mm512_set1_epi32,
    |sum, x, weights| _mm512_add_epi32(sum, _mm512_madd_epi16(x, weights))
}

kernels! {
    /// `vpdpwssd` sums two products in 32 bits, and wraps around as `wrapping_add` does.
    short_pairs_vnni, "avx512f,avx512vnni", 4 __m512i,
    _mm512_loadu_epi32, _mm512_storeu_epi32, _mm512_set1_epi32,
    |sum, x, weights| _mm512_dpwssd_epi32(sum, x, weights)
}

kernels! {
    /// Four products of an unsigned byte and a signed one are at most 4·255·127: `vpdpbusd` sums them in 32 bits
    /// without saturating, and wraps around as `wrapping_add` does.
    byte_quads_512, "avx512f,avx512vnni", 4 __m512i,
    _mm512_loadu_epi32, _mm512_storeu_epi32, _mm512_set1_epi32,
    |sum, x, weights| _mm512_dpbusd_epi32(sum, x, weights)
}

kernels! {
    bf16_pairs_512, "avx512f,avx512bf16", 4 __m512,
    _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
    |sum, x: __m512, weights: __m512| _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512, __m512bh>(x),
        std::mem::transmute::<__m512, __m512bh>(weights),
    )
}

kernels! {
    floats_256, "avx2,fma", 2 __m256,
    _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
    |sum, x, weights| _mm256_fmadd_ps(x, weights, sum)
}

kernels! {
    short_pairs_256, "avx2", 2 __m256i,
    _mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32,
    |sum, x, weights| _mm256_add_epi32(sum, _mm256_madd_epi16(x, weights))
}
