//! How far something is: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// How far something is. A bar disappears when this is dropped.
pub(crate) struct Progress {
    shown: Shown,
}

enum Shown {
    Nowhere,
    Bar(ProgressBar),
    Lines {
        total: u64,
        what: &'static str,
        done: u64,
        message: String,
        last: Instant,
    },
}

impl Progress {
    pub(crate) fn hidden() -> Self {
        Self {
            shown: Shown::Nowhere,
        }
    }

    pub(crate) fn bar(total: u64, what: &'static str) -> Self {
        let template = "{prefix} {bar:28.cyan/238} {human_pos}/{human_len}  {msg}  {eta}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━━╌");
        let bar = ProgressBar::new(total).with_style(style).with_prefix(what);
        Self {
            shown: Shown::Bar(bar),
        }
    }

    pub(crate) fn lines(total: u64, what: &'static str) -> Self {
        Self {
            shown: Shown::Lines {
                total,
                what,
                done: 0,
                message: String::new(),
                last: Instant::now(),
            },
        }
    }

    /// Says how many parts are done.
    pub(crate) fn set(&mut self, now_done: u64) {
        match &mut self.shown {
            Shown::Nowhere => {}
            Shown::Bar(bar) => bar.set_position(now_done),
            Shown::Lines { done, last, .. } => {
                *done = now_done;
                if last.elapsed() >= BETWEEN_LINES {
                    self.line();
                }
            }
        }
    }

    /// One part more is done.
    pub(crate) fn advance(&mut self) {
        match &self.shown {
            Shown::Nowhere => {}
            Shown::Bar(bar) => bar.inc(1),
            Shown::Lines { done, .. } => {
                let done = done + 1;
                self.set(done);
            }
        }
    }

    /// Says what has come out so far.
    pub(crate) fn message(&mut self, text: String) {
        match &mut self.shown {
            Shown::Nowhere => {}
            Shown::Bar(bar) => bar.set_message(text),
            Shown::Lines { message, .. } => *message = text,
        }
    }

    /// Where there is no bar, prints the line now.
    pub(crate) fn line(&mut self) {
        if let Shown::Lines {
            total,
            what,
            done,
            message,
            last,
        } = &mut self.shown
        {
            *last = Instant::now();
            let line = format!("{what} {done}/{total}  {message}");
            // If nobody listens on standard error, there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{}", line.trim_end());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
