//! From the host's values to tensors and back.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The values of a tensor; f32 is the only float type that training creates.
pub(crate) fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
    tensor
        .into_data()
        .try_into_vec()
        .expect("training computes in f32")
}

/// The value of a loss.
pub(crate) fn scalar(loss: &Tensor<1>) -> f32 {
    values(loss.clone())[0]
}

/// Values as a tensor.
pub(crate) fn floats<const R: usize>(
    values: &[f32],
    shape: [usize; R],
    device: &Device,
) -> Tensor<R> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Classes or indices as a tensor.
pub(crate) fn indices(values: impl IntoIterator<Item = i64>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.into_iter().collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// What is added to the scores of a row that holds `start` tokens and then `count` continuations
/// of `length` tokens each: a token sees the first ones and its own continuation, up to itself.
///
/// `(L, L)` values for rows of `L = start + count · length` tokens.
pub(crate) fn packed_mask(start: usize, count: usize, length: usize) -> Vec<f32> {
    let row = start + count * length;
    let mut mask = vec![f32::NEG_INFINITY; row * row];
    for (query, seen) in mask.chunks_mut(row).enumerate() {
        let own = match query.checked_sub(start) {
            None => 0,
            Some(behind) => start + behind / length * length,
        };
        seen[..start.min(query + 1)].fill(0.0);
        seen[own..=query].fill(0.0);
    }
    mask
}
