//! Where words go: results to standard output, everything else to standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use anyhow::{Context, Result};
use owo_colors::{OwoColorize, Stream};
use serde::Serialize;

use crate::progress::Progress;

/// How much is said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Console {
    quiet: bool,
    verbose: bool,
}

impl Console {
    pub(crate) fn new(quiet: bool, verbose: u8) -> Self {
        Self {
            quiet,
            verbose: verbose > 0,
        }
    }

    /// Whether nothing but results is to be printed.
    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Prints a result.
    ///
    /// # Errors
    /// If standard output is closed or full.
    pub(crate) fn result(self, text: impl Display) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .context("cannot write to standard output")
    }

    /// Prints a result as one JSON document.
    ///
    /// # Errors
    /// As [`Console::result`].
    pub(crate) fn json(self, document: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(document).context("cannot write the result as JSON")?;
        self.result(text)
    }

    /// Says what happened.
    pub(crate) fn note(self, text: impl Display) {
        if !self.quiet {
            say(text);
        }
    }

    /// Says what only the curious want to know.
    pub(crate) fn detail(self, text: impl Display) {
        if self.verbose {
            say(text);
        }
    }

    /// Says what the user should know of, though the work goes on.
    pub(crate) fn warn(self, text: impl Display) {
        if !self.quiet {
            let word = "warning:";
            let word = word.if_supports_color(Stream::Stderr, |word| word.yellow());
            say(format_args!("{word} {text}"));
        }
    }

    /// Shows how far something of `total` parts is.
    pub(crate) fn progress(self, total: u64, what: &'static str) -> Progress {
        if self.quiet {
            Progress::hidden()
        } else if io::stderr().is_terminal() {
            Progress::bar(total, what)
        } else {
            Progress::lines(total, what)
        }
    }
}

fn say(text: impl Display) {
    // If nobody listens on standard error, there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}
