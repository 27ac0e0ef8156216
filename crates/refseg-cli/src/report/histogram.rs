//! Where the bars of the IoU histogram stand.
//!
//! Positions along x are per cent of whatever width the page has, those along y
//! are pixels: bars stretch, letters do not.

use serde::Serialize;

use crate::commands::with_commas;

/// One bar, and what it says.
#[derive(Serialize)]
pub(super) struct Bar {
    x: String,
    y: String,
    height: String,
    range: String,
    expressions: String,
    share: String,
}

/// A line across the plot, and the share of expressions that it stands for.
#[derive(Serialize)]
pub(super) struct Line {
    y: String,
    share: String,
}

/// The vertical axis, on which all histograms of a page are drawn.
pub(super) struct Scale {
    /// The share at the top.
    top: f64,
}

/// Room above the bars, and where they stand, in pixels from the top.
const CEILING: f64 = 10.0;
const FLOOR: f64 = 140.0;
/// Distances of lines that are easy to read, as shares.
const STEPS: [f64; 6] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25];
/// Most lines, the floor not counted.
const LINES: f64 = 4.0;

impl Scale {
    /// As high as the highest bar of these histograms.
    pub(super) fn of<'a>(histograms: impl Iterator<Item = &'a [u64; 20]>) -> Self {
        let highest = histograms
            .flat_map(|counts| counts.iter().map(|&count| share(count, counts)))
            .fold(STEPS[0], f64::max);
        Self { top: highest }
    }

    /// Lines at even distances, the floor first.
    pub(super) fn lines(&self) -> Vec<Line> {
        let fits = |step: &f64| self.top / step < LINES + 1.0;
        let step = STEPS.into_iter().find(fits).unwrap_or(STEPS[5]);
        let line = |i: usize| Line {
            y: self.y(i as f64 * step),
            share: format!("{:.0}%", 100.0 * i as f64 * step),
        };
        // A bar of a share such as 3 × 0.1 reaches its line, whatever the rounding.
        let count = (self.top / step + 1e-9).floor() as usize;
        (0..=count).map(line).collect()
    }

    /// A bar for each step of IoU.
    pub(super) fn bars(&self, counts: &[u64; 20]) -> Vec<Bar> {
        let bar = |(i, &count): (usize, &u64)| {
            let share = share(count, counts);
            let low = i as f64 / 20.0;
            Bar {
                x: format!("{:.1}%", 100.0 * low + 0.3),
                y: self.y(share),
                height: format!("{:.1}", self.height(share)),
                range: format!("{low:.2}–{:.2}", low + 0.05),
                expressions: with_commas(count),
                share: format!("{:.1} %", 100.0 * share),
            }
        };
        counts.iter().enumerate().map(bar).collect()
    }

    fn y(&self, share: f64) -> String {
        format!("{:.1}", FLOOR - self.height(share))
    }

    fn height(&self, share: f64) -> f64 {
        (FLOOR - CEILING) * share / self.top
    }
}

/// The share of all expressions that one bar holds; nothing of nothing is 0.
fn share(count: u64, counts: &[u64; 20]) -> f64 {
    let all: f64 = counts.iter().map(|&count| count as f64).sum();
    count as f64 / all.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(first: u64, last: u64) -> [u64; 20] {
        std::array::from_fn(|i| match i {
            0 => first,
            19 => last,
            _ => 0,
        })
    }

    #[test]
    fn bars_are_as_high_as_their_share() {
        let counts = counts(1000, 3000);
        let bars = Scale::of([&counts].into_iter()).bars(&counts);
        let placed = |i: usize| [&bars[i].x, &bars[i].y, &bars[i].height].map(String::as_str);
        assert_eq!(placed(0), ["0.3%", "96.7", "43.3"]);
        assert_eq!(placed(1), ["5.3%", "140.0", "0.0"]);
        assert_eq!(placed(19), ["95.3%", "10.0", "130.0"]);
        let said = [&bars[19].range, &bars[19].expressions, &bars[19].share];
        assert_eq!(said, ["0.95–1.00", "3,000", "75.0 %"]);
    }

    #[test]
    fn histograms_of_a_page_have_one_scale() {
        let (low, high) = (counts(1, 1), counts(0, 8));
        let bars = Scale::of([&low, &high].into_iter()).bars(&low);
        assert_eq!(bars[0].height, "65.0");
    }

    #[test]
    fn lines_are_few_and_within_the_plot() {
        for (first, last, shares) in [
            (75, 25, vec!["0%", "20%", "40%", "60%"]),
            (100, 0, vec!["0%", "25%", "50%", "75%", "100%"]),
            (0, 0, vec!["0%", "1%"]),
        ] {
            let lines = Scale::of([&counts(first, last)].into_iter()).lines();
            let found: Vec<&str> = lines.iter().map(|line| line.share.as_str()).collect();
            assert_eq!(found, shares);
            assert_eq!(lines[0].y, "140.0");
        }
    }
}
