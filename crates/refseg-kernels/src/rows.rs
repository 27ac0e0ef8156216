//! What is computed row by row: norms, turns by positions, and maps seen at points.

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

/// Maps seen between their cells: each point is a mean of the four cells around it, and lies at the edge if it lies beyond.
///
/// # Shapes
/// - `maps`: `(B, G, h·w, d)`, cells in reading order, with sizes `[B, G]` and `[h, w]`
/// - `points`: `(B, G, P, 2)`: x and y in cells, a cell's centre half a cell from its corner
/// - returns `(B, P, G·d)`
///
/// # Panics
/// If a slice does not fit the sizes, or a map has no cells.
pub fn sample(
    maps: Heads<'_>,
    [batch, groups]: [usize; 2],
    [height, width]: [usize; 2],
    channels: usize,
    points: &[f32],
) -> Vec<f32> {
    let count = points.len().checked_div(2 * batch * groups).unwrap_or(0);
    assert!(
        points.len() == 2 * batch * groups * count && height > 0 && width > 0,
        "{} coordinates are no points of {batch}×{groups} maps of {height}×{width} cells",
        points.len()
    );
    maps.check("maps", [batch, groups, height * width], channels);
    let set = InstructionSet::current();
    let see = |row: usize, out: &mut [MaybeUninit<f32>]| {
        let (sequence, point, group) = (row / (groups * count), row / groups % count, row % groups);
        let at = ((sequence * groups + group) * count + point) * 2;
        let [left, right, to_right] = around(points[at], width);
        let [top, bottom, to_bottom] = around(points[at + 1], height);
        let cell = |row: f32, column: f32| {
            maps.row(
                sequence,
                group,
                row as usize * width + column as usize,
                channels,
            )
        };
        let corners = [
            cell(top, left),
            cell(top, right),
            cell(bottom, left),
            cell(bottom, right),
        ];
        let weights = [
            (1.0 - to_right) * (1.0 - to_bottom),
            to_right * (1.0 - to_bottom),
            (1.0 - to_right) * to_bottom,
            to_right * to_bottom,
        ];
        mean_row(set, corners, weights, out);
    };
    // SAFETY: `mean_row` writes all of the row.
    unsafe { rows(batch * count * groups * channels, channels, see) }
}

/// The cells on both sides of a coordinate, and how far it lies from the first to the second.
fn around(coordinate: f32, cells: usize) -> [f32; 3] {
    let last = (cells - 1) as f32;
    let at = (coordinate - 0.5).clamp(0.0, last);
    let first = at.floor();
    [first, (first + 1.0).min(last), at - first]
}

vectorised! {
    fn mean_row(corners: [&[f32]; 4], weights: [f32; 4], out: &mut [MaybeUninit<f32>]) {
        let [a, b, c, d] = corners;
        for (out, (((a, b), c), d)) in out.iter_mut().zip(a.iter().zip(b).zip(c).zip(d)) {
            out.write(a * weights[0] + b * weights[1] + c * weights[2] + d * weights[3]);
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
