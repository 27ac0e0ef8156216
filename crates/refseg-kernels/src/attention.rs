//! Scaled dot-product attention with grouped queries.

mod panels;
mod softmax;

use std::ops::Range;

use panels::{Keys, Values};
use rayon::prelude::*;
use softmax::{Running, look, pack_queries, settle, weigh, write_mean};

use crate::{
    InstructionSet, Precision,
    epilogue::{Shared, add_whole},
    memory::Aligned,
    tile::{Ahead, BLOCK, MOST_ROWS, Product, SLAB, Tile, Unit, fetch, fetch_to_write},
};

/// Sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Independent sequences, B.
    pub batch: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key-value heads, G, dividing H: query head `h` reads key-value head `h / (H / G)`.
    pub groups: usize,
    /// Queries of a head, L.
    pub queries: usize,
    /// Keys of a head, M.
    pub keys: usize,
    /// Numbers of a query, a key or a value, d.
    pub head_dim: usize,
}

/// What is added to the scores.
#[derive(Debug, Clone, Copy)]
pub struct AttentionMask<'a> {
    /// `(batch, heads, L, M)`.
    pub values: &'a [f32],
    /// 1, or B.
    pub batch: usize,
    /// 1, or H.
    pub heads: usize,
}

/// Queries, keys or values, `(B, H, L, d)`, wherever they lie: the numbers of a row side by side.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// From the first row on.
    pub values: &'a [f32],
    /// From one sequence, one head and one row to the next.
    pub strides: [usize; 3],
}

/// `softmax(q·kᵀ/√d + mask) · v`.
///
/// The softmax is f32. What is multiplied is rounded where that makes it faster:
/// - In bf16, int16 and int8, with AVX512-BF16 or the BF16 of AArch64, queries, keys, values and weights are rounded to
///   bf16.
/// - In int16 and int8, with VNNI alone, they are rounded to whole numbers of 16 bits, of which a slab of keys is summed at
///   a time: each query and each key to ±5,792 parts of its largest magnitude (for d = 64), each value to ±1,023, and the
///   weights of a query, with the magnitudes of the values that they belong to, to 16,383 for each 128 keys. That is closer
///   than bf16 unless one number of a row is more than some ten times as large as the others, and coarser for these if it
///   is. A query, key or value that holds NaN or an infinity has no such scale, and gives NaN to all that meet it, hidden
///   or not. Magnitudes below 1e-34, and values below 1e-31, count as zeros.
///
/// # Shapes
/// - `q`: `(B, H, L, d)`
/// - `k`, `v`: `(B, G, M, d)`
/// - returns `(B, L, H·d)`
///
/// # Panics
/// If a slice is too short for the shape, or the mask is of another one.
pub fn attention(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    shape: AttentionShape,
    mask: Option<AttentionMask<'_>>,
    precision: Precision,
) -> Vec<f32> {
    attention_for_set(q, k, v, shape, mask, precision, InstructionSet::current())
}

/// [`attention`] by an instruction set.
///
/// # Panics
/// As [`attention`], and if this machine lacks the set.
pub fn attention_for_set(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    shape: AttentionShape,
    mask: Option<AttentionMask<'_>>,
    precision: Precision,
    set: InstructionSet,
) -> Vec<f32> {
    assert!(set.is_available(), "this machine lacks {set}");
    let unit = Unit::of_attention(precision, set);
    attention_of_units(q, k, v, shape, mask, Tile { set, unit })
}

fn attention_of_units(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    shape: AttentionShape,
    mask: Option<AttentionMask<'_>>,
    tile: Tile,
) -> Vec<f32> {
    shape.check(q, k, v, mask);
    let len = shape.batch * shape.heads * shape.queries * shape.head_dim;
    if len == 0 || shape.keys == 0 {
        // A mean of nothing.
        return vec![f32::NAN; len];
    }
    let work = Attention {
        shape,
        tile,
        q,
        keys: Keys::pack(tile, shape, k),
        values: Values::pack(tile, shape, v),
        mask,
    };
    let strips = shape.rows().div_ceil(tile.rows());
    let jobs = strips.div_ceil(STRIPS);
    let write = |out: Shared| {
        (0..shape.batch * shape.groups * jobs)
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, index| {
                let (head, job) = (index / jobs, index % jobs);
                let strip = |job: usize| job * strips / jobs;
                work.run(head, strips, strip(job)..strip(job + 1), scratch, out);
            });
    };
    // SAFETY: the strips of a head hold all rows that share it, and jobs all strips of all heads.
    unsafe { Shared::fill(len, write) }
}

/// Keys that are attended to at a time: their panels, and the scores of a job, stay in the second cache.
const CHUNK: usize = 1024;

/// Strips of a job, which share what they read of keys and values.
const STRIPS: usize = 4;

/// The largest whole numbers that weights and values are rounded to: what a slab of keys comes to must fit 32 bits.
const MOST_WEIGHT: f32 = 16_383.0;
const MOST_VALUE: f32 = 1_023.0;
const _: () = assert!(2 * SLAB as i64 * MOST_WEIGHT as i64 * MOST_VALUE as i64 <= i32::MAX as i64);

/// The largest whole number that queries and keys of `head_dim` numbers are rounded to: it fits 16 bits, and the sum of
/// their products 32.
fn largest_whole(head_dim: usize) -> f32 {
    let largest = (f64::from(i32::MAX) / head_dim as f64).sqrt();
    largest.floor().min(f64::from(i16::MAX)) as f32
}

/// Keys of a slab.
fn keys_a_slab(unit: Unit) -> usize {
    SLAB * unit.inputs()
}

/// Steps that the weights of so many keys take. In pairs, those of the first and of the last 16 of 32 keys meet.
fn steps_of(unit: Unit, keys: usize) -> usize {
    match unit {
        Unit::Float => keys,
        _ => keys / (2 * BLOCK) * BLOCK + (keys % (2 * BLOCK)).min(BLOCK),
    }
}

/// An attention whose keys and values are packed.
///
/// Keys are attended to in chunks, with the largest score so far taken off before each exponent, and what was summed
/// before scaled down whenever a larger one is met (Milakov and Gimelshein, arXiv 1805.02867).
struct Attention<'a> {
    shape: AttentionShape,
    tile: Tile,
    q: Heads<'a>,
    keys: Keys,
    values: Values,
    mask: Option<AttentionMask<'a>>,
}

/// What a job works in, kept for the next one.
#[derive(Default)]
struct Scratch {
    queries: Aligned<u32>,
    /// Scores of a chunk, and then their weights.
    scores: Aligned<u32>,
    sums: Aligned<u32>,
    /// Sums of a slab, in whole numbers.
    whole: Aligned<u32>,
}

impl Attention<'_> {
    /// The queries of some strips of a key-value head. Each has rows of all its query heads, stacked.
    fn run(
        &self,
        head: usize,
        count: usize,
        strips: Range<usize>,
        scratch: &mut Scratch,
        out: Shared,
    ) {
        let shape = self.shape;
        let first = strips.start * shape.rows() / count;
        let starts: Vec<_> = (strips.start..=strips.end)
            .map(|strip| strip * shape.rows() / count - first)
            .collect();
        let (queries, behind) = (starts[strips.len()], first + starts[strips.len()]);
        let mut job = Job {
            attention: self,
            head,
            queries: shape.queries(head, first).take(queries).collect(),
            running: vec![Running::NEW; queries],
            starts,
            scratch,
            out,
        };
        job.pack_queries();
        // Fetched little by little while scores are computed and summed: the queries of the next job, and where the means
        // of this one go.
        let mut coming = shape.queries(head, behind).take(shape.rows() - behind);
        let mut means = 0..queries;
        for start in (0..shape.keys).step_by(CHUNK) {
            let chunk = start..shape.keys.min(start + CHUNK);
            job.score(chunk.clone(), &mut coming);
            job.sum(chunk, &mut means);
        }
        job.write_means();
    }
}

/// A query: its sequence, its head and its place.
type Query = (usize, usize, usize);

/// Some strips of queries of a key-value head.
struct Job<'a> {
    attention: &'a Attention<'a>,
    head: usize,
    queries: Vec<Query>,
    /// Of each query.
    running: Vec<Running>,
    /// The first row of each strip, and behind the last one.
    starts: Vec<usize>,
    scratch: &'a mut Scratch,
    out: Shared,
}

impl Job<'_> {
    fn strips(&self) -> Range<usize> {
        0..self.starts.len() - 1
    }

    fn rows(&self, strip: usize) -> Range<usize> {
        self.starts[strip]..self.starts[strip + 1]
    }

    /// Numbers of the sums of a whole strip with one panel.
    fn tile_len(&self) -> usize {
        self.attention.tile.rows() * self.attention.tile.columns()
    }

    /// Panels of values side by side.
    fn wide(&self) -> usize {
        let Attention { shape, tile, .. } = self.attention;
        shape.head_dim.div_ceil(tile.columns())
    }

    /// Steps of queries and keys.
    fn steps(&self) -> usize {
        let Attention { shape, tile, .. } = self.attention;
        shape.head_dim.div_ceil(tile.unit.inputs())
    }

    /// Numbers of the queries of a whole strip.
    fn stride(&self) -> usize {
        self.attention.tile.rows() * self.steps().next_multiple_of(BLOCK)
    }

    /// Queries whose rows are fetched while a panel of keys is read.
    fn share(&self) -> usize {
        let Attention { shape, tile, .. } = self.attention;
        self.queries
            .len()
            .div_ceil(shape.keys.div_ceil(tile.columns()))
    }

    fn pack_queries(&mut self) {
        let Attention {
            shape,
            tile,
            q: heads,
            ..
        } = self.attention;
        let head_dim = shape.head_dim;
        let stride = self.stride();
        self.scratch.queries.resize(self.strips().len() * stride);
        let root = (head_dim as f64).powf(-0.5) as f32;
        let largest = largest_whole(head_dim);
        for strip in self.strips() {
            let rows = self.rows(strip);
            let mut q: [&[f32]; MOST_ROWS] = [&[]; MOST_ROWS];
            for (q, &(batch, head, query)) in q.iter_mut().zip(&self.queries[rows.clone()]) {
                *q = heads.row(batch, head, query, head_dim);
            }
            let q = &q[..rows.len()];
            let units = &mut self.scratch.queries[strip * stride..][..stride];
            let running = &mut self.running[rows];
            pack_queries(tile.set, tile.unit, q, root, largest, running, units);
        }
    }

    /// Scores of a chunk of keys, and what is summed before them made ready for it.
    fn score(&mut self, chunk: Range<usize>, coming: &mut impl Iterator<Item = Query>) {
        let Attention {
            shape,
            tile,
            q,
            keys,
            values,
            mask,
        } = self.attention;
        let (head_dim, columns) = (shape.head_dim, tile.columns());
        let (steps, stride, tile_len) = (self.steps(), self.stride(), self.tile_len());
        let (strips, share) = (self.strips(), self.share());
        let panels = chunk.len().div_ceil(columns);
        let scores = CHUNK.div_ceil(columns) * tile_len;
        self.scratch.scores.resize(strips.len() * scores);
        for panel in 0..panels {
            let from = chunk.start + panel * columns;
            let index = from / columns;
            let next = if panel + 1 < panels {
                keys.panel(self.head, index + 1)
            } else {
                let steps = steps_of(tile.unit, keys_a_slab(tile.unit).min(chunk.len()));
                values.slab(self.head, chunk.start, 0, steps)
            };
            for (batch, head, query) in coming.by_ref().take(share) {
                fetch_row(
                    q.row(batch, head, query, head_dim).as_ptr(),
                    head_dim,
                    fetch,
                );
            }
            let ahead = Ahead::new(next, strips.len(), steps);
            let seen = columns.min(chunk.end - from);
            for strip in strips.clone() {
                let rows = self.rows(strip);
                let scores = &mut self.scratch.scores[strip * tile_len * panels..]
                    [panel * rows.len() * columns..][..rows.len() * columns];
                let units = &self.scratch.queries[strip * stride..];
                let product = Product {
                    rows: rows.len(),
                    steps,
                    strip: units,
                    panel: keys.panel(self.head, index),
                    fresh: true,
                    next: ahead.next(strip, &units[stride..]),
                };
                tile.accumulate(product, scores);
                let mut masks: [&[f32]; MOST_ROWS] = [&[]; MOST_ROWS];
                let mut masked = 0;
                if let Some(mask) = mask {
                    for &(batch, head, query) in &self.queries[rows.clone()] {
                        masks[masked] = &mask.row(*shape, batch, head, query)[from..];
                        masked += 1;
                    }
                }
                let scales = keys.scales(self.head, index);
                let running = &mut self.running[rows];
                look(tile.set, seen, scales, &masks[..masked], scores, running);
            }
        }
        let wide = self.wide();
        self.scratch.sums.resize(strips.len() * tile_len * wide);
        for strip in strips {
            let rows = self.rows(strip);
            let sums = &mut self.scratch.sums[strip * tile_len * wide..];
            let sums = &mut sums[..rows.len() * columns * wide];
            settle(tile.set, &mut self.running[rows], sums);
        }
    }

    /// Adds the values of a chunk of keys, weighed.
    fn sum(&mut self, chunk: Range<usize>, means: &mut Range<usize>) {
        let Attention {
            shape,
            tile,
            keys,
            values,
            ..
        } = self.attention;
        let (set, unit, columns) = (tile.set, tile.unit, tile.columns());
        let (tile_len, wide, strips) = (self.tile_len(), self.wide(), self.strips());
        let panels = chunk.len().div_ceil(columns);
        let slab_keys = keys_a_slab(unit);
        let share = self.share() * unit.inputs();
        self.scratch.whole.resize(tile_len);
        for start in chunk.clone().step_by(slab_keys) {
            for mean in means.by_ref().take(share) {
                let place = self.out.place(shape.place(self.queries[mean]));
                fetch_row(place, shape.head_dim, fetch_to_write);
            }
            let seen = slab_keys.min(chunk.end - start);
            let steps = steps_of(unit, seen);
            for panel in 0..wide {
                let next = if panel + 1 < wide {
                    values.slab(self.head, start, panel + 1, steps)
                } else if start + seen < chunk.end {
                    let steps = steps_of(unit, slab_keys.min(chunk.end - start - seen));
                    values.slab(self.head, start + seen, 0, steps)
                } else if chunk.end < shape.keys {
                    keys.panel(self.head, chunk.end / columns)
                } else {
                    &[]
                };
                let ahead = Ahead::new(next, strips.len(), steps);
                for strip in strips.clone() {
                    let rows = self.rows(strip);
                    let (scores, following) = self.scratch.scores[strip * tile_len * panels..]
                        .split_at_mut(tile_len * panels);
                    let scores = &mut scores[(start - chunk.start) * rows.len()..];
                    let running = &mut self.running[rows.clone()];
                    if panel == 0 {
                        let scores = &mut scores[..seen.next_multiple_of(BLOCK) * rows.len()];
                        weigh(set, unit, values.scales(self.head, start), scores, running);
                    }
                    let sums = &mut self.scratch.sums
                        [strip * tile_len * wide + panel * rows.len() * columns..]
                        [..rows.len() * columns];
                    let (fresh, by_slab) = (start == 0, unit == Unit::ShortPair);
                    let product = Product {
                        rows: rows.len(),
                        steps,
                        strip: scores,
                        panel: values.slab(self.head, start, panel, steps),
                        fresh: fresh || by_slab,
                        next: ahead.next(strip, following),
                    };
                    if by_slab {
                        let whole = &mut self.scratch.whole;
                        tile.accumulate(product, whole);
                        let mut shares = [0.0; MOST_ROWS];
                        for (share, running) in shares.iter_mut().zip(running) {
                            *share = running.share;
                        }
                        add_whole(set, whole, &shares[..rows.len()], fresh, sums);
                    } else {
                        tile.accumulate(product, sums);
                    }
                }
            }
        }
    }

    fn write_means(&mut self) {
        let Attention { shape, tile, .. } = self.attention;
        let (tile_len, wide) = (self.tile_len(), self.wide());
        for strip in self.strips() {
            let rows = self.rows(strip);
            let sums = &self.scratch.sums[strip * tile_len * wide..];
            let sums = &sums[..rows.len() * tile.columns() * wide];
            for (row, &query) in self.queries[rows.clone()].iter().enumerate() {
                let start = shape.place(query);
                let place = start..start + shape.head_dim;
                let running = &self.running[rows.clone()];
                write_mean(tile.set, sums, row, running, place, self.out);
            }
        }
    }
}

/// Fetches so many numbers, line by line.
#[inline(always)]
fn fetch_row(start: *const f32, len: usize, fetch: impl Fn(*const u8)) {
    for line in 0..len.div_ceil(BLOCK) {
        fetch(start.wrapping_add(line * BLOCK).cast());
    }
}

impl AttentionShape {
    /// Rows that share a key-value head.
    fn rows(self) -> usize {
        self.heads / self.groups * self.queries
    }

    /// Batch, query head and query of each row of a key-value head, from a row on.
    fn queries(self, head: usize, row: usize) -> impl Iterator<Item = Query> {
        let (batch, group) = (head / self.groups, head % self.groups);
        let mut head = group * (self.heads / self.groups) + row / self.queries;
        let mut query = row % self.queries;
        std::iter::repeat_with(move || {
            let at = (batch, head, query);
            query += 1;
            // By steps: divisions take as long as some of a tile's.
            if query == self.queries {
                (head, query) = (head + 1, 0);
            }
            at
        })
    }

    /// Where the result of a query stands.
    fn place(self, (batch, head, query): Query) -> usize {
        ((batch * self.queries + query) * self.heads + head) * self.head_dim
    }

    fn check(self, q: Heads<'_>, k: Heads<'_>, v: Heads<'_>, mask: Option<AttentionMask<'_>>) {
        let Self {
            batch,
            heads,
            groups,
            queries,
            keys,
            head_dim,
        } = self;
        assert!(
            groups > 0 && heads.is_multiple_of(groups),
            "{heads} query heads cannot share {groups} key-value heads"
        );
        q.check("q", [batch, heads, queries], head_dim);
        k.check("k", [batch, groups, keys], head_dim);
        v.check("v", [batch, groups, keys], head_dim);
        if let Some(mask) = mask {
            let (found, expected) = (mask.values.len(), mask.batch * mask.heads * queries * keys);
            assert!(
                [1, batch].contains(&mask.batch)
                    && [1, heads].contains(&mask.heads)
                    && found == expected,
                "a mask of {found} numbers, {}×{} of them for each query and key, does not fit {self:?}",
                mask.batch,
                mask.heads
            );
        }
    }
}

impl<'a> Heads<'a> {
    /// `(B, H, L, d)` in this order, `sizes` being the last three.
    pub fn side_by_side(values: &'a [f32], [heads, rows, width]: [usize; 3]) -> Self {
        Self {
            values,
            strides: [heads * rows * width, rows * width, width],
        }
    }

    pub(crate) fn row(self, sequence: usize, head: usize, row: usize, width: usize) -> &'a [f32] {
        let [by_sequence, by_head, by_row] = self.strides;
        &self.values[sequence * by_sequence + head * by_head + row * by_row..][..width]
    }

    /// Panics if there are fewer numbers than `sizes` of sequences, heads and rows of `width` need.
    pub(crate) fn check(self, name: &str, sizes: [usize; 3], width: usize) {
        let found = self.values.len();
        let last: usize = sizes
            .iter()
            .zip(self.strides)
            .map(|(size, stride)| size.saturating_sub(1) * stride)
            .sum();
        assert!(
            sizes.contains(&0) || last + width <= found,
            "`{name}` has {found} numbers, but sizes {sizes:?} of rows of {width} need {}",
            last + width
        );
    }
}

impl<'a> AttentionMask<'a> {
    fn row(self, shape: AttentionShape, batch: usize, head: usize, query: usize) -> &'a [f32] {
        let batch = if self.batch == 1 { 0 } else { batch };
        let head = if self.heads == 1 { 0 } else { head };
        let start = ((batch * self.heads + head) * shape.queries + query) * shape.keys;
        &self.values[start..start + shape.keys]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units of instruction sets that this machine may lack, multiplied in plain Rust: packed alike for all of them.
    #[test]
    fn every_unit_is_packed_as_its_instruction_reads_it() {
        // Less than a pair, a block, two of them, and a slab; and more of each.
        for [queries, keys, head_dim] in [[1, 1, 1], [3, 20, 7], [2, 45, 33], [5, 140, 20]] {
            let shape = AttentionShape {
                batch: 1,
                heads: 2,
                groups: 1,
                queries,
                keys,
                head_dim,
            };
            let number = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
            let numbers = |len: usize, by: usize| (0..len).map(|i| number(by * i)).collect();
            let q: Vec<f32> = numbers(2 * queries * head_dim, 1);
            let k: Vec<f32> = numbers(keys * head_dim, 3);
            let v: Vec<f32> = numbers(keys * head_dim, 7);
            let attend = |set, unit| {
                let q = Heads::side_by_side(&q, [2, queries, head_dim]);
                let [k, v] = [&k, &v].map(|x| Heads::side_by_side(x, [1, keys, head_dim]));
                attention_of_units(q, k, v, shape, None, Tile { set, unit })
            };
            let expected = attend(InstructionSet::Portable, Unit::Float);
            let mut units = vec![(InstructionSet::Portable, Unit::Bf16Pair)];
            for set in InstructionSet::available() {
                units.push((set, Unit::ShortPair));
                units.push((set, Unit::of_attention(Precision::Bf16, set)));
            }
            for (set, unit) in units {
                let most = if unit == Unit::Bf16Pair { 0.02 } else { 1e-3 };
                for (found, expected) in attend(set, unit).into_iter().zip(&expected) {
                    let gap = (found - expected).abs();
                    assert!(gap < most, "{set}, {unit:?}, {shape:?}: off by {gap}");
                }
            }
        }
    }
}
