//! Predictions in files: what a model answered, one line for each expression.
//!
//! refseg writes `predictions.jsonl` ([`Prediction`], [`Writer`]), continues it
//! after a kill ([`Resume`]) and joins the files of several machines
//! ([`merge`]). The answers of any system, in lines with COCO run-length codes or
//! in a folder of PNG files, are read as [`Answers`].

mod answers;
mod lines;
mod writer;

use std::{
    fmt, io,
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::Arc,
};

use refseg::mask::{Mask, MaskError, Rle};
use serde::{Deserialize, Serialize};

use crate::metrics::{Outcome, rec_hit};

pub use answers::{Answer, AnswerKey, Answers, Reading, file_name};
pub use lines::JsonLines;
pub use writer::{Resume, Writer, merge};

/// One line of `predictions.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Id of the picture.
    pub picture: String,
    /// Id of the expression, unique in the data set.
    pub expression: String,
    /// The phrase, as it was asked.
    pub phrase: String,
    /// Whether the answer was "found".
    pub found: bool,
    /// Probability that there is a target, 0 to 1.
    pub presence: f32,
    /// Mean probability of the pixels in the mask, 0 to 1; 0 if there are none.
    pub score: f32,
    /// The mask at the size of the picture; also where the answer was "not found",
    /// for published rules count it all the same.
    pub rle: CocoRle,
    /// Box of the pixels strictly above one half, as [`Mask::official_box`] gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rec_box: Option<[u32; 4]>,
    /// Pixels in both masks.
    #[serde(rename = "I")]
    pub intersection: u64,
    /// Pixels in either mask.
    #[serde(rename = "U")]
    pub union: u64,
    /// Pixels in the predicted mask.
    pub predicted: u64,
    /// Pixels in the true mask.
    pub truth: u64,
    /// Time that the expression took, in milliseconds.
    pub ms: f64,
}

impl Prediction {
    /// What became of the expression, by what the line says; `true_box` as [`rec_hit`] wants it.
    pub fn outcome(&self, true_box: Option<[f32; 4]>) -> Outcome {
        Outcome {
            intersection: self.intersection,
            union: self.union,
            predicted: self.predicted,
            truth: self.truth,
            found: self.found,
            box_hit: self
                .rec_box
                .zip(true_box)
                .map(|(predicted, truth)| rec_hit(predicted, truth)),
        }
    }
}

/// A run-length code as COCO's JSON files hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CocoRle {
    /// Height and width.
    pub size: [usize; 2],
    /// The runs.
    pub counts: Counts,
}

/// The two forms of COCO's `counts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "`counts` must be a string or a list of run lengths"
)]
pub enum Counts {
    /// Compressed, as pycocotools writes it.
    Text(String),
    /// Uncompressed: background first, going down each column from the left.
    Lengths(Vec<u32>),
}

impl CocoRle {
    /// The code of a mask, compressed.
    pub fn of(mask: &Mask) -> Self {
        let Rle { size, counts } = mask.to_rle();
        Self {
            size,
            counts: Counts::Text(counts),
        }
    }

    /// The compressed code.
    ///
    /// # Errors
    /// [`MaskError`] if run lengths do not add up to the size. Text is not looked into.
    pub fn into_rle(self) -> Result<Rle, MaskError> {
        match self.counts {
            Counts::Text(counts) => Ok(Rle {
                size: self.size,
                counts,
            }),
            Counts::Lengths(lengths) => Rle::from_runs(self.size, &lengths),
        }
    }
}

/// Where a prediction stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// Its line, counted from 1; `None` where a file holds one prediction.
    pub line: Option<NonZeroU64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.path.display())?;
        match self.line {
            Some(line) => write!(f, ", line {line}"),
            None => Ok(()),
        }
    }
}

/// What is wrong with predictions, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictionsError {
    /// A file or folder cannot be read.
    #[error("`{path}`: cannot be read")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("`{path}`: cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A prediction is no JSON, or not of the right form.
    #[error("{place}: not a prediction in JSON")]
    Json {
        /// Where.
        place: Place,
        /// What JSON says.
        #[source]
        source: serde_json::Error,
    },
    /// Nothing says which expression is meant.
    #[error("{place}: there is no `expression`, no `id`, and no `image` with `phrase`")]
    Unnamed {
        /// Where.
        place: Place,
    },
    /// A mask is damaged.
    #[error("{place}: the mask of {key} is damaged")]
    Mask {
        /// Where.
        place: Place,
        /// The expression.
        key: AnswerKey,
        /// What is wrong with it.
        #[source]
        source: MaskError,
    },
    /// A mask is not of the size of its picture.
    #[error(
        "{place}: the mask of {key} is {}x{} (height x width), but its picture is {}x{}",
        found[0], found[1], expected[0], expected[1]
    )]
    Size {
        /// Where.
        place: Place,
        /// The expression.
        key: AnswerKey,
        /// Height and width of the mask.
        found: [usize; 2],
        /// Height and width of the picture.
        expected: [usize; 2],
    },
    /// A file with a mask cannot be read as PNG.
    #[error("{place}: not a mask in a PNG file")]
    Png {
        /// Where.
        place: Place,
        /// Why.
        #[source]
        source: image::ImageError,
    },
    /// A prediction is for something that was not asked.
    #[error("{place}: {key} is not in the data set")]
    Unknown {
        /// Where.
        place: Place,
        /// What it says it is for.
        key: AnswerKey,
    },
    /// A picture is not in the data set.
    #[error("{place}: picture `{picture}` is not in the data set")]
    UnknownPicture {
        /// Where.
        place: Place,
        /// Id of the picture.
        picture: String,
    },
    /// An expression has two predictions.
    #[error("{place}: a second prediction for {key}; the first is in {first}")]
    Duplicate {
        /// Where.
        place: Place,
        /// The expression.
        key: AnswerKey,
        /// Where the first one is.
        first: Place,
    },
    /// An expression has no prediction.
    #[error(
        "there is no prediction for expression `{expression}`, \"{phrase}\", of picture `{picture}`"
    )]
    Missing {
        /// Id of the picture.
        picture: String,
        /// Id of the expression.
        expression: String,
        /// The phrase.
        phrase: String,
    },
    /// Two expressions would have the same file.
    #[error("expressions `{first}` and `{second}` would both be in `{name}`")]
    SameFile {
        /// Id of an expression.
        first: String,
        /// Id of another.
        second: String,
        /// The name of the file.
        name: String,
    },
}

#[cfg(test)]
mod tests;
