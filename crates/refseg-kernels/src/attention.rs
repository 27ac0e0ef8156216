//! Scaled dot-product attention with grouped queries.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    InstructionSet,
    epilogue::Shared,
    instruction_set::vectorised,
    math,
    memory::Aligned,
    tile::{BLOCK, MOST_COLUMNS, Next, Product, Tile, Unit},
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

/// `softmax(q·kᵀ/√d + mask) · v`.
///
/// # Shapes
/// - `q`: `(B, H, L, d)`
/// - `k`, `v`: `(B, G, M, d)`
/// - `out`: `(B, L, H·d)`
///
/// # Panics
/// If a slice is not of the shape.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: AttentionShape,
    mask: Option<AttentionMask<'_>>,
    out: &mut [f32],
) {
    attention_for_set(q, k, v, shape, mask, out, InstructionSet::current());
}

/// [`attention`] by an instruction set.
///
/// # Panics
/// As [`attention`], and if this machine lacks the set.
pub fn attention_for_set(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: AttentionShape,
    mask: Option<AttentionMask<'_>>,
    out: &mut [f32],
    set: InstructionSet,
) {
    assert!(set.is_available(), "this machine lacks {set}");
    shape.check(q, k, v, mask, out);
    if out.is_empty() {
        return;
    }
    if shape.keys == 0 {
        // A mean of nothing.
        return out.fill(f32::NAN);
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
    let out = Shared::new(out);
    (0..shape.batch * shape.groups * jobs)
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, index| {
            let (head, job) = (index / jobs, index % jobs);
            let strip = |job: usize| job * strips / jobs;
            work.run(head, strips, strip(job)..strip(job + 1), scratch, out);
        });
}

/// Keys that are attended to at a time: their panels, and the scores of a job, stay in the second cache.
const CHUNK: usize = 512;

/// Keys whose values are summed before the next strip's: they stay in the first cache.
const SLAB: usize = 64;

/// Strips of a job, which share what they read of keys and values.
const STRIPS: usize = 16;

/// The most rows of a strip.
const MOST_ROWS: usize = 6;

/// An attention whose keys and values are packed.
///
/// Keys are attended to in chunks, with the largest score so far taken off before each exponent, and what was summed
/// before scaled down whenever a larger one is met (Milakov and Gimelshein, arXiv 1805.02867).
struct Attention<'a> {
    shape: AttentionShape,
    tile: Tile,
    q: &'a [f32],
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

/// A strip of queries and a chunk of keys.
#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    /// Rows from one of the strip's tiles of sums to the next.
    tile_rows: usize,
    /// Keys of a panel.
    columns: usize,
    keys: usize,
    /// What is added to each row's scores, or nothing.
    masks: [&'a [f32]; MOST_ROWS],
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
            let start = head * shape.rows();
            let q = &self.q[(start + rows.start) * head_dim..(start + rows.end) * head_dim];
            pack_queries(
                tile.set,
                q,
                head_dim,
                (head_dim as f64).powf(-0.5) as f32,
                queries,
            );
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
                        next: Next::NONE,
                    };
                    tile.accumulate(product, scores);
                }
            }
            for (index, strip) in strips.clone().enumerate() {
                let rows = rows(strip);
                let scores = &mut scratch.scores[index * tile_len * panels..]
                    [..rows.len() * columns * panels];
                let sums = &mut scratch.sums[index * tile_len * wide..][..tile_len * wide];
                let masks: [&[f32]; MOST_ROWS] = std::array::from_fn(|row| match self.mask {
                    Some(mask) if row < rows.len() => {
                        let (batch, head, query) = shape.query(head, rows.start + row);
                        &mask.row(shape, batch, head, query)[start..start + chunk]
                    }
                    _ => &[],
                });
                let part = Chunk {
                    tile_rows: tile.rows(),
                    columns,
                    keys: chunk,
                    masks,
                };
                let running = &mut running[index][..rows.len()];
                exponents(tile.set, part, scores, running, sums);
            }
            for slab in (0..chunk).step_by(SLAB) {
                let len = SLAB.min(chunk - slab);
                for panel in 0..wide {
                    let weights = self.values.steps(head, panel, start + slab, len);
                    for (index, strip) in strips.clone().enumerate() {
                        let rows = rows(strip).len();
                        let scores = &scratch.scores[index * tile_len * panels..][slab * rows..];
                        let sums =
                            &mut scratch.sums[(index * wide + panel) * tile_len..][..tile_len];
                        let product = Product {
                            rows,
                            steps: len,
                            strip: scores,
                            panel: weights,
                            fresh: start + slab == 0,
                            next: Next::NONE,
                        };
                        tile.accumulate(product, sums);
                    }
                }
            }
        }

        for (index, strip) in strips.clone().enumerate() {
            let first = rows(strip).start;
            for (row, running) in rows(strip).zip(running[index]) {
                let (batch, head, query) = shape.query(head, row);
                let at = ((batch * shape.queries + query) * shape.heads + head) * head_dim;
                // SAFETY: each row of each head belongs to one strip, each strip to one job, and `out` is borrowed while
                // jobs run.
                let out = unsafe { out.slice(at, head_dim) };
                let scale = 1.0 / running.total;
                let row = row - first;
                for (panel, out) in out.chunks_mut(columns).enumerate() {
                    let sums = &scratch.sums[(index * wide + panel) * tile_len + row * columns..];
                    for (out, &sum) in out.iter_mut().zip(sums) {
                        *out = f32::from_bits(sum) * scale;
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Packs queries as a strip, divided by the root of their length.
    fn pack_queries(q: &[f32], head_dim: usize, scale: f32, strip: &mut [u32]) {
        let rows = q.len() / head_dim;
        for (row, q) in q.chunks_exact(head_dim).enumerate() {
            let blocks = strip.chunks_exact_mut(BLOCK).skip(row).step_by(rows);
            for (block, q) in blocks.zip(q.chunks(BLOCK)) {
                for (unit, q) in block.iter_mut().zip(q) {
                    *unit = (q * scale).to_bits();
                }
            }
        }
    }
}

vectorised! {
    /// Turns the scores of a chunk into a strip of what they are the logarithms of, up to the largest so far.
    fn exponents(
        chunk: Chunk<'_>,
        scores: &mut [u32],
        running: &mut [Running],
        sums: &mut [u32],
    ) {
        const LANES: usize = 16;
        let Chunk { tile_rows, columns, keys, masks } = chunk;
        let rows = running.len();
        let panels = keys.div_ceil(columns);
        // What stands behind the last key is no key.
        let rest = panels * columns - keys;
        for row in scores[(panels - 1) * rows * columns..].chunks_exact_mut(columns) {
            row[columns - rest..].fill(f32::NEG_INFINITY.to_bits());
        }
        let mut shifts = [0.0; MOST_ROWS];
        for (row, running) in running.iter_mut().enumerate() {
            let mut lanes = [running.largest; LANES];
            for panel in 0..panels {
                let scores = &mut scores[(panel * rows + row) * columns..][..columns];
                if let Some(mask) = masks[row].get(panel * columns..) {
                    for (score, mask) in scores.iter_mut().zip(mask) {
                        *score = (f32::from_bits(*score) + mask).to_bits();
                    }
                }
                for scores in scores.chunks_exact(LANES) {
                    for (lane, &score) in lanes.iter_mut().zip(scores) {
                        let score = f32::from_bits(score);
                        *lane = if score > *lane { score } else { *lane };
                    }
                }
            }
            let largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
            // As long as all keys are hidden nothing is taken off: infinity less infinity would be no number.
            let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            let shrink = math::exp(running.largest - shift);
            // Before the first chunk there is nothing to scale down.
            if running.largest > f32::NEG_INFINITY && shrink != 1.0 {
                for sums in sums.chunks_exact_mut(columns).skip(row).step_by(tile_rows) {
                    for sum in sums {
                        *sum = (f32::from_bits(*sum) * shrink).to_bits();
                    }
                }
            }
            shifts[row] = shift;
            *running = Running { largest, total: running.total * shrink };
        }
        let mut totals = [[0.0; LANES]; MOST_ROWS];
        let mut panel_scores = [0; MOST_ROWS * MOST_COLUMNS];
        for panel in scores.chunks_exact_mut(rows * columns) {
            let copy = &mut panel_scores[..rows * columns];
            copy.copy_from_slice(panel);
            for (row, scores) in copy.chunks_exact(columns).enumerate() {
                let (shift, total) = (shifts[row], &mut totals[row]);
                for (block, scores) in scores.chunks_exact(BLOCK).enumerate() {
                    let strip = &mut panel[(block * rows + row) * BLOCK..][..BLOCK];
                    for ((unit, &score), total) in strip.iter_mut().zip(scores).zip(&mut *total) {
                        let weight = math::exp_of::<FUSED>(f32::from_bits(score) - shift);
                        *total += weight;
                        *unit = weight.to_bits();
                    }
                }
            }
        }
        for (running, total) in running.iter_mut().zip(totals) {
            running.total += total.into_iter().sum::<f32>();
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
    fn of_keys(tile: Tile, shape: AttentionShape, k: &[f32]) -> Self {
        let AttentionShape { keys, head_dim, .. } = shape;
        Self::pack(tile, shape, [keys, head_dim], |head, first, panel| {
            let start = (head * keys + first) * head_dim;
            let end = (head * keys + keys.min(first + tile.columns())) * head_dim;
            for (column, k) in k[start..end].chunks_exact(head_dim).enumerate() {
                for (units, k) in panel.chunks_exact_mut(tile.columns()).zip(k) {
                    units[column] = k.to_bits();
                }
            }
        })
    }

    /// Columns are the numbers of a value.
    fn of_values(tile: Tile, shape: AttentionShape, v: &[f32]) -> Self {
        let AttentionShape { keys, head_dim, .. } = shape;
        Self::pack(tile, shape, [head_dim, keys], |head, first, panel| {
            let v = v[head * keys * head_dim..][..keys * head_dim].chunks_exact(head_dim);
            for (units, v) in panel.chunks_exact_mut(tile.columns()).zip(v) {
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

    fn check(self, q: &[f32], k: &[f32], v: &[f32], mask: Option<AttentionMask<'_>>, out: &[f32]) {
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
        let of_queries = batch * heads * queries * head_dim;
        let of_keys = batch * groups * keys * head_dim;
        let sizes = [
            ("q", q.len(), of_queries),
            ("k", k.len(), of_keys),
            ("v", v.len(), of_keys),
            ("out", out.len(), of_queries),
        ];
        for (name, found, expected) in sizes {
            assert!(
                found == expected,
                "`{name}` has {found} numbers, but {self:?} needs {expected}"
            );
        }
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

impl<'a> AttentionMask<'a> {
    fn row(self, shape: AttentionShape, batch: usize, head: usize, query: usize) -> &'a [f32] {
        let batch = if self.batch == 1 { 0 } else { batch };
        let head = if self.heads == 1 { 0 } else { head };
        let start = ((batch * self.heads + head) * shape.queries + query) * shape.keys;
        &self.values[start..start + shape.keys]
    }
}
