//! What is computed when nothing is learned: products with packed weights, attention in one pass, norms, turns by
//! positions, and maps seen between their cells.
//!
//! The kernels themselves are [`refseg_kernels`]; here they meet the framework's tensors.

use std::sync::Arc;

use burn::{
    backend::{
        Backend, Dispatch, Flex, backend_extension, ops::FloatTensorOps, tensor::FloatTensor,
    },
    tensor::{Tensor, TensorData},
};
use refseg_kernels::{
    Activation, AttentionMask, AttentionShape, Epilogue, Heads, Packed, Precision,
};

use super::{
    kernels::{contiguous, floats, norm_of},
    profile::{Cost, Kind, Work, watched},
};

/// A weight and a bias, packed.
#[derive(Debug)]
pub(super) struct PackedLinear {
    weight: Packed,
    bias: Option<Vec<f32>>,
}

impl PackedLinear {
    /// An `(out, in)` weight and an `(out)` bias.
    pub(super) fn new(weight: Packed, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight,
            bias: bias.map(values),
        }
    }

    /// The same of a weight that is yet to be packed.
    pub(super) fn pack(weight: Tensor<2>, bias: Option<Tensor<1>>, precision: Precision) -> Self {
        let [outputs, inputs] = weight.dims();
        let weight = Packed::new(&values(weight), outputs, inputs, precision);
        Self::new(weight, bias)
    }

    fn epilogue(&self, activation: Activation) -> Epilogue<'_> {
        Epilogue {
            bias: self.bias.as_deref(),
            activation,
            ..Epilogue::default()
        }
    }

    fn multiply(&self, x: &FloatTensor<Flex>, epilogue: &Epilogue<'_>) -> FloatTensor<Flex> {
        let x = contiguous(x);
        let mut shape = x.layout().shape().to_vec();
        let rows = shape.iter().rev().skip(1).product::<usize>();
        if let Some(width) = shape.last_mut() {
            *width = self.weight.outputs();
        }
        let work = || {
            product(
                Kind::Product(self.weight.precision()),
                rows,
                &[&self.weight],
            )
        };
        let out = watched(work, || self.weight.product(floats(&x), rows, epilogue));
        Flex::float_from_data(TensorData::new(out, shape), &Default::default())
    }
}

/// A convolution with a kernel of odd side, a stride of one and zeros around the map: a product for each cell of the
/// kernel, with the map moved by as much.
#[derive(Debug)]
pub(super) struct PackedConvolution {
    /// In reading order.
    cells: Vec<Packed>,
    side: usize,
    bias: Option<Vec<f32>>,
}

impl PackedConvolution {
    /// Packs an `(out, in, side, side)` kernel and an `(out)` bias.
    pub(super) fn new(kernel: Tensor<4>, bias: Option<Tensor<1>>, precision: Precision) -> Self {
        let [outputs, inputs, side, _] = kernel.dims();
        let cells = values(kernel.permute([2, 3, 0, 1]));
        let cells = cells.chunks_exact(outputs * inputs);
        Self {
            cells: cells
                .map(|cell| Packed::new(cell, outputs, inputs, precision))
                .collect(),
            side,
            bias: bias.map(values),
        }
    }

    /// `(h, w, in)` to `(h, w, out)`, appended to `out`.
    fn convolve(&self, map: &[f32], [height, width]: [usize; 2], out: &mut Vec<f32>) {
        let (inputs, outputs) = (self.cells[0].inputs(), self.cells[0].outputs());
        let (padding, wide) = (self.side / 2, width + 2 * (self.side / 2));
        // Every cell of the kernel sees the padded map from its own start on, so all read one copy.
        let mut padded = vec![0.0; ((height + 2 * padding) * wide + 2 * padding) * inputs];
        for (row, values) in map.chunks_exact(width * inputs).enumerate() {
            let start = ((row + padding) * wide + padding) * inputs;
            padded[start..][..values.len()].copy_from_slice(values);
        }
        let rows = height * wide;
        let (mut sums, mut next) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
        for (i, cell) in self.cells.iter().enumerate() {
            let start = (i / self.side * wide + i % self.side) * inputs;
            let epilogue = match i {
                0 => Epilogue {
                    bias: self.bias.as_deref(),
                    ..Epilogue::default()
                },
                _ => Epilogue {
                    residual: Some(&sums),
                    ..Epilogue::default()
                },
            };
            cell.multiply(&padded[start..][..rows * inputs], &epilogue, &mut next);
            std::mem::swap(&mut sums, &mut next);
        }
        for row in sums.chunks_exact(wide * outputs) {
            out.extend_from_slice(&row[..width * outputs]);
        }
    }
}

/// A convolution, `(B, h, w, in)` to `(B, h, w, out)`.
pub(super) fn convolution(x: Tensor<4>, layer: &Arc<PackedConvolution>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Inference>::packed_convolution(
        x.into_dispatch(),
        Arc::clone(layer),
    ))
}

/// `activation(x · Wᵀ + b)`.
pub(super) fn linear<const R: usize>(
    x: Tensor<R>,
    layer: &Arc<PackedLinear>,
    activation: Activation,
) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Inference>::packed_linear(
        x.into_dispatch(),
        Arc::clone(layer),
        activation,
    ))
}

/// `activation(x · Wᵀ + b) · times`.
pub(super) fn gated_linear<const R: usize>(
    x: Tensor<R>,
    times: Tensor<R>,
    layer: &Arc<PackedLinear>,
    activation: Activation,
) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Inference>::packed_gated_linear(
        x.into_dispatch(),
        times.into_dispatch(),
        Arc::clone(layer),
        activation,
    ))
}

/// `residual + x · Wᵀ + b`.
pub(super) fn added_linear<const R: usize>(
    x: Tensor<R>,
    residual: Tensor<R>,
    layer: &Arc<PackedLinear>,
) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Inference>::packed_added_linear(
        x.into_dispatch(),
        residual.into_dispatch(),
        Arc::clone(layer),
    ))
}

/// `residual + scale · (x · Wᵀ + b)`.
pub(super) fn scaled_linear<const R: usize>(
    x: Tensor<R>,
    residual: Tensor<R>,
    scale: Tensor<1>,
    layer: &Arc<PackedLinear>,
) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Inference>::packed_scaled_linear(
        x.into_dispatch(),
        residual.into_dispatch(),
        scale.into_dispatch(),
        Arc::clone(layer),
    ))
}

/// [`super::DotProductAttention`], whose scores are never all in memory.
pub(super) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&Tensor<4>>,
    precision: Precision,
) -> Tensor<3> {
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(match mask.cloned().map(Tensor::into_dispatch) {
        None => <Dispatch as Inference>::attention(q, k, v, precision),
        Some(mask) => <Dispatch as Inference>::masked_attention(q, k, v, mask, precision),
    })
}

/// A layer norm over the last dimension.
pub(super) fn layer_norm<const R: usize>(
    x: Tensor<R>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Inference>::layer_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        epsilon as f32,
    ))
}

/// Queries or keys, `(B, H, L, d)`, turned by angles whose `cos` and `sin` are `(L, d/2)`.
pub(super) fn rope(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Inference>::rope(
        x.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
    ))
}

/// Maps, `(B, G, h·w, d)`, seen at points, `(B, G, P, 2)`, between their cells: `(B, P, G·d)`.
pub(super) fn sample(maps: Tensor<4>, size: [usize; 2], points: Tensor<4>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as Inference>::sample(
        maps.into_dispatch(),
        size,
        points.into_dispatch(),
    ))
}

/// Kernels without derivatives.
#[backend_extension(Flex)]
trait Inference: Backend {
    fn packed_linear(
        x: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
        activation: Activation,
    ) -> FloatTensor<Self>;
    fn packed_gated_linear(
        x: FloatTensor<Self>,
        times: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
        activation: Activation,
    ) -> FloatTensor<Self>;
    fn packed_added_linear(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
    ) -> FloatTensor<Self>;
    fn packed_scaled_linear(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
    ) -> FloatTensor<Self>;
    fn packed_convolution(x: FloatTensor<Self>, layer: Arc<PackedConvolution>)
    -> FloatTensor<Self>;
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
    fn masked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn sample(
        maps: FloatTensor<Self>,
        size: [usize; 2],
        points: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl Inference for Flex {
    fn packed_linear(
        x: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        layer.multiply(&x, &layer.epilogue(activation))
    }

    fn packed_gated_linear(
        x: FloatTensor<Self>,
        times: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let times = contiguous(&times);
        let epilogue = Epilogue {
            times: Some(floats(&times)),
            ..layer.epilogue(activation)
        };
        layer.multiply(&x, &epilogue)
    }

    fn packed_added_linear(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
    ) -> FloatTensor<Self> {
        let residual = contiguous(&residual);
        let epilogue = Epilogue {
            residual: Some(floats(&residual)),
            ..layer.epilogue(Activation::Identity)
        };
        layer.multiply(&x, &epilogue)
    }

    fn packed_scaled_linear(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        layer: Arc<PackedLinear>,
    ) -> FloatTensor<Self> {
        let (residual, scale) = (contiguous(&residual), contiguous(&scale));
        let epilogue = Epilogue {
            residual: Some(floats(&residual)),
            scale: Some(floats(&scale)),
            ..layer.epilogue(Activation::Identity)
        };
        layer.multiply(&x, &epilogue)
    }

    fn packed_convolution(
        x: FloatTensor<Self>,
        layer: Arc<PackedConvolution>,
    ) -> FloatTensor<Self> {
        let x = contiguous(&x);
        let [batch, height, width, inputs] = sizes(&x);
        let mut out = Vec::new();
        let cells: Vec<&Packed> = layer.cells.iter().collect();
        let kind = Kind::Convolution(cells[0].precision());
        let work = || product(kind, batch * height * width, &cells);
        watched(work, || {
            for map in floats(&x).chunks_exact(height * width * inputs) {
                layer.convolve(map, [height, width], &mut out);
            }
        });
        let outputs = out.len() / (batch * height * width);
        let shape = [batch, height, width, outputs];
        Flex::float_from_data(TensorData::new(out, shape), &Default::default())
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        attend(&q, &k, &v, None, precision)
    }

    fn masked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        attend(&q, &k, &v, Some(&mask), precision)
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        norm_of(&x, &weight, Some(&bias), epsilon, true)
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (x, cos, sin) = (with_rows_whole(&x), contiguous(&cos), contiguous(&sin));
        let [batch, heads, length, head_dim] = sizes(&x);
        let rows = batch * heads * length;
        let out = watched(
            || Work::elementwise(Kind::Rope, rows, head_dim, 2),
            || {
                refseg_kernels::rope(
                    heads_of(&x),
                    [batch, heads, length],
                    floats(&cos),
                    floats(&sin),
                )
            },
        );
        let shape = [batch, heads, length, head_dim];
        Flex::float_from_data(TensorData::new(out, shape), &Default::default())
    }

    fn sample(
        maps: FloatTensor<Self>,
        size: [usize; 2],
        points: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (maps, points) = (with_rows_whole(&maps), contiguous(&points));
        let ([batch, groups, _, channels], [_, _, count, _]) = (sizes(&maps), sizes(&points));
        let work = || Work::elementwise(Kind::Sample, batch * groups * count, channels, 2);
        let out = watched(work, || {
            refseg_kernels::sample(
                heads_of(&maps),
                [batch, groups],
                size,
                channels,
                floats(&points),
            )
        });
        let shape = [batch, count, groups * channels];
        Flex::float_from_data(TensorData::new(out, shape), &Default::default())
    }
}

fn attend(
    q: &FloatTensor<Flex>,
    k: &FloatTensor<Flex>,
    v: &FloatTensor<Flex>,
    mask: Option<&FloatTensor<Flex>>,
    precision: Precision,
) -> FloatTensor<Flex> {
    let ([batch, heads, queries, head_dim], [_, groups, keys, _]) = (sizes(q), sizes(k));
    let expected = [batch, groups, keys, head_dim];
    assert!(
        sizes(k) == expected && sizes(v) == expected,
        "keys are {:?} and values {:?}, but queries ask for {expected:?}",
        sizes(k),
        sizes(v)
    );
    let shape = AttentionShape {
        batch,
        heads,
        groups,
        queries,
        keys,
        head_dim,
    };
    let mask = mask.map(contiguous);
    let mask = mask.as_ref().map(|mask| {
        let [batch, heads, _, _] = sizes(mask);
        AttentionMask {
            values: floats(mask),
            batch,
            heads,
        }
    });
    let work = || {
        let work = Work {
            kind: Kind::Attention(precision),
            sizes: [queries, keys, heads * head_dim],
        };
        let numbers = 2 * batch * head_dim * (heads * queries + groups * keys);
        let cost = Cost {
            operations: (4 * batch * heads * queries * keys * head_dim) as f64,
            bytes: (4 * numbers) as f64,
        };
        (work, cost)
    };
    let [q, k, v] = [q, k, v].map(with_rows_whole);
    let out = watched(work, || {
        let [q, k, v] = [&q, &k, &v].map(heads_of);
        refseg_kernels::attention(q, k, v, shape, mask, precision)
    });
    let shape = [batch, queries, heads * head_dim];
    Flex::float_from_data(TensorData::new(out, shape), &Default::default())
}

/// The tensor, copied unless the numbers of each row stand side by side.
fn with_rows_whole(tensor: &FloatTensor<Flex>) -> FloatTensor<Flex> {
    let strides = tensor.layout().strides();
    if strides.last() == Some(&1) && strides.iter().all(|&stride| stride >= 0) {
        tensor.clone()
    } else {
        contiguous(tensor)
    }
}

/// A tensor of four dimensions, whose rows are whole, as the kernels see it.
fn heads_of(tensor: &FloatTensor<Flex>) -> Heads<'_> {
    let strides = tensor.layout().strides();
    Heads {
        values: &tensor.storage()[tensor.layout().start_offset()..],
        strides: std::array::from_fn(|i| strides[i] as usize),
    }
}

/// What products of `rows` rows with weights of one shape, summed up, cost at least.
fn product(kind: Kind, rows: usize, weights: &[&Packed]) -> (Work, Cost) {
    let (inputs, outputs) = (
        weights.iter().map(|weight| weight.inputs()).sum::<usize>(),
        weights[0].outputs(),
    );
    let work = Work {
        kind,
        sizes: [rows, inputs, outputs],
    };
    let packed: usize = weights.iter().map(|weight| weight.bytes()).sum();
    let cost = Cost {
        operations: (2 * rows * inputs * outputs) as f64,
        bytes: (packed + 4 * rows * (weights[0].inputs() + outputs)) as f64,
    };
    (work, cost)
}

fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
    let data = tensor.into_data();
    data.try_into_vec()
        .expect("weights are read as f32, on the CPU")
}

/// Sizes of a tensor of four dimensions.
fn sizes(tensor: &FloatTensor<Flex>) -> [usize; 4] {
    let shape = tensor.layout().shape();
    std::array::from_fn(|i| shape.get(i).copied().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};
    use refseg_kernels::InstructionSet;

    use super::*;
    use crate::{
        nn::{DotProductAttention, Linear, Tensors, tensors::Drawn},
        weights::WeightsError,
    };

    fn random<const R: usize>(shape: [usize; R]) -> Tensor<R> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    /// The largest gap, as a share of the largest value.
    fn gap<const R: usize>(found: Tensor<R>, expected: Tensor<R>) -> f32 {
        assert_eq!(found.dims(), expected.dims());
        let largest: f32 = expected.clone().abs().max().into_scalar();
        let gap: f32 = (found - expected).abs().max().into_scalar();
        gap / largest
    }

    /// Everything that a layer can be asked for, on rows that do not lie side by side in memory.
    #[test]
    fn a_packed_layer_gives_what_a_plain_one_gives() -> Result<(), WeightsError> {
        // Of the largest value: rounding of f32, of 8 bits of mantissa, and of 4095 and 127 steps.
        for (precision, most) in [
            (Precision::F32, 1e-6),
            (Precision::Bf16, 1e-2),
            (Precision::Int16, 1e-3),
            (Precision::Int8, 2e-2),
        ] {
            let layer = |source: &Drawn| Linear::load(&Tensors::root(source), [37, 21], "");
            let (packed, plain) = (layer(&Drawn::packed(precision))?, layer(&Drawn::PLAIN)?);
            let x = random([2, 37, 5]).swap_dims(1, 2);
            let (other, scale) = (random([5, 2, 21]).swap_dims(0, 1), random([21]));
            let ask = |layer: &Linear| {
                let activations = [
                    Activation::Identity,
                    Activation::Gelu,
                    Activation::GeluTanh,
                    Activation::QuickGelu,
                    Activation::Silu,
                    Activation::Relu,
                ];
                let mut all: Vec<_> = activations
                    .map(|activation| layer.forward_activated(x.clone(), activation))
                    .into();
                all.push(layer.forward_gated(x.clone(), Activation::Silu, other.clone()));
                all.push(layer.forward_added(x.clone(), other.clone()));
                all.push(layer.forward_scaled(x.clone(), &scale, other.clone()));
                all
            };
            for (found, expected) in ask(&packed).into_iter().zip(ask(&plain)) {
                let gap = gap(found, expected);
                assert!(gap < most, "{precision}: {gap}");
            }
        }
        Ok(())
    }

    #[test]
    fn attention_is_computed_in_the_precision_of_its_layers() {
        // More keys than one, since a single one is weighed by one whatever it is rounded to.
        let [q, k, v] = [1, 2, 3].map(|_| random([1, 2, 33, 16]));
        let ask = |source: &Drawn| {
            let attention = DotProductAttention::new(&Tensors::root(source));
            attention.forward(q.clone(), k.clone(), v.clone(), None)
        };
        let exact = ask(&Drawn::PLAIN);
        for precision in Precision::ALL {
            let found = ask(&Drawn::packed(precision));
            let rounds = InstructionSet::current().attention_products_at_once(precision) > 1;
            let gap = gap(found, exact.clone());
            assert!(
                if rounds {
                    gap > 0.0 && gap < 1e-2
                } else {
                    gap == 0.0
                },
                "{precision}: {gap}"
            );
        }
    }

    #[test]
    fn attention_gives_what_products_and_a_softmax_give() {
        let q = random([2, 5, 4, 8]).swap_dims(1, 2);
        let (k, v) = (random([2, 2, 7, 8]), random([2, 7, 2, 8]).swap_dims(1, 2));
        let hidden = |shape: [usize; 4]| {
            let mask: Tensor<4> = random(shape);
            let far = mask.clone().greater_elem(1.0);
            mask.mask_fill(far, f32::NEG_INFINITY)
        };
        let attention = DotProductAttention::default();
        for mask in [
            None,
            Some(hidden([1, 1, 5, 7])),
            Some(hidden([2, 1, 5, 7])),
            Some(hidden([1, 4, 5, 7])),
        ] {
            let found = attention.forward(q.clone(), k.clone(), v.clone(), mask.as_ref());
            let [q, k, v] = [&q, &k, &v].map(|x| x.clone().autodiff());
            let mask = mask.map(Tensor::autodiff);
            let expected = attention.forward(q, k, v, mask.as_ref()).inner();
            let gap = gap(found, expected);
            assert!(gap < 1e-6, "{gap}");
        }
    }
}
