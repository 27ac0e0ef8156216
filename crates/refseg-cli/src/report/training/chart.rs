//! Where the curves of a run stand.
//!
//! Positions along x are per cent of whatever width the page has, those along y are pixels. Curves are drawn in a
//! square of their own that is stretched to the plot: lines stretch, letters and dots do not.

use refseg_train::curve::{HALF_LIFE, smoothed};
use serde::Serialize;

use super::{Evaluation, Series, SeriesStyle};
use crate::commands::with_commas;

/// A plot with one or more curves.
#[derive(Serialize)]
pub(super) struct Chart {
    /// What its one curve is; where there are several, each says it itself.
    title: Option<String>,
    /// Lines across the plot, lowest first.
    lines: Vec<Line>,
    ticks: Vec<Tick>,
    curves: Vec<Curve>,
}

/// A line across the plot, and the value that it stands for.
#[derive(Serialize)]
struct Line {
    y: String,
    label: String,
}

/// A step below the plot.
#[derive(Serialize)]
struct Tick {
    x: String,
    anchor: &'static str,
    label: String,
}

#[derive(Serialize)]
struct Curve {
    name: String,
    /// Letter of its colour and dashes.
    letter: String,
    /// Its last value.
    last: String,
    /// Corners as values were, thinned, if the curve itself is smoothed.
    raw: Option<String>,
    /// Corners, in thousandths of the plot's width and pixels.
    corners: String,
    /// Its points, where there are few.
    dots: Vec<Dot>,
}

#[derive(Serialize)]
struct Dot {
    x: String,
    y: String,
    step: String,
    value: String,
}

/// The vertical axis.
struct Axis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

/// Room above the curves, and where they end, in pixels from the top.
const CEILING: f64 = 8.0;
const FLOOR: f64 = 148.0;
/// Corners of a curve; more add bytes, but nothing to see.
const CORNERS: usize = 600;
/// Most lines across and most steps below, the first not counted.
const LINES: f64 = 5.0;
const TICKS: f64 = 3.0;

impl Chart {
    /// The chart of one number; `None` if it has no value that can be drawn.
    pub(super) fn of_series(series: &Series, last_step: u64) -> Option<Self> {
        let is_noisy = series.style == SeriesStyle::Noisy;
        let is_drawn = |value: f64| value.is_finite() && (value > 0.0 || !is_noisy);
        let values = series.points.iter().filter(|(_, value)| is_drawn(*value));
        let points: Vec<(f64, f64)> = values.map(|&(step, value)| (step as f64, value)).collect();
        let axis = if is_noisy {
            Axis::logarithmic(&points)
        } else {
            Axis::from_zero(points.iter().map(|point| point.1).fold(0.0, f64::max))
        };
        let (raw, curve) = if is_noisy {
            let half_life = HALF_LIFE * last_step as f64;
            (Some(&points), &smoothed(&points, half_life))
        } else {
            (None, &points)
        };
        let (_, last) = curve.last()?;
        Some(Self {
            title: Some(series.name.clone()),
            lines: axis.lines(),
            ticks: ticks(last_step),
            curves: vec![Curve {
                name: series.name.clone(),
                letter: "A".to_owned(),
                last: significant(*last),
                raw: raw.map(|points| axis.corners(points, last_step)),
                corners: axis.corners(curve, last_step),
                dots: Vec::new(),
            }],
        })
    }

    /// The chart of all metrics in per cent; `None` if there are none.
    pub(super) fn of_evaluations(evaluations: &[Evaluation], last_step: u64) -> Option<Self> {
        let axis = Axis::from_zero(100.0);
        let curve = |(name, letter): (&String, char)| {
            let points: Vec<(f64, f64)> = evaluations
                .iter()
                .filter_map(|evaluation| {
                    let value = evaluation.value(name)?;
                    Some((evaluation.step as f64, value))
                })
                .collect();
            let (_, last) = points.last()?;
            let dot = |&(step, value): &(f64, f64)| Dot {
                x: percent_of(step, last_step),
                y: format!("{:.1}", axis.y(value)),
                step: with_commas(step as u64),
                value: format!("{value:.1}"),
            };
            Some(Curve {
                name: name.clone(),
                letter: letter.to_string(),
                last: format!("{last:.1}"),
                raw: None,
                corners: axis.corners(&points, last_step),
                dots: points.iter().map(dot).collect(),
            })
        };
        let names = evaluations.last()?.metrics.iter().map(|(name, _)| name);
        let curves: Vec<Curve> = names.zip('A'..='D').filter_map(curve).collect();
        (!curves.is_empty()).then(|| Self {
            title: None,
            lines: axis.lines(),
            ticks: ticks(last_step),
            curves,
        })
    }
}

impl Axis {
    /// From the lowest value to the highest.
    fn logarithmic(points: &[(f64, f64)]) -> Self {
        let values = points.iter().map(|point| point.1);
        let low = values.clone().fold(f64::MAX, f64::min);
        let high = values.fold(f64::MIN_POSITIVE, f64::max);
        // A value that never changes runs through the middle.
        let margin = if high / low < 1.01 { 1.5 } else { 1.0 };
        Self {
            low: low / margin,
            high: high * margin,
            is_logarithmic: true,
        }
    }

    fn from_zero(highest: f64) -> Self {
        Self {
            low: 0.0,
            high: if highest > 0.0 { highest } else { 1.0 },
            is_logarithmic: false,
        }
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        FLOOR - (FLOOR - CEILING) * share.clamp(0.0, 1.0)
    }

    fn lines(&self) -> Vec<Line> {
        let values = if self.is_logarithmic {
            round_between(self.low, self.high)
        } else {
            multiples_between(self.low, self.high, LINES)
        };
        let line = |value: f64| Line {
            y: format!("{:.1}", self.y(value)),
            label: significant(value),
        };
        values.into_iter().map(line).collect()
    }

    fn corners(&self, points: &[(f64, f64)], last_step: u64) -> String {
        let corner = |(step, value): (f64, f64)| {
            let x = 1000.0 * step / last_step.max(1) as f64;
            format!("{x:.1},{:.1}", self.y(value))
        };
        let corners: Vec<String> = thinned(points).into_iter().map(corner).collect();
        corners.join(" ")
    }
}

/// The lowest and the highest point of each stretch, so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= CORNERS {
        return points.to_vec();
    }
    let stretches = points.chunks(points.len().div_ceil(CORNERS / 2));
    let extremes = stretches.flat_map(|stretch| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = stretch.iter().min_by(by_value).copied();
        let high = stretch.iter().max_by(by_value).copied();
        let mut pair: Vec<(f64, f64)> = low.into_iter().chain(high).collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair
    });
    extremes.chain(points.last().copied()).collect()
}

/// Steps to write below a plot.
fn ticks(last_step: u64) -> Vec<Tick> {
    let steps = multiples_between(0.0, last_step.max(1) as f64, TICKS);
    let tick = |step: f64| {
        let share = step / last_step.max(1) as f64;
        Tick {
            x: percent_of(step, last_step),
            anchor: match share {
                share if share < 0.04 => "start",
                share if share > 0.94 => "end",
                _ => "middle",
            },
            label: with_commas(step as u64),
        }
    };
    // A run of less than four steps has no halves.
    let whole = steps.into_iter().filter(|step| step.fract() == 0.0);
    whole.map(tick).collect()
}

fn percent_of(step: f64, last_step: u64) -> String {
    format!("{:.2}%", 100.0 * step / last_step.max(1) as f64)
}

/// About `most` multiples of a number that is easy to count in: 1, 2 or 5 times a power of ten.
fn multiples_between(low: f64, high: f64, most: f64) -> Vec<f64> {
    let span = high - low;
    let power = span.log10().floor() as i32;
    let steps = (power - 1..=power).flat_map(|power| [1, 2, 5].map(|digit| round(digit, power)));
    let fits = |step: &f64| span / step < most + 1.0;
    let step = steps.into_iter().find(fits).unwrap_or(span);
    // A bound such as 3 × 0.1 reaches its line, whatever the rounding.
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Values for a logarithmic axis: 1, 2 and 5 times powers of ten, powers alone where those would be too many, and
/// where they would be too few, whatever is easy to count in.
fn round_between(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let within = |value: &f64| *value >= low && *value <= high;
    let with = |digits: &[u8]| -> Vec<f64> {
        powers
            .clone()
            .flat_map(|power| digits.iter().map(move |&digit| round(digit, power)))
            .filter(within)
            .collect()
    };
    let lines = with(&[1, 2, 5]);
    match lines.len() {
        0..2 => multiples_between(low, high, LINES),
        count if count as f64 <= LINES + 1.0 => lines,
        _ => with(&[1]),
    }
}

/// A digit times a power of ten, to the last bit.
fn round(digit: u8, power: i32) -> f64 {
    if power < 0 {
        f64::from(digit) / 10f64.powi(-power)
    } else {
        f64::from(digit) * 10f64.powi(power)
    }
}

/// A number in three significant digits at most.
pub(super) fn significant(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        0.0 => return "0".to_owned(),
        _ if !(1e-3..1e6).contains(&size) => {
            let digits = format!("{value:.2e}");
            let (mantissa, power) = digits.split_once('e').unwrap_or((&digits, "0"));
            return format!("{}e{power}", without_zeros(mantissa)).replace('-', "−");
        }
        _ => (2 - size.log10().floor() as i32).max(0) as usize,
    };
    without_zeros(&format!("{value:.digits$}")).replace('-', "−")
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(style: SeriesStyle, values: &[f64]) -> Series {
        Series {
            name: "mask".to_owned(),
            points: (1..).zip(values.iter().copied()).collect(),
            style,
        }
    }

    fn labels(lines: &[Line]) -> Vec<(&str, &str)> {
        lines
            .iter()
            .map(|line| (line.label.as_str(), line.y.as_str()))
            .collect()
    }

    #[test]
    fn losses_are_drawn_on_a_logarithmic_scale() {
        let series = series(SeriesStyle::Noisy, &[10.0, 1.0, 0.0, f64::NAN, 0.1]);
        let chart = Chart::of_series(&series, 5).expect("a chart");
        let curve = &chart.curves[0];
        assert_eq!(
            curve.raw.as_deref(),
            Some("200.0,8.0 400.0,78.0 1000.0,148.0")
        );
        assert_eq!(
            labels(&chart.lines),
            [("0.1", "148.0"), ("1", "78.0"), ("10", "8.0")]
        );
        // Each step halves what was before: ((10 / 2 + 1) / 8 + 0.1) / ((1 / 2 + 1) / 8 + 1).
        assert_eq!(curve.last, "0.716");
    }

    #[test]
    fn rates_are_drawn_as_they_are() {
        let series = series(SeriesStyle::Exact, &[0.0, 1e-3, 5e-4]);
        let chart = Chart::of_series(&series, 4).expect("a chart");
        let curve = &chart.curves[0];
        assert_eq!(curve.raw, None);
        assert_eq!(curve.corners, "250.0,148.0 500.0,8.0 750.0,78.0");
        assert_eq!(curve.last, "5e−4");
        let lines = labels(&chart.lines);
        assert_eq!(lines.len(), 6);
        assert_eq!((lines[0], lines[1]), (("0", "148.0"), ("2e−4", "120.0")));
    }

    #[test]
    fn what_cannot_be_drawn_is_no_chart() {
        for style in [SeriesStyle::Noisy, SeriesStyle::Exact] {
            assert!(Chart::of_series(&series(style, &[]), 0).is_none());
            assert!(Chart::of_series(&series(style, &[f64::NAN]), 1).is_none());
        }
        assert!(Chart::of_series(&series(SeriesStyle::Noisy, &[0.0]), 1).is_none());
        assert!(Chart::of_evaluations(&[], 1).is_none());
    }

    #[test]
    fn a_value_that_never_changes_runs_through_the_middle() {
        let chart = Chart::of_series(&series(SeriesStyle::Noisy, &[0.3, 0.3]), 2).expect("a chart");
        assert_eq!(chart.curves[0].corners, "500.0,78.0 1000.0,78.0");
    }

    #[test]
    fn lines_are_round_and_few() {
        let between = |low, high| multiples_between(low, high, LINES);
        assert_eq!(between(0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(between(0.0, 1e-3).len(), 6);
        assert_eq!(between(1.5, 3.0), [1.5, 2.0, 2.5, 3.0]);
        assert_eq!(multiples_between(0.0, 5000.0, TICKS), [0.0, 2000.0, 4000.0]);
        assert_eq!(round_between(0.08, 12.0), [0.1, 1.0, 10.0]);
        assert_eq!(round_between(0.9, 5.0), [1.0, 2.0, 5.0]);
        let narrow = round_between(3.0, 4.0).into_iter().map(significant);
        let narrow: Vec<String> = narrow.collect();
        assert_eq!(narrow, ["3", "3.2", "3.4", "3.6", "3.8", "4"]);
    }

    #[test]
    fn peaks_survive_thinning() {
        let points: Vec<(f64, f64)> = (0..10_000)
            .map(|i| (f64::from(i), if i == 4321 { 99.0 } else { 1.0 }))
            .collect();
        let thin = thinned(&points);
        assert!(thin.len() <= CORNERS + 1, "{}", thin.len());
        assert!(thin.contains(&(4321.0, 99.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
        assert_eq!(thin.last(), points.last());
    }

    #[test]
    fn numbers_have_three_digits_at_most() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.30000000000000004, "0.3"),
            (57.24, "57.2"),
            (1234.5, "1234"),
            (2.5e-4, "2.5e−4"),
            (1e7, "1e7"),
            (-0.0512, "−0.0512"),
        ] {
            assert_eq!(significant(value), text);
        }
    }
}
