//! The language model: Qwen, Qwen2, InternLM2, or Llama.
//!
//! Reference: `QWenLMHeadModel`, `Qwen2ForCausalLM`, `InternLM2ForCausalLM`,
//! `LlamaForCausalLM` (and `MistralForCausalLM`, without a sliding window). All
//! compute the same thing and differ in names: InternLM2 and Qwen fuse queries,
//! keys and values, each in its own order, and only the Qwens have biases.
//! Differs: dynamic NTK scaling, and Qwen's logarithmic scaling of queries, are
//! left out, for they begin beyond [`LanguageConfig::max_positions`], which no
//! prompt may reach.

use std::ops::Range;

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::{
    nn::{Activation, DotProductAttention, Linear, RmsNorm, Rope, Tensors, split_heads},
    weights::WeightsError,
};

/// Sizes of a language model, as its part of `config.json` says them.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageConfig {
    /// Field `architectures`.
    pub family: LanguageFamily,
    /// Field `vocab_size`.
    pub vocabulary: usize,
    /// Field `hidden_size`, D.
    pub width: usize,
    /// Field `intermediate_size`.
    pub inner: usize,
    /// Field `num_hidden_layers`.
    pub layers: usize,
    /// Field `num_attention_heads`.
    pub heads: usize,
    /// Field `num_key_value_heads`.
    pub key_value_heads: usize,
    /// Field `rms_norm_eps`.
    pub epsilon: f64,
    /// Field `rope_theta`.
    pub rope_theta: f64,
    /// Field `max_position_embeddings`, for Qwen `seq_length`: dynamic scaling would begin beyond it.
    pub max_positions: usize,
}

/// Which language model a checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanguageFamily {
    /// `Qwen2ForCausalLM`: separate projections with biases.
    Qwen2,
    /// `InternLM2ForCausalLM`: fused `wqkv`, no biases.
    InternLm2,
    /// `LlamaForCausalLM` and `MistralForCausalLM`: separate projections without biases.
    Llama,
    /// `QWenLMHeadModel`, the first Qwen: fused `c_attn` with biases.
    Qwen,
}

/// Where sizes stand in `config.json`, for messages.
struct FieldNames {
    vocabulary: &'static str,
    width: &'static str,
    inner: &'static str,
    key_value_heads: &'static str,
}

impl LanguageFamily {
    fn field_names(self) -> FieldNames {
        match self {
            Self::Qwen2 | Self::InternLm2 => FieldNames {
                vocabulary: "llm_config.vocab_size",
                width: "llm_config.hidden_size",
                inner: "llm_config.intermediate_size",
                key_value_heads: "llm_config.num_key_value_heads",
            },
            // At the root, or in `text_config`.
            Self::Llama | Self::Qwen => FieldNames {
                vocabulary: "vocab_size",
                width: "hidden_size",
                inner: "intermediate_size",
                key_value_heads: "num_key_value_heads",
            },
        }
    }
}

impl LanguageConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }
}

/// A causal language model with its head.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    /// Key `model.embed_tokens`, `model.tok_embeddings` or `transformer.wte`: `(V, D)`.
    embedding: Tensor<2>,
    /// Keys `model.layers.{i}` or `transformer.h.{i}`.
    layers: Vec<LanguageLayer>,
    /// Key `model.norm` or `transformer.ln_f`.
    norm: RmsNorm,
    /// Key `lm_head` or `output`: never tied to the embedding.
    head: Linear,
    head_dim: usize,
    rope_theta: f64,
}

/// Keys and values of tokens already seen, layer by layer; by default of none.
#[derive(Debug, Clone, Default)]
pub struct KeyValues {
    /// Keys (turned by RoPE) and values: each `(B, G, L, d)`.
    layers: Vec<(Tensor<4>, Tensor<4>)>,
}

impl KeyValues {
    /// How many tokens were seen.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, |(key, _)| key.dims()[2])
    }

    /// These tokens and then `later` ones.
    pub fn followed_by(&self, later: &Self) -> Self {
        let join = |a: &Tensor<4>, b: &Tensor<4>| Tensor::cat(vec![a.clone(), b.clone()], 2);
        let layers = self.layers.iter().zip(&later.layers);
        Self {
            layers: layers
                .map(|((key, value), (later_key, later_value))| {
                    (join(key, later_key), join(value, later_value))
                })
                .collect(),
        }
    }

    /// Those of some rows of the batch, one after the other; a row may come several times.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let select = |x: &Tensor<4>| {
            let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
            let indices = TensorData::new(indices, [rows.len()]);
            let indices = Tensor::<1, Int>::from_data(indices, &x.device());
            x.clone().select(0, indices)
        };
        let layers = self.layers.iter();
        Self {
            layers: layers
                .map(|(key, value)| (select(key), select(value)))
                .collect(),
        }
    }

    /// Memory of the keys and values, in bytes.
    pub fn bytes(&self) -> usize {
        let values: usize = self
            .layers
            .iter()
            .map(|(key, _)| 2 * key.shape().num_elements())
            .sum();
        values * size_of::<f32>()
    }
}

impl LanguageModel {
    /// Reads the model; `tensors` is where `model` and its head are, such as `language_model`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &LanguageConfig) -> Result<Self, WeightsError> {
        let LanguageConfig {
            width,
            vocabulary,
            epsilon,
            ..
        } = *config;
        let [embedding, layers, norm, head] = match config.family {
            LanguageFamily::Qwen2 | LanguageFamily::Llama => [
                "model.embed_tokens.weight",
                "model.layers",
                "model.norm",
                "lm_head",
            ],
            LanguageFamily::InternLm2 => [
                "model.tok_embeddings.weight",
                "model.layers",
                "model.norm",
                "output",
            ],
            LanguageFamily::Qwen => [
                "transformer.wte.weight",
                "transformer.h",
                "transformer.ln_f",
                "lm_head",
            ],
        };
        let fields = config.family.field_names();
        // The largest two come first: while they are packed, little else is in memory.
        let embedding = tensors.table(embedding, [vocabulary, width], fields.vocabulary)?;
        let size = [width, vocabulary];
        let head = Linear::load_without_bias(&tensors.at(head), size, fields.vocabulary)?;
        Ok(Self {
            embedding,
            layers: (0..config.layers)
                .map(|i| LanguageLayer::load(&tensors.at(layers).at(i), config))
                .collect::<Result<_, _>>()?,
            norm: RmsNorm::load(&tensors.at(norm), width, epsilon, fields.width)?,
            head,
            head_dim: config.head_dim(),
            rope_theta: config.rope_theta,
        })
    }

    /// The embeddings of token ids.
    ///
    /// # Shapes
    /// `L` ids; returns `(1, L, D)`.
    pub fn embed(&self, ids: &[u32]) -> Tensor<3> {
        let device = self.embedding.device();
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &device);
        let rows = self.embedding.clone().select(0, ids);
        let rows = match rows.dtype() {
            DType::F32 => rows,
            _ => rows.cast(FloatDType::F32),
        };
        rows.unsqueeze()
    }

    /// Hidden states after the final norm, and the keys and values of the new tokens.
    ///
    /// # Shapes
    /// - `x`: `(B, L, D)`, embedded tokens
    /// - `positions`: `L`, where each token stands in its own sequence
    /// - `mask`: added to the scores, `(1, 1, L, P + L)`: earlier tokens first
    /// - `past`: keys and values of `P` earlier tokens, with `B` as their batch
    /// - returns `(B, L, D)`
    pub fn forward(
        &self,
        x: Tensor<3>,
        positions: &[usize],
        mask: &Tensor<4>,
        past: Option<&KeyValues>,
    ) -> (Tensor<3>, KeyValues) {
        let rope = self.rope(positions, &x.device());
        let mut seen = Vec::with_capacity(self.layers.len());
        let mut x = x;
        for (i, layer) in self.layers.iter().enumerate() {
            let past = past.map(|past| &past.layers[i]);
            let read = layer.read(x, &rope, mask, past);
            x = read.x;
            seen.push(read.new);
        }
        (self.finish(x), KeyValues { layers: seen })
    }

    /// As [`LanguageModel::forward`], but gives the keys and values of all
    /// tokens, the `past` ones first: each is copied once, and the old ones are let go.
    pub fn extend(
        &self,
        x: Tensor<3>,
        positions: &[usize],
        mask: &Tensor<4>,
        past: KeyValues,
    ) -> (Tensor<3>, KeyValues) {
        let rope = self.rope(positions, &x.device());
        let mut past = past.layers.into_iter();
        let mut seen = Vec::with_capacity(self.layers.len());
        let mut x = x;
        for layer in &self.layers {
            let read = layer.read(x, &rope, mask, past.next().as_ref());
            x = read.x;
            seen.push(read.all);
        }
        (self.finish(x), KeyValues { layers: seen })
    }

    /// The turns of queries and keys at these positions.
    pub fn rope(&self, positions: &[usize], device: &Device) -> Rope {
        Rope::new(positions, self.head_dim, self.rope_theta, device)
    }

    /// The layers, first to last: for training, which goes through them one by one.
    pub fn layers(&self) -> &[LanguageLayer] {
        &self.layers
    }

    /// The final norm: `(B, L, D)` to `(B, L, D)`.
    pub fn finish(&self, x: Tensor<3>) -> Tensor<3> {
        self.norm.forward(x)
    }

    /// Scores of the next token over the whole vocabulary.
    ///
    /// # Shapes
    /// `(n, D)` to `(n, V)`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.head.forward(hidden)
    }
}

/// A mask by which each of `length` tokens sees itself and the tokens before it: `(1, 1, L, L)`.
pub fn causal_mask(length: usize, device: &Device) -> Tensor<4> {
    let values = (0..length).flat_map(|query| {
        (0..length).map(move |key| if key <= query { 0.0 } else { f32::NEG_INFINITY })
    });
    Tensor::from_data(
        TensorData::new(values.collect(), [1, 1, length, length]),
        device,
    )
}

/// A mask for independent sequences that continue the same `start` tokens and
/// lie behind them in one row: token `i` belongs to sequence `owners[i]`, and
/// sees the `start` tokens and those of its own sequence up to itself.
///
/// Returns `(1, 1, R, start + N)` for the `R` tokens of `rows` among `N` owners.
pub(crate) fn packed_mask(
    start: usize,
    owners: &[usize],
    rows: Range<usize>,
    device: &Device,
) -> Tensor<4> {
    let (count, columns) = (rows.len(), start + owners.len());
    let mut values = Vec::with_capacity(count * columns);
    for row in rows {
        values.resize(values.len() + start, 0.0);
        let sees = |column: usize| column <= row && owners[column] == owners[row];
        let columns =
            (0..owners.len()).map(|column| if sees(column) { 0.0 } else { f32::NEG_INFINITY });
        values.extend(columns);
    }
    Tensor::from_data(TensorData::new(values, [1, 1, count, columns]), device)
}

/// One pre-norm decoder layer.
#[derive(Debug, Clone)]
pub struct LanguageLayer {
    /// Key `input_layernorm`, `attention_norm` or `ln_1`.
    attention_norm: RmsNorm,
    projections: Projections,
    /// Key `self_attn.o_proj`, `attention.wo` or `attn.c_proj`.
    output: Linear,
    /// Key `post_attention_layernorm`, `ffn_norm` or `ln_2`.
    mlp_norm: RmsNorm,
    /// Key `mlp.gate_proj`, `feed_forward.w1` or `mlp.w2`.
    gate: Linear,
    /// Key `mlp.up_proj`, `feed_forward.w3` or `mlp.w1`.
    up: Linear,
    /// Key `mlp.down_proj`, `feed_forward.w2` or `mlp.c_proj`.
    down: Linear,
    attention: DotProductAttention,
    heads: usize,
    key_value_heads: usize,
}

impl LanguageLayer {
    fn load(tensors: &Tensors<'_>, config: &LanguageConfig) -> Result<Self, WeightsError> {
        let LanguageConfig {
            width,
            inner,
            heads,
            key_value_heads,
            epsilon,
            ..
        } = *config;
        let narrow = key_value_heads * config.head_dim();
        let FieldNames {
            width: width_field,
            inner: inner_field,
            key_value_heads: heads_field,
            ..
        } = config.family.field_names();
        let norm = |name| RmsNorm::load(&tensors.at(name), width, epsilon, width_field);
        let plain = |name, size, field| Linear::load_without_bias(&tensors.at(name), size, field);
        let projection = |name, size, field| match config.family {
            LanguageFamily::Qwen2 => Linear::load(&tensors.at(name), size, field),
            LanguageFamily::InternLm2 | LanguageFamily::Llama | LanguageFamily::Qwen => {
                plain(name, size, field)
            }
        };
        match config.family {
            LanguageFamily::Qwen2 | LanguageFamily::Llama => Ok(Self {
                attention_norm: norm("input_layernorm")?,
                projections: Projections::Separate(Box::new([
                    projection("self_attn.q_proj", [width, width], width_field)?,
                    projection("self_attn.k_proj", [width, narrow], heads_field)?,
                    projection("self_attn.v_proj", [width, narrow], heads_field)?,
                ])),
                output: plain("self_attn.o_proj", [width, width], width_field)?,
                mlp_norm: norm("post_attention_layernorm")?,
                gate: plain("mlp.gate_proj", [width, inner], inner_field)?,
                up: plain("mlp.up_proj", [width, inner], inner_field)?,
                down: plain("mlp.down_proj", [inner, width], inner_field)?,
                attention: DotProductAttention::new(tensors),
                heads,
                key_value_heads,
            }),
            LanguageFamily::InternLm2 => Ok(Self {
                attention_norm: norm("attention_norm")?,
                projections: Projections::ByGroup(plain(
                    "attention.wqkv",
                    [width, width + 2 * narrow],
                    heads_field,
                )?),
                output: plain("attention.wo", [width, width], width_field)?,
                mlp_norm: norm("ffn_norm")?,
                gate: plain("feed_forward.w1", [width, inner], inner_field)?,
                up: plain("feed_forward.w3", [width, inner], inner_field)?,
                down: plain("feed_forward.w2", [inner, width], inner_field)?,
                attention: DotProductAttention::new(tensors),
                heads,
                key_value_heads,
            }),
            LanguageFamily::Qwen => Ok(Self {
                attention_norm: norm("ln_1")?,
                projections: Projections::ByPart(Linear::load(
                    &tensors.at("attn.c_attn"),
                    [width, 3 * width],
                    width_field,
                )?),
                output: plain("attn.c_proj", [width, width], width_field)?,
                mlp_norm: norm("ln_2")?,
                gate: plain("mlp.w2", [width, inner], inner_field)?,
                up: plain("mlp.w1", [width, inner], inner_field)?,
                down: plain("mlp.c_proj", [inner, width], inner_field)?,
                attention: DotProductAttention::new(tensors),
                heads,
                key_value_heads,
            }),
        }
    }

    /// The layer over tokens that come behind no others.
    ///
    /// # Shapes
    /// - `x`: `(B, L, D)`
    /// - `mask`: added to the scores, `(1, 1, L, L)` or `(B, 1, L, L)`
    /// - returns `(B, L, D)`
    pub fn forward(&self, x: Tensor<3>, rope: &Rope, mask: &Tensor<4>) -> Tensor<3> {
        self.read(x, rope, mask, None).x
    }

    /// `(B, L, D)` to `(B, L, D)`, with keys and values.
    fn read(
        &self,
        x: Tensor<3>,
        rope: &Rope,
        mask: &Tensor<4>,
        past: Option<&(Tensor<4>, Tensor<4>)>,
    ) -> LayerRead {
        let h = self.attention_norm.forward(x.clone());
        let [query, key, value] = self
            .projections
            .forward(h, self.heads, self.key_value_heads);
        let (query, key) = (rope.apply(query), rope.apply(key));
        let (keys, values) = match past {
            Some((old_key, old_value)) => (
                Tensor::cat(vec![old_key.clone(), key.clone()], 2),
                Tensor::cat(vec![old_value.clone(), value.clone()], 2),
            ),
            None => (key.clone(), value.clone()),
        };
        let seen = self
            .attention
            .forward(query, keys.clone(), values.clone(), Some(mask));
        let x = self.output.forward_added(seen, x);

        let h = self.mlp_norm.forward(x.clone());
        let up = self.up.forward(h.clone());
        let inner = self.gate.forward_gated(h, Activation::Silu, up);
        LayerRead {
            x: self.down.forward_added(inner, x),
            new: (key, value),
            all: (keys, values),
        }
    }
}

/// What comes out of a layer.
struct LayerRead {
    /// `(B, L, D)`.
    x: Tensor<3>,
    /// Keys and values of the tokens that went in.
    new: (Tensor<4>, Tensor<4>),
    /// Those of earlier tokens and then these.
    all: (Tensor<4>, Tensor<4>),
}

/// Queries, keys and values of the tokens.
#[derive(Debug, Clone)]
enum Projections {
    /// Qwen2 and Llama, keys `self_attn.q_proj`, `self_attn.k_proj` and `self_attn.v_proj`.
    Separate(Box<[Linear; 3]>),
    /// InternLM2, key `attention.wqkv`: one group for each key-value head, which holds the
    /// group's query heads, its key head, then its value head.
    ByGroup(Linear),
    /// Qwen, key `attn.c_attn`: all queries, all keys, all values.
    ByPart(Linear),
}

impl Projections {
    /// `(B, L, D)` to `(B, heads, L, d)`, and twice `(B, groups, L, d)`.
    fn forward(&self, x: Tensor<3>, heads: usize, groups: usize) -> [Tensor<4>; 3] {
        match self {
            Self::Separate(separate) => {
                let [query, key, value] = &**separate;
                [
                    split_heads(query.forward(x.clone()), heads),
                    split_heads(key.forward(x.clone()), groups),
                    split_heads(value.forward(x), groups),
                ]
            }
            Self::ByGroup(fused) => {
                let per_group = heads / groups;
                let joined = split_heads(fused.forward(x), heads + 2 * groups);
                let [batch, all, length, head_dim] = joined.dims();
                let joined = joined.reshape([batch, groups, all / groups, length, head_dim]);
                let part = |start, count| {
                    let part = joined.clone().narrow(2, start, count);
                    part.reshape([batch, groups * count, length, head_dim])
                };
                [
                    part(0, per_group),
                    part(per_group, 1),
                    part(per_group + 1, 1),
                ]
            }
            Self::ByPart(fused) => {
                let joined = split_heads(fused.forward(x), heads + 2 * groups);
                let part = |start, count| joined.clone().narrow(1, start, count);
                [
                    part(0, heads),
                    part(heads, groups),
                    part(heads + groups, groups),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nn::TensorSource, random::SplitMix64};

    /// Values that depend on the key alone; those of Qwen's fused layers are the
    /// ones of Qwen2's separate layers, one after the other.
    struct Drawn;

    impl TensorSource for Drawn {
        fn tensor(
            &self,
            key: &str,
            shape: &[usize],
            _: &'static str,
        ) -> Result<Tensor<1>, WeightsError> {
            let names = [
                ("transformer.wte", "model.embed_tokens"),
                ("transformer.h", "model.layers"),
                ("transformer.ln_f", "model.norm"),
                ("ln_1", "input_layernorm"),
                ("ln_2", "post_attention_layernorm"),
                ("attn.c_proj", "self_attn.o_proj"),
                ("mlp.w1", "mlp.up_proj"),
                ("mlp.w2", "mlp.gate_proj"),
                ("mlp.c_proj", "mlp.down_proj"),
            ];
            let key = names
                .iter()
                .fold(key.to_owned(), |key, (old, new)| key.replace(old, new));
            let parts = if key.contains("c_attn") {
                ["q", "k", "v"]
                    .map(|part| key.replace("attn.c_attn", &format!("self_attn.{part}_proj")))
                    .to_vec()
            } else {
                vec![key]
            };
            let each = shape.iter().product::<usize>() / parts.len();
            let values = parts.iter().flat_map(|key| {
                let mut random = SplitMix64::named(key, 0);
                (0..each).map(move |_| random.uniform() as f32 - 0.5)
            });
            Ok(Tensor::from_floats(
                &values.collect::<Vec<f32>>()[..],
                &Device::flex(),
            ))
        }

        fn device(&self) -> Device {
            Device::flex()
        }
    }

    fn model(family: LanguageFamily) -> Result<LanguageModel, WeightsError> {
        let config = LanguageConfig {
            family,
            vocabulary: 11,
            width: 16,
            inner: 24,
            layers: 2,
            heads: 2,
            key_value_heads: 2,
            epsilon: 1e-6,
            rope_theta: 1e4,
            max_positions: 64,
        };
        LanguageModel::load(&Tensors::root(&Drawn), &config)
    }

    fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-5, "{a}, expected {b}");
        }
    }

    fn read(model: &LanguageModel, ids: &[u32]) -> Tensor<3> {
        let positions: Vec<usize> = (0..ids.len()).collect();
        let mask = causal_mask(ids.len(), &Device::flex());
        model.forward(model.embed(ids), &positions, &mask, None).0
    }

    #[test]
    fn qwen_is_qwen2_under_other_names() -> Result<(), WeightsError> {
        let [one, two] = [LanguageFamily::Qwen, LanguageFamily::Qwen2].map(model);
        let logits = |model: LanguageModel| {
            let states = read(&model, &[3, 1, 4, 1, 5]);
            values(model.logits(states.squeeze_dim(0)))
        };
        assert_close(&logits(one?), &logits(two?));
        Ok(())
    }

    /// Two continuations of the same beginning, packed and in two passes.
    #[test]
    fn continuations_do_not_see_each_other() -> Result<(), WeightsError> {
        let model = model(LanguageFamily::Llama)?;
        let device = Device::flex();
        let mask = packed_mask(0, &[0; 3], 0..3, &device);
        let (_, seen) = model.extend(
            model.embed(&[3, 1, 4]),
            &[0, 1, 2],
            &mask,
            KeyValues::default(),
        );
        assert_eq!(seen.length(), 3);
        // Tokens of the first and the second continuation, interleaved.
        let owners = [0, 0, 1, 1, 0];
        let mask = packed_mask(3, &owners[..3], 0..3, &device);
        let (_, seen) = model.extend(model.embed(&[1, 5, 9]), &[3, 4, 3], &mask, seen);
        let mask = packed_mask(3, &owners, 3..5, &device);
        let (states, seen) = model.extend(model.embed(&[2, 6]), &[4, 5], &mask, seen);
        assert_eq!(seen.length(), 8);
        let last = |ids: &[u32]| {
            let states = read(&model, ids);
            values(states.narrow(1, ids.len() - 1, 1))
        };
        assert_close(
            &values(states.clone().narrow(1, 0, 1)),
            &last(&[3, 1, 4, 9, 2]),
        );
        assert_close(&values(states.narrow(1, 1, 1)), &last(&[3, 1, 4, 1, 5, 6]));
        Ok(())
    }
}
