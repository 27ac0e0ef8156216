//! The course of a number over a run, in bounded memory, and how fast the run goes.

use std::{collections::VecDeque, time::Duration};

/// What a loss was from the first step on.
#[derive(Debug, Clone)]
pub(super) struct Course {
    /// Means over `stride` steps each.
    means: Vec<f64>,
    stride: u32,
    /// Sum and number of those that are no whole mean yet.
    rest: (f64, u32),
}

/// Means that are kept: more than a terminal has columns.
const MOST: usize = 512;
/// Logarithms that differ by less are the same, so that rounding is not drawn.
const FLAT: f64 = 1e-6;
/// From low to high.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Default for Course {
    fn default() -> Self {
        Self {
            means: Vec::new(),
            stride: 1,
            rest: (0.0, 0),
        }
    }
}

impl Course {
    /// Adds a step's value. One that is not positive and finite leaves no trace: a loss is 0 while nothing that it
    /// measures is trained.
    pub(super) fn push(&mut self, value: f64) {
        if !(value.is_finite() && value > 0.0) {
            return;
        }
        self.rest = (self.rest.0 + value, self.rest.1 + 1);
        if self.rest.1 < self.stride {
            return;
        }
        self.means.push(self.rest.0 / f64::from(self.stride));
        self.rest = (0.0, 0);
        if self.means.len() == MOST {
            let halved = self.means.chunks_exact(2);
            self.means = halved.map(|pair| (pair[0] + pair[1]) / 2.0).collect();
            self.stride *= 2;
        }
    }

    /// At most `columns` bars; between the lowest and the highest value, heights are logarithmic.
    pub(super) fn sparkline(&self, columns: usize) -> String {
        let mut values = self.means.clone();
        if self.rest.1 > 0 {
            values.push(self.rest.0 / f64::from(self.rest.1));
        }
        let columns = columns.min(values.len());
        let mean = |column: usize| {
            let start = column * values.len() / columns;
            let end = (column + 1) * values.len() / columns;
            let part = &values[start..end];
            part.iter().sum::<f64>() / part.len() as f64
        };
        let heights: Vec<f64> = (0..columns).map(|column| mean(column).ln()).collect();
        let low = heights.iter().copied().fold(f64::MAX, f64::min);
        let high = heights.iter().copied().fold(f64::MIN, f64::max);
        let bar = |height: &f64| {
            let share = (height - low) / (high - low).max(FLAT);
            BARS[((share * BARS.len() as f64) as usize).min(BARS.len() - 1)]
        };
        heights.iter().map(bar).collect()
    }
}

/// An exponential mean without bias at the start.
#[derive(Debug, Clone, Default)]
pub(super) struct Smooth {
    sum: f64,
    weights: f64,
}

impl Smooth {
    /// Adds a value, by which all before it lose half of their weight in `half_life` steps. Numbers that are not
    /// finite are passed over.
    pub(super) fn push(&mut self, value: f64, half_life: f64) {
        if value.is_finite() {
            let keep = 0.5f64.powf(1.0 / half_life);
            self.sum = keep * self.sum + value;
            self.weights = keep * self.weights + 1.0;
        }
    }

    /// The mean; `None` before the first value.
    pub(super) fn value(&self) -> Option<f64> {
        (self.weights > 0.0).then(|| self.sum / self.weights)
    }
}

/// How long the last steps took, and what they got through.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    recent: VecDeque<(Duration, u64, u64)>,
}

/// What a run gets through in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    pub(super) steps: f64,
    pub(super) pictures: f64,
    pub(super) tokens: f64,
}

/// Steps that the pace is taken over.
const RECENT: usize = 50;

impl Pace {
    /// Adds a step.
    pub(super) fn push(&mut self, took: Duration, pictures: u64, tokens: u64) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((took, pictures, tokens));
    }

    /// The speed over the recent steps; `None` before the first.
    pub(super) fn speed(&self) -> Option<Speed> {
        let time: Duration = self.recent.iter().map(|(took, _, _)| took).sum();
        let per_second = |count: u64| count as f64 / time.as_secs_f64();
        (!time.is_zero()).then(|| Speed {
            steps: per_second(self.recent.len() as u64),
            pictures: per_second(self.recent.iter().map(|(_, pictures, _)| pictures).sum()),
            tokens: per_second(self.recent.iter().map(|(_, _, tokens)| tokens).sum()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(values: impl IntoIterator<Item = f64>) -> Course {
        let mut course = Course::default();
        values.into_iter().for_each(|value| course.push(value));
        course
    }

    #[test]
    fn bars_rise_with_the_logarithm() {
        let doubling = course((0..8).map(|i| f64::from(1 << i)));
        assert_eq!(doubling.sparkline(80), "▁▂▃▄▅▆▇█");
        // Means of two: 1.5, 6, 24, 96.
        assert_eq!(doubling.sparkline(4), "▁▃▆█");
        assert_eq!(doubling.sparkline(0), "");
    }

    #[test]
    fn what_is_no_loss_leaves_no_trace() {
        let gaps = [0.0, 4.0, f64::NAN, f64::INFINITY, -1.0, 1.0];
        assert_eq!(course(gaps).sparkline(80), "█▁");
        assert_eq!(course([]).sparkline(80), "");
        assert_eq!(course([0.3; 5]).sparkline(80), "▁▁▁▁▁");
    }

    #[test]
    fn a_long_run_keeps_its_shape_in_bounded_memory() {
        let steps = 100_000;
        let falling = course((0..steps).map(|i| 2f64.powf(-8.0 * f64::from(i) / f64::from(steps))));
        assert!(falling.means.len() < MOST);
        assert_eq!(falling.sparkline(8), "█▇▆▅▄▃▂▁");
    }

    #[test]
    fn smoothing_forgets_by_half() {
        let mut smooth = Smooth::default();
        assert_eq!(smooth.value(), None);
        smooth.push(4.0, 1.0);
        assert_eq!(smooth.value(), Some(4.0));
        smooth.push(1.0, 1.0);
        smooth.push(f64::NAN, 1.0);
        // (4 / 2 + 1) / (1 / 2 + 1)
        assert_eq!(smooth.value(), Some(2.0));
    }

    #[test]
    fn the_pace_is_that_of_the_recent_steps() {
        let mut pace = Pace::default();
        assert_eq!(pace.speed(), None);
        pace.push(Duration::from_secs(1000), 1, 1);
        for _ in 0..RECENT {
            pace.push(Duration::from_millis(500), 16, 1200);
        }
        let expected = Speed {
            steps: 2.0,
            pictures: 32.0,
            tokens: 2400.0,
        };
        assert_eq!(pace.speed(), Some(expected));
    }
}
