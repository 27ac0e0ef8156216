//! Conformance vectors of the specification, end to end: a miniature model of
//! pseudo-random weights whose values were computed in f64.

use burn::tensor::{Device, Tensor, TensorData, activation};
use refseg::{
    internvl::Config,
    language::{LanguageConfig, LanguageFamily, causal_mask},
    mllmseg::Mllmseg,
    nn::TensorSource,
    random::SplitMix64,
    weights::WeightsError,
};

/// Tensors whose values follow from their names.
struct Named;

impl TensorSource for Named {
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        _: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let count: usize = shape.iter().product();
        let per_row = count / shape[0];
        let mut random = SplitMix64::named(key, 0);
        let mut value = || {
            let u = random.uniform() - 0.5;
            if shape.len() >= 2 {
                u * 2.0 * (3.0 / per_row as f64).sqrt()
            } else if key.ends_with("running_var") {
                1.0 + 0.5 * u
            } else if key.ends_with(".weight") {
                1.0 + 0.2 * u
            } else {
                0.2 * u
            }
        };
        let values: Vec<f32> = (0..count).map(|_| value() as f32).collect();
        Ok(Tensor::from_data(
            TensorData::new(values, [count]),
            &Device::flex(),
        ))
    }

    fn device(&self) -> Device {
        Device::flex()
    }
}

fn input(name: &str, count: usize) -> Vec<f32> {
    let mut random = SplitMix64::named(name, 0);
    (0..count)
        .map(|_| ((random.uniform() - 0.5) * 2.0 * 3f64.sqrt()) as f32)
        .collect()
}

fn config(family: LanguageFamily) -> Config {
    let mut config = Config::preset("internvl2_5-1b").expect("a preset");
    config.vision.layers = 1;
    config.vision.inner = 256;
    config.language = LanguageConfig {
        family,
        vocabulary: 96,
        width: 64,
        inner: 96,
        layers: 2,
        heads: 4,
        key_value_heads: 2,
        epsilon: match family {
            LanguageFamily::Qwen2 | LanguageFamily::Qwen => 1e-6,
            LanguageFamily::InternLm2 | LanguageFamily::Llama => 1e-5,
        },
        rope_theta: 1e6,
        max_positions: 32_768,
    };
    config
}

const IMAGE_START: usize = 5;
const IMAGE_TOKENS: usize = 256;
const MARKERS: [usize; 3] = [269, 273, 276];
const SEG: u32 = 93;
const REJ: u32 = 94;

fn ids() -> Vec<u32> {
    let mut ids = vec![1, 5, 6, 7, 90];
    ids.extend([91; IMAGE_TOKENS]);
    ids.extend([
        92, 10, 11, 12, 13, 20, 21, 22, SEG, 14, 23, 24, REJ, 15, 25, SEG, 16, 2,
    ]);
    assert_eq!(ids.len(), 279);
    ids
}

fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

fn check(what: &str, found: f32, expected: f64) {
    assert!(
        (f64::from(found) - expected).abs() < 1e-4,
        "{what}: {found}, expected {expected}"
    );
}

fn mean_square(values: &[f32]) -> f32 {
    (values
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>()
        / values.len() as f64) as f32
}

fn mean(values: &[f32]) -> f32 {
    (values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64) as f32
}

/// What the specification's table says of one language model.
struct Expected {
    family: LanguageFamily,
    /// Mean and mean square of the hidden states, first pass.
    moments: [f64; 2],
    /// `(row, column, value)`, first pass.
    first: [(usize, usize, f64); 5],
    /// `(row, column, value)`, second pass.
    second: [(usize, usize, f64); 3],
    chosen: [usize; 3],
    /// Mean, then values at (0, 0), (100, 200), (447, 447).
    masks: [[f64; 4]; 3],
    areas: [usize; 3],
}

fn run(expected: &Expected) {
    let config = config(expected.family);
    let model = Mllmseg::load(&Named, &config).expect("every name has values");
    let pixels = model
        .vision
        .pixels(input("input.pixels", 3 * 448 * 448), 1, 448);
    let vit = model.vision.forward(pixels);
    let patches = values(vit.clone());
    // The class token, row 0 of the table, is dropped by the tower.
    check("vit (1,0)", patches[0], 0.950_067_5);
    check("vit (1024,1023)", patches[1023 * 1024 + 1023], -0.534_096_8);
    check("vit (500,100)", patches[499 * 1024 + 100], -1.526_509_2);

    let tokens = model.projector.forward(vit.clone());
    let image = values(tokens.clone());
    check("mlp1 mean", mean(&image), 0.003_674_1);
    check("mlp1 mean square", mean_square(&image), 0.425_630_2);
    check("mlp1 (0,0)", image[0], 0.266_233_3);
    check("mlp1 (255,63)", image[255 * 64 + 63], -0.389_404_8);
    check("mlp1 (17,5)", image[17 * 64 + 5], 0.489_428_1);

    let hidden = |ids: &[u32]| {
        let x = model.splice(ids, IMAGE_START, tokens.clone());
        let positions: Vec<usize> = (0..ids.len()).collect();
        model
            .language
            .forward(
                x,
                &positions,
                &causal_mask(ids.len(), &Device::flex()),
                None,
            )
            .0
    };
    let first = hidden(&ids());
    let states = values(first.clone());
    check("hidden mean", mean(&states), expected.moments[0]);
    check(
        "hidden mean square",
        mean_square(&states),
        expected.moments[1],
    );
    for (row, column, value) in expected.first {
        check(
            &format!("hidden ({row},{column})"),
            states[row * 64 + column],
            value,
        );
    }
    let at_markers = |hidden: Tensor<3>| {
        let rows: Vec<Tensor<3>> = MARKERS
            .iter()
            .map(|&marker| hidden.clone().narrow(1, marker - 1, 1))
            .collect();
        Tensor::cat(rows, 1)
    };
    let logits = values(model.language.logits(at_markers(first).squeeze_dim::<2>(0)));
    let chosen: Vec<usize> = logits
        .chunks_exact(96)
        .map(|row| {
            (0..96)
                .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                .expect("96 tokens")
        })
        .collect();
    assert_eq!(chosen, expected.chosen);
    assert!(
        chosen.iter().all(|&id| id != REJ as usize),
        "everything is found"
    );

    let all_found: Vec<u32> = ids()
        .into_iter()
        .map(|id| if id == REJ { SEG } else { id })
        .collect();
    let second = hidden(&all_found);
    let states = values(second.clone());
    for (row, column, value) in expected.second {
        check(
            &format!("second hidden ({row},{column})"),
            states[row * 64 + column],
            value,
        );
    }
    let llm = model.image_states(second.clone(), IMAGE_START, IMAGE_TOKENS);
    let image = model.decoder.encode(vit, llm);
    let masks = values(activation::sigmoid(
        model.decoder.decode(&image, at_markers(second)),
    ));
    for (i, mask) in masks.chunks_exact(448 * 448).enumerate() {
        let found = [
            mean(mask),
            mask[0],
            mask[100 * 448 + 200],
            mask[447 * 448 + 447],
        ];
        for (what, (found, expected)) in ["mean", "(0,0)", "(100,200)", "(447,447)"]
            .iter()
            .zip(found.into_iter().zip(expected.masks[i]))
        {
            check(&format!("mask {i} {what}"), found, expected);
        }
        let area = mask.iter().filter(|&&p| p >= 0.5).count();
        assert!(
            area.abs_diff(expected.areas[i]) <= 5,
            "mask {i}: area {area}, expected {}",
            expected.areas[i]
        );
    }
}

#[test]
fn internlm2_miniature() {
    run(&Expected {
        family: LanguageFamily::InternLm2,
        moments: [0.020_475_0, 1.017_420_5],
        first: [
            (4, 0, -1.616_865_3),
            (5, 0, -1.611_808_1),
            (260, 63, -0.119_717_7),
            (269, 10, -1.437_910_3),
            (278, 0, 1.026_121_8),
        ],
        second: [
            (273, 10, -1.180_306_8),
            (276, 10, -1.554_674_8),
            (278, 0, 1.012_174_6),
        ],
        chosen: [51, 2, 18],
        masks: [
            [0.332_397_6, 0.543_042_3, 0.444_753_4, 0.492_616_7],
            [0.324_598_2, 0.539_787_0, 0.325_912_1, 0.439_900_8],
            [0.338_961_5, 0.512_068_1, 0.352_396_5, 0.462_328_9],
        ],
        areas: [6764, 6572, 6924],
    });
}

#[test]
fn qwen2_miniature() {
    run(&Expected {
        family: LanguageFamily::Qwen2,
        moments: [-0.082_109_5, 1.009_126_7],
        first: [
            (4, 0, -0.678_199_3),
            (5, 0, -0.376_922_1),
            (260, 63, 0.255_611_0),
            (269, 10, 0.199_276_9),
            (278, 0, -0.036_043_5),
        ],
        second: [
            (273, 10, 0.110_942_6),
            (276, 10, 0.150_282_4),
            (278, 0, -0.030_915_6),
        ],
        chosen: [78, 92, 52],
        masks: [
            [0.331_233_7, 0.407_516_5, 0.401_397_3, 0.422_314_6],
            [0.328_283_0, 0.415_126_6, 0.393_510_5, 0.414_861_3],
            [0.323_413_6, 0.384_055_1, 0.423_075_5, 0.423_549_6],
        ],
        areas: [4835, 5149, 4699],
    });
}

#[test]
fn the_stream_of_a_name_is_the_specified_one() {
    let mut random = SplitMix64::named("conv2.bias", 0);
    assert!((random.uniform() - 0.5 + 0.166_410_91).abs() < 1e-8);
}
