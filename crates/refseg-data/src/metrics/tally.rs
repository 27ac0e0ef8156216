//! Drawn scenes: sums by kind of phrase.

use std::collections::BTreeMap;

use super::{Family, Outcome, Rules, Scores, Sums};

/// Sums over expressions, in all and by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    kinds: BTreeMap<String, Sums>,
}

impl Tally {
    /// Drawn scenes have phrases without a target, and a rejected one counts as a user gets it.
    pub const RULES: Rules = Rules {
        family: Family::Gres,
        blank_rejected: true,
    };

    /// Adds an expression of a kind.
    pub fn add(&mut self, kind: &str, outcome: &Outcome) {
        let sums = Self::RULES.sums(std::slice::from_ref(outcome));
        self.kinds.entry(kind.to_owned()).or_default().merge(&sums);
    }

    /// Adds everything that another tally holds.
    pub fn merge(&mut self, other: &Self) {
        for (kind, sums) in &other.kinds {
            self.kinds.entry(kind.clone()).or_default().merge(sums);
        }
    }

    /// Sums over all kinds.
    pub fn all(&self) -> Sums {
        self.kinds.values().copied().sum()
    }

    /// Sums by kind.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &Sums)> {
        self.kinds.iter().map(|(kind, sums)| (kind.as_str(), sums))
    }

    /// The metrics of some of its sums.
    pub fn scores(sums: &Sums) -> Scores {
        Self::RULES.scores(sums)
    }
}
