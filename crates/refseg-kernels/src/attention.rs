//! Scaled dot-product attention with grouped queries.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    InstructionSet,
    epilogue::Shared,
    instruction_set::vectorised,
    math,
    memory::Aligned,
    tile::{Ahead, BLOCK, Product, Tile, Unit},
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

/// What is known of a query's keys so far.
#[derive(Debug, Clone, Copy)]
struct Running {
    largest: f32,
    total: f32,
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
        let start = |strip: usize| strip * shape.rows() / count;
        let starts: Vec<_> = (strips.start..=strips.end).map(start).collect();
        let rows = |strip: usize| starts[strip - strips.start]..starts[strip - strips.start + 1];

        let stride = tile.rows() * head_dim.next_multiple_of(BLOCK);
        scratch.queries.resize(strips.len() * stride);
        for (strip, queries) in strips.clone().zip(scratch.queries.chunks_exact_mut(stride)) {
            let rows = rows(strip);
            let mut q: [&[f32]; MOST_ROWS] = [&[]; MOST_ROWS];
            for (q, row) in q.iter_mut().zip(rows.clone()) {
                let (batch, head, query) = shape.query(head, row);
                *q = self.q.row(batch, head, query, head_dim);
            }
            let scale = (head_dim as f64).powf(-0.5) as f32;
            pack_queries(tile.set, &q[..rows.len()], scale, queries);
        }

        let wide = head_dim.div_ceil(columns);
        scratch
            .scores
            .resize(strips.len() * tile_len * CHUNK.div_ceil(columns));
        scratch.sums.resize(strips.len() * tile_len * wide);
        let mut running = vec![
            [Running {
                largest: f32::NEG_INFINITY,
                total: 0.0,
            }; MOST_ROWS];
            strips.len()
        ];
        for start in (0..keys).step_by(CHUNK) {
            let chunk = CHUNK.min(keys - start);
            let panels = chunk.div_ceil(columns);
            for panel in 0..panels {
                let weights = self.keys.steps(head, start / columns + panel, 0, head_dim);
                let next = if panel + 1 < panels {
                    self.keys
                        .steps(head, start / columns + panel + 1, 0, head_dim)
                } else {
                    self.values.steps(head, 0, start, SLAB.min(chunk))
                };
                let ahead = Ahead::new(next, strips.len(), head_dim);
                for (index, strip) in strips.clone().enumerate() {
                    let rows = rows(strip).len();
                    let scores =
                        &mut scratch.scores[index * tile_len * panels..][panel * rows * columns..];
                    let queries = &scratch.queries[index * stride..];
                    let product = Product {
                        rows,
                        steps: head_dim,
                        strip: queries,
                        panel: weights,
                        fresh: true,
                        next: ahead.next(index, &queries[stride..]),
                    };
                    tile.accumulate(product, scores);
                }
            }
            for (index, strip) in strips.clone().enumerate() {
                let rows = rows(strip);
                let scores = &mut scratch.scores[index * tile_len * panels..]
                    [..rows.len() * columns * panels];
                let sums =
                    &mut scratch.sums[index * tile_len * wide..][..rows.len() * columns * wide];
                let masks: [&[f32]; MOST_ROWS] = std::array::from_fn(|row| match self.mask {
                    Some(mask) if row < rows.len() => {
                        let (batch, head, query) = shape.query(head, rows.start + row);
                        &mask.row(shape, batch, head, query)[start..start + chunk]
                    }
                    _ => &[],
                });
                let running = &mut running[index][..rows.len()];
                exponents(tile.set, chunk, masks, scores, running, sums);
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
                    for (index, strip) in strips.clone().enumerate() {
                        let rows = rows(strip).len();
                        let scores = &scratch.scores[index * tile_len * panels..][slab * rows..];
                        let sums =
                            &mut scratch.sums[index * tile_len * wide + panel * rows * columns..];
                        let following = scores.get(tile_len * panels..).unwrap_or_default();
                        let product = Product {
                            rows,
                            steps: len,
                            strip: scores,
                            panel: weights,
                            fresh: start + slab == 0,
                            next: ahead.next(index, following),
                        };
                        tile.accumulate(product, sums);
                    }
                }
            }
        }

        for (index, strip) in strips.clone().enumerate() {
            let start = rows(strip).start;
            for (row, running) in rows(strip).zip(running[index]) {
                let (batch, head, query) = shape.query(head, row);
                let at = ((batch * shape.queries + query) * shape.heads + head) * head_dim;
                let scale = 1.0 / running.total;
                let (blocks, _) = scratch.sums[index * tile_len * wide..].as_chunks::<BLOCK>();
                let blocks = blocks.iter().skip(row - start).step_by(rows(strip).len());
                for (first, sums) in (0..head_dim).step_by(BLOCK).zip(blocks) {
                    let values = sums.map(|sum| f32::from_bits(sum) * scale);
                    let values = &values[..BLOCK.min(head_dim - first)];
                    // SAFETY: each row of each head belongs to one strip, each strip to one job, and the memory
                    // outlives the jobs.
                    unsafe { out.write(at + first, values) };
                }
            }
        }
    }
}

vectorised! {
    /// Packs queries as a strip, divided by the root of their length.
    fn pack_queries(q: &[&[f32]], scale: f32, strip: &mut [u32]) {
        for (row, x) in q.iter().enumerate() {
            let blocks = strip.chunks_exact_mut(BLOCK).skip(row).step_by(q.len());
            for (block, x) in blocks.zip(x.chunks(BLOCK)) {
                for (unit, x) in block.iter_mut().zip(x) {
                    *unit = (x * scale).to_bits();
                }
            }
        }
    }
}

vectorised! {
    /// Turns the scores of some keys, a strip, into what they are the logarithms of, up to the largest so far.
    fn exponents(
        keys: usize,
        masks: [&[f32]; MOST_ROWS],
        scores: &mut [u32],
        running: &mut [Running],
        sums: &mut [u32],
    ) {
        let rows = running.len();
        let (blocks, _) = scores.as_chunks_mut::<BLOCK>();
        // What stands behind the last key is no key.
        for (index, block) in blocks.iter_mut().enumerate().skip(keys / BLOCK * rows) {
            let left = keys.saturating_sub(index / rows * BLOCK).min(BLOCK);
            block[left..].fill(f32::NEG_INFINITY.to_bits());
        }
        for (row, running) in running.iter_mut().enumerate() {
            for (blocks, mask) in blocks.chunks_mut(rows).zip(masks[row].chunks(BLOCK)) {
                let block = &mut blocks[row];
                for (score, mask) in block.iter_mut().zip(mask) {
                    *score = (f32::from_bits(*score) + mask).to_bits();
                }
            }
            let mut lanes = [running.largest; BLOCK];
            // By chunks: iterators that step cost a division.
            for blocks in blocks.chunks(rows) {
                let scores = blocks[row].map(f32::from_bits);
                for (lane, score) in lanes.iter_mut().zip(scores) {
                    *lane = if score > *lane { score } else { *lane };
                }
            }
            let largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
            // As long as all keys are hidden nothing is taken off: infinity less infinity would be no number.
            let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            let shrink = math::exp(running.largest - shift);
            // Before the first chunk there is nothing to scale down.
            if running.largest > f32::NEG_INFINITY && shrink != 1.0 {
                let (blocks, _) = sums.as_chunks_mut::<BLOCK>();
                for sum in blocks.iter_mut().skip(row).step_by(rows).flatten() {
                    *sum = (f32::from_bits(*sum) * shrink).to_bits();
                }
            }
            let mut totals = [0.0; BLOCK];
            for blocks in blocks.chunks_mut(rows) {
                let block = &mut blocks[row];
                // Apart from memory, so that the compiler keeps all of it in registers.
                let mut weights = block.map(f32::from_bits);
                for weight in &mut weights {
                    *weight = math::exp_of::<FUSED>(*weight - shift);
                }
                for (total, weight) in totals.iter_mut().zip(weights) {
                    *total += weight;
                }
                *block = weights.map(f32::to_bits);
            }
            let total = running.total * shrink + totals.into_iter().sum::<f32>();
            *running = Running { largest, total };
        }
    }
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
            for column in 0..tile.columns().min(keys - first) {
                let (batch, group) = (head / shape.groups, head % shape.groups);
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
            for (row, units) in panel.chunks_exact_mut(tile.columns()).enumerate() {
                let (batch, group) = (head / shape.groups, head % shape.groups);
                let v = v.row(batch, group, row, head_dim);
                for (unit, v) in units.iter_mut().zip(&v[first..]) {
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

    /// Batch, query head and query of a row of a key-value head.
    fn query(self, head: usize, row: usize) -> (usize, usize, usize) {
        let (batch, group) = (head / self.groups, head % self.groups);
        let head = group * (self.heads / self.groups) + row / self.queries;
        (batch, head, row % self.queries)
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
