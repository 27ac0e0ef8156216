//! Tiles in plain Rust.

use super::{BLOCK, Product, Unit};

/// With columns below, what 16 registers of SSE2 and 32 of NEON hold.
pub(super) const ROWS: usize = if cfg!(target_arch = "aarch64") { 4 } else { 2 };
pub(super) const COLUMNS: usize = 16;

// A row of sums is one block, so that they lie as a strip.
const _: () = assert!(COLUMNS == BLOCK);

pub(super) fn accumulate(unit: Unit, product: Product<'_>, sums: &mut [u32]) {
    let add = match unit {
        Unit::Float => floats,
        Unit::ShortPair => short_pairs,
        #[cfg(test)]
        Unit::Bf16Pair => bf16_pairs,
        #[cfg(test)]
        Unit::ByteQuad => byte_quads,
        #[cfg(test)]
        Unit::SignedQuad => signed_quads,
        #[cfg(not(test))]
        Unit::Bf16Pair | Unit::ByteQuad | Unit::SignedQuad => {
            unreachable!("packed for other instruction sets")
        }
    };
    match product.rows {
        1 => tile::<1>(product, sums, add),
        2 => tile::<2>(product, sums, add),
        3 => tile::<3>(product, sums, add),
        4 => tile::<4>(product, sums, add),
        rows => unreachable!("a strip has 1 to {ROWS} rows, not {rows}"),
    }
}

#[inline(always)]
fn tile<const R: usize>(
    product: Product<'_>,
    sums: &mut [u32],
    add: impl Fn(u32, u32, u32) -> u32,
) {
    let Product {
        steps,
        strip,
        panel,
        ..
    } = product;
    let mut tile = [[0; COLUMNS]; R];
    if !product.fresh {
        for (tile, sums) in tile.iter_mut().zip(sums.chunks_exact(COLUMNS)) {
            tile.copy_from_slice(sums);
        }
    }
    let blocks = strip.chunks_exact(BLOCK * R);
    for (block, panel) in blocks.zip(panel[..steps * COLUMNS].chunks(BLOCK * COLUMNS)) {
        for (step, weights) in panel.chunks_exact(COLUMNS).enumerate() {
            for (row, sums) in tile.iter_mut().enumerate() {
                let x = block[row * BLOCK + step];
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum = add(*sum, x, weight);
                }
            }
        }
    }
    for (tile, sums) in tile.iter().zip(sums.chunks_exact_mut(COLUMNS)) {
        sums.copy_from_slice(tile);
    }
}

/// AArch64 has fused products everywhere, and the compiler a slow call for them elsewhere.
#[inline(always)]
fn floats(sum: u32, x: u32, weight: u32) -> u32 {
    let [sum, x, weight] = [sum, x, weight].map(f32::from_bits);
    if cfg!(target_arch = "aarch64") {
        x.mul_add(weight, sum).to_bits()
    } else {
        (sum + x * weight).to_bits()
    }
}

#[inline(always)]
fn short_pairs(sum: u32, x: u32, weight: u32) -> u32 {
    let low = |pair: u32| i32::from(pair as i16);
    let high = |pair: u32| i32::from((pair >> 16) as i16);
    let products = (low(x) * low(weight)).wrapping_add(high(x) * high(weight));
    sum.wrapping_add(products as u32)
}

#[cfg(test)]
fn bf16_pairs(sum: u32, x: u32, weight: u32) -> u32 {
    let low = |pair: u32| f32::from_bits(pair << 16);
    let high = |pair: u32| f32::from_bits(pair & 0xFFFF_0000);
    let products = low(x) * low(weight) + high(x) * high(weight);
    (f32::from_bits(sum) + products).to_bits()
}

#[cfg(test)]
fn byte_quads(sum: u32, x: u32, weight: u32) -> u32 {
    let pairs = x.to_le_bytes().into_iter().zip(weight.to_le_bytes());
    let products: i32 = pairs
        .map(|(x, weight)| i32::from(x) * i32::from(weight as i8))
        .sum();
    sum.wrapping_add(products as u32)
}

#[cfg(test)]
fn signed_quads(sum: u32, x: u32, weight: u32) -> u32 {
    let pairs = x.to_le_bytes().into_iter().zip(weight.to_le_bytes());
    let products: i32 = pairs
        .map(|(x, weight)| i32::from(x as i8) * i32::from(weight as i8))
        .sum();
    sum.wrapping_add(products as u32)
}
