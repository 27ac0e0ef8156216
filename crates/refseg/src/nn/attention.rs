//! Scaled dot-product attention with grouped queries.

use burn::tensor::Tensor;

use super::{Dropout, inference, kernels};

/// `softmax(q·kᵀ/√d + mask) · v`, where a group of query heads shares one
/// key-value head: query head `h` reads key-value head `h / (H / G)`.
///
/// # Shapes
/// - `q`: `(B, H, L, d)`
/// - `k`, `v`: `(B, G, M, d)`, `G` dividing `H`
/// - `mask`: added to the scores, `(1, 1, L, M)`, `(B, 1, L, M)` or `(1, H, L, M)`
/// - returns `(B, L, H·d)`
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<&Tensor<4>>) -> Tensor<3> {
    attention_with_dropout(q, k, v, mask, &Dropout::none())
}

/// [`attention`] that forgets some of the keys in training: dropout on the softmax's output.
///
/// # Shapes
/// As [`attention`].
pub fn attention_with_dropout(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&Tensor<4>>,
    dropout: &Dropout,
) -> Tensor<3> {
    if !q.device().is_autodiff() && !dropout.is_active() {
        return inference::attention(q, k, v, mask);
    }
    let [batch, heads, length, head_dim] = q.dims();
    let [_, groups, keys, _] = k.dims();
    let q = q.mul_scalar((head_dim as f64).powf(-0.5));
    // One product per key-value head: its query heads are stacked along the rows.
    let q = q.reshape([batch, groups, heads / groups * length, head_dim]);
    let mut scores = q.matmul(k.transpose());
    if let Some(mask) = mask {
        scores = (scores.reshape([batch, heads, length, keys]) + mask.clone()).reshape([
            batch,
            groups,
            heads / groups * length,
            keys,
        ]);
    }
    let joined = dropout.forward(softmax(scores)).matmul(v);
    joined
        .reshape([batch, heads, length, head_dim])
        .swap_dims(1, 2)
        .reshape([batch, length, heads * head_dim])
}

/// Softmax over the last dimension.
pub fn softmax<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    kernels::softmax(x)
}

/// Cuts the last dimension into heads.
///
/// # Shapes
/// `(B, L, H·d)` to `(B, H, L, d)`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, length, width] = x.dims();
    x.reshape([batch, length, heads, width / heads])
        .swap_dims(1, 2)
}
