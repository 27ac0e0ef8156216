//! What a machine reaches when it does nothing else.

use std::{hint::black_box, time::Instant};

use rayon::prelude::*;

use crate::InstructionSet;

/// Billions of f32 operations a second with nothing but fused products, on all threads of the current pool at once: what
/// rates of products are compared with. `None` where only the compiler knows the instructions. Takes some hundredths of a
/// second.
pub fn peak() -> Option<f64> {
    const STEPS: usize = 4_000_000;
    let threads = rayon::current_num_threads();
    let start = Instant::now();
    let operations = (0..threads)
        .into_par_iter()
        .map(|_| fused_products(STEPS))
        .sum::<Option<f64>>()?;
    Some(operations * 1e-9 / start.elapsed().as_secs_f64())
}

/// Runs fused products, and says how many operations they were.
fn fused_products(steps: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;

        const CHAINS: usize = 12;

        #[target_feature(enable = "avx512f")]
        fn wide(steps: usize) {
            let mut sums = [_mm512_set1_ps(black_box(1.0)); CHAINS];
            let (a, b) = (
                _mm512_set1_ps(black_box(0.999)),
                _mm512_set1_ps(black_box(0.001)),
            );
            for _ in 0..steps {
                sums = sums.map(
                    #[inline(always)]
                    |sum| _mm512_fmadd_ps(sum, a, b),
                );
            }
            black_box(sums);
        }

        #[target_feature(enable = "avx2,fma")]
        fn narrow(steps: usize) {
            let mut sums = [_mm256_set1_ps(black_box(1.0)); CHAINS];
            let (a, b) = (
                _mm256_set1_ps(black_box(0.999)),
                _mm256_set1_ps(black_box(0.001)),
            );
            for _ in 0..steps {
                sums = sums.map(|sum| _mm256_fmadd_ps(sum, a, b));
            }
            black_box(sums);
        }

        let operations = (2 * CHAINS * steps) as f64;
        match InstructionSet::current() {
            InstructionSet::Portable => {}
            InstructionSet::Avx2 => {
                // SAFETY: the current set is one that this machine has.
                unsafe { narrow(steps) };
                return Some(8.0 * operations);
            }
            _ => {
                // SAFETY: the current set is one that this machine has.
                unsafe { wide(steps) };
                return Some(16.0 * operations);
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::aarch64::*;

        const CHAINS: usize = 20;

        #[target_feature(enable = "neon")]
        fn neon(steps: usize) {
            let mut sums = [vdupq_n_f32(black_box(1.0)); CHAINS];
            let (a, b) = (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(0.001)));
            for _ in 0..steps {
                sums = sums.map(|sum| vfmaq_f32(sum, a, b));
            }
            black_box(sums);
        }

        if InstructionSet::current() != InstructionSet::Portable {
            // SAFETY: the current set is one that this machine has.
            unsafe { neon(steps) };
            return Some(4.0 * (2 * CHAINS * steps) as f64);
        }
    }
    let _ = steps;
    None
}
