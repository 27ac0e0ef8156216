//! In which numbers a weight is kept.

use std::{fmt, str::FromStr};

use crate::tile::SLAB;

/// In which numbers a weight is kept. All that goes in and comes out is f32 whatever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As it was trained: 4 bytes a weight.
    #[default]
    F32,
    /// Rounded to the upper half of an f32: 2 bytes a weight.
    ///
    /// With AVX512-BF16, and with the BF16 of AArch64, the activations are rounded likewise, and numbers below 1.2e-38
    /// count as zeros; elsewhere activations stay f32, and such numbers what they are.
    Bf16,
    /// Whole numbers from −4,095 to 4,095 and one scale for each output: 2 bytes a weight.
    ///
    /// Activations are rounded likewise, with one scale for each row, and multiplied in pairs: where there is VNNI nearly
    /// twice as fast as f32. That is closer than bf16 unless one number of a row is some thirty times as large as the
    /// others, and coarser for these if it is. NaN and infinities give what they give in int8; a row or an output whose
    /// largest magnitude is below 1.3e-35 counts as zeros, and a row of over 1e38 in all may give infinities whatever it
    /// is multiplied by.
    Int16,
    /// Whole numbers from −127 to 127 and one scale for each output: 1 byte a weight.
    ///
    /// Activations are rounded to 254 steps from the smallest number of a row, or zero, to its largest, or zero, and zero
    /// to zero. A row that holds NaN or an infinity has no such steps, and gives a row of NaN; so does an output with
    /// such a weight. A row whose largest magnitude is below 1e-36 may count as zeros.
    Int8,
}

impl Precision {
    /// All of them, widest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int16, Self::Int8];

    /// `f32`, `bf16`, `int16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        }
    }

    /// The largest whole number that weights and activations are rounded to, if they are.
    pub(crate) fn largest_whole(self) -> Option<f32> {
        match self {
            Self::F32 | Self::Bf16 => None,
            Self::Int16 => Some(MOST_INT16),
            Self::Int8 => Some(127.0),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whole numbers of which what a slab of pairs comes to fits 32 bits.
pub(crate) const MOST_INT16: f32 = 4_095.0;
const _: () = assert!(2 * SLAB as i64 * MOST_INT16 as i64 * MOST_INT16 as i64 <= i32::MAX as i64);

/// Rounds to bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    // Rounding up could carry a NaN over into an infinity or zero; a set bit of the upper half keeps it one.
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// The f32 of the same value.
#[inline(always)]
pub(crate) fn widen_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// What turns numbers of at most `largest` in magnitude into whole numbers from −`limit` to `limit`, and what turns those
/// back.
///
/// Both are NaN if `largest` is not finite, and 0 if it is too small to be divided by.
#[inline(always)]
pub(crate) fn whole_scales(largest: f32, limit: f32) -> (f32, f32) {
    let inverse = limit / largest;
    if !largest.is_finite() {
        (f32::NAN, f32::NAN)
    } else if inverse.is_infinite() {
        (0.0, 0.0)
    } else {
        (inverse, largest / limit)
    }
}

/// The largest magnitude; NaN if one of them is NaN.
#[inline(always)]
pub(crate) fn largest_magnitude(x: &[f32]) -> f32 {
    const LANES: usize = 64;
    // Magnitudes are ordered as their bits are, and NaN comes last: whole numbers compare faster, and lose no NaN.
    let magnitude = |x: f32| x.to_bits() & 0x7FFF_FFFF;
    let mut lanes = [0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = magnitude(x).max(*lane);
        }
    }
    let lanes = lanes.into_iter().max().unwrap_or(0);
    f32::from_bits(rest.iter().map(|&x| magnitude(x)).fold(lanes, u32::max))
}

/// Adding this rounds to a whole number and leaves it in the low bits: 1.5 · 2²³.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The low 16 bits of the nearest whole number of `x · inverse`, ties to even. Both are such that it is within ±2²².
#[inline(always)]
pub(crate) fn round_to_whole(x: f32, inverse: f32) -> u16 {
    (x * inverse + ROUND).to_bits() as u16
}

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPrecision(String);

impl fmt::Display for UnknownPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no precision: choose f32, bf16, int16 or int8",
            self.0
        )
    }
}

impl std::error::Error for UnknownPrecision {}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.name() == name)
            .ok_or_else(|| UnknownPrecision(name.into()))
    }
}
