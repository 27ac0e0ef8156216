//! Metrics of generalised referring segmentation.
//!
//! Metrics see masks, never models. Sums are whole numbers or f64, so that no
//! order of the samples changes a result beyond rounding.

use std::collections::BTreeMap;

/// Sums over expressions, in all and by kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    kinds: BTreeMap<String, Sums>,
}

/// Sums over expressions of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Expressions.
    pub expressions: u64,
    /// Pixels in both masks.
    pub intersection: u64,
    /// Pixels in either mask.
    pub union: u64,
    /// Sum of the IoU of each expression.
    pub iou: f64,
    /// Expressions whose IoU is above one half.
    pub above_half: u64,
    /// Expressions without a target.
    pub without_target: u64,
    /// Of those, how many were answered "not found".
    pub rejected: u64,
    /// Expressions with a target.
    pub with_target: u64,
    /// Of those, how many were answered "found".
    pub accepted: u64,
}

/// One expression, judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// Pixels in both masks.
    pub intersection: u64,
    /// Pixels in either mask.
    pub union: u64,
    /// Whether the truth has any pixel.
    pub has_target: bool,
    /// Whether the answer was "found".
    pub found: bool,
}

impl Judged {
    /// IoU of the expression: 1 if both masks are empty.
    pub fn iou(&self) -> f64 {
        if self.union == 0 {
            1.0
        } else {
            self.intersection as f64 / self.union as f64
        }
    }
}

impl Tally {
    /// Adds an expression of a kind.
    pub fn add(&mut self, kind: &str, judged: Judged) {
        let sums = self.kinds.entry(kind.to_owned()).or_default();
        sums.expressions += 1;
        sums.intersection += judged.intersection;
        sums.union += judged.union;
        sums.iou += judged.iou();
        sums.above_half += u64::from(judged.iou() > 0.5);
        if judged.has_target {
            sums.with_target += 1;
            sums.accepted += u64::from(judged.found);
        } else {
            sums.without_target += 1;
            sums.rejected += u64::from(!judged.found);
        }
    }

    /// Adds an expression given both masks, pixel by pixel.
    pub fn add_pixels(
        &mut self,
        kind: &str,
        predicted: impl Iterator<Item = bool>,
        truth: impl Iterator<Item = bool>,
        found: bool,
    ) {
        let mut judged = Judged {
            intersection: 0,
            union: 0,
            has_target: false,
            found,
        };
        for (predicted, truth) in predicted.zip(truth) {
            judged.intersection += u64::from(predicted && truth);
            judged.union += u64::from(predicted || truth);
            judged.has_target |= truth;
        }
        self.add(kind, judged);
    }

    /// Adds everything that another tally holds.
    pub fn merge(&mut self, other: &Self) {
        for (kind, sums) in &other.kinds {
            self.kinds.entry(kind.clone()).or_default().merge(sums);
        }
    }

    /// Sums over all kinds.
    pub fn all(&self) -> Sums {
        let mut all = Sums::default();
        self.kinds.values().for_each(|sums| all.merge(sums));
        all
    }

    /// Sums by kind.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &Sums)> {
        self.kinds.iter().map(|(kind, sums)| (kind.as_str(), sums))
    }
}

impl Sums {
    fn merge(&mut self, other: &Self) {
        self.expressions += other.expressions;
        self.intersection += other.intersection;
        self.union += other.union;
        self.iou += other.iou;
        self.above_half += other.above_half;
        self.without_target += other.without_target;
        self.rejected += other.rejected;
        self.with_target += other.with_target;
        self.accepted += other.accepted;
    }

    /// cIoU in per cent: summed intersection over summed union.
    pub fn ciou(&self) -> f64 {
        percent(self.intersection as f64, self.union as f64)
    }

    /// gIoU in per cent: mean IoU per expression; one without a target counts 1 if the mask is empty.
    pub fn giou(&self) -> f64 {
        percent(self.iou, self.expressions as f64)
    }

    /// Prec@0.5 in per cent: expressions whose IoU is above one half.
    pub fn precision(&self) -> f64 {
        percent(self.above_half as f64, self.expressions as f64)
    }

    /// N-acc in per cent: expressions without a target that were rejected.
    pub fn n_acc(&self) -> f64 {
        percent(self.rejected as f64, self.without_target as f64)
    }

    /// T-acc in per cent: expressions with a target that were not rejected.
    pub fn t_acc(&self) -> f64 {
        percent(self.accepted as f64, self.with_target as f64)
    }
}

/// A share in per cent; NaN where there is nothing to count.
fn percent(part: f64, whole: f64) -> f64 {
    100.0 * part / whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(intersection: u64, union: u64, has_target: bool, found: bool) -> Judged {
        Judged {
            intersection,
            union,
            has_target,
            found,
        }
    }

    #[test]
    fn four_expressions_by_hand() {
        let mut tally = Tally::default();
        tally.add("attribute", judged(30, 40, true, true));
        tally.add("attribute", judged(0, 10, true, false));
        tally.add("none", judged(0, 0, false, false));
        tally.add("none", judged(0, 50, false, true));
        let all = tally.all();
        assert_eq!(all.ciou(), 30.0);
        assert_eq!(all.giou(), (0.75 + 0.0 + 1.0 + 0.0) / 4.0 * 100.0);
        assert_eq!(all.precision(), 50.0);
        assert_eq!(all.n_acc(), 50.0);
        assert_eq!(all.t_acc(), 50.0);
    }

    #[test]
    fn order_and_merging_change_nothing() {
        let samples = [(3, 9, true), (0, 0, false), (5, 5, true), (0, 7, false)];
        let tally = |order: &[usize]| {
            let mut tally = Tally::default();
            for &i in order {
                let (intersection, union, has_target) = samples[i];
                tally.add("any", judged(intersection, union, has_target, union > 0));
            }
            tally
        };
        let mut halves = tally(&[3, 1]);
        halves.merge(&tally(&[0, 2]));
        assert_eq!(tally(&[0, 1, 2, 3]).all(), halves.all());
    }

    #[test]
    fn pixels_are_counted() {
        let mut tally = Tally::default();
        tally.add_pixels(
            "any",
            [true, true, false].into_iter(),
            [false, true, true].into_iter(),
            true,
        );
        assert_eq!((tally.all().intersection, tally.all().union), (1, 3));
    }
}
