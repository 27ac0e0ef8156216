//! Recipes by which a language model learns to prompt Segment Anything.
//!
//! `sam4mllm-paper` and `sam4mllm-code` are SAM4MLLM's two accounts of itself; `sam4mllm-small` is
//! for a model of a few million parameters.

use refseg::sam4mllm::{AnswerCount, Method, ProbePattern};
use refseg_data::conversations::{self, Spread};
use serde::{Deserialize, Serialize};

use crate::recipes::{
    Book, Common, check, check_quality, check_sets, check_stretch, is_positive, is_share,
};
pub use crate::recipes::{Computing, Optimiser, RecipeError, ScheduleShape, Set, Watch};

/// How a language model is taught.
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
    /// What is asked and answered.
    pub talk: Talk,
    /// What is trained.
    pub train: Train,
    /// What a mistake counts.
    pub loss: Loss,
    /// How parameters follow their gradients.
    pub optimiser: Optimiser,
    /// The learning rate over time.
    pub schedule: ScheduleShape,
    /// How the run is watched.
    pub watch: Watch,
}

/// What is learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Data sets, drawn from by weight.
    pub sets: Vec<Set>,
    /// Range of JPEG qualities, both ends included, that pictures are stored in before the model
    /// sees them; none leaves them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jpeg_quality: Option<[u8; 2]>,
    /// Half of the pictures lie on a canvas that is wider or taller than they are, by up to so many
    /// times their longer side less one; none leaves them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stretch: Option<f64>,
    /// Side in pixels of the square that the model sees, whatever the picture's shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squash: Option<u32>,
}

/// What is asked and answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Talk {
    /// Whose texts and numbers: see [`conversations::Recipe`].
    pub preset: Preset,
    /// How often a phrase is asked about in PQPP's way, against [`Talk::ppg`].
    pub pqpp: f64,
    /// How often in PPG's way.
    pub ppg: f64,
    /// Phrases of a picture that are learned from at once, at most.
    pub phrases: usize,
    /// Conversations of a picture that are learned from at once, at most.
    pub conversations: usize,
    /// Phrases of a conversation, at most; as the preset has it unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phrases_each: Option<usize>,
    /// Tokens of a conversation, at most; as the preset has it unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Asks about these points rather than about drawn ones: `grid5`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<String>,
    /// The share of objects about whose points is asked.
    #[serde(default = "whole")]
    pub probed: f64,
    /// The order of several objects in an answer.
    #[serde(default)]
    pub order: Order,
    /// A Segment Anything model that judges PPG's groups of points; without, any group will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<std::path::PathBuf>,
}

/// Whose conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The official program's.
    Code,
    /// The paper's.
    Paper,
    /// The official program's without its disagreements.
    Repaired,
}

/// The order of several objects in an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As they are annotated.
    #[default]
    Annotated,
    /// By their left sides: an order that can be learned.
    LeftToRight,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Every parameter whose key contains one of these is trained whole.
    pub parameters: Vec<String>,
    /// Low-rank changes of matrices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
}

/// Low-rank changes (LoRA, arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Columns of `B`.
    pub rank: usize,
    /// The change is scaled by alpha over rank.
    pub alpha: f64,
    /// On the input of `A`.
    pub dropout: f64,
    /// Every matrix whose key contains one of these is changed, unless it is trained whole.
    pub of: Vec<String>,
    /// But for those whose key contains one of these.
    #[serde(default)]
    pub but: Vec<String>,
}

/// What a mistake counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// What is averaged first.
    pub mean_of: MeanOf,
    /// By how many thousandths, as a standard deviation, a number may miss: its neighbours are then
    /// right in part. 0, as published, knows no neighbours.
    #[serde(default)]
    pub blur: f64,
    /// What helper heads count, which ask the model where its answer lies before it says it. 0, as
    /// published, has none.
    #[serde(default)]
    pub helpers: f64,
}

/// What is averaged first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeanOf {
    /// The tokens of a conversation, and then the conversations: as published, where a
    /// conversation is a batch of its own.
    Conversations,
    /// All tokens of a pass.
    Tokens,
}

impl Recipe {
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

    /// What a conversation by one of the methods is made by.
    pub fn conversations(&self, method: Method) -> conversations::Recipe {
        let preset = match self.talk.preset {
            Preset::Code => conversations::Recipe::code(),
            Preset::Paper => conversations::Recipe::paper(),
            Preset::Repaired => conversations::Recipe::repaired(),
        };
        let probes = self.talk.probes.as_deref().map(str::parse);
        conversations::Recipe {
            method,
            spread: match probes {
                Some(Ok(pattern)) => Spread::Probes(pattern),
                _ => preset.spread,
            },
            expressions: self.talk.phrases_each.unwrap_or(preset.expressions),
            conversations: None,
            tokens: self.talk.tokens.unwrap_or(preset.tokens),
            probed: self.talk.probed,
            seed: self.seed,
            ..preset
        }
    }

    /// The count that every question states, if it is always the same.
    pub fn count(&self) -> Option<AnswerCount> {
        self.conversations(Method::Pqpp).count
    }

    fn check(&self) -> Result<(), RecipeError> {
        self.common().check()?;
        check_sets(&self.data.sets)?;
        check_quality(self.data.jpeg_quality)?;
        check_stretch(self.data.stretch)?;
        let squash = self.data.squash.unwrap_or(1);
        let fits = (1..=4096).contains(&squash);
        check("data.squash", &squash, fits, "a side of 1 to 4096 pixels")?;
        self.talk.check()?;
        if let Some(lora) = &self.train.lora {
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
        let blur = self.loss.blur;
        check(
            "loss.blur",
            &blur,
            (0.0..=100.0).contains(&blur),
            "0 to 100",
        )?;
        let helpers = self.loss.helpers;
        check(
            "loss.helpers",
            &helpers,
            (0.0..=100.0).contains(&helpers),
            "0 to 100",
        )?;
        Ok(())
    }
}

impl Talk {
    fn check(&self) -> Result<(), RecipeError> {
        let shares = format!("{} and {}", self.pqpp, self.ppg);
        let is_weight = |x: f64| x.is_finite() && x >= 0.0;
        let fit = is_weight(self.pqpp) && is_weight(self.ppg) && self.pqpp + self.ppg > 0.0;
        let expected = "two weights, one of them above zero";
        check("talk.pqpp and talk.ppg", &shares, fit, expected)?;
        let counts = [
            ("talk.phrases", self.phrases),
            ("talk.conversations", self.conversations),
            ("talk.phrases_each", self.phrases_each.unwrap_or(1)),
            ("talk.tokens", self.tokens.unwrap_or(1)),
        ];
        for (key, count) in counts {
            check(key, &count, count > 0, "one or more")?;
        }
        let probed = self.probed;
        check(
            "talk.probed",
            &probed,
            (0.0..=1.0).contains(&probed),
            "a share, 0 to 1",
        )?;
        if let Some(name) = &self.probes {
            let fits = name.parse::<ProbePattern>().is_ok();
            check("talk.probes", name, fits, "a pattern such as grid5")?;
        }
        Ok(())
    }
}

fn whole() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{optimiser::Decline, recipes::OptimiserName};

    fn load(name: &str) -> Result<Recipe, RecipeError> {
        Recipe::of(Book::open(name, &[])?)
    }

    #[test]
    fn published_recipes_have_the_published_values() -> Result<(), RecipeError> {
        let paper = load("sam4mllm-paper")?;
        assert_eq!(paper.optimiser.name, OptimiserName::Lion);
        assert_eq!((paper.optimiser.learning_rate, paper.pictures), (1e-5, 128));
        let lora = paper.train.lora.expect("LoRA");
        assert_eq!((lora.rank, lora.alpha), (256, 128.0));
        let code = load("sam4mllm-code")?;
        let schedule = code.schedule.over(1000, code.optimiser.learning_rate);
        assert_eq!((schedule.warm_up, schedule.decline), (10, Decline::Linear));
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9);
        close(schedule.peak * schedule.first, 4e-6);
        close(schedule.rate(10), 1e-4);
        close(schedule.rate(1000), 4e-10);
        assert_eq!(code.conversations(Method::Pqpp).tokens, 1536);
        Ok(())
    }

    #[test]
    fn every_recipe_is_toml_again() -> Result<(), RecipeError> {
        for name in ["sam4mllm-paper", "sam4mllm-code", "sam4mllm-small"] {
            let recipe = load(name)?;
            let again = toml::to_string(&recipe).expect("a recipe is TOML");
            assert_eq!(
                again.parse::<toml::Table>().expect("TOML").try_into(),
                Ok(recipe)
            );
        }
        Ok(())
    }

    #[test]
    fn wrong_values_are_named() {
        let error = |text: &str| {
            let book = Book::open("sam4mllm-small", &[text.to_owned()]);
            book.and_then(Recipe::of)
                .expect_err("a wrong value")
                .to_string()
        };
        assert!(error("talk.probes=grid7").contains("`talk.probes` of the recipe is grid7"));
        assert!(error("talk.pqpp=-1").contains("two weights"));
        assert!(error("data.squash=0").contains("1 to 4096"));
    }
}
