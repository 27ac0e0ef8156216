//! What is said to the language model, and what it was trained to answer.
//!
//! Reference: `to_chat_format.ipynb`, `data/dataset_cls.py` and `simple_infer.ipynb` of SAM4MLLM.
//! Models know these very bytes.

use std::{fmt, str::FromStr};

use crate::sam::Label;

/// The answer about a phrase that nothing fits.
pub const NO_OBJECT: &str = "No object found.";
/// The answer about a point on the object.
pub const YES: &str = "Yes";
/// The answer about a point beside the object.
pub const NO: &str = "No";
/// What stands for the picture, at the beginning of a conversation.
pub const IMAGE: &str = "<image>";

/// How many objects a phrase may mean; the question says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnswerCount {
    /// `1`: exactly one, as in RefCOCO, RefCOCO+ and RefCOCOg.
    One,
    /// `1+`: at least one.
    OneOrMore,
    /// `0+`: any number, as in gRefCOCO and ReasonSeg. The official conversations for training
    /// say this of every phrase.
    ZeroOrMore,
}

/// How the question about points begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wording {
    /// `… with coordinates …`: what the official demonstration asks, and released adapters know.
    Coordinates,
    /// `… with bounding box …`: what the official program for training data writes.
    BoundingBox,
}

/// What the first question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Proactive query of prompt-points: boxes, and a second question about points in each.
    Pqpp,
    /// Prompt-point generation: boxes with points at once.
    Ppg,
}

/// An object as PPG has it: a box and points that prompt Segment Anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptedObject {
    /// Box XYXY in thousandths of the picture's sides.
    pub box_norm: [i32; 4],
    /// Points `(x, y)` in thousandths, and whether each is on the object.
    pub points_norm: Vec<([i32; 2], Label)>,
}

/// The first question about a phrase, which is quoted as it is.
///
/// In front of the first question of a conversation stands [`IMAGE`] and a line break.
pub fn first_question(method: Method, phrase: &str, count: AnswerCount) -> String {
    let wanted = match method {
        Method::Pqpp => "bounding box coordinate",
        // Neither the paper nor the official code has a text for this.
        Method::Ppg => "bounding box coordinate and prompt points",
    };
    format!(
        "Please provide the {wanted} of the region this sentence describes ({count}):\n\"{phrase}\"."
    )
}

/// The answer of PQPP to the first question: boxes, or that there is none.
pub fn boxes_answer(boxes_norm: &[[i32; 4]]) -> String {
    or_no_object(boxes_norm.iter().copied().map(written_box))
}

/// The answer of PPG: boxes with their points, or that there is none.
pub fn objects_answer(objects: &[PromptedObject]) -> String {
    or_no_object(objects.iter().map(|object| {
        let mut text = written_box(object.box_norm);
        for ([x, y], label) in &object.points_norm {
            let on = u8::from(*label == Label::Foreground);
            text.push_str(&format!("({x:03},{y:03},{on})"));
        }
        text
    }))
}

/// The second question of PQPP: which of some points are on the object in a box?
pub fn second_question(wording: Wording, box_norm: [i32; 4], points_norm: &[[i32; 2]]) -> String {
    let with = match wording {
        Wording::Coordinates => "coordinates",
        Wording::BoundingBox => "bounding box",
    };
    let points: Vec<String> = points_norm
        .iter()
        .map(|[x, y]| format!("({x:03},{y:03})"))
        .collect();
    format!(
        "Check if the points listed below are located on the object with {with} {}:\n{}",
        written_box(box_norm),
        points.join(" ")
    )
}

/// The answer to the second question: a word for each point, with nothing between them.
pub fn labels_answer(labels: &[Label]) -> String {
    let word = |label: &Label| match label {
        Label::Foreground => YES,
        Label::Background => NO,
    };
    labels.iter().map(word).collect()
}

fn written_box([x1, y1, x2, y2]: [i32; 4]) -> String {
    format!("[{x1:03},{y1:03},{x2:03},{y2:03}]")
}

fn or_no_object(objects: impl Iterator<Item = String>) -> String {
    let objects: Vec<String> = objects.collect();
    if objects.is_empty() {
        NO_OBJECT.to_owned()
    } else {
        objects.join(" ")
    }
}

impl AnswerCount {
    const ALL: [Self; 3] = [Self::One, Self::OneOrMore, Self::ZeroOrMore];
}

impl fmt::Display for AnswerCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "1",
            Self::OneOrMore => "1+",
            Self::ZeroOrMore => "0+",
        })
    }
}

/// A name that means none of the things it could.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not one of {expected}")]
pub struct UnknownName {
    /// What was written.
    pub found: String,
    /// What could have been.
    pub expected: &'static str,
}

impl FromStr for AnswerCount {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let all = Self::ALL.into_iter();
        named(
            all.map(|count| (count.to_string(), count)),
            text,
            "`1`, `1+`, `0+`",
        )
    }
}

impl FromStr for Wording {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let all = [("coords", Self::Coordinates), ("bbox", Self::BoundingBox)];
        named(all, text, "`coords`, `bbox`")
    }
}

impl FromStr for Method {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        named(
            [("pqpp", Self::Pqpp), ("ppg", Self::Ppg)],
            text,
            "`pqpp`, `ppg`",
        )
    }
}

/// The thing that is called `text`.
pub(super) fn named<T, N: AsRef<str>>(
    all: impl IntoIterator<Item = (N, T)>,
    text: &str,
    expected: &'static str,
) -> Result<T, UnknownName> {
    let mut all = all.into_iter();
    let found = all.find(|(name, _)| name.as_ref() == text);
    found.map(|(_, thing)| thing).ok_or_else(|| UnknownName {
        found: text.to_owned(),
        expected,
    })
}
