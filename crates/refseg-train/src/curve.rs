//! The curve of a run as SVG: losses above, scores on held-out scenes below.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// What a run reported, step by step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// Step and weighted loss, ascending.
    pub losses: Vec<(u64, f64)>,
    /// Evaluations, ascending.
    pub held_out: Vec<HeldOut>,
}

/// Scores on held-out scenes, in per cent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    /// After this step.
    pub step: u64,
    /// cIoU over all phrases.
    pub ciou: f64,
    /// N-acc.
    pub n_acc: f64,
    /// T-acc.
    pub t_acc: f64,
}

/// Why a curve could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the curve cannot be drawn")]
pub struct CurveError(#[source] Box<dyn std::error::Error + Send + Sync>);

const SIZE: (u32, u32) = (960, 640);
/// Share of the height that losses take.
const UPPER: f64 = 0.5;
/// A smoothed loss forgets by half in this share of the run.
pub const HALF_LIFE: f64 = 0.01;
/// More raw points than this add bytes but nothing to see.
const MOST_POINTS: usize = 1200;

const INK: RGBColor = RGBColor(33, 37, 43);
const FAINT: RGBColor = RGBColor(120, 127, 138);
const GRID: RGBColor = RGBColor(228, 231, 235);
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);

/// Draws a curve.
///
/// # Errors
/// If the plotting library fails.
pub fn svg(curve: &Curve) -> Result<String, CurveError> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area, curve).map_err(|error| CurveError(error.to_string().into()))?;
    }
    Ok(text)
}

/// Takes one score out of an evaluation.
type Score = fn(&HeldOut) -> f64;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(area: &Area<'_>, curve: &Curve) -> Drawn {
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically((f64::from(SIZE.1) * UPPER) as u32);
    let last_loss = curve.losses.last().map_or(1, |(step, _)| *step);
    let last = curve
        .held_out
        .last()
        .map_or(last_loss, |scores| scores.step.max(last_loss));
    draw_losses(&upper, curve, last.max(1) as f64)?;
    draw_scores(&lower, curve, last.max(1) as f64)?;
    area.present()?;
    Ok(())
}

fn draw_losses(area: &Area<'_>, curve: &Curve, last: f64) -> Drawn {
    let finite = |loss: &&(u64, f64)| loss.1.is_finite() && loss.1 > 0.0;
    let losses: Vec<(f64, f64)> = curve
        .losses
        .iter()
        .filter(finite)
        .map(|&(step, loss)| (step as f64, loss))
        .collect();
    let bounds = losses.iter().fold((f64::MAX, f64::MIN), |(low, high), p| {
        (low.min(p.1), high.max(p.1))
    });
    let (low, high) = if losses.is_empty() {
        (0.1, 10.0)
    } else {
        (bounds.0 * 0.9, bounds.1 * 1.1)
    };
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(90)
        .caption("training loss", ("sans-serif", 16).into_font().color(&INK))
        .x_label_area_size(24)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..1.012 * last, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .label_style(("sans-serif", 13).into_font().color(&FAINT))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| short(*loss))
        .draw()?;
    let every = losses.len().div_ceil(MOST_POINTS).max(1);
    let raw = losses.iter().copied().step_by(every);
    chart.draw_series(LineSeries::new(raw, BLUE.mix(0.25).stroke_width(1)))?;
    let smooth = smoothed(&losses, HALF_LIFE * last);
    let thinned = smooth
        .iter()
        .copied()
        .step_by(every)
        .chain(smooth.last().copied());
    chart.draw_series(LineSeries::new(thinned, BLUE.stroke_width(2)))?;
    if let Some(&(step, loss)) = smooth.last() {
        chart.draw_series([label((step, loss), short(loss), &BLUE, last)])?;
    }
    Ok(())
}

fn draw_scores(area: &Area<'_>, curve: &Curve, last: f64) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(90)
        .caption(
            "held-out scenes, %",
            ("sans-serif", 16).into_font().color(&INK),
        )
        .x_label_area_size(40)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..1.012 * last, 0.0..100.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .label_style(("sans-serif", 13).into_font().color(&FAINT))
        .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|percent| format!("{percent:.0}"))
        .draw()?;
    let lines: [(&str, RGBColor, u32, Score); 3] = [
        ("N-acc", ORANGE, 1, |scores| scores.n_acc),
        ("T-acc", GREEN, 1, |scores| scores.t_acc),
        ("cIoU", BLUE, 3, |scores| scores.ciou),
    ];
    // Labels at the lines' ends say more than a legend; they keep a line's height apart.
    let mut taken: Vec<f64> = Vec::new();
    for (name, colour, width, score) in lines.into_iter().rev() {
        let points = curve
            .held_out
            .iter()
            .map(|scores| (scores.step as f64, score(scores)));
        let points: Vec<(f64, f64)> = points.filter(|point| point.1.is_finite()).collect();
        chart.draw_series(LineSeries::new(
            points.iter().copied(),
            colour.stroke_width(width),
        ))?;
        let dots = points
            .iter()
            .map(|&point| Circle::new(point, 1 + width as i32 / 2, colour.filled()));
        chart.draw_series(dots)?;
        if let Some(&(step, percent)) = points.last() {
            let mut at = percent;
            while taken.iter().any(|other| (other - at).abs() < LABEL_HEIGHT) {
                at -= 1.0;
            }
            taken.push(at);
            chart.draw_series([label(
                (step, at),
                format!("{name} {percent:.1}"),
                &colour,
                last,
            )])?;
        }
    }
    Ok(())
}

/// Height of a label, in per cent of the scores' axis.
const LABEL_HEIGHT: f64 = 6.5;

/// A text to the right of a point.
fn label(
    (step, value): (f64, f64),
    text: String,
    colour: &RGBColor,
    last: f64,
) -> Text<'static, (f64, f64), String> {
    let style = ("sans-serif", 13).into_font().color(colour);
    let style = style.pos(Pos::new(HPos::Left, VPos::Center));
    Text::new(text, (step + 0.008 * last, value), style)
}

/// An exponential mean over steps and values that forgets by half in `half_life` steps, without bias at the start.
pub fn smoothed(points: &[(f64, f64)], half_life: f64) -> Vec<(f64, f64)> {
    let mut weighted = 0.0;
    let mut weights = 0.0;
    let mut before = points.first().map_or(0.0, |point| point.0);
    points
        .iter()
        .map(|&(step, loss)| {
            let keep = 0.5f64.powf((step - before) / half_life.max(1.0));
            before = step;
            weighted = keep * weighted + loss;
            weights = keep * weights + 1.0;
            (step, weighted / weights)
        })
        .collect()
}

fn short(loss: f64) -> String {
    if loss >= 10.0 {
        format!("{loss:.0}")
    } else {
        format!("{loss:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(step: u64, ciou: f64) -> HeldOut {
        HeldOut {
            step,
            ciou,
            n_acc: 80.0,
            t_acc: f64::NAN,
        }
    }

    #[test]
    fn a_run_is_drawn_with_its_last_values() {
        let losses = (1..=3000)
            .map(|step| (step, 5.0 / (step as f64).sqrt()))
            .collect();
        let curve = Curve {
            losses,
            held_out: vec![scores(1000, 31.0), scores(3000, 57.25)],
        };
        let svg = svg(&curve).expect("a drawing");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("cIoU 57.2") || svg.contains("cIoU 57.3"));
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
    }

    #[test]
    fn a_run_that_has_not_begun_can_be_drawn() {
        assert!(svg(&Curve::default()).is_ok());
        let curve = Curve {
            losses: vec![(1, f64::NAN)],
            held_out: vec![scores(1, f64::NAN)],
        };
        assert!(svg(&curve).is_ok());
    }

    #[test]
    fn smoothing_forgets_and_does_not_start_from_zero() {
        let points: Vec<(f64, f64)> = (0..100)
            .map(|i| (f64::from(i), if i < 50 { 4.0 } else { 1.0 }))
            .collect();
        let smooth = smoothed(&points, 5.0);
        assert_eq!(smooth[0].1, 4.0);
        assert!((smooth[99].1 - 1.0).abs() < 0.01);
    }
}
