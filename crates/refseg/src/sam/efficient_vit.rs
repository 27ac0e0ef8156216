//! EfficientViT-SAM's image encoder: convolutions, then linear attention, then a
//! neck that joins the last stages.
//!
//! Papers: EfficientViT, arXiv 2205.14756; EfficientViT-SAM, arXiv 2402.05008.
//! Reference: `EfficientViTSamImageEncoder.forward`. Differs: batch norms are
//! part of the convolutions before them; the quadratic form of attention, which
//! the reference takes for maps of at most 32 cells, does not exist here;
//! returns vectors in reading order, not a map.

use burn::tensor::{Device, Tensor, TensorData, activation};

use super::{
    Watch,
    config::{EfficientVitConfig, NeckConfig, StageKind},
};
use crate::{
    nn::{Conv2d, ConvShape, LayerNorm, Tensors, gelu_tanh},
    weights::WeightsError,
};

/// The image encoder of EfficientViT-SAM.
#[derive(Debug, Clone)]
pub struct EfficientVitEncoder {
    /// Key `backbone.stages.0.op_list.0`: 3 → C, stride 2.
    stem: Conv2d,
    /// Keys `backbone.stages.{s}.op_list.{i}`, without the stem.
    stages: Vec<Vec<Block>>,
    /// Key `neck`.
    neck: Neck,
    /// Key `norm`: over channels.
    norm: LayerNorm,
}

impl EfficientVitEncoder {
    /// Reads the encoder; `tensors` is at `image_encoder`.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the config implies.
    pub fn load(tensors: &Tensors<'_>, config: &EfficientVitConfig) -> Result<Self, WeightsError> {
        let stages = tensors.at("backbone.stages");
        let stage = |s: usize| {
            let blocks = 0..=config.depths[s];
            let block = |i| Block::load(&stages.at(s).at("op_list").at(i), config, s, i == 0);
            // The first block of the first stage is the stem.
            blocks
                .skip(usize::from(s == 0))
                .map(block)
                .collect::<Result<Vec<Block>, _>>()
        };
        Ok(Self {
            stem: normed(
                &stages.at("0.op_list.0"),
                ConvShape::new(3, config.widths[0], 3).strided(2),
                config.epsilon,
            )?,
            stages: (0..config.widths.len())
                .map(stage)
                .collect::<Result<_, _>>()?,
            neck: Neck::load(&tensors.at("neck"), config)?,
            norm: LayerNorm::load(
                &tensors.at("norm"),
                config.neck.outputs,
                config.epsilon,
                "image_encoder.neck.out_dim",
            )?,
        })
    }

    /// The image embedding.
    ///
    /// `watch` is shown what leaves each stage, and each step of the neck.
    ///
    /// # Shapes
    /// - `pixels`: `(B, 3, S, S)`, normalised
    /// - returns `(B, G², D)`
    pub fn forward(&self, pixels: Tensor<4>, watch: Watch<'_, 4>) -> Tensor<3> {
        let mut x = gelu_tanh(self.stem.forward(pixels));
        let mut outputs = Vec::with_capacity(self.stages.len());
        for (i, stage) in self.stages.iter().enumerate() {
            x = stage.iter().fold(x, |x, block| block.forward(x));
            watch(&format!("stage{i}"), &x);
            outputs.push(x.clone());
        }
        let x = self.neck.forward(&outputs, watch);
        let [batch, width, rows, columns] = x.dims();
        let x = x.reshape([batch, width, rows * columns]).swap_dims(1, 2);
        self.norm.forward(x)
    }
}

/// A block of a stage.
#[derive(Debug, Clone)]
enum Block {
    /// The first of a stage: halves the map, and adds nothing to it.
    Halving(Branch),
    /// Adds to the map.
    Residual(Branch),
    /// Adds what attention sees, then what a convolution sees.
    Attention(Box<LinearAttention>, Branch),
}

impl Block {
    fn load(
        tensors: &Tensors<'_>,
        config: &EfficientVitConfig,
        stage: usize,
        is_first: bool,
    ) -> Result<Self, WeightsError> {
        let (kind, width) = (config.kinds[stage], config.widths[stage]);
        let (expansion, epsilon) = (config.expansions[stage], config.epsilon);
        if is_first {
            // The stem is the first block of stage 0, so there is a stage before.
            let before = config.widths[stage - 1];
            let sizes = [before, 4 * expansion * before, width];
            let main = tensors.at("main");
            return Ok(Self::Halving(match kind {
                StageKind::Fused => Branch::fused(&main, sizes, 2, epsilon)?,
                _ => Branch::inverted(&main, sizes, 2, epsilon)?,
            }));
        }
        let sizes = [width, expansion * width, width];
        Ok(match kind {
            StageKind::Res => Self::Residual(Branch::res(&tensors.at("main"), sizes, epsilon)?),
            StageKind::Fused => {
                Self::Residual(Branch::fused(&tensors.at("main"), sizes, 1, epsilon)?)
            }
            StageKind::Inverted => {
                Self::Residual(Branch::inverted(&tensors.at("main"), sizes, 1, epsilon)?)
            }
            StageKind::Attention => Self::Attention(
                Box::new(LinearAttention::load(
                    &tensors.at("context_module.main"),
                    config,
                    width,
                )?),
                Branch::inverted(&tensors.at("local_module.main"), sizes, 1, epsilon)?,
            ),
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Halving(branch) => branch.forward(x),
            Self::Residual(branch) => x.clone() + branch.forward(x),
            Self::Attention(attention, branch) => {
                let x = x.clone() + attention.forward(x);
                x.clone() + branch.forward(x)
            }
        }
    }
}

/// Convolutions with GELU between them, in the tanh form that this encoder was trained with.
#[derive(Debug, Clone)]
struct Branch(Vec<Conv2d>);

impl Branch {
    /// Keys `conv1` and `conv2`: 3×3 each.
    fn res(
        tensors: &Tensors<'_>,
        [inputs, middle, outputs]: [usize; 3],
        epsilon: f64,
    ) -> Result<Self, WeightsError> {
        Ok(Self(vec![
            normed(
                &tensors.at("conv1"),
                ConvShape::new(inputs, middle, 3),
                epsilon,
            )?,
            normed(
                &tensors.at("conv2"),
                ConvShape::new(middle, outputs, 3),
                epsilon,
            )?,
        ]))
    }

    /// Keys `spatial_conv`: 3×3, and `point_conv`: 1×1.
    fn fused(
        tensors: &Tensors<'_>,
        [inputs, middle, outputs]: [usize; 3],
        stride: usize,
        epsilon: f64,
    ) -> Result<Self, WeightsError> {
        let spatial = ConvShape::new(inputs, middle, 3).strided(stride);
        let point = ConvShape::new(middle, outputs, 1);
        Ok(Self(vec![
            normed(&tensors.at("spatial_conv"), spatial, epsilon)?,
            normed(&tensors.at("point_conv"), point, epsilon)?,
        ]))
    }

    /// Keys `inverted_conv`: 1×1, `depth_conv`: depthwise 3×3, both with a bias and without norm, and
    /// `point_conv`: 1×1.
    fn inverted(
        tensors: &Tensors<'_>,
        [inputs, middle, outputs]: [usize; 3],
        stride: usize,
        epsilon: f64,
    ) -> Result<Self, WeightsError> {
        let widen = ConvShape::new(inputs, middle, 1);
        let depthwise = ConvShape::depthwise(middle, 3).strided(stride);
        let point = ConvShape::new(middle, outputs, 1);
        Ok(Self(vec![
            Conv2d::load(&tensors.at("inverted_conv.conv"), widen, WIDTHS)?,
            Conv2d::load(&tensors.at("depth_conv.conv"), depthwise, WIDTHS)?,
            normed(&tensors.at("point_conv"), point, epsilon)?,
        ]))
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut convolutions = self.0.iter();
        let Some(first) = convolutions.next() else {
            return x;
        };
        convolutions.fold(first.forward(x), |x, next| next.forward(gelu_tanh(x)))
    }
}

/// Attention whose cost grows with the number of cells, not its square: ReLU in place of the softmax.
///
/// Half of its heads see single cells, the other half aggregates of neighbours.
#[derive(Debug, Clone)]
struct LinearAttention {
    /// Key `qkv.conv`: 1×1, C → 3C; for each head its queries, keys and values.
    qkv: Conv2d,
    /// Key `aggreg.0.0`: depthwise.
    neighbours: Conv2d,
    /// Key `aggreg.0.1`: 1×1, each head's queries, keys and values on their own.
    mix: Conv2d,
    /// Key `proj`: 1×1, 2C → C.
    proj: Conv2d,
    head_dim: usize,
}

/// Keeps the quotient finite where no key agrees with a query: `eps` of `LiteMLA`.
const QUOTIENT_EPSILON: f64 = 1e-15;

impl LinearAttention {
    fn load(
        tensors: &Tensors<'_>,
        config: &EfficientVitConfig,
        width: usize,
    ) -> Result<Self, WeightsError> {
        let head_dim = config.head_dim;
        let wide = 3 * width;
        let neighbours = ConvShape::depthwise(wide, config.aggregation);
        let mix = ConvShape::new(wide, wide, 1).grouped(wide / head_dim);
        let plain =
            |name: &str, shape, field| Conv2d::load_without_bias(&tensors.at(name), shape, field);
        Ok(Self {
            qkv: plain("qkv.conv", ConvShape::new(width, wide, 1), WIDTHS)?,
            neighbours: plain("aggreg.0.0", neighbours, "image_encoder.lite_mla_scale")?,
            mix: plain("aggreg.0.1", mix, "image_encoder.qkv_dim")?,
            proj: normed(
                &tensors.at("proj"),
                ConvShape::new(2 * width, width, 1),
                config.epsilon,
            )?,
            head_dim,
        })
    }

    /// `(B, C, h, w)` to `(B, C, h, w)`.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let qkv = self.qkv.forward(x);
        let aggregated = self.mix.forward(self.neighbours.forward(qkv.clone()));
        let [batch, wide, height, width] = qkv.dims();
        let (d, cells) = (self.head_dim, height * width);
        let heads = 2 * wide / (3 * d);
        let qkv = Tensor::cat(vec![qkv, aggregated], 1).reshape([batch, heads, 3 * d, cells]);
        let part = |i: usize| qkv.clone().narrow(2, i * d, d); // (B, 2H, d, hw)
        let (query, key) = (activation::relu(part(0)), activation::relu(part(1)));
        // A row of ones among the values gives the sum of weights.
        let ones = Tensor::ones([batch, heads, 1, cells], &query.device());
        let value = Tensor::cat(vec![part(2), ones], 2);
        let memory = value.matmul(key.transpose()); // (B, 2H, d + 1, d)
        let seen = memory.matmul(query); // (B, 2H, d + 1, hw)
        let weights = seen.clone().narrow(2, d, 1) + QUOTIENT_EPSILON;
        let seen = seen.narrow(2, 0, d) / weights;
        self.proj
            .forward(seen.reshape([batch, heads * d, height, width]))
    }
}

/// Joins the last stages at the size of the image embedding.
#[derive(Debug, Clone)]
struct Neck {
    /// Keys `input_ops.{i}.op_list.0`: the stage, a 1×1 convolution, and what resizes its map.
    inputs: Vec<(usize, Conv2d, Resize)>,
    /// Keys `middle.op_list.{i}.main`.
    middle: Vec<Branch>,
    /// Key `output_ops.0.op_list.0.conv`: 1×1.
    output: Conv2d,
}

impl Neck {
    fn load(tensors: &Tensors<'_>, config: &EfficientVitConfig) -> Result<Self, WeightsError> {
        let NeckConfig {
            stages,
            width,
            depth,
            expansion,
            outputs,
            grid,
        } = &config.neck;
        let (width, outputs, epsilon) = (*width, *outputs, config.epsilon);
        let device = tensors.device();
        let input = |(i, &stage): (usize, &usize)| {
            let shape = ConvShape::new(config.widths[stage], width, 1);
            let tensors = tensors.at("input_ops").at(i).at("op_list.0");
            // Every stage, the first included, halves its map.
            let side = config.image_size >> (stage + 1);
            let resize = Resize::new(side, *grid, &device);
            Ok::<_, WeightsError>((stage, normed(&tensors, shape, epsilon)?, resize))
        };
        let branch = |i: usize| {
            let tensors = tensors.at("middle.op_list").at(i).at("main");
            Branch::fused(&tensors, [width, expansion * width, width], 1, epsilon)
        };
        Ok(Self {
            inputs: stages
                .iter()
                .enumerate()
                .map(input)
                .collect::<Result<_, _>>()?,
            middle: (0..*depth).map(branch).collect::<Result<_, _>>()?,
            output: Conv2d::load(
                &tensors.at("output_ops.0.op_list.0.conv"),
                ConvShape::new(width, outputs, 1),
                "image_encoder.neck.out_dim",
            )?,
        })
    }

    /// What the stages gave, to `(B, D, G, G)`.
    fn forward(&self, stages: &[Tensor<4>], watch: Watch<'_, 4>) -> Tensor<4> {
        let mut joined: Option<Tensor<4>> = None;
        for (i, (stage, narrow, resize)) in self.inputs.iter().enumerate() {
            let x = resize.forward(narrow.forward(stages[*stage].clone()));
            watch(&format!("neck_input{i}"), &x);
            joined = Some(match joined {
                Some(sum) => sum + x,
                None => x,
            });
        }
        let joined = joined.expect("a checked config joins at least one stage");
        let middle = self.middle.iter();
        let x = middle.fold(joined, |x, branch| x.clone() + branch.forward(x));
        watch("neck_middle", &x);
        let x = self.output.forward(x);
        watch("neck_out", &x);
        x
    }
}

/// Bicubic resizing of square maps, as two matrix products; `None` where nothing is to be done.
#[derive(Debug, Clone)]
struct Resize(Option<Tensor<2>>);

impl Resize {
    fn new(from: usize, to: usize, device: &Device) -> Self {
        if from == to {
            return Self(None);
        }
        let weights = TensorData::new(bicubic_weights(from, to), [to, from]);
        Self(Some(Tensor::from_data(weights, device)))
    }

    /// `(B, C, from, from)` to `(B, C, to, to)`.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            None => x,
            Some(weights) => {
                let rows: Tensor<4> = weights.clone().unsqueeze();
                let columns = rows.clone().transpose();
                rows.matmul(x).matmul(columns)
            }
        }
    }
}

/// How much each of `from` values counts in each of `to`: PyTorch's bicubic `interpolate` with
/// `align_corners=False`, row by row.
fn bicubic_weights(from: usize, to: usize) -> Vec<f32> {
    /// Keys' cubic with PyTorch's a.
    const A: f64 = -0.75;
    let kernel = |t: f64| {
        let t = t.abs();
        if t <= 1.0 {
            ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
        } else if t < 2.0 {
            ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A
        } else {
            0.0
        }
    };
    let mut weights = vec![0.0; to * from];
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let at = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let first = at.floor() as isize - 1;
        for tap in first..first + 4 {
            // Beyond the border its value goes on.
            let inside = tap.clamp(0, from as isize - 1) as usize;
            row[inside] += kernel(at - tap as f64) as f32;
        }
    }
    weights
}

/// The field that most sizes come from.
const WIDTHS: &str = "image_encoder.width_list";

/// A convolution `conv` without bias and the batch norm `norm` behind it.
fn normed(tensors: &Tensors<'_>, shape: ConvShape, epsilon: f64) -> Result<Conv2d, WeightsError> {
    let (convolution, norm) = (tensors.at("conv"), tensors.at("norm"));
    Conv2d::load_with_batch_norm(&convolution, &norm, shape, epsilon, WIDTHS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: the kernel is 0.878906 at 1/4, 0.261719 at 3/4, −0.105469 at 5/4 and −0.035156 at 7/4.
    #[test]
    fn bicubic_weights_are_those_of_the_kernel_at_each_distance() {
        let weights = bicubic_weights(4, 8);
        let inside = [-0.105_468_75, 0.878_906_25, 0.261_718_75, -0.035_156_25];
        assert_eq!(weights[3 * 4..4 * 4], inside);
        // Two of the four values lie beyond the border, where the first goes on.
        let border = [1.0 + 0.105_468_75, -0.105_468_75, 0.0, 0.0];
        assert_eq!(weights[..4], border);
    }
}
