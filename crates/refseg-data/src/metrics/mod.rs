//! Metrics of referring segmentation: every number that refseg reports.
//!
//! Metrics see masks, never models. An [`Outcome`] holds what any of them needs
//! to know about one expression. [`Rules`] add the outcomes of a picture up to
//! [`Sums`], and turn sums over any pictures into [`Scores`]. Sums are whole
//! numbers, so neither the order of samples nor the way in which they are split
//! changes a single bit. `docs/metrics.md` has each definition.

mod bootstrap;
mod outcome;
mod scores;
mod sums;
mod tally;

pub use bootstrap::{Bootstrap, CompareError, Difference, Interval};
pub use outcome::{Outcome, rec_hit};
pub use scores::{Metric, PerMetric, Scores};
pub use sums::{Mean, PRECISION_THRESHOLDS, Sums};
pub use tally::Tally;

/// Which evaluation a data set belongs to: they differ in what they average and
/// in what an expression without a target is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Referring segmentation: RefCOCO, RefCOCO+, RefCOCOg. Every expression has one target.
    Res,
    /// Generalised referring segmentation: gRefCOCO. An expression has any number of targets, or none.
    Gres,
    /// Reasoning segmentation: ReasonSeg. Masks have regions that do not count.
    Reason,
}

/// How outcomes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Decides how gIoU is averaged.
    pub family: Family,
    /// Whether an expression that was rejected counts with an empty mask, as a
    /// user would get it. If not, the published rules hold, by which a target
    /// that was rejected is scored with the mask it would have had.
    pub blank_rejected: bool,
}

impl Rules {
    /// Adds up the outcomes of all expressions of one picture.
    pub fn sums(&self, picture: &[Outcome]) -> Sums {
        let mut sums = Sums::default();
        let mut terms = Mean::default();
        for outcome in picture {
            let counted = self.counted(outcome);
            let (intersection, union) = self.pixels(&counted);
            sums.add_outcome(&counted, intersection, union, self.iou(outcome));
            terms.add(self.term(&counted));
        }
        sums.giou = match self.family {
            Family::Gres => terms,
            Family::Res | Family::Reason => terms.value().into_iter().collect(),
        };
        sums
    }

    /// The metrics of pictures, given their sums, added up.
    pub fn scores(&self, sums: &Sums) -> Scores {
        let epsilons = self.epsilons();
        Scores::from_fn(|metric| match metric {
            Metric::Ciou => percent(
                sums.intersection as f64,
                sums.union as f64,
                epsilons.summed_union,
            ),
            Metric::Giou => percent(sums.giou.total(), sums.giou.count() as f64, epsilons.count),
            Metric::Miou => percent(sums.iou.total(), sums.iou.count() as f64, 0.0),
            Metric::PrecAt0_5 => share(sums.above[0], sums.expressions),
            Metric::PrecAt0_6 => share(sums.above[1], sums.expressions),
            Metric::PrecAt0_7 => share(sums.above[2], sums.expressions),
            Metric::PrecAt0_8 => share(sums.above[3], sums.expressions),
            Metric::PrecAt0_9 => share(sums.above[4], sums.expressions),
            Metric::RecPrecAt0_5 => share(sums.box_hits, sums.boxes),
            Metric::NAcc => share(sums.rejected, sums.without_target),
            Metric::TAcc => share(sums.accepted, sums.with_target),
        })
    }

    /// IoU of one expression, 0 to 1, as mIoU averages it: without the epsilons of published code.
    pub fn iou(&self, outcome: &Outcome) -> f64 {
        let outcome = self.counted(outcome);
        self.decided(&outcome).unwrap_or_else(|| outcome.iou())
    }

    /// What one expression adds to gIoU.
    fn term(&self, counted: &Outcome) -> f64 {
        if let Some(decided) = self.decided(counted) {
            decided
        } else if counted.union == 0 {
            1.0
        } else {
            counted.intersection as f64 / (counted.union as f64 + self.epsilons().union)
        }
    }

    /// IoU where the published rules take it from the decision alone: without a target in gRefCOCO.
    fn decided(&self, counted: &Outcome) -> Option<f64> {
        let by_decision =
            self.family == Family::Gres && !self.blank_rejected && !counted.has_target();
        by_decision.then_some(if counted.found { 0.0 } else { 1.0 })
    }

    /// Intersection and union as cIoU sums them.
    fn pixels(&self, counted: &Outcome) -> (u64, u64) {
        match self.decided(counted) {
            // By the published rules, a right rejection adds nothing, whatever its mask.
            Some(1.0) => (0, 0),
            _ => (counted.intersection, counted.union),
        }
    }

    fn counted(&self, outcome: &Outcome) -> Outcome {
        if self.blank_rejected && !outcome.found {
            outcome.blanked()
        } else {
            *outcome
        }
    }

    fn epsilons(&self) -> Epsilons {
        if self.blank_rejected {
            return Epsilons::NONE;
        }
        match self.family {
            Family::Res => Epsilons {
                union: 1e-5,
                count: 1e-5,
                summed_union: 1e-10,
            },
            Family::Gres => Epsilons {
                union: 1e-8,
                count: 1e-5,
                summed_union: 1e-10,
            },
            Family::Reason => Epsilons {
                union: 1e-5,
                ..Epsilons::NONE
            },
        }
    }
}

/// What published code adds to denominators.
struct Epsilons {
    /// To the union of an expression, in gIoU.
    union: f64,
    /// To what gIoU averages over.
    count: f64,
    /// To the summed union of cIoU.
    summed_union: f64,
}

impl Epsilons {
    const NONE: Self = Self {
        union: 0.0,
        count: 0.0,
        summed_union: 0.0,
    };
}

/// A share in per cent; `None` where there is nothing to count.
fn share(part: u64, whole: u64) -> Option<f64> {
    percent(part as f64, whole as f64, 0.0)
}

fn percent(part: f64, whole: f64, epsilon: f64) -> Option<f64> {
    (whole > 0.0).then(|| 100.0 * part / (whole + epsilon))
}

#[cfg(test)]
mod tests;
