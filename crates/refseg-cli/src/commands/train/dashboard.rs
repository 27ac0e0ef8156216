//! What a run looks like while it goes: a panel that is redrawn in its place, or where there is no terminal, a line
//! now and then.

mod course;
mod panel;

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use refseg_train::curve::HALF_LIFE;

use crate::{console::Console, memory};
use course::{Pace, Smooth};
use panel::{Evaluation, Line, Loss, Panel};

/// What is known after a step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot<'a> {
    /// Counted from 1.
    pub(crate) step: u64,
    /// Losses by name, the sum first.
    pub(crate) losses: Vec<(&'a str, f64)>,
    /// Learning rate of this step.
    pub(crate) rate: f64,
    /// Norm of the gradient before clipping.
    pub(crate) norm: f64,
    /// Pictures that the step has seen.
    pub(crate) pictures: u64,
    /// Tokens that the language model has seen; 0 if they were not counted.
    pub(crate) tokens: u64,
}

/// Shows a run. When it is dropped, the panel stays as it was last.
#[derive(Debug)]
pub(crate) struct Dashboard {
    shown: Shown,
    steps: u64,
    files: Vec<String>,
    step: u64,
    rate: f64,
    norm: f64,
    losses: Vec<Loss>,
    smooth: Vec<Smooth>,
    evaluation: Option<Evaluation>,
    doing: Option<String>,
    pace: Pace,
    begun: Instant,
    /// Time that steps have taken; the rest went into evaluations and checkpoints.
    stepping: Duration,
    /// When the step under way began.
    since: Instant,
}

#[derive(Debug)]
enum Shown {
    Nowhere,
    Panel(ProgressBar),
    Lines,
}

/// Steps between two lines where there is no terminal.
const STEPS_A_LINE: u64 = 20;
/// Columns of a terminal that does not say how many it has.
const WIDTH: usize = 80;

impl Dashboard {
    /// A dashboard on standard error, for a run of `steps` steps of which `done` are done. `files` are the run's
    /// folder and what is to be found in it.
    pub(crate) fn open(console: &Console, steps: u64, done: u64, files: Vec<String>) -> Self {
        let shown = if console.is_quiet() {
            Shown::Nowhere
        } else if io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            Shown::Panel(ProgressBar::new_spinner().with_style(style))
        } else {
            Shown::Lines
        };
        Self::new(shown, steps, done, files)
    }

    fn new(shown: Shown, steps: u64, done: u64, files: Vec<String>) -> Self {
        let now = Instant::now();
        Self {
            shown,
            steps,
            files,
            step: done,
            rate: 0.0,
            norm: 0.0,
            losses: Vec::new(),
            smooth: Vec::new(),
            evaluation: None,
            doing: None,
            pace: Pace::default(),
            begun: now,
            stepping: Duration::ZERO,
            since: now,
        }
    }

    /// A step is done.
    pub(crate) fn step(&mut self, snapshot: &Snapshot<'_>) {
        let now = Instant::now();
        self.take_in(snapshot, now);
        if matches!(self.shown, Shown::Lines) {
            if self.step.is_multiple_of(STEPS_A_LINE) || self.step == self.steps {
                say(&self.panel(now).one_line());
            }
        } else {
            self.draw();
        }
    }

    /// Held-out pictures were judged after a step: metrics by name in per cent, `None` where there was nothing to
    /// count.
    pub(crate) fn evaluated(&mut self, step: u64, metrics: Vec<(String, Option<f64>)>) {
        let evaluation = Evaluation { step, metrics };
        if matches!(self.shown, Shown::Lines) {
            say(&format!("held out: {}", evaluation.items().join("  ")));
        }
        self.evaluation = Some(evaluation);
        self.training();
    }

    /// Something is begun that is no step, such as "judging held-out pictures".
    pub(crate) fn doing(&mut self, what: &str) {
        self.doing = Some(what.to_owned());
        self.draw();
    }

    /// It is over, and the next step begins.
    pub(crate) fn training(&mut self) {
        self.doing = None;
        self.since = Instant::now();
        self.draw();
    }

    fn take_in(&mut self, snapshot: &Snapshot<'_>, now: Instant) {
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        self.stepping += took;
        self.pace.push(took, snapshot.pictures, snapshot.tokens);
        self.doing = None;
        self.step = snapshot.step;
        self.rate = snapshot.rate;
        self.norm = snapshot.norm;
        let half_life = (HALF_LIFE * self.steps as f64).max(1.0);
        for &(name, value) in &snapshot.losses {
            let known = self.losses.iter().position(|loss| loss.name == name);
            let at = known.unwrap_or_else(|| {
                self.losses.push(Loss::new(name));
                self.smooth.push(Smooth::default());
                self.losses.len() - 1
            });
            self.smooth[at].push(value, half_life);
            let loss = &mut self.losses[at];
            loss.now = value;
            loss.smooth = self.smooth[at].value();
            loss.course.push(value);
        }
    }

    fn panel(&self, now: Instant) -> Panel<'_> {
        Panel {
            step: self.step,
            steps: self.steps,
            left: self.left(now),
            losses: &self.losses,
            rate: self.rate,
            norm: self.norm,
            speed: self.pace.speed(),
            memory: memory::now().zip(memory::peak()),
            evaluation: self.evaluation.as_ref(),
            doing: self.doing.as_deref(),
            files: &self.files,
        }
    }

    /// At the pace of the recent steps, if as large a share of time as so far goes into other things.
    fn left(&self, now: Instant) -> Option<Duration> {
        let speed = self.pace.speed()?;
        let others =
            now.saturating_duration_since(self.begun).as_secs_f64() / self.stepping.as_secs_f64();
        let steps = self
            .steps
            .checked_sub(self.step)
            .filter(|&steps| steps > 0)?;
        Duration::try_from_secs_f64(steps as f64 / speed.steps * others).ok()
    }

    fn draw(&self) {
        if let Shown::Panel(bar) = &self.shown {
            let width = terminal_size::terminal_size_of(io::stderr());
            let width = width.map_or(WIDTH, |(width, _)| width.0.into());
            let lines = self.panel(Instant::now()).lines(width);
            let painted: Vec<String> = lines.iter().map(Line::painted).collect();
            bar.set_message(painted.join("\n"));
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        if let Shown::Panel(bar) = &self.shown {
            bar.abandon();
        }
    }
}

fn say(line: &str) {
    // If nobody listens on standard error, there is nobody to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(step: u64, losses: &[(&'static str, f64)]) -> Snapshot<'static> {
        Snapshot {
            step,
            losses: losses.to_vec(),
            rate: 1e-3,
            norm: 1.0,
            pictures: 16,
            tokens: 0,
        }
    }

    #[test]
    fn time_left_counts_what_is_no_step() {
        let mut dashboard = Dashboard::new(Shown::Nowhere, 100, 40, Vec::new());
        let begun = dashboard.begun;
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(dashboard.left(at(1)), None);
        dashboard.take_in(&snapshot(41, &[]), at(2));
        // Half of the time goes into an evaluation.
        dashboard.since = at(6);
        dashboard.take_in(&snapshot(42, &[]), at(8));
        let speed = dashboard.pace.speed().map(|speed| speed.steps);
        assert_eq!(speed, Some(0.5));
        let left = dashboard.left(at(8)).map(|left| left.as_secs());
        assert_eq!(left, Some(58 * 4));
        dashboard.take_in(&snapshot(100, &[]), at(10));
        assert_eq!(dashboard.left(at(10)), None);
    }

    #[test]
    fn losses_keep_their_order_and_may_come_later() {
        let mut dashboard = Dashboard::new(Shown::Nowhere, 100, 0, Vec::new());
        let now = dashboard.begun;
        dashboard.take_in(&snapshot(1, &[("loss", 2.0), ("patch", 2.0)]), now);
        dashboard.take_in(&snapshot(2, &[("mask", 4.0), ("loss", 5.0)]), now);
        let shown: Vec<_> = dashboard
            .losses
            .iter()
            .map(|loss| (loss.name.as_str(), loss.now, loss.smooth))
            .collect();
        // A hundredth of the run is one step: (2 / 2 + 5) / 1.5.
        assert_eq!(
            shown,
            [
                ("loss", 5.0, Some(4.0)),
                ("patch", 2.0, Some(2.0)),
                ("mask", 4.0, Some(4.0)),
            ]
        );
    }

    /// A made-up run, to be watched: run on a terminal with `REFSEG_SAMPLE_RUN=1` and `--nocapture`.
    #[test]
    fn a_sample_can_be_watched() {
        if std::env::var_os("REFSEG_SAMPLE_RUN").is_none() {
            return;
        }
        let console = Console::new(false, 0);
        let files = ["runs/sample", "model", "curve.svg", "report.html", "events"];
        let files = files.map(str::to_owned).to_vec();
        let mut dashboard = Dashboard::open(&console, 300, 0, files);
        for step in 1..=300 {
            std::thread::sleep(Duration::from_millis(20));
            let noise = 1.0 + 0.2 * (step as f64 * 1.7).sin();
            let loss = |scale: f64| scale * noise * (0.2 + (-(step as f64) / 80.0).exp());
            dashboard.step(&Snapshot {
                step,
                losses: vec![
                    ("loss", loss(7.0)),
                    ("decision", loss(0.7)),
                    ("mask", if step < 60 { 0.0 } else { loss(1.1) }),
                ],
                rate: 1e-3 * (1.0 - step as f64 / 300.0),
                norm: loss(2.0),
                pictures: 16,
                tokens: 1400,
            });
            if step.is_multiple_of(100) {
                dashboard.doing("judging 64 held-out pictures");
                std::thread::sleep(Duration::from_millis(600));
                let metrics = [("cIoU", Some(step as f64 / 6.0)), ("N-acc", None)];
                let metrics = metrics.map(|(name, value)| (name.to_owned(), value));
                dashboard.evaluated(step, metrics.to_vec());
            }
        }
    }
}
