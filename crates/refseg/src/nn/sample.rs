//! Maps seen between their cells.

use burn::tensor::{
    Tensor,
    ops::{GridSampleOptions, GridSamplePaddingMode, InterpolateMode},
};

use super::inference;

/// Each point sees a mean of the four cells around it; beyond the edge it sees the edge.
///
/// Reference: `F.grid_sample` (bilinear, border, `align_corners=False`), but for the unit of points.
///
/// # Shapes
/// - `maps`: `(B, G, side², d)`, cells in reading order
/// - `points`: `(B, G, P, 2)`: x and y in cells, from the corner of the first
/// - returns `(B, P, G·d)`
pub fn sample(maps: Tensor<4>, side: usize, points: Tensor<4>) -> Tensor<3> {
    if !maps.device().is_autodiff() {
        return inference::sample(maps, [side, side], points);
    }
    let ([batch, groups, _, channels], [_, _, count, _]) = (maps.dims(), points.dims());
    let maps = maps
        .swap_dims(2, 3)
        .reshape([batch * groups, channels, side, side]);
    // The framework wants −1..1 across the map.
    let points = points.mul_scalar(2.0 / side as f64).sub_scalar(1.0);
    let points = points.reshape([batch * groups, 1, count, 2]);
    let options = GridSampleOptions::new(InterpolateMode::Bilinear)
        .with_padding_mode(GridSamplePaddingMode::Border)
        .with_align_corners(false);
    maps.grid_sample_2d(points, options)
        .reshape([batch, groups, channels, count])
        .permute([0, 3, 1, 2])
        .reshape([batch, count, groups * channels])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn the_kernel_and_the_framework_see_the_same() {
        let random = |shape, scale| {
            Tensor::<4>::random(shape, Distribution::Normal(3.0, scale), &Device::flex())
        };
        let (maps, points) = (random([2, 3, 36, 8], 1.0), random([2, 3, 70, 2], 4.0));
        let found = sample(maps.clone(), 6, points.clone());
        let expected = sample(maps.autodiff(), 6, points.autodiff()).inner();
        assert_eq!(found.dims(), [2, 70, 24]);
        let gap: f32 = (found - expected).abs().max().into_scalar();
        assert!(gap < 2e-5, "{gap}");
    }
}
