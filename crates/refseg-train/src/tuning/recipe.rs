//! Recipes: everything that decides how a model is fine-tuned, in one TOML file.
//!
//! Some come with the program ([`Recipe::NAMES`]). `mllmseg-res` and `mllmseg-gres` are the
//! published ones, quirks included; `refseg-res` and `refseg-gres` put right what is wrong with
//! them; `finetune` is for a small model and one's own pictures. Every value stands beside its source in the files below `recipes/`.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use refseg::internvl::Fusion;
use refseg_data::dataset::Source;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How a model is fine-tuned on pictures with phrases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What it is for.
    pub description: String,
    /// Steps in all.
    pub steps: u64,
    /// Pictures a step.
    pub pictures: usize,
    /// Pictures in one forward pass: losses are averaged over these, and then over the passes.
    pub pictures_a_pass: usize,
    /// Seed of sampling, dropout and new parameters.
    pub seed: u64,
    /// What is learned from.
    pub data: Data,
    /// How the model is asked.
    pub prompt: Prompt,
    /// What is trained.
    pub train: Train,
    /// What mistakes cost.
    pub loss: Loss,
    /// How parameters follow their gradients.
    pub optimiser: Optimiser,
    /// The learning rate over time.
    pub schedule: ScheduleShape,
    /// How the run is watched.
    pub watch: Watch,
    /// Whether activations of the language model's layers are computed a second time for the
    /// gradients, rather than kept: memory then grows with one layer and not with all.
    pub recompute: bool,
}

/// What is learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Data sets, drawn from by weight.
    pub sets: Vec<Set>,
    /// Most sentences of one picture in one prompt.
    pub sentences: usize,
    /// Range of JPEG qualities, both ends included, that pictures are stored in before the model
    /// sees them; none leaves them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jpeg_quality: Option<[u8; 2]>,
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

/// How the model is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// One prompt for all sentences of a picture, as published; or each on its own.
    pub joint: bool,
    /// Words of the training prompts, or those of evaluation.
    pub wording: WordingChoice,
}

/// Which words a prompt is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordingChoice {
    /// One of the reference's four questions and five answers, drawn for each picture.
    Training,
    /// The one that published evaluations use.
    Evaluation,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Low-rank changes of the language model's matrices; without, they are frozen or trained
    /// whole, as `parameters` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Every parameter whose key contains one of these is trained whole.
    pub parameters: Vec<String>,
    /// Whether the rows of `[SEG]` and `[REJ]` in the embedding and in the head are trained where
    /// these matrices are not.
    pub new_rows: bool,
    /// Whether the mask decoder drops values in training, as published (0.1).
    pub decoder_dropout: bool,
    /// Which image features the mask decoder joins. Where it is given, the decoder begins anew,
    /// also that of a model which has one.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "optional_fusion"
    )]
    pub fusion: Option<Fusion>,
}

/// Low-rank changes (LoRA, arXiv 2106.09685).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Columns of `B`.
    pub rank: usize,
    /// The change is scaled by alpha over rank.
    pub alpha: f64,
    /// On the input of `A`.
    pub dropout: f64,
}

/// What mistakes cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// Weight of the cross-entropy of the answer's tokens.
    pub text: f64,
    /// Weight of the mask's pixel loss.
    pub mask: f64,
    /// Weight of Dice.
    pub dice: f64,
    /// Which pixel loss.
    pub mask_form: MaskForm,
    /// Weight of foreground pixels; the published focal loss has its own.
    #[serde(default = "one")]
    pub foreground: f64,
    /// Weight of a `[REJ]` among the answer's tokens.
    #[serde(default = "one")]
    pub rejection: f64,
    /// What the model is to say where a shorter prompt of a pass was filled up.
    pub padding: Padding,
}

/// Forms of the mask's pixel loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskForm {
    /// The code's: a focal loss that takes probabilities for logits.
    OfficialFocal,
    /// The paper's: binary cross-entropy, on logits.
    BinaryCrossEntropy,
    /// A focal loss on logits (arXiv 1708.02002).
    Focal,
}

/// What is learned where a shorter prompt was filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Nothing.
    Ignored,
    /// To say token 0, as the reference's collator has it.
    TokenZero,
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

/// The learning rate over time: linear warm-up, then half a cosine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleShape {
    /// Steps of warm-up, as a share of all.
    pub warm_up: f64,
    /// The last rate, as a share of the highest.
    pub floor: f64,
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

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a recipe of the program nor a file.
    #[error("there is no recipe `{found}`; expected a TOML file or one of {}", Recipe::NAMES.join(", "))]
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

impl Recipe {
    /// The recipes that come with the program.
    pub const NAMES: [&'static str; 5] = [
        "mllmseg-res",
        "mllmseg-gres",
        "refseg-res",
        "refseg-gres",
        "finetune",
    ];

    /// The text of a recipe that comes with the program.
    pub fn text(name: &str) -> Option<&'static str> {
        Some(match name {
            "mllmseg-res" => include_str!("../../recipes/mllmseg-res.toml"),
            "mllmseg-gres" => include_str!("../../recipes/mllmseg-gres.toml"),
            "refseg-res" => include_str!("../../recipes/refseg-res.toml"),
            "refseg-gres" => include_str!("../../recipes/refseg-gres.toml"),
            "finetune" => include_str!("../../recipes/finetune.toml"),
            _ => return None,
        })
    }

    /// A recipe by its name or from a TOML file, with some of its values replaced: `overrides`
    /// are `key.key=value` with the value as TOML would have it, or a bare word.
    ///
    /// # Errors
    /// If there is no such recipe, or a value is unknown, malformed or out of range.
    pub fn load(name: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| RecipeError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let text = match Self::text(name) {
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
        let recipe: Self = table.try_into().map_err(parse_error)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Forward passes of a step.
    pub fn passes(&self) -> usize {
        self.pictures / self.pictures_a_pass
    }

    /// Steps of warm-up.
    pub fn warm_up(&self) -> u64 {
        (self.schedule.warm_up * self.steps as f64).round() as u64
    }

    fn check(&self) -> Result<(), RecipeError> {
        let wrong = |key, found: &dyn fmt::Display, expected| {
            Err(RecipeError::Value {
                key,
                found: found.to_string(),
                expected,
            })
        };
        let is_positive = |x: f64| x.is_finite() && x > 0.0;
        let is_share = |x: f64| (0.0..1.0).contains(&x);
        let Self {
            optimiser,
            schedule,
            ..
        } = self;
        if self.pictures_a_pass == 0
            || self.pictures == 0
            || !self.pictures.is_multiple_of(self.pictures_a_pass)
        {
            return wrong(
                "pictures",
                &self.pictures,
                "a multiple of `pictures_a_pass`, neither of them zero",
            );
        }
        if self.data.sets.is_empty() {
            return wrong("data.sets", &"empty", "at least one data set");
        }
        if let Some(set) = self.data.sets.iter().find(|set| !is_positive(set.weight)) {
            return wrong("data.sets.weight", &set.weight, "a positive number");
        }
        if self.data.sentences == 0 {
            return wrong("data.sentences", &0, "one or more");
        }
        if let Some([low, high]) = self.data.jpeg_quality
            && !(1 <= low && low <= high && high <= 100)
        {
            let found = format!("{low} to {high}");
            return wrong(
                "data.jpeg_quality",
                &found,
                "two qualities of 1 to 100, rising",
            );
        }
        if let Some(lora) = self.train.lora {
            if lora.rank == 0 || lora.rank > 1 << 12 {
                return wrong("train.lora.rank", &lora.rank, "1 to 4096");
            }
            if !is_positive(lora.alpha) {
                return wrong("train.lora.alpha", &lora.alpha, "a positive number");
            }
            if !is_share(lora.dropout) {
                return wrong("train.lora.dropout", &lora.dropout, "0 to below 1");
            }
        }
        if !is_positive(optimiser.learning_rate) {
            let found = optimiser.learning_rate;
            return wrong("optimiser.learning_rate", &found, "a positive number");
        }
        if !optimiser.betas.iter().all(|&beta| is_share(beta)) {
            let found = format!("{:?}", optimiser.betas);
            return wrong("optimiser.betas", &found, "two numbers of 0 to below 1");
        }
        if !is_positive(optimiser.clip_norm) {
            return wrong(
                "optimiser.clip_norm",
                &optimiser.clip_norm,
                "a positive number",
            );
        }
        if !is_share(optimiser.average) {
            return wrong("optimiser.average", &optimiser.average, "0 to below 1");
        }
        if !(0.0..=1.0).contains(&schedule.warm_up) {
            return wrong(
                "schedule.warm_up",
                &schedule.warm_up,
                "a share of all steps",
            );
        }
        if self.watch.every == 0 {
            return wrong("watch.every", &0, "one or more");
        }
        Ok(())
    }
}

/// Replaces one value; `None` if the key leads nowhere.
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
    table.insert(last.to_owned(), value);
    Some(())
}

fn one() -> f64 {
    1.0
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr,
    T::Err: fmt::Display,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(de::Error::custom)
}

/// [`Fusion`] by its name.
mod optional_fusion {
    use super::{Deserialize, Deserializer, Fusion, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        fusion: &Option<Fusion>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match fusion {
            Some(fusion) => serializer.serialize_str(fusion.name()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Fusion>, D::Error> {
        let name = String::deserialize(deserializer)?;
        let fusion = Fusion::named(&name);
        let expected = || {
            let names = Fusion::ALL.map(Fusion::name).join(", ");
            de::Error::custom(format!("`{name}` is none of {names}"))
        };
        fusion.map(Some).ok_or_else(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_of_the_program_is_valid() -> Result<(), RecipeError> {
        for name in Recipe::NAMES {
            let recipe = Recipe::load(name, &[])?;
            let again = toml::to_string(&recipe).expect("a recipe is TOML");
            assert_eq!(
                again.parse::<toml::Table>().expect("TOML").try_into(),
                Ok(recipe)
            );
        }
        Ok(())
    }

    #[test]
    fn published_recipes_have_the_published_values() -> Result<(), RecipeError> {
        let res = Recipe::load("mllmseg-res", &[])?;
        assert_eq!(
            (res.steps, res.pictures, res.pictures_a_pass),
            (50_000, 32, 4)
        );
        assert_eq!((res.warm_up(), res.passes()), (1500, 8));
        let gres = Recipe::load("mllmseg-gres", &[])?;
        assert_eq!((gres.steps, gres.warm_up()), (20_000, 600));
        assert_eq!(gres.loss.mask_form, MaskForm::OfficialFocal);
        Ok(())
    }

    #[test]
    fn values_are_replaced_and_wrong_ones_named() -> Result<(), RecipeError> {
        let set = |text: &str| Recipe::load("refseg-res", &[text.to_owned()]);
        assert_eq!(
            set("optimiser.learning_rate=1e-3")?.optimiser.learning_rate,
            1e-3
        );
        assert_eq!(
            set("optimiser.name=lion")?.optimiser.name,
            OptimiserName::Lion
        );
        assert_eq!(
            set("train.fusion = \"t1\"")?.train.fusion,
            Some(Fusion::Vision)
        );
        let error = |text: &str| {
            let error = set(text).expect_err("a wrong value");
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error} {}", cause.unwrap_or_default())
        };
        assert!(error("pictures=7").contains("`pictures` of the recipe is 7"));
        assert!(error("optimiser.speed=1").contains("unknown field `speed`"));
        assert!(error("steps").contains("KEY=VALUE"));
        assert!(error("train.fusion=t3").contains("`t3` is none of t1, t2, concat, dsff"));
        Ok(())
    }
}
