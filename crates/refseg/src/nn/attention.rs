//! Scaled dot-product attention with grouped queries.

use burn::tensor::Tensor;
use refseg_kernels::Precision;

use super::{Dropout, Tensors, inference, kernels};

/// `softmax(q·kᵀ/√d + mask) · v`, where a group of query heads shares one
/// key-value head: query head `h` reads key-value head `h / (H / G)`.
#[derive(Debug, Clone, Default)]
pub struct DotProductAttention {
    /// In which it is computed: see [`refseg_kernels::attention()`].
    precision: Precision,
    /// On the softmax's output: forgets some of the keys in training.
    dropout: Dropout,
}

impl DotProductAttention {
    /// In the precision of the layers around it, whose keys begin as those of `tensors` do.
    pub fn new(tensors: &Tensors<'_>) -> Self {
        Self {
            precision: tensors.precision().unwrap_or_default(),
            dropout: Dropout::none(),
        }
    }

    /// The same with dropout.
    #[must_use]
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout, ..self }
    }

    /// The dropout on the softmax's output.
    pub fn dropout(&self) -> &Dropout {
        &self.dropout
    }

    /// What the queries see.
    ///
    /// # Shapes
    /// - `q`: `(B, H, L, d)`
    /// - `k`, `v`: `(B, G, M, d)`, `G` dividing `H`
    /// - `mask`: added to the scores, `(1, 1, L, M)`, `(B, 1, L, M)` or `(1, H, L, M)`
    /// - returns `(B, L, H·d)`
    pub fn forward(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        mask: Option<&Tensor<4>>,
    ) -> Tensor<3> {
        if !q.device().is_autodiff() && !self.dropout.is_active() {
            return inference::attention(q, k, v, mask, self.precision);
        }
        let [batch, heads, length, head_dim] = q.dims();
        let [_, groups, keys, _] = k.dims();
        let q = q.mul_scalar((head_dim as f64).powf(-0.5));
        // One product per key-value head: its query heads are stacked along the rows.
        let rows = heads / groups * length;
        let q = q.reshape([batch, groups, rows, head_dim]);
        let mut scores = q.matmul(k.transpose());
        if let Some(mask) = mask {
            scores = (scores.reshape([batch, heads, length, keys]) + mask.clone())
                .reshape([batch, groups, rows, keys]);
        }
        let joined = self.dropout.forward(softmax(scores)).matmul(v);
        joined
            .reshape([batch, heads, length, head_dim])
            .swap_dims(1, 2)
            .reshape([batch, length, heads * head_dim])
    }
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
