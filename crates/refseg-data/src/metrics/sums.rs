//! What outcomes add up to.

use super::Outcome;

/// IoUs of masks above which Prec@X counts an expression.
pub const PRECISION_THRESHOLDS: [f64; 5] = [0.5, 0.6, 0.7, 0.8, 0.9];

/// Outcomes of any number of pictures, added up by [`super::Rules::sums`] and [`Sums::merge`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Expressions.
    pub expressions: u64,
    /// Pixels in both masks, as cIoU counts them.
    pub intersection: u64,
    /// Pixels in either mask, as cIoU counts them.
    pub union: u64,
    /// Terms of gIoU: of expressions in the family GRES, of pictures in the others.
    pub giou: Mean,
    /// IoU of each expression.
    pub iou: Mean,
    /// Expressions whose IoU is above each of [`PRECISION_THRESHOLDS`].
    pub above: [u64; 5],
    /// Expressions with a true box.
    pub boxes: u64,
    /// Of those, how many were hit.
    pub box_hits: u64,
    /// Expressions without a target.
    pub without_target: u64,
    /// Of those, how many were answered "not found".
    pub rejected: u64,
    /// Expressions with a target.
    pub with_target: u64,
    /// Of those, how many were answered "found".
    pub accepted: u64,
}

impl Sums {
    /// Adds other pictures.
    pub fn merge(&mut self, other: &Self) {
        self.expressions += other.expressions;
        self.intersection += other.intersection;
        self.union += other.union;
        self.giou.merge(&other.giou);
        self.iou.merge(&other.iou);
        for (above, other) in self.above.iter_mut().zip(other.above) {
            *above += other;
        }
        self.boxes += other.boxes;
        self.box_hits += other.box_hits;
        self.without_target += other.without_target;
        self.rejected += other.rejected;
        self.with_target += other.with_target;
        self.accepted += other.accepted;
    }

    /// Adds an expression, but for its term of gIoU.
    pub(super) fn add_outcome(
        &mut self,
        outcome: &Outcome,
        intersection: u64,
        union: u64,
        iou: f64,
    ) {
        self.expressions += 1;
        self.intersection += intersection;
        self.union += union;
        self.iou.add(iou);
        for (above, threshold) in self.above.iter_mut().zip(PRECISION_THRESHOLDS) {
            *above += u64::from(iou > threshold);
        }
        self.boxes += u64::from(outcome.box_hit.is_some());
        self.box_hits += u64::from(outcome.box_hit == Some(true));
        if outcome.has_target() {
            self.with_target += 1;
            self.accepted += u64::from(outcome.found);
        } else {
            self.without_target += 1;
            self.rejected += u64::from(!outcome.found);
        }
    }
}

impl std::iter::Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(pictures: I) -> Self {
        pictures.fold(Self::default(), |mut sums, picture| {
            sums.merge(&picture);
            sums
        })
    }
}

/// A mean that is still being collected.
///
/// Values lie within 0 and 1 and are kept as multiples of 2⁻⁶⁰, below half an ulp of
/// any that is not tiny. Whole numbers add up to the same total in every order, which
/// sums of f64 do not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mean {
    /// In units of 2⁻⁶⁰.
    total: u128,
    count: u64,
}

/// Units in one.
const ONE: f64 = (1_u64 << 60) as f64;

impl Mean {
    /// Adds a value from 0 to 1.
    pub fn add(&mut self, value: f64) {
        self.total += (value * ONE).round() as u128;
        self.count += 1;
    }

    /// Adds the values of another mean.
    pub fn merge(&mut self, other: &Self) {
        self.total += other.total;
        self.count += other.count;
    }

    /// Sum of the values.
    pub fn total(&self) -> f64 {
        self.total as f64 / ONE
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean of the values; `None` if there are none.
    pub fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.total() / self.count as f64)
    }
}

impl FromIterator<f64> for Mean {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut mean = Self::default();
        values.into_iter().for_each(|value| mean.add(value));
        mean
    }
}
