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
