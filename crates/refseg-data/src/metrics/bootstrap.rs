//! How far scores would move on other pictures of the same sort.

use refseg::random::SplitMix64;
use serde::Serialize;

use super::{Metric, PerMetric, Rules, Scores, Sums};

/// Resamples pictures, not expressions: those of one picture stand or fall together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Times that as many pictures as there are get drawn, with replacement.
    pub rounds: usize,
    /// Decides which.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            rounds: 1000,
            seed: 0,
        }
    }
}

/// The middle 95 % of the rounds, in per cent of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

/// One system less another, on the same pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Difference of the scores, in percentage points.
    pub difference: f64,
    /// The middle 95 % of the difference over the rounds.
    pub interval: Interval,
    /// Share of rounds, 0 to 1, in which the difference is zero or has the other sign.
    pub other_sign: f64,
    /// Two-sided p-value, 0 to 1: twice the smaller share of rounds in which the
    /// difference is at most, or at least, zero; one round is added to either count,
    /// so that it is never zero.
    pub p_value: f64,
}

impl Bootstrap {
    /// Intervals of all metrics, given the sums of each picture.
    ///
    /// A round in which a metric has nothing to count is left out of its
    /// interval; a metric that has nothing to count at all has none.
    pub fn intervals(&self, rules: &Rules, pictures: &[Sums]) -> PerMetric<Option<Interval>> {
        let rounds = self.rounds(pictures.len(), |drawn| {
            rules.scores(&drawn.iter().map(|&picture| pictures[picture]).sum())
        });
        PerMetric::from_fn(|metric| {
            Interval::of(rounds.iter().filter_map(|scores| scores[metric]).collect())
        })
    }

    /// Compares two systems: `first` less `second`, picture by picture the same in each round.
    ///
    /// # Errors
    /// [`CompareError`] unless both have the same pictures, with the same expressions.
    pub fn compare(
        &self,
        rules: &Rules,
        first: &[Sums],
        second: &[Sums],
    ) -> Result<PerMetric<Option<Difference>>, CompareError> {
        check_same(first, second)?;
        let of = |system: &[Sums], drawn: &[usize]| {
            rules.scores(&drawn.iter().map(|&picture| system[picture]).sum())
        };
        let all: Vec<usize> = (0..first.len()).collect();
        let whole = less(&of(first, &all), &of(second, &all));
        let rounds = self.rounds(first.len(), |drawn| {
            less(&of(first, drawn), &of(second, drawn))
        });
        Ok(PerMetric::from_fn(|metric| {
            let rounds = rounds.iter().filter_map(|scores| scores[metric]).collect();
            Difference::of(whole[metric]?, rounds)
        }))
    }

    /// Calls `score` with the pictures of each round.
    fn rounds(&self, pictures: usize, score: impl Fn(&[usize]) -> Scores) -> Vec<Scores> {
        if pictures == 0 {
            return Vec::new();
        }
        let mut random = SplitMix64::new(self.seed);
        let mut drawn = vec![0; pictures];
        (0..self.rounds)
            .map(|_| {
                drawn.fill_with(|| random.below(pictures));
                score(&drawn)
            })
            .collect()
    }
}

impl Interval {
    fn of(mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_unstable_by(f64::total_cmp);
        Some(Self {
            low: percentile(&rounds, 0.025)?,
            high: percentile(&rounds, 0.975)?,
        })
    }
}

impl Difference {
    fn of(difference: f64, rounds: Vec<f64>) -> Option<Self> {
        let count = |within: fn(f64) -> bool| rounds.iter().filter(|&&d| within(d)).count() as f64;
        let (at_most, at_least) = (count(|d| d <= 0.0), count(|d| d >= 0.0));
        let other_sign = if difference > 0.0 {
            at_most
        } else if difference < 0.0 {
            at_least
        } else {
            rounds.len() as f64
        };
        let drawn = rounds.len() as f64;
        Some(Self {
            difference,
            interval: Interval::of(rounds)?,
            other_sign: other_sign / drawn,
            p_value: (2.0 * (at_most.min(at_least) + 1.0) / (drawn + 1.0)).min(1.0),
        })
    }
}

/// Two systems did not judge the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// One has more pictures than the other.
    #[error(
        "systems can be compared on the same pictures only: one has {first}, the other {second}"
    )]
    Pictures {
        /// Pictures of the first.
        first: usize,
        /// Pictures of the second.
        second: usize,
    },
    /// A picture has more expressions in one than in the other.
    #[error(
        "systems can be compared on the same expressions only: of picture {picture}, counted from 1, \
         one has {first}, the other {second}"
    )]
    Expressions {
        /// Position of the picture, counted from 1.
        picture: usize,
        /// Expressions of the first.
        first: u64,
        /// Expressions of the second.
        second: u64,
    },
}

fn check_same(first: &[Sums], second: &[Sums]) -> Result<(), CompareError> {
    if first.len() != second.len() {
        return Err(CompareError::Pictures {
            first: first.len(),
            second: second.len(),
        });
    }
    for (index, (first, second)) in first.iter().zip(second).enumerate() {
        if first.expressions != second.expressions {
            return Err(CompareError::Expressions {
                picture: index + 1,
                first: first.expressions,
                second: second.expressions,
            });
        }
    }
    Ok(())
}

fn less(first: &Scores, second: &Scores) -> Scores {
    Scores::from_fn(|metric: Metric| Some(first[metric]? - second[metric]?))
}

/// Between the two values whose ranks enclose it, linearly; `sorted` from the least to the greatest.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = share * (sorted.len().checked_sub(1)?) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    Some(low + (high - low) * rank.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_ranks() {
        let sorted: Vec<f64> = (0..=40).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.025), Some(1.0));
        assert_eq!(percentile(&sorted, 0.975), Some(39.0));
        assert_eq!(percentile(&[1.0, 3.0], 0.25), Some(1.5));
        assert_eq!(percentile(&[2.0], 0.975), Some(2.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
