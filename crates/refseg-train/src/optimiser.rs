//! AdamW with warm-up, a cosine, and clipping by the global norm.

use rayon::prelude::*;

use crate::parameters::{Gradients, Parameter, Parameters};

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Decay of the gradient's running mean.
    pub beta1: f32,
    /// Decay of the squared gradient's running mean.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled decay of matrices; vectors (norms, biases) are left alone.
    pub weight_decay: f32,
    /// Gradients are scaled down to this norm, taken over all tensors together.
    pub clip_norm: f64,
    /// Decay of the values' running mean.
    pub average_decay: f32,
}

impl AdamW {
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
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(step as f64)) as f32;
        let (correction1, correction2) = (correction(self.beta1), correction(self.beta2));
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
            let keep = if parameter.shape.len() > 1 {
                1.0 - rate * self.weight_decay
            } else {
                1.0
            };
            let moments = parameter
                .first_moment
                .iter_mut()
                .zip(&mut parameter.second_moment);
            let values = parameter.values.iter_mut().zip(&mut parameter.average);
            for (((value, average), (first, second)), gradient) in values.zip(moments).zip(gradient)
            {
                let gradient = gradient * scale;
                *first = flush(self.beta1 * *first + (1.0 - self.beta1) * gradient);
                *second = flush(self.beta2 * *second + (1.0 - self.beta2) * gradient * gradient);
                let root = (*second / correction2).sqrt() + self.epsilon;
                *value = keep * *value - rate * (*first / correction1) / root;
                *average = decay * *average + (1.0 - decay) * *value;
            }
        });
        norm
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

/// Learning rate of a step: linear warm-up, then half a cosine down to `floor` of the peak.
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
}

impl Schedule {
    /// The rate of `step`, counted from 1.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return self.peak * step as f64 / self.warm_up as f64;
        }
        let done =
            (step - self.warm_up) as f64 / self.steps.saturating_sub(self.warm_up).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
        self.peak * (self.floor + (1.0 - self.floor) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_values(values: [f32; 2]) -> Parameters {
        let mut parameters = Parameters::default();
        let parameter = Parameter {
            shape: vec![2],
            values: values.to_vec(),
            first_moment: vec![0.0; 2],
            second_moment: vec![0.0; 2],
            average: values.to_vec(),
        };
        parameters.insert("x".to_owned(), parameter);
        parameters
    }

    fn adam() -> AdamW {
        AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.05,
            clip_norm: 1.0,
            average_decay: 0.99,
        }
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
        };
        assert!((schedule.rate(5) - 0.5).abs() < 1e-12);
        assert!((schedule.rate(10) - 1.0).abs() < 1e-12);
        assert!((schedule.rate(60) - 0.55).abs() < 1e-12);
        assert!((schedule.rate(110) - 0.1).abs() < 1e-12);
    }
}
