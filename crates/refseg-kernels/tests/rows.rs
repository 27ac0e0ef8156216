//! Norms, turns by positions and maps seen at points, against f64.

use refseg_kernels::{Heads, Norm, norm, rope, sample};

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn norms_agree_with_f64() {
    for (rows, width) in [(1, 1), (3, 5), (2, 16), (7, 33), (90, 1024)] {
        let x = numbers(rows * width, 1);
        let (weight, bias) = (numbers(width, 2), numbers(width, 3));
        for (centred, bias) in [(true, Some(&*bias)), (true, None), (false, None)] {
            let found = norm(
                &x,
                Norm {
                    weight: &weight,
                    bias,
                    epsilon: 1e-3,
                    centred,
                },
            );
            assert_eq!(found.len(), x.len());
            for (x, found) in x.chunks_exact(width).zip(found.chunks_exact(width)) {
                let mean_of = |f: &dyn Fn(f64) -> f64| {
                    x.iter().map(|&x| f(f64::from(x))).sum::<f64>() / width as f64
                };
                let mean = if centred { mean_of(&|x| x) } else { 0.0 };
                let scale = (mean_of(&|x| (x - mean).powi(2)) + 1e-3).sqrt().recip();
                for (i, &found) in found.iter().enumerate() {
                    let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
                    let expected = (f64::from(x[i]) - mean) * scale * f64::from(weight[i]) + bias;
                    let gap = (f64::from(found) - expected).abs();
                    assert!(
                        gap < 2e-6 * (1.0 + scale),
                        "{rows}×{width}: {found}, not {expected}"
                    );
                }
            }
        }
    }
    assert!(
        norm(
            &[],
            Norm {
                weight: &[],
                bias: None,
                epsilon: 0.0,
                centred: true
            }
        )
        .is_empty()
    );
}

#[test]
fn a_number_that_is_none_spoils_its_row_alone() {
    let mut x = numbers(3 * 40, 1);
    x[40 + 7] = f32::NAN;
    let weight = vec![1.0; 40];
    let found = norm(
        &x,
        Norm {
            weight: &weight,
            bias: None,
            epsilon: 1e-6,
            centred: true,
        },
    );
    for (index, found) in found.into_iter().enumerate() {
        assert_eq!(found.is_nan(), index / 40 == 1, "{index}");
    }
}

#[test]
fn pairs_are_turned_by_their_angles() {
    let (sizes, width) = ([2, 3, 5], 6);
    let [batch, heads, length] = sizes;
    let values = numbers(batch * heads * length * width, 4);
    let angles = numbers(length * width / 2, 5);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    // Tokens first, then heads.
    let x = Heads {
        values: &values,
        strides: [length * heads * width, width, heads * width],
    };
    let found = rope(x, sizes, &cos, &sin);
    for (row, found) in found.chunks_exact(width).enumerate() {
        let (b, h, at) = (row / (heads * length), row / length % heads, row % length);
        let x = &values[((b * length + at) * heads + h) * width..][..width];
        for k in 0..3 {
            let angle = f64::from(angles[at * 3 + k]);
            let (a, b) = (f64::from(x[k]), f64::from(x[k + 3]));
            let turned = [
                a * angle.cos() - b * angle.sin(),
                b * angle.cos() + a * angle.sin(),
            ];
            for (found, expected) in [found[k], found[k + 3]].into_iter().zip(turned) {
                assert!(
                    (f64::from(found) - expected).abs() < 1e-6,
                    "{row}: {found}, not {expected}"
                );
            }
        }
    }
    assert!(rope(x, [2, 3, 0], &[], &[]).is_empty());
}

#[test]
fn points_between_cells_see_a_mean_of_them() {
    let ([batch, groups], [height, width], channels, count) = ([2, 3], [4, 5], 7, 90);
    let values = numbers(batch * height * width * groups * channels, 6);
    // Cells first, then groups; points beyond every edge among them.
    let maps = Heads {
        values: &values,
        strides: [
            height * width * groups * channels,
            channels,
            groups * channels,
        ],
    };
    let points: Vec<f32> = numbers(batch * groups * count * 2, 7)
        .into_iter()
        .map(|x| 2.5 + 4.0 * x)
        .collect();
    let found = sample(maps, [batch, groups], [height, width], channels, &points);
    assert_eq!(found.len(), batch * count * groups * channels);
    for (row, found) in found.chunks_exact(channels).enumerate() {
        let (b, point, g) = (row / (groups * count), row / groups % count, row % groups);
        let at = ((b * groups + g) * count + point) * 2;
        // A tent over each cell's centre, and the edge for what lies beyond it.
        let tent = |coordinate: f32, cell: usize, cells: usize| {
            let at = (f64::from(coordinate) - 0.5).clamp(0.0, (cells - 1) as f64);
            (1.0 - (at - cell as f64).abs()).max(0.0)
        };
        for (channel, &found) in found.iter().enumerate() {
            let mut expected = 0.0;
            for cell in 0..height * width {
                let weight = tent(points[at], cell % width, width)
                    * tent(points[at + 1], cell / width, height);
                let value = values[((b * height * width + cell) * groups + g) * channels + channel];
                expected += weight * f64::from(value);
            }
            assert!(
                (f64::from(found) - expected).abs() < 2e-6,
                "{row}: {found}, not {expected}"
            );
        }
    }
    let astray = sample(maps, [2, 3], [4, 5], 7, &[f32::NAN; 12]);
    assert!(astray.iter().all(|x| x.is_nan()));
    assert!(sample(maps, [2, 3], [4, 5], 7, &[]).is_empty());
}
