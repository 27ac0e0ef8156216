//! Square windows, in which attention is cheaper than over the whole map.

use burn::tensor::Tensor;

/// Cuts maps into windows, with zeros right and below where they do not fit.
///
/// # Shapes
/// `(B, h, w, C)` to `(B·n, side², C)`, windows in reading order.
pub(super) fn cut(x: Tensor<4>, side: usize) -> Tensor<3> {
    let [batch, height, width, channels] = x.dims();
    let (rows, columns) = (height.div_ceil(side), width.div_ceil(side));
    let x = below(x, rows * side - height);
    let x = below(x.swap_dims(1, 2), columns * side - width).swap_dims(1, 2);
    x.reshape([batch, rows, side, columns, side, channels])
        .permute([0, 1, 3, 2, 4, 5])
        .reshape([batch * rows * columns, side * side, channels])
}

/// Puts windows together again, and cuts off what [`cut`] added.
///
/// # Shapes
/// `(B·n, side², C)` to `(B, h, w, C)`.
pub(super) fn join(
    windows: Tensor<3>,
    side: usize,
    [batch, height, width]: [usize; 3],
) -> Tensor<4> {
    let [.., channels] = windows.dims();
    let (rows, columns) = (height.div_ceil(side), width.div_ceil(side));
    windows
        .reshape([batch, rows, columns, side, side, channels])
        .permute([0, 1, 3, 2, 4, 5])
        .reshape([batch, rows * side, columns * side, channels])
        .narrow(1, 0, height)
        .narrow(2, 0, width)
}

/// Adds rows of zeros below.
fn below(x: Tensor<4>, rows: usize) -> Tensor<4> {
    if rows == 0 {
        return x;
    }
    let [batch, _, width, channels] = x.dims();
    let zeros = Tensor::zeros([batch, rows, width, channels], &x.device());
    Tensor::cat(vec![x, zeros], 1)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn windows_are_padded_with_zeros_and_joined_again() {
        let map = Tensor::<4>::random([2, 5, 7, 3], Distribution::Default, &Device::flex());
        let windows = cut(map.clone(), 4);
        assert_eq!(windows.dims(), [2 * 2 * 2, 16, 3]);
        let values =
            |tensor: Tensor<1>| -> Vec<f32> { tensor.into_data().try_into_vec().expect("f32") };
        // The last window of a map shows its row 4 and columns 4 to 6.
        let corner = windows.clone().narrow(0, 3, 1).narrow(1, 2, 1).reshape([3]);
        let expected = map.clone().slice([0..1, 4..5, 6..7, 0..3]).reshape([3]);
        assert_eq!(values(corner), values(expected));
        let outside = windows.clone().narrow(0, 3, 1).narrow(1, 3, 1).reshape([3]);
        assert_eq!(values(outside), [0.0; 3]);
        let again = join(windows, 4, [2, 5, 7]);
        assert_eq!(values(again.reshape([-1])), values(map.reshape([-1])));
    }
}
