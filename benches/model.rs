//! A whole model: encoding a picture, one further phrase, eight phrases at once.
//!
//! `REFSEG_BENCH_MODEL` names the model: `builtin`, or a folder such as `refseg init` writes. It
//! is `builtin` if the variable is not set.

use std::env;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use refseg::{Image, Options, Predictor};

const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/shapes.png");

const PHRASES: [&str; 8] = [
    "the red ring",
    "all blue circles",
    "the yellow star",
    "the green cross",
    "the large blue circle",
    "the red heart",
    "the circle above the green cross",
    "the shape on the right",
];

fn model(criterion: &mut Criterion) {
    let path = env::var_os("REFSEG_BENCH_MODEL").map_or_else(|| "builtin".into(), PathBuf::from);
    let predictor = Predictor::load(&path, &Options::default())
        .unwrap_or_else(|error| panic!("REFSEG_BENCH_MODEL: {error}"));
    let image = Image::open(PICTURE).expect("the picture is part of the repository");
    let scene = predictor
        .encode(&image)
        .expect("the model computes numbers");

    let mut group = criterion.benchmark_group(format!("model {}", predictor.name()));
    // A model of published size takes seconds for a picture.
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(20));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| predictor.encode(black_box(&image)));
    });
    group.bench_function("segment", |bencher| {
        bencher.iter(|| scene.segment(black_box(PHRASES[0])));
    });
    group.throughput(Throughput::Elements(PHRASES.len() as u64));
    group.bench_function("segment_many, 8 phrases", |bencher| {
        bencher.iter(|| scene.segment_many(black_box(&PHRASES)));
    });
    group.finish();
}

criterion_group!(benches, model);
criterion_main!(benches);
