//! Products that are learned.
//!
//! The products of `refseg_kernels`, with derivatives, which are such products too. A weight that is learned is another
//! one at each step, so it is packed for each product.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        ops::FloatTensorOps,
        tensor::FloatTensor,
    },
    tensor::{Shape, Tensor, TensorData},
};
use refseg_kernels::{Epilogue, Packed, Precision};

use super::kernels::{contiguous, floats};

/// `x · Wᵀ`, its factors rounded to `precision` as those of [`Packed`] are, and those of its derivatives; what comes
/// out is f32.
///
/// # Shapes
/// - `x`: `(…, in)`
/// - `weight`: `(out, in)`
/// - returns `(…, out)`
pub(super) fn product<const R: usize>(
    x: Tensor<R>,
    weight: Tensor<2>,
    precision: Precision,
) -> Tensor<R> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Products>::product(x, weight, precision))
}

/// [`product`] on a device.
#[backend_extension(Flex, Autodiff)]
trait Products: Backend {
    fn product(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;
}

impl Products for Flex {
    fn product(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let x = contiguous(&x);
        let [outputs, inputs] = weight.shape().dims();
        let shape = with_last(&x.shape(), outputs);
        let across = Self::float_transpose(weight.clone());
        let packed = if across.is_contiguous() {
            Packed::transposed(floats(&across), outputs, inputs, precision)
        } else {
            Packed::new(floats(&contiguous(&weight)), outputs, inputs, precision)
        };
        let rows = shape.num_elements() / outputs.max(1);
        let out = packed.product(floats(&x), rows, &Epilogue::default());
        Self::float_from_data(TensorData::new(out, shape), &Default::default())
    }
}

impl<B: Backend + Products, C: CheckpointStrategy> Products for Autodiff<B, C> {
    fn product(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Product;
        impl<B: Backend + Products> Backward<B, 2> for Product {
            /// What each of the two is needed for: the other's gradient.
            type State = (Option<FloatTensor<B>>, Option<FloatTensor<B>>, Precision);

            /// `∂x = g · W`, `∂W = gᵀ · x`, rows of all leading dimensions stacked.
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let gradient = gradients.consume::<B>(&ops.node);
                let (x, weight, precision) = ops.state;
                let [of_x, of_weight] = ops.parents;
                if let Some((node, x)) = of_weight.zip(x) {
                    let across = |y| B::float_transpose(rows::<B>(y));
                    let flow = B::product(across(gradient.clone()), across(x), precision);
                    gradients.register::<B>(node.id, flow);
                }
                if let Some((node, weight)) = of_x.zip(weight) {
                    let flow = B::product(gradient, B::float_transpose(weight), precision);
                    gradients.register::<B>(node.id, flow);
                }
            }
        }
        let (learns_x, learns_weight) = (x.is_tracked(), weight.is_tracked());
        let step = Product
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful();
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let y = B::product(x.clone(), weight.clone(), precision);
        match step {
            OpsKind::Tracked(step) => {
                let kept = (
                    learns_weight.then_some(x),
                    learns_x.then_some(weight),
                    precision,
                );
                step.finish(kept, y)
            }
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }
}

/// `(…, n)` as `(rows, n)`.
fn rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let width = shape.iter().next_back().copied().unwrap_or(1);
    let rows = shape.num_elements() / width.max(1);
    B::float_reshape(x, Shape::from([rows, width]))
}

/// The shape with another last dimension.
fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims: Vec<usize> = shape.iter().copied().collect();
    if let Some(width) = dims.last_mut() {
        *width = last;
    }
    Shape::from(dims)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    /// What comes out, and the gradients of what went in, by `y(x, W)`.
    fn learned(
        [x, weight, along]: [&Tensor<2>; 3],
        y: impl Fn(Tensor<3>, Tensor<2>) -> Tensor<3>,
    ) -> [Tensor<2>; 3] {
        let leaf = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();
        let (x, weight) = (leaf(x), leaf(weight));
        let [rows, inputs] = x.dims();
        let y = y(x.clone().reshape([2, rows / 2, inputs]), weight.clone());
        let y = y.reshape(along.dims());
        let gradients = (y.clone() * along.clone().autodiff()).sum().backward();
        let gradient = |leaf: Tensor<2>| leaf.grad(&gradients).expect("it takes part");
        [y.inner(), gradient(x), gradient(weight)]
    }

    fn gap(a: Tensor<2>, b: Tensor<2>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    #[test]
    fn values_and_gradients_are_those_of_the_framework() {
        let random = |shape| Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex());
        for [rows, inputs, outputs] in [[2, 1, 1], [14, 45, 70], [130, 33, 19]] {
            let (x, weight) = (random([rows, inputs]), random([outputs, inputs]));
            let along = random([rows, outputs]);
            let factors = [&x, &weight, &along];
            let plain = learned(factors, |x, w| x.matmul(w.transpose().unsqueeze()));
            let ours = learned(factors, |x, w| product(x, w, Precision::F32));
            for (ours, plain) in ours.into_iter().zip(plain) {
                let gap = gap(ours, plain);
                assert!(gap < 1e-4, "{rows}×{inputs}×{outputs}: {gap}");
            }
        }
    }

    #[test]
    fn factors_are_rounded_to_bf16_and_nothing_else() {
        let device = Device::flex();
        // Exact in bf16, and so are all sums in f32.
        let whole = |shape: [usize; 2]| {
            Tensor::<2>::random(shape, Distribution::Uniform(-8.0, 8.0), &device).round()
        };
        let (x, weight, along) = (whole([6, 20]), whole([9, 20]), whole([6, 9]));
        let factors = [&x, &weight, &along];
        let exact = learned(factors, |x, w| product(x, w, Precision::F32));
        let ours = learned(factors, |x, w| product(x, w, Precision::Bf16));
        for (ours, exact) in ours.into_iter().zip(exact) {
            assert_eq!(gap(ours, exact), 0.0);
        }
        // Steps of bf16 at one are a 128th.
        let near = Tensor::full([9, 20], 1.0 + 1.0 / 1024.0, &device);
        let [y, ..] = learned([&x, &near, &along], |x, w| product(x, w, Precision::Bf16));
        let ones = Tensor::full([9, 20], 1.0, &device);
        let [expected, ..] = learned([&x, &ones, &along], |x, w| product(x, w, Precision::F32));
        assert_eq!(gap(y, expected), 0.0);
    }

    #[test]
    fn what_is_not_learned_takes_no_part() {
        let device = Device::flex();
        let leaf = Tensor::<2>::ones([3, 4], &device).autodiff().require_grad();
        let frozen = Tensor::<2>::ones([5, 4], &device).autodiff();
        let y = product(leaf.clone(), frozen.clone(), Precision::F32);
        let gradients = y.sum().backward();
        let of_leaf = leaf.grad(&gradients).expect("it takes part");
        assert_eq!(gap(of_leaf, Tensor::full([3, 4], 5.0, &device)), 0.0);
        assert!(frozen.grad(&gradients).is_none());

        let weight = Tensor::<2>::ones([5, 4], &device).autodiff().require_grad();
        let x = Tensor::<2>::ones([3, 4], &device).autodiff();
        let gradients = product(x.clone(), weight.clone(), Precision::F32)
            .sum()
            .backward();
        let of_weight = weight.grad(&gradients).expect("it takes part");
        assert_eq!(gap(of_weight, Tensor::full([5, 4], 3.0, &device)), 0.0);
        assert!(x.grad(&gradients).is_none());
    }
}
