//! Which pictures and sentences a step learns from.
//!
//! Reference: the training data set of MLLMSeg (spec §6): a data set, then one of its pictures,
//! then some of its sentences, all uniformly. Differs: data sets may have weights, and a draw is a
//! function of its number, so that a run that is resumed draws what it would have drawn.

use refseg::{Image, random::SplitMix64};
use refseg_data::{
    dataset::DataError,
    evaluate::{Asked, Example, Examples},
};

use crate::{
    TrainError,
    draws::{self, MOST_DRAWS, choose, take},
};

/// Data sets to draw from.
pub struct Sampler {
    sets: Vec<(f64, Box<dyn Examples + Send>)>,
    sentences: usize,
    seed: u64,
}

/// A picture with some of its sentences, at least one of which has a target.
pub struct Drawn {
    /// The picture.
    pub image: Image,
    /// The sentences, in the order in which they were drawn.
    pub asked: Vec<Asked>,
    /// For whatever else is random about it.
    pub random: SplitMix64,
}

impl Sampler {
    /// Draws from `sets` by their weights, at most `sentences` of a picture.
    pub fn new(sets: Vec<(f64, Box<dyn Examples + Send>)>, sentences: usize, seed: u64) -> Self {
        Self {
            sets,
            sentences,
            seed,
        }
    }

    /// Pictures in all data sets.
    pub fn pictures(&self) -> usize {
        self.sets.iter().map(|(_, set)| set.pictures()).sum()
    }

    /// The draw of this number. The same number gives the same draw.
    ///
    /// # Errors
    /// If a picture or a truth cannot be read, or no draw has a target.
    pub fn draw(&self, number: u64) -> Result<Drawn, TrainError> {
        let mut random = draws::random("draw", self.seed, number);
        for _ in 0..MOST_DRAWS {
            let set = choose(&self.sets, &mut random);
            let picture = random.below(set.pictures());
            let Example {
                image,
                expressions: mut asked,
                ..
            } = set.example(picture)?;
            take(&mut asked, self.sentences, &mut random);
            if asked.iter().any(|asked| asked.truth.mask.area() > 0) {
                return Ok(Drawn {
                    image,
                    asked,
                    random,
                });
            }
        }
        Err(TrainError::NothingToLearn)
    }
}

impl From<DataError> for TrainError {
    fn from(error: DataError) -> Self {
        Self::Data(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use refseg_data::scenes::{DrawnScenes, SceneOptions};

    use super::*;

    fn scenes(count: usize) -> Box<dyn Examples + Send> {
        Box::new(DrawnScenes {
            options: SceneOptions {
                size: 64,
                ..SceneOptions::default()
            },
            first: 0,
            count,
        })
    }

    #[test]
    fn a_number_always_draws_the_same_and_never_more_than_asked() -> Result<(), TrainError> {
        let sampler = Sampler::new(vec![(1.0, scenes(20))], 5, 42);
        let texts = |number| {
            let drawn = sampler.draw(number)?;
            let phrases = drawn.asked.iter().map(|asked| asked.phrase.clone());
            Ok::<Vec<String>, TrainError>(phrases.collect())
        };
        assert_eq!(texts(7)?, texts(7)?);
        let mut different = std::collections::BTreeSet::new();
        for number in 0..20 {
            let phrases = texts(number)?;
            assert!((1..=5).contains(&phrases.len()), "{phrases:?}");
            let unique: std::collections::BTreeSet<_> = phrases.iter().collect();
            assert_eq!(unique.len(), phrases.len(), "each at most once");
            different.insert(phrases);
        }
        assert!(different.len() > 10, "draws differ");
        Ok(())
    }

    #[test]
    fn weights_decide_how_often_a_set_is_drawn_from() {
        let sampler = Sampler::new(vec![(3.0, scenes(1)), (1.0, scenes(2))], 5, 1);
        let mut random = SplitMix64::new(1);
        let first = (0..4000).filter(|_| choose(&sampler.sets, &mut random).pictures() == 1);
        let share = first.count() as f64 / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share}");
    }
}
