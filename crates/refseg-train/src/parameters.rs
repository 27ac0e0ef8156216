//! The values that a run trains, and the network's view of them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, btree_map::Entry},
};

use burn::tensor::{Device, Tensor, TensorData};
use refseg::{
    nn::{Dropout, LowRank, Part, Precision, TensorSource},
    random::{SplitMix64, initial_values},
    weights::WeightsError,
};

use crate::tuning::base::Base;

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
    /// Running mean of the values: smoother than any single step, and what a run leaves behind;
    /// empty if none is kept.
    pub average: Vec<f32>,
}

impl Parameter {
    /// A tensor that no gradient has reached yet; `averaged` if a running mean is to be kept.
    pub fn trained(shape: Vec<usize>, values: Vec<f32>, averaged: bool) -> Self {
        let moments = vec![0.0; values.len()];
        Self {
            first_moment: moments.clone(),
            second_moment: moments,
            ..Self::measured(shape, values, averaged)
        }
    }

    /// A buffer, which steps measure rather than learn.
    pub fn measured(shape: Vec<usize>, values: Vec<f32>, averaged: bool) -> Self {
        Self {
            shape,
            average: if averaged { values.clone() } else { Vec::new() },
            values,
            first_moment: Vec::new(),
            second_moment: Vec::new(),
        }
    }

    /// The values that a network is built from.
    pub fn of(&self, values: Values) -> &[f32] {
        match values {
            Values::Average if !self.average.is_empty() => &self.average,
            _ => &self.values,
        }
    }

    /// Whether the optimiser changes it.
    pub fn is_trained(&self) -> bool {
        !self.first_moment.is_empty()
    }
}

/// How many parameters are trained, by what they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What they are.
    pub name: &'static str,
    /// Tensors.
    pub tensors: u64,
    /// Values in all of them.
    pub parameters: u64,
}

/// Which values a network is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Those of the last step.
    Latest,
    /// Their running mean, where one is kept.
    Average,
}

impl Parameters {
    /// Fresh parameters for the parts of a network.
    pub fn initialise(parts: &[Part], seed: u64) -> Self {
        let entries = parts.iter().map(|part| {
            let values = initial_values(&part.key, &part.shape, seed);
            let new = if is_buffer(&part.key) {
                Parameter::measured
            } else {
                Parameter::trained
            };
            (part.key.clone(), new(part.shape.clone(), values, true))
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

    /// Everything that is trained, by what it belongs to.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (key, parameter) in self.iter().filter(|(_, p)| p.is_trained()) {
            let name = group_of(key);
            let known = groups.iter().position(|group| group.name == name);
            let at = known.unwrap_or_else(|| {
                groups.push(Group {
                    name,
                    tensors: 0,
                    parameters: 0,
                });
                groups.len() - 1
            });
            groups[at].tensors += 1;
            groups[at].parameters += parameter.values.len() as u64;
        }
        groups
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, key: String, parameter: Parameter) {
        self.entries.insert(key, parameter);
    }

    /// Adds all of these.
    pub fn extend(&mut self, others: Self) {
        self.entries.extend(others.entries);
    }
}

/// The part of the network that a parameter belongs to.
fn group_of(key: &str) -> &'static str {
    let is_vocabulary = ["embed_tokens", "tok_embeddings", "lm_head", "output"]
        .iter()
        .any(|name| key.ends_with(&format!("{name}.weight")));
    if key.ends_with(".low_rank_a") || key.ends_with(".low_rank_b") {
        "low-rank changes"
    } else if key.ends_with(".rows") {
        "rows of the markers"
    } else if key.starts_with("language_model.") && is_vocabulary {
        "embedding and head"
    } else if key.starts_with("language_model.") {
        "language model"
    } else if key.starts_with("res_decoder.") {
        "mask decoder"
    } else if key.starts_with("vision_model.") {
        "vision tower"
    } else if key.starts_with("mlp1.") {
        "projector"
    } else {
        "helper heads"
    }
}

/// Statistics that a step measures rather than learns.
pub fn is_buffer(key: &str) -> bool {
    key.ends_with("running_mean") || key.ends_with("running_var")
}

/// Parameters as leaves of one step's gradient graph.
///
/// Every worker takes leaves of its own, so that their graphs share nothing.
#[derive(Debug)]
pub struct Leaves<'a> {
    parameters: &'a Parameters,
    over: Option<Over<'a>>,
    noise: Option<Noise>,
    values: Values,
    precision: Precision,
    is_tracked: bool,
    device: Device,
    handed_out: RefCell<BTreeMap<String, Tensor<1>>>,
    gradients: RefCell<Gradients>,
}

/// The checkpoint that parameters change, and how they do.
///
/// Beside tensors of the checkpoint's own keys, which they replace, parameters may be
/// `M.low_rank_a` `[r, in]` and `M.low_rank_b` `[out, r]`, a low-rank change of `M.weight`; and `K.rows`
/// `[n, width]`, which replace rows of the matrix `K`.
#[derive(Debug, Clone, Copy)]
pub struct Over<'a> {
    /// The checkpoint.
    pub base: &'a Base,
    /// The factor of low-rank changes: alpha over rank.
    pub scale: f64,
    /// Dropout on their input.
    pub dropout: f64,
    /// The first of the rows that are replaced.
    pub first_row: usize,
}

/// The randomness of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Decides about everything that is dropped.
    pub seed: u64,
    /// Whether the mask decoder drops values too.
    pub decoder: bool,
}

/// The gradient of a loss, by checkpoint key.
pub type Gradients = BTreeMap<String, Vec<f32>>;

impl<'a> Leaves<'a> {
    /// Leaves that a gradient is wanted for.
    pub fn tracked(parameters: &'a Parameters, device: &Device) -> Self {
        Self {
            is_tracked: true,
            ..Self::untracked(parameters, device)
        }
    }

    /// The same without gradients: a network of these computes bit by bit what one of
    /// [`Leaves::tracked`] does, which one of [`Leaves::constant`] does not.
    pub fn untracked(parameters: &'a Parameters, device: &Device) -> Self {
        Self::constant(parameters, Values::Latest, &device.clone().autodiff())
    }

    /// Constants, for evaluation.
    pub fn constant(parameters: &'a Parameters, values: Values, device: &Device) -> Self {
        Self {
            parameters,
            over: None,
            noise: None,
            values,
            precision: Precision::F32,
            is_tracked: false,
            device: device.clone(),
            handed_out: RefCell::default(),
            gradients: RefCell::default(),
        }
    }

    /// The same, with the tensors of a checkpoint wherever there is no parameter.
    #[must_use]
    pub fn over(self, over: Over<'a>) -> Self {
        Self {
            over: Some(over),
            ..self
        }
    }

    /// The same, with dropout.
    #[must_use]
    pub fn with_noise(self, noise: Noise) -> Self {
        Self {
            noise: Some(noise),
            ..self
        }
    }

    /// The same, with the factors of products rounded to this.
    #[must_use]
    pub fn computing(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Differentiates `loss` by every leaf that it depends on, and adds what comes out to the
    /// gradients so far; returns the gradients of `inputs`, which are no leaves of these.
    pub fn differentiate(&self, loss: &Tensor<1>, inputs: &[&Tensor<3>]) -> Vec<Option<Tensor<3>>> {
        let mut found = loss.backward();
        let mut gradients = self.gradients.borrow_mut();
        for (key, leaf) in self.handed_out.borrow().iter() {
            let Some(gradient) = leaf.grad_remove(&mut found) else {
                continue;
            };
            let values = gradient
                .into_data()
                .try_into_vec::<f32>()
                .expect("training computes in f32");
            match gradients.entry(key.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(values);
                }
                Entry::Occupied(entry) => {
                    for (sum, value) in entry.into_mut().iter_mut().zip(values) {
                        *sum += value;
                    }
                }
            }
        }
        let of = |input: &&Tensor<3>| input.grad_remove(&mut found);
        inputs.iter().map(of).collect()
    }

    /// The gradients of everything that was differentiated.
    pub fn into_gradients(self) -> Gradients {
        self.gradients.into_inner()
    }

    /// A parameter as a tensor, the same one each time.
    fn leaf(&self, key: &str, parameter: &Parameter) -> Tensor<1> {
        if let Some(leaf) = self.handed_out.borrow().get(key) {
            return leaf.clone();
        }
        let values = parameter.of(self.values).to_vec();
        let count = values.len();
        let leaf = Tensor::<1>::from_data(TensorData::new(values, [count]), &self.device);
        let leaf = if self.is_tracked && parameter.is_trained() {
            leaf.require_grad()
        } else {
            leaf
        };
        let mut handed_out = self.handed_out.borrow_mut();
        handed_out.insert(key.to_owned(), leaf.clone());
        leaf
    }

    /// A tensor of the checkpoint, with what changes some of its rows.
    fn of_base(
        &self,
        over: &Over<'_>,
        key: &str,
        shape: &[usize],
        implied_by: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let whole = over.base.tensor(key, shape, implied_by)?;
        let whole = if self.device.is_autodiff() {
            whole.autodiff()
        } else {
            whole
        };
        let rows_key = format!("{key}.rows");
        let Some(rows) = self.parameters.get(&rows_key) else {
            return Ok(whole);
        };
        let (start, count) = (over.first_row * rows.shape[1], rows.values.len());
        let end = start + count;
        let total = whole.dims()[0];
        let mut parts = vec![
            whole.clone().narrow(0, 0, start),
            self.leaf(&rows_key, rows),
        ];
        if end < total {
            parts.push(whole.narrow(0, end, total - end));
        }
        Ok(Tensor::cat(parts, 0))
    }
}

impl TensorSource for Leaves<'_> {
    fn tensor(
        &self,
        key: &str,
        shape: &[usize],
        implied_by: &'static str,
    ) -> Result<Tensor<1>, WeightsError> {
        let Some(parameter) = self.parameters.get(key) else {
            return match &self.over {
                Some(over) => self.of_base(over, key, shape, implied_by),
                None => Err(WeightsError::Missing {
                    path: "the training run".into(),
                    key: key.to_owned(),
                }),
            };
        };
        if parameter.shape != shape {
            return Err(WeightsError::Shape {
                path: "the training run".into(),
                key: key.to_owned(),
                found: parameter.shape.clone(),
                expected: shape.to_vec(),
                implied_by: implied_by.into(),
            });
        }
        Ok(self.leaf(key, parameter))
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn computing(&self) -> Precision {
        self.precision
    }

    fn low_rank(&self, key: &str, _: [usize; 2]) -> Result<Option<LowRank>, WeightsError> {
        let (Some(over), Some(module)) = (&self.over, key.strip_suffix(".weight")) else {
            return Ok(None);
        };
        let factor = |name: &str| {
            let key = format!("{module}.{name}");
            let parameter = self.parameters.get(&key)?;
            let shape = [parameter.shape[0], parameter.shape[1]];
            Some(self.leaf(&key, parameter).reshape(shape))
        };
        let factors = factor("low_rank_a").zip(factor("low_rank_b"));
        Ok(factors.map(|(a, b)| LowRank {
            a,
            b,
            scale: over.scale,
            dropout: self.noise.map_or_else(Dropout::none, |noise| {
                Dropout::new(over.dropout, seed_of(key, noise))
            }),
        }))
    }

    fn dropout(&self, key: &str, rate: f64) -> Dropout {
        match self.noise {
            Some(noise) if noise.decoder => Dropout::new(rate, seed_of(key, noise)),
            _ => Dropout::none(),
        }
    }
}

/// The seed of one layer's dropout.
fn seed_of(key: &str, noise: Noise) -> u64 {
    SplitMix64::named(key, noise.seed).next_u64()
}
