//! What surrounds the network: resizing, run-length codes, tokenizers.

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use refseg::{Image, Mask, random::SplitMix64, tokenizer::Tokenizer};

/// Side of the picture that the published models see.
const SIDE: u32 = 448;

const PHRASE: &str = "the woman in the red coat who stands second from the left behind the bench";

fn resize(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resize to 448x448");
    for (width, height) in [(640, 480), (1920, 1080), (4000, 3000)] {
        let mut random = SplitMix64::new(0);
        let bytes = (0..width * height * 3).map(|_| random.next_u64() as u8);
        let image = Image::from_rgb(width, height, bytes.collect())
            .expect("as many bytes as the size asks for");
        group.throughput(Throughput::Elements(u64::from(width * height)));
        let size = format!("{width}x{height}");
        group.bench_function(BenchmarkId::new("bicubic", size), |bencher| {
            bencher.iter(|| black_box(&image).resize(SIDE, SIDE));
        });
    }
    group.finish();
}

fn run_lengths(criterion: &mut Criterion) {
    let (height, width) = (1080, 1920);
    let mask = discs(height, width);
    let rle = mask.to_rle();
    let mut group = criterion.benchmark_group("run-length code of 1920x1080");
    group.throughput(Throughput::Elements((height * width) as u64));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| black_box(&mask).to_rle())
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Mask::from_rle(black_box(&rle)).expect("our own code is well formed"));
    });
    group.finish();
}

/// The fixtures' vocabularies are small, so their texts fall into more tokens than usual.
fn tokenizer(criterion: &mut Criterion) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/refseg/tests/fixtures");
    let mut group = criterion.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(PHRASE.len() as u64));
    for (name, folder) in [
        ("byte pairs", "mllmseg-qwen2-res"),
        ("SentencePiece", "mllmseg-internlm2-gres-lora"),
    ] {
        let tokenizer =
            Tokenizer::from_folder(&fixtures.join(folder)).expect("the fixtures are sound");
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                tokenizer
                    .encode(black_box(PHRASE))
                    .expect("both kinds encode any text")
            });
        });
    }
    group.finish();
}

/// Discs on a grid: a mask with many runs, as crowds have.
fn discs(height: usize, width: usize) -> Mask {
    const PITCH: usize = 120;
    const RADIUS: usize = 45;
    let from_centre = |at: usize| (at % PITCH).abs_diff(PITCH / 2);
    let inside = |pixel: usize| {
        let (x, y) = (from_centre(pixel % width), from_centre(pixel / width));
        x * x + y * y <= RADIUS * RADIUS
    };
    Mask::from_bits(height, width, (0..height * width).map(inside).collect())
        .expect("as many bits as the size asks for")
}

criterion_group!(benches, resize, run_lengths, tokenizer);
criterion_main!(benches);
