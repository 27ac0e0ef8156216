//! Elementary functions as straight-line code, so that loops over them are vectorised.

/// `Φ(x)` and `φ(x)` of the normal distribution.
///
/// `Φ` is off by at most 1e-7, and where it is small, by at most a thousandth of itself down to −9.
#[inline(always)]
pub fn phi(x: f32) -> (f32, f32) {
    phi_of::<false>(x)
}

/// [`phi`] with products and sums fused where the machine can.
#[inline(always)]
pub(crate) fn phi_of<const FUSED: bool>(x: f32) -> (f32, f32) {
    /// The polynomial with the value `ln ½` at 0 that is closest to `ln Φ(−x)` up to 9, where gaps count
    /// `max(Φ(−x), 1e-4)` times, so that `Φ(−x)` is off by at most 3e-8, or 3e-4 of itself if that is less: by Remez'
    /// exchange, then rounded. Beyond 9 it falls, as `ln Φ(−x)` does, and faster.
    const LN_TAIL: [f32; 11] = [
        -std::f32::consts::LN_2,
        -0.797_886_25,
        -0.318_288_4,
        -0.036_422_893,
        0.004_945_454,
        -0.000_123_761_89,
        -0.000_126_749_6,
        3.182_816e-5,
        -3.788_962_7e-6,
        2.328_396e-7,
        -5.890_031e-9,
    ];
    const INVERSE_ROOT_TAU: f32 = 0.398_942_3;
    let tail = exp_below::<FUSED>(polynomial::<FUSED, _>(LN_TAIL, x.abs()));
    let cumulative = if x < 0.0 { tail } else { 1.0 - tail };
    let bell = exp_below::<FUSED>(-0.5 * x * x);
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
#[inline(always)]
pub(crate) fn exp_of<const FUSED: bool>(x: f32) -> f32 {
    exp_below::<FUSED>(if x > 88.0 { 88.0 } else { x })
}

/// [`exp_of`] numbers that are at most 88.
#[expect(
    clippy::excessive_precision,
    reason = "this part of ln 2 is exact as it stands (Cephes, `expf`)"
)]
#[inline(always)]
pub(crate) fn exp_below<const FUSED: bool>(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_375;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Adding this rounds to a whole number `n` and leaves `n + 127`, the exponent of `2ⁿ`, in the low bits: 1.5 · 2²³ + 127.
    const ROUND: f32 = 12_583_039.0;
    /// The polynomial that is relatively closest to `eʳ` within ±½·ln 2, off by 4e-9, the first two coefficients given:
    /// by Remez' exchange, then rounded.
    const POWERS: [f32; 7] = [
        1.0,
        1.0,
        0.499_999_94,
        0.166_665_21,
        0.041_668_39,
        0.008_368_71,
        0.001_381_461_9,
    ];
    let shifted = add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = add::<FUSED>(n, -LN_2_LOW, add::<FUSED>(n, -LN_2_HIGH, x));
    let power = f32::from_bits(shifted.to_bits() << 23);
    let y = polynomial::<FUSED, _>(POWERS, r) * power;
    if x < -87.0 { 0.0 } else { y }
}

/// `Σ coefficients[i] · xⁱ`.
#[inline(always)]
fn polynomial<const FUSED: bool, const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for &coefficient in coefficients[..N - 1].iter().rev() {
        sum = add::<FUSED>(sum, x, coefficient);
    }
    sum
}

/// `a · b + c`.
#[inline(always)]
fn add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
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
                assert!((f64::from(found) / exact - 1.0).abs() < 2e-7, "{x}");
            }
        }
        for exp in [exp, exp_of::<true>] {
            assert_eq!(exp(0.0), 1.0);
            for far in [-87.001, -104.0, -1e30, f32::NEG_INFINITY] {
                assert_eq!(exp(far), 0.0);
            }
            for far in [88.001, 1e30, f32::INFINITY] {
                assert_eq!(exp(far), exp(88.0));
            }
            // Whatever the bits of a NaN.
            for bits in [
                0x7F80_0001,
                0x7FC0_0000,
                0x7FFF_FFFF,
                0xFF80_0001,
                0xFFFF_FFFF,
            ] {
                assert!(exp(f32::from_bits(bits)).is_nan());
            }
        }
    }

    /// `Φ(−x)` in f64, by its continued fraction (Laplace) or, where that is slow, by a series.
    fn tail(x: f64) -> f64 {
        let bell = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        if x > 2.0 {
            return bell / (1..200).rev().fold(x, |sum, n| x + f64::from(n) / sum);
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 - bell * sum
    }

    #[test]
    fn phi_agrees_with_f64() {
        for i in 0..9000 {
            let x = i as f32 * 0.001;
            let tail = tail(f64::from(x));
            let exact_bell =
                (-0.5 * f64::from(x) * f64::from(x)).exp() / std::f64::consts::TAU.sqrt();
            for phi in [phi, phi_of::<true>] {
                let ((above, bell), (below, same)) = (phi(x), phi(-x));
                let gap = (f64::from(below) - tail).abs();
                assert!(
                    gap < 1e-7 && gap < 1e-3 * tail,
                    "{below}, not {tail} at {x}"
                );
                assert!(
                    (f64::from(above) - (1.0 - tail)).abs() < 1e-7,
                    "{above} at {x}"
                );
                assert!(
                    bell == same && (f64::from(bell) / exact_bell - 1.0).abs() < 4e-6,
                    "{bell} at {x}"
                );
            }
        }
    }

    #[test]
    fn phi_falls_to_zero_far_out() {
        for phi in [phi, phi_of::<true>] {
            let mut last = phi(-9.0).0;
            for i in 901..2000 {
                let next = phi(i as f32 * -0.01).0;
                assert!(next <= last, "{i}");
                last = next;
            }
            for far in [20.0, 1e4, 1e30, f32::INFINITY] {
                assert_eq!([phi(-far), phi(far)], [(0.0, 0.0), (1.0, 0.0)]);
            }
            assert!(phi(f32::NAN).0.is_nan());
        }
    }
}
