//! Conversations that teach a language model to prompt Segment Anything, as SAM4MLLM does: made
//! from what a data set marks, anew for each epoch.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use refseg_data::conversations::{Recipe, write};
//! use refseg_data::dataset::{Dataset, Source};
//!
//! let data = Dataset::open(&Source::RefCoco, "train", Path::new("data"))?;
//! let recipe = Recipe::repaired();
//! let tokens = |turns: &[refseg_data::conversations::Turn]| turns.len() * 200; // better: a tokenizer
//! for picture in &data.pictures {
//!     let described = data.described(picture, (480, 640))?;
//!     let mut random = recipe.stream(&picture.id, 0); // of epoch 0
//!     for turns in write(&described, &recipe, &mut random, &tokens).conversations {
//!         println!("{}", turns[0].answer);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Paper: SAM4MLLM (ECCV 2024). Reference: `to_chat_format.ipynb` and `data/*.ipynb` of its
//! repository. Differs: points are drawn for each expression rather than once for all sentences
//! about an object, in each epoch again, and not from a hundred patterns made beforehand; an
//! expression that is too long for a conversation of its own is left out and named, where the
//! reference never gets past it.

mod poisson;
mod ppg;
mod write;

use refseg::{
    Image, Mask,
    random::SplitMix64,
    sam4mllm::{AnswerCount, Method, ProbePattern, PromptedObject, Wording},
};

use crate::{dataset::DataError, metrics::Family};

pub use poisson::poisson_disk;
pub use ppg::{GROUPS, GROUPS_KEPT, best_groups, draw_groups};
pub use write::{Written, write};

/// A question and its answer, without the layout of any language model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// What is asked; in front of a conversation's first question the picture is shown.
    pub question: String,
    /// What the model should say.
    pub answer: String,
}

/// What is known of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    /// Height and width.
    pub size: (usize, usize),
    /// What is marked in it, each object once.
    pub objects: Vec<Object>,
    /// What is said about it.
    pub expressions: Vec<Said>,
}

/// Pictures of which is known what is marked in them and what is said: a data set that was read, or
/// one that is drawn.
pub trait DescribedPictures: Sync {
    /// Number of pictures.
    fn count(&self) -> usize;

    /// A picture's name, the picture, and what is known of it.
    ///
    /// # Errors
    /// Whatever the data set is at fault with.
    fn described_picture(&self, picture: usize) -> Result<(String, Image, Described), DataError>;
}

/// A marked object.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The stated box XYXY in pixels. It may exceed the picture a little, and need not fit the mask.
    pub box_px: [f64; 4],
    /// Its pixels, at the size of the picture.
    pub mask: Mask,
    /// For PPG: groups of points that Segment Anything masks it well with ([`best_groups`]).
    pub groups: Vec<PromptedObject>,
}

/// A phrase and what it means.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// The phrase, used as it is.
    pub phrase: String,
    /// Indices of the objects, in the order of the annotations; none if nothing is meant.
    pub objects: Vec<usize>,
    /// How many objects such a phrase may mean.
    pub count: AnswerCount,
}

/// How conversations are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What the model learns to answer.
    pub method: Method,
    /// How the question about points begins; the same in use, or the model is asked what it never heard.
    pub wording: Wording,
    /// The count that every question states; `None` for that of the phrase.
    pub count: Option<AnswerCount>,
    /// Where in an object's box points are drawn.
    pub spread: Spread,
    /// How many points are drawn.
    pub points: PointCount,
    /// The share of objects about whose points is asked; all of them as published.
    pub probed: f64,
    /// Expressions of a conversation, at most.
    pub expressions: usize,
    /// Conversations of a picture, at most; expressions beyond them are left out.
    pub conversations: Option<usize>,
    /// Tokens of a conversation, at most.
    pub tokens: usize,
    /// Decides all that is drawn.
    pub seed: u64,
}

/// Where in a box points are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spread {
    /// Anywhere, each on its own.
    Uniform,
    /// No two closer than `radius`, in shares of the box's sides ([`poisson_disk`]).
    Poisson {
        /// The least distance.
        radius: f64,
        /// Points to choose from, at most; fewer where no more fit.
        candidates: usize,
    },
    /// Just those that are asked about in use; [`Recipe::points`] then says nothing.
    Probes(ProbePattern),
}

/// How many points are drawn in a box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PointCount {
    /// Always as many.
    Fixed(usize),
    /// Normally distributed, clamped to a range, then cut to a whole number.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        deviation: f64,
        /// Least.
        least: usize,
        /// Most.
        most: usize,
    },
}

impl Recipe {
    /// The official program for training data: Poisson disks, 1 to 20 points, always the count `0+`,
    /// the wording `bbox`, five expressions a conversation.
    pub fn code() -> Self {
        Self {
            method: Method::Pqpp,
            wording: Wording::BoundingBox,
            count: Some(AnswerCount::ZeroOrMore),
            spread: Spread::Poisson {
                radius: 0.1,
                candidates: 100,
            },
            points: PointCount::Normal {
                mean: 10.0,
                deviation: 4.0,
                least: 1,
                most: 20,
            },
            probed: 1.0,
            expressions: 5,
            conversations: Some(20),
            tokens: 1536,
            seed: 0,
        }
    }

    /// What the paper says: ten points anywhere in the box, 2,048 tokens. What it does not say is as
    /// in [`Recipe::repaired`].
    pub fn paper() -> Self {
        Self {
            spread: Spread::Uniform,
            points: PointCount::Fixed(10),
            tokens: 2048,
            ..Self::repaired()
        }
    }

    /// The official program, with each phrase's own count, the wording that is used in
    /// inference, and no limit of conversations a picture.
    pub fn repaired() -> Self {
        Self {
            wording: Wording::Coordinates,
            count: None,
            conversations: None,
            ..Self::code()
        }
    }

    /// The random numbers of a picture in an epoch: the same wherever and in whatever order pictures
    /// are gone through.
    pub fn stream(&self, picture: &str, epoch: u64) -> SplitMix64 {
        SplitMix64::named(&format!("conversations/{epoch}/{picture}"), self.seed)
    }
}

impl PointCount {
    fn draw(self, random: &mut SplitMix64) -> usize {
        match self {
            Self::Fixed(count) => count,
            Self::Normal {
                mean,
                deviation,
                least,
                most,
            } => {
                let drawn = mean + deviation * random.normal();
                drawn.max(least as f64).min(most as f64) as usize
            }
        }
    }
}

/// How many objects a phrase of such a data set may mean.
pub fn answer_count(family: Family) -> AnswerCount {
    match family {
        Family::Res => AnswerCount::One,
        Family::Gres | Family::Reason => AnswerCount::ZeroOrMore,
    }
}

/// Puts things into a random order (Fisher and Yates, 1938).
fn shuffle<T>(things: &mut [T], random: &mut SplitMix64) {
    for last in (1..things.len()).rev() {
        things.swap(last, random.below(last + 1));
    }
}

#[cfg(test)]
mod tests;
