//! From answers about points to a prompt for Segment Anything.

use super::quantise::{box_to_px, point_to_px};
use crate::sam::{Label, Point, Prompt};

/// How sure the model is about a point: probabilities of the next token over its whole vocabulary,
/// so that they need not add up to one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// Of `No`.
    pub no: f32,
    /// Of `Yes`.
    pub yes: f32,
}

/// What a probability has to exceed for the point to be used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// For a point beside the object.
    pub no: f32,
    /// For a point on the object.
    pub yes: f32,
}

impl Thresholds {
    /// The paper's (Table 6).
    pub const PAPER: Self = Self { no: 0.9, yes: 0.9 };
    /// Those of the official demonstration.
    pub const CODE: Self = Self { no: 0.9, yes: 0.75 };

    /// What a point says, or nothing if the model is not sure enough. `No` is looked at first.
    pub fn label(&self, confidence: Confidence) -> Option<Label> {
        if confidence.no > self.no {
            Some(Label::Background)
        } else if confidence.yes > self.yes {
            Some(Label::Foreground)
        } else {
            None
        }
    }

    /// The points of which the model is sure. Without an answer a point is dropped, and answers
    /// beyond the last point are not looked at.
    pub fn filter(
        &self,
        points_norm: &[[i32; 2]],
        confidences: &[Confidence],
    ) -> Vec<([i32; 2], Label)> {
        let answered = points_norm.iter().zip(confidences);
        answered
            .filter_map(|(&point, &confidence)| Some((point, self.label(confidence)?)))
            .collect()
    }
}

/// The prompt for an object: its box XYXY and points, in thousandths of the sides of a picture of
/// `size` (height, width).
pub fn sam_prompt(
    box_norm: [i32; 4],
    points_norm: &[([i32; 2], Label)],
    size: (usize, usize),
) -> Prompt {
    let point = |&(at_norm, label): &([i32; 2], Label)| Point {
        at_px: point_to_px(at_norm, size),
        label,
    };
    Prompt {
        points: points_norm.iter().map(point).collect(),
        box_px: Some(box_to_px(box_norm, size)),
        mask: None,
    }
}
