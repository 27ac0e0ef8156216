//! Bicubic and bilinear resizing with the bytes of Pillow.
//!
//! Separable: a horizontal pass and a vertical one, each in fixed point and rounded
//! to 8 bits; a pass whose side stays the same is skipped.

/// Fractional bits of a weight.
const WEIGHT_BITS: u32 = 22;

/// One half in the scale of the sums, so that the final shift rounds.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// How neighbouring pixels are mixed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Filter {
    /// Keys' cubic with a = -0.5.
    Bicubic,
    /// The triangle.
    Bilinear,
}

/// Which pass comes first. As each rounds to 8 bits, that moves some levels a little.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// The horizontal one: Pillow up to 11.
    HorizontalFirst,
    /// The vertical one where the height shrinks, and by more than twice as many pixels as the
    /// width: Pillow 13.
    ShrinkFirst,
}

/// Resizes RGB pixels; `from` and `to` are (width, height), all positive.
pub(super) fn resize(
    pixels: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
    order: Order,
) -> Vec<u8> {
    let rows = |pixels: &[u8]| match from.0 == to.0 {
        true => pixels.to_vec(),
        false => resize_rows(pixels, &windows(from.0, to.0, filter), from.0),
    };
    let columns = |pixels: &[u8], width: usize| match from.1 == to.1 {
        true => pixels.to_vec(),
        false => resize_columns(pixels, &windows(from.1, to.1, filter), width),
    };
    let [narrower, lower] =
        [(from.0, to.0), (from.1, to.1)].map(|(from, to)| from as i64 - to as i64);
    let is_vertical_first = match order {
        Order::HorizontalFirst => false,
        Order::ShrinkFirst => lower > 0 && lower > 2 * narrower,
    };
    if is_vertical_first {
        rows(&columns(pixels, from.0))
    } else {
        columns(&rows(pixels), to.0)
    }
}

/// The input pixels that make one output pixel.
struct Window {
    first: usize,
    /// Fixed-point weights of the pixels from `first` on.
    weights: Vec<i32>,
}

fn resize_rows(pixels: &[u8], windows: &[Window], from: usize) -> Vec<u8> {
    let to = windows.len();
    let mut resized = vec![0; pixels.len() / from * to];
    let rows = pixels.chunks_exact(from * 3);
    for (row, resized) in rows.zip(resized.chunks_exact_mut(to * 3)) {
        let (row, _) = row.as_chunks::<3>();
        let (resized, _) = resized.as_chunks_mut::<3>();
        for (rgb, window) in resized.iter_mut().zip(windows) {
            *rgb = weighted_sum(&row[window.first..], &window.weights).map(to_level);
        }
    }
    resized
}

fn weighted_sum(pixels: &[[u8; 3]], weights: &[i32]) -> [i32; 3] {
    let (mut red, mut green, mut blue) = (HALF, HALF, HALF);
    for (&[r, g, b], &weight) in pixels.iter().zip(weights) {
        red += weight * i32::from(r);
        green += weight * i32::from(g);
        blue += weight * i32::from(b);
    }
    [red, green, blue]
}

fn resize_columns(pixels: &[u8], windows: &[Window], width: usize) -> Vec<u8> {
    let stride = width * 3;
    let mut resized = Vec::with_capacity(stride * windows.len());
    let mut sums = vec![HALF; stride];
    for window in windows {
        sums.fill(HALF);
        let rows = pixels[window.first * stride..].chunks_exact(stride);
        for (row, &weight) in rows.zip(&window.weights) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(level);
            }
        }
        resized.extend(sums.iter().map(|&sum| to_level(sum)));
    }
    resized
}

fn to_level(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    // Shrinking stretches the kernel over all the pixels that become one.
    let stretch = scale.max(1.0);
    let reach = filter.reach() * stretch;
    let window = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|pixel| filter.weight((pixel as f64 - centre + 0.5) / stretch))
            .collect();
        let total: f64 = weights.iter().sum();
        Window {
            first,
            weights: weights.iter().map(|w| to_fixed(w / total)).collect(),
        }
    };
    (0..to).map(window).collect()
}

fn to_fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << WEIGHT_BITS);
    (scaled + 0.5_f64.copysign(scaled)) as i32
}

impl Filter {
    /// How far it reaches, in pixels of the coarser side.
    fn reach(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        let t = distance.abs();
        match self {
            Self::Bicubic if t < 1.0 => (1.5 * t - 2.5) * t * t + 1.0,
            Self::Bicubic if t < 2.0 => ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0,
            Self::Bilinear if t < 1.0 => 1.0 - t,
            Self::Bicubic | Self::Bilinear => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_every_window_sum_to_one() {
        let sizes = [(1, 1), (1, 448), (640, 448), (23, 448), (65_535, 7)];
        let filters = [Filter::Bicubic, Filter::Bilinear];
        for ((from, to), filter) in sizes
            .into_iter()
            .flat_map(|size| filters.map(|f| (size, f)))
        {
            for window in windows(from, to, filter) {
                let sum: i32 = window.weights.iter().sum();
                let rounding = window.weights.len() as i32;
                assert!(
                    (sum - (1 << WEIGHT_BITS)).abs() <= rounding,
                    "{from} to {to}"
                );
                assert!(window.first + window.weights.len() <= from);
            }
        }
    }

    #[test]
    fn one_colour_stays_that_colour() {
        for (from, to) in [((1, 1), (5, 3)), ((9, 200), (4, 4)), ((3, 3), (3, 3))] {
            let pixels = [255, 0, 77].repeat(from.0 * from.1);
            let expected = [255, 0, 77].repeat(to.0 * to.1);
            for filter in [Filter::Bicubic, Filter::Bilinear] {
                assert_eq!(
                    resize(&pixels, from, to, filter, Order::HorizontalFirst),
                    expected
                );
            }
        }
    }
}
