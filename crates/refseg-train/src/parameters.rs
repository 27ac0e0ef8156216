//! The values that a run trains, and the network's view of them.

use std::{cell::RefCell, collections::BTreeMap};

use burn::tensor::{Device, Tensor, TensorData};
use refseg::{
    nn::{Part, TensorSource},
    random::initial_values,
    weights::WeightsError,
};

/// Every tensor of a network in training, by checkpoint key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    entries: BTreeMap<String, Parameter>,
}

/// One tensor, and what the optimiser remembers of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Extents, row-major.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
    /// Running mean of the gradient; empty for a buffer, which no gradient reaches.
    pub first_moment: Vec<f32>,
    /// Running mean of the squared gradient.
    pub second_moment: Vec<f32>,
    /// Running mean of the values: smoother than any single step, and what a run leaves behind.
    pub average: Vec<f32>,
}

impl Parameter {
    /// Whether the optimiser changes it.
    pub fn is_trained(&self) -> bool {
        !self.first_moment.is_empty()
    }
}

/// Which values a network is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Those of the last step.
    Latest,
    /// Their running mean.
    Average,
}

impl Parameters {
    /// Fresh parameters for the parts of a network.
    pub fn initialise(parts: &[Part], seed: u64) -> Self {
        let entries = parts.iter().map(|part| {
            let values = initial_values(&part.key, &part.shape, seed);
            let moments = if is_buffer(&part.key) {
                Vec::new()
            } else {
                vec![0.0; values.len()]
            };
            let parameter = Parameter {
                shape: part.shape.clone(),
                average: values.clone(),
                values,
                first_moment: moments.clone(),
                second_moment: moments,
            };
            (part.key.clone(), parameter)
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// The tensor of this key.
    pub fn get(&self, key: &str) -> Option<&Parameter> {
        self.entries.get(key)
    }

    /// The tensor of this key.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Parameter> {
        self.entries.get_mut(key)
    }

    /// All tensors, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.entries
            .iter()
            .map(|(key, parameter)| (key.as_str(), parameter))
    }

    /// All tensors, by key.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Parameter)> {
        self.entries
            .iter_mut()
            .map(|(key, parameter)| (key.as_str(), parameter))
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, key: String, parameter: Parameter) {
        self.entries.insert(key, parameter);
    }
}

/// Statistics that a step measures rather than learns.
fn is_buffer(key: &str) -> bool {
    key.ends_with("running_mean") || key.ends_with("running_var")
}

/// Parameters as leaves of one step's gradient graph.
///
/// Every worker takes leaves of its own, so that their graphs share nothing.
#[derive(Debug)]
pub struct Leaves<'a> {
    parameters: &'a Parameters,
    values: Values,
    device: Device,
    handed_out: RefCell<BTreeMap<String, Tensor<1>>>,
}

/// The gradient of a loss, by checkpoint key.
pub type Gradients = BTreeMap<String, Vec<f32>>;

impl<'a> Leaves<'a> {
    /// Leaves that a gradient is wanted for.
    pub fn tracked(parameters: &'a Parameters, device: &Device) -> Self {
        let device = device.clone().autodiff();
        Self {
            parameters,
            values: Values::Latest,
            device,
            handed_out: RefCell::default(),
        }
    }

    /// Constants, for evaluation.
    pub fn constant(parameters: &'a Parameters, values: Values, device: &Device) -> Self {
        Self {
            parameters,
            values,
            device: device.clone(),
            handed_out: RefCell::default(),
        }
    }

    /// Differentiates `loss` by every leaf that it depends on.
    pub fn gradients(self, loss: &Tensor<1>) -> Gradients {
        let mut gradients = loss.backward();
        let leaves = self.handed_out.into_inner().into_iter();
        let of = |(key, leaf): (String, Tensor<1>)| {
            let gradient = leaf.grad_remove(&mut gradients)?;
            let values = gradient.into_data().try_into_vec::<f32>().ok()?;
            Some((key, values))
        };
        leaves.filter_map(of).collect()
    }
}

impl TensorSource for Leaves<'_> {
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        implied_by: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        if let Some(leaf) = self.handed_out.borrow().get(key) {
            return Ok(leaf.clone());
        }
        let missing = || WeightsError::Missing {
            path: "the training run".into(),
            key: key.to_owned(),
        };
        let parameter = self.parameters.get(key).ok_or_else(missing)?;
        if parameter.shape != shape {
            return Err(WeightsError::Shape {
                path: "the training run".into(),
                key: key.to_owned(),
                found: parameter.shape.clone(),
                expected: shape.to_vec(),
                implied_by: implied_by.into(),
            });
        }
        let values = match self.values {
            Values::Latest => &parameter.values,
            Values::Average => &parameter.average,
        };
        let data = TensorData::new(values.clone(), [values.len()]);
        let leaf = Tensor::<1>::from_data(data, &self.device);
        let leaf = if self.device.is_autodiff() && parameter.is_trained() {
            leaf.require_grad()
        } else {
            leaf
        };
        self.handed_out
            .borrow_mut()
            .insert(key.to_owned(), leaf.clone());
        Ok(leaf)
    }

    fn device(&self) -> Device {
        self.device.clone()
    }
}
