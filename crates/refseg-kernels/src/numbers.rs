//! Numbers as they are stored.

use std::{fmt, ops::Range};

use rayon::prelude::*;

use crate::{
    InstructionSet,
    instruction_set::vectorised,
    precision::{largest_magnitude, round_to_bf16, widen_bf16},
};

/// Numbers in the type that they are stored in. Those of a file are little-endian, and start anywhere in memory.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// As they are computed with.
    Floats(&'a [f32]),
    /// 64-bit floats of a file: rounded, and infinite beyond the range of f32.
    F64(&'a [[u8; 8]]),
    /// 32-bit floats of a file.
    F32(&'a [[u8; 4]]),
    /// IEEE half precision, of a file.
    F16(&'a [[u8; 2]]),
    /// Upper halves of 32-bit floats, of a file.
    Bf16(&'a [[u8; 2]]),
}

/// Numbers that one job of the pool converts.
const PART: usize = 1 << 16;

/// Numbers that are widened at a time: few enough for the nearest cache.
pub(crate) const PIECE: usize = 256;

impl<'a> Numbers<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        match self {
            Self::Floats(x) => x.len(),
            Self::F64(x) => x.len(),
            Self::F32(x) => x.len(),
            Self::F16(x) | Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// All of them as f32.
    ///
    /// # Errors
    /// If one of them is NaN or infinite.
    pub fn to_f32(self) -> Result<Vec<f32>, NonFinite> {
        self.convert(widen_part)
    }

    /// All of them rounded to bf16, ties to even: upper halves of f32.
    ///
    /// # Errors
    /// If one of them is NaN or infinite. What is too large for bf16 becomes infinite.
    pub fn to_bf16(self) -> Result<Vec<u16>, NonFinite> {
        self.convert(round_part)
    }

    /// In parts, by what also gives the largest magnitude of a part.
    fn convert<T: Copy + Default + Send>(
        self,
        part: impl Fn(InstructionSet, Numbers<'_>, &mut [T]) -> f32 + Sync,
    ) -> Result<Vec<T>, NonFinite> {
        let set = InstructionSet::current();
        let mut converted = vec![T::default(); self.len()];
        let finite = converted
            .par_chunks_mut(PART)
            .enumerate()
            .map(|(index, converted)| {
                let start = index * PART;
                let numbers = self.part(start..start + converted.len());
                part(set, numbers, converted).is_finite()
            })
            .reduce(|| true, |a, b| a & b);
        self.checked(finite, converted)
    }

    /// What was made of them, if they were `finite`.
    pub(crate) fn checked<T>(self, finite: bool, made: T) -> Result<T, NonFinite> {
        let fault = if finite {
            None
        } else {
            self.first_non_finite()
        };
        fault.map_or(Ok(made), Err)
    }

    #[inline(always)]
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Floats(x) => Self::Floats(&x[range]),
            Self::F64(x) => Self::F64(&x[range]),
            Self::F32(x) => Self::F32(&x[range]),
            Self::F16(x) => Self::F16(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
        }
    }

    /// Writes them as f32, as many as there is room for.
    #[inline(always)]
    pub(crate) fn widen(self, out: &mut [f32]) {
        match self {
            Self::Floats(x) => each(x, out, |x| x),
            Self::F64(x) => each(x, out, |x| f64::from_le_bytes(x) as f32),
            Self::F32(x) => each(x, out, f32::from_le_bytes),
            Self::F16(x) => each(x, out, |x| widen_f16(u16::from_le_bytes(x))),
            Self::Bf16(x) => each(x, out, |x| widen_bf16(u16::from_le_bytes(x))),
        }
    }

    /// The largest magnitude; NaN if one of them is NaN.
    #[inline(always)]
    pub(crate) fn largest(self) -> f32 {
        if let Self::Floats(x) = self {
            return largest_magnitude(x);
        }
        let mut piece = [0.0; PIECE];
        // As numbers' bits are compared, not the numbers: NaN would get lost.
        let mut largest = 0;
        for start in (0..self.len()).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(self.len() - start)];
            self.part(start..start + piece.len()).widen(piece);
            largest = largest.max(largest_magnitude(piece).to_bits());
        }
        f32::from_bits(largest)
    }

    /// The first that is NaN or infinite.
    fn first_non_finite(self) -> Option<NonFinite> {
        let mut piece = [0.0; PIECE];
        (0..self.len()).step_by(PIECE).find_map(|start| {
            let piece = &mut piece[..PIECE.min(self.len() - start)];
            self.part(start..start + piece.len()).widen(piece);
            let index = piece.iter().position(|value| !value.is_finite())?;
            Some(NonFinite {
                index: start + index,
                value: piece[index],
            })
        })
    }
}

/// A number that cannot be a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NonFinite {
    /// Where it is: the first such number.
    pub index: usize,
    /// NaN or an infinity.
    pub value: f32,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "number {} is {}", self.index, self.value)
    }
}

impl std::error::Error for NonFinite {}

vectorised! {
    fn widen_part(numbers: Numbers<'_>, out: &mut [f32]) -> f32 {
        let mut largest = 0;
        for (index, out) in out.chunks_mut(PIECE).enumerate() {
            let start = index * PIECE;
            numbers.part(start..start + out.len()).widen(out);
            largest = largest.max(largest_magnitude(out).to_bits());
        }
        f32::from_bits(largest)
    }
}

vectorised! {
    fn round_part(numbers: Numbers<'_>, out: &mut [u16]) -> f32 {
        let mut piece = [0.0; PIECE];
        let mut largest = 0;
        for (index, out) in out.chunks_mut(PIECE).enumerate() {
            let (start, piece) = (index * PIECE, &mut piece[..out.len()]);
            numbers.part(start..start + out.len()).widen(piece);
            largest = largest.max(largest_magnitude(piece).to_bits());
            each(piece, out, round_to_bf16);
        }
        f32::from_bits(largest)
    }
}

#[inline(always)]
pub(crate) fn each<A: Copy, B>(from: &[A], to: &mut [B], convert: impl Fn(A) -> B) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = convert(from);
    }
}

/// The f32 of the same value as a number in IEEE half precision.
#[inline(always)]
fn widen_f16(x: u16) -> f32 {
    /// The value of the last bit of numbers without an exponent.
    const STEP: f32 = 1.0 / 16_777_216.0;
    /// What exponents of f32 are larger by, for the same power of two.
    const BIAS: u32 = (127 - 15) << 23;
    let bits = u32::from(x & 0x7FFF);
    let magnitude = match bits >> 10 {
        0 => (bits as i32 as f32 * STEP).to_bits(),
        31 => bits << 13 | 0x7F80_0000,
        _ => (bits << 13) + BIAS,
    };
    f32::from_bits(magnitude | u32::from(x & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that IEEE 754 gives the bits of a half.
    #[test]
    fn every_half_is_widened_to_its_value() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let magnitude = match exponent {
                0 => fraction * 2f64.powi(-24),
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
            };
            let expected = magnitude.copysign(if bits >> 15 == 1 { -1.0 } else { 1.0 }) as f32;
            let found = widen_f16(bits);
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{bits:#x}: {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn the_first_number_that_is_none_is_named() {
        // The last one of a part, and behind it.
        for index in [0, PIECE - 1, PART - 1, PART, PART + 300] {
            for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut numbers = vec![1.0; PART + 301];
                numbers[index] = value;
                numbers[PART + 300] = value;
                let stored: Vec<_> = numbers.iter().map(|x| x.to_le_bytes()).collect();
                for numbers in [Numbers::Floats(&numbers), Numbers::F32(&stored)] {
                    let found = [numbers.to_f32().map(|_| ()), numbers.to_bf16().map(|_| ())];
                    for found in found.map(Result::unwrap_err) {
                        assert_eq!(found.index, index);
                        assert!(found.value == value || found.value.is_nan() && value.is_nan());
                    }
                }
            }
        }
        let beyond = [1e300f64.to_le_bytes()];
        let found = Numbers::F64(&beyond).to_f32();
        let value = f32::INFINITY;
        assert_eq!(found, Err(NonFinite { index: 0, value }));
    }

    #[test]
    fn numbers_of_every_type_are_converted() {
        let values: Vec<f32> = (0..PART + 77).map(|i| (i % 509) as f32 - 254.0).collect();
        let upper = |x: f32| (x.to_bits() >> 16) as u16;
        let f64s: Vec<_> = values.iter().map(|&x| f64::from(x).to_le_bytes()).collect();
        let f32s: Vec<_> = values.iter().map(|x| x.to_le_bytes()).collect();
        // Whole numbers of at most 8 bits: nothing is rounded.
        let bf16s: Vec<_> = values.iter().map(|&x| upper(x).to_le_bytes()).collect();
        for numbers in [
            Numbers::Floats(&values),
            Numbers::F64(&f64s),
            Numbers::F32(&f32s),
            Numbers::Bf16(&bf16s),
        ] {
            assert_eq!(numbers.to_f32().as_ref(), Ok(&values));
            let halves: Vec<_> = values.iter().map(|&x| upper(x)).collect();
            assert_eq!(numbers.to_bf16(), Ok(halves));
        }
    }
}
