//! What is computed row by row: norms, and turns by positions.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::{Heads, InstructionSet, instruction_set::vectorised};

/// Numbers that one task works on: enough to be worth handing over, few enough to stay in cache.
const TASK: usize = 1 << 14;

/// What a [`norm`] is to give.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `(D)`: what each number is multiplied by.
    pub weight: &'a [f32],
    /// `(D)`: what is added to it then.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether rows are moved to a mean of zero: a layer norm, rather than a root-mean-square norm.
    pub centred: bool,
}

/// `(x − mean) / √(variance + ε) · weight + bias` of each row.
///
/// # Shapes
/// - `x`: `(rows, D)`
/// - returns `(rows, D)`
///
/// # Panics
/// If `x` or the bias does not fit the weight.
pub fn norm(x: &[f32], norm: Norm<'_>) -> Vec<f32> {
    let width = norm.weight.len();
    assert!(
        norm.bias.is_none_or(|bias| bias.len() == width)
            && (x.is_empty() || x.len().is_multiple_of(width)),
        "{} numbers are no rows of {width} with a bias for each",
        x.len()
    );
    let set = InstructionSet::current();
    // SAFETY: `norm_row` writes all of the row.
    unsafe {
        rows(x.len(), width, |row, out| {
            norm_row(set, &x[row * width..][..width], norm, out)
        })
    }
}

vectorised! {
    fn norm_row(x: &[f32], norm: Norm<'_>, out: &mut [MaybeUninit<f32>]) {
        let (mean, scale) = moments(x, norm.epsilon, norm.centred);
        let parts = out.iter_mut().zip(x).zip(norm.weight);
        match norm.bias {
            None => parts.for_each(|((out, &x), &weight)| {
                out.write((x - mean) * scale * weight);
            }),
            Some(bias) => parts.zip(bias).for_each(|(((out, &x), &weight), &bias)| {
                out.write((x - mean) * scale * weight + bias);
            }),
        }
    }
}

/// Turns queries or keys by their positions: the pair of numbers `k` and `k + d/2` by an angle of its own.
///
/// # Shapes
/// - `x`: `(B, H, L, d)`, with sizes `[B, H, L]`
/// - `cos`, `sin`: `(L, d/2)`
/// - returns `(B, H, L, d)`
///
/// # Panics
/// If a slice does not fit the sizes.
pub fn rope(
    x: Heads<'_>,
    [batch, heads, length]: [usize; 3],
    cos: &[f32],
    sin: &[f32],
) -> Vec<f32> {
    let half = cos.len().checked_div(length).unwrap_or(0);
    assert!(
        cos.len() == length * half && sin.len() == cos.len(),
        "{} cosines and {} sines are no tables of {length} rows",
        cos.len(),
        sin.len()
    );
    x.check("x", [batch, heads, length], 2 * half);
    let set = InstructionSet::current();
    let turn = |row: usize, out: &mut [MaybeUninit<f32>]| {
        let (head, at) = (row / length, row % length);
        let x = x.row(head / heads, head % heads, at, 2 * half);
        let [cos, sin] = [cos, sin].map(|table| &table[at * half..][..half]);
        turn_row(set, x, cos, sin, out);
    };
    // SAFETY: `turn_row` writes all of the row.
    unsafe { rows(batch * heads * length * 2 * half, 2 * half, turn) }
}

vectorised! {
    fn turn_row(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [MaybeUninit<f32>]) {
        let half = cos.len();
        let (first, second) = x.split_at(half);
        let (to_first, to_second) = out.split_at_mut(half);
        let from = first.iter().zip(second).zip(cos.iter().zip(sin));
        for ((to_first, to_second), ((first, second), (cos, sin))) in to_first.iter_mut().zip(to_second).zip(from) {
            to_first.write(first * cos - second * sin);
            to_second.write(second * cos + first * sin);
        }
    }
}

/// New memory of `len` numbers, of which `write` writes each row, given its index.
///
/// # Safety
/// `write` writes all of the row.
unsafe fn rows(
    len: usize,
    width: usize,
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    if len == 0 {
        return out;
    }
    let task = TASK.div_ceil(width);
    out.spare_capacity_mut()[..len]
        .par_chunks_mut(task * width)
        .enumerate()
        .for_each(|(index, out)| {
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                write(index * task + row, out);
            }
        });
    // SAFETY: as many numbers fit, and each row of them has been written.
    unsafe { out.set_len(len) };
    out
}

/// Independent sums, so that they can be kept side by side in one register.
const LANES: usize = 16;

/// `x` folded by `step` in independent lanes, which `join` then joins.
#[inline(always)]
pub fn lanes(
    x: &[f32],
    start: f32,
    step: impl Fn(f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut sums = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum = step(*sum, x);
        }
    }
    let tail = rest.iter().fold(start, |sum, &x| step(sum, x));
    join(sums.into_iter().reduce(&join).unwrap_or(start), tail)
}

/// Mean, and 1 over the deviation; around zero unless `centred`.
#[inline(always)]
pub fn moments(x: &[f32], epsilon: f32, centred: bool) -> (f32, f32) {
    let share = 1.0 / x.len() as f32;
    let mean = if centred {
        lanes(x, 0.0, |sum, x| sum + x, |a, b| a + b) * share
    } else {
        0.0
    };
    let square = lanes(x, 0.0, |sum, x| sum + (x - mean) * (x - mean), |a, b| a + b) * share;
    (mean, 1.0 / (square + epsilon).sqrt())
}
