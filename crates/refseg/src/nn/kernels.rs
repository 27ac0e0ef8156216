//! Fused kernels that the framework lacks on the CPU, with their derivatives.
//!
//! The framework computes GELU one `erf` or `tanh` call at a time, and builds norms
//! and softmax from a dozen passes over memory once gradients are wanted. Here
//! each is one pass. Loops are plain Rust; `pulp` compiles them for every
//! instruction set and picks the widest one the machine has. The norm itself is
//! that of `refseg_kernels`, which computes it outside of training too.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        ops::FloatTensorOps,
        tensor::FloatTensor,
    },
    tensor::{Tensor, TensorData},
};
use rayon::prelude::*;
use refseg_kernels::{
    Norm, lanes,
    math::{exp, phi, phi_tanh},
    moments,
};

use super::profile::{Kind, Work, watched};

/// Exact GELU, `x · Φ(x)`.
pub(super) fn gelu<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Kernels>::gelu_of_form(x.into_dispatch(), true))
}

/// GELU with the tanh form of `Φ`.
pub(super) fn gelu_tanh<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Kernels>::gelu_of_form(
        x.into_dispatch(),
        false,
    ))
}

/// Softmax over the last dimension.
pub(super) fn softmax<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as Kernels>::softmax_last(x.into_dispatch()))
}

/// `(x − mean) / √(variance + ε) · weight` over the last dimension.
pub(super) fn layer_norm<const R: usize>(
    x: Tensor<R>,
    weight: Tensor<1>,
    epsilon: f64,
) -> Tensor<R> {
    norm(x, weight, epsilon, true)
}

/// `x / √(mean square + ε) · weight` over the last dimension.
pub(super) fn rms_norm<const R: usize>(x: Tensor<R>, weight: Tensor<1>, epsilon: f64) -> Tensor<R> {
    norm(x, weight, epsilon, false)
}

fn norm<const R: usize>(x: Tensor<R>, weight: Tensor<1>, epsilon: f64, centred: bool) -> Tensor<R> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::norm_last(
        x,
        weight,
        epsilon as f32,
        centred,
    ))
}

/// The kernels and the backward passes of each.
#[backend_extension(Flex, Autodiff)]
pub(super) trait Kernels: Backend {
    fn gelu_of_form(x: FloatTensor<Self>, exact: bool) -> FloatTensor<Self>;
    fn gelu_of_form_backward(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        exact: bool,
    ) -> FloatTensor<Self>;
    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn softmax_last_backward(
        y: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn norm_last(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        centred: bool,
    ) -> FloatTensor<Self>;
    fn norm_last_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
        centred: bool,
    ) -> FloatTensor<Self>;
    fn norm_weight_backward(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
        centred: bool,
    ) -> FloatTensor<Self>;
}

impl Kernels for Flex {
    fn gelu_of_form(x: FloatTensor<Self>, exact: bool) -> FloatTensor<Self> {
        map_rows(Kind::Elementwise, &[&x], |[x], out| {
            let pairs = out.iter_mut().zip(x);
            vectorised(|| {
                if exact {
                    pairs.for_each(|(out, &x)| *out = x * phi(x).0);
                } else {
                    pairs.for_each(|(out, &x)| *out = x * phi_tanh(x).0);
                }
            });
        })
    }

    fn gelu_of_form_backward(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        exact: bool,
    ) -> FloatTensor<Self> {
        let slope = |x: f32, (cumulative, density): (f32, f32)| cumulative + x * density;
        map_rows(Kind::Elementwise, &[&x, &gradient], |[x, gradient], out| {
            let all = out.iter_mut().zip(x).zip(gradient);
            vectorised(|| {
                if exact {
                    all.for_each(|((out, &x), &gradient)| *out = gradient * slope(x, phi(x)));
                } else {
                    all.for_each(|((out, &x), &gradient)| *out = gradient * slope(x, phi_tanh(x)));
                }
            });
        })
    }

    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        map_rows(Kind::Elementwise, &[&x], |[x], out| {
            vectorised(|| {
                let max = lanes(
                    x,
                    f32::NEG_INFINITY,
                    |max, x| if x > max { x } else { max },
                    f32::max,
                );
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = exp(x - max);
                }
                let sum = lanes(out, 0.0, |sum, x| sum + x, |a, b| a + b);
                let scale = 1.0 / sum;
                out.iter_mut().for_each(|out| *out *= scale);
            });
        })
    }

    fn softmax_last_backward(
        y: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        map_rows(Kind::Elementwise, &[&y, &gradient], |[y, gradient], out| {
            vectorised(|| {
                let dot = dot(y, gradient);
                for ((out, &y), &gradient) in out.iter_mut().zip(y).zip(gradient) {
                    *out = y * (gradient - dot);
                }
            });
        })
    }

    fn norm_last(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        centred: bool,
    ) -> FloatTensor<Self> {
        norm_of(&x, &weight, None, epsilon, centred)
    }

    fn norm_last_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
        centred: bool,
    ) -> FloatTensor<Self> {
        let weight = contiguous(&weight);
        let weight = floats(&weight);
        map_rows(Kind::Norm, &[&x, &gradient], |[x, gradient], out| {
            vectorised(|| {
                let (mean, scale) = moments(x, epsilon, centred);
                let share = 1.0 / x.len() as f32;
                for ((out, &gradient), &weight) in out.iter_mut().zip(gradient).zip(weight) {
                    *out = gradient * weight;
                }
                let flow = if centred {
                    lanes(out, 0.0, |sum, x| sum + x, |a, b| a + b) * share
                } else {
                    0.0
                };
                // Σ g·x̂ = (Σ g·x − mean·Σ g)·scale.
                let along = (dot(out, x) - mean * flow * x.len() as f32) * scale * share;
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = scale * (*out - flow - (x - mean) * scale * along);
                }
            });
        })
    }

    fn norm_weight_backward(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
        centred: bool,
    ) -> FloatTensor<Self> {
        let (x, gradient) = (contiguous(&x), contiguous(&gradient));
        let width = row_length(&x);
        let mut sums = vec![0.0; width];
        for (x, gradient) in floats(&x)
            .chunks_exact(width)
            .zip(floats(&gradient).chunks_exact(width))
        {
            vectorised(|| {
                let (mean, scale) = moments(x, epsilon, centred);
                for ((sum, &x), &gradient) in sums.iter_mut().zip(x).zip(gradient) {
                    *sum += gradient * (x - mean) * scale;
                }
            });
        }
        Self::float_from_data(TensorData::new(sums, [width]), &Default::default())
    }
}

impl<B: Backend + Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn gelu_of_form(x: FloatTensor<Self>, exact: bool) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gelu;
        impl<B: Backend + Kernels> Backward<B, 1> for Gelu {
            type State = (FloatTensor<B>, bool);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let gradient = gradients.consume::<B>(&ops.node);
                let (x, exact) = ops.state;
                if let [Some(node)] = ops.parents {
                    gradients.register::<B>(node.id, B::gelu_of_form_backward(x, gradient, exact));
                }
            }
        }
        match Gelu.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(step) => {
                let x = x.into_primitive();
                step.finish((x.clone(), exact), B::gelu_of_form(x, exact))
            }
            OpsKind::UnTracked(step) => step.finish(B::gelu_of_form(x.into_primitive(), exact)),
        }
    }

    fn softmax_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Softmax;
        impl<B: Backend + Kernels> Backward<B, 1> for Softmax {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let gradient = gradients.consume::<B>(&ops.node);
                if let [Some(node)] = ops.parents {
                    gradients.register::<B>(node.id, B::softmax_last_backward(ops.state, gradient));
                }
            }
        }
        match Softmax.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(step) => {
                let y = B::softmax_last(x.into_primitive());
                step.finish(y.clone(), y)
            }
            OpsKind::UnTracked(step) => step.finish(B::softmax_last(x.into_primitive())),
        }
    }

    fn norm_last(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        centred: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Norm;
        impl<B: Backend + Kernels> Backward<B, 2> for Norm {
            type State = (FloatTensor<B>, FloatTensor<B>, f32, bool);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let gradient = gradients.consume::<B>(&ops.node);
                let (x, weight, epsilon, centred) = ops.state;
                let [of_x, of_weight] = ops.parents;
                if let Some(node) = of_weight {
                    let flow =
                        B::norm_weight_backward(x.clone(), gradient.clone(), epsilon, centred);
                    gradients.register::<B>(node.id, flow);
                }
                if let Some(node) = of_x {
                    let flow = B::norm_last_backward(x, weight, gradient, epsilon, centred);
                    gradients.register::<B>(node.id, flow);
                }
            }
        }
        match Norm
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(step) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                let y = B::norm_last(x.clone(), weight.clone(), epsilon, centred);
                step.finish((x, weight, epsilon, centred), y)
            }
            OpsKind::UnTracked(step) => step.finish(B::norm_last(
                x.into_primitive(),
                weight.into_primitive(),
                epsilon,
                centred,
            )),
        }
    }

    fn gelu_of_form_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: bool,
    ) -> FloatTensor<Self> {
        unreachable!("nothing here is differentiated twice")
    }

    fn softmax_last_backward(_: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("nothing here is differentiated twice")
    }

    fn norm_last_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f32,
        _: bool,
    ) -> FloatTensor<Self> {
        unreachable!("nothing here is differentiated twice")
    }

    fn norm_weight_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: f32,
        _: bool,
    ) -> FloatTensor<Self> {
        unreachable!("nothing here is differentiated twice")
    }
}

/// Values that one task works on: enough to be worth handing over, few enough to stay in cache.
const TASK_VALUES: usize = 1 << 14;

/// Computes a tensor of the shape of the first input, row by row of the last dimension.
fn map_rows<const N: usize>(
    kind: Kind,
    inputs: &[&FloatTensor<Flex>; N],
    row: impl Fn([&[f32]; N], &mut [f32]) + Sync,
) -> FloatTensor<Flex> {
    let inputs = inputs.map(contiguous);
    let width = row_length(&inputs[0]);
    let slices: [&[f32]; N] = std::array::from_fn(|i| floats(&inputs[i]));
    let mut out = vec![0.0; slices[0].len()];
    let task = TASK_VALUES.div_ceil(width) * width;
    let rows = out.len() / width;
    watched(
        || Work::elementwise(kind, rows, width, N + 1),
        || {
            out.par_chunks_mut(task).enumerate().for_each(|(i, out)| {
                for (j, out) in out.chunks_exact_mut(width).enumerate() {
                    let start = i * task + j * width;
                    row(slices.map(|slice| &slice[start..start + width]), out);
                }
            });
        },
    );
    let shape = inputs[0].layout().shape().clone();
    Flex::float_from_data(TensorData::new(out, shape), &Default::default())
}

/// A norm of each row, `bias` added where there is one.
pub(super) fn norm_of(
    x: &FloatTensor<Flex>,
    weight: &FloatTensor<Flex>,
    bias: Option<&FloatTensor<Flex>>,
    epsilon: f32,
    centred: bool,
) -> FloatTensor<Flex> {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let norm = Norm {
        weight: floats(&weight),
        bias: bias.as_ref().map(floats),
        epsilon,
        centred,
    };
    let (width, x_values) = (row_length(&x), floats(&x));
    assert!(
        width == norm.weight.len(),
        "rows of {width} for a norm of {}",
        norm.weight.len()
    );
    let work = || Work::elementwise(Kind::Norm, x_values.len() / width, width, 2);
    let out = watched(work, || refseg_kernels::norm(x_values, norm));
    let shape = x.layout().shape().clone();
    Flex::float_from_data(TensorData::new(out, shape), &Default::default())
}

fn row_length(tensor: &FloatTensor<Flex>) -> usize {
    tensor
        .layout()
        .shape()
        .iter()
        .next_back()
        .copied()
        .unwrap_or(1)
        .max(1)
}

pub(super) fn contiguous(tensor: &FloatTensor<Flex>) -> FloatTensor<Flex> {
    tensor.to_contiguous()
}

pub(super) fn floats(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor
        .as_slice()
        .expect("made contiguous, and the CPU computes in f32")
}

/// Runs a loop compiled for the widest instruction set of this machine.
#[inline(always)]
fn vectorised<T>(work: impl FnOnce() -> T) -> T {
    pulp::Arch::new().dispatch(work)
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, activation};

    use super::*;

    fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let gap = (found - expected).abs();
            assert!(
                gap <= tolerance * expected.abs().max(1.0),
                "{found}, expected {expected}"
            );
        }
    }

    #[test]
    fn gelu_agrees_with_the_error_function() {
        let device = Device::flex();
        let x = Tensor::<2>::random([37, 51], Distribution::Normal(0.0, 3.0), &device);
        assert_close(&values(gelu(x.clone())), &values(activation::gelu(x)), 1e-6);
    }

    #[test]
    fn gelu_tanh_agrees_with_the_framework() {
        let device = Device::flex();
        let x = Tensor::<2>::random([37, 51], Distribution::Normal(0.0, 3.0), &device);
        let expected = values(activation::gelu_approximate(x.clone()));
        assert_close(&values(gelu_tanh(x)), &expected, 1e-6);
        let far = Tensor::<1>::from_floats([-1e6, -100.0, 100.0, 1e6], &device);
        assert_close(&values(gelu_tanh(far)), &[0.0, 0.0, 100.0, 1e6], 1e-30);
    }

    #[test]
    fn softmax_agrees_with_the_framework_and_keeps_masked_keys_at_zero() {
        let device = Device::flex();
        let x = Tensor::<2>::random([9, 131], Distribution::Normal(0.0, 4.0), &device);
        assert_close(
            &values(softmax(x.clone())),
            &values(activation::softmax(x, 1)),
            1e-6,
        );
        let masked = Tensor::<2>::from_floats([[0.0, f32::NEG_INFINITY, 0.0]], &device);
        assert_eq!(values(softmax(masked)), [0.5, 0.0, 0.5]);
    }

    /// Gradients against those of the framework's own graph, built from elementary operations.
    #[test]
    fn gradients_agree_with_elementary_operations() {
        let device = Device::flex().autodiff();
        let x = || Tensor::<2>::random([7, 45], Distribution::Normal(0.3, 1.5), &Device::flex());
        let (x, weights) = (x(), x());
        let w = Tensor::<1>::random([45], Distribution::Normal(1.0, 0.3), &Device::flex());
        let leaf = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();
        let fixed = |tensor: &Tensor<2>| Tensor::<2>::from_data(tensor.to_data(), &device);
        let gradient = |f: &dyn Fn(Tensor<2>, Tensor<1>) -> Tensor<2>| {
            let (x, w) = (leaf(&x), w.clone().autodiff().require_grad());
            let gradients = (f(x.clone(), w.clone()) * fixed(&weights)).sum().backward();
            let of_w = w.grad(&gradients).map(values).unwrap_or_default();
            (values(x.grad(&gradients).expect("x takes part")), of_w)
        };
        let compare = |ours: &dyn Fn(Tensor<2>, Tensor<1>) -> Tensor<2>,
                       plain: &dyn Fn(Tensor<2>, Tensor<1>) -> Tensor<2>| {
            let (ours, plain) = (gradient(ours), gradient(plain));
            assert_close(&ours.0, &plain.0, 2e-5);
            assert_close(&ours.1, &plain.1, 2e-5);
        };
        compare(&|x, _| softmax(x), &|x, _| {
            let e = x.exp();
            e.clone() / e.sum_dim(1)
        });
        compare(&|x, _| gelu(x), &|x, _| {
            x.clone() * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5
        });
        compare(&|x, _| gelu_tanh(x), &|x, _| {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let u = (x.clone() + x.clone() * x.clone() * x.clone() * 0.044715) * root;
            x * (u.tanh() + 1.0) * 0.5
        });
        compare(&|x, w| layer_norm(x, w, 1e-5), &|x, w| {
            let x = x.clone() - x.mean_dim(1);
            x.clone() / (x.square().mean_dim(1) + 1e-5).sqrt() * w.unsqueeze()
        });
        compare(&|x, w| rms_norm(x, w, 1e-5), &|x, w| {
            x.clone() / (x.square().mean_dim(1) + 1e-5).sqrt() * w.unsqueeze()
        });
    }
}
