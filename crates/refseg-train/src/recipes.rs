//! What recipes of every kind have in common, and which come with the program.
//!
//! A recipe is a TOML file with every value of a run, each beside its source: those below
//! `recipes/`. What is learned by it is its first word, `learns`.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use refseg::nn::{InstructionSet, Part, Precision};
use refseg_data::dataset::Source;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned},
};

use crate::{
    optimiser::{self, Decline, Rule, Schedule},
    parameters::{Parameter, Parameters},
    run::{Plan, Task, Workers},
};

/// The recipes that come with the program: those that teach to segment; to answer, as SAM4MLLM
/// does; and to draw what prompts mean, as Segment Anything does.
pub const NAMES: [&str; 10] = [
    "mllmseg-res",
    "mllmseg-gres",
    "refseg-res",
    "refseg-gres",
    "finetune",
    "sam4mllm-paper",
    "sam4mllm-code",
    "sam4mllm-small",
    "sam-decoder",
    "sam-small",
];

/// The text of a recipe that comes with the program.
pub fn text(name: &str) -> Option<&'static str> {
    Some(match name {
        "mllmseg-res" => include_str!("../recipes/mllmseg-res.toml"),
        "mllmseg-gres" => include_str!("../recipes/mllmseg-gres.toml"),
        "refseg-res" => include_str!("../recipes/refseg-res.toml"),
        "refseg-gres" => include_str!("../recipes/refseg-gres.toml"),
        "finetune" => include_str!("../recipes/finetune.toml"),
        "sam4mllm-paper" => include_str!("../recipes/sam4mllm-paper.toml"),
        "sam4mllm-code" => include_str!("../recipes/sam4mllm-code.toml"),
        "sam4mllm-small" => include_str!("../recipes/sam4mllm-small.toml"),
        "sam-decoder" => include_str!("../recipes/sam-decoder.toml"),
        "sam-small" => include_str!("../recipes/sam-small.toml"),
        _ => return None,
    })
}

/// What is learned by a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// To segment what phrases mean: [`tuning`](crate::tuning).
    Masks,
    /// To answer questions about a picture: [`conversing`](crate::conversing).
    Answers,
    /// To draw what prompts mean: [`outlining`](crate::outlining).
    Outlines,
}

/// A recipe that was opened and not yet understood.
#[derive(Debug, Clone)]
pub struct Book {
    name: String,
    subject: Subject,
    table: toml::Table,
}

impl Book {
    /// Opens a recipe by its name or a TOML file, with some of its values replaced: `overrides`
    /// are `key.key=value` with the value as TOML would have it, or a bare word; `none` leaves the
    /// value out.
    ///
    /// # Errors
    /// If there is no such recipe, or it is not TOML.
    pub fn open(name: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| RecipeError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let text = match text(name) {
            Some(text) => text.to_owned(),
            None if Path::new(name).is_file() => read(Path::new(name))?,
            None => {
                return Err(RecipeError::Unknown {
                    found: name.to_owned(),
                });
            }
        };
        let parse_error = |source| RecipeError::Parse {
            name: name.to_owned(),
            source,
        };
        let mut table: toml::Table = text.parse().map_err(parse_error)?;
        for found in overrides {
            replace(&mut table, found).ok_or_else(|| RecipeError::Override {
                found: found.clone(),
            })?;
        }
        let subject = match table.remove("learns") {
            None => Subject::Masks,
            Some(learns) => learns.try_into().map_err(parse_error)?,
        };
        Ok(Self {
            name: name.to_owned(),
            subject,
            table,
        })
    }

    /// What is learned by it.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// The recipe, not yet checked.
    ///
    /// # Errors
    /// If a value is missing, unknown or malformed.
    pub(crate) fn parse<R: DeserializeOwned>(self) -> Result<R, RecipeError> {
        self.table.try_into().map_err(|source| RecipeError::Parse {
            name: self.name,
            source,
        })
    }
}

/// What every recipe says, whatever is learned by it.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// What it is for.
    pub description: &'a str,
    /// Steps in all.
    pub steps: u64,
    /// Pictures a step.
    pub pictures: usize,
    /// Pictures in one forward pass.
    pub pictures_a_pass: usize,
    /// What is multiplied with.
    pub precision: Computing,
    /// How parameters follow their gradients.
    pub optimiser: &'a Optimiser,
    /// The learning rate over time.
    pub schedule: &'a ScheduleShape,
    /// How the run is watched.
    pub watch: &'a Watch,
}

impl Common<'_> {
    /// Forward passes of a step.
    pub fn passes(&self) -> usize {
        self.pictures / self.pictures_a_pass
    }

    /// The run that it describes.
    pub fn plan(&self, workers: Workers) -> Plan {
        Plan {
            steps: self.steps,
            passes: self.passes(),
            workers: workers.count.min(self.passes()),
            threads: workers.threads,
            loaders: workers.loaders,
            every: self.watch.every,
            optimiser: self.optimiser.build(),
            schedule: self.schedule.over(self.steps, self.optimiser.learning_rate),
        }
    }

    /// Refuses values that no run can have.
    pub(crate) fn check(&self) -> Result<(), RecipeError> {
        let (pictures, each) = (self.pictures, self.pictures_a_pass);
        let fit = pictures > 0 && each > 0 && pictures.is_multiple_of(each);
        let expected = "a multiple of `pictures_a_pass`, neither of them zero";
        check("pictures", &pictures, fit, expected)?;
        self.optimiser.check()?;
        self.schedule.check()?;
        self.watch.check()
    }
}

/// A task that a recipe describes.
pub trait ByRecipe: Task {
    /// What the recipe says.
    fn common(&self) -> Common<'_>;

    /// Pictures to learn from.
    fn available(&self) -> usize;

    /// What the network asks for.
    fn parts(&self) -> &[Part];

    /// How many parameters of the network are not trained.
    fn frozen_parameters(&self, parameters: &Parameters) -> u64 {
        let is_trained = |key: &str| parameters.get(key).is_some_and(Parameter::is_trained);
        let parts = self.parts().iter();
        let frozen = parts.filter(|part| !is_trained(&part.key));
        frozen.map(|part| part.len() as u64).sum()
    }
}

/// One data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// Its kind: `refcoco`, `folder`, …
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub source: Source,
    /// The split that is learned from; that of training where there is one, unless another is
    /// named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Where it lies; where the command says unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// How often it is drawn from, against the others.
    #[serde(default = "one")]
    pub weight: f64,
}

impl Set {
    /// The split that is learned from.
    pub fn split(&self) -> &str {
        let first = self.source.splits()[0];
        self.split.as_deref().unwrap_or(first)
    }
}

/// What the factors of a layer's products are, and of their derivatives. Sums, activations, gradients and the parameters
/// themselves are f32 whatever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Computing {
    /// 32-bit floats.
    #[default]
    F32,
    /// Rounded to bf16: see [`Precision::Bf16`].
    Bf16,
    /// bf16 where the processor multiplies bf16, f32 elsewhere.
    Auto,
}

impl Computing {
    /// What it comes to on this machine.
    pub fn precision(self) -> Precision {
        let multiplies_bf16 = || InstructionSet::current().products_at_once(Precision::Bf16) > 1;
        match self {
            Self::Bf16 => Precision::Bf16,
            Self::Auto if multiplies_bf16() => Precision::Bf16,
            Self::F32 | Self::Auto => Precision::F32,
        }
    }
}

/// How parameters follow their gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimiser {
    /// Which one.
    pub name: OptimiserName,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decays of the running means of the gradient and of its square (AdamW), or of the two
    /// momenta (Lion).
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whether vectors (norms, biases) decay too.
    pub decay_vectors: bool,
    /// Gradients are scaled down to this norm, taken over all tensors together.
    pub clip_norm: f64,
    /// Decay of a running mean of the parameters, which is what the run leaves behind; 0 leaves
    /// the last step's.
    pub average: f64,
}

/// The optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimiserName {
    /// Loshchilov and Hutter, arXiv 1711.05101.
    AdamW,
    /// Chen et al., arXiv 2302.06675.
    Lion,
}

impl Optimiser {
    /// The rule itself.
    fn build(&self) -> optimiser::Optimiser {
        let [beta1, beta2] = self.betas.map(|beta| beta as f32);
        optimiser::Optimiser {
            rule: match self.name {
                OptimiserName::AdamW => Rule::AdamW {
                    beta1,
                    beta2,
                    epsilon: self.epsilon as f32,
                },
                OptimiserName::Lion => Rule::Lion { beta1, beta2 },
            },
            weight_decay: self.weight_decay as f32,
            decay_vectors: self.decay_vectors,
            clip_norm: self.clip_norm,
            average_decay: self.average as f32,
        }
    }

    fn check(&self) -> Result<(), RecipeError> {
        let rate = self.learning_rate;
        let positive = "a positive number";
        check(
            "optimiser.learning_rate",
            &rate,
            is_positive(rate),
            positive,
        )?;
        let betas = format!("{:?}", self.betas);
        let fit = self.betas.iter().all(|&beta| is_share(beta));
        check(
            "optimiser.betas",
            &betas,
            fit,
            "two numbers of 0 to below 1",
        )?;
        let norm = self.clip_norm;
        check("optimiser.clip_norm", &norm, is_positive(norm), positive)?;
        let average = self.average;
        check(
            "optimiser.average",
            &average,
            is_share(average),
            "0 to below 1",
        )
    }
}

/// The learning rate over time: linear warm-up, then half a cosine or a line down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleShape {
    /// Steps of warm-up, as a share of all.
    pub warm_up: f64,
    /// The last rate, as a share of the highest.
    pub floor: f64,
    /// Where warm-up begins, as a share of the highest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first: f64,
    /// How the rate falls.
    #[serde(default, skip_serializing_if = "is_cosine")]
    pub decline: Decline,
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

fn is_cosine(decline: &Decline) -> bool {
    *decline == Decline::Cosine
}

impl ScheduleShape {
    /// The rates of a run of so many steps.
    pub fn over(&self, steps: u64, peak: f64) -> Schedule {
        Schedule {
            peak,
            warm_up: (self.warm_up * steps as f64).round() as u64,
            steps,
            floor: self.floor,
            first: self.first,
            decline: self.decline,
        }
    }

    fn check(&self) -> Result<(), RecipeError> {
        for (key, share) in [
            ("schedule.warm_up", self.warm_up),
            ("schedule.first", self.first),
            ("schedule.floor", self.floor),
        ] {
            check(key, &share, (0.0..=1.0).contains(&share), "a share, 0 to 1")?;
        }
        Ok(())
    }
}

/// How the run is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Steps between checkpoints and evaluations.
    pub every: u64,
    /// Pictures of each evaluation.
    pub pictures: usize,
}

impl Watch {
    fn check(&self) -> Result<(), RecipeError> {
        check("watch.every", &self.every, self.every > 0, "one or more")
    }
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a recipe of the program nor a file.
    #[error("there is no recipe `{found}`; expected a TOML file or one of {}", NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// The file cannot be read.
    #[error("`{path}`: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a recipe.
    #[error("`{name}`: not a recipe")]
    Parse {
        /// The recipe.
        name: String,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// An override does not name a value.
    #[error(
        "`{found}`: expected KEY=VALUE with a key of the recipe, such as optimiser.learning_rate=1e-4"
    )]
    Override {
        /// What was given.
        found: String,
    },
    /// A value makes no sense.
    #[error("`{key}` of the recipe is {found}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// Refuses a value that does not fit.
pub(crate) fn check(
    key: &'static str,
    found: &dyn fmt::Display,
    fits: bool,
    expected: &'static str,
) -> Result<(), RecipeError> {
    if fits {
        return Ok(());
    }
    Err(RecipeError::Value {
        key,
        found: found.to_string(),
        expected,
    })
}

/// Refuses data sets that cannot be drawn from.
pub(crate) fn check_sets(sets: &[Set]) -> Result<(), RecipeError> {
    check(
        "data.sets",
        &"empty",
        !sets.is_empty(),
        "at least one data set",
    )?;
    sets.iter().try_for_each(|set| {
        let fits = is_positive(set.weight);
        check("data.sets.weight", &set.weight, fits, "a positive number")
    })
}

/// Refuses qualities that JPEG does not have.
pub(crate) fn check_quality(qualities: Option<[u8; 2]>) -> Result<(), RecipeError> {
    let Some([low, high]) = qualities else {
        return Ok(());
    };
    let found = format!("{low} to {high}");
    let fit = 1 <= low && low <= high && high <= 100;
    let expected = "two qualities of 1 to 100, rising";
    check("data.jpeg_quality", &found, fit, expected)
}

/// Refuses canvases that are shorter than their pictures, or huge.
pub(crate) fn check_stretch(longest: Option<f64>) -> Result<(), RecipeError> {
    let longest = longest.unwrap_or(1.0);
    let fit = (1.0..=10.0).contains(&longest);
    check("data.stretch", &longest, fit, "1 to 10")
}

pub(crate) fn is_positive(x: f64) -> bool {
    x.is_finite() && x > 0.0
}

pub(crate) fn is_share(x: f64) -> bool {
    (0.0..1.0).contains(&x)
}

/// What leaves a value out that a recipe may do without: TOML has no word for it.
const NONE: &str = "none";

/// Replaces one value, or leaves it out; `None` if the key leads nowhere, or nothing is there to
/// leave out.
fn replace(table: &mut toml::Table, assignment: &str) -> Option<()> {
    let (key, value) = assignment.split_once('=')?;
    let parsed = format!("x = {value}").parse::<toml::Table>();
    let value = match parsed {
        Ok(mut table) => table.remove("x")?,
        // A bare word is a string.
        Err(_) => toml::Value::String(value.trim().to_owned()),
    };
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop()?;
    let mut table = table;
    for name in path {
        let below = toml::Value::Table(toml::Table::new());
        table = table.entry(name).or_insert(below).as_table_mut()?;
    }
    if value.as_str() == Some(NONE) {
        table.remove(last)?;
    } else {
        table.insert(last.to_owned(), value);
    }
    Some(())
}

fn one() -> f64 {
    1.0
}

pub(crate) fn as_text<T: fmt::Display, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(crate) fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr,
    T::Err: fmt::Display,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(de::Error::custom)
}
