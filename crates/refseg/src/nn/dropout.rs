//! Dropout that gives the same answer when it is asked again.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use burn::tensor::{Tensor, TensorData};

use crate::random::SplitMix64;

/// Zeroes values at random in training and scales up the others, so that sums keep their
/// expectation; outside of training it does nothing.
///
/// The mask follows from a seed and from how often the layer was called, and from nothing else.
/// A layer that is built again from the same seed zeroes the same values again: a run that was
/// killed goes on as if it had not been, and a layer computed a second time for its gradients
/// computes the same.
#[derive(Debug, Clone, Default)]
pub struct Dropout {
    active: Option<Active>,
}

#[derive(Debug, Clone)]
struct Active {
    rate: f64,
    seed: u64,
    calls: Arc<AtomicU64>,
}

impl Dropout {
    /// No dropout.
    pub fn none() -> Self {
        Self::default()
    }

    /// Zeroes a share `rate` (0 to 1, exclusive) of all values.
    pub fn new(rate: f64, seed: u64) -> Self {
        let active = (rate > 0.0).then(|| Active {
            rate,
            seed,
            calls: Arc::default(),
        });
        Self { active }
    }

    /// Whether anything is zeroed.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// `x` with some of its values zeroed.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        let Some(Active { rate, seed, calls }) = &self.active else {
            return x;
        };
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let mut random = SplitMix64::named("dropout", seed ^ call.rotate_left(32));
        // Thirty-two bits decide about a value.
        let threshold = (rate * 2f64.powi(32)) as u64;
        let kept = (1.0 / (1.0 - rate)) as f32;
        let shape = x.dims();
        let count = shape.iter().product();
        let mut mask = Vec::with_capacity(count + 1);
        while mask.len() < count {
            let bits = random.next_u64();
            for half in [bits >> 32, bits & 0xFFFF_FFFF] {
                mask.push(if half < threshold { 0.0 } else { kept });
            }
        }
        mask.truncate(count);
        let mask = Tensor::<R>::from_data(TensorData::new(mask, shape), &x.device());
        x * mask
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn dropped(dropout: &Dropout, count: usize) -> Vec<f32> {
        let x = Tensor::<1>::ones([count], &Device::flex());
        let y = dropout.forward(x).into_data().try_into_vec::<f32>();
        y.expect("f32")
    }

    #[test]
    fn about_the_rate_is_zeroed_and_the_expectation_kept() {
        let y = dropped(&Dropout::new(0.1, 7), 100_001);
        let zeros = y.iter().filter(|&&y| y == 0.0).count() as f64;
        assert!((zeros / 100_001.0 - 0.1).abs() < 0.005, "{zeros}");
        let mean = y.iter().map(|&y| f64::from(y)).sum::<f64>() / 100_001.0;
        assert!((mean - 1.0).abs() < 0.005, "{mean}");
    }

    #[test]
    fn a_seed_repeats_itself_and_calls_differ() {
        let (first, again) = (Dropout::new(0.5, 3), Dropout::new(0.5, 3));
        let calls = [dropped(&first, 64), dropped(&first, 64)];
        assert_eq!(calls, [dropped(&again, 64), dropped(&again, 64)]);
        assert_ne!(calls[0], calls[1]);
        assert_ne!(calls[0], dropped(&Dropout::new(0.5, 4), 64));
        assert_eq!(dropped(&Dropout::none(), 3), [1.0; 3]);
    }
}
