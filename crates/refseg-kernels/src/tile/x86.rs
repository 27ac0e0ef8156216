//! Tiles in AVX2 and AVX-512: two vectors wide, and as high as the registers allow.
//!
//! With 32 registers, 14 rows leave two for the panel and some for the strip; with 16, 6 rows do.

use std::arch::x86_64::*;

use super::BLOCK;

/// Adds a strip times a panel of so many steps to sums.
///
/// # Safety
/// The machine has the kernel's instructions, and the slices that the pointers start are as long as
/// [`super::Tile::accumulate`] has them.
pub(super) type Kernel =
    unsafe fn(steps: usize, strip: *const u32, panel: *const u32, sums: *mut u32);

/// Makes a function that gives the kernel for a number of rows.
macro_rules! kernels {
    (
        $(#[$attribute:meta])*
        $name:ident, $features:literal, rows $($rows:literal)+, $vector:ty,
        $load:ident, $store:ident, $spread:ident, $add:expr
    ) => {
        $(#[$attribute])*
        pub(super) fn $name(rows: usize) -> Kernel {
            #[target_feature(enable = $features)]
            unsafe fn kernel<const R: usize>(
                mut steps: usize,
                mut strip: *const u32,
                mut panel: *const u32,
                sums: *mut u32,
            ) {
                const LANES: usize = size_of::<$vector>() / size_of::<u32>();
                // SAFETY: sums are R rows of two vectors, a panel two vectors a step, and a strip R blocks for each
                // block of steps; no pointer is read from beyond the steps. That is what the caller answers for.
                unsafe {
                    let mut tile: [[$vector; 2]; R] = std::array::from_fn(|row| {
                        let sums = sums.add(row * 2 * LANES);
                        [$load(sums.cast()), $load(sums.add(LANES).cast())]
                    });
                    while steps > 0 {
                        let block = steps.min(BLOCK);
                        for step in 0..block {
                            let weights = [$load(panel.cast()), $load(panel.add(LANES).cast())];
                            panel = panel.add(2 * LANES);
                            for (row, sums) in tile.iter_mut().enumerate() {
                                let x = $spread(*strip.add(row * BLOCK + step).cast());
                                sums[0] = $add(sums[0], x, weights[0]);
                                sums[1] = $add(sums[1], x, weights[1]);
                            }
                        }
                        strip = strip.add(R * BLOCK);
                        steps -= block;
                    }
                    for (row, tile) in tile.into_iter().enumerate() {
                        let sums = sums.add(row * 2 * LANES);
                        $store(sums.cast(), tile[0]);
                        $store(sums.add(LANES).cast(), tile[1]);
                    }
                }
            }
            match rows {
                $($rows => kernel::<$rows>,)+
                _ => unreachable!("no strip has {rows} rows"),
            }
        }
    };
}

kernels! {
    floats_512, "avx512f", rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14, __m512,
    _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
    |sum, x, weights| _mm512_fmadd_ps(x, weights, sum)
}

kernels! {
    /// Two products of whole numbers up to 127 fit 16 bits twice over: `vpmaddwd` sums them in 32 bits.
    short_pairs_512, "avx512f,avx512bw", rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14, __m512i,
    _mm512_loadu_epi32, _mm512_storeu_epi32, _mm512_set1_epi32,
    |sum, x, weights| _mm512_add_epi32(sum, _mm512_madd_epi16(x, weights))
}

kernels! {
    /// Four products of an unsigned byte and a signed one are at most 4·255·127: `vpdpbusd` sums them in 32 bits
    /// without saturating, and wraps around as `wrapping_add` does.
    byte_quads_512, "avx512f,avx512vnni", rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14, __m512i,
    _mm512_loadu_epi32, _mm512_storeu_epi32, _mm512_set1_epi32,
    |sum, x, weights| _mm512_dpbusd_epi32(sum, weights, x)
}

kernels! {
    bf16_pairs_512, "avx512f,avx512bf16", rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14, __m512,
    _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
    |sum, x: __m512, weights: __m512| _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512, __m512bh>(x),
        std::mem::transmute::<__m512, __m512bh>(weights),
    )
}

kernels! {
    floats_256, "avx2,fma", rows 1 2 3 4 5 6, __m256,
    _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
    |sum, x, weights| _mm256_fmadd_ps(x, weights, sum)
}

kernels! {
    short_pairs_256, "avx2", rows 1 2 3 4 5 6, __m256i,
    _mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32,
    |sum, x, weights| _mm256_add_epi32(sum, _mm256_madd_epi16(x, weights))
}
