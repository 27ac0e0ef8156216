//! Products with packed weights against sums in f64, for every instruction set of this machine.

mod common;

use common::{Random, UNIT, roundings, sets};
use refseg_kernels::{Activation, Epilogue, InstructionSet, Packed, Precision};

/// Sizes around every tile, block and slab: rows, inputs, outputs.
const SIZES: [[usize; 3]; 19] = [
    [1, 1, 1],
    [1, 2, 3],
    [2, 3, 5],
    [3, 4, 8],
    [4, 5, 9],
    [5, 7, 15],
    [6, 15, 16],
    [7, 16, 17],
    [13, 17, 31],
    [14, 31, 32],
    [15, 33, 33],
    [1, 896, 65],
    [1, 1025, 257],
    [29, 63, 70],
    [40, 127, 97],
    [43, 257, 40],
    [61, 513, 33],
    [175, 300, 290],
    [8, 2049, 19],
];

/// What a product comes to, and how far from it the kernels may be.
#[derive(Clone, Copy)]
struct Expected {
    value: f64,
    gap: f64,
}

/// Half of the step between two bf16 numbers, relatively.
const HALF_BF16: f64 = 1.0 / 256.0;

/// Rounds as the definition of bf16 has it: 8 bits of significand, ties to even.
fn to_bf16(x: f32) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x.into();
    }
    let step = 2f64.powi((f64::from(x).abs().log2().floor() as i32).max(-126) - 7);
    (f64::from(x) / step).round_ties_even() * step
}

/// Whether weights of bf16 are multiplied as such, and activations rounded likewise.
fn multiplies_bf16(set: InstructionSet) -> bool {
    matches!(set, InstructionSet::Avx512Bf16 | InstructionSet::NeonMatrix)
}

/// A row of activations, or an output's weights.
struct Row {
    numbers: Vec<f64>,
    /// The sum of magnitudes.
    size: f64,
    /// The step of its whole numbers: the 254th part of what lies between the smallest number and the largest one, zero
    /// among them; of weights, and in int16, these are as far from zero on both sides as the farthest of them.
    scale: f64,
}

/// Rows of activations and of weights as a kernel sees them.
fn rounded(
    x: &[f32],
    w: &[f32],
    inputs: usize,
    precision: Precision,
    set: InstructionSet,
) -> [Vec<Row>; 2] {
    let row = |numbers: &[f32], round: fn(f32) -> f64| {
        let numbers: Vec<_> = numbers.iter().map(|&x| round(x)).collect();
        let range = [f64::min, f64::max].map(|limit| numbers.iter().copied().fold(0.0, limit));
        Row {
            size: numbers.iter().map(|x| x.abs()).sum(),
            scale: (range[1] - range[0]) / 254.0,
            numbers,
        }
    };
    let rows = |numbers: &[f32], round: fn(f32) -> f64| {
        let rows = numbers.chunks_exact(inputs);
        rows.map(|numbers| row(numbers, round)).collect()
    };
    let even = |numbers: &[f32], most: f64| {
        let mut rows: Vec<Row> = rows(numbers, f64::from);
        for Row { numbers, scale, .. } in &mut rows {
            *scale = numbers.iter().fold(0.0, |largest, x| x.abs().max(largest)) / most;
        }
        rows
    };
    match precision {
        Precision::F32 => [rows(x, f64::from), rows(w, f64::from)],
        Precision::Int16 => [even(x, 4095.0), even(w, 4095.0)],
        Precision::Int8 => [rows(x, f64::from), even(w, 127.0)],
        Precision::Bf16 if multiplies_bf16(set) => [rows(x, to_bf16), rows(w, to_bf16)],
        Precision::Bf16 => [rows(x, f64::from), rows(w, to_bf16)],
    }
}

/// The product of a row and an output's weights, both [`rounded`].
///
/// f32: with `k` products and sums each rounded once, the sum of magnitudes times γ(k).
///
/// bf16: the same; instructions that multiply pairs lose subnormal numbers, and round twice a pair: AVX512-BF16 to the
/// nearest, the BF16 of AArch64 to odd, which costs twice as much.
///
/// int8: a weight and an activation are off by half a step each, so that the product of whole numbers is off by
/// `½·sx·|w| + ½·sw·|x| + ¼·sx·sw`; scales and the last product add roundings.
///
/// int16: the same, and sums of up to 128 products are added up in f32.
fn expected(x: &Row, w: &Row, precision: Precision, set: InstructionSet) -> Expected {
    let inputs = x.numbers.len();
    let k = inputs as f64;
    let (mut value, mut size) = (0.0, 0.0);
    for (x, w) in x.numbers.iter().zip(&w.numbers) {
        value += x * w;
        size += (x * w).abs();
    }
    // The result may fall among the subnormal numbers, whose step is fixed.
    let (step, least) = (f64::from(f32::from_bits(1)), f64::from(f32::MIN_POSITIVE));
    let gap = match precision {
        Precision::Int8 | Precision::Int16 => {
            let (most, sums) = match precision {
                Precision::Int8 => (254.0, 0),
                _ => (4095.0, inputs.div_ceil(128)),
            };
            // A scale is itself rounded, twice, which moves the largest whole number by as many roundings.
            let half = 0.5 * (1.0 + 4.1 * most * UNIT);
            let steps = half * (x.scale * w.size + w.scale * x.size + half * k * x.scale * w.scale);
            steps + roundings(8 + sums) * (size + steps) + most * most * k * step
        }
        Precision::Bf16 if multiplies_bf16(set) => roundings(2 * inputs) * size + 2.0 * k * least,
        Precision::F32 | Precision::Bf16 => roundings(inputs) * size + k * step,
    };
    Expected { value, gap }
}

fn check(x: &[f32], w: &[f32], [rows, inputs, outputs]: [usize; 3], what: &str) {
    for precision in Precision::ALL {
        // What sets that round alike should give is computed once: it takes longer than all that they do.
        let pairs = |&set: &InstructionSet| precision == Precision::Bf16 && multiplies_bf16(set);
        let (pairs, others): (Vec<_>, Vec<_>) = sets().into_iter().partition(pairs);
        for sets in [pairs, others] {
            let Some(&first) = sets.first() else {
                continue;
            };
            let [rounded_x, rounded_w] = rounded(x, w, inputs, precision, first);
            let pairs = rounded_x
                .iter()
                .flat_map(|x| rounded_w.iter().map(move |w| (x, w)));
            let expected: Vec<_> = pairs
                .map(|(x, w)| expected(x, w, precision, first))
                .collect();
            for set in sets {
                let packed = Packed::for_set(w, outputs, inputs, precision, set);
                let mut out = vec![f32::NAN; rows * outputs];
                packed.multiply(x, &Epilogue::default(), &mut out);
                for (index, (&found, &Expected { value, gap })) in
                    out.iter().zip(&expected).enumerate()
                {
                    assert!(
                        (f64::from(found) - value).abs() <= gap,
                        "{what}, {set}, {precision}, {rows}×{inputs}×{outputs}: row {}, output {} is {found}, not \
                         within {gap:e} of {value}",
                        index / outputs,
                        index % outputs
                    );
                }
            }
        }
    }
}

#[test]
fn products_agree_with_f64_at_every_size() {
    for (seed, size) in SIZES.into_iter().enumerate() {
        let [rows, inputs, outputs] = size;
        let mut random = Random::new(seed as u64);
        let (x, w) = (
            random.numbers(rows * inputs),
            random.numbers(outputs * inputs),
        );
        check(&x, &w, size, "random numbers");
    }
}

#[test]
fn products_agree_with_f64_at_drawn_sizes() {
    let mut random = Random::new(77);
    for _ in 0..40 {
        let size = [60, 600, 120].map(|limit| 1 + random.below(limit));
        let [rows, inputs, outputs] = size;
        let (x, w) = (
            random.numbers(rows * inputs),
            random.numbers(outputs * inputs),
        );
        check(&x, &w, size, "random numbers");
    }
}

#[test]
fn magnitudes_of_all_sizes_are_kept() {
    let size = [17, 70, 35];
    let [rows, inputs, outputs] = size;
    for (of_x, of_w) in [
        (1e30, 1e-30),
        (1e-18, 1e-18),
        (1e18, 1e18),
        (1e-30, 1e20),
        (1e-30, 1e-12),
    ] {
        let mut random = Random::new(5);
        let mut x = random.numbers(rows * inputs);
        let mut w = random.numbers(outputs * inputs);
        x.iter_mut().for_each(|x| *x *= of_x);
        w.iter_mut().for_each(|w| *w *= of_w);
        check(
            &x,
            &w,
            size,
            &format!("activations of {of_x:e}, weights of {of_w:e}"),
        );
    }
}

/// Instructions that multiply pairs of bf16 take subnormal numbers for zeros; all others keep them.
#[test]
fn subnormal_numbers_are_kept_or_count_as_zeros() {
    let [rows, inputs, outputs] = [13, 37, 70];
    for (of_x, of_w) in [(1e-39, 1e20), (1e20, 1e-39)] {
        let mut random = Random::new(8);
        let mut x = random.numbers(rows * inputs);
        let mut w = random.numbers(outputs * inputs);
        x.iter_mut().for_each(|x| *x *= of_x);
        w.iter_mut().for_each(|w| *w *= of_w);
        for set in sets() {
            for precision in [Precision::F32, Precision::Bf16] {
                let mut out = vec![f32::NAN; rows * outputs];
                Packed::for_set(&w, outputs, inputs, precision, set).multiply(
                    &x,
                    &Epilogue::default(),
                    &mut out,
                );
                let lost = precision == Precision::Bf16 && multiplies_bf16(set);
                let [x, w] = rounded(&x, &w, inputs, precision, set);
                let pairs = x.iter().flat_map(|x| w.iter().map(move |w| (x, w)));
                for (found, (x, w)) in out.into_iter().zip(pairs) {
                    let Expected { value, gap } = expected(x, w, precision, set);
                    let value = if lost { 0.0 } else { value };
                    assert!(
                        (f64::from(found) - value).abs() <= gap,
                        "{set}, {precision}, activations of {of_x:e}: {found}, not within {gap:e} of {value}"
                    );
                }
            }
        }
    }
}

#[test]
fn whole_numbers_at_their_limits_are_summed_exactly() {
    // Each sum is the largest there is, of either sign, and far beyond 16 bits.
    limits([15, 4097, 37]);
    // As large as they may be.
    limits([1, 66_500, 3]);
}

fn limits([rows, inputs, outputs]: [usize; 3]) {
    let sign = |i: usize| if i.is_multiple_of(3) { -1.0 } else { 1.0 };
    let x: Vec<_> = (0..rows * inputs)
        .map(|i| 127.0 * sign(i / inputs))
        .collect();
    let w: Vec<_> = (0..outputs * inputs)
        .map(|i| 127.0 * sign(i / inputs))
        .collect();
    for set in sets() {
        let packed = Packed::for_set(&w, outputs, inputs, Precision::Int8, set);
        let mut out = vec![0.0; rows * outputs];
        packed.multiply(&x, &Epilogue::default(), &mut out);
        for (index, &found) in out.iter().enumerate() {
            let (row, output) = (index / outputs, index % outputs);
            let exact = 127.0 * 127.0 * inputs as f32 * sign(row) * sign(output);
            assert_eq!(found, exact, "{set}: row {row}, output {output}");
        }
    }
}

#[test]
fn sums_of_slabs_at_their_limits_fit_whole_numbers() {
    // Each is the largest there is, of either sign: scales are such that 127 becomes 4095.
    let [rows, inputs, outputs] = [7, 1030, 70];
    let sign = |i: usize| if i.is_multiple_of(3) { -1.0 } else { 1.0 };
    let numbers = |rows: usize| -> Vec<_> {
        (0..rows * inputs)
            .map(|i| 127.0 * sign(i / inputs))
            .collect()
    };
    let (x, w) = (numbers(rows), numbers(outputs));
    for set in sets() {
        let packed = Packed::for_set(&w, outputs, inputs, Precision::Int16, set);
        let out = packed.product(&x, rows, &Epilogue::default());
        for (index, &found) in out.iter().enumerate() {
            let (row, output) = (index / outputs, index % outputs);
            let exact = 127.0 * 127.0 * inputs as f32 * sign(row) * sign(output);
            assert!(
                (found / exact - 1.0).abs() < 1e-6,
                "{set}: {found}, not {exact}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "too many to be summed in 32 bits")]
fn more_whole_numbers_than_32_bits_can_sum_are_refused() {
    let inputs = i32::MAX as usize / (254 * 127) + 1;
    Packed::new(&vec![1.0; inputs], 1, inputs, Precision::Int8);
}

#[test]
fn whole_numbers_give_the_same_bits_by_every_instruction_set() {
    for (seed, [rows, inputs, outputs]) in SIZES.into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        let (x, w) = (
            random.numbers(rows * inputs),
            random.numbers(outputs * inputs),
        );
        for precision in [Precision::Int16, Precision::Int8] {
            let product = |set| {
                Packed::for_set(&w, outputs, inputs, precision, set).product(
                    &x,
                    rows,
                    &Epilogue::default(),
                )
            };
            let plain = product(InstructionSet::Portable);
            for set in sets() {
                let what = format!("{precision} by {set}, {rows}×{inputs}×{outputs}");
                assert_eq!(product(set), plain, "{what}");
            }
        }
    }
}

/// As they come out of activations: rows of few signs are rounded in as many steps as others.
#[test]
fn activations_of_one_sign_are_rounded_in_all_steps() {
    let size = [11, 70, 35];
    let [rows, inputs, outputs] = size;
    let mut random = Random::new(10);
    let (x, w) = (
        random.numbers(rows * inputs),
        random.numbers(outputs * inputs),
    );
    let maps = [
        ("from zero on", f32::abs as fn(f32) -> f32),
        ("up to zero", |x| -x.abs()),
        ("from -0.17 on", |x| x.max(-0.17)),
        ("far from zero", |x| x + 100.0),
        ("all the same", |_| -0.3),
    ];
    for (what, map) in maps {
        let x: Vec<_> = x.iter().map(|&x| map(x)).collect();
        check(&x, &w, size, what);
    }
}

/// Whatever else is in their row: padding leaves nothing behind.
#[test]
fn zeros_among_other_activations_stay_zeros() {
    let [rows, inputs, outputs] = [7, 69, 37];
    let mut random = Random::new(11);
    let (mut x, mut w) = (
        random.numbers(rows * inputs),
        random.numbers(outputs * inputs),
    );
    for (index, x) in x.iter_mut().enumerate() {
        *x = if index % inputs % 3 == 0 {
            0.0
        } else {
            *x + 0.7
        };
    }
    for (index, w) in w.iter_mut().enumerate() {
        *w = if index % inputs % 3 == 0 { *w } else { 0.0 };
    }
    for set in sets() {
        let mut out = vec![f32::NAN; rows * outputs];
        Packed::for_set(&w, outputs, inputs, Precision::Int8, set).multiply(
            &x,
            &Epilogue::default(),
            &mut out,
        );
        assert!(out.iter().all(|&out| out == 0.0), "{set}");
    }
}

#[test]
fn zeros_give_zeros() {
    let [rows, inputs, outputs] = [16, 21, 34];
    let x = Random::new(1).numbers(rows * inputs);
    let w = vec![0.0; outputs * inputs];
    for set in sets() {
        for precision in Precision::ALL {
            let mut out = vec![f32::NAN; rows * outputs];
            Packed::for_set(&w, outputs, inputs, precision, set).multiply(
                &x,
                &Epilogue::default(),
                &mut out,
            );
            assert!(
                out.iter().all(|&out| out == 0.0),
                "{set}, {precision}: weights of zero"
            );
            let mut out = vec![f32::NAN; rows * outputs];
            let weights = Random::new(2).numbers(outputs * inputs);
            Packed::for_set(&weights, outputs, inputs, precision, set).multiply(
                &vec![0.0; rows * inputs],
                &Epilogue::default(),
                &mut out,
            );
            assert!(
                out.iter().all(|&out| out == 0.0),
                "{set}, {precision}: activations of zero"
            );
        }
    }
}

#[test]
fn nothing_in_is_a_bias_out() {
    let bias = [1.0, 2.0, 3.0];
    for set in sets() {
        for precision in Precision::ALL {
            let packed = Packed::for_set(&[], 3, 0, precision, set);
            let mut out = [f32::NAN; 6];
            packed.multiply(&[], &Epilogue::bias(&bias), &mut out);
            assert_eq!(out, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0], "{set}, {precision}");
            packed.multiply(&[], &Epilogue::bias(&bias), &mut []);
        }
    }
}

/// A bad number in a row of activations spoils that row and no other, one in a weight its output and no other.
#[test]
fn bad_numbers_show_where_they_belong() {
    let [rows, inputs, outputs] = [19, 37, 45];
    let mut random = Random::new(3);
    let clean_x = random.numbers(rows * inputs);
    let clean_w = random.numbers(outputs * inputs);
    for set in sets() {
        for precision in Precision::ALL {
            for bad in [
                f32::NAN,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::from_bits(0x7F80_0001),
                f32::from_bits(0xFFC0_0000),
            ] {
                for position in [0, 5, inputs - 1] {
                    let (row, output) = (7, 33);
                    let product = |x: &[f32], w: &[f32]| {
                        let mut out = vec![0.0; rows * outputs];
                        Packed::for_set(w, outputs, inputs, precision, set).multiply(
                            x,
                            &Epilogue::default(),
                            &mut out,
                        );
                        out
                    };
                    let mut x = clean_x.clone();
                    x[row * inputs + position] = bad;
                    for (index, out) in product(&x, &clean_w).into_iter().enumerate() {
                        let spoilt = index / outputs == row;
                        assert_eq!(
                            !out.is_finite(),
                            spoilt,
                            "{set}, {precision}, {bad} in row {row}: {out} at {index}"
                        );
                        assert!(!spoilt || !bad.is_nan() || out.is_nan());
                    }
                    let mut w = clean_w.clone();
                    w[output * inputs + position] = bad;
                    for (index, out) in product(&clean_x, &w).into_iter().enumerate() {
                        let spoilt = index % outputs == output;
                        assert_eq!(
                            !out.is_finite(),
                            spoilt,
                            "{set}, {precision}, {bad} in output {output}: {out} at {index}"
                        );
                        assert!(!spoilt || !bad.is_nan() || out.is_nan());
                    }
                }
            }
        }
    }
}

#[test]
fn rounding_to_bf16_costs_half_a_step() {
    let mut random = Random::new(9);
    let w = random.numbers(64);
    for set in sets() {
        // One input: the product with 1 is the stored weight.
        let mut out = vec![0.0; 64];
        Packed::for_set(&w, 64, 1, Precision::Bf16, set).multiply(
            &[1.0],
            &Epilogue::default(),
            &mut out,
        );
        for (&out, &w) in out.iter().zip(&w) {
            assert_eq!(f64::from(out), to_bf16(w), "{set}");
            assert!((out - w).abs() <= w.abs() * HALF_BF16 as f32);
        }
    }
}

#[test]
fn the_epilogue_is_applied_in_its_order() {
    let [rows, inputs, outputs] = [17, 20, 43];
    let mut random = Random::new(4);
    let (x, w) = (
        random.numbers(rows * inputs),
        random.numbers(outputs * inputs),
    );
    let (bias, scale) = (random.numbers(outputs), random.numbers(outputs));
    let (times, residual) = (
        random.numbers(rows * outputs),
        random.numbers(rows * outputs),
    );
    let activations = [
        Activation::Identity,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
        Activation::Relu,
    ];
    for set in sets() {
        for precision in Precision::ALL {
            let packed = Packed::for_set(&w, outputs, inputs, precision, set);
            let mut plain = vec![0.0; rows * outputs];
            packed.multiply(&x, &Epilogue::default(), &mut plain);
            for activation in activations {
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    activation,
                    times: Some(&times),
                    scale: Some(&scale),
                    residual: Some(&residual),
                };
                let mut out = vec![0.0; rows * outputs];
                packed.multiply(&x, &epilogue, &mut out);
                for (index, &found) in out.iter().enumerate() {
                    let output = index % outputs;
                    let y = f64::from(plain[index]) + f64::from(bias[output]);
                    let y = match activation {
                        Activation::Identity => y,
                        Activation::Gelu => {
                            y * 0.5 * (1.0 + erf(y * std::f64::consts::FRAC_1_SQRT_2))
                        }
                        Activation::GeluTanh => {
                            let u =
                                (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y);
                            y * 0.5 * (1.0 + u.tanh())
                        }
                        Activation::QuickGelu => y / (1.0 + (-1.702 * y).exp()),
                        Activation::Silu => y / (1.0 + (-y).exp()),
                        Activation::Relu => y.max(0.0),
                    };
                    let expected = f64::from(residual[index])
                        + f64::from(scale[output]) * y * f64::from(times[index]);
                    // All are of the order of one, and so many roundings away.
                    let gap = (f64::from(found) - expected).abs();
                    assert!(
                        gap < 32.0 * UNIT,
                        "{set}, {precision}, {activation:?}: {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// By its series, which is quick to converge for what the test needs.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn threads_and_other_rows_change_no_bit() {
    let [rows, inputs, outputs] = [41, 300, 330];
    let mut random = Random::new(6);
    let (x, w) = (
        random.numbers(rows * inputs),
        random.numbers(outputs * inputs),
    );
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a few threads")
    };
    for set in sets() {
        for precision in Precision::ALL {
            let packed = Packed::for_set(&w, outputs, inputs, precision, set);
            let product = |x: &[f32], threads| {
                let mut out = vec![0.0; x.len() / inputs * outputs];
                pool(threads).install(|| packed.multiply(x, &Epilogue::default(), &mut out));
                out
            };
            let alone = product(&x, 1);
            for threads in [2, 3, 8] {
                assert!(
                    product(&x, threads) == alone,
                    "{set}, {precision}, {threads} threads"
                );
            }
            for row in [0, 13, rows - 1] {
                let one = product(&x[row * inputs..][..inputs], 2);
                assert!(
                    one == alone[row * outputs..][..outputs],
                    "{set}, {precision}, row {row}"
                );
            }
        }
    }
}

#[test]
fn a_packed_weight_is_as_small_as_its_precision() {
    let (outputs, inputs) = (320, 256);
    for set in sets() {
        for (precision, size) in [
            (Precision::F32, 4),
            (Precision::Bf16, 2),
            (Precision::Int16, 2),
            (Precision::Int8, 1),
        ] {
            let packed = Packed::for_set(
                &vec![0.5; outputs * inputs],
                outputs,
                inputs,
                precision,
                set,
            );
            let scales = match precision {
                Precision::F32 | Precision::Bf16 => 0,
                Precision::Int16 => 4 * outputs,
                Precision::Int8 => 8 * outputs,
            };
            assert_eq!(packed.bytes(), outputs * inputs * size + scales);
            assert_eq!((packed.outputs(), packed.inputs()), (outputs, inputs));
            assert_eq!(
                (packed.precision(), packed.instruction_set()),
                (precision, set)
            );
        }
    }
}

#[test]
fn names_lead_back_to_their_sets() {
    for set in InstructionSet::ALL {
        assert_eq!(set.name().parse(), Ok(set));
    }
    let error = "sse9".parse::<InstructionSet>().expect_err("there is none");
    assert_eq!(
        error.to_string(),
        "REFSEG_CPU is `sse9`, which is no instruction set: choose one of portable, avx2, avx512, avx512-vnni, \
         avx512-bf16, neon, neon-dot, neon-matrix"
    );
    for precision in Precision::ALL {
        assert_eq!(precision.name().parse(), Ok(precision));
    }
}

#[test]
fn the_current_set_is_the_one_that_is_named_or_the_widest() {
    let named = std::env::var("REFSEG_CPU").ok();
    let set = match named.filter(|name| !name.is_empty()) {
        Some(name) => name.parse().expect("the name of a set"),
        None => *InstructionSet::available().last().expect("a set"),
    };
    assert_eq!(InstructionSet::current(), set);
    let packed = Packed::new(&[1.0], 1, 1, Precision::Bf16);
    assert_eq!(packed.instruction_set(), set);
}

/// Into new memory as into memory that was there, also where there is nothing to sum or to write.
#[test]
fn a_product_in_new_memory_is_the_same() {
    for [rows, inputs, outputs] in [[7, 19, 70], [1, 64, 5], [3, 0, 4], [0, 5, 4], [3, 5, 0]] {
        let mut random = Random::new(12);
        let (x, w) = (
            random.numbers(rows * inputs),
            random.numbers(outputs * inputs),
        );
        let bias = random.numbers(outputs);
        for set in sets() {
            for precision in Precision::ALL {
                let weight = Packed::for_set(&w, outputs, inputs, precision, set);
                let mut out = vec![f32::NAN; rows * outputs];
                weight.multiply(&x, &Epilogue::bias(&bias), &mut out);
                let new = weight.product(&x, rows, &Epilogue::bias(&bias));
                assert!(new == out, "{set}, {precision}: {rows}×{inputs}×{outputs}");
            }
        }
    }
}
