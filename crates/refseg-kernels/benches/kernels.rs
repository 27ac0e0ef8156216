//! Speed of products and of attention, each beside the most that the arithmetic of this machine allows.
//!
//! `cargo bench -p refseg-kernels`: medians of rounds in which every case has its turn, so that what else the machine
//! does meanwhile falls on all of them. `REFSEG_CPU` names the instruction set, `REFSEG_BENCH_THREADS` the threads.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use refseg_kernels::{
    Activation, AttentionShape, Epilogue, Heads, InstructionSet, Packed, Precision, attention, peak,
};

const ROUNDS: usize = 15;

struct Case<'a> {
    name: String,
    /// Billions of operations of one run.
    operations: f64,
    /// Billions of bytes that one run has to read.
    bytes: f64,
    run: Box<dyn FnMut() + 'a>,
    times: Vec<Duration>,
}

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

fn product(rows: usize, inputs: usize, outputs: usize, precision: Precision) -> Case<'static> {
    let weight = numbers(inputs * outputs, 7);
    let packed = Packed::new(&weight, outputs, inputs, precision);
    let x = numbers(rows * inputs, 9);
    let mut out = vec![0.0; rows * outputs];
    Case {
        name: format!("{rows}×{inputs}×{outputs} {precision}"),
        operations: 2e-9 * (rows * inputs * outputs) as f64,
        bytes: packed.bytes() as f64 * 1e-9,
        run: Box::new(move || packed.multiply(black_box(&x), &Epilogue::default(), &mut out)),
        times: Vec::new(),
    }
}

fn gelu(rows: usize, inputs: usize, outputs: usize) -> Case<'static> {
    let weight = numbers(inputs * outputs, 7);
    let packed = Packed::new(&weight, outputs, inputs, Precision::F32);
    let (x, bias) = (numbers(rows * inputs, 9), numbers(outputs, 3));
    let mut out = vec![0.0; rows * outputs];
    let epilogue = move || Epilogue {
        activation: Activation::Gelu,
        ..Epilogue::default()
    };
    Case {
        name: format!("{rows}×{inputs}×{outputs} f32, bias and GELU"),
        operations: 2e-9 * (rows * inputs * outputs) as f64,
        bytes: packed.bytes() as f64 * 1e-9,
        run: Box::new(move || {
            let epilogue = Epilogue {
                bias: Some(&bias),
                ..epilogue()
            };
            packed.multiply(black_box(&x), &epilogue, &mut out);
        }),
        times: Vec::new(),
    }
}

/// As training does with every weight it multiplies by.
fn packing(inputs: usize, outputs: usize, precision: Precision) -> Case<'static> {
    let weight = numbers(inputs * outputs, 7);
    Case {
        name: format!("packing {inputs}×{outputs} {precision}"),
        operations: 0.0,
        bytes: 4e-9 * weight.len() as f64,
        run: Box::new(move || {
            black_box(Packed::new(black_box(&weight), outputs, inputs, precision));
        }),
        times: Vec::new(),
    }
}

/// What the epilogue reads and writes comes from memory, as in a network, where other layers have filled the caches
/// since.
fn from_memory(
    [rows, inputs, outputs]: [usize; 3],
    words: &str,
    epilogue: impl for<'a> Fn(&'a [f32], &'a [f32]) -> Epilogue<'a> + 'static,
) -> Case<'static> {
    /// More than any cache holds.
    const NUMBERS: usize = 20 << 20;
    let weight = numbers(inputs * outputs, 7);
    let packed = Packed::new(&weight, outputs, inputs, Precision::Int8);
    let (x, scale) = (numbers(rows * inputs, 9), numbers(outputs, 3));
    let read = numbers(rows * outputs, 5);
    let mut buffers = vec![(read.clone(), read); NUMBERS.div_ceil(2 * rows * outputs)];
    Case {
        name: format!("{rows}×{inputs}×{outputs} int8, {words}"),
        operations: 2e-9 * (rows * inputs * outputs) as f64,
        bytes: packed.bytes() as f64 * 1e-9,
        run: Box::new(move || {
            buffers.rotate_left(1);
            let (read, out) = &mut buffers[0];
            packed.multiply(black_box(&x), &epilogue(&scale, read), out);
        }),
        times: Vec::new(),
    }
}

fn attend(shape: AttentionShape, precision: Precision) -> Case<'static> {
    let AttentionShape {
        batch,
        heads,
        groups,
        queries,
        keys,
        head_dim,
    } = shape;
    // Queries, keys and values of a token side by side, as one product gives them.
    let width = (heads + 2 * groups) * head_dim;
    let tokens = numbers(batch * queries * width, 1);
    let part = move |first: usize| first * head_dim;
    let [q, k, v] = [0, heads, heads + groups].map(part);
    Case {
        name: format!(
            "attention {queries}×{keys}, {heads} heads of {head_dim} on {groups}, {precision}"
        ),
        operations: 4e-9 * (batch * heads * queries * keys * head_dim) as f64,
        bytes: 4e-9 * (tokens.len() + batch * queries * heads * head_dim) as f64,
        run: Box::new(move || {
            let tokens = black_box(&tokens);
            let [q, k, v] = [q, k, v].map(|first| Heads {
                values: &tokens[first..],
                strides: [queries * width, head_dim, width],
            });
            black_box(attention(q, k, v, shape, None, precision));
        }),
        times: Vec::new(),
    }
}

fn main() {
    let threads = std::env::var("REFSEG_BENCH_THREADS").ok();
    if let Some(threads) = threads.and_then(|threads| threads.parse().ok()) {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .expect("the first pool");
    }
    let filter: Vec<_> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let square = |queries, heads, groups, head_dim| AttentionShape {
        batch: 1,
        heads,
        groups,
        queries,
        keys: queries,
        head_dim,
    };
    let mut cases = Vec::new();
    for [rows, inputs, outputs] in [
        [1025, 1024, 4096],
        [1025, 4096, 1024],
        // Mostly packing of rows.
        [1025, 1024, 64],
        [330, 896, 4864],
        [40, 896, 4864],
        [1, 896, 4864],
    ] {
        for precision in Precision::ALL {
            cases.push(product(rows, inputs, outputs, precision));
        }
    }
    for precision in Precision::ALL {
        cases.push(packing(1024, 1024, precision));
    }
    cases.push(gelu(1025, 1024, 4096));
    cases.push(from_memory(
        [1025, 1024, 1024],
        "scale and residual",
        |scale, residual| Epilogue {
            scale: Some(scale),
            residual: Some(residual),
            ..Epilogue::default()
        },
    ));
    cases.push(from_memory([317, 896, 4864], "SiLU times", |_, times| {
        Epilogue {
            activation: Activation::Silu,
            times: Some(times),
            ..Epilogue::default()
        }
    }));
    for precision in Precision::ALL {
        cases.push(attend(square(1025, 16, 16, 64), precision));
        cases.push(attend(square(330, 14, 2, 64), precision));
    }
    cases.retain(|case| {
        filter.is_empty() || filter.iter().any(|word| case.name.contains(word.as_str()))
    });

    peak();
    let mut peaks = Vec::new();
    for _ in 0..ROUNDS {
        peaks.push(peak().unwrap_or(f64::NAN));
        for case in &mut cases {
            (case.run)();
            let start = Instant::now();
            (case.run)();
            case.times.push(start.elapsed());
        }
    }
    peaks.sort_by(|a, b| b.total_cmp(a));
    let (peak, best_peak) = (peaks[ROUNDS / 2], peaks[0]);
    println!(
        "{}, {} threads, {ROUNDS} rounds; nothing but fused f32 products: {peak:.0} GFLOP/s, at best {best_peak:.0}",
        InstructionSet::current(),
        rayon::current_num_threads()
    );
    println!(
        "| case | ms | GFLOP/s | of the peak | GB/s of weights | ms at best | of the best peak |"
    );
    println!("|---|---|---|---|---|---|---|");
    for case in &mut cases {
        case.times.sort();
        let [median, best] = [case.times[ROUNDS / 2], case.times[0]].map(|time| time.as_secs_f64());
        let rate = case.operations / median;
        println!(
            "| {} | {:.3} | {rate:.0} | {:.2} | {:.1} | {:.3} | {:.2} |",
            case.name,
            median * 1e3,
            rate / peak,
            case.bytes / median,
            best * 1e3,
            case.operations / best / best_peak
        );
    }
}
