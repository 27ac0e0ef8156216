//! Scaled dot-product attention with grouped queries.

use rayon::prelude::*;

use crate::{InstructionSet, math};

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
    let AttentionShape {
        heads,
        groups,
        queries,
        keys,
        head_dim,
        ..
    } = shape;
    if out.is_empty() {
        return;
    }
    let scale = (head_dim as f64).powf(-0.5) as f32;
    out.par_chunks_mut(head_dim)
        .enumerate()
        .for_each(|(index, out)| {
            let (head, rest) = (index % heads, index / heads);
            let (query, batch) = (rest % queries, rest / queries);
            let group = batch * groups + head / (heads / groups);
            let q = &q[((batch * heads + head) * queries + query) * head_dim..][..head_dim];
            let rows = |_: &[f32], key: usize| {
                (group * keys + key) * head_dim..(group * keys + key + 1) * head_dim
            };
            let mask = mask.map(|mask| mask.row(shape, batch, head, query));
            let mut scores: Vec<f32> = (0..keys)
                .map(|key| {
                    let k = &k[rows(k, key)];
                    let score: f32 = q.iter().zip(k).map(|(q, k)| q * scale * k).sum();
                    score + mask.map_or(0.0, |mask| mask[key])
                })
                .collect();
            let largest = scores
                .iter()
                .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            scores
                .iter_mut()
                .for_each(|score| *score = math::exp(*score - largest));
            let sum: f32 = scores.iter().sum();
            out.fill(0.0);
            for (key, weight) in scores.iter().enumerate() {
                for (out, v) in out.iter_mut().zip(&v[rows(v, key)]) {
                    *out += weight * v;
                }
            }
            out.iter_mut().for_each(|out| *out /= sum);
        });
}

impl AttentionShape {
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
