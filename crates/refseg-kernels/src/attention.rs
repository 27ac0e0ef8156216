//! Scaled dot-product attention with grouped queries.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    InstructionSet,
    epilogue::Shared,
    instruction_set::vectorised,
    math,
    memory::Aligned,
    tile::{Ahead, BLOCK, MOST_COLUMNS, Product, Tile, Unit},
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
) -> Vec<f32> {
    attention_for_set(q, k, v, shape, mask, InstructionSet::current())
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
    set: InstructionSet,
) -> Vec<f32> {
    assert!(set.is_available(), "this machine lacks {set}");
    shape.check(q, k, v, mask);
    let len = shape.batch * shape.heads * shape.queries * shape.head_dim;
    if len == 0 || shape.keys == 0 {
        // A mean of nothing.
        return vec![f32::NAN; len];
    }
    let tile = Tile {
        set,
        unit: Unit::Float,
    };
    let work = Attention {
        shape,
        tile,
        q,
        keys: Panels::of_keys(tile, shape, k),
        values: Panels::of_values(tile, shape, v),
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
const CHUNK: usize = 512;

/// Keys whose values are summed before the next strip's: they stay in the first cache.
const SLAB: usize = 64;

/// Strips of a job, which share what they read of keys and values.
const STRIPS: usize = 4;

/// The most rows of a strip.
const MOST_ROWS: usize = 6;

/// An attention whose keys and values are packed.
///
/// Keys are attended to in chunks, with the largest score so far taken off before each exponent, and what was summed
/// before scaled down whenever a larger one is met (Milakov and Gimelshein, arXiv 1805.02867).
struct Attention<'a> {
    shape: AttentionShape,
    tile: Tile,
    q: Heads<'a>,
    keys: Panels,
    values: Panels,
    mask: Option<AttentionMask<'a>>,
}

/// What a job works in, kept for the next one.
#[derive(Default)]
struct Scratch {
    queries: Aligned<u32>,
    /// Scores of a chunk, and then what they are the logarithms of.
    scores: Aligned<u32>,
    sums: Aligned<u32>,
}

/// What is known of a query's keys so far, its lanes at the start of a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Running {
    /// The largest scores, in independent lanes.
    lanes: [f32; BLOCK],
    /// The sum of the exponents, in independent lanes.
    totals: [f32; BLOCK],
    /// The largest score of the chunks so far.
    largest: f32,
    /// What is taken off before exponents.
    shift: f32,
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
        let Self { shape, tile, .. } = *self;
        let AttentionShape { keys, head_dim, .. } = shape;
        let columns = tile.columns();
        let tile_len = tile.rows() * columns;
        let first = strips.start * shape.rows() / count;
        // Rows of each strip, counted from the job's first one.
        let starts: Vec<_> = (strips.start..=strips.end)
            .map(|strip| strip * shape.rows() / count - first)
            .collect();
        let rows = |strip: usize| starts[strip]..starts[strip + 1];
        let strips = 0..strips.len();
        let queries: Vec<_> = shape
            .queries(head, first)
            .take(starts[strips.end])
            .collect();

        let stride = tile.rows() * head_dim.next_multiple_of(BLOCK);
        scratch.queries.resize(strips.len() * stride);
        for (strip, units) in strips.clone().zip(scratch.queries.chunks_exact_mut(stride)) {
            let mut q: [&[f32]; MOST_ROWS] = [&[]; MOST_ROWS];
            for (q, &(batch, head, query)) in q.iter_mut().zip(&queries[rows(strip)]) {
                *q = self.q.row(batch, head, query, head_dim);
            }
            let scale = (head_dim as f64).powf(-0.5) as f32;
            pack_queries(tile.set, &q[..rows(strip).len()], scale, units);
        }

        let wide = head_dim.div_ceil(columns);
        scratch
            .scores
            .resize(strips.len() * tile_len * CHUNK.div_ceil(columns));
        scratch.sums.resize(strips.len() * tile_len * wide);
        let mut running = vec![
            Running {
                lanes: [f32::NEG_INFINITY; BLOCK],
                largest: f32::NEG_INFINITY,
                shift: 0.0,
                totals: [0.0; BLOCK],
            };
            queries.len()
        ];
        for start in (0..keys).step_by(CHUNK) {
            let chunk = CHUNK.min(keys - start);
            let panels = chunk.div_ceil(columns);
            for panel in 0..panels {
                let from = start + panel * columns;
                let weights = self.keys.steps(head, from / columns, 0, head_dim);
                let next = if panel + 1 < panels {
                    self.keys.steps(head, from / columns + 1, 0, head_dim)
                } else {
                    self.values.steps(head, 0, start, SLAB.min(chunk))
                };
                let ahead = Ahead::new(next, strips.len(), head_dim);
                let seen = columns.min(keys - from);
                for strip in strips.clone() {
                    let rows = rows(strip);
                    let scores = &mut scratch.scores[strip * tile_len * panels..]
                        [panel * rows.len() * columns..][..rows.len() * columns];
                    let units = &scratch.queries[strip * stride..];
                    let product = Product {
                        rows: rows.len(),
                        steps: head_dim,
                        strip: units,
                        panel: weights,
                        fresh: true,
                        next: ahead.next(strip, &units[stride..]),
                    };
                    tile.accumulate(product, scores);
                    if let Some(mask) = self.mask {
                        for (row, &(batch, head, query)) in queries[rows.clone()].iter().enumerate()
                        {
                            let mask = &mask.row(shape, batch, head, query)[from..from + seen];
                            add_mask(tile.set, mask, row, rows.len(), scores);
                        }
                    }
                    let scores = &mut scores[..seen.next_multiple_of(BLOCK) * rows.len()];
                    look(tile.set, seen, scores, &mut running[rows]);
                }
            }
            for strip in strips.clone() {
                let sums = &mut scratch.sums[strip * tile_len * wide..]
                    [..rows(strip).len() * columns * wide];
                settle(tile.set, &mut running[rows(strip)], sums);
            }
            for slab in (0..chunk).step_by(SLAB) {
                let len = SLAB.min(chunk - slab);
                for panel in 0..wide {
                    let weights = self.values.steps(head, panel, start + slab, len);
                    let next = if panel + 1 < wide {
                        self.values.steps(head, panel + 1, start + slab, len)
                    } else if slab + len < chunk {
                        let left = chunk - slab - len;
                        self.values
                            .steps(head, 0, start + slab + len, SLAB.min(left))
                    } else if start + chunk < keys {
                        self.keys
                            .steps(head, (start + chunk) / columns, 0, head_dim)
                    } else {
                        &[]
                    };
                    let ahead = Ahead::new(next, strips.len(), len);
                    for strip in strips.clone() {
                        let rows = rows(strip);
                        let (scores, following) = scratch.scores[strip * tile_len * panels..]
                            .split_at_mut(tile_len * panels);
                        let scores = &mut scores[slab * rows.len()..];
                        if panel == 0 {
                            let scores = &mut scores[..len.next_multiple_of(BLOCK) * rows.len()];
                            exponents(tile.set, scores, &mut running[rows.clone()]);
                        }
                        let sums = &mut scratch.sums
                            [strip * tile_len * wide + panel * rows.len() * columns..];
                        let product = Product {
                            rows: rows.len(),
                            steps: len,
                            strip: scores,
                            panel: weights,
                            fresh: start + slab == 0,
                            next: ahead.next(strip, following),
                        };
                        tile.accumulate(product, sums);
                    }
                }
            }
        }

        for strip in strips {
            let rows = rows(strip);
            let sums = &scratch.sums[strip * tile_len * wide..][..rows.len() * columns * wide];
            for (row, &(batch, head, query)) in queries[rows.clone()].iter().enumerate() {
                let at = ((batch * shape.queries + query) * shape.heads + head) * head_dim;
                let place = at..at + head_dim;
                write_mean(tile.set, sums, row, &running[rows.clone()], place, out);
            }
        }
    }
}

vectorised! {
    /// Packs queries as a strip, divided by the root of their length.
    fn pack_queries(q: &[&[f32]], scale: f32, strip: &mut [u32]) {
        let (blocks, _) = strip.as_chunks_mut::<BLOCK>();
        for (row, x) in q.iter().enumerate() {
            let mut index = row;
            let (whole, rest) = x.as_chunks::<BLOCK>();
            for x in whole {
                for (unit, x) in blocks[index].iter_mut().zip(x) {
                    *unit = (x * scale).to_bits();
                }
                index += q.len();
            }
            if !rest.is_empty() {
                for (unit, x) in blocks[index].iter_mut().zip(rest) {
                    *unit = (x * scale).to_bits();
                }
            }
        }
    }
}

vectorised! {
    /// Adds a row's part of the mask to a tile of scores.
    fn add_mask(mask: &[f32], row: usize, rows: usize, scores: &mut [u32]) {
        let (blocks, _) = scores.as_chunks_mut::<BLOCK>();
        for (index, mask) in mask.chunks(BLOCK).enumerate() {
            for (score, mask) in blocks[index * rows + row].iter_mut().zip(mask) {
                *score = (f32::from_bits(*score) + mask).to_bits();
            }
        }
    }
}

vectorised! {
    /// Looks for the largest scores of each row among those of so many keys, a strip.
    fn look(keys: usize, scores: &mut [u32], running: &mut [Running]) {
        let rows = running.len();
        let (blocks, _) = scores.as_chunks_mut::<BLOCK>();
        // What stands behind the last key is no key.
        if !keys.is_multiple_of(BLOCK) {
            for block in &mut blocks[keys / BLOCK * rows..] {
                block[keys % BLOCK..].fill(f32::NEG_INFINITY.to_bits());
            }
        }
        for (row, running) in running.iter_mut().enumerate() {
            let mut lanes = running.lanes;
            // By index: iterators that step cost a division.
            let mut index = row;
            while let Some(block) = blocks.get(index) {
                for (lane, score) in lanes.iter_mut().zip(block.map(f32::from_bits)) {
                    *lane = if score > *lane { score } else { *lane };
                }
                index += rows;
            }
            running.lanes = lanes;
        }
    }
}

vectorised! {
    /// Before the exponents of a chunk: scales down what is there if a larger score has been met.
    fn settle(running: &mut [Running], sums: &mut [u32]) {
        let rows = running.len();
        let (blocks, _) = sums.as_chunks_mut::<BLOCK>();
        for (row, running) in running.iter_mut().enumerate() {
            let largest = fold(running.lanes, |a, b| if b > a { b } else { a });
            // As long as all keys are hidden nothing is taken off: infinity less infinity would be no number.
            running.shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            let shrink = math::exp_of::<FUSED>(running.largest - running.shift);
            // Before the first chunk there is nothing to scale down.
            if running.largest > f32::NEG_INFINITY && shrink != 1.0 {
                for total in &mut running.totals {
                    *total *= shrink;
                }
                let mut index = row;
                while let Some(block) = blocks.get_mut(index) {
                    *block = block.map(|sum| (f32::from_bits(sum) * shrink).to_bits());
                    index += rows;
                }
            }
            running.largest = largest;
        }
    }
}

vectorised! {
    /// Turns the scores of some keys, a strip, into what they are the logarithms of, up to what is taken off.
    fn exponents(scores: &mut [u32], running: &mut [Running]) {
        let rows = running.len();
        let (blocks, _) = scores.as_chunks_mut::<BLOCK>();
        for (row, running) in running.iter_mut().enumerate() {
            let mut totals = running.totals;
            let mut index = row;
            while let Some(block) = blocks.get_mut(index) {
                // Apart from memory, so that the compiler keeps all of it in registers.
                let mut weights = block.map(f32::from_bits);
                for weight in &mut weights {
                    *weight = math::exp_below::<FUSED>(*weight - running.shift);
                }
                for (total, weight) in totals.iter_mut().zip(weights) {
                    *total += weight;
                }
                *block = weights.map(f32::to_bits);
                index += rows;
            }
            running.totals = totals;
        }
    }
}

vectorised! {
    /// Writes a row of a strip's sums to its place, each as a share of the row's total.
    ///
    /// Only its own part of `out` is touched; the caller hands each row to one thread.
    fn write_mean(sums: &[u32], row: usize, running: &[Running], place: Range<usize>, out: Shared) {
        let scale = 1.0 / fold(running[row].totals, |a, b| a + b);
        let (blocks, _) = sums.as_chunks::<BLOCK>();
        let (mut index, mut start) = (row, place.start);
        while start < place.end {
            let mut values = [[0.0; BLOCK]; MOST_COLUMNS / BLOCK];
            for part in &mut values {
                let Some(block) = blocks.get(index) else {
                    break;
                };
                *part = block.map(f32::from_bits);
                for value in part {
                    *value *= scale;
                }
                index += running.len();
            }
            let len = MOST_COLUMNS.min(place.end - start);
            // SAFETY: each row of each head belongs to one strip, each strip to one job, and the memory outlives the
            // jobs.
            unsafe { out.write(start, &values.as_flattened()[..len]) };
            start += len;
        }
    }
}

/// Joins halves until one number is left.
#[inline(always)]
fn fold(mut lanes: [f32; BLOCK], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut len = BLOCK;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            lanes[i] = join(lanes[i], lanes[i + len]);
        }
    }
    lanes[0]
}

/// Keys or values of every key-value head, packed in panels.
struct Panels {
    units: Aligned<u32>,
    /// Steps of a panel.
    steps: usize,
    columns: usize,
    /// Panels of a head.
    count: usize,
}

impl Panels {
    /// Columns are keys.
    fn of_keys(tile: Tile, shape: AttentionShape, k: Heads<'_>) -> Self {
        let AttentionShape { keys, head_dim, .. } = shape;
        Self::pack(tile, shape, [keys, head_dim], |head, first, panel| {
            let (batch, group) = (head / shape.groups, head % shape.groups);
            for column in 0..tile.columns().min(keys - first) {
                let k = k.row(batch, group, first + column, head_dim);
                for (units, k) in panel.chunks_exact_mut(tile.columns()).zip(k) {
                    units[column] = k.to_bits();
                }
            }
        })
    }

    /// Columns are the numbers of a value.
    fn of_values(tile: Tile, shape: AttentionShape, v: Heads<'_>) -> Self {
        let AttentionShape { keys, head_dim, .. } = shape;
        Self::pack(tile, shape, [head_dim, keys], |head, first, panel| {
            let (batch, group) = (head / shape.groups, head % shape.groups);
            for (row, units) in panel.chunks_exact_mut(tile.columns()).enumerate() {
                let v = &v.row(batch, group, row, head_dim)[first..];
                for (unit, v) in units.iter_mut().zip(v) {
                    *unit = v.to_bits();
                }
            }
        })
    }

    fn pack(
        tile: Tile,
        shape: AttentionShape,
        [width, steps]: [usize; 2],
        fill: impl Fn(usize, usize, &mut [u32]) + Sync,
    ) -> Self {
        let columns = tile.columns();
        let count = width.div_ceil(columns);
        let mut units = Aligned::zeros(shape.batch * shape.groups * count * steps * columns);
        units
            .par_chunks_mut(steps * columns)
            .enumerate()
            .for_each(|(index, panel)| fill(index / count, index % count * columns, panel));
        Self {
            units,
            steps,
            columns,
            count,
        }
    }

    fn steps(&self, head: usize, panel: usize, start: usize, len: usize) -> &[u32] {
        let start = (head * self.count + panel) * self.steps + start;
        &self.units[start * self.columns..(start + len) * self.columns]
    }
}

impl AttentionShape {
    /// Rows that share a key-value head.
    fn rows(self) -> usize {
        self.heads / self.groups * self.queries
    }

    /// Batch, query head and query of each row of a key-value head, from a row on.
    fn queries(self, head: usize, row: usize) -> impl Iterator<Item = (usize, usize, usize)> {
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
