//! The `refseg` command: parses what is asked, calls the libraries, shows the result.
//!
//! Results go to standard output, everything else to standard error. The exit
//! code is 0 when a command did its work (also if nothing was found), 1 when it
//! failed, 2 when it was called wrongly.

mod cli;
mod commands;
mod console;
mod digest;
mod failure;
mod files;
mod memory;
mod npy;
mod overlay;
mod progress;
mod report;
mod table;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, Command};
use console::Console;
use refseg::nn::InstructionSet;

/// The networks allocate and free large buffers all the time, at which it is
/// faster than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

fn run(cli: &Cli) -> Result<()> {
    let console = Console::new(cli.common.quiet, cli.common.verbose);
    // An instruction set that is not there is an error, not a reason to take another.
    InstructionSet::chosen()?;
    if let Some(threads) = cli.common.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .build_global()
            .context("cannot start the threads that --threads asks for")?;
    }
    match &cli.command {
        Command::Segment(args) => commands::segment::run(args, &console),
        Command::Sam(args) => commands::sam::run(args, &console),
        Command::Ask(args) => commands::ask::run(args, &console),
        Command::Info(args) => commands::info::run(args, &console),
        Command::Init(args) => commands::init::run(args, &console),
        Command::Convert(args) => commands::convert::run(args, &console),
        Command::Bench(args) => commands::bench::run(args, &console),
        Command::Eval(args) => commands::eval::run(args, &console),
        Command::Score(args) => commands::score::run(args, &console),
        Command::Data(args) => commands::data::run(args, &console),
        Command::Scenes(args) => commands::scenes::run(args, &console),
        Command::Train(args) => commands::train::run(args, &console),
    }
}
