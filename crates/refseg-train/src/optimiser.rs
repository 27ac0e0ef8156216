//! AdamW and Lion with warm-up, a cosine, and clipping by the global norm.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::parameters::{Gradients, Parameter, Parameters};

/// How parameters follow their gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimiser {
    /// By which rule.
    pub rule: Rule,
    /// Decoupled decay.
    pub weight_decay: f32,
    /// Whether vectors (norms, biases) decay as matrices do.
    pub decay_vectors: bool,
    /// Gradients are scaled down to this norm, taken over all tensors together.
    pub clip_norm: f64,
    /// Decay of the values' running mean, where one is kept.
    pub average_decay: f32,
}

/// Rules by which a value follows its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Loshchilov and Hutter, arXiv 1711.05101.
    AdamW {
        /// Decay of the gradient's running mean.
        beta1: f32,
        /// Decay of the squared gradient's running mean.
        beta2: f32,
        /// Added to the root of the second moment.
        epsilon: f32,
    },
    /// Chen et al., arXiv 2302.06675: the sign of a momentum.
    Lion {
        /// Share of the momentum in a step's direction.
        beta1: f32,
        /// Decay of the momentum.
        beta2: f32,
    },
}

impl Optimiser {
    /// Applies one step; returns the gradient's norm before clipping.
    ///
    /// `step` counts from 1. A tensor without a gradient is left as it is.
    pub fn step(
        &self,
        parameters: &mut Parameters,
        gradients: &Gradients,
        rate: f64,
        step: u64,
    ) -> f64 {
        let norm = global_norm(gradients);
        let scale = if norm > self.clip_norm {
            (self.clip_norm / norm) as f32
        } else {
            1.0
        };
        // Early on the mean would be mostly the initial values.
        let decay = self
            .average_decay
            .min((1 + step) as f32 / (10 + step) as f32);

        let trained: Vec<(&str, &mut Parameter)> = parameters
            .iter_mut()
            .filter(|(_, parameter)| parameter.is_trained())
            .collect();
        trained.into_par_iter().for_each(|(key, parameter)| {
            let Some(gradient) = gradients.get(key) else {
                return;
            };
            let rate = rate as f32;
            let keep = if self.decay_vectors || parameter.shape.len() > 1 {
                1.0 - rate * self.weight_decay
            } else {
                1.0
            };
            self.rule
                .apply(parameter, gradient, scale, rate, keep, step);
            let averages = parameter.average.iter_mut().zip(&parameter.values);
            for (average, value) in averages {
                *average = decay * *average + (1.0 - decay) * value;
            }
        });
        norm
    }
}

impl Rule {
    /// Moves the values of a tensor against its gradient times `scale`, and shrinks them by `keep`.
    fn apply(
        self,
        parameter: &mut Parameter,
        gradient: &[f32],
        scale: f32,
        rate: f32,
        keep: f32,
        step: u64,
    ) {
        let Parameter {
            values,
            first_moment,
            second_moment,
            ..
        } = parameter;
        match self {
            Self::AdamW {
                beta1,
                beta2,
                epsilon,
            } => {
                let correction = |beta: f32| (1.0 - f64::from(beta).powf(step as f64)) as f32;
                let (correction1, correction2) = (correction(beta1), correction(beta2));
                let moments = first_moment.iter_mut().zip(second_moment);
                for ((value, (first, second)), gradient) in
                    values.iter_mut().zip(moments).zip(gradient)
                {
                    let gradient = gradient * scale;
                    *first = flush(beta1 * *first + (1.0 - beta1) * gradient);
                    *second = flush(beta2 * *second + (1.0 - beta2) * gradient * gradient);
                    let root = (*second / correction2).sqrt() + epsilon;
                    *value = keep * *value - rate * (*first / correction1) / root;
                }
            }
            Self::Lion { beta1, beta2 } => {
                for ((value, momentum), gradient) in
                    values.iter_mut().zip(first_moment).zip(gradient)
                {
                    let gradient = gradient * scale;
                    let direction = beta1 * *momentum + (1.0 - beta1) * gradient;
                    let sign = if direction == 0.0 {
                        0.0
                    } else {
                        direction.signum()
                    };
                    *value = keep * *value - rate * sign;
                    *momentum = flush(beta2 * *momentum + (1.0 - beta2) * gradient);
                }
            }
        }
    }
}

/// Norm of all gradients taken together.
pub fn global_norm(gradients: &Gradients) -> f64 {
    let square = |gradient: &Vec<f32>| {
        gradient
            .iter()
            .map(|&x| f64::from(x) * f64::from(x))
            .sum::<f64>()
    };
    gradients.values().map(square).sum::<f64>().sqrt()
}

/// Subnormal moments make every step several times slower and change nothing.
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}

/// Learning rate of a step: a linear warm-up, then down to `floor` of the peak.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// Steps of warm-up.
    pub warm_up: u64,
    /// Steps in all.
    pub steps: u64,
    /// The last rate, as a share of the peak.
    pub floor: f64,
    /// Where warm-up begins, as a share of the peak.
    pub first: f64,
    /// How the rate falls.
    pub decline: Decline,
}

/// How a learning rate falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decline {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A line.
    Linear,
}

impl Schedule {
    /// The rate of `step`, counted from 1.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warm_up {
            let done = step as f64 / self.warm_up as f64;
            return self.peak * (self.first + (1.0 - self.first) * done);
        }
        let done =
            (step - self.warm_up) as f64 / self.steps.saturating_sub(self.warm_up).max(1) as f64;
        let left = match self.decline {
            Decline::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            Decline::Linear => 1.0 - done.min(1.0),
        };
        self.peak * (self.floor + (1.0 - self.floor) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_values(values: [f32; 2]) -> Parameters {
        let mut parameters = Parameters::default();
        let parameter = Parameter::trained(vec![2], values.to_vec(), true);
        parameters.insert("x".to_owned(), parameter);
        parameters
    }

    fn optimiser(rule: Rule) -> Optimiser {
        Optimiser {
            rule,
            weight_decay: 0.05,
            decay_vectors: false,
            clip_norm: 1.0,
            average_decay: 0.99,
        }
    }

    fn adam() -> Optimiser {
        optimiser(Rule::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        })
    }

    #[test]
    fn lion_goes_by_the_sign_of_its_momentum() {
        let mut parameters = two_values([1.0, -1.0]);
        let lion = Optimiser {
            decay_vectors: true,
            ..optimiser(Rule::Lion {
                beta1: 0.9,
                beta2: 0.99,
            })
        };
        let gradients = Gradients::from([("x".to_owned(), vec![0.3, 0.0])]);
        lion.step(&mut parameters, &gradients, 0.01, 1);
        let found = parameters.get("x").expect("x");
        // Both shrink by 0.01 · 0.05; the second has no gradient and does not move.
        let expected = [1.0 * 0.9995 - 0.01, -0.9995];
        assert!((found.values[0] - expected[0]).abs() < 1e-6, "{found:?}");
        assert!((found.values[1] - expected[1]).abs() < 1e-6, "{found:?}");
        assert!((found.first_moment[0] - 0.003).abs() < 1e-7);
        // The old momentum, 0.003, outweighs a small new gradient.
        let gradients = Gradients::from([("x".to_owned(), vec![-0.001, 0.0])]);
        lion.step(&mut parameters, &gradients, 0.01, 2);
        let value = parameters.get("x").expect("x").values[0];
        assert!((value - (expected[0] * 0.9995 - 0.01)).abs() < 1e-6);
    }

    #[test]
    fn the_first_step_moves_each_value_by_the_rate() {
        let mut parameters = two_values([1.0, -1.0]);
        let gradients = Gradients::from([("x".to_owned(), vec![0.3, -0.001])]);
        let norm = adam().step(&mut parameters, &gradients, 0.01, 1);
        assert!((norm - (0.09f64 + 1e-6).sqrt()).abs() < 1e-7);
        let values = &parameters.get("x").expect("x").values;
        assert!(
            (values[0] - 0.99).abs() < 1e-6 && (values[1] + 0.99).abs() < 1e-5,
            "{values:?}"
        );
    }

    #[test]
    fn clipping_goes_by_the_norm_of_all_tensors() {
        let mut parameters = two_values([0.0, 0.0]);
        parameters.insert("y".to_owned(), parameters.get("x").expect("x").clone());
        let gradients = Gradients::from([
            ("x".to_owned(), vec![3.0, 0.0]),
            ("y".to_owned(), vec![0.0, 4.0]),
        ]);
        assert!((adam().step(&mut parameters, &gradients, 0.1, 1) - 5.0).abs() < 1e-9);
        let moment = parameters.get("x").expect("x").first_moment[0];
        assert!(
            (moment - 0.1 * 0.6).abs() < 1e-6,
            "3 was clipped to 3/5, not to 1: {moment}"
        );
    }

    #[test]
    fn the_schedule_rises_then_falls_to_its_floor() {
        let schedule = Schedule {
            peak: 1.0,
            warm_up: 10,
            steps: 110,
            floor: 0.1,
            first: 0.0,
            decline: Decline::Cosine,
        };
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12);
        close(schedule.rate(5), 0.5);
        close(schedule.rate(10), 1.0);
        close(schedule.rate(60), 0.55);
        close(schedule.rate(85), 0.1 + 0.9 * 0.5 * (1.0 - 0.5f64.sqrt()));
        close(schedule.rate(110), 0.1);
        let line = Schedule {
            first: 0.2,
            decline: Decline::Linear,
            ..schedule
        };
        close(line.rate(5), 0.6);
        close(line.rate(85), 0.1 + 0.9 * 0.25);
        close(line.rate(110), 0.1);
    }
}
