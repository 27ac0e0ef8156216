//! Elementary functions as straight-line code, so that loops over them are vectorised.

/// `Φ(x)` and `φ(x)` of the normal distribution.
///
/// Abramowitz and Stegun, 7.1.26: off by at most 1.5e-7.
#[inline(always)]
pub fn phi(x: f32) -> (f32, f32) {
    phi_of::<false>(x)
}

/// [`phi`] with products and sums fused where the machine can.
#[expect(
    clippy::excessive_precision,
    reason = "constants stand as their source prints them"
)]
#[inline(always)]
pub(crate) fn phi_of<const FUSED: bool>(x: f32) -> (f32, f32) {
    const A: [f32; 5] = [
        0.254_829_592,
        -0.284_496_736,
        1.421_413_741,
        -1.453_152_027,
        1.061_405_429,
    ];
    const P: f32 = 0.327_591_1;
    const INVERSE_ROOT_TAU: f32 = 0.398_942_28;
    let add = |a: f32, b: f32, c: f32| if FUSED { a.mul_add(b, c) } else { a * b + c };
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / add(P, z, 1.0);
    let bell = exp_of::<FUSED>(-z * z);
    let sum = add(t, add(t, add(t, add(t, A[4], A[3]), A[2]), A[1]), A[0]);
    let tail = t * sum * bell * 0.5;
    let cumulative = if x < 0.0 { tail } else { 1.0 - tail };
    (cumulative, bell * INVERSE_ROOT_TAU)
}

/// `½ · (1 + tanh u)`, `u = √(2/π) · (x + 0.044715·x³)`, which is close to `Φ(x)`, and its derivative.
#[inline(always)]
pub fn phi_tanh(x: f32) -> (f32, f32) {
    const CUBE: f32 = 0.044_715;
    /// 2·√(2/π), since `½ · (1 + tanh u)` is the sigmoid of `2u`.
    const TWICE_ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    let square = x * x;
    let twice_u = TWICE_ROOT * x * (1.0 + CUBE * square);
    let slope = TWICE_ROOT * (1.0 + 3.0 * CUBE * square);
    let cumulative = sigmoid(twice_u);
    (cumulative, cumulative * (1.0 - cumulative) * slope)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `eˣ`, off by at most two units in the last place between −87 and 88; 0 below, and e⁸⁸ above.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    exp_of::<false>(x)
}

/// [`exp`] with products and sums fused where the machine can.
#[expect(
    clippy::excessive_precision,
    reason = "constants stand as their source prints them"
)]
#[inline(always)]
pub(crate) fn exp_of<const FUSED: bool>(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_375;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Adding this rounds to a whole number and leaves it in the low bits: 1.5 · 2²³.
    const ROUND: f32 = 12_582_912.0;
    let add = |a: f32, b: f32, c: f32| if FUSED { a.mul_add(b, c) } else { a * b + c };
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = add(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = add(n, -LN_2_LOW, add(n, -LN_2_HIGH, clamped));
    // Minimax polynomial of (eʳ − 1 − r) / r² on ±ln 2 / 2 (Cephes, `expf`).
    let p = 1.987_569_1e-4;
    let p = add(p, r, 1.398_199_9e-3);
    let p = add(p, r, 8.333_452e-3);
    let p = add(p, r, 4.166_579_6e-2);
    let p = add(p, r, 1.666_666_5e-1);
    let p = add(p, r, 5.000_000_1e-1);
    let y = add(p * r, r, r) + 1.0;
    let power = f32::from_bits(
        shifted
            .to_bits()
            .wrapping_sub(ROUND.to_bits())
            .wrapping_add(127)
            << 23,
    );
    let y = y * power;
    if x < -87.0 { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_library_over_its_range() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            for found in [exp(x), exp_of::<true>(x)] {
                assert!((f64::from(found) / exact - 1.0).abs() < 3e-7, "{x}");
            }
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
