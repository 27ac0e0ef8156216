//! Recipes: everything that decides how a model is fine-tuned, in one TOML file.
//!
//! Some come with the program ([`NAMES`](crate::recipes::NAMES)). `mllmseg-res` and `mllmseg-gres` are the
//! published ones, quirks included; `refseg-res` and `refseg-gres` put right what is wrong with
//! them; `finetune` is for a small model and one's own pictures. Every value stands beside its source in the files below `recipes/`.

use refseg::internvl::Fusion;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::recipes::{Book, Common, check, check_quality, check_sets, is_positive, is_share};
pub use crate::recipes::{
    Computing, Optimiser, OptimiserName, RecipeError, ScheduleShape, Set, Watch,
};

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
    /// What is multiplied with.
    #[serde(default)]
    pub precision: Computing,
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

impl Recipe {
    /// A recipe by its name or from a TOML file, with some of its values replaced: `overrides`
    /// are `key.key=value` with the value as TOML would have it, or a bare word.
    ///
    /// # Errors
    /// If there is no such recipe, or a value is unknown, malformed or out of range.
    pub fn load(name: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        Self::of(Book::open(name, overrides)?)
    }

    /// A recipe that was opened.
    ///
    /// # Errors
    /// If a value is missing, unknown, malformed or out of range.
    pub fn of(book: Book) -> Result<Self, RecipeError> {
        let recipe: Self = book.parse()?;
        recipe.check()?;
        Ok(recipe)
    }

    /// What it has in common with every recipe.
    pub fn common(&self) -> Common<'_> {
        Common {
            description: &self.description,
            steps: self.steps,
            pictures: self.pictures,
            pictures_a_pass: self.pictures_a_pass,
            precision: self.precision,
            optimiser: &self.optimiser,
            schedule: &self.schedule,
            watch: &self.watch,
        }
    }

    fn check(&self) -> Result<(), RecipeError> {
        self.common().check()?;
        check_sets(&self.data.sets)?;
        let sentences = self.data.sentences;
        check("data.sentences", &sentences, sentences > 0, "one or more")?;
        check_quality(self.data.jpeg_quality)?;
        if let Some(lora) = self.train.lora {
            let rank = lora.rank;
            check(
                "train.lora.rank",
                &rank,
                (1..=1 << 12).contains(&rank),
                "1 to 4096",
            )?;
            let alpha = lora.alpha;
            check(
                "train.lora.alpha",
                &alpha,
                is_positive(alpha),
                "a positive number",
            )?;
            let dropout = lora.dropout;
            check(
                "train.lora.dropout",
                &dropout,
                is_share(dropout),
                "0 to below 1",
            )?;
        }
        Ok(())
    }
}

fn one() -> f64 {
    1.0
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
    fn a_value_can_be_left_out() -> Result<(), RecipeError> {
        let with = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            Recipe::of(Book::open("mllmseg-res", &overrides)?)
        };
        assert!(with(&[])?.train.lora.is_some());
        assert!(with(&["train.lora=none"])?.train.lora.is_none());
        assert!(with(&["train.lroa=none"]).is_err());
        // What no recipe can do without is missed.
        assert!(with(&["steps=none"]).is_err());
        Ok(())
    }

    #[test]
    fn every_recipe_of_the_program_is_valid() -> Result<(), RecipeError> {
        for name in [
            "mllmseg-res",
            "mllmseg-gres",
            "refseg-res",
            "refseg-gres",
            "finetune",
        ] {
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
        let warm_up = |recipe: &Recipe| recipe.schedule.over(recipe.steps, 1.0).warm_up;
        assert_eq!((warm_up(&res), res.common().passes()), (1500, 8));
        let gres = Recipe::load("mllmseg-gres", &[])?;
        assert_eq!((gres.steps, warm_up(&gres)), (20_000, 600));
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
