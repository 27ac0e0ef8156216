//! Mask decoder: tokens of a prompt and cells of the picture look at each other,
//! then some tokens become masks and one says how good they are.
//!
//! Paper: Segment Anything, arXiv 2304.02643. Reference: `MaskDecoder.predict_masks`
//! and `TwoWayTransformer`. Differs: all masks are returned, choosing among them
//! is the caller's; transposed convolutions of stride 2 are linear maps from a
//! cell to its four parts.

use burn::tensor::Tensor;

use super::{Watch, config::DecoderConfig};
use crate::{
    nn::{Activation, DotProductAttention, LayerNorm, Linear, Tensors, gelu, split_heads},
    weights::WeightsError,
};

/// Turns embeddings of a picture and of prompts into mask logits.
#[derive(Debug, Clone)]
pub struct MaskDecoder {
    /// Keys `iou_token` and `mask_tokens`: `(1, 1 + M, D)`.
    own_tokens: Tensor<3>,
    /// Keys `transformer.layers.{i}`.
    layers: Vec<TwoWayLayer>,
    /// Key `transformer.final_attn_token_to_image`.
    last_attention: Attention,
    /// Key `transformer.norm_final_attn`.
    last_norm: LayerNorm,
    /// Key `output_upscaling.0`: D → D/4.
    upscale1: Upscaling,
    /// Key `output_upscaling.1`.
    upscale_norm: LayerNorm,
    /// Key `output_upscaling.3`: D/4 → D/8.
    upscale2: Upscaling,
    /// Keys `output_hypernetworks_mlps.{i}`: for each mask what to look for in its pixels.
    mask_heads: Vec<Mlp>,
    /// Key `iou_prediction_head`.
    iou_head: Mlp,
}

/// What the decoder says of each prompt.
#[derive(Debug, Clone)]
pub struct DecodedMasks {
    /// `(Q, M, 4·G, 4·G)`: the mask of an unambiguous prompt first, then those of an ambiguous one.
    pub logits: Tensor<4>,
    /// `(Q, M)`: estimates of each mask's IoU with the object.
    pub scores: Tensor<2>,
}

impl MaskDecoder {
    /// Reads the decoder; `tensors` is at `mask_decoder`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &DecoderConfig) -> Result<Self, WeightsError> {
        let width = config.width;
        let masks = config.multimasks + 1;
        let field = "mask_decoder.transformer_dim";
        let transformer = tensors.at("transformer");
        let own_tokens = vec![
            tensors.get("iou_token.weight", [1, width], field)?,
            tensors.get(
                "mask_tokens.weight",
                [masks, width],
                "mask_decoder.num_multimask_outputs",
            )?,
        ];
        let upscaling = tensors.at("output_upscaling");
        Ok(Self {
            own_tokens: Tensor::cat(own_tokens, 0).unsqueeze(),
            layers: (0..config.layers)
                .map(|i| TwoWayLayer::load(&transformer.at("layers").at(i), config))
                .collect::<Result<_, _>>()?,
            last_attention: Attention::load(
                &transformer.at("final_attn_token_to_image"),
                config,
                config.narrowing,
            )?,
            last_norm: LayerNorm::load(
                &transformer.at("norm_final_attn"),
                width,
                config.epsilon,
                field,
            )?,
            upscale1: Upscaling::load(&upscaling.at("0"), [width, width / 4])?,
            upscale_norm: LayerNorm::load(
                &upscaling.at("1"),
                width / 4,
                config.upscaling_epsilon,
                field,
            )?,
            upscale2: Upscaling::load(&upscaling.at("3"), [width / 4, width / 8])?,
            mask_heads: (0..masks)
                .map(|i| {
                    let tensors = tensors.at("output_hypernetworks_mlps").at(i);
                    Mlp::load(&tensors, &[width, width, width, width / 8], field)
                })
                .collect::<Result<_, _>>()?,
            iou_head: Mlp::load(
                &tensors.at("iou_prediction_head"),
                &iou_sizes(config, masks),
                "mask_decoder.iou_head_hidden_dim",
            )?,
        })
    }

    /// Decodes the masks of prompts about one picture.
    ///
    /// `watch` is shown the tokens after each layer and at the end, and the cells at the end.
    ///
    /// # Shapes
    /// - `image`: `(1, G², D)`, the image embedding
    /// - `image_positions`: `(1, G², D)`
    /// - `sparse`: `(Q, T, D)`
    /// - `dense`: `(Q, G², D)`, or anything that is the same for all of them, such as `(1, 1, D)`
    pub fn forward(
        &self,
        image: Tensor<3>,
        image_positions: &Tensor<3>,
        sparse: Tensor<3>,
        dense: Tensor<3>,
        watch: Watch<'_, 3>,
    ) -> DecodedMasks {
        let [count, _, width] = sparse.dims();
        let [_, own, _] = self.own_tokens.dims();
        let [_, cells, _] = image.dims();
        let prompt = Tensor::cat(
            vec![self.own_tokens.clone().expand([count, own, width]), sparse],
            1,
        ); // (Q, 1 + M + T, D)
        let mut tokens = prompt.clone();
        let mut image = (image + dense).expand([count, cells, width]);
        for (i, layer) in self.layers.iter().enumerate() {
            let is_first = i == 0;
            (tokens, image) = layer.forward(tokens, image, &prompt, image_positions, is_first);
            watch(&format!("tokens_layer{i}"), &tokens);
        }
        let seen = self.last_attention.forward(
            tokens.clone() + prompt,
            image.clone() + image_positions.clone(),
            image.clone(),
        );
        let tokens = self.last_norm.forward(tokens + seen);
        watch("tokens_out", &tokens);
        watch("image_tokens_out", &image);
        DecodedMasks {
            logits: self.draw(&tokens, image),
            scores: self.iou_head.forward(tokens.narrow(1, 0, 1)).squeeze_dim(1),
        }
    }

    /// Compares every pixel with what each mask looks for: `(Q, M, 4·G, 4·G)`.
    fn draw(&self, tokens: &Tensor<3>, image: Tensor<3>) -> Tensor<4> {
        let [count, cells, width] = image.dims();
        let grid = cells.isqrt();
        let x = self
            .upscale1
            .forward(image.reshape([count, grid, grid, width]));
        let x = gelu(self.upscale_norm.forward(x)); // (Q, 2·G, 2·G, D/4)
        let pixels = gelu(self.upscale2.forward(x)); // (Q, 4·G, 4·G, D/8)
        let [_, side, _, channels] = pixels.dims();
        let pixels = pixels.reshape([count, side * side, channels]);
        let heads = self.mask_heads.iter().enumerate();
        let wanted = heads.map(|(i, head)| head.forward(tokens.clone().narrow(1, 1 + i, 1)));
        let wanted = Tensor::cat(wanted.collect(), 1); // (Q, M, D/8)
        let [_, masks, _] = wanted.dims();
        wanted
            .matmul(pixels.transpose())
            .reshape([count, masks, side, side])
    }
}

/// Widths of the IoU head, from its input to its output.
fn iou_sizes(config: &DecoderConfig, masks: usize) -> Vec<usize> {
    let mut sizes = vec![config.iou_inner; config.iou_layers + 1];
    sizes[0] = config.width;
    sizes[config.iou_layers] = masks;
    sizes
}

/// Tokens attend to each other and to the picture, then the picture to them.
#[derive(Debug, Clone)]
struct TwoWayLayer {
    /// Key `self_attn`.
    self_attention: Attention,
    /// Key `norm1`.
    norm1: LayerNorm,
    /// Key `cross_attn_token_to_image`.
    token_to_image: Attention,
    /// Key `norm2`.
    norm2: LayerNorm,
    /// Key `mlp.lin1`.
    lin1: Linear,
    /// Key `mlp.lin2`.
    lin2: Linear,
    /// Key `norm3`.
    norm3: LayerNorm,
    /// Key `cross_attn_image_to_token`.
    image_to_token: Attention,
    /// Key `norm4`.
    norm4: LayerNorm,
}

impl TwoWayLayer {
    fn load(tensors: &Tensors<'_>, config: &DecoderConfig) -> Result<Self, WeightsError> {
        let field = "mask_decoder.transformer_dim";
        let inner = "mask_decoder.transformer_mlp_dim";
        let (width, narrowing) = (config.width, config.narrowing);
        let norm = |name: &str| LayerNorm::load(&tensors.at(name), width, config.epsilon, field);
        let attention =
            |name: &str, narrowing| Attention::load(&tensors.at(name), config, narrowing);
        Ok(Self {
            self_attention: attention("self_attn", 1)?,
            norm1: norm("norm1")?,
            token_to_image: attention("cross_attn_token_to_image", narrowing)?,
            norm2: norm("norm2")?,
            lin1: Linear::load(&tensors.at("mlp.lin1"), [width, config.inner], inner)?,
            lin2: Linear::load(&tensors.at("mlp.lin2"), [config.inner, width], inner)?,
            norm3: norm("norm3")?,
            image_to_token: attention("cross_attn_image_to_token", narrowing)?,
            norm4: norm("norm4")?,
        })
    }

    /// Returns tokens and cells; `prompt` serves as the tokens' positions.
    ///
    /// # Shapes
    /// - `tokens`, `prompt`: `(Q, L, D)`
    /// - `image`: `(Q, G², D)`, `image_positions`: `(1, G², D)`
    fn forward(
        &self,
        tokens: Tensor<3>,
        image: Tensor<3>,
        prompt: &Tensor<3>,
        image_positions: &Tensor<3>,
        is_first: bool,
    ) -> (Tensor<3>, Tensor<3>) {
        // At first the tokens are their own positions, and what they see replaces them.
        let tokens = if is_first {
            self.self_attention
                .forward(tokens.clone(), tokens.clone(), tokens)
        } else {
            let placed = tokens.clone() + prompt.clone();
            let seen = self
                .self_attention
                .forward(placed.clone(), placed, tokens.clone());
            tokens + seen
        };
        let tokens = self.norm1.forward(tokens);

        let placed_image = image.clone() + image_positions.clone();
        let placed = tokens.clone() + prompt.clone();
        let seen = self
            .token_to_image
            .forward(placed, placed_image.clone(), image.clone());
        let tokens = self.norm2.forward(tokens + seen);

        let inner = self
            .lin1
            .forward_activated(tokens.clone(), Activation::Relu);
        let tokens = self.norm3.forward(tokens + self.lin2.forward(inner));

        let placed = tokens.clone() + prompt.clone();
        let seen = self
            .image_to_token
            .forward(placed_image, placed, tokens.clone());
        (tokens, self.norm4.forward(image + seen))
    }
}

/// Multi-head attention that may be narrower inside.
#[derive(Debug, Clone)]
struct Attention {
    /// Key `q_proj`.
    query: Linear,
    /// Key `k_proj`.
    key: Linear,
    /// Key `v_proj`.
    value: Linear,
    /// Key `out_proj`.
    output: Linear,
    attention: DotProductAttention,
    heads: usize,
}

impl Attention {
    fn load(
        tensors: &Tensors<'_>,
        config: &DecoderConfig,
        narrowing: usize,
    ) -> Result<Self, WeightsError> {
        let (width, narrow) = (config.width, config.width / narrowing);
        let field = "mask_decoder.attention_downsample_rate";
        let linear = |name: &str, sizes| Linear::load(&tensors.at(name), sizes, field);
        Ok(Self {
            query: linear("q_proj", [width, narrow])?,
            key: linear("k_proj", [width, narrow])?,
            value: linear("v_proj", [width, narrow])?,
            output: linear("out_proj", [narrow, width])?,
            attention: DotProductAttention::new(tensors),
            heads: config.heads,
        })
    }

    /// `(Q, L, D)` onto keys and values `(Q, M, D)`.
    fn forward(&self, query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Tensor<3> {
        let query = split_heads(self.query.forward(query), self.heads);
        let key = split_heads(self.key.forward(key), self.heads);
        let value = split_heads(self.value.forward(value), self.heads);
        let seen = self.attention.forward(query, key, value, None);
        self.output.forward(seen)
    }
}

/// A transposed convolution with a kernel and a stride of 2: every cell becomes four.
#[derive(Debug, Clone)]
struct Upscaling(Linear);

impl Upscaling {
    fn load(tensors: &Tensors<'_>, [inputs, outputs]: [usize; 2]) -> Result<Self, WeightsError> {
        let field = "mask_decoder.transformer_dim";
        let kernel = tensors.get("weight", [inputs, outputs, 2, 2], field)?;
        let bias = tensors.get::<1>("bias", [outputs], field)?;
        // Rows of the linear map: row and column within the cell, then the channel.
        let kernel = kernel.permute([2, 3, 1, 0]).reshape([4 * outputs, inputs]);
        Ok(Self(Linear::new(
            tensors,
            kernel,
            Some(bias.repeat_dim(0, 4)),
        )))
    }

    /// `(Q, h, w, in)` to `(Q, 2h, 2w, out)`.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.0.forward(x);
        let [count, height, width, channels] = x.dims();
        x.reshape([count, height, width, 2, 2, channels / 4])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([count, 2 * height, 2 * width, channels / 4])
    }
}

/// Linear layers with ReLU between them.
#[derive(Debug, Clone)]
struct Mlp {
    /// Keys `layers.{i}`.
    layers: Vec<Linear>,
}

impl Mlp {
    fn load(
        tensors: &Tensors<'_>,
        sizes: &[usize],
        field: &'static str,
    ) -> Result<Self, WeightsError> {
        let layer = |(i, pair): (usize, &[usize])| {
            Linear::load(&tensors.at("layers").at(i), [pair[0], pair[1]], field)
        };
        let layers = sizes.windows(2).enumerate().map(layer);
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
        })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let last = self.layers.len() - 1;
        self.layers.iter().enumerate().fold(x, |x, (i, layer)| {
            let activation = if i < last {
                Activation::Relu
            } else {
                Activation::Identity
            };
            layer.forward_activated(x, activation)
        })
    }
}
