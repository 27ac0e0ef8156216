//! What the dashboard says: plain data in, lines of a given width out.

use std::{fmt, time::Duration};

use owo_colors::{OwoColorize, Stream, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::course::{Course, Speed};
use crate::{
    commands::{readable_bytes, with_commas},
    table::printable,
};

/// A run as it stands.
pub(super) struct Panel<'a> {
    /// Steps done, and steps in all.
    pub(super) step: u64,
    pub(super) steps: u64,
    /// Time until the end, if the pace is known.
    pub(super) left: Option<Duration>,
    /// Losses in the order of their lines, the sum first.
    pub(super) losses: &'a [Loss],
    /// Learning rate of the last step.
    pub(super) rate: f64,
    /// Norm of its gradient before clipping.
    pub(super) norm: f64,
    pub(super) speed: Option<Speed>,
    /// Bytes held now, and at most.
    pub(super) memory: Option<(u64, u64)>,
    pub(super) evaluation: Option<&'a Evaluation>,
    /// What is done between two steps, such as "writing a checkpoint".
    pub(super) doing: Option<&'a str>,
    /// The run's folder, and what is to be found there.
    pub(super) files: &'a [String],
}

/// One loss.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    pub(super) name: String,
    pub(super) now: f64,
    pub(super) smooth: Option<f64>,
    pub(super) course: Course,
}

/// What held-out pictures said.
#[derive(Debug, Clone)]
pub(super) struct Evaluation {
    /// After this step.
    pub(super) step: u64,
    /// Metrics in per cent; `None` where there was nothing to count.
    pub(super) metrics: Vec<(String, Option<f64>)>,
}

/// A line, each part in its own look.
#[derive(Debug, Default)]
pub(super) struct Line(Vec<(String, Style)>);

/// Columns of the names at the left, with the gap behind them.
const NAMES: usize = 15;
/// Columns of a loss, with the gap before it.
const NUMBER: usize = 9;
/// Longer bars and courses are no easier to read.
const LONGEST: usize = 64;
const BETWEEN: &str = " · ";

impl Panel<'_> {
    /// The panel, no line wider than `width` columns.
    pub(super) fn lines(&self, width: usize) -> Vec<Line> {
        let mut lines = vec![self.head(width), header()];
        lines.extend(self.losses.iter().enumerate().map(|(i, loss)| {
            let indent = if i == 0 { "" } else { "  " };
            loss.line(indent, width)
        }));
        lines.extend(row("learning rate", &self.learning(), width));
        if let Some(speed) = self.speed {
            lines.extend(row("speed", &speed_items(&speed), width));
        }
        if let Some((now, peak)) = self.memory {
            let items = [
                readable_bytes(now),
                format!("{} at most", readable_bytes(peak)),
            ];
            lines.extend(row("memory", &items, width));
        }
        let held_out = match self.evaluation {
            Some(evaluation) => evaluation.items(),
            None => vec!["not judged yet".to_owned()],
        };
        lines.extend(row("held out", &held_out, width));
        lines.extend(row("files", self.files, width));
        if let Some(doing) = self.doing {
            lines.extend(row("now", &[doing.to_owned()], width));
        }
        lines.into_iter().map(|line| line.clipped(width)).collect()
    }

    /// All in one line, where there is no terminal to draw on.
    pub(super) fn one_line(&self) -> String {
        let mut items = vec![format!("step {}/{}", self.step, self.steps)];
        let loss = |loss: &Loss| format!("{} {}", loss.name, short(loss.now));
        items.extend(self.losses.iter().map(loss));
        items.push(format!("rate {:.2e}", self.rate));
        items.push(format!("norm {}", short(self.norm)));
        items.extend(self.speed.iter().flat_map(speed_items));
        items.extend(self.left.map(|left| format!("{} left", duration(left))));
        printable(&items.join("  "))
    }

    fn head(&self, width: usize) -> Line {
        let mut text = format!(
            "  {} of {}",
            with_commas(self.step),
            with_commas(self.steps)
        );
        if let Some(left) = self.left {
            text += &format!("{BETWEEN}{} left", duration(left));
        }
        let room = width.saturating_sub(NAMES + text.width()).min(LONGEST);
        let share = self.step as f64 / self.steps.max(1) as f64;
        let done = ((room as f64 * share) as usize).min(room);
        Line::named("step")
            .and("━".repeat(done), Style::new().cyan())
            .and("╌".repeat(room - done), faint())
            .and(text, Style::new())
    }

    fn learning(&self) -> Vec<String> {
        vec![
            format!("{:.2e}", self.rate),
            format!("gradient norm {}", short(self.norm)),
        ]
    }
}

impl Loss {
    /// A loss that has not been seen yet.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            now: f64::NAN,
            smooth: None,
            course: Course::default(),
        }
    }

    fn line(&self, indent: &str, width: usize) -> Line {
        let smooth = self.smooth.map_or_else(|| "–".to_owned(), short);
        let look = if self.now.is_finite() {
            Style::new()
        } else {
            Style::new().red()
        };
        let room = width.saturating_sub(NAMES + 2 * NUMBER + 2).min(LONGEST);
        Line::named(&format!("{indent}{}", self.name))
            .and(format!("{:>NUMBER$}", short(self.now)), look)
            .and(format!("{smooth:>NUMBER$}"), Style::new().bold())
            .and("  ", Style::new())
            .and(self.course.sparkline(room), Style::new().cyan())
    }
}

impl Evaluation {
    /// `cIoU 57.2`, and so on.
    pub(super) fn items(&self) -> Vec<String> {
        let percent = |value: Option<f64>| match value {
            Some(value) if value.is_finite() => format!("{value:.1}"),
            _ => "–".to_owned(),
        };
        let metrics = self.metrics.iter();
        metrics
            .map(|(name, value)| format!("{name} {}", percent(*value)))
            .chain([format!("after step {}", with_commas(self.step))])
            .collect()
    }
}

impl Line {
    fn named(name: &str) -> Self {
        let name = clipped(&printable(name), NAMES - 1);
        let gap = NAMES - name.width();
        Self::default().and(name + &" ".repeat(gap), faint())
    }

    fn and(mut self, text: impl Into<String>, style: Style) -> Self {
        self.0.push((text.into(), style));
        self
    }

    fn clipped(self, width: usize) -> Self {
        let mut room = width;
        let mut line = Self::default();
        for (text, style) in self.0 {
            let text = clipped(&text, room);
            room -= text.width();
            line = line.and(text, style);
        }
        line
    }

    /// The text, coloured where standard error has colours.
    pub(super) fn painted(&self) -> String {
        let part = |(text, style): &(String, Style)| {
            text.if_supports_color(Stream::Stderr, |text| text.style(*style))
                .to_string()
        };
        self.0.iter().map(part).collect()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.0.iter().map(|(text, _)| text.as_str()).collect();
        f.write_str(text.trim_end())
    }
}

/// Names above the columns of losses.
fn header() -> Line {
    let names = format!("{:>NUMBER$}{:>NUMBER$}", "now", "smooth");
    Line::named("").and(names, faint())
}

/// A name and what belongs to it, on as many lines as that takes.
fn row(name: &str, items: &[String], width: usize) -> Vec<Line> {
    let mut texts = vec![String::new()];
    for item in items {
        let item = printable(item);
        let last = texts.len() - 1;
        if texts[last].is_empty() {
            texts[last] = item;
        } else if NAMES + texts[last].width() + BETWEEN.width() + item.width() <= width {
            texts[last] += &format!("{BETWEEN}{item}");
        } else {
            texts.push(item);
        }
    }
    let lines = texts.into_iter().enumerate();
    lines
        .map(|(i, text)| Line::named(if i == 0 { name } else { "" }).and(text, Style::new()))
        .collect()
}

fn speed_items(speed: &Speed) -> Vec<String> {
    [
        (speed.steps, "steps/s"),
        (speed.pictures, "pictures/s"),
        (speed.tokens, "tokens/s"),
    ]
    .into_iter()
    .filter(|(value, _)| *value > 0.0)
    .map(|(value, unit)| format!("{} {unit}", rounded(value)))
    .collect()
}

fn faint() -> Style {
    Style::new().dimmed()
}

/// A text of at most `width` columns; what is cut off leaves an ellipsis.
fn clipped(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut taken = 1;
    let fits = |letter: &char| {
        taken += letter.width().unwrap_or(0);
        taken <= width
    };
    let short: String = text.chars().take_while(fits).collect();
    let end = if width == 0 { "" } else { "…" };
    short + end
}

/// A loss or a norm in at most eight letters.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e5 => format!("{value:.1e}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.3}"),
        // Not a number at all comes here, too, and is written as such.
        _ => format!("{value:.4}"),
    }
}

/// A speed, to three digits or the whole.
fn rounded(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => with_commas(value.round() as u64),
    }
}

/// A time as people say it, in two units at most.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(name: &str, start: f64, end: f64) -> Loss {
        let mut course = Course::default();
        for i in 0..3150 {
            let share = f64::from(i) / 3150.0;
            course.push(end + (start - end) * (-5.0 * share).exp());
        }
        Loss {
            name: name.to_owned(),
            now: end * 0.97,
            smooth: Some(end),
            course,
        }
    }

    fn losses() -> Vec<Loss> {
        vec![
            loss("loss", 6.9, 1.31),
            loss("decision", 0.7, 0.081),
            loss("mask", 0.9, 0.212),
            loss("dice", 0.95, 0.343),
        ]
    }

    fn evaluation() -> Evaluation {
        Evaluation {
            step: 3000,
            metrics: vec![
                ("cIoU".to_owned(), Some(57.24)),
                ("N-acc".to_owned(), Some(81.0)),
                ("T-acc".to_owned(), None),
            ],
        }
    }

    fn panel<'a>(losses: &'a [Loss], evaluation: &'a Evaluation, files: &'a [String]) -> Panel<'a> {
        Panel {
            step: 3150,
            steps: 5000,
            left: Some(Duration::from_secs(41 * 60 + 20)),
            losses,
            rate: 7.914e-4,
            norm: 0.83,
            speed: Some(Speed {
                steps: 0.752,
                pictures: 12.04,
                tokens: 3204.4,
            }),
            memory: Some((1_210_000_000, 1_400_000_000)),
            evaluation: Some(evaluation),
            doing: None,
            files,
        }
    }

    fn files() -> Vec<String> {
        ["runs/scenes", "model", "curve.svg", "report.html", "events"]
            .map(str::to_owned)
            .to_vec()
    }

    fn shown(panel: &Panel<'_>, width: usize) -> String {
        let lines = panel.lines(width);
        let lines: Vec<String> = lines.iter().map(Line::to_string).collect();
        lines.join("\n") + "\n"
    }

    #[test]
    fn panels_are_as_they_were() {
        let (losses, evaluation, files) = (losses(), evaluation(), files());
        let panel = panel(&losses, &evaluation, &files);
        let widths = [60, 80, 120];
        let panels = widths.map(|width| format!("{width} columns\n\n{}\n", shown(&panel, width)));
        let expected = include_str!("../../../../tests/snapshots/dashboard.txt");
        assert_eq!(panels.concat(), expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let (mut losses, evaluation) = (losses(), evaluation());
        losses[1].name = "表现".repeat(20);
        let files = ["runs/长长的文件夹".repeat(9), "\u{1b}[2J\n".to_owned()];
        let mut panel = panel(&losses, &evaluation, &files);
        panel.doing = Some("judging 64 held-out pictures");
        for width in 0..200 {
            for line in panel.lines(width) {
                let text = line.to_string();
                assert!(text.width() <= width, "{width}: {text}");
                assert!(!text.contains(char::is_control), "{text:?}");
            }
        }
    }

    #[test]
    fn a_run_that_has_just_begun_says_what_it_knows() {
        let losses = [Loss::new("loss")];
        let panel = Panel {
            step: 0,
            steps: 0,
            left: None,
            losses: &losses,
            rate: 0.0,
            norm: f64::INFINITY,
            speed: None,
            memory: None,
            evaluation: None,
            doing: Some("loading"),
            files: &[],
        };
        let lines: Vec<String> = panel.lines(40).iter().map(Line::to_string).collect();
        assert_eq!(
            lines,
            [
                "step           ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  0 of 0",
                "                     now   smooth",
                "loss                 NaN        –",
                "learning rate  0.00e0",
                "               gradient norm inf",
                "held out       not judged yet",
                "files",
                "now            loading",
            ]
        );
    }

    #[test]
    fn one_line_says_the_same() {
        let (losses, evaluation, files) = (losses(), evaluation(), files());
        assert_eq!(
            panel(&losses[..2], &evaluation, &files).one_line(),
            "step 3150/5000  loss 1.271  decision 0.0786  rate 7.91e-4  norm 0.8300  \
             0.75 steps/s  12.0 pictures/s  3,204 tokens/s  41 min left"
        );
    }

    #[test]
    fn times_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3660, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn numbers_fit_their_column() {
        for value in [0.0, 1e-9, 0.99999, 99.9999, 99_999.9, 1e300, f64::NAN, -1.0] {
            assert!(short(value).len() < NUMBER, "{}", short(value));
        }
    }
}
