//! Recipes by which a Segment Anything model learns to draw what prompts mean.
//!
//! `sam-decoder` fine-tunes the mask decoder of a published model, as SAM4MLLM does; `sam-small`
//! trains a small model from scratch.

use serde::{Deserialize, Serialize};

use crate::recipes::{Book, Common, check, check_quality, check_sets, check_stretch};
pub use crate::recipes::{Computing, Optimiser, RecipeError, ScheduleShape, Set, Watch};

/// How a Segment Anything model is trained.
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
    /// Seed of sampling.
    pub seed: u64,
    /// What is multiplied with.
    #[serde(default)]
    pub precision: Computing,
    /// What is learned from.
    pub data: Data,
    /// What prompts look like.
    pub prompts: Prompts,
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
    /// Objects of one picture that are learned from at once, at most.
    pub objects: usize,
}

/// What prompts look like: all of a picture's are of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// How often it is a box alone, against the others.
    pub boxes: f64,
    /// How often it is points on the object.
    pub points: f64,
    /// How often it is a box with points anywhere in it, each with its label: what PQPP sends.
    pub both: f64,
    /// Points, at most.
    pub most_points: usize,
    /// Deviation by which each side of a box moves, in shares of the box's own sides.
    pub jitter: f64,
    /// How often several masks are drawn, as for an ambiguous prompt, rather than one.
    pub several: f64,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Every parameter whose key contains one of these is trained.
    pub parameters: Vec<String>,
}

/// What mistakes cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// Weight of the pixel loss.
    pub pixels: f64,
    /// Which pixel loss.
    pub form: PixelForm,
    /// Weight of foreground pixels in it.
    #[serde(default = "one")]
    pub foreground: f64,
    /// Weight of Dice.
    pub dice: f64,
    /// Weight of the squared error of predicted IoUs.
    pub iou: f64,
}

/// Forms of the pixel loss, each on logits and averaged over the pixels of a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PixelForm {
    /// Cross-entropy.
    BinaryCrossEntropy,
    /// Cross-entropy times the square of how wrong a pixel is (arXiv 1708.02002).
    Focal,
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

    fn check(&self) -> Result<(), RecipeError> {
        self.common().check()?;
        check_sets(&self.data.sets)?;
        check_quality(self.data.jpeg_quality)?;
        check_stretch(self.data.stretch)?;
        let Prompts {
            boxes,
            points,
            both,
            most_points,
            jitter,
            several,
        } = self.prompts;
        let weights = [boxes, points, both];
        let found = format!("{weights:?}");
        let is_weight = |x: &f64| x.is_finite() && *x >= 0.0;
        let fit = weights.iter().all(is_weight) && weights.iter().sum::<f64>() > 0.0;
        let expected = "weights, one of them above zero";
        check("prompts.boxes, points and both", &found, fit, expected)?;
        let fits = |count: usize| (1..=100).contains(&count);
        check(
            "prompts.most_points",
            &most_points,
            fits(most_points),
            "1 to 100",
        )?;
        let objects = self.data.objects;
        check("data.objects", &objects, fits(objects), "1 to 100")?;
        let is_share = |x: f64| (0.0..=1.0).contains(&x);
        check("prompts.jitter", &jitter, is_share(jitter), "0 to 1")?;
        check("prompts.several", &several, is_share(several), "0 to 1")?;
        Ok(())
    }
}

fn one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_is_toml_again() -> Result<(), RecipeError> {
        for name in ["sam-decoder", "sam-small"] {
            let recipe = Recipe::of(Book::open(name, &[])?)?;
            let again = toml::to_string(&recipe).expect("a recipe is TOML");
            assert_eq!(
                again.parse::<toml::Table>().expect("TOML").try_into(),
                Ok(recipe)
            );
        }
        let book = Book::open("sam-small", &["prompts.jitter=2".to_owned()])?;
        let error = Recipe::of(book).expect_err("a wrong value");
        assert!(
            error
                .to_string()
                .contains("`prompts.jitter` of the recipe is 2")
        );
        Ok(())
    }
}
