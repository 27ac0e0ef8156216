//! Attention against sums in f64, for every instruction set of this machine and every precision in which it differs.

mod common;

use common::{Random, roundings, sets};
use refseg_kernels::{
    AttentionMask, AttentionShape, Heads, InstructionSet, Precision, attention_for_set,
};

fn shape([batch, heads, groups, queries, keys, head_dim]: [usize; 6]) -> AttentionShape {
    AttentionShape {
        batch,
        heads,
        groups,
        queries,
        keys,
        head_dim,
    }
}

/// Sizes around every tile: batch, heads, groups, queries, keys, head_dim.
const SIZES: [[usize; 6]; 10] = [
    [1, 1, 1, 1, 1, 1],
    [1, 2, 1, 1, 17, 8],
    [2, 4, 2, 3, 33, 16],
    [1, 3, 3, 14, 32, 64],
    [1, 2, 2, 29, 65, 33],
    [3, 6, 2, 15, 31, 5],
    [1, 14, 2, 7, 300, 64],
    [2, 2, 1, 100, 129, 40],
    [1, 1, 1, 41, 1025, 64],
    [1, 2, 1, 60, 600, 128],
];

/// What numbers are rounded to before they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    None,
    Bf16,
    /// Whole numbers of 16 bits.
    Whole,
}

impl Rounding {
    fn of(set: InstructionSet, precision: Precision) -> Self {
        match set.attention_products_at_once(precision) {
            1 => Self::None,
            _ if set == InstructionSet::Avx512Vnni => Self::Whole,
            _ => Self::Bf16,
        }
    }
}

/// Every instruction set in every precision that makes a difference.
fn cases() -> Vec<(InstructionSet, Precision)> {
    let of_set = |set: InstructionSet| Precision::ALL.map(|precision| (set, precision));
    let differs = |&(set, precision): &(InstructionSet, Precision)| {
        precision == Precision::F32 || set.attention_products_at_once(precision) > 1
    };
    sets()
        .into_iter()
        .flat_map(of_set)
        .filter(differs)
        .collect()
}

/// What a product of two numbers rounded to bf16 is off by, relatively: half of the last of 8 bits for each.
const BF16: f64 = 2.01 / 512.0;

/// The largest whole numbers that queries and keys of `d` numbers, values and weights are rounded to, and the keys whose
/// weights have one scale.
fn largest_wholes(d: usize) -> [f64; 3] {
    let of_scores = (f64::from(i32::MAX) / d as f64).sqrt();
    [of_scores.floor().min(32_767.0), 1_023.0, 16_383.0]
}
const KEYS_OF_A_SCALE: usize = 128;

fn largest(x: &[f32]) -> f64 {
    x.iter()
        .fold(0.0, |largest, x| largest.max(f64::from(x.abs())))
}

/// Each output and how far from it a kernel may be.
fn expected(
    [q, k, v]: [&[f32]; 3],
    shape: AttentionShape,
    mask: Option<AttentionMask<'_>>,
    rounding: Rounding,
) -> Vec<(f64, f64)> {
    let AttentionShape {
        batch,
        heads,
        groups,
        queries,
        keys,
        head_dim: d,
    } = shape;
    let [most_key, most_value, most_weight] = largest_wholes(d);
    let mut out = vec![(0.0, 0.0); batch * heads * queries * d];
    for index in 0..batch * heads * queries {
        let (head, query, b) = (
            index / queries % heads,
            index % queries,
            index / queries / heads,
        );
        let group = b * groups + head / (heads / groups);
        let q = &q[index * d..][..d];
        let mask = mask.map(|mask| {
            let (mask_b, mask_h) = (b.min(mask.batch - 1), head.min(mask.heads - 1));
            &mask.values[((mask_b * mask.heads + mask_h) * queries + query) * keys..][..keys]
        });
        // A score is off by its roundings, and so is what it is the exponent of, relatively.
        let mut largest_gap = 0f64;
        let scores: Vec<f64> = (0..keys)
            .map(|key| {
                let (mut score, mut size) = (0.0, 0.0);
                let k = &k[(group * keys + key) * d..][..d];
                for (&q, &k) in q.iter().zip(k) {
                    let product = f64::from(q) * f64::from(k);
                    score += product;
                    size += product.abs();
                }
                let rounded = match rounding {
                    Rounding::None => 0.0,
                    Rounding::Bf16 => BF16 * size,
                    Rounding::Whole => {
                        let [q_step, k_step] = [q, k].map(|x| largest(x) / most_key);
                        let sum = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
                        let both = q_step * k_step * d as f64 / 4.0;
                        (sum(q) * k_step + sum(k) * q_step) / 2.0 + both
                    }
                };
                let root = (d as f64).sqrt();
                let added = mask.map_or(0.0, |mask| f64::from(mask[key]));
                let size = size / root + if added.is_finite() { added.abs() } else { 0.0 };
                largest_gap = largest_gap.max(roundings(d + 4) * size + rounded / root);
                score / root + added
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = scores
            .iter()
            .copied()
            .filter(|x| x.is_finite())
            .fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        // Of a weight and of the sum of all of them: the score's error, the rounding of what is taken off it, and the
        // exponent's own.
        let exponent = largest_gap + roundings(8) + roundings(2) * (largest - lowest).abs();
        let relative = (2.0 * exponent).exp_m1() + roundings(2 * keys);
        let value_of = |key: usize| &v[(group * keys + key) * d..][..d];
        let sizes: Vec<f64> = (0..keys).map(|key| self::largest(value_of(key))).collect();
        // The largest weight, with its value's magnitude, of each scale.
        let with_sizes: Vec<f64> = weights
            .iter()
            .zip(&sizes)
            .map(|(w, size)| w * size)
            .collect();
        let most = |scale: &[f64]| scale.iter().copied().fold(0.0, f64::max);
        let most: Vec<f64> = with_sizes.chunks(KEYS_OF_A_SCALE).map(most).collect();
        for column in 0..d {
            let (mut value, mut size, mut rounded) = (0.0, 0.0, 0.0);
            for (key, weight) in weights.iter().enumerate() {
                let number = f64::from(value_of(key)[column]);
                let part = weight * number;
                value += part;
                size += part.abs();
                rounded += match rounding {
                    Rounding::None => 0.0,
                    Rounding::Bf16 => BF16 * part.abs(),
                    Rounding::Whole if sizes[key] == 0.0 => 0.0,
                    Rounding::Whole => {
                        // The errors of scores change what is rounded, and both roundings meet.
                        let of_weight = most[key / KEYS_OF_A_SCALE] / most_weight / sizes[key];
                        let of_value = sizes[key] / most_value;
                        let once = of_weight * number.abs() + weight * of_value;
                        (once + of_weight * of_value / 2.0) / 2.0
                    }
                };
            }
            let rounded = rounded * (1.0 + relative);
            out[((b * queries + query) * heads + head) * d + column] =
                (value / sum, (relative * size + rounded) / sum + 1e-38);
        }
    }
    out
}

fn attend(
    [q, k, v]: [&[f32]; 3],
    shape: AttentionShape,
    mask: Option<AttentionMask<'_>>,
    (set, precision): (InstructionSet, Precision),
) -> Vec<f32> {
    let q = Heads::side_by_side(q, [shape.heads, shape.queries, shape.head_dim]);
    let [k, v] = [k, v].map(|x| Heads::side_by_side(x, [shape.groups, shape.keys, shape.head_dim]));
    attention_for_set(q, k, v, shape, mask, precision, set)
}

fn check(inputs: [&[f32]; 3], shape: AttentionShape, mask: Option<AttentionMask<'_>>) {
    for (set, precision) in cases() {
        let expected = expected(inputs, shape, mask, Rounding::of(set, precision));
        let out = attend(inputs, shape, mask, (set, precision));
        assert_eq!(out.len(), expected.len());
        for (index, (&found, &(value, gap))) in out.iter().zip(&expected).enumerate() {
            assert!(
                (f64::from(found) - value).abs() <= gap,
                "{set} in {precision}, {shape:?}: {found} at {index}, not within {gap:e} of {value}"
            );
        }
    }
}

fn inputs(shape: AttentionShape, seed: u64) -> [Vec<f32>; 3] {
    let mut random = Random::new(seed);
    let of_keys = shape.batch * shape.groups * shape.keys * shape.head_dim;
    [
        random.numbers(shape.batch * shape.heads * shape.queries * shape.head_dim),
        random.numbers(of_keys),
        random.numbers(of_keys),
    ]
}

#[test]
fn attention_agrees_with_f64_at_every_size() {
    for (seed, size) in SIZES.into_iter().enumerate() {
        let shape = shape(size);
        let [mut q, k, v] = inputs(shape, seed as u64);
        check([&q, &k, &v], shape, None);
        // Sharper: most weights all but vanish.
        q.iter_mut().for_each(|q| *q *= 60.0);
        check([&q, &k, &v], shape, None);
    }
}

#[test]
fn masks_of_each_shape_are_added() {
    for (seed, size) in SIZES.into_iter().enumerate() {
        let shape = shape(size);
        let [q, k, v] = inputs(shape, seed as u64);
        let mut random = Random::new(seed as u64 + 100);
        let mut extents = vec![
            (1, 1),
            (1, shape.heads),
            (shape.batch, 1),
            (shape.batch, shape.heads),
        ];
        extents.sort_unstable();
        extents.dedup();
        for (batch, heads) in extents {
            let mut values = random.numbers(batch * heads * shape.queries * shape.keys);
            // Some keys are hidden, but never all.
            for row in values.chunks_exact_mut(shape.keys) {
                for value in row.iter_mut().skip(1) {
                    if random.below(3) == 0 {
                        *value = f32::NEG_INFINITY;
                    }
                }
            }
            let mask = AttentionMask {
                values: &values,
                batch,
                heads,
            };
            check([&q, &k, &v], shape, Some(mask));
        }
    }
}

#[test]
fn hidden_keys_have_no_part_whatever_they_hold() {
    let shape = shape([1, 2, 1, 20, 70, 16]);
    let [q, k, v] = inputs(shape, 3);
    let mut values = vec![0.0; shape.queries * shape.keys];
    for (query, row) in values.chunks_exact_mut(shape.keys).enumerate() {
        row[query + 1..].fill(f32::NEG_INFINITY);
    }
    let mask = AttentionMask {
        values: &values,
        batch: 1,
        heads: 1,
    };
    for case in cases() {
        let run = |k: &[f32], v: &[f32]| attend([&q, k, v], shape, Some(mask), case);
        let plain = run(&k, &v);
        let (mut other_k, mut other_v) = (k.clone(), v.clone());
        // Keys from 20 on are hidden from every query.
        other_k[20 * 16..].iter_mut().for_each(|k| *k *= -3.0);
        other_v[20 * 16..].iter_mut().for_each(|v| *v *= 1e30);
        assert_eq!(run(&other_k, &other_v), plain, "{case:?}");
    }
}

#[test]
fn bad_numbers_show_in_the_queries_that_meet_them() {
    let shape = shape([1, 2, 2, 19, 40, 24]);
    let [q, k, v] = inputs(shape, 8);
    let width = shape.heads * shape.head_dim;
    for case in cases() {
        let (set, precision) = case;
        for bad in [f32::NAN, f32::INFINITY] {
            let run = |q: &[f32], k: &[f32], v: &[f32]| attend([q, k, v], shape, None, case);
            let mut spoilt = q.clone();
            // Head 1, query 5.
            spoilt[(19 + 5) * 24 + 2] = bad;
            for (index, out) in run(&spoilt, &k, &v).into_iter().enumerate() {
                let here = index / width == 5 && index % width / 24 == 1;
                assert_eq!(out.is_nan(), here, "{case:?}: {out} at {index}");
            }
            let mut spoilt = k.clone();
            spoilt[(40 + 7) * 24] = f32::NAN;
            for (index, out) in run(&q, &spoilt, &v).into_iter().enumerate() {
                assert_eq!(
                    out.is_nan(),
                    index % width / 24 == 1,
                    "{case:?}: {out} at {index}"
                );
            }
            let mut spoilt = v.clone();
            spoilt[(40 + 39) * 24 + 3] = bad;
            for (index, out) in run(&q, &k, &spoilt).into_iter().enumerate() {
                // One scale for all numbers of a value is none if one of them is bad.
                let here = match Rounding::of(set, precision) {
                    Rounding::Whole => index % width / 24 == 1,
                    Rounding::None | Rounding::Bf16 => index % width == 24 + 3,
                };
                assert_eq!(!out.is_finite(), here, "{case:?}: {out} at {index}");
            }
        }
    }
}

#[test]
fn a_query_that_sees_no_key_has_no_answer() {
    let shape = shape([1, 1, 1, 3, 20, 8]);
    let [q, k, v] = inputs(shape, 2);
    let mut values = vec![0.0; 60];
    values[20..40].fill(f32::NEG_INFINITY);
    let mask = AttentionMask {
        values: &values,
        batch: 1,
        heads: 1,
    };
    for case in cases() {
        let out = attend([&q, &k, &v], shape, Some(mask), case);
        for (index, out) in out.into_iter().enumerate() {
            assert_eq!(out.is_nan(), index / 8 == 1, "{case:?}: {out} at {index}");
        }
    }
}

/// As many as are attended to before others, and more: what comes of them is scaled down to nothing.
#[test]
fn keys_before_the_first_that_is_seen_count_for_nothing() {
    let (hidden, [queries, d]) = (1100, [7, 64]);
    let all = shape([1, 1, 1, queries, 1300, d]);
    let [q, k, v] = inputs(all, 5);
    let mut values = vec![0.0; queries * 1300];
    for row in values.chunks_exact_mut(1300) {
        row[..hidden].fill(f32::NEG_INFINITY);
    }
    let mask = AttentionMask {
        values: &values,
        batch: 1,
        heads: 1,
    };
    let seen = shape([1, 1, 1, queries, 1300 - hidden, d]);
    for (set, precision) in cases() {
        let seen_alone = [&q, &k[hidden * d..], &v[hidden * d..]];
        let within = expected(seen_alone, seen, None, Rounding::of(set, precision));
        let out = attend([&q, &k, &v], all, Some(mask), (set, precision));
        for (found, (expected, gap)) in out.into_iter().zip(&within) {
            let found = (f64::from(found) - expected).abs();
            assert!(
                found <= *gap,
                "{set} in {precision}: off by {found}, {gap} at most"
            );
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let shape = shape([2, 4, 2, 90, 200, 32]);
    let [q, k, v] = inputs(shape, 11);
    for case in cases() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a few threads");
            pool.install(|| attend([&q, &k, &v], shape, None, case))
        };
        let alone = run(1);
        for threads in [2, 3, 7] {
            assert!(run(threads) == alone, "{case:?}, {threads} threads");
        }
    }
}

/// Queries, keys and values of each token side by side, as one product gives them.
#[test]
fn heads_may_lie_anywhere() {
    let shape = shape([2, 4, 2, 9, 9, 24]);
    let [q, k, v] = inputs(shape, 3);
    let width = (4 + 2 + 2) * 24;
    let mut joined = vec![f32::NAN; 2 * 9 * width];
    for (from, heads, first) in [(&q, 4, 0), (&k, 2, 4), (&v, 2, 6)] {
        for (index, row) in from.chunks_exact(24).enumerate() {
            let (batch, head, token) = (index / (heads * 9), index / 9 % heads, index % 9);
            let at = (batch * 9 + token) * width + (first + head) * 24;
            joined[at..at + 24].copy_from_slice(row);
        }
    }
    let part = |first: usize| Heads {
        values: &joined[first * 24..],
        strides: [9 * width, 24, width],
    };
    for case in cases() {
        let [q_part, k_part, v_part] = [0, 4, 6].map(part);
        let found = attention_for_set(q_part, k_part, v_part, shape, None, case.1, case.0);
        assert!(found == attend([&q, &k, &v], shape, None, case), "{case:?}");
    }
}

/// More keys than are attended to at a time, all of the first ones hidden.
#[test]
fn keys_that_come_late_are_seen() {
    let shape = shape([1, 2, 1, 7, 1100, 16]);
    let [q, k, v] = inputs(shape, 4);
    let mut values = vec![0.0; 7 * 1100];
    for (query, row) in values.chunks_exact_mut(1100).enumerate() {
        row[..512 + 80 * query].fill(f32::NEG_INFINITY);
    }
    let mask = AttentionMask {
        values: &values,
        batch: 1,
        heads: 1,
    };
    check([&q, &k, &v], shape, Some(mask));
}
