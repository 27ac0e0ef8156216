//! Tables of positions, resized to another grid.

use burn::tensor::{Device, Tensor, TensorData};

/// Keys' parameter, as in torch; Pillow's is −0.5.
const A: f64 = -0.75;

/// Resizes a square table with torch's bicubic filter (`align_corners` false, not antialiased).
///
/// # Shapes
/// `(from², D)` to `(to², D)`, cells in reading order.
pub(super) fn resize_table(table: Tensor<2>, from: usize, to: usize) -> Tensor<2> {
    if from == to {
        return table;
    }
    let [_, width] = table.dims();
    let weights = weights(from, to, &table.device());
    let rows = weights.clone().matmul(table.reshape([from, from * width])); // (to, from·D)
    let columns = rows.reshape([to, from, width]).swap_dims(0, 1); // (from, to, D)
    weights
        .matmul(columns.reshape([from, to * width]))
        .reshape([to, to, width])
        .swap_dims(0, 1)
        .reshape([to * to, width])
}

/// How much of each input cell goes into each output cell along one axis: `(to, from)`.
fn weights(from: usize, to: usize, device: &Device) -> Tensor<2> {
    let mut values = vec![0.0f32; to * from];
    for (i, row) in values.chunks_exact_mut(from).enumerate() {
        let source = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let first = source.floor() - 1.0;
        for tap in 0..4 {
            let cell = first + f64::from(tap);
            // Beyond the edge stands the cell at the edge.
            let index = cell.clamp(0.0, (from - 1) as f64) as usize;
            row[index] += kernel(source - cell) as f32;
        }
    }
    Tensor::from_data(TensorData::new(values, [to, from]), device)
}

/// Keys' cubic convolution kernel.
fn kernel(distance: f64) -> f64 {
    let x = distance.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    #[test]
    fn weights_of_doubling_are_those_of_the_kernel() {
        // Computed by hand: the kernel with a = −0.75 at 1.75, 0.75, 0.25 and 1.25.
        let [far, near, nearest, behind] =
            [-0.035_156_25, 0.261_718_75, 0.878_906_25, -0.105_468_75];
        let found = values(weights(4, 8, &Device::flex()));
        let rows: Vec<&[f32]> = found.chunks(4).collect();
        assert_eq!(rows[4], [far, near, nearest, behind]);
        assert_eq!(rows[3], [behind, nearest, near, far]);
        // At the edge the first cell stands in for those before it.
        assert_eq!(rows[0], [far + near + nearest, behind, 0.0, 0.0]);
        for row in rows {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn rows_and_columns_are_not_mixed_up() {
        // Cell (y, x) holds (y, x, 7): each channel varies along one axis only.
        let cells = (0..16).flat_map(|i| [(i / 4) as f32, (i % 4) as f32, 7.0]);
        let data = TensorData::new(cells.collect(), [16, 3]);
        let table = Tensor::<2>::from_data(data, &Device::flex());
        assert_eq!(
            values(resize_table(table.clone(), 4, 4)),
            values(table.clone())
        );
        let found = values(resize_table(table, 4, 6));
        for (i, cell) in found.chunks(3).enumerate() {
            let (y, x) = (i / 6, i % 6);
            assert!((cell[0] - found[y * 18]).abs() < 1e-6, "one row, one value");
            assert!(
                (cell[1] - found[x * 3 + 1]).abs() < 1e-6,
                "one column, one value"
            );
            assert!((cell[2] - 7.0).abs() < 1e-5);
        }
        // Between cells a ramp stays a ramp: output 2 is at 7/6.
        let at = found[2 * 18];
        assert!((at - 7.0 / 6.0).abs() < 0.05, "{at}");
    }
}
