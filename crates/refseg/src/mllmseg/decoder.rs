//! Light mask decoder: joins fine ViT detail with the language model's meaning,
//! then lets the phrase vector pick out the referent.
//!
//! Paper: MLLMSeg, arXiv 2508.04107. Reference: `RESDecoder.forward`.
//! Differs: returns logits, the reference applies the sigmoid inside. The
//! phrase meets the picture in a cross-attention onto a single key, where the
//! softmax is 1 and the query and key projections have no effect; the decoder
//! is therefore cut in two, [`MaskDecoder::encode`] once per picture and
//! [`MaskDecoder::decode`] per phrase. [`MaskDecoder::forward_plain`] computes
//! the same without that shortcut and is kept for tests.

use burn::tensor::{Tensor, activation, module, ops::ConvOptions};

use super::dysample::DySample;
use crate::{
    internvl::{Config, Fusion},
    nn::{
        Activation, Conv2d, ConvShape, DotProductAttention, Dropout, LayerNorm, Linear, Tensors,
        split_heads,
    },
    weights::WeightsError,
};

/// Turns image features and phrase vectors into mask logits.
#[derive(Debug, Clone)]
pub struct MaskDecoder {
    /// Key `text_down`: D → C.
    text_down: Linear,
    features: Features,
    /// Key `text_out_adapter`: C, 2C or 3C → C.
    join: Linear,
    /// Key `ca_layer_vl`: patches query the phrase.
    vision_to_phrase: CrossDecoder,
    /// Keys `conv1.0` and `conv1.1`: C → patch², 3×3, with batch norm and ReLU.
    conv1: ConvNorm,
    /// Key `conv2.weight`: `(1, 1, 5, 5)`.
    conv2_weight: Tensor<4>,
    /// Key `conv2.bias`: `(1)`.
    conv2_bias: Tensor<1>,
    patch: usize,
}

/// What the decoder sees of the picture. The paper's own choice is the last; its Table 4 compares
/// the four.
#[derive(Debug, Clone)]
enum Features {
    /// The ViT's patches alone: C.
    Vision,
    /// The language model's image tokens alone, at the resolution of the patches: C.
    Language(Box<Meaning>),
    /// Patches and tokens side by side: 2C.
    Concat(Box<Meaning>),
    /// DSFF: the patches after a look at the tokens, the patches, and the tokens: 3C.
    Dsff(Box<Dsff>),
}

/// Patches and tokens, and what patches find in the tokens.
#[derive(Debug, Clone)]
struct Dsff {
    /// Key `ca_layer_v2l`: patches query the language model's image tokens.
    vit_to_llm: CrossDecoder,
    meaning: Meaning,
}

/// The picture as the language model sees it.
#[derive(Debug, Clone)]
struct Meaning {
    /// Key `img_llm_down`: D → C.
    down: Linear,
    /// Key `upsample_adapter_l`.
    upsample: DySample,
}

/// The half of the decoder that no phrase changes.
#[derive(Debug, Clone)]
pub struct DecodedImage {
    /// `(B, P, C)`: patches after the self-attention and `norm1` of `ca_layer_vl`.
    base: Tensor<3>,
}

impl DecodedImage {
    /// The patches: `(B, P, C)`.
    pub fn places(&self) -> Tensor<3> {
        self.base.clone()
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        self.base.shape().num_elements() * size_of::<f32>()
    }
}

/// Mask logits, and the batch statistics they were computed with in training.
#[derive(Debug, Clone)]
pub struct PhraseLogits {
    /// `(B·Q, S, S)`.
    pub logits: Tensor<3>,
    /// Mean and biased variance of `conv1`'s output, `(patch²)` each; `None` with stored statistics.
    pub statistics: Option<(Tensor<1>, Tensor<1>)>,
}

/// Attention heads in both transformers of the decoder: `RESDecoder`, `nhead=8`.
const HEADS: usize = 8;
/// The default of `nn.LayerNorm`, which the reference leaves as it is.
const NORM_EPSILON: f64 = 1e-5;
/// The default of `nn.BatchNorm2d`.
const BATCH_NORM_EPSILON: f64 = 1e-5;
/// Side of the last convolution's kernel: `RESDecoder.conv2`.
const CONV2_SIDE: usize = 5;
/// Dropout in training, wherever `TransformerDecoderLayer` has one: its default.
const DROPOUT: f64 = 0.1;

impl MaskDecoder {
    /// Reads the decoder; `tensors` is at `res_decoder`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &Config) -> Result<Self, WeightsError> {
        let (width, language, patch) = (
            config.vision.width,
            config.language.width,
            config.vision.patch,
        );
        let field = "vision_config.hidden_size";
        Ok(Self {
            text_down: Linear::load(
                &tensors.at("text_down"),
                [language, width],
                "llm_config.hidden_size",
            )?,
            features: Features::load(tensors, config)?,
            join: Linear::load(
                &tensors.at("text_out_adapter"),
                [config.fusion.parts() * width, width],
                field,
            )?,
            vision_to_phrase: CrossDecoder::load(&tensors.at("ca_layer_vl.decoder"), width)?,
            conv1: ConvNorm::load(&tensors.at("conv1"), [width, patch * patch])?,
            conv2_weight: tensors.get("conv2.weight", [1, 1, CONV2_SIDE, CONV2_SIDE], field)?,
            conv2_bias: tensors.get("conv2.bias", [1], field)?,
            patch,
        })
    }

    /// What can be computed before any phrase is known.
    ///
    /// # Shapes
    /// - `vit`: `(B, P, C)`, patches before pixel unshuffle
    /// - `llm`: `(B, P/4, D)`, the language model's states one position early
    pub fn encode(&self, vit: Tensor<3>, llm: Tensor<3>) -> DecodedImage {
        DecodedImage {
            base: self.vision_to_phrase.look_around(self.fuse(vit, llm)),
        }
    }

    /// Mask logits of phrases.
    ///
    /// # Shapes
    /// - `phrases`: `(B, Q, D)`, the states before each `[SEG]`
    /// - returns `(B·Q, S, S)`
    pub fn decode(&self, image: &DecodedImage, phrases: Tensor<3>) -> Tensor<3> {
        let y = self.locate(image, phrases);
        self.to_pixels(self.conv1.forward(self.as_map(y)))
    }

    /// [`MaskDecoder::decode`] with batch norm over the phrases at hand, as in training.
    pub fn decode_in_training(&self, image: &DecodedImage, phrases: Tensor<3>) -> PhraseLogits {
        let y = self.locate(image, phrases);
        let (x, statistics) = self.conv1.forward_in_training(self.as_map(y));
        PhraseLogits {
            logits: self.to_pixels(x),
            statistics: Some(statistics),
        }
    }

    /// The decoder as published: every phrase repeats the whole computation and the attention onto it is a real one.
    ///
    /// # Shapes
    /// As [`MaskDecoder::encode`] and [`MaskDecoder::decode`], for one picture.
    pub fn forward_plain(&self, vit: Tensor<3>, llm: Tensor<3>, phrases: Tensor<3>) -> Tensor<3> {
        let [_, count, _] = phrases.dims();
        let memory = self.text_down.forward(phrases).swap_dims(0, 1); // (Q, 1, C)
        let [_, patches, width] = vit.dims();
        let joined = self.fuse(vit, llm).expand([count, patches, width]);
        let y = self.vision_to_phrase.forward(joined, memory);
        self.to_pixels(self.conv1.forward(self.as_map(y)))
    }

    /// Joins the picture as the ViT and as the language model see it: `(B, P, C)`.
    fn fuse(&self, vit: Tensor<3>, llm: Tensor<3>) -> Tensor<3> {
        self.join.forward(match &self.features {
            Features::Vision => vit,
            Features::Language(meaning) => {
                let tokens = meaning.down.forward(llm); // (B, P/4, C)
                meaning.upsample.forward(tokens) // (B, P, C)
            }
            Features::Concat(meaning) => {
                let tokens = meaning.down.forward(llm);
                Tensor::cat(vec![vit, meaning.upsample.forward(tokens)], 2)
            }
            Features::Dsff(dsff) => {
                let Dsff {
                    vit_to_llm,
                    meaning,
                } = &**dsff;
                let tokens = meaning.down.forward(llm);
                let detail = vit_to_llm.forward(vit.clone(), tokens.clone()); // (B, P, C)
                Tensor::cat(vec![detail, vit, meaning.upsample.forward(tokens)], 2)
            }
        })
    }

    /// Every patch after it has met every phrase: `(B·Q, P, C)`.
    fn locate(&self, image: &DecodedImage, phrases: Tensor<3>) -> Tensor<3> {
        self.vision_to_phrase
            .forward_onto_single_key(image.base.clone(), self.text_down.forward(phrases))
    }

    /// `(N, P, C)` to `(N, C, √P, √P)`.
    fn as_map(&self, x: Tensor<3>) -> Tensor<4> {
        let [count, patches, width] = x.dims();
        let side = patches.isqrt();
        x.reshape([count, side, side, width]).permute([0, 3, 1, 2])
    }

    /// Unfolds the channels of each patch into its pixels, then smooths across patch borders.
    ///
    /// `(N, patch², s, s)` to `(N, S, S)`, `S = s·patch`.
    fn to_pixels(&self, x: Tensor<4>) -> Tensor<3> {
        let [count, _, rows, columns] = x.dims();
        let (height, width) = (rows * self.patch, columns * self.patch);
        let pixels = x
            .reshape([count, self.patch, self.patch, rows, columns])
            .permute([0, 3, 1, 4, 2])
            .reshape([count, 1, height, width]);
        let padding = CONV2_SIDE / 2;
        let options = ConvOptions::new([1, 1], [padding, padding], [1, 1], 1);
        module::conv2d(
            pixels,
            self.conv2_weight.clone(),
            Some(self.conv2_bias.clone()),
            options,
        )
        .reshape([count, height, width])
    }
}

impl Features {
    fn load(tensors: &Tensors<'_>, config: &Config) -> Result<Self, WeightsError> {
        let (width, language) = (config.vision.width, config.language.width);
        let meaning = || {
            let down = tensors.at("img_llm_down");
            Ok(Meaning {
                down: Linear::load(&down, [language, width], "llm_config.hidden_size")?,
                upsample: DySample::load(&tensors.at("upsample_adapter_l"), width)?,
            })
        };
        Ok(match config.fusion {
            Fusion::Vision => Self::Vision,
            Fusion::Language => Self::Language(Box::new(meaning()?)),
            Fusion::Concat => Self::Concat(Box::new(meaning()?)),
            Fusion::Dsff => Self::Dsff(Box::new(Dsff {
                vit_to_llm: CrossDecoder::load(&tensors.at("ca_layer_v2l.decoder"), width)?,
                meaning: meaning()?,
            })),
        })
    }
}

/// One post-norm transformer decoder layer and a layer norm after it.
///
/// Reference: `TransformerDecoder` with one `TransformerDecoderLayer`. The
/// queries attend to each other before they look at the memory.
#[derive(Debug, Clone)]
struct CrossDecoder {
    /// Key `layers.0.self_attn`.
    self_attention: MultiHeadAttention,
    /// Key `layers.0.multihead_attn`.
    cross_attention: MultiHeadAttention,
    /// Key `layers.0.norm1`.
    norm1: LayerNorm,
    /// Key `layers.0.norm2`.
    norm2: LayerNorm,
    /// Key `layers.0.norm3`.
    norm3: LayerNorm,
    /// Key `layers.0.linear1`: C → C.
    linear1: Linear,
    /// Key `layers.0.linear2`: C → C.
    linear2: Linear,
    /// Key `norm`: a second layer norm in a row.
    norm: LayerNorm,
    /// After the self-attention, the cross-attention, `relu` and `linear2`.
    dropouts: [Dropout; 4],
}

impl CrossDecoder {
    fn load(tensors: &Tensors<'_>, width: usize) -> Result<Self, WeightsError> {
        let field = "vision_config.hidden_size";
        let layer = tensors.at("layers.0");
        let norm = |tensors: Tensors<'_>| LayerNorm::load(&tensors, width, NORM_EPSILON, field);
        Ok(Self {
            self_attention: MultiHeadAttention::load(&layer.at("self_attn"), width)?,
            cross_attention: MultiHeadAttention::load(&layer.at("multihead_attn"), width)?,
            norm1: norm(layer.at("norm1"))?,
            norm2: norm(layer.at("norm2"))?,
            norm3: norm(layer.at("norm3"))?,
            linear1: Linear::load(&layer.at("linear1"), [width, width], field)?,
            linear2: Linear::load(&layer.at("linear2"), [width, width], field)?,
            norm: norm(tensors.at("norm"))?,
            dropouts: ["dropout1", "dropout2", "dropout", "dropout3"]
                .map(|name| layer.dropout(name, DROPOUT)),
        })
    }

    /// # Shapes
    /// - `x`: `(N, P, C)`, queries
    /// - `memory`: `(N, M, C)`
    /// - returns `(N, P, C)`
    fn forward(&self, x: Tensor<3>, memory: Tensor<3>) -> Tensor<3> {
        let x = self.look_around(x);
        let seen = self.cross_attention.forward(x.clone(), memory);
        self.finish(x + self.dropouts[1].forward(seen))
    }

    /// [`CrossDecoder::forward`] after [`CrossDecoder::look_around`], for a memory of one element.
    ///
    /// # Shapes
    /// - `base`: `(B, P, C)`
    /// - `memory`: `(B, Q, C)`, one element for each of `Q` runs
    /// - returns `(B·Q, P, C)`
    fn forward_onto_single_key(&self, base: Tensor<3>, memory: Tensor<3>) -> Tensor<3> {
        let [batch, patches, width] = base.dims();
        let [_, count, _] = memory.dims();
        if self.cross_attention.attention.dropout().is_active() {
            // Each query then forgets other heads' answers: it is a real attention again.
            let rows = batch * count;
            let base = base.unsqueeze_dim::<4>(1).repeat_dim(1, count);
            let base = base.reshape([rows, patches, width]);
            let memory = memory.reshape([rows, 1, width]);
            let seen = self.cross_attention.forward(base.clone(), memory);
            return self.finish(base + self.dropouts[1].forward(seen));
        }
        let seen = self.cross_attention.forward_onto_single_key(memory);
        let x = base.unsqueeze_dim::<4>(1) + seen.unsqueeze_dim::<4>(2);
        self.finish(x.reshape([batch * count, patches, width]))
    }

    /// The queries attend to each other.
    fn look_around(&self, x: Tensor<3>) -> Tensor<3> {
        let seen = self.self_attention.forward(x.clone(), x.clone());
        self.norm1.forward(x + self.dropouts[0].forward(seen))
    }

    fn finish(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.norm2.forward(x);
        let inner = self.linear1.forward_activated(x.clone(), Activation::Relu);
        let change = self.linear2.forward(self.dropouts[2].forward(inner));
        let x = self.norm3.forward(x + self.dropouts[3].forward(change));
        self.norm.forward(x)
    }
}

/// `nn.MultiheadAttention` with packed input projections.
#[derive(Debug, Clone)]
struct MultiHeadAttention {
    /// Rows `0..C` of key `in_proj_weight`.
    query: Linear,
    /// Rows `C..2C`.
    key: Linear,
    /// Rows `2C..3C`.
    value: Linear,
    /// Key `out_proj`.
    output: Linear,
    attention: DotProductAttention,
}

impl MultiHeadAttention {
    fn load(tensors: &Tensors<'_>, width: usize) -> Result<Self, WeightsError> {
        let field = "vision_config.hidden_size";
        let weight = tensors.get("in_proj_weight", [3 * width, width], field)?;
        let bias = tensors.get("in_proj_bias", [3 * width], field)?;
        let part = |i: usize| {
            let rows = weight.clone().narrow(0, i * width, width);
            Linear::new(
                tensors,
                rows,
                Some(bias.clone().narrow(0, i * width, width)),
            )
        };
        Ok(Self {
            query: part(0),
            key: part(1),
            value: part(2),
            output: Linear::load(&tensors.at("out_proj"), [width, width], field)?,
            attention: DotProductAttention::new(tensors)
                .with_dropout(tensors.dropout("dropout", DROPOUT)),
        })
    }

    /// `(N, P, C)` queries onto `(N, M, C)`.
    fn forward(&self, x: Tensor<3>, memory: Tensor<3>) -> Tensor<3> {
        let query = split_heads(self.query.forward(x), HEADS);
        let key = split_heads(self.key.forward(memory.clone()), HEADS);
        let value = split_heads(self.value.forward(memory), HEADS);
        let seen = self.attention.forward(query, key, value, None);
        self.output.forward(seen)
    }

    /// What every query receives from a memory of one element: the softmax over it is 1.
    fn forward_onto_single_key(&self, memory: Tensor<3>) -> Tensor<3> {
        self.output.forward(self.value.forward(memory))
    }
}

/// A 3×3 convolution, batch norm, and ReLU.
#[derive(Debug, Clone)]
pub struct ConvNorm {
    /// Key `0`.
    convolution: Conv2d,
    /// Key `1.weight`: `(out)`.
    scale: Tensor<1>,
    /// Key `1.bias`: `(out)`.
    shift: Tensor<1>,
    /// Key `1.running_mean`: `(out)`.
    mean: Tensor<1>,
    /// Key `1.running_var`: `(out)`.
    variance: Tensor<1>,
}

impl ConvNorm {
    fn load(tensors: &Tensors<'_>, [inputs, outputs]: [usize; 2]) -> Result<Self, WeightsError> {
        let field = "vision_config.patch_size";
        let get = |name| tensors.get(name, [outputs], field);
        Ok(Self {
            convolution: Conv2d::load(&tensors.at("0"), ConvShape::new(inputs, outputs, 3), field)?,
            scale: get("1.weight")?,
            shift: get("1.bias")?,
            mean: get("1.running_mean")?,
            variance: get("1.running_var")?,
        })
    }

    /// With the stored statistics.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.convolution.forward(x);
        let (scale, shift) = (self.scale.clone(), self.shift.clone());
        let (mean, variance) = (self.mean.clone(), self.variance.clone());
        activation::relu(module::batch_norm(
            x,
            scale,
            shift,
            mean,
            variance,
            BATCH_NORM_EPSILON,
        ))
    }

    /// With the statistics of this batch, which are returned: mean and biased variance.
    fn forward_in_training(&self, x: Tensor<4>) -> (Tensor<4>, (Tensor<1>, Tensor<1>)) {
        let x = self.convolution.forward(x);
        let x = module::batch_norm_train(
            x,
            self.scale.clone(),
            self.shift.clone(),
            BATCH_NORM_EPSILON,
        );
        (activation::relu(x.output), (x.mean, x.variance))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::{
        nn::{Blueprint, Part, TensorSource},
        random::SplitMix64,
    };

    /// Weights whose values follow from their names: the specification's conformance vectors.
    struct Named;

    impl TensorSource for Named {
        fn tensor(
            &self,
            key: &str,
            shape: &[usize],
            _: &'static str,
        ) -> Result<Tensor<1>, WeightsError> {
            let count: usize = shape.iter().product();
            let mut random = SplitMix64::named(key, 0);
            let values: Vec<f32> = (0..count)
                .map(|_| {
                    let u = random.uniform() - 0.5;
                    let value = match shape.len() {
                        2.. => u * 2.0 * (3.0 / (count / shape[0]) as f64).sqrt(),
                        _ if key.ends_with("running_var") => 1.0 + 0.5 * u,
                        _ if key.ends_with(".weight") => 1.0 + 0.2 * u,
                        _ => 0.2 * u,
                    };
                    value as f32
                })
                .collect();
            Ok(Tensor::from_data(
                TensorData::new(values, [count]),
                &Device::flex(),
            ))
        }

        fn device(&self) -> Device {
            Device::flex()
        }
    }

    fn input<const R: usize>(name: &str, shape: [usize; R]) -> Tensor<R> {
        let mut random = SplitMix64::named(name, 0);
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count)
            .map(|_| ((random.uniform() - 0.5) * 2.0 * 3f64.sqrt()) as f32)
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// Compares mean, mean square, and values at flat positions.
    fn check<const R: usize>(
        what: &str,
        tensor: Tensor<R>,
        mean: f64,
        square: f64,
        samples: &[(usize, f64)],
    ) {
        let values: Vec<f32> = tensor.into_data().try_into_vec().expect("f32");
        let average = |f: fn(f64) -> f64| {
            values.iter().map(|&x| f(f64::from(x))).sum::<f64>() / values.len() as f64
        };
        assert!(
            (average(|x| x) - mean).abs() < 1e-5,
            "{what}: mean {}",
            average(|x| x)
        );
        assert!(
            (average(|x| x * x) - square).abs() < 2e-5,
            "{what}: mean square {}",
            average(|x| x * x)
        );
        for &(at, expected) in samples {
            assert!(
                (f64::from(values[at]) - expected).abs() < 2e-5,
                "{what} at {at}: {}",
                values[at]
            );
        }
    }

    /// Parameter counts of the paper's Table 4, for the 8B width.
    #[test]
    fn ablations_have_the_published_sizes() -> Result<(), WeightsError> {
        let mut config = Config::preset("internvl2_5-8b").expect("preset");
        let sizes = [17.56, 21.78, 22.83, 34.39];
        for (fusion, millions) in Fusion::ALL.into_iter().zip(sizes) {
            config.fusion = fusion;
            let parts = Blueprint::of(|source| MaskDecoder::load(&Tensors::root(source), &config))?;
            let learned = parts.iter().filter(|part| !part.key.contains("running_"));
            let count: usize = learned.map(Part::len).sum();
            let found = count as f64 / 1e6;
            assert!((found - millions).abs() < 0.011, "{fusion:?}: {found}");
        }
        Ok(())
    }

    /// Every row of the specification's table for the decoder alone: D = 64, two expressions.
    #[test]
    fn every_stage_gives_the_specified_values() {
        let mut config = Config::preset("internvl2_5-1b").expect("a preset");
        config.language.width = 64;
        let decoder =
            MaskDecoder::load(&Tensors::root(&Named), &config).expect("every name has values");
        let vit = input("input.img_vit", [1, 1024, 1024]);
        let llm = input("input.img_llm", [1, 256, 64]);
        let text = input("input.text", [1, 2, 64]);

        let Features::Dsff(dsff) = &decoder.features else {
            panic!("published models join features by DSFF");
        };
        let Dsff {
            vit_to_llm,
            meaning,
        } = &**dsff;
        let l16 = meaning.down.forward(llm.clone());
        check(
            "L16",
            l16.clone(),
            -0.006_112_33,
            1.012_323_59,
            &[
                (0, 0.711_756_44),
                (255 * 1024 + 1023, -0.894_588_22),
                (17 * 1024 + 5, 0.601_219_14),
            ],
        );
        let v32 = vit_to_llm.forward(vit.clone(), l16.clone());
        check(
            "V32",
            v32,
            -0.000_958_86,
            0.999_006_80,
            &[
                (0, 1.407_605_67),
                (1023 * 1024 + 1023, 0.753_308_65),
                (33 * 1024 + 7, -0.824_984_43),
            ],
        );
        let l32 = meaning.upsample.forward(l16).swap_dims(1, 2);
        let at = |channel: usize, row: usize, column: usize| channel * 1024 + row * 32 + column;
        check(
            "L32",
            l32,
            -0.006_545_57,
            0.478_731_26,
            &[
                (at(0, 0, 0), 0.711_756_44),
                (at(255, 0, 1), -0.693_789_47),
                (at(256, 1, 0), -2.476_344_58),
                (at(1023, 31, 31), -0.837_438_75),
                (at(700, 12, 21), 0.678_477_05),
            ],
        );
        check(
            "adapter",
            decoder.fuse(vit.clone(), llm.clone()),
            -0.000_359_02,
            0.832_969_29,
            &[
                (0, 1.938_218_93),
                (1023 * 1024 + 1023, -0.964_356_76),
                (500 * 1024 + 300, -0.536_892_47),
            ],
        );
        let image = decoder.encode(vit.clone(), llm.clone());
        let located = decoder.locate(&image, text.clone());
        check(
            "vl, expression 0",
            located.clone().narrow(0, 0, 1),
            -0.000_407_79,
            1.010_864_78,
            &[
                (0, 1.452_795_55),
                (1023 * 1024 + 1023, -0.583_033_14),
                (500 * 1024 + 300, -0.255_419_41),
            ],
        );
        check(
            "vl, expression 1",
            located.clone().narrow(0, 1, 1),
            0.000_667_25,
            1.006_660_05,
            &[
                (0, 1.753_336_15),
                (1023 * 1024 + 1023, 1.232_955_00),
                (500 * 1024 + 300, -0.308_939_27),
            ],
        );
        let conv1 = decoder.conv1.forward(decoder.as_map(located));
        check(
            "conv1, expression 0",
            conv1.clone().narrow(0, 0, 1),
            0.413_485_17,
            0.537_877_81,
            &[
                (at(0, 1, 0), 0.262_986_51),
                (at(66, 3, 28), 0.845_808_09),
                (at(123, 5, 10), 2.274_561_96),
                (at(195, 31, 26), 0.711_047_93),
            ],
        );
        let logits = decoder.to_pixels(conv1);
        check(
            "logits, expression 0",
            logits.clone().narrow(0, 0, 1),
            0.258_158_39,
            0.459_196_18,
            &[
                (0, -0.282_925_69),
                (447 * 448 + 447, 0.244_778_21),
                (100 * 448 + 200, 0.254_289_38),
                (200 * 448 + 100, 0.029_418_05),
            ],
        );
        let masks = activation::sigmoid(logits.clone());
        check(
            "mask 0",
            masks.clone().narrow(0, 0, 1),
            0.559_066_24,
            0.332_628_82,
            &[
                (0, 0.429_736_65),
                (447 * 448 + 447, 0.560_890_83),
                (223 * 448 + 224, 0.450_474_18),
            ],
        );
        check(
            "mask 1",
            masks.narrow(0, 1, 1),
            0.556_826_16,
            0.328_237_18,
            &[
                (0, 0.514_244_71),
                (447 * 448 + 447, 0.555_126_35),
                (223 * 448 + 224, 0.448_072_46),
            ],
        );
        let positive = |mask: usize| {
            let values: Vec<f32> = logits
                .clone()
                .narrow(0, mask, 1)
                .into_data()
                .try_into_vec()
                .expect("f32");
            values.iter().filter(|&&logit| logit >= 0.0).count()
        };
        assert!(positive(0).abs_diff(134_098) <= 5 && positive(1).abs_diff(133_969) <= 5);

        let plain = decoder.forward_plain(vit, llm, text);
        let gap: f32 = (plain - logits).abs().max().into_scalar();
        assert!(gap < 1e-4, "the plain form differs by {gap}");
    }
}
