//! What the network's time goes to: matrix products at the published sizes, and one InternViT
//! block.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use refseg::{
    internvl::{Config, VisionModel},
    nn::{Linear, TensorSource, Tensors},
    random::{SplitMix64, initial_values},
    weights::WeightsError,
};

/// Name, rows, inputs and outputs of a product. One row is one token: 1025 are a picture's
/// patches and the class token, 256 its image tokens, 24 those of a phrase.
const PRODUCTS: [(&str, usize, usize, usize); 7] = [
    ("InternViT qkv", 1025, 1024, 3072),
    ("InternViT proj", 1025, 1024, 1024),
    ("InternViT fc1", 1025, 1024, 4096),
    ("InternViT fc2", 1025, 4096, 1024),
    ("Qwen2-0.5B up, picture", 256, 896, 4864),
    ("Qwen2-0.5B up, phrase", 24, 896, 4864),
    ("mask decoder join", 1024, 3072, 1024),
];

fn products(criterion: &mut Criterion) {
    let device = Device::flex();
    let random = |rows, columns| {
        Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), &device)
    };
    // One element is one floating-point operation: "Gelem/s" reads GFLOP/s.
    let mut group = criterion.benchmark_group("matrix product");
    for (name, rows, inputs, outputs) in PRODUCTS {
        // Through the layer, with the weight stored as checkpoints store it.
        let layer = Linear::new(random(outputs, inputs), None);
        let x = random(rows, inputs);
        group.throughput(Throughput::Elements(2 * (rows * inputs * outputs) as u64));
        let size = format!("{rows}x{inputs}x{outputs}");
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter(|| layer.forward(black_box(x.clone())));
        });
    }
    group.finish();
}

/// With no block and with one: the difference is the block.
fn vision(criterion: &mut Criterion) {
    let config = Config::preset("internvl2_5-1b").expect("a listed preset exists");
    let side = config.image_size;
    let mut random = SplitMix64::new(0);
    let pixels: Vec<f32> = (0..3 * side * side)
        .map(|_| random.normal() as f32)
        .collect();
    let mut group = criterion.benchmark_group("InternViT-300M at 448x448");
    group.sample_size(20);
    for layers in [0, 1] {
        let mut config = config.vision.clone();
        config.layers = layers;
        let source = InitialTensors {
            device: Device::flex(),
        };
        let tensors = Tensors::root(&source).at("vision_model");
        let model = VisionModel::load(&tensors, &config).expect("initial values always fit");
        let pixels = model.pixels(pixels.clone(), 1, side);
        group.bench_function(BenchmarkId::new("blocks", layers), |bencher| {
            bencher.iter(|| model.forward(black_box(pixels.clone())));
        });
    }
    group.finish();
}

/// A network's initial values, made when it asks for them.
struct InitialTensors {
    device: Device,
}

impl TensorSource for InitialTensors {
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        _: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let values = initial_values(key, shape, 0);
        let count = values.len();
        Ok(Tensor::from_data(
            TensorData::new(values, [count]),
            &self.device,
        ))
    }

    fn device(&self) -> Device {
        self.device.clone()
    }
}

criterion_group!(benches, products, vision);
criterion_main!(benches);
